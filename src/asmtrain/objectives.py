"""The objectives: a step's number in, the gradients of its loss left in the engine.

Invariant: the loss, and so its gradient, is that of all micro-batches of all ranks taken together: a mean
over tokens for `causal_lm`, over the answers' tokens for `sft`, over functions for `contrastive`, where every
function of another body cluster is a negative. It does not depend on how the step was cut into ranks and
micro-batches. Cost: one forward and backward pass a micro-batch. A contrastive step keeps the activations of
all its micro-batches; where the model recomputes activations, and at ZeRO 3, it keeps those of one at the
price of another forward pass.

Shapes: B functions of a micro-batch, N of a rank, M of all ranks, T tokens, D vector length; the two variants
of a function are the first dimension, 2.
"""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import nn

from asmtrain import dist, notice, samples
from asmtrain.config import EmbeddingConfig
from asmtrain.data import PairBatch, PairBatches, RowBatches, TokenCache, build_cache, to_device
from asmtrain.engine import Engine
from asmtrain.errors import ConfigError
from asmtrain.evaluation import Validation
from asmtrain.fitting import describe, report
from asmtrain.isolation import check_isolation
from asmtrain.losses import info_nce
from asmtrain.metrics import Evaluated
from asmtrain.mixture import Part, mixture
from asmtrain.rowlosses import Taken, causal_lm_backward, whole_losses
from asmtrain.stage import Stage
from corpus_builder.errors import EmptyCorpus
from corpus_builder.shards import atomic_output


class CausalLM:
    """Predict each token of packed rows, or of the answers in them, from those before it in its document.

    `data_s` is the time that this rank's last step waited for its batches.
    """

    def __init__(self, stage: Stage) -> None:
        """Tokenise and pack the training split; raises as `build_cache` and `RowBatches` do."""
        self._stage = stage
        self.data_s = 0.0
        self._parts = mixture(stage.run, stage.config)
        self._batches = _rows(stage, self._parts, [_cache(stage, part, "train") for part in self._parts])
        if stage.world.is_main:
            _report_examples(stage, "train", self._parts, self._batches.caches)

    def check(self, step: int) -> None:
        """Make sure that packed documents do not see each other; raises LeakError."""
        stage = self._stage
        batch = to_device(self._batches.step(step)[0], stage.world.device)
        stage.engine.train(False)
        check_isolation(
            lambda rows: whole_losses(stage.engine, rows, stage.share), batch, dtype=stage.run.model.dtype
        )
        stage.engine.train(True)

    def backward(self, step: int) -> Taken:
        """Leave one step's gradients in the engine."""
        stage = self._stage
        started = time.perf_counter()
        batches = [to_device(batch, stage.world.device) for batch in self._batches.step(step)]
        self.data_s = time.perf_counter() - started
        rows = self._batches.parts(step)
        return causal_lm_backward(stage.engine, batches, stage.share, parts=self._parts, parts_of_rows=rows)

    def keys(self, step: int) -> list[str]:
        """The functions that a step reads on all ranks."""
        return self._batches.keys(step)

    def evaluate(self) -> Evaluated | None:
        """The losses of `eval_rows` rows of the validation split, and samples; None where it has no function.

        Raises:
            Warned: Slurm's notice came.
        """
        if self._validation is None:
            return None
        stage = self._stage
        validation, asked = self._validation
        measured = validation.measure(stage.engine, stage.share)
        return replace(measured, samples=samples.write(stage.engine, asked, stage.tokenizer))

    @cached_property
    def _validation(self) -> tuple[Validation, list[samples.Asked]] | None:
        """The rows, of all parts that have some, and the documents that are gone on with."""
        stage, config = self._stage, self._stage.config
        caches = {}
        for part in self._parts:
            with suppress(EmptyCorpus):
                caches[part] = _cache(stage, part, stage.run.validation_split)
        try:
            rows = _rows(stage, list(caches), list(caches.values()))
        except EmptyCorpus:
            return None
        if stage.world.is_main:
            _report_examples(stage, stage.run.validation_split, list(caches), rows.caches)
        names = [part.name for part in caches]
        asked = samples.choose(rows.caches, names, context=config.context, count=config.samples)
        return Validation(rows, names, config.eval_rows), asked


