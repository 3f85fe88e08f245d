"""Compare placements of dropout: train a small language model with each, from several seeds.

python -m benchmarks.dropout --json results/dropout.json
"""

import argparse
import datetime
import itertools
import sys
import time
from pathlib import Path

import torch

from benchmarks.__main__ import commit, hardware, versions, write
from transformer_lib.batches import BlockBatches
from transformer_lib.cpu import use_onednn
from transformer_lib.datasets import stdlib_source
from transformer_lib.losses import language_loss
from transformer_lib.models import DecoderOnly, TransformerConfig
from transformer_lib.trainer import Trainer, TrainingConfig

T, BYTES, HELD = 128, 400_000, 0.1  # a tenth of the text is held out
PLACES: dict[str, dict[str, float]] = {
    "nowhere": {"dropout": 0.0},
    "sub-layer outputs, embeddings": {"dropout": 0.1},
    "these, and attention weights": {"dropout": 0.1, "attention_dropout": 0.1},
}


def train(place: str, seed: int, n_steps: int) -> dict[str, object]:
    """Train on the bytes of Python's standard library; return the best validation loss."""
    tokens = torch.tensor(list(stdlib_source(BYTES).encode()))
    cut = round(len(tokens) * (1 - HELD))
    torch.manual_seed(seed)
    config = TransformerConfig(
        vocab_size=256, d_model=128, n_heads=4, d_ff=512, n_decoder_layers=4, max_len=T,
        positions="rotary", norm="pre", activation="gelu", **PLACES[place],
    )  # fmt: skip
    data = BlockBatches(tokens[:cut], block=T, batch_size=32, seed=seed)
    held = BlockBatches(tokens[cut:], block=T, batch_size=32)
    plan = TrainingConfig(
        n_steps=n_steps, learning_rate=2e-3, schedule="cosine", warmup=min(50, n_steps // 2),
        validate_every=n_steps // 10, seed=seed,
    )  # fmt: skip
    validation = [held.make(rows) for rows in held.order(0)]
    model, start = use_onednn(DecoderOnly(config)), time.perf_counter()
    trainer = Trainer(model, data, plan, loss=language_loss, validation=validation).fit()
    return {
        "place": place, "seed": seed, "validation_loss": trainer.best,
        "best_step": trainer.best_step, "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dropout", description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="steps per run (default: 600)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per placement (default: 3)")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    options = parser.parse_args(arguments)
    rows = []
    for seed, place in itertools.product(range(options.seeds), PLACES):
        rows.append(train(place, seed, options.steps))
        print(rows[-1], flush=True)
    report = {
        "command": " ".join(["python -m benchmarks.dropout", *(arguments or sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit(),
        "hardware": hardware("cpu"), "versions": versions(), "steps": options.steps, "rows": rows,
    }  # fmt: skip
    write(report, options.json)


if __name__ == "__main__":
    main()
