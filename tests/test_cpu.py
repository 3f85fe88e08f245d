"""Models whose parts are replaced by faster ones answer and learn as the originals do."""

import copy
import itertools
import math
import pickle
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import transformer_lib.cpu as cpu
from transformer_lib.attention import padding_mask
from transformer_lib.beam_search import beam_search
from transformer_lib.cpu import pack_for_decoding, quantize_for_decoding, use_onednn
from transformer_lib.generation import greedy
from transformer_lib.losses import token_loss
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig
from transformer_lib.multihead import MultiHeadAttention, PartialLinear, recording
from transformer_lib.translation import Translator

V = 31
SHORT = {"rtol": 1e-4, "atol": 1e-5}  # float32, sums in another order
DESIGNS = [
    {"positions": "learned", "norm": "pre", "activation": "gelu"},
    {"positions": "sinusoidal", "norm": "post", "tie_embeddings": False},
    {"positions": "rotary", "norm_type": "rms", "n_kv_heads": 2, "activation": "swiglu"},
    {"positions": "alibi", "norm": "pre", "n_kv_heads": 2},
    {"positions": "alibi", "norm": "post", "bias": False},
    {"positions": "none", "final_norm": True, "n_kv_heads": 1},
    {"positions": "learned", "head_dim": 7, "norm_eps": 0.1},
]
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


def seeded(kind, **options):
    torch.manual_seed(0)
    config = TransformerConfig.tiny(vocab_size=V, dropout=0.0, **options)
    model = kind(config).eval()
    for parameter in model.parameters():  # biases and gains that are not 0 and 1
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


def ids(*shape, seed=1):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def asked(monkeypatch):
    """Shapes of the matrix multiplications that oneDNN computes."""
    shapes, ask = [], cpu._ask
    monkeypatch.setattr(
        cpu, "_ask", lambda x, *rest: shapes.append(tuple(x.shape)) or ask(x, *rest)
    )
    return shapes


@pytest.fixture
def packs(monkeypatch):
    """Let packed layers use their layout for the small weights of these tests, too."""
    monkeypatch.setattr(cpu, "_SMALL", 0)


# matrix multiplications


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (2, 0, 5)])
def test_onednn_matmul_and_gradients_equal_torch(shape, bias, asked):
    torch.manual_seed(0)
    plain = nn.Linear(5, 7, bias=bias)
    ours = cpu._replaced(plain, cpu._Linear)
    x = torch.randn(shape, requires_grad=True)
    inputs = [x, *plain.parameters()]
    outs = [linear(x) for linear in (ours, plain)]
    torch.testing.assert_close(*outs, **SHORT)
    like = torch.randn(outs[0].shape)
    grads = [torch.autograd.grad(out, inputs, like) for out in outs]
    torch.testing.assert_close(*grads, **SHORT)
    assert bool(asked) == bool(torch.backends.mkldnn.is_available() and x.numel())


@needs_onednn
@pytest.mark.parametrize("frozen", ["input", "weight", "bias"])
def test_onednn_matmul_computes_only_the_needed_gradients(frozen, asked):
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    {"input": x, "weight": linear.weight, "bias": linear.bias}[frozen].requires_grad_(False)
    cpu._replaced(linear, cpu._Linear)(x).sum().backward()
    assert len(asked) == (3 if frozen == "bias" else 2)
    found = {"input": x.grad, "weight": linear.weight.grad, "bias": linear.bias.grad}
    assert [name for name, grad in found.items() if grad is None] == [frozen]


def test_onednn_matmul_leaves_other_dtypes_autocast_and_slices_to_torch(asked):
    linear = nn.Linear(5, 7)
    ours, x = cpu._replaced(linear, cpu._Linear), torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    for dtype in (torch.float64, torch.bfloat16):
        torch.testing.assert_close(ours.to(dtype)(x.to(dtype)), linear.to(dtype)(x.to(dtype)))
    assert not asked
    with pytest.raises(RuntimeError, match="same dtype|float"):
        ours.float()(x.double())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        ours(torch.randn(3, 6))


