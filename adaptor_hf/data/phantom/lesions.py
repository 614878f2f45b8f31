"""How each finding changes the maps of the chest; each painter returns the area it covers, as a share of each pixel."""

import numpy as np

from .chest import SIDE_SIGN, Chest, thorax_half_width
from .fields import ramp, smooth_noise
from .findings import Finding

_ZONE_CENTRE = {"upper": 0.24, "mid": 0.50, "lower": 0.78}


def enlarged_heart_ratio(finding: Finding) -> float:
    """Cardiothoracic ratio of an enlarged heart: 0.54 to 0.68."""
    return 0.54 + 0.14 * finding.severity / 3


def mediastinal_shift(findings: tuple[Finding, ...]) -> float:
    """Displacement in cm away from a large effusion or pneumothorax; positive moves to the image's right."""
    return sum(-SIDE_SIGN[f.side] * 1.3 * f.extent for f in findings if f.size == "large" and f.name in _PUSHING)


_PUSHING = ("effusion", "pneumothorax")


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


PAINTERS = {
    "consolidation": paint_consolidation,
    "effusion": paint_effusion,
    "pneumothorax": paint_pneumothorax,
}
