"""The commands: train, translate and check, in this process and as processes of their own."""

import dataclasses
import io
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
from test_recipes import PAIRS, losses, run, tiny

from transformer_lib import __main__ as command
from transformer_lib import cpu, runs, trainer
from transformer_lib.__main__ import main
from transformer_lib.checkpoints import CheckpointError, checkpoints, load_checkpoint, read_records
from transformer_lib.models import Transformer, TransformerConfig
from transformer_lib.recipes import RECIPES
from transformer_lib.trainer import NonFiniteLoss, Trainer, TrainingConfig
from transformer_lib.translation import Translator

ROOT = Path(__file__).resolve().parent.parent


# train


def test_train_exports_and_then_has_nothing_to_do(tmp_path, monkeypatch, capsys):
    run(tmp_path / "a", monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert "4 steps on cpu in fp32: about" in told and "exported to" in told
    assert len(losses(tmp_path / "a")) == 4
    run(tmp_path / "a", monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert "resuming after step 4" in told and "steps on cpu" not in told
    assert len(losses(tmp_path / "a")) == 4


def test_train_equals_the_trainer_by_hand(tmp_path, monkeypatch):
    recipe = tiny(seed=1)
    run(tmp_path / "a", recipe=recipe, monkeypatch=monkeypatch)
    tokenizer, data, validation = recipe.batches()
    torch.manual_seed(recipe.training.seed)
    model = Transformer(recipe.config(tokenizer))
    Trainer(model, data, recipe.training, validation=validation, folder=tmp_path / "b").fit()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_train_options_override_the_recipe(tmp_path, monkeypatch):
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
    assert state["ema_decay"] == 0.5  # the recipe's own


def test_train_with_another_seed_starts_from_other_weights(tmp_path, monkeypatch):
    run(tmp_path / "a", monkeypatch=monkeypatch)
    run(tmp_path / "b", "--seed", "1", monkeypatch=monkeypatch)
    assert losses(tmp_path / "a")[0] != losses(tmp_path / "b")[0]


def test_train_names_the_folder_after_the_recipe_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", tiny())
    main(["train", "tiny", "--device", "cpu"])
    assert (tmp_path / "runs" / "tiny" / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "arguments, status, told",
    [
        (["train", "nothing"], 2, "invalid choice: 'nothing'"),
        (["train", "number-names", "--sharding", "zero"], 2, "invalid choice: 'zero'"),
        (["train", "number-names", "--threads", "-1"], 2, "must be an integer of at least 1"),
        (["train", "number-names", "--model.d_model", "wide"], 2, "--model.d_model: got 'wide'"),
        ([], 2, "COMMAND"),
        (["train", "number-names", "--n-steps", "0"], 1, "n_steps must be an integer"),
        (["train", "number-names", "--precision", "fp8"], 1, "precision must be"),
        (["train", "number-names", "--device", "abacus"], 1, "'abacus' is not available"),
        (["train", "number-names", "--source", "a"], 1, "must be given together"),
        (["train", "number-names", "--source", "a", "--target", "b"], 1, "No such file"),
        (["translate", "nowhere", "a"], 1, "be one of ['multi30k-de-en', 'multi30k-en-de']"),
        (["check", "attend"], 1, "name the object as MODULE:NAME"),
        (["check", "transformer_lib:no_such"], 1, "AttributeError"),
        (["check", "transformer_lib:Transformer"], 1, "is a class"),
    ],
)
def test_main_explains_a_failure_in_one_message(
    arguments, status, told, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == status and told in re.sub(r"\s+", " ", error)
    assert status == 2 or (error.startswith("error: ") and error.count("\n") == 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("x"),
        NonFiniteLoss("x"),
        ConnectionError("x"),
        ImportError("x"),
        torch.OutOfMemoryError("x"),
    ],
)
def test_main_reports_expected_errors_of_a_run(error, tmp_path, monkeypatch, capsys):
    def fail(self):
        raise error

    monkeypatch.setattr(trainer.Trainer, "fit", fail)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, monkeypatch=monkeypatch)
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith("error: ")


def told_by(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_help_lists_recipes_and_every_setting_with_its_default(capsys):
    told = told_by(capsys, "train")
    assert all(part in told for name, r in RECIPES.items() for part in (name, r.about, r.time))
    assert all(f"--training.{f.name}" in told for f in dataclasses.fields(TrainingConfig))
    models = {f.name for f in dataclasses.fields(TransformerConfig)} - {"vocab_size"}
    assert all(f"--model.{name}" in told for name in models) and "torchrun" in told
    told = told_by(capsys, "train", "number-names")
    assert (
        "weight updates (default: 600)" in told
        and "--max-tokens MAX_TOKENS tokens of a batch, padding included (default: 2048)" in told
    )
    told = told_by(capsys, "translate")
    assert all(name in told for name in ("multi30k-de-en", "(default: 5)", "--length-penalty"))
    assert all(option in told_by(capsys, "check") for option in ("--vocab-size", "--skip"))
    assert all(command in told_by(capsys) for command in ("train", "translate", "generate"))


def test_help_explains_every_argument_of_every_command():
    commands = next(
        action for action in command.parser(["train"])._actions if isinstance(action.choices, dict)
    )
    for name, one in commands.choices.items():
        silent = [action.dest for action in one._actions if not action.help]
        assert not silent, f"{name} does not say what these are: {silent}"


def test_train_cuts_the_warmup_of_the_recipe_to_the_steps_asked_for(tmp_path, monkeypatch, capsys):
    run(tmp_path / "a", "--n-steps", "1", recipe=tiny(warmup=4), monkeypatch=monkeypatch)
    assert load_checkpoint(checkpoints(tmp_path / "a")[0])[1]["training"]["warmup"] == 1
    with pytest.raises(SystemExit):  # one that was asked for is not cut
        run(tmp_path / "b", "--n-steps", "1", "--warmup", "2", monkeypatch=monkeypatch)
    assert "warmup must be" in capsys.readouterr().err


def test_train_takes_any_setting_of_model_training_and_batches(tmp_path, monkeypatch):
    changes = [
        "--training.betas", "0.8,0.9", "--training.max_grad_norm", "none", "--training.schedule",
        "linear", "--model.d_model", "8", "--model.norm", "pre", "--no-model.bias",
        "--max-tokens", "64", "--vocab-size", "265",
    ]  # fmt: skip
    run(tmp_path, *changes, monkeypatch=monkeypatch)
    state = load_checkpoint(checkpoints(tmp_path)[0])[1]
    assert state["training"]["betas"] == [0.8, 0.9] and state["training"]["max_grad_norm"] is None
    assert state["training"]["schedule"] == "linear"
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert (config["d_model"], config["norm"], config["bias"]) == (8, "pre", False)
    assert config["vocab_size"] <= 265


def test_train_shows_validation_losses_and_samples(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert told.count("step 2 of 4, validation loss") == 1 and told.count("validation loss") == 2
    for source, target in PAIRS[40:43]:
        assert f"source     {source}" in told and f"reference  {target}" in told
    assert told.count("output     ") == 3


def test_train_shows_validation_losses_above_the_bar_of_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run(tmp_path, monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert "step 2: validation loss" in told and "step 4: validation loss" in told
    assert "of 4, validation loss" not in told


def test_train_learns_from_parallel_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", tiny())
    for name, side in zip(("a.en", "a.de"), zip(*PAIRS, strict=True), strict=True):
        Path(name).write_text("".join(f"{text}\n" for text in side))
    main(["train", "tiny", "--source", "a.en", "--target", "a.de", "--device", "cpu"])
    assert Path("runs/a.en-a.de/export/model.safetensors").is_file()
    learned, held = command.parallel_lines("a.en", "a.de")
    assert len(held) == 2 and not set(learned) & set(held) and {*learned, *held} == set(PAIRS)


@pytest.mark.parametrize(
    "source, target, told",
    [
        ("a\nb\n", "c\n", "as many lines, got 2 and 1"),
        ("a\n\nb\n", "c\nd\ne\n", "no empty line, got one at 2"),
        ("a\na\n", "c\nc\n", "at least 2 different pairs, got 1"),
    ],
)
def test_parallel_lines_refuses_what_is_no_parallel_text(source, target, told, tmp_path):
    (tmp_path / "a").write_text(source)
    (tmp_path / "b").write_text(target)
    with pytest.raises(ValueError, match=told):
        command.parallel_lines(str(tmp_path / "a"), str(tmp_path / "b"))


@pytest.mark.parametrize("inside", ["\u2028", "\u0085", "\x0c"])
def test_parallel_lines_are_cut_at_line_ends_only(inside, tmp_path):
    pairs = [(f"a{inside}b", "c"), ("d", f"e{inside}"), ("f", "g")]
    for name, side in zip("ab", zip(*pairs, strict=True), strict=True):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in side), encoding="utf-8")
    learned, held = command.parallel_lines(str(tmp_path / "a"), str(tmp_path / "b"))
    assert {*learned, *held} == set(pairs)


def test_parallel_lines_keeps_no_held_out_pair_among_the_learned(tmp_path):
    (tmp_path / "a").write_text("a\nb\n" * 50)
    (tmp_path / "b").write_text("c\nd\n" * 50)
    learned, held = command.parallel_lines(str(tmp_path / "a"), str(tmp_path / "b"))
    assert len(learned) == 50 and len(held) == 1 and held[0] not in learned


def test_train_refuses_a_foreign_export_folder_before_it_trains(tmp_path, monkeypatch, capsys):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit):
        run(tmp_path, monkeypatch=monkeypatch)
    assert "thesis.txt" in capsys.readouterr().err and not (tmp_path / "log.jsonl").exists()


def test_train_logs_each_record_to_tensorboard(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(runs, "tensorboard_log", lambda folder: heard.append)
    run(tmp_path, "--tensorboard", monkeypatch=monkeypatch)
    assert [r["step"] for r in heard if "loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in heard if "validation_loss" in r] == [2, 4]


@pytest.mark.slow
@pytest.mark.plain
def test_train_resumes_with_the_same_command_after_ctrl_c(tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "transformer_lib", "train", "number-names", "--folder", str(folder),
        "--device", "cpu", "--n-steps", "30", "--warmup", "5", "--threads", "1",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
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
    assert again.returncode == 0 and f"resuming after step {done}" in again.stdout
    assert [r["step"] for r in read_records(log) if "loss" in r] == list(range(1, 31))


# translate


def test_translate_reads_arguments_or_lines(tmp_path, monkeypatch, capsys):
    main(["translate", "multi30k-de-en", "Ein Hund rennt.", "Zwei Hunde.", "--beam", "1"])
    told = capsys.readouterr().out
    wanted = Translator.load("multi30k-de-en")(["Ein Hund rennt.", "Zwei Hunde."], beam=1)
    assert told.splitlines() == wanted
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ein Hund rennt.\n\nZwei Hunde.\n"))
    main(["translate", "multi30k-de-en", "--beam", "1"])
    assert capsys.readouterr().out.splitlines() == [wanted[0], "", wanted[1]]


def test_translate_packs_the_model_on_a_cpu(monkeypatch, capsys):
    packed, pack = [], cpu.pack_for_decoding
    monkeypatch.setattr(cpu, "pack_for_decoding", lambda m: packed.append(m) or pack(m))
    main(["translate", "multi30k-de-en", "Ein Hund rennt.", "--beam", "1", "--device", "cpu"])
    assert capsys.readouterr().out.strip() and len(packed) == 1


def test_translate_takes_an_export_or_the_folder_of_a_run(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch=monkeypatch)
    capsys.readouterr()
    for folder in (tmp_path, tmp_path / "export"):
        main(["translate", str(folder), "3 plus 4"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


# check


def test_check_passes_or_breaks_with_the_laws(tmp_path, capsys):
    main(["check", "transformer_lib:attend"])
    assert "properties hold" in capsys.readouterr().out
    file = tmp_path / "mine.py"
    file.write_text(
        "import transformer_lib as t\n"
        "def wrong(q, k, v, mask=None, *, causal=False):\n    return 2 * t.attend(q, k, v, mask)\n"
        "def module(): return t.MultiHeadAttention(16, 2)\n"
        "def model(): return t.DecoderOnly(t.TransformerConfig(vocab_size=11, d_model=16,"
        " n_heads=2, d_ff=16, n_encoder_layers=1, n_decoder_layers=1, dropout=0.0))\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["check", f"{file}:wrong"])
    assert stopped.value.code == 1 and "FAIL" in capsys.readouterr().out
    main(["check", f"{file}:module()", "--d-model", "16"])
    main(["check", f"{file}:model()", "--skip", "initial loss=not asked"])
    assert "not asked" in capsys.readouterr().out


def test_check_finds_the_modules_beside_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "beside_mine.py").write_text("from transformer_lib import attend as mine\n")
    (tmp_path / "asks_beside.py").write_text("from beside_mine import mine\n")
    main(["check", f"{tmp_path / 'asks_beside.py'}:mine"])
    assert "properties hold" in capsys.readouterr().out


# As a process


@pytest.mark.slow
@pytest.mark.plain
def test_main_runs_as_a_process(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def told(*arguments, **options):
        line = [sys.executable, "-m", "transformer_lib", *arguments]
        return subprocess.run(
            line, cwd=tmp_path, env=env, capture_output=True, text=True, **options
        )

    done = told("translate", "multi30k-de-en", input="Ein Hund.\n")
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    done = told("train", "number-names", "--device", "abacus")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout
    (tmp_path / "mine.py").write_text("from transformer_lib import attend as my_attention\n")
    assert told("check", "mine:my_attention").returncode == 0
