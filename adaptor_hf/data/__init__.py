"""Data sets, images, report text, splits and the phantom."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalog import list_datasets
    from .local import describe, load_local_dataset
    from .pacs import index_dicom

_EXPORTS = {"describe": "local", "index_dicom": "pacs", "list_datasets": "catalog", "load_local_dataset": "local"}

__all__ = ["describe", "index_dicom", "list_datasets", "load_local_dataset"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
