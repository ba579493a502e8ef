"""Exports of a run: merged weights, adapter, embedding model.

    merged/       Hugging Face folder: base and adapter in one, as transformers and vLLM load it
    adapter/      PEFT adapter of the same stage; absent where the stage trained every weight
    embedding/    sentence-transformers folder in its legacy layout, which old and new releases load

In goes a run folder, or one of its stages or checkpoints, whatever ZeRO stage wrote it; no GPU, no network.
`merged/` and `adapter/` come from the newest language-modelling stage, `embedding/` from the newest
contrastive one. Invariants: an export with a tensor that is empty, partial, not finite or not stored as it
was computed is not published, nor, when probed, one that differs from the trainer's model by more than the
stated bound; a published folder is whole, carries `provenance.json` and, in `manifest.json`, the sha256 of
each file. Cost: weights pass through memory a block at a time (`merge`); a probe loads each model.
"""

import gc
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from asmtrain import checkpoint, terminal
from asmtrain.checkpoint import load_stage_result, new_draft, publish, read_result
from asmtrain.config import Dtype
from asmtrain.encoder import dense_folder, embed_texts, load_encoder, write_layout
from asmtrain.errors import CheckpointError, ExportError
from asmtrain.merge import check_adapter, write_merged
from asmtrain.model import ADAPTER_FILE, DTYPES, HEAD_FILE, EmbeddingModel, backbone
from asmtrain.provenance import provenance
from asmtrain.tokens import as_read, load_tokenizer, task_of
from asmtrain.weights import TensorFiles, refuse_unsound

LOGIT_BOUND: dict[Dtype, float] = {"fp32": 1e-4, "bf16": 0.1}
"""Largest allowed difference of a logit between adapter and merged weights, as a share of the largest logit.
In bf16 each merged weight is rounded to 8 bits, which is where the difference comes from."""

VECTOR_BOUND: dict[Dtype, float] = {"fp32": 1e-5, "bf16": 2e-2}
"""Largest allowed difference in a component of an embedding vector, whose length is 1."""

Figures: TypeAlias = dict[str, float]

_PROBES = (
    "sub sp, sp, 32\nstr x0, [sp, 24]\nstr w1, [sp, 20]\nldr x0, [sp, 24]\nldr w1, [sp, 20]\n"
    "cmp w1, 255\nb.le L0\nmov w0, -22\nb L1\nL0:\nbl CALL\nL1:\nadd sp, sp, 32\nret\n",
    "pushq %rbp\nmovq %rsp, %rbp\nmovl $4096, %edx\nleaq SYM(%rip), %rax\ncall CALL\npopq %rbp\nret\n",
    "mov x2, 1\nL0:\nldrb w3, [x0, x2]\nadd x2, x2, 1\ncbnz w3, L0\nadrp x0, SYM\nret\n" * 64,
)
"""What the verification runs on: both ISAs, and one text beyond any usual limit, which must be cut alike."""


@dataclass(frozen=True)
class Sources:
    """Where an export reads: stage results, and the run around them."""

    run: Path
    lm: Path | None
    embedding: Path | None


@dataclass(frozen=True)
class Options:
    """How exports are written and verified."""

    dtype: Dtype | None = None
    """Of the weights; the one they were trained in if not given."""
    shard_bytes: int = 5_000_000_000
    """Largest size of a weights file."""
    probe: bool = False
    """Load trained and exported models, and compare what they give on probe texts."""


def run(source: Path, output: Path | None = None, options: Options = Options()) -> int:
    """Export a run, a stage or a checkpoint into `output`, and print what was verified.

    Raises:
        CheckpointError: `source` holds nothing that was trained.
        ExportError: an export is not what was trained.
    """
    sources = find_sources(source)
    output = output or sources.run / "export"
    console = terminal.console()
    if sources.lm:
        _report(console, output / "merged", export_merged(sources, output / "merged", options))
        if (sources.lm / ADAPTER_FILE).exists():
            _report(console, output / "adapter", export_adapter(sources, output / "adapter", options))
        else:
            console.print(f"no adapter: stage {read_result(sources.lm).name} trained every weight")
    if sources.embedding:
        _report(console, output / "embedding", export_embedding(sources, output / "embedding", options))
    return 0


def _report(console: Console, folder: Path, figures: Figures) -> None:
    console.print(f"[bold]{folder}[/bold]")
    for name, value in figures.items():
        console.print(f"  {name.replace('_', ' ')}: {value:.3g}")


