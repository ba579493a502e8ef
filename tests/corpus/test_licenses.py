"""Licences: Debian's names, SPDX headers, which ones are permissive, which texts are shipped."""

from pathlib import Path

import pytest
from license_expression import get_spdx_licensing

from corpus_builder.config import Project
from corpus_builder.licenses import (
    PERMISSIVE,
    UNKNOWN,
    file_license,
    is_permissive,
    license_texts,
    project_license,
    spdx_of_debian,
)

HEAD = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"


def a_source(folder: Path, copyright: str) -> Path:
    (folder / "debian").mkdir(parents=True)
    (folder / "debian" / "copyright").write_text(copyright)
    return folder


def paragraph(files: str, license: str) -> str:
    return f"\nFiles: {files}\nCopyright: 2020 A\nLicense: {license}\n some text\n"


def a_debian_project(license: str = "") -> Project:
    source = {"kind": "debian", "package": "demo", "version": "1-1"}
    return Project.model_validate({"name": "demo", "license": license, "source": source})


@pytest.mark.parametrize(
    ("debian", "spdx"),
    [
        ("Expat", "MIT"),
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL-3", "GPL-3.0-only"),
        ("GPL", "GPL-1.0-or-later"),
        ("LGPL", "LGPL-2.0-or-later"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("LGPLv3+", "LGPL-3.0-or-later"),
        ("AGPL-3", "AGPL-3.0-only"),
        ("GFDL-NIV-1.3+", "GFDL-1.3-or-later"),
        ("BSD-3-clause", "BSD-3-Clause"),
        ("zlib", "Zlib"),
        ("public-domain", "LicenseRef-public-domain"),
        ("CC0", "CC0-1.0"),
        ("Artistic", "Artistic-1.0-Perl"),
        ("GPL-2+ or Artistic", "GPL-2.0-or-later OR Artistic-1.0-Perl"),
        ("Expat and BSD-2-clause or GPL-2", "(MIT AND BSD-2-Clause) OR GPL-2.0-only"),
        ("GPL-2 or Expat, and Zlib", "(GPL-2.0-only OR MIT) AND Zlib"),
        ("GPL-2+ with Autoconf exception", "GPL-2.0-or-later WITH Autoconf-exception-generic"),
        ("GPL-2+ with home-made exception", "GPL-2.0-or-later"),
        ("My Own (v2)", "LicenseRef-My-Own-v2"),
        ("GPL-2.0-or-later", "GPL-2.0-or-later"),
        ("Apache-2.0", "Apache-2.0"),
    ],
)
def test_debians_names_become_spdx(debian: str, spdx: str) -> None:
    assert spdx_of_debian(debian) == spdx
    known = get_spdx_licensing().validate(spdx).errors
    assert not known or "LicenseRef-" in spdx


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("MIT", True),
        ("mit", True),
        ("MIT AND BSD-2-Clause AND ISC", True),
        ("GPL-2.0-or-later OR MIT", True),
        ("GPL-2.0-or-later AND MIT", False),
        ("(GPL-2.0-only OR MIT) AND LGPL-2.1-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only WITH GCC-exception-3.1", False),
        ("LicenseRef-public-domain", True),
        ("LicenseRef-whatever", False),
        (UNKNOWN, False),
        ("", False),
        ("MIT OR", False),
        ("all rights reserved", False),
    ],
)
def test_permissive_is_what_can_be_followed_without_copyleft(expression: str, answer: bool) -> None:
    assert is_permissive(expression) is answer


def test_no_permissive_name_is_misspelled() -> None:
    known = set(get_spdx_licensing().known_symbols)
    assert {name for name in PERMISSIVE if not name.startswith("LicenseRef-")} <= known


def test_the_config_wins_then_the_paragraph_of_all_files(tmp_path: Path) -> None:
    root = a_source(tmp_path, HEAD + paragraph("*", "Expat") + paragraph("debian/*", "GPL-2+"))
    assert project_license(a_debian_project(), root) == "MIT"
    assert project_license(a_debian_project("ISC"), root) == "ISC"


def test_without_such_a_paragraph_all_of_them_count(tmp_path: Path) -> None:
    parts = [paragraph("a/*", "Expat"), paragraph("b/* c/*", "GPL-2 or BSD-2-clause")]
    root = a_source(tmp_path, HEAD + "".join(parts) + paragraph("debian/*", "GPL-3"))
    assert project_license(a_debian_project(), root) == "MIT AND (GPL-2.0-only OR BSD-2-Clause)"


