"""Let a page ask the network for nothing.

MathJax is copied into the site from the package sphinx-mathjax-offline. The extension that runs a
page on Binder, which Jupyter Book always loads and which names a script on another host, is taken
off again.
"""

from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns

MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
# One component is served (TeX in, HTML out) with what it loads on demand: fonts, TeX packages,
# screen-reader speech.
NOT_SERVED = ignore_patterns(
    "*-full*.js", "*svg*", "*mml*.js", "core.js", "latest.js", "node-main.js", "adaptors"
)


def without_thebe(app, config):
    for event, listeners in app.events.listeners.items():
        kept = [one for one in listeners if one.handler.__module__.split(".")[0] != "sphinx_thebe"]
        app.events.listeners[event] = kept
    app.registry.css_files = [
        (name, how) for name, how in app.registry.css_files if "thebe" not in name
    ]


def serve_mathjax(app, failure):
    if failure is None and app.builder.name in ("html", "dirhtml"):
        copytree(
            MATHJAX, Path(app.outdir, "_static", "mathjax"), ignore=NOT_SERVED, dirs_exist_ok=True
        )


def setup(app):
    app.connect("config-inited", without_thebe)
    app.connect("build-finished", serve_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
