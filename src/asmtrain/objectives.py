"""The objectives: a step's number in, the gradients of its loss left in the engine.

Invariant: the loss, and so its gradient, is that of all micro-batches of all ranks taken together: a mean
over tokens for `causal_lm`, over the answers' tokens for `sft`, over functions for `contrastive` (see
`contrast`). It does not depend on how the step was cut into ranks and micro-batches. Cost: one forward and
backward pass a micro-batch.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TypeAlias

from asmtrain import samples
from asmtrain.contrast import Contrastive
from asmtrain.data import RowBatches, TokenCache, to_device
from asmtrain.evaluation import Validation
from asmtrain.fitting import describe, report
from asmtrain.isolation import check_isolation
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
        self._batches = _rows(stage, self._parts, [stage.cache(part, "train") for part in self._parts])
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
                caches[part] = stage.cache(part, stage.run.validation_split)
        try:
            rows = _rows(stage, list(caches), list(caches.values()))
        except EmptyCorpus:
            return None
        if stage.world.is_main:
            _report_examples(stage, stage.run.validation_split, list(caches), rows.caches)
        names = [part.name for part in caches]
        asked = samples.choose(rows.caches, names, context=config.context, count=config.samples)
        return Validation(rows, names, config.eval_rows), asked


Objective: TypeAlias = CausalLM | Contrastive


def objective_of(stage: Stage) -> Objective:
    """What a stage trains for, over its corpora."""
    if stage.config.objective == "contrastive":
        assert stage.config.embedding is not None
        return Contrastive(stage, stage.config.embedding)
    return CausalLM(stage)


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
