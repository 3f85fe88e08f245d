"""Finish the pages that Sphinx wrote: lighter, and for keyboards, screen readers, phones and paper.

Every function takes the text of a page and returns it changed; `finish` applies them all when the
build has ended. What they leave out is written by the theme and its extensions, and no option of
theirs turns it off. The look is in _static/book.css.
"""

import json
import os
import re
import struct
from functools import cache
from html import escape, unescape
from importlib.util import find_spec
from pathlib import Path

import share
import slim

PLACEHOLDER = "https://github.com/OWNER/"  # `make set-repo` puts the repository's address there
NUMBER = re.compile(
    r"[-+−±≤≥<>≈~]*\s?\d[\d.,]*(?:e[-+]?\d+)?\s?[%×]?(?:\s?[\[(][-\d.,\s–]+[\])])?|-?inf|nan", re.I
)
CHINESE = r"[\u4e00-\u9fff]+(?:[、，（）·]?[\u4e00-\u9fff]+)*"


def text_of(html):
    """What a reader sees of some HTML."""
    return " ".join(unescape(re.sub(r"<[^>]*>", "", html)).split())


def end_of(page, start, tag="div"):
    """Where the element that begins at `start` ends."""
    depth = 0
    for match in re.finditer(rf"<(/?){tag}\b[^>]*>", page[start:]):
        depth += -1 if match[1] else 1
        if depth == 0:
            return start + match.end()
    raise ValueError(f"a <{tag}> is not closed")


# The frame of a page


def head(page):
    """Start in the reader's color scheme without an error; one viewport, no names of services."""
    page = re.sub(
        r'(dataset\.mode = localStorage\.getItem\("mode"\) \|\|) "";', r'\1 "auto";', page
    )
    page = page.replace(
        'localStorage.getItem("theme") || "";',
        'localStorage.getItem("theme") ||\n'
        '      (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");',
    )
    page = re.sub(
        r"<html ([^>]*?)\s*>", r'<html \1 data-mode="auto" data-theme="light">', page, count=1
    )
    page = re.sub(
        r'\s*<meta name="viewport"[^>]*>(?=.*<meta name="viewport")', "", page, flags=re.S
    )
    page = re.sub(r'\s*<meta name="docsearch:[^>]*>', "", page)
    return re.sub(r"<title>(.*?) &#8212; \1</title>", r"<title>\1</title>", page)


def scripts(page, is_search=False):
    """Only the scripts that the page needs, and none before its text is there."""
    unneeded = ["fontawesome", "togglebutton", "design-tabs"]
    if not is_search:
        unneeded += ["searchtools", "language_data", "searchindex"]
    if not re.search(r'class="[^"]*\bmath\b', page):
        unneeded += ["mathjax/", "window.MathJax"]
    if 'class="highlight"' not in page:
        unneeded += ["clipboard", "copybutton"]
    unneeded += [
        "toggleHint",
        "toggleOpenOnPrint",
        r"DOCUMENTATION_OPTIONS\.(?:pagename|search_as)",
    ]
    pattern = (
        rf"\s*<script\b(?:(?!</script>).)*?(?:{'|'.join(unneeded)})(?:(?!</script>).)*</script>"
    )
    page = re.sub(pattern, "", page, flags=re.S)
    page = re.sub(r'\s*<link rel="preload" as="script"[^>]*>', "", page)
    page = re.sub(r'\s*<link [^>]*href="[^"]*togglebutton\.css[^"]*"[^>]*>', "", page)
    page = re.sub(r"<script (?=src=|data-[^>]*src=)", "<script defer ", page)
    # _static/reading.js loads MathJax when it is needed
    page = re.sub(
        r'<script defer(?:="defer")? (src="[^"]*mathjax/)', r'<script type="text/plain" \1', page
    )
    return re.sub(
        r"\s*<!-- (?:So that users|Pre-loaded|Loaded before|Scripts loaded)[^>]*-->", "", page
    )