@pytest.mark.plain
def test_onednn_matmul_compiles_to_torchs(asked):
    ours = cpu._replaced(nn.Linear(5, 7), cpu._Linear)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    compiled(torch.randn(3, 5)).sum().backward()
    assert not asked and ours.weight.grad is not None


# whole models


@pytest.mark.parametrize("kind", [Transformer, DecoderOnly])
@pytest.mark.parametrize("options", DESIGNS)
def test_use_onednn_model_trains_equally(kind, options, monkeypatch):
    plain = seeded(kind, **options)
    ours = use_onednn(copy.deepcopy(plain), linear=True)
    given = (ids(3, 9), ids(3, 8, seed=2)) if kind is Transformer else (ids(3, 8),)
    losses = []
    for model in (plain, ours):
        if model is ours and torch.backends.mkldnn.is_available():
            monkeypatch.setattr(F, "linear", None)  # must not be called
        losses.append(token_loss(model(*given), ids(3, 8, seed=3), padding=None))
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    for (name, p), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        atol = 1e-5 * theirs.grad.abs().max().item()
        torch.testing.assert_close(p.grad, theirs.grad, rtol=1e-3, atol=atol, msg=name)


def test_use_onednn_keeps_parameters_names_and_ties():
    model = seeded(Transformer)
    before, modes = dict(model.named_parameters()), [m.training for m in model.modules()]
    assert use_onednn(model, linear=True) is model
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(before[n] is after[n] for n in before)
    assert model.output.weight is model.embedding.weight
    assert [m.training for m in model.modules()] == modes
    assert model.output.in_features == 64 and model.output.out_features == V
    linears = [type(m) for m in model.modules() if isinstance(m, nn.Linear)]
    assert set(linears) == {cpu._Linear}


# where it pays


