"""Corruption for pre-training: what is hidden, how often, and that a run can be resumed."""

import re

import numpy as np
import pytest
import torch

from transformer_lib.batches import IGNORED
from transformer_lib.corruption import MaskedBatches, corrupt_spans, mask_tokens
from transformer_lib.tokenizer import BEGIN, END, PAD

# --- masked tokens -----------------------------------------------------------------------------


def test_mask_tokens_chooses_and_changes_as_often_as_the_paper_says():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 1000, (500, 200), generator=generator)
    real = torch.rand(500, 200, generator=generator) < 0.9
    kept = tokens.clone(), real.clone()
    inputs, labels = mask_tokens(
        tokens, real, mask_token=1000, vocab_size=1000, generator=generator
    )
    chosen = labels != IGNORED
    assert not (chosen & ~real).any()
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    masked, same = inputs[chosen] == 1000, inputs[chosen] == tokens[chosen]
    n = int(chosen.sum())  # about 13,500: five standard deviations are 0.6, 1.7 and 1.3 points
    assert abs(n / int(real.sum()) - 0.15) < 0.006
    assert abs(float(masked.double().mean()) - 0.8) < 0.018
    assert abs(float(same.double().mean()) - 0.1 - 0.0001) < 0.014
    changed = inputs[chosen][~masked & ~same]
    assert changed.max() < 1000 and len(changed.unique()) > 600
    assert torch.equal(tokens, kept[0]) and torch.equal(real, kept[1])


