"""Draws one field of a stained blood smear with its mask: white cells to find, the rest to ignore.

Everything is painted as density of three dyes on glass, then light passes through (Beer-Lambert),
so that overlapping cells darken each other as they do under a microscope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

CYTOPLASM, NUCLEUS = 1, 2  # the rest is background, 0
AZURE, EOSIN, BLUE = 0, 1, 2
# absorption of red, green, blue by one unit of each dye
DYES = np.array([(0.62, 1.0, 0.42), (0.16, 0.8, 0.85), (1.0, 0.72, 0.32)], np.float32)
GLASS = ((255, 252, 250), (250, 240, 190), (245, 232, 235), (232, 238, 245))  # RGB of empty fields


@dataclass(frozen=True)
class Kind:
    """A kind of white cell: (low, high) of what varies; inner lengths are parts of its radius."""

    name: str
    weight: float
    radius: tuple[float, float]  # in 128ths of the side
    lobes: tuple[int, int]
    nucleus: tuple[float, float]  # radius of the nucleus, or of each lobe
    spread: float  # how far lobes lie from the middle
    azure: tuple[float, float]  # density of the nucleus
    eosin: tuple[float, float]  # of the cytoplasm
    blue: tuple[float, float]  # of the cytoplasm
    granules: tuple[int, float, float]  # dye, strength, size in 128ths


KINDS = (
    Kind("neutrophil", 0.42, (15, 22), (2, 5), (0.26, 0.36), 0.44, (1.2, 2.0),
         (0.1, 0.3), (0.05, 0.2), (EOSIN, 0.25, 0.7)),
    Kind("lymphocyte", 0.24, (12, 18), (1, 1), (0.66, 0.82), 0.1, (1.1, 1.8),
         (0.0, 0.06), (0.2, 0.5), (BLUE, 0.06, 1.0)),
    Kind("monocyte", 0.18, (19, 26), (3, 3), (0.36, 0.46), 0.3, (0.7, 1.3),
         (0.05, 0.15), (0.2, 0.4), (AZURE, 0.1, 0.8)),
    Kind("eosinophil", 0.16, (16, 22), (2, 3), (0.3, 0.38), 0.42, (1.0, 1.7),
         (0.3, 0.5), (0.0, 0.08), (EOSIN, 0.75, 1.3)),
)  # fmt: skip


@dataclass(frozen=True)
class Canvas:
    """What is painted on: dye density (H, W, 3), class (H, W), and the pixel grid."""

    density: np.ndarray
    mask: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    unit: float  # pixels in a 128th of the side

    def polar(self, at: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Distance and angle of every pixel from ``at`` (row, column)."""
        down, right = self.rows - at[0], self.columns - at[1]
        return np.hypot(down, right), np.arctan2(down, right)


def draw_smear(draw: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, str]:
    """One field: RGB uint8 (size, size, 3), mask uint8 (size, size), the kind of its first cell."""
    rows, columns = np.meshgrid(*[np.arange(size, dtype=np.float32)] * 2, indexing="ij")
    density = np.zeros((size, size, 3), np.float32)
    canvas = Canvas(density, np.zeros((size, size), np.uint8), rows, columns, size / 128)
    _red_cells(canvas, draw)
    _debris(canvas, draw)
    kinds = _white_cells(canvas, draw)
    return _photograph(canvas, draw), canvas.mask, kinds[0]


def _red_cells(canvas: Canvas, draw: np.random.Generator) -> None:
    """Pale discs with a lighter middle and a rim, some overlapping: background to the mask."""
    size, unit = canvas.mask.shape[0], canvas.unit
    strength, tone = draw.uniform(0.1, 0.5), draw.uniform(0.8, 1.25)
    dyes = np.array((0, 1, draw.choice((0.0, 0.1, 0.45))), np.float32)  # young ones grayish
    for _ in range(int(draw.integers(2, 15))):
        at = tuple(draw.uniform(-0.05, 1.05, 2) * size)
        edge, distance = _outline(canvas, draw, at, draw.uniform(8.5, 12.5) * unit * tone, 0.05)
        cover = _cover(edge - distance)
        hollow = 1 - draw.uniform(0.2, 0.8) * np.exp(-((distance / (0.5 * edge)) ** 2))
        rim = 1 + 0.5 * np.exp(-(((edge - distance) / (1.3 * unit)) ** 2))
        amount = strength * draw.uniform(0.8, 1.2) * cover * hollow * rim
        canvas.density[:] += amount[:, :, None] * dyes


