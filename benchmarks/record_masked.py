"""Pretrain a small BERT on docstrings, then fine-tune it and train the same model from scratch.

python -m benchmarks.record_masked pretrain results/masked-docstrings
python -m benchmarks.record_masked tune results/masked-docstrings

The task: does the first paragraph of a docstring describe a class or a function? All text is that
of the installed Python's standard library. Modules are split once: pretraining and training see
three fifths of them, a fifth is for choices, and a fifth for the test.
"""

import argparse
import ast
import datetime
import hashlib
import random
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
import tokenize
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.__main__ import commit, hardware, versions, write
from transformer_lib.batches import IGNORED, LabeledBatch, LabeledBatches
from transformer_lib.bert import Bert, BertConfig
from transformer_lib.corruption import MaskedBatches
from transformer_lib.losses import label_loss
from transformer_lib.tokenizer import BEGIN, END, Tokenizer
from transformer_lib.trainer import Trainer, TrainingConfig

Text = tuple[str, int]  # and its class: 1 if it describes a class, 0 if it describes a function
VOCABULARY, LENGTH, WIDTH = 2000, 32, 96
SIZES = (32, 128, 512, None)  # labels to train on; None means all
RATES = (3e-4, 1e-3, 3e-3)  # learning rates that each arm may choose from
LEFT_OUT = {"dist-packages", "encodings", "site-packages", "test", "tests"}
GAPS = (
    "Return the ___ of the file.",
    "Return the number ___ bytes in the buffer.",
    "Return True if the object ___ a string.",
    "If the file does not exist, ___ an error.",
    "This ___ is called when the connection is lost.",
    "Convert a string to ___ integer.",
)


def docstrings() -> dict[str, list[tuple[str, str]]]:
    """Map each part of the split to pairs (kind of definition, docstring)."""
    found: dict[str, list[tuple[str, str]]] = {}
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    root = Path(sysconfig.get_path("stdlib"))
    for path in [*root.glob("*.py"), *root.glob("*/*.py")]:
        name = path.relative_to(root).as_posix()
        if path.parent.name in LEFT_OUT:
            continue
        with tokenize.open(path) as file:
            nodes = [x for x in ast.walk(ast.parse(file.read())) if isinstance(x, kinds)]
        pairs = [(type(node).__name__, ast.get_docstring(node)) for node in nodes]
        found[name] = [(kind, text) for kind, text in pairs if text]
    names = sorted(found)
    random.Random(0).shuffle(names)
    fifth = len(names) // 5
    parts = {"test": names[:fifth], "val": names[fifth : 2 * fifth], "train": names[2 * fifth :]}
    return {part: [pair for name in names for pair in found[name]] for part, names in parts.items()}


def paragraphs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """List the different paragraphs of docstrings, without their line breaks."""
    texts = (" ".join(part.split()) for _, doc in pairs for part in doc.split("\n\n"))
    return list(dict.fromkeys(text for text in texts if len(text) >= 20))


def task(parts: dict[str, list[tuple[str, str]]]) -> dict[str, list[Text]]:
    """Make the labeled texts of each part: as many classes as functions, and no text twice."""
    seen: set[str] = set()
    made = {}
    for part, pairs in parts.items():
        by_class: dict[int, list[Text]] = {0: [], 1: []}
        for kind, doc in pairs:
            text = " ".join(doc.split("\n\n")[0].split())
            if kind != "Module" and len(text.split()) >= 4 and text not in seen:
                seen.add(text)
                by_class[int(kind == "ClassDef")].append((text, int(kind == "ClassDef")))
        generator = random.Random(0)
        n = min(map(len, by_class.values()))
        texts = [text for group in by_class.values() for text in generator.sample(group, n)]
        generator.shuffle(texts)
        made[part] = texts
    return made


def rows(tokenizer: Tokenizer, texts: Sequence[str], *, cut: bool) -> list[list[int]]:
    """Give the ids of texts of at most LENGTH tokens; cut: into as many rows as it takes."""
    n, found = LENGTH - 2, []
    for ids in tokenizer.encode_all(texts):
        pieces = [ids[i : i + n] for i in range(0, len(ids) if cut else 1, n)]
        found += [[BEGIN, *piece, END] for piece in pieces if len(piece) >= 4 or not cut]
    return found


def accuracy(model: Bert, batches: Sequence[LabeledBatch]) -> float:
    """Give the fraction of labels that the model predicts."""
    model.eval()
    n_right = n_all = 0
    with torch.no_grad():
        for batch in batches:
            at = batch.labels != IGNORED if batch.labels.dim() == 2 else None
            labels = batch.labels if at is None else batch.labels[at]
            guess = model(batch.inputs, batch.mask, at=at).argmax(dim=-1)
            n_right, n_all = n_right + int((guess == labels).sum()), n_all + len(labels)
    return n_right / n_all


