"""The map of the Transformer: one drawing, for the landing page, the parts and every chapter.

`draw` returns an inline SVG. A box belongs to the chapters that it names, by topic: it links to
the first of them that the book has, and it is lit at the top of each. The book's contents come
from _toc.yml; a chapter that no box names lights the whole model.
"""

import re
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 634
LOW = 27  # of a box: 24 pixels on a phone, which a finger can hit
QUERY, KEY, VALUE = "#0072B2", "#D55E00", "#009E73"  # as in transformer_lib.plots


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    text: str
    topics: tuple[str, ...]
    kind: str = "box"  # or "frame", which is drawn around others with its text at the top
    color: str = ""

    @property
    def middle(self):
        return self.x + self.width / 2, self.y + self.height / 2


ATTENTION = ("attention", "one_sentence", "scores", "softmax", "properties", "multihead")
EVERY = ("hub", "cost", "recipes")
STACKS = ("layers", "models", *EVERY)
ENCODER, DECODER = ("bert", "vit", "t5"), ("gpt", "t5", "generation")


def column(x, label, families, rows):
    """The boxes of one stack, each followed by its "add & norm"."""
    y, norms = 158, (*STACKS, *families)
    for name, text, topics in rows:
        yield name, Box(x, y, 146, 30, text, topics)
        yield f"{name}-norm", Box(x, y + 39, 146, LOW, "add & norm", norms)
        y += 82
    yield label, Box(x - 20, 131, 174, y - 139, f"{label} × N", STACKS, "frame")


BOXES = {
    "source": Box(14, 8, 174, 28, "source tokens", ("tokenizer", "batches", "bert", "vit", "t5")),
    "target": Box(
        210, 8, 174, 28, "target tokens so far", ("tokenizer", "batches", "generation", "gpt", "t5")
    ),
    "source-embedding": Box(14, 50, 174, 28, "embedding", ("models", *ENCODER, *EVERY)),
    "target-embedding": Box(210, 50, 174, 28, "embedding", ("models", "gpt", "t5", *EVERY)),
    "source-positions": Box(
        14, 92, 174, 28, "+ positions", ("positions", "extrapolation", "models", *ENCODER)
    ),
    "target-positions": Box(
        210, 92, 174, 28, "+ positions", ("positions", "extrapolation", "models", "gpt", "t5")
    ),
    **dict(column(34, "encoder", ENCODER, [
        ("self", "self-attention", (*ATTENTION, *ENCODER)),
        ("feed-forward", "feed-forward", ("layers", *ENCODER)),
    ])),
    **dict(column(230, "decoder", ("gpt", "t5"), [
        ("masked", "masked self-attention", (*ATTENTION, *DECODER)),
        ("cross", "cross-attention", (*ATTENTION, "translation", "t5")),
        ("target-feed-forward", "feed-forward", ("layers", "gpt", "t5")),
    ])),
    "logits": Box(230, 410, 146, 28, "linear: logits", ("models", "gpt", "bert", "t5", *EVERY)),
    "probabilities": Box(
        230, 452, 146, 28, "token probabilities", ("losses", "sampling", "speculative")
    ),
    "choice": Box(
        230, 494, 146, 28, "choose a token",
        ("generation", "sampling", "speculative", "beam_search", "translation"),
    ),
    "text": Box(230, 532, 146, LOW, "measure the text", ("bleu", "translation")),
    "head": Box(14, 349, 174, 207, "inside one attention", ("attention", "one_sentence"), "frame"),
    "query": Box(24, 376, 48, LOW, "query", ("scores", "one_sentence"), color=QUERY),
    "key": Box(77, 376, 48, LOW, "key", ("scores", "one_sentence"), color=KEY),
    "value": Box(130, 376, 48, LOW, "value", ("attention", "one_sentence"), color=VALUE),
    "scores": Box(24, 414, 101, LOW, "scores", ("scores", "positions", "extrapolation")),
    "softmax": Box(24, 450, 101, LOW, "softmax, mask", ("softmax", "properties")),
    "average": Box(24, 486, 154, LOW, "weighted average", ("attention",)),
    "join": Box(24, 522, 154, LOW, "join the heads", ("multihead",)),
    "training": Box(
        14, 565, 370, 63, "training loop", ("gpu", "trainer", "recipes"), "frame"
    ),
    "batches": Box(24, 592, 80, LOW, "batches", ("batches", "tokenizer")),
    "loss": Box(118, 592, 66, LOW, "loss", ("losses",)),
    "optimizer": Box(198, 592, 80, LOW, "optimizer", ("optimization",)),
    "devices": Box(292, 592, 82, LOW, "devices", ("devices", "distributed", "gpu")),
}  # fmt: skip
MODEL = {
    name for name, box in BOXES.items() if 50 <= box.y < 450 and name not in ("head", "softmax")
} - {"query", "key", "value", "scores"}
PARTS = {"attention": {*ATTENTION, "positions", "extrapolation"}}