def test_mask_tokens_is_decided_by_its_generator():
    tokens, real = torch.randint(4, 50, (7, 11)), torch.ones(7, 11, dtype=torch.bool)
    options = {"mask_token": 50, "vocab_size": 50, "rate": 0.5}
    draws = [
        mask_tokens(tokens, real, generator=torch.Generator().manual_seed(seed), **options)[0]
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    with pytest.raises(ValueError, match=r"rate must be a number in \[0, 1\), got 1.5"):
        mask_tokens(tokens, real, **options | {"rate": 1.5})


ROWS = [[BEGIN, *range(5, 5 + n), END] for n in (3, 7, 5, 2, 11, 6, 4)]


def test_masked_batches_mask_anew_each_epoch_and_can_be_resumed():
    options = {"batch_size": 3, "mask_token": 30, "vocab_size": 30, "rate": 0.5, "seed": 2}
    data = MaskedBatches(ROWS, **options)
    series = data.endless()
    first = [next(series) for _ in range(4)]
    state = data.state_dict()
    later = [next(series) for _ in range(3)]
    other = MaskedBatches(ROWS, **options)
    other.load_state_dict(state)
    for batch, again in zip(later, other.endless(), strict=False):
        assert torch.equal(batch.inputs, again.inputs) and torch.equal(batch.labels, again.labels)
    rows = {}
    for batch in [*first, *later][:6]:  # two epochs
        whole = batch.inputs.where(batch.labels == IGNORED, batch.labels)
        assert torch.equal(batch.mask, whole != PAD)
        assert not (batch.labels[(whole < 4)] != IGNORED).any()
        for row, n, shown in zip(whole, batch.mask.sum(dim=1), batch.inputs, strict=True):
            rows.setdefault(tuple(row[:n].tolist()), []).append(tuple(shown[:n].tolist()))
    assert sorted(rows) == sorted(map(tuple, ROWS))
    assert all(len(shown) == 2 for shown in rows.values())
    assert any(a != b for a, b in rows.values())
    alike = MaskedBatches([[BEGIN, *range(4, 24), END]] * 6, **options)
    first, second = list(alike)
    assert not torch.equal(first.labels, second.labels)  # a mask of its own for each batch
    assert data.trial_batch().inputs.shape == (3, 13)
    assert data.fingerprint() == other.fingerprint()
    assert data.fingerprint() != MaskedBatches(ROWS, **options | {"rate": 0.4}).fingerprint()
    assert data.fingerprint() != MaskedBatches(ROWS[:6], **options).fingerprint()


# --- hidden spans ------------------------------------------------------------------------------


def restored(source, target, first):
    """Put what the target says into the source."""
    spans, said = {}, []
    for token in target:
        if token > first - 90:
            said = spans[token] = []
        else:
            said.append(token)
    return [t for token in source for t in (spans.get(token, [token]))]


def runs_of(tokens, first):
    return [token for token in tokens if token > first - 90]


@pytest.mark.parametrize("n", [2, 3, 7, 40, 101])
@pytest.mark.parametrize("rate, mean_length", [(0.15, 3.0), (0.5, 1.0), (0.9, 2.0), (0.01, 5.0)])
def test_corrupt_spans_hides_spans_that_the_target_gives_back(n, rate, mean_length):
    generator, first = np.random.default_rng(n), 999
    for _ in range(20):
        tokens = generator.integers(0, 900, size=n).tolist()
        kept = list(tokens)
        options = {"rate": rate, "mean_length": mean_length, "generator": generator}
        source, target = corrupt_spans(tokens, first_sentinel=first, **options)
        assert tokens == kept and restored(source, target, first) == tokens
        n_hidden = min(max(round(rate * n), 1), n - 1)
        n_spans = min(max(round(n_hidden / mean_length), 1), n - n_hidden + 1)
        order = list(range(first, first - n_spans, -1))
        assert runs_of(source, first) == order
        assert runs_of(target, first) == [*order, first - n_spans] and target[-1] == first - n_spans
        assert len(source) == n - n_hidden + n_spans and len(target) == n_hidden + n_spans + 1
        at = [i for i, token in enumerate(source) if token in order]
        assert all(b - a > 1 for a, b in zip(at, at[1:], strict=False))
        assert all(token not in order for token in target[1::1][:1])


def test_corrupt_spans_places_and_cuts_spans_evenly():
    """Six tokens, three hidden in two spans: 6 places times 2 cuts, each with probability 1/12."""
    generator, counts = np.random.default_rng(0), {}
    for _ in range(6000):
        source, _ = corrupt_spans(
            range(6), first_sentinel=99, rate=0.5, mean_length=1.5, generator=generator
        )
        key = tuple(source)
        counts[key] = counts.get(key, 0) + 1
    lengths = {}
    for _ in range(3000):
        _, target = corrupt_spans(
            range(6), first_sentinel=99, rate=0.5, mean_length=1.5, generator=generator
        )
        key = target.index(98)
        lengths[key] = lengths.get(key, 0) + 1
    assert sorted(lengths) == [2, 3] and abs(lengths[2] - 1500) < 200  # false alarm below 1e-12
    assert sum(counts.values()) == 6000 and len(counts) == 12
    assert all(abs(count - 500) < 150 for count in counts.values())  # 7 standard deviations


def test_corrupt_spans_agrees_with_the_example_of_the_paper_in_form():
    words = "Thank you for inviting me to your party last week .".split()
    source, target = corrupt_spans(
        range(11), first_sentinel=999, rate=3 / 11, mean_length=1.5,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    assert len(words) == 11 and runs_of(source, 999) == [999, 998] and target[0] == 999
    assert runs_of(target, 999) == [999, 998, 997]


def test_corrupt_spans_refuses_what_it_cannot_hide():
    options = {"first_sentinel": 99, "generator": np.random.default_rng(0)}
    with pytest.raises(ValueError, match="tokens must number at least 2, got 1"):
        corrupt_spans([5], **options)
    with pytest.raises(ValueError, match="must lie below 98, the last of 2 sentinels, got 98"):
        corrupt_spans([5, 98], **options)
    with pytest.raises(ValueError, match=re.escape("rate must be a number in (0, 1), got 1.0")):
        corrupt_spans([5, 6], rate=1.0, **options)
    with pytest.raises(ValueError, match="mean_length must be a number at least 1, got 0.5"):
        corrupt_spans([5, 6], mean_length=0.5, **options)


@pytest.mark.bad_input
def test_mask_tokens_refuses_what_it_cannot_mask():
    tokens, real = torch.tensor([[5, 6]]), torch.tensor([[True, False]])
    options = {"mask_token": 9, "vocab_size": 9}
    for wrong, told in (
        ({"tokens": tokens.float()}, "tokens must .*, got .*float32"),
        ({"real": real[:, :1]}, r"real must have shape \(B, S\) with S = 2, got \(1, 1\)"),
        ({"mask_token": -1}, "mask_token must be an integer at least 0, got -1"),
        ({"rate": 1.5}, "rate must be .*, got 1.5"),
    ):
        arguments = {"tokens": tokens, "real": real} | options | wrong
        with pytest.raises((TypeError, ValueError), match=told):
            mask_tokens(arguments.pop("tokens"), arguments.pop("real"), **arguments)
