"""Recipes, and what is exported from a run."""

import dataclasses
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.record_language import record_language
from transformer_lib import recipes
from transformer_lib.__main__ import main
from transformer_lib.checkpoints import CheckpointError, load_checkpoint, read_records
from transformer_lib.cost import cost
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig
from transformer_lib.recipes import RECIPES, LanguageRecipe, Recipe, export_model, load_export
from transformer_lib.tokenizer import END, Tokenizer
from transformer_lib.trainer import Trainer, TrainingConfig
from transformer_lib.translation import Translator

DATA = os.environ.get("TRANSFORMER_LIB_DATA")
ROOT = Path(__file__).parent.parent
PAIRS = [(f"{a} plus {b}", f"{b} und {a}") for a in range(7) for b in range(7)]


def tiny(**training):
    """A recipe that takes seconds."""
    given = {"n_steps": 4, "warmup": 2, "save_every": 2, "validate_every": 2, "ema_decay": 0.5}
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
    main(["train", "tiny", "--folder", str(folder), "--device", "cpu", *arguments])


def losses(folder):
    return [r["loss"] for r in read_records(folder / "log.jsonl") if "loss" in r]


# Recipes


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_described_and_consistent(name):
    recipe = RECIPES[name]
    config = TransformerConfig(vocab_size=getattr(recipe, "vocab_size", 69), **recipe.model)
    if isinstance(recipe, Recipe):
        assert cost(config).parameters < 6_000_000  # 12 MB in fp16, what ships with the library
    assert 10 < len(recipe.about) < 70
    assert recipe.time.startswith("about ") or name == "multi30k-en-de-gpu"  # not yet measured
    assert recipe.training.validate_every % recipe.training.save_every == 0  # the best is kept


def test_number_names_recipe_holds_out_random_numbers():
    recipe = RECIPES["number-names"]
    learned, held = (dict(recipe.pairs(split)) for split in ("train", "val"))
    assert len(learned) == 4000 and len(held) == 1000 and not learned.keys() & held.keys()
    with_units = [
        sum("und" in name for name in side.values()) / len(side) for side in (learned, held)
    ]
    assert all(0.5 < part for part in with_units) and abs(with_units[0] - with_units[1]) < 0.05
    words = {word for name in learned for word in name.replace("-", " ").replace(",", "").split()}
    assert {w for name in held for w in name.replace("-", " ").replace(",", "").split()} <= words


@pytest.mark.slow
@pytest.mark.plain
def test_number_names_recipe_learns_its_task(tmp_path):
    """Half of the recipe's steps make nearly all held-out numbers come out exactly right."""
    recipe = RECIPES["number-names"]
    plan = dataclasses.replace(recipe.training, n_steps=300)
    recipe = dataclasses.replace(recipe, training=plan)
    tokenizer, data, validation = recipe.batches()
    torch.manual_seed(recipe.training.seed)
    model = Transformer(recipe.config(tokenizer))
    trainer = Trainer(model, data, plan, validation=validation, folder=tmp_path / "a").fit()
    translator = Translator.load(export_model(trainer, tokenizer, tmp_path / "export"))
    sources, targets = zip(*recipe.pairs("val"), strict=True)
    found = translator(sources, beam=1)
    assert sum(a == b for a, b in zip(found, targets, strict=True)) >= 950


TEXT = "one two three, " * 40


def tiny_language(**changes):
    """A language recipe that takes seconds."""
    given = {
        "about": "counting", "block": 8, "batch_size": 4, "text": lambda split: TEXT,
        "model": {"d_model": 16, "n_heads": 2, "d_ff": 16, "n_decoder_layers": 1},
        "training": TrainingConfig(n_steps=4, learning_rate=1e-2, save_every=2, validate_every=2),
    }  # fmt: skip
    return LanguageRecipe(**given | changes)


