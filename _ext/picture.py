"""Draw the picture of README: `python _ext/picture.py` writes it to _static/."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

from transformer_lib import Translator  # noqa: E402
from transformer_lib.plots import attention_heatmap, use_book_style  # noqa: E402

SOURCE = "Ein Mädchen rennt über die Straße."
STATIC = Path(__file__).resolve().parent.parent / "_static"


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


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else STATIC
    use_book_style()
    print(draw_attention(folder / "attention.svg"))
