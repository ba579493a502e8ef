"""A teacher's vectors of the texts that a smaller model trains on: an exported model in, arrays out.

Each text is embedded once, before the stage's first step, in blocks that lie in the texts' token cache, in a
folder named after the teacher's hash; ranks make different blocks at the same time, and a killed stage goes
on with those that are missing. Student and teacher read the same text, each through its own tokenizer.

Cost: the teacher's forward pass over every document once; then a batch reads its rows from mapped files.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from asmtrain import dist, notice, terminal
from asmtrain.cache import TokenCache, assemblies
from asmtrain.config import DataConfig
from asmtrain.dist import World
from asmtrain.encoder import embed_texts, identity, load_encoder
from asmtrain.packing import IntArray
from asmtrain.watch import beat
from corpus_builder.shards import atomic_output

BLOCK = 4096
"""Documents of a block."""


@dataclass(frozen=True)
class Teacher:
    """Vectors of the documents of some caches, numbered over all of them."""

    blocks: Sequence[npt.NDArray[np.float16]]
    starts: IntArray
    """First document of each block."""

    def vectors(self, documents: torch.Tensor) -> torch.Tensor:
        """(..., E) in fp32, on the device of the documents' numbers."""
        numbers = documents.flatten().cpu().numpy()
        places = np.searchsorted(self.starts, numbers, side="right") - 1
        rows = [self.blocks[at][number - self.starts[at]] for at, number in zip(places, numbers, strict=True)]
        return torch.from_numpy(np.stack(rows)).float().view(*documents.shape, -1).to(documents.device)


def teach(
    folder: Path,
    parts: Sequence[tuple[DataConfig, TokenCache]],
    split: str,
    *,
    world: World,
    block: int = BLOCK,
) -> Teacher:
    """The teacher's vectors of caches' documents, made where they are missing. All ranks call it together.

    Raises:
        ModelError: `folder` is no `embedding/` export.
        Warned: Slurm's notice came.
    """
    sha256 = identity(folder)
    paths = []
    for data, cache in parts:
        home = cache.folder / f"teacher-{sha256[:16]}"
        own = [home / f"{number:05d}.npy" for number in range(-(-len(cache) // block))]
        _make(folder, assemblies(cache, data, split), data.corpus.name, own, world=world, block=block)
        paths += own
    blocks = [np.load(path, mmap_mode="r") for path in paths]
    return Teacher(blocks, np.cumsum([0, *map(len, blocks[:-1])]))


def _make(
    folder: Path,
    texts: Iterator[Callable[[], str]],
    corpus: str,
    paths: Sequence[Path],
    *,
    world: World,
    block: int,
) -> None:
    """Write the blocks of one cache that are not there yet, on each rank its own."""
    if dist.on_main(lambda: all(path.exists() for path in paths)):
        return
    encoder = load_encoder(folder)
    label = f"vectors of {folder} for {corpus}"
    if world.is_main:
        print(f"{label}: {len(paths)} blocks of {block:,} texts", flush=True)
    with terminal.progress_bar(label, len(paths)) as advance:
        for first in range(0, len(paths), world.size):  # in step, since the notice may end it
            for number, path in enumerate(paths[first : first + world.size]):
                own = list(itertools.islice(texts, block))
                if number == world.rank and not path.exists():
                    made = [text() for text in own]
                    vectors_ND = embed_texts(encoder, made, progress=lambda num_done: beat())
                    with atomic_output(path) as stream:
                        np.save(stream, vectors_ND.astype(np.float16))
            advance(world.size if world.is_main else 0)
            notice.heed(world.device)
