"""One training step of a decoder-only model: forward, loss, backward, AdamW."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Built, Case, Competitor, Setting
from benchmarks.peers import (
    CLEAR,
    QUICK,
    BareLayer,
    PlainGPT,
    cross_entropy,
    in_chunks,
    products_step,
    training_step,
)
from transformer_lib.cost import decoder_only_cost
from transformer_lib.cpu import use_onednn
from transformer_lib.models import DecoderOnly, TransformerConfig

LAYERS, H, D, T, B = 6, 6, 384, 256, 8
SPREAD = {"paper": "drops sublayer outputs and embeddings, as the paper does",
          "weights": "also drops attention weights",
          "all": "also drops attention weights and hidden units"}  # fmt: skip


def config(vocab: int, *, length: int = T, **changes: float) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=vocab, d_model=D, n_heads=H, d_ff=4 * D, n_decoder_layers=LAYERS,
        max_len=length, positions="learned", norm="pre", activation="gelu",
        **({"dropout": 0.0} | changes),
    )  # fmt: skip


class TorchModel(nn.Module):
    """nn.TransformerEncoder with a causal mask, tied embeddings and learned positions."""

    def __init__(self, vocab: int, dropout: float) -> None:
        super().__init__()
        options = {"batch_first": True, "norm_first": True, "activation": "gelu"}
        layer = nn.TransformerEncoderLayer(D, H, 4 * D, dropout, **options)
        self.core = nn.TransformerEncoder(
            layer, LAYERS, norm=nn.LayerNorm(D), enable_nested_tensor=False
        )
        self.words, self.places = nn.Embedding(vocab, D), nn.Embedding(T, D)
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.words.weight, std=0.02)
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        self.register_buffer("later", later, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        x = self.core(self.drop(x), mask=self.later, is_causal=True)
        return F.linear(x, self.words.weight)


class Bare(nn.Module):
    """The matrix multiplications and the attention of all layers and of the output."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BareLayer(D, H, 4 * D) for _ in range(LAYERS))
        self.output = nn.Linear(D, vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.output(x)


def hub(vocab: int, dropout: float) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    drop = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    sizes = {"vocab_size": vocab, "n_positions": T, "n_embd": D, "n_layer": LAYERS, "n_head": H}
    ends = {"bos_token_id": None, "eos_token_id": None, "use_cache": False}
    return GPT2LMHeadModel(GPT2Config(**sizes, **drop, **ends, activation_function="gelu"))


def x_transformers(vocab: int, dropout: float) -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=D, depth=LAYERS, heads=H, attn_dim_head=D // H, attn_flash=True,
        attn_dropout=dropout, ff_dropout=dropout,
    )  # fmt: skip
    return TransformerWrapper(
        num_tokens=vocab, max_seq_len=T, attn_layers=layers, tie_embedding=True,
        emb_dropout=dropout,
    )  # fmt: skip


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    out = model(tokens)
    return getattr(out, "logits", out)


def check(model: nn.Module, tokens: Tensor, vocab: int) -> None:
    """Check the shape of the logits, and that the token to be predicted is not read."""
    model.eval()
    with torch.no_grad():
        given = logits_of(model, tokens[:2])
        changed = torch.cat([tokens[:2, :-1], (tokens[:2, -1:] + 1) % vocab], dim=1)
        gap = (given - logits_of(model, changed))[:, :-1].abs().max().item()
    if tuple(given.shape) != (2, T, vocab):
        raise ValueError(f"check: logits must be {(2, T, vocab)}, got {tuple(given.shape)}")
    if gap > 1e-3:
        raise ValueError(f"check: a model must not see what it predicts, got a change of {gap}")
    model.train()


