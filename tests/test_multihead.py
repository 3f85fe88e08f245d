"""Multi-head attention agrees with loops, with and without cache and recording."""

import copy
import math
import pickle
import re
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transformer_lib.attention import causal_mask, padding_mask
from transformer_lib.cache import KVCache
from transformer_lib.multihead import MultiHeadAttention, PositionScheme, recording
from transformer_lib.testing import check_attention

B, T, S, H, K = 2, 5, 7, 6, 3  # with D = 18: axes that could be confused have different sizes
D = H * K
GROUPS = pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(n_kv_heads=H, seed=3, **options):
    """A layer in float64 and evaluation mode with nonzero biases."""
    attention = MultiHeadAttention(D, H, n_kv_heads=n_kv_heads, **options).double().eval()
    for i, (name, parameter) in enumerate(attention.named_parameters()):
        if not name.startswith("positions"):
            scale = 1.0 if parameter.dim() == 1 else 1.5 / math.sqrt(D)
            parameter.data.copy_(scale * normal(*parameter.shape, seed=seed + i))
    return attention


def slowly(attention, query, key, value, visible):
    """One head, one query and one key at a time, reading weights row by row."""
    size, width = attention.n_heads // attention.n_kv_heads, attention.d_head
    scale, first_key = attention.scale or 1 / math.sqrt(width), attention.n_heads * width
    w, b = attention.in_proj.weight, attention.in_proj.bias
    out = torch.zeros(len(query), query.shape[1], first_key, dtype=query.dtype)
    for h in range(attention.n_heads):
        g = h // size
        start = [h, attention.n_heads + g, attention.n_heads + attention.n_kv_heads + g]
        start = [i * width for i in start]
        q, k, v = (
            x @ w[i : i + width].T + (0 if b is None else b[i : i + width])
            for x, i in zip((query, key, value), start, strict=True)
        )
        for n in range(len(query)):
            for t in range(query.shape[1]):
                seen = [s for s in range(key.shape[1]) if visible[n, h, t, s]]
                match = [math.exp(q[n, t] @ k[n, s] * scale) for s in seen]
                for m, s in zip(match, seen, strict=True):
                    out[n, t, h * width : (h + 1) * width] += m / sum(match) * v[n, s]
    out = out @ attention.out_proj.weight.T
    return out if attention.out_proj.bias is None else out + attention.out_proj.bias


@pytest.fixture
def mask():
    mask = torch.rand(B, H, T, S, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[0, :, 2] = False
    return mask


# agreement


@GROUPS
@torch.no_grad()
def test_cross_attention_agrees_with_loops_under_a_mask_for_every_head(n_kv_heads, mask):
    attention, query = layer(n_kv_heads), normal(B, T, D)
    key, value = normal(B, S, D, seed=1), normal(B, S, D, seed=2)
    expected = slowly(attention, query, key, value, mask)
    torch.testing.assert_close(attention(query, key, value, mask), expected)
    expected = slowly(attention, query, key, key, mask)
    torch.testing.assert_close(attention(query, key, mask=mask), expected)


@GROUPS
@pytest.mark.parametrize("n_queries", [1, T])
@pytest.mark.parametrize("recorded", [False, True])
@torch.no_grad()
def test_heads_of_another_width_and_scale_agree_with_loops(n_kv_heads, n_queries, recorded, mask):
    options = {"d_head": 5, "scale": 0.7, "bias": False, "qkv_bias": True}
    attention, query = layer(n_kv_heads, **options), normal(B, n_queries, D)
    key, value = normal(B, S, D, seed=1), normal(B, S, D, seed=2)
    assert attention.out_proj.weight.shape == (D, H * 5) and attention.out_proj.bias is None
    with recording(attention) if recorded else nullcontext():
        for visible in (mask[:, :, :n_queries], mask[:, :1, 3:4]):
            whole = visible.expand(-1, H, n_queries, -1)
            expected = slowly(attention, query, key, value, whole)
            torch.testing.assert_close(attention(query, key, value, visible), expected)


@GROUPS
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_self_attention_agrees_with_loops_with_and_without_biases(n_kv_heads, bias):
    attention, x = layer(n_kv_heads, bias=bias), normal(B, T, D)
    visible = causal_mask(T).expand(B, H, T, T)
    expected = slowly(attention, x, x, x, visible)
    torch.testing.assert_close(attention(x, causal=True), expected)
    torch.testing.assert_close(attention(x, x, x, causal=True), expected)


@pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1])
@pytest.mark.parametrize("masked", ["no", "keys", "queries", "heads", "two axes"])
@torch.no_grad()
def test_single_query_agrees_with_loops_for_every_mask_shape(n_kv_heads, masked):
    attention, query, key = layer(n_kv_heads), normal(B, 1, D), normal(B, S, D, seed=1)
    draw = torch.rand(B, H, 1, S, generator=torch.Generator().manual_seed(4)) > 0.4
    draw[0, :, :, :] = False  # the first of the batch may attend to nothing
    mask = {
        "no": None,
        "keys": draw[:, :1],
        "queries": draw[1:, :1],
        "heads": draw[1:],
        "two axes": draw[1, 0],
    }[masked]
    visible = torch.ones(B, H, 1, S, dtype=torch.bool) if mask is None else mask.expand(B, H, 1, S)
    expected = slowly(attention, query, key, key, visible)
    torch.testing.assert_close(attention(query, key, mask=mask), expected)
    torch.testing.assert_close(attention(query, key, mask=mask, causal=True), expected)


