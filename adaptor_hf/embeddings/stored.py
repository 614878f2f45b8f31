"""What a cache keeps of each image and text beside its pooled vector."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..data.stored_values import cells, depths, grid_side, whole_number, yes_or_no
from ..data.view_recipes import Recipe, view_recipe

STORED_VERSION = 1
"""Part of the key where anything is stored: raise it when a rule of it (spans, grids, sums) gives other numbers."""

# Arguments of a build that stores a column, for example.
COLUMN_ARGUMENTS: dict[str, dict[str, Any]] = {
    "image_tokens": {"image_tokens": "all"},
    "regions": {"regions": "3x3"},
    "shallow": {"shallow": [1]},
    "image_attention": {"image_attention": True},
    "view_embeds": {"views": 2},
    "view_tokens": {"views": 2, "image_tokens": "all"},
    "view_boxes": {"views": 2},
    "view_maps": {"views": 2, "view_recipe": "convirt"},
    "text_tokens": {"text_tokens": True},
    "text_attention": {"text_attention": True},
    "words": {"words": True},
    "sentences": {"sentences": True},
}


def _said(asked: dict[str, Any]) -> str:
    values = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in asked.items()}
    options = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in values.items())
    python = ", ".join(f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
                       for name, value in asked.items())  # fmt: skip
    return f"{options} (in Python build_cache({python}))"


HOW = {name: _said(asked) for name, asked in COLUMN_ARGUMENTS.items()}
"""How a cache gets a column: options of `python -m adaptor_hf.embeddings build`, and arguments in Python."""


@dataclass(frozen=True)
class _Stored:
    def _normalise(self, **checks: Callable[[str, Any], Any]) -> None:
        """Equal values of other types, such as numpy's, would be JSON of another key."""
        for name, check in checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    @property
    def key(self) -> dict[str, Any]:
        """What is asked for, as part of the key of the embeddings; empty when nothing is."""
        return {"stored": {"version": STORED_VERSION} | self._asked} if self._asked else {}

    @property
    def _asked(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value != getattr(type(self), name)}


@dataclass(frozen=True)
class StoredImages(_Stored):
    """What is kept of an image beside its pooled vector.

    Args:
        image_tokens: "all" spatial tokens, or G for a grid of G x G by average pooling; the class token, where the
            tower has one, comes first.
        regions: rows and columns of the image's cells, whose mean tokens are kept; a pair, or text such as "3x3".
        shallow: depths (blocks of a transformer from 1, stages of a CNN) whose mean over the image is kept.
        image_attention: attention of the class token to the spatial tokens in the last block, mean over the heads.
        views: K augmented views of each image, beside the image as it is.
        view_recipe: how views are made, one of `adaptor_hf.data.views.RECIPES`; None is "crop".
        view_seed: with the number of the view and the image's content, it determines the view.

    Raises:
        ValueError: a value that cannot be (its name is said).
    """

    image_tokens: Literal["all"] | int | None = None
    regions: tuple[int, int] | None = None
    shallow: tuple[int, ...] = ()
    image_attention: bool = False
    views: int = 0
    view_recipe: str | None = None
    view_seed: int = 0

    def __post_init__(self):
        self._normalise(
            image_tokens=grid_side, regions=cells, shallow=depths, image_attention=yes_or_no, views=whole_number,
            view_seed=whole_number,
        )  # fmt: skip
        view_recipe(self.view_recipe)

    @property
    def recipe(self) -> Recipe:
        return view_recipe(self.view_recipe)

    @property
    def _asked(self) -> dict[str, Any]:
        asked = {name: value for name, value in super()._asked.items() if not name.startswith("view_")}
        # What the recipe does, not its name: a recipe that is changed gives other views.
        return asked | ({"view_recipe": self.recipe.key, "view_seed": self.view_seed} if self.views else {})


@dataclass(frozen=True)
class StoredTexts(_Stored):
    """What is kept of a text beside its pooled vector. All of it nearly is the text: see docs/threat_model.md.

    Args:
        text_tokens: the vector of each token of the cut text, special tokens included.
        text_attention: attention of the first token to all tokens in the last block, mean over the heads.
        words: first token and last token + 1 of each word.
        sentences: first token and last token + 1 of each sentence.

    Raises:
        ValueError: a value that is neither True nor False (its name is said).
    """

    text_tokens: bool = False
    text_attention: bool = False
    words: bool = False
    sentences: bool = False

    def __post_init__(self):
        self._normalise(text_tokens=yes_or_no, text_attention=yes_or_no, words=yes_or_no, sentences=yes_or_no)


def asked_in(key: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, of the entry `stored` of a key; empty where its rules were of another version."""
    asked = dict(key)
    return asked if asked.pop("version", None) == STORED_VERSION else {}
