"""Read a chapter for MyST-NB: nbdev's `#|` lines become tags, so that no page shows them.

Loaded by `nb_custom_formats` in _config.yml. Sphinx does not notice a change in this file;
`make book` does, and builds afresh.
"""

import re
from html import escape

import nbformat

DIRECTIVE = re.compile(r"\s*#\s*\|\s*(?P<name>[\w-]+)\s*:?\s*(?P<value>.*?)\s*$")
EXPORTS = {"export", "exports", "exporti"}
HIDES = {"hide", "default_exp"}


def split_directives(source):
    """Part the directives at the top of a cell, {name: value}, from the code below them."""
    directives, lines = {}, source.splitlines(keepends=True)
    while lines and (match := DIRECTIVE.match(lines[0])):
        directives[match["name"]] = match["value"]
        del lines[0]
    while directives and lines and not lines[0].strip():
        del lines[0]
    return directives, "".join(lines)


def tags_for(directives):
    """The tags that say to Jupyter Book what the directives say to nbdev."""
    names = directives.keys()
    if HIDES & names:
        yield "remove-cell"
    if EXPORTS & names:
        yield "exported"  # styled in _static/book.css: "in transformer_lib"
    if directives.get("eval", "").lower() == "false":
        yield "skip-execution"


def give_caption(cell, caption):
    """Write a caption into the tables that the cell shows."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/html" in data and "<caption" not in data["text/html"]:
            data["text/html"] = re.sub(
                r"<table\b[^>]*>",
                lambda table: f"{table[0]}<caption>{escape(caption)}</caption>",
                data["text/html"],
            )


def read(text):
    """A notebook from its file's text, directives turned into tags, tables with their captions."""
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            directives, cell.source = split_directives(cell.source)
            tags = [*cell.metadata.get("tags", []), *tags_for(directives)]
            if tags:
                cell.metadata["tags"] = list(dict.fromkeys(tags))
            if caption := cell.metadata.get("mystnb", {}).get("table", {}).get("caption"):
                give_caption(cell, caption)
    return notebook


def setup(app):
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
