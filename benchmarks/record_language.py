"""Record what a run of a language recipe reached, with a sample of its text.

python -m benchmarks.record_language RUN shakespeare-gpt-cpu results/shakespeare-gpt-cpu
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.record_scores import about_run, write_lines, write_log
from transformer_lib.__main__ import generated
from transformer_lib.checkpoints import read_records
from transformer_lib.recipes import RECIPES, LanguageRecipe, load_export
from transformer_lib.trainer import LOG


def record_language(run: str | Path, recipe: str, out: str | Path) -> dict[str, Any]:
    """Write down a run's log, settings, least validation loss and a sample of 500 characters.

    Args:
        run: the folder of a run of `python -m transformer_lib train`, with its export.
        recipe: the name of a LanguageRecipe.
        out: a folder, for every tenth record of the run's log, and record.json, written last,
            which is also returned.
    """
    run, out = Path(run), Path(out)
    if not isinstance(RECIPES.get(recipe), LanguageRecipe):
        raise ValueError(f"record_language: recipe must be a language recipe, got {recipe!r}")
    model, tokenizer = load_export(run / "export")
    records = read_records(run / LOG)
    torch.manual_seed(0)
    text = generated(model, tokenizer, n_tokens=500)
    found = about_run(recipe, run, model, records)
    found |= {"sample": {"text": text, "temperature": 0.8, "seed": 0}}
    write_log(out, records)
    write_lines(out / "record.json", [json.dumps(found, indent=1)])
    return found


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: python -m benchmarks.record_language RUN RECIPE OUT")
    found = record_language(*sys.argv[1:])
    print(f"least validation loss {found['validation_loss']:.4f} at step {found['best_step']:,}")


if __name__ == "__main__":
    main()
