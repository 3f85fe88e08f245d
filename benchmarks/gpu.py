"""Run everything that needs a GPU, in one command of at most eight minutes.

make gpu                                          all parts; writes results/gpu-*.json
make gpu ARGS="--dry"                             every part at a tiny size on the CPU; out/gpu-dry/
python3 -m benchmarks.gpu --data DIR --out DIR    the same without this repository's .venv
python3 -m benchmarks.gpu --parts ladder,tests    some parts

Each part is a process of its own with its own time limit, and writes its file after every
measurement, so a part that fails, hangs or is killed loses neither the others nor what it has.

Packages, beside Python >= 3.11 and torch >= 2.6 for CUDA, with triton and numpy:
  required    jaxtyping wadler-lindig safetensors tqdm tokenizers
  tests       pytest pluggy iniconfig packaging pygments hypothesis sortedcontainers
  BLEU        sacrebleu portalocker regex tabulate colorama lxml
  peers       x-transformers einops einx frozendict loguru torch-einops-utils (or fewer peers)
"""

import argparse
import contextlib
import dataclasses
import datetime
import gc
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import attention, generation, language, multihead, translation
from benchmarks.__main__ import commit, hardware, table, versions, write
from benchmarks.harness import Case, Setting, as_dicts, run_suite, standing
from benchmarks.peers import CLEAR
from transformer_lib.attention import attend
from transformer_lib.batches import BlockBatches, Blocks, PairBatches
from transformer_lib.bleu import bleu
from transformer_lib.checkpoints import load_checkpoint
from transformer_lib.cost import decoder_only_cost
from transformer_lib.datasets import multi30k, stdlib_source, tiny_shakespeare
from transformer_lib.devices import autocast, measured_peak
from transformer_lib.distributed import Worker
from transformer_lib.losses import language_loss, translation_loss
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig
from transformer_lib.multihead import MultiHeadAttention
from transformer_lib.recipes import RECIPES
from transformer_lib.sampling import Sampler, sample
from transformer_lib.tokenizer import Tokenizer
from transformer_lib.trainer import Trainer, TrainingConfig
from transformer_lib.translation import Translator

ROOT = Path(__file__).resolve().parent.parent
DATASHEET = {  # dense bf16 operations per second, by the name that CUDA reports
    "H100 PCIe": 756e12, "H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "L4": 121e12,
    "T4": 65e12,
}  # fmt: skip


