"""An objective by its name, or from a file of the user's: `my_file.py:MyObjective`."""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch.distributed as dist

from ..files import printable, read_regular
from ..options.choices import build_fields
from ..options.declared import declared_options
from ..privacy.mode import hide_place, private_words
from .base import NEEDS, Objective
from .known import find_objective, known_objectives

MAX_SOURCE_BYTES = 1 << 20
"""Largest file of an objective, 1 MiB."""
FORM = "file.py:Class"
_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<name>.*))?", re.DOTALL)
_T = TypeVar("_T")


def load_objective(name_or_path: str, options: Mapping[str, Any] | None = None) -> Objective:
    """
    An objective by its name, or from a file, whose code is run.

    Args:
        name_or_path (`str`): A name of [`known_objectives`], or `path/to/file.py:Class`.
        options (`Mapping`, *optional*): Keyword arguments of the class.

    Returns:
        `Objective`: One of a file knows the file's digest, `file_sha256`.

    Raises:
        OSError: there is no such file, or it is none.
        ValueError: there is no such objective, the file's code fails, or an option is wrong.
        RuntimeError: of several processes another one cannot load it.
    """
    made = on_all_ranks(lambda: objective_class(name_or_path))
    given, listed = dict(options or {}), ", ".join(made.config_fields)
    if wrong := [name for name in given if name in made.config_fields]:
        raise ValueError(
            f"{wrong[0]} is a field of the model's AdaptorConfig that goes with the objective {objective_name(made)}, "
            f"as all of {listed}: give it there."
        )
    built = build_fields(declared_options(made), given, f"The objective {objective_name(made)}", "objective")
    objective = make_objective(made, given)
    objective.made_with = built.arguments()
    return objective


def objective_class(name_or_path: str) -> type[Objective]:
    """The class that a name, or `path/to/file.py:Class`, stands for. Raises as [`load_objective`]."""
    if not is_file(name_or_path):
        return find_objective(name_or_path)
    match = _FILE.fullmatch(name_or_path)
    return _class_of_file(Path(match["path"]), match["name"])


def is_file(name_or_path: str) -> bool:
    """Whether it names a file rather than an objective of the package."""
    return _FILE.fullmatch(name_or_path) is not None


def make_objective(made: type[Objective], arguments: Mapping[str, Any]) -> Objective:
    """
    An instance.

    Raises:
        ValueError: the class is of a user's file, and its `__init__` fails.
    """
    if made.file_sha256 is None:
        objective = made(**arguments)
        objective.made_with = dict(arguments)
        return objective
    file = file_of(made)
    objective = _run(lambda: made(**arguments), file, f"The objective {made.__name__} cannot be made")
    if "_parameters" not in vars(objective):
        raise ValueError(
            f"The objective {made.__name__} of {str(file)!r} is no module yet when it is made: its __init__ must begin "
            "with super().__init__()."
        )
    objective.made_with = dict(arguments)
    return objective


def check_objective(given: Any) -> Objective:
    """
    What a caller of Python gives for an objective.

    Raises:
        TypeError: it is none, such as a class instead of an instance, or has not called `super().__init__()`.
    """
    if isinstance(given, type) and issubclass(given, Objective):
        raise TypeError(f"objective is the class {given.__name__}: give an instance, {given.__name__}(...).")
    if not isinstance(given, Objective):
        raise TypeError(
            f"objective must be an instance of a subclass of Objective, a name of {', '.join(known_objectives())}, or "
            f"{FORM}; got {'None' if given is None else type(given).__name__}. The default is 'adaptor'."
        )
    if "_parameters" not in vars(given):
        raise TypeError(
            f"The objective {type(given).__name__} is no module yet when it is made: its __init__ must begin with "
            "super().__init__()."
        )
    return given


def objective_name(made: type[Objective]) -> str:
    """What an objective is called in logs, records and cards: the package's by `name`, others by their class."""
    return made.name if known_objectives().get(made.name) is made else made.__name__


def describe_objective(name: str) -> str:
    """For a sentence of a card: "trained with ..."."""
    if name == "adaptor":
        return "a contrastive loss"
    return f"the objective `{name}`" + ("" if name in known_objectives() else ", code of its author's own,")


def objective_identity(objective: Objective) -> dict[str, str]:
    """
    By what a checkpoint knows the objective that it is of: `name`, and of one of a file `sha256` of its bytes.

    A class that was written elsewhere, in a notebook or a script, is known by its name alone; its `sha256` is "".
    """
    made = type(objective)
    return {"name": objective_name(made), "sha256": made.file_sha256 or ""}


