"""The chapters as data: every rule of CONTRIBUTING.md that can be seen without running a cell.

A rule takes a notebook and yields complaints. Each rule is run on every chapter, and on a notebook
that breaks it.
"""

import ast
import copy
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
INSTALL = f"""\
# Google Colab: install the book's library (does nothing elsewhere)
import importlib.util

if importlib.util.find_spec("transformer_lib") is None:
    %pip install -q "executable-transformer[chapters] @ git+{REPOSITORY}@main\""""
DIRECTIVE = re.compile(r"^#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$", re.M)
PLOTTERS = {"attention_heatmap", "head_grid", "position_plot", "training_curves"}
DRAWS = re.compile(r"(plt|sns)\.(?!close$|get_cmap$|cycler$|Normalize$|color_palette$)\w+$")
RANDOM = {
    "torch": re.compile(
        r"torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial|rand_like|randn_like)$"
    ),
    "numpy": re.compile(r"(np|numpy)\.random\.(?!seed$|default_rng$|Generator$|RandomState$)\w+$"),
    "random": re.compile(r"random\.(?!seed$|Random$)\w+$"),
}
SEEDS = {
    "torch": r"(torch\.)?manual_seed$",
    "numpy": r"(np|numpy)\.random\.seed$",
    "random": r"random\.seed$",
}


# Reading


@dataclass
class Cell:
    kind: str
    source: str
    metadata: dict
    raw: dict

    @property
    def tags(self):
        return set(self.metadata.get("tags", []))

    @property
    def directives(self):
        return dict(DIRECTIVE.findall(self.source)) if self.kind == "code" else {}

    @property
    def exported(self):
        return bool({"export", "exports", "exporti"} & self.directives.keys())

    @property
    def tree(self):
        """The cell's syntax tree; lines that only IPython understands become `pass`."""
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", self.source, flags=re.M))


class Notebook:
    def __init__(self, stem, data):
        self.stem, self.data = stem, data
        self.cells = [
            Cell(c["cell_type"], "".join(c["source"]), c["metadata"], c) for c in data["cells"]
        ]

    @classmethod
    def load(cls, path):
        return cls(path.stem, json.loads(path.read_text(encoding="utf-8")))

    @property
    def topic(self):
        """The stem without its number: the module's name, and the beginning of every label."""
        return re.sub(r"^\d+_", "", self.stem)

    @property
    def code(self):
        return [c for c in self.cells if c.kind == "code"]

    @property
    def text(self):
        return [c for c in self.cells if c.kind == "markdown"]


NOTEBOOKS = [Notebook.load(p) for p in sorted((ROOT / "chapters").glob("*.ipynb"))]


def tracked():
    """The text files of the checkout: what git has, or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in sorted({n for n in names if n and (ROOT / n).is_file()}):
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def contents():
    """The pages in the order of _toc.yml, without their folder."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]


def dotted(node):
    """`a.b.c` of a name or attribute, and an empty text for anything else."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def running(tree):
    """The nodes that run when the cell does: a function's body runs later, or never."""
    later = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    stack = list(ast.iter_child_nodes(tree))
    while stack:
        node = stack.pop(0)
        yield node
        if not isinstance(node, later):
            stack = [*ast.iter_child_nodes(node), *stack]


def prose(text):
    """Markdown without code, directives, mathematics, roles and links."""
    text = (
        re.sub(r"^(`{3,}|:{3,}).*?$.*?^\1", " ", text, flags=re.M | re.S)
        if text.startswith("```")
        else text
    )
    for pattern in (
        r"```.*?```",
        r"\$\$.*?\$\$",
        r"\$[^$]*\$",
        r"\{\w+\}`[^`]*`",
        r"`[^`]*`",
        r"\]\([^)]*\)",
        r"!\[",
    ):
        text = re.sub(pattern, " ", text, flags=re.S)
    return text


# Rules


RULES = {}


def rule(function):
    RULES[function.__name__] = function
    return function


@rule
def the_file_is_clean(nb):
    if (nb.data["nbformat"], nb.data["nbformat_minor"]) != (4, 5):
        yield "nbformat must be 4.5"
    ids = [c.raw.get("id") for c in nb.cells]
    if None in ids or len(set(ids)) != len(ids):
        yield "every cell needs an id of its own"
    kernel = nb.data["metadata"].get("kernelspec", {})
    if (kernel.get("name"), kernel.get("language")) != ("python3", "python"):
        yield "the kernelspec must be python3, with language python"
    for c in nb.code:
        if c.raw.get("outputs") or c.raw.get("execution_count") is not None:
            yield f"outputs are not kept: {c.source[:40]!r}"
    if any(c.kind == "raw" for c in nb.cells):
        yield "no raw cells: the book drops them"


