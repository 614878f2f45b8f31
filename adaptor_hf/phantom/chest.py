"""The healthy chest as maps of path lengths (cm) along the beam.

Coordinates: x to the right of the image (the patient's left), 0 at the midline; y downwards, 0 at the lung apices.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .anatomy import Patient, Pose
from .fields import ramp, resize, smooth_noise

SIDE_SIGN = {"right": -1, "left": 1}  # the patient's right lies on the left of the image


@dataclass
class Chest:
    """Maps of one exposure, all float32 (size, size). Lesions change `air`, `soft`, `metal` and `vessel_share`."""

    size: int
    patient: Patient
    pose: Pose
    pixel: float  # cm
    x: np.ndarray
    y: np.ndarray
    lung_height: float
    wall: np.ndarray  # inner half width of the rib cage at y
    lung: np.ndarray  # share of a pixel that shows aerated lung, 0..1
    air: np.ndarray  # cm of gas along the beam
    soft: np.ndarray  # cm of further soft tissue
    heart: np.ndarray  # cm of heart and great vessels
    dome: dict[str, np.ndarray]  # y of the diaphragm, each side
    hilum: dict[str, tuple[float, float]]
    mediastinal_shift: float
    vessel_share: np.ndarray | float = 1.0
    metal: np.ndarray | float = 0.0  # attenuation (natural logarithm) by devices

    def half(self, side: str) -> np.ndarray:
        """True on the half of the image where the patient's `side` lies."""
        return (self.x < 0) if side == "right" else (self.x >= 0)


def thorax_half_width(patient: Patient, lung_height: float, y: np.ndarray) -> np.ndarray:
    """Inner half width of the rib cage at height y: a rounded apex, then nearly parallel walls."""
    top = np.clip(1 - (y + 0.2) / np.float32(0.8 * lung_height), 0, 1)
    return np.float32(patient.thorax_half_width) * np.sqrt(np.maximum(1 - top**2.3, 1e-4))


def build_chest(
    patient: Patient,
    pose: Pose,
    size: int,
    inspiration: float,
    heart_ratio: float,
    shift: float,
    rise: dict[str, float] | None = None,
) -> Chest:
    """Lungs, heart and diaphragm.

    `inspiration` scales the lung height; `shift` moves the mediastinum (cm, to the image's right); `rise` lifts the
    diaphragm of a side (cm).
    """
    pixel = pose.field_of_view / size
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(pixel)
    u = axis[None, :] - np.float32(pose.field_of_view / 2 + pose.offset[0])
    v = axis[:, None] - np.float32(pose.offset[1])
    cos, sin = np.float32(np.cos(pose.tilt)), np.float32(np.sin(pose.tilt))
    x = cos * u + sin * (v - 12)
    y = cos * v - sin * u
    height = patient.lung_height * inspiration

    wall = thorax_half_width(patient, height, y)
    across = np.abs(x) / wall
    round_off = np.sqrt(np.maximum(1 - across * across, 0))
    lung_depth = np.float32(0.66 * patient.depth) * round_off * np.clip(0.45 + 0.65 * y / height, 0.3, 1.05)

    dome = {}
    for side, sign in SIDE_SIGN.items():
        low = (max(patient.dome_offset, -0.5) if side == "left" else 0.0) - (rise or {}).get(side, 0.0)
        bend = (sign * x - 0.42 * patient.thorax_half_width) / (0.62 * patient.thorax_half_width)
        dome[side] = (height + low) + 5.5 * (1 - np.sqrt(np.maximum(1 - bend * bend, 0.03)))
    below = np.where(x < 0, dome["right"], dome["left"]) - y
    over = ramp(below, 2.5 * pixel)
    recess = 0.1 * np.clip(1 + below / 5, 0, 1)

    core = x - np.float32(0.5 * pose.rotation + shift)
    border = 1.7 + 2.8 * np.exp(-np.maximum(y, -1) / 1.6)
    beside = ramp(np.abs(core) - border, 1.4)
    inside = ramp((1 - across) * wall, 2 * pixel)
    lung = beside * inside
    heart = _heart_and_vessels(patient, pose, x, y, height, heart_ratio, shift)
    air = lung * np.maximum(lung_depth * (over + (1 - over) * recess) - heart, 0)
    visible = lung * over * ramp(lung_depth - heart - 2, 1.0)
    hilum = {
        "right": (-3.6 + shift + 0.4 * pose.rotation, 0.44 * height),
        "left": (3.7 + shift + 0.4 * pose.rotation, 0.40 * height),
    }
    soft = _body(patient, pose, x, y, height)
    return Chest(size, patient, pose, pixel, x, y, height, wall, visible, air, soft, heart, dome, hilum, shift)


