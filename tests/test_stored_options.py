"""Options that say what a cache keeps: what the builder and the towers take of them, and what is refused."""

from dataclasses import fields

import pytest

import train_pretrain
from adaptor_hf.data.pair_arguments import DataArguments
from adaptor_hf.data.stored_arguments import kept_of_images, kept_of_texts, text_pooling, vision_pooling
from adaptor_hf.data.view_recipes import RECIPES
from adaptor_hf.embeddings.files import NUMPY_DTYPES
from adaptor_hf.embeddings.stored import StoredImages, StoredTexts
from adaptor_hf.tower_specs_adaptor import POOLINGS


class TestStoredOptions:
    def parsed(self, **given) -> DataArguments:
        return DataArguments(train_file="pairs.csv", **given)

    def test_nothing_is_asked_for_by_default(self):
        data = self.parsed()
        assert kept_of_images(data) == kept_of_texts(data) == vision_pooling(data) == text_pooling(data) == {}

    def test_they_become_what_the_builder_and_the_towers_take(self):
        data = self.parsed(
            image_tokens="7", regions="2x3", shallow=[1, 2], image_attention=True, views=2, view_recipe="crop",
            view_seed=5, text_tokens=True, sentences=True, vision_pooling="cls+mean", layers=[6, 12],
            layers_merge="mean", text_pooling="cls",
        )  # fmt: skip
        assert kept_of_images(data) == {
            "image_tokens": 7, "regions": (2, 3), "shallow": (1, 2), "image_attention": True, "views": 2,
            "view_recipe": "crop", "view_seed": 5,
        }  # fmt: skip
        assert kept_of_texts(data) == {"text_tokens": True, "sentences": True}
        layers = {"layers": [6, 12], "layers_merge": "mean", "layers_norm": None}
        assert vision_pooling(data) == {"pooling": "cls+mean"} | layers
        assert text_pooling(data) == {"pooling": "cls"}
        assert kept_of_images(self.parsed(image_tokens="all")) == {"image_tokens": "all"}

    def test_a_recipe_spells_them_as_yaml_does(self, tmp_path):
        (tmp_path / "recipe.yaml").write_text(
            "train_file: pairs.csv\nimage_tokens: 7\nregions: 2x3\nlayers: [1, 2]\nlayers_norm: no\n"
            "text_tokens: true\nviews: 2\nembedding_dtype: int8\nrebuild: yes\n"
        )
        words = [str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path)]
        data, *_ = train_pretrain.parse_arguments(words)
        assert kept_of_images(data) == {"image_tokens": 7, "regions": (2, 3), "views": 2}
        assert kept_of_texts(data) == {"text_tokens": True}
        assert vision_pooling(data) == {"layers": [1, 2], "layers_merge": "concat", "layers_norm": False}
        assert (data.embedding_dtype, data.rebuild) == ("int8", True)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"image_tokens": "0"}, r"--image_tokens '0': expected all, or the side of a grid"),
            ({"image_tokens": "7x7"}, r"--image_tokens '7x7': expected all, or the side of a grid"),
            ({"regions": "3"}, r"--regions '3': expected rows and columns of cells, such as 3x3"),
            ({"regions": "0x3"}, r"--regions '0x3'"),
            ({"shallow": [0]}, r"--shallow 0: counted from 1"),
            ({"layers": [3, 3]}, r"--layers 3 3: each once"),
            ({"layers_merge": "mean"}, r"--layers_merge would have no effect without --layers"),
            ({"layers_norm": "no"}, r"--layers_norm would have no effect without --layers"),
            ({"views": -1}, r"--views -1: expected 0 or more"),
            ({"view_recipe": "crop"}, r"--view_recipe would have no effect without --views"),
            ({"view_seed": 1}, r"--view_seed would have no effect without --views"),
        ],
    )
    def test_what_cannot_be_is_said_by_its_name(self, given, message):
        with pytest.raises(ValueError, match=message):
            self.parsed(**given)

    def test_poolings_types_and_recipes_are_those_that_there_are(self):
        given = {item.name: item.metadata["choices"] for item in fields(DataArguments) if "choices" in item.metadata}
        assert given["vision_pooling"] == given["text_pooling"] == list(POOLINGS)
        assert given["embedding_dtype"] == [*NUMPY_DTYPES, "int8"]
        assert given["view_recipe"] == list(RECIPES)
        everything = {"image_tokens": "7", "regions": "1x1", "shallow": [1], "image_attention": True, "views": 1}
        asked = kept_of_images(self.parsed(**everything, view_recipe="crop", view_seed=1))
        assert asked.keys() == {item.name for item in fields(StoredImages)}
        texts = {item.name: True for item in fields(StoredTexts)}
        assert kept_of_texts(self.parsed(**texts)) == texts

    def test_a_ready_cache_has_what_it_has(self):
        with pytest.raises(ValueError, match="--cache is trained on as it is: image_tokens would have no effect"):
            DataArguments(cache="embeddings", image_tokens="all")
