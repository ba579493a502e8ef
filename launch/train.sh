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
if [ "$gpus" = 0 ]; then export DS_ACCELERATOR=cpu; fi

if [ -n "${HOSTFILE:-}" ]; then
  if [ ! -r "$HOSTFILE" ]; then
    echo "error: cannot read the hostfile $HOSTFILE" >&2 # the launcher would train on this machine alone
    exit 2
  fi
  where=(--hostfile "$HOSTFILE")
  if [ -z "${DS_ENV_FILE:-}" ]; then
    # Over ssh the launcher takes along PYTHON* alone and what its own files name: these belong to ranks too.
    # The file is deleted at once and read through its descriptor, which lives as long as the launcher.
    settings=$(mktemp)
    cat ~/.deepspeed_env .deepspeed_env >"$settings" 2>/dev/null || true
    env | grep -E '^(NCCL|GLOO|TORCH|HF|OMP)_[A-Z0-9_]+=' >>"$settings" || true
    exec 9<"$settings"
    rm "$settings"
    export DS_ENV_FILE=/dev/fd/9
  fi
else
  ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
  where=(--num_accelerators "$ranks")
  if [ "$gpus" = 0 ]; then
    cores=$(nproc)
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}"
  fi
fi

# Two runs on one machine must not meet: the port follows this shell's number.
exec deepspeed "${where[@]}" --master_port "${MASTER_PORT:-$((20000 + $$ % 20000))}" --log_level error \
  --module --no_local_rank asmtrain.cli train "$@"
