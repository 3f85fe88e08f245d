"""Bert equals the published models' own code, reads and writes their files, and learns masks."""

import json
import math

import pytest
import torch
from torch import nn

from transformer_lib.batches import IGNORED, LabeledBatch
from transformer_lib.bert import Bert, BertConfig
from transformer_lib.corruption import MaskedBatches
from transformer_lib.cpu import pack_for_decoding, use_onednn
from transformer_lib.hub import from_pretrained
from transformer_lib.losses import label_loss
from transformer_lib.multihead import recording
from transformer_lib.testing import check_model
from transformer_lib.tokenizer import BEGIN, END
from transformer_lib.trainer import Trainer, TrainingConfig

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

B, S = 3, 7  # distinct primes: no axis can pass for another
SIZES = (  # vocabulary, width, heads, inner width, layers, positions, segments
    (31, 22, 2, 37, 3, 13, 2),
    (29, 15, 3, 11, 1, 7, 3),
    (53, 20, 1, 41, 2, 17, 1),
    (37, 44, 11, 13, 2, 11, 5),
)
HEADS = {
    "bert": ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification"),
    "roberta": ("Model", "ForMaskedLM", "ForSequenceClassification"),
}
KINDS = [(family, head) for family, heads in HEADS.items() for head in heads]


def published(family, head, sizes=SIZES[0], seed=0, dtype=torch.float64, **changes):
    """A model of the package transformers in which every parameter, norms too, is random."""
    names = "vocab_size hidden_size num_attention_heads intermediate_size num_hidden_layers"
    names += " max_position_embeddings type_vocab_size"
    options = dict(zip(names.split(), sizes, strict=True)) | {"num_labels": 5} | changes
    options["max_position_embeddings"] += 2 * (family == "roberta")
    name = family.capitalize()
    config = getattr(transformers, f"{name}Config")(**options, layer_norm_eps=1e-3)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, name + head)(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def inputs(sizes=SIZES[0], family="bert"):
    """Tokens, types and a mask with padding on the right, on the left, and in the middle."""
    generator = torch.Generator().manual_seed(1)
    pad = int(family == "roberta")
    tokens = torch.randint(2, sizes[0], (B, S), generator=generator)
    types = torch.randint(sizes[-1], (B, S), generator=generator)
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[0, 4:], mask[1, :2], mask[2, 3] = False, False, False
    return tokens.masked_fill(~mask, pad), mask, types


def outputs(model, tokens, mask, types):
    """What the published model returns, and its hidden states."""
    names = {"attention_mask": mask.long(), "token_type_ids": types}
    with torch.no_grad():
        out = model(tokens, **names, output_hidden_states=True)
    return out[0], out.hidden_states


def states(model, *arguments):
    """What our model returns, and its hidden states."""
    seen = []
    parts = [model.dropout, *model.encoder]
    hooks = [part.register_forward_hook(lambda m, i, out: seen.append(out)) for part in parts]
    with torch.no_grad():
        out = model(*arguments)
    for hook in hooks:
        hook.remove()
    return out, seen[: len(parts)]


# --- agreement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("family", "head"), KINDS)
def test_bert_agrees_with_the_published_code(tmp_path, family, head, sizes, dtype):
    theirs = published(family, head, sizes, dtype=dtype)
    ours = Bert.from_pretrained(saved(theirs, tmp_path))
    tokens, mask, types = inputs(sizes, family)
    expected, hidden = outputs(theirs, tokens, mask, types)
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    for form in (mask, mask[:, None, None]):
        found, seen = states(ours, tokens, form, types)
        torch.testing.assert_close(found, expected, atol=limit, rtol=limit)
        assert len(seen) == len(hidden) == sizes[4] + 1
        for mine, other in zip(seen, hidden, strict=True):
            torch.testing.assert_close(mine, other, atol=limit, rtol=limit)
    found, _ = states(ours, tokens, mask)
    expected, _ = outputs(theirs, tokens, mask, torch.zeros_like(types))
    torch.testing.assert_close(found, expected, atol=limit, rtol=limit)
    real = torch.randint(2, sizes[0], (B, S))
    found, _ = states(ours, real)
    everything = torch.ones_like(mask)
    expected, _ = outputs(theirs, real, everything, torch.zeros_like(types))
    torch.testing.assert_close(found, expected, atol=limit, rtol=limit)


def test_bert_gives_what_the_published_pooler_and_next_sentence_head_give(tmp_path):
    theirs = published("bert", "ForPreTraining")
    ours = Bert.from_pretrained(saved(theirs, tmp_path))
    tokens, mask, types = inputs()
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=mask.long(), token_type_ids=types)
        found = ours.next_sentence(ours.pool(ours.read(tokens, mask, types)))
    torch.testing.assert_close(found, expected.seq_relationship_logits, atol=1e-10, rtol=1e-10)
    for family in HEADS:
        base = published(family, "Model")
        mine = Bert.from_pretrained(saved(base, tmp_path / family))
        tokens, mask, types = inputs(family=family)
        with torch.no_grad():
            wanted = base(tokens, attention_mask=mask.long(), token_type_ids=types).pooler_output
            pooled = mine.pool(mine.read(tokens, mask, types))
        torch.testing.assert_close(pooled, wanted, atol=1e-10, rtol=1e-10)


