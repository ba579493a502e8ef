"""Functions in several variants: token caches in, the micro-batches of one rank out.

Every step is a pure function of (step, seed, corpora, settings), whatever the ranks and micro-batches, so a
resumed run asks for the step it stopped at. An epoch draws every function that has two different bodies once;
functions of several caches stand in a step as the caches' weights do. The functions of a step are dealt to
ranks and micro-batches by length, so that little is padded.

Cost: sorting the functions once an epoch; then a batch costs copies of its tokens.

Shapes: B functions of a micro-batch, K variants of each, T tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from asmtrain.cache import TokenCache
from asmtrain.data import cut_keeping_end, interleave, seeded, share_of_rank
from asmtrain.errors import ConfigError
from asmtrain.packing import IntArray

_PERMUTE_FUNCTIONS, _DRAW_VARIANTS, _DROP_TOKENS = range(4, 7)
_GROUP = 8
"""Neighbours that come together: enough to be hard, few enough that a step of 64 holds several projects."""


@dataclass(frozen=True)
class PairBatch:
    """Functions for `contrastive`, each in K variants, padded on the right."""

    ids_BKT: torch.Tensor
    mask_BKT: torch.Tensor
    documents_BK: torch.Tensor
    """Number of the text over all caches."""
    bodies_BK: torch.Tensor
    """Equal for equal bodies: a function with fewer than K shows some again."""
    functions_B: torch.Tensor
    """Number of the function over all caches."""
    clusters_B: torch.Tensor
    """Equal for functions that share a body, directly or over others: no negatives of each other."""
    places_B: torch.Tensor
    """Which of the step's functions it is, in the order in which they were drawn."""


