#!/bin/sh
# Pictures and videos of the published Hyper-iNGP of MG15.
# What is given behind goes to launch.py, and wins: --gpu 0, key=value.
cd "$(dirname "$0")/../.." || exit
exec "${PYTHON:-python}" launch.py --config custom/scaledreamer/configs/asd_sd_hyper_iNGP_50k.yaml --test \
  data.prompt_library=magic3d_15_prompt_library system.weights=pretrained/3d_checkpoints/MG15_hyper_iNGP.pth "$@"
