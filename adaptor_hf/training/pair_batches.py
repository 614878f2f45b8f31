"""A batch of pairs, an open dictionary: how it is made of examples, which columns are whose, what is wrong with one."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

from ..data.token_spans import SPANS
from ..objectives.base import MODEL_INPUTS, Objective, model_inputs
from .terms import smaller_steps

IMAGE_COLUMNS = ("pixel_values", "image_embeds", "image_attention_mask", "regions", "shallow")
TEXT_COLUMNS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "text_embeds",
    "text_attention_mask",
    "words",
    "sentences",
)


class PairCollator:
    """
    Collator of any data set of pairs: a batch that is finished stays as it is, single examples are stacked.

    Of examples with `pixel_values` or `image_embeds`, and `input_ids` or `text_embeds`, it stacks every column of
    numbers: tensors, arrays and lists alike, decimals of lists as float32; `words` and `sentences`, spans `(n, 2)` of
    tokens, are filled up with -1. What is none, such as pictures, is left out. All that are no inputs of the model
    reach the objective under their own names.

    Args:
        pad (`Callable`, *optional*): `pad` of a tokenizer, for `input_ids` of different lengths.
    """

    def __init__(self, pad: Callable[..., Mapping[str, torch.Tensor]] | None = None):
        self.pad = pad

    def __call__(self, batch: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Raises:
            ValueError: examples without image or text inputs, or a column whose rows are of different shapes or
                missing in some (named).
        """
        if isinstance(batch, Mapping):
            return with_text_rows(dict(batch))
        known = dict.fromkeys(name for example in batch for name in example)
        if not {"pixel_values", "image_embeds"} & set(known) or not {"input_ids", "text_embeds"} & set(known):
            raise ValueError(
                "Examples of pairs need pixel_values or image_embeds, and input_ids or text_embeds; these have "
                f"{', '.join(map(str, batch[0]))}. Make them with the model's processor, or give a data_collator."
            )
        padded = self._padded(
            batch, [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in known]
        )
        columns = {name: padded[name] if name in padded else _stacked(batch, name) for name in (*known, *padded)}
        return with_text_rows({name: value for name, value in columns.items() if value is not None})

    def _padded(self, batch: Sequence[Mapping[str, Any]], names: list[str]) -> Mapping[str, torch.Tensor]:
        if "input_ids" not in names or len({len(example["input_ids"]) for example in batch}) == 1:
            return {}
        if self.pad is None:
            raise ValueError(
                "input_ids of a batch are of different lengths. Give the trainer the processor (processing_class), "
                "which pads them, or pad them in the data set."
            )
        return self.pad([{name: example[name] for name in names} for example in batch], return_tensors="pt")


class SameRows:
    """
    Collator of batches that accelerate cuts for the processes (`dispatch_batches`, its default for data that can only
    be iterated): each column by the rows of the first one, so all must have as many.

    Args:
        collator (`Callable`): Makes the batches.
    """

    def __init__(self, collator: Callable[[Any], Mapping[str, Any]]):
        self.collator = collator

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """
        Raises:
            ValueError: columns of different numbers of rows (two are named).
        """
        batch = self.collator(batch)
        rows = {name: len(values) for name, values in batch.items() if isinstance(values, torch.Tensor) and values.ndim}
        for name, count in rows.items():
            first = next(iter(rows))
            if count != rows[first]:
                raise ValueError(
                    f"dispatch_batches cuts each batch by rows, and this one has {rows[first]} of {first} and {count} "
                    f"of {name}. Let each process read batches of its own: a data set with a length, and "
                    "--accelerator_config '{\"dispatch_batches\": false}'."
                )
        return batch


def fit_for_dispatch(collator: Callable, dataset: Any, dispatch_batches: bool | None) -> Callable:
    """The collator of a data set, as [`SameRows`] where accelerate cuts its batches for the processes."""
    cuts = isinstance(dataset, IterableDataset) if dispatch_batches is None else dispatch_batches
    return SameRows(collator) if cuts and not isinstance(collator, SameRows) else collator


def _stacked(batch: Sequence[Mapping[str, Any]], name: str) -> torch.Tensor | None:
    """A column of all examples; None where it is no column of numbers."""
    given = [example.get(name) for example in batch]
    there = [value for value in given if value is not None]
    values = [_tensor(value, name) for value in there]
    if not values or any(value is None for value in values):
        return None
    if len(values) < len(batch):
        raise ValueError(
            f"{name} is missing in {len(batch) - len(values)} of the {len(batch)} examples of a batch. Fill it, with "
            f"NaN or -1, say, or leave it out of the data set{_leave_out(name)}."
        )
    if name in SPANS and all(value.ndim == 2 and value.shape[1] == 2 for value in values):
        return pad_sequence(values, batch_first=True, padding_value=-1)
    if len(shapes := {tuple(value.shape) for value in values}) > 1:
        one, other = sorted(shapes)[:2]
        raise ValueError(
            f"{name} of a batch are of different shapes, such as {one} and {other}. Make them alike, with padding, "
            f"say, or leave the column out of the data set{_leave_out(name)}."
        )
    return torch.stack(values)


