"""The book as a whole: contents, order, numbers, labels, citations, imports and appendix."""

import ast
import re
import sys
from xml.etree import ElementTree

import pytest
from notebooks import (
    NOTEBOOKS,
    PAGES,
    ROOT,
    build,
    contents,
    modules,
    topic,
)


def labels(text):
    """The targets that a page defines in its markdown."""
    yield from re.findall(r"^\(([\w-]+)\)=\s*$", text, re.M)
    yield from re.findall(r"^:(?:label|name): (\S+)\s*$", text, re.M)
    yield from re.findall(r"\$\$\s*\(([\w-]+)\)", text)


def all_labels():
    for nb in NOTEBOOKS:
        for c in nb.cells:
            yield from ((nb.page, x) for x in (labels(c.source) if c.kind == "markdown" else ()))
            if name := c.metadata.get("mystnb", {}).get("figure", {}).get("name"):
                yield nb.page, name
    for page in PAGES:
        yield from ((str(page), x) for x in labels(page.read_text()))


def test_labels_are_found():
    text = "(ch-x)=\n\n$$ a $$ (eq-x-1)\n\n```{exercise-start}\n:label: ex-x-1\n```"
    assert sorted(labels(text)) == ["ch-x", "eq-x-1", "ex-x-1"]


def test_labels_are_unique_in_the_book():
    seen = {}
    for page, label in all_labels():
        seen.setdefault(label, []).append(page)
    assert {label: pages for label, pages in seen.items() if len(pages) > 1} == {}


def test_equations_carry_the_name_of_their_chapter():
    wrong = [
        (nb.page, x)
        for nb in NOTEBOOKS
        for c in nb.text
        for x in re.findall(r"\$\$\s*\(([\w-]+)\)", c.source)
        if not x.startswith(f"eq-{nb.topic}")
    ]
    assert wrong == []


def test_citations_are_in_the_bibliography():
    bibliography = next((ROOT / "chapters").rglob("references.bib")).read_text()
    keys = re.findall(r"^@\w+\{\s*([^,\s]+)\s*,", bibliography, re.M)
    assert len(set(keys)) == len(keys) > 0
    texts = {nb.page: "\n".join(c.source for c in nb.text) for nb in NOTEBOOKS}
    texts |= {str(p): p.read_text() for p in PAGES}
    cited = {
        (page, key.strip())
        for page, text in texts.items()
        for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        for key in group.split(",")
    }
    assert cited, "nothing is cited: is the pattern right?"
    assert {(page, key) for page, key in cited if key not in keys} == set()


def test_contents_list_every_page_once():
    listed = contents()
    pages = {
        f.rsplit(".", 1)[0]
        for f in build().project_files()
        if f.startswith("chapters/") and f.endswith((".ipynb", ".md"))
    }
    assert len(set(listed)) == len(listed)
    assert set(listed) == pages


def exports():
    """{module: [notebooks that export it]}"""
    found = {}
    for nb in NOTEBOOKS:
        for c in nb.code:
            if "default_exp" in c.directives:
                found.setdefault(c.directives["default_exp"], []).append(nb.page)
    return found


def test_modules_come_from_one_chapter_of_their_name():
    assert set(exports()) == modules()
    for module, chapters in exports().items():
        assert len(chapters) == 1 and topic(chapters[0]) == module


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


# Modules that every module may import, and that import no chapter's module: those of the appendix,
# and hub, the base class of the families, which it imports by name when one of them is asked for.
SUPPORT = {"shapes", "plots", "checkpoints", "checkpoint_files", "runs", "datasets", "cache"}
SUPPORT |= {"settings", "hub"}
# The one exception: these may import `cpu`, which comes later, inside a function.
IMPORT_CPU = {"trainer", "recipes", "training", "commands"}


def import_complaints(order, sources):
    """What {module: source} imports against the order of the chapters."""
    for module, source in sources.items():
        tree = ast.parse(source)
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        lazy = {o for f in functions for o in siblings(ast.unparse(f))}
        top = {o for n in tree.body if not isinstance(n, ast.FunctionDef | ast.ClassDef)
               for o in siblings(ast.unparse(n))}  # fmt: skip
        for other in sorted(set(siblings(source))):
            if module in SUPPORT:
                if other not in SUPPORT:
                    yield f"{module} is a support module and imports {other}, a chapter's"
            elif other == "cpu" and module in IMPORT_CPU and other in lazy - top:
                continue
            elif other not in SUPPORT and (
                other not in order or order.index(other) >= order.index(module)
            ):
                yield f"{module} imports {other}, which no earlier chapter exports"


