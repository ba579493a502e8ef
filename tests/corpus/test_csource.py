"""C source: each function a compiler emits is found, and described as the programmer wrote it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_builder import asm
from corpus_builder.csource import SourceFunction, functions_of, own_text, source_tokens
from corpus_builder.definitions import definitions, own_definitions, scanned_definitions
from corpus_builder.owntext import OwnText, Part

HEADER = """\
#ifndef LIB_H
#define LIB_H
#define API __attribute__((visibility("default")))
#define NOTHING
#define FORCE static inline __attribute__((always_inline))
#define DEFINE(name, type) type name##_made(type x) { return x + 1; }
#define BODY(name) int name(void)

/* Doubles. */
static inline int doubled(int x) { return 2 * x; }
#endif
"""
UNIT = """\
#include <stdio.h>
#include "include/lib.h"

/* First line,
 * second line. */
API int *
pointer(int a, /* why */ char *b)
{
    return (int *)b + a; // a "}" in a comment
}

DEFINE(first, int) DEFINE(second, long)

// one
// two
int (*returns_function(void))(int) { return 0; }

int old_style(a, b)
  int a;
  char *b;
{ return a + *b; }

/* not directly above */

FORCE
int forced(int x) { return printf("%d {\\n", x); }

NOTHING
int bare(void) { return 1; }

