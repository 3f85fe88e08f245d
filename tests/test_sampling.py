"""Sampling: each filter against loops, each draw and each text against its probability."""

import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import KINDS, inputs, make, refused

from transformer_lib.generation import stream
from transformer_lib.models import DecoderOnly, Transformer
from transformer_lib.sampling import (
    Sampler,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample,
)

NORMAL = "[1.1754943508222875e-38, 3.4028234663852886e+38]"  # of float32


def normal(*shape, seed=0):
    return 2 * torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def kept(logits):
    return {i for i, z in enumerate(logits.tolist()) if z > -math.inf}


def as_expected(counts, probabilities, false_alarm=1e-6):
    """Pearson's test: draws from these probabilities fail it about once in 1 / false_alarm."""
    n, statistic, pooled = sum(counts.values()), 0.0, [0, 0.0]
    degrees = -1
    for outcome, probability in probabilities.items():
        if n * probability < 10:  # rare outcomes are taken together
            pooled = [pooled[0] + counts.get(outcome, 0), pooled[1] + probability]
            continue
        statistic += (counts.get(outcome, 0) - n * probability) ** 2 / (n * probability)
        degrees += 1
    if pooled[1] > 0:
        expected = max(n * pooled[1], 1.0)
        statistic += (pooled[0] - expected) ** 2 / expected
        degrees += 1
    x = torch.tensor(statistic / 2, dtype=torch.float64)
    half = torch.tensor(degrees / 2, dtype=torch.float64)
    return (
        set(counts) <= set(probabilities) and torch.special.gammaincc(half, x).item() > false_alarm
    )


# the filters


@pytest.mark.parametrize("k", [1, 3, 12, 13, 50])
def test_top_k_keeps_what_fewer_than_k_tokens_beat(k):
    for logits in (normal(17, 13), normal(17, 13).round()):  # without and with ties
        for before, after in zip(logits, keep_top_k(logits, k), strict=True):
            wanted = {i for i in range(13) if (before > before[i]).sum() < k}
            assert kept(after) == wanted
            assert torch.equal(after[[*wanted]], before[[*wanted]])


def test_sampler_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampler().temperature = 2.0


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.7, 0.99, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(p):
    for before in normal(31, 13):
        after, shares = keep_top_p(before, p), before.softmax(dim=-1).tolist()
        wanted, total = set(), 0.0
        for i in sorted(range(13), key=lambda i: -shares[i]):
            if wanted and total >= p:
                break
            wanted.add(i)
            total += shares[i]
        assert kept(after) == wanted
        assert torch.equal(after[[*wanted]], before[[*wanted]])


@pytest.mark.parametrize("p", [0.05, 0.45, 0.85])
def test_top_p_keeps_as_many_equal_tokens_as_it_needs(p):
    assert len(kept(keep_top_p(torch.zeros(10, dtype=torch.float64), p))) == math.ceil(10 * p)
    for before in normal(17, 13).round():
        chosen, total, n = kept(keep_top_p(before, p)), 0.0, 0
        for share in sorted(before.softmax(dim=-1).tolist(), reverse=True):
            total, n = total + share, n + (total < p)
        assert len(chosen) == n
        assert min(before[[*chosen]]) >= max(before[[*{*range(13)} - chosen]], default=-math.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_top_p_counts_correctly_among_many_tokens(dtype):
    """Running sums of so many shares end beside 1, and lose their digits in half precision."""
    logits = normal(50_021).to(dtype)
    assert keep_top_p(logits, 1.0).isfinite().all()
    found, wanted = (keep_top_p(z, 0.9).isfinite().sum() for z in (logits, logits.double()))
    assert abs(found - wanted) <= 2  # float32 sums


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=9), st.integers(1, 12))
@settings(max_examples=40)
def test_top_k_drops_only_what_at_least_k_tokens_beat(values, k):
    logits = torch.tensor(values, dtype=torch.float64)
    chosen = keep_top_k(logits, k).isfinite()
    assert chosen.sum() >= min(k, len(values))
    assert all((logits > z).sum() >= k for z in logits[~chosen])
    assert all((logits > z).sum() < k for z in logits[chosen])


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=9), st.floats(0.001, 1))
@settings(max_examples=40)
def test_min_p_drops_what_is_below_its_fraction_of_the_most_probable(values, p):
    logits = torch.tensor(values, dtype=torch.float64)
    shares, chosen = logits.softmax(dim=-1), keep_min_p(logits, p).isfinite()
    assert (shares[chosen] >= p * shares.max() * (1 - 1e-12)).all()
    assert (shares[~chosen] < p * shares.max() * (1 + 1e-12)).all()


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=9), st.floats(0.01, 1))
@settings(max_examples=60)
def test_top_p_reaches_p_and_not_without_its_last_token(values, p):
    logits = torch.tensor(values, dtype=torch.float64)
    shares = logits.softmax(dim=-1)
    chosen = shares[keep_top_p(logits, p).isfinite()]
    assert len(chosen) and chosen.sum() >= p - 1e-12
    assert chosen.sum() - chosen.min() < p + 1e-12


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_min_p_keeps_what_is_p_times_as_probable_as_the_best(p):
    for before in normal(31, 13):
        shares = before.softmax(dim=-1)
        wanted = {i for i in range(13) if shares[i] >= p * shares.max() * (1 - 1e-12)}
        after = keep_min_p(before, p)
        assert kept(after) == wanted
        assert torch.equal(after[[*wanted]], before[[*wanted]])


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.5])
def test_penalty_lowers_the_tokens_seen_and_nothing_else(penalty):
    logits, seen = normal(7, 13), normal(7, 13, seed=1) > 0
    after = penalize_repetition(logits, seen, penalty)
    for z, old, said in zip(after.flatten(), logits.flatten(), seen.flatten(), strict=True):
        lower = old / penalty if old > 0 else old * penalty
        torch.testing.assert_close(z, lower if said else old)
        assert not said or penalty < 1 or z <= old


