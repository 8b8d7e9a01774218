"""Which claims of the paper hold here? `python -m benchmarks.evidence --out DIR` trains, scores, selects and answers.

Pools on the `squares` data, with the paper's own information loss: InfoGAN-CR and InfoGAN from one trunk per seed, and
FactorVAE with four weights of the total correlation. Runs public commands only. The same command continues; --dry-run
prints the commands. Writes results.json, results.md and two plots.
"""

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, spearmanr

GAN = "quick --steps 3000 --blur-steps 3000 --q-std one --info-weight 0.1 --cr-start 1000 --eval-every 1000"
VAE = "factorvae-dsprites --data squares --batch-size 64 --lr-g 1e-3 --lr-d 1e-3 --eval-every 1000"
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
SELECTION = "--groups 250 --scale-samples 10000"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the results")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the GANs")
    parser.add_argument("--vae-seeds", type=int, default=3, help="seeds of each FactorVAE")
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, one thread each")
    parser.add_argument("--extra", default="", help="further flags for every GAN, for a quick trial")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    out = given.out.resolve()
    pools = plan(out, given)
    if given.dry_run:
        return
    runs = [run for pool in pools.values() for run in pool]
    evaluate(out, runs, given.jobs)
    selections = select(out, pools)
    results = collect(out, pools, selections)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "results.md").write_text(report(results))
    plot(out, results)
    print(f"wrote results.json, results.md, pairs.png and selection.png to {out}")


# ---------------------------------------------------------------- commands


def plan(out: Path, given: argparse.Namespace) -> dict[str, list[Path]]:
    """Train all runs and return them by pool: every trunk first, then what starts from it."""
    pools: dict[str, list[Path]] = {"InfoGAN-CR": [], "InfoGAN": [], "FactorVAE": []}
    chains: list[list[str]] = []  # commands that follow each other
    for seed in range(given.seeds):
        on, off = out / f"infogan-cr-{seed}", out / f"infogan-{seed}"
        flags = f"{GAN} {given.extra} --seed {seed}"
        chains.append([
            f"train {flags} --out {shlex.quote(str(on))}",
            f"train {flags} --cr-weight 0 --from {shlex.quote(str(on))} --out {shlex.quote(str(off))}",
        ])  # fmt: skip
        pools["InfoGAN-CR"].append(on)
        pools["InfoGAN"].append(off)
    for gamma in GAMMAS:
        for seed in range(given.vae_seeds):
            run = out / f"factorvae-gamma{gamma}-{seed}"
            flags = f"{VAE} --steps {given.vae_steps} --gamma {gamma} --seed {seed}"
            chains.append([f"train {flags} --out {shlex.quote(str(run))}"])
            pools["FactorVAE"].append(run)
    if given.dry_run:
        print("\n".join(f"python -m crgan.{command}" for chain in chains for command in chain))
        return pools
    begin, done = time.monotonic(), 0

    def follow(chain: list[str]) -> None:
        nonlocal done
        for command in chain:
            crgan(command, out / "log.txt")
        done += 1
        left = (time.monotonic() - begin) / done * (len(chains) - done)
        print(f"{done} of {len(chains)} trained, about {left / 60:.0f} minutes of training left", flush=True)

    with ThreadPoolExecutor(given.jobs) as threads:
        list(threads.map(follow, chains))
    return pools


def crgan(command: str, log: Path) -> None:
    """Run one command, which continues or skips what is there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"$ python -m crgan.{command}\n")
        file.flush()
        arguments = [sys.executable, "-m", *shlex.split(f"crgan.{command}")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if subprocess.run(arguments, stdout=file, stderr=file, env=environment).returncode:
            raise SystemExit(f"python -m crgan.{command} failed; see {log}")


def evaluate(out: Path, runs: list[Path], jobs: int) -> None:
    """Score every run by the paper's metrics; scores that metrics.json holds are not computed again."""
    names = ",".join(METRICS)
    with ThreadPoolExecutor(jobs) as threads:
        list(
            threads.map(lambda run: crgan(f"evaluate {shlex.quote(str(run))} --metrics {names}", out / "log.txt"), runs)
        )
    print(f"scored {len(runs)} models", flush=True)


