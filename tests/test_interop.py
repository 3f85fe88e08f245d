"""Copies of PyTorch's modules compute what their originals do; other modules are refused."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transformer_lib.attention import causal_mask, padding_mask
from transformer_lib.cost import cost
from transformer_lib.interop import from_torch, to_torch, transformer_from_torch
from transformer_lib.layers import DecoderLayer, EncoderLayer
from transformer_lib.models import TransformerConfig
from transformer_lib.multihead import MultiHeadAttention, PositionScheme, recording

B, T, S, H, D, WIDE, V = 2, 5, 7, 6, 18, 17, 31  # the width of a head is 3
KINDS = [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# attention


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_copied_attention_agrees_with_torch_given_the_inverted_mask(bias):
    theirs = nn.MultiheadAttention(D, H, bias=bias, batch_first=True).double().eval()
    if bias:
        theirs.in_proj_bias.copy_(normal(3 * D, seed=8))
        theirs.out_proj.bias.copy_(normal(D, seed=9))
    ours, query, key, value = (
        from_torch(theirs),
        normal(B, T, D),
        normal(B, S, D, seed=1),
        normal(B, S, D, seed=2),
    )
    assert ours.in_proj.weight.dtype == torch.float64 and not ours.training
    tolerance = {"rtol": 0, "atol": 1e-12}
    mask = torch.rand(T, S, generator=torch.Generator().manual_seed(5)) > 0.3
    mask[:, 0] = True
    expected, weights = theirs(query, key, value, attn_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(ours(query, key, value, mask), expected, **tolerance)
    with recording(ours) as seen:
        ours(query, key, value, mask)
    torch.testing.assert_close(seen[""], weights, **tolerance)
    lengths = torch.tensor([3, S])
    padding = torch.arange(S) >= lengths[:, None]
    expected = theirs(query, key, value, key_padding_mask=padding, need_weights=False)[0]
    ours_padded = ours(query, key, value, padding_mask(lengths, S))
    torch.testing.assert_close(ours_padded, expected, **tolerance)
    expected = theirs(query, query, query, attn_mask=~causal_mask(T), need_weights=False)[0]
    torch.testing.assert_close(ours(query, causal=True), expected, **tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_from_torch_and_to_torch_round_trip_exactly_with_options(bias, batch_first):
    theirs = nn.MultiheadAttention(D, H, dropout=0.25, bias=bias, batch_first=batch_first)
    theirs = theirs.half().train()
    ours = from_torch(theirs)
    back = to_torch(ours)
    assert ours.dropout == back.dropout == 0.25 and ours.training and back.training
    assert back.batch_first and not to_torch(ours.eval()).training
    assert {n: x.dtype for n, x in back.state_dict().items()} == {
        n: x.dtype for n, x in theirs.state_dict().items()
    }
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name])


def test_from_torch_shares_no_memory():
    theirs = nn.MultiheadAttention(D, H)
    ours = from_torch(theirs)
    pointers = {
        p.data_ptr() for module in (theirs, ours, to_torch(ours)) for p in module.parameters()
    }
    assert len(pointers) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kdim": 5}, r"kdim must be one of \(18,\), got 5"),
        ({"vdim": 5}, r"vdim must be one of \(18,\), got 5"),
        ({"add_bias_kv": True}, r"add_bias_kv must be one of \(False,\), got True"),
        ({"add_zero_attn": True}, r"add_zero_attn must be one of \(False,\), got True"),
    ],
)
def test_from_torch_refuses_an_attention_module_without_counterpart(options, message):
    with pytest.raises(ValueError, match=f"from_torch: {message}"):
        from_torch(nn.MultiheadAttention(D, H, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_kv_heads": 2}, r"n_kv_heads must be one of \(6,\), got 2"),
        ({"positions": PositionScheme()}, r"positions must be one of \(None,\), got Pos"),
        ({"d_head": 5}, r"d_head must be one of \(3.0,\), got 5"),
        ({"scale": 1.0}, r"scale must be one of \(None,\), got 1.0"),
        ({"bias": True, "qkv_bias": False}, r"bias must be one of \(False,\), got True"),
        ({"bias": False, "qkv_bias": True}, r"bias must be one of \(True,\), got False"),
    ],
)
def test_to_torch_refuses_an_attention_module_without_counterpart(options, message):
    with pytest.raises(ValueError, match=f"to_torch: {message}"):
        to_torch(MultiHeadAttention(D, H, **options))


# layers


def scattered(module, seed=5):
    """Float64, evaluation mode, and no parameter at a value that hides a mistake, such as 0."""
    for i, parameter in enumerate(module.double().eval().parameters()):
        spread = 0.5 if parameter.dim() == 1 else 1.5 / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(parameter.dim() % 2 + spread * normal(*parameter.shape, seed=seed + i))
    return module


def theirs(kind, **options):
    sizes = {"d_model": D, "nhead": H, "dim_feedforward": WIDE, "batch_first": True}
    return scattered(kind(**sizes | {"dropout": 0.1} | options))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "activation", ["relu", "gelu", F.silu, nn.GELU(), nn.GELU("tanh"), torch.relu]
)
@pytest.mark.parametrize("bias", [True, False])
def test_copied_encoder_layer_equals_torchs(norm_first, activation, bias):
    options = {"norm_first": norm_first, "activation": activation, "bias": bias}
    layer = theirs(nn.TransformerEncoderLayer, **options, layer_norm_eps=0.1)
    ours, x = from_torch(layer), normal(B, T, D)
    hidden = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    mask = torch.rand(T, T, generator=torch.Generator().manual_seed(1)) > 0.4
    mask.fill_diagonal_(True)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(ours(x), layer(x), **close)
    torch.testing.assert_close(ours(x, mask), layer(x, src_mask=~mask), **close)
    torch.testing.assert_close(ours(x, causal=True), layer(x, src_mask=~causal_mask(T)), **close)
    expected = layer(x, src_key_padding_mask=hidden)[~hidden]
    torch.testing.assert_close(ours(x, ~hidden[:, None, None])[~hidden], expected, **close)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_copied_decoder_layer_equals_torchs(norm_first, activation, bias):
    options = {"norm_first": norm_first, "activation": activation, "bias": bias}
    layer = theirs(nn.TransformerDecoderLayer, **options, layer_norm_eps=0.1)
    ours, x, memory = from_torch(layer), normal(B, T, D), normal(B, S, D, seed=1)
    future, hidden = ~causal_mask(T), ~padding_mask(torch.tensor([7, 4]))[:, 0, 0]
    mask = torch.rand(T, T, generator=torch.Generator().manual_seed(1)) > 0.4
    memory_mask = torch.rand(T, S, generator=torch.Generator().manual_seed(2)) > 0.4
    mask.fill_diagonal_(True), memory_mask[:, 0].fill_(True)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(ours(x, memory), layer(x, memory, tgt_mask=future), **close)
    expected = layer(x, memory, tgt_mask=future | ~mask, memory_mask=~memory_mask)
    torch.testing.assert_close(ours(x, memory, mask, memory_mask), expected, **close)
    expected = layer(x, memory, tgt_mask=future, memory_key_padding_mask=hidden)
    torch.testing.assert_close(
        ours(x, memory, memory_mask=~hidden[:, None, None]), expected, **close
    )


@pytest.mark.parametrize("kind", KINDS)
def test_from_torch_copies_every_dropout_the_mode_and_the_dtype(kind):
    layer = theirs(kind, dropout=0.2).float().train()
    layer.dropout.p, layer.dropout1.p, layer.norm2.eps = 0.3, 0.4, 0.5
    ours = from_torch(layer)
    assert type(ours) is (EncoderLayer if kind is nn.TransformerEncoderLayer else DecoderLayer)
    assert ours.training and all(p.dtype == torch.float32 for p in ours.parameters())
    around = [part for name, part in ours.named_children() if name.endswith("_residual")]
    assert [part.dropout.p for part in around] == [0.4, 0.2, 0.2][: len(around)]
    assert [part.norm.eps for part in around] == [1e-5, 0.5, 1e-5][: len(around)]
    assert ours.feed_forward.dropout.p == 0.3
    layers = [part for part in ours.modules() if isinstance(part, MultiHeadAttention)]
    assert [part.dropout for part in layers] == [0.2] * len(layers)
    assert not {p.data_ptr() for p in ours.parameters()} & {
        p.data_ptr() for p in layer.parameters()
    }
    assert not from_torch(layer.eval()).training


def odd_activation(x):
    return x.sin()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", [nn.Tanh(), odd_activation])
def test_from_torch_refuses_an_activation_that_has_no_name(kind, activation):
    layer = kind(D, H, activation=activation, batch_first=True)
    names = "('relu', 'gelu', 'silu', 'gelu_tanh')"
    message = f"from_torch: activation must be one of {names}, got {activation!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        from_torch(layer)


@pytest.mark.bad_input
@pytest.mark.parametrize("odd", [nn.Linear(2, 2), EncoderLayer(D, H, WIDE)])
def test_from_torch_refuses_other_modules(odd):
    classes = (nn.MultiheadAttention, *KINDS)
    message = f"from_torch: module must be one of {classes}, got {type(odd)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        from_torch(odd)


# whole models


def draw():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(V, (3, n), generator=generator) for n in (S, T)]


def torch_model(**options):
    torch.manual_seed(2)
    sizes = {"d_model": 24, "nhead": 2, "num_encoder_layers": 2, "num_decoder_layers": 3}
    model = nn.Transformer(**sizes, dim_feedforward=37, batch_first=True, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval(), nn.Embedding(V, 24).double()


def torch_logits(model, embedding, table, source, target, visible=None):
    embed = lambda tokens: embedding(tokens) * 24**0.5 + table[: tokens.shape[1]]  # noqa: E731
    hide = None if visible is None else ~visible
    masks = {"tgt_mask": ~causal_mask(target.shape[1]), "src_key_padding_mask": hide}
    out = model(embed(source), embed(target), memory_key_padding_mask=hide, **masks)
    return out @ embedding.weight.T


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_copied_transformer_agrees_with_torchs(norm_first, activation, bias):
    options = {"norm_first": norm_first, "activation": activation, "bias": bias}
    theirs, embedding = torch_model(**options, layer_norm_eps=1e-2)
    ours = transformer_from_torch(theirs, embedding, max_len=11)
    source, target = draw()
    for visible in (None, torch.arange(S) < torch.tensor([[4], [S], [2]])):
        mask = None if visible is None else visible[:, None, None]
        expected = torch_logits(theirs, embedding, ours.positions.table, source, target, visible)
        logits = ours(source, target, source_mask=mask)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert not ours.training and ours.output.weight is ours.embedding.weight


def test_transformer_from_torch_describes_what_it_copied():
    theirs, embedding = torch_model(dropout=0.25)
    ours = transformer_from_torch(theirs.train(), embedding, max_len=13, positions="none")
    rates = {"dropout": 0.25, "attention_dropout": 0.25}
    sizes = {"d_model": 24, "n_heads": 2, "d_ff": 37, "n_encoder_layers": 2, "n_decoder_layers": 3}
    choices = {"positions": "none", "final_norm": True, "max_len": 13}
    expected = TransformerConfig(vocab_size=V, **sizes, **choices, **rates)
    assert ours.config == expected and ours.training and ours.positions is None
    assert sum(p.numel() for p in ours.parameters()) == cost(expected).parameters
    with torch.no_grad():
        theirs.encoder.layers[0].linear1.weight.zero_()
    assert ours.encoder[0].feed_forward.up.weight.abs().sum() > 0  # copied, not shared


def test_transformer_from_torch_without_final_norms():
    theirs, embedding = torch_model()
    theirs.encoder.norm = theirs.decoder.norm = None
    ours = transformer_from_torch(theirs, embedding)
    assert isinstance(ours.decoder_norm, nn.Identity) and ours.config.final_norm is False
    source, target = draw()
    expected = torch_logits(theirs, embedding, ours.positions.table, source, target)
    torch.testing.assert_close(ours(source, target), expected, rtol=0, atol=1e-10)


@pytest.mark.bad_input
def test_transformer_from_torch_refuses_models_without_a_counterpart():
    theirs, embedding = torch_model()
    with pytest.raises(ValueError, match=r"embedding must have .* D = 24, got \(31, 23\)"):
        transformer_from_torch(theirs, nn.Embedding(V, 23))
    with pytest.raises(ValueError, match="positions must be one of .*, got 'rotary'"):
        transformer_from_torch(theirs, embedding, positions="rotary")
    theirs.encoder.norm = None
    message = "transformer_from_torch: layer must be one of .*_norm': False.*, got .*_norm': True"
    with pytest.raises(ValueError, match=message):
        transformer_from_torch(theirs, embedding)
    theirs.encoder = nn.Identity()
    with pytest.raises(ValueError, match="layer must be one of .*EncoderLayer.*, got .*Identity"):
        transformer_from_torch(theirs, embedding)
    swapped, _ = torch_model()
    swapped.decoder = swapped.encoder
    with pytest.raises(ValueError, match="layer must be one of .*DecoderLayer.*, got .*EncoderL"):
        transformer_from_torch(swapped, embedding)
    mixed, _ = torch_model()
    mixed.decoder.layers[1].norm_first = True
    with pytest.raises(ValueError, match="layer must be one of .*'post'.*, got .*'pre'"):
        transformer_from_torch(mixed, embedding)