def _leave_out(name: str) -> str:
    return "" if name in MODEL_INPUTS else f" (datasets: remove_columns({name!r}))"


def _tensor(value: Any, name: str) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    leaf = value
    while isinstance(leaf, list | tuple) and len(leaf):
        leaf = leaf[0]
    # numpy would make an array of a picture, too.
    if not isinstance(leaf, int | float | np.generic | np.ndarray | torch.Tensor | list | tuple):
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{name} of an example is a list of lists of different lengths. Pad them, or leave the column out of the "
            f"data set{_leave_out(name)}."
        ) from None
    if array.dtype.kind not in "biuf":
        return None
    # A list of decimals says nothing of their precision.
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def side_of_column(name: str) -> str:
    """
    Which items the rows of a column are: `"image"` (pixel_values, regions, shallow, `image_*`, `view_*`), `"text"`
    (input_ids, attention_mask, token_type_ids, words, sentences, `text_*`), or `"row"`, all others.
    """
    if name in IMAGE_COLUMNS or name.startswith(("image_", "view_")):
        return "image"
    return "text" if name in TEXT_COLUMNS or name.startswith("text_") else "row"


def with_text_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with `text_row` `(B,)` int64, equal for equal text inputs, where the data set gives none."""
    name = next((name for name in ("text_embeds", "input_ids") if batch.get(name) is not None), None)
    if "text_row" in batch or name is None:
        return batch
    texts = batch[name]
    mask = model_inputs(batch).get("attention_mask" if name == "input_ids" else "text_attention_mask")
    if mask is not None:
        texts = texts.masked_fill(mask.reshape(mask.shape + (1,) * (texts.ndim - mask.ndim)) == 0, 0)
    rows = texts.detach().cpu().flatten(1)
    rows = (rows.float() if rows.is_floating_point() else rows).numpy()
    # Zeros at an end are padding, and as long as the longest text of the batch.
    parts = [np.trim_zeros(row).tobytes() if name == "input_ids" else row.tobytes() for row in rows]
    digests = [int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "little", signed=True) for part in parts]
    return batch | {"text_row": torch.tensor(digests, dtype=torch.int64, device=texts.device)}


class Columns(dict[str, Any]):
    """Columns of a batch by name. The KeyError of one that is not there says which there are."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(
            f"The batch has no column {name!r} here; it has {', '.join(map(repr, self)) or 'none'}. Give it in each "
            "example of the data set, as numbers (a collator leaves out what is none), or do without it."
        )


def split_inputs(inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a batch says beside the model's inputs, whatever its columns are called; and those inputs."""
    inputs = with_text_rows(dict(inputs))
    of_model = model_inputs(inputs)
    return Columns({name: value for name, value in inputs.items() if name not in of_model}), of_model


def _not_finite(columns: Mapping[str, Any], rows_of_split: torch.Tensor | None) -> str:
    """Columns with NaN or infinity, and in which rows; of images and texts that differ in number a row is neither."""
    found = []
    for name, values in columns.items():
        if not (isinstance(values, torch.Tensor) and values.is_floating_point() and values.ndim):
            continue
        broken = ~values.reshape(len(values), -1).isfinite().all(1)
        if broken.any():
            known = rows_of_split is not None and len(rows_of_split) == len(broken)
            rows = (rows_of_split[broken] if known else broken.nonzero()[:, 0]).tolist()
            where = "rows" if known else "places in the batch"
            found.append(f"{name} of {where} {rows[:10]}{' and more' if len(rows) > 10 else ''}")
    return "; ".join(found)


def describe_bad_batch(inputs: dict[str, torch.Tensor], loss: torch.Tensor, objective: Objective | None = None) -> str:
    """Which rows of a batch hold NaN or infinity, by their row in the split, without naming a patient."""
    of_model = model_inputs(inputs)
    if bad := _not_finite(of_model, inputs.get("row")):
        return f"The loss is {loss.item()}: NaN or infinity in {bad}. Rebuild or verify the embedding cache."
    if bad := _not_finite({name: inputs[name] for name in inputs if name not in of_model}, inputs.get("row")):
        return (
            f"The loss is {loss.item()} although the model's inputs are finite: NaN or infinity in {bad}. Fill them, "
            "or let the objective leave them out."
        )
    return (
        f"The loss is {loss.item()} although the inputs are finite. Go on from the last checkpoint with "
        f"{smaller_steps(objective)}."
    )


def check_last_batch(rows: int, per_device: int, world_size: int) -> None:
    """Raise ValueError where an uneven last batch has rows for some processes only: these would wait for the others."""
    left = rows % (per_device * world_size)
    if 0 < left <= per_device * (world_size - 1):
        raise ValueError(
            f"The last batch of {rows:,} pairs has {left:,}, of which {world_size} processes with {per_device:,} each "
            "leave none to the last one. Fill it up with pairs of the first batch (even_batches in accelerator_config, "
            "the default), leave it out (--dataloader_drop_last True), or choose another batch size."
        )


__all__ = [
    "Columns",
    "PairCollator",
    "SameRows",
    "check_last_batch",
    "describe_bad_batch",
    "fit_for_dispatch",
    "side_of_column",
    "split_inputs",
    "with_text_rows",
]
