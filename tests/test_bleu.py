"""BLEU by three protocols is the number that others compute, and says how it was computed."""

import copy
import dataclasses
import logging
import math
import re
import sys
import types

import pytest
from test_translation import RECORDED, lines, recorded

from transformer_lib import bleu as module
from transformer_lib.bleu import BleuScore, bleu
from transformer_lib.datasets import multi30k

HYPOTHESES = ["the cat sat on the mat", "a dog barks loudly at me"]
REFERENCES = ["the cat sat on a mat", "a dog barks at me"]


def test_bleu_equals_a_score_computed_by_hand():
    found = bleu(["the cat sat on the mat"], ["the cat sat on a mat"])
    shares = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
    assert found.precisions == pytest.approx([100 * share for share in shares])
    assert found.bleu == pytest.approx(100 * math.prod(shares) ** 0.25)
    assert (found.brevity_penalty, found.n_hypothesis, found.n_reference) == (1.0, 6, 6)


def test_bleu_penalizes_short_output():
    found = bleu(["the cat sat on the"], ["the cat sat on the mat today"])
    assert (found.n_hypothesis, found.n_reference) == (5, 7)
    assert found.brevity_penalty == pytest.approx(math.exp(1 - 7 / 5))
    assert found.bleu == pytest.approx(100 * math.exp(1 - 7 / 5))


def test_bleu_is_sacrebleus_own_score():
    from sacrebleu import corpus_bleu

    sides = [[*side, "Well, well: it's 5 o'clock."] for side in (HYPOTHESES, REFERENCES)]
    kept = copy.deepcopy(sides)
    found, theirs = bleu(*sides), corpus_bleu(sides[0], [sides[1]])
    assert found.bleu == theirs.score and list(found.precisions) == theirs.precisions
    assert isinstance(found, BleuScore) and sides == kept
    assert re.match(r"nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:", found.signature)
    assert " after " not in found.signature
    assert bleu(tuple(sides[0]), tuple(sides[1])) == found


def test_bleu_13a_sees_capitals_and_cuts_punctuation():
    assert bleu(["A dog."] * 4, ["a dog ."] * 4).precisions[0] == pytest.approx(100 * 2 / 3)


def test_bleu_moses_lower_scores_what_multi30ks_script_makes():
    assert module._moses("en")[0]("A Dog doesn’t bark.") == "a dog doesn &apos;t bark ."
    assert module._moses("de")[0]("„Wo’s?“, sagt er") == "&quot; wo &apos; s ? &quot; , sagt er"
    sides = ["A DOG doesn’t bark (much)."], ["a dog doesn't bark ( much ) ."]
    found = bleu(*sides, protocol="moses-lower")
    assert found.bleu == pytest.approx(100.0) and found.n_hypothesis == found.n_reference == 9
    assert bleu(*sides).bleu < 60
    german = bleu(["Wo's?"], ["wo 's ?"], protocol="moses-lower", language="de")
    assert german.n_hypothesis == 4  # wo ' s ?
    assert re.search(r"tok:none.* after moses-lower \(de, sacremoses [\d.]+\)$", german.signature)


def test_bleu_moses_lower_lower_cases_before_it_cuts():
    """Before a capital a full stop is cut off; as in Multi30k's script, there are none left."""
    assert module._moses("de")[0]("Er schläft. Niemand wacht.") == "er schläft. niemand wacht ."


def fake_spacy(monkeypatch):
    asked = []

    def blank(language):
        asked.append(language)
        return lambda text: text.replace("n't", " n't").split()

    module = types.ModuleType("spacy")
    module.blank, module.__version__ = blank, "0.0.7"
    monkeypatch.setitem(sys.modules, "spacy", module)
    return asked


def test_bleu_spacy_lower_scores_lower_cased_tokens_of_spacy(monkeypatch):
    asked = fake_spacy(monkeypatch)
    sides = ["It isn't THAT far"], ["it is n't that far"]
    found = bleu(*sides, protocol="spacy-lower", language="en")
    assert found.bleu == pytest.approx(100.0) and found.n_hypothesis == 5 and asked == ["en"]
    found = bleu(["It ISN'T far"], ["it isn't far"], protocol="spacy-lower")
    assert (found.n_hypothesis, found.n_reference) == (3, 4)  # cut first, then lower-cased
    assert found.signature.endswith(" after spacy-lower (en, spacy 0.0.7)")


def test_bleu_spacy_lower_uses_spacys_own_tokens():
    pytest.importorskip("spacy")
    assert module._spacy("en")[0]("He doesn't.") == "he does n't ."


@pytest.mark.parametrize(
    "package, protocol, fix",
    [
        ("sacrebleu.metrics", "13a", r"chapters.*pip install"),
        ("sacremoses", "moses-lower", r"chapters.*pip install"),
        ("spacy", "spacy-lower", "bleu: 'spacy-lower' needs spaCy: pip install spacy"),
    ],
)
def test_bleu_names_a_missing_package_and_how_to_get_it(monkeypatch, package, protocol, fix):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=fix):
        bleu(HYPOTHESES, REFERENCES, protocol=protocol)


