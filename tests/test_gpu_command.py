"""The command for a GPU, at a tiny size on the CPU: every part runs, and writes what it found."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from notebooks import NOTEBOOKS

from benchmarks import attention, gpu, language, peers
from benchmarks.harness import Setting
from transformer_lib.tokenizer import PAD

ROOT = Path(__file__).resolve().parent.parent
busy = pytest.mark.timeout(600)  # of processes that share a machine with others
OTHERS = [name for name in gpu.PARTS if name != "tests"]  # test_gpu.py takes a while on a CPU


def command(out, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(out), *arguments]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The files of a dry run of all parts but the tests."""
    out = tmp_path_factory.mktemp("gpu")
    status, text = command(out, "--parts", ",".join(OTHERS), "--commit", "abc")
    assert status == 0, text
    return {path.stem.removeprefix("gpu-"): json.loads(path.read_text()) for path in out.iterdir()}


def run_page(folder, topic, records):
    """Run the code of a page in a folder with the committed records and these of a GPU."""
    page = next(nb for nb in NOTEBOOKS if nb.topic == topic)
    results, here = folder / "results", folder / "chapters" / "appendix"
    here.mkdir(parents=True)
    results.mkdir()
    for path in (ROOT / "results").glob("*.json"):
        if not path.name.startswith("gpu-"):
            (results / path.name).symlink_to(path)
    for name, record in records.items():
        (results / f"gpu-{name}.json").write_text(json.dumps(record))
    code = "\n".join(c.source for c in page.code if "%pip" not in c.source)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    run = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    return subprocess.run(run, cwd=here, env=environment, capture_output=True, text=True)


@pytest.fixture
def part(tmp_path):
    return gpu.Part(
        name="ladder", end=time.monotonic() + 60, target=tmp_path / "gpu-ladder.json",
        device=torch.device("cpu"), dry=True, header={"hardware": "NVIDIA H100 80GB HBM3"},
    )  # fmt: skip


@busy
@pytest.mark.slow
@pytest.mark.plain
def test_dry_run_writes_a_file_for_each_part(dry):
    assert set(dry) == {"run", *OTHERS}
    for name in OTHERS:
        assert dry[name]["status"] == "done" and "errors" not in dry[name]
        assert dry["run"]["parts"][name]["status"] == "done"
    for found in dry.values():
        assert found["dry"] and found["commit"] == "abc" and found["device"] == "cpu"
        assert found["versions"]["torch"] == torch.__version__ and found["hardware"]


@busy
@pytest.mark.slow
@pytest.mark.plain
def test_dry_run_measures_what_the_pages_need(dry):
    assert set(dry["roofline"]["peak_flops"]) == {"fp32", "tf32", "fp16", "bf16"}
    trained = dry["shakespeare"]
    assert trained["compiled"] and not trained["cut_to_fit"]
    assert [record["step"] for record in trained["validation"]] == [4, 8]
    found = {record["step"]: record["validation_loss"] for record in trained["validation"]}
    assert trained["best_validation_loss"] == min(found.values()) == found[trained["best_step"]]
    assert len(trained["sample"]["text"]) == 20
    assert [rung["name"] for rung in dry["ladder"]["rungs"]] == [rung.name for rung in gpu.RUNGS]
    assert all(rung["tokens_per_second"] > 0 for rung in dry["ladder"]["rungs"])
    assert {row["role"] for row in dry["suites"]["rows"]} >= {"ours", "peer"}
    assert math.isfinite(dry["multi30k"]["best_validation_loss"])
    assert {"greedy", "beam 5"} < set(dry["multi30k"])


def test_on_a_gpu_the_model_stands_for_us_without_what_helps_a_cpu():
    made = lambda setting: next(iter(language.cases(setting)))  # noqa: E731
    eager, compiled = Setting(), Setting(compile=True)
    case = gpu.as_on_a_gpu(made(eager), eager)
    assert [one.name for one in case.competitors if one.role == "ours"] == ["ours"]
    assert case.competitors[0].make is not made(eager).competitors[0].make
    names = {one.name for one in case.competitors}
    assert peers.CLEAR not in names and "nn.TransformerEncoder" in names
    small = gpu.as_on_a_gpu(made(compiled), compiled).competitors
    assert [one.role for one in small] == ["ours", "peer"]
    core = next(iter(attention.cases(eager)))
    assert gpu.as_on_a_gpu(core, eager) is core


@busy
@pytest.mark.slow
@pytest.mark.plain
def test_page_on_speed_runs_with_the_records_of_a_dry_run(tmp_path, dry):
    done = run_page(tmp_path, "speed", dry)
    assert done.returncode == 0, done.stderr


@pytest.mark.plain
def test_page_on_speed_runs_without_records_of_a_gpu(tmp_path):
    done = run_page(tmp_path, "speed", {})
    assert done.returncode == 0, done.stderr


@busy
@pytest.mark.slow
@pytest.mark.plain
def test_part_that_runs_the_tests_notes_every_outcome(tmp_path, monkeypatch, part):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['gpu: x']\n")
    file = tmp_path / "tests" / "test_gpu.py"
    file.write_text(
        "import os, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_good():\n    assert os.environ['TRANSFORMER_LIB_TEST_DEVICE'] == 'cpu'\n"
        "@pytest.mark.parametrize('n', [1])\ndef test_bad(n):\n    assert n == 2\n"
    )
    with pytest.raises(RuntimeError, match="pytest ended with status 1"):
        gpu.run_tests(part)
    written = json.loads(part.target.read_text())
    assert written["outcomes"] == {"test_good": "passed", "test_bad[1]": "failed"}
    assert written["counts"] == {"failed": 1, "passed": 1} and "assert 1 == 2" in written["report"]


