"""Losses equal loops and PyTorch, however the batch is cut."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from transformer_lib.batches import Batch, Blocks
from transformer_lib.losses import language_loss, token_loss, translation_loss
from transformer_lib.models import Transformer, TransformerConfig
from transformer_lib.tokenizer import BEGIN, END, PAD

N, V = 7, 11


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ids(*shape, seed=0, high=V):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def loss_slowly(logits, labels, smoothing, padding):
    total = 0.0
    for row, label in zip(logits.reshape(-1, V).tolist(), labels.flatten().tolist(), strict=True):
        if label == padding:
            continue
        log_sum = max(row) + math.log(sum(math.exp(z - max(row)) for z in row))
        for i, z in enumerate(row):
            target = smoothing / V + (1 - smoothing) * (i == label)
            total += target * (log_sum - z)
    return total


# the loss of tokens


@pytest.mark.parametrize("padding", [PAD, 5, None])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("shape", [(), (N,), (2, N), (2, 3, N)])
def test_token_loss_agrees_with_loops_over_labels_and_tokens(shape, smoothing, padding):
    logits, labels = 3 * normal(*shape, V), ids(*shape)
    loss = token_loss(logits, labels, label_smoothing=smoothing, padding=padding)
    assert loss.shape == () and loss.dtype == torch.float64
    assert loss.item() == pytest.approx(loss_slowly(logits, labels, smoothing, padding), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_token_loss_agrees_with_torch(smoothing):
    logits, labels = normal(2, N, V), ids(2, N)
    options = {"label_smoothing": smoothing, "ignore_index": PAD, "reduction": "sum"}
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), **options)
    torch.testing.assert_close(token_loss(logits, labels, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_token_loss_and_gradients_do_not_depend_on_the_chunks(dtype, smoothing):
    vocab_size = 2**17  # four rows fill a strip
    logits, labels = normal(11, vocab_size, dtype=dtype).requires_grad_(), ids(11, high=vocab_size)
    labels[[0, 5, 10]] = PAD
    wide = torch.promote_types(dtype, torch.float32)
    options = {"label_smoothing": smoothing, "ignore_index": PAD, "reduction": "sum"}
    expected = F.cross_entropy(logits.to(wide), labels, **options)
    loss = token_loss(logits, labels, label_smoothing=smoothing)
    assert loss.dtype == wide
    torch.testing.assert_close(loss, expected)
    pulls = [torch.autograd.grad(7 * each, logits)[0] for each in (loss, expected)]
    assert pulls[0].dtype == dtype
    torch.testing.assert_close(*pulls)


def test_token_loss_stores_nothing_of_the_logits_size_but_their_gradient():
    kept = []

    class Keeping(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            kept.append(out)
            return out

    logits = normal(1024, 4096, dtype=torch.float32).requires_grad_()
    with Keeping():
        loss = token_loss(logits, ids(1024, high=4096), label_smoothing=0.1)
        grad = torch.autograd.grad(loss, logits)[0]
    tensors = [x.detach() for x in kept if isinstance(x, torch.Tensor)]
    stored = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    large = [place for place, size in stored.items() if size > 4 * 2**19]
    assert {*large} == {logits.data_ptr(), grad.data_ptr()}


@pytest.mark.plain
@pytest.mark.parametrize("padding", [PAD, None])
def test_token_loss_compiles_into_one_graph(padding):
    compiled = torch.compile(token_loss, backend="eager", fullgraph=True)
    logits, labels = normal(3, N, V, dtype=torch.bfloat16).requires_grad_(), ids(3, N)
    options = {"label_smoothing": 0.1, "padding": padding}
    losses = [loss(logits, labels, **options) for loss in (compiled, token_loss)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in losses))


def test_token_loss_ignores_padding_by_default_and_none_counts_every_label():
    logits, labels = normal(3, V), torch.tensor([PAD, 4, PAD])
    torch.testing.assert_close(token_loss(logits, labels), token_loss(logits[1], labels[1]))
    every = sum(token_loss(logits[i], labels[i], padding=None) for i in range(3))
    torch.testing.assert_close(token_loss(logits, labels, padding=None), every)
    outside = torch.where(labels == PAD, -7, labels)  # padding need not be a token
    torch.testing.assert_close(token_loss(logits, outside, padding=-7), token_loss(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_token_loss_gradient_is_probabilities_minus_targets(smoothing):
    logits, labels = normal(N, V).requires_grad_(), torch.tensor([1, 2, PAD, 3, 4, PAD, 10])
    token_loss(logits, labels, label_smoothing=smoothing).backward()
    target = (1 - smoothing) * F.one_hot(labels, V) + smoothing / V
    expected = (logits.detach().softmax(-1) - target) * (labels != PAD)[:, None]
    torch.testing.assert_close(logits.grad, expected)


def test_token_loss_gradients_agree_with_finite_differences():
    logits, labels = normal(3, 5).requires_grad_(), torch.tensor([1, 0, 4])
    assert torch.autograd.gradcheck(lambda z: token_loss(z, labels, label_smoothing=0.1), logits)


@given(st.lists(st.integers(0, N), max_size=4), st.sampled_from([0.0, 0.1]))
def test_token_loss_of_parts_adds_up_to_the_whole(places, smoothing):
    logits, labels = normal(N, V), torch.tensor([3, PAD, 7, 10, PAD, PAD, 1])
    cuts = [0, *sorted(places), N]
    total = sum(
        token_loss(logits[a:b], labels[a:b], label_smoothing=smoothing)
        for a, b in zip(cuts, cuts[1:], strict=False)
    )
    torch.testing.assert_close(total, token_loss(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize("labels", [[], [PAD, PAD]])
def test_token_loss_of_padding_is_zero_with_zero_gradient(labels):
    logits = normal(len(labels), V).requires_grad_()
    loss = token_loss(logits, torch.tensor(labels, dtype=torch.long), label_smoothing=0.1)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_token_loss_of_uniform_logits_is_ln_v_for_every_smoothing(smoothing):
    loss = token_loss(torch.zeros(N, V), ids(N), label_smoothing=smoothing, padding=None)
    assert loss.item() == pytest.approx(N * math.log(V), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_token_loss_minimum_is_the_entropy_of_the_smoothed_target(smoothing):
    label = 1 - smoothing + smoothing / V
    target = torch.full((V,), smoothing / V, dtype=torch.float64)
    target[4] = label
    logits = target.log()[None].requires_grad_()
    loss = token_loss(logits, torch.tensor([4]), label_smoothing=smoothing)
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item())
    loss.backward()
    assert logits.grad.abs().max() < 1e-15
    sure = torch.zeros(1, V).index_fill(1, torch.tensor([4]), 50.0)
    assert token_loss(sure, torch.tensor([4]), label_smoothing=smoothing) > loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_token_loss_of_underflowing_probabilities_is_finite(smoothing):
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss = token_loss(logits, torch.tensor([2]), label_smoothing=smoothing)
    loss.backward()
    expected = (1 - smoothing) * 2e4 + smoothing / 3 * 3e4
    assert loss.item() == pytest.approx(expected) and logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_token_loss_sums_half_precision_logits_in_float32(dtype):
    logits, labels = normal(1000, V).to(dtype), ids(1000)
    loss = token_loss(logits, labels, label_smoothing=0.1)
    assert loss.dtype == torch.float32
    exact = token_loss(logits.double(), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    large = token_loss(torch.full((1000, V), 6e4, dtype=torch.float16), labels, padding=None)
    assert large.item() == pytest.approx(1000 * math.log(V), rel=1e-5)  # above float16's range


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_token_loss_accepts_labels_of_every_integer_type_and_leaves_inputs_unchanged(dtype):
    logits, labels = normal(N, V), ids(N).to(dtype)
    kept = logits.clone(), labels.clone()
    expected = token_loss(logits, labels.long())
    torch.testing.assert_close(token_loss(logits, labels), expected)
    assert torch.equal(logits, kept[0]) and torch.equal(labels, kept[1])


def test_token_loss_accepts_logits_that_are_not_contiguous():
    logits, labels = normal(V, N, 2).permute(2, 1, 0), ids(2, N)
    torch.testing.assert_close(token_loss(logits, labels), token_loss(logits.contiguous(), labels))


# the loss of models


def pairs(*lengths, n_source=5, seed=0, high=97):
    """A batch whose targets have so many tokens, END included."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, high, (n - 1,), generator=generator).tolist() for n in lengths]
    rows = [torch.tensor([BEGIN, *row, END]) for row in rows]
    target = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    source = torch.randint(4, high, (len(rows), n_source), generator=generator)
    return Batch(source, target, torch.arange(len(rows)) % n_source + 1)