#ifdef ABSENT
int branch(int a)
#else
int branch(long a)
#endif
{
#ifdef ABSENT
    if (a) {
#else
    if (!a) {
#endif
        return 1;
    }
    return stdout != NULL && doubled((int)a);
}
int one(void) { return 1; }  int two(void) { return one(); }
struct pair { int x, y; } structure(void) { struct pair p = {1, 2}; return p; }
int (parenthesised)(int x) { __asm__ volatile("nop" : : "r"(x)); return x; }
int many(int a[static 3], int (*call)(int, void *), ...)
{
    __builtin_va_list list;
    __builtin_va_start(list, call);
    struct pair *p = __builtin_va_arg(list, struct pair *);
    int size = __builtin_offsetof(struct { int a; int b; }, b);
    return ({ int y = p->x; y; }) + size + call(a[0], 0);
}
__attribute__((noinline, section(".text.far"))) static __typeof__(0) attributed(int x);
static __typeof__(0) attributed(int x) { return x; }
static int numbers[3] __attribute__((unused)) __attribute__((aligned(16))) = { 1, 2, 3 };
_Noreturn void forever(void) { for (;;); }
unsigned __int128 wide(unsigned __int128 x) { return x; }
BODY(made_by_macro) {
    return attributed(3) + forced(2);
}
int nested_use(int count, int values[count])
{
    int table[] = { [0] = 1, [1 ... 3] = 2 };
    return table[values[0]];
}
"""


@pytest.fixture(params=["gcc", "clang-19", "aarch64-linux-gnu-gcc"])
def compiler(request: pytest.FixtureRequest) -> str:
    if not shutil.which(request.param):
        pytest.skip(f"needs {request.param}")
    return str(request.param)


def preprocess(compiler: str, folder: Path, name: str = "unit.c", *flags: str) -> bytes:
    argv = [compiler, "-E", *flags, name]
    return subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=60).stdout


def write(folder: Path, unit: str = UNIT) -> Path:
    (folder / "include").mkdir(exist_ok=True)
    (folder / "include" / "lib.h").write_text(HEADER)
    (folder / "unit.c").write_text(unit)
    return folder


def found_in(folder: Path, unit: str, compiler: str = "gcc") -> dict[str, SourceFunction]:
    return functions_of(preprocess(compiler, write(folder, unit)), folder)


def test_every_emitted_function_is_found(compiler: str, tmp_path: Path) -> None:
    functions = functions_of(preprocess(compiler, write(tmp_path)), tmp_path)
    argv = [compiler, "-w", "-O0", "-S", "unit.c", "-o", "unit.s"]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    emitted = asm.split_functions((tmp_path / "unit.s").read_bytes())
    assert len(emitted) == 18  # all but the inlined one
    assert set(emitted) <= set(functions)


def test_functions_of_other_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "outside.h").write_text("static int outside(void) { return 1; }\n")
    unit = '#include "../outside.h"\n#include <stdlib.h>\nint inside(void) { return outside() + abs(1); }\n'
    assert set(found_in(tmp_path / "project", unit)) == {"inside"}


def test_absolute_paths_lead_to_the_same_functions(tmp_path: Path) -> None:
    write(tmp_path)
    relative = functions_of(preprocess("gcc", tmp_path), tmp_path)
    absolute = functions_of(preprocess("gcc", Path("/"), str(tmp_path / "unit.c")), tmp_path)
    linked = tmp_path.parent / f"{tmp_path.name}-link"
    linked.symlink_to(tmp_path)
    through_link = functions_of(preprocess("gcc", Path("/"), str(tmp_path / "unit.c")), linked)
    assert relative == absolute == through_link


def test_compilers_agree(tmp_path: Path) -> None:
    if not shutil.which("clang-19"):
        pytest.skip("needs clang-19")
    write(tmp_path)
    assert functions_of(preprocess("gcc", tmp_path), tmp_path) == functions_of(
        preprocess("clang-19", tmp_path), tmp_path
    )


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("pointer", "API int * pointer(int a, char *b)"),
        ("returns_function", "int (*returns_function(void))(int)"),
        ("old_style", "int old_style(a, b) int a; char *b;"),
        ("forced", "FORCE int forced(int x)"),
        ("branch", "int branch(long a)"),
        ("two", "int two(void)"),
        ("structure", "struct pair { int x, y; } structure(void)"),
        ("parenthesised", "int (parenthesised)(int x)"),
        ("many", "int many(int a[static 3], int (*call)(int, void *), ...)"),
        ("first_made", "int first_made(int x)"),
        ("second_made", "long second_made(long x)"),
        ("made_by_macro", "BODY(made_by_macro)"),
        ("doubled", "static inline int doubled(int x)"),
        ("attributed", "static __typeof__(0) attributed(int x)"),
    ],
)
def test_signature(name: str, signature: str, tmp_path: Path) -> None:
    assert found_in(tmp_path, UNIT)[name].signature == signature


def test_texts_are_the_lines_of_the_file(tmp_path: Path) -> None:
    functions = found_in(tmp_path, UNIT)
    for function in functions.values():
        lines = (tmp_path / function.file).read_text().split("\n")
        first, last = function.lines
        assert function.text in "\n".join(lines[first - 1 : last])
        if first != last:
            assert function.text == "\n".join(lines[first - 1 : last])
    assert functions["pointer"].text.startswith("API int *\npointer(int a, /* why */ char *b)")
    assert functions["forced"].text.startswith("FORCE\nint forced")
    assert functions["bare"].text == "NOTHING\nint bare(void) { return 1; }"
    assert functions["two"].text == "int two(void) { return one(); }"
    assert functions["made_by_macro"].text.startswith("BODY(made_by_macro) {")
    assert functions["doubled"].file == "include/lib.h"


def test_a_function_that_begins_in_a_conditional_is_whole(tmp_path: Path) -> None:
    text = found_in(tmp_path, UNIT)["branch"].text
    assert text.startswith("#ifdef ABSENT\nint branch(int a)\n#else")
    assert text.count("#ifdef") == text.count("#endif") == 2
    other = functions_of(preprocess("gcc", tmp_path, "unit.c", "-DABSENT"), tmp_path)["branch"]
    assert other.signature == "int branch(int a)"
    assert other.text == text


def test_a_function_that_ends_in_a_conditional_is_whole(tmp_path: Path) -> None:
    text = "int f(int x)\n{\n#ifdef A\n    return 1;\n}\n#else\n    return x;\n}\n#endif"
    unit = f"{text}\nint g(void) {{ return 2; }}\n"
    assert found_in(tmp_path, unit)["f"].text == text
    assert found_in(tmp_path, f"#define A\n{unit}")["f"].text == text


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("pointer", "/* First line,\n * second line. */"),
        ("returns_function", "// one\n// two"),
        ("forced", ""),
        ("doubled", "/* Doubles. */"),
        ("old_style", ""),
    ],
)
def test_comment_above(name: str, comment: str, tmp_path: Path) -> None:
    assert found_in(tmp_path, UNIT)[name].comment == comment


@pytest.mark.parametrize(
    "above", ["int x; /* about x */", "/* a */ int x; /* b */", "int x = 1;", "#define X /* x */", ""]
)
def test_what_is_no_comment_of_the_function(above: str, tmp_path: Path) -> None:
    assert found_in(tmp_path, f"{above}\nint f(void) {{ return 1; }}\n")["f"].comment == ""


def test_functions_of_one_macro_have_hashes_of_their_own(tmp_path: Path) -> None:
    functions = found_in(tmp_path, UNIT)
    assert functions["first_made"].text == functions["second_made"].text
    assert functions["first_made"].source_sha256 != functions["second_made"].source_sha256


def test_a_template_file_gives_one_function_each_time(tmp_path: Path) -> None:
    (tmp_path / "template.h").write_text("T NAME(twice)(T x)\n{\n    return x * 2;\n}\n")
    use = '#define T {0}\n#define NAME(name) name##_{0}\n#include "template.h"\n#undef T\n#undef NAME\n'
    functions = found_in(tmp_path, use.format("int") + use.format("long"))
    assert {name: function.file for name, function in functions.items()} == {
        "twice_int": "template.h",
        "twice_long": "template.h",
    }
    assert functions["twice_int"].lines == functions["twice_long"].lines == (1, 4)
    assert functions["twice_int"].source_sha256 != functions["twice_long"].source_sha256


def test_the_hash_ignores_comments_and_white_space_alone(tmp_path: Path) -> None:
    plain = found_in(tmp_path, "int f(int x) { return x + 1; }\n")["f"]
    spaced = found_in(tmp_path, "/* new */\nint\nf(int x)\n{\n    // why\n    return x+1;\n}\n")["f"]
    other = found_in(tmp_path, "int f(int x) { return x + 2; }\n")["f"]
    assert plain.source_sha256 == spaced.source_sha256 != other.source_sha256


def test_line_ends_and_encodings(tmp_path: Path) -> None:
    (tmp_path / "unit.c").write_bytes(b"/* caf\xe9 */\r\nint f(void)\r\n{\r\n\x0c return '\xe9';\r\n}\r\n")
    function = functions_of(preprocess("gcc", tmp_path, "unit.c", "-w"), tmp_path)["f"]
    assert function.lines == (2, 5)
    assert function.comment == "/* caf\u00e9 */"
    assert "\r" not in function.text


def test_a_missing_original_gives_no_function(tmp_path: Path) -> None:
    text = b'# 1 "gone.c"\nint f(void) { return 1; }\n'
    assert functions_of(text, tmp_path) == {}
    (tmp_path / "gone.c").write_text("\n")
    assert functions_of(text.replace(b"# 1", b"# 90"), tmp_path) == {}


def test_generated_code_leads_to_its_own_source(tmp_path: Path) -> None:
    (tmp_path / "parser.y").write_text("%%\n\nint rule(int x)\n{\n    return x;\n}\n")
    functions = found_in(tmp_path, '#line 3 "parser.y"\nint rule(int x)\n{\n    return x;\n}\n')
    assert (functions["rule"].file, functions["rule"].lines) == ("parser.y", (3, 6))


def test_generated_code_without_its_source_is_found_in_the_generated_file(tmp_path: Path) -> None:
    """As bison writes it: to the grammar, and back under a name that the compiler's folder does not have."""
    unit = """\
int before(void) { return 0; }
#line 7 "gone/parser.y"

int rule(int x)
{
    return x;
}

/* lines that
   the preprocessor











   leaves out */
int second(void) { return 2; }
#include "include/lib.h"
int third(void) { return doubled(3); }
#line 24 "elsewhere/unit.c"
int after(void) { return 1; }
"""
    functions = found_in(tmp_path, unit)
    lines = unit.split("\n")
    expected = {
        name: next(number for number, line in enumerate(lines, 1) if f"int {name}(" in line)
        for name in ("before", "rule", "second", "third", "after")
    }
    assert {functions[name].lines[0] for name in expected} == set(expected.values())
    assert {functions[name].file for name in expected} == {"unit.c"}
    assert functions["rule"].text == "int rule(int x)\n{\n    return x;\n}"
    assert functions["doubled"].file == "include/lib.h"


def test_a_grammar_beside_the_generated_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "parser.y").write_text("%%\n\nint rule(int x)\n{\n    return x;\n}\n")
    (tmp_path / "src" / "parser.c").write_text('#line 3 "parser.y"\nint rule(int x)\n{\n    return x;\n}\n')
    for command in (["gcc", "src/parser.c"], ["gcc", "../src/parser.c"]):
        folder = tmp_path / ("build" if ".." in command[1] else ".")
        folder.mkdir(exist_ok=True)
        text = preprocess(command[0], folder, command[1])
        function = functions_of(text, tmp_path, str(folder.relative_to(tmp_path)))["rule"]
        assert (function.file, function.lines) == ("src/parser.y", (3, 6))


