"""An exported embedding model at work: view texts in, unit vectors out.

`load_encoder` opens the sentence-transformers folder that `export` writes and computes the same vectors as
`SentenceTransformer(folder)`, batched for throughput: texts are sorted by length and packed into batches of
about equal numbers of tokens, so that hardly any padding is computed. Evaluation, index and search all embed
through `embed_texts`.

Cost: the model's forward pass alone; batches hold at most `TOKENS_PER_BATCH` tokens.
Shapes: N texts, B a batch, T tokens, D vector length.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from transformers.utils.logging import disable_progress_bar

from asmtrain.config import EmbeddingConfig
from asmtrain.embedding import EmbeddingHead, vectors_of
from asmtrain.errors import ModelError
from asmtrain.tokens import as_read, load_tokenizer, task_of

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65536}
"""What fits the second-level cache of a core: 8,192 tokens are a quarter slower, 512 a tenth. A GPU needs
tens of thousands to be busy."""

_SMALL_BYTES = 1 << 30
"""Weights up to this are widened to fp32 on a CPU."""

_POOLING_MODES = {"mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
"""Our names of poolings to those of sentence-transformers."""

BatchT = TypeVar("BatchT")
ResultT = TypeVar("ResultT")
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoder:
    """A backbone, its embedding head and its tokenizer."""

    backbone: Any
    head: EmbeddingHead
    tokenizer: Any
    max_tokens: int
    """Longer functions are cut, keeping the end token."""
    sha256: str
    """Of the weights, tokenizer and settings: two encoders that share it give the same vectors."""

    @property
    def reads(self) -> str:
        """The task whose texts it reads: `events`, or views as they are."""
        return task_of(self.backbone.config)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.head.dim

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.head.dense.weight.device


def load_encoder(folder: Path, *, dim: int | None = None) -> Encoder:
    """Open an `embedding/` folder, on the GPU where there is one.

    `dim` cuts vectors to their first numbers, made unit ones again: `matryoshka` and `members` train for it.

    Raises:
        ModelError: the folder is no whole embedding export, its vectors are shorter than `dim`, or it reads
            events in the words of another version.
    """
    settings = _settings(folder)
    disable_progress_bar()  # loading is quick; the bars that matter are the callers'
    try:
        backbone = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=_dtype(folder))
        weight = load_file(folder / settings["dense"] / "model.safetensors")["linear.weight"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unusable(folder, str(error).splitlines()[0]) from None
    task_of(backbone.config)  # refuses words of another version
    sha256 = identity(folder)
    if dim is not None and dim != settings["dim"]:
        weight, sha256 = _cut(weight, dim, settings), hashlib.sha256(f"{dim} {sha256}".encode()).hexdigest()
    head = EmbeddingHead(weight.shape[1], dim or settings["dim"], pooling=settings["pooling"])
    head.to(backbone.dtype).load_state_dict({"dense.weight": weight})
    return _assembled(folder, backbone, head, settings["max_tokens"], sha256=sha256)


def _dtype(folder: Path) -> torch.dtype | str:
    """That of the weights; fp32 for small models on a CPU, where it is quicker than bf16."""
    size = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    return "auto" if torch.cuda.is_available() or size > _SMALL_BYTES else torch.float32


def _cut(weight_DH: torch.Tensor, dim: int, settings: dict[str, Any]) -> torch.Tensor:
    """The rows of the dense layer that make the first `dim` numbers, learned queries among them."""
    if not 1 <= dim <= settings["dim"]:
        raise ModelError(
            f"the model's vectors have {settings['dim']} numbers and cannot be cut to {dim}",
            remedy=f"ask for 1 to {settings['dim']}, best a length in `matryoshka` of its training, or whole "
            "`members`",
        )
    return torch.cat([side[:dim] for side in torch.split(weight_DH, settings["dim"])])


def identity(folder: Path) -> str:
    """`Encoder.sha256` of a folder, without loading it; raises ModelError where it is no embedding export."""
    return _identity(folder, _settings(folder)["dense"])


def default_model() -> Path:
    """The folder of the model that comes with the package.

    Raises:
        ModelError: this installation has none.
    """
    folder = Path(__file__).with_name("shipped")
    if not (folder / "modules.json").is_file():
        raise ModelError(
            f"no model comes with this installation ({folder} is missing)",
            remedy="name one with --model: the embedding/ folder that asmtrain export wrote",
        )
    return folder


def untrained_twin(folder: Path, *, seed: int) -> Encoder:
    """The model of an `embedding/` folder with fresh random weights: what training is measured against.

    Raises:
        ModelError: the folder is not an embedding export.
    """
    settings = _settings(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        hidden = backbone.config.hidden_size
        head = EmbeddingHead(hidden, settings["dim"], pooling=settings["pooling"])
    sha256 = hashlib.sha256(f"untrained {seed} {identity(folder)}".encode()).hexdigest()
    return _assembled(folder, backbone, head, settings["max_tokens"], sha256=sha256)


def embed_texts(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    progress: Callable[[int], None] = lambda num_done: None,
) -> Vectors:
    """Unit vectors (N, D) of view texts, in their order; `progress` hears how many more are done."""
    vectors_ND = np.zeros((len(texts), encoder.dim), dtype=np.float32)
    ids = _token_ids(encoder, texts)

    def embed(batch: list[int]) -> tuple[list[int], Vectors]:
        ids_BT, mask_BT = _padded([ids[at] for at in batch], encoder)
        vectors_BD = vectors_of(encoder.backbone, encoder.head, ids_BT, mask_BT)
        return batch, vectors_BD.float().cpu().numpy()

    budget = TOKENS_PER_BATCH[encoder.device.type]
    for batch, vectors_BD in map_batches(
        embed, _batches([len(item) for item in ids], budget), encoder.device
    ):
        vectors_ND[batch] = vectors_BD
        progress(len(batch))
    return vectors_ND


def map_batches(
    work: Callable[[BatchT], ResultT], batches: Iterable[BatchT], device: torch.device
) -> Iterator[ResultT]:
    """Results of `work` without gradients, in the batches' order; on CPU a single-threaded worker a core.

    One batch a core needs no waiting between cores inside an operator: on a busy machine two workers did
    four times the tokens of one worker with two threads, which spend their time at barriers.
    """

    def without_gradients(batch: BatchT) -> ResultT:
        with torch.inference_mode():
            return work(batch)

    if device.type != "cpu":
        yield from map(without_gradients, batches)
        return
    # The number of threads is each Python thread's own: the caller's stays as it is.
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(without_gradients, batches)


def _token_ids(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    read = [as_read(text, encoder.reads) for text in texts]
    encoded = encoder.tokenizer(read, truncation=True, max_length=encoder.max_tokens)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions sorted by length, longest first, in batches of at most `budget` tokens."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _padded(ids: Sequence[list[int]], encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    width = len(ids[0])  # the longest
    ids_BT = torch.full((len(ids), width), encoder.tokenizer.pad_token_id, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, item in enumerate(ids):
        ids_BT[row, : len(item)] = torch.tensor(item)
        mask_BT[row, : len(item)] = 1
    return ids_BT.to(encoder.device), mask_BT.to(encoder.device)


def _assembled(folder: Path, backbone: Any, head: EmbeddingHead, max_tokens: int, *, sha256: str) -> Encoder:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Encoder(
        backbone.to(device).eval(), head.to(device).eval(), load_tokenizer(folder), max_tokens, sha256
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Pooling, vector length, longest input and place of the dense layer, from the folder's files."""
    try:
        transformer = json.loads((folder / "sentence_bert_config.json").read_bytes())
        learned = (folder / _folders("learned")["Dense"]).is_dir()
        folders = _folders("learned" if learned else "mean")
        pooling = json.loads((folder / folders["Pooling"] / "config.json").read_bytes())
        dense = json.loads((folder / folders["Dense"] / "config.json").read_bytes())
        mode = next(name for name, mode in _POOLING_MODES.items() if pooling[f"pooling_mode_{mode}"])
        return {
            "pooling": "learned" if learned else mode,
            "dim": pooling["word_embedding_dimension"] if learned else dense["out_features"],
            "dense": folders["Dense"],
            "max_tokens": transformer["max_seq_length"],
        }
    except OSError as error:
        raise _unusable(folder, f"{Path(error.filename).name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise _unusable(folder, f"{type(error).__name__}: {error}") from None


def _folders(pooling: str) -> dict[str, str]:
    """The modules of a sentence-transformers folder, in their order, and where each lies."""
    kinds = ("Dense", "Pooling") if pooling == "learned" else ("Pooling", "Dense")
    return {
        "Transformer": "",
        kinds[0]: f"1_{kinds[0]}",
        kinds[1]: f"2_{kinds[1]}",
        "Normalize": "3_Normalize",
    }


def dense_folder(settings: EmbeddingConfig) -> str:
    """Where the dense layer of an `embedding/` folder lies."""
    return _folders(settings.pooling)["Dense"]


def write_layout(folder: Path, *, hidden_size: int, settings: EmbeddingConfig) -> None:
    """Write the settings of a sentence-transformers folder: modules.json and one folder a module."""
    folders = _folders(settings.pooling)
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(folders.items())
    ]
    files: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": settings.max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        f"{folders['Pooling']}/config.json": _pooling_config(settings, hidden_size),
        f"{folders['Dense']}/config.json": _dense_config(settings, hidden_size),
    }
    for path in folders.values():
        (folder / path).mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _pooling_config(settings: EmbeddingConfig, hidden_size: int) -> dict[str, Any]:
    learned = settings.pooling == "learned"
    chosen = _POOLING_MODES["mean" if learned else settings.pooling]
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    size = {"word_embedding_dimension": settings.dim if learned else hidden_size, "include_prompt": True}
    return size | {f"pooling_mode_{mode}": mode == chosen for mode in modes}


