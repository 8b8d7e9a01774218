"""A whole training step of the paper's dSprites setting: plain eager PyTorch against ours.

Plain is what one writes from the paper: NCHW, float32 (on a GPU torch's convolutions round to TF32 unless told not to),
torch's own spectral norm, every pass written where it is needed, gradients for every network a loss touches. That ours
has the losses and gradients of such a step is in tests/test_train.py. The whole schedule counts 288,000 steps without
and 34,560 with the regularizer.
"""

from dataclasses import replace

import pytest
import torch
from conftest import matrix_rate
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.flop_counter import FlopCounterMode

from crgan import PRESETS, data, ops
from crgan.cli import tune_malloc
from crgan.config import Phase
from crgan.device import exact_arithmetic, has_bfloat16
from crgan.models import build_model
from crgan.models.infogan import make_optimisers, train_step
from crgan.train import capture

PAPER = PRESETS["dsprites"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAST = "bfloat16" if has_bfloat16(torch.device(DEVICE)) else "float32"  # emulated, bfloat16 takes 12 times as long
PROVIDERS = list(dict.fromkeys(["plain", "float32", FAST]))
if DEVICE == "cuda":
    PROVIDERS += ["float32-graph", "bfloat16-graph", "bfloat16-graph-compile"]
seconds: dict[tuple[str, str], float] = {}
flops: dict[tuple[str, bool], int] = {}  # of a step, by the regularizer and whether it is plain


class Plain:
    """The algorithm in plain PyTorch."""

    def __init__(self):
        def trunk(channels):
            maps, layers = (channels, 32, 32, 64, 64), []
            for i in range(4):
                layers += [spectral_norm(nn.Conv2d(maps[i], maps[i + 1], 4, 2, 1)), nn.LeakyReLU(0.2)]
            return nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(1024, 128)), nn.LeakyReLU(0.2))

        maps, layers = (64, 64, 32, 32), []
        for i in range(3):
            layers += [nn.ConvTranspose2d(maps[i], maps[i + 1], 4, 2, 1), nn.LeakyReLU(0.2)]
            layers.append(nn.BatchNorm2d(maps[i + 1]))
        self.g = nn.Sequential(
            nn.Linear(10, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, 1024), nn.ReLU(), nn.BatchNorm1d(1024),
            nn.Unflatten(1, (64, 4, 4)), *layers, nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid(),
        ).to(DEVICE)  # fmt: skip
        self.trunk = trunk(1).to(DEVICE)
        self.real = spectral_norm(nn.Linear(128, 1)).to(DEVICE)
        layers = [spectral_norm(nn.Linear(128, 128)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(128, 5))]
        self.codes = nn.Sequential(*layers).to(DEVICE)
        self.h = nn.Sequential(trunk(2), nn.Linear(128, 5)).to(DEVICE)
        d = [*self.trunk.parameters(), *self.real.parameters(), *self.codes.parameters()]
        rates = {"g": (self.g.parameters(), 1e-3), "d": (d, 2e-3), "h": (self.h.parameters(), 2e-3)}
        self.adam = {name: torch.optim.Adam(*given, (0.5, 0.999)) for name, given in rates.items()}

    def descend(self, name, loss):
        for optimiser in self.adam.values():
            optimiser.zero_grad()
        loss.backward()
        self.adam[name].step()

    def step(self, x, cr_weight):
        n = len(x)
        c, z = torch.rand(n, 5, device=DEVICE) * 2 - 1, torch.rand(n, 5, device=DEVICE) * 2 - 1
        one, zero = torch.ones(n, 1, device=DEVICE), torch.zeros(n, 1, device=DEVICE)
        if cr_weight:
            c1, c2 = torch.rand(2, n, 5, device=DEVICE).mul(2).sub(1)
            index = torch.randint(5, (n,), device=DEVICE)
            c2.scatter_(1, index[:, None], c1.gather(1, index[:, None]))

        def contrast(detached):
            pair = torch.cat([self.g(torch.cat([c1, z], 1)), self.g(torch.cat([c2, z], 1))], 1)
            return cross_entropy(self.h(pair.detach() if detached else pair), index)

        if cr_weight:
            self.descend("h", contrast(detached=True))
        fake = self.g(torch.cat([c, z], 1)).detach()
        loss = binary_cross_entropy_with_logits(self.real(self.trunk(x)), one)
        loss = loss + binary_cross_entropy_with_logits(self.real(self.trunk(fake)), zero)
        loss = loss + 0.05 * 0.5 * (self.codes(self.trunk(fake)) - c).square().sum(1).mean()
        self.descend("d", loss)
        for _ in range(2):
            features = self.trunk(self.g(torch.cat([c, z], 1)))
            loss = binary_cross_entropy_with_logits(self.real(features), one)
            loss = loss + 0.05 * 0.5 * (self.codes(features) - c).square().sum(1).mean()
            if cr_weight:
                loss = loss + cr_weight * contrast(detached=False)
            self.descend("g", loss)
        return loss


