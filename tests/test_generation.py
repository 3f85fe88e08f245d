"""Writing token by token: what an uncached loop writes, for both kinds of model and any batch."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_lib.attention import padding_mask
from transformer_lib.cost import cost, decoder_only_cost
from transformer_lib.generation import evaluation_copy, greedy, incremental_decoder, stream
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig

BEGIN, END = 1, 2
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "relative", "none")
LENGTHS = [3, 7, 5, 1]
KINDS = pytest.mark.parametrize("kind", [Transformer, DecoderOnly])


def make(kind=DecoderOnly, vocab_size=11, *, seed=0, dtype=torch.float64, **options):
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


def inputs(kind=DecoderOnly, lengths=LENGTHS, vocab_size=11, seed=0):
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


def refused(message):
    return pytest.raises(ValueError, match=re.escape(message))


# agreement


@given(
    kind=st.sampled_from([Transformer, DecoderOnly]),
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    max_len=st.integers(1, 7),
)
@settings(max_examples=20)
def test_greedy_generates_for_a_batch_what_it_generates_for_each_row(kind, seed, lengths, max_len):
    model = make(kind, seed=seed)
    tokens, mask = inputs(kind, lengths, seed=seed)
    written = greedy(model, tokens, mask, max_len=max_len)
    for row, n, line in zip(tokens, lengths, written, strict=True):
        assert line == write_slowly(model, row_alone(kind, row, n), max_len)


# streaming


@KINDS
def test_stream_yields_what_greedy_collects(kind):
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
def test_stream_computes_a_token_only_when_it_is_read(kind):
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
def test_stream_ends_with_the_row_that_stops_last(kind):
    model, (tokens, mask) = make(kind), inputs(kind)
    for stop in (lambda line: len(line) == 3, lambda line: len(line) - len({*line}) > 0):
        lines = greedy(model, tokens, mask, max_len=9, end=None, stop=stop)
        steps = list(stream(model, tokens, mask, max_len=9, end=None, stop=stop))
        assert len(steps) == max(map(len, lines))


@KINDS
def test_stream_refuses_bad_input_when_called_and_not_when_read(kind):
    with pytest.raises(ValueError, match="stream: max_len must be an integer at least 1, got 0"):
        stream(make(kind), inputs(kind)[0], max_len=0)


@KINDS
def test_pick_receives_the_logits_and_the_tokens_seen(kind):
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
def test_pick_receives_the_tokens_seen_of_the_rows_that_remain(kind):
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
def test_stream_refuses_a_pick_that_returns_no_tokens(kind, pick, message):
    tokens, mask = inputs(kind)
    message = message.format(R=4, i=torch.int64)
    with refused(f"stream: pick must return {message}"):
        next(stream(make(kind), tokens, mask, max_len=4, pick=pick))


@KINDS
def test_greedy_drops_finished_rows_from_the_batch(kind):
    model = make(kind, seed=1)
    tokens, mask = inputs(kind)
    end, sizes = parting_end(model, tokens, mask), []
    model.output.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    written = greedy(model, tokens, mask, max_len=9, end=end)
    predicted = [min(len(line) + 1, 9) for line in written]
    assert len({*predicted}) > 1
    assert sizes == [sum(n > t for n in predicted) for t in range(max(predicted))]


# the decoder


@KINDS
def test_decoder_selects_repeats_and_reorders_rows(kind):
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
def test_decoder_reorders_prefixes_of_one_source(kind):
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
def test_decoder_crop_forgets_tokens(kind):
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
def test_decoder_scores_several_tokens_like_one_at_a_time(kind):
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
def test_decoder_cache_takes_the_bytes_that_the_cost_model_counts(n_kv_heads):
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
def test_generation_leaves_the_mode_of_each_module(kind):
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
def test_greedy_never_switches_a_model_in_training_mode(kind):
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
def test_evaluation_copy_keeps_weights_hooks_and_tied_modules(kind):
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
def test_stream_leaves_gradients_enabled_between_two_tokens(kind):
    model = make(kind)
    tokens, mask = inputs(kind)
    for _ in stream(model, tokens, mask, max_len=3, end=None):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@KINDS
def test_stream_keeps_a_mode_changed_between_two_tokens(kind):
    model = make(kind, dropout=0.5)
    tokens, mask = inputs(kind)
    expected = list(stream(model, tokens, mask, max_len=6, end=None))
    steps = stream(model, tokens, mask, max_len=6, end=None)
    for n, mode in enumerate((True, False, True, True, False, False)):
        model.train(mode)
        assert next(steps) == expected[n]
        assert all(module.training == mode for module in model.modules())


# what is refused


@KINDS
def test_stream_refuses_a_row_of_nan_at_its_step(kind):
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


def test_evaluation_copy_of_a_compiled_model_is_not_compiled():
    model = make(DecoderOnly).train()
    model.output._compiled_call_impl = lambda *_: 1 / 0
    assert evaluation_copy(model).output(torch.zeros(1, 16, dtype=torch.float64)).shape == (1, 11)
