"""Translate Multi30k's test set in float32 and 8 bits, and with CTranslate2, in turns.

Equal texts, BLEU and seconds of each; seconds count on a machine that does nothing else.

python -m benchmarks.record_ctranslate2 results/ctranslate2.json
python -m benchmarks.record_ctranslate2 results/ctranslate2-greedy.json --greedy
"""

import functools
import hashlib
import json
import statistics
import sys
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import Translate, by_engine
from benchmarks.record_scores import about_here, write_lines
from transformer_lib.bleu import bleu
from transformer_lib.cpu import pack_for_decoding, quantize_for_decoding
from transformer_lib.datasets import multi30k
from transformer_lib.translation import Translator

WAYS = ("multi30k-de-en", "multi30k-en-de")
ROUNDS = 3


def competitors(translator: Translator) -> dict[str, Translate]:
    """Name -> how it translates: our search, packed or with 8 bits, and the engine's."""
    threads, found = torch.get_num_threads(), {}
    for name, change in (("ours", pack_for_decoding), ("ours, 8 bits", quantize_for_decoding)):
        changed = Translator(change(translator.model), translator.tokenizer)
        found[name] = functools.partial(changed, beam=5)
    for name, kind in (("CTranslate2", "float32"), ("CTranslate2, 8 bits", "int8")):
        found[name] = by_engine(translator, kind, 5, threads)
    return found


def record_way(name: str, n_sentences: int | None = None) -> dict[str, Any]:
    """Compare all on the first n_sentences of the test set of one direction; None means all."""
    _, source, target = name.split("-")
    translator = Translator.load(name)
    pairs = multi30k(source, target, "test_2016_flickr")[:n_sentences]
    texts, references = map(list, zip(*pairs, strict=True))
    wanted, found = translator(texts, beam=5), {}
    ways = competitors(translator)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, translate in ways.items():
            start = time.perf_counter()
            written = translate(texts)
            seconds[way].append(time.perf_counter() - start)
            equal = sum(map(str.__eq__, wanted, written))
            found[way] = {"equal": equal, "bleu_13a": bleu(written, references).bleu}
    for way, times in seconds.items():
        found[way]["seconds"] = statistics.median(times)
    weights = Path(str(files("transformer_lib")), "weights", name, "model.safetensors")
    return {
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "sentences": len(texts), "bleu_13a": bleu(wanted, references).bleu, "ways": found,
    }  # fmt: skip


def record_greedy(name: str, n_sentences: int | None = None) -> dict[str, Any]:
    """Compare greedy decoding in float32, and write down every pair of texts that differ."""
    _, source, target = name.split("-")
    translator = Translator.load(name)
    texts = [text for text, _ in multi30k(source, target, "test_2016_flickr")[:n_sentences]]
    engine = by_engine(translator, "float32", 1, torch.get_num_threads())
    pairs = list(zip(translator(texts, beam=1), engine(texts), strict=True))
    different = [pair for pair in pairs if pair[0] != pair[1]]
    return {"sentences": len(texts), "equal": len(texts) - len(different), "different": different}


def main() -> None:
    if sys.argv[2:] == ["--greedy"]:
        command = "python -m benchmarks.record_ctranslate2 results/ctranslate2-greedy.json --greedy"
        about = {"command": command} | about_here()
        about["versions"]["ctranslate2"] = version("ctranslate2")
        about |= {"beam": 1, "directions": {name: record_greedy(name) for name in WAYS}}
        write_lines(Path(sys.argv[1]), [json.dumps(about, indent=1, ensure_ascii=False)])
        return
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.record_ctranslate2 OUT [--greedy]")
    about = {"command": "python -m benchmarks.record_ctranslate2 results/ctranslate2.json"}
    about |= about_here()
    about["versions"]["ctranslate2"] = version("ctranslate2")
    about["threads"] = torch.get_num_threads()
    found = about | {"beam": 5, "rounds": ROUNDS}
    found["directions"] = {name: record_way(name) for name in WAYS}
    write_lines(Path(sys.argv[1]), [json.dumps(found, indent=1)])
    print(json.dumps(found["directions"], indent=1))


if __name__ == "__main__":
    main()
