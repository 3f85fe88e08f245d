"""Shapes, ranges and indices: correct values pass, others are refused by name."""

import math
import sys

import numpy as np
import pytest
import torch

from transformer_lib.shapes import MASK, SIZE, import_extra, require, require_shapes

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
    require_shapes("f", {"D": 8}, x=(torch.zeros(0, 4, 8), "B T D"), mask=(None, "B T"))
    require_shapes("f", x=(torch.zeros(()), ""))
    require_shapes("f", x=(None, "B"), y=(torch.zeros(B), "B"), z=(torch.zeros(B), "B"))
    require_shapes("f", x=(None, "B"))


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
        refused(require_shapes, "layer", {"D": 8}, x=(torch.zeros(2, 3, 5, 8), "B T D"))
        == "layer: x must have shape (B, T, D) with D = 8, got (2, 3, 5, 8)"
    )
    message = refused(require_shapes, "layer", x=(torch.zeros(5, 8), "B T D"))
    assert message == "layer: x must have shape (B, T, D), got (5, 8)"


def test_require_shapes_holds_a_known_size():
    sizes = {"D": 8}
    assert (
        refused(require_shapes, "layer", sizes, x=(torch.zeros(2, 5, 7), "B T D"))
        == "layer: x must have shape (B, T, D) with D = 8, got (2, 5, 7)"
    )
    given = {"x": (torch.zeros(3, 8), "B D"), "y": (torch.zeros(3, 9), "B D")}
    message = refused(require_shapes, "f", sizes, **given)
    assert message == "f: y must have shape (B, D) with D = 8, got (3, 9)"
    assert sizes == {"D": 8}  # what the caller knows is not changed


def test_require_shapes_does_not_take_an_axis_of_size_one_for_another():
    assert "S = 7" in refused(check, value=(torch.zeros(B, H, 1, V), "... S V"))
    assert "... = (2, 3)" in refused(check, key=(torch.zeros(1, H, S, K), "... S K"))


@pytest.mark.parametrize("rule, number", [
    ("in [0, 1)", 0), ("in [0, 1)", 0.999), ("above 0", 5e-324), ("at least 0", 0),
    ("in [0, 1]", 1), ("above 0", 1e308), ("in (-1, 0]", 0.0), ("in [0, 1)", np.float64(0.5)),
    ("in (0, inf]", math.inf),
])  # fmt: skip
def test_require_accepts_numbers_inside(rule, number):
    require("f", x=(number, f"a number {rule}"))


@pytest.mark.parametrize("rule, number", [
    ("in [0, 1)", 1), ("in [0, 1)", -0.1), ("above 0", 0), ("above 0", math.inf),
    ("at least 0", -1), ("in (0, 1]", 0), ("in [0, 1)", math.nan), ("in [0, 1]", True),
    ("in [0, 1]", "0.5"),
    ("in [0, 1]", None), ("in [0, 1]", 1.1), ("above 0", -math.inf), ("in (0, inf]", 0),
])  # fmt: skip
def test_require_refuses_other_numbers(rule, number):
    message = refused(require, "f", fine=(0.5, "a number above 0"), x=(number, f"a number {rule}"))
    assert message == f"f: x must be a number {rule}, got {number!r}"


@pytest.mark.parametrize("number", [1, 4, np.int64(3)])
def test_require_accepts_integers(number):
    require("f", n=(number, "an integer in [1, 4]"))


@pytest.mark.parametrize("number", [0, 5, 2.0, True, "2", None, torch.tensor(2), np.float64(2)])
def test_require_refuses_what_is_no_integer_in_the_interval(number):
    message = refused(require, "f", fine=(2, SIZE), n=(number, "an integer in [1, 4]"))
    assert message == f"f: n must be an integer in [1, 4], got {number!r}"


def test_require_is_exact_beyond_float_precision():
    require("f", n=(2**80, SIZE))
    refused(require, "f", n=(2**53 + 1, "an integer in [0, 9007199254740992]"))


@pytest.mark.parametrize("number", [3, 12])
def test_require_accepts_multiples(number):
    require("f", n=(number, "a multiple of n_heads = 3 above 0"))


@pytest.mark.parametrize("number", [0, 4, -3, 3.0, True])
def test_require_refuses_what_is_no_multiple(number):
    message = refused(require, "f", n=(number, "a multiple of n_heads = 3 above 0"))
    assert message == f"f: n must be a multiple of n_heads = 3 above 0, got {number!r}"


