"""The record of the summaries holds what the chapter reads, and what it takes to repeat it."""

import json

import pytest

from benchmarks import record_summaries as module
from benchmarks.record_summaries import SETTINGS, Task, known, record_summaries

PAIRS = [(f"def add_{i}(x):\n    return x + {i} * {i + 1}", f"Add {i} to it.") for i in range(60)]
SIZES = {"d_model": 16, "n_heads": 2, "head_dim": 5, "d_ff": 11, "dropout": 0.0}
SMALL = {
    "vocab_size": 300, "n_pretrain": 4, "n_finetune": 6, "validate_every": 2,
    "n_validation": 5, "n_test": 7, "max_tokens": 256,
    "model": SIZES | {"n_encoder_layers": 1, "n_decoder_layers": 1, "activation": "geglu_tanh"},
    "training": {"learning_rate": 1e-2, "ema_decay": 0.5},
}  # fmt: skip


@pytest.fixture(autouse=True)
def pairs(monkeypatch):
    parts = {"train": PAIRS[:40], "val": PAIRS[40:50], "test": PAIRS[50:]}
    monkeypatch.setattr(module, "docstring_pairs", lambda split: list(parts[split]))


def test_record_summaries_trains_both_models_and_writes_their_texts(tmp_path):
    found = record_summaries(tmp_path / "record.json", **SMALL)
    assert json.loads((tmp_path / "record.json").read_text()) == json.loads(json.dumps(found))
    assert found["pairs"] == {"train": 40, "val": 5, "test": 7}
    scratch, pretrained = found["runs"].values()
    assert [stage["task"] for stage in scratch] == ["summaries"]
    assert [stage["task"] for stage in pretrained] == ["spans", "summaries"]
    for stages in (scratch, pretrained):
        assert list(stages[-1]["validation_loss"]) == [2, 4, 6]
        losses = list(stages[-1]["validation_loss"].values())
        assert losses[-1] < losses[0]
    assert scratch[0]["target_tokens"] == pretrained[1]["target_tokens"]
    assert scratch[0]["validation_loss"] != pretrained[1]["validation_loss"]
    assert [len(texts) for texts in found["summaries"].values()] == [7, 7]
    chosen = list(zip(found["sources"], found["references"], strict=True))
    assert len(chosen) == 7 and set(chosen) <= set(PAIRS[50:])
    assert found["versions"]["torch"] and found["settings"]["beam"] == SETTINGS["beam"]


def test_record_summaries_hides_spans_of_training_texts_alone():
    task = Task(SETTINGS | SMALL)
    batch = next(task.spans("train").endless())
    lowest = task.tokenizer.vocab_size
    assert (batch.source >= lowest).any(dim=1).all() and (batch.target >= lowest).any(dim=1).all()
    assert int(batch.target.max()) == task.vocab_size - 1
    assert known([3, lowest, 5], task) == [3, 5]
    batch = next(task.summaries("val").endless())
    assert int(batch.target.max()) < lowest
