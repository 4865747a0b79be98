#!/bin/sh
# Pictures and videos of the published 3DConv-net of AT2520.
# What is given behind goes to launch.py, and wins: --gpu 0, key=value.
cd "$(dirname "$0")/../.." || exit
exec "${PYTHON:-python}" launch.py --config custom/scaledreamer/configs/asd_sd_3dconv_net_50k.yaml --test \
  data.prompt_library=att3d_2520_prompt_library system.weights=pretrained/3d_checkpoints/AT2520_3dconv_net.pth "$@"
