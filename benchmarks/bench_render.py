"""Images per second of the sets that are drawn from their factors, against copying images out of memory."""

import pytest
import torch

from crgan.data import RENDERED, load

BATCH = 64
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("provider", ["copy", "render"])
@pytest.mark.parametrize("name", RENDERED)
def test_images(measure, benchmark, name, provider, device):
    """Baseline `copy`: uint8 images that lie ready in memory, picked by index and turned into floats."""
    dataset = load(name)
    index = torch.randint(dataset.num_images, (BATCH,), generator=torch.Generator().manual_seed(0)).to(device)
    images = dataset.images(index)
    store = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(store.float() / 255, images, rtol=0, atol=0.51 / 255)
    rows = torch.arange(BATCH, device=device)
    make = {"render": lambda i: dataset.images(index), "copy": lambda i: store[rows].float().div_(255)}[provider]
    measure(make, name, provider, device, images.nbytes)
    benchmark.extra_info["images_per_s"] = round(BATCH / benchmark.extra_info["us_per_call"] * 1e6)