@rule
def it_opens_with_label_title_and_thesis(nb):
    if not nb.cells or nb.cells[0].source.strip() != f"(ch-{nb.topic})=":
        yield f"the first cell must hold the label (ch-{nb.topic})= alone"
    if len(nb.cells) < 2 or not re.fullmatch(r"# \S.*\n\n?(> .*\n?){1,3}", nb.cells[1].source):
        yield "the second cell must be '# Title', then a thesis of one to three '> ' lines"
    titles = [
        line
        for c in nb.text
        for line in re.sub(r"```.*?```", "", c.source, flags=re.S).splitlines()
        if line.startswith("# ")
    ]
    if len(titles) != 1:
        yield f"one title per page, got {titles}"


@rule
def it_has_the_parts_of_a_chapter(nb):
    if not nb.stem[:1].isdigit():
        return
    headings = [m[1] for c in nb.text for m in re.finditer(r"^#{2,3} (.*)$", c.source, re.M)]
    for part in ("Where it breaks", "Exercises", "Summary", "Sources"):
        if not any(h.startswith(part) for h in headings):
            yield f"no section '{part}'"


@rule
def directives_and_tags_agree(nb):
    known = {"default_exp", "export", "exports", "exporti", "hide", "eval"}
    for c in nb.code:
        d = c.directives
        if unknown := d.keys() - known:
            yield f"directives that mean nothing here: {sorted(unknown)}"
        lines = c.source.splitlines()
        if any(not DIRECTIVE.match(line) for line in lines[: len(d)]):
            yield f"directives stand on the first lines of a cell: {c.source[:40]!r}"
        if {"hide", "default_exp"} & d.keys() and "remove-cell" not in c.tags:
            yield f"a hidden cell needs the tag remove-cell: {c.source[:40]!r}"
        if (
            "remove-cell" in c.tags
            and not {"hide", "default_exp"} & d.keys()
            and c.source.strip() != INSTALL
        ):
            yield f"only `#| hide` may remove a cell from its page: {c.source[:40]!r}"
        if "default_exp" in d and len(lines) > 1:
            yield "default_exp has a cell of its own"
        if (d.get("eval", "").lower() == "false") != ("skip-execution" in c.tags):
            yield f"`eval: false` and the tag skip-execution go together: {c.source[:40]!r}"


@rule
def nothing_that_breaks_the_book_or_colab(nb):
    for c in nb.cells:
        if c.kind == "markdown" and re.match(r"\s*---\s*\n", c.source + "\n"):
            yield "no front matter"
        if "nbmake" in c.metadata or "nbmake" in nb.data["metadata"]:
            yield "nbmake's mocks would publish what was not computed"
        if "raises-exception" in c.tags:
            yield "catch the error and show its message: a traceback is no page"
        if c.kind != "code":
            continue
        if c.source.strip() != INSTALL and re.search(r"^\s*[!%]", c.source, re.M):
            yield f"no shell commands or magics: {c.source[:60]!r}"
        for pattern, why in {
            r"\bshow_doc\b": "show_doc crashes the build",
            r"\binput\(": "nobody is there to answer",
            r"^\s*(from|import) (nbdev|myst_nb|google)\b": "not there for every reader",
            r"[\"']\.\.?/": "a relative path does not exist in Colab, where only the notebook is",
            r"[\"']/(tmp|home|root|work)/": "a path of one machine",
            r"\b(urlopen|urlretrieve|requests\.get)\b": "the build has no network",
        }.items():
            if re.search(pattern, c.source, re.M):
                yield f"{why}: {c.source[:60]!r}"


@rule
def the_install_cell_is_there_iff_needed(nb):
    places = [i for i, c in enumerate(nb.cells) if "%pip" in c.source and c.kind == "code"]
    if any(nb.cells[i].source.strip() != INSTALL for i in places):
        yield "the install cell differs from the one of all chapters"
    if any("remove-cell" not in nb.cells[i].tags for i in places):
        yield "the install cell is not for the page: tag remove-cell"
    # What a chapter may import and Colab does not have.
    imports = re.compile(r"^\s*(from|import) (transformer_lib|jaxtyping|num2words)\b", re.M)
    needs = [i for i, c in enumerate(nb.cells) if c.kind == "code" and imports.search(c.source)]
    if bool(needs) != (len(places) == 1):
        yield f"one install cell iff Colab lacks an import: {len(places)}, {len(needs)}"
    first = next(
        (
            i
            for i, c in enumerate(nb.cells)
            if c.kind == "code" and "default_exp" not in c.directives
        ),
        None,
    )
    if places and places[0] != first:
        yield "the install cell comes before all other code"


