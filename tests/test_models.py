"""Whole models, with and without encoder, agree with torch's and refuse bad input."""

import copy
import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transformer_lib.attention import causal_mask, padding_mask
from transformer_lib.cost import cost
from transformer_lib.interop import from_torch
from transformer_lib.layers import RMSNorm
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig
from transformer_lib.positions import sinusoidal_positions
from transformer_lib.testing import check_model

B, S, T, V = 3, 7, 5, 31  # distinct primes: no axis can pass for another
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "relative", "none")
MODERN = {"norm": "pre", "norm_type": "rms", "activation": "swiglu", "n_kv_heads": 1, "bias": False}


def small(**changes):
    sizes = {"d_model": 24, "n_heads": 2, "d_ff": 37, "n_encoder_layers": 2, "n_decoder_layers": 3}
    rest = {"vocab_size": V, "max_len": 11, "dropout": 0.0}
    return TransformerConfig(**{**sizes, **rest, **changes})


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return Transformer(small(**changes)).double().eval()


def draw(batch=B, s=S, t=T):
    generator = torch.Generator().manual_seed(1)
    tokens = (torch.randint(V, (batch, n), generator=generator) for n in (s, t))
    return tuple(tokens)


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# --- agreement ---------------------------------------------------------------------------------


def test_transformer_adds_positions_to_scaled_embeddings():
    model, entered = build(), []
    model.encoder[0].register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    source, target = draw()
    model(source, target)
    expected = math.sqrt(24) * model.embedding.weight[source] + model.positions.table[:S].double()
    torch.testing.assert_close(entered[0], expected, rtol=0, atol=0)


def test_transformer_forward_is_encode_then_decode():
    model, mask = build(), padding_mask(torch.tensor([4, 7, 2]))
    source, target = draw()
    memory = model.encode(source, mask)
    both = model.decode(target, memory, mask)
    torch.testing.assert_close(model(source, target, source_mask=mask), both, rtol=0, atol=0)


# --- properties --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {**MODERN, "positions": "rotary"}], ids=["2017", "modern"])
def test_transformer_passes_the_conformance_kit(options):
    torch.manual_seed(0)
    check_model(Transformer(small(**options)), vocab_size=V).raise_if_failed()


SURE_AT_FIRST = pytest.mark.xfail(
    strict=True, reason="a wide pre-norm Transformer with tied embeddings starts far above ln V"
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_embeddings": False},
        {**MODERN, "positions": "rotary", "tie_embeddings": False},
        pytest.param({**MODERN, "positions": "rotary"}, marks=SURE_AT_FIRST),
        pytest.param({"norm": "pre"}, marks=SURE_AT_FIRST),
    ],
    ids=["2017", "2017 untied", "modern untied", "modern", "pre-norm"],
)
def test_transformer_passes_check_model_at_a_real_width(options):
    sizes = {"d_model": 384, "n_heads": 6, "d_ff": 4 * 384}
    model = Transformer(small(**(options | sizes)))
    check_model(model, vocab_size=V).raise_if_failed()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("options", [{}, MODERN, {"n_kv_heads": 1}], ids=["2017", "modern", "mqa"])
def test_transformer_with_a_cache_equals_one_pass_at_every_split(positions, options):
    model, mask = build(positions=positions, **options), padding_mask(torch.tensor([4, 7, 2]))
    source, target = draw()
    with torch.no_grad():
        memory = model.encode(source, mask)
        whole = model.decode(target, memory, mask)
        for cuts in itertools.chain(itertools.combinations(range(1, T), 1), [(1, 3), (1, 2, 3, 4)]):
            cache, edges = model.make_cache(T), [0, *cuts, T]
            pieces = [
                model.decode(target[:, a:b], memory, mask, cache=cache)
                for a, b in itertools.pairwise(edges)
            ]
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", POSITIONS)
def test_transformer_decoder_sees_the_past_and_not_the_future(positions):
    model = build(positions=positions)
    source, target = draw()
    logits = model(source, target)
    for t in range(T):
        changed = target.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        moved = (model(source, changed) - logits).abs().amax(dim=(0, 2))
        assert (moved[:t] == 0).all() and (moved[t:] > 1e-6).all()


