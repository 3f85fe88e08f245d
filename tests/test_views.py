"""The views that readers can change: their first state, and their script under Node."""

import json
import random
import re
import shutil
import subprocess

import pytest
import torch
from bs4 import BeautifulSoup
from notebooks import NOTEBOOKS, ROOT
from safetensors.torch import save
from test_diagram import extension

from transformer_lib import Translator
from transformer_lib.beam_search import beam_search
from transformer_lib.generation import greedy
from transformer_lib.models import Transformer, TransformerConfig
from transformer_lib.multihead import recording
from transformer_lib.positions import RotaryPositions
from transformer_lib.softmax import masked_softmax

views = extension("views")
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is missing: views.js is not tested")


def run(code, *arguments):
    """What an expression of the functions of views.js gives for each of the arguments."""
    script = f"""const v = require({json.dumps(str(views.SCRIPT))});
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map((c) => {code})));"""
    done = subprocess.run(
        [NODE, "-e", script], input=json.dumps(arguments), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_softmax_of_the_page_agrees_with_masked_softmax():
    random.seed(0)
    cases = [
        {"scores": [random.uniform(-20, 20) for _ in range(5)], "tau": 10 ** random.uniform(-2, 2),
         "seen": [random.random() < 0.7 for _ in range(5)]}
        for _ in range(50)
    ]  # fmt: skip
    cases[0] |= {"seen": [False] * 5}
    cases[1] |= {"scores": [1e4, 1e4 - 1, -1e4, 0, 0], "seen": [True] * 5}
    found = run("v.softmax(c.scores, c.tau, c.seen)", *cases)
    for case, weights in zip(cases, found, strict=True):
        scores = torch.tensor(case["scores"], dtype=torch.float64) / case["tau"]
        wanted = masked_softmax(scores, torch.tensor(case["seen"]))
        torch.testing.assert_close(torch.tensor(weights, dtype=torch.float64), wanted)


@needs_node
def test_entropy_of_the_page_agrees_with_torch():
    rows = [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]
    wanted = torch.special.entr(torch.tensor(rows)).sum(dim=-1)
    torch.testing.assert_close(torch.tensor(run("v.entropy(c)", *rows)), wanted)


@needs_node
def test_rotary_score_of_the_page_agrees_with_rotary_positions():
    rotary = RotaryPositions(d_head=8)
    same = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64)[None, None, None]
    pairs = [(0, 0), (10, 8), (8, 10), (60, 0), (31, 17), (32, 18)]
    found = run("v.rotaryScore(8, c[0], c[1])", *pairs)
    for (t, s), score in zip(pairs, found, strict=True):
        query, key = rotary.rotate(same, first=t), rotary.rotate(same, first=s)
        assert score == pytest.approx((query * key).sum().item(), abs=1e-9)
    assert (
        found[-1] == pytest.approx(found[-2]) == pytest.approx(run("v.rotaryScore(8,14,0)", 0)[0])
    )


def forms():
    """Presets, and random settings of every field."""
    random.seed(1)
    yield from ({**p, "batch_size": b, "bytes": 2} for p in views.PRESETS.values() for b in (1, 7))
    for _ in range(60):
        heads, groups = random.choice([1, 2, 5]), random.choice([1, 2, 3])
        flags = {name: random.random() < 0.5 for name in ("bias", "gated", "tied", "pre", "rms")}
        yield flags | {
            "kind": random.choice(["decoder-only", "encoder-decoder"]),
            "n_layers": random.randint(1, 13), "n_heads": heads * groups, "n_kv_heads": heads,
            "d_model": heads * groups * 2 * random.randint(1, 50), "d_ff": random.randint(1, 999),
            "vocab_size": random.randint(2, 99_999), "length": random.randint(1, 3000),
            "batch_size": random.randint(1, 9), "bytes": random.choice([2, 4]),
        }  # fmt: skip


@needs_node
def test_calculator_of_the_page_agrees_with_the_library():
    cases = list(forms())
    for case, found in zip(cases, run("v.costs(c)", *cases), strict=True):
        assert found == views.library_costs(case), case


@needs_node
def test_numbers_of_the_page_are_shortened_as_in_the_build():
    numbers = [1, 999, 1000, 124_439_808, 2.91e11, 8.7e15]
    assert run('v.short(c, "B")', *numbers) == [views.short(n, "B") for n in numbers]
    assert views.short(124_439_808, "B") == "124 MB" and views.short(2.91e11, "FLOP") == "291 GFLOP"


def test_first_states_without_a_script_are_those_of_the_library():
    tree = BeautifulSoup(views.softmax_view(), "html.parser")
    scores = torch.tensor([float(i["value"]) for i in tree.select("[name=score]")])
    shown = [cell.get_text() for cell in tree.select(".number")]
    assert len(shown) == 5
    assert shown == [f"{w:.2f}" for w in masked_softmax(scores, torch.ones(5, dtype=torch.bool))]
    tree = BeautifulSoup(views.cost_view(), "html.parser")
    assert tree.select_one("[data-out=parameters]").get_text() == "123,653,376"
    assert tree.select_one("[data-out=weight_bytes]").get_text() == "247 MB"


