"""`asmtrain train` as a user meets it: the dry run, Code Llama's route, and one line for each mistake."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from asmtrain import cli
from asmtrain.config import ShapeConfig
from asmtrain.model import llama_config, new_model
from ranks import finish_ranks, start_ranks
from test_train import run_config

REPOSITORY = Path(__file__).parents[2]
LORA = {"kind": "lora", "rank": 4, "alpha": 8, "unfreeze": ["lm_head"]}


@pytest.fixture(scope="session")
def llama_folder(llama_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the format of Code Llama: LlamaForCausalLM in bf16, untied head, its own tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = AutoTokenizer.from_pretrained(llama_tokenizer_folder)
    tokenizer.save_pretrained(folder)
    shape = ShapeConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        rope_theta=1e6,
    )
    config = llama_config(shape, bos_token_id=1, eos_token_id=2)
    new_model(config, dtype="bf16", seed=0).save_pretrained(folder)
    return folder


def llama_config_file(folder: Path, corpus: Path, model: Path) -> Path:
    """Code Llama's config in small: bf16, ZeRO 3, recomputation, LoRA and head, then the same for vectors."""
    path = run_config(
        folder,
        corpus,
        model={"path": str(model), "dtype": "bf16", "gradient_checkpointing": True},
        tokenizer=None,
        engine={"zero_stage": 3},
    )
    config = yaml.safe_load(path.read_text())
    _, lm, embed = config["stages"]
    config["stages"] = [lm | {"trainable": LORA, "steps": 3}, embed | {"trainable": LORA, "steps": 3}]
    path.write_text(yaml.safe_dump(config))
    return path


