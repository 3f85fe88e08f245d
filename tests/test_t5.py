"""T5 equals the published implementation: hidden states, logits, what it generates, its files."""

import copy
import functools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from transformer_lib.attention import padding_mask
from transformer_lib.batches import PairBatches
from transformer_lib.beam_search import beam_search
from transformer_lib.cpu import pack_for_decoding, use_onednn
from transformer_lib.generation import greedy, stream
from transformer_lib.hub import from_pretrained
from transformer_lib.models import TransformerConfig
from transformer_lib.multihead import recording
from transformer_lib.sampling import Sampler, sample
from transformer_lib.speculative import speculative_sample
from transformer_lib.t5 import T5, T5Config
from transformer_lib.testing import check_model
from transformer_lib.trainer import Trainer, TrainingConfig

B, T, S, V = 3, 5, 29, 53
SIZES = {"vocab_size": V, "dropout_rate": 0.0}
NARROW = {"d_model": 23, "d_kv": 5, "num_heads": 3, "d_ff": 31}
WIDE = {"d_model": 22, "d_kv": 13, "num_heads": 2, "d_ff": 17}
THEIRS = {
    "1.0": NARROW | {"num_layers": 2, "num_decoder_layers": 3},
    "1.0, coarse buckets": WIDE
    | {"num_layers": 3, "num_decoder_layers": 1, "relative_attention_num_buckets": 8}
    | {"relative_attention_max_distance": 20, "layer_norm_epsilon": 1e-3},
    "1.1": WIDE | {"num_layers": 2, "feed_forward_proj": "gated-gelu"},
    "1.1, as UL2": NARROW
    | {"num_layers": 1, "num_decoder_layers": 2, "feed_forward_proj": "gated-silu"},
}
VERSIONS = list(THEIRS)


@functools.cache
def folder_of(version, root):
    """Write a random model of theirs, none of whose parameters has its first value."""
    transformers = pytest.importorskip("transformers")
    sizes = THEIRS[version]
    torch.manual_seed(len(version))
    config = transformers.T5Config(
        **SIZES, **sizes, decoder_start_token_id=0, tie_word_embeddings="1.1" not in version
    )
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape) * (1.0 if "bias" in name else 0.1)
            weight.copy_(noise + 1 if name.endswith("norm.weight") else weight / 3 + noise)
    if "1.1" in version:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(V, config.d_model))
    folder = root / version.replace(" ", "-")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("t5")


@pytest.fixture(params=VERSIONS)
def folder(request, root):
    return folder_of(request.param, root)


def theirs_of(folder):
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture
def pair(folder):
    """Our model and theirs, from one folder."""
    return T5.from_pretrained(folder), theirs_of(folder)


@pytest.fixture
def no_cast(monkeypatch):
    """Their norm computes the mean square in float32, whatever it is given."""
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")

    def forward(self, x):
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    monkeypatch.setattr(modeling.T5LayerNorm, "forward", forward)


def tokens(seed=0):
    """Sources with padding, the number of their tokens, and targets."""
    generator = torch.Generator().manual_seed(seed)
    source, target = (torch.randint(2, V, size, generator=generator) for size in ((B, S), (B, T)))
    lengths = torch.tensor([S, S - 12, 7])
    target[:, 0] = 0
    return source * padding_mask(lengths)[:, 0, 0], lengths, target


def states(model, run):
    """The inputs and outputs of each layer, and the outputs of the final norms."""
    seen, handles = {}, []
    parts = [
        (f"{stack}.{i}", layer)
        for stack in ("encoder", "decoder")
        for i, layer in enumerate(getattr(model, stack))
    ]
    parts += [(name, getattr(model, name)) for name in ("encoder_norm", "decoder_norm")]
    for name, part in parts:
        handles.append(
            part.register_forward_hook(
                lambda _module, given, output, name=name: seen.update({name: (given[0], output)})
            )
        )
    try:
        logits = run()
    finally:
        for handle in handles:
            handle.remove()
    return seen, logits


# ---- equal to theirs ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_t5_has_their_hidden_states_and_logits(pair, dtype, no_cast):
    ours, theirs = (model.to(dtype) for model in pair)
    source, lengths, target = tokens()
    mask = padding_mask(lengths)
    seen, logits = states(ours, lambda: ours(source, target, source_mask=mask))
    expected = theirs(
        input_ids=source, attention_mask=mask[:, 0, 0].long(), decoder_input_ids=target,
        output_hidden_states=True,
    )  # fmt: skip
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-10}
    real = mask[:, 0, 0]
    for stack, found, keep in (
        ("encoder", expected.encoder_hidden_states, real),
        ("decoder", expected.decoder_hidden_states, torch.ones_like(target, dtype=torch.bool)),
    ):
        n = len(getattr(ours, stack))
        assert len(found) == n + 1
        for i in range(n):
            torch.testing.assert_close(seen[f"{stack}.{i}"][0][keep], found[i][keep], **close)
        last = seen[f"{stack}_norm"][1]
        if stack == "decoder" and ours.config.tie_embeddings:
            last = last * ours.config.d_model**0.5
        torch.testing.assert_close(last[keep], found[-1][keep], **close)
    torch.testing.assert_close(logits, expected.logits, **close)
    assert logits.std() > 0.3


