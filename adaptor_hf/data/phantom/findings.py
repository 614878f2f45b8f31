"""Which findings a study has, and how they change from one study of a patient to the next."""

from dataclasses import dataclass, replace

import numpy as np

FINDINGS = ("consolidation", "effusion", "pneumothorax", "cardiomegaly")
SIDES = ("right", "left")
ZONES = ("upper", "mid", "lower")
SIZES = ("small", "moderate", "large")

# Drawn independently of the view, so that "portable" does not stand for "ill".
_PREVALENCE = {"consolidation": 0.29, "effusion": 0.27, "pneumothorax": 0.26, "cardiomegaly": 0.24}
_NORMAL_SHARE = 0.12


@dataclass(frozen=True)
class Finding:
    """One lesion. A finding on both sides is two of them.

    `side` is the patient's; it lies on the other side of the image; None for cardiomegaly. `zone` belongs to
    consolidation only. `extent` in [0, 1) places the lesion inside its size class. `shape_seed` fixes place and shape,
    so that a lesion looks the same in both images of a study and is recognised in a follow-up.
    """

    name: str
    side: str | None
    zone: str | None
    size: str
    extent: float
    shape_seed: int = 0

    @property
    def severity(self) -> float:
        """Size class and extent as one number in [0, 3)."""
        return SIZES.index(self.size) + self.extent


def _draw(rng: np.random.Generator, name: str, side: str | None, zone: str | None) -> Finding:
    size = SIZES[rng.choice(3, p=(0.35, 0.4, 0.25))]
    return Finding(name, side, zone, size, float(rng.random()), int(rng.integers(2**31)))


def _allowed(finding: Finding, others: list[Finding]) -> bool:
    """Pairs that would hide each other, or read as something else together, are not drawn on one side."""
    for other in others:
        if other.side != finding.side or finding.side is None:
            continue
        pair = {finding.name, other.name}
        if "pneumothorax" in pair:
            return False
        if pair == {"effusion", "consolidation"}:
            effusion, lung = (finding, other) if finding.name == "effusion" else (other, finding)
            if effusion.size == "large" or (effusion.size == "moderate" and lung.zone == "lower"):
                return False
    return True


def _add(rng: np.random.Generator, name: str, found: list[Finding]) -> None:
    if name == "cardiomegaly":
        found.append(_draw(rng, name, None, None))
        return
    both = rng.random() < {"consolidation": 0.18, "effusion": 0.25, "pneumothorax": 0.0}[name]
    zone = ZONES[rng.choice(3, p=(0.27, 0.28, 0.45))] if name == "consolidation" else None
    sides = SIDES if both else (SIDES[rng.integers(2)],)
    for side in sides:
        candidate = _draw(rng, name, side, zone)
        if _allowed(candidate, found):
            found.append(candidate)


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
    """The findings of a follow-up study: each earlier one heals, stays or changes by one size; a new one may come."""
    found: list[Finding] = []
    for finding in previous:
        step = int(rng.choice((-1, 0, 1), p=(0.35, 0.45, 0.2)))
        if finding.name == "cardiomegaly":
            found.append(finding)
            continue
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
    return tuple(sorted(found, key=lambda f: (FINDINGS.index(f.name), SIDES.index(f.side) if f.side else 0)))


def side_of(findings: tuple[Finding, ...], name: str) -> str:
    """ "right", "left", "bilateral", or "" where the finding is absent or has no side."""
    sides = [f.side for f in findings if f.name == name and f.side]
    return "bilateral" if len(sides) == 2 else (sides[0] if sides else "")


def describe(findings: tuple[Finding, ...]) -> dict[str, int | str]:
    """One row of facts: a 0/1 label per finding, then sides, the zone of consolidation and sizes ("" when absent).

    Where both sides are affected the size is the larger one.
    """
    row: dict[str, int | str] = {name: int(any(f.name == name for f in findings)) for name in FINDINGS}
    row |= {f"{name}_side": side_of(findings, name) for name in FINDINGS if name != "cardiomegaly"}
    row["consolidation_zone"] = next((f.zone for f in findings if f.name == "consolidation"), "")
    for name in FINDINGS:
        sizes = [SIZES.index(f.size) for f in findings if f.name == name]
        row[f"{name}_size"] = SIZES[max(sizes)] if sizes else ""
    return row
