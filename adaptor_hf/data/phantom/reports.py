"""Radiology-style text for a study: every finding that was drawn is mentioned, none that was not."""

from dataclasses import dataclass

import numpy as np

from .anatomy import Patient, Pose
from .findings import FINDINGS, SIZES, Finding

Findings = tuple[Finding, ...]


@dataclass(frozen=True)
class Study:
    """What a report is written from. `previous` is None for a first study; `inspiration` 1 is full."""

    patient: Patient
    poses: tuple[Pose, ...]
    findings: Findings
    previous: Findings | None
    inspiration: float

    def of(self, name: str) -> Findings:
        return tuple(f for f in self.findings if f.name == name)

    def before(self, name: str) -> Findings:
        return tuple(f for f in self.previous or () if f.name == name)


_NEGATIVE = {
    "consolidation": (
        "No focal consolidation.",
        "There is no focal airspace opacity.",
        "No consolidation or infiltrate is identified.",
        "No airspace disease to suggest pneumonia.",
        "There is no evidence of pneumonia.",
        "No confluent opacity.",
    ),
    "effusion": (
        "No pleural effusion.",
        "The costophrenic angles are sharp.",
        "There is no pleural fluid.",
        "No evidence of pleural effusion on either side.",
        "Costophrenic sulci are clear.",
        "No sizable effusion is seen.",
        "Pleural spaces are free of fluid.",
    ),
    "pneumothorax": (
        "No pneumothorax.",
        "There is no evidence of pneumothorax.",
        "No pneumothorax is identified.",
        "No definite pneumothorax.",
        "No pleural line to suggest pneumothorax.",
        "Negative for pneumothorax.",
    ),
    "cardiomegaly": (
        "The heart size is normal.",
        "Heart size is within normal limits.",
        "The cardiac silhouette is not enlarged.",
        "Normal cardiac silhouette.",
        "No cardiomegaly.",
        "The heart is normal in size.",
        "The heart is not enlarged.",
    ),
}
# Only where the pleural spaces are free as well.
_CLEAR_LUNGS = (
    "The lungs are clear.",
    "Both lungs are well aerated without consolidation.",
    "Lungs are free of focal opacity.",
    "Clear lungs.",
)
_NO_FLUID_NO_AIR = (
    "No pleural effusion or pneumothorax.",
    "There is no pneumothorax or pleural effusion.",
    "Neither pleural effusion nor pneumothorax is seen.",
    "The pleural spaces are clear, without effusion or pneumothorax.",
    "No effusion. No pneumothorax.",
)
_NORMAL_IMPRESSION = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "No acute intrathoracic process.",
    "No radiographic evidence of acute disease.",
    "No acute findings.",
)
_SIZE_WORDS = {
    "consolidation": (
        ("small", "focal", "subtle", "patchy"),
        ("moderate", "confluent"),
        ("large", "extensive", "dense"),
    ),
    "effusion": (("small", "trace", "minimal"), ("moderate", "moderate-sized"), ("large", "massive")),
    "pneumothorax": (("small", "tiny", "minimal"), ("moderate", "moderate-sized"), ("large", "sizeable")),
    "cardiomegaly": (("mild", "borderline to mild"), ("moderate",), ("severe", "marked")),
}
_CONSOLIDATION_NOUNS = (
    "consolidation",
    "airspace opacity",
    "airspace disease",
    "infiltrate",
    "parenchymal opacity",
    "airspace consolidation",
)
_ZONE_PLACES = {
    "upper": (
        "in the {side} upper lobe",
        "in the {side} upper zone",
        "in the {side} upper lung",
        "towards the {side} apex",
    ),
    "mid": ("in the {side} mid lung", "in the {side} mid zone", "in the {side} midlung zone"),
    "lower": (
        "in the {side} lower lobe",
        "at the {side} lung base",
        "in the {side} lower zone",
        "in the {side} basal lung",
    ),
}
_BOTH_PLACES = {
    "upper": ("in both upper lobes", "in the upper zones bilaterally"),
    "mid": ("in both mid lungs", "in the mid zones bilaterally"),
    "lower": ("at both lung bases", "in the lower lobes bilaterally", "in both lower zones"),
}
_CERTAIN = (
    "There is {a}.",
    "{A} is seen.",
    "{A} is present.",
    "{A} is noted.",
    "Findings include {a}.",
    "{A} is again demonstrated.",
)
_UNCERTAIN = (
    "There is possibly {a}.",
    "Findings suggest {a}.",
    "{A} is suspected.",
    "Appearances are suspicious for {a}.",
    "There may be {a}.",
    "{A} is favoured.",
    "There is probably {a}.",
)


