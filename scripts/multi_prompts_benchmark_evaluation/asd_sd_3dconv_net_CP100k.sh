#!/bin/sh
# Pictures and videos of the published 3DConv-net of CP100k.
# What is given behind goes to launch.py, and wins: --gpu 0, key=value.
cd "$(dirname "$0")/../.." || exit
exec "${PYTHON:-python}" launch.py --config custom/scaledreamer/configs/asd_sd_3dconv_net_300k.yaml --test \
  data.prompt_library=cap3d_100k_prompt_library system.weights=pretrained/3d_checkpoints/CP100k_3dconv_net.pth "$@"
