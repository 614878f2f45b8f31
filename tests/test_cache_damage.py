"""Damage to any file of a cache, whatever its size and time say, is found before it is used, and named."""

import json
import logging
import os
import random
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from adaptor_hf.embeddings import build_cache, import_embeddings, open_cache, repair_cache, verify_cache
from adaptor_hf.embeddings.__main__ import main
from adaptor_hf.embeddings.image_store import ImageStore
from adaptor_hf.embeddings.manifest import write_record
from adaptor_hf.embeddings.shards import Build

ROWS = 24
# A copy for readers of a list that lies, checked, in `pairs-<key>/`; and a file to lock, which is empty.
UNUSED = {"excluded.csv"}


def rows_of(folder: Path) -> datasets.Dataset:
    return datasets.Dataset.from_dict({
        "image": [str(folder / f"{row}.png") for row in range(ROWS)],
        "text": [f"clear lungs {row}" for row in range(ROWS)],
        "image_id": [f"i{row}" for row in range(ROWS)],
        "split": ["train"] * (ROWS - 8) + ["validation"] * 8,
    })  # fmt: skip


def build(dataset, towers, cache_dir, **options):
    return build_cache(dataset, *towers, cache_dir, batch_size=4, num_workers=0, piece_rows=8, shard_rows=8, **options)


class StoppedError(Exception):
    """Ends a build after some pieces, as a kill does."""


@pytest.fixture(scope="module")
def towers(tiny_dinov2, tiny_bert):
    return str(tiny_dinov2), str(tiny_bert)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for row in range(2 * ROWS):
        Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / f"{row}.png")
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory, images, towers) -> Path:
    """A folder with every kind of file: two data sets, moved images, an import, a build that was interrupted."""
    folder = tmp_path_factory.mktemp("original") / "cache"
    dataset = rows_of(images)
    build(dataset.select(range(16, ROWS)), towers, folder)
    moved = tmp_path_factory.mktemp("moved")
    shutil.copy(images / "16.png", moved / "16.png")
    column = [str(moved / "16.png"), *dataset["image"][17:]]
    build(dataset.select(range(16, ROWS)).remove_columns("image").add_column("image", column), towers, folder)
    generator = np.random.default_rng(1)
    imported = (generator.normal(size=(ROWS, 8)).astype(np.float32) for _ in range(2))
    import_embeddings(*imported, table=dataset.remove_columns("image"), cache_dir=folder)
    interrupt(dataset.select(range(16)), towers, folder)
    build(dataset, (towers[0], None), folder)
    interrupt(dataset.map(lambda row: {"text": row["text"] + " heart"}), towers, folder)
    return folder


def interrupt(dataset, towers, folder, pieces: int = 1) -> None:
    write, written = Build.write_piece, []

    def stopped(self, *arguments):
        if len(written) == pieces:
            raise StoppedError
        written.append(write(self, *arguments))

    Build.write_piece = stopped
    try:
        with pytest.raises(StoppedError):
            build(dataset, towers, folder)
    finally:
        Build.write_piece = write


@pytest.fixture
def cache_dir(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "cache")


@pytest.fixture
def cache(images, towers, tmp_path):
    """A cache of its own: three shards a side."""
    return build(rows_of(images), towers, tmp_path / "built")


def rewrite(path: Path, data: bytes) -> None:
    """Other content under the same size and time, in place: nothing but its content tells."""
    state = path.stat()
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate(len(data))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def files_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def opened_files(cache) -> list[Path]:
    """The files that a cache is read from, and the one that names it."""
    folders = [cache.path, *(cache.path.parent / name for name in cache.modality_manifests())]
    return [*(path for folder in folders for path in files_under(folder)), cache.path.parent / "latest.json"]


def test_the_folder_has_every_kind_of_file(original):
    names = {re.sub(r"(piece)-\d+-\w+|\d", r"\1", path.name) for path in files_under(original)}
    assert names == UNUSED | {
        "aliases.arrow", "cache.json", "data-.arrow", "latest.json", "pairs.arrow", "piece.arrow", "piece.json",
        "rows.arrow", "towers.json",
    }  # fmt: skip


