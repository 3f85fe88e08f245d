"""Properties of softmax, masked softmax and online softmax, and their refusals."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_lib.softmax import masked_softmax, online_softmax, softmax

B, H, T, S = 2, 3, 5, 7  # distinct primes: no axis can be mistaken for another
F64, INF = torch.float64, math.inf
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def draw(*shape, dtype=F64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def draw_mask(*shape, seed=0):
    """A random mask in which the first row is open and the second empty."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) > 0.4
    mask[..., 0, :], mask[..., 1, :] = True, False
    return mask


def shares_of_row(row, mask=None, temperature=1.0):
    """The definition, over visible scores that are not -inf, in Python's own floats."""
    visible = [i for i in range(len(row)) if (mask is None or mask[i]) and row[i] > -INF]
    best = max((row[i] for i in visible), default=0.0)
    powers = {i: math.exp((row[i] - best) / temperature) for i in visible}
    return [powers[i] / sum(powers.values()) if i in powers else 0.0 for i in range(len(row))]


def shares_by_definition(scores, mask=None, temperature=1.0):
    rows = scores.reshape(-1, scores.shape[-1]).tolist()
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand(scores.shape)
    masks = mask.reshape(-1, scores.shape[-1]).tolist()
    shares = [shares_of_row(r, m, temperature) for r, m in zip(rows, masks, strict=True)]
    return torch.tensor(shares, dtype=F64).reshape(scores.shape)


# ------------------------------------------------------------------ softmax


@pytest.mark.parametrize("temperature", [1.0, 0.3, 11.0])
def test_softmax_follows_its_definition(temperature):
    scores = 3 * draw(B, T, S)
    expected = shares_by_definition(scores, temperature=temperature)
    torch.testing.assert_close(softmax(scores, temperature=temperature), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_softmax_normalizes_the_given_axis(temperature):
    scores = draw(B, T, S)
    for dim in (0, 1, 2, -1, -2, -3):
        shares = softmax(scores, dim=dim, temperature=temperature)
        expected = softmax(scores.movedim(dim, -1), temperature=temperature).movedim(-1, dim)
        torch.testing.assert_close(shares, expected)


@given(
    row=st.lists(st.floats(-50, 50), min_size=1, max_size=8),
    shift=st.floats(-1e4, 1e4),
    temperature=st.floats(0.05, 50),
)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_softmax_sums_to_one_keeps_the_order_and_ignores_a_shift(row, shift, temperature):
    scores = torch.tensor(row, dtype=F64)
    shares = softmax(scores, temperature=temperature)
    assert (shares >= 0).all() and shares.sum().item() == pytest.approx(1)
    order = scores.argsort()
    assert (shares[order].diff() >= 0).all()
    shifted = softmax(scores + shift, temperature=temperature)
    # adding 1e4 to a score costs it digits, worth 1e4 eps / temperature in the exponent
    torch.testing.assert_close(shifted, shares, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e-6, 1e6])
@each_dtype
def test_softmax_of_the_largest_scores_is_finite(dtype, temperature):
    large = torch.finfo(dtype).max / 4
    scores = torch.tensor([[large, -large, 0.0], [-large, -large, -large]], dtype=dtype)
    shares = softmax(scores, temperature=temperature)
    assert shares.isfinite().all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
@each_dtype
def test_softmax_at_temperature_near_zero_selects_the_best_key_exactly(dtype, temperature):
    scores = torch.tensor([150.0, 149.0, 100.0], dtype=dtype)
    shares = softmax(scores, temperature=temperature)
    assert torch.equal(shares, torch.tensor([1.0, 0.0, 0.0], dtype=dtype))


def test_softmax_at_very_high_temperature_is_uniform():
    shares = softmax(draw(S), temperature=1e12)
    torch.testing.assert_close(shares, torch.full((S,), 1 / S, dtype=F64))


def test_softmax_of_minus_infinity_is_zero_at_any_temperature():
    scores = torch.tensor([0.5, -INF, 0.25])
    for temperature in (0.1, 1.0, 10.0):
        shares = softmax(scores, temperature=temperature)
        assert shares[1] == 0 and shares.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_softmax_jacobian_is_diag_p_minus_p_p_transposed_over_the_temperature(temperature):
    scores = draw(S)
    p = softmax(scores, temperature=temperature)
    found = torch.autograd.functional.jacobian(
        lambda s: softmax(s, temperature=temperature), scores
    )
    torch.testing.assert_close(found, (p.diag() - p.outer(p)) / temperature)


# ------------------------------------------------------------------ masked softmax


