"""Tiled attention equals attention without tiles, forward and backward, whatever the block.

tests/test_attention.py tests it beside the other attention functions, too.
"""

import pytest
import torch
import torch.nn.functional as F

from transformer_lib.attention import causal_mask
from transformer_lib.tiled import tiled_attend

B, H, T, S, K, Kv = 2, 3, 5, 7, 11, 13  # distinct primes: no axis can be mistaken for another


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(1)
    shapes = (B, H, T, K), (B, H, S, K), (B, H, S, Kv)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.fixture
def mask():
    mask = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[0, :, 2] = False
    return mask


def gradients(way, inputs, **options):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = way(*inputs, **options)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), inputs)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_tiled_attend_agrees_with_torch_forward_and_backward(qkv, mask, causal, block):
    visible = mask & causal_mask(T, S) if causal else mask
    torchs = F.scaled_dot_product_attention
    expected = gradients(lambda *x: torchs(*x, attn_mask=visible), qkv)
    for ours, theirs in zip(
        gradients(tiled_attend, qkv, mask=mask, causal=causal, block=block), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    out = tiled_attend(*qkv, mask, causal=causal, block=block)
    assert not out[0, :, 2].any()  # a query that may attend to nothing


@pytest.mark.parametrize("block", [1, 2, 7, 100])
def test_tiled_attend_does_not_depend_on_the_block_size(qkv, mask, block):
    expected = gradients(tiled_attend, qkv, mask=mask, causal=True)
    for ours, theirs in zip(
        gradients(tiled_attend, qkv, mask=mask, causal=True, block=block), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_tiled_attend_never_holds_more_scores_than_a_block(monkeypatch, qkv):
    import transformer_lib.tiled as module

    sizes, tiles = [], module._tiles

    def spy(*arguments):
        for tile in tiles(*arguments):
            sizes.append(tile[1].shape[-1])
            yield tile

    monkeypatch.setattr(module, "_tiles", spy)
    gradients(tiled_attend, qkv, block=3)
    assert sizes == [3, 3, 1] * 2  # forward, then recomputed backward


def test_tiled_attend_accumulates_long_half_precision_sums():
    n = 3000  # in float16, 2048 + 1 = 2048
    query, key = torch.zeros(1, 2, dtype=torch.float16), torch.zeros(n, 2, dtype=torch.float16)
    value = (torch.arange(n) >= 2048).half()[:, None]
    out = tiled_attend(query, key, value, block=1)
    assert out.item() == pytest.approx((n - 2048) / n, rel=2e-3)  # float16 keeps three digits


def test_tiled_attend_over_heads_of_width_zero_averages_the_values(qkv):
    query, key = (x[..., :0].detach().requires_grad_() for x in qkv[:2])
    out = tiled_attend(query, key, qkv[2], block=3)
    torch.testing.assert_close(out, qkv[2].mean(-2, keepdim=True).expand(B, H, T, Kv))
    out.sum().backward()
    assert query.grad.shape == query.shape and key.grad.shape == key.shape


def test_tiled_attend_cannot_be_differentiated_twice(qkv):
    query = qkv[0].requires_grad_()
    (once,) = torch.autograd.grad(tiled_attend(*qkv).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@pytest.mark.bad_input
def test_tiled_attend_refuses_an_impossible_block(qkv):
    with pytest.raises(
        ValueError, match="tiled_attend: block must be an integer at least 1, got 0"
    ):
        tiled_attend(*qkv, block=0)