def _dense_config(settings: EmbeddingConfig, hidden_size: int) -> dict[str, Any]:
    """A linear layer over the pooled states; for `learned` over each token's, with a gate (GLU)."""
    config = {"in_features": hidden_size, "out_features": settings.dim, "bias": False}
    if settings.pooling != "learned":
        return config | {"activation_function": "torch.nn.modules.linear.Identity"}
    return config | {
        "out_features": 2 * settings.dim,
        "activation_function": "torch.nn.modules.activation.GLU",
        "module_input_name": "token_embeddings",
    }


def _unusable(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"{folder} is not an embedding model: {reason}",
        remedy="give the embedding/ folder that asmtrain export wrote",
    )


def _identity(folder: Path, dense: str) -> str:
    """Hash of every file that a vector depends on."""
    digest = hashlib.sha256()
    names = ["config.json", "sentence_bert_config.json", "tokenizer.json"]
    names += ["2_Pooling/config.json" if dense.startswith("1") else "1_Pooling/config.json"]
    names += [f"{dense}/config.json", f"{dense}/model.safetensors"]
    for path in sorted({*folder.glob("model*.safetensors"), *(folder / name for name in names)}):
        try:
            with open(path, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise _unusable(folder, f"{path.name}: {error.strerror}") from None
    return digest.hexdigest()
