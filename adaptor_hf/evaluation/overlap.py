"""What tables say of the overlap of test rows with pre-training."""

from collections.abc import Iterable, Mapping
from typing import Any

from .controls import saw_pairs


def overlap_sentences(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """What to print below a table of result lines: a sentence for each kind of overlap, without repetition."""
    said: dict[str, None] = {}
    for line in lines:
        status, test = line.get("pretraining_overlap"), line.get("test_set") or line["dataset"]
        if not saw_pairs(line.get("module")):
            continue
        if status == "found":
            counts = (
                counted(line.get("seen_patients"), "test patients")
                + " and "
                + counted(line.get("seen_images"), "images")
            )
            said[f"Pre-training of {line['system']} had seen {counts} of {test}: its scores are too good."] = None
        elif status == "none":
            said[f"No test patient and no test image of {test} was in pre-training."] = None
        else:
            said[f"Overlap of {test} with pre-training: unknown."] = None
    return list(said)


def overlap_cell(line: Mapping[str, Any]) -> str:
    """What of the test rows pre-training saw, in a table's cell: none, unknown, or the counts."""
    status = line.get("pretraining_overlap") or "unknown"
    if status != "found":
        return str(status)
    return f"{counted(line.get('seen_patients'), 'patients')}, {counted(line.get('seen_images'), 'images')}"


def counted(count: int | None, what: str) -> str:
    """Such as "3 images" or "3 of 5 images", or that their number is not known."""
    unknown = "an unknown number" if what.startswith("of ") else "an unknown number of"
    return f"{unknown if count is None else count} {what}"


__all__ = ["counted", "overlap_cell", "overlap_sentences"]