def _heart_and_vessels(patient, pose, x, y, height, heart_ratio, shift) -> np.ndarray:
    """Path through the heart, aortic knob and pulmonary trunk: ellipsoids, the longest path counts."""
    width = 2 * patient.thorax_half_width * heart_ratio
    right, left = 0.34 * width, 0.66 * width
    xc = x - np.float32(0.7 * pose.rotation + shift)
    tilt = patient.heart_tilt
    # The tilted ventricle must reach exactly `left`, so that the drawn ratio is the true one.
    reach = 0.45 * width
    cos, sin = float(np.cos(tilt)), float(np.sin(tilt))
    long_axis = reach / (cos**2 + 0.55 * sin**2) ** 0.5
    cx, cy = left - reach, height + 1.2 - 0.26 * width
    along = (cos * (xc - cx) + sin * (y - cy)) / long_axis
    across = (cos * (y - cy) - sin * (xc - cx)) / (0.74 * long_axis)
    ventricle = 1 - along * along - across * across
    rx, ry = 0.36 * width, 0.46 * width
    atrium = 1 - ((xc + right - rx) / rx) ** 2 - ((y - cy + 0.06 * width) / ry) ** 2
    outflow = 1 - ((xc - 0.10 * width) / (0.27 * width)) ** 2 - ((y - cy + 0.26 * width) / (0.52 * width)) ** 2
    depth = 0.58 * patient.depth
    heart = depth * np.sqrt(np.maximum(np.maximum(np.maximum(ventricle, atrium), outflow), 0))
    for vx, vy, radius, tall in (
        (3.6 - patient.aorta_radius * 0.55, 0.24 * height, patient.aorta_radius, 1.25),
        (1.6, 0.40 * height, 2.3, 1.7),
        (-1.2, 0.30 * height, 2.1, 3.0),
    ):
        r2 = ((xc - vx) ** 2 + ((y - vy) / tall) ** 2) * np.float32(1 / radius**2)
        heart = np.maximum(heart, (3.6 * radius) * np.sqrt(np.maximum(1 - r2, 0)))
    return heart


def _body(patient, pose, x, y, height) -> np.ndarray:
    """Path through the whole body as if solid: trunk, neck, shoulders, arms, breasts."""
    side = np.abs(x)
    fat = patient.fat
    trunk_half = patient.thorax_half_width + 2.2 + 0.8 * fat
    shoulder = np.clip((0.62 * height - y) / 7.0, 0, 1)
    half = trunk_half + (23 - trunk_half) * shoulder * shoulder * (3 - 2 * shoulder)
    q = np.minimum(side / half, 1)
    trunk = (patient.depth + 0.9 * fat) * np.sqrt(1 - q**5)
    top = -9.0 + 0.22 * np.maximum(side - 4.5, 0) + 4.6 * ramp(side - 7, 6.0)
    body = trunk * np.sqrt(np.clip((y - top) / 3.5, 0, 1))
    arm = 1 - ((side - trunk_half - 4.5 - 0.05 * y) / (3.6 + 0.3 * fat)) ** 2
    body = np.maximum(body, (7 + fat) * np.sqrt(np.maximum(arm, 0)) * ramp(y - 2, 3.0))
    if patient.breast:
        for sign in (-1, 1):
            bx, by, r = sign * 0.55 * patient.thorax_half_width, 0.80 * height, 5.2 + 0.9 * patient.breast
            r2 = ((x - bx - 0.8 * pose.rotation) ** 2 * 0.75 + (y - by) ** 2) * np.float32(1 / r**2)
            # A breast ends sharply below and fades out above.
            body = body + patient.breast * np.sqrt(np.maximum(1 - r2, 0)) * np.clip(
                0.35 + (y - by + r) / (1.6 * r), 0, 1
            )
    return body


def carina_of(chest: Chest) -> tuple[float, float]:
    """x and y where the trachea divides."""
    return 0.35 * chest.pose.rotation + 0.8 * chest.mediastinal_shift - 0.3, 0.30 * chest.lung_height


