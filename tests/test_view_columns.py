"""Caches that keep augmented views: what is in them, and that they do not depend on how they were built."""

import multiprocessing
import os
import random
import shutil
import signal

import datasets
import numpy as np
import pytest
import torch
from fixtures.cache_files import snapshot
from PIL import Image

from adaptor_hf.data import view_recipes
from adaptor_hf.data.content_keys import content_key
from adaptor_hf.data.features import RadiographImage
from adaptor_hf.data.images import read_image
from adaptor_hf.data.view_recipes import RECIPES, VIEWS_VERSION
from adaptor_hf.data.views import make_view, view_pixels, view_seed_of
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.embeddings.columns import Column
from adaptor_hf.embeddings.compute import batch_faults
from adaptor_hf.embeddings.extract import columns_of, extract
from adaptor_hf.embeddings.files import map_table
from adaptor_hf.embeddings.image_batches import ImageBatches, check_store, image_batches, images_in_part
from adaptor_hf.embeddings.image_store import ImageStore
from adaptor_hf.embeddings.manifest import read_manifest
from adaptor_hf.embeddings.pieces import Build
from adaptor_hf.embeddings.stored import HOW, STORED_VERSION, StoredImages, StoredTexts
from adaptor_hf.privacy.nearly_data import nearly_data