def test_filters_take_any_batch_and_leave_their_input_unchanged():
    logits = normal(2, 3, 5)
    before = logits.clone()
    for one in (keep_top_k, keep_top_p, keep_min_p):
        amount = 2 if one is keep_top_k else 0.6
        whole = one(logits, amount)
        apart = torch.stack([torch.stack([one(row, amount) for row in rows]) for rows in logits])
        assert torch.equal(whole, apart)
        assert torch.equal(logits, before)
    seen = logits > 1
    whole = penalize_repetition(logits, seen, 1.3)
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(whole[i, j], penalize_repetition(logits[i, j], seen[i, j], 1.3))
    assert torch.equal(logits, before) and torch.equal(seen, before > 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_filters_keep_the_dtype_and_what_is_impossible_already(dtype):
    logits = torch.tensor([1.0, -math.inf, 0.5, -math.inf, 3.0], dtype=dtype)
    for filtered in (keep_top_k(logits, 4), keep_top_p(logits, 1.0), keep_min_p(logits, 0.0)):
        assert filtered.dtype == dtype and kept(filtered) == {0, 2, 4}
    penalized = penalize_repetition(logits, torch.ones(5, dtype=torch.bool), 2.0)
    assert penalized.tolist() == [0.5, -math.inf, 0.25, -math.inf, 1.5]
    assert penalized.dtype == dtype


def test_filters_agree_with_hugging_face():
    """Where their library is installed."""
    theirs = pytest.importorskip("transformers.generation.logits_process")
    logits, tokens = normal(7, 13).float(), torch.randint(0, 13, (7, 5))
    seen = torch.zeros(7, 13, dtype=torch.bool).scatter(1, tokens, True)
    pairs = [
        (penalize_repetition(logits, seen, 1.3), theirs.RepetitionPenaltyLogitsProcessor(1.3)),
        (keep_top_k(logits, 4), theirs.TopKLogitsWarper(4)),
        (keep_top_p(logits, 0.7), theirs.TopPLogitsWarper(0.7)),
        (keep_min_p(logits, 0.2), theirs.MinPLogitsWarper(0.2)),
    ]
    for ours, theirs_of in pairs:
        torch.testing.assert_close(ours, theirs_of(tokens, logits.clone()))


# the sampler


def test_sampler_filters_in_the_documented_order():
    logits, seen = normal(7, 13), normal(7, 13, seed=1) > 0
    options = {"repetition_penalty": 1.4, "temperature": 0.6, "top_k": 7, "top_p": 0.9}
    by_hand = penalize_repetition(logits, seen, 1.4) / 0.6
    by_hand = keep_min_p(keep_top_p(keep_top_k(by_hand, 7), 0.9), 0.05).softmax(dim=-1)
    found = Sampler(**options, min_p=0.05).probabilities(logits, seen)
    torch.testing.assert_close(found, by_hand)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(7, dtype=torch.float64))
    plain = Sampler().probabilities(logits, seen)
    torch.testing.assert_close(plain, logits.softmax(dim=-1))


def test_sampler_changes_neither_logits_nor_the_tokens_seen():
    logits, seen = normal(7, 13), normal(7, 13, seed=1) > 0
    before = logits.clone(), seen.clone()
    sampler = Sampler(repetition_penalty=1.4, temperature=0.6, top_k=7, top_p=0.9, min_p=0.05)
    sampler(logits, seen)
    assert torch.equal(logits, before[0]) and torch.equal(seen, before[1])


