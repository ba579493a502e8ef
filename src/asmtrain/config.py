"""The configuration of a training run, its only source of settings.

A run is a list of stages over one model. `load_train_config` reads one YAML file; what DeepSpeed needs is
derived from it by `engine.deepspeed_config`.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from asmtrain.embedding_config import DistillConfig, EmbeddingConfig, Positive
from corpus_builder.config import ConfigModel, Split, load_config

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DistillConfig",
    "DocumentTask",
    "EmbeddingConfig",
    "EngineConfig",
    "ExampleTask",
    "Full",
    "GuardConfig",
    "Lora",
    "ModelConfig",
    "OptimizerConfig",
    "Positive",
    "ShapeConfig",
    "StageConfig",
    "TokenizerConfig",
    "TrainConfig",
    "load_train_config",
]

Share = Annotated[float, Field(gt=0, lt=1)]
Dtype = Literal["fp32", "bf16"]
DocumentTask = Literal["completion", "retrieval", "events"]
"""Tasks that show a text."""
ExampleTask = Literal["c_to_asm", "asm_to_c", "transpile", "recompile"]
"""Tasks that show a prompt and ask for an answer: what `sft` learns."""


class ShapeConfig(ConfigModel):
    """A Llama's architecture, for a model that starts from random weights or for a dry run without any."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_layers: Annotated[int, Field(ge=0)]
    """0 leaves a bag of tokens, which is what `events` need."""
    num_heads: Positive
    num_kv_heads: Positive
    rope_theta: float = 10000.0
    tie_embeddings: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> "ShapeConfig":
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError("hidden_size must be a multiple of num_heads, and num_heads of num_kv_heads")
        return self


