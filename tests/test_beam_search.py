"""Decoding: what the slow searches find, for any batch; nothing lost, and bad input refused."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import BEGIN, END, POSITIONS, refused

import transformer_lib.beam_search as beam_module
from transformer_lib.attention import padding_mask
from transformer_lib.beam_search import Hypothesis, beam_search
from transformer_lib.cache import KVCache
from transformer_lib.cpu import pack_for_decoding
from transformer_lib.generation import greedy
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig


def make(vocab_size=7, *, seed=0, peaked=2.5, dtype=torch.float64, **options):
    """A tiny random model, its embeddings scaled so that it has something to say."""
    sizes = {"d_model": 8, "n_heads": 2, "d_ff": 11, "n_encoder_layers": 1, "n_decoder_layers": 2}
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size=vocab_size, **sizes | {"max_len": 13} | options)
    model = Transformer(config).to(dtype).eval()
    with torch.no_grad():
        model.output.weight.mul_(peaked)
    return model


def sources(model, lengths, seed=0):
    """Random sources of these lengths, padded with noise, and their mask."""
    size, width = (len(lengths), max(lengths, default=0)), model.config.vocab_size
    tokens = torch.randint(0, width, size, generator=torch.Generator().manual_seed(seed))
    return tokens, padding_mask(torch.tensor(lengths, dtype=torch.int64), size[1])


def bias(model, token, amount):
    """Add an amount to one logit of every prediction."""
    index = torch.tensor([token])

    def add(module, args, out):
        return out.index_add(-1, index, out.new_full((*out.shape[:-1], 1), amount))

    return model.output.register_forward_hook(add)


def rows_decoded(model, run):
    """The number of rows at each step of the decoder."""
    steps = []
    hook = model.output.register_forward_hook(lambda module, args, out: steps.append(len(out)))
    run()
    hook.remove()
    return steps


# oracles: one sentence, no cache, no padding, no early stop


def next_of(model, source, begin=BEGIN):
    with torch.no_grad():
        memory = model.encode(source[None])

    @functools.cache
    @torch.no_grad()
    def next_log_p(prefix):
        logits = model.decode(torch.tensor([[begin, *prefix]]), memory)[0, -1]
        return logits.to(torch.float64).log_softmax(dim=-1).tolist()

    return lambda prefix: next_log_p(tuple(prefix))


def beam_slowly(next_log_p, end, beam, length_penalty, max_len, enough=math.inf):
    live, found = [([], 0.0)], []
    for n in range(1, max_len + 1):
        grown = [([*x, i], p + q) for x, p in live for i, q in enumerate(next_log_p(x))]
        grown = sorted((one for one in grown if one[1] > -math.inf), key=lambda one: -one[1])
        found += [(x[:-1], p, p / n**length_penalty) for x, p in grown[:beam] if x[-1] == end]
        live = [(x, p) for x, p in grown if x[-1] != end][:beam]
        if len(found) >= enough:
            live = []
    found = sorted(found, key=lambda one: -one[2])
    found = [(*one, True) for one in found]
    found += [(x, p, p / max_len**length_penalty, False) for x, p in live]
    return found[:beam]


def check_found(found, expected, **tolerances):
    assert [one.tokens for one in found] == [line for line, *_ in expected]
    assert [one.finished for one in found] == [whole for *_, whole in expected]
    for i, name in enumerate(("log_probability", "score"), 1):
        values = [torch.tensor([getattr(one, name) for one in found], dtype=torch.float64)]
        values.append(torch.tensor([one[i] for one in expected], dtype=torch.float64))
        torch.testing.assert_close(*values, **tolerances)


# agreement


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_beam_search_agrees_with_loops_for_all_positions_and_shared_keys(positions, n_kv_heads):
    model = make(seed=3, positions=positions, n_kv_heads=n_kv_heads)
    source, mask = sources(model, [4, 2])
    options = {"beam": 3, "length_penalty": 0.5, "max_len": 6}
    found = beam_search(model, source, mask, **options)
    for tokens, row, n in zip(source, found, (4, 2), strict=True):
        check_found(row, beam_slowly(next_of(model, tokens[:n]), END, **options))


@pytest.mark.parametrize("seed", [0, 5, 6, 10, 13, 14, 15, 16])  # where it matters what is third
@pytest.mark.parametrize("amount, peaked", [(1.0, 1.0), (2.5, 2.5)])
def test_beam_search_loses_no_prefix_to_an_end_among_the_best(amount, peaked, seed):
    model = make(9, seed=seed, peaked=peaked)
    bias(model, END, amount)
    source, _ = sources(model, [4], seed)
    options = {"beam": 2, "length_penalty": 1.0, "max_len": 5}
    (found,) = beam_search(model, source, **options)
    check_found(found, beam_slowly(next_of(model, source[0]), END, **options))


def test_log_probability_is_that_of_the_whole_line_and_its_end():
    model, max_len = make(11, seed=5), 6
    hook = bias(model, END, 2.5)
    source, mask = sources(model, [5, 3, 4])
    found = beam_search(model, source, mask, beam=4, length_penalty=0.7, max_len=max_len)
    assert {one.finished for row in found for one in row} == {True, False}
    for b, row in enumerate(found):
        for one in row:
            steps = [*one.tokens, END] if one.finished else one.tokens
            logits = model(source[[b]], torch.tensor([[BEGIN, *steps[:-1]]]), source_mask=mask[[b]])
            p = logits.log_softmax(-1)[0, range(len(steps)), steps].sum().item()
            assert one.log_probability == pytest.approx(p, abs=1e-10)
            assert one.score == pytest.approx(p / len(steps) ** 0.7, abs=1e-10)
    hook.remove()


# batches


def test_beam_search_does_not_depend_on_batch_or_padding():
    model = make(9, seed=1)
    source, mask = sources(model, [5, 1, 0, 4, 2])
    options = {"beam": 3, "max_len": 7}
    found = beam_search(model, source, mask, **options)
    noise = torch.where(mask[:, 0, 0], source, (source + 3) % 9)
    assert not torch.equal(noise, source)
    check_alike(beam_search(model, noise, mask, **options), found)
    for b, n in enumerate([5, 1, 0, 4, 2]):
        check_alike(beam_search(model, source[[b], :n], **options), [found[b]])


def check_alike(one, other):
    for row, again in zip(one, other, strict=True):
        check_found(row, [(x.tokens, x.log_probability, x.score, x.finished) for x in again])


def test_beam_search_takes_one_mask_for_all_rows_and_none_for_all_visible():
    model = make(seed=2)
    source, _ = sources(model, [4, 4, 4])
    hidden = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    short, whole = source[:, :3], torch.ones(3, 1, 1, 4, dtype=torch.bool)
    found = beam_search(model, source, max_len=5)
    check_alike(beam_search(model, source, whole, max_len=5), found)
    apart = beam_search(model, short, max_len=5)
    check_alike(beam_search(model, source, hidden, max_len=5), apart)
    assert found[0][0].log_probability != pytest.approx(apart[0][0].log_probability)


def test_beam_search_returns_nothing_for_an_empty_batch_and_translates_an_empty_source():
    model = make()
    for empty in ((0, 5), (0, 0)):
        source = torch.zeros(empty, dtype=torch.int64)
        assert beam_search(model, source, max_len=4) == []
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    first = beam_search(model, nothing, beam=2, max_len=4)[0]
    check_found(first, beam_slowly(next_of(model, nothing[0]), END, 2, 1.0, 4))


def test_beam_search_allows_more_beams_than_extensions():
    for vocab_size in (3, 4):
        model = make(vocab_size)
        source, _ = sources(model, [2, 2])
        for row, tokens in zip(beam_search(model, source, beam=50, max_len=3), source, strict=True):
            check_found(row, beam_slowly(next_of(model, tokens), END, 50, 1.0, 3))
    model = make(1)
    source = torch.zeros(2, 3, dtype=torch.int64)
    (one,), _ = beam_search(model, source, beam=3, max_len=2, begin=0, end=0)
    assert one == Hypothesis(tokens=[], log_probability=0.0, score=0.0, finished=True)


# what is done, and when it stops


def test_beam_search_drops_finished_sources_when_they_are_a_quarter_of_the_batch():
    model = make(30, seed=0, peaked=3.0)
    source, mask = sources(model, [5, 3, 4, 2, 5, 1, 4, 3], seed=6)
    steps = []

    def rise(module, args, out):  # the end grows more probable with every step
        steps.append(len(out))
        amount = out.new_full((*out.shape[:-1], 1), 1.5 * len(steps) - 4)
        return out.index_add(-1, torch.tensor([END]), amount)

    model.output.register_forward_hook(rise)
    options, alone = {"beam": 3, "length_penalty": 0.0, "max_len": 12}, []
    for b in range(8):
        steps.clear()
        beam_search(model, source[[b]], mask[[b]], **options)
        alone.append([*steps])
    assert len({len(one) for one in alone}) > 2
    steps.clear()
    beam_search(model, source, mask, **options)
    wanted, rows = [], 8
    for n in range(max(map(len, alone))):
        searched = sum(len(one) > n for one in alone)
        rows = searched if searched <= rows * 3 / 4 else rows
        wanted.append(rows * (3 if n else 1))
    assert steps == wanted and len({*wanted}) > 3


@pytest.mark.parametrize("n_kv_heads", [None, 1])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("beam", [2, 5])
def test_beam_search_finds_the_same_with_shared_keys_and_with_copies(
    positions, n_kv_heads, beam, monkeypatch
):
    model = make(seed=4, positions=positions, d_model=16, n_heads=4, n_kv_heads=n_kv_heads)
    source, mask = sources(model, [4, 2, 0, 5, 3], seed=7)
    options = {"beam": beam, "max_len": 9, "length_penalty": 0.6}
    found = []
    for search in (model, pack_for_decoding(model.float()), model.double()):
        monkeypatch.setattr("transformer_lib.beam_search._WIDE", 1 if found else 16)
        monkeypatch.setattr("transformer_lib.beam_search._STEPS", beam)  # and few of the 9
        found.append(beam_search(search, source, mask, **options))
        monkeypatch.undo()
    for shared, packed, copied in zip(*found, strict=True):
        for one, other, third in zip(shared, packed, copied, strict=True):
            assert one.tokens == other.tokens == third.tokens
            assert one.log_probability == pytest.approx(third.log_probability, abs=1e-12)
            assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)


def test_beam_search_stores_the_memory_once_for_each_source_and_moves_no_key(monkeypatch):
    model = make(9, seed=2)
    hook = bias(model, END, -math.inf)  # no source ever finishes
    source, mask = sources(model, [5, 3, 4], seed=1)
    monkeypatch.setattr(KVCache, "select", lambda *_: pytest.fail("keys were moved"))
    decoders, decode = [], beam_module._Tree
    monkeypatch.setattr(beam_module, "_Tree", lambda *a: decoders.append(decode(*a)) or decoders[0])
    beam_search(model, source, mask, beam=4, max_len=6)
    (decoder,) = decoders
    assert len(decoder.memory) == 3
    for layer in decoder.cache:
        assert len(layer.cross_attention.stored()[0]) == 3
        assert layer.self_attention.tree.stored()[0].shape[::2] == (3, 1 + 4 * 5)
        assert layer.length == 6
    hook.remove()


def test_beam_search_keeps_only_keys_that_a_prefix_continues(monkeypatch):
    model, max_len, beam = make(9, seed=2), 13, 3
    hook = bias(model, END, -math.inf)
    source, mask = sources(model, [5, 3, 4], seed=1)
    decoders, make_tree, seen = [], beam_module._Tree, []
    monkeypatch.setattr(
        beam_module, "_Tree", lambda *a: decoders.append(make_tree(*a)) or decoders[0]
    )
    prune = beam_module._TreeCache.prune

    def watched(tree, places):
        before = [x.clone() for x in tree.tree.stored()]
        prune(tree, places)
        for old, new in zip(before, tree.tree.stored(), strict=True):
            for b, kept in enumerate(places):
                assert torch.equal(new[b], old[b][:, kept])
        seen.append(places.shape[1])

    monkeypatch.setattr(beam_module._TreeCache, "prune", watched)
    monkeypatch.setattr(beam_module, "_STEPS", 2)
    beam_search(model, source, mask, beam=beam, max_len=max_len)
    (decoder,) = decoders
    n_layers = len(decoder.cache)
    assert len(seen) == n_layers * ((max_len - 2) // beam_module._STEPS)
    visible = decoder.visible.any(dim=1).sum(dim=1).max()
    assert max_len <= visible <= decoder.visible.shape[2] <= max(seen) + beam * beam_module._STEPS
    assert max(seen) < 1 + beam * (max_len - 2)  # some of the tree was dropped
    hook.remove()


def test_beam_search_stops_a_row_at_the_first_step_after_which_nothing_can_change():
    model = make(9, seed=8)
    hook, max_len = bias(model, END, 2.0), 12
    for length_penalty, beam in itertools.product((0.0, 0.5, 1.0), (1, 2, 4)):
        source, _ = sources(model, [4], seed=beam)
        options = {"beam": beam, "length_penalty": length_penalty, "max_len": max_len}
        steps = rows_decoded(model, lambda: beam_search(model, source, **options))  # noqa: B023
        live, found, wanted = [([], 0.0)], [], max_len
        next_log_p = next_of(model, source[0])
        for n in range(1, max_len + 1):
            grown = [([*x, i], p + q) for x, p in live for i, q in enumerate(next_log_p(x))]
            grown.sort(key=lambda one: -one[1])
            found += [p / n**length_penalty for x, p in grown[:beam] if x[-1] == END]
            found = sorted(found, reverse=True)[:beam]
            live = [one for one in grown if one[0][-1] != END][:beam]
            if len(found) == beam and live[0][1] / max_len**length_penalty <= found[-1]:
                wanted = n
                break
        assert len(steps) == wanted
        assert steps[0] == 1 and set(steps[1:]) <= {beam}
    hook.remove()


def test_beam_search_keeps_and_marks_unfinished_hypotheses():
    model = make(seed=1)
    source, _ = sources(model, [4, 4])
    bias(model, END, -math.inf)
    for max_len in (1, 5):
        found = beam_search(model, source, beam=3, length_penalty=0.5, max_len=max_len)
        for row in found:
            assert len(row) == 3
            for one in row:
                assert not one.finished and len(one.tokens) == max_len and END not in one.tokens
                assert one.score == pytest.approx(one.log_probability / max_len**0.5)
            assert row == sorted(row, key=lambda one: -one.score)


def test_beam_search_sorts_unfinished_hypotheses_last():
    model = make(9, seed=8)
    bias(model, END, -1.0)
    rows = []
    for seed in range(6):
        source, _ = sources(model, [4], seed)
        rows += beam_search(model, source, beam=6, length_penalty=0.0, max_len=4)
    mixed = [row for row in rows if len({one.finished for one in row}) == 2]
    assert mixed
    for row in mixed:
        flags = [one.finished for one in row]
        assert flags == sorted(flags, reverse=True)
    assert any(
        row[-1].score > row[0].score or row[0].score < max(x.score for x in row) for row in mixed
    )


def test_beam_search_never_generates_impossible_tokens():
    model = make(6, seed=1)
    for token in (0, 1, 3):
        bias(model, token, -math.inf)
    source, _ = sources(model, [3, 3])
    for row, tokens in zip(beam_search(model, source, beam=40, max_len=3), source, strict=True):
        check_found(row, beam_slowly(next_of(model, tokens), END, 40, 1.0, 3))
        assert len(row) == 15  # 1 + 2 + 4 ends, 8 prefixes of three tokens: 4 and 5 are left
        assert all(math.isfinite(one.score) for one in row)


def test_beam_search_stops_when_no_prefix_is_possible():
    model = make(6)
    for token in (0, 1, 3, 4, 5):
        bias(model, token, -math.inf)
    source, _ = sources(model, [3, 3])
    steps = rows_decoded(model, lambda: beam_search(model, source, beam=4, max_len=9))
    assert steps == [2]
    for row in beam_search(model, source, beam=4, max_len=9):
        assert row == [Hypothesis(tokens=[], log_probability=0.0, score=0.0, finished=True)]


# the model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_beam_search_sums_half_precision_in_float32(dtype):
    model = make(40, seed=3, dtype=dtype)
    source, mask = sources(model, [5, 3])
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[END] = -math.inf
    model.output.register_forward_hook(lambda module, args, out: logits.expand_as(out))
    best = logits.float().log_softmax(dim=-1).max()
    for row in beam_search(model, source, mask, beam=2, length_penalty=0.0, max_len=13):
        assert row[0].tokens == [int(logits.argmax())] * 13
        assert row[0].log_probability == pytest.approx(13 * best.item(), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_beam_search_gives_finite_scores_in_half_precision(dtype):
    model = make(40, seed=3, dtype=dtype)
    source, mask = sources(model, [5, 0])
    for row in beam_search(model, source, mask, beam=2, max_len=8):
        assert all(math.isfinite(one.score) for one in row) and row[0].score >= row[1].score


def test_beam_search_does_not_overflow_for_large_float16_logits():
    model = make(seed=1, dtype=torch.float16)
    model.output.register_forward_hook(lambda module, args, out: out.clamp(-1, 1) * 60_000)
    source, _ = sources(model, [4])
    for one in beam_search(model, source, beam=2, max_len=5)[0]:
        assert math.isfinite(one.log_probability)


def test_hypotheses_are_frozen_and_compare_by_value():
    one = Hypothesis(tokens=[3], log_probability=-1.0, score=-0.5, finished=True)
    assert one == Hypothesis(tokens=[3], log_probability=-1.0, score=-0.5, finished=True)
    with pytest.raises(AttributeError):
        one.score = 0.0


# refusals


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beam": 0}, "beam must be an integer at least 1, got 0"),
        (
            {"length_penalty": -0.1},
            "length_penalty must be a number at least 0, got -0.1",
        ),
        (
            {"length_penalty": math.inf},
            "length_penalty must be a number at least 0, got inf",
        ),
        (
            {"length_penalty": math.nan},
            "length_penalty must be a number at least 0, got nan",
        ),
        ({"patience": 0.0}, "patience must be a number in (0, inf], got 0.0"),
        ({"patience": math.nan}, "patience must be a number in (0, inf], got nan"),
    ],
)
def test_beam_search_refuses_options_out_of_range(options, message):
    for batch in (2, 0):
        source = torch.zeros(batch, 3, dtype=torch.int64)
        with refused(f"beam_search: {message}"):
            beam_search(make(), source, max_len=4, **options)


def test_beam_search_refuses_a_length_penalty_that_overflows():
    with refused("max_len**length_penalty must be at most 1e304"):
        beam_search(make(), torch.tensor([[5, 6]]), max_len=9, length_penalty=1e4)


@pytest.mark.plain
@pytest.mark.parametrize(
    "options, message",
    [
        ({"patience": "2"}, "patience must be a number"),
        ({"length_penalty": None}, "length_penalty must be a number"),
        *[({"beam": x}, "beam must be an integer at least 1") for x in ("4", 2.5, None, True)],
    ],
)
def test_beam_search_refuses_options_that_are_no_numbers(options, message):
    with refused(message):
        beam_search(make(), torch.tensor([[5, 6]]), max_len=2, **options)


# any model, any batch


SEARCHES = {
    "vocab_size": st.integers(3, 9),
    "seed": st.integers(0, 10_000),
    "lengths": st.lists(st.integers(0, 4), min_size=1, max_size=3),
    "max_len": st.integers(1, 6),
    "peaked": st.floats(0.5, 4.0),
}


@given(**SEARCHES, beam=st.integers(1, 6), length_penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0]))
@settings(max_examples=25)
def test_beam_search_agrees_with_loops_without_cache_or_early_stop(
    vocab_size, seed, lengths, max_len, peaked, beam, length_penalty
):
    model = make(vocab_size, seed=seed, peaked=peaked)
    source, mask = sources(model, lengths, seed)
    options = {"beam": beam, "length_penalty": length_penalty, "max_len": max_len}
    found = beam_search(model, source, mask, **options)
    for tokens, row, n in zip(source, found, lengths, strict=True):
        check_found(row, beam_slowly(next_of(model, tokens[:n]), END, **options))


@given(**SEARCHES, beam=st.integers(1, 5), patience=st.sampled_from([0.5, 1.0, 2.4]))
@settings(max_examples=15)
def test_patience_stops_when_enough_have_finished(
    vocab_size, seed, lengths, max_len, peaked, beam, patience
):
    model = make(vocab_size, seed=seed, peaked=peaked)
    hook = bias(model, END, 2.0)
    source, mask = sources(model, lengths, seed)
    options = {"beam": beam, "length_penalty": 1.0, "max_len": max_len}
    found = beam_search(model, source, mask, patience=patience, **options)
    for tokens, row, n in zip(source, found, lengths, strict=True):
        slow = beam_slowly(next_of(model, tokens[:n]), END, enough=patience * beam, **options)
        check_found(row, slow)
    hook.remove()


@given(seed=st.integers(0, 10_000), vocab_size=st.integers(3, 5), max_len=st.integers(1, 3))
@settings(max_examples=12)
def test_beam_search_is_exhaustive_when_as_wide_as_all_prefixes(seed, vocab_size, max_len):
    model = make(vocab_size, seed=seed)
    source, _ = sources(model, [3], seed)
    next_log_p, others = next_of(model, source[0]), [i for i in range(vocab_size) if i != END]
    every = []
    for n in range(max_len + 1):
        for line in itertools.product(others, repeat=n):
            ends = n < max_len
            steps = [*line, END] if ends else line
            p = sum(next_log_p([*line[:t]])[token] for t, token in enumerate(steps))
            every.append(([*line], p, p / len(steps) ** 0.7, ends))
    every.sort(key=lambda one: (not one[3], -one[2]))
    beam = vocab_size**max_len
    (found,) = beam_search(model, source, beam=beam, length_penalty=0.7, max_len=max_len)
    check_found(found, every[:beam])
    assert len(every) <= beam and sum(math.exp(one[1]) for one in every) == pytest.approx(1)


@given(**SEARCHES, alpha=st.floats(0, 2))
@settings(max_examples=15)
def test_beam_of_one_is_greedy_without_length_penalty_or_patience(
    vocab_size, seed, lengths, max_len, peaked, alpha
):
    model = make(vocab_size, seed=seed, peaked=peaked)
    source, mask = sources(model, lengths, seed)
    written = greedy(model, source, mask, max_len=max_len)
    for options in ({"length_penalty": 0.0}, {"length_penalty": alpha, "patience": 1.0}):
        found = beam_search(model, source, mask, beam=1, max_len=max_len, **options)
        assert [row[0].tokens for row in found] == written
        assert [row[0].finished for row in found] == [len(line) < max_len for line in written]


# without an encoder


def writer(vocab_size=5, *, seed=0, **options):
    torch.manual_seed(seed)
    config = make(vocab_size, **options).config
    model = DecoderOnly(config).double().eval()
    with torch.no_grad():
        model.output.weight.mul_(2.5)
    return model


def next_after(model, prompt):
    @torch.no_grad()
    def next_log_p(written):
        logits = model(torch.tensor([[*prompt, *written]]))[0, -1]
        return logits.log_softmax(dim=-1).tolist()

    return next_log_p


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_beam_search_continues_each_of_several_prompts_as_if_alone(positions, n_kv_heads):
    model, lengths = writer(seed=3, positions=positions, n_kv_heads=n_kv_heads), [4, 1, 2]
    tokens, mask = sources(model, lengths)
    mask = mask.flip(-1)
    options = {"beam": 3, "length_penalty": 0.5, "max_len": 6}
    found = beam_search(model, tokens, mask, **options)
    for row, n, hypotheses in zip(tokens, lengths, found, strict=True):
        expected = beam_slowly(next_after(model, row[4 - n :].tolist()), END, **options)
        check_found(hypotheses, expected)


def test_beam_search_is_exhaustive_when_as_wide_as_all_continuations():
    for seed in range(4):
        model, max_len = writer(4, seed=seed), 3
        tokens, _ = sources(model, [3], seed)
        next_log_p, others, every = next_after(model, tokens[0].tolist()), (0, 1, 3), []
        for n in range(max_len + 1):
            for line in itertools.product(others, repeat=n):
                steps = [*line, END] if n < max_len else line
                p = sum(next_log_p([*line[:t]])[token] for t, token in enumerate(steps))
                every.append(([*line], p, p / len(steps) ** 0.7, n < max_len))
        every.sort(key=lambda one: (not one[3], -one[2]))
        options = {"beam": 4**max_len, "length_penalty": 0.7, "max_len": max_len}
        (found,) = beam_search(model, tokens, **options)
        check_found(found, every[: 4**max_len])


@given(seed=st.integers(0, 10_000), max_len=st.integers(1, 6), alpha=st.floats(0, 2))
@settings(max_examples=10)
def test_beam_of_one_continues_a_prompt_greedily(seed, max_len, alpha):
    model = writer(7, seed=seed)
    tokens, mask = sources(model, [3, 1, 4], seed)
    mask = mask.flip(-1)
    written = greedy(model, tokens, mask, max_len=max_len)
    for options in ({"length_penalty": 0.0}, {"length_penalty": alpha, "patience": 1.0}):
        found = beam_search(model, tokens, mask, beam=1, max_len=max_len, **options)
        assert [row[0].tokens for row in found] == written