def test_relative_names_start_where_the_compiler_ran(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "build" / "deep").mkdir(parents=True)
    text = preprocess("gcc", tmp_path / "build" / "deep", "../../unit.c")
    assert functions_of(text, tmp_path, "build/deep") == functions_of(preprocess("gcc", tmp_path), tmp_path)
    assert functions_of(text, tmp_path) == {}


OLD = """\
struct context { int optarg; };
struct context *
option(ctx)
struct context *ctx;
{
    return ctx;
}
main(argc, argv) int argc; char **argv; { return argc; }
implicit(int x) { return x; }
static value(void) { struct { int a; } b = { 1 }; return b.a; }
register_all(a, b, f)
    register int a;
    struct context *b[3];
    int (*f)();
{ return a + (*f)(b); }
int declared(a, b), also_declared();
int (*pointer_to)(int), (*(*table[2])(void))(int);
int (*(*nested(int x))(void))(int) { return 0; }
enum { ONE, TWO } which(void) { return ONE; }
typedef struct { int x; } __attribute__((packed)) small;
small array[] = { { 1 }, { '{' } };
__extension__ typedef struct { long long a; } wide_type;
small made(void) { return (small){ '}' }; }
__asm__(".globl nothing");
_Static_assert(sizeof(int) == 4, "}{");
int last(void) { return sizeof "}"; }
"""