@pytest.mark.parametrize(
    "option",
    [
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.3},
        {"temperature": 3.0},
        {"repetition_penalty": 9.0},
    ],
)
def test_sampler_uses_each_option(option):
    logits, seen = normal(7, 13), normal(7, 13, seed=1) > 0
    changed = Sampler(**option).probabilities(logits, seen)
    assert not torch.allclose(changed, logits.softmax(dim=-1))


def test_sampler_draws_from_half_precision_in_float32():
    logits = normal(3, 40).half()
    probabilities = Sampler(temperature=0.7).probabilities(
        logits, torch.zeros(3, 40, dtype=torch.bool)
    )
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, (logits.float() / 0.7).softmax(dim=-1))


def test_sampler_draws_with_its_probabilities():
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(temperature=1.5, top_k=5, generator=generator)
    logits, seen = normal(9)[None], torch.zeros(1, 9, dtype=torch.bool)
    probabilities = sampler.probabilities(logits, seen)[0]
    draws = sampler(logits.expand(4000, -1), seen.expand(4000, -1)).tolist()
    counts = {token: draws.count(token) for token in {*draws}}
    assert as_expected(counts, {i: p for i, p in enumerate(probabilities.tolist()) if p > 0})
    assert not as_expected(counts, {i: p for i, p in enumerate(logits[0].softmax(-1).tolist())})


@pytest.mark.parametrize("row", range(4))
def test_sample_does_not_depend_on_left_padding(row):
    model, (tokens, mask) = make(positions="rotary"), inputs()
    alone = tokens[row, mask[row, 0, 0]][None]

    def draw(tokens, mask=None):
        generator = torch.Generator().manual_seed(row)
        sampler = Sampler(repetition_penalty=1.5, temperature=1.2, generator=generator)
        return sample(model, tokens, mask, max_len=9, end=None, sampler=sampler)

    assert draw(tokens[row : row + 1], mask[row : row + 1]) == draw(alone)


def test_sampler_works_with_stream():
    model = make()
    tokens, mask = inputs()
    pick = Sampler(generator=torch.Generator().manual_seed(0))
    steps = list(stream(model, tokens, mask, max_len=6, end=None, pick=pick))
    sampler = Sampler(generator=torch.Generator().manual_seed(0))
    lines = sample(model, tokens, mask, max_len=6, end=None, sampler=sampler)
    assert [list(step) for step in steps] == [list(step) for step in zip(*lines, strict=True)]


def test_sample_ends_a_row_at_stop_and_at_end():
    model = make()
    tokens, mask = inputs()
    options = {"max_len": 9, "stop": lambda line: len(line) == 4}
    assert all(len(line) == 4 for line in sample(model, tokens, mask, end=None, **options))
    lines = sample(model, tokens.repeat(20, 1), mask.repeat(20, 1, 1, 1), max_len=9, end=3)
    assert {len(line) for line in lines} > {0, 9} and all(3 not in line for line in lines)


def test_penalty_counts_the_prompt_but_neither_padding_nor_a_source():
    """So large a penalty makes what was seen the least probable: eleven tokens, each once."""
    sampler = Sampler(repetition_penalty=1e6, top_k=1)
    model = make()
    model.output.register_forward_hook(lambda module, args, out: out + 50)  # all above 0
    tokens, mask = torch.tensor([[9, 9, 4], [1, 2, 4]]), torch.ones(2, 1, 1, 3, dtype=torch.bool)
    mask[0, ..., :2] = False
    lines = sample(model, tokens, mask, max_len=10, end=None, sampler=sampler)
    assert {*lines[0]} == {*range(11)} - {4}  # with the 9 of the padding
    assert {*lines[1][:8]} == {*range(11)} - {1, 2, 4}
    translator = make(Transformer)
    translator.output.register_forward_hook(lambda module, args, out: out + 50)
    lines = sample(translator, tokens, max_len=11, end=None, sampler=sampler)
    assert {*lines[0]} == {*lines[1]} == {*range(11)}


# whole texts


WARM = {"temperature": 1.5, "repetition_penalty": 1.5}


def odds(kind, model, sampler, max_len, end):
    """Probabilities of the texts of tokens 0, 1, 2 after the source 0 2, one pass per prefix."""
    probabilities = {}
    for line in itertools.product(range(3), repeat=max_len):
        probability = 1.0
        for t in range(max_len):
            with torch.no_grad():
                if kind is DecoderOnly:
                    logits = model(torch.tensor([[0, 2, *line[:t]]]))[0, -1]
                else:
                    logits = model(torch.tensor([[0, 2]]), torch.tensor([[1, *line[:t]]]))[0, -1]
            seen = torch.zeros(3, dtype=torch.bool)
            seen[[*line[:t], *([0, 2] if kind is DecoderOnly else [])]] = True
            probability *= sampler.probabilities(logits, seen)[line[t]].item()
        text = line[: line.index(end)] if end in line else line
        probabilities[text] = probabilities.get(text, 0.0) + probability
    assert sum(probabilities.values()) == pytest.approx(1)
    return {text: probability for text, probability in probabilities.items() if probability > 0}


