"""Greedy decoding of 256 tokens after a prompt of 32, by a decoder-only model with a cache."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Built, Case, Competitor, Setting, count_parameters
from benchmarks.language import LAYERS, Bare, D, H, config, logits_of
from transformer_lib.cost import decoder_only_cost
from transformer_lib.cpu import pack_for_decoding
from transformer_lib.generation import greedy
from transformer_lib.models import DecoderOnly

V, PROMPT, NEW = 65, 32, 256
ALL = PROMPT + NEW
Generate = Callable[[Tensor], Tensor]  # prompt (B, PROMPT) -> prompt and new tokens (B, ALL)


def generator_of(model: nn.Module) -> Generate:
    def write(prompt: Tensor) -> Tensor:
        written = greedy(model, prompt, max_len=NEW, end=None)
        return torch.cat([prompt, torch.tensor(written, device=prompt.device)], dim=1)

    return write


def by_ours(setting: Setting) -> tuple[nn.Module, Generate]:
    model = pack_for_decoding(DecoderOnly(config(V, length=ALL)))
    return model, generator_of(model)


def unpacked(setting: Setting) -> tuple[nn.Module, Generate]:
    model = DecoderOnly(config(V, length=ALL))
    return model, generator_of(model)


def by_hub(setting: Setting) -> tuple[nn.Module, Generate]:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": V, "n_positions": ALL, "n_embd": D, "n_layer": LAYERS, "n_head": H}
    ends = {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **ends, activation_function="gelu"))
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def write(prompt: Tensor) -> Tensor:
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)

    return model, write


def by_litgpt(setting: Setting) -> tuple[nn.Module, Generate]:
    """litgpt's model and cache in a plain loop, without the extras of its own loop."""
    from litgpt.model import GPT, Config

    model = GPT(
        Config(
            name="same", block_size=ALL, vocab_size=V, padded_vocab_size=V, n_layer=LAYERS,
            n_head=H, n_embd=D, rotary_percentage=1.0, parallel_residual=False, bias=True,
            norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", intermediate_size=4 * D,
            lm_head_bias=False,
        )
    )  # fmt: skip

    @torch.inference_mode()
    def write(prompt: Tensor) -> Tensor:
        device = prompt.device
        model.set_kv_cache(batch_size=len(prompt), device=device)
        place, last, written = torch.arange(PROMPT, device=device), prompt, [prompt]
        for end in range(PROMPT, ALL):
            logits = model(last, place, input_pos_maxp1=end)
            last = logits[:, -1].argmax(dim=-1, keepdim=True)
            written.append(last)
            place = place[-1:] + 1
        return torch.cat(written, dim=1)

    return model, write


def by_x_transformers(setting: Setting) -> tuple[nn.Module, Generate]:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(dim=D, depth=LAYERS, heads=H, attn_dim_head=D // H, attn_flash=True)
    sizes = {"num_tokens": V, "max_seq_len": ALL, "tie_embedding": True}
    model = AutoregressiveWrapper(TransformerWrapper(attn_layers=layers, **sizes))

    @torch.inference_mode()
    def write(prompt: Tensor) -> Tensor:
        written = model.generate(prompt, NEW, temperature=0.0, cache_kv=True)
        return torch.cat([prompt, written], dim=1)

    return model, write


def check(model: nn.Module, written: Tensor, prompt: Tensor) -> None:
    """Check that the prompt comes first and each new token is the most probable without a cache."""
    if tuple(written.shape) != (len(prompt), ALL) or not bool(
        (written[:, :PROMPT] == prompt).all()
    ):
        raise ValueError(f"check: prompt and {NEW} tokens must be generated, got {written.shape}")
    model = getattr(model, "net", model)
    with torch.inference_mode():
        if hasattr(model, "clear_kv_cache"):
            model.clear_kv_cache()
        logits = logits_of(model, written)[:, PROMPT - 1 : -1].float()
    chosen = logits.gather(-1, written[:, PROMPT:, None])[..., 0]
    gap = (logits.amax(dim=-1) - chosen).max().item()
    if gap > (1e-3 if next(model.parameters()).dtype == torch.float32 else 0.3):
        raise ValueError(
            f"check: each token must be the most probable, got one whose logit is {gap} lower"
        )


def limit(prompt: Tensor, setting: Setting) -> Competitor:
    """Matrix multiplications for each new token, and attention to all keys so far."""

    def ready() -> Built:
        bare = pack_for_decoding(Bare(V).to(setting.device, setting.dtype))  # the fastest layout
        B, like = len(prompt), bare.output.weight
        first = torch.randn(B, PROMPT, D, device=like.device, dtype=like.dtype)
        stored = torch.randn(2, B, H, ALL, D // H, device=like.device, dtype=like.dtype)

        @torch.inference_mode()
        def run() -> None:
            bare(first)
            for end in range(PROMPT + 1, ALL):
                x, k, v = first[:, :1], stored[0, :, :, :end], stored[1, :, :, :end]
                for layer in bare.layers:
                    q = layer.inward(x)[..., :D].unflatten(-1, (H, -1)).transpose(1, 2)
                    x = layer.outward(
                        F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
                    )
                    x = layer.narrow(layer.wide(x))
                bare.output(x)

        return Built(run=run, parameters=count_parameters(bare))

    note = "matrix multiplications and attention only"
    return Competitor(name="limit", make=ready, role="limit", note=note)


def cases(setting: Setting) -> Iterator[Case]:
    ways = {
        "ours": (by_ours, "packed"),
        "ours, not packed": (unpacked, ""),
        "litgpt": (
            by_litgpt,
            "rotary positions, untied output; a plain loop without litgpt's extras",
        ),
        "HF GPT-2": (by_hub, ""),
        "x-transformers, flash": (by_x_transformers, "no biases in attention"),
    }
    for batch in (1, 8):
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(V, (batch, PROMPT), generator=generator).to(setting.device)

        def competitor(name: str, prompt: Tensor = prompt) -> Competitor:
            make, note = ways[name]

            def ready() -> Built:
                model, write = make(setting)
                model.eval().to(setting.device, setting.dtype)
                check(model, write(prompt), prompt)
                return Built(run=lambda: write(prompt), parameters=count_parameters(model))

            role = {"ours": "ours", "ours, not packed": "other"}.get(name, "peer")
            return Competitor(name=name, make=ready, role=role, note=note)

        found = [*map(competitor, ways), limit(prompt, setting)]
        flops = decoder_only_cost(config(V, length=ALL), batch_size=batch, length=ALL)
        yield Case(
            suite="generation", name=f"batch {batch}, {NEW} new tokens after {PROMPT}",
            work=batch * NEW, competitors=found, flops=flops.forward_flops,
        )  # fmt: skip