def icons(page, drawings):
    """Each icon drawn in the page, instead of by a script of 1.5 MB."""

    def draw(match):
        tag, classes, rest = match.groups()
        names = re.findall(r"\bfa-([a-z-]+)", classes)
        name = next((n for n in names if n in drawings), None)
        if name is None:
            return match[0]
        width, height, path = drawings[name]
        rest = re.sub(r'\s*title="[^"]*"', "", rest)
        return (
            f'<svg class="icon {" ".join(classes.split())}"{rest} viewBox="0 0 {width} {height}"'
            f' aria-hidden="true" focusable="false"><path fill="currentColor" d="{path}"/></svg>'
        )

    return re.sub(r'<(i|span) class="([^"]*\bfa-[a-z][^"]*)"([^>]*)>\s*</\1>', draw, page)


def frame(page):
    """Names and landmarks for what stands around the text."""
    page = re.sub(
        r'<div id="pst-primary-sidebar" ',
        '<div id="pst-primary-sidebar" role="navigation" aria-label="Book" ',
        page,
    )
    page = re.sub(
        r'(<a class="[^"]*\breference internal" href="[^"]*">)((?:(?!</a>).)*)'
        r"(</a><details[^>]*>)<summary>",
        lambda m: f'{m[1]}{m[2]}{m[3]}<summary aria-label="Chapters of {escape(text_of(m[2]))}">',
        page,
    )  # fmt: skip
    page = page.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    page = re.sub(
        r'(<button class="btn search-button-field[^>]*?) title="Search" aria-label="Search"',
        r"\1",
        page,
    )
    page = re.sub(r'(<button class="[^"]*theme-switch-button[^>]*) aria-label="[^"]*"', r"\1", page)
    page = re.sub(
        r'(<button class="[^"]*theme-switch-button[^>]*>)',
        r'\1<span class="visually-hidden">Color mode</span>',
        page,
    )
    page = re.sub(r'\s*<div id="ethical-ad-placement".*?</div>', "", page, flags=re.S)
    page = re.sub(  # names in the narrow list of contents break after their dots
        r'(<a class="[^"]*nav-link" href="#[^"]*"><code[^>]*>)(.*?)(?=</code>)',
        lambda m: m[1] + m[2].replace(".", ".<wbr>"),
        page,
    )
    page = page.replace("<h1>transformer_lib.", "<h1>transformer_lib.<wbr>")
    if (start := page.find('<div id="jb-print-docs-body"')) >= 0:  # the contents a second time
        page = page[:start] + page[end_of(page, start) :].lstrip()
    return page.replace(' role="list" class="citation-list"', ' class="citation-list"')


# The text of a page


def code(page, plain):
    """Code without the spans that have no color of their own: a third of a chapter's text."""
    for classes in ("pre", "|".join(plain)):  # the first may stand inside the second
        page = re.sub(rf'<span class="(?:{classes})">([^<]*)</span>', r"\1", page)
    page = page.replace('<span class="o">.</span>', ".").replace("</em><em>", "")
    page = re.sub(r"<pre><span></span>", "<pre>", page)
    # An output of one line is a sentence or a value, and wraps; the columns of others stay in line.
    one_line = r'(<div class="output text_plain)([^>]*><div class="highlight"><pre>[^\n]*\n?</pre>)'
    return re.sub(one_line, r"\1 one-line\2", page)


def plain_classes(sheet):
    """The classes of code that have the color of all code, in the light and in the dark."""
    rule = re.compile(r'html\[data-theme="(\w+)"\] \.highlight(?: \.(\w+))? \{([^}]*)\}')
    looks, base = {}, {}
    for theme, name, block in rule.findall(sheet):
        color = re.search(r"(?<!-)color: (#\w+)", block)
        if not name:
            base[theme] = color and color[1]
        else:
            looks.setdefault(name, {})[theme] = block.strip()
    same = {f"color: {color}" for color in base.values()}
    named = {name for name, look in looks.items() if set(look.values()) <= same}
    return sorted(named | {"w"})