def airways_and_gas(chest: Chest) -> np.ndarray:
    """Gas outside the lungs (cm): trachea, main bronchi, stomach."""
    x, y = chest.x, chest.y
    centre, carina = carina_of(chest)
    xc = x - np.float32(centre)
    tube = np.sqrt(np.maximum(0.85**2 - xc * xc, 0)) * 2 * ramp(carina - y, 1.0)
    arm = y - carina
    slope = np.where(xc < 0, np.float32(1.1), np.float32(0.75))
    across = (arm - slope * np.abs(xc)) / np.sqrt(1 + slope * slope)
    bronchi = 1.3 * np.sqrt(np.maximum(0.55**2 - across * across, 0)) * ramp(4.0 - np.abs(xc), 2.0) * (arm > -0.6)
    gas = np.maximum(tube, bronchi)
    if chest.patient.gastric_gas:
        cx, cy = 0.42 * chest.patient.thorax_half_width, chest.lung_height + max(chest.patient.dome_offset, -0.5) + 2.3
        r2 = ((x - cx) / 3.3) ** 2 + ((y - cy) / 1.7) ** 2
        level = ramp(cy + 0.9 - y, 2 * chest.pixel)
        gas = gas + chest.patient.gastric_gas * np.sqrt(np.maximum(1 - r2, 0)) * level
    return gas


