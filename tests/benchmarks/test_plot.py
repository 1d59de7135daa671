from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.plot import Curve, write_curves

SVG = "{http://www.w3.org/2000/svg}"


def test_curves_rise_where_values_do_and_every_name_stands_in_the_picture(tmp_path: Path) -> None:
    curves = [Curve("p50 <quiet>", [(100, 1.0), (1_000, 2.0)]), Curve("p99", [(100, 5.0), (1_000, 50.0)], True)]
    root = ElementTree.parse(write_curves(tmp_path / "a" / "x.svg", "Title", "rate", "ms", curves)).getroot()
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"Title", "rate", "ms", "p50 <quiet>", "p99", "100", "1,000", "1", "50"} <= texts
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    for points in lines:
        (x1, y1), (x2, y2) = [tuple(map(float, point.split(","))) for point in points]
        assert x1 < x2 and y1 > y2
    rise = [float(points[0].split(",")[1]) - float(points[1].split(",")[1]) for points in lines]
    assert rise[1] / rise[0] == pytest.approx(3.32, abs=0.05)  # log 10 against log 2
