"""Translation of the 100 captions of tests/captions.txt by a shipped model, and by an engine."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.harness import Built, Case, Competitor, Setting, count_parameters
from transformer_lib.cpu import pack_for_decoding, quantize_for_decoding
from transformer_lib.translation import Translator, to_ctranslate2

MODEL = "multi30k-en-de"
CAPTIONS = Path(__file__).resolve().parent.parent / "tests" / "captions.txt"
Translate = Callable[[list[str]], list[str]]


def by_ours(change: Callable, beam: int) -> Translate:
    translator = Translator.load(MODEL)
    translator.model = change(translator.model)
    return lambda texts: translator(texts, beam=beam)


def by_engine(kind: str, beam: int) -> Translate:
    """CTranslate2 with the same weights, batches of as many tokens, and as many threads."""
    import ctranslate2

    translator = Translator.load(MODEL)
    threads = {"inter_threads": 1, "intra_threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as place:  # the engine reads the files at once
        folder = to_ctranslate2(translator.model, Path(place, "model"))
        engine = ctranslate2.Translator(str(folder), compute_type=kind, **threads)
    tokenizer = translator.tokenizer
    options = {"beam_size": beam, "max_batch_size": 4096, "batch_type": "tokens"}
    options |= {"length_penalty": 1.0 if beam > 1 else 0.0, "max_decoding_length": 120}

    def translate(texts: list[str]) -> list[str]:
        sources = [[*map(str, ids), "2"] for ids in tokenizer.encode_all(texts)]
        found = engine.translate_batch(sources, **options)
        return [tokenizer.decode([int(i) for i in each.hypotheses[0]]) for each in found]

    return translate


def check(texts: list[str], wanted: list[str], rounded: bool) -> None:
    """Check that the texts are those that the library writes; most of them, if it rounds."""
    same = sum(a == b for a, b in zip(texts, wanted, strict=True)) / len(wanted)
    if same < (0.7 if rounded else 0.98):  # ties, and sums in another order
        raise ValueError(f"check: the same texts must come out, got {same:.0%} of them")


ROUNDED = "weights and inputs rounded to 8 bits"
WAYS: dict[str, tuple[Callable[[int], Translate], str, str]] = {
    "ours": (lambda beam: by_ours(pack_for_decoding, beam), "ours", "packed"),
    "ours, not packed": (lambda beam: by_ours(lambda model: model, beam), "other", ""),
    "ours, 8 bits": (lambda beam: by_ours(quantize_for_decoding, beam), "other", ROUNDED),
    "CTranslate2": (lambda beam: by_engine("float32", beam), "peer", ""),
    "CTranslate2, 8 bits": (lambda beam: by_engine("int8", beam), "other", ROUNDED),
}


def translation(texts: list[str], beam: int, *, alone: bool) -> Case:
    """Translate all texts in one call, or each in a call of its own."""
    plain = Translator.load(MODEL)
    wanted = plain(texts, beam=beam)

    def competitor(name: str) -> Competitor:
        way, role, note = WAYS[name]

        def make() -> Built:
            translate = way(beam)

            def run() -> list[str]:
                if alone:
                    return [translate([text])[0] for text in texts]
                return translate(texts)

            check(run(), wanted, note == ROUNDED)
            return Built(run=run, parameters=count_parameters(plain.model))

        return Competitor(name=name, make=make, role=role, note=note)

    how = f"{len(texts)} captions{', one at a time' * alone}"
    return Case(
        suite="translator",
        name=f"{how}, {f'beam {beam}' if beam > 1 else 'greedy'}",
        competitors=[competitor(name) for name in WAYS],
        work=sum(len(ids) for ids in plain.tokenizer.encode_all(wanted)),
    )


def cases(setting: Setting) -> Iterator[Case]:
    texts = CAPTIONS.read_text(encoding="utf-8").splitlines()
    for beam in (5, 1):
        yield translation(texts, beam, alone=False)
        yield translation(texts[:20], beam, alone=True)
