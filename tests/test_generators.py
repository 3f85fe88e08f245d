"""What every generator does, with settings in which each of them writes what greedy does."""

import copy
import functools
import math

import pytest
import torch
from test_generation import (
    KINDS,
    LENGTHS,
    POSITIONS,
    inputs,
    make,
    parting_end,
    refused,
    row_alone,
    write_slowly,
)

from transformer_lib.beam_search import beam_search
from transformer_lib.generation import greedy, stream
from transformer_lib.models import DecoderOnly, Transformer
from transformer_lib.sampling import Sampler, sample
from transformer_lib.speculative import speculative_sample

# Thousands of small calls: each module's own tests check the signatures.
pytestmark = pytest.mark.plain


def streamed(model, *inputs, **options):
    """The rows of a stream, which hands out columns."""
    steps = list(stream(model, *inputs, **options))
    return [[token for token in row if token is not None] for row in zip(*steps, strict=True)]


def sampled(model, *inputs, **options):
    return sample(model, *inputs, sampler=Sampler(top_k=1), **options)


def draft_of(model):
    """Another model of the same sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        draft = type(model)(model.config).to(model.output.weight.dtype).eval()
        with torch.no_grad():
            for parameter in draft.parameters():
                parameter.mul_(2.0)
    return draft


def speculated(model, *inputs, **options):
    sampler = Sampler(top_k=1)
    return speculative_sample(model, draft_of(model), *inputs, sampler=sampler, **options)[0]


def beamed(model, *inputs, **options):
    found = beam_search(model, *inputs, beam=1, length_penalty=0.0, **options)
    return [row[0].tokens for row in found]


NAMES = {
    greedy: "greedy", streamed: "stream", sampled: "sample",
    speculated: "speculative_sample", beamed: "beam_search",
}  # fmt: skip
GENERATORS = pytest.mark.parametrize("generate", NAMES, ids=NAMES.get)
STOPPABLE = pytest.mark.parametrize("generate", [greedy, streamed, sampled], ids=NAMES.get)


def ends_of(generate, *ends):
    """Those of the ends that a generator takes: a beam search always has one."""
    return [end for end in ends if end is not None or generate is not beamed]


# agreement


@functools.cache
def written_alone(kind, positions, n_kv_heads, seed):
    """A model, ragged inputs, and {end: what each row gets alone, without a cache}."""
    model = make(kind, seed=seed, positions=positions, n_kv_heads=n_kv_heads)
    tokens, mask = inputs(kind, seed=seed)
    rows = [row_alone(kind, row, n) for row, n in zip(tokens, LENGTHS, strict=True)]
    ends = (parting_end(model, tokens, mask), None)
    expected = {end: [write_slowly(model, row, 9, end) for row in rows] for end in ends}
    return model, tokens, mask, rows, expected


@pytest.mark.parametrize("positions", POSITIONS)
@KINDS
@pytest.mark.parametrize(
    "generate, n_kv_heads",
    [(g, n) for g in NAMES for n in (1, 2, 4) if n == 2 or g is not speculated],  # it is slow
    ids=lambda value: NAMES.get(value, value),
)
def test_generators_write_what_each_row_gets_alone_and_uncached(
    generate, kind, positions, n_kv_heads
):
    varied = 0
    for seed in range(2):
        setting = written_alone(kind, positions, n_kv_heads, seed)
        model, tokens, mask, rows, expected = setting
        for end in ends_of(generate, *expected):
            assert generate(model, tokens, mask, max_len=9, end=end) == expected[end]
            singly = [generate(model, row[None], max_len=9, end=end)[0] for row in rows]
            assert singly == expected[end]
            varied += len({len(line) for line in expected[end]}) > 1
        varied += any(len({*line}) > 2 for line in expected[None])
    assert varied >= 2  # so that it matters what is compared


@KINDS
@GENERATORS
def test_generators_do_not_read_padding(generate, kind):
    model = make(kind)
    tokens, mask = inputs(kind)
    noise = torch.where(mask[:, 0, 0], tokens, (tokens + 3) % 11)
    assert not torch.equal(noise, tokens)
    assert generate(model, noise, mask, max_len=8) == generate(model, tokens, mask, max_len=8)


@KINDS
@GENERATORS
def test_generators_take_one_mask_for_all_rows_and_none_for_all_visible(generate, kind):
    model = make(kind)
    tokens, _ = inputs(kind, [6, 6, 6])
    real = [i >= 2 if kind is DecoderOnly else i < 4 for i in range(6)]
    one, whole = torch.tensor(real).view(1, 1, 1, 6), torch.ones(3, 1, 1, 6, dtype=torch.bool)
    part = tokens[:, real]
    for end in ends_of(generate, None, parting_end(model, tokens, one)):
        lines = generate(model, tokens, one, max_len=7, end=end)
        assert lines == generate(model, part, max_len=7, end=end)
    assert len({*map(len, lines)}) > 1  # rows leave, and the mask with them
    assert generate(model, tokens, whole, max_len=7) == generate(model, tokens, max_len=7)


@KINDS
@GENERATORS
def test_generators_take_int32_tokens_and_another_end(generate, kind):
    model = make(kind, seed=4)
    tokens, mask = inputs(kind)
    rows = [row_alone(kind, row, n) for row, n in zip(tokens, LENGTHS, strict=True)]
    for end in (0, 10):
        expected = [write_slowly(model, row, 8, end) for row in rows]
        assert generate(model, tokens, mask, max_len=8, end=end) == expected
        assert generate(model, tokens.int(), mask, max_len=8, end=end) == expected


@GENERATORS
def test_generators_begin_with_begin_which_may_also_be_the_end(generate):
    model = make(Transformer, seed=1)
    tokens, mask = inputs(Transformer)
    for token in range(0, 11, 3):
        with torch.no_grad():
            logits = model(tokens, torch.full((4, 1), token), source_mask=mask)[:, 0]
        first = logits.argmax(dim=-1).tolist()
        free = greedy(model, tokens, mask, max_len=9, begin=token, end=None)
        assert [line[0] for line in free] == first
        lines = generate(model, tokens, mask, max_len=9, begin=token, end=token)
        assert lines == [line[: (*line, token).index(token)] for line in free]


@GENERATORS
def test_generators_ignore_begin_where_there_is_no_encoder(generate):
    model = make(DecoderOnly)
    tokens, mask = inputs(DecoderOnly)
    lines = [generate(model, tokens, mask, max_len=5, begin=begin) for begin in (0, 7)]
    assert lines[0] == lines[1]


@GENERATORS
def test_generators_translate_an_empty_source(generate):
    model = make(Transformer)
    tokens, mask = inputs(Transformer, [0, 3])
    for end in ends_of(generate, None, 5):
        written = generate(model, torch.zeros(2, 0, dtype=torch.int64), max_len=6, end=end)
        assert written[0] == written[1] == write_slowly(model, tokens[0, :0], 6, end)
        assert written[0] == generate(model, tokens, mask, max_len=6, end=end)[0]


@KINDS
@GENERATORS
def test_generators_return_nothing_for_an_empty_batch(generate, kind):
    model, mask = make(kind), torch.ones(0, 1, 1, 5, dtype=torch.bool)
    model.embedding.register_forward_hook(lambda *_: pytest.fail("the model was asked"))
    empty = torch.zeros(0, 5, dtype=torch.int64)
    for given_mask in (None, mask):
        assert generate(model, empty, given_mask, max_len=4) == []
    if kind is Transformer:
        assert generate(model, empty[:, :0], max_len=4) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@KINDS
@GENERATORS
def test_generators_write_in_every_precision(generate, kind, dtype):
    model = make(kind, dtype=dtype)
    tokens, mask = inputs(kind)
    for end in ends_of(generate, None, 2):
        lines = generate(model, tokens, mask, max_len=6, end=end)
        assert len(lines) == 4 and {*map(len, lines)} <= {6} | ({*range(6)} if end else set())


@KINDS
@STOPPABLE
def test_generators_stop_a_row_after_the_token_that_stop_sees_last(generate, kind):
    model = make(kind)
    tokens, mask = inputs(kind)
    stops = {
        "two alike": lambda line: len(line) - len({*line}) > 0,
        "three": lambda line: len(line) == 3,
        "at once": lambda line: True,
        "never": lambda line: False,
    }
    rows = [row_alone(kind, row, n) for row, n in zip(tokens, LENGTHS, strict=True)]
    for stop in stops.values():
        expected = [write_slowly(model, row, 9, None, stop) for row in rows]
        assert generate(model, tokens, mask, max_len=9, end=None, stop=stop) == expected


# the model stays as it was


@KINDS
@GENERATORS
def test_generators_switch_dropout_off_and_leave_every_mode_as_it_was(generate, kind):
    model = make(kind, dropout=0.5, attention_dropout=0.5)
    tokens, mask = inputs(kind)
    expected = generate(model, tokens, mask, max_len=6)
    model.train()
    model.decoder[0].eval()
    modes = [module.training for module in model.modules()]
    assert generate(model, tokens, mask, max_len=6) == expected
    assert [module.training for module in model.modules()] == modes
    model.output.register_forward_hook(lambda module, args, out: out * math.nan)
    with refused(f"{NAMES[generate]}: the model"):
        generate(model, tokens, mask, max_len=6)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
@KINDS
@GENERATORS
def test_generators_change_nothing_and_training_continues(generate, kind, positions):
    model = make(kind, positions=positions)
    tokens, mask = inputs(kind)
    kept = tokens.clone(), mask.clone(), copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        inside = generate(model, tokens, mask, max_len=6)
    assert generate(model, tokens, mask, max_len=6) == inside
    loss = model(tokens, tokens) if kind is Transformer else model(tokens)
    loss.logsumexp(-1).sum().backward()
    assert torch.equal(tokens, kept[0]) and torch.equal(mask, kept[1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[2][name])


# chance


@KINDS
@pytest.mark.parametrize("draw_with", [sample, speculative_sample])
def test_generators_that_draw_use_the_generator_they_are_given(draw_with, kind):
    model = make(kind)
    models = (model,) if draw_with is sample else (model, draft_of(model))
    tokens, mask = inputs(kind)

    def draw(sampler=None):
        return draw_with(*models, tokens, mask, max_len=9, end=None, sampler=sampler)

    def own(seed):
        return Sampler(generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    first = draw(own(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert first == draw(own(0)) != draw(own(1))
    found = []  # without one, PyTorch's decides
    for seed, sampler in ((3, None), (3, Sampler()), (4, None)):
        torch.manual_seed(seed)
        found.append(draw(sampler))
    assert found[0] == found[1] != found[2]


# what is refused


@KINDS
@GENERATORS
def test_generators_refuse_a_row_of_nan_at_a_late_step(generate, kind):
    model, calls = make(kind), []

    def spoil(module, args, out):
        calls.append(None)
        return out if len(calls) < 3 else out.index_fill(0, torch.tensor([len(out) - 1]), math.nan)

    tokens, mask = inputs(kind)
    never = next(end for end in range(11) if all(end not in line for line in greedy(
        model, tokens, mask, max_len=9, end=None)))  # fmt: skip
    model.output.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=f"^{NAMES[generate]}: the model'?s'? logits must not be"):
        generate(model, tokens, mask, max_len=9, end=never)


@GENERATORS
@pytest.mark.parametrize("positions", POSITIONS)
def test_generators_use_the_table_of_positions_to_its_end_and_no_further(positions, generate):
    bounded, name = positions in ("sinusoidal", "learned"), NAMES[generate]
    model = make(Transformer, positions=positions, max_len=7)
    tokens, mask = inputs(Transformer)

    def unending(model):
        """Let the end never come, so that every row is as long as it may be."""
        end = torch.tensor([2])
        model.output.register_forward_hook(
            lambda module, args, out: out.index_fill(-1, end, -math.inf)
        )
        return model

    unending(model)
    assert [*map(len, generate(model, tokens, mask, max_len=7))] == 4 * [7]
    if bounded:
        must = "max_len must be at most 7, the positions that the model has left, got 8"
        with refused(f"{name}: {must}"):
            generate(model, tokens, mask, max_len=8)
    model = unending(make(DecoderOnly, positions=positions, max_len=9))
    tokens, mask = inputs(DecoderOnly)
    longer = torch.cat([torch.zeros(4, 2, dtype=torch.int64), tokens], dim=1)  # more padding
    shown = torch.nn.functional.pad(mask, (2, 0))
    assert [*map(len, generate(model, tokens, max_len=3))] == 4 * [3]
    assert [*map(len, generate(model, longer, shown, max_len=3))] == 4 * [3]
    if bounded:
        must = "max_len must be at most 3, the positions that the model has left, "
        for given_tokens, given_mask in ((tokens, None), (longer, shown)):
            with refused(f"{name}: {must}got 4"):
                generate(model, given_tokens, given_mask, max_len=4)
    else:
        assert [*map(len, generate(model, tokens, max_len=20))] == 4 * [20]


@GENERATORS
@KINDS
@pytest.mark.parametrize("positions", POSITIONS)
def test_generators_refuse_a_source_longer_than_the_table_of_positions(positions, kind, generate):
    model = make(kind, positions=positions, max_len=5)
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    if positions in ("sinusoidal", "learned"):
        must = "source must have at most 5 tokens, the positions of the model, got 6"
        with refused(f"{NAMES[generate]}: {must}"):
            generate(model, tokens, max_len=1)
    else:
        generate(model, tokens, max_len=1)
    generate(model, tokens[:, 1:], max_len=1)


@GENERATORS
@KINDS
@pytest.mark.parametrize("low, high", [(0, 11), (-1, 3)])
def test_generators_refuse_tokens_outside_the_vocabulary(low, high, kind, generate):
    must = f"source must lie between 0 and 10, got {low} to {high}"
    for dtype in (torch.int64, torch.int32):
        with refused(f"{NAMES[generate]}: {must}"):
            wrong = torch.tensor([[3, low, 2], [1, high, 2]], dtype=dtype)
            generate(make(kind), wrong, max_len=4)


@GENERATORS
def test_generators_refuse_a_prompt_that_is_empty_or_ends_in_padding(generate):
    model, name = make(DecoderOnly), NAMES[generate]
    for batch in (2, 0):
        with refused(f"{name}: a prompt must have at least 1 token, got 0"):
            generate(model, torch.zeros(batch, 0, dtype=torch.int64), max_len=4)
    tokens, mask = inputs(DecoderOnly)
    must = (
        "a prompt must end in a real token, with its padding on the left, got padding in the last"
    )
    with refused(f"{name}: {must} column"):
        generate(model, tokens, mask.flip(-1), max_len=4)


@pytest.mark.parametrize("positions", ["rotary", "alibi", "relative"])
@GENERATORS
def test_generators_refuse_padding_inside_a_prompt(generate, positions):
    model = make(DecoderOnly, positions=positions)
    tokens = torch.tensor([[5, 6, 0, 0, 7, 8]])
    with pytest.raises(ValueError, match=f"with {positions} positions a prompt must have all"):
        generate(model, tokens, (tokens != 0)[:, None, None], max_len=2)


@GENERATORS
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
def test_generators_check_limits_and_tokens(generate, kind, options, message):
    for batch in (2, 0):
        source = torch.zeros(batch, 3, dtype=torch.int64)
        with refused(f"{NAMES[generate]}: {message}"):
            generate(make(kind), source, **{"max_len": 4} | options)


@pytest.mark.plain
@pytest.mark.parametrize("wrong", ["4", 2.5, None, True])
@GENERATORS
def test_generators_refuse_counts_that_are_no_integers(generate, wrong):
    with pytest.raises(ValueError, match="max_len must be an integer at least 1"):
        generate(make(DecoderOnly), torch.tensor([[5, 6]]), max_len=wrong)
    with pytest.raises(ValueError, match="end must be an integer in"):
        generate(make(DecoderOnly), torch.tensor([[5, 6]]), max_len=2, end="2")


@pytest.mark.bad_input
@GENERATORS
@pytest.mark.parametrize(
    "source, got",
    [
        (torch.tensor([1, 2]), "(2,) of torch.int64"),
        (torch.zeros(2, 3), "(2, 3) of torch.float32"),
        (torch.zeros(2, 3, dtype=torch.bool), "(2, 3) of torch.bool"),
    ],
)
def test_generators_refuse_a_source_that_is_no_batch_of_integers(generate, source, got):
    with refused(f"{NAMES[generate]}: source must be (B, S) int32 or int64, got {got}"):
        generate(make(DecoderOnly), source, max_len=4)


@pytest.mark.bad_input
@GENERATORS
@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3), (2, 1, 3, 3), (3, 1, 1, 3), (2, 1, 1, 4)])
def test_generators_refuse_a_mask_of_another_shape(generate, shape):
    source = torch.zeros(2, 3, dtype=torch.int64)
    must = (
        f"{NAMES[generate]}: source_mask must be (2, 1, 1, 3) bool, as padding_mask returns it, got"
    )
    with refused(f"{must} {shape} of torch.bool"):
        generate(make(DecoderOnly), source, torch.ones(shape, dtype=torch.bool), max_len=4)
    with refused(f"{must} (2, 1, 1, 3) of torch.float32"):
        generate(make(DecoderOnly), source, torch.ones(2, 1, 1, 3), max_len=4)


@pytest.mark.bad_input
@pytest.mark.parametrize("wrong", [[[5, 6]], (5, 6), 5])
@GENERATORS
def test_generators_refuse_ids_that_are_no_tensor(generate, wrong):
    model = make(DecoderOnly)
    with pytest.raises(ValueError, match="source must be"):
        generate(model, wrong, max_len=2)
    with pytest.raises(ValueError, match="source_mask must be a tensor, got list"):
        generate(model, torch.tensor([[5, 6]]), [[True, True]], max_len=2)