def test_transformer_ignores_padding_and_not_a_token():
    model, lengths = build(), torch.tensor([4, 7, 2])
    source, target = draw()
    mask = padding_mask(lengths)
    logits = model(source, target, source_mask=mask)
    other = torch.where(mask[:, 0, 0], source, (source + 5) % V)
    torch.testing.assert_close(model(other, target, source_mask=mask), logits, rtol=0, atol=0)
    assert not torch.equal(other, source)
    for b, n in enumerate(lengths.tolist()):
        alone = model(source[b : b + 1, :n], target[b : b + 1])
        torch.testing.assert_close(alone, logits[b : b + 1])
        changed = source.clone()
        changed[b, n - 1] = (changed[b, n - 1] + 1) % V
        assert not torch.allclose(model(changed, target, source_mask=mask)[b], logits[b])


def test_transformer_target_mask_hides_target_tokens():
    model = build()
    source, target = draw()
    hidden = torch.ones(T, T, dtype=torch.bool)
    hidden[2:, 1] = False
    changed = target.clone()
    changed[:, 1] = (changed[:, 1] + 1) % V
    one, two = (
        model(source, tokens, target_mask=hidden[None, None]) for tokens in (target, changed)
    )
    assert not torch.allclose(one[:, 1], two[:, 1])
    torch.testing.assert_close(one[:, 2:], two[:, 2:], rtol=0, atol=0)


def test_transformer_accepts_empty_batches_and_sequences():
    model = build()
    for batch, s, t in ((0, S, T), (B, 0, T), (B, S, 0), (B, 0, 0)):
        logits = model(*draw(batch, s, t))
        assert logits.shape == (batch, t, V) and logits.isfinite().all()
    with torch.no_grad():
        source, target = draw(s=0)
        memory, cache = model.encode(source), model.make_cache()
        pieces = [model.decode(target[:, t : t + 1], memory, cache=cache) for t in range(T)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(source, target))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_transformer_gradients_are_finite_for_a_source_of_padding():
    model = build()
    source, target = draw()
    with torch.autograd.detect_anomaly(check_nan=True):
        model(source, target, source_mask=padding_mask(torch.tensor([0, 7, 2]), S)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# --- state -------------------------------------------------------------------------------------


def test_transformer_round_trips_through_a_state_dict():
    one, two = build(seed=0, positions="relative"), build(seed=1, positions="relative")
    source, target = draw()
    assert not torch.allclose(one(source, target), two(source, target))
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(source, target), two(source, target), rtol=0, atol=0)
    assert two.output.weight is two.embedding.weight


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.to(torch.float32),
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: m.half(),
    ],
    ids=["to", "deepcopy", "pickle", "half"],
)
def test_transformer_tied_weights_stay_tied(change):
    model = change(build())
    assert model.output.weight is model.embedding.weight
    assert n_parameters(model) == cost(model.config).parameters
    before = model.output.weight.clone()
    loss = model(*draw()).float().logsumexp(dim=-1).mean()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert model.output.weight is model.embedding.weight
    assert not torch.equal(model.output.weight, before)


def test_transformer_untied_weights_are_two():
    model = build(tie_embeddings=False)
    assert model.output.weight is not model.embedding.weight
    assert not torch.equal(model.output.weight, model.embedding.weight)
    assert model.output.weight.detach().std().item() == pytest.approx(
        24**-0.5, rel=0.1
    )  # 744 draws: 4 sigma


def test_transformer_layers_have_their_own_weights():
    model = build()
    layers = [*model.encoder, *model.decoder]
    weights = {layer.feed_forward.up.weight.data_ptr() for layer in layers}
    assert len(weights) == len(layers) == 5


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_transformer_contains_no_recurrence_or_convolution():
    model, fired = build(), []
    model.register_forward_hook(lambda *_: fired.append("forward"))
    model.register_full_backward_hook(lambda *_: fired.append("backward"))
    model(*draw()).sum().backward()
    assert fired == ["forward", "backward"]
    banned = (nn.RNNBase, nn.modules.conv._ConvNd)
    assert not any(isinstance(module, banned) for module in model.modules())


def test_transformer_is_deterministic_in_evaluation_only():
    source, target = draw()
    for options in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        model = build(**options)
        assert torch.equal(model(source, target), model(source, target))
        model.train()
        assert not torch.equal(model(source, target), model(source, target))


