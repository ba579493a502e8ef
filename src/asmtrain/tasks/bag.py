"""The baseline `bag`: one layer over hashed tokens, trained by contrast on the corpus's own training split.

In goes a corpus, out comes a `Contender`; the weights stay in the output folder and are used again. A vector
is the sum of its tokens' rows in a table of 2^17 x 256, each times a learned gain and 1 + log of the token's
count, made a unit vector. Tokens are mnemonics, numbers, and numbers with their mnemonic, hashed together;
runs of mnemonics made it worse (docs/decisions.md). Trained with InfoNCE at temperature .05 on batches of 512
functions, two variants each; functions that chains of equal bodies join are no negatives of each other. Cost:
a minute and a half on two cores, most of it the table's rows read and written at random.
"""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from asmtrain import terminal
from asmtrain.encoder import Vectors
from asmtrain.losses import info_nce
from asmtrain.pairs import body_clusters
from asmtrain.tasks.contenders import Contender, Progress
from asmtrain.tasks.features import instructions
from asmtrain.tasks.views import import_names, sha256_of, text_of
from corpus_builder.asm import constants
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import FunctionRecord, Variant
from corpus_builder.shards import atomic_output, load_index, read_split

NUM_ROWS, DIM = 1 << 17, 256
TEMPERATURE, BATCH = 0.05, 512
STEPS = 200
MAX_FUNCTIONS, MAX_VARIANTS = 20_000, 8
_LR = 0.01

Text = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Rows of the table, and the weight of each."""


class Bag(nn.Module):
    """The table and its gains."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Embedding(NUM_ROWS, DIM, sparse=True)
        self.gains = nn.Embedding(NUM_ROWS, 1, sparse=True)
        nn.init.normal_(self.table.weight, std=DIM**-0.5, generator=torch.Generator().manual_seed(seed))
        nn.init.ones_(self.gains.weight)

    def forward(self, texts: Sequence[Text]) -> torch.Tensor:
        """(N, DIM) unit vectors of N texts."""
        rows_T = torch.from_numpy(np.concatenate([rows for rows, _ in texts]))
        weights_T = torch.from_numpy(np.concatenate([weights for _, weights in texts]))
        starts_N = torch.tensor([0, *(len(rows) for rows, _ in texts)][:-1]).cumsum(0)
        # Each row is read once and gets one gradient, which spares the optimizer from adding up copies.
        is_used = torch.zeros(NUM_ROWS, dtype=torch.bool)
        is_used[rows_T] = True
        unique_U = is_used.nonzero().squeeze(-1)
        local_T = (is_used.cumsum(0) - 1)[rows_T]
        weights_T = weights_T * self.gains(unique_U).squeeze(-1)[local_T]
        sums_ND = F.embedding_bag(
            local_T, self.table(unique_U), starts_N, mode="sum", per_sample_weights=weights_T
        )
        return F.normalize(sums_ND, dim=-1)


def hashed(view: str) -> Text:
    """A text's rows and weights."""
    lines = instructions(view)
    tokens = [line.split(" ", 1)[0] for line in lines]
    for name, line in zip(tokens[:], lines, strict=True):
        for number in constants(line):
            tokens += [f"#{number}", f"{name} #{number}"]
    counts = Counter(zlib.crc32(token.encode()) % NUM_ROWS for token in tokens) or {0: 1}
    rows = np.fromiter(counts, np.int64, len(counts))
    return rows, np.array([1 + log(count) for count in counts.values()], np.float32)


def contender(corpus: Path, output: Path, *, view: str, seed: int, steps: int = STEPS) -> Contender:
    """The bag of a corpus and view: trained, or read from `output` where an equal call left it.

    Raises:
        EmptyCorpus: there is no training split, or no function with two bodies in it.
    """
    settings = [load_index(corpus).sha256(), view, seed, steps, MAX_FUNCTIONS, MAX_VARIANTS, "3"]
    identity = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    path = output / f"bag-{view}.safetensors"
    state = _cached(path, identity)
    if state is None:
        bag = train(list(_functions(corpus, view)), seed=seed, steps=steps)
        state = {name: tensor.half() for name, tensor in bag.state_dict().items()}
        with atomic_output(path) as stream:
            stream.write(save(state, metadata={"identity": identity}))
    bag = Bag(seed)
    bag.load_state_dict(state)

    def embed(texts: Sequence[str], progress: Progress) -> Vectors:
        blocks = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                batch = texts[start : start + BATCH]
                blocks.append(bag([hashed(text) for text in batch]).numpy())
                progress(len(batch))
        vectors_ND: Vectors = np.concatenate(blocks)
        return vectors_ND

    return Contender("bag", embed, identity)


