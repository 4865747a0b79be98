#!/usr/bin/env bash
# The evaluation of the paper: meshes of the 415 DreamFusion prompts, four views of each, CLIP score and R@1.
#
#   bash scripts/eval/dreamfusion.sh [--gpu 0,1] [--config YAML] [--weights FILE] [--out DIR] [--library NAME]
#                                    [--limit N] [--clip FOLDER] [-- key=value...]
#
# --gpu: meshes are spread over these GPUs; '' is the CPU; without it all GPUs, or the CPU if there is none.
# --limit: the first N prompts only, rounded up to a multiple of the number of GPUs.
# scripts/prepare/download_eval_only.py fetches what is needed. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."

config=configs/TriplaneTurbo_v1_acc-2.yaml weights=pretrained/triplane_turbo_sd_v1.pth out=outputs/dreamfusion
library=dreamfusion_415_prompt_library limit="" clip=pretrained/clip-vit-base-patch32
python=${PYTHON:-python}
while [ $# -gt 0 ]; do
  case $1 in
    --gpu) export CUDA_VISIBLE_DEVICES=$2; shift 2 ;;
    --config) config=$2; shift 2 ;;
    --weights) weights=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --library) library=$2; shift 2 ;;
    --limit) limit=$2; shift 2 ;;
    --clip) clip=$2; shift 2 ;;
    --) shift; break ;;
    *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
  esac
done

few=()
if [ -n "$limit" ]; then
  processes=$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')
  few=("trainer.limit_predict_batches=$(((limit + processes - 1) / processes))")
fi
"$python" evaluation/clipscore/compute.py --check --model "$clip"
mkdir -p "$out"
"$python" launch.py --config "$config" --export --out "$out/meshes" "system.weights=$weights" \
  "data.prompt_library=$library" system.exporter_type=multiprompt-mesh-exporter system.exporter.fmt=obj \
  ${few[@]+"${few[@]}"} "$@"
"$python" evaluation/mesh_visualize.py "$out/meshes" --save_dir "$out/views"
"$python" evaluation/clipscore/compute.py --result_dir "$out/views" --model "$clip" --json "$out/clip_scores.json"