def test_code_llamas_route(tiny_corpus: Path, llama_folder: Path, tmp_path: Path) -> None:
    """The pretrained weights stay, the adapter and the head learn, the second stage goes on with both."""
    from asmtrain.checkpoint import load_stage_result, read_result
    from asmtrain.tokens import load_tokenizer

    config = llama_config_file(tmp_path, tiny_corpus, llama_folder)
    codes, said = finish_ranks(start_ranks(2, ["train", str(config)]))
    assert codes == [0, 0], said
    first, second = (tmp_path / "run" / "stages" / name for name in ("01-lora", "02-embed"))
    assert read_result(first).base == read_result(second).base == str(llama_folder)

    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    assert adapters[0].keys() == adapters[1].keys()
    assert {tensor.dtype for tensor in adapters[0].values()} == {torch.bfloat16}
    assert all(tensor.numel() for tensor in adapters[0].values())
    (head,) = (name for name in adapters[0] if "lm_head" in name)
    original = load_file(llama_folder / "model.safetensors")
    assert not torch.equal(adapters[0][head], original["lm_head.weight"])
    assert torch.equal(adapters[0][head], adapters[1][head]), "a contrastive stage leaves the head alone"
    moved = [name for name in adapters[0] if not torch.equal(adapters[0][name], adapters[1][name])]
    assert any("lora_A" in name for name in moved)
    assert any("lora_B" in name for name in moved)

    model, embedding = load_stage_result(second)
    assert embedding is not None
    frozen = dict(model.named_parameters())["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(frozen, original["model.embed_tokens.weight"])
    text = "mov w0, 1\nret\n"
    kept = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert kept(text)["input_ids"] == load_tokenizer(llama_folder)(text)["input_ids"]
    assert not (tmp_path / "run" / "base").exists()


def test_dry_run_of_code_llama_needs_no_network_and_no_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asmtrain.cli", "train", "configs/train/codellama-7b.yaml", "--dry-run"],
        cwd=REPOSITORY,
        env=os.environ
        | {"HF_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9", "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    # 6,738,546,688 of the model; LoRA r16 on seven linears of 32 layers; the head that is trained in full.
    adapters = 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    head = 32016 * 4096
    assert f"parameters     {6_738_546_688 + adapters + head:,}" in said
    assert f"of which trainable {adapters + head:,}" in said
    assert "tokens a step  262,144 at most; 4,000 steps, 1,048,576,000 tokens in all" in said
    memory = [line.split() for line in said.splitlines() if line.startswith("    ZeRO")]
    assert [line[1] for line in memory] == ["0", "1", "2", "3"] * 2
    on_eight = [float(line[5]) for line in memory[:4]]
    assert on_eight == sorted(on_eight, reverse=True)
    # 12.87 of weights; copies, moments and gradients of what is trained; one layer at a time recomputed.
    assert 20 < on_eight[2] < 22
    assert "39.7 GFLOP a token of documents of 16,384; at an assumed MFU of 40%, 9,9" in said
    assert yaml.safe_load(said.partition("\n\n")[0])["model"]["shape"]["num_layers"] == 32
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_answers_at_once() -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "asmtrain.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - started < 5, "even on a busy machine"
    assert "asmtrain train configs/train/codellama-7b.yaml --dry-run" in done.stdout
    for heavy in ("torch", "transformers", "deepspeed", "yaml", "rich", "numpy"):
        assert f" {heavy}\n" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        *("train", "export", "embed", "serve", "report", "doctor", "selfcheck resume"),
        *("eval retrieval", "eval probe", "eval cve", "eval leaks", "eval completion"),
        *("index build", "index add", "index info", "index search"),
    ],
)
def test_help_of_a_command_shows_how_it_is_called(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert shown
    assert all(line.startswith(f"  asmtrain {command} ") or line == f"  asmtrain {command}" for line in shown)


# Mistakes: one line with its remedy, exit code 2


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says of a user's mistake."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "\n  remedy: " in said
    assert "Traceback" not in said
    return said


def test_a_model_folder_without_weights(
    tiny_corpus: Path, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in llama_folder.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    config = llama_config_file(tmp_path, tiny_corpus, bare)
    assert f"model folder {bare} has no weights" in mistake(capsys, "train", config)


def test_a_run_folder_of_another_config(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from asmtrain.checkpoint import claim
    from asmtrain.config import load_train_config

    path = run_config(tmp_path, tiny_corpus)
    config = load_train_config(path)
    claim(config.run, config)
    said = mistake(capsys, "train", path, "--set", "stages.lora.optimizer.lr=0.5")
    assert "stages.1.optimizer.lr was 0.001 and is now 0.5" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.pretrain.stepz=3", "stages.0.stepz: unknown key (value 3); did you mean 'steps'?"),
        ("tokenizer.corpus=nowhere", "nowhere holds no corpus"),
        ("stages.embed.data.0.corpus=nowhere", "nowhere holds no corpus"),
        ("model.dtype", "is not of the form a.b=c"),
    ],
)
def test_mistakes_in_the_config(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    config = run_config(tmp_path, tiny_corpus)
    assert said in mistake(capsys, "train", config, "--set", override)


def test_a_corpus_without_a_training_split(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    index = json.loads((tiny_corpus / "index.json").read_text())
    index["shards"] = [shard for shard in index["shards"] if shard["split"] != "train"]
    (corpus / "index.json").write_text(json.dumps(index))
    said = mistake(capsys, "train", run_config(tmp_path, corpus))
    assert "has no function in split 'train'" in said


def test_a_launcher_that_forgot_a_variable(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tmp_path, tiny_corpus)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "incomplete or wrong: 'RANK'" in mistake(capsys, "train", config)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "incomplete or wrong: 'MASTER_ADDR'" in mistake(capsys, "train", config)


def test_ranks_come_from_any_launcher() -> None:
    from asmtrain.dist import placement
    from asmtrain.rendezvous import first_host, from_slurm

    meeting = {"MASTER_ADDR": "node1", "MASTER_PORT": "20000"}
    assert placement({}) == (0, 1, 0)
    assert placement(meeting | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == (5, 8, 1)
    task = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "70001", "SLURM_STEP_ID": "2"}
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "n[07-09,12],m1"}
    assert placement(from_slurm(task | step)) == (5, 8, 1)
    assert from_slurm(task | step)["MASTER_ADDR"] == "n07"
    assert from_slurm(task | step)["MASTER_PORT"] == "30203"
    assert from_slurm(task | step | meeting)["MASTER_ADDR"] == "node1"
    # The launchers that srun may start know better; a batch script and a shell start no other rank.
    assert from_slurm(task | step | {"RANK": "0"}) == {}
    assert from_slurm(task) == {}
    assert from_slurm(task | step | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert [first_host(nodes) for nodes in ("gpu3", "a1,a2", "r[1-2]n[03-04]-ib,x")] == [
        "gpu3",
        "a1",
        "r1n03-ib",
    ]


def test_the_launcher_passes_a_mistake_on(tiny_corpus: Path, tmp_path: Path) -> None:
    """Told once, by rank 0, whatever the number of ranks."""
    done = subprocess.run(
        [
            REPOSITORY / "launch" / "train.sh",
            run_config(tmp_path, tiny_corpus),
            "--set",
            "stages.lora.rows_per_step=3",
        ],
        env=os.environ | {"RANKS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said: Any = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert said.count("error: stage 'lora': rows_per_step is 3, which 2 ranks cannot share evenly") == 1
    assert "Traceback" not in said
