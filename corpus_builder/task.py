"""What a process does for one unit: prepare it, and turn what was prepared into a part.

In: a task, as it travels through Ray. Out: a part's bytes and its counts.
Invariant: worker processes load this module and what it imports, nothing else: each of them waits for it.
"""

import resource
from dataclasses import dataclass

from corpus_builder import csource
from corpus_builder.config import DedupConfig, Project
from corpus_builder.dedup import signatures
from corpus_builder.parts import encode_part
from corpus_builder.prepare import Prepared, prepare_unit
from corpus_builder.record import Unit
from corpus_builder.toolchain import Toolchain
from corpus_builder.worker import Wanted, build_unit


@dataclass(frozen=True)
class Task:
    """What is needed to make one part; it travels without the project's files."""

    unit: Unit
    project: Project
    toolchains: tuple[Toolchain, ...]
    wanted: Wanted
    dedup: DedupConfig
    part: str


@dataclass(frozen=True)
class Part:
    """A part as a worker sends it, and its counts."""

    data: bytes
    num_functions: int
    num_failures: int
    assembly_bytes: int
    compiler_s: float
    """CPU time of the compilers, preprocessing included."""
    is_whole: bool
    """Whether nothing failed."""


def prepare(task: Task) -> tuple[Prepared, float]:
    """Runs on the driver's node; what it prepared for another, and the preprocessors' CPU time."""
    return _read(task, travels=True)


def make_part_here(task: Task) -> Part:
    """Runs on the driver's node, where the unit's own commands do: no text is written and read again."""
    return make_part(task, _read(task, travels=False))


def _read(task: Task, *, travels: bool) -> tuple[Prepared, float]:
    before = _children_s()
    prepared = prepare_unit(
        task.unit, task.toolchains, task.wanted.levels, limits=task.wanted.limits, travels=travels
    )
    return prepared, _children_s() - before


def make_part(task: Task, given: tuple[Prepared, float]) -> Part:
    """Runs on any node."""
    prepared, preprocessor_s = given
    before = _children_s()
    result = build_unit(task.unit, prepared, task.project, task.toolchains, task.wanted)
    compiler_s = preprocessor_s + _children_s() - before
    tokens = [csource.source_tokens(record.source) for record in result.records]
    rows = signatures(tokens, num_perm=task.dedup.num_perm, shingle=task.dedup.shingle)
    return Part(
        data=encode_part(result, rows),
        num_functions=len(result.records),
        num_failures=len(result.failures),
        assembly_bytes=sum(len(text) for record in result.records for text in record.assembly.values()),
        compiler_s=compiler_s,
        is_whole=not result.failures,
    )


def _children_s() -> float:
    """CPU time of the processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
