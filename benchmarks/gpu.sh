#!/usr/bin/env bash
# Builds, checks and times everything on a CUDA machine within 8 minutes, or LIMIT seconds: bash benchmarks/gpu.sh OUT
# Writes tests.log and benchmarks.json under OUT and prints a short table last.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/gpu.sh OUT}
mkdir -p "$out"
python=${PYTHON:-python}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/card.txt"
date -u +%F >> "$out/card.txt"
$python -m pip install -q --no-build-isolation --no-deps -e . 2>&1 | tail -n 3
$python -c "import crgan.train, crgan.select, pytest_benchmark" ||
    { echo "a package is missing (above): install its wheel first, as --no-deps leaves this machine's as they are"; exit 1; }

echo "== tests on the card, after ${SECONDS} s"
$python -c "import xdist" 2> /dev/null && workers="-n 8" || workers=""
timeout -s INT -k 10 200 $python -m pytest -q $workers --continue-on-collection-errors -p no:cacheprovider -m gpu tests \
    > "$out/tests.log" 2>&1 || failed=1
tail -n 5 "$out/tests.log"

echo "== benchmarks, after ${SECONDS} s"
# An interrupt leaves the figures of those that are done.
timeout -s INT -k 10 $((${LIMIT:-460} - SECONDS)) $python -m pytest --benchmark-only -q -s -p no:cacheprovider \
    --continue-on-collection-errors --benchmark-max-time=0.3 \
    benchmarks/bench_{training_step,vote_table,contrastive_loss,spectral_norm,traversal_pairs,selection,render}.py \
    --benchmark-json="$out/benchmarks.json" > "$out/benchmarks.log" 2>&1 || failed=1
[ -s "$out/benchmarks.json" ] || { tail -n 20 "$out/benchmarks.log"; exit 1; }

$python - "$out/benchmarks.json" <<'TABLE'
import json, sys

for row in sorted(json.load(open(sys.argv[1]))["benchmarks"], key=lambda row: (row["group"], row["name"])):
    extra = "  ".join(f"{k}={v}" for k, v in row["extra_info"].items() if not isinstance(v, (dict, list)))
    print(f"{row['name'][:70]:70} {row['stats']['median'] * 1e3:10.4f} ms  {extra[:110]}")
TABLE
echo "== done after ${SECONDS} s"
exit "${failed:-0}"
