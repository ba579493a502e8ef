"""Language models: make, load, adapt, freeze, merge, count.

In: a shape or a Hugging Face folder, and what a stage trains. Out: a Llama in its dtype, with a LoRA adapter
where asked, whose `requires_grad` flags say what is trained. Invariant: nothing here is partitioned; ZeRO
takes the finished module over. Counting allocates nothing: it builds the same module on the meta device.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from asmtrain.attention import document_ends
from asmtrain.config import Dtype, EmbeddingConfig, Full, Lora, ModelConfig, ShapeConfig
from asmtrain.embedding import EmbeddingHead, new_head, vectors_of
from asmtrain.errors import ConfigError, ModelError
from asmtrain.losses import LOGITS_AT_ONCE, head_losses
from asmtrain.ulysses import RowShare
from asmtrain.weights import WEIGHTS_FILE

LanguageModel: TypeAlias = PreTrainedModel | PeftModel

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEAD_FILE = "embedding_head.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
NEW_TOKENS = "assembly_tokens"
"""Key in config.json of an extended base: the first of its new tokens, and the one after the last."""


class TokenLossModel(nn.Module):
    """A language model that gives the loss of each token of packed rows in place of its logits."""

    def __init__(self, lm: LanguageModel, *, logits_at_once: int = LOGITS_AT_ONCE) -> None:
        super().__init__()
        self.lm = lm
        self.logits_at_once = logits_at_once

    def forward(
        self,
        ids_BT: torch.Tensor,
        position_ids_BT: torch.Tensor,
        targets_BT: torch.Tensor | None = None,
        document_lengths: Sequence[int] | None = None,
        share: RowShare | None = None,
        *,
        logits_at: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """losses_BT, 0 where a place has no target; `document_lengths` as in `attention`.

        With the `share` of a group of ranks, T is this rank's span; lengths are always those of whole rows.
        Without targets, the logits_BNV of the N places `logits_at`: through here, not past it, since ZeRO 3
        begins and ends a forward pass at this module.
        """
        rows, length = ids_BT.shape
        lengths = [length] * rows if document_lengths is None else document_lengths
        # No mask and no cache: with either, position ids would not keep packed documents apart.
        hidden_BTD: torch.Tensor = backbone(self.lm)(
            input_ids=ids_BT,
            position_ids=position_ids_BT,
            use_cache=False,
            document_lengths=lengths,
            document_ends=document_ends(lengths, ids_BT.device),
            share=share,
        ).last_hidden_state
        head = self.lm.get_output_embeddings()
        if targets_BT is None:
            logits_BNV: torch.Tensor = head(hidden_BTD[:, logits_at])
            return logits_BNV
        return head_losses(
            head,
            hidden_BTD,
            targets_BT,
            vocab_size=self.lm.config.vocab_size,
            logits_at_once=self.logits_at_once,
        )


class EmbeddingModel(nn.Module):
    """A language model's backbone and the head that turns its hidden states into one unit vector."""

    def __init__(self, lm: LanguageModel, head: EmbeddingHead) -> None:
        super().__init__()
        self.lm = lm
        self.head = head

    def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Unit vectors_BD of token ids_BT; `mask_BT` is 1 where there is a token, 0 in the padding behind."""
        return vectors_of(backbone(self.lm), self.head, ids_BT, mask_BT)


def backbone(lm: LanguageModel) -> Any:
    """The transformer under the language model's head, with its adapters if it has any."""
    return (lm.get_base_model() if isinstance(lm, PeftModel) else lm).model


def set_attention(config: Any, embedding: EmbeddingConfig | None) -> None:
    """Let a model see both ways if its embedding is to; the key is transformers' own, kept in config.json."""
    is_causal = embedding is None or embedding.attention == "causal"
    if not is_causal or hasattr(config, "is_causal"):
        config.is_causal = is_causal


def llama_config(shape: ShapeConfig, *, max_positions: int = 4096, **token_ids: int | None) -> LlamaConfig:
    """The Hugging Face config of a shape; `token_ids` are bos_token_id, eos_token_id, pad_token_id."""
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tie_embeddings,
        **token_ids,
    )


