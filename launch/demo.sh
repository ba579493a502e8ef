#!/usr/bin/env bash
# The whole project on one machine, about a quarter of an hour on two cores. Each step reuses what is finished.
#   launch/demo.sh [FOLDER CORPUS_CONFIG TRAIN_CONFIG FUNCTION]    the configs write to FOLDER/corpus and /train
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
demo=${1:-runs/demo}
corpus_config=${2:-configs/corpus/demo.yaml}
train_config=${3:-configs/train/demo.yaml}
query=${4:-luaL_traceback}
step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
fresh() { [ -e "$1" ] && [ ! "$2" -nt "$1" ]; } # is $1 there and not older than $2?
mkdir -p "$demo"

step "1/6 Corpus: real C libraries through every compiler at every -O level, into shards"
corpus-builder build "$corpus_config"
corpus-builder stats "$demo"/corpus

step "2/6 Train: a small Llama from scratch, LoRA with its head unfrozen, then the embedding"
launch/train.sh "$train_config"

step "3/6 Export: merged weights, adapter, embedding model"
fresh "$demo"/export/embedding/provenance.json "$demo"/train/finished.json ||
  asmtrain export "$demo"/train --output "$demo"/export --probe

step "4/6 Evaluate: find functions of projects the model never saw, across levels, compilers and ISAs"
fresh "$demo"/eval/retrieval.json "$demo"/export/embedding/provenance.json ||
  asmtrain eval retrieval --model "$demo"/export/embedding --corpus "$demo"/corpus --output "$demo"/eval \
    --lanes 'XO O0O3 *' 'XC O2 *' 'XA O2 *' 'XA+XO *' 'XM *' # all lanes take twice as long

step "5/6 Search: index what gcc -O2 made; ask with what clang -O3 made of a function, as text and as an object"
{ fresh "$demo"/index/index.json "$demo"/export/embedding/provenance.json && asmtrain index info "$demo"/index; } ||
  asmtrain index build "$demo"/corpus --model "$demo"/export/embedding --output "$demo"/index \
    --variants '*.gcc*.o2' '*.zig*.o2'
corpus-builder show "$demo"/corpus "$query" --variants 'aarch64.[cz]*.o3' --assembly >"$demo/$query.s"
asmtrain index search "$demo"/index "$demo/$query.s"
if command -v aarch64-linux-gnu-as >/dev/null; then
  aarch64-linux-gnu-as "$demo/$query.s" -o "$demo/$query.o"
else
  python -m ziglang cc -target aarch64-linux-gnu -c "$demo/$query.s" -o "$demo/$query.o"
fi
asmtrain index search "$demo"/index "$demo/$query.o"

step "6/6 Done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
cat <<EOF
corpus       $demo/corpus          corpus-builder show $demo/corpus $query
training     $demo/train           .venv/bin/tensorboard --logdir $demo/train/tb
exports      $demo/export/{merged,adapter,embedding}
evaluation   $demo/eval/retrieval.json, $demo/eval/retrieval.png
index        $demo/index           .venv/bin/asmtrain index search $demo/index FILE; .venv/bin/asmtrain serve $demo/index
EOF
