"""Mixtures of texts and answers with replay, and evaluation on the way: a run of two ranks at ZeRO 3."""

import json
import math
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from asmtrain import samples
from asmtrain.cache import TokenCache, build_cache
from asmtrain.checkpoint import checkpoints, load_stage_result, stage_folders
from asmtrain.config import DataConfig, StageConfig, TrainConfig, load_train_config
from asmtrain.data import RowBatches
from asmtrain.evaluation import Validation
from asmtrain.metrics import evaluations_of, read_lines
from asmtrain.mixture import Part, mixture
from asmtrain.plan import describe
from asmtrain.tokens import load_tokenizer
from ranks import finish_ranks, start_ranks
from test_data import stacked
from test_sft import alone, packed_examples
from test_train import _kill_when, _steps_taken, figures, run_config, wait_until

REPOSITORY = Path(__file__).parents[2]


def mixed_config(folder: Path, corpus: Path, **changes: Any) -> Path:
    """Two stages: texts in two forms, then answers, texts and what the first stage read, with dropout."""
    path = run_config(folder, corpus)
    config = yaml.safe_load(path.read_text())
    first, second, _ = config["stages"]
    texts = {"corpus": str(corpus), "variants": ["*.o0", "*.o2"]}
    first |= {
        "data": [{**texts, "task": "completion", "weight": 3.0}, {**texts, "task": "retrieval"}],
        **changes,
    }
    second |= {
        "name": "answers",
        "objective": "sft",
        "context": 192,
        "too_long": "cut",
        "data": [{**texts, "task": "c_to_asm", "weight": 2.0}, {**texts, "task": "completion"}],
        "replay": {"pretrain": 0.25},
        "eval_rows": 40,
        **changes,
    }
    config |= {"stages": [first, second], "engine": {"zero_stage": 3}}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of two ranks with evaluations on the way, and what rank 0 said."""
    folder = tmp_path_factory.mktemp("mixed")
    config = mixed_config(folder, tiny_corpus, eval_every_steps=2)
    codes, said = finish_ranks(start_ranks(2, ["train", str(config)]))
    assert codes == [0, 0], said
    return folder / "run", said[0]


@pytest.fixture(scope="module")
def config(trained: tuple[Path, str]) -> TrainConfig:
    return load_train_config(trained[0].parent / "config.yaml")


def rows_of(config: TrainConfig, stage: StageConfig, split: str) -> tuple[list[Part], RowBatches]:
    """What one process reads of a stage's mixture."""
    tokenizer, parts = load_tokenizer(config.run / "tokenizer"), mixture(config, stage)
    caches = [build_cache(part.data, split, tokenizer, config.run / "cache") for part in parts]
    rows = RowBatches(
        caches,
        [part.weight for part in parts],
        context=stage.context,
        rows_per_step=stage.rows_per_step,
        micro_rows=1,
        seed=config.seed,
        too_long=[part.too_long(stage) for part in parts],
    )
    return parts, rows


def test_replayed_parts_take_their_share_of_the_rows(config: TrainConfig) -> None:
    stage = config.stages[1]
    corpus = stage.data[0].corpus.name
    parts, rows = rows_of(config, stage, "train")
    assert [part.name for part in parts] == [
        f"{corpus}.c_to_asm",
        f"{corpus}.completion",
        f"pretrain.{corpus}.completion",
        f"pretrain.{corpus}.retrieval",
    ]
    assert [part.objective for part in parts] == ["sft", *["causal_lm"] * 3]
    given = torch.cat([torch.cat(rows.parts(step)) for step in range(40)])
    shares = torch.bincount(given) / len(given)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.1875, 0.0625]), rtol=0, atol=0.01)
    assert f" 25.00%  {parts[1].name} (causal_lm)" in describe(config)


