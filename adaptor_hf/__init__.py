"""Adaptor: light image-report alignment over frozen towers, native to Hugging Face Transformers."""

import sys
from typing import TYPE_CHECKING

from .moved import install as _install_moved

__version__ = "0.1.0"

_install_moved()

# Commands that say what is wrong with their arguments before torch and transformers load; what needs the classes asks.
_LIGHT = (
    "adaptor_hf.data",
    "adaptor_hf.embeddings",
    "adaptor_hf.phantom",
    "adaptor_hf.configs",
    "adaptor_hf.prediction",
)

__all__ = [
    "AdaptorConfig",
    "AdaptorForImageClassification",
    "AdaptorForSemanticSegmentation",
    "AdaptorImageProcessor",
    "AdaptorModel",
    "AdaptorOutput",
    "AdaptorPreTrainedModel",
    "AdaptorProcessor",
]


def _starts_light_command() -> bool:
    """Whether `python -m` is looking for one of these commands: `sys.argv[0]` is "-m" until it has found it."""
    return sys.argv[:1] == ["-m"] and any(word in _LIGHT for word in sys.orig_argv)


if TYPE_CHECKING or not _starts_light_command():
    from .auto_classes import (
        AdaptorConfig,
        AdaptorForImageClassification,
        AdaptorForSemanticSegmentation,
        AdaptorImageProcessor,
        AdaptorModel,
        AdaptorOutput,
        AdaptorPreTrainedModel,
        AdaptorProcessor,
    )


def __getattr__(name: str):
    if name in __all__:
        from . import auto_classes

        return getattr(auto_classes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
