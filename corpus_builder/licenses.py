"""Licences: a project's folder in, SPDX expressions and the licence texts out.

A project's licence is what the config says, or the `Files: *` paragraph of a machine-readable (DEP-5)
debian/copyright. A file's own is its SPDX header, or the paragraph that names it where that differs.
Invariant: what is not understood is never taken for permissive: a name that SPDX does not know becomes a
LicenseRef, an exception that SPDX does not know is dropped, which leaves the stricter licence.
Cost: debian/copyright is parsed once for a folder (10 ms); a file costs one read of its first 4 KiB.
"""

import logging
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus_builder.config import Project

if TYPE_CHECKING:
    from debian.copyright import Copyright

UNKNOWN = "NOASSERTION"
"""SPDX's word for a licence that nobody stated."""

_PERMISSIVE_NAMES = """
    0BSD AFL-2.1 AFL-3.0 Apache-1.1 Apache-2.0 BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent
    BSD-2-Clause-Views BSD-3-Clause BSD-3-Clause-Attribution BSD-3-Clause-Clear BSD-3-Clause-LBNL
    BSD-3-Clause-Modification BSD-3-Clause-flex BSD-4-Clause BSD-4-Clause-UC BSD-4.3RENO
    BSD-Source-Code BSL-1.0 Beerware BlueOak-1.0.0 CC0-1.0 FSFAP FSFUL FSFULLR FSFULLRWD HPND
    HPND-sell-variant HTMLTIDY ICU IJG ISC Info-ZIP Libpng MIT MIT-0 MIT-CMU MIT-Modern-Variant
    MirOS NCSA NTP OLDAP-2.8 OpenSSL PSF-2.0 PostgreSQL Python-2.0 RSA-MD SMLNJ Spencer-86
    Spencer-94 Spencer-99 TCL TCP-wrappers TU-Berlin-1.0 TU-Berlin-2.0 Unicode-3.0
    Unicode-DFS-2015 Unicode-DFS-2016 Unlicense W3C WTFPL X11
    X11-distribute-modifications-variant Xfig Zlib blessing bzip2-1.0.6 curl hdparm libpng-2.0
    libtiff mpich2 zlib-acknowledgement LicenseRef-public-domain
"""
PERMISSIVE = frozenset(_PERMISSIVE_NAMES.split())
"""Licences that ask for no more than notices: no copyleft, no limits on use."""


def project_license(project: Project, root: Path) -> str:
    """The project's licence as an SPDX expression; NOASSERTION where neither config nor source says one."""
    return project.license or _debian_license(root) or UNKNOWN


def file_license(root: Path, file: str) -> str:
    """The file's own licence, from its header or from debian/copyright; empty where it is the project's."""
    return _header_license(root / file) or _paragraph_license(root, file)


def is_permissive(expression: str) -> bool:
    """Whether one can choose to follow permissive licences only; false for what is not SPDX."""
    parsed = _parsed(expression)
    return parsed is not None and _all_permissive(parsed)


def license_texts(root: Path) -> dict[str, str]:
    """The licence files at the top of a source (or of its only folder), path to text."""
    folders = [path for path in root.iterdir() if path.is_dir()]
    top = folders[0] if len(folders) == 1 else root
    found = {path for base in (root, top) for path in base.iterdir() if _TEXT_NAME.fullmatch(path.name)}
    found |= {root / "debian" / "copyright", *(top / "LICENSES").glob("*")}
    return {path.relative_to(root).as_posix(): _text(path) for path in sorted(found) if _is_own(path, root)}


_TEXT_NAME = re.compile(
    r"(?i)(?!.*\.(c|h|cc|cpp|hpp|py|pl|sh|in|am|js|rb)$)"  # code about licences
    r"(COPYING|LICEN[CS]ES?|UNLICENSE|COPYRIGHT|NOTICE|PATENTS)([-._].*)?"
)
_TEXT_MAX_BYTES = 1 << 20


