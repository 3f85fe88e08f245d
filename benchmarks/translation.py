"""One training step of an encoder-decoder: forward, loss, backward, AdamW.

With a tied output, one matrix serves source embeddings, target embeddings and the output, as in
BART and Marian; untied, the output has a separate matrix.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Built, Case, Competitor, Setting
from benchmarks.peers import (
    CLEAR,
    QUICK,
    BareLayer,
    cross_entropy,
    in_chunks,
    products_step,
    training_step,
)
from transformer_lib.cost import cost
from transformer_lib.cpu import use_onednn
from transformer_lib.models import Transformer, TransformerConfig

V, D, H, WIDE, DEPTH, B, L = 8000, 256, 4, 1024, 3, 32, 32
PAD, PLACES = 0, 64
PAPER = "drops sublayer outputs and embeddings, as the paper does"
Call = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]


def config(dropout: float, tied: bool) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=V, d_model=D, n_heads=H, d_ff=WIDE, n_encoder_layers=DEPTH,
        n_decoder_layers=DEPTH, dropout=dropout, positions="learned", activation="gelu",
        max_len=PLACES, tie_embeddings=tied,
    )  # fmt: skip


class TorchModel(nn.Module):
    """nn.Transformer with embeddings, learned positions and an output layer."""

    def __init__(self, dropout: float, tied: bool) -> None:
        super().__init__()
        options = {"dim_feedforward": WIDE, "dropout": dropout, "activation": "gelu"}
        self.core = nn.Transformer(D, H, DEPTH, DEPTH, batch_first=True, **options)
        self.words, self.places = nn.Embedding(V, D), nn.Embedding(PLACES, D)
        self.drop, self.output = nn.Dropout(dropout), nn.Linear(D, V, bias=False)
        nn.init.normal_(self.words.weight, std=D**-0.5)
        if tied:
            self.output.weight = self.words.weight
        later = torch.ones(L, L, dtype=torch.bool).triu(1)
        self.register_buffer("later", later, persistent=False)

    def enter(self, tokens: Tensor) -> Tensor:
        return self.drop(self.words(tokens) * D**0.5 + self.places.weight[: tokens.shape[1]])

    def forward(self, source: Tensor, target: Tensor, real: Tensor | None) -> Tensor:
        hidden = None if real is None else ~real
        masks = {"src_key_padding_mask": hidden, "memory_key_padding_mask": hidden}
        options = {"tgt_mask": self.later, "tgt_is_causal": True, **masks}
        return self.output(self.core(self.enter(source), self.enter(target), **options))


class Bare(nn.Module):
    """The matrix multiplications and the attention of all layers and of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(BareLayer(D, H, WIDE) for _ in range(DEPTH))
        self.decoder = nn.ModuleList(BareLayer(D, H, WIDE, cross=True) for _ in range(DEPTH))
        self.output = nn.Linear(D, V, bias=False)

    def forward(self, memory: Tensor, x: Tensor) -> Tensor:
        for layer in self.encoder:
            memory = layer(memory, causal=False)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.output(x)


def hub(kind: str, dropout: float) -> nn.Module:
    import transformers

    sizes = {
        "vocab_size": V, "d_model": D, "encoder_layers": DEPTH, "decoder_layers": DEPTH,
        "encoder_attention_heads": H, "decoder_attention_heads": H, "encoder_ffn_dim": WIDE,
        "decoder_ffn_dim": WIDE, "max_position_embeddings": PLACES, "dropout": dropout,
        "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": PAD,
        "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2,
        "forced_eos_token_id": 2, "activation_function": "gelu", "use_cache": False,
    }  # fmt: skip
    made = {"BART": ("BartConfig", "BartForConditionalGeneration"),
            "Marian": ("MarianConfig", "MarianMTModel")}[kind]  # fmt: skip
    config, model = (getattr(transformers, name) for name in made)
    return model(config(**sizes))


