"""The glossary by letters, with links to each, and a box that filters its terms.

The script makes the box, so that a page without scripts has none.
"""

from html import escape
from itertools import groupby
from pathlib import Path
from shutil import copyfile

from docutils import nodes
from sphinx import addnodes

SCRIPT = Path(__file__).with_name("glossary.js")
LETTERS = ["0–9", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def letter(item):
    """The letter of an entry, from its first term."""
    first = next(item.findall(nodes.term)).astext().strip()[:1].upper()
    return first if first in LETTERS else LETTERS[0]


def anchor(name):
    return f"letter-{'digits' if name == LETTERS[0] else name.lower()}"


def draw_letters(used):
    """Links to the letters; one without an entry is text."""
    for name in LETTERS:
        if name in used:
            yield f'<a href="#{anchor(name)}">{name}</a>'
        else:
            yield f'<span class="none">{name}</span>'


def by_letters(app, doctree, page):
    """Divide each glossary into a list for each letter."""
    if app.builder.format != "html":
        return
    for glossary in list(doctree.findall(addnodes.glossary)):
        (old,) = glossary.children
        lists = {}
        for name, items in groupby(old.children, key=letter):
            lists.setdefault(name, []).extend(items)
        links = "".join(draw_letters(lists))
        glossary.clear()
        if app.builder.name != "epub":
            text = f'<nav class="letters" aria-label="Letters">{links}</nav>'
            glossary += nodes.raw("", text, format="html")
        for name in sorted(lists, key=LETTERS.index):
            title = f'<h2 class="letter" id="{anchor(name)}">{escape(name)}</h2>'
            glossary += nodes.raw("", title, format="html")
            glossary += nodes.definition_list("", *lists[name], classes=old["classes"])


def add_script(app, page, template, context, doctree):
    if 'class="letters"' in context.get("body", ""):
        app.add_js_file(SCRIPT.name, loading_method="defer")


def serve_script(app, failure):
    if failure is None and app.builder.name in ("html", "dirhtml"):
        copyfile(SCRIPT, Path(app.outdir, "_static", SCRIPT.name))


def setup(app):
    app.connect("doctree-resolved", by_letters)
    app.connect("html-page-context", add_script)
    app.connect("build-finished", serve_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
