"""Train the recipe number-names with several seeds, and count right translations by length.

python -m benchmarks.record_names results/number-names.json
"""

import argparse
import dataclasses
import datetime
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import commit, hardware, versions, write
from transformer_lib.datasets import number_names
from transformer_lib.distributed import Worker
from transformer_lib.recipes import RECIPES, export_model
from transformer_lib.trainer import Trainer
from transformer_lib.translation import Translator


def numbers(recipe: Any) -> dict[str, list[int]]:
    """The held-out numbers, and all numbers below 1,000 that the recipe does not train on."""
    names = dict(zip(number_names("en", "de", range(10_000)), range(10_000), strict=True))
    learned, held = ({names[pair] for pair in recipe.pairs(split)} for split in ("train", "val"))
    return {"held out": sorted(held), "below 1,000": sorted(set(range(1000)) - learned)}


def count(translator: Translator, asked: list[int]) -> dict[str, list[int]]:
    """By number of digits: how many of some numbers are translated exactly, and how many they are.

    Greedy decoding, as on the page of the recipes.
    """
    sources, wanted = zip(*number_names("en", "de", asked), strict=True)
    found: dict[str, list[int]] = {}
    for number, ours, right in zip(asked, translator(sources, beam=1), wanted, strict=True):
        counts = found.setdefault(str(len(str(number))), [0, 0])
        counts[0] += ours == right
        counts[1] += 1
    return dict(sorted(found.items()))


def record(n_steps: int, seed: int) -> dict[str, Any]:
    """Train with another number of steps and another seed, which also orders the batches."""
    recipe = RECIPES["number-names"]
    warmup = min(recipe.training.warmup, n_steps)
    changes: dict[str, Any] = {"n_steps": n_steps, "warmup": warmup, "seed": seed}
    plan = dataclasses.replace(recipe.training, precision="fp32", **changes)
    recipe = dataclasses.replace(recipe, training=plan)
    tokenizer, data, validation = recipe.batches()
    torch.manual_seed(seed)
    model = recipe.make(tokenizer)
    worker = Worker(device=torch.device("cpu"))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"loss": recipe.loss, "validation": validation}
        trainer = Trainer(model, data, plan, folder=Path(folder), worker=worker, **options).fit()
        seconds = round(time.perf_counter() - start, 1)
        export_model(trainer, tokenizer, Path(folder) / "export")
        translator = Translator.load(Path(folder) / "export")
        right = {name: count(translator, asked) for name, asked in numbers(recipe).items()}
    assert trainer.best is not None
    row = {"n_steps": n_steps, "seed": seed, "validation_loss": trainer.best, "right": right}
    print(row, seconds, flush=True)
    return row | {"seconds": seconds}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record_names", description=__doc__)
    parser.add_argument("json", type=Path, help="file for the results")
    parser.add_argument("--steps", type=int, nargs="+", default=[600])
    parser.add_argument("--seeds", type=int, default=3, help="runs per number of steps")
    options = parser.parse_args(arguments)
    rows = [record(n, seed) for n in options.steps for seed in range(options.seeds)]
    report = {
        "command": " ".join(["python -m benchmarks.record_names", *(arguments or sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit(),
        "hardware": hardware("cpu"), "versions": versions(), "threads": torch.get_num_threads(),
        "rows": rows,
    }  # fmt: skip
    write(report, options.json)


if __name__ == "__main__":
    main()