@torch.no_grad()
def test_t5_agrees_with_their_float32_norm_too(pair):
    ours, theirs = pair
    source, lengths, target = tokens(1)
    mask = padding_mask(lengths)[:, 0, 0]
    expected = theirs(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target)
    torch.testing.assert_close(ours(source, target, mask), expected.logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_t5_takes_the_mask_of_a_tokenizer_or_of_padding_mask(pair):
    ours, _ = pair
    source, lengths, target = tokens()
    mask = padding_mask(lengths)
    expected = ours(source, target, source_mask=mask)
    for same in (mask[:, 0, 0], mask[:, 0, 0].long()):
        assert torch.equal(ours(source, target, same), expected)
    assert torch.equal(ours(source.where(mask[:, 0, 0], 9), target, same), expected)
    assert not torch.allclose(ours(source, target), expected, atol=1e-3)
    hidden = torch.ones(1, 1, T, T, dtype=torch.bool)
    hidden[..., 3, 1] = False
    changed = ours(source, target, same, target_mask=hidden)
    assert torch.equal(changed[:, :3], expected[:, :3])
    assert not torch.allclose(changed[:, 3], expected[:, 3], atol=1e-3)


@torch.no_grad()
def test_t5_decodes_with_a_cache_what_it_scores_at_once(pair):
    ours, _ = pair
    source, lengths, _ = tokens()
    target = torch.randint(V, (B, 19))
    mask = padding_mask(lengths)
    memory, cache = ours.encode(source, mask), ours.make_cache(19)
    parts = [ours.decode(part, memory, mask, cache=cache) for part in target.split([7, 1, 11], 1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), ours(source, target, source_mask=mask))


def written(rows):
    """Their rows without the beginning token, the end and what follows it."""
    rows = [row[1:] for row in rows.tolist()]
    return [row[: row.index(1)] if 1 in row else row for row in rows]


def caches(theirs):
    """Whether their cache fits: in 5.23 it has as many layers as the encoder, also for decoders."""
    return theirs.config.num_layers >= theirs.config.num_decoder_layers


def eager(folder):
    """Both models, with an end that is chosen after a few tokens."""
    ours, theirs = T5.from_pretrained(folder), theirs_of(folder)
    counts = Counter()
    for seed in range(4):
        source, lengths, _ = tokens(seed)
        for row in greedy(ours, source, padding_mask(lengths), max_len=9, begin=0, end=None):
            counts.update(row[2:])
    often, _ = counts.most_common(1)[0]
    with torch.no_grad():  # the two share no memory
        for weight in {ours.output.weight, theirs.lm_head.weight}:
            weight[1] = 1.01 * weight[often]
    return ours, theirs


def test_t5_greedy_writes_their_tokens(folder):
    ours, theirs = eager(folder)
    n_ended = 0
    for seed in range(4):
        source, lengths, _ = tokens(seed)
        mask = padding_mask(lengths)
        expected = theirs.generate(
            source, attention_mask=mask[:, 0, 0].long(), max_new_tokens=11, do_sample=False,
            use_cache=caches(theirs),
        )  # fmt: skip
        rows = greedy(ours, source, mask, max_len=11, begin=0, end=1)
        assert rows == written(expected)
        n_ended += sum(len(row) < 11 for row in rows)
    assert 0 < n_ended


@pytest.mark.plain  # hundreds of small calls
@pytest.mark.parametrize(
    "penalty, patience, stopping",
    [(0.0, math.inf, "never"), (0.4, math.inf, "never"), (0.6, 1.0, True), (2.0, 1.0, True)],
)
def test_t5_beam_search_writes_their_tokens(folder, penalty, patience, stopping):
    ours, theirs = eager(folder)
    options = {"length_penalty": penalty, "max_len": 13, "begin": 0, "end": 1}
    compared = 0
    for seed in range(3):
        source, lengths, _ = tokens(seed)
        mask = padding_mask(lengths)
        expected = theirs.generate(
            source, attention_mask=mask[:, 0, 0].long(), max_new_tokens=13, do_sample=False,
            num_beams=3, num_return_sequences=3, length_penalty=penalty, early_stopping=stopping,
            return_dict_in_generate=True, output_scores=True, use_cache=caches(theirs),
        )  # fmt: skip
        found = beam_search(ours, source, mask, beam=3, patience=patience, **options)
        for i, hypotheses in enumerate(found):
            rows, scores = (
                x[3 * i : 3 * i + 3] for x in (expected.sequences, expected.sequences_scores)
            )
            ended = (rows == 1).any(dim=1)  # they rank what max_len cut among it; we put it last
            best = hypotheses[: int(ended.sum())]
            assert [one.tokens for one in best] == written(rows[ended])
            assert all(one.finished for one in best)
            torch.testing.assert_close(torch.tensor([one.score for one in best]), scores[ended])
            compared += len(best)
    assert compared > 3


def test_t5_samples_and_drafts_with_the_same_interface(pair):
    ours, _ = pair
    source, lengths, _ = tokens()
    options = {"max_len": 6, "begin": 0, "end": None}
    mask = padding_mask(lengths)
    cold = Sampler(top_k=1)
    rows = greedy(ours, source, mask, **options)
    assert sample(ours, source, mask, sampler=cold, **options) == rows
    assert [list(row) for row in zip(*stream(ours, source, mask, **options), strict=True)] == rows
    drafted, accepted = speculative_sample(ours, ours, source, mask, sampler=cold, **options)
    assert drafted == rows and accepted == 1


# ---- files --------------------------------------------------------------------------------------


def test_t5_writes_their_file_bit_by_bit(folder, tmp_path):
    ours = T5.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "ours")
    expected, found = (load_file(x / "model.safetensors") for x in (folder, tmp_path / "ours"))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    again = from_pretrained(tmp_path / "ours")
    assert isinstance(again, T5) and again.config == ours.config and not again.training
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


