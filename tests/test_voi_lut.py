"""`voi_lut`: one choice, from the loader to the checkpoint, of reading DICOM files as a workstation displays them."""

import json
import logging

import datasets
import numpy as np
import pydicom
import pytest
import torch
from fixtures.cache_files import newest_cache
from fixtures.dicom import write_dicom
from fixtures.phantom_trees import copy_tree
from PIL import Image

import train_downstream
import train_pretrain
from adaptor_hf import AdaptorModel, towers_adaptor
from adaptor_hf.data import describe, load_public_dataset
from adaptor_hf.data.__main__ import main as data
from adaptor_hf.data.images import read_image
from adaptor_hf.data.private_rows import private_rows
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.embeddings.__main__ import main as embeddings
from adaptor_hf.phantom import write_layout
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.tasks.data import load_table
from adaptor_hf.towers_adaptor import load_vision_tower

NAMES = ["a.dcm", "b.jpg", "c.dcm", "d.jpg"]


@pytest.fixture
def table(tmp_path):
    """Two DICOM files of 12 bits whose window shows a twentieth of the range, and two JPEG files."""
    grey = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint16)
    write_dicom(tmp_path / "a.dcm", grey * 36, BitsStored=12, WindowCenter="1000", WindowWidth="200")
    write_dicom(tmp_path / "c.dcm", grey[::-1] * 36, BitsStored=12, WindowCenter="3000", WindowWidth="200")
    for name, shift in (("b.jpg", 0), ("d.jpg", 60)):
        Image.fromarray((grey + shift).astype(np.uint8)).save(tmp_path / name, quality=95)
    path = tmp_path / "pairs.csv"
    path.write_text("image,text,split\n" + "".join(f"{n},finding {r},train\n" for r, n in enumerate(NAMES)))
    return path


@pytest.fixture
def build(table, tiny_dinov2, tiny_bert, tmp_path):
    def run(dataset, cache_dir="cache", **options):
        return build_cache(
            dataset, tiny_dinov2, tiny_bert, tmp_path / cache_dir, num_workers=0, dtype="float32", **options
        )

    return run


def expected(tower, paths, **reading):
    inputs = tower.processor(images=[read_image(path, **reading) for path in paths], return_tensors="pt")
    with torch.inference_mode():
        return tower(inputs["pixel_values"]).pooler_output


def equal_rows(one, other):
    return (one - other).abs().amax(dim=1) < 1e-6


def test_rows_are_read_as_displayed_and_pictures_without_a_window_as_ever(table, tmp_path):
    plain, displayed = load_pairs(table), load_pairs(table, voi_lut=True)
    for row, name in enumerate(NAMES):
        assert displayed[row]["image"] == read_image(tmp_path / name, voi_lut=True)
        assert (displayed[row]["image"] == plain[row]["image"]) == name.endswith(".jpg")
    assert load_table(table, voi_lut=True)[0]["image"] == displayed[0]["image"]


def test_the_choice_stays_with_a_saved_data_set_and_with_private_rows(table, tmp_path):
    displayed = load_pairs(table, voi_lut=True)
    displayed.save_to_disk(tmp_path / "saved")
    assert load_pairs(tmp_path / "saved").features["image"].voi_lut
    with private_mode.private_mode(b"k" * 32):
        assert private_rows(displayed).features["image"].voi_lut


def test_a_public_data_set_carries_it_and_is_kept_once(tmp_path):
    root, cache = copy_tree("rsna", tmp_path / "rsna"), tmp_path / "kept"
    plain = load_public_dataset("rsna", root, "classification", cache_dir=cache)
    displayed = load_public_dataset("rsna", root, "classification", cache_dir=cache, voi_lut=True)
    assert {split: part.features["image"].voi_lut for split, part in displayed.items()} == dict.fromkeys(plain, True)
    assert not any(part.features["image"].voi_lut for part in plain.values())
    assert describe(displayed) == describe(plain)
    assert len(list((cache / "adaptor_hf").iterdir())) == 1


def test_embeddings_are_of_the_displayed_pictures_under_a_key_of_their_own(table, build, tiny_dinov2, tmp_path):
    paths = [str(tmp_path / name) for name in NAMES]
    plain, displayed = build(load_pairs(table)), build(load_pairs(table, voi_lut=True))
    tower = load_vision_tower(str(tiny_dinov2))
    for cache, reading in ((plain, False), (displayed, True)):
        assert equal_rows(cache.image_embeddings(), expected(tower, paths, voi_lut=reading)).all()
    assert equal_rows(plain.image_embeddings(), displayed.image_embeddings()).tolist() == [False, True, False, True]
    assert plain.manifest["images"] != displayed.manifest["images"]
    assert plain.manifest["texts"] == displayed.manifest["texts"]
    assert displayed.vision_spec["voi_lut"] is True
    assert "voi_lut" not in plain.vision_spec
    # Without the choice the key is what it is for images that know nothing of it.
    bare = datasets.Dataset.from_dict({"image": paths, "text": load_pairs(table)["text"][:]})
    assert build(bare, "bare").manifest["images"] == plain.manifest["images"]


