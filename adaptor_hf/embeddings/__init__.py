"""The embedding cache: both frozen towers run once over a data set, training reads only what they gave."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .build import build_cache
    from .importing import import_embeddings
    from .joined import join_caches
    from .reader import EmbeddingCache, open_cache
    from .repair import repair_cache
    from .resident import ResidentCache
    from .verify import verify_cache

_EXPORTS = {
    "EmbeddingCache": "reader",
    "ResidentCache": "resident",
    "build_cache": "build",
    "import_embeddings": "importing",
    "join_caches": "joined",
    "open_cache": "reader",
    "repair_cache": "repair",
    "verify_cache": "verify",
}

__all__ = [
    "EmbeddingCache",
    "ResidentCache",
    "build_cache",
    "import_embeddings",
    "join_caches",
    "open_cache",
    "repair_cache",
    "verify_cache",
]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
