#!/bin/sh
# Pictures and videos of the published 3DConv-net of DF415.
# What is given behind goes to launch.py, and wins: --gpu 0, key=value.
cd "$(dirname "$0")/../.." || exit
exec "${PYTHON:-python}" launch.py --config custom/scaledreamer/configs/asd_sd_3dconv_net_100k.yaml --test \
  data.prompt_library=dreamfusion_415_prompt_library system.weights=pretrained/3d_checkpoints/DF415_3dconv_net.pth "$@"