@pytest.mark.parametrize(
    "shape", [(B, H, T, S), (T, S), (1, 1, T, S), (B, 1, T, S), (B, 1, 1, S), (S,), (T, 1), ()]
)
def test_masked_softmax_follows_its_definition_for_every_mask_that_broadcasts(shape):
    scores = 3 * draw(B, H, T, S)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(shape, generator=generator) > 0.5
    found = masked_softmax(scores, mask)
    torch.testing.assert_close(found, shares_by_definition(scores, mask))
    assert (found[~mask.expand(scores.shape)] == 0).all()


def test_masked_softmax_without_or_with_an_open_mask_is_softmax():
    scores = draw(B, T, S)
    expected = scores.softmax(-1)
    assert torch.equal(masked_softmax(scores), expected)
    assert torch.equal(masked_softmax(scores, torch.ones(T, S, dtype=torch.bool)), expected)


def test_masked_softmax_normalizes_the_given_axis():
    scores, mask = draw(B, T, S), draw_mask(B, T, S)
    for dim in (0, 1, -2, -1):
        swapped = masked_softmax(scores.movedim(dim, -1), mask.movedim(dim, -1))
        torch.testing.assert_close(masked_softmax(scores, mask, dim=dim), swapped.movedim(-1, dim))


@each_dtype
def test_masked_softmax_rows_sum_to_one_or_zero_with_finite_gradients(dtype):
    scores, mask = draw(B, T, S, dtype=dtype).requires_grad_(), draw_mask(T, S)
    with torch.autograd.detect_anomaly(check_nan=True):
        weights = masked_softmax(scores, mask)
        (weights * draw(B, T, S, dtype=dtype, seed=1)).sum().backward()
    assert weights.dtype == dtype and scores.grad.dtype == dtype
    sums = mask.any(-1).to(dtype).expand(B, T)
    # S weights, each rounded to half a unit of the last digit
    bound = S * torch.finfo(dtype).eps
    torch.testing.assert_close(weights.detach().sum(-1), sums, rtol=bound, atol=bound)
    assert (weights[:, ~mask] == 0).all() and (scores.grad[:, ~mask] == 0).all()
    assert scores.grad.isfinite().all() and (scores.grad[:, 0] != 0).any()


@each_dtype
def test_masked_softmax_treats_minus_infinity_as_masked(dtype):
    scores = draw(T, S, dtype=dtype)
    scores[0, 2], scores[1], scores[2, 3:], scores[3, 0] = -INF, -INF, -INF, -INF
    seen = scores > -INF
    mask = torch.ones(T, S, dtype=torch.bool)
    mask[2, :3], mask[4] = False, False  # row 2: each key hidden by one of the two means
    for allowed in (None, mask):
        leaf = scores.clone().requires_grad_()
        with torch.autograd.detect_anomaly(check_nan=True):
            weights = masked_softmax(leaf, allowed)
            weights.pow(2).sum().backward()
        visible = seen if allowed is None else seen & allowed
        assert (weights[~visible] == 0).all() and (weights[visible] > 0).all()
        assert (leaf.grad[~visible] == 0).all() and leaf.grad.isfinite().all()
        exact = shares_by_definition(scores.double(), allowed)
        bound = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(weights.detach().double(), exact, rtol=bound, atol=bound)


@each_dtype
def test_masked_softmax_treats_the_lowest_finite_score_as_a_score(dtype):
    scores = torch.full((3,), torch.finfo(dtype).min, dtype=dtype)
    weights = masked_softmax(scores, torch.tensor([True, False, True]))
    assert torch.equal(weights, torch.tensor([0.5, 0.0, 0.5], dtype=dtype))


def test_masked_softmax_ignores_masked_scores_even_nan_and_infinity():
    scores, mask = draw(T, S), draw_mask(T, S)
    expected = masked_softmax(scores, mask)
    for poison in (math.nan, INF, 1e300):
        leaf = scores.masked_fill(~mask, poison).requires_grad_()
        weights = masked_softmax(leaf, mask)
        weights.pow(2).sum().backward()
        assert torch.equal(weights, expected) and leaf.grad.isfinite().all()


def test_masked_softmax_propagates_nan_of_a_visible_score():
    scores = draw(T, S)
    scores[0, 3], scores[1, 0], scores[1, 3] = math.nan, -INF, math.nan
    for mask in (None, torch.ones(T, S, dtype=torch.bool)):
        weights = masked_softmax(scores, mask)
        assert weights[:2].isnan().all() and weights[2:].isfinite().all()


