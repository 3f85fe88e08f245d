"""Writing token by token: what an uncached loop writes, for both kinds of model and any batch."""

import copy
import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_lib.attention import padding_mask
from transformer_lib.beam_search import beam_search
from transformer_lib.cost import cost, decoder_only_cost
from transformer_lib.generation import evaluation_copy, greedy, incremental_decoder, stream
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig
from transformer_lib.sampling import sample
from transformer_lib.speculative import speculative_sample

BEGIN, END = 1, 2
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "relative", "none")
LENGTHS = [3, 7, 5, 1]
KINDS = pytest.mark.parametrize("kind", [Transformer, DecoderOnly])


def make(kind, vocab_size=11, *, seed=0, dtype=torch.float64, **options):
    """A tiny random model that has something to say, and does not repeat itself at once."""
    sizes = {"d_model": 16, "n_heads": 4, "d_ff": 13, "n_encoder_layers": 1, "n_decoder_layers": 2}
    sizes |= {"max_len": 23, "norm": "pre", "tie_embeddings": False}
    torch.manual_seed(seed)
    model = kind(TransformerConfig(vocab_size=vocab_size, **sizes | options)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            small = kind is DecoderOnly and parameter.dim() == 2  # drawn from N(0, 0.02**2)
            parameter.mul_(20.0 if small else 2.0)
    return model


def inputs(kind, lengths=LENGTHS, vocab_size=11, seed=0):
    """Random rows of these lengths, padded with noise where the kind wants it, and their mask."""
    width = max(lengths)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, (len(lengths), width), generator=generator)
    mask = padding_mask(torch.tensor(lengths), width)
    return tokens, mask.flip(-1) if kind is DecoderOnly else mask


def row_alone(kind, tokens, n):
    return tokens[len(tokens) - n :] if kind is DecoderOnly else tokens[:n]


def next_of(model, source):
    """(tokens written so far) -> logits, by one pass over everything, without a cache."""

    @torch.no_grad()
    def logits(written):
        if isinstance(model, DecoderOnly):
            return model(torch.tensor([[*source.tolist(), *written]]))[0, -1]
        return model(source[None], torch.tensor([[BEGIN, *written]]))[0, -1]

    return logits


def write_slowly(model, source, max_len, end=END, stop=None):
    logits, line = next_of(model, source), []
    for _ in range(max_len):
        token = int(logits(line).argmax())
        if token == end:
            break
        line.append(token)
        if stop is not None and stop(line):
            break
    return line


def parting_end(model, tokens, mask):
    """A token that ends some rows before others, if it is the end."""
    lines = greedy(model, tokens, mask, max_len=9, end=None)
    places = {end: [(*line, end).index(end) for line in lines] for end in range(11)}
    return max(places, key=lambda end: len({*places[end]}))


# agreement


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("positions", POSITIONS)
@KINDS
def test_a_batch_writes_what_each_row_writes_alone_and_uncached(kind, positions, n_kv_heads):
    varied = 0
    for seed in range(2):
        model = make(kind, seed=seed, positions=positions, n_kv_heads=n_kv_heads)
        tokens, mask = inputs(kind, seed=seed)
        alone = [row_alone(kind, row, n) for row, n in zip(tokens, LENGTHS, strict=True)]
        whole = [write_slowly(model, row, 9, None) for row in alone]
        for end in (parting_end(model, tokens, mask), None):
            expected = [write_slowly(model, row, 9, end) for row in alone]
            assert greedy(model, tokens, mask, max_len=9, end=end) == expected
            singly = [greedy(model, row[None], max_len=9, end=end)[0] for row in alone]
            assert singly == expected
            varied += len({len(line) for line in expected}) > 1
        varied += any(len({*line}) > 2 for line in whole)
    assert varied >= 2  # so that it matters what is compared


@given(
    kind=st.sampled_from([Transformer, DecoderOnly]),
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    max_len=st.integers(1, 7),
)
@settings(max_examples=20)
def test_any_batch_writes_what_its_rows_write(kind, seed, lengths, max_len):
    model = make(kind, seed=seed)
    tokens, mask = inputs(kind, lengths, seed=seed)
    written = greedy(model, tokens, mask, max_len=max_len)
    for row, n, line in zip(tokens, lengths, written, strict=True):
        assert line == write_slowly(model, row_alone(kind, row, n), max_len)