def test_bert_records_the_published_attention_weights(tmp_path):
    theirs = published("bert", "Model")
    ours = Bert.from_pretrained(saved(theirs, tmp_path))
    tokens, mask, types = inputs()
    with torch.no_grad(), recording(ours) as seen:
        ours(tokens, mask, types)
        expected = theirs(tokens, mask.long(), types, output_attentions=True)[2]
    assert len(seen) == len(expected) == 3
    for mine, other in zip(seen.values(), expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


def test_bert_gives_the_same_with_onednn_and_packed(tmp_path):
    theirs = published("roberta", "ForMaskedLM", dtype=torch.float32)
    ours = Bert.from_pretrained(saved(theirs, tmp_path))
    tokens, mask, types = inputs(family="roberta")
    before, _ = states(ours, tokens, mask, types)
    after, _ = states(use_onednn(ours), tokens, mask, types)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert ours.output.weight is ours.embedding.weight
    packed, _ = states(pack_for_decoding(ours), tokens, mask, types)
    torch.testing.assert_close(packed, before, atol=1e-5, rtol=1e-5)


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "head"), KINDS)
def test_bert_saves_what_transformers_loads(tmp_path, family, head):
    theirs = published(family, head, dtype=torch.float32)
    ours = Bert.from_pretrained(saved(theirs, tmp_path / "theirs"))
    ours.save_pretrained(tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    arguments = inputs(family=family)
    found, expected = (outputs(model.eval(), *arguments)[0] for model in (again, theirs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # two kernels of attention
    back = Bert.from_pretrained(tmp_path / "ours")
    assert back.config == ours.config
    assert torch.equal(states(back, *arguments)[0], states(ours, *arguments)[0])


def test_bert_saves_a_model_of_its_own_that_transformers_loads(tmp_path):
    config = BertConfig(
        vocab_size=31, d_model=22, n_heads=2, d_ff=37, n_encoder_layers=3, max_len=13,
        family="roberta", head="classifier", n_labels=5,
    )  # fmt: skip
    ours = Bert(config).eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    arguments = inputs(family="roberta")
    found, expected = states(ours, *arguments)[0], outputs(theirs, *arguments)[0]
    again = from_pretrained(tmp_path)
    assert type(again) is Bert and torch.equal(states(again, *arguments)[0], found)
    assert found.shape == (B, 5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def rewrite(folder, change=None, **settings):
    """Change the tensors and the config.json of a checkpoint; None removes a setting."""
    file, config = folder / "model.safetensors", folder / "config.json"
    tensors = safetensors.load_file(file)
    safetensors.save_file(tensors if change is None else change(tensors), file)
    values = json.loads(config.read_text()) | settings
    config.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


def test_bert_reads_the_names_of_the_first_checkpoints(tmp_path):
    theirs = published("bert", "ForPreTraining")
    saved(theirs, tmp_path)

    def old(tensors):
        kinds = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in kinds.items():
            tensors = {key.replace(new, name): x for key, x in tensors.items()}
        embedding = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.weight"] = embedding.clone()
        tensors["bert.embeddings.position_ids"] = torch.arange(13)[None]
        return tensors

    rewrite(tmp_path, old, layer_norm_eps=None, position_embedding_type="absolute")
    ours = Bert.from_pretrained(tmp_path)
    assert ours.config.norm_eps == 1e-12
    rewrite(tmp_path, None, layer_norm_eps=1e-3)
    arguments = inputs()
    found = states(Bert.from_pretrained(tmp_path), *arguments)[0]
    torch.testing.assert_close(found, outputs(theirs, *arguments)[0], atol=1e-10, rtol=1e-10)


def test_bert_refuses_tied_tensors_that_differ(tmp_path):
    saved(published("bert", "ForMaskedLM"), tmp_path)
    name = "cls.predictions.decoder.weight"
    rewrite(tmp_path, lambda tensors: tensors | {name: torch.zeros(31, 22).double()})
    with pytest.raises(ValueError, match="cls.predictions.decoder.weight"):
        Bert.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("family", "head", "architecture", "names"),
    [
        ("bert", "Model", "BertForMaskedLM", "cls.predictions.bias"),
        ("bert", "ForMaskedLM", "BertForSequenceClassification", "classifier.weight"),
        ("bert", "ForMaskedLM", "BertModel", "cls.predictions.transform.dense.weight"),
        ("bert", "ForSequenceClassification", "BertModel", "unexpected: classifier"),
        ("roberta", "ForMaskedLM", "RobertaModel", "roberta.pooler.dense.weight"),
        ("roberta", "Model", "RobertaForSequenceClassification", "classifier.out_proj.bias"),
    ],
)
def test_bert_names_a_head_that_is_missing_or_not_asked_for(
    tmp_path, family, head, architecture, names
):
    saved(published(family, head), tmp_path)
    rewrite(tmp_path, None, architectures=[architecture])
    with pytest.raises(ValueError, match=names):
        Bert.from_pretrained(tmp_path)


@pytest.mark.parametrize(("family", "head"), [("bert", "ForPreTraining"), ("roberta", "Model")])
def test_bert_names_what_a_masked_language_model_leaves_out(tmp_path, family, head):
    """As in the checkpoints of the authors, which hold a pooler beside the masked-LM head."""
    theirs = published(family, "ForMaskedLM")
    pooler = published(family, head).state_dict()
    names = {"bert": ("bert.pooler", "cls.seq_relationship"), "roberta": ("pooler",)}[family]
    more = {name: x for name, x in pooler.items() if name.startswith(names)}
    prefix = "roberta." * (family == "roberta")
    more = {prefix + name: x.contiguous() for name, x in more.items()}
    assert len(more) == 2 * len(names)
    saved(theirs, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | more)
    with pytest.warns(UserWarning, match=f"Bert: .* also holds .*{family}.pooler.dense.weight"):
        ours = Bert.from_pretrained(tmp_path)
    arguments = inputs(family=family)
    expected = outputs(theirs, *arguments)[0]
    torch.testing.assert_close(states(ours, *arguments)[0], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("bert", "hidden_act", "gelu_new"),
        ("bert", "tie_word_embeddings", False),
        ("bert", "is_encoder_decoder", True),
        ("roberta", "pad_token_id", 0),
        ("roberta", "hidden_act", "relu"),
        ("bert", "a_new_switch", 3),
        ("bert", "architectures", ["BertForQuestionAnswering"]),
        ("roberta", "architectures", ["BertModel"]),
    ],
)
def test_bert_refuses_a_setting_by_name(tmp_path, family, setting, value):
    rewrite(saved(published(family, "Model"), tmp_path), None, **{setting: value})
    with pytest.raises(ValueError, match=f"Bert: .*{setting}"):
        Bert.from_pretrained(tmp_path)


# --- properties --------------------------------------------------------------------------------


def tiny(**changes):
    sizes = {"vocab_size": 31, "d_model": 22, "n_heads": 2, "d_ff": 37, "n_encoder_layers": 2}
    torch.manual_seed(0)
    return Bert(BertConfig(**sizes | {"max_len": 13, "dropout": 0.0} | changes)).double().eval()


@pytest.mark.parametrize("family", HEADS)
def test_bert_gives_a_row_what_it_gives_without_padding_and_alone(family):
    model = tiny(family=family, head="masked_lm")
    tokens, mask, _ = inputs(family=family)
    with torch.no_grad():
        whole = model(tokens, mask)
        alone = model(tokens[:1, :4])
        other = model(tokens.where(mask, 3), mask)
        longer = nn.functional.pad(tokens, (0, 2)), nn.functional.pad(mask, (0, 2))
        padded = model(*longer)[:, :S]
        left = model(tokens[1:2, 2:])
    torch.testing.assert_close(whole[:1, :4], alone)
    torch.testing.assert_close(other[mask], whole[mask])
    torch.testing.assert_close(padded, whole)
    same = torch.allclose(whole[1:2, 2:], left)
    assert same == (family == "roberta")  # BERT counts the columns, RoBERTa the real tokens


def test_bert_lets_every_output_see_both_sides_and_the_order():
    model = tiny(head="masked_lm")
    tokens = inputs()[0][2:]
    with torch.no_grad():
        before = model(tokens)
        for j in range(S):
            changed = tokens.clone()
            changed[0, j] = (changed[0, j] + 1) % 31
            moved = (model(changed) - before).abs().amax(dim=-1)[0]
            assert moved.min() > 1e-6
        swapped = tokens[:, [1, 0, *range(2, S)]]
        assert (model(swapped) - before).abs().amax(dim=-1)[0, 2:].min() > 1e-6


def test_bert_keeps_the_laws_of_models_except_causality():
    """The kit calls it as a model of one stack, without a mask; the tests above give one."""
    skip = {"causality by perturbation": "BERT reads both ways"}
    model = tiny(head="masked_lm", attention_dropout=0.0)
    report = check_model(model, vocab_size=31, decoder_only=True, skip=skip)
    assert report.passed, report
    without = check_model(model, vocab_size=31, decoder_only=True)
    assert [failure.property for failure in without.failures] == ["causality by perturbation"]


def test_bert_gives_only_the_positions_asked_for():
    tokens, mask, types = inputs()
    for head in ("none", "masked_lm"):
        model = tiny(head=head)
        at = mask & (tokens % 2 == 0)
        with torch.no_grad():
            torch.testing.assert_close(
                model(tokens, mask, at=at), model(tokens, mask)[at], atol=1e-12, rtol=1e-12
            )


def test_bert_tells_two_classes_apart_unless_told_otherwise():
    theirs = transformers.BertConfig().num_labels
    assert BertConfig(vocab_size=9).n_labels == theirs == 2


def test_bert_starts_near_the_uniform_loss_with_biases_at_zero():
    model = tiny(head="masked_lm")
    with torch.no_grad():
        logits = model(torch.randint(31, (64, 13))).flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, torch.randint(31, (len(logits),)))
    assert abs(float(loss) - math.log(31)) < 0.3
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    std = 0.02 * (768 / 22) ** 0.5
    assert all(weight.abs().max() <= 2 * std for weight in weights)
    whole = torch.cat([weight.detach().flatten() for weight in weights])
    assert abs(float(whole.std()) / std - 0.88) < 0.03  # what a normal cut at two keeps
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Linear))