def select(out: Path, pools: dict[str, list[Path]]) -> dict[str, dict[str, dict]]:
    """Rank each pool, and all together, by each method. The pairs of the whole pool serve the others."""
    every = [run for pool in pools.values() for run in pool]
    rankings: dict[str, dict[str, dict]] = {}
    for name, pool in {"all": every, **pools}.items():
        for method in METHODS:
            folder = out / "selection" / f"{name}-{method}"
            if name != "all" and method == "centrality":
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(out / "selection" / "all-centrality" / "scores.h5", folder / "scores.h5")
            flags = SELECTION if method == "centrality" else "--data squares"
            runs = " ".join(shlex.quote(str(run)) for run in pool)
            crgan(f"select {runs} --method {method} {flags} --out {shlex.quote(str(folder))}", out / "log.txt")
            rankings.setdefault(name, {})[method] = json.loads((folder / "ranking.json").read_text())
        print(f"ranked {name}", flush=True)
    return rankings


# ---------------------------------------------------------------- results


def collect(out: Path, pools: dict[str, list[Path]], selections: dict[str, dict[str, dict]]) -> dict:
    """Gather scores and choices into what results.json holds."""
    scores = {}
    for run in (run for pool in pools.values() for run in pool):
        entries = next(reversed(json.loads((run / "metrics.json").read_text()).values()))
        found = next(entry["metrics"] for entry in entries if entry["protocol"] == "paper")
        scores[run.name] = {name: found[name][part] for name, (part, _) in METRICS.items()}
    chosen = {}
    for pool, methods in selections.items():
        for method, ranking in methods.items():
            models = [(Path(model["name"]).name, model["score"]) for model in ranking["models"]]
            truth = {metric: [scores[name][metric] for name, _ in models] for metric in METRICS}
            order = [score for _, score in models]
            chosen.setdefault(pool, {})[method] = {
                "winner": models[0][0],
                **{f"{metric}_of_winner": truth[metric][0] for metric in METRICS},
                "mean": float(np.mean(truth["factor_vae"])),
                "best": float(np.max(truth["factor_vae"])),
                "rank_correlation": {m: correlation(order, truth[m]) for m in ("factor_vae", "mig", "dci")},
            }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.evidence {shlex.join(sys.argv[1:])}",
        "pools": {name: [run.name for run in pool] for name, pool in pools.items()},
        "scores": scores,
        "selection": chosen,
    }


def correlation(a: list[float], b: list[float]) -> float | None:
    return float(spearmanr(a, b).statistic) if len({*a}) > 1 and len({*b}) > 1 else None


def _pairs(results: dict, metric: str) -> list[np.ndarray]:
    pools, scores = results["pools"], results["scores"]
    return [np.array([scores[run][metric] for run in pools[pool]]) for pool in ("InfoGAN-CR", "InfoGAN")]


def paired(results: dict, metric: str) -> dict:
    """Compare InfoGAN-CR with InfoGAN seed by seed: mean difference, standard error, sign test."""
    on, off = _pairs(results, metric)
    difference = on - off
    ahead, behind = int((difference > 0).sum()), int((difference < 0).sum())
    p = binomtest(ahead, ahead + behind).pvalue if ahead + behind else 1.0
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.nan
    return {"mean": float(difference.mean()), "error": error, "ahead": ahead, "behind": behind, "p": float(p)}


