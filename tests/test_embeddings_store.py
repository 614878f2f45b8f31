"""The store of resized images: same numbers as stored, damage found, no decoding for the second tower."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from adaptor_hf.data import images
from adaptor_hf.embeddings import build_cache
from adaptor_hf.embeddings.__main__ import main
from adaptor_hf.embeddings.image_store import ImageStore
from adaptor_hf.embeddings.lookup import distinct_rows, find_keys, first_rows
from adaptor_hf.towers_adaptor import load_vision_tower


@pytest.fixture
def table(radiographs, tmp_path):
    """Six JPEG files of 64 to 120 pixels that a test may change."""
    shutil.copytree(radiographs, tmp_path / "images")
    return datasets.Dataset.from_dict({"image": sorted(map(str, (tmp_path / "images").glob("*.jpg")))})


@pytest.fixture
def build(table, tiny_dinov2, tmp_path):
    """The tower resizes to 32 pixels with a bicubic filter."""

    def run(tower=tiny_dinov2, cache_dir="cache", **options):
        options = {"image_store": tmp_path / "store", "image_store_size": 32, "num_workers": 0} | options
        return build_cache(table, tower, None, tmp_path / cache_dir, dtype="float32", **options)

    return run


def other_tower(folder):
    tower = load_vision_tower(str(folder))
    with torch.no_grad():
        tower.model.embeddings.cls_token += 0.5
    return tower


def test_a_store_of_the_towers_own_size_changes_no_number_but_the_key(build):
    direct = build(image_store=None)
    stored = build()
    assert torch.equal(stored.image_embeddings(), direct.image_embeddings())
    assert stored.manifest["images"] != direct.manifest["images"]
    assert build(image_store_size=48).manifest["images"] not in (stored.manifest["images"], direct.manifest["images"])


def test_a_larger_store_is_near_and_hits_equal_misses(build, tiny_dinov2):
    direct = build(image_store=None).image_embeddings()
    made = build(image_store_size=64).image_embeddings()
    read = build(image_store_size=64, cache_dir="again").image_embeddings()
    assert torch.equal(made, read)
    assert torch.nn.functional.cosine_similarity(made, direct).min() > 0.99


def test_a_second_tower_decodes_no_file(build, tiny_dinov2, monkeypatch):
    build()
    monkeypatch.setattr(images, "read_image", None)
    cache = build(other_tower(tiny_dinov2))
    assert len(cache) == 6
    assert cache.excluded == []


def test_damage_is_found_and_mended_from_the_source(build, tiny_dinov2, tmp_path, caplog):
    build()
    files = sorted((tmp_path / "store").rglob("*.png"))
    whole = [file.read_bytes() for file in files]
    damaged = bytearray(whole[0])
    damaged[len(damaged) // 2] ^= 1
    files[0].write_bytes(damaged)
    files[1].write_bytes(whole[1][:-40])
    files[2].write_bytes(b"")
    expected = build(other_tower(tiny_dinov2), image_store=None).image_embeddings()
    assert torch.equal(build(other_tower(tiny_dinov2)).image_embeddings(), expected)
    assert caplog.text.count("is damaged") == 3
    assert [file.read_bytes() for file in files] == whole


def test_files_are_grey_png_of_the_asked_size_and_small_images_stay(build, tmp_path):
    build(image_store_size=80)
    sizes = {Image.open(file).size for file in (tmp_path / "store").rglob("*.png")}
    assert sizes == {(80, 96), (96, 80), (64, 64), (80, 106), (100, 64), (80, 80)}
    assert {Image.open(file).mode for file in (tmp_path / "store").rglob("*.png")} == {"L"}


def test_faulty_images_are_not_stored_and_a_changed_one_is_stored_anew(build, table, tmp_path):
    broken = tmp_path / "images" / "image_1.jpg"
    broken.write_bytes(b"no image")
    assert len(build(max_fault_fraction=0.5)) == 5
    assert len(list((tmp_path / "store").rglob("*.png"))) == 5
    shutil.copy(tmp_path / "images" / "image_0.jpg", broken)
    cache = build()
    assert torch.equal(cache[1]["image_embeds"], cache[0]["image_embeds"])


def test_workers_write_the_same_store(build, tmp_path):
    build()
    build(image_store=tmp_path / "other", num_workers=2, cache_dir="other-cache")

    def content(name):
        return {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.png")}

    assert content("other") == content("store")
    assert not list((tmp_path / "other").rglob("*.partial"))


def test_a_store_that_is_too_small_or_cannot_be_written_is_an_error_and_no_fault_of_the_image(build, tmp_path):
    with pytest.raises(ValueError, match="image_store_size=32 or more"):
        build(image_store_size=16)
    with pytest.raises(ValueError, match="image_store_size"):
        build(image_store_size=0)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        build(image_store=tmp_path / "file")


def test_the_command_line_takes_a_store(table, tiny_dinov2, tmp_path, capsys):
    (tmp_path / "images.csv").write_text("\n".join(["image", *table["image"]]) + "\n")
    arguments = ["build", str(tmp_path / "images.csv"), "--cache_dir", str(tmp_path / "cache"), "--num_workers", "0"]
    arguments += ["--vision_tower", str(tiny_dinov2), "--image_store", str(tmp_path / "store")]
    assert main([*arguments, "--image_store_size", "40"]) == 0
    assert len(list((tmp_path / "store").rglob("*.png"))) == 6


def test_a_key_holds_the_file_and_not_only_its_name(tmp_path):
    store = ImageStore(tmp_path, 32)
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    store.write(b"k" * 16, image, b"c" * 16)
    read, content = store.read(b"k" * 16)
    assert content == b"c" * 16
    assert np.array_equal(np.asarray(read), np.asarray(image))
    assert store.read(b"j" * 16) is None


def test_keys_are_found_also_where_half_of_them_is_equal():
    generator = np.random.default_rng(0)
    halves = generator.bytes(8 * 5)
    keys = [halves[8 * (i % 5) : 8 * (i % 5) + 8] + generator.bytes(8) for i in range(200)] + [b"\0" * 16]
    keys += [generator.bytes(16) for _ in range(100)]
    keys += keys[50:60]
    known = np.frombuffer(b"".join(keys), dtype="S16")
    wanted = np.frombuffer(b"".join([*keys[::-1], b"x" * 16, halves[:8] + b"y" * 8]), dtype="S16")
    place = {key: index for index, key in reversed(list(enumerate(keys)))}
    expected = [place[key] for key in keys[::-1]] + [-1, -1]
    assert find_keys(known, wanted).tolist() == expected
    assert find_keys(known[:0], wanted[:2]).tolist() == [-1, -1]
    assert first_rows(known).tolist() == [place[key] for key in keys]
    assert distinct_rows(known).tolist() == sorted(set(place.values()))


@pytest.mark.parametrize("rows", [1, 2, 16_384, 16_385, 40_000])
def test_runs_of_equal_keys_are_found_across_blocks(rows):
    """Every key twice, and one key in a run longer than a block."""
    keys = np.frombuffer(b"".join(b"%016d" % (row // 2 if row < rows // 2 else 0) for row in range(rows)), dtype="S16")
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(first_rows(keys), first[inverse])
    np.testing.assert_array_equal(distinct_rows(keys), np.sort(first))
