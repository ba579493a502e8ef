"""One stage under way, and how it starts from files; `saving` saves it.

In: a config and what its run folder holds. Out: a `Stage`, its model under the engine. Invariant: a stage
starts from files alone, those of the stage before or of its own newest checkpoint, so it makes no difference
whether the process that wrote them is the same. Cost: every rank loads the whole model into CPU memory before
ZeRO takes its part.
"""

import random
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from asmtrain import checkpoint, dist, notice, slices
from asmtrain.attention import choose_attention
from asmtrain.cache import TokenCache, build_cache
from asmtrain.config import Lora, StageConfig, TokenizerConfig, TrainConfig
from asmtrain.dist import World
from asmtrain.embedding import EmbeddingHead, new_head
from asmtrain.encoder import identity
from asmtrain.engine import Engine, accumulation, ranks_per_row
from asmtrain.errors import CheckpointError, ConfigError, ModelError
from asmtrain.events import EVENTS
from asmtrain.examples import check_chat_template, tokenizer_texts
from asmtrain.mixture import Part, mixture
from asmtrain.model import (
    DTYPES,
    EmbeddingModel,
    LanguageModel,
    TokenLossModel,
    attach_lora,
    backbone,
    check_model,
    compile_blocks,
    enable_recompute,
    is_adapted,
    llama_config,
    load_model,
    merge_lora,
    new_model,
    set_attention,
    set_trainable,
    write_weights,
)
from asmtrain.tokens import event_tokenizer, load_tokenizer, train_tokenizer
from asmtrain.ulysses import RowShare, row_share
from asmtrain.vocabulary import extend_tokenizer, num_ids, write_extended_base
from asmtrain.writer import Writer
from corpus_builder.shards import load_index, read_split, shard_paths


@dataclass(frozen=True)
class Stage:
    """One stage under way on this rank."""

    run: TrainConfig
    index: int
    world: World
    tokenizer: Any
    model: LanguageModel
    """The language model, with its adapter if it has one."""
    head: EmbeddingHead | None
    base: str
    """What an adapter sits on; see `StageResult.base`."""
    corpora: dict[str, str]
    """Corpus folder to its index's sha256."""
    engine: Engine
    share: RowShare
    """This rank's span of packed rows."""
    writer: Writer = field(default_factory=Writer)
    """Of its checkpoints."""

    @property
    def config(self) -> StageConfig:
        """The stage's own part of the config."""
        return self.run.stages[self.index]

    def cache(self, part: Part, split: str) -> TokenCache:
        """The tokens of a part of the mixture, made by all ranks together; raises as `build_cache` does."""
        return build_cache(
            part.data,
            split,
            self.tokenizer,
            self.run.run / "cache",
            rank=self.world.rank,
            world=self.world.size,
            barrier=lambda: notice.heed(self.world.device),
        )


def prepare_run(config: TrainConfig, world_size: int) -> None:
    """Claim the run folder; make its tokenizer and, for a new model, its first weights. On rank 0 alone."""
    for stage in config.stages:
        accumulation(config, stage, world_size)
        for part in stage.data:
            shard_paths(part.corpus, "train")
        if stage.embedding is not None and stage.embedding.distill is not None:
            identity(stage.embedding.distill.teacher)
    checkpoint.claim(config.run, config)
    if not (config.run / "tokenizer").exists():
        with checkpoint.atomic_folder(config.run / "tokenizer") as folder:
            _run_tokenizer(config).save_pretrained(folder)
            if config.model.assembly_tokens:
                _extend_tokenizer(config, folder)
    if config.model.path is not None and not checkpoint.stage_folders(config.run):
        check_model(config.model.path)
    if _own_base(config) and not (config.run / "base").exists():
        with checkpoint.atomic_folder(config.run / "base") as folder:
            _write_base(config, folder)


def _own_base(config: TrainConfig) -> bool:
    """Whether the run starts from weights in its own folder: random ones, or with an extended vocabulary."""
    return config.model.path is None or config.model.assembly_tokens > 0


def _write_base(config: TrainConfig, folder: Path) -> None:
    path, dtype = config.model.path, config.model.dtype
    if path is None:
        _write_new_model(config, folder)
    else:
        first = num_ids(load_tokenizer(path))
        write_extended_base(path, config.run / "tokenizer", folder, first=first, dtype=dtype)


