"""What only a GPU can show: kernels, number formats, synchronization, memory and compiled code.

Without CUDA these tests are deselected. TRANSFORMER_LIB_TEST_DEVICE=cpu runs them on the CPU, where
those that measure CUDA itself are skipped. `make gpu` runs them as one of its parts.
"""

import copy
import json
import math
import os
import time
import warnings
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import train_tiny
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from transformer_lib.attention import attend, attend_with_weights, causal_mask
from transformer_lib.batches import BlockBatches, Blocks
from transformer_lib.beam_search import beam_search
from transformer_lib.checkpoints import checkpoints, read_records
from transformer_lib.devices import measured_peak, peak_memory, recompute_activations
from transformer_lib.distributed import Worker
from transformer_lib.generation import greedy
from transformer_lib.losses import language_loss, translation_loss
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig
from transformer_lib.sampling import Sampler, sample
from transformer_lib.softmax import masked_softmax
from transformer_lib.tiled import tiled_attend
from transformer_lib.trainer import LOG, Trainer, TrainingConfig

KIND = os.environ.get("TRANSFORMER_LIB_TEST_DEVICE", "cuda")
DEVICE = torch.device(KIND, 0) if KIND == "cuda" else torch.device(KIND)
WORKER = Worker(device=DEVICE)
# a kernel that warns on one release of torch is not a fault of this library
pytestmark = [pytest.mark.gpu, pytest.mark.plain, pytest.mark.filterwarnings("default")]
needs_cuda = pytest.mark.skipif(KIND != "cuda", reason="measures CUDA itself")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# norm of the error over norm of the result; scores are rounded to the same type in one path
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def without_cudnn(*inputs, **options):
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return attend(*inputs, **options)


PATHS = {
    "attend": attend,
    "attend_with_weights": lambda *x, **options: attend_with_weights(*x, **options)[0],
    "attend without cuDNN": without_cudnn,
    "tiled_attend": lambda *x, **options: tiled_attend(*x, block=16, **options),
}
by_path = pytest.mark.parametrize("path", PATHS)


def measured(**found):
    """Hand a measurement to the command that runs these tests, if it asked for it."""
    if target := os.environ.get("TRANSFORMER_LIB_TEST_RECORD"):
        test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0]
        with Path(target).open("a") as file:
            file.write(json.dumps({"test": test} | found) + "\n")


def error(actual, expected):
    """Norm of the difference over the norm of what is expected."""
    actual, expected = (x.detach().double().cpu() for x in (actual, expected))
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


def tensors(dtype, T=37, S=37, K=16, batch=(2, 3)):
    """Queries, keys, values and a gradient, on the device, rounded to dtype."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((*batch, T, K), (*batch, S, K), (*batch, S, K), (*batch, T, K))
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def by_loops(query, key, value, visible):
    """Equation 1 of the paper, number by number, in Python's floats."""
    T, K = query.shape
    rows = []
    for t in range(T):
        seen = [s for s in range(len(key)) if visible[t, s]]
        scores = [math.fsum((query[t] * key[s]).tolist()) / math.sqrt(K) for s in seen]
        top = max(scores, default=0.0)
        powers = [math.exp(score - top) for score in scores]
        mixed = torch.zeros(value.shape[1], dtype=torch.float64)
        for power, s in zip(powers, seen, strict=True):
            mixed += power / math.fsum(powers) * value[s]
        rows.append(mixed)
    return torch.stack(rows)


def with_gradients(path, inputs, gradient, **options):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = path(*leaves, **options)
    return [out, *torch.autograd.grad(out, leaves, gradient.to(out.dtype))]


# Attention


