"""Who is imaged, and how: the numbers that one patient and one exposure are drawn from (lengths in cm)."""

from dataclasses import dataclass

import numpy as np

VIEWS = ("PA", "AP")


@dataclass(frozen=True)
class Patient:
    """What stays the same over all studies of a patient. Lengths in cm."""

    thorax_half_width: float  # inner half width of the rib cage at its widest
    lung_height: float  # lung apex to the top of the right dome, full inspiration
    depth: float  # chest wall to chest wall, front to back, without fat
    fat: float  # thickness of the subcutaneous layer
    breast: float  # thickness of a breast shadow, 0 for none
    heart_ratio: float  # cardiothoracic ratio when not enlarged
    heart_tilt: float  # radians; small is a horizontal heart
    aorta_radius: float
    dome_offset: float  # how much lower the left dome lies
    rib_spacing: float
    rib_drop: float  # from the posterior to the anterior end of one rib
    rib_density: float  # relative, 1 is typical
    spine_curve: float  # sideways excursion
    gastric_gas: float  # largest gas path under the left dome, 0 for none
    texture_seed: int  # vessels and rib irregularities, the same in every study
    sex: str  # "F" or "M"
    age: int  # years

    @property
    def prominent_aorta(self) -> bool:
        return self.aorta_radius > 2.15


@dataclass(frozen=True)
class Pose:
    """What differs from exposure to exposure. Lengths in cm."""

    view: str
    field_of_view: float
    offset: tuple[float, float]  # of the midline from the centre, of the apex from the top edge
    tilt: float  # radians, in the image plane
    rotation: float  # sideways shift of the breastbone against the spine
    photons: float  # per pixel in open air
    scatter: float  # scattered over primary radiation, mean
    blur: float  # weight of the neighbouring pixels
    window: tuple[float, float]  # percentiles of the log image shown as black and white
    toe: float  # how far below the darker percentile black lies, share of the window
    gamma: float
    local_contrast: float  # share of unsharp masking, as detectors apply it
    collimation: tuple[float, float, float, float]  # dark borders, share of the image: left, top, right, bottom
    marker: str  # "L" or "R", the letter that stands on that side
    marker_position: tuple[float, float]  # share of the image, away from that side's edge and the top

    @property
    def rotated(self) -> bool:
        return abs(self.rotation) > 1.0


def sample_patient(rng: np.random.Generator) -> Patient:
    """Draws one patient."""
    female = rng.random() < 0.5
    size = rng.normal(0.95 if female else 1.04, 0.05)
    obesity = rng.beta(1.6, 3.0)
    aorta_radius = float(rng.uniform(1.5, 2.4))
    return Patient(
        thorax_half_width=float(np.clip(13.6 * size + 0.8 * obesity, 11.5, 15.8)),
        lung_height=float(np.clip(22.5 * size * rng.normal(1, 0.05) - 2 * obesity, 17, 26.5)),
        depth=float(np.clip(20 * size * rng.normal(1, 0.06), 16, 25)),
        fat=0.6 + 4.0 * obesity,
        breast=float(rng.uniform(1.0, 2.6) + 1.6 * obesity) if female else 0.0,
        heart_ratio=float(rng.uniform(0.39, 0.475)),
        heart_tilt=float(rng.uniform(0.45, 0.95)),
        aorta_radius=aorta_radius,
        dome_offset=float(rng.normal(1.0, 0.7)),
        rib_spacing=float(rng.uniform(2.35, 2.75)) * size,
        rib_drop=float(rng.uniform(7.5, 11.0)),
        rib_density=float(rng.uniform(0.7, 1.25)),
        spine_curve=float(rng.normal(0, 0.35)),
        gastric_gas=float(rng.uniform(2.0, 6.0)) if rng.random() < 0.7 else 0.0,
        texture_seed=int(rng.integers(2**31)),
        sex="F" if female else "M",
        # The aorta widens with age.
        age=int(np.clip(rng.normal(30 + 40 * (aorta_radius - 1.5) / 0.9, 12), 18, 92)),
    )


def sample_pose(rng: np.random.Generator, patient: Patient, view: str) -> Pose:
    """Draws one exposure; AP (portable) ones are less well centred, noisier and less sharp."""
    portable = view == "AP"
    spread = 1.6 if portable else 1.0
    collimated = rng.random(4) < (0.3 if portable else 0.15)
    width = 2 * (patient.thorax_half_width + 0.35 * patient.fat) + rng.uniform(4.0, 9.0)
    height = patient.lung_height + rng.uniform(10.0, 13.5)
    return Pose(
        view=view,
        field_of_view=max(width, height) * (0.97 if portable else 1.0),
        offset=(float(rng.normal(0, 0.6 * spread)), float(rng.uniform(2.6, 5.0))),
        tilt=float(rng.normal(0, 0.018 * spread)),
        rotation=float(rng.normal(0, 0.45 * spread)),
        photons=float(np.exp(rng.uniform(np.log(4e4), np.log(6e5)))) / spread,
        scatter=float(rng.uniform(0.15, 0.45) * (1.5 if portable else 1.0)),
        blur=float(rng.uniform(0.05, 0.16) * spread),
        window=(float(rng.uniform(1.0, 6.0)), float(rng.uniform(82, 95))),
        toe=float(rng.uniform(0.08, 0.5)),
        gamma=float(np.exp(rng.normal(0, 0.16))),
        local_contrast=float(rng.uniform(0.1, 0.7)),
        collimation=tuple(float(v) for v in np.where(collimated, rng.uniform(0.01, 0.06, 4), 0.0)),
        marker="L" if rng.random() < 0.7 else "R",
        marker_position=(float(rng.uniform(0.05, 0.11)), float(rng.uniform(0.05, 0.2))),
    )
