"""Sections of a radiology report, found by their headings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Headings:
    """How the headings of a language look, and which section each opens."""

    pattern: re.Pattern
    """Finds a heading; group 1 is its words."""
    names: dict[str, tuple[str, ...]]
    """Section and the headings, in lower case, that open it; misspellings of real reports among them."""
    within: tuple[str, ...]
    """Sections that any other heading opens which holds their name; the first wins."""
    findings: tuple[str, ...]
    """Words of headings that describe the study, and so open the findings."""

    def section(self, heading: str) -> str:
        """Name of the section that a heading opens: itself if nothing else is known."""
        heading = heading.lower().strip()
        known = self._by_heading().get(heading)
        if known is not None:
            return known
        for name in self.within:
            if name in heading:
                return name
        return "findings" if any(words in heading for words in self.findings) else heading

    def _by_heading(self) -> dict[str, str]:
        if not hasattr(self, "_lookup"):
            lookup = {heading: name for name, headings in self.names.items() for heading in headings}
            object.__setattr__(self, "_lookup", lookup)
        return self._lookup


def _read_headings(path: Path) -> Headings:
    table = json.loads(path.read_text(encoding="utf-8"))
    names = {name: tuple(headings) for name, headings in table["names"].items()}
    return Headings(
        pattern=re.compile(table["pattern"]) if "pattern" in table else _known_headings(names),
        names=names,
        within=tuple(table.get("within", ())),
        findings=tuple(table.get("findings", ())),
    )


def _known_headings(names: dict[str, tuple[str, ...]]) -> re.Pattern:
    """
    Headings of the table alone, at the start of a line or of a sentence, with a colon, or on a line of their own.
    Others, such as "Herz:", are part of the findings.
    """
    known = sorted((heading for headings in names.values() for heading in headings), key=len, reverse=True)
    words = "|".join(re.escape(heading) for heading in known)
    return re.compile(rf"(?:^|\n|(?<=[.!?])[^\S\n])[^\S\n]*({words})[^\S\n]*(?::|(?=\n|$))", re.IGNORECASE)


HEADINGS = {path.stem: _read_headings(path) for path in sorted((Path(__file__).parent / "headings").glob("*.json"))}
"""Headings by language. Another language is another file in `headings`."""

_PARAGRAPH = "\n \n"


def parse_sections(report: str, language: str = "en") -> list[tuple[str, str]]:
    """
    Sections of a report in order, as (name, raw text), by the rules of MIT-LCP's parser for MIMIC-CXR. Languages other
    than English ("en") go by the headings of their table alone: "de", "es", "fr".

    What comes before the first heading is "preamble"; a report without heading is one "full report". A heading is not
    looked for in the rest of the line that opens a section. Findings and impressions without text are left out; where
    there is neither, what follows the first empty line of the last section is "last_paragraph".

    Raises:
        ValueError: No headings for this language.
    """
    if language not in HEADINGS:
        raise ValueError(f"No headings for the language {language!r}. Known: {', '.join(HEADINGS)}.")
    headings = HEADINGS[language]
    report = report.replace("\r\n", "\n")
    match = headings.pattern.search(report)
    sections = [("full report", report) if match is None else ("preamble", report[: match.start(1)])]
    while match is not None:
        name, start = headings.section(match.group(1)), match.end()
        match = headings.pattern.search(report, start)
        sections.append((name, report[start : match.start() if match else len(report)]))
    sections = [(name, text) for name, text in sections if name not in ("impression", "findings") or text.strip()]
    if not {"impression", "findings"} & {name for name, _ in sections}:
        name, text = sections[-1]
        head, separator, tail = text.partition(_PARAGRAPH)
        if separator:
            sections[-1:] = [(name, head), ("last_paragraph", tail)]
    return sections


def section_texts(report: str, language: str = "en") -> dict[str, str]:
    """Text of each section, outer white space removed. Of several sections of a name the last counts, as in MGCA."""
    return {name: text.strip() for name, text in parse_sections(report, language)}


__all__ = ["HEADINGS", "Headings", "parse_sections", "section_texts"]
