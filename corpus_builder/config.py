"""Configuration: YAML in, frozen pydantic models out.

One YAML file describes a run; `--set a.b=c` overrides single keys; there is no other source. Every mistake
in the file is reported at once, each with its dotted path, the value found and, for an unknown key, the
nearest valid one. `load_config` is shared with the trainer; the models of a corpus stand below it.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from corpus_builder.errors import ConfigError
from corpus_builder.storage import Location, location

LEVELS = ("O0", "O1", "O2", "O3", "Os")
OPTIMISATIONS = ("O0", "O1", "O2", "O3", "Os", "Oz", "Ofast", "Og")
SPLITS = ("train", "valid", "test")

ConfigT = TypeVar("ConfigT", bound="ConfigModel")
Level = Annotated[str, Field(pattern=rf"^({'|'.join(OPTIMISATIONS)})(-[a-z0-9]+)*$")]
"""An -O level, alone or with a flag set of the toolchain file: `O2`, `O2-no-inline`."""
Isa = Literal["aarch64", "x86_64", "riscv64"]
Split = Literal["train", "valid", "test"]
if TYPE_CHECKING:
    Output = Location
else:  # pydantic would want the class of a URL's path, which takes 40 ms to import
    Output = Annotated[Any, PlainValidator(location), PlainSerializer(str)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ConfigModel(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PypiSource(ConfigModel):
    """A source distribution of a Python package that carries a C library."""

    kind: Literal["pypi"] = "pypi"
    package: str
    version: str
    sha256: Sha256


class ArchiveSource(ConfigModel):
    """A tar or zip archive, given as a URL or a local file."""

    kind: Literal["archive"]
    location: str
    sha256: Sha256


class PathSource(ConfigModel):
    """A folder on this machine, used in place."""

    kind: Literal["path"]
    path: Path


class GitSource(ConfigModel):
    """One commit of a git repository."""

    kind: Literal["git"]
    url: str
    """Anything `git fetch` takes: a URL, or a local repository."""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]
    """The full hash; a branch or a tag may move."""


class DebianSource(ConfigModel):
    """A Debian or Ubuntu source package at one version, with its patches applied, or all but some."""

    kind: Literal["debian"]
    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    version: str
    """As in `apt-cache showsrc`, with epoch and revision: `1:1.2.13.dfsg-1`."""
    sha256: Sha256 | None = None
    """Of the package's .dsc, which names the sha256 of every other file; an index says what it was."""
    without_patches: tuple[str, ...] = ()
    """Globs over `debian/patches/series`: patches to leave out, such as `*CVE*` for code before its fixes."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Sources that leave nothing out read as they did before there was the choice: parts stay good."""
        found: dict[str, Any] = plain(self)
        return found if self.without_patches else {k: v for k, v in found.items() if k != "without_patches"}


Source = Annotated[
    PypiSource | ArchiveSource | PathSource | GitSource | DebianSource, Field(discriminator="kind")
]


class Recipe(ConfigModel):
    """How to compile a project that brings no compile commands of its own. Paths are relative to `root`."""

    root: str = "."
    """Folder inside the source that the other paths start from; a glob that matches one folder is allowed."""
    sources: tuple[str, ...]
    """Globs of the C files to compile, such as `src/**/*.c`."""
    exclude: tuple[str, ...] = ()
    """Globs of files to leave out, such as tests and other platforms' files."""
    include: tuple[str, ...] = ()
    """Include folders, given to the compiler as -I in this order."""
    defines: tuple[str, ...] = ()
    """Macros, `NAME` or `NAME=value`, given to the compiler as -D."""
    flags: tuple[str, ...] = ()
    """Any other compiler flags, such as `-std=gnu11`; never -O flags."""
    files: Mapping[str, str] = {}
    """Files to write before compiling, path to text: such as the config.h its configure would have made."""


class Build(ConfigModel):
    """How to run a project's own build, once for each instruction set, to learn its compile commands."""

    system: Literal["auto", "autotools", "cmake", "meson", "kbuild", "make", "commands"] = "auto"
    """The build system; `auto` looks at the files of the source, `commands` runs those given below."""
    folder: str = "."
    """Folder inside the source that holds configure, CMakeLists.txt or the like; a glob is allowed."""
    configure: tuple[str, ...] = ()
    """More arguments for configure, cmake, meson setup, or the kbuild target (such as `defconfig`)."""
    make: tuple[str, ...] = ()
    """More arguments for make or the like: targets, variables."""
    commands: tuple[str, ...] = ()
    """Shell lines to run instead, with $CC, $AR, $HOST, $CROSS_COMPILE and $JOBS set."""
    cross: bool = True
    """Whether to build for each instruction set; false builds once, for this machine, and re-targets."""