DESCRIPTION = (
    "Map of the Transformer. Source tokens pass an embedding, to which positions are added, and N "
    "encoder layers: self-attention and feed-forward, each followed by a residual connection and a "
    "norm. Target tokens pass the same and N decoder layers, which also have cross-attention to "
    "the output of the encoder. Logits become token probabilities; a token is chosen and appended "
    "to the target. Inside one attention: query and key give scores, a softmax turns them into "
    "weights, and the weights average the values; the heads are joined. The training loop takes "
    "batches, computes the loss and lets the optimizer change the weights, on one device or more."
)
X = 107, 303  # the middles of the two stacks
ARROWS = [  # each a path; the last point gets the head
    *(f"M{x} {a}V{b}" for x in X for a, b in ((36, 50), (78, 92), (120, 158), (188, 197))),
    *(f"M{x} {a}V{b}" for x in X for a, b in ((224, 240), (270, 279))),
    *(f"M303 {a}V{b}" for a, b in ((306, 322), (352, 361), (388, 410), (438, 452), (480, 494))),
    *(f"M{x} {y}H{x - 85}V{y + 58}H{x - 73}" for x in X for y in (152, 234)),  # residuals
    "M303 316H218V374H230",
    "M107 306V330H199V255H230",  # the encoder's output, to cross-attention
    "M376 508H393V22H384",  # generation
    "M48 403V414", "M101 403V414", "M74 441V450", "M74 477V486", "M154 403V486", "M101 513V522",
    "M104 606H118", "M184 606H198",
]  # fmt: skip


def lit_boxes(topic):
    """The names of the boxes that belong to a chapter; the model's, where none names it."""
    named = {name for name, box in BOXES.items() if topic in box.topics}
    return named or MODEL


def head(path):
    """The arrow head at the end of a path of horizontal and vertical lines."""
    x = y = before = 0.0, 0.0
    for step, numbers in re.findall(r"([MHV])([\d. ]+)", path):
        before = x, y
        given = [float(number) for number in numbers.split()]
        x, y = given if step == "M" else (given[0], y) if step == "H" else (x, given[0])
    right, down = (x > before[0]) - (x < before[0]), (y > before[1]) - (y < before[1])
    sides = ((x - 5 * right - s * 3 * down, y - 5 * down - s * 3 * right) for s in (1, -1))
    (a, b), (c, d) = sides
    return f"M{a:g} {b:g}L{x:g} {y:g}L{c:g} {d:g}"


def draw_box(name, box, lit, small):
    """A rectangle, with its text unless the map is small."""
    x, y = box.middle
    kinds = " ".join([box.kind, *(["lit"] if name in lit else [])])
    color = f' style="--role:{box.color}"' if box.color else ""
    shape = f'<rect class="{kinds}"{color} x="{box.x:g}" y="{box.y:g}" width="{box.width:g}"'
    shape += f' height="{box.height:g}" rx="{6 if box.kind == "frame" else 4}"/>'
    if small:
        return shape
    place = f'x="{x:g}" y="{y + 4:g}"'
    if box.kind == "frame":
        place = f'class="title" x="{box.x + 8:g}" y="{box.y + 17:g}"'
    return f"{shape}<text {place}>{escape(box.text)}</text>"


def in_order():
    """Names and boxes, the frames first: they lie below what they surround."""
    return sorted(BOXES.items(), key=lambda item: item[1].kind != "frame")


def draw(lit=(), *, small=False):
    """The map as inline SVG.

    Args:
        lit: names of boxes.
        small: without words, for the top of a chapter; what it says stands beside it.
    """
    boxes = "".join(draw_box(name, box, lit, small) for name, box in in_order())
    lines = f'<path d="{"".join(ARROWS)}"/><path d="{"".join(map(head, ARROWS))}"/>'
    name = 'aria-hidden="true"' if small else f'role="img" aria-label="{escape(DESCRIPTION)}"'
    size, kind = f'viewBox="0 0 {WIDTH} {HEIGHT}"', "small" if small else "large"
    return f'<svg class="map {kind}" {size} {name}>{lines}{boxes}</svg>'


def draw_links(links):
    """Links that lie over the boxes of the large map, from {name of a box: (address, title)}."""
    for name, box in in_order():
        if name in links:
            address, title = links[name]
            place = {"left": box.x / WIDTH, "top": box.y / HEIGHT,
                     "width": box.width / WIDTH, "height": box.height / HEIGHT}  # fmt: skip
            style = ";".join(f"{side}:{100 * part:.2f}%" for side, part in place.items())
            label = escape(f"{box.text}: {title}")
            yield f'<a href="{escape(address)}" style="{style}" title="{escape(title)}" ' \
                  f'aria-label="{label}"></a>'  # fmt: skip


def draw_linked(lit, links):
    """The large map, each of its boxes a link."""
    return f'<div class="map-frame">{draw(lit)}{"".join(draw_links(links))}</div>'