@torch.no_grad()
def test_t5_of_ours_is_loaded_by_theirs(tmp_path):
    transformers = pytest.importorskip("transformers")
    source, lengths, target = tokens()
    mask = padding_mask(lengths)[:, 0, 0]
    sizes = {"vocab_size": V, "d_model": 22, "n_heads": 2, "d_ff": 17, "head_dim": 13}
    for i, changes in enumerate(
        (
            {"n_encoder_layers": 1, "n_decoder_layers": 2, "n_buckets": 10, "max_distance": 37},
            {"activation": "geglu_tanh", "tie_embeddings": False, "norm_eps": 1e-4},
            {"activation": "swiglu", "tie_embeddings": False},
        )
    ):
        ours = T5(T5Config(**sizes, **changes)).eval()
        ours.save_pretrained(tmp_path / str(i))
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / str(i)).eval()
        assert theirs.config.decoder_start_token_id == theirs.config.pad_token_id == 0
        assert theirs.config.eos_token_id == 1
        expected = theirs(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target)
        torch.testing.assert_close(ours(source, target, mask), expected.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj must be one of .*got 'gelu'"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder must be one of .*got False"),
        ({"model_type": "mt5"}, "mt5"),
        ({"model_type": "umt5"}, "umt5"),
        ({"n_adapters": 3}, "n_adapters"),
    ],
)
def test_t5_refuses_files_of_other_models_by_name(tmp_path, change, message):
    T5(T5Config(vocab_size=V, d_model=8, n_heads=2, d_ff=8, head_dim=3)).save_pretrained(
        tmp_path / "a"
    )
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for load in (T5.from_pretrained, from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "a")


def test_t5_reads_the_settings_of_published_files(tmp_path, folder):
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    # What google/flan-t5-small and google-t5/t5-small have besides, from their config.json.
    settings |= {"d_ff": settings["d_ff"], "n_positions": 512, "output_past": True}
    settings |= {"task_specific_params": {"summarization": {"prefix": "summarize: "}}}
    settings |= {"use_cache": True, "initializer_factor": 1.0, "classifier_dropout": 0.0}
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert T5.from_pretrained(tmp_path).config == T5.from_pretrained(folder).config


# ---- with the rest of the library ---------------------------------------------------------------


def small(**changes):
    sizes = {"vocab_size": V, "d_model": 22, "n_heads": 2, "d_ff": 17, "head_dim": 13}
    depth = {"n_encoder_layers": 2, "n_decoder_layers": 2}
    return T5(T5Config(**sizes | depth | changes)).eval()


def test_t5_shares_one_table_per_stack():
    model = small(n_buckets=10, max_distance=37)
    tables = [name for name, _ in model.named_parameters() if "table" in name]
    assert tables == [
        "encoder.0.attention.positions.table", "decoder.0.self_attention.positions.table",
    ]  # fmt: skip
    own = model.decoder[0].self_attention.positions
    assert (own.bidirectional, own.max_distance, own.table.shape) == (False, 37, (10, 2))
    assert model.encoder[1].attention.positions.bidirectional
    assert all(layer.cross_attention.positions is None for layer in model.decoder)