def _debris(canvas: Canvas, draw: np.random.Generator) -> None:
    """Platelets and dye specks: as purple as a nucleus, and not one."""
    size, unit = canvas.mask.shape[0], canvas.unit
    for _ in range(int(draw.integers(0, 6))):
        at = tuple(draw.uniform(0, size, 2))
        edge, distance = _outline(canvas, draw, at, draw.uniform(1.2, 4.0) * unit, 0.25)
        cover = _cover(edge - distance)
        canvas.density[:, :, AZURE] += draw.uniform(0.2, 1.2) * cover
    if draw.random() < 0.15:  # a smudge: the remains of a burst cell
        at = tuple(draw.uniform(0, size, 2))
        edge, distance = _outline(canvas, draw, at, draw.uniform(8, 14) * unit, 0.3)
        cloud = _cover((edge - distance) / 5) * _texture(draw, size, 5 * unit, 0.5)
        canvas.density[:, :, AZURE] += draw.uniform(0.15, 0.4) * cloud


def _white_cells(canvas: Canvas, draw: np.random.Generator) -> list[str]:
    """One to four cells, often against each other; a later one lies on top."""
    weights = np.array([kind.weight for kind in KINDS])
    placed: list[tuple[float, float, float]] = []
    kinds: list[str] = []
    for _ in range(int(draw.choice(4, p=(0.3, 0.35, 0.25, 0.1))) + 1):
        kind = KINDS[int(draw.choice(len(KINDS), p=weights / weights.sum()))]
        radius = draw.uniform(*kind.radius) * canvas.unit
        at = _place(draw, canvas.mask.shape[0], radius, placed)
        if at is not None:
            placed.append((*at, radius))
            kinds.append(kind.name)
            _white_cell(canvas, draw, kind, at, radius)
    return kinds


def _place(
    draw: np.random.Generator,
    size: int,
    radius: float,
    placed: Sequence[tuple[float, float, float]],
) -> tuple[float, float] | None:
    """A middle where cells overlap by their rims at most; half of them beside the last one."""
    touching = bool(placed) and draw.random() < 0.6
    for _ in range(30):
        if touching:
            row, column, other = placed[-1]
            angle, reach = draw.uniform(0, 2 * np.pi), draw.uniform(0.74, 1.02) * (other + radius)
            at = (row + reach * np.sin(angle), column + reach * np.cos(angle))
        else:
            at = tuple(draw.uniform(0.08, 0.92, 2) * size)
        inside = all(0.03 * size < value < 0.97 * size for value in at)
        free = all(np.hypot(at[0] - y, at[1] - x) > 0.72 * (r + radius) for y, x, r in placed)
        if inside and free:
            return float(at[0]), float(at[1])
    return None


def _white_cell(
    canvas: Canvas,
    draw: np.random.Generator,
    kind: Kind,
    at: tuple[float, float],
    radius: float,
) -> None:
    size, unit = canvas.mask.shape[0], canvas.unit
    edge, distance = _outline(canvas, draw, at, radius, 0.06)
    depth = edge - distance
    nucleus = np.minimum(_nucleus(canvas, draw, kind, at, radius), depth - 1.5 * unit)
    body, core = _cover(depth)[:, :, None], _cover(nucleus)
    paint = np.zeros_like(canvas.density)
    cloud = _texture(draw, size, 3 * unit, 0.15)
    paint[:, :, EOSIN] = draw.uniform(*kind.eosin) * cloud
    paint[:, :, BLUE] = draw.uniform(*kind.blue) * cloud
    dye, strength, grain = kind.granules
    paint[:, :, dye] += strength * np.clip(_texture(draw, size, grain * unit, 1.0) - 1, 0, 1.2)
    paint[:, :, BLUE] += 0.12 * np.exp(-((depth / (1.5 * unit)) ** 2))  # the membrane
    chromatin = draw.uniform(*kind.azure) * _texture(draw, size, 1.6 * unit, draw.uniform(0.1, 0.3))
    paint *= (1 - 0.8 * core)[:, :, None]
    paint[:, :, AZURE] += chromatin * core
    canvas.density[:] = canvas.density * (1 - 0.85 * body) + paint * body
    canvas.mask[depth > 0] = CYTOPLASM
    canvas.mask[nucleus > 0] = NUCLEUS


