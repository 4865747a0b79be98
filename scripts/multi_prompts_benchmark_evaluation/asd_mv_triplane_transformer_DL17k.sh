#!/bin/sh
# Pictures and videos of the published Triplane transformer of DL17k.
# What is given behind goes to launch.py, and wins: --gpu 0, key=value.
cd "$(dirname "$0")/../.." || exit
exec "${PYTHON:-python}" launch.py --config custom/scaledreamer/configs/asd_mv_triplane_transformer_10k.yaml --test \
  data.prompt_library=instant3d_17000_prompt_library system.weights=pretrained/3d_checkpoints/DL17k_triplane_transformer.pth "$@"
