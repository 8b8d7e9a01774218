"""The votes of groups: the extension against the definition in float64, its rules at the edges, and its errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crgan import group_votes, ops, vote_table
from crgan.ops import group_votes_ref

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["ref", "ext"])
def impl(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


def sample_inputs(lead=(), groups=6, size=100, num_codes=5, dtype=torch.float32, mean=0.0, device="cpu", seed=0):
    """Codes whose dimensions differ in spread, and their scales."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.randn(*lead, num_codes, generator=draw).exp()
    codes = torch.randn(*lead, groups, size, num_codes, generator=draw) * scale[..., None, None, :] + mean
    return codes.to(device, dtype), scale.to(device)


def assert_right(codes, scale, impl, tolerance=1e-5):
    """The winner's var / scale^2 in float64 is the least, and nobody wins where nobody may vote."""
    spread = codes.double().var(dim=-2, correction=0) / scale.double()[..., None, :] ** 2
    usable = (scale > 0) & scale.isfinite()
    spread = spread.where(usable[..., None, :] & spread.isfinite(), torch.inf)
    winner = group_votes(codes, scale, impl=impl)
    assert winner.dtype == torch.int64
    least = spread.amin(dim=-1)
    assert torch.equal(winner < 0, least.isinf())
    won = spread.gather(-1, winner.clamp(min=0)[..., None])[..., 0]
    assert (won / least - 1).nan_to_num(nan=0.0).max() <= tolerance


def test_auto_takes_the_extension_which_is_built(monkeypatch):
    """Fails, not skips: nothing else may hide that the compiled module is missing."""
    assert ops.EXTENSION_MISSING["cpu"] == ""
    monkeypatch.delattr(ops, "group_votes_ref")  # nothing falls back
    group_votes(*sample_inputs())


@pytest.mark.parametrize("num_codes", [*range(1, 18), 24, 33, 64, 65, 70, 300])
def test_finds_the_least_spread(num_codes, dtype, device):
    for size in (2, 3, 7, 8, 9, 15, 16, 17, 40, 65, 1000):
        inputs = sample_inputs((2,), 3, size, num_codes, dtype, mean=num_codes - 9.0, device=device, seed=size)
        assert_right(*inputs, "ext")
        if dtype == torch.float32:
            assert_right(*inputs, "ref")


@pytest.mark.parametrize("outlier", [0.0, 5.0])
@pytest.mark.parametrize("mean", [0.0, 1e4, -1e5])
@pytest.mark.parametrize(("size", "num_codes"), [(100, 2), (100, 5), (100, 12), (100, 40), (10_000, 5), (10_000, 40)])
def test_large_means_and_outliers_cost_no_digits(size, num_codes, mean, outlier, device):
    """Scales that make all dimensions alike but for 2 in 1e5: only a variance right to 1e-5 finds the least."""
    draw = torch.Generator().manual_seed(0)
    codes = mean + torch.randn(16, 1, size, num_codes, generator=draw)
    codes[:, :, 0] += outlier
    scale = codes.double().var(dim=-2, correction=0).sqrt()[:, 0]
    least = torch.arange(16) % num_codes
    scale[torch.arange(16), least] *= 1 + 1e-5
    assert group_votes(codes.to(device), scale.float().to(device), impl="ext")[:, 0].tolist() == least.tolist()


def test_leading_dimensions_broadcast_and_strides(impl):
    codes, scale = sample_inputs((2, 3), 4, 9, 5)
    expected = group_votes_ref(codes, scale)
    assert torch.equal(group_votes(codes[1, 2], scale[1, 2], impl=impl), expected[1, 2])
    strided = codes.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(group_votes(strided, scale, impl=impl), expected)
    swapped = group_votes(codes.transpose(0, 1), scale.transpose(0, 1), impl=impl)
    assert torch.equal(swapped, expected.transpose(0, 1))
    assert torch.equal(group_votes(codes.expand(4, -1, -1, -1, -1, -1)[1:3], scale, impl=impl)[1], expected)
    shifted = torch.cat([torch.zeros(1), codes.flatten()])[1:].view_as(codes)  # not aligned to a vector
    assert torch.equal(group_votes(shifted, scale, impl=impl), expected)
    one = group_votes(codes, torch.ones(5), impl=impl)
    assert torch.equal(one, group_votes(codes, torch.ones(2, 3, 5), impl=impl))


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 0, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0), (2, 4, 0, 20)])
def test_nothing_to_vote_on(shape, impl, device):
    codes, scale = torch.zeros(shape, device=device), torch.ones(shape[-1], device=device)
    votes = group_votes(codes, scale, impl=impl)
    assert votes.shape == shape[:2]
    assert (votes == -1).all()
    table = vote_table(codes, scale, torch.zeros(shape[1], dtype=torch.int64, device=device), 2, impl=impl)
    assert table.shape == (shape[0], shape[-1], 2)
    assert table.sum() == 0


