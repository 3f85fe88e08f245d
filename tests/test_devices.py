"""Devices: the number format of a device, its peak, its memory, a model's operations."""

import copy
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_distributed import CPU, CUDA, MPS, assert_same, loss_of, tokens, transformer
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib import devices
from transformer_lib.batches import Blocks
from transformer_lib.cost import cost, decoder_only_cost
from transformer_lib.cpu import use_onednn
from transformer_lib.devices import (
    PRECISIONS,
    Peak,
    autocast,
    best_device,
    blocks,
    choose_precision,
    matmul_rate,
    measured_peak,
    meta_copy,
    peak_memory,
    recompute_activations,
    training_flops,
)
from transformer_lib.losses import language_loss
from transformer_lib.models import DecoderOnly, TransformerConfig

# The number format


@pytest.mark.parametrize(
    "card, capability, expected",
    [
        ("P100", (6, 0), "fp32"),
        ("V100", (7, 0), "fp16"),
        ("T4", (7, 5), "fp16"),
        ("A100", (8, 0), "bf16"),
        ("L4", (8, 9), "bf16"),
        ("H100", (9, 0), "bf16"),
    ],
)
def test_choose_precision_follows_the_generation_of_a_gpu(monkeypatch, card, capability, expected):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as a T4 says
    assert choose_precision(CUDA) == expected
    assert asked == [CUDA]


@pytest.mark.parametrize("device", [CPU, MPS], ids=str)
def test_choose_precision_gives_fp32_for_other_devices(device):
    assert choose_precision(device) == "fp32"


@pytest.mark.parametrize(
    "cuda, mps, expected",
    [(True, True, "cuda:3"), (True, False, "cuda:3"), (False, True, "mps"), (False, False, "cpu")],
)
def test_best_device_is_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(best_device()) == expected


@pytest.mark.parametrize("precision, dtype", PRECISIONS.items())
def test_autocast_multiplies_in_its_format_and_leaves_weights_alone(precision, dtype):
    linear, x = nn.Linear(3, 5), torch.randn(2, 3)
    with autocast(CPU, precision):
        assert linear(x).dtype == dtype
    assert linear(x).dtype == linear.weight.dtype == torch.float32


def test_autocast_to_fp32_holds_inside_another():
    x = torch.randn(3, 3)
    with autocast(CPU, "bf16"), autocast(CPU, "fp32"):
        assert (x @ x).dtype == torch.float32


def test_autocast_and_measured_peak_refuse_an_unknown_precision():
    known = re.escape("('fp32', 'bf16', 'fp16'), got 'fp8'")
    with pytest.raises(ValueError, match=f"^autocast: precision must be one of {known}"):
        autocast(CPU, "fp8")
    for measure in (measured_peak, matmul_rate):
        with pytest.raises(ValueError, match=f"^matmul_rate: precision must be one of {known}"):
            measure(CPU, "fp8")


# The clock and the roofline


def test_clock_keeps_the_fastest_run_but_not_the_first(monkeypatch):
    ran, took = [], iter([0.0, 0.1, 1.0, 4.0, 5.0, 7.0, 8.0, 13.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(took))
    assert devices._fastest(lambda: ran.append(0), CPU, repeats=3) == 2
    assert len(ran) == 4


def test_clock_waits_for_the_gpu_before_it_is_read(monkeypatch):
    events = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda d: events.append(str(d)))
    monkeypatch.setattr(time, "perf_counter", lambda: events.append("read") or 0.0)
    devices._fastest(lambda: events.append("work"), CUDA, repeats=1)
    assert events == 2 * ["read", "work", "cuda:0", "read"]
    events.clear()
    devices._fastest(lambda: None, CPU, repeats=1)
    assert events == 4 * ["read"]


def test_measured_peak_counts_multiply_and_add_and_both_ways_of_a_copy(monkeypatch):
    work = []

    def clock(run, device, repeats):
        work.append((run(), repeats))
        return 0.5 * len(work)

    monkeypatch.setattr(devices, "_fastest", clock)
    peak = measured_peak(CPU, "bf16", size=17, repeats=3)
    assert peak.flops == 2 * 17**3 / 0.5
    (product, _), (copied, _) = work
    assert product.shape == (17, 17) and product.dtype == torch.bfloat16
    assert copied.nbytes == 64 * 2**20 and copied.all()
    assert peak.bandwidth == 2 * copied.nbytes / 1.0
    assert [repeats for _, repeats in work] == [3, 3]
    assert measured_peak(CPU).flops == 2 * 1024**3 / 1.5
    assert matmul_rate(CPU, size=17) == 2 * 17**3 / 2.5


def test_measured_peak_is_plausible_and_repeatable():
    size = 192
    a, b = torch.randn(2, size, size)
    ours = 2 * size**3 / devices._fastest(lambda: a @ b, CPU, repeats=20)
    peaks = [measured_peak(CPU, size=size, repeats=20) for _ in range(2)]
    assert max(p.flops for p in peaks) > ours / 8  # a busy machine may slow down either
    for what in ("flops", "bandwidth"):
        low, high = sorted(getattr(p, what) for p in peaks)
        assert 1e6 < high < 8 * low


