"""The book as an EPUB: mathematics as MathML, and pages that are XML.

`make epub` builds it from the executed chapters. Readers of EPUBs run no MathJax, so docutils turns
the formulas into MathML; the text of each formula goes along for readers without it.
"""

import re
import zipfile
from html import escape
from pathlib import Path
from shutil import copyfile

import finish
from bs4 import BeautifulSoup
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.math import get_node_equation_number

# Commands of ours that docutils does not know, and others that it does.
COMMANDS = {
    r"\\dots(?![a-z])": r"\\ldots", r"\\iff(?![a-z])": r"\\Leftrightarrow",
    r"\\([bB]ig)(?![a-z])": r"", r"\\(t?frac)\s*(\d)\s*(\d)": r"\\\1{\2}{\3}",
    r"\\(t?frac)\s*(\d)\s*\{": r"\\\1{\2}{",
}  # fmt: skip
REMOVED = "script, style, .headerlink, button, summary .expanded"
STYLE = Path(__file__).with_name("epub.css")
STYLES = ("_static/pygments.css", "_static/book_epub.css")


def to_mathml(tex, is_block=False):
    """A formula as MathML, with its text as an alternative."""
    known = tex
    for pattern, command in COMMANDS.items():
        known = re.sub(pattern, command, known)
    xml = re.sub(r">\s+<", "><", tex2mathml(known, is_block))
    return xml.replace("<math ", f'<math alttext="{escape(" ".join(tex.split()))}" ', 1)


def inline(self, node):
    self.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(to_mathml(node.astext(), is_block=True))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append("</div>")
    raise nodes.SkipNode


def nothing(self, node):
    pass


def to_xml(html):
    """A page's body as XML, without what only a browser needs or what EPUB does not allow."""
    tree = BeautifulSoup(finish.tables(html), "html.parser")
    for node in tree.select(REMOVED):
        node.decompose()
    for node in tree.select("summary p"):
        node.name = "span"
    for node in tree.select("mfrac[scriptlevel]"):  # an attribute of what is around it
        style = tree.new_tag("mstyle", attrs={k: node.attrs.pop(k) for k in list(node.attrs)})
        node.wrap(style)
    seen = set()
    for node in tree.find_all(True):
        gone = [n for n in node.attrs if n.startswith("data-") or n in ("align", "border")]
        gone += ["role"] * node.get("role", "").startswith("doc-")
        gone += ["id"] * (node.get("id") in seen)
        for name in gone:
            del node[name]
        seen.add(node.get("id"))
    return tree.decode(formatter="minimal")


def clean_page(app, page, template, context, doctree):
    if app.builder.name == "epub":
        context["css_files"] = list(STYLES)
        if "body" in context:
            context["body"] = to_xml(context["body"])


def name_book(app, config):
    """The title and the version, which the settings of a Jupyter Book do not hold."""
    from transformer_lib import __version__

    config.project, config.version = config.html_title, __version__


def declare_formulas(app, failure):
    """Say in the EPUB's list of files which pages hold formulas, as the standard wants."""
    if failure is not None or app.builder.name != "epub":
        return
    (book,) = Path(app.outdir).glob("*.epub")
    with zipfile.ZipFile(book) as old:
        files = [(item, old.read(item)) for item in old.infolist()]
    with_formulas = {item.filename for item, data in files if b"<math " in data}

    def declare(item):
        return item[1] + ' properties="mathml"' * (item[2] in with_formulas)

    with zipfile.ZipFile(book, "w") as new:
        for item, data in files:
            if item.filename == "content.opf":
                listed = r'(<item id="[^"]*" href="([^"]+)")'
                data = re.sub(listed, declare, data.decode("utf-8")).encode("utf-8")
            new.writestr(item, data)


def serve_style(app):
    if app.builder.name == "epub":
        target = Path(app.outdir, STYLES[-1])
        target.parent.mkdir(parents=True, exist_ok=True)
        copyfile(STYLE, target)


def setup(app):
    app.add_html_math_renderer("mathml", (inline, nothing), (block, nothing))
    app.add_config_value("epub_math_renderer", "mathml", "env")
    app.add_config_value("epub_domain_indices", False, "")
    app.connect("config-inited", name_book)
    app.connect("builder-inited", serve_style)
    app.connect("build-finished", declare_formulas, priority=900)
    app.connect("html-page-context", clean_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