def test_equal_spreads_vote_for_the_lowest_dimension(impl, device):
    """In the extension like codes have like spreads, to the last bit; in the reference where the sums are exact."""
    for num_codes in (*range(1, 19), 33, 70):
        for size in (1, 2, 16, 64, 33, 701)[: None if impl == "ext" else 4]:
            column = torch.randn(8, size, 1) if impl == "ext" else torch.randint(-9, 9, (8, size, 1)).float()
            codes, scale = column.expand(8, size, num_codes).contiguous().to(device), torch.ones(num_codes).to(device)
            assert group_votes(codes, scale, impl=impl).tolist() == [0] * 8
            if num_codes > 2 and size > 2:
                scale[:2] = 0.5
                assert group_votes(codes, scale, impl=impl).tolist() == [2] * 8
    codes, _ = sample_inputs(size=1, device=device)
    assert group_votes(codes, torch.tensor([0.0, 2, 3, 1, 1]).to(device), impl=impl).tolist() == [1] * 6


@pytest.mark.parametrize("num_codes", [5, 16, 40])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_codes_that_are_not_finite_never_win(broken, num_codes, impl, device):
    codes, scale = sample_inputs(size=20, num_codes=num_codes, device=device)
    codes[..., 3] *= 1e-3  # would win every group
    codes[1, 7, 3] = broken
    codes[2, 19, 3] = broken
    codes[4] = broken if broken != 1e30 else torch.nan
    votes = group_votes(codes, scale, impl=impl).tolist()
    assert [vote == 3 for vote in votes] == [True, False, False, True, False, True]
    assert votes[4] == -1
    assert_right(codes, scale, impl)


@pytest.mark.parametrize("num_codes", [5, 16, 40])
def test_scales_of_no_use_never_win(num_codes, impl, device):
    codes, scale = sample_inputs((6,), num_codes=num_codes, device=device)
    codes[..., :2] = 0.25  # collapsed: variance 0, which wins wherever its scale is a number
    scale[:, 0] = torch.tensor([0.0, -1.0, torch.inf, torch.nan, 0.0, 1e-30])
    scale[:4, 1] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    scale[4] = torch.nan
    votes = group_votes(codes, scale, impl=impl)
    assert (votes[:4] > 1).all()
    assert (votes[4] == -1).all()
    assert (votes[5] == 0).all()
    assert_right(codes, scale, impl)
    tiny = 2.0**-50  # the square of a scale like this is still a float, the square of its square is not
    assert torch.equal(group_votes(codes * tiny, scale * tiny, impl=impl)[:5], votes[:5])


def test_the_table_counts_the_votes(impl, device):
    codes, scale = sample_inputs((4,), 200, 20, 5, device=device)
    codes[0, :9] = torch.nan
    factor = torch.arange(200, device=device) % 3
    votes, table = group_votes(codes, scale, impl=impl), vote_table(codes, scale, factor.int(), 4, impl=impl)
    assert table.dtype == torch.int32
    expected = [[[int(((v == d) & (factor == f)).sum()) for f in range(4)] for d in range(5)] for v in votes]
    assert table.tolist() == expected
    assert table.sum(dim=(-2, -1)).tolist() == [191, 200, 200, 200]


def test_opcheck(dtype, device):
    for shape in ({"lead": (2,)}, {"lead": (0,)}, {"groups": 1, "size": 3, "num_codes": 21}):
        torch.library.opcheck(torch.ops.crgan.group_votes.default, sample_inputs(**shape, dtype=dtype, device=device))


def test_the_op_itself_checks_what_could_touch_foreign_memory():
    codes, scale = sample_inputs()
    group_votes(codes, scale)
    for arguments in ((codes, scale[:4]), (codes, scale.double()), (codes[0, 0], scale)):
        with pytest.raises(RuntimeError, match="group_votes: "):
            torch.ops.crgan.group_votes(*arguments)


@pytest.mark.slow
def test_extension_under_sanitizers(tmp_path):
    """The tests of this file once more, with the extension compiled with the sanitizers."""
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all"
    build = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path / 'build'}"]
    environment = os.environ | dict.fromkeys(("CFLAGS", "CXXFLAGS", "LDFLAGS"), flags) | {"CRGAN_CUDA": "0"}
    subprocess.run(build, env=environment, cwd=ROOT, check=True, capture_output=True)
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    runtime = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves much to the end of the process
    }
    code = (
        "import sys, torch, _crgan_C, pytest\n"  # loaded here, before pytest adds to the path
        "assert _crgan_C.__file__ == sys.argv[1], _crgan_C.__file__\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[2]]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "_crgan_C.abi3.so", __file__]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
