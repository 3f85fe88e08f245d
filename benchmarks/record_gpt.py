"""Train GPTs on the standard library of this Python, and record what held-out modules cost.

python -m benchmarks.record_gpt results/gpt-stdlib.json --steps 800
"""

import argparse
import dataclasses
import gzip
import json
import lzma
import math
import sysconfig
import time
import tokenize
from pathlib import Path
from typing import Any

import torch

from benchmarks.record_scores import about_here, write_lines
from transformer_lib.batches import BlockBatches, Blocks
from transformer_lib.gpt import GPT, GPTConfig
from transformer_lib.losses import language_loss
from transformer_lib.sampling import Sampler, sample
from transformer_lib.tokenizer import Tokenizer
from transformer_lib.trainer import Trainer, TrainingConfig

EVERY = 20  # every twentieth module is held out
BLOCK, ROWS = 128, 16
SIZES = {"d_model": 128, "n_heads": 4, "d_ff": 512, "n_decoder_layers": 4, "dropout": 0.0}
PLAN = {
    "learning_rate": 2e-3, "schedule": "cosine", "min_lr_ratio": 0.1,
    "betas": (0.9, 0.99), "epsilon": 1e-8, "weight_decay": 0.1, "precision": "fp32",
}  # fmt: skip
PROMPT = "\ndef "


def modules() -> tuple[list[str], list[str]]:
    """Read the modules at the top of the standard library: those to train on, those held out."""
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        with tokenize.open(path) as file:
            texts.append(file.read())
    return [text for i, text in enumerate(texts) if i % EVERY], texts[::EVERY]


def compressed(known: bytes, new: bytes) -> dict[str, float]:
    """Give the bits per byte of new that compressors take, alone and after they have read known."""
    both = len(lzma.compress(known + new, preset=9)) - len(lzma.compress(known, preset=9))
    sizes = {"gzip": len(gzip.compress(new, 9)), "xz": len(lzma.compress(new, preset=9))}
    return {
        name: 8 * size / len(new)
        for name, size in (sizes | {"xz after the other modules": both}).items()
    }


def in_order(ids: list[int]) -> list[Blocks]:
    """Cut a text into blocks in order: each token but the first is a label once."""
    row, n = torch.tensor(ids), (len(ids) - 1) // BLOCK
    sides = [row[i : i + n * BLOCK].view(n, BLOCK).split(64) for i in (0, 1)]
    rest = row[n * BLOCK :][None]
    last = [Blocks(rest[:, :-1], rest[:, 1:])] if rest.shape[1] > 1 else []
    return [Blocks(*pair) for pair in zip(*sides, strict=True)] + last


def record(tokenizer: Tokenizer, texts: list[str], held: list[str], steps: int) -> dict[str, Any]:
    """Train a GPT on these tokens; return its settings, its losses and a sample."""
    ids, held_ids = tokenizer.encode_all(["".join(texts), "".join(held)])
    n_bytes = len("".join(held).encode())
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, max_len=BLOCK, **SIZES)
    model = GPT(config)
    data = BlockBatches(ids, block=BLOCK, batch_size=ROWS, drop_last=True)
    plan = TrainingConfig(
        n_steps=steps, warmup=steps // 10, validate_every=max(steps // 2, 1), **PLAN
    )
    log: list[dict[str, Any]] = []
    check = in_order(held_ids)
    start = time.perf_counter()
    options: dict[str, Any] = {"loss": language_loss, "validation": check, "log": log.append}
    Trainer(model, data, plan, **options).fit()
    seconds = time.perf_counter() - start
    per_byte = sum(batch.n_tokens for batch in check) / n_bytes / math.log(2)
    seen = [(x["step"], x["validation_loss"]) for x in log if "validation_loss" in x]
    losses = [(x["step"], round(x["loss"], 4)) for x in log if "loss" in x]
    prompt = torch.tensor([tokenizer.encode(PROMPT)])
    draw = Sampler(temperature=0.8, generator=torch.Generator().manual_seed(0))
    tokens = sample(model.eval(), prompt[:, -BLOCK + 100 :], max_len=100, sampler=draw, end=None)
    return {
        "model": dataclasses.asdict(config), "training": dataclasses.asdict(plan),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds), "tokens_read": steps * BLOCK * ROWS,
        "epochs": steps * BLOCK * ROWS / len(ids), "tokens": len(ids), "held_tokens": len(held_ids),
        "training_loss": losses[:: max(steps // 100, 1)],
        "bits_per_byte": [(step, loss * per_byte) for step, loss in seen],
        "validation_loss": seen, "sample": PROMPT + tokenizer.decode(tokens[0]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--tokens", nargs="+", choices=("BPE", "characters"), default=["BPE"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts, held = modules()
    known, new = ("".join(side).encode() for side in (texts, held))
    found = {
        "command": f"python -m benchmarks.record_gpt OUT --steps {options.steps}",
        **about_here(), "threads": 1, "seed": 0, "block": BLOCK, "batch_size": ROWS,
        "training_modules": len(texts), "held_out_modules": len(held),
        "training_bytes": len(known), "held_out_bytes": len(new),
        "compressors": compressed(known, new), "runs": {},
    }  # fmt: skip
    for name in options.tokens:
        if name == "BPE":
            tokenizer = Tokenizer.bpe(texts, options.vocab_size)
        else:
            tokenizer = Tokenizer.characters([*texts, *held])
        found["runs"][name] = record(tokenizer, texts, held, options.steps)
        write_lines(options.out, [json.dumps(found, indent=1)])
        print(name, found["runs"][name]["bits_per_byte"], flush=True)


if __name__ == "__main__":
    main()
