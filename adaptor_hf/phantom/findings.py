"""Which findings a study has, and how they change from one study of a patient to the next."""

from dataclasses import dataclass, replace

import numpy as np

FINDINGS = ("consolidation", "effusion", "pneumothorax", "cardiomegaly", "nodule", "atelectasis", "edema", "device")
SIDES = ("right", "left")
ZONES = ("upper", "mid", "lower")
SIZES = ("small", "moderate", "large")
DEVICES = ("endotracheal tube", "enteric tube", "central venous catheter", "pacemaker")

WITH_SIDE = ("consolidation", "effusion", "pneumothorax", "nodule", "atelectasis")
"""Findings of one lung; a device has a side only if it is a catheter or a pacemaker."""
WITH_ZONE = ("consolidation", "nodule", "atelectasis")
WITH_SIZE = FINDINGS[:-1]

# Drawn independently of the view, so that "portable" does not stand for "ill".
_PREVALENCE = {
    "consolidation": 0.28,
    "effusion": 0.26,
    "pneumothorax": 0.3,
    "cardiomegaly": 0.23,
    "nodule": 0.17,
    "atelectasis": 0.17,
    "edema": 0.15,
    "device": 0.2,
}
_NORMAL_SHARE = 0.18
_BOTH_SIDES = {"consolidation": 0.18, "effusion": 0.25, "atelectasis": 0.25}
_ZONE_SHARES = {"consolidation": (0.27, 0.28, 0.45), "nodule": (0.4, 0.35, 0.25), "atelectasis": (0, 0.25, 0.75)}
_DEVICE_SHARES = {"endotracheal tube": 0.35, "enteric tube": 0.3, "central venous catheter": 0.4, "pacemaker": 0.3}
# A follow-up's chance of one size less, the same size, one size more.
_STEPS = {"nodule": (0.1, 0.6, 0.3), "cardiomegaly": (0, 1, 0)}


@dataclass(frozen=True)
class Finding:
    """One lesion or device. A finding on both sides is two of them.

    `side` is the patient's; it lies on the other side of the image; None for cardiomegaly, edema and tubes. `zone`
    belongs to WITH_ZONE only. `extent` in [0, 1) places the lesion inside its size class. `shape_seed` fixes place and
    shape, so that a lesion looks the same in both images of a study and is recognised in a follow-up. A device has a
    `kind` of DEVICES and no size.
    """

    name: str
    side: str | None
    zone: str | None
    size: str | None
    extent: float
    shape_seed: int = 0
    kind: str | None = None

    @property
    def severity(self) -> float:
        """Size class and extent as one number in [0, 3)."""
        return SIZES.index(self.size) + self.extent


def nodule_diameter(finding: Finding) -> float:
    """Diameter of a nodule in cm, 0.7 to 3.0; under 1 cm exactly where it is small."""
    least, more = ((0.7, 0.24), (1.1, 0.8), (2.0, 1.0))[SIZES.index(finding.size)]
    return least + more * finding.extent


def tube_height(finding: Finding) -> float:
    """How far above the carina an endotracheal tube ends, 2.5 to 5.5 cm."""
    return 2.5 + 3 * finding.extent


def _draw(rng: np.random.Generator, name: str, side: str | None, zone: str | None) -> Finding:
    size = SIZES[rng.choice(3, p=(0.35, 0.4, 0.25))]
    return Finding(name, side, zone, size, float(rng.random()), int(rng.integers(2**31)))


def _allowed(finding: Finding, others: list[Finding]) -> bool:
    """Pairs that would hide each other, or read as something else together, are not drawn on one side."""
    for other in others:
        pair = {finding.name: finding, other.name: other}
        if "edema" in pair:
            # Dense edema is white itself, and any edema hides a nodule.
            if "nodule" in pair or ("consolidation" in pair and pair["edema"].size == "large"):
                return False
            continue
        if other.side != finding.side or finding.side is None or "device" in pair:
            continue
        if "pneumothorax" in pair:
            return False
        lung = next((pair[name] for name in WITH_ZONE if name in pair), None)
        if "effusion" in pair and lung is not None:
            size = pair["effusion"].size
            if size == "large" or (size == "moderate" and lung.zone == "lower"):
                return False
            if lung.name == "atelectasis" and lung.size == "large":
                return False
        elif finding.zone == other.zone or pair.keys() == {"consolidation", "nodule"}:
            return False
    return True