def test_a_second_call_computes_nothing_and_a_spec_of_a_checkpoint_does_not_choose(table, build, tiny_dinov2, tmp_path,
                                                                                  monkeypatch):  # fmt: skip
    pairs = load_pairs(table, voi_lut=True)
    first = build(pairs)

    def run(self, *args, **kwargs):
        raise AssertionError("a tower runs again")

    monkeypatch.setattr(towers_adaptor.VisionTower, "forward", run)
    assert build(pairs).path == first.path
    monkeypatch.undo()
    plain = build_cache(load_pairs(table), first.vision_spec, None, tmp_path / "cache", dtype="float32", num_workers=0)
    assert "voi_lut" not in plain.vision_spec
    assert plain.manifest["images"] != first.manifest["images"]


def test_a_store_of_resized_images_does_not_mix_the_two(table, build, tmp_path):
    options = {"image_store": tmp_path / "store", "image_store_size": 64}
    stored = [build(load_pairs(table, voi_lut=reading), **options).image_embeddings() for reading in (False, True)]
    direct = [build(load_pairs(table, voi_lut=reading)).image_embeddings() for reading in (False, True)]
    for one, other in zip(stored, direct, strict=True):
        assert equal_rows(one, other).all()


def test_the_command_that_builds_a_cache_has_the_option(table, tiny_dinov2, tmp_path, capsys):
    words = ["build", str(table), "--cache_dir", str(tmp_path / "cache"), "--vision_tower", str(tiny_dinov2)]
    assert embeddings([*words, "--voi_lut", "--num_workers", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["voi_lut"] is True


@pytest.fixture
def export(tmp_path):
    """The table of a made-up export whose loose files have a narrow window."""
    root = write_layout(tmp_path / "hospital", 24, "pacs", image_size=64)
    for path in (root / "export").rglob("*"):
        if path.is_file() and path.name.isdigit():
            dataset = pydicom.dcmread(path)
            dataset.WindowCenter, dataset.WindowWidth = "1400", "300"
            dataset.save_as(path)
    words = ["index_dicom", str(root / "export"), "--reports", str(root / "ris.csv"), "--on", "AccessionNumber"]
    words += ["--text_column", "Report", "--test_fraction", "0.3"]
    assert data([*words, "--to", str(tmp_path / "pairs"), "--num_proc", "1"]) == 0
    return tmp_path / "pairs" / "pairs.csv"


def test_a_run_on_an_export_trains_on_it_says_so_and_is_evaluated_so(export, tiny_dinov2, tiny_bert, tmp_path, caplog):
    output = tmp_path / "model"
    train_pretrain.main([
        "--train_file", str(export), "--voi_lut", "--vision_tower", str(tiny_dinov2), "--text_tower", str(tiny_bert),
        "--output_dir", str(output), "--aligner",
        '{"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}',
        "--global_batch_size", "8", "--num_train_epochs", "1", "--use_cpu",
    ])  # fmt: skip
    # The embeddings are of the pictures as displayed.
    cache, pairs = open_cache(tmp_path / "embeddings"), load_pairs(export)
    paths = [pairs.with_format("arrow")[row]["image"][0].as_py()["path"] for row in cache.pairs["source_row"][:]]
    tower = load_vision_tower(str(tiny_dinov2))
    found = cache.image_embeddings().float()
    near = (found - expected(tower, paths, voi_lut=True)).abs().amax(dim=1) < 0.01
    assert near.all()
    other = (found - expected(tower, paths)).abs().amax(dim=1) < 0.01
    assert other[[path.rpartition("/")[2].isdigit() for path in paths]].sum() < len(paths) / 4
    # Config and card say so, and the config of a model with its tower goes on saying it.
    assert json.loads((output / "config.json").read_text())["vision_tower"]["voi_lut"] is True
    assert "read_image(path, voi_lut=True)" in (output / "README.md").read_text()
    model = AdaptorModel.from_pretrained(output, load_towers=True)
    assert model.config.vision_tower["voi_lut"] is True

    # The evaluation follows the checkpoint unless told otherwise, and the two are different runs.
    words = ["--task", "retrieval", "--model", str(output), "--table", str(export), "--text_column", "text", "--device",
             "cpu", "--num_resamples", "10", "--controls", "none", "--output_dir",
             str(tmp_path / "scores")]  # fmt: skip
    with caplog.at_level(logging.INFO):
        train_downstream.main(words)
    assert "read as displayed, as in the training of this model" in caplog.text
    followed = newest_cache(tmp_path / "scores" / "embeddings")
    train_downstream.main([*words, "--voi_lut", "False"])
    assert followed.vision_spec["voi_lut"] is True
    assert "voi_lut" not in newest_cache(tmp_path / "scores" / "embeddings").vision_spec
    lines = [json.loads(line) for path in (tmp_path / "scores/runs").glob("*/results.jsonl")
             for line in path.read_text().splitlines()]  # fmt: skip
    names = {line["vision_tower"] for line in lines}
    assert names == {tiny_dinov2.name, f"{tiny_dinov2.name}, voi_lut"}
