"""The vote table: the extension against the reference in float64, its rules at the edges, and its errors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crgan.errors import InputError
from crgan.ops import vote_table, vote_table_ref

ROOT = Path(__file__).parents[1]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sample_inputs(lead=(), groups=6, size=100, num_codes=5, dtype=torch.float32, mean=0.0, device="cpu", seed=0):
    """Codes of unlike spread per dimension, their scales, and a factor of its own for each group, so that the table
    shows the winner of each."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.randn(*lead, num_codes, generator=draw).exp()
    codes = torch.randn(*lead, groups, size, num_codes, generator=draw) * scale[..., None, None, :] + mean
    return codes.to(device, dtype), scale.to(device), torch.arange(groups, device=device), groups


def spreads(codes, scale):
    """var / scale^2 in float64, [..., G, K]; NaN where a dimension may not vote."""
    spread = codes.double().var(dim=-2, correction=0) / scale.double()[..., None, :] ** 2
    usable = (scale > 0) & scale.isfinite()
    return spread.where(usable[..., None, :] & spread.isfinite(), torch.nan)


def winners(votes):  # [..., K, G] -> [..., G], -1 where nobody voted
    assert votes.sum(dim=-2).max() <= 1
    return votes.argmax(dim=-2).where(votes.sum(dim=-2) > 0, -1)


def assert_right(inputs, impl, tolerance=1e-5):
    codes, scale, factor, groups = inputs
    truth = spreads(codes, scale).nan_to_num(nan=torch.inf)
    winner = winners(vote_table(codes, scale, factor, groups, impl=impl))
    least = truth.amin(dim=-1)
    assert torch.equal(winner < 0, least.isinf()), "votes where none may vote, or none where one may"
    won = truth.gather(-1, winner.clamp(min=0)[..., None])[..., 0]
    excess = (won / least - 1).nan_to_num(nan=0.0)
    at = int(excess.argmax())
    assert excess.max() <= tolerance, (
        f"group {at}: {impl} chose a spread of {won.flatten()[at]:.9g}, the least is {least.flatten()[at]:.9g}"
    )


def test_the_extension_is_built():
    import _crgan_C

    assert Path(_crgan_C.__file__).name == "_crgan_C.abi3.so"
    inputs = sample_inputs()
    called = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        vote_table(*inputs)
    assert "crgan.vote_table.default" in called, "auto must take the extension where it is built"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {"lead": (3,), "groups": 50},
        {"lead": (2, 3), "groups": 7, "size": 33, "num_codes": 10},
        {"groups": 500, "size": 100, "num_codes": 6, "mean": 3.0},
        {"size": 1000, "num_codes": 17, "mean": -20.0},
        {"size": 5, "num_codes": 64},
    ],
    ids=lambda shape: ",".join(f"{k}={v}" for k, v in shape.items()),
)
def test_extension_finds_the_least_spread(shape, dtype, device):
    assert_right(sample_inputs(**shape, dtype=dtype, device=device), "ext")


@pytest.mark.parametrize("impl", ["ref", "ext"])
@pytest.mark.parametrize("num_codes", [*range(1, 20), 23, 24, 25, 31, 32, 33, 40, 64, 65, 70])
def test_every_number_of_codes_and_odd_sizes(num_codes, impl):
    for size in (2, 3, 7, 8, 9, 15, 16, 17, 40):
        assert_right(sample_inputs(lead=(2,), groups=3, size=size, num_codes=num_codes, seed=size), impl)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mean", [0.0, 1e4, -1e5])
@pytest.mark.parametrize("num_codes", [2, 5, 12, 40])
def test_large_means_cost_no_digits(num_codes, mean, device):
    """Scales that make all dimensions alike but for 2 in 1e5: only a variance right to 1e-5 finds the least."""
    codes, _, factor, groups = sample_inputs((64,), 1, 100, num_codes, mean=mean)
    codes = mean + (codes - mean) / (codes - mean).std(dim=(1, 2), keepdim=True)
    scale = codes.double().var(dim=-2, correction=0).sqrt()[:, 0]
    least = torch.arange(64) % num_codes
    scale[torch.arange(64), least] *= 1 + 1e-5
    votes = vote_table(codes.to(device), scale.float().to(device), factor.to(device), groups, impl="ext")
    assert torch.equal(winners(votes)[:, 0].cpu(), least)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_add_up_as_in_the_reference(dtype, device):
    codes, scale, _, _ = sample_inputs((4,), 200, 20, 5, dtype=dtype, device=device)
    factor = torch.arange(200, device=device) % 3
    votes = vote_table(codes, scale, factor, 4, impl="ext")
    expected = vote_table_ref(codes.double(), scale.double(), factor, 4)
    assert votes.dtype == torch.int32
    assert votes.shape == (4, 5, 4)
    assert torch.equal(votes, expected)
    assert votes.sum(dim=(-2, -1)).tolist() == [200] * 4
    assert votes[..., 3].sum() == 0


