"""Attention: explicit, fused and tiled agree; masks and options work; bad input is refused."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from transformer_lib.attention import attend, attend_with_weights, causal_mask, padding_mask
from transformer_lib.scores import AdditiveScore
from transformer_lib.tiled import tiled_attend

B, H, T, S, K, Kv = 2, 3, 5, 7, 11, 13  # distinct primes: no axis can be mistaken for another


def by_threes(*inputs, **options):
    return tiled_attend(*inputs, block=3, **options)


def explicit(*inputs, **options):
    return attend_with_weights(*inputs, **options)[0]


def fused(*inputs, **options):
    """As `attend` where scores are too many to be stored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformer_lib.attention._FEW", 0)
        return attend(*inputs, **options)


WAYS = pytest.mark.parametrize("way", [explicit, attend, fused, by_threes])


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(1)
    shapes = (B, H, T, K), (B, H, S, K), (B, H, S, Kv)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.fixture
def mask():
    mask = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[0, :, 2] = False
    return mask


def slowly(query, key, value, visible):
    """One query and one key at a time."""
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=value.dtype)
    visible = visible.expand(*query.shape[:-1], key.shape[-2])
    for *lead, t in torch.cartesian_prod(*map(torch.arange, query.shape[:-1])).tolist():
        lead = tuple(lead)
        seen = [s for s in range(key.shape[-2]) if visible[(*lead, t, s)]]
        scale = math.sqrt(query.shape[-1])
        match = [math.exp(query[(*lead, t)] @ key[(*lead, s)] / scale) for s in seen]
        for m, s in zip(match, seen, strict=True):
            out[(*lead, t)] += m / sum(match) * value[(*lead, s)]
    return out


def gradients(way, inputs, **options):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = way(*inputs, **options)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), inputs)]


# agreement


@WAYS
@pytest.mark.parametrize("causal", [False, True])
def test_attention_agrees_with_loops_under_a_mask_with_an_empty_row(way, qkv, mask, causal):
    visible = mask & causal_mask(T, S) if causal else mask
    expected = slowly(*qkv, visible)
    torch.testing.assert_close(way(*qkv, mask, causal=causal), expected)


