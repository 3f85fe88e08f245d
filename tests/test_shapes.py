"""Shapes, ranges and indices: correct values pass, others are refused by name."""

import math
import sys

import numpy as np
import pytest
import torch

from transformer_lib.shapes import (
    import_extra,
    require_indices,
    require_integers,
    require_mask,
    require_range,
    require_same_type,
    require_shapes,
)

B, H, T, S, K, V = 2, 3, 5, 7, 11, 13
query, key, value = torch.zeros(B, H, T, K), torch.zeros(B, H, S, K), torch.zeros(B, H, S, V)
pytestmark = pytest.mark.bad_input


def check(**changes):
    given = {"query": (query, "... T K"), "key": (key, "... S K"), "value": (value, "... S V")}
    require_shapes("attend", **given | changes)


def refused(function, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_require_shapes_accepts_what_fits():
    check()
    require_shapes("f", x=(torch.zeros(T, K), "... T K"), y=(torch.zeros(S, K), "... S K"))
    require_shapes("f", x=(torch.zeros(0, 4, 8), "B T D=8"), mask=(None, "B T"))
    require_shapes("f", x=(torch.zeros(()), ""))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"key": (torch.zeros(B, H, S, K + 1), "... S K")},
            "attend: key must have shape (..., S, K) with K = 11, got (2, 3, 7, 12)",
        ),
        (
            {"key": (torch.zeros(B, S, K), "... S K")},
            "attend: key must have shape (..., S, K) with ... = (2, 3), got (2, 7, 11)",
        ),
        (
            {"value": (torch.zeros(B, H, S + 1, V), "... S V")},
            "attend: value must have shape (..., S, V) with S = 7, got (2, 3, 8, 13)",
        ),
        (
            {"value": (torch.zeros(V), "... S V")},
            "attend: value must have shape (..., S, V) with ... = (2, 3), S = 7, got (13,)",
        ),
    ],
)
def test_require_shapes_names_the_first_that_differs(changes, message):
    assert refused(check, **changes) == message


def test_require_shapes_without_leading_axes_counts_the_axes():
    assert (
        refused(require_shapes, "layer", x=(torch.zeros(2, 3, 5, 8), "B T D=8"))
        == "layer: x must have shape (B, T, D) with D = 8, got (2, 3, 5, 8)"
    )
    assert "got (5, 8)" in refused(require_shapes, "layer", x=(torch.zeros(5, 8), "B T D=8"))


def test_require_shapes_holds_a_fixed_size():
    assert (
        refused(require_shapes, "layer", x=(torch.zeros(2, 5, 7), "B T D=8"))
        == "layer: x must have shape (B, T, D) with D = 8, got (2, 5, 7)"
    )
    # what the first tensor fixed holds for the second, too
    message = refused(
        require_shapes, "f", x=(torch.zeros(3, 8), "B D=8"), y=(torch.zeros(3, 9), "B D")
    )
    assert message == "f: y must have shape (B, D) with D = 8, got (3, 9)"


def test_require_shapes_does_not_take_an_axis_of_size_one_for_another():
    assert "S = 7" in refused(check, value=(torch.zeros(B, H, 1, V), "... S V"))
    assert "... = (2, 3)" in refused(check, key=(torch.zeros(1, H, S, K), "... S K"))


@pytest.mark.parametrize("interval, number", [
    ("[0, 1)", 0), ("[0, 1)", 0.999), ("(0, inf)", 5e-324), ("(0, inf)", 1e308), ("[0, 1]", 1),
    ("(-1, 0]", 0.0), ("[0, 1)", np.float64(0.5)),
])  # fmt: skip
def test_require_range_accepts_what_lies_inside(interval, number):
    require_range("f", interval, x=number)


@pytest.mark.parametrize("interval, number, words", [
    ("[0, 1)", 1, "in [0, 1)"), ("[0, 1)", -0.1, "in [0, 1)"), ("(0, inf)", 0, "above 0"),
    ("(0, inf)", math.inf, "above 0"), ("[0, inf)", -1, "at least 0"), ("(0, 1]", 0, "in (0, 1]"),
    ("[0, 1)", math.nan, "in [0, 1)"), ("[0, 1]", True, "in [0, 1]"),
    ("[0, 1]", "0.5", "in [0, 1]"), ("[0, 1]", None, "in [0, 1]"), ("[0, 1]", 1.1, "in [0, 1]"),
])  # fmt: skip
def test_require_range_refuses_the_rest(interval, number, words):
    message = refused(require_range, "f", interval, fine=0.5, x=number)
    assert message == f"f: x must be a number {words}, got {number!r}"


@pytest.mark.parametrize("number", [1, 4, np.int64(3)])
def test_require_integers_accepts_integers(number):
    require_integers("f", "[1, 4]", n=number)


@pytest.mark.parametrize("number", [0, 5, 2.0, True, "2", None, torch.tensor(2), np.float64(2)])
def test_require_integers_refuses_the_rest(number):
    message = refused(require_integers, "f", "[1, 4]", fine=2, n=number)
    assert message == f"f: n must be an integer in [1, 4], got {number!r}"


