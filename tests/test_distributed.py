"""Distributed training: processes that train one model, and the state that a run resumes from.

Run as a program, this file starts two processes and runs the checks that need two.
"""

import copy
import os
import random
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import transformer_lib
from transformer_lib.devices import blocks
from transformer_lib.distributed import (
    Worker,
    all_reduce,
    fill,
    full_state,
    full_tensor,
    load_full_state,
    no_sync,
    parallelize,
    process_group,
    random_state,
    set_random_state,
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
    return {name: full_tensor(p.grad).clone() for name, p in model.named_parameters()}


# Processes


def test_worker_is_first_at_rank_0():
    assert Worker().is_first and Worker(world_size=3).is_first
    assert not Worker(rank=1, world_size=2).is_first


@pytest.mark.parametrize("rank, world_size", [(1, 1), (-1, 2), (0, 0), (5, 3)])
def test_worker_refuses_a_rank_outside_the_world(rank, world_size):
    got = f"^Worker: rank must be at least 0 and below world_size = {world_size}, got {rank}$"
    with pytest.raises(ValueError, match=got):
        Worker(rank=rank, world_size=world_size)


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


def test_process_group_without_torchrun_is_one_process(alone, monkeypatch):
    with process_group() as worker:
        assert worker == Worker(rank=0, world_size=1, device=CPU)
        assert not dist.is_initialized()
    with process_group("meta") as worker:
        assert worker.device == torch.device("meta")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with process_group() as worker:
        assert worker.device == MPS


def test_process_group_without_torch_distributed_is_one_process(torchrun, monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    monkeypatch.delattr(dist, "is_initialized")
    with process_group() as worker:
        assert worker == Worker()
        model = nn.Linear(3, 3)
        assert parallelize(model, worker) is model
        assert all_reduce(torch.ones(1)) == 1


def test_process_group_under_torchrun_begins_and_ends(torchrun, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with process_group() as worker:  # gloo knows nothing of Apple's devices
        assert worker == Worker(rank=0, world_size=1, device=CPU)
        assert dist.is_initialized() and dist.get_backend() == "gloo"
    assert not dist.is_initialized()
    with pytest.raises(KeyError), process_group():
        raise KeyError
    assert not dist.is_initialized()


def test_process_group_inside_another_neither_begins_nor_ends_one(torchrun, monkeypatch):
    with process_group() as outer:
        group = dist.group.WORLD
        with process_group() as inner, process_group("cpu") as again:
            assert outer == inner == again
        monkeypatch.delenv("RANK")  # a group that something else than torchrun started
        with process_group() as inner:
            assert inner == outer
        assert dist.group.WORLD is group
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    "device, current", [(None, 2), ("cuda", 2), ("cuda:1", 1), (torch.device("cuda", 3), 3)]
)
def test_process_group_takes_the_gpu_of_its_local_rank(torchrun, monkeypatch, device, current):
    cards, backends, started = [0], [], []
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cards[-1])
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: cards.append(getattr(d, "index", d)))
    monkeypatch.setattr(dist, "init_process_group", backends.append)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: started.append("ended"))
    with process_group(device) as worker:
        assert worker.device == torch.device("cuda", current) and cards[-1] == current
    assert (backends, started) == (["nccl"], ["ended"])
    monkeypatch.delenv("RANK")
    cards[:] = [0]
    with process_group(device) as worker:
        assert worker.device == torch.device("cuda", 0 if current == 2 else current)


def test_parallelize_returns_the_model_of_a_single_process(alone):
    for sharding in ("ddp", "fsdp"):
        model = transformer()
        assert parallelize(model, Worker(), sharding) is model
    assert next(
        parallelize(transformer(), Worker(device=torch.device("meta"))).parameters()
    ).is_meta
    with no_sync(model, True), no_sync(model, False):
        loss_of(model, *tokens()).backward()
    x = torch.arange(3.0)
    assert all_reduce(x) is x and torch.equal(x, torch.arange(3.0))


@pytest.mark.parametrize("sharding", ["dp", "", "FSDP"])
def test_parallelize_refuses_an_unknown_sharding(sharding):
    got = re.escape(f"parallelize: sharding must be 'ddp' or 'fsdp', got {sharding!r}")
    with pytest.raises(ValueError, match=f"^{got}$"):
        parallelize(nn.Linear(3, 3), Worker(), sharding)


# What must survive a stop


def test_full_state_is_that_of_the_bare_model_with_tied_weights_once():
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
def test_load_full_state_continues_bit_for_bit(tie):
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


