#!/usr/bin/env bash
# Trains a config with the deepspeed launcher, one rank per GPU, or two ranks on a machine without any.
#   launch/train.sh configs/train/demo.yaml
#   RANKS=4 launch/train.sh ...           another number of ranks on this machine
#   HOSTFILE=hosts launch/train.sh ...    several machines over ssh; lines of "host slots=8"
# The same command goes on where a run stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
if [ "$gpus" = 0 ]; then
  cores=$(nproc)
  export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}"
fi
if [ -n "${HOSTFILE:-}" ]; then where=(--hostfile "$HOSTFILE"); else where=(--num_accelerators "$ranks"); fi

# Two runs on one machine must not meet: the port follows this shell's number.
exec deepspeed "${where[@]}" --master_port "${MASTER_PORT:-$((20000 + $$ % 20000))}" --log_level error \
  --module --no_local_rank asmtrain.cli train "$@"
