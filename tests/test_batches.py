"""Batches hold every pair or block once, in a known order that can be resumed."""

import json
import os
import subprocess
import sys
from itertools import chain, islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformer_lib.attention import padding_mask
from transformer_lib.batches import (
    Batch,
    BlockBatches,
    Blocks,
    LabeledBatch,
    LabeledBatches,
    PairBatches,
    ResumableBatches,
)
from transformer_lib.tokenizer import BEGIN, END, PAD, UNKNOWN

# Batch


def ids(length, start=4):
    return list(range(start, start + length))


def pairs(n, seed=0, longest=23):
    """n pairs whose first ids tell them apart."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, longest, (n, 2)).tolist()
    sources = [[10 + i, *ids(s)] for i, (s, _) in enumerate(sizes)]
    targets = [[10 + i, *ids(t)] for i, (_, t) in enumerate(sizes)]
    return sources, targets


@pytest.fixture
def batch():
    sources, targets = [ids(2), ids(5), ids(3), []], [ids(3), ids(1), ids(4), []]
    made = PairBatches(sources, targets, max_tokens=1000, shuffle=False)
    return next(iter(made))


def test_batch_holds_special_tokens_and_padding_where_they_belong(batch):
    assert batch.source.tolist() == [
        [2, 0, 0, 0, 0, 0],
        [4, 5, 2, 0, 0, 0],
        [4, 5, 6, 7, 8, 2],
        [4, 5, 6, 2, 0, 0],
    ]
    assert batch.target.tolist() == [
        [1, 2, 0, 0, 0, 0],
        [1, 4, 5, 6, 2, 0],
        [1, 4, 2, 0, 0, 0],
        [1, 4, 5, 6, 7, 2],
    ]
    assert batch.source_lengths.tolist() == [1, 3, 6, 4]
    assert batch.source.dtype == batch.target.dtype == batch.source_lengths.dtype == torch.long


def test_inputs_and_labels_are_the_target_shifted_by_one(batch):
    assert torch.equal(batch.inputs[:, 1:], batch.labels[:, :-1])
    assert batch.inputs[:, 0].eq(BEGIN).all() and batch.inputs.shape == batch.labels.shape == (4, 5)
    assert batch.labels[3].tolist() == [4, 5, 6, 7, 2]


def test_tokens_are_counted_in_the_labels(batch):
    assert batch.n_tokens == 1 + 4 + 2 + 5 and type(batch.n_tokens) is int


def test_source_mask_is_the_padding_mask(batch):
    torch.testing.assert_close(batch.source_mask, padding_mask(batch.source_lengths, 6))
    assert batch.source_mask.dtype == torch.bool and batch.source_mask.shape == (4, 1, 1, 6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_parts_share_out_the_rows_and_lose_none(n):
    made = next(iter(PairBatches(*pairs(13), max_tokens=1000, seed=2)))
    parts = [made.part(i, n) for i in range(n)]
    assert sum(p.n_tokens for p in parts) == made.n_tokens
    for i, part in enumerate(parts):
        rows = range(i, len(made.source), n)
        assert part.source_lengths.tolist() == [int(made.source_lengths[r]) for r in rows]
        for row, r in zip(range(len(rows)), rows, strict=True):
            for side in ("source", "target"):
                short, long = getattr(part, side)[row], getattr(made, side)[r]
                assert torch.equal(short, long[: len(short)]) and not long[len(short) :].any()
        assert len(rows) == 0 or part.source.shape[1] == max(part.source_lengths)
        assert len(rows) == 0 or (part.target != PAD).any(0).all()


def test_part_without_rows_has_valid_shapes(batch):
    empty = batch.part(5, 6)
    assert empty.source.shape == (0, 1) and empty.target.shape == (0, 2)
    assert empty.inputs.shape == empty.labels.shape == (0, 1) and empty.n_tokens == 0
    assert empty.source_mask.shape == (0, 1, 1, 1) and empty.source_lengths.shape == (0,)
    assert empty.part(0, 2).source.shape == (0, 1) and empty.to("cpu").n_tokens == 0


def test_batch_moves_with_its_count(batch):
    moved = batch.to("meta")  # has no numbers: what was counted must have come along
    assert moved.source.is_meta and moved.target.is_meta and moved.source_lengths.is_meta
    assert moved.n_tokens == batch.n_tokens and moved.source_mask.is_meta
    assert torch.equal(batch.to("cpu").target, batch.target)


def test_parts_are_refused_with_the_numbers(batch):
    blocks = Blocks(torch.zeros(2, 3).long(), torch.zeros(2, 3).long())
    for part, name in ((batch.part, "Batch.part"), (blocks.part, "Blocks.part")):
        for i, n in ((2, 2), (-1, 2), (0, 0)):
            with pytest.raises(ValueError, match=f"{name}: i must .* got {i} and {n}"):
                part(i, n)


def test_reprs_show_sizes_not_numbers(batch):
    assert repr(batch) == "Batch(source=(4, 6), target=(4, 6), n_tokens=12)"
    blocks = next(iter(BlockBatches(ids(5000), block=64, batch_size=32)))
    assert repr(blocks) == "Blocks((32, 64), n_tokens=2,048)"


# Both kinds of batches


def made(kind, seed=1):
    if kind == "pairs":
        return PairBatches(*pairs(60), max_tokens=80, seed=seed)
    return BlockBatches(list(range(500)), block=7, batch_size=5, seed=seed)


def content(batch):
    sides = (
        (batch.source, batch.target) if isinstance(batch, Batch) else (batch.inputs, batch.labels)
    )
    return [side.tolist() for side in sides]


KINDS = pytest.mark.parametrize("kind", ["pairs", "blocks"])


@KINDS
def test_epoch_is_the_same_whichever_came_before(kind):
    fresh, used = made(kind), made(kind)
    for _ in range(2):
        list(used)
    fresh.load_state_dict({"epoch": 2, "next": 0})
    assert [content(batch) for batch in fresh] == [content(batch) for batch in used]


@KINDS
def test_seeds_below_zero_are_refused(kind):
    name = type(made(kind)).__name__
    with pytest.raises(ValueError, match=f"{name}: seed must not be negative, got -1"):
        made(kind, seed=-1)


@KINDS
def test_batch_is_a_copy_that_may_be_written_to(kind):
    batches = made(kind)
    expected = content(next(iter(made(kind))))
    place = batches.state_dict()
    first = next(iter(batches))
    for side in ("source", "target") if kind == "pairs" else ("inputs", "labels"):
        getattr(first, side).fill_(77)
    batches.load_state_dict(place)
    assert content(next(iter(batches))) == expected


@KINDS
def test_parts_share_out_the_rows_of_either_kind(kind):
    batch = next(iter(made(kind)))
    parts = [batch.part(i, 3) for i in range(3)]
    assert sum(part.n_tokens for part in parts) == batch.n_tokens
    first = "source" if kind == "pairs" else "inputs"
    assert sum(len(getattr(part, first)) for part in parts) == len(getattr(batch, first))


# PairBatches


def which(batch):
    """The numbers of the pairs in a batch, told by their first ids."""
    return (batch.source[:, 0] - 10).tolist()


@given(
    n=st.integers(1, 60), max_tokens=st.integers(26, 300), seed=st.integers(0, 9),
    epoch=st.integers(0, 3), shuffle=st.booleans(),
)  # fmt: skip
def test_epoch_holds_every_pair_once_within_the_budget(n, max_tokens, seed, epoch, shuffle):
    sources, targets = pairs(n, seed)
    batches = PairBatches(sources, targets, max_tokens=max_tokens, seed=seed, shuffle=shuffle)
    batches.load_state_dict({"epoch": epoch, "next": 0})
    size, seen = len(batches), []
    for batch in batches:
        assert len(batch.source) * max(batch.source.shape[1], batch.target.shape[1]) <= max_tokens
        for i, source, target in zip(which(batch), batch.source, batch.target, strict=True):
            assert source[source != PAD].tolist() == [*sources[i], END]
            assert target[target != PAD].tolist() == [BEGIN, *targets[i], END]
        seen.append(which(batch))
    assert len(seen) == size and sorted(chain(*seen)) == list(range(n))
    assert seen == [order.tolist() for order in batches.order(epoch)]
    assert batches.state_dict() == {"epoch": epoch + 1, "next": 0}


def longest_of(sources, targets):
    return [max(len(s) + 1, len(t) + 2) for s, t in zip(sources, targets, strict=True)]


def test_batches_are_cut_where_the_next_pair_would_exceed_the_budget():
    sources, targets = pairs(200)
    longest = longest_of(sources, targets)
    expected, order = [[]], sorted(range(200), key=longest.__getitem__)
    for i in order:
        if (len(expected[-1]) + 1) * max(longest[j] for j in [*expected[-1], i]) > 97:
            expected.append([])
        expected[-1].append(i)
    made = PairBatches(sources, targets, max_tokens=97, shuffle=False)
    assert [order.tolist() for order in made.order(0)] == expected
    assert [order.tolist() for order in made.order(5)] == expected


def test_pairs_of_a_batch_are_of_similar_length_and_equals_are_shuffled():
    sources, targets = pairs(500)
    longest = longest_of(sources, targets)
    batches = PairBatches(sources, targets, max_tokens=120, seed=3)
    spans = [(min(longest[i] for i in b), max(longest[i] for i in b)) for b in batches.order(0)]
    by_length = sorted(spans)
    assert all(a[1] <= b[0] for a, b in pairwise(by_length))  # no two batches overlap
    assert spans != by_length and spans != by_length[::-1]
    together = [{frozenset(b.tolist()) for b in batches.order(e)} for e in (0, 1)]
    assert len(together[0] & together[1]) < len(together[0]) / 2


def positions(batch):
    return batch.source.numel() + batch.target.numel()


@given(
    n=st.integers(1, 60), max_tokens=st.integers(26, 300), seed=st.integers(0, 9),
    shuffle=st.booleans(),
)  # fmt: skip
def test_trial_batch_is_as_demanding_as_any_batch_of_any_epoch(n, max_tokens, seed, shuffle):
    sources, targets = pairs(n, seed)
    batches = PairBatches(sources, targets, max_tokens=max_tokens, seed=seed, shuffle=shuffle)
    trial = batches.trial_batch()
    n_rows, width = len(trial.source), trial.source.shape[1] + trial.target.shape[1]
    assert trial.source.shape[1] == max(map(len, sources)) + 1
    assert trial.target.shape[1] == max(map(len, targets)) + 2
    assert trial.source.max() == max(chain([END], *sources))
    assert trial.target.max() == max(chain([END], *targets))
    for epoch in range(4):
        batches.load_state_dict({"epoch": epoch, "next": 0})
        assert all(positions(batch) <= positions(trial) for batch in batches)
    longest = longest_of(sources, targets)
    allowed = max(2 * len(item) * max(longest[i] for i in item) for item in batches.order(0))
    assert (n_rows - 1) * width < allowed <= 2 * max_tokens


def test_trial_batch_has_valid_rows_and_leaves_the_place():
    sources, targets = pairs(60)
    batches = PairBatches(sources, targets, max_tokens=97, seed=3)
    before = batches.state_dict()
    trial = batches.trial_batch()
    assert batches.state_dict() == before
    assert trial.source[:, -1].eq(END).all() and trial.target[:, -1].eq(END).all()
    assert trial.target[:, 0].eq(BEGIN).all() and trial.source_mask.all()
    assert trial.n_tokens == trial.labels.numel() and not (trial.labels == PAD).any()


def test_trial_batch_of_many_short_pairs_is_not_the_small_batch_of_the_longest():
    sources, targets = [ids(1)] * 200 + [ids(20)], [ids(1)] * 200 + [ids(20)]
    batches = PairBatches(sources, targets, max_tokens=60, shuffle=False)
    largest = max(batches, key=positions)
    assert largest.source.shape == (20, 2) and largest.target.shape == (20, 3)
    trial = batches.trial_batch()
    assert trial.source.shape == (3, 21) and trial.target.shape == (3, 22)  # 129 for 100


def test_trial_batch_of_empty_pairs_holds_only_special_tokens():
    trial = PairBatches([[]] * 3, [[]] * 3, max_tokens=4).trial_batch()
    assert trial.source.tolist() == [[END]] * 2 and trial.target.tolist() == [[BEGIN, END]] * 2


@KINDS
def test_order_depends_on_seed_and_epoch_and_on_nothing_else(kind):
    def order(seed, epoch):
        return [batch.tolist() for batch in made(kind, seed).order(epoch)]

    expected = order(1, 2)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert order(1, 2) == expected
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert len({json.dumps(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.slow
def test_order_is_the_same_in_every_process():
    code = """from transformer_lib.batches import BlockBatches, PairBatches