@by_dtype
@by_path
def test_attention_on_the_device_agrees_with_loops(path, dtype):
    query, key, value, _ = (x[0, 0] for x in tensors(dtype, T=7, S=9))
    visible = torch.rand(7, 9) < 0.6
    visible[3] = False  # a query that may attend to nothing
    batched = (x[None, None] for x in (query, key, value))
    out = PATHS[path](*batched, visible.to(DEVICE))[0, 0]
    expected = by_loops(*(x.double().cpu() for x in (query, key, value)), visible)
    assert out.dtype == dtype and error(out, expected) < LIMITS[dtype]
    assert out[3].abs().max() == 0


@by_dtype
@by_path
@pytest.mark.parametrize("kind", ["full", "causal", "masked", "masked and causal", "few queries"])
def test_attention_on_the_device_agrees_with_float64_on_the_cpu(kind, path, dtype):
    T = 5 if kind == "few queries" else 150
    *inputs, gradient = tensors(dtype, T=T, S=150, K=32)
    options = {"causal": "causal" in kind or kind == "few queries"}
    if "masked" in kind:
        lengths = torch.tensor([150, 90])
        options["mask"] = (torch.arange(150) < lengths[:, None])[:, None, None, :].to(DEVICE)
    found = with_gradients(PATHS[path], inputs, gradient, **options)
    wide = [x.double().cpu() for x in inputs]
    options = {name: x.cpu() if name == "mask" else x for name, x in options.items()}
    exact = with_gradients(PATHS["attend_with_weights"], wide, gradient.double().cpu(), **options)
    errors = [error(ours, theirs) for ours, theirs in zip(found, exact, strict=True)]
    assert max(errors) < LIMITS[dtype], errors
    measured(errors=errors)


@by_dtype
@by_path
@pytest.mark.parametrize("S", [8, 200])
def test_attention_of_fully_masked_rows_is_zero_with_finite_gradients(S, path, dtype):
    *inputs, gradient = tensors(dtype, T=S, S=S)
    visible = causal_mask(S, device=DEVICE) & (torch.rand(S, S) < 0.5).to(DEVICE)
    visible[1], visible[-1] = False, False
    out, *gradients = with_gradients(PATHS[path], inputs, gradient, mask=visible)
    assert out[..., 1, :].abs().max() == 0 and out[..., -1, :].abs().max() == 0
    assert all(x.isfinite().all() for x in (out, *gradients))
    assert gradients[0][..., 1, :].abs().max() == 0


@by_path
def test_attention_of_fully_masked_inputs_is_zero(path):
    *inputs, gradient = tensors(torch.float32, T=40, S=40)
    visible = torch.zeros(40, 40, dtype=torch.bool, device=DEVICE)
    for x in with_gradients(PATHS[path], inputs, gradient, mask=visible):
        assert x.abs().max() == 0


@by_dtype
def test_attend_with_a_bias_agrees_with_the_explicit_path(dtype):
    *inputs, gradient = tensors(dtype, T=64, S=64)
    bias = torch.randn(3, 64, 64).to(DEVICE, dtype)
    visible = causal_mask(64, device=DEVICE)
    options = {"bias": bias[None], "mask": visible}
    ours = with_gradients(PATHS["attend"], inputs, gradient, **options)
    wide, exact_bias = [x.double().cpu() for x in inputs], bias[None].double().cpu()
    exact = with_gradients(
        PATHS["attend_with_weights"], wide, gradient.double().cpu(), bias=exact_bias,
        mask=visible.cpu(),
    )  # fmt: skip
    for mine, theirs in zip(ours, exact, strict=True):
        assert error(mine, theirs) < LIMITS[dtype]


@by_dtype
def test_masked_softmax_on_the_device_agrees_with_the_cpu(dtype):
    scores = (4 * torch.randn(5, 33, 65)).to(DEVICE, dtype)
    visible = (torch.rand(33, 65) < 0.5).to(DEVICE)
    visible[7] = False
    exact = masked_softmax(scores.double().cpu(), visible.cpu())
    assert error(masked_softmax(scores, visible), exact) < LIMITS[dtype]


# Models