@KINDS
def test_padding_may_hold_any_token(kind):
    model = make(kind)
    tokens, mask = inputs(kind)
    noise = torch.where(mask[:, 0, 0], tokens, (tokens + 3) % 11)
    assert not torch.equal(noise, tokens)
    assert greedy(model, noise, mask, max_len=8) == greedy(model, tokens, mask, max_len=8)


@KINDS
def test_one_mask_may_serve_all_rows_and_none_means_all_visible(kind):
    model = make(kind)
    tokens, _ = inputs(kind, [6, 6, 6])
    shown, whole = torch.tensor([2 <= i or kind is Transformer for i in range(6)]), None
    shown = shown if kind is DecoderOnly else torch.tensor([True] * 4 + [False] * 2)
    part = tokens[:, 2:] if kind is DecoderOnly else tokens[:, :4]
    one, whole = shown.view(1, 1, 1, 6), torch.ones(3, 1, 1, 6, dtype=torch.bool)
    for end in (None, parting_end(model, tokens, one)):
        lines = greedy(model, tokens, one, max_len=7, end=end)
        assert lines == greedy(model, part, max_len=7, end=end)
    assert len({*map(len, lines)}) > 1  # rows leave, and the mask with them
    assert greedy(model, tokens, whole, max_len=7) == greedy(model, tokens, max_len=7)


@KINDS
def test_int32_tokens_and_another_end(kind):
    model = make(kind, seed=4)
    tokens, mask = inputs(kind)
    for end in (0, 10):
        expected = greedy(model, tokens, mask, max_len=8, end=end)
        assert greedy(model, tokens.int(), mask, max_len=8, end=end) == expected
        alone = [row_alone(kind, row, n) for row, n in zip(tokens, LENGTHS, strict=True)]
        assert expected == [write_slowly(model, row, 8, end) for row in alone]


def test_a_translator_begins_with_begin():
    model = make(Transformer, seed=1)
    tokens, mask = inputs(Transformer)
    with torch.no_grad():
        logits = model(tokens, torch.full((4, 1), 7), source_mask=mask)[:, 0]
    first = [line[0] for line in greedy(model, tokens, mask, max_len=1, begin=7, end=None)]
    assert first == logits.argmax(dim=-1).tolist()


def test_begin_and_end_may_be_one_token():
    model = make(Transformer, seed=1)
    tokens, mask = inputs(Transformer)
    for token in range(11):
        lines = greedy(model, tokens, mask, max_len=9, begin=token, end=token)
        free = greedy(model, tokens, mask, max_len=9, begin=token, end=None)
        assert lines == [line[: (*line, token).index(token)] for line in free]


def test_an_empty_source_has_a_translation():
    model = make(Transformer)
    tokens, mask = inputs(Transformer, [0, 3])
    written = greedy(model, torch.zeros(2, 0, dtype=torch.int64), max_len=6, end=None)
    assert written[0] == written[1] == greedy(model, tokens, mask, max_len=6, end=None)[0]
    assert written[0] == write_slowly(model, tokens[0, :0], 6, None)