class PairBatches:
    """Functions in K variants: `step(i)` gives this rank's micro-batches of optimizer step i."""

    def __init__(
        self,
        caches: Sequence[TokenCache],
        weights: Sequence[float],
        *,
        functions_per_step: int,
        micro_rows: int,
        max_tokens: int,
        seed: int,
        variants: int = 2,
        neighbours: float = 0.0,
        token_dropout: float = 0.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Find the functions. Raises LaunchError or ConfigError when a step cannot be filled."""
        self.functions_per_rank = share_of_rank("functions_per_step", functions_per_step, world)
        self.functions_per_step, self.micro_rows, self.max_tokens = functions_per_step, micro_rows, max_tokens
        self.variants, self.neighbours, self.token_dropout = variants, neighbours, token_dropout
        self.seed, self.rank, self.world = seed, rank, world
        self.texts = Texts(caches)
        has_two = functions_with_two_bodies(self.texts.functions, self.texts.bodies)
        of_caches = [
            has_two[(has_two >= first) & (has_two < stop)]
            for first, stop in itertools.pairwise(self.texts.first_functions)
        ]
        usable = [part for part, own in enumerate(of_caches) if len(own)]
        self.functions = [of_caches[part] for part in usable]
        if len(has_two) < functions_per_step:
            raise ConfigError(
                f"functions_per_step is {functions_per_step}, but only {len(has_two)} functions have "
                "two different bodies",
                remedy="lower embedding.functions_per_step, or allow more variants and functions in `data`",
            )
        self._weights = np.array([weights[part] for part in usable], dtype=np.float64)
        self._weights /= self._weights.sum()
        self._clusters = body_clusters(self.texts.functions, self.texts.bodies)
        self._orders: dict[tuple[int, int], IntArray] = {}

    @property
    def num_micro_steps(self) -> int:
        """Micro-batches that `step` returns, the same on every rank."""
        return -(-self.functions_per_rank // self.micro_rows)

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps until the cache that is used up first starts over."""
        counts = np.array([len(own) for own in self.functions])
        return float((counts / self._weights).min() / self.functions_per_step)

    def step(self, index: int) -> list[PairBatch]:
        """This rank's micro-batches of optimizer step `index`, counted from 0."""
        documents = self._draw(index)
        lengths = np.minimum(self.texts.lengths[documents], self.max_tokens).sum(1)
        own = np.argsort(-lengths, kind="stable")[self.rank :: self.world]
        cuts = [own[at : at + self.micro_rows] for at in range(0, len(own), self.micro_rows)]
        return [self._batch(documents[places], places, index) for places in cuts]

    def keys(self, index: int) -> list[str]:
        """The functions that step `index` reads on all ranks."""
        return [self.texts.key(int(document)) for document in self._draw(index)[:, 0]]

    def _draw(self, index: int) -> IntArray:
        """The documents of each function of a step: (functions_per_step, K)."""
        first = index * self.functions_per_step
        parts, occurrences = interleave(self._weights, first, first + self.functions_per_step)
        rng = seeded(self.seed, _DRAW_VARIANTS, index)
        functions = map(self._function, parts.tolist(), occurrences.tolist())
        return np.array([self._documents(function, rng) for function in functions])

    def _function(self, part: int, occurrence: int) -> int:
        epoch, place = divmod(occurrence, len(self.functions[part]))
        if (part, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != part}
            self._orders[part, epoch] = self._order(part, epoch)
        return int(self._orders[part, epoch][place])

    def _order(self, part: int, epoch: int) -> IntArray:
        """Every function once; a share of them in groups that are alike in project and length."""
        rng = seeded(self.seed, _PERMUTE_FUNCTIONS, part, epoch)
        order = rng.permutation(self.functions[part])
        num_grouped = round(self.neighbours * len(order)) // _GROUP * _GROUP
        grouped, alone = order[:num_grouped], order[num_grouped:]
        alike = np.lexsort((self.texts.sizes[grouped], self.texts.projects[grouped]))
        units = [*grouped[alike].reshape(-1, _GROUP), *alone[:, None]]
        return np.concatenate([units[at] for at in rng.permutation(len(units))])

    def _documents(self, function: int, rng: np.random.Generator) -> list[int]:
        """First any, then any whose body was not drawn yet; from the start again when there is none."""
        documents = self.texts.documents_of(function)
        left, drawn = documents, []
        for _ in range(self.variants):
            left = left if len(left) else documents
            drawn.append(int(rng.choice(left)))
            left = left[self.texts.bodies[left] != self.texts.bodies[drawn[-1]]]
        return drawn

    def _batch(self, documents_BK: IntArray, places_B: IntArray, step: int) -> PairBatch:
        functions = self.texts.functions[documents_BK[:, 0]]
        columns = (
            documents_BK,
            self.texts.bodies[documents_BK],
            functions,
            self._clusters[functions],
            places_B,
        )
        return PairBatch(*self._padded(documents_BK, step), *map(torch.from_numpy, columns))

    def _padded(self, documents_BK: IntArray, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, padded on the right to the longest."""
        texts = [self._text(document, step) for document in documents_BK.flatten().tolist()]
        shape = (len(texts), max(map(len, texts)))
        ids, mask = np.full(shape, self.texts.pad_id), np.zeros(shape, dtype=np.int64)
        for line, tokens in enumerate(texts):
            ids[line, : len(tokens)] = tokens
            mask[line, : len(tokens)] = 1
        shape_BKT = (*documents_BK.shape, shape[1])
        return torch.from_numpy(ids).view(shape_BKT), torch.from_numpy(mask).view(shape_BKT)

    def _text(self, document: int, step: int) -> npt.NDArray[np.integer]:
        tokens = self.texts.tokens(document)
        if self.token_dropout:
            kept = seeded(self.seed, _DROP_TOKENS, step, document).random(len(tokens)) >= self.token_dropout
            kept[[0, -1]] = True  # what the tokenizer adds
            tokens = tokens[kept]
        return cut_keeping_end(tokens, self.max_tokens)


class Texts:
    """The documents of several caches behind each other; functions and documents are numbered over all."""

    def __init__(self, caches: Sequence[TokenCache]) -> None:
        self._caches = caches
        self.pad_id = caches[0].pad_id
        self.first_functions = np.cumsum([0, *(cache.num_functions for cache in caches)])
        self._first_documents = np.cumsum([0, *(len(cache) for cache in caches)])
        self.bodies: IntArray = np.concatenate([cache.bodies for cache in caches])
        self.lengths: IntArray = np.concatenate([cache.lengths for cache in caches])
        self.functions: IntArray = np.concatenate(
            [cache.functions + first for cache, first in zip(caches, self.first_functions, strict=False)]
        )
        counts = np.bincount(self.functions)
        self._starts = np.append(0, np.cumsum(counts))
        self.sizes = np.bincount(self.functions, weights=self.lengths) / counts
        """Mean tokens of a function's documents."""
        projects = np.concatenate([cache.projects for cache in caches])[self._starts[:-1]]
        self.projects: IntArray = np.unique(projects, return_inverse=True)[1]
        """Number of each function's project."""

    def documents_of(self, function: int) -> IntArray:
        """The documents of one function."""
        return np.arange(self._starts[function], self._starts[function + 1])

    def tokens(self, document: int) -> npt.NDArray[np.integer]:
        """The ids of one document, with its BOS and EOS."""
        cache, place = self._at(document)
        return cache.tokens(place)

    def key(self, document: int) -> str:
        """The function that a document shows."""
        cache, place = self._at(document)
        return str(cache.keys[place])

    def _at(self, document: int) -> tuple[TokenCache, int]:
        part = int(np.searchsorted(self._first_documents, document, side="right")) - 1
        return self._caches[part], document - int(self._first_documents[part])


def functions_with_two_bodies(functions: IntArray, bodies: IntArray) -> IntArray:
    """The functions that have documents of different bodies; a function's documents follow each other."""
    different = bodies[1:] != bodies[:-1]
    within = functions[1:] == functions[:-1]
    return np.unique(functions[1:][different & within]).astype(np.int64)


def body_clusters(functions: IntArray, bodies: IntArray) -> IntArray:
    """The cluster of each function, of documents' functions (0 to n - 1) and bodies.

    Functions that a chain of equal bodies joins have the same cluster.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_functions = int(functions.max()) + 1
    _, numbers = np.unique(bodies, return_inverse=True)
    num_nodes = num_functions + int(numbers.max()) + 1
    edges = (np.ones(len(bodies), dtype=bool), (functions, num_functions + numbers))
    clusters = connected_components(coo_array(edges, shape=(num_nodes, num_nodes)), directed=False)[1]
    return np.asarray(clusters[:num_functions], dtype=np.int64)