def find_sources(source: Path) -> Sources:
    """The stage results that a path leads to.

    Raises:
        CheckpointError: it leads to none.
    """
    if (source / "weights" / "result.json").exists():
        source = source / "weights"
    single = (source / "result.json").exists()
    folders = [source] if single else checkpoint.stage_folders(source)
    if not folders:
        raise CheckpointError(
            f"{source} holds nothing to export: no finished stage",
            remedy="give a run folder, a folder under its stages/, or a checkpoint under its checkpoints/",
        )
    parents = [source, *source.resolve().parents]
    home = next((folder for folder in parents if (folder / "config.yaml").exists()), source)
    objectives = [(read_result(folder).objective, folder) for folder in folders]
    lm = [folder for objective, folder in objectives if objective in ("causal_lm", "sft")]
    embedding = [folder for objective, folder in objectives if objective == "contrastive"]
    return Sources(home, lm[-1] if lm else None, embedding[-1] if embedding else None)


# The three exports.


def export_merged(sources: Sources, folder: Path, options: Options) -> Figures:
    """Write `merged/`: the model with its adapter folded in; returns what was verified."""
    assert sources.lm is not None
    with _replacing(folder) as draft:
        figures = write_merged(sources.lm, draft, dtype=options.dtype, shard_bytes=options.shard_bytes)
        tokenizer = prompt_tokenizer(sources.run)
        tokenizer.save_pretrained(draft)
        if options.probe:
            expected = _probe(load_stage_result(sources.lm)[0], tokenizer)
            merged = AutoModelForCausalLM.from_pretrained(draft, dtype="auto")
            figures |= _compare_logits(
                _probe(merged, tokenizer), expected, _coarser(read_result(sources.lm).dtype, options), folder
            )
        _write_provenance(draft, sources, sources.lm, figures)
    return figures


