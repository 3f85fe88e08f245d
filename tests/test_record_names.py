"""record_names: its numbers, its counts, a run of two steps, and the record that we keep."""

import json
from pathlib import Path

import pytest

from benchmarks import record_names
from benchmarks.record_names import count, main, numbers
from transformer_lib.datasets import number_names
from transformer_lib.recipes import RECIPES

RECORD = Path(__file__).resolve().parents[1] / "results" / "number-names.json"


def test_numbers_asked_for_are_none_of_those_trained_on():
    recipe = RECIPES["number-names"]
    asked = numbers(recipe)
    assert len(asked["held out"]) == 1000 and max(asked["below 1,000"]) < 1000
    learned = {*recipe.pairs("train")}
    for some in asked.values():
        assert not learned & {*number_names("en", "de", some)}
    pairs = {*number_names("en", "de", range(1000))}
    assert len(asked["below 1,000"]) == len(pairs - learned)


def test_count_counts_exact_translations_by_number_of_digits():
    def translator(sources, beam):
        assert beam == 1
        return ["acht", "neun", "elf", "hunderteins", "zweihundert"]

    assert count(translator, [8, 7, 11, 101, 200]) == {"1": [1, 2], "2": [1, 1], "3": [1, 2]}


def test_a_short_run_writes_a_row_for_each_number_of_steps_and_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(record_names, "numbers", lambda recipe: {"held out": [7, 21]})
    target = tmp_path / "names.json"
    main([str(target), "--steps", "2", "3", "--seeds", "1"])
    report = json.loads(target.read_text())
    assert [(row["n_steps"], row["seed"]) for row in report["rows"]] == [(2, 0), (3, 0)]
    for row in report["rows"]:
        assert row["right"] == {"held out": {"1": [0, 1], "2": [0, 1]}}
        assert row["validation_loss"] > 3


@pytest.mark.skipif(not RECORD.exists(), reason="the results are in the repository")
def test_the_record_has_three_seeds_of_the_full_recipe():
    rows = json.loads(RECORD.read_text())["rows"]
    full = [row for row in rows if row["n_steps"] == RECIPES["number-names"].training.n_steps]
    assert sorted(row["seed"] for row in full) == [0, 1, 2]
    for row in rows:
        held = row["right"]["held out"].values()
        assert sum(n for _, n in held) == 1000
        assert all(0 <= right <= n for part in row["right"].values() for right, n in part.values())