def tiny(kind, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 32, "n_heads": 4, "d_ff": 64, "max_len": 64}
    sizes |= {"n_encoder_layers": 2, "n_decoder_layers": 2, "dropout": 0.0, "norm": "pre"}
    return kind(TransformerConfig(**sizes | changes))


def tokens(*shape):
    return torch.randint(4, 50, shape, generator=torch.Generator().manual_seed(1))


def model_gradients(model, *inputs, **options):
    logits = model(*inputs, **options)
    F.cross_entropy(logits.flatten(0, 1).double(), inputs[-1].flatten()).backward()
    return {"logits": logits, **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "alibi", "relative"])
@pytest.mark.parametrize("kind", [Transformer, DecoderOnly])
def test_models_on_the_device_agree_with_float64_on_the_cpu(kind, positions):
    model = tiny(kind, positions=positions, n_kv_heads=2)
    inputs = [tokens(3, 20)] if kind is DecoderOnly else [tokens(3, 17), tokens(3, 20)]
    masks = {}
    if kind is Transformer:
        lengths = torch.tensor([17, 9, 3])
        masks["source_mask"] = (torch.arange(17) < lengths[:, None])[:, None, None, :]
    exact = model_gradients(copy.deepcopy(model).double(), *inputs, **masks)
    there = {name: mask.to(DEVICE) for name, mask in masks.items()}
    found = model_gradients(model.to(DEVICE), *(x.to(DEVICE) for x in inputs), **there)
    worst = max(error(found[name], exact[name]) for name in exact if exact[name].norm() > 1e-9)
    assert worst < 1e-4
    measured(worst=worst)


@by_dtype
def test_models_in_autocast_stay_near_float32(dtype):
    if dtype == torch.float32:
        pytest.skip("nothing to cast")
    model, x = tiny(DecoderOnly, positions="learned").to(DEVICE), tokens(3, 20).to(DEVICE)
    exact = model(x)
    with torch.autocast(DEVICE.type, dtype):
        near = model(x)
    assert error(near, exact) < LIMITS[dtype]


@torch.no_grad()
def test_cache_on_the_device_gives_the_logits_of_one_pass():
    model = tiny(DecoderOnly, positions="rotary", n_kv_heads=2).to(DEVICE).eval()
    x, cache = tokens(3, 30).to(DEVICE), model.make_cache(30)
    steps = [model(x[:, :11], cache=cache)]
    steps += [model(x[:, i : i + 1], cache=cache) for i in range(11, 30)]
    assert error(torch.cat(steps, dim=1), model(x)) < 2e-5


# Generation


def test_greedy_and_beam_search_on_the_device_agree_with_the_cpu():
    writer, translator = tiny(DecoderOnly), tiny(Transformer)
    prompt, source = tokens(4, 6), tokens(4, 8)
    for model, given in ((writer, prompt), (translator, source)):
        here = greedy(model.eval(), given, max_len=20)
        beams = beam_search(model, given, max_len=12, beam=3)
        there = model.to(DEVICE), given.to(DEVICE)
        assert greedy(*there, max_len=20) == here
        found = beam_search(*there, max_len=12, beam=3)
        assert [[h.tokens for h in row] for row in found] == [
            [h.tokens for h in row] for row in beams
        ]


def test_sample_on_the_device_repeats_with_the_seed():
    model, prompt = tiny(DecoderOnly).to(DEVICE).eval(), tokens(8, 5).to(DEVICE)

    def draw(seed):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        sampler = Sampler(temperature=1.5, top_p=0.95, generator=generator)
        return sample(model, prompt, max_len=15, sampler=sampler, end=None)

    assert draw(3) == draw(3) != draw(4)


# Training


def losses(folder):
    return [record["loss"] for record in read_records(folder / LOG) if "loss" in record]


