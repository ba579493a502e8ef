"""The command `asmtrain`: arguments in, one function called, exit code out.

Exit codes: 0 done; 1 a run that hung or lost a rank, a check that found a difference or a leak; 2 a mistake
that a user can mend, told in one line with its remedy, or a loss that a run must not go on with; 75 a run
that saved itself at Slurm's warning and wants to be started again. Modules are imported by the handler that
needs them, so that `--help` answers at once.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asmtrain.cli_eval import add_eval
from asmtrain.cli_search import add_embed, add_index, add_serve
from asmtrain.errors import UserFacingError

_EXAMPLES = """\
  asmtrain train configs/train/demo.yaml                     on this process alone
  asmtrain train configs/train/codellama-7b.yaml --dry-run   parameters, memory and steps
  asmtrain train configs/train/demo.yaml --set stages.pretrain.steps=50
  asmtrain export runs/demo/train --output runs/demo/export
  asmtrain eval retrieval --model runs/demo/export/embedding --corpus runs/demo/corpus --output runs/demo/eval
  asmtrain eval retrieval --model ours=FOLDER --model theirs=my_module:embed --corpus CORPUS --output OUT
  asmtrain eval probe --model runs/demo/export/embedding --corpus runs/demo/corpus --output OUT
  asmtrain eval cve --model FOLDER --before runs/cve/before --after runs/cve/after --output runs/cve/eval
  asmtrain eval completion --model runs/demo/export/merged --corpus runs/demo/corpus --output OUT
  asmtrain eval leaks runs/demo/corpus
  asmtrain embed /usr/bin/sed firmware/*.so --output vectors
  asmtrain index build runs/demo/corpus --output runs/demo/index
  asmtrain index add runs/demo/index /usr/lib/x86_64-linux-gnu/libz.so.1
  asmtrain index info runs/demo/index
  asmtrain index search runs/demo/index library.so --function parse_header
  asmtrain index search runs/demo/index firmware/*.so --top 1 --isa aarch64 --json
  asmtrain serve runs/demo/index
  asmtrain report runs/demo/train --evaluation runs/demo/eval
  asmtrain doctor
  asmtrain doctor --cluster --config configs/train/codellama-7b.yaml   on every rank: srun, before it
  asmtrain selfcheck resume configs/train/demo.yaml"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.handler(options)
    except UserFacingError as error:
        rank = os.environ.get("RANK", "0")
        print(f"rank {rank}: error: {error}" if rank != "0" else f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output left, as in `asmtrain ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


class _Parser(argparse.ArgumentParser):
    """Its help, and that of its commands, ends with the examples that begin as it is called."""

    def __init__(self, *, prog: str = "", **settings: Any) -> None:
        lines = [line for line in _EXAMPLES.splitlines() if f"{line} ".startswith(f"  {prog} ")]
        settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, epilog="\n".join(["examples:", *lines]), **settings)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="asmtrain", description="Train, export, evaluate and search with models of assembly."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        *(_add_train, _add_export, add_eval, add_embed, add_index, add_serve),
        *(_add_report, _add_doctor, _add_selfcheck),
    ):
        add(commands)
    return parser


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="train the stages of a config, or go on where it stopped")
    parser.add_argument("config", type=Path, help="YAML file, such as configs/train/demo.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="override one key"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the config, parameters, memory and steps; train nothing"
    )
    parser.set_defaults(handler=_train)


def _train(options: argparse.Namespace) -> int:
    # Slurm's warning may come before the trainer can note it: it waits instead of ending the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    from asmtrain.config import load_train_config

    config = load_train_config(options.config, options.overrides)
    if options.dry_run:
        from asmtrain import plan

        print(plan.describe(config))
        return 0
    from asmtrain import train

    return train.run(config)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write merged weights, adapter and embedding model of a run")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--output", type=Path, help="where to; RUN/export if not given")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        help="of the weights (default: the one they were trained in); fp32 keeps what bf16 rounds away",
    )
    parser.add_argument(
        "--shard-size", type=_size, default="5GB", metavar="SIZE", help="largest weights file (default: 5GB)"
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="also load the models, whole, and compare what the trained and the exported ones give",
    )
    parser.set_defaults(handler=_export)


def _size(text: str) -> int:
    """Bytes of a size such as 5GB or 200MB."""
    match = re.fullmatch(r"(\d+)([KMG]?)B?", text.upper())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give one such as 5GB or 200MB")
    return int(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2]]


def _export(options: argparse.Namespace) -> int:
    from asmtrain import export

    chosen = export.Options(dtype=options.dtype, shard_bytes=options.shard_size, probe=options.probe)
    return export.run(options.run, options.output, chosen)


def _add_report(commands: Any) -> None:
    parser = commands.add_parser("report", help="write a run's curves, config and results as one HTML page")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--output", type=Path, help="the page; RUN/report.html if not given")
    parser.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        dest="evaluations",
        help="a folder of asmtrain eval, whose results are shown; may be given several times",
    )
    parser.set_defaults(handler=_report)


def _report(options: argparse.Namespace) -> int:
    from asmtrain import report

    print(report.run(options.run, options.output, options.evaluations))
    return 0


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="say what this machine lacks, for what, and how to get it")
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="on every rank, as in `srun asmtrain doctor --cluster`: whether ranks, network, clocks, versions"
        " and folders of all nodes fit together; exit code 1 if not",
    )
    parser.add_argument(
        "--config", type=Path, help="with --cluster: the run's YAML file, whose corpora each node has to read"
    )
    parser.set_defaults(handler=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    if options.cluster:
        from asmtrain import cluster

        return cluster.run(options.config)
    from asmtrain import doctor

    return doctor.run()


def _add_selfcheck(commands: Any) -> None:
    parser = commands.add_parser("selfcheck", help="prove on your own config what a run promises")
    checks = parser.add_subparsers(required=True, metavar="CHECK")
    resume = checks.add_parser(
        "resume", help="short runs, one undisturbed, one killed twice: are losses and weights bit-equal?"
    )
    resume.add_argument("config", type=Path, help="YAML file, such as configs/train/demo.yaml")
    resume.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="override one key"
    )
    resume.add_argument("--steps", type=_at_least_two, default=6, help="steps of each stage (default: 6)")
    resume.add_argument(
        "--ranks", type=int, help="ranks on this machine; its GPUs, or two on CPU, if not given"
    )
    resume.set_defaults(handler=_selfcheck_resume)


def _at_least_two(text: str) -> int:
    """A run of one step has no checkpoint to be killed in."""
    if int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text} steps are too few; give 2 or more")
    return int(text)


def _selfcheck_resume(options: argparse.Namespace) -> int:
    from asmtrain import selfcheck

    return selfcheck.run_resume(
        options.config, options.overrides, steps=options.steps, num_ranks=options.ranks
    )


def entry() -> None:
    """The command: run, flush, and leave at once.

    Threads of the communication library can outlive their group; at the interpreter's own exit they were
    seen to abort a rank ("terminate called") whose run was complete and saved.
    """
    code = main()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
