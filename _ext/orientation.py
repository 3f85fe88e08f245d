"""Tell readers where they are: a chapter's opening and map, cards of chapters, glossary links.

All of it is taken from the chapters and from _toc.yml. The paragraph in which a chapter says what
it needs and what readers can do afterwards is moved up, below the title, with the map of the
Transformer beside it and the time that reading takes. The directives `transformer-map` and
`chapter-cards` draw the map and list the chapters of the page that they stand on, or of all parts
on the first page.
"""

import json
import re
from html import escape
from pathlib import Path

import diagram
from docutils import nodes
from docutils.parsers.rst import Directive

LABELS = ("You need", "Afterwards you can", "Where this is in the Transformer", "Reading time")
CHAPTER = re.compile(r"chapters/\d+_(?P<part>\w+)/(?P<name>index|\d+_\w+)")
# How long reading takes: the rule is in "How this book is built".
PACE = {"word": 1 / 150, "line": 1 / 15, "equation": 1 / 2}  # minutes
NOT_READ = {"hide-input", "hide-cell", "remove-cell", "remove-input"}
OPTIONAL = {"Exercises", "Sources", "For library users"}
NO_WORDS = re.compile(
    r"^\([\w-]+\)=$|^[:`]{3,}.*$|^:[\w-]+:.*$|\{[\w:]+\}(?=`)|<[\w-]+>(?=`)|https?://\S+", re.M
)
# Words of the glossary that mostly occur in another or in their everyday meaning.
COMMON = set(
    "attention query key value mask memory label labels split device gpu position bucket hook "
    "rank resume intervention influence hypothesis alignment parameter initialization batch loss "
    "sampling normalization gradient dataset token saturation recipe collective causality prompt "
    "checkpoint streaming entropy synchronization head encoder decoder transformer optimizer "
    "padding embedding vocabulary temperature latency".split()
)


class SiteMap(nodes.General, nodes.Element):
    """Where the map or the cards will stand, once all pages are known."""


class MapDirective(Directive):
    def run(self):
        return [SiteMap(kind="map")]


class CardsDirective(Directive):
    def run(self):
        return [SiteMap(kind="cards")]


# One chapter


def reading_minutes(cells):
    """How long it takes to read the text and the code in view, in minutes, to the nearest five."""
    counts = dict.fromkeys(PACE, 0)
    is_read = True
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if heading := re.search(r"^## (.+?)\s*$", text, re.M):
                is_read = heading[1] not in OPTIONAL
            text, n_equations = re.subn(r"\$\$.+?\$\$(\s*\([\w-]+\))?", "", text, flags=re.S)
            text = NO_WORDS.sub("", re.sub(r"\$[^$]+\$", "x", text))
            found = {"equation": n_equations, "word": len(re.findall(r"\w[\w'’.,-]*", text))}
        elif NOT_READ & {*cell["metadata"].get("tags", [])}:
            found = {}
        else:
            found = {"line": sum(bool(line.strip()) for line in text.splitlines())}
        if is_read:
            counts = {name: counts[name] + found.get(name, 0) for name in counts}
    total = sum(PACE[name] * count for name, count in counts.items())
    return max(5, 5 * round(total / 5))


def say_minutes(n):
    return nodes.paragraph("", f"about {n} minutes, without the exercises.")


def sentence(children):
    """Text with its inline markup, without the space and punctuation around it."""
    paragraph = nodes.paragraph("", "", *children)
    first, last = paragraph[0], paragraph[-1]
    if isinstance(first, nodes.Text):
        paragraph[0] = nodes.Text(first.lstrip(" :\n"))
    if isinstance(last, nodes.Text):
        paragraph[-1] = nodes.Text(paragraph[-1].rstrip())
    return paragraph


def labelled(doctree):
    """{label: text} of a page's opening; its paragraphs are taken out of the page."""
    found = {}
    for paragraph in list(doctree.findall(nodes.paragraph)):
        children = [child for child in paragraph.children if child.astext()]
        first = children[0] if children else None
        if not (isinstance(first, nodes.strong) and first.astext().rstrip(":") in LABELS):
            continue
        label, groups = "", {}
        for child in children:
            text = child.astext().rstrip(":")
            if isinstance(child, nodes.strong) and text in LABELS:
                label = text
            else:
                groups.setdefault(label, []).append(child)
        found |= {label: sentence(group) for label, group in groups.items() if label not in found}
        paragraph.parent.remove(paragraph)
    return found