def make_step(provider, cr_weight):
    """A function that makes one step, data and draws included."""
    dataset = data.load("dsprites")
    done = torch.zeros((), dtype=torch.int64, device=DEVICE)

    def batch():
        return dataset.images(ops.random_index(64, dataset.num_images, 0, done, device=DEVICE))

    if provider == "plain":
        plain = Plain()
        return lambda: plain.step(batch(), cr_weight)

    tune_malloc()  # as the command does; plain PyTorch, timed before, has the allocator as it comes
    precision, _, graph = provider.partition("-")
    cfg, phase = replace(PAPER, precision=precision), Phase(cr_weight, 0.0, False, False)
    model = build_model(cfg, dataset.image_shape).to(DEVICE).train()
    if "compile" in provider:
        for network in model.children():
            network.compile()
    optimisers = make_optimisers(model, cfg)

    def eager(phase):
        report = train_step(model, optimisers, batch(), cfg, phase, done)
        done.add_(1)
        return report

    step = capture(eager) if graph else eager
    return exact_arithmetic()(lambda: step(phase)["generator"])


def count_launches(step):
    """Kernels and graphs launched in a step on a GPU."""
    with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profiler:
        step()
    launches = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
    return sum(event.count for event in profiler.key_averages() if event.key.startswith(launches))


@pytest.mark.benchmark(group="training step, dSprites, batch 64")
@pytest.mark.parametrize("cr", ["off", "on"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_training_step_seconds(benchmark, provider, cr):
    take = make_step(provider, 2.0 if cr == "on" else 0.0)

    def step():
        loss = take()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return loss

    losses = [step() for _ in range(5)]  # warm up, and past the eager steps of a graph
    assert all(loss.isfinite() for loss in losses)
    if "graph" not in provider:
        with FlopCounterMode(display=False) as counter:
            step()
        flops[cr, provider == "plain"] = counter.get_total_flops()
    if DEVICE == "cuda":
        benchmark.extra_info["launches"] = count_launches(step)
    benchmark.pedantic(step, rounds=12 if DEVICE == "cpu" else 200 if "graph" in provider else 40)
    seconds[provider, cr] = benchmark.stats.stats.median
    if (cr, provider == "plain") in flops:  # a graph's are those of the eager step, if that was asked for too
        rate = flops[cr, provider == "plain"] / seconds[provider, cr] / 1e12
        share = rate / matrix_rate(DEVICE)
        benchmark.extra_info |= {"tflop_per_s": round(rate, 4), "share_of_matrix_rate": round(share, 3)}
    if cr == "on" and {("plain", "on"), ("plain", "off"), (provider, "off")} <= seconds.keys():
        schedule = {p: 288_000 * seconds[p, "off"] + 34_560 * seconds[p, "on"] for p in ("plain", provider)}
        benchmark.extra_info["schedule_hours"] = round(schedule[provider] / 3600, 2)
        benchmark.extra_info["schedule_speedup_over_plain"] = round(schedule["plain"] / schedule[provider], 2)
    print(f"\n{provider}, regularizer {cr}: {benchmark.extra_info}")
