"""Training: the loop, and the command `python -m crgan.train [PRESET]`."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from . import checkpoint, cli, metrics, ops, pictures
from . import data as datasets
from .config import PRESETS, TOPICS, Config, Phase
from .data import RealImages
from .device import exact_arithmetic, plain_defaults
from .errors import InputError, check_name
from .files import lock
from .models import ALGORITHMS, Build, InfoGAN, Model, build_model
from .models.infogan import restart_h

LOG_EVERY = 100  # steps between two lines of losses in metrics.jsonl
Losses = dict[str, Tensor]


def fit(
    preset: str | Path | Config = "quick",
    out: str | Path | None = None,
    device: str = "auto",
    *,
    data: datasets.Dataset | str | None = None,
    build: Build | None = None,
    start_from: str | Path | None = None,
    checkpoint_every: int = 1_000,
    cuda_graph: bool = True,
    **overrides: Any,
) -> Model:
    """Train a model and return it in eval mode.

    Args:
        preset: Name of a preset, path of a config.json, or a Config. `overrides` replace its fields.
        out: Run folder; default `runs/<preset>...-seed<seed>`. The same call continues from its last checkpoint, and
            ends with the same bits as a run that was not interrupted, on the same machine and build.
        device: auto, cpu, cuda or cuda:<number>.
        data: A data set of `crgan.data`, or its name; default: the one that the configuration names.
        build: `build(cfg, image_shape)` returns an untrained model with networks of your own.
        start_from: A run folder; training starts from its state before the regularizer.
        checkpoint_every: Steps between two checkpoints.
        cuda_graph: Replay the whole step as one captured graph, on CUDA.

    Ctrl-C and SIGTERM take effect after the step, which is saved first. Raises InputError for unknown presets, fields
    and values, OSError where a file cannot be written.
    """
    cli.at_least(1, checkpoint_every=checkpoint_every)
    name, cfg = base_config(preset)
    if data is not None:
        overrides["data"] = data if isinstance(data, str) else data.name
    cfg = Config.from_json(vars(cfg) | overrides)
    torch_device, out = cli.device(device), Path(out or default_out(name, cfg)).expanduser()
    dataset = datasets.load(cfg.data, cfg.root) if data is None or isinstance(data, str) else data
    cfg = checkpoint.resolve(checkpoint.continued_config(out, cfg, dataset.identity), torch_device, dataset.image_shape)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not stack.enter_context(lock(out, timeout=5)):
            raise InputError(f"another process trains in {out}; wait for its end, or give another --out")
        stack.enter_context(plain_defaults())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(cfg.threads)
        doing, impl = f"training on {cfg.data} ({dataset.source})", ops.describe(torch_device)
        cli.announce(doing, torch_device, precision=cfg.precision, ops=impl, into=out)
        run = Run(cfg, out, torch_device, dataset, build, start_from)
        stack.callback(run.log.close)
        if run.step < cfg.steps:
            _loop(run, checkpoint_every, cuda_graph)
        else:
            print(f"{out} has finished its {run.step} steps; give --steps a larger number to continue")
    return run.model.for_use()


def base_config(preset: str | Path | Config) -> tuple[str, Config]:
    """Return the name and configuration of a preset, or of the config.json of a run."""
    if isinstance(preset, Config):
        return "model", preset
    path = Path(preset).expanduser()
    if path.name == "config.json":
        return path.parent.name, checkpoint.read_config(path.parent)[0]
    check_name("preset", str(preset), PRESETS)
    return str(preset), PRESETS[str(preset)]


def default_out(preset: str, cfg: Config) -> Path:
    """Return runs/<preset>, with the fields that differ from the preset, and the seed."""
    base, ignored = vars(PRESETS.get(preset, cfg)), ("seed", "steps", "root", "eval_every", "threads")
    changed = [f"{key}={value}" for key, value in vars(cfg).items() if value != base[key] and key not in ignored]
    return Path("runs") / f"{','.join([preset, *changed]).replace('/', '_')[:200]}-seed{cfg.seed}"


class Run:
    """A run in progress, continued from its last checkpoint if it has one."""

    def __init__(self, cfg: Config, out: Path, device: torch.device, dataset: Any, build: Build | None, trunk: Any):
        self.cfg, self.out, self.device, self.dataset, self.begun = cfg, out, device, dataset, time.monotonic()
        self.model = build_model(cfg, dataset.image_shape, build).to(device)
        self.optimisers = ALGORITHMS[cfg.model].make_optimisers(self.model, cfg)
        if cfg.compile:
            for network in self.model.children():
                network.compile()
        state: dict[str, Any] = {"step": 0}
        rows = checkpoint.read_log(out)
        about, folder = checkpoint.describe(cfg, device, dataset), checkpoint.latest(out)
        if folder is not None:
            state = checkpoint.restore(folder, self.model, self.optimisers)
            before = checkpoint.read(out / "config.json")
            about |= {name: before[name] for name in (*about, "from") if name in before}
            print(f"continuing from {folder}")
        elif trunk is not None:
            trunk = Path(trunk).expanduser()
            if not (folder := trunk / "checkpoint" / checkpoint.BEFORE_CR).is_dir():
                raise InputError(f"{folder} is missing; expected --from RUN of a run whose regularizer has started")
            checkpoint.refuse_changes(trunk, cfg, checkpoint.FREE_AFTER_TRUNK)
            state = checkpoint.restore(folder, self.model, self.optimisers, skip=("contrastive",))
            about["from"], rows = str(trunk), checkpoint.read_log(trunk)
            print(f"starting from step {state['step']} of {trunk}, before its regularizer")
        if cfg.cr_weight and cfg.cr_start >= cfg.steps:
            print(f"the contrastive regularizer stays off: --cr-start is {cfg.cr_start}, --steps is {cfg.steps}")
        self.step = state["step"]  # number of steps done
        self.seconds = state.get("seconds", 0.0)  # that earlier processes spent on these steps
        checkpoint.write_config(out, cfg, dataset.image_shape, about)  # nothing refuses to continue from here on
        self.log = checkpoint.Log(out, self.step, rows)

    def save(self, name: str = "") -> Path:
        seconds = round(self.seconds + time.monotonic() - self.begun, 1)
        state = {"step": self.step, "seconds": seconds}
        return checkpoint.save(self.out, self.model, self.optimisers, state, name)


def _loop(run: Run, checkpoint_every: int, cuda_graph: bool) -> None:
    cfg, model = run.cfg, run.model
    done = torch.tensor(run.step, dtype=torch.int64, device=run.device)
    batch = RealImages(run.dataset, cfg.images_per_step, cfg.seed, run.device)
    train_step = ALGORITHMS[cfg.model].train_step

    def eager_step(phase: Phase) -> Losses:
        report = train_step(model, run.optimisers, batch.images(done), cfg, phase, done)
        done.add_(1)
        return report

    on_cpu = run.device.type == "cpu"
    take_step = eager_step if on_cpu or not cuda_graph else capture(eager_step)
    best_rate = 0.0
    model.train()
    with cli.delayed_stop() as stop, cli.progress() as progress:
        progress.start("training", cfg.steps, run.step, "steps")
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
            if run.step % LOG_EVERY == 0 or on_cpu:  # the only read-back; on a CPU it costs no wait
                values = {name: value.item() for name, value in report.items()}
                for name, value in values.items():
                    if not abs(value) < float("inf"):
                        raise checkpoint.diverged(run.out, f"the loss {name} is {value} at step {run.step}")
                progress.update(run.step, " ".join(f"{name} {value:.2f}" for name, value in values.items()))
                if run.step % LOG_EVERY == 0:
                    run.log.write(run.step, values)
                    rate = progress.task.speed or 0.0
                    if cfg.threads > 1 and 0 < rate < best_rate / 3:
                        slower = f"{best_rate / rate:.0f} times slower"
                        print(f"{slower}: threads wait for other processes; --threads 1, in a new run, would wait less")
                        rate = best_rate = 0.0
                    best_rate = max(rate, best_rate)
            if run.step % cfg.eval_every == 0 or run.step == cfg.steps:
                with exact_arithmetic(), progress.aside("evaluating"):
                    scores = evaluate(run)
                for name, value in scores.items():
                    print(f"step {run.step}: {name} {value:.3f}")
            if run.step % checkpoint_every == 0 or run.step == cfg.steps:
                run.save()
        if stop:
            print(f"stopped after step {run.step}, saved in {run.save()}; the same command continues")
    print(f"wrote {run.out}/: traversal.png, traversal.gif, samples.png, metrics.jsonl, config.json, checkpoint/")


def capture(take_step: Callable[[Phase], Losses]) -> Callable[[Phase], Losses]:
    """Replay `take_step` as one CUDA graph per phase. The first steps of a phase run eagerly, as capture requires.

    All graphs are captured on one stream, so that they use its cuBLAS workspace one after another.
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
    """Write samples.png, traversal.png and traversal.gif; log and return the FactorVAE score (paper protocol).

    The score needs two varying factors. Before the last step it uses 100 of the paper's 500 groups.
    """
    dataset, cfg, model = run.dataset, run.cfg, run.model.for_use()
    scores, labels = dict[str, float](), list[str]()
    varying = [dataset.factor_names[f] for f in metrics.varying_factors(dataset)]
    if len(varying) > 1:
        sizes: dict[str, Any] = {} if run.step == cfg.steps else {"groups": 100, "scale_samples": 5_000}
        result = metrics.evaluate(model, dataset, ("factor_vae",), protocol="paper", seed=cfg.seed, **sizes)
        scores["factor_vae"] = result["factor_vae"]["score"]
        labels = pictures.followed_factors(result["factor_vae"]["votes"], varying)
    traversal, samples = pictures.traversal_picture(model, labels), pictures.samples_picture(model)
    pictures.save(run.out / "traversal.png", traversal)
    pictures.save(run.out / "samples.png", samples)
    pictures.save(run.out / "traversal.gif", *pictures.traversal_frames(model, labels))
    run.log.write(run.step, scores, traversal=traversal, samples=samples)
    return scores