def folds(page):
    """Hints and solutions as native folds, named by their titles, which open them."""
    opening = re.compile(
        r'<div class="([^"]*\bdropdown\b[^"]*)"((?: id="[^"]*")?)>\s*'
        r'<p class="(admonition-title)">(.*?)</p>', re.S
    )  # fmt: skip
    for match in reversed(list(opening.finditer(page))):
        end = end_of(page, match.start())
        title = re.sub(r"</?a\b[^>]*>", "", match[4])
        body = page[match.end() : end - len("</div>")]
        classes = match[1] if "admonition" in match[1] else f"{match[1]} admonition"
        page = (
            f'{page[: match.start()]}<details class="{classes}"{match[2]}>'
            f'<summary class="{match[3]}">{title}</summary>{body}</details>{page[end:]}'
        )
    return page


def cells_of(row):
    return re.findall(r"<t([hd])\b([^>]*)>(.*?)</t\1>", row, re.S)


def table(match):
    """A table of pandas: no empty headings, one row for names, numbers to the right."""
    rows = re.findall(r"<tr\b.*?</tr>", match[0], re.S)
    n_head = len(re.findall(r"<tr\b", match[0].split("<tbody")[0]))
    caption = re.search(r"<caption\b.*?</caption>", match[0], re.S)
    grid = [[list(cell) for cell in cells_of(row)] for row in rows]
    if not grid or any("colspan" in a for row in grid[n_head:] for _, a, _ in row):
        return match[0]
    top, body = grid[:n_head], grid[n_head:]
    if len(top) > 1 and len(top[-1]) == len(top[-2]):  # the names of the index have their own row
        if all(not (name[2] and column[2]) or i == 0 for i, (name, column) in
               enumerate(zip(top[-1], top[-2], strict=True))):  # fmt: skip
            for name, column in zip(top.pop(), top[-1], strict=True):
                column[2] = name[2] or column[2]
    widest = max((len(row) for row in body), default=0)
    numeric = set()
    for from_right in range(1, widest + 1):
        column = [row[-from_right] for row in body if len(row) >= from_right]
        texts = [text_of(text) for tag, _, text in column if tag == "d"]
        filled = [t for t in texts if t not in ("", "–", "—", "never", "no", "none")]
        numbers = sum(bool(NUMBER.fullmatch(t)) for t in filled)
        words = any(len(t) > 24 and not NUMBER.fullmatch(t) for t in filled)
        if numbers * 2 > len(filled) and not words:
            numeric.add(from_right)

    def write(row, head):
        spans = any("colspan" in attributes for _, attributes, _ in row)
        for i, (tag, attributes, text) in enumerate(row):
            attributes = "".join(re.findall(r' (?:row|col)span="\d+"', attributes))
            if tag == "h" and not text_of(text):
                tag = "d"
            elif tag == "h":
                scope = "col" if head else "row"
                attributes += f' scope="{scope}group"' if attributes else f' scope="{scope}"'
            if not spans and len(row) - i in numeric and (tag == "d" or head):
                long = " long" if len(text_of(text)) > 12 else ""
                attributes += f' class="num{long}"'
            elif tag == "d" and len(text_of(text)) > 40:
                attributes += ' class="words"'
            yield f"<t{tag}{attributes}>{text.strip()}</t{tag}>"

    lines = ["".join(write(row, True)) for row in top], ["".join(write(row, False)) for row in body]
    head_rows, body_rows = ("\n".join(f"<tr>{line}</tr>" for line in part) for part in lines)
    names = [text_of(text) for _, _, text in top[-1]] if top else []
    looks = " wide wider" if widest > 9 else " wide" if widest > 7 else ""
    if widest > 9 and sum(map(len, names)) > 90:
        looks += " upright"  # the names are read from the side, or the table would be cut
    return (
        f'<table class="dataframe{looks}">{caption[0] if caption else ""}<thead>{head_rows}</thead>'
        f"<tbody>\n{body_rows}\n</tbody></table>"
    )


