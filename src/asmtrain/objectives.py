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
from contextlib import nullcontext
from typing import TypeAlias

import torch
from torch import nn

from asmtrain import dist
from asmtrain.attention import document_lengths
from asmtrain.config import EmbeddingConfig
from asmtrain.data import PairBatch, PairBatches, RowBatch, RowBatches, TokenCache, build_cache, to_device
from asmtrain.engine import Engine
from asmtrain.errors import ConfigError
from asmtrain.fitting import describe, report
from asmtrain.isolation import check_isolation
from asmtrain.losses import IGNORE, info_nce, next_tokens, num_predicted
from asmtrain.stage import Stage
from asmtrain.ulysses import WHOLE, RowShare
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
        self._is_sft = stage.config.objective == "sft"
        self._batches = self._rows("train")

    def check(self, step: int) -> None:
        """Make sure that packed documents do not see each other; raises LeakError."""
        stage = self._stage
        batch = to_device(self._batches.step(step)[0], stage.world.device)
        stage.engine.train(False)
        check_isolation(
            lambda rows: _whole_losses(stage.engine, rows, stage.share), batch, dtype=stage.run.model.dtype
        )
        stage.engine.train(True)

    def backward(self, step: int) -> tuple[float, int]:
        """Leave one step's gradients in the engine; returns its loss and the tokens read, of all ranks."""
        stage = self._stage
        started = time.perf_counter()
        batches = [to_device(batch, stage.world.device) for batch in self._batches.step(step)]
        self.data_s = time.perf_counter() - started
        return causal_lm_backward(stage.engine, batches, stage.share)

    def keys(self, step: int) -> list[str]:
        """The functions that a step reads on all ranks."""
        return self._batches.keys(step)

    def valid_loss(self) -> float | None:
        """The loss over `eval_rows` rows of the validation split; None where it has no function."""
        stage = self._stage
        try:
            rows = self._rows(stage.run.validation_split)
        except EmptyCorpus:
            return None
        stage.engine.train(False)
        batches = [to_device(batch, stage.world.device) for batch in rows.evaluation(stage.config.eval_rows)]
        with torch.no_grad():
            return causal_lm_loss(stage.engine, batches, stage.share)

    def _rows(self, split: str) -> RowBatches:
        config = self._stage.config
        caches = _caches(self._stage, split)
        if self._is_sft and self._stage.world.is_main:
            _report_examples(self._stage, split, caches)
        return RowBatches(
            caches,
            [part.weight for part in config.data],
            context=config.context,
            rows_per_step=config.rows_per_step,
            micro_rows=config.micro_rows,
            seed=self._stage.run.seed,
            too_long=config.too_long if self._is_sft else "split",
            rank=self._stage.world.rank // self._stage.share.size,
            world=self._stage.world.size // self._stage.share.size,
        )


class Contrastive:
    """Tell the two variants of a function from the other functions of the step; `data_s` as in `CausalLM`."""

    def __init__(self, stage: Stage, embedding: EmbeddingConfig) -> None:
        """Tokenise the training split; raises as `build_cache` and `PairBatches` do."""
        self._stage = stage
        self.data_s = 0.0
        self._embedding = embedding
        self._batches = self._pairs(_caches(stage, "train")[0], embedding.functions_per_step)

    def check(self, step: int) -> None:
        """Nothing is packed here."""

    def backward(self, step: int) -> tuple[float, int]:
        """Leave one step's gradients in the engine; returns its loss and the tokens read, of all ranks."""
        stage = self._stage
        started = time.perf_counter()
        batches = [to_device(batch, stage.world.device) for batch in self._batches.step(step)]
        self.data_s = time.perf_counter() - started
        recompute = stage.run.model.gradient_checkpointing
        return contrastive_backward(stage.engine, batches, self._embedding.temperature, recompute=recompute)

    def keys(self, step: int) -> list[str]:
        """The functions that a step reads on all ranks."""
        return self._batches.keys(step)

    def valid_loss(self) -> float | None:
        """The loss over `eval_rows` functions of the validation split; None where it has too few."""
        stage = self._stage
        try:
            cache = _caches(stage, stage.run.validation_split)[0]
            available = len(self._pairs(cache, stage.world.size).functions)
        except (EmptyCorpus, ConfigError):
            return None
        wanted = min(stage.config.eval_rows, available) // stage.world.size * stage.world.size
        batches = [to_device(b, stage.world.device) for b in self._pairs(cache, wanted).step(0)]
        stage.engine.train(False)
        with torch.no_grad():
            return contrastive_loss(stage.engine, batches, self._embedding.temperature)

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


