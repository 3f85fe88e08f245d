"""The loop takes the steps that it says it takes, and a stop changes nothing but the clock."""

import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import threading
import time
import types
import warnings
from contextlib import nullcontext
from itertools import islice

import pytest
import torch
import train_tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from train_tiny import batches, model

from transformer_lib import cpu, runs
from transformer_lib import trainer as module
from transformer_lib.batches import BlockBatches, PairBatches
from transformer_lib.checkpoints import (
    CheckpointError,
    checkpoints,
    load_checkpoint,
    read_records,
    save_checkpoint,
)
from transformer_lib.cost import cost, decoder_only_cost
from transformer_lib.devices import provenance
from transformer_lib.distributed import Worker
from transformer_lib.losses import language_loss, translation_loss
from transformer_lib.models import DecoderOnly
from transformer_lib.optimization import SCHEDULES, MovingAverage, make_optimizer
from transformer_lib.trainer import (
    LOG,
    NonFiniteLoss,
    Trainer,
    TrainingConfig,
)

CPU = Worker()
SMALL = {"n_steps": 12, "accumulate": 1, "worker": CPU}


def make(folder=None, **options):
    return train_tiny.trainer(folder, **SMALL | options)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.bare.named_parameters()}


def losses(trainer_or_folder):
    return [r["loss"] for r in read_records(trainer_or_folder / LOG) if "loss" in r]


def timeless(folder):
    records = read_records(folder / LOG)
    speed = {"tokens_per_second", "mfu_of_measured_peak"}
    return [{k: v for k, v in r.items() if k not in speed} for r in records]


def hashes(folder):
    newest = checkpoints(folder)[0]
    return json.loads((newest / "checkpoint.json").read_text().rsplit("\n", 2)[0])["files"]


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# Batches made ahead, and the kernels that their shapes ask for


def ahead(folder=None, **options):
    trainer = make(folder, **options)
    trainer._prefetch = True  # as on a GPU
    return trainer


def test_batches_made_ahead_change_no_step_and_no_checkpoint(tmp_path):
    make(tmp_path / "plain", save_every=4).fit()
    ahead(tmp_path / "ahead", save_every=4).fit()
    assert timeless(tmp_path / "plain") == timeless(tmp_path / "ahead")
    assert hashes(tmp_path / "plain") == hashes(tmp_path / "ahead")
    folders = (tmp_path / "plain", tmp_path / "ahead")
    for plain, other in zip(*map(checkpoints, folders), strict=True):
        assert load_checkpoint(plain)[1]["data"] == load_checkpoint(other)[1]["data"]


def test_batches_made_ahead_wait_for_the_next_fit(tmp_path):
    plain, trainer = make(dropout=0.0), ahead(tmp_path, dropout=0.0)
    for until in (3, 7, 12):
        plain.fit(until)
        trainer.fit(until)
        assert trainer.data.state_dict() == plain.data.state_dict()
        if until == 3:
            trainer = ahead(tmp_path, dropout=0.0)
            assert trainer.resume()
    assert_equal(weights(trainer), weights(plain))


def test_prefetch_makes_a_batch_while_the_step_before_runs():
    trainer, places = ahead(), []
    made, make_one = threading.Event(), trainer.data.make

    def make_and_tell(item):
        batch = make_one(item)
        made.set()
        return batch

    def loss(model, batch, smoothing):
        if trainer._place is not None:  # in a step: another batch comes without our help
            assert made.wait(timeout=60)
            made.clear()
            places.append(trainer._place["next"])
        return translation_loss(model, batch, smoothing)

    trainer.loss, trainer.data.make = loss, make_and_tell
    trainer.fit(3)
    assert places == [1, 2, 3]


def test_prefetch_leaves_the_data_after_the_batch_of_a_failed_step():
    def broken(model, batch, smoothing):
        value = translation_loss(model, batch, smoothing)
        return value * math.nan if trainer.step == 2 and trainer._place is not None else value

    trainer = ahead(loss=broken)
    with pytest.raises(NonFiniteLoss, match="at step 3"):
        trainer.fit()
    assert trainer.data.state_dict() == {"epoch": 0, "next": 3}
    next(trainer.data.endless())  # a checkpoint holds where the data are, not where they were
    assert trainer._state()["data"] == {"epoch": 0, "next": 4}


def test_prefetch_skips_data_of_other_classes():
    class Own:
        def __init__(self):
            self.data = batches()
            self.state_dict, self.load_state_dict = self.data.state_dict, self.data.load_state_dict

        def endless(self):
            for batch in self.data.endless():
                assert threading.current_thread() is threading.main_thread()
                yield batch

    gpu = Worker(device=torch.device("meta"))
    assert not make(data=Own())._prefetch and not make()._prefetch
    assert (
        isinstance(Own(), module.Batches)
        and not Trainer(model(), Own(), TrainingConfig(n_steps=1), worker=gpu)._prefetch
    )
    assert Trainer(model(), batches(), TrainingConfig(n_steps=1), worker=gpu)._prefetch


def test_batches_of_many_shapes_are_kept_from_kernels_that_plan_for_each():
    trainer, seen = make(validate_every=1), []

    def loss(model, batch, smoothing):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return translation_loss(model, batch, smoothing)

    trainer.loss = loss
    trainer.fit(1)
    assert seen and all(seen)
    seen.clear()
    trainer._varied = True  # as on a CUDA GPU
    trainer.fit(2)
    assert seen and not any(seen) and torch.backends.cuda.cudnn_sdp_enabled()
    blocks = BlockBatches(list(range(4, 40)), block=4, batch_size=2)
    assert blocks.one_shape and not getattr(batches(), "one_shape", False)


