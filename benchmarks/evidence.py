"""Which claims of the paper hold here? `python -m benchmarks.evidence --out DIR` trains, scores, selects and answers.

Pools on the `squares` data, with the paper's own information loss: InfoGAN-CR and InfoGAN from one trunk per seed, and
FactorVAE with four weights of the total correlation. Runs public commands only. The same command continues; --dry-run
prints the commands. Writes results.json, results.md and plots. `--publish FILE` writes the tables of a results.json
into README.md and docs/results.md, between the marks that are there.

The paper's own dSprites networks and losses, at a fifth of the schedule (4 hours of a core for each of the two seeds):

    python -m benchmarks.evidence --out DIR --seeds 2 --vae-seeds 0 \\
        --gan "dsprites --steps 64512 --cr-start 57600 --eval-every 5000"
"""

import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import binomtest, spearmanr

GAN = "quick --steps 3000 --blur-steps 3000 --q-std one --info-weight 0.1 --cr-start 1000 --eval-every 1000"
VAE = "factorvae-dsprites --steps 6000 --data squares --batch-size 64 --lr-g 1e-3 --lr-d 1e-3 --eval-every 1000"
GAMMAS = (1, 10, 20, 40)
METRICS = {  # of the paper's table 1: name in metrics.json, part, label
    "factor_vae": ("score", "FactorVAE"),
    "dci": ("disentanglement", "DCI"),
    "sap": ("score", "SAP"),
    "explicitness": ("score", "Explicitness"),
    "modularity": ("score", "Modularity"),
    "mig": ("score", "MIG"),
    "beta_vae": ("score", "BetaVAE"),
}
METHODS = {"centrality": "ModelCentrality", "udr-lasso": "UDR Lasso", "udr-spearman": "UDR Spearman"}


def main(
    out: Path | None = None,
    gan: str = GAN,
    vae: str = VAE,
    seeds: int = 10,
    vae_seeds: int = 3,
    jobs: int = 2,
    dry_run: bool = False,
    publish: Path | None = None,
) -> None:
    """Train, score and select.

    Args:
        out: folder for the runs and the results
        gan: preset and flags of InfoGAN-CR
        vae: preset and flags of FactorVAE
        seeds: seeds of the GANs
        vae_seeds: seeds of FactorVAE for each gamma
        jobs: processes at once, one thread each
        publish: a results.json, for README.md and docs/results.md
    """
    if publish:
        write_tables(json.loads(publish.read_text()))
        return
    if out is None:
        raise SystemExit("expected --out DIR, or --publish FILE")
    out = out.resolve()
    trunks = {out / f"infogan-cr-{seed}": f"{gan} --seed {seed}" for seed in range(seeds)}
    branches = {
        out / f"infogan-{seed}": f"{flags} --cr-weight 0 --from {shlex.quote(str(trunk))}"
        for seed, (trunk, flags) in enumerate(trunks.items())
    }
    vaes = {
        out / f"factorvae-gamma{gamma}-{seed}": f"{vae} --gamma {gamma} --seed {seed}"
        for gamma in GAMMAS
        for seed in range(vae_seeds)
    }
    pools = {"InfoGAN-CR": [*trunks], "InfoGAN": [*branches], "FactorVAE": [*vaes]}
    pools = {name: runs for name, runs in pools.items() if runs}
    every = [run for runs in pools.values() for run in runs]
    selections = [
        f"select {shlex.join(map(str, runs))} --method {method} --groups 150 --scale-samples 5000 --out "
        + shlex.quote(str(out / "selection" / f"{name}-{method}"))
        for name, runs in {"all": every, **pools}.items()
        for method in METHODS
    ]
    stages = [
        [f"train {flags} --out {shlex.quote(str(run))}" for run, flags in (trunks | vaes).items()],
        [f"train {flags} --out {shlex.quote(str(run))}" for run, flags in branches.items()],
        [f"evaluate {shlex.quote(str(run))} --metrics {','.join(METRICS)}" for run in every],
        selections[: len(METHODS)],
        selections[len(METHODS) :],
    ]
    if dry_run:
        print("\n".join(f"python -m crgan.{command}" for stage in stages for command in stage))
        return
    whole = out / "selection" / "all-centrality" / "scores.h5"
    for commands in stages:
        for pool in pools if whole.exists() else ():  # the pairs of all models serve the smaller pools
            part = out / "selection" / f"{pool}-centrality"
            part.mkdir(exist_ok=True)
            shutil.copy(whole, part)
        with ThreadPoolExecutor(jobs) as threads:
            for n, _ in enumerate(threads.map(partial(crgan, out / "log.txt"), commands), 1):
                print(f"{n} of {len(commands)}: {commands[n - 1]}", flush=True)
    results = collect(out, pools)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "results.md").write_text(report(results))
    plot(out, results)
    print(f"wrote results.json, results.md and evidence.png to {out}")


