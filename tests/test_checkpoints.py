"""Checkpoints are written atomically, verified when read, and never executed; kills are real."""

import contextlib
import errno
import hashlib
import json
import math
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import transformer_lib
from transformer_lib import checkpoints as module
from transformer_lib.checkpoints import (
    CheckpointError,
    append_record,
    average_checkpoints,
    checkpoints,
    latest_valid,
    library_versions,
    load_checkpoint,
    locked_folder,
    prune,
    read_records,
    require_own,
    save_checkpoint,
    stored_tensors,
    truncate_log,
    write_atomically,
)
from transformer_lib.models import Transformer, TransformerConfig

FILES = ("checkpoint.json", "model.safetensors", "optimizer.safetensors")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def groups(seed=0):
    weights = {"a.weight": normal(5, 3, seed=seed), "a.bias": normal(5, seed=seed + 1)}
    return {"model": weights, "optimizer": {"a.weight.step": torch.tensor(7.0)}}


def save(folder, step, seed=0):
    return save_checkpoint(folder, step, groups(seed), {"step": step})


def flip(file, at, bit=0):
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 1 << bit
    file.write_bytes(data)


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def bits(tensor):
    return tensor.detach().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)


def steps(folder):
    return [int(path.name.removeprefix("step-")) for path in checkpoints(folder)]


def reseal(folder, text):
    seal = hashlib.sha256(text.encode()).hexdigest()
    (folder / "checkpoint.json").write_text(f"{text}\n{seal}\n")


def record(folder):
    return json.loads((folder / "checkpoint.json").read_text().rsplit("\n", 2)[0])


# saving and loading

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_save_and_load_keep_every_dtype_exactly(tmp_path, dtype):
    values = torch.tensor([0, 1, 2, 127])
    if dtype.is_floating_point:
        values = torch.tensor([0.0, -0.0, 1 / 3, float("inf"), -float("inf"), float("nan"), 1e-7])
    x = values.to(dtype)
    tensors, _ = load_checkpoint(save_checkpoint(tmp_path, 1, {"model": {"x": x}}, {}))
    loaded = tensors["model"]["x"]
    assert loaded.dtype == dtype and loaded.shape == x.shape and loaded.device.type == "cpu"
    assert torch.equal(bits(loaded), bits(x))


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(3.5),
        torch.tensor(True),
        torch.zeros(0, 3),
        normal(5, 3).T,
        normal(5, 6)[1:4, ::2],
        normal(5, 1).expand(5, 7),
        normal(3, 5).requires_grad_(),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,  # one number: a longer one would be copied
    ],
    ids="scalar bool empty transposed strided expanded parameter conjugated negated".split(),
)
def test_save_and_load_keep_every_layout_exactly(tmp_path, x):
    kept = x.detach().clone()
    path = save_checkpoint(tmp_path, 1, {"model": {"x": x}}, {})
    loaded = load_checkpoint(path)[0]["model"]["x"]
    assert loaded.shape == x.shape and loaded.dtype == x.dtype and not loaded.requires_grad
    assert torch.equal(loaded, kept) and torch.equal(x, kept)


def test_save_writes_tensors_that_share_memory_under_each_name(tmp_path):
    base = normal(5, 3)
    group = {"a": base, "b": base, "c": base.view(15), "d": base[1:], "e": base.T}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, {"model": group}, {}))[0]["model"]
    assert loaded.keys() == group.keys()
    assert all(torch.equal(loaded[name], x) for name, x in group.items())
    loaded["a"].zero_()
    assert torch.equal(loaded["b"], base)


def test_save_accepts_a_model_with_tied_weights(tmp_path):
    torch.manual_seed(0)
    first, second = (Transformer(TransformerConfig.tiny(vocab_size=11)) for _ in range(2))
    path = save_checkpoint(tmp_path, 1, {"model": first.state_dict()}, {})
    second.load_state_dict(load_checkpoint(path)[0]["model"])
    assert second.output.weight is second.embedding.weight
    for name, x in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], x)


def test_load_returns_tensors_independent_of_the_file(tmp_path):
    path = save(tmp_path, 1)
    loaded = load_checkpoint(path)[0]["model"]
    file = path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write(b"\xff" * file.stat().st_size)
    assert torch.equal(loaded["a.weight"], groups()["model"]["a.weight"])
    loaded["a.weight"].add_(1)  # and may be written to


