"""The commands that embed and search: arguments in, one function called, exit code out (see `cli`)."""

import argparse
from pathlib import Path
from typing import Any


def add_embed(commands: Any) -> None:
    """Add `embed`."""
    parser = commands.add_parser("embed", help="vectors of the functions of binaries, objects and assembler")
    parser.add_argument("files", type=Path, nargs="+", help=".s, .o, .a, .so files and executables")
    parser.add_argument("--model", type=Path, help="an exported embedding/ folder (default: the shipped one)")
    parser.add_argument("--output", type=Path, required=True, help="folder for vectors.npy, functions.jsonl")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print the summary as JSON")
    parser.set_defaults(handler=_embed)


def _embed(options: argparse.Namespace) -> int:
    from asmtrain import embed

    return embed.run_embed(options.files, options.output, model=options.model, as_json=options.as_json)


def add_search(commands: Any) -> None:
    """Add `search`."""
    parser = commands.add_parser("search", help="find a function's nearest neighbours in an index")
    parser.add_argument("file", type=Path, help=".s or .o file with the function asked for")
    parser.add_argument("--index", type=Path, required=True, help="folder that asmtrain embed wrote")
    parser.add_argument("--function", help="its name; needed where the file holds several")
    parser.add_argument("--top", type=int, default=5, help="neighbours shown")
    parser.add_argument("--model", type=Path, help="embedding/ folder that made the index, if it was moved")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    parser.set_defaults(handler=_search)


def _search(options: argparse.Namespace) -> int:
    from asmtrain import index

    index.run_search(
        options.file,
        options.index,
        function=options.function,
        top=options.top,
        model=options.model,
        as_json=options.as_json,
    )
    return 0
