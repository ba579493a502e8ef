"""The optimizer's state as slices of parameters, whatever the layout in which DeepSpeed updates them.

In: DeepSpeed's optimizer at any ZeRO stage. Out: the slice of each trained parameter that this rank updates
(fp32 weights, Adam's moments, step count), to tensors of a rank's file and back. Invariant: the files of all
ranks hold every element of every trained parameter once, named by parameter and first element; so they fit
any number of ranks and any ZeRO stage. Padding is not kept: it stays zero. Cost: no communication; a rank
whose share is the same as before reads its own file only.

Where DeepSpeed 0.19 keeps what it updates:
    stage 0, fp32   the parameters themselves, on every rank (torch's optimizer)
    stage 0, bf16   `fp32_groups[i][j]`, a copy of `fp16_groups[i][j]`, on every rank (FP16_UnfusedOptimizer)
    stages 1 and 2  a flat tensor for each parameter group, cut evenly over the ranks; a parameter's
                    `_hp_mapping` tells its fragment (DeepSpeedZeroOptimizer; BF16_Optimizer at stage 1)
    stage 3         every parameter cut evenly, the pieces end to end in flat tensors of sub-groups;
                    `grad_position` tells where (DeepSpeedZeroOptimizer_Stage3)
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from asmtrain.errors import CheckpointError, ConfigError

_WEIGHTS = "weights"
States = MutableMapping[torch.Tensor, dict[str, Any]]
"""An optimizer's `state`: what it keeps for each tensor that it updates."""


@dataclass(frozen=True)
class Slice:
    """Some elements of a flattened parameter, and where this rank's optimizer has them."""

    name: str
    """Of the parameter in the module."""
    start: int
    """First element, in the parameter."""
    length: int
    part: torch.Tensor
    """The tensor that the optimizer updates."""
    offset: int
    """First element, in the flattened part."""

    def of(self, like_part: torch.Tensor) -> torch.Tensor:
        """The slice's elements of a tensor laid out as the part: a view."""
        return like_part.detach().view(-1).narrow(0, self.offset, self.length)


def held(optimizer: Any, parameters: Mapping[str, torch.Tensor], *, rank: int) -> list[Slice]:
    """The slices that this rank updates, at most one of a parameter.

    Raises:
        ConfigError: the optimizer keeps its state in a way not known here.
    """
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(_partitioned(optimizer, trained, rank))
    if hasattr(optimizer, "single_partition_of_fp32_groups") or hasattr(
        optimizer, "fp32_groups_flat_partition"
    ):
        return list(_fragments(optimizer, trained))
    return list(_whole(optimizer, trained))


def _partitioned(optimizer: Any, trained: Mapping[str, Any], rank: int) -> Iterator[Slice]:
    """Stage 3; the last rank's piece of a parameter may be padding in part."""
    for name, parameter in trained.items():
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        share = parameter.ds_tensor.ds_numel
        length = min(share, parameter.ds_numel - rank * share)
        if length > 0:
            yield Slice(name, rank * share, length, optimizer.fp32_partitioned_groups_flat[group], offset)


def _fragments(optimizer: Any, trained: Mapping[str, Any]) -> Iterator[Slice]:
    """Stages 1 and 2; a parameter of which this rank has nothing has no mapping."""
    for name, parameter in trained.items():
        mapping = parameter._hp_mapping
        if mapping is not None:
            (part,) = optimizer.optimizer.param_groups[mapping.param_group_index]["params"]
            place, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            yield Slice(name, place, length, part, mapping.hp_fragment_address.start)


def _whole(optimizer: Any, trained: Mapping[str, Any]) -> Iterator[Slice]:
    """Stage 0."""
    copied = zip(getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=False)
    copies = {id(own): copy for group in copied for own, copy in zip(*group, strict=True)}
    updated = {id(part) for group in optimizer.param_groups for part in group["params"]}
    for name, parameter in trained.items():
        part = copies.get(id(parameter), parameter)
        if id(part) not in updated:
            raise ConfigError(
                f"the state of {type(optimizer).__name__} cannot be saved: its layout is not known",
                remedy="leave `optimizer` and `data_types` out of the `deepspeed` group",
            )
        yield Slice(name, 0, part.numel(), part, 0)


def shared_out(slices: Iterable[Slice], rank: int, size: int) -> Iterator[Slice]:
    """This rank's even share of slices that all ranks hold alike."""
    for piece in slices:
        first, end = (piece.length * number // size for number in (rank, rank + 1))
        if first < end:
            yield replace(piece, start=piece.start + first, offset=piece.offset + first, length=end - first)


def to_tensors(slices: Iterable[Slice], states: States) -> dict[str, torch.Tensor]:
    """Copies on the CPU, named `PARAMETER@START.weights`, `.exp_avg`, `.exp_avg_sq` and `.step`."""
    tensors = {}
    for piece in slices:
        for field, value in {_WEIGHTS: piece.part, **states.get(piece.part, {})}.items():
            own = piece.of(value) if value.ndim else value
            tensors[f"{piece.name}@{piece.start}.{field}"] = own.to("cpu", copy=True)
    return tensors


def load(slices: Sequence[Slice], states: States, paths: Iterable[Path]) -> None:
    """Fill the slices, and what the optimizer keeps for them, from ranks' files, until nothing is missing.

    Raises:
        CheckpointError: a file cannot be read, or part of a parameter is in none.
    """
    wanted = {piece.name: piece for piece in slices}
    missing = {piece.name: piece.length for piece in slices}
    for piece in slices:
        states[piece.part] = {}
    for path in paths:
        if not any(missing.values()):
            return
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118  # not a mapping
                name, _, place = key.rpartition("@")
                if name in wanted:
                    start, _, field = place.partition(".")
                    missing[name] -= _take(file, key, wanted[name], int(start), field, states)
    absent = [name for name, count in missing.items() if count]
    if absent:
        raise CheckpointError(
            f"checkpoint {path.parent} holds no whole state of {absent[0]}, and {len(absent) - 1} more",
            remedy="an earlier version of asmtrain wrote it: finish the stage with that one, or delete the "
            "run's `checkpoints` and start the stage over",
        )


def _take(file: Any, key: str, into: Slice, start: int, field: str, states: States) -> int:
    """Copy what a stored tensor has of a slice; returns the number of weights among it."""
    stored, state = file.get_slice(key), states[into.part]
    if not stored.get_shape():
        state[field] = file.get_tensor(key).clone()
        return 0
    first = max(start, into.start)
    count = min(start + stored.get_shape()[0], into.start + into.length) - first
    if count <= 0:
        return 0
    if field != _WEIGHTS and field not in state:
        state[field] = torch.zeros_like(into.part.detach())
    target = into.of(into.part if field == _WEIGHTS else state[field])
    target.narrow(0, first - into.start, count).copy_(stored[first - start : first - start + count])
    return count if field == _WEIGHTS else 0


def random_state(path: Path) -> dict[str, torch.Tensor]:
    """What a rank's file holds beside the slices; raises CheckpointError when it cannot be read."""
    with _opened(path) as file:
        return {key: file.get_tensor(key).clone() for key in file.keys() if "@" not in key}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", remedy=f"delete {path.parent}") from None
