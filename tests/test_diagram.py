"""The map of the Transformer: one source for the first page, the parts and the chapters."""

import importlib.util
import re
import sys
from xml.etree import ElementTree

import pytest
from notebooks import ROOT, contents, topic

CHAPTERS = [page for page in contents() if re.match(r"chapters/\d_\w+/\d+_", page)]


def extension(name):
    """A module of _ext/, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "_ext" / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


diagram = extension("diagram")


@pytest.mark.parametrize("page", CHAPTERS)
def test_map_lights_some_boxes_for_each_chapter(page):
    assert set() < diagram.lit_boxes(topic(page)) < set(diagram.BOXES)


def test_map_lights_the_model_for_a_chapter_that_no_box_names():
    assert diagram.lit_boxes("of_tomorrow") == diagram.MODEL > {"self", "cross", "logits"}
    assert not diagram.MODEL & {"query", "loss", "choice"}


def test_map_leads_from_each_box_to_a_chapter_of_the_book():
    topics = {topic(page) for page in CHAPTERS}
    assert [name for name, box in diagram.BOXES.items() if not topics & set(box.topics)] == []


def test_map_leads_from_norms_and_stacks_to_the_chapter_on_layers():
    boxes = [diagram.BOXES[name] for name in ("encoder", "decoder")]
    boxes += [box for box in diagram.BOXES.values() if box.text == "add & norm"]
    assert len(boxes) == 2 + 5 and {box.topics[0] for box in boxes} == {"layers"}


def test_map_arrows_end_at_boxes():
    edges = {y for box in diagram.BOXES.values() for y in (box.y, box.y + box.height)}
    straight = (re.fullmatch(r"M\d+ (\d+)V(\d+)", path) for path in diagram.ARROWS)
    ends = [float(y) for match in straight if match for y in match.groups()]
    assert len(ends) > 30 and set(ends) - edges == set()


def test_map_boxes_are_large_enough_for_a_finger():
    scale = 358 / diagram.WIDTH  # on a screen of 390 pixels
    boxes = diagram.BOXES.values()
    assert min(scale * min(box.width, box.height) for box in boxes) >= 24
    for frame in (box for box in boxes if box.kind == "frame"):  # its title is not covered
        inside = [box.y for box in boxes if frame.y < box.y < frame.y + frame.height
                  and frame.x < box.x < frame.x + frame.width]  # fmt: skip
        assert scale * (min(inside) - frame.y) >= 24


@pytest.mark.parametrize("small", [False, True])
def test_map_is_well_formed_and_light(small):
    text = diagram.draw({"self"}, small=small)
    tree = ElementTree.fromstring(text)
    assert len(tree.findall(".//rect")) == len(diagram.BOXES)
    assert len(tree.findall(".//text")) == (0 if small else len(diagram.BOXES))
    assert [r.get("class") for r in tree.iter("rect") if "lit" in r.get("class")] == ["box lit"]
    assert len(text) < (4_000 if small else 8_000)
    assert "#" not in re.sub(r"--role:#\w{6}", "", text)  # currentColor, but for three roles


def test_map_links_lie_over_their_boxes_and_above_frames():
    links = {name: (f"{name}.html?x=1&y=2", f"1.1 <{name}>") for name in diagram.BOXES}
    tree = ElementTree.fromstring(diagram.draw_linked((), links))
    found = tree.findall("a")
    frames = [name for name, box in diagram.BOXES.items() if box.kind == "frame"]
    names = [a.get("href").removesuffix(".html?x=1&y=2") for a in found]
    assert set(names) == set(diagram.BOXES) and set(names[: len(frames)]) == set(frames)
    for name, a in zip(names, found, strict=True):
        box = diagram.BOXES[name]
        assert a.get("title") == f"1.1 <{name}>"
        assert a.get("aria-label") == f"{box.text}: 1.1 <{name}>"
        left, top, *_ = (float(n) for n in re.findall(r":([\d.]+)%", a.get("style")))
        assert left == pytest.approx(100 * box.x / diagram.WIDTH, abs=0.01)
        assert top == pytest.approx(100 * box.y / diagram.HEIGHT, abs=0.01)


def test_map_colors_are_those_of_the_plots():
    from transformer_lib import plots

    source = (ROOT / "transformer_lib" / "plots.py").read_text()
    for color in (diagram.QUERY, diagram.KEY, diagram.VALUE):
        assert color in source, plots.__name__


def test_map_words_fit_their_boxes_and_boxes_do_not_overlap():
    boxes = list(diagram.BOXES.items())
    for name, box in boxes:
        assert 6.6 * len(box.text) < box.width + 2, name  # 12.5 px, about 6.4 px a letter
        assert 0 < box.x and box.x + box.width < diagram.WIDTH
        assert 0 < box.y and box.y + box.height < diagram.HEIGHT
    for i, (name, a) in enumerate(boxes):
        for other, b in boxes[:i]:
            beside = a.x >= b.x + b.width or b.x >= a.x + a.width
            apart = a.y >= b.y + b.height or b.y >= a.y + a.height
            assert beside or apart or "frame" in (a.kind, b.kind), (name, other)


@pytest.mark.parametrize(
    "path, wanted",
    [
        ("M10 20V30", "M7 25L10 30L13 25"),
        ("M10 20H30", "M25 17L30 20L25 23"),
        ("M30 9V20H10", "M15 23L10 20L15 17"),
    ],
)
def test_arrow_heads_point_along_the_last_line(path, wanted):
    found = diagram.head(path)
    points = set(re.findall(r"[\d.]+ [\d.]+", found))
    assert points == set(re.findall(r"[\d.]+ [\d.]+", wanted))
    assert found.split("L")[1] == wanted.split("L")[1]
