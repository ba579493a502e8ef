"""`sft`: what is learnt of packed examples, what becomes of long ones, and a run killed on its way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from asmtrain.cache import TokenCache, build_cache
from asmtrain.config import DataConfig, load_train_config
from asmtrain.data import RowBatch, RowBatches
from asmtrain.examples import examples
from asmtrain.fitting import describe, fit, report
from asmtrain.losses import IGNORE, num_predicted, token_loss_sum
from asmtrain.model import llama_config, new_model
from asmtrain.plan import describe as describe_run
from asmtrain.tokens import load_tokenizer
from corpus_builder.errors import EmptyCorpus
from corpus_builder.shards import read_split
from ranks import finish_ranks, start_ranks
from runs import SHAPE
from test_data import stacked
from test_train import _kill_when, _steps_taken, figures, run_config

CONTEXT = 192


@pytest.fixture(scope="module")
def cache(tiny_corpus: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    data = DataConfig(corpus=tiny_corpus, task="c_to_asm")
    return build_cache(data, "train", tiny_tokenizer, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model() -> Any:
    return new_model(llama_config(SHAPE), dtype="fp32", seed=1)


def rows(cache: TokenCache, too_long: Any = "drop", **changes: Any) -> RowBatches:
    options = {"context": CONTEXT, "rows_per_step": 8, "micro_rows": 2, "seed": 3, **changes}
    return RowBatches([cache], [1.0], too_long=[too_long], **options)


def packed_examples(batches: list[RowBatch]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each document in the rows."""
    found = []
    for ids, _, labels, numbers in torch.cat([stacked([batch]) for batch in batches]):
        for number in range(int(numbers.max()) + 1):
            found.append((ids[numbers == number].tolist(), labels[numbers == number].tolist()))
    return found


def expected_examples(cache: TokenCache, too_long: str) -> list[tuple[list[int], list[int]]]:
    """The same, one by one from the cache."""
    found = []
    for number in range(len(cache)):
        ids, prompt = cache.tokens(number).tolist(), int(cache.prompt_lengths[number])
        if len(ids) <= CONTEXT or (too_long == "cut" and prompt < CONTEXT):
            found.append((ids[:CONTEXT], ([IGNORE] * prompt + ids[prompt:])[:CONTEXT]))
    return found


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_labels_are_the_answers_tokens_and_no_others(
    cache: TokenCache, tiny_tokenizer: Any, too_long: str
) -> None:
    batches = rows(cache, too_long).evaluation(10**6)
    shown = packed_examples(batches)
    assert sorted(shown) == sorted(expected_examples(cache, too_long))
    end = tiny_tokenizer.eos_token_id
    assert {labels[-1] == end for _, labels in shown} == ({True} if too_long == "drop" else {True, False})
    assert all(any(label != IGNORE for label in labels) for _, labels in shown), "no answer is gone"
    padding = torch.cat([batch.labels_BT[batch.document_ids_BT == -1] for batch in batches])
    assert (padding == IGNORE).all()


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_long_examples_are_counted_and_named(cache: TokenCache, too_long: Any) -> None:
    long = [number for number in range(len(cache)) if len(cache.tokens(number)) > CONTEXT]
    without_room = [number for number in long if cache.prompt_lengths[number] >= CONTEXT]
    assert 0 < len(long) < len(cache)
    said = report(cache, CONTEXT, too_long)
    num_cut = len(long) - len(without_room) if too_long == "cut" else 0
    assert (said["num_too_long"], said["num_cut"], said["num_dropped"]) == (
        len(long),
        num_cut,
        len(long) - num_cut,
    )
    assert said["share_too_long"] == len(long) / len(cache)
    assert said["first_too_long"] == [
        {
            "key": cache.keys[number],
            "variant": cache.variants[number],
            "num_tokens": len(cache.tokens(number)),
        }
        for number in long[:100]
    ]
    first = cache.keys[long[0]]
    assert f"{len(long)} ({len(long) / len(cache):.2%}) are longer than 192 tokens" in describe(said)
    assert f"first {first} " in describe(said)
    assert len(fit(cache, CONTEXT, too_long).documents) == len(cache) - said["num_dropped"]