def _run_tokenizer(config: TrainConfig) -> Any:
    """The tokenizer with the config's chat template, which is tried out where the run uses one."""
    tokenizer = _make_tokenizer(config)
    if config.model.chat_template is not None:
        tokenizer.chat_template = config.model.chat_template
    if any(part.prompt == "chat" for stage in config.stages for part in stage.data):
        check_chat_template(tokenizer)
    return tokenizer


def _make_tokenizer(config: TrainConfig) -> Any:
    """The model's own, or one for assembly learnt from the training split, in the formats the run reads."""
    if config.model.path is not None:
        return load_tokenizer(config.model.path)
    assert config.model.shape is not None
    if config.reads_events:
        return event_tokenizer()
    assert config.tokenizer is not None
    tasks = {part.task for stage in config.stages for part in stage.data}
    texts = _texts(config.tokenizer, tasks)
    return train_tokenizer(texts, vocab_size=config.model.shape.vocab_size)


def _extend_tokenizer(config: TrainConfig, folder: Path) -> None:
    """Add the assembly tokens, learnt from documents in the forms the run reads; C gets none."""
    settings = config.tokenizer or TokenizerConfig(corpus=config.stages[0].data[0].corpus)
    all_tasks = {part.task for stage in config.stages for part in stage.data}
    tasks = {"retrieval" if task == "retrieval" else "completion" for task in all_tasks}
    added = extend_tokenizer(folder, _texts(settings, tasks), num_tokens=config.model.assembly_tokens)
    print(f"the tokenizer of {config.model.path} has got {added:,} tokens of assembly", flush=True)


def _texts(settings: TokenizerConfig, tasks: Set[str]) -> Iterator[str]:
    """Texts of functions spread evenly over the training split."""
    total = sum(s.num_functions for s in load_index(settings.corpus).shards if s.split == "train")
    every = max(1, total // settings.max_functions)
    print(f"learning a tokenizer from {-(-total // every):,} functions of {settings.corpus}", flush=True)
    for number, record in enumerate(read_split(settings.corpus, "train")):
        if number % every == 0:
            yield from tokenizer_texts(record, tasks)


def _write_new_model(config: TrainConfig, folder: Path) -> None:
    assert config.model.shape is not None
    tokenizer = load_tokenizer(config.run / "tokenizer")
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    positions = max(stage.context for stage in config.stages)
    architecture = llama_config(config.model.shape, max_positions=positions, **ids)
    if config.reads_events:
        architecture.reads = EVENTS
    model = new_model(architecture, dtype=config.model.dtype, seed=config.seed)
    write_weights(folder, model, dict(model.named_parameters()))


def start_stage(config: TrainConfig, index: int, world: World, tokenizer: Any) -> tuple[Stage, int]:
    """Load a stage's model, from its newest checkpoint or the stage before, and put it under the engine."""
    folders = [part.data.corpus for part in mixture(config, config.stages[index])]
    corpora = {str(folder): load_index(folder).sha256() for folder in folders}
    resume = dist.on_main(lambda: resume_point(config.run, index, corpora))
    torch.manual_seed(config.seed + index)  # the same new weights on every rank
    model, head, base = dist.main_first(
        lambda: _resumed_model(resume) if resume else _initial_model(config, index)
    )
    _check_vocabulary(model, tokenizer)
    settings = config.stages[index]
    set_trainable(model, settings.trainable, headless=settings.objective == "contrastive")
    set_attention(backbone(model).config, settings.embedding if head is not None else None)
    if config.model.gradient_checkpointing:
        enable_recompute(model)
    sharing = ranks_per_row(config, settings)
    _check_heads(model, sharing)
    if head is None:
        choose_attention(model, world.device, DTYPES[config.model.dtype], splits_rows=sharing > 1)
    if config.model.compile_blocks:
        compile_blocks(model)
    module = TokenLossModel(model) if head is None else EmbeddingModel(model, head)
    engine = Engine(module, config, settings, world=world)
    share = row_share(world, sharing)
    stage = Stage(config, index, world, tokenizer, model, head, base, corpora, engine, share)
    torch.manual_seed((config.seed + index) * world.size + world.rank)
    return stage, _go_on(stage, resume) if resume else 0


def resume_point(run: Path, index: int, corpora: dict[str, str]) -> Path | None:
    """The checkpoint that a stage goes on from, if there is one. On rank 0 alone.

    Raises:
        CheckpointError: it was trained on a corpus that has changed since.
    """
    folder, problems = checkpoint.latest(run)
    for problem in problems:
        print(problem, flush=True)
    if folder is None:
        return None
    result = checkpoint.read_result(folder / "weights")
    if result.index != index:
        return None
    for corpus, sha256 in result.corpora.items():
        if corpora.get(corpus) != sha256:
            raise CheckpointError(
                f"corpus {corpus} is not the one that {folder} was trained on: its index has changed",
                remedy="bring that corpus back, or start over in another `run` folder",
            )
    return folder


def _resumed_model(checkpoint_folder: Path) -> tuple[LanguageModel, EmbeddingHead | None, str]:
    weights = checkpoint_folder / "weights"
    return *checkpoint.load_stage_result(weights), checkpoint.read_result(weights).base


def _check_vocabulary(model: LanguageModel, tokenizer: Any) -> None:
    vocab_size = backbone(model).config.vocab_size
    if len(tokenizer) > vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {vocab_size}",
            remedy="use the tokenizer that came with the model",
        )