def test_masked_softmax_derivatives_agree_with_finite_differences():
    scores, mask = draw(3, 5).requires_grad_(), draw_mask(3, 5)
    for allowed in (None, mask):

        def f(s, allowed=allowed):
            return masked_softmax(s, allowed)

        assert torch.autograd.gradcheck(f, scores, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(f, scores)


def test_masked_softmax_gradient_equals_torch_for_rows_that_are_not_empty():
    scores, arriving = draw(T, S).requires_grad_(), draw(T, S, seed=1)
    mask = draw_mask(T, S)
    mask[1, 2] = True
    (ours,) = torch.autograd.grad(masked_softmax(scores, mask), scores, arriving)
    (theirs,) = torch.autograd.grad(scores.masked_fill(~mask, -INF).softmax(-1), scores, arriving)
    torch.testing.assert_close(ours, theirs)


def test_masked_softmax_agrees_with_torch_attention_on_empty_rows():
    query, key, value = draw(B, H, T, 11), draw(B, H, S, 11), draw(B, H, S, 13)
    mask = draw_mask(B, 1, T, S)
    ours = masked_softmax(query @ key.mT / math.sqrt(11), mask) @ value
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(ours, theirs)


def test_masked_softmax_works_under_vmap_and_torch_func_grad():
    scores, mask = draw(B, T, S), draw_mask(B, T, S)
    expected = masked_softmax(scores, mask)
    torch.testing.assert_close(torch.func.vmap(masked_softmax)(scores, mask), expected)

    def loss(s, m):
        return masked_softmax(s, m).pow(2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss))(scores, mask)
    leaf = scores.clone().requires_grad_()
    loss(leaf, mask).backward()
    torch.testing.assert_close(per_sample, leaf.grad)


@pytest.mark.plain
def test_masked_softmax_compiles_into_one_graph_forward_and_backward():
    scores, mask = draw(T, S), draw_mask(T, S)
    compiled = torch.compile(masked_softmax, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (compiled, masked_softmax):
        leaf = scores.clone().requires_grad_()
        function(leaf, mask).pow(2).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_masked_softmax_saves_only_its_output_for_the_backward_pass():
    kept = []
    hooks = (lambda x: kept.append(x.shape) or x, lambda x: x)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        masked_softmax(draw(T, S).requires_grad_(), draw_mask(T, S))
    assert kept == [torch.Size([T, S])]


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,), (2, 0, 3)])
def test_softmax_accepts_empty_axes(shape):
    scores = torch.empty(shape, requires_grad=True)
    mask = torch.empty(shape, dtype=torch.bool)
    everything = [softmax(scores), softmax(scores, temperature=0.5)]
    everything += [masked_softmax(scores), masked_softmax(scores, mask)]
    for shares in everything:
        assert shares.shape == shape
        shares.sum().backward()


def test_softmax_leaves_inputs_unchanged():
    scores, mask = draw(T, S), draw_mask(T, S)
    before = scores.clone(), mask.clone()
    softmax(scores, temperature=0.5), masked_softmax(scores, mask), online_softmax([scores])
    assert torch.equal(scores, before[0]) and torch.equal(mask, before[1])


# ------------------------------------------------------------------ online softmax


def shares_from(scores, summary):
    maximum, total = summary
    return (scores - maximum).exp() / total


def test_online_softmax_does_not_depend_on_the_blocks():
    scores = 20 * draw(T, S)
    scores[0], scores[1, 0] = scores[0].sort().values, -INF  # a new maximum at each step
    scores[2], scores[3, :4] = scores[2].sort(descending=True).values, -INF
    for cuts in itertools.product((False, True), repeat=S - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), S]
        blocks = [scores[:, a:b] for a, b in itertools.pairwise(edges)]
        found = shares_from(scores, online_softmax(blocks))
        torch.testing.assert_close(found, scores.softmax(-1), rtol=1e-14, atol=1e-15)


@given(
    row=st.lists(st.floats(-300, 300) | st.just(-INF), min_size=1, max_size=12),
    data=st.data(),
)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_online_softmax_returns_maximum_and_total_of_the_row(row, data):
    scores = torch.tensor([row], dtype=F64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(row)), max_size=4)))
    edges = [0, *cuts, len(row)]  # repeated cuts make empty blocks
    maximum, total = online_softmax(scores[:, a:b] for a, b in itertools.pairwise(edges))
    best = max(row)
    assert maximum.item() == best
    expected = sum(math.exp(s - best) for s in row) if best > -INF else 0.0
    assert total.item() == pytest.approx(expected, rel=1e-14)


def test_online_softmax_of_empty_rows_has_maximum_minus_infinity_and_total_zero():
    scores = draw(T, S)
    scores[1] = -INF
    for blocks in ([scores], scores.split(2, dim=-1), [scores[:, :0]]):
        maximum, total = online_softmax(blocks)
        assert maximum.shape == total.shape == (T, 1)
        assert maximum[1] == -INF and total[1] == 0
    assert (maximum == -INF).all() and (total == 0).all()


