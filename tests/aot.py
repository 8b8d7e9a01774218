"""Compiles every Triton kernel ahead of time; needs no GPU.

    python tests/aot.py [--targets 80 90 100] [--only REGEX]

Prints registers and spilled bytes per kernel and target, and ends with exit code 1 where a kernel spills.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import triton
import tyro
from _crgan_kernels import contrastive_loss as loss
from _crgan_kernels import samplers
from _crgan_kernels import spectral_norm as norm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

INTEGERS = ("n", "blocks", "high", "seed", "step", "batch", "num_codes", "num_noise", "half")
INTEGERS += ("stride", "rows", "programs", "n1", "n2")


def variants() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Name, kernel, types of its pointers (float32 where none is given), constants and options."""
    draw = {"STREAM": samplers.LATENTS, **samplers.CONFIG}
    yield "draw, floats", samplers.draw_kernel, {}, draw
    yield "draw, indices, step in memory", samplers.draw_kernel, {"out": "*i64", "step": "*i64"}, draw
    pairs = samplers.PAIR_STREAMS | samplers.CONFIG
    for place, step in (("", {}), (", step in memory", {"step": "*i64"})):
        yield f"traversal pairs{place}", samplers.traversal_pairs_kernel, {"index": "*i64"} | step, pairs
    for name, kernel in (("loss", loss.forward_kernel), ("loss gradients", loss.backward_kernel)):
        shapes = [("fp32", k, d) for k, d in ((5, 128), (16, 2000), (32, 128), (64, 100), (128, 128), (256, 512))]
        shapes += [("bf16", 5, 128), ("bf16", 16, 2000), ("bf16", 256, 512), ("fp16", 5, 128)]
        for dtype, num_codes, width in shapes:
            types = {"index": "*i64", "features": f"*{dtype}", "grad_features": f"*{dtype}"}
            config = loss.config(kernel, num_codes)
            label = f"{name}, {dtype}, K={num_codes}, D={width}, {config['num_warps']} warps"
            yield label, kernel, types, {"K": num_codes, "D": width, **config}
    yield "sum of partial sums", loss.sum_kernel, {}, loss.SUM_CONFIG
    for kernel, config in (
        (norm.project_kernel, norm.COLUMNS),
        (norm.multiply_kernel, norm.ROWS),
        (norm.divide_kernel, norm.ELEMENTS),
        (norm.reduce_kernel, norm.COLUMNS),
        (norm.gradient_kernel, {**norm.ELEMENTS, "BLOCK_C": norm.COLUMNS["BLOCK_C"]}),
    ):
        yield f"spectral norm, {kernel.__name__.removesuffix('_kernel')}", kernel, {"table": "*i64"}, config


def compile_kernel(kernel: Any, types: dict[str, str], settings: dict[str, Any], arch: int) -> tuple[int, int]:
    """Registers per thread and bytes of spills, as the machine code states them."""
    constants = {k: v for k, v in settings.items() if k in kernel.arg_names}
    options = {k: v for k, v in settings.items() if k not in constants}
    signature = {}
    for name in kernel.arg_names:
        kind = "constexpr" if name in constants else "i32" if name in INTEGERS else "*fp32"
        signature[name] = types.get(name, kind)
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    cubin = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def main(targets: tuple[int, ...] = (80, 90, 100), only: str = "") -> int:
    """Compile the kernels whose names match the regular expression `only`, for compute capabilities times 10."""
    failed = 0
    print(f"{'registers (spilled bytes)':60}" + "".join(f"{f'sm_{t}':>12}" for t in targets))
    for name, kernel, types, settings in variants():
        if not re.search(only, name):
            continue
        line = f"{name:60}"
        for arch in targets:
            registers, spilled = compile_kernel(kernel, types, settings, arch)
            line += f"{f'{registers} ({spilled})':>12}"
            failed += spilled > 0
        print(line, flush=True)
    if failed:
        print(f"{failed} kernels spill registers to memory: choose smaller tiles", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
