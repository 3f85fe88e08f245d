"""The record of a run holds its translations, their scores, and all that it takes to repeat it."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_bleu import fake_spacy
from test_translation import PAIRS, RECORDED, ROOT, recorded, tiny

from benchmarks import record_scores as module
from benchmarks.record_scores import record_scores
from transformer_lib import __main__ as command
from transformer_lib.batches import PairBatches
from transformer_lib.bleu import PROTOCOLS, bleu
from transformer_lib.checkpoints import CheckpointError, read_records
from transformer_lib.models import Transformer
from transformer_lib.recipes import RECIPES, export_model
from transformer_lib.tokenizer import Tokenizer
from transformer_lib.trainer import Trainer, TrainingConfig
from transformer_lib.translation import Translator


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.bpe((text for pair in PAIRS for text in pair), 300)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A run of a few steps, as the command leaves it."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny(tokenizer, dropout=0.0).config
    sides = [tokenizer.encode_all(side) for side in zip(*PAIRS, strict=True)]
    batches = PairBatches(*sides, max_tokens=64)
    validation = list(PairBatches(*sides, max_tokens=64, shuffle=False))
    plan = TrainingConfig(
        n_steps=23, learning_rate=1e-2, ema_decay=0.9, save_every=10, validate_every=10
    )
    trainer = Trainer(Transformer(config), batches, plan, validation=validation, folder=folder)
    export_model(trainer.fit(), tokenizer, folder / "export")
    return folder


def five_pairs(monkeypatch):
    """Let Multi30k be five pairs, and note what is asked for."""
    calls = []
    monkeypatch.setattr(module, "multi30k", lambda *which: calls.append(which) or PAIRS)
    monkeypatch.setitem(sys.modules, "spacy", None)
    return calls


@pytest.fixture
def asked(monkeypatch):
    return five_pairs(monkeypatch)


@pytest.fixture(scope="module")
def record(run, tmp_path_factory):
    """What `record_scores` returned, the folder it wrote, and what it asked for."""
    out = tmp_path_factory.mktemp("record") / "not" / "there"
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = five_pairs(monkeypatch)
        return record_scores(str(run), "multi30k-de-en", str(out)), out, calls


def test_record_holds_translations_and_scores(run, record):
    found, out, calls = record
    assert calls == [("de", "en", "val"), ("de", "en", "test_2016_flickr")]
    assert json.loads((out / "scores.json").read_text()) == json.loads(json.dumps(found))
    assert sorted(p.name for p in out.iterdir()) == [
        "hypotheses-greedy.txt", "hypotheses.txt", "log.jsonl", "scores.json",
    ]  # fmt: skip
    translator, references = Translator.load(run / "export"), [english for _, english in PAIRS]
    for name, beam in (("hypotheses", 5), ("hypotheses-greedy", 1)):
        lines = translator([german for german, _ in PAIRS], beam=beam)
        assert (out / f"{name}.txt").read_text(encoding="utf-8") == "".join(f"{x}\n" for x in lines)
        scores = dict(found["scores"][name])
        assert scores.pop("beam") == beam and scores.pop("seconds") > 0
        want = {p: dataclasses.asdict(bleu(lines, references, protocol=p)) for p in PROTOCOLS[:2]}
        assert scores == want
    best = dict(found["validation"])  # the same five pairs
    assert best == {k: v for k, v in found["scores"]["hypotheses"].items() if k != "seconds"}


def test_record_says_how_the_model_was_made(run, record):
    found, out, _ = record
    weights = run / "export" / "model.safetensors"
    assert found["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found["recipe"] == "multi30k-de-en"
    command = found["command"]
    options = command.removeprefix("python -m transformer_lib train ").split()
    assert options.pop(0) == "multi30k-de-en"
    given = dict(zip(options[::2], options[1::2], strict=True))
    wanted = {"--n-steps": "23", "--learning-rate": "0.01", "--save-every": "10"}
    wanted |= {"--schedule": "inverse_sqrt", "--label-smoothing": "0.0", "--ema-decay": "0.9"}
    assert given == wanted | {"--warmup": "0", "--validate-every": "10"}
    translator = Translator.load(run / "export")
    assert found["parameters"] == sum(p.numel() for p in translator.model.parameters())
    assert found["model"] == dataclasses.asdict(translator.model.config)
    assert found["training"]["n_steps"] == found["steps"] == 23
    assert found["precision"] in ("fp32", "bf16", "fp16")
    (session,) = found["trained_with"]
    assert session["from_step"] == session["seed"] == 0 and session["device"] and session["command"]
    assert session["precision"] == found["precision"] and "commit" in session
    assert found["best_step"] in (10, 20, 23)
    records = read_records(run / "log.jsonl")
    steps = [r for r in records if "loss" in r]
    assert found["target_tokens"] == sum(r["tokens"] for r in steps)
    assert found["tokens_per_second"] == steps[-1]["tokens_per_second"]
    losses = [r["validation_loss"] for r in records if "validation_loss" in r]
    assert len(losses) == 3 and found["validation_loss"] == min(losses)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert found["machine"].startswith(f"{os.cpu_count()} cores, ") and "torch" in found["versions"]
    kept = read_records(out / "log.jsonl")
    assert [r["step"] for r in kept if "loss" in r] == [1, 11, 21]
    assert [r for r in kept if "loss" not in r] == [r for r in records if "loss" not in r]


def test_record_scores_uses_spacy_where_it_is(run, asked, tmp_path, monkeypatch):
    languages = fake_spacy(monkeypatch)
    found = record_scores(run, "multi30k-en-de", tmp_path)
    assert asked == [("en", "de", "val"), ("en", "de", "test_2016_flickr")]
    assert languages == ["de", "de", "de"]
    for scores in found["scores"].values():
        assert set(PROTOCOLS) <= scores.keys()
        assert "(de, sacremoses" in scores["moses-lower"]["signature"]


def test_record_scores_raises_for_another_missing_package(run, asked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(ImportError, match="sacremoses"):
        record_scores(run, "multi30k-de-en", tmp_path)
    assert not (tmp_path / "scores.json").exists()


def test_record_writes_each_translation_on_one_line(run, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(Translator, "__call__", lambda self, texts, *, beam: ["a\nb"] * len(texts))
    record_scores(run, "multi30k-de-en", tmp_path)
    assert (tmp_path / "hypotheses.txt").read_text() == "a b\n" * len(PAIRS)


@pytest.mark.parametrize(
    "recipe", ["number-names", "multi30k", "multi30k-de", "multi30k-a-b-c", "wmt14-de-en"]
)
def test_record_scores_refuses_a_recipe_without_a_test_set(run, tmp_path, recipe):
    with pytest.raises(ValueError, match=f"must be multi30k-SOURCE-TARGET, got '{recipe}'"):
        record_scores(run, recipe, tmp_path)


def test_record_scores_refuses_a_run_without_a_checkpoint(run, asked, tmp_path):
    shutil.copytree(run / "export", tmp_path / "run" / "export")
    shutil.copy(run / "log.jsonl", tmp_path / "run")
    with pytest.raises(CheckpointError, match="record_scores: .* must hold a good checkpoint"):
        record_scores(tmp_path / "run", "multi30k-de-en", tmp_path / "out")


def git(folder, *command):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


def test_commit_is_named_with_a_change_since(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert module._commit() is None
    git(tmp_path, "init", "-q")
    Path("a.txt").write_text("a")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-qm", "a")
    assert re.fullmatch("[0-9a-f]{40}", module._commit())
    Path("a.txt").write_text("b")
    assert re.fullmatch(r"[0-9a-f]{40}\+", module._commit())
    monkeypatch.setenv("PATH", "")
    assert module._commit() is None


@pytest.mark.slow
def test_command_says_how_it_is_used():
    command = [sys.executable, "-m", "benchmarks.record_scores", "run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "usage: python -m benchmarks.record_scores RUN RECIPE OUT\n"


def test_options_are_told_as_they_are_given():
    own = json.loads(json.dumps(dataclasses.asdict(RECIPES["multi30k-de-en"].training)))
    changes = {
        "compile": True,
        "precision": "bf16",
        "seed": 3,
        "betas": [0.8, 0.9],
        "ema_decay": None,
    }
    told = module._options("multi30k-de-en", {"training": own | changes})
    assert sorted(told.split(" --")[1:]) == [
        "betas 0.8,0.9", "compile", "ema-decay None", "precision bf16", "seed 3",
    ]  # fmt: skip
    assert module._options("multi30k-de-en", {"training": own}) == ""


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_command_is_that_of_the_recorded_run(name):
    found, recipe = recorded(name), RECIPES[name]
    assert found["recipe"] == name
    words = found["command"].split()  # recorded under the command's first name, too
    at = words.index(name)
    asked = command._chosen(command.parser().parse_args(["train", *words[at:]]))
    renamed = {
        "smoothing": "label_smoothing", "max_norm": "max_grad_norm", "average": "ema_decay",
    }  # fmt: skip
    defaults = dataclasses.asdict(TrainingConfig(n_steps=1))  # of settings that came later
    then = defaults | {renamed.get(key, key): x for key, x in found["training"].items()}
    assert then == json.loads(json.dumps(dataclasses.asdict(asked.training)))
    model = {key: found["model"][key] for key in recipe.model}
    assert model == dict(recipe.model)