@WAYS
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_agrees_with_torch_forward_and_backward(way, qkv, mask, causal, masked):
    options = {"mask": mask if masked else None, "causal": causal}
    visible = (mask if masked else torch.ones(T, S, dtype=torch.bool)) & (
        causal_mask(T, S) if causal else torch.ones(T, S, dtype=torch.bool)
    )
    expected = gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=visible), qkv
    )
    for ours, theirs in zip(gradients(way, qkv, **options), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@WAYS
def test_causal_attention_agrees_with_torch_for_equal_lengths(way, qkv):
    query, key, value = qkv[0], qkv[1][..., :T, :], qkv[2][..., :T, :]
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(way(query, key, value, causal=True), expected)


@WAYS
def test_causal_attention_of_a_single_query_sees_every_key(way, qkv):
    query = qkv[0][..., -1:, :]
    torch.testing.assert_close(way(query, *qkv[1:], causal=True), way(query, *qkv[1:]))


@WAYS
def test_causal_attention_leaves_surplus_first_queries_empty(way, qkv):
    query = torch.cat([qkv[0], qkv[0]], dim=-2)  # ten queries, seven keys
    out = way(query, *qkv[1:], causal=True)
    assert (out[..., :3, :] == 0).all() and (out[..., 3:, :] != 0).any(-1).all()


def test_attend_with_weights_returns_the_weights_of_the_values(qkv, mask):
    torch.manual_seed(0)
    out, weights = attend_with_weights(*qkv, mask, dropout=0.5)
    torch.testing.assert_close(out, weights @ qkv[2])
    assert 0 < (weights == 0).float().mean() < 1


@pytest.mark.parametrize("way", [explicit, attend, fused])
@pytest.mark.parametrize("n_queries", [1, 2])
def test_attention_dropout_keeps_the_expected_weight(way, n_queries):
    torch.manual_seed(0)
    n = 20_000
    query, key = torch.zeros(n // n_queries, n_queries, 1), torch.zeros(n // n_queries, 1, 1)
    out = way(query, key, torch.ones_like(key), dropout=0.3)
    # n weights of 0 or 1/0.7: 6 standard errors of 0.0046 would miss once in 5e8 seeds
    assert out.mean().item() == pytest.approx(1.0, abs=0.028)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


@pytest.mark.parametrize("way", [explicit, attend, fused])
def test_attention_scale_replaces_the_square_root(way, qkv):
    expected = F.scaled_dot_product_attention(*qkv, scale=0.25)
    torch.testing.assert_close(way(*qkv, scale=0.25), expected)
    assert not torch.allclose(way(*qkv), expected)


@pytest.mark.parametrize("way", [explicit, attend, fused])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_adds_the_bias_to_the_scores(way, qkv, mask, masked, causal):
    bias = torch.randn(1, H, T, S, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scores = qkv[0] @ qkv[1].mT / math.sqrt(K) + bias
    visible = causal_mask(T, S) if causal else torch.ones(T, S, dtype=torch.bool)
    visible = visible & mask if masked else visible
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1).nan_to_num(0.0)
    out = way(*qkv, mask if masked else None, causal=causal, bias=bias)
    torch.testing.assert_close(out, weights @ qkv[2])


@pytest.mark.parametrize("way", [explicit, attend, fused])
def test_attention_bias_gets_a_gradient(way, qkv, mask):
    bias = torch.zeros(1, H, T, S, dtype=torch.float64, requires_grad=True)
    way(*qkv, mask, bias=bias).square().sum().backward()
    assert bias.grad.isfinite().all() and bias.grad.abs().sum() > 0


@pytest.mark.parametrize("way", [explicit, attend, fused])
def test_attention_accepts_any_score(way, mask):
    torch.manual_seed(0)
    score = AdditiveScore(5, 3, 4).double()
    query, key = (torch.randn(B, n, d, dtype=torch.float64) for n, d in ((T, 5), (S, 3)))
    value = torch.randn(B, S, Kv, dtype=torch.float64)
    weights = score(query, key).masked_fill(~mask[:, 0], -math.inf).softmax(-1).nan_to_num(0.0)
    torch.testing.assert_close(way(query, key, value, mask[:, 0], score=score), weights @ value)


@WAYS
@pytest.mark.plain  # nothing compiles through the checks of signatures
def test_attention_compiled_has_the_gradients_of_eager_attention(way, qkv):
    compiled = torch.compile(way, backend="eager")
    for ours, theirs in zip(
        gradients(compiled, qkv, causal=True), gradients(way, qkv, causal=True), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
        assert theirs.any()


# properties


@WAYS
def test_attention_outputs_are_averages_of_the_values(way, qkv, mask):
    out = way(*qkv, mask)
    seen = mask.any(-1, keepdim=True).expand(B, H, T, 1)
    low, high = (x.unsqueeze(-2) for x in qkv[2].aminmax(dim=-2))
    inside = (out >= low - 1e-12) & (out <= high + 1e-12)  # rounding of a convex sum
    assert (inside | ~seen).all()
    same = torch.arange(Kv, dtype=torch.float64).expand(B, H, S, Kv)
    torch.testing.assert_close(way(qkv[0], qkv[1], same, mask), same[..., :T, :] * seen)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@WAYS
def test_attention_of_empty_rows_has_no_nan_forward_or_backward(way, qkv, mask):
    inputs = [x.requires_grad_() for x in qkv]
    with torch.autograd.detect_anomaly(check_nan=True):
        out = way(*inputs, mask)
        out.square().sum().backward()
    assert (out[0, :, 2] == 0).all()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert (inputs[0].grad[0, :, 2] == 0).all()


@WAYS
def test_attention_gradients_agree_with_finite_differences(way, mask):
    generator = torch.Generator().manual_seed(4)
    shapes = (1, 2, 3, 2), (1, 2, 5, 2), (1, 2, 5, 3)
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    inputs = [x.requires_grad_() for x in inputs]
    part = mask[:1, :, :3, :5]
    assert torch.autograd.gradcheck(lambda *x: way(*x, part, causal=True), inputs)


@WAYS
def test_attention_leaves_inputs_unchanged(way, qkv, mask):
    before = [x.clone() for x in (*qkv, mask)]
    way(*qkv, mask, causal=True)
    assert all(torch.equal(x, y) for x, y in zip(before, (*qkv, mask), strict=True))


@WAYS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_attention_in_half_precision_is_near_float64_and_keeps_its_dtype(way, qkv, mask, dtype):
    inputs = [x.to(dtype) for x in qkv]
    out = way(*inputs, mask)
    exact = explicit(*(x.double() for x in inputs), mask)
    assert out.dtype == dtype
    # a few roundings of numbers of size one: scores, weights and sums each round once or twice
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=16 * torch.finfo(dtype).eps)
    assert (out[0, :, 2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attend_rounds_few_half_precision_scores_once(qkv, mask, dtype):
    inputs = [x.to(dtype) for x in qkv]
    expected = attend(*(x.float() for x in inputs), mask).to(dtype)
    assert torch.equal(attend(*inputs, mask), expected)


def test_attend_on_a_cpu_stores_only_few_scores_of_many_queries(monkeypatch):
    calls, kernel = [], F.scaled_dot_product_attention
    spy = lambda *a, **o: calls.append(a[0].shape[-2]) or kernel(*a, **o)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for n_queries, n_keys in ((128, 128), (64, 256), (1, 9), (127, 130), (129, 128)):
        attend(torch.ones(n_queries, 2), torch.ones(n_keys, 2), torch.ones(n_keys, 2))
    assert calls == [1, 127, 129]


@pytest.mark.parametrize("bias", [None, torch.zeros(3, 2)])
@pytest.mark.parametrize("causal", [False, True])
def test_attend_gives_zeros_where_nothing_is_visible_whatever_the_kernel_gives(
    monkeypatch, causal, bias
):
    """cuDNN's kernel for half precision gives rows without a visible key other numbers."""
    kernel = F.scaled_dot_product_attention

    def careless(query, key, value, attn_mask=None, **options):
        out = kernel(query, key, value, attn_mask=attn_mask, **options)
        seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -math.inf
        return out * torch.where(seen.any(dim=-1, keepdim=True), 1.0, math.nan)  # gradients too

    query, key, value = torch.randn(2, 3, 4), torch.randn(2, 2, 4), torch.randn(2, 2, 5)
    visible = torch.tensor([[True, False], [False, False], [True, True]])
    expected = explicit(query, key, value, visible, causal=causal, bias=bias)
    alone = explicit(query, key, value, causal=True, bias=bias)
    monkeypatch.setattr(F, "scaled_dot_product_attention", careless)
    monkeypatch.setattr("transformer_lib.attention._gives_zeros", lambda device: False)
    query.requires_grad_()
    out = fused(query, key, value, visible, causal=causal, bias=bias)
    torch.testing.assert_close(out, expected)
    assert not out[:, 1].any()
    out.sum().backward()
    assert query.grad.isfinite().all() and not query.grad[:, 1].any()
    # three queries, two keys: the first query stands before every key
    torch.testing.assert_close(fused(query, key, value, causal=True, bias=bias), alone)


def test_attend_in_mixed_precision_leaves_few_scores_to_the_kernel(monkeypatch, qkv):
    calls, kernel = [], F.scaled_dot_product_attention
    spy = lambda *a, **o: calls.append(1) or kernel(*a, **o)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*(x.float() for x in qkv))
    assert calls == [1] and out.dtype == torch.bfloat16


@WAYS
def test_attention_does_not_overflow_for_large_half_precision_scores(way):
    query = torch.full((1, 2, 4), 100.0, dtype=torch.float16)
    key = torch.cat([query[:, :1], -query[:, :1]], dim=1)
    value = torch.tensor([[[1.0], [2.0]]], dtype=torch.float16)
    assert way(query, key, value).tolist() == [[[1.0], [1.0]]]


BY_BIAS = pytest.mark.parametrize("way", [explicit, attend, fused])


@WAYS
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_float16_stays_finite_where_a_dot_product_would_overflow(way, autocast):
    """400 · 400 · 8 / √8 = 452,548 is above 65,504, the largest number of float16."""
    signs = torch.ones(1, 2, 8)
    signs[:, 1] = -1
    value = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)).half()
    dtype = torch.float32 if autocast else torch.float16
    inputs = [x.to(dtype).requires_grad_() for x in (400 * signs, 400 * signs, value)]
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        out = way(*inputs)
    out.float().square().sum().backward()
    assert out.dtype == torch.float16 and torch.equal(out, value)
    assert all(x.grad.isfinite().all() for x in inputs)


def test_attend_with_weights_in_float16_returns_finite_weights_of_its_own_dtype():
    query = torch.full((2, 8), 400.0, dtype=torch.float16)
    out, weights = attend_with_weights(query, query, query, bias=torch.zeros(2, 2))
    assert out.dtype == weights.dtype == torch.float16
    assert torch.equal(weights, torch.full((2, 2), 0.5, dtype=torch.float16))


@BY_BIAS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attention_accepts_a_bias_of_any_floating_point_dtype(way, qkv, dtype):
    inputs, bias = [x.float() for x in qkv], torch.arange(T * S).view(T, S) / 8
    out = way(*inputs, bias=bias.to(dtype))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, way(*inputs, bias=bias))


