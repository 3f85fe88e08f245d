"""Remarks beside the text: a paragraph that begins with **Aside.** stands in the margin.

In a notebook it is a paragraph like others, and on a narrow screen it stands where it is written.
The class `margin` makes the theme hide the list of contents while a remark is in sight.
"""

from docutils import nodes

MARK = "Aside."


def mark_asides(app, doctree):
    for paragraph in list(doctree.findall(nodes.paragraph)):
        first = next((child for child in paragraph.children if child.astext()), None)
        if isinstance(first, nodes.strong) and first.astext() == MARK:
            box = nodes.container(classes=["aside", "margin"])
            paragraph.replace_self(box)
            box += paragraph


def setup(app):
    app.connect("doctree-read", mark_asides)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