def test_transformer_drops_sums_of_embedding_and_position():
    model, entered = build(dropout=0.5).train(), []
    model.encoder[0].register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    torch.manual_seed(0)
    model(*draw(batch=50))
    dropped = (entered[0] == 0).double().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.03)  # 8,400 coins: beyond 5 sigma


# --- birth and learning ------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_transformer_untied_loss_at_initialization_is_half_a_nat_above_ln_v(norm):
    torch.manual_seed(0)
    model = Transformer(small(d_model=96, tie_embeddings=False, final_norm=True, norm=norm))
    source, target = draw(batch=100)
    labels = torch.randint(V, (100, T), generator=torch.Generator().manual_seed(3))
    loss = F.cross_entropy(model(source, target).flatten(0, 1), labels.flatten()).item()
    assert loss - math.log(V) == pytest.approx(0.5, abs=0.25)  # std 1 would lose about 50


def test_transformer_tied_at_initialization_is_neither_certain_nor_informed():
    torch.manual_seed(0)
    model = Transformer(small(d_model=96))
    source, target = draw(batch=100)
    labels = torch.randint(V, (100, T), generator=torch.Generator().manual_seed(3))
    loss = F.cross_entropy(model(source, target).flatten(0, 1), labels.flatten()).item()
    assert 0 < loss - math.log(V) < 1.5
    assert model.embedding.weight.detach().std().item() == pytest.approx(96**-0.5, rel=0.05)


