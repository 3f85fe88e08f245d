"""The built pages.

`make test` builds them first. Without them, these tests fail instead of being skipped.
"""

import json
import os
import re
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from notebooks import contents, topic

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(os.environ.get("BOOK_SITE", ROOT / "out" / "site"))
EXECUTED = ROOT / "out" / "book"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CONTENTS = [TOC["root"], *contents()]
CHAPTERS = [page for page in CONTENTS if (ROOT / f"{page}.ipynb").exists()]
GENERATED = ["genindex", "search", "py-modindex"]
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


@pytest.mark.parametrize("page", CHAPTERS)
def test_launch_button_opens_this_chapter_in_colab(page):
    slug = REPOSITORY.removeprefix("https://github.com/")
    wanted = f"https://colab.research.google.com/github/{slug}/blob/main/{page}.ipynb"
    found = {
        a["href"] for a in soup(page).find_all("a", href=True) if "colab.research" in a["href"]
    }
    assert found == {wanted}


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


def test_site_links_to_the_repository():
    assert any(a["href"].startswith(REPOSITORY) for a in soup(CONTENTS[0]).find_all("a", href=True))
