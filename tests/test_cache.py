"""Caches return what they were given, in place, and refuse what does not fit."""

import math
import re

import pytest
import torch

from transformer_lib.cache import KVCache, LayerCache, WindowCache
from transformer_lib.multihead import MultiHeadAttention

B, T, S, H, K = 2, 5, 7, 6, 3  # with D = 18: axes that could be confused have different sizes
D = H * K
GROUPS = pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(n_kv_heads):
    torch.manual_seed(3)
    return MultiHeadAttention(D, H, n_kv_heads=n_kv_heads).double().eval()


# one attention module


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_cache_bytes_equal_the_formula(dtype):
    cache = KVCache(max_len=11)
    assert cache.n_bytes == 0 and cache.length == 0
    cache.append(normal(B, 2, 3, K).to(dtype), normal(B, 2, 3, K).to(dtype))
    assert cache.n_bytes == 2 * B * 2 * 11 * K * dtype.itemsize
    assert repr(cache) == f"KVCache(length=3, max_len=11, n_bytes={cache.n_bytes})"


@torch.no_grad()
def test_cache_is_allocated_once():
    cache = KVCache(max_len=5)
    first, _ = cache.append(normal(B, 2, 3, K), normal(B, 2, 3, K, seed=1))
    kept = first.clone()
    keys, values = cache.append(normal(B, 2, 2, K, seed=2), normal(B, 2, 2, K, seed=3))
    assert keys.data_ptr() == first.data_ptr() and torch.equal(keys[:, :, :3], kept)
    assert torch.equal(keys[:, :, 3:], normal(B, 2, 2, K, seed=2))
    assert torch.equal(values[:, :, 3:], normal(B, 2, 2, K, seed=3))
    assert torch.equal(values[:, :, :3], normal(B, 2, 3, K, seed=1))
    assert torch.equal(cache.stored()[0], keys) and torch.equal(cache.stored()[1], values)


@GROUPS
@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 0, 2, 2], [2], [0, 1, 2], []])
@pytest.mark.parametrize("index", [torch.int64, torch.int32])
@torch.no_grad()
def test_cache_select_continues_as_if_the_rows_were_the_batch(rows, index, n_kv_heads):
    attention, x, chosen = layer(n_kv_heads), normal(3, T, D), torch.tensor(rows).long()
    cache, cross, key = KVCache(T + 2), KVCache(), normal(3, S, D, seed=1)
    attention(x[:, :3], causal=True, cache=cache)
    attention(x, key, cache=cross)
    for one in (cache, cross):
        one.select(chosen.to(index))
    assert cache.length == 3 and cache.max_len == T + 2
    assert cache.n_bytes == 2 * len(rows) * n_kv_heads * (T + 2) * K * 8
    after = attention(x[chosen, 3:], causal=True, cache=cache)
    torch.testing.assert_close(after, attention(x, causal=True)[chosen, 3:])
    unread = torch.full((len(rows), S, D), math.nan, dtype=x.dtype)
    across = attention(x[chosen], unread, cache=cross)
    torch.testing.assert_close(across, attention(x, key)[chosen])


@torch.no_grad()
def test_cache_select_leaves_earlier_views_unchanged():
    cache = KVCache(4)
    key, value = normal(3, 2, 3, K), normal(3, 2, 3, K, seed=1)
    handed = cache.append(key, value)
    cache.select(torch.tensor([1, 0, 1]))
    cache.append(normal(3, 2, 1, K), normal(3, 2, 1, K))
    assert torch.equal(handed[0], key) and torch.equal(handed[1], value)
    assert torch.equal(cache.stored()[0][:, :, :3], key[[1, 0, 1]])
    assert torch.equal(cache.stored()[1][:, :, :3], value[[1, 0, 1]])