def test_a_writer_does_not_care_for_begin():
    model = make(DecoderOnly)
    tokens, mask = inputs(DecoderOnly)
    lines = [greedy(model, tokens, mask, max_len=5, begin=begin) for begin in (0, 7)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@KINDS
def test_every_precision_writes(kind, dtype):
    model = make(kind, dtype=dtype)
    tokens, mask = inputs(kind)
    assert all(len(line) == 6 for line in greedy(model, tokens, mask, max_len=6, end=None))


# streaming


@KINDS
def test_a_stream_hands_out_what_greedy_collects(kind):
    model = make(kind, seed=1)
    tokens, mask = inputs(kind)
    end = parting_end(model, tokens, mask)
    written = greedy(model, tokens, mask, max_len=9, end=end)
    steps = list(stream(model, tokens, mask, max_len=9, end=end))
    assert len({len(line) for line in written}) > 1
    assert len(steps) == min(9, max(len(line) + 1 for line in written))
    for n, step in enumerate(steps):
        assert step == [line[n] if n < len(line) else None for line in written]


@KINDS
def test_a_stream_thinks_of_a_token_only_when_it_is_asked_for(kind):
    model = make(kind)
    calls = []
    model.output.register_forward_hook(lambda *_: calls.append(1))
    tokens, mask = inputs(kind)
    steps = stream(model, tokens, mask, max_len=9, end=None)
    assert not calls
    for n in range(1, 4):
        next(steps)
        assert len(calls) == n


@KINDS
def test_a_stream_refuses_at_once_and_not_when_it_is_read(kind):
    with pytest.raises(ValueError, match="stream: max_len must be an integer at least 1, got 0"):
        stream(make(kind), inputs(kind)[0], max_len=0)


@KINDS
def test_a_choice_of_ones_own_sees_logits_and_what_was_seen(kind):
    model, noticed = make(kind), []
    tokens, mask = inputs(kind)

    def second_best(logits, seen):
        noticed.append((logits.clone(), seen.clone()))
        return logits.topk(2, dim=-1).indices[:, 1].int()

    steps = list(stream(model, tokens, mask, max_len=4, end=None, pick=second_best))
    alone = [row_alone(kind, row, n) for row, n in zip(tokens, LENGTHS, strict=True)]
    for n, (logits, seen) in enumerate(noticed):
        for b, source in enumerate(alone):
            line = [step[b] for step in steps[:n]]
            torch.testing.assert_close(logits[b], next_of(model, source)(line))
            read = source.tolist() if kind is DecoderOnly else []
            assert seen[b].nonzero()[:, 0].tolist() == sorted({*read, *line})
        assert [step.topk(2).indices[1] for step in logits] == steps[n]


@KINDS
def test_what_a_row_has_seen_goes_on_with_it_when_others_leave(kind):
    model, noticed = make(kind, seed=1), []
    tokens, mask = inputs(kind)
    end = parting_end(model, tokens, mask)
    written = greedy(model, tokens, mask, max_len=9, end=end)

    def pick(logits, seen):
        noticed.append(seen.clone())
        return logits.argmax(dim=-1)

    list(stream(model, tokens, mask, max_len=9, end=end, pick=pick))
    assert len({len(line) for line in written[1:]}) > 1  # a row leaves that stands before others
    for n, seen in enumerate(noticed):
        going = [b for b, line in enumerate(written) if len(line) >= n]
        assert len(seen) == len(going)
        for row, b in zip(seen, going, strict=True):
            prompt = row_alone(kind, tokens[b], LENGTHS[b]).tolist() if kind is DecoderOnly else []
            assert row.nonzero()[:, 0].tolist() == sorted({*prompt, *written[b][:n]})


@pytest.mark.parametrize(
    "pick, message",
    [
        (lambda z, seen: z.argmax(-1, keepdim=True), "({R},) int32 or int64, got ({R}, 1) of {i}"),
        (lambda z, seen: z.argmax(-1)[:1], "({R},) int32 or int64, got (1,) of {i}"),
        (lambda z, seen: z.amax(-1) * 0, "({R},) int32 or int64, got ({R},) of torch.float64"),
        (lambda z, seen: z.argmax(-1) * 0 + 11, "tokens between 0 and 10, got 11 to 11"),
        (lambda z, seen: z.argmax(-1) * 0 - 1, "tokens between 0 and 10, got -1 to -1"),
    ],
)
@KINDS
def test_what_is_no_choice_is_refused(kind, pick, message):
    tokens, mask = inputs(kind)
    message = message.format(R=4, i=torch.int64)
    with refused(f"stream: pick must return {message}"):
        next(stream(make(kind), tokens, mask, max_len=4, pick=pick))


@KINDS
def test_rows_that_have_ended_leave_the_batch(kind):
    model = make(kind, seed=1)
    tokens, mask = inputs(kind)
    end, sizes = parting_end(model, tokens, mask), []
    model.output.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    written = greedy(model, tokens, mask, max_len=9, end=end)
    predicted = [min(len(line) + 1, 9) for line in written]
    assert len({*predicted}) > 1
    assert sizes == [sum(n > t for n in predicted) for t in range(max(predicted))]


@KINDS
def test_stop_ends_a_row_after_the_token_that_it_sees_last(kind):
    model = make(kind)
    tokens, mask = inputs(kind)
    stops = {
        "two alike": lambda line: len(line) - len({*line}) > 0,
        "three": lambda line: len(line) == 3,
        "at once": lambda line: True,
        "never": lambda line: False,
    }
    alone = [row_alone(kind, row, n) for row, n in zip(tokens, LENGTHS, strict=True)]
    for stop in stops.values():
        expected = [write_slowly(model, row, 9, None, stop) for row in alone]
        assert greedy(model, tokens, mask, max_len=9, end=None, stop=stop) == expected
        steps = list(stream(model, tokens, mask, max_len=9, end=None, stop=stop))
        assert len(steps) == max(map(len, expected))


# the decoder


@KINDS
def test_rows_can_be_chosen_repeated_and_put_in_another_order(kind):
    model = make(kind, seed=2)
    tokens, mask = inputs(kind)
    for verb, rows in (("select", [3, 1, 1, 0, 2]), ("reorder", [0, 1, 2, 3]), ("select", [2])):
        rows = torch.tensor(rows)
        with torch.inference_mode():
            decoder = incremental_decoder(model, tokens, mask, max_len=9, begin=BEGIN)
            decoder.logits(decoder.last[:, None])
            decoder.logits(torch.tensor([[3, 4], [5, 6], [7, 8], [9, 10]]))
            getattr(decoder, verb)(rows)
            found = decoder.logits(torch.arange(len(rows))[:, None])[:, 0]
        for i, row in enumerate(rows.tolist()):
            source = row_alone(kind, tokens[row], LENGTHS[row])
            written = [3 + 2 * row, 4 + 2 * row, i]
            torch.testing.assert_close(found[i], next_of(model, source)(written))


@KINDS
def test_lines_of_one_source_can_change_places(kind):
    """As in a beam: two prefixes for each source, of which one takes the other's place."""
    model = make(kind, seed=2)
    tokens, mask = inputs(kind)
    pairs = torch.arange(4).repeat_interleave(2)
    with torch.inference_mode():
        decoder = incremental_decoder(model, tokens, mask, max_len=9, begin=BEGIN)
        decoder.logits(decoder.last[:, None])
        decoder.select(pairs)
        decoder.logits(torch.arange(8)[:, None])
        swapped = torch.tensor([1, 1, 3, 2, 4, 5, 6, 6])
        decoder.reorder(swapped)
        found = decoder.logits(torch.full((8, 1), 9))[:, 0]
    for i, row in enumerate(pairs.tolist()):
        source = row_alone(kind, tokens[row], LENGTHS[row])
        torch.testing.assert_close(found[i], next_of(model, source)([int(swapped[i]), 9]))


@KINDS
def test_tokens_taken_back_might_never_have_been_written(kind):
    model = make(kind, seed=2)
    tokens, mask = inputs(kind)
    with torch.inference_mode():
        decoder = incremental_decoder(model, tokens, mask, max_len=9, begin=BEGIN)
        decoder.logits(decoder.last[:, None])
        decoder.logits(torch.tensor([[3, 4, 5]] * 4))
        decoder.crop(2)
        found = decoder.logits(torch.tensor([[8]] * 4))[:, 0]
    for i, n in enumerate(LENGTHS):
        source = row_alone(kind, tokens[i], n)
        torch.testing.assert_close(found[i], next_of(model, source)([3, 8]))


@KINDS
def test_several_tokens_at_once_are_scored_like_one_after_another(kind):
    model = make(kind, seed=2)
    tokens, mask = inputs(kind)
    line = [3, 4, 5, 6]
    with torch.inference_mode():
        decoder = incremental_decoder(model, tokens, mask, max_len=9, begin=BEGIN)
        decoder.logits(decoder.last[:, None])
        found = decoder.logits(torch.tensor([line] * 4))
    for i, n in enumerate(LENGTHS):
        logits = next_of(model, row_alone(kind, tokens[i], n))
        expected = torch.stack([logits(line[: t + 1]) for t in range(4)])
        torch.testing.assert_close(found[i], expected)


@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_caches_take_the_bytes_of_the_cost_model_and_no_more(n_kv_heads):
    for kind in (Transformer, DecoderOnly):
        model = make(kind, n_kv_heads=n_kv_heads)
        tokens, mask = inputs(kind)
        with torch.inference_mode():
            decoder = incremental_decoder(model, tokens, mask, max_len=6, begin=BEGIN)
            decoder.logits(decoder.last[:, None])
        sizes = {"batch_size": 4, "bytes_per_number": 8}
        if kind is Transformer:
            expected = cost(model.config, source_len=7, target_len=6, **sizes)
            found = sum(part.n_bytes for layer in decoder.cache for part in layer)
        else:
            expected = decoder_only_cost(model.config, length=7 - 1 + 6, **sizes)
            found = sum(layer.n_bytes for layer in decoder.cache)
        assert found == expected.cache_bytes


# the model stays as it was


@KINDS
def test_each_module_has_its_mode_whenever_somebody_else_acts(kind):
    model = make(kind, dropout=0.5, attention_dropout=0.5)
    tokens, mask = inputs(kind)
    expected = greedy(model, tokens, mask, max_len=6, end=None)
    model.train()
    model.decoder[0].eval()
    modes = [module.training for module in model.modules()]
    assert greedy(model, tokens, mask, max_len=6, end=None) == expected
    steps = stream(model, tokens, mask, max_len=6, end=None)
    for n, step in enumerate(steps):
        assert step == [line[n] for line in expected]
        assert [module.training for module in model.modules()] == modes
    unfinished = stream(model, tokens, mask, max_len=6)
    next(unfinished)
    del unfinished
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@KINDS
def test_a_model_in_training_mode_is_never_switched(kind):
    """Another thread may be training it, or writing with it, at any moment."""
    model = make(kind, dropout=0.5)
    expected = greedy(model, *inputs(kind), max_len=4, end=None)
    model.train()
    switched = []
    for module in model.modules():
        module.register_forward_pre_hook(
            lambda *_: switched.append(not all(part.training for part in model.modules()))
        )
    assert greedy(model, *inputs(kind), max_len=4, end=None) == expected
    assert switched and not any(switched)


@KINDS
def test_an_evaluation_copy_shares_weights_hooks_and_shared_parts(kind):
    model = make(kind, positions="relative", dropout=0.5).train()
    ours, found = evaluation_copy(model), []
    assert type(ours) is kind and not any(part.training for part in ours.modules())
    assert len(list(ours.modules())) == len(list(model.modules()))
    mine, theirs = dict(ours.named_parameters()), dict(model.named_parameters())
    assert mine.keys() == theirs.keys() and all(mine[name] is theirs[name] for name in mine)
    model.output.register_forward_hook(lambda *_: found.append(1))
    ours.output(torch.zeros(1, 16, dtype=torch.float64))
    assert found == [1] and evaluation_copy(ours) is ours


@KINDS
def test_between_two_tokens_gradients_are_as_before(kind):
    model = make(kind)
    tokens, mask = inputs(kind)
    for _ in stream(model, tokens, mask, max_len=3, end=None):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@KINDS
def test_a_mode_changed_between_two_tokens_stays_changed(kind):
    model = make(kind, dropout=0.5)
    tokens, mask = inputs(kind)
    expected = list(stream(model, tokens, mask, max_len=6, end=None))
    steps = stream(model, tokens, mask, max_len=6, end=None)
    for n, mode in enumerate((True, False, True, True, False, False)):
        model.train(mode)
        assert next(steps) == expected[n]
        assert all(module.training == mode for module in model.modules())


@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
@KINDS
def test_writing_changes_nothing_and_training_goes_on_afterwards(kind, positions):
    model = make(kind, positions=positions)
    tokens, mask = inputs(kind)
    kept = tokens.clone(), mask.clone(), copy.deepcopy(model.state_dict())
    greedy(model, tokens, mask, max_len=6)
    loss = model(tokens, tokens) if kind is Transformer else model(tokens)
    loss.logsumexp(-1).sum().backward()
    assert torch.equal(tokens, kept[0]) and torch.equal(mask, kept[1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[2][name])


# what is refused


def refused(message):
    return pytest.raises(ValueError, match=re.escape(message))


RUNS = pytest.mark.parametrize("run", [greedy, stream])


@KINDS
def test_nothing_is_written_for_nobody(kind):
    model, mask = make(kind), torch.ones(0, 1, 1, 5, dtype=torch.bool)
    model.embedding.register_forward_hook(lambda *_: pytest.fail("the model was asked"))
    empty = torch.zeros(0, 5, dtype=torch.int64)
    for given_mask in (None, mask):
        assert greedy(model, empty, given_mask, max_len=4) == []
        assert list(stream(model, empty, given_mask, max_len=4)) == []


@KINDS
def test_a_row_of_nan_is_refused_at_any_step(kind):
    model, calls = make(kind), []

    def spoil(module, args, out):
        calls.append(None)
        return out if len(calls) < 3 else out.index_fill(0, torch.tensor([1]), math.nan)

    model.output.register_forward_hook(spoil)
    tokens, mask = inputs(kind)
    steps = stream(model, tokens, mask, max_len=6, end=None)
    next(steps), next(steps)
    with refused("stream: the model's logits must not be NaN"):
        next(steps)
    calls.clear()
    with refused("greedy: the model's logits must not be NaN"):
        greedy(model, tokens, mask, max_len=6, end=None)


@RUNS
@pytest.mark.parametrize("positions", POSITIONS)
def test_the_table_of_positions_is_used_to_its_end_and_no_further(positions, run):
    bounded = positions in ("sinusoidal", "learned")
    name = run.__name__
    translator = make(Transformer, positions=positions, max_len=7)
    tokens, mask = inputs(Transformer)
    assert len(list(run(translator, tokens, mask, max_len=7, end=None))) in (4, 7)
    if bounded:
        must = "max_len must be at most 7, the positions that the model has left, got 8"
        with refused(f"{name}: {must}"):
            run(translator, tokens, mask, max_len=8)
    writer = make(DecoderOnly, positions=positions, max_len=9)
    tokens, mask = inputs(DecoderOnly)
    longer = torch.cat([torch.zeros(4, 2, dtype=torch.int64), tokens], dim=1)  # more padding
    shown = torch.nn.functional.pad(mask, (2, 0))
    assert len(list(run(writer, tokens, max_len=3, end=None))) in (3, 4)
    assert len(list(run(writer, longer, shown, max_len=3, end=None))) in (3, 4)
    if bounded:
        must = "max_len must be at most 3, the positions that the model has left, "
        for given_tokens, given_mask in ((tokens, None), (longer, shown)):
            with refused(f"{name}: {must}got 4"):
                run(writer, given_tokens, given_mask, max_len=4)
    else:
        list(run(writer, tokens, max_len=20, end=None))


@RUNS
@KINDS
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_source_longer_than_the_table_of_positions_is_refused(positions, kind, run):
    model = make(kind, positions=positions, max_len=5)
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    if positions in ("sinusoidal", "learned"):
        must = "source must have at most 5 tokens, the positions of the model, got 6"
        with refused(f"{run.__name__}: {must}"):
            run(model, tokens, max_len=1)
    else:
        list(run(model, tokens, max_len=1))
    list(run(model, tokens[:, 1:], max_len=1))


@RUNS
@KINDS
@pytest.mark.parametrize("low, high", [(0, 11), (-1, 3)])
def test_tokens_outside_the_vocabulary_are_refused(low, high, kind, run):
    must = f"source must lie between 0 and 10, got {low} to {high}"
    for dtype in (torch.int64, torch.int32):
        with refused(f"{run.__name__}: {must}"):
            run(make(kind), torch.tensor([[3, low, 2], [1, high, 2]], dtype=dtype), max_len=4)


@RUNS
def test_a_prompt_must_hold_something_and_end_in_it(run):
    model, name = make(DecoderOnly), run.__name__
    for batch in (2, 0):
        with refused(f"{name}: a prompt must have at least 1 token, got 0"):
            run(model, torch.zeros(batch, 0, dtype=torch.int64), max_len=4)
    tokens, mask = inputs(DecoderOnly)
    must = (
        "a prompt must end in a real token, with its padding on the left, got padding in the last"
    )
    with refused(f"{name}: {must} column"):
        run(model, tokens, mask.flip(-1), max_len=4)


@RUNS
@KINDS
@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_len": 0}, "max_len must be an integer at least 1, got 0"),
        ({"begin": -1}, "begin must be an integer in [0, 10], got -1"),
        ({"begin": 11}, "begin must be an integer in [0, 10], got 11"),
        ({"end": 11}, "end must be an integer in [0, 10], got 11"),
        ({"end": -1}, "end must be an integer in [0, 10], got -1"),
    ],
)
def test_limits_and_tokens_are_checked(run, kind, options, message):
    for batch in (2, 0):
        with refused(f"{run.__name__}: {message}"):
            run(make(kind), torch.zeros(batch, 3, dtype=torch.int64), **{"max_len": 4} | options)


