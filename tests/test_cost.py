"""Parameters, operations and bytes of a model equal what torch counts, exactly."""

import dataclasses
import itertools

import pytest
import torch
from test_models import MODERN, POSITIONS, B, S, T, V, n_parameters, small
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformer_lib.cost import Cost, cost, decoder_only_cost
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig


def draw():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(V, (B, n), generator=generator) for n in (S, T))


COSTED = [
    dict(
        zip(
            (
                "positions",
                "activation",
                "norm",
                "norm_type",
                "n_kv_heads",
                "bias",
                "tie_embeddings",
            ),
            row,
            strict=True,
        )
    )
    for i, row in enumerate(
        itertools.product(
            POSITIONS,
            ("relu", "gelu", "silu", "swiglu", "geglu", "geglu_tanh"),
            ("post", "pre"),
            ("layer", "rms"),
            (None, 1),
            (True, False),
            (True, False),
        )  # fmt: skip
    )
    if i % 31 == 0  # a prime that divides no factor: every value meets many others
]


COSTED += [{"head_dim": 7}, {"head_dim": 5, "n_kv_heads": 1, "bias": False}]


@pytest.mark.parametrize(
    "options", COSTED, ids=lambda options: "-".join(map(str, options.values()))
)
def test_cost_equals_what_torch_counts(options):
    model, (source, target) = Transformer(small(**options)), draw()
    expected = cost(model.config, batch_size=B, source_len=S, target_len=T)
    assert isinstance(expected, Cost) and expected.parameters == n_parameters(model)
    assert expected.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not count the CPU's fused kernel
        with FlopCounterMode(display=False) as forward:
            logits = model(source, target)
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
    assert expected.forward_flops == forward.get_total_flops()
    assert expected.training_flops == forward.get_total_flops() + backward.get_total_flops()


def test_cost_of_each_part_equals_what_torch_counts():
    model, (source, target) = Transformer(small(n_kv_heads=1, activation="geglu")), draw()
    expected = cost(model.config, batch_size=B, source_len=S, target_len=T)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(source, target)
    counts = {name: sum(count.values()) for name, count in counter.get_flop_counts().items()}
    total = lambda *ends: sum(n for name, n in counts.items() if name.endswith(ends))  # noqa: E731
    assert expected.feed_forward_flops == total(".feed_forward")
    assert expected.logit_flops == total("Transformer.output")
    assert expected.projection_flops + expected.attention_flops == total(
        *(f".{kind}attention" for kind in ("", "self_", "cross_"))
    )


@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 1}, MODERN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cost_of_the_cache_equals_its_tensors(options, dtype):
    model, (source, target) = Transformer(small(**options)).to(dtype).eval(), draw()
    with torch.no_grad():
        cache = model.make_cache(T)
        model.decode(target, model.encode(source), cache=cache)
    expected = cost(
        model.config, batch_size=B, source_len=S, target_len=T, bytes_per_number=dtype.itemsize
    )
    assert expected.cache_bytes == sum(part.n_bytes for layer in cache for part in layer)
    assert expected.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())


PAPER = {  # Vaswani et al. (2017), Table 3, parameters in millions, with V = 41,000
    65: {},
    36: {"n_encoder_layers": 2, "n_decoder_layers": 2},
    50: {"n_encoder_layers": 4, "n_decoder_layers": 4},
    80: {"n_encoder_layers": 8, "n_decoder_layers": 8},
    28: {"d_model": 256},
    168: {"d_model": 1024},
    53: {"d_ff": 1024},
    90: {"d_ff": 4096},
}


@pytest.mark.parametrize("millions", PAPER)
def test_cost_reproduces_eight_rows_of_table_3_with_one_vocabulary(millions):
    assert (
        round(cost(TransformerConfig.base(41_000, **PAPER[millions])).parameters / 1e6) == millions
    )


def test_cost_of_the_papers_big_model_needs_another_vocabulary():
    base, big = TransformerConfig.base(), TransformerConfig.big()
    assert cost(base).parameters == 63_082_496 and cost(big).parameters == 214_245_376
    assert round(cost(TransformerConfig.big(36_000)).parameters / 1e6) == 213


@pytest.mark.parametrize("config", [TransformerConfig.base(), TransformerConfig.big()])
def test_cost_of_the_presets_is_exact(config):
    with torch.device("meta"):
        assert n_parameters(Transformer(config)) == cost(config).parameters


# --- without an encoder ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", COSTED, ids=lambda options: "-".join(map(str, options.values()))
)
def test_decoder_only_cost_equals_what_torch_counts(options):
    model, (_, tokens) = DecoderOnly(small(**options)), draw()
    expected = decoder_only_cost(model.config, batch_size=B, length=T)
    assert isinstance(expected, Cost) and expected.parameters == n_parameters(model)
    assert expected.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            logits = model(tokens)
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
    assert expected.forward_flops == forward.get_total_flops()
    assert expected.training_flops == forward.get_total_flops() + backward.get_total_flops()


def test_decoder_only_cost_of_each_part_equals_what_torch_counts():
    model, (_, tokens) = DecoderOnly(small(n_kv_heads=1, activation="geglu")), draw()
    expected = decoder_only_cost(model.config, batch_size=B, length=T)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens)
    counts = {name: sum(count.values()) for name, count in counter.get_flop_counts().items()}
    total = lambda end: sum(n for name, n in counts.items() if name.endswith(end))  # noqa: E731
    assert expected.feed_forward_flops == total(".feed_forward")
    assert expected.logit_flops == total("DecoderOnly.output")
    assert expected.projection_flops + expected.attention_flops == total(".attention")


@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 1}, MODERN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_decoder_only_cost_of_the_cache_equals_its_tensors(options, dtype):
    model, (_, tokens) = DecoderOnly(small(**options)).to(dtype).eval(), draw()
    with torch.no_grad():
        cache = model.make_cache(T)
        model(tokens, cache=cache)
    sizes = {"batch_size": B, "length": T, "bytes_per_number": dtype.itemsize}
    expected = decoder_only_cost(model.config, **sizes)
    assert expected.cache_bytes == sum(layer.n_bytes for layer in cache)
    assert expected.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())


def test_decoder_only_cost_ignores_the_encoder_depth():
    deep, flat = (small(n_encoder_layers=n) for n in (5, 1))
    assert decoder_only_cost(deep, length=T) == decoder_only_cost(flat, length=T)


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.bad_input
def test_cost_refuses_negative_sizes():
    with pytest.raises(ValueError, match="^cost: source_len must be an integer at least 0, got -7"):
        cost(small(), source_len=-7)
    must = "decoder_only_cost: length must be an integer at least 0, got -5"
    with pytest.raises(ValueError, match=must):
        decoder_only_cost(small(), length=-5)


def test_cost_is_of_one_token_and_float32_by_default_and_frozen():
    config = TransformerConfig.tiny(20)
    sizes = {"batch_size": 1, "source_len": 1, "target_len": 1, "bytes_per_number": 4}
    assert cost(config) == cost(config, **sizes)
    sizes = {"batch_size": 1, "length": 1, "bytes_per_number": 4}
    assert decoder_only_cost(config) == decoder_only_cost(config, **sizes)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cost(config).parameters = 0


def test_cost_of_empty_inputs_is_parameters_only():
    for nothing in (cost(small(), batch_size=0), decoder_only_cost(small(), batch_size=0)):
        assert nothing.forward_flops == nothing.cache_bytes == 0 < nothing.parameters