def translator(vocab_size=97):
    torch.manual_seed(1)
    return Transformer(TransformerConfig.tiny(vocab_size=vocab_size, dropout=0.0)).double().eval()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_translation_loss_is_the_sum_over_sentences(smoothing):
    model, batch, total = translator(), pairs(2, 7, 3), 0.0
    for source, target, n in zip(batch.source, batch.target, batch.source_lengths, strict=True):
        target = target[target != PAD]
        logits = model(source[None, :n], target[None, :-1])
        options = {"label_smoothing": smoothing, "reduction": "sum"}
        total += F.cross_entropy(logits[0], target[1:], **options)
    torch.testing.assert_close(translation_loss(model, batch, smoothing), total)


def test_translation_loss_ignores_padding_on_either_side():
    model, batch = translator(), pairs(2, 7, 3)
    wider = Batch(
        F.pad(batch.source, (0, 2), value=96), F.pad(batch.target, (0, 3)), batch.source_lengths
    )
    torch.testing.assert_close(translation_loss(model, wider), translation_loss(model, batch))


def test_micro_batches_divided_by_all_tokens_give_the_gradient_of_the_batch():
    model, batch = translator(), pairs(24, 3, 5, 2)
    weights = list(model.parameters())

    def gradient(parts):
        model.zero_grad()
        for part in parts:
            (translation_loss(model, part, 0.1) / batch.n_tokens).backward()
        return torch.cat([p.grad.flatten() for p in weights])

    whole = gradient([batch])
    for n in (2, 3, 4, 5):  # the last has a part without rows
        parts = [batch.part(i, n) for i in range(n)]
        torch.testing.assert_close(gradient(parts), whole, rtol=1e-9, atol=1e-12)