@rule
def every_plot_is_a_figure(nb):
    for c in nb.code:
        figure = c.metadata.get("mystnb", {}).get("figure")
        alt = c.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if figure is not None or alt:
            name, caption = (figure or {}).get("name", ""), (figure or {}).get("caption", "")
            if not name.startswith(f"fig-{nb.topic}"):
                yield f"a figure of this chapter is named fig-{nb.topic}-..., got {name!r}"
            if len(caption.split()) < 3 or len(alt.split()) < 5:
                yield f"{name}: a caption says what to see, an alt text what is drawn"
            if caption.strip() == alt.strip():
                yield f"{name}: caption and alt text say different things"
            if "hide-input" not in c.tags:
                yield f"{name}: figure code is folded, tag hide-input"
            continue
        calls = [dotted(n.func) for n in running(c.tree) if isinstance(n, ast.Call)]
        draws = [f for f in calls if DRAWS.match(f) or f in PLOTTERS]
        if draws and "plt.close" not in calls and not c.exported and "hide" not in c.directives:
            yield f"{draws[0]} needs a figure's name, caption and alt text: {c.source[:40]!r}"


@rule
def every_number_drawn_is_seeded(nb):
    seeded = set()
    for c in nb.code:
        for node in ast.walk(c.tree):
            if not isinstance(node, ast.Call):
                continue
            name = dotted(node.func)
            seeded |= {
                library
                for library, pattern in SEEDS.items()
                if re.match(pattern, name) and node.args
            }
            if re.search(r"\.(default_rng|RandomState|Random)$", name) and not (
                node.args or node.keywords
            ):
                yield f"{name}() without a seed"
            for library, pattern in RANDOM.items():
                private = any(k.arg == "generator" for k in node.keywords)
                if pattern.match(name) and not c.exported and library not in seeded and not private:
                    yield f"{name} before any seed of {library}"


@rule
def no_stub_is_called(nb):
    stubs = set()
    for c in nb.code:
        for statement in c.tree.body:
            if isinstance(statement, ast.FunctionDef):
                raises = isinstance(
                    statement.body[-1], ast.Raise
                ) and "NotImplementedError" in ast.unparse(statement.body[-1])
                (stubs.add if raises else stubs.discard)(statement.name)
                continue
            for node in (statement, *running(statement)):
                if (
                    isinstance(node, ast.Name)
                    and isinstance(node.ctx, ast.Load)
                    and node.id in stubs
                ):
                    yield f"{node.id} is a stub for the reader; nothing may use it"
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    stubs.discard(node.id)


GATE = re.compile(
    r"^(`{3,})\{(exercise|solution)-(start|end)\}[ ]?(.*)\n((?::.*\n)*)\1[ ]*$"
    r"|\{(?:exercise|solution)(?:-start|-end)?\}",
    re.M,
)


def gates(nb):
    """Each gate of an exercise or solution, with the text and the number of code cells after it."""
    parts = [[None, "", 0]]
    for c in nb.cells:
        rest = 0
        for match in GATE.finditer(c.source) if c.kind == "markdown" else ():
            parts[-1][1] += c.source[rest : match.start()]
            parts.append([match, "", 0])
            rest = match.end()
        parts[-1][1] += c.source[rest:] + "\n" if c.kind == "markdown" else ""
        parts[-1][2] += c.kind == "code"
    return parts[1:]


@rule
def exercises_have_folded_solutions_that_run(nb):
    exercises, solutions, inside = set(), set(), None
    for gate, text, n_code in gates(nb):
        if not gate[1]:
            yield f"write exercises and solutions with -start and -end gates: {gate[0]!r}"
            continue
        kind, end, title, options = gate[2], gate[3], gate[4].strip(), gate[5]
        if end == "end":
            if inside != kind:
                yield f"{kind} ends, but {inside} was open"
            inside = None
            continue
        if inside:
            yield f"{kind} begins inside {inside}"
        inside = kind
        if kind == "exercise":
            name = (re.search(r"^:label: (\S+)$", options, re.M) or ["", ""])[1]
            if not re.fullmatch(rf"ex-{nb.topic}-[\w-]+", name) or name in exercises:
                yield f"an exercise is labelled ex-{nb.topic}-..., once, got {name!r}"
            exercises.add(name)
            if not re.search(r"\b(predict|build|break)\b", title + " " + text, re.I):
                yield f"{name}: say predict, build or break"
        else:
            if ":class: dropdown" not in options:
                yield f"the solution of {title} is not folded: `:class: dropdown`"
            if title not in exercises - solutions:
                yield f"{title!r} is no exercise before its solution, or has one"
            if not n_code:
                yield f"the solution of {title} does not run: it has no code"
            solutions.add(title)
    if inside:
        yield f"{inside} does not end"
    if exercises - solutions:
        yield f"no solution for {sorted(exercises - solutions)}"


