"""C functions for corpora of any size: families whose members differ in their constants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# One family of functions per template; the constants N and M make each member another function.
TEMPLATES = {
    "sum": (
        "int {name}(const int *a, int n) {{ int s = {n};"
        " for (int i = 0; i < n; i++) s += a[i] * {m}; return s; }}"
    ),
    "clamp": (
        "long {name}(long x) {{ if (x < {n}) return {n}; if (x > {n} + {m}) return {m}; return x ^ {n}; }}"
    ),
    "find": (
        "const char *{name}(const char *s) {{"
        " while (*s && *s != {n} % 64 + 33) s += 1 + ({m} & 1); return s; }}"
    ),
    "mix": (
        "unsigned {name}(unsigned h) {{ h ^= h >> {m} % 15 + 1; h *= {n}u; h ^= h >> 13; return h + {m}u; }}"
    ),
    "pick": (
        "int {name}(int k) {{ switch (k) {{ case 1: return {n}; case 2: return k * {m};"
        " case 7: return helper(k + {n}); default: return -{m}; }} }}"
    ),
    "fill": (
        "void {name}(struct node *p, int n) {{ for (int i = 0; i < n; i++)"
        " {{ p[i].value = i * {n}; p[i].next = i + {m} < n ? p + i + {m} : 0; }} }}"
    ),
}
PRELUDE = "struct node { int value; struct node *next; };\nint helper(int);\n"


def c_functions(project: str, count: int, *, seed: int) -> dict[str, str]:
    """Name to source of `count` functions, no two alike, nor like those of another seed."""
    kinds = list(TEMPLATES)
    names = [f"{kinds[i % len(kinds)]}_{project}_{i}" for i in range(count)]
    return {
        name: TEMPLATES[kinds[i % len(kinds)]].format(name=name, n=(i + seed) * 37 + 5, m=(i * seed) % 23 + 2)
        for i, name in enumerate(names)
    }


def write_unit(path: Path, sources: Mapping[str, str]) -> None:
    """Write the functions into one C file, one a line from line 3 on."""
    path.write_text(PRELUDE + "\n".join(sources.values()) + "\n")


def variant_of(record: Any) -> str:
    """The name of its variant of gcc at O2, of the first instruction set."""
    return next(name for name in sorted(record.assembly) if name.endswith(".gcc.o2"))
