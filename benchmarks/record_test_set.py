"""Resample and check the recorded translations of Multi30k's test set; compare stopping rules.

python -m benchmarks.record_test_set results/test-set.json
"""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from benchmarks.record_scores import about_here, write_lines
from transformer_lib.attention import padding_mask
from transformer_lib.batches import PairBatches
from transformer_lib.beam_search import beam_search
from transformer_lib.bleu import bleu
from transformer_lib.datasets import multi30k
from transformer_lib.translation import Translator

RESULTS = Path(__file__).resolve().parents[1] / "results"
SEARCHES = ("hypotheses", "hypotheses-greedy")
N_SAMPLES, N_AGAIN = 1000, 100
PATIENCE = {"bound": math.inf, "patience 2": 2.0, "patience 1": 1.0}


def record_direction(folder: Path) -> dict[str, Any]:
    """Take a folder that record_scores wrote, of a model that ships with the library."""
    run = json.loads((folder / "scores.json").read_text("utf-8"))
    name = folder.name
    _, source, target = name.split("-")
    weights = Path(str(files("transformer_lib")), "weights", name, "model.safetensors")
    pairs = multi30k(source, target, "test_2016_flickr")
    sources, references = map(list, zip(*pairs, strict=True))
    systems = {one: (folder / f"{one}.txt").read_text("utf-8").split("\n")[:-1] for one in SEARCHES}
    again = {
        search: {
            protocol: bleu(lines, references, protocol=protocol, language=target).bleu
            for protocol in ("13a", "moses-lower")
        }
        for search, lines in systems.items()
    }
    translator = Translator.load(name)
    written = translator(sources[:N_AGAIN])
    return {
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "intervals": intervals(systems, references),
        "scored_again": again,
        "scored_again_equal": all(
            math.isclose(score, run["scores"][search][protocol]["bleu"])
            for search, scores in again.items()
            for protocol, score in scores.items()
        ),
        "translated_again": N_AGAIN,
        "translated_again_equal": sum(map(str.__eq__, written, systems["hypotheses"])),
        "stopping": stopping(translator, sources, references),
    }


def intervals(systems: dict[str, list[str]], references: list[str]) -> dict[str, dict[str, Any]]:
    """Resample the sentences: half the width of each 95 % interval, and the test between both."""
    metric = {"BLEU": BLEU(references=[references])}
    named: list[tuple[str, Sequence[str]]] = list(systems.items())
    _, found = PairedTest(named, metric, None, test_type="bs", n_samples=N_SAMPLES)()
    return {search: vars(one) for search, one in zip(systems, found["BLEU"], strict=True)}


def stopping(
    translator: Translator, sources: list[str], references: list[str], beam: int = 5
) -> dict[str, dict[str, float]]:
    """Translate under several rules: prefixes per source, BLEU, texts equal to the bound's."""
    model, tokens = translator.model, translator.tokenizer.encode_all(sources)
    batches = PairBatches(tokens, [()] * len(tokens), max_tokens=4096, shuffle=False)
    found: dict[str, list[list[int]]] = {}
    result = {}
    for rule, patience in PATIENCE.items():
        rows: list[int] = []
        hook = model.output.register_forward_hook(
            lambda module, given, out, rows=rows: rows.append(len(out))
        )
        lines: list[list[int]] = [[] for _ in tokens]
        for which, batch in zip(batches.order(0), batches, strict=True):
            mask = padding_mask(batch.source_lengths, batch.source.shape[1])
            max_len = 2 * batch.source.shape[1] + 10
            best = beam_search(
                model, batch.source, mask, beam=beam, patience=patience, max_len=max_len
            )
            for i, hypotheses in zip(which.tolist(), best, strict=True):
                lines[i] = hypotheses[0].tokens
        hook.remove()
        found[rule] = lines
        same = sum(map(list.__eq__, lines, found["bound"]))
        texts = [translator.tokenizer.decode(line) for line in lines]
        score = bleu(texts, references).bleu
        result[rule] = {"prefixes": sum(rows) / len(lines), "same": same, "bleu_13a": score}
    return result


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.record_test_set OUT")
    command = "python -m benchmarks.record_test_set results/test-set.json"
    about: dict[str, Any] = {"command": command} | about_here()
    about["versions"]["sacrebleu"] = version("sacrebleu")
    runs = {p.parent.name: p.parent for p in sorted(RESULTS.glob("multi30k-*/scores.json"))}
    found = about | {
        "samples": N_SAMPLES,
        "beam": 5,
        "ways": {name: record_direction(folder) for name, folder in runs.items()},
    }
    write_lines(Path(sys.argv[1]), [json.dumps(found, indent=1)])
    print(json.dumps(found["ways"], indent=1))


if __name__ == "__main__":
    main()
