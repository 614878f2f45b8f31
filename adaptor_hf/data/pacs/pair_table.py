"""From the facts of headers and the texts of reports to the rows of a pair table, and the counts of what was left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ...privacy.mode import private_name
from ...privacy.vocabulary import listed_word
from ..archives import parse_member
from ..dicom_headers import Fault
from .reports_table import ReportTable
from .rules import has_decoder, left_out_by
from .walk import WalkedFile

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "image", "image_id", "patient_id", "study_id", "view", "sex", "age", "text", "split", "modality", "body_part",
    "burned_in", "overlays",
)  # fmt: skip


def build_pairs(
    found: Sequence[WalkedFile],
    results: Sequence[dict[str, Any] | Fault],
    reports: ReportTable | None,
    modalities: Collection[str],
    keep: Collection[str],
    shares: dict[str, Any],
) -> tuple[pa.Table, dict[str, Any], list[tuple[str, str]], list[str]]:
    """
    Rows of the wanted images, counts, name and reason of what was left out, and of each of those what was found.

    Args:
        found, results: Objects, and facts or fault of each.
        reports: None where there are none.
        shares: Arguments of `assign_splits`.

    Raises:
        ValueError: No image is left.
    """
    reasons = [r.kind if isinstance(r, Fault) else left_out_by(r, modalities, keep) for r in results]
    _mark_duplicates(results, reasons)
    if reports is not None and "key_of_several_patients" not in keep:
        _mark_shared_keys(results, reasons)
    rows = [place for place, reason in enumerate(reasons) if reason is None]
    report = _object_counts(found, results, reasons)
    if not rows:
        raise ValueError(
            f"None of the {len(found)} objects is a radiograph of {_words(modalities)}. Left out: "
            f"{_counts_in_words(report['left_out'] | report['faults'])}. Found, by modality: "
            f"{_counts_in_words(report['objects_by_modality'])}. No decoder is installed for: "
            f"{_counts_in_words(report['without_decoder'])}."
        )
    facts = [results[place] for place in rows]
    texts, report["reports"] = _join(facts, reports)
    table = _table([found[place].path for place in rows], facts, texts, shares)
    report |= _row_counts(table, facts)
    out = [place for place, reason in enumerate(reasons) if reason is not None]
    excluded = [(private_name(found[place].name), reasons[place]) for place in out]
    details = [_found(results[place], reasons[place]) for place in out]
    return table, report, excluded, details


def _found(result: dict[str, Any] | Fault, reason: str) -> str:
    """What a fault or a rule has met, where that says more than its name."""
    if isinstance(result, Fault):
        return result.found
    if reason == "no_decoder":
        return f"{_syntax_name(result)}, {result['bits']} bits"
    if reason == "multi_frame":
        return f"{result['frames']} frames"
    if reason == "photometric":
        return f"{result['photometric'] or 'none'}, {result['samples']} samples a pixel"
    return (result["modality"] or "not given") if reason == "modality" else ""


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
    headers = [facts for facts in results if not isinstance(facts, Fault)]
    rules = Counter(r for r, facts in zip(reasons, results, strict=True) if r and not isinstance(facts, Fault))
    wanted = [facts for facts, reason in zip(results, reasons, strict=True) if reason in (None, "no_decoder")]
    return {
        "objects": len(found),
        "in_zips": sum(parse_member(item.path) is not None for item in found),
        "headers_read": len(headers),
        "faults": dict(Counter(facts.kind for facts in results if isinstance(facts, Fault)).most_common()),
        "left_out": dict(rules.most_common()),
        "objects_by_modality": _counted(headers, "modality"),
        "without_decoder": _without_decoder(wanted),
    }


def _row_counts(table: pa.Table, facts: list[dict]) -> dict[str, Any]:
    splits = Counter(table["split"].to_pylist())
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
        "by_transfer_syntax": dict(Counter(_syntax_name(row) for row in facts).most_common()),
    }


def _counted(facts: list[dict], name: str) -> dict[str, int]:
    return dict(Counter(row[name] or "not given" for row in facts).most_common())


def _without_decoder(facts: list[dict]) -> dict[str, int]:
    """Wanted images that no installed decoder reads, kept or not, by the name of their transfer syntax."""
    return dict(Counter(_syntax_name(r) for r in facts if not has_decoder(r["syntax"], r["bits"])).most_common())


def _syntax_name(row: dict) -> str:
    from pydicom.uid import UID

    return UID(row["syntax"]).name if row["syntax"] else "not given"


def _words(modalities: Collection[str]) -> str:
    return ", ".join(listed_word(name, "modality") for name in modalities)


def _counts_in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"


__all__ = ["COLUMNS", "build_pairs"]
