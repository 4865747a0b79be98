#!/bin/sh
# 3DConv-net with Stable Diffusion, trained on DF415.
# What is given behind goes to launch.py, and wins: --gpu 0, key=value.
cd "$(dirname "$0")/../.." || exit
exec "${PYTHON:-python}" launch.py --config custom/scaledreamer/configs/asd_sd_3dconv_net_100k.yaml --train \
  data.prompt_library=dreamfusion_415_prompt_library "$@"
