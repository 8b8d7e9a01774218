"""Which claims of the paper hold here? `python -m benchmarks.evidence --out DIR` trains, scores, selects and answers.

Pools on the `squares` data, with the paper's own information loss: InfoGAN-CR and InfoGAN from one trunk per seed, and
FactorVAE with four weights of the total correlation. Runs public commands only. The same command continues; --dry-run
prints the commands. Writes results.json, results.md and plots. `--publish FILE` writes the tables of a results.json
into README.md and docs/results.md, between the marks that are there.

The paper's own dSprites networks and losses, at a fifth of the schedule (4 hours of a core for each of the two seeds):

    python -m benchmarks.evidence --out DIR --seeds 2 --vae-seeds 0 \\
        --gan "dsprites --steps 64512 --cr-start 57600 --eval-every 5000"
"""

import argparse
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
SELECTION = "--groups 150 --scale-samples 5000"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the runs and the results")
    parser.add_argument("--gan", default=GAN, help="preset and flags of InfoGAN-CR")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the GANs")
    parser.add_argument("--vae-seeds", type=int, default=3, help="seeds of FactorVAE for each gamma")
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, one thread each")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument(
        "--publish", type=Path, metavar="FILE", help="a results.json, for README.md and docs/results.md"
    )
    given = parser.parse_args()
    if given.publish:
        publish(json.loads(given.publish.read_text()))
        return
    if given.out is None:
        parser.error("expected --out DIR, or --publish FILE")
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
    print(f"wrote results.json, results.md and evidence.png to {out}")


# ---------------------------------------------------------------- commands


def plan(out: Path, given: argparse.Namespace) -> dict[str, list[Path]]:
    """Train all runs and return them by pool: every trunk first, then what starts from it."""
    pools: dict[str, list[Path]] = {"InfoGAN-CR": [], "InfoGAN": [], "FactorVAE": []}
    chains: list[list[str]] = []  # commands that run one after another
    for seed in range(given.seeds):
        on, off = out / f"infogan-cr-{seed}", out / f"infogan-{seed}"
        flags = f"{given.gan} --seed {seed}"
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
    pools = {name: pool for name, pool in pools.items() if pool}
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
    """Score every run by the paper's metrics; scores already in metrics.json are not computed again."""
    names = ",".join(METRICS)
    with ThreadPoolExecutor(jobs) as threads:
        list(
            threads.map(lambda run: crgan(f"evaluate {shlex.quote(str(run))} --metrics {names}", out / "log.txt"), runs)
        )
    print(f"scored {len(runs)} models", flush=True)


def select(out: Path, pools: dict[str, list[Path]]) -> dict[str, dict[str, dict]]:
    """Rank each pool, and all together, by each method. The smaller pools reuse the pairs of the whole."""
    every = [run for pool in pools.values() for run in pool]
    rankings: dict[str, dict[str, dict]] = {}
    for name, pool in {"all": every, **pools}.items():
        for method in METHODS:
            folder = out / "selection" / f"{name}-{method}"
            if name != "all" and method == "centrality":
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(out / "selection" / "all-centrality" / "scores.h5", folder / "scores.h5")
            flags = SELECTION if method == "centrality" else ""
            runs = " ".join(shlex.quote(str(run)) for run in pool)
            crgan(f"select {runs} --method {method} {flags} --out {shlex.quote(str(folder))}", out / "log.txt")
            rankings.setdefault(name, {})[method] = json.loads((folder / "ranking.json").read_text())
        print(f"ranked {name}", flush=True)
    return rankings


# ---------------------------------------------------------------- results


def collect(out: Path, pools: dict[str, list[Path]], selections: dict[str, dict[str, dict]]) -> dict:
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
            seconds += ranking["seconds"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "data": json.loads((out / "infogan-cr-0" / "config.json").read_text())["config"]["data"],
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {processor[1] if processor else platform.machine()}",
        "hours_of_one_core": seconds / 3600,
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.evidence "
        + shlex.join("DIR" if Path(a).exists() else a for a in sys.argv[1:]),
        "pools": {name: [run.name for run in pool] for name, pool in pools.items()},
        "scores": scores,
        "curves": curves,
        "selection": chosen,
    }