def test_transformer_can_overfit_one_batch():
    model = Transformer(small()).train()  # a smoke test: most faults survive it
    source, target = draw()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        logits = model(source, target[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


# --- configuration -----------------------------------------------------------------------------


def test_config_is_frozen_hashable_and_replaceable():
    config = small()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 48
    assert {config: 1}[small()] == 1 and config != small(d_ff=41)
    assert dataclasses.replace(config, n_heads=3).d_head == 8
    assert config.kv_heads == 2 and small(n_kv_heads=1).kv_heads == 1


def test_config_final_norm_follows_pre_norm_by_default():
    kinds = {
        (norm, final): type(build(norm=norm, final_norm=final).encoder_norm)
        for norm in ("post", "pre")
        for final in (None, True, False)
    }
    assert kinds[("pre", None)] is kinds[("pre", True)] is kinds[("post", True)] is nn.LayerNorm
    assert kinds[("post", None)] is kinds[("pre", False)] is kinds[("post", False)] is nn.Identity
    assert type(build(norm="pre", norm_type="rms").decoder_norm) is RMSNorm


def test_config_presets_are_those_of_the_paper():
    base, big = TransformerConfig.base(), TransformerConfig.big()
    sizes = ("vocab_size", "d_model", "n_heads", "d_ff", "n_encoder_layers", "n_decoder_layers")
    assert [getattr(base, name) for name in sizes] == [37_000, 512, 8, 2048, 6, 6]
    assert [getattr(big, name) for name in sizes] == [37_000, 1024, 16, 4096, 6, 6]
    assert (base.d_head, big.d_head, base.dropout, big.dropout) == (64, 64, 0.1, 0.3)
    for config in (base, big):
        assert (config.norm, config.positions, config.activation) == ("post", "sinusoidal", "relu")
        assert config.tie_embeddings and config.attention_dropout == 0 and not config.has_final_norm
    assert cost(base).parameters == 63_082_496 and cost(big).parameters == 214_245_376
    assert round(cost(TransformerConfig.big(36_000)).parameters / 1e6) == 213
    assert (
        TransformerConfig.tiny(V, d_ff=41).d_ff == 41
        and TransformerConfig.base(V, norm="pre").norm == "pre"
    )


CHANGES = {
    "vocab_size": 37, "d_model": 28, "n_heads": 4, "d_ff": 41, "n_encoder_layers": 3,
    "n_decoder_layers": 2, "max_len": 13, "positions": "relative", "norm": "pre",
    "norm_type": "rms", "norm_eps": 0.5, "activation": "gelu", "n_kv_heads": 1, "head_dim": 7,
    "bias": False, "final_norm": True, "tie_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_config_fields_each_change_the_model(field):
    before, after = small(), dataclasses.replace(small(), **{field: CHANGES[field]})
    assert cost(after).parameters == n_parameters(Transformer(after))
    if field in (
        "n_heads",
        "activation",
        "norm_eps",
    ):  # no parameter more or less, but another function
        assert cost(after).parameters == cost(before).parameters
        one, two = (
            build(**({} if config is before else {field: CHANGES[field]}))
            for config in (before, after)
        )
        two.load_state_dict(one.state_dict())
        assert not torch.allclose(one(*draw()), two(*draw()))
    elif field == "max_len":
        assert Transformer(before).positions.table.shape[0] == 11
        assert Transformer(after).positions.table.shape[0] == 13
    else:
        assert cost(after).parameters != cost(before).parameters


def test_models_give_the_final_norm_its_eps_too():
    model = build(norm="pre", norm_eps=0.5)
    assert model.encoder_norm.eps == model.decoder_norm.eps == 0.5


def test_relative_buckets_look_both_ways_in_the_encoder_only():
    model = build(positions="relative")
    assert all(layer.attention.positions.bidirectional for layer in model.encoder)
    assert not any(layer.self_attention.positions.bidirectional for layer in model.decoder)
    assert model.encoder[0].attention.positions is model.encoder[1].attention.positions


# --- the cache ---------------------------------------------------------------------------------


def test_make_cache_defaults_to_max_len():
    with torch.no_grad():
        model = build()
        memory, cache = model.encode(draw()[0]), model.make_cache()
        for _ in range(11):
            model.decode(torch.zeros(B, 1, dtype=torch.int64), memory, cache=cache)
    assert all(
        layer.self_attention.length == 11 and layer.cross_attention.length == S for layer in cache
    )


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, "d_model must be a multiple of n_heads = 5 above 0, got 24"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_heads must be a multiple of n_kv_heads = 3 above 0"),
        ({"head_dim": 0}, "d_head must be an integer at least 1, got 0"),
        ({"head_dim": 3, "positions": "rotary"}, "d_head must be a multiple of 2 above 0, got 3"),
        ({"norm_eps": 1}, r"norm_eps must be one of .*float.*, got 1"),
        ({"n_kv_heads": 0}, "n_kv_heads must be an integer at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be a number in .0, 1., got 1.0"),
        ({"attention_dropout": -0.1}, r"attention_dropout must be a number in .0, 1., got -0.1"),
        ({"positions": "sine"}, r"positions must be one of \('sinusoidal', .*'none'\), got 'sine'"),
        ({"norm": "middle"}, r"norm must be one of \('post', 'pre'\), got 'middle'"),
        ({"norm_type": "batch"}, r"norm_type must be one of \('layer', 'rms'\), got 'batch'"),
        ({"activation": "tanh"}, "activation must be one of .*'geglu'.*, got 'tanh'"),
        ({"d_model": 25, "n_heads": 5}, "d_model must be a multiple of 2 above 0, got 25"),
        ({"d_model": 6, "positions": "rotary"}, "d_head must be a multiple of 2 above 0, got 3"),
        ({"n_encoder_layers": 0}, "n_encoder_layers must be an integer at least 1, got 0"),
        ({"d_ff": 2.5}, "d_ff must be an integer at least 1, got 2.5"),
        ({"max_len": -1}, "max_len must be an integer at least 1, got -1"),
    ],
)
def test_config_refuses_impossible_values(changes, message):
    with pytest.raises(ValueError, match=f"TransformerConfig: {message}"):
        small(**changes)


LONG = torch.zeros(1, 12, dtype=torch.int64)
SHORT = torch.zeros(1, 2, dtype=torch.int64)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (SHORT + V, SHORT, r"Transformer: source must lie in \[0, 31\), got 31 to 31"),
        (SHORT, SHORT - 1, r"Transformer: target must lie in \[0, 31\), got -1 to -1"),
        (
            SHORT.float(),
            SHORT,
            "source must be int32 or int64 on cpu, got torch.float32 on cpu",
        ),
        (
            SHORT,
            SHORT.bool(),
            "target must be int32 or int64 on cpu, got torch.bool on cpu",
        ),
        (
            SHORT[0],
            SHORT,
            r"source must have shape \(B, S\), got \(2,\)",
        ),
        (LONG, SHORT, r"positions must lie in \[0, 11\), got 0 to 11"),
        (SHORT, LONG, r"positions must lie in \[0, 11\), got 0 to 11"),
        (SHORT, SHORT.repeat(3, 1), r"key must have shape \(B, S, D\) with B = 3, got \(1, 2"),
    ],
)
def test_transformer_refuses_bad_tokens(source, target, message):
    with pytest.raises(ValueError, match=message):
        build()(source, target)


