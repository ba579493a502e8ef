"""The records of a build: what a shard holds, and what travels between its stages.

`FunctionRecord` is the sample of a shard: one C function and its assembly in every variant.
`docs/format.md` specifies each field. A record turns into WebDataset members and back without loss; the
bytes depend on nothing but the record, so equal records give equal shards.
"""

import hashlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from corpus_builder.errors import ShardError

SCHEMA_VERSION = 2


class Variant(NamedTuple):
    """Toolchain x -O level, written `aarch64.gcc12.o2`."""

    isa: str
    compiler: str
    level: str

    def __str__(self) -> str:
        return f"{self.isa}.{self.compiler}.{self.level}"

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Read `isa.compiler.level`; raises ValueError for anything else."""
        isa, compiler, level = text.split(".")
        return cls(isa, compiler, level)


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceMeta(_Meta):
    """Where a project came from, enough to fetch it again."""

    kind: str
    location: str
    """`package==version`, URL or path."""
    sha256: str | None
    """Of the fetched archive; null for a folder."""


class VariantMeta(_Meta):
    """How one variant's assembly was made, and its sizes."""

    compiler: str
    """First line of the compiler's --version."""
    flags: tuple[str, ...]
    """The compiler's arguments, without input and output; paths relative to the project's root."""
    sha256: str
    """Of the `.s` member's bytes."""
    body_sha256: str
    """Of the text with symbols hidden (`asm.view`); equal for functions that differ in names alone."""
    num_instructions: int
    code_bytes: int
    """Size of the function's symbol in the assembled object."""
    symbol: str
    """What the text is of: the function's name, or its clone's (`f.constprop.0`) where only that is left."""
    clones: tuple[str, ...] = ()
    """The function's other symbols (`f.part.0`); their texts are the member `<variant>.clones.s`."""
    inlined: tuple[str, ...] = ()
    """Functions that the compiler inlined into this one, as it reported them; sorted."""


class FunctionMeta(_Meta):
    """Everything a record says of its function besides texts."""

    schema_version: int = SCHEMA_VERSION
    project: str
    version: str
    source: SourceMeta
    license: str
    """SPDX expression of the project."""
    file_license: str
    """SPDX expression in the file's own header; empty where it says none."""
    split: str
    unit: str
    """The C file whose compilation gave the assembly, relative to the project's root."""
    file: str
    """The file that declares the function: the unit itself, or a header of the project."""
    name: str
    signature: str
    lines: tuple[int, int]
    """First and last line in `file`, counted from 1, both inclusive."""
    comment: str
    """The comment directly above the function; empty without one."""
    source_sha256: str
    """Of the function's source tokens without comments and white space."""
    cluster: str
    """Key of the first record among its near duplicates; its own key for a function without any."""
    variants: dict[str, VariantMeta]


@dataclass(frozen=True)
class FunctionRecord:
    """One C function and its assembly in every variant."""

    key: str
    meta: FunctionMeta
    source: str
    assembly: Mapping[str, str]
    """Variant name to assembly text, the same names as `meta.variants`."""
    extras: Mapping[str, bytes] = field(default_factory=dict)
    """Further members, extension to bytes: `<variant>.clones.s`, and those that a config asks for."""


def function_key(project: str, file: str, line: int, name: str) -> str:
    """The function's identity as 24 hex digits: (project, declaring file, line, name)."""
    return hashlib.sha256("\0".join((project, file, str(line), name)).encode()).hexdigest()[:24]


def record_members(record: FunctionRecord) -> dict[str, bytes]:
    """A record as WebDataset members, extension to bytes, in their fixed order."""
    members = {
        "json": record.meta.model_dump_json(indent=1).encode(),
        "c": record.source.encode(),
    }
    for variant in sorted(record.assembly):
        members[f"{variant}.s"] = record.assembly[variant].encode()
    members.update(sorted(record.extras.items()))
    return members


def record_from_members(key: str, members: Mapping[str, bytes]) -> FunctionRecord:
    """The inverse of `record_members`.

    Raises:
        ShardError: a member is missing or not what the metadata says.
    """
    try:
        meta = FunctionMeta.model_validate_json(members["json"])
        assembly = {variant: members[f"{variant}.s"].decode() for variant in meta.variants}
        known = {"json", "c", *(f"{variant}.s" for variant in meta.variants)}
        extras = {name: body for name, body in members.items() if name not in known}
        return FunctionRecord(key, meta, members["c"].decode(), assembly, extras)
    except KeyError as error:
        raise ShardError(f"sample {key} lacks its member {error.args[0]!r}", remedy=_REBUILD) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise ShardError(
            f"sample {key} is damaged: {' '.join(str(error).split())}", remedy=_REBUILD
        ) from None


_REBUILD = "build the corpus again, or check its schema version against this release"


@dataclass(frozen=True)
class Command:
    """How a project's build compiles one C file for one instruction set."""

    root: Path
    """The project's folder after that build, absolute; no other folder of this machine is in a result."""
    cwd: str
    """Where the compiler was run, relative to `root`."""
    input: str
    """The C file as the command named it: relative to `cwd`."""
    flags: tuple[str, ...]
    """All but compiler, -O level, input and output; `{root}` stands for the project's folder."""


@dataclass(frozen=True)
class Unit:
    """One C translation unit with the commands its project compiles it with."""

    project: str
    file: str
    """Relative to the project's folder."""
    commands: Mapping[str, Command]
    """ISA to command."""
    size_bytes: int
    """Of the file, to start the longest first."""
    number: int = 1
    """Counts the ways in which the project compiles this file."""

    @property
    def id(self) -> str:
        """Unique in a build."""
        return f"{self.project}/{self.file}" + (f"#{self.number}" if self.number > 1 else "")


FailureStage = Literal["source", "capture", "preprocess", "compile", "assemble", "parse"]
FailureCause = Literal[
    "error", "timeout", "memory", "crash", "output", "processes", "disk", "no_source", "internal"
]


@dataclass(frozen=True)
class Failure:
    """Something that did not compile: counted and reported, never raised."""

    unit: str
    """`Unit.id`; the project's name where no unit was reached."""
    variant: str
    """Variant name; the toolchain's name where no level was reached; empty where no compiler was."""
    stage: FailureStage
    cause: FailureCause
    exit: int
    """Exit status, negative for a signal."""
    command: str
    tail: str
    """Last lines of what the command said."""


def internal_failure(unit: Unit, variant: str, error: Exception) -> Failure:
    """A mistake of ours, kept as a row with the place it happened."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    tail = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno} {last.name})"
    return Failure(
        unit=unit.id, variant=variant, stage="parse", cause="internal", exit=0, command="", tail=tail
    )


@dataclass(frozen=True)
class UnitResult:
    """What one unit gave: records without split and cluster (both empty), and failures."""

    unit: str
    records: tuple[FunctionRecord, ...] = ()
    failures: tuple[Failure, ...] = field(default=())