def test_cache_select_refuses_rows_outside_the_batch():
    cache, key = KVCache(4), normal(3, 2, 3, K)
    with pytest.raises(ValueError, match="KVCache: the cache is empty; call append"):
        cache.select(torch.tensor([0]))
    cache.append(key, key)
    for rows, got in (([0, 3], "0 to 3"), ([-1, 2], "-1 to 2")):
        with pytest.raises(ValueError, match=rf"select: rows must lie in \[0, 3\), got {got}"):
            cache.select(torch.tensor(rows))
    assert torch.equal(cache.stored()[0], key)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor(1), "rows must have shape (N), got ()"),
        (torch.tensor([[0, 1]]), "rows must have shape (N), got (1, 2)"),
        (torch.tensor([True]), "rows must be int32 or int64 on cpu, got torch.bool"),
    ],
)
def test_cache_select_refuses_what_is_not_a_list_of_integers(rows, message):
    cache = KVCache(4)
    cache.append(normal(3, 2, 3, K), normal(3, 2, 3, K))
    with pytest.raises(ValueError, match=re.escape(message)):
        cache.select(rows)


@GROUPS
def test_cache_crop_forgets_what_it_cuts_off(n_kv_heads):
    attention, x, other = layer(n_kv_heads), normal(B, T, D), normal(B, T, D, seed=1)
    with torch.no_grad():
        cut, fresh = KVCache(2 * T), KVCache(2 * T)
        attention(x, causal=True, cache=cut)
        cut.crop(2)
        assert cut.length == 2 and cut.max_len == 2 * T
        attention(x[:, :2], causal=True, cache=fresh)
        for cache in (cut, fresh):
            cache.last = attention(other, causal=True, cache=cache)
    torch.testing.assert_close(cut.last, fresh.last)
    for kept, expected in zip(cut.stored(), fresh.stored(), strict=True):
        torch.testing.assert_close(kept, expected)
    cut.crop(cut.length)
    assert cut.length == 2 + T
    cut.crop(0)
    assert cut.length == 0


@pytest.mark.bad_input
@pytest.mark.parametrize("length", [-1, T + 1])
def test_cache_crop_refuses_more_than_is_stored(length):
    cache = KVCache(2 * T)
    cache.append(normal(B, H, T, K), normal(B, H, T, K))
    must = f"KVCache.crop: length must be an integer in [0, {T}], got {length}"
    with pytest.raises(ValueError, match=re.escape(must)):
        cache.crop(length)
    assert cache.length == T


def test_cache_refuses_what_does_not_fit_and_stays_unchanged():
    cache, pair = KVCache(max_len=4), [normal(B, 2, 3, K), normal(B, 2, 3, K)]
    with pytest.raises(ValueError, match="the cache is empty; call append first"):
        cache.stored()
    cache.append(*pair)
    with pytest.raises(ValueError, match="cache is full: max_len = 4, needed 5"):
        cache.append(normal(B, 2, 2, K), normal(B, 2, 2, K))
    assert cache.length == 3 and cache.append(normal(B, 2, 1, K), normal(B, 2, 1, K))
    with pytest.raises(ValueError, match="KVCache: max_len must be an integer at least 1, got 0"):
        KVCache(0)


@pytest.mark.bad_input
def test_cache_refuses_keys_and_values_unlike_those_stored():
    cache = KVCache(max_len=4)
    cache.append(normal(B, 2, 3, K), normal(B, 2, 3, K))
    good = normal(B, 2, 1, K)
    for bad, size in (
        (normal(B + 1, 2, 1, K), f"B = {B}"),
        (normal(B, 3, 1, K), "G = 2"),
        (normal(B, 2, 1, K + 1), f"K = {K}"),
    ):
        for name, pair in (("key", (bad, good)), ("value", (good, bad))):
            shape = f"KVCache.append: {name} must have shape (B, G, T, K) with {size}, got "
            with pytest.raises(ValueError, match=re.escape(f"{shape}{tuple(bad.shape)}")):
                cache.append(*pair)
    with pytest.raises(ValueError, match="value must have shape .* with T = 1, got"):
        cache.append(good, normal(B, 2, 0, K))
    for bad in (good.float(), good.to("meta")):
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(ValueError, match="must be torch.float64 on cpu, got"):
                cache.append(*pair)
    assert cache.length == 3


# a decoder layer


def test_decoder_cache_names_its_two_parts():
    cache = LayerCache(KVCache(3), KVCache())
    assert cache.self_attention is cache[0] and cache.cross_attention is cache[1]


