"""Data sets, images, report text and splits."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalog import list_datasets
    from .pacs import index_dicom
    from .public_datasets import describe, load_public_dataset

_EXPORTS = {
    "describe": "public_datasets",
    "index_dicom": "pacs",
    "list_datasets": "catalog",
    "load_public_dataset": "public_datasets",
}

__all__ = ["describe", "index_dicom", "list_datasets", "load_public_dataset"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
