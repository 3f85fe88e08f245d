"""Devices: the format that a device has, processes that share a model, what survives a stop.

Run as a program, this file is two processes that join, and checks what needs two.
"""

import copy
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

import transformer_lib
from transformer_lib import devices
from transformer_lib.devices import (
    PRECISIONS,
    Peak,
    Place,
    StopRequest,
    autocast,
    best_device,
    blocks,
    choose_precision,
    fill,
    full_state,
    holding_back,
    joined,
    load_full_state,
    measured_peak,
    peak_memory,
    random_state,
    recompute_activations,
    set_random_state,
    spread,
    summed,
    whole,
)
from transformer_lib.models import Transformer, TransformerConfig

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
SIZES = {"vocab_size": 13, "d_model": 8, "n_heads": 2, "d_ff": 11, "max_len": 16}
SIZES |= {"n_encoder_layers": 2, "n_decoder_layers": 3}


def transformer(seed=0, **changes):
    torch.manual_seed(seed)
    return Transformer(TransformerConfig(**SIZES | {"dropout": 0.0} | changes))


def tokens(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(13, (n, 7), generator=generator), torch.randint(13, (n, 3))


def loss_of(model, source, target):
    return model(source, target).logsumexp(-1).square().sum()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)


def take_steps(model, optimizer, n=3):
    for seed in range(n):
        torch.manual_seed(seed)
        loss_of(model, *tokens(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(first, second):
    """Equal names and equal bits."""
    assert first.keys() == second.keys()
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


def gradients(model):
    return {name: whole(p.grad).clone() for name, p in model.named_parameters()}


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
def test_a_cards_format_follows_its_generation(monkeypatch, card, capability, expected):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as a T4 says
    assert choose_precision(CUDA) == expected
    assert asked == [CUDA]


@pytest.mark.parametrize("device", [CPU, MPS], ids=str)
def test_other_devices_compute_in_fp32(device):
    assert choose_precision(device) == "fp32"


@pytest.mark.parametrize(
    "cuda, mps, expected",
    [(True, True, "cuda:3"), (True, False, "cuda:3"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_is_a_card_then_apples_then_the_cpu(monkeypatch, cuda, mps, expected):
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


def test_an_unknown_format_is_refused():
    known = re.escape("('fp32', 'bf16', 'fp16'), got 'fp8'")
    with pytest.raises(ValueError, match=f"^autocast: precision must be one of {known}"):
        autocast(CPU, "fp8")
    with pytest.raises(ValueError, match=f"^measured_peak: precision must be one of {known}"):
        measured_peak(CPU, "fp8")


# The clock and the roofline


def test_the_clock_keeps_the_fastest_run_but_not_the_first(monkeypatch):
    ran, took = [], iter([0.0, 0.1, 1.0, 4.0, 5.0, 7.0, 8.0, 13.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(took))
    assert devices._fastest(lambda: ran.append(0), CPU, repeats=3) == 2
    assert len(ran) == 4


def test_the_clock_waits_for_a_card_before_it_is_read(monkeypatch):
    events = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda d: events.append(str(d)))
    monkeypatch.setattr(time, "perf_counter", lambda: events.append("read") or 0.0)
    devices._fastest(lambda: events.append("work"), CUDA, repeats=1)
    assert events == 2 * ["read", "work", "cuda:0", "read"]
    events.clear()
    devices._fastest(lambda: None, CPU, repeats=1)
    assert events == 4 * ["read"]


def test_a_peak_counts_two_operations_per_multiplication_and_both_ways_of_a_copy(monkeypatch):
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


def test_a_measured_peak_is_plausible_and_repeatable():
    size = 192
    a, b = torch.randn(2, size, size)
    ours = 2 * size**3 / devices._fastest(lambda: a @ b, CPU, repeats=20)
    peaks = [measured_peak(CPU, size=size, repeats=20) for _ in range(2)]
    assert max(p.flops for p in peaks) > ours / 8  # a busy machine may slow down either
    for what in ("flops", "bandwidth"):
        low, high = sorted(getattr(p, what) for p in peaks)
        assert 1e6 < high < 8 * low


def test_the_roofline_is_the_lower_of_slope_and_roof():
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
def test_an_empty_measurement_is_refused(size, repeats):
    got = f"^measured_peak: size and repeats must be at least 1, got {size} and {repeats}$"
    with pytest.raises(ValueError, match=got):
        measured_peak(CPU, size=size, repeats=repeats)


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_the_system_says():
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak_memory(CPU) == peak_memory(MPS) == 1024 * int(found[1])


def test_peak_memory_grows_when_memory_is_taken():
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
    return drawn | gradients(model), sum(held.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"attention_dropout": 0.3, "norm": "pre"}])
def test_recomputing_changes_no_bit_and_holds_fewer_bytes(changes, precision):
    plain, again = transformer(**changes), recompute_activations(transformer(**changes))
    assert plain.state_dict().keys() == again.state_dict().keys()
    with autocast(CPU, precision):
        (expected, kept), (found, held) = run_once(plain), run_once(again)
    assert_same(expected, found)
    weights = sum(p.nbytes for p in plain.parameters())
    assert held < 0.7 * kept or held - weights < 0.5 * (kept - weights)


def test_recomputing_runs_each_layer_once_more_however_often_it_is_asked_for():
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


def test_a_copy_of_a_recomputing_model_is_its_own():
    model = recompute_activations(transformer())
    twin = copy.deepcopy(model)
    loss_of(twin, *tokens()).backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in twin.parameters())


def test_recomputing_needs_layers():
    got = "must have layers in a ModuleList, got Sequential without"
    with pytest.raises(ValueError, match=f"^recompute_activations: the model {got}$"):
        recompute_activations(nn.Sequential(nn.Linear(3, 3)))


# Processes


def test_the_first_process_is_that_of_rank_0():
    assert Place().is_first and Place(size=3).is_first
    assert not Place(rank=1, size=2).is_first


@pytest.mark.parametrize("rank, size", [(1, 1), (-1, 2), (0, 0), (5, 3)])
def test_an_impossible_place_is_refused(rank, size):
    got = f"^Place: rank must be at least 0 and below size = {size}, got {rank}$"
    with pytest.raises(ValueError, match=got):
        Place(rank=rank, size=size)


@pytest.fixture
def alone(monkeypatch):
    """No torchrun, and no accelerator."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def torchrun(alone, monkeypatch):
    """What torchrun says to the only process that it starts."""
    values = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for name, value in (values | {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)


def test_without_torchrun_a_process_is_alone(alone, monkeypatch):
    with joined() as place:
        assert place == Place(rank=0, size=1, device=CPU)
        assert not dist.is_initialized()
    with joined("meta") as place:
        assert place.device == torch.device("meta")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with joined() as place:
        assert place.device == MPS


def test_torch_without_distributed_is_alone(torchrun, monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    monkeypatch.delattr(dist, "is_initialized")
    with joined() as place:
        assert place == Place()
        model = nn.Linear(3, 3)
        assert spread(model, place) is model
        assert summed(torch.ones(1)) == 1


def test_under_torchrun_processes_meet_and_part(torchrun, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with joined() as place:  # gloo knows nothing of Apple's devices
        assert place == Place(rank=0, size=1, device=CPU)
        assert dist.is_initialized() and dist.get_backend() == "gloo"
    assert not dist.is_initialized()
    with pytest.raises(KeyError), joined():
        raise KeyError
    assert not dist.is_initialized()


def test_joining_inside_a_group_neither_makes_nor_ends_one(torchrun, monkeypatch):
    with joined() as outer:
        group = dist.group.WORLD
        with joined() as inner, joined("cpu") as again:
            assert outer == inner == again
        monkeypatch.delenv("RANK")  # a group that something else than torchrun started
        with joined() as inner:
            assert inner == outer
        assert dist.group.WORLD is group
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    "device, current", [(None, 2), ("cuda", 2), ("cuda:1", 1), (torch.device("cuda", 3), 3)]
)
def test_each_process_takes_the_card_of_its_local_rank(torchrun, monkeypatch, device, current):
    cards, backends, started = [0], [], []
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cards[-1])
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: cards.append(getattr(d, "index", d)))
    monkeypatch.setattr(dist, "init_process_group", backends.append)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: started.append("ended"))
    with joined(device) as place:
        assert place.device == torch.device("cuda", current) and cards[-1] == current
    assert (backends, started) == (["nccl"], ["ended"])
    monkeypatch.delenv("RANK")
    cards[:] = [0]
    with joined(device) as place:
        assert place.device == torch.device("cuda", 0 if current == 2 else current)


def test_alone_a_model_stays_itself(alone):
    for sharding in ("ddp", "fsdp"):
        model = transformer()
        assert spread(model, Place(), sharding) is model
    assert next(spread(transformer(), Place(device=torch.device("meta"))).parameters()).is_meta
    with holding_back(model, True), holding_back(model, False):
        loss_of(model, *tokens()).backward()
    x = torch.arange(3.0)
    assert summed(x) is x and torch.equal(x, torch.arange(3.0))


@pytest.mark.parametrize("sharding", ["dp", "", "FSDP"])
def test_an_unknown_sharding_is_refused(sharding):
    got = re.escape(f"spread: sharding must be 'ddp' or 'fsdp', got {sharding!r}")
    with pytest.raises(ValueError, match=f"^{got}$"):
        spread(nn.Linear(3, 3), Place(), sharding)


# What must survive a stop


def test_the_full_state_is_that_of_the_bare_model_with_tied_weights_once():
    model = transformer()
    optimizer = adamw(model)
    take_steps(model, optimizer)
    state = full_state(model, optimizer)
    names = [name for name in model.state_dict() if name != "output.weight"]
    assert_same({n: model.state_dict()[n] for n in names}, state["model"])
    moments = {
        f"{name}.{moment}": x
        for name, p in model.named_parameters()
        for moment, x in optimizer.state[p].items()
    }
    assert_same(moments, state["optimizer"])
    assert state["optimizer"]["embedding.weight.step"] == 3


@pytest.mark.parametrize("tie", [True, False])
def test_a_loaded_model_goes_on_to_the_bit(tie):
    model, other = transformer(tie_embeddings=tie), transformer(seed=1, tie_embeddings=tie)
    optimizer, its = adamw(model), adamw(other)
    take_steps(model, optimizer)
    take_steps(other, its, 1)
    loss_of(other, *tokens()).backward()  # half a step that never ends
    load_full_state(other, its, full_state(model, optimizer))
    assert all(p.grad is None for p in other.parameters())
    for name, p in model.named_parameters():
        assert torch.equal(p, other.get_parameter(name))
    assert (other.output.weight is other.embedding.weight) == tie
    take_steps(model, optimizer)
    take_steps(other, its)
    assert_same(model.state_dict(), other.state_dict())
    assert_same(full_state(model, optimizer)["optimizer"], full_state(other, its)["optimizer"])


def test_a_full_state_is_a_copy():
    model = transformer()
    optimizer = adamw(model)
    take_steps(model, optimizer)
    state = full_state(model, optimizer)
    kept = copy.deepcopy(state)
    take_steps(model, optimizer)
    for part in ("model", "optimizer"):
        assert_same(kept[part], state[part])
    load_full_state(model, optimizer, state)
    take_steps(model, optimizer)
    for part in ("model", "optimizer"):
        assert_same(kept[part], state[part])


def test_looking_at_an_optimizer_that_never_stepped_changes_nothing():
    model, other = transformer(), transformer()
    optimizer, its = adamw(model), adamw(other)
    before = copy.deepcopy(model.state_dict())
    state = full_state(model, optimizer)
    assert state["optimizer"] == {} and not optimizer.state
    assert_same(before, model.state_dict())
    take_steps(model, optimizer)
    take_steps(other, its)
    assert_same(model.state_dict(), other.state_dict())
    load_full_state(model, optimizer, state)  # back to the beginning
    assert not optimizer.state
    assert_same(before, model.state_dict())
    take_steps(model, optimizer)
    assert_same(model.state_dict(), other.state_dict())


def test_an_optimizer_without_moments_and_a_frozen_weight_are_no_trouble():
    model, other = transformer(), transformer(seed=1)
    for m in (model, other):
        m.embedding.weight.requires_grad_(False)
    for make in (torch.optim.SGD, lambda ps: torch.optim.SGD(ps, momentum=0.9)):
        free = [[p for p in m.parameters() if p.requires_grad] for m in (model, other)]
        optimizer, its = make(free[0]), make(free[1])
        take_steps(model, optimizer)
        load_full_state(other, its, full_state(model, optimizer))
        take_steps(model, optimizer)
        take_steps(other, its)
        assert_same(model.state_dict(), other.state_dict())


def test_a_submodule_called_module_keeps_its_name():
    def tied():
        model = nn.Sequential()
        model.module, model.again = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        model.again.weight = model.module.weight
        return model

    model, other = tied(), tied()
    state = full_state(model, adamw(model))
    assert list(state["model"]) == ["module.weight", "module.bias"]
    load_full_state(other, adamw(other), state)
    assert torch.equal(other.again.weight, model.module.weight)


def test_a_state_of_another_model_is_refused():
    model = transformer()
    optimizer = adamw(model)
    take_steps(model, optimizer, 1)
    state = full_state(model, optimizer)
    name = "decoder.0.feed_forward.inner.bias"
    must = "names and shapes must be those of the model"
    for part, key, value in [
        ("model", name, state["model"][name][:1]),
        ("model", "decoder.9.bias", torch.zeros(3)),
        ("model", "output.weight", state["model"]["embedding.weight"]),  # is tied
        ("optimizer", f"{name}.exp_avg", torch.zeros(1)),
        ("optimizer", "decoder.9.bias.exp_avg", torch.zeros(3)),
    ]:
        wrong = {p: dict(tensors) for p, tensors in state.items()}
        wrong[part][key] = value
        got = re.escape(f"load_full_state: {must}, got others: {key}")
        with pytest.raises(ValueError, match=f"^{got}$"):
            load_full_state(model, optimizer, wrong)
    del state["model"]["embedding.weight"]
    with pytest.raises(ValueError, match="got others: embedding.weight$"):
        load_full_state(model, optimizer, state)


@pytest.mark.parametrize("kind", ["step", "exp_avg", "exp_avg_sq"])
def test_load_full_state_refuses_a_parameter_that_lacks_a_moment(kind):
    model = transformer()
    optimizer = adamw(model)
    take_steps(model, optimizer, 1)
    state = full_state(model, optimizer)
    del state["optimizer"][f"embedding.weight.{kind}"]
    with pytest.raises(ValueError, match=f"got others: embedding.weight.{kind}$"):
        load_full_state(model, optimizer, state)


@pytest.mark.parametrize("wrap", [nn.Module.train, partial(torch.compile, backend="eager")])
def test_names_are_those_of_the_bare_model_if_it_is_compiled(wrap):
    model, other = transformer(), transformer(seed=1)
    wrapped = wrap(model)
    state = full_state(wrapped, adamw(wrapped))
    assert "embedding.weight" in state["model"] and "output.weight" not in state["model"]
    load_full_state(wrap(other), adamw(other), state)
    assert_same(model.state_dict(), other.state_dict())


def test_plain_tensors_are_whole_and_can_be_filled():
    parameter = nn.Parameter(torch.zeros(3))
    assert whole(parameter) is parameter
    fill(parameter, torch.arange(3.0))
    assert parameter.tolist() == [0, 1, 2] and parameter.requires_grad


def test_random_numbers_go_on_where_they_were():
    dropout = nn.Dropout(0.5)
    torch.manual_seed(3)
    state = random_state(Place())
    drawn = [dropout(torch.ones(31)) for _ in range(2)]
    assert not torch.equal(*drawn)
    set_random_state(Place(), state)
    assert torch.equal(dropout(torch.ones(31)), drawn[0])
    assert torch.equal(dropout(torch.ones(31)), drawn[1])
    assert list(state) == ["cpu.0"]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_an_accelerators_generator_is_kept_too(monkeypatch, kind):
    module, generator = getattr(torch, kind), [torch.tensor([7, 8], dtype=torch.uint8)]
    devices_seen = []

    def get(*device):
        devices_seen.append(device)
        return generator[0]

    def put(state, *device):
        devices_seen.append(device)
        generator[0] = state

    monkeypatch.setattr(module, "get_rng_state", get)
    monkeypatch.setattr(module, "set_rng_state", put)
    place = Place(device=torch.device(kind, 1) if kind == "cuda" else MPS)
    state = random_state(place)
    assert state.keys() == {"cpu.0", f"{kind}.0"}
    generator[0] = None
    set_random_state(place, state)
    assert generator[0].tolist() == [7, 8]
    assert devices_seen == 2 * [(place.device,) if kind == "cuda" else ()]
    generator[0] = None
    set_random_state(place, {"cpu.0": state["cpu.0"]})  # seen on a machine without it
    assert generator[0] is None


def test_a_process_without_a_random_state_is_refused():
    got = re.escape("there must be a state for process 1, got ['cpu.0']")
    with pytest.raises(ValueError, match=f"^set_random_state: {got}$"):
        set_random_state(Place(rank=1, size=2), random_state(Place()))


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
def test_a_signal_waits_until_the_step_is_done(handlers, number):
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
def test_a_signal_that_would_end_the_process_waits_unless_it_is_ignored_or_handled(name):
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
def test_a_second_signal_does_not_wait(handlers, second):
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


# Two processes. What follows runs in both of them at once, in this order.


def together_they_know_their_places(place):
    assert place == Place(rank=int(os.environ["RANK"]), size=2, device=CPU)
    with joined() as inner:
        assert inner == place
    assert summed(torch.tensor([1.0 + place.rank, 5])).tolist() == [3, 10]


def rows_of(place, xs):
    return [x[place.rank :: place.size] for x in xs]


def expected_gradients(model, *batches):
    for xs in batches:
        loss_of(model, *xs).backward()
    found = gradients(model)
    model.zero_grad()
    return found


def together_gradients_are_those_of_one_process(place):
    batch = tokens(6)
    for changes in ({}, {"positions": "relative"}, {"tie_embeddings": False}):
        bare = transformer(**changes)
        expected = expected_gradients(bare, batch)
        for sharding in ("ddp", "fsdp"):
            model = transformer(seed=place.rank, **changes)  # the second starts elsewhere
            model = spread(model, place, sharding)
            assert isinstance(model, nn.parallel.DistributedDataParallel) == (sharding == "ddp")
            loss = 2 * loss_of(model, *rows_of(place, batch))  # gradients are averaged
            loss.backward()
            found = {n.removeprefix("module."): g for n, g in gradients(model).items()}
            assert found.keys() == expected.keys()
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)


def together_each_holds_a_share(place):
    model = transformer(d_model=16, d_ff=64)
    total = sum(p.nbytes for p in model.parameters())
    model = spread(model, place, "fsdp")
    mine = sum(p.to_local().nbytes for p in model.parameters())
    assert mine < 0.6 * total
    from torch.distributed.fsdp import FSDPModule

    assert all(isinstance(m, FSDPModule) for m in (model, *blocks(model)))
    first = next(model.parameters())
    assert whole(first).shape == first.shape and not hasattr(whole(first), "to_local")
    values = torch.arange(first.numel(), dtype=torch.float32).view(first.shape)
    fill(first, values)
    assert torch.equal(whole(first), values) and first.to_local().numel() < values.numel()


def together_gradients_are_held_back_until_the_last_part(place):
    batches = tokens(6), tokens(6, seed=1)
    expected = expected_gradients(transformer(), *batches)
    for sharding in ("ddp", "fsdp"):
        model = spread(transformer(), place, sharding)
        with holding_back(model, True):
            (2 * loss_of(model, *rows_of(place, batches[0]))).backward()
        if sharding == "ddp":
            local = model.module.embedding.weight.grad
            both = [torch.empty_like(local) for _ in range(2)]
            dist.all_gather(both, local)
            assert not torch.equal(*both)
        else:
            assert model.embedding.weight.grad is None  # it is whole, and somewhere else
        with holding_back(model, False):
            (2 * loss_of(model, *rows_of(place, batches[1]))).backward()
        for name, gradient in gradients(model).items():
            name = name.removeprefix("module.")
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
        if sharding == "fsdp":  # outside of any context gradients travel
            with pytest.raises(KeyError), holding_back(model, True):
                raise KeyError
            model.zero_grad()
            loss_of(model, *rows_of(place, batches[0])).backward()
            assert model.embedding.weight.grad is not None


def together_states_move_between_kinds_of_sharding(place):
    for sharding, changes in [("ddp", {}), ("fsdp", {}), ("fsdp", {"positions": "relative"})]:
        bare = transformer(**changes)
        optimizer = adamw(bare)
        take_steps(bare, optimizer)
        state = full_state_everywhere(bare, optimizer)
        found = [full_state(bare, optimizer)]
        model = spread(transformer(seed=1, **changes), place, sharding)
        its = adamw(model)
        load_full_state(model, its, state)
        found += [full_state(model, its)]
        model(*tokens())  # which gathers weights, and may leave them so
        found += [full_state(model, its)]
        for each in found:
            for part, expected in state.items():
                assert_same(expected if place.is_first else {}, each[part])


def full_state_everywhere(model, optimizer):
    """The state of a model that is not spread, which only the first process is given."""
    every = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    tied = every - {n for n, _ in model.named_parameters()}
    return {
        "model": {n: x.clone() for n, x in model.state_dict().items() if n not in tied},
        "optimizer": {
            f"{n}.{moment}": x.clone()
            for n, p in model.named_parameters()
            for moment, x in optimizer.state[p].items()
        },
    }


def together_moments_are_dealt_out_whatever_order_a_file_gives_to_each_process(place):
    """safetensors gives names in an order that differs between processes."""
    bare = transformer()
    optimizer = adamw(bare)
    take_steps(bare, optimizer)
    state = full_state_everywhere(bare, optimizer)
    shuffled = {}
    for part, tensors in state.items():
        names = sorted(tensors)
        random.Random(place.rank).shuffle(names)
        shuffled[part] = {name: tensors[name] for name in names}
    model = spread(transformer(seed=1), place, "fsdp")
    its = adamw(model)
    load_full_state(model, its, shuffled)
    found = full_state(model, its)
    for part, expected in state.items():
        assert_same(expected if place.is_first else {}, found[part])


def together_each_generator_goes_on_where_it_was(place):
    torch.manual_seed(place.rank)
    state = random_state(place)
    assert set(state) == {"cpu.0", "cpu.1"}
    assert not torch.equal(state["cpu.0"], state["cpu.1"])
    drawn = torch.rand(3)
    set_random_state(place, state)
    assert torch.equal(torch.rand(3), drawn)


TOGETHER = [f for name, f in dict(globals()).items() if name.startswith("together_")]


@pytest.fixture(scope="module")
def said():
    """What two processes say of each check: this file, run as a program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    library = str(Path(transformer_lib.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": library, "OMP_NUM_THREADS": "1"}
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=150
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("check", TOGETHER, ids=lambda f: f.__name__)
def test_two_processes(said, check):
    assert said.count(f"passed: {check.__name__}\n") == 2, said[-3000:]


def main():
    import torch.distributed.fsdp  # noqa: F401  before there are two, so that one import will do

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # imports what every optimizer needs
    child = os.fork()
    os.environ |= {"RANK": "1" if child == 0 else "0", "LOCAL_RANK": "0"}
    try:
        with joined("cpu") as place:
            for check in TOGETHER:
                check(place)
                os.write(1, f"passed: {check.__name__}\n".encode())  # at once, not mixed up
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)  # the other process hears of it and ends too
    if child:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