def _caches(stage: Stage, split: str) -> list[TokenCache]:
    world, folder = stage.world, stage.run.run / "cache"
    return [
        build_cache(
            part, split, stage.tokenizer, folder, rank=world.rank, world=world.size, barrier=dist.barrier
        )
        for part in stage.config.data
    ]


def _report_examples(stage: Stage, split: str, caches: Sequence[TokenCache]) -> None:
    """Print what each part's examples are and which are too long; keep it beside the caches."""
    config = stage.config
    parts = []
    for part, cache in zip(config.data, caches, strict=True):
        figures = report(cache, config.context, config.too_long)
        print(f"{config.name}: {part.task} of {part.corpus}, {split}: {describe(figures)}", flush=True)
        parts.append({"corpus": str(part.corpus), "task": part.task, **figures})
    path = stage.run.run / "cache" / f"{config.name}-{split}-examples.json"
    with atomic_output(path) as stream:
        stream.write((json.dumps(parts, indent=1) + "\n").encode())


def causal_lm_backward(
    engine: Engine, batches: Sequence[RowBatch], share: RowShare = WHOLE
) -> tuple[float, int]:
    """Gradients of the mean cross entropy over the predicted tokens of all ranks and micro-batches.

    Ranks that share rows are given the same batches; returns the loss and the tokens read.
    """
    predicted, read = _counts(engine, batches, share)
    loss = torch.zeros((), device=engine.world.device)
    for batch in batches:
        part = _losses(engine, batch, share).sum() / max(predicted, 1)
        engine.backward(part)
        loss += part.detach()
    return float(dist.all_reduce_sum(loss)), read


def causal_lm_loss(engine: Engine, batches: Sequence[RowBatch], share: RowShare = WHOLE) -> float:
    """The same mean, without gradients."""
    total = torch.zeros((), device=engine.world.device)
    for batch in batches:
        total += _losses(engine, batch, share).sum()
    return float(dist.all_reduce_sum(total)) / max(_counts(engine, batches, share)[0], 1)


def _counts(engine: Engine, batches: Sequence[RowBatch], share: RowShare) -> tuple[int, int]:
    """Tokens that the batches of all ranks predict, and tokens in them; shared rows count once."""
    predicted = sum(num_predicted(batch.labels_BT) for batch in batches)
    read = sum(int((batch.document_ids_BT >= 0).sum()) for batch in batches)
    counts = dist.all_reduce_sum(torch.tensor([predicted, read], device=engine.world.device))
    return int(counts[0]) // share.size, int(counts[1]) // share.size


def _losses(engine: Engine, batch: RowBatch, share: RowShare) -> torch.Tensor:
    """The losses of this rank's span of the rows, (B, T / ranks that share them)."""
    sides = (batch.ids_BT, batch.position_ids_BT, next_tokens(batch.labels_BT))
    lengths = document_lengths(batch.document_ids_BT)
    losses_BS: torch.Tensor = engine(*(share.part(side_BT) for side_BT in sides), lengths, share)
    return losses_BS


def _whole_losses(engine: Engine, batch: RowBatch, share: RowShare) -> torch.Tensor:
    """The losses of rows of any length, whole on every rank that shares them."""
    fillings = {"ids_BT": 0, "position_ids_BT": 0, "labels_BT": IGNORE, "document_ids_BT": -1}
    padded = RowBatch(**{name: share.pad(getattr(batch, name), value) for name, value in fillings.items()})
    return share.whole(_losses(engine, padded, share))[:, : batch.ids_BT.shape[1]]


def contrastive_backward(
    engine: Engine, batches: Sequence[PairBatch], temperature: float, *, recompute: bool
) -> tuple[float, int]:
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
    return loss, int(dist.all_reduce_sum(torch.tensor(read, device=engine.world.device)))


def contrastive_loss(engine: Engine, batches: Sequence[PairBatch], temperature: float) -> float:
    """The same loss, without gradients for the model."""
    vectors = [_encode(engine, batch) for batch in batches]
    with torch.enable_grad():
        return _vector_gradients(engine, batches, vectors, temperature)[0]


def _encode(engine: Engine, batch: PairBatch) -> torch.Tensor:
    """Vectors of both sides, (2, B, D), in one forward pass: ZeRO 3 fetches each layer once."""
    length = max(batch.left_ids_BT.shape[1], batch.right_ids_BT.shape[1])
    left_ids, right_ids, left_mask, right_mask = (
        nn.functional.pad(side, (0, length - side.shape[1]))
        for side in (batch.left_ids_BT, batch.right_ids_BT, batch.left_mask_BT, batch.right_mask_BT)
    )
    vectors: torch.Tensor = engine(torch.cat([left_ids, right_ids]), torch.cat([left_mask, right_mask]))
    return vectors.view(2, len(left_ids), -1)


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
