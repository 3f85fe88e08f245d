"""Words that this project once used in a sense of its own, and what to write instead.

    .venv/bin/python tests/words.py     lists each occurrence; `make lint` runs it

Chapters that tests/chapters_to_rewrite.txt names are left out.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WORDS = {  # pattern: what to write
    r"a training\b(?! (run|set|step|loop|example|sequence|corpus|state|batch|loss|command))":
        "a run",
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

PATTERNS = (
    "transformer_lib/*.py", "tests/**/*.py", "benchmarks/**/*.py", "_ext/*.py", "*.py",
    "*.md", "*.yml", "*.toml", "*.cff", "LICENSE", "Makefile", "chapters/**/*.md",
)  # fmt: skip
TO_REWRITE = set((ROOT / "tests" / "chapters_to_rewrite.txt").read_text().split())


def texts():
    """(where, text) of the code, the pages, the settings and the cells of the chapters."""
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            if path != Path(__file__).resolve():
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("chapters/*/*.ipynb")):
        if path.relative_to(ROOT / "chapters").with_suffix("").as_posix() not in TO_REWRITE:
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                yield f"{path.relative_to(ROOT).as_posix()}:{cell['id']}", "".join(cell["source"])


def find(text):
    """(line number, the words found, what to write) of each place."""
    for n, line in enumerate(text.splitlines(), 1):
        for match in PATTERN.finditer(line):
            yield n, match[0], list(WORDS.values())[int(match.lastgroup[1:])]


def complaints():
    for where, text in texts():
        for n, word, instead in find(text):
            yield f"{where}:{n}: {word!r}: write {instead}"


if __name__ == "__main__":
    sys.exit("\n".join(complaints()) or 0)