def write_report(study: Study, rng: np.random.Generator) -> str:
    """Report text of a study; the same study and generator state give the same text."""
    writer = _Writer(rng)
    form = rng.choice(4, p=(0.5, 0.2, 0.15, 0.15))
    positive = [name for name in FINDINGS if study.of(name)]
    if form == 2:
        return f"IMPRESSION: {writer.impression(study, positive)}"
    body = writer.body(study)
    if form == 1:
        return body
    if form == 3:
        return f"{body} {writer.impression(study, positive)}"
    return f"FINDINGS: {body} IMPRESSION: {writer.impression(study, positive)}"


class _Writer:
    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def pick(self, options: tuple[str, ...]) -> str:
        return options[self.rng.integers(len(options))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def body(self, study: Study) -> str:
        lungs = self._finding(study, "consolidation")
        heart = self._finding(study, "cardiomegaly")
        if study.of("effusion") or study.of("pneumothorax") or self.chance(0.4):
            pleura = [*self._finding(study, "effusion"), *self._finding(study, "pneumothorax")]
        else:
            pleura = [*self._healed(study, "effusion", "pneumothorax"), self.pick(_NO_FLUID_NO_AIR)]
        parts = [lungs, pleura, heart, self._anatomy(study)]
        order = [0, 1, 2, 3] if self.chance(0.6) else [2, 0, 1, 3]
        sentences = [s for i in order for s in parts[i]]
        return " ".join([*self._technique(study), *sentences])

    def _technique(self, study: Study) -> list[str]:
        views = [pose.view for pose in study.poses]
        out = []
        if self.chance(0.45):
            if len(views) == 2:
                both = f"Two {views[0]} views" if views[0] == views[1] else f"{views[0]} and {views[1]} views"
                out.append(f"{both} of the chest.")
            elif views[0] == "AP":
                out.append(self.pick(("Portable AP view of the chest.", "Single AP radiograph.", "AP chest.")))
            else:
                out.append(self.pick(("PA view of the chest.", "Single PA radiograph.", "PA chest.")))
        if study.inspiration < 0.86 and self.chance(0.8):
            out.append(self.pick(("Low lung volumes.", "Lung volumes are low.", "The inspiratory effort is poor.")))
        if len(study.poses) == 1 and study.poses[0].rotated and self.chance(0.7):
            out.append(self.pick(("The patient is rotated.", "Rotated position.")))
        if study.previous is not None and self.chance(0.35):
            out.append(self.pick(("Comparison is made with the prior study.", "A prior radiograph is available.")))
        return out

    def _anatomy(self, study: Study) -> list[str]:
        """Remarks on what is drawn besides findings."""
        out = []
        if study.patient.prominent_aorta and self.chance(0.7):
            out.append(self.pick(("The aortic knob is prominent.", "Prominent aortic arch.", "The aorta is unfolded.")))
        if study.patient.dome_offset < 0 and not study.of("effusion") and self.chance(0.6):
            out.append(
                self.pick(("The left hemidiaphragm is mildly elevated.", "Mild elevation of the left hemidiaphragm."))
            )
        if study.patient.gastric_gas > 4.5 and not study.of("effusion") and self.chance(0.4):
            out.append(self.pick(("A gastric air bubble is visible.", "Gas is noted in the stomach.")))
        if self.chance(0.35):
            options = ["No acute osseous abnormality.", "The bones are intact.", "No displaced rib fracture."]
            pushed = any(f.size == "large" and f.name in ("effusion", "pneumothorax") for f in study.findings)
            if not pushed:
                options.append("The trachea is midline.")
            out.append(self.pick(tuple(options)))
        return out

    def _finding(self, study: Study, name: str) -> list[str]:
        found = study.of(name)
        if not found:
            healed = self._healed(study, name)
            options = _NEGATIVE[name]
            if name == "consolidation" and not study.of("effusion") and not study.of("pneumothorax"):
                options += _CLEAR_LUNGS
            return healed if healed and self.chance(0.5) else [*healed, self.pick(options)]
        phrase = self._phrase(name, found)
        change = self._change(study, name)
        small = all(f.size == "small" for f in found)
        if small and change is None and self.chance(0.35):
            sentence = self.pick(_UNCERTAIN)
        else:
            known = change is not None and not change.startswith("new")
            sentence = self.pick(_CERTAIN if known else _CERTAIN[:-1])
        text = _fill(sentence, phrase)
        if change is not None and self.chance(0.8):
            text = text[:-1] + f", {change}."
        return [text, *self._detail(study, name, found)]

    def _phrase(self, name: str, found: Findings) -> str:
        """The finding as a noun phrase with article, size and place."""
        words = [self.pick(_SIZE_WORDS[name][SIZES.index(f.size)]) for f in found]
        if name == "cardiomegaly":
            noun = self.pick(("cardiomegaly", "enlargement of the cardiac silhouette", "cardiac enlargement"))
            return f"{words[0]} {noun}"
        both = len(found) == 2
        side = found[0].side
        if name == "consolidation":
            places = _BOTH_PLACES if both else _ZONE_PLACES
            place = self.pick(places[found[0].zone]).format(side=side)
            size = f"{words[0]} " if (not both or found[0].size == found[1].size) and self.chance(0.8) else ""
            noun = self.pick(_CONSOLIDATION_NOUNS)
            return (
                _article(f"{size}{noun} {place}")
                if noun.endswith(("opacity", "infiltrate"))
                else f"{size}{noun} {place}"
            )
        noun = self.pick(("pleural effusion", "effusion", "pleural fluid collection")) if name == "effusion" else name
        if both and found[0].size == found[1].size:
            return f"bilateral {words[0]} {noun}s" if self.chance(0.5) else f"{words[0]} bilateral {noun}s"
        if both:
            return f"{_article(f'{words[0]} right')} and {_article(f'{words[1]} left {noun}')}"
        if name == "pneumothorax" and found[0].size != "large" and self.chance(0.5):
            noun = "apical pneumothorax"
        return _article(f"{words[0]} {noun} on the {side}" if self.chance(0.2) else f"{words[0]} {side} {noun}")

    def _detail(self, study: Study, name: str, found: Findings) -> list[str]:
        """A second sentence that holds for what is drawn."""
        if not self.chance(0.4):
            return []
        if len(found) == 2:
            severity = [f.severity for f in found]
            if name == "effusion" and abs(severity[0] - severity[1]) > 0.7:
                return [f"The {('right', 'left')[int(severity[1] > severity[0])]} side is larger."]
            return []
        only, other = found[0], "left" if found[0].side == "right" else "right"
        if name == "consolidation":
            options = (
                "This may represent pneumonia in the appropriate clinical setting.",
                "Correlate clinically for infection.",
                "Follow-up to resolution is advised.",
            )
            if all(f.side != other for f in study.findings):
                options += (f"The {other} lung is clear.",)
            return [self.pick(options)]
        if name == "effusion":
            if only.size == "small":
                return [f"The {only.side} costophrenic angle is blunted."]
            return [
                self.pick((f"The {only.side} hemidiaphragm is obscured.", f"The {other} costophrenic angle is sharp."))
            ]
        if name == "pneumothorax":
            line = f"A visceral pleural line is visible on the {only.side}."
            return [self.pick((line, f"No pneumothorax on the {other}."))]
        return [self.pick(("The cardiothoracic ratio is increased.", "The heart exceeds half of the thoracic width."))]

    def _change(self, study: Study, name: str) -> str | None:
        """How a finding compares with the prior study; None on a first study, or where sides differ."""
        if study.previous is None:
            return None
        now, then = study.of(name), study.before(name)
        if not then:
            return self.pick(("new since the prior study", "new from prior"))
        if [(f.side, f.zone) for f in now] != [(f.side, f.zone) for f in then]:
            return None
        steps = [SIZES.index(a.size) - SIZES.index(b.size) for a, b in zip(now, then, strict=True)]
        if all(step == 0 for step in steps):
            return self.pick(("unchanged", "stable from prior", "similar to the prior study"))
        if min(steps) >= 0:
            return self.pick(("increased from prior", "larger than before", "worse than on the prior study"))
        if max(steps) <= 0:
            return self.pick(("decreased from prior", "improved since the prior study", "smaller than before"))
        return None

    def _healed(self, study: Study, *names: str) -> list[str]:
        """Findings of the prior study that are gone."""
        out = []
        for name in names:
            if study.before(name) and not study.of(name) and self.chance(0.7):
                sides = {f.side for f in study.before(name)}
                side = "bilateral" if len(sides) == 2 else sides.pop()
                noun = {"effusion": "pleural effusion"}.get(name, name) + ("s" if side == "bilateral" else "")
                have = "have" if side == "bilateral" else "has"
                out.append(
                    self.pick(
                        (f"The prior {side} {noun} {have} resolved.", f"Interval resolution of the {side} {noun}.")
                    )
                )
        return out

    def impression(self, study: Study, positive: list[str]) -> str:
        if not positive:
            return self.pick(_NORMAL_IMPRESSION)
        phrases = [_capital(self._phrase(name, study.of(name))) for name in positive]
        order = self.rng.permutation(len(phrases))
        if len(phrases) > 1 and self.chance(0.3):
            return " ".join(f"{rank}. {phrases[i]}." for rank, i in enumerate(order, 1))
        closing = [_NEGATIVE[name] for name in ("pneumothorax", "effusion", "consolidation") if name not in positive]
        extra = [self.pick(closing[0])] if closing and self.chance(0.3) else []
        return " ".join([*(f"{phrases[i]}." for i in order), *extra])


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _fill(template: str, phrase: str) -> str:
    text = template.replace("{a}", phrase).replace("{A}", _capital(phrase))
    if " and a" in phrase or ("bilateral " in phrase and phrase.endswith("s")):
        text = text.replace("There is ", "There are ").replace(" is ", " are ")
    return text