def states(trainer):
    return {name: x.detach().cpu() for name, x in trainer.bare.state_dict().items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_trainer_on_the_device_learns_as_float32_on_the_cpu_does(precision, tmp_path):
    options = {"dropout": 0.0, "n_steps": 24, "save_every": 24}
    here = train_tiny.trainer(tmp_path / "cpu", worker=Worker(), **options).fit()
    there = train_tiny.trainer(
        tmp_path / "gpu", worker=WORKER, precision=precision, **options
    ).fit()
    ours, theirs = losses(tmp_path / "gpu"), losses(tmp_path / "cpu")
    assert len(ours) == len(theirs) == 24 and ours[-1] < ours[0] - 0.1
    close = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05}[precision]
    if precision != "fp16":  # whose scaler may leave out the first steps
        assert ours == pytest.approx(theirs, rel=close)
        assert there.validate() == pytest.approx(here.validate(), rel=close)
    measured(first=ours[0], last=ours[-1], scale=there.scaler.get_scale())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_on_the_device_is_exact_to_the_bit(precision, tmp_path):
    def make(name):
        return train_tiny.trainer(
            tmp_path / name, worker=WORKER, n_steps=12, save_every=3, precision=precision
        )

    whole = make("whole").fit()
    make("parts").fit(until=5)
    resumed = make("parts")
    assert resumed.resume() and resumed.step == 5
    resumed.fit()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    ours, theirs = states(resumed), states(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.optimizer.param_groups[0]["fused"]


def test_checkpoint_of_the_device_resumes_on_the_cpu(tmp_path):
    options = {"n_steps": 8, "save_every": 4, "precision": "fp32"}
    there = train_tiny.trainer(tmp_path, worker=WORKER, **options)
    there.fit(until=4)
    here = train_tiny.trainer(tmp_path, worker=Worker(), **options)
    assert here.resume() and here.step == 4
    ours, theirs = states(here), states(there)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    here.fit()
    assert checkpoints(tmp_path)[0].name == "step-00000008"


def test_pinned_batches_arrive_unchanged():
    batch = next(iter(BlockBatches(list(range(500)), block=16, batch_size=8)))
    if KIND == "cuda":
        batch = Blocks(batch.inputs.pin_memory(), batch.labels.pin_memory())
    there = batch.to(DEVICE)
    assert there.inputs.device.type == DEVICE.type
    assert torch.equal(there.inputs.cpu(), batch.inputs)
    assert torch.equal(there.labels.cpu(), batch.labels)


def test_recomputed_activations_leave_gradients_equal():
    model, batch = tiny(DecoderOnly, dropout=0.2).to(DEVICE), tokens(4, 33).to(DEVICE)

    def gradients(model):
        torch.manual_seed(5)
        language_loss(model, Blocks(batch[:, :-1], batch[:, 1:])).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    again = gradients(recompute_activations(copy.deepcopy(model)))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(again[name], gradient)


# Synchronization, memory


def training_step(model, loss):
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(batch):
        loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


@needs_cuda
@pytest.mark.parametrize("kind", [Transformer, DecoderOnly])
def test_step_written_by_hand_synchronizes_nowhere(kind):
    model = tiny(kind, dropout=0.1, positions="learned").to(DEVICE)
    if kind is Transformer:
        batch, loss = next(iter(train_tiny.batches())).to(DEVICE), translation_loss
    else:
        x = tokens(4, 33).to(DEVICE)
        batch, loss = Blocks(x[:, :-1], x[:, 1:]), language_loss
    step = training_step(model, loss)
    for _ in range(2):
        step(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_update_of_the_trainer_synchronizes_for_batch_loss_and_norm_alone(precision):
    model = tiny(DecoderOnly, positions="learned")
    data = BlockBatches(tokens(3000), block=32, batch_size=8)
    config = TrainingConfig(n_steps=50, precision=precision)
    trainer = Trainer(model, data, config, loss=language_loss, worker=WORKER)
    batches = list(islice(data.endless(), 6))
    for batch in batches[:4]:
        trainer.update(batch)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.update(batches[4])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where = [
        f"{Path(w.filename).name}:{w.lineno}" for w in seen if "called a synchron" in str(w.message)
    ]
    measured(synchronizations=where)
    allowed = 4 + (1 if precision == "fp16" else 0)  # two copies, loss, norm; did a step overflow?
    assert len(where) <= allowed, where


def peak_of(run):
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@needs_cuda
def test_attend_and_tiled_attend_never_hold_all_scores():
    T = 4096
    *inputs, gradient = tensors(torch.bfloat16, T=T, S=T, K=64, batch=(1, 8))
    scores = 8 * T * T * 2
    found = {}
    for name, path in PATHS.items():
        with torch.no_grad():
            path(*inputs, causal=True)
        options = {"causal": True}
        found[name] = peak_of(lambda p=path, o=options: with_gradients(p, inputs, gradient, **o))
    measured(bytes_of_all_scores=scores, **found)
    assert found["attend"] < scores / 3
    assert found["tiled_attend"] < scores
    assert found["attend_with_weights"] > 2 * scores


@needs_cuda
def test_recomputed_activations_save_memory():
    model = tiny(DecoderOnly, d_model=256, d_ff=1024, n_decoder_layers=8, max_len=512).to(DEVICE)
    x = tokens(16, 513).to(DEVICE)
    batch = Blocks(x[:, :-1], x[:, 1:])

    def step(model):
        def run():
            language_loss(model, batch).backward()
            model.zero_grad()

        run()
        return peak_of(run)

    plain = step(model)
    less = step(recompute_activations(model))
    measured(plain=plain, recomputed=less)
    assert less < 0.6 * plain


@needs_cuda
def test_peak_memory_counts_what_was_allocated():
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    block = torch.empty(2**26, dtype=torch.uint8, device=DEVICE)
    del block
    assert 2**26 <= peak_memory(DEVICE) - before < 2**27


@needs_cuda
def test_measured_peak_in_bf16_is_several_times_that_in_fp32():
    peaks = {name: measured_peak(DEVICE, name, size=4096).flops for name in ("fp32", "bf16")}
    measured(**peaks)
    assert peaks["bf16"] > 3 * peaks["fp32"]


# Compiled code


def sums(model, batch):
    return language_loss(model, batch)


def test_training_step_is_traced_as_one_graph():
    model = tiny(DecoderOnly, positions="rotary", dropout=0.1).to(DEVICE)
    x = tokens(4, 33).to(DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(sums, fullgraph=True, backend="eager")
    compiled(model, Blocks(x[:, :-1], x[:, 1:])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_trainer_with_inductor_trains_as_without():
    def train(compile):
        data = BlockBatches(tokens(3000) // 4, block=32, batch_size=8)
        config = TrainingConfig(
            n_steps=10, learning_rate=3e-3, compile=compile, precision="bf16", betas=(0.9, 0.99)
        )
        model, found = tiny(DecoderOnly, positions="learned"), []
        Trainer(
            model, data, config, loss=language_loss, worker=WORKER,
            log=lambda record: found.append(record["loss"]),
        ).fit()  # fmt: skip
        return found

    torch._dynamo.reset()
    start = time.perf_counter()
    compiled = train(True)
    seconds = time.perf_counter() - start
    eager = train(False)
    measured(compiled=compiled, eager=eager, seconds=seconds)
    assert compiled == pytest.approx(eager, rel=3e-2)
    assert compiled[-1] < compiled[0] - 0.1


@by_path
def test_attention_with_inductor_has_the_gradients_of_eager(path):
    *inputs, gradient = tensors(torch.float32, T=32, S=32)
    visible = causal_mask(32, device=DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(PATHS[path])
    ours = with_gradients(compiled, inputs, gradient, mask=visible)
    for mine, theirs in zip(
        ours, with_gradients(PATHS[path], inputs, gradient, mask=visible), strict=True
    ):
        assert error(mine, theirs) < LIMITS[torch.float32]
