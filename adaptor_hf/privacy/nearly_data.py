"""What of a cache nearly is the data it was made of: private mode keeps it only where it is named a second time."""

from __future__ import annotations

from collections.abc import Iterable

NEARLY_DATA = {
    "image_tokens": "an image can be made from the vectors of its places",
    "regions": "an image can be made from the vectors of its places",
    "image_attention": "a value for each place is a small picture",
    "views": "parts of an image with their places are the image",
    "text_tokens": "a text can be read from the vectors of its tokens nearly word for word",
    "text_attention": "a value for each token tells which words there are",
    "words": "lengths of words tell which words there are",
    "sentences": "lengths of sentences tell which text of several it is",
}
"""What a cache may store, by the name with which it is asked for, and why it nearly is the data."""

_COLUMNS = {"views": ("view_embeds", "view_tokens", "view_boxes", "view_maps")}
"""Columns that are called otherwise than what is asked for."""


def nearly_data(columns: Iterable[str]) -> list[str]:
    """Those of a cache's columns that nearly are the images or texts, in order; a column of scales is its column's."""
    names = {column for name in NEARLY_DATA for column in _COLUMNS.get(name, (name,))}
    return [column for column in columns if column.removesuffix("_scale") in names]


__all__ = ["NEARLY_DATA", "nearly_data"]
