"""A training run that is killed, at any moment and in any way, ends as an uninterrupted one.

Processes are really killed. They are forked from one that has imported everything, so they start
fast; `torchrun` starts its own. "The same" means the same bits: the hashes of the last
checkpoint's files (weights, moments, average, random states) and every number of the log except
the speed.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_tiny

from transformer_lib.checkpoints import checkpoints, load_checkpoint, read_records

pytestmark = pytest.mark.timeout(400)  # many processes, which a busy machine starts slowly
TESTS = Path(__file__).resolve().parent
FORK = multiprocessing.get_context("forkserver")
N_STEPS = train_tiny.TRAINING["n_steps"]


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Let the process that children are forked from find and import `train_tiny`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), before or ""])
    FORK.set_forkserver_preload(["train_tiny"])
    yield
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def start(*runs, **environment):
    output = f"{runs[0]['folder']}.txt"
    process = FORK.Process(target=train_tiny.run_all, args=(runs, output, environment))
    process.start()
    return process


def train(folder, **options):
    """Train in a new process; return its exit status, negative if a signal ended it."""
    process = start({"folder": str(folder)} | options)
    process.join()
    return process.exitcode


def train_together(*runs, seconds=None):
    """Train in two processes at once, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start(*runs, RANK=rank, LOCAL_RANK=rank, **shared) for rank in range(2)]
    for process in ranks:
        process.join(seconds)
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, "a process hangs"
    return [process.exitcode for process in ranks]


def output(folder):
    return Path(f"{folder}.txt").read_text()


def log(folder):
    """The log without what depends on the machine's speed."""
    records, speed = read_records(Path(folder) / "log.jsonl"), "tokens_per_second"
    return [
        {k: v for k, v in r.items() if k not in (speed, "mfu_of_measured_peak")} for r in records
    ]


def ending(folder):
    """Everything that a run leaves, down to the bit."""
    newest = checkpoints(folder)[0]
    record = json.loads((newest / "checkpoint.json").read_text().rsplit("\n", 2)[0])
    assert record["step"] == int(newest.name.removeprefix("step-"))
    del record["state"]["provenance"]  # the command, which may differ
    return {"step": record["step"], "log": log(folder)} | {k: record[k] for k in ("files", "state")}


def ending_step(folder):
    found = checkpoints(folder)
    return int(found[0].name.removeprefix("step-")) if found else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The ending of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder) == 0
    found = ending(folder)
    assert found["step"] == N_STEPS
    assert [r["step"] for r in found["log"] if "loss" in r] == [*range(1, N_STEPS + 1)]
    assert set(found["files"]) == {
        f"{name}.safetensors" for name in ("model", "optimizer", "average", "random")
    }
    return found


def test_another_seed_gives_another_result(whole, tmp_path):
    assert train(tmp_path / "run", seed=1) == 0
    other = ending(tmp_path / "run")
    for name in ("model", "optimizer", "average"):
        assert other["files"][f"{name}.safetensors"] != whole["files"][f"{name}.safetensors"]


# One process, killed


def test_run_killed_within_any_step_resumes_exactly(whole, tmp_path):
    folder = tmp_path / "run"
    for step in (2, 6, 8, 17, N_STEPS):  # before a checkpoint, after one, validating, at the end
        assert train(folder, fault=["in_step", {"step": step}]) == -signal.SIGKILL
        assert len([r for r in log(folder) if "loss" in r]) == step - 1
    assert train(folder) == 0
    assert ending(folder) == whole


def test_run_killed_before_any_file_operation_resumes_exactly(tmp_path):
    """Each child is killed one file operation later than the one before it, then resumes."""
    folder, reference, events = tmp_path / "run", tmp_path / "reference", 36
    options = {"save_every": 1, "n_steps": 40}
    assert train(reference, **options) == 0
    for event in range(1, events + 1):
        fault = ["at_file_event", {"event": event}]
        assert train(folder, fault=fault, **options) == -signal.SIGKILL
    assert 4 < ending_step(folder) < 40  # some of them came after the new checkpoint had its name
    assert train(folder, **options) == 0
    assert ending(folder) == ending(reference)


@pytest.mark.parametrize("file", [1, 2, 3, 4])
def test_run_killed_while_writing_a_file_resumes_exactly(file, whole, tmp_path):
    folder = tmp_path / "run"
    fault = ["in_half_a_file", {"nth": 8 + file}]  # of the third checkpoint
    assert train(folder, fault=fault) == -signal.SIGKILL
    assert len(checkpoints(folder)) == 2
    assert train(folder) == 0
    assert ending(folder) == whole


def test_run_killed_at_random_moments_resumes_exactly(whole, tmp_path):
    folder, draw, killed = tmp_path / "run", random.Random(0), 0
    while ending_step(folder) < N_STEPS and killed < 12:
        process = start({"folder": str(folder)})
        process.join(0.05 if killed == 0 else draw.uniform(0, 0.4))  # a whole run takes longer
        killed += process.is_alive()
        process.kill()
        process.join()
    assert train(folder) == 0
    assert killed >= 1 and ending(folder) == whole