def test_full_state_is_a_copy():
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


def test_full_state_of_an_optimizer_before_its_first_step_changes_nothing():
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


def test_full_state_allows_frozen_weights_and_optimizers_without_moments():
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


def test_full_state_keeps_the_name_of_a_submodule_called_module():
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


def test_load_full_state_refuses_the_state_of_another_model():
    model = transformer()
    optimizer = adamw(model)
    take_steps(model, optimizer, 1)
    state = full_state(model, optimizer)
    name = "decoder.0.feed_forward.up.bias"
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
def test_full_state_of_a_compiled_model_has_the_names_of_the_bare_one(wrap):
    model, other = transformer(), transformer(seed=1)
    wrapped = wrap(model)
    state = full_state(wrapped, adamw(wrapped))
    assert "embedding.weight" in state["model"] and "output.weight" not in state["model"]
    load_full_state(wrap(other), adamw(other), state)
    assert_same(model.state_dict(), other.state_dict())


def test_full_tensor_and_fill_take_plain_tensors():
    parameter = nn.Parameter(torch.zeros(3))
    assert full_tensor(parameter) is parameter
    fill(parameter, torch.arange(3.0))
    assert parameter.tolist() == [0, 1, 2] and parameter.requires_grad


def test_random_state_restores_the_position_of_the_generator():
    dropout = nn.Dropout(0.5)
    torch.manual_seed(3)
    state = random_state(Worker())
    drawn = [dropout(torch.ones(31)) for _ in range(2)]
    assert not torch.equal(*drawn)
    set_random_state(Worker(), state)
    assert torch.equal(dropout(torch.ones(31)), drawn[0])
    assert torch.equal(dropout(torch.ones(31)), drawn[1])
    assert list(state) == ["cpu.0"]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_random_state_includes_the_generator_of_an_accelerator(monkeypatch, kind):
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
    worker = Worker(device=torch.device(kind, 1) if kind == "cuda" else MPS)
    state = random_state(worker)
    assert state.keys() == {"cpu.0", f"{kind}.0"}
    generator[0] = None
    set_random_state(worker, state)
    assert generator[0].tolist() == [7, 8]
    assert devices_seen == 2 * [(worker.device,) if kind == "cuda" else ()]
    generator[0] = None
    set_random_state(worker, {"cpu.0": state["cpu.0"]})  # seen on a machine without it
    assert generator[0] is None


def test_set_random_state_refuses_a_process_without_one():
    got = re.escape("states must have one for process 1, got ['cpu.0']")
    with pytest.raises(ValueError, match=f"^set_random_state: {got}$"):
        set_random_state(Worker(rank=1, world_size=2), random_state(Worker()))


# Two processes. What follows runs in both of them at once, in this order.


def together_they_know_their_places(worker):
    assert worker == Worker(rank=int(os.environ["RANK"]), world_size=2, device=CPU)
    with process_group() as inner:
        assert inner == worker
    assert all_reduce(torch.tensor([1.0 + worker.rank, 5])).tolist() == [3, 10]


def rows_of(worker, xs):
    return [x[worker.rank :: worker.world_size] for x in xs]


def expected_gradients(model, *batches):
    for xs in batches:
        loss_of(model, *xs).backward()
    found = gradients(model)
    model.zero_grad()
    return found


def together_gradients_are_those_of_one_process(worker):
    batch = tokens(6)
    for changes in ({}, {"positions": "relative"}, {"tie_embeddings": False}):
        bare = transformer(**changes)
        expected = expected_gradients(bare, batch)
        for sharding in ("ddp", "fsdp"):
            model = transformer(seed=worker.rank, **changes)  # the second starts elsewhere
            model = parallelize(model, worker, sharding)
            assert isinstance(model, nn.parallel.DistributedDataParallel) == (sharding == "ddp")
            loss = 2 * loss_of(model, *rows_of(worker, batch))  # gradients are averaged
            loss.backward()
            found = {n.removeprefix("module."): g for n, g in gradients(model).items()}
            assert found.keys() == expected.keys()
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)


def together_buffers_are_sent_once(worker):
    """When the model is replicated, and not before each forward pass."""
    model = transformer()
    for x in model.buffers():
        x += worker.rank
    model = parallelize(model, worker, "ddp")
    buffers, expected = list(model.buffers()), list(transformer().buffers())
    assert buffers and all(map(torch.equal, buffers, expected))
    for x in buffers:
        x.fill_(worker.rank)
    loss_of(model, *tokens()).backward()
    loss_of(model, *tokens())
    assert all((x == worker.rank).all() for x in buffers)