def competitor(
    name: str, make: Callable[[], nn.Module], rows: Tensor, vocab: int, setting: Setting,
    role: str = "peer", note: str = "",
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Competitor:  # fmt: skip
    def ready() -> Built:
        model = make().to(setting.device)
        check(model, rows[:, :-1], vocab)
        call = lambda m: logits_of(m, rows[:, :-1])  # noqa: E731
        return training_step(model, call, rows[:, 1:], setting, loss)

    return Competitor(name=name, make=ready, role=role, note=note)


def limit(vocab: int, setting: Setting) -> Competitor:
    def ready() -> Built:
        x = torch.randn(B, T, D, device=setting.device)
        return products_step(Bare(vocab).to(setting.device), lambda m: m(x), setting)

    note = "matrix multiplications and attention only, no optimizer"
    return Competitor(name="limit", make=ready, role="limit", note=note)


def plain(vocab: int, dropout: float = 0.0, weight_dropout: float = 0.0) -> nn.Module:
    drops = {"dropout": dropout, "weight_dropout": weight_dropout}
    return PlainGPT(vocab, D, H, LAYERS, T, **drops)


def cases(setting: Setting) -> Iterator[Case]:
    for vocab, dropout, kind in (
        (65, 0.0, ""), (8000, 0.0, ""),
        (65, 0.1, ", placed as each library does"), (65, 0.1, ", on weights, too, in all"),
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(vocab, (B, T + 1), generator=generator).to(setting.device)
        same = {"rows": rows, "vocab": vocab, "setting": setting}
        on_weights = kind.startswith(", on")
        weights = dropout if on_weights else 0.0
        says = dict.fromkeys(SPREAD, "") if not dropout else SPREAD

        def ours(v: int = vocab, p: float = dropout, w: float = weights) -> nn.Module:
            return DecoderOnly(config(v, dropout=p, attention_dropout=w))

        place = says["weights" if on_weights else "paper"]
        quick = "; ".join(filter(None, (QUICK, place)))
        found = [
            competitor(
                "ours", lambda make=ours: use_onednn(make()), role="ours", note=quick,
                loss=in_chunks, **same,
            ),
            competitor(CLEAR, ours, role="other", note=place, **same),
            competitor(
                "plain GPT, nanoGPT's design", lambda v=vocab, p=dropout: plain(v, p, p),
                note=says["weights"], **same,
            ),
            competitor(
                "nn.TransformerEncoder", lambda v=vocab, p=dropout: TorchModel(v, p),
                note=says["all"], **same,
            ),
            competitor(
                "HF GPT-2", lambda v=vocab, p=dropout: hub(v, p), note=says["weights"], **same
            ),
        ]  # fmt: skip
        if not on_weights:
            found.append(
                competitor(
                    "x-transformers, flash",
                    lambda v=vocab, p=dropout: x_transformers(v, p),
                    note="no biases in attention" + (f"; {says['all']}" if dropout else ""),
                    **same,
                )  # fmt: skip
            )
        if dropout and not on_weights:
            found.append(
                competitor(
                    "plain GPT, the paper's dropout",
                    lambda v=vocab, p=dropout: plain(v, p),
                    role="other",
                    note=says["paper"] + "; not the default of any library",
                    **same,
                )  # fmt: skip
            )
        if not dropout:
            found.append(limit(vocab, setting))
        if not dropout and setting.device == "cpu" and not setting.compile:
            found += [
                competitor(
                    "plain GPT, compiled", lambda v=vocab: torch.compile(plain(v)), **same
                ),
                competitor(
                    "ours, compiled", lambda make=ours: torch.compile(use_onednn(make())),
                    role="other", note=quick, loss=in_chunks, **same,
                ),
            ]  # fmt: skip
        flops = decoder_only_cost(config(vocab), batch_size=B, length=T).training_flops
        yield Case(
            suite="decoder-only training step", work=B * T, memory=not dropout, flops=flops,
            name=f"V = {vocab:,}" + (f", dropout {dropout}{kind}" if dropout else ""),
            competitors=found,
        )  # fmt: skip
