"""Read the notebooks and other files of the project, for the tests of the repository."""

import ast
import importlib.util
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
INSTALL = f"""\
# Google Colab: install the book's library (does nothing elsewhere)
import importlib.util

if importlib.util.find_spec("transformer_lib") is None:
    %pip install -q "executable-transformer[chapters] @ git+{REPOSITORY}@main\""""
DIRECTIVE = re.compile(r"^#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$", re.M)

# Reading


def topic(page):
    """A page's name without its number or letter: its module, and how its labels begin."""
    return re.sub(r"^(\d+|[a-z])_", "", page.rsplit("/", 1)[-1])


@dataclass
class Cell:
    kind: str
    source: str
    metadata: dict
    raw: dict

    @property
    def tags(self):
        return set(self.metadata.get("tags", []))

    @property
    def directives(self):
        return dict(DIRECTIVE.findall(self.source)) if self.kind == "code" else {}

    @property
    def exported(self):
        return bool({"export", "exports", "exporti"} & self.directives.keys())

    @property
    def tree(self):
        """The cell's syntax tree; lines that only IPython understands become `pass`."""
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", self.source, flags=re.M))


class Notebook:
    def __init__(self, page, data):
        self.page, self.data = page, data  # the page as _toc.yml names it
        self.stem = page.rsplit("/", 1)[-1]
        self.cells = [
            Cell(c["cell_type"], "".join(c["source"]), c["metadata"], c) for c in data["cells"]
        ]

    @classmethod
    def load(cls, path):
        page = path.relative_to(ROOT).with_suffix("").as_posix()
        return cls(page, json.loads(path.read_text(encoding="utf-8")))

    @property
    def topic(self):
        return topic(self.page)

    @property
    def code(self):
        return [c for c in self.cells if c.kind == "code"]

    @property
    def text(self):
        return [c for c in self.cells if c.kind == "markdown"]


NOTEBOOKS = [
    Notebook.load(p)
    for p in sorted((ROOT / "chapters").rglob("*.ipynb"))
    if not any(part.startswith(".") for part in p.parts[len(ROOT.parts) :])
]


# Markdown pages beside the notebooks
PAGES = [*sorted((ROOT / "chapters").rglob("*.md")), ROOT / "index.md"]


def build():
    """build.py as a module; `import build` could find the package of that name."""
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tracked():
    """The text files of the project: what git has, or would add."""
    for name in build().project_files():
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def contents():
    """The pages in the order of _toc.yml: a part's overview, then its chapters."""

    def below(entry):
        if "file" in entry:
            yield entry["file"]
        for key in ("parts", "chapters", "sections"):
            for child in entry.get(key, []):
                yield from below(child)

    return list(below(yaml.safe_load((ROOT / "_toc.yml").read_text())))


def modules():
    return {p.stem for p in (ROOT / "transformer_lib").glob("*.py") if not p.stem.startswith("_")}
