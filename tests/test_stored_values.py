"""What is asked of a cache in Python: values that mean the same have one key, others are refused by their name."""

import json

import numpy as np
import pytest

from adaptor_hf.data.stored_arguments import StoredArguments, kept_of_images
from adaptor_hf.embeddings import build_cache
from adaptor_hf.embeddings.stored import STORED_VERSION, StoredImages, StoredTexts, asked_in


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"image_tokens": np.int64(4)}, {"image_tokens": 4}),
        ({"image_tokens": "7"}, {"image_tokens": 7}),
        ({"image_tokens": " all"}, {"image_tokens": "all"}),
        ({"regions": "2x3"}, {"regions": (2, 3)}),
        ({"regions": np.array([2, 3])}, {"regions": (2, 3)}),
        ({"shallow": [np.int32(3), 1]}, {"shallow": (3, 1)}),
        ({"views": np.int8(2), "view_seed": np.uint8(5)}, {"views": 2, "view_seed": 5}),
        ({"image_attention": np.True_}, {"image_attention": True}),
        ({"image_attention": 1}, {"image_attention": True}),
    ],
)
def test_values_that_mean_the_same_have_one_key(given, plain):
    assert StoredImages(**given) == StoredImages(**plain)
    assert json.dumps(StoredImages(**given).key) == json.dumps(StoredImages(**plain).key)


def test_texts_too():
    assert json.dumps(StoredTexts(words=1, sentences=np.False_).key) == json.dumps(StoredTexts(words=True).key)


@pytest.mark.parametrize(
    "given",
    [
        {"image_tokens": True}, {"image_tokens": 0}, {"image_tokens": "7x7"}, {"image_tokens": 2.5},
        {"regions": 3}, {"regions": (3,)}, {"regions": (0, 3)}, {"regions": "3"}, {"regions": (True, 2)},
        {"shallow": 1}, {"shallow": "12"}, {"shallow": (1, 1)}, {"shallow": [0]}, {"shallow": ["1"]},
        {"shallow": None}, {"views": "2"}, {"views": -1}, {"views": True}, {"views": 1.5},
        {"view_seed": "1", "views": 1}, {"image_attention": "no"}, {"image_attention": None},
        {"text_tokens": "yes"}, {"words": 2}, {"sentences": None}, {"text_attention": "False"},
    ],
    ids=str,
)  # fmt: skip
def test_other_values_are_refused_by_name_before_anything_is_read(given, tmp_path):
    name = next(iter(given))
    with pytest.raises(ValueError, match=rf"^{name} .*: (expected|each once|counted from 1)"):
        build_cache(None, "no tower", "no tower", tmp_path, **given)
    assert not any(tmp_path.iterdir())


def test_options_ask_for_what_python_asks_for():
    given = StoredArguments(image_tokens="7", regions="2x3", shallow=[1, 3], views=2, view_recipe="slip", view_seed=3)
    assert StoredImages(**kept_of_images(given)) == StoredImages(7, (2, 3), (1, 3), False, 2, "slip", 3)


def test_a_rule_that_was_mended_makes_other_keys_of_what_is_stored_and_of_nothing_else(monkeypatch):
    asked = [StoredImages(regions=(2, 2)), StoredTexts(sentences=True)]
    before = [one.key for one in asked]
    assert before == [
        {"stored": {"version": STORED_VERSION, "regions": (2, 2)}},
        {"stored": {"version": STORED_VERSION, "sentences": True}},
    ]
    assert asked_in(before[1]["stored"]) == {"sentences": True}
    monkeypatch.setattr("adaptor_hf.embeddings.stored.STORED_VERSION", STORED_VERSION + 1)
    assert all(one.key != old for one, old in zip(asked, before, strict=True))
    assert StoredImages().key == StoredTexts().key == StoredImages(view_seed=3).key == {}
    assert asked_in(before[1]["stored"]) == asked_in({}) == {}
