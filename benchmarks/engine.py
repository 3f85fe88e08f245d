"""Translation of the 100 captions of tests/captions.txt by a shipped model, and by others.

All have the same weights, and must write the same texts before they are timed.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.harness import Built, Case, Competitor, Setting, count_parameters
from transformer_lib.cpu import pack_for_decoding, quantize_for_decoding
from transformer_lib.models import Transformer
from transformer_lib.shapes import import_extra
from transformer_lib.tokenizer import BEGIN, END, PAD
from transformer_lib.translation import Translator, to_ctranslate2

MODEL = "multi30k-en-de"
CAPTIONS = Path(__file__).resolve().parent.parent / "tests" / "captions.txt"
Translate = Callable[[list[str]], list[str]]


def by_ours(change: Callable, beam: int) -> Translate:
    translator = Translator.load(MODEL)
    translator.model = change(translator.model)
    return lambda texts: translator(texts, beam=beam)


def encoded(translator: Translator, texts: list[str]) -> tuple[list[list[int]], int]:
    """The sources, and the length at which the Translator stops its search."""
    sources = [[*ids, END] for ids in translator.tokenizer.encode_all(texts)]
    return sources, min(translator.model.config.max_len, 2 * max(map(len, sources)) + 10)


def by_engine(translator: Translator, kind: str, beam: int, threads: int = 1) -> Translate:
    """CTranslate2, searching as the Translator does, in batches of as many tokens."""
    engine = import_extra("ctranslate2", "ctranslate2")
    with tempfile.TemporaryDirectory() as place:  # the engine reads the files at once
        folder = to_ctranslate2(translator.model, Path(place, "model"))
        options = {"device": "cpu", "compute_type": kind, "intra_threads": threads}
        ready = engine.Translator(str(folder), inter_threads=1, **options)

    def translate(texts: list[str]) -> list[str]:
        sources, longest = encoded(translator, texts)
        found = ready.translate_batch(
            [list(map(str, source)) for source in sources], beam_size=beam,
            max_batch_size=4096, batch_type="tokens",
            min_decoding_length=0, max_decoding_length=longest,
        )  # fmt: skip
        rows = ([int(token) for token in one.hypotheses[0]] for one in found)
        return list(map(translator.tokenizer.decode, rows))

    return translate


PEGASUS = (  # our names, their names
    (r"^(encoder|decoder)\.(\d+)", r"model.\1.layers.\2"),
    (r"^(encoder|decoder)_norm", r"model.\1.layer_norm"),
    (r"cross_attention", "encoder_attn"),
    (r"(self_)?attention", "self_attn"),
    (r"_attn_residual\.norm", "_attn_layer_norm"),
    (r"feed_forward_residual\.norm", "final_layer_norm"),
    (r"feed_forward\.up", "fc1"),
    (r"feed_forward\.down", "fc2"),
    (r"^embedding", "model.shared"),
    (r"^output", "lm_head"),
)


def pegasus(model: Transformer) -> Any:
    """Copy a pre-norm model into transformers' Pegasus: Marian's code, but with pre-norm."""
    import transformers

    config, weights = model.config, {}
    sizes = {
        "vocab_size": config.vocab_size, "d_model": config.d_model,
        "max_position_embeddings": config.max_len, "activation_function": config.activation,
        "scale_embedding": True, "dropout": 0.0, "pad_token_id": PAD, "bos_token_id": BEGIN,
        "eos_token_id": END, "decoder_start_token_id": BEGIN, "forced_eos_token_id": None,
    }  # fmt: skip
    for side in ("encoder", "decoder"):
        sizes[f"{side}_layers"] = getattr(config, f"n_{side}_layers")
        sizes[f"{side}_attention_heads"] = config.n_heads
        sizes[f"{side}_ffn_dim"] = config.d_ff
    theirs = transformers.PegasusForConditionalGeneration(transformers.PegasusConfig(**sizes))
    for name, x in model.state_dict().items():
        for ours, new in PEGASUS:
            name = re.sub(ours, new, name)
        if "in_proj" in name:
            for part, rows in zip("qkv", x.chunk(3), strict=True):
                weights[name.replace("in_proj", f"{part}_proj")] = rows
        else:
            weights[name] = x
    with torch.no_grad():  # sines and cosines alternate in ours, and come in two halves in theirs
        places = model.positions(torch.zeros(1, config.max_len, config.d_model))[0]
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_positions.weight"] = places
        weights[f"model.{side}.embed_tokens.weight"] = weights["model.shared.weight"]
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"final_logits_bias"}:  # which is 0
        raise ValueError(f"pegasus: all weights must be copied, got {missing}, {unexpected}")
    return theirs.eval()


def by_pegasus(beam: int) -> Translate:
    translator = Translator.load(MODEL)
    theirs: nn.Module = pegasus(translator.model)
    search = {"num_beams": beam, "length_penalty": 1.0, "early_stopping": True} if beam > 1 else {}

    def translate(texts: list[str]) -> list[str]:
        sources, longest = encoded(translator, texts)
        rows = pad_sequence(list(map(torch.tensor, sources)), batch_first=True, padding_value=PAD)
        options = {"do_sample": False, "max_new_tokens": longest, **search}
        found = theirs.generate(rows, attention_mask=(rows != PAD).long(), **options)
        ends = [row.index(END) if END in row else len(row) for row in found.tolist()]
        lines = [row[1:end] for row, end in zip(found.tolist(), ends, strict=True)]
        return list(map(translator.tokenizer.decode, lines))

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
    "HF Pegasus": (by_pegasus, "peer", "in PyTorch"),
    "CTranslate2": (lambda beam: raced("float32", beam), "peer", "an engine in C++"),
    "CTranslate2, 8 bits": (lambda beam: raced("int8", beam), "other", ROUNDED),
}


def raced(kind: str, beam: int) -> Translate:
    return by_engine(Translator.load(MODEL), kind, beam, torch.get_num_threads())


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