def _check_heads(model: LanguageModel, sharing: int) -> None:
    heads = backbone(model).config.num_attention_heads
    if heads % sharing:
        raise ConfigError(
            f"engine.sequence_parallel is {sharing}, which does not divide the {heads} attention heads",
            remedy=f"use a divisor of {heads}",
        )


def _initial_model(config: TrainConfig, index: int) -> tuple[LanguageModel, EmbeddingHead | None, str]:
    """The model of a stage's first step, its new or inherited head, and what its adapter sits on."""
    dtype, trainable = config.model.dtype, config.stages[index].trainable
    head = None
    if index == 0:
        base = "base" if _own_base(config) else str(config.model.path)
        model = load_model(str(config.run / base) if base == "base" else base, dtype=dtype)
    else:
        before = checkpoint.stage_folders(config.run)[index - 1]
        model, head = checkpoint.load_stage_result(before)
        base = str(before.relative_to(config.run))
        if isinstance(config.stages[index - 1].trainable, Lora):
            if isinstance(trainable, Lora):
                base = checkpoint.read_result(before).base
            else:
                model = merge_lora(model)
    if isinstance(trainable, Lora) and not is_adapted(model):
        model = attach_lora(model, trainable, base=base)
    return model, _head(config, index, model, head), base


def _head(
    config: TrainConfig, index: int, model: LanguageModel, inherited: EmbeddingHead | None
) -> EmbeddingHead | None:
    """The embedding head of a contrastive stage: that of the stage before if it has the same form."""
    stage, embedding = config.stages[index], config.stages[index].embedding
    if stage.objective != "contrastive" or embedding is None:
        return None
    if inherited is not None:
        before = config.stages[index - 1].embedding
        assert before is not None
        if all(getattr(before, key) == getattr(embedding, key) for key in ("dim", "pooling", "members")):
            return inherited
    return new_head(backbone(model).config.hidden_size, embedding).to(DTYPES[config.model.dtype])


def _go_on(stage: Stage, folder: Path) -> int:
    """Take back the state from a checkpoint of any number of ranks; returns the steps that are done.

    Random numbers (dropout) belong to a rank. On as many ranks as before each goes on with its own; on
    another number they are seeded anew from seed, stage, step and rank, and are not those of an undisturbed
    run.
    """
    state, world = checkpoint.read_state(folder), stage.world
    ranks = sorted(range(state.world_size), key=lambda rank: rank != world.rank)  # its own file first
    paths = [checkpoint.rank_file(folder, rank) for rank in ranks]
    stage.engine.load_optimizer_state(paths)
    if state.world_size == world.size:
        dist.set_random_state(slices.random_state(paths[0]))
    else:
        told = f"{stage.run.seed} {stage.index} {state.step} {world.rank}"
        torch.manual_seed(random.Random(told).getrandbits(63))
    return state.step
