"""How augmented views of an image are made: recipes by name, most of them those of a paper."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

VIEWS_VERSION = 1
"""Part of the key of embeddings: raise it when the same recipe and seed give another view."""

REFERENCE_SIDE = 224
"""Pixels of a view in the papers, which `blur_sigma` is meant for."""


@dataclass(frozen=True)
class Recipe:
    """One way to make a view. The steps come in the order of the fields.

    Args:
        pad_to_square: Black is added to the shorter side first, the image in the middle, so that nothing is distorted.
        stretch_to_square: `ratio` is that of crops of the image made square by stretching, as where all images are
            resized to a square first.
        scale: Share of the area that a crop has, from and to. The crop becomes the tower's input by resizing.
        ratio: Width by height of a crop, from and to, in pixels of the image.
        flip: How often left and right change places, in [0, 1].
        degrees: The view is turned by up to this angle either way; black comes in at its corners.
        translate: It is moved by up to this share of its width and of its height either way.
        zoom: It is made larger or smaller by this factor, from and to.
        turn_first: The whole image is turned, moved and zoomed, and then cropped, so that what is black at its corners
            is mostly cropped away; the shares are of the whole image.
        brightness, contrast, saturation: Factors, from and to. The last changes colour images only.
        hue: Largest shift of the hue, in [0, 0.5]. Colour images only.
        jitter: How often these four are applied, in random order.
        grey: How often a colour image becomes grey.
        blur_sigma: Standard deviation of a Gaussian blur in pixels of a view of 224, from and to.
        blur: How often it is applied.

    Raises:
        ValueError: A range that is empty or impossible, or a probability outside [0, 1].
    """

    pad_to_square: bool = False
    stretch_to_square: bool = False
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    turn_first: bool = False
    brightness: tuple[float, float] = (1.0, 1.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)
    hue: float = 0.0
    jitter: float = 0.0
    grey: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur: float = 0.0

    def __post_init__(self):
        for name in ("flip", "jitter", "grey", "blur", "translate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} of a view recipe must be in [0, 1], got {getattr(self, name)}.")
        for name in ("scale", "ratio", "zoom", "brightness", "contrast", "saturation", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ValueError(f"{name} of a view recipe goes from a number over 0 to one, got {low} to {high}.")
        if not (0 <= self.hue <= 0.5 and 0 <= self.degrees <= 180):
            raise ValueError(f"hue is in [0, 0.5] and degrees in [0, 180], got {self.hue} and {self.degrees}.")
        if self.turn_first and not self.turns:
            raise ValueError("turn_first of a view recipe needs degrees, translate or zoom, and got none of them.")
        if self.pad_to_square and self.stretch_to_square:
            raise ValueError("A view recipe has pad_to_square or stretch_to_square, not both.")

    @property
    def turns(self) -> bool:
        """Whether a view may be turned, moved or zoomed, so that what it shows is no upright box of the image."""
        return bool(self.degrees or self.translate or self.zoom != (1.0, 1.0))

    @property
    def smallest_side(self) -> float:
        """Shorter side of the smallest crop, as a share of the image's shorter side; of the longer one where the image
        is padded to the square."""
        return (self.scale[0] * min(self.ratio[0], 1 / self.ratio[1])) ** 0.5

    @property
    def key(self) -> dict[str, Any]:
        """What determines its views, whatever it is called: two names of the same recipe share a cache."""
        changed = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        return {"version": VIEWS_VERSION} | {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name in changed or name in ("scale", "ratio")
        }


# 256 pixels of the longer side, padded to the square, and a random crop of 224 of them.
_CROP_224_OF_256 = Recipe(pad_to_square=True, scale=((224 / 256) ** 2,) * 2, ratio=(1.0, 1.0))
_CONVIRT = Recipe(
    scale=(0.6, 1.0),
    flip=0.5,
    degrees=20,
    translate=0.1,
    zoom=(0.95, 1.05),
    brightness=(0.6, 1.4),
    contrast=(0.6, 1.4),
    jitter=1.0,
    blur_sigma=(0.1, 3.0),
    blur=1.0,
)
_SIMCLR = Recipe(
    scale=(0.08, 1.0),
    flip=0.5,
    brightness=(0.6, 1.4),
    contrast=(0.6, 1.4),
    saturation=(0.6, 1.4),
    hue=0.1,
    jitter=0.8,
    grey=0.2,
    blur=0.5,
)
# Its whole image is resized to a square first, and its ColorJitter(0.8, 0.8) is factors of 0.2 to 1.8.
_LOVT_BASELINE = Recipe(
    stretch_to_square=True,
    scale=(0.08, 1.0),
    flip=0.5,
    brightness=(0.2, 1.8),
    contrast=(0.2, 1.8),
    jitter=0.8,
    blur=0.5,
)
_MEDCLIP = replace(
    _CROP_224_OF_256,
    flip=0.5,
    degrees=10,
    translate=0.0625,
    zoom=(0.8, 1.1),
    turn_first=True,
    brightness=(0.8, 1.2),
    contrast=(0.8, 1.2),
    jitter=1.0,
)

RECIPES: dict[str, Recipe] = {
    "crop": Recipe(),
    "mgca": _CROP_224_OF_256,
    "gloria": _CROP_224_OF_256,
    "convirt": _CONVIRT,
    "lovt": _CONVIRT,
    "slip": _SIMCLR,
    "simclr": _SIMCLR,
    "byol": _LOVT_BASELINE,
    # A share of 0.6 to 0.8 of either side.
    "pixelpro": replace(_LOVT_BASELINE, scale=(0.6**2, 0.8**2), ratio=(1.0, 1.0), flip=0.25),
    "medclip": _MEDCLIP,
}
"""Recipes by name.

