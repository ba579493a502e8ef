"""The commands `asmtrain eval TASK`: arguments in, one function called, exit code out (see `cli`)."""

import argparse
from pathlib import Path
from typing import Any


def add_eval(commands: Any) -> None:
    """Add `eval` and its tasks."""
    parser = commands.add_parser("eval", help="evaluate a model on a task")
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    _add_eval_retrieval(tasks)
    _add_eval_probe(tasks)
    _add_eval_cve(tasks)
    leaks = tasks.add_parser(
        "leaks", help="functions of a split that training has seen; exit code 1 if there are any"
    )
    leaks.add_argument("corpus", type=Path, help="a corpus folder")
    leaks.add_argument("--split", default="test", choices=("valid", "test"), help="default: test")
    leaks.add_argument(
        "--trained-on", type=Path, metavar="CORPUS", help="whose training split counts (default: its own)"
    )
    leaks.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    leaks.set_defaults(handler=_eval_leaks)
    completion = tasks.add_parser("completion", help="perplexity of a language model on assembly")
    completion.add_argument("--model", type=Path, required=True, help="an exported merged/ folder")
    completion.add_argument("--corpus", type=Path, required=True, help="corpus whose functions are scored")
    completion.add_argument("--output", type=Path, required=True, help="folder for completion.json")
    completion.add_argument("--split", default="valid", choices=("train", "valid", "test"))
    completion.set_defaults(handler=_eval_completion)


def _add_eval_retrieval(tasks: Any) -> None:
    parser = tasks.add_parser("retrieval", help="find functions across -O levels, compilers and ISAs")
    _add_models(parser)
    parser.add_argument("--corpus", type=Path, required=True, help="corpus whose test split is searched")
    parser.add_argument("--output", type=Path, required=True, help="folder for retrieval.json and pictures")
    parser.add_argument("--split", default="test", choices=("valid", "test"), help="default: test")
    parser.add_argument(
        "--views",
        nargs="+",
        default=["default"],
        choices=("default", "masked", "imports"),
        help="what is shown of a function: as in a stripped binary (default), without numbers, with the names"
        " of imports",
    )
    parser.add_argument(
        "--lanes",
        nargs="+",
        default=["*"],
        metavar="GLOB",
        help="lanes to ask, such as 'XO *' 'XC O2 aarch64' (default: all that the corpus allows)",
    )
    parser.add_argument(
        "--no-bag", action="store_false", dest="with_bag", help="leave out the baseline that takes training"
    )
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write each lane as corpus, queries and qrels (BEIR)"
    )
    parser.add_argument(
        "--trained-on",
        type=Path,
        metavar="CORPUS",
        help="corpus whose training split the models saw, and the bag learns from (default: --corpus)",
    )
    parser.set_defaults(handler=_eval_retrieval)


def _add_eval_probe(tasks: Any) -> None:
    parser = tasks.add_parser("probe", help="what a model's vectors tell: size, -O level, compiler, ISA")
    _add_models(parser)
    parser.add_argument("--corpus", type=Path, required=True, help="probes are fitted on its training split")
    parser.add_argument("--output", type=Path, required=True, help="folder for probe.json and probe.png")
    parser.add_argument("--split", default="test", choices=("valid", "test"), help="judged on; default: test")
    parser.add_argument(
        "--projector",
        type=Path,
        metavar="LOGDIR",
        help="write the judged vectors there for TensorBoard's projector, such as RUN/tb",
    )
    parser.set_defaults(handler=_eval_probe)


def _add_eval_cve(tasks: Any) -> None:
    parser = tasks.add_parser("cve", help="find vulnerable functions in binaries of other ISAs")
    _add_models(parser)
    parser.add_argument("--before", type=Path, required=True, help="corpus of packages before their fixes")
    parser.add_argument("--after", type=Path, required=True, help="corpus of the same packages, fixed")
    parser.add_argument("--output", type=Path, required=True, help="folder for cve.json and cve.png")
    parser.add_argument(
        "--trained-on",
        type=Path,
        metavar="CORPUS",
        help="corpus that the models were trained on: functions of its training split are not asked for, and"
        " the bag is trained on it",
    )
    parser.set_defaults(handler=_eval_cve)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]MODEL",
        dest="models",
        help="an exported embedding/ folder (FOLDER@64: its vectors cut to 64 numbers), a"
        " sentence-transformers folder, or module:function, a Python callable from a list of texts to an"
        " array of vectors; may be given several times",
    )


def _eval_cve(options: argparse.Namespace) -> int:
    from asmtrain.tasks import cve

    cve.run(options.models, options.before, options.after, options.output, trained_on=options.trained_on)
    return 0


def _eval_probe(options: argparse.Namespace) -> int:
    from asmtrain.tasks import probe

    probe.run(
        options.models, options.corpus, options.output, split=options.split, projector=options.projector
    )
    return 0


def _eval_retrieval(options: argparse.Namespace) -> int:
    from asmtrain.tasks import retrieval

    retrieval.run(
        options.models,
        options.corpus,
        options.output,
        split=options.split,
        views=options.views,
        lanes=options.lanes,
        with_bag=options.with_bag,
        export=options.export,
        trained_on=options.trained_on,
    )
    return 0


def _eval_leaks(options: argparse.Namespace) -> int:
    from asmtrain.tasks import leaks

    return leaks.run(
        options.corpus, split=options.split, trained_on=options.trained_on, as_json=options.as_json
    )


def _eval_completion(options: argparse.Namespace) -> int:
    from asmtrain.tasks import completion

    completion.run(options.model, options.corpus, options.output, split=options.split)
    return 0