class Contrastive:
    """Tell the two variants of a function from the other functions of the step; `data_s` as in `CausalLM`."""

    def __init__(self, stage: Stage, embedding: EmbeddingConfig) -> None:
        """Tokenise the training split; raises as `build_cache` and `PairBatches` do."""
        self._stage = stage
        self.data_s = 0.0
        self._embedding = embedding
        (self._part,) = mixture(stage.run, stage.config)
        self._batches = self._pairs(_cache(stage, self._part, "train"), embedding.functions_per_step)

    def check(self, step: int) -> None:
        """Nothing is packed here."""

    def backward(self, step: int) -> Taken:
        """Leave one step's gradients in the engine."""
        stage = self._stage
        started = time.perf_counter()
        batches = [to_device(batch, stage.world.device) for batch in self._batches.step(step)]
        self.data_s = time.perf_counter() - started
        recompute = stage.run.model.gradient_checkpointing
        return contrastive_backward(stage.engine, batches, self._embedding.temperature, recompute=recompute)

    def keys(self, step: int) -> list[str]:
        """The functions that a step reads on all ranks."""
        return self._batches.keys(step)

    def evaluate(self) -> Evaluated | None:
        """The loss over `eval_rows` functions of the validation split; None where it has too few.

        Raises:
            Warned: Slurm's notice came.
        """
        stage = self._stage
        try:
            cache = _cache(stage, self._part, stage.run.validation_split)
            available = len(self._pairs(cache, stage.world.size).functions)
        except (EmptyCorpus, ConfigError):
            return None
        wanted = min(stage.config.eval_rows, available) // stage.world.size * stage.world.size
        batches = [to_device(b, stage.world.device) for b in self._pairs(cache, wanted).step(0)]
        return Evaluated(contrastive_loss(stage.engine, batches, self._embedding.temperature))

    def _pairs(self, cache: TokenCache, functions_per_step: int) -> PairBatches:
        return PairBatches(
            cache,
            functions_per_step=functions_per_step,
            micro_rows=self._stage.config.micro_rows,
            max_tokens=self._embedding.max_tokens,
            seed=self._stage.run.seed,
            rank=self._stage.world.rank,
            world=self._stage.world.size,
        )


Objective: TypeAlias = CausalLM | Contrastive


def objective_of(stage: Stage) -> Objective:
    """What a stage trains for, over its corpora."""
    if stage.config.objective == "contrastive":
        assert stage.config.embedding is not None
        return Contrastive(stage, stage.config.embedding)
    return CausalLM(stage)


def _cache(stage: Stage, part: Part, split: str) -> TokenCache:
    world = stage.world
    return build_cache(
        part.data,
        split,
        stage.tokenizer,
        stage.run.run / "cache",
        rank=world.rank,
        world=world.size,
        barrier=lambda: notice.heed(world.device),
    )


def _rows(stage: Stage, parts: Sequence[Part], caches: Sequence[TokenCache]) -> RowBatches:
    """The rows of a mixture; raises EmptyCorpus where no part has any."""
    config = stage.config
    if not parts:
        raise EmptyCorpus(f"stage {config.name!r} has no text", remedy="give its corpora some functions")
    return RowBatches(
        caches,
        [part.weight for part in parts],
        context=config.context,
        rows_per_step=config.rows_per_step,
        micro_rows=config.micro_rows,
        seed=stage.run.seed,
        too_long=[part.too_long(config) for part in parts],
        rank=stage.world.rank // stage.share.size,
        world=stage.world.size // stage.share.size,
    )


def _report_examples(stage: Stage, split: str, parts: Sequence[Part], caches: Sequence[TokenCache]) -> None:
    """Print what the examples of each part are and which are too long; keep it beside the caches."""
    config, reports = stage.config, []
    for part, cache in zip(parts, caches, strict=True):
        if part.objective == "sft":
            data, figures = part.data, report(cache, config.context, config.too_long)
            print(f"{config.name}: {data.task} of {data.corpus}, {split}: {describe(figures)}", flush=True)
            reports.append({"corpus": str(data.corpus), "task": data.task, **figures})
    if reports:
        path = stage.run.run / "cache" / f"{config.name}-{split}-examples.json"
        with atomic_output(path) as stream:
            stream.write((json.dumps(reports, indent=1) + "\n").encode())


