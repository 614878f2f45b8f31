"""What a load of a public data set found and left out, counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .splits import SPLITS

if TYPE_CHECKING:
    import pandas as pd

    from .catalog import LoadedRows

FAULT_EXAMPLES = 5


@dataclass
class LoadReport:
    """Counts of one load. `to_dict` is what `check` writes; nothing in it names a patient."""

    dataset: str
    task: str
    split_scheme: str
    label_policy: str
    seed: int
    fraction: float = 1.0
    fraction_rule: str = "nested"
    options: dict[str, Any] = field(default_factory=dict)
    table_rows: int = 0
    """Rows of the tables, before any rule."""
    rows: int = 0
    """Rows of the result."""
    images: int = 0
    """Different images of the result."""
    files_found: int = 0
    """Files with an image's suffix under the folders that the tables name."""
    missing_files: int = 0
    empty_files: int = 0
    """Rows whose image, or a mask of it, is not there or has zero bytes."""
    faults: int = 0
    """Rows with a tolerated fault: the two above and those that the loader found."""
    fault_examples: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by rule."""
    notes: list[str] = field(default_factory=list)
    leak: str | None = None
    """What is known to leak between the parts of the chosen split."""
    split_hash: str = ""
    """Names the split before `fraction` thins its training part; see `adaptor_hf.data.splits.split_hash`."""
    rows_per_split: dict[str, int] = field(default_factory=dict)
    patients_per_split: dict[str, int] = field(default_factory=dict)
    rows_without_patient: int = 0
    overlaps: dict[str, int] = field(default_factory=dict)
    """Patients in two splits, such as {"train and test": 3}."""
    labels: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """By split and label: rows that are positive, negative, uncertain, unknown; of classes rows by class."""
    boxes: dict[str, int] = field(default_factory=dict)
    """Boxes by split."""

    def drop(self, rule: str, count: int) -> None:
        """Count rows left out by a rule."""
        if count:
            self.dropped[rule] = self.dropped.get(rule, 0) + int(count)

    def fault(self, count: int, examples: list[str]) -> None:
        """Count faults; of the examples a few are kept."""
        self.faults += int(count)
        self.fault_examples += examples[: max(0, FAULT_EXAMPLES - len(self.fault_examples))]

    def count(self, loaded: LoadedRows) -> None:
        """Count the rows of the result: by split rows, patients, labels and boxes."""
        rows = loaded.rows
        self.rows = len(rows)
        images = rows["image"].map(lambda value: value["path"] if isinstance(value, dict) else value)
        self.images = int(images.nunique())
        for split in SPLITS:
            part = rows[rows["split"] == split]
            if not len(part):
                continue
            self.rows_per_split[split] = len(part)
            if "patient_id" in part:
                self.patients_per_split[split] = int(part["patient_id"].nunique())
            if loaded.class_names is not None:
                codes = part["labels"].dropna().astype(int).value_counts()
                self.labels[split] = {
                    name: {"rows": int(codes.get(code, 0))} for code, name in enumerate(loaded.class_names)
                }
            elif loaded.label_names is not None:
                self.labels[split] = {name: _label_counts(part[name]) for name in loaded.label_names}
            if "boxes" in part:
                self.boxes[split] = int(part["boxes"].map(lambda boxes: 0 if boxes is None else len(boxes)).sum())

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        return asdict(self)


def _label_counts(values: pd.Series) -> dict[str, int]:
    kinds = {"positive": values == 1, "negative": values == 0, "uncertain": values == -1, "unknown": values.isna()}
    return {kind: int(rows.sum()) for kind, rows in kinds.items()}


__all__ = ["LoadReport"]