# The config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_steps": 0}, "n_steps must be an integer at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be an integer at least 1, got 0"),
        ({"save_every": -1}, "save_every must be an integer at least 1, got -1"),
        ({"validate_every": 0}, "validate_every must be an integer at least 1, got 0"),
        ({"patience": 0, "validate_every": 1}, "patience must be an integer at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0, got 0.0"),
        ({"schedule": "step"}, f"schedule must be one of {tuple(SCHEDULES)}, got 'step'"),
        ({"warmup": 8}, "warmup must be at most n_steps = 7, got 8"),
        ({"warmup": -1}, "warmup must be an integer at least 0, got -1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be a number in [0, 1), got 1.0"),
        ({"min_lr_ratio": -0.1}, "min_lr_ratio must be a number in [0, 1], got -0.1"),
        ({"min_lr_ratio": 1.1}, "min_lr_ratio must be a number in [0, 1], got 1.1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be a number above 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a number at least 0, got -0.1"),
        ({"ema_decay": 1.0}, "ema_decay must be a number in [0, 1), got 1.0"),
        (
            {"precision": "fp8"},
            "precision must be one of ('auto', 'fp32', 'bf16', 'fp16'), got 'fp8'",
        ),
        ({"learning_rate": math.inf}, "learning_rate must be a number above 0, got inf"),
        ({"weight_decay": math.nan}, "weight_decay must be a number at least 0, got nan"),
        ({"max_grad_norm": math.inf}, "max_grad_norm must be a number above 0, got inf"),
        ({"epsilon": 0.0}, "epsilon must be a number above 0, got 0.0"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers in [0, 1), got (0.9, 1.0)"),
        ({"seed": -1}, "seed must be an integer at least 0, got -1"),
        ({"patience": 2}, "patience must be None where validate_every is None, got 2"),
    ],
)
def test_config_refuses_impossible_settings_by_name(changes, message):
    with pytest.raises(ValueError, match=re.escape(f"TrainingConfig: {message}")):
        TrainingConfig(**{"n_steps": 7} | changes)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "changes",
    [{"compile": "no"}, {"recompute": 1}, {"seed": None}, {"seed": True}, {"n_steps": True},
     {"learning_rate": "1"}, {"learning_rate": True}, {"warmup": 0.5}, {"betas": (0.9,)}],
)  # fmt: skip
def test_config_refuses_settings_of_another_type(changes):
    with pytest.raises(ValueError, match=f"TrainingConfig: {[*changes][0]} must be "):
        TrainingConfig(**{"n_steps": 7} | changes)


@pytest.mark.bad_input
def test_config_refuses_half_a_step():
    with pytest.raises(ValueError, match="n_steps must be an integer at least 1, got 1.5"):
        TrainingConfig(n_steps=1.5)


