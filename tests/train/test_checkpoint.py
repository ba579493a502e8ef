"""The run folder: whole or absent, its own config's alone, and what a damaged one says."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from asmtrain import checkpoint, saving, slices
from asmtrain.checkpoint import CheckpointState, StageResult
from asmtrain.config import Full, Lora, TrainConfig
from asmtrain.errors import CheckpointError
from corpus_builder.errors import OutputError

STAGE = {
    "name": "one",
    "objective": "causal_lm",
    "data": [{"corpus": "corpus", "task": "completion"}],
    "trainable": {"kind": "full"},
    "optimizer": {"lr": 0.1},
    "steps": 3,
}
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 2,
}


def config(run: Path, **changes: object) -> TrainConfig:
    settings = {
        "run": run,
        "model": {"shape": SHAPE},
        "tokenizer": {"corpus": "corpus"},
        "stages": [STAGE],
        "engine": {"zero_stage": 1},
    }
    return TrainConfig.model_validate(settings | changes)


def saved(run: Path, step: int, *, stage: str = "one", valid_loss: float | None = None) -> Path:
    """A small whole checkpoint."""
    folder = checkpoint.checkpoint_folder(run, 0, stage, step)
    with checkpoint.written_to(folder):
        draft = checkpoint.new_draft(folder)
        (draft / "weights").mkdir()
        save_file({"tensor": torch.arange(4)}, draft / "weights" / "model.safetensors")
        for rank in range(2):
            saving.write_rank(draft, rank, {"random.cpu": torch.ones(3)})
        checkpoint.write_state(draft, CheckpointState(step=step, world_size=2, valid_loss=valid_loss))
        checkpoint.publish(draft, folder, saving.sums_of_ranks(draft, 2))
    return folder


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "stages" / "01-one"

    def fail() -> None:
        with checkpoint.atomic_folder(target) as draft:
            (draft / "half").write_text("written")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert not target.exists()
    with checkpoint.atomic_folder(target) as draft:
        assert not list(draft.iterdir()), "what the first attempt left is gone"
        (draft / "whole").write_text("written")
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "whole"]
    assert checkpoint.damage(target) is None


def test_a_run_belongs_to_its_config(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint.claim(run, config(run))
    checkpoint.claim(run, config(run))
    with pytest.raises(CheckpointError) as refused:
        checkpoint.claim(run, config(run, validation_split="test"))
    assert "validation_split was 'valid' and is now 'test'" in refused.value.message
    assert "--set run=FOLDER" in refused.value.remedy


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"stages": [STAGE | {"steps": 4}]}, r"stages\.0\.steps was 3 and is now 4"),
        ({"stages": [STAGE, STAGE | {"name": "two"}]}, r"stages\.1\.name was None and is now 'two'"),
        ({"deepspeed": {"gradient_clipping": 2}}, "deepspeed was {} and is now None|gradient_clipping"),
        ({"seed": 1, "stages": [STAGE | {"steps": 4}]}, "seed was"),
    ],
)
def test_the_first_differing_key_is_named(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    checkpoint.claim(tmp_path, config(tmp_path))
    with pytest.raises(CheckpointError, match=key):
        checkpoint.claim(tmp_path, config(tmp_path, **changes))


def test_a_run_may_move_save_more_often_and_spread_otherwise(tmp_path: Path) -> None:
    checkpoint.claim(tmp_path, config(tmp_path))
    saving = {"every_steps": 1, "keep": 9, "keep_best": True}
    spread = {"zero_stage": 3, "offload_optimizer": True}
    checkpoint.claim(tmp_path, config(Path("elsewhere"), checkpoint=saving, engine=spread))


def test_a_run_begun_before_a_key_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    checkpoint.claim(tmp_path, config(tmp_path))
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del written["validation_split"], written["stages"][0]["replay"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written))
    checkpoint.claim(tmp_path, config(tmp_path))
    with pytest.raises(CheckpointError, match="validation_split was 'valid' and is now 'test'"):
        checkpoint.claim(tmp_path, config(tmp_path, validation_split="test"))


def test_claiming_removes_what_a_kill_left(tmp_path: Path) -> None:
    checkpoint.claim(tmp_path, config(tmp_path))
    whole = saved(tmp_path, 1)
    for leftover in ("checkpoints/.01-one-step000002", "stages/.01-one", ".base", ".tokenizer"):
        (tmp_path / leftover).mkdir(parents=True)
        (tmp_path / leftover / "half").write_text("written")
    checkpoint.claim(tmp_path, config(tmp_path))
    assert [path for path in tmp_path.rglob(".*")] == []
    assert checkpoint.damage(whole) is None


def test_the_newest_whole_checkpoint_is_used(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) == (None, [])
    first, second, third = (saved(tmp_path, step) for step in (1, 2, 10))
    assert checkpoint.latest(tmp_path) == (third, [])
    flipped = third / "weights" / "model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    (second / "rank-00000.safetensors").unlink()
    folder, problems = checkpoint.latest(tmp_path)
    assert folder == first
    assert [problem.split("(")[1].split(")")[0] for problem in problems] == [
        "weights/model.safetensors",
        "rank-00000.safetensors",
    ]


def test_a_damaged_checkpoint_is_written_again(tmp_path: Path) -> None:
    """A run that fell back behind it comes to its step once more."""
    older, newer = (saved(tmp_path, step) for step in (1, 2))
    (newer / "rank-00000.safetensors").unlink()
    assert checkpoint.latest(tmp_path)[0] == older
    saved(tmp_path, 2)
    assert checkpoint.latest(tmp_path) == (newer, [])


def test_a_checkpoint_without_its_manifest_is_damaged(tmp_path: Path) -> None:
    (saved(tmp_path, 1) / "manifest.json").write_text("{half")
    folder, problems = checkpoint.latest(tmp_path)
    assert folder is None
    assert "manifest.json" in problems[0]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folders = [saved(tmp_path, step, valid_loss=float(step)) for step in (1, 2, 3, 4)]
    saving.prune(tmp_path, keep=2)
    assert checkpoint.checkpoints(tmp_path) == folders[2:]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_the_best_checkpoint_of_each_stage_is_kept_too(tmp_path: Path) -> None:
    losses = [3.0, 1.0, None, 2.0, float("nan"), 1.5]
    one = [saved(tmp_path, step, valid_loss=loss) for step, loss in enumerate(losses)]
    saving.prune(tmp_path, keep=2, keep_best=True)
    assert checkpoint.checkpoints(tmp_path) == [one[1], *one[4:]]
    two = [saved(tmp_path, step, stage="two", valid_loss=9.0) for step in (1, 2, 3)]
    saving.prune(tmp_path, keep=1, keep_best=True)
    assert checkpoint.checkpoints(tmp_path) == [one[1], two[2]], "the newest of equals"
    (one[1] / "state.json").write_text("{half")
    saving.prune(tmp_path, keep=1, keep_best=True)
    assert checkpoint.checkpoints(tmp_path) == [two[2]], "nobody knows what the damaged one was"


def test_a_state_without_a_validation_loss_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": 4, "world_size": 2}')
    assert checkpoint.read_state(tmp_path) == CheckpointState(step=4, world_size=2, valid_loss=None)


def test_the_manifest_has_the_sums_of_ranks_as_they_told_them(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    assert checkpoint.damage(folder) is None
    assert sorted(json.loads((folder / "manifest.json").read_text())) == [
        "rank-00000.safetensors",
        "rank-00001.safetensors",
        "state.json",
        "weights/model.safetensors",
    ]
    assert sorted(path.name for path in folder.glob("rank*")) == [f"rank-0000{n}.safetensors" for n in (0, 1)]


def test_only_the_stage_under_way_goes_on_and_only_on_its_corpus(tmp_path: Path) -> None:
    from asmtrain.stage import resume_point

    assert resume_point(tmp_path, 0, {}) is None
    folder = checkpoint.checkpoint_folder(tmp_path, 0, "one", 2)
    with checkpoint.atomic_folder(folder) as draft:
        (draft / "weights").mkdir()
        (draft / "weights" / "result.json").write_text(_result(corpora={"c": "old"}).model_dump_json())
        checkpoint.write_state(draft, CheckpointState(step=2, world_size=1))
    assert resume_point(tmp_path, 0, {"c": "old"}) == folder
    assert resume_point(tmp_path, 1, {"c": "old"}) is None, "the stage before left it"
    with pytest.raises(CheckpointError, match="corpus c is not the one"):
        resume_point(tmp_path, 0, {"c": "new"})


def _result(**changes: Any) -> StageResult:
    result = StageResult(
        name="one",
        index=0,
        step=3,
        objective="causal_lm",
        trainable=Full(kind="full"),
        embedding=None,
        dtype="fp32",
        base="base",
        corpora={},
    )
    return result.model_copy(update=changes)


def test_a_rank_reads_what_it_wrote(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    assert torch.equal(slices.random_state(checkpoint.rank_file(folder, 0))["random.cpu"], torch.ones(3))
    with pytest.raises(CheckpointError, match="rank-00002"):
        slices.random_state(checkpoint.rank_file(folder, 2))


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    def fill() -> None:
        with checkpoint.written_to(tmp_path), open("/dev/full", "wb", buffering=0) as stream:
            stream.write(b"more")

    with pytest.raises(OutputError, match="no space left on the disk") as refused:
        fill()
    assert "goes on from the last save" in refused.value.remedy


def test_a_limit_that_safetensors_meets_is_told_the_same_way(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*rank-00000"):
            saving.write_rank(tmp_path, 0, {"tensor": torch.ones(1 << 16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_result_is_read_back_and_a_missing_one_refused(tmp_path: Path) -> None:
    result = _result(trainable=Lora(kind="lora", rank=2), dtype="bf16", valid_loss=1.5)
    (tmp_path / "result.json").write_text(result.model_dump_json())
    assert checkpoint.read_result(tmp_path) == result
    with pytest.raises(CheckpointError, match="holds no stage result"):
        checkpoint.read_result(tmp_path / "nowhere")


def test_a_run_that_moved_takes_its_base_along(tmp_path: Path) -> None:
    run = tmp_path / "moved"
    (run / "stages" / "01-one").mkdir(parents=True)
    (run / "base").mkdir()
    (run / "config.yaml").touch()
    result = _result()
    assert checkpoint.base_path(run / "stages" / "01-one", result) == str(run / "base")
    hub = result.model_copy(update={"base": "codellama/CodeLlama-7b-hf"})
    assert checkpoint.base_path(run / "stages" / "01-one", hub) == "codellama/CodeLlama-7b-hf"
