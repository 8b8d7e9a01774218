"""Training: the loop, and the command `python -m crgan.train [PRESET]`."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from . import checkpoint, cli, metrics, ops, pictures
from . import data as datasets
from .config import CHECKPOINT_EVERY, PRESETS, TOPICS, Config, Phase
from .data import RealImages
from .device import exact_arithmetic, float32_defaults
from .errors import InputError, check_name
from .files import lock
from .log import Log
from .models import ALGORITHMS, Build, InfoGAN, Model, Optimisers
from .models.infogan import restart_h

LOG_EVERY = 100
"""Steps between two lines of losses in metrics.jsonl."""

Losses = dict[str, Tensor]


def train(
    cfg: Config,
    out: str | Path,
    device: str = "auto",
    *,
    data: datasets.Dataset | None = None,
    build: Build | None = None,
    start_from: str | Path | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
    cuda_graph: bool = True,
    stopped: Callable[[], int] = lambda: 0,
) -> Model:
    """Train in the run folder `out`, continuing from its checkpoint if it has one, and return the model in eval mode.

    A run that was killed and continued ends with the same bits as one that was not, on the same machine and build.
    `data` is a data set to use in place of the one that `cfg` names. `start_from` is a run whose state before the
    regularizer this run starts from. `stopped()` is called after every step; a number above 0 saves, and ends the
    process with exit code 128 plus that number. KeyboardInterrupt saves and passes through. Raises InputError for
    invalid input, OSError where the folder or the disk refuse.
    """
    torch_device, out = cli.device(device), Path(out).expanduser()
    dataset = datasets.load(cfg.data, cfg.root) if data is None else data
    cfg = checkpoint.resolve(checkpoint.continued_config(out, cfg, dataset.identity), torch_device, dataset.image_shape)
    out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    with lock(out, timeout=5) as acquired, float32_defaults():
        if not acquired:
            raise InputError(f"another process trains in {out}; wait for its end, or give another --out")
        torch.set_num_threads(cfg.threads)
        try:
            doing, impl = f"training on {cfg.data} ({dataset.source})", ops.describe(torch_device)
            cli.announce(doing, torch_device, precision=cfg.precision, ops=impl, into=out)
            run = _start(cfg, out, torch_device, dataset, build, start_from)
            with closing(run.log):
                if run.step < cfg.steps:
                    _loop(run, checkpoint_every, cuda_graph, stopped)
                else:
                    print(f"{out} has finished its {run.step} steps; give --steps a larger number to continue")
        finally:
            torch.set_num_threads(threads)
    return run.model.for_use()


@dataclass
class Run:
    """A run in progress."""

    cfg: Config
    out: Path
    device: torch.device
    dataset: datasets.Dataset
    model: Model
    optimisers: Optimisers
    log: Log
    step: int  # number of steps done
    seconds: float  # that earlier processes took for them
    start: float = field(default_factory=time.monotonic)

    def save(self, name: str = "") -> Path:
        seconds = round(self.seconds + time.monotonic() - self.start, 1)
        state = {"step": self.step, "metrics_bytes": self.log.size(), "seconds": seconds}
        return checkpoint.save(self.out, self.model, self.optimisers, state, name)


def _start(cfg: Config, out: Path, device: torch.device, dataset: Any, build: Build | None, start_from: Any) -> Run:
    """Build the model, restore what there is to continue from, and write config.json."""
    model = checkpoint.new_model(cfg, dataset.image_shape, build).to(device)
    optimisers = ALGORITHMS[cfg.model].make_optimisers(model, cfg)
    state, folder = {"step": 0, "metrics_bytes": 0}, checkpoint.latest(out)
    about = checkpoint.describe(cfg, device, dataset)
    if folder is not None:
        state = checkpoint.restore(folder, model, optimisers)
        about |= {name: value for name, value in checkpoint.read_json(out / "config.json").items() if name in about}
        print(f"continuing from {folder}")
    elif start_from is not None:
        trunk = Path(start_from).expanduser()
        state = checkpoint.restore_trunk(trunk, cfg, model, optimisers)
        shutil.copyfile(trunk / "metrics.jsonl", out / "metrics.jsonl")
        about["from"] = str(trunk)
        print(f"starting from step {state['step']} of {trunk}, before its regularizer")
    if cfg.cr_weight and cfg.cr_start >= cfg.steps:
        print(f"the contrastive regularizer stays off: --cr-start is {cfg.cr_start}, --steps is {cfg.steps}")
    log = Log(out, state)
    checkpoint.write_config(out, cfg, dataset.image_shape, about)  # now that nothing stands against continuing
    return Run(cfg, out, device, dataset, model, optimisers, log, state["step"], state.get("seconds", 0.0))


def _loop(run: Run, checkpoint_every: int, cuda_graph: bool, stopped: Callable[[], int]) -> None:
    cfg, model, out = run.cfg, run.model, run.out
    done = torch.tensor(run.step, dtype=torch.int64, device=run.device)
    batch = RealImages(run.dataset, cfg.images_per_step, cfg.seed, run.device)
    train_step = ALGORITHMS[cfg.model].train_step

    def eager_step(phase: Phase) -> Losses:
        report = train_step(model, run.optimisers, batch.images(done), cfg, phase, done)
        done.add_(1)
        return report

    on_cpu = run.device.type == "cpu"
    take_step = eager_step if on_cpu or not cuda_graph else capture(eager_step)
    stop, best_rate = 0, 0.0
    model.train()
    with cli.progress() as progress:
        progress.start("training", cfg.steps, run.step, "steps")
        try:
            while run.step < cfg.steps and not stop:
                if cfg.restarts_h(run.step):
                    assert isinstance(model, InfoGAN)
                    if run.step == cfg.cr_start:
                        run.save(checkpoint.BEFORE_CR)
                    restart_h(model, run.optimisers, run.step)
                batch.fetch(run.step)
                with exact_arithmetic():
                    report = take_step(cfg.phase(run.step))
                run.step += 1
                if run.step % LOG_EVERY == 0 or on_cpu:  # the one read-back: a CPU waits for nothing
                    values = {name: value.item() for name, value in report.items()}
                    for name, value in values.items():
                        if not abs(value) < float("inf"):
                            raise checkpoint.diverged(out, f"the loss {name} is {value} at step {run.step}")
                    progress.update(run.step, " ".join(f"{name} {value:.2f}" for name, value in values.items()))
                    if run.step % LOG_EVERY == 0:
                        run.log.write(run.step, values)
                        best_rate = _hint(progress.rate() or 0.0, best_rate, cfg.threads)
                if run.step % cfg.eval_every == 0 or run.step == cfg.steps:
                    with exact_arithmetic(), progress.aside("evaluating"):
                        scores = evaluate(run)
                    for name, value in scores.items():
                        print(f"step {run.step}: {name} {value:.3f}")
                stop = stopped()
                if run.step % checkpoint_every == 0 or run.step == cfg.steps or stop:
                    run.save()
        except KeyboardInterrupt:
            print(f"stopped in step {run.step + 1}, saved in {run.save()}; the same call continues")
            raise
    if stop and run.step < cfg.steps:
        print(f"stopped after step {run.step}, saved in {checkpoint.latest(out)}; the same command continues")
        sys.exit(128 + stop)
    print(f"wrote {out}/: traversal.png, traversal.gif, samples.png, metrics.jsonl, config.json, checkpoint/")


def _hint(rate: float, best_rate: float, threads: int) -> float:
    """Say so when the rate falls to a third of the best; return the best rate so far."""
    if threads > 1 and 0 < rate < best_rate / 3:
        print(f"{best_rate / rate:.0f} times slower than before: other work stalls {threads} threads, one suffers less")
        return 0.0
    return max(rate, best_rate)


def capture(take_step: Callable[[Phase], Losses]) -> Callable[[Phase], Losses]:
    """Replay `take_step` as one CUDA graph per phase. The first steps of a phase run eagerly, as a graph demands.

    All on one stream: cuBLAS has a workspace per stream, which graphs must not share.
    """
    graphs: dict[Phase, tuple[torch.cuda.CUDAGraph, Losses]] = {}
    eager_steps: dict[Phase, int] = {}
    stream = torch.cuda.current_stream()
    if stream == torch.cuda.default_stream():  # where nothing can be captured
        stream = torch.cuda.Stream()

    def step(phase: Phase) -> Losses:
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


def evaluate(run: Run) -> dict[str, float]:
    """Write samples.png, traversal.png and traversal.gif; log and return the scores.

    If the data have several factors that is the FactorVAE score (paper protocol): during training on a fifth of the
    groups, at the end on the paper's 500 with 73,728 images for the standard deviations.
    """
    dataset, cfg, model = run.dataset, run.cfg, run.model.for_use()
    scores: dict[str, float] = {}
    labels: list[str] = []
    varying = [name for name, size in zip(dataset.factor_names, dataset.factor_sizes) if size > 1]
    if len(varying) > 1:
        sizes: dict[str, Any] = {} if run.step == cfg.steps else {"groups": 100, "scale_samples": 5_000}
        result = metrics.evaluate(model, dataset, ("factor_vae",), protocol="paper", seed=cfg.seed, **sizes)
        scores["factor_vae"] = result["factor_vae"]["score"]
        labels = pictures.followed_factors(result["factor_vae"]["votes"], varying)
    traversal, samples = pictures.traversal_picture(model, labels), pictures.samples_picture(model)
    pictures.save_picture(traversal, run.out / "traversal.png")
    pictures.save_picture(samples, run.out / "samples.png")
    pictures.save_animation(pictures.traversal_frames(model, labels), run.out / "traversal.gif")
    run.log.write(run.step, scores)
    run.log.pictures(run.step, traversal=traversal, samples=samples)
    return scores


def base_config(preset: str) -> tuple[str, Config]:
    """Return the name and configuration of a preset, or those of the config.json of a run."""
    path = Path(preset).expanduser()
    if path.name == "config.json":
        return path.parent.name, checkpoint.read_config(path.parent)[0]
    check_name("preset", preset, PRESETS)
    return preset, PRESETS[preset]


def default_out(preset: str, cfg: Config) -> Path:
    """Return runs/<preset>, with the fields that differ from the preset, and the seed."""
    base = PRESETS.get(preset, cfg)
    ignored = ("seed", "steps", "root", "eval_every", "threads")
    changed = [f.name for f in fields(cfg) if getattr(base, f.name) != getattr(cfg, f.name) and f.name not in ignored]
    name = ",".join([preset, *(f"{field}={getattr(cfg, field)}" for field in changed)])
    return Path("runs") / f"{name.replace('/', '_')[:200]}-seed{cfg.seed}"


def fit(
    preset: str | Path | Config = "quick",
    *,
    data: datasets.Dataset | None = None,
    out: str | Path | None = None,
    build: Build | None = None,
    device: str = "auto",
    start_from: str | Path | None = None,
    **overrides: Any,
) -> Model:
    """Train a model and return it in eval mode.

    preset: the name of a preset, the path of a config.json, or a Config. `overrides` replace its fields.
    data: a data set of `crgan.data`; default: the one that the configuration names.
    out: the run folder; default `runs/<preset>...-seed<seed>`. The same call continues from its last checkpoint.
    build: `build(cfg, image_shape)` returns an untrained model with networks of your own.
    start_from: a run folder; training starts from its state before the regularizer.
    Raises InputError for unknown presets, fields and values. KeyboardInterrupt saves and passes through.
    """
    name, cfg = ("model", preset) if isinstance(preset, Config) else base_config(str(preset))
    if data is not None:
        overrides.setdefault("data", data.name)
    cfg = Config.from_json(cfg.to_json() | overrides)
    return train(cfg, out or default_out(name, cfg), device, data=data, build=build, start_from=start_from)


# ---------------------------------------------------------------- the command


@dataclass(frozen=True)
class Flags:
    """Flags of this command that are no fields of the configuration.

    Args:
        out: Run folder; default runs/<preset>-seed<seed>. The same command continues from its last checkpoint.
        device: auto, cpu, cuda or cuda:<number>.
        start_from: Run folder. Start from its state just before the regularizer, to compare settings of it.
        checkpoint_every: Steps between two checkpoints.
        cuda_graph: On CUDA, replay the whole step as one captured graph.
        dry_run: Print the resolved configuration and exit.
    """

    out: Path | None = None
    device: str = "auto"
    start_from: Annotated[str | None, tyro.conf.arg(name="from")] = None
    checkpoint_every: int = CHECKPOINT_EVERY
    cuda_graph: bool = True
    dry_run: bool = False


def parse(args: list[str]) -> tuple[str, Config, Flags]:
    """Parse `[PRESET | --config FILE] [flags]`; returns the preset's name too."""
    preset = args.pop(0) if args and not args[0].startswith("-") else "quick"
    if args[:1] == ["--config"]:
        preset, args = "".join(args[1:2]), args[2:]
    preset, cfg = base_config(preset)
    values = vars(cfg)
    defaults = [topic(**{field.name: values[field.name] for field in fields(topic)}) for topic in TOPICS]
    omit: Any = tyro.conf.OmitArgPrefixes
    arguments = make_dataclass("arguments", [(kind.__name__.lower(), omit[kind]) for kind in (*TOPICS, Flags)])
    parsed = tyro.cli(
        arguments,
        args=args,
        default=arguments(*defaults, Flags()),
        prog="python -m crgan.train [PRESET | --config FILE]",
        description=f"Train a model. PRESET is one of {', '.join(PRESETS)} (shown: {preset}).",
    )
    *topics, flags = vars(parsed).values()
    cli.at_least(1, checkpoint_every=flags.checkpoint_every)
    return preset, Config(**{name: value for topic in topics for name, value in vars(topic).items()}), flags


def main(args: list[str] | None = None) -> None:
    with cli.command_process():
        preset, cfg, flags = parse(sys.argv[1:] if args is None else list(args))
        out = flags.out or default_out(preset, cfg)
        if flags.dry_run:
            shown = checkpoint.resolve(cfg, cli.device(flags.device)).to_json()
            print(json.dumps({"out": str(out), "device": flags.device, "config": shown}, indent=2))
            return
        options = {name: value for name, value in vars(flags).items() if name not in ("out", "dry_run")}
        with cli.stop_signal() as stopped:
            train(cfg, out, stopped=stopped, **options)


if __name__ == "__main__":
    main()
