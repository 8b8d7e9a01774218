"""Images per second of the sets that are drawn from their factors, against copying images out of memory."""

import pytest
import torch

from crgan.data import load

BATCH = 64
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
_rates: dict[tuple[str, str], float] = {}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("provider", ["render", "copy"])
@pytest.mark.parametrize("name", ["squares", "circular_dsprites", "dsprites", "shapes3d_like"])
def test_images(benchmark, name, provider, device):
    """Baseline `copy`: uint8 images that lie ready in memory, picked by index and turned into floats."""
    dataset = load(name)
    index = torch.randint(dataset.num_images, (BATCH,), generator=torch.Generator().manual_seed(0)).to(device)
    images = dataset.images(index)
    store = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(store.float() / 255, images, rtol=0, atol=0.51 / 255)
    rows = torch.arange(BATCH, device=device)
    make = {"render": lambda: dataset.images(index), "copy": lambda: store[rows].float().div_(255)}[provider]

    def timed():
        make()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{name} {device}"
    benchmark(timed)
    rate = BATCH / benchmark.stats["median"]
    benchmark.extra_info["images_per_s"] = round(rate)
    if provider == "render":
        _rates[name, device] = rate
    elif (name, device) in _rates:
        ratio = _rates[name, device] / rate
        benchmark.extra_info["render_over_copy"] = round(ratio, 3)
        print(f"\n{name} on {device}: {_rates[name, device]:,.0f} images/s drawn, {ratio:.2f} x copied ones")