@WAYS
def test_attention_under_autocast_casts_its_inputs_first(way, qkv):
    query, key, value = qkv[0].float(), qkv[1].bfloat16(), qkv[2].float()
    expected = way(query.bfloat16(), key, value.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        out = way(query, key, value)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0, atol=0.05)


@WAYS
def test_attention_over_heads_of_width_zero_averages_the_values(way, qkv):
    query, key = (x[..., :0].detach().requires_grad_() for x in qkv[:2])
    out = way(query, key, qkv[2])
    torch.testing.assert_close(out, qkv[2].mean(-2, keepdim=True).expand(B, H, T, Kv))
    out.sum().backward()
    assert query.grad.shape == query.shape and key.grad.shape == key.shape


@WAYS
def test_attention_over_values_of_width_zero_returns_width_zero(way, qkv):
    assert way(*qkv[:2], qkv[2][..., :0]).shape == (B, H, T, 0)


@WAYS
@pytest.mark.parametrize(("t", "s", "b"), [(0, S, B), (T, 0, B), (T, S, 0), (0, 0, 0)])
def test_attention_accepts_empty_inputs(way, t, s, b):
    query, key = torch.randn(b, H, t, K), torch.randn(b, H, s, K)
    for causal in (False, True):
        out = way(query, key, torch.randn(b, H, s, Kv), causal=causal)
        assert out.shape == (b, H, t, Kv)
        assert s > 0 or (out == 0).all()