def correlation(a: list[float], b: list[float]) -> float | None:
    return float(spearmanr(a, b).statistic) if len({*a}) > 1 and len({*b}) > 1 else None


def _pairs(results: dict, metric: str) -> list[np.ndarray]:
    pools, scores = results["pools"], results["scores"]
    return [np.array([scores[run][metric] for run in pools[pool]]) for pool in ("InfoGAN-CR", "InfoGAN")]


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def paired(results: dict, metric: str) -> dict:
    """Compare InfoGAN-CR with InfoGAN seed by seed: mean difference, standard error, sign test."""
    on, off = _pairs(results, metric)
    ahead, behind = int((on > off).sum()), int((on < off).sum())
    p = binomtest(ahead, ahead + behind).pvalue if ahead + behind else 1.0
    mean, error = mean_and_error(on - off)
    return {"mean": mean, "error": error, "ahead": ahead, "behind": behind, "p": float(p)}


def score_table(results: dict) -> list[str]:
    """Tabulate the seven metrics: the mean of each pool, and what the regularizer changes, pair by pair."""
    pools = results["pools"]
    heads = ["metric", *(f"{pool} ({len(runs)})" for pool, runs in pools.items()), "CR on − off", "ahead / behind"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for metric, (_, label) in METRICS.items():
        means = (mean_and_error(np.array([results["scores"][run][metric] for run in runs])) for runs in pools.values())
        row = paired(results, metric)
        difference, sign = f"{row['mean']:+.3f} ± {row['error']:.3f}", f"{row['ahead']} / {row['behind']}"
        cells = [label, *(f"{mean:.3f} ± {error:.3f}" for mean, error in means), difference]
        lines.append("| " + " | ".join([*cells, f"{sign} (p = {row['p']:.3f})"]) + " |")
    return lines


def selection_table(results: dict) -> list[str]:
    """Tabulate what each method chose from each pool, and how it orders the models."""
    lines = [
        "| pool | method | chosen | mean | best | its MIG | its DCI | rank correlation: FactorVAE, MIG, DCI |",
        "|---" * 8 + "|",
    ]
    for pool, methods in results["selection"].items():
        for method, row in methods.items():
            correlations = row["rank_correlation"].values()
            ranks = ", ".join("–" if value is None else f"{value:.2f}" for value in correlations)
            values = [row[name] for name in ("factor_vae_of_winner", "mean", "best", "mig_of_winner", "dci_of_winner")]
            cells = " | ".join(f"{value:.3f}" for value in values)
            lines.append(f"| {pool} | {METHODS[method]} | {cells} | {ranks} |")
    return lines


PAPER = ("0.82 to 0.88", "0.92, mean 0.88", "VAEs 0.84, UDR 0.81", "0.92, FactorVAE 0.84")


def claims(results: dict) -> list[tuple[str, str, str, str]]:
    """Return for each claim: its text, the verdict on these scores, the paper's scores on dSprites, and these."""
    pair = paired(results, "factor_vae")
    on, off = (values.mean() for values in _pairs(results, "factor_vae"))
    chosen = {pool: {m: row["factor_vae_of_winner"] for m, row in methods.items()} for pool, methods in
              results["selection"].items()}  # fmt: skip
    pools = list(results["pools"])
    mean = {pool: results["selection"][pool]["centrality"]["mean"] for pool in pools}
    above = sum(chosen[pool]["centrality"] > mean[pool] for pool in pools)
    against = {}
    for method in ("udr-lasso", "udr-spearman"):
        lead = [chosen[pool]["centrality"] - chosen[pool][method] for pool in pools]
        against[method.removeprefix("udr-").title()] = (
            sum(value > 0 for value in lead),
            sum(value < 0 for value in lead),
        )
    won = [ahead > behind for ahead, behind in against.values()]
    found = [
        (
            "the regularizer helps",
            "does not hold" if pair["mean"] <= 0 else "holds" if pair["p"] < 0.05 else "not significant",
            f"{off:.3f} to {on:.3f}, by {pair['mean']:.3f} ± {pair['error']:.3f} (p = {pair['p']:.3f})",
        ),
        (
            "ModelCentrality picks",
            f"above mean in {above} of {len(pools)}",
            ", ".join(f"{chosen[pool]['centrality']:.3f}" for pool in pools)
            + "; means "
            + ", ".join(f"{mean[pool]:.3f}" for pool in pools),
        ),
        (
            "better than UDR",
            "holds" if all(won) else "mixed" if any(won) else "does not hold",
            "; ".join(f"{m}: {ahead} better, {behind} worse" for m, (ahead, behind) in against.items()),
        ),
    ]
    if "FactorVAE" in pools:
        ours, theirs = (chosen[pool]["centrality"] for pool in ("InfoGAN-CR", "FactorVAE"))
        verdict = "holds" if ours > theirs else "does not hold"
        found.append(("both together beat FactorVAE", verdict, f"{ours:.3f}, FactorVAE {theirs:.3f}"))
    return [(claim, verdict, theirs, ours) for (claim, verdict, ours), theirs in zip(found, PAPER)]


def claim_table(results: dict) -> list[str]:
    """Tabulate the claims, the paper's FactorVAE scores beside these."""
    lines = [f"| claim | here | paper, dSprites | here, {results['data']} |", "|---|---|---|---|"]
    return lines + [
        f"| {claim} | **{verdict}** | {theirs} | {ours} |" for claim, verdict, theirs, ours in claims(results)
    ]


def origin(results: dict) -> list[str]:
    return [
        f"`{results['command']}`, commit {results['commit']}, {results['date']},",
        f"{results['hours_of_one_core']:.1f} hours of one core to train and rank ({results['machine']}). Pools: "
        + ", ".join(f"{len(runs)} {pool}" for pool, runs in results["pools"].items())
        + ".",
    ]


def blocks(results: dict) -> dict[str, list[str]]:
    return {
        "claims": [*origin(results), "", *claim_table(results)],
        "scores": [*score_table(results), "", *selection_table(results)],
    }


def report(results: dict) -> str:
    """Write the claims and the two tables, in Markdown."""
    about = "All scores are in the paper protocol, mean ± standard error over the models of a pool."
    parts = [
        f"# Evidence on `{results['data']}`",
        "",
        about,
        "",
        *(line for part in blocks(results).values() for line in [*part, ""]),
    ]
    return "\n".join(parts)


def publish(results: dict, root: Path = Path(__file__).parents[1]) -> None:
    """Write the tables between the marks <!-- NAME --> and <!-- end NAME --> of README.md and docs/results.md."""
    for path in (root / "README.md", root / "docs" / "results.md"):
        text = path.read_text()
        for name, lines in blocks(results).items():
            begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
            if begin in text:
                before, _, rest = text.partition(begin)
                text = before + begin + "\n".join([*lines, end]) + rest.partition(end)[2]
        path.write_text(text)


def plot(out: Path, results: dict) -> None:
    """Draw the pairs of runs, centrality against the supervised score, and the scores during training."""
    from matplotlib.figure import Figure

    figure = Figure((13, 4), layout="constrained")
    pairs, choice, curves = figure.subplots(1, 3, width_ratios=(2, 3, 3))
    on, off = _pairs(results, "factor_vae")
    pairs.plot([0, 1], np.stack([off, on]), color="#0072B2", marker="o", alpha=0.7)
    pairs.set(xticks=[0, 1], xticklabels=["InfoGAN", "InfoGAN-CR"], ylabel="FactorVAE score", xlim=(-0.3, 1.3))
    pairs.set_title("each line is one trunk")
    ranking = json.loads((out / "selection" / "all-centrality" / "ranking.json").read_text())
    centrality = {Path(model["name"]).name: model["score"] for model in ranking["models"]}
    for (pool, runs), color in zip(results["pools"].items(), ("#0072B2", "#E69F00", "#009E73")):
        choice.scatter(
            [centrality[run] for run in runs],
            [results["scores"][run]["factor_vae"] for run in runs],
            label=pool,
            color=color,
        )
        for run in runs:
            curves.plot(*zip(*results["curves"][run]), color=color, alpha=0.6, linewidth=1)
    choice.set(xlabel="ModelCentrality, all models in one pool", ylabel="FactorVAE score")
    choice.legend()
    curves.set(xlabel="step", ylabel="FactorVAE score")
    figure.savefig(out / "evidence.png", dpi=110)


if __name__ == "__main__":
    main()
