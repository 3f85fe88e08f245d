"""What the first page shows, computed while the site is built.

`translations` translates the sentences that it holds with a shipped model and draws what the
decoder attends to. `failing-check` runs the code that it holds and shows the properties of
attention that the checker found to fail. Neither needs a script in the page.
"""

import contextlib
import io
from html import escape

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.directives.code import CodeBlock

LAYER = -2  # as in the picture of README: the third of four decoder layers
SHOWN = 0.05  # a smaller weight draws no line
ROW, TOP, WIDTH = 27, 34, 330
LEFT, RIGHT = 142, 202  # where the lines begin and end


def words(tokens):
    """[(word, the indices of its tokens)]: a token that begins with a space begins a word."""
    found = []
    for i, token in enumerate(tokens):
        if token.startswith(" ") or not found or token == "</s>" or not token.isalnum():
            found.append((token.strip(), [i]))
        else:
            found[-1] = found[-1][0] + token, [*found[-1][1], i]
    return found


def alignment(translator, source, translation):
    """(words of the translation, words of the source, weights), the end tokens included.

    A source word of several tokens gets the sum of their weights; a written word the mean.
    """
    weights, rows, columns = translator.alignment(source, translation, layer=LAYER)
    written, read = words(rows), words(columns)
    table = [[float(weights[t][:, s].sum(dim=-1).mean()) for _, s in read] for _, t in written]
    end = {"</s>": "end"}
    return [end.get(w, w) for w, _ in written], [end.get(w, w) for w, _ in read], table


def draw_alignment(written, read, table):
    """An SVG: the source on the left, the translation on the right, a line for each weight.

    A word of the translation can be pointed at or reached by keyboard; then its weights stand out.
    """
    height = TOP + ROW * max(len(written), len(read)) + 4
    place = [TOP + ROW * i + ROW / 2 for i in range(max(len(written), len(read)))]
    lines = [
        f'<text class="head" x="{LEFT - 8}" y="18" text-anchor="end">German</text>',
        f'<text class="head" x="{RIGHT + 8}" y="18">English</text>',
    ]
    lines += [
        f'<text x="{LEFT - 8}" y="{y + 5:g}" text-anchor="end" lang="de">{escape(word)}</text>'
        for word, y in zip(read, place, strict=False)
    ]
    for word, weights, y in zip(written, table, place, strict=False):
        seen = [(w, r, p) for w, r, p in zip(weights, read, place, strict=False) if w >= SHOWN]
        said = ", ".join(f"{w:.2f} to {r}" for w, r, _ in sorted(seen, reverse=True))
        parts = [
            f'<line x1="{LEFT}" y1="{p:g}" x2="{RIGHT}" y2="{y:g}" style="--w:{w:.2f}"/>'
            f'<rect class="read" x="34" y="{p - 12:g}" width="{LEFT - 36}" height="24" rx="4" '
            f'style="--w:{w:.2f}"/><text class="weight" x="2" y="{p + 4.5:g}">{w:.2f}</text>'
            for w, _, p in seen
        ]
        lines.append(
            f'<g class="written" tabindex="0" role="img" '
            f'aria-label="{escape(word)} attends: {said}">'
            f'<rect class="hit" x="{RIGHT}" y="{y - 13:g}" width="{WIDTH - RIGHT}" height="26" '
            f'rx="4"/>{"".join(parts)}<text x="{RIGHT + 8}" y="{y + 5:g}">{escape(word)}</text></g>'
        )
    name = "Which German words the model attends to when it writes each English word"
    size = f'viewBox="0 0 {WIDTH} {height:g}"'
    return f'<svg class="alignment" {size} role="group" aria-label="{name}">{"".join(lines)}</svg>'


def draw_translations(model, sentences):
    from transformer_lib import Translator

    translator = Translator.load(model)
    translations = translator(sentences)
    choices, shown = [], []
    for i, (source, translation) in enumerate(zip(sentences, translations, strict=True)):
        checked = " checked" if i == 0 else ""
        choices.append(
            f'<label><input type="radio" name="sentence" id="sentence-{i}"{checked}> '
            f'<span lang="de">{escape(source)}</span></label>'
        )
        picture = draw_alignment(*alignment(translator, source, translation))
        shown.append(
            f'<div class="translation" id="translation-{i}"><p class="said">'
            f'<span class="from" lang="de">{escape(source)}</span> <span class="arrow">→</span> '
            f"<strong>{escape(translation)}</strong></p>{picture}</div>"
        )
    legend = "Choose a German sentence"
    how = (
        "Tap an English word, point at it, or reach it with the Tab key: its lines and numbers "
        "show how much the model attended to each German word when it wrote this word."
    )
    return (
        f'<div class="translations"><fieldset><legend>{legend}</legend>{"".join(choices)}'
        f'</fieldset><div class="shown">{"".join(shown)}</div><p class="how">{how}</p></div>'
    )


def failing(code):
    """What the checker says of the properties that fail, from a run of the code."""
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "<first page>", "exec"), names)
    report = names["report"]
    rows = "".join(
        f'<tr><th scope="row">{escape(bad.property)}</th><td class="verdict">{bad.verdict}</td>'
        f"<td>{escape(bad.where)}</td><td>{escape(bad.hint)}</td></tr>"
        for bad in report.failures
    )
    held = sum(result.verdict == "pass" for result in report)
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("property", "verdict", "where", "hint"))
    caption = f"The rows of the report that fail; {held} other properties hold"
    return (
        f'<div class="failing"><table class="table"><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


class TranslationsDirective(Directive):
    required_arguments = 1
    has_content = True

    def run(self):
        sentences = [line.strip() for line in self.content if line.strip()]
        return [nodes.raw("", draw_translations(self.arguments[0], sentences), format="html")]


class FailingCheckDirective(CodeBlock):
    required_arguments = 0

    def run(self):
        self.arguments = ["python"]
        table = nodes.raw("", failing("\n".join(self.content)), format="html")
        return [*super().run(), table]


def only_in_pages(app, doctree, page):
    """Books on paper go without what has to be chosen or pointed at."""
    if app.builder.name not in ("html", "dirhtml"):
        for node in list(doctree.findall(nodes.raw)):
            if 'class="translations"' in node.astext():
                node.parent.remove(node)


def setup(app):
    app.add_directive("translations", TranslationsDirective)
    app.add_directive("failing-check", FailingCheckDirective)
    app.connect("doctree-resolved", only_in_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