@WAYS
def test_attention_accepts_any_number_of_batch_axes(way, qkv):
    expected = way(*qkv)
    torch.testing.assert_close(way(*(x[1, 2] for x in qkv)), expected[1, 2])
    torch.testing.assert_close(way(*(x[:, :, None] for x in qkv))[:, :, 0], expected)


# masks


@pytest.mark.parametrize(("n_queries", "n_keys"), [(5, 5), (3, 7), (7, 3), (1, 4), (0, 3), (3, 0)])
def test_causal_mask_aligns_the_last_query_with_the_last_key(n_queries, n_keys):
    mask = causal_mask(n_queries, n_keys)
    assert mask.shape == (n_queries, n_keys) and mask.dtype == torch.bool
    for t in range(n_queries):
        for s in range(n_keys):
            assert mask[t, s] == (n_queries - t <= n_keys - s)
    assert torch.equal(causal_mask(n_queries), causal_mask(n_queries, n_queries))


def test_padding_mask_shows_each_sequence_its_own_tokens():
    mask = padding_mask(torch.tensor([3, 0, 5]))
    assert mask.shape == (3, 1, 1, 5)
    assert mask[:, 0, 0].sum(-1).tolist() == [3, 0, 5] and mask[0, 0, 0, :3].all()
    assert padding_mask(torch.tensor([3, 0]), n_keys=7).shape == (2, 1, 1, 7)
    assert padding_mask(torch.tensor([], dtype=torch.long)).shape == (0, 1, 1, 0)


@WAYS
def test_attention_accepts_masks_of_every_documented_shape(way, qkv):
    table = torch.rand(T, S, generator=torch.Generator().manual_seed(5)) > 0.3
    expected = way(*qkv, table)
    for shape in ((1, 1, T, S), (B, 1, T, S), (1, H, T, S), (B, H, T, S)):
        torch.testing.assert_close(way(*qkv, table.expand(shape)), expected)


# refusals


