"""The contrastive objective: tell the variants of a function from the other functions of the step.

Invariant: the loss, and so its gradient, is that of all functions of all ranks and micro-batches taken
together, as if they were one batch; every function of another body cluster is a negative (of each of several
`members`: every one of its share). Every rank gathers the vectors and computes the whole loss; no collective
needs a gradient.

Cost: one forward and backward pass a micro-batch. A step keeps the activations of all its micro-batches;
where the model recomputes activations, and at ZeRO 3, it keeps those of one at the price of another forward
pass (GradCache, Gao et al. 2021). The loss itself holds a few matrices of (M x K)^2 numbers.

Shapes: B functions of a micro-batch, N of a rank, M of all ranks, K variants of each, T tokens, D vector
length.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F

from asmtrain import dist, notice
from asmtrain.config import EmbeddingConfig
from asmtrain.data import TokenCache, to_device
from asmtrain.distill import Teacher, teach
from asmtrain.engine import Engine
from asmtrain.errors import ConfigError
from asmtrain.losses import info_nce, similarity_kl
from asmtrain.metrics import Evaluated
from asmtrain.mixture import mixture
from asmtrain.pairs import PairBatch, PairBatches
from asmtrain.rowlosses import Taken
from asmtrain.stage import Stage
from corpus_builder.errors import EmptyCorpus

StepLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of vectors_MKD, clusters_M and bodies_MK."""


class Contrastive:
    """`data_s` is the time that this rank's last step waited for its batches."""

    def __init__(self, stage: Stage, embedding: EmbeddingConfig) -> None:
        """Tokenise the training split; raises as `build_cache` and `PairBatches` do."""
        self._stage = stage
        self.data_s = 0.0
        self._embedding = embedding
        self._parts = mixture(stage.run, stage.config)
        caches = [stage.cache(part, "train") for part in self._parts]
        weights = [part.weight for part in self._parts]
        self._batches = self._pairs(caches, weights, embedding.functions_per_step, is_training=True)
        self._teacher: Teacher | None = None
        if embedding.distill is not None:
            data = [part.data for part in self._parts]
            taught = list(zip(data, caches, strict=True))
            self._teacher = teach(embedding.distill.teacher, taught, "train", world=stage.world)

    def check(self, step: int) -> None:
        """Nothing is packed here."""

    def backward(self, step: int) -> Taken:
        """Leave one step's gradients in the engine."""
        stage = self._stage
        started = time.perf_counter()
        batches = [to_device(batch, stage.world.device) for batch in self._batches.step(step)]
        self.data_s = time.perf_counter() - started
        loss_of = partial(step_loss, embedding=self._embedding, teacher_MKE=self._taught(batches))
        return contrastive_backward(
            stage.engine, batches, loss_of, recompute=stage.run.model.gradient_checkpointing
        )

    def _taught(self, batches: Sequence[PairBatch]) -> torch.Tensor | None:
        """The teacher's vectors of the functions of all ranks."""
        if self._teacher is None:
            return None
        own = torch.cat([self._teacher.vectors(batch.documents_BK) for batch in batches])
        return dist.all_gather_rows(own)[_order(batches)]

    def keys(self, step: int) -> list[str]:
        """The functions that a step reads on all ranks."""
        return self._batches.keys(step)

    def evaluate(self) -> Evaluated | None:
        """The plain InfoNCE of whole vectors, over `eval_rows` functions of the validation split.

        None where it has too few. The other settings of the loss do not enter, so that runs compare.

        Raises:
            Warned: Slurm's notice came.
        """
        stage = self._stage
        caches, weights = [], []
        for part in self._parts:
            with suppress(EmptyCorpus):
                caches.append(stage.cache(part, stage.run.validation_split))
                weights.append(part.weight)
        if not caches:
            return None
        try:
            available = sum(map(len, self._pairs(caches, weights, stage.world.size).functions))
        except ConfigError:
            return None
        wanted = min(stage.config.eval_rows, available) // stage.world.size * stage.world.size
        batches = [to_device(b, stage.world.device) for b in self._pairs(caches, weights, wanted).step(0)]
        loss_of = partial(info_nce, temperature=self._embedding.temperature)
        return Evaluated(contrastive_loss(stage.engine, batches, loss_of))

    def _pairs(
        self,
        caches: Sequence[TokenCache],
        weights: Sequence[float],
        functions_per_step: int,
        *,
        is_training: bool = False,
    ) -> PairBatches:
        embedding = self._embedding
        return PairBatches(
            caches,
            weights,
            functions_per_step=functions_per_step,
            micro_rows=self._stage.config.micro_rows,
            max_tokens=embedding.max_tokens,
            variants=embedding.variants,
            neighbours=embedding.neighbours if is_training else 0.0,
            token_dropout=embedding.token_dropout if is_training else 0.0,
            seed=self._stage.run.seed,
            rank=self._stage.world.rank,
            world=self._stage.world.size,
        )