@dataclass(frozen=True)
class Flags:
    """Flags of this command that are no fields of the configuration."""

    # Run folder; default runs/<preset>-seed<seed>. The same command continues from its last checkpoint.
    out: Path | None = None
    device: str = "auto"  # auto, cpu, cuda or cuda:<number>.
    # Run folder. Start from its state just before the regularizer, to compare the regularizer's settings.
    start_from: Annotated[str | None, tyro.conf.arg(name="from")] = None
    checkpoint_every: int = 1_000  # Steps between two checkpoints.
    cuda_graph: bool = True  # On CUDA, replay the whole step as one captured graph.
    dry_run: bool = False  # Print the resolved configuration and exit.


def parse(args: list[str]) -> tuple[str, Config, Flags]:
    """Parse `[PRESET | --config FILE] [flags]`; return the preset's name too."""
    preset = args.pop(0) if args and not args[0].startswith("-") else "quick"
    if args[:1] == ["--config"]:
        preset, args = "".join(args[1:2]), args[2:]
    preset, cfg = base_config(preset)
    defaults = [topic(**{field.name: getattr(cfg, field.name) for field in fields(topic)}) for topic in TOPICS]
    omit: Any = tyro.conf.OmitArgPrefixes
    arguments = make_dataclass("arguments", [(topic.__name__.lower(), omit[topic]) for topic in (*TOPICS, Flags)])
    usage = "python -m crgan.train [PRESET | --config FILE]"
    what = f"Train a model. PRESET is one of {', '.join(PRESETS)} (shown: {preset})."
    parsed = tyro.cli(arguments, args=args, default=arguments(*defaults, Flags()), prog=usage, description=what)
    *topics, flags = vars(parsed).values()
    return preset, Config(**{name: value for topic in topics for name, value in vars(topic).items()}), flags


def main(args: list[str] | None = None) -> None:
    with cli.command_process():
        preset, cfg, flags = parse(sys.argv[1:] if args is None else list(args))
        out = flags.out or default_out(preset, cfg)
        if flags.dry_run:
            shown = checkpoint.resolve(cfg, cli.device(flags.device))
            print(json.dumps({"out": str(out), "device": flags.device, "config": vars(shown)}, indent=2))
            return
        options = {name: value for name, value in vars(flags).items() if name not in ("out", "dry_run")}
        fit(cfg, out, **options)


if __name__ == "__main__":
    main()