@pytest.mark.parametrize("n_kv_heads", [6, 3, 1])
def test_multi_head_attention_passes_the_conformance_kit(n_kv_heads):
    attention = layer(n_kv_heads).float()
    check_attention(attention, d_model=D, make_cache=lambda: KVCache(32)).raise_if_failed()


@pytest.mark.parametrize(("d_model", "n_heads"), [(384, 6), (768, 12)])
def test_multi_head_attention_passes_the_kit_at_real_widths(d_model, n_heads):
    for n_kv_heads in (n_heads, n_heads // 3):
        attention = MultiHeadAttention(d_model, n_heads, n_kv_heads=n_kv_heads)
        options = {"d_model": d_model, "make_cache": lambda: KVCache(32)}
        check_attention(attention, **options).raise_if_failed()


def test_multi_head_attention_without_biases_passes_the_conformance_kit():
    attention = layer(2, bias=False).float()
    check_attention(attention, d_model=D, make_cache=lambda: KVCache(32)).raise_if_failed()


# structure


def test_multi_head_attention_has_as_many_parameters_as_the_formula():
    for n_kv_heads in (6, 3, 2, 1):
        shared = n_kv_heads * K
        for bias in (True, False):
            attention = MultiHeadAttention(D, H, n_kv_heads=n_kv_heads, bias=bias)
            expected = 2 * D * D + 2 * D * shared + bias * (2 * D + 2 * shared)
            assert sum(p.numel() for p in attention.parameters()) == expected
            wide = MultiHeadAttention(
                D, H, n_kv_heads=n_kv_heads, d_head=7, bias=bias, qkv_bias=not bias
            )
            rows = 7 * (H + 2 * n_kv_heads)
            expected = rows * D + 7 * H * D + (D if bias else rows)
            assert sum(p.numel() for p in wide.parameters()) == expected


def test_projections_start_within_their_glorot_bounds_and_biases_at_zero():
    torch.manual_seed(0)
    attention = MultiHeadAttention(60, 4, n_kv_heads=1)
    query, key, value = attention.in_proj.weight.split([60, 15, 15])
    for weight in (query, key, value, attention.out_proj.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert (
            0.97 * bound < weight.abs().max() <= bound
        )  # fails to notice with probability 0.97**900 < 1e-11
    assert not attention.in_proj.bias.any() and not attention.out_proj.bias.any()


@GROUPS
@torch.no_grad()
def test_heads_add_their_own_term_only(n_kv_heads):
    attention, x = layer(n_kv_heads), normal(B, T, D)
    full, h = attention(x, causal=True), 4
    rows = slice(h * K, (h + 1) * K)
    changed = copy.deepcopy(attention)
    changed.in_proj.weight[rows] += 1.0  # another query for head 4 alone
    with recording(changed) as after, recording(attention) as before:
        difference = changed(x, causal=True) - full
        attention(x, causal=True)
    same = [i for i in range(H) if torch.equal(before[""][:, i], after[""][:, i])]
    assert same == [0, 1, 2, 3, 5]
    changed.out_proj.weight[:, rows] = attention.out_proj.weight[:, rows] = 0.0
    torch.testing.assert_close(changed(x, causal=True), attention(x, causal=True))
    assert difference.abs().max() > 0.1


@torch.no_grad()
def test_self_attention_is_permutation_equivariant():
    attention, x, order = layer(2), normal(B, T, D), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])


