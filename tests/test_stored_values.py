"""What is asked of a cache in Python: values that mean the same have one key, others are refused by their name."""

import json
from dataclasses import fields

import numpy as np
import pytest

import train_pretrain
from adaptor_hf.data.stored_arguments import StoredArguments, kept_of_images, kept_of_texts
from adaptor_hf.embeddings import build_cache
from adaptor_hf.embeddings.columns import Column
from adaptor_hf.embeddings.extract import columns_of
from adaptor_hf.embeddings.sequences import stored_column
from adaptor_hf.embeddings.stored import COLUMN_ARGUMENTS, HOW, STORED_VERSION, StoredImages, StoredTexts, asked_in
from adaptor_hf.privacy.nearly_data import NEARLY_DATA, nearly_data
from adaptor_hf.towers_adaptor import load_text_tower, load_vision_tower


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


@pytest.mark.parametrize("name", COLUMN_ARGUMENTS)
def test_what_a_message_says_makes_the_column(name, tiny_dinov2, tiny_bert, tmp_path):
    asked = COLUMN_ARGUMENTS[name]
    of_texts = asked.keys() <= {item.name for item in fields(StoredTexts)}
    tower = load_text_tower(str(tiny_bert)) if of_texts else load_vision_tower(str(tiny_dinov2))
    # The tiny tower's grid is 2 x 2.
    fitting = asked | {"regions": "2x2"} if "regions" in asked else asked
    stored = StoredTexts(**asked) if of_texts else StoredImages(**fitting)
    assert name in [column.name for column in columns_of(tower, stored, "float16")]
    words = HOW[name].split(" (in Python ")[0].split()
    options, *_ = train_pretrain.parse_arguments(["--train_file", "a.csv", "--output_dir", str(tmp_path), *words])
    plain = (StoredTexts if of_texts else StoredImages)(**asked)
    assert kept_of_images(options) | kept_of_texts(options) == {key: getattr(plain, key) for key in asked}


def test_every_column_that_a_tower_gives_is_known(tiny_dinov2, tiny_bert):
    images = StoredImages("all", (2, 2), (1,), True, 2, "convirt")
    texts = StoredTexts(True, True, True, True)
    given = [
        column.name
        for tower, stored in ((load_vision_tower(str(tiny_dinov2)), images), (load_text_tower(str(tiny_bert)), texts))
        for column in columns_of(tower, stored, "float16")[1:]
    ]
    assert sorted(given) == sorted(COLUMN_ARGUMENTS) == sorted(HOW)
    near = [name for name, asked in COLUMN_ARGUMENTS.items() if next(iter(asked)) in NEARLY_DATA]
    assert nearly_data(given) == [name for name in given if name in near]


def test_a_column_that_is_missing_has_one_message():
    plain = {"regions": Column("regions", (4, 32), "float16")}
    with pytest.raises(
        ValueError, match=r"it keeps regions. Build it again with --image_tokens all \(in Python build_c"
    ):
        stored_column(plain, "image_tokens")
    assert HOW["image_tokens"] == '--image_tokens all (in Python build_cache(image_tokens="all"))'
    assert HOW["shallow"] == "--shallow 1 (in Python build_cache(shallow=[1]))"