def read_opening(app, doctree):
    """Move the opening of a chapter below its title, and remember what the cards will say."""
    match = CHAPTER.fullmatch(app.env.docname)
    section = next(doctree.findall(nodes.section), None)
    if not match or section is None:
        return
    name = match["name"] if match["name"] != "index" else match["part"]
    texts = labelled(doctree)
    place = section.first_child_matching_class(nodes.title) + 1
    thesis = section[place] if isinstance(section[place], nodes.block_quote) else None
    if thesis is None:  # a part asks its question in its first paragraph
        first = section[place].astext() if len(section) > place else ""
        said = first.partition("?")[0].strip() + "?" if "?" in first else ""
    else:
        thesis["classes"].append("thesis")
        said, place = thesis.astext(), place + 1
    minutes = 0
    if match["name"] != "index":
        notebook = json.loads(Path(app.env.doc2path(app.env.docname)).read_text("utf-8"))
        minutes = reading_minutes(notebook["cells"])
        texts["Reading time"] = say_minutes(minutes)
    app.env.book_openings[app.env.docname] = {
        "topic": re.sub(r"^\d+_", "", name), "part": match["part"], "said": " ".join(said.split()),
        "minutes": minutes, "is_part": match["name"] == "index",
    }  # fmt: skip
    if match["name"] == "index" and not texts:
        return
    box = nodes.container(classes=["opening"])
    if match["name"] == "index":  # its map is large, and its question comes first
        place += isinstance(section[place], nodes.paragraph)
    else:
        box += SiteMap(kind="place")
    for label in LABELS:
        if label in texts:
            texts[label].insert(0, nodes.strong("", f"{label}: "))
            box += texts[label]
    section.insert(place, box)


# All chapters


def parts(env):
    """[(page of a part, its chapters)] in the order of _toc.yml."""
    included = env.toctree_includes
    for page in included.get(env.config.root_doc, []):
        if (opening := env.book_openings.get(page)) and opening["is_part"]:
            yield page, [p for p in included.get(page, []) if p in env.book_openings]


def number(env, page):
    """1.3, as the table of contents numbers it."""
    numbers = env.toc_secnumbers.get(page, {})
    return ".".join(str(n) for n in numbers.get("", next(iter(numbers.values()), ())))


def minutes(env, page, chapters=()):
    total = env.book_openings[page]["minutes"]
    total += sum(env.book_openings[p]["minutes"] for p in chapters)
    if total >= 90:
        return f"about {total / 60:.0f} hours"
    return f"{total} min" if total else ""


def lit(env, page):
    """The boxes of a page; of a part, those of its chapters."""
    chapters = dict(parts(env)).get(page)
    if chapters is None:
        return diagram.lit_boxes(env.book_openings[page]["topic"])
    return set().union(*(diagram.lit_boxes(env.book_openings[p]["topic"]) for p in chapters))


def box_links(app, page):
    """{box: (address, title)} of the first chapter of each box that the book has."""
    env = app.env
    pages = {o["topic"]: p for p, o in env.book_openings.items() if not o["is_part"]}
    for name, box in diagram.BOXES.items():
        target = next((pages[topic] for topic in box.topics if topic in pages), None)
        if target:
            address = app.builder.get_relative_uri(page, target)
            yield name, (address, f"{number(env, target)} {env.titles[target].astext()}")


def draw_map(app, page):
    shown = lit(app.env, page) if page in app.env.book_openings else ()
    return diagram.draw_linked(shown, dict(box_links(app, page)))


def draw_place(app, page):
    """The small map, which leads to the large one."""
    address = app.builder.get_relative_uri(page, app.config.root_doc) + "#map"
    small = diagram.draw(lit(app.env, page), small=True)
    label = "Where this is in the Transformer: to the map"
    return f'<a class="place" href="{address}" aria-label="{label}" title="{label}">{small}</a>'


def draw_cards(app, page):
    env = app.env
    every = dict(parts(env))
    lines = []
    if page not in every:
        times = [env.book_openings[p]["minutes"] for chapters in every.values() for p in chapters]
        hours = f"about {sum(times) / 60:.0f} hours of reading without the exercises"
        say = f"{len(times)} chapters, {hours}."
        lines += [f'<p class="cards-sum">{say}</p>']
    for part, chapters in every.items():
        if page in every and page != part:
            continue
        if page not in every:
            address = app.builder.get_relative_uri(page, part)
            title = f"{number(env, part)} {escape(env.titles[part].astext())}"
            lines += [
                f'<div class="cards-part"><p class="cards-title"><a href="{address}">{title}</a>'
                f'<span class="minutes">{minutes(env, part, chapters)}</span></p>'
                f'<p class="cards-question">{escape(env.book_openings[part]["said"])}</p></div>'
            ]
        lines += ['<ul class="cards">']
        for chapter in chapters:
            address = app.builder.get_relative_uri(page, chapter)
            lines += [
                f'<li><a href="{address}"><span class="number">{number(env, chapter)}</span> '
                f"{escape(env.titles[chapter].astext())}</a>"
                f'<span class="minutes">{minutes(env, chapter)}</span>'
                f"<p>{escape(env.book_openings[chapter]['said'])}</p></li>"
            ]
        lines += ["</ul>"]
    return "\n".join(lines)


DRAWN = {"map": draw_map, "place": draw_place, "cards": draw_cards}


