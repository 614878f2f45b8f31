"""From the facts of headers and the texts of reports to the rows of a pair table, and the counts of what was left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ...privacy.mode import private_name
from ..archives import parse_member
from .reports_table import ReportTable
from .rules import left_out_by
from .walk import WalkedFile

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "image", "image_id", "patient_id", "study_id", "view", "sex", "age", "text", "split", "modality", "body_part",
    "burned_in", "overlays",
)  # fmt: skip


def build_pairs(
    found: Sequence[WalkedFile],
    results: Sequence[dict[str, Any] | str],
    reports: ReportTable | None,
    modalities: Collection[str],
    keep: Collection[str],
    shares: dict[str, Any],
) -> tuple[pa.Table, dict[str, Any], list[tuple[str, str]]]:
    """
    Rows of the wanted images, counts, and name and reason of what was left out.

    Args:
        found, results: Objects, and facts or fault of each.
        reports: None where there are none.
        shares: Arguments of `assign_splits`.

    Raises:
        ValueError: No image is left.
    """
    reasons = [r if isinstance(r, str) else left_out_by(r, modalities, keep) for r in results]
    _mark_duplicates(results, reasons)
    if reports is not None and "key_of_several_patients" not in keep:
        _mark_shared_keys(results, reasons)
    rows = [place for place, reason in enumerate(reasons) if reason is None]
    report = _object_counts(found, results, reasons)
    if not rows:
        raise ValueError(
            f"None of the {len(found)} objects is a radiograph of {', '.join(modalities)}. Left out: "
            f"{_counts_in_words(report['left_out'] | report['faults'])}. Found, by modality: "
            f"{_counts_in_words(report['objects_by_modality'])}."
        )
    facts = [results[place] for place in rows]
    texts, report["reports"] = _join(facts, reports)
    table = _table([found[place].path for place in rows], facts, texts, shares)
    report |= _row_counts(table, facts)
    excluded = [(private_name(i.name), reason) for i, reason in zip(found, reasons, strict=True) if reason is not None]
    return table, report, excluded


def _mark_duplicates(results: Sequence, reasons: list[str | None]) -> None:
    seen = set()
    for place, (facts, reason) in enumerate(zip(results, reasons, strict=True)):
        if reason is None:
            if facts["uid"] in seen:
                reasons[place] = "duplicate"
            seen.add(facts["uid"])


def _mark_shared_keys(results: Sequence, reasons: list[str | None]) -> None:
    patients: dict[str, set] = {}
    for facts, reason in zip(results, reasons, strict=True):
        if reason is None and facts["key"]:
            patients.setdefault(facts["key"], set()).add(facts["patient"])
    for place, (facts, reason) in enumerate(zip(results, reasons, strict=True)):
        if reason is None and len(patients.get(facts["key"], ())) > 1:
            reasons[place] = "key_of_several_patients"


def _join(facts: list[dict], reports: ReportTable | None) -> tuple[list[str | None], dict[str, Any] | None]:
    """Text of each image, and counts."""
    if reports is None:
        return [None] * len(facts), None
    texts = {private_name(key): text for key, text in reports.texts.items()}
    keys = [row["key"] for row in facts]
    used = set(keys)
    found = [texts.get(key) or None for key in keys]
    counts = {
        "encoding": reports.encoding,
        "delimiter": reports.delimiter,
        **reports.counts,
        "keys_without_image": sum(key not in used for key in texts),
        "images_without_key": sum(key is None for key in keys),
        "images_without_report": sum(key is not None and key not in texts for key in keys),
        "images_with_empty_report": sum(key in texts and not texts[key] for key in keys),
        "images_with_text": sum(text is not None for text in found),
    }
    return found, counts


def _table(paths: list[str], facts: list[dict], texts: list[str | None], shares: dict[str, Any]) -> pa.Table:
    import pyarrow as pa

    texts_of = {"image_id": "uid", "patient_id": "patient", "study_id": "study", "view": "view", "sex": "sex",
                "modality": "modality", "body_part": "body_part", "burned_in": "burned_in"}  # fmt: skip
    columns = {name: pa.array([row[key] for row in facts], pa.string()) for name, key in texts_of.items()}
    columns["image"] = pa.array(paths, pa.string())
    columns["age"] = pa.array([row["age"] for row in facts], pa.float64())
    columns["text"] = pa.array(texts, pa.string())
    columns["overlays"] = pa.array([row["overlays"] for row in facts], pa.int64())
    columns["split"] = _splits(columns, shares)
    return pa.table({name: columns[name] for name in COLUMNS})


def _splits(columns: dict[str, pa.Array], shares: dict[str, Any]) -> pa.Array:
    """By patient, of the ids as they stand in the table: in private mode of their keyed hashes."""
    import datasets
    import pyarrow as pa

    from ..splits import assign_splits

    ids = {name: columns[name] for name in ("image_id", "patient_id", "study_id")}
    ids["split"] = pa.nulls(len(columns["image_id"]), pa.string())
    split = assign_splits(datasets.Dataset(datasets.table.InMemoryTable(pa.table(ids))), **shares)
    return split.with_format("arrow")[:]["split"].combine_chunks()


def _object_counts(found: Sequence[WalkedFile], results: Sequence, reasons: list[str | None]) -> dict[str, Any]:
    headers = [facts for facts in results if not isinstance(facts, str)]
    rules = Counter(r for r, facts in zip(reasons, results, strict=True) if r and not isinstance(facts, str))
    return {
        "objects": len(found),
        "in_zips": sum(parse_member(item.path) is not None for item in found),
        "headers_read": len(headers),
        "faults": dict(Counter(facts for facts in results if isinstance(facts, str)).most_common()),
        "left_out": dict(rules.most_common()),
        "objects_by_modality": _counted(headers, "modality"),
    }


def _row_counts(table: pa.Table, facts: list[dict]) -> dict[str, Any]:
    splits = Counter(table["split"].to_pylist())
    compressed, missing = _transfer_syntaxes(facts)
    return {
        "rows": len(table),
        "rows_by_split": {name: splits[name] for name in ("train", "validation", "test")},
        "patients": len({row["patient"] for row in facts} - {None}),
        "rows_without_patient": sum(row["patient"] is None for row in facts),
        "studies": len({row["study"] for row in facts} - {None}),
        "by_modality": _counted(facts, "modality"),
        "by_view": _counted(facts, "view"),
        "by_body_part": _counted(facts, "body_part"),
        "by_sex": _counted(facts, "sex"),
        "ages_unknown": sum(row["age"] is None for row in facts),
        "ages_impossible": sum(row["bad_age"] for row in facts),
        "inverted": sum(row["photometric"] == "MONOCHROME1" for row in facts),
        "burned_in": _counted(facts, "burned_in"),
        "with_overlays": sum(row["overlays"] > 0 for row in facts),
        "by_transfer_syntax": compressed,
        "without_decoder": missing,
    }


def _counted(facts: list[dict], name: str) -> dict[str, int]:
    return dict(Counter(row[name] or "not given" for row in facts).most_common())


def _transfer_syntaxes(facts: list[dict]) -> tuple[dict[str, int], dict[str, int]]:
    """Images by the name of their transfer syntax, and of those the ones that no installed decoder reads."""
    from pydicom.uid import UID

    from ..dicom import has_decoder

    counts = Counter(UID(row["syntax"]).name if row["syntax"] else "not given" for row in facts)
    syntaxes = {row["syntax"] for row in facts} - {None, "private"}
    unread = {UID(syntax).name for syntax in syntaxes if not has_decoder(UID(syntax))}
    return dict(counts.most_common()), {name: counts[name] for name in sorted(unread)}


def _counts_in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"


__all__ = ["COLUMNS", "build_pairs"]
