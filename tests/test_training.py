"""Recipes and the command: what is trained depends on the recipe alone; the command goes on."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformer_lib import training
from transformer_lib.checkpoints import checkpoints, load_checkpoint, read_records
from transformer_lib.cost import cost
from transformer_lib.models import Transformer, TransformerConfig
from transformer_lib.text import END, Tokenizer
from transformer_lib.trainer import Trainer, TrainingConfig
from transformer_lib.training import RECIPES, Recipe, export_model

ROOT = Path(__file__).resolve().parent.parent
DATA = os.environ.get("TRANSFORMER_LIB_DATA")
PAIRS = [(f"{a} plus {b}", f"{b} und {a}") for a in range(7) for b in range(7)]


def tiny(**training):
    """A recipe of seconds."""
    given = {"n_steps": 4, "warmup": 2, "save_every": 2, "validate_every": 2, "average": 0.5}
    return Recipe(
        about="sums",
        pairs=lambda split: PAIRS[:40] if split == "train" else PAIRS[40:],
        vocab_size=280,
        max_tokens=128,
        model={
            "d_model": 16, "n_heads": 2, "d_ff": 16, "n_encoder_layers": 1,
            "n_decoder_layers": 1, "dropout": 0.1,
        },
        training=TrainingConfig(**given | training),
    )  # fmt: skip


def run(folder, *arguments, recipe=None, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", recipe or tiny())
    training._main(["tiny", "--folder", str(folder), "--device", "cpu", *arguments])


def losses(folder):
    return [r["loss"] for r in read_records(folder / "log.jsonl") if "loss" in r]


# Recipes


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_makes_and_fits_together(name):
    recipe = RECIPES[name]
    config = TransformerConfig(vocab_size=recipe.vocab_size, **recipe.model)
    assert cost(config).parameters < 6_000_000  # 12 MB in fp16, what ships with the library
    assert 10 < len(recipe.about) < 70
    assert recipe.training.validate_every % recipe.training.save_every == 0  # the best is kept


def test_number_names_validates_on_what_it_does_not_learn():
    learned, held = (set(RECIPES["number-names"].pairs(split)) for split in ("train", "val"))
    assert len(learned) == 1000 and not learned & held
    assert ("one hundred and twenty", "einhundertzwanzig") in learned


@pytest.mark.parametrize("source, target", [("en", "de"), ("de", "en")])
def test_multi30k_recipes_translate_from_the_first_language_to_the_second(
    source, target, monkeypatch
):
    asked = []
    monkeypatch.setattr(training._datasets, "multi30k", lambda *of: asked.append(of))
    sizes = {"vocab_size": 400, "max_tokens": 500, "width": 8, "dropout": 0.1}
    recipe = training._multi30k(source, target, **sizes, n_steps=500, warmup=7)
    recipe.pairs("val")
    assert asked == [(source, target, "val")]
    assert (recipe.vocab_size, recipe.max_tokens) == (400, 500)
    assert (recipe.model["d_model"], recipe.model["dropout"]) == (8, 0.1)
    assert (recipe.training.n_steps, recipe.training.warmup) == (500, 7)
    assert RECIPES[f"multi30k-{source}-{target}"].pairs.args == (source, target)


@pytest.mark.skipif(not DATA, reason="Multi30k is not on this machine")
@pytest.mark.slow
def test_multi30k_is_cut_whole_into_batches_of_the_size_asked_for():
    recipe = RECIPES["multi30k-de-en"]
    tokenizer, data, validation = recipe.batches()
    assert tokenizer.vocab_size == recipe.vocab_size
    assert sum(len(batch.source) for batch in data) == 29_000
    assert sum(len(batch.source) for batch in validation) == 1_014
    widths = [b.source.shape[0] * max(b.source.shape[1], b.target.shape[1]) for b in validation]
    assert max(widths) <= recipe.max_tokens
    assert max(b.source.shape[1] for b in data) < recipe.model["max_len"]


def test_the_tokens_are_learned_from_the_training_part_alone():
    odd = "Donaudampfschifffahrt"
    recipe = dataclasses.replace(
        tiny(), pairs=lambda split: PAIRS[:40] if split == "train" else [(odd, odd)] * 50
    )
    tokenizer, data, validation = recipe.batches()
    assert tokenizer.vocab_size == tiny().batches()[0].vocab_size
    assert len(tokenizer.encode(odd)) > 15  # in pieces: it was never seen
    assert {int(b.source_lengths.max()) for b in validation} == {len(tokenizer.encode(odd)) + 1}
    assert next(iter(validation)).source[0, -1] == END
    config = recipe.config(tokenizer)
    assert config.vocab_size == tokenizer.vocab_size and config.d_model == 16


def test_the_seed_decides_the_order_of_training_and_validation_has_none():
    def first(seed):
        _, data, validation = tiny(seed=seed).batches()
        return next(iter(data)).source, validation[0].source

    (a, v), (b, w), (c, x) = first(0), first(0), first(1)
    assert torch.equal(a, b) and torch.equal(v, w) and torch.equal(v, x)
    assert a.shape != c.shape or not torch.equal(a, c)


# The command


def test_the_command_trains_exports_and_then_has_nothing_to_do(tmp_path, monkeypatch, capsys):
    run(tmp_path / "a", monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert "4 steps on cpu in fp32: about" in told and "exported to" in told
    assert len(losses(tmp_path / "a")) == 4
    run(tmp_path / "a", monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert "going on after step 4" in told and "steps on cpu" not in told
    assert len(losses(tmp_path / "a")) == 4


def test_the_command_equals_the_trainer_by_hand(tmp_path, monkeypatch):
    recipe = tiny(seed=1)
    run(tmp_path / "a", recipe=recipe, monkeypatch=monkeypatch)
    tokenizer, data, validation = recipe.batches()
    torch.manual_seed(recipe.training.seed)
    model = Transformer(recipe.config(tokenizer))
    Trainer(model, data, recipe.training, validation=validation, folder=tmp_path / "b").fit()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_options_override_the_recipe(tmp_path, monkeypatch):
    changed = ["--n-steps", "3", "--seed", "7", "--learning-rate", "0.02", "--warmup", "1"]
    more = ["--accumulate", "2", "--precision", "bf16", "--save-every", "1", "--recompute"]
    run(tmp_path, *changed, *more, "--validate-every", "3", monkeypatch=monkeypatch)
    state = load_checkpoint(checkpoints(tmp_path)[0])[1]["training"]
    wanted = {
        "n_steps": 3, "seed": 7, "learning_rate": 0.02, "warmup": 1, "accumulate": 2,
        "precision": "bf16", "save_every": 1, "validate_every": 3, "recompute": True,
        "compile": False,
    }  # fmt: skip
    assert {name: state[name] for name in wanted} == wanted
    assert state["average"] == 0.5  # the recipe's own


def test_another_seed_starts_from_other_weights(tmp_path, monkeypatch):
    run(tmp_path / "a", monkeypatch=monkeypatch)
    run(tmp_path / "b", "--seed", "1", monkeypatch=monkeypatch)
    assert losses(tmp_path / "a")[0] != losses(tmp_path / "b")[0]


def test_the_folder_is_named_after_the_recipe_unless_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", tiny())
    training._main(["tiny", "--device", "cpu"])
    assert (tmp_path / "runs" / "tiny" / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["number-names", "--n-steps", "0"], "n_steps must be an integer of at least 1, got 0"),
        (["number-names", "--precision", "fp8"], "precision must be"),
        (["number-names", "--sharding", "zero"], "invalid choice: 'zero'"),
    ],
)
def test_a_wrong_option_is_explained_without_a_traceback(arguments, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        training._main(arguments)
    assert stopped.value.code == 2
    assert told in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_help_tells_of_every_recipe_and_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        training._main(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert all(name in told and recipe.about in told for name, recipe in RECIPES.items())
    options = {**training._OPTIONS, **training._SWITCHES}
    assert all(f"--{name.replace('_', '-')}" in told for name in options)
    assert "torchrun" in told
    assert set(options) <= {field.name for field in dataclasses.fields(TrainingConfig)}


def test_tensorboard_is_told_of_each_record(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(training, "tensorboard_log", lambda folder: heard.append)
    run(tmp_path, "--tensorboard", monkeypatch=monkeypatch)
    assert [r["step"] for r in heard if "loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in heard if "validation_loss" in r] == [2, 4]


@pytest.mark.slow
@pytest.mark.plain
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "transformer_lib.training", "number-names", "--folder", str(folder),
        "--device", "cpu", "--n-steps", "30", "--warmup", "5", "--threads", "1",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    log, patience = folder / "log.jsonl", time.monotonic() + 100
    while not (log.exists() and len(log.read_text().splitlines()) >= 3):
        assert child.poll() is None and time.monotonic() < patience
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    told = child.communicate(timeout=60)[0]
    assert child.returncode == 130
    done = int(re.search(r"stopped after step (\d+) of 30: saved in .* the same command", told)[1])
    assert 3 <= done < 30 and checkpoints(folder)[0].name == f"step-{done:08d}"
    again = subprocess.run(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert again.returncode == 0 and f"going on after step {done}" in again.stdout
    assert [r["step"] for r in read_records(log) if "loss" in r] == list(range(1, 31))


# What is kept


def test_the_export_is_the_best_validated_average_in_half_precision(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch=monkeypatch)
    best = min(
        (r for r in read_records(tmp_path / "log.jsonl") if "validation_loss" in r),
        key=lambda r: r["validation_loss"],
    )
    average = load_checkpoint(tmp_path / f"step-{best['step']:08d}")[0]["average"]
    weights = load_file(tmp_path / "export" / "model.safetensors")
    assert weights.keys() == average.keys()
    for name, x in average.items():
        assert weights[name].dtype == torch.float16
        torch.testing.assert_close(weights[name], x.half(), rtol=0, atol=0)
    config = TransformerConfig(**json.loads((tmp_path / "export" / "config.json").read_text()))
    tokenizer = Tokenizer.load(tmp_path / "export" / "tokenizer.json")
    assert config == tiny().config(tokenizer)
    assert tokenizer.decode(tokenizer.encode("3 plus 4")) == "3 plus 4"


def test_the_best_is_exported_even_if_it_is_not_the_last(tmp_path, monkeypatch):
    values = iter([1.0, 2.0])

    def validate(self):
        value = next(values)
        if value < self.best:
            self.best, self.best_step = value, self.step
        return value

    monkeypatch.setattr(Trainer, "validate", validate)
    run(tmp_path, monkeypatch=monkeypatch)
    best = load_checkpoint(tmp_path / "step-00000002")[0]["average"]
    weights = load_file(tmp_path / "export" / "model.safetensors")
    assert all(torch.equal(weights[name], x.half()) for name, x in best.items())


def test_without_validation_or_average_the_last_weights_are_exported(tmp_path):
    recipe = tiny(validate_every=None, average=None)
    tokenizer, data, _ = recipe.batches()
    config = recipe.config(tokenizer)
    trainer = Trainer(Transformer(config), data, recipe.training, folder=tmp_path).fit()
    folder = export_model(trainer, config, tokenizer, tmp_path / "export")
    weights = load_file(folder / "model.safetensors")
    for name, x in trainer.bare.named_parameters():
        assert torch.equal(weights[name], x.detach().half())


def test_an_export_needs_a_folder_of_checkpoints():
    recipe = tiny(validate_every=None)
    tokenizer, data, _ = recipe.batches()
    config = recipe.config(tokenizer)
    trainer = Trainer(Transformer(config), data, recipe.training)
    with pytest.raises(ValueError, match="export_model: the trainer must have a folder, got None"):
        export_model(trainer, config, tokenizer, "nowhere")