def test_config_is_frozen_and_serializes_to_json():
    config = TrainingConfig(n_steps=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_steps = 8
    assert json.loads(json.dumps(dataclasses.asdict(config)))["n_steps"] == 7


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_falls_to_the_minimum_after_warm_up(name):
    options = {"n_steps": 12, "learning_rate": 0.5, "schedule": name, "warmup": 4}
    plain, raised = (TrainingConfig(min_lr_ratio=x, **options) for x in (0.0, 0.2))
    for step in range(1, 13):
        rate = plain.learning_rate_at(step)
        assert rate == 0.5 * SCHEDULES[name](step, 4, 12)
        expected = rate if step <= 4 else 0.1 + 0.8 * rate
        assert raised.learning_rate_at(step) == pytest.approx(expected, rel=1e-12)
    if name in ("linear", "cosine"):
        assert raised.learning_rate_at(12) == pytest.approx(0.1)


# One step


def test_update_agrees_with_a_loop_written_by_hand():
    trainer, by_hand, data = make(dropout=0.0, warmup=3, weight_decay=0.1), model(0.0), batches()
    config = trainer.config
    optimizer = make_optimizer(
        by_hand,
        learning_rate=config.learning_rate,
        betas=config.betas,
        epsilon=config.epsilon,
        weight_decay=config.weight_decay,
    )
    average = MovingAverage(by_hand, config.ema_decay)
    for step, batch in zip(range(1, 6), batches().endless(), strict=False):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate = (
            config.learning_rate * SCHEDULES[config.schedule](step, config.warmup, config.n_steps)
        )
        loss = translation_loss(by_hand, batch, config.label_smoothing) / batch.n_tokens
        loss.backward()
        norm = nn.utils.clip_grad_norm_(by_hand.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update(by_hand)
        record = trainer.update(next(data.endless()))
        assert record == {
            "step": step,
            "loss": pytest.approx(loss.item()),
            "learning_rate": rate,
            "gradient_norm": pytest.approx(norm.item()),
            "tokens": batch.n_tokens,
        }
        assert norm > config.max_grad_norm
    assert_equal(weights(trainer), dict(by_hand.named_parameters()))
    assert_equal(trainer.average.values, average.values)


def test_update_without_max_grad_norm_leaves_the_gradients_unchanged():
    trainers = [make(max_grad_norm=limit, dropout=0.0) for limit in (None, 1e9, 0.01)]
    norms = [[t.update(b)["gradient_norm"] for b in islice(batches(), 3)] for t in trainers]
    assert_equal(weights(trainers[0]), weights(trainers[1]))
    assert norms[0] == norms[1] and norms[0] != norms[2]


def test_update_copies_no_python_number_to_the_device():
    """Such a copy, as `total[1] = 3` makes, lets a GPU's host wait at every step."""
    seen = []

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen.append(function)
            return function(*arguments, **options or {})

    def loss(net, batch, smoothing):
        return next(net.parameters()).square().sum()

    trainer, batch = make(loss=loss, ema_decay=None), next(iter(batches()))
    with Listen():
        trainer._backward(batch)
    assert torch.ops.aten.add_.Tensor in seen
    assert not {torch.ops.aten.lift_fresh.default, torch.ops.aten.copy_.default} & {*seen}


@pytest.mark.parametrize("n_parts", [2, 3, 50])
def test_accumulate_gives_the_gradients_of_the_whole_batch(n_parts):
    """Fifty parts are more than there are rows, so some are empty."""
    options = {"dropout": 0.0, "dtype": "float64"}
    whole, parts = make(**options), make(accumulate=n_parts, **options)
    for batch in islice(batches(), 4):
        ours, theirs = parts.update(batch), whole.update(batch)
        # The loss itself is added up in single precision.
        assert ours == pytest.approx(theirs, rel=1e-6)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-9)
    torch.testing.assert_close(weights(parts), weights(whole))


def test_recompute_changes_no_bit():
    trainers = [make(recompute=recompute) for recompute in (False, True)]
    seen = []
    for trainer in trainers:
        torch.manual_seed(0)
        seen.append([trainer.update(batch)["loss"] for batch in islice(batches(), 4)])
    assert seen[0] == seen[1]
    assert_equal(weights(trainers[0]), weights(trainers[1]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_of_16_bits_trains_with_float32_weights(precision):
    trainer = make(precision=precision, n_steps=40)
    torch.manual_seed(0)
    seen = [trainer.update(batch)["loss"] for batch in islice(batches().endless(), 40)]
    assert sum(seen[-5:]) < sum(seen[:5]) and all(map(math.isfinite, seen))
    assert all(p.dtype == torch.float32 for p in trainer.bare.parameters())
    exact = make(n_steps=40)
    torch.manual_seed(0)
    assert exact.update(next(iter(batches())))["loss"] == pytest.approx(seen[0], rel=0.02)
    assert seen[0] != exact.update(next(iter(batches())))["loss"]


def test_update_clips_and_records_gradients_without_the_loss_scale():
    records, batch = [], next(iter(batches()))
    for scale in (1.0, 1024.0):  # a power of two changes no digit
        trainer = make(max_grad_norm=0.1, dropout=0.0)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        records.append((trainer.update(batch)["gradient_norm"], weights(trainer)))
    assert records[0][0] == pytest.approx(records[1][0], rel=1e-6) and records[0][0] > 0.1
    assert_equal(records[1][1], records[0][1])


def test_fp16_skips_a_step_that_overflows_and_lowers_its_scale():
    trainer = make(precision="fp16")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before, batch = weights(trainer), next(iter(batches()))
    record = trainer.update(batch)
    assert not math.isfinite(record["gradient_norm"]) and math.isfinite(record["loss"])
    assert_equal(weights(trainer), before)
    assert trainer.scaler.get_scale() == 2.0**39 and trainer.step == 1


@pytest.mark.plain
@pytest.mark.slow
def test_compile_trains_like_the_plain_model(monkeypatch):
    """The graphs are traced and run as they are; making fast code of them is torch's work."""
    compiling = []

    def traced(net, **options):
        compiling.append(options)
        return real(net, backend="eager", **options)

    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", traced)
    compiled, plain = make(compile=True, dropout=0.0), make(dropout=0.0)
    for batch in islice(batches(), 3):
        assert compiled.update(batch) == pytest.approx(plain.update(batch), rel=1e-5)
    assert compiling == [{"dynamic": True}]


# What is not a number


def broken(loss, step, factor=math.nan):
    """A loss, spoiled at one step, and its gradient alone if `loss` says so."""

    def spoiled(net, batch, smoothing):
        value = translation_loss(net, batch, smoothing)
        if net.training and spoiled.trainer.step + 1 == step and spoiled.trainer.seconds > 0:
            return value * factor if loss else value + (value - value.detach()).abs().sqrt()
        return value

    return spoiled


@pytest.mark.parametrize("what, is_loss", [("loss", True), ("gradient norm", False)])
def test_fit_stops_at_a_non_finite_value_before_the_weights_change(what, is_loss, tmp_path):
    bad = broken(is_loss, step=6)
    trainer = bad.trainer = make(tmp_path, loss=bad, save_every=2, validate_every=None)
    got = f"Trainer: the {what} must be finite, got nan at step 6 with learning rate 0.00816. "
    last = f"Last valid checkpoint: {tmp_path / 'step-00000004'}"
    with pytest.raises(NonFiniteLoss, match=re.escape(got + last)):
        trainer.fit()
    assert trainer.step == 5 and all(p.isfinite().all() for p in trainer.bare.parameters())
    assert all(p.grad is None for p in trainer.bare.parameters())
    whole = make(validate_every=None, save_every=2).fit(5)
    assert_equal(weights(trainer), weights(whole))


def test_resumed_run_can_skip_the_batch_that_made_the_loss_nan(tmp_path):
    bad = next(islice(batches().endless(), 2, None)).source

    def loss(net, batch, smoothing):
        value = translation_loss(net, batch, smoothing)
        return value * math.nan if torch.equal(batch.source, bad) else value

    options = {"loss": loss, "n_steps": 5, "save_every": 1, "validate_every": None}
    for _ in range(2):  # resumed, it meets the same batch
        trainer = make(tmp_path, **options)
        trainer.resume()
        with pytest.raises(NonFiniteLoss, match="at step 3"):
            trainer.fit()
    trainer = make(tmp_path, **options)
    trainer.resume()
    place = trainer.data.state_dict()
    trainer.data.load_state_dict(place | {"next": place["next"] + 1})
    assert trainer.fit().step == 5


def test_fit_without_a_folder_names_no_last_valid_checkpoint():
    bad = broken(True, step=2, factor=math.inf)
    trainer = bad.trainer = make(loss=bad, validate_every=None)
    with pytest.raises(NonFiniteLoss, match="got inf at step 2 .* Last valid checkpoint: None"):
        trainer.fit()


# Validation


def test_validate_is_per_token_over_unequal_batches_without_dropout_or_smoothing():
    trainer = make(ema_decay=None)
    held_out = trainer.validation
    assert len({batch.n_tokens for batch in held_out}) > 1
    trainer.bare.eval()
    with torch.no_grad():
        sums = [translation_loss(trainer.bare, batch).item() for batch in held_out]
    trainer.bare.train()
    expected = sum(sums) / sum(batch.n_tokens for batch in held_out)
    assert trainer.validate() == pytest.approx(expected, rel=1e-6)
    assert trainer.bare.training
    assert (trainer.best, trainer.best_step) == (pytest.approx(expected, rel=1e-6), 0)


def test_validate_uses_the_average_and_keeps_the_weights():
    trainer = make()
    for batch in islice(batches(), 3):
        trainer.update(batch)
    before = weights(trainer)
    measured = trainer.validate()
    assert_equal(weights(trainer), before)
    plain = make(ema_decay=None)
    plain.bare.load_state_dict(trainer.average.values, strict=False)
    assert measured == plain.validate()
    plain.bare.load_state_dict(before, strict=False)
    assert measured != plain.validate()


def test_fit_ends_early_when_nothing_improves(monkeypatch, tmp_path):
    found = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    trainer = make(tmp_path, n_steps=24, validate_every=2, patience=2, save_every=100)

    def validate():
        loss = next(found)
        if loss < trainer.best:
            trainer.best, trainer.best_step = loss, trainer.step
        return loss

    monkeypatch.setattr(trainer, "validate", validate)
    trainer.fit()
    assert trainer.is_done and (trainer.step, trainer.best, trainer.best_step) == (8, 2.0, 4)
    kept = [path.name for path in checkpoints(tmp_path)]
    assert kept == ["step-00000008", "step-00000004"]  # the last and the best
    assert trainer.fit().step == 8


def test_fit_keeps_the_best_checkpoint_and_the_last_two(tmp_path, monkeypatch):
    trainer = make(tmp_path, validate_every=3, save_every=2)
    falls = iter([1.0, 2.0, 3.0, 4.0])

    def validate():
        loss = next(falls)
        if loss < trainer.best:
            trainer.best, trainer.best_step = loss, trainer.step
        return loss

    monkeypatch.setattr(trainer, "validate", validate)
    trainer.fit()
    assert [path.name[-2:] for path in checkpoints(tmp_path)] == ["12", "10", "03"]


# Stopping and going on


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make(folder, accumulate=2, validate_every=5, save_every=4).fit()
    return folder


def test_resume_restores_the_best_validation_so_far(tmp_path):
    options = {"validate_every": 2, "save_every": 2}
    first, second = make(tmp_path, **options).fit(4), make(tmp_path, **options)
    assert second.resume() and math.isfinite(second.best)
    assert (second.best, second.best_step) == (first.best, first.best_step)


@pytest.mark.parametrize("step", [1, 4, 7, 10])
def test_resume_continues_bit_for_bit(step, whole, tmp_path):
    options = {"accumulate": 2, "validate_every": 5, "save_every": 4}
    make(tmp_path, **options).fit(step)
    torch.manual_seed(12345)
    second = make(tmp_path, **options)
    with torch.no_grad():
        for parameter in second.bare.parameters():
            parameter.add_(1)
    assert second.resume() and second.step == step
    second.fit()
    assert timeless(tmp_path) == timeless(whole)
    assert hashes(tmp_path) == hashes(whole)
    best = load_checkpoint(checkpoints(whole)[0])[1]["best"]
    assert [second.best, second.best_step] == best


def test_fit_twice_is_fit_once(whole, tmp_path):
    trainer = make(tmp_path, accumulate=2, validate_every=5, save_every=4)
    assert trainer.fit(3).step == 3 and trainer.fit(3).step == 3
    trainer.fit(11).fit(99)
    assert trainer.step == 12 and trainer.is_done
    assert timeless(tmp_path) == timeless(whole) and hashes(tmp_path) == hashes(whole)


def test_save_before_the_first_step_changes_nothing(whole, tmp_path):
    options = {"accumulate": 2, "validate_every": 5, "save_every": 4}
    trainer = make(tmp_path / "a", **options)
    before = weights(trainer)
    assert trainer.save() == tmp_path / "a" / "step-00000000"
    assert_equal(weights(trainer), before)
    trainer.fit()
    assert hashes(tmp_path / "a") == hashes(whole)
    make(tmp_path / "b", **options).save()
    second = make(tmp_path / "b", **options)
    assert second.resume() and second.step == 0
    second.fit()
    assert hashes(tmp_path / "b") == hashes(whole) and timeless(tmp_path / "b") == timeless(whole)


def test_resume_uses_the_newest_valid_checkpoint_and_truncates_the_log(whole, tmp_path):
    options = {"accumulate": 2, "validate_every": 5, "save_every": 4}
    make(tmp_path, **options).fit(9)
    newest = checkpoints(tmp_path)[0] / "optimizer.safetensors"
    os.truncate(newest, newest.stat().st_size // 2)
    second = make(tmp_path, **options)
    with pytest.warns(UserWarning, match="optimizer.safetensors.*trying the checkpoint before it"):
        assert second.resume()
    assert second.step == 8
    with (tmp_path / LOG).open("a") as log:
        log.write('{"step": 10, "lo')  # a line that a kill cut off
    second.fit()
    assert timeless(tmp_path) == timeless(whole) and hashes(tmp_path) == hashes(whole)


def test_fit_restarts_a_log_of_steps_before_any_checkpoint(whole, tmp_path):
    (tmp_path / LOG).write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "loss": 9.0}\n')
    trainer = make(tmp_path, accumulate=2, validate_every=5, save_every=4)
    assert not trainer.resume()
    trainer.fit()
    assert timeless(tmp_path) == timeless(whole)


def test_resume_raises_if_every_checkpoint_is_corrupted_but_not_if_there_is_none(tmp_path):
    assert not make(tmp_path).resume()
    make(tmp_path, validate_every=None).fit(2)
    (path,) = checkpoints(tmp_path)
    (path / "model.safetensors").unlink()
    got = f"no checkpoint is good, got ['{path}']"
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match=re.escape(got)):
        make(tmp_path).resume()


def test_fit_refuses_the_folder_of_another_run(tmp_path):
    make(tmp_path, validate_every=None).fit(2)
    records = timeless(tmp_path)
    got = f"{tmp_path} already holds checkpoints; call resume() or choose another folder"
    with pytest.raises(ValueError, match=re.escape(got)):
        make(tmp_path, validate_every=None).fit()
    assert timeless(tmp_path) == records


def test_resume_refuses_another_run_and_names_the_settings_that_differ(tmp_path):
    make(tmp_path, validate_every=None).fit(1)
    path = re.escape(str(checkpoints(tmp_path)[0]))
    expected = f"Trainer.resume: {path} is of another run: "
    what_to_do = "; use what that run used, or choose another folder$"
    found = "training.learning_rate = 0.01 there and 0.02 here; "
    found += "training.warmup = 4 there and 2 here"
    with pytest.raises(ValueError, match=expected + found + what_to_do):
        make(tmp_path, validate_every=None, learning_rate=0.02, warmup=2).resume()
    found = "model.config.dropout = 0.1 there and 0.2 here"
    with pytest.raises(ValueError, match=expected + found + what_to_do):
        make(tmp_path, validate_every=None, dropout=0.2).resume()


class Bigrams(nn.Module):
    """A model without a config: each next token from the last, and a buffer that moves."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(40, width), nn.Linear(width, 40))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, source, target, source_mask=None):
        self.calls += 1
        return self.layers(target)


def bigrams(folder, width=8):
    config = TrainingConfig(n_steps=4, precision="fp32")
    return Trainer(Bigrams(width), batches(), config, folder=folder, worker=CPU)


def test_trainer_takes_any_module_and_compares_its_lines(tmp_path):
    trainer = bigrams(tmp_path).fit(3)
    assert trainer.bare.calls == 3  # nothing stays of the batches that were timed
    second = bigrams(tmp_path)
    assert second.resume() and second.bare.calls == 3
    line = "model.config.line 3 = '(0): Embedding(40, 8)' there and '(0): Embedding(40, 9)"
    line = re.escape(line)
    with pytest.raises(ValueError, match=line):
        bigrams(tmp_path, width=9).resume()


def test_resume_compares_the_precision_that_auto_stands_for(tmp_path, monkeypatch):
    options = {"validate_every": None}
    make(tmp_path, precision="auto", **options).fit(2)
    assert make(tmp_path, precision="fp32", **options).resume()
    monkeypatch.setattr(module, "choose_precision", lambda device: "fp16")
    with pytest.raises(ValueError, match="precision = 'fp32' there and 'fp16' here; use what"):
        make(tmp_path, precision="auto", **options).resume()


def test_resume_restores_the_scale_of_fp16(tmp_path):
    options = {"precision": "fp16", "validate_every": None}
    half = make(tmp_path, **options).fit(3)
    half.scaler.update(1234.0)
    half.save()
    again = make(tmp_path, **options)
    assert again.resume() and again.scaler.state_dict()["scale"] == 1234.0


def test_resume_accepts_what_changes_no_step(tmp_path):
    options = {"validate_every": 2, "save_every": 2, "patience": 3, "schedule": "constant"}
    make(tmp_path, **options).fit(4)
    changed = {"validate_every": 3, "save_every": 5, "patience": None, "recompute": True}
    longer = make(tmp_path, **options | changed | {"n_steps": 20})
    assert longer.resume() and longer.step == 4
    assert longer.fit(5).step == 5


def test_resume_refuses_another_minimum_of_the_learning_rate(tmp_path):
    options = {"schedule": "cosine", "validate_every": None}
    make(tmp_path, min_lr_ratio=0.1, **options).fit(2)
    with pytest.raises(ValueError, match="training.min_lr_ratio = 0.1 there and 0.2 here"):
        make(tmp_path, min_lr_ratio=0.2, **options).resume()


@pytest.mark.parametrize(
    "schedule, until, same",
    [
        ("linear", 3, True),
        ("linear", 4, True),
        ("linear", 5, False),
        ("wsd", 10, True),
        ("wsd", 11, False),
    ],
)
def test_resume_accepts_more_steps_while_the_schedule_is_the_same_so_far(
    schedule, until, same, tmp_path
):
    options = {"schedule": schedule, "warmup": 4, "validate_every": None}
    make(tmp_path, **options).fit(until)
    longer = make(tmp_path, n_steps=20, **options)
    if same:
        assert longer.resume()
    else:
        with pytest.raises(ValueError, match="training.n_steps = 12 there and 20 here"):
            longer.resume()


@pytest.mark.parametrize(
    "changes", [{"max_tokens": 40}, {"shuffle": False}, {"n": 47}, {"seed": 7}]
)
def test_resume_refuses_other_data(changes, tmp_path):
    make(tmp_path, validate_every=None).fit(2)
    with pytest.raises(ValueError, match="data.fingerprint = '.*' there and '.*' here"):
        make(tmp_path, validate_every=None, data=batches(**changes)).resume()


def test_resume_accepts_data_and_checkpoints_without_a_fingerprint(tmp_path):
    make(tmp_path, validate_every=None).fit(2)
    tensors, state = load_checkpoint(checkpoints(tmp_path)[0])
    assert state["fingerprint"] == batches().fingerprint()
    del state["fingerprint"], state["provenance"]  # as the first version wrote it
    state["best"] = [math.inf, 0]
    save_checkpoint(tmp_path, 2, tensors, state)
    assert make(tmp_path, validate_every=None, data=batches(seed=7)).resume()


@pytest.mark.parametrize("group", ["model", "optimizer", "random", "average"])
def test_resume_names_a_group_that_a_checkpoint_lacks(group, tmp_path):
    make(tmp_path, validate_every=None).fit(2)
    path = checkpoints(tmp_path)[0]
    tensors, state = load_checkpoint(path)
    del tensors[group]
    save_checkpoint(tmp_path, 2, tensors, state)
    with pytest.raises(CheckpointError, match=re.escape(f"{path} lacks {group}, so another")):
        make(tmp_path, validate_every=None).resume()


@pytest.mark.parametrize("entry", ["data", "best", "average", "scaler", "training", "model"])
def test_resume_names_an_entry_that_a_checkpoint_lacks(entry, tmp_path):
    make(tmp_path, validate_every=None).fit(2)
    path = checkpoints(tmp_path)[0]
    tensors, state = load_checkpoint(path)
    del state[entry]
    save_checkpoint(tmp_path, 2, tensors, state)
    with pytest.raises(CheckpointError, match=re.escape(f"{path} lacks {entry}, so another")):
        make(tmp_path, validate_every=None).resume()


# Found before the first step


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("row", [[5] * 40, [5, 40]])  # too long, and beyond the vocabulary
def test_fit_tries_the_hardest_rows_before_the_first_step(side, row, tmp_path):
    sides = [[*train_tiny.rows(400)], [*train_tiny.rows(400)]]
    sides[side][137] = row
    trainer = make(tmp_path, data=PairBatches(*sides, max_tokens=64), validate_every=None)
    generator = torch.get_rng_state()
    with pytest.raises((ValueError, IndexError)):
        trainer.fit()
    assert trainer.step == 0 and not (tmp_path / LOG).exists()
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in trainer.bare.parameters())


def test_fit_tries_the_widest_validation_batch_before_the_first_step():
    held_out = [*batches(seed=1, shuffle=False), *PairBatches([[5] * 40], [[5]], max_tokens=64)]
    trainer = make(validation=held_out)
    with pytest.raises(ValueError):
        trainer.fit()
    assert trainer.step == 0


def test_block_batches_try_the_highest_id_and_its_block():
    text = torch.arange(3, 103)
    text[50] = 999
    for place in (0, 50, 99):
        text = torch.full((100,), 7)
        text[place] = 999
        tried = BlockBatches(text, block=4, batch_size=2).trial_batch()
        assert 999 in tried.inputs or 999 in tried.labels


def test_fit_says_before_the_first_step_that_the_disk_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=7))
    trainer = make(tmp_path, validate_every=None)
    with pytest.raises(CheckpointError, match=f"cannot write {tmp_path}: .* and 7 are free"):
        trainer.fit()
    assert trainer.step == 0


def test_folder_has_one_run_at_a_time(tmp_path):
    other = make(tmp_path, validate_every=None)
    said = []

    def intrude(record):
        for call in (other.resume, other.fit, other.save):
            with pytest.raises(CheckpointError, match="in use by another run; stop it or choose"):
                call()
            said.append(call)

    make(tmp_path, log=intrude, validate_every=None).fit(2)
    assert len(said) == 6
    assert other.resume() and other.fit(3).step == 3


def test_trainer_refuses_a_folder_that_is_a_file_by_name(tmp_path):
    (tmp_path / "run").write_text("")
    for call in ("resume", "fit", "save"):
        with pytest.raises(CheckpointError, match="run: File exists; choose another folder"):
            getattr(make(tmp_path / "run", validate_every=None), call)()


def test_fp16_that_always_overflows_ends_with_an_error(tmp_path):
    def loss(net, batch, smoothing):
        return (translation_loss(net, batch) * 0).sqrt() + 3.0  # its gradient is not finite

    trainer = make(tmp_path, n_steps=99, precision="fp16", loss=loss, validate_every=None)
    before = weights(trainer)
    with pytest.raises(NonFiniteLoss, match="in 20 consecutive steps, .* use precision='bf16'"):
        trainer.fit()
    assert trainer.step == 19
    assert_equal(weights(trainer), before)
    assert [r["gradient_norm"] for r in read_records(tmp_path / LOG)] == 19 * [None]


def test_fp16_counts_only_consecutive_skipped_steps():
    trainer, batch = make(precision="fp16"), next(iter(batches()))
    trainer._n_skipped = 19
    assert math.isfinite(trainer.update(batch)["gradient_norm"])
    assert trainer._n_skipped == 0


def test_training_and_validation_make_no_float64_tensor(tmp_path):
    """Apple's GPUs have no such tensors."""

    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            found = function(*arguments, **options or {})
            for x in found if isinstance(found, tuple | list) else [found]:
                assert not (isinstance(x, torch.Tensor) and x.dtype == torch.float64), function
            return found

    first, again = (make(tmp_path, accumulate=2, validate_every=2) for _ in range(2))
    with Refuse():
        first.fit(4)
        assert again.resume() and again.fit(6).step == 6


@pytest.mark.bad_input
def test_trainer_refuses_data_without_the_methods_by_type():
    loader = torch.utils.data.DataLoader([1, 2])
    with pytest.raises(TypeError, match="data must have the methods endless, .* got DataLoader"):
        make(data=loader)
    with pytest.raises(TypeError, match="validation must be a list of batches, got generator"):
        make(validation=(batch for batch in batches()))


def test_validate_on_resumable_batches_uses_the_first_epoch_and_keeps_the_position():
    held, data = batches(seed=1, shuffle=False), batches()
    expected = make(validation=list(batches(seed=1, shuffle=False))).validate()
    next(iter(held))
    assert make(validation=held).validate() == expected
    assert held.state_dict() == {"epoch": 0, "next": 1}
    make(data=data, validation=data, validate_every=1).fit(4)
    assert data.state_dict() == {"epoch": 0, "next": 4}


def test_validate_counts_an_equal_loss_as_no_improvement():
    trainer = make()
    first = trainer.validate()
    trainer.step = 5
    assert trainer.validate() == first and trainer.best_step == 0


def test_gradients_of_two_processes_average_to_those_of_the_whole_batch():
    batch, found = next(iter(batches())), []
    workers = [Worker(), Worker(rank=0, world_size=2), Worker(rank=1, world_size=2)]
    for worker in workers:
        trainer = make(worker=worker, dropout=0.0, dtype="float64")
        trainer._backward(batch)
        found.append(torch.cat([p.grad.flatten() for p in trainer.bare.parameters()]))
    torch.testing.assert_close((found[1] + found[2]) / 2, found[0])


def test_checkpoint_records_what_computed_it(tmp_path):
    make(tmp_path, validate_every=None).fit(2)
    again = make(tmp_path, validate_every=None)
    again.resume()
    again.fit(3)
    (session,) = load_checkpoint(checkpoints(tmp_path)[0])[1]["provenance"]
    assert session == json.loads(json.dumps(provenance(torch.device("cpu")))) | {
        "processes": 1, "precision": "fp32", "seed": 0, "from_step": 0, "onednn": True,
    }  # fmt: skip
    assert session["threads"] == torch.get_num_threads() and session["device"]
    assert session["versions"]["torch"] == torch.__version__
    torch.set_num_threads(2)
    try:
        third = make(tmp_path, validate_every=None)
        third.resume()
        third.fit(4)
    finally:
        torch.set_num_threads(1)
    sessions = load_checkpoint(checkpoints(tmp_path)[0])[1]["provenance"]
    assert [(s["from_step"], s["threads"]) for s in sessions] == [(0, 1), (3, 2)]


def test_progress_is_printed_in_lines_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(runs, "_LINE_SECONDS", 0.0)
    make(validate_every=2).fit(3)
    said = capsys.readouterr().out
    line = r"step 1 of 3, loss \d\.\d{3}, [\d,]+ tokens/s, \d\d:\d\d left\n"
    assert re.search(line, said)
    assert re.search(r"step 2 of 3, validation loss \d\.\d{3}\n", said)
    monkeypatch.undo()
    make(validate_every=None).fit(3)
    assert "tokens/s" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "numbers, error, kept",
    [
        ([signal.SIGINT], KeyboardInterrupt, 3),
        ([signal.SIGTERM], SystemExit, 3),
        ([signal.SIGINT, signal.SIGINT], KeyboardInterrupt, 2),
    ],
)
def test_signal_waits_until_the_step_is_saved(numbers, error, kept, tmp_path):
    before = signal.getsignal(signal.SIGINT)  # ignored, in a job of the background
    trainer = make(tmp_path, validate_every=None, save_every=2)
    train_tiny.in_step(trainer, 3, numbers)
    with pytest.raises(error) as stopped:
        trainer.fit()
    assert checkpoints(tmp_path)[0].name == f"step-0000000{kept}" and trainer.step == kept
    if error is SystemExit:
        assert stopped.value.code == 143
    elif kept == 3:
        said = f"stopped after step 3 of 12: saved in {tmp_path}; Trainer.resume, or the same "
        assert said in str(stopped.value)
    assert signal.getsignal(signal.SIGINT) is before


def test_signal_without_a_folder_says_that_nothing_is_saved():
    trainer = make(validate_every=None)
    train_tiny.in_step(trainer, 2, [signal.SIGINT])
    with pytest.raises(KeyboardInterrupt, match="step 2 of 12: there is no folder, so nothing is"):
        trainer.fit()


# What it says


def test_log_receives_every_record_that_the_file_does(tmp_path):
    seen = []
    make(tmp_path, log=seen.append, validate_every=6).fit()
    assert seen == read_records(tmp_path / LOG)
    assert [r["step"] for r in seen] == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12]
    assert {*seen[0]} == {
        "step", "loss", "learning_rate", "gradient_norm", "tokens", "tokens_per_second",
    }  # fmt: skip
    assert {*seen[6]} == {"step", "validation_loss"}