def test_transformer_accepts_int32_tokens():
    source, target = draw()
    model = build()
    torch.testing.assert_close(
        model(source.int(), target.int()), model(source, target), rtol=0, atol=0
    )


@pytest.mark.bad_input
def test_transformer_refuses_caches_that_do_not_fit():
    model, (source, target) = build(), draw()
    with torch.no_grad():
        memory = model.encode(source)
        with pytest.raises(
            ValueError, match="cache must have one entry for each of 3 layers, got 2"
        ):
            model.decode(target, memory, cache=model.make_cache()[:2])
        with pytest.raises(
            ValueError, match="cache must have one entry for each of 3 layers, got 0"
        ):
            model.decode(target, memory, cache=[])
        with pytest.raises(ValueError, match="max_len"):
            model.decode(target, memory, cache=model.make_cache(T - 1))
        cache = model.make_cache(50)
        model.decode(LONG[:, :11].repeat(B, 1), memory, cache=cache)
        with pytest.raises(ValueError, match=r"positions must lie in \[0, 11\), got 11 to 11"):
            model.decode(LONG[:, :1].repeat(B, 1), memory, cache=cache)
        assert cache[0].self_attention.length == 11  # a refused call leaves the cache as it was
    with pytest.raises(ValueError, match="no_grad"):
        model.decode(target, model.encode(source), cache=model.make_cache())


@pytest.mark.bad_input
def test_transformer_refuses_masks_that_are_not_boolean_or_do_not_fit():
    model, (source, target) = build(), draw()
    with pytest.raises(ValueError, match="source_mask must be boolean on cpu, got torch.float32"):
        model(source, target, source_mask=torch.ones(S))
    square, flat = draw(3, 3, 3), torch.ones(3, 3, dtype=torch.bool)
    for name in ("source_mask", "target_mask"):  # (B, S), or (T, S)? it cannot be told
        for mask in (flat, flat[:, None]):
            with pytest.raises(ValueError, match=f"{name} must have shape .B, ., ., .., got .3, "):
                model(*square, **{name: mask})
    memory = model.encode(square[0])
    with pytest.raises(ValueError, match="memory_mask must have shape"):
        model.decode(square[1], memory, flat)
    with pytest.raises(ValueError, match="mask must have shape"):
        model(source, target, source_mask=torch.ones(B, 1, 1, S + 1, dtype=torch.bool))


# --- without an encoder ------------------------------------------------------------------------


def writer(seed=0, **changes):
    torch.manual_seed(seed)
    return DecoderOnly(small(**changes)).double().eval()


def texts(batch=B, length=S):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(1))


def real(lengths, width=S):
    """True where a row that is padded on the left has real tokens."""
    return (torch.arange(width) >= width - torch.tensor(lengths)[:, None])[:, None, None]


def in_pieces(model, source, source_mask, pieces):
    cache = model.make_cache()
    return (model(piece, cache=cache) for piece in pieces)


@pytest.mark.parametrize("options", [{}, {**MODERN, "positions": "rotary"}], ids=["2017", "modern"])
def test_decoder_only_passes_the_conformance_kit(options):
    torch.manual_seed(0)
    model = DecoderOnly(small(**options))
    report = check_model(model, vocab_size=V, decoder_only=True, cached=in_pieces)
    report.raise_if_failed()
    assert len([result for result in report if result.verdict == "pass"]) == 16


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_decoder_only_equals_torchs_encoder_with_a_causal_mask(norm_first, bias):
    torch.manual_seed(2)
    options = {"dim_feedforward": 37, "batch_first": True, "norm_first": norm_first, "bias": bias}
    layer = nn.TransformerEncoderLayer(24, 2, activation="gelu", **options)
    norm = nn.LayerNorm(24) if norm_first else None
    theirs = nn.TransformerEncoder(layer, 3, norm=norm).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = writer(norm="pre" if norm_first else "post", activation="gelu", positions="learned")
    ours.decoder = nn.ModuleList(map(from_torch, theirs.layers))
    if norm_first:
        ours.decoder_norm.load_state_dict(theirs.norm.state_dict())
    tokens = texts()
    entering = ours.embedding(tokens) * (1 if norm_first else 24**0.5) + ours.positions.table[:S]
    states = theirs(entering, mask=~causal_mask(S))
    torch.testing.assert_close(ours.read(tokens), states)
    torch.testing.assert_close(ours(tokens), states @ ours.embedding.weight.T)