@pytest.mark.parametrize("text", ["Copyright A. Do as you like.\n", "", HEAD + "\nFiles: *\nLicense\n x"])
def test_what_no_machine_can_read_is_unknown(tmp_path: Path, text: str) -> None:
    root = a_source(tmp_path, text)
    assert project_license(a_debian_project(), root) == UNKNOWN
    assert file_license(root, "a.c") == ""
    (tmp_path / "empty").mkdir()
    assert project_license(a_debian_project(), tmp_path / "empty") == UNKNOWN


def test_a_copyright_file_in_another_encoding_is_read(tmp_path: Path) -> None:
    root = a_source(tmp_path, "")
    text = HEAD + paragraph("*", "Expat").replace("2020 A", "2020 J\xf6rg")
    (root / "debian" / "copyright").write_bytes(text.encode("latin-1"))
    assert project_license(a_debian_project(), root) == "MIT"


def test_a_file_has_the_licence_of_its_header_or_of_the_last_paragraph_that_names_it(tmp_path: Path) -> None:
    parts = [paragraph("*", "Expat"), paragraph("lib/*.c", "LGPL-2+"), paragraph("lib/free.c", "Expat")]
    root = a_source(tmp_path, HEAD + "".join(parts))
    (root / "lib").mkdir()
    (root / "lib" / "own.c").write_text("/* SPDX-License-Identifier: gpl-2.0-only OR mit */\nint x;\n")
    (root / "lib" / "bad.c").write_text("// SPDX-License-Identifier: see COPYING, please (\n")
    (root / "late.c").write_text("\n" * 5000 + "// SPDX-License-Identifier: GPL-3.0-only\n")
    expected = {
        "main.c": "",
        "lib/a.c": "LGPL-2.0-or-later",
        "lib/free.c": "",
        "lib/own.c": "GPL-2.0-only OR MIT",
        "lib/bad.c": "LGPL-2.0-or-later",
        "late.c": "",
    }
    assert {file: file_license(root, file) for file in expected} == expected


@pytest.mark.parametrize(
    ("line", "spdx"),
    [
        ("// SPDX-License-Identifier: GPL-2.0", "GPL-2.0-only"),
        ("/* SPDX-License-Identifier: (GPL-2.0+ OR BSD-3-Clause) */", "GPL-2.0-or-later OR BSD-3-Clause"),
        (
            " * SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note",
            "GPL-2.0-only WITH Linux-syscall-note",
        ),
        ("// SPDX-License-Identifier: LicenseRef-Own", "LicenseRef-Own"),
        ("// SPDX-License-Identifier:", ""),
    ],
)
def test_headers_are_spelled_as_spdx_does_today(tmp_path: Path, line: str, spdx: str) -> None:
    (tmp_path / "a.c").write_text(f"{line}\r\nint a;\n")
    assert file_license(tmp_path, "a.c") == spdx


def test_licence_texts_are_those_at_the_top(tmp_path: Path) -> None:
    root = a_source(tmp_path / "one", HEAD)
    for name in ("COPYING", "COPYING.LIB", "LICENSE-MIT.txt", "Licence", "license.c", "README", "NOTICE.md"):
        (root / name).write_text(name)
    (root / "LICENSES").mkdir()
    (root / "LICENSES" / "ISC.txt").write_bytes(b"J\xf6rg")
    (root / "COPYRIGHT").symlink_to("/etc/hostname")
    assert license_texts(root) == {
        "COPYING": "COPYING",
        "COPYING.LIB": "COPYING.LIB",
        "LICENSE-MIT.txt": "LICENSE-MIT.txt",
        "Licence": "Licence",
        "NOTICE.md": "NOTICE.md",
        "LICENSES/ISC.txt": "J\xf6rg",
        "debian/copyright": HEAD,
    }


def test_licence_texts_of_an_archive_lie_in_its_only_folder(tmp_path: Path) -> None:
    (tmp_path / "demo-1.0").mkdir()
    (tmp_path / "demo-1.0" / "COPYING").write_text("x")
    assert license_texts(tmp_path) == {"demo-1.0/COPYING": "x"}