@dataclass(kw_only=True)
class Part:
    """One part of the run: where it computes, how long it may take, and what it has found.

    Args:
        end: when it must be done, on the clock of time.monotonic.
        target: the JSON file of its findings.
    """

    name: str
    end: float
    target: Path
    device: torch.device
    dry: bool
    header: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until this part must be done."""
        return self.end - time.monotonic()

    def note(self, **found: Any) -> None:
        """Add findings and write the file."""
        self.found |= found
        seconds = round(time.monotonic() - self.began, 1)
        write(self.header | {"seconds": seconds} | self.found, self.target)

    def failed(self, what: str) -> None:
        """Keep the traceback of the exception that is being handled, and go on."""
        text = traceback.format_exc()[-6000:]
        self.note(errors=[*self.found.get("errors", []), {"what": what, "traceback": text}])
        say(f"{self.name}: {what} failed\n{text}")

    def peak_flops(self, precision: str = "bf16") -> float | None:
        """The measured peak, if the part roofline has found it."""
        path = self.target.with_name("gpu-roofline.json")
        if not path.exists():
            return None
        peaks = json.loads(path.read_text()).get("peak_flops", {})
        return peaks.get(precision)

    def mfu(self, flops_per_second: float) -> dict[str, float | None]:
        """Give a rate in absolute terms, and as a fraction of the measured and the stated peak."""
        measured, name = self.peak_flops(), self.header["hardware"]
        stated = next((peak for key, peak in DATASHEET.items() if key in name), None)
        return {
            "flops_per_second": flops_per_second,
            "mfu_of_measured_peak": flops_per_second / measured if measured else None,
            "mfu_of_datasheet_peak": flops_per_second / stated if stated else None,
        }


STARTED = float(os.environ.get("GPU_RUN_STARTED", time.time()))


def say(text: str) -> None:
    """Print a line with the seconds since the command began."""
    print(f"[{time.time() - STARTED:6.1f} s] {text}", flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give back what the last measurement held, and count the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def compile_in_place(model: nn.Module, part: Part, mode: str | None = None) -> None:
    """torch.compile; in a dry run, its tracing alone, which needs no C++ compiler."""
    if part.dry:
        model.compile(backend="eager")
    else:  # shapes are fixed here: one graph to train, one to validate
        model.compile(dynamic=False, mode=mode)


# Part: roofline


def roofline(part: Part) -> None:
    """Measure peak matmul rates, bandwidth, and what a kernel launch and a call cost the host."""
    size, repeats = (32, 1) if part.dry else (None, 5)
    flops, bandwidth = {}, 0.0
    for name in ("fp32", "tf32", "fp16", "bf16"):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        precision = "fp32" if name == "tf32" else name
        peak = measured_peak(part.device, precision, size=size, repeats=repeats)
        flops[name], bandwidth = peak.flops, max(bandwidth, peak.bandwidth)
        part.note(peak_flops=flops, peak_bandwidth=bandwidth)
        say(f"roofline: {name} {peak.flops / 1e12:.1f} TFLOP/s, copy {bandwidth / 1e9:,.0f} GB/s")
    torch.set_float32_matmul_precision("highest")
    rates = {}
    for n in (32, 64) if part.dry else (256, 512, 1024, 2048, 4096, 8192, 16384):
        rates[n] = measured_peak(part.device, "bf16", size=n, repeats=repeats).flops
        part.note(bf16_flops_by_matrix_size=rates)
    part.note(host=host_costs(part.device, 20 if part.dry else 2000))


@torch.no_grad()
def host_costs(device: torch.device, n: int) -> dict[str, float]:
    """Seconds per call while the device keeps up: what Python and the launch of a kernel cost."""
    x = torch.zeros(8, device=device)
    q = torch.randn(1, 2, 16, 16, device=device)
    rows = torch.randn(1, 16, 32, device=device)
    ours = MultiHeadAttention(32, 2).to(device).eval()
    theirs = nn.MultiheadAttention(32, 2, batch_first=True, device=device).eval()
    calls: dict[str, Callable[[], object]] = {
        "add_": lambda: x.add_(1),
        "F.scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(q, q, q),
        "attend": lambda: attend(q, q, q),
        "MultiHeadAttention": lambda: ours(rows),
        "nn.MultiheadAttention": lambda: theirs(rows, rows, rows, need_weights=False),
    }
    found = {}
    for name, call in calls.items():
        times = []
        for _ in range(4):
            synchronize(device)
            start = time.perf_counter()
            for _ in range(n):
                call()
            synchronize(device)
            times.append((time.perf_counter() - start) / n)
        found[name] = min(times[1:])
        say(f"roofline: {name} costs the host {1e6 * found[name]:.1f} µs")
    times = []
    for _ in range(n // 10 + 1):
        start = time.perf_counter()
        x.add_(1)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return found | {"add_ and synchronize": statistics.median(times)}


# Part: tests


def run_tests(part: Part) -> None:
    """Run the tests marked gpu in pytest, and note each outcome as soon as it is known."""
    measured = part.target.with_name("gpu-tests-measured.jsonl")
    measured.unlink(missing_ok=True)
    environment = os.environ | {
        "TRANSFORMER_LIB_TEST_DEVICE": part.device.type,
        "TRANSFORMER_LIB_TEST_RECORD": str(measured),
    }
    chosen = ["-k", "not inductor and not synchron"] if part.dry else []
    command = [
        sys.executable, "-u", "-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-v", "--tb=short",
        "-p", "no:cacheprovider", "-W", "default", "--durations=10", *chosen,
    ]  # fmt: skip
    outcomes: dict[str, str] = {}
    lines: list[str] = []
    piped = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **piped) as run:
        timer = threading.Timer(part.left, run.kill)
        timer.start()
        for line in run.stdout:
            lines.append(line)
            seen = re.match(r"\S*::(.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", line)
            if seen:
                outcomes[seen[1]] = seen[2].lower()
                part.note(outcomes=outcomes)
                say(f"tests: {seen[2]:<7} {seen[1]}")
        status = run.wait()
        timer.cancel()
    counts = {kind: list(outcomes.values()).count(kind) for kind in sorted({*outcomes.values()})}
    text = "".join(lines).replace(f"{ROOT}/", "").replace(f"{sys.prefix}/", "")
    if measured.exists():
        records = [json.loads(line) for line in measured.read_text().splitlines()]
        part.note(measured=records)
        measured.unlink()
    part.note(exit_status=status, counts=counts, report=text[-25_000:] if status else text[-2500:])
    say(f"tests: exit status {status}, {counts}")
    if status:
        print(text[-9000:], flush=True)
        raise RuntimeError(f"pytest ended with status {status}: {counts}")


# Part: Tiny Shakespeare at nanoGPT's setting for a GPU


def nanogpt_config(vocab_size: int, dry: bool) -> TransformerConfig:
    """nanoGPT's config/train_shakespeare_char.py: 6 layers, 6 heads, width 384, no biases."""
    width, layers, block = (24, 2, 16) if dry else (384, 6, 256)
    return TransformerConfig(
        vocab_size=vocab_size, d_model=width, n_heads=6, d_ff=4 * width, n_decoder_layers=layers,
        max_len=block, dropout=0.2, attention_dropout=0.2, positions="learned", norm="pre",
        activation="gelu", bias=False,
    )  # fmt: skip


