"""One stage under way: how it starts from files, and how it is saved to files.

In: a config and what its run folder holds. Out: a `Stage`, its model under the engine; checkpoints and the
stage's result. Invariant: a stage starts from files alone, those of the stage before or of its own newest
checkpoint, so it makes no difference whether the process that wrote them is the same. Cost: every rank loads
the whole model into CPU memory before ZeRO takes its part; a save gathers the trained weights on rank 0.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asmtrain import checkpoint, dist
from asmtrain.attention import choose_attention
from asmtrain.checkpoint import CheckpointState, StageResult
from asmtrain.config import Lora, StageConfig, TrainConfig
from asmtrain.dist import World
from asmtrain.embedding import EmbeddingHead
from asmtrain.engine import Engine, accumulation
from asmtrain.errors import CheckpointError, ModelError
from asmtrain.examples import check_chat_template, tokenizer_texts
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
    result_names,
    set_trainable,
    write_weights,
)
from asmtrain.tokens import load_tokenizer, train_tokenizer
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

    @property
    def config(self) -> StageConfig:
        """The stage's own part of the config."""
        return self.run.stages[self.index]


def prepare_run(config: TrainConfig, world_size: int) -> None:
    """Claim the run folder; make its tokenizer and, for a new model, its first weights. On rank 0 alone."""
    for stage in config.stages:
        accumulation(stage, world_size)
        for part in stage.data:
            shard_paths(part.corpus, "train")
    checkpoint.claim(config.run, config)
    if not (config.run / "tokenizer").exists():
        with checkpoint.atomic_folder(config.run / "tokenizer") as folder:
            _run_tokenizer(config).save_pretrained(folder)
    if config.model.path is None:
        if not (config.run / "base").exists():
            with checkpoint.atomic_folder(config.run / "base") as folder:
                _write_new_model(config, folder)
    elif not checkpoint.stage_folders(config.run):
        check_model(config.model.path)


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
    assert config.tokenizer is not None
    assert config.model.shape is not None
    settings = config.tokenizer
    total = sum(s.num_functions for s in load_index(settings.corpus).shards if s.split == "train")
    every = max(1, total // settings.max_functions)
    print(f"learning a tokenizer from {-(-total // every):,} functions of {settings.corpus}", flush=True)
    tasks = {part.task for stage in config.stages for part in stage.data}
    texts = (
        text
        for number, record in enumerate(read_split(settings.corpus, "train"))
        if number % every == 0
        for text in tokenizer_texts(record, tasks)
    )
    return train_tokenizer(texts, vocab_size=config.model.shape.vocab_size)


def _write_new_model(config: TrainConfig, folder: Path) -> None:
    assert config.model.shape is not None
    tokenizer = load_tokenizer(config.run / "tokenizer")
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    positions = max(stage.context for stage in config.stages)
    model = new_model(
        llama_config(config.model.shape, max_positions=positions, **ids),
        dtype=config.model.dtype,
        seed=config.seed,
    )
    write_weights(folder, model, dict(model.named_parameters()))


def start_stage(config: TrainConfig, index: int, world: World, tokenizer: Any) -> tuple[Stage, int]:
    """Load a stage's model, from its newest checkpoint or the stage before, and put it under the engine."""
    corpora = {str(part.corpus): load_index(part.corpus).sha256() for part in config.stages[index].data}
    resume = dist.on_main(lambda: resume_point(config.run, index, corpora))
    torch.manual_seed(config.seed + index)  # the same new weights on every rank
    model, head, base = dist.main_first(
        lambda: _resumed_model(resume) if resume else _initial_model(config, index)
    )
    _check_vocabulary(model, tokenizer)
    settings = config.stages[index]
    set_trainable(model, settings.trainable, headless=settings.objective == "contrastive")
    if config.model.gradient_checkpointing:
        enable_recompute(model)
    if head is None:
        choose_attention(model, world.device, DTYPES[config.model.dtype])
    if config.model.compile_blocks:
        compile_blocks(model)
    module = TokenLossModel(model) if head is None else EmbeddingModel(model, head)
    engine = Engine(module, config, settings, world=world)
    stage = Stage(config, index, world, tokenizer, model, head, base, corpora, engine)
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


def _initial_model(config: TrainConfig, index: int) -> tuple[LanguageModel, EmbeddingHead | None, str]:
    """The model of a stage's first step, its new or inherited head, and what its adapter sits on."""
    dtype, trainable = config.model.dtype, config.stages[index].trainable
    head = None
    if index == 0:
        base = config.model.path or "base"
        model = load_model(config.model.path or str(config.run / "base"), dtype=dtype)
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
        if (before.dim, before.pooling) == (embedding.dim, embedding.pooling):
            return inherited
    head = EmbeddingHead(backbone(model).config.hidden_size, embedding.dim, pooling=embedding.pooling)
    return head.to(DTYPES[config.model.dtype])


# Saving


def _go_on(stage: Stage, folder: Path) -> int:
    """Take back this rank's state from a checkpoint; returns the steps that are done."""
    state = checkpoint.read_state(folder, world_size=stage.world.size)
    tensors = checkpoint.read_rank(folder, stage.world.rank)
    dist.set_random_state(tensors)
    stage.engine.load_optimizer_state(tensors)
    return state.step


def save_checkpoint(stage: Stage, step: int) -> None:
    """Write a checkpoint: every rank its own state, rank 0 the weights; it appears when all are done."""
    run, world = stage.run.run, stage.world
    folder = checkpoint.checkpoint_folder(run, stage.index, stage.config.name, step)
    draft = checkpoint.draft_of(folder)
    dist.on_main(lambda: checkpoint.new_draft(folder))
    checkpoint.write_rank(draft, world.rank, stage.engine.optimizer_state() | dist.random_state())
    tensors, head = _gather(stage)
    dist.barrier()

    def finish() -> None:
        result = _result(stage, step, None)
        with checkpoint.written_to(folder):
            checkpoint.write_result(draft / "weights", result, model=stage.model, tensors=tensors, head=head)
            checkpoint.write_state(draft, CheckpointState(step=step, world_size=world.size))
            checkpoint.publish(draft, folder)
        checkpoint.prune(run, stage.run.checkpoint.keep)

    dist.on_main(finish)


def save_result(stage: Stage, valid_loss: float | None) -> None:
    """Write the result that the next stage, or an export, starts from."""
    tensors, head = _gather(stage)

    def write() -> None:
        result = _result(stage, stage.config.steps, valid_loss)
        folder = checkpoint.stage_folder(stage.run.run, stage.index, result.name)
        with checkpoint.atomic_folder(folder) as draft:
            checkpoint.write_result(draft, result, model=stage.model, tensors=tensors, head=head)

    dist.on_main(write)


def _gather(stage: Stage) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a result keeps of the model and of the head, whole, on rank 0."""
    tensors = stage.engine.gather(stage.model, result_names(stage.model))
    if stage.head is None:
        return tensors, {}
    return tensors, stage.engine.gather(stage.head, [name for name, _ in stage.head.named_parameters()])


def _result(stage: Stage, step: int, valid_loss: float | None) -> StageResult:
    return StageResult(
        name=stage.config.name,
        index=stage.index,
        step=step,
        objective=stage.config.objective,
        trainable=stage.config.trainable,
        embedding=stage.config.embedding if stage.head is not None else None,
        dtype=stage.run.model.dtype,
        base=stage.base,
        corpora=stage.corpora,
        valid_loss=valid_loss,
    )