def test_modules_import_only_modules_of_earlier_chapters():
    order = [topic(page) for page in contents()]
    sources = {m: (ROOT / "transformer_lib" / f"{m}.py").read_text() for m in modules()}
    assert list(import_complaints(order, sources)) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("scores", "from .softmax import softmax"),
        ("scores", "def f():\n    from .softmax import softmax"),
        ("plots", "from transformer_lib.scores import dot_score"),
        ("trainer", "from .cpu import use_onednn"),
        ("softmax", "def f():\n    from .cpu import use_onednn"),
        ("softmax", "import transformer_lib.unknown"),
    ],
)
def test_imports_against_the_order_are_found(module, source):
    order = ["scores", "softmax", "trainer", "plots", "cpu"]
    assert list(import_complaints(order, {module: source}))


@pytest.mark.parametrize(
    "module, source",
    [
        ("softmax", "from .scores import dot_score\nfrom .plots import head_grid"),
        ("plots", "from .shapes import require_shapes"),
        ("trainer", "def f():\n    from .cpu import use_onednn"),
        ("cpu", "from .trainer import Trainer"),
    ],
)
def test_imports_in_the_order_are_allowed(module, source):
    order = ["scores", "softmax", "trainer", "plots", "cpu"]
    assert list(import_complaints(order, {module: source})) == []


def borrowed_names(source):
    """The private names of another module of transformer_lib that a module uses."""
    aliases = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (
            node.level == 1 or (node.module or "").split(".")[0] == "transformer_lib"
        ):
            yield from (a.name for a in node.names if a.name.startswith("_"))
            if node.module in (None, "transformer_lib"):
                aliases |= {a.asname or a.name for a in node.names}
        elif isinstance(node, ast.Import):
            ours = [a for a in node.names if a.name.startswith("transformer_lib.")]
            aliases |= {a.asname or a.name for a in ours}
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr, re.I):
            if ast.unparse(node.value) in aliases:
                yield node.attr


@pytest.mark.parametrize("module", sorted(modules()))
def test_private_names_stay_in_their_module(module):
    source = (ROOT / "transformer_lib" / f"{module}.py").read_text()
    assert set(borrowed_names(source)) == set()


@pytest.mark.parametrize(
    "source",
    [
        "from .tokenizer import Tokenizer, _texts",
        "def f():\n    from transformer_lib.tokenizer import _texts",
        "from . import tokenizer as t\nt._texts()",
        "from transformer_lib import tokenizer\ntokenizer._texts()",
        "import transformer_lib.tokenizer\ntransformer_lib.tokenizer._texts()",
    ],
)
def test_borrowed_private_names_are_found(source):
    assert list(borrowed_names(source)) == ["_texts"]


def test_private_names_of_a_module_itself_and_dunder_names_are_no_borrowed_ones():
    source = "from . import a\nfrom .b import c\na.__name__\nself._x = c._y\n_z = 1"
    assert list(borrowed_names(source)) == []


def test_progress_bars_ask_for_no_widgets():
    # Without ipywidgets, tqdm.auto writes a warning onto the page.
    files = [*ROOT.glob("chapters/**/*.ipynb"), *ROOT.glob("transformer_lib/*.py")]
    assert not [f.name for f in files if re.search(r"tqdm\.(auto|notebook)", f.read_text("utf-8"))]


def formulas(text):
    """[(formula, whether it is displayed)] of a page."""
    text = re.sub(
        r"^(`{3,}|~{3,})(?!\{(?:admonition|exercise|note)).*?^\1\s*$", "", text, flags=re.M | re.S
    )
    text = re.sub(r"`[^`\n]*`", "", text)
    displayed = r"\$\$(.+?)\$\$"
    yield from ((tex, True) for tex in re.findall(displayed, text, re.S))
    text = re.sub(displayed, "", text, flags=re.S)
    yield from ((tex, False) for tex in re.findall(r"(?<![\\$\d])\$([^$\s][^$]*?)\$", text))


@pytest.mark.parametrize("page", [nb.page for nb in NOTEBOOKS])
def test_formulas_can_be_written_as_mathml(page):
    # for readers of the EPUB, who have no MathJax
    sys.path.insert(0, str(ROOT / "_ext"))
    from epub import to_mathml

    (nb,) = [nb for nb in NOTEBOOKS if nb.page == page]
    for cell in nb.text:
        for tex, is_displayed in formulas(cell.source):
            xml = to_mathml(tex.strip(), is_displayed).replace("&ApplyFunction;", "")
            assert ElementTree.fromstring(xml).get("alttext") == " ".join(tex.split())


def test_mathml_knows_the_commands_of_the_chapters():
    sys.path.insert(0, str(ROOT / "_ext"))
    from epub import to_mathml

    assert "<mfrac><mn>1</mn><mn>2</mn></mfrac>" in to_mathml(r"\frac12")
    assert "…" in to_mathml(r"a, \dots, b") and "⇔" in to_mathml(r"a \iff b")
    assert 'display="block"' in to_mathml(r"\big( a \big)", is_block=True)


# The appendix


def page(label):
    """The text of the Markdown page with this label."""
    return next(p for p in PAGES if f"({label})=" in p.read_text()).read_text()


