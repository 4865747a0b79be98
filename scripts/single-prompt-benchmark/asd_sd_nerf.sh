#!/bin/sh
# A density of one prompt, learned from Stable Diffusion.
# What is given behind goes to launch.py, and wins: --gpu 0, key=value.
cd "$(dirname "$0")/../.." || exit
exec "${PYTHON:-python}" launch.py --config custom/scaledreamer/configs/asd_sd_nerf.yaml --train \
  --prompt "a peacock with a crown" "$@"
