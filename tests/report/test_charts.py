import re
import xml.etree.ElementTree as ET

import pytest
from pages import HOSTILE

from multicoco.report import charts
from multicoco.report.charts import Band, Curve, Point


def test_colours_and_fonts_are_the_pages():
    svg = charts.curves([Curve("a", [1, 2], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0])], "x", "y", [Band("b", 0, 1)])
    assert "var(--c0)" in svg and "var(--line)" in svg
    used = {*re.findall(r"#[0-9a-f]{6}\b", svg)} - {"#000000", "#ffffff"}
    assert not used and "DejaVu" not in svg and not re.search(r"<g id=|<\?xml|xlink", svg)


def test_names_are_texts_whatever_they_are():
    text = " ".join(text[:9] for text in HOSTILE.values() if "\ud83d" not in text)
    drawn = [
        charts.curves([Curve(text, [1], [1]), Curve("b", [1], [1])], "x", "y", [Band(text, 0, 1), Band("b", 1, 2)]),
        charts.rows(
            [Point(text, 0.5, (0.1, 0.9), (0.4, 0.6), text), Point("b", 0.1, series="c")], "x", (0, 1), mark=0.2
        ),
        charts.scatter([(text, 1, 1), ("b", 2, 2)], "x", "y"),
        charts.reliability([Curve(text, [0.5], [0.5], [0.4], [0.6])]),
    ]
    for svg in drawn:
        root = ET.fromstring(str(svg).replace('role="img"', 'role="img" xmlns="http://www.w3.org/2000/svg"'))
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
        assert len(svg) < 60_000


def test_a_long_curve_is_thinned_and_keeps_its_course():
    n = 50_000
    svg = charts.curves([Curve("a", range(n), [float(i) for i in range(n)])], "x", "y")
    assert len(svg) < 60_000
    assert charts.curves([Curve("a", range(n), [float(i) for i in range(n)])], "x", "y") == svg


@pytest.mark.parametrize(("values", "is_logarithmic"), [([1.0, 0.001], True), ([1.0, 0.5], False), ([1.0, 0.0], False)])
def test_what_spans_much_is_logarithmic(values, is_logarithmic):
    svg = charts.curves([Curve("a", [1, 2], values)], "x", "y")
    assert (">0.01<" in svg) is is_logarithmic