def symbol(match):
    """A heading of symbols as text: what MathJax draws is none, and the heading seems empty."""
    if not re.fullmatch(r"(?:[A-Za-z](?:_\w|_\{\w+\})?|[\d\s/=+,()-])+", match[2]):
        return match[0]
    html = re.sub(r"_\{?(\w+)\}?", r"<sub>\1</sub>", match[2])
    html = re.sub(r"(?<![\w<>/])([A-Za-z])(?![\w>])", r"<em>\1</em>", html)
    return f"{match[1]}{html}{match[3]}"


def tables(page):
    page = re.sub(r"<style scoped>.*?</style>\s*", "", page, flags=re.S)
    page = re.sub(
        r'(?<=<div class="output text_html">)(\s*(?:<div>\s*)?)(<table\b.*?</table>)',
        lambda m: m[1] + table(re.match(r"(?s).*", m[2])),
        page,
        flags=re.S,
    )
    page = re.sub(
        r'(<th\b[^>]*>(?:<p>)?)<span class="math[^>]*>\\\((.*?)\\\)</span>((?:</p>)?</th>)',
        symbol,
        page,
    )
    return re.sub(r"<th\b([^>]*)>\s*(?:<p>\s*</p>\s*)?</th>", r"<td\1></td>", page)


@cache
def size_of(image):
    """Width and height of a PNG or SVG file in pixels, or None."""
    if image.suffix == ".png":
        return struct.unpack(">II", image.read_bytes()[16:24])
    if image.suffix == ".svg":
        text = image.read_text(encoding="utf-8")[:2000]
        if box := re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"', text):
            return tuple(round(float(side)) for side in box.groups())
    return None


def images(page, folder):
    """Images with their sizes, so that nothing jumps; all but the first load when needed."""
    before, mark, article = page.partition("<article")
    count = 0

    def write(match):
        nonlocal count
        count += 1
        found = re.search(r'src="([^":]+)"', match[0])
        size = size_of((folder / unescape(found[1])).resolve()) if found else None
        extra = "" if count == 1 else ' loading="lazy"'
        if size and not re.search(r"\s(?:width|height)=", match[0]):
            extra += f' width="{size[0]}" height="{size[1]}"'
        return match[0].replace("<img", f'<img{extra} decoding="async"', 1)

    return before + mark + re.sub(r"<img\b[^>]*>", write, article)


def chinese(page):
    """Chinese terms say that they are Chinese."""
    before, mark, article = page.partition("<article")
    article = re.sub(
        r">([^<>]*[\u4e00-\u9fff][^<>]*)<",
        lambda m: ">" + re.sub(CHINESE, r'<span lang="zh">\g<0></span>', m[1]) + "<",
        article,
    )
    return before + mark + article


def references(page):
    """The list of sources as plain text; the text cites by author and year, not by these labels."""
    page = re.sub(r'(<div class="citation" [^>]*?) role="doc-biblioentry"', r"\1", page)
    return re.sub(r'<span class="label">.*?</span>(?=\s*<p>)', "", page, flags=re.S)


# From the reference of the library to the cell of a chapter


def cell_ids(page, notebook):
    """Cells that define the library get their ids, so that the reference can lead to them."""
    ids = [
        cell["id"]
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code" and re.match(r"#\s*\|\s*export", "".join(cell["source"]))
    ]
    opening = r'<div class="(cell\b[^"]*\btag_exported\b[^"]*)">'
    if len(ids) != len(re.findall(opening, page)):  # the page may lack one that is hidden
        return page
    names = iter(ids)
    return re.sub(opening, lambda m: f'<div class="{m[1]}" id="cell-{next(names)}">', page)