def nanogpt_training(dry: bool) -> tuple[TrainingConfig, int]:
    """The optimizer and schedule of the same file, and its batch size."""
    n_steps, warmup, every, batch_size = (8, 2, 4, 4) if dry else (5000, 100, 250, 64)
    training = TrainingConfig(
        n_steps=n_steps, learning_rate=1e-3, schedule="cosine", warmup=warmup, min_lr_ratio=0.1,
        max_grad_norm=1.0, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.1, precision="bf16",
        validate_every=every, save_every=n_steps, seed=1337,
    )  # fmt: skip
    return training, batch_size


def shakespeare_texts(dry: bool) -> tuple[str, str]:
    if not dry:
        return tiny_shakespeare()
    text = stdlib_source(6000)
    return text[:5000], text[5000:]


def all_blocks(tokens: list[int], block: int, most: int = 128) -> list[Blocks]:
    """Cut a text into blocks, none left out but a rest, in batches of one size."""
    n = (len(tokens) - 1) // block
    rows = torch.tensor(tokens[: n * block + 1])
    inputs, labels = rows[:-1].view(n, block), rows[1:].view(n, block)
    size = max(size for size in range(1, min(most, n) + 1) if n % size == 0)
    return [Blocks(*pair) for pair in zip(inputs.split(size), labels.split(size), strict=True)]