def test_attainable_is_the_lower_of_slope_and_roof():
    peak = Peak(flops=100.0, bandwidth=20.0)
    assert [peak.attainable(i) for i in (0.0, 1.0, 4.9, 5.0, 5.1, 1e9)] == [
        0,
        20,
        98,
        100,
        100,
        100,
    ]


@pytest.mark.parametrize("size, repeats", [(0, 5), (-1, 5), (7, 0)])
def test_measured_peak_refuses_an_empty_measurement(size, repeats):
    got = f"^matmul_rate: size and repeats must be at least 1, got {size} and {repeats}$"
    for measure in (measured_peak, matmul_rate):
        with pytest.raises(ValueError, match=got):
            measure(CPU, size=size, repeats=repeats)


def test_provenance_names_the_command_without_the_folders_of_this_machine(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python", "-m", "a b", "--seed", "1"])
    found = devices.provenance(CPU)
    assert found["command"] == "python -m 'a b' --seed 1"
    assert found["threads"] == torch.get_num_threads() and found["device"]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_provenance_is_the_commit_and_whether_files_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "__file__", str(tmp_path / "file"))
    assert devices.provenance(CPU)["commit"] is devices.provenance(CPU)["dirty"] is None
    (tmp_path / "file").write_text("one")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=N", "-c", "user.email=n@example.org"]
    git += ["-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    found = devices.provenance(CPU)
    assert re.fullmatch("[0-9a-f]{40}", found["commit"]) and found["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert devices.provenance(CPU) | {"dirty": False} == found


def test_device_name_of_a_cpu_is_the_systems(monkeypatch):
    told = "processor\t: 0\nmodel name\t: A Fine CPU @ 2 GHz\nflags\t\t: one two\n"
    monkeypatch.setattr(devices, "Path", lambda file: SimpleNamespace(read_text=lambda: told))
    assert devices.device_name(CPU) == "A Fine CPU @ 2 GHz"


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_the_system_reports():
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak_memory(CPU) == peak_memory(MPS) == 1024 * int(found[1])


def test_peak_memory_grows_when_memory_is_allocated():
    before, taken = peak_memory(CPU), []
    for _ in range(64):  # what the process held at most may be much more than what it holds
        taken.append(torch.ones(16 * 2**20))
        grown = peak_memory(CPU) - before
        if grown > 0:
            break
    assert 0 < grown < 1.5 * taken[0].nbytes


def test_peak_memory_asks_each_system_in_its_own_way(monkeypatch):
    used = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=17))
    monkeypatch.setitem(sys.modules, "resource", used)
    for system, unit in {"darwin": 1, "freebsd": 1024}.items():
        monkeypatch.setattr(sys, "platform", system)
        assert peak_memory(CPU) == 17 * unit
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has none
    assert peak_memory(CPU) == 0
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 17 + device.index)
    assert peak_memory(torch.device("cuda", 2)) == 19


def test_blocks_are_the_layers_of_both_stacks_in_their_order():
    model = transformer()
    assert blocks(model) == [*model.encoder, *model.decoder]
    assert blocks(nn.Sequential(nn.Linear(3, 3))) == []


def run_once(model, seed=7):
    """Loss, gradients, and the bytes put aside for the backward pass."""
    held = {}

    def note(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    model.zero_grad()
    torch.manual_seed(seed)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = loss_of(model, *tokens())
    after = torch.rand(3)
    loss.backward()
    drawn = {"loss": loss.detach(), "drawn": after, "later": torch.rand(3)}
    return drawn | {n: p.grad.clone() for n, p in model.named_parameters()}, sum(held.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"attention_dropout": 0.3, "norm": "pre"}])
def test_recompute_activations_changes_no_bit_and_holds_fewer_bytes(changes, precision):
    plain, again = transformer(**changes), recompute_activations(transformer(**changes))
    assert plain.state_dict().keys() == again.state_dict().keys()
    with autocast(CPU, precision):
        (expected, kept), (found, held) = run_once(plain), run_once(again)
    assert_same(expected, found)
    weights = sum(p.nbytes for p in plain.parameters())
    assert held < 0.7 * kept or held - weights < 0.5 * (kept - weights)


def test_recompute_activations_runs_each_layer_once_more_even_if_called_twice():
    model, runs = transformer(), []
    for layer in blocks(model):
        layer.feed_forward.register_forward_hook(lambda *_: runs.append(0))
    assert recompute_activations(model) is model
    forwards = [layer.forward for layer in blocks(model)]
    recompute_activations(model)
    assert all(layer.forward is f for layer, f in zip(blocks(model), forwards, strict=True))
    loss_of(model, *tokens()).backward()
    assert len(runs) == 2 * 5
    runs.clear()
    with torch.no_grad():
        model(*tokens())
    assert len(runs) == 5


