"""The rules for a chapter that can be checked without running a cell.

A rule takes a notebook and yields complaints. Each rule runs on every chapter, and on a notebook
that breaks it.
"""

import ast
import copy
import json
import re
import runpy

import pytest
import words
from equations import too_wide, width
from notebooks import (
    DIRECTIVE,
    INSTALL,
    NOTEBOOKS,
    PAGES,
    ROOT,
    Notebook,
)

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
            r"\binput\(": "no one can answer while the book is built",
            r"^\s*(from|import) (nbdev|myst_nb|google)\b": "not there for every reader",
            r"[\"'](\.\.?/|\.\.[\"'])": "a relative path does not exist beside a lone notebook",
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


LIGHTNESS = re.compile(r"\b(dark|light|pale|bright|faint)(er|est)?\b|\b(black|white)\b", re.I)
QUOTED = re.compile(r"\*[^*]*\*|`[^`]*`")


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
            if word := LIGHTNESS.search(QUOTED.sub("", caption)):
                yield f"{name}: dark pages turn lightness around, so no caption says {word[0]}"
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


# The lesson in view


FOLDED = {"remove-cell", "remove-input", "hide-cell", "hide-input"}
MAX_LINES, MAX_EXPORTED, MAX_COLUMNS = 40, 15, 84


def visible(cell):
    """The lines of a code cell that the page shows, without directives."""
    if cell.kind != "code" or cell.tags & FOLDED:
        return []
    return [line for line in cell.source.splitlines() if not DIRECTIVE.match(line)]


@rule
def visible_code_is_short_and_fits_its_column(nb):
    for c in nb.code:
        lines = visible(c)
        limit = MAX_EXPORTED if c.exported else MAX_LINES
        if len(lines) > limit:
            kind = "an exported" if c.exported else "a"
            yield f"fold {kind} cell of {len(lines)} lines, more than {limit}: {lines[0]!r}"
        for line in lines:
            if len(line) > MAX_COLUMNS:
                yield f"{len(line)} columns are in view, at most {MAX_COLUMNS}: {line!r}"


@rule
def the_first_screen_has_no_import_cell(nb):
    """Five lines that show something may begin with an import."""
    for c in nb.cells:
        if c.kind == "markdown" and re.search(r"^## ", c.source, re.M):
            return
        if not visible(c):
            continue
        imports = [isinstance(node, ast.Import | ast.ImportFrom) for node in c.tree.body]
        lines = [line for line in visible(c) if line]
        if any(imports) and (all(imports) or len(lines) > 5):
            yield f"fold the imports before the first section: {lines[0]!r}"


@rule
def every_table_has_a_caption(nb):
    """Where its last line shows that it is one; the tests of the site find the others."""
    for c in nb.code:
        if not c.source.strip() or "remove-cell" in c.tags or not c.tree.body:
            continue
        last = ast.unparse(c.tree.body[-1])
        shows = re.search(r"\bpd\.DataFrame\(|\.to_frame\(", last) and not last.startswith("assert")
        is_value = isinstance(c.tree.body[-1], ast.Expr) and not isinstance(
            c.tree.body[-1].value, ast.Tuple
        )
        caption = c.metadata.get("mystnb", {}).get("table", {}).get("caption", "")
        if shows and is_value and len(caption.split()) < 3:
            yield f"give the table a caption: {last.splitlines()[-1][-60:]!r}"
        if caption and not caption.endswith("."):
            yield f"a caption ends with a full stop: {caption!r}"


@rule
def equations_fit_their_column(nb):
    for c in nb.text:
        for name, found, room in too_wide(c.source):
            yield f"{name} needs {found:.1f} em of {room}: break it with aligned"


LESSON = {  # what a chapter keeps once it is rewritten
    "visible_code_is_short_and_fits_its_column",
    "the_first_screen_has_no_import_cell",
    "equations_fit_their_column",
}
TO_REWRITE = set((ROOT / "tests" / "chapters_to_rewrite.txt").read_text().split())


