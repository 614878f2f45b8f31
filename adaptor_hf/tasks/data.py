"""Labelled images in three parts: from a public data set on disk, or from a table or imagefolder with labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..privacy.vocabulary import column_list

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict

    from ..data.split_rule import SplitRule
    from ..data.training_rows import Seen

logger = logging.getLogger(__name__)

PARTS = ("train", "validation", "test")
ID_COLUMNS = ("image_id", "patient_id", "study_id")
SUBGROUP_COLUMNS = ("view", "sex", "age")
_TAKEN = ("labels", "mask", "target", "score")


@dataclass
class LabelledData:
    """
    Images and labels of a classification task.

    Args:
        name (`str`): Name of the data set, for results.
        class_names (`list[str]`): One a column of the labels, or one a class number.
        exclusive (`bool`): Whether an image has exactly one of three or more classes.
        parts (`dict[str, Dataset]`): `train`, `validation`, `test`, as far as there are rows.
        labels (`dict[str, np.ndarray]`): Of each part, `(n,)` int64 if exclusive, else `(n, C)` float32 of 0, 1 and
            NaN (unknown). Two classes that exclude each other are one column.
        split_hash (`str`): Name of the split.
        seen (`dict[str, Seen]`): Of each model, what of the test part was in its pre-training; empty if not asked.
        leak (`str`, *optional*): What the split, a reference's, is known to leak.
    """

    name: str
    class_names: list[str]
    exclusive: bool
    parts: dict[str, Dataset]
    labels: dict[str, np.ndarray]
    split_hash: str
    seen: dict[str, Seen] = field(default_factory=dict)
    leak: str | None = None
    _rows: dict[str, Any] = field(default_factory=dict, repr=False, init=False)

    def rows(self, part: str) -> pd.DataFrame:
        """Ids and subgroup columns of a part, no image."""
        if part not in self._rows:
            self._rows[part] = plain_rows(self.parts[part])
        return self._rows[part]

    @property
    def num_logits(self) -> int:
        return len(self.class_names)

    @property
    def positive_class(self) -> str | None:
        """What a score of the only label speaks for; None where there are several labels or classes."""
        return self.class_names[0] if len(self.class_names) == 1 else None


def plain_rows(dataset: Dataset) -> pd.DataFrame:
    """Ids, view, sex, age and columns of text or numbers of a data set; no image, mask or report is read."""
    import pandas as pd

    left_out = {"text", "source", "source_row", "labels", "split"}
    flat = [
        name
        for name, feature in dataset.features.items()
        if name not in left_out and getattr(feature, "dtype", None) in ("string", "int64", "float64", "float32", "bool")
    ]
    frame = dataset.select_columns(flat).with_format("arrow")[:].to_pandas() if flat else pd.DataFrame()
    frame = frame.astype({name: object for name in frame if frame[name].dtype.kind not in "iufb"})
    frame = frame.where(frame.notna(), None) if len(frame.columns) else pd.DataFrame(index=range(len(dataset)))
    for name in ID_COLUMNS:
        if name not in frame:
            frame[name] = None
    frame["image_id"] = [str(row if value is None else value) for row, value in enumerate(frame["image_id"])]
    return frame


def labelled_data(
    name: str,
    parts: DatasetDict | dict[str, Dataset],
    split_hash: str,
    *,
    classes: Sequence[str] | None = None,
    label_policy: str = "raw",
    positive_label: str | None = None,
    declared: bool = False,
) -> LabelledData:
    """
    Labels of data sets with a column `labels` (`ClassLabel` or `MultiLabel`) as arrays; rows without any label are left
    out and counted in the log.

    Args:
        name (`str`): Name of the data set, for results.
        parts (`dict[str, Dataset]`): `train`, `validation`, `test`, as far as there are rows.
        split_hash (`str`): Name of the split.
        classes (`Sequence[str]`, *optional*): The labels to use, of a `MultiLabel` column.
        label_policy (`str`, defaults to `"raw"`): What blank and uncertain labels become, see `LABEL_POLICIES`.
        positive_label (`str`, *optional*): The positive one of two classes; of a single label of 0 and 1, one of these.
        declared (`bool`, defaults to `False`): The second of two classes is declared as the positive one, as public
            data sets do.

    Raises:
        ValueError: no labels, an unknown class, uncertain labels (-1) without a policy, or two classes of which
            neither `positive_label` nor the words say which is positive.
    """
    from datasets import ClassLabel

    from ..data.positive import choose_positive

    first = next(iter(parts.values()))
    if "labels" not in first.column_names:
        columns = column_list(first.column_names)
        raise ValueError(f"{name} has no labels. {columns} Name those of labels with --label_column.")
    feature = first.features["labels"]
    exclusive = isinstance(feature, ClassLabel) and len(feature.names) > 2
    if isinstance(feature, ClassLabel):
        if len(feature.names) < 2:
            raise ValueError(
                f"{name} has the one class {feature.names}: there is nothing to tell apart. (Words such as NA and None "
                "count as missing labels.)"
            )
        if classes is not None:
            raise ValueError(f"{name} has classes that exclude each other, all are used: leave out --classes.")
        class_names = list(feature.names)
        if not exclusive:
            positive = choose_positive(feature.names, positive_label, name, declared=declared)
            class_names = [feature.names[positive]]
            logger.info("%s: the positive class is %r, against %r.", name, *class_names, feature.names[1 - positive])
    else:
        class_names = _chosen(list(feature.names), classes, name)
    if positive_label is not None and len(class_names) != 1:
        raise ValueError(
            f"--positive_label is for two classes, or one label of 0 and 1; {name} has {len(class_names)}."
        )
    inverted = (
        not isinstance(feature, ClassLabel) and positive_label is not None and _is_zero(positive_label, class_names)
    )
    kept, labels = {}, {}
    for part, dataset in parts.items():
        values = dataset.select_columns(["labels"]).with_format("numpy")[:]["labels"] if len(dataset) else []
        if isinstance(feature, ClassLabel):
            codes = np.array([-1 if code is None or code != code else int(code) for code in values], dtype=np.int64)
            known = codes >= 0
            array = codes if exclusive else (codes == positive).astype(np.float32)[:, None]
        else:
            array = _multi_label(np.asarray(values, np.float32).reshape(-1, len(feature.names)), feature.names, name,
                                 class_names, label_policy)  # fmt: skip
            array = 1 - array if inverted else array
            known = ~np.isnan(array).all(1)
        if not known.all():
            logger.info("%s, %s: %d of %d rows have no label and are left out.", name, part, (~known).sum(), len(known))
        if known.any():
            kept[part] = dataset if known.all() else dataset.select(np.flatnonzero(known))
            labels[part] = array[known]
    if not kept:
        raise ValueError(f"{name}: no row has a label. Check the label column.")
    if inverted:
        class_names = [f"{class_names[0]} = 0"]
    return LabelledData(name, class_names, exclusive, kept, labels, split_hash)


def _is_zero(positive_label: str, class_names: list[str]) -> bool:
    """Whether the positive class of a label of 0 and 1 is its 0."""
    from ..data.positive import PAIRS, spelling_key

    wanted = spelling_key(positive_label)
    if wanted in {positive for _, positive in PAIRS} | {spelling_key(class_names[0])}:
        return False
    if wanted in {negative for negative, _ in PAIRS}:
        return True
    raise ValueError(f"--positive_label {positive_label!r}: the label {class_names[0]!r} is 0 or 1, name one of them.")


def _chosen(names: list[str], classes: Sequence[str] | None, source: str) -> list[str]:
    if classes is None:
        return names
    if unknown := [name for name in classes if name not in names]:
        raise ValueError(f"{source} has no label {', '.join(unknown)}. Its labels: {', '.join(names)}.")
    return list(classes)


def _multi_label(
    values: np.ndarray, names: Sequence[str], source: str, class_names: list[str], policy: str
) -> np.ndarray:
    import pandas as pd

    from ..data.labels import apply_policy

    frame = apply_policy(pd.DataFrame(values, columns=list(names)), policy)[class_names]
    uncertain = (frame == -1).sum()
    if uncertain.any():
        counts = ", ".join(f"{label} {count}" for label, count in uncertain[uncertain > 0].items())
        raise ValueError(
            f"{source} has uncertain labels (-1): {counts}. Say what they mean with --label_policy (ones, zeros, "
            "ignore, mgca or trx)."
        )
    return frame.to_numpy(np.float32)


def load_public(
    name: str, root: str | os.PathLike, task: str, *, split_scheme: str = "official", **options: Any
) -> tuple[DatasetDict, str]:
    """Parts of a public data set and the hash of its split; see `load_public_dataset`."""
    from ..data import describe, load_public_dataset

    parts = load_public_dataset(name, root, task, split_scheme, **options)
    return parts, describe(parts)["split_hash"]


def load_table(
    source: str | os.PathLike,
    *,
    label_columns: Sequence[str] = (),
    mask_column: str | None = None,
    text_column: str | None = None,
    extra_columns: Sequence[str] = (),
    image_column: str = "image",
    image_root: str | os.PathLike | None = None,
    patient_column: str | None = None,
    study_column: str | None = None,
    split_column: str | None = None,
    id_column: str | None = None,
    filters: Sequence[str] | None = None,
    voi_lut: bool = False,
    ids: str | None = None,
    image_mode: str = "auto",
    label_spelling: str | None = None,
    label_separator: str | None = None,
    missing_words: Sequence[str] = (),
    mask_values: str = "binary",
    mask_size: str = "scaled",
    sep: str | None = None,
    encoding: str | None = None,
    range_percentile: float = 0.0,
) -> Dataset:
    """
    A table of images with labels or masks, read as `load_pairs` reads pairs; or a folder with a sub-folder a class.

    Args:
        source: What `load_pairs` takes, or a folder of class folders (in split folders, if there are any).
        label_columns: One column of names is a `ClassLabel`; one or several of 0, 1, -1 and empty cells, or one with a
            list of names a row, a `MultiLabel`.
        mask_column: Column of mask files, relative to the image root, or of a data set's pictures; an empty cell is an
            unknown mask.
        text_column: Column of reports, if they are wanted.
        extra_columns: Columns kept for subgroups, beside `view`, `sex` and `age`.
        image_column, image_root, patient_column, study_column, split_column, id_column, filters, voi_lut, ids,
            image_mode, missing_words, sep, encoding, range_percentile: As in `load_pairs`. Files in colour that are
            read as "L" are said in the log.
        label_spelling, label_separator: See `adaptor_hf.data.label_columns.LabelRules`.
        mask_values, mask_size: Of mask files, see `adaptor_hf.data.masks.file_mask`.

    Returns:
        Dataset with the columns of `load_pairs`, and `labels`, `mask` and the extra columns as far as asked for.

    Raises:
        FileNotFoundError, ValueError: As of `load_pairs`; a label column that is not there or has impossible values,
            naming the row.
    """
    from ..data.colour import warn_of_colour
    from ..data.label_columns import LabelRules, label_column_names, label_feature, listed_labels
    from ..data.mask_columns import holds_masks, with_mask_files, with_stored_masks
    from ..data.table_files import read_source
    from ..data.tables import load_pairs

    rules = LabelRules(label_spelling, label_separator, missing_words)
    raw = read_source(source, image_column, sep, encoding)
    if raw.folder is not None:
        label_columns = label_columns or ("label",)
    pairs = load_pairs(
        raw, image_column=image_column, text_column=text_column, image_root=image_root,
        patient_column=patient_column, study_column=study_column,
        split_column=split_column, id_column=id_column, filters=filters, voi_lut=voi_lut, ids=ids,
        image_mode=image_mode, missing_words=missing_words, range_percentile=range_percentile,
    )  # fmt: skip
    if image_mode == "L":
        warn_of_colour(pairs)
    table = raw.table.rename_columns([column.strip() for column in raw.table.column_names])
    rows = pairs["source_row"][:]
    if taken := [name for name in extra_columns if name in _TAKEN]:
        raise ValueError(f"A subgroup column cannot be called {taken[0]!r}: that has a meaning of its own. Rename it.")
    present = [name for name in (*SUBGROUP_COLUMNS, *extra_columns) if name in table.column_names]
    listed = [name for name in label_columns if raw.images is not None and name in label_column_names(raw.images)]
    stored = bool(mask_column) and raw.images is not None and holds_masks(raw.images, mask_column)
    if listed and len(label_columns) > 1:
        raise ValueError(f"The label column {listed[0]!r} holds a list of labels a row: name it alone.")
    labels = [] if listed else label_columns
    wanted = [*labels, *([mask_column] if mask_column and not stored else []), *extra_columns]
    where = source if isinstance(source, (str, os.PathLike)) else "the data set"
    if missing := [name for name in wanted if name not in table.column_names]:
        if nested := [name for name in missing if name in raw.nested]:
            raise ValueError(
                f"{where}: the column {nested[0]!r} holds {raw.nested[nested[0]]}, expected a text or number in each "
                "row. Labels of an image can be one cell, such as A|B with --label_separator '|', or a column of 0 and "
                "1 for each."
            )
        raise ValueError(f"{where} has no column {', '.join(map(repr, missing))}. {column_list(table.column_names)}")
    cells = {name: table[name].take(rows).to_pylist() for name in dict.fromkeys([*wanted, *present])}
    for name in dict.fromkeys(name for name in present if name not in pairs.column_names):
        pairs = pairs.add_column(name, _numbers_or_text(cells[name], missing_words))
    if label_columns:
        values, feature = (
            listed_labels(raw.images, listed[0], rows, where, rules)
            if listed
            else label_feature({name: cells[name] for name in label_columns}, rows, where, rules)
        )
        pairs = pairs.add_column("labels", values, feature=feature)
    if stored:
        return with_stored_masks(pairs, raw.images, mask_column, rows)
    if mask_column:
        pairs = with_mask_files(
            pairs, cells[mask_column], image_root, raw.root, source=raw.name, missing_words=missing_words,
            mask_values=mask_values, mask_size=mask_size,
        )  # fmt: skip
    return pairs


def _numbers_or_text(cells: list, missing_words: Sequence[str]) -> list:
    """Numbers where every cell is one, else text; None where there is no value."""
    from ..data.missing import is_missing

    texts = [None if is_missing(cell, missing_words) else str(cell).strip() for cell in cells]
    try:
        return [None if text is None else float(text) for text in texts]
    except ValueError:
        return texts


def split_table(
    table: Dataset, rule: SplitRule | None = None, *, split_alias: Sequence[str] = ()
) -> tuple[dict[str, Dataset], str]:
    """
    Parts of a table by its split, or by the rule (the default one if None) where it brings none, and the split's hash.
    A table without a validation part gets one from its training patients: nothing is chosen on test.

    Raises:
        ValueError: patients in several parts, or no row to train on or to test on.
    """
    from ..data.split_rule import SplitRule
    from ..data.splits import split_hash

    table, _ = (rule or SplitRule()).apply(table, split_alias)
    splits = np.array(table["split"][:])
    parts = {part: table.select(np.flatnonzero(splits == part)) for part in PARTS if (splits == part).any()}
    return parts, split_hash(table)


def align_classes(external: LabelledData, class_names: Sequence[str], exclusive: bool) -> LabelledData:
    """
    An external test set with its labels in the order of the trained classes; a label it does not have is unknown.

    Raises:
        ValueError: no class in common, or exclusive classes that are not the same.
    """
    if exclusive != external.exclusive or (exclusive and set(external.class_names) != set(class_names)):
        raise ValueError(
            f"External set {external.name} has the classes {', '.join(external.class_names)}, the model "
            f"{', '.join(class_names)}: they must be the same."
        )
    from ..data.positive import spelling_key

    # Case and spaces make no other label; a label that seems absent would be unknown in every image, without a word.
    keys = [spelling_key(name) for name in external.class_names]
    places = {name: keys.index(spelling_key(name)) for name in class_names if spelling_key(name) in keys}
    if not places:
        raise ValueError(
            f"External set {external.name} has none of the labels {', '.join(class_names)}; it has "
            f"{', '.join(external.class_names)}."
        )
    labels = {}
    for part, values in external.labels.items():
        if exclusive:
            order = np.array([list(class_names).index(name) for name in external.class_names])
            labels[part] = order[values]
        else:
            labels[part] = np.full((len(values), len(class_names)), np.nan, np.float32)
            for name, place in places.items():
                labels[part][:, list(class_names).index(name)] = values[:, place]
    return replace(external, class_names=list(class_names), exclusive=exclusive, labels=labels)


def training_subset(data: LabelledData, fraction: float, rule: str, seed: int) -> np.ndarray:
    """Rows of the training part that a fraction keeps, `(n,)` int64; stratified as `load_public_dataset` does."""
    import pandas as pd

    from ..data.fractions import fraction_mask
    from ..data.labels import label_strata

    labels, rows = data.labels["train"], data.rows("train")
    if data.exclusive:
        strata = pd.Series([data.class_names[code] for code in labels], dtype=object)
    else:
        strata = label_strata(pd.DataFrame(labels, columns=data.class_names))
    return np.flatnonzero(fraction_mask(rows, strata, fraction, rule, seed))


__all__ = [
    "LabelledData",
    "align_classes",
    "labelled_data",
    "load_public",
    "load_table",
    "plain_rows",
    "split_table",
    "training_subset",
]