def test_old_code_is_read(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "unit.c").write_text(OLD)
    text = preprocess(compiler, tmp_path, "unit.c", "-w", "-std=gnu89")
    functions = functions_of(text, tmp_path)
    names = ["option", "main", "implicit", "value", "register_all", "nested", "which", "made", "last"]
    assert list(functions) == names
    assert functions["option"].text.startswith("struct context *\noption(ctx)")
    assert functions["option"].signature == "struct context * option(ctx) struct context *ctx;"
    assert functions["register_all"].lines == (11, 15)
    assert functions["main"].text == "main(argc, argv) int argc; char **argv; { return argc; }"


def test_an_old_style_function_that_reads_as_a_declaration_and_a_block(tmp_path: Path) -> None:
    unit = "char *my_alloc(size)\nint size;\n{\nreturn (char *)(long)size;\n}\n"
    assert found_in(tmp_path, unit)["my_alloc"].lines == (1, 5)


def test_the_scan_of_brackets_agrees_with_the_parser(compiler: str, tmp_path: Path) -> None:
    modern = re.sub(r"int old_style.*?\{ return a \+ \*b; \}\n", "", UNIT, flags=re.DOTALL)
    own = own_text(preprocess(compiler, write(tmp_path, modern)), tmp_path)
    assert len(scanned_definitions(own.text)) == 18
    assert scanned_definitions(own.text) == definitions(own.text)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["int f", "(", ")", "{", "}", ";", "=", "a", "b", ",", "*", '"}"', "struct "]))
)
def test_any_brackets_are_scanned(tokens: list[str]) -> None:
    text = " ".join(tokens).encode()
    found = scanned_definitions(text)
    assert all(text[item.body : item.body + 1] == b"{" for item in found)
    assert all(item.start <= item.body < item.end <= len(text) for item in found)
    assert [item.start for item in found] == sorted(item.start for item in found)


