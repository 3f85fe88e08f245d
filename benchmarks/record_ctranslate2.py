"""Translate Multi30k's test set in float32 and 8 bits, and with CTranslate2; count equal texts.

python -m benchmarks.record_ctranslate2 results/ctranslate2.json
"""

import hashlib
import json
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.engine import by_engine
from benchmarks.record_scores import about_here, write_lines
from transformer_lib.bleu import bleu
from transformer_lib.cpu import quantize_for_decoding
from transformer_lib.datasets import multi30k
from transformer_lib.translation import Translator

WAYS = ("multi30k-de-en", "multi30k-en-de")
KINDS = ("float32", "int8")


def compare(ours: list[str], theirs: list[str], references: list[str]) -> dict[str, Any]:
    equal = sum(map(str.__eq__, ours, theirs))
    return {"equal": equal, "bleu_13a": bleu(theirs, references).bleu}


def record_way(name: str, n_sentences: int | None = None) -> dict[str, Any]:
    """Compare both on the first n_sentences of the test set of one direction; None means all."""
    _, source, target = name.split("-")
    translator = Translator.load(name)
    pairs = multi30k(source, target, "test_2016_flickr")[:n_sentences]
    texts, references = map(list, zip(*pairs, strict=True))
    ours = translator(texts, beam=5)
    weights = Path(str(files("transformer_lib")), "weights", name, "model.safetensors")
    found: dict[str, Any] = {"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    found |= {"sentences": len(texts), "bleu_13a": bleu(ours, references).bleu, "engine": {}}
    rounded = Translator(quantize_for_decoding(translator.model), translator.tokenizer)
    found["int8"] = compare(ours, rounded(texts, beam=5), references)
    for kind in KINDS:
        theirs = by_engine(translator, kind, beam=5)(texts)
        found["engine"][kind] = compare(ours, theirs, references)
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.record_ctranslate2 OUT")
    about = {"command": "python -m benchmarks.record_ctranslate2 results/ctranslate2.json"}
    about |= about_here()
    about["versions"]["ctranslate2"] = version("ctranslate2")
    found = about | {"beam": 5, "ways": {name: record_way(name) for name in WAYS}}
    write_lines(Path(sys.argv[1]), [json.dumps(found, indent=1)])
    print(json.dumps(found["ways"], indent=1))


if __name__ == "__main__":
    main()
