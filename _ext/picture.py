"""Draw the pictures of README and the parts: `python _ext/picture.py` writes them to _static/."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

from transformer_lib import Translator  # noqa: E402
from transformer_lib.plots import attention_heatmap, use_book_style  # noqa: E402

SOURCE = "Ein Mädchen rennt über die Straße."
STATIC = Path(__file__).resolve().parent.parent / "_static"
BOXES = {  # name: (part, x, y, width, height)
    "text": (0, 0.5, 2.0, 0.75, 0.5),
    "tokens and\nbatches": (3, 1.8, 2.0, 1.35, 0.9),
    "Transformer": (2, 3.75, 2.0, 1.9, 1.7),
    "attention": (1, 3.75, 1.85, 1.4, 0.65),
    "next-token\nprobabilities": (0, 6.1, 2.0, 1.7, 0.9),
    "choice of\na token": (4, 8.2, 2.0, 1.2, 0.9),
    "loss": (3, 6.1, 0.4, 1.0, 0.55),
    "optimizer": (3, 3.75, 0.4, 1.4, 0.55),
}


def save(figure, target: Path) -> None:
    """Write the same bytes in every run."""
    matplotlib.rcParams["svg.hashsalt"] = "attention"
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def draw_attention(target: Path) -> str:
    """Translate SOURCE, draw the decoder's attention to it, and return the translation."""
    translator = Translator.load("multi30k-de-en")
    (translation,) = translator([SOURCE])
    weights, *labels = translator.alignment(SOURCE, translation, layer=-2)
    labels = [[word.replace("</s>", "end") for word in words] for words in labels]
    figure, axes = plt.subplots(figsize=(5.2, 4.0))
    attention_heatmap(weights, *labels, digits=2, ax=axes)
    axes.set(ylabel="query: the word that is written", xlabel="key: a word of the source")
    save(figure, target)
    return translation


def draw_part(part: int, target: Path) -> None:
    """Draw the way from text to text; what belongs to the part is blue."""
    figure, axes = plt.subplots(figsize=(6.2, 2.9))
    for name, (owner, x, y, width, height) in BOXES.items():
        color = "#9CC9E8" if owner == part else "#F2F2F2"
        corner = x - width / 2, y - height / 2
        axes.add_patch(plt.Rectangle(corner, width, height, facecolor=color, edgecolor="0.3"))
        top = name == "Transformer"
        axes.text(x, y + 0.6 if top else y, name, fontsize=11, ha="center", va="center")
    arrow = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0}
    ways = (
        ((0.875, 2), (1.125, 2)), ((2.475, 2), (2.8, 2)), ((4.7, 2), (5.25, 2)),
        ((6.95, 2), (7.6, 2)), ((6.1, 1.55), (6.1, 0.675)), ((5.6, 0.4), (4.45, 0.4)),
        ((3.75, 0.675), (3.75, 1.15)), ((0.5, 3.2), (0.5, 2.25)),
    )  # fmt: skip
    for start, end in ways:
        axes.annotate("", end, start, arrowprops=arrow)
    axes.plot([8.2, 8.2, 0.5], [2.45, 3.2, 3.2], color="0.3", linestyle="-", linewidth=1)
    axes.text(4.35, 3.26, "generation: append the token, and again", fontsize=10, ha="center")
    axes.text(2.9, 0.85, "new weights", fontsize=10, ha="center")
    axes.text(7.3, 0.95, "training: the token\nthat comes next", fontsize=10, ha="center")
    axes.set(xlim=(0.1, 8.9), ylim=(0.1, 3.55))
    axes.axis("off")
    save(figure, target)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else STATIC
    use_book_style()
    for number in (1, 2, 3, 4):
        draw_part(number, folder / f"part-{number}.svg")
    print(draw_attention(folder / "attention.svg"))