@rule
def a_cell_ends_by_displaying_not_printing(nb):
    for c in nb.code:
        body = c.tree.body
        if body and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, ast.Call):
            if dotted(body[-1].value.func) == "print" and not c.exported:
                yield f"display the value, do not print it: {c.source.splitlines()[-1]!r}"


@rule
def the_voice_is_the_books(nb):
    for c in nb.text:
        text = prose(c.source)
        for word in re.findall(r"\b(simply|just|obviously|trivially|of course)\b", text, re.I):
            yield f"{word!r} in {text.strip()[:60]!r}"
        if re.search(r"\w!(?!\w)", text):
            yield f"an exclamation mark in {text.strip()[:60]!r}"


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda nb: nb.stem)
@pytest.mark.parametrize("name", RULES)
def test_every_chapter_keeps(name, nb):
    complaints = list(RULES[name](nb))
    assert not complaints, "\n".join(complaints)


# Each rule must be able to fail: a notebook that keeps them all, and what breaks each


def markdown(source):
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def code(source, *tags, **metadata):
    metadata = {**({"tags": list(tags)} if tags else {}), **metadata}
    return {
        "cell_type": "code",
        "source": source,
        "metadata": metadata,
        "outputs": [],
        "execution_count": None,
    }


FIGURE = {
    "figure": {"name": "fig-toy-line", "caption": "The line goes up."},
    "image": {"alt": "A line from one to two."},
}
GOOD = [
    markdown("(ch-toy)="),
    markdown("# Toy\n> A thesis about toys."),
    code("#| default_exp toy", "remove-cell"),
    code(INSTALL, "remove-cell"),
    code("#| export\nimport torch"),
    code(
        "import matplotlib.pyplot as plt\n\n"
        "from transformer_lib.toy import f\n\ntorch.manual_seed(0);"
    ),
    code("#| export\ndef f(x: int) -> int:\n    return x"),
    code("torch.randn(2).shape"),
    code("_, ax = plt.subplots()\nax.plot([1, 2]);", "hide-input", mystnb=FIGURE),
    markdown("## Where it breaks\nHere.\n\n## Exercises"),
    markdown("```{exercise-start} A toy\n:label: ex-toy-1\n```"),
    markdown("*build* Write it."),
    code("def mine(x):\n    raise NotImplementedError"),
    markdown("```{exercise-end}\n```"),
    markdown("```{solution-start} ex-toy-1\n:class: dropdown\n```"),
    code("def mine(x):\n    return x\n\n\nmine(1)"),
    markdown("```{solution-end}\n```"),
    markdown("## Summary\nShort.\n\n## Sources\nNone."),
]


def toy(change=lambda cells: None, **top):
    cells = copy.deepcopy(GOOD)
    change(cells)
    for i, c in enumerate(cells):
        c.setdefault("id", f"cell-{i}")
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return Notebook(
        "00_toy",
        {
            "cells": cells,
            "metadata": {"kernelspec": kernel},
            "nbformat": 4,
            "nbformat_minor": 5,
            **top,
        },
    )


def put(i, cell):
    return lambda cells: cells.insert(i, cell)


def edit(i, **fields):
    return lambda cells: cells[i].update(fields)