def test_online_softmax_keeps_leading_axes_and_accepts_a_generator():
    scores = draw(B, H, T, S)
    maximum, total = online_softmax(block for block in scores.split(3, dim=-1))
    assert maximum.shape == total.shape == (B, H, T, 1)
    torch.testing.assert_close(shares_from(scores, (maximum, total)), scores.softmax(-1))
    torch.testing.assert_close(maximum + total.log(), scores.logsumexp(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_online_softmax_keeps_totals_of_half_precision_scores_in_float32(dtype):
    scores = torch.zeros(1, 4096, dtype=dtype)  # in float16, 2048 + 1 is 2048
    maximum, total = online_softmax(scores.split(1, dim=-1))
    assert maximum.dtype == total.dtype == torch.float32
    assert total.item() == 4096


def test_online_softmax_gradients_are_those_of_softmax():
    scores, arriving = (3 * draw(T, S)).requires_grad_(), draw(T, S, seed=1)
    found = shares_from(scores, online_softmax(scores.split(3, dim=-1)))
    (ours,) = torch.autograd.grad(found, scores, arriving)
    (theirs,) = torch.autograd.grad(scores.softmax(-1), scores, arriving)
    torch.testing.assert_close(ours, theirs)


def test_online_softmax_passes_gradients_through_the_total_alone():
    scores = (3 * draw(T, S)).requires_grad_()
    maximum, total = online_softmax(scores.split(3, dim=-1))
    assert not maximum.requires_grad and total.requires_grad
    (ours,) = torch.autograd.grad(total.sum(), scores)
    torch.testing.assert_close(ours, (scores - maximum).exp().detach())


def test_online_softmax_gradients_are_finite_with_empty_rows():
    scores = draw(T, S)
    scores[1], scores[2, :3] = -INF, -INF
    scores.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        online_softmax(scores.split(2, dim=-1))[1].sum().backward()
    assert scores.grad.isfinite().all()


# ------------------------------------------------------------------ refusals


@pytest.mark.bad_input
@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, -INF, INF, math.nan])
def test_softmax_refuses_temperatures_that_are_not_positive_and_finite(temperature):
    message = f"^softmax: temperature must be a number above 0, got {temperature}$"
    with pytest.raises(ValueError, match=message):
        softmax(draw(S), temperature=temperature)


@pytest.mark.bad_input
@pytest.mark.parametrize("function", [softmax, masked_softmax])
def test_softmax_refuses_scores_that_are_not_floating_point_and_missing_axes(function):
    name = function.__name__
    with pytest.raises(ValueError, match=f"^{name}: scores must be floating-point .*int64 on cpu$"):
        function(torch.arange(3))
    for dim in (2, -3, 7):
        with pytest.raises(
            ValueError, match=f"^{name}: dim must be an integer in .-2, 2., got {dim}$"
        ):
            function(draw(T, S), dim=dim)
    with pytest.raises(ValueError, match=f"^{name}: dim must .* in .0, 0., got -1$"):
        function(torch.tensor(1.0))


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_masked_softmax_refuses_masks_that_are_not_boolean(dtype):
    with pytest.raises(ValueError, match=f"masked_softmax: mask must be boolean .*, got {dtype}"):
        masked_softmax(draw(T, S), torch.ones(T, S, dtype=dtype))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "shape", [(S, T), (T, S + 1), (T + 1, S), (B + 1, T, S), (1, B, T, S), (B, S), (T,), (B, T, 0)]
)
def test_masked_softmax_refuses_masks_that_do_not_fit_with_both_shapes(shape):
    with pytest.raises(ValueError) as error:
        masked_softmax(draw(B, T, S), torch.ones(shape, dtype=torch.bool))
    message = str(error.value)
    assert message.startswith("masked_softmax: mask must have shape (...) with ... = ")
    assert str((B, T, S)) in message and str(shape) in message


@pytest.mark.bad_input
def test_online_softmax_refuses_inconsistent_or_missing_blocks():
    with pytest.raises(ValueError, match="at least one block, got none"):
        online_softmax([])
    for first, second in (((T, S), (T + 1, S)), ((T, S), (1, S)), ((1, S), (T, S)), ((T, S), (S,))):
        with pytest.raises(ValueError) as error:
            online_softmax([draw(*first), draw(*second)])
        message = str(error.value)
        assert message.startswith("online_softmax: block must have shape (..., S) with ... = ")
        assert str(first[:-1]) in message and str(second) in message


@pytest.mark.bad_input
def test_online_softmax_refuses_blocks_that_are_not_floating_point_or_have_no_axis():
    with pytest.raises(ValueError, match="online_softmax: block must be floating-point"):
        online_softmax([torch.arange(3)])
    with pytest.raises(ValueError, match=r"block must have shape \(..., S\), got \(\)$"):
        online_softmax([torch.tensor(1.0)])
