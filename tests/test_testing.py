"""The conformance kit: correct candidates pass, and each wrong one fails its property."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wrong_attentions import (
    WRONG_FUNCTIONS,
    WRONG_MODELS,
    WRONG_MODULES,
    Cache,
    Continuer,
    D,
    Heads,
    Positioned,
    Translator,
    V,
    decode_in_pieces,
    explicit,
    looped,
)

from transformer_lib.hub import FAMILIES
from transformer_lib.testing import (
    Report,
    Result,
    call_torch_module,
    call_with_mask,
    check_attention,
    check_model,
    published_difference,
)

POSITIONS = {"order": "it has positions", "cross-attention": "its positions are one sequence's"}
DRAWN = [0, 1]  # of seeds 0 to 19, none made a right attention fail (80 examinations)


def failed(report):
    return [bad.property for bad in report.failures]


def applied(report):
    return {result.property for result in report if result.verdict != "n.a."}


def examine(kind, seed=0):
    torch.manual_seed(seed)
    skip = POSITIONS if issubclass(kind, Positioned) else None
    return check_attention(kind(), d_model=D, make_cache=Cache, skip=skip, seed=seed)


def translate(fault="", **options):
    torch.manual_seed(0)
    return check_model(Translator(fault), vocab_size=V, cached=decode_in_pieces, **options)


# what is right passes


@pytest.mark.parametrize("seed", DRAWN)
@pytest.mark.parametrize("right", [explicit, looped])
def test_check_attention_passes_a_correct_function(right, seed):
    report = check_attention(right, seed=seed)
    report.raise_if_failed()
    absent = {"cache equals no cache", "same in training and evaluation"}
    assert {r.property for r in report} - applied(report) == absent and len(applied(report)) == 21


def test_check_attention_passes_the_function_of_torch_with_an_adapter():
    check_attention(F.scaled_dot_product_attention, adapter=call_with_mask).raise_if_failed()


def test_check_attention_finds_that_is_causal_of_torch_aligns_the_first_positions():
    def trusting(candidate, query, key, value, mask, causal):
        if mask is not None:
            return call_with_mask(candidate, query, key, value, mask, causal)
        return candidate(query, key, value, is_causal=causal)

    report = check_attention(F.scaled_dot_product_attention, adapter=trusting)
    assert failed(report) == ["last query sees last key"]


@pytest.mark.parametrize("seed", DRAWN)
@pytest.mark.parametrize("kind", [Heads, Positioned])
def test_check_attention_passes_a_correct_module_and_its_cache(kind, seed):
    report = examine(kind, seed)
    report.raise_if_failed()
    assert "cache equals no cache" in applied(report)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_check_attention_passes_the_module_of_torch_with_its_adapter(dropout):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(D, 3, dropout=dropout, batch_first=True)
    check_attention(module, d_model=D, adapter=call_torch_module).raise_if_failed()


def test_check_attention_finds_nan_of_the_module_of_torch_unless_declared():
    """pytorch issue 160064: the path that returns weights has another semantics."""

    def asking(module, query, key, value, mask, causal):
        def call(*inputs, need_weights, **options):
            return module(*inputs, need_weights=True, **options)

        call.num_heads, call.batch_first = module.num_heads, True
        return call_torch_module(call, query, key, value, mask, causal)

    torch.manual_seed(0)
    module = nn.MultiheadAttention(D, 3, batch_first=True)
    found = check_attention(module, d_model=D, adapter=asking)
    assert failed(found) == ["empty rows are silent", "empty rows have finite gradients"]
    skip = dict.fromkeys(failed(found), "pytorch issue 160064")
    declared = check_attention(module, d_model=D, adapter=asking, skip=skip)
    assert declared.passed and "pytorch issue 160064" in str(declared)


def test_check_attention_passes_a_module_that_stores_or_returns_weights():
    class Storing(Heads):
        def forward(self, *inputs, **options):
            self.output = super().forward(*inputs, **options)
            return self.output, "weights"

    torch.manual_seed(0)
    module = Storing()
    module(torch.ones(1, 2, D))
    check_attention(module, d_model=D).raise_if_failed()


def test_check_attention_passes_a_module_declared_as_self_attention_only():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.norm = Heads(), nn.LayerNorm(D)

        def forward(self, x, mask=None, *, causal=False):
            return self.norm(x + self.heads(x, mask=mask, causal=causal))

    torch.manual_seed(0)
    skip = {"cross-attention": "a layer has none"}
    report = check_attention(Layer(), d_model=D, skip=skip)
    report.raise_if_failed()
    assert "last query sees last key" not in applied(report) and len(applied(report)) > 12
    assert "last query sees last key" in failed(check_attention(Layer(), d_model=D))


@pytest.mark.parametrize("seed", DRAWN)
def test_check_model_passes_correct_models(seed):
    translate(seed=seed).raise_if_failed()
    torch.manual_seed(seed)
    check_model(Continuer(), vocab_size=V, decoder_only=True, seed=seed).raise_if_failed()


# what is wrong is caught


@pytest.mark.parametrize("fault", WRONG_FUNCTIONS)
def test_check_attention_finds_each_fault_of_a_function_by_its_property(fault):
    candidate, name = WRONG_FUNCTIONS[fault]
    assert name in failed(check_attention(candidate))


@pytest.mark.parametrize("fault", WRONG_MODULES)
def test_check_attention_finds_each_fault_of_a_module_by_its_property(fault):
    kind, name = WRONG_MODULES[fault]
    assert name in failed(examine(kind))


@pytest.mark.parametrize("fault", WRONG_MODELS)
def test_check_model_finds_each_fault_by_its_property(fault):
    assert WRONG_MODELS[fault] in failed(translate(fault))


def test_check_model_finds_a_wrong_decoder_only_model():
    torch.manual_seed(0)
    report = check_model(Continuer("no causal mask"), vocab_size=V, decoder_only=True)
    assert failed(report) == ["causality by perturbation"]


@pytest.mark.parametrize(
    "fault, alone",
    [
        ("no scale", "agrees with torch"),
        ("-1e9 in half precision", "works in float16"),
        ("uniform on empty rows", "empty rows are silent"),
        ("nan on the way back", "empty rows have finite gradients"),
        ("writes into the mask", "inputs stay unchanged"),
    ],
)
def test_check_attention_finds_some_faults_by_one_property_alone(fault, alone):
    assert failed(check_attention(WRONG_FUNCTIONS[fault][0])) == [alone]


def test_check_attention_locates_a_leak_in_one_head_of_one_row():
    def leaky(query, key, value, mask=None, *, causal=False):
        out = explicit(query, key, value, mask, causal=causal).clone()
        if causal and out.shape[:3] == (2, 3, 7):
            out[1, 2, 3] = out[1, 2, 3] + value[1, 2, 5]
        return out

    found = {bad.property: bad.where for bad in check_attention(leaky).failures}
    assert found["causality by perturbation"].startswith("batch 1, head 2, query 3, feature ")
    assert found["causality by gradient"] == "batch 1, query 3, key 5"


# limits: a fault just beyond one fails, a fault just within passes


def nudged(nudge):
    """A right function on heads, off by `size` times what `nudge` makes of its arguments."""

    def make(size):
        def attention(query, key, value, mask=None, *, causal=False):
            out = explicit(query, key, value, mask, causal=causal)
            return out + size * nudge(out, key, value, causal)

        return attention

    return make


def writing(size):
    def attention(query, key, value, mask=None, *, causal=False):
        out = explicit(query, key, value, mask, causal=causal)
        value.data.add_(size)
        return out

    return attention


def everything(out, key, value, causal):
    return value.sum(-2, keepdim=True).tanh()


def constant(out, key, value, causal):
    return torch.ones_like(out)


def in_dtype(dtype):
    return lambda out, *_: torch.full_like(out, float(out.dtype == dtype))


FUNCTION_LIMITS = {
    "causality by perturbation": (1e-5, nudged(everything)),
    "padding does not matter": (1e-5, nudged(everything)),
    "weights sum to one": (1e-5, nudged(constant)),
    "empty rows are silent": (1e-6, nudged(constant)),
    "order of queries": (
        1e-5,
        nudged(lambda out, *_: torch.linspace(0, 1, out.shape[-2])[:, None].to(out)),
    ),
    "order of keys": (1e-5, nudged(lambda out, key, value, _: value[..., 1:2, :].tanh())),
    "batch independence": (1e-5, nudged(lambda out, key, value, _: out.mean(0, keepdim=True))),
    "head independence": (1e-5, nudged(lambda out, key, value, _: out.mean(1, keepdim=True))),
    "works in float16": (8 * 2**-10, nudged(in_dtype(torch.float16))),
    "works in bfloat16": (8 * 2**-7, nudged(in_dtype(torch.bfloat16))),
    "works in float32": (8 * 2**-23, nudged(in_dtype(torch.float32))),
    "agrees with torch": (1e-9, nudged(lambda out, *_: out)),
}


class Off(Heads):
    """Right but for `size`, in training or where there is a cache."""

    def __init__(self, size, where):
        super().__init__()
        self.size, self.where = size, where

    def forward(self, *inputs, cache=None, **options):
        out = super().forward(*inputs, cache=cache, **options)
        off = self.training if self.where == "training" else cache is not None
        return out + self.size * off


def off(where):
    def make(size):
        torch.manual_seed(0)
        return Off(size, where)

    return make


MODULE_LIMITS = {
    "cache equals no cache": (1e-5, off("cache")),
    "same in training and evaluation": (1e-5, off("training")),
}


def ramp(tokens):
    """One-hot tokens, each times a number of its position."""
    return F.one_hot(tokens, V) * torch.arange(1.0, 1 + tokens.shape[1])[:, None]


def timid(size):
    """A model that all tokens move, in their order, but only by `size`."""

    def model(source, target, source_mask=None):
        read = (ramp(source) / 5).sum(1, keepdim=True)
        return size * (ramp(target).cumsum(1) + read)

    return model


def sure_of_one_token(size):
    return lambda source, target, source_mask=None: size * F.one_hot(target * 0, V)


def sure_of_the_answer(size):
    return lambda source, target, source_mask=None: size * F.one_hot(target.roll(-1, 1), V)


def leaking(what):
    def make(size):
        def model(source, target, source_mask=None):
            leak = what(source, target).tanh()
            return ramp(target).cumsum(1) / 10 + size * leak

        return model

    return make


class Offset(Translator):
    """Right but for `size`, in training or where it decodes in pieces."""

    def __init__(self, size, where):
        super().__init__()
        self.size, self.where = size, where

    def forward(self, source, target, *, source_mask=None):
        off = self.training and self.where == "training"
        return super().forward(source, target, source_mask=source_mask) + self.size * off


def offset(where):
    def make(size):
        torch.manual_seed(0)
        return Offset(size, where)

    return make


MODEL_LIMITS = {
    "causality by perturbation": (1e-5, leaking(lambda s, t: ramp(t).sum(1, keepdim=True) / 99)),
    "padding does not matter": (1e-5, leaking(lambda s, t: ramp(s).sum(1, keepdim=True) / 99)),
    "batch independence": (
        1e-5,
        leaking(lambda s, t: ramp(t).mean((0, 1), keepdim=True).expand(len(t), t.shape[1], V)),
    ),
    "cache equals no cache": (1e-5, offset("cache")),
    "same in training and evaluation": (1e-5, offset("training")),
    "the past matters": (-1e-5, timid),
    "every source token matters": (-1e-5, timid),
    "order matters": (-1e-5, timid),
    "initial loss near ln V": (1.5, sure_of_one_token),
    "initial loss not below ln V": (0.2, sure_of_the_answer),
}


def pieces_off(model, source, source_mask, pieces):
    return [x + model.size for x in decode_in_pieces(model, source, source_mask, pieces)]


@functools.cache
def properties(kind):
    report = check_attention(explicit) if kind == "attention" else translate()
    return {result.property for result in report} - {"accepts the call"}


def ask_attention(candidate, name, **options):
    skip = dict.fromkeys(properties("attention") - {name}, "not asked")
    report = check_attention(candidate, skip=skip, **options)
    return next(r for r in report if r.property == name)


def ask_model(candidate, name):
    cached = pieces_off if isinstance(candidate, Offset) else None
    skip = dict.fromkeys(properties("model") - {name}, "not asked")
    report = check_model(candidate, vocab_size=V, cached=cached, skip=skip)
    return next(r for r in report if r.property == name)


def at(worst, ask, make):
    """Scale a fault until the kit measures a deviation of `worst`, give or take a tenth."""
    size = worst
    for _ in range(40):
        result = ask(make(size))
        if 0.9 * worst < result.worst < 1.1 * worst:
            return result
        size *= math.sqrt(worst / result.worst) if result.worst else 10.0
    raise AssertionError(f"no fault of {worst}, but of {result.worst} at size {size}")


@pytest.mark.parametrize("name", FUNCTION_LIMITS)
def test_check_attention_fails_functions_just_beyond_a_limit(name):
    limit, make = FUNCTION_LIMITS[name]
    for factor, verdict in ((1.25, "FAIL"), (0.8, "pass")):
        result = at(factor * limit, lambda candidate: ask_attention(candidate, name), make)
        assert result.verdict == verdict, result


@pytest.mark.parametrize("name", MODULE_LIMITS)
def test_check_attention_fails_modules_just_beyond_a_limit(name):
    limit, make = MODULE_LIMITS[name]
    options = {"d_model": D, "make_cache": Cache}
    for factor, verdict in ((1.25, "FAIL"), (0.8, "pass")):
        result = at(factor * limit, lambda c: ask_attention(c, name, **options), make)
        assert result.verdict == verdict, result


@pytest.mark.parametrize("name", MODEL_LIMITS)
def test_check_model_fails_models_just_beyond_a_limit(name):
    limit, make = MODEL_LIMITS[name]
    beyond = (0.8, 1.25) if limit < 0 else (1.25, 0.8)  # below 0: so much must move at least
    for factor, verdict in zip(beyond, ("FAIL", "pass"), strict=True):
        result = at(factor * abs(limit), lambda candidate: ask_model(candidate, name), make)
        assert result.verdict == verdict, result


def from_later_keys(out, key, value, causal):
    return value.sum(-2, keepdim=True) * causal


def from_every_key(out, key, value, causal):
    return value.sum(-2, keepdim=True)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("causality by gradient", nudged(from_later_keys)),
        ("last query sees last key", nudged(from_later_keys)),
        ("True means may attend", nudged(from_every_key)),
        ("inputs stay unchanged", writing),
    ],
)
def test_check_attention_allows_no_deviation_where_the_limit_is_zero(name, make):
    result = ask_attention(make(1e-6), name)
    assert result.verdict == "FAIL" and 0 < result.worst < 1e-4


# the examination itself


def test_check_attention_continues_after_a_candidate_that_raises():
    def half_shy(query, key, value, mask=None, *, causal=False):
        if query.dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'\nsecond line")
        return explicit(query, key, value, mask, causal=causal)

    report = check_attention(half_shy)
    assert failed(report) == ["works in float16"]
    assert report.failures[0].where == "RuntimeError: not implemented for 'Half'"
    assert report.failures[0].worst == math.inf


def test_check_attention_stops_at_a_failed_call_and_names_the_adapter():
    report = check_attention(F.scaled_dot_product_attention)
    assert failed(report) == ["accepts the call"] and not report.passed
    assert "causal" in report.failures[0].where and "call_with_mask" in report.failures[0].hint
    assert {r.where for r in report if r.verdict == "n.a."} == {"not asked: the call failed"}


def test_check_attention_refuses_an_output_of_another_shape_with_both_shapes():
    report = check_attention(lambda q, k, v, mask=None, causal=False: v)
    assert "must have shape (2, 3, 5, 13), got (2, 3, 7, 13)" in report.failures[0].where
    report = check_model(lambda tokens: torch.zeros(2, 5, 3), vocab_size=V, decoder_only=True)
    assert "must have shape (2, 5, 23), got (2, 5, 3)" in report.failures[0].where


def test_check_attention_fails_nan():
    report = check_attention(lambda q, k, v, mask=None, causal=False: explicit(q, k, v) * math.nan)
    assert failed(report) == ["accepts the call"]


def test_checks_leave_candidate_mode_gradients_and_random_state_unchanged():
    torch.manual_seed(0)
    module, state = Heads(dropout=0.5).train(), torch.get_rng_state()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    check_attention(module, d_model=D, make_cache=Cache).raise_if_failed()
    assert module.training and module.dropout == 0.5
    assert all(p.grad is None and p.dtype == torch.float32 for p in module.parameters())
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    model = Translator().train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    torch.set_rng_state(state)
    check_model(model, vocab_size=V).raise_if_failed()
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_check_attention_gives_the_same_report_twice():
    assert repr(examine(Heads)) == repr(examine(Heads))


def test_check_model_does_not_ask_for_an_absent_cache_or_source():
    torch.manual_seed(0)
    report = check_model(Continuer(), vocab_size=V, decoder_only=True)
    missing = {r.property: r.where for r in report if r.verdict == "n.a."}
    assert missing == {
        "padding does not matter": "reads no source",
        "every source token matters": "reads no source",
        "cache equals no cache": "no cached= given",
    }


def test_check_model_decodes_with_the_methods_of_a_model():
    class WithCache(Translator):
        def encode(self, source, source_mask):
            self.memory = self.encoder(self.embed(source))
            return self.memory

        def make_cache(self):
            return [torch.empty(2, 0, D)]

        def decode(self, target, memory, hidden=None, *, cache=None):
            if cache is None:
                return super().decode(target, memory, hidden)
            cache[0] = torch.cat([cache[0], self.embed(target, cache[0].shape[1])], dim=1)
            return super().decode(cache[0], memory, hidden)[:, -target.shape[1] :]

    torch.manual_seed(0)
    report = check_model(WithCache(), vocab_size=V)
    report.raise_if_failed()
    assert "cache equals no cache" in applied(report)


def test_check_model_calls_the_model_through_an_adapter():
    torch.manual_seed(0)
    model = Translator()

    def swapped(model, source, target, source_mask):
        return model(target=target, source=source, source_mask=source_mask)

    check_model(model, vocab_size=V, adapter=swapped).raise_if_failed()
    mask_lost = check_model(model, vocab_size=V, adapter=lambda m, s, t, mask: m(s, t))
    assert failed(mask_lost) == ["padding does not matter"]


def test_check_model_skips_the_initial_loss_of_a_trained_model():
    report = translate("output weights too large", skip={"initial loss": "trained"})
    assert report.passed and sum(r.where == "trained" for r in report) == 2


# reports


REPORT = Report(
    "mine",
    (
        Result("first", "pass", 0.0, "≤ 1e-05"),
        Result("second <i>", "FAIL", 0.25, "≤ 1e-05", "batch 1, query 3", "Look at the mask."),
        Result("third", "n.a.", where="no cache"),
    ),
)


def test_report_prints_as_an_aligned_table():
    assert repr(REPORT) == str(REPORT)
    assert str(REPORT).splitlines() == [
        "mine: 1 of 2 properties hold",
        "property    verdict  worst  allowed  where, or why not",
        "first       pass     0      ≤ 1e-05",
        "second <i>  FAIL     0.25   ≤ 1e-05  batch 1, query 3",
        "third       n.a.                     no cache",
    ]


def test_report_is_a_table_on_a_page_with_its_text_escaped():
    page = REPORT._repr_html_()
    assert page.count("<tr>") == 4 and page.count("<th>") == 5 and page.count("<td>") == 15
    assert "second &lt;i&gt;" in page and "<caption>mine: 1 of 2 properties hold</caption>" in page


def test_raise_if_failed_says_where_each_failure_is_and_what_to_look_for():
    with pytest.raises(AssertionError) as caught:
        REPORT.raise_if_failed()
    assert str(caught.value).splitlines() == [
        "mine: 1 of 2 properties hold",
        "- second <i> (batch 1, query 3): Look at the mask.",
    ]
    assert not REPORT.passed and [r.property for r in REPORT] == ["first", "second <i>", "third"]
    assert Report("mine", REPORT.results[:1]).raise_if_failed() is None


def test_properties_have_distinct_names_and_hints():
    for report in (check_attention(explicit), translate()):
        assert len({r.property for r in report}) == len(report.results)
    _, wrong = check_attention(explicit), check_attention(WRONG_FUNCTIONS["mask ignored"][0])
    assert all(len(bad.hint) > 30 and bad.hint[-1] in "?.)" for bad in wrong.failures)


# wrong use


@pytest.mark.bad_input
def test_checks_refuse_candidates_and_options_that_they_cannot_use():
    with pytest.raises(ValueError, match="check_attention: the candidate must be callable, got i"):
        check_attention(3)
    with pytest.raises(ValueError, match="check_attention: d_model must be at least 2, got 0"):
        check_attention(Heads(), d_model=0)
    with pytest.raises(ValueError, match="check_model: vocab_size must be at least 7, got 1"):
        check_model(Continuer(), vocab_size=1)
    with pytest.raises(ValueError, match="skip must name .*'order'.*, got .'causality'."):
        check_attention(explicit, skip={"causality": "I am in a hurry"})


@pytest.mark.bad_input
def test_call_torch_module_refuses_a_module_with_positions_first():
    module = nn.MultiheadAttention(D, 3)
    report = check_attention(module, d_model=D, adapter=call_torch_module)
    assert report.failures[0].where == (
        "ValueError: call_torch_module: batch_first must be True, got False"
    )


# Published models


@pytest.mark.parametrize("kind", FAMILIES)
def test_published_difference_is_rounding_alone(kind):
    pytest.importorskip("transformers")
    assert 0 < published_difference(kind) < 1e-5
    wide = published_difference(kind, dtype=torch.float64)  # some references cast to float32
    assert wide < (1e-5 if kind in {"llama", "mistral", "qwen2", "qwen3", "t5"} else 1e-12)


def test_published_difference_shows_a_fault(monkeypatch):
    pytest.importorskip("transformers")
    from transformer_lib.bert import Bert

    read = Bert.from_settings.__func__

    def with_another_constant(cls, settings):
        model = read(cls, settings)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-3
        return model

    monkeypatch.setattr(Bert, "from_settings", classmethod(with_another_constant))
    assert published_difference("bert") > 1e-4