def test_a_prompt_that_fills_the_row_is_left_out_when_others_are_cut(cache: TokenCache) -> None:
    context = int(np.median(cache.prompt_lengths))
    used = fit(cache, context, "cut")
    assert 0 < len(used.documents) < len(cache)
    assert (used.lengths > cache.prompt_lengths[used.documents]).all()
    assert report(cache, context, "cut")["num_dropped"] == len(cache) - len(used.documents)


def test_a_context_that_no_example_fits_is_refused(cache: TokenCache) -> None:
    with pytest.raises(EmptyCorpus, match=f"none of the {len(cache):,} examples.* context of 8 tokens"):
        rows(cache, context=8)


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_global_order_does_not_depend_on_the_ranks(cache: TokenCache, too_long: str) -> None:
    one = rows(cache, too_long)
    ranks = [rows(cache, too_long, rank=rank, world=2) for rank in range(2)]
    for index in (0, 30):
        parts = torch.cat([stacked(batches.step(index)) for batches in ranks])
        assert torch.equal(parts, stacked(one.step(index)))


# The loss


def alone(model: Any, ids: list[int], labels: list[int]) -> tuple[torch.Tensor, int]:
    """What transformers itself says of one example: the sum, and over how many tokens."""
    with torch.no_grad():
        mean = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]), use_cache=False).loss
    num = sum(label != IGNORE for label in labels)
    return mean * num, num


def test_loss_of_one_example_is_the_answers_by_hand(cache: TokenCache, model: Any) -> None:
    ids, prompt = cache.tokens(0).tolist(), int(cache.prompt_lengths[0])
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    by_hand = -sum(log_probabilities[place - 1, ids[place]] for place in range(prompt, len(ids)))
    batch = torch.tensor([ids]), torch.tensor([[IGNORE] * prompt + ids[prompt:]])
    with torch.no_grad():
        ours = token_loss_sum(model(batch[0]).logits, batch[1])
    torch.testing.assert_close(ours, by_hand)
    torch.testing.assert_close(alone(model, batch[0][0].tolist(), batch[1][0].tolist())[0], by_hand)


