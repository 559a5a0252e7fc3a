import re
from html.parser import HTMLParser

import pytest

from tinycomp import te
from tinycomp.testing.schedule_fuzz import draw_case, random_schedule
from tinycomp.visualize.html import schedule_html
from tinycomp.visualize.loops import Relations, Snapshot
from tinycomp.visualize.svg import Box, Edge, drawing, layers_of


class Checker(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    VOID = ("meta", "input", "rect", "path")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def matmul():
    a, b = te.placeholder((64, 32), name="A"), te.placeholder((32, 64), name="B<T>")
    k = te.reduce_axis((0, 32), "k")
    c = te.compute((64, 64), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    d = te.compute((64, 64), lambda i, j: te.maximum(c[i, j], 0.0), name="D")
    return c, d, te.create_schedule(d)


def test_page_shows_every_step_and_needs_nothing_else():
    c, d, s = matmul()
    outer, _ = s[d].split("i", factor=8)
    s[d].parallel(outer)
    s[d].vectorize("j")
    s[c].compute_at(s[d], outer)
    page = schedule_html(s)
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert not checker.links
    assert "http" not in page.replace("http://www.w3.org", "")
    panels = [a for t, a in checker.seen if t == "section"]
    assert len(panels) == 1 + len(s.steps)
    assert "at i.outer of D" in page
    assert "B&lt;T&gt;" in page
    assert "B<T>" not in page
    assert s.to_html() == page


def test_changed_lines_are_marked():
    _, d, s = matmul()
    s[d].vectorize("j")
    last = schedule_html(s).split('<section class="panel" id="step1">')[1]
    changed = re.findall(r'class="line changed">(.*?)</span></span>', last)
    assert len(changed) == 1
    assert "vectorized(64)" in changed[0]


def test_relations_follow_splits_and_fusions():
    _, d, s = matmul()
    s[d].split("i", factor=8)
    s[d].fuse("i.inner", "j")
    relations = Relations()
    snapshots = [Snapshot(f) for f in s.snapshots()]
    relations.add(snapshots[0])
    for step, after in zip(s.steps, snapshots[1:], strict=True):
        relations.step(step.stage, after)
    edges = {(e.source, e.target) for e in relations.edges["D"]}
    fused = s[d].axis_names[-1]
    assert edges == {("i", "i.outer"), ("i", "i.inner"), ("i.inner", fused), ("j", fused)}
    assert not relations.edges["C"]


def test_reduction_axes_have_their_colour():
    *_, s = matmul()
    page = schedule_html(s)
    assert '<b class="var reduce">k</b>' in page
    assert '<b class="var spatial">j</b>' in page


def test_layers_and_boxes_do_not_overlap():
    keys, edges = ["a", "b", "c", "d"], [Edge("a", "b"), Edge("b", "d"), Edge("a", "d")]
    assert layers_of(keys, edges) == {"a": 0, "b": 1, "c": 0, "d": 2}
    picture = drawing([Box(k, (k,), "stage") for k in keys], edges, {}, "title")
    pattern = r'<rect x="([\d.]+)" y="([\d.]+)" rx="5" width="([\d.]+)" height="([\d.]+)"'
    places = [tuple(float(v) for v in m) for m in re.findall(pattern, picture)]
    assert len(places) == 4
    for i, (x, y, w, h) in enumerate(places):
        for x2, y2, w2, h2 in places[:i]:
            assert x >= x2 + w2 or x2 >= x + w or y >= y2 + h2 or y2 >= y + h


def test_axes_of_a_name_that_was_used_before():
    """compute_at names its loops as the axes were named before they were fused."""
    a = te.placeholder((8, 6), name="A")
    b = te.compute((8, 6), lambda i, j: a[i, j] * 2.0, name="B")
    c = te.compute((8, 6), lambda i, j: b[i, j] + 1.0, name="C")
    s = te.create_schedule(c)
    s[b].fuse("i", "j")
    s[b].compute_at(s[c], "j")
    s[b].split(s[b].axis_names[-1], factor=1)
    relations = Relations()
    first, *later = [Snapshot(f) for f in s.snapshots()]
    relations.add(first)
    for step, after in zip(s.steps, later, strict=True):
        relations.step(step.stage, after)
    order = list(relations.nodes["B"])
    assert "i (2)" in order
    assert all(order.index(e.source) < order.index(e.target) for e in relations.edges["B"])
    checker = Checker()
    checker.feed(schedule_html(s))
    assert not checker.open


@pytest.mark.parametrize("seed", range(40))
def test_pages_of_random_schedules(seed):
    schedule = random_schedule(draw_case(seed)).schedule
    checker = Checker()
    checker.feed(schedule.to_html())
    assert not checker.open
    assert sum(t == "section" for t, _ in checker.seen) == 1 + len(schedule.steps)