DECLARATIONS = [
    *("int f(int a) { return a; }", "char *g(a, b) int a; char *b; {}", "h(a) {}", "int x;", "int f(int a);"),
    *("static", "f(a)", "int a;", "{}", "struct s { int x; }", ";", "int t[] = {", "1,", "};", "(a)", "}"),
    *('extern "C" {', "if (a) {}", "else a;", "do {}", "while (a);", "case 1:", "typedef"),
]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(DECLARATIONS), max_size=3), max_size=4))
def test_parts_read_as_the_whole(pieces: list[list[str]]) -> None:
    texts = [f"{' '.join(piece)}\n".encode() for piece in pieces]
    ends = [sum(map(len, texts[: number + 1])) for number in range(len(texts))]
    starts = zip([0, *ends], ends, strict=False)
    parts = [Part(start, end, number % 2 > 0) for number, (start, end) in enumerate(starts)]
    text = b"".join(texts)
    assert own_definitions(OwnText(text, [], parts)) == definitions(text)


def test_a_header_is_looked_up_again_once_it_changed(tmp_path: Path) -> None:
    unit = '#include "include/lib.h"\nint f(void) { return 1; }\n'
    assert found_in(tmp_path, unit)["doubled"].comment == "/* Doubles. */"
    text = preprocess("gcc", tmp_path)
    header = tmp_path / "include" / "lib.h"
    header.write_text(HEADER.replace("Doubles", "Takes twice"))
    assert functions_of(text, tmp_path)["doubled"].comment == "/* Takes twice. */"


def test_an_include_within_a_declaration(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "table.h").write_text("1, 2,\n")
    (tmp_path / "body.h").write_text("{\n    return table[0];\n}\n")
    unit = (
        'int table[] = {\n#include "table.h"\n};\nint f(void)\n#include "body.h"\nint g(void) { return 1; }\n'
    )
    functions = found_in(tmp_path, unit, compiler)
    assert {name: function.lines for name, function in functions.items()} == {"f": (4, 4), "g": (6, 6)}


def test_tokens() -> None:
    text = "a->b /* x */ += 0x1Fu; // y\n\"a \\\" /* b */\" L'\\'' ... 1.5e-3f ##x\\\n y"
    assert source_tokens(text) == [
        *("a", "->", "b", "+=", "0x1Fu", ";", '"a \\" /* b */"', "L'\\''", "...", "1.5e-3f", "##", "x", "y")
    ]


@settings(deadline=None)
@given(st.text())
def test_tokens_of_any_text_hold_no_white_space_outside_literals(text: str) -> None:
    for token in source_tokens(text):
        assert token[:1] in "\"'uUL" or not re.search(r"\s", token)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["int", "x", "->", "++", "0x1f", '"s /*"', "'c'", "{", "}", ";"])))
def test_tokens_survive_any_spacing(tokens: list[str]) -> None:
    assert source_tokens(" ".join(tokens)) == source_tokens("/* c */\n\t".join(tokens)) == tokens


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    functions_of(b'# 1 "unit.c"\n' + data, Path("nowhere"))
