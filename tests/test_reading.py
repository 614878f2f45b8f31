"""`Reading`: one value from the image column to the cache's key, the checkpoint, its processor and its evaluation."""

import csv
import json
import logging

import datasets
import numpy as np
import pytest
import torch
from fixtures.cache_files import newest_cache
from fixtures.dicom import write_dicom
from PIL import Image
from synthetic import synthetic_config
from transformers import AutoImageProcessor, pipeline

import train_downstream
import train_pretrain
from adaptor_hf import AdaptorForImageClassification, AdaptorModel
from adaptor_hf.data.features import RadiographImage
from adaptor_hf.data.images import read_image
from adaptor_hf.data.private_rows import private_rows
from adaptor_hf.data.reading import Reading
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.embeddings import build_cache
from adaptor_hf.embeddings.__main__ import main as embeddings
from adaptor_hf.image_processing_adaptor import AdaptorImageProcessor
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.tasks.data import load_table
from adaptor_hf.tasks.provenance import tower_name
from adaptor_hf.tasks.segmentation import MaskCollator, save_segmenter, segmentation_model
from adaptor_hf.towers_adaptor import load_vision_tower
from adaptor_hf.training.report import processor_of
from adaptor_hf.training.systems import System


def cosine(one, other):
    return torch.cosine_similarity(one.double(), other.double(), dim=-1)


