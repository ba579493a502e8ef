"""The settings of a contrastive stage: how a function becomes a vector, and what trains it.

A group of `config`, in a file of its own for its length.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from corpus_builder.config import ConfigModel

Positive = Annotated[int, Field(ge=1)]


class DistillConfig(ConfigModel):
    """A teacher whose similarities guide a smaller model (SEED, Fang et al. 2021)."""

    teacher: Path
    """An exported `embedding/` folder; its size, tokenizer and vector length may be others."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the loss; the rest is InfoNCE's."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of the teacher's and the model's similarities, where they are compared."""


class EmbeddingConfig(ConfigModel):
    """How a function becomes a vector, and the contrastive loss that trains it."""

    pooling: Literal["mean", "max", "lasttoken", "learned"] = "lasttoken"
    """What of a function's hidden states enters its vector; `learned` weighs the tokens, for each dimension
    of the vector by a query of its own."""
    attention: Literal["causal", "bidirectional"] = "causal"
    """What a token sees of its function: what is before it, or all (LLM2Vec, BehnamGhader et al. 2024)."""
    dim: Positive = 128
    """Length of the vector."""
    matryoshka: tuple[Positive, ...] = ()
    """Shorter lengths that the first numbers of a vector are to serve at as well (Kusupati et al. 2022)."""
    members: Positive = 1
    """Slices of equal length that make up the vector: each sees its own slice of the hidden state and learns
    to find by itself, from its own share of each step's functions, so that together they are an ensemble."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Similarities are divided by it: the smaller, the more the hardest negatives weigh."""
    max_tokens: Positive = 256
    """Longer functions are cut, keeping the end token."""
    token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a text's tokens, drawn anew at each step, that training leaves out; never its ends."""
    functions_per_step: Positive = 64
    """Functions in a step over all ranks; the other functions are the negatives of each."""
    variants: Annotated[int, Field(ge=2)] = 2
    """Variants of each function in a step, of different bodies as far as it has so many."""
    neighbours: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the functions that come in groups of eight of one project and about one length, so that
    negatives are hard."""
    false_negative_margin: Annotated[float, Field(ge=0)] | None = None
    """A negative more similar than every positive by more than this is taken for a copy and left out; null
    for none."""
    distill: DistillConfig | None = None
    """A teacher beside the variants themselves."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "EmbeddingConfig":
        if too_long := [size for size in self.matryoshka if size > self.dim]:
            raise ValueError(f"`matryoshka` holds {too_long[0]}, but a vector has {self.dim} numbers (`dim`)")
        if self.dim % self.members:
            raise ValueError(f"a vector of {self.dim} numbers (`dim`) has no {self.members} equal `members`")
        if self.functions_per_step % self.members:
            raise ValueError(
                f"{self.functions_per_step} functions (`functions_per_step`) have no {self.members} equal "
                "shares for `members`"
            )
        if self.matryoshka and self.members > 1:
            raise ValueError("`matryoshka` beside `members`: cut vectors where a member ends, without it")
        return self

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """First number and end of each part of the vector that is trained to serve by itself."""
        if self.members > 1:
            length = self.dim // self.members
            return tuple((first, first + length) for first in range(0, self.dim, length))
        return tuple((0, size) for size in sorted({*self.matryoshka, self.dim}))
