"""The public ops: checks of shape and range, choice of the implementation, registration with torch.compile.

Every op takes `impl`: "ref" is plain PyTorch, "triton" and "ext" are compiled, "auto" takes the fastest that
can run here. An implementation asked for by name runs or raises; only "auto" falls back.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from _crgan_kernels import samplers
from _crgan_kernels._triton import obstacle as triton_obstacle
from _crgan_kernels.contrastive_loss import contrastive_loss_ref, contrastive_loss_triton
from _crgan_kernels.group_votes import MISSING as EXTENSION_MISSING
from _crgan_kernels.group_votes import group_votes_ref
from _crgan_kernels.spectral_norm import spectral_norm_ref, spectral_norm_triton
from torch import Tensor

from crgan.errors import InputError

Step = int | Tensor
Device = torch.device | str
_KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_said: set[str] = set()  # warn once


def _compiled(op: str, impl: str, device: torch.device, unfit: str = "", compiled: str = "triton") -> bool:
    """Return whether the compiled implementation is to run; `unfit` is why it cannot take these arguments.

    Triton's interpreter is for tests, so "auto" never takes it.
    """
    if impl == "auto" and compiled == "triton" and device.type != "cuda":
        return False
    absent = f"the extension has no kernel for {device.type} tensors"
    missing = EXTENSION_MISSING.get(device.type, absent) if compiled == "ext" else triton_obstacle(device)
    obstacle = unfit or missing
    if impl == "auto":
        if missing and missing not in _said and not torch.compiler.is_compiling():
            _said.add(missing)
            warnings.warn(f"{missing}; until then the slower reference runs", stacklevel=3)
    elif impl not in ("ref", compiled) or (impl == compiled and obstacle):
        usable = "auto, ref" if obstacle else f"auto, {compiled}, ref"
        reason = obstacle if impl == compiled else f"{op} has no such implementation"
        raise InputError(f"{op}(impl={impl!r}): {reason}; what can run here: {usable}")
    return impl != "ref" and not obstacle


def _one_device(op: str, tensors: Sequence[Tensor]) -> torch.device:
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise InputError(f"{op}: arguments are on {', '.join(map(str, devices))}; move them to one device")
    return devices.pop()


def describe(device: torch.device) -> str:
    """Return which implementation of the training ops runs on `device`."""
    return "triton" if device.type == "cuda" and not triton_obstacle(device) else "reference"


def group_votes(
    codes: Tensor,  # [..., G, L, K] float32, float16 or bfloat16 (float64: reference only)
    scale: Tensor,  # [..., K], the encoder's standard deviation of each code
    *,
    impl: str = "auto",
) -> Tensor:  # [..., G] int64
    """Return the dimension that each group of L codes votes for, as in the FactorVAE score; -1 where none can vote.

    (Kim and Mnih 2018, section 4.) The dimension with the least var / scale^2 (ddof 0) wins; ties go to the first.
    Leading dimensions are independent (one per encoder, or per pair of models), and `scale` broadcasts over them.
    Computed in float32; 16-bit codes are widened first.

    A dimension does not vote where its scale is zero, negative, infinite or NaN, nor in a group where its variance is
    not finite, so a collapsed or broken code never wins. In a group of one code every variance is 0, so the first
    usable dimension votes.

    Raises InputError on shapes, types or devices that do not fit, and where the named `impl` cannot run. The CUDA
    kernel holds some rows in shared memory and raises RuntimeError for more than some 4,400 dimensions (2,700 in 16
    bits).
    """
    if codes.ndim < 3:
        raise InputError(f"group_votes: codes have shape {list(codes.shape)}, expected [..., groups, images, codes]")
    shape = [*codes.shape[:-3], codes.shape[-1]]
    try:
        scale = scale.expand(shape)
    except RuntimeError:
        raise InputError(f"group_votes: scale has shape {list(scale.shape)}, expected {shape}") from None
    if not (codes.is_floating_point() and scale.is_floating_point()):
        raise InputError(f"group_votes: codes are {codes.dtype}, scale is {scale.dtype}, expected floats")
    device = _one_device("group_votes", (codes, scale))
    unfit = "" if codes.dtype in _KERNEL_TYPES else f"the extension does not read {codes.dtype}"
    if _compiled("group_votes", impl, device, unfit, "ext"):
        return torch.ops.crgan.group_votes(codes.detach(), scale.detach().float())
    return group_votes_ref(codes, scale)


def vote_table(
    codes: Tensor,  # [..., G, L, K] float32, float16 or bfloat16 (float64: reference only)
    scale: Tensor,  # [..., K], the encoder's standard deviation of each code
    factor: Tensor,  # [G] integers in [0, num_factors), the factor held fixed in each group
    num_factors: int,
    *,
    impl: str = "auto",
) -> Tensor:  # [..., K, num_factors] int32
    """Count the votes of `group_votes`: votes[..., d, f] groups with factor f voted for dimension d.

    A group in which no dimension can vote counts nowhere: `votes.sum((-2, -1))` is then less than G. Raises InputError
    as `group_votes` does, and on a factor of another shape or out of range (on CUDA a device-side assertion, as a check
    would stall the stream).
    """
    winner, groups = group_votes(codes, scale, impl=impl), codes.shape[-3]
    if factor.shape != (groups,) or factor.is_floating_point() or factor.device != codes.device:
        found = f"{factor.dtype} of shape {list(factor.shape)} on {factor.device}"
        raise InputError(f"vote_table: factor is {found}, expected int64 of shape [{groups}] on {codes.device}")
    if factor.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = factor[(factor < 0) | (factor >= num_factors)]
        if len(wrong):
            raise InputError(f"vote_table: factor holds {wrong[0]}, expected 0 <= factor < {num_factors}")
    cells = codes.shape[-1] * num_factors  # and one more, for groups without a vote
    cell = torch.where(winner < 0, cells, winner * num_factors + factor)
    votes = torch.zeros(*winner.shape[:-1], cells + 1, dtype=torch.int32, device=codes.device)
    votes.scatter_add_(-1, cell, torch.ones_like(cell, dtype=torch.int32))
    return votes[..., :cells].unflatten(-1, (codes.shape[-1], num_factors))


def sample_latents(
    batch: int, num_codes: int, num_noise: int, seed: int, step: Step, *, device: Device, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Draw codes c [B, K] and noise z [B, Z], float32, independent and uniform on [-1, 1).

    Here and below, equal arguments give the same bits on every device and in every implementation. `step` is an int, or
    a 0-d int64 tensor on `device`, with which a captured CUDA graph draws new numbers at each replay.

    Raises InputError for a seed outside [0, 2^64), a step tensor of another type or shape, and if the named `impl`
    cannot run.
    """
    draw = _sampler("sample_latents", samplers.draw_ref, samplers.draw_triton, seed, step, device, impl)
    c, z = draw(batch * (num_codes + num_noise), 0, samplers.LATENTS).split([batch * num_codes, batch * num_noise])
    return c.view(batch, num_codes), z.view(batch, num_noise)


