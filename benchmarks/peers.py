"""Peers that are on no package index, and the part of the work that limits all.

The plain GPT is written for this comparison in nanoGPT's design: one fused
projection, torch's attention kernel with is_causal, GELU, pre-norm, a tied output; dropout, if
any, on attention weights, on sublayer outputs and on the sum of the embeddings. It represents
nanoGPT, but is not its code.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Built, Setting, count_parameters
from transformer_lib.cpu import use_onednn
from transformer_lib.losses import token_loss

QUICK = "use_onednn, and token_loss"
CLEAR = "ours, as torch multiplies"


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, causal: bool) -> None:
        super().__init__()
        self.heads, self.p, self.causal = heads, dropout, causal
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.inward(x).split(D, dim=2)
        q, k, v = (y.view(B, T, self.heads, D // self.heads).transpose(1, 2) for y in (q, k, v))
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, dropout_p=p)
        return self.outward(y.transpose(1, 2).reshape(B, T, D))


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, weight_dropout: float) -> None:
        super().__init__()
        self.attention = PlainAttention(width, heads, dropout=weight_dropout, causal=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.narrow(F.gelu(self.wide(self.norm2(x)))))


class PlainGPT(nn.Module):
    def __init__(
        self, vocab: int, width: int, heads: int, layers: int, length: int, *,
        dropout: float = 0.0, weight_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.words, self.places = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            PlainBlock(width, heads, dropout, weight_dropout) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        self.head.weight = self.words.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.words(tokens) + self.places(places))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class BareLayer(nn.Module):
    """A layer's matmuls and attention, without norms, residuals, biases or activations."""

    def __init__(self, width: int, heads: int, wide: int, *, cross: bool = False) -> None:
        super().__init__()

        def linear(inward: int, outward: int) -> nn.Linear:
            return nn.Linear(inward, outward, bias=False)

        self.heads = heads
        self.inward, self.outward = linear(width, 3 * width), linear(width, width)
        self.wide, self.narrow = linear(width, wide), linear(wide, width)
        if cross:
            self.ask, self.read = linear(width, width), linear(width, 2 * width)
            self.cross_outward = linear(width, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return y.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, memory: Tensor | None = None, *, causal: bool = True) -> Tensor:
        x = self.outward(self.attend(*self.inward(x).chunk(3, dim=-1), causal))
        if memory is not None:
            mixed = self.attend(self.ask(x), *self.read(memory).chunk(2, dim=-1), False)
            x = self.cross_outward(mixed)
        return self.narrow(self.wide(x))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over all labels but -100, as every peer computes it."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def in_chunks(logits: Tensor, labels: Tensor) -> Tensor:
    """The same mean by this library's loss."""
    return token_loss(logits, labels, padding=-100) / (labels != -100).sum()


def training_step(
    model: nn.Module,
    logits: Callable[[nn.Module], Tensor],
    labels: Tensor,
    setting: Setting,
    loss_of: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Built:
    """Forward, cross-entropy, backward, fused AdamW and zero_grad, the same for all."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    running = setting.compiled(model)

    def run() -> None:
        with setting.autocast():
            loss = loss_of(logits(running), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Built(run=run, parameters=count_parameters(model))


def products_step(
    model: nn.Module, logits: Callable[[nn.Module], Tensor], setting: Setting
) -> Built:
    """The matrix multiplications alone, forward and backward, without loss and optimizer."""
    running = setting.compiled(use_onednn(model))  # by oneDNN where it is faster

    def run() -> None:
        with setting.autocast():
            out = logits(running)
        out.backward(torch.ones_like(out))
        for parameter in model.parameters():
            parameter.grad = None

    return Built(run=run, parameters=count_parameters(model))
