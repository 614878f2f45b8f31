"""Recipes (files of options) and accelerate's launch configs that come with the package, by name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..moved import warn_of
from .recipe_text import recipe_text
from .written import meant, read_json, read_yaml

FOLDER = Path(__file__).parent
KINDS = {"pretrain": "recipes", "downstream": "recipes/downstream", "sweep": "recipes/sweep"}
"""Folder of the recipes of `adaptor-pretrain`, of `adaptor-downstream`, and of `python -m adaptor_hf.tasks sweep`."""
ACCELERATE = "accelerate"
SUFFIXES = (".yaml", ".yml", ".json")
_OLD_PLACE = re.compile(r"(?P<clone>.*/)?(?P<old>configs/(?:recipes|accelerate)/(?:downstream/)?(?P<name>\w+)\.yaml)")
_RENAMED = {"sweep": "tower_pairs"}


def list_recipes(kind: str = "pretrain") -> list[str]:
    """Names of the packaged recipes of a kind (`pretrain`, `downstream` or `sweep`), sorted."""
    return _names(KINDS[kind])


def list_accelerate_configs() -> list[str]:
    """Names of the packaged launch configs, sorted."""
    return _names(ACCELERATE)


def find_recipe(name_or_path: str | os.PathLike, kind: str = "pretrain") -> Path:
    """
    Path of a recipe: a file where the argument ends in .yaml, .yml or .json, and otherwise a packaged recipe's name.

    Args:
        name_or_path (`str` or `PathLike`): Such as `small` or `mine/small.yaml`.
        kind (`str`, defaults to `"pretrain"`): `pretrain`, `downstream` or `sweep`: whose packaged recipes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no packaged recipe has this name; it lists them.
    """
    return _find(name_or_path, KINDS[kind], f"{kind} recipe")


def accelerate_config(name_or_path: str | os.PathLike) -> Path:
    """
    Path of a launch config, for `accelerate launch --config_file`, by name (`two_t4`); a file is left as it is.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no packaged config has this name; it lists them.
    """
    return _find(name_or_path, ACCELERATE, "accelerate config")


def read_recipe(path: str | os.PathLike) -> dict[str, Any]:
    """
    Read a YAML or JSON mapping of option names to values.

    Returns:
        `dict`: Numbers, bools, text, lists and mappings. For what an option takes see [`read_words`].

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is malformed or has a key twice, naming the file and the place.
    """
    return meant(read_words(path))


def read_words(path: str | os.PathLike) -> dict[str, Any]:
    """
    As [`read_recipe`], but words without quotes are as they were written, with their meaning beside them.

    Returns:
        `dict`: Values are [`~configs.written.Written`], `str`, lists and mappings; of JSON also bools and None.

    Raises:
        OSError, ValueError: as [`read_recipe`].
    """
    path = Path(path)
    text = recipe_text(path)
    try:
        recipe = read_json(text) if path.suffix == ".json" else read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid {path.suffix[1:].upper()}: {error}.".replace("..", ".")) from error
    except RecursionError:
        raise ValueError(
            f"{path} is nested too deeply for a recipe: options take at most a mapping of values."
        ) from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must hold a mapping of option names to values, got {type(meant(recipe)).__name__}.")
    return {str(name): value for name, value in recipe.items()}


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / folder).glob("*.yaml"))


def _find(name_or_path: str | os.PathLike, folder: str, what: str) -> Path:
    given, names = Path(name_or_path), _names(folder)
    listed = f"Packaged, by name: {', '.join(names)}."
    if given.suffix in SUFFIXES:
        if given.exists():
            return given
        if (name := _name_at_the_old_place(given, names)) is None:
            raise FileNotFoundError(f"There is no file {given} for the {what}. {listed}")
    elif (name := str(name_or_path)) not in names:
        raise ValueError(f"No {what} is called {name!r}. {listed} The name of a file ends in {', '.join(SUFFIXES)}.")
    return FOLDER / folder / f"{name}.yaml"


def _name_at_the_old_place(path: Path, names: list[str]) -> str | None:
    """Name of what lay in `configs/` of a clone, with a warning; the old paths go with the next release."""
    match = _OLD_PLACE.fullmatch(path.as_posix())
    if match is None or not (match["clone"] is None or Path(match["clone"], "train_pretrain.py").is_file()):
        return None
    if (name := _RENAMED.get(match["name"], match["name"])) not in names:
        return None
    warn_of(match["old"], f"in the package, by the name {name}", stacklevel=4)
    return name


__all__ = [
    "accelerate_config",
    "find_recipe",
    "list_accelerate_configs",
    "list_recipes",
    "read_recipe",
    "read_words",
]