def test_require_accepts_the_values_and_types_of_a_collection():
    require("f", norm=("pre", ("post", "pre")), act=("relu", {"relu": 1}), x=(None, (int, None)))
    require("f", bias=(True, (bool,)), layer=(torch.nn.Linear, (torch.nn.Linear,)))


@pytest.mark.parametrize("value", ["false", 1, None, np.True_])
def test_require_refuses_other_values_and_types(value):
    assert refused(require, "f", fine=(False, (bool,)), bias=(value, (bool,))) == (
        f"f: bias must be one of (<class 'bool'>,), got {value!r}"
    )
    message = refused(require, "f", norm=(value, ("post", "pre")))
    assert message == f"f: norm must be one of ('post', 'pre'), got {value!r}"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_require_shapes_accepts_indices_below_their_limit(dtype):
    require_shapes("f", tokens=(torch.tensor([[0, 9]], dtype=dtype), "B T", int, 10))
    require_shapes("f", tokens=(torch.zeros(2, 0, dtype=dtype), "B T", int, 10))
    require_shapes("f", tokens=(torch.zeros(2, 0, dtype=dtype, device="meta"), "B T", int, 10))


@pytest.mark.parametrize("bad", [-1, 10])
def test_require_shapes_refuses_indices_outside(bad):
    tokens = torch.tensor([4, bad])
    message = refused(require_shapes, "Transformer", tokens=(tokens, "T", int, 10))
    low, high = sorted([4, bad])
    assert message == f"Transformer: tokens must lie in [0, 10), got {low} to {high}"


@pytest.mark.parametrize("kind, dtype, words", [
    (int, torch.float32, "int32 or int64"), (int, torch.bool, "int32 or int64"),
    (int, torch.int8, "int32 or int64"), (bool, torch.uint8, "boolean"),
    (bool, torch.float32, "boolean"), (float, torch.bool, "floating-point"),
    (float, torch.complex64, "floating-point"), (float, torch.int64, "floating-point"),
])  # fmt: skip
def test_require_shapes_refuses_other_kinds(kind, dtype, words):
    for autocast in (False, True):  # which does not make a number of a boolean
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            message = refused(require_shapes, "f", x=(torch.zeros(3, dtype=dtype), "T", kind))
        assert message == f"f: x must be {words} on cpu, got {dtype} on cpu"


@pytest.mark.plain
def test_require_shapes_does_not_break_a_compiled_graph():
    def look_up(tokens, x, mask):
        require_shapes("f", tokens=(tokens, "B T", int, 10), x=(x, "B T K", float))
        require_shapes("f", {"S": 3}, x=(x, "... T K"), mask=(mask, MASK, bool))
        require("f", dropout=(0.5, "a number in [0, 1)"), n=(x.shape[0], SIZE))
        return tokens + 1

    compiled = torch.compile(look_up, backend="eager", fullgraph=True, dynamic=True)
    for n in (2, 3):
        mask = torch.ones(n, 3, dtype=torch.bool)
        assert compiled(torch.full((n, n), 3), torch.zeros(n, n, 5), mask).sum() == 4 * n * n


def test_import_extra_returns_the_module():
    assert import_extra("html.entities") is sys.modules["html.entities"]


def test_import_extra_says_how_to_install_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(ImportError) as refusal:
        import_extra("seaborn")
    message = str(refusal.value)
    assert message.startswith("seaborn is part of the extra 'chapters': pip install \"executable-")
    assert "-transformer[chapters] @ git+https://github.com/" in message
    with pytest.raises(ImportError) as refusal:
        import_extra("seaborn", "other")
    message = str(refusal.value)
    assert message.startswith("seaborn is part of the extra 'other': pip install \"executable-")
    assert "-transformer[other] @ git+https://github.com/" in message


def test_require_shapes_accepts_one_dtype_on_one_device():
    require_shapes("f", x=(query, "... T K"), key=(key, "... S K"), value=(None, "... S V"))
    require_shapes("f", x=(query.to("meta"), "... T K"), key=(key.to("meta"), "... S K"))


def test_require_shapes_refuses_a_mask_or_index_on_another_device():
    for dtype, kind in ((torch.bool, bool), (torch.int64, int)):
        other = torch.zeros(B, dtype=dtype, device="meta")
        message = refused(require_shapes, "f", x=(torch.zeros(B), "B"), y=(other, "B", kind))
        assert message.endswith(f" on cpu, got {dtype} on meta")


