#!/usr/bin/env bash
# Before (a checkout of d1e9672) and after (this tree), in turn, on one machine, with one Python:
#   measure.sh {fixed|startup|short} BEFORE PYTHON
set -uo pipefail
what=$1 python=$3
out=$(cd "$(dirname "$0")" && pwd)
declare -A tree=([before]=$(realpath "$2") [after]=$(cd "$out/../.." && pwd) [plain]=$(mktemp -d))
log() { echo "$(date +%T) $*" | tee -a "$out/measure.log"; }

fixed() { # SIDE ROUND [VARIABLE=VALUE ...]: a whole run of two trials
  local side=$1 round=$2 from=${tree[${1/preload/after}]} work began ended code load
  work=$(mktemp -d)
  load=$(cut -d' ' -f1 /proc/loadavg) began=$(date +%s.%N)
  (cd "$work" && env "${@:3}" PYTHONPATH="$from" "$python" -m vgg_search.run --dataset sample \
    --num-trials 2 --max-epochs 1 --champion-epochs 0 --name a >out 2>err)
  code=$? ended=$(date +%s.%N)
  cp "$work/runs/a/summary.json" "$out/fixed_${side}_$round.json"
  first=$(PYTHONPATH=$from "$python" -c "
from pathlib import Path
from vgg_search.study.record import read_trials, rows_of
print(min(row['time'] for t in read_trials(Path('$work/runs/a')) for row in rows_of(t)))")
  log "fixed $side $round: $(echo "$ended - $began" | bc) s, first row at $first s, exit $code, load $load"
  rm -rf "$work"
}

case $what in
fixed)
  # Variants: without the environment that makes Ray's processes usable by Tune, and with the two
  # undocumented variables that had Ray import a trial's needs at once and keep idle processes
  cp -r "${tree[after]}/vgg_search" "${tree[plain]}"
  sed -i 's/^WORKER_ENVIRONMENT = .*/WORKER_ENVIRONMENT = {}/' "${tree[plain]}/vgg_search/engine/connection.py"
  for round in 1 2 3 4; do
    fixed before $round
    fixed after $round
    fixed plain $round
    fixed preload $round RAY_preload_python_modules=torch,ray.tune,vgg_search.engine.worker \
      RAY_idle_worker_killing_time_threshold_ms=30000
  done ;;
startup)
  for round in 1 2; do
    for side in before after; do
      PYTHONPATH=${tree[$side]} "$python" "${tree[$side]}/experiments/bench_trials.py" startup \
        --out "$out/startup_${side}_$round" >"$out/startup_${side}_$round.log" 2>&1
      log "startup $side $round: exit $?"
    done
  done ;;
short)
  PYTHONPATH=${tree[after]} "$python" "${tree[after]}/experiments/bench_trials.py" short \
    --out "$out/short_after" >"$out/short_after.log" 2>&1
  log "short after: exit $?" ;;
esac
rm -rf "${tree[plain]}"