def test_load_returns_the_state_as_json_stores_it(tmp_path):
    state = {"text": "Größe\n\u2028", "list": [1, 2.5, None, True], "best": [float("inf"), 0]}
    path = save_checkpoint(tmp_path, 1, {}, state | {"pair": (1, 2), "nested": {"a": {}}})
    tensors, loaded = load_checkpoint(path)
    assert tensors == {} and loaded == state | {"pair": [1, 2], "nested": {"a": {}}}


def test_save_writes_the_files_that_the_chapter_describes(tmp_path):
    path = save(tmp_path / "deep" / "run", 42)
    assert path == tmp_path / "deep" / "run" / "step-00000042"
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    found = record(path)
    assert found["step"] == 42 and found["state"] == {"step": 42}
    assert found["versions"] == library_versions()
    for name in FILES[1:]:
        data = (path / name).read_bytes()
        made = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert found["files"][name] == made
    assert torch.equal(load_file(path / FILES[1])["a.bias"], groups()["model"]["a.bias"])


def test_load_reads_a_checkpoint_made_by_hand(tmp_path):
    save_file({"x": torch.arange(3)}, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    made = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    made = {"step": 5, "files": {"model.safetensors": made}, "versions": {}, "state": {"a": 1}}
    reseal(tmp_path, json.dumps(made, indent=1))
    tensors, state = load_checkpoint(tmp_path)
    assert tensors["model"]["x"].tolist() == [0, 1, 2] and state == {"a": 1}


def test_load_keeps_names_with_dots_and_ignores_other_files(tmp_path):
    path = save_checkpoint(str(tmp_path), 1, {"rank.0": {"x": torch.ones(2)}}, {})
    (path / "notes.txt").write_text("mine")
    assert list(load_checkpoint(str(path))[0]) == ["rank.0"]


def test_save_gives_files_the_default_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_load_unpickles_nothing(tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise AssertionError("something is being unpickled")

    path = save(tmp_path, 1)
    for owner, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch.serialization, "_load", refuse)
    load_checkpoint(path)
    average_checkpoints([path])
    assert latest_valid(tmp_path) == path


def test_library_versions_name_what_wrote_a_file():
    found = library_versions()
    assert found["torch"] == torch.__version__ and found["python"] == sys.version.split()[0]
    assert "safetensors" in found


def test_load_checkpoint_returns_names_in_one_order_whatever_safetensors_does(
    tmp_path, monkeypatch
):
    path = save(tmp_path, 1)
    read = module.load
    monkeypatch.setattr(module, "load", lambda data: dict(reversed(sorted(read(data).items()))))
    assert [*load_checkpoint(path)[0]["model"]] == ["a.bias", "a.weight"]


# corrupted files


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_truncated_file_by_name(tmp_path, name):
    path = save(tmp_path, 1)
    data = (path / name).read_bytes()
    for length in {0, 1, 7, 8, 63, 64, 65, 66, 67, len(data) // 2, len(data) - 1}:
        (path / name).write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=re.escape(f"{path / name} is corrupted: ")):
            load_checkpoint(path)
    (path / name).write_bytes(data + b"\n")
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_checkpoint(path)
    (path / name).write_bytes(data)
    load_checkpoint(path)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return save(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("at", [0, 0.5, 1])
@pytest.mark.parametrize("size", [4096, 2**20, 2**24])
def test_load_checkpoint_hashes_large_files_to_the_last_byte(tmp_path, size, at):
    path = save_checkpoint(tmp_path, 1, {"model": {"weight": torch.zeros(size // 4)}}, {})
    flip(path / "model.safetensors", -1 - round(at * (size - 1)))
    with pytest.raises(CheckpointError, match="model.safetensors.*do not match its hash"):
        load_checkpoint(path)
    with pytest.warns(UserWarning, match="do not match"):
        assert latest_valid(tmp_path) is None


@given(st.sampled_from(FILES), st.integers(0, 10**6), st.integers(0, 7))
def test_load_refuses_a_flipped_bit_by_name(one, name, at, bit):
    flip(one / name, at, bit)
    try:
        with pytest.raises(CheckpointError, match=re.escape(str(one / name))):
            load_checkpoint(one)
    finally:
        flip(one / name, at, bit)
    load_checkpoint(one)


def test_load_refuses_changed_line_endings(tmp_path):
    path = save(tmp_path, 1)
    file = path / "checkpoint.json"
    for ending in (b"\r", b"\r\n"):
        data = file.read_bytes()
        file.write_bytes(data.replace(b"\n", ending, 1))
        with pytest.raises(CheckpointError, match="checkpoint.json"):
            load_checkpoint(path)
        file.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_missing_file_by_name(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"cannot read {path / name}: ")):
        load_checkpoint(path)
    (path / name).mkdir()
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_checkpoint(path)


def test_load_refuses_a_missing_folder_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "step-00000001"))):
        load_checkpoint(tmp_path / "step-00000001")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"files": {}}', '{"files": 3, "state": {}}', '{"state": {}}']
    + ['{"files": {"model.safetensors": {}}, "state": {}}']
    + ['{"files": {"model.safetensors": 3}, "state": {}}']
    + ['{"files": {"../x": {"bytes": 1, "sha256": ""}}, "state": {}}'],
)
def test_load_refuses_an_invalid_record_with_a_valid_hash(tmp_path, text):
    path = save(tmp_path, 1)
    reseal(path, text)
    with pytest.raises(CheckpointError, match="checkpoint.json is corrupted: it does not describe"):
        load_checkpoint(path)


