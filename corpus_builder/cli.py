"""The command `corpus-builder`: parses arguments and calls the module that does the work.

Exit status 0, or 2 after one line on what is wrong and one on what to do. Whatever is heavy is imported by
the command that needs it, so `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corpus_builder.errors import UserFacingError

_EXAMPLES = """\
  corpus-builder plan configs/corpus/demo.yaml          what would be compiled, without compiling
  corpus-builder build configs/corpus/demo.yaml         compile it into runs/demo/corpus
  corpus-builder stats runs/demo/corpus                 sizes per project and variant, failures by cause
  corpus-builder show runs/demo/corpus luaH_get         one function's source beside two variants
  corpus-builder verify runs/demo/corpus                whether every shard is whole and no split leaks
  corpus-builder verify runs/demo/corpus --rebuild 20   and whether 20 random functions can be made again
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.handler(arguments)
    except UserFacingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is finished stays, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter from failing at its last flush.
        sys.stderr.close()
        return 0
    return status


class _Parser(argparse.ArgumentParser):
    """Its help, and that of its commands, ends with the examples that begin as it is called."""

    def __init__(self, *, prog: str = "", **settings: Any) -> None:
        lines = [line for line in _EXAMPLES.splitlines() if f"{line} ".startswith(f"  {prog} ")]
        settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, epilog="\n".join(["examples:", *lines]), **settings)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="corpus-builder",
        description="Cross-compiles C codebases into shards: one C function seen through every compiler.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    json_option = _Parser(add_help=False)
    json_option.add_argument("--json", action="store_true", help="print JSON instead of tables")
    config_options = _Parser(add_help=False)
    config_options.add_argument("config", type=Path, help="corpus config, such as configs/corpus/demo.yaml")
    config_options.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one key of the config"
    )
    corpus_option = _Parser(add_help=False)
    corpus_option.add_argument("corpus", help="folder or URL of a built corpus, with its index.json")

    plan = commands.add_parser("plan", parents=[config_options, json_option], help="say what would be built")
    plan.set_defaults(handler=_plan)
    build = commands.add_parser("build", parents=[config_options, json_option], help="build a corpus")
    build.add_argument(
        "--address", help="Ray cluster to use, such as auto or ray-head:6379; default: this machine"
    )
    build.set_defaults(handler=_build)
    stats = commands.add_parser("stats", parents=[corpus_option, json_option], help="figures of a corpus")
    stats.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw functions by project, variant and length"
    )
    stats.set_defaults(handler=_stats)
    verify = commands.add_parser("verify", parents=[corpus_option, json_option], help="check a corpus")
    verify.add_argument(
        "--rebuild", type=int, default=0, metavar="N", help="compile N random functions again"
    )
    verify.add_argument("--seed", type=int, default=0, help="chooses them")
    verify.add_argument("--cache", type=Path, default=Path("~/.cache/asmtrain"), help="of fetched sources")
    verify.add_argument("--toolchains", type=Path, default=Path("configs/toolchains.yaml"))
    verify.add_argument("--sandbox", choices=("bwrap", "none"), default="bwrap", help="for projects' builds")
    verify.set_defaults(handler=_verify)
    show = commands.add_parser(
        "show", parents=[corpus_option], help="one function's source beside its assembly"
    )
    show.add_argument("function", help="name or key of a function")
    show.add_argument("--variants", metavar="A,B", help="names or globs; default: one compiler's O0 and O2")
    show.add_argument("--raw", action="store_true", help="with directives, as the compiler wrote it")
    show.add_argument("--assembly", action="store_true", help="print the first variant's assembly alone, raw")
    show.set_defaults(handler=_show)
    return parser


def _plan(arguments: argparse.Namespace) -> int:
    from corpus_builder.config import CorpusConfig, load_config
    from corpus_builder.plan import plan_build
    from corpus_builder.terminal import BuildProgress, console, print_json, print_plan

    config = load_config(CorpusConfig, arguments.config, arguments.set)
    with BuildProgress(console(stderr=True)) as progress:
        plan = plan_build(config, progress)
    if arguments.json:
        print_json(plan.summary(config))
    else:
        print_plan(plan.summary(config), console())
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from corpus_builder.config import CorpusConfig, load_config
    from corpus_builder.pipeline import build
    from corpus_builder.plan import plan_build
    from corpus_builder.terminal import BuildProgress, console, left_out, print_build, print_json

    config = load_config(CorpusConfig, arguments.config, arguments.set)
    with BuildProgress(console(stderr=True)) as progress:
        plan = plan_build(config, progress)
        progress.note([*plan.notes, *left_out(plan.summary(config)["failures"])])
        index = build(
            config, address=arguments.address, progress=progress, plan=plan, started=progress.started
        )
    if arguments.json:
        print_json(index.model_dump())
    else:
        print_build(index.model_dump(), str(config.output), console())
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from corpus_builder.shards import load_index, read_shard
    from corpus_builder.stats import plot, summarize, tables
    from corpus_builder.storage import location
    from corpus_builder.terminal import console, print_json

    corpus = location(arguments.corpus)
    index = load_index(corpus)
    records = (record for shard in index.shards for record in read_shard(corpus / shard.name))
    functions = ((record.meta.model_dump(), record.assembly) for record in records)
    summary = summarize(index.model_dump(), functions)
    if arguments.plot:
        plot(summary, arguments.plot)
    if arguments.json:
        print_json(summary)
        return 0
    for table in tables(summary):
        console().print(table)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from corpus_builder.rebuild import rebuild
    from corpus_builder.storage import location
    from corpus_builder.terminal import print_json
    from corpus_builder.verify import verify_corpus

    corpus = location(arguments.corpus)
    problems = verify_corpus(corpus)
    remedy = "delete damaged shards and build again: finished units are reused"
    found: dict[str, object] = {"corpus": arguments.corpus}
    if arguments.rebuild and not problems:
        rebuilt = rebuild(
            corpus,
            arguments.rebuild,
            seed=arguments.seed,
            cache=arguments.cache,
            toolchain_file=arguments.toolchains,
            sandbox=arguments.sandbox,
        )
        problems = [*problems, *rebuilt.different]
        remedy = "compare the compilers' packages with those that made the corpus, or build it again"
        found |= {"rebuilt": rebuilt.same, "skipped": list(rebuilt.skipped)}
    found["problems"] = problems
    if arguments.json:
        print_json(found)
    else:
        _print_verdict(found)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        print(f"  remedy: {remedy}", file=sys.stderr)
    return 2 if problems else 0


def _print_verdict(found: Mapping[str, Any]) -> None:
    if not found["problems"]:
        print(f"{found['corpus']} is sound: shards whole, texts as recorded, no function in two splits")
    if "rebuilt" in found:
        print(f"{found['rebuilt']} functions compiled again, byte for byte; {len(found['skipped'])} skipped")
        for reason in found["skipped"]:
            print(f"skipped: {reason}")


def _show(arguments: argparse.Namespace) -> int:
    from corpus_builder.show import choose_variants, find_function, side_by_side
    from corpus_builder.storage import location
    from corpus_builder.terminal import console

    record, others = find_function(location(arguments.corpus), arguments.function)
    variants = choose_variants(record, arguments.variants)
    if arguments.assembly:
        print(record.assembly[variants[0]], end="")
        return 0
    console().print(side_by_side(record, variants, raw=arguments.raw))
    for key, place in others:
        print(f"also: {key} {place}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
