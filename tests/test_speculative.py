"""Speculative decoding: greedy decoding's tokens, and the target model's distribution."""

import math
from collections import Counter

import pytest
import torch
from test_generation import KINDS, inputs, make, refused
from test_sampling import WARM, as_expected, odds

from transformer_lib.generation import greedy
from transformer_lib.models import DecoderOnly, Transformer
from transformer_lib.sampling import Sampler, sample
from transformer_lib.speculative import _accept, speculative_sample


@pytest.mark.plain  # thousands of calls, four times as fast without checks of signatures
@pytest.mark.parametrize("n_draft_tokens", [1, 2, 3, 4, 5])
@KINDS
def test_speculative_sample_with_a_greedy_target_generates_what_greedy_does(kind, n_draft_tokens):
    schemes = ("sinusoidal", "learned", "rotary", "alibi", "relative", "none")
    for seed, positions in enumerate(schemes):
        model, draft = make(kind, seed=seed, positions=positions), make(kind, seed=seed + 9)
        tokens, mask = inputs(kind, seed=seed)
        options = {"n_draft_tokens": n_draft_tokens, "sampler": Sampler(top_k=1)}
        for max_len, end in ((seed % 3 + 1, None), (9, None), (9, 5)):
            found, rate = speculative_sample(
                model, draft, tokens, mask, max_len=max_len, end=end, **options
            )
            assert found == greedy(model, tokens, mask, max_len=max_len, end=end)
            assert 0 <= rate <= 1


@KINDS
def test_speculative_sample_with_a_greedy_target_applies_the_penalty(kind):
    model, draft = make(kind), make(kind, seed=1)
    tokens, mask = inputs(kind)
    options = {"max_len": 9, "end": None, "sampler": Sampler(top_k=1, repetition_penalty=1.7)}
    found, _ = speculative_sample(model, draft, tokens, mask, **options)
    assert found == sample(model, tokens, mask, **options)
    assert found != greedy(model, tokens, mask, max_len=9, end=None)


@pytest.mark.plain  # hundreds of small calls
@pytest.mark.parametrize("max_len", range(1, 8))
def test_speculative_sample_never_exceeds_max_len(max_len):
    model, draft = make(), make(seed=1)
    tokens, mask = inputs()
    options = {"max_len": max_len, "n_draft_tokens": 5, "sampler": Sampler(temperature=2.0)}
    lines, _ = speculative_sample(model, draft, tokens, mask, end=None, **options)
    assert [len(line) for line in lines] == 4 * [max_len]
    lines, _ = speculative_sample(
        model, draft, tokens.repeat(5, 1), mask.repeat(5, 1, 1, 1), **options
    )
    assert all(len(line) <= max_len and 2 not in line for line in lines)


def test_speculative_sample_accepts_no_token_of_an_empty_batch():
    model, (tokens, _) = make(), inputs()
    assert speculative_sample(model, model, tokens[:0], max_len=6) == ([], 0.0)


@pytest.mark.plain
@pytest.mark.parametrize("wrong", ["4", 2.5, None, True])
def test_speculative_sample_refuses_draft_counts_that_are_no_integers(wrong):
    model, (tokens, _) = make(), inputs()
    with refused("n_draft_tokens must be an integer at least 1"):
        speculative_sample(model, model, tokens, max_len=2, n_draft_tokens=wrong)


@KINDS
def test_speculative_sample_accepts_every_token_of_the_target_itself(kind):
    model = make(kind)
    tokens, mask = inputs(kind)
    passes = []
    model.output.register_forward_hook(lambda module, args, out: passes.append(out.shape[1]))
    sampler = Sampler(generator=torch.Generator().manual_seed(0), repetition_penalty=1.2)
    options = {"max_len": 12, "end": None, "n_draft_tokens": 3, "sampler": sampler}
    lines, rate = speculative_sample(model, model, tokens[:1], mask[:1], **options)
    assert rate == 1.0 and len(lines[0]) == 12
    # three rounds of 3 + 1 tokens; each is 3 draft passes and 1 that scores them
    assert len(passes) == 3 * (3 + 1)
    assert [n for n in passes if n > 2] == [4, 4, 4]


def test_speculative_sample_rejects_every_token_of_a_disjoint_draft():
    model, draft = make(vocab_size=5), make(vocab_size=5, seed=1)
    impossible = torch.tensor([0, 1])
    model.output.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, impossible, -math.inf)
    )
    only = torch.tensor([2, 3, 4])
    draft.output.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, only, -math.inf)
    )
    tokens = torch.tensor([[2, 3]])
    lines, rate = speculative_sample(model, draft, tokens, max_len=8, end=None)
    assert rate == 0.0 and len(lines[0]) == 8 and {*lines[0]} <= {2, 3, 4}


def test_accept_resamples_even_if_rounding_left_no_residual():
    target = torch.tensor([[0.5, 0.0], [0.0, 0.5]])  # with q = (0.5, 0.5), p - q is nowhere above 0
    assert _accept(target, [torch.tensor([0.5, 0.5])], [1], None) == [0]