def objective_options(objective: Objective) -> dict[str, Any] | None:
    """
    What an objective was made with, for records: its options with their defaults, in private mode words as keyed
    hashes, but for choices. None of an instance of a class that was written in Python.
    """
    if objective.made_with is None:
        return None
    declared = {item.name: item for item in fields(declared_options(type(objective)))}
    found = {}
    for name, value in objective.made_with.items():
        choices = declared[name].metadata.get("choices")
        if value is None and choices and (chosen := getattr(objective, name, None)) in choices:
            # What None stood for, `setup` has found out.
            value = chosen
        found[name] = value if choices else private_words(value)
    return found


def file_of(made: type[Objective]) -> Path | None:
    """The file that a class was loaded from; `None` for the package's own and for classes of Python."""
    return None if made.file_sha256 is None else Path(sys.modules[made.__module__].__file__)


def on_all_ranks(load: Callable[[], type[Objective]]) -> type[Objective]:
    """
    A class that every process loads for itself, once all have the same file.

    Raises:
        RuntimeError: another process could not load it.
        ValueError: the files of the processes differ.
    """
    made, error = None, None
    try:
        made = load()
    except Exception as raised:
        error = raised
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        answers: list = [None] * dist.get_world_size()
        dist.all_gather_object(answers, None if made is None else (made.__name__, made.file_sha256))
        if error is None and None in answers:
            raise RuntimeError(f"Process {answers.index(None)} could not load the objective; it says why.")
        if error is None and len(set(answers)) > 1:
            other = next(rank for rank, answer in enumerate(answers) if answer != answers[0])
            raise ValueError(
                f"Processes 0 and {other} have different files of the objective {made.__name__} (SHA-256 "
                f"{str(answers[0][1])[:12]}... and {str(answers[other][1])[:12]}...). Copy the same file to all "
                "machines."
            )
    if error is not None:
        raise error
    return made


def _class_of_file(path: Path, name: str | None) -> type[Objective]:
    hide_place(path)
    shown = repr(printable(path))
    try:
        source = read_regular(path, MAX_SOURCE_BYTES)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no file {shown} for the objective. It is searched from the folder where the command runs."
        ) from None
    module = _module_of(source, path.absolute())
    own = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Objective) and value.__module__ == module.__name__
    }
    found = vars(module).get(name or "")
    if found is None or (isinstance(found, type) and issubclass(found, Objective) and name not in own):
        close = difflib.get_close_matches(name or "", own, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        there = f"Its objectives: {', '.join(own)}." if own else "It has no class that inherits from Objective."
        what = f"has no class {name!r} of its own" if name else "is named without a class"
        raise ValueError(f"The file {shown} {what}: expected {FORM}.{meant} {there}")
    if name in known_objectives():
        raise ValueError(f"The class {name!r} of {shown} is called as an objective of the package. Rename it.")
    if name not in own:
        raise ValueError(
            f"{name} of {shown} is no objective: expected a class that inherits from adaptor_hf.objectives.Objective."
        )
    made = own[name]
    check_class(made, shown)
    made.file_sha256 = hashlib.sha256(source).hexdigest()
    return made


def check_class(made: type[Objective], where: str) -> None:
    """
    What can be said of a class before it is trained.

    Raises:
        ValueError: naming the class and `where` it is.
    """
    who = f"The objective {made.__name__} of {where}"
    if made.forward is Objective.forward:
        raise ValueError(f'{who} has no forward(self, encoded, rows, gather) that returns {{"loss": ...}}.')
    for need in [made.needs] if isinstance(made.needs, str) else made.needs:
        if need not in NEEDS or isinstance(made.needs, str):
            close = difflib.get_close_matches(need, NEEDS, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"{who} needs {made.needs!r}: expected a set of {', '.join(NEEDS)}.{meant}")
    declared_options(made)


def _module_of(source: bytes, path: Path) -> ModuleType:
    """The module of these bytes, run once a process and place."""
    name = f"objective_{hashlib.sha256(source).hexdigest()}"
    module = sys.modules.get(name)
    if module is not None and module.__file__ == str(path):
        return module
    module = ModuleType(name)
    module.__file__ = str(path)
    # Where dataclasses, pickle and type hints look for it.
    sys.modules[name] = module
    try:
        _run(lambda: exec(compile(source, str(path), "exec"), vars(module)), path, "The file cannot be run")
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _run(call: Callable[[], _T], path: Path, what: str) -> _T:
    """Run code of a user's file; its error becomes one that names the file and the line in it."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename == str(path):
            line, said = error.lineno, f"{type(error).__name__}: {error.msg}"
        else:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            line, said = lines[-1] if lines else None, f"{type(error).__name__}: {error}"
        place = "" if line is None else f"line {line} of "
        raise ValueError(f"{what}: {said}, in {place}{printable(path)!r}. Correct the file.") from error


__all__ = [
    "FORM",
    "check_objective",
    "describe_objective",
    "file_of",
    "is_file",
    "load_objective",
    "make_objective",
    "objective_class",
    "objective_identity",
    "objective_name",
    "objective_options",
    "on_all_ranks",
]
