"""The record of masked language modeling: a split without leaks, and a choice by validation."""

import json

from benchmarks import record_masked
from benchmarks.record_masked import (
    bag_of_words,
    main,
    paragraphs,
    pretrain,
    rows,
    summary,
    task,
)
from transformer_lib.tokenizer import BEGIN, END, Tokenizer


def test_task_has_as_many_classes_as_functions_and_no_text_twice():
    parts = {
        "test": [("ClassDef", "a class of some kind"), ("FunctionDef", "do it with a file")],
        "val": [("ClassDef", "a class of some kind"), ("ClassDef", "another kind of class")],
        "train": [
            ("FunctionDef", "do it with a file\n\nand more of it"),
            ("FunctionDef", "do it without\nany file\n\nSee above."),
            ("FunctionDef", "too short"), ("Module", "what this file is for"),
            ("ClassDef", "one more kind of class"), ("ClassDef", "yet one more kind of class"),
        ],
    }  # fmt: skip
    made = task(parts)
    assert sorted(made["test"]) == [("a class of some kind", 1), ("do it with a file", 0)]
    assert made["val"] == []
    assert len(made["train"]) == 2 and ("do it without any file", 0) in made["train"]


def test_paragraphs_and_rows_keep_every_token_of_a_long_text_once():
    texts = paragraphs([("Module", "a paragraph of\nenough letters\n\nshort\n\n" + "word " * 60)])
    assert texts == ["a paragraph of enough letters", " ".join(["word"] * 60)]
    tokenizer = Tokenizer.words(texts)
    cut = rows(tokenizer, texts, cut=True)
    assert all(row[0] == BEGIN and row[-1] == END and len(row) <= 32 for row in cut)
    assert sum(len(row) - 2 for row in cut) == 5 + 60
    assert [len(row) for row in rows(tokenizer, texts, cut=False)] == [7, 32]


def test_summary_chooses_the_learning_rate_by_validation_and_never_by_test():
    runs = [
        {"arm": "a", "labels": 8, "seed": seed, "rate": rate, "validation": val, "test": test}
        for rate, val, test in ((0.1, 0.7, 0.5), (0.2, 0.6, 0.9))
        for seed in range(2)
    ] + [{"arm": "words", "labels": 8, "seed": 0, "validation": 0.5, "test": 0.4}]
    assert summary(runs) == [
        {"arm": "a", "labels": 8, "rate": 0.1, "test": [0.5, 0.5]},
        {"arm": "words", "labels": 8, "rate": None, "test": [0.4]},
    ]


def test_bag_of_words_learns_which_words_decide():
    train = [("return the size", 0), ("a file object", 1)] * 4
    parts = {"val": [("return it", 0), ("an object", 1)], "test": [("a thing", 1), ("return", 0)]}
    assert bag_of_words(parts, train) == (1.0, 1.0)


def test_pretrain_records_what_it_read_and_how_well_it_restores_words():
    texts = ["one two three four", "two three four five", "three four five one"] * 4
    tokenizer = Tokenizer.words(texts)
    model, record = pretrain(tokenizer, texts, texts[:3], 10)
    assert model.config.vocab_size == tokenizer.vocab_size + 1
    assert (record["steps"], record["rows"], record["tokens"]) == (10, 12, 48)
    assert [step for step, _ in record["validation_loss"]] == list(range(1, 11))
    assert record["unigram_loss"] > 0 and 0 <= record["accuracy"] <= 1


def test_pretrain_writes_over_an_earlier_record(tmp_path, monkeypatch):
    texts = [f"one two three {word} of the file" for word in ("name", "size", "end", "start")]
    parts = {part: [("FunctionDef", text) for text in texts] for part in ("train", "val")}
    monkeypatch.setattr(record_masked, "docstrings", lambda: parts)
    monkeypatch.setattr(record_masked, "VOCABULARY", 280)
    monkeypatch.setattr(record_masked, "GAPS", ("one two ___ of",))
    (tmp_path / "tuning.json").write_text("{}")
    for _ in range(2):
        main(["pretrain", str(tmp_path), "--steps", "10"])
    files = {"config.json", "model.safetensors", "tokenizer.json", "pretraining.json"}
    assert {path.name for path in tmp_path.iterdir()} == files | {"tuning.json"}
    record = json.loads((tmp_path / "pretraining.json").read_text())
    assert record["pretraining"]["steps"] == 10 and [*record["gaps"]] == ["one two ___ of"]
