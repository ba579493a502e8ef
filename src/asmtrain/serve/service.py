"""What page and API share: reading an upload, searching, and keeping uploads that a page goes on with.

Reading runs in a child of its own (`untrusted`), a child a core at a time. Embedding takes all cores, one
request after the other: threads that share a tokenizer must not use it at once. Both leave the server's own
thread free. Uploads of the page are kept in memory by the hash of their content, the latest of them.
"""

import asyncio
import hashlib
import os
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from asmtrain.binary import BinaryFunction
from asmtrain.encoder import Encoder, embed_texts
from asmtrain.errors import BinaryError
from asmtrain.search import Neighbour, search
from asmtrain.store import VectorIndex
from asmtrain.untrusted import read_untrusted

READ_SECONDS = 30.0
"""Processor time that reading an upload may take."""
_KEPT_CHARACTERS = 256 << 20
"""Of function text, over all uploads that are kept."""
_MAX_FUNCTIONS = 50_000

Isa = Literal["", "aarch64", "x86_64", "riscv64"]


class Options(BaseModel):
    """What is wanted of a search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top: int = Field(default=10, ge=1, le=100)
    """Neighbours of each function."""
    in_isa: Isa = ""
    """Of the neighbours; any if empty."""
    in_project: str = Field(default="", max_length=200)
    """Of the neighbours; any if empty."""


@dataclass(frozen=True)
class Upload:
    """A file or text that was given, and its functions."""

    name: str
    functions: Sequence[BinaryFunction]


@dataclass(frozen=True)
class Service:
    """An open index with the model that made it."""

    index: VectorIndex
    encoder: Encoder
    uploads: OrderedDict[str, Upload] = field(default_factory=OrderedDict)
    _embedding: threading.Lock = field(default_factory=threading.Lock)
    _children: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(len(os.sched_getaffinity(0)))
    )

    async def read(self, name: str, content: bytes, isa: str) -> Upload:
        """The functions of an upload.

        Raises:
            BinaryError: it holds none, is damaged, or takes too long to read.
        """
        async with self._children:
            return Upload(name, await asyncio.to_thread(_read, name, content, isa))

    def search(self, views: Sequence[str], options: Options) -> list[list[Neighbour]]:
        """The neighbours of each text; not to be called by the server's own thread.

        Raises:
            VectorIndexError: the index is damaged.
        """
        with self._embedding:
            queries_QD = embed_texts(self.encoder, views)
            return search(
                self.index, queries_QD, top=options.top, isa=options.in_isa, project=options.in_project
            )

    def keep(self, content: bytes, isa: str, upload: Upload) -> str:
        """Remember an upload; returns its name in addresses. The oldest go when there are too many."""
        key = hashlib.sha256(f"{isa} {upload.name} ".encode() + content).hexdigest()[:20]
        self.uploads[key] = upload
        self.uploads.move_to_end(key)
        while len(self.uploads) > 1 and self._characters() > _KEPT_CHARACTERS:
            self.uploads.popitem(last=False)
        return key

    def _characters(self) -> int:
        return sum(len(item.view) for upload in self.uploads.values() for item in upload.functions)


def _read(name: str, content: bytes, isa: str) -> list[BinaryFunction]:
    with tempfile.TemporaryDirectory(prefix="asmtrain-serve-") as folder:
        # A bare function is called by its file.
        path = Path(folder) / (re.sub(r"[^\w.+-]", "_", name)[-80:].lstrip(".") or "upload")
        path.write_bytes(content)
        try:
            functions = read_untrusted(path, isa=isa, seconds=READ_SECONDS)
        except BinaryError as error:
            raise BinaryError(error.message.replace(str(path), name), remedy=error.remedy) from None
    if len(functions) > _MAX_FUNCTIONS:
        raise BinaryError(
            f"{name} holds {len(functions):,} functions, more than {_MAX_FUNCTIONS:,}",
            remedy="use asmtrain index search, which has no limit",
        )
    return functions