def together_gradients_lie_in_the_buckets_that_are_sent(worker):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    buckets = []

    def note(group, bucket):
        buckets.append(bucket.buffer().untyped_storage().data_ptr())
        return allreduce_hook(group, bucket)

    model = parallelize(transformer(), worker, "ddp")
    model.register_comm_hook(None, note)
    for _ in range(3):  # buckets are arranged again after the first step
        buckets.clear()
        loss_of(model, *tokens()).backward()
        places = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
        assert places == {*buckets}
        model.zero_grad()


def together_each_holds_a_share(worker):
    model = transformer(d_model=16, d_ff=64)
    total = sum(p.nbytes for p in model.parameters())
    model = parallelize(model, worker, "fsdp")
    mine = sum(p.to_local().nbytes for p in model.parameters())
    assert mine < 0.6 * total
    from torch.distributed.fsdp import FSDPModule

    assert all(isinstance(m, FSDPModule) for m in (model, *blocks(model)))
    first = next(model.parameters())
    assert full_tensor(first).shape == first.shape and not hasattr(full_tensor(first), "to_local")
    values = torch.arange(first.numel(), dtype=torch.float32).view(first.shape)
    fill(first, values)
    assert torch.equal(full_tensor(first), values) and first.to_local().numel() < values.numel()


def together_gradients_are_held_back_until_the_last_part(worker):
    batches = tokens(6), tokens(6, seed=1)
    expected = expected_gradients(transformer(), *batches)
    for sharding in ("ddp", "fsdp"):
        model = parallelize(transformer(), worker, sharding)
        with no_sync(model, True):
            (2 * loss_of(model, *rows_of(worker, batches[0]))).backward()
        if sharding == "ddp":
            local = model.module.embedding.weight.grad
            both = [torch.empty_like(local) for _ in range(2)]
            dist.all_gather(both, local)
            assert not torch.equal(*both)
        else:
            assert model.embedding.weight.grad is None  # it is whole, and somewhere else
        with no_sync(model, False):
            (2 * loss_of(model, *rows_of(worker, batches[1]))).backward()
        for name, gradient in gradients(model).items():
            name = name.removeprefix("module.")
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
        if sharding == "fsdp":  # outside of any context gradients travel
            with pytest.raises(KeyError), no_sync(model, True):
                raise KeyError
            model.zero_grad()
            loss_of(model, *rows_of(worker, batches[0])).backward()
            assert model.embedding.weight.grad is not None


def together_states_move_between_kinds_of_sharding(worker):
    for sharding, changes in [("ddp", {}), ("fsdp", {}), ("fsdp", {"positions": "relative"})]:
        bare = transformer(**changes)
        optimizer = adamw(bare)
        take_steps(bare, optimizer)
        state = full_state_everywhere(bare, optimizer)
        found = [full_state(bare, optimizer)]
        model = parallelize(transformer(seed=1, **changes), worker, sharding)
        its = adamw(model)
        load_full_state(model, its, state)
        found += [full_state(model, its)]
        model(*tokens())  # which gathers weights, and may leave them so
        found += [full_state(model, its)]
        for each in found:
            for part, expected in state.items():
                assert_same(expected if worker.is_first else {}, each[part])


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


def together_moments_are_dealt_out_whatever_order_a_file_gives_to_each_process(worker):
    """safetensors gives names in an order that differs between processes."""
    bare = transformer()
    optimizer = adamw(bare)
    take_steps(bare, optimizer)
    state = full_state_everywhere(bare, optimizer)
    shuffled = {}
    for part, tensors in state.items():
        names = sorted(tensors)
        random.Random(worker.rank).shuffle(names)
        shuffled[part] = {name: tensors[name] for name in names}
    model = parallelize(transformer(seed=1), worker, "fsdp")
    its = adamw(model)
    load_full_state(model, its, shuffled)
    found = full_state(model, its)
    for part, expected in state.items():
        assert_same(expected if worker.is_first else {}, found[part])


def together_each_generator_goes_on_where_it_was(worker):
    torch.manual_seed(worker.rank)
    state = random_state(worker)
    assert set(state) == {"cpu.0", "cpu.1"}
    assert not torch.equal(state["cpu.0"], state["cpu.1"])
    drawn = torch.rand(3)
    set_random_state(worker, state)
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
        with process_group("cpu") as worker:
            for check in TOGETHER:
                check(worker)
                os.write(1, f"passed: {check.__name__}\n".encode())  # at once, not mixed up
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)  # the other process hears of it and ends too
    if child:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