@pytest.fixture
def clock(monkeypatch):
    """Let `_seconds` answer from a list, and forget what was measured before and after."""
    monkeypatch.delenv("TRANSFORMER_LIB_ONEDNN", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    answers = []
    monkeypatch.setattr(cpu, "_seconds", lambda: answers.pop(0))
    cpu._pays.cache_clear()
    yield answers
    cpu._pays.cache_clear()


def kinds(model):
    return {type(m) for m in model.modules() if isinstance(m, nn.Linear | nn.Dropout)}


@pytest.mark.parametrize("times, pays", [
    ([1.25, 1.0], True), ([2.5, 1.0], True), ([1.24, 1.0], False), ([1.0, 1.0], False),
    ([1.0, 2.0], False),
])  # fmt: skip
def test_use_onednn_leaves_linear_layers_as_they_are_where_the_gain_is_small(times, pays, clock):
    clock.append(times)
    model = seeded(Transformer)
    assert kinds(model) == {nn.Linear, PartialLinear, nn.Dropout}
    assert cpu.onednn_pays() is pays
    after = kinds(use_onednn(model))
    assert after == ({cpu._Linear} if pays else {nn.Linear, PartialLinear}) | {cpu._Dropout}


def test_onednn_is_timed_once_for_each_number_of_threads(clock):
    clock.extend([[2.0, 1.0], [1.0, 1.0]])
    n_threads = torch.get_num_threads()
    assert cpu.onednn_pays() and cpu.onednn_pays()
    torch.set_num_threads(n_threads + 1)
    try:
        assert not cpu.onednn_pays() and not cpu.onednn_pays()
    finally:
        torch.set_num_threads(n_threads)
    assert cpu.onednn_pays() and not clock


def test_onednn_is_not_timed_where_the_environment_decides_or_there_is_none(clock, monkeypatch):
    for text, pays in (("1", True), ("0", False)):
        monkeypatch.setenv("TRANSFORMER_LIB_ONEDNN", text)
        assert cpu.onednn_pays() is pays
    monkeypatch.setenv("TRANSFORMER_LIB_ONEDNN", "yes")
    with pytest.raises(ValueError, match=r"TRANSFORMER_LIB_ONEDNN must be one of .*, got 'yes'"):
        cpu.onednn_pays()
    monkeypatch.setenv("TRANSFORMER_LIB_ONEDNN", "")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not cpu.onednn_pays()


@needs_onednn
@pytest.mark.parametrize("late, n_turns", [(0.0, 6), (0.02, 3), (0.3, 2)])
def test_timing_takes_fewer_turns_where_each_takes_long(late, n_turns, asked, monkeypatch):
    clock = itertools.count(100.0, late)  # read four times a turn
    monkeypatch.setattr(cpu.time, "perf_counter", lambda: next(clock))
    cpu._seconds(2, 3, 5)
    assert len(asked) == 3 * n_turns


@needs_onednn
@pytest.mark.parametrize("slow", [0, 1])
def test_timing_finds_the_slower_library(slow, monkeypatch):
    def late(f):
        return lambda *rest: time.sleep(0.03) or f(*rest)

    where, name = [(F, "linear"), (cpu, "_ask")][slow]
    monkeypatch.setattr(where, name, late(getattr(where, name)))
    times = cpu._seconds(2, 3, 5)
    assert times[slow] > 0.03 > times[1 - slow] > 0  # false alarm: six turns in a row take 30 ms


@needs_onednn
def test_timing_is_a_linear_layers_forward_and_backward_and_leaves_no_trace(asked):
    linear, generator = F.linear, torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert all(0 < seconds < 60 for seconds in cpu._seconds(2, 3, 5))
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
    assert len(asked) >= 6 and asked == [(2, 3), (2, 5), (5, 2)] * (len(asked) // 3)
    assert torch.equal(torch.get_rng_state(), generator) and F.linear is linear


@needs_onednn
def test_use_onednn_can_be_taken_back(asked):
    plain = seeded(DecoderOnly)
    ours, tokens = use_onednn(copy.deepcopy(plain), linear=True), ids(2, 5)
    other = ours(tokens)
    n_asked = len(asked)
    assert n_asked and ours.output.by_onednn
    assert torch.equal(use_onednn(ours, linear=False)(tokens), plain(tokens))
    assert len(asked) == n_asked and not ours.output.by_onednn
    assert torch.equal(use_onednn(ours, linear=True)(tokens), other)
    assert len(asked) == 2 * n_asked


# packed models


@pytest.mark.parametrize("small", [0, cpu._SMALL], ids=["by layout", "by torch"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", DESIGNS)
def test_packed_decoder_gives_the_same_logits_after_every_token(
    options, padded, small, monkeypatch
):
    monkeypatch.setattr(cpu, "_SMALL", small)
    model = seeded(DecoderOnly, **options)
    ours, tokens = pack_for_decoding(model), ids(3, 10)
    real = padding_mask(torch.tensor([10, 8, 5])).flip(-1) if padded else None
    caches = model.make_cache(10), ours.make_cache(10)
    with torch.no_grad():
        for first, last in ((0, 3), *((n, n + 1) for n in range(3, 10))):
            seen = None if real is None else real[..., :last]
            counts = torch.ones(3, last - first, dtype=torch.bool)
            counts = counts if real is None else real[:, 0, 0, first:last]
            theirs, mine = (
                m(tokens[:, first:last], seen, cache=cache)[counts]
                for m, cache in zip((model, ours), caches, strict=True)
            )
            torch.testing.assert_close(mine, theirs, **SHORT)
    assert [c.length for c in caches[0]] == [c.length for c in caches[1]]


@pytest.mark.parametrize("lengths", [None, [6, 4], [4]])
@pytest.mark.parametrize("options", DESIGNS)
def test_packed_translator_gives_the_same_logits_after_every_token(options, lengths, packs):
    model = seeded(Transformer, **options)
    ours, source, target = pack_for_decoding(model), ids(2, 6), ids(6, 7)
    mask = None if lengths is None else padding_mask(torch.tensor(lengths), 6)
    memory, caches = model.encode(source, mask), (model.make_cache(7), ours.make_cache(7))
    with torch.no_grad():
        for n in range(7):  # three rows share each memory
            theirs, mine = (
                m.decode(target[:, n : n + 1], memory, mask, cache=cache)
                for m, cache in zip((model, ours), caches, strict=True)
            )
            torch.testing.assert_close(mine, theirs, **SHORT)
        every = mask if mask is None or len(mask) == 1 else mask.repeat_interleave(3, dim=0)
        whole = model.decode(target, memory.repeat_interleave(3, dim=0), every)
    torch.testing.assert_close(mine, whole[:, -1:], **SHORT)


@needs_onednn
def test_packed_model_uses_the_fast_path_for_single_tokens_only(monkeypatch):
    ours, steps, step = pack_for_decoding(seeded(DecoderOnly)), [], cpu._attend_one
    monkeypatch.setattr(cpu, "_attend_one", lambda *rest: steps.append(1) or step(*rest))
    with torch.no_grad():
        cache = ours.make_cache(9)
        ours(ids(2, 3), cache=cache)
        assert not steps
        ours(ids(2, 1), cache=cache)
        assert len(steps) == 2  # layers
        ours(ids(2, 1))
        ours.train()(ids(2, 1), cache=cache)
    assert len(steps) == 2


@needs_onednn
def test_packed_translator_uses_the_fast_path_from_the_second_token_on(monkeypatch):
    ours, steps, step = pack_for_decoding(seeded(Transformer)), [], cpu._mix_one
    monkeypatch.setattr(cpu, "_mix_one", lambda *rest: steps.append(1) or step(*rest))
    with torch.no_grad():
        memory, cache = ours.encode(ids(2, 3)), ours.make_cache(9)
        ours.decode(ids(2, 1), memory, cache=cache)
        ours.decode(ids(2, 1), memory)
        assert not steps
        ours.decode(ids(2, 1), memory, cache=cache)
        assert len(steps) == 4  # two layers, which attend twice
        ours.train().decode(ids(2, 1), memory, cache=cache)
    assert len(steps) == 4


@pytest.mark.parametrize("kind", [DecoderOnly, Transformer])
def test_packed_leaves_attention_of_another_class_to_itself(kind, monkeypatch):
    class Doubled(MultiHeadAttention):
        def forward(self, *inputs, **options):
            return 2 * super().forward(*inputs, **options)

    class Own(kind):
        def make_attention(self, positions):
            return Doubled(self.config.d_model, self.config.n_heads, positions=positions)

    model, source = seeded(Own), ids(2, 5)
    ours = pack_for_decoding(model)
    monkeypatch.setattr(cpu, "_attend_one", lambda *rest: pytest.fail("this is another attention"))
    assert greedy(ours, source, max_len=6) == greedy(model, source, max_len=6)


@pytest.mark.parametrize("kind", [DecoderOnly, Transformer])
def test_packed_keeps_a_scale_of_its_own(kind):
    class Own(kind):
        def make_attention(self, positions):
            config = self.config
            return MultiHeadAttention(config.d_model, config.n_heads, scale=1.0)

    model, source = seeded(Own), ids(2, 5)
    ours = pack_for_decoding(model)
    inputs = (source,) if kind is DecoderOnly else (source[:, :1], model.encode(source))
    read = (lambda m: m) if kind is DecoderOnly else (lambda m: m.decode)
    caches = model.make_cache(9), ours.make_cache(9)
    with torch.no_grad():
        for _ in range(2):
            theirs, mine = (
                read(m)(inputs[0][:, :1], *inputs[1:], cache=c)
                for m, c in zip((model, ours), caches, strict=True)
            )
    torch.testing.assert_close(mine, theirs, **SHORT)


def test_packed_models_generate_what_the_originals_generate(packs):
    for kind in (DecoderOnly, Transformer):
        model, source = seeded(kind, positions="rotary"), ids(4, 6)
        ours = pack_for_decoding(model)
        assert isinstance(ours, kind)
        for write in (greedy, beam_search):
            options = {"beam": 3} if write is beam_search else {}
            results = [write(m, source, max_len=8, **options) for m in (model, ours)]
            if write is beam_search:
                results = [[h[0].tokens for h in result] for result in results]
            assert results[0] == results[1]


def test_packed_leaves_the_original_unchanged_and_needs_no_gradient():
    model = seeded(DecoderOnly).train()
    before = copy.deepcopy(model.state_dict())
    ours = pack_for_decoding(model)
    assert type(model) is DecoderOnly and model.training and not ours.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in ours.parameters())
    assert not any(isinstance(m, cpu._Linear) for m in model.modules())
    linears = [type(m) for m in ours.modules() if isinstance(m, nn.Linear)]
    assert set(linears) == {cpu._PackedLinear}
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.data_ptr() != model.state_dict()[name].data_ptr()
    with torch.inference_mode():
        made = pack_for_decoding(model)
        torch.testing.assert_close(made(ids(2, 3)), ours(ids(2, 3)), **SHORT)


@needs_onednn
@pytest.mark.parametrize(
    "n_rows, n_in, n_out, packed",
    [
        (1, 512, 1023, False), (1, 512, 1024, True),  # 2**19 weights
        (4, 512, 255, False), (4, 512, 256, True), (2, 512, 511, False), (2, 512, 512, True),
        (99, 256, 165, False), (99, 256, 166, True),  # 2**22 multiplications
    ],
)  # fmt: skip
def test_packed_linear_leaves_products_to_torch_that_cost_less_than_a_call_of_onednn(
    n_rows, n_in, n_out, packed, asked
):
    torch.manual_seed(0)
    linear = nn.Linear(n_in, n_out).requires_grad_(False)
    ours, x = cpu._replaced(linear, cpu._PackedLinear), torch.randn(n_rows, 1, n_in)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), linear(x), **SHORT)
    assert bool(asked) == packed == (ours._packed is not None)


@needs_onednn
def test_packed_linear_counts_the_rows_that_it_computes(asked):
    torch.manual_seed(0)
    linear = PartialLinear(512, 1024).requires_grad_(False)
    ours, x = cpu._replaced(linear, cpu._PackedLinear), torch.randn(1, 512)
    with torch.no_grad():
        for rows in ((0, 1023), (1, 1024)):
            torch.testing.assert_close(ours(x, rows), linear(x, rows), **SHORT)
        assert not asked
        torch.testing.assert_close(ours(x, (0, 1024)), linear(x), **SHORT)
    assert len(asked) == 1


@needs_onednn
def test_packed_translator_asks_onednn_once_a_step_for_one_sentence(asked):
    translator = Translator.load("multi30k-en-de")
    caption = "A black dog runs through the snow."
    (wanted,) = translator([caption], beam=1)
    translator.model = pack_for_decoding(translator.model)
    assert translator([caption], beam=1) == [wanted] and wanted
    n_tokens = len(translator.tokenizer.encode(wanted)) + 1  # the end is a step, too
    assert asked == [(1, 1, 192)] * n_tokens  # the output; all other weights are small


@needs_onednn
def test_packed_linear_packs_weights_once_and_again_after_a_change(packs):
    torch.manual_seed(0)
    linear = nn.Linear(5, 7).requires_grad_(False)
    ours, x = cpu._replaced(linear, cpu._PackedLinear), torch.randn(2, 5)
    seen = []
    with torch.no_grad():
        for change in (
            lambda: None,
            lambda: setattr(ours, "weight", nn.Linear(5, 7).requires_grad_(False).weight),
            lambda: ours.weight.mul_(2),
            lambda: ours.load_state_dict(nn.Linear(5, 7).state_dict()),
        ):
            change()
            for _ in range(2):
                torch.testing.assert_close(ours(x), F.linear(x, ours.weight, ours.bias), **SHORT)
                seen.append(ours._packed[None][2])
    assert all(a is b for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert len({id(layout) for layout in seen}) == 4
    ours.double()
    with torch.no_grad():
        torch.testing.assert_close(ours(x.double()), F.linear(x.double(), ours.weight, ours.bias))


@needs_onednn
def test_packed_does_not_pack_a_layer_that_trains(asked, packs):
    torch.manual_seed(0)
    linear = nn.Linear(5, 7)
    ours = cpu._replaced(linear, cpu._PackedLinear)
    ours(torch.randn(3, 5)).sum().backward()
    assert ours._packed is None and linear.weight.grad is not None


@needs_onednn
@pytest.mark.parametrize("rows", [None, (2, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])  # 0 is a level where no input is near it, too
def test_int8_linear_rounds_weights_to_255_levels_and_inputs_to_128(shift, bias, rows):
    torch.manual_seed(0)
    linear = PartialLinear(33, 7, bias=bias).requires_grad_(False)
    ours, x = cpu._replaced(linear, cpu._Int8Linear), torch.randn(2, 3, 33) + shift
    step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    weight = (linear.weight / step).round() * step
    low, high = x.min().clamp_max(0), x.max().clamp_min(0)
    size = (high - low) / 127
    zero = (-low / size).round()
    whole = ((x / size + zero).round() - zero) * size
    part = slice(None) if rows is None else slice(*rows)
    expected = F.linear(whole, weight[part], linear.bias[part] if bias else None)
    with torch.no_grad():
        found, exact = ours(x, rows), linear(x, rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - exact).abs().max() > 1e-3
    assert whole.unique().numel() > 64 or shift


def test_quantized_models_stay_close_to_the_originals():
    for kind in (DecoderOnly, Transformer):
        model, source = seeded(kind), ids(4, 6)
        ours = quantize_for_decoding(model)
        assert isinstance(ours, kind) and not ours.training
        inputs = (source,) if kind is DecoderOnly else (source, source)
        with torch.no_grad():
            theirs, mine = model(*inputs), ours(*inputs)
        assert 0 < (mine - theirs).abs().max() < 0.2 * theirs.abs().max()  # 7.5 % for seed 0
        assert len(greedy(ours, source, max_len=5)) == 4
        assert {type(m) for m in ours.modules() if isinstance(m, nn.Linear)} == {cpu._Int8Linear}


def test_recording_works_with_a_packed_model():
    model = seeded(DecoderOnly)
    ours, tokens, shown = pack_for_decoding(model), ids(2, 5), []
    for each in (model, ours):
        cache = each.make_cache(5)
        with torch.no_grad(), recording(each) as seen:
            each(tokens[:, :4], cache=cache)
            each(tokens[:, 4:], cache=cache)
        shown.append(seen)
    assert len(shown[1]) == 2
    torch.testing.assert_close(shown[1], shown[0], **SHORT)


def test_packed_models_can_be_copied_packed_again_and_pickled(packs):
    model, tokens = seeded(DecoderOnly, tie_embeddings=False), ids(2, 5)
    ours = pack_for_decoding(model)
    with torch.no_grad():
        expected = ours(tokens)
        for again in (
            copy.deepcopy(ours), pack_for_decoding(ours), pickle.loads(pickle.dumps(ours)),
        ):  # fmt: skip
            torch.testing.assert_close(again(tokens), expected, rtol=0, atol=0)
            again.output.weight.mul_(2)
            torch.testing.assert_close(again(tokens), 2 * expected, **SHORT)
            torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=0)


def test_replaced_parts_keep_their_hooks_and_shared_parts_stay_shared():
    shared, seen = nn.Linear(3, 3), []
    shared.register_forward_hook(lambda *_: seen.append(1))
    model = use_onednn(nn.Sequential(shared, nn.Dropout(0.1), shared).eval(), linear=True)
    assert model[0] is model[2] and type(model[0]) is cpu._Linear
    assert type(model[1]) is cpu._Dropout and not model[1].training
    model(torch.ones(2, 3))
    assert seen == [1, 1]
    assert repr(model[:2]) == repr(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)))