def test_progress_bar_shows_loss_speed_and_memory_after_the_expected_time(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, bar = Terminal(), runs.tqdm
    monkeypatch.setattr(
        runs, "tqdm", type("Bar", (bar,), {"monitor_interval": 0, "__init__": lambda self, **k: (
            bar.__init__(self, **k | {"file": screen, "mininterval": 0, "miniters": 1}))}),
    )  # fmt: skip
    trainer = make(validate_every=None).fit(5)
    trainer.fit(7)
    shown = screen.getvalue()
    assert re.search(r"5/5 .*step/s, loss \d\.\d{3}, [\d,]+ tokens/s, \d\.\d GiB", shown)
    assert "6/7" in shown and "7/7" in shown
    said = capsys.readouterr().out
    assert re.search(r"5 steps on cpu in fp32: about \d\d:\d\d", said)
    assert "2 steps on cpu" in said


class Elsewhere(Worker):
    """The place of a process that is not the first."""

    @property
    def is_first(self):
        return False


def test_worker_that_is_not_the_first_writes_and_prints_nothing(tmp_path, capsys):
    seen = []
    other = make(tmp_path, worker=Elsewhere(), log=seen.append, validate_every=None)
    other.fit(2)
    assert seen == [] and capsys.readouterr().out == "" and not (tmp_path / LOG).exists()
    assert other.save() is None and checkpoints(tmp_path) == []


def test_seconds_per_step_leaves_no_trace():
    trainer = make()
    before, generator = weights(trainer), torch.get_rng_state()
    position = trainer.data.state_dict()
    assert trainer.seconds_per_step() > 0
    assert_equal(weights(trainer), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert trainer.data.state_dict() == position and trainer.step == 0
    assert all(p.grad is None for p in trainer.bare.parameters())


def pausing(seconds):
    def loss(net, batch, smoothing):
        time.sleep(seconds)
        return translation_loss(net, batch, smoothing)

    return loss


def test_seconds_per_step_is_the_time_of_one_step():
    assert 0.3 <= make(loss=pausing(0.3)).seconds_per_step() < 0.9  # the sum of four is 1.2


@pytest.mark.slow
def test_tokens_per_second_agrees_with_an_outside_clock():
    """Within 2 % of a clock outside; two more tries, since the machine may be busy."""
    for _ in range(3):
        trainer = make(loss=pausing(0.25), validate_every=None).fit(1)
        trainer.tokens = trainer.seconds = 0.0
        trainer._begin = lambda end: None  # it times three batches, which do not count
        start = time.perf_counter()
        trainer.fit()
        outside = trainer.tokens / (time.perf_counter() - start)
        inside = trainer.tokens / trainer.seconds
        if abs(inside / outside - 1) < 0.02:
            return
    pytest.fail(f"{inside:.1f} tokens/s by the trainer, {outside:.1f} outside")


# Model FLOPs utilization


def with_mfu(monkeypatch, folder=None, *, rate=1e6, seconds=60.0, **options):
    """A trainer that expects a step to take so many seconds, on a device of so many FLOP/s."""
    trainer = make(folder, **options)
    monkeypatch.setattr(trainer, "seconds_per_step", lambda: seconds)
    monkeypatch.setattr(module, "matmul_rate", lambda device, precision, size: rate)
    return trainer


def flops_of(data, n=None):
    """Operations for each label of the first n batches, by the formula."""
    flops, config = 0, model().config
    kept = list(islice(data, n))
    for batch in kept:
        (rows, source), target = batch.source.shape, batch.inputs.shape[1]
        sizes = {"batch_size": rows, "source_len": source, "target_len": target}
        flops += cost(config, **sizes).training_flops
    return flops / sum(batch.n_tokens for batch in kept)


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"recompute": True, "dropout": 0.3}])
def test_mfu_is_the_operations_of_the_tokens_per_second_over_the_peak(monkeypatch, options):
    seen = []
    trainer = with_mfu(monkeypatch, log=seen.append, rate=2e8, **options).fit(3)
    for record in (r for r in seen if "loss" in r):
        expected = flops_of(batches(), 4) * record["tokens_per_second"] / 2e8
        assert record["mfu_of_measured_peak"] == pytest.approx(expected, rel=1e-12)
    assert trainer.step == 3 and len(seen) == 3