@pytest.mark.parametrize(
    "name, nb",
    [
        pytest.param(name, nb, id=f"{name}-{nb.page}")
        for name in RULES
        for nb in NOTEBOOKS
        if not (name in LESSON and nb.page.removeprefix("chapters/") in TO_REWRITE)
    ],
)
def test_chapter_keeps(name, nb):
    complaints = list(RULES[name](nb))
    assert not complaints, "\n".join(complaints)


def test_chapters_to_rewrite_exist_and_need_it():
    pages = {nb.page.removeprefix("chapters/"): nb for nb in NOTEBOOKS}
    assert TO_REWRITE <= pages.keys()
    for page in TO_REWRITE:
        rules = [name for name in LESSON if list(RULES[name](pages[page]))]
        private = [word for c in pages[page].cells for word in words.find(c.source)]
        assert rules or private, f"remove {page} from tests/chapters_to_rewrite.txt"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_equations_of_pages_fit_their_column(path):
    assert list(too_wide(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "tex, em",  # measured in Chromium, with the MathJax of the site
    [
        (r"a + b + c + d + e + f + g + h", 12.53),
        (r"\operatorname{Attention}(Q, K, V) = \operatorname{softmax}\!"
         r"\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V", 18.25),
        (r"s_{ts} = q_t\, W\, k_s^\top = \sum_{i=1}^{K_q} \sum_{j=1}^{K_k} "
         r"q_{ti}\, W_{ij}\, k_{sj}", 14.49),
        (r"\begin{pmatrix} \sin \omega_i(p+k) \\ \cos \omega_i(p+k) \end{pmatrix} = "
         r"\begin{pmatrix} \cos \omega_i k & \sin \omega_i k \\ -\sin \omega_i k & \cos \omega_i k "
         r"\end{pmatrix} \begin{pmatrix} \sin \omega_i p \\ \cos \omega_i p \end{pmatrix}", 22.13),
        (r"T \big[ \underbrace{2L\,(4D^2 + 2DF)}_{\text{weights of the layers}} + "
         r"\underbrace{2DV}_{\text{output}} \big] + T^2 \underbrace{4 L D}_{\text{pairs}}", 16.76),
    ],
    ids=["sum", "attention", "limits", "matrices", "braces"],
)  # fmt: skip
def test_width_is_within_a_tenth_of_what_mathjax_needs(tex, em):
    assert width(tex) == pytest.approx(em, rel=0.11)


# Each rule must be able to fail: a notebook that follows all rules, and a change that breaks each


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
DARK = FIGURE["figure"] | {"caption": "The darker a cell, the larger the loss."}
GOOD = [
    markdown("(ch-toy)="),
    markdown("# Toy\n> A thesis about toys."),
    code("#| default_exp toy", "remove-cell"),
    code(INSTALL, "remove-cell"),
    code("#| export\nimport torch", "hide-input"),
    code(
        "import matplotlib.pyplot as plt\n\n"
        "from transformer_lib.toy import f\n\ntorch.manual_seed(0);",
        "hide-input",
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
        "chapters/1_part/1_toy",
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
    ("nothing_that_breaks_the_book_or_colab", lambda: toy(put(6, code("Path('..', 'data')")))),
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
    ("every_table_has_a_caption", lambda: toy(put(8, code("pd.DataFrame(rows).round(2)")))),
    ("every_table_has_a_caption", lambda: toy(put(8, code("losses.to_frame() if 1 else 2")))),
    (
        "every_table_has_a_caption",
        lambda: toy(put(8, code("1", mystnb={"table": {"caption": "Losses by step"}}))),
    ),
    ("every_plot_is_a_figure", lambda: toy(put(8, code("plt.plot([1, 2]);")))),
    ("every_plot_is_a_figure", lambda: toy(put(8, code("attention_heatmap(weights);")))),
    (
        "every_plot_is_a_figure",
        lambda: toy(put(8, code("ax;", "hide-input", mystnb={"figure": FIGURE["figure"]}))),
    ),
    ("every_plot_is_a_figure", lambda: toy(edit(8, metadata={"mystnb": FIGURE}))),
    (
        "every_plot_is_a_figure",
        lambda: toy(put(8, code("ax;", "hide-input", mystnb=FIGURE | {"figure": DARK}))),
    ),
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
    ("visible_code_is_short_and_fits_its_column", lambda: toy(put(7, code("1\n" * 41)))),
    (
        "visible_code_is_short_and_fits_its_column",
        lambda: toy(put(7, code("#| export\n" + "1\n" * 16))),
    ),
    ("visible_code_is_short_and_fits_its_column", lambda: toy(put(7, code("# " + 83 * "-")))),
    ("the_first_screen_has_no_import_cell", lambda: toy(put(5, code("import math")))),
    (
        "the_first_screen_has_no_import_cell",
        lambda: toy(put(5, code("from math import pi\n\nx = 1\nx\nx\nx\nx"))),
    ),
    ("equations_fit_their_column", lambda: toy(put(7, markdown(f"$$\n{'a + ' * 20}b\n$$")))),
    (
        "equations_fit_their_column",
        lambda: toy(put(7, markdown(f"$$\n{'a + ' * 18}b\n$$ (eq-toy-sum)"))),
    ),
    ("the_voice_is_the_books", lambda: toy(put(8, markdown("We simply add.")))),
    ("the_voice_is_the_books", lambda: toy(put(8, markdown("It works!")))),
]


@pytest.mark.parametrize("name", RULES)
def test_rule_accepts_a_good_notebook(name):
    assert list(RULES[name](toy())) == []


@pytest.mark.parametrize(
    "cell",
    [
        code("\n".join(["# " + 82 * "-"] * 40)),
        code("\n".join(["#| export", *["# " + 82 * "-"] * 15])),
        code("import math\n\n" + "# " + 98 * "-" + "\n" * 50, "hide-input"),
        code("from math import pi\n\nx = pi\nx\nx\nx"),
        markdown(f"$$\n{'a + ' * 18}b\n$$"),
    ],
    ids=["visible", "exported", "folded", "opening", "equation"],
)
def test_lesson_rules_accept_cells_at_their_limits(cell):
    nb = toy(put(5, cell))
    assert [name for name in LESSON if list(RULES[name](nb))] == []


@pytest.mark.parametrize(
    "name, broken", BROKEN, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BROKEN)]
)
def test_rule_finds_a_bad_notebook(name, broken):
    assert list(RULES[name](broken()))


