"""Draw the README's picture: `python _ext/picture.py` writes _static/attention.svg."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

from transformer_lib import Translator  # noqa: E402
from transformer_lib.plots import attention_heatmap, use_book_style  # noqa: E402

SOURCE = "Ein Mädchen rennt über die Straße."
TARGET = Path(__file__).resolve().parent.parent / "_static" / "attention.svg"


def draw(target: Path) -> str:
    """Translate SOURCE, draw the decoder's attention to it, and return the translation."""
    translator = Translator.load("multi30k-de-en")
    (translation,) = translator([SOURCE])
    weights, rows, columns = translator.alignment(SOURCE, translation, layer=-2)
    use_book_style()
    matplotlib.rcParams["svg.hashsalt"] = "attention"  # the same ids in every run
    figure, axes = plt.subplots(figsize=(4.6, 3.6))
    attention_heatmap(weights, rows, columns, ax=axes)
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return translation


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET))
