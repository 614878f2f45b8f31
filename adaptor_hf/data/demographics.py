"""Age and sex as tables and DICOM files write them: one meaning for groups, Table 1, the PACS index and public sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..privacy.vocabulary import listed_word
from .missing import is_missing

if TYPE_CHECKING:
    import pandas as pd

MAX_AGE = 130.0
"""Years; an age above is a mistake, such as 999 for "unknown". The oldest person known became 122."""

_YEARS = {"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12, "y": 1.0}
_AGE = re.compile(
    r"(?P<number>[+-]?\d+(?:[.,]\d+)?)\s*(?:(?P<unit>y|m|w|d)|(?P<word>years?|yrs?|y/?o|months?|mos?|weeks?|wks?|days?)"
    r"(?:\s+old)?)?\.?",
    re.IGNORECASE,
)
# "90+", ">89", ">= 90", "90 and over", "90Y+": ages that a release tops.
_OPEN = re.compile(
    r"(?:(?P<over>>|over\s)\s*(?P<above>\d{1,3})|(?:>=|≥)\s*(?P<least>\d{1,3})|(?P<plus>\d{1,3})\s*"
    r"(?:y|years?|yrs?)?\s*(?:\+|(?:and|or)\s+(?:over|older|above|more)))(?:\s*(?:y|years?|yrs?))?",
    re.IGNORECASE,
)
_SEXES = {
    "F": "f female woman girl weiblich w frau femme féminin feminin femenino femenina mujer femminile donna feminino "
    "vrouw vrouwelijk",
    "M": "m male man boy männlich maennlich mann homme masculin masculino hombre maschile maschio uomo mannelijk",
    "O": "o other x diverse divers d nonbinary non-binary intersex autre otro altro andere",
}
_CODES = {word: code for code, words in _SEXES.items() for word in words.split()}
_UNKNOWN = frozenset(("u", "unknown", "unk", "unbekannt", "inconnu", "desconocido", "?", "not given", "not reported",
                      "not known"))  # fmt: skip


def sex_code(value: Any) -> str | None:
    """
    "F", "M" or "O" (other) of a sex as DICOM and tables write it, in any case; None where it is missing, unknown or no
    word for a sex. Numbers are none: 1 is male in one table and female in another.
    """
    return None if is_missing(value) else _CODES.get(str(value).strip().lower())


def _says_unknown(value: Any) -> bool:
    return str(value).strip().lower() in _UNKNOWN


def sex_groups(values: Iterable[Any]) -> list[str | None]:
    """Code of each sex, None where it is unknown; other words and numbers stay as they are written, groups of their
    own, or `OTHER` in private mode."""
    return [
        None if is_missing(value) or _says_unknown(value) else sex_code(value) or listed_word(str(value).strip(), "sex")
        for value in values
    ]


def age_years(value: Any) -> float | None:
    """
    An age in years; None where it is missing, no age, negative or over `MAX_AGE`.

    Args:
        value: A number or text of years, with a decimal point or comma; or with a unit, as DICOM has it (`063Y`,
            `018M`, `012W`, `030D`; PS3.5, AS) or as a word ("18 months"). An age without upper end ("90+") is no
            number: see `lowest_age`.
    """
    if is_missing(value) or isinstance(value, bool):
        return None
    if isinstance(value, Real):
        years = float(value)
    else:
        match = _AGE.fullmatch(str(value).strip())
        if match is None:
            return None
        unit = (match["unit"] or match["word"] or "y")[0].lower()
        years = float(match["number"].replace(",", ".")) * _YEARS[unit]
    return years if 0 <= years <= MAX_AGE else None


def lowest_age(value: Any) -> float | None:
    """The lower end, in years, of an age that has no upper one: 90 of "90+", ">89" and "90 and over"; else None."""
    match = _OPEN.fullmatch(str(value).strip()) if isinstance(value, str) else None
    if match is None:
        return None
    years = float(match["above"] or match["least"] or match["plus"]) + (1 if match["above"] else 0)
    return years if years <= MAX_AGE else None


@dataclass
class Ages:
    """
    Ages of a column.

    Args:
        years (`list[float | None]`): None where it is no number of years.
        lowest (`list[float | None]`): Lower end of an age without upper one, such as "90+".
        impossible (`int`): Values that are there and no age: negative, over `MAX_AGE`, or another text.
    """

    years: list[float | None] = field(default_factory=list)
    lowest: list[float | None] = field(default_factory=list)
    impossible: int = 0

    @property
    def open(self) -> int:
        """Number of ages without upper end."""
        return sum(age is not None for age in self.lowest)

    def notes(self, open_meaning: str) -> list[str]:
        """Sentences on the ages that are no number; `open_meaning` says what becomes of those without upper end."""
        found = []
        if self.impossible:
            found.append(
                f"{self.impossible} ages are none (negative, over {MAX_AGE:g} years, or no age at all) and count as "
                "missing."
            )
        if self.open:
            found.append(f"{self.open} ages have no upper end, such as 90+: {open_meaning}.")
        return found


def read_ages(values: Sequence[Any]) -> Ages:
    """All ages of a column; what is no age is counted, never only dropped."""
    found = Ages()
    for value in values:
        years = age_years(value)
        lowest = lowest_age(value) if years is None else None
        found.years.append(years)
        found.lowest.append(lowest)
        found.impossible += years is None and lowest is None and not is_missing(value) and not _says_unknown(value)
    return found


def age_column(cells: pd.Series, notes: list[str]) -> pd.Series:
    """Ages of a public set's table in years, float64, NaN where there is none; what is no number is said in `notes`."""
    import pandas as pd

    found = read_ages(cells)
    notes += found.notes("they are left out")
    return pd.Series(found.years, index=cells.index, dtype="float64")


def sex_column(cells: pd.Series) -> pd.Series:
    """Codes of a public set's sexes, see `sex_code`; None where unknown."""
    import pandas as pd

    codes = {value: sex_code(value) for value in cells.unique()}
    return pd.Series([codes[value] for value in cells], index=cells.index, dtype=object)


def is_age_column(name: str) -> bool:
    """Whether a column's name says that it holds ages: "age", "PatientAge", "age_at_study", "Alter"."""
    return bool({"age", "ages", "alter", "edad"} & _name_parts(name)) and not {"group", "band"} & _name_parts(name)


def is_sex_column(name: str) -> bool:
    """Whether a column's name says that it holds sexes: "sex", "PatientSex", "gender"."""
    return bool({"sex", "gender", "geschlecht", "sexe", "sexo"} & _name_parts(name))


def _name_parts(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


__all__ = [
    "MAX_AGE",
    "Ages",
    "age_column",
    "age_years",
    "is_age_column",
    "is_sex_column",
    "lowest_age",
    "read_ages",
    "sex_code",
    "sex_column",
    "sex_groups",
]
