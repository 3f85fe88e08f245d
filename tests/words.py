"""Words that this project once used in a sense of its own, and what to write instead.

    .venv/bin/python tests/words.py     lists each occurrence; `make lint` runs it

A file in TO_CLEAN may still contain some. A file that contains none must leave the list.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WORDS = {  # pattern: what to write
    r"a training\b(?! (run|set|step|loop|example|corpus|state|batch|loss|command))": "a run",
    r"trainings": "training runs",
    r"an attention\b(?! (function|layer|module|weight|head|mask|pattern|block|score|kernel|map))":
        "an attention function",
    r"attentions": "attention functions, layers",
    r"at birth|newborn": "at initialization, untrained",
    r"by heart": "overfit, memorize",
    r"whoever": "you, the caller",
    r"guessers?": "draft model",
    r"dearest": "most expensive",
    r"(polite|politely) (kill|killed)": "SIGTERM",
    r"doors?": "entry point, public function",
    r"examiners?": "test, check",
    r"graphics cards?": "GPU",
    r"who multiplies": "CPU inference",
    r"begin(s)? anew": "restart",
    r"rumou?rs?": "an unverified claim",
    r"(util|minim|normal|initial|optim|organ|real|recogn)is(e|ed|es|ing|ation|er)": "-ize",
    r"(colour|behaviour|neighbour|licence|favour)\w*": "American spelling",
    r"not as it was saved|broken off": "corrupted, truncated",
    r"for ever": "indefinitely",
}  # fmt: skip
PATTERN = re.compile("|".join(rf"(?P<w{i}>\b(?:{p})\b)" for i, p in enumerate(WORDS)), re.I)

FOUND = (  # texts of which each contains one, and texts that contain none, for the test
    "stop a training", "two trainings", "An attention that", "a newborn model", "learned by heart",
    "Whoever calls", "a colour", "normalised", "by a guesser",
)  # fmt: skip
PASSED = ("a training run", "an attention layer", "indoors", "a normalized color")

TO_CLEAN = set((ROOT / "tests" / "words_to_clean.txt").read_text().split())


def files():
    """The library, the tests and the pages in Markdown, without this file."""
    for pattern in ("transformer_lib/*.py", "tests/**/*.py", "*.md", "chapters/**/*.md"):
        yield from (p for p in sorted(ROOT.glob(pattern)) if p != Path(__file__).resolve())


def find(text):
    """(line number, the words found, what to write) of each place."""
    for n, line in enumerate(text.splitlines(), 1):
        for match in PATTERN.finditer(line):
            yield n, match[0], list(WORDS.values())[int(match.lastgroup[1:])]


def complaints():
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        found = list(find(path.read_text(encoding="utf-8")))
        if name in TO_CLEAN and not found:
            yield f"{name} is clean: remove it from tests/words_to_clean.txt"
        elif name not in TO_CLEAN:
            yield from (f"{name}:{n}: {word!r}: write {instead}" for n, word, instead in found)
    for name in sorted(TO_CLEAN):
        if not (ROOT / name).exists():
            yield f"{name} does not exist: remove it from tests/words_to_clean.txt"


if __name__ == "__main__":
    sys.exit("\n".join(complaints()) or 0)
