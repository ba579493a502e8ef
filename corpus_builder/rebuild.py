"""Whether a corpus can be made again: random functions of it, compiled anew from what the corpus itself says.

In: a corpus folder or URL and a number. Out: how many texts came out byte for byte, and those that did not.
The index carries each project's source and build, the record its unit, compiler and flags; nothing else is
used but the cache of fetched sources. Cost: the source and the build of each project drawn, then one
compilation a function.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from corpus_builder.config import CorpusConfig
from corpus_builder.errors import ConfigError, ToolchainError
from corpus_builder.pipeline import wanted_of
from corpus_builder.plan import Plan, plan_build
from corpus_builder.prepare import prepare_unit
from corpus_builder.record import FunctionRecord, Variant
from corpus_builder.shards import CorpusIndex, load_index, read_shard
from corpus_builder.storage import Location
from corpus_builder.worker import build_unit


@dataclass(frozen=True)
class Drawn:
    """One function in one variant, chosen to be made again."""

    key: str
    project: str
    unit: str
    variant: str
    text: str
    compiler: str


@dataclass(frozen=True)
class Rebuilt:
    """What became of the functions drawn."""

    same: int
    different: tuple[str, ...]
    """One line for each text that did not come out as it is in the corpus."""
    skipped: tuple[str, ...]
    """One line for each that could not be tried, such as for a compiler of another version."""


def rebuild(
    corpus: Location,
    number: int,
    *,
    seed: int,
    cache: Path,
    toolchain_file: Path,
    sandbox: str = "bwrap",
    progress: Callable[[str], None] = lambda name: None,
) -> Rebuilt:
    """Draw `number` functions, each in one of its variants, and compile them again.

    Raises:
        ShardError: there is no corpus, or a shard is damaged.
        ConfigError: the toolchain file cannot be used, or the index does not say how projects are built.
    """
    index = load_index(corpus)
    drawn = draw(_records(corpus, index), number, seed=seed)
    same = 0
    different: list[str] = []
    skipped: list[str] = []
    for project in sorted({item.project for item in drawn}):
        own = [item for item in drawn if item.project == project]
        progress(project)
        config = _config_of(index, project, cache, toolchain_file, sandbox)
        try:
            plan = plan_build(config)
        except ToolchainError as error:
            skipped += [f"{item.key} {item.variant}: {error.message}" for item in own]
            continue
        for item in own:
            text = _made_again(item, plan, config)
            if isinstance(text, _Skipped):
                skipped.append(f"{item.key} {item.variant}: {text.reason}")
            elif text == item.text:
                same += 1
            else:
                different.append(
                    f"{item.key} {item.variant} of {item.project}/{item.unit} came out differently"
                )
    return Rebuilt(same, tuple(different), tuple(skipped))


def draw(records: Iterable[FunctionRecord], number: int, *, seed: int) -> list[Drawn]:
    """A uniform sample in one pass (reservoir sampling, Vitter 1985, algorithm R)."""
    chance = random.Random(seed)
    chosen: list[Drawn] = []
    for place, record in enumerate(records):
        slot = place if place < number else chance.randrange(place + 1)
        if slot >= number:
            continue
        variant = chance.choice(sorted(record.assembly))
        meta = record.meta
        item = Drawn(
            key=record.key,
            project=meta.project,
            unit=meta.unit,
            variant=variant,
            text=record.assembly[variant],
            compiler=meta.variants[variant].compiler,
        )
        chosen[slot : slot + 1] = [item]
    return chosen


def _records(corpus: Location, index: CorpusIndex) -> Iterator[FunctionRecord]:
    for shard in index.shards:
        yield from read_shard(corpus / shard.name)


def _config_of(
    index: CorpusIndex, project: str, cache: Path, toolchain_file: Path, sandbox: str
) -> CorpusConfig:
    """The corpus's own config, narrowed to one project."""
    described: dict[str, Any] | None = index.projects[project].get("config")
    if described is None:
        raise ConfigError(
            f"the index does not say how {project} is built",
            remedy="build the corpus with this release; earlier ones did not record it",
        )
    return CorpusConfig.model_validate(
        {
            "name": index.name,
            "output": "unused",
            "cache": cache,
            "sandbox": sandbox,
            "toolchain_file": toolchain_file,
            # All of them: which build an instruction set's commands come from is found by comparing all.
            "toolchains": list(index.toolchains),
            "levels": index.levels,
            "projects": [described],
            "shards": {"text": index.text, "members": index.members},
        }
    )


@dataclass(frozen=True)
class _Skipped:
    reason: str


def _made_again(item: Drawn, plan: Plan, config: CorpusConfig) -> str | _Skipped:
    variant = Variant.parse(item.variant)
    toolchain = next((t for t in plan.toolchains if t.id == f"{variant.isa}.{variant.compiler}"), None)
    unit = next((planned for planned in plan.units if planned.unit.id == f"{item.project}/{item.unit}"), None)
    if toolchain is None or unit is None:
        missing = "its toolchain is not installed" if toolchain is None else "its unit was not found again"
        return _Skipped(missing)
    if toolchain.version != item.compiler:
        return _Skipped(f"compiled by {item.compiler}, here is {toolchain.version}")
    level = next(level for level in config.levels if level.lower() == variant.level)
    wanted = replace(wanted_of(config), levels=(level,))
    prepared = prepare_unit(unit.unit, [toolchain], [level], limits=wanted.limits, travels=False)
    result = build_unit(unit.unit, prepared, unit.project, [toolchain], wanted)
    texts = {record.key: record.assembly for record in result.records}
    return texts.get(item.key, {}).get(item.variant, "")
