"""What a cache keeps of each image and text beside its pooled vector."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..data.view_recipes import Recipe, view_recipe


@dataclass(frozen=True)
class _Stored:
    @property
    def key(self) -> dict[str, Any]:
        """What is asked for, as part of the key of the embeddings; empty when nothing is."""
        return {"stored": self._asked} if self._asked else {}

    @property
    def _asked(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value != getattr(type(self), name)}


@dataclass(frozen=True)
class StoredImages(_Stored):
    """What is kept of an image beside its pooled vector.

    Args:
        image_tokens: "all" spatial tokens, or G for a grid of G x G by average pooling; the class token, where the
            tower has one, comes first.
        regions: rows and columns of the image's cells, whose mean tokens are kept.
        shallow: depths (blocks of a transformer from 1, stages of a CNN) whose mean over the image is kept.
        image_attention: attention of the class token to the spatial tokens in the last block, mean over the heads.
        views: K augmented views of each image, beside the image as it is.
        view_recipe: how views are made, one of `adaptor_hf.data.views.RECIPES`; None is "crop".
        view_seed: with the number of the view and the image's content, it determines the view.
    """

    image_tokens: Literal["all"] | int | None = None
    regions: tuple[int, int] | None = None
    shallow: tuple[int, ...] = ()
    image_attention: bool = False
    views: int = 0
    view_recipe: str | None = None
    view_seed: int = 0

    def __post_init__(self):
        if self.views < 0:
            raise ValueError(f"views must be 0 or more, got {self.views}.")
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
    """

    text_tokens: bool = False
    text_attention: bool = False
    words: bool = False
    sentences: bool = False
