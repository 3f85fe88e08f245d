"""A run stops between steps, resumes only itself, and says how far it is."""

import math
import re
import shutil
import signal
import sys
import threading
import types

import pytest
from torch import nn

from transformer_lib import runs
from transformer_lib.checkpoints import CheckpointError
from transformer_lib.models import TransformerConfig
from transformer_lib.runs import (
    Progress,
    StopRequest,
    describe_model,
    differences,
    require_space,
    tensorboard_log,
)

# The same run, or another one


class Configured(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.config = TransformerConfig(vocab_size=11, **sizes)


def test_describe_model_takes_the_config_or_else_the_repr():
    described = describe_model(Configured(d_model=48))
    assert described["class"] == "Configured"
    assert described["config"]["d_model"] == 48 and described["config"]["vocab_size"] == 11
    layer = nn.Linear(3, 5)
    assert describe_model(layer) == {"class": "Linear", "config": repr(layer)}
    layer.config = {"d_model": 48}  # no dataclass
    assert describe_model(layer)["config"] == repr(layer)


def test_differences_lists_each_setting_that_differs_with_both_values():
    ours = {"training": {"betas": (0.9, 0.98), "warmup": 2, "seed": 1}, "precision": "fp32"}
    theirs = {"training": {"betas": [0.9, 0.98], "warmup": 4, "old": 3}, "precision": "bf16"}
    assert differences(ours, theirs) == [
        "training.warmup = 4 there and 2 here",
        "training.seed = None there and 1 here",
        "precision = 'bf16' there and 'fp32' here",
        "training.old = 3 there and None here",
    ]
    assert differences(ours, {**ours, "training": {**ours["training"], "betas": [0.9, 0.98]}}) == []


def test_differences_compares_a_repr_line_by_line():
    two, three = (nn.Sequential(nn.Linear(3, n), nn.ReLU()) for n in (2, 3))
    found = differences({"model": describe_model(two)}, {"model": describe_model(three)})
    line = "(0): Linear(in_features=3, out_features={}, bias=True)"
    assert found == [f"model.config.line 2 = {line.format(3)!r} there and {line.format(2)!r} here"]


# Space


def test_require_space_compares_the_bytes_with_those_that_are_free(tmp_path, monkeypatch):
    def free(path):
        assert path == tmp_path
        return types.SimpleNamespace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", free)
    assert require_space(tmp_path, 1000) is None
    got = f"cannot write {tmp_path}: a checkpoint needs 1,001 bytes, and 1,000 are free; free some"
    with pytest.raises(CheckpointError, match=re.escape(got)):
        require_space(tmp_path, 1001)


# Progress


def lines_of(capsys, *, visible=True, every=0.0, clock=None, monkeypatch=None):
    monkeypatch.setattr(runs, "_LINE_SECONDS", every)
    ticks = iter(clock)
    monkeypatch.setattr(runs.time, "perf_counter", lambda: next(ticks))
    with Progress(2, 8, visible=visible) as progress:
        progress.update(3, loss=2.5, speed=1234.5, memory=2**30)
        progress.validated(3, 1.25)
        progress.update(4, loss=math.pi, speed=1000.0, memory=2**30, mfu=0.126)
    return capsys.readouterr().out.splitlines()


def test_progress_prints_lines_with_the_time_left_where_there_is_no_terminal(capsys, monkeypatch):
    found = lines_of(capsys, clock=[0.0, 10.0, 24.0], monkeypatch=monkeypatch)
    assert found == [
        "step 3 of 8, loss 2.500, 1,234 tokens/s, 00:50 left",
        "step 3 of 8, validation loss 1.250",
        "step 4 of 8, loss 3.142, 1,000 tokens/s, MFU 13%, 00:48 left, validation loss 1.250",
    ]


def test_progress_waits_between_lines(capsys, monkeypatch):
    found = lines_of(capsys, every=15.0, clock=[0.0, 14.0, 15.0], monkeypatch=monkeypatch)
    assert [line.partition(",")[0] for line in found] == ["step 3 of 8", "step 4 of 8"]
    assert "validation" in found[0] and "loss 3.142" in found[1]


def test_progress_that_is_not_visible_prints_nothing(capsys, monkeypatch):
    options = {"clock": [0.0, 10.0, 24.0], "monkeypatch": monkeypatch}
    assert lines_of(capsys, visible=False, **options) == []


def test_progress_closes_its_bar_when_a_run_fails(monkeypatch):
    closed = []
    with pytest.raises(OSError), Progress(0, 8, visible=False) as progress:
        monkeypatch.setattr(progress.bar, "close", lambda: closed.append(True))
        raise OSError
    assert closed == [True]


# TensorBoard


def test_tensorboard_gets_every_number_but_the_step(monkeypatch, tmp_path):
    made = []

    class SummaryWriter:
        def __init__(self, folder):
            made.append((folder, []))

        def add_scalar(self, name, value, step):
            made[-1][1].append((name, value, step))

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    tensorboard_log(tmp_path)({"step": 3, "loss": 2.5, "tokens": 7})
    assert made == [(str(tmp_path), [("loss", 2.5, 3), ("tokens", 7, 3)])]


def test_tensorboard_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="needs the package tensorboard; pip install tensorboard"):
        tensorboard_log("somewhere")


# Stopping


@pytest.fixture
def handlers():
    """Handlers of our own, which must be there again in the end."""
    heard = []
    mine = {
        number: (lambda n, frame: heard.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    yield heard
    assert {number: signal.getsignal(number) for number in mine} == mine
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_until_the_step_is_done(handlers, number):
    stop = StopRequest()
    assert stop.number == 0
    with stop.listening():
        assert stop.number == 0
        signal.raise_signal(number)
        assert stop.number == number
    assert stop.number == number and handlers == []
    signal.raise_signal(number)
    assert handlers == [number]
    with stop.listening():
        assert stop.number == 0


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_signal_that_ends_the_process_waits_unless_ignored_or_handled(name):
    number, heard = getattr(signal, name), []
    before = signal.signal(number, signal.SIG_DFL)
    try:
        stop = StopRequest()
        with stop.listening():
            signal.raise_signal(number)
        assert stop.number == number and signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        with stop.listening():
            signal.raise_signal(number)
        assert stop.number == 0 and signal.getsignal(number) == signal.SIG_IGN
        signal.signal(number, lambda n, frame: heard.append(n))
        with stop.listening():
            signal.raise_signal(number)
        assert stop.number == 0 and heard == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_does_not_wait(handlers, second):
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(second)
    assert stop.number == signal.SIGTERM and handlers == []


def test_handlers_come_back_after_an_error(handlers):
    with pytest.raises(KeyError), StopRequest().listening():
        raise KeyError


def test_in_another_thread_nothing_is_heard_and_nothing_breaks(handlers):
    seen = []

    def elsewhere():
        stop = StopRequest()
        with stop.listening():
            inside.set()
            told.wait()
        seen.append(stop.number)

    inside, told = threading.Event(), threading.Event()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    inside.wait()
    signal.raise_signal(signal.SIGINT)
    told.set()
    thread.join()
    assert seen == [0] and handlers == [signal.SIGINT]
