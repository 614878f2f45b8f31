"""Options that say what a cache keeps of each image and text, and how its pooled vectors are made."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any

from ..options.fields import OPEN, default_of, option, own_options
from .stored_values import cells, depths, grid_side, whole_number
from .view_recipes import RECIPES

STORED = "what is embedded and kept"

POOLINGS = ("pooler", "cls", "mean", "cls+mean")
MERGES, DTYPES = ("concat", "mean"), ("float16", "float32", "int8")
# What an option needs beside it to have an effect.
_OF = {"layers_merge": "layers", "layers_norm": "layers", "text_layers_merge": "text_layers",
       "text_layers_norm": "text_layers", "view_recipe": "views", "view_seed": "views"}  # fmt: skip


@dataclass(kw_only=True)
class StoredArguments:
    """What is embedded, and what is kept beside the pooled vectors. All of it is part of the key of the embeddings."""

    vision_pooling: str | None = option(
        None, "How tokens become an image's vector. Default: as the tower was made for.", group=STORED, advanced=True,
        choices=list(POOLINGS),
    )  # fmt: skip
    text_pooling: str | None = option(
        None, "The same of a text's tokens.", group=STORED, advanced=True, choices=list(POOLINGS)
    )
    layers: list[int] = option(
        [], "Join the output of these layers of the vision tower, of a CNN its stages, counted from 1.", group=STORED,
        advanced=True, metavar="N",
    )  # fmt: skip
    layers_merge: str = option(
        "concat", "How the tokens of several --layers become one.", group=STORED, advanced=True, choices=list(MERGES)
    )
    layers_norm: str | None = option(
        None, "Whether the tower's final norm goes over each of --layers. Default: yes, where it has one.",
        group=STORED, advanced=True, choices=["yes", "no"],
    )  # fmt: skip
    truncate_vision_layers: int | None = option(
        None, "Cut the vision tower after so many layers, or stages of a ResNet.", group=STORED, advanced=True,
        metavar="N",
    )  # fmt: skip
    text_layers: list[int] = option(
        [], "As --layers, of the text tower.", group=STORED, advanced=True, metavar="N"
    )  # fmt: skip
    text_layers_merge: str = option(
        "concat", "How the tokens of several --text_layers become one.", group=STORED, advanced=True,
        choices=list(MERGES),
    )  # fmt: skip
    text_layers_norm: str | None = option(
        None, "As --layers_norm, of the text tower.", group=STORED, advanced=True, choices=["yes", "no"]
    )
    truncate_text_layers: int | None = option(
        None, "Cut the text tower after so many layers, such as 6 of a BERT.", group=STORED, advanced=True, metavar="N"
    )
    image_tokens: str | None = option(
        None, "Also keep spatial tokens, class token first: all, or G for a grid of G x G means.", group=STORED,
        advanced=True, privacy=OPEN, metavar="all|G",
    )  # fmt: skip
    regions: str | None = option(
        None, "Also keep the mean token of each of R x C cells.", group=STORED, advanced=True, privacy=OPEN,
        metavar="RxC",
    )  # fmt: skip
    shallow: list[int] = option(
        [], "Also keep the means of earlier maps: these blocks of a transformer, stages of a CNN, counted from 1.",
        group=STORED, advanced=True, metavar="N",
    )  # fmt: skip
    image_attention: bool = option(
        False, "Also keep the class token's attention to the spatial tokens.", group=STORED, advanced=True
    )
    views: int = option(0, "Also keep so many augmented views of each image.", group=STORED, advanced=True)
    view_recipe: str | None = option(
        None, "How --views are made (docs/views.md). Default: crop.", group=STORED, advanced=True,
        choices=list(RECIPES),
    )  # fmt: skip
    view_seed: int = option(0, "Of --views.", group=STORED, advanced=True)
    text_tokens: bool = option(
        False, "Also keep a vector for each token of a text: nearly the text itself (docs/threat_model.md).",
        group=STORED, advanced=True,
    )  # fmt: skip
    text_attention: bool = option(
        False, "Also keep the first token's attention to all tokens of a text.", group=STORED, advanced=True
    )
    words: bool = option(False, "Also keep which tokens are a word.", group=STORED, advanced=True)
    sentences: bool = option(False, "Also keep which tokens are a sentence.", group=STORED, advanced=True)
    embedding_dtype: str = option(
        "float16", "Type that embeddings are kept in; int8 has a scale for each vector.", group=STORED, advanced=True,
        choices=list(DTYPES),
    )  # fmt: skip

    def __post_init__(self):
        for name, needed in _OF.items():
            if _given(self, name) and not getattr(self, needed):
                raise ValueError(f"--{name} would have no effect without --{needed}. Leave it out.")
        kept_of_images(self)
        kept_of_texts(self)
        vision_pooling(self)
        text_pooling(self)


def kept_of_images(arguments: StoredArguments) -> dict[str, Any]:
    """
    What is kept of an image beside its pooled vector: arguments of `build_cache`, those alone that were given.

    Raises:
        ValueError: a value that cannot be, naming the option.
    """
    kept = {
        "image_tokens": grid_side("--image_tokens", arguments.image_tokens),
        "regions": cells("--regions", arguments.regions),
        "shallow": depths("--shallow", arguments.shallow),
        "image_attention": arguments.image_attention,
        "views": whole_number("--views", arguments.views),
        "view_recipe": arguments.view_recipe,
        "view_seed": whole_number("--view_seed", arguments.view_seed),
    }
    return {name: value for name, value in kept.items() if value}


def kept_of_texts(arguments: StoredArguments) -> dict[str, Any]:
    """The same of texts."""
    names = ("text_tokens", "text_attention", "words", "sentences")
    return {name: True for name in names if getattr(arguments, name)}


def vision_pooling(arguments: StoredArguments) -> dict[str, Any]:
    """
    How tokens become an image's vector: arguments of `load_vision_tower`, those alone that were given.

    Raises:
        ValueError: a layer that cannot be.
    """
    return _pooling(arguments, "vision_pooling", "layers", "truncate_vision_layers")


def text_pooling(arguments: StoredArguments) -> dict[str, Any]:
    """The same of `load_text_tower`."""
    return _pooling(arguments, "text_pooling", "text_layers", "truncate_text_layers")


def _pooling(arguments: StoredArguments, pooling: str, layers: str, truncated: str) -> dict[str, Any]:
    found = {} if getattr(arguments, pooling) is None else {"pooling": getattr(arguments, pooling)}
    if numbers := depths(f"--{layers}", getattr(arguments, layers)):
        found |= {"layers": list(numbers), "layers_merge": getattr(arguments, f"{layers}_merge")}
        found["layers_norm"] = {"yes": True, "no": False, None: None}[getattr(arguments, f"{layers}_norm")]
    count = getattr(arguments, truncated)
    if count is not None:
        if whole_number(f"--{truncated}", count) < 1:
            raise ValueError(f"--{truncated} {count}: expected 1 or more.")
        found["truncate_layers"] = count
    return found


def refuse_without_tower(arguments: StoredArguments, *, vision: bool, text: bool) -> None:
    """
    Refuse options of a tower that does not run.

    Raises:
        ValueError: naming them.
    """
    of_texts = {"text_pooling", "text_tokens", "text_attention", "words", "sentences", "truncate_text_layers",
                "text_layers", "text_layers_merge", "text_layers_norm"}  # fmt: skip
    names = [item.name for item in own_options(StoredArguments) if item.name != "embedding_dtype"]
    for kind, runs, own in (
        ("vision", vision, [name for name in names if name not in of_texts]),
        ("text", text, [name for name in names if name in of_texts]),
    ):
        if not runs and (given := [f"--{name}" for name in own if _given(arguments, name)]):
            raise ValueError(f"{', '.join(given)} would have no effect without --{kind}_tower. Leave it out.")


def _given(arguments: StoredArguments, name: str) -> bool:
    declared: dict[str, Field] = {item.name: item for item in fields(StoredArguments)}
    return getattr(arguments, name) != default_of(declared[name])


__all__ = [
    "STORED",
    "StoredArguments",
    "kept_of_images",
    "kept_of_texts",
    "refuse_without_tower",
    "text_pooling",
    "vision_pooling",
]
