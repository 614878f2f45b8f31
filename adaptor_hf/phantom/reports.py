"""Radiology-style text for a study: every finding that was drawn is mentioned, none that was not."""

from dataclasses import dataclass

import numpy as np

from .anatomy import Patient, Pose
from .findings import FINDINGS, SIZES, WITH_ZONE, Finding, nodule_diameter, tube_height
from .report_words import (
    ATELECTASIS_NOUNS,
    BOTH_PLACES,
    CERTAIN,
    CLEAR_LUNGS,
    CONSOLIDATION_NOUNS,
    DENIED,
    DEVICE_PHRASES,
    EDEMA_NOUNS,
    NEGATIVE,
    NO_FLUID_NO_AIR,
    NO_OPACITY,
    NODULE_NOUNS,
    NORMAL_IMPRESSION,
    SIZE_WORDS,
    UNCERTAIN,
    ZONE_PLACES,
)

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


@dataclass(frozen=True)
class Report:
    """The text, and for each finding that it speaks of how: 1 present, 0 absent, -1 uncertain."""

    text: str
    mentions: dict[str, float]


def write_report(study: Study, rng: np.random.Generator) -> Report:
    """Report of a study; the same study and generator state give the same report."""
    writer = _Writer(rng)
    form = rng.choice(4, p=(0.5, 0.2, 0.15, 0.15))
    positive = [name for name in FINDINGS if study.of(name)]
    if form == 2:
        text = f"IMPRESSION: {writer.impression(study, positive)}"
    else:
        text = writer.body(study)
        if form == 3:
            text = f"{text} {writer.impression(study, positive)}"
        if form == 0:
            text = f"FINDINGS: {text} IMPRESSION: {writer.impression(study, positive)}"
    return Report(text, writer.mentions)


