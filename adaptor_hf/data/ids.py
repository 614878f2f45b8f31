"""Ids that are written in two ways: canonical forms, and the check of a column for them."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

MODES = ("exact", "canonical")
"""What `--ids` takes: spellings are different ids, or one id."""

SOURCE = "source"
"""Column of a table of several sources, in which ids begin with whose they are: a `ClassLabel` with their names. Text
in a column of this name is something else: public data sets have there the file and row that a row came from."""

# Shown as nothing, and not among Unicode's format characters: joiners, fillers and selectors of a glyph's variant.
_INVISIBLE = frozenset(
    [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0,
     *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
)  # fmt: skip
_WHOLE_FLOAT = re.compile(r"([0-9]+)\.0+")
# A spreadsheet writes a mantissa with a point (a comma in some languages), or E+. Without both, 12e4 may be a real id.
_SCIENTIFIC = re.compile(r"[+-]?(?:[0-9]+[.,][0-9]*[eE][+-]?[0-9]+|[0-9]+[eE]\+[0-9]+)")
_SEPARATED_DIGITS = re.compile(r"(?<=[0-9])[\W_]+(?=[0-9])")
_PUNCTUATION = re.compile(r"[\W_]+")
_EXAMPLES = 5


def canonical_id(value: str) -> str:
    """
    One spelling of all the ways in which a table may write an id.

    Outer spaces and invisible characters go, compatibility forms become ordinary ones (NFKC), letters lose their case,
    digits of other scripts become 0 to 9, a whole number loses ".0" and its leading zeros. Inner spaces and punctuation
    stay: see `loose_id`. Idempotent.

    Args:
        value: An id as text.
    """
    text = value.strip()
    if text.isascii() and text.isprintable():
        return _plain_number(text.lower())
    while (simpler := _compatible(_visible(text)).casefold().strip()) != text:
        text = simpler
    return _plain_number(text)


def canonical_ids(values: Iterable[str | None]) -> list[str | None]:
    """`canonical_id` of each value; None stays None. Half a million ids take about half a second."""
    return [None if value is None else canonical_id(value) for value in values]


def loose_id(value: str) -> str:
    """The canonical id without spaces and punctuation: `p-7` and `P7` are both "p7". It may be two patients' too."""
    text = canonical_id(value)
    return _plain_number(_PUNCTUATION.sub("", text)) or text


def is_scientific(value: str) -> bool:
    """Whether an id is a number in scientific notation, such as 1.23457E+11: a spreadsheet has rounded it."""
    return _SCIENTIFIC.fullmatch(value.strip()) is not None


@dataclass
class IdReport:
    """
    Ids of a column that may be one, by the rows in which they are first seen.

    Attributes:
        certain: For each canonical id with several spellings, the first row of each spelling.
        kinds: Kind of difference, such as "case", to the number of canonical ids that have it.
        loose: For each loose form with several canonical ids, the first row of each of these.
        scientific: Rows of ids in scientific notation.
        merged: Spelling to the spelling that stands for its canonical id, of the ids in `certain`.
    """

    certain: list[tuple[int, ...]] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    loose: list[tuple[int, ...]] = field(default_factory=list)
    scientific: list[int] = field(default_factory=list)
    merged: dict[str, str] = field(default_factory=dict)


def find_spellings(values: Sequence[str | None], rows: Sequence[int] | None = None, *, loose: bool = True) -> IdReport:
    """
    Look for ids of a column that are written in several ways.

    Args:
        values: `(n,)` ids as text; None where there is none.
        rows: `(n,)` numbers by which the rows are named; their places if None.
        loose: Whether to look for loose forms, too.
    """
    first: dict[str, int] = {}
    report = IdReport()
    for place, value in enumerate(values):
        if value is not None and value not in first:
            first[value] = place if rows is None else int(rows[place])
    wrong = {value for value in first if is_scientific(value)}
    if wrong:
        report.scientific = [
            place if rows is None else int(rows[place]) for place, value in enumerate(values) if value in wrong
        ]
    canonical = dict(zip(first, canonical_ids(first), strict=True))
    if len(set(canonical.values())) < len(canonical):
        for spellings in _groups(canonical).values():
            if len(spellings) == 1:
                continue
            report.certain.append(tuple(first[spelling] for spelling in spellings))
            report.merged |= dict.fromkeys(spellings, min(spellings))
            for kind in _differences(spellings):
                report.kinds[kind] = report.kinds.get(kind, 0) + 1
    if loose:
        report.loose = _loose_groups(canonical, first)
    return report


def _loose_groups(canonical: dict[str, str], first: dict[str, int]) -> list[tuple[int, ...]]:
    named: dict[str, int] = {}
    for value, name in canonical.items():
        named.setdefault(name, first[value])
    forms = {name: loose_id(name) for name in named}
    if len(set(forms.values())) == len(forms):
        return []
    groups = filter(None, map(_alike, _groups(forms).values()))
    return [tuple(named[name] for name in names) for names in groups]