def test_bleu_scores_tokens_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        bleu(["a dog ."] * 200, ["a dog ."] * 200, protocol="moses-lower")
    assert not caplog.records


@pytest.mark.parametrize(
    "sides, options, message",
    [
        ((["a"], ["a", "b"]), {}, "for each hypothesis, got 1 hypotheses and 2 references"),
        (([], []), {}, "for each hypothesis, got 0 hypotheses and 0 references"),
        (("ab", ["a", "b"]), {}, "texts must be a list of strings, got 'ab'"),
        ((["a", "b"], "ab"), {}, "texts must be a list of strings, got 'ab'"),
        ((["a"], ["a"]), {"protocol": "intl"}, r"one of \('13a', 'moses-lower', .* got 'intl'"),
    ],
)
def test_bleu_refuses_what_cannot_be_scored(sides, options, message):
    with pytest.raises(ValueError, match=f"^bleu: .*{message}"):
        bleu(*sides, **options)


@pytest.mark.parametrize("language", ["klingon", "da", "", "english"])
def test_bleu_refuses_a_language_that_moses_does_not_know(language):
    with pytest.raises(
        ValueError, match=rf"language must be one of \[.*'de'.*\], got '{language}'"
    ):
        bleu(["a b c d"], ["a b c d"], protocol="moses-lower", language=language)


def test_bleu_refuses_a_language_that_spacy_does_not_know(monkeypatch):
    def blank(language):
        raise ImportError(f"[E048] Can't import language {language}")

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(blank=blank, __version__="0"))
    with pytest.raises(ValueError, match="bleu: spaCy cannot tokenize language 'klingon': .*E048"):
        bleu(["a"], ["a"], protocol="spacy-lower", language="klingon")


@pytest.mark.parametrize("protocol", ["13a", "moses-lower"])
@pytest.mark.parametrize(
    "text", ["今天天气很好我们去公园玩", "今日は天気がいいです。", "วันนี้อากาศดีมาก"]
)
def test_bleu_refuses_text_without_spaces_and_scores_it_with_spaces(protocol, text):
    with pytest.raises(ValueError, match=f"bleu: '{protocol}' separates words at spaces"):
        bleu([text], [text], protocol=protocol)
    assert bleu([" ".join(text)], [" ".join(text)], protocol=protocol).bleu == pytest.approx(100)
    assert bleu([f"He said {text[:5]} to us"] * 2, [f"He said {text[:5]} to us"] * 2).bleu > 99


def test_bleu_accepts_words_of_at_most_six_letters_without_spaces():
    assert bleu(["今天天气很好"], ["今天天气很好"]).n_hypothesis == 1
    with pytest.raises(ValueError, match="separates words at spaces"):
        bleu(["今天天气很好我"], ["今天天气很好我"])


def test_bleu_score_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        bleu(HYPOTHESES, REFERENCES).bleu = 0.0


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", [None, float("nan"), b"wer", 7, ["wer"]], ids=repr)
def test_bleu_refuses_what_is_no_text(bad):
    for sides, name in (
        (([bad], ["a"]), "hypothesis 0"),
        ((["a", "b"], ["a", bad]), "reference 1"),
    ):
        with pytest.raises(ValueError, match=f"bleu: {name} must be a string, got "):
            bleu(*sides)


def test_bleu_refuses_half_a_character():
    with pytest.raises(ValueError, match="bleu: hypothesis 1 must hold whole characters"):
        bleu(["a", "\ud800"], ["a", "b"])


def test_bleu_takes_any_iterable_of_strings():
    pd = pytest.importorskip("pandas")
    signed = bleu(["a b c d e"], ["a b c d f"])
    for form in (iter, tuple, pd.Series):
        assert bleu(form(["a b c d e"]), form(["a b c d f"])) == signed


# The recorded scores


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("file", ["hypotheses", "hypotheses-greedy"])
def test_recorded_score_is_that_of_the_recorded_translations(corpus, name, file):
    _, source, target = name.split("-")
    references = [pair[1] for pair in multi30k(source, target, "test_2016_flickr")]
    before = recorded(name)["scores"][file]
    for protocol in ("13a", "moses-lower"):
        found = bleu(lines(name, file), references, protocol=protocol, language=target)
        for field in dataclasses.fields(BleuScore):
            if field.name != "signature":  # which names the version of sacrebleu
                value = getattr(found, field.name)
                assert value == pytest.approx(before[protocol][field.name], rel=1e-12), field.name


@pytest.mark.slow
def test_bleu_counts_the_tokens_that_wu_and_others_count(corpus):
    """The README of their code prints reflen=12103 for the German test set."""
    german = [pair[0] for pair in multi30k("de", "en", "test_2016_flickr")]
    assert bleu(german, german, protocol="moses-lower", language="de").n_reference == 12_103
