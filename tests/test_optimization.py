"""Schedules and moving averages equal their formulas."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from transformer_lib.optimization import (
    SCHEDULES,
    MovingAverage,
    constant,
    cosine,
    inverse_sqrt,
    linear,
    make_optimizer,
    noam_rate,
    wsd,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# schedules

RATES = pytest.mark.parametrize("name", SCHEDULES)
counts = st.integers(1, 60).flatmap(
    lambda n_steps: st.tuples(st.integers(0, n_steps), st.just(n_steps))
)


@RATES
@given(counts, st.integers(1, 150))
def test_schedules_stay_between_0_and_1_and_are_1_after_warm_up(name, warmup_of, step):
    warmup, n_steps = warmup_of
    schedule = SCHEDULES[name]
    assert 0 <= schedule(step, warmup, n_steps) <= 1
    if step <= warmup:
        assert schedule(step, warmup, n_steps) == step / warmup
    assert schedule(max(1, warmup), warmup, n_steps) == 1 or warmup == 0
    assert schedule(0, warmup, n_steps) == 0


@RATES
@given(counts)
def test_schedules_never_rise_after_warm_up(name, warmup_of):
    warmup, n_steps = warmup_of
    steps = range(max(1, warmup), n_steps + 20)
    rates = [SCHEDULES[name](step, warmup, n_steps) for step in steps]
    assert all(after <= before for before, after in zip(rates, rates[1:], strict=False))


def test_constant_stays_and_inverse_sqrt_falls_indefinitely():
    assert constant(10**6, 4, 10) == 1
    assert inverse_sqrt(400, 4, 10) == 0.1 and inverse_sqrt(4 * 10**6, 4, 10) == 1e-3


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_linear_and_cosine_are_half_at_half_time_and_0_after_the_end(schedule):
    assert schedule(60, 20, 100) == pytest.approx(0.5)
    assert schedule(100, 20, 100) == schedule(1000, 20, 100) == 0
    assert schedule(99, 20, 100) > 0


def test_linear_falls_on_a_line_and_cosine_on_half_a_cosine():
    for step in range(20, 101):
        assert linear(step, 20, 100) == pytest.approx((100 - step) / 80)
        assert cosine(step, 20, 100) == pytest.approx(math.cos(math.pi * (step - 20) / 160) ** 2)


@pytest.mark.parametrize(
    ("warmup", "n_steps", "corners"),
    [
        (20, 100, {0: 0, 20: 1, 80: 1, 100: 0}),
        (1, 11, {0: 0, 1: 1, 9: 1, 11: 0}),
        (90, 100, {0: 0, 90: 1, 100: 0}),  # no time for a fifth
        (3, 4, {0: 0, 3: 1, 4: 0}),  # a fifth of a step is one step
        (7, 7, {0: 0, 7: 1, 8: 0}),
    ],
)
def test_wsd_is_a_trapezoid_whose_last_fifth_falls(warmup, n_steps, corners):
    for step in range(3 * n_steps):
        expected = np.interp(step, [*corners], [*corners.values()])
        assert wsd(step, warmup, n_steps) == pytest.approx(expected)


def test_wsd_before_its_fall_does_not_depend_on_the_number_of_steps():
    for step in range(1, 81):
        assert wsd(step, 20, 100) == wsd(step, 20, 101) == wsd(step, 20, 10**6)
    assert wsd(81, 20, 100) < wsd(81, 20, 200) == 1


def test_noam_rate_follows_its_equation():
    for d_model, warmup in ((512, 4000), (1024, 4000), (7, 3)):
        for step in (1, 2, 3, 4, 400, 4000, 4001, 100_000):
            expected = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
            ours = noam_rate(d_model, warmup) * inverse_sqrt(step, warmup, 100_000)
            assert ours == pytest.approx(expected, rel=1e-12)
    assert noam_rate(512) == pytest.approx(6.99e-4, rel=1e-3)


def test_schedules_are_found_by_name():
    assert SCHEDULES == {
        "constant": constant,
        "inverse_sqrt": inverse_sqrt,
        "linear": linear,
        "cosine": cosine,
        "wsd": wsd,
    }


# the optimizer


def test_optimizer_decays_matrices_and_not_vectors():
    tiny = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    optimizer = make_optimizer(tiny, learning_rate=0.3, betas=(0.5, 0.6), weight_decay=0.2)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decay[id(p)] for name, p in tiny.named_parameters()} == {
        name: 0.2 if p.dim() > 1 else 0.0 for name, p in tiny.named_parameters()
    }
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.5, 0.6), 1e-9)
        assert group["fused"]


# moving averages


def drift(model, seed):
    """Change a model's parameters."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=100 * seed + i))


