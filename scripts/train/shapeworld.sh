#!/usr/bin/env bash
# Trains the networks of the miniature world from nothing, on one or two GPUs (or, slowly, on the CPU).
#
#   scripts/train/shapeworld.sh [--out DIR] [--minutes M] [--force] [STAGE...] [-- key=value...]
#
# Stages: vae, stable_diffusion, mvdream, richdreamer, scorer, student, student_longer, mvdream_longer,
# richdreamer_longer, student_finer, student_dots; `all` (the default) runs the first five in order, those that do not
# depend on each other side by side, over two GPUs where there are as many: vae, stable_diffusion and mvdream on the
# first, scorer and richdreamer on the second.
# A stage that is done (DIR/training/STAGE.json exists and says what it took) is skipped; one that was stopped goes on
# where it stopped. Runs are kept in outputs/, with --out in DIR/outputs/. --force starts each named stage anew.
# --minutes: each named stage is stopped after M minutes of this call, the student's after 8.5 if M is not given; call
# again until all is done. When all steps of the student are done, it goes to DIR/student.safetensors. student_longer
# goes on from it with less noise, however far it came, and takes its place. mvdream_longer and richdreamer_longer go on
# from these teachers' weights in DIR; student_finer goes on from student_longer with them, student_dots from
# student_finer with dotted captions more often.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=load/shapeworld runs=outputs minutes="" force="" stages=()
python=${PYTHON:-python}
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 runs=$2/outputs; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --force) force=yes; shift ;;
    --) shift; break ;;
    -*) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
    *) stages+=("$1"); shift ;;
  esac
done
given=("$@")

limited() { # MINUTES COMMAND...: no limit if MINUTES is empty; being stopped by it is no error
  local limit=${1:+timeout --signal=INT ${1}m} code=0
  $limit "${@:2}" || code=$?
  [ $code -eq 124 ] || return $code
}

train() {
  local record=$out/training/$1.json
  if [ -z "$force" ] && [ -f "$record" ]; then
    echo "$1 is done: $record"
    return
  fi
  [ -z "$force" ] || rm -rf "$record" "$runs/shapeworld/$1"
  limited "$minutes" "$python" launch.py --config "configs/shapeworld/$1.yaml" --train \
    "exp_root_dir=$runs" "system.out_dir=$out" ${given[@]+"${given[@]}"} || return
  [ -f "$record" ] || { echo "$1 is not done yet: give the command again" >&2; return 1; }
}

student() { # STAGE CONFIG [key=value...]
  local trial=$runs/shapeworld-student/$1 started=$SECONDS
  local world=(
    "data.conditions.text.pretrained_model_name_or_path=$out/stable_diffusion"
    "system.geometry.space_generator.pretrained_model_name_or_path=$out/stable_diffusion"
    "system.guidance.teachers.mvdream.path=$out/mvdream"
    "system.guidance.teachers.mvdream.vae_path=$out/stable_diffusion"
    "system.guidance.teachers.richdreamer.path=$out/richdreamer"
  )
  limited "${minutes:-8.5}" "$python" launch.py --config "configs/shapeworld/$2.yaml" --train "exp_root_dir=$runs" \
    name=shapeworld-student "tag=$1" use_timestamp=false resume=auto trainer.limit_test_batches=0 \
    "${world[@]}" "${@:3}" ${given[@]+"${given[@]}"}
  mkdir -p "$trial"
  echo $((SECONDS - started)) >>"$trial/seconds"
  "$python" scripts/train/pack_student.py "$trial" "$out"
}

gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
second() { # STAGE: on the second GPU, if there is one
  if [ "$gpus" -gt 1 ] && [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then CUDA_VISIBLE_DEVICES=1 train "$1"; else train "$1"; fi
}

all() { # fails if any stage does
  second scorer & local scorer=$! code=0
  { train vae && train stable_diffusion; } || code=$?
  if [ $code -eq 0 ]; then
    wait "$scorer" || code=$?
    second richdreamer & local richdreamer=$!
    train mvdream || code=$?
    wait "$richdreamer" || code=$?
  else
    wait "$scorer" || true
  fi
  return $code
}

third=system.guidance.teachers.stable_diffusion.path=$out/stable_diffusion # the third teacher of the first two students
for stage in "${stages[@]:-all}"; do
  case $stage in
    all) all ;;
    vae | stable_diffusion | mvdream | richdreamer | scorer | mvdream_longer | richdreamer_longer) train "$stage" ;;
    student) student student prd "$third" ;;
    student_longer)
      student student_longer prd_longer "$third" "system.weights=$runs/shapeworld-student/student/ckpts/last.ckpt"
      ;;
    student_finer) student student_finer prd_finer "system.weights=$runs/shapeworld-student/student_longer/ckpts/last.ckpt" ;;
    student_dots)
      "$python" -m custom.shapeworld.often "$runs/dots_prompt_library.json"
      student student_dots prd_dots "system.weights=$runs/shapeworld-student/student_finer/ckpts/last.ckpt" \
        "data.prompt_library_dir=$runs"
      ;;
    *)
      echo "unknown stage '$stage'; allowed: vae stable_diffusion mvdream richdreamer scorer student student_longer" \
        "mvdream_longer richdreamer_longer student_finer student_dots all" >&2
      exit 2
      ;;
  esac
done