@torch.no_grad()
def test_decoder_cache_selects_rows_in_both_parts():
    cache, key = LayerCache(KVCache(T), KVCache()), normal(3, 2, S, K)
    cache.self_attention.append(key[:, :, :2], key[:, :, :2])
    cache.cross_attention.append(key, key)
    assert cache.select(torch.tensor([2, 0])) is None and cache.length == 2
    for part, n in zip(cache, (2, S), strict=True):
        assert torch.equal(part.stored()[0], key[[2, 0], :, :n])


# attention with a window: test_gpt.py compares its outputs


def test_window_cache_returns_what_a_new_query_may_see():
    cache, place = WindowCache(3, spare=1), torch.arange(20.0).view(1, 1, -1, 1)
    for first, n_new in ((0, 1), (1, 1), (2, 4), (6, 1), (7, 9), (16, 1), (17, 3)):
        new = place[:, :, first : first + n_new]
        keys, values = cache.append(new, -new)
        expected = place[:, :, max(first - 2, 0) : first + n_new]
        assert torch.equal(keys, expected) and torch.equal(values, -expected)
    cache.select(torch.tensor([0, 0]))
    assert cache.stored()[0].shape[0] == 2 and cache.length == 20
    kept = cache.stored()[0].flatten(1)[0].tolist()
    cache.crop(19)
    assert cache.stored()[0].flatten(1)[0].tolist() == kept[:-1] and kept[-1] == 19


@pytest.mark.parametrize("first", [1, 100])
def test_window_cache_stops_growing_after_ten_windows(first):
    cache, sizes = WindowCache(16, spare=3), []
    cache.append(*torch.zeros(2, B, 2, first, K))
    for _ in range(160):
        cache.append(*torch.zeros(2, B, 2, 1, K))
        sizes.append(cache.n_bytes)
    one = 2 * B * 2 * K * 4  # keys and values, rows, heads, width, bytes
    assert set(sizes) == {2 * (16 - 1 + 3) * one} and cache.length == 160 + first
    plain = KVCache(1000)
    plain.append(*torch.zeros(2, B, 2, 1, K))
    assert plain.n_bytes == 1000 * one
    assert WindowCache(16, 9).n_bytes == 0
    short = WindowCache(16, 9)
    short.append(*torch.zeros(2, B, 2, 9, K))
    assert short.n_bytes == 9 * one  # never more than max_len


def test_window_cache_refuses_to_take_back_what_it_has_dropped():
    cache, new = WindowCache(5, spare=3), torch.zeros(2, 1, 1, 20, 2)
    cache.append(*new)
    cache.crop(17)
    assert cache.length == 17 and cache.stored()[0].shape[2] == 4
    said = "length must be at least 17, since earlier positions are dropped, got 16"
    with pytest.raises(ValueError, match=said):
        cache.crop(16)
    with pytest.raises(ValueError, match="length must be an integer in .0, 17., got 18"):
        cache.crop(18)
    with pytest.raises(ValueError, match="length must be an integer in .0, 17., got -1"):
        cache.crop(-1)
    young = WindowCache(5)
    young.append(*new[:, :, :, :3])
    young.crop(0)
    assert young.length == 0


def test_window_cache_refuses_bad_sizes_and_too_many_positions():
    for wrong, said in [((0,), "window must be an integer at least 1, got 0")]:
        with pytest.raises(ValueError, match=f"WindowCache: {said}"):
            WindowCache(*wrong)
    with pytest.raises(ValueError, match="WindowCache: spare must be an integer at least 0"):
        WindowCache(3, spare=-1)
    cache = WindowCache(3, 10)
    cache.append(*torch.zeros(2, 1, 1, 7, 2))
    with pytest.raises(ValueError, match="cache is full: max_len = 10, needed 11"):
        cache.append(*torch.zeros(2, 1, 1, 4, 2))
    with pytest.raises(ValueError, match="call it in torch.no_grad"):
        cache.append(*torch.zeros(2, 1, 1, 1, 2, requires_grad=True))