BROKEN = [
    (
        "the_file_is_clean",
        lambda: toy(edit(7, outputs=[{"output_type": "stream", "name": "stdout", "text": "x"}])),
    ),
    ("the_file_is_clean", lambda: toy(edit(7, execution_count=3))),
    ("the_file_is_clean", lambda: toy(edit(7, id="cell-0"))),
    ("the_file_is_clean", lambda: toy(nbformat_minor=4)),
    ("the_file_is_clean", lambda: toy(metadata={"kernelspec": {"name": "python3"}})),
    ("it_opens_with_label_title_and_thesis", lambda: toy(edit(0, source="(ch-toy)=\n# Toy"))),
    ("it_opens_with_label_title_and_thesis", lambda: toy(edit(0, source="(ch-other)="))),
    ("it_opens_with_label_title_and_thesis", lambda: toy(edit(1, source="# Toy"))),
    ("it_opens_with_label_title_and_thesis", lambda: toy(edit(9, source="# Another title"))),
    ("it_has_the_parts_of_a_chapter", lambda: toy(edit(17, source="## Sources\nNone."))),
    ("directives_and_tags_agree", lambda: toy(put(5, code("#| hide\n1")))),
    ("directives_and_tags_agree", lambda: toy(put(5, code("2 + 2", "remove-cell")))),
    ("directives_and_tags_agree", lambda: toy(put(5, code("#| eval: false\n1")))),
    ("directives_and_tags_agree", lambda: toy(put(5, code("1", "skip-execution")))),
    ("directives_and_tags_agree", lambda: toy(put(5, code("x = 1\n#| export")))),
    ("directives_and_tags_agree", lambda: toy(put(5, code("#| label: x\n1")))),
    ("nothing_that_breaks_the_book_or_colab", lambda: toy(put(6, code("show_doc(f)")))),
    ("nothing_that_breaks_the_book_or_colab", lambda: toy(put(6, code("!ls")))),
    ("nothing_that_breaks_the_book_or_colab", lambda: toy(put(6, code("%time f(1)")))),
    ("nothing_that_breaks_the_book_or_colab", lambda: toy(put(6, code("open('../data.txt')")))),
    ("nothing_that_breaks_the_book_or_colab", lambda: toy(put(6, markdown("---\ntitle: x\n---")))),
    (
        "nothing_that_breaks_the_book_or_colab",
        lambda: toy(put(6, code("EPOCHS = 10", nbmake={"mock": {"EPOCHS": 1}}))),
    ),
    ("the_install_cell_is_there_iff_needed", lambda: toy(lambda cells: cells.pop(3))),
    (
        "the_install_cell_is_there_iff_needed",
        lambda: toy(edit(3, source=INSTALL.replace("@main", "@dev"))),
    ),
    (
        "the_install_cell_is_there_iff_needed",
        lambda: toy(edit(5, source="import matplotlib.pyplot as plt")),
    ),
    (
        "the_install_cell_is_there_iff_needed",
        lambda: toy(lambda cells: cells.insert(6, cells.pop(3))),
    ),
    ("every_plot_is_a_figure", lambda: toy(put(8, code("plt.plot([1, 2]);")))),
    ("every_plot_is_a_figure", lambda: toy(put(8, code("attention_heatmap(weights);")))),
    (
        "every_plot_is_a_figure",
        lambda: toy(put(8, code("ax;", "hide-input", mystnb={"figure": FIGURE["figure"]}))),
    ),
    ("every_plot_is_a_figure", lambda: toy(edit(8, metadata={"mystnb": FIGURE}))),
    (
        "every_number_drawn_is_seeded",
        lambda: toy(
            edit(5, source="import matplotlib.pyplot as plt\nfrom transformer_lib.toy import f")
        ),
    ),
    ("every_number_drawn_is_seeded", lambda: toy(put(8, code("np.random.randn(2)")))),
    ("every_number_drawn_is_seeded", lambda: toy(put(8, code("np.random.default_rng()")))),
    ("every_number_drawn_is_seeded", lambda: toy(put(8, code("random.random()")))),
    ("no_stub_is_called", lambda: toy(put(13, code("mine(1)")))),
    ("no_stub_is_called", lambda: toy(put(13, code("check(mine)")))),
    (
        "exercises_have_folded_solutions_that_run",
        lambda: toy(lambda cells: cells.__delitem__(slice(14, 17))),
    ),
    (
        "exercises_have_folded_solutions_that_run",
        lambda: toy(edit(14, source="```{solution-start} ex-toy-1\n```")),
    ),
    ("exercises_have_folded_solutions_that_run", lambda: toy(edit(15, **markdown("It is `x`.")))),
    ("exercises_have_folded_solutions_that_run", lambda: toy(edit(11, source="Write it."))),
    ("exercises_have_folded_solutions_that_run", lambda: toy(edit(13, source="End."))),
    (
        "exercises_have_folded_solutions_that_run",
        lambda: toy(put(9, markdown("```{exercise}\nX\n```"))),
    ),
    (
        "exercises_have_folded_solutions_that_run",
        lambda: toy(edit(10, source="```{exercise-start}\n:label: ex-1\n```")),
    ),
    ("a_cell_ends_by_displaying_not_printing", lambda: toy(put(8, code("x = 1\nprint(x)")))),
    ("the_voice_is_the_books", lambda: toy(put(8, markdown("We simply add.")))),
    ("the_voice_is_the_books", lambda: toy(put(8, markdown("It works!")))),
]