def test_mfu_of_several_processes_is_of_the_sum_of_their_peaks(monkeypatch):
    whole = with_mfu(monkeypatch)
    whole._find_peak(60.0)
    one_of_three = with_mfu(monkeypatch, worker=Worker(rank=1, world_size=3))
    monkeypatch.setattr(one_of_three, "_unchanged", nullcontext)  # it asks the other two
    monkeypatch.setattr(module, "all_reduce", lambda x: x * 3)
    one_of_three._find_peak(60.0)
    assert one_of_three._at_peak == pytest.approx(3 * whole._at_peak) and whole._at_peak > 0


def test_mfu_of_blocks_counts_one_batch_and_equals_the_formula(monkeypatch):
    config = dataclasses.replace(model().config, max_len=7)
    data = BlockBatches(list(range(4, 40)) * 3, block=7, batch_size=5)
    trainer = Trainer(
        DecoderOnly(config), data, TrainingConfig(n_steps=9), loss=language_loss, worker=CPU
    )
    asked = []
    monkeypatch.setattr(trainer, "loss", lambda *a: asked.append(a) or language_loss(*a))
    expected = decoder_only_cost(config, batch_size=5, length=7).training_flops / 35
    assert trainer._flops_per_token() == expected and len(asked) == 1
    assert data.state_dict() == {"epoch": 0, "next": 0}