def test_one_flipped_bit_anywhere_in_any_file_is_found_by_verify_and_the_file_named(cache_dir):
    assert verify_cache(cache_dir)
    generator = random.Random(0)
    for path in files_under(cache_dir):
        if path.relative_to(cache_dir).as_posix() in UNUSED:
            continue
        whole = path.read_bytes()
        for bit in generator.sample(range(8 * len(whole)), min(12, 8 * len(whole))):
            rewrite(path, flipped(whole, bit))
            with pytest.raises((ValueError, OSError)) as raised:
                verify_cache(cache_dir)
            assert path.name in str(raised.value) or path.parent.name in str(raised.value), (path, bit)
        rewrite(path, whole)
    assert verify_cache(cache_dir)


def test_one_flipped_bit_is_found_when_the_cache_is_opened(cache):
    generator = random.Random(1)
    for path in opened_files(cache):
        whole = path.read_bytes()
        for bit in generator.sample(range(8 * len(whole)), 12):
            rewrite(path, flipped(whole, bit))
            with pytest.raises((ValueError, OSError)) as raised:
                # The list of excluded rows is compared when it is read.
                _ = open_cache(cache.path.parent).excluded
            assert path.name in str(raised.value) or path.parent.name in str(raised.value), (path, bit)
        rewrite(path, whole)
    assert len(open_cache(cache.path.parent)) == ROWS


def test_a_file_that_is_cut_anywhere_is_found_also_where_an_arrow_message_ends(cache):
    generator = random.Random(2)
    for path in opened_files(cache):
        whole = path.read_bytes()
        lengths = {0, len(whole) - 1, len(whole) - 8, *generator.sample(range(len(whole)), 3)}
        for length in lengths | ({ends_of_messages(whole)[-1]} if path.suffix == ".arrow" else set()):
            if whole[length:].isspace():
                continue  # the line's end of a JSON file
            rewrite(path, whole[:length])
            with pytest.raises((ValueError, OSError), match=rf"{path.name}|{path.parent.name}"):
                _ = open_cache(cache.path.parent).excluded
        rewrite(path, whole)


def ends_of_messages(stream: bytes) -> list[int]:
    """Where Arrow messages of a stream end: a reader takes any of them for its end."""
    source, ends = pa.BufferReader(stream), []
    for _ in pa.ipc.MessageReader.open_stream(source):
        ends.append(source.tell())
    return ends


def leaves(value, place=()):
    yield place
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*place, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*place, index))


def edited(value, place):
    """The same with another value at a place: of the same type where there is one beside it."""
    copy = json.loads(json.dumps(value))
    parent = copy
    for name in place[:-1]:
        parent = parent[name]
    old = parent[place[-1]]
    changed = {bool: lambda: not old, int: lambda: old + 1, float: lambda: old + 0.01, str: lambda: old + "x",
               list: lambda: [*old, 0], dict: lambda: old | {"more": 0}, type(None): lambda: 1}  # fmt: skip
    parent[place[-1]] = changed[type(old)]()
    return copy


def without(value, place):
    copy = json.loads(json.dumps(value))
    parent = copy
    for name in place[:-1]:
        parent = parent[name]
    del parent[place[-1]]
    return copy


def test_every_edited_or_deleted_field_of_every_json_file_is_found_at_opening(cache):
    edits = 0
    for path in opened_files(cache):
        if path.suffix != ".json":
            continue
        whole = json.loads(path.read_text())
        for place in list(leaves(whole))[1:]:
            for change in (edited, without):
                path.write_text(json.dumps(change(whole, place)))
                with pytest.raises(ValueError, match=rf"{path.name}|{path.parent.name}"):
                    open_cache(cache.path.parent)
                edits += 1
        path.write_text(json.dumps(whole))
        # The digest is of the values: spaces and order do not matter.
        assert len(open_cache(cache.path.parent)) == ROWS
    assert edits > 200


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{}", "[" * 100_000, '{"format": "adaptor_hf.embeddings"}', "\0"]
)
def test_a_malformed_json_file_is_a_message(cache, content):
    for path in opened_files(cache):
        if path.suffix == ".json":
            whole = path.read_bytes()
            path.write_text(content)
            with pytest.raises(ValueError, match=path.name):
                open_cache(cache.path.parent)
            path.write_bytes(whole)


def test_fields_of_wrong_types_are_messages_also_under_a_digest_that_fits(cache):
    manifest = json.loads((cache.path / "cache.json").read_text())
    shards = manifest["shards"]
    for fields in ({"shards": None}, {"shards": [1]}, {"shards": [{"file": "rows.arrow"}]}, {"rows": -1}, {"rows": "1"},
                   {"rows": 7}, {"shards": [shards[0] | {"file": "../rows.arrow"}]}, {"images": "../images"},
                   {"content": "other"}, {"images": 3}, {"key": "0" * 16}):  # fmt: skip
        write_record(cache.path / "cache.json", manifest | fields)
        with pytest.raises(ValueError, match=cache.path.name):
            open_cache(cache.path.parent)


