"""A run stops before a loss or a gradient spoils it, on every rank, and names the functions of the step."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from asmtrain.checkpoint import MANIFEST, atomic_folder, checkpoints, damage
from asmtrain.data import RowBatches, build_cache
from asmtrain.engine import Engine
from asmtrain.guard import Guard, norm_problem
from asmtrain.pairs import PairBatches
from corpus_builder.shards import read_split
from ranks import finish_ranks, on_ranks, start_ranks
from test_engine import FULL, LORA, _config, _model
from test_train import figures, run_config


def test_a_loss_that_is_not_finite_is_a_problem_at_once() -> None:
    for loss in (float("nan"), float("inf"), float("-inf")):
        assert Guard(3.0).problem(loss) == f"the loss is {loss}"
        assert Guard(None).problem(loss)
        assert norm_problem(loss)
    assert norm_problem(0.5) is None


def test_a_jump_needs_a_level_to_jump_from() -> None:
    young = Guard(3.0, [1.0] * 9)
    assert young.problem(9.0) is None
    assert young.problem(9.0) == "the loss is 9.0000, far above its recent level of 1.0000"
    assert Guard(None, [1.0] * 50).problem(9.0) is None
    falling = Guard(3.0)
    assert [falling.problem(10.0 - step / 10) for step in range(80)] == [None] * 80


def test_the_level_is_that_of_the_last_fifty() -> None:
    guard = Guard(3.0, [9.0] * 200 + [1.0] * 26)
    assert guard.problem(4.5), "the median of 24 and 26 losses"
    assert guard.problem(3.9) is None


# Keys


@pytest.fixture(scope="module")
def cache(tiny_corpus: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = _config(FULL, zero_stage=0).stages[0].data[0].model_copy(update={"corpus": tiny_corpus})
    return build_cache(data, "train", tiny_tokenizer, tmp_path_factory.mktemp("cache"))


def test_the_keys_of_a_step_are_those_of_all_ranks_rows(cache: Any) -> None:
    settings = {"context": 256, "rows_per_step": 4, "micro_rows": 1, "seed": 0}
    ranks = [RowBatches([cache], [1.0], rank=rank, world=2, **settings) for rank in range(2)]
    keys = ranks[0].keys(3)
    assert keys == ranks[1].keys(3)
    found = set()
    for batch in (batch for rank in ranks for batch in rank.step(3)):
        ids_T, documents_T = batch.ids_BT[0].tolist(), batch.document_ids_BT[0].tolist()
        for number in range(max(documents_T) + 1):
            piece = [token for token, document in zip(ids_T, documents_T, strict=True) if document == number]
            found |= {key for key in keys if _holds(cache, key, piece)}
            assert any(_holds(cache, key, piece) for key in keys)
    assert found == set(keys)


def _holds(cache: Any, key: str, piece: list[int]) -> bool:
    """Whether a document of the function holds the piece, at a multiple of the rows' length."""
    documents = [document for document in range(len(cache)) if cache.keys[document] == key]
    return any(
        cache.tokens(document)[start : start + len(piece)].tolist() == piece
        for document in documents
        for start in range(0, int(cache.lengths[document]), 256)
    )


def test_the_keys_of_a_step_are_those_of_all_ranks_pairs(cache: Any) -> None:
    settings = {"functions_per_step": 12, "micro_rows": 4, "max_tokens": 48, "seed": 0}
    ranks = [PairBatches([cache], [1.0], rank=rank, world=2, **settings) for rank in range(2)]
    functions = {int(number) for rank in ranks for batch in rank.step(1) for number in batch.functions_B}
    assert {str(cache.keys[cache.documents_of(number).start]) for number in functions} == set(
        ranks[0].keys(1)
    )
    assert len(ranks[0].keys(1)) == 12


# Gradients