def export_adapter(sources: Sources, folder: Path, options: Options) -> Figures:
    """Write `adapter/`, which PEFT loads on the base that it names; returns what was verified."""
    assert sources.lm is not None
    result = read_result(sources.lm)
    base = checkpoint.base_path(sources.lm, result)
    check_adapter(sources.lm)
    tokenizer = prompt_tokenizer(sources.run)
    figures: Figures = {}
    with _replacing(folder) as draft:
        settings = json.loads((sources.lm / "adapter_config.json").read_bytes())
        settings["base_model_name_or_path"] = base
        (draft / "adapter_config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
        shutil.copyfile(sources.lm / ADAPTER_FILE, draft / ADAPTER_FILE)
        tokenizer.save_pretrained(draft)
        if options.probe:
            expected = _probe(load_stage_result(sources.lm)[0], tokenizer)
            found = _probe(_load_peft(base, draft), tokenizer)
            figures = _compare_logits(found, expected, result.dtype, folder)
        _write_provenance(draft, sources, sources.lm, figures)
    return figures


def export_embedding(sources: Sources, folder: Path, options: Options) -> Figures:
    """Write `embedding/`, a sentence-transformers folder; returns what was verified."""
    assert sources.embedding is not None
    result = read_result(sources.embedding)
    if result.embedding is None:
        raise ExportError(
            f"stage {result.name} has no embedding head", remedy="train a contrastive stage with `embedding`"
        )
    tokenizer = load_tokenizer(sources.run / "tokenizer")
    max_tokens = result.embedding.max_tokens
    with _replacing(folder) as draft:
        figures = write_merged(
            sources.embedding, draft, dtype=options.dtype, shard_bytes=options.shard_bytes, headless=True
        )
        _portable(tokenizer, max_tokens).save_pretrained(draft)
        dtype = DTYPES[options.dtype or result.dtype]
        width = _write_dense(sources.embedding, draft / dense_folder(result.embedding), dtype)
        write_layout(draft, hidden_size=width, settings=result.embedding)
        if options.probe:
            model, head = load_stage_result(sources.embedding)
            assert head is not None
            texts = [as_read(view, task_of(backbone(model).config)) for view in _PROBES]
            expected = _trainer_vectors(EmbeddingModel(model, head).eval(), tokenizer, max_tokens, texts)
            del model
            gc.collect()
            bound = VECTOR_BOUND[_coarser(result.dtype, options)]
            figures |= _compare_vectors(draft, texts, expected, bound, folder)
        _write_provenance(draft, sources, sources.embedding, figures)
    return figures


def _write_dense(stage: Path, folder: Path, dtype: torch.dtype) -> int:
    """Write the embedding head's matrix as sentence-transformers reads it; returns its width."""
    head = TensorFiles([stage / HEAD_FILE])
    weight = head.whole("dense.weight")
    refuse_unsound("dense.weight", weight, head.shapes["dense.weight"])
    folder.mkdir()
    save_file({"linear.weight": weight.to(dtype)}, folder / "model.safetensors")
    return weight.shape[1]


def _load_peft(base: str, adapter: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by the old name of a property.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A draft that takes the place of `folder` when all went well; until then the old one stays."""
    with checkpoint.written_to(folder):
        draft = new_draft(folder)
        yield draft
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        publish(draft, folder)
        shutil.rmtree(old, ignore_errors=True)


# Verification.


@torch.inference_mode()
def _probe(model: torch.nn.Module, tokenizer: Any) -> list[torch.Tensor]:
    """Logits of the probe texts."""
    model.eval()
    ids = [torch.tensor([tokenizer(text)["input_ids"][:256]]) for text in _PROBES]
    return [model(input_ids=ids_1T, use_cache=False).logits.float() for ids_1T in ids]


def _coarser(trained: Dtype, options: Options) -> Dtype:
    """Of the dtypes that a comparison is between, the one that bounds it."""
    return "bf16" if "bf16" in (trained, options.dtype) else "fp32"


def _compare_logits(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], dtype: Dtype, folder: Path
) -> Figures:
    bound = LOGIT_BOUND[dtype]
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    scale = max(float(item.abs().max()) for item in expected)
    if not difference <= bound * scale:
        raise ExportError(
            f"{folder} differs from the trained model by {difference:.3g} in a logit; "
            f"the bound is {bound:g} of the largest, {scale:.3g}",
            remedy="train in fp32, or check that the base is the one the adapter was trained on",
        )
    return {"max_logit_difference": difference, "largest_logit": scale, "bound": bound * scale}


@torch.inference_mode()
def _trainer_vectors(
    model: EmbeddingModel, tokenizer: Any, max_tokens: int, texts: Sequence[str]
) -> np.ndarray[Any, Any]:
    """Each text alone, through the model that was trained."""
    vectors = []
    for text in texts:
        ids_1T = torch.tensor([tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]])
        vectors.append(model(ids_1T, torch.ones_like(ids_1T))[0].float().numpy())
    return np.stack(vectors)


def _compare_vectors(
    draft: Path, texts: Sequence[str], expected: np.ndarray[Any, Any], bound: float, folder: Path
) -> Figures:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(draft), device="cpu").encode(list(texts), show_progress_bar=False)
    ours = embed_texts(load_encoder(draft), _PROBES)
    differences = {
        "max_vector_difference_sentence_transformers": float(np.abs(np.float32(library) - expected).max()),
        "max_vector_difference_asmtrain": float(np.abs(ours - expected).max()),
    }
    for name, difference in differences.items():
        if not difference <= bound:
            raise ExportError(
                f"{folder}: {name} is {difference:.3g}, beyond the bound of {bound:g}",
                remedy="check that tokenizer and versions are those of the run, then export again",
            )
    return differences | {"bound": bound}


# Files.


def prompt_tokenizer(run: Path) -> Any:
    """The run's tokenizer for generating: it writes BOS alone, since text goes on after a prompt."""
    from tokenizers import processors

    tokenizer = load_tokenizer(run / "tokenizer")
    first = [tokenizer.bos_token] if tokenizer.bos_token else []
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A"],
        pair=[*first, "$A", "$B"],
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in first],
    )
    return _portable(tokenizer, None)


def _portable(tokenizer: Any, max_tokens: int | None) -> Any:
    """As a plain fast tokenizer: a class of its own, such as Llama's, rewrites the end tokens on load."""
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=tokenizer.chat_template,
    )
    if max_tokens:
        plain.model_max_length = max_tokens
    return plain


def _write_provenance(draft: Path, sources: Sources, stage: Path, figures: Figures) -> None:
    result = read_result(stage).model_dump(mode="json")
    content = provenance(sources.run, stage, result=result, verified=figures)
    (draft / "provenance.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
