"""Label columns of any source as the values and the feature of the column `labels`: one set of rules on cells."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..options.terminal import is_one_line
from ..privacy.class_names import names_written
from .missing import is_missing
from .positive import boolean_words, spelling_key

logger = logging.getLogger(__name__)

SPELLINGS = ("exact", "merge")
_NUMBERS = {"1": 1.0, "0": 0.0, "-1": -1.0, "1.0": 1.0, "0.0": 0.0, "-1.0": -1.0, "true": 1.0, "false": 0.0}
_SEPARATORS = ("|", ";")
# These stand in names of single classes too.
_WEAK_SEPARATORS = (",", "/", "+", "&")
_SHOWN = 5
_MAX_NAME = 1000
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|[+-]?\.[0-9]+")
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")


@dataclass(frozen=True)
class LabelRules:
    """
    How cells of label columns are read.

    Args:
        spelling (`str`, *optional*): Of class names that differ only in case, spaces, NFKC, `0` and `0.0`, or the order
            of joined names: `"exact"` keeps them apart, outer spaces aside; `"merge"` takes the most frequent spelling;
            None refuses them.
        separator (`str`, *optional*): What joins several names in a cell: then each is a label of its own. `"none"`: a
            cell is one class, whatever it holds. None refuses cells that look like several names.
        missing_words (`Sequence[str]`): Beside `MISSING_WORDS`.
    """

    spelling: str | None = None
    separator: str | None = None
    missing_words: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.spelling not in (None, *SPELLINGS):
            raise ValueError(f"--label_spelling is one of {', '.join(SPELLINGS)}, got {self.spelling!r}.")
        if self.separator is not None and not self.separator.strip():
            raise ValueError("--label_separator is a character such as | or the word none; blanks separate nothing.")


def label_column_names(dataset: Any) -> list[str]:
    """Columns of a data set that hold a list of labels a row, which a table of text and numbers has no place for."""
    return [name for name, feature in dataset.features.items() if _list_item(feature) is not None]


def _list_item(feature: Any) -> Any:
    """What a list column of labels is made of: a `MultiLabel`, or the feature of its items; None for another column."""
    from datasets import ClassLabel, Value

    from .target_features import MultiLabel

    if isinstance(feature, MultiLabel):
        return feature
    item = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    return item if isinstance(item, (ClassLabel, Value)) else None


def listed_labels(dataset: Any, name: str, rows: list[int], where: Any, rules: LabelRules) -> tuple[list, Any]:
    """
    As `label_feature`, of a column with a list of labels a row: names, a `ClassLabel` each, or a `MultiLabel`. A row
    without a list is unknown; one with an empty list has none of the labels.

    Raises:
        ValueError: numbers that no name belongs to, values that are no labels, or names in several spellings.
    """
    from datasets import ClassLabel

    item = _list_item(dataset.features[name])
    cells = dataset.select_columns([name]).with_format("arrow")[:][name].take(rows).to_pylist()
    if hasattr(item, "names") and not isinstance(item, ClassLabel):
        columns = {
            label: [None if cell is None else cell[place] for cell in cells] for place, label in enumerate(item.names)
        }
        return label_feature(columns, rows, where, rules)
    if isinstance(item, ClassLabel):
        cells = [cell and [None if code is None or code < 0 else item.names[code] for code in cell] for cell in cells]
    elif item.dtype not in ("string", "large_string"):
        raise ValueError(
            f"{where}: the label column {name!r} holds lists of {item.dtype}, and nothing says what each number is. "
            "Make it a column for each label, or lists of names."
        )
    raw = [None if cell is None else _without_missing(name, cell, rules, warn=False) for cell in cells]
    return _several_labels(name, [None if cell is None else [text for text in cell if text.strip()] for cell in raw],
                           where, rules)  # fmt: skip


def label_feature(columns: dict[str, list], rows: list[int], where: Any, rules: LabelRules) -> tuple[list, Any]:
    """
    Values and feature of the column `labels`, whatever the cells come from: a table, a folder's class names, or a data
    set's strings, numbers, booleans or `ClassLabel` (by name).

    Args:
        columns (`dict[str, list]`): Cells by column.
        rows (`list[int]`): Number of each row in the table, for messages.
        where: The table, for messages.
        rules ([`LabelRules`]): How cells are read.

    Raises:
        ValueError: cells that are no labels, or that need a decision.
    """
    from .target_features import MultiLabel

    raw = {name: _without_float_suffix(_without_missing(name, cells, rules)) for name, cells in columns.items()}
    if len(raw) == 1:
        ((name, cells),) = raw.items()
        stripped = {cell.strip() for cell in cells if cell}
        if rules.separator not in (None, "none"):
            parts = [[part.strip() for part in cell.split(rules.separator) if part.strip()] for cell in cells]
            return _several_labels(name, [part or None for part in parts], where, rules)
        if not {cell.lower() for cell in stripped} <= _NUMBERS.keys() and boolean_words(sorted(stripped)) is None:
            _check_kinds(name, cells, rows, where)
            return _classes(name, cells, where, rules)
    numbers = [_numbers(name, cells, rows, where) for name, cells in raw.items()]
    return np.array(numbers, np.float32).T.tolist(), MultiLabel(names=list(raw))


def _without_missing(name: str, cells: list, rules: LabelRules, warn: bool = True) -> list[str]:
    """Cells as text, "" where there is none; words that were taken for that are said with their counts."""
    texts, words = [], Counter()
    for cell in cells:
        if is_missing(cell, rules.missing_words):
            texts.append("")
            if isinstance(cell, str) and cell.strip():
                words[cell.strip()] += 1
        else:
            texts.append(str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell))
    if words and warn:
        counts = ", ".join(f"{word!r} {count}" for word, count in words.most_common())
        logger.warning(
            "Label column %r: %d cells hold a word for a missing value and count as unknown: %s. Where such a word is "
            "a class, write it otherwise in the table.", name, words.total(), counts,
        )  # fmt: skip
    return texts


def _numbers(name: str, cells: list[str], rows: list[int], where: Any) -> list[float]:
    texts = [cell.strip() for cell in cells]
    known = sorted({text for text in texts if text})
    values = {text: _NUMBERS[text.lower()] for text in known if text.lower() in _NUMBERS}
    values = values if len(values) == len(known) else boolean_words(known) or values
    wrong = next((place for place, text in enumerate(texts) if text and text not in values), None)
    if wrong is not None:
        raise ValueError(
            f"{where}, data row {rows[wrong]} (0-based, header not counted): the label {name!r} is "
            f"{texts[wrong]!r}, expected 1, 0, -1 (uncertain) or nothing (unknown)."
        )
    return [values[text] if text else float("nan") for text in texts]


def _classes(name: str, cells: list[str], where: Any, rules: LabelRules) -> tuple[list, Any]:
    from datasets import ClassLabel

    distinct = {cell.strip() for cell in cells if cell}
    _check_few(name, distinct, len(cells), where)
    joined = None if rules.separator == "none" else _joined(distinct)
    if joined is not None:
        separator, count = joined, sum(joined in cell for cell in cells)
        raise ValueError(
            f"{where}: {count} cells of the label column {name!r} hold several names, joined by {separator!r}. "
            f"--label_separator '{separator}' makes each name a label of its own; --label_separator none takes each "
            "cell as one class."
        )
    chosen = _written(_spellings(name, Counter(cell for cell in cells if cell), where, rules))
    names = sorted(set(chosen.values()))
    return [names.index(chosen[cell]) if cell else -1 for cell in cells], ClassLabel(names=names)


def _several_labels(name: str, parts: list[list[str] | None], where: Any, rules: LabelRules) -> tuple[list, Any]:
    """A label for each of the names that rows hold; a row of None is unknown in all."""
    from .target_features import MultiLabel

    counts = Counter(part for row in parts for part in row or ())
    _check_few(name, {part.strip() for part in counts}, len(parts), where)
    chosen = _written(_spellings(name, counts, where, rules))
    names = sorted(set(chosen.values()))
    if not names:
        return [[] for _ in parts], MultiLabel(names=[])
    place = {label: column for column, label in enumerate(names)}
    values = np.zeros((len(parts), len(names)), np.float32)
    for row, found in enumerate(parts):
        values[row] = np.nan if found is None else 0
        values[row, [place[chosen[part]] for part in found or ()]] = 1
    return values.tolist(), MultiLabel(names=names)


def _without_float_suffix(cells: list[str]) -> list[str]:
    """Whole numbers that passed through a float column, as integers: 2.0 is 2, where no cell of the column is 2."""
    texts = {cell.strip() for cell in cells if cell}
    if texts and all(re.fullmatch(r"[+-]?[0-9]+\.0+", text) for text in texts):
        return [cell.strip().partition(".")[0] for cell in cells]
    return cells


def _check_kinds(name: str, cells: list[str], rows: list[int], where: Any) -> None:
    """Refuse numbers that name no class: decimals, negative ones, and 0 and 1 among words."""
    texts = [cell.strip() for cell in cells]
    known = {text for text in texts if text}
    numbers = {text for text in known if _NUMBER.fullmatch(text)}

    def at(wrong: set[str]) -> str:
        place = next(place for place, text in enumerate(texts) if text in wrong)
        count = sum(text in wrong for text in texts)
        return (
            f"{where}, data row {rows[place]} (0-based, header not counted): the label {name!r} is {texts[place]!r} "
            f"({count} such rows)"
        )

    if decimals := {text for text in numbers if not _WHOLE.fullmatch(text)}:
        raise ValueError(
            f"{at(decimals)}, a number with decimals. Expected 1, 0, -1 (uncertain) or nothing, or names of classes. "
            "Cut scores and probabilities at a threshold first."
        )
    first = min((float(text) for text in numbers if not text.startswith("-")), default=0)
    if negative := {text for text in numbers if text.startswith("-") and float(text) < 0}:
        raise ValueError(
            f"{at(negative)}, beside numbers of classes from {first:g} on. Where it means that there is no value, "
            f"say --missing_word={sorted(negative)[0]}; write a class by its name."
        )
    truths = {text for text in known if text.lower() in _NUMBERS}
    words = {text for text in known - truths if not any(letter.isdigit() for letter in text)}
    if truths and words and truths | words == known:
        raise ValueError(
            f"{at(words)}, in a column that also holds {', '.join(map(repr, sorted(truths)))}. Where the word means "
            "that there is no value, name it with --missing_word; else write all classes as words."
        )


def _joined(distinct: set[str]) -> str | None:
    """What joins several names in some of the cells; None where they look like one each."""
    keys = {spelling_key(cell) for cell in distinct}
    for separator in (*_SEPARATORS, *_WEAK_SEPARATORS):
        for cell in distinct:
            parts = [spelling_key(part) for part in cell.split(separator) if part.strip()]
            if len(parts) > 1 and (separator in _SEPARATORS or all(part in keys for part in parts)):
                return separator
    return None


def _spellings(name: str, counts: Counter[str], where: Any, rules: LabelRules) -> dict[str, str]:
    """The class of each cell as it stands, by the rule on spellings."""
    # They become names in tables, cards and logs, of a line each.
    if wrong := sorted(cell for cell in counts if not is_one_line(cell.strip()) or len(cell) > _MAX_NAME):
        raise ValueError(
            f"{where}: {len(wrong)} classes of the label column {name!r} have a line break or another control "
            f"character in their name, or over {_MAX_NAME} characters, such as {wrong[0][:50]!r}. Rename them in the "
            "table (or the folders); several findings in a cell are separated by --label_separator."
        )
    groups: dict[str, list[str]] = {}
    for cell in sorted(counts):
        groups.setdefault(_class_key(cell), []).append(cell)
    several = [cells for cells in groups.values() if len(cells) > 1]
    if several and rules.spelling is None:
        shown = "; ".join(", ".join(f"{cell!r} {counts[cell]}" for cell in cells) for cells in several[:_SHOWN])
        more = f"; and {len(several) - _SHOWN} more" if len(several) > _SHOWN else ""
        raise ValueError(
            f"{where}: the label column {name!r} has {len(several)} classes in several spellings: {shown}{more}. "
            "--label_spelling merge makes each one class, in its most frequent spelling; --label_spelling exact keeps "
            "them apart (but not for spaces at their ends)."
        )
    if several:
        logger.info("Label column %r: %d classes have several spellings (--label_spelling %s).",
                    name, len(several), rules.spelling)  # fmt: skip
    if rules.spelling == "merge":
        best = {key: max(cells, key=lambda one: counts[one]).strip() for key, cells in groups.items()}
        return {cell: best[_class_key(cell)] for cell in counts}
    return {cell: cell.strip() for cell in counts}


def _written(chosen: dict[str, str]) -> dict[str, str]:
    """In private mode, names that could be of a person are hashed."""
    written = names_written(chosen.values())
    return {cell: written[name] for cell, name in chosen.items()}


def _class_key(cell: str) -> str:
    key = spelling_key(cell)
    if re.fullmatch(r"[+-]?[0-9]+\.0*", key):
        key = key.partition(".")[0]
    for separator in _SEPARATORS:
        if separator in key:
            key = separator.join(sorted(part.strip() for part in key.split(separator)))
    return key


def _check_few(name: str, names: set[str], rows: int, where: Any) -> None:
    if len(names) > max(20, rows // 10):
        raise ValueError(
            f"{where}: the label column {name!r} has {len(names)} different values in {rows} rows, such "
            "as free text or ids. Name a column of classes, or columns of 0 and 1."
        )


def check_class_names(names: Sequence[str], where: Any) -> None:
    """
    Check names that a source declares, such as those of a public data set.

    Raises:
        ValueError: two are spellings of one.
    """
    _spellings("labels", Counter(names), where, LabelRules())


__all__ = ["SPELLINGS", "LabelRules", "check_class_names", "label_column_names", "label_feature", "listed_labels"]