@pytest.mark.plain
@pytest.mark.parametrize(
    "kind, n_draft_tokens, options, end",
    [
        (DecoderOnly, 1, {}, None),
        (DecoderOnly, 3, {"temperature": 2.0}, None),
        (DecoderOnly, 2, WARM, None),
        (DecoderOnly, 3, {"top_p": 0.97, "temperature": 2.0}, None),
        (DecoderOnly, 2, WARM, 1),
        (Transformer, 2, WARM, None),
    ],
)
def test_speculative_sample_keeps_the_target_distribution(kind, n_draft_tokens, options, end):
    """Texts of three tokens out of three, 1,000 draws; false alarm 1e-6 in each of 6 cases."""
    shallow = {"vocab_size": 3, "n_decoder_layers": 1}
    model, draft = (make(kind, seed=seed, **shallow) for seed in (0, 1))
    drawing = Sampler(**options, generator=torch.Generator().manual_seed(5))
    rest = {"max_len": 3, "end": end, "n_draft_tokens": n_draft_tokens, "sampler": drawing}
    lines, rate = speculative_sample(model, draft, torch.tensor([[0, 2]]).expand(1000, -1), **rest)
    assert 0.05 < rate < 0.95  # so that tokens are accepted and rejected
    counts = Counter(map(tuple, lines))
    assert as_expected(counts, odds(kind, model, Sampler(**options), 3, end))
    assert not as_expected(counts, odds(kind, draft, Sampler(**options), 3, end))


def test_speculative_sample_stops_a_row_that_has_ended():
    model = make()
    tokens, mask = inputs(lengths=(5,))
    options = {"max_len": 12, "sampler": Sampler(top_k=1), "n_draft_tokens": 3}
    line = speculative_sample(model, model, tokens, mask, end=None, **options)[0][0]
    passes = []
    model.output.register_forward_hook(lambda module, args, out: passes.append(out.shape[1]))
    assert speculative_sample(model, model, tokens, mask, end=line[0], **options)[0] == [[]]
    assert (
        len(passes) == 3 + 1
    )  # the first round: three draft tokens, and the pass that scores them


def test_draft_model_in_training_mode_proposes_without_dropout():
    model, draft = make(dropout=0.5), make(dropout=0.5).train()
    tokens, mask = inputs(lengths=(5,))
    options = {"max_len": 12, "end": None, "sampler": Sampler(top_k=1)}
    assert speculative_sample(model, draft, tokens, mask, **options)[1] == 1.0


def test_speculative_sample_leaves_the_modes_of_both_models():
    model, draft = make(dropout=0.5).train(), make(seed=1, dropout=0.5).train()
    draft.decoder[0].eval()
    modes = [[m.training for m in one.modules()] for one in (model, draft)]
    tokens, mask = inputs()
    options = {"max_len": 6, "end": None, "sampler": Sampler(top_k=1)}
    found, _ = speculative_sample(model, draft, tokens, mask, **options)
    assert found == greedy(model, tokens, mask, max_len=6, end=None)
    assert [[m.training for m in one.modules()] for one in (model, draft)] == modes
    assert not torch.is_inference_mode_enabled()
    draft.output.register_forward_hook(lambda module, args, out: out * math.nan)
    with pytest.raises(ValueError, match="NaN"):
        speculative_sample(model, draft, tokens, mask, **options)
    assert [[m.training for m in one.modules()] for one in (model, draft)] == modes
    assert not torch.is_inference_mode_enabled()


# what is refused


def test_speculative_sample_refuses_bad_input_in_its_own_name():
    model, tokens = make(), inputs()[0]
    with refused("speculative_sample: n_draft_tokens must be an integer at least 1, got 0"):
        speculative_sample(model, model, tokens, max_len=4, n_draft_tokens=0)
    must = "speculative_sample: model and draft must have the same vocabulary, got 11 and 7 tokens"
    with refused(must):
        speculative_sample(model, make(vocab_size=7), tokens, max_len=4)
    with refused(
        "speculative_sample: model and draft must be of one kind, got DecoderOnly and Transf"
    ):
        speculative_sample(model, make(Transformer), tokens, max_len=4)
    small = make(max_len=9)
    must = "max_len must be at most 3, the positions that the model has left, got 4"
    with refused(f"speculative_sample: {must}"):
        speculative_sample(model, small, tokens, max_len=4)


@pytest.mark.parametrize("spoilt", [0, 1])
def test_speculative_sample_refuses_nan_of_either_model(spoilt):
    models, tokens = [make(), make(seed=1)], inputs()[0]
    models[spoilt].output.register_forward_hook(lambda module, args, out: out * math.nan)
    with refused("speculative_sample: the models' logits must not be NaN"):
        speculative_sample(*models, tokens, max_len=4, end=None)
