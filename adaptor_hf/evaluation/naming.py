"""What tables and figures call runs, checkpoints and metrics."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .aligners import name_in_controls
from .metrics import metric_of, parts_of

TOWERS = ("vision tower", "text tower")
CHOSEN_ON_TEST = "CHOSEN ON THE TEST SPLIT"
CHOSEN_ON_TEST_NOTE = (
    f"{CHOSEN_ON_TEST}: epoch, learning rate or threshold were picked by these very rows; the value is too good by an "
    "unknown amount and proves nothing."
)
VALUES = (
    "Values: mean over seeds ± standard deviation over seeds, where there are several, and [95 % interval], of several "
    "seeds the mean of their ends."
)


def checkpoint_label(fields: Mapping[str, Any]) -> str:
    """A checkpoint's own name, where results carry one, and 8 hex digits of its weights' digest; "" without one."""
    digest = fields.get("checkpoint")
    return " ".join(str(part) for part in (fields.get("checkpoint_name"), digest and str(digest)[:8]) if part)


def row_label(fields: Mapping[str, Any]) -> str:
    """A row's name: system, module where that says more, towers, and what else tells it from its neighbours."""
    parts = row_parts(fields)
    towers = "+".join(parts[name] for name in TOWERS if name in parts)
    # The two towers stand where the first of them does.
    return ", ".join(dict.fromkeys(towers if name in TOWERS else part for name, part in parts.items()))


def row_parts(fields: Mapping[str, Any]) -> dict[str, str]:
    """What [`row_label`] joins, by what it says; only what there is."""
    system, module = str(fields["system"]), fields.get("module")
    plain = name_in_controls(module, system)
    parts = {
        "system": system,
        "module": str(module) if module and str(module).lower() not in plain.lower() else "",
        "vision tower": str(fields.get("vision_tower") or ""),
        "text tower": str(fields.get("text_tower") or ""),
        "protocol": str(fields.get("protocol") or ""),
        "recipe": str(fields.get("recipe") or ""),
        "input size": f"{fields['input_size']} px" if fields.get("input_size") else "",
        "checkpoint": checkpoint_label(fields),
        "targets": str(fields.get("targets") or ""),
        "selection": CHOSEN_ON_TEST if fields.get("selected_on") == "test" else "",
    }
    return {name: part for name, part in parts.items() if part}


def mark_targets(rows: Sequence[dict[str, Any]]) -> None:
    """
    Set `targets` where rows of one test set and task predict different things: the class that scores speak for, where
    there is one, and 8 hex digits of `targets_hash`. Changes the rows; elsewhere their names do not grow.
    """
    known: dict[tuple, set] = {}
    for row in rows:
        known.setdefault(_test_of(row), set()).add(row.get("targets_hash"))
    for row in rows:
        if len(known[_test_of(row)]) > 1:
            said = f"targets {row['targets_hash'][:8]}" if row.get("targets_hash") else "targets unknown"
            row["targets"] = ", ".join(part for part in (row.get("positive_class"), said) if part)


def _test_of(row: Mapping[str, Any]) -> tuple:
    return tuple(row.get(name) for name in ("dataset", "test_set", "task", "split_hash"))


def shared_parts(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all rows have alike, of `row_parts`; of towers, all that have one. System and checkpoint stay."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = {row.get(name) for row in rows if name in row or name not in TOWERS}
        if len(values) == 1 and name not in ("system", "checkpoint", "selection"):
            found[name] = values.pop()
    return found


def metric_title(metric: str) -> str:
    """A metric's name in words: `image_to_text_recall@1` is "image to text recall@1", `dice_pooled` "Dice pooled"."""
    way, name, rest, label = parts_of(metric)
    declared = metric_of(metric)
    title = declared.title if declared else name.removesuffix("@").replace("_", " ")
    words = [way.replace("_", " "), f"{title}@{rest}" if rest else title]
    return " ".join(filter(None, words)) + (f", {label}" if label else "")


def rows_in_words(fields: Mapping[str, Any]) -> str:
    """Test rows in words: "40 images of 20 patients"; no patients where the interval says that they are not known."""
    images, patients = fields.get("n_test") or 0, fields.get("n_patients") or 0
    return f"{images} images" if units(fields)[1] == "images" else f"{images} images of {patients} patients"


def units(fields: Mapping[str, Any]) -> tuple[int, str]:
    """How many units an interval's resamples draw, and which: patients, or images where patients are unknown."""
    over = str(fields.get("interval_over") or "patients")
    return int((fields.get("n_test") if over == "images" else fields.get("n_patients")) or 0), over


def weights_digest(model: torch.nn.Module) -> str:
    """12 hex digits over names and values of a model's own weights, without attached towers: a checkpoint's name in
    results, where no path belongs."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(("vision_model.", "text_model.")):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                          if value.ndim else str(value.item()).encode())  # fmt: skip
    return digest.hexdigest()[:12]


__all__ = [
    "CHOSEN_ON_TEST",
    "CHOSEN_ON_TEST_NOTE",
    "VALUES",
    "checkpoint_label",
    "mark_targets",
    "metric_title",
    "row_label",
    "row_parts",
    "rows_in_words",
    "shared_parts",
    "units",
    "weights_digest",
]