def config(vocab_size: int, head: str) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size, d_model=WIDTH, n_heads=4, d_ff=4 * WIDTH, n_encoder_layers=2,
        max_len=LENGTH, dropout=0.0, attention_dropout=0.0, head=head,
    )  # fmt: skip


def pretrain(
    tokenizer: Tokenizer, train: Sequence[str], held: Sequence[str], n_steps: int
) -> tuple[Bert, dict[str, Any]]:
    """Train a model on masked tokens; return it with its record."""
    mask = tokenizer.vocab_size  # one more token
    options: dict[str, Any] = {"mask_token": mask, "vocab_size": mask, "batch_size": 32}
    learned = rows(tokenizer, train, cut=True)
    data = MaskedBatches(learned, **options)
    validation = list(MaskedBatches(rows(tokenizer, held, cut=True)[:1000], **options))
    torch.manual_seed(0)
    model = Bert(config(mask + 1, "masked_lm"))
    plan = TrainingConfig(
        n_steps=n_steps, learning_rate=4e-3, schedule="linear", warmup=n_steps // 10,
        weight_decay=0.01, validate_every=n_steps // 10, precision="fp32",
    )  # fmt: skip
    curve: list[tuple[int, float]] = []

    def log(record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            curve.append((record["step"], record["validation_loss"]))
            print(curve[-1], flush=True)

    start = time.process_time()
    Trainer(model, data, plan, loss=label_loss, validation=validation, log=log).fit()
    seconds = time.process_time() - start
    counts = Counter(token for row in learned for token in row[1:-1])
    total = sum(counts.values()) + mask  # each token once more: none may have probability 0
    labels = torch.cat([batch.labels[batch.labels != IGNORED] for batch in validation]).tolist()
    unigram = -sum(torch.tensor([(counts[x] + 1) / total]).log().item() for x in labels)
    return model, {
        "steps": n_steps, "rows": len(learned), "tokens": total - mask,
        "parameters": sum(p.numel() for p in model.parameters()), "cpu_seconds": round(seconds, 1),
        "validation_loss": curve, "unigram_loss": unigram / len(labels),
        "accuracy": accuracy(model, validation),
        "most_frequent": labels.count(counts.most_common(1)[0][0]) / len(labels),
    }  # fmt: skip


def fill(model: Bert, tokenizer: Tokenizer, text: str, n: int = 5) -> list[tuple[str, float]]:
    """Give the n most probable tokens for the gap in a text."""
    before, after = text.split(" ___")
    ids = [BEGIN, *tokenizer.encode(before), tokenizer.vocab_size, *tokenizer.encode(after), END]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids]))[0, ids.index(tokenizer.vocab_size)]
    top = logits[:-1].softmax(dim=-1).topk(n)
    return list(zip(tokenizer.tokens(top.indices), top.values.tolist(), strict=True))


def fine_tune(
    weights: dict[str, Tensor] | None, data: LabeledBatches, vocab_size: int, *,
    rate: float, seed: int, n_steps: int,
) -> Bert:  # fmt: skip
    """Train a classifier, from pretrained weights or from none."""
    torch.manual_seed(seed)
    model = Bert(config(vocab_size, "classifier"))
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    plan = TrainingConfig(
        n_steps=n_steps, learning_rate=rate, schedule="linear", warmup=n_steps // 10,
        weight_decay=0.01, seed=seed, precision="fp32",
    )  # fmt: skip
    Trainer(model, data, plan, loss=label_loss).fit()
    return model


def bag_of_words(parts: dict[str, list[Text]], train: list[Text]) -> tuple[float, float]:
    """Give validation and test accuracy of logistic regression on which words a text has."""
    counts = Counter(word for text, _ in train for word in set(text.lower().split()))
    number = {word: i for i, (word, _) in enumerate(counts.most_common(3000))}

    def features(texts: list[Text]) -> tuple[Tensor, Tensor]:
        x = torch.zeros(len(texts), len(number) + 1)
        for i, (text, _) in enumerate(texts):
            x[i, [number.get(word, len(number)) for word in text.lower().split()]] = 1
        return x, torch.tensor([label for _, label in texts])

    (x, y), best = features(train), (0.0, 0.0)
    held = [features(parts[part]) for part in ("val", "test")]
    for decay in (0.001, 0.01, 0.1):
        w = torch.zeros(x.shape[1], 2, requires_grad=True)
        optimizer = torch.optim.LBFGS([w], max_iter=50)

        def loss(w: Tensor = w, optimizer: Any = optimizer, decay: float = decay) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ w, y) + decay * w.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        both = [float(((z @ w).argmax(dim=-1) == t).double().mean()) for z, t in held]
        best = max(best, (both[0], both[1]))
    return best