def test_require_shapes_names_the_first_of_another_dtype_or_device():
    for x in (key.double(), key.long(), key.to("meta"), key.double().to("meta")):
        assert refused(check, key=(x, "... S K")) == (
            f"attend: key must be torch.float32 on cpu, got {x.dtype} on {x.device}"
        )
    given = {"x": (query.to("meta"), "... T K"), "y": (key.to("meta").double(), "... S K")}
    message = refused(require_shapes, "f", **given)
    assert message == "f: y must be torch.float32 on meta, got torch.float64 on meta"


def test_require_shapes_lets_autocast_cast_floating_point_numbers_alone():
    with torch.autocast("cpu", torch.bfloat16):
        check(key=(key.bfloat16(), "... S K"))
        assert "must be torch.float32" in refused(check, key=(key.long(), "... S K"))
        assert "on meta" in refused(check, key=(key.to("meta"), "... S K"))
        meta = {"x": (query.to("meta"), "... T K"), "y": (key.to("meta").double(), "... S K")}
        assert "got torch.float64 on meta" in refused(require_shapes, "f", **meta)


def fit(scores, mask, kind=bool):
    require_shapes("f", {"S": S}, query=(scores, "... T K"), mask=(mask, MASK, kind))


def test_require_shapes_accepts_masks_with_each_axis_of_its_size_or_one_but_the_last():
    for shape in ((T, S), (B, H, T, S), (1, H, T, S), (B, 1, T, S), (B, H, 1, S), (1, 1, 1, S)):
        fit(query, torch.ones(shape).bool())
        fit(query, torch.ones(shape), float)
    fit(query, None)


def test_require_shapes_refuses_masks_of_other_shapes():
    pair, full = "(T, S)", f"(..., T, S) with ... = {(B, H)}"
    for shape, said in {
        (S,): f"{pair} with T = {T}",
        (1, S): f"{pair} with T = {T}", (T, 1): f"{pair} with S = {S}",
        (H, T, S): full, (B, H, T, 1): f"(..., T, S) with S = {S}", (B, 2, T, S): full,
        (1, B, H, T, S): full, (1, 1, 1, T, S): full, (S, T): f"{pair} with T = {T}, S = {S}",
    }.items():  # fmt: skip
        message = refused(fit, query, torch.ones(shape).bool())
        assert message == f"f: mask must have shape {said}, got {shape}"
    assert "must have shape" in refused(fit, torch.zeros(S, S, S, K), torch.ones(1, 1, S).bool())


def test_require_shapes_lets_marked_letters_be_one():
    given = {"x": (torch.zeros(B, T), "B T"), "y": (torch.zeros(1, T), "#B T")}
    require_shapes("f", **given)
    wrong = (torch.zeros(B + 1, T), "#B T")
    assert refused(require_shapes, "f", **given | {"y": wrong}) == (
        f"f: y must have shape (B, T) with B = {B}, got {(B + 1, T)}"
    )
    assert "T = 5" in refused(require_shapes, "f", **given | {"y": (torch.zeros(B, 1), "#B T")})


def test_require_shapes_broadcasts_as_pytorch_does_where_only_axes_are_asked_for():
    for shape in ((T, S), (S,), (1,), (), (B, 1, S), (1, T, 1)):
        require_shapes("f", x=(torch.zeros(B, T, S), "..."), y=(torch.zeros(shape), "#..."))
    for shape in ((S, T), (B, T), (1, B, T, S), (T,), (B, T, 0)):
        given = {"x": (torch.zeros(B, T, S), "..."), "y": (torch.zeros(shape), "#...")}
        assert f"... = {(B, T, S)}, got {shape}" in refused(require_shapes, "f", **given)


def test_require_shapes_checks_type_and_rank_before_values():
    message = refused(require_shapes, "f", tokens=(torch.full((2, 2), 7.0), "B T", int, 5))
    assert message == "f: tokens must be int32 or int64 on cpu, got torch.float32 on cpu"
    message = refused(require_shapes, "f", tokens=(torch.full((2,), 7), "B T", int, 5))
    assert message == "f: tokens must have shape (B, T), got (2,)"


def test_require_shapes_refuses_more_axes_than_letters():
    message = refused(require_shapes, "f", x=(torch.zeros(2, 3, 4), "B T"))
    assert message == "f: x must have shape (B, T), got (2, 3, 4)"
