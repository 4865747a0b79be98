#!/bin/sh
# Triplane transformer with MVDream, trained on DL17k.
# What is given behind goes to launch.py, and wins: --gpu 0, key=value.
cd "$(dirname "$0")/../.." || exit
exec "${PYTHON:-python}" launch.py --config custom/scaledreamer/configs/asd_mv_triplane_transformer_10k.yaml --train \
  data.prompt_library=instant3d_17000_prompt_library "$@"
