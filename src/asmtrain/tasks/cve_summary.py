"""What is said of vulnerabilities: what became of each CVE, the files, and a table on the terminal.

In go the comparison of two corpora and the questions made of it, or the whole result; out come rows, files
and text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from asmtrain import terminal
from asmtrain.tasks.cve_questions import Question
from asmtrain.tasks.fixes import Compared, Identity, Patch
from asmtrain.tasks.results import write_result

_SHOWN = ("recall_at_1", "recall_at_10", "mrr_at_10", "median_rank", "vulnerable_nearer", "fixed_nearer")


def fates(
    compared: Compared, questions: Sequence[Question], reasons: Mapping[Identity, str]
) -> list[dict[str, Any]]:
    """A row a CVE and package: its patches, the functions asked for, or why there are none."""
    groups: dict[tuple[str, str], list[Patch]] = {}
    for patch in compared.patches:
        for cve in patch.cves:
            groups.setdefault((cve, patch.project), []).append(patch)
    rows = []
    for (cve, project), patches in sorted(groups.items()):
        asked = [
            question.identity
            for question in questions
            if question.identity.project == project and cve in question.cves
        ]
        rows.append(
            {
                "cve": cve,
                "project": project,
                "patches": [patch.name for patch in patches],
                "asked": [f"{identity.file}:{identity.name}" for identity in asked],
                "why_not": "" if asked else _why_not(patches, compared, reasons),
            }
        )
    return rows


def _why_not(patches: Sequence[Patch], compared: Compared, reasons: Mapping[Identity, str]) -> str:
    left_out = [patch for patch in patches if patch.left_out]
    if not left_out:
        return "its patch stays applied, for later ones build on it"
    files = {(patch.project, change.file) for patch in left_out for change in patch.changes}
    if not files:
        return "changes no C code"
    compiled = {identity[:2] for identity in (*compared.before, *compared.after)}
    if not files & compiled:
        is_header = all(file.endswith(".h") for _, file in files)
        return "changes headers alone" if is_header else "changes no file that is compiled"
    names = {f"{patch.project}/{patch.name}" for patch in left_out}
    own = {reasons[each] for each, by in compared.changed.items() if by & names and each in reasons}
    return ", ".join(sorted(own)) or "changes no function that both builds have"


def save(result: Mapping[str, Any], output: Path) -> None:
    """Write `cve.json` and `cve.png`, and print the table."""
    from asmtrain.tasks.figure import draw_ranks

    write_result(output / "cve.json", result)
    path = draw_ranks(result["rows"], output)
    _show(result, terminal.console())
    print(f"{output}: cve.json, {path.name}")


def _show(result: Mapping[str, Any], console: Console) -> None:
    for isa in dict.fromkeys(row["isa"] for row in result["summary"]):
        rows = [row for row in result["summary"] if row["isa"] == isa]
        first = rows[0]
        title = (
            f"x86_64 to {isa}: {first['num_queries']} vulnerable functions of {first['num_cves']} CVEs"
            f" among {first['pool']:,}"
        )
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("model")
        for name in _SHOWN:
            table.add_column(name.replace("_", " "), justify="right", max_width=11)
        for row in rows:
            table.add_row(row["model"], *(_cell(row, name) for name in _SHOWN))
        console.print(table)
    fates = result["cves"]
    num_asked = sum(bool(row["asked"]) for row in fates)
    console.print(f"{num_asked} of {len(fates)} CVEs are asked for; not the others:", style="dim")
    reasons = [row["why_not"] for row in fates if row["why_not"]]
    for reason in sorted(set(reasons)):
        console.print(f"  {reasons.count(reason):3} {reason}", style="dim")


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    return f"{value:,.0f}" if name == "median_rank" else f"{value:.2f}"
