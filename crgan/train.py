"""Training: the step, the loop, and the command `python -m crgan.train [PRESET]`."""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from . import checkpoint, cli, metrics, ops, parallel, pictures
from . import data as datasets
from .config import PRESETS, Config, Phase
from .device import arithmetic, has_bfloat16
from .errors import InputError
from .latent import code_presence
from .log import Log, progress
from .models import losses, vae
from .models.networks import InfoGAN, gaussian_blur, normalise
from .optim import Optimisers, adam, update

LOG_EVERY = 100
"""Steps between two lines of losses in metrics.jsonl."""


def make_optimisers(nets: InfoGAN, cfg: Config) -> Optimisers:
    """One Adam each for G, D with Q, and H."""
    return {
        "generator": adam(nets.generator.parameters(), cfg.lr_g, cfg.beta1, cfg.beta2),
        "discriminator": adam(nets.discriminator.parameters(), cfg.lr_d, cfg.beta1, cfg.beta2),
        "contrastive": adam(nets.contrastive.parameters(), cfg.lr_h, cfg.beta1, cfg.beta2),
    }


def train_step(
    nets: InfoGAN,
    optimisers: Optimisers,
    x: Tensor,  # [B, C, H, W] real images in [0, 1]
    cfg: Config,
    phase: Phase,
    step: Tensor | int,  # 0-d int64: the count of steps done, which keys every random draw
) -> dict[str, Tensor]:
    """One step: an H update, a D/Q update and `g_steps` G updates on one batch (Lin et al. 2020, section 3).

    Returns the losses as 0-d tensors. Reads nothing back from the device and skips what has weight 0, so that a
    CUDA graph can hold a whole step of one phase.
    """
    batch, k, device, whole = len(x), cfg.num_codes, x.device, len(x) * parallel.world()
    generator, discriminator, contrastive = nets.generator, nets.discriminator, nets.contrastive
    autocast = torch.autocast(device.type, torch.bfloat16, cfg.precision == "bfloat16", cache_enabled=False)
    c, z = ops.sample_latents(whole, k, cfg.num_noise, cfg.seed, step, device=device)
    c, z = parallel.shard(c), parallel.shard(z)
    if phase.cr_weight:
        pairs = ops.traversal_pairs(whole, k, cfg.num_noise, phase.gap, cfg.seed, step, device=device)
        c1, c2, pair_z, index = map(parallel.shard, pairs)
    presence = None
    if phase.fading:
        presence = code_presence(k, cfg.code_steps, step, device)
        c = c * presence
        if phase.cr_weight:
            c1, c2 = c1 * presence, c2 * presence

    def generate() -> tuple[Tensor, ...]:
        # Each half of a pair is a batch of its own to G's batch norm.
        return (generator(c, z), *((generator(c1, pair_z), generator(c2, pair_z)) if phase.cr_weight else ()))

    def see(images: Tensor) -> Tensor:
        if not phase.blur:
            return images
        return gaussian_blur(images, cfg.blur * (1 - torch.as_tensor(step, device=device) / cfg.blur_steps))

    with autocast:
        fakes = generate()  # serves H, D and the first update of G: G's weights are the same in all three
    report = {}

    if phase.cr_weight:
        with autocast:
            report["h"] = contrastive(fakes[1].detach(), fakes[2].detach(), index)
        update(optimisers["contrastive"], report["h"])

    normalised = normalise(discriminator)
    with autocast:
        logits, predicted = discriminator(see(torch.cat([x.to(fakes[0].dtype), fakes[0].detach()])), normalised)
        report["d"] = losses.discriminator_loss(logits[:batch], logits[batch:])
        loss = report["d"] + cfg.info_weight * losses.info_loss(c, predicted[batch:], cfg.q_deviation, presence)
    if phase.r1:
        x = see(x).detach().requires_grad_()
        logits, _ = discriminator(x, normalised)  # a gradient of a gradient wants float32
        loss = loss + cfg.r1_weight * cfg.r1_every * losses.r1_penalty(logits, x)
    update(optimisers["discriminator"], loss)

    with torch.no_grad():  # the updated weights, which G's steps leave alone
        judge = normalise(discriminator)
        tell = normalise(contrastive) if phase.cr_weight else None
    for i in range(cfg.g_steps):
        with autocast:
            if i > 0:
                fakes = generate()
            logits, predicted = discriminator(see(fakes[0]), judge)
            report["g"] = losses.generator_loss(logits)
            report["info"] = losses.info_loss(c, predicted, cfg.q_deviation, presence)
            loss = report["g"] + cfg.info_weight * report["info"]
            if phase.cr_weight:
                report["cr"] = contrastive(fakes[1], fakes[2], index, tell)
                loss = loss + phase.cr_weight * report["cr"]
        update(optimisers["generator"], loss)

    judge.advance()  # as in the original, by what the updated weights gave
    if tell is not None:
        tell.advance()
    if nets.average is not None:
        nets.move_average(cfg.ema)
    return {name: value.detach() for name, value in report.items()}