@pytest.mark.bad_input
@RUNS
@pytest.mark.parametrize(
    "source, got",
    [
        (torch.tensor([1, 2]), "(2,) of torch.int64"),
        (torch.zeros(2, 3), "(2, 3) of torch.float32"),
        (torch.zeros(2, 3, dtype=torch.bool), "(2, 3) of torch.bool"),
    ],
)
def test_a_source_is_a_batch_of_integers(run, source, got):
    with refused(f"{run.__name__}: source must be (B, S) int32 or int64, got {got}"):
        run(make(DecoderOnly), source, max_len=4)


@pytest.mark.bad_input
@RUNS
@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3), (2, 1, 3, 3), (3, 1, 1, 3), (2, 1, 1, 4)])
def test_a_mask_of_another_shape_is_refused(run, shape):
    source = torch.zeros(2, 3, dtype=torch.int64)
    must = (
        f"{run.__name__}: source_mask must be (2, 1, 1, 3) bool, as padding_mask returns it, got "
    )
    with refused(f"{must}{shape} of torch.bool"):
        run(make(DecoderOnly), source, torch.ones(shape, dtype=torch.bool), max_len=4)
    with refused(f"{must}(2, 1, 1, 3) of torch.float32"):
        run(make(DecoderOnly), source, torch.ones(2, 1, 1, 3), max_len=4)