def _cached(path: Path, identity: str) -> dict[str, torch.Tensor] | None:
    try:
        with safe_open(path, "pt") as stored:
            if stored.metadata().get("identity") == identity:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        pass
    return None


@dataclass(frozen=True)
class TrainingFunction:
    """One function's distinct bodies."""

    bodies: Mapping[str, Text]
    """By sha256."""


def _functions(corpus: Path, view: str) -> Iterator[TrainingFunction]:
    """Functions of the training split with at least two bodies, evenly spread over it."""
    total = sum(shard.num_functions for shard in load_index(corpus).shards if shard.split == "train")
    step = -(-total // MAX_FUNCTIONS) if total else 1
    imports = import_names(corpus) if view == "imports" else frozenset()
    for number, record in enumerate(read_split(corpus, "train")):
        if number % step == 0:
            function = TrainingFunction(_bodies(record, view, imports))
            if len(function.bodies) > 1:
                yield function


def _bodies(record: FunctionRecord, view: str, imports: Collection[str]) -> dict[str, Text]:
    """Up to MAX_VARIANTS, in an order that the key decides."""
    order = sorted(record.assembly, key=lambda variant: sha256_of(f"{record.key}/{variant}"))
    bodies: dict[str, Text] = {}
    for variant in order[:MAX_VARIANTS]:
        text = text_of(record.assembly[variant], Variant.parse(variant).isa, view, imports)
        bodies.setdefault(sha256_of(text), hashed(text))
    return bodies


def train(functions: Sequence[TrainingFunction], *, seed: int, steps: int) -> Bag:
    """A bag that tells two bodies of a function from those of others.

    Raises:
        EmptyCorpus: there are no two functions.
    """
    if len(functions) < 2:
        raise EmptyCorpus(
            "the training split has no two functions with two bodies each", remedy="evaluate with --no-bag"
        )
    rng = np.random.default_rng(seed)
    bag = Bag(seed)
    optimizer = torch.optim.SparseAdam(bag.parameters(), lr=_LR)
    clusters = _clusters(functions)
    order: list[int] = []
    with terminal.progress_bar("training the bag", steps) as advance:
        for step in range(steps):
            if len(order) < min(BATCH, len(functions)):
                order = list(rng.permutation(len(functions)))
            chosen, order = order[:BATCH], order[BATCH:]
            pairs = [_two_bodies(functions[at], rng) for at in chosen]
            for group in optimizer.param_groups:
                group["lr"] = _LR * (1 - step / steps)
            optimizer.zero_grad()
            vectors_MKD = bag([text for pair in pairs for text in pair]).view(len(pairs), 2, -1)
            loss = info_nce(vectors_MKD, clusters[chosen], temperature=TEMPERATURE)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()  # type: ignore[no-untyped-call]
            advance(1)
    return bag


def _two_bodies(function: TrainingFunction, rng: np.random.Generator) -> tuple[Text, Text]:
    texts = list(function.bodies.values())
    first, second = rng.choice(len(texts), 2, replace=False)
    return texts[first], texts[second]


def _clusters(functions: Sequence[TrainingFunction]) -> torch.Tensor:
    """(N,) equal for functions that a chain of equal bodies joins."""
    numbers: dict[str, int] = {}
    bodies = [numbers.setdefault(body, len(numbers)) for function in functions for body in function.bodies]
    owners = np.repeat(np.arange(len(functions)), [len(function.bodies) for function in functions])
    return torch.from_numpy(body_clusters(owners, np.array(bodies)))