def swap(first: Path, second: Path) -> None:
    one, other = first.read_bytes(), second.read_bytes()
    assert len(one) == len(other)
    rewrite(first, other)
    rewrite(second, one)


@pytest.mark.parametrize("modality", ["images", "texts"])
def test_two_shards_that_changed_places_are_found(cache, modality):
    folder = cache.path.parent / cache.manifest[modality]
    swap(folder / "data-00000.arrow", folder / "data-00001.arrow")
    with pytest.raises(ValueError, match=r"data-0000[01].arrow is damaged"):
        open_cache(cache.path)


def test_a_shard_and_a_whole_folder_of_another_cache_are_found(cache, images, towers, tmp_path):
    reverse = rows_of(images).select(range(ROWS - 1, -1, -1))
    other = build(reverse, towers, tmp_path / "other")
    name = cache.manifest["images"]
    assert other.manifest["images"] == name
    mine, theirs = cache.path.parent / name, other.path.parent / name
    whole = (mine / "data-00001.arrow").read_bytes()
    rewrite(mine / "data-00001.arrow", (theirs / "data-00001.arrow").read_bytes())
    with pytest.raises(ValueError, match=r"data-00001.arrow is damaged"):
        open_cache(cache.path)
    rewrite(mine / "data-00001.arrow", whole)
    # All of it fits itself, and has other rows in the places that the pairs name.
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    with pytest.raises(ValueError, match=rf"made for other files than those of {name}"):
        open_cache(cache.path)
    with pytest.raises(ValueError, match=rf"made for other files than those of {name}"):
        verify_cache(cache.path.parent)
    expected = other.image_embeddings().flip(0)
    assert torch.equal(build(rows_of(images), towers, cache.path.parent).image_embeddings(), expected)


def test_a_folder_embedded_again_in_another_order_gets_other_pairs(images, towers, tmp_path):
    """What the messages say to do: delete the damaged folder, run the same build again."""
    first, second = rows_of(images).select(range(8)), rows_of(images).select(range(8, ROWS))
    expected = build(first, towers, tmp_path).image_embeddings()
    other = build(second, towers, tmp_path)
    rows = other.image_embeddings()
    shutil.rmtree(tmp_path / other.manifest["images"])
    again = build(second, towers, tmp_path)
    assert again.path == other.path
    torch.testing.assert_close(again.image_embeddings(), rows, rtol=0, atol=0)
    torch.testing.assert_close(build(first, towers, tmp_path).image_embeddings(), expected, rtol=0, atol=0)


def test_damaged_pairs_are_written_anew_by_the_same_build(cache, images, towers, caplog):
    expected = cache.image_embeddings()
    for name in ("rows.arrow", "pairs.arrow", "excluded.csv", "cache.json"):
        path = cache.path / name
        whole = path.read_bytes()
        rewrite(path, flipped(whole, 4 * len(whole)))
        caplog.clear()
        assert torch.equal(build(rows_of(images), towers, cache.path.parent).image_embeddings(), expected)
        assert name in caplog.text
        assert path.read_bytes() == whole