def test_mfu_of_four_batches_is_near_that_of_all():
    """Shapes differ from batch to batch; within 10 % here, where batches are of 5 rows or so."""
    trainer, data = make(), batches()
    assert trainer._flops_per_token() == pytest.approx(flops_of(data), rel=0.1)


def test_mfu_is_left_out_where_it_is_not_worth_its_time_or_not_known(monkeypatch):
    def reads_a_number(net, batch, smoothing):
        return translation_loss(net, batch, smoothing) * float(batch.source.max() > 0)

    def fails(*_, **__):
        raise RuntimeError("CUDA out of memory")

    for options in ({"seconds": 29.5}, {"loss": reads_a_number}, {"rate": math.nan}, {"rate": 0}):
        seen = []
        with_mfu(monkeypatch, log=seen.append, **options).fit(2)
        assert len(seen) == 2 and "mfu_of_measured_peak" not in seen[0] | seen[1]
    trainer = with_mfu(monkeypatch, log=seen.append)
    monkeypatch.setattr(module, "matmul_rate", fails)
    trainer.fit(2)
    assert len(seen) == 4 and "mfu_of_measured_peak" not in seen[-1]
    monkeypatch.setattr(module, "meta_copy", fails)
    trainer = with_mfu(monkeypatch, log=seen.append).fit(1)
    assert len(seen) == 5 and "mfu_of_measured_peak" not in seen[-1]