# One process, asked to stop


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_finishes_the_step_and_says_how_to_resume(number, status, whole, tmp_path):
    folder = tmp_path / "run"
    assert train(folder, fault=["in_step", {"step": 7, "numbers": [number]}]) == status
    assert [r["step"] for r in log(folder)] == [*range(1, 8)]
    assert [p.name for p in checkpoints(folder)] == ["step-00000007", "step-00000005"]
    assert f"stopped after step 7 of {N_STEPS}: saved in {folder}; Trainer.resume" in output(folder)
    assert train(folder) == 0
    assert ending(folder) == whole


def test_second_ctrl_c_stops_at_once(whole, tmp_path):
    folder = tmp_path / "run"
    fault = ["in_step", {"step": 7, "numbers": [signal.SIGINT, signal.SIGINT]}]
    assert train(folder, fault=fault) == 130
    assert [r["step"] for r in log(folder)] == [*range(1, 7)]
    assert [p.name for p in checkpoints(folder)] == ["step-00000005"]
    assert train(folder) == 0
    assert ending(folder) == whole


# Several processes give the result of one, up to the order of additions.
# In double precision, so that default tolerances tell a wrong factor from a rounding error.

EXACT = {"dropout": 0.0, "dtype": "float64", "n_steps": 12}
WAYS = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same runs by one process: {accumulate: folder}."""
    folder = tmp_path_factory.mktemp("alone")
    for n in (1, 2):
        assert train(folder / str(n), accumulate=n, **EXACT) == 0
    return {n: folder / str(n) for n in (1, 2)}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes train each way, with one and two micro-batches, and to the fourth step only."""
    folder = tmp_path_factory.mktemp("together")
    for way in WAYS:
        runs = [
            {"folder": str(folder / f"{way}{n}"), "accumulate": n, "sharding": way} | EXACT
            for n in (1, 2)
        ]
        runs.append(runs[1] | {"folder": str(folder / f"{way}-begun"), "until": 4})
        assert train_together(*runs) == [0, 0], output(folder / f"{way}1")
    return folder


def assert_same_run(ours, theirs):
    """The logs and all tensors but the random states are close."""
    ours_log, theirs_log = log(ours), log(theirs)
    assert [r.keys() for r in ours_log] == [r.keys() for r in theirs_log]
    for mine, other in zip(ours_log, theirs_log, strict=True):
        # The loss is summed in single precision, in every model.
        assert mine == pytest.approx(other, rel=1e-6)
    mine, state = load_checkpoint(checkpoints(ours)[0])
    other, other_state = load_checkpoint(checkpoints(theirs)[0])
    assert state["data"] == other_state["data"] and state["average"] == other_state["average"]
    assert state["model"] == other_state["model"] and mine.keys() == other.keys()
    for name in mine.keys() - {"random"}:
        torch.testing.assert_close(mine[name], other[name])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_agree_with_one(way, accumulate, alone, together):
    folder = together / f"{way}{accumulate}"
    assert_same_run(folder, alone[accumulate])
    assert load_checkpoint(checkpoints(folder)[0])[1]["processes"] == 2


@pytest.mark.parametrize("way, other", [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_run_resumes_with_another_number_of_processes_and_sharding(way, other, alone, together):
    folder = together / f"{way}-begun"
    assert ending_step(folder) == 4
    assert train(folder, until=7, **EXACT) == 0
    assert train_together({"folder": str(folder), "sharding": other} | EXACT) == [0, 0]
    assert_same_run(folder, alone[2])


def test_processes_draw_different_dropout_masks(whole, tmp_path):
    """With dropout each process has a generator of its own, which checkpoints keep."""
    runs = [{"folder": str(tmp_path / "whole")}, {"folder": str(tmp_path / "run"), "until": 7}]
    assert train_together(*runs) == [0, 0]
    states = load_checkpoint(checkpoints(tmp_path / "whole")[0])[0]["random"]
    assert not torch.equal(states["cpu.0"], states["cpu.1"])
    assert train_together({"folder": str(tmp_path / "run")}) == [0, 0]
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")


def test_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    run = {"folder": str(tmp_path / "run"), "fault": ["rank_in_step", {"rank": 1, "step": 7}]}
    run["fault"][1]["numbers"] = [signal.SIGTERM]
    assert train_together(run) == [143, 143]
    assert ending_step(tmp_path / "run") == 7
    assert [r["step"] for r in log(tmp_path / "run")] == [*range(1, 8)]


def test_process_exits_when_the_other_dies(tmp_path):
    run = {"folder": str(tmp_path / "run"), "fault": ["rank_in_step", {"rank": 1, "step": 7}]}
    first, second = train_together(run, seconds=60)
    assert second == -signal.SIGKILL and first == 1
    assert "Connection" in output(tmp_path / "run")


def torchrun(options, *flags):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [*flags, str(TESTS / "train_tiny.py"), json.dumps(options)]
    # Processes that are started again must not read the addresses of those before them.
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | fresh
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_torchrun_restarts_processes_without_loss(together, tmp_path):
    """One of two is killed; torchrun stops the other, and both resume from the checkpoint.

    Forked processes order sets and the names of a file alike; those of torchrun do not.
    """
    fault = ["rank_in_step", {"rank": 1, "step": 8}]
    options = {"folder": str(tmp_path / "run"), "sharding": "fsdp", "accumulate": 2}
    done = torchrun(options | EXACT | {"fault": fault}, "--max-restarts=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "exitcode: -9" in done.stderr
    assert ending(tmp_path / "run") == ending(together / "fsdp2")
