#!/usr/bin/env bash
# Trains the networks of the miniature world from nothing, on one GPU (or, slowly, on the CPU).
#
#   scripts/train/shapeworld.sh [--out DIR] [--minutes M] [--force] [STAGE...] [-- key=value...]
#
# Stages: vae, stable_diffusion, mvdream, richdreamer, scorer; `all` (the default) runs them in order, those that do
# not depend on each other side by side: scorer and vae, stable_diffusion, mvdream and richdreamer.
# A stage that is done (DIR/training/STAGE.json exists and says what it took) is skipped; --force repeats it.
# --minutes: training time of each named stage in place of its configuration's, at most 9.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=load/shapeworld minutes="" force="" stages=()
python=${PYTHON:-python}
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --force) force=yes; shift ;;
    --) shift; break ;;
    -*) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
    *) stages+=("$1"); shift ;;
  esac
done
overrides=("system.out_dir=$out" ${minutes:+"system.minutes=$minutes"} "$@")

train() {
  if [ -z "$force" ] && [ -f "$out/training/$1.json" ]; then
    echo "$1 is done: $out/training/$1.json"
    return
  fi
  "$python" launch.py --config "configs/shapeworld/$1.yaml" --train "${overrides[@]}"
}

both() { # the second in the background; fails if either does
  train "$2" & local other=$!
  train "$1"
  wait "$other"
}

for stage in "${stages[@]:-all}"; do
  case $stage in
    all) both vae scorer; train stable_diffusion; both mvdream richdreamer ;;
    vae | stable_diffusion | mvdream | richdreamer | scorer) train "$stage" ;;
    *) echo "unknown stage '$stage'; allowed: vae stable_diffusion mvdream richdreamer scorer all" >&2; exit 2 ;;
  esac
done