def glossary():
    """(terms, text) of each entry of the glossary: a term, and its Chinese term if it has one."""
    block = re.search(r"```\{glossary\}(.*?)```", page("glossary"), re.S)[1]
    entries = re.findall(r"^((?:(?![ :]).+\n)+)((?: .+\n)+)", block, re.M)
    return [(terms.splitlines(), text) for terms, text in entries]


def test_glossary_lists_each_term_once_with_its_chapter():
    terms = [term.lower() for terms, _ in glossary() for term in terms]
    assert len(glossary()) > 100 and len(set(terms)) == len(terms)
    known = {label for _, label in all_labels()}
    for terms, text in glossary():
        chapter = re.search(r"\{ref\}`(ch-[\w-]+)`$", text.strip())
        assert chapter and chapter[1] in known, terms


def test_notation_defines_each_symbol_once():
    rows = re.findall(r"^\| (\$.+?) \|", page("notation"), re.M)
    symbols = [s for row in rows for s in re.findall(r"\$(.+?)\$", row)]
    sizes_and_matrices = {"K", "V"}  # the exception that the page explains
    again = {s for s in symbols if symbols.count(s) > 1}
    assert len(symbols) > 20 and again == sizes_and_matrices


def stub():
    """{name: its module} of the names that `transformer_lib` exports, and its modules."""
    tree = ast.parse((ROOT / "transformer_lib" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = {a.name: node.module for node in imports if node.module for a in node.names}
    return names, {a.name for node in imports if not node.module for a in node.names}


def api_complaints(text, names, modules):
    """What the API page lacks, or lists in the section of another module."""
    sections = [part for part in re.split(r"^## ", text, flags=re.M)[1:]]
    lists = [re.search(r"^```\{modules\}\n(.*?)^```", part, re.M | re.S) for part in sections]
    documented = [found[1].split() if found else [] for found in lists]
    every = [module for part in documented for module in part]
    yield from (f"{m} must occur once" for m in sorted(modules | set(every)) if every.count(m) != 1)
    tables = [re.findall(r"^\|.*\|$", part, re.M) for part in sections]
    listed = [set(re.findall(r"`([A-Za-z_]\w*)`", "\n".join(rows))) for rows in tables]
    pairs = list(zip(listed, documented, strict=True))
    for name, module in names.items():
        if not any(name in row and module in part for row, part in pairs):
            yield f"{name} must be in the table above {module}"
    for name in sorted(set().union(*listed) - names.keys() - modules):
        yield f"{name} is not exported by transformer_lib"


def test_api_page_lists_every_public_name_and_module():
    assert list(api_complaints(page("api"), *stub())) == []


def test_gaps_of_the_api_page_are_found():
    text = "## A\n| x | `f` |\n```{modules}\na\n```\n## B\n| x | `h` |\n"
    assert list(api_complaints(text, {"f": "a"}, {"a"})) == ["h is not exported by transformer_lib"]
    found = list(api_complaints(text, {"f": "b", "g": "a", "h": "a"}, {"a", "b"}))
    assert found == [
        "b must occur once",
        "f must be in the table above b",
        "g must be in the table above a",
        "h must be in the table above a",
    ]


# Numbers


def numbering_complaints(pages):
    """Folders whose pages, in the order of the contents, are not numbered 1, 2, 3 or a, b, c."""
    folders = {}
    for page in pages:
        parts = page.split("/")[1:]
        for depth, name in enumerate(parts):
            names = folders.setdefault("/".join(parts[:depth]), [])
            if name not in names:
                names.append(name)
    for folder, names in folders.items():
        shown = [name for name in names if name != "index"]
        if not folder and shown[-1:] == ["appendix"]:
            shown = shown[:-1]
        wanted = list("abcdefghijklmnopqrstuvwxyz" if folder == "appendix" else "123456789")
        if [name.partition("_")[0] for name in shown] != wanted[: len(shown)]:
            yield f"chapters/{folder}: {shown}"
        if "index" in names[1:]:
            yield f"chapters/{folder}: its overview must come first"


def test_numbers_of_pages_have_no_gaps_and_follow_the_contents():
    pages = [page for page in contents() if page.startswith("chapters/")]
    if any(page.count("/") > 1 for page in pages):
        assert list(numbering_complaints(pages)) == []


GOOD = ["chapters/1_a/index", "chapters/1_a/1_x", "chapters/1_a/2_y", "chapters/2_b/1_z",
        "chapters/appendix/a_p", "chapters/appendix/b_q"]  # fmt: skip


def test_numbers_without_gaps_are_accepted():
    assert list(numbering_complaints(GOOD)) == []


@pytest.mark.parametrize("i", [1, 4])
def test_numbers_with_gaps_are_found(i):
    assert list(numbering_complaints([*GOOD[:i], *GOOD[i + 1 :]]))


def test_numbers_out_of_order_are_found():
    assert list(numbering_complaints([GOOD[0], GOOD[2], GOOD[1]]))
    assert list(numbering_complaints([GOOD[1], GOOD[0], GOOD[2]]))
