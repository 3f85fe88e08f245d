"""A training run small enough to be killed again and again, with the ways to kill it.

    python train_tiny.py '{"folder": "runs/tiny", "n_steps": 24}'
    torchrun --standalone --nproc-per-node 2 train_tiny.py '{"folder": "runs/tiny"}'

It resumes from the newest checkpoint in the folder if there is one.
"""

import json
import os
import random
import signal
import sys
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed.checkpoint.state_dict  # here, so that forked children have it already

from transformer_lib import checkpoints
from transformer_lib.batches import PairBatches
from transformer_lib.distributed import process_group
from transformer_lib.models import Transformer, TransformerConfig
from transformer_lib.trainer import Trainer, TrainingConfig

torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])  # imports what every optimizer needs
TRAINING = {
    "n_steps": 24, "learning_rate": 1e-2, "warmup": 4, "ema_decay": 0.9, "accumulate": 2,
    "label_smoothing": 0.1, "save_every": 5, "validate_every": 8,
}  # fmt: skip


def rows(n=48, seed=0):
    """Rows of ids; the target is the source reversed."""
    draw = random.Random(seed)
    return [[draw.randrange(4, 40) for _ in range(draw.randrange(1, 8))] for _ in range(n)]


def batches(seed=0, *, max_tokens=64, shuffle=True, n=48):
    sources = rows(n, seed)
    targets = [row[::-1] for row in sources]
    return PairBatches(sources, targets, max_tokens=max_tokens, seed=seed, shuffle=shuffle)


def model(dropout=0.1, **changes):
    torch.manual_seed(1)
    sizes = {"d_model": 16, "n_heads": 2, "d_ff": 32, "n_encoder_layers": 1, "n_decoder_layers": 1}
    sizes |= {"max_len": 32, "dropout": dropout} | changes
    return Transformer(TransformerConfig(vocab_size=40, **sizes))


def trainer(folder=None, *, dropout=0.1, dtype="float32", data=None, **options):
    """A trainer whose options go to TrainingConfig or to Trainer, by name."""
    names = {field.name for field in fields(TrainingConfig)}
    chosen = TRAINING | {name: options.pop(name) for name in names & options.keys()}
    options = {"validation": list(batches(seed=1, shuffle=False))} | options
    tiny = model(dropout).to(getattr(torch, dtype))
    return Trainer(tiny, data or batches(), TrainingConfig(**chosen), folder=folder, **options)


# Faults: each gets its own settings and calls `die` at its moment


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def in_step(trainer, step, numbers=(signal.SIGKILL,)):
    """Send signals to this process in the middle of a step: in the loss of its last micro-batch."""
    update, loss, parts = trainer.update, trainer.loss, 0

    def sending(*arguments):
        nonlocal parts
        parts += 1
        if parts == trainer.config.accumulate:
            for number in numbers:
                os.kill(os.getpid(), number)
        return loss(*arguments)

    def watched(batch):
        if trainer.step + 1 == step:
            trainer.loss = sending
        return update(batch)

    trainer.update = watched


def rank_in_step(trainer, rank, step, numbers=(signal.SIGKILL,)):
    """The same to one of several processes, unless they have been restarted already."""
    if trainer.worker.rank == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        in_step(trainer, step, numbers)


def at_file_event(trainer, event):
    """Kill before the n-th time that a file is made, read back, given its name or removed."""
    seen, folder = 0, str(trainer.folder)

    def hook(name, arguments):
        nonlocal seen
        path = str(arguments[0]) if arguments else ""
        draft = name in ("open", "os.mkdir") and f"{folder}/." in path
        if path.startswith(folder) and (draft or name in ("os.rename", "os.rmdir")):
            seen += 1
            if seen == event:
                die()

    sys.addaudithook(hook)


def in_half_a_file(trainer, nth):
    """Kill when half of the n-th tensor file is on the disk."""
    seen, save_file = 0, checkpoints.save_file

    def half(tensors, path):
        nonlocal seen
        seen += 1
        save_file(tensors, path)
        if seen == nth:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    checkpoints.save_file = half


FAULTS = {f.__name__: f for f in (in_step, rank_in_step, at_file_event, in_half_a_file)}


def run(folder, fault=None, until=None, device="cpu", **options):
    """Train in this process, from the newest checkpoint on."""
    with process_group(device) as worker:
        trained = trainer(folder, worker=worker, **options)
        trained.resume()
        if fault:
            name, settings = fault
            FAULTS[name](trained, **settings)
        try:
            trained.fit(until)
        except KeyboardInterrupt as stopped:
            print(f"KeyboardInterrupt: {stopped}", flush=True)
            raise SystemExit(130) from None


def run_all(runs, output, environment):
    """Do several runs in one child process, so that all use what the first one imports."""
    file = Path(output).open("a")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    os.environ.update({name: str(value) for name, value in environment.items()})
    with process_group("cpu"):
        for options in runs:
            run(**options)


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