@pytest.mark.parametrize("name", RULES)
def test_a_good_notebook_passes(name):
    assert list(RULES[name](toy())) == []


@pytest.mark.parametrize(
    "name, broken", BROKEN, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BROKEN)]
)
def test_a_bad_notebook_is_caught(name, broken):
    assert list(RULES[name](broken()))


def test_every_rule_is_shown_to_catch_something():
    assert {name for name, _ in BROKEN} == set(RULES)


# The book as a whole


def labels(stem, text):
    """The targets that a page defines in its markdown."""
    yield from re.findall(r"^\(([\w-]+)\)=\s*$", text, re.M)
    yield from re.findall(r"^:(?:label|name): (\S+)\s*$", text, re.M)
    yield from re.findall(r"\$\$\s*\(([\w-]+)\)", text)


def all_labels():
    for nb in NOTEBOOKS:
        for c in nb.cells:
            yield from (
                (nb.stem, x) for x in (labels(nb.stem, c.source) if c.kind == "markdown" else ())
            )
            if name := c.metadata.get("mystnb", {}).get("figure", {}).get("name"):
                yield nb.stem, name
    for page in [*(ROOT / "chapters").glob("*.md"), ROOT / "index.md"]:
        yield from ((page.stem, x) for x in labels(page.stem, page.read_text()))


def test_labels_are_found_where_they_are_written():
    text = "(ch-x)=\n\n$$ a $$ (eq-x-1)\n\n```{exercise-start}\n:label: ex-x-1\n```"
    assert sorted(labels("x", text)) == ["ch-x", "eq-x-1", "ex-x-1"]


def test_no_progress_bar_asks_for_widgets():
    # tqdm.auto warns on every page of a reader who has no ipywidgets.
    files = [*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("transformer_lib/*.py")]
    assert not [f.name for f in files if re.search(r"tqdm\.(auto|notebook)", f.read_text("utf-8"))]


def test_labels_are_unique_in_the_book():
    seen = {}
    for page, label in all_labels():
        seen.setdefault(label, []).append(page)
    assert {label: pages for label, pages in seen.items() if len(pages) > 1} == {}


def test_equations_carry_the_name_of_their_chapter():
    wrong = [
        (nb.stem, x)
        for nb in NOTEBOOKS
        for c in nb.text
        for x in re.findall(r"\$\$\s*\(([\w-]+)\)", c.source)
        if not x.startswith(f"eq-{nb.topic}")
    ]
    assert wrong == []


def test_every_citation_is_in_the_bibliography():
    keys = re.findall(
        r"^@\w+\{\s*([^,\s]+)\s*,", (ROOT / "chapters" / "references.bib").read_text(), re.M
    )
    assert len(set(keys)) == len(keys) > 0
    texts = {nb.stem: "\n".join(c.source for c in nb.text) for nb in NOTEBOOKS}
    texts |= {p.stem: p.read_text() for p in (ROOT / "chapters").glob("*.md")}
    cited = {
        (page, key.strip())
        for page, text in texts.items()
        for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        for key in group.split(",")
    }
    assert cited, "nothing is cited: is the pattern right?"
    assert {(page, key) for page, key in cited if key not in keys} == set()


def test_the_contents_list_every_page_once():
    listed = contents()
    pages = {
        f"chapters/{p.stem}" for p in (ROOT / "chapters").iterdir() if p.suffix in {".ipynb", ".md"}
    }
    assert len(set(listed)) == len(listed)
    assert set(listed) == pages


def modules():
    return {p.stem for p in (ROOT / "transformer_lib").glob("*.py") if not p.stem.startswith("_")}


def exports():
    """{module: [notebooks that export it]}"""
    found = {}
    for nb in NOTEBOOKS:
        for c in nb.code:
            if "default_exp" in c.directives:
                found.setdefault(c.directives["default_exp"], []).append(nb.stem)
    return found


def test_each_module_comes_from_one_chapter_of_its_name():
    assert set(exports()) == modules()
    for module, chapters in exports().items():
        assert len(chapters) == 1 and re.sub(r"^\d+_", "", chapters[0]) == module