class Project(ConfigModel):
    """One codebase at one pinned version: the unit of the train/valid/test split."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    version: str = ""
    """Version of the C library itself, which is not always that of the package that carries it."""
    license: str = ""
    """SPDX expression; may be left out for `debian`, whose copyright file is read."""
    source: Source
    recipe: Recipe | None = None
    """Which files to compile, for a project that is not built by its own build system."""
    build: Build | None = None
    """How to run the project's own build; the default where neither of the others is given."""
    compile_commands: str | None = None
    """A compile_commands.json (CMake's, Bear's) inside the source, of a build that was already made."""
    split: Split | None = None
    """Fixes the project's split; without it the lineage's name decides."""
    lineage: str = ""
    """Projects of one lineage share a split; those that share files are found without it."""

    @model_validator(mode="after")
    def _is_complete(self) -> "Project":
        ways = [name for name in ("recipe", "build", "compile_commands") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"give one of recipe, build and compile_commands, not {' and '.join(ways)}")
        if self.source.kind != "debian" and not (self.version and self.license):
            raise ValueError("version and license are required, except for a debian source")
        return self


class SplitConfig(ConfigModel):
    """Shares of projects whose split is not fixed; the rest is for training."""

    valid: Annotated[float, Field(ge=0, lt=1)] = 0.05
    test: Annotated[float, Field(ge=0, lt=1)] = 0.1
    seed: int = 0


class DedupConfig(ConfigModel):
    """When two functions count as the same."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Jaccard similarity of source-token shingles above which two functions are near duplicates."""
    num_perm: Annotated[int, Field(ge=16)] = 128
    """MinHash permutations: more is more exact and slower."""
    shingle: Annotated[int, Field(ge=1)] = 5
    """Tokens per shingle."""


class LimitsConfig(ConfigModel):
    """What one compiler call may use before it is killed and counted as a failure."""

    time_s: Annotated[float, Field(gt=0)] = 120.0
    memory_mib: Annotated[int, Field(gt=0)] = 4096
    output_mib: Annotated[int, Field(gt=0)] = 256


class BuildLimitsConfig(ConfigModel):
    """What the build of one project for one instruction set may use before it is stopped."""

    time_s: Annotated[float, Field(gt=0)] = 1800.0
    memory_mib: Annotated[int, Field(gt=0)] = 4096
    """Address space of each process."""
    processes: Annotated[int, Field(gt=0)] = 512
    disk_mib: Annotated[int, Field(gt=0)] = 8192
    """Size of the build's folder, source included."""


class ShardConfig(ConfigModel):
    """How shards are cut and compressed."""

    samples: Annotated[int, Field(ge=1)] = 1000
    """Functions per shard."""
    zstd_level: Annotated[int, Field(ge=1, le=19)] = 9
    format: Literal["tar.zst", "tar"] = "tar.zst"
    text: Literal["raw", "clean"] = "raw"
    """What `.s` members hold: the compiler's own lines, or instructions and labels alone (`asm.clean`)."""
    members: tuple[Literal["inlined", "ll", "object", "lines"], ...] = ("inlined",)
    """What is recorded besides the text: the functions inlined (2 to 4 % more compile time), LLVM IR before
    optimisation, code bytes with relocations, the source line of each instruction."""


