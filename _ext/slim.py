"""Take from the theme's files what no page of this book uses."""

import io
import logging
import re
from pathlib import Path

TOKEN = re.compile(
    r"""/\*.*?\*/ | "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | url\([^)'"]*\) | [{};]""", re.S | re.X
)
NAME = re.compile(r"[.#]((?:[\w-]|\\.)+)")
ICON = re.compile(r'content:\s*"\\(f[0-9a-f]{3})"|--pst-icon[\w-]*:\s*"\\(f[0-9a-f]{3})"')
# What nothing in the site loads: sources of minified files, translations, the icon fonts' scripts.
UNUSED = (
    "*.map", "*.LICENSE.txt", "*webpack-macros.html", "locales", "vendor", "fontawesome.js",
    "togglebutton.*", "design-tabs.js", "design-style*",
)  # fmt: skip


def statements(sheet):
    """The parts of a style sheet, in order: (what stands before the braces, or all, the block)."""
    start, depth, opened = 0, 0, 0
    for token in TOKEN.finditer(sheet):
        if token[0] == "{":
            depth += 1
            if depth == 1:
                opened = token.start()
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                yield sheet[start:opened].strip(), sheet[opened + 1 : token.start()]
                start = token.end()
        elif token[0] == ";" and depth == 0:
            yield sheet[start : token.end()].strip(), None
            start = token.end()


def selectors(prelude):
    """The selectors of a rule, parted at the commas outside of parentheses."""
    depth, start = 0, 0
    for i, character in enumerate(prelude):
        if character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
        elif character == "," and depth == 0:
            yield prelude[start:i].strip()
            start = i + 1
    yield prelude[start:].strip()


def is_used(selector, names):
    """Whether each class and id that the selector requires is one of the names."""
    required = re.sub(r":(?:not|is|where|has)\((?:[^()]|\([^()]*\))*\)", "", selector)
    required = re.sub(r"\[[^\]]*\]", "", required)
    return all(name.replace("\\", "") in names for name in NAME.findall(required))


def without_unused(sheet, names):
    """The style sheet without comments, and without rules for classes and ids that nothing has."""
    kept = []
    for prelude, block in statements(re.sub(r"/\*.*?\*/", "", sheet, flags=re.S)):
        if block is None:
            kept.append(prelude)
        elif re.match(r"@(media|supports|container|layer)", prelude):
            if inner := without_unused(block, names):
                kept.append(f"{prelude}{{{inner}}}")
        elif prelude.startswith("@"):
            kept.append(f"{prelude}{{{block}}}")
        elif used := [one for one in selectors(prelude) if is_used(one, names)]:
            kept.append(f"{','.join(used)}{{{block.strip()}}}")
    return "\n".join(kept)


def names_used(pages, scripts):
    """Each class and id of the pages, and each word of the scripts, which may set classes."""
    names, code = set(), list(scripts)
    for page in pages:
        for value in re.findall(r'\s(?:class|id)="([^"]*)"', page):
            names.update(value.split())
        code += re.findall(r"<script\b[^>]*>(.+?)</script>", page, re.S)
    for script in code:
        names.update(re.findall(r"[\w-]+", script))
    return names


def font_of_icons(font, sheets):
    """The icon font, cut down to the icons that the style sheets name, as the bytes of a WOFF."""
    from fontTools import subset

    logging.getLogger("fontTools").setLevel(logging.WARNING)
    icons = {int(a or b, 16) for sheet in sheets for a, b in ICON.findall(sheet)}
    options = subset.Options(flavor="woff", layout_features=[], name_IDs=[], notdef_outline=False)
    small = subset.load_font(str(font), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=icons)
    subsetter.subset(small)
    target = io.BytesIO()
    small.flavor = "woff"
    small.save(target)
    return target.getvalue()


def drawings(script):
    """Each icon of the theme's script of icons: {name: (width, height, path)}."""
    entry = re.compile(
        r'(?:"([\w-]+)"|\b([\w-]+)):\[(\d+),(\d+),\[([^\]]*)\],"[0-9a-f]+","([^"]+)"\]'
    )
    found = {}
    for quoted, bare, width, height, others, path in entry.findall(script):
        for name in (quoted or bare, *re.findall(r'"([\w-]+)"', others)):
            found[name] = (width, height, path)  # the solid style is the last of the script
    return found


def remove_unused(static: Path):
    """Delete the files that no page loads."""
    for pattern in UNUSED:
        for path in sorted(static.rglob(pattern), reverse=True):
            if "mathjax" in path.parts:
                continue
            if path.is_dir():
                for file in sorted(path.rglob("*"), reverse=True):
                    file.rmdir() if file.is_dir() else file.unlink()
                path.rmdir()
            else:
                path.unlink()


def finish(static: Path, pages):
    """Cut the style sheets and the icon font down to what the pages use, and delete the rest."""
    scripts = [path for path in static.rglob("*.js") if "mathjax" not in path.parts]
    kept = [path for path in scripts if not any(path.match(pattern) for pattern in UNUSED)]
    names = names_used(pages, (path.read_text(encoding="utf-8") for path in kept))
    sheets = {}
    for path in static.rglob("*.css"):
        if "mathjax" not in path.parts and "vendor" not in path.parts:
            sheet = path.read_text(encoding="utf-8")
            sheets[path] = sheet if path.name == "book.css" else without_unused(sheet, names)
    fonts = list(static.rglob("fa-solid-900.ttf"))
    if fonts:
        (static / "icons.woff").write_bytes(font_of_icons(fonts[0], sheets.values()))
    face = re.compile(r"@font-face\{[^}]*Font Awesome[^}]*\}")
    for path, sheet in sheets.items():
        solid = [rule for rule in face.findall(sheet) if "fa-solid-900" in rule]
        new = [re.sub(r"src:[^;}]*", 'src:url(../icons.woff) format("woff")', r) for r in solid]
        path.write_text("".join(new) + face.sub("", sheet), encoding="utf-8")
    remove_unused(static)