class _Writer:
    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.mentions: dict[str, float] = {}

    def say(self, name: str, value: float) -> None:
        """Notes a mention; what is said to be there outweighs a doubt, and a doubt a denial."""
        order = (0.0, -1.0, 1.0)
        self.mentions[name] = max(self.mentions.get(name, 0.0), value, key=order.index)

    def pick(self, options: tuple[str, ...]) -> str:
        return options[self.rng.integers(len(options))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def body(self, study: Study) -> str:
        lungs = [*self._finding(study, "consolidation"), *self._finding(study, "atelectasis")]
        lungs += [*self._finding(study, "edema"), *self._finding(study, "nodule")]
        heart = self._finding(study, "cardiomegaly")
        if study.of("effusion") or study.of("pneumothorax") or self.chance(0.4):
            pleura = [*self._finding(study, "effusion"), *self._finding(study, "pneumothorax")]
        else:
            pleura = [*self._healed(study, "effusion", "pneumothorax"), self.pick(NO_FLUID_NO_AIR)]
            self.say("effusion", 0.0)
            self.say("pneumothorax", 0.0)
        devices = self._devices(study)
        parts = [lungs, pleura, heart, self._anatomy(study)]
        order = [0, 1, 2, 3] if self.chance(0.6) else [2, 0, 1, 3]
        sentences = [s for i in order for s in parts[i]]
        sentences = [*devices, *sentences] if self.chance(0.7) else [*sentences, *devices]
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
        level = not study.of("effusion") and not study.of("atelectasis")
        if study.patient.dome_offset < 0 and level and self.chance(0.6):
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

    def _negatives(self, study: Study, name: str) -> tuple[str, ...]:
        """Sentences that deny a finding and hold for all else that is drawn."""
        options = NEGATIVE[name]
        if name == "consolidation" and not any(study.of(other) for other in ("nodule", "atelectasis", "edema")):
            options += NO_OPACITY
            if not study.of("effusion") and not study.of("pneumothorax"):
                options += CLEAR_LUNGS
        return options

    def _finding(self, study: Study, name: str) -> list[str]:
        found = study.of(name)
        if not found:
            healed = self._healed(study, name)
            if (healed and self.chance(0.5)) or not self.chance(DENIED.get(name, 1.0)):
                return healed
            self.say(name, 0.0)
            return [*healed, self.pick(self._negatives(study, name))]
        phrase = self._phrase(name, found)
        change = self._change(study, name)
        small = all(f.size == "small" for f in found)
        if small and change is None and self.chance(0.35):
            sentence = self.pick(UNCERTAIN)
            self.say(name, -1.0)
        else:
            known = change is not None and not change.startswith("new")
            sentence = self.pick(CERTAIN if known else CERTAIN[:-1])
            self.say(name, 1.0)
        text = _fill(sentence, phrase)
        if change is not None and self.chance(0.8):
            text = text[:-1] + f", {change}."
        return [text, *self._detail(study, name, found)]

    def _devices(self, study: Study) -> list[str]:
        """A sentence for each device, for some that were removed, and sometimes one that there is none."""
        out = []
        earlier = {f.kind for f in study.before("device")}
        for device in study.of("device"):
            known = device.kind in earlier
            text = _fill(self.pick(CERTAIN if known else CERTAIN[:-1]), self._device_phrase(device))
            if study.previous is not None and self.chance(0.3):
                text = text[:-1] + (", unchanged." if known else ", new since the prior study.")
            out.append(text)
            self.say("device", 1.0)
        gone = [f for f in study.before("device") if f.kind not in {d.kind for d in study.of("device")}]
        for device in gone:
            if self.chance(0.6):
                out.append(f"The {device.side or 'prior'} {device.kind} has been removed.")
        if not study.of("device") and self.chance(DENIED["device"]):
            out.append(self.pick(NEGATIVE["device"]))
            self.say("device", 0.0)
        return out

    def _device_phrase(self, device: Finding) -> str:
        return self.pick(DEVICE_PHRASES[device.kind]).format(side=device.side, height=f"{tube_height(device):.1f}")

    def _phrase(self, name: str, found: Findings) -> str:
        """The finding as a noun phrase with article, size and place."""
        words = [self.pick(SIZE_WORDS[name][SIZES.index(f.size)]) for f in found]
        if name == "cardiomegaly":
            noun = self.pick(("cardiomegaly", "enlargement of the cardiac silhouette", "cardiac enlargement"))
            return f"{words[0]} {noun}"
        if name == "edema":
            return f"{words[0]} {self.pick(EDEMA_NOUNS)}"
        both = len(found) == 2
        side = found[0].side
        if name in WITH_ZONE:
            places = BOTH_PLACES if both else ZONE_PLACES
            place = self.pick(places[found[0].zone]).format(side=side)
            size = f"{words[0]} " if (not both or found[0].size == found[1].size) and self.chance(0.8) else ""
            if name == "nodule" and self.chance(0.4):
                size = f"{nodule_diameter(found[0]):.1f} cm "
            nouns = {"consolidation": CONSOLIDATION_NOUNS, "nodule": NODULE_NOUNS, "atelectasis": ATELECTASIS_NOUNS}
            phrase = f"{size}{self.pick(nouns[name])}"
            return (
                f"{_article(phrase)} {place}"
                if phrase.endswith(("opacity", "infiltrate", "nodule"))
                else f"{phrase} {place}"
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
        if name == "edema":
            options = ("Perihilar haze is present bilaterally.", "The pulmonary vessels are engorged.")
            return [self.pick((*options, "Vascular markings are indistinct."))]
        if name == "cardiomegaly":
            return [
                self.pick(("The cardiothoracic ratio is increased.", "The heart exceeds half of the thoracic width."))
            ]
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
            if all(f.side != other for f in study.findings) and not study.of("edema"):
                options += (f"The {other} lung is clear.",)
            return [self.pick(options)]
        if name == "nodule":
            return [self.pick(("Follow-up CT is advised.", "Comparison with older images is recommended."))]
        if name == "atelectasis":
            if only.size == "small":
                return []
            return [self.pick((f"The {only.side} hemidiaphragm is elevated.", f"Volume loss on the {only.side}."))]
        if name == "effusion":
            if only.size == "small":
                return [f"The {only.side} costophrenic angle is blunted."]
            return [
                self.pick((f"The {only.side} hemidiaphragm is obscured.", f"The {other} costophrenic angle is sharp."))
            ]
        line = f"A visceral pleural line is visible on the {only.side}."
        return [self.pick((line, f"No pneumothorax on the {other}."))]

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
                side = "" if sides == {None} else f"{sides.pop()} " if len(sides) == 1 else "bilateral "
                many = side == "bilateral " and name in ("effusion", "consolidation")
                noun = {"effusion": "pleural effusion", "edema": "pulmonary edema"}.get(name, name) + "s" * many
                self.say(name, 0.0)
                resolved = f"The prior {side}{noun} {'have' if many else 'has'} resolved."
                out.append(self.pick((resolved, f"Interval resolution of the {side}{noun}.")))
        return out

    def impression(self, study: Study, positive: list[str]) -> str:
        if not positive:
            return self.pick(NORMAL_IMPRESSION)
        phrases = []
        for name in positive:
            if name == "device":
                phrases += [self._device_phrase(device) for device in study.of(name)]
            else:
                phrases.append(self._phrase(name, study.of(name)))
            self.say(name, 1.0)
        phrases = [_capital(phrase) for phrase in phrases]
        order = self.rng.permutation(len(phrases))
        if len(phrases) > 1 and self.chance(0.3):
            return " ".join(f"{rank}. {phrases[i]}." for rank, i in enumerate(order, 1))
        absent = [name for name in ("pneumothorax", "effusion", "consolidation") if name not in positive]
        extra = []
        if absent and self.chance(0.3):
            extra = [self.pick(self._negatives(study, absent[0]))]
            self.say(absent[0], 0.0)
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
