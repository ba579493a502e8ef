"""The commands that embed and search: arguments in, one function called, exit code out (see `cli`)."""

import argparse
from pathlib import Path
from typing import Any

from corpus_builder.asm import ISAS


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


def add_index(commands: Any) -> None:
    """Add `index build`, `index add`, `index search` and `index info`."""
    parser = commands.add_parser("index", help="make a vector index of functions, and find neighbours in it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", help="embed corpora and files into an index")
    _add_inputs(build)
    build.add_argument("--output", type=Path, required=True, help="folder of the index; replaced if there")
    _add_model(build, "embedding/ folder of an export; the model that comes with asmtrain if not given")
    build.set_defaults(handler=_build)
    add = actions.add_parser("add", help="embed more into an index, by the model that made it")
    add.add_argument("index", type=Path, help="folder of the index")
    _add_inputs(add)
    _add_model(add)
    add.set_defaults(handler=_add)
    info = actions.add_parser("info", help="say what an index holds and which model made it")
    info.add_argument("index", type=Path, help="folder of the index")
    info.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    info.set_defaults(handler=_info)
    _add_search(actions)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", type=Path, nargs="+", help="corpus folders; .s, ELF or archive files", metavar="INPUT"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["*.o2"],
        metavar="GLOB",
        help="variants of a corpus to embed, such as '*.gcc*.o2' (default: '*.o2')",
    )


def _add_model(
    parser: argparse.ArgumentParser, text: str = "embedding/ folder that made the index, if it was moved"
) -> None:
    parser.add_argument("--model", type=Path, metavar="FOLDER", help=text)


def _add_search(actions: Any) -> None:
    parser = actions.add_parser("search", help="find the nearest neighbours of the functions of files")
    parser.add_argument("index", type=Path, help="folder of the index")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".s, ELF or archive files")
    parser.add_argument("--function", metavar="NAME", help="the only function asked for")
    parser.add_argument("--top", type=_positive, default=5, metavar="K", help="neighbours (default: 5)")
    parser.add_argument("--exact", action="store_true", help="compare with every vector: misses none")
    parser.add_argument("--isa", choices=ISAS, default="", help="only neighbours of this ISA")
    parser.add_argument("--project", default="", help="only neighbours of this project")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    _add_model(parser)
    parser.set_defaults(handler=_search)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _build(options: argparse.Namespace) -> int:
    from asmtrain import index

    return index.run_build(options.inputs, options.output, model=options.model, variants=options.variants)


def _add(options: argparse.Namespace) -> int:
    from asmtrain import index

    return index.run_add(options.index, options.inputs, model=options.model, variants=options.variants)


def _info(options: argparse.Namespace) -> int:
    from asmtrain import index

    return index.run_info(options.index, as_json=options.as_json)


def _search(options: argparse.Namespace) -> int:
    from asmtrain import search

    return search.run_search(
        options.index,
        options.files,
        function=options.function,
        top=options.top,
        exact=options.exact,
        isa=options.isa,
        project=options.project,
        model=options.model,
        as_json=options.as_json,
    )


def add_serve(commands: Any) -> None:
    """Add `serve`."""
    parser = commands.add_parser("serve", help="a local page and a JSON API to search an index")
    parser.add_argument("index", type=Path, help="folder of the index")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that browsers may call this server by, where it listens on others than loopback",
    )
    parser.add_argument(
        "--max-upload-mb", type=_positive, default=32, metavar="MB", help="largest upload (default: 32)"
    )
    _add_model(parser)
    parser.set_defaults(handler=_serve)


def _serve(options: argparse.Namespace) -> int:
    from asmtrain import serve

    return serve.run(
        options.index,
        host=options.host,
        port=options.port,
        allowed_hosts=options.allow_host,
        max_upload_mb=options.max_upload_mb,
        model=options.model,
    )