def test_rules_are_all_shown_to_find_something():
    assert {name for name, _ in BROKEN} == set(RULES)


# The reader of the notebooks


def test_reader_turns_directives_into_tags():
    reader = runpy.run_path(str(ROOT / "_ext" / "nbdev_reader.py"))
    nb = toy(put(5, code("#| eval: false\n#|exporti\n\n# a comment\nx = 1", "skip-execution")))
    cells = reader["read"](json.dumps(nb.data)).cells
    assert not [c.source for c in cells if re.search(r"#\s*\|", c.source)]
    assert cells[5].source == "# a comment\nx = 1"
    assert cells[5].metadata["tags"] == ["skip-execution", "exported"]
    assert cells[2].metadata["tags"] == ["remove-cell"]
    assert cells[4].metadata["tags"] == ["hide-input", "exported"]
    assert [c.source for c in cells if c.cell_type == "markdown"] == [c.source for c in nb.text]


def test_reader_gives_tables_their_captions():
    reader = runpy.run_path(str(ROOT / "_ext" / "nbdev_reader.py"))
    cell = code("table", mystnb={"table": {"caption": "Loss < 1, by step."}})
    html = '<div><table border="1" class="dataframe"><thead></thead></table></div>'
    cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}]
    cells = reader["read"](json.dumps(toy(put(5, cell)).data)).cells
    shown = cells[5].outputs[0].data["text/html"]
    assert shown == html.replace("<thead", "<caption>Loss &lt; 1, by step.</caption><thead")
