"""Each law of attention holds for what is right and finds its faults."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wrong_attentions import (
    WRONG_FUNCTIONS,
    WRONG_MODULES,
    Cache,
    D,
    Heads,
    explicit,
    looped,
    sign_blind,
)

from transformer_lib import properties, testing
from transformer_lib.properties import (
    AttentionCandidate,
    Candidate,
    along_positions,
    influence,
    relative_gap,
)

# influence


def test_influence_is_the_largest_gradient_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    probe = torch.arange(1.0, 4.0, dtype=torch.float64).cos()

    def call(x):
        return explicit(x, x, x, causal=True)

    expected = torch.zeros(2, 5, 5, dtype=torch.float64)
    for s in range(5):
        for f in range(3):
            step = torch.zeros_like(x)
            step[:, s, f] = 1e-6
            slope = (call(x + step) - call(x - step)) @ probe / 2e-6
            expected[..., s] = torch.maximum(expected[..., s], slope.abs())
    torch.testing.assert_close(influence(call, [x]), expected, rtol=0, atol=1e-8)


def test_influence_covers_heads_several_inputs_and_inputs_without_effect():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 7, generator=generator) for n in (5, 11, 11))
    seen = influence(lambda k, v: explicit(query, k, v), [key, value])
    assert seen.shape == (2, 5, 11) and (seen > 0).all()
    alone = torch.stack([influence(lambda v: explicit(query, key, v), [value])]).squeeze(0)
    assert (seen >= alone).all() and (seen > alone).any()
    assert not influence(lambda k, v: v * 1.0, [key, value])[0, 0, 1:].any()
    assert not influence(lambda unused: query * torch.ones((), requires_grad=True), [key]).any()


def test_influence_is_seen_behind_a_normalization_whose_features_always_sum_to_zero():
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    assert (influence(lambda x: F.layer_norm(x, (8,)), [x])[0].diagonal() > 1e-3).all()


# helpers of the laws


def test_relative_gap_is_relative_above_one_and_absolute_below():
    a, small, large = torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.25]), torch.tensor([4.0, -8.0])
    assert relative_gap(a, small).tolist() == [2.5, 0.75]
    assert relative_gap(a, large).tolist() == [1 / 8, 9 / 8]
    assert relative_gap(a, torch.full((2,), torch.nan)).isnan().all()


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 3, 5, 7), (2, 3, 2, 5, 7)])
def test_positions_lie_along_the_positions_of_a_tensor(shape):
    positions, x = torch.arange(10).view(2, 5), torch.zeros(shape, dtype=torch.long)
    laid = (x + along_positions(positions, x)).movedim(-2, 1)
    assert torch.equal(laid.flatten(2).amin(-1), positions)
    assert torch.equal(laid.flatten(2).amax(-1), positions)
    one_row = x + along_positions(positions[:1], x)
    assert one_row.shape == shape and torch.equal(one_row[0], one_row[1])


# laws

LAWS = {
    name: law
    for name, law in vars(properties).items()
    if inspect.isfunction(law) and list(inspect.signature(law).parameters) == ["c"]
}
NAMES = {rule.check.__name__: rule for rule in testing._ATTENTION if rule.check.__name__ in LAWS}


def candidate(target):
    """A function on heads, or a module with its cache, as the laws see it."""
    width = D if isinstance(target, nn.Module) else None
    made = testing._Attention(target, testing._call, 0, width, Cache, True)
    assert isinstance(made, AttentionCandidate) and isinstance(made, Candidate)
    return made


def worst(law, target):
    deviations = [values for values, *_ in law(candidate(target))]
    assert deviations
    return max(x.detach().double().nan_to_num(torch.inf).max().item() for x in deviations)


@pytest.mark.parametrize("law, axis", [("batch_independence", 0), ("head_independence", 1)])
def test_independence_is_measured_relative_to_the_outputs_of_the_whole(law, axis):
    """Ten times the outputs for a part: nine times too much, where they are large."""

    def ten_times(query, key, value, mask=None, *, causal=False):
        out = explicit(query, key, 5 * value, mask, causal=causal)
        return out * (10 if query.shape[axis] == 1 else 1)

    assert worst(LAWS[law], ten_times) == pytest.approx(9)


def all_nan(query, key, value, mask=None, *, causal=False):
    return explicit(query, key, value, mask, causal=causal) * torch.nan


@pytest.mark.parametrize(
    "law", sorted(LAWS.keys() - {"inputs_stay_unchanged", "cache_equals_no_cache"})
)
def test_laws_do_not_let_nan_pass(law):
    """The two left out do not read the outputs, or do not apply to functions."""
    try:
        assert worst(LAWS[law], all_nan) > NAMES[law].limit
    except RuntimeError as error:  # of gradcheck
        assert law == "gradients_by_finite_differences" and "Jacobian" in str(error)


def test_influence_of_nan_is_not_the_influence_that_a_visible_key_must_have():
    seen = torch.tensor([[torch.nan, 0.0, 2.0], [torch.nan, 0.0, 2.0]])
    visible = torch.tensor([[True] * 3, [False] * 3])
    found = properties._misfit(seen, visible).tolist()
    assert found[0] == [1.0, 1.0, 0.0] and found[1][1:] == [0.0, 2.0]
    assert found[1][0] != found[1][0]


def test_padding_law_finds_hidden_content_seen_without_sign_or_size():
    """It changes the padding to something large, and to fresh content: the second shows this."""

    def peeks(query, key, value, mask=None, *, causal=False):
        out = explicit(query, key, value, mask, causal=causal)
        if mask is None or key.shape[-2] != 7:  # quiet where padding is appended
            return out
        return out + sign_blind(key[..., -1:, :], value.shape[-1])

    law, limit = LAWS["padding_does_not_matter"], NAMES["padding_does_not_matter"].limit
    found = [(note, x.max().item() > limit) for x, note in law(candidate(peeks))]
    assert found == [
        ("hidden keys changed", False), ("hidden keys changed", True), ("padding appended", False),
    ]  # fmt: skip


def test_laws_are_all_applied_by_the_kit():
    assert NAMES.keys() == LAWS.keys() and len(LAWS) == 16


@pytest.mark.parametrize("right", [explicit, looped, Heads], ids=lambda right: right.__name__)
@pytest.mark.parametrize("law", LAWS)
def test_laws_hold_for_what_is_right(law, right):
    of_modules, of_functions = "cache_equals_no_cache", "head_independence"
    if law == (of_functions if right is Heads else of_modules):
        return  # functions on heads have no cache, and modules hide their heads
    torch.manual_seed(0)
    assert worst(LAWS[law], Heads() if right is Heads else right) <= NAMES[law].limit


WRONG = WRONG_FUNCTIONS | WRONG_MODULES
FAULTS = [
    (name, fault)
    for fault, (_, found) in WRONG.items()
    for name, rule in NAMES.items()
    if rule.name == found
]


@pytest.mark.parametrize("law, fault", FAULTS)
def test_laws_find_their_faults(law, fault):
    try:
        wrong = WRONG[fault][0]
        found = worst(LAWS[law], wrong() if isinstance(wrong, type) else wrong)
    except (RuntimeError, ValueError) as error:  # of gradcheck; of a shape
        assert "Jacobian" in str(error) or "output must have shape" in str(error)
    else:
        assert found > NAMES[law].limit


def test_laws_find_faults_of_many_kinds():
    found = {law for law, _ in FAULTS}
    assert len(found) >= 10, sorted(LAWS.keys() - found)
