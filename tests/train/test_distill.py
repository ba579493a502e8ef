"""A teacher's vectors: made once, by all ranks together, and what they do to the loss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from asmtrain import dist
from asmtrain.cache import build_cache
from asmtrain.config import DataConfig, EmbeddingConfig
from asmtrain.contrast import cut, step_loss
from asmtrain.distill import teach
from asmtrain.encoder import embed_texts, load_encoder
from asmtrain.losses import info_nce, similarity_kl
from asmtrain.tokens import documents, train_tokenizer
from corpus_builder.shards import read_split
from ranks import finish_ranks, on_ranks, start_ranks
from test_train import figures, run_config

BLOCK = 100
TASKS: dict[str, dict[str, Any]] = {
    "retrieval": {"max_functions": 30},
    "completion": {"variants": ["*.o0", "*.o2"]},
    "events": {"hide_numbers": True},
}


def _taught(world: Any, teacher: Path, corpus: Path, folder: Path) -> tuple[Any, list[Path], list[int]]:
    """Every document's vector of some caches; which blocks there are, and when they were written."""
    parts = []
    texts = [item.text for record in read_split(corpus, "valid") for item in documents(record, "retrieval")]
    tokenizer = train_tokenizer(texts, vocab_size=300)  # not the teacher's own
    for task, settings in TASKS.items():
        data = DataConfig.model_validate({"corpus": corpus, "task": task, **settings})
        ranks = {"rank": world.rank, "world": world.size, "barrier": dist.barrier}
        parts.append((data, build_cache(data, "train", tokenizer, folder, **ranks)))
    made = teach(teacher, parts, "train", world=world, block=BLOCK)
    vectors = made.vectors(torch.arange(sum(len(cache) for _, cache in parts)).view(-1, 1))
    blocks = sorted(folder.glob("*/teacher-*/*.npy"))
    return vectors[:, 0].numpy(), blocks, [path.stat().st_mtime_ns for path in blocks]


def test_each_text_is_embedded_once_by_one_of_the_ranks(
    exported_run: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    teacher = exported_run / "export" / "embedding"
    vectors, blocks, written = on_ranks(2, _taught, teacher, tiny_corpus, tmp_path)
    records = list(read_split(tiny_corpus, "train"))
    spread = [records[at * len(records) // 30] for at in range(30)]
    texts = [item.assembly for record in spread for item in documents(record, "retrieval")]
    shown = [item for record in records for item in documents(record, "completion", ("*.o0", "*.o2"))]
    shown += [item for record in records for item in documents(record, "events", hide_numbers=True)]
    texts += [item.assembly for item in shown]
    expected = embed_texts(load_encoder(teacher), texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-3)
    assert np.abs(expected - expected[0]).max() > 0.01
    assert len(blocks) >= 4
    blocks[1].unlink()  # as if killed before it was written
    again, _, later = on_ranks(1, _taught, teacher, tiny_corpus, tmp_path)
    assert np.array_equal(again, vectors)
    assert [place for place, pair in enumerate(zip(written, later, strict=True)) if pair[0] != pair[1]] == [1]


def test_the_teacher_takes_its_share_of_the_loss_at_every_length() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, teacher = (
        torch.nn.functional.normalize(torch.randn(6, 3, dim, generator=generator), dim=-1) for dim in (8, 5)
    )
    clusters, bodies = torch.arange(6), torch.arange(18).view(6, 3)
    distill = {"teacher": "folder", "weight": 0.3, "temperature": 0.1}
    embedding = EmbeddingConfig.model_validate({"dim": 8, "matryoshka": (4,), "distill": distill})
    expected = 0.0
    for size in (4, 8):
        unit = cut(vectors, 0, size)
        guidance = similarity_kl(unit.flatten(0, 1), teacher.flatten(0, 1), temperature=0.1)
        task = info_nce(unit, clusters, bodies, temperature=embedding.temperature)
        expected += (0.3 * guidance + 0.7 * task) / 2
    found = step_loss(vectors, clusters, bodies, embedding=embedding, teacher_MKE=teacher)
    torch.testing.assert_close(found, expected)


def _run_config(folder: Path, corpus: Path, teacher: Path, **distill: Any) -> Path:
    """The last stage of a tiny run by itself: a student with another tokenizer and vector length."""
    path = run_config(folder, corpus)
    config = yaml.safe_load(path.read_text())
    stage = config["stages"][2]
    stage["embedding"] |= {"dim": 8, "distill": {"teacher": str(teacher), **distill}}
    stage["data"].append({**stage["data"][0], "task": "completion", "weight": 0.5})
    config["model"]["shape"]["vocab_size"] = 400
    path.write_text(yaml.safe_dump({**config, "stages": [stage]}))
    return path


def test_a_student_learns_the_same_on_one_rank_and_on_two(
    exported_run: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    taken = []
    for size in (1, 2):
        config = _run_config(
            tmp_path / str(size), tiny_corpus, exported_run / "export" / "embedding", weight=1.0
        )
        codes, said = finish_ranks(start_ranks(size, ["train", str(config)]))
        assert codes == [0] * size, said
        taken.append([step[3] for step in figures(tmp_path / str(size) / "run")])
    assert taken[0] == pytest.approx(taken[1], rel=1e-4)
    assert taken[0][-1] < taken[0][0]
    result = json.loads(next((tmp_path / "1" / "run" / "stages").glob("*/result.json")).read_bytes())
    assert len(result["corpora"]) == 1


def test_a_teacher_that_is_none_is_refused_before_anything_is_done(tiny_corpus: Path, tmp_path: Path) -> None:
    config = _run_config(tmp_path, tiny_corpus, tmp_path / "nothing")
    codes, said = finish_ranks(start_ranks(1, ["train", str(config)]))
    assert codes == [2]
    assert f"{tmp_path / 'nothing'} is not an embedding model" in said[0]
    assert "Traceback" not in said[0]
    assert not (tmp_path / "run" / "tokenizer").exists()