def test_mfu_changes_no_step_and_no_checkpoint(tmp_path, monkeypatch):
    make(tmp_path / "without").fit()
    with_mfu(monkeypatch, tmp_path / "with").fit(7)
    again = with_mfu(monkeypatch, tmp_path / "with")
    assert again.resume()
    again.fit()
    assert hashes(tmp_path / "with") == hashes(tmp_path / "without")
    assert timeless(tmp_path / "with") == timeless(tmp_path / "without")
    records = [r for r in read_records(tmp_path / "with" / LOG) if "loss" in r]
    assert all(r["mfu_of_measured_peak"] > 0 for r in records) and len(records) == 12


# Wrong calls


@pytest.mark.parametrize("validation", [None, []])
def test_trainer_refuses_missing_validation_data(validation):
    with pytest.raises(ValueError, match="got validate_every = 8 and none"):
        make(validation=validation)
    with pytest.raises(
        ValueError, match="Trainer.validate: validation must hold batches, got none"
    ):
        make(validation=validation, validate_every=None).validate()


def test_save_and_resume_refuse_a_missing_folder():
    for name in ("save", "resume"):
        with pytest.raises(ValueError, match=f"Trainer.{name}: folder must be a path, got None"):
            getattr(make(), name)()


def test_trainer_refuses_a_missing_worker_among_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="worker must be the Worker of process_group.., one of 2 "):
        make(worker=None)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert make(worker=None).worker.world_size == 1