class CorpusConfig(ConfigModel):
    """One corpus: which projects, through which toolchains, at which levels, into which folder."""

    name: str
    output: Output
    """Folder of the finished corpus, relative to the working directory; or a URL such as s3://bucket/corpus."""
    work: Path | None = None
    """Local folder for unfinished parts; `work` inside the output, and required where that is a URL."""
    cache: Path = Path("~/.cache/asmtrain")
    """Where fetched sources are kept between builds."""
    toolchains: tuple[str, ...]
    """Entries of `toolchain_file`; `aarch64.gcc` takes the first gcc for aarch64 there that is installed."""
    toolchain_file: Path = Path("configs/toolchains.yaml")
    levels: tuple[Level, ...] = LEVELS
    workers: Annotated[int, Field(ge=0)] = 0
    """Units compiled at a time; 0 is one per CPU of the Ray cluster."""
    projects: tuple[Project, ...]
    split: SplitConfig = SplitConfig()
    dedup: DedupConfig = DedupConfig()
    limits: LimitsConfig = LimitsConfig()
    build_limits: BuildLimitsConfig = BuildLimitsConfig()
    sandbox: Literal["bwrap", "none"] = "bwrap"
    """Where projects' own builds run: bubblewrap, without a network; or unprotected, as you."""
    licenses: Literal["all", "permissive"] = "all"
    """`permissive` leaves out projects and files under copyleft, unknown or no licences."""
    shards: ShardConfig = ShardConfig()

    @property
    def work_folder(self) -> Path:
        """Where parts and unfinished shards lie."""
        return self.work or Path(str(self.output)) / "work"

    @model_validator(mode="after")
    def _work_is_local(self) -> "CorpusConfig":
        if not isinstance(self.output, Path) and self.work is None:
            raise ValueError(
                "`work` is required where `output` is a URL: a local folder for unfinished parts"
            )
        return self

    @field_validator("projects")
    @classmethod
    def _names_are_unique(cls, projects: tuple[Project, ...]) -> tuple[Project, ...]:
        names = [project.name for project in projects]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"project names must be unique; given more than once: {', '.join(twice)}")
        if not projects:
            raise ValueError("at least one project is needed")
        return projects


def load_config(model: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read one YAML file, apply `a.b=c` overrides, validate.

    Raises:
        ConfigError: the file cannot be read, or holds mistakes; the message lists all of them.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}", remedy="check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {place}", remedy="correct the file") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} does not hold a YAML mapping", remedy="see configs/ for examples")
    for override in overrides:
        _apply_override(data, override)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_describe(model, item) for item in error.errors()]
        raise ConfigError(
            f"{path} has {len(lines)} mistake{'s' if len(lines) > 1 else ''}:\n  " + "\n  ".join(lines),
            remedy="every key is explained beside its field in the config classes and in configs/",
        ) from None


def _apply_override(data: dict[Any, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ConfigError(
            f"--set {override!r} is not of the form a.b=c", remedy="write --set key.subkey=value"
        )
    node: Any = data
    *parents, last = dotted.split(".")
    for part in parents:
        node = _child(node, part, override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML", remedy="quote it") from None
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, override)]
    child = node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise ConfigError(
            f"--set {override!r}: {part!r} is not a group of keys", remedy="check the dotted path"
        )
    return child


def _position(items: list[Any], part: str, override: str) -> int:
    """A list item is named by its number or by its `name:` key."""
    for number, item in enumerate(items):
        if part == str(number) or (isinstance(item, dict) and item.get("name") == part):
            return number
    raise ConfigError(f"--set {override!r}: no item {part!r} in that list", remedy="use its number or name")


def _describe(model: type[BaseModel], item: Any) -> str:
    dotted = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = _nearest_key(model, item["loc"])
        hint = f"; did you mean {near!r}?" if near else ""
        return f"{dotted}: unknown key (value {item['input']!r}){hint}"
    if item["type"] == "missing":
        return f"{dotted}: required, but not given"
    said = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], dict):  # a group whose keys do not fit each other: the message has the value
        return f"{dotted}: {said}" if dotted else said
    return f"{dotted}: {said} (value {item['input']!r})"


def _nearest_key(model: type[BaseModel], loc: tuple[int | str, ...]) -> str | None:
    """The valid key closest to the unknown one, among the fields of the models that `loc` leads to."""
    candidates: set[type[BaseModel]] = {model}
    for part in loc[:-1]:
        inner: set[type[BaseModel]] = set()
        for candidate in candidates:
            field = candidate.model_fields.get(str(part))
            inner |= _models_in(field.annotation) if field else set()
        candidates = inner or candidates  # list numbers and union tags lead nowhere: stay
    names = [name for candidate in candidates for name in candidate.model_fields]
    near = difflib.get_close_matches(str(loc[-1]), names, n=1, cutoff=0.5)
    return near[0] if near else None


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {found for argument in get_args(annotation) for found in _models_in(argument)}