- `crop`, the default: a resized crop of half the image or more. No flip, for it puts the heart on the right side while
  the report still says left, and no change of grey values.
- `mgca` (arXiv 2210.06044, code at e4013768) and `gloria` (Huang et al., ICCV 2021, code at 416466af): padded to the
  square of 256 pixels, a random crop of 224. The reference code of the Adaptor (arXiv 2401.01179) crops so too.
- `convirt` (arXiv 2010.00747) and `lovt` (arXiv 2112.02889, code at f548985d, which takes ConVIRT's values): crops of
  0.6 of the area and more, flips, rotation by 20 degrees, moved by 0.1, zoomed by 0.95 to 1.05, brightness and
  contrast, always a blur. LoVT's code turns images with the nearest pixel; here it is bilinear.
- `slip` (arXiv 2112.12750, code at c6faf5d0) and `simclr`, which is the same there: crops from 0.08 of the area,
  flips, jitter of colours, grey, blur. MedSLIP is said to train with it.
- `byol` (arXiv 2006.07733) and `pixelpro` (arXiv 2011.10043) as LoVT's code trains these baselines: images stretched to
  the square, brightness and contrast by 0.2 to 1.8 in 0.8 of the cases, a blur in half of them. `byol` crops from 0.08
  of the area and flips half of the views; `pixelpro` crops 0.6 to 0.8 of both sides and flips a quarter, as the
  package that it takes (pixel-level-contrastive-learning). There one draw is for a whole batch, jitter comes before
  the crop, and the side of a crop is uniform; here each view is drawn anew, jitter comes last, and its area is uniform.
- `medclip` (arXiv 2210.10163, code at 9c3396f2): padded to the square; flipped in half of the cases; the whole turned
  by 10 degrees, moved by 0.0625, zoomed by 0.8 to 1.1; a crop of 224 of 256; brightness and contrast by 0.8 to 1.2.
"""


def view_recipe(name: str | None) -> Recipe:
    """A recipe by name; None is "crop".

    Raises:
        ValueError: There is none of this name.
    """
    name = "crop" if name is None else name
    if name not in RECIPES:
        raise ValueError(f"view_recipe must be one of {', '.join(RECIPES)}, got {name!r}.")
    return RECIPES[name]


def recipe_name(key: dict[str, Any]) -> str | None:
    """A name of the recipe that has this key; None where no recipe gives these views (any more)."""
    return next((name for name, recipe in RECIPES.items() if recipe.key == key), None)


__all__ = ["RECIPES", "REFERENCE_SIDE", "VIEWS_VERSION", "Recipe", "recipe_name", "view_recipe"]