def test_losses_smooth_no_label_by_default():
    model, batch = translator(), pairs(2, 7, 3)
    torch.testing.assert_close(translation_loss(model, batch), translation_loss(model, batch, 0.0))
    model = nn.Sequential(nn.Embedding(V, 5), nn.Linear(5, V))
    blocks = Blocks(ids(2, N), ids(2, N, seed=1))
    torch.testing.assert_close(language_loss(model, blocks), language_loss(model, blocks, 0.0))


def test_language_loss_counts_every_label():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(V, 5), nn.Linear(5, V)).double()
    blocks = Blocks(ids(2, N), ids(2, N, seed=1))
    assert (blocks.labels == 0).any()
    logits = model(blocks.inputs)
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(
            logits.flatten(0, 1),
            blocks.labels.flatten(),
            label_smoothing=smoothing,
            reduction="sum",
        )
        torch.testing.assert_close(language_loss(model, blocks, smoothing), expected)


def test_translation_loss_at_initialization_is_near_its_expectation():
    batch = pairs(*[3, 11, 5, 24] * 8, high=997)
    loss = translation_loss(translator(997), batch).item() / batch.n_tokens
    assert 0 < loss - math.log(997) < 1


# refusals


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: token_loss(torch.zeros(2, V), torch.tensor([1, 2]), label_smoothing=1.0),
            "token_loss: label_smoothing must be a number in [0, 1), got 1.0",
        ),
        (
            lambda: token_loss(torch.zeros(2, V), torch.tensor([1, 2]), label_smoothing=-0.1),
            "got -0.1",
        ),
        (
            lambda: token_loss(torch.zeros(2, 3, V), torch.zeros(2, 4, dtype=torch.long)),
            "token_loss: labels must have shape (...) with ... = (2, 3), got (2, 4)",
        ),
        (
            lambda: token_loss(torch.zeros(2, V), torch.zeros(2, 1).long()),
            "with ... = (2,), got (2, 1)",
        ),
        (
            lambda: token_loss(torch.zeros(3, V), torch.tensor([1, V, 2])),
            "token_loss: labels must lie in [0, 11), got 1 to 11",
        ),
        (
            lambda: token_loss(torch.zeros(2, V), torch.tensor([-1, 3])),
            "in [0, 11), got -1 to 3",
        ),
        (
            lambda: token_loss(torch.zeros(2, V), torch.tensor([-100, 3]), padding=None),
            "in [0, 11), got -100 to 3",
        ),
    ],
)
def test_losses_refuse_bad_input_with_both_values(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
