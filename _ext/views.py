"""Views that readers can change, below the figures that they belong to.

The library computes the first state of each view while the site is built, so that a page without
JavaScript shows a correct table. With it, _static/views.js lets readers change the inputs; a test
compares its functions with the library's.
"""

import json
import math
import re
from html import escape
from pathlib import Path
from shutil import copyfile

from docutils import nodes

WEIGHTS = "number_translator.js"
STORED = re.compile(r"\{'number_translator': '([\w+/=]+)'\}")  # in an output of the chapter
SCRIPT = Path(__file__).with_name(
    "views.js"
)  # not in _static/, which Jupyter Book loads everywhere


def fold(name, title, text, body):
    """A view: its title, what it shows, its parts, and a line that says the result."""
    return (
        f'<section class="view" data-view="{name}" aria-labelledby="view-{name}">'
        f'<p class="view-title" id="view-{name}">Try it: {title}</p><p>{text}</p>{body}'
        '<p role="status"></p></section>'
    )


def slider(name, label, low, high, step, value, shown):
    return (
        f'<label class="slider" hidden><span>{label} <output data-out="{name}">{shown}</output>'
        f'</span><input type="range" name="{name}" min="{low}" max="{high}" step="{step}" '
        f'value="{value}"></label>'
    )


def button(label, **change):
    """A button that adds to inputs or sets them."""
    return f"<button type=\"button\" hidden data-change='{json.dumps(change)}'>{label}</button>"


def softmax_view():
    """Scores of five keys, a temperature and a mask."""
    import torch

    from transformer_lib.softmax import masked_softmax

    words = {"a": 1.41, "black": 2.83, "dog": 0.0, "runs": 0.0, "fast": 1.0}
    scores = torch.tensor(list(words.values()))
    weights = masked_softmax(scores, torch.ones(5, dtype=torch.bool)).tolist()
    rows = ""
    for (word, score), weight in zip(words.items(), weights, strict=True):
        rows += (
            f'<tr><th scope="row">{word}</th>'
            f'<td><input type="number" name="score" aria-label="score of {word}" step="0.5" '
            f'min="-20" max="20" value="{score:g}" disabled></td>'
            f'<td><input type="checkbox" name="seen" aria-label="{word} may be attended to" '
            "checked disabled></td>"
            f'<td class="bars"><span class="bar" style="width:{100 * weight:.2f}%"></span>'
            f'<span class="number">{weight:.2f}</span></td></tr>'
        )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("key", "score", "visible", "weight"))
    body = slider("temperature", "temperature τ =", -1.5, 1.5, 0.05, 0, "1.00")
    body += f'<table class="table"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    text = (
        "The query of <em>dog</em> and five keys; <em>fast</em> is added. Change the temperature "
        "or a score, or hide a key: the weights that remain always sum to 1, and a hidden key "
        "gets exactly 0."
    )
    return fold("softmax", "temperature and mask", text, body)


def clock(rate, query, key):
    def hand(place, name, length):
        turn = math.degrees(rate * place) % 360
        return (
            f'<g class="{name}" transform="rotate({turn:.3f})"><line y2="-{length}"/>'
            f'<circle cy="-{length}" r="5"/></g>'
        )

    return (
        '<svg class="clock" viewBox="-50 -50 100 100" aria-hidden="true"><circle r="44"/>'
        f"{hand(key, 'key', 36)}{hand(query, 'query', 28)}</svg>"
    )


