"""Numbers of a model card, read from its metadata and its tables, beside those of the run's records."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..evaluation.aligners import aligner_of, describe_aligner
from ..files import read_regular

# Metadata has four digits, tables have three, median ranks of the controls' table one.
METADATA_TOLERANCE = 6e-5
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_CELLS = re.compile(r"(?<!\\)\|")
_OF_CONTROLS = {
    "i2t R@1": "image_to_text_recall@1",
    "i2t R@5": "image_to_text_recall@5",
    "i2t R@10": "image_to_text_recall@10",
    "t2i R@10": "text_to_image_recall@10",
    "mean recall": "mean_recall",
    "i2t median rank": "image_to_text_median_rank",
}


def card_differences(
    path: Path,
    retrieval: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    split_hash: str | None,
    config: Mapping[str, Any] | None = None,
) -> list[str]:
    """
    What a card says otherwise than the run's records.

    Args:
        path (`Path`): `README.md`.
        retrieval (`Mapping`, *optional*): As of `retrieval.json`; None where nothing was held out.
        record (`Mapping`): As of `run.json`.
        split_hash (`str`, *optional*): Of all rows.
        config (`Mapping`, *optional*): As of `config.json`.

    Returns:
        `list[str]`: One sentence a number.
    """
    if not path.is_file():
        return ["README.md is missing."]
    try:
        text = read_regular(path).decode("utf-8")
        found = _metadata(text, retrieval) if retrieval else []
    except Exception as error:
        # Anyone may have written this file, and YAML's errors have a base class of their own.
        return [f"README.md cannot be read: {type(error).__name__}."]
    for columns, rows in tables(text):
        if columns[:2] == ["metric", "value"] and retrieval:
            found += _evaluation(rows, retrieval)
        elif columns[:1] == ["system"] and retrieval:
            found += _controls(columns, rows, retrieval)
        elif columns[:1] == ["source"] and retrieval:
            found += _sources(columns, rows, retrieval)
        elif columns == ["argument", "value"]:
            processes = (record.get("machine") or {}).get("processes")
            known = {"world_size": processes, "objective": (record.get("objective") or {}).get("name")}
            known |= {"recipe": (record.get("recipe") or {}).get("name")}
            known |= {"aligner": aligner_of(config) if config else None}
            options = (record.get("objective") or {}).get("options") or {}
            known |= {f"objective.{name}": str(value) for name, value in options.items()}
            known = {name: value for name, value in known.items() if value is not None}
            arguments = dict(record.get("training_arguments") or {})
            if arguments.get("tower_learning_rate", 0) is None:
                # Then it is that of all, which the card says.
                arguments["tower_learning_rate"] = arguments.get("learning_rate")
            found += _arguments(rows, arguments | known)
    parameters = (record.get("weights") or {}).get("parameters")
    stated = re.search(r"\(([\d,]+) trainable parameters\)", text)
    if parameters is not None and stated and stated[1] != f"{parameters:,}":
        found.append(f"Model card: {stated[1]} trainable parameters, and run.json has {parameters:,}.")
    stated = re.search(r"^(.*) \([\d,]+ trainable parameters\), trained with", text, re.MULTILINE)
    # Of before cards named the aligner there is no such sentence.
    if config and stated and stated[1] != describe_aligner(config):
        found.append(f"Model card: {stated[1]}; and config.json has {describe_aligner(config)}.")
    stated = re.search(r"Split hash `(\w*)`", text)
    if split_hash is not None and stated and stated[1] != split_hash:
        found.append(f"Model card: the split hash {stated[1]}, and the manifest has {split_hash}.")
    return found


def tables(text: str) -> Iterable[tuple[list[str], list[list[str]]]]:
    """Tables of a Markdown page: names of the columns, and the rows."""
    block: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|") and line.rstrip().endswith("|"):
            block.append([cell.strip() for cell in _CELLS.split(line.strip())[1:-1]])
        elif block:
            yield block[0], block[2:]
            block = []


def _metadata(text: str, retrieval: Mapping[str, Any]) -> list[str]:
    from huggingface_hub import ModelCard

    stated, found = {}, []
    for result in ModelCard(text).data.eval_results or []:
        # Downstream results that were added to the card since have settings of their own, beside the split's hash.
        if set(result.dataset_args or ()) == {"split_hash"} and result.dataset_split == retrieval["split"]:
            stated[result.metric_type] = (result.metric_value, result.metric_args or {})
    for name, (value, details) in stated.items():
        expected = {"": retrieval["metrics"].get(name), "chance": retrieval.get("chance", {}).get(name)}
        low_high = details.get("interval_95") or [None, None]
        for end, shown in zip(("low end", "high end"), low_high, strict=False):
            expected[end] = (retrieval["intervals"].get(name) or [None, None])[end == "high end"]
            details = {**details, end: shown}
        for part, wanted in expected.items():
            shown = value if not part else details.get(part)
            if not _close(shown, wanted, METADATA_TOLERANCE):
                found.append(_sentence(", ".join(filter(None, (name, part))), shown, wanted))
    return found + [f"Model card: its metadata has no {name}." for name in retrieval["metrics"] if name not in stated]


def _evaluation(rows: list[list[str]], retrieval: Mapping[str, Any]) -> list[str]:
    found, stated = [], set()
    for name, *cells in rows:
        stated.add(name)
        wanted = [retrieval["metrics"].get(name), *(retrieval["intervals"].get(name) or ())]
        if name in retrieval.get("chance", {}):
            wanted.append(retrieval["chance"][name])
        count = next((n for way, n in retrieval.get("num_queries", {}).items() if name.startswith(way)), None)
        found += _row(f"table of retrieval, {name}", cells, [*wanted, count], 3)
    missing = [name for name in retrieval["metrics"] if name not in stated]
    return found + [f"Model card: the table of retrieval has no {name}." for name in missing]


def _controls(columns: list[str], rows: list[list[str]], retrieval: Mapping[str, Any]) -> list[str]:
    known = {one["name"]: one for one in (retrieval, *retrieval.get("controls", ()))}
    found = []
    for name, *cells in rows:
        plain = name.replace("\\", "")
        for column, cell in zip(columns[1:], cells, strict=False):
            metric = _OF_CONTROLS.get(column)
            if plain == "trivial: chance" and metric:
                wanted = [retrieval.get("chance", {}).get(metric)]
            elif plain in known and metric:
                wanted = [known[plain]["metrics"].get(metric), *(known[plain]["intervals"].get(metric) or ())]
            else:
                continue
            digits = 1 if column.endswith("rank") else 3
            found += _row(f"table of controls, {plain}, {column}", [cell], wanted, digits)
    return found


def _sources(columns: list[str], rows: list[list[str]], retrieval: Mapping[str, Any]) -> list[str]:
    """Mean recall of each source, in their order: a card does not call all of them by their names."""
    place = columns.index("mean recall") if "mean recall" in columns else None
    cells = [cell for cell in (row[place] for row in rows if place is not None) if cell != "n/a"]
    recorded = list((retrieval.get("sources") or {}).values())
    if len(cells) != len(recorded):
        return [f"Model card: it has the retrieval of {len(cells)} sources, and the records have {len(recorded)}."]
    found = []
    for number, (cell, one) in enumerate(zip(cells, recorded, strict=True), 1):
        wanted = [one["metrics"]["mean_recall"], *(one["intervals"].get("mean_recall") or ())]
        found += _row(f"table of sources, mean recall of source {number}", [cell], wanted, 3)
    return found


def _row(where: str, cells: list[str], wanted: list[Any], digits: int) -> list[str]:
    shown = [float(number) for cell in cells for number in _NUMBER.findall(cell)]
    wanted = [number for number in wanted if number is None or not math.isnan(number)]
    # Of some numbers nothing is recorded; what a cell has beyond the recorded ones cannot be compared.
    if None not in wanted and len(shown) != len(wanted):
        return [f"Model card: {where} has {len(shown)} numbers, and the records have {len(wanted)}."]
    return [
        _sentence(where, number, expected)
        for number, expected in zip(shown, wanted, strict=False)
        if expected is not None and not _close(number, expected, 0.6 * 10**-digits)
    ]


def _arguments(rows: list[list[str]], recorded: Mapping[str, Any]) -> list[str]:
    return [
        f"Model card: the argument {name} is {cells[0] if cells else 'missing'}, and run.json has {recorded[name]}."
        for name, *cells in rows
        if name in recorded and (cells[0].replace("\\", "") if cells else None) != str(recorded[name])
    ]


def _close(shown: Any, expected: Any, tolerance: float) -> bool:
    if expected is None or shown is None:
        return expected is None and shown is None
    if isinstance(shown, bool) or not isinstance(shown, int | float):
        return False
    both_unknown = math.isnan(shown) and math.isnan(expected)
    return both_unknown or math.isclose(shown, expected, rel_tol=0, abs_tol=tolerance)


def _sentence(where: str, shown: Any, expected: Any) -> str:
    return f"Model card: {where} is {shown}, and the records have {expected}."


__all__ = ["card_differences", "tables"]