def x_transformers() -> nn.Module:
    from x_transformers import XTransformer

    stack = {"depth": DEPTH, "heads": H, "attn_dim_head": D // H, "attn_flash": True}
    stack |= {"num_tokens": V, "max_seq_len": PLACES, "ff_mult": WIDE // D}
    options = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in stack.items()}
    return XTransformer(dim=D, tie_token_emb=True, **options)


def call_ours(m: nn.Module, source: Tensor, target: Tensor, real: Tensor | None) -> Tensor:
    return m(source, target, source_mask=None if real is None else real[:, None, None])


def call_torch(m: nn.Module, source: Tensor, target: Tensor, real: Tensor | None) -> Tensor:
    return m(source, target, real)


def call_hub(m: nn.Module, source: Tensor, target: Tensor, real: Tensor | None) -> Tensor:
    mask = None if real is None else real.long()
    return m(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits


def call_x(m: nn.Module, source: Tensor, target: Tensor, real: Tensor | None) -> Tensor:
    memory = m.encoder(source, mask=real, return_embeddings=True)
    return m.decoder.net(target, context=memory, context_mask=real)


def check(
    model: nn.Module, call: Call, source: Tensor, target: Tensor, real: Tensor | None
) -> None:
    """Check the shape of the logits, and that padding and later target tokens are not read."""
    model.eval()
    later = torch.cat([target[:, :-1], (target[:, -1:] + 1) % V], dim=1)
    other = source if real is None else torch.where(real, source, (source + 7) % V)
    with torch.no_grad():
        given, changed = call(model, source, target, real), call(model, other, later, real)
    if tuple(given.shape) != (B, L, V):
        raise ValueError(f"check: logits must be {(B, L, V)}, got {tuple(given.shape)}")
    gap = (given - changed)[:, :-1].abs().max().item()
    if gap > 1e-3:
        raise ValueError(f"check: padding and later words must not be read, got a change of {gap}")
    model.train()


def limit(setting: Setting) -> Competitor:
    def ready() -> Built:
        source, target = torch.randn(2, B, L, D, device=setting.device)
        return products_step(Bare().to(setting.device), lambda m: m(source, target), setting)

    note = "matrix multiplications and attention only, no optimizer"
    return Competitor(name="limit", make=ready, role="limit", note=note)


def cases(setting: Setting) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(3, V, (B, L), generator=generator)
    target = torch.randint(3, V, (B, L + 1), generator=generator)
    lengths = torch.randint(L // 2, L + 1, (2, B, 1), generator=generator)
    real_source, real_target = torch.arange(L) < lengths
    for tied, padded, dropout in (
        (True, False, 0.0), (True, True, 0.0), (True, False, 0.1),
        (False, False, 0.0), (False, True, 0.0),
    ):  # fmt: skip
        labels = target[:, 1:]
        real = real_source.to(setting.device) if padded else None
        if padded:
            labels = labels.masked_fill(~real_target, -100)
        batch = source.to(setting.device), target[:, :-1].to(setting.device), real
        labels = labels.to(setting.device)

        def competitor(
            name: str, make: Callable[[], nn.Module], call: Call, role: str = "peer",
            note: str = "", loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
            batch: tuple = batch, labels: Tensor = labels,
        ) -> Competitor:  # fmt: skip
            def ready() -> Built:
                model = make().to(setting.device)
                check(model, call, *batch)
                return training_step(model, lambda m: call(m, *batch), labels, setting, loss)

            return Competitor(name=name, make=ready, role=role, note=note)

        def ours(dropout: float = dropout, tied: bool = tied) -> nn.Module:
            return Transformer(config(dropout, tied))

        def by_torch(dropout: float = dropout, tied: bool = tied) -> nn.Module:
            return TorchModel(dropout, tied)

        paper = PAPER if dropout else ""
        more = "also drops attention weights and hidden units" if dropout else ""
        quick = "; ".join(filter(None, (QUICK, paper)))
        found = [
            competitor(
                "ours", lambda make=ours: use_onednn(make()), call_ours, role="ours", note=quick,
                loss=in_chunks,
            ),
            competitor(CLEAR, ours, call_ours, role="other", note=paper),
            competitor("nn.Transformer", by_torch, call_torch, note=more),
        ]  # fmt: skip
        if tied:
            for kind, note in (("BART", ""), ("Marian", "positions are not learned")):
                note = "; ".join(filter(None, (note, paper)))
                make = lambda kind=kind, p=dropout: hub(kind, p)  # noqa: E731
                found.append(competitor(f"HF {kind}", make, call_hub, note=note))
        else:
            note = "pre-norm, no biases in attention"
            found.append(competitor("x-transformers, flash", x_transformers, call_x, note=note))
        if not dropout:
            found.append(limit(setting))
        words = "tied output" if tied else "untied output"
        extra = f", dropout {dropout}" if dropout else ""
        sizes = {"batch_size": B, "source_len": L, "target_len": L}
        yield Case(
            suite="encoder-decoder training step", work=B * L, memory=not dropout,
            name=f"{words}, {'padded, with masks' if padded else 'no padding'}{extra}",
            competitors=found, flops=cost(config(dropout, tied), **sizes).training_flops,
        )  # fmt: skip
