"""What search engines, previews of links and lost readers see of the site."""

import re
from html import escape, unescape
from pathlib import Path
from textwrap import fill
from xml.sax.saxutils import escape as xml

UNLISTED = {"genindex", "py-modindex", "search", "404"}
WIDTH, HEIGHT = 1200, 630  # the size of card that other sites crop least
TINTS = {"1": "#0072B2", "2": "#D55E00", "3": "#009E73", "4": "#AA4499"}


def address_of_pages(repository):
    """Where GitHub Pages serves the site of a repository."""
    owner, name = repository.rstrip("/").rsplit("/", 2)[1:]
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def plain(html):
    """HTML as one line of text, mathematics and code without their marks."""
    html = re.sub(r'<a class="headerlink".*?</a>', "", html, flags=re.S)
    text = unescape(re.sub(r"<[^>]*>", "", html)).replace("\\(", "").replace("\\)", "")
    return " ".join(text.split())


def title_of(page):
    found = re.search(r"<article.*?<h1\b[^>]*>(.*?)</h1>", page, re.S)
    return plain(found[1]) if found else ""


def description_of(page):
    """The thesis of a chapter, or the first paragraph of another page, as one or two sentences."""
    article = page.partition("<article")[2].partition("</article>")[0]
    found = re.search(r"</h1>\s*<blockquote>(.*?)</blockquote>", article, re.S)
    found = found or re.search(r"</h1>.*?<p>(.*?)</p>", article, re.S)
    text = plain(found[1]) if found else ""
    if len(text) > 280:
        text = text[:280].rpartition(". ")[0] + "." if ". " in text[:280] else text[:279] + "…"
    return text


def tags(name, page, site):
    """The tags that describe a page: to search engines, and with an address to other sites."""
    title, description = title_of(page) or site["title"], description_of(page) or site["title"]
    lines = [f'<meta name="description" content="{escape(description)}" />']
    if name in UNLISTED:
        lines.append('<meta name="robots" content="noindex" />')
    elif site["address"]:
        pairs = {
            "og:type": "article",
            "og:site_name": site["title"],
            "og:title": title,
            "og:description": description,
            "og:url": site["address"] + ("" if name == "index" else f"{name}.html"),
            "og:image": f"{site['address']}_images/{card_name(name)}",
            "og:image:width": WIDTH,
            "og:image:height": HEIGHT,
            "og:image:alt": f"{site['title']}: {title}",
        }
        lines += [f'<meta property="{k}" content="{escape(str(v))}" />' for k, v in pairs.items()]
        lines.append('<meta name="twitter:card" content="summary_large_image" />')
    return "".join(f"    {line}\n" for line in lines)


def card_name(name):
    return f"card-{name.removeprefix('chapters/').replace('/', '-')}.png"


def draw_card(target, name, title, description, book):
    """A picture of the title and the thesis, for other sites that link here."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number = re.match(r"(?:chapters/)?(\d)_", name)
    tint = TINTS.get(number[1] if number else "", "#333333")
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.add_artist(_bar(tint))
    say = {"family": "DejaVu Sans", "parse_math": False, "ha": "left"}
    figure.text(0.07, 0.86, book, size=24, color="#333333", va="center", **say)
    figure.text(0.07, 0.62, fill(title, 28), size=38, weight="bold", color=tint, va="center", **say)
    short = fill(description, 62).splitlines()
    short = "\n".join(short[:4] if len(short) <= 4 else [*short[:3], short[3][:58] + " …"])
    figure.text(0.07, 0.38, short, size=24, color="#222222", va="top", linespacing=1.4, **say)
    canvas.print_png(target, metadata={"Software": None})


def _bar(tint):
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), 0.025, 1, facecolor=tint, edgecolor="none")


def lost(site):
    """The page for an address that does not exist, which a host may serve for any depth of path."""
    home = site["address"] or "/"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="robots" content="noindex" />
<link rel="icon" href="data:," />
<title>Page not found &#8212; {escape(site["title"])}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 36rem; margin: 15vh auto; padding: 0 1.2rem; }}
body {{ font: 1.1rem/1.6 system-ui, sans-serif; }}
</style>
</head>
<body>
<main>
<h1>This page does not exist</h1>
<p>The address may be mistyped, or the page may have another name now.</p>
<ul>
<li><a href="{home}index.html">{escape(site["title"])}: all chapters</a></li>
<li><a href="{home}search.html">Search the book</a></li>
<li><a href="{home}genindex.html">The index</a></li>
</ul>
</main>
</body>
</html>
"""


def reading_order(app):
    """The pages in the order of the table of contents, then those that it does not list."""
    includes, order = app.env.toctree_includes, []

    def visit(name):
        if name not in order:
            order.append(name)
            for child in includes.get(name, ()):
                visit(child)

    visit(app.config.root_doc)
    return order + sorted(app.env.found_docs - {*order})


def overview(order, pages, site):
    """llms.txt: titles, descriptions and addresses of its pages, for programs."""
    lines = [f"# {site['title']}", "", f"> {description_of(pages[order[0]])}", "", "## Pages", ""]
    for name in order[1:]:
        page = pages[name]
        link = f"{site['address']}{name}.html"
        lines.append(f"- [{title_of(page)}]({link}): {description_of(page)}")
    return "\n".join(lines) + "\n"


def finish(app, pages):
    """Describe every page, in place, and write the files about the whole site."""
    address = app.config.html_baseurl
    site = {"title": app.config.html_title or app.config.project, "address": address}
    folder = Path(app.outdir)
    for name, page in pages.items():
        pages[name] = page.replace("</head>", tags(name, page, site) + "  </head>", 1)
    order = [name for name in reading_order(app) if name in pages]
    (folder / "llms.txt").write_text(overview(order, pages, site), encoding="utf-8")
    (folder / "404.html").write_text(lost(site), encoding="utf-8")
    if address:
        urls = (address + ("" if name == "index" else f"{name}.html") for name in order)
        entries = "".join(f"<url><loc>{xml(url)}</loc></url>\n" for url in urls)
        (folder / "sitemap.xml").write_text(
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{entries}</urlset>\n',
            encoding="utf-8",
        )
        (folder / "robots.txt").write_text(
            f"User-agent: *\nAllow: /\nSitemap: {address}sitemap.xml\n", encoding="utf-8"
        )
        (folder / "_images").mkdir(exist_ok=True)
        for name in order:
            page = pages[name]
            draw_card(folder / "_images" / card_name(name), name, title_of(page),
                      description_of(page), site["title"])  # fmt: skip