def clocks_view():
    """A query and a key at two positions, on four clocks."""
    query, key, width = 10, 8, 8
    rates = [10_000 ** (-i / width) for i in range(0, width, 2)]
    clocks = ""
    for rate in rates:
        angle = rate * abs(query - key)
        speed = f"{rate:g} radian{'s' * (rate != 1)} per position"
        clocks += (
            f"<figure>{clock(rate, query, key)}<figcaption>{speed}<br>"
            f'<span class="angle">cos({angle:.3g}) = {math.cos(angle):.2f}</span></figcaption>'
            "</figure>"
        )
    body = slider("query", '<span class="query-word">query</span> at position', 0, 60, 1, query,
                  query)  # fmt: skip
    body += slider("key", '<span class="key-word">key</span> at position', 0, 60, 1, key, key)
    body += '<p class="buttons">'
    body += button("move both by +1", add={"query": 1, "key": 1})
    body += button("move both by −1", add={"query": -1, "key": -1})
    body += button("same position", set={"query": 10, "key": 10})
    body += f'</p><div class="clocks">{clocks}</div>'
    text = (
        "A query (blue, short hand) and a key (orange, long hand) of width 8 point in the same "
        "direction before the rotation. Move both by the same number of positions: all hands turn, "
        "and no angle between them changes, so the score stays the same."
    )
    return fold("clocks", "two positions on four clocks", text, body)


SIZES = {  # GPT-2 small, as in the chapter
    "n_layers": ("layers L", 12), "d_model": ("width D", 768), "n_heads": ("heads H", 12),
    "n_kv_heads": ("key heads", 12), "d_ff": ("inner width F", 3072),
    "vocab_size": ("vocabulary V", 50_257), "length": ("tokens T", 1024),
    "batch_size": ("batch B", 1),
}  # fmt: skip
PRESETS = {
    "GPT-2 small": {
        "kind": "decoder-only", "n_layers": 12, "d_model": 768, "n_heads": 12, "n_kv_heads": 12,
        "d_ff": 3072, "vocab_size": 50_257, "length": 1024, "bias": True, "gated": False,
        "tied": True, "pre": True, "rms": False,
    },
    "base model of 2017": {
        "kind": "encoder-decoder", "n_layers": 6, "d_model": 512, "n_heads": 8, "n_kv_heads": 8,
        "d_ff": 2048, "vocab_size": 37_000, "length": 64, "bias": True, "gated": False,
        "tied": True, "pre": False, "rms": False,
    },
}  # fmt: skip
RESULTS = {
    "parameters": "parameters", "forward_flops": "forward pass", "training_flops": "training step",
    "weight_bytes": "weights", "cache_bytes": "KV cache",
    "training_bytes": "weights, gradients and AdamW, 16 bytes per parameter",
}  # fmt: skip


def config(form):
    """The TransformerConfig that the form of the calculator describes."""
    from transformer_lib.models import TransformerConfig

    return TransformerConfig(
        vocab_size=form["vocab_size"], d_model=form["d_model"], n_heads=form["n_heads"],
        n_kv_heads=form["n_kv_heads"], d_ff=form["d_ff"], n_encoder_layers=form["n_layers"],
        n_decoder_layers=form["n_layers"], positions="rotary" if form["pre"] else "sinusoidal",
        bias=form["bias"], activation="swiglu" if form["gated"] else "relu",
        tie_embeddings=form["tied"], norm="pre" if form["pre"] else "post",
        norm_type="rms" if form["rms"] else "layer",
    )  # fmt: skip


def library_costs(form):
    """What transformer_lib.cost says of the form, under the names of the calculator."""
    from transformer_lib.cost import cost, decoder_only_cost

    sizes = {"batch_size": form["batch_size"], "bytes_per_number": form["bytes"]}
    if form["kind"] == "encoder-decoder":
        lengths = {"source_len": form["length"], "target_len": form["length"]}
        found = cost(config(form), **sizes, **lengths)
    else:
        found = decoder_only_cost(config(form), **sizes, length=form["length"])
    names = [name for name in RESULTS if name != "training_bytes"]
    return {name: getattr(found, name) for name in names} | {
        "training_bytes": 16 * found.parameters
    }


def short(number, unit):
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")):
        if number >= size:
            return f"{float(f'{number / size:.3g}'):g} {prefix}{unit}"
    return f"{number} {unit}"