FORK = multiprocessing.get_context("fork")
ROWS, BATCH = 14, 2
ASKED = {"views": 2, "view_recipe": "lovt", "view_seed": 5, "image_tokens": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Images of different sizes and content."""
    folder, generator = tmp_path_factory.mktemp("files"), np.random.default_rng(1)
    for row in range(ROWS):
        size = (40 + row, 60 - row)
        small = generator.integers(0, 255, (6, 5), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{row:02d}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def build(files: list[str], tower, cache_dir, **options):
    options = {"batch_size": BATCH, "num_workers": 0, "piece_rows": 4} | ASKED | options
    dataset = datasets.Dataset.from_dict({"image": files, "image_id": [os.path.basename(path) for path in files]})
    return build_cache(dataset, tower, None, cache_dir, **options)


def folder_of(cache_dir):
    (folder,) = cache_dir.glob("images-*")
    return folder


def column(cache_dir, name: str) -> np.ndarray:
    """(n, ...) of all rows, read from the files."""
    parts = []
    for shard in sorted(folder_of(cache_dir).glob(f"{name}-*.arrow")):
        table = map_table(shard)
        parts += table[table.column_names[0] if name != "data" else "embedding"].to_pylist()
    said = read_manifest(folder_of(cache_dir)).get("columns", {}).get(name, {})
    return np.array(parts, dtype=np.float32).reshape(len(parts), *said.get("shape", [-1]))


@pytest.fixture(scope="module")
def built(files, vision_tower, tmp_path_factory):
    """Folder of a cache with two views of each image, built in this process alone."""
    folder = tmp_path_factory.mktemp("built")
    build(files, vision_tower, folder)
    return folder


def test_views_are_what_the_tower_gives_of_them(files, vision_tower, built):
    columns = {name: column(built, name) for name in ("view_embeds", "view_tokens", "view_boxes", "view_maps")}
    assert [values.shape[1:] for values in columns.values()] == [(2, 32), (2, 5, 32), (2, 5), (2, 2, 3)]
    for row, path in enumerate(files):
        seeds = [view_seed_of(5, number, content_key(path)) for number in range(2)]
        pixels, shown = view_pixels(read_image(path), vision_tower.processor, "lovt", seeds)
        with torch.inference_mode():
            expected = vision_tower(pixels)
            grid = vision_tower.features(pixels)
        np.testing.assert_allclose(columns["view_embeds"][row], expected.pooler_output, atol=2e-3)
        # A 2 x 2 grid is all that this tower has; the class token comes first.
        tokens = torch.cat([grid.class_token[:, None], expected.last_hidden_state], dim=1)
        np.testing.assert_allclose(columns["view_tokens"][row], tokens, atol=3e-3)
        np.testing.assert_array_equal(columns["view_boxes"][row], [view.box for view in shown])
        np.testing.assert_allclose(columns["view_maps"][row], [view.matrix for view in shown], atol=1e-6)


def test_batches_have_views_of_their_rows(files, built):
    cache = open_cache(built, columns=("view_embeds", "view_tokens", "view_boxes", "view_maps"))
    rows = [5, 0, 13]
    batch = cache.__getitems__(rows)
    for name in cache.columns:
        np.testing.assert_array_equal(batch[name].float(), column(built, name)[rows])


def test_every_column_of_views_is_known_by_its_option_and_as_nearly_data(built):
    names = [name for name in open_cache(built).stored_columns if name.startswith("view_")]
    assert len(names) == 4
    assert nearly_data(names) == names
    assert all("--views" in HOW[name] for name in names)


def test_manifest_says_how_views_were_made(built):
    said = read_manifest(folder_of(built))["columns"]
    assert set(said) == {"image_tokens", "view_embeds", "view_tokens", "view_boxes", "view_maps"}
    for name in ("view_embeds", "view_tokens", "view_boxes", "view_maps"):
        assert (said[name]["recipe"], said[name]["seed"]) == ("lovt", 5)
    assert said["view_tokens"]["grid"] == said["image_tokens"]["grid"] == [2, 2]
    assert said["view_tokens"]["prefix"] == said["image_tokens"]["prefix"] == 1


def test_plain_images_are_embedded_as_without_views(files, vision_tower, built, tmp_path):
    build(files, vision_tower, tmp_path, views=0, image_tokens=None)
    np.testing.assert_array_equal(column(tmp_path, "data"), column(built, "data"))
    assert "columns" not in read_manifest(folder_of(tmp_path))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_byte(files, vision_tower, built, tmp_path, workers):
    build(files, vision_tower, tmp_path, num_workers=workers)
    assert images(tmp_path) == images(built)


def images(cache_dir) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(cache_dir).items() if name.startswith("images-")}


def test_random_numbers_of_the_caller_neither_matter_nor_move(files, vision_tower, built, tmp_path):
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    build(files, vision_tower, tmp_path)
    assert images(tmp_path) == images(built)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_batch_size_and_order_change_no_view(files, vision_tower, built, tmp_path):
    build(files[::-1], vision_tower, tmp_path, batch_size=5)
    np.testing.assert_array_equal(column(tmp_path, "view_boxes")[::-1], column(built, "view_boxes"))
    np.testing.assert_array_equal(column(tmp_path, "view_maps")[::-1], column(built, "view_maps"))
    for name in ("view_embeds", "view_tokens"):
        np.testing.assert_allclose(column(tmp_path, name)[::-1], column(built, name), atol=2e-3)


def test_an_image_has_its_views_wherever_it_lies(files, vision_tower, built, tmp_path):
    moved = tmp_path / "elsewhere.png"
    shutil.copyfile(files[3], moved)
    build([str(moved), files[5]], vision_tower, tmp_path / "cache")
    np.testing.assert_array_equal(column(tmp_path / "cache", "view_boxes"), column(built, "view_boxes")[[3, 5]])


def test_added_rows_leave_views_as_they_are(files, vision_tower, built, tmp_path):
    build(files[:5], vision_tower, tmp_path)
    build(files, vision_tower, tmp_path)
    for name in ("view_boxes", "view_maps"):
        np.testing.assert_array_equal(column(tmp_path, name), column(built, name))


def run_rank(files, tower, cache_dir, rank: int, world: int) -> None:
    torch.distributed.init_process_group("gloo", f"file://{cache_dir}/store", rank=rank, world_size=world)
    build(files, tower, cache_dir)
    torch.distributed.destroy_process_group()


def test_ranks_change_no_byte(files, vision_tower, built, tmp_path):
    processes = [FORK.Process(target=run_rank, args=(files, vision_tower, tmp_path, rank, 2)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert images(tmp_path) == images(built)


def build_and_die(files, tower, cache_dir, after: int) -> None:
    write, written = Build.write_piece, []

    def write_and_die(*args):
        write(*args)
        written.append(args)
        if len(written) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    Build.write_piece = write_and_die
    build(files, tower, cache_dir)


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_build_goes_on_to_the_same_bytes(files, vision_tower, built, tmp_path, after):
    process = FORK.Process(target=build_and_die, args=(files, vision_tower, tmp_path, after))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("piece-*.arrow"))) == after
    build(files, vision_tower, tmp_path)
    assert images(tmp_path) == images(built)


def test_another_seed_and_number_and_recipe_give_other_views_under_another_key(files, vision_tower, tmp_path):
    few, boxes, keys = files[:4], {}, set()
    asked = {"one": {}, "seed": {"view_seed": 6}, "recipe": {"view_recipe": "slip"}, "more": {"views": 3}}
    for name, options in asked.items():
        build(few, vision_tower, tmp_path / name, image_tokens=None, **options)
        boxes[name] = column(tmp_path / name, "view_boxes")
        keys.add(folder_of(tmp_path / name).name)
    assert len(keys) == len(asked)
    assert not np.isclose(boxes["one"], boxes["seed"]).all(axis=2).any()
    assert not np.isclose(boxes["one"], boxes["recipe"]).all(axis=2).any()
    # More views: the first ones are the same.
    np.testing.assert_array_equal(boxes["more"][:, :2], boxes["one"])
    assert not np.isclose(boxes["one"][:, 0], boxes["one"][:, 1]).all(axis=1).any()
    # Another name of the same recipe is no other cache.
    build(few, vision_tower, tmp_path / "one", image_tokens=None, view_recipe="convirt")
    assert folder_of(tmp_path / "one").name in keys


def test_key_holds_recipe_seed_and_version_only_with_views(monkeypatch):
    assert StoredImages().key == StoredImages(view_seed=3, view_recipe="lovt").key == {}
    asked = StoredImages(views=2, view_recipe="lovt", view_seed=3).key["stored"]
    assert asked == {"version": STORED_VERSION, "views": 2, "view_seed": 3, "view_recipe": RECIPES["lovt"].key}
    assert asked["view_recipe"]["version"] == VIEWS_VERSION
    assert StoredImages(views=2).key == StoredImages(views=2, view_recipe="crop").key
    monkeypatch.setattr(view_recipes, "VIEWS_VERSION", VIEWS_VERSION + 1)
    assert StoredImages(views=2, view_recipe="lovt", view_seed=3).key["stored"] != asked


def test_what_cannot_be_asked_for_is_refused():
    with pytest.raises(ValueError, match="view_recipe must be one of crop, mgca"):
        StoredImages(views=2, view_recipe="crops")
    with pytest.raises(ValueError, match="views -1: expected 0 or more"):
        StoredImages(views=-1)


def test_recipes_that_do_not_turn_keep_boxes_alone(vision_tower):
    asked = StoredImages(views=3, view_recipe="mgca")
    columns = {column.name: column for column in columns_of(vision_tower, asked, "int8")}
    assert list(columns) == ["embedding", "view_embeds", "view_boxes"]
    assert (columns["view_embeds"].shape, columns["view_embeds"].dtype) == ((3, 32), "int8")
    assert (columns["view_boxes"].shape, columns["view_boxes"].dtype) == ((3, 5), "float32")


def test_texts_have_no_views(text_tower):
    inputs = dict(text_tower.processor(["clear lungs"], return_tensors="pt"))
    assert list(extract(text_tower, inputs, StoredTexts())) == ["embedding"]
    assert [column.name for column in columns_of(text_tower, StoredTexts(), "float16")] == ["embedding"]


def test_numbers_that_a_view_cannot_hold_are_faults_of_the_row():
    columns = [Column("embedding", (4,), "float16"), Column("view_embeds", (2, 4), "float16")]
    arrays = {"embedding": np.ones((4, 4), np.float32), "view_embeds": np.ones((4, 2, 4), np.float32)}
    arrays["view_embeds"][1, 1, 2] = 1e6
    arrays["view_embeds"][2, 0, 0] = np.nan
    arrays["view_embeds"][3, 1] = 0
    assert batch_faults(columns, arrays) == {
        1: "view_embeds is NaN or infinite in float16",
        2: "view_embeds is NaN or infinite in float16",
        3: "a vector of view_embeds is all zeros",
    }


def item(path, tower, reading, stored: StoredImages, store=None) -> dict:
    dataset = datasets.Dataset.from_dict({"image": [str(path)]}).with_format("arrow")
    keys = np.array([b"k" * 16], dtype="S16")
    batches = ImageBatches(dataset, np.arange(1), np.arange(1), 1, tower.processor, keys, store, reading, stored)
    return batches[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_hold_no_more_pixels_with_views_than_without(files, vision_tower, tmp_path, workers):
    for batch_size in (1, 4, 64):
        assert images_in_part(batch_size, 0) == batch_size
        for views in (1, 2, 8, 100):
            part = images_in_part(batch_size, views)
            assert part == 1 or batch_size - views <= part * (1 + views) <= batch_size
    # 14 images in batches of 6 and parts of 2; of one part both files are damaged, of another one.
    reading, asked = RadiographImage().reading, StoredImages(views=2)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    paths = [str(broken) if row in (2, 3, 7) else path for row, path in enumerate(files)]
    dataset = datasets.Dataset.from_dict({"image": paths}).with_format("arrow")
    keys = np.array([b"k" * 16] * ROWS, dtype="S16")
    parts = ImageBatches(
        dataset, np.arange(ROWS), np.arange(0, ROWS, 6), 6, vision_tower.processor, keys, None, reading, asked
    )
    assert {len(part["inputs"].get("pixel_values", ())) for part in map(parts.__getitem__, range(len(parts)))} <= {
        0,
        1,
        2,
    }
    batches = list(image_batches(parts, workers, False))
    assert [batch["kept"] for batch in batches] == [[0, 1, 4, 5], [0, 2, 3, 4, 5], [0, 1]]
    assert [list(batch["faults"]) for batch in batches] == [[2, 3], [1], []]
    single = [item(path, vision_tower, reading, asked) for path in paths]
    for first, batch in zip(range(0, ROWS, 6), batches, strict=True):
        alone = [single[first + offset] for offset in batch["kept"]]
        assert batch["digests"] == b"".join(one["digests"] for one in alone)
        for name, values in batch["inputs"].items():
            assert torch.equal(values, torch.cat([one["inputs"][name] for one in alone])), name


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_views_are_of_the_image_as_it_is_read(vision_tower, tmp_path, mode):
    # A 16-bit image of 4,096 grey levels, and a photograph in colour.
    generator = np.random.default_rng(0)
    if mode == "L":
        values = generator.integers(0, 4096, (50, 40)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "image.png")
        picture = Image.fromarray(np.rint(values / 4095 * 255).astype(np.uint8))
    else:
        picture = Image.fromarray(generator.integers(0, 256, (50, 40, 3), dtype=np.uint8))
        picture.save(tmp_path / "image.png")
    reading = RadiographImage(mode=mode).reading
    found = item(tmp_path / "image.png", vision_tower, reading, StoredImages(views=2, view_seed=3))["inputs"]
    processor = vision_tower.processor
    for number in range(2):
        seed = view_seed_of(3, number, content_key(str(tmp_path / "image.png")))
        view, shown = make_view(picture, "crop", seed, 28, processor.resample)
        values = np.asarray(view.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
        mean, std = (np.array(value)[:, None, None] for value in (processor.image_mean, processor.image_std))
        np.testing.assert_allclose(found["view_pixel_values"][0, number], (values - mean) / std, atol=2e-5)
        np.testing.assert_array_equal(found["view_boxes"][0, number], shown.box)


def test_stored_images_give_the_same_views_and_small_ones_are_refused(files, vision_tower, tmp_path):
    asked = StoredImages(views=2)
    # Images with a shorter side of 46 and less are stored as they are.
    store = ImageStore(tmp_path, 46)
    check_store(store, vision_tower.processor, asked)
    plain = item(files[0], vision_tower, store.reading, asked)["inputs"]
    for _ in ("stored", "read"):
        found = item(files[0], vision_tower, store.reading, asked, store)["inputs"]
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert len(list(tmp_path.rglob("*.png"))) == 1
    # Half of the area in 3 : 4 is 0.61 of a side: 28 pixels of 46.
    with pytest.raises(ValueError, match=r"28 pixels.*image_store_size is 45: set image_store_size=46 or more"):
        check_store(ImageStore(tmp_path, 45), vision_tower.processor, asked)
    check_store(ImageStore(tmp_path, 45), vision_tower.processor, StoredImages())
    with pytest.raises(ValueError, match="set image_store_size=115 or more"):
        check_store(store, vision_tower.processor, StoredImages(views=1, view_recipe="slip"))
    with pytest.raises(ValueError, match="image_store_size=46"):
        build(
            files[:2], vision_tower, tmp_path / "cache", view_recipe="crop", image_store=tmp_path, image_store_size=32
        )