def _nucleus(
    canvas: Canvas,
    draw: np.random.Generator,
    kind: Kind,
    at: tuple[float, float],
    radius: float,
) -> np.ndarray:
    """Signed depth of lobes strung on an arc, grown together where they meet."""
    lobes = int(draw.integers(kind.lobes[0], kind.lobes[1] + 1))
    start, step = draw.uniform(0, 2 * np.pi), draw.uniform(0.85, 1.35)
    shrink = (3 / max(lobes, 3)) ** 0.5
    total = np.zeros_like(canvas.rows)
    softness = 0.07 * radius
    for lobe in range(lobes):
        angle = start + lobe * step + draw.uniform(-0.15, 0.15)
        reach = kind.spread * radius * draw.uniform(0.85, 1.1)
        middle = (at[0] + reach * np.sin(angle), at[1] + reach * np.cos(angle))
        lobe_radius = draw.uniform(*kind.nucleus) * radius * shrink
        edge, distance = _outline(canvas, draw, middle, lobe_radius, 0.08)
        total += np.exp(np.clip((edge - distance) / softness, -30, 30))
    return softness * np.log(total + 1e-12)


def _outline(
    canvas: Canvas,
    draw: np.random.Generator,
    at: tuple[float, ...],
    radius: float,
    wobble: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A wavy circle: its radius towards every pixel, and each pixel's distance."""
    distance, angle = canvas.polar((at[0], at[1]))
    edge = np.ones_like(angle)
    for wave in range(2, 6):
        height, phase = draw.normal(0, wobble / (wave - 1)), draw.uniform(0, 2 * np.pi)
        edge += np.float32(height) * np.cos(wave * angle + np.float32(phase))
    return np.float32(radius) * np.clip(edge, 0.6, 1.5), distance


def _cover(depth: np.ndarray) -> np.ndarray:
    """Coverage 0..1 of each pixel by a shape given as signed depth in pixels, its edge soft."""
    return np.clip(depth / 1.2 + 0.5, 0, 1)


def _texture(draw: np.random.Generator, size: int, grain: float, strength: float) -> np.ndarray:
    """Smooth noise around one: grains of ``grain`` pixels, standard deviation ``strength``."""
    noise = draw.standard_normal((size, size), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), max(grain, 0.3) / 2)
    return 1 + strength * (smooth - smooth.mean()) / (smooth.std() + 1e-6)


def _photograph(canvas: Canvas, draw: np.random.Generator) -> np.ndarray:
    """Light through the dyes, lamp, focus, camera: RGB uint8."""
    size, unit = canvas.mask.shape[0], canvas.unit
    dyes = DYES * draw.uniform(0.85, 1.15, DYES.shape).astype(np.float32)
    light = np.exp(-(canvas.density * np.float32(draw.uniform(0.6, 1.2))) @ dyes)
    glass = np.array(GLASS[int(draw.integers(len(GLASS)))], np.float32) * draw.uniform(0.7, 1.0)
    tilt = draw.uniform(-0.15, 0.15, 2)
    down, right = canvas.rows / size - 0.5, canvas.columns / size - 0.5
    lamp = 1 + tilt[0] * down + tilt[1] * right - draw.uniform(0, 0.35) * (down**2 + right**2)
    haze = _texture(draw, size, 12 * unit, 0.012)
    picture = light * glass * (lamp * haze)[:, :, None]
    blur = draw.uniform(0.35, 0.8) if draw.random() < 0.75 else draw.uniform(0.8, 1.8)
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), blur * unit)
    picture += draw.uniform(1, 6) * draw.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)
