"""The reference of the library: a page for each module, and a list of the modules by use.

Before Sphinx reads the sources, a page is written for each module that the directive `modules`
names on the page of the reference. The directive itself lists the modules with what they are about,
the chapter that defines them and their names. Addresses of the time when the reference was one page
still lead to what they named.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.addnodes import pending_xref

PACKAGE = "transformer_lib"
LIST = re.compile(r"^```\{modules\}\n(.*?)^```", re.M | re.S)
# An old address names its module: #module-transformer_lib.x or #transformer_lib.x.name.
MOVED = (
    "<script>{const old = /^#(?:module-)?transformer_lib\\.(\\w+)/.exec(location.hash);"
    "if (old) location.replace(`api/${old[1]}.html${location.hash}`)}</script>"
)


@dataclass(frozen=True)
class Module:
    name: str
    about: str  # its docstring, in one line
    names: tuple[str, ...]  # what it exports
    documented: frozenset[str]  # the functions and classes among them that have a docstring


@cache
def folder():
    return Path(find_spec(PACKAGE).origin).parent


@cache
def module(name):
    """What the source of a module says, without importing it."""
    tree = ast.parse((folder() / f"{name}.py").read_text(encoding="utf-8"))
    exported, documented = (), set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = tuple(ast.literal_eval(node.value))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            documented.add(node.name)
    about = " ".join((ast.get_docstring(tree) or "").split())
    return Module(name, about, exported, frozenset(documented & {*exported}))


@cache
def public():
    """{name: its module} of the names that the package exports, and {module: itself}."""
    tree = ast.parse((folder() / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = {a.name: node.module for node in imports if node.module for a in node.names}
    return names | {a.name: a.name for node in imports if not node.module for a in node.names}


def groups(text):
    """[(heading, modules)] of the page of the reference."""
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        if found := LIST.search(part):
            yield part.splitlines()[0].strip(), found[1].split()


def page_of(name, use, before, after):
    """The source of a module's page."""
    ways = [f"{{ref}}`← {before} <api-{before}>`"] if before else []
    ways += [f"{{ref}}`{after} → <api-{after}>`"] if after else []
    return f"""---
orphan: true
---
(api-{name})=
# {PACKAGE}.{name}

{module(name).about}

:::{{container}} api-place
{{ref}}`The library <api>`: {use}. The chapter that defines it: {{ref}}`ch-{name}`.
{" · ".join(ways)}
:::

```{{eval-rst}}
.. automodule:: {PACKAGE}.{name}
   :members:
```
"""


def overview(app):
    """The name of the page of the reference, or None."""
    found = next(Path(app.srcdir, "chapters", "appendix").glob("?_api.md"), None)
    return found and found.relative_to(app.srcdir).with_suffix("").as_posix()


def write_pages(app):
    page = overview(app)
    if page is None:
        return
    source = Path(app.srcdir, f"{page}.md")
    listed = [(n, use) for use, names in groups(source.read_text("utf-8")) for n in names]
    target = source.parent / "api"
    target.mkdir(exist_ok=True)
    for i, (name, use) in enumerate(listed):
        before = listed[i - 1][0] if i else ""
        after = listed[i + 1][0] if i + 1 < len(listed) else ""
        text, file = page_of(name, use, before, after), target / f"{name}.md"
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, encoding="utf-8")


def keep_pages(app, config):
    """A second build finds the pages of the first, which the table of contents does not list."""
    kept = [pattern for pattern in config.exclude_patterns if "/appendix/api/" not in pattern]
    config.exclude_patterns = kept


def to_label(label, page, *children):
    """A reference to a label; without children, it shows the title that the label has."""
    text = children or (nodes.inline("", label),)
    return pending_xref(
        "", *text, refdomain="std", reftype="ref", reftarget=label, refdoc=page,
        refexplicit=bool(children), refwarn=True,
    )  # fmt: skip


def to_name(module, name, page, *children):
    return pending_xref(
        "", *children, refdomain="py", reftype="obj", reftarget=f"{PACKAGE}.{module}.{name}",
        refdoc=page, refexplicit=True, refwarn=True,
    )  # fmt: skip


class ModulesDirective(Directive):
    """A list of modules, each with its docstring, its chapter and its names."""

    has_content = True

    def run(self):
        page = self.state.document.settings.env.docname
        items = nodes.bullet_list(classes=["modules"])
        for name in " ".join(self.content).split():
            said = module(name)
            title = nodes.strong("", "", to_label(f"api-{name}", page, nodes.Text(name)))
            first = nodes.paragraph("", "", title, nodes.Text(f": {said.about} "))
            first += [nodes.Text("Chapter: "), to_label(f"ch-{name}", page), nodes.Text(".")]
            second = nodes.paragraph("", "", classes=["names"])
            for i, one in enumerate(said.names):
                code = nodes.literal("", one)
                if one in said.documented:
                    anchor = f"{PACKAGE}.{name}.{one}"
                    code = nodes.inline("", "", to_name(name, one, page, code), ids=[anchor])
                second += [nodes.Text(" " if i else ""), code]
            ids = [f"module-{PACKAGE}.{name}", f"{PACKAGE.replace('_', '-')}-{name}"]
            items += nodes.list_item("", first, second, ids=ids)
        return [items]


def link_names(app, doctree):
    """The names in the tables of the reference lead to their modules' pages."""
    page = app.env.docname
    if page != overview(app):
        return
    for cell in doctree.findall(nodes.entry):
        for code in list(cell.findall(nodes.literal)):
            name = code.astext()
            if (where := public().get(name)) == name:
                code.replace_self(to_label(f"api-{name}", page, code.deepcopy()))
            elif where:
                code.replace_self(to_name(where, name, page, code.deepcopy()))
    next(doctree.findall(nodes.section)).append(nodes.raw("", MOVED, format="html"))


def without_docstring(app, what, name, obj, options, lines):
    """The page of a module has its docstring below the title."""
    if what == "module":
        lines.clear()


def setup(app):
    app.add_directive("modules", ModulesDirective)
    app.connect("config-inited", keep_pages, priority=950)  # after the table of contents is read
    app.connect("builder-inited", write_pages)
    app.connect("doctree-read", link_names)
    app.connect("autodoc-process-docstring", without_docstring)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
