"""Files and lines that an index leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import write_csv, written_aside
from ...privacy.mode import is_private
from ..dicom_headers import FAULTS
from .rules import RULES, TABLE_RULES

if TYPE_CHECKING:
    from .index import DicomIndex

PAIRS, REPORT, EXCLUDED = "pairs", "index_report.json", "excluded.csv"


def write_outputs(index: DicomIndex, folder: Path, format: str) -> None:
    """Write the table, the report and the list of what was left out, each aside and then renamed."""
    import pyarrow.parquet as pq

    mode = 0o600 if is_private() else None
    with written_aside(folder / f"{PAIRS}.{format}", mode=mode) as path:
        if format == "parquet":
            pq.write_table(index.table, path)
        else:
            write_csv(path, index.table.column_names, (map(_cell, row.values()) for row in index.table.to_pylist()))
    with written_aside(folder / EXCLUDED, mode=mode) as path:
        rows = ((*row, found) for row, found in zip(index.excluded, index.found, strict=True))
        write_csv(path, ["file", "reason", "found"], rows)
    with written_aside(folder / REPORT, mode=mode) as path:
        path.write_text(json.dumps(index.report, indent=1) + "\n", encoding="utf-8")


def format_index(report: dict[str, Any]) -> str:
    """The report of an index as lines to read."""
    lines = [
        f"objects: {report['objects']}, of them in zips {report['in_zips']}, headers read {report['headers_read']}",
        f"by modality: {_words(report['objects_by_modality'])}",
        *(f"fault {name}: {count} ({FAULTS[name]})" for name, count in report["faults"].items()),
        *(f"left out by {name}: {count} ({_rule(name)})" for name, count in report["left_out"].items()),
        f"rows: {report['rows']} of {report['patients']} patients and {report['studies']} studies; "
        f"{_words(report['rows_by_split'])}",
        f"views: {_words(report['by_view'])}",
        f"sex: {_words(report['by_sex'])}; ages unknown {report['ages_unknown']}, of them impossible "
        f"{report['ages_impossible']}",
        f"inverted (MONOCHROME1): {report['inverted']}",
        f"burned-in annotation: {_words(report['burned_in'])}; with overlay planes: {report['with_overlays']}",
    ]
    if report["rows_without_patient"]:
        lines.append(f"rows without PatientID: {report['rows_without_patient']}; they are split by study")
    if report["dicomdir"]["files"]:
        lines.append(f"DICOMDIR: {_words(report['dicomdir'])}")
    if report["without_decoder"]:
        lines.append(f"no decoder is installed for: {_words(report['without_decoder'])} (docs/data.md)")
    if report["faults"]:
        lines.append(f"{EXCLUDED} says of each fault what was found where")
    if reports := report["reports"]:
        lines.append("reports: " + _words({name.replace("_", " "): value for name, value in reports.items()}))
    return "\n".join(lines)


def _rule(name: str) -> str:
    return RULES[name][0] if name in RULES else TABLE_RULES[name]


def _words(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_MARKS.get(count, count)}" for name, count in counts.items()) or "none"


_MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


def _cell(value: Any) -> str:
    """A whole number of years loses its point."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


__all__ = ["EXCLUDED", "PAIRS", "REPORT", "format_index", "write_outputs"]