def restart_h(nets: InfoGAN, optimisers: Optimisers, step: int) -> None:
    """Makes H and its optimiser new, as the original does where a schedule switches; in place, for CUDA graphs."""
    nets.restart_contrastive(step)
    for entry in optimisers["contrastive"].state.values():
        for value in entry.values():
            value.zero_()


def capture(take_step: Callable[[Phase], dict[str, Tensor]]) -> Callable[[Phase], dict[str, Tensor]]:
    """Replays `take_step` as one CUDA graph per phase; the first steps of a phase run eagerly, as a graph demands.

    All on one stream: cuBLAS has a workspace per stream, which the graphs of runs that take turns must not share.
    """
    graphs: dict[Phase, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
    eager_steps: dict[Phase, int] = {}
    stream = torch.cuda.current_stream()
    if stream == torch.cuda.default_stream():  # where nothing can be captured
        stream = torch.cuda.Stream()

    def step(phase: Phase) -> dict[str, Tensor]:
        if phase not in graphs:
            eager_steps[phase] = eager_steps.get(phase, 0) + 1
            if eager_steps[phase] <= 3:
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    report = take_step(phase)
                torch.cuda.current_stream().wait_stream(stream)
                return report
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                report = take_step(phase)
            graphs[phase] = graph, report
        graph, report = graphs[phase]
        graph.replay()
        return report

    return step


class _Batch:
    """The real images of a step. Those that are drawn are drawn within it, on the device; those of a file are read by
    the host before it (`fetch`), into memory that a captured CUDA graph knows."""

    def __init__(self, dataset: datasets.Dataset, cfg: Config, place: torch.device):
        self.dataset, self.cfg = dataset, cfg
        shape = (cfg.images_per_step // parallel.world(), *dataset.image_shape)
        first = torch.zeros(1, dtype=torch.int64, device="cpu")
        dtype = None if dataset.read is None else dataset.stored(first).dtype
        self.held = None if dtype is None else torch.empty(shape, dtype=dtype, device=place)

    def _index(self, step: Tensor | int, device: torch.device | str) -> Tensor:
        index = ops.random_index(self.cfg.images_per_step, self.dataset.num_images, self.cfg.seed, step, device=device)
        return parallel.shard(index)

    def fetch(self, step: int) -> None:
        if self.held is None:
            return
        images = self.dataset.stored(self._index(step, "cpu"))
        self.held.copy_(images.contiguous().pin_memory() if self.held.is_cuda else images, non_blocking=True)

    def images(self, done: Tensor) -> Tensor:  # [B, C, H, W] float32 in [0, 1]
        if self.held is None:
            return self.dataset.images(self._index(done, done.device))
        return self.dataset.to_float(self.held)


def train(
    cfg: Config,
    out: Path | str,
    device: str = "auto",
    checkpoint_every: int = 1_000,
    cuda_graph: bool = True,
) -> Any:
    """Trains in the run folder `out`, going on from its checkpoint if it has one, and returns the model.

    A run that was killed and taken up again ends with the same bits as one that was not (same machine, same build).
    Raises InputError for what the user can mend, OSError where the folder or the disk refuse.
    """
    place, out = parallel.start(cli.device(device)), Path(out)
    with cli.stop_signal() as stopped:
        return deque(training(cfg, out, place, stopped, checkpoint_every, cuda_graph), maxlen=1).pop()


def training(
    cfg: Config,
    out: Path,
    place: torch.device,
    stopped: Callable[[], int],  # the number of the signal to stop for, or 0
    checkpoint_every: int = 1_000,
    cuda_graph: bool = True,
    shown: bool = True,
) -> Iterator[Any]:
    """The loop of `train`, which yields the model after every step, so that several can take turns; `shown`: a bar."""
    lead = parallel.leads()
    if parallel.world() > 1 and (cfg.model in ("factor-vae", "beta-tcvae") or cfg.batch_size % parallel.world()):
        raise InputError(
            f"{parallel.world()} processes cannot share batches of {cfg.batch_size} of a {cfg.model}; expected a "
            "multiple of them, and a model whose losses are means over the batch (infogan-cr, beta-vae)"
        )
    cfg = resolve(cfg, place)
    if lead and cfg.cr_weight and cfg.cr_start >= cfg.steps:
        print(f"the contrastive regularizer stays off: --cr-start is {cfg.cr_start}, --steps is {cfg.steps}")
    dataset = datasets.load(cfg.data, cfg.root)
    file = checkpoint.open_run(out, cfg, dataset.image_shape, checkpoint_every) if lead else None
    parallel.wait()
    nets: Any = checkpoint.build_model(cfg, dataset.image_shape).to(place)
    kind = sys.modules[__name__] if cfg.model == "infogan-cr" else vae  # each with make_optimisers and train_step
    optimisers = kind.make_optimisers(nets, cfg)
    state: dict[str, Any] = {"step": 0, "metrics_bytes": 0}
    if (folder := checkpoint.latest(out)) is not None:
        state = checkpoint.restore(folder, nets, optimisers)
    if state["step"] < (furthest := parallel.largest(state["step"], place)):
        raise InputError(f"{out} holds step {state['step']} here, {furthest} elsewhere; processes must see one folder")
    if state["step"] >= cfg.steps:
        if lead:
            print(f"{out} has finished its {state['step']} steps; give --steps a larger number to go on")
        parallel.finish()
        yield nets.eval()
        return
    if lead and folder is not None:
        print(f"going on from {folder}")
    log: Any = Log(file, out, state) if file else None
    if lead:
        checkpoint.write_config(out, cfg, dataset.image_shape)  # now that nothing stands against going on
    done = torch.tensor(state["step"], device=place)
    batch = _Batch(dataset, cfg, place)

    def take_step(phase: Phase) -> dict[str, Tensor]:
        report = kind.train_step(nets, optimisers, batch.images(done), cfg, phase, done)
        parallel.average(report.values())
        done.add_(1)
        return report

    take: Any = capture(take_step) if place.type == "cuda" and cuda_graph else take_step
    nets.train()
    stop = 0
    with progress(cfg.steps, state["step"], lead and shown) as show, closing(log) if log else nullcontext():
        for step in range(state["step"], cfg.steps):
            if cfg.restarts_h(step):
                restart_h(nets, optimisers, step)
            batch.fetch(step)
            with arithmetic(cfg.precision):
                report: Any = take(cfg.phase(step))
            step += 1
            if step % LOG_EVERY == 0 or place.type == "cpu":  # the one read-back: a CPU waits for nothing
                report = {name: value.item() for name, value in report.items()}
                _check_finite(report, step, out)
            if lead and step % LOG_EVERY == 0:
                log.write(step, report)
            show(step, report if step % LOG_EVERY == 0 else None)
            if lead and (step % cfg.eval_every == 0 or step == cfg.steps):
                with arithmetic(cfg.precision):
                    scores, traversal = evaluate(nets, dataset, cfg, out, full=step == cfg.steps)
                log.write(step, scores)
                show(step, None, "".join(f"step {step}: {name} {value:.3f}" for name, value in scores.items()))
                log.picture(step, traversal)
                nets.train()
            if parallel.world() == 1 or step % LOG_EVERY == 0:  # all processes stop after the same step
                stop = parallel.largest(stopped(), place)
            if lead and (step % checkpoint_every == 0 or step == cfg.steps or stop):
                state = {"step": step, "metrics_bytes": log.size()}
                folder = checkpoint.save(out, nets, optimisers, state)
            if stop:
                break
            yield nets
    take = None  # nccl waits for the end of every graph that holds its calls
    parallel.finish()
    if stop and step < cfg.steps:
        if lead:
            print(f"stopped after step {step}, saved in {folder}; the same command goes on from there")
        sys.exit(128 + stop)
    if lead:
        files = "traversal.png, samples.png, metrics.jsonl, config.json, checkpoint/, TensorBoard events"
        print(f"wrote {out}/: {files}")
    yield nets.eval()


def evaluate(nets: Any, dataset: Any, cfg: Config, out: Path, full: bool) -> tuple[dict[str, float], Any]:
    """Writes samples.png and traversal.png; returns the scores and the latter.

    Where the data has several factors that is the FactorVAE score (paper protocol): while training on a fifth of the
    groups, at the end (`full`) on the paper's 500 with 73,728 images for the scale.
    """
    scores: dict[str, float] = {}
    moved: list[str] = []
    varying = [name for name, size in zip(dataset.factor_names, dataset.factor_sizes) if size > 1]
    if len(varying) > 1:
        sizes: dict[str, Any] = {} if full else {"groups": 100, "scale_samples": 5_000}
        result = metrics.evaluate(nets, dataset, ("factor_vae",), protocol="paper", seed=cfg.seed, **sizes)
        scores["factor_vae"] = result["factor_vae"]["score"]
        moved = pictures.moved_factors(result["factor_vae"]["votes"], varying)
    traversal = pictures.traversal_picture(nets, moved)
    pictures.save_picture(traversal, out / "traversal.png")
    pictures.save_picture(pictures.samples_picture(nets), out / "samples.png")
    return scores, traversal


def resolve(cfg: Config, device: torch.device) -> Config:
    """`cfg` with what "auto" stands for on this device, and a root that any working folder can use."""
    if cfg.root is not None:
        cfg = replace(cfg, root=str(Path(cfg.root).resolve()))
    if cfg.precision != "auto":
        return cfg
    return replace(cfg, precision="bfloat16" if has_bfloat16(device) else "float32")


def _check_finite(report: dict[str, float], step: int, out: Path) -> None:
    for name, value in report.items():
        if not abs(value) < float("inf"):
            raise InputError(
                f"the loss {name} is {value} at step {step}; the last good checkpoint is "
                f"{checkpoint.latest(out) or 'none'}: start anew with smaller learning rates, in another --out"
            )


@dataclass(frozen=True)
class Arguments:
    config: tyro.conf.OmitArgPrefixes[Config]
    out: Path | None = None
    """Run folder; default runs/<preset>-seed<seed>. The same command again goes on from its last checkpoint."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints."""
    cuda_graph: bool = True
    """On CUDA, replay the whole step as one captured graph."""
    dry_run: bool = False
    """Print the resolved configuration and exit."""


def main(args: list[str] | None = None) -> None:
    """Parses `[PRESET] [flags]` and trains; the preset fixes the defaults of the flags."""
    args = sys.argv[1:] if args is None else list(args)
    with cli.command_process():
        preset = cli.take_preset(args)
        parsed = tyro.cli(
            Arguments,
            args=args,
            default=Arguments(PRESETS[preset]),
            prog="python -m crgan.train [PRESET]",
            description=f"Train a model. PRESET is one of {', '.join(PRESETS)} (shown: {preset}).",
        )
        cfg = parsed.config
        cli.at_least(1, checkpoint_every=parsed.checkpoint_every)
        out = parsed.out or Path("runs") / f"{preset}-seed{cfg.seed}"
        if parsed.dry_run:
            shown = resolve(cfg, cli.device(parsed.device)).to_json()
            print(json.dumps({"out": str(out), "device": parsed.device, "config": shown}, indent=2))
            return
        train(cfg, out, parsed.device, parsed.checkpoint_every, parsed.cuda_graph)


if __name__ == "__main__":
    main()