def test_fit_gives_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(tmp_path).fit(3)


# The product on a CPU: measured once, and kept for the whole run


@pytest.fixture
def measured(monkeypatch):
    """Let new trainers find that oneDNN pays, or that it does not, and let its sums differ."""
    answers, ask = [], cpu._ask
    monkeypatch.setattr(cpu, "onednn_pays", lambda: answers[-1])
    monkeypatch.setattr(cpu, "_ask", lambda *inputs: ask(*inputs) * 1.001)
    return answers


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("began", [True, False])
def test_resumed_run_goes_on_with_the_products_it_began_with(began, measured, tmp_path):
    def fitted(folder, pays, until=12):
        measured.append(pays)
        trainer = make(tmp_path / folder, save_every=5)
        trainer.resume()
        return trainer.fit(until)

    whole = fitted("whole", began)
    other = fitted("other", not began)
    assert not torch.equal(other.bare.output.weight, whole.bare.output.weight)
    fitted("run", began, until=5)
    resumed = fitted("run", not began)
    assert resumed._onednn is began
    assert_equal(weights(resumed), weights(whole))
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")
    for path in checkpoints(tmp_path / "run"):
        state = load_checkpoint(path)[1]
        assert state["onednn"] is began
        assert [session["onednn"] for session in state["provenance"]] == [began]


def test_resume_uses_onednn_for_a_run_from_before_it_was_measured(measured, tmp_path):
    measured.append(True)
    make(tmp_path, validate_every=None).fit(2)
    tensors, state = load_checkpoint(checkpoints(tmp_path)[0])
    del state["onednn"]
    save_checkpoint(tmp_path, 2, tensors, state)
    measured.append(False)
    trainer = make(tmp_path, validate_every=None)
    assert trainer._onednn is False and trainer.resume() and trainer._onednn is True
    state["onednn"] = None  # the run was on a GPU
    save_checkpoint(tmp_path, 2, tensors, state)
    trainer = make(tmp_path, validate_every=None)
    assert trainer.resume() and trainer._onednn is False


@pytest.mark.parametrize("others, agreed", [(1.0, True), (0.0, False)])
def test_processes_use_onednn_only_together(others, agreed, measured, monkeypatch):
    measured.append(True)
    monkeypatch.setattr(module, "all_reduce", lambda votes: votes + others)
    assert make(worker=Worker(rank=0, world_size=2))._onednn is agreed
