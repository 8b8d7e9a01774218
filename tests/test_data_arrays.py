"""A user's own data sets: images in memory, own readers, and what a map-style data set can do."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from crgan.data import Dataset, from_images, load
from crgan.errors import InputError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (10, 3, 8, 12), dtype=np.uint8)
FLOATS = torch.from_numpy(RNG.random((10, 3, 8, 12), dtype=np.float32))
GREY = RNG.integers(0, 2, (10, 8, 8))
EXPECTED = torch.from_numpy(BYTES / np.float32(255))
INDEX = torch.arange(10)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (torch.from_numpy(BYTES), EXPECTED),
        (BYTES.astype(np.int64).transpose(0, 2, 3, 1), EXPECTED),
        (FLOATS.double().permute(0, 2, 3, 1).requires_grad_(), FLOATS),
        (FLOATS.bfloat16(), FLOATS.bfloat16().float()),
        (list(BYTES), EXPECTED),
        (TensorDataset(torch.from_numpy(BYTES), INDEX), EXPECTED),
        *((GREY.astype(dtype), torch.from_numpy(GREY).float()[:, None]) for dtype in (int, np.uint8, bool, float)),
    ],
)
def test_images_of_any_form(images, expected):
    dataset = from_images(images)
    assert (dataset.image_shape, len(dataset), dataset.source) == (expected.shape[1:], 10, "memory")
    torch.testing.assert_close(dataset.images(INDEX), expected, rtol=0, atol=1e-7)
    assert dataset.identity != from_images(expected.flip(0)).identity


def test_factors():
    classes = torch.randint(4, (10, 2))
    dataset = from_images(BYTES, classes, ["a", "b"])
    assert torch.equal(dataset.factors(INDEX), classes)
    assert (dataset.factor_names, dataset.continuous_factors) == (("a", "b"), None)
    values = np.c_[np.linspace(-1, 1, 10), np.full(10, 3.5)]
    measured = from_images(BYTES, values)
    assert torch.equal(measured.continuous_factors, torch.from_numpy(values))
    assert measured.factors(INDEX).T.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0] * 10]


@pytest.mark.parametrize(
    ("images", "factors", "says"),
    [
        (FLOATS * 255, None, r"0 to 1, got .* to 25"),
        (FLOATS * 2 - 1, None, r"0 to 1, got -0\.9"),
        (FLOATS * np.nan, None, "nan"),
        (BYTES.astype(int) + 1, None, "256"),
        (BYTES[:, 0, 0], None, r"\[10, 12\]"),
        (BYTES.repeat(2, 1), None, r"\[10, 6, 8, 12\]"),
        (BYTES[:0], None, "0 images"),
        (BYTES.astype(str), None, "U3"),
        ([BYTES[0], BYTES[1, :, :4]], None, "shape"),
        (iter(BYTES), None, "iterator"),
        (BYTES, np.zeros(9, int), "9"),
        (BYTES, np.full(10, -1), "-1"),
        (BYTES, np.full(10, np.inf), "inf"),
        (BYTES, ["a"] * 10, "U1"),
    ],
)
def test_what_does_not_fit_is_refused(images, factors, says):
    with pytest.raises(InputError, match=says):
        from_images(images, factors)


def test_own_readers():
    own = Dataset("own", (3, 8, 12), 10, read=lambda index: FLOATS[index])
    assert torch.equal(own.images(INDEX), FLOATS)
    grid = {"factor_names": ("a", "b"), "factor_sizes": (2, 5)}
    wrong_images = (FLOATS * 2, FLOATS.long() - 1, FLOATS[:, :1])
    for fields in (
        {"num_images": 9} | grid,
        {"factor_names": ("a",)},
        {"read": None},
        {"table": torch.zeros(10, 2)} | grid,
        {"table": torch.full((10, 2), 2)} | grid,
        *({"read": lambda index, wrong=wrong: wrong[index]} for wrong in wrong_images),
    ):
        with pytest.raises(InputError, match="own"):
            Dataset(**{"name": "own", "image_shape": (3, 8, 12), "num_images": 10, "read": own.read, **fields})[:]


@pytest.mark.parametrize("dataset", [from_images(BYTES), load("squares")], ids=["memory", "rendered"])
def test_indexing_and_loading(dataset):
    every = dataset.images(torch.arange(10))
    for i in (3, np.int64(3), torch.tensor(3), 3 - len(dataset)):
        assert torch.equal(dataset[i], every[3])
    for key in ([5, 2], torch.tensor([5, 2]), np.array([5, 2 - len(dataset)]), slice(5, 1, -3)):
        assert torch.equal(dataset[key], every[[5, 2]])
    assert torch.equal(dataset[np.arange(len(dataset)) < 9], every[:9])
    assert dataset[[]].shape == dataset[3:3].shape == (0, *dataset.image_shape)
    for wrong in (len(dataset), -1 - len(dataset), [1.5], [True] * 3):
        with pytest.raises(IndexError):
            dataset[wrong]
    assert torch.equal(next(iter(DataLoader(dataset, batch_size=7))), every[:7])


def test_sample_factors_is_uniform_and_repeatable():
    dataset = load("squares")
    factors = dataset.sample_factors(16_000, seed=3)
    assert torch.equal(factors, dataset.sample_factors(16_000, seed=3))
    assert not torch.equal(factors, dataset.sample_factors(16_000))
    for f, size in enumerate(dataset.factor_sizes):
        counts = factors[:, f].bincount(minlength=size)
        assert (counts - 16_000 / size).abs().max() < 5 * (16_000 / size) ** 0.5


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ([737_280], "737280"),
        ([-1], "-1"),
        ([[0, 3, 0, 0, 0, 0], [0] * 6], "shape.* 2, got 0 to 3"),
        ([[0, 0, 0]], "6, got 3"),
        ([1.0], "int64"),
        (5, "int64"),
    ],
)
def test_wrong_requests_are_refused(request_, says):
    with pytest.raises(InputError, match=says):
        load("dsprites").images(torch.tensor(request_))