def _spoilt_step(world: Any, cases: list[tuple[int, str]]) -> dict[tuple[int, str], tuple[float, bool]]:
    """The norm that each case's step gives when rank 1 has a bad gradient, and if the weights stay."""
    results = {}
    for zero_stage, dtype in cases:
        config = _config(LORA if dtype == "bf16" else FULL, zero_stage=zero_stage, dtype=dtype)
        stage = config.stages[0]
        module = _model(stage.trainable, dtype=dtype)
        engine = Engine(module, config, stage, world=world)
        names = [name for name, _ in module.named_parameters()]
        before = engine.gather(module, names)
        for _ in range(engine.accumulation):
            ids_BT = torch.arange(24).view(2, 12)
            loss = engine(input_ids=ids_BT, use_cache=False).logits.float().logsumexp(-1).mean()
            engine.backward(loss * (float("inf") if world.rank == 1 else 1.0))
        norm = engine.step(0.1)
        after = engine.gather(module, names)
        results[zero_stage, dtype] = norm, all(torch.equal(before[name], after[name]) for name in before)
        engine.close()
    return results


def test_no_step_is_taken_on_a_gradient_that_is_not_finite() -> None:
    cases = [(zero_stage, dtype) for zero_stage in range(4) for dtype in ("fp32", "bf16")]
    for case, (norm, weights_stay) in on_ranks(2, _spoilt_step, cases).items():
        assert norm_problem(norm), case
        assert weights_stay, case


# Runs


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def finished(request: Any, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A config whose run of 14 steps is done, with checkpoints of steps 4, 8 and 12; its number of ranks."""
    folder = tmp_path_factory.mktemp("finished")
    config = run_config(folder, tiny_corpus, checkpoint={"every_steps": 4, "keep": 3})
    settings = yaml.safe_load(config.read_text())
    settings["stages"] = [settings["stages"][0] | {"steps": 14, "eval_rows": 0}]
    config.write_text(yaml.safe_dump(settings))
    codes, said = finish_ranks(start_ranks(request.param, ["train", str(config)]))
    assert codes == [0] * request.param, said
    return config, request.param


def spoil(run: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a weight in the newest checkpoint, as a step that was not stopped would have."""
    folder = checkpoints(run)[-1]
    weights = load_file(folder / "weights" / "model.safetensors")
    weights["lm_head.weight"] = change(weights["lm_head.weight"])
    save_file(weights, folder / "weights" / "model.safetensors", metadata={"format": "pt"})
    (folder / MANIFEST).unlink()
    with atomic_folder(folder) as draft:
        shutil.copytree(folder, draft, dirs_exist_ok=True)


BAD = {
    1: (lambda tensor: tensor * 1e4, r"the loss is \d+\.\d{4}, far above its recent level of [56]\.\d{4}"),
    2: (lambda tensor: tensor.index_fill(0, torch.tensor([5]), float("inf")), r"the loss is (nan|inf)"),
}
"""What happens to the weights of a run on that many ranks, and what is said."""


def test_a_spoilt_run_stops_names_its_functions_and_goes_on_from_before(
    finished: tuple[Path, int], tiny_corpus: Path, tmp_path: Path
) -> None:
    config, num_ranks = finished
    change, problem = BAD[num_ranks]
    run = tmp_path / "run"
    shutil.copytree(config.parent / "run", run)
    (run / "finished.json").unlink()
    shutil.rmtree(run / "stages")
    spoil(run, change)
    arguments = ["train", str(config), "--set", f"run={run}"]

    codes, said = finish_ranks(start_ranks(num_ranks, arguments))
    assert codes == [2] * num_ranks, said
    assert re.search(rf"error: stage 'pretrain', step 13: {problem}; the step's functions are ", said[0])
    assert "remedy: " in said[0]
    assert not any("Traceback" in text or "error" in text for text in said[1:])
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["step"] == 13
    assert f"{stopped['functions'][0]}, {stopped['functions'][1]}, " in said[0]
    assert set(stopped["functions"]) <= {record.key for record in read_split(tiny_corpus, "train")}
    assert [damage(folder) for folder in checkpoints(run)] == [None] * 3, "nothing was saved, nothing lost"

    shutil.rmtree(checkpoints(run)[-1])
    codes, said = finish_ranks(start_ranks(num_ranks, arguments))
    assert codes == [0] * num_ranks, said
    assert figures(run) == figures(config.parent / "run")