def definitions(package):
    """{name: (page, cell)} of every function, class and constant, from the library's own marks."""
    found = {}
    for module in sorted(package.glob("[a-z]*.py")):
        place = None
        for line in module.read_text(encoding="utf-8").splitlines():
            if mark := re.match(r"# %% \.\./(chapters/\S+)\.ipynb #(\w+)", line):
                place = mark.groups()
            elif place and (name := re.match(r"(?:def |class |async def )?(\w+)\b", line)):
                found.setdefault(f"transformer_lib.{module.stem}.{name[1]}", place)
    return found


def sources(page, name, places, pages):
    """Each function and class of the reference links to the cell that defines it."""

    def link(match):
        target, cell = places.get(match[2], ("", ""))
        if f'id="cell-{cell}"' not in pages.get(target, ""):
            return match[0]
        path = os.path.relpath(f"{target}.html", Path(name).parent)
        title = match[2].rpartition(".")[2]
        return (
            f'{match[1]} <a class="defined" href="{path}#cell-{cell}"'
            f' aria-label="chapter that defines {title}">chapter</a>'
        )

    pattern = r'(<dt class="sig sig-object py" id="([\w.]+)">(?:(?!<a class="headerlink").)*)'
    return re.sub(pattern, link, page, flags=re.S)


# The build


def without_placeholder(app, config):
    """No button and no text leads to a repository without an address; with one, all do."""
    options = config.html_theme_options
    address = options.get("repository_url", "")
    if address.startswith(PLACEHOLDER):
        for name in ("repository", "issues", "edit_page"):
            options[f"use_{name}_button"] = False
        options["repository_url"] = ""
        options["launch_buttons"] = {}
    elif address:
        app.tags.add("address")  # for text that stands in `{only} address`
        config.html_baseurl = config.html_baseurl or share.address_of_pages(address)


def notebooks_without_placeholder(folder):
    """Notebooks to download say how to install the library when there is no address to name."""
    say = "install the library first: in a checkout of the book, pip install '.[chapters]'"
    for notebook in folder.rglob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        other = re.sub(
            rf'%pip install -q \\"[^"\\]* @ git\+{re.escape(PLACEHOLDER)}[^"\\]*\\"',
            lambda _: f'raise ModuleNotFoundError(\\"{say}\\")',
            text,
        )
        if other != text:
            notebook.write_text(other, encoding="utf-8")


def finish(app, failure):
    if failure is not None or app.builder.name != "html":
        return
    site = Path(app.outdir)
    static = site / "_static"
    drawn = static / "scripts" / "fontawesome.js"
    drawings = slim.drawings(drawn.read_text(encoding="utf-8")) if drawn.exists() else {}
    plain = plain_classes((static / "pygments.css").read_text())
    pages = {}
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.relative_to(site).parts:
            continue
        page = path.read_text(encoding="utf-8")
        name = path.relative_to(site).with_suffix("").as_posix()
        page = frame(scripts(head(page), is_search=name == "search"))
        page = images(tables(folds(code(page, plain))), path.parent)
        if 'class="glossary"' in page or 'class="simple glossary"' in page or name == "genindex":
            page = chinese(page)
        notebook = site / "_sources" / f"{name}.ipynb"
        if notebook.exists():
            page = cell_ids(page, notebook)
        pages[name] = references(icons(page, drawings))
    places = definitions(Path(find_spec("transformer_lib").origin).parent)
    for name, page in pages.items():
        if 'class="sig sig-object py"' in page:
            pages[name] = sources(page, name, places, pages)
    share.finish(app, pages)
    for name, page in pages.items():
        (site / f"{name}.html").write_text(page, encoding="utf-8")
    slim.finish(static, pages.values())
    if app.config.html_theme_options.get("repository_url", "") == "":
        notebooks_without_placeholder(site / "_sources")


def setup(app):
    app.connect("config-inited", without_placeholder)
    app.connect("build-finished", finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
