"""Pictures and polygons, written slab by slab, are those of the whole image."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter, label

from medseg.errors import UserError
from medseg.inference import Trained, View
from medseg.look import BRIGHT
from medseg.predict import polygons
from medseg.predict.png import PngWriter
from medseg.predict.polygons import Tracer, outlines
from medseg.predict.writers import KINDS, Part, open_writer

TRAINED = Trained(
    torch.nn.Identity(),
    Path("m.safetensors"),
    "m",
    3,
    ("back", "cell", "köře"),
    (0, 128, 255),
    View(32),
)


def drawn(height, width, classes=3, seed=0, smooth: float = 3):
    fields = np.random.default_rng(seed).standard_normal((classes, height, width))
    return gaussian_filter(fields, (0, smooth, smooth)).argmax(0).astype(np.uint8)


def blocks(values, sizes=(1, 5, 3, 8)):
    start = 0
    while start < len(values):
        size = sizes[start % len(sizes)]
        yield start, values[start : start + size]
        start += size


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (17, 23), (40, 1)])
def test_png_is_read_as_it_was_written(shape, channels, dtype, tmp_path):
    shape = shape if channels == 1 else (*shape, channels)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    file = io.BytesIO()
    writer = PngWriter(file, shape[0], shape[1], channels, dtype)
    for _, rows in blocks(pixels):
        writer.add(rows)
    writer.finish()
    found = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None and found.dtype == dtype
    assert np.array_equal(found if channels == 1 else found[:, :, ::-1], pixels)
    Image.open(io.BytesIO(file.getvalue())).verify()


def count_of(region):
    """How many 8-connected parts there are."""
    found: Any = label(region, np.ones((3, 3)))
    return found[1]


def filled(shape, found):
    """What polygons cover, by the even-odd rule on pixel middles."""
    cover = np.zeros(shape, np.uint8)
    for polygon in found:
        inside = np.zeros(shape, bool)
        for ring in (polygon.outer, *polygon.holes):
            inside ^= _inside(ring, shape)
        assert not cover[inside].any()
        cover[inside] = polygon.label
    return cover


def _inside(ring, shape):
    """Crossings of vertical edges to the left of each pixel's middle."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for (x, y), (x2, y2) in zip(ring, np.roll(ring, -1, 0), strict=True):
        assert (x == x2) != (y == y2)  # along pixel borders
        crossings[min(y, y2) : max(y, y2), x] += 1
    return crossings.cumsum(1)[:, :-1] % 2 == 1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 14), st.integers(1, 14), st.floats(0, 2))
def test_outlines_cover_exactly_the_region(seed, height, width, smooth):
    labels = (drawn(height, width, 2, seed, smooth) > 0) if seed else np.ones((height, width), bool)
    found = [polygons.Polygon(1, outer, holes) for outer, holes in outlines(labels)]
    assert np.array_equal(filled(labels.shape, found), labels)
    assert len(found) == count_of(labels)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12))
def test_polygons_of_slabs_are_those_of_the_whole(seed, height, width):
    labels = drawn(height, width, 3, seed, 1.0)
    before = polygons._STEP
    polygons._STEP = 24
    try:
        tracer = Tracer()
        found = [one for _, rows in blocks(labels) for one in tracer.add(rows)]
        found += list(tracer.finish())
    finally:
        polygons._STEP = before
    assert np.array_equal(filled(labels.shape, found), labels)
    parts = sum(count_of(labels == k) for k in (1, 2))
    assert len(found) == parts


def test_what_is_too_large_to_keep_is_cut(monkeypatch):
    monkeypatch.setattr(polygons, "_STEP", 50)
    monkeypatch.setattr(polygons, "_MOST", 200)
    tracer = Tracer()
    found = [one for _ in range(100) for one in tracer.add(np.ones((1, 10), np.uint8))]
    found += list(tracer.finish())
    assert len(found) == 5
    assert np.array_equal(filled((100, 10), found), np.ones((100, 10)))


def written(kind, labels, tmp_path, pixels=None, trained=TRAINED):
    path = tmp_path / f"result{KINDS[kind][1]}"
    hot = torch.from_numpy(np.eye(len(trained.values), dtype=np.float32)[labels].transpose(2, 0, 1))
    with open_writer(KINDS[kind][0], path, labels.shape[0], labels.shape[1], trained) as writer:
        for top, rows in blocks(labels):
            stop = top + len(rows)
            shown = None if pixels is None else pixels[top:stop]
            writer.add(Part(top, rows, hot[:, top:stop], shown))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    return path


def read(path):
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found