def new_model(config: LlamaConfig, *, dtype: Dtype, seed: int) -> PreTrainedModel:
    """A Llama with random weights; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(DTYPES[dtype])


def extended(config: Any, num_tokens: int, *, first: int | None = None) -> Any:
    """The config with `num_tokens` new tokens from `first` on; the vocabulary's end if not given."""
    if num_tokens:
        first = config.vocab_size if first is None else first
        config.vocab_size = max(config.vocab_size, first + num_tokens)
        setattr(config, NEW_TOKENS, [first, first + num_tokens])
    return config


def load_model(path: str, *, dtype: Dtype) -> PreTrainedModel:
    """Load a causal language model from a Hugging Face folder or hub name, safetensors only.

    Raises:
        ModelError: nothing there, no weights, or weights that do not fit the config.
    """
    check_model(path)
    transformers_logging.disable_progress_bar()  # its lines would stand between ours
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"model {path!r} cannot be loaded: {str(error).splitlines()[0]}",
            remedy="give a folder with config.json and safetensors weights, or a hub name within reach",
        ) from None
    wrong = sorted(loaded["missing_keys"]) + sorted(str(key) for key in loaded["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"model {path!r} lacks {len(wrong)} weights of its config, first {wrong[0]}",
            remedy="download or export the model again",
        )
    return model


def check_model(path: str) -> None:
    """Raise ModelError for a local folder that lacks a model or its weights; a hub name is left alone."""
    folder = Path(path)
    if not folder.is_dir():
        return
    if not (folder / "config.json").exists():
        raise ModelError(
            f"{folder} holds no model: config.json is missing", remedy="give a Hugging Face model folder"
        )
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"model folder {folder} has no weights: no *.safetensors in it",
            remedy="download the weights, or convert pytorch_model.bin to safetensors",
        )


def attach_lora(model: PreTrainedModel, lora: Lora, *, base: str) -> PeftModel:
    """Wrap `model`, which came from `base`, with LoRA (Hu et al. 2021) and the modules trained in full.

    Raises:
        ConfigError: `unfreeze` would untie the tied embeddings.
    """
    if lora.unfreeze and model.config.tie_word_embeddings:
        raise ConfigError(
            f"unfreeze: {list(lora.unfreeze)} with tied embeddings would train two copies of one matrix",
            remedy="leave `unfreeze` empty for this model, or start from one with an untied head",
        )
    tokens = new_rows(model.config, lora)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        modules_to_save=list(lora.unfreeze) or None,
        trainable_token_indices={name: list(rows) for name, rows in tokens.items()} or None,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 by the old name of a property.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            # Adapters in the model's own dtype: ZeRO-3 asserts on mixed ones.
            wrapped = get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(
            f"targets: {lora.targets!r} fits no module of the model: {str(error).splitlines()[0]}",
            remedy="use all-linear, or names such as q_proj",
        ) from None
    # Set late: peft would put the folder's name on this machine in its place.
    wrapped.peft_config["default"].base_model_name_or_path = base
    return wrapped


def new_rows(config: Any, lora: Lora) -> dict[str, range]:
    """Rows of assembly tokens that an adapter trains, by module: those a vocabulary was extended by."""
    if not getattr(config, NEW_TOKENS, None):
        return {}
    names = ("embed_tokens",) if config.tie_word_embeddings else ("embed_tokens", "lm_head")
    return {name: range(*getattr(config, NEW_TOKENS)) for name in names if name not in lora.unfreeze}


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Fold the adapter into its base, in the base's dtype; returns the base."""
    return model.merge_and_unload()


def is_adapted(model: LanguageModel) -> bool:
    """Whether the model carries an adapter."""
    return isinstance(model, PeftModel)


def enable_recompute(model: LanguageModel) -> None:
    """Recompute activations in the backward pass (gradient checkpointing)."""
    lm = model.get_base_model() if isinstance(model, PeftModel) else model
    settings = {"use_reentrant": False}
    # transformers renamed it within the range we support.
    if hasattr(lm, "activation_checkpointing_enable"):
        lm.activation_checkpointing_enable(settings)
    else:
        lm.gradient_checkpointing_enable(settings)


def compile_blocks(model: LanguageModel, *, backend: str = "inductor") -> None:
    """Compile each layer of the transformer, at its first call; equal layers share what was compiled."""
    for layer in backbone(model).layers:
        layer.compile(backend=backend)


