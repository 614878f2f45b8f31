"""Table 1 of a paper: who and what is in each split; small cells hidden where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.demographics import read_ages, sex_groups
from ..data.missing import is_missing
from ..markdown import sentence, table_row, table_rule
from ..privacy.vocabulary import listed_word
from .suppression import hidden_totals, shown, suppress

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

MISSING = "missing"
ALL = "all"
_SPLITS = ("train", "validation", "test")
_MULTI_LEVELS = {1.0: "positive", 0.0: "negative", -1.0: "uncertain"}


def describe_data(
    rows: pd.DataFrame, labels: Mapping[str, Sequence[str | None]] | None = None, *, min_count: int = 0
) -> dict[str, Any]:
    """
    Counts by split.

    Patients have the sex and the age of their first row in the split; a row without patient id counts as a patient of
    its own, as it does in the intervals of all results.

    Args:
        rows (`pandas.DataFrame`): A row an image, with `split` and, where known, `patient_id`, `study_id`, `view`,
            `sex`, `age`, `has_text`. Sexes and ages are read as `sex_groups` and `age_years` do.
        labels (`Mapping[str, Sequence[str | None]]`, *optional*): Of each label, what a row has; None is missing.
        min_count (`int`, defaults to 0): Hide counts below it, and further ones that would give them away.

    Returns:
        `dict`: `splits`; `totals` and `levels` with a count a split and for all; `age` with `median`, `q1`, `q3`
        (years), `known` and `missing` patients; `notes`. A hidden count is a text.
    """
    rows = rows.reset_index(drop=True)
    splits = [name for name in _SPLITS if (rows["split"] == name).any()]
    splits += sorted(set(rows["split"].dropna()) - set(splits))
    patients = _patients(rows)
    firsts = {part: _first_rows(rows, patients, part) for part in [*splits, ALL]}
    totals = {
        "patients": {part: len(first) for part, first in firsts.items()},
        "studies": _distinct(rows, "study_id", patients, splits),
        "images": {part: int(_in(rows, part).sum()) for part in [*splits, ALL]},
    }
    if "has_text" in rows:
        totals["images with a report"] = {
            part: int((_in(rows, part) & rows["has_text"]).sum()) for part in [*splits, ALL]
        }
    levels = {}
    if _known(rows, "view"):
        views = [listed_word(view, "view") for view in _texts(rows["view"])]
        levels["view (images)"] = _levels(views, {part: _in(rows, part) for part in [*splits, ALL]})
    if _known(rows, "sex"):
        levels["sex (patients)"] = _levels(sex_groups(rows["sex"]), firsts)
    for name, values in (labels or {}).items():
        levels[f"{name} (images)"] = _levels(list(values), {part: _in(rows, part) for part in [*splits, ALL]})
    found: dict[str, Any] = {"splits": [*splits, ALL], "totals": totals, "levels": levels, "notes": []}
    if _known(rows, "age"):
        ages = read_ages(rows["age"].tolist())
        years = np.array([np.nan if age is None else age for age in ages.years])
        found["age"] = {part: _age(years[first], min_count) for part, first in firsts.items()}
        if min_count <= 0:
            # A small count of them could give a hidden one away.
            found["notes"] += [f"Of all rows, {note}" for note in ages.notes("they count as missing")]
    unknown = int(rows["patient_id"].isna().sum()) if "patient_id" in rows else len(rows)
    if unknown:
        count = shown(unknown, unknown < min_count, min_count)
        found["notes"].append(f"{count} rows have no patient id and count as a patient each.")
    found["notes"] += [f"{name} is not known." for name in ("view", "sex", "age") if not _known(rows, name)]
    if min_count > 0:
        _hide(found, splits, min_count)
    return found


def read_table_rows(dataset: Dataset) -> tuple[pd.DataFrame, dict[str, list[str | None]]]:
    """Rows and labels of a data set as `load_table` gives it, for `describe_data`; no image is opened."""
    from datasets import ClassLabel

    from ..tasks.data import plain_rows

    frame = plain_rows(dataset)
    frame["split"] = [value or "no split" for value in dataset["split"][:]]
    frame["source_row"] = dataset["source_row"][:]
    if any(text is not None for text in dataset["text"][:]):
        frame["has_text"] = [text is not None for text in dataset["text"][:]]
    labels: dict[str, list[str | None]] = {}
    if "labels" in dataset.column_names:
        feature, values = (
            dataset.features["labels"],
            dataset.select_columns(["labels"]).with_format("numpy")[:]["labels"],
        )
        if isinstance(feature, ClassLabel):
            labels["class"] = [None if code is None or code < 0 else feature.names[int(code)] for code in values]
        else:
            values = np.asarray(values, np.float32).reshape(len(dataset), -1)
            for column, name in enumerate(feature.names):
                labels[name] = [_MULTI_LEVELS.get(float(value)) for value in values[:, column]]
    return frame, labels


def read_cache_rows(path: str | os.PathLike) -> pd.DataFrame:
    """Rows of an embedding cache for `describe_data`; it knows no sex, age or label."""
    from ..embeddings import open_cache

    cache = open_cache(path)
    names = ["patient_id", "study_id", "view", "split", "source_row"]
    frame = cache.pairs.select_columns(names).with_format("arrow")[:].to_pandas()
    return frame.assign(has_text=cache.text_rows >= 0).astype(dict.fromkeys(names[:4], object))


def markdown(described: Mapping[str, Any], min_count: int = 0) -> str:
    """`describe_data` as a Markdown page."""
    splits = described["splits"]
    lines = ["# Table 1", "", table_row(["", *splits]), table_rule(len(splits) + 1)]
    for name, counts in described["totals"].items():
        lines.append(_line(name, [_text(counts[part]) for part in splits]))
    if "age" in described:
        ages = described["age"]
        lines.append(_line("age in years (patients), median [quartiles]", [_age_text(ages[part]) for part in splits]))
        lines.append(_line(MISSING, [_text(ages[part][MISSING]) for part in splits], indent=True))
    for name, levels in described["levels"].items():
        lines.append(_line(name, [""] * len(splits)))
        for level, counts in levels.items():
            cells = [_share(counts[part], [other[part] for other in levels.values()]) for part in splits]
            lines.append(_line(level, cells, indent=True))
    notes = list(described["notes"])
    if min_count > 0:
        notes.append(
            f"Counts below {min_count} are hidden, and with * further ones from which they could be had by subtraction."
        )
    return "\n".join([*lines, "", *(f"* {sentence(note)}" for note in notes)]) + "\n"


def _patients(rows: pd.DataFrame) -> np.ndarray:
    known = rows["patient_id"] if "patient_id" in rows else [None] * len(rows)
    names = [f"row {row}" if _empty(value) else f"patient {value}" for row, value in enumerate(known)]
    return np.unique(names, return_inverse=True)[1]


def _first_rows(rows: pd.DataFrame, patients: np.ndarray, part: str) -> np.ndarray:
    places = np.flatnonzero(_in(rows, part))
    return places[np.sort(np.unique(patients[places], return_index=True)[1])]


def _distinct(rows: pd.DataFrame, column: str, patients: np.ndarray, splits: Sequence[str]) -> dict[str, Any]:
    if not _known(rows, column):
        return dict.fromkeys([*splits, ALL], MISSING)
    pairs = np.array(
        [f"{patient}\0{value}" for patient, value in zip(patients, rows[column], strict=True)], dtype=object
    )
    known = ~rows[column].map(_empty).to_numpy(bool)
    return {part: len(set(pairs[known & _in(rows, part)])) for part in [*splits, ALL]}


def _in(rows: pd.DataFrame, part: str) -> np.ndarray:
    return np.ones(len(rows), bool) if part == ALL else (rows["split"] == part).to_numpy()


def _known(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and not rows[name].map(_empty).all()


def _empty(value: Any) -> bool:
    return is_missing(value)


def _texts(column: pd.Series) -> list[str | None]:
    return [None if _empty(value) else str(value).strip() for value in column]


def _levels(values: list[str | None], parts: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    named = np.array([MISSING if value is None else value for value in values], dtype=object)
    order = sorted(set(named), key=lambda level: (level == MISSING, level))
    return {level: {part: int((named[where] == level).sum()) for part, where in parts.items()} for level in order}


def _age(years: np.ndarray, min_count: int) -> dict[str, Any]:
    ages = years[~np.isnan(years)]
    found: dict[str, Any] = {"known": len(ages), MISSING: len(years) - len(ages)}
    if len(ages) == 0 or len(ages) < min_count:
        return found | {"median": None, "q1": None, "q3": None}
    q1, median, q3 = (float(value) for value in np.percentile(ages, [25, 50, 75]))
    return found | {"median": median, "q1": q1, "q3": q3}


def _hide(found: dict[str, Any], splits: Sequence[str], min_count: int) -> None:
    """Hide small counts in place."""
    marks = {}
    for name, counts in found["totals"].items():
        if MISSING in counts.values():
            continue
        marks[name] = hidden_totals(np.array([counts[part] for part in splits]), min_count)
        found["totals"][name] = {
            part: shown(count, hidden, min_count)
            for (part, count), hidden in zip(counts.items(), marks[name], strict=True)
        }
    for name, levels in found["levels"].items():
        grid = np.array([[counts[part] for part in splits] for counts in levels.values()])
        hidden = suppress(grid, marks["patients" if name.endswith("(patients)") else "images"], min_count)
        for row, (level, counts) in enumerate(levels.items()):
            found["levels"][name][level] = {
                part: shown(counts[part], hidden[row, column], min_count) for column, part in enumerate([*splits, ALL])
            }
    if "age" in found:
        ages, keys = found["age"], ("known", MISSING)
        grid = np.array([[ages[part][key] for part in splits] for key in keys])
        hidden = suppress(grid, marks["patients"], min_count)
        for row, key in enumerate(keys):
            for column, part in enumerate([*splits, ALL]):
                ages[part][key] = shown(ages[part][key], hidden[row, column], min_count)


def _line(name: str, cells: Sequence[str], indent: bool = False) -> str:
    return table_row([name, *cells]).replace("| ", "| &nbsp; ", 1 if indent else 0)


def _text(count: Any) -> str:
    return f"{count:,}" if isinstance(count, int) else str(count)


def _share(count: Any, column: Sequence[Any]) -> str:
    if isinstance(count, str) or any(isinstance(other, str) for other in column) or sum(column) == 0:
        return _text(count)
    return f"{count:,} ({100 * count / sum(column):.1f} %)"


def _age_text(ages: Mapping[str, Any]) -> str:
    return "not shown" if ages["median"] is None else "{median:g} [{q1:g}, {q3:g}]".format(**ages)


def load_rows(
    source: str | os.PathLike,
    *,
    cache: str | os.PathLike | None = None,
    sex_column: str = "sex",
    age_column: str = "age",
    **columns: Any,
) -> tuple[pd.DataFrame, dict[str, list[str | None]], list[str]]:
    """
    Rows, labels and notes of a table or of a cache.

    Args:
        source (`str` or `PathLike`): A cache folder, or what `load_table` reads.
        cache (`str` or `PathLike`, *optional*): Take the split of a table's rows from this cache, by source row, and
            leave out rows that it has not.
        sex_column, age_column (`str`): Of the table.
        columns: Of `load_table`: `label_columns`, `patient_column`, ...

    Raises:
        FileNotFoundError, ValueError: as of `load_table` and `open_cache`.
    """
    if (Path(source) / "latest.json").is_file() or Path(source).name.startswith("pairs-"):
        return read_cache_rows(source), {}, ["A cache knows no sex, age or label: name the table, with --cache."]
    from ..tasks.data import load_table

    own = [name for name in (sex_column, age_column) if name not in ("sex", "age")]
    # A stated mode: nothing is read, and so no file has to be looked at.
    frame, labels = read_table_rows(load_table(source, extra_columns=own, image_mode="RGB", **columns))
    frame = frame.rename(columns={sex_column: "sex", age_column: "age"})
    if cache is None:
        return frame, labels, []
    split = read_cache_rows(cache).drop_duplicates("source_row").set_index("source_row")["split"]
    kept = frame["source_row"].isin(split.index).to_numpy()
    frame["split"] = frame["source_row"].map(split)
    labels = {
        name: [value for value, keep in zip(values, kept, strict=True) if keep] for name, values in labels.items()
    }
    return frame[kept], labels, [f"{int((~kept).sum())} rows of the table are not in the cache and left out."]


__all__ = ["describe_data", "load_rows", "markdown", "read_cache_rows", "read_table_rows"]
