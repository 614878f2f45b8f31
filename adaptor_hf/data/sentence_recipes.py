"""How the text of a pair is augmented by its sentences: recipes by the names of the papers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .view_draws import uniform

if TYPE_CHECKING:
    import torch

SENTENCE_RECIPES = ("convirt", "gloria", "lovt", "medclip")
"""Recipes by name.

- `convirt` (arXiv 2010.00747; LoVT's CLIP and ConVIRT baselines) and `gloria` (Huang et al., ICCV 2021): one sentence
  of the report, each as likely.
- `lovt` (arXiv 2112.02889, code at f548985d): all sentences, two at random places (perhaps the same) change places as
  often as a geometric distribution with p = 0.4 says, counted from 0: 1.5 times on average.
- `medclip` (arXiv 2210.10163, code at 9c3396f2): one sentence of more than four words and marks. A report without one
  gives any of its sentences, where MedCLIP takes a sentence of another report with the same labels.
"""

_SWAP_STOPS = 0.4
_WORDS_AND_MARKS = re.compile(r"\w+|[^\w\s]+")


def augmented_text(sentences: Sequence[str], recipe: str, draws: torch.Generator) -> str:
    """
    The sentences of a report as a recipe of `SENTENCE_RECIPES` takes them, joined by blanks.

    Args:
        sentences: At least one.
        draws: Where its random numbers come from; no others move.

    Raises:
        ValueError: No recipe of this name.
    """
    check_sentence_recipe(recipe)
    if recipe == "lovt":
        return " ".join(_swapped(sentences, draws))
    if recipe == "medclip":
        sentences = [one for one in sentences if len(_WORDS_AND_MARKS.findall(one)) > 4] or sentences
    return sentences[_place(len(sentences), draws)]


def check_sentence_recipe(recipe: str | None) -> None:
    """
    Raises:
        ValueError: No recipe of this name, and not None.
    """
    if recipe is not None and recipe not in SENTENCE_RECIPES:
        raise ValueError(f"sentence_recipe must be one of {', '.join(SENTENCE_RECIPES)}, or None, got {recipe!r}.")


def _swapped(sentences: Sequence[str], draws: torch.Generator) -> list[str]:
    order = list(sentences)
    # How often a draw fails before it succeeds with p: the inverse of its distribution at a uniform number.
    for _ in range(int(math.log(1 - uniform(draws)) / math.log(1 - _SWAP_STOPS))):
        one, other = _place(len(order), draws), _place(len(order), draws)
        order[one], order[other] = order[other], order[one]
    return order


def _place(count: int, draws: torch.Generator) -> int:
    import torch

    return int(torch.randint(0, count, (1,), generator=draws))


__all__ = ["SENTENCE_RECIPES", "augmented_text", "check_sentence_recipe"]
