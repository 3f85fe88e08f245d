"""Train T5 to write the first lines of docstrings, from scratch and after span corruption.

python -m benchmarks.record_summaries results/summaries.json
"""

import dataclasses
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record_scores import about_here, write_lines
from transformer_lib.attention import padding_mask
from transformer_lib.batches import PairBatches
from transformer_lib.beam_search import beam_search
from transformer_lib.corruption import corrupt_spans
from transformer_lib.datasets import docstring_pairs
from transformer_lib.t5 import T5, T5Config
from transformer_lib.tokenizer import BEGIN, END, PAD, Tokenizer
from transformer_lib.trainer import Trainer, TrainingConfig

SETTINGS: dict[str, Any] = {
    "prefix": "summarize: ",
    "vocab_size": 1500,
    "n_sentinels": 32,
    "max_source": 96,  # tokens of a source that are read
    "max_target": 24,  # longer targets are left out of training
    "max_tokens": 2048,  # of a batch
    "model": {
        "d_model": 96, "n_heads": 4, "head_dim": 24, "d_ff": 192, "n_encoder_layers": 2,
        "n_decoder_layers": 2, "activation": "geglu_tanh", "dropout": 0.1, "max_len": 128,
    },
    "training": {
        "learning_rate": 3e-3, "schedule": "cosine", "warmup": 50, "min_lr_ratio": 0.1,
        "ema_decay": 0.99,
    },
    "n_pretrain": 600,
    "n_finetune": 600,
    "validate_every": 100,
    "n_validation": 300,
    "n_test": 400,
    "beam": 4,
}  # fmt: skip


class Task:
    """The pairs as tokens, and batches of them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.pairs = {split: docstring_pairs(split) for split in ("train", "val", "test")}
        generator = np.random.default_rng(0)
        for split, n in (("val", "n_validation"), ("test", "n_test")):
            order = generator.permutation(len(self.pairs[split]))[: settings[n]]
            self.pairs[split] = [self.pairs[split][i] for i in sorted(order)]
        texts = (text for pair in self.pairs["train"] for text in pair)
        self.tokenizer = Tokenizer.bpe(texts, settings["vocab_size"])
        self.vocab_size = self.tokenizer.vocab_size + settings["n_sentinels"]

    def sources(self, split: str) -> list[list[int]]:
        texts = [self.settings["prefix"] + code for code, _ in self.pairs[split]]
        return [ids[: self.settings["max_source"]] for ids in self.tokenizer.encode_all(texts)]

    def summaries(self, split: str) -> PairBatches:
        targets = self.tokenizer.encode_all([summary for _, summary in self.pairs[split]])
        rows = zip(self.sources(split), targets, strict=True)
        kept = [row for row in rows if len(row[1]) <= self.settings["max_target"]]
        return self._batches(kept, split)

    def spans(self, split: str) -> PairBatches:
        """The sources and the summaries, each a text of its own, with hidden spans."""
        texts = [text for pair in self.pairs[split] for text in pair]
        generator, rows = np.random.default_rng(1), []
        for ids in self.tokenizer.encode_all(texts):
            for at in range(0, min(len(ids), 4 * 96), 96):
                part = ids[at : at + 96]
                if len(part) > 4:
                    last = self.vocab_size - 1
                    rows.append(corrupt_spans(part, first_sentinel=last, generator=generator))
        return self._batches(rows, split)

    def _batches(self, rows: list[tuple[list[int], list[int]]], split: str) -> PairBatches:
        sides = ([row[i] for row in rows] for i in (0, 1))
        return PairBatches(
            *sides, max_tokens=self.settings["max_tokens"], seed=0, shuffle=split == "train"
        )


def train(task: Task, model: T5, kind: str, n_steps: int) -> dict[str, Any]:
    """Train model on summaries or spans; leave the average of its weights in it."""
    settings, records, start = task.settings, [], time.process_time()
    config = TrainingConfig(
        n_steps=n_steps, validate_every=settings["validate_every"], precision="fp32",
        **settings["training"],
    )  # fmt: skip
    data = getattr(task, kind)
    trainer = Trainer(model, data("train"), config, validation=data("val"), log=records.append)
    trainer.fit()
    with trainer.average.applied(model):
        weights = {name: x.clone() for name, x in model.state_dict().items()}
    model.load_state_dict(weights)
    losses = [record for record in records if "loss" in record]
    return {
        "task": kind,
        "steps": n_steps,
        "target_tokens": sum(record["tokens"] for record in losses),
        "cpu_seconds": round(time.process_time() - start),
        "loss": {r["step"]: round(r["loss"], 4) for r in losses if r["step"] % 10 == 0},
        "validation_loss": {
            r["step"]: round(r["validation_loss"], 4) for r in records if "validation_loss" in r
        },
    }


def write(task: Task, model: T5, beam: int) -> list[str]:
    """Summarize the test sources."""
    rows, texts = task.sources("test"), []
    for first in range(0, len(rows), 50):
        part = [[*row, END] for row in rows[first : first + 50]]
        lengths = torch.tensor([len(row) for row in part])
        mask = padding_mask(lengths)
        source = torch.tensor([row + [PAD] * (mask.shape[-1] - len(row)) for row in part])
        options = {"max_len": 32, "begin": BEGIN, "end": END, "beam": beam, "patience": 1.0}
        for found in beam_search(model, source, mask, **options):
            texts.append(task.tokenizer.decode(known(found[0].tokens, task)))
    return texts


def known(tokens: list[int], task: Task) -> list[int]:
    """Leave out sentinels, which are no text."""
    return [token for token in tokens if token < task.tokenizer.vocab_size]


def record_summaries(out: str | Path, **changes: Any) -> dict[str, Any]:
    """Train the models, summarize the test functions, and write everything down.

    Args:
        out: a JSON file.
        changes: of SETTINGS.
    """
    settings = SETTINGS | changes
    task = Task(settings)
    config = T5Config(vocab_size=task.vocab_size, **settings["model"])
    found: dict[str, Any] = {
        "about": "first lines of docstrings from the code of functions, by T5",
        "command": "python -m benchmarks.record_summaries results/summaries.json",
        **about_here(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "seeds": {"model": 0, "batches": 0, "spans": 1, "dropout": 0},
        "settings": settings,
        "model": dataclasses.asdict(config),
        "pairs": {split: len(pairs) for split, pairs in task.pairs.items()},
        "runs": {},
        "summaries": {},
    }
    for name in ("from scratch", "pre-trained"):
        torch.manual_seed(0)
        model, stages = T5(config), []
        if name == "pre-trained":
            stages.append(train(task, model, "spans", settings["n_pretrain"]))
        stages.append(train(task, model, "summaries", settings["n_finetune"]))
        found["runs"][name] = stages
        found["summaries"][name] = write(task, model.eval(), settings["beam"])
    found["parameters"] = sum(p.numel() for p in model.parameters())
    found["sources"], found["references"] = map(list, zip(*task.pairs["test"], strict=True))
    write_lines(Path(out), [json.dumps(found, indent=1)])
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.record_summaries FILE")
    torch.set_num_threads(1)
    runs = record_summaries(sys.argv[1])["runs"]
    print({name: stages[-1]["validation_loss"] for name, stages in runs.items()})


if __name__ == "__main__":
    main()