def test_a_damaged_shard_stops_a_build_that_would_use_it(cache, images, towers):
    path = cache.path.parent / cache.manifest["texts"] / "data-00002.arrow"
    whole = path.read_bytes()
    rewrite(path, flipped(whole, 8 * (len(whole) // 2)))
    with pytest.raises(ValueError, match=r"data-00002.arrow is damaged.*only their texts are embedded anew"):
        build(rows_of(images), towers, cache.path.parent)
    rewrite(path, whole)
    shutil.rmtree(path.parent)
    assert torch.equal(build(rows_of(images), towers, cache.path.parent).text_embeddings(), cache.text_embeddings())


@pytest.mark.parametrize("damage", ["bit", "cut", "message", "other piece", "record", "record of another piece"])
def test_a_piece_of_an_interrupted_build_that_was_damaged_is_computed_again(images, towers, tmp_path, damage, caplog):
    dataset = rows_of(images)
    expected = build(dataset, towers, tmp_path / "expected")
    interrupt(dataset, towers, tmp_path / "cache", pieces=2)
    first, second = sorted((tmp_path / "cache").rglob("piece-*.arrow"))
    whole, record = first.read_bytes(), first.with_suffix(".json")
    if damage == "bit":
        rewrite(first, flipped(whole, 8 * whole.index(b"embedding") + 1))
    elif damage == "cut":
        rewrite(first, whole[:-1])
    elif damage == "message":
        rewrite(first, whole[: ends_of_messages(whole)[-1]])
    elif damage == "record":
        rewrite(record, record.read_bytes().replace(b'"faults": {', b'"faults": {"a": "b"'))
    elif damage == "record of another piece":
        rewrite(first, second.read_bytes())
        rewrite(record, second.with_suffix(".json").read_bytes())
    else:
        rewrite(first, second.read_bytes())
    built = build(dataset, towers, tmp_path / "cache")
    named, what = {
        "cut": (first, "it is truncated or was replaced"),
        "message": (first, "it is truncated or was replaced"),
        "record": (record, "is damaged or was edited"),
        "record of another piece": (record, "is of another piece"),
    }.get(damage, (first, "is damaged: its XXH3-128 is"))
    assert any(named.name in message and what in message for message in caplog.messages)
    assert second.stem not in caplog.text
    for path in files_under(expected.path.parent):
        if path.suffix == ".arrow":
            assert (tmp_path / "cache" / path.relative_to(expected.path.parent)).read_bytes() == path.read_bytes()
    assert torch.equal(built.image_embeddings(), expected.image_embeddings())


def test_a_piece_that_is_damaged_before_it_is_merged_stops_the_build_and_loses_no_row(images, towers, tmp_path):
    dataset = rows_of(images)
    write = Build.write_piece

    def damaging(self, index, *arguments):
        write(self, index, *arguments)
        if index == 1:
            path = self.piece_path(index)
            rewrite(path, flipped(path.read_bytes(), 8 * 1000))

    Build.write_piece = damaging
    try:
        with pytest.raises(ValueError, match=r"piece-000001-\w+.arrow was damaged after it was written"):
            build(dataset, towers, tmp_path)
    finally:
        Build.write_piece = write
    assert len(build(dataset, towers, tmp_path)) == ROWS


def test_damaged_names_of_moved_images_are_not_used(images, towers, tmp_path, caplog):
    dataset = rows_of(images)
    build(dataset, towers, tmp_path / "cache")
    moved = shutil.copytree(images, tmp_path / "moved")
    expected = build(rows_of(moved), towers, tmp_path / "cache").image_embeddings()
    path = next((tmp_path / "cache").rglob("aliases.arrow"))
    whole = path.read_bytes()
    rewrite(path, flipped(whole, 8 * (len(whole) - 100)))
    assert torch.equal(build(rows_of(moved), towers, tmp_path / "cache").image_embeddings(), expected)
    assert "aliases.arrow is damaged" in caplog.text
    assert path.read_bytes() == whole


def test_stored_images_that_changed_places_are_found(images, tmp_path, caplog):
    store = ImageStore(tmp_path, 32)
    keys = [b"a" * 16, b"b" * 16]
    for row, key in enumerate(keys):
        store.write(key, Image.open(images / f"{row}.png"), bytes(16))
    assert all(store.read(key) for key in keys)
    whole = [store.path(key).read_bytes() for key in keys]
    store.path(keys[0]).write_bytes(whole[1])
    assert store.read(keys[0]) is None
    assert "is damaged" in caplog.text
    for bit in random.Random(3).sample(range(8 * len(whole[0])), 40):
        store.path(keys[0]).write_bytes(flipped(whole[0], bit))
        assert store.read(keys[0]) is None


def test_weights_that_changed_under_their_size_and_time_are_found_before_they_embed(images, tiny_bert, tmp_path):
    tower = shutil.copytree(tiny_bert, tmp_path / "tower")
    dataset = rows_of(images).remove_columns("image")
    build(dataset, (None, str(tower)), tmp_path / "cache")
    weights = tower / "model.safetensors"
    data = weights.read_bytes()
    rewrite(weights, flipped(data, 8 * len(data) - 10))
    more = dataset.map(lambda row: {"text": row["text"] + " heart"})
    with pytest.raises(ValueError, match=r"text tower is another one than the cache was begun with: weights differ"):
        build(more, (None, str(tower)), tmp_path / "cache")
    rewrite(weights, data)
    assert len(build(more, (None, str(tower)), tmp_path / "cache")) == ROWS


def test_a_damaged_note_of_towers_is_not_used(cache, images, towers, caplog):
    path = cache.path.parent / "towers.json"
    record = json.loads(path.read_text())
    for tower in record["towers"].values():
        tower["spec"]["image_processor"] = None
    path.write_text(json.dumps(record))
    caplog.set_level(logging.INFO)
    assert build(rows_of(images), towers, cache.path.parent).fingerprint == cache.fingerprint
    assert "towers.json is damaged or was edited" in caplog.text


class TestRepair:
    def test_only_the_rows_of_damaged_shards_are_embedded_again(self, cache, images, towers, caplog):
        folder, expected = cache.path.parent, [cache.image_embeddings(), cache.text_embeddings()]
        other = build(rows_of(images).select(range(16, ROWS)), towers, folder)
        rows = other.image_embeddings()
        damaged = folder / cache.manifest["images"] / "data-00001.arrow"
        rewrite(damaged, flipped(damaged.read_bytes(), 5000))
        (folder / cache.manifest["texts"] / "data-00000.arrow").unlink()
        caplog.set_level(logging.INFO)
        with pytest.raises((ValueError, FileNotFoundError), match=r"adaptor_hf.embeddings repair"):
            open_cache(cache.path)
        names = {f"{cache.manifest['images']}/data-00001.arrow": 8, f"{cache.manifest['texts']}/data-00000.arrow": 8}
        assert repair_cache(folder) == names
        assert repair_cache(folder) == {}
        assert not damaged.exists()
        with pytest.raises(ValueError, match=r"was damaged and given up. Run the build of these pairs again"):
            open_cache(cache.path)
        # Pairs that need none of the lost rows open as before.
        assert torch.equal(open_cache(other.path).image_embeddings(), rows)
        kept = {path: path.read_bytes() for path in folder.glob("*s-*/data-*.arrow")}
        again = build(rows_of(images), towers, folder)
        assert again.path == cache.path
        for found, before in zip([again.image_embeddings(), again.text_embeddings()], expected, strict=True):
            torch.testing.assert_close(found, before, rtol=1e-3, atol=1e-4)
        assert {path: path.read_bytes() for path in kept} == kept
        added = {path.name for path in folder.glob("*s-*/data-*.arrow") if path not in kept}
        assert added == {"data-00003.arrow"}
        assert all((folder / name).is_file() for name in again.files())
        assert verify_cache(folder)

    def test_the_command_says_what_was_given_up(self, cache, capsys):
        folder = cache.path.parent
        path = folder / cache.manifest["texts"] / "data-00002.arrow"
        rewrite(path, flipped(path.read_bytes(), 5000))
        assert main(["repair", str(folder)]) == 0
        assert f"{path.parent.name}/{path.name}: 8 rows are given up" in capsys.readouterr().out
        assert main(["info", str(folder)]) == 1
        assert "given up" in capsys.readouterr().err
        assert main(["repair", str(folder / "nothing")]) == 1

    def test_imported_embeddings_are_imported_again(self, tmp_path):
        embeds = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
        cache = import_embeddings(embeds, cache_dir=tmp_path)
        path = next(tmp_path.glob("images-*/data-00000.arrow"))
        rewrite(path, flipped(path.read_bytes(), 5000))
        with pytest.raises(ValueError, match="import again"):
            repair_cache(tmp_path)
        shutil.rmtree(path.parent)
        assert torch.equal(import_embeddings(embeds, cache_dir=tmp_path).image_embeddings(), torch.from_numpy(embeds))
        assert len(open_cache(cache.path)) == ROWS


def test_a_build_that_checks_nothing_gives_edited_metadata_no_new_digest(cache, images, towers):
    path = cache.path.parent / cache.manifest["texts"] / "cache.json"
    manifest = json.loads(path.read_text())
    manifest["tower"]["max_length"] = 3
    path.write_text(json.dumps(manifest))
    more = rows_of(images).map(lambda row: {"text": row["text"] + " heart"})
    with pytest.raises(ValueError, match=r"cache.json is damaged or was edited"):
        build(more, towers, cache.path.parent, check="off")


def test_a_damaged_copy_of_the_list_of_excluded_rows_is_written_anew(cache, images, towers):
    path = cache.path.parent / "excluded.csv"
    whole = path.read_bytes()
    path.write_bytes(b"\xff" + whole[1:])
    build(rows_of(images), towers, cache.path.parent)
    assert path.read_bytes() == whole
