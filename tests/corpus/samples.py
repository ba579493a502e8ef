"""Small function records and configs for the tests of what happens around compilers."""

import hashlib
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from corpus_builder.config import CorpusConfig, Project, load_config
from corpus_builder.record import FunctionMeta, FunctionRecord, SourceMeta, VariantMeta, function_key
from corpus_builder.shards import CorpusIndex, ShardEntry

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parent / "tiny"
TINY_FUNCTIONS = {"ring_room", "ring_push", "ring_pop", "ring_sum", "adler32", "step", "crc32", "ring_drain"}
NATIVE_GCC = f"{ {'arm64': 'aarch64', 'AMD64': 'x86_64'}.get(platform.machine(), platform.machine()) }.gcc"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def a_record(
    name: str = "add", *, split: str = "train", body: str | None = None, **meta: Any
) -> FunctionRecord:
    """A record with two variants whose texts fit their hashes; `body` fixes the hash of its bodies."""
    source = f"int {name}(int a, int b)\n{{\n    return a + b;\n}}"
    texts = {
        f"{isa}.gcc12.o2": f"{name}:\n\t{opcode} {name}\n\tret\n"
        for isa, opcode in (("aarch64", "add"), ("x86_64", "lea"))
    }
    variants = {
        variant: VariantMeta(
            compiler="gcc 12.2.0",
            flags=("-O2",),
            sha256=sha256(text),
            body_sha256=sha256(body or text),
            num_instructions=2,
            code_bytes=8,
            symbol=name,
        )
        for variant, text in texts.items()
    }
    fields = {
        "project": "demo",
        "version": "1.0",
        "source": SourceMeta(kind="path", location="demo", sha256=None),
        "license": "MIT",
        "file_license": "",
        "split": split,
        "unit": "add.c",
        "file": "add.c",
        "name": name,
        "signature": f"int {name}(int a, int b)",
        "lines": (1, 4),
        "comment": "",
        "source_sha256": sha256(source),
        "cluster": "",
        "variants": variants,
        **meta,
    }
    return FunctionRecord(function_key("demo", "add.c", 1, name), FunctionMeta(**fields), source, texts)


def an_index(entries: Iterable[ShardEntry], **fields: Any) -> CorpusIndex:
    """An index of shards that no build made."""
    nothing: dict[str, Any] = {
        name: {} for name in ("toolchains", "dedup", "projects", "totals", "compiled", "failures")
    }
    made = {"name": "test", "levels": ("O2",), "text": "raw", "members": (), **nothing, **fields}
    return CorpusIndex(shards=tuple(entries), **made)


def a_project(source: dict[str, Any], **recipe: Any) -> Project:
    return Project.model_validate(
        {
            "name": "demo",
            "version": "1.0",
            "license": "MIT",
            "source": source,
            "recipe": {"sources": ["*.c"], **recipe},
        }
    )


def write_config(folder: Path, *, projects: dict[str, Path] | None = None, **settings: Any) -> Path:
    """A config file for the projects (name to folder of C files); the machine's own gcc at two levels."""
    described = [
        {
            "name": name,
            "version": "1",
            "license": "MIT",
            "split": "test" if name.startswith("test") else "train",
            "source": {"kind": "path", "path": str(path)},
            "recipe": {"sources": ["*.c"], "include": ["include"] if (path / "include").is_dir() else []},
        }
        for name, path in (projects or {"tiny": TINY}).items()
    ]
    data = {
        "name": "tiny",
        "output": str(folder / "corpus"),
        "cache": str(folder / "cache"),
        "toolchains": [NATIVE_GCC],
        "toolchain_file": str(ROOT / "configs" / "toolchains.yaml"),
        "levels": ["O0", "O2"],
        "workers": 2,
        "projects": described,
        **settings,
    }
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def load_corpus_config(path: Path) -> CorpusConfig:
    return load_config(CorpusConfig, path)


def a_config(folder: Path, **settings: Any) -> CorpusConfig:
    return load_corpus_config(write_config(folder, **settings))


def shard_hashes(corpus: Path) -> dict[str, str]:
    """File name to sha256 of everything a finished corpus consists of."""
    files = [*corpus.glob("*.tar*"), corpus / "index.json", corpus / "failures.jsonl"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