@pytest.mark.parametrize("make", views.VIEWS.values(), ids=lambda make: make.__name__)
def test_views_name_their_controls_and_keep_them_from_pages_without_a_script(make):
    tree = BeautifulSoup(make(), "html.parser")
    controls = tree.select("input, select, button")
    assert controls
    for control in controls:
        named = control.get("aria-label") or control.get_text() or control.find_parent("label")
        assert named, control
        if control.get("type") == "radio":
            continue  # works without a script
        hidden = [c for c in (control, *control.parents) if c.has_attr("hidden")]
        assert hidden or control.has_attr("disabled"), control
    assert tree.select_one("[role=status]")


@pytest.fixture(scope="module")
def translator():
    """A number translator with random weights, and the same packed for the page."""
    torch.manual_seed(5)
    words = ["zwei", "vier"]
    numbers = [*run("v.pieces(c)", 4321, 10), ["zero"]] if NODE else []
    pieces = ["<pad>", "<bos>", "<eos>", *dict.fromkeys(w for row in numbers for w in row), *words]
    model = Transformer(TransformerConfig.tiny(vocab_size=max(len(pieces), 4), dropout=0.0)).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.add_(0.1 * torch.randn_like(part)).copy_(part.half())
    parts = {n: w.half() for n, w in model.state_dict().items() if n != "output.weight"}
    about = {"n_heads": "4", "pieces": json.dumps(pieces)}
    return model, pieces, json.loads(views.pack(save(parts, about)))


@needs_node
def test_translator_of_the_page_agrees_with_the_library(translator):
    model, pieces, packed = translator
    assert packed["pieces"] == pieces
    source, target = [1, 3, 4, 5, 6, 7, 3, 2], [1, 8, 9, 3, 5]
    (found,) = run("v.forward(v.unpack(c.packed), c.source, c.target)",
                   {"packed": packed, "source": source, "target": target})  # fmt: skip
    with recording(model) as seen, torch.no_grad():
        logits = model(torch.tensor([source]), torch.tensor([target]))[0]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, rtol=0, atol=1e-4)
    assert set(found["seen"]) == set(seen) == set(views.KINDS)
    for name, weights in seen.items():
        shown = torch.tensor(found["seen"][name])
        torch.testing.assert_close(shown, weights[0], rtol=0, atol=1e-4)


@needs_node
def test_translator_of_the_page_decodes_as_greedy_decoding(translator):
    model, _, packed = translator
    sources = [[1, 3, 4, 2], [1, 5, 6, 7, 2], [1, 9, 2]]
    code = "v.translate(v.unpack(c.packed), c.source).tokens"
    found = run(code, *({"packed": packed, "source": s} for s in sources))
    for source, tokens in zip(sources, found, strict=True):
        (wanted,) = greedy(model, torch.tensor([source]), max_len=12)
        assert tokens[1:] == [int(token) for token in wanted] or tokens[1:-1] == wanted


@needs_node
def test_numbers_of_the_page_are_named_as_by_num2words():
    num2words = pytest.importorskip("num2words").num2words
    found = run("v.pieces(c).join('')", *range(10_000))
    assert found == [num2words(n) for n in range(10_000)]


@pytest.mark.parametrize("width", views.WIDTHS)
def test_stored_searches_are_those_of_beam_search(width):
    translator = Translator.load("multi30k-de-en")
    (source,) = translator.tokenizer.encode_all([views.BEAM_SOURCE])
    steps, (tokens, p, *_) = views.search(translator.model, source + [2], width)
    options = {"beam": width, "length_penalty": 0.0, "max_len": 30}
    best = beam_search(translator.model, torch.tensor([source + [2]]), **options)[0][0]
    assert list(tokens[1:-1]) == best.tokens and p == pytest.approx(best.log_probability, abs=1e-4)
    for step in steps:
        assert 1 <= len(step) <= width + 1
        assert [one[1] for one in step[:width]] == sorted(
            (o[1] for o in step[:width]), reverse=True
        )


def test_a_wider_beam_finds_a_more_probable_sentence_in_the_stored_searches():
    tree = BeautifulSoup(views.beam_view(), "html.parser")
    found = [float(p.get_text().replace("−", "-").split("log-probability ")[1].split(",")[0])
             for p in tree.select(".beam-panel > p")]  # fmt: skip
    assert found == sorted(found) and found[0] < found[1]
    paths = [len(panel.select("rect.found")) for panel in tree.select(".beam-panel")]
    assert all(n > 5 for n in paths)


def test_stored_weights_are_found_in_an_executed_notebook(tmp_path):
    notebook = {"cells": [{"outputs": [{"data": {"text/plain": "{'number_translator': 'AAEC'}"}}]}]}
    for given, wanted in ((notebook, bytes([0, 1, 2])), ({"cells": [{}]}, None)):
        (tmp_path / "x.ipynb").write_text(json.dumps(given))
        assert views.stored_weights(tmp_path / "x.ipynb") == wanted


def test_views_follow_a_figure_of_a_chapter():
    names = [c.metadata.get("mystnb", {}).get("figure", {}).get("name")
             for nb in NOTEBOOKS for c in nb.code]  # fmt: skip
    assert set(views.VIEWS) <= set(names)


def test_scores_of_the_first_view_are_those_of_the_chapter():
    chapter = (ROOT / "chapters" / "1_attention" / "3_softmax.ipynb").read_text()
    assert re.search(r"1\.41 for \*a\*, 2\.83 for \*black\*, and 0 for \*dog", chapter)