def write_pictures(folder, count=40, seed=0):
    """`metadata.csv` of blobs whose colour alone says what they are: with the luma of both classes alike."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows, columns = np.mgrid[0:48, 0:40]
    table = []
    for number in range(count):
        red = int(generator.integers(0, 2))
        centre = generator.uniform(10, 30, 2)
        blob = 60 * np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 200)
        # Luma 0.299 R + 0.587 G + 0.114 B: 90 more of red weigh as much as 46 more of green.
        tint = np.array([90, 0, 30]) if red else np.array([0, 46, 30])
        pixels = 70 + blob[..., None] + tint + generator.normal(0, 4, (48, 40, 3))
        name = f"images/{number}.{'png' if number % 2 else 'jpg'}"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name, quality=95)
        split = ("train", "train", "train", "validation", "test")[number % 5]
        table.append({"image": name, "text": f"{number} {'left' if red else 'right'} lung", "red": red, "split": split,
                      "patient_id": f"p{number}"})  # fmt: skip
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return folder / "metadata.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("reading") / "set")


@pytest.fixture(scope="module")
def paths(table):
    with open(table, encoding="utf-8") as file:
        return [str(table.parent / row["image"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def tower(vision_tower):
    return vision_tower


def build(dataset, tower, cache_dir, **options):
    return build_cache(dataset, tower, None, cache_dir, num_workers=0, dtype="float32", batch_size=8, **options)


def embedded(tower, images):
    with torch.no_grad():
        return tower(
            AdaptorImageProcessor(**tower.spec["image_processor"])(images, return_tensors="pt")["pixel_values"]
        )


def test_a_reading_has_one_of_two_modes_and_adds_to_keys_only_what_is_not_the_default():
    assert Reading().key == {}
    assert Reading("RGB", True).key == {"image_mode": "RGB", "voi_lut": True}
    for reading in (Reading(), Reading("RGB"), Reading("L", True), Reading("RGB", True)):
        spec = reading.in_spec({"preset": "lite0", "image_mode": "RGB", "voi_lut": True})
        assert Reading.of_spec(spec) == reading
        assert spec["preset"] == "lite0"
        assert tower_name(spec) == ", ".join(["lite0", *filter(None, [reading.label])])
    assert Reading.of_spec({"voi_lut": True}) == Reading("L", True)
    assert Reading.of_spec(None) == Reading()
    with pytest.raises(ValueError, match='"L" or "RGB"'):
        Reading("CMYK")
    with pytest.raises(AttributeError):
        Reading().mode = "RGB"


def test_the_column_says_how_it_is_read_and_keeps_it(table, paths, tmp_path):
    pairs = load_pairs(table)
    assert pairs.features["image"].reading == Reading("RGB")
    assert pairs[0]["image"] == read_image(paths[0], mode="RGB")
    grey = load_pairs(table, image_mode="L")
    assert grey[0]["image"] == read_image(paths[0])
    with pytest.raises(ValueError, match="image_mode must be one of auto, L, RGB"):
        load_pairs(table, image_mode="grey")
    grey.save_to_disk(tmp_path / "saved")
    assert load_pairs(tmp_path / "saved").features["image"].reading == Reading("L")
    assert load_pairs(tmp_path / "saved", image_mode="RGB").features["image"].reading == Reading("RGB")
    with private_mode.private_mode(b"k" * 32):
        assert private_rows(pairs).features["image"].reading == Reading("RGB")
    for feature, mode in (
        (datasets.Image(), "RGB"),
        (datasets.Image(mode="L"), "L"),
        (datasets.Image(mode="RGB"), "RGB"),
    ):
        images = datasets.Dataset.from_dict({"image": paths, "text": pairs["text"][:]}).cast_column("image", feature)
        assert load_pairs(images).features["image"].mode == mode


def test_grey_files_are_read_as_grey_whatever_their_format(paths, tmp_path, tower):
    for number, path in enumerate(paths[:6]):
        grey = read_image(path)
        (grey if number % 2 else grey.convert("RGB")).save(tmp_path / f"{number}.png")
    (tmp_path / "grey.csv").write_text("image,text\n" + "".join(f"{n}.png,text {n}\n" for n in range(6)))
    pairs = load_pairs(tmp_path / "grey.csv")
    assert pairs.features["image"].reading == Reading()
    auto = build(pairs, tower, tmp_path / "cache")
    stated = build(load_pairs(tmp_path / "grey.csv", image_mode="L"), tower, tmp_path / "cache")
    assert auto.path == stated.path
    # In colour they have a key of their own and the very same numbers.
    colour = build(load_pairs(tmp_path / "grey.csv", image_mode="RGB"), tower, tmp_path / "cache")
    assert colour.manifest["images"] != auto.manifest["images"]
    assert torch.equal(colour.image_embeddings(), auto.image_embeddings())


class TestEmbeddings:
    def test_they_are_those_of_the_towers_own_processor(self, table, paths, tower, tmp_path):
        own = embedded(tower, [Image.open(path) for path in paths]).pooler_output
        cache = build(load_pairs(table), tower, tmp_path / "cache")
        torch.testing.assert_close(cache.image_embeddings(), own, rtol=1e-4, atol=1e-5)
        assert cache.vision_spec["image_mode"] == "RGB"
        grey = build(load_pairs(table, image_mode="L"), tower, tmp_path / "cache")
        assert grey.vision_spec["image_mode"] == "L"
        assert (cosine(grey.image_embeddings(), own) < 0.999).all()
        assert grey.manifest["images"] != cache.manifest["images"]

    def test_paths_without_a_reading_are_looked_at(self, paths, tower, tmp_path):
        bare = build(datasets.Dataset.from_dict({"image": paths}), tower, tmp_path / "cache")
        assert bare.vision_spec["image_mode"] == "RGB"

    def test_a_checkpoints_tower_does_not_choose(self, table, tower, tmp_path):
        own = load_vision_tower(tower.spec)
        for spec, mode in (("L", "RGB"), ("RGB", "L")):
            own.spec = Reading(spec).in_spec(tower.spec)
            pairs = load_pairs(table, image_mode=mode)
            cache, plain = build(pairs, own, tmp_path / spec), build(pairs, tower, tmp_path / "plain")
            assert torch.equal(cache.image_embeddings(), plain.image_embeddings())
            assert cache.vision_spec["image_mode"] == mode

    def test_a_store_of_resized_images_keeps_the_modes_apart(self, table, tower, tmp_path):
        options = {"image_store": tmp_path / "store", "image_store_size": 64}
        for mode in ("RGB", "L", "RGB"):
            pairs = load_pairs(table, image_mode=mode)
            stored = build(pairs, tower, tmp_path / "stored", **options)
            plain = build(pairs, tower, tmp_path / "plain")
            torch.testing.assert_close(stored.image_embeddings(), plain.image_embeddings())
        assert len(list((tmp_path / "store").iterdir())) == 2

    def test_lite0_sees_generated_pictures_as_its_own_processor_shows_them(self, table, paths, tmp_path):
        lite0 = load_vision_tower("lite0")
        pairs = load_pairs(table).select(range(6))
        own = embedded(lite0, [Image.open(path) for path in paths[:6]]).pooler_output
        assert (cosine(build(pairs, lite0, tmp_path / "cache").image_embeddings(), own) >= 0.999).all()
        grey = build(load_pairs(table, image_mode="L").select(range(6)), lite0, tmp_path / "cache")
        assert (cosine(grey.image_embeddings(), own) < 0.95).all()

    def test_the_command_has_the_option(self, table, tiny_dinov2, tmp_path, capsys):
        words = ["build", str(table), "--cache_dir", str(tmp_path / "cache"), "--vision_tower", str(tiny_dinov2),
                 "--num_workers", "0"]  # fmt: skip
        for option, mode in (([], "RGB"), (["--image_mode", "L"], "L")):
            assert embeddings([*words, *option]) == 0
            assert json.loads(capsys.readouterr().out)["image_mode"] == mode


def test_photographs_are_seen_as_the_towers_own_processor_shows_them(realpairs, tmp_path):
    lite0 = load_vision_tower("lite0")
    pairs = load_pairs(realpairs / "flickr8k" / "metadata.csv", id_column="image_id", patient_column="group_id")
    assert pairs.features["image"].reading == Reading("RGB")
    rows = np.unique(pairs["image_id"][:], return_index=True)[1][::700]
    pairs = pairs.select(sorted(rows))
    paths = [value["path"] for value in pairs.cast_column("image", RadiographImage(decode=False))["image"]]
    own = embedded(lite0, [Image.open(path).convert("RGB") for path in paths]).pooler_output
    found = cosine(build(pairs, lite0, tmp_path / "cache").image_embeddings(), own)
    assert len(found) >= 8
    assert (found >= 0.999).all()
    grey = build(pairs.cast_column("image", RadiographImage()), lite0, tmp_path / "cache")
    assert cosine(grey.image_embeddings(), own).mean() < 0.9


class TestProcessor:
    FIELDS = {"size": {"height": 28, "width": 28}, "crop_size": {"height": 28, "width": 28}}

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_every_kind_of_input_is_read_so(self, mode, paths, tmp_path):
        plain = AdaptorImageProcessor(**self.FIELDS)
        processor = AdaptorImageProcessor(**self.FIELDS, image_mode=mode)
        # A PNG, which is the same however it is decoded.
        image = Image.open(paths[1])
        array = np.asarray(image)
        expected = plain(read_image(paths[1], mode=mode), return_tensors="pt")["pixel_values"]
        channels = torch.from_numpy(array.copy()).permute(2, 0, 1)
        for given in (
            image,
            array,
            channels,
            paths[1],
            image.convert("RGBA"),
            np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        ):
            torch.testing.assert_close(processor(given, return_tensors="pt")["pixel_values"], expected)
        # Floats are not rounded in between.
        found = processor(array.astype(np.float32), return_tensors="pt")["pixel_values"]
        assert (found - expected).abs().max() < 0.05
        assert (expected[:, 0] * 0.229 + 0.485 - expected[:, 1] * 0.224 - 0.456).abs().max() > 0.05 or mode == "L"

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_alpha_is_laid_on_black_as_in_training(self, mode, paths, tmp_path):
        half = Image.open(paths[1]).convert("RGBA")
        half.putalpha(Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) * 6, (48, 1))))
        half.save(tmp_path / "alpha.png")
        plain = AdaptorImageProcessor(**self.FIELDS)
        processor = AdaptorImageProcessor(**self.FIELDS, image_mode=mode)
        expected = plain(read_image(tmp_path / "alpha.png", mode=mode), return_tensors="pt")["pixel_values"]
        for given in (half, np.asarray(half), str(tmp_path / "alpha.png")):
            torch.testing.assert_close(processor(given, return_tensors="pt")["pixel_values"], expected)
        floats = processor(np.asarray(half).astype(np.float32), return_tensors="pt")["pixel_values"]
        assert (floats - expected).abs().max() < 0.05

    def test_paths_of_dicom_files_are_read_with_their_window(self, tmp_path):
        values = (np.add.outer(np.arange(40), np.arange(36)) * 40).astype(np.uint16)
        path = str(write_dicom(tmp_path / "a.dcm", values, BitsStored=12, WindowCenter="500", WindowWidth="300"))
        for voi_lut in (False, True):
            processor = AdaptorImageProcessor(**self.FIELDS, image_mode="L", voi_lut=voi_lut)
            processor.save_pretrained(tmp_path / "processor")
            processor = AutoImageProcessor.from_pretrained(tmp_path / "processor")
            assert (processor.image_mode, processor.voi_lut) == ("L", voi_lut)
            expected = AdaptorImageProcessor(**self.FIELDS)(read_image(path, voi_lut=voi_lut), return_tensors="pt")
            assert torch.equal(processor(path, return_tensors="pt")["pixel_values"], expected["pixel_values"])

    def test_a_mode_that_is_none_is_refused(self, paths):
        with pytest.raises(ValueError, match='image_mode must be "L", "RGB" or None'):
            AdaptorImageProcessor(**self.FIELDS, image_mode="grey")(Image.open(paths[0]))


class TestModels:
    def test_another_tower_leaves_the_reading(self, tower):
        spec = Reading("RGB", True).in_spec(tower.spec)
        model = AdaptorModel(synthetic_config(vision_hidden_size=32, vision_tower=spec))
        model.attach_towers(tower)
        assert Reading.of_spec(model.config.vision_tower) == Reading("RGB", True)
        assert "image_mode" not in tower.spec

    def test_a_config_of_version_0_1_gets_a_processor_that_reads_grey(self, tower, tiny_bert):
        text = {"name_or_path": str(tiny_bert), "library": "transformers", "revision": None, "max_length": 128}
        config = synthetic_config(vision_hidden_size=32, vision_tower=tower.spec, text_tower=text)
        assert processor_of(config).image_processor.image_mode == "L"

    def test_a_segmenters_processor_keeps_it(self, tower, tmp_path):
        for mode in ("L", "RGB"):
            own = load_vision_tower(Reading(mode).in_spec(tower.spec))
            model = segmentation_model(System("tower", None), own, 28, 0)
            save_segmenter(model, MaskCollator(own.processor, 28, False), tmp_path / mode)
            assert AutoImageProcessor.from_pretrained(tmp_path / mode).image_mode == mode
            assert json.loads((tmp_path / mode / "config.json").read_text())["vision_tower"]["image_mode"] == mode


def test_a_table_in_colour_that_is_read_as_grey_is_said(table, caplog):
    with caplog.at_level(logging.INFO):
        load_table(table, image_mode="L", label_columns=["red"])
    assert "40 of 40 files looked at are in colour: their colour is not used" in caplog.text
    assert "images/" not in caplog.text
    caplog.clear()
    load_table(table, image_mode="RGB", label_columns=["red"])
    assert "colour" not in caplog.text


def test_a_run_on_colour_says_so_and_is_evaluated_and_used_so(table, paths, tiny_dinov2, tiny_bert, tmp_path, caplog):
    output = tmp_path / "model"
    with caplog.at_level(logging.INFO):
        train_pretrain.main([
            "--train_file", str(table), "--vision_tower", str(tiny_dinov2), "--text_tower", str(tiny_bert),
            "--output_dir", str(output), "--aligner",
            '{"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}',
            "--global_batch_size", "8", "--num_train_epochs", "1", "--use_cpu",
        ])  # fmt: skip
    assert "Images are read as RGB: 40 of 40 files looked at are in colour" in caplog.text
    assert "Images are read as: RGB" in caplog.text
    assert json.loads((output / "config.json").read_text())["vision_tower"]["image_mode"] == "RGB"
    assert json.loads((output / "run.json").read_text())["inputs"]["reading"] == {
        "mode": "RGB", "voi_lut": False, "range_percentile": 0.0,
    }  # fmt: skip
    assert 'read_image(path, mode="RGB")' in (output / "README.md").read_text()
    assert AutoImageProcessor.from_pretrained(output).image_mode == "RGB"
    assert AdaptorModel.from_pretrained(output).vision_model.processor.image_mode == "RGB"

    words = [
        "--task", "classification", "--model", str(output), "--table", str(table), "--label_column", "red", "--seeds",
        "0", "--device", "cpu", "--num_resamples", "10", "--controls", "none", "--save_model", "--output_dir",
        str(tmp_path / "scores"),
    ]  # fmt: skip
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train_downstream.main(words)
    assert "read in colour, as in the training of this model" in caplog.text
    followed = newest_cache(tmp_path / "scores" / "embeddings")
    assert followed.vision_spec["image_mode"] == "RGB"
    # The classifier, in a pipeline: the path of a file, a picture and an array are what the cache was.
    classify = pipeline("image-classification", model=str(tmp_path / "scores" / "model"))
    assert classify.image_processor.image_mode == "RGB"
    classifier = AdaptorForImageClassification.from_pretrained(tmp_path / "scores" / "model")
    assert classifier.config.vision_tower["image_mode"] == "RGB"
    # Numbers of the test that scored it.
    train_downstream.main([*words, "--image_mode", "L"])
    assert newest_cache(tmp_path / "scores" / "embeddings").vision_spec["image_mode"] == "L"
    assert "in colour: their colour is not used" in caplog.text
    names = {
        json.loads(line)["vision_tower"]
        for path in (tmp_path / "scores/runs").glob("*/results.jsonl")
        for line in path.read_text().splitlines()
    }
    assert names == {tiny_dinov2.name, f"{tiny_dinov2.name}, RGB"}
    with torch.no_grad():
        inputs = AdaptorImageProcessor(**classifier.config.vision_tower["image_processor"])(
            [read_image(path, mode="RGB") for path in paths], return_tensors="pt"
        )
        expected = classifier(**inputs).logits.sigmoid()[:, 0]
    for given in (paths[1], Image.open(paths[1])):
        score = next(item["score"] for item in classify(given, function_to_apply="sigmoid") if item["label"] == "red")
        assert score == pytest.approx(float(expected[1]), abs=1e-5)