def random_index(n: int, high: int, seed: int, step: Step, *, device: Device, impl: str = "auto") -> Tensor:
    """Draw n indices, int64, independent and uniform on [0, high), with a bias below high / 2^32.

    Raises InputError unless 1 <= high <= 2^31, and as `sample_latents` does.
    """
    if not 1 <= high <= 2**31:
        raise InputError(f"random_index: high is {high}, expected 1 <= high <= 2^31")
    draw = _sampler("random_index", samplers.draw_ref, samplers.draw_triton, seed, step, device, impl)
    return draw(n, high, samplers.DATA_INDEX)


def traversal_pairs(
    batch: int, num_codes: int, num_noise: int, gap: float, seed: int, step: Step, *, device: Device, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw paired latent traversals for the contrastive regularizer (Lin et al. 2020, InfoGAN-CR, section 3).

    Returns c1 and c2 [B, K] float32 in [-1, 1], z [B, Z] float32 on [-1, 1), shared by the pair, and index [B]
    int64, uniform on [0, K): the code that the pair shares, c1[b, index[b]] == c2[b, index[b]], uniform on
    [-1, 1). All other codes differ by at least `gap` (0 <= gap < 2): two values drawn from
    [-1 + gap/2, 1 - gap/2] are pushed apart by gap/2 each. Range and gap hold exactly in float32.

    Raises InputError for a gap outside [0, 2) or `num_codes` below 1, and as `sample_latents` does.
    """
    if not 0 <= gap < 2:
        raise InputError(f"traversal_pairs: gap is {gap}, expected 0 <= gap < 2")
    if num_codes < 1:
        raise InputError(f"traversal_pairs: num_codes is {num_codes}, expected at least 1")
    ref, triton = samplers.traversal_pairs_ref, samplers.traversal_pairs_triton
    draw = _sampler("traversal_pairs", ref, triton, seed, step, device, impl)
    return draw(batch, num_codes, num_noise, gap)


def _sampler(op: str, ref: Any, triton: Any, seed: int, step: Step, device: Device, impl: str) -> Any:
    """Return the implementation to run, `ref` or `triton`, bound to seed, step and device."""
    device = torch.device(device)
    if isinstance(step, Tensor) and (step.dtype != torch.int64 or step.ndim or step.device.type != device.type):
        found = f"{step.dtype} of shape {list(step.shape)} on {step.device}"
        raise InputError(f"{op}: step is {found}, expected an int or a 0-d int64 tensor on {device}")
    if not 0 <= seed < 2**64:
        raise InputError(f"{op}: seed is {seed}, expected 0 <= seed < 2^64")
    return functools.partial(triton if _compiled(op, impl, device) else ref, seed=seed, step=step, device=device)


def contrastive_loss(
    features: Tensor,  # [B, D] float32, float16 or bfloat16 (float64: reference only)
    weight: Tensor,  # [K, D], 2 <= K <= 256
    bias: Tensor,  # [K]
    index: Tensor,  # [B] int64 in [0, K), the code that the pair shares
    *,
    impl: str = "auto",
) -> Tensor:
    """Return the contrastive loss: the mean over B of -log softmax(features @ weight.T + bias)[index].

    (Lin et al. 2020, InfoGAN-CR, section 3; H's last layer fused with its cross-entropy.) A float32 scalar, computed
    in float32 whatever the types, which may differ (autocast features, float32 weights). Each gradient has its
    argument's type. An empty batch has loss and gradients 0.

    Raises InputError for shapes or types that do not fit, and if the named `impl` cannot run. The kernel is
    differentiable once: a second derivative raises RuntimeError.
    """
    shapes = [list(t.shape) for t in (features, weight, bias, index)]
    batch, width = features.shape if features.ndim == 2 else (0, 0)
    codes = bias.numel()
    if shapes != [[batch, width], [codes, width], [codes], [batch]] or not (2 <= codes <= 256 and width >= 1):
        expected = "[B, D], [K, D], [K] and [B] with 2 <= K <= 256"
        raise InputError(f"contrastive_loss: the arguments have shapes {shapes}; expected {expected}")
    if index.dtype != torch.int64:
        raise InputError(f"contrastive_loss: index is {index.dtype}, expected int64")
    device = _one_device("contrastive_loss", (features, weight, bias, index))
    narrow = all(t.dtype in _KERNEL_TYPES for t in (features, weight, bias))
    unfit = "" if narrow else "the kernel reads float32, float16 and bfloat16"
    if _compiled("contrastive_loss", impl, device, unfit) and batch:  # without rows there is nothing to launch
        return contrastive_loss_triton(features, weight, bias, index)
    return contrastive_loss_ref(features, weight, bias, index)


def spectral_norm(
    matrices: Sequence[Tensor],  # W [R, C] of each layer, float32 (float64: reference only)
    vectors: Sequence[Tensor],  # u [R] of each layer, of length 1
    *,
    impl: str = "auto",
) -> tuple[list[Tensor], list[Tensor]]:
    """Return W / sigma(W) of each layer and its next u, by one power iteration (Miyato et al. 2018, algorithm 1).

    v = W^T u / |W^T u|, next u = W v / |W v|, sigma = next_u^T W v = |W v|. Gradients flow through the iteration, as in
    the original InfoGAN-CR; the next u has none. One call handles all layers of a network, in three launches and two
    for the gradients.

    Raises InputError for shapes, types or devices that do not fit, and if the named `impl` cannot run. The kernel is
    differentiable once: a second derivative raises RuntimeError.
    """
    matrices, vectors = list(matrices), list(vectors)
    if not matrices:
        return [], []
    shapes = [list(m.shape) for m in matrices], [list(u.shape) for u in vectors]
    if any(len(shape) != 2 or 0 in shape for shape in shapes[0]) or shapes[1] != [shape[:1] for shape in shapes[0]]:
        raise InputError(f"spectral_norm: matrices {shapes[0]}, vectors {shapes[1]}; expected [R, C] and [R] of each")
    device = _one_device("spectral_norm", (*matrices, *vectors))
    types = {t.dtype for t in (*matrices, *vectors)}
    if types not in ({torch.float32}, {torch.float64}):
        raise InputError(f"spectral_norm: arguments are {types}; expected all float32, or all float64")
    unfit = "" if types == {torch.float32} else "the kernel reads float32"
    if _compiled("spectral_norm", impl, device, unfit):
        return spectral_norm_triton(matrices, vectors)
    return spectral_norm_ref(matrices, vectors)
