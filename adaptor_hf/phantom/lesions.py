"""How each finding changes the maps of the chest; each painter returns the area it covers, as a share of each pixel."""

import numpy as np

from .chest import SIDE_SIGN, Chest, thorax_half_width
from .devices import paint_device
from .fields import ramp, smooth_noise
from .findings import Finding, nodule_diameter

_ZONE_CENTRE = {"upper": 0.24, "mid": 0.50, "lower": 0.78}


def enlarged_heart_ratio(finding: Finding) -> float:
    """Cardiothoracic ratio of an enlarged heart: 0.54 to 0.68."""
    return 0.54 + 0.14 * finding.severity / 3


def mediastinal_shift(findings: tuple[Finding, ...]) -> float:
    """Displacement in cm away from a large effusion or pneumothorax; positive moves to the image's right."""
    return sum(-SIDE_SIGN[f.side] * 1.3 * f.extent for f in findings if f.size == "large" and f.name in _PUSHING)


_PUSHING = ("effusion", "pneumothorax")


def diaphragm_rise(findings: tuple[Finding, ...]) -> dict[str, float]:
    """How far (cm) lost lung volume lifts the diaphragm, by side."""
    return {f.side: 1.0 * f.severity - 0.4 for f in findings if f.name == "atelectasis" and f.size != "small"}