class ModelConfig(ConfigModel):
    """Where the weights come from: a Hugging Face folder or hub name (`path`), or random ones in `shape`."""

    path: str | None = None
    shape: ShapeConfig | None = None
    """Required without `path`; beside `path` it lets `--dry-run` work before the weights are there."""
    dtype: Dtype = "fp32"
    """Of the weights and the computation; `path` models keep it in their exports."""
    assembly_tokens: Annotated[int, Field(ge=0)] = 0
    """Up to so many tokens added to the vocabulary of `path`: mnemonics, registers and other pieces of
    assembly that shorten the functions of the first stage's corpus (or `tokenizer.corpus`) most. Every stage
    trains their rows, with LoRA too."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    compile_blocks: bool = False
    """Compile each layer (torch.compile): needs a C++ compiler or Triton; whether it pays is not measured."""
    chat_template: str | None = None
    """For data with `prompt: chat`: a Jinja template, or the path of a file that holds one, in place of the
    tokenizer's own. Exports carry it."""

    @field_validator("chat_template")
    @classmethod
    def _read_template(cls, template: str | None) -> str | None:
        if template is None or "{" in template:
            return template
        try:
            return Path(template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ValueError(
                "neither a Jinja template (it holds no `{`) nor a file that can be read"
            ) from None

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.path is None and self.shape is None:
            raise ValueError("give `path` (a Hugging Face model folder) or `shape` (a new model)")
        if self.path is None and self.assembly_tokens:
            raise ValueError(
                "`assembly_tokens` extends the vocabulary of `path`; a new model's is all assembly:"
                " set `shape.vocab_size`"
            )
        return self


class TokenizerConfig(ConfigModel):
    """How the tokenizer of a new model is trained; a model with `path` brings its own, and learns from here
    no more than its `assembly_tokens`."""

    corpus: Path
    """Corpus whose training split it learns from."""
    max_functions: Positive = 4000
    """Functions it learns from, evenly spread over the split."""


class DataConfig(ConfigModel):
    """One part of a stage's mixture: a corpus seen through a task's format."""

    corpus: Path
    task: DocumentTask | ExampleTask
    """`completion` shows clean assembly; `retrieval` shows it as a stripped binary would; `events` tells what
    that does in words that all instruction sets share (asmtrain/events.py), without their order.

    With an answer, for `sft`: `c_to_asm` shows the C source and asks for a variant; `asm_to_c` the reverse;
    `transpile` asks for the same compiler and level of another ISA, `recompile` for another -O level."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the stage's tokens (functions, if `contrastive`), relative to the other parts."""
    max_functions: Positive | None = None
    """Use this many functions of the split, evenly spread; all without it."""
    variants: tuple[str, ...] = ("*",)
    """Globs over variant names, such as `aarch64.*.o2`."""
    hide_numbers: bool = False
    """Show `N` for every number (`retrieval` and `events`), as the lane `masked` does: what is left is
    learnt better beside texts that show them."""
    answers: tuple[str, ...] = ("*",)
    """Globs over the variants that `transpile` and `recompile` ask for, among `variants`."""
    prompt: Literal["plain", "chat"] = "plain"
    """How a prompt and its answer are written: one after the other, or by the chat template."""

    @model_validator(mode="after")
    def _fits_task(self) -> "DataConfig":
        if self.prompt == "chat" and self.task not in get_args(ExampleTask):
            raise ValueError(f"`prompt: chat` needs a task with an answer, which {self.task!r} has not")
        if self.hide_numbers and self.task not in ("retrieval", "events"):
            raise ValueError(f"`hide_numbers` is for retrieval and events; {self.task!r} shows all")
        if self.answers != ("*",) and self.task not in ("transpile", "recompile"):
            raise ValueError(
                f"`answers` is for transpile and recompile; choose {self.task!r}'s by `variants`"
            )
        return self


class Full(ConfigModel):
    """Train every weight."""

    kind: Literal["full"]


class Lora(ConfigModel):
    """Train low-rank updates of the linear layers (Hu et al. 2021), and some modules in full."""

    kind: Literal["lora"]
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    """Scale updates by alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023), for high ranks."""
    dora: bool = False
    """Learn each weight row's length apart from its direction (DoRA, Liu et al. 2024); slower."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names that get an adapter; `all-linear` is every linear layer but the head."""
    unfreeze: tuple[Literal["lm_head", "embed_tokens"], ...] = ()
    """Modules trained in full beside the adapters."""


class OptimizerConfig(ConfigModel):
    """AdamW with warm-up, then cosine or constant."""

    lr: Annotated[float, Field(gt=0)]
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of `lr` that a cosine schedule ends at."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0


class StageConfig(ConfigModel):
    """One training phase: objective, data mixture, what is trainable, schedule."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    objective: Literal["causal_lm", "sft", "contrastive"]
    """`causal_lm` learns every token of a text, `sft` the answer to a prompt, `contrastive` vectors."""
    data: tuple[DataConfig, ...]
    """The mixture. Beside examples `sft` takes texts, of which it learns every token as `causal_lm` does."""
    replay: Mapping[str, Share] = {}
    """Earlier stages (`causal_lm`, `sft`) whose `data` is seen again, each with its share of the rows, as in
    `{pretrain: 0.1}`. The stage's own parts take the rest, by their weights."""
    trainable: Annotated[Full | Lora, Field(discriminator="kind")]
    optimizer: OptimizerConfig
    steps: Positive
    """Optimizer steps."""
    context: Positive = 1024
    """Tokens in a packed row (`causal_lm`, `sft`)."""
    too_long: Literal["drop", "cut"] = "drop"
    """What becomes of an example longer than `context` (`sft`): left out, or the end of its answer cut. One
    whose prompt alone fills a row is left out either way. Counted and named at the start."""
    rows_per_step: Positive = 16
    """Packed rows in a step over all ranks and micro-steps (`causal_lm`, `sft`)."""
    micro_rows: Positive = 8
    """Rows, or functions of a contrastive step in all their variants, in one forward pass of one rank."""
    embedding: EmbeddingConfig | None = None
    """Required by `contrastive`."""
    eval_rows: Annotated[int, Field(ge=0)] = 64
    """Rows (functions, if `contrastive`) of the validation split whose loss is measured; 0 for none."""
    eval_every_steps: Positive | None = None
    """How often it is measured; when the stage ends in any case, without this key only then."""
    samples: Annotated[int, Field(ge=0)] = 2
    """Validation texts that the model goes on with at each evaluation, shown in TensorBoard; 0 for none."""

    @model_validator(mode="after")
    def _fits_objective(self) -> "StageConfig":
        if self.objective == "contrastive" and self.embedding is None:
            raise ValueError("a contrastive stage needs an `embedding` group")
        texts, asked = get_args(DocumentTask), get_args(ExampleTask)
        tasks = [part.task for part in self.data]
        if self.objective == "sft" and not set(tasks) & set(asked):
            raise ValueError(
                f"objective 'sft' needs one of the tasks {', '.join(asked)}; got {', '.join(tasks)}"
            )
        for task in tasks:
            if self.objective != "sft" and task not in texts:
                raise ValueError(
                    f"objective {self.objective!r} takes the tasks {', '.join(texts)}; got {task!r}"
                )
        if "events" in tasks and self.objective != "contrastive":
            raise ValueError("task 'events' has no order to predict: it is for contrastive stages")
        if self.replay and self.objective == "contrastive":
            raise ValueError(
                "`replay` is for causal_lm and sft; name all corpora of a contrastive stage in `data`"
            )
        if sum(self.replay.values()) >= 1:
            total = sum(self.replay.values())
            raise ValueError(f"`replay` takes {total:g} of the rows; leave some to the stage's own `data`")
        return self


class EngineConfig(ConfigModel):
    """How DeepSpeed spreads the model over ranks."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    """Keep optimizer states in CPU memory."""
    sequence_parallel: Positive = 1
    """Neighbouring ranks that split the tokens of each packed row among them, for long contexts (`causal_lm`,
    `sft`); it divides the ranks, the contexts and the attention heads."""


class CheckpointConfig(ConfigModel):
    """When a run saves what it needs to go on."""

    every_steps: Positive = 100
    keep: Positive = 2
    """Newest checkpoints kept; a stage's result is always kept."""
    keep_best: bool = False
    """Keep each stage's checkpoint with the lowest validation loss as well."""


class GuardConfig(ConfigModel):
    """When a run ends by itself rather than go on in vain; may change when a run goes on."""

    loss_jump: Annotated[float, Field(gt=0)] | None = 3.0
    """Stop before a step whose loss is more than this above the median of the stage's last 50 losses (at
    least 10 of them); null for never. A loss or gradient norm that is not finite always stops the run."""
    hang_minutes: Annotated[float, Field(gt=0)] | None = 60.0
    """End the run when no rank has got on for so long, in steps, tokenising, evaluation or saving, and write
    each rank's Python stacks to RUN/hangs; null for never."""


class TrainConfig(ConfigModel):
    """One run: a model, its stages, its folder."""

    run: Path
    """Folder of checkpoints, stage results and TensorBoard events."""
    seed: int = 0
    model: ModelConfig
    tokenizer: TokenizerConfig | None = None
    """Required by a model without `path`, unless it reads `events`, whose vocabulary is fixed."""
    stages: tuple[StageConfig, ...]
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    validation_split: Split = "valid"
    deepspeed: Mapping[str, Any] = {}
    """For experts: merged last into the DeepSpeed dictionary."""

    @field_validator("stages")
    @classmethod
    def _stages_make_sense(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        names = [stage.name for stage in stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"at least one stage is needed, with unique names; got {names}")
        for before, after in itertools.pairwise(stages):
            both_lora = isinstance(before.trainable, Lora) and isinstance(after.trainable, Lora)
            if both_lora and before.trainable != after.trainable:
                raise ValueError(
                    f"stage {after.name!r} goes on with the adapter of {before.name!r}: "
                    "their `trainable` groups must be equal"
                )
        for number, stage in enumerate(stages):
            earlier = {item.name: item.objective for item in stages[:number]}
            for name in stage.replay:
                if earlier.get(name, "contrastive") == "contrastive":
                    usable = [key for key, objective in earlier.items() if objective != "contrastive"]
                    raise ValueError(
                        f"stage {stage.name!r} replays {name!r}, which is no causal_lm or sft stage "
                        f"before it: those are {', '.join(usable) or 'none'}"
                    )
        return stages

    @property
    def reads_events(self) -> bool:
        """Whether the run's texts are events."""
        return self.stages[0].data[0].task == "events"

    @model_validator(mode="after")
    def _one_vocabulary(self) -> "TrainConfig":
        tasks = {part.task for stage in self.stages for part in stage.data}
        if "events" in tasks and len(tasks) > 1:
            others = ", ".join(sorted(tasks - {"events"}))
            raise ValueError(f"task 'events' has a vocabulary of its own; this run also reads {others}")
        return self

    @model_validator(mode="after")
    def _rows_can_be_split(self) -> "TrainConfig":
        ranks = self.engine.sequence_parallel
        for stage in self.stages:
            if stage.objective != "contrastive" and stage.context % ranks:
                raise ValueError(
                    f"stage {stage.name!r}: engine.sequence_parallel is {ranks}, which does not divide its "
                    f"context of {stage.context}"
                )
        return self

    @model_validator(mode="after")
    def _new_model_has_tokenizer(self) -> "TrainConfig":
        if self.model.path is None and self.tokenizer is None and not self.reads_events:
            raise ValueError("a new model needs a `tokenizer` group")
        is_chat = any(part.prompt == "chat" for stage in self.stages for part in stage.data)
        if is_chat and self.model.path is None and self.model.chat_template is None:
            raise ValueError("`prompt: chat` needs `model.chat_template`: a new tokenizer has no template")
        return self


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training config; raises ConfigError listing every mistake."""
    return load_config(TrainConfig, path, overrides)