def _add(rng: np.random.Generator, name: str, found: list[Finding]) -> None:
    if name == "device":
        found += _draw_devices(rng)
        return
    zone = ZONES[rng.choice(3, p=_ZONE_SHARES[name])] if name in WITH_ZONE else None
    sides: tuple[str | None, ...] = (None,)
    if name in WITH_SIDE:
        sides = SIDES if rng.random() < _BOTH_SIDES.get(name, 0) else (SIDES[rng.integers(2)],)
    for side in sides:
        candidate = _draw(rng, name, side, zone)
        if _allowed(candidate, found):
            found.append(candidate)


def _draw_devices(rng: np.random.Generator) -> list[Finding]:
    """One device or several, at most one of a kind."""
    kinds = [kind for kind, share in _DEVICE_SHARES.items() if rng.random() < share]
    kinds = kinds or [DEVICES[rng.integers(len(DEVICES))]]
    out = []
    for kind in kinds:
        left = {"central venous catheter": 0.35, "pacemaker": 0.75}.get(kind)
        side = None if left is None else SIDES[int(rng.random() < left)]
        out.append(Finding("device", side, None, None, float(rng.random()), int(rng.integers(2**31)), kind))
    return out


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    """The findings of a patient's first study, in the order of FINDINGS; empty for a normal one."""
    found: list[Finding] = []
    if rng.random() < _NORMAL_SHARE:
        return ()
    for name in FINDINGS:
        if rng.random() < _PREVALENCE[name]:
            _add(rng, name, found)
    return _ordered(found)


def evolve_findings(rng: np.random.Generator, previous: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings of a follow-up study: each earlier one heals, stays or changes by one size; a new one may come.

    An enlarged heart and a pacemaker stay; other devices are left in or removed.
    """
    found: list[Finding] = []
    for finding in previous:
        if finding.name == "device":
            removed = rng.random() < 0.4
            if finding.kind == "pacemaker" or not removed:
                found.append(finding)
            continue
        step = int(rng.choice((-1, 0, 1), p=_STEPS.get(finding.name, (0.35, 0.45, 0.2))))
        index = SIZES.index(finding.size) + step
        if index < 0:
            continue
        grown = replace(finding, size=SIZES[min(index, 2)])
        if _allowed(grown, found):
            found.append(grown)
    present = {finding.name for finding in found}
    for name in FINDINGS:
        if name not in present and rng.random() < 0.35 * _PREVALENCE[name]:
            _add(rng, name, found)
    return _ordered(found)


def _ordered(found: list[Finding]) -> tuple[Finding, ...]:
    def place(finding: Finding) -> tuple[int, int, int]:
        kind = DEVICES.index(finding.kind) if finding.kind else 0
        return FINDINGS.index(finding.name), kind, SIDES.index(finding.side) if finding.side else 0

    return tuple(sorted(found, key=place))


def side_of(findings: tuple[Finding, ...], name: str) -> str:
    """ "right", "left", "bilateral", or "" where the finding is absent or has no side."""
    sides = [f.side for f in findings if f.name == name and f.side]
    return "bilateral" if len(sides) == 2 else (sides[0] if sides else "")


def describe(findings: tuple[Finding, ...]) -> dict[str, int | str]:
    """One row of facts: a 0/1 label per finding, then sides, zones, sizes and kinds of device ("" when absent).

    Where both sides are affected the size is the larger one.
    """
    row: dict[str, int | str] = {name: int(any(f.name == name for f in findings)) for name in FINDINGS}
    row |= {f"{name}_side": side_of(findings, name) for name in WITH_SIDE}
    for name in WITH_ZONE:
        row[f"{name}_zone"] = next((f.zone for f in findings if f.name == name), "")
    for name in WITH_SIZE:
        sizes = [SIZES.index(f.size) for f in findings if f.name == name]
        row[f"{name}_size"] = SIZES[max(sizes)] if sizes else ""
    row["device_kinds"] = ", ".join(f.kind for f in findings if f.kind)
    return row