def paint_consolidation(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A cloud with ragged edges, in which fluid replaces air."""
    sign, height = SIDE_SIGN[finding.side], chest.lung_height
    radius = 2.2 + 1.15 * finding.severity
    cy = height * _ZONE_CENTRE[finding.zone] + rng.normal(0, 0.4)
    reach = float(thorax_half_width(chest.patient, height, np.float32(cy)))
    cx = sign * min(max(reach * rng.uniform(0.5, 0.68), 4.2), max(reach - 0.6 * radius, 4.2))
    tall = min(radius * rng.uniform(0.8, 1.0), 0.19 * height)
    r = np.sqrt(((chest.x - cx) / radius) ** 2 + ((chest.y - cy) / tall) ** 2)
    ragged = 0.24 * smooth_noise(rng, chest.size, 9) + 0.10 * smooth_noise(rng, chest.size, 26)
    cloud = ramp(1.0 + ragged - r, rng.uniform(0.5, 1.0)) * chest.half(finding.side)
    fill = rng.uniform(0.5, 0.7) + 0.08 * finding.severity
    grain = np.clip(1 + 0.12 * smooth_noise(rng, chest.size, 36), 0.5, 1.2)
    chest.air *= 1 - np.minimum(fill * cloud * grain, 0.92)
    return cloud * chest.lung


def paint_effusion(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Fluid from the base upwards, with a meniscus that climbs along the chest wall."""
    height = chest.lung_height
    # Measured from the dome: a small one only fills the costophrenic angle.
    level = (0.0, 0.16, 0.40)[int(finding.severity)] + (0.10, 0.20, 0.22)[int(finding.severity)] * finding.extent
    across = np.clip(np.abs(chest.x) / chest.wall, 0, 1)
    climb = (2.6 + 2.4 * min(finding.severity, 1.5)) * (across**3 - 0.35) * rng.uniform(0.85, 1.15)
    wave = 0.25 * smooth_noise(rng, chest.size, 5)
    surface = height * (1 - level) + 1.2 - climb + wave
    fluid = ramp(chest.y - surface, 1.4) * chest.half(finding.side)
    # Below the dome the little air of the recess goes without a trace on the picture.
    cover = fluid * ramp(chest.air - 2.0, 1.0)
    chest.air *= 1 - 0.96 * fluid
    return cover


def paint_pneumothorax(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Gas between wall and lung, widest at the apex: no vessels, a thin pleural line, a denser lung inside."""
    height, s = chest.lung_height, finding.severity
    apical = 2.0 + 1.7 * s + rng.uniform(0, 0.3)
    lateral = 0.7 + 0.55 * s + (2.2 * finding.extent if finding.size == "large" else 0)
    end = height * min(0.42 + 0.26 * s, 1.6)  # where the gap closes
    gap = lateral * np.clip((end - chest.y) / (0.75 * end), 0, 1)
    edge = thorax_half_width(chest.patient, height, chest.y - apical) - gap + 0.12 * smooth_noise(rng, chest.size, 6)
    edge = np.where(chest.y < apical, 0, edge)
    inside = edge - np.abs(chest.x)  # positive in the collapsed lung
    # The border runs steeply at the apex: along the gradient, the distance is shorter than sideways.
    run = np.gradient(edge, axis=0) / chest.pixel
    inside = inside / np.sqrt(1 + np.minimum(run * run, 30))
    space = ramp(-inside, 1.5 * chest.pixel) * chest.half(finding.side)
    in_lung = chest.half(finding.side) * (1 - space)
    chest.air *= 1 + 0.36 * space - (0.05 + 0.05 * s) * in_lung
    chest.vessel_share = chest.vessel_share * (1 - space)
    line = (
        np.exp(-((inside / max(0.13, 0.7 * chest.pixel)) ** 2)) * chest.half(finding.side) * ramp(chest.lung - 0.3, 0.3)
    )
    chest.soft += 1.1 * line * ramp(gap + np.clip(apical - chest.y + 2, 0, 2) - 0.25, 0.3)
    return space * chest.lung


def paint_nodule(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A ball of soft tissue in aerated lung, clear of heart, diaphragm and fluid."""
    radius = nodule_diameter(finding) / 2
    cy = chest.lung_height * _ZONE_CENTRE[finding.zone] * (0.95 if finding.zone == "lower" else 1) + rng.normal(0, 0.4)
    place, softness, turn, long = rng.uniform(0.25, 0.75), rng.uniform(0.1, 0.35), rng.uniform(0, np.pi), 1.12
    below = np.where(chest.x < 0, chest.dome["right"], chest.dome["left"]) - chest.y
    clear = chest.half(finding.side) & (chest.lung > 0.9) & (chest.wall - np.abs(chest.x) > radius + 1.0)
    clear &= (below > radius + 0.8) & (chest.air > 4)
    # Over an enlarged heart or a raised diaphragm the nearest free height is taken.
    away = np.where(clear, np.abs(chest.y - cy), np.inf)
    row = np.isfinite(away) & (away < away.min() + 0.35)
    across = np.sort(chest.x[row]) if row.any() else np.array([SIDE_SIGN[finding.side] * 7.0])
    cx = across[int(place * len(across))]
    if row.any():
        cy = float(chest.y[row][np.argmin(np.abs(chest.x[row] - cx))])
    u, v = chest.x - cx, chest.y - cy
    along, aside = np.cos(turn) * u + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * u
    r = np.sqrt((along / long) ** 2 + (aside * long) ** 2)
    edge = ramp(radius - r, max(softness, 1.5 * chest.pixel))
    # Denser than its size tells: a small one would drown among ribs and vessels at 256 pixels.
    thickness = 2.2 * np.sqrt(np.maximum(radius * radius - r * r, (0.5 * radius) ** 2)) + 0.9
    chest.soft += edge * thickness
    return edge


def paint_atelectasis(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Plates of airless lung, seen edge-on as thin bands; where it is large, a wedge on the diaphragm with them."""
    sign, height, s = SIDE_SIGN[finding.side], chest.lung_height, finding.severity
    side_x = sign * chest.x
    reach = float(thorax_half_width(chest.patient, height, np.float32(0.8 * height)))
    dome = chest.dome[finding.side]
    base = float(dome.min()) - 1.8 if finding.zone == "lower" else height * _ZONE_CENTRE[finding.zone]
    band = np.zeros_like(chest.x)
    for plate in range(1 + (s >= 1)):
        cx, cy = reach * rng.uniform(0.55, 0.68), base - plate * rng.uniform(1.1, 1.7) + rng.normal(0, 0.25)
        half, thick = 2.4 + 0.6 * s + rng.uniform(0, 0.6), 0.22 + 0.05 * s
        slope, bend = rng.normal(0, 0.14), rng.uniform(-0.03, 0.03)
        along = side_x - cx
        off = np.abs(chest.y - cy - slope * along - bend * along * along)
        taper = np.clip(2.5 * (1 - (along / half) ** 2), 0, 1)
        band = np.maximum(band, taper * ramp(thick - off, max(0.3, 1.5 * chest.pixel)))
    chest.soft += (2.2 + 0.1 * s) * band * chest.lung
    cover = band
    if finding.size == "large":
        grain = np.clip(1 + 0.08 * smooth_noise(rng, chest.size, 30), 0.7, 1.2)
        lower = dome if finding.zone == "lower" else np.float32(base + 2.2)
        thickness = 3.0 + 1.2 * finding.extent - 0.30 * np.abs(side_x - 0.45 * reach)
        wedge = ramp(chest.y - (lower - thickness), 0.5) * ramp(lower + 0.3 - chest.y, 0.5) * chest.half(finding.side)
        chest.air *= 1 - np.minimum((0.6 + 0.15 * finding.extent) * wedge * grain, 0.9)
        cover = np.maximum(cover, wedge)
    return cover * chest.lung


def paint_edema(chest: Chest, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Haze around both hila that spares the rim, wide vessels, and short lines at the flanks of the bases."""
    s, height = finding.severity, chest.lung_height
    wing = np.zeros_like(chest.x)
    for side in SIDE_SIGN:
        hx, hy = chest.hilum[side]
        spread = np.exp(-(((chest.x - hx) / (4.4 + 0.5 * s)) ** 2) - ((chest.y - hy - 2.0) / (6.0 + 0.6 * s)) ** 2)
        wing = np.maximum(wing, spread * chest.half(side))
    grain = np.clip(1 + 0.14 * smooth_noise(rng, chest.size, 14) + 0.2 * smooth_noise(rng, chest.size, 48), 0.3, 1.7)
    chest.air *= 1 - np.minimum((0.17 + 0.15 * s) * (0.25 + wing) * grain, 0.85)
    chest.vessel_share = chest.vessel_share * (1.25 + 0.05 * s)
    rim = chest.wall - np.abs(chest.x)
    level = (chest.y + 0.12 * smooth_noise(rng, chest.size, 12)) / 0.9
    lines = np.exp(-(((level - np.rint(level)) / 0.2) ** 2)) * ramp(1.8 - rim, 0.4)
    lines *= ramp(chest.y - 0.6 * height, 1.0) * ramp(0.95 * height - chest.y, 1.0)
    chest.soft += (0.25 + 0.12 * s) * lines * chest.lung
    return wing * chest.lung


PAINTERS = {
    "consolidation": paint_consolidation,
    "effusion": paint_effusion,
    "pneumothorax": paint_pneumothorax,
    "nodule": paint_nodule,
    "atelectasis": paint_atelectasis,
    "edema": paint_edema,
    "device": paint_device,
}
