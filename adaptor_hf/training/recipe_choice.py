"""Which recipe a run takes where none is named: by the number of optimizer steps that the paper's would take."""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..configs import FOLDER, KINDS
from ..embeddings.ranks import Ranks
from ..file_records import READ_ERRORS, read_json_object
from ..options.recipe import split_recipe
from .arguments import AdaptorTrainingArguments
from .script_arguments import ModelArguments, parse_arguments
from .summary import fitted_batch, number_of_steps

FEW_STEPS = 2000
"""From so many optimizer steps on the paper's recipe is taken, below it `small`: docs/small_data.md."""
MANY, FEW = "paper", "small"
_ARGUMENTS = "training_args.json"


@dataclass(frozen=True)
class Recipe:
    """
    The recipe of a run.

    Args:
        name (`str`, *optional*): Of a packaged recipe; None for a file of the user's.
        chosen (`bool`): By the run, because none was named.
        steps (`int`, *optional*): Optimizer steps that the paper's recipe would take with the options that were given.
        resumed (`bool`): Chosen because the checkpoint that is resumed was trained by it.
    """

    name: str | None
    chosen: bool = False
    steps: int | None = None
    resumed: bool = False

    def describe(self) -> str:
        """A line that says which it is, why, and by which option it is had again."""
        if self.name is None:
            return "Recipe: that of the file"
        if not self.chosen:
            return f"Recipe: {self.name}"
        if self.resumed:
            return f"Recipe: {self.name}, that of the run that is resumed; --recipe {self.name} says the same"
        if self.name == FEW:
            return (
                f"Recipe: {FEW}, chosen because the paper's would take {self.steps:,} steps, fewer than {FEW_STEPS:,}; "
                f"--recipe {FEW} gives the same run, --recipe {MANY} the paper's"
            )
        return (
            f"Recipe: {MANY}, chosen because it takes {self.steps:,} steps, at least {FEW_STEPS:,}; "
            f"--recipe {MANY} gives the same run"
        )

    def options(self) -> dict[str, str]:
        """The option that gives the same recipe to another run; none for a file, whose other options may not fit."""
        return {} if self.name is None else {"recipe": self.name}

    def to_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return asdict(self)


def recipe_by_steps(steps: int) -> str:
    """Name of the recipe for a run whose optimizer would take so many steps by the paper's."""
    return MANY if steps >= FEW_STEPS else FEW


def choose_recipe(
    words: Sequence[str] | None, num_pairs: int, model: ModelArguments, training: AdaptorTrainingArguments
) -> tuple[Recipe, ModelArguments]:
    """
    The recipe that the command line names, or else the one that fits the number of steps; options of the command line
    win over both. A run that is resumed keeps the recipe that its checkpoint was trained by, also one that an earlier
    version trained. All processes must call it, and choose what the first one chooses.

    Args:
        words (`Sequence[str]`, *optional*): Of the command line; None for this program's own.
        num_pairs (`int`): Training pairs.
        model (`ModelArguments`): Parsed from `words`.
        training (`AdaptorTrainingArguments`): Parsed from `words`, and filled in place by a chosen recipe.

    Returns:
        `tuple[Recipe, ModelArguments]`: With the model arguments of the recipe.
    """
    words = sys.argv[1:] if words is None else list(words)
    path, _ = split_recipe(words)
    if path is not None:
        packaged = path.parent.resolve() == (FOLDER / KINDS["pretrain"]).resolve()
        return Recipe(path.stem if packaged else None), model
    with _unheard():
        # The paper's are the defaults.
        _, _, _, plain = parse_arguments(words)
        _, small_model, _, small = parse_arguments(["--recipe", FEW, *words])
    changed = {
        item.name: getattr(small, item.name)
        for item in fields(small)
        if getattr(small, item.name) != getattr(plain, item.name)
    }

    def choose() -> Recipe:
        steps = number_of_steps(training, num_pairs)
        before = _of_checkpoint(training.resume_from_checkpoint, {MANY: plain, FEW: small}, changed, num_pairs)
        return Recipe(before or recipe_by_steps(steps), chosen=True, steps=steps, resumed=before is not None)

    recipe = Ranks().on_main(choose)
    if recipe.name != FEW:
        return recipe, model
    for name, value in changed.items():
        setattr(training, name, value)
    if "global_batch_size" in changed and (fitted := fitted_batch(training, num_pairs)):
        # Of a batch that nobody asked for, that it is less is no warning: the plan says what it is.
        training.per_device_train_batch_size, training.global_batch_size = fitted, fitted * training.world_size
    return recipe, small_model


def recipe_of_pairs(num_pairs: int) -> str:
    """Name of the recipe that a run takes on so many training pairs, where no other option is given."""
    # Plain defaults: arguments that are made would look for devices and other processes.
    defaults = {item.name: item.default for item in fields(AdaptorTrainingArguments)}
    defaults |= {"per_device_train_batch_size": defaults["global_batch_size"], "world_size": 1}
    return recipe_by_steps(number_of_steps(SimpleNamespace(**defaults), num_pairs))


def _of_checkpoint(
    checkpoint: str | None, candidates: dict[str, AdaptorTrainingArguments], changed: dict[str, Any], num_pairs: int
) -> str | None:
    """The one of these recipes that a checkpoint was trained by; None where it says nothing, or both alike."""
    if not checkpoint:
        return None
    try:
        recorded = read_json_object(Path(checkpoint) / _ARGUMENTS)
    except READ_ERRORS:
        return None
    # The batch of a process follows from the global one, and the resumed run may have other processes.
    names = changed.keys() - {"per_device_train_batch_size"}

    def values(arguments: AdaptorTrainingArguments) -> dict[str, Any]:
        fitted = {"global_batch_size": fitted_batch(arguments, num_pairs) * arguments.world_size}
        return {name: getattr(arguments, name) for name in names} | fitted

    same = {
        name: sum(recorded.get(key) == value for key, value in values(arguments).items())
        for name, arguments in candidates.items()
    }
    return max(same, key=same.get) if len(set(same.values())) > 1 else None


@contextmanager
def _unheard() -> Iterator[None]:
    """What parsing says of the options it has said already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


__all__ = ["FEW_STEPS", "Recipe", "choose_recipe", "recipe_by_steps", "recipe_of_pairs"]