def test_bert_in_half_precision_stays_close():
    model = tiny(head="classifier", n_labels=3)
    tokens, mask, _ = inputs()
    with torch.no_grad():
        expected = model(tokens, mask)
        found = model.bfloat16()(tokens, mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)


@pytest.mark.bad_input
def test_bert_refuses_bad_input():
    model = tiny()
    with pytest.raises(ValueError, match=r"Bert: tokens must lie in \[0, 31\), got 31 to 31"):
        model(torch.tensor([[31]]))
    with pytest.raises(ValueError, match="at most max_len = 13 positions, got 14"):
        model(torch.zeros(1, 14, dtype=torch.long))
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, S\) with S = 3"):
        model(tokens, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be boolean"):
        model(tokens, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"types must lie in \[0, 2\)"):
        model(tokens, None, tokens + 2)
    with pytest.raises(ValueError, match="has no pooler"):
        tiny(head="masked_lm").pool(torch.zeros(1, 2, 22))
    for name, value in {"bias": False, "n_kv_heads": 1, "final_norm": True, "norm": "pre",
                        "positions": "rotary", "activation": "relu", "n_labels": 0,
                        "tie_embeddings": False, "head": "other"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"Config: {name} must be"):
            tiny(**{name: value})
    with pytest.raises(ValueError, match="head must be one of .*, got 'pretraining'"):
        tiny(family="roberta", head="pretraining")


# --- training ----------------------------------------------------------------------------------


def test_label_loss_of_bert_is_the_sum_of_cross_entropies_over_what_was_masked():
    model = tiny(head="masked_lm")
    tokens, mask, _ = inputs()
    labels = tokens.masked_fill(~mask | (tokens % 2 == 0), IGNORED)
    batch = LabeledBatch(tokens, labels, mask)
    expected = nn.functional.cross_entropy(
        model(tokens, mask).flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100
    )
    torch.testing.assert_close(label_loss(model, batch), expected)
    assert batch.n_tokens == int((labels != -100).sum())
    classes = tiny(head="classifier", n_labels=5)
    asked = torch.tensor([4, 0, 2])
    expected = nn.functional.cross_entropy(classes(tokens, mask), asked, reduction="sum")
    torch.testing.assert_close(label_loss(classes, LabeledBatch(tokens, asked, mask)), expected)


@pytest.mark.slow
def test_bert_learns_a_masked_token_from_its_right_neighbor_alone():
    """The second of each pair is drawn, and decides the first: a causal model could not tell."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(13, (400, 3), generator=generator)
    pairs = torch.stack([(drawn * 5 + 3) % 13, drawn], dim=-1).flatten(1) + 4  # (400, 6)
    rows = [[BEGIN, *row, END] for row in pairs.tolist()]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=18, d_model=32, n_heads=2, d_ff=64, n_encoder_layers=1, max_len=8,
        dropout=0.0, attention_dropout=0.0, head="masked_lm",
    )  # fmt: skip
    model = Bert(config)
    data = MaskedBatches(rows, batch_size=50, mask_token=17, vocab_size=17, rate=0.3)
    plan = TrainingConfig(n_steps=300, learning_rate=1e-2, warmup=30, precision="fp32")
    Trainer(model, data, plan, loss=label_loss).fit()
    shown = torch.tensor(rows)
    labels = shown[:, 3].clone()
    shown[:, 3] = 17
    with torch.no_grad():
        guess = model.cpu().eval()(shown)[:, 3].argmax(dim=-1)
    assert float((guess == labels).double().mean()) > 0.95
