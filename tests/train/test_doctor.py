"""The doctor: tells what is there, names what is missing with its remedy, and answers with its exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from asmtrain import doctor

COMMAND = [sys.executable, "-c", "from asmtrain.cli import main; raise SystemExit(main(['doctor']))"]


def test_a_machine_that_runs_the_tests_has_the_essentials(capsys: pytest.CaptureFixture[str]) -> None:
    findings = list(doctor.examine())
    assert [item.name for item in findings if item.is_essential and not item.found] == []
    assert {"Python 3.11+", "Python packages", "aarch64.gcc", "deepspeed launcher", "GPU"} <= {
        item.name for item in findings
    }
    assert all(item.remedy or item.found for item in findings)
    assert doctor.run() == 0
    assert "Everything that the main job needs is here" in capsys.readouterr().out


def test_without_any_compiler_it_ends_with_2_and_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    entries = "".join(
        f"  - {{isa: {isa}, family: {family}, triple: {isa}-linux-gnu, versions: [12],"
        f" commands: [no-such-compiler], apt: 'the-{isa}-package'}}\n"
        for isa in ("aarch64", "x86_64", "riscv64")
        for family in ("gcc", "clang", "zig")
    )
    (tmp_path / "configs" / "toolchains.yaml").write_text("toolchains:\n" + entries)
    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing: ")]
    assert [line.split(": ")[1] for line in missing] == [
        "aarch64.gcc", "aarch64.clang", "x86_64.gcc", "x86_64.clang",
        "riscv64.gcc", "riscv64.clang",
    ]  # fmt: skip
    assert "the-aarch64-package" in missing[0]


def test_a_tool_that_is_absent_is_named_but_not_essential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = {item.name: item for item in doctor.examine() if not item.found}
    assert {"qemu-aarch64", "bwrap", "sandbox starts", "sbatch"} <= absent.keys()
    assert absent["bwrap"].remedy == "apt-get install bubblewrap"
    assert not absent["bwrap"].is_essential