def siblings(source):
    """The modules of transformer_lib that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
        elif (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "transformer_lib"
        ):
            yield from (
                [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]
            )
        elif isinstance(node, ast.Import):
            yield from (
                a.name.split(".")[1] for a in node.names if a.name.startswith("transformer_lib.")
            )


def import_order_complaints(order, sources):
    for module, source in sources.items():
        for other in sorted(set(siblings(source))):
            if module == "plots":
                yield f"plots imports {other}, and should import no sibling"
            elif (
                other == "plots" or other not in order or order.index(other) >= order.index(module)
            ):
                yield f"{module} imports {other}, which no earlier chapter exports"


def test_a_module_imports_only_modules_of_earlier_chapters():
    order = [re.sub(r"^chapters/(\d+_)?", "", page) for page in contents()]
    sources = {m: (ROOT / "transformer_lib" / f"{m}.py").read_text() for m in modules()}
    assert list(import_order_complaints(order, sources)) == []


def test_an_import_against_the_order_is_caught():
    order = ["scores", "softmax", "plots"]
    assert list(import_order_complaints(order, {"scores": "from .softmax import softmax"}))
    assert list(
        import_order_complaints(order, {"softmax": "from transformer_lib.plots import head_grid"})
    )
    assert list(import_order_complaints(order, {"plots": "from .scores import dot_score"}))
    assert not list(import_order_complaints(order, {"softmax": "from .scores import dot_score"}))


# The rest of the checkout


def test_the_conda_environment_holds_python_pip_and_us():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, ours = environment["dependencies"]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"
    assert list(ours) == ["pip"] and len(ours["pip"]) == 1
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", ours["pip"][0])[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert {"chapters", "book"} <= set(extras)


def colab():
    lines = (ROOT / "tests" / "colab-2026.08.txt").read_text().splitlines()
    pairs = [re.split(r"==| ", line) for line in lines if line and not line.startswith("#")]
    return {name: None if version == "absent" else version for name, version in pairs}


def colab_complaints(requirements, shipped):
    for text in requirements:
        requirement = Requirement(text)
        if requirement.name not in shipped:
            yield f"{requirement.name} is not in the list of what Colab ships"
        elif shipped[requirement.name] and not requirement.specifier.contains(
            shipped[requirement.name]
        ):
            yield f"{text} would replace Colab's {shipped[requirement.name]}"
        if any(s.operator not in {">="} for s in requirement.specifier):
            yield f"{text}: lower bounds only"


def test_colab_keeps_its_own_packages():
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["chapters"]]
    assert list(colab_complaints(requirements, colab())) == []
    assert SpecifierSet(PROJECT["requires-python"]).contains(colab()["python"])


@pytest.mark.parametrize("bad", ["torch>=2.12", "numpy>=2.0,<2.1", "numpy==2.1.3", "einops>=0.8"])
def test_a_requirement_against_colab_is_caught(bad):
    assert list(colab_complaints([bad], colab()))


def test_the_pins_satisfy_the_ranges():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    assert not [name for name in pins if name.startswith("nvidia")]
    assert not [name for name, version in pins.items() if "+" in version]
    wanted = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name == "executable-transformer":
            continue
        assert requirement.name.lower() in pins, f"{text} is not pinned"
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text


def foreign_addresses(text, repository):
    """Addresses of a repository of this name that are not the one of pyproject.toml."""
    ours = repository.removeprefix("https://github.com/")
    name = ours.split("/")[1]
    for found in re.findall(rf"github(?:\.com)?/([\w.-]+/{re.escape(name)})(?![\w-])", text):
        if found.removesuffix(".git") != ours:
            yield found


def test_the_repository_has_one_address():
    wrong = {
        name: list(foreign_addresses(text, REPOSITORY))
        for name, text in tracked()
        if not name.startswith("tests/")
    }
    assert {name: found for name, found in wrong.items() if found} == {}
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["repository"] == {"url": REPOSITORY, "branch": "main", "path_to_book": ""}
    for name in ("README.md", "CITATION.cff"):
        assert REPOSITORY in (ROOT / name).read_text()


def test_another_address_is_caught():
    other = REPOSITORY.replace("github.com/", "github.com/someone-")
    assert list(foreign_addresses(f"see {other}/issues", REPOSITORY))


def test_set_repo_rewrites_every_address(tmp_path):
    for name, _ in tracked():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    before = {
        name for name, text in tracked() if REPOSITORY in text and not name.startswith("tests/")
    }
    new = "https://github.com/a-reader/their-book"
    command = [sys.executable, "build.py", "set-repo", new]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
        == new
    )
    assert {"pyproject.toml", "_config.yml", "README.md", "CITATION.cff"} <= before
    for name in before:
        text = (tmp_path / name).read_text()
        assert REPOSITORY not in text and new in text, name
    # An install cell stays an install cell: only the address in it is another.
    for nb in NOTEBOOKS:
        changed = (tmp_path / "chapters" / f"{nb.stem}.ipynb").read_text()
        assert changed == json_text(nb).replace(REPOSITORY, new), nb.stem
    refused = subprocess.run(
        [*command[:-1], "http://example.org"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode != 0


def json_text(nb):
    return (ROOT / "chapters" / f"{nb.stem}.ipynb").read_text()


HOSTS = (
    r"https?://[\w.-]*("
    + "|".join(
        ["pypi", "python" + "hosted", "npm" + r"js\b", r"deb" + "ian", r"download\.py" + "torch"]
    )
    + r")[\w.-]*"
)
MACHINE = r"(?<![\w.:/])/(?:work|farm|root|home|Users)/[\w.]"
STRANGER = r"pip install (?:-\w+ )*[\"']?transformer[-_]lib\b"


@pytest.mark.parametrize(
    "pattern",
    [HOSTS, MACHINE, STRANGER],
    ids=["an index host", "a path of one machine", "a stranger's package"],
)
def test_no_file_names(pattern):
    found = {
        name: re.search(pattern, text)[0] for name, text in tracked() if re.search(pattern, text)
    }
    assert found == {}


def test_the_patterns_find_what_they_look_for():
    assert re.search(HOSTS, "https://" + "pypi" + ".org/simple")
    assert re.search(MACHINE, "see " + "/" + "root/x")
    assert re.search(STRANGER, "pip install " + "-q transformer" + "-lib")


def commands(text):
    """The `make ...` commands in code, blocks and spans alike."""
    return set(re.findall(r"(?:^|`)\s*make ([a-z][a-z-]*)", text, re.M))


def targets():
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "index.md", "chapters/built.md", ".ci/run"]
)
def test_documented_commands_exist(name):
    found = commands((ROOT / name).read_text())
    assert found and found <= targets()


def test_the_readme_names_the_two_commands_and_ci_runs_them():
    assert {"book", "test"} <= commands((ROOT / "README.md").read_text())
    assert {"book", "test"} <= commands((ROOT / ".ci" / "run").read_text())


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.name
)
def test_workflows_parse_and_are_bounded(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow[True], "when does it run?"  # YAML reads the key `on` as a boolean
    assert workflow["permissions"] is not None and "write-all" not in str(workflow["permissions"])
    runs = []
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            runs.append(step.get("run", ""))
            assert "uses" not in step or re.fullmatch(
                r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"]
            )
    found = set().union(*(commands(run) for run in runs))
    assert found <= targets()


def test_the_workflows_call_the_readmes_commands():
    texts = {p.stem: p.read_text() for p in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert set(texts) == {"test", "pages", "scheduled"}
    assert (
        "make test" in texts["test"]
        and "make book" in texts["pages"]
        and "make test" in texts["scheduled"]
    )


# Mutants (tests/mutate.py runs them)


def mutants():
    for path in sorted((ROOT / "tests" / "mutants").glob("*.py")):
        for what, old, new in runpy.run_path(str(path))["MUTANTS"]:
            yield path.stem, what, old, new


@pytest.mark.parametrize("module, what, old, new", list(mutants()))
def test_a_mutant_applies(module, what, old, new):
    assert (ROOT / "transformer_lib" / f"{module}.py").read_text().count(old) == 1
    assert old != new and what


def test_every_module_has_mutants_and_there_are_enough():
    count = {}
    for module, *_ in mutants():
        count[module] = count.get(module, 0) + 1
    assert set(count) == modules()
    assert sum(count.values()) >= 40


# The reader of the notebooks


def test_the_reader_takes_directives_off_and_turns_them_into_tags():
    reader = runpy.run_path(str(ROOT / "_ext" / "nbdev_reader.py"))
    nb = toy(put(5, code("#| eval: false\n#|exporti\n\n# a comment\nx = 1", "skip-execution")))
    cells = reader["read"](json.dumps(nb.data)).cells
    assert not [c.source for c in cells if re.search(r"#\s*\|", c.source)]
    assert cells[5].source == "# a comment\nx = 1"
    assert cells[5].metadata["tags"] == ["skip-execution", "exported"]
    assert cells[2].metadata["tags"] == ["remove-cell"]
    assert cells[4].metadata["tags"] == ["exported"]
    assert [c.source for c in cells if c.cell_type == "markdown"] == [c.source for c in nb.text]