def cost_view():
    """Sizes of a model, and what it costs by the formulas of the chapter."""
    first = PRESETS["GPT-2 small"] | {"batch_size": 1, "bytes": 2}
    found = library_costs(first)
    fields = "".join(
        f'<label>{label}<input type="number" name="{name}" min="1" step="1" value="{value}" '
        "disabled></label>"
        for name, (label, value) in SIZES.items()
    )
    kinds = "".join(f"<option>{kind}</option>" for kind in ("decoder-only", "encoder-decoder"))
    fields += f'<label>model<select name="kind" disabled>{kinds}</select></label>'
    numbers = "".join(
        f'<option value="{n}">{name}</option>' for n, name in ((2, "16 bits"), (4, "32 bits"))
    )
    fields += f'<label>numbers<select name="bytes" disabled>{numbers}</select></label>'
    boxes = {"bias": "biases", "gated": "gated feed-forward", "tied": "tied embeddings",
             "pre": "pre-norm, with a last norm", "rms": "RMSNorm"}  # fmt: skip
    checks = "".join(
        f'<label><input type="checkbox" name="{name}"{" checked" * first[name]} disabled> '
        f"{label}</label>"
        for name, label in boxes.items()
    )
    units = {"parameters": ""} | {n: "FLOP" if "flops" in n else "B" for n in RESULTS}
    rows = "".join(
        f'<tr><th scope="row">{label}</th><td class="number" data-out="{name}">'
        f"{f'{found[name]:,}' if name == 'parameters' else short(found[name], units[name])}"
        "</td></tr>"
        for name, label in RESULTS.items()
    )
    presets = "".join(button(escape(name), set=preset) for name, preset in PRESETS.items())
    body = f'<p class="buttons">{presets}</p><div class="fields">{fields}</div>'
    body += f'<div class="checks">{checks}</div>'
    body += f'<table class="table"><tbody>{rows}</tbody></table>'
    text = (
        "The formulas of this chapter, with your sizes. An encoder–decoder model has L layers in "
        "each stack, and T tokens on each side. Positions have no parameters here (sinusoidal or "
        "rotary); GPT-2's own table of positions would add 1,024 × 768. The "
        "sizes of memory to compare with are 8, 16, 24, 80 and 141 GB."
    )
    return fold("cost", "the cost of a model", text, body)


KINDS = {
    "decoder.1.cross_attention": "cross-attention, layer 2",
    "decoder.0.cross_attention": "cross-attention, layer 1",
    "decoder.1.self_attention": "decoder self-attention, layer 2",
    "decoder.0.self_attention": "decoder self-attention, layer 1",
    "encoder.1.attention": "encoder self-attention, layer 2",
    "encoder.0.attention": "encoder self-attention, layer 1",
}


def options(choices):
    return "".join(f'<option value="{value}">{label}</option>' for value, label in choices.items())


def translator_view():
    """The model of this page, computed in the page."""
    heads = {"mean": "average", **{str(h): f"head {h + 1}" for h in range(4)}}
    body = '<p class="buttons"><button type="button" class="load" hidden>'
    body += "load the model (0.6 MB)</button></p>"
    body += '<div class="fields later" hidden>'
    body += '<label>number, 0 to 9999<input type="number" name="number" min="0" max="9999" '
    body += 'step="1" value="4321"></label>'
    body += f'<label>attention<select name="kind">{options(KINDS)}</select></label>'
    body += f'<label>weights of<select name="head">{options(heads)}</select></label></div>'
    body += '<div class="grid later" tabindex="0" role="region" aria-label="attention weights" '
    body += "hidden><table></table></div>"
    text = (
        "The model that was trained on this page translates your number here, in the browser, and "
        "shows its attention weights: a row for each query, a column for each key. Its weights "
        "are rounded to 16 bits. A number that it gets wrong is as instructive as one that it gets "
        "right; try 1, 40 and 2001."
    )
    return fold("translator", "the number translator", text, body).replace(
        "<section ", f'<section data-weights="{{static}}/{WEIGHTS}" ', 1
    )


