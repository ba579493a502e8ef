"""Safetensors folders of any size, read and written a block of rows at a time.

In: a Hugging Face folder, or a list of tensors and where their rows come from. Out: blocks of rows, or shards
with their index as `from_pretrained` and vLLM read them. Invariants: at most one block of one tensor is in
memory, whatever the shard; what was written is read back through the safetensors library and compared. Cost:
one pass to write, one to read back. The library itself writes a file only from tensors that are all in
memory, which is why the header is written here.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from asmtrain.errors import ExportError, ModelError

BLOCK_ELEMENTS = 1 << 21
"""Elements of a tensor in memory at once."""
INDEX_FILE = "model.safetensors.index.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Rows: TypeAlias = Callable[[str, int, int], torch.Tensor]
"""Rows `start` to `stop` of the named tensor."""


class TensorFiles:
    """The tensors of some safetensors files, by name; no file stays open, so no page stays in memory."""

    def __init__(self, files: list[Path]) -> None:
        self.files: dict[str, Path] = {}
        self.shapes: Shapes = {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (not a mapping)
                        self.files[name] = path
                        self.shapes[name] = tuple(opened.get_slice(name).get_shape())
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    f"{path} cannot be read: {error}", remedy="train, download or export it again"
                ) from None

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of one tensor, in the dtype they are stored in."""
        with safe_open(self.files[name], framework="pt") as opened:
            block: torch.Tensor = opened.get_slice(name)[start:stop]
            return block

    def whole(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self.rows(name, 0, self.shapes[name][0])


def model_files(model: str) -> TensorFiles:
    """The weights of a Hugging Face folder or hub name.

    Raises:
        ModelError: there are none.
    """
    folder = model_folder(model)
    index = folder / INDEX_FILE
    if index.exists():
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    else:
        names = [WEIGHTS_FILE]
    return TensorFiles([folder / name for name in names])


def model_folder(model: str) -> Path:
    """The folder of a model; a hub name's is fetched, or found in the cache."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {model!r} is not on this machine: {str(error).splitlines()[0]}",
            remedy="give a Hugging Face model folder, or a hub name within reach",
        ) from None


def copy_generation_config(source: Path, folder: Path) -> bool:
    """Take a model's generation_config.json along as it is; returns whether it has one."""
    if not (source / GENERATION_FILE).exists():
        return False
    shutil.copyfile(source / GENERATION_FILE, folder / GENERATION_FILE)
    return True


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The row ranges in which a tensor is read and written."""
    height = max(1, BLOCK_ELEMENTS * shape[0] // max(1, torch.Size(shape).numel()))
    for start in range(0, shape[0], height):
        yield start, min(start + height, shape[0])


def write_shards(folder: Path, shapes: Shapes, rows: Rows, *, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write tensors as shards of at most `shard_bytes` (a larger tensor has its own), and read them back.

    Raises:
        ExportError: a tensor is empty or not finite, or the disk holds something else than was written.
    """
    parts = _partition(shapes, dtype.itemsize, shard_bytes)
    names = [WEIGHTS_FILE]
    if len(parts) > 1:
        names = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
        total = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, part in zip(names, parts, strict=True) for name in part},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for file, part in zip(names, parts, strict=True):
        _check(folder / file, part, dtype, _write(folder / file, part, rows, dtype))


def _partition(shapes: Shapes, itemsize: int, shard_bytes: int) -> list[Shapes]:
    parts: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        num_bytes = torch.Size(shape).numel() * itemsize
        if parts[-1] and size + num_bytes > shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = shape
        size += num_bytes
    return parts


def _write(path: Path, shapes: Shapes, rows: Rows, dtype: torch.dtype) -> dict[str, str]:
    """Write one file; returns the sha256 of each tensor's bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    sums = {}
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            digest = hashlib.sha256()
            for start, stop in blocks(shape):
                block = rows(name, start, stop).to(dtype)
                refuse_unsound(name, block, (stop - start, *shape[1:]))
                data = _bytes(block)
                digest.update(data)
                stream.write(data)
            sums[name] = digest.hexdigest()
    return sums


def _check(path: Path, shapes: Shapes, dtype: torch.dtype, sums: Mapping[str, str]) -> None:
    written = TensorFiles([path])
    for name, shape in shapes.items():
        digest = hashlib.sha256()
        for start, stop in blocks(shape):
            block = written.rows(name, start, stop)
            digest.update(_bytes(block))
        if written.shapes[name] != shape or block.dtype != dtype or digest.hexdigest() != sums[name]:
            raise ExportError(f"{path}: {name} was not read back as written", remedy="check the disk")


def _bytes(block: torch.Tensor) -> Any:
    return block.contiguous().view(torch.uint8).numpy()


def refuse_unsound(name: str, block: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise ExportError for rows that are missing, as ZeRO-3 leaves those it partitions, or not finite."""
    if block.numel() == 0 or tuple(block.shape) != shape:
        raise ExportError(
            f"tensor {name} is empty or partial", remedy="export a stage or checkpoint that is whole"
        )
    if not torch.isfinite(block).all():
        raise ExportError(
            f"tensor {name} holds NaN or infinity",
            remedy="the training diverged: lower the learning rate, or export an older checkpoint",
        )