@pytest.mark.parametrize("bias", [True, False])
def test_partial_linear_by_onednn_computes_the_rows_asked_for(bias, asked):
    torch.manual_seed(0)
    plain = PartialLinear(5, 7, bias=bias)
    ours, x = cpu._replaced(plain, cpu._Linear), torch.randn(3, 5)
    for rows in (None, (0, 7), (2, 5), (4, 4)):
        start, end = rows or (0, 7)
        torch.testing.assert_close(ours(x, rows), plain(x)[:, start:end], **SHORT)
        torch.testing.assert_close(plain(x, rows), plain(x)[:, start:end], **SHORT)


# dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_with_probability_p_at_every_place_of_a_word_independently(p):
    n = 400_000
    torch.manual_seed(0)
    dropped = cpu._Dropout(p)(torch.ones(n, dtype=torch.float64)).eq(0).double().reshape(-1, 4)
    bound = 5 * math.sqrt(p * (1 - p) / (n // 4))  # false alarm: 1 seed in a million
    assert (dropped.mean(dim=0) - p).abs().max() < bound
    together = (dropped[:, :3] * dropped[:, 1:]).mean(dim=0)  # p^2 if independent
    assert (together - p**2).abs().max() < 5 * math.sqrt(p**2 * (1 - p**2) / (n // 4))


@pytest.mark.parametrize("p", [0.1, 0.3, 1e-5, 1 - 1e-7])
def test_dropout_scales_what_it_keeps_and_never_drops_all(p):
    dropped = min(round(p * 65_536), 65_535) / 65_536
    assert abs(dropped - p) < 2e-5
    torch.manual_seed(0)
    found = cpu._Dropout(p)(torch.full((500_000,), 3.0, dtype=torch.float64)).unique()
    torch.testing.assert_close(found[-1].item(), 3 / (1 - dropped), rtol=1e-15, atol=0)
    assert len(found) == 2 and found[0] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7,), (3, 5, 2)])
def test_dropout_keeps_shape_and_dtype_and_its_gradient_is_its_mask(shape, dtype):
    drop, x = cpu._Dropout(0.5), torch.ones(shape, dtype=dtype).requires_grad_()
    torch.manual_seed(1)
    out = drop(x)
    assert out.shape == shape and out.dtype == dtype and set(out.flatten().tolist()) <= {0, 2}
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], out.detach())
    torch.manual_seed(1)
    assert torch.equal(drop(x), out)


