"""From path lengths to a picture: Beer-Lambert attenuation, scatter, photon noise, log display."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .anatomy import Patient, Pose
from .chest import airways_and_gas, bones, build_chest, lung_markings
from .fields import resize, smooth_noise, soften, wide_blur
from .findings import Finding
from .lesions import PAINTERS, diaphragm_rise, enlarged_heart_ratio, mediastinal_shift

# Linear attenuation near 70 keV, 1/cm. Bone counts on top of the soft tissue that it replaces.
SOFT_ATTENUATION = 0.19
BONE_EXCESS = 0.30
# Inflated lung is about a quarter as dense as soft tissue.
LUNG_GAS_SHARE = 0.74


@dataclass
class Rendering:
    """A picture and what is where in it; all arrays (image_size, image_size)."""

    picture: np.ndarray
    """uint8."""
    lungs: np.ndarray
    """Share of each pixel that is lung, float32 in [0, 1], whatever lies in the lung."""
    covers: list[np.ndarray]
    """For each finding the share of each pixel that it covers, float32 in [0, 1]."""


def render(
    patient: Patient,
    pose: Pose,
    findings: tuple[Finding, ...],
    rng: np.random.Generator,
    *,
    image_size: int = 256,
    inspiration: float = 1.0,
) -> Rendering:
    """Draws one exposure."""
    heart = next((f for f in findings if f.name == "cardiomegaly"), None)
    ratio = enlarged_heart_ratio(heart) if heart else patient.heart_ratio
    magnified = 1.05 if pose.view == "AP" else 1.0
    shift = mediastinal_shift(findings)
    rise = diaphragm_rise(findings)
    chest = build_chest(patient, pose, image_size, inspiration, ratio * magnified, shift, rise)
    covers = []
    for finding in findings:
        if finding.name == "cardiomegaly":
            cover = np.minimum(chest.heart, 1)
        else:
            cover = PAINTERS[finding.name](chest, finding, np.random.default_rng(finding.shape_seed))
        covers.append(cover)

    fixed = np.random.default_rng(patient.texture_seed)
    bone = bones(chest, fixed)
    markings = lung_markings(chest, fixed) * chest.vessel_share
    # Haze: no lung is equally dense throughout.
    uneven = 1 + 0.02 * smooth_noise(rng, image_size, 6)
    gas = LUNG_GAS_SHARE * chest.air * uneven + airways_and_gas(chest) - markings * np.minimum(chest.air * 0.25, 1)
    path = np.maximum(chest.soft - gas, 0)
    # Scatter washes bone out where the body is dense: below the diaphragm, over the heart, in fluid.
    bone = bone * np.clip(1.75 - 0.055 * path, 0.45, 1)
    attenuation = SOFT_ATTENUATION * path + BONE_EXCESS * bone + chest.metal
    shown = _exposed_area(pose, image_size)
    return Rendering(_expose(pose, attenuation, rng), chest.lung * shown, [cover * shown for cover in covers])


def _expose(pose: Pose, attenuation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = attenuation.shape[0]
    intensity = np.exp(-attenuation)
    if pose.blur > 0:
        intensity = soften(intensity, pose.blur)
    body = np.minimum(intensity, np.float32(0.25))
    intensity = intensity + np.float32(pose.scatter) * wide_blur(body, 8)
    # A pixel of a coarser image collects more photons.
    photons = np.float32(pose.photons * (256 / size) ** 2)
    noise = rng.standard_normal(intensity.shape, dtype=np.float32)
    intensity = intensity + np.sqrt(intensity / photons) * noise
    density = -np.log(np.maximum(intensity, 1 / photons))
    density = density + np.float32(pose.local_contrast) * (density - wide_blur(density, 12))
    density = soften(density, 0.06)

    # The window is set on the middle of the picture, where lungs and mediastinum lie; open air falls below black.
    middle = density[size // 8 : -size // 5, size // 6 : -size // 6]
    lung, high = np.percentile(resize(middle, 48, Image.Resampling.NEAREST), pose.window).tolist()
    low = lung - pose.toe * (high - lung)
    shown = np.clip((density - low) * np.float32(1 / max(high - low, 0.1)), 0, 1.15)
    # A soft shoulder instead of a hard cut keeps some detail in the white.
    shown = shown ** np.float32(pose.gamma)
    shown = np.where(shown > 0.8, 0.8 + 0.2 * np.tanh((shown - 0.8) / 0.24), shown)
    shown = np.maximum(shown * _exposed_area(pose, size), _marker(pose, size))
    return (shown * 250 + 2).astype(np.uint8)


def _exposed_area(pose: Pose, size: int) -> np.ndarray:
    """1 inside the collimated borders, 0 on them, float32 (size, size)."""
    left, top, right, bottom = (round(share * size) for share in pose.collimation)
    frame = np.zeros((size, size), dtype=np.float32)
    frame[top : size - bottom, left : size - right] = 1
    return frame


def _marker(pose: Pose, size: int) -> np.ndarray:
    """The side letter, drawn in strokes so that it depends on no font."""
    letter = {
        "L": [[(0, 0), (0, 1), (0.6, 1)]],
        "R": [[(0, 1), (0, 0), (0.5, 0), (0.6, 0.12), (0.6, 0.38), (0.5, 0.5), (0, 0.5)], [(0.25, 0.5), (0.6, 1)]],
    }[pose.marker]
    dx, dy = pose.marker_position
    x0 = dx if pose.marker == "R" else 1 - dx - 0.03
    canvas = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    for stroke in letter:
        points = [((x0 + 0.05 * px) * 2 * size, (dy + 0.05 * py) * 2 * size) for px, py in stroke]
        draw.line(points, fill=240, width=max(1, size // 48), joint="curve")
    return np.asarray(canvas.reduce(2), dtype=np.float32) * np.float32(1 / 255)
