"""Properties of the four attention scores, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_lib.scores import AdditiveScore, BilinearScore, dot_score, scaled_dot_score

B, H, T, S, KQ, KK, A = 2, 3, 5, 7, 11, 13, 17  # distinct primes: no axis can pass for another
F64 = torch.float64


def draw(*shape, dtype=F64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def seeded(module, dtype=F64, seed=0):
    """Give a score parameters that depend on nothing but the seed."""
    module = module.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    return module


def all_scores(dtype=F64):
    """Name, score function and width of the keys; queries have width KQ."""
    return [
        ("dot", dot_score, KQ),
        ("scaled", scaled_dot_score, KQ),
        ("bilinear", seeded(BilinearScore(d_query=KQ, d_key=KK), dtype), KK),
        ("additive", seeded(AdditiveScore(d_query=KQ, d_key=KK, d_hidden=A), dtype), KK),
    ]


each_score = pytest.mark.parametrize("name", ["dot", "scaled", "bilinear", "additive"])


def score_named(name, dtype=F64):
    return next((score, width) for n, score, width in all_scores(dtype) if n == name)


def one_pair(name, score, q, k):
    """The score of one query and one key, from the equation."""
    if name in ("dot", "scaled"):
        products = sum(q[c].item() * k[c].item() for c in range(len(q)))
        return products / math.sqrt(len(q)) if name == "scaled" else products
    if name == "bilinear":
        w = score.weight
        return sum(
            q[a].item() * w[a, c].item() * k[c].item() for a in range(len(q)) for c in range(len(k))
        )
    p = dict(score.named_parameters())
    hidden = p["from_query.weight"] @ q + p["from_key.weight"] @ k + p["from_key.bias"]
    return sum(p["to_score.weight"][0, a].item() * math.tanh(hidden[a].item()) for a in range(A))


@each_score
def test_scores_follow_their_equations_for_every_pair(name):
    score, width = score_named(name)
    query, key = draw(T, KQ), draw(S, width)
    scores = score(query, key)
    assert scores.shape == (T, S)
    expected = [[one_pair(name, score, q, k) for k in key] for q in query]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("name", ["bilinear", "additive"])
@pytest.mark.parametrize("widths", [(KQ, KQ), (KQ, KK), (KK, KQ)])
def test_learned_scores_follow_their_equations_for_equal_and_unequal_widths(name, widths):
    score = BilinearScore(*widths) if name == "bilinear" else AdditiveScore(*widths, A)
    score, query, key = seeded(score), draw(T, widths[0]), draw(S, widths[1])
    expected = [[one_pair(name, score, q, k) for k in key] for q in query]
    torch.testing.assert_close(score(query, key), torch.tensor(expected, dtype=F64))
    # as many queries as keys, and as many as features: no axis may be told by its size
    query, key = draw(widths[0], widths[0], seed=1), draw(widths[0], widths[1], seed=2)
    expected = [[one_pair(name, score, q, k) for k in key] for q in query]
    torch.testing.assert_close(score(query, key), torch.tensor(expected, dtype=F64))


@each_score
def test_scores_treat_leading_axes_as_independent_batches(name):
    score, width = score_named(name)
    query, key = draw(B, H, T, KQ), draw(B, H, S, width)
    scores = score(query, key)
    assert scores.shape == (B, H, T, S)
    for b in range(B):
        for h in range(H):
            torch.testing.assert_close(scores[b, h], score(query[b, h], key[b, h]))


@each_score
def test_scores_are_permuted_with_queries_and_keys(name):
    score, width = score_named(name)
    query, key = draw(T, KQ), draw(S, width)
    rows, columns = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([6, 2, 0, 5, 1, 4, 3])
    expected = score(query, key)[rows][:, columns]
    torch.testing.assert_close(score(query[rows], key[columns]), expected)


@each_score
def test_scores_gradients_agree_with_finite_differences(name):
    score, width = score_named(name)
    query, key = draw(2, 3, KQ).requires_grad_(), draw(2, 2, width).requires_grad_()
    assert torch.autograd.gradcheck(score, (query, key))
    if name in ("bilinear", "additive"):
        names, values = zip(*score.named_parameters(), strict=True)
        values = tuple(v.detach().clone().requires_grad_() for v in values)

        def of_parameters(*values):
            parameters = dict(zip(names, values, strict=True))
            return torch.func.functional_call(score, parameters, (query.detach(), key.detach()))

        assert torch.autograd.gradcheck(of_parameters, values)


@each_score
def test_learned_scores_give_every_parameter_a_gradient(name):
    score, width = score_named(name)
    score(draw(T, KQ), draw(S, width).requires_grad_()).pow(2).sum().backward()
    for parameter in score.parameters() if isinstance(score, torch.nn.Module) else ():
        assert parameter.grad is not None and (parameter.grad != 0).all()


@each_score
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_in_half_precision_are_near_float64_and_keep_their_dtype(name, dtype):
    exact, width = score_named(name)
    narrow, _ = score_named(name, dtype)
    query, key = draw(B, T, KQ), draw(B, S, width)
    scores = narrow(query.to(dtype), key.to(dtype))
    assert scores.dtype == dtype
    # rounding of inputs, parameters and sums: a few dozen terms, each off by about eps
    bound = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(scores.double(), exact(query, key), rtol=bound, atol=bound)


@each_score
def test_scores_leave_inputs_unchanged(name):
    score, width = score_named(name)
    query, key = draw(T, KQ), draw(S, width)
    before = query.clone(), key.clone()
    score(query, key)
    assert torch.equal(query, before[0]) and torch.equal(key, before[1])


@each_score
@pytest.mark.parametrize("sizes", [(2, 1, 1), (2, 0, 3), (2, 3, 0), (0, 3, 5)])
def test_scores_accept_single_and_absent_positions(name, sizes):
    batch, n_queries, n_keys = sizes
    score, width = score_named(name)
    scores = score(draw(batch, n_queries, KQ), draw(batch, n_keys, width))
    assert scores.shape == (batch, n_queries, n_keys)


def test_scaled_dot_score_of_width_zero_is_zero():
    assert torch.equal(scaled_dot_score(draw(3, 0), draw(5, 0)), torch.zeros(3, 5, dtype=F64))


@pytest.mark.parametrize("width", [4, 64, 1024])
def test_scaled_dot_score_of_standard_normals_has_variance_one(width):
    # over 2000 draws the sample variance had std 0.058 at width 4, less at larger ones
    query, key = draw(300, width, seed=1), draw(300, width, seed=2)
    assert scaled_dot_score(query, key).var().item() == pytest.approx(1, abs=5 * 0.058)


def test_bilinear_score_of_standard_normals_starts_with_variance_one():
    torch.manual_seed(0)
    score = BilinearScore(d_query=64, d_key=128).double()
    # over 2000 draws the sample variance had std 0.024
    variance = score(draw(300, 64, seed=1), draw(300, 128, seed=2)).var().item()
    assert variance == pytest.approx(1, abs=5 * 0.024)


def test_bilinear_parameters_start_with_the_variance_the_docstring_states():
    torch.manual_seed(0)
    weight = BilinearScore(d_query=101, d_key=211).weight
    # 21311 draws: the sample variance has relative std 0.0097; 5 of those
    assert weight.var().item() * 101 * 211 == pytest.approx(1, abs=0.05)


@given(
    scale=st.floats(-8, 8, allow_nan=False),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
)
@settings(derandomize=True, max_examples=25, deadline=None)
def test_scaled_dot_score_replaces_the_default_by_a_given_scale(scale, shape):
    n_queries, n_keys, width = shape
    query, key = draw(n_queries, width, seed=1), draw(n_keys, width, seed=2)
    expected = scale * dot_score(query, key)
    torch.testing.assert_close(scaled_dot_score(query, key, scale=scale), expected)


def test_scaled_dot_score_in_half_precision_does_not_overflow_before_scaling():
    loud = torch.full((1, 64), 32.0, dtype=torch.float16)
    assert dot_score(loud, loud).isinf().all()
    assert scaled_dot_score(loud, loud).item() == 64 * 32 * 32 / 8


def test_bilinear_score_equals_projecting_then_dot_product():
    to_query, to_key, x, y = draw(KQ, 3), draw(KK, 3), draw(T, KQ), draw(S, KK)
    score = BilinearScore(d_query=KQ, d_key=KK).double()
    score.weight.data = to_query @ to_key.T
    torch.testing.assert_close(score(x, y), dot_score(x @ to_query, y @ to_key))


def test_additive_score_is_bounded_by_the_output_weights():
    score, width = score_named("additive")
    bound = score.to_score.weight.abs().sum()
    scores = score(1e6 * draw(T, KQ), 1e6 * draw(S, width))
    assert (scores.abs() <= bound * (1 + 1e-12)).all() and scores.abs().max() > 0.1 * bound


def test_learned_scores_have_as_many_parameters_as_the_formulas():
    for dq, dk, hidden in ((3, 5, 7), (11, 2, 1)):
        count = sum(p.numel() for p in AdditiveScore(dq, dk, hidden).parameters())
        assert count == hidden * (dq + dk + 2)
        assert sum(p.numel() for p in BilinearScore(dq, dk).parameters()) == dq * dk


def test_learned_scores_round_trip_through_a_state_dict_and_show_their_sizes():
    for make in (lambda: BilinearScore(KQ, KK), lambda: AdditiveScore(KQ, KK, A)):
        one, other = make(), make()
        other.load_state_dict(one.state_dict())
        query, key = draw(T, KQ, dtype=torch.float32), draw(S, KK, dtype=torch.float32)
        assert torch.equal(one(query, key), other(query, key))
        assert str(KQ) in repr(one) and str(KK) in repr(one)


@pytest.mark.plain
@each_score
def test_scores_compile_into_one_graph(name):
    score, width = score_named(name)
    compiled = torch.compile(score, fullgraph=True, backend="eager")
    query, key = draw(T, KQ), draw(S, width)
    torch.testing.assert_close(compiled(query, key), score(query, key))


# ------------------------------------------------------------------ what is refused


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("dot", "dot_score"),
        ("scaled", "scaled_dot_score"),
        ("bilinear", "BilinearScore"),
        ("additive", "AdditiveScore"),
    ],
)
def test_scores_refuse_sizes_that_do_not_fit_with_both_numbers(name, function):
    score, width = score_named(name)
    with pytest.raises(ValueError, match=f"^{function}: key must .* = {width}, got .*19.$"):
        score(draw(T, KQ), draw(S, 19))
    if name in ("bilinear", "additive"):
        with pytest.raises(ValueError, match=f"^{function}: query must .* = {KQ}, got .*19.$"):
            score(draw(T, 19), draw(S, width))
    shapes = [((B, T, KQ), (S, width)), ((T, KQ), (B, S, width)), ((B, T, KQ), (1, S, width))]
    shapes += [((KQ,), (S, width)), ((T, KQ), (width,)), ((KQ,), (width,)), ((), ())]
    for left, right in shapes:
        with pytest.raises(ValueError) as error:
            score(draw(*left), draw(*right))
        message = str(error.value)
        assert message.startswith((f"{function}: query must have", f"{function}: key must have"))
        assert str(left) in message or str(right) in message


@pytest.mark.bad_input
def test_learned_scores_refuse_widths_below_one():
    for sizes in ((0, 3), (3, 0), (-1, 3)):
        with pytest.raises(ValueError, match=f"BilinearScore: d_.* at least 1, got {min(sizes)}"):
            BilinearScore(*sizes)
    for sizes in ((0, 3, 5), (3, 0, 5), (3, 5, 0)):
        with pytest.raises(
            ValueError, match="AdditiveScore: d_.* must be an integer at least 1, got 0"
        ):
            AdditiveScore(*sizes)