def test_language_recipe_validates_on_each_held_out_character_once():
    held = "".join(random.Random(0).choices("abcdef", k=100))
    texts = {"train": TEXT, "val": held}
    tokenizer, data, validation = tiny_language(text=texts.__getitem__).batches()
    assert {*tokenizer.decode(tokenizer.encode(TEXT + held))} == {*TEXT, *held}
    labels = torch.cat([batch.labels.flatten() for batch in validation]).tolist()
    assert tokenizer.decode(labels) == held[1:97]  # 12 blocks of 8
    assert all(torch.equal(b.inputs[:, 1:], b.labels[:, :-1]) for b in validation)
    assert [len(batch.inputs) for batch in validation] == [4, 4, 4]
    assert {len(batch.inputs) for batch in data} == {4} and data.block == 8


def test_language_recipe_refuses_a_text_shorter_than_a_block():
    recipe = tiny_language(text={"train": TEXT, "val": "x" * 8}.__getitem__)
    with pytest.raises(ValueError, match=r"text\('val'\) must have more than block = 8 char"):
        recipe.batches()


def test_shakespeare_recipes_are_those_of_nanogpt():
    small, large = RECIPES["shakespeare-gpt-cpu"], RECIPES["shakespeare-gpt"]
    sizes = [
        (r.model["n_decoder_layers"], r.model["n_heads"], r.model["d_model"], r.block, r.batch_size)
        for r in (small, large)
    ]
    assert sizes == [(4, 4, 128, 64, 12), (6, 6, 384, 256, 64)]
    assert (small.training.n_steps, large.training.n_steps) == (2000, 5000)
    rates = [large.training.learning_rate_at(step) for step in (1, 100, 5000)]
    assert rates == pytest.approx([1e-5, 1e-3, 1e-4])


def test_language_recipe_trains_exports_and_generates(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "tiny-language", tiny_language())
    monkeypatch.chdir(tmp_path)
    main(["train", "tiny-language", "--device", "cpu", "--n-steps", "60"])
    assert "a sample:" in capsys.readouterr().out
    assert losses(tmp_path / "runs/tiny-language")[-1] < 1.5 < 2.2 < np.log(14)
    model, tokenizer = load_export("runs/tiny-language/export")
    assert isinstance(model, DecoderOnly)
    for seed in ("0", "0", "1"):
        options = ["--n-tokens", "30", "--temperature", "0.5", "--seed", seed, "--device", "cpu"]
        main(["generate", "runs/tiny-language", "one t", *options])
    texts = capsys.readouterr().out.splitlines()
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("one t") and len(text) == 35 for text in texts)
    found = record_language("runs/tiny-language", "tiny-language", "record")
    assert json.loads((tmp_path / "record/record.json").read_text()) == found
    validated = [r for r in read_records(tmp_path / "record/log.jsonl") if "loss" not in r]
    assert found["validation_loss"] == min(r["validation_loss"] for r in validated)
    assert found["steps"] == 60 and found["command"].endswith("train tiny-language --n-steps 60")
    assert len(found["sample"]["text"]) == 500 and found["trained_with"][0]["from_step"] == 0
    with pytest.raises(ValueError, match="must be a language recipe, got 'number-names'"):
        record_language("runs/tiny-language", "number-names", "record")
    with pytest.raises(ValueError, match="must hold a Transformer, got a DecoderOnly"):
        Translator.load("runs/tiny-language/export")
    bad = {"runs/nothing a": "holds no exported model", "runs/tiny-language 5": "only characters"}
    for arguments, told in bad.items():
        with pytest.raises(SystemExit):
            main(["generate", *arguments.split()])
        assert told in capsys.readouterr().err