pairs = PairBatches([[i % 7 + 4] * (i % 11) for i in range(99)], [[5]] * 99, max_tokens=40, seed=3)
blocks = BlockBatches(list(range(999)), block=7, batch_size=3, seed=3)
print([o.tolist() for b in (pairs, blocks) for o in b.order(4)])"""
    seen = set()
    for hash_seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = [sys.executable, "-c", code]
        seen.add(subprocess.run(run, capture_output=True, text=True, check=True, env=env).stdout)
    assert len(seen) == 1 and len(seen.pop()) > 500


@KINDS
@pytest.mark.parametrize("n_before", [0, 1, 7, "epoch - 1", "epoch", "epoch + 3"])
def test_state_dict_resumes_with_the_very_next_batch(kind, n_before):
    first = made(kind)
    n_before = eval(n_before, {"epoch": len(first)}) if isinstance(n_before, str) else n_before
    for _ in islice(first.endless(), n_before):
        pass
    state = json.loads(json.dumps(first.state_dict()))
    assert all(type(value) is int for value in state.values())
    expected = [content(batch) for batch in islice(first.endless(), 40)]
    torch.rand(3)
    second = made(kind)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert [content(batch) for batch in islice(second.endless(), 40)] == expected
    assert second.state_dict() == first.state_dict()


@KINDS
def test_state_dict_is_the_next_batch_not_yet_returned(kind):
    batches = made(kind)
    size = len(batches)
    assert batches.state_dict() == {"epoch": 0, "next": 0}
    for i, _ in enumerate(batches):
        done = i + 1 == size
        assert batches.state_dict() == (
            {"epoch": 1, "next": 0} if done else {"epoch": 0, "next": i + 1}
        )
    assert batches.state_dict() == {"epoch": 1, "next": 0}


@KINDS
def test_loop_gives_the_rest_of_the_epoch_and_the_next_loop_the_next(kind):
    batches, whole = made(kind), made(kind)
    first, second = [content(b) for b in whole], [content(b) for b in whole]
    head = [content(b) for b in islice(batches, 3)]
    assert head + [content(b) for b in batches] == first != second
    assert [content(b) for b in batches] == second


@KINDS
def test_endless_goes_through_the_epochs(kind):
    batches, stream = made(kind), made(kind).endless()
    for _ in range(3):
        assert [content(b) for b in batches] == [
            content(next(stream)) for _ in range(len_of(batches))
        ]


def len_of(batches):
    return len(batches.order(batches.state_dict()["epoch"] - 1))


@KINDS
def test_length_is_that_of_the_current_epoch(kind):
    batches = made(kind)
    for epoch in range(4):
        assert len(batches) == len(batches.order(epoch)) == len(list(batches))


@KINDS
@pytest.mark.parametrize(
    "state",
    [
        {"epoch": -1, "next": 0},
        {"epoch": 0, "next": -1},
        {"epoch": 0, "next": 99},
        {"epoch": 0},
        {},
    ],
)
def test_load_state_dict_refuses_the_state_of_something_else(kind, state):
    batches = made(kind)
    next(iter(batches))
    name = type(batches).__name__
    with pytest.raises(ValueError, match=f"{name}.load_state_dict: needs epoch >= 0 and next from"):
        batches.load_state_dict(state)
    assert batches.state_dict() == {"epoch": 0, "next": 1}


def test_load_state_dict_takes_the_last_place_of_an_epoch_and_not_the_one_after():
    batches = made("pairs")
    batches.load_state_dict({"epoch": 0, "next": len(batches) - 1})
    with pytest.raises(ValueError, match=rf"from 0 to {len(batches) - 1}, got .*{len(batches)}"):
        batches.load_state_dict({"epoch": 0, "next": len(batches)})


def test_bad_pairs_are_refused_with_index_and_numbers():
    with pytest.raises(ValueError, match="must pair up, got 2 and 1"):
        PairBatches([[4], [4]], [[4]], max_tokens=9)
    with pytest.raises(ValueError, match="must pair up, got 0 and 0"):
        PairBatches([], [], max_tokens=9)
    with pytest.raises(
        ValueError, match="max_tokens = 9, specials counted, got 10 and 3 at index 1"
    ):
        PairBatches([[4], ids(9)], [[4], [4]], max_tokens=9)
    with pytest.raises(
        ValueError, match="max_tokens = 9, specials counted, got 2 and 10 at index 0"
    ):
        PairBatches([[4], ids(9)], [ids(8), [4]], max_tokens=9)
    for special in (PAD, BEGIN, END, -1):
        with pytest.raises(ValueError, match=f"ids must be at least 3, got {special} at index 1"):
            PairBatches([[4], [5, special]], [[4], [4]], max_tokens=9)
        with pytest.raises(ValueError, match=f"ids must be at least 3, got {special} at index 0"):
            PairBatches([[4], [5]], [[special], [4]], max_tokens=9)
    with pytest.raises(ValueError, match="PairBatches: seed must not be negative, got -1"):
        PairBatches([[4]], [[4]], max_tokens=9, seed=-1)
    assert len(PairBatches([ids(8)], [ids(7)], max_tokens=9)) == 1  # exactly fits
    assert len(PairBatches([[UNKNOWN]], [[UNKNOWN]], max_tokens=9)) == 1


def test_pair_batches_leave_the_given_rows_unchanged():
    sources, targets = pairs(20)
    copies = json.dumps([sources, targets])
    list(PairBatches(sources, targets, max_tokens=60))
    assert json.dumps([sources, targets]) == copies


def test_order_of_many_pairs_takes_well_under_a_second():
    # Measured: 0.03 s for 29,000 pairs on a busy core. CPU time of this thread, best of three.
    from time import thread_time

    sizes = np.random.default_rng(0).integers(4, 40, 29_000).tolist()
    batches = PairBatches([ids(n) for n in sizes], [ids(n) for n in sizes], max_tokens=4096)
    times = []
    for epoch in range(3):
        start = thread_time()
        batches.order(epoch)
        times.append(thread_time() - start)
    assert min(times) < 0.5


# BlockBatches


@given(
    length=st.integers(2, 90), block=st.integers(1, 20), batch_size=st.integers(1, 7),
    epoch=st.integers(0, 3),
)  # fmt: skip
def test_blocks_cut_the_text_without_overlap(length, block, batch_size, epoch):
    if length <= block:
        return
    batches = BlockBatches(torch.arange(length), block=block, batch_size=batch_size, seed=2)
    batches.load_state_dict({"epoch": epoch, "next": 0})
    blocks = list(batches)
    assert all(b.inputs.shape == b.labels.shape and b.inputs.shape[1] == block for b in blocks)
    assert all(torch.equal(b.inputs + 1, b.labels) for b in blocks)  # the token after each
    assert all(len(b.inputs) == batch_size for b in blocks[:-1])
    assert 1 <= len(blocks[-1].inputs) <= batch_size
    labels = torch.cat([b.labels.flatten() for b in blocks]).sort().values
    offset = int(labels[0]) - 1
    assert torch.equal(labels, torch.arange(offset + 1, offset + 1 + len(labels)))
    assert 0 <= offset < block and length - 1 - offset - len(labels) < block
    assert sum(b.n_tokens for b in blocks) == len(labels)


def test_blocks_begin_elsewhere_in_each_epoch_and_come_in_another_order():
    batches = BlockBatches(list(range(1000)), block=10, batch_size=100, seed=0)
    starts = [np.concatenate(batches.order(epoch)) for epoch in range(20)]
    assert len({int(s.min()) for s in starts}) > 5 and max(int(s.min()) for s in starts) < 10
    assert all((np.diff(s) != 10).any() for s in starts)


@pytest.mark.parametrize("n_blocks, n_batches", [(9, 2), (8, 2), (3, 1)])
def test_drop_last_leaves_out_a_short_last_batch_but_never_the_only_one(n_blocks, n_batches):
    sizes = {"block": 10, "batch_size": 4, "seed": 3}
    text = list(range(4, 4 + 10 * n_blocks + 1))  # the offset may cost a block
    whole, full = BlockBatches(text, **sizes), BlockBatches(text, **sizes, drop_last=True)
    for epoch in range(6):
        every, kept = whole.order(epoch), full.order(epoch)
        assert all(np.array_equal(a, b) for a, b in zip(every, kept, strict=False))
        if len(every) > 1:
            assert [len(item) for item in kept] == [4] * (sum(map(len, every)) // 4)
        else:
            assert len(kept) == 1
    assert (whole.fingerprint() == full.fingerprint()) is False


def test_block_batches_of_one_block_are_one_block():
    (only,) = BlockBatches([5, 6, 7, 8], block=3, batch_size=4)
    assert only.inputs.tolist() == [[5, 6, 7]] and only.labels.tolist() == [[6, 7, 8]]


def test_ids_that_are_special_elsewhere_are_tokens_in_blocks():
    (only,) = BlockBatches([0, 1, 0, 0], block=3, batch_size=1)
    assert only.n_tokens == 3 and type(only.n_tokens) is int


def test_blocks_part_and_move():
    (blocks,) = BlockBatches(list(range(22)), block=3, batch_size=9, seed=3)
    parts = [blocks.part(i, 4) for i in range(4)]
    assert sum(p.n_tokens for p in parts) == blocks.n_tokens
    assert torch.equal(parts[1].inputs, blocks.inputs[1::4])
    assert torch.equal(parts[1].labels, blocks.labels[1::4])
    empty = Blocks(blocks.inputs[:1], blocks.labels[:1]).part(1, 2)
    assert empty.inputs.shape == empty.labels.shape == (0, 3) and empty.n_tokens == 0
    moved = blocks.to("meta")
    assert moved.inputs.is_meta and moved.labels.is_meta and moved.n_tokens == blocks.n_tokens


def test_blocks_do_not_write_into_the_text():
    tokens = torch.arange(30)
    for blocks in BlockBatches(tokens, block=4, batch_size=2):
        blocks.inputs.fill_(-1)
    assert torch.equal(tokens, torch.arange(30))


def test_bad_blocks_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"more than block = 4 ids, got shape \(4,\)"):
        BlockBatches([1, 2, 3, 4], block=4, batch_size=1)
    for block, batch_size in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=f"at least 1, got {block} and {batch_size}"):
            BlockBatches(ids(9), block=block, batch_size=batch_size)
    with pytest.raises(ValueError, match="BlockBatches: seed must not be negative, got -7"):
        BlockBatches(ids(9), block=2, batch_size=1, seed=-7)


@pytest.mark.bad_input
def test_block_batches_refuse_a_matrix():
    with pytest.raises(
        ValueError, match=r"a vector of more than block = 2 ids, got shape \(5, 3\)"
    ):
        BlockBatches(torch.zeros(5, 3).long(), block=2, batch_size=1)


def test_subclass_needs_only_order_and_make():
    class Squares(ResumableBatches):
        def order(self, epoch):
            return [epoch, epoch + 1]

        def make(self, item):
            return item**2

    squares = Squares()
    assert list(islice(squares.endless(), 6)) == [0, 1, 1, 4, 4, 9]
    assert squares.state_dict() == {"epoch": 3, "next": 0} and squares.seed == 0
    for method in (ResumableBatches().order, ResumableBatches().make):
        with pytest.raises(NotImplementedError):
            method(0)


# fingerprints


def test_fingerprint_of_block_batches_tells_other_data_and_sizes_apart():
    text = torch.arange(3, 103)
    options = {"block": 4, "batch_size": 2}
    known = BlockBatches(text, **options).fingerprint()
    assert BlockBatches(text, **options).fingerprint() == known
    for other in ({"block": 5}, {"batch_size": 3}, {"seed": 1}):
        assert BlockBatches(text, **options | other).fingerprint() != known
    assert BlockBatches(text + 1, **options).fingerprint() != known


def test_fingerprint_of_pair_batches_tells_other_data_and_sizes_apart():
    sources, targets = [[5, 6], [7]], [[8], [9, 10]]
    options = {"max_tokens": 40}
    known = PairBatches(sources, targets, **options).fingerprint()
    assert PairBatches(sources, targets, **options).fingerprint() == known
    for other in ({"max_tokens": 41}, {"seed": 1}, {"shuffle": False}):
        assert PairBatches(sources, targets, **options | other).fingerprint() != known
    for sides in ((targets, sources), (sources[::-1], targets), ([[5, 6], [8]], targets)):
        assert PairBatches(*sides, **options).fingerprint() != known


def test_fingerprint_keeps_neighboring_settings_apart():
    text = torch.arange(3, 603)
    blocks = [BlockBatches(text, block=b, batch_size=n) for b, n in ((25, 64), (256, 4))]
    sides = [[5, 6], [7]], [[8], [9, 10]]
    pairs = [PairBatches(*sides, seed=s, max_tokens=m) for s, m in ((1, 1512), (11, 512))]
    for one, other in (blocks, pairs):
        assert one.fingerprint() != other.fingerprint()


def test_fingerprint_tells_parts_shapes_and_dtypes_apart():
    class Given(ResumableBatches):
        """Batches of nothing, with a content that is given."""

        def __init__(self, parts):
            super().__init__()
            self.parts = parts

        def content(self):
            return self.parts

    zeros = torch.zeros(2, 3)
    lists = [zeros], [zeros.mT], [zeros.int()], [zeros[:1], zeros[1:]], [0, zeros], [zeros, 0]
    contents = [*lists, [1, 23], [12, 3], ["12", 3], [123]]
    assert len({Given(parts).fingerprint() for parts in contents}) == len(contents)


def test_fingerprint_depends_on_the_class():
    class Others(BlockBatches):
        """Batches of the same blocks, made otherwise."""

    text = torch.arange(3, 103)
    ours, theirs = (kind(text, block=4, batch_size=2) for kind in (BlockBatches, Others))
    assert ours.fingerprint() != theirs.fingerprint()


# LabeledBatches


TEXTS = [[BEGIN, *range(5, 5 + n), END] for n in (3, 7, 5, 2, 11, 6, 4)]


def test_labeled_batches_keep_each_text_with_its_label():
    labels = [len(row) for row in TEXTS]
    data = LabeledBatches(TEXTS, labels, batch_size=3)
    batches = list(data)
    assert [len(batch.inputs) for batch in batches] == [3, 3, 1]
    for batch in batches:
        assert torch.equal(batch.mask.sum(dim=1), batch.labels)
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == sorted(labels)
    parts = [batches[0].part(i, 2) for i in range(2)]
    assert torch.equal(parts[1].labels, batches[0].labels[1:2])
    assert sum(part.n_tokens for part in parts) == batches[0].n_tokens == 3
    assert batches[0].to("cpu").inputs.equal(batches[0].inputs)
    assert data.trial_batch().inputs.shape == (3, 13)
    assert data.fingerprint() != LabeledBatches(TEXTS, labels[::-1], batch_size=3).fingerprint()
    with pytest.raises(ValueError, match=r"labels must have shape \(N\) with N = 7, got \(6,\)"):
        LabeledBatches(TEXTS, labels[:6], batch_size=3)
    with pytest.raises(ValueError, match="batch_size must be an integer at least 1, got 0"):
        LabeledBatches(TEXTS, labels, batch_size=0)


def images(n=23):
    return torch.randn(n, 3, 2, 5), torch.randint(4, (n,))


def test_labeled_batches_hold_each_image_once_in_a_new_order_each_epoch():
    inputs, labels = images()
    batches = LabeledBatches(inputs, labels, batch_size=7, seed=3)
    epochs = [list(batches) for _ in range(2)]
    assert [len(batch.labels) for batch in epochs[0]] == [7, 7, 7, 2] and len(batches) == 4
    orders = []
    for epoch in epochs:
        found = torch.cat([batch.inputs for batch in epoch])
        orders.append([(inputs == image).flatten(1).all(dim=1).nonzero().item() for image in found])
        assert sorted(orders[-1]) == list(range(23))
        assert torch.equal(torch.cat([batch.labels for batch in epoch]), labels[orders[-1]])
    assert orders[0] != orders[1]
    again = LabeledBatches(inputs, labels, batch_size=7, seed=3)
    assert torch.equal(next(iter(again)).inputs, epochs[0][0].inputs)
    other = LabeledBatches(inputs, labels, batch_size=7, seed=4)
    assert not torch.equal(next(iter(other)).inputs, epochs[0][0].inputs)


def test_labeled_batches_know_their_content():
    inputs, labels = images()
    prints = {LabeledBatches(inputs, labels, batch_size=7).fingerprint()}
    for options in ({"batch_size": 8}, {"batch_size": 7, "seed": 1}):
        prints.add(LabeledBatches(inputs, labels, **options).fingerprint())
    prints.add(LabeledBatches(inputs + 1, labels, batch_size=7).fingerprint())
    prints.add(LabeledBatches(inputs, labels + 1, batch_size=7).fingerprint())
    assert len(prints) == 5


def test_labeled_parts_make_up_the_batch():
    batch = LabeledBatch(*images())
    parts = [batch.part(i, 3) for i in range(3)]
    assert [part.n_tokens for part in parts] == [8, 8, 7] and batch.n_tokens == 23
    assert torch.equal(parts[1].inputs, batch.inputs[1::3])
    assert torch.equal(parts[1].labels, batch.labels[1::3])
    assert batch.part(30, 31).n_tokens == 0
    moved = batch.to("meta")
    assert moved.inputs.is_meta and moved.labels.is_meta


@pytest.mark.bad_input
def test_labeled_batches_refuse_what_does_not_pair_up():
    inputs, labels = images()
    with pytest.raises(ValueError, match=r"labels must have shape \(N\) with N = 23, got \(22,\)"):
        LabeledBatches(inputs, labels[:22], batch_size=7)
    with pytest.raises(ValueError, match="batch_size must be an integer at least 1, got 0"):
        LabeledBatches(inputs, labels, batch_size=0)
    with pytest.raises(ValueError, match="inputs must hold at least one text or image, got 0"):
        LabeledBatches(inputs[:0], labels[:0], batch_size=7)
