#!/usr/bin/env bash
# Builds, checks and times everything on a CUDA machine within 8 minutes: bash benchmarks/gpu.sh OUT
# Writes tests.log and benchmarks.json under OUT and prints a short table last.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/gpu.sh OUT}
mkdir -p "$out"
python=${PYTHON:-python}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/card.txt"
date -u +%F >> "$out/card.txt"
$python -m pip install -q --no-build-isolation --no-deps -e . 2>&1 | tail -n 3

echo "== tests on the card"
timeout 200 $python -m pytest -q -p no:cacheprovider -m gpu tests 2>&1 | tee "$out/tests.log" | tail -n 15 || failed=1

echo "== benchmarks"
timeout 260 $python -m pytest benchmarks/ --benchmark-only -q -p no:cacheprovider \
    --benchmark-json="$out/benchmarks.json" > "$out/benchmarks.log" 2>&1 || failed=1

$python - "$out/benchmarks.json" <<'TABLE'
import json, sys

for row in sorted(json.load(open(sys.argv[1]))["benchmarks"], key=lambda row: (row["group"], row["name"])):
    extra = "  ".join(f"{k}={v}" for k, v in row["extra_info"].items() if not isinstance(v, (dict, list)))
    print(f"{row['name'][:70]:70} {row['stats']['median'] * 1e3:10.4f} ms  {extra[:110]}")
TABLE
exit "${failed:-0}"
