"""The objectives that come with the package: those that stand in a file beside this one."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from .base import Objective


@cache
def known_objectives() -> dict[str, type[Objective]]:
    """Each objective of the package by its name, the default one first."""
    found = {}
    for module in iter_modules(import_module(__package__).__path__):
        for value in vars(import_module(f"{__package__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Objective) and value.name:
                found[value.name] = value
    return dict(sorted(found.items(), key=lambda item: (item[0] != "adaptor", item[0])))


def is_of_package(objective: Objective) -> bool:
    """Whether it is one of these classes itself: what a subclass reads and gathers is the user's affair."""
    return type(objective) in known_objectives().values()


def find_objective(name: str) -> type[Objective]:
    """
    The class of an objective of the package.

    Raises:
        ValueError: there is none of this name; the message lists those that there are.
    """
    known = known_objectives()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"There is no objective {name!r}.{meant} There are: {', '.join(known)}, and your own, file.py:Class."
        )
    return known[name]


__all__ = ["find_objective", "is_of_package", "known_objectives"]