def step_loss(
    vectors_MKD: torch.Tensor,
    clusters_M: torch.Tensor,
    bodies_MK: torch.Tensor,
    *,
    embedding: EmbeddingConfig,
    teacher_MKE: torch.Tensor | None = None,
) -> torch.Tensor:
    """A mean over the parts that are trained: each a slice of the vectors, made unit ones again.

    Each of several members learns from its own share of the functions: what makes an ensemble is that its
    members err differently (bagging, Breiman 1996).

    With a teacher's vectors of the same texts, its share of the loss is how far similarities are from its.
    """
    losses = []
    share = len(vectors_MKD) // embedding.members
    for at, span in enumerate(embedding.spans):
        own = slice(at * share, (at + 1) * share) if embedding.members > 1 else slice(None)
        unit_MKD = cut(vectors_MKD[own], *span)
        loss = info_nce(
            unit_MKD,
            clusters_M[own],
            bodies_MK[own],
            temperature=embedding.temperature,
            margin=embedding.false_negative_margin,
        )
        if embedding.distill is not None and teacher_MKE is not None:
            sides = (side.flatten(0, 1) for side in (unit_MKD, teacher_MKE[own]))
            guidance = similarity_kl(*sides, temperature=embedding.distill.temperature)
            loss = torch.lerp(loss, guidance, embedding.distill.weight)
        losses.append(loss)
    return torch.stack(losses).mean()


def cut(vectors_MKD: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """Some numbers of unit vectors, as unit vectors."""
    if end - first == vectors_MKD.shape[-1]:
        return vectors_MKD
    return F.normalize(vectors_MKD[..., first:end], dim=-1)


def contrastive_backward(
    engine: Engine, batches: Sequence[PairBatch], loss_of: StepLoss, *, recompute: bool
) -> Taken:
    """Gradients of a loss over the functions of all ranks and micro-batches.

    The loss's gradient with respect to the vectors comes first, then each micro-batch's vectors carry their
    share of it into the model: negatives are all functions of the step. With `recompute` the vectors are
    encoded again for that, so that memory is that of one micro-batch.
    """
    # With several forward passes before the backward ones, ZeRO 3 gives wrong gradients and says nothing.
    twice = len(batches) > 1 and (recompute or engine.zero_stage == 3)
    states, vectors = [], []
    for batch in batches:
        states.append(dist.random_state())
        with torch.no_grad() if twice else nullcontext():
            vectors.append(_encode(engine, batch))
    loss, gradients = _vector_gradients(engine, batches, [v.detach() for v in vectors], loss_of)
    for number, batch in enumerate(batches):
        if twice:
            dist.set_random_state(states[number])  # the same dropout as the first time
        vectors_BKD = _encode(engine, batch) if twice else vectors[number]
        engine.backward((vectors_BKD.float() * gradients[number]).sum())
    read = sum(int(batch.mask_BKT.sum()) for batch in batches)
    places = sum(batch.mask_BKT.numel() for batch in batches)
    counts = dist.all_reduce_sum(torch.tensor([read, places], device=engine.world.device))
    return Taken(loss, int(counts[0]), int(counts[1]), {})


def contrastive_loss(engine: Engine, batches: Sequence[PairBatch], loss_of: StepLoss) -> float:
    """The same loss, without gradients for the model."""
    vectors = []
    for batch in batches:
        notice.heed(engine.world.device)
        vectors.append(_encode(engine, batch))
    with torch.enable_grad():
        return _vector_gradients(engine, batches, vectors, loss_of)[0]


def _encode(engine: Engine, batch: PairBatch) -> torch.Tensor:
    """Vectors (B, K, D), in one forward pass: ZeRO 3 fetches each layer once."""
    vectors: torch.Tensor = engine(batch.ids_BKT.flatten(0, 1), batch.mask_BKT.flatten(0, 1))
    return vectors.view(*batch.ids_BKT.shape[:2], -1)


def _vector_gradients(
    engine: Engine, batches: Sequence[PairBatch], vectors: Sequence[torch.Tensor], loss_of: StepLoss
) -> tuple[float, list[torch.Tensor]]:
    """The loss over all ranks, and its gradient with respect to each micro-batch's own (B, K, D) vectors."""
    own_NKD = torch.cat(list(vectors)).float()
    vectors_MKD = dist.all_gather_rows(own_NKD).requires_grad_()
    clusters_M = dist.all_gather_rows(torch.cat([batch.clusters_B for batch in batches]))
    bodies_MK = dist.all_gather_rows(torch.cat([batch.bodies_BK for batch in batches]))
    order_M = _order(batches)
    loss = loss_of(vectors_MKD[order_M], clusters_M[order_M], bodies_MK[order_M])
    (gradients_MKD,) = torch.autograd.grad(loss, vectors_MKD)
    own_gradients = gradients_MKD.narrow(0, engine.world.rank * len(own_NKD), len(own_NKD))
    return float(loss.detach()), list(torch.split(own_gradients, [len(v) for v in vectors]))


def _order(batches: Sequence[PairBatch]) -> torch.Tensor:
    """Where the gathered functions of all ranks stand, in the order in which the step drew them: (M,)."""
    return dist.all_gather_rows(torch.cat([batch.places_B for batch in batches])).argsort()