def report(results: dict) -> str:
    """Write the two tables and one sentence per claim, in Markdown."""
    labels = [label for _, label in METRICS.values()]
    lines = [
        "# Evidence on `squares`",
        "",
        f"`{results['command']}`, commit {results['commit']}, {results['machine']}, {results['date']}.",
        "Scores in the paper protocol, mean ± standard error over the models of a pool.",
        "",
        "| pool | models | " + " | ".join(labels) + " |",
        "|---" * (len(labels) + 2) + "|",
    ]
    for pool, runs in results["pools"].items():
        cells = []
        for metric in METRICS:
            values = np.array([results["scores"][run][metric] for run in runs])
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}")
        lines.append(f"| {pool} | {len(runs)} | " + " | ".join(cells) + " |")
    rows = [paired(results, metric) for metric in METRICS]
    lines.append("| CR on − off | pairs | " + " | ".join(f"{r['mean']:+.3f} ± {r['error']:.3f}" for r in rows) + " |")
    lines.append(
        "| ahead / behind | (sign test) | "
        + " | ".join(f"{r['ahead']} / {r['behind']} (p = {r['p']:.3f})" for r in rows)
        + " |"
    )
    lines += [
        "",
        "| pool | method | chosen | mean | best | MIG | DCI | rank correlation with FactorVAE, MIG, DCI |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pool, methods in results["selection"].items():
        for method, row in methods.items():
            correlations = row["rank_correlation"].values()
            ranks = ", ".join("–" if value is None else f"{value:.2f}" for value in correlations)
            values = [row[name] for name in ("factor_vae_of_winner", "mean", "best", "mig_of_winner", "dci_of_winner")]
            cells = " | ".join(f"{value:.3f}" for value in values)
            lines.append(f"| {pool} | {METHODS[method]} | {cells} | {ranks} |")
    return "\n".join([*lines, "", *claims(results)]) + "\n"


def claims(results: dict) -> list[str]:
    """Say of each claim, in one sentence, whether these figures support it."""
    pair = paired(results, "factor_vae")
    verdict = "holds" if pair["mean"] > 0 and pair["p"] < 0.05 else "is not shown"
    first = (
        f"1. The regularizer disentangles better than InfoGAN without it: **{verdict}** here. FactorVAE score "
        f"{pair['mean']:+.3f} ± {pair['error']:.3f}, ahead in {pair['ahead']} pairs, behind in {pair['behind']} "
        f"(sign test p = {pair['p']:.3f})."
    )
    parts, better = [], 0
    for pool in results["pools"]:
        methods = results["selection"][pool]
        own, others = methods["centrality"], [methods[m] for m in METHODS if m != "centrality"]
        regret = own["best"] - own["factor_vae_of_winner"]
        better += all(own["factor_vae_of_winner"] >= other["factor_vae_of_winner"] for other in others)
        parts.append(f"{pool}: {own['factor_vae_of_winner']:.3f} of at most {own['best']:.3f} (mean {own['mean']:.3f})")
        parts[-1] += "" if regret > 0.02 else ", within 0.02 of the best"
    second = (
        "2. ModelCentrality picks a model close to the best of its pool: "
        + "; ".join(parts)
        + f". It chooses at least as well as both UDR variants in {better} of {len(parts)} pools."
    )
    gan, vae = (
        results["selection"][pool]["centrality"]["factor_vae_of_winner"] for pool in ("InfoGAN-CR", "FactorVAE")
    )
    third = (
        f"3. Both together win: InfoGAN-CR with ModelCentrality has {gan:.3f}, FactorVAE with it {vae:.3f}; "
        f"the claim **{'holds' if gan > vae else 'does not hold'}** here."
    )
    return [first, second, third]


def plot(out: Path, results: dict) -> None:
    """Draw the pairs of runs, and centrality against the supervised score."""
    from matplotlib.figure import Figure

    on, off = _pairs(results, "factor_vae")
    figure = Figure((4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], np.stack([off, on]), color="#0072B2", marker="o", alpha=0.7)
    axes.set(xticks=[0, 1], xticklabels=["InfoGAN", "InfoGAN-CR"], ylabel="FactorVAE score", xlim=(-0.3, 1.3))
    axes.set_title("each line is one trunk")
    figure.savefig(out / "pairs.png", dpi=120)
    ranking = json.loads((out / "selection" / "all-centrality" / "ranking.json").read_text())
    figure = Figure((5, 4), layout="constrained")
    axes = figure.subplots()
    for (pool, runs), color in zip(results["pools"].items(), ("#0072B2", "#E69F00", "#009E73")):
        points = [
            (model["score"], results["scores"][Path(model["name"]).name]["factor_vae"])
            for model in ranking["models"]
            if Path(model["name"]).name in runs
        ]
        axes.scatter(*zip(*points), label=pool, color=color)
    axes.set(xlabel="ModelCentrality, all models in one pool", ylabel="FactorVAE score")
    axes.legend()
    figure.savefig(out / "selection.png", dpi=120)


if __name__ == "__main__":
    main()