def test_masks_have_the_values_of_the_training(tmp_path):
    labels = drawn(30, 40)
    found = read(written("masks", labels, tmp_path))
    assert np.array_equal(found, np.array([0, 128, 255], np.uint8)[labels])


def test_overlay_colours_all_but_the_background(tmp_path):
    labels, grey = drawn(30, 40), np.full((30, 40, 3), 100, np.uint8)
    found = read(written("overlays", labels, tmp_path, grey))[:, :, ::-1]
    assert (found[labels == 0] == 100).all()
    for k in (1, 2):
        assert len(np.unique(found[labels == k], axis=0)) == 1
        assert (found[labels == k][0] != 100).any()
    assert (found[labels == 1][0] != found[labels == 2][0]).any()


def test_overlay_of_every_value_is_the_rounded_mean(tmp_path):
    """Six tenths of the pixel and four of the colour, for each value under each of many classes."""
    classes = 20
    labels = np.arange(classes, dtype=np.uint8)[:, None].repeat(256, 1)
    pixels = np.tile(np.arange(256, dtype=np.uint8), (classes, 1))[:, :, None].repeat(3, 2)
    colours = np.array([list(bytes.fromhex(text[1:])) for text in BRIGHT])
    trained = replace(TRAINED, names=tuple(map(str, range(classes))), values=tuple(range(classes)))
    found = read(written("overlays", labels, tmp_path, pixels, trained))[:, :, ::-1]
    assert np.array_equal(found[0], pixels[0])
    for k in range(1, classes):
        wanted = (3 * pixels[k].astype(int) + 2 * colours[(k - 1) % len(colours)]) / 5
        assert np.array_equal(found[k], wanted.round())


def test_outline_is_drawn_where_classes_meet(tmp_path):
    labels, grey = drawn(30, 40), np.full((30, 40, 3), 100, np.uint8)
    found = read(written("outlines", labels, tmp_path, grey))[:, :, ::-1]
    changed = (found != 100).any(2)
    edge = np.zeros_like(changed)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    assert np.array_equal(changed, edge)


def test_probabilities_are_planes_of_half_precision(tmp_path):
    labels = drawn(30, 40)
    found = np.load(written("probabilities", labels, tmp_path))
    assert found.dtype == np.float16 and found.shape == (3, 30, 40)
    assert np.array_equal(found.argmax(0), labels)


def test_geojson_is_polygons_with_class_names(tmp_path):
    labels = drawn(30, 40)
    document = json.loads(written("geojson", labels, tmp_path).read_text(encoding="utf-8"))
    found = []
    for feature in document["features"]:
        rings = [np.array(ring) for ring in feature["geometry"]["coordinates"]]
        assert all((ring[0] == ring[-1]).all() for ring in rings)
        k = TRAINED.names.index(feature["properties"]["classification"]["name"])
        assert feature["properties"]["mask_value"] == TRAINED.values[k]
        found.append(polygons.Polygon(k, rings[0][:-1], [ring[:-1] for ring in rings[1:]]))
    assert np.array_equal(filled(labels.shape, found), labels)


def test_imagej_regions_cover_the_labels(tmp_path):
    roifile = pytest.importorskip("roifile", reason="roifile is not installed: no ImageJ regions")
    labels = drawn(30, 40)
    regions = roifile.roiread(written("imagej", labels, tmp_path))
    found = np.zeros_like(labels)
    for region in regions:
        inside = np.zeros(labels.shape, bool)
        ring = region.coordinates().astype(int)
        crossings = np.zeros((30, 41), int)
        for (x, y), (x2, y2) in zip(ring, np.roll(ring, -1, 0), strict=True):
            if x == x2:  # a line to a hole is gone along twice, and counts for nothing
                crossings[min(y, y2) : max(y, y2), x] += 1
            elif y != y2:
                crossings[_rows(y, y2), _columns(x, y, x2, y2)] += 1
        inside = crossings.cumsum(1)[:, :-1] % 2 == 1
        found[inside] = TRAINED.names.index(region.name[7:])
    assert np.array_equal(found, labels)


def _rows(y, y2):
    return np.arange(min(y, y2), max(y, y2))


def _columns(x, y, x2, y2):
    middle = _rows(y, y2) + 0.5
    return np.ceil(x + (x2 - x) * (middle - y) / (y2 - y) - 0.5).astype(int)


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    with (
        pytest.raises(ValueError, match="stop"),
        open_writer(KINDS["masks"][0], tmp_path / "m.png", 8, 8, TRAINED),
    ):
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PngWriter, "add", full)
    with pytest.raises(UserError, match="No space left") as caught:
        written("masks", drawn(8, 8), tmp_path)
    assert caught.value.code == 3 and not list(tmp_path.iterdir())
