#!/usr/bin/env bash
# Builds a corpus on a Ray cluster that is up already, or on this machine alone.
#   launch/corpus.sh configs/corpus/demo.yaml                       this machine
#   RAY_ADDRESS=head:6379 launch/corpus.sh configs/corpus/demo.yaml  a cluster
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
exec corpus-builder build "$@" ${RAY_ADDRESS:+--address "$RAY_ADDRESS"}