def test_t5_names_every_parameter_once(folder):
    ours = T5.from_pretrained(folder)
    mapped = [ours.get_parameter(weights.ours) for weights in ours.weight_map()]
    assert len({id(p) for p in mapped}) == len(list(ours.parameters()))
    assert len(mapped) == len(list(ours.parameters())) + 2 + ours.config.tie_embeddings


@torch.no_grad()
def test_t5_starts_with_scores_and_logits_of_size_one():
    torch.manual_seed(1)
    for changes in ({}, {"activation": "geglu_tanh", "tie_embeddings": False}):
        model = T5(
            T5Config(vocab_size=997, d_model=211, n_heads=5, d_ff=401, head_dim=31, **changes)
        )
        source, target = torch.randint(997, (2, 3, 41))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight.zero_()
        model.reset_parameters()
        logits = model.eval()(source, target)
        assert 0.8 < logits.std() < 1.4
        layer = model.encoder[0]
        x = layer.attention_residual.norm(model.embedding(source))
        q, k, v = layer.attention._project(x, 0, 3)
        assert 0.8 < (q @ k.mT).std() < 1.25 and 0.8 < v.std() < 1.25
        assert 0.8 < layer.attention(x).std() / v.mean(dim=2).std() < 2.5
        assert layer.feed_forward.dropout.p == 0.1


def test_t5_drops_where_the_original_drops():
    model = small(dropout=0.37, attention_dropout=0.23).train()
    rates = {name: part.p for name, part in model.named_modules() if hasattr(part, "p")}
    assert set(rates.values()) == {0.37}
    norms = {name for name in rates if name.endswith("_norm.dropout")}
    assert norms == {"encoder_norm.dropout", "decoder_norm.dropout"}
    assert {layer.attention.dropout for layer in model.encoder} == {0.23}
    assert {layer.cross_attention.dropout for layer in model.decoder} == {0.23}
    x = torch.ones(97, 22)
    assert 0.2 < (model.encoder_norm(x) == 0).float().mean() < 0.5  # false alarm below 1e-12


@torch.no_grad()
def test_t5_is_recorded_and_replaced_with_equal_logits():
    for changes in ({}, {"activation": "swiglu", "tie_embeddings": False}):
        model = small(**changes)
        source, lengths, target = tokens()
        mask = padding_mask(lengths)
        expected = model(source, target, source_mask=mask)
        with recording(model) as seen:
            torch.testing.assert_close(model(source, target, source_mask=mask), expected)
        assert len(seen) == 2 + 2 * 2
        weights = seen["decoder.1.cross_attention"]
        assert weights.shape == (B, 2, T, S) and not weights[2, ..., 7:].any()
        options = {"max_len": 9, "begin": 0, "end": 1}
        rows = greedy(model, source, mask, **options)
        beams = beam_search(model, source, mask, beam=3, **options)
        packed = pack_for_decoding(model)
        assert greedy(packed, source, mask, **options) == rows
        found = beam_search(packed, source, mask, beam=3, **options)
        for ours, theirs in zip(found, beams, strict=True):
            assert [one.tokens for one in ours] == [one.tokens for one in theirs]
        faster = use_onednn(copy.deepcopy(model))
        torch.testing.assert_close(faster(source, target, source_mask=mask), expected)


def test_t5_keeps_the_laws_of_a_model():
    report = check_model(small(), vocab_size=V)
    assert report.passed, report


def test_t5_is_trained_by_the_trainer():
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 13, size=n).tolist() for n in generator.integers(2, 6, size=40)]
    data = PairBatches(rows, [row[::-1] for row in rows], max_tokens=97)
    model = small(vocab_size=13, dropout=0.0, attention_dropout=0.0)
    records = []
    config = TrainingConfig(n_steps=60, learning_rate=1e-2, warmup=10)
    Trainer(model, data, config, log=records.append).fit()
    losses = [record["loss"] for record in records]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.bad_input
def test_t5_refuses_what_it_is_not():
    with pytest.raises(ValueError, match="T5: config must be one of .*T5Config.*got .*Transformer"):
        T5(TransformerConfig(vocab_size=V))
    sizes = {"vocab_size": V, "d_model": 8, "n_heads": 2, "d_ff": 8}
    for change in ({"norm": "post"}, {"positions": "rotary"}, {"bias": True}, {"n_kv_heads": 1}):
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=f"{name} must be one of .*, got {value!r}"):
            T5Config(**sizes | change)
    model, mask = small(), torch.ones(2, 4, dtype=torch.bool)
    source = target = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, S\) with S = 3, got \(2, 4\)"):
        model(source, target, mask)
    with pytest.raises(ValueError, match="source_mask must be one of"):
        model(source, target, mask[:, :3], source_mask=mask[:, None, None, :3])