def stored_weights(notebook):
    """The weights that the executed chapter stored, as safetensors; None in an unexecuted one."""
    import base64

    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            shown = "".join(output.get("data", {}).get("text/plain", ""))
            if found := STORED.match(shown):
                return base64.b64decode(found[1])
    return None


def pack(stored):
    """Weights in 16 bits, with what the script needs to use them, as JSON."""
    import base64
    import struct

    from safetensors.torch import load

    size = struct.unpack("<Q", stored[:8])[0]
    said = json.loads(stored[8 : 8 + size])["__metadata__"]
    parts = load(stored)
    numbers = b"".join(part.half().numpy().astype("<f2").tobytes() for part in parts.values())
    return json.dumps({
        "n_heads": int(said["n_heads"]), "pieces": json.loads(said["pieces"]),
        "shapes": {name: [*part.shape] for name, part in parts.items()},
        "weights": base64.b64encode(numbers).decode(),
    })  # fmt: skip


BEAM_SOURCE, WIDTHS = "Ein Zug fährt durch den Schnee.", (1, 2, 3, 4)
COLUMN, STEP = 84, 40


def search(model, source, width, max_len=30, end=2):
    """The steps of a beam search by log-probability, and what it finds.

    Returns:
        For each step what is kept, best first, and what has ended: (prefix, log-probability, place
        of its parent in the step before, whether it ended); and the best of what ended.
    """
    import torch

    with torch.no_grad():
        memory = model.encode(torch.tensor([source]))
        live, steps, best = [((1,), 0.0)], [], None
        while live and len(steps) < max_len and (best is None or live[0][1] > best[1]):
            prefixes = torch.tensor([prefix for prefix, _ in live])
            logits = model.decode(prefixes, memory.expand(len(live), -1, -1))
            log_p = logits[:, -1].double().log_softmax(dim=-1)
            log_p += torch.tensor([[p] for _, p in live], dtype=torch.float64)
            top, places = log_p.flatten().topk(2 * width)
            grown = [
                ((*live[i // log_p.shape[1]][0], i % log_p.shape[1]), p, i // log_p.shape[1])
                for p, i in zip(top.tolist(), places.tolist(), strict=True)
            ]
            ended = [one for one in grown[:width] if one[0][-1] == end]
            kept = [one for one in grown if one[0][-1] != end][:width]
            steps.append([(*one, False) for one in kept] + [(*one, True) for one in ended[:1]])
            best = max([*filter(None, [best]), *ended], key=lambda one: one[1], default=None)
            live = [(prefix, p) for prefix, p, _ in kept]
    return steps, best


def draw_search(steps, best, width, pieces):
    """The steps from top to bottom; the path of what is found stands out."""
    lines, boxes = [], []
    for row, step in enumerate(steps):
        for place, (prefix, p, parent, ended) in enumerate(step):
            column = width if ended else place
            x, y = COLUMN * column + 4, STEP * (row + 1)
            on = " found" if best[0][: len(prefix)] == prefix else ""
            start = COLUMN * parent + COLUMN / 2 if row else COLUMN / 2
            lines.append(
                f'<line class="{on.strip()}" x1="{start:g}" y1="{y - 14}" x2="{x + 38}" y2="{y}"/>'
            )
            text = "end" if ended else pieces([prefix[-1]])[0].strip()
            boxes.append(
                f'<rect class="{"ended" if ended else "kept"}{on}" x="{x}" y="{y}" width="76" '
                f'height="26" rx="4"/><text x="{x + 38}" y="{y + 11}">{escape(text)}</text>'
                f'<text class="p" x="{x + 38}" y="{y + 22}">{p:.2f}</text>'.replace("-", "−")
            )
    size = f"0 0 {COLUMN * (width + 1)} {STEP * (len(steps) + 1) - 8}"
    start = f'<text x="{COLUMN / 2:g}" y="18">begin</text>'
    return "".join(lines), "".join(boxes) + start, size


def beam_view():
    """Searches of four widths by the shipped translator, stored."""
    from transformer_lib import Translator

    translator = Translator.load("multi30k-de-en")
    (source,) = translator.tokenizer.encode_all([BEAM_SOURCE])
    choices = panels = ""
    for width in WIDTHS:
        steps, best = search(translator.model, [*source, 2], width)
        lines, boxes, size = draw_search(steps, best, width, translator.tokenizer.tokens)
        said = translator.tokenizer.decode(list(best[0][1:-1]))
        reads = 1 + sum(sum(not ended for *_, ended in step) for step in steps[:-1])
        checked = " checked" if width == 2 else ""
        choices += (
            f'<label><input type="radio" name="width" id="width-{width}"{checked}> {width}</label>'
        )
        name = f"Search with {width} prefixes: kept words by step, with their log-probabilities"
        panels += (
            f'<div class="beam-panel" id="beam-{width}"><p>Width {width} finds <strong>'
            f"{escape(said)}</strong> with log-probability −{-best[1]:.2f}, after {reads} prefixes "
            f'were read.</p><div class="beam-scroll" tabindex="0" role="region" '
            f'aria-label="{name}"><svg class="beam" viewBox="{size}" role="img" '
            f'aria-label="{name}" style="max-width:{COLUMN * (width + 1)}px">{lines}{boxes}</svg>'
            "</div></div>"
        )
    body = f'<fieldset class="widths"><legend>beam width</legend>{choices}</fieldset>{panels}'
    text = (
        'The shipped translator reads <em lang="de">' + escape(BEAM_SOURCE) + "</em> and "
        "searches for the most probable sentence, without a length penalty. Each row is a step, "
        "with the prefixes that are kept, best first; the thick path is what the search returns."
    )
    return fold("beam", "the beam width", text, body)


VIEWS = {  # the figure that a view follows
    "fig-beam_search-tree": beam_view,
    "fig-models-crossing": translator_view,
    "fig-softmax-temperature": softmax_view,
    "fig-positions-rotary-scores": clocks_view,
    "fig-cost-vocabulary": cost_view,
}


def cell_of(figure):
    """The figure's cell: the last element below a section."""
    node = figure
    while node.parent is not None and not isinstance(node.parent, nodes.section):
        node = node.parent
    return node


def add_views(app, doctree, page):
    if app.builder.name not in ("html", "dirhtml"):
        return
    for figure in list(doctree.findall(nodes.figure)):
        for name in set(figure["ids"]) | set(figure["names"]):
            make = VIEWS.get(name)
            if make is translator_view and translator_of(app) is None:
                continue
            if make:
                static = app.builder.get_relative_uri(page, "_static/x").rpartition("/")[0]
                text = make().replace("{static}", static)
                cell = cell_of(figure)
                place = cell.parent.index(cell) + 1
                cell.parent.insert(place, nodes.raw("", text, format="html"))


def translator_of(app):
    if not hasattr(app, "book_translator"):
        notebook = next(Path(app.srcdir, "chapters").glob("*/*_models.ipynb"), None)
        app.book_translator = notebook and stored_weights(notebook)
    return app.book_translator


def add_script(app, page, template, context, doctree):
    if doctree is not None and 'class="view"' in context.get("body", ""):
        app.add_js_file(SCRIPT.name, loading_method="defer")


def serve_script(app, failure):
    if failure is None and app.builder.name in ("html", "dirhtml"):
        copyfile(SCRIPT, Path(app.outdir, "_static", SCRIPT.name))
        if stored := translator_of(app):
            text = f"window.numberTranslator = {pack(stored)};\n"
            Path(app.outdir, "_static", WEIGHTS).write_text(text, encoding="utf-8")
            for source in Path(app.outdir, "_sources").rglob("*_models.ipynb"):  # once is enough
                said = re.sub(
                    r"\{'number_translator': '[\w+/=]+'\}", "{}", source.read_text("utf-8")
                )
                source.write_text(said, encoding="utf-8")


def setup(app):
    app.connect("doctree-resolved", add_views)
    app.connect("html-page-context", add_script)
    app.connect("build-finished", serve_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
