"""Classify scikit-learn's digits with a ViT, a small CNN and logistic regression.

python -m benchmarks.record_digits results/digits.json
"""

import argparse
import datetime
import itertools
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.__main__ import commit, hardware, versions, write
from transformer_lib.batches import LabeledBatch, LabeledBatches
from transformer_lib.losses import label_loss
from transformer_lib.shapes import import_extra
from transformer_lib.trainer import Trainer, TrainingConfig
from transformer_lib.vit import ViT, ViTConfig

PARTS = [1197, 300, 300]  # images for training, for validation and for the test
RATES, DECAYS = (1e-3, 3e-3, 1e-2), (0.0, 0.3)  # each model is tuned over all pairs of these
FEWER = (100, 300)  # images of the further training runs
BATCH = 64


def vit() -> nn.Module:
    """Make a ViT that reads an image as 16 patches."""
    sizes: dict[str, Any] = {"d_model": 48, "n_heads": 4, "d_ff": 96, "n_layers": 3}
    return ViT(ViTConfig(image_size=8, patch_size=2, n_channels=1, n_labels=10, **sizes))


def cnn() -> nn.Module:
    """Make a CNN of about as many parameters: three convolutions, two poolings."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def logistic_regression() -> nn.Module:
    """Make a logistic regression on the 64 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


MODELS = {"ViT": vit, "CNN": cnn, "logistic regression": logistic_regression}


def digits() -> list[LabeledBatch]:
    """Load the images, scaled to [0, 1], split at random but always alike."""
    found = import_extra("sklearn.datasets").load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [LabeledBatch(images[rows], labels[rows]) for rows in order.split(PARTS)]


def shuffled(batch: LabeledBatch) -> LabeledBatch:
    """Move the 16 patches of all images to other places, by one permutation for all."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    patches = nn.functional.unfold(batch.inputs, 2, stride=2)[:, :, order]
    return LabeledBatch(nn.functional.fold(patches, 8, 2, stride=2), batch.labels)


def train(
    name: str, batch: LabeledBatch, *, rate: float, decay: float, seed: int, n_steps: int
) -> nn.Module:
    """Train a model on the images of a batch."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    data = LabeledBatches(batch.inputs, batch.labels, batch_size=BATCH, seed=seed)
    plan = TrainingConfig(
        n_steps=n_steps, learning_rate=rate, weight_decay=decay, schedule="cosine",
        warmup=n_steps // 10, precision="fp32", seed=seed,
    )  # fmt: skip
    Trainer(model, data, plan, loss=label_loss).fit()
    return model.eval()


@torch.no_grad()
def correct(model: nn.Module, batch: LabeledBatch) -> int:
    """Count the images whose class is recognized."""
    return int((model(batch.inputs).argmax(dim=-1) == batch.labels).sum())


@torch.no_grad()
def loss(model: nn.Module, batch: LabeledBatch) -> float:
    """Measure the loss, in nats per image."""
    return float(label_loss(model, batch)) / batch.n_tokens


def record(name: str, n_steps: int, n_seeds: int, n_tuning_seeds: int) -> dict[str, Any]:
    """Tune a model on the validation images; then count what it recognizes of the test images.

    The pair of settings with the most correct validation images is chosen, a tie by the loss.
    """
    training, validation, test = digits()
    start, tuning = time.perf_counter(), []
    for rate, decay in itertools.product(RATES, DECAYS):
        row: dict[str, Any] = {"learning_rate": rate, "weight_decay": decay}
        models = [
            train(name, training, rate=rate, decay=decay, seed=100 + seed, n_steps=n_steps)
            for seed in range(n_tuning_seeds)
        ]
        row["correct"] = [correct(model, validation) for model in models]
        row["loss"] = [loss(model, validation) for model in models]
        tuning.append(row)
        print(name, row, flush=True)
    chosen = max(tuning, key=lambda row: (sum(row["correct"]), -sum(row["loss"])))
    plan = {"rate": chosen["learning_rate"], "decay": chosen["weight_decay"], "n_steps": n_steps}
    found: dict[str, list[int]] = {}
    for seed in range(n_seeds):
        rows = torch.randperm(PARTS[0], generator=torch.Generator().manual_seed(seed))
        tasks: dict[str, tuple[LabeledBatch, LabeledBatch]] = {
            str(n): (LabeledBatch(training.inputs[rows[:n]], training.labels[rows[:n]]), test)
            for n in (*FEWER, PARTS[0])
        }
        tasks["shuffled"] = shuffled(training), shuffled(test)
        for task, (images, asked) in tasks.items():
            model = train(name, images, seed=seed, **plan)
            found.setdefault(task, []).append(correct(model, asked))
        print(name, seed, found, flush=True)
    parameters = sum(p.numel() for p in MODELS[name]().parameters())
    seconds = round(time.perf_counter() - start, 1)
    chosen = {key: chosen[key] for key in ("learning_rate", "weight_decay")}
    return {
        "model": name, "parameters": parameters, "tuning": tuning, "chosen": chosen,
        "test": found, "seconds": seconds,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record_digits", description=__doc__)
    parser.add_argument("json", type=Path, help="file for the results")
    parser.add_argument("--steps", type=int, default=600, help="steps per run (default: 600)")
    parser.add_argument("--seeds", type=int, default=5, help="test runs per task (default: 5)")
    parser.add_argument("--tuning-seeds", type=int, default=2, help="per setting (default: 2)")
    options = parser.parse_args(arguments)
    sizes = options.steps, options.seeds, options.tuning_seeds
    rows, name = [record(model, *sizes) for model in MODELS], "scikit-learn"
    report = {
        "command": " ".join(["python -m benchmarks.record_digits", *(arguments or sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit(),
        "hardware": hardware("cpu"), "versions": versions() | {name: version(name)},
        "threads": torch.get_num_threads(), "images": PARTS, "batch_size": BATCH,
        "steps": options.steps, "rows": rows,
    }  # fmt: skip
    write(report, options.json)


if __name__ == "__main__":
    main()
