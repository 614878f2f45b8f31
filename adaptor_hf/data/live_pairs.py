"""`LivePairs`: pairs read from their files at every epoch, for towers that train."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..files import printable
from .archives import parse_member, read_bytes
from .content_keys import image_reference
from .features import stated_reading
from .reading import Reading
from .report_sentences import split_sentences
from .sentence_recipes import augmented_text, check_sentence_recipe
from .token_spans import SPANS, spans_of_text
from .view_recipes import Recipe, recipe_name, view_recipe
from .views import decoded_size, view_pixels

# A tokenizer without a limit says 1e30.
_LONGEST = 1_000_000


class LivePairs(Dataset):
    """
    Map-style dataset of image-report pairs: files are read, augmented and tokenised where a row is asked for, so in the
    workers of a `DataLoader`.

    What is random is drawn from `seed`, the epoch, the number of the row and what it is for, and from nothing else: a
    row of an epoch is the same whichever worker, process or run reads it. Without a recipe nothing is random, and the
    pixels and ids are those that `build_cache` gives the towers.

    Args:
        dataset: `datasets.Dataset` with the columns `image` and `text` of `load_pairs`; the feature of `image` says how
            files are read.
        image_processor: `AdaptorImageProcessor` of the vision tower. None: no pixels, as where its embeddings are in
            `columns`.
        tokenizer: Tokenizer of the text tower. None: no ids.
        recipe: How the image of a pair is augmented, by name or a `Recipe`. None: the processor's own steps alone.
        sentence_recipe: How the text is augmented, one of `SENTENCE_RECIPES`, from the column `sentences` where the row
            has some, else from the sentences of `text`. None: the text as it is.
        view_recipe: The same of the views; None is "crop".
        views: Augmented views of each image, K.
        seed: Of everything that is random.
        max_length: Tokens that a text is cut to, special tokens included and kept; at most, and by default, what the
            tower takes.
        spans: "words", "sentences" or both: which tokens these are, see `adaptor_hf.data.token_spans`.
        columns: What else a row has: names, and arrays (or what else is indexed by rows of `dataset`) as long as it,
            such as `text_row`, `study`, `targets`, or `text_embeds` of a frozen side.

    A row is a dictionary: `pixel_values` float32 (C, H, W); `input_ids`, `attention_mask` and what else the tokenizer
    gives, int64 (L,), not padded; `view_pixel_values` float32 (K, C, H, W) and `view_boxes` float32 (K, 5), and of
    recipes that turn images `view_maps` float32 (K, 2, 3), see `ViewGeometry`; `words` and `sentences`, int64
    (spans, 2); the columns; and its number, `row`.

    Raises:
        ValueError: Neither processor nor tokenizer; views without a processor; a column of another length or of a name
            that rows have; no limit of tokens; no recipe of this name; and at a row, one without image or text, or a
            damaged file. Messages name the row, and no path.
        OSError: At a row whose file cannot be read.
    """

    def __init__(
        self,
        dataset: Any,
        image_processor: Any = None,
        tokenizer: Any = None,
        *,
        recipe: Recipe | str | None = None,
        sentence_recipe: str | None = None,
        view_recipe: Recipe | str | None = None,
        views: int = 0,
        seed: int = 0,
        max_length: int | None = None,
        spans: Sequence[str] = (),
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        if image_processor is None and tokenizer is None:
            raise ValueError(
                "LivePairs without image_processor and tokenizer reads nothing: give one of them, or both."
            )
        if views < 0 or ((views or recipe is not None) and image_processor is None):
            raise ValueError(f"views={views} and recipe={recipe!r} need an image_processor, and 0 views or more.")
        _check_texts(tokenizer, sentence_recipe, spans)
        self.seed, self.views = seed, views
        self.sentence_recipe, self.spans = sentence_recipe, tuple(spans)
        self.recipe = None if recipe is None else _recipe(recipe)
        self.view_recipe = _recipe(view_recipe)
        self.columns = dict(columns or {})
        self._length = len(dataset)
        self._source_rows = (
            dataset.with_format("numpy", ["source_row"]) if "source_row" in dataset.column_names else None
        )
        self._images = self._texts = None
        if image_processor is not None:
            self.reading = stated_reading(dataset) or Reading()
            self._images = dataset.select_columns(["image"]).with_format("arrow")
            self._processor = copy.copy(image_processor)
            # It may be a checkpoint's, whose own reading must not change what is read here.
            if getattr(self._processor, "image_mode", None) is not None:
                self._processor.image_mode = self.reading.mode
            self._min_size = decoded_size(self._processor)
        if tokenizer is not None:
            self._texts = dataset.select_columns(["text"]).with_format("arrow")
            self._tokenizer = tokenizer
            self._sentences = None
            if sentence_recipe is not None and "sentences" in dataset.column_names:
                self._sentences = dataset.select_columns(["sentences"]).with_format("arrow")
            self.max_length = min(max_length or _LONGEST, tokenizer.model_max_length)
            if self.max_length >= _LONGEST:
                raise ValueError("The tokenizer states no limit of tokens (model_max_length): give max_length.")
            if self.spans and self.max_length > np.iinfo(np.int16).max:
                raise ValueError(f"spans are int16, and texts may have {self.max_length:,} tokens: give max_length.")
        self._check_columns()
        # Shared memory: workers that live on see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that is read, from 0."""
        return int(self._epoch)

    @property
    def augmentation(self) -> dict[str, Any]:
        """What makes its draws others: recipes, views and seed, by their names."""
        recipes = {"image_recipe": self.recipe, "view_recipe": self.view_recipe if self.views else None}
        keys = {
            name: None if recipe is None else recipe_name(recipe.key) or str(recipe.key)
            for name, recipe in recipes.items()
        }
        return keys | {"sentence_recipe": self.sentence_recipe, "views": self.views}

    def set_epoch(self, epoch: int) -> None:
        """Before the rows of an epoch are asked for: what is random is drawn anew. Workers that run already see it."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> dict[str, Any]:
        row = range(self._length)[row]
        example: dict[str, Any] = {}
        if self._images is not None:
            example |= self._image(row)
        if self._texts is not None:
            example |= self._text(row)
        return example | {"row": row} | {name: values[row] for name, values in self.columns.items()}

    def _image(self, row: int) -> dict[str, torch.Tensor]:
        image = self._read(row)
        if self.recipe is None:
            pixels = self._processor(images=[image], return_tensors="pt")["pixel_values"][0]
        else:
            pixels = view_pixels(image, self._processor, self.recipe, [self._draw(row, "image")])[0][0]
        found = {"pixel_values": pixels}
        if self.views:
            seeds = [self._draw(row, f"view {number}") for number in range(self.views)]
            found["view_pixel_values"], shown = view_pixels(image, self._processor, self.view_recipe, seeds)
            found["view_boxes"] = torch.from_numpy(np.stack([geometry.box for geometry in shown]))
            if self.view_recipe.turns:
                maps = np.stack([geometry.matrix for geometry in shown])
                found["view_maps"] = torch.from_numpy(maps.astype(np.float32))
        return found

    def _read(self, row: int) -> Any:
        path, data = image_reference(self._images[row].column("image")[0].as_py())
        if path is None and data is None:
            raise ValueError(f"{self._named(row)} has no image. Leave it out of the pairs.")
        try:
            return self.reading.read(read_bytes(path) if data is None else data, self._min_size)
        except Exception as error:
            # Whatever a decoder raises. The error as it is would name a file.
            kind = OSError if isinstance(error, OSError | ImportError | MemoryError) else ValueError
            reason = _without_path(error, path)
        raise kind(f"The image of {self._named(row).lower()} cannot be read: {reason}")

    def _text(self, row: int) -> dict[str, torch.Tensor]:
        text = self._texts[row].column("text")[0].as_py()
        if text is None:
            raise ValueError(f"{self._named(row)} has no text. Leave it out of the pairs.")
        if self.sentence_recipe is not None:
            given = self._sentences[row].column("sentences")[0].as_py() if self._sentences is not None else None
            if sentences := [one for one in given or split_sentences(text) if one]:
                draws = torch.Generator().manual_seed(self._draw(row, "text"))
                text = augmented_text(sentences, self.sentence_recipe, draws)
        encoded = self._tokenizer(text, truncation=True, max_length=self.max_length, padding=False)
        found = {name: torch.tensor(values, dtype=torch.int64) for name, values in encoded.items()}
        for name in self.spans:
            found[name] = torch.from_numpy(spans_of_text(encoded.encodings[0], text, name)).long()
        return found

    def _draw(self, row: int, what: str) -> int:
        return draw_seed(self.seed, self.epoch, row, what)

    def _named(self, row: int) -> str:
        if self._source_rows is None:
            return f"Row {row} of the live pairs"
        return f"Row {row} of the live pairs (row {int(self._source_rows[row]['source_row'])} of their source)"

    def _check_columns(self) -> None:
        own = {"pixel_values": self._images, "view_pixel_values": self._images, "view_boxes": self._images}
        own |= {"view_maps": self._images, "input_ids": self._texts, "attention_mask": self._texts}
        own |= dict.fromkeys(self.spans, self._texts)
        for name, values in self.columns.items():
            if own.get(name) is not None:
                raise ValueError(f"LivePairs makes {name} itself: leave it out of columns.")
            if len(values) != self._length:
                raise ValueError(f"The column {name} has {len(values):,} rows, and the pairs have {self._length:,}.")


def draw_seed(seed: int, epoch: int, row: int, what: str) -> int:
    """What the random numbers for one thing start from, 63 bits: for "image", "view 0" or "text", say, of a row."""
    return int.from_bytes(blake2b(f"{seed} {epoch} {row} {what}".encode(), digest_size=8).digest(), "little") >> 1


def _check_texts(tokenizer: Any, sentence_recipe: str | None, spans: Sequence[str]) -> None:
    check_sentence_recipe(sentence_recipe)
    if isinstance(spans, str) or not set(spans) <= set(SPANS):
        raise ValueError(f"spans are some of {', '.join(SPANS)} in a list or tuple, got {spans!r}.")
    if tokenizer is None and (sentence_recipe is not None or spans):
        raise ValueError("sentence_recipe and spans need a tokenizer: without one no text is read.")
    if spans and not tokenizer.is_fast:
        raise ValueError(f"spans need a fast tokenizer, and {type(tokenizer).__name__} is none.")


def _recipe(recipe: Recipe | str | None) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else view_recipe(recipe)


def _without_path(error: Exception, path: str | None) -> str:
    """What went wrong, in one line, without naming a file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    member = parse_member(path) if path else None
    names = ["image bytes", *([f"{member.archive}::{member.name}", member.archive] if member else []), path or ""]
    for name in filter(None, names):
        text = text.replace(printable(name), "the file")
    return text or type(error).__name__


__all__ = ["LivePairs", "draw_seed"]
