"""Multi-head self-attention as a module, forward and backward.

All modules hold the weights of ours and must give the same output.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.harness import Built, Case, Competitor, Setting, count_parameters
from benchmarks.peers import CLEAR, PlainAttention
from transformer_lib.cpu import use_onednn
from transformer_lib.interop import to_torch
from transformer_lib.multihead import MultiHeadAttention

D, H, B, T = 512, 8, 8, 256
Call = Callable[[nn.Module, Tensor], Tensor]


def by_torch(ours: MultiHeadAttention, causal: bool) -> tuple[nn.Module, Call]:
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    options = {"need_weights": False, "is_causal": causal}

    def call(m: nn.Module, x: Tensor) -> Tensor:
        return m(x, x, x, attn_mask=hidden.to(x.device) if causal else None, **options)[0]

    return to_torch(ours), call


def plain(ours: MultiHeadAttention, causal: bool) -> tuple[nn.Module, Call]:
    theirs = PlainAttention(D, H, causal=causal)
    theirs.inward.load_state_dict(ours.in_proj.state_dict())
    theirs.outward.load_state_dict(ours.out_proj.state_dict())
    return theirs, lambda m, x: m(x)


def hub(ours: MultiHeadAttention, causal: bool) -> tuple[nn.Module, Call]:
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    config = GPT2Config(n_embd=D, n_head=H, attn_pdrop=0.0, resid_pdrop=0.0)
    config._attn_implementation = "sdpa"
    theirs = GPT2Attention(config, layer_idx=0)
    theirs.is_causal = causal
    pairs = ((theirs.c_attn, ours.in_proj), (theirs.c_proj, ours.out_proj))
    for mine, given in pairs:  # GPT-2 stores its matrices transposed
        mine.load_state_dict({"weight": given.weight.T, "bias": given.bias})
    return theirs, lambda m, x: m(x)[0]


def x_transformers(ours: MultiHeadAttention, causal: bool) -> tuple[nn.Module, Call]:
    from x_transformers.x_transformers import Attention

    theirs = Attention(dim=D, heads=H, dim_head=D // H, causal=causal, flash=True)
    parts = dict(zip(("to_q", "to_k", "to_v"), ours.in_proj.weight.split(D), strict=True))
    for name, weight in (parts | {"to_out": ours.out_proj.weight}).items():
        theirs.get_submodule(name).load_state_dict({"weight": weight})
    return theirs, lambda m, x: m(x)


def cases(setting: Setting) -> Iterator[Case]:
    ways = {
        "nn.MultiheadAttention": (by_torch, ""),
        "plain, nanoGPT's design": (plain, ""),
        "HF GPT2Attention": (hub, ""),
        "x-transformers, flash": (x_transformers, "three projections without biases"),
    }
    generator = torch.Generator().manual_seed(0)
    shape = (B, T, D)
    given, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    for causal in (False, True):
        torch.manual_seed(0)
        ours = MultiHeadAttention(D, H)  # its biases start at 0

        def call_ours(m: nn.Module, x: Tensor, causal: bool = causal) -> Tensor:
            return m(x, causal=causal)

        with torch.no_grad():
            expected = call_ours(ours, given)

        def competitor(
            name: str, make: Callable[[], tuple[nn.Module, Call]], role: str = "peer",
            note: str = "", expected: Tensor = expected,
        ) -> Competitor:  # fmt: skip
            def ready() -> Built:
                module, call = make()
                with torch.no_grad():
                    torch.testing.assert_close(call(module, given), expected, rtol=1e-4, atol=1e-5)
                module = module.to(setting.device, setting.dtype).train()
                x = given.to(setting.device, setting.dtype).requires_grad_()
                g, running = gradient.to(x), setting.compiled(module)

                def run() -> None:
                    call(running, x).backward(g)
                    x.grad = None
                    for parameter in module.parameters():
                        parameter.grad = None

                return Built(run=run, parameters=count_parameters(module))

            return Competitor(name=name, make=ready, role=role, note=note)

        def clear(
            ours: MultiHeadAttention = ours, call: Call = call_ours
        ) -> tuple[nn.Module, Call]:
            return deepcopy(ours), call

        def quick(make: Callable = clear) -> tuple[nn.Module, Call]:
            module, call = make()
            return use_onednn(module), call

        found = [
            competitor("ours", quick, role="ours", note="use_onednn"),
            competitor(CLEAR, clear, role="other"),
        ]
        for name, (way, note) in ways.items():
            make = lambda way=way, ours=ours, causal=causal: way(ours, causal)  # noqa: E731
            found.append(competitor(name, make, note=note))
        yield Case(
            suite="multi-head module", work=B * T, competitors=found, memory=True,
            name=f"{'causal' if causal else 'no mask'}, forward and backward",
            flops=3 * B * (8 * T * D * D + 4 * T * T * D),
        )  # fmt: skip
