"""GPT equals the published models' own code, and everything that generates works on it."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from transformer_lib.attention import attend, causal_mask
from transformer_lib.beam_search import beam_search
from transformer_lib.cache import KVCache, WindowCache
from transformer_lib.cpu import pack_for_decoding, use_onednn
from transformer_lib.generation import greedy, stream
from transformer_lib.gpt import GPT, GPTAttention, GPTConfig, Llama3Scaling
from transformer_lib.hub import from_pretrained
from transformer_lib.models import DecoderOnly
from transformer_lib.multihead import MultiHeadAttention, recording
from transformer_lib.positions import LinearScaling, RotaryPositions, YarnScaling
from transformer_lib.sampling import Sampler, sample
from transformer_lib.settings import Settings
from transformer_lib.speculative import speculative_sample
from transformer_lib.testing import check_model

V, B, T, PAD, EOS = 31, 3, 17, 0, 2
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"rope_theta": 500.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN |= {"rope_theta": 500.0}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0}
CASES = {  # what differs from the sizes of `reference`
    "gpt2": [
        {}, {"n_inner": 41, "n_layer": 1, "n_head": 6}, {"tie_word_embeddings": False},
        {"activation_function": "relu", "layer_norm_epsilon": 1e-2},
    ],
    "llama": [
        {"num_key_value_heads": None}, {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-2},
        {"rope_parameters": YARN, "head_dim": 14, "tie_word_embeddings": True},
        {"rope_parameters": LINEAR, "attention_bias": True}, {"mlp_bias": True},
    ],
    "mistral": [
        {"sliding_window": 5}, {"sliding_window": 1}, {"sliding_window": None, "head_dim": 10},
        {"sliding_window": 7, "num_key_value_heads": 1, "num_hidden_layers": 2},
    ],
    "qwen2": [
        {}, {"tie_word_embeddings": True, "num_key_value_heads": 1}, {"rope_parameters": YARN},
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0},
    ],
    "qwen3": [
        {"head_dim": 10}, {"head_dim": 4, "num_key_value_heads": 4},
        {"attention_bias": True, "num_hidden_layers": 2},
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
    ],
}  # fmt: skip
ALL = [(family, i) for family, cases in CASES.items() for i in range(len(cases))]
WINDOWED = [("mistral", 0), ("mistral", 1), ("mistral", 3), ("qwen2", 3), ("qwen3", 3)]
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about itself


def reference(family, changes):
    """A model of transformers with random weights, none of which is 0 or 1."""
    import transformers

    transformers.logging.set_verbosity_error()
    ends = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": PAD}
    if family == "gpt2":
        sizes = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64}
        names = "GPT2Config", "GPT2LMHeadModel"
    else:
        sizes = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 3}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"max_position_embeddings": 64}
        names = f"{family.capitalize()}Config", f"{family.capitalize()}ForCausalLM"
    config, model = (getattr(transformers, name) for name in names)
    theirs = model(config(vocab_size=V, initializer_range=0.2, **sizes | ends | changes)).eval()
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.3)
    return theirs


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """(family, number of its case) -> theirs and ours, which has read what theirs wrote."""
    made = {}

    def pair(family, i=0):
        if (family, i) not in made:
            theirs, folder = reference(family, CASES[family][i]), tmp_path_factory.mktemp(family)
            theirs.save_pretrained(folder)
            made[family, i] = theirs, from_pretrained(folder)
        return made[family, i]

    return pair


def draw(batch=B, length=T, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, V, (batch, length), generator=generator)


def real(lengths, width=T, side="left"):
    """(B, S), True at the real tokens of rows padded on one side."""
    places = torch.arange(width)
    lengths = torch.tensor(lengths)[:, None]
    return places >= width - lengths if side == "left" else places < lengths


def positions_of(mask):
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def states(model, tokens, mask=None):
    """What enters each layer, and what the last norm returns."""
    seen = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for layer in model.decoder
    ]
    last = model.read(tokens, mask)
    for hook in hooks:
        hook.remove()
    return [*seen, last]


# --- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family, i", ALL)
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_gpt_equals_transformers_in_logits_and_all_hidden_states(pairs, family, i, side):
    theirs, ours = pairs(family, i)
    tokens, mask = draw(), None if side is None else real([T, 5, 11], side=side)
    options = {"output_hidden_states": True}
    if mask is not None:
        options |= {"attention_mask": mask.long(), "position_ids": positions_of(mask)}
    with torch.no_grad():
        expected = theirs(tokens, **options)
        logits, found = ours(tokens, mask), states(ours, tokens, mask)
    keep = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(logits[keep], expected.logits[keep], **close)
    assert len(found) == len(expected.hidden_states)
    for mine, other in zip(found, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[keep], other[keep], **close)
    assert expected.logits[keep].std() > 0.3  # far above the tolerance


class Wide:
    """torch, in which float32 means float64: transformers casts norms and angles to float32."""

    def __getattr__(self, name):
        return torch.float64 if name in ("float", "float32") else getattr(torch, name)


@pytest.mark.parametrize("family, i", ALL)
def test_gpt_equals_transformers_in_float64_without_its_casts(monkeypatch, family, i):
    import importlib

    from transformers import modeling_rope_utils as rope

    theirs = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    for where in (theirs, rope):
        if hasattr(where, "torch"):
            monkeypatch.setattr(where, "torch", Wide())
    expected = reference(family, CASES[family][i]).double()
    ours = GPT.from_settings(Settings(json.loads(expected.config.to_json_string()), "GPT"))
    copy_weights(expected, ours.double().eval())
    tokens = draw()
    with torch.no_grad():
        logits = expected(tokens, output_hidden_states=True)
        torch.testing.assert_close(ours(tokens), logits.logits, rtol=0, atol=1e-10)
        for mine, other in zip(states(ours, tokens), logits.hidden_states, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


def copy_weights(theirs, ours):
    """Copy by the weight map, without a file."""
    given, own = theirs.state_dict(), ours.state_dict()
    for entry in ours.weight_map():
        parts = [given[name].T if entry.transpose else given[name] for name in entry.theirs]
        own[entry.ours].copy_(torch.cat(parts))


@pytest.mark.parametrize("family, i", [("gpt2", 0), ("llama", 1), *WINDOWED[::2], ("qwen3", 0)])
def test_greedy_generates_the_tokens_of_transformers(pairs, family, i):
    theirs, ours = pairs(family, i)
    tokens, mask = draw(), real([T, 5, 11])
    options = {"max_new_tokens": 21, "do_sample": False, "attention_mask": mask.long()}
    expected = theirs.generate(tokens, **options)[:, T:].tolist()
    rows = greedy(ours, tokens, mask[:, None, None], max_len=21, end=EOS)
    assert rows == [row[: row.index(EOS)] if EOS in row else row for row in expected]
    assert any(EOS in row for row in expected) or len({*sum(rows, [])}) > 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beam", [2, 5])
def test_beam_search_generates_the_tokens_of_transformers(pairs, family, beam):
    theirs, ours = pairs(family)
    mask, n_equal = real([T, 5, 11]), 0
    options = {"max_new_tokens": 13, "num_beams": beam, "do_sample": False, "early_stopping": True}
    for seed in range(3):
        tokens = draw(seed=seed)
        rows = theirs.generate(tokens, attention_mask=mask.long(), **options)[:, T:].tolist()
        found = beam_search(
            ours, tokens, mask[:, None, None], beam=beam, max_len=13, end=EOS, patience=1.0
        )
        for row, (best, *_) in zip(rows, found, strict=True):
            if len(row) == 13 and EOS not in row and best.finished:
                continue  # theirs may prefer what max_len cut short; ours puts ended ones first
            assert best.tokens == (row[: row.index(EOS)] if EOS in row else row)
            n_equal += 1
    assert n_equal >= 5


@pytest.mark.parametrize("family, i", ALL)
def test_gpt_writes_what_transformers_and_we_read(pairs, tmp_path, family, i):
    theirs, ours = pairs(family, i)
    ours.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        again = type(theirs).from_pretrained(tmp_path / "ours")
        torch.testing.assert_close(again(draw()).logits, theirs(draw()).logits, rtol=0, atol=1e-6)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    mine = from_pretrained(tmp_path / "ours")
    assert type(mine) is GPT and mine.settings() == ours.settings() and not mine.training
    for name, tensor in ours.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor)


def test_gpt_reads_older_files_of_gpt2(pairs, tmp_path):
    """Names without their prefix, and the mask buffers that the first file on the hub has."""
    from safetensors.torch import load_file, save_file

    theirs, ours = pairs("gpt2")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    for i in range(3):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors")
    old = GPT.from_pretrained(tmp_path)
    assert torch.equal(old(draw()), ours(draw()))


def settings(family, **changes):
    """config.json of a small model, with the names of version 4."""
    own = {"model_type": family, "vocab_size": V, "num_hidden_layers": 2, "hidden_size": 24}
    own |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 37}
    return Settings(own | changes, "GPT")


def config_of(family, **changes):
    with torch.device("meta"):
        return GPT.from_settings(settings(family, **changes)).config


def test_gpt_reads_rope_settings_of_both_ages():
    scaling = {"type": "linear", "factor": 2.0}
    old = config_of("llama", rope_theta=7.0, rope_scaling=scaling)
    new = config_of(
        "llama", rope_parameters={"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}
    )
    assert old == new and old.rope_base == 7.0 and old.rope_scaling == LinearScaling(2.0)
    assert config_of("llama").rope_base == 10_000.0 and config_of("llama").rope_scaling is None
    short = {"rope_type": "yarn", "factor": 2.0, "attention_factor": YarnScaling(2.0, 64).magnitude}
    assert config_of("qwen2", rope_scaling=short, max_position_embeddings=64).rope_scaling == (
        YarnScaling(2.0, 64)
    )


@pytest.mark.parametrize(
    "rope, said",
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type must be one of .*, got 'dynamic'"),
        ({"rope_type": "longrope", "factor": 2.0}, "rope_type must be .*, got 'longrope'"),
        (YARN | {"attention_factor": 1.5}, "attention_factor must be .*got 1.5"),
        (YARN | {"truncate": False}, r"truncate must be one of \(True,\), got False"),
        (YARN | {"mscale": 1.0}, r"mscale must be one of \(None,\), got 1.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be .*, got 0.5"),
        ({"full_attention": {"rope_theta": 3.0}}, r"full_attention must be one of \(None,\)"),
    ],
)  # fmt: skip
def test_gpt_refuses_other_rope_settings_by_name(rope, said):
    with pytest.raises(ValueError, match=f"GPT: {said}"):
        config_of("llama", rope_parameters=rope, max_position_embeddings=64)


@pytest.mark.parametrize(
    "family, changes, said",
    [
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights must be one of .*got False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn must"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention must"),
        ("gpt2", {"activation_function": "mish"}, "activation_function must be .*got 'mish'"),
        ("llama", {"hidden_act": "gelu"}, r"hidden_act must be one of \('silu',\), got 'gelu'"),
        ("mistral", {"attention_bias": True}, "attention_bias must be .*got True"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias must be .*got True"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "layer_types must be"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be"),
    ],
)  # fmt: skip
def test_gpt_refuses_other_settings_by_name(family, changes, said):
    with pytest.raises(ValueError, match=said):
        config_of(family, **changes)


def test_gpt_reads_the_window_only_where_it_is_used():
    assert config_of("mistral").window == 4096
    assert config_of("mistral", sliding_window=None).window is None
    off = {"sliding_window": 5, "max_window_layers": 0}
    assert config_of("qwen2", **off).window is None
    assert config_of("qwen2", **off, use_sliding_window=True).window == 5
    assert config_of("qwen2", sliding_window=5, use_sliding_window=True).window is None  # 28 full
    kinds = {"layer_types": ["sliding_attention"] * 2}
    assert config_of("qwen3", sliding_window=5, use_sliding_window=True, **kinds).window == 5


def test_gpt_reads_what_older_files_leave_out_as_their_family_has_it():
    left_out = {"num_key_value_heads": None}
    assert [config_of(family, **left_out).d_head for family in FAMILIES[1:]] == [6, 6, 6, 128]
    config = config_of("llama", **left_out)
    assert (config.kv_heads, config.norm_eps, config.max_len) == (4, 1e-6, 2048)
    assert not config.tie_embeddings and not any(config.biases)
    with torch.device("meta"):
        medium = Settings({"model_type": "gpt2", "n_embd": 36, "n_layer": 2}, "GPT")
        config = GPT.from_settings(medium).config
    assert (config.d_ff, config.n_heads, config.tie_embeddings) == (144, 12, True)


def test_gpt_refuses_to_write_what_its_family_cannot_express():
    for changes, said in [
        ({"positions": "rotary"}, "gpt2 cannot express positions = rotary"),
        ({"n_kv_heads": 2}, "kv_heads = 2"),
        ({"bias": False}, r"biases = \(False, False, False\)"),
        ({"window": 3}, "window = 3"),
        ({"norm_type": "rms", "head_dim": 4}, "d_head = 4, norm_type = rms"),
    ]:
        model = GPT(GPTConfig(vocab_size=V, d_model=24, n_heads=4, n_decoder_layers=1, **changes))
        with pytest.raises(ValueError, match=f"GPT: config.json of .*{said}"):
            model.settings()
    written = GPT(GPTConfig.like("mistral", **SMALL, dropout=0.1)).settings()
    assert "dropout" not in written  # which changes no inference


# --- the scaling of Llama 3 ----------------------------------------------------------------------


def test_llama3_scaling_equals_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=dict(LLAMA3))
    expected, magnitude = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    rates = 500.0 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    scaling = Llama3Scaling(8.0, 32)
    torch.testing.assert_close(scaling(rates), expected.double(), rtol=1e-6, atol=0)
    assert magnitude == 1.0 and hash(scaling) == hash(Llama3Scaling(8.0, 32))
    turns = rates * 32 / (2 * torch.pi)
    assert torch.equal(scaling(rates)[turns >= 4], rates[turns >= 4]) and (turns >= 4).sum() > 1
    torch.testing.assert_close(scaling(rates)[turns <= 1], rates[turns <= 1] / 8)
    assert RotaryPositions(128, base=500.0, scaling=scaling).rotate(torch.ones(1, 1, 3, 128)).shape


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"factor": 0.5}, "factor must be a number at least 1, got 0.5"),
        ({"trained_length": 0}, "trained_length must be an integer at least 1, got 0"),
        ({"slow": 4.0}, "fast must be a number above 4.0, got 4.0"),
    ],
)
def test_llama3_scaling_refuses_impossible_values(wrong, said):
    with pytest.raises(ValueError, match=f"Llama3Scaling: {said}"):
        Llama3Scaling(**{"factor": 2.0, "trained_length": 8} | wrong)


# --- the window ----------------------------------------------------------------------------------


SMALL = {"vocab_size": V, "d_model": 24, "n_heads": 4, "n_kv_heads": 2, "d_ff": 37}
SMALL |= {"n_decoder_layers": 2, "max_len": 300, "window": 5}


def small(seed=0, **changes):
    torch.manual_seed(seed)
    model = GPT(GPTConfig.like("mistral", **SMALL | changes)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return model


@torch.no_grad()
def test_window_is_a_band_of_the_causal_mask():
    model = small(n_decoder_layers=1)
    attention, x = model.decoder[0].attention, torch.randn(B, 13, 24, dtype=torch.float64)
    q, k, v = attention._project(x, 0, 3)
    q, k = (attention.positions.rotate(part) for part in (q, k))
    k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
    places = torch.arange(13)
    apart = places[:, None] - places
    mixed = attend(q, k, v, (apart >= 0) & (apart < 5))
    expected = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, causal=True), expected)
    mask = causal_mask(13)
    torch.testing.assert_close(attention(x, mask=mask), expected)
    assert isinstance(attention, GPTAttention) and isinstance(attention.query_norm, nn.Identity)


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 5, 11])
@pytest.mark.parametrize("pieces", [[1] * 40, [29, *[1] * 11], [3, 17, 1, 1, 13, 5], [40]], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_window_cache_gives_the_logits_of_one_pass(window, pieces, padded):
    model, tokens = small(window=window), draw(length=40)
    mask = real([40, 13, 31], 40) if padded else None
    expected, cache, seen, found = model(tokens, mask), model.make_cache(), 0, []
    for piece in tokens.split(pieces, dim=1):
        seen += piece.shape[1]
        found.append(model(piece, None if mask is None else mask[:, :seen], cache=cache))
    keep = torch.ones(B, 40, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(torch.cat(found, dim=1)[keep], expected[keep])
    assert cache[0].length == 40 and type(cache[0]) is WindowCache


@torch.no_grad()
def test_window_with_a_plain_cache_gives_the_same():
    model, tokens = small(), draw(length=40)
    cache = [KVCache(40) for _ in model.decoder]
    found = torch.cat([model(x, cache=cache) for x in tokens.split([7, *[1] * 20, 13], dim=1)], 1)
    torch.testing.assert_close(found, model(tokens))


@torch.no_grad()
def test_window_cache_selects_rows():
    model, tokens = small(), draw(length=40)
    rows, cache = torch.tensor([2, 0, 0, 1]), model.make_cache()
    model(tokens[:, :23], cache=cache)
    for layer in cache:
        layer.select(rows)
    found = [model(x, cache=cache) for x in tokens[rows, 23:].split(1, dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), model(tokens[rows])[:, 23:])


@torch.no_grad()
@pytest.mark.parametrize("window, spare, n", [(5, 3, 3), (5, 0, 0), (1, 2, 2), (11, 4, 4)])
def test_window_cache_takes_back_its_spare_positions(window, spare, n):
    model, tokens = small(window=window), draw(length=60)
    expected = model(tokens)
    for length in (n, n + 1, 9, 10, 11, 38, 59):
        cache = [WindowCache(window, spare=spare) for _ in model.decoder]
        for piece in tokens[:, :length].split(1, dim=1):
            model(piece, cache=cache)
        for layer in cache:
            layer.crop(length - n)
        assert cache[0].length == length - n
        found = model(tokens[:, length - n :], cache=cache)
        torch.testing.assert_close(found, expected[:, length - n :])


# --- what generates ------------------------------------------------------------------------------


DESIGNS = [(family, 0) for family in FAMILIES] + [("qwen3", 3)]


@pytest.mark.plain  # hundreds of small calls
@pytest.mark.parametrize("family, i", DESIGNS)
def test_gpt_generates_by_every_method(pairs, family, i):
    _, ours = pairs(family, i)
    tokens, mask = draw(), real([T, 5, 11])[:, None, None]
    alone = greedy(ours, tokens, mask, max_len=19, end=EOS)
    for row, line in enumerate(alone):
        kept = tokens[row, mask[row, 0, 0]][None]
        assert greedy(ours, kept, max_len=19, end=EOS) == [line]
    steps = [*stream(ours, tokens, mask, max_len=19, end=EOS)]
    assert [[x[i] for x in steps if x[i] is not None] for i in range(B)] == alone
    best = sample(ours, tokens, mask, max_len=19, end=EOS, sampler=Sampler(top_k=1))
    assert best == alone
    draft = small(seed=3) if family == "mistral" else GPT(dataclasses.replace(ours.config))
    draft = draft.to(torch.float32).eval()
    greedily = {"sampler": Sampler(top_k=1), "n_draft_tokens": 5, "end": EOS}
    rows, rate = speculative_sample(ours, draft, tokens, mask, max_len=19, **greedily)
    assert rows == alone
    rows, rate = speculative_sample(ours, ours, tokens, mask, max_len=19, **greedily)
    assert rows == alone and rate == 1.0
    for faster in (pack_for_decoding(ours), use_onednn(GPT.from_settings(as_settings(ours)))):
        faster.load_state_dict(ours.state_dict())
        assert greedy(faster.eval(), tokens, mask, max_len=19, end=EOS) == alone


def as_settings(model):
    return Settings(model.settings(), "GPT")


@torch.no_grad()
@pytest.mark.parametrize("family, i", DESIGNS)
def test_recording_shows_weights_that_transformers_shows(pairs, family, i):
    theirs, ours = pairs(family, i)
    theirs.set_attn_implementation("eager")
    found = theirs(draw(), output_attentions=True)
    expected = next(x for name, x in found.items() if name.startswith("attention"))
    theirs.set_attn_implementation("sdpa")
    with recording(ours) as seen:
        logits = ours(draw())
    torch.testing.assert_close(logits, ours(draw()), rtol=0, atol=1e-5)
    assert [*seen] == [f"decoder.{layer}.attention" for layer in range(len(expected))]
    for mine, other in zip(seen.values(), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def in_pieces(model, source, source_mask, pieces):
    cache = model.make_cache()
    return (model(piece, cache=cache) for piece in pieces)


@pytest.mark.parametrize("family", FAMILIES)
def test_gpt_passes_the_conformance_kit(family):
    torch.manual_seed(0)
    model = GPT(GPTConfig.like(family, **SMALL | {"n_kv_heads": None, "window": None}))
    report = check_model(model, vocab_size=V, decoder_only=True, cached=in_pieces)
    report.raise_if_failed()
    assert len([result for result in report if result.verdict == "pass"]) == 16


def test_gpt_passes_the_conformance_kit_with_a_window():
    torch.manual_seed(0)
    model = GPT(GPTConfig.like("mistral", **SMALL | {"window": 3}))
    report = check_model(model, vocab_size=V, decoder_only=True, cached=in_pieces)
    report.raise_if_failed()


def test_gpt_takes_the_masks_of_tokenizers_and_of_the_book(pairs):
    _, ours = pairs("llama")
    tokens, mask = draw(), real([T, 5, 11])
    with torch.no_grad():
        expected = ours(tokens, mask[:, None, None])
        assert torch.equal(ours(tokens, mask), expected)
        assert torch.equal(ours(tokens, mask.long()), expected)
        assert not torch.equal(ours(tokens)[1], expected[1])
        assert torch.equal(ours.output(ours.read(tokens, mask.long())), expected)


@pytest.mark.bad_input
def test_gpt_refuses_masks_of_other_shapes(pairs):
    _, ours = pairs("llama")
    with pytest.raises(ValueError, match=r"mask must have shape .* got \(3, 1, 1, 16\)"):
        ours(draw(), real([T, 5, 11])[:, 1:])


def test_gpt_of_gpt2_is_the_books_decoder_only():
    """With the same config values, GPT draws the weights and computes the logits of DecoderOnly."""
    sizes = {"d_model": 24, "n_heads": 4, "d_ff": 37, "n_decoder_layers": 2, "max_len": 32}
    config = GPTConfig(vocab_size=V, dropout=0.0, **sizes)
    torch.manual_seed(0)
    ours = GPT(config)
    torch.manual_seed(0)
    plain = DecoderOnly(config)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(ours(draw()), plain(draw()))
    parts = [m for m in ours.modules() if isinstance(m, MultiHeadAttention)]
    assert {type(m) for m in parts} == {MultiHeadAttention}
    assert ours.output.weight is ours.embedding.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_gpt_starts_as_gpt2_does(family):
    torch.manual_seed(0)
    sizes = {"vocab_size": 1009, "d_model": 64, "n_heads": 4, "d_ff": 128, "n_decoder_layers": 8}
    model = GPT(GPTConfig.like(family, **sizes, max_len=64))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            last = name.endswith(("attention.out_proj.weight", "feed_forward.down.weight"))
            expected = 0.02 / (4 if last else 1)  # sqrt(2 * 8) = 4
            assert 0.9 * expected < parameter.std() < 1.1 * expected, name
        else:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all()
    tokens = draw(8, 32)
    loss = nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss - 6.917) < 0.1  # ln 1009


def test_gpt_config_gives_the_smallest_gpt2():
    config = GPTConfig()
    assert (config.vocab_size, config.d_model, config.n_decoder_layers) == (50_257, 768, 12)
    assert (config.n_heads, config.d_ff, config.max_len) == (12, 3072, 1024)
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808  # as published
    assert hash(GPTConfig.like("llama", rope_scaling=Llama3Scaling(8.0, 32))) is not None


@pytest.mark.bad_input
def test_gpt_needs_the_sizes_in_the_settings():
    with pytest.raises(ValueError, match="d_model must be an integer at least 1, got None"):
        config_of("llama", hidden_size=None)


@pytest.mark.bad_input
def test_gpt_config_refuses_what_there_is_not():
    for wrong, said in [
        ({"window": 0}, "window must be an integer at least 1, got 0"),
        ({"rope_base": 0}, "rope_base must be a number above 0, got 0"),
        ({"positions": "sinusoidal"}, "positions must be one of .*got 'sinusoidal'"),
        ({"norm": "post"}, "norm must be one of .*got 'post'"),
        ({"family": "gpt3"}, "family must be one of .*got 'gpt3'"),
        ({"rope_scaling": 2.0}, "rope_scaling must be one of .*got 2.0"),
    ]:
        with pytest.raises(ValueError, match=said):
            GPTConfig(**wrong)
    with pytest.raises(ValueError, match="GPTConfig.like: family must be one of .*got 'gpt3'"):
        GPTConfig.like("gpt3")


def test_models_named_in_config_json_are_those_of_gpt():
    assert GPT.model_types == FAMILIES