def small():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_moving_average_follows_its_formula(decay):
    model = small()
    average, expected = MovingAverage(model, decay), copy.deepcopy(dict(model.named_parameters()))
    for n in range(1, 31):
        drift(model, n)
        average.update(model)
        b = min(decay, (1 + n) / (10 + n))
        expected = {k: b * expected[k] + (1 - b) * p for k, p in model.named_parameters()}
    assert average.n_updates == 30 and list(average.values) == list(expected)
    for name, value in average.values.items():
        torch.testing.assert_close(value, expected[name].detach())
        assert not value.requires_grad


def test_moving_average_without_memory_is_the_last_weights():
    model = small()
    average = MovingAverage(model, 0.0)
    drift(model, 1)
    average.update(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(average.values[name], parameter)


def test_moving_average_starts_at_the_model_and_is_independent():
    model = small()
    average, before = MovingAverage(model, 0.9), copy.deepcopy(dict(model.named_parameters()))
    drift(model, 1)
    for name, value in average.values.items():
        assert torch.equal(value, before[name])


def test_moving_average_of_noise_has_the_expected_variance():
    n, decay = 20_000, 0.9
    model = nn.Linear(n, 1, bias=False)
    average = MovingAverage(model, decay)
    torch.manual_seed(0)
    for _ in range(200):
        nn.init.normal_(model.weight)
        average.update(model)
    theory = (1 - decay) / (1 + decay)
    bound = 5 * theory * math.sqrt(2 / n)  # false alarm: 1 seed in 10^6
    assert abs(average.values["weight"].var().item() - theory) < bound


def test_applied_uses_the_average_and_restores_the_weights():
    model = small()
    average = MovingAverage(model, 0.9)
    drift(model, 1)
    average.update(model)
    own, mean = copy.deepcopy(model.state_dict()), copy.deepcopy(average.values)
    with average.applied(model):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, mean[name]) and not torch.equal(parameter, own[name])
            assert parameter.requires_grad
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name]) and torch.equal(average.values[name], mean[name])


def test_applied_restores_the_weights_after_an_error():
    model = small()
    average = MovingAverage(model, 0.9)
    drift(model, 1)
    own = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), average.applied(model):
        drift(model, 2)
        raise KeyboardInterrupt
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moving_average_of_half_precision_is_kept_in_float32(dtype):
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    average = MovingAverage(model, 0.99)
    for _ in range(1000):  # a step of 1% of 2^-7 is less than either type can hold beside 1
        nn.init.constant_(model.weight, 1 + 2**-7)
        average.update(model)
    value = average.values["weight"].clone()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1 + 2**-7, rel=1e-4)
    nn.init.constant_(model.weight, 3.0)
    average.values["weight"].fill_(1 / 3)
    with average.applied(model):
        assert model.weight.dtype == dtype and model.weight.item() == pytest.approx(1 / 3, rel=4e-3)
    assert average.values["weight"].item() == torch.tensor(1 / 3).item()
    assert model.weight.item() == 3.0


def test_moving_average_counts_tied_parameters_once_and_no_buffers():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    average = MovingAverage(model, 0.9)
    assert {*average.values} == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}
    model[1].running_mean.fill_(7.0)
    drift(model, 1)
    average.update(model)
    with average.applied(model):
        assert model[2].weight is model[0].weight
        assert torch.equal(model[2].weight, average.values["0.weight"])
        assert model[1].running_mean.eq(7).all()


@pytest.mark.parametrize(
    "other", [nn.Linear(3, 5), nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 2))]
)
def test_moving_average_refuses_another_model_and_stays_unchanged(other):
    average = MovingAverage(small(), 0.9)
    kept = copy.deepcopy(average.values)
    for call in (lambda: average.update(other), lambda: average.applied(other).__enter__()):
        with pytest.raises(
            ValueError, match=r"MovingAverage: the model must have parameters \{.*\}, got \{"
        ):
            call()
    assert average.n_updates == 0
    assert all(torch.equal(average.values[name], value) for name, value in kept.items())


# refusals


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: noam_rate(0),
            "noam_rate: d_model and warmup must be at least 1, got 0 and 4000",
        ),
        (lambda: noam_rate(512, 0), "got 512 and 0"),
        (
            lambda: MovingAverage(nn.Linear(1, 1), 1.0),
            "MovingAverage: decay must be at least 0 and below 1, got 1.0",
        ),
        (lambda: MovingAverage(nn.Linear(1, 1), -0.1), "below 1, got -0.1"),
    ],
)
def test_optimization_refuses_bad_input_with_both_values(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
