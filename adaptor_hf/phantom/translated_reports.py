"""Reports in other languages than English, from a table of words: fewer forms, the same truth about what is drawn."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from .findings import FINDINGS, SIZES, WITH_SIDE, WITH_ZONE, Finding, nodule_diameter, tube_height
from .reports import Report, Study, write_report

_FOLDER = Path(__file__).parent / "words"
LANGUAGES = ("en", *sorted(path.stem for path in _FOLDER.glob("*.json")))
"""Languages that reports can be written in."""

# How often an absent finding is denied; the others always are. As in the English reports.
_DENIED = {"nodule": 0.25, "atelectasis": 0.2, "edema": 0.35, "device": 0.15}


def write_report_in(language: str, study: Study, rng: np.random.Generator) -> Report:
    """
    Report of a study; the same study and generator state give the same report.

    Raises:
        ValueError: no words for this language.
    """
    if language == "en":
        return write_report(study, rng)
    if language not in LANGUAGES:
        raise ValueError(f"No reports in the language {language!r}. Choose one of: {', '.join(LANGUAGES)}.")
    return _Writer(_words(language), rng).report(study)


@cache
def _words(language: str) -> dict:
    return json.loads((_FOLDER / f"{language}.json").read_text(encoding="utf-8"))


class _Writer:
    def __init__(self, words: dict, rng: np.random.Generator):
        self.words, self.rng = words, rng
        self.mentions: dict[str, float] = {}

    def pick(self, options: list[str]) -> str:
        return options[self.rng.integers(len(options))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def report(self, study: Study) -> Report:
        form = self.rng.choice(3, p=(0.6, 0.25, 0.15))
        body, impression = self.body(study), self.impression(study)
        first, second = self.words["headings"]
        if form == 2:
            # What only the body would have said is not in this report.
            self.mentions = {name: 1.0 for name in FINDINGS if study.of(name)}
            return Report(impression, self.mentions)
        text = f"{first} {body} {second} {impression}" if form == 0 else body
        if form == 0:
            self.mentions |= {name: 1.0 for name in FINDINGS if study.of(name)}
        return Report(text, self.mentions)

    def body(self, study: Study) -> str:
        sentences = []
        if self.chance(0.45):
            sentences.append(self.pick(self.words["technique"][study.poses[0].view]))
        if study.previous is not None and self.chance(0.35):
            sentences.append(self.pick(self.words["prior"]))
        names = list(FINDINGS) if self.chance(0.6) else ["cardiomegaly", *(n for n in FINDINGS if n != "cardiomegaly")]
        for name in names:
            sentences += self.devices(study) if name == "device" else self.finding(study, name)
        return " ".join(sentences)

    def finding(self, study: Study, name: str) -> list[str]:
        found, table = study.of(name), self.words["findings"][name]
        if found:
            change = self.change(study, name)
            doubtful = change is None and all(f.size == "small" for f in found) and self.chance(0.35)
            self.mentions[name] = -1.0 if doubtful else 1.0
            text = self.fill(self.pick(self.words["uncertain" if doubtful else "certain"]), self.phrase(name, found))
            if change is not None and self.chance(0.8):
                text = f"{text[:-1]}, {change}."
            return [text]
        healed = []
        if study.before(name) and self.chance(0.7):
            healed = [self.fill(self.pick(self.words["healed"]), table["noun"], "noun")]
            self.mentions[name] = 0.0
        if (healed and self.chance(0.5)) or not self.chance(_DENIED.get(name, 1.0)):
            return healed
        self.mentions[name] = 0.0
        return [*healed, self.pick(table["absent"])]

    def devices(self, study: Study) -> list[str]:
        out, kinds = [], {device.kind for device in study.of("device")}
        for device in study.of("device"):
            out.append(self.fill(self.pick(self.words["certain"]), self.device_phrase(device)))
            self.mentions["device"] = 1.0
        for device in study.before("device"):
            if device.kind not in kinds and self.chance(0.6):
                out.append(self.fill(self.pick(self.words["removed"]), self.words["device_nouns"][device.kind], "noun"))
        if not kinds and self.chance(_DENIED["device"]):
            out.append(self.pick(self.words["findings"]["device"]["absent"]))
            self.mentions["device"] = 0.0
        return out

    def device_phrase(self, device: Finding) -> str:
        side = self.pick(self.words["side"][device.side]) if device.side else ""
        return self.pick(self.words["devices"][device.kind]).format(side=side, height=self.number(tube_height(device)))

    def phrase(self, name: str, found: tuple[Finding, ...]) -> str:
        """Noun phrase with size and place. Sides of unlike size are named one after the other."""
        if len(found) == 2 and found[0].size != found[1].size:
            return ", ".join(self.phrase(name, (finding,)) for finding in found)
        table, first = self.words["findings"][name], found[0]
        side, place = "both" if len(found) == 2 else first.side, ""
        if name in WITH_ZONE:
            place = self.pick(self.words["zone"][first.zone][side])
        elif name in WITH_SIDE:
            place = self.pick(self.words["side"][side])
        size = self.pick(table["sizes"][SIZES.index(first.size)])
        diameter = self.number(nodule_diameter(first)) if name == "nodule" else ""
        return " ".join(self.pick(table["phrases"]).format(size=size, place=place, diameter=diameter).split())

    def change(self, study: Study, name: str) -> str | None:
        """How a finding compares with the prior study; None on a first study, or where sides differ."""
        if study.previous is None:
            return None
        now, then = study.of(name), study.before(name)
        if not then:
            return self.pick(self.words["change"]["new"])
        if [(f.side, f.zone) for f in now] != [(f.side, f.zone) for f in then]:
            return None
        steps = {SIZES.index(a.size) - SIZES.index(b.size) for a, b in zip(now, then, strict=True)}
        kind = {(0,): "same", (1,): "more", (-1,): "less"}.get(tuple(steps))
        return self.pick(self.words["change"][kind]) if kind else None

    def impression(self, study: Study) -> str:
        phrases = []
        for name in FINDINGS:
            if name == "device":
                phrases += [self.device_phrase(device) for device in study.of(name)]
            elif study.of(name):
                phrases.append(self.phrase(name, study.of(name)))
        if not phrases:
            return self.pick(self.words["normal"])
        return " ".join(f"{_capital(phrases[place])}." for place in self.rng.permutation(len(phrases)))

    def number(self, value: float) -> str:
        return f"{value:.1f}".replace(".", self.words["decimal"])

    def fill(self, template: str, text: str, slot: str = "phrase") -> str:
        return _capital(template.format(**{slot: text, slot.capitalize(): _capital(text)}))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


__all__ = ["LANGUAGES", "write_report_in"]
