#!/usr/bin/env bash
# Everything that needs a CUDA card, in two parts that can run separately. Run from a checkout.
#
#   bash benchmarks/gpu.sh OUT check    # 4 minutes: build, GPU tests, op benchmarks, the training step, four runs at once
#   bash benchmarks/gpu.sh OUT paper    # 9 minutes: the paper's dSprites preset, continued from OUT/paper or $FROM
#
# `check` writes tests.log and, for each benchmark file, its log and figures, and prints a short table last.
# `paper` packs the run folder as OUT/paper.tar.gz; give it back as FROM to continue. LIMIT sets the seconds of a part.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: bash benchmarks/gpu.sh OUT check|paper}" && cd "$1" && pwd)
part=${2:-check}
python=${PYTHON:-python}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/card.txt"
date -u +%F >> "$out/card.txt"
$python -m pip install -q --no-build-isolation --no-deps -e . 2>&1 | tail -n 3
$python -c "import crgan.train, crgan.select, pytest_benchmark" ||
    { echo "a package is missing (above): install its wheel first, as --no-deps leaves this machine's as they are"; exit 1; }

if [ "$part" = paper ]; then
    limit=${LIMIT:-520}
    run=$out/paper
    [ -z "${FROM:-}" ] || [ -d "$run" ] || { mkdir -p "$run" && tar -xzf "$FROM" -C "$run" --strip-components 1; }
    # SIGTERM at the limit: the run saves and ends.
    timeout -s TERM -k 20 $((limit - SECONDS)) $python -m crgan.train dsprites --precision bfloat16 \
        --checkpoint-every 20000 --eval-every 20000 --out "$run" > "$out/paper.log" 2>&1 || true
    tail -n 3 "$out/paper.log"
    tar -czf "$out/paper.tar.gz" -C "$out" --exclude='events.*' paper
    if [ $((limit - SECONDS)) -gt 120 ]; then  # time left: pairs with and without the regularizer, from one trunk each
        for seed in 0 1 2 3; do
            timeout -s TERM -k 20 $((limit - SECONDS)) $python -m crgan.train dsprites-fast --steps 40000 \
                --cr-start 20000 --seed $seed --out "$out/fast-on-$seed" >> "$out/fast.log" 2>&1 || break
            timeout -s TERM -k 20 $((limit - SECONDS)) $python -m crgan.train dsprites-fast --steps 40000 \
                --cr-start 20000 --seed $seed --cr-weight 0 --from "$out/fast-on-$seed" --out "$out/fast-off-$seed" \
                >> "$out/fast.log" 2>&1 || break
        done
        tar -czf "$out/fast.tar.gz" -C "$out" --exclude='events.*' --exclude=checkpoint $(cd "$out" && ls -d fast-*-*)
    fi
    echo "== done after ${SECONDS} s"
    exit 0
fi

limit=${LIMIT:-230}
rm -f "$out"/*.json
echo "== tests on the card, after ${SECONDS} s"
$python -c "import xdist" 2> /dev/null && workers="-n 8" || workers=""
timeout -s INT -k 10 100 $python -m pytest -q $workers --continue-on-collection-errors -p no:cacheprovider -m gpu tests \
    > "$out/tests.log" 2>&1 || failed=1
tail -n 5 "$out/tests.log"

# Each file by itself, as one that is interrupted may write no figures. Those that matter most come first.
for name in training_step group_votes ops render; do
    left=$((limit - SECONDS - 40))
    [ $left -gt 5 ] || { echo "== no time for $name"; failed=1; continue; }
    echo "== $name, after ${SECONDS} s"
    timeout -s INT -k 5 $left $python -m pytest --benchmark-only -q -s -p no:cacheprovider --benchmark-max-time=0.3 \
        "benchmarks/bench_$name.py" --benchmark-json="$out/$name.json" > "$out/$name.log" 2>&1 || failed=1
done

echo "== four runs share the card, after ${SECONDS} s"
begin=$SECONDS
timeout -s INT -k 10 60 $python -m crgan.sweep quick --seeds 0:4 --steps 2000 --jobs 4 --out "$out/pool" > "$out/pool.log" 2>&1 ||
    failed=1
echo "four runs of 2,000 steps: $((SECONDS - begin)) s" | tee -a "$out/pool.log"

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