def crgan(log: Path, command: str) -> None:
    """Run one command, which continues or skips what is there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        print(f"$ python -m crgan.{command}", file=file, flush=True)
        arguments = [sys.executable, "-m", *shlex.split(f"crgan.{command}")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if subprocess.run(arguments, stdout=file, stderr=file, env=environment).returncode:
            raise SystemExit(f"python -m crgan.{command} failed; see {log}")


def collect(out: Path, pools: dict[str, list[Path]]) -> dict:
    """Gather scores and choices into what results.json holds."""
    scores, curves, seconds = {}, {}, 0.0
    for run in (run for pool in pools.values() for run in pool):
        entries = next(reversed(json.loads((run / "metrics.json").read_text()).values()))
        found = next(entry["metrics"] for entry in entries if entry["protocol"] == "paper")
        scores[run.name] = {name: found[name][part] for name, (part, _) in METRICS.items()}
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        curves[run.name] = [(row["step"], row["factor_vae"]) for row in rows if "factor_vae" in row]
        seconds += json.loads(next(run.glob("checkpoint/step-*/state.json")).read_text())["seconds"]
    for run in pools["InfoGAN-CR"]:  # whose trunk is counted again in the other run of the pair
        seconds -= json.loads((run / "checkpoint/before-cr/state.json").read_text())["seconds"]
    chosen: dict[str, dict] = {"all": {}, **{pool: {} for pool in pools}}
    for pool, method in product(chosen, METHODS):
        ranking = json.loads((out / "selection" / f"{pool}-{method}" / "ranking.json").read_text())
        truth = [scores[Path(model["name"]).name] for model in ranking["models"]]
        order = [model["score"] for model in ranking["models"]]
        factor_vae = [score["factor_vae"] for score in truth]
        chosen[pool][method] = {
            "winner": Path(ranking["winner"]).name,
            **{f"{metric}_of_winner": score for metric, score in truth[0].items()},
            "mean": float(np.mean(factor_vae)),
            "best": max(factor_vae),
            "rank_correlation": {m: correlation(order, [s[m] for s in truth]) for m in ("factor_vae", "mig", "dci")},
        }
        seconds += ranking["seconds"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    given = shlex.join("DIR" if Path(word).exists() else word for word in sys.argv[1:])
    return {
        "data": json.loads((out / "infogan-cr-0" / "config.json").read_text())["config"]["data"],
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {processor[1] if processor else platform.machine()}",
        "hours_of_one_core": seconds / 3600,
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.evidence {given}",
        "pools": {name: [run.name for run in pool] for name, pool in pools.items()},
        "scores": scores,
        "curves": curves,
        "selection": chosen,
    }


def correlation(a: list[float], b: list[float]) -> float | None:
    return float(spearmanr(a, b).statistic) if len({*a}) > 1 and len({*b}) > 1 else None


def pair_scores(results: dict, metric: str) -> list[np.ndarray]:
    """Return the scores of InfoGAN-CR and of InfoGAN, seed by seed."""
    pools, scores = results["pools"], results["scores"]
    return [np.array([scores[run][metric] for run in pools[pool]]) for pool in ("InfoGAN-CR", "InfoGAN")]


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def sign_test(on: np.ndarray, off: np.ndarray) -> tuple[int, int, float]:
    """Return how often InfoGAN-CR is ahead of InfoGAN, how often behind, and the sign test's p."""
    ahead, behind = int((on > off).sum()), int((on < off).sum())
    return ahead, behind, binomtest(ahead, ahead + behind).pvalue if ahead + behind else 1.0