def test_load_refuses_a_file_that_is_not_safetensors_with_a_valid_hash(tmp_path):
    path, data = save(tmp_path, 1), b"not what it says it is"
    (path / "model.safetensors").write_bytes(data)
    made = record(path)
    made["files"]["model.safetensors"] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    reseal(path, json.dumps(made))
    with pytest.raises(CheckpointError, match="safetensors is corrupted: it is not a safetensors"):
        load_checkpoint(path)


def test_load_uses_the_bytes_that_it_hashed(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    file, read = path / "model.safetensors", Path.read_bytes

    def read_and_change(self):
        data = read(self)
        if self == file:
            flip_back = bytearray(data)
            flip_back[-1] ^= 255
            self.write_bytes(flip_back)
        return data

    monkeypatch.setattr(Path, "read_bytes", read_and_change)
    loaded = load_checkpoint(path)[0]["model"]
    assert all(torch.equal(x, groups()["model"][name]) for name, x in loaded.items())


# the latest valid checkpoint


def test_checkpoints_are_listed_by_step_without_other_folders(tmp_path):
    for step in (5, 10**8, 99_999_999, 30):
        save(tmp_path, step)
    for name in ("step-final", "step-1", "step-00000007.copy", "export"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [10**8, 99_999_999, 30, 5]
    assert checkpoints(tmp_path / "nowhere") == []


def test_latest_valid_warns_of_each_corrupted_checkpoint(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    assert latest_valid(tmp_path) == tmp_path / "step-00000004"
    flip(tmp_path / "step-00000004" / "optimizer.safetensors", -1)
    (tmp_path / "step-00000003" / "model.safetensors").unlink()
    with pytest.warns(UserWarning) as caught:
        assert latest_valid(str(tmp_path)) == tmp_path / "step-00000002"
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2 and all("trying the checkpoint before it" in text for text in texts)
    assert "step-00000004/optimizer.safetensors" in texts[0]
    assert "step-00000003/model.safetensors" in texts[1]


def test_latest_valid_returns_none_without_a_valid_checkpoint(tmp_path):
    assert latest_valid(tmp_path) is None and latest_valid(tmp_path / "nowhere") is None
    for step in (1, 2):
        flip(save(tmp_path, step) / "checkpoint.json", 3)
    with pytest.warns(UserWarning) as caught:
        assert latest_valid(tmp_path) is None
    assert len(caught) == 2


def test_save_replaces_a_checkpoint_of_the_same_step(tmp_path):
    for seed in (0, 5, 9):
        path = save(tmp_path, 3, seed)
        loaded = load_checkpoint(path)[0]["model"]
        assert torch.equal(loaded["a.weight"], groups(seed)["model"]["a.weight"])
    path = save_checkpoint(tmp_path, 3, {"other": {"x": torch.ones(1)}}, {})
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.json", "other.safetensors"]
    assert steps(tmp_path) == [3] and not hidden(tmp_path)


def test_prune_keeps_the_newest_two_and_those_named(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step)
    prune(tmp_path, keep=[tmp_path / "step-00000002", tmp_path / "step-00000099"])
    assert steps(tmp_path) == [6, 5, 2]
    prune(tmp_path, keep=[str(tmp_path / "step-00000005")], newest=1)
    assert steps(tmp_path) == [6, 5]
    prune(tmp_path, keep=(), newest=9)
    assert steps(tmp_path) == [6, 5]


def test_prune_recognizes_a_path_spelled_differently(tmp_path, monkeypatch):
    for step in range(1, 5):
        save(tmp_path, step)
    monkeypatch.chdir(tmp_path)
    prune(tmp_path, keep=[Path("step-00000001")])
    assert steps(tmp_path) == [4, 3, 1]


def test_prune_counts_valid_checkpoints_only(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step)
    for step in (3, 5, 6):
        flip(tmp_path / f"step-{step:08d}" / "model.safetensors", -1)
    prune(tmp_path, keep=[])
    assert steps(tmp_path) == [4, 2]


# atomic writes


def test_write_atomically_replaces_files_and_folders(tmp_path):
    path = tmp_path / "new" / "name"

    def folder(*names):
        def write(draft):
            draft.mkdir()
            for name in names:
                (draft / name).write_text(name)

        return write

    for write, expected in [
        (lambda draft: draft.write_text("one"), "one"),
        (lambda draft: draft.write_text("two"), "two"),
        (folder("a", "b"), ["a", "b"]),
        (folder("c"), ["c"]),
        (folder(), []),
        (lambda draft: draft.write_text("three"), "three"),
    ]:
        write_atomically(str(path), write)
        found = sorted(p.name for p in path.iterdir()) if path.is_dir() else path.read_text()
        assert found == expected
        assert [p.name for p in path.parent.iterdir()] == ["name"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_write_atomically_leaves_the_old_version_after_an_error(tmp_path, kind, error):
    path = tmp_path / "name"

    def write(content, fail=False):
        def make(draft):
            if kind == "folder":
                draft.mkdir()
                draft = draft / "inner"
            draft.write_text(content)
            if fail:
                raise error

        return make

    with pytest.raises(error):
        write_atomically(path, write("new", fail=True))
    assert not any(tmp_path.iterdir())
    write_atomically(path, write("old"))
    with pytest.raises(error):
        write_atomically(path, write("new", fail=True))
    assert [p.name for p in tmp_path.iterdir()] == ["name"]
    assert (path / "inner" if kind == "folder" else path).read_text() == "old"


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_write_atomically_leaves_the_old_folder_if_renaming_fails(
    tmp_path, monkeypatch, which, error
):
    path, rename, count = save(tmp_path, 1), os.replace, 0

    def replace(source, target):
        nonlocal count
        count += 1
        if count == which:
            raise error(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        save(tmp_path, 1, seed=5)
    loaded = load_checkpoint(path)[0]["model"]
    assert torch.equal(loaded["a.weight"], groups()["model"]["a.weight"])
    assert not hidden(tmp_path)


def test_write_atomically_syncs_content_before_the_name_and_the_name_before_returning(
    tmp_path, monkeypatch
):
    events, opened, sync, rename = [], {}, os.fsync, os.replace
    open_descriptor = os.open

    def noted_open(path, flags, *rest, **named):
        descriptor = open_descriptor(path, flags, *rest, **named)
        opened[descriptor] = Path(path)
        return descriptor

    def noted_sync(descriptor):
        events.append(("sync", opened[descriptor]))
        sync(descriptor)

    def noted_replace(source, target):
        events.append(("rename", Path(target)))
        rename(source, target)

    monkeypatch.setattr(os, "open", noted_open)
    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    path = save(tmp_path, 1)
    cut = events.index(("rename", path))
    before = [event[1] for event in events[:cut]]
    draft = before[-1]
    assert {p.relative_to(draft).as_posix() for p in before} == {*FILES, "."}
    assert events[cut + 1 :] == [("sync", tmp_path)]


def test_write_atomically_renames_a_complete_draft(tmp_path):
    path = tmp_path / "name"
    path.write_text("old")

    def write(draft):
        assert draft.parent == path.parent  # renaming is one step within a file system only
        draft.write_text("half")
        assert path.read_text() == "old"
        draft.write_text("whole")

    write_atomically(path, write)
    assert path.read_text() == "whole"


def test_write_atomically_removes_drafts_of_killed_processes_only(tmp_path):
    save(tmp_path, 1)
    ours = [".step-00000001.old", ".step-00000002.71", f".step-00000003.{os.getpid()}"]
    others = [".step-00000002.notes", ".git", ".export.71", "log.jsonl", ".step-9.old"]
    others += [".step-00000002.71.old", ".step-x.old"]
    for name in (*ours, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    save(tmp_path, 3)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {*others, "step-00000001", "step-00000003"} - {".step-9.old"} | {"step-9"}


def test_write_atomically_removes_drafts_of_its_own_path_only(tmp_path):
    path, pid = tmp_path / "a+b", os.getpid()
    for name in (f".a+b.{pid}", ".a+b.71", ".aab.71", ".a+b.c.71"):
        (tmp_path / name).write_text("half")
    write_atomically(path, lambda draft: draft.mkdir())  # which fails if the draft is there
    assert {p.name for p in tmp_path.iterdir()} == {"a+b", ".aab.71", ".a+b.c.71"}


def test_folder_set_aside_by_a_killed_process_is_restored(tmp_path):
    path = save(tmp_path, 1)
    path.rename(tmp_path / ".step-00000001.old")
    assert checkpoints(tmp_path) == [path] and not hidden(tmp_path)
    load_checkpoint(path)
    path.rename(tmp_path / ".step-00000001.old")
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, lambda draft: 1 / 0)
    load_checkpoint(path)
    assert not hidden(tmp_path)


def test_folder_set_aside_is_restored_by_one_of_two_processes(tmp_path, monkeypatch):
    path, rename = save(tmp_path, 1), os.replace
    path.rename(tmp_path / ".step-00000001.old")

    def raced(source, target):
        rename(source, target)  # the other process, between our look and our act
        rename(source, target)

    monkeypatch.setattr(os, "replace", raced)
    assert checkpoints(tmp_path) == [path]


def test_save_refuses_a_state_that_json_cannot_store_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="Tensor is not JSON serializable"):
        save_checkpoint(tmp_path, 1, groups(), {"x": torch.ones(1)})
    assert not any(tmp_path.iterdir())


# real failures: full disks, and kills

ROOT = str(Path(transformer_lib.__file__).parent.parent)
SCRIPT = """
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

from transformer_lib.checkpoints import *
from transformer_lib.checkpoints import CheckpointError

warnings.simplefilter("error")
torch.set_num_threads(1)
place = Path(sys.argv[1])


def weights(value, n=1000):
    return {name: {"x": torch.full((n,), float(value))} for name in ("model", "optimizer")}


def value(path):
    tensors, state = load_checkpoint(path)
    found = {x.item() for group in tensors.values() for x in group["x"].unique()} | {state["value"]}
    assert len(found) == 1, found
    return found.pop()


def forked(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child
"""


def run(program, folder):
    """Run a program in a process of its own that has our library; return what it says."""
    env = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT + program, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


EVERY_MOMENT = """
for step in (1, 2):
    save_checkpoint(place / "base", step, weights(step), {"value": step})


def save_and_die(step, moment):
    count, sync = 0, os.fsync

    def tick(event, args):
        nonlocal count
        if "copy" in str(args):
            count += 1
            if count == moment:
                print(json.dumps(event), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    def noted(descriptor):
        tick("os.fsync", ["copy"])
        sync(descriptor)

    os.fsync = noted
    sys.addaudithook(tick)
    save_checkpoint(place / "copy", step, weights(9), {"value": 9})


for step in (3, 2):
    for moment in range(1, 1000):
        shutil.rmtree(place / "copy", ignore_errors=True)
        shutil.copytree(place / "base", place / "copy")
        child = forked(lambda: save_and_die(step, moment))
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found = value(latest_valid(place / "copy"))
        save_checkpoint(place / "copy", 4, weights(4), {"value": 4})
        left = sorted(path.name for path in (place / "copy").iterdir())
        print(json.dumps([step, died, found, left]), flush=True)
        if not died:
            break
"""


@pytest.mark.slow
def test_kill_before_any_operation_leaves_the_old_or_the_new_version(tmp_path):
    said = run(EVERY_MOMENT, tmp_path)
    events, rows = [x for x in said if isinstance(x, str)], [x for x in said if isinstance(x, list)]
    assert {"os.rename", "os.fsync", "open", "os.mkdir"} <= set(events)
    assert events.count("os.rename") == 3  # one for a new name, two for a replacement
    assert [row[1] for row in rows].count(False) == 2
    for step in (2, 3):
        found = [row[2] for row in rows if row[0] == step]
        assert set(found) == {2, 9} and found == sorted(found)  # once new, always new
    assert all(not name.startswith(".") for row in rows for name in row[3])
    assert all("step-00000001" in row[3] and "step-00000002" in row[3] for row in rows)


RANDOM_MOMENTS = """
chance, best = random.Random(0), 0


def go_on(step):
    while True:
        step += 1
        save_checkpoint(place, step, weights(step, 200_000), {"value": step})
        prune(place, keep=[])


start = time.perf_counter()
save_checkpoint(place, 0, weights(0, 200_000), {"value": 0})
seconds = time.perf_counter() - start
for _ in range(40):
    child = forked(lambda: go_on(best))
    time.sleep(chance.uniform(0, 4 * seconds))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = latest_valid(place)
    assert value(found) >= best and found.name == f"step-{int(value(found)):08d}"
    best = int(value(found))
save_checkpoint(place, best + 1, weights(best + 1), {"value": best + 1})
prune(place, keep=[])
print(json.dumps([best, len(checkpoints(place)), len([*place.iterdir()])]))
"""


@pytest.mark.slow
def test_kills_at_forty_random_moments_lose_no_saved_checkpoint(tmp_path):
    ((best, n_checkpoints, n_entries),) = run(RANDOM_MOMENTS, tmp_path)
    assert best >= 1 and n_checkpoints == n_entries == 2


@pytest.mark.slow
def test_kill_while_writing_leaves_the_old_file(tmp_path):
    program = """
def write(draft):
    with draft.open("wb") as file:
        file.write(bytes(10_000))
        file.flush()
        print("half", flush=True)
        time.sleep(100)

write_atomically(place / "file", write)
"""
    (tmp_path / "file").write_text("old")
    command = [sys.executable, "-c", SCRIPT + program, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": ROOT}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"half\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old" and len(hidden(tmp_path)) == 1
    write_atomically(tmp_path / "file", lambda draft: draft.write_text("new"))
    assert (tmp_path / "file").read_text() == "new" and not hidden(tmp_path)


LIMITED = """
def limited(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for step in (1, 2):
        try:
            save_checkpoint(place, step, weights(9), {"value": 9})
        except CheckpointError as error:
            os.write(1, json.dumps(str(error)).encode() + b"\\n")


save_checkpoint(place, 1, weights(1), {"value": 1})
for limit in (0, 10, 1000, 4000):
    os.waitpid(forked(lambda: limited(limit)), 0)
    assert [path.name for path in place.iterdir()] == ["step-00000001"]
    assert value(latest_valid(place)) == 1
"""


def test_file_size_limit_leaves_the_last_valid_checkpoint_and_no_draft(tmp_path):
    said = run(LIMITED, tmp_path)
    assert len(said) == 8
    for i, text in enumerate(said):
        path = tmp_path / f"step-{1 + i % 2:08d}"
        assert text.startswith(f"save_checkpoint: cannot write {path}: ")
        assert "File too large" in text
        assert text.endswith(f"Last valid checkpoint: {tmp_path / 'step-00000001'}")


@contextlib.contextmanager
def small_disk(place, kilobytes):
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if done.returncode:
        pytest.skip(f"no small disk may be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_full_disk_leaves_the_last_valid_checkpoint_and_no_draft(tmp_path):
    with small_disk(tmp_path, 256):
        large = {"model": {"x": normal(25_000)}}  # 100 kB
        first = save_checkpoint(tmp_path, 1, large, {})
        second = save_checkpoint(tmp_path, 2, large, {})
        for step in (3, 2):
            with pytest.raises(CheckpointError, match="No space left on device") as caught:
                save_checkpoint(tmp_path, step, large, {})
            assert f"step-{step:08d}: " in str(caught.value)
            assert str(caught.value).endswith(f"Last valid checkpoint: {second}")
            assert latest_valid(tmp_path) == second and not hidden(tmp_path)
        prune(tmp_path, keep=[], newest=1)
        assert not first.exists()
        third = save_checkpoint(tmp_path, 3, large, {})
        assert latest_valid(tmp_path) == third


def test_failed_save_says_that_there_is_no_valid_checkpoint(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="Last valid checkpoint: none"):
        save(tmp_path / "file", 1)


# logs


def test_read_records_returns_what_was_appended(tmp_path):
    log = tmp_path / "new" / "log.jsonl"
    records = [{"step": i, "loss": 1 / (i + 1), "note": "Größe\n\u2028"} for i in range(5)]
    for entry in records:
        append_record(log, entry)
    assert read_records(str(log)) == records
    assert log.read_bytes().count(b"\n") == 5


@given(st.integers(0, 100))
def test_read_records_leaves_out_a_truncated_line_only(tmp_path_factory, missing):
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    for step in range(3):
        append_record(log, {"step": step, "loss": 0.5})
    data = log.read_bytes()
    log.write_bytes(data[: max(0, len(data) - missing)])
    whole = log.read_bytes().count(b"}")  # a line may have lost no more than its end
    expected = [{"step": step, "loss": 0.5} for step in range(whole)]
    assert read_records(log) == expected
    append_record(log, {"step": 7})
    append_record(log, {"step": 8})
    assert read_records(log) == [*expected, {"step": 7}, {"step": 8}]


def test_append_record_writes_json_that_every_reader_accepts(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    log = tmp_path / "log.jsonl"
    append_record(log, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5, "e": 2})
    found = json.loads(log.read_text(), parse_constant=refuse)
    assert found == {"a": None, "b": None, "c": None, "d": 1.5, "e": 2}


def test_append_record_names_the_file_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    log = tmp_path / "file" / "log.jsonl"
    with pytest.raises(CheckpointError, match=re.escape(f"cannot write {log}: ")):
        append_record(log, {"step": 1})

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    log = tmp_path / "log.jsonl"
    with pytest.raises(CheckpointError, match=re.escape(f"cannot write {log}: No space left")):
        append_record(log, {"step": 1})


# locks


HOLD = """
import sys
from transformer_lib.checkpoints import CheckpointError, locked_folder
try:
    with locked_folder(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except CheckpointError as error:
    print(error, flush=True)
"""


def holder(folder):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_locked_folder_has_one_writer_until_its_process_dies(tmp_path):
    folder = tmp_path / "new" / "run"
    message = f"{folder} is in use by another run; stop it or choose another folder"
    with holder(folder) as first:
        assert first.stdout.readline() == "held\n"
        with holder(folder) as second:
            assert second.communicate()[0] == f"{message}\n"
        with pytest.raises(CheckpointError, match=re.escape(message)), locked_folder(folder):
            pass
        first.kill()
        first.wait()
        with locked_folder(folder), pytest.raises(CheckpointError), locked_folder(folder):
            pass
    with pytest.raises(KeyError), locked_folder(folder):
        raise KeyError
    with locked_folder(folder):
        pass


def test_locked_folder_works_without_file_locks(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    with locked_folder(tmp_path), locked_folder(tmp_path):
        pass
    monkeypatch.setattr(module, "fcntl", None)
    with locked_folder(tmp_path), locked_folder(tmp_path):
        pass


def test_locked_folder_says_what_to_do_if_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    message = f"cannot write {tmp_path / 'file'}: File exists; choose another folder"
    with pytest.raises(CheckpointError, match=re.escape(message)), locked_folder(tmp_path / "file"):
        pass


def test_read_records_leaves_out_zeros_and_invalid_characters(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n' + bytes(40) + b'\n\xff\xfe{"step": 2}\n{"step": 3}\n')
    assert read_records(log) == [{"step": 1}, {"step": 3}]


def test_truncate_log_removes_records_of_later_steps(tmp_path):
    log = tmp_path / "log.jsonl"
    truncate_log(log, after=3)
    assert not log.exists()
    for entry in [{"config": 1}, *({"step": step, "x": "ä"} for step in range(1, 6))]:
        append_record(log, entry)
    with log.open("a") as file:
        file.write('{"step": 6, "lo')
    truncate_log(str(log), after=3)
    assert read_records(log) == [{"config": 1}, *({"step": step, "x": "ä"} for step in (1, 2, 3))]
    truncate_log(log, after=0)
    assert read_records(log) == [{"config": 1}] and not hidden(tmp_path)


# averages


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_average_checkpoints_is_the_mean_in_float64(tmp_path, dtype):
    xs = [1000 * normal(7, 5, seed=seed, dtype=torch.float64).to(dtype) for seed in range(5)]
    paths = [
        save_checkpoint(tmp_path, i, {"model": {"x": x, "n": torch.tensor([i, 7])}}, {})
        for i, x in enumerate(xs)
    ]
    found = average_checkpoints(paths)
    expected = torch.stack([x.double() for x in xs]).mean(0).to(dtype)
    assert found["x"].dtype == dtype and found.keys() == {"x", "n"}
    torch.testing.assert_close(found["x"], expected, rtol=0, atol=0 if dtype.itemsize < 4 else 1e-4)
    assert found["n"].tolist() == [4, 7]
    assert torch.equal(average_checkpoints(paths[2:3])["x"], xs[2])


def test_average_checkpoints_does_not_overflow(tmp_path):
    big = {"model": {"x": torch.full((3,), 6e4, dtype=torch.float16)}}
    paths = [save_checkpoint(tmp_path, step, big, {}) for step in range(3)]
    assert average_checkpoints(paths)["x"].tolist() == [6e4] * 3
    shift = [{"model": {"x": torch.tensor([1.0 + i * 2**-23])}} for i in range(3)]
    paths = [save_checkpoint(tmp_path, step, group, {}) for step, group in enumerate(shift)]
    assert average_checkpoints(paths)["x"].item() == 1 + 2**-23


def test_average_checkpoints_accepts_another_group(tmp_path):
    paths = [
        save_checkpoint(tmp_path, i, {"average": {"x": torch.tensor([float(i)])}}, {})
        for i in range(3)
    ]
    assert average_checkpoints([str(path) for path in paths], "average")["x"].item() == 1


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"y": torch.zeros(3)},
        {"x": torch.zeros(3), "y": torch.zeros(3)},
        {"x": torch.zeros(1)},
        {"x": torch.zeros(3).long()},
    ],
)
def test_average_checkpoints_refuses_different_tensors(tmp_path, other):
    first = save_checkpoint(tmp_path, 1, {"model": {"x": torch.zeros(3)}}, {})
    second = save_checkpoint(tmp_path, 2, {"model": other}, {})
    for a, b in ([first, second], [second, first]):
        must = re.escape(f"average_checkpoints: {b} must hold the tensors of {a}, {{")
        with pytest.raises(ValueError, match=must + r".*\}, got \{.*\}$"):
            average_checkpoints([a, b])


def test_average_checkpoints_names_what_differs_on_both_sides(tmp_path):
    paths = [
        save_checkpoint(tmp_path, i, {"model": {"x": torch.zeros(i), "y": torch.ones(2)}}, {})
        for i in (3, 5)
    ]
    message = "{'x': ((3,), torch.float32)}, got {'x': ((5,), torch.float32)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        average_checkpoints(paths)


def test_average_checkpoints_refuses_a_corrupted_checkpoint(tmp_path):
    paths = [save(tmp_path, step) for step in (1, 2)]
    flip(paths[1] / "model.safetensors", -1)
    with pytest.raises(CheckpointError, match="step-00000002/model.safetensors"):
        average_checkpoints(paths)


# refusals


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda at: save(at, -1), "save_checkpoint: step must be at least 0, got -1"),
        (
            lambda at: save_checkpoint(at, 1, {"../x": {}}, {}),
            "save_checkpoint: names of files must be plain, got '../x'",
        ),
        (lambda at: save_checkpoint(at, 1, {"": {}}, {}), "must be plain, got ''"),
        (lambda at: prune(at, keep=[], newest=0), "prune: newest must be at least 1, got 0"),
        (
            lambda at: average_checkpoints([]),
            "average_checkpoints: there must be tensors to average, got none",
        ),
        (
            lambda at: average_checkpoints([save(at, 1)], "average"),
            "step-00000001 must hold 'average', got ['model', 'optimizer']",
        ),
    ],
)
def test_checkpoints_refuse_bad_input_with_both_values(tmp_path, call, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=re.escape(message)):
            call(tmp_path)


# folders and files of others


def test_require_own_accepts_a_new_an_empty_and_its_own_folder(tmp_path):
    options = {"names": ("a", "b"), "is_ours": lambda folder: (folder / "a").read_text() == "us"}
    options |= {"writer": "export", "also": ("c",)}
    require_own(tmp_path / "new", **options)
    require_own(tmp_path, **options)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("us")
    require_own(tmp_path, **options)
    (tmp_path / "c").unlink()
    require_own(tmp_path, **options)
    (tmp_path / "a").write_text("them")
    with pytest.raises(ValueError, match=r"files that export did not write \(a, b\); choose anot"):
        require_own(tmp_path, **options)
    (tmp_path / "a").write_text("us")
    for name in "zyxd":
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"did not write \(d, x, y\)"):
        require_own(tmp_path, **options)
    with pytest.raises(ValueError, match="b is a file; choose another folder"):
        require_own(tmp_path / "b", **options)


def test_require_own_refuses_a_part_of_what_the_writer_writes(tmp_path):
    (tmp_path / "a").write_text("us")
    with pytest.raises(ValueError, match=r"did not write \(a\)"):
        require_own(tmp_path, ("a", "b"), lambda folder: True, writer="export")


def test_stored_tensors_are_listed_without_their_numbers(tmp_path):
    tensors, file = {"x": normal(3, 5).half(), "y": torch.arange(7)}, tmp_path / "m.safetensors"
    save_file(tensors, file)
    found = {stored.name: stored for stored in stored_tensors(file)}
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        "x": ((3, 5), "F16"), "y": ((7,), "I64"),
    }  # fmt: skip
    assert all(torch.equal(stored.read(), tensors[name]) for name, stored in found.items())
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="m.safetensors is corrupted: .*; download it again"):
        stored_tensors(file)