@pytest.mark.bad_input
@WAYS
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((B, S), f"mask must have shape (T, S) with T = {T}"),  # would broadcast if B were T
        ((B, T, S), f"with ... = ({B}, {H}), got ({B}, {T}, {S})"),
        ((T, 1), f"S = {S}, got ({T}, 1)"),
        ((B, 1, T, 1), "got (2, 1, 5, 1)"),
        ((S, T), f"got ({S}, {T})"),
        ((B, 2, T, S), f"got ({B}, 2, {T}, {S})"),
    ],
)
def test_attention_refuses_a_mask_of_a_wrong_shape_with_both_shapes(way, qkv, shape, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        way(*qkv, torch.ones(shape, dtype=torch.bool))


@pytest.mark.bad_input
@WAYS
def test_attention_refuses_a_mask_of_numbers(way, qkv):
    with pytest.raises(ValueError, match=r"mask must be boolean on cpu, got torch\.float"):
        way(*qkv, torch.zeros(T, S))


@pytest.mark.bad_input
@WAYS
def test_attention_refuses_inconsistent_shapes(way, qkv):
    query, key, value = qkv
    for inputs, name, differs in (
        ((query[..., 1:], key, value), "key", f"(..., S, K) with K = {K - 1}"),
        ((query, key, value[..., 1:, :]), "value", f"(..., S, Kv) with S = {S}"),
        ((query[:1], key, value), "key", f"(..., S, K) with ... = (1, {H})"),
        ((query[0, 0, 0], key[0, 0, 0], value[0, 0, 0]), "query", "(..., T, K), got"),
    ):
        message = f"{name} must have shape {differs}"
        with pytest.raises(ValueError, match=re.escape(message)):
            way(*inputs)


@pytest.mark.bad_input
@WAYS
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_attention_refuses_mixed_dtypes(way, qkv, which, dtype):
    dtypes = [torch.float64] * 3
    dtypes[which] = dtype
    message = f"{('query', 'key', 'value')[which]} must be torch.float64 on cpu, got {dtype}"
    if which == 0:  # the others must be like the query
        message = f"key must be {dtype} on cpu, got torch.float64"
    if which == 0 and not dtype.is_floating_point:
        message = f"query must be floating-point on cpu, got {dtype}"
    with pytest.raises(ValueError, match=re.escape(message)):
        way(*(x.to(d) for x, d in zip(qkv, dtypes, strict=True)))


@pytest.mark.bad_input
@WAYS
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_attention_refuses_what_is_not_floating_point(way, qkv, dtype):
    with pytest.raises(ValueError, match=f"query must be floating-point on cpu, got {dtype}"):
        way(*(x.to(dtype) for x in qkv))


@pytest.mark.bad_input
@WAYS
@pytest.mark.parametrize("what", ["key", "value", "mask"])
def test_attention_refuses_mixed_devices(way, qkv, what):
    given = dict(zip(("query", "key", "value"), qkv, strict=True))
    given["mask"] = torch.ones(T, S, dtype=torch.bool)
    given[what] = given[what].to("meta")
    message = f"{what} must be .* on cpu, got .* on meta"
    with pytest.raises(ValueError, match=message):
        way(*given.values())


@pytest.mark.bad_input
@BY_BIAS
def test_attention_refuses_a_bias_on_another_device(way, qkv):
    with pytest.raises(ValueError, match="bias must be floating-point on cpu, got .* on meta"):
        way(*qkv, bias=torch.ones(T, S, device="meta"))


@pytest.mark.bad_input
@WAYS
def test_attention_refuses_queries_and_keys_of_different_widths(way, qkv):
    message = f"key must have shape (..., S, K) with K = {K}, got {(B, H, S, K - 1)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        way(qkv[0], qkv[1][..., 1:], qkv[2])


@pytest.mark.bad_input
@pytest.mark.parametrize("way", [explicit, attend, fused])
def test_attention_refuses_contradictory_options(way, qkv):
    with pytest.raises(ValueError, match="scale belongs to the default score"):
        way(*qkv, scale=1.0, score=lambda q, k: q @ k.mT)
    with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\), got 1.5"):
        way(*qkv, dropout=1.5)
    with pytest.raises(ValueError, match="bias must be floating-point on cpu, got torch.bool"):
        way(*qkv, bias=torch.ones(T, S, dtype=torch.bool))
    with pytest.raises(ValueError, match="bias must have shape"):
        way(*qkv, bias=torch.ones(H, T, S))


@pytest.mark.bad_input
def test_masks_refuse_impossible_sizes():
    with pytest.raises(ValueError, match="n_queries must be an integer at least 0, got -1"):
        causal_mask(-1)
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 5\), got 2 to 5"):
        padding_mask(torch.tensor([2, 5]), n_keys=4)
    with pytest.raises(ValueError, match="got -2 to 3"):
        padding_mask(torch.tensor([-2, 3]))
    for lengths in (torch.tensor([2.0, 3.0]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match=f"lengths must be int32 .*, got {lengths.dtype}"):
            padding_mask(lengths)
    with pytest.raises(ValueError, match=r"lengths must have shape \(B\), got \(1, 2\)"):
        padding_mask(torch.tensor([[2, 3]]))