def _is_own(path: Path, root: Path) -> bool:
    inside = path.resolve().is_relative_to(root.resolve())
    return inside and path.is_file() and path.stat().st_size <= _TEXT_MAX_BYTES


def _text(path: Path) -> str:
    body = path.read_bytes()
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("latin-1")


# Headers.

_HEADER = re.compile(rb"SPDX-License-Identifier:[ \t]*([^\r\n]*)")
_HEADER_BYTES = 4096


def _header_license(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            match = _HEADER.search(stream.read(_HEADER_BYTES))
    except OSError:
        return ""
    said = match[1].decode(errors="replace") if match else ""
    return _normal(re.split(r"\*/|-->|\"", said)[0].strip())


@lru_cache(maxsize=4096)
def _normal(expression: str) -> str:
    parsed = _parsed(expression)
    return "" if parsed is None else str(parsed.render())


# Expressions.


@lru_cache(maxsize=4096)
def _parsed(expression: str) -> Any:
    """The expression with SPDX's own spelling of names; None for what is none."""
    from license_expression import ExpressionError, Licensing

    try:
        parsed = Licensing().parse(expression)
    except ExpressionError:
        return None
    if parsed is not None:
        for symbol in parsed.symbols:
            for part in (symbol.license_symbol, symbol.exception_symbol) if _is_with(symbol) else (symbol,):
                part.key = _spdx_names().get(part.key.lower(), part.key)
    return parsed


def _is_with(symbol: Any) -> bool:
    return hasattr(symbol, "exception_symbol")


def _all_permissive(node: Any) -> bool:
    """AND needs all of its licences, OR one; an exception only permits more."""
    operator = getattr(node, "operator", "").strip()
    if operator in ("AND", "OR"):
        answers = [_all_permissive(argument) for argument in node.args]
        return all(answers) if operator == "AND" else any(answers)
    return (node.license_symbol if _is_with(node) else node).key in PERMISSIVE


@cache
def _spdx_names() -> dict[str, str]:
    """Lower-case identifier, current or deprecated, to the current one in SPDX's spelling."""
    from license_expression import get_spdx_licensing

    symbols = get_spdx_licensing().known_symbols
    names = {
        alias.lower(): key for key, symbol in symbols.items() for alias in symbol.aliases if " " not in alias
    }
    return names | {key.lower(): key for key in symbols}


# debian/copyright.


_SILENT = logging.NullHandler()


@lru_cache(maxsize=64)
def _copyright(root: Path) -> "Copyright | None":
    from debian.copyright import Copyright, MachineReadableFormatError, NotMachineReadableError

    # It tells of every URL it mends, on stderr where nobody asked for logs.
    logging.getLogger("debian").addHandler(_SILENT)
    path = root / "debian" / "copyright"
    if not _is_own(path, root):
        return None
    try:
        return Copyright(_text(path).splitlines(keepends=True), strict=False)
    except (NotMachineReadableError, MachineReadableFormatError, ValueError):
        return None


@lru_cache(maxsize=256)
def _debian_license(root: Path) -> str:
    """Of the `Files: *` paragraph; without one, of all paragraphs but the packaging's, together."""
    described = _copyright(root)
    if described is None:
        return ""
    paragraphs = [paragraph for paragraph in described.all_files_paragraphs() if paragraph.license]
    whole = [paragraph for paragraph in paragraphs if "*" in paragraph.files]
    parts = whole[-1:] or [p for p in paragraphs if not all(f.startswith("debian/") for f in p.files)]
    if not parts and described.header.license:
        return _spdx_of_field(described.header)
    names = dict.fromkeys(_spdx_of_field(paragraph) for paragraph in parts)
    return _joined("AND", list(names)) if names else ""


def _paragraph_license(root: Path, file: str) -> str:
    described = _copyright(root)
    paragraph = described.find_files_paragraph(file) if described else None
    if paragraph is None or paragraph.license is None:
        return ""
    own = _spdx_of_field(paragraph)
    return "" if own == _debian_license(root) else own


def _spdx_of_field(paragraph: Any) -> str:
    return spdx_of_debian(paragraph.license.synopsis)


@lru_cache(maxsize=4096)
def spdx_of_debian(synopsis: str) -> str:
    """A DEP-5 licence field as an SPDX expression: `GPL-2+ or Expat` is `GPL-2.0-or-later OR MIT`.

    `and` binds tighter than `or`; a comma before either word ends what stands before it.
    """
    text = " ".join(synopsis.split())
    if ", " in text:
        parts = re.split(r", (and|or) ", text)
        if len(parts) > 1:
            operators = {word.upper() for word in parts[1::2]}
            terms = [spdx_of_debian(part) for part in parts[::2]]
            return _joined(operators.pop() if len(operators) == 1 else "AND", terms)
    for word in ("or", "and"):
        parts = re.split(rf" {word} ", text, flags=re.IGNORECASE)
        if len(parts) > 1:
            return _joined(word.upper(), [spdx_of_debian(part) for part in parts])
    return _spdx_of_name(text)


def _joined(operator: str, terms: list[str]) -> str:
    terms = list(dict.fromkeys(terms))
    inner = [f"({term})" if re.search(r" (AND|OR) ", term) and len(terms) > 1 else term for term in terms]
    return f" {operator} ".join(inner)


_DEBIAN_NAMES = {
    "apache-2": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "artistic-1": "Artistic-1.0-Perl",
    "boost-1.0": "BSL-1.0",
    "bsd": "BSD-3-Clause",
    "bsd-2": "BSD-2-Clause",
    "bsd-3": "BSD-3-Clause",
    "bsd-4": "BSD-4-Clause",
    "cc0": "CC0-1.0",
    "expat": "MIT",
    "fsf": "FSFAP",
    "openldap-2.8": "OLDAP-2.8",
    "gnu-all-permissive": "FSFAP",
    "permissive": "FSFAP",
    "pd": "LicenseRef-public-domain",
    "psf": "PSF-2.0",
    "psf-2": "PSF-2.0",
    "public-domain": "LicenseRef-public-domain",
    "publicdomain": "LicenseRef-public-domain",
    "python": "Python-2.0",
    "zlib/libpng": "Zlib",
}
_GNU_NAME = re.compile(r"(?i)(A?L?GPL|GFDL)(?:-NIV)?[- ]?v?([0-9](?:\.[0-9])?)?(?:\.0)?(\+|-or-later|-only)?")
_EXCEPTIONS = {
    "autoconf": "Autoconf-exception-generic",
    "bison": "Bison-exception-2.2",
    "classpath": "Classpath-exception-2.0",
    "gcc": "GCC-exception-3.1",
    "libtool": "Libtool-exception",
    "linux-syscall": "Linux-syscall-note",
}


def _spdx_of_name(name: str) -> str:
    base, _, exception = name.partition(" with ")
    known = [spdx for word, spdx in _EXCEPTIONS.items() if word in exception.lower()]
    return " WITH ".join([_spdx_of_base(base.strip()), *known[:1]])


def _spdx_of_base(name: str) -> str:
    if name.lower() in _DEBIAN_NAMES:
        return _DEBIAN_NAMES[name.lower()]
    if gnu := _GNU_NAME.fullmatch(name):
        version = gnu[2] or "1"
        # `GPL` alone is any version: its first one or later; the lesser one began with 2.
        version = "2" if not gnu[2] and gnu[1].upper() == "LGPL" else version
        later = "or-later" if gnu[3] in ("+", "-or-later") or not gnu[2] else "only"
        spelled = f"{gnu[1].upper()}-{version if '.' in version else version + '.0'}-{later}"
        return _spdx_names().get(spelled.lower(), f"LicenseRef-{spelled}")
    if name.lower() in _spdx_names():
        return _spdx_names()[name.lower()]
    reference = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")
    return f"LicenseRef-{reference}" if reference else UNKNOWN