@pytest.mark.parametrize("impl", ["ref", "ext"])
def test_leading_dimensions_broadcast_and_strides(impl):
    codes, scale, factor, groups = sample_inputs((2, 3), 4, 9, 5)
    expected = vote_table_ref(codes, scale, factor, groups)
    for n in range(6):
        i, j = divmod(n, 3)
        assert torch.equal(vote_table(codes[i, j], scale[i, j], factor, groups, impl=impl), expected[i, j])
    strided = codes.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(vote_table(strided, scale, factor, groups, impl=impl), expected)
    swapped = vote_table(codes.transpose(0, 1), scale.transpose(0, 1), factor, groups, impl=impl)
    assert torch.equal(swapped, expected.transpose(0, 1))
    assert torch.equal(
        vote_table(codes.expand(4, -1, -1, -1, -1, -1)[1:3], scale, factor, groups, impl=impl)[1], expected
    )
    shifted = torch.cat([torch.zeros(1), codes.flatten()])[1:].view_as(codes)  # not aligned to a vector
    assert torch.equal(vote_table(shifted, scale, factor.int(), groups, impl=impl), expected)
    one = vote_table(codes, torch.ones(5), factor, groups, impl=impl)
    assert torch.equal(one, vote_table(codes, torch.ones(2, 3, 5), factor, groups, impl=impl))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("impl", ["ref", "ext"])
@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 0, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0), (2, 4, 0, 20)])
def test_nothing_to_count(shape, impl, device):
    codes = torch.zeros(shape, device=device)
    factor = torch.zeros(shape[1], dtype=torch.int64, device=device)
    votes = vote_table(codes, torch.ones(shape[-1], device=device), factor, 2, impl=impl)
    assert votes.shape == (shape[0], shape[-1], 2)
    assert votes.dtype == torch.int32
    assert votes.sum() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("impl", ["ref", "ext"])
def test_equal_spreads_vote_for_the_lowest_dimension(impl, device):
    """In the extension like codes have like spreads, to the last bit; in the reference where the sums are exact."""
    for num_codes in (*range(1, 20), 33, 40, 70):
        for size in (1, 2, 16, 64, 33)[: 5 if impl == "ext" else 4]:
            column = torch.randn(8, size, 1) if impl == "ext" else torch.randint(-9, 9, (8, size, 1)).float()
            codes = column.expand(8, size, num_codes).contiguous().to(device)
            scale = torch.ones(num_codes, device=device)
            factor = torch.arange(8, device=device)
            assert winners(vote_table(codes, scale, factor, 8, impl=impl)).tolist() == [0] * 8
            if num_codes > 2 and size > 2:
                scale[:2] = 0.5
                assert winners(vote_table(codes, scale, factor, 8, impl=impl)).tolist() == [2] * 8
    codes, _, factor, _ = sample_inputs(size=1)
    assert winners(vote_table(codes, torch.tensor([0.0, 2, 3, 1, 1]), factor, 6, impl=impl)).tolist() == [1] * 6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("impl", ["ref", "ext"])
@pytest.mark.parametrize("num_codes", [5, 12, 40])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_codes_that_are_not_finite_never_win(broken, num_codes, impl, device):
    codes, scale, factor, groups = sample_inputs(size=20, num_codes=num_codes, device=device)
    codes[..., 3] *= 1e-3  # would win every group
    assert winners(vote_table(codes, scale, factor, groups, impl=impl)).tolist() == [3] * groups
    codes[1, 7, 3] = broken
    codes[2, 19, 3] = broken
    codes[4] = broken if broken != 1e30 else torch.nan
    winner = winners(vote_table(codes, scale, factor, groups, impl=impl)).tolist()
    assert [w == 3 for w in winner] == [True, False, False, True, False, True]
    assert winner[4] == -1  # nobody could vote
    assert_right((codes, scale, factor, groups), impl)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("impl", ["ref", "ext"])