def set_trainable(model: LanguageModel, trainable: Full | Lora, *, headless: bool) -> None:
    """Set `requires_grad`: every weight, or the adapter and its modules trained in full.

    `headless` freezes the output head, which a contrastive loss gives no gradient.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable.kind == "full" or _in_adapter(name))
    if headless:
        lm = model.get_base_model() if isinstance(model, PeftModel) else model
        if not lm.config.tie_word_embeddings:
            lm.lm_head.requires_grad_(False)


def _in_adapter(name: str) -> bool:
    return any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens_delta"))


def result_names(model: LanguageModel) -> list[str]:
    """Names of the parameters that a stage result keeps: the adapter's, or all."""
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if _in_adapter(name)] if isinstance(model, PeftModel) else names


def write_weights(folder: Path, model: LanguageModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a Hugging Face folder, or a PEFT adapter folder, from whole tensors named by `result_names`."""
    write_form(folder, model)
    name, state = weights_file(model, tensors)
    save_file(state, folder / name, metadata={"format": "pt"})


def weights_file(
    model: LanguageModel, tensors: Mapping[str, torch.Tensor]
) -> tuple[str, dict[str, torch.Tensor]]:
    """The file that holds whole tensors named by `result_names`, and their names in it."""
    missing = [name for name in result_names(model) if tensors[name].numel() == 0]
    assert not missing, f"partitioned tensors reached a file: {missing[:3]}"
    if isinstance(model, PeftModel):
        return ADAPTER_FILE, get_peft_model_state_dict(model, dict(tensors), save_embedding_layers=False)
    return WEIGHTS_FILE, dict(tensors)


def write_form(folder: Path, model: LanguageModel) -> None:
    """Write what a folder holds beside its weights; reads nothing of the model that training changes."""
    if isinstance(model, PeftModel):
        model.peft_config["default"].save_pretrained(str(folder))
        return
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def load_adapter(model: PreTrainedModel, folder: Path, lora: Lora, *, base: str) -> PeftModel:
    """Wrap `model` with the adapter saved in `folder`.

    Raises:
        ModelError: the folder holds no whole adapter for this model.
    """
    wrapped = attach_lora(model, lora, base=base)
    state = _load_tensors(folder / ADAPTER_FILE)
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise ModelError(
            f"adapter {folder} does not fit its model: {len(odd)} tensors differ, first {odd[0]}",
            remedy="use the adapter with the base it was trained on",
        )
    set_peft_model_state_dict(wrapped, state)
    return wrapped


def load_head(folder: Path, embedding: EmbeddingConfig, *, hidden_size: int, dtype: Dtype) -> EmbeddingHead:
    """Load the embedding head of a stage result; raises ModelError where there is none."""
    head = new_head(hidden_size, embedding).to(DTYPES[dtype])
    head.load_state_dict(_load_tensors(folder / HEAD_FILE))
    return head


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}", remedy="train or export it again") from None


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters."""

    total: int
    trainable: int


def meta_model(config: Any, trainable: Full | Lora, *, dtype: Dtype, headless: bool) -> LanguageModel:
    """The module that a stage trains (the embedding head aside), on the meta device: it takes no memory."""
    with torch.device("meta"):
        model: LanguageModel = LlamaForCausalLM(config)
        if isinstance(trainable, Lora):
            model = attach_lora(model, trainable, base="")
    model = model.to(DTYPES[dtype])  # adapters too: peft gives them their base's dtype, but not on meta
    set_trainable(model, trainable, headless=headless)
    return model


def count_parameters(model: LanguageModel) -> ParameterCount:
    """Count what a model holds and trains."""
    # PEFT keeps a frozen copy of a module trained in full: it takes memory, so it counts.
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained))


def planned_config(model: ModelConfig) -> Any:
    """The architecture that a run will train, from its shape, or from its folder's config.json.

    Raises:
        ModelError: neither is at hand without a network.
    """
    if model.shape is not None:
        return extended(llama_config(model.shape), model.assembly_tokens)
    try:
        config = AutoConfig.from_pretrained(model.path, local_files_only=True)
        return extended(config, model.assembly_tokens)
    except (OSError, ValueError):
        raise ModelError(
            f"the architecture of {model.path!r} is not on this machine",
            remedy="give model.shape beside model.path, or download the model first",
        ) from None