def place_pictures(app, doctree, page):
    """Draw what the placeholders stand for; books on paper go without."""
    for node in list(doctree.findall(SiteMap)):
        if app.builder.name in ("html", "dirhtml"):
            node.replace_self(nodes.raw("", DRAWN[node["kind"]](app, page), format="html"))
        else:
            node.parent.remove(node)


# The glossary


def plural(term):
    return r"\s+".join(re.escape(word) for word in term.split()) + "(?:s|es)?"


def read_glossary(env):
    """{term: (page, anchor, meaning, page that explains it)}, English terms only."""
    objects, labels = env.domains["std"].objects, env.domains["std"].labels
    terms = {n: place for (kind, n), place in objects.items() if kind == "term" and n.isascii()}
    if not terms:
        return {}
    page = next(iter(terms.values()))[0]
    meanings = {}
    for item in env.get_doctree(page).findall(nodes.definition_list_item):
        paragraph = next(item.findall(nodes.paragraph), None)
        references = [] if paragraph is None else list(paragraph.findall())
        target = [n["reftarget"] for n in references if "reftarget" in getattr(n, "attributes", {})]
        explained = labels.get(target[-1], ("", "", ""))[0] if target else ""
        text = "" if paragraph is None else paragraph.astext()
        for term in item.findall(nodes.term):
            meanings.update((anchor, (text, explained)) for anchor in term["ids"])
    return {
        term: (page, anchor, *meanings[anchor])
        for term, (page, anchor) in terms.items()
        if anchor in meanings and term.lower() not in COMMON
    }


def in_prose(text):
    """Whether a piece of text stands in a paragraph, outside links, code, titles and captions."""
    node, paragraph = text.parent, False
    while node is not None:
        if isinstance(node, nodes.reference | nodes.literal | nodes.math | nodes.strong | nodes.raw
                      | nodes.TextElement) and not isinstance(
                          node, nodes.paragraph | nodes.emphasis):  # fmt: skip
            return False
        if isinstance(node, nodes.figure | nodes.table | nodes.definition_list | nodes.block_quote):
            return False
        if "opening" in getattr(node, "attributes", {}).get("classes", []):
            return False
        paragraph |= isinstance(node, nodes.paragraph)
        node = node.parent
    return paragraph


def link_terms(app, doctree, page):
    """Link the first use of each term of the glossary; its meaning is the link's title."""
    if not page.startswith("chapters/") or app.builder.name not in ("html", "dirhtml"):
        return
    if not hasattr(app.env, "book_glossary"):
        app.env.book_glossary = read_glossary(app.env)
    terms = {
        term.lower(): (term, *entry)
        for term, entry in app.env.book_glossary.items()
        if page not in (entry[0], entry[3])
    }
    if not terms or not (page in app.env.book_openings or "nbformat" in str(app.env.metadata)):
        return
    longest = sorted(terms, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(plural, longest))})(?![\w-])", re.I)
    open_terms = dict(terms)
    for text in list(doctree.findall(nodes.Text)):
        if in_prose(text):
            pieces = link_first(app, page, text.astext(), pattern, open_terms)
            if len(pieces) > 1:
                text.parent.replace(text, pieces)


def find_term(used, terms):
    used = " ".join(used.lower().split())
    return next((t for t in (used, used[:-1], used[:-2]) if t in terms), None)


def link_first(app, page, text, pattern, open_terms):
    """The text in pieces, with a link for each term that was still open; it is closed."""
    pieces, done = [], 0
    for match in pattern.finditer(text):
        name = find_term(match[0], open_terms)
        if name is None:
            continue
        term, target, anchor, meaning, _ = open_terms.pop(name)
        if term.isupper() and not match[0].startswith(term):
            continue
        address = f"{app.builder.get_relative_uri(page, target)}#{anchor}"
        link = nodes.reference(
            "", match[0], internal=True, refuri=address, reftitle=short(meaning), classes=["term"]
        )
        pieces += [nodes.Text(text[done : match.start()]), link]
        done = match.end()
    return [*pieces, nodes.Text(text[done:])]


def short(meaning, limit=240):
    """The first sentences of a meaning, without the chapter named at its end."""
    sentences = re.split(r"(?<=[.!?])\s+", meaning)
    said = sentences[0]
    for sentence in sentences[1:-1]:
        if len(said) + len(sentence) < limit:
            said += " " + sentence
        else:
            break
    return " ".join(said.split())


# Sphinx


def start(app, *_):
    if not hasattr(app.env, "book_openings"):
        app.env.book_openings = {}


def purge(app, env, page):
    getattr(env, "book_openings", {}).pop(page, None)


def setup(app):
    app.add_node(SiteMap)
    app.add_directive("transformer-map", MapDirective)
    app.add_directive("chapter-cards", CardsDirective)
    app.connect("builder-inited", start)
    app.connect("env-purge-doc", purge)
    app.connect("doctree-read", read_opening)
    app.connect("doctree-resolved", place_pictures)
    app.connect("doctree-resolved", link_terms)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}
