"""How time and memory grow with the length of a causal sequence, forward and backward."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.attention import H, K, Way, both, formula
from benchmarks.harness import Built, Case, Competitor, Setting
from transformer_lib.attention import attend, causal_mask
from transformer_lib.tiled import tiled_attend

LENGTHS = (128, 256, 512, 1024, 2048)


def cases(setting: Setting) -> Iterator[Case]:
    for T in LENGTHS:
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(1, H, T, K, generator=generator) for _ in range(4)]
        *tensors, gradient = (x.to(setting.device, setting.dtype) for x in made)
        leaves = [x.requires_grad_() for x in tensors]
        shut = ~causal_mask(T, device=setting.device)
        hide = torch.zeros(T, T).to(gradient).masked_fill(shut, -torch.inf)
        ways: dict[str, tuple[Way, str, str]] = {
            "ours": (lambda q, k, v: attend(q, k, v, causal=True), "ours", ""),
            "ours, tiled": (
                lambda q, k, v: tiled_attend(q, k, v, causal=True), "other",
                "written for readability, in PyTorch operations",
            ),
            "the formula": (
                lambda q, k, v, hide=hide: formula(q, k, v, hide), "other", "stores T x T weights"
            ),
        }  # fmt: skip

        def ready(way: Way, leaves: list = leaves, gradient: torch.Tensor = gradient) -> Callable:
            return lambda: Built(run=lambda: both(way, leaves, gradient))

        yield Case(
            suite="growth", name=f"T = {T:,}", work=T, memory=True,
            competitors=[
                Competitor(name=name, make=ready(way), role=role, note=note)
                for name, (way, role, note) in ways.items()
            ],
        )  # fmt: skip