def shakespeare(part: Part) -> None:
    """Train on Tiny Shakespeare as nanoGPT does on one GPU; its README gives 1.4697 as best."""
    train, val = shakespeare_texts(part.dry)
    tokenizer = Tokenizer.characters([train + val])
    ids, held = tokenizer.encode_all([train, val])
    config = nanogpt_config(tokenizer.vocab_size, part.dry)
    training, batch_size = nanogpt_training(part.dry)
    validation = all_blocks(held, config.max_len)
    say(f"shakespeare: {len(ids):,} + {len(held):,} characters, {tokenizer.vocab_size} tokens")
    torch.manual_seed(training.seed)
    model = DecoderOnly(config)
    initial = {name: x.clone() for name, x in model.state_dict().items()}
    sizes = {"block": config.max_len, "batch_size": batch_size}
    part.note(
        model=dataclasses.asdict(config), parameters=sum(p.numel() for p in model.parameters()),
        published={"best_validation_loss": 1.4697, "source": "README of nanoGPT"},
        validation_tokens=sum(batch.n_tokens for batch in validation), **sizes,
    )  # fmt: skip
    worker = Worker(device=part.device)

    def probe(model: nn.Module, n: int) -> float:
        """Take n steps, which compile what must be compiled, and time the last half of them."""
        times: list[float] = []
        short = dataclasses.replace(training, n_steps=n, warmup=0, validate_every=None)
        listen = lambda record: times.append(time.perf_counter())  # noqa: E731
        trainer = Trainer(
            model, BlockBatches(ids, **sizes, drop_last=True), short, loss=language_loss,
            worker=worker, log=listen, validation=validation,
        )  # fmt: skip
        trainer.fit()
        trainer.validate()
        late = times[n // 2 : n]
        return (late[-1] - late[0]) / (len(late) - 1)

    start = time.perf_counter()
    compiled = True
    try:
        compile_in_place(model, part)
        seconds = probe(model, 6 if part.dry else 60)
    except Exception:
        part.failed("torch.compile")
        torch.manual_seed(training.seed)
        model, compiled = DecoderOnly(config), False
        seconds = probe(model, 6 if part.dry else 30)
    model.load_state_dict(initial)
    part.note(compiled=compiled, probe_seconds=time.perf_counter() - start, probe_step=seconds)
    reserve = 2 if part.dry else 30  # for validation, checkpoints and the sample
    affordable = int((part.left - reserve) / (1.05 * seconds))
    n_steps = max(min(training.n_steps, affordable), training.warmup + 1)
    cut = n_steps < training.n_steps
    training = dataclasses.replace(training, n_steps=n_steps, save_every=n_steps)
    part.note(training=dataclasses.asdict(training), cut_to_fit=cut)
    say(f"shakespeare: {1e3 * seconds:.2f} ms per step, {n_steps:,} steps, cut: {cut}")
    free_memory(part.device)
    folder = Path(tempfile.mkdtemp(prefix="shakespeare-"))
    try:
        best = train_shakespeare(part, model, training, validation, ids, sizes, worker, folder)
        write_sample(part, config, best, tokenizer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train_shakespeare(
    part: Part, model: DecoderOnly, training: TrainingConfig, validation: list[Blocks],
    ids: list[int], sizes: dict[str, int], worker: Worker, folder: Path,
) -> dict[str, Tensor]:  # fmt: skip
    """Train, note the curves as they grow, and return the weights of the best validation."""
    curve: list[dict[str, float]] = []
    losses: list[tuple[int, float]] = []
    began = time.perf_counter()

    def listen(record: dict[str, Any]) -> None:
        if "loss" in record and (record["step"] % 25 == 0 or record["step"] == 1):
            losses.append((record["step"], round(record["loss"], 4)))
        if "validation_loss" in record:
            seconds = time.perf_counter() - began
            curve.append(record | {"seconds": round(seconds, 2)})
            part.note(validation=curve, training_loss=losses)
            say(f"shakespeare: step {record['step']:,}, validation {record['validation_loss']:.4f}")

    trainer = Trainer(
        model, BlockBatches(ids, **sizes, drop_last=True), training, loss=language_loss,
        validation=validation, folder=folder, worker=worker, log=listen,
    )  # fmt: skip
    trainer.fit()
    synchronize(part.device)
    total = time.perf_counter() - began
    rate = trainer.tokens / trainer.seconds
    shape = {"batch_size": sizes["batch_size"], "length": sizes["block"]}
    flops = decoder_only_cost(model.config, **shape).training_flops
    per_step = trainer.seconds / trainer.step
    part.note(
        best_validation_loss=trainer.best, best_step=trainer.best_step, steps=trainer.step,
        tokens_per_second=rate, seconds_in_steps=trainer.seconds, seconds_in_all=total,
        seconds_per_step=per_step, peak_mib=peak_mib(part.device), **part.mfu(flops / per_step),
    )  # fmt: skip
    say(f"shakespeare: best {trainer.best:.4f} at {trainer.best_step:,}, {rate:,.0f} tokens/s")
    return load_checkpoint(folder / f"step-{trainer.best_step:08d}")[0]["model"]


def write_sample(
    part: Part, config: TransformerConfig, weights: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    """Write 500 characters with the best weights; the context holds fewer, so in several goes."""
    model = DecoderOnly(config)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if set(missing) - {"output.weight"}:
        raise RuntimeError(f"the checkpoint lacks {missing}")
    model.to(part.device).eval()
    wanted, context = (20, config.max_len // 2) if part.dry else (500, config.max_len // 2)
    torch.manual_seed(0)
    written = tokenizer.encode("\n")
    start = time.perf_counter()
    while len(written) <= wanted:
        prompt = torch.tensor([written[-context:]], device=part.device)
        n_new = min(wanted + 1 - len(written), config.max_len - prompt.shape[1])
        choose = Sampler(temperature=0.8)
        written += sample(model, prompt, max_len=n_new, sampler=choose, end=None)[0]
    seconds = time.perf_counter() - start
    text = tokenizer.decode(written[1:])
    part.note(sample={"text": text, "temperature": 0.8, "seconds": seconds})
    say(f"shakespeare: a sample in {seconds:.1f} s:\n{text}")


# Part: the ladder from a first draft to a fast step on one GPU


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way to take the same training step; each rung changes one thing of the one before."""

    name: str
    tf32: bool = True
    precision: str = "bf16"
    math_attention: bool = False
    compile: str | None = None
    fused: bool = True
    read_loss: bool = False
    batch_size: int = 64


FIRST = {"fused": False, "read_loss": True}
RUNGS = (
    Rung(name="fp32, eager", tf32=False, precision="fp32", math_attention=True, **FIRST),
    Rung(name="TF32", precision="fp32", math_attention=True, **FIRST),
    Rung(name="bf16 autocast", math_attention=True, **FIRST),
    Rung(name="fused attention", **FIRST),
    Rung(name="torch.compile", compile="default", **FIRST),
    Rung(name="fused AdamW", compile="default", read_loss=True),
    Rung(name="no synchronization in a step", compile="default"),
    Rung(name="CUDA graphs", compile="reduce-overhead"),
    Rung(name="batch of 256", compile="default", batch_size=256),
)


def ladder(part: Part) -> None:
    """Measure tokens per second, rung by rung, for the model of the Shakespeare part."""
    config = nanogpt_config(69, part.dry)
    models: dict[Any, DecoderOnly] = {}
    torch.manual_seed(0)
    initial = DecoderOnly(config).state_dict()
    rows: list[dict[str, Any]] = []
    part.note(model=dataclasses.asdict(config), rungs=rows)
    for rung in RUNGS:
        needed = 25 if rung.compile == "reduce-overhead" or rung.batch_size > 64 else 6
        if not part.dry and part.left < needed:
            rows.append({"name": rung.name, "skipped": f"{part.left:.0f} s were left"})
            part.note(rungs=rows)
            continue
        key = (rung.compile, rung.batch_size)
        try:
            free_memory(part.device)
            if key not in models:
                models.clear()
                torch._dynamo.reset()
                models[key] = DecoderOnly(config).to(part.device)
                if rung.compile is not None:
                    mode = None if rung.compile == "default" else rung.compile
                    compile_in_place(models[key], part, mode)
            models[key].load_state_dict(initial)
            row = climb(part, rung, models[key])
            rows.append(dataclasses.asdict(rung) | row)
            part.note(rungs=rows)
            say(
                f"ladder: {rung.name:<30} {row['tokens_per_second']:>12,.0f} tokens/s "
                f"{1e3 * row['seconds_per_step']:8.2f} ms, loss {row['loss']:.3f}"
            )
        except Exception:
            models.clear()
            rows.append({"name": rung.name, "failed": True})
            part.failed(f"rung {rung.name}")


def climb(part: Part, rung: Rung, model: DecoderOnly) -> dict[str, Any]:
    """Train on a few fixed batches, and time steps after a warm-up."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device, block = part.device, model.config.max_len
    batch_size = 2 if part.dry else rung.batch_size
    generator = torch.Generator().manual_seed(0)
    shape = (4, batch_size, block + 1)
    rows = torch.randint(4, 69, shape, generator=generator).to(device)
    batches = [Blocks(x[:, :-1], x[:, 1:]) for x in rows]
    options = {"fused": True} if rung.fused else {}  # by default it is not fused
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **options)
    torch.set_float32_matmul_precision("high" if rung.tf32 else "highest")
    chosen = sdpa_kernel(SDPBackend.MATH) if rung.math_attention else contextlib.nullcontext()

    def step(i: int) -> Tensor:
        batch = batches[i % len(batches)]
        torch.compiler.cudagraph_mark_step_begin()
        with autocast(device, rung.precision):
            loss = language_loss(model, batch) / batch.n_tokens
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if rung.read_loss:
            loss.item()
        return loss.detach()

    model.train()
    with chosen:
        began = time.perf_counter()
        for i in range(2 if part.dry else 5):
            loss = step(i)
        synchronize(device)
        warmup, n = time.perf_counter() - began, 0
        free_memory(device)
        start = time.perf_counter()
        times = [start]
        limit = 0.0 if part.dry else 2.5
        while n < 3 or (times[-1] - start < limit and n < 1000):
            for _ in range(5):
                loss = step(n)
                n += 1
            synchronize(device)
            times.append(time.perf_counter())
    spans = [(b - a) / 5 for a, b in zip(times, times[1:], strict=False)]
    seconds = statistics.median(spans)
    torch.set_float32_matmul_precision("highest")
    cost_of = decoder_only_cost(model.config, batch_size=batch_size, length=block)
    return {
        "seconds_per_step": seconds, "tokens_per_second": batch_size * block / seconds,
        "slowest_and_fastest": [max(spans), min(spans)], "steps": n, "warmup_seconds": warmup,
        "peak_mib": peak_mib(device), "loss": float(loss),
        **part.mfu(cost_of.training_flops / seconds),
    }  # fmt: skip


# Part: the benchmark suites


SUITES = "GPU_SUITES"  # an environment variable: a pattern for some of "language, compiled" ...


def kind(setting: Setting) -> str:
    return ", compiled" if setting.compile else ", eager"


def suites(part: Part) -> None:
    """Measure the library against its peers in bf16, eager and compiled, in interleaved rounds."""
    eager = Setting(device=part.device.type, dtype=torch.bfloat16)
    graphs = dataclasses.replace(eager, compile=True)
    plan: list[tuple[str, Any, Setting, float, str]] = [  # name, suite, setting, seconds, cases
        ("attention", attention, eager, 25, ""),
        ("multihead", multihead, eager, 8, ""),
        ("language", language, eager, 12, "V = 65$|V = 65, dropout 0.1, placed"),
        ("translation", translation, eager, 12, ""),
        ("language", language, graphs, 60, "V = 65$"),
        ("generation", generation, eager, 60, "batch 8"),
    ]
    plan = [row for row in plan if re.search(os.environ.get(SUITES, ""), row[0] + kind(row[2]))]
    if part.dry:  # one case shows that the command works; the suites have tests of their own
        plan = [("attention", attention, eager, 0.1, "causal, T = 128, forward$")]
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for name, suite, setting, budget, wanted in plan:
        title = name + kind(setting)
        needed = 45 if setting.compile or name == "generation" else 8
        if not part.dry and part.left < needed:
            missing[title] = f"skipped: {part.left:.0f} s were left"
            part.note(missing=missing)
            continue
        try:
            torch._dynamo.reset()
            chosen = (case for case in suite.cases(setting) if re.search(wanted, case.name))
            if part.device.type == "cuda":
                chosen = (as_on_a_gpu(case, setting) for case in chosen)
            pace = {"rounds": 2 if part.dry else 15, "budget": min(budget, part.left)}
            for case, found, why in run_suite(in_time(chosen, part), **pace):
                rows += [row | {"compiled": setting.compile} for row in as_dicts(found)]
                missing |= {f"{title}: {case.name}: {peer}": text for peer, text in why.items()}
                part.note(dtype="bf16", rows=rows, missing=missing)
                say(f"suites: {title}: {case.name}\n{table(found, part.peak_flops() or 1e12)}")
                for ratio, *_, peer in standing(found):
                    say(f"suites: {ratio:.3f} against the best peer, {peer}")
        except Exception:
            part.failed(title)
        free_memory(part.device)


def as_on_a_gpu(case: Case, setting: Setting) -> Case:
    """Compare the model without what makes a CPU faster; compiled, with one peer, to save time."""
    plain = [one for one in case.competitors if one.name in (CLEAR, "ours, not packed")]
    if not plain:  # there is only one way of ours
        return case
    others = [one for one in case.competitors if one.role != "ours" and one not in plain]
    if setting.compile:
        others = [one for one in others if one.name.startswith("plain GPT")]
    ours = dataclasses.replace(plain[0], name="ours", role="ours")
    return dataclasses.replace(case, competitors=[ours, *others])


def in_time(cases: Iterator[Case], part: Part) -> Iterator[Case]:
    """Leave out the cases for which no time is left."""
    return (case for case in cases if part.dry or part.left > 5)


# Part: Multi30k


def multi30k_run(part: Part) -> None:
    """Train the recipe for English to German with batches sized for a GPU, and score it.

    The sentences for validation are scored; the test set is left for a run of the recipe itself.
    """
    recipe = RECIPES["multi30k-en-de"]
    if part.dry:
        words = "one two three four five six seven".split()
        train = [(" ".join(words[: 1 + i % 7]), " ".join(words[i % 7 :: -1])) for i in range(40)]
        val, vocab_size, max_tokens, model = train[:8], 270, 128, {"d_model": 16, "d_ff": 32}
    else:
        train, val = multi30k("en", "de", "train"), multi30k("en", "de", "val")
        vocab_size, max_tokens, model = recipe.vocab_size, 16_384, {}
    tokenizer = Tokenizer.bpe((text for pair in train for text in pair), vocab_size)

    def batches(pairs: list[tuple[str, str]], shuffle: bool) -> PairBatches:
        sides = [tokenizer.encode_all(side) for side in zip(*pairs, strict=True)]
        return PairBatches(*sides, max_tokens=max_tokens, shuffle=shuffle)

    data, validation = batches(train, True), list(batches(val, False))
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, **{**recipe.model, **model})
    say(f"multi30k: {tokenizer.vocab_size:,} tokens, {len(data)} batches of {max_tokens:,} tokens")
    torch.manual_seed(0)
    worker = Worker(device=part.device)
    training = dataclasses.replace(
        recipe.training, n_steps=3000, warmup=150, validate_every=250, ema_decay=0.99,
        precision="bf16",
    )  # fmt: skip
    probe = Trainer(
        Transformer(config), data, training, loss=translation_loss, validation=validation,
        worker=worker,
    )  # fmt: skip
    times: list[float] = []
    for batch, _ in zip(data.endless(), range(4 if part.dry else 50), strict=False):
        start = time.perf_counter()
        probe.update(batch)  # reads the loss, and so waits for the GPU
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[-25:])
    probe.validate()
    start = time.perf_counter()
    probe.validate()
    for_validation = time.perf_counter() - start
    reserve = 0 if part.dry else 25 + 14 * for_validation  # to translate, to validate
    affordable = int((part.left - reserve) / (1.05 * seconds))
    n_steps = 6 if part.dry else max(60, min(3000, affordable))
    training = dataclasses.replace(
        training, n_steps=n_steps, warmup=n_steps // 20, validate_every=max(1, n_steps // 10)
    )
    part.note(
        model=dataclasses.asdict(config), training=dataclasses.asdict(training),
        max_tokens=max_tokens, cut_to_fit=n_steps < 3000, probe_step=seconds,
        weights="moving average after the last step",
    )  # fmt: skip
    say(f"multi30k: {1e3 * seconds:.1f} ms per step, {n_steps:,} steps")
    curve: list[dict[str, float]] = []
    began = time.perf_counter()

    def listen(record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            curve.append(record | {"seconds": round(time.perf_counter() - began, 2)})
            part.note(validation=curve)
            say(f"multi30k: step {record['step']:,}, validation {record['validation_loss']:.4f}")

    free_memory(part.device)
    torch.manual_seed(0)
    trainer = Trainer(
        Transformer(config), batches(train, True), training, loss=translation_loss,
        validation=validation, worker=worker, log=listen,
    )  # fmt: skip
    trainer.fit()
    part.note(
        best_validation_loss=trainer.best, best_step=trainer.best_step,
        seconds_in_all=time.perf_counter() - began, seconds_in_steps=trainer.seconds,
        target_tokens_per_second=trainer.tokens / trainer.seconds, peak_mib=peak_mib(part.device),
    )  # fmt: skip
    sources, references = map(list, zip(*val, strict=True))
    with trainer.average.applied(trainer.bare):
        translator = Translator(trainer.bare.eval(), tokenizer)
        for name, beam in (("greedy", 1), ("beam 5", 5)):
            if not part.dry and part.left < 8:
                part.note(**{name: f"skipped: {part.left:.0f} s were left"})
                continue
            start = time.perf_counter()
            hypotheses = translator(sources, beam=beam)
            took = {"seconds": time.perf_counter() - start, "examples": hypotheses[:3]}
            part.note(**{name: took})
            with contextlib.suppress(ImportError):  # without sacrebleu, the loss must do
                took["bleu"] = dataclasses.asdict(bleu(hypotheses, references))
                part.note(**{name: took})
            say(f"multi30k: {name}: BLEU {took.get('bleu', {}).get('bleu')} on validation")


# The command

# Name: (what it does, the most seconds for it, the least with which it is worth starting)
PARTS: dict[str, tuple[Callable[[Part], None], float, float]] = {
    "roofline": (roofline, 30, 8),
    "tests": (run_tests, 110, 20),
    "shakespeare": (shakespeare, 190, 60),
    "ladder": (ladder, 90, 25),
    "suites": (suites, 110, 20),
    "multi30k": (multi30k_run, 110, 45),
}
GRACE = 6  # seconds beyond its limit until a part is stopped from outside


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=450, help="for all of it (450)")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas (all)")
    parser.add_argument("--data", type=Path, help="what TRANSFORMER_LIB_DATA names otherwise")
    parser.add_argument("--out", type=Path, help="folder for gpu-*.json (results, or out/gpu-dry)")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, to see that all works")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda; with --dry, cpu")
    parser.add_argument("--commit", help="where there is no git: the commit that this tree is at")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)  # in this very process
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"--parts: choose from {', '.join(PARTS)}, got {', '.join(unknown)}")
    options.device = options.device or ("cpu" if options.dry else "cuda")
    options.out = options.out or ROOT / ("out/gpu-dry" if options.dry else "results")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --dry runs every part at a tiny size on the CPU")
    return options