def check_ids(
    values: Sequence[str | None],
    rows: Sequence[int] | None = None,
    what: str = "patient_id",
    mode: str | None = None,
    *,
    stop: bool = True,
    loose: bool = True,
) -> list[str | None]:
    """
    Check that no id of a column is written in two ways, as far as that can be told.

    Args:
        values: `(n,)` ids as text; None where there is none.
        rows: `(n,)` numbers of the rows in the source, for messages; their places if None.
        what: Name of the column for messages.
        mode: None stops at ids that differ by case, leading zeros, `12` and `12.0`, outer spaces, invisible characters
            or Unicode form alone. "exact" takes them for different ids, "canonical" for one.
        stop: Whether such ids stop at all where `mode` is None; else a warning.
        loose: Whether ids that differ by spaces and punctuation alone give a warning.

    Returns:
        The values themselves; under "canonical" with one spelling, the first in sorted order, for each canonical id.

    Raises:
        ValueError: Ids in several spellings, ids in scientific notation, or an unknown mode. The message has counts
            and row numbers, never ids.
    """
    check_mode(mode)
    report = find_spellings(values, rows, loose=loose)
    if report.scientific:
        raise ValueError(scientific_message(report, what))
    if report.certain and mode is None:
        if stop:
            raise ValueError(certain_message(report, what))
        logger.warning("%s", certain_message(report, what))
    if report.loose:
        logger.warning("%s", loose_message(report, what))
    if mode == "canonical" and report.merged:
        logger.info("%s: %d ids in several spellings are taken for one each.", what, len(report.certain))
        return [report.merged.get(value, value) for value in values]
    return list(values)


def check_mode(mode: str | None) -> None:
    """
    Raises:
        ValueError: `mode` is none of None, "exact" and "canonical".
    """
    if mode is not None and mode not in MODES:
        raise ValueError(f"ids (--ids) is exact or canonical, got {mode!r}.")


def certain_message(report: IdReport, what: str) -> str:
    """What to say of ids in several spellings."""
    kinds = ", ".join(f"{count} by {kind}" for kind, count in report.kinds.items())
    return (
        f"{what}: {len(report.certain)} ids are written in several ways ({kinds}): {_examples(report.certain)}. One "
        "patient would count as several and may be on both sides of a split. Pass --ids canonical to take them for one "
        "id each, --ids exact to keep them apart, or correct the table."
    )


def loose_message(report: IdReport, what: str) -> str:
    """What to say of ids that differ by punctuation alone."""
    return (
        f"{what}: {len(report.loose)} ids differ from others by spaces or punctuation alone, as p-7 and P7 do: "
        f"{_examples(report.loose)}. They are taken for different ids. Correct the table if they are one."
    )


def scientific_message(report: IdReport, what: str) -> str:
    """What to say of ids that a spreadsheet has rounded."""
    more = f" and {len(report.scientific) - _EXAMPLES} more" if len(report.scientific) > _EXAMPLES else ""
    return (
        f"{what}: {len(report.scientific)} cells are in scientific notation, as 1.23457E+11 is: data rows "
        f"{', '.join(map(str, report.scientific[:_EXAMPLES]))}{more} (0-based, header not counted). A spreadsheet has "
        "rounded them, and different ids became one. Export the table again from its source, with this column "
        "formatted as text."
    )


def _examples(groups: list[tuple[int, ...]]) -> str:
    shown = ", ".join(" and ".join(map(str, group[:2])) for group in groups[:_EXAMPLES])
    more = f", and {len(groups) - _EXAMPLES} more" if len(groups) > _EXAMPLES else ""
    return f"data rows {shown}{more} (0-based, header not counted)"


def _groups(name_of: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for value, name in name_of.items():
        groups.setdefault(name, []).append(value)
    return groups


def _alike(names: list[str]) -> list[str]:
    """
    Those of canonical ids with one loose form that may be one id. Digits that are divided at different places, such as
    1-12 and 11-2 (site and number), are not: one of two must be undivided, or both divided alike.
    """
    if len(names) == 1:
        return []
    forms = {name: re.sub(r"[^\w|]|_", "", _SEPARATED_DIGITS.sub("|", name)) for name in names}
    if any("|" not in form for form in forms.values()):
        return names
    return next((alike for alike in _groups(forms).values() if len(alike) > 1), [])


def _visible(text: str) -> str:
    """Without format and control characters and others that show as nothing; spaces stay."""
    return "".join(
        char
        for char in text
        if char.isspace() or not (ord(char) in _INVISIBLE or unicodedata.category(char) in ("Cf", "Cc"))
    )


def _compatible(text: str) -> str:
    """NFKC, and digits of every script as 0 to 9."""
    text = unicodedata.normalize("NFKC", text)
    return "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)


def _plain_number(text: str) -> str:
    if not text or text[0] not in "0123456789":
        return text
    if (number := _WHOLE_FLOAT.fullmatch(text)) is not None:
        text = number[1]
    return (text.lstrip("0") or "0") if text.isdecimal() else text


_STEPS = {
    "outer spaces": str.strip,
    "invisible characters": _visible,
    "Unicode form": _compatible,
    "case": str.casefold,
    "a final .0": lambda text: number[1] if (number := _WHOLE_FLOAT.fullmatch(text)) else text,
    "leading zeros": lambda text: (text.lstrip("0") or "0") if text.isdecimal() else text,
}


def _differences(spellings: Iterable[str]) -> list[str]:
    """Kinds of difference between spellings of one canonical id: those without which they are not one."""
    kinds = []
    for left_out in _STEPS:
        forms = set(spellings)
        for kind, step in _STEPS.items():
            if kind != left_out:
                forms = set(map(step, forms))
        if len(forms) > 1:
            kinds.append(left_out)
    return kinds or ["spelling"]


__all__ = [
    "MODES",
    "IdReport",
    "canonical_id",
    "canonical_ids",
    "certain_message",
    "check_ids",
    "check_mode",
    "find_spellings",
    "is_scientific",
    "loose_id",
    "loose_message",
    "scientific_message",
]
