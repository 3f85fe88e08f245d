"""Attention on queries, keys and values of several heads: forward, and forward with backward.

All implementations must give the same output.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Built, Case, Competitor, Setting
from transformer_lib.attention import attend, causal_mask, padding_mask

B, H, K = 4, 8, 64
LENGTHS = (128, 512, 2048)
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def formula(q: Tensor, k: Tensor, v: Tensor, hide: Tensor) -> Tensor:
    """Equation 1 of the paper, written for speed."""
    return (q * K**-0.5 @ k.mT + hide).softmax(dim=-1) @ v


def by_x_transformers(causal: bool, mask: Tensor | None) -> Way:
    from x_transformers.attend import Attend

    theirs = Attend(causal=causal, flash=True)
    return lambda q, k, v: theirs(q, k, v, mask=mask)[0]


def ways(T: int, padded: bool, setting: Setting) -> dict[str, tuple[Callable[[], Way], str, str]]:
    """Name -> (its constructor, its role, a note): causal, or with padding at the end of rows."""
    visible, causal = causal_mask(T, device=setting.device), not padded
    if padded:
        visible = padding_mask(torch.tensor([T, 3 * T // 4, T // 2, T // 4])).to(setting.device)
    zero = torch.zeros(visible.shape, device=setting.device, dtype=setting.dtype)
    hide = zero.masked_fill(~visible, -torch.inf)
    fused = F.scaled_dot_product_attention
    given: dict[str, Way] = {
        "ours": lambda q, k, v: attend(q, k, v, visible if padded else None, causal=causal),
        "torch SDPA": lambda q, k, v: fused(
            q, k, v, attn_mask=visible if padded else None, is_causal=causal
        ),
    }
    if T < max(LENGTHS):  # the suite on growth measures longer ones
        given["the formula"] = lambda q, k, v: formula(q, k, v, hide)
    found = {name: (lambda way=way: way, "peer", "") for name, way in given.items()}
    found["ours"] = (found["ours"][0], "ours", "")
    make = lambda: by_x_transformers(causal, visible if padded else None)  # noqa: E731
    found["x-transformers, flash"] = (make, "peer", "")
    if T == LENGTHS[1] and setting.device == "cpu" and not setting.compile:
        quick = lambda: torch.compile(lambda q, k, v: formula(q, k, v, hide))  # noqa: E731
        found["the formula, compiled"] = (quick, "peer", "")
    if causal and T < max(LENGTHS):
        note = "receives the causal mask as a tensor, so it cannot skip masked blocks"
        masked = lambda: lambda q, k, v: fused(q, k, v, attn_mask=visible)  # noqa: E731
        found["torch SDPA, a mask"] = (masked, "other", note)
    return found


def forward(way: Way, tensors: list[Tensor], gradient: Tensor) -> None:
    with torch.no_grad():
        way(*tensors)


def both(way: Way, tensors: list[Tensor], gradient: Tensor) -> None:
    torch.autograd.grad(way(*tensors), tensors, gradient)


def cases(setting: Setting) -> Iterator[Case]:
    half = setting.dtype != torch.float32
    near = {"rtol": 2e-2, "atol": 2e-2} if half else {"rtol": 1e-4, "atol": 1e-5}
    for T in LENGTHS:
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(B, H, T, K, generator=generator) for _ in range(4)]
        *tensors, gradient = (x.to(setting.device, setting.dtype) for x in made)
        for padded in (False, True):
            reference = ways(T, padded, setting)["ours"][0]()
            for passes, run in (("forward", forward), ("forward and backward", both)):

                def competitor(
                    name: str, make: Callable[[], Way], role: str, note: str,
                    run: Callable = run, tensors: list = tensors, gradient: Tensor = gradient,
                    reference: Way = reference,
                ) -> Competitor:  # fmt: skip
                    def ready() -> Built:
                        way = make()
                        with torch.no_grad():
                            torch.testing.assert_close(way(*tensors), reference(*tensors), **near)
                        leaves = [x.clone().requires_grad_() for x in tensors]
                        return Built(run=lambda: run(way, leaves, gradient))

                    return Competitor(name=name, make=ready, role=role, note=note)

                rest = ways(T, padded, setting).items()
                yield Case(
                    suite="attention core", work=B * T, memory=True,
                    name=f"{'padded' if padded else 'causal'}, T = {T:,}, {passes}",
                    competitors=[competitor(name, *one) for name, one in rest],
                )  # fmt: skip
