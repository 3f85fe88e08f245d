"""What all tests use: a seed before each, one thread, and Hypothesis without chance or a clock."""

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# No deadlines, because the machine may be busy; the same examples every time, so that a failure
# can be reproduced.
settings.register_profile(
    "book", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("book")
torch.set_num_threads(1)
os.environ.setdefault("TRANSFORMER_LIB_ONEDNN", "1")  # no clock decides what the tests compute


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def corpus(monkeypatch):
    """The folder of Multi30k, if it is on this machine; no test downloads anything."""
    folder = (
        os.environ.get("TRANSFORMER_LIB_DATA")
        or Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    if not Path(folder, "multi30k").is_dir():
        pytest.skip("needs the files of Multi30k: let TRANSFORMER_LIB_DATA name their folder")
    monkeypatch.setenv("TRANSFORMER_LIB_DATA", str(folder))


CPU_SECONDS = 120  # of the process itself; pyproject.toml has a limit on the clock for hangs


def too_long(signum, frame):
    pytest.fail(f"used more than {CPU_SECONDS} s of CPU time")


def limited():
    """Run a test and fail it once it has used its CPU time."""
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from limited())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from limited())


def pytest_collection_modifyitems(config, items):
    """Deselect the tests marked gpu if there is no GPU and no other device is named."""
    if torch.cuda.is_available() or "TRANSFORMER_LIB_TEST_DEVICE" in os.environ:
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