def header(options: argparse.Namespace) -> dict[str, Any]:
    """Say what ran, where and on what."""
    try:
        here = commit()
    except OSError:
        here = "unknown"
    found = {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]).replace(f"{ROOT}/", ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": options.commit or here,
        "device": options.device,
        "hardware": hardware(options.device),
        "dry": options.dry,
        "versions": versions() | {"cuda": torch.version.cuda},
    }
    with contextlib.suppress(ImportError):
        import triton

        found["versions"]["triton"] = triton.__version__
    if options.device == "cuda":
        cuda = torch.cuda.get_device_properties(0)
        found["gpu_memory_mib"] = cuda.total_memory // 2**20
        found["compute_capability"] = f"{cuda.major}.{cuda.minor}"
        found["versions"]["cudnn"] = torch.backends.cudnn.version()
    return found


def run_one(options: argparse.Namespace) -> int:
    """Run one part in this process; its file says how it ended."""
    warnings.filterwarnings("ignore")
    if options.data is not None:
        os.environ["TRANSFORMER_LIB_DATA"] = str(options.data.resolve())
    torch.set_num_threads(1 if options.dry else min(8, os.cpu_count() or 1))
    index = 0 if options.device == "cuda" else None
    part = Part(
        name=options.one, end=time.monotonic() + options.seconds,
        target=options.out / f"gpu-{options.one}.json", dry=options.dry,
        device=torch.device(options.device, index), header=header(options),
    )  # fmt: skip
    part.note(status="running")
    try:
        PARTS[options.one][0](part)
    except (Exception, SystemExit):
        part.failed(part.name)
        part.note(status="failed")
        return 1
    part.note(status="done" if "errors" not in part.found else "done, with errors")
    return 0