def test_train_learns_from_a_text_of_the_user(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "tiny-language", tiny_language())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("hello world, " * 30)
    main(["train", "tiny-language", "--text", "mine.txt", "--device", "cpu", "--batch-size", "2"])
    tokenizer = load_export("runs/mine.txt/export")[1]
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello" and tokenizer.vocab_size < 16
    for arguments in (
        ["number-names", "--text", "mine.txt"],
        ["tiny-language", "--max-tokens", "9"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["train", *arguments])
        assert f"error: {arguments[1]} is no setting of the recipe" in capsys.readouterr().err


@pytest.mark.skipif(not DATA, reason="Tiny Shakespeare is not on this machine")
def test_shakespeare_recipe_reads_nine_tenths_and_validates_on_the_rest():
    tokenizer, data, validation = RECIPES["shakespeare-gpt-cpu"].batches()
    assert tokenizer.vocab_size == 69  # 65 characters, 4 specials
    assert sum(batch.n_tokens for batch in validation) == 1742 * 64
    assert len(data.fingerprint()) == 16 and next(data.endless()).inputs.shape == (12, 64)


def test_recipe_refuses_an_empty_split():
    for empty in ("train", "val"):
        recipe = dataclasses.replace(
            tiny(), pairs=lambda split, e=empty: PAIRS if split != e else []
        )
        with pytest.raises(ValueError, match=rf"pairs\('{empty}'\) must return at least one pair"):
            recipe.batches()


def test_recipe_learns_tokens_from_both_languages():
    pairs = [("abc " * 3, "xyzxyz " * 3)] * 8
    tokenizer = dataclasses.replace(tiny(), pairs=lambda split: pairs).batches()[0]
    assert len(tokenizer.encode("abc abc")) <= 3 and len(tokenizer.encode("xyzxyz xyzxyz")) <= 3


MULTI30K = [name for name in RECIPES if name.startswith("multi30k")]


@pytest.mark.parametrize("name", MULTI30K)
def test_multi30k_recipes_read_the_languages_of_their_names(name):
    assert list(RECIPES[name].pairs.args) == name.split("-")[1:3]


@pytest.mark.parametrize("name", MULTI30K)
def test_multi30k_recipes_smooth_labels(name):
    assert RECIPES[name].training.label_smoothing == 0.1
    assert RECIPES["number-names"].training.label_smoothing == 0.0  # one right answer to each


@pytest.mark.parametrize("source, target", [("en", "de"), ("de", "en")])
def test_multi30k_recipes_translate_from_the_first_language_to_the_second(
    source, target, monkeypatch
):
    asked = []
    monkeypatch.setattr(recipes._datasets, "multi30k", lambda *of: asked.append(of))
    sizes = {"vocab_size": 400, "max_tokens": 500, "width": 8, "dropout": 0.1}
    recipe = recipes._multi30k(source, target, **sizes, n_steps=500, warmup=7)
    recipe.pairs("val")
    assert asked == [(source, target, "val")]
    assert (recipe.vocab_size, recipe.max_tokens) == (400, 500)
    assert (recipe.model["d_model"], recipe.model["dropout"]) == (8, 0.1)
    assert (recipe.training.n_steps, recipe.training.warmup) == (500, 7)


@pytest.mark.skipif(not DATA, reason="Multi30k is not on this machine")
@pytest.mark.slow
def test_multi30k_recipe_batches_every_pair_within_max_tokens():
    recipe = RECIPES["multi30k-de-en"]
    tokenizer, data, validation = recipe.batches()
    assert tokenizer.vocab_size == recipe.vocab_size
    assert sum(len(batch.source) for batch in data) == 29_000
    assert sum(len(batch.source) for batch in validation) == 1_014
    widths = [b.source.shape[0] * max(b.source.shape[1], b.target.shape[1]) for b in validation]
    assert max(widths) <= recipe.max_tokens
    assert max(b.source.shape[1] for b in data) < recipe.model["max_len"]


def test_recipe_learns_tokens_from_the_training_split_only():
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


def test_recipe_seed_shuffles_training_and_not_validation():
    def first(seed):
        _, data, validation = tiny(seed=seed).batches()
        return next(iter(data)).source, validation[0].source

    (a, v), (b, w), (c, x) = first(0), first(0), first(1)
    assert torch.equal(a, b) and torch.equal(v, w) and torch.equal(v, x)
    assert a.shape != c.shape or not torch.equal(a, c)


# What is kept


def test_export_is_the_best_validated_average_in_half_precision(tmp_path, monkeypatch):
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


def test_export_is_the_best_even_if_it_is_not_the_last(tmp_path, monkeypatch):
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


def test_export_is_the_last_weights_without_validation_or_average(tmp_path):
    recipe = tiny(validate_every=None, ema_decay=None)
    tokenizer, data, _ = recipe.batches()
    config = recipe.config(tokenizer)
    trainer = Trainer(Transformer(config), data, recipe.training, folder=tmp_path).fit()
    folder = export_model(trainer, tokenizer, tmp_path / "export")
    weights = load_file(folder / "model.safetensors")
    for name, x in trainer.bare.named_parameters():
        assert torch.equal(weights[name], x.detach().half())


def trained(folder, **changes):
    recipe = tiny(validate_every=None, **changes)
    tokenizer, data, _ = recipe.batches()
    model = Transformer(recipe.config(tokenizer))
    return Trainer(model, data, recipe.training, folder=folder), tokenizer


def test_export_needs_a_folder_and_a_checkpoint(tmp_path):
    trainer, tokenizer = trained(None)
    with pytest.raises(ValueError, match="export_model: the trainer must have a folder, got None"):
        export_model(trainer, tokenizer, "nowhere")
    for folder in (tmp_path / "new", tmp_path / "used"):
        if folder.name == "used":  # another run's checkpoints are not this trainer's
            trained(folder)[0].fit()
        trainer, tokenizer = trained(folder)
        with pytest.raises(ValueError, match="holds no checkpoint of this trainer; call fit"):
            export_model(trainer, tokenizer, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_export_refuses_another_tokenizer_or_model(tmp_path):
    trainer, tokenizer = trained(tmp_path / "run")
    trainer.fit()
    with pytest.raises(ValueError, match="must have the model's .* tokens, got 260"):
        export_model(trainer, Tokenizer.bpe(["a"], 260), tmp_path / "export")
    model = trainer.bare
    trainer.bare = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="must be one of .*DecoderOnly.*, got Linear"):
        export_model(trainer, tokenizer, tmp_path / "export")
    trainer.bare = type("Own", (Transformer,), {})(model.config)  # load_export builds no Own
    with pytest.raises(ValueError, match="must be one of .*, got Own"):
        export_model(trainer, tokenizer, tmp_path / "export")


def test_export_deletes_no_file_of_others(tmp_path):
    trainer, tokenizer = trained(tmp_path / "run")
    trainer.fit()
    mine = tmp_path / "mine"
    mine.mkdir()
    export_model(trainer, tokenizer, mine)  # empty
    export_model(trainer, tokenizer, mine)  # an earlier export
    (mine / "export.json").unlink()
    export_model(trainer, tokenizer, mine)  # of the version without hashes
    (mine / "thesis.txt").write_text("years of work")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (foreign / name).write_text("{}")  # the names that Hugging Face uses too
    for folder in (mine, foreign, tmp_path / "run"):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match="export_model did not write .*; choose another"):
            export_model(trainer, tokenizer, folder)
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ValueError, match="is a file; choose another folder"):
        export_model(trainer, tokenizer, tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot write"):
        export_model(trainer, tokenizer, tmp_path / "file" / "below")


def test_load_export_refuses_a_changed_file(tmp_path):
    trainer, tokenizer = trained(tmp_path / "run")
    folder = export_model(trainer.fit(), tokenizer, tmp_path / "export")
    model, loaded = load_export(folder)
    assert model.config == trainer.bare.config and loaded.json == tokenizer.json
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        changed = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
        (folder / name).write_bytes(changed)
        with pytest.raises(ValueError, match=f"is corrupted: {name} .* export the model again"):
            load_export(folder)
        (folder / name).write_bytes(whole)
    (folder / "export.json").write_text("{}")
    with pytest.raises(ValueError, match="is corrupted"):
        load_export(folder)
    (folder / "export.json").unlink()  # as exports of version 0.1.0 are
    assert torch.equal(load_export(folder)[0].embedding.weight, model.embedding.weight)


def test_recorded_shakespeare_run_beats_the_published_loss_at_the_recipe_s_settings():
    folder = ROOT / "results" / "shakespeare-gpt-cpu"
    found, recipe = json.loads((folder / "record.json").read_text()), RECIPES["shakespeare-gpt-cpu"]
    settings = json.loads(json.dumps(dataclasses.asdict(recipe.training)))
    assert found["training"] == settings and found["steps"] == recipe.training.n_steps
    assert recipe.model.items() <= found["model"].items()
    losses = [r["validation_loss"] for r in read_records(folder / "log.jsonl") if "loss" not in r]
    assert found["validation_loss"] == min(losses) < 1.88  # nanoGPT's README
    (session,) = found["trained_with"]
    assert re.fullmatch("[0-9a-f]{40}", session["commit"]) and session["dirty"] is False