def test_recompute_activations_leaves_a_copy_independent():
    model = recompute_activations(transformer())
    twin = copy.deepcopy(model)
    loss_of(twin, *tokens()).backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in twin.parameters())


def test_recompute_activations_refuses_a_model_without_layers():
    got = "must have layers in a ModuleList, got Sequential without"
    with pytest.raises(ValueError, match=f"^recompute_activations: the model {got}$"):
        recompute_activations(nn.Sequential(nn.Linear(3, 3)))


# Operations of a step

BLOCK, ROWS = 131, 3  # above 128 tokens, attention on a CPU calls a kernel that no counter knows


def gpt(**changes):
    sizes = {"d_model": 24, "n_heads": 2, "d_ff": 32, "n_decoder_layers": 2, "max_len": BLOCK}
    return DecoderOnly(TransformerConfig(vocab_size=41, **sizes | changes))


def text(device="meta"):
    return Blocks(*torch.zeros(2, ROWS, BLOCK, dtype=torch.int64, device=device))


def smallest(model):
    return decoder_only_cost(model.config, batch_size=ROWS, length=BLOCK).training_flops


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.1, "attention_dropout": 0.1},
        {"positions": "rotary", "norm_type": "rms", "activation": "swiglu", "n_kv_heads": 1},
        {"positions": "alibi", "tie_embeddings": False, "bias": False},
    ],
)
@pytest.mark.parametrize("change", [copy.copy, use_onednn, recompute_activations])
def test_training_flops_are_those_of_the_formula_whatever_runs_the_model(changes, change):
    model = gpt(**changes)
    assert training_flops(meta_copy(change(model)), language_loss, text()) == smallest(model)


def test_training_flops_of_a_compiled_model_are_those_of_the_plain_one():
    wrapped, in_place = torch.compile(gpt(), backend="eager"), gpt()
    in_place.compile(backend="eager")
    for model in (wrapped, in_place):
        assert training_flops(meta_copy(model), language_loss, text()) == smallest(model)


def test_training_flops_of_an_encoder_and_a_decoder_are_those_of_the_formula():
    model, (source, target) = transformer(), tokens()
    sizes = {"source_len": source.shape[1], "target_len": target.shape[1]}
    expected = cost(model.config, batch_size=len(source), **sizes).training_flops
    arguments = (source.to("meta"), target.to("meta"))
    found = training_flops(meta_copy(model), lambda plain, *x: plain(*x).sum(), *arguments)
    assert found == expected


def test_training_flops_of_frozen_weights_and_convolutions_are_those_that_torch_counts():
    model = nn.Sequential(nn.Conv1d(3, 5, 2), nn.Linear(12, 7), nn.Linear(7, 2))
    model[1].weight.requires_grad_(False)
    x = torch.ones(4, 3, 13)

    def loss(model, x):
        return model(x).sum()

    with FlopCounterMode(display=False) as counter:
        loss(model, x).backward()
    found = training_flops(meta_copy(model), loss, x.to("meta"))
    assert found == counter.get_total_flops() > 0
    model[1].weight.requires_grad_(True)
    assert training_flops(meta_copy(model), loss, x.to("meta")) > found


def test_training_flops_computes_nothing_and_draws_nothing():
    model, before = gpt(dropout=0.3), torch.get_rng_state()
    plain = meta_copy(model)
    training_flops(plain, language_loss, text())
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for m in (model, plain) for p in m.parameters())
    assert all(x.is_meta for x in (*plain.parameters(), *plain.buffers()))
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))


def test_meta_copy_keeps_shapes_ties_and_frozen_weights():
    model = gpt()
    model.decoder[0].feed_forward.up.weight.requires_grad_(False)
    plain = meta_copy(model)
    ours, theirs = dict(plain.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()  # a tied matrix is listed once
    for name, weight in ours.items():
        assert isinstance(weight, nn.Parameter) and weight.shape == theirs[name].shape
        assert weight.requires_grad == theirs[name].requires_grad
    assert not plain.training if not model.training else plain.training


def test_training_flops_refuses_what_it_cannot_count():
    @torch.library.custom_op("transformer_lib_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)
    twice.register_autograd(lambda ctx, grad: 2 * grad)

    def of_another_package(model, batch):
        return twice(language_loss(model, batch))

    def with_recomputation(model, batch):
        return checkpoint(language_loss, model, batch, use_reentrant=False)

    def reads_a_number(model, batch):
        loss = language_loss(model, batch)
        return loss if loss.item() > 0 else -loss

    plain = meta_copy(gpt())
    for loss, error in (
        (of_another_package, "operations of transformer_lib_tests.twice.default are not known"),
        (with_recomputation, "what is computed again must not be counted"),
        (reads_a_number, "meta tensors"),
    ):
        with pytest.raises((RuntimeError, NotImplementedError), match=error):
            training_flops(plain, loss, text())