@pytest.mark.parametrize("num_codes", [5, 12, 40])
def test_scales_of_no_use_never_win(num_codes, impl, device):
    codes, scale, factor, groups = sample_inputs((6,), num_codes=num_codes, device=device)
    codes[..., :2] = 0.25  # collapsed: variance 0, which wins wherever its scale is a number
    scale[:, 0] = torch.tensor([0.0, -1.0, torch.inf, torch.nan, 0.0, 1e-30])
    scale[:4, 1] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    scale[4] = torch.nan
    winner = winners(vote_table(codes, scale, factor, groups, impl=impl))
    assert (winner[:4] > 1).all()
    assert (winner[4] == -1).all()
    assert (winner[5] == 0).all()
    assert_right((codes, scale, factor, groups), impl)


@pytest.mark.parametrize("impl", ["ref", "ext"])
def test_tiny_scales_do_not_underflow(impl):
    codes, scale, factor, groups = sample_inputs()
    tiny = 2.0**-50  # the square of a scale like this is still a float, the square of its square is not
    expected = vote_table(codes, scale, factor, groups, impl="ref")
    assert torch.equal(vote_table(codes * tiny, scale * tiny, factor, groups, impl=impl), expected)


def test_threads_do_not_change_the_table():
    codes, scale, _, _ = sample_inputs((7,), 300, 20, 5)
    factor = torch.arange(300) % 4
    before = torch.get_num_threads()
    tables = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            tables.append(vote_table(codes, scale, factor, 4, impl="ext"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, device):
    vote_table(*sample_inputs(device=device))  # loads the op
    for shape in ({"lead": (2,)}, {"lead": (0,)}, {"groups": 1, "size": 3, "num_codes": 21}):
        torch.library.opcheck(torch.ops.crgan.vote_table.default, sample_inputs(**shape, dtype=dtype, device=device))


def test_compiles_without_a_graph_break():
    inputs = sample_inputs((2,))
    compiled = torch.compile(vote_table, fullgraph=True, backend="aot_eager")
    for impl in ("auto", "ext", "ref"):
        assert torch.equal(compiled(*inputs, impl=impl), vote_table(*inputs, impl="ref"))


def test_gradients_do_not_flow():
    codes, scale, factor, groups = sample_inputs()
    votes = vote_table(codes.requires_grad_(), scale.requires_grad_(), factor, groups)
    assert not votes.requires_grad


@pytest.mark.parametrize("impl", ["ref", "ext"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(9, 5)}, r"codes have shape \[9, 5\]"),
        ({"scale": torch.ones(4)}, r"scale has shape \[4\], expected \[5\]"),
        ({"scale": torch.ones(3, 5)}, r"scale has shape \[3, 5\], expected \[5\]"),
        ({"factor": torch.zeros(5, dtype=torch.int64)}, r"shape \[5\], expected int64 of shape \[6\]"),
        ({"factor": torch.zeros(6)}, "factor is torch.float32"),
        ({"codes": torch.zeros(6, 9, 5, dtype=torch.int64)}, "codes are torch.int64"),
        ({"num_factors": 5}, "factor holds 5, expected 0 <= factor < num_factors = 5"),
        ({"factor": torch.tensor([0, 1, -1, 2, 3, 4])}, "factor holds -1"),
        ({"scale": torch.ones(5, device="meta")}, "move them to one device"),
    ],
)
def test_mistakes_are_named(change, message, impl):
    arguments = dict(zip(("codes", "scale", "factor", "num_factors"), sample_inputs(size=9), strict=True)) | change
    with pytest.raises(InputError, match=message):
        vote_table(**arguments, impl=impl)


def test_the_op_itself_checks_what_could_touch_foreign_memory():
    codes, scale, factor, groups = sample_inputs()
    vote_table(codes, scale, factor, groups)
    op = torch.ops.crgan.vote_table
    for arguments in (
        (codes, scale[:4], factor, groups),
        (codes, scale.double(), factor, groups),
        (codes, scale, factor[:5], groups),
        (codes, scale, factor.int(), groups),
        (codes, scale, factor, groups - 1),
        (codes, scale, factor - 1, groups),
        (codes.double(), scale, factor, groups),
        (codes[0], scale, factor, groups),
    ):
        with pytest.raises(RuntimeError, match="vote_table: "):
            op(*arguments)


