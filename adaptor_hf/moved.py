"""Modules that have moved: for one release the old name imports the new one, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType
from typing import Any

MOVED = {
    "adaptor_hf.data.local": "adaptor_hf.data.public_datasets",
    "adaptor_hf.data.local_boxes": "adaptor_hf.data.public_boxes",
    "adaptor_hf.data.local_cache": "adaptor_hf.data.public_cache",
    "adaptor_hf.data.local_columns": "adaptor_hf.data.public_columns",
    "adaptor_hf.data.local_report": "adaptor_hf.data.public_report",
    "adaptor_hf.data.local_rows": "adaptor_hf.data.public_rows",
    "adaptor_hf.data.pacs.headers": "adaptor_hf.data.dicom_headers",
    "adaptor_hf.data.phantom": "adaptor_hf.phantom",
    "adaptor_hf.downstream": "adaptor_hf.tasks",
    "adaptor_hf.downstream.modules": "adaptor_hf.tasks.controls",
    "adaptor_hf.downstream.predicting": "adaptor_hf.tasks.final_heads",
    "adaptor_hf.downstream.recipes": "adaptor_hf.tasks.protocols",
    "adaptor_hf.downstream.tasks": "adaptor_hf.tasks.run",
    "adaptor_hf.embeddings.sides": "adaptor_hf.embeddings.modalities",
    "adaptor_hf.evaluation.card": "adaptor_hf.hub.results_card",
    "adaptor_hf.hub.data_terms": "adaptor_hf.data.terms",
    "adaptor_hf.identifying": "adaptor_hf.privacy.identifying",
    "adaptor_hf.objectives.segmentation": "adaptor_hf.segmentation_loss_adaptor",
    "adaptor_hf.private_messages": "adaptor_hf.privacy.messages",
    "adaptor_hf.private_mode": "adaptor_hf.privacy.mode",
    "adaptor_hf.training.choices": "adaptor_hf.training.objective_fields",
    "adaptor_hf.training.recipe": "adaptor_hf.training.script_arguments",
    "adaptor_hf.training.run_record": "adaptor_hf.audit.run_record",
}
"""Old name and new one; what lies below an old name lies below the new one, unless it has its own line."""


def new_name(name: str) -> str | None:
    """Where a module is now; None if it has not moved."""
    for old in sorted(MOVED, key=len, reverse=True):
        if name == old or name.startswith(f"{old}."):
            return MOVED[old] + name.removeprefix(old)
    return None


def warn_of(old: str, new: str, stacklevel: int = 2) -> None:
    """Say that a name has moved, where the caller uses the old one."""
    warnings.warn(f"{old} is now {new}; the old name goes with the next release.", FutureWarning, stacklevel + 1)


def moved_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module whose names have moved: old name to module and new name, joined by a dot."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_of(f"{module}.{name}", names[name])
        place, _, new = names[name].rpartition(".")
        return getattr(import_module(place), new)

    return get


class _MovedLoader(Loader):
    """Gives the module itself, under its old name too, and its code to `python -m`."""

    def __init__(self, target: str):
        self.target = target

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.target)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has put the old name's spec there.
        module.__spec__ = self.spec

    def get_code(self, name: str) -> CodeType | None:
        spec = find_spec(self.target)
        return None if spec is None else spec.loader.get_code(self.target)


class MovedFinder(MetaPathFinder):
    """Finds modules of `MOVED` under their old names."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("adaptor_hf.") or (new := new_name(name)) is None:
            return None
        found = find_spec(new)
        if found is None:
            return None
        warn_of(name, new)
        is_package = found.submodule_search_locations is not None
        return spec_from_loader(name, _MovedLoader(new), is_package=is_package)


def install() -> None:
    """Make old names importable; twice is once."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        # First: a package under its old name has the path of the new one, where what lies below it would be found and
        # loaded a second time.
        sys.meta_path.insert(0, MovedFinder())


__all__ = ["MOVED", "MovedFinder", "install", "moved_names", "new_name", "warn_of"]