@pytest.mark.parametrize("positions", POSITIONS)
def test_decoder_only_outputs_change_from_a_changed_token_on(positions):
    model, tokens = writer(positions=positions), texts()
    logits = model(tokens)
    for t in range(S):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        moved = (model(changed) - logits).abs().amax(dim=(0, 2))
        assert (moved[:t] == 0).all() and (moved[t:] > 1e-6).all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_decoder_only_sees_the_past_and_nothing_else(positions):
    model = writer(positions=positions)
    model.embedding.weight.requires_grad_(False)
    tokens = texts(batch=1)
    inputs = model.embedding(tokens).requires_grad_()
    model.embedding.forward = lambda _: inputs
    for t in range(S):
        (grad,) = torch.autograd.grad(model.read(tokens)[0, t].square().sum(), inputs)
        reached = grad[0].abs().amax(dim=-1) > 0
        assert reached.tolist() == [s <= t for s in range(S)]


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("positions", POSITIONS)
def test_decoder_only_with_a_cache_equals_one_pass_at_every_split(positions, n_kv_heads):
    model = writer(positions=positions, n_heads=4, n_kv_heads=n_kv_heads)
    tokens = texts()
    whole = model(tokens)
    for split in range(S + 1):
        with torch.no_grad():
            cache = model.make_cache()
            parts = [model(part, cache=cache) for part in (tokens[:, :split], tokens[:, split:])]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    with torch.no_grad():
        cache = model.make_cache(S)
        parts = [model(part, cache=cache) for part in tokens.split([1, 1, 3, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    assert all(layer.length == S and layer.max_len == S for layer in cache)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
@pytest.mark.parametrize("positions", POSITIONS)
def test_decoder_only_ignores_padding_on_the_left(positions, n_kv_heads):
    model, tokens = writer(positions=positions, n_kv_heads=n_kv_heads), texts()
    lengths = [3, S, 5]
    mask = real(lengths)
    alone = [model(row[None, S - n :])[0] for row, n in zip(tokens, lengths, strict=True)]
    together = model(tokens.masked_fill(~mask[:, 0, 0], 0), mask)
    other = model(tokens.masked_fill(~mask[:, 0, 0], V - 1), mask)
    with torch.no_grad():
        cache, steps = model.make_cache(), []
        for start, end in ((0, 2), (2, 3), (3, 6), (6, 7)):
            steps.append(model(tokens[:, start:end], mask[..., :end], cache=cache))
    for rows in (together, other, torch.cat(steps, dim=1)):
        for row, n, wanted in zip(rows, lengths, alone, strict=True):
            torch.testing.assert_close(row[S - n :], wanted)


def test_decoder_only_applies_a_mask_of_one_row_to_all():
    model, tokens = writer(), texts()
    torch.testing.assert_close(model(tokens, real([5])), model(tokens, real([5] * B)))
    torch.testing.assert_close(model(tokens, real([S])), model(tokens))


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_decoder_only_gives_padding_no_positions(positions):
    model, tokens = writer(positions=positions), texts(length=13)  # max_len is 11
    logits = model(tokens, real([5, 11, 2], 13))
    for row, n, got in zip(tokens, [5, 11, 2], logits, strict=True):
        torch.testing.assert_close(got[13 - n :], model(row[None, 13 - n :])[0])


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("positions", POSITIONS)
def test_decoder_only_gradients_are_finite_for_rows_of_padding(positions):
    model, tokens = writer(positions=positions), texts()
    with torch.autograd.detect_anomaly(check_nan=True):
        model(tokens, real([0, 2, S])).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("positions", ["rotary", "alibi", "relative"])
def test_decoder_only_cache_keeps_a_window_given_as_a_mask(positions, window):
    """A position sees itself and the window - 1 before it, with a cache as without."""
    model = build(positions=positions, n_kv_heads=1)
    source, target = draw()
    near = causal_mask(T) & ~causal_mask(T).tril(-window)
    memory = model.encode(source)
    whole = model.decode(target, memory, target_mask=near[None, None])
    assert not torch.allclose(whole, model.decode(target, memory))
    with torch.no_grad():
        cache = model.make_cache()
        steps = [
            model.decode(
                target[:, t : t + 1],
                memory,
                cache=cache,
                target_mask=near[None, None, t : t + 1, : t + 1],
            )
            for t in range(T)
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_decoder_only_uses_one_position_scheme_and_one_embedding_matrix():
    model = writer(positions="relative", n_encoder_layers=1)
    assert len(model.decoder) == 3  # the encoder's depth is not used
    schemes = {id(layer.attention.positions) for layer in model.decoder}
    assert len(schemes) == 1 and not model.decoder[0].attention.positions.bidirectional
    assert model.output.weight is model.embedding.weight
    assert writer(tie_embeddings=False).output.weight is not model.embedding.weight


def _above_ln_v(model, vocab_size, batch):
    """How far the loss on random tokens lies above ln V, in nats."""
    tokens = torch.randint(vocab_size, (batch, 9))
    source = () if isinstance(model, DecoderOnly) else (tokens,)
    with torch.no_grad():
        logits = model.eval()(*source, tokens)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, tokens[:, 1:].flatten()).item() - math.log(vocab_size)


GPT = {"norm": "pre", "positions": "learned", "activation": "gelu"}
WIDTHS = {
    "nano": (65, {"d_model": 384, "n_heads": 6, "d_ff": 1536}),
    "gpt2": (50_257, {"d_model": 768, "n_heads": 12, "d_ff": 3072, "n_decoder_layers": 2}),
    "shallow": (65, {"d_model": 768, "n_heads": 12, "d_ff": 3072, "n_decoder_layers": 1}),
}


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("width", WIDTHS)
def test_decoder_only_loss_at_initialization_is_near_ln_v(width, norm, positions, tie):
    vocab_size, sizes = WIDTHS[width]
    options = {"norm": norm, "positions": positions, "tie_embeddings": tie, "max_len": 9}
    model = DecoderOnly(TransformerConfig(vocab_size=vocab_size, **sizes, **options))
    assert -0.1 < _above_ln_v(model, vocab_size, 64 if vocab_size < 100 else 8) < 1


@pytest.mark.parametrize("vocab_size", [65, 50_257])
@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_presets_without_an_encoder_pass_check_model(preset, vocab_size):
    for changes in ({}, GPT):
        changes = changes | ({"n_decoder_layers": 2} if vocab_size > 100 else {})
        model = DecoderOnly(getattr(TransformerConfig, preset)(vocab_size, **changes)).eval()
        if vocab_size > 100:  # the whole kit would take a minute
            assert -0.1 < _above_ln_v(model, vocab_size, 8) < 1
        else:
            check_model(model, vocab_size=vocab_size, decoder_only=True).raise_if_failed()


@pytest.mark.parametrize("preset", ["tiny", "base", "big"])
def test_presets_start_near_ln_v(preset):
    config = getattr(TransformerConfig, preset)(vocab_size=37_000)
    assert -0.1 < _above_ln_v(Transformer(config), 37_000, 8) < 1
    assert -0.1 < _above_ln_v(DecoderOnly(config), 37_000, 8) < 1


@pytest.mark.parametrize("depth", [1, 8])
def test_decoder_only_pre_norm_draws_its_matrices_as_gpt2_does(depth):
    options = GPT | {"activation": "swiglu", "n_decoder_layers": depth, "max_len": 500}
    model = DecoderOnly(TransformerConfig.tiny(500, d_model=128, **options))
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            writes = "out_proj" in name or "down" in name
            wanted = 0.02 / math.sqrt(2 * depth) if writes else 0.02
            assert weight.std().item() == pytest.approx(wanted, rel=0.03), name


def test_decoder_only_pre_norm_adds_positions_to_unscaled_embeddings():
    for positions in ("sinusoidal", "learned"):
        model, tokens = writer(norm="pre", positions=positions), texts()
        model.decoder, model.decoder_norm = nn.ModuleList(), nn.Identity()
        places = model.positions.table[:S]
        torch.testing.assert_close(model.read(tokens), model.embedding(tokens) + places)
    table = writer(norm="pre", positions="sinusoidal").positions.table
    torch.testing.assert_close(table, 0.02 * sinusoidal_positions(*table.shape).double())


def test_decoder_only_round_trips_through_a_state_dict():
    model, other = writer(seed=0), writer(seed=1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(texts()), model(texts()))


def test_decoder_only_accepts_empty_inputs():
    assert writer()(texts(batch=0)).shape == (0, S, V)
    assert writer()(texts(length=0)).shape == (B, 0, V)
    assert writer()(texts(batch=0), real([S])).shape == (0, S, V)
    assert writer()(texts(length=0), real([0] * B, 0)).shape == (B, 0, V)


def test_decoder_only_drops_in_training_only():
    model = writer(dropout=0.5)
    quiet = model(texts())
    torch.testing.assert_close(quiet, model(texts()))
    model.train()
    assert not torch.allclose(quiet, model(texts()))


@pytest.mark.bad_input
def test_decoder_only_refuses_bad_input():
    model, tokens = writer(), texts()
    with pytest.raises(ValueError, match="DecoderOnly: tokens must be int32 .*torch.float64"):
        model(tokens.double())
    with pytest.raises(ValueError, match=rf"DecoderOnly: tokens must lie in \[0, {V}\), got 0 to"):
        model(torch.tensor([[0, V]]))
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 11\), got 0 to 11"):
        model(texts(length=12))
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 11\), got 0 to 11"):
        model(texts(length=13), real([5, 12, 2], 13))
    with pytest.raises(ValueError, match="cache must have one entry for each of 3 layers, got 2"):
        model(tokens, cache=model.make_cache()[:2])
    masks = {
        "have shape (B, 1, 1, S) with S = 7, got (3, 1, 1, 6)": real([6] * B, 6),
        "have shape (B, 1, 1, S) with B = 3, got (2, 1, 1, 7)": real([5, 6]),
        "have shape (B, 1, 1, S) with 1 = 1, got (3, 1, 2, 7)": real([5] * B).repeat(1, 1, 2, 1),
        "be boolean on cpu, got torch.float64 on cpu": real([5] * B).double(),
        "have shape (B, 1, 1, S) with 1 = 1, got (3, 7)": real([5] * B)[:, 0, 0],
    }
    for message, mask in masks.items():
        with pytest.raises(ValueError) as error:
            model(tokens, mask)
        assert str(error.value) == f"DecoderOnly: mask must {message}"
    with torch.no_grad():
        cache = model.make_cache()
        model(tokens, cache=cache)
        with pytest.raises(ValueError, match=r"with S = 8, got \(3, 1, 1, 7\)"):
            model(tokens[:, :1], real([5] * B), cache=cache)


@pytest.mark.parametrize("positions", POSITIONS)
def test_decoder_only_ignores_or_refuses_padding_between_tokens(positions):
    model, tokens = writer(positions=positions), torch.tensor([[5, 6, 0, 0, 7, 8]])
    mask = (tokens != 0)[:, None, None]
    if positions in ("rotary", "alibi", "relative"):
        with pytest.raises(
            ValueError, match=f"{positions} positions allow no padding between tokens"
        ):
            model(tokens, mask)
    else:
        alone = model(tokens[:, [0, 1, 4, 5]])[:, -1]
        torch.testing.assert_close(model(tokens, mask)[:, -1], alone)
    right = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()[:, None, None]
    assert model(tokens[:, :4].repeat(3, 1), right).isfinite().all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_models_made_on_the_meta_device_load_and_compute_the_same(positions):
    wanted = build(positions=positions).float()
    for assign in (False, True):
        with torch.device("meta"):
            model = Transformer(small(positions=positions)).eval()
        if not assign:
            model = model.to_empty(device="cpu")
        model.load_state_dict(wanted.state_dict(), assign=assign)
        torch.testing.assert_close(model(*draw()), wanted(*draw()))


@pytest.mark.plain
def test_config_refuses_options_of_another_type():
    wrong = {
        "bias": ("false", None, 1, np.True_),
        "tie_embeddings": ("no", 0),
        "final_norm": ("false", 0),
        "dropout": ("0.1", None, True),
        "attention_dropout": (None,),
        "n_kv_heads": ("1", 1.0, True),
        "vocab_size": ("9", 9.0, True, None, np.int64(9)),
        "norm": (None, 1),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"TransformerConfig: {name} must be"):
                small(**{name: value})
    assert small(dropout=np.float64(0.5)).dropout == small(dropout=0.5).dropout
    assert small(dropout=0).dropout == 0 and small(final_norm=True, n_kv_heads=1).bias is True