def contrastive_backward(
    engine: Engine, batches: Sequence[PairBatch], temperature: float, *, recompute: bool
) -> Taken:
    """Gradients of the symmetric InfoNCE over the functions of all ranks and micro-batches.

    The loss's gradient with respect to the vectors comes first, then each micro-batch's vectors carry their
    share of it into the model: negatives are all functions of the step. With `recompute` the vectors are
    encoded again for that, so that memory is that of one micro-batch (GradCache, Gao et al. 2021).
    """
    # With several forward passes before the backward ones, ZeRO 3 gives wrong gradients and says nothing.
    twice = len(batches) > 1 and (recompute or engine.zero_stage == 3)
    states, vectors = [], []
    for batch in batches:
        states.append(dist.random_state())
        with torch.no_grad() if twice else nullcontext():
            vectors.append(_encode(engine, batch))
    loss, gradients = _vector_gradients(engine, batches, [v.detach() for v in vectors], temperature)
    for number, batch in enumerate(batches):
        if twice:
            dist.set_random_state(states[number])  # the same dropout as the first time
        vectors_2BD = _encode(engine, batch) if twice else vectors[number]
        engine.backward((vectors_2BD.float() * gradients[number]).sum())
    read = sum(int(batch.left_mask_BT.sum() + batch.right_mask_BT.sum()) for batch in batches)
    places = sum(2 * len(batch.left_ids_BT) * _length(batch) for batch in batches)
    counts = dist.all_reduce_sum(torch.tensor([read, places], device=engine.world.device))
    return Taken(loss, int(counts[0]), int(counts[1]), {})


def contrastive_loss(engine: Engine, batches: Sequence[PairBatch], temperature: float) -> float:
    """The same loss, without gradients for the model."""
    vectors = []
    for batch in batches:
        notice.heed(engine.world.device)
        vectors.append(_encode(engine, batch))
    with torch.enable_grad():
        return _vector_gradients(engine, batches, vectors, temperature)[0]


def _encode(engine: Engine, batch: PairBatch) -> torch.Tensor:
    """Vectors of both sides, (2, B, D), in one forward pass: ZeRO 3 fetches each layer once."""
    length = _length(batch)
    left_ids, right_ids, left_mask, right_mask = (
        nn.functional.pad(side, (0, length - side.shape[1]))
        for side in (batch.left_ids_BT, batch.right_ids_BT, batch.left_mask_BT, batch.right_mask_BT)
    )
    vectors: torch.Tensor = engine(torch.cat([left_ids, right_ids]), torch.cat([left_mask, right_mask]))
    return vectors.view(2, len(left_ids), -1)


def _length(batch: PairBatch) -> int:
    return max(batch.left_ids_BT.shape[1], batch.right_ids_BT.shape[1])


def _vector_gradients(
    engine: Engine, batches: Sequence[PairBatch], vectors: Sequence[torch.Tensor], temperature: float
) -> tuple[float, list[torch.Tensor]]:
    """The loss over all ranks, and its gradient with respect to each micro-batch's own (2, B, D) vectors."""
    own_2ND = torch.cat(list(vectors), dim=1).float()
    left_MD, right_MD = (dist.all_gather_rows(side_ND).requires_grad_() for side_ND in own_2ND)
    clusters_M = dist.all_gather_rows(torch.cat([batch.clusters_B for batch in batches]))
    loss = info_nce(left_MD, right_MD, clusters_M, temperature=temperature)
    gradients_2MD = torch.stack(torch.autograd.grad(loss, (left_MD, right_MD)))
    num_own = own_2ND.shape[1]
    own_gradients = gradients_2MD.narrow(1, engine.world.rank * num_own, num_own)
    return float(loss.detach()), list(torch.split(own_gradients, [v.shape[1] for v in vectors], dim=1))
