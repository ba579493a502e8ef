"""Slurm's notice reaches one rank; all leave together, at the same point, with what is whole kept."""

import os
import signal
from pathlib import Path
from typing import Any

from asmtrain import notice
from asmtrain.cache import build_cache
from asmtrain.config import DataConfig
from asmtrain.tokens import load_tokenizer
from ranks import on_ranks


def _warned(world: Any, corpus: Path, tokenizer: Path, folder: Path) -> list[str]:
    """What is there when a rank is warned while the corpus is tokenised."""
    before = signal.getsignal(signal.SIGUSR2)
    with notice.noted():
        notice.heed(world.device)
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        data = DataConfig(corpus=corpus, task="completion")
        try:
            build_cache(
                data,
                "train",
                load_tokenizer(tokenizer),
                folder,
                rank=world.rank,
                world=world.size,
                barrier=lambda: notice.heed(world.device),
            )
        except notice.Warned:
            assert signal.getsignal(signal.SIGUSR2) != before
            return sorted(path.name for path in folder.glob("*/*"))
    return ["it was not heeded"]


def test_all_ranks_leave_tokenising_and_keep_the_finished_parts(
    tiny_corpus: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    left = on_ranks(2, _warned, tiny_corpus, tmp_path / "tokenizer", tmp_path / "cache")
    assert left == ["part-00000", "part-00001"]
