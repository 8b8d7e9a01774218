#!/usr/bin/env bash
# Builds, checks and times all that uses the card within 8 minutes, or LIMIT seconds: bash benchmarks/gpu.sh OUT
# Writes tests.log and, of each benchmark file, its log and figures under OUT, and prints a short table last.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/gpu.sh OUT}
mkdir -p "$out"
rm -f "$out"/*.json
python=${PYTHON:-python}
limit=${LIMIT:-460}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/card.txt"
date -u +%F >> "$out/card.txt"
$python -m pip install -q --no-build-isolation --no-deps -e . 2>&1 | tail -n 3
$python -c "import crgan.train, crgan.select, pytest_benchmark" ||
    { echo "a package is missing (above): install its wheel first, as --no-deps leaves this machine's as they are"; exit 1; }

echo "== tests on the card, after ${SECONDS} s"
$python -c "import xdist" 2> /dev/null && workers="-n 8" || workers=""
left=$((limit - SECONDS < 200 ? limit - SECONDS : 200))
timeout -s INT -k 10 $left $python -m pytest -q $workers --continue-on-collection-errors -p no:cacheprovider -m gpu tests \
    > "$out/tests.log" 2>&1 || failed=1
tail -n 5 "$out/tests.log"

# Each file by itself, as one that is interrupted may write no figures. Those that matter most come first.
for name in group_votes training_step contrastive_loss spectral_norm traversal_pairs selection render; do
    left=$((limit - SECONDS))
    [ $left -gt 5 ] || { echo "== no time for $name"; failed=1; continue; }
    echo "== $name, after ${SECONDS} s"
    timeout -s INT -k 5 $left $python -m pytest --benchmark-only -q -s -p no:cacheprovider --benchmark-max-time=0.3 \
        "benchmarks/bench_$name.py" --benchmark-json="$out/$name.json" > "$out/$name.log" 2>&1 || failed=1
done

$python - "$out" <<'TABLE'
import json, pathlib, sys

for file in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    try:
        rows = json.loads(file.read_text())["benchmarks"]
    except ValueError:
        print(f"{file.stem}: interrupted, see {file.with_suffix('.log')}")
        continue
    for row in rows:
        extra = "  ".join(f"{k}={v}" for k, v in row["extra_info"].items() if not isinstance(v, (dict, list)))
        print(f"{row['name'][:70]:70} {row['stats']['median'] * 1e3:10.4f} ms  {extra[:110]}")
TABLE
echo "== done after ${SECONDS} s"
exit "${failed:-0}"
