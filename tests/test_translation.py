"""A translator gives each text its own translation, whatever stands beside it."""

import copy
import dataclasses
import hashlib
import json
import math
import re
import sys
import types
import unicodedata
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.record_ctranslate2 import record_greedy, record_way
from transformer_lib.attention import padding_mask
from transformer_lib.beam_search import beam_search
from transformer_lib.datasets import multi30k
from transformer_lib.generation import greedy
from transformer_lib.models import DecoderOnly, Transformer, TransformerConfig
from transformer_lib.multihead import recording
from transformer_lib.tokenizer import BEGIN, END, Tokenizer
from transformer_lib.translation import Translator, to_ctranslate2

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = Path(str(files("transformer_lib")), "weights")
SHIPPED = sorted(path.name for path in WEIGHTS.iterdir() if path.is_dir())
GERMAN = [
    "Ein Hund läuft über eine Wiese.",
    "Zwei Kinder bauen am Strand eine Burg aus Sand.",
    "Ein Mann schläft.",
    "Eine Frau in einem roten Kleid kauft auf dem Markt Obst und spricht mit dem Verkäufer.",
    "Die Frau liest ein Buch, während ihr Hund auf dem Sofa schläft.",
    "Schnee.",
]
PAIRS = [
    ("der Hund schläft .", "the dog sleeps ."),
    ("die Katze schläft .", "the cat sleeps ."),
    ("der Hund sieht die Katze .", "the dog sees the cat ."),
    ("die Katze sieht den Hund nicht .", "the cat does not see the dog ."),
    ("wer schläft ?", "who sleeps ?"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.bpe((text for pair in PAIRS for text in pair), 300)


def tiny(tokenizer, **changes):
    torch.manual_seed(0)
    options = {"d_model": 16, "n_heads": 2, "d_ff": 16, "n_encoder_layers": 1}
    options |= {"max_len": 40, "dropout": 0.5, "n_decoder_layers": 3} | changes
    model = Transformer(TransformerConfig.tiny(tokenizer.vocab_size, **options))
    for parameter in model.parameters():  # far from uniform, so that the choices are clear
        parameter.data *= 2.0
    return model


@pytest.fixture
def random_translator(tokenizer):
    return Translator(tiny(tokenizer).eval(), tokenizer)


@pytest.fixture(scope="module")
def shipped():
    return Translator.load("multi30k-de-en")


# Translator: what comes out


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_translate(name):
    translator = Translator.load(name)
    assert not translator.model.training
    assert {p.dtype for p in translator.model.parameters()} == {torch.float32}
    (translated,) = translator(["Ein Hund. A dog."])
    assert translated and set(translated) != {" "}


def test_translator_gives_equal_translations_alone_and_in_a_batch(shipped):
    together = shipped(GERMAN)
    assert together == [shipped([text])[0] for text in GERMAN]
    assert together == shipped(GERMAN, max_tokens=32)  # one or two a batch
    assert shipped(GERMAN[::-1]) == together[::-1]
    assert len(set(together)) == len(GERMAN)


def test_greedy_translator_gives_equal_translations_alone_and_in_a_batch(shipped):
    together = shipped(tuple(GERMAN), beam=1)
    assert together == [shipped([text], beam=1)[0] for text in GERMAN]


def test_translator_gives_nothing_for_nothing(shipped):
    assert shipped([]) == []
    assert shipped(["", " \n\t", GERMAN[2]]) == ["", "", shipped([GERMAN[2]])[0]]


def search(translator, text, **options):
    """What the search itself finds for one text: greedy's line, or every hypothesis of a beam."""
    source = torch.tensor([[*translator.tokenizer.encode(text), END]])
    mask = padding_mask(torch.tensor([source.shape[1]]))
    options |= {"max_len": min(translator.model.config.max_len, 2 * source.shape[1] + 10)}
    if "beam" not in options:
        lines = greedy(translator.model, source, mask, **options)
    else:
        lines = [one.tokens for one in beam_search(translator.model, source, mask, **options)[0]]
    return [translator.tokenizer.decode(line) for line in lines]


def test_translator_with_a_beam_of_one_is_greedy(random_translator, shipped):
    text = "die Katze sieht den Hund nicht ."
    assert random_translator([text], beam=1) == search(random_translator, text)
    lines = [search(shipped, text)[0] for text in GERMAN]
    assert shipped(GERMAN, beam=1) == lines != shipped(GERMAN, beam=3)


@pytest.mark.parametrize("alpha", (0.0, 1.0, 3.0))
def test_translator_searches_as_beam_search_does(shipped, alpha):
    options = {"beam": 3, "length_penalty": alpha}
    best = [search(shipped, text, patience=1.0, **options) for text in GERMAN]
    firsts = [lines[0] for lines in best]
    assert shipped(GERMAN, **options) == firsts
    assert all(lines[0] != lines[-1] for lines in best)  # so that it matters which is taken
    assert (shipped(GERMAN, beam=3) == firsts) == (alpha < 3)  # the default is 1
    patient = [search(shipped, text, patience=9.0, **options)[0] for text in GERMAN]
    assert (patient == firsts) == (alpha < 3)  # so that patience matters


@pytest.mark.parametrize("text, most", [("wer ?", 18), ("der Hund " * 10, 40)])
def test_translator_cuts_a_translation_without_an_end(random_translator, tokenizer, text, most):
    shift = torch.zeros(tokenizer.vocab_size).index_fill(0, torch.tensor([END, 0, 1]), -math.inf)
    random_translator.model.output.register_forward_hook(lambda _m, _i, logits: logits + shift)
    n_source = len(tokenizer.encode(text)) + 1
    assert most == min(2 * n_source + 10, 40)
    seen = []
    random_translator.tokenizer = types.SimpleNamespace(
        encode_all=tokenizer.encode_all, decode=lambda row: seen.append(len(row)) or "x"
    )
    for beam in (1, 2):
        random_translator([text], beam=beam)
    assert seen == [most, most]


def test_translator_uses_no_dropout_and_keeps_the_mode_of_the_model(tokenizer):
    model = tiny(tokenizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    quiet = Translator(copy.deepcopy(model).eval(), tokenizer)
    loud = Translator(model.train(), tokenizer)
    texts = [german for german, _ in PAIRS[:2]]
    for beam in (1, 2):
        assert loud(texts, beam=beam) == quiet(texts, beam=beam)
    torch.testing.assert_close(loud.alignment(*PAIRS[0])[0], quiet.alignment(*PAIRS[0])[0])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_translator_names_a_text_that_is_too_long(random_translator, tokenizer):
    fits = "wer " * 40
    while len(tokenizer.encode(fits)) > 39:
        fits = fits[:-1]
    assert len(tokenizer.encode(fits)) == 39 and len(random_translator([fits], beam=1)) == 1
    with pytest.raises(
        ValueError, match="Translator: text 1 must have fewer than 40 tokens, got 40; split it"
    ):
        random_translator(["wer ?", fits + "x"])
    with pytest.raises(ValueError, match="max_tokens = 3, specials counted"):
        random_translator(["der Hund schläft ."], max_tokens=3)


def test_translator_refuses_one_text_instead_of_a_list(random_translator):
    with pytest.raises(ValueError, match="Translator: texts must be a list of strings, got 'wer"):
        random_translator("wer schläft ?")
    with pytest.raises(ValueError, match="beam must be an integer at least 1, got 0"):
        random_translator(["wer schläft ?"], beam=0)


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", [None, float("nan"), b"wer", 7, ["wer"]], ids=repr)
def test_translator_refuses_a_missing_text_with_its_number(random_translator, bad):
    with pytest.raises(ValueError, match="Translator: text 2 must be a string, got "):
        random_translator(["wer ?", "wer ?", bad])
    with pytest.raises(ValueError, match="alignment: text 1 must be a string, got "):
        random_translator.alignment("wer ?", bad)


def test_translator_refuses_half_a_character_with_the_number_of_its_text(random_translator):
    with pytest.raises(ValueError, match="Translator: text 1 must hold whole characters"):
        random_translator(["wer ?", "\ud800"])


def test_translator_takes_any_iterable_of_strings(random_translator):
    pd = pytest.importorskip("pandas")
    texts = ["der Hund schläft .", "  ", "wer ?"]
    expected = random_translator(texts, beam=1)
    assert expected[1] == "" != expected[0]
    column = pd.Series(texts, index=[2, 0, 9])
    for form in (tuple(texts), iter(texts), column):
        assert random_translator(form, beam=1) == expected


LOOK_ALIKE = {
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "no-break space": lambda text: text.replace(" ", "\u00a0"),
    "thin and ideographic space": lambda text: text.replace(" ", "\u2009", 1).replace(
        " ", "\u3000"
    ),
    "soft hyphen": lambda text: text.replace("ä", "\u00ad" + "ä"),
    "byte order mark": lambda text: "\ufeff" + text,
    "line break": lambda text: text.replace(" ", "\n", 1),
}


@pytest.mark.parametrize("form", LOOK_ALIKE)
def test_translator_reads_texts_alike_that_look_alike(random_translator, form):
    german, english = "der Hund schläft .", "the dög sleeps ."
    other = [LOOK_ALIKE[form](text) for text in (german, english)]
    assert other != [german, english]
    assert random_translator(other[:1], beam=1) == random_translator([german], beam=1)
    weights, *tokens = random_translator.alignment(*other)
    expected, *names = random_translator.alignment(german, english)
    assert tokens == names and torch.equal(weights, expected)


@pytest.mark.parametrize("text", ["\u00a0", "\u200b\ufeff", "\u3000\n"])
def test_translator_gives_the_empty_text_for_what_looks_empty(random_translator, text):
    assert random_translator([text], beam=1) == [""]


def test_translator_refuses_a_tokenizer_of_another_size(tokenizer):
    model = Transformer(TransformerConfig.tiny(281))
    with pytest.raises(ValueError, match=f"got sizes 281 and {tokenizer.vocab_size}"):
        Translator(model, tokenizer)


def test_repr_of_a_translator_shows_its_size(random_translator, tokenizer):
    n = sum(p.numel() for p in random_translator.model.parameters())
    want = f"Translator({n:,} parameters, {tokenizer.vocab_size:,} tokens)"
    assert repr(random_translator) == want


# Translator.load


def write(folder, model, tokenizer):
    """Write what `export_model` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(model.state_dict())
    if model.config.tie_embeddings:
        del state["output.weight"]
    save_file({k: x.half().contiguous() for k, x in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(model.config)))
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_load_reads_what_was_written(tokenizer, tmp_path, tied):
    model = tiny(tokenizer, tie_embeddings=tied)
    loaded = Translator.load(write(tmp_path / "a", model, tokenizer))
    assert loaded.model.config == model.config
    assert not any(module.training for module in loaded.model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value.half().float()), name
    shared = loaded.model.output.weight is loaded.model.embedding.weight
    assert shared == tied
    assert loaded.tokenizer.json == tokenizer.json
    assert Translator.load(str(tmp_path / "a"))([PAIRS[0][0]]) == loaded([PAIRS[0][0]])


def test_load_by_name_means_the_shipped_weights_in_any_folder(tmp_path, monkeypatch):
    (tmp_path / "multi30k-de-en").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Translator.load("multi30k-de-en").tokenizer.vocab_size == 4000
    with pytest.raises(ValueError, match="holds no exported model"):
        Translator.load("./multi30k-de-en")


def refused(folder, *parts):
    with pytest.raises(ValueError) as caught:
        Translator.load(folder)
    message = str(caught.value)
    for part in (str(folder), *parts):
        assert part in message, message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_load_refuses_a_missing_or_corrupted_file(tokenizer, tmp_path, name):
    folder = write(tmp_path / "a", tiny(tokenizer), tokenizer)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    refused(folder, f"holds no exported model: {name} not found")
    for broken in (b"", whole[: len(whole) // 2], b"\xff\xfe" + whole):
        (folder / name).write_bytes(broken)
        refused(folder, "is corrupted")


def test_load_refuses_an_unknown_name_and_lists_the_known_ones():
    refused("multi30k-de-tlh", "multi30k-de-en")


@pytest.mark.parametrize(
    "config", ["[]", '{"vocab_size": 300, "wings": 2}', "{}", '{"d_model": 0}']
)
def test_load_refuses_a_config_of_something_else(tokenizer, tmp_path, config):
    folder = write(tmp_path / "a", tiny(tokenizer), tokenizer)
    (folder / "config.json").write_text(config)
    refused(folder, "is corrupted")


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_load_refuses_a_pickle_and_does_not_execute_it(tokenizer, tmp_path):
    folder = write(tmp_path / "a", tiny(tokenizer), tokenizer)
    torch.save({"embedding.weight": Harmful(tmp_path / "harm")}, folder / "model.safetensors")
    refused(folder, "is corrupted")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda w: w.pop("encoder.0.feed_forward.up.weight"), "encoder.0.feed_forward.up"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra"),
        (lambda w: w.update({"embedding.weight": torch.zeros(2, 2)}), "embedding.weight"),
        (lambda w: w.pop("embedding.weight"), "embedding.weight"),
    ],
)
def test_load_refuses_weights_that_do_not_fit(tokenizer, tmp_path, change, part):
    folder = write(tmp_path / "a", tiny(tokenizer), tokenizer)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    refused(folder, "is corrupted", part)


# Alignment


def test_alignment_gives_each_token_weights_that_sum_to_one(random_translator, tokenizer):
    german, english = PAIRS[2]
    weights, target, source = random_translator.alignment(german, english)
    assert weights.shape == (len(target), len(source))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(target)))
    assert weights.min() >= 0 and not weights.requires_grad
    assert "".join(target) == english + "</s>" and "".join(source) == german + "</s>"


def test_alignment_is_the_cross_attention_of_one_layer(random_translator, tokenizer):
    german, english = PAIRS[3]
    source = torch.tensor([[*tokenizer.encode(german), END]])
    with recording(random_translator.model) as seen:
        random_translator.model(source, torch.tensor([[BEGIN, *tokenizer.encode(english)]]))
    for layer in range(3):
        (name,) = [n for n in seen if re.search(rf"\b{layer}\.cross_attention", n)]
        want = seen[name][0].mean(dim=0)
        for number in (layer, layer - 3):
            torch.testing.assert_close(
                random_translator.alignment(german, english, layer=number)[0], want
            )
    torch.testing.assert_close(random_translator.alignment(german, english)[0], want)


def test_alignment_of_a_token_does_not_depend_on_later_ones(random_translator):
    short = random_translator.alignment("der Hund schläft .", "the dog")
    long = random_translator.alignment("der Hund schläft .", "the dog sleeps .")
    n = len(short[1])
    torch.testing.assert_close(short[0], long[0][:n])


def test_alignment_without_a_source_or_target_leaves_the_ends(random_translator):
    weights, target, source = random_translator.alignment("", "")
    assert (target, source) == (["</s>"], ["</s>"]) and weights.tolist() == [[1.0]]


@pytest.mark.parametrize("layer", [3, -4])
def test_alignment_refuses_a_missing_layer(random_translator, layer):
    with pytest.raises(ValueError, match=f"layer must lie in -3 to 2, got {layer}"):
        random_translator.alignment(*PAIRS[0], layer=layer)


def test_alignment_of_the_shipped_model_pairs_dog_with_its_german_word(shipped):
    weights, target, source = shipped.alignment("Ein Hund schläft.", "A dog is sleeping.", layer=1)
    best = source[weights[target.index(" dog")].argmax()]
    assert best == " Hund"


# to_ctranslate2

SIZES = {"d_model": 16, "n_heads": 2, "d_ff": 24, "n_encoder_layers": 2, "n_decoder_layers": 3}
ENGINE = {  # every choice that can be converted, and some together
    "default": {},
    "pre": {"norm": "pre"},
    "pre without a last norm": {"norm": "pre", "final_norm": False},
    "learned, gelu": {"positions": "learned", "activation": "gelu", "norm": "pre"},
    "silu, no bias": {"activation": "silu", "bias": False, "norm": "pre"},
    "relu, no bias, learned, post": {"bias": False, "positions": "learned"},
    "untied": {"tie_embeddings": False, "norm": "pre"},
    "untied, post, silu": {"tie_embeddings": False, "activation": "silu"},
    "all heads have keys": {"n_kv_heads": 2, "attention_dropout": 0.5, "norm": "pre"},
}
REFUSED = [
    ("positions", "rotary", {}), ("positions", "alibi", {}), ("positions", "relative", {}),
    ("positions", "none", {}), ("norm_type", "rms", {}), ("activation", "swiglu", {}),
    ("activation", "geglu", {}), ("n_kv_heads", 1, {}), ("head_dim", 5, {}),
    ("final_norm", True, {"norm": "post"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    return pytest.importorskip("ctranslate2", reason="needs the extra ctranslate2")


def random_model(end=0.8, **changes):
    """A model whose choices are clear and depend on the source; with end=-1 it never ends."""
    options = SIZES | {"max_len": 29, "dropout": 0.5} | changes
    model = Transformer(TransformerConfig.tiny(37, **options)).eval()
    inputs = []
    hook = model.output.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)  # no bias stays at 0
        logits = model(*torch.randint(4, 37, (2, 64, 8)))  # then END gets a logit beside the best
        mean, best = inputs[0].mean(dim=(0, 1)), logits.amax(dim=-1).mean()
        model.output.weight[END] = end * mean * best / mean.square().sum()
    hook.remove()
    return model


def rows_of_engine(engine, folder, sources, kind="float32", **options):
    ready = engine.Translator(str(folder), device="cpu", compute_type=kind, intra_threads=1)
    texts = [[*map(str, source), str(END)] for source in sources]
    options = {"beam_size": 5, "max_batch_size": 32, "max_decoding_length": 28} | options
    options |= {"min_decoding_length": 0}
    return [
        [int(token) for token in one.hypotheses[0]]
        for one in ready.translate_batch(texts, **options)
    ]


def score_of(model, source, row, max_len=28):
    """What a beam with a length penalty of 1 maximizes."""
    target = row + [END] if len(row) < max_len else row
    source, shifted = torch.tensor([[*source, END]]), torch.tensor([[BEGIN, *target[:-1]]])
    with torch.no_grad():
        steps = model(source, shifted)[0].log_softmax(dim=-1)
    return steps[range(len(target)), target].sum().item() / len(target)


def rows_of_library(model, sources, beam, max_len=28):
    lengths = torch.tensor([len(source) + 1 for source in sources])
    tokens = torch.zeros(len(sources), int(lengths.max()), dtype=torch.long)
    for row, source in zip(tokens, sources, strict=True):
        row[: len(source) + 1] = torch.tensor([*source, END])
    mask = padding_mask(lengths, tokens.shape[1])
    if beam == 1:
        return greedy(model, tokens, mask, max_len=max_len)
    found = beam_search(model, tokens, mask, beam=beam, max_len=max_len, patience=1.0)
    # Ours puts what max_len cut short last; the engine ranks it by its score.
    return [max(hypotheses, key=lambda one: one.score).tokens for hypotheses in found]


def agree(model, sources, ours, theirs):
    for source, mine, row in zip(sources, ours, theirs, strict=True):
        if mine != row:  # only where both are as good: the engine adds in another order
            gap = abs(score_of(model, source, mine) - score_of(model, source, row))
            print(f"{mine} and {row} differ by {gap:.1e} nats per token")
            assert gap < 1e-4


@pytest.mark.parametrize("name", ENGINE)
def test_to_ctranslate2_gives_what_the_model_gives(engine, tmp_path, name):
    sources = [torch.randint(4, 37, (n,)).tolist() for n in (1, 2, 3, 5, 7, 11, 13, 17)]
    model = random_model(**ENGINE[name])
    folder = tmp_path / "new" / "model"
    assert to_ctranslate2(model, folder) == folder
    ours = rows_of_library(model, sources, 1)
    agree(model, sources, ours, rows_of_engine(engine, folder, sources, beam_size=1))
    targets = [torch.randint(4, 37, (n,)).tolist() for n in (19, 17, 13, 11, 7, 5, 3, 2)]
    ready = engine.Translator(str(folder), device="cpu", compute_type="float32", intra_threads=1)
    texts = [[*map(str, source), str(END)] for source in sources]
    scored = ready.score_batch(texts, [list(map(str, target)) for target in targets])
    for source, target, found in zip(sources, targets, scored, strict=True):
        mean, ours = sum(found.log_probs) / (len(target) + 1), score_of(model, source, target)
        assert mean == pytest.approx(ours, rel=1e-4)  # sums of thousands, in another order
        assert abs(ours / score_of(model, [4, 5], target) - 1) > 2e-4  # the source matters
    endless = random_model(end=-1.0, **ENGINE[name])  # the searches stop by rules of their own
    to_ctranslate2(endless, folder)
    ours, theirs = rows_of_library(endless, sources, 5), rows_of_engine(engine, folder, sources)
    assert {len(row) for row in ours} == {28}
    agree(endless, sources, ours, theirs)


def test_to_ctranslate2_copies_the_constant_of_the_norms(engine, tmp_path):
    model = random_model(norm="pre")
    sources = [[5, 7, 11], [13, 4], [17, 19, 23, 29]]
    before = rows_of_library(model, sources, 5)
    for part in model.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 3.0
    after = rows_of_library(model, sources, 5)
    assert after != before
    to_ctranslate2(model, tmp_path / "model")
    assert rows_of_engine(engine, tmp_path / "model", sources) == after


def test_to_ctranslate2_takes_a_model_of_another_precision_and_leaves_it_alone(engine, tmp_path):
    model = random_model(norm="pre").bfloat16().train()
    before = copy.deepcopy(model.state_dict())
    to_ctranslate2(model, tmp_path / "model")
    assert model.training and model.output.weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    plain = model.float().eval()
    sources = [[5, 7, 11], [13, 4], [17, 19, 23, 29]]
    assert rows_of_engine(engine, tmp_path / "model", sources) == rows_of_library(plain, sources, 5)


def test_to_ctranslate2_gives_the_texts_of_the_shipped_model(engine, tmp_path):
    translator = Translator.load("multi30k-en-de")
    captions = (ROOT / "tests" / "captions.txt").read_text("utf-8").splitlines()
    assert len(set(captions)) == 100
    to_ctranslate2(translator.model, tmp_path / "model")
    encode, decode = translator.tokenizer.encode_all, translator.tokenizer.decode
    rows = rows_of_engine(engine, tmp_path / "model", encode(captions), max_decoding_length=60)
    ours = translator(captions)
    differ = [pair for pair in zip(ours, map(decode, rows), strict=True) if pair[0] != pair[1]]
    assert not differ


def test_record_ctranslate2_compares_the_engine_and_8_bits_with_the_library(engine, corpus):
    found = record_way("multi30k-de-en", 3)
    assert found["weights_sha256"] == recorded("multi30k-de-en")["weights_sha256"]
    ways = found["ways"]
    assert found["sentences"] == 3
    assert list(ways) == ["ours", "ours, 8 bits", "CTranslate2", "CTranslate2, 8 bits"]
    for name, one in ways.items():
        assert one["seconds"] > 0 and one["bleu_13a"] > 0 and 0 <= one["equal"] <= 3
        if "8 bits" not in name:
            assert (one["equal"], one["bleu_13a"]) == (3, found["bleu_13a"])


def test_record_of_greedy_decoding_differs_from_the_engine_by_a_limit_of_length_alone(
    engine, corpus
):
    record = json.loads((ROOT / "results" / "ctranslate2-greedy.json").read_text())
    assert list(record["directions"]) == ["multi30k-de-en", "multi30k-en-de"]
    for one in record["directions"].values():
        assert one["sentences"] == 1000 == one["equal"] + len(one["different"])
        for ours, theirs in one["different"]:  # a tie would need its gap of scores here
            assert ours != theirs and (theirs.startswith(ours) or ours.startswith(theirs))
    assert record_greedy("multi30k-de-en", 3) == {"sentences": 3, "equal": 3, "different": []}


@pytest.mark.parametrize("field, value, others", REFUSED)
def test_to_ctranslate2_refuses_by_name_what_it_cannot_convert(tmp_path, field, value, others):
    model = random_model(**{field: value}, **others)
    allowed = {
        "positions": ("sinusoidal", "learned"), "norm_type": ("layer",), "n_kv_heads": (2,),
        "activation": ("relu", "gelu", "silu"), "final_norm": (False,), "head_dim": (8.0,),
    }[field]  # fmt: skip
    name = {"head_dim": "d_head"}.get(field, field)
    message = f"to_ctranslate2: {name} must be one of {allowed}, got {value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        to_ctranslate2(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_to_ctranslate2_refuses_norms_with_different_constants(tmp_path):
    model = random_model(norm="pre")
    model.decoder_norm.eps = 1e-3
    with pytest.raises(ValueError, match=r"eps must be one of \(1e-05,\), got 0\.001"):
        to_ctranslate2(model, tmp_path / "model")


def test_to_ctranslate2_refuses_parameters_that_the_engine_does_not_know(tmp_path):
    model = random_model()
    model.encoder[1].adapter = torch.nn.Linear(3, 5)
    with pytest.raises(ValueError, match="of a Transformer, got encoder.1.adapter.bias"):
        to_ctranslate2(model, tmp_path / "model")


def test_to_ctranslate2_needs_the_four_special_tokens(tmp_path):
    model = Transformer(TransformerConfig.tiny(3, **SIZES))
    with pytest.raises(ValueError, match="vocab_size must be an integer at least 4, got 3"):
        to_ctranslate2(model, tmp_path / "model")


@pytest.mark.bad_input
def test_to_ctranslate2_refuses_a_decoder_without_an_encoder(tmp_path):
    with pytest.raises(ValueError, match="must be a Transformer, got a DecoderOnly"):
        to_ctranslate2(DecoderOnly(TransformerConfig.tiny(37, **SIZES)), tmp_path / "model")


def test_to_ctranslate2_replaces_its_own_folder_only(engine, tmp_path):
    model, folder = random_model(), tmp_path / "model"
    folder.mkdir()
    to_ctranslate2(model, folder)  # empty
    names = {"config.json", "export.json", "model.bin", "shared_vocabulary.json"}
    assert {path.name for path in folder.iterdir()} == names
    first = (folder / "model.bin").read_bytes()
    to_ctranslate2(random_model(norm="pre"), folder)
    assert (folder / "model.bin").read_bytes() != first
    seal = (folder / "export.json").read_text("utf-8")
    for text in ("{}", "[]", "no json", '{"class": "Transformer"}'):
        (folder / "export.json").write_text(text, "utf-8")
        with pytest.raises(ValueError, match="that to_ctranslate2 did not write"):
            to_ctranslate2(model, folder)
    (folder / "export.json").write_text(seal, "utf-8")
    (folder / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(ValueError, match=r"to_ctranslate2 did not write \(notes.txt\); choose"):
        to_ctranslate2(model, folder)
    assert (folder / "notes.txt").read_text("utf-8") == "mine"
    with pytest.raises(ValueError, match="notes.txt is a file; choose another folder"):
        to_ctranslate2(model, folder / "notes.txt")


def test_to_ctranslate2_says_how_to_install_the_engine(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2.specs", None)
    with pytest.raises(ImportError, match="part of the extra 'ctranslate2': pip install"):
        to_ctranslate2(random_model(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_to_ctranslate2_writes_the_whole_folder_or_nothing(engine, tmp_path, monkeypatch):
    folder = to_ctranslate2(random_model(), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(json, "dumps", fail)  # of the last file
    with pytest.raises(OSError, match="disk is full"):
        to_ctranslate2(random_model(norm="pre"), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


# What the repository holds

RECORDED = sorted(path.parent.name for path in (ROOT / "results").glob("multi30k-*/scores.json"))


def recorded(name):
    return json.loads((ROOT / "results" / name / "scores.json").read_text(encoding="utf-8"))


def lines(name, file):
    path = ROOT / "results" / name / f"{file}.txt"
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def test_shipped_weights_and_records_have_the_same_names():
    assert "multi30k-de-en" in SHIPPED and SHIPPED == RECORDED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_and_are_those_that_were_scored(name):
    file = WEIGHTS / name / "model.safetensors"
    assert file.stat().st_size <= 12e6
    found = recorded(name)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == found["weights_sha256"]
    translator = Translator.load(name)
    assert found["parameters"] == sum(p.numel() for p in translator.model.parameters())
    later = {"norm_eps": None, "head_dim": None}  # options that came after the record
    assert found["model"] | later == dataclasses.asdict(translator.model.config)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_shipped_weights_give_the_recorded_translations(corpus, name):
    _, source, target = name.split("-")
    sources = [pair[0] for pair in multi30k(source, target, "test_2016_flickr")][:60]
    for file, beam in (("hypotheses", 5), ("hypotheses-greedy", 1)):
        written = Translator.load(name)(sources, beam=beam)
        same = sum(a == b for a, b in zip(written, lines(name, file)[:60], strict=True))
        assert same >= 57  # processors that add in another order may decide a near tie otherwise