def bones(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Bone path (cm): ribs as tilted hoops seen from the front, clavicles, spine, shoulder blades, humeral heads."""
    x, y, patient = chest.x, chest.y, chest.patient
    side = np.abs(x)
    spacing, drop, edge = patient.rib_spacing, patient.rib_drop, 2.5 * chest.pixel
    rib_wall = chest.wall + 0.35
    s = np.minimum(side / rib_wall, 1.0)
    turn = np.sqrt(np.maximum(1 - s * s, 0.004))
    slope = np.float32(drop / 2) * s / (rib_wall * turn)
    stretch = np.sqrt(1 + slope * slope)
    warp = 0.35 * smooth_noise(rng, chest.size, 4)
    inside = ramp((rib_wall - side) + 0.15, edge)
    bone = np.zeros_like(x)
    # A rib is a hoop: its back half falls from the spine to the flank, its front half from the flank to the cartilage.
    for front, width, weight, last in ((-1, 1.35, 0.75, 10), (1, 1.45, 0.40, 6)):
        level = (y + warp - np.float32(drop / 2) * (1 + front * turn) + (1.4 if front < 0 else 0.2)) / spacing
        number = np.floor(level)
        distance = np.abs(level - number - 0.5) * spacing / stretch
        band = ramp(0.5 * width - distance, edge)
        cortex = ramp(distance - 0.5 * width + 0.35, 0.35)
        shown = (number >= 0) & (number < last)
        if front > 0:
            band = band * ramp(s - 0.45, 0.25)
        bone += weight * band * (0.7 + 0.55 * cortex) * shown
    bone *= np.float32(patient.rib_density) * inside * np.minimum(1 + 0.25 * (stretch - 1), 1.6)

    bone += _clavicles(chest, rng) + _spine(chest) + _shoulder_blades(chest, rng)
    for sign in (-1, 1):
        r2 = (x - sign * (patient.thorax_half_width + 5.0)) ** 2 + (y - 2.2) ** 2
        bone += 1.5 * np.sqrt(np.maximum(1 - r2 / 6.5, 0))
    return bone


def _clavicles(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    portable = chest.pose.view == "AP"
    medial = (1.2 if portable else 2.6) + rng.normal(0, 0.4)
    rise = rng.uniform(1.6, 3.2)
    x = chest.x - np.float32(0.8 * chest.pose.rotation)
    s = np.clip((np.abs(x) - 1.3) / 15.5, -0.1, 1.2)
    line = medial - rise * s + 0.75 * np.sin(2 * np.pi * s)
    slope = (-rise + 0.75 * 2 * np.pi * np.cos(2 * np.pi * s)) / 15.5
    distance = np.abs(chest.y - line) / np.sqrt(1 + slope * slope)
    half = 0.52 + 0.35 * np.clip(0.18 - s, 0, 0.2) / 0.2
    band = ramp(half - distance, 2.5 * chest.pixel) * ramp(s + 0.01, 0.04) * ramp(1.0 - s, 0.04)
    return 1.1 * band * (0.7 + 0.6 * ramp(distance - half + 0.3, 0.3))


def _spine(chest: Chest) -> np.ndarray:
    y = chest.y
    x = chest.x + np.float32(0.5 * chest.pose.rotation) - np.float32(chest.patient.spine_curve) * np.sin(y * 0.22)
    half = 1.75 + 0.02 * y
    body = np.sqrt(np.maximum(1 - (x / half) ** 2, 0))
    phase = (y + 6) / 2.35
    phase = phase - np.floor(phase)
    vertebra = 0.75 + 0.25 * ramp(np.minimum(phase, 1 - phase) - 0.08, 0.08)
    pedicle = np.exp(-(((np.abs(x) - 1.15) / 0.33) ** 2) - ((phase - 0.4) / 0.17) ** 2)
    process = np.exp(-((x / 0.28) ** 2) - ((phase - 0.75) / 0.22) ** 2)
    return 1.5 * body * vertebra + 0.55 * pedicle + 0.5 * process


def _shoulder_blades(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Flat triangles: over the lungs in AP, turned out to the sides in PA."""
    canvas = Image.new("L", (128, 128))
    draw = ImageDraw.Draw(canvas)
    scale = 128 / chest.pose.field_of_view
    inner = chest.patient.thorax_half_width - (2.6 if chest.pose.view == "AP" else 0.8) + rng.normal(0, 0.5)
    height = 0.5 * chest.lung_height
    for sign in (-1, 1):
        outline = [
            (inner - 0.4, 0.6),
            (inner + 5.4, 1.6),
            (inner + 4.2, 4.0),
            (inner + 1.3, height),
            (inner + 0.5, height - 0.3),
        ]
        points = [
            ((sign * px + chest.pose.offset[0]) * scale + 64, (py + chest.pose.offset[1]) * scale) for px, py in outline
        ]
        draw.polygon(points, fill=70)
        draw.line([points[1], points[2], points[3]], fill=200, width=2)
        draw.line([points[0], points[4]], fill=130, width=1)
    return resize(np.asarray(canvas, dtype=np.float32) * np.float32(0.55 / 255), chest.size)


def lung_markings(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Vessels that branch from the hila and thin out towards the wall, as cm of soft tissue."""
    # Always on a canvas of this side, so that vessels look alike, and round, at every image size.
    side_length = 512
    scale = side_length / chest.pose.field_of_view
    lines = [_vessel_tree(rng, chest, side) for side in SIDE_SIGN]
    start, end, radius = (np.concatenate(part) for part in zip(*lines, strict=True))
    order = np.argsort(radius, kind="stable")
    # Drawn upright and not tilted: half a degree does not show in vessels, and the lung mask cuts them.
    origin = np.array([chest.pose.field_of_view / 2 + chest.pose.offset[0], chest.pose.offset[1]])
    pixels = np.concatenate([(start + origin) * scale, (end + origin) * scale], axis=1)[order].tolist()
    widths = np.maximum(1, np.rint(2 * radius[order] * scale)).astype(int).tolist()
    drawn = np.minimum(2 * radius[order] * scale / np.array(widths), 1)
    values = np.clip(2 * radius[order] * drawn / 1.8 * 255, 4, 255).astype(int).tolist()
    canvas = Image.new("L", (side_length, side_length))
    draw = ImageDraw.Draw(canvas)
    for line, width, value in zip(pixels, widths, values, strict=True):
        draw.line(line, fill=value, width=width)
    tree = resize(np.asarray(canvas.reduce(2), dtype=np.float32), chest.size) * np.float32(1.8 / 255)
    mottle = 0.16 * smooth_noise(rng, chest.size, 40) + 0.10 * smooth_noise(rng, chest.size, 90)
    roots = np.zeros_like(tree)
    for side, sign in SIDE_SIGN.items():
        hx, hy = chest.hilum[side]
        roots += np.exp(
            -(((chest.x - hx + 0.25 * sign * (chest.y - hy)) / 1.1) ** 2) - ((chest.y - hy - 0.8) / 2.4) ** 2
        )
    return 1.6 * tree + 1.1 * roots + np.maximum(mottle, -0.3)


def _vessel_tree(rng: np.random.Generator, chest: Chest, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sign = SIDE_SIGN[side]
    roots = 11
    angle = np.linspace(-1.35, 1.45, roots) + rng.normal(0, 0.12, roots)  # 0 points sideways, positive down
    point = np.tile(np.array(chest.hilum[side]), (roots, 1)) + rng.normal(0, 0.7, (roots, 2)) * (0.5, 1.2)
    radius = rng.uniform(0.42, 0.70, roots) * np.where(angle > 0, 1.15, 0.85)
    starts, ends, radii = [], [], []
    for _ in range(9):
        length = rng.uniform(0.9, 1.7, len(angle))[:, None]
        step = np.stack([sign * np.cos(angle), np.sin(angle)], axis=1) * length
        starts.append(point)
        ends.append(point + step)
        radii.append(radius)
        point = point + step
        angle = angle + rng.normal(0, 0.16, len(angle))
        radius = radius * 0.85
        fork = rng.random(len(angle)) < 0.33
        spread = rng.uniform(0.35, 0.8, len(angle)) * np.where(rng.random(len(angle)) < 0.5, -1, 1)
        radius = np.where(fork, radius * 0.88, radius)
        point = np.concatenate([point, point[fork]])
        angle = np.concatenate([angle, (angle + spread)[fork]])
        radius = np.concatenate([radius, 0.8 * radius[fork]])
        keep = radius > 0.03
        point, angle, radius = point[keep], angle[keep], radius[keep]
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(radii)