@busy
@pytest.mark.slow
@pytest.mark.plain
def test_gpu_tests_pass_on_the_cpu_where_they_can():
    environment = os.environ | {"TRANSFORMER_LIB_TEST_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    chosen = "not inductor and not float64 and not cache"
    run = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*run, "-k", chosen], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_gpu_tests_are_deselected_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    environment = {k: v for k, v in os.environ.items() if k != "TRANSFORMER_LIB_TEST_DEVICE"}
    run = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*run, "--collect-only"], cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "no tests collected" in done.stdout and "deselected" in done.stdout


# The pieces


def test_part_keeps_its_findings_and_the_traceback_of_what_failed(part):
    part.note(first=1)
    try:
        raise ValueError("no such kernel")
    except ValueError:
        part.failed("rung TF32")
    part.note(second=2)
    written = json.loads(part.target.read_text())
    assert (written["first"], written["second"]) == (1, 2)
    [problem] = written["errors"]
    assert problem["what"] == "rung TF32" and "ValueError: no such kernel" in problem["traceback"]


def test_mfu_divides_by_the_measured_and_by_the_stated_peak(part):
    assert part.mfu(1e12)["mfu_of_measured_peak"] is None
    part.target.with_name("gpu-roofline.json").write_text('{"peak_flops": {"bf16": 5e14}}')
    found = part.mfu(1e14)
    assert found["mfu_of_measured_peak"] == pytest.approx(0.2)
    assert found["mfu_of_datasheet_peak"] == pytest.approx(1e14 / 989.4e12)


def test_setting_is_that_of_nanogpt():
    training, batch_size = gpu.nanogpt_training(dry=False)
    config = gpu.nanogpt_config(65, dry=False)
    assert (training.n_steps, training.learning_rate, training.warmup) == (5000, 1e-3, 100)
    assert (training.betas, training.epsilon) == ((0.9, 0.99), 1e-8)
    assert (training.weight_decay, training.max_grad_norm) == (0.1, 1.0)
    rates = [training.learning_rate_at(step) for step in (50, 100, 2550, 5000)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 0.55e-3, 0.1e-3])
    assert (training.validate_every, batch_size, config.max_len) == (250, 64, 256)
    assert (config.n_decoder_layers, config.n_heads, config.d_model) == (6, 6, 384)
    assert (config.d_ff, config.dropout, config.attention_dropout) == (1536, 0.2, 0.2)
    assert not config.bias and config.tie_embeddings


@pytest.mark.parametrize("n", [17, 161, 500])
def test_blocks_hold_every_token_once_in_batches_of_one_size(n):
    tokens = list(range(n))
    batches = gpu.all_blocks(tokens, 16, most=6)
    labels = torch.cat([batch.labels.flatten() for batch in batches]).tolist()
    assert labels == tokens[1 : 1 + 16 * ((n - 1) // 16)]
    assert len({batch.inputs.shape for batch in batches}) == 1
    assert all(len(batch.inputs) <= 6 for batch in batches)
    first = batches[0]
    assert torch.equal(first.inputs[0, 1:], first.labels[0, :-1]) and PAD == first.inputs[0, 0]


def test_rungs_differ_from_the_one_before_in_one_thing():
    for before, after in zip(gpu.RUNGS[:7], gpu.RUNGS[1:7], strict=False):
        names = [name for name in vars(before) if name != "name"]
        assert sum(getattr(before, name) != getattr(after, name) for name in names) == 1


def test_parts_are_skipped_for_which_no_time_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "STARTED", time.time())
    ran = []
    monkeypatch.setattr(gpu, "run_part", lambda name, *_: ran.append(name) or "done")
    seconds = str(gpu.PARTS["roofline"][2] + gpu.GRACE + 5)
    options = gpu.parse(["--dry", "--out", str(tmp_path), "--seconds", seconds])
    options.dry = False
    monkeypatch.setattr(gpu, "parse", lambda _: options)
    assert gpu.main([]) == 1 and ran == ["roofline"]
    parts = json.loads((tmp_path / "gpu-run.json").read_text())["parts"]
    assert all("s were left" in parts[name]["status"] for name in gpu.PARTS if name != "roofline")
    assert "GPU_RUN_STARTED" not in os.environ  # or the next run would think it began long ago


@pytest.mark.slow
def test_part_that_hangs_is_stopped_and_keeps_its_findings(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0)
    options = gpu.parse(["--dry", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu.sys, "executable", str(stuck(tmp_path)))
    assert gpu.run_part("ladder", 1.5, options) == "stopped after 2 s"
    written = json.loads((tmp_path / "gpu-ladder.json").read_text())
    assert written == {"status": "stopped after 2 s", "rungs": [1]}


def stuck(folder):
    """A program in the place of Python that writes a finding and never ends."""
    program, target = folder / "stuck", folder / "gpu-ladder.json"
    text = '{"status": "running", "rungs": [1]}'
    program.write_text(f"#!/bin/sh\necho '{text}' > '{target}'\nsleep 60\n")
    program.chmod(0o755)
    return program


def test_unknown_part_and_missing_gpu_are_refused(capsys):
    for arguments, message in (
        (["--parts", "ladder,lader"], "choose from roofline, tests"),
        ([], "there is no CUDA GPU here"),
    ):
        if not arguments and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit):
            gpu.parse(arguments)
        assert message in capsys.readouterr().err
