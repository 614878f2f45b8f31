"""Tubes, catheters and pacemakers, drawn as curves of metal and plastic over the chest."""

import numpy as np
from PIL import Image, ImageDraw

from .chest import SIDE_SIGN, Chest, carina_of
from .fields import resize
from .findings import Finding, tube_height

Points = list[tuple[float, float]]


def paint_device(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Adds the device to `chest.metal`; the area is that of the device's own outline."""
    parts = _PARTS[finding.kind](chest, finding, rng)
    cover = np.zeros_like(chest.x)
    for points, width, attenuation in parts:
        shape = _draw(chest, points, width)
        chest.metal = chest.metal + np.float32(attenuation) * shape
        cover = np.maximum(cover, shape)
    return cover


# Each gives parts: points (cm), width (cm; 0 is a filled outline), attenuation.
_Parts = list[tuple[Points, float, float]]


def _endotracheal_tube(chest: Chest, finding: Finding, rng: np.random.Generator) -> _Parts:
    x, carina = carina_of(chest)
    tip = carina - tube_height(finding)
    path = [(x + rng.normal(0, 0.2), -10.0), (x, 0.5 * (tip - 10)), (x + rng.normal(0, 0.1), tip)]
    stripe = [(px + 0.3, py) for px, py in _spline(path)]
    return [(_spline(path), 0.95, 0.12), (stripe, 0.26, 0.45)]


def _enteric_tube(chest: Chest, finding: Finding, rng: np.random.Generator) -> _Parts:
    shift, height = chest.mediastinal_shift, chest.lung_height
    path = _spline(
        [
            (0.4 + 0.5 * shift, -10.0),
            (0.6 + shift, 0.2 * height),
            (0.3 + shift, 0.6 * height),
            (1.2, height + 1.5),
            (4.0 + rng.normal(0, 0.4), height + 4.5 + finding.extent),
            (7.0 + rng.normal(0, 0.5), height + 4.0 + finding.extent),
        ]
    )
    return [(path, 0.55, 0.15), (path, 0.22, 0.35)]


def _central_venous_catheter(chest: Chest, finding: Finding, rng: np.random.Generator) -> _Parts:
    shift, height = chest.mediastinal_shift, chest.lung_height
    tip = (-2.2 + shift, height * (0.27 + 0.08 * finding.extent))
    if finding.side == "right":
        way = [(-4.2 + rng.normal(0, 0.4), -7.5), (-3.0, -2.0), (-2.3 + shift, 0.12 * height)]
    else:
        way = [(5.0 + rng.normal(0, 0.4), -7.5), (3.6, -1.5), (1.2 + shift, 0.09 * height)]
        way.append((-1.6 + shift, 0.17 * height))
    return [(_spline([*way, tip]), 0.3, 0.5)]


def _pacemaker(chest: Chest, finding: Finding, rng: np.random.Generator) -> _Parts:
    sign, shift, height = SIDE_SIGN[finding.side], chest.mediastinal_shift, chest.lung_height
    cx = sign * (0.68 * chest.patient.thorax_half_width + rng.normal(0, 0.4))
    cy = 0.13 * height + rng.uniform(0, 1.0)
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    # A superellipse: between a disc and a square, as the cans are.
    cos, sin = np.cos(turn), np.sin(turn)
    can_x, can_y = 2.3 * np.sign(cos) * np.abs(cos) ** 0.6, 2.0 * np.sign(sin) * np.abs(sin) ** 0.6
    can = list(zip(cx + can_x, cy + can_y, strict=True))
    entry = [(cx - sign * 1.2, cy - 1.8), (sign * 5.2, -0.6 + 0.05 * height), (sign * 2.4 + shift, 0.06 * height)]
    cava = [(-2.1 + shift, 0.20 * height), (-2.3 + shift, 0.5 * height)]
    ventricle = [(-1.0 + shift, height - 2.2), (2.5 + shift, height + 0.2), (5.0 + shift, height + 0.6)]
    atrium = [(-2.9 + shift, height - 4.0), (-1.9 + shift, height - 5.5)]
    leads = [(_spline([*entry, *cava, *end]), 0.24, 0.5) for end in (ventricle, atrium)]
    return [(can, 0, 2.0), *leads]


_PARTS = {
    "endotracheal tube": _endotracheal_tube,
    "enteric tube": _enteric_tube,
    "central venous catheter": _central_venous_catheter,
    "pacemaker": _pacemaker,
}


def _spline(points: Points) -> Points:
    """A smooth curve through the points (Catmull-Rom)."""
    knots = np.array([points[0], *points, points[-1]])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    curve = []
    for a, b, c, d in zip(knots, knots[1:], knots[2:], knots[3:], strict=False):
        curve.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return [tuple(point) for point in np.concatenate([*curve, knots[-1:]])]


def _draw(chest: Chest, points: Points, width: float) -> np.ndarray:
    """Share of each pixel inside a thick line, or inside a closed outline where the width is 0."""
    pose = chest.pose
    side = max(512, 2 * chest.size)
    scale = side / pose.field_of_view
    x, y = np.array(points).T
    cos, sin = np.cos(pose.tilt), np.sin(pose.tilt)
    x = x + 12 * sin
    u = cos * x - sin * y + pose.field_of_view / 2 + pose.offset[0]
    v = sin * x + cos * y + pose.offset[1]
    pixels = list(zip((u * scale).tolist(), (v * scale).tolist(), strict=True))
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    if width:
        draw.line(pixels, fill=255, width=max(1, round(width * scale)), joint="curve")
    else:
        draw.polygon(pixels, fill=255)
    return resize(np.asarray(canvas, dtype=np.float32), chest.size, Image.Resampling.BOX) * np.float32(1 / 255)
