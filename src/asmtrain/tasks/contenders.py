"""Any model that turns texts into vectors: our exports, others' folders, Python callables.

In goes what the user named, out comes a `Contender`. A folder that `asmtrain export` wrote is computed by our
encoder; any other folder with `modules.json` by sentence-transformers; `module:function` is imported and
called with lists of view texts, for an array of a row a text. Vectors of all of them are compared by cosine.
"""

import hashlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asmtrain.encoder import Encoder, Vectors, embed_texts, load_encoder
from asmtrain.errors import ModelError

_BATCH = 64
"""Texts that a callable is given at once."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Contender:
    """A model to be judged."""

    name: str
    embed: Callable[[Sequence[str], Progress], Vectors]
    """(N, D) unit vectors of N texts; tells how many more are done."""
    sha256: str
    """Of its weights, or of what names it where there are none to hash."""
    folder: Path | None = None
    """Of our own exports, whose untrained twin stands beside them."""


def load(spec: str, name: str) -> Contender:
    """Open `FOLDER`, `FOLDER@DIM` (one of our exports, its vectors cut to DIM numbers) or `module:function`.

    Raises:
        ModelError: there is nothing there that embeds texts.
    """
    folder = Path(spec)
    if folder.is_dir():
        if (folder / "modules.json").exists() and not (folder / "provenance.json").exists():
            return _of_sentence_transformers(folder, name)
        return of_encoder(load_encoder(folder), name, folder)
    whole, _, dim = spec.rpartition("@")
    if dim.isdecimal() and Path(whole).is_dir():
        return of_encoder(load_encoder(Path(whole), dim=int(dim)), name)
    if ":" in spec and "/" not in spec:
        return _of_callable(spec, name)
    raise ModelError(f"{spec} is not an embedding model: no such folder", remedy=_REMEDY)


_REMEDY = "give an embedding/ folder, a sentence-transformers folder, or module:function"


def of_encoder(encoder: Encoder, name: str, folder: Path | None = None) -> Contender:
    """One of our own models."""
    return Contender(
        name, lambda texts, done: embed_texts(encoder, texts, progress=done), encoder.sha256, folder
    )


def _of_sentence_transformers(folder: Path, name: str) -> Contender:
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(folder), local_files_only=True)
    except Exception as error:  # it raises what its parts raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder} is not an embedding model: {reason}", remedy=_REMEDY) from None
    weights = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in weights:
        digest.update(path.read_bytes())
    return Contender(name, _in_batches(model.encode, str(folder)), digest.hexdigest())


def _of_callable(spec: str, name: str) -> Contender:
    module, _, function = spec.partition(":")
    # A module beside the user's command is found as `python -m` would find it.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        embed = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{spec} cannot be imported: {error}", remedy=_REMEDY) from None
    return Contender(name, _in_batches(embed, spec), hashlib.sha256(spec.encode()).hexdigest())


def _in_batches(embed: Callable[[list[str]], Any], spec: str) -> Callable[[Sequence[str], Progress], Vectors]:
    """A foreign function, called with a few texts of like length at a time, its vectors made unit ones."""

    def unit_vectors(texts: Sequence[str], progress: Progress) -> Vectors:
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
        blocks = []
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            block = np.asarray(embed([texts[at] for at in batch]), dtype=np.float32)
            if block.ndim != 2 or len(block) != len(batch) or not np.isfinite(block).all():
                raise ModelError(
                    f"{spec} gave an array of shape {block.shape} for {len(batch)} texts, or one not finite",
                    remedy="return one finite vector a text, (texts, length)",
                )
            blocks.append(block)
            progress(len(batch))
        vectors_ND = np.concatenate(blocks)[np.argsort(order)]
        lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        unit_ND: Vectors = vectors_ND / np.maximum(lengths_N1, 1e-12)
        return unit_ND

    return unit_vectors


def functions_per_s(contender: Contender, texts: Sequence[str]) -> float:
    """How many texts a second it embeds on one CPU thread."""
    with one_thread():
        started = time.perf_counter()
        contender.embed(texts, lambda num_done: None)
        return len(texts) / (time.perf_counter() - started)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep this thread, and those that it starts, on one core while the block runs."""
    cores, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    parallel = os.environ.get("TOKENIZERS_PARALLELISM")
    os.sched_setaffinity(0, {min(cores)})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(num_threads)
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if parallel is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel
