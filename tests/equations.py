r"""Estimate the width of a display equation in em; MathJax needs about a tenth more or less.

Each construct becomes a box `<width>`, the innermost first: `\frac{a}{b + c}` is as wide as the
wider of its two rows.
"""

import re

NARROW, RELATION, OPERATOR = "fijlt|!.:;'()[]I/", 1.33, 1.2
WIDTHS = dict.fromkeys(NARROW, 0.39) | dict.fromkeys("mwMW", 0.88) | {",": 0.44, "&": 0.0}
WIDTHS |= dict.fromkeys(("+", "-", r"\cdot", r"\odot", r"\times"), OPERATOR)
WIDTHS |= dict.fromkeys(("=", *(rf"\{r}" for r in "lt gt le ge neq approx in".split())), RELATION)
WIDTHS |= dict.fromkeys((r"\iff", r"\implies", r"\Longrightarrow"), 2.6)
WIDTHS |= {r"\,": 0.17, r"\;": 0.28, r"\ ": 0.25, r"\!": -0.17, r"\quad": 1.0, r"\qquad": 2.0}
WIDTHS |= {r"\sum": 1.6, r"\prod": 1.45, r"\dots": 1.3, r"\Bigl": 0.2, r"\Bigr": 0.2, r"\Big": 0.2}
WIDTHS |= {r"\negative": 0.78}
WIDTHS |= dict.fromkeys((r"\left", r"\right", r"\bigl", r"\bigr", r"\big"), 0.07)
WIDTHS |= {rf"\{f}": 0.45 * len(f) + 0.17 for f in "cos exp lim ln log max min sin tanh".split()}
SMALL = 0.71  # the size of a superscript
BOX = r"<(-?[\d.]+)>"


def box(width):
    return f"<{width:.3f}>"


def row(tex):
    """The width of a row of glyphs and boxes."""
    tokens = re.finditer(BOX + r"|\\[A-Za-z]+|\\.|\S", tex)
    return sum(
        float(m[1]) if m[1] else WIDTHS.get(m[0], 0.74 if m[0].isupper() else 0.53) for m in tokens
    )


def table(match):
    """The columns of an environment, with gaps if it is a matrix or a case distinction."""
    lines = [[row(cell) for cell in line.split("&")] for line in match[2].split(r"\\")]
    columns = [max(column) for column in zip(*pad(lines), strict=True)]
    return box(sum(columns) + (0.0 if match[1] == "aligned" else len(columns)))


def pad(lines):
    longest = max(map(len, lines))
    return [line + [0.0] * (longest - len(line)) for line in lines]


def fraction(match):
    size = SMALL if match[1] == "t" else 1.0
    return box(size * max(float(match[2]), float(match[3])) + 0.24)


def limits(match):
    """A sum with its limits above and below."""
    return box(max(WIDTHS[match[1]], *(SMALL * float(x or 0) + 0.17 for x in match.groups()[1:])))


def script(match):
    """A subscript, a superscript, or one above the other."""
    return box(SMALL * max(float(x) for x in match.groups() if x) + 0.05)


RULES = [(re.compile(pattern), new) for pattern, new in (
    (r"⟨(\w+)⟩([^{}⟨⟩]*)⟨/⟩", table),
    (r"\\(?:text|operatorname\*?|mathrm)\{([^{}]*)\}", lambda m: box(0.46 * len(m[1]) + 0.1)),
    (rf"\\([td]?)frac{BOX}{BOX}", fraction),
    (rf"\\sqrt{BOX}", lambda m: box(float(m[1]) + 0.85)),
    (rf"\\underbrace{BOX}_{BOX}", lambda m: box(max(float(m[1]), SMALL * float(m[2])))),
    (rf"(\\(?:sum|prod|max|min))(?:_{BOX})?(?:\^{BOX})?(?![a-z_^])", limits),
    (rf"(?<!\}})(?:_{BOX}\^{BOX}|\^{BOX}_{BOX}|[_^]{BOX})(?![_^])", script),
    (r"\{([^{}]*)\}", lambda m: box(row(m[1]))),
)]  # fmt: skip


def width(tex):
    """The width in em: of the widest line, if there are several."""
    for pattern, new in (
        ("<", r"\\lt "), (">", r"\\gt "),
        (r"\\begin\{(\w+)\}", r"⟨\1⟩"), (r"\\end\{\w+\}", "⟨/⟩"),
        (r"\\(mathcal|mathbb|mathbf|limits|bar)\b ?", ""),
        (r"([&=({⟩])(\s*)-", r"\1\2\\negative "),
        (r"([_^])(\\[A-Za-z]+|[^\s{\\])", r"\1{\2}"), (r"(frac)(\w)(\w)", r"\1{\2}{\3}"),
    ):  # fmt: skip
        tex = re.sub(pattern, new, tex)
    while True:
        for pattern, new in RULES:
            changed = pattern.sub(new, tex, count=1)
            if changed != tex:
                tex = changed
                break
        else:
            return row(tex)


COLUMN, NUMBER = 33.0, 3.0  # in em: at 1280 pixels 676 pixels, a number with its space 78


def too_wide(text):
    """The display equations of a text that need more than their column, with their widths."""
    for match in re.finditer(r"^\$\$\n(.*?)\$\$[ ]*(\([\w-]+\))?", text, re.M | re.S):
        room = COLUMN - (NUMBER if match[2] else 0.0)
        if (found := width(match[1])) > room:
            yield match[2] or match[1].split("\n")[0], found, room