def table(heads: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return [head, "|---" * len(heads) + "|", *body]


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def score_table(results: dict) -> list[str]:
    """Tabulate the seven metrics: the mean of each pool, and what the regularizer changes, pair by pair."""
    pools, rows = results["pools"], []
    for metric, (_, label) in METRICS.items():
        on, off = pair_scores(results, metric)
        ahead, behind, p = sign_test(on, off)
        pool_scores = [np.array([results["scores"][run][metric] for run in runs]) for runs in pools.values()]
        means = ["{:.3f} ± {:.3f}".format(*mean_and_error(scores)) for scores in pool_scores]
        change = "{:+.3f} ± {:.3f}".format(*mean_and_error(on - off))
        rows.append([label, *means, change, f"{ahead} / {behind} (p = {p:.3f})"])
    heads = [f"{pool} ({len(runs)})" for pool, runs in pools.items()]
    return table(["metric", *heads, "CR on − off", "ahead / behind"], rows)


def selection_table(results: dict) -> list[str]:
    """Tabulate what each method chose from each pool, and how it orders the models."""
    rows = []
    for pool, methods in results["selection"].items():
        for method, row in methods.items():
            values = [row[name] for name in ("factor_vae_of_winner", "mean", "best", "mig_of_winner", "dci_of_winner")]
            ranks = ["–" if value is None else f"{value:.2f}" for value in row["rank_correlation"].values()]
            rows.append([pool, METHODS[method], *(f"{value:.3f}" for value in values), ", ".join(ranks)])
    heads = ["pool", "method", "chosen", "mean", "best", "its MIG", "its DCI"]
    return table([*heads, "rank correlation: FactorVAE, MIG, DCI"], rows)


def claim_table(results: dict) -> list[str]:
    """Tabulate the claims: whether these scores support each, the paper's FactorVAE scores on dSprites, and these."""
    pools, selection = list(results["pools"]), results["selection"]
    on, off = pair_scores(results, "factor_vae")
    gain, error = mean_and_error(on - off)
    *_, p = sign_test(on, off)
    helps = "does not hold" if gain <= 0 else "holds" if p < 0.05 else "not significant"
    means = np.array([selection[pool]["centrality"]["mean"] for pool in pools])
    chosen = {m: np.array([selection[pool][m]["factor_vae_of_winner"] for pool in pools]) for m in METHODS}
    ours, won, against = chosen["centrality"], [], []
    for method in ("udr-lasso", "udr-spearman"):
        ahead, behind = (ours > chosen[method]).sum(), (ours < chosen[method]).sum()
        won.append(ahead > behind)
        against.append(f"{method.removeprefix('udr-').title()}: {ahead} better, {behind} worse")
    beats = "holds" if all(won) else "mixed" if any(won) else "does not hold"
    above = f"above mean in {(ours > means).sum()} of {len(pools)}"
    change = f"{off.mean():.3f} to {on.mean():.3f}, by {gain:.3f} ± {error:.3f} (p = {p:.3f})"
    rows = [
        ("the regularizer helps", f"**{helps}**", "0.82 to 0.88", change),
        ("ModelCentrality picks", f"**{above}**", "0.92, mean 0.88", f"{listed(ours)}; means {listed(means)}"),
        ("better than UDR", f"**{beats}**", "VAEs 0.84, UDR 0.81", "; ".join(against)),
    ]
    if "FactorVAE" in pools:
        gan, vae = (ours[pools.index(pool)] for pool in ("InfoGAN-CR", "FactorVAE"))
        verdict, scores = "holds" if gan > vae else "does not hold", f"{gan:.3f}, FactorVAE {vae:.3f}"
        rows.append(("both together beat FactorVAE", f"**{verdict}**", "0.92, FactorVAE 0.84", scores))
    return table(["claim", "here", "paper, dSprites", f"here, {results['data']}"], rows)


def blocks(results: dict) -> dict[str, list[str]]:
    pools = ", ".join(f"{len(runs)} {pool}" for pool, runs in results["pools"].items())
    effort = f"{results['hours_of_one_core']:.1f} hours of one core to train and rank ({results['machine']})"
    origin = [f"`{results['command']}`, commit {results['commit']}, {results['date']},", f"{effort}. Pools: {pools}."]
    return {
        "claims": [*origin, "", *claim_table(results)],
        "scores": [*score_table(results), "", *selection_table(results)],
    }


def report(results: dict) -> str:
    """Write the claims and the two tables, in Markdown."""
    about = "All scores are in the paper protocol, mean ± standard error over the models of a pool."
    lines = [f"# Evidence on `{results['data']}`", "", about, ""]
    for block in blocks(results).values():
        lines += [*block, ""]
    return "\n".join(lines)


def write_tables(results: dict) -> None:
    """Write the tables between the marks <!-- NAME --> and <!-- end NAME --> of README.md and docs/results.md."""
    root = Path(__file__).parents[1]
    for path in (root / "README.md", root / "docs" / "results.md"):
        text = path.read_text()
        for name, lines in blocks(results).items():
            between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- end {name} -->)", re.DOTALL)
            text = between.sub(lambda _, lines=lines: "\n".join(lines), text)
        path.write_text(text)


def plot(out: Path, results: dict) -> None:
    """Draw the pairs of runs, centrality against the supervised score, and the scores during training."""
    from matplotlib.figure import Figure

    figure = Figure((13, 4), layout="constrained")
    pairs, choice, curves = figure.subplots(1, 3, width_ratios=(2, 3, 3))
    on, off = pair_scores(results, "factor_vae")
    pairs.plot([0, 1], np.stack([off, on]), color="#0072B2", marker="o", alpha=0.7)
    pairs.set(xticks=[0, 1], xticklabels=["InfoGAN", "InfoGAN-CR"], ylabel="FactorVAE score", xlim=(-0.3, 1.3))
    pairs.set_title("each line is one trunk")
    ranking = json.loads((out / "selection" / "all-centrality" / "ranking.json").read_text())
    centrality = {Path(model["name"]).name: model["score"] for model in ranking["models"]}
    for (pool, runs), color in zip(results["pools"].items(), ("#0072B2", "#E69F00", "#009E73")):
        scores = [results["scores"][run]["factor_vae"] for run in runs]
        choice.scatter([centrality[run] for run in runs], scores, label=pool, color=color)
        for run in runs:
            curves.plot(*zip(*results["curves"][run]), color=color, alpha=0.6, linewidth=1)
    choice.set(xlabel="ModelCentrality, all models in one pool", ylabel="FactorVAE score")
    choice.legend()
    curves.set(xlabel="step", ylabel="FactorVAE score")
    figure.savefig(out / "evidence.png", dpi=110)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
