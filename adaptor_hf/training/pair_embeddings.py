"""Every pair of a split through the model, once for all that is measured on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ..modeling_adaptor import AdaptorModel
from ..objectives import Encoded, Objective
from .base_trainer import global_random_state_kept
from .divided import length_of, of_all_processes, read_batches
from .needs import as_model_reads
from .pair_batches import Columns, PairCollator, side_of_column, split_inputs

if TYPE_CHECKING:
    from .pair_evaluation import PairEvaluator

_OF_BATCHES = "of_batches/"


class PairEmbeddings(dict[str, torch.Tensor]):
    """
    What [`embed_pairs`] gives: `image_embeds` and `text_embeds` `(N, hidden_size)` float32, and columns of the rows.

    Attributes:
        of_batches (`dict[str, torch.Tensor]`): `(batches,)` scalars that evaluators took of each whole batch.
        batch_rows (`int`): Rows of a whole batch.
    """

    def __init__(self, rows: dict[str, torch.Tensor], of_batches: dict[str, torch.Tensor], batch_rows: int):
        super().__init__(rows)
        self.of_batches, self.batch_rows = of_batches, batch_rows


@torch.no_grad()
def embed_pairs(
    model: AdaptorModel,
    dataset: Dataset | list[Any],
    batch_size: int = 1024,
    collator: Callable | None = None,
    divided: bool = False,
    *,
    evaluators: Sequence[PairEvaluator] = (),
    num_workers: int = 0,
) -> PairEmbeddings:
    """
    Embeddings of every pair of a dataset, in evaluation mode, on the model's device.

    Args:
        model (`AdaptorModel`): With towers where the dataset gives `pixel_values` or `input_ids`.
        dataset (`Dataset` or `list`): Read as a `DataLoader` does: by `__getitems__` where it has one, else by row. A
            cache is opened with its tokens for a model that pools them.
        batch_size (`int`): Pairs that go through the model together.
        collator (`Callable`, *optional*): That of training; by default [`PairCollator`].
        divided (`bool`): All processes make this call. Each embeds its share of the batches, and all get all rows: to
            the bit those of one process, where all compute as it would. A data set without length is not divided.
        evaluators (`Sequence[PairEvaluator]`): Whose columns are kept, and that are asked for each whole batch.
        num_workers (`int`): Processes that read.

    Returns:
        [`PairEmbeddings`]: `image_embeds` and `text_embeds` `(N, hidden_size)` float32, `text_row`, and all columns of
        one value a row `(N,)` that the dataset gives, such as `study`, `row`, `source`. Of images and texts that an
        index pairs, each image that has a text, with the first one.

    Raises:
        RuntimeError: another process failed.
        ValueError: the dataset is empty, a batch has other numbers of images and texts, and no index, or a cache lacks
            tokens that the model pools.
    """
    dataset = as_model_reads(model, dataset)
    columns = {column for evaluator in evaluators for column in evaluator.columns}
    length = length_of(dataset)
    batch_rows = batch_size if length is None else min(batch_size, length)
    modules = [module for evaluator in evaluators for module in evaluator.modules()]
    encoder = Objective()
    # As of a cache that is opened with them: of live towers, too, tokens go in where the objective was trained so.
    encoder.needs = frozenset().union(*(one.needs for one in modules if isinstance(one, Objective)))

    def embed() -> dict[str, torch.Tensor]:
        nonlocal batch_rows
        of_rows, of_batches = [], []
        collate = collator or PairCollator()
        read = read_batches(dataset, batch_size, collate, divided=divided, num_workers=num_workers)
        for number, count, batch in read:
            batch = Columns(
                {name: value.to(model.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
            )
            encoded = encoder.encode(model, batch)
            of_rows.append(_pairs(encoded, split_inputs(batch)[0], columns))
            if count is None:
                count = len(next(iter(batch.values())))
                batch_rows = count if number == 0 else batch_rows
            if count < batch_rows:
                continue
            # What an objective draws is then the same at every evaluation and on any number of processes.
            torch.manual_seed(number)
            of_batches.append(_scalars_of_batch(evaluators, model, batch, encoded))
        rows = {name: torch.cat([one[name] for one in of_rows]) for name in (of_rows[0] if of_rows else ())}
        names = of_batches[0] if of_batches else ()
        return rows | {_OF_BATCHES + name: torch.stack([one[name] for one in of_batches]) for name in names}

    with as_they_were(model, *modules):
        if divided and dist.is_initialized() and length is not None:
            found = of_all_processes(embed, model.device)
        else:
            found = embed()
    if not found:
        raise ValueError("The split to evaluate on is empty.")
    rows = {name: value for name, value in found.items() if not name.startswith(_OF_BATCHES)}
    of_batches = {name.removeprefix(_OF_BATCHES): value for name, value in found.items() if name not in rows}
    count = len(rows["image_embeds"])
    if short := [name for name, value in rows.items() if len(value) != count]:
        raise ValueError(f"The column {short[0]} is missing in some batches: give all rows the same columns.")
    return PairEmbeddings(rows, of_batches, batch_rows)


def _pairs(encoded: Encoded, rows: dict[str, torch.Tensor], columns: Collection[str]) -> dict[str, torch.Tensor]:
    """Pooled embeddings of the pairs of a batch, and their columns."""
    images, texts = encoded.image, encoded.text
    if images is None or texts is None:
        raise ValueError(f"A batch to evaluate has no {'images' if images is None else 'texts'}: rows must be pairs.")
    of_images = of_texts = slice(None)
    if images.index is not None or texts.index is not None:
        numbers = [
            torch.arange(len(side), device=side.pooled.device) if side.index is None else side.index
            for side in (images, texts)
        ]
        same = numbers[0][:, None] == numbers[1][None, :]
        of_images = same.any(1).nonzero()[:, 0]
        of_texts = same[of_images].int().argmax(1)
    elif len(images) != len(texts):
        raise ValueError(
            f"A batch to evaluate has {len(images)} images and {len(texts)} texts, and nothing says which belong "
            "together: give the columns image_index and text_index."
        )

    def chosen(name: str, values: torch.Tensor) -> torch.Tensor:
        side = side_of_column(name)
        return values[of_texts if side == "text" or (side == "row" and len(values) != len(images)) else of_images]

    kept = {
        name: chosen(name, values)
        for name, values in rows.items()
        if (values.ndim == 1 or name in columns) and not name.endswith("_index")
    }
    return {
        "image_embeds": images.pooled[of_images].float(),
        "text_embeds": texts.pooled[of_texts].float(),
    } | kept


def _scalars_of_batch(
    evaluators: Sequence[PairEvaluator], model: AdaptorModel, batch: dict[str, torch.Tensor], encoded: Encoded
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for evaluator in evaluators:
        scalars = evaluator.of_batch(model, batch, encoded)
        if taken := found.keys() & scalars.keys():
            raise ValueError(f"Two evaluators give {min(taken)!r} of a batch: choose one of them.")
        found |= {name: value.detach().float() for name, value in scalars.items()}
    return found


@contextmanager
def as_they_were(model: nn.Module, *others: nn.Module) -> Iterator[None]:
    """
    Evaluation mode. Afterwards the modes are what they were, and so are the random states, and of the others, such as
    an objective with a queue or a momentum copy, buffers, parameters without gradient, and all other attributes:
    counters, tensors, lists and what else `copy.deepcopy` copies. Of the rest, and of modules and data sets that are
    no parts of theirs, only which ones they have is put back, not what was changed in them.

    Args:
        model (`nn.Module`): Which changes nothing of itself in evaluation mode.
        others (`nn.Module`): Which a user wrote, and may.
    """
    modes = [(module, module.training) for module in model.modules()]
    parts = list(dict.fromkeys(module for other in others for module in other.modules()))
    owned = [(module, dict(module._buffers), dict(module._parameters)) for module in parts]
    tensors = [
        (value, value.detach().clone())
        for _, *owners in owned
        for owner in owners
        for value in owner.values()
        if value is not None and not value.requires_grad
    ]
    plain = [(module, _plain(module)) for module in parts]
    on_gpu = [value.device for value in model.parameters() if value.device.type == "cuda"][:1]
    try:
        with global_random_state_kept(), torch.random.fork_rng(devices=on_gpu):
            _work_on_copies(plain, (model, *others))
            for module in (model, *others):
                module.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, values in plain:
            for name in _plain(module).keys() - values.keys():
                del vars(module)[name]
            vars(module).update(values)
        for module, buffers, parameters in owned:
            for owner, before in ((module._buffers, buffers), (module._parameters, parameters)):
                owner.clear()
                owner.update(before)
        for value, before in tensors:
            value.detach().copy_(before)


def _plain(module: nn.Module) -> dict[str, Any]:
    """Attributes that are no parameters, buffers or modules; and the mode."""
    own = vars(nn.Module()).keys() - {"training"}
    return {name: value for name, value in vars(module).items() if name not in own}


def _work_on_copies(plain: list[tuple[nn.Module, dict[str, Any]]], modules: Iterable[nn.Module]) -> None:
    """Let each module have copies of its attributes, for as long as the originals must not change."""
    # Nothing that is a part of the modules is copied, whatever refers to it.
    memo: dict[int, Any] = {}
    for module in modules:
        for one in (*module.modules(), *module.parameters(), *module.buffers()):
            memo[id(one)] = one
    for module, values in plain:
        for name, value in values.items():
            if isinstance(value, nn.Module | Dataset | TrainingArguments):
                continue
            # What fails half-way must leave no half of it for the next one. What cannot be copied (an open file, a
            # lock) is used itself: its docstring says so.
            tried = dict(memo)
            try:
                vars(module)[name] = copy.deepcopy(value, tried)
            except Exception:
                continue
            memo = tried


__all__ = ["PairEmbeddings", "as_they_were", "embed_pairs"]
