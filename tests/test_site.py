"""The built pages.

`make test` builds them first. Without them, these tests fail instead of being skipped.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from bs4 import BeautifulSoup
from notebooks import build, contents, modules, topic

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_ext"))
import finish  # noqa: E402
import orientation  # noqa: E402
import share  # noqa: E402
import slim  # noqa: E402

SITE = Path(os.environ.get("BOOK_SITE", ROOT / "out" / "site"))
EXECUTED = ROOT / "out" / "book"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CONTENTS = [TOC["root"], *contents()]
CHAPTERS = [page for page in CONTENTS if (ROOT / f"{page}.ipynb").exists()]
API = [f"chapters/appendix/api/{module}" for module in sorted(modules())]
GENERATED = ["genindex", "search", "py-modindex", *API]
# The MathJax files name hosts for what they never do here (Internet Explorer; a speech file that
# is served beside them).
VENDORED = ("_static/mathjax/",)


@cache
def html(page):
    file = SITE / f"{page}.html"
    assert file.exists(), f"{file.name} is not built: run `make book`"
    return file.read_text(encoding="utf-8")


@cache
def soup(page):
    return BeautifulSoup(html(page), "html.parser")


def article(page):
    return soup(page).find("article")


def is_outside(address):
    return bool(re.match(r"\s*(\w+:)?//", address)) or address.strip().startswith(
        ("http:", "https:")
    )


def loads(tree):
    """The addresses that a page loads itself, without those that it links to."""
    tags = {"script": "src", "img": "src", "iframe": "src", "source": "src", "embed": "src"}
    tags |= {
        "video": "src",
        "audio": "src",
        "track": "src",
        "object": "data",
        "use": "href",
        "image": "href",
    }
    for tag, attribute in tags.items():
        yield from (t[attribute] for t in tree.find_all(tag) if t.get(attribute))
    for t in tree.find_all(srcset=True):
        yield from (part.split()[0] for part in t["srcset"].split(","))
    for t in tree.find_all("link"):
        rel = {r.lower() for r in t.get("rel", [])}
        if rel & {
            "stylesheet",
            "icon",
            "preload",
            "prefetch",
            "modulepreload",
            "preconnect",
            "dns-prefetch",
            "manifest",
            "mask-icon",
            "apple-touch-icon",
        }:
            yield t.get("href", "")
    for t in [*tree.find_all("style"), *tree.find_all(style=True)]:
        yield from css_loads(t.string or "" if t.name == "style" else t["style"])


def css_loads(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    yield from (m[2].strip() for m in re.finditer(r"url\(\s*(['\"]?)(.*?)\1\s*\)", text))
    yield from (m[1] for m in re.finditer(r"@import\s+['\"]([^'\"]+)", text))


def script_hosts(tree):
    """Hosts that a script in the page could load from later."""
    for t in tree.find_all("script"):
        if not t.get("src") and t.get("type") != "application/ld+json":
            yield from re.findall(
                r"(?:https?:)?//[\w-]+(?:\.[\w-]+)+/[^\s\"']*\.(?:js|mjs|css|woff2?)",
                t.string or "",
            )
            yield from re.findall(r"[\w.]*(?:unpkg|jsdelivr|cdnjs|mybinder)[\w.]*", t.string or "")


def code_text(tree):
    return "\n".join(block.get_text() for block in tree.select("pre"))


@pytest.mark.parametrize("page", CONTENTS)
def test_pages_show_no_directive(page):
    assert not re.search(r"^\s*#\s*\|", code_text(soup(page)), re.M)
    assert "#|" not in article(page).get_text() or topic(page) == "built"  # which tells about them


@pytest.mark.parametrize("page", CONTENTS)
def test_pages_have_one_title_a_language_and_a_viewport(page):
    titles = [
        h for h in soup(page).find_all("h1") if not h.find_parent(class_="onlyprint")
    ]  # the theme's copy for paper
    assert len(titles) == 1 and titles == article(page).find_all("h1")
    assert soup(page).html.get("lang", "").startswith("en")
    assert "width=device-width" in soup(page).find("meta", attrs={"name": "viewport"})["content"]


NUMBER = re.compile(r"chapters/(\d)_[^/]+/(\d)_[^/]+")


@pytest.mark.parametrize("page", [page for page in CHAPTERS if NUMBER.match(page)])
def test_titles_carry_the_number_of_part_and_chapter(page):
    title = article(page).find("h1").get_text()
    assert title.startswith(".".join(NUMBER.match(page).groups()))


HAS_ADDRESS = not REPOSITORY.startswith(finish.PLACEHOLDER)


@pytest.mark.parametrize("page", CHAPTERS)
def test_launch_button_opens_this_chapter_in_colab(page):
    slug = REPOSITORY.removeprefix("https://github.com/")
    wanted = f"https://colab.research.google.com/github/{slug}/blob/main/{page}.ipynb"
    found = {
        a["href"] for a in soup(page).find_all("a", href=True) if "colab.research" in a["href"]
    }
    assert found == ({wanted} if HAS_ADDRESS else set())


@pytest.mark.parametrize("page", [*CONTENTS, *GENERATED])
def test_no_link_leads_to_a_placeholder(page):
    assert [a for a in soup(page).find_all("a", href=True) if "/OWNER/" in a["href"]] == []


@pytest.mark.parametrize("page", CONTENTS)
def test_images_exist_and_have_alt_text(page):
    for image in soup(page).find_all("img"):
        assert image.get("alt", "").strip(), image
        assert ((SITE / f"{page}.html").parent / unquote(urlsplit(image["src"]).path)).is_file(), (
            image["src"]
        )


@pytest.mark.parametrize("page", [*CONTENTS, *GENERATED])
def test_pages_load_nothing_from_another_host(page):
    outside = [address for address in loads(soup(page)) if is_outside(address)]
    assert outside == []
    assert list(script_hosts(soup(page))) == []


def test_style_sheets_load_nothing_from_another_host():
    sheets = [p for p in SITE.rglob("*.css")]
    assert sheets
    for sheet in sheets:
        assert [a for a in css_loads(sheet.read_text(encoding="utf-8")) if is_outside(a)] == [], (
            sheet.name
        )


def test_scripts_name_no_content_delivery_network():
    scripts = [
        p for p in SITE.rglob("*.js") if not p.relative_to(SITE).as_posix().startswith(VENDORED)
    ]
    assert scripts
    found = [
        p.name
        for p in scripts
        if re.search(r"unpkg\.com|jsdelivr|cdnjs|googleapis", p.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "bad",
    [
        '<script src="https://example.org/x.js"></script>',
        '<script src="//example.org/x.js"></script>',
        '<link rel="stylesheet" href="https://example.org/x.css">',
        '<link rel="preconnect" href="https://example.org">',
        '<img src="https://example.org/x.png" alt="x">',
        "<style>@import 'https://example.org/x.css';</style>",
        "<style>a { background: url( 'https://example.org/x.png' ) }</style>",
        '<p style="background: url(https://example.org/x.png)">x</p>',
    ],
)
def test_loads_from_another_host_are_found(bad):
    assert any(is_outside(address) for address in loads(BeautifulSoup(bad, "html.parser")))


def test_scripts_that_load_from_another_host_are_found():
    tree = BeautifulSoup(
        '<script>const THEBE_JS_URL = "https://unpkg.com/thebe@0.8.2/lib/index.js"</script>',
        "html.parser",
    )
    assert list(script_hosts(tree))
    assert not list(
        script_hosts(BeautifulSoup("<script>let a = 'b.c'; // x</script>", "html.parser"))
    )


@cache
def anchors(file):
    tree = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
    return {t["id"] for t in tree.find_all(id=True)} | {
        t["name"] for t in tree.find_all("a", attrs={"name": True})
    }


def dead_links(page):
    here = SITE / f"{page}.html"
    for a in soup(page).find_all("a", href=True):
        parts = urlsplit(a["href"])
        if (
            parts.scheme
            or parts.netloc
            or a["href"] in {"#", "#top"}
            or a["href"].startswith("javascript:")
        ):
            continue
        target = (here.parent / unquote(parts.path)).resolve() if parts.path else here.resolve()
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            yield a["href"]
        elif (
            parts.fragment
            and target.suffix == ".html"
            and unquote(parts.fragment) not in anchors(target)
        ):
            yield a["href"]


@pytest.mark.parametrize("page", [*CONTENTS, *GENERATED])
def test_links_inside_the_site_resolve(page):
    assert list(dead_links(page)) == []


@pytest.mark.parametrize("page", CONTENTS)
def test_pages_show_no_error(page):
    text = article(page).get_text()
    assert "Traceback (most recent call last)" not in text
    assert not soup(page).select(
        ".output.stderr, .stderr, .output_error, .system-message, .problematic"
    )


@pytest.mark.parametrize("page", CHAPTERS)
def test_chapters_write_no_warning_to_stderr(page):
    # What a cell writes to stderr is not on its page.
    notebook = json.loads((EXECUTED / f"{page}.ipynb").read_text())
    said = [
        "".join(output["text"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
        if output.get("name") == "stderr"
        # a package that a chapter imports loads tqdm.auto, which asks for widgets
        and "TqdmWarning: IProgress not found" not in "".join(output["text"])
    ]
    assert said == []


# Cells that may show more than six significant digits, and why.
LONG_NUMBERS = {
    "1c82afa5": "how numbers are stored in 16 bits is the point",
    "541e7701": "a message with the smallest and the largest float32",
}
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?:e[-+]?\d+)?(?![\w.]\w)")


def long_numbers(text):
    """The decimal numbers with more than six significant digits."""
    for number in DECIMAL.findall(text):
        mantissa = number.partition("e")[0]
        if mantissa.endswith(".0"):
            mantissa = mantissa.removesuffix(".0").rstrip("0")
        if len(mantissa.replace(".", "").lstrip("0")) > 6:
            yield number


def shown_text(output):
    data = output.get("data", {})
    found = "".join(output.get("text", data.get("text/html", data.get("text/plain", ""))))
    return "" if "'number_translator'" in found else re.sub(r"<[^>]*>", " ", found)


@pytest.mark.parametrize("page", CHAPTERS)
def test_outputs_show_no_more_than_six_digits(page):
    notebook = json.loads((EXECUTED / f"{page}.ipynb").read_text())
    found = {
        cell["id"]: numbers
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "remove-cell" not in cell["metadata"].get("tags", [])
        if (numbers := [n for o in cell["outputs"] for n in long_numbers(shown_text(o))])
    }
    assert {name: numbers for name, numbers in found.items() if name not in LONG_NUMBERS} == {}


def test_long_numbers_are_found():
    text = "0.123456 1234.5 1000000.0 v1.2345678 0.000000012 2.13.1234567 3.4e-12"
    assert list(long_numbers(text)) == []
    text = "(0.1234567, -1.000000e-06) 1234.567"
    assert list(long_numbers(text)) == ["0.1234567", "1.000000e-06", "1234.567"]


@pytest.mark.parametrize("page", CHAPTERS)
def test_cells_were_executed_in_order(page):
    notebook = json.loads((EXECUTED / f"{page}.ipynb").read_text())
    cells = [
        c for c in notebook["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()
    ]
    counts = [
        c["execution_count"] for c in cells if "skip-execution" not in c["metadata"].get("tags", [])
    ]
    assert None not in counts
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("page", CHAPTERS)
def test_pictures_are_figures_with_alt_text(page):
    # No image reaches a page without a figure's name and alt text, however a cell drew it.
    notebook = json.loads((EXECUTED / f"{page}.ipynb").read_text())
    bare = [
        "".join(cell["source"])[:60]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "remove-cell" not in cell["metadata"].get("tags", [])
        for output in cell["outputs"]
        if {"image/png", "image/svg+xml", "image/jpeg"} & output.get("data", {}).keys()
        and not ({"figure", "image"} <= cell["metadata"].get("mystnb", {}).keys())
    ]
    assert bare == []


def exported_cells(page):
    notebook = json.loads((ROOT / f"{page}.ipynb").read_text())
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return sum(bool(re.match(r"#\s*\|\s*export[si]?\b", source)) for source in sources)


@pytest.mark.parametrize("page", CHAPTERS)
def test_exported_cells_carry_their_mark(page):
    assert len(soup(page).select("div.cell.tag_exported")) == exported_cells(page)


def test_mark_of_exported_cells_is_text():
    sheet = (SITE / "_static" / "book.css").read_text()
    assert re.search(r'tag_exported[^{]*::before\s*\{[^}]*content:\s*"in transformer_lib"', sheet)
    assert "_static/book.css" in html(CONTENTS[0])


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_mark_of_exported_cells_has_contrast_in_light_and_dark():
    sheet = (SITE / "_static" / "book.css").read_text()
    light, dark = re.findall(r"--mark-text:\s*(#\w{6})", sheet)
    # The backgrounds of code cells in the theme: nearly white, nearly black.
    for text, ground in ((light, "#f3f4f5"), (dark, "#29313d")):
        lighter, darker = sorted((luminance(text), luminance(ground)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_mathjax_is_part_of_the_site():
    assert (SITE / "_static" / "mathjax" / "tex-chtml.js").is_file()
    fonts = list(
        (SITE / "_static" / "mathjax" / "output" / "chtml" / "fonts" / "woff-v2").glob("*.woff")
    )
    assert len(fonts) > 10
    with_mathematics = [page for page in CHAPTERS if soup(page).select(".math")]
    assert with_mathematics
    for page in with_mathematics:
        assert any(
            "_static/mathjax/tex-chtml.js" in s["src"]
            for s in soup(page).find_all("script", src=True)
        )


def test_site_links_to_the_repository_where_it_has_an_address():
    links = [a for a in soup(CONTENTS[0]).find_all("a", href=True)]
    assert any(a["href"].startswith(REPOSITORY) for a in links) == HAS_ADDRESS


# Weight


def local(page, address):
    return ((SITE / f"{page}.html").parent / urlsplit(address).path).resolve()


def weight(page):
    """Bytes of HTML, style sheets and scripts, without MathJax."""
    links = [link["href"] for link in soup(page).find_all("link", rel="stylesheet")]
    links += [script["src"] for script in soup(page).find_all("script", src=True)]
    files = {local(page, link) for link in links if "mathjax" not in link}
    return len(html(page).encode()) + sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("page", CHAPTERS)
def test_chapters_are_light(page):
    assert weight(page) <= 700_000


@pytest.mark.parametrize("page", [*CONTENTS, "genindex", "py-modindex"])
def test_pages_load_only_what_they_use(page):
    loaded = " ".join(script.get("src", "") for script in soup(page).find_all("script"))
    assert "fontawesome" not in loaded and "searchindex" not in loaded
    assert ("mathjax" in loaded) == bool(soup(page).select(".math"))


def test_search_loads_its_index():
    assert "searchindex.js" in html("search")


def test_images_say_their_size_and_come_when_they_are_needed():
    for page in CONTENTS:
        for i, image in enumerate(article(page).find_all("img")):
            assert image.get("width") and image.get("height"), (page, image["src"])
            assert i == 0 or image.get("loading") == "lazy", (page, image["src"])


def test_every_icon_is_drawn():
    for page in [*CONTENTS, *GENERATED]:
        assert not soup(page).select("i[class*=fa-], span[class*=fa-]"), page


# Names, languages, tables


@pytest.mark.parametrize("page", [*CONTENTS, *GENERATED])
def test_folds_have_names_and_tables_no_empty_heading(page):
    for fold in soup(page).find_all("summary"):
        assert fold.get_text().strip() or fold.get("aria-label")
        assert fold.get_text().strip() == "" or not fold.get("aria-label")
        assert not fold.find("a")  # a click on the title opens the fold, and leads nowhere
    assert [th for th in soup(page).find_all("th") if not th.get_text().strip()] == []


def test_solutions_are_folds():
    assert not any(soup(page).select("div.dropdown.admonition") for page in CHAPTERS)
    assert any(soup(page).select("details.solution") for page in CHAPTERS)


def test_chinese_terms_say_that_they_are_chinese():
    glossary = next(page for page in CONTENTS if topic(page) == "glossary")
    marked = article(glossary).select("[lang=zh]")
    assert len(marked) > 50
    for span in marked:
        span.replace_with("")
    assert not re.search("[\u4e00-\u9fff]", article(glossary).get_text())


def test_numbers_stand_on_the_right():
    page = next(page for page in CHAPTERS if soup(page).select("table.dataframe td.num"))
    for cell in soup(page).select("table.dataframe td.num"):
        assert (
            cell.get_text().strip() == ""
            or not cell.get_text().strip().isalpha()
            or (cell.get_text().strip().lower() in {"nan", "inf", "never", "no", "none"})
        )


PANDAS = """<div class="output text_html"><div><style scoped>x</style>
<table border="1" class="dataframe"><thead>
<tr style="text-align: right;"><th></th><th>loss</th><th>note</th></tr>
<tr><th>step</th><th></th><th></th></tr></thead>
<tbody><tr><th>1</th><td>0.50</td><td>first</td></tr><tr><th>2</th><td>nan</td><td></td></tr></tbody>
</table></div></div>"""


def test_tables_of_pandas_get_one_row_of_names_and_numbers_on_the_right():
    table = BeautifulSoup(finish.tables(PANDAS), "html.parser").table
    head, first, second = table.find_all("tr")
    assert [c.get_text() for c in head.find_all("th")] == ["step", "loss", "note"]
    assert [c.get("class") for c in head.find_all("th")] == [None, ["num"], None]
    assert [c.get_text() for c in first.find_all(["th", "td"])] == ["1", "0.50", "first"]
    assert second.find_all("td")[0]["class"] == ["num"] and first.th["scope"] == "row"


@pytest.mark.parametrize("page", CHAPTERS)
def test_tables_of_results_have_captions(page):
    tables = article(page).select("div.cell_output table")
    assert [table.get_text(" ", strip=True)[:60] for table in tables if not table.caption] == []


@pytest.mark.parametrize("page", [page for page in CHAPTERS if NUMBER.match(page)])
def test_asides_stand_beside_the_text(page):
    said = [p for p in article(page).find_all("p") if p.get_text().startswith("Aside.")]
    assert all({"aside", "margin"} <= {*p.parent["class"]} for p in said)
    assert len(said) <= 3


def test_a_column_with_long_words_is_no_column_of_numbers():
    words = PANDAS.replace("nan", "AMD EPYC with 2 CPU cores, x86").replace("0.50", "2.13.0")
    table = BeautifulSoup(finish.tables(words), "html.parser").table
    assert not table.select(".num")


def test_outputs_of_one_line_wrap():
    def output(text):
        start = '<div class="output text_plain highlight-myst-ansi notranslate">'
        return f'{start}<div class="highlight"><pre><span></span>{text}\n</pre></div></div>'

    page = BeautifulSoup(
        finish.code(output("one line") + output("two\nlines"), ["x"]), "html.parser"
    )
    assert [one.get_text().strip() for one in page.select(".one-line")] == ["one line"]


def test_symbols_in_headings_are_text():
    def heading(tex):
        cell = rf'<th class="head"><p><span class="math">\({tex}\)</span></p></th>'
        return finish.tables(cell)

    assert "<p><em>p</em><sub>x</sub> / <em>q</em><sub>x</sub></p>" in heading("p_x / q_x")
    assert "<p><em>d</em><sub>ff</sub></p>" in heading("d_{ff}")
    assert "math" in heading(r"\sqrt{K}")


def test_folds_keep_what_is_in_them():
    page = (
        '<div class="solution dropdown admonition" id="a">\n<p class="admonition-title">Solution to'
        '<a href="#b"> one</a></p><div>x<div class="dropdown admonition">'
        '<p class="admonition-title">Hint</p>y</div></div></div><div>z</div>'
    )
    tree = BeautifulSoup(finish.folds(page), "html.parser")
    outer, inner = tree.find_all("details")
    assert outer["id"] == "a" and outer.summary.get_text() == "Solution to one"
    assert inner.get_text() == "Hinty" and inner in outer.find_all("details")
    assert tree.find_all("div")[-1].get_text() == "z"


def test_slim_style_sheets_keep_what_is_used():
    sheet = """/* c */ @charset "utf-8"; a{b:c} .gone,.kept:hover{content:"}"} #gone .kept{d:e}
    .kept:not(.gone){f:g} @media (min-width:1px){.gone{x:y}} @media print{.kept{x:url(a;b)}}"""
    slimmed = slim.without_unused(sheet, {"kept"})
    assert "gone{" not in slimmed and "#gone" not in slimmed and "min-width" not in slimmed
    for rule in ("a{b:c}", '.kept:hover{content:"}"}', ".kept:not(.gone){f:g}", "url(a;b)"):
        assert rule in slimmed


def test_reference_leads_to_the_cells_that_define_the_library():
    links = {a["href"] for page in API for a in article(page).select("a.defined")}
    assert len(links) > 80  # that their anchors exist is a test of all links
    text = "\n".join(html(page) for page in CHAPTERS)
    assert all(f'id="{link.partition("#")[2]}"' in text for link in links)


OVERVIEW = next(page for page in CONTENTS if topic(page) == "api")


@pytest.mark.parametrize("page", API)
def test_modules_have_a_light_page_that_names_its_chapter(page):
    module = topic(page)
    assert article(page).h1.get_text().strip("#") == f"transformer_lib.{module}"
    chapter = next(other for other in CHAPTERS if topic(other) == module)
    place = article(page).select_one(".api-place")
    links = [address(page, a["href"]) for a in place.find_all("a")]
    assert links[:2] == [OVERVIEW, chapter]
    assert weight(page) < 400_000


def test_overview_of_the_reference_leads_to_every_module_and_keeps_old_anchors():
    rows = article(OVERVIEW).select("ul.modules > li")
    assert {address(OVERVIEW, row.a["href"]) for row in rows} == set(API)
    assert {row["id"] for row in rows} == {f"module-transformer_lib.{topic(page)}" for page in API}
    for page in API:
        names = [dt["id"] for dt in article(page).select("dl.py > dt[id]")]
        names = [name for name in names if name.count(".") == 2]
        there = anchors(SITE / f"{OVERVIEW}.html")
        assert names and set(names) <= there
    assert "location.replace(`api/" in html(OVERVIEW)


# The glossary


def test_glossary_is_divided_by_letters():
    glossary = next(page for page in CONTENTS if topic(page) == "glossary")
    nav = article(glossary).select_one("nav.letters")
    assert len(nav.find_all(["a", "span"])) == 27
    lists = article(glossary).select("dl.glossary")
    titles = [entry.find_previous_sibling("h2") for entry in lists]
    assert [f"#{title['id']}" for title in titles] == [a["href"] for a in nav.find_all("a")]
    for title, entries in zip(titles, lists, strict=True):
        first = [dt for dt in entries.find_all("dt") if not dt.find_previous_sibling() or
                 dt.find_previous_sibling().name == "dd"]  # fmt: skip
        letters = {dt.get_text()[0].upper() for dt in first}
        assert letters == {title.get_text()} or title.get_text() == "0–9"
    # the box that filters is made by the script, and only on this page
    assert not article(glossary).select("input")
    scripts = [page for page in CONTENTS if "_static/glossary.js" in html(page)]
    assert scripts == [glossary] and (SITE / "_static" / "glossary.js").is_file()


# Addresses


@pytest.mark.parametrize("page", CONTENTS)
def test_pages_describe_themselves(page):
    (tag,) = soup(page).find_all("meta", attrs={"name": "description"})
    assert 20 <= len(tag["content"]) <= 300 and "\\" not in tag["content"]
    assert bool(soup(page).find("link", rel="canonical")) == HAS_ADDRESS
    assert bool(soup(page).find("meta", property="og:image")) == HAS_ADDRESS


def test_site_has_an_overview_and_a_page_for_lost_readers():
    overview = (SITE / "llms.txt").read_text()
    for page in CONTENTS[1:]:
        assert f"{page}.html)" in overview
    assert (SITE / "404.html").is_file()
    assert (SITE / "sitemap.xml").is_file() == HAS_ADDRESS


def test_text_names_the_repository_only_where_it_has_an_address():
    text = article("index").get_text()
    assert ("The rocket at the top" in text) == ("git clone" in text) == HAS_ADDRESS
    assert ("Download the source" in text) == (not HAS_ADDRESS)
    assert "OWNER" not in text


def test_first_page_offers_the_whole_project_as_a_file():
    with zipfile.ZipFile(SITE / "executable-transformer.zip") as packed:
        names = {name.removeprefix("executable-transformer/") for name in packed.namelist()}
    assert {
        "pyproject.toml",
        "Makefile",
        "build.py",
        "chapters/1_attention/4_attention.ipynb",
    } < names
    assert "transformer_lib/weights/multi30k-en-de/model.safetensors" in names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "out/"))]


@pytest.mark.parametrize("tags", [set(), {"address"}])
def test_text_of_the_first_page_fits_both_states(tags):
    blocks = re.findall(
        r"^:::\{only\} (.*)\n((?:.*\n)*?):::$", (ROOT / "index.md").read_text(), re.M
    )
    assert {rule for rule, _ in blocks} == {"address", "not address"}
    shown = "".join(text for rule, text in blocks if (rule == "address") == ("address" in tags))
    assert ("rocket" in shown) == ("git clone https://github.com/" in shown) == bool(tags)
    assert shown.count("pip install") == 1


class Config(dict):
    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


@pytest.mark.parametrize(
    "repository, address",
    [
        ("https://github.com/A-Reader/their-book", "https://a-reader.github.io/their-book/"),
        ("https://github.com/Reader/reader.github.io", "https://reader.github.io/"),
    ],
)
def test_buttons_and_addresses_follow_the_repository(repository, address):
    def settings(url):
        names = ("repository", "issues", "edit_page")
        options = {"repository_url": url, "launch_buttons": {"colab_url": "x"}}
        options |= {f"use_{name}_button": True for name in names}
        config = Config(html_theme_options=options, html_baseurl="")
        config["app"] = SimpleNamespace(tags=set())
        finish.without_placeholder(config.app, config)
        return config

    without = settings(f"{finish.PLACEHOLDER}executable-transformer")
    assert not any(without.html_theme_options.values()) and not without.html_baseurl
    assert without.app.tags == set()
    with_one = settings(repository)
    assert all(with_one.html_theme_options.values()) and with_one.html_baseurl == address
    assert with_one.app.tags == {"address"}


def test_an_address_is_written_into_every_page(tmp_path):
    page = html(CHAPTERS[0])
    site = {"title": "Book", "address": "https://a.github.io/b/"}
    tags = BeautifulSoup(share.tags(CHAPTERS[0], page, site), "html.parser")
    found = {tag.get("property"): tag["content"] for tag in tags.find_all("meta")}
    assert found["og:url"] == f"https://a.github.io/b/{CHAPTERS[0]}.html"
    assert found["og:image"].startswith("https://a.github.io/b/_images/card-")
    card = tmp_path / "card.png"
    share.draw_card(card, CHAPTERS[0], "A title of some words", "One sentence. " * 20, "Book")
    assert finish.size_of(card) == (share.WIDTH, share.HEIGHT)
    assert 'href="https://a.github.io/b/index.html"' in share.lost(site)


def test_notebooks_to_download_say_how_to_install(tmp_path):
    cell = (
        f'%pip install -q \\"executable-transformer[chapters] @ git+{finish.PLACEHOLDER}x@main\\"'
    )
    (tmp_path / "a.ipynb").write_text(f'["    {cell}"]')
    finish.notebooks_without_placeholder(tmp_path)
    (line,) = json.loads((tmp_path / "a.ipynb").read_text())
    assert line.startswith("    raise ModuleNotFoundError(") and "OWNER" not in line
    compile(line.strip(), "cell", "exec")


# The EPUB

EPUB = SITE / build().EPUB


@pytest.fixture(scope="module")
def book():
    """{name: bytes} of the files of the EPUB."""
    if not EPUB.exists():
        pytest.skip("there is no EPUB: `make epub` builds it")
    with zipfile.ZipFile(EPUB) as archive:
        assert archive.infolist()[0].filename == "mimetype"  # the standard wants it first
        return {name: archive.read(name) for name in archive.namelist()}


def test_first_page_links_to_the_epub_where_it_exists():
    links = [a for a in article("index").find_all("a", href=True) if a["href"] == EPUB.name]
    assert len(links) == EPUB.exists()
    assert (build().NO_EPUB in html("index")) != EPUB.exists()


def test_epub_is_xml_with_formulas_pictures_and_links_that_resolve(book):
    pages = {n: ElementTree.fromstring(text) for n, text in book.items() if n.endswith("html")}
    assert len(pages) > len(CONTENTS)
    anchors = {name: {e.get("id") for e in page.iter()} for name, page in pages.items()}
    n_formulas = n_pictures = 0
    for name, page in pages.items():
        for element in page.iter():
            tag = element.tag.rpartition("}")[2]
            assert tag not in ("script", "iframe"), name
            n_formulas += tag == "math"
            address = element.get("src" if tag == "img" else "href", "")
            if tag == "img":
                n_pictures += 1
                assert element.get("alt"), (name, address)
            if not address or re.match(r"\w+:", address):
                continue
            path, _, anchor = unquote(address).partition("#")
            folder = os.path.dirname(name)
            target = os.path.normpath(os.path.join(folder, path)) if path else name
            assert target in book, (name, address)
            assert not anchor or tag == "link" or anchor in anchors[target], (name, address)
    assert n_formulas > 1000 and n_pictures > 100


# A real browser

SHARES = 8  # so that no share of the pages takes long on a busy machine


def browser_lacks():
    """What is missing for the checks in a browser, or nothing."""
    folders = [ROOT / "out" / "browser" / "node_modules"]
    folders += [
        Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder
    ]
    for package in ("playwright-core", "axe-core"):
        if not any((folder / package).is_dir() for folder in folders):
            return f"the npm package {package} is missing"
    if not shutil.which("node"):
        return "node is missing"
    names = ("chromium", "chromium-browser", "google-chrome")
    if not (os.environ.get("CHROME_PATH") or any(map(shutil.which, names))):
        return "Chromium is missing"
    return ""


@pytest.mark.parametrize("part", range(1, SHARES + 1))
def test_pages_in_a_browser(part):
    lacks = browser_lacks()
    if os.environ.get("BOOK_BROWSER") == "done":
        pytest.skip("`make site-check` has just opened every page in a browser")
    if lacks and os.environ.get("BOOK_BROWSER") != "insist":
        pytest.skip(f"NOT CHECKED in a browser: {lacks}; `make site-check` installs what it needs")
    assert not lacks
    folders = [str(ROOT / "out" / "browser" / "node_modules"), os.environ.get("NODE_PATH", "")]
    done = subprocess.run(
        ["node", ROOT / "tests" / "browser.mjs", SITE, f"--part={part}/{SHARES}"],
        capture_output=True, text=True, env={**os.environ, "NODE_PATH": os.pathsep.join(folders)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d* pages, 0 failures$", done.stdout, re.MULTILINE)


# Orientation: the map, openings, cards and terms

NUMBERED = [page for page in CONTENTS if NUMBER.match(page)]
PARTS = [page for page in CONTENTS if re.fullmatch(r"chapters/\d_\w+/index", page)]
LABELS = ("You need", "Afterwards you can")


def address(page, href):
    """The page that a link leads to."""
    return os.path.normpath(os.path.join(os.path.dirname(page), href)).partition(".html")[0]


def said_in(page):
    """The markdown of a chapter."""
    notebook = json.loads((ROOT / f"{page}.ipynb").read_text())
    return "\n\n".join(
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"
    )


def minutes_of(page):
    return orientation.reading_minutes(json.loads((ROOT / f"{page}.ipynb").read_text())["cells"])


def test_reading_takes_time_for_words_code_in_view_and_equations():
    def minutes(*cells):
        return orientation.reading_minutes(
            [{"cell_type": kind, "source": text, "metadata": meta} for kind, text, meta in cells]
        )

    text = ("markdown", "word " * 1500, {})
    assert minutes() == 5 and minutes(text) == 10
    code = "a = 1\n\n" * 150
    assert minutes(text, ("code", code, {})) == 20
    assert minutes(text, ("code", code, {"tags": ["hide-input"]})) == 10
    assert minutes(text, ("markdown", "(x)=\n$$\na b c\n$$ (eq-a)\n" * 20, {})) == 20
    exercise = ("markdown", "## Exercises\n" + "word " * 1500, {})
    assert minutes(exercise, text) == 5
    assert minutes(exercise, text, ("markdown", "## Summary\n" + "word " * 1500, {})) == 10


@pytest.mark.parametrize("page", NUMBERED)
def test_chapters_need_earlier_chapters_only(page):
    (opening,) = re.findall(r"\*\*You need\*\*(.*?)\*\*Afterwards you can\*\*", said_in(page), re.S)
    needed = re.findall(r"\{ref\}`(?:[^`<]*<)?ch-([\w-]+)>?`", opening)
    topics = [topic(p) for p in NUMBERED]
    later = topics[topics.index(topic(page)) :]
    allowed = {"translation"} if topic(page) == "bleu" else set()  # where its examples come from
    assert {*needed} & {*later} <= allowed


@pytest.mark.parametrize("page", NUMBERED)
def test_openings_stand_below_the_title_with_the_words_of_the_chapter(page):
    text = said_in(page)
    (box,) = article(page).select("div.opening")
    assert not box.find_all_previous("h2") or box.find_all_previous("h2")[0].find_parent(
        class_="onlyprint"
    )
    assert box.find_previous_sibling().name in ("blockquote", "h1")
    labels = [strong.get_text().strip(": ") for strong in box.select("p > strong:first-child")]
    assert labels == [label for label in LABELS if f"**{label}" in text] + ["Reading time"]
    left = [s for s in article(page).find_all("strong") if s.get_text().strip(": ") in LABELS]
    assert len(left) == len(labels) - 1
    assert f"about {minutes_of(page)} minutes, without" in box.get_text()
    small = box.select_one("a.place")
    assert address(page, small["href"]) == "index" and small["aria-label"]
    assert 0 < len(small.select("rect.lit")) < len(small.select("rect"))


@pytest.mark.parametrize("page", ["index", *PARTS])
def test_cards_list_the_chapters_in_order_with_number_title_thesis_and_minutes(page):
    wanted = (
        NUMBERED
        if page == "index"
        else [p for p in NUMBERED if Path(p).parent == Path(page).parent]
    )
    cards = article(page).select("ul.cards > li")
    assert [address(page, card.a["href"]) for card in cards] == wanted
    for chapter, card in zip(wanted, cards, strict=True):
        number = ".".join(NUMBER.match(chapter).groups())
        title = article(chapter).find("h1").get_text().strip("#").replace(f"{number}. ", "")
        assert card.a.get_text() == f"{number} {title}"
        text = said_in(chapter)
        thesis = " ".join(re.search(r"^((?:> .*\n?)+)", text, re.M)[1].replace("> ", " ").split())
        assert card.p.get_text().replace("’", "'")[:12] == thesis[:12]
        assert card.select_one(".minutes").get_text() == f"{minutes_of(chapter)} min"
    if page == "index":
        hours = sum(map(minutes_of, NUMBERED)) / 60
        said = article(page).select_one(".cards-sum").get_text()
        assert said.startswith(f"{len(NUMBERED)} chapters, about {hours:.0f} hours")


@pytest.mark.parametrize("page", ["index", *PARTS])
def test_map_leads_to_chapters(page):
    (frame,) = article(page).select("div.map-frame")
    targets = [address(page, a["href"]) for a in frame.find_all("a")]
    assert len(targets) > 30 and set(targets) <= set(NUMBERED)
    assert frame.svg["aria-label"].startswith("Map of the Transformer")
    assert bool(frame.select("rect.lit")) == (page != "index")


def test_first_page_shows_what_the_shipped_model_computes():
    import sys

    sys.path.insert(0, str(ROOT / "_ext"))
    import landing

    from transformer_lib import Translator

    translator = Translator.load("multi30k-de-en")
    shown = article("index").select(".translation")
    sources = [choice.get_text() for choice in article("index").select("fieldset span")]
    assert len(shown) == len(sources) >= 3
    for picture, source, translation in zip(shown, sources, translator(sources), strict=True):
        assert picture.select_one(".said strong").get_text() == translation
        written, read, table = landing.alignment(translator, source, translation)
        rows = picture.select("g.written")
        assert len(rows) == len(written) == len(table)
        for row, word, weights in zip(rows, written, table, strict=True):
            assert sum(weights) == pytest.approx(1, abs=1e-3)
            best = max(range(len(read)), key=weights.__getitem__)
            assert row["aria-label"].startswith(
                f"{word} attends: {weights[best]:.2f} to {read[best]}"
            )
            assert row["tabindex"] == "0"
            assert len(row.select("line")) == sum(w >= landing.SHOWN for w in weights)


def test_first_page_shows_the_rows_that_fail():
    code = re.search(r"```\{failing-check\}\n(.*?)```", (ROOT / "index.md").read_text(), re.S)[1]
    named = re.search(r"# \[(.*)\]", code)[1].replace("'", "").split(", ")
    rows = article("index").select(".failing tbody tr")
    assert [row.th.get_text() for row in rows] == named
    assert all("FAIL" in row.get_text() for row in rows)


def test_first_page_stays_light():
    assert len(html("index")) < 110_000


@pytest.mark.parametrize("page", NUMBERED)
def test_terms_are_linked_once_with_their_meaning(page):
    links = article(page).select("a.term")
    assert len(links) <= 30
    targets = [link["href"] for link in links]
    assert len(set(targets)) == len(targets)
    for link in links:
        assert address(page, link["href"]).endswith("_glossary") and len(link["title"]) > 20
        assert not link.find_parent(["h1", "h2", "h3", "pre", "code", "figcaption", "strong"])


def test_terms_are_linked_in_most_chapters():
    linked = [page for page in NUMBERED if article(page).select("a.term")]
    assert len(linked) > 0.8 * len(NUMBERED)


@pytest.mark.parametrize("page", NUMBERED)
def test_previous_and_next_name_their_pages(page):
    before, after = (CONTENTS[CONTENTS.index(page) + step] for step in (-1, 1))
    for selector, other in ((".left-prev", before), (".right-next", after)):
        link = soup(page).select_one(selector)
        assert address(page, link["href"]) == other
        assert link.select_one(".prev-next-title").get_text().strip()


@pytest.mark.parametrize("page", CONTENTS)
def test_script_of_views_is_loaded_where_a_view_is(page):
    scripts = [s["src"] for s in soup(page).find_all("script", src=True) if "views.js" in s["src"]]
    assert len(scripts) == bool(article(page).select(".view"))


def test_views_stand_in_the_chapters():
    assert sum(len(article(page).select(".view")) for page in NUMBERED) >= 5
    assert (SITE / "_static" / "views.js").is_file()


def test_translator_of_the_page_is_light_and_translates():
    weights = SITE / "_static" / "number_translator.js"
    assert weights.stat().st_size <= 1_000_000
    page = next(page for page in CHAPTERS if topic(page) == "models")
    (view,) = article(page).select('[data-view="translator"]')
    assert local(page, view["data-weights"]) == weights.resolve()
    assert "number_translator'" not in (SITE / "_sources" / f"{page}.ipynb").read_text()
    if shutil.which("node") is None:
        pytest.skip("node is missing: the translator of the page is not run")
    script = f"""global.window = {{}};
require({json.dumps(str(weights))});
const v = require({json.dumps(str(ROOT / "_ext" / "views.js"))});
const model = v.unpack(window.numberTranslator);
const {{ tokens }} = v.translate(model, v.encode(model, 4321));
console.log(tokens.slice(1, -1).map((token) => model.pieces[token]).join(""));"""
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True)
    assert done.stdout.strip() == "viertausenddreihunderteinundzwanzig", done.stderr
