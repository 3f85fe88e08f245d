"""Translate Multi30k's test set with the weights of a run, and record the translations and scores.

python -m benchmarks.record_scores RUN multi30k-de-en results/multi30k-de-en
"""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transformer_lib.bleu import PROTOCOLS, bleu
from transformer_lib.checkpoints import (
    CheckpointError,
    latest_valid,
    library_versions,
    load_checkpoint,
    read_records,
    write_atomically,
)
from transformer_lib.datasets import multi30k
from transformer_lib.recipes import RECIPES
from transformer_lib.trainer import LOG
from transformer_lib.translation import Translator


def record_scores(run: str | Path, recipe: str, out: str | Path) -> dict[str, Any]:
    """Translate the test set with the weights of a run, and write down all that came of it.

    Args:
        run: the folder of a run of `python -m transformer_lib train`, with its export.
        recipe: multi30k-SOURCE-TARGET, or one whose name begins so.
        out: a folder, for hypotheses.txt, hypotheses-greedy.txt, every tenth record of the
            run's log, and scores.json, written last, which is also returned.
    """
    run, out = Path(run), Path(out)
    names = recipe.split("-")
    if names[0] != "multi30k" or recipe not in RECIPES:
        raise ValueError(f"record_scores: recipe must be multi30k-SOURCE-TARGET, got {recipe!r}")
    translator, records = Translator.load(run / "export"), read_records(run / LOG)
    found = about_run(recipe, run, translator.model, records) | {"scores": {}}
    sources, references = map(list, zip(*multi30k(names[1], names[2], "val"), strict=True))
    found["validation"] = {"beam": 5} | _scores(translator(sources, beam=5), references, names[2])
    pairs = multi30k(names[1], names[2], "test_2016_flickr")
    sources, references = map(list, zip(*pairs, strict=True))
    for name, beam in (("hypotheses", 5), ("hypotheses-greedy", 1)):
        start = time.perf_counter()
        hypotheses = [text.replace("\n", " ") for text in translator(sources, beam=beam)]
        scores: dict[str, Any] = {"beam": beam, "seconds": time.perf_counter() - start}
        found["scores"][name] = scores | _scores(hypotheses, references, names[2])
        write_lines(out / f"{name}.txt", hypotheses)
    write_log(out, records)
    write_lines(out / "scores.json", [json.dumps(found, indent=1)])
    return found


def _scores(hypotheses: list[str], references: list[str], language: str) -> dict[str, Any]:
    """Score translations by every protocol that is installed."""
    scores = {}
    for protocol in PROTOCOLS:
        try:
            result = bleu(hypotheses, references, protocol=protocol, language=language)
        except ImportError:
            if protocol != "spacy-lower":  # the extra that needs spaCy is optional
                raise
        else:
            scores[protocol] = dataclasses.asdict(result)
    return scores


def write_log(out: Path, records: list[dict[str, Any]]) -> None:
    """Keep every tenth step, and all validations."""
    kept = [json.dumps(r) for r in records if "loss" not in r or r["step"] % 10 == 1]
    write_lines(out / LOG, kept)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def about_run(
    recipe: str, run: Path, model: nn.Module, records: list[dict[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    """Say how, where and when a model was trained, and how far it came."""
    checkpoint = latest_valid(run)
    if checkpoint is None:
        raise CheckpointError(f"record_scores: {run} must hold a good checkpoint, got none")
    state = load_checkpoint(checkpoint)[1]
    steps = [record for record in records if "loss" in record]
    weights = (run / "export" / "model.safetensors").read_bytes()
    return {
        "recipe": recipe,
        "command": f"python -m transformer_lib train {recipe}{_options(recipe, state)}",
        **about_here(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "model": dataclasses.asdict(model.config),
        "training": state["training"],
        "precision": state["precision"],
        "trained_with": state.get("provenance", []),  # written by the run itself
        "steps": steps[-1]["step"],
        "target_tokens": sum(record["tokens"] for record in steps),
        "tokens_per_second": steps[-1]["tokens_per_second"],
        "validation_loss": state["best"][0],
        "best_step": state["best"][1],
    }


def about_here() -> dict[str, Any]:
    """Say when, from which commit, on what machine and with which packages this is computed."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": library_versions(),
    }


def _options(recipe: str, state: dict[str, Any]) -> str:
    """Give the options of the command by which a run differed from its recipe."""
    own = json.loads(json.dumps(dataclasses.asdict(RECIPES[recipe].training)))
    told = ""
    for key, value in state["training"].items():
        if value != own[key]:
            flag = key.replace("_", "-")
            if isinstance(value, bool):
                told += f" --{flag}" if value else f" --no-{flag}"
            else:
                words = ",".join(map(str, value)) if isinstance(value, list) else value
                told += f" --{flag} {words}"
    return told


def _commit() -> str | None:
    """Name the commit that the current folder is at, with a + if something was changed since."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: python -m benchmarks.record_scores RUN RECIPE OUT")
    print(json.dumps(record_scores(*sys.argv[1:])["scores"], indent=1))


if __name__ == "__main__":
    main()
