#!/usr/bin/env bash
# Trains on the machines of a SLURM job, which starts again where it stopped when its time is over.
#
#   sbatch [--nodes=N] [--gpus-per-node=G] [--time=T] [...] scripts/train/slurm.sh CONFIG TRIAL [key=value...]
#
# Submit it in the project's folder, which all machines see. TRIAL names the folder of the run: the same name goes on
# with the run. The processes of a machine are as many as its GPUs; PROCESSES=2 sets another number, such as for the CPU.
# RESTARTS: how often torchrun starts all processes again, from the newest valid checkpoint, when one of them has ended
# (3). PYTHON names the interpreter.
#
# Three minutes before its time is over the job lets the update under way end, saves it and is queued again. A job whose
# training fails, or that is cancelled, is not. SLURM itself queues it again when a machine fails.
#SBATCH --job-name=triplaneturbo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,/^#SBATCH/{/^#SBATCH/!p}' "$0" >&2
  exit 2
fi
config=$1 trial=$2
shift 2
if [ ! -f launch.py ]; then
  echo "slurm.sh: there is no launch.py in $PWD; submit the job in the project's folder" >&2
  exit 2
fi
processes=${PROCESSES:-${SLURM_GPUS_ON_NODE:?this job has no GPUs: give --gpus-per-node, or PROCESSES=N}}
machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${machines%%$'\n'*}
# What an update and a save may take after the signal; versions of torch that do not know it wait for 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
# Without it processes that are started again look for each other at their old addresses.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

out_of_time=""
# Signals all processes of the job but this one.
trap 'out_of_time=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$processes" --max-restarts="${RESTARTS:-3}" \
  --rdzv-backend=c10d --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id="$SLURM_JOB_ID" \
  launch.py --config "$config" --train "tag=$trial" use_timestamp=false resume=auto "$@" &
step=$! code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # a signal has ended the wait, not the training
  code=0
  wait "$step" || code=$?
done
if [ -n "$out_of_time" ] && [ "$code" -ne 0 ]; then
  echo "slurm.sh: the time is over; the job is queued again and goes on with resume=auto" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