def test_dropout_is_the_identity_in_evaluation_and_at_zero_and_drops_all_at_one():
    x = torch.randn(1000)
    assert cpu._Dropout(0.5).eval()(x) is x and torch.equal(cpu._Dropout(0.0)(x), x)
    assert not cpu._Dropout(1.0)(torch.ones(2_000_000)).any()  # where 65,535 of 65,536 are too few


@pytest.mark.plain
def test_dropout_compiles_to_torchs_own():
    drop, x = cpu._Dropout(0.3), torch.ones(1000)
    torch.manual_seed(0)
    compiled = torch.compile(drop, backend="eager", fullgraph=True)(x)
    torch.manual_seed(0)
    assert torch.equal(compiled, F.dropout(x, 0.3))


def test_packed_decoder_uses_a_module_in_place_of_the_weights():
    class Silence(nn.Module):
        def forward(self, weights):
            return 0 * weights

    model, tokens = seeded(DecoderOnly), ids(2, 5)
    for layer in model.decoder:
        layer.attention.weights = Silence()
    logits = []
    for each in (model, pack_for_decoding(model)):
        cache = each.make_cache(5)
        with torch.no_grad():
            each(tokens[:, :4], cache=cache)
            logits.append(each(tokens[:, 4:], cache=cache))
    torch.testing.assert_close(logits[1], logits[0], **SHORT)