def test_require_integers_is_exact_beyond_float_precision():
    require_integers("f", "[1, inf)", n=2**80)
    refused(require_integers, "f", "[0, 9007199254740992]", n=2**53 + 1)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_require_indices_accepts_indices(dtype):
    require_indices("f", 10, tokens=torch.tensor([[0, 9]], dtype=dtype))
    require_indices("f", 10, tokens=torch.zeros(2, 0, dtype=dtype))


@pytest.mark.parametrize("bad", [-1, 10])
def test_require_indices_refuses_what_lies_outside(bad):
    message = refused(require_indices, "Transformer", 10, tokens=torch.tensor([4, bad]))
    low, high = sorted([4, bad])
    assert message == f"Transformer: tokens must lie between 0 and 9, got {low} to {high}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int8])
def test_require_indices_refuses_other_types(dtype):
    message = refused(require_indices, "f", 10, tokens=torch.zeros(3, dtype=dtype))
    assert message == f"f: tokens must be int32 or int64 of shape (...), got {dtype} of shape (3,)"


@pytest.mark.plain
def test_require_indices_does_not_break_a_compiled_graph():
    def look_up(tokens):
        require_indices("f", 10, tokens=tokens)
        return tokens + 1

    compiled = torch.compile(look_up, backend="eager", fullgraph=True)
    assert compiled(torch.tensor([3])).item() == 4


def test_import_extra_returns_the_module():
    assert import_extra("html.entities") is sys.modules["html.entities"]


def test_import_extra_says_how_to_install_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(ImportError) as refusal:
        import_extra("seaborn")
    message = str(refusal.value)
    assert message.startswith("seaborn is part of the extra 'chapters': pip install \"executable-")
    assert "-transformer[chapters] @ git+https://github.com/" in message


def test_require_same_type_accepts_what_matches_and_skips_none():
    require_same_type("f", query, key=key, value=None)
    require_same_type("f", query.to("meta"), key=key.to("meta"))


def test_require_same_type_names_the_first_that_differs():
    for x, must, got in (
        (key.double(), "torch.float32", "torch.float64"),
        (key.long(), "torch.float32", "torch.int64"),
        (key.to("meta"), "on cpu", "meta"),
        (key.double().to("meta"), "on cpu", "meta"),
    ):
        message = refused(require_same_type, "attend", query, value=value, key=x)
        assert message == f"attend: key must be {must}, got {got}"
    message = refused(require_same_type, "f", query.to("meta"), key=key.to("meta").double())
    assert message == "f: key must be torch.float32, got torch.float64"


def test_require_same_type_lets_autocast_cast_floating_point_numbers_alone():
    with torch.autocast("cpu", torch.bfloat16):
        require_same_type("f", query, key=key.bfloat16())
        assert "must be torch.float32" in refused(require_same_type, "f", query, key=key.long())
        assert "must be on cpu" in refused(require_same_type, "f", query, key=key.to("meta"))


def test_require_mask_accepts_each_axis_of_its_size_or_one_but_the_last():
    for shape in ((T, S), (B, H, T, S), (1, H, T, S), (B, 1, T, S), (B, H, 1, S), (1, 1, 1, S)):
        ones = torch.ones(shape)
        require_mask("f", query, S, ones.bool(), ones)
    require_mask("f", query, S, None)


def test_require_mask_refuses_other_shapes_dtypes_and_devices():
    wrong = [(S,), (T, 1), (1, S), (H, T, S), (B, H, T, 1), (B, 2, T, S), (1, B, H, T, S), (S, T)]
    for shape in wrong:
        ones = torch.ones(shape)
        for name, given in (("mask", (ones.bool(), None)), ("bias", (None, ones))):
            assert refused(require_mask, "attend", query, S, *given) == (
                f"attend: {name} must have shape {(T, S)}, or that of the scores {(B, H, T, S)} "
                f"with any axis but the last of size 1, got {shape}"
            )
    good = torch.ones(T, S)
    message = refused(require_mask, "f", query, S, good)
    assert message == "f: mask must be boolean, True = may attend, got torch.float32"
    message = refused(require_mask, "f", query, S, None, good.bool())
    assert message == "f: bias must be floating-point, got torch.bool"
    for given in ((good.bool().to("meta"), None), (None, good.to("meta"))):
        assert "must be on cpu, got meta" in refused(require_mask, "f", query, S, *given)


def test_require_indices_checks_type_and_rank_before_values():
    for x, got in ((torch.zeros(2, 2), "torch.float32"), (torch.zeros(2).long(), "torch.int64")):
        message = refused(require_indices, "f", 5, "B T", tokens=x)
        assert message == (
            f"f: tokens must be int32 or int64 of shape (B, T), got {got} of shape {tuple(x.shape)}"
        )


def test_require_shapes_refuses_more_axes_than_letters():
    message = refused(require_shapes, "f", x=(torch.zeros(2, 3, 4), "B T"))
    assert message == "f: x must have shape (B, T), got (2, 3, 4)"


def test_require_mask_refuses_fewer_axes_even_where_their_sizes_would_fit():
    message = refused(require_mask, "f", torch.zeros(3, 3, 3, 5), 3, torch.ones(1, 1, 3).bool())
    assert message.startswith("f: mask must have shape (3, 3), or that of the scores (3, 3, 3, 3)")
