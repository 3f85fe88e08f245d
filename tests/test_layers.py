"""Layers: equal to their equations, cached or not; bad input is refused."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from transformer_lib.attention import causal_mask, padding_mask
from transformer_lib.cache import KVCache, LayerCache
from transformer_lib.layers import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    PostNorm,
    PreNorm,
    RMSNorm,
)
from transformer_lib.multihead import MultiHeadAttention, recording
from transformer_lib.positions import AlibiBias, RotaryPositions
from transformer_lib.properties import influence
from transformer_lib.testing import check_attention

B, T, S, H, D, WIDE = 2, 5, 7, 3, 12, 17  # D = 12 lets 3 heads turn by rotary positions
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}
ACTIVATIONS = ["relu", "gelu", "gelu_tanh", "silu", *GATED]
NORMS = pytest.mark.parametrize("norm", ["post", "pre"])
BOTH = pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
BENDS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scatter(module, seed=3):
    """Float64, evaluation mode, and no parameter at a value that hides a mistake, such as 0."""
    for i, parameter in enumerate(module.double().eval().parameters()):
        spread = 0.5 if parameter.dim() == 1 else 1.5 / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(parameter.dim() % 2 + spread * normal(*parameter.shape, seed=seed + i))
    return module


def encoder(**options):
    return scatter(EncoderLayer(D, H, WIDE, **options))


def decoder(**options):
    return scatter(DecoderLayer(D, H, WIDE, **options))


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# feed-forward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_agrees_with_loops_over_positions_and_units(activation, bias):
    feed = scatter(FeedForward(D, WIDE, activation=activation, bias=bias))
    x = normal(T, D)
    bend = BENDS[GATED.get(activation, activation)]
    for position, out in zip(x, feed(x), strict=True):
        hidden = []
        for unit in range(WIDE):
            parts = (feed.gate, feed.up) if activation in GATED else (feed.up,)
            found = [(part.weight[unit] @ position).item() for part in parts]
            if bias:
                found = [f + p.bias[unit].item() for f, p in zip(found, parts, strict=True)]
            hidden.append(bend(found[0]) * (found[1] if activation in GATED else 1))
        expected = feed.down.weight @ torch.tensor(hidden, dtype=torch.float64)
        torch.testing.assert_close(out, expected + (feed.down.bias if bias else 0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_is_not_a_matrix(activation):
    def non_additivity(f):
        a, b = normal(2, T, D, seed=1)
        return (f(a + b) - f(a) - f(b) + f(torch.zeros_like(a))).abs().max()

    feed = scatter(FeedForward(D, WIDE, activation=activation))
    assert non_additivity(feed) > 0.1
    assert non_additivity(lambda x: feed.down(feed.up(x))) < 1e-12


def test_feed_forward_sees_one_position_at_a_time():
    felt = influence(scatter(FeedForward(D, WIDE)), [normal(B, T, D)])
    assert torch.equal(felt > 0, torch.eye(T, dtype=torch.bool).expand(B, T, T))


@pytest.mark.parametrize("shape", [(D,), (0, D), (B, T, D), (2, 3, 0, D), (2, 3, 5, D)])
def test_feed_forward_takes_any_leading_axes(shape):
    feed, x = scatter(FeedForward(D, WIDE)), normal(*shape)
    assert feed(x).shape == shape
    torch.testing.assert_close(feed(x).reshape(-1, D), feed(x.reshape(-1, D)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_has_as_many_parameters_as_the_formula(activation, bias):
    inner = WIDE * (2 if activation in GATED else 1)
    expected = D * inner + WIDE * D + bias * (inner + D)
    assert n_parameters(FeedForward(D, WIDE, activation=activation, bias=bias)) == expected


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_feed_forward_draws_each_matrix_by_glorot_on_its_own_shape(activation):
    torch.manual_seed(0)
    feed, bound = FeedForward(101, 211, activation=activation), math.sqrt(6 / (101 + 211))
    for part in filter(None, (feed.gate, feed.up, feed.down)):
        assert 0.99 * bound < part.weight.abs().max() <= bound
        assert not part.bias.any()


def test_feed_forward_drops_hidden_units_and_keeps_their_mean():
    n, p = 40_000, 5 / 16
    feed = FeedForward(1, n, dropout=p).train()
    nn.init.ones_(feed.up.weight)
    dropped = []
    feed.dropout.register_forward_hook(lambda module, given, out: dropped.append(out))
    torch.manual_seed(0)
    feed(torch.ones(1, 1))
    zeros = (dropped[0] == 0).double().mean()
    assert abs(zeros - p) < 5 * math.sqrt(p * (1 - p) / n)  # false alarm: 1 seed in a million
    torch.testing.assert_close(dropped[0].unique(), torch.tensor([0, 1 / (1 - p)]))
    assert feed.eval().dropout(torch.ones(n)).eq(1).all()


@pytest.mark.parametrize("activation", ["gelu", "silu", "swiglu", "geglu"])
def test_feed_forward_gradients_are_those_of_finite_differences(activation):
    feed = scatter(FeedForward(3, 5, activation=activation))
    assert torch.autograd.gradcheck(feed, normal(2, 3).requires_grad_(), fast_mode=True)


# norms


@pytest.mark.parametrize("eps", [1e-6, 1e-2, 0.0])
def test_rms_norm_agrees_with_its_equation_and_with_torch(eps):
    ours, theirs = scatter(RMSNorm(D, eps=eps)), nn.RMSNorm(D, eps=eps).double()
    theirs.load_state_dict(ours.state_dict())
    x = 0.01 * normal(B, T, D)  # small, so that eps counts
    expected = ours.weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.autograd.gradcheck(ours, x.requires_grad_(), fast_mode=True)


def test_rms_norm_keeps_a_fixed_eps_of_one_millionth_by_default():
    assert RMSNorm(D).eps == 1e-6
    x = torch.full((1, D), 1e-3, dtype=torch.float64)
    torch.testing.assert_close(RMSNorm(D).double()(x), x / math.sqrt(2e-6))


def test_rms_norm_ignores_scale_but_not_shift():
    norm, x = RMSNorm(D, eps=0.0).double(), normal(T, D)
    torch.testing.assert_close(norm(-3 * x), -norm(x))
    assert (norm(x + 1) - norm(x)).abs().max() > 0.1


def test_rms_norm_sends_zeros_to_zeros_with_finite_gradients():
    x = torch.zeros(T, D, requires_grad=True)
    out = RMSNorm(D)(x)
    out.sum().backward()
    assert not out.any() and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_norm_stays_finite_for_large_numbers_in_half_precision(dtype):
    x = torch.full((1, D), 300.0, dtype=dtype)  # its squares overflow float16
    out = RMSNorm(D).to(dtype)(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, torch.ones_like(x))


def test_rms_norm_prints_its_sizes():
    assert repr(RMSNorm(12, eps=0.5)) == "RMSNorm(d_model=12, eps=0.5)"


# residual connections


def test_post_norm_adds_then_norms_and_pre_norm_norms_then_adds():
    x, norm = normal(T, D), scatter(nn.LayerNorm(D))
    torch.testing.assert_close(PostNorm(norm)(x, torch.sin), norm(x + x.sin()))
    torch.testing.assert_close(PreNorm(norm)(x, torch.sin), x + norm(x).sin())


@pytest.mark.parametrize("around", [PostNorm, PreNorm])
def test_residual_drops_the_sublayer_output_and_not_the_stream(around):
    n, p = 40_000, 0.1
    module, x = around(nn.Identity(), p).train(), torch.full((n,), 7.0)
    torch.manual_seed(0)
    added = module(x, torch.ones_like) - x
    assert abs(added.eq(0).double().mean() - p) < 5 * math.sqrt(
        p * (1 - p) / n
    )  # 1 seed in a million
    torch.testing.assert_close(added.unique(), torch.tensor([0, 1 / (1 - p)]))
    assert module.eval()(x, torch.ones_like).eq(8).all()


@NORMS
@pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
def test_layers_drop_each_sublayer_output_once_with_probability_dropout(kind, norm):
    n_positions, p = 1000, 0.1
    layer = kind(32, 2, 4, norm=norm, dropout=p).train()
    names = [name for name, _ in layer.named_children() if name.endswith("_residual")]
    for i, name in enumerate(names):  # each sublayer returns a constant, in a digit of its own
        sublayer = getattr(layer, name.removesuffix("_residual"))
        out = sublayer.down if name == "feed_forward_residual" else sublayer.out_proj
        nn.init.zeros_(out.weight)
        nn.init.constant_(out.bias, (1 - p) * 10**i)
        getattr(layer, name).norm = nn.Identity()
    torch.manual_seed(0)
    x = torch.zeros(1, n_positions, 32)
    digits = (layer(x) if kind is EncoderLayer else layer(x, x[:, :3])).detach().round().long()
    bound = 5 * math.sqrt(p * (1 - p) / digits.numel())  # false alarm: 1 seed in 10^6
    for i in range(len(names)):
        kept = digits // 10**i % 10
        assert set(kept.unique().tolist()) == {0, 1}
        assert abs(kept.eq(0).double().mean() - p) < bound


# layers


def apply(norm, around, x, sublayer):
    return around.norm(x + sublayer(x)) if norm == "post" else x + sublayer(around.norm(x))


@NORMS
@pytest.mark.parametrize("norm_type", ["layer", "rms"])
def test_encoder_layer_equals_its_two_equations(norm, norm_type):
    layer, x = encoder(norm=norm, norm_type=norm_type), normal(B, T, D)
    assert type(layer.attention_residual.norm) is {"layer": nn.LayerNorm, "rms": RMSNorm}[norm_type]
    mask = torch.rand(B, H, T, T, generator=torch.Generator().manual_seed(1)) > 0.4
    h = apply(norm, layer.attention_residual, x, lambda y: layer.attention(y, mask=mask))
    expected = apply(norm, layer.feed_forward_residual, h, layer.feed_forward)
    torch.testing.assert_close(layer(x, mask), expected)


@NORMS
@pytest.mark.parametrize("norm_type", ["layer", "rms"])
def test_decoder_layer_equals_its_three_equations(norm, norm_type):
    layer, x, memory = decoder(norm=norm, norm_type=norm_type), normal(B, T, D), normal(B, S, D)
    mask, memory_mask = padding_mask(torch.tensor([5, 3])), padding_mask(torch.tensor([7, 4]))
    h = apply(
        norm,
        layer.self_attention_residual,
        x,
        lambda y: layer.self_attention(y, mask=mask & causal_mask(T)),
    )
    h = apply(
        norm,
        layer.cross_attention_residual,
        h,
        lambda y: layer.cross_attention(y, memory, mask=memory_mask),
    )
    expected = apply(norm, layer.feed_forward_residual, h, layer.feed_forward)
    torch.testing.assert_close(layer(x, memory, mask, memory_mask), expected)


@NORMS
@BOTH
@pytest.mark.parametrize("norm_type", ["layer", "rms"])
def test_layers_pass_eps_to_every_norm(kind, norm, norm_type):
    given = kind(D, H, WIDE, norm=norm, norm_type=norm_type, norm_eps=0.5)
    norms = [residual.norm for name, residual in given.named_children() if "residual" in name]
    assert [part.eps for part in norms] == [0.5] * (2 if kind is EncoderLayer else 3)
    default = kind(D, H, WIDE, norm=norm, norm_type=norm_type).feed_forward_residual.norm
    assert default.eps == (1e-5 if norm_type == "layer" else 1e-6)


def test_layers_use_the_attention_that_they_are_given():
    own, cross = MultiHeadAttention(D, H, d_head=5), MultiHeadAttention(D, H, scale=2.0)
    assert EncoderLayer(D, H, WIDE, attention=own).attention is own
    layer = DecoderLayer(D, H, WIDE, self_attention=own, cross_attention=cross)
    assert layer.self_attention is own and layer.cross_attention is cross


@NORMS
def test_encoder_positions_see_one_another_and_the_mask_decides(norm):
    layer, x = encoder(norm=norm), normal(B, T, D)
    assert (influence(layer, [x]) > 0).all()
    felt = influence(lambda x: layer(x, causal=True), [x])
    assert torch.equal(felt > 0, causal_mask(T).expand(B, T, T))
    seen = padding_mask(torch.tensor([5, 3]))
    felt = influence(lambda x: layer(x, seen), [x]) > 0
    assert torch.equal(felt, seen[:, 0] | torch.eye(T, dtype=torch.bool))


@NORMS
def test_decoder_positions_see_their_past_and_all_of_the_memory(norm):
    layer, x, memory = decoder(norm=norm), normal(B, T, D), normal(B, T, D, seed=1)  # S = T
    felt = influence(lambda x: layer(x, memory), [x])
    assert torch.equal(felt > 0, causal_mask(T).expand(B, T, T))
    assert (influence(lambda memory: layer(x, memory), [memory]) > 0).all()


def test_decoder_layer_applies_each_mask_to_its_own_attention():
    layer, x, memory = decoder(), normal(B, T, D), normal(B, S, D, seed=1)
    own, seen = padding_mask(torch.tensor([5, 3])), padding_mask(torch.tensor([7, 4]))
    felt = influence(lambda x: layer(x, memory, own, seen), [x]) > 0
    assert torch.equal(felt, (own[:, 0] | torch.eye(T, dtype=torch.bool)) & causal_mask(T))
    felt = influence(lambda memory: layer(x, memory, own, seen), [memory]) > 0
    assert torch.equal(felt, seen[:, 0].expand(B, T, S))


def test_decoder_layer_ignores_a_fully_masked_memory():
    layer, x, memory = decoder(), normal(B, T, D), normal(B, S, D, seed=1).requires_grad_()
    nothing = torch.zeros(B, 1, 1, S, dtype=torch.bool)
    out = layer(x, memory, memory_mask=nothing)
    torch.testing.assert_close(out, layer(x, normal(B, S, D, seed=2), memory_mask=nothing))
    torch.testing.assert_close(out, layer(x, memory[:, :0]))
    out.sin().sum().backward()
    assert not memory.grad.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


# caches


@NORMS
@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 1}, {"positions": "rotary"}])
def test_causal_encoder_layer_in_pieces_equals_the_whole(norm, options):
    if options.get("positions"):
        options = {"positions": RotaryPositions(D // H)}
    layer, x = encoder(norm=norm, **options), normal(B, S, D)
    with torch.no_grad():
        whole = layer(x, causal=True)
        for sizes in [[cut, S - cut] for cut in range(S + 1)] + [[1] * S]:
            cache = KVCache(S)
            pieces = [layer(piece, causal=True, cache=cache) for piece in x.split(sizes, dim=1)]
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
            assert cache.length == S


@NORMS
@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 1}, {"positions": "rotary"}])
def test_decoder_layer_in_pieces_equals_the_whole(norm, options):
    if options.get("positions"):
        options = {"positions": RotaryPositions(D // H)}
    layer, x, memory = decoder(norm=norm, **options), normal(B, T, D), normal(B, S, D, seed=1)
    seen = padding_mask(torch.tensor([7, 4]))
    with torch.no_grad():
        whole = layer(x, memory, memory_mask=seen)
        for sizes in [[cut, T - cut] for cut in range(T + 1)] + [[1] * T]:
            cache, pieces = LayerCache(KVCache(T), KVCache()), []
            for piece in x.split(sizes, dim=1):
                pieces.append(layer(piece, memory, memory_mask=seen, cache=cache))
                assert cache.cross_attention.length == S
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
            assert cache.self_attention.length == T


def test_mask_with_a_cache_covers_all_positions_so_far():
    layer, x, memory = decoder(), normal(B, T, D), normal(B, S, D, seed=1)
    mask = torch.rand(B, 1, T, T, generator=torch.Generator().manual_seed(1)) > 0.4
    with torch.no_grad():
        whole, cache, start = layer(x, memory, mask), LayerCache(KVCache(T), KVCache()), 0
        for piece in x.split([2, 3], dim=1):
            rows = slice(start, start + piece.shape[1])
            out = layer(piece, memory, mask[:, :, rows, : rows.stop], cache=cache)
            torch.testing.assert_close(out, whole[:, rows])
            start = rows.stop


@NORMS
def test_decoder_layer_lets_neighboring_rows_share_a_memory(norm):
    """Rows 0 to 2 read the first memory and rows 3 to 5 the second, which a cache holds once."""
    layer = scatter(DecoderLayer(D, H, WIDE, norm=norm))
    x, memory = normal(6, T, D), normal(2, S, D, seed=1)
    shared, own = (LayerCache(KVCache(T), KVCache()) for _ in range(2))
    with torch.no_grad():
        for part in x.split([2, 1, 2], dim=1):
            found = layer(part, memory, cache=shared)
            wanted = layer(part, memory.repeat_interleave(3, dim=0), cache=own)
            torch.testing.assert_close(found, wanted)
    assert [len(cache.cross_attention.stored()[0]) for cache in (shared, own)] == [2, 6]


@torch.no_grad()
def test_layers_continue_from_selected_cache_rows():
    layer, x, memory = decoder(), normal(3, T, D), normal(3, S, D, seed=1)
    for rows in ([2, 0, 1], [1, 1, 0, 2], [0]):
        cache = LayerCache(KVCache(T), KVCache())
        layer(x[:, :2], memory, cache=cache)
        assert cache.select(torch.tensor(rows)) is None
        unread = torch.full((len(rows), S, D), math.nan, dtype=x.dtype)  # the cache knows it
        after = layer(x[rows, 2:], unread, cache=cache)
        torch.testing.assert_close(after, layer(x, memory)[rows, 2:])


# what the arguments do


@BOTH
@pytest.mark.parametrize(
    "options",
    [{}, {"n_kv_heads": 1}, {"activation": "swiglu"}, {"bias": False}, {"norm_type": "rms"}]
    + [{"norm": "pre"}, {"dropout": 0.5}, {"attention_dropout": 0.5}],
)
def test_layers_have_as_many_parameters_as_the_formula(kind, options):
    bias, n_attentions = options.get("bias", True), 1 if kind is EncoderLayer else 2
    kv_width = D // H * options.get("n_kv_heads", H)
    inner = WIDE * (2 if "activation" in options else 1)
    attention = 2 * D * D + 2 * D * kv_width + bias * 2 * (D + kv_width)
    feed = D * inner + WIDE * D + bias * (inner + D)
    norm = D if "norm_type" in options else 2 * D
    expected = n_attentions * attention + feed + (n_attentions + 1) * norm
    assert n_parameters(kind(D, H, WIDE, **options)) == expected


@BOTH
def test_layers_use_no_part_twice(kind):
    layers = nn.ModuleList(kind(D, H, WIDE) for _ in range(3))
    assert n_parameters(layers) == 3 * n_parameters(layers[0])
    parts = [m for m in layers.modules() if not isinstance(m, nn.Identity | nn.ModuleList)]
    named = [part for _, part in layers.named_modules(remove_duplicate=False)]
    assert len(parts) == len([m for m in named if not isinstance(m, nn.Identity | nn.ModuleList)])
    n_attentions = sum(isinstance(part, MultiHeadAttention) for part in parts)
    assert n_attentions == (3 if kind is EncoderLayer else 6)


@BOTH
@pytest.mark.parametrize("option", ["dropout", "attention_dropout"])
def test_layers_drop_in_training_only(kind, option):
    inputs = [normal(B, T, D), normal(B, S, D)][: 1 if kind is EncoderLayer else 2]
    layer = scatter(kind(D, H, WIDE, **{option: 0.5}))
    torch.manual_seed(0)
    assert torch.equal(layer(*inputs), layer(*inputs))
    assert (layer.train()(*inputs) - layer(*inputs)).abs().max() > 1e-3
    other = {"dropout", "attention_dropout"} - {option}
    still = scatter(kind(D, H, WIDE, **dict.fromkeys(other, 0.0))).train()
    torch.testing.assert_close(still(*inputs), still.eval()(*inputs))


@BOTH
def test_attention_dropout_reaches_every_attention_layer_and_dropout_none(kind):
    def rates(**options):
        layer = kind(D, H, WIDE, **options)
        return {m.dropout for m in layer.modules() if isinstance(m, MultiHeadAttention)}

    assert rates(attention_dropout=0.3) == {0.3} and rates(dropout=0.3) == {0.0}


@BOTH
def test_layers_pass_heads_and_activation_to_their_parts(kind):
    layer = kind(D, 6, WIDE, n_kv_heads=2, activation="geglu")
    layers = [part for part in layer.modules() if isinstance(part, MultiHeadAttention)]
    assert {(part.n_heads, part.n_kv_heads) for part in layers} == {(6, 2)}
    assert layer.feed_forward.activation == "geglu"


def test_positions_act_in_self_attention_only():
    x, memory, scheme = normal(B, T, D), normal(B, S, D, seed=1), AlibiBias(H)
    plain, marked = encoder(), encoder(positions=scheme)
    assert (plain(x) - marked(x)).abs().max() > 1e-3 and marked.attention.positions is scheme
    plain, marked = decoder(), decoder(positions=scheme)
    assert (plain(x, memory) - marked(x, memory)).abs().max() > 1e-3
    assert marked.self_attention.positions is scheme and marked.cross_attention.positions is None
    order = torch.randperm(S, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(marked(x, memory[:, order]), marked(x, memory))


@NORMS
def test_layer_outputs_have_the_size_that_the_norm_implies(norm):
    layer = EncoderLayer(D, H, WIDE, norm=norm).double()
    large = (layer(100 * normal(B, T, D)).square().mean(-1) - 1).abs().min()
    assert large < 1e-3 if norm == "post" else large > 1


def test_recording_finds_each_attention_layer_by_name():
    layer, x, memory = decoder(), normal(B, T, D), normal(B, S, D)
    with recording(layer) as seen:
        layer(x, memory)
    assert {name: w.shape[1:] for name, w in seen.items()} == {
        "self_attention": (H, T, T),
        "cross_attention": (H, T, S),
    }
    with recording(encoder()) as seen:
        assert not seen


# depth, gradients, precision, storage


@NORMS
def test_twelve_layers_keep_positions_distinct_and_gradients_nonzero(norm):
    torch.manual_seed(0)
    layers = nn.Sequential(*(EncoderLayer(32, 4, 64, norm=norm) for _ in range(12)))
    x = torch.randn(1, 8, 32)
    out = layers(x)
    assert (out - out.mean(1, keepdim=True)).norm() / out.norm() > 0.01  # pure attention: 1e-7
    (out * torch.randn_like(out)).sum().backward()
    grads = [layer.feed_forward.down.weight.grad.norm() for layer in layers]
    assert min(grads) / max(grads) > 1e-2


@BOTH
@NORMS
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_layers_give_every_parameter_a_gradient(kind, norm, activation):
    inputs = [normal(B, T, D), normal(B, S, D)][: 1 if kind is EncoderLayer else 2]
    layer = scatter(kind(D, H, WIDE, norm=norm, activation=activation))
    (layer(*inputs) * normal(B, T, D, seed=9)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 1e-9, name


@BOTH
@NORMS
def test_layer_gradients_are_those_of_finite_differences(kind, norm):
    layer = scatter(kind(4, 2, 3, norm=norm, activation="silu"))
    inputs = [normal(1, 3, 4), normal(1, 2, 4, seed=1)][: 1 if kind is EncoderLayer else 2]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(layer, inputs, fast_mode=True)


@BOTH
@pytest.mark.parametrize("norm_type", ["layer", "rms"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_layers_work_in_every_precision(kind, norm_type, dtype):
    low = scatter(kind(D, H, WIDE, norm_type=norm_type)).to(dtype)
    inputs = [normal(B, T, D).to(dtype), normal(B, S, D).to(dtype)]
    inputs = inputs[: 1 if kind is EncoderLayer else 2]
    out, exact = low(*inputs), copy.deepcopy(low).double()(*(x.double() for x in inputs))
    assert out.dtype == dtype
    limit = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=limit, atol=limit)


@BOTH
@pytest.mark.parametrize("shape", [(0, T, D), (B, 0, D), (0, 0, D), (B, 1, D)])
def test_layers_accept_empty_inputs(kind, shape):
    x = torch.zeros(shape)
    layer = kind(D, H, WIDE)
    out = layer(x) if kind is EncoderLayer else layer(x, torch.zeros(shape[0], S, D))
    assert out.shape == shape and out.isfinite().all()


@BOTH
def test_layers_leave_inputs_unchanged(kind):
    inputs = [normal(B, T, D), normal(B, S, D)][: 1 if kind is EncoderLayer else 2]
    kept = [x.clone() for x in inputs]
    for norm in ("post", "pre"):
        scatter(kind(D, H, WIDE, norm=norm))(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True))


@BOTH
def test_layers_round_trip_through_a_state_dict(kind):
    options = {"norm": "pre", "norm_type": "rms", "activation": "geglu"}
    inputs = [normal(B, T, D), normal(B, S, D)][: 1 if kind is EncoderLayer else 2]
    first, second = scatter(kind(D, H, WIDE, **options)), kind(D, H, WIDE, **options).double()
    assert (first(*inputs) - second(*inputs)).abs().max() > 1e-3
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*inputs), second(*inputs))


@BOTH
def test_layers_treat_batch_rows_independently(kind):
    inputs = [normal(B, T, D), normal(B, S, D)][: 1 if kind is EncoderLayer else 2]
    layer = scatter(kind(D, H, WIDE))
    alone = [layer(*(x[row : row + 1] for x in inputs)) for row in range(B)]
    torch.testing.assert_close(torch.cat(alone), layer(*inputs))


@pytest.mark.parametrize("options", [{}, {"norm": "pre", "norm_type": "rms", "n_kv_heads": 2}])
def test_encoder_layer_passes_the_conformance_kit(options):
    torch.manual_seed(0)
    check_attention(
        EncoderLayer(12, 4, 20, **options),
        d_model=12,
        adapter=lambda layer, q, k, v, mask, causal, **cache: layer(
            q, mask, causal=causal, **cache
        ),
        make_cache=lambda: KVCache(64),
        skip={"cross-attention": "a layer for one sequence"},
    ).raise_if_failed()


# refusals


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeedForward(3, 5, activation="tanh"), "'geglu_tanh'), got 'tanh'"),
        (
            lambda: FeedForward(0, 5),
            "FeedForward: d_model must be an integer at least 1, got 0",
        ),
        (
            lambda: FeedForward(3, 0),
            "FeedForward: d_ff must be an integer at least 1, got 0",
        ),
        (lambda: FeedForward(3, 5, dropout=1.0), "dropout must be a number in [0, 1), got 1.0"),
        (lambda: RMSNorm(0), "RMSNorm: d_model must be an integer at least 1, got 0"),
        (lambda: RMSNorm(3, eps=-1.0), "RMSNorm: eps must be a number at least 0, got -1.0"),
        (lambda: PostNorm(nn.Identity(), 1.5), "PostNorm: dropout must be a number in [0, 1)"),
        (lambda: PreNorm(nn.Identity(), -0.1), "PreNorm: dropout must be a number in [0, 1)"),
        (
            lambda: EncoderLayer(D, H, WIDE, norm="both"),
            "EncoderLayer: norm must be one of ('post', 'pre'), got 'both'",
        ),
        (
            lambda: DecoderLayer(D, H, WIDE, norm_type="batch"),
            "DecoderLayer: norm_type must be one of ('layer', 'rms'), got 'batch'",
        ),
        (lambda: EncoderLayer(D, H, WIDE, dropout=1.0), "must be a number in [0, 1), got 1.0"),
        (lambda: EncoderLayer(D, H, WIDE, attention_dropout=-1.0), "in [0, 1), got -1.0"),
        (
            lambda: EncoderLayer(D, 5, WIDE),
            "d_model must be a multiple of n_heads = 5 above 0, got 12",
        ),
        (lambda: EncoderLayer(D, H, -2), "d_ff must be an integer at least 1, got -2"),
        (
            lambda: EncoderLayer(D, H, WIDE)(torch.zeros(B, T, 11)),
            "MultiHeadAttention: query must have shape (B, T, D) with D = 12, got (2, 5, 11)",
        ),
        (lambda: EncoderLayer(D, H, WIDE)(torch.zeros(T, D)), "got (5, 12)"),
        (
            lambda: EncoderLayer(D, H, WIDE)(torch.zeros(B, T, D), torch.zeros(T, T)),
            "mask must be boolean on cpu, got torch.float32",
        ),
        (
            lambda: EncoderLayer(D, H, WIDE)(
                torch.zeros(B, T, D), torch.ones(T, S, dtype=torch.bool)
            ),
            "mask must",
        ),
        (
            lambda: DecoderLayer(D, H, WIDE)(torch.zeros(B, T, D), torch.zeros(B, S, 11)),
            "MultiHeadAttention: key must have shape (B, S, D) with D = 12, got (2, 7, 11)",
        ),
        (
            lambda: DecoderLayer(D, H, WIDE)(torch.zeros(B, T, D), torch.zeros(1, S, D)),
            "key must have shape (B, S, D) with B = 2, got (1, 7, 12)",
        ),
    ],
)
def test_layers_refuse_bad_input_with_both_numbers(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.bad_input
@pytest.mark.parametrize("width", [1, D - 1])
@pytest.mark.parametrize(
    "module",
    [
        FeedForward(D, WIDE), RMSNorm(D), EncoderLayer(D, H, WIDE, norm="pre"),
        EncoderLayer(D, H, WIDE, norm="pre", norm_type="rms"),
    ],
)  # fmt: skip
def test_inputs_of_another_width_are_refused_by_torch_where_nothing_else_does(module, width):
    with pytest.raises(RuntimeError, match="shape"):
        module(torch.zeros(B, T, width))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
def test_layers_load_weights_that_were_saved_under_the_older_names(kind, activation):
    layer = scatter(kind(D, H, WIDE, activation=activation))
    state = layer.state_dict()
    if activation == "swiglu":
        for part in ("weight", "bias"):
            gate, up = (state.pop(f"feed_forward.{name}.{part}") for name in ("gate", "up"))
            state[f"feed_forward.inner.{part}"] = torch.cat([gate, up])
    old = {}
    for name, value in state.items():
        head, *rest = name.split(".")
        if head.endswith("_residual"):
            head = f"around_{head.removesuffix('_residual')}"
        name = ".".join([head, *rest]).replace("forward.up", "forward.inner")
        old[name.replace("forward.down", "forward.outer")] = value
    assert not set(old) & {name for name in layer.state_dict() if "residual" in name}
    ours = kind(D, H, WIDE, activation=activation).double()
    ours.load_state_dict(old)
    for name, value in layer.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