def compare(
    model: Bert, tokenizer: Tokenizer, parts: dict[str, list[Text]], n_steps: int, n_seeds: int
) -> list[dict[str, Any]]:
    """Train each arm on each number of labels, from several seeds."""
    vocab_size, found = tokenizer.vocab_size + 1, []
    weights = model.state_dict()
    weights = {k: x for k, x in weights.items() if not k.startswith(("transform", "output"))}
    ids = {part: rows(tokenizer, [text for text, _ in parts[part]], cut=False) for part in parts}
    labels = {part: [label for _, label in parts[part]] for part in parts}
    held = {
        part: list(LabeledBatches(ids[part], labels[part], batch_size=128))
        for part in ("val", "test")
    }
    for size in SIZES:
        n = min(size or 10**9, len(ids["train"]))
        for seed in range(n_seeds):
            chosen = random.Random(seed).sample(range(len(ids["train"])), n)
            data = [[side[i] for i in chosen] for side in (ids["train"], labels["train"])]
            words = bag_of_words(parts, [parts["train"][i] for i in chosen])
            found.append({"arm": "bag of words", "labels": n, "seed": seed})
            found[-1] |= {"validation": words[0], "test": words[1]}
            for arm, start in (("pretrained", weights), ("from scratch", None)):
                for rate in RATES:
                    batches = LabeledBatches(*data, batch_size=16, seed=seed)
                    options: dict[str, Any] = {"rate": rate, "seed": seed, "n_steps": n_steps}
                    tuned = fine_tune(start, batches, vocab_size, **options)
                    scores = {part: accuracy(tuned, held[part]) for part in held}
                    found.append({"arm": arm, "labels": n, "seed": seed, "rate": rate})
                    found[-1] |= {"validation": scores["val"], "test": scores["test"]}
                    print(found[-1], flush=True)
    return found


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose for each arm and number of labels the learning rate that validates best."""
    lines = []
    for arm, n in dict.fromkeys((run["arm"], run["labels"]) for run in runs):
        by_rate: dict[Any, list[dict[str, Any]]] = {}
        for run in runs:
            if (run["arm"], run["labels"]) == (arm, n):
                by_rate.setdefault(run.get("rate"), []).append(run)
        means = {r: statistics.mean(x["validation"] for x in by_rate[r]) for r in by_rate}
        rate = max(means, key=lambda r: means[r])
        lines.append({"arm": arm, "labels": n, "rate": rate})
        lines[-1]["test"] = [run["test"] for run in by_rate[rate]]
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record_masked", description=__doc__)
    parser.add_argument("stage", choices=("pretrain", "tune"))
    parser.add_argument("out", type=Path, help="folder for weights, tokenizer and records")
    parser.add_argument("--steps", type=int, help="of pretraining (default: 12000), or tuning (80)")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning (default: 3)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report = {
        "command": " ".join(["python -m benchmarks.record_masked", *(arguments or sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit(),
        "hardware": hardware("cpu"), "versions": versions(),
    }  # fmt: skip
    parts = docstrings()
    if options.stage == "pretrain":
        train, held = paragraphs(parts["train"]), paragraphs(parts["val"])
        tokenizer = Tokenizer.bpe(train, VOCABULARY)
        model, report["pretraining"] = pretrain(tokenizer, train, held, options.steps or 12_000)
        with tempfile.TemporaryDirectory() as draft:  # out may hold records
            model.half().save_pretrained(draft)
            shutil.copytree(draft, options.out, dirs_exist_ok=True)
        tokenizer.save(options.out / "tokenizer.json")
        report["gaps"] = {gap: fill(model.float(), tokenizer, gap) for gap in GAPS}
        write(report, options.out / "pretraining.json")
        return
    model = Bert.from_pretrained(options.out, dtype=torch.float32)
    weights = (options.out / "model.safetensors").read_bytes()
    tokenizer, texts = Tokenizer.load(options.out / "tokenizer.json"), task(parts)
    runs = compare(model, tokenizer, texts, options.steps or 80, options.seeds)
    report |= {
        "weights_sha256": hashlib.sha256(weights).hexdigest(), "steps": options.steps or 80,
        "task": {part: len(texts[part]) for part in texts}, "summary": summary(runs), "runs": runs,
    }  # fmt: skip
    write(report, options.out / "tuning.json")


if __name__ == "__main__":
    main()
