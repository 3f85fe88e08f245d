"""record_test_set: what it computes on a few pairs, and the record that we keep."""

import json

import pytest
from test_translation import PAIRS, RECORDED, ROOT, recorded, tiny

from transformer_lib.tokenizer import Tokenizer
from transformer_lib.translation import Translator

module = pytest.importorskip("benchmarks.record_test_set", reason="needs sacrebleu")
RECORD = json.loads((ROOT / "results" / "test-set.json").read_text(encoding="utf-8"))


def test_intervals_compare_the_second_system_with_the_first():
    sides = list(map(list, zip(*PAIRS, strict=True)))
    found = module.intervals({"good": sides[1], "bad": sides[0]}, sides[1])
    assert list(found) == ["good", "bad"] and found["good"]["score"] == pytest.approx(100)
    assert found["good"]["p_value"] is None and 0 < found["bad"]["p_value"] < 0.05
    assert found["bad"]["score"] < 50 and found["bad"]["ci"] >= 0


def test_stopping_counts_prefixes_and_equal_translations():
    tokenizer = Tokenizer.bpe((text for pair in PAIRS for text in pair), 300)
    sources, references = map(list, zip(*PAIRS, strict=True))
    found = module.stopping(Translator(tiny(tokenizer), tokenizer), sources, references, beam=2)
    assert list(found) == list(module.PATIENCE)
    assert found["bound"]["same"] == len(PAIRS) >= found["patience 1"]["same"]
    assert found["bound"]["prefixes"] >= found["patience 2"]["prefixes"]
    assert found["patience 2"]["prefixes"] >= found["patience 1"]["prefixes"] > 0


def test_record_is_of_the_translations_that_the_repository_holds():
    assert sorted(RECORD["ways"]) == RECORDED
    for name, way in RECORD["ways"].items():
        run = recorded(name)
        assert way["weights_sha256"] == run["weights_sha256"]
        assert way["scored_again_equal"] and way["translated_again_equal"] >= 95
        for search, one in way["intervals"].items():
            assert one["score"] == pytest.approx(run["scores"][search]["13a"]["bleu"])
        ours = run["scores"]["hypotheses"]["13a"]["bleu"]  # Translator stops with patience 1
        assert way["stopping"]["patience 1"]["bleu_13a"] == pytest.approx(ours, abs=0.1)
