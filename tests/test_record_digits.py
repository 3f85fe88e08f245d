"""record_digits: its split, its moved patches, a run of two steps, and the record that we keep."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import record_digits
from benchmarks.record_digits import MODELS, PARTS, correct, digits, loss, main, shuffled
from transformer_lib.batches import LabeledBatch

RECORD = Path(__file__).resolve().parents[1] / "results" / "digits.json"


def test_digits_are_split_into_parts_without_a_common_image():
    pytest.importorskip("sklearn", reason="needs the extra chapters")
    parts = digits()
    assert [part.n_tokens for part in parts] == PARTS and sum(PARTS) == 1797
    assert all(part.inputs.shape[1:] == (1, 8, 8) for part in parts)
    assert max(part.inputs.max() for part in parts) == 1 and parts[0].inputs.min() == 0
    again = digits()
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(parts, again, strict=True))
    assert set(parts[2].labels.tolist()) == set(range(10))


def test_shuffled_moves_the_same_patches_of_each_image():
    images = torch.arange(3 * 64.0).view(3, 1, 8, 8)
    moved = shuffled(LabeledBatch(images, torch.arange(3))).inputs
    assert torch.equal(moved[1] - moved[0], torch.full((1, 8, 8), 64.0))
    assert not torch.equal(moved, images)
    assert moved.flatten(1).sort().values.tolist() == images.flatten(1).tolist()
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            patch = moved[0, 0, row : row + 2, column : column + 2]
            assert (patch - patch[0, 0]).tolist() == [[0, 1], [8, 9]]


def test_models_score_ten_classes_and_two_are_of_like_size():
    images = torch.rand(5, 1, 8, 8)
    sizes = {name: sum(p.numel() for p in make().parameters()) for name, make in MODELS.items()}
    assert all(make()(images).shape == (5, 10) for make in MODELS.values())
    assert abs(sizes["ViT"] / sizes["CNN"] - 1) < 0.01


def test_correct_counts_and_loss_averages():
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0]])
    images = logits.view(3, 3, 1, 1)
    batch, model = LabeledBatch(images, torch.tensor([0, 1, 2])), torch.nn.Flatten()
    expected = torch.nn.functional.cross_entropy(logits, batch.labels).item()
    assert correct(model, batch) == 2 and loss(model, batch) == pytest.approx(expected)


def test_record_of_two_steps_has_all_that_the_page_shows(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="needs the extra chapters")
    for name, value in {"RATES": (1e-3,), "DECAYS": (0.0, 0.3), "FEWER": (20,)}.items():
        monkeypatch.setattr(record_digits, name, value)
    target = tmp_path / "digits.json"
    main([str(target), "--steps", "2", "--seeds", "1", "--tuning-seeds", "1"])
    report = json.loads(target.read_text())
    assert report["command"].endswith("--steps 2 --seeds 1 --tuning-seeds 1")
    for row in report["rows"]:
        assert len(row["tuning"]) == 2 and list(row["test"]) == ["20", "1197", "shuffled"]
        assert all(len(counts) == 1 for counts in row["test"].values())


def test_kept_record_chose_by_the_validation_images():
    report = json.loads(RECORD.read_text())
    assert report["images"] == PARTS and len(report["commit"]) == 40
    assert [row["model"] for row in report["rows"]] == list(MODELS)
    for row in report["rows"]:
        assert row["parameters"] == sum(p.numel() for p in MODELS[row["model"]]().parameters())
        assert len(row["tuning"]) == len(record_digits.RATES) * len(record_digits.DECAYS)
        best = max(row["tuning"], key=lambda x: (sum(x["correct"]), -sum(x["loss"])))
        assert row["chosen"].items() <= best.items()
        assert list(row["test"]) == ["100", "300", "1197", "shuffled"]
        assert all(len(counts) == 5 and max(counts) <= 300 for counts in row["test"].values())
