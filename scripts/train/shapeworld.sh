#!/usr/bin/env bash
# Trains the networks of the miniature world from nothing, on one GPU (or, slowly, on the CPU).
#
#   scripts/train/shapeworld.sh [--out DIR] [--minutes M] [--force] [STAGE...] [-- key=value...]
#
# Stages: vae, stable_diffusion, mvdream, richdreamer, scorer, student; `all` (the default) runs the first five in
# order, those that do not depend on each other side by side: scorer and vae, stable_diffusion, mvdream and richdreamer.
# A stage that is done (DIR/training/STAGE.json exists and says what it took) is skipped; --force repeats it.
# --minutes: training time of each named stage in place of its configuration's, at most 9.
# The student takes longer: each call trains it for M minutes (8.5 if not given) and goes on where the last one
# stopped; when all steps are done, it goes to DIR/student.safetensors.
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
given=("$@")
overrides=("system.out_dir=$out" ${minutes:+"system.minutes=$minutes"} "$@")

train() {
  if [ -z "$force" ] && [ -f "$out/training/$1.json" ]; then
    echo "$1 is done: $out/training/$1.json"
    return
  fi
  "$python" launch.py --config "configs/shapeworld/$1.yaml" --train "${overrides[@]}"
}

student() {
  local trial=outputs/shapeworld-student/student started=$SECONDS code=0
  timeout --signal=INT "${minutes:-8.5}m" "$python" launch.py --config configs/shapeworld/prd.yaml --train \
    name=shapeworld-student tag=student use_timestamp=false resume=auto trainer.limit_test_batches=0 "$@" || code=$?
  mkdir -p "$trial"
  echo $((SECONDS - started)) >>"$trial/seconds"
  [ $code -eq 0 ] || [ $code -eq 124 ] || exit $code
  "$python" scripts/train/pack_student.py "$trial" "$out"
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
    student) student ${given[@]+"${given[@]}"} ;;
    *) echo "unknown stage '$stage'; allowed: vae stable_diffusion mvdream richdreamer scorer student all" >&2; exit 2 ;;
  esac
done