@pytest.mark.bad_input
@pytest.mark.parametrize("wrong", [[[5, 6]], (5, 6), 5, torch.tensor([5, 6]), torch.ones(1, 2)])
def test_every_writer_refuses_ids_that_are_no_matrix_of_integers(wrong):
    model = make(DecoderOnly)
    for write in (greedy, stream, sample, beam_search, partial(speculative_sample, model)):
        with pytest.raises(ValueError, match="source must be"):
            write(model, wrong, max_len=2)
    with pytest.raises(ValueError, match="source_mask must be a tensor, got list"):
        greedy(model, torch.tensor([[5, 6]]), [[True, True]], max_len=2)


@pytest.mark.parametrize("positions", ["rotary", "alibi", "relative"])
def test_every_writer_refuses_padding_inside_a_prompt(positions):
    model = make(DecoderOnly, positions=positions)
    tokens = torch.tensor([[5, 6, 0, 0, 7, 8]])
    for write in (greedy, stream, sample, beam_search, partial(speculative_sample, model)):
        with pytest.raises(ValueError, match=f"with {positions} positions a prompt must have all"):
            write(model, tokens, (tokens != 0)[:, None, None], max_len=2)


@pytest.mark.plain
@pytest.mark.parametrize("wrong", ["4", 2.5, None, True])
def test_every_writer_refuses_counts_that_are_no_integers(wrong):
    model, tokens = make(DecoderOnly), torch.tensor([[5, 6]])
    for write in (greedy, stream, sample, beam_search, partial(speculative_sample, model)):
        with pytest.raises(ValueError, match="max_len must be an integer at least 1"):
            write(model, tokens, max_len=wrong)
    with pytest.raises(ValueError, match="beam must be an integer at least 1"):
        beam_search(model, tokens, max_len=2, beam=wrong)
    with pytest.raises(ValueError, match="n_draft_tokens must be an integer at least 1"):
        speculative_sample(model, model, tokens, max_len=2, n_draft_tokens=wrong)
    with pytest.raises(ValueError, match="end must be an integer in"):
        greedy(model, tokens, max_len=2, end="2")


def test_beam_search_refuses_a_length_penalty_that_overflows():
    with pytest.raises(ValueError, match=r"max_len\*\*length_penalty must be at most 1e304"):
        beam_search(make(DecoderOnly), torch.tensor([[5, 6]]), max_len=9, length_penalty=1e4)


@pytest.mark.plain
@pytest.mark.parametrize("wrong", [{"patience": "2"}, {"length_penalty": None}])
def test_beam_search_refuses_options_that_are_no_numbers(wrong):
    with pytest.raises(ValueError, match="must be a number"):
        beam_search(make(DecoderOnly), torch.tensor([[5, 6]]), max_len=2, **wrong)


def test_an_evaluation_copy_of_a_compiled_model_is_not_compiled():
    model = make(DecoderOnly).train()
    model.output._compiled_call_impl = lambda *_: 1 / 0
    assert evaluation_copy(model).output(torch.zeros(1, 16, dtype=torch.float64)).shape == (1, 11)