@torch.no_grad()
def test_query_that_sees_nothing_gets_the_bias_of_the_output(mask):
    attention = layer(3)
    out = attention(normal(B, T, D), normal(B, S, D, seed=1), mask=mask)
    assert torch.equal(out[0, 2], attention.out_proj.bias)
    with recording(attention) as seen:
        out = attention(normal(B, T, D), normal(B, S, D, seed=1), mask=mask)
    assert torch.equal(out[0, 2], attention.out_proj.bias) and not seen[""][0, :, 2].any()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_gradients_are_finite_with_empty_rows_and_equal_while_recording(mask):
    attention, inputs = layer(3), [normal(B, n, D, seed=n).requires_grad_() for n in (T, S)]
    wanted = [*inputs, *attention.parameters()]
    with torch.autograd.detect_anomaly(check_nan=True):
        fused = torch.autograd.grad(attention(*inputs, mask=mask).sin().sum(), wanted)
    with recording(attention):
        explicit = torch.autograd.grad(attention(*inputs, mask=mask).sin().sum(), wanted)
    for ours, theirs in zip(fused, explicit, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("n_queries", [3, 1])
def test_grouped_query_attention_passes_gradcheck(n_queries):
    attention = MultiHeadAttention(4, 4, n_kv_heads=2).double()
    inputs = [normal(1, n, 4, seed=n).requires_grad_() for n in (n_queries, 3)]
    assert torch.autograd.gradcheck(lambda q, k: attention(q, k), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@GROUPS
@torch.no_grad()
def test_multi_head_attention_in_half_precision_is_near_float64_and_keeps_its_dtype(
    dtype, n_kv_heads, mask
):
    attention, query, key = layer(n_kv_heads), normal(B, T, D), normal(B, S, D, seed=1)
    for q, m in ((query, mask), (query[:, :1], mask[:, :1, :1])):
        expected = attention(q, key, mask=m)
        half = copy.deepcopy(attention).to(dtype)(q.to(dtype), key.to(dtype), mask=m)
        assert half.dtype == dtype
        torch.testing.assert_close(
            half.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps
        )


@GROUPS
def test_multi_head_attention_accepts_empty_inputs(n_kv_heads):
    attention = layer(n_kv_heads)
    assert attention(normal(0, T, D)).shape == (0, T, D)
    assert attention(normal(0, 1, D)).shape == (0, 1, D)
    assert attention(normal(B, 0, D)).shape == (B, 0, D)
    assert attention(normal(B, 0, D), normal(B, S, D)).shape == (B, 0, D)
    for n_queries in (1, T):
        nothing = attention(normal(B, n_queries, D), normal(B, 0, D))
        assert torch.equal(nothing, attention.out_proj.bias.expand(B, n_queries, D))


def test_multi_head_attention_leaves_inputs_unchanged(mask):
    attention, inputs = layer(2), [normal(B, T, D), normal(B, S, D), normal(B, S, D), mask]
    copies = [x.clone() for x in inputs]
    attention(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    attention, x = layer(2, dropout=0.5), normal(B, T, D)
    plain = layer(2)
    assert torch.equal(attention(x), plain(x))
    torch.manual_seed(0)
    attention.train()
    many = attention(x[:1].expand(4000, T, D)).detach()
    assert many.std(0).max() > 0.01
    # the mean of 4000 draws lies within 6 standard errors but for a chance below 1e-6
    error = (many.mean(0) - plain(x[:1])[0]).abs() / (many.std(0) / math.sqrt(4000))
    assert error.max() < 6
    torch.manual_seed(0)
    one = attention(x[:, :1], x).detach()
    assert not torch.equal(one, plain(x[:, :1], x))


def test_state_dict_round_trips_and_holds_two_projections():
    attention, other = layer(2), MultiHeadAttention(D, H, n_kv_heads=2).double().eval()
    names = ["in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias"]
    assert list(attention.state_dict()) == names
    other.load_state_dict(attention.state_dict())
    x = normal(B, T, D)
    assert torch.equal(other(x), attention(x))
    assert torch.equal(pickle.loads(pickle.dumps(attention))(x), attention(x))


# positions


class Turning(PositionScheme):
    """Rotate the first two features of each head by the position."""

    def rotate(self, x, first=0):
        angle = torch.arange(first, first + x.shape[-2], dtype=x.dtype)
        left, right, rest = x[..., 0], x[..., 1], x[..., 2:]
        cos, sin = angle.cos(), angle.sin()
        turned = torch.stack([left * cos - right * sin, right * cos + left * sin], dim=-1)
        return torch.cat([turned, rest], dim=-1)


class Sloping(PositionScheme):
    """Lower scores with distance, each head by another slope."""

    def bias(self, n_queries, n_keys):
        query = torch.arange(n_keys - n_queries, n_keys)[:, None]
        distance = (query - torch.arange(n_keys)).abs()
        return -torch.arange(1.0, H + 1)[:, None, None] * distance / 3


@GROUPS
@pytest.mark.parametrize("scheme", [Turning, Sloping])
@torch.no_grad()
def test_position_schemes_break_the_symmetry_and_are_equal_while_recording(n_kv_heads, scheme):
    attention, x, order = layer(n_kv_heads, positions=scheme()), normal(B, T, D), [3, 0, 4, 1, 2]
    out = attention(x)
    assert (attention(x[:, order]) - out[:, order]).abs().max() > 1e-3
    with recording(attention) as seen:
        torch.testing.assert_close(attention(x), out)
    assert seen[""].shape == (B, H, T, T)


@torch.no_grad()
def test_rotation_depends_on_distance_and_bias_reaches_its_head():
    attention = layer(2, positions=Turning())
    x = normal(1, 1, D).expand(1, T, D).contiguous()
    with recording(attention) as seen:
        attention(x)
    logits = seen[""][0].log()
    logits = logits - logits[:, :, :1]  # relative to key 0
    step = logits[:, :, 1:] - logits[:, :, :-1]
    torch.testing.assert_close(step[:, 1:, 1:], step[:, :-1, :-1])
    assert (step[:, 0, 0] - step[:, 1, 0]).abs().min() > 1e-3  # and on distance indeed
    attention = layer(3, positions=Sloping())
    attention.in_proj.weight.zero_()
    attention.in_proj.bias.zero_()
    with recording(attention) as seen:
        attention(normal(B, T, D))
    expected = Sloping().bias(T, T).softmax(-1).double().expand(B, H, T, T)
    torch.testing.assert_close(seen[""], expected, rtol=1e-6, atol=1e-6)  # the bias is float32


# the cache


def pieces(n):
    return [[n]] + [[i, *rest] for i in range(1, n) for rest in pieces(n - i)]


@GROUPS
@pytest.mark.parametrize("positions", [None, Turning, Sloping])
@torch.no_grad()
def test_cache_gives_the_same_output_at_every_split(n_kv_heads, positions):
    attention = layer(n_kv_heads, positions=None if positions is None else positions())
    x = normal(B, 6, D)
    expected = attention(x, causal=True)
    for sizes in pieces(6):
        cache = KVCache(max_len=9)
        parts = [attention(part, causal=True, cache=cache) for part in x.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected)
        assert cache.length == 6 and cache.max_len == 9


@torch.no_grad()
def test_cache_works_with_a_padding_mask_and_while_recording():
    attention, x = layer(2), normal(B, 6, D)
    visible = torch.ones(B, 1, 1, 6, dtype=torch.bool)
    visible[0, ..., :2] = False  # padded on the left
    expected = attention(x, mask=visible, causal=True)
    for watched in (False, True):
        cache, parts, seen = KVCache(6), [], {}
        for t in range(6):
            step = {"mask": visible[..., : t + 1], "cache": cache}
            if watched:
                with recording(attention) as seen:
                    parts.append(attention(x[:, t : t + 1], **step))
            else:
                parts.append(attention(x[:, t : t + 1], **step))
        torch.testing.assert_close(torch.cat(parts, dim=1), expected)
    assert seen[""].shape == (B, H, 1, 6)


@GROUPS
@torch.no_grad()
def test_cross_cache_is_filled_once_and_then_used(n_kv_heads):
    attention, query = layer(n_kv_heads), normal(B, T, D)
    key, value = normal(B, S, D, seed=1), normal(B, S, D, seed=2)
    for given in (None, value):
        cache, expected = KVCache(), attention(query, key, given)
        first = attention(query[:, :2], key, given, cache=cache)
        assert cache.length == cache.max_len == S
        other = torch.full_like(key, math.nan)  # would show at once if it were projected again
        rest = [attention(query[:, t : t + 1], other, other, cache=cache) for t in range(2, T)]
        torch.testing.assert_close(torch.cat([first, *rest], dim=1), expected)
        assert cache.length == S


def test_cache_refuses_gradients_but_works_with_a_frozen_layer():
    attention, x = layer(), normal(B, T, D)
    with pytest.raises(ValueError, match=r"inference alone, call it in torch.no_grad\(\)"):
        attention(x, cache=KVCache(T))
    attention.requires_grad_(False)
    assert attention(x, cache=KVCache(T)).shape == (B, T, D)


@torch.no_grad()
def test_cross_cache_refuses_a_key_of_another_length_or_batch():
    attention, cache, query = layer(), KVCache(), normal(B, 1, D)
    attention(query, normal(B, S, D), cache=cache)
    with pytest.raises(ValueError, match=rf"with S = {S}, got \({B}, {S + 1}, {D}\)"):
        attention(query, normal(B, S + 1, D), cache=cache)
    with pytest.raises(ValueError, match=rf"with B = {B}, got \({B + 1}, {S}, {D}\)"):
        attention(normal(B + 1, 1, D), normal(B + 1, S, D), cache=cache)


# recording


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = layer(2, seed=3), layer(6, seed=9)

    def forward(self, x):
        return self.second(self.first(x, causal=True), x)


@torch.no_grad()
def test_recording_names_every_layer_and_leaves_outputs_unchanged():
    model, x = Two(), normal(B, T, D)
    expected = model(x)
    with recording(model) as seen:
        torch.testing.assert_close(model(x), expected)
    assert list(seen) == ["first", "second"]
    with recording(nn.Linear(2, 2)) as none:
        pass
    assert none == {}
    for weights in seen.values():
        assert weights.shape == (B, H, T, T)
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T, dtype=torch.float64))
    assert not seen["first"].triu(1).any() and seen["second"].all()


@torch.no_grad()
def test_recording_keeps_the_latest_weights_of_a_layer_used_twice():
    shared = layer(2)
    model, x = nn.Sequential(shared, shared), normal(B, T, D)
    with recording(shared) as alone:
        shared(shared(x))
    with recording(model) as seen:
        model(x)
    assert list(seen) == ["0"] and torch.equal(seen["0"], alone[""])


@GROUPS
@pytest.mark.parametrize("n_queries", [T, 1])
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_recording_in_float16_leaves_large_outputs_finite(n_kv_heads, n_queries, autocast):
    attention, x = layer(n_kv_heads), normal(B, n_queries, D)
    attention.in_proj.weight[: 2 * D] *= 100  # scores of some 10,000 times the usual ones
    if not autocast:
        attention, x = attention.half(), x.half()
    else:
        attention, x = attention.float(), x.float()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        expected = attention(x)
        with recording(attention) as seen:
            watched = attention(x)
    assert expected.isfinite().all() and seen[""].isfinite().all()
    torch.testing.assert_close(watched, expected, rtol=0, atol=0.02)


@GROUPS
@torch.no_grad()
def test_autocast_works_with_masks_positions_and_a_cache(n_kv_heads):
    attention, x = layer(n_kv_heads, positions=Sloping()).float(), normal(B, T, D).float()
    mask = padding_mask(torch.tensor([3, T]))
    expected = attention(x, mask=mask, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        half, cache = attention(x, mask=mask, causal=True), KVCache(T)
        parts = [attention(x[:, t : t + 1], mask=mask[..., : t + 1], cache=cache) for t in range(T)]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(torch.cat(parts, dim=1).float(), expected, rtol=0, atol=0.1)


def test_recorded_weights_hold_no_graph():
    attention = layer()
    with recording(attention) as seen:
        attention(normal(B, T, D)).sum().backward()
    assert not seen[""].requires_grad and attention.in_proj.weight.grad is not None


def test_recording_removes_its_hooks_after_an_exception():
    model = Two()
    with pytest.raises(RuntimeError, match="on purpose"), recording(model):
        raise RuntimeError("on purpose")
    hooks = [m.weights._forward_hooks for m in (model.first, model.second)]
    assert not any(hooks)
    with recording(model) as seen:
        pass
    model(normal(B, T, D))
    assert not seen and not any(hooks)


@GROUPS
@torch.no_grad()
def test_hook_that_returns_weights_ablates_a_head(n_kv_heads):
    attention, x = layer(n_kv_heads), normal(B, T, D)
    without = copy.deepcopy(attention)
    without.out_proj.weight[:, 2 * K : 3 * K] = 0.0
    silent = lambda module, inputs, weights: weights.index_fill(1, torch.tensor(2), 0.0)  # noqa: E731
    for query in (x, x[:, :1]):
        handle = attention.weights.register_forward_hook(silent)
        ablated = attention(query, x)
        handle.remove()
        torch.testing.assert_close(ablated, without(query, x))
        assert (attention(query, x) - ablated).abs().max() > 0.1


@torch.no_grad()
def test_pre_hooks_and_replaced_weights_take_effect():
    attention, x = layer(2), normal(B, 1, D)
    expected = attention.out_proj.bias.expand(B, 1, D)
    handle = attention.weights.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    torch.testing.assert_close(attention(x), expected)
    handle.remove()

    class Silence(nn.Module):
        def forward(self, weights):
            return weights * 0

    attention.weights = Silence()
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.bad_input  # runs without the checks of signatures, through which nothing compiles
@torch.no_grad()
def test_recording_works_through_a_compiled_model():
    attention, x = layer(2), normal(B, T, D)
    compiled = torch.compile(attention, backend="eager")
    expected = compiled(x, causal=True)
    torch.testing.assert_close(expected, attention(x, causal=True))
    with recording(attention) as seen:
        torch.testing.assert_close(compiled(x, causal=True), expected)
    assert seen[""].shape == (B, H, T, T)
    assert torch.equal(compiled(x, causal=True), expected)


# speed that follows from structure, without timings


@torch.no_grad()
def test_single_query_copies_no_key_shared_by_heads(monkeypatch):
    attention, cache = layer(2), KVCache(64)
    attention(normal(B, 32, D), causal=True, cache=cache)

    def refuse(*arguments, **options):
        raise AssertionError("keys were repeated")

    monkeypatch.setattr(torch.Tensor, "repeat_interleave", refuse)
    attention(normal(B, 1, D), mask=torch.ones(B, 1, 1, 33, dtype=torch.bool), cache=cache)


@torch.no_grad()
@pytest.mark.parametrize(("inputs", "products"), [("x", 2), ("xm", 3), ("xmm", 3), ("xmn", 4)])
def test_projections_are_packed_if_possible(inputs, products, monkeypatch):
    calls, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *a, **o: calls.append(1) or linear(*a, **o))
    named = {name: normal(B, T, D, seed=i) for i, name in enumerate("xmn")}
    layer(2)(*[named[name] for name in inputs])
    assert len(calls) == products


# refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"d_model": 18, "n_heads": 4},
            "d_model must be a multiple of n_heads = 4 above 0, got 18",
        ),
        ({"d_model": 18, "n_heads": 0}, "n_heads must be an integer at least 1, got 0"),
        ({"d_model": 0, "n_heads": 2}, "d_model must be a multiple of n_heads = 2 above 0, got 0"),
        (
            {"d_model": 18, "n_heads": 6, "n_kv_heads": 4},
            "n_heads must be a multiple of n_kv_heads = 4 above 0, got 6",
        ),
        ({"d_model": 18, "n_heads": 6, "n_kv_heads": 12}, "n_kv_heads = 12 above 0, got 6"),
        (
            {"d_model": 18, "n_heads": 6, "n_kv_heads": 0},
            "n_kv_heads must be an integer at least 1, got 0",
        ),
        (
            {"d_model": 18, "n_heads": 6, "dropout": 1.0},
            r"dropout must be a number in \[0, 1\), got 1.0",
        ),
        ({"d_model": 18, "n_heads": 6, "dropout": -0.1}, "got -0.1"),
    ],
)
def test_multi_head_attention_refuses_sizes_that_do_not_fit_with_both_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(B, T, 17)], "query must have shape (B, T, D) with D = 18, got (2, 5, 17"),
        ([(T, D)], "query must have shape (B, T, D), got (5, 18)"),
        (
            [(B, T, D), (B, S, 17)],
            "key must have shape (B, S, D) with D = 18, got (2, 7, 17)",
        ),
        ([(B, T, D), (B, S, D), (B, S, 1)], "value must have shape"),
        (
            [(B, T, D), (B, S, D), (B, T, D)],
            "value must have shape (B, S, D) with S = 7, got (2, 5, 18)",
        ),
        ([(B, T, D), (1, S, D)], "key must have shape (B, S, D) with B = 2, got (1, 7, 18)"),
    ],
)
def test_multi_head_attention_refuses_inputs_of_the_wrong_shape(shapes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layer()(*[normal(*shape) for shape in shapes])


@pytest.mark.bad_input
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("n_kv_heads", [H, 2])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_multi_head_attention_refuses_mixed_dtypes_and_devices(which, n_kv_heads, watched):
    attention, name = layer(n_kv_heads), ("query", "key", "value")[which]
    if watched:
        attention.weights.register_forward_hook(lambda *_: None)
    inputs = [normal(B, n, D) for n in (T, S, S)]
    for dtype in (torch.float16, torch.float32, torch.int64):
        given = [x.to(dtype) if i == which else x for i, x in enumerate(inputs)]
        message = f"{name} must be torch.float64 on cpu, got {dtype}"
        with pytest.raises(ValueError, match=message):
            attention(*given)
    if which:
        given = [x.to("meta") if i == which else x for i, x in enumerate(inputs)]
        with pytest.raises(ValueError, match=f"{name} must be .* on cpu, got .* on meta"):
            attention(*given)
    with pytest.raises(ValueError, match="mask must be boolean on cpu, got .* on meta"):
        attention(*inputs, mask=torch.ones(T, S, dtype=torch.bool, device="meta"))


@pytest.mark.bad_input
@pytest.mark.parametrize("n_queries", [T, 1])
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("n_kv_heads", [H, 2])
def test_multi_head_attention_refuses_masks_that_do_not_fit(n_queries, watched, n_kv_heads):
    attention, query, key = layer(n_kv_heads), normal(B, n_queries, D), normal(B, S, D)
    if watched:
        attention.weights.register_forward_hook(lambda *_: None)
    for shape in ((B, S), (B, 1, S), (B, 1, 1, 1), (B, 1, 3, S), (3, 1, 1, S), (B, 4, 1, S), (S,)):
        with pytest.raises(ValueError, match="mask must have shape"):
            attention(query, key, mask=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be boolean on cpu, got torch.float64"):
        attention(query, key, mask=torch.ones(n_queries, S, dtype=torch.float64))


def test_multi_head_attention_refuses_a_value_without_a_key_and_positions_with_a_key():
    message = "^MultiHeadAttention: value needs key; positions need self-attention$"
    with pytest.raises(ValueError, match=message):
        layer()(normal(B, T, D), value=normal(B, T, D))
    with pytest.raises(ValueError, match=message):
        layer(positions=Turning())(normal(B, T, D), normal(B, S, D))


@pytest.mark.parametrize("heads", [1, 4])  # one would be broadcast silently
def test_multi_head_attention_refuses_a_bias_for_another_number_of_heads(heads):
    class Wrong(PositionScheme):
        def bias(self, n_queries, n_keys):
            return torch.zeros(heads, n_queries, n_keys)

    with pytest.raises(ValueError, match=rf"\(H, T, S\) with H = 6, got \({heads}, 5, 5\)"):
        layer(positions=Wrong())(normal(B, T, D))


def test_multi_head_attention_shows_its_sizes():
    text = "d_model=18, n_heads=6, n_kv_heads=2, dropout=0.0"
    assert text in repr(layer(2))
