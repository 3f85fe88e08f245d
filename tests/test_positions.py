"""Position schemes agree with loops and with Hugging Face, and refuse bad input."""

import copy
import math

import pytest
import torch
from torch import nn

from transformer_lib import positions as positions_module
from transformer_lib.cache import KVCache
from transformer_lib.multihead import MultiHeadAttention
from transformer_lib.positions import (
    AlibiBias,
    LearnedPositions,
    LinearScaling,
    NTKScaling,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
    YarnScaling,
    sinusoidal_positions,
)

B, H, T, K, P, D = 2, 3, 5, 14, 53, 22  # no axis can be mistaken for another; K and D must be even
DOUBLE = torch.float64


def numbers(*shape, dtype=DOUBLE, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    )


def rates(width, base=10_000.0):
    return torch.tensor([base ** (-2 * i / width) for i in range(width // 2)], dtype=DOUBLE)


def rotate_slowly(x, first=0, turn_rates=None):
    """One head (T, K), feature i paired with i + K/2."""
    half, out = x.shape[1] // 2, torch.empty_like(x)
    turn_rates = rates(x.shape[1]) if turn_rates is None else turn_rates
    for p in range(len(x)):
        for i in range(half):
            c, s = (f((first + p) * float(turn_rates[i])) for f in (math.cos, math.sin))
            out[p, i] = x[p, i] * c - x[p, i + half] * s
            out[p, i + half] = x[p, i] * s + x[p, i + half] * c
    return out


@pytest.fixture(autouse=True)
def fresh_rotary_cache():
    positions_module._rotary_table.cache_clear()
    torch.manual_seed(0)


# ---- sinusoidal ---------------------------------------------------------------------------------


def test_sinusoids_agree_with_loops():
    table = sinusoidal_positions(P, D)
    for p in range(P):
        for i in range(D // 2):
            angle = p / 10_000 ** (2 * i / D)
            assert table[p, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[p, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)
    assert table.dtype == torch.float32


def test_sinusoids_take_another_base():
    assert sinusoidal_positions(2, 4, base=100.0)[1, 2].item() == pytest.approx(math.sin(0.1))


@pytest.mark.parametrize("shift", [1, 5, 17])
def test_sinusoids_shift_by_a_rotation_independent_of_the_start(shift):
    pairs = sinusoidal_positions(P, D).unflatten(1, (-1, 2))  # (P, D/2, [sin, cos])
    c, s = ((shift * rates(D)).cos().float(), (shift * rates(D)).sin().float())
    moved = torch.stack(
        [pairs[..., 0] * c + pairs[..., 1] * s, pairs[..., 1] * c - pairs[..., 0] * s], dim=-1
    )
    torch.testing.assert_close(moved[:-shift], pairs[shift:], rtol=0, atol=1e-5)  # float32 table


def test_sinusoids_similarity_depends_on_distance_only():
    gram = sinusoidal_positions(P, D).double() @ sinusoidal_positions(P, D).double().T
    for k in (0, 1, 7, P - 1):
        expected = (k * rates(D)).cos().sum().expand(P - k)
        torch.testing.assert_close(gram.diagonal(k), expected, rtol=0, atol=1e-5)  # float32 table


def test_sinusoids_keep_accurate_angles_far_out():
    row = sinusoidal_positions(100_001, 4)[-1]
    assert row[0].item() == pytest.approx(math.sin(100_000), abs=1e-6)


@pytest.mark.parametrize("n_positions", [0, 1])
def test_sinusoids_accept_few_positions(n_positions):
    assert sinusoidal_positions(n_positions, D).shape == (n_positions, D)


# ---- tables added to the input ------------------------------------------------------------------


def tables():
    return [SinusoidalPositions(P, D), LearnedPositions(P, D)]


@pytest.mark.parametrize("scheme", tables(), ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("first", [0, 3, P - T])
def test_tables_add_the_rows_of_the_positions(scheme, first):
    x = numbers(B, T, D, dtype=torch.float32)
    before = x.clone()
    torch.testing.assert_close(scheme(x, first), x + scheme.table[first : first + T])
    torch.testing.assert_close(
        scheme(x[0, 0:1], first), x[0, 0:1] + scheme.table[first : first + 1]
    )
    assert torch.equal(x, before)


@pytest.mark.parametrize("scheme", tables(), ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, DOUBLE])
def test_tables_keep_the_dtype_of_the_input(scheme, dtype):
    x = numbers(B, T, D, dtype=dtype)
    assert scheme(x).dtype == dtype
    moved = copy.deepcopy(scheme).to(dtype)(x)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(moved, scheme(x), rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("scheme", tables(), ids=lambda s: type(s).__name__)
def test_tables_take_empty_input(scheme):
    assert scheme(numbers(B, 0, D), first=P).shape == (B, 0, D)


@pytest.mark.parametrize("scheme", [SinusoidalPositions, LearnedPositions])
def test_tables_add_each_row_at_its_own_positions(scheme):
    table, x = scheme(P, D).double(), numbers(B, T, D)
    places = torch.tensor([[0, 0, 0, 1, 2], [7, 5, 3, P - 1, 0]])
    expected = torch.stack(
        [torch.stack([x[b, t] + table.table[places[b, t]] for t in range(T)]) for b in range(B)]
    )
    torch.testing.assert_close(table.at(x, places), expected)
    torch.testing.assert_close(table.at(x, torch.arange(3, 3 + T)[None]), table(x, 3))
    assert table.at(x.half(), places).dtype == torch.float16
    assert table.at(x[:, :0], places[:, :0]).shape == (B, 0, D)


@pytest.mark.bad_input
@pytest.mark.parametrize("low, high", [(-1, 3), (0, P)])
def test_tables_refuse_a_position_outside(low, high):
    places = torch.tensor([[low, high, 1, 2, 0]])
    must = rf"LearnedPositions: positions must lie in \[0, {P}\), got {low} to {high}"
    with pytest.raises(ValueError, match=must):
        LearnedPositions(P, D).at(torch.zeros(B, T, D), places)


def test_tables_save_and_train_the_learned_one_only():
    fixed, learned = tables()
    assert not fixed.state_dict() and not list(fixed.parameters())
    assert list(learned.state_dict()) == ["table"]
    assert 0.01 < learned.table.std() < 0.03  # 1166 draws of deviation 0.02: false alarm < 1e-9


def test_learned_positions_have_the_right_gradient():
    scheme = LearnedPositions(7, 4).double()
    x = numbers(2, 3, 4).requires_grad_()

    def added(table, x):
        return torch.func.functional_call(scheme, {"table": table}, (x, 2))

    assert torch.autograd.gradcheck(added, (scheme.table, x))


def test_word_order_matters_once_positions_are_added_and_not_before():
    attention = MultiHeadAttention(d_model=D, n_heads=2).double()
    x, order = numbers(1, T, D), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])
    for scheme in (SinusoidalPositions(P, D), LearnedPositions(P, D)):
        moved = (attention(scheme(x[:, order])) - attention(scheme(x))[:, order]).abs().max()
        assert moved > 1e-3


# ---- rotary -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 4093])
def test_rotary_agrees_with_loops_over_pairs(first):
    x = numbers(B, H, T, K)
    before = x.clone()
    turned = RotaryPositions(K).rotate(x, first)
    for b in range(B):
        for h in range(H):
            torch.testing.assert_close(turned[b, h], rotate_slowly(x[b, h], first))
    assert torch.equal(x, before)


def test_rotary_equals_the_paper_after_reordering_features():
    x, order = numbers(T, K), torch.cat([torch.arange(0, K, 2), torch.arange(1, K, 2)])
    paper = torch.empty_like(x)
    for p in range(T):
        for i in range(K // 2):
            angle = torch.tensor(p * 10_000 ** (-2 * i / K), dtype=DOUBLE)
            a, b = x[p, 2 * i], x[p, 2 * i + 1]
            paper[p, 2 * i] = a * angle.cos() - b * angle.sin()
            paper[p, 2 * i + 1] = a * angle.sin() + b * angle.cos()
    ours = RotaryPositions(K).rotate(x[None, None, :, order])[0, 0]
    torch.testing.assert_close(ours, paper[:, order])


def test_rotary_agrees_with_llama():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=K * H, num_attention_heads=H, max_position_embeddings=64)
    q, k = (
        numbers(B, H, T, K, dtype=torch.float32),
        numbers(B, H, T, K, dtype=torch.float32, seed=1),
    )
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, torch.arange(2, 2 + T)[None])
    expected = llama.apply_rotary_pos_emb(q, k, cos, sin)
    rotary = RotaryPositions(K)
    for ours, theirs in zip((rotary.rotate(q, 2), rotary.rotate(k, 2)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # their angles are float32


def test_rotary_scores_depend_on_distance_only():
    q, k = numbers(1, 1, 1, K), numbers(1, 1, 1, K, seed=1)
    rotary = RotaryPositions(K)

    def score(t, s):
        return (rotary.rotate(q, t) * rotary.rotate(k, s)).sum()

    for t, s in ((0, 0), (3, 1), (9, 17), (1, 40)):
        torch.testing.assert_close(score(t, s), score(t + 1000, s + 1000))
    assert abs(score(3, 1) - score(1, 3)) > 1e-3  # and they do depend on it


def test_rotary_keeps_norms_and_leaves_position_0_unchanged():
    x = numbers(B, H, T, K)
    turned = RotaryPositions(K).rotate(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotary_in_half_precision_keeps_accurate_angles_far_out(dtype):
    x = nn.functional.normalize(numbers(1, 1, 7, 64), dim=-1).to(dtype)
    rotary = RotaryPositions(64).to(dtype)
    turned = rotary.rotate(x, 4001)
    assert turned.dtype == dtype
    exact = rotate_slowly(x[0, 0].double(), 4001)
    # the only error is rounding the result, by at most half of eps; 1e-6 is for float32 on the way
    close = {"rtol": 0.51 * torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(turned[0, 0].double(), exact, **close)


def test_rotary_in_pieces_equals_rotary_at_once():
    x, rotary = numbers(B, H, 11, K), RotaryPositions(K)
    for cut in range(12):
        pieces = [rotary.rotate(x[:, :, :cut]), rotary.rotate(x[:, :, cut:], cut)]
        torch.testing.assert_close(torch.cat(pieces, dim=2), rotary.rotate(x))


def test_rotary_has_the_right_gradient_and_takes_empty_input():
    rotary = RotaryPositions(6)
    x = numbers(1, 2, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotary.rotate(x, 2), x)
    assert rotary.rotate(numbers(B, H, 0, 6)).shape == (B, H, 0, 6)
    assert rotary.rotate(numbers(0, H, 3, 6), 4).shape == (0, H, 3, 6)


def test_rotary_trains_after_inference():
    rotary, x = RotaryPositions(K), numbers(1, 1, T, K)
    with torch.inference_mode():
        rotary.rotate(x)
    y = x.clone().requires_grad_()
    rotary.rotate(y).square().sum().backward()
    torch.testing.assert_close(y.grad, 2 * x)  # a rotation keeps norms


def test_rotary_cache_separates_dtypes_devices_and_schemes():
    x = numbers(1, 1, T, K)
    for _ in range(2):
        assert RotaryPositions(K).rotate(x.float()).dtype == torch.float32
        torch.testing.assert_close(RotaryPositions(K).rotate(x)[0, 0], rotate_slowly(x[0, 0]))
        assert RotaryPositions(K).rotate(x.to("meta")).device.type == "meta"
        other = RotaryPositions(K, base=7.0).rotate(x)[0, 0]
        torch.testing.assert_close(other, rotate_slowly(x[0, 0], turn_rates=rates(K, 7.0)))
        for scaling in (LinearScaling(2.0), NTKScaling(2.0), LinearScaling(3.0)):
            ours = RotaryPositions(K, scaling=scaling).rotate(x)[0, 0]
            torch.testing.assert_close(ours, rotate_slowly(x[0, 0], turn_rates=scaling(rates(K))))


def test_rotary_reuses_tables_for_a_growing_sequence():
    rotary = RotaryPositions(K)
    for position in range(200):
        rotary.rotate(numbers(1, 1, 1, K), position)
    assert positions_module._rotary_table.cache_info().misses <= 9  # powers of two up to 256


def test_rotary_cache_ignores_fake_tensors_and_default_devices():
    from torch._subclasses.fake_tensor import FakeTensorMode

    rotary = RotaryPositions(K)
    with FakeTensorMode():
        rotary.rotate(torch.randn(1, 1, T, K))
    x = numbers(1, 1, T, K, dtype=torch.float32)
    assert type(rotary.rotate(x)) is torch.Tensor
    positions_module._rotary_table.cache_clear()
    with torch.device("meta"):
        assert rotary.rotate(x).device == x.device


@pytest.mark.bad_input  # belongs to the pass without the type checker, which dynamo cannot trace
@pytest.mark.filterwarnings("error:.*lru_cache.*")
def test_rotary_compiles_into_one_graph_for_every_length():
    rotary = RotaryPositions(K, scaling=YarnScaling(4.0, 16))
    compiled = torch.compile(lambda x: rotary.rotate(x, 2), fullgraph=True, backend="eager")
    for n in (3, 5, 8):
        x = numbers(1, 1, n, K)
        torch.testing.assert_close(compiled(x), rotary.rotate(x, 2))


# ---- scaling ------------------------------------------------------------------------------------


def hub_rates(function, width, **rope):
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    seq_len = rope.pop("seq_len", None)
    config = LlamaConfig(
        hidden_size=width, num_attention_heads=1, max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10_000.0, **rope},
    )  # fmt: skip
    found, magnitude = getattr(utils, function)(config, torch.device("cpu"), seq_len)
    return found.double(), magnitude


def test_linear_scaling_reads_every_position_as_a_fraction():
    x = numbers(1, 1, 3, K)
    scaled = RotaryPositions(K, scaling=LinearScaling(4.0)).rotate(x, 8)[0, 0]
    torch.testing.assert_close(scaled, rotate_slowly(x[0, 0], 8, rates(K) / 4))
    at_2 = RotaryPositions(K).rotate(x, 2)[0, 0, 0]
    torch.testing.assert_close(scaled[0], at_2)  # position 8 of a fourfold context reads as 2


def test_ntk_scaling_is_a_larger_base():
    for width in (4, 14, 64):
        expected = rates(width, 10_000.0 * 4.0 ** (width / (width - 2)))
        torch.testing.assert_close(NTKScaling(4.0)(rates(width)), expected)
    assert NTKScaling(4.0)(rates(2)) == rates(2)  # a single pair is the fastest


def test_ntk_scaling_agrees_with_the_hub_s_dynamic_one():
    found, _ = hub_rates(
        "_compute_dynamic_ntk_parameters", 64, rope_type="dynamic", factor=3.0, seq_len=8192
    )
    ours = NTKScaling(3.0 * 8192 / 2048 - (3.0 - 1))(rates(64))
    torch.testing.assert_close(ours, found, rtol=1e-5, atol=0)  # theirs is float32


@pytest.mark.parametrize(
    ("width", "factor", "length"), [(64, 4.0, 2048), (128, 16.0, 4096), (14, 2.0, 100)]
)
def test_yarn_scaling_agrees_with_the_hub(width, factor, length):
    found, magnitude = hub_rates(
        "_compute_yarn_parameters", width, rope_type="yarn", factor=factor,
        original_max_position_embeddings=length,
    )  # fmt: skip
    ours = YarnScaling(factor, length)
    torch.testing.assert_close(ours(rates(width)), found, rtol=1e-5, atol=0)  # theirs is float32
    assert ours.magnitude == pytest.approx(magnitude)


def test_yarn_scaling_takes_other_limits():
    found, _ = hub_rates(
        "_compute_yarn_parameters", 64, rope_type="yarn", factor=8.0, beta_fast=20.0, beta_slow=2.0,
        original_max_position_embeddings=1000,
    )  # fmt: skip
    ours = YarnScaling(8.0, 1000, fast=20.0, slow=2.0)(rates(64))
    torch.testing.assert_close(ours, found, rtol=1e-5, atol=0)


def test_yarn_scaling_multiplies_queries_and_keys_by_its_magnitude():
    x, scaling = numbers(1, 1, T, K), YarnScaling(4.0, 64)
    turned = RotaryPositions(K, scaling=scaling).rotate(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1) * (1 + 0.1 * math.log(4)))


def test_scaling_by_one_changes_nothing():
    for scaling in (LinearScaling(1.0), NTKScaling(1.0), YarnScaling(1.0, 64)):
        torch.testing.assert_close(scaling(rates(K)), rates(K))


# ---- ALiBi --------------------------------------------------------------------------------------


def test_alibi_agrees_with_loops_for_a_power_of_two():
    bias = AlibiBias(8).bias(T, T)
    for h in range(8):
        for t in range(T):
            for s in range(T):
                assert bias[h, t, s].item() == pytest.approx(-(2.0 ** -(h + 1)) * abs(t - s))


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 7, 8, 12, 16, 20])
def test_alibi_slopes_agree_with_bloom(n_heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = bloom.build_alibi_tensor(torch.ones(1, 7), n_heads, torch.float32)  # (H, 1, S)
    bias = AlibiBias(n_heads).bias(7, 7)
    torch.testing.assert_close(bias[:, -1:] - bias[:, -1:, :1], theirs)  # equal up to a constant
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    ours, theirs = (
        x.masked_fill(~visible, -math.inf).softmax(-1) for x in (bias, theirs + 0 * bias)
    )
    torch.testing.assert_close(ours, theirs)


def test_alibi_slopes_for_twelve_heads_are_those_of_eight_and_every_other_of_sixteen():
    expected = [2.0**-h for h in range(1, 9)] + [2.0 ** -(h / 2) for h in (1, 3, 5, 7)]
    assert AlibiBias(12).slopes.tolist() == pytest.approx(expected)


def test_alibi_is_at_least_float32_and_follows_float64():
    half = AlibiBias(8).half().bias(3, 5000)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, AlibiBias(8).bias(3, 5000))
    assert AlibiBias(4).double().bias(2, 3).dtype == DOUBLE
    assert not AlibiBias(4).state_dict() and not list(AlibiBias(4).parameters())


# ---- T5 -----------------------------------------------------------------------------------------

BUCKETS = [
    (32, 128, True),
    (32, 128, False),
    (8, 20, True),
    (7, 30, False),
    (2, 2, False),
    (4, 5, True),
]


def bucket_slowly(distance, n_buckets, max_distance, bidirectional):
    side = 0
    if bidirectional:
        n_buckets //= 2
        side = n_buckets if distance > 0 else 0
    away = abs(distance) if bidirectional else max(-distance, 0)
    exact = n_buckets // 2
    if away < exact:
        return side + away
    share = math.log(away / exact) / math.log(max_distance / exact)
    return side + min(exact + int(share * (n_buckets - exact)), n_buckets - 1)


@pytest.mark.parametrize("setting", BUCKETS)
def test_relative_buckets_agree_with_loops(setting):
    distance = torch.arange(-300, 301)
    expected = [bucket_slowly(int(d), *setting) for d in distance]
    assert RelativeBias(1, *setting).bucket(distance).tolist() == expected


@pytest.mark.parametrize(
    "setting", [(32, 128, True), (32, 128, False), (64, 256, True), (8, 20, True)]
)
def test_relative_buckets_agree_with_t5(setting):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distance, (n_buckets, max_distance, bidirectional) = torch.arange(-3000, 3001), setting
    theirs = t5.T5Attention._relative_position_bucket(
        distance, bidirectional, n_buckets, max_distance
    )
    assert torch.equal(RelativeBias(1, *setting).bucket(distance), theirs)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_bias_looks_up_the_bucket_of_each_pair(bidirectional):
    scheme = RelativeBias(H, 8, 20, bidirectional)
    bias = scheme.bias(T, T)
    assert bias.shape == (H, T, T)
    for t in range(T):
        for s in range(T):
            row = scheme.table[bucket_slowly(s - t, 8, 20, bidirectional)]
            assert torch.equal(bias[:, t, s], row)


def test_relative_bias_has_the_right_gradient():
    scheme = RelativeBias(2, 4, 5).double()

    def lookup(table):
        with torch.nn.utils.stateless._reparametrize_module(scheme, {"table": table}):
            return scheme.bias(3, 6)

    assert torch.autograd.gradcheck(lookup, scheme.table)


def test_relative_bias_follows_the_dtype_of_its_table():
    assert RelativeBias(2).to(torch.bfloat16).bias(3, 3).dtype == torch.bfloat16
    assert RelativeBias(2).double().bias(3, 3).dtype == DOUBLE
    assert list(RelativeBias(2).state_dict()) == ["table"]


# ---- inside attention ---------------------------------------------------------------------------


def schemes():
    return [RotaryPositions(6), AlibiBias(2), RelativeBias(2, 8, 20), RelativeBias(2, 8, 20, False)]


@pytest.mark.parametrize("scheme", schemes()[1:], ids=repr)
@pytest.mark.parametrize(
    ("n_queries", "n_keys"), [(0, 0), (0, 3), (3, 0), (1, 1), (1, 7), (3, 7), (7, 3)]
)
def test_biases_align_the_last_query_with_the_last_key(scheme, n_queries, n_keys):
    bias, square = scheme.bias(n_queries, n_keys), scheme.bias(9, 9)
    assert bias.shape == (2, n_queries, n_keys)
    if n_queries and n_keys:
        torch.testing.assert_close(bias, square[:, 9 - n_queries :, 9 - n_keys :])


@pytest.mark.parametrize("scheme", schemes(), ids=repr)
def test_schemes_with_a_cache_equal_one_pass(scheme):
    layer = MultiHeadAttention(d_model=12, n_heads=2, positions=scheme).double().eval()
    x = numbers(B, 7, 12)
    with torch.no_grad():
        full = layer(x, causal=True)
        for cut in (1, 3, 6):
            cache = KVCache(max_len=7)
            pieces = [
                layer(x[:, part], causal=True, cache=cache) for part in (slice(cut), slice(cut, 7))
            ]
            torch.testing.assert_close(torch.cat(pieces, dim=1), full)


@pytest.mark.parametrize("scheme", schemes(), ids=repr)
def test_schemes_are_invariant_to_a_shift_of_all_positions(scheme):
    layer = MultiHeadAttention(d_model=12, n_heads=2, positions=scheme).double().eval()
    x, pad = numbers(1, T, 12), numbers(1, 4, 12, seed=1)
    hidden = torch.cat([torch.zeros(4), torch.ones(T)]).bool().expand(4 + T, 4 + T)
    with torch.no_grad():
        moved = layer(torch.cat([pad, x], dim=1), mask=hidden)[:, 4:]
        torch.testing.assert_close(moved, layer(x))


@pytest.mark.parametrize("scheme", schemes(), ids=repr)
def test_schemes_make_the_order_matter(scheme):
    with torch.no_grad():
        for parameter in scheme.parameters():
            parameter.copy_(numbers(*parameter.shape))
    layer = MultiHeadAttention(d_model=12, n_heads=2, positions=scheme).double().eval()
    x, order = numbers(1, T, 12), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        assert (layer(x[:, order]) - layer(x)[:, order]).abs().max() > 1e-4


def test_schemes_can_be_used_by_many_layers():
    scheme = RelativeBias(2)
    model = nn.ModuleList(MultiHeadAttention(12, 2, positions=scheme) for _ in range(3))
    x = numbers(1, T, 12, dtype=torch.float32)
    for layer in model:
        x = layer(x)
    x.sum().backward()
    assert (
        sum(p is scheme.table for p in model.parameters()) == 1
        and scheme.table.grad.abs().sum() > 0
    )
    assert sum("table" in name for name in model.state_dict()) == 3


def test_schemes_can_be_copied_and_show_their_sizes():
    for scheme in (*schemes(), *tables(), RotaryPositions(6, scaling=YarnScaling(4.0, 64))):
        copy.deepcopy(scheme)
    assert repr(tables()[0]) == f"SinusoidalPositions(max_len={P}, d_model={D})"
    assert repr(tables()[1]) == f"LearnedPositions(max_len={P}, d_model={D})"
    assert repr(RotaryPositions(6, scaling=NTKScaling(4.0))) == (
        "RotaryPositions(d_head=6, base=10000, scaling=NTKScaling(factor=4.0))"
    )
    assert repr(AlibiBias(3)) == "AlibiBias(n_heads=3)"
    assert repr(RelativeBias(2, 8, 20)) == (
        "RelativeBias(n_heads=2, n_buckets=8, max_distance=20, bidirectional=True)"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_schemes_agree_on_the_gpu():
    x = numbers(B, H, T, K)
    gpu = RotaryPositions(K).cuda().rotate(x.cuda(), 3)
    torch.testing.assert_close(gpu.cpu(), RotaryPositions(K).rotate(x, 3))
    torch.testing.assert_close(RotaryPositions(K).rotate(x, 3)[0, 0], rotate_slowly(x[0, 0], 3))
    for scheme in schemes()[1:]:
        torch.testing.assert_close(copy.deepcopy(scheme).cuda().bias(3, 7).cpu(), scheme.bias(3, 7))


# ---- refusals -----------------------------------------------------------------------------------


def refused(match):
    return pytest.raises(ValueError, match=match)


def test_positions_refuse_impossible_sizes_with_the_number():
    for width in (7, 0, -2):
        with refused(f"sinusoidal_positions: d_model must be a multiple of 2 above 0, got {width}"):
            sinusoidal_positions(P, width)
        with refused(f"RotaryPositions: d_head must be a multiple of 2 above 0, got {width}"):
            RotaryPositions(width)
    with refused("n_positions must be an integer at least 0, got -1"):
        sinusoidal_positions(-1, D)
    with refused("base must be a number above 0, got 0"):
        sinusoidal_positions(P, D, base=0.0)
    with refused("RotaryPositions: base must be a number above 0, got -3"):
        RotaryPositions(K, base=-3.0)
    with refused("LearnedPositions: max_len must be an integer at least 1, got 0"):
        LearnedPositions(0, 4)
    with refused("AlibiBias: n_heads must be an integer at least 1, got 0"):
        AlibiBias(0)
    for scaling in (LinearScaling, NTKScaling):
        with refused(f"{scaling.__name__}: factor must be a number at least 1, got 0.5"):
            scaling(0.5)
    with refused("YarnScaling: factor must be a number at least 1, got nan"):
        YarnScaling(math.nan, 64)
    with refused("YarnScaling: n_pairs must be an integer at least 2, got 1"):
        YarnScaling(4.0, 64)(rates(2))
    with refused("YarnScaling: trained_length must be a number at least 1, got 0"):
        YarnScaling(4.0, 0)(rates(14))


def test_relative_bias_refuses_impossible_buckets_with_the_numbers():
    with refused("RelativeBias: n_heads must be an integer at least 1, got 0"):
        RelativeBias(0)
    with refused("n_buckets must be a multiple of 2 at least 4, got 7"):
        RelativeBias(2, 7)
    with refused("n_buckets must be a multiple of 2 at least 4, got 2"):
        RelativeBias(2, 2)
    with refused("n_buckets must be a multiple of 1 at least 2, got 1"):
        RelativeBias(2, 1, bidirectional=False)
    with refused("max_distance must be a number above 8, got 8"):
        RelativeBias(2, 32, 8)


@pytest.mark.parametrize("scheme", tables(), ids=lambda s: type(s).__name__)
def test_tables_refuse_positions_past_the_end_with_both_numbers(scheme):
    last = rf"positions must lie in \[0, {P}\)"
    with refused(f"{last}, got 0 to {P}"):
        scheme(numbers(1, P + 1, D))
    with refused(f"{last}, got {P - 2} to {P + 2}"):
        scheme(numbers(1, T, D), first=P - 2)
    with refused(f"{last}, got -1 to 3"):
        scheme(numbers(1, T, D), first=-1)


@pytest.mark.parametrize("scheme", tables(), ids=lambda s: type(s).__name__)
def test_positions_refuse_a_wrong_width_with_both_numbers(scheme):
    with refused(rf"x must have shape \(..., T, D\) with D = {D}, got \(1, {T}, 1\)"):
        scheme(numbers(1, T, 1))  # would broadcast silently


@pytest.mark.bad_input
def test_positions_refuse_a_missing_axis():
    with refused(r"x must have shape \(..., T, D\).*, got \(22,\)"):
        SinusoidalPositions(P, D)(numbers(D))
    with refused(r"x must have shape \(..., T, K\).*, got \(14,\)"):
        RotaryPositions(K).rotate(numbers(K))


def test_rotary_refuses_other_widths_and_negative_positions():
    with refused(rf"x must have shape \(..., T, K\) with K = {K}, got \({B}, {H}, {T}, 12\)"):
        RotaryPositions(K).rotate(numbers(B, H, T, 12))
    with refused("RotaryPositions: first must be at least 0, got -1"):
        RotaryPositions(K).rotate(numbers(B, H, T, K), -1)


@pytest.mark.parametrize("scheme", schemes()[1:], ids=repr)
@pytest.mark.parametrize("sizes", [(-1, 3), (3, -1)])
def test_biases_refuse_negative_counts_with_both_numbers(scheme, sizes):
    name = "n_queries" if sizes[0] < 0 else "n_keys"
    with refused(f"{type(scheme).__name__}.bias: {name} must be an integer at least 0, got -1"):
        scheme.bias(*sizes)


@pytest.mark.parametrize("start", ["meta", "cpu"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: SinusoidalPositions(13, 6, base=77.0, amplitude=0.5),
        lambda: AlibiBias(6),
    ],
    ids=["sinusoidal", "alibi"],
)
def test_tables_are_recomputed_when_a_module_gets_new_memory(make, start):
    wanted = dict(make().named_buffers())
    for change in (
        lambda module: module.to_empty(device="cpu"),
        lambda module: module.to_empty(device="cpu").half().float(),
        lambda module: module.load_state_dict({}, assign=True) and module,
    ):
        with torch.device(start):
            module = make()
        if start == "cpu":
            for buffer in module.buffers():
                buffer.fill_(7.0)
            module = module.to_empty(device="meta")
        for name, buffer in change(module).named_buffers():
            torch.testing.assert_close(buffer, wanted[name], rtol=0, atol=0)