@KINDS
def test_sample_draws_texts_with_the_probabilities_of_the_model(kind):
    """Texts of three tokens out of three, 2,000 draws; false alarm 1e-6 for each kind."""
    model = make(kind, vocab_size=3, n_decoder_layers=1)
    sampler = Sampler(**WARM, generator=torch.Generator().manual_seed(5))
    source = torch.tensor([[0, 2]]).expand(2000, -1)
    lines = sample(model, source, max_len=3, end=1, sampler=sampler)
    assert as_expected(Counter(map(tuple, lines)), odds(kind, model, sampler, 3, 1))


# what is refused


@pytest.mark.parametrize(
    "run, message",
    [
        (
            lambda: keep_top_k(normal(3), 0),
            "keep_top_k: k must be an integer at least 1, got 0",
        ),
        (
            lambda: keep_top_p(normal(3), 0.0),
            "keep_top_p: p must be a number in (0, 1], got 0.0",
        ),
        (
            lambda: keep_top_p(normal(3), 1.1),
            "keep_top_p: p must be a number in (0, 1], got 1.1",
        ),
        (lambda: keep_min_p(normal(3), -0.1), "keep_min_p: p must be a number in [0, 1], got -0.1"),
        (lambda: keep_min_p(normal(3), 1.1), "keep_min_p: p must be a number in [0, 1], got 1.1"),
        (
            lambda: penalize_repetition(normal(3), normal(3) > 0, 0.0),
            f"penalize_repetition: penalty must be a number in {NORMAL}, got 0.0",
        ),
        (
            lambda: penalize_repetition(normal(3), normal(3) > 0, math.inf),
            f"penalize_repetition: penalty must be a number in {NORMAL}, got inf",
        ),
    ],
)
def test_filters_refuse_options_out_of_range(run, message):
    with refused(message):
        run()


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"temperature": 0.0},
            f"temperature must be a number in {NORMAL}, got 0.0",
        ),
        (
            {"temperature": math.inf},
            f"temperature must be a number in {NORMAL}, got inf",
        ),
        (
            {"temperature": math.nan},
            f"temperature must be a number in {NORMAL}, got nan",
        ),
        (
            {"repetition_penalty": 0.0},
            f"repetition_penalty must be a number in {NORMAL}, got 0.0",
        ),
        (
            {"repetition_penalty": math.inf},
            f"repetition_penalty must be a number in {NORMAL}, got inf",
        ),
        ({"top_k": 0}, "top_k must be an integer at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be a number in (0, 1], got 0.0"),
        ({"top_p": 1.5}, "top_p must be a number in (0, 1], got 1.5"),
        ({"min_p": -0.5}, "min_p must be a number in [0, 1], got -0.5"),
        ({"min_p": 1.5}, "min_p must be a number in [0, 1], got 1.5"),
    ],
)
def test_sampler_refuses_options_out_of_range(options, message):
    with refused(f"Sampler: {message}"):
        Sampler(**options)


LIMITS = [torch.finfo(torch.float32).tiny, 1e-30, 1e-3, 1e3, 1e30, torch.finfo(torch.float32).max]


@pytest.mark.parametrize("logits", [[3.0, 15.0, 9.0], [-3.0, -15.0, -9.0], [0.0, -math.inf, 3e38]])
@pytest.mark.parametrize("limit", LIMITS)
def test_sampler_gives_probabilities_at_the_limits_of_float32(limit, logits):
    logits = torch.tensor([logits])
    for seen in (torch.ones(1, 3).bool(), torch.tensor([[True, False, False]])):
        for name in ("temperature", "repetition_penalty"):
            found = Sampler(**{name: limit}).probabilities(logits, seen)
            torch.testing.assert_close(found.sum(), torch.tensor(1.0))
            assert (found[logits == -math.inf] == 0).all()
    cold = Sampler(temperature=LIMITS[0]).probabilities(logits, seen)
    assert cold.argmax() == logits.argmax() and cold.max() == 1


@pytest.mark.plain
def test_sampler_refuses_options_of_another_type():
    for name in ("temperature", "repetition_penalty"):
        for wrong in (0, -1.0, 1e-39, 1e39, math.inf, math.nan, "1", None, True):
            with pytest.raises(ValueError, match=f"Sampler: {name} must be a number in"):
                Sampler(**{name: wrong})
    for wrong in (0, 2.5, "5", True):
        with pytest.raises(ValueError, match="Sampler: top_k must be an integer at least 1"):
            Sampler(top_k=wrong)
    for name in ("top_p", "min_p"):
        for wrong in (-0.1, 1.1, math.nan, "0.5", True):
            with pytest.raises(ValueError, match=f"Sampler: {name} must be a number in"):
                Sampler(**{name: wrong})