def test_packed_loss_equals_that_of_single_examples(cache: TokenCache, model: Any) -> None:
    batches = rows(cache, "cut", context=512).step(0)
    packed = 0
    for batch in batches:
        with torch.no_grad():
            output = model(input_ids=batch.ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
            packed += token_loss_sum(output.logits, batch.labels_BT)
    single = [alone(model, ids, labels) for ids, labels in packed_examples(batches)]
    assert len(single) > sum(len(batch.ids_BT) for batch in batches), "rows hold several examples"
    torch.testing.assert_close(packed, sum(loss for loss, _ in single), rtol=1e-5, atol=0)
    assert sum(num_predicted(batch.labels_BT) for batch in batches) == sum(num for _, num in single)


def test_only_places_before_an_answers_token_get_a_gradient(cache: TokenCache, model: Any) -> None:
    batch = rows(cache, context=512).step(0)[0]
    logits = model(input_ids=batch.ids_BT, position_ids=batch.position_ids_BT, use_cache=False).logits
    (gradient,) = torch.autograd.grad(token_loss_sum(logits, batch.labels_BT), logits)
    predicts = torch.nn.functional.pad(batch.labels_BT[:, 1:] != IGNORE, (0, 1))
    assert torch.equal(gradient.abs().sum(-1) > 0, predicts)


# A whole run


def sft_config(folder: Path, corpus: Path) -> Path:
    """Pretraining, then answers through a chat template with dropout in an adapter."""
    path = run_config(folder, corpus)
    config = yaml.safe_load(path.read_text())
    first, second, _ = config["stages"]
    part = {"corpus": str(corpus), "prompt": "chat", "variants": ["*.o0", "*.o2"]}
    second |= {
        "name": "answers",
        "objective": "sft",
        "context": CONTEXT,
        "too_long": "cut",
        "data": [
            {**part, "task": "c_to_asm", "weight": 2.0},
            {**part, "task": "recompile", "answers": ["*.o2"]},
        ],
    }
    config["stages"] = [first, second]
    template = folder / "chat.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    config["model"]["chat_template"] = str(template)
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of two ranks, and what rank 0 said."""
    folder = tmp_path_factory.mktemp("sft")
    codes, said = finish_ranks(start_ranks(2, ["train", str(sft_config(folder, tiny_corpus))]))
    assert codes == [0, 0], said
    return folder / "run", said[0]


def test_a_run_learns_answers_and_says_what_was_too_long(trained: tuple[Path, str]) -> None:
    run, said = trained
    for split in ("train", "valid"):
        parts = json.loads((run / "cache" / f"answers-{split}-examples.json").read_text())
        assert [part["task"] for part in parts] == ["c_to_asm", "recompile"]
        assert sum(part["num_cut"] for part in parts) > 0
        for part in parts:
            assert said.count(f"answers: {part['task']} of {part['corpus']}, {split}: ") == 1
            assert f"  {part['num_too_long']:,} ({part['share_too_long']:.2%}) are longer than 192" in said
    assert [step[1] for step in figures(run)] == ["pretrain"] * 5 + ["answers"] * 5
    assert json.loads((run / "finished.json").read_text())["valid_loss"]["answers"] > 0


def test_the_first_loss_is_the_mean_over_all_answers_of_all_ranks(
    trained: tuple[Path, str], tiny_corpus: Path
) -> None:
    run, _ = trained
    config = load_train_config(run.parent / "config.yaml")
    stage, tokenizer = config.stages[1], load_tokenizer(run / "tokenizer")
    caches = [build_cache(part, "train", tokenizer, run / "cache") for part in stage.data]
    batches = RowBatches(
        caches,
        [part.weight for part in stage.data],
        context=stage.context,
        rows_per_step=stage.rows_per_step,
        micro_rows=1,
        seed=config.seed,
        too_long=[stage.too_long] * len(stage.data),
    )
    # A new adapter changes nothing yet, and it has dropout in front of its zeros alone.
    model = AutoModelForCausalLM.from_pretrained(run / "stages" / "01-pretrain")
    single = [alone(model, ids, labels) for ids, labels in packed_examples(batches.step(0))]
    expected = sum(float(loss) for loss, _ in single) / sum(num for _, num in single)
    assert figures(run)[5][3] == pytest.approx(expected, rel=1e-5)


def test_killed_and_resumed_it_takes_the_same_steps(
    trained: tuple[Path, str], tiny_corpus: Path, tmp_path: Path
) -> None:
    arguments = ["train", str(sft_config(tmp_path, tiny_corpus))]
    _kill_when(arguments, lambda: _steps_taken(tmp_path / "run") >= 8)
    codes, said = finish_ranks(start_ranks(2, arguments))
    assert codes == [0, 0], said
    assert figures(tmp_path / "run") == figures(trained[0])


def test_an_export_is_of_the_answering_model_with_its_template(trained: tuple[Path, str]) -> None:
    from asmtrain.export import find_sources, prompt_tokenizer

    run, _ = trained
    assert find_sources(run).lm == run / "stages" / "02-answers"
    assert "[assistant]" in prompt_tokenizer(run).chat_template


def test_an_exported_model_is_asked_with_the_tokens_it_was_trained_on(
    trained: tuple[Path, str], tiny_corpus: Path, tmp_path: Path
) -> None:
    """As a user does: the merged model's tokenizer on the prompt, through the template or plainly."""
    from asmtrain.export import prompt_tokenizer

    run, _ = trained
    asking, training = prompt_tokenizer(run), load_tokenizer(run / "tokenizer")
    record = next(read_split(tiny_corpus, "train"))
    for prompt in ("chat", "plain"):
        data = DataConfig(corpus=tiny_corpus, task="c_to_asm", prompt=prompt)
        item = next(examples(record, data))
        trained_on = build_cache(data, "train", training, tmp_path)
        number = int(np.flatnonzero((trained_on.keys == item.key) & (trained_on.variants == item.variant))[0])
        asked = asking(item.prompt)["input_ids"]
        if prompt == "chat":
            messages = [{"role": "user", "content": item.prompt}]
            asked = asking.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert asked == trained_on.tokens(number)[: trained_on.prompt_lengths[number]].tolist()


def test_the_example_config_is_described_without_a_corpus() -> None:
    said = describe_run(load_train_config(Path(__file__).parents[2] / "configs" / "train" / "sft-demo.yaml"))
    assert "stage answers: sft, full" in said
    assert "too_long: drop" in said