def run_part(
    name: str, seconds: float, options: argparse.Namespace, settings: dict[str, str] | None = None
) -> str:
    """Run one part in a process of its own, stop it if it does not end, and say how it ended.

    Args:
        settings: environment variables for it.
    """
    target = options.out / f"gpu-{name}.json"
    target.unlink(missing_ok=True)
    command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--one", name]
    command += ["--seconds", f"{seconds:.0f}", "--out", str(options.out)]
    command += ["--device", options.device, *(["--dry"] if options.dry else [])]
    command += ["--data", str(options.data)] if options.data else []
    command += ["--commit", options.commit] if options.commit else []
    environment = os.environ | (settings or {})
    run = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        run.wait(seconds + GRACE)
        stopped = False
    except subprocess.TimeoutExpired:
        stopped = True
    finally:  # what it started, too, and also when this process is told to stop
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(run.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(2)
    report = json.loads(target.read_text()) if target.exists() else {}
    status = report.get("status", "failed")
    if status == "running":  # it could not write how it ended
        status = f"stopped after {seconds:.0f} s" if stopped else f"died: {run.returncode}"
        write(report | {"status": status}, target)
    return status


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.out = options.out.resolve()
    if options.data is not None:
        options.data = options.data.resolve()
    if options.one:
        return run_one(options)
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about, end = header(options), STARTED + options.seconds
    say(f"{about['hardware']}, torch {torch.__version__}, commit {about['commit']}")
    kernels = tempfile.mkdtemp(prefix="kernels-")  # compiled by one part, used by the next
    settings = {
        "GPU_RUN_STARTED": str(STARTED), "TORCHINDUCTOR_CACHE_DIR": kernels,
        "TRITON_CACHE_DIR": f"{kernels}/triton",
    }  # fmt: skip
    parts: dict[str, dict[str, Any]] = {}
    try:
        for name in [name for name in PARTS if name in options.parts]:
            _, most, least = PARTS[name]
            left = end - time.time() - GRACE
            if left < least and not options.dry:
                parts[name] = {"status": f"skipped: {left:.0f} s were left"}
            else:
                began = time.time()
                say(f"{name}: at most {min(most, left):.0f} s")
                status = run_part(name, max(1.0, min(most, left)), options, settings)
                parts[name] = {"status": status, "seconds": round(time.time() - began, 1)}
            say(f"{name}: {parts[name]['status']}")
            whole = about | {"seconds": round(time.time() - STARTED, 1), "parts": parts}
            write(whole, options.out / "gpu-run.json")
    finally:
        shutil.rmtree(kernels, ignore_errors=True)
    for name, found in parts.items():
        say(f"{name:<12} {found.get('seconds', 0):6.1f} s  {found['status']}")
    return 0 if all(found["status"] == "done" for found in parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