def test_losses_by_part_and_objective_are_those_by_hand(
    trained: tuple[Path, str], config: TrainConfig
) -> None:
    run, _ = trained
    parts, rows = rows_of(config, config.stages[1], "train")
    # A new adapter changes nothing yet, and it has dropout in front of its zeros alone.
    model = AutoModelForCausalLM.from_pretrained(run / "stages" / "01-pretrain")
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for batch, (part,) in zip(rows.step(0), map(torch.Tensor.tolist, rows.parts(0)), strict=True):
        for ids, labels in packed_examples([batch]):
            loss, count = alone(model, ids, labels)
            for name in ("all", parts[part].name, parts[part].objective):
                sums[name][0] += float(loss)
                sums[name][1] += count
    expected = {name: total / count for name, (total, count) in sums.items()}
    taken = read_lines(run / "metrics.jsonl")[5]
    assert taken["loss"] == pytest.approx(expected.pop("all"), rel=1e-5)
    assert taken["losses"] == pytest.approx(expected, rel=1e-5)
    assert {"sft", "causal_lm"} < set(expected)
    places = stacked(rows.step(0))
    assert taken["padding_share"] == pytest.approx(float((places[:, 3] == -1).float().mean()))
    assert 0.1 < taken["memory_gib"] < 20


def test_perplexities_are_those_of_single_documents(trained: tuple[Path, str], config: TrainConfig) -> None:
    run, _ = trained
    stage = config.stages[0]
    _, rows = rows_of(config, stage, "valid")
    model = AutoModelForCausalLM.from_pretrained(run / "stages" / "01-pretrain")
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    batches, documents = rows.evaluation(stage.eval_rows), rows.evaluation_documents(stage.eval_rows)
    for batch, (lying,) in zip(batches, documents, strict=True):
        for (ids, labels), (part, document, _) in zip(packed_examples([batch]), lying, strict=True):
            loss, count = alone(model, ids, labels)
            isa, _, level = str(rows.caches[part].variants[document]).split(".")
            for name in ("all", f"{isa}.{level}"):
                sums[name][0] += float(loss)
                sums[name][1] += count
    last = [line for line in read_lines(evaluations_of(run)) if line["stage"] == "pretrain"][-1]
    total, count = sums.pop("all")
    assert last["step"] == 5
    assert last["loss"] == pytest.approx(total / count, rel=1e-5)
    assert last["num_tokens"] == {name: own[1] for name, own in sums.items()}
    expected = {name: math.exp(own[0] / own[1]) for name, own in sums.items()}
    assert last["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert len(expected) >= 4


@pytest.mark.parametrize("index", [0, 1])
def test_samples_are_what_greedy_generation_gives(
    trained: tuple[Path, str], config: TrainConfig, index: int
) -> None:
    """Those of the second stage have prompts of different lengths, and an adapter."""
    run, _ = trained
    stage, tokenizer = config.stages[index], load_tokenizer(run / "tokenizer")
    parts, rows = rows_of(config, stage, "valid")
    asked = samples.choose(rows.caches, [part.name for part in parts], context=stage.context, count=2)
    assert [item.part for item in asked] == [part.name for part in parts[:2]]
    assert index == 0 or len(asked[0].prompt) != len(asked[1].prompt)
    last = [line for line in read_lines(evaluations_of(run)) if line["stage"] == stage.name][-1]
    model, _ = load_stage_result(stage_folders(run)[index])
    for item, shown in zip(asked, last["samples"], strict=True):
        prompt = torch.tensor([item.prompt])
        ids = model.eval().generate(input_ids=prompt, max_new_tokens=64, do_sample=False)[0].tolist()
        assert shown["completion"] == tokenizer.decode(ids[len(item.prompt) :], skip_special_tokens=True)
        assert shown["prompt"] == tokenizer.decode(item.prompt, skip_special_tokens=True)
        assert shown["key"] == item.key


def test_an_example_is_asked_by_its_whole_prompt(config: TrainConfig) -> None:
    stage = config.stages[1]
    parts, rows = rows_of(config, stage, "valid")
    cache = rows.caches[0]
    asked = samples.choose([cache], [parts[0].name], context=400, count=3)
    assert len({item.key for item in asked}) == 3
    for item in asked:
        (number,) = [
            int(place)
            for place in np.flatnonzero((cache.keys == item.key) & (cache.variants == item.variant))
        ]
        ids, prompt = cache.tokens(number).tolist(), int(cache.prompt_lengths[number])
        assert (item.prompt, item.truth) == (ids[:prompt], ids[prompt : prompt + 64])
    assert not samples.choose([cache], ["one"], context=4, count=1), "no prompt leaves room for an answer"


def test_evaluation_leaves_no_trace_in_training(
    trained: tuple[Path, str], tiny_corpus: Path, tmp_path: Path
) -> None:
    path = mixed_config(tmp_path, tiny_corpus, samples=0, eval_rows=0)
    codes, said = finish_ranks(start_ranks(2, ["train", str(path)]))
    assert codes == [0, 0], said
    assert figures(tmp_path / "run") == figures(trained[0])
    assert not evaluations_of(tmp_path / "run").exists()


def test_warned_and_killed_in_evaluation_it_goes_on_as_if_nothing_had_been(
    trained: tuple[Path, str], tiny_corpus: Path, tmp_path: Path
) -> None:
    path, run = mixed_config(tmp_path, tiny_corpus, eval_every_steps=2), tmp_path / "run"
    arguments = ["train", str(path), "--set", "checkpoint.every_steps=3"]
    ranks = start_ranks(2, arguments)
    wait_until(lambda: _steps_taken(run) >= 2)
    time.sleep(0.05)  # the step's own look is over, and evaluation takes far longer
    ranks[1].send_signal(signal.SIGUSR2)
    codes, said = finish_ranks(ranks)
    assert codes == [75, 75], said
    assert [folder.name for folder in checkpoints(run)] == ["01-pretrain-step000002"]
    assert not read_lines(evaluations_of(run)), "it left in the midst of the first evaluation"

    _kill_when(arguments, lambda: len(read_lines(evaluations_of(run))) >= 3 and _steps_taken(run) >= 7)
    codes, said = finish_ranks(start_ranks(2, arguments))
    assert codes == [0, 0], said
    assert figures(run) == figures(trained[0])
    assert read_lines(evaluations_of(run)) == read_lines(evaluations_of(trained[0]))


def test_evaluations_are_told_and_in_tensorboard(trained: tuple[Path, str], config: TrainConfig) -> None:
    run, said = trained
    lines = read_lines(evaluations_of(run))
    assert [(line["stage"], line["step"]) for line in lines] == [
        (name, step) for name in ("pretrain", "answers") for step in (2, 4, 5)
    ]
    scalars, texts = _events(run)
    for line in lines:
        name, step = line["stage"], line["global_step"]
        assert f"{name}: validation loss {line['loss']:.4f} after {line['step']} steps" in said
        assert scalars[f"{name}/valid/loss", step] == pytest.approx(line["loss"], rel=1e-6)
        for cell, value in line["perplexity"].items():
            assert scalars[f"{name}/valid/perplexity/{cell}", step] == pytest.approx(value, rel=1e-6)
        text = texts[f"{name}/samples/1/text_summary", step]
        assert line["samples"][0]["completion"].split()[0] in text
        assert line["samples"][0]["key"] in text
    for step in read_lines(run / "metrics.jsonl"):
        for part, loss in step["losses"].items():
            assert scalars[f"{step['stage']}/loss/{part}", step["global_step"]] == pytest.approx(
                loss, rel=1e-6
            )
    results = json.loads((run / "finished.json").read_text())["valid_loss"]
    assert results == {line["stage"]: line["loss"] for line in lines if line["step"] == 5}


def _events(run: Path) -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars, texts = {}, {}
    for file in sorted((run / "tb").iterdir()):
        accumulator = EventAccumulator(str(file))
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            scalars |= {(tag, event.step): event.value for event in accumulator.Scalars(tag)}
        for tag in accumulator.Tags()["tensors"]:
            for event in accumulator.Tensors(tag):
                texts[tag, event.step] = event.tensor_proto.string_val[0].decode()
    return scalars, texts


def test_each_place_with_a_token_has_its_group_and_padding_has_none(
    tiny_corpus: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    data = [DataConfig(corpus=tiny_corpus, task=task) for task in ("completion", "retrieval")]
    caches: list[TokenCache] = [build_cache(part, "valid", tiny_tokenizer, tmp_path) for part in data]
    rows = RowBatches(caches, [1.0, 1.0], context=96, rows_per_step=2, micro_rows=2, seed=0)
    validation = Validation(rows, ["a", "b"], 8)
    for batch, groups_BT in zip(rows.evaluation(8), _groups(validation, rows), strict=True):
        assert torch.equal(groups_BT == 99, batch.document_ids_BT == -1)


def _groups(validation: Validation, rows: RowBatches) -> Iterator[torch.Tensor]:
    return (validation._groups(lying, none=99) for lying in rows.evaluation_documents(8))