def test_an_implementation_asked_for_by_name_never_falls_back(monkeypatch):
    codes, scale, factor, groups = sample_inputs()
    with pytest.raises(InputError, match=r"impl='ext'.*float64.*can run here: auto, ref$"):
        vote_table(codes.double(), scale, factor, groups, impl="ext")
    with pytest.raises(InputError, match=r"impl='triton'.*no such implementation.*auto, ext, ref$"):
        vote_table(codes, scale, factor, groups, impl="triton")
    assert torch.equal(vote_table(codes.double(), scale, factor, groups), vote_table(codes, scale, factor, groups))

    for name in ("_crgan_C", "_crgan_cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("crgan.ops._define_vote_table", lambda: __import__("_crgan_C"))
    with pytest.raises(InputError, match=r"impl='ext'.*not there.*_crgan_C.*pip install --no-build-isolation \."):
        vote_table(codes, scale, factor, groups, impl="ext")
    assert torch.equal(vote_table(codes, scale, factor, groups), vote_table_ref(codes, scale, factor, groups))


# ---------------------------------------------------------------- the kernels alone, without torch


def run_native(folder, *flags):
    """Compiles tests/native against the kernels and runs it: every kernel against the definition in double."""
    command = [shutil.which("c++") or "g++", "-std=c++20", "-Wall", "-Wno-psabi", "-pthread", *flags]
    source = ROOT / "tests/native"
    subprocess.run(
        [*command, f"-I{ROOT / 'csrc'}", f"-I{source / 'cuda'}", source / "vote_table.cpp", "-o", folder / "check"],
        check=True,
    )
    done = subprocess.run([folder / "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " groups right" in done.stdout


def test_every_cpu_kernel_against_the_definition(tmp_path):
    run_native(tmp_path, "-O2")


def test_the_cuda_kernel_run_on_the_cpu(tmp_path):
    run_native(tmp_path, "-O1", "-DEMULATE_CUDA")


@pytest.mark.slow
@pytest.mark.parametrize("target", [[], ["-DEMULATE_CUDA"]], ids=["cpu", "cuda"])
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_kernels_under_sanitizers(sanitizer, target, tmp_path):
    run_native(tmp_path, "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", *target)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_extension_under_sanitizers(sanitizer, tmp_path):
    """The tests of this file once more, with the extension compiled with the sanitizers."""
    import sysconfig

    from torch.utils import cpp_extension

    flags = ["-O1", "-g", "-fPIC", "-shared", "-std=c++20", "-Wno-psabi", "-fvisibility=hidden"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    flags += ["-DTORCH_EXTENSION_NAME=_crgan_C", "-DPy_LIMITED_API=0x030A0000"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{sysconfig.get_paths()['include']}"]
    flags += [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-ltorch", "-lc10"]
    module, fences = tmp_path / "_crgan_C.abi3.so", tmp_path / "fences.so"
    subprocess.run(["g++", *flags, ROOT / "csrc/vote_table.cpp", "-o", module, *libraries], check=True)
    names = {"thread": ("libtsan.so", "libstdc++.so")}.get(sanitizer, ("libasan.so", "libubsan.so", "libstdc++.so"))
    runtime = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    if sanitizer == "thread":
        source = ROOT / "tests/native/gomp_fences.cpp"
        subprocess.run(["g++", "-O1", "-fPIC", "-shared", source, "-o", fences], check=True)
        runtime.insert(1, str(fences))
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves much to the end of the process
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 report_thread_leaks=0 exitcode=66",
        "OMP_NUM_THREADS": "2",
    }
    code = (
        "import sys, torch, _crgan_C, pytest\n"  # loaded here, before pytest adds to the path
        "assert _crgan_C.__file__ == sys.argv[1], _crgan_C.__file__\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'not native and not kernel', sys.argv[2]]))"
    )
    # The thread sanitizer wants addresses where it expects them.
    command = ["setarch", "-R", sys.executable, "-c", code, module, __file__]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
