"""An objective by its name, and what tells it apart from others."""

from __future__ import annotations

from typing import Any

from .base import Objective
from .known import find_objective


def load_objective(name: str, **options: Any) -> Objective:
    """
    An objective of the package.

    Args:
        name (`str`): One of `known_objectives`.
        options: Keyword arguments of its class.

    Raises:
        ValueError: there is none of this name.
    """
    return find_objective(name)(**options)


def objective_identity(objective: Objective) -> dict[str, str]:
    """Name and, where it stands in a file of the user, SHA-256 of the file: what a checkpoint is of."""
    name = objective.name or f"{type(objective).__name__} of {type(objective).__module__}"
    return {"name": name, "sha256": getattr(objective, "file_sha256", "")}


__all__ = ["load_objective", "objective_identity"]
