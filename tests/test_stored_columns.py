"""Columns beside the pooled vectors: in batches from disk and on a device, in views, workers and manifests."""

import json
import os
import pickle
import random
import shutil

import datasets
import numpy as np
import pytest
import torch
from stored_columns import IMAGE_COLUMNS, TEXT_COLUMNS, cache_with_columns
from test_cache_damage import edited, flipped, leaves, rewrite, without
from torch.utils.data import DataLoader

from adaptor_hf.embeddings import digests, open_cache, verify_cache
from adaptor_hf.embeddings.__main__ import main
from adaptor_hf.embeddings.columns import Ragged
from adaptor_hf.embeddings.files import map_batch
from adaptor_hf.embeddings.manifest import read_manifest, write_record
from adaptor_hf.embeddings.verify import written_digests

ROWS = 40
NAMES = [column.name for column in IMAGE_COLUMNS + TEXT_COLUMNS]
WITHOUT_TEXT = 5


def table() -> datasets.Dataset:
    texts = [f"report {row}" for row in range(ROWS)]
    texts[WITHOUT_TEXT] = None
    return datasets.Dataset.from_dict({
        "image_id": [f"i{row}" for row in range(ROWS)], "text": texts,
        "split": ["train"] * (ROWS - 8) + ["validation"] * 8,
    })  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two caches, one of them with int8 pooled vectors, and what was written."""
    folder = tmp_path_factory.mktemp("columns")
    return {int8: cache_with_columns(folder / str(int8), ROWS, int8=int8, table=table()) for int8 in (False, True)}


@pytest.fixture(params=[False, True], ids=["float32", "int8"])
def cache(made, request):
    return made[request.param][0]


@pytest.fixture
def copy(made, tmp_path):
    """A cache of its own to damage."""
    return open_cache(shutil.copytree(made[False][0].path.parent, tmp_path / "cache"))


def expected_row(column, written, row: int) -> np.ndarray:
    """What a row is in a batch, by the format's definition, in float64 where int8 is stored."""
    values = written[column.name]
    one = values.values[values.offsets[row] : values.offsets[row + 1]] if isinstance(values, Ragged) else values[row]
    if column.dtype == "int8":
        scale = np.float32(np.abs(one.astype(np.float32)).max(axis=-1, keepdims=True, initial=0) / np.float32(127))
        steps = np.round(one.astype(np.float32) / np.where(scale > 0, scale, 1))
        return (steps * scale.astype(np.float64)).astype(np.float16)
    return one.astype(np.int64 if column.dtype == "int16" else column.dtype)


def test_batches_have_the_columns_that_were_written(made):
    cache, written = made[False]
    view = cache.with_columns(*NAMES)
    rows = [7, WITHOUT_TEXT, 39, 7, 0]
    batch = view[rows]
    assert list(batch) == view.column_names
    assert set(batch) == {*cache[rows], *NAMES, "text_attention_mask"}
    text_rows = view.text_rows[rows]
    for column in IMAGE_COLUMNS + TEXT_COLUMNS:
        found = batch[column.name]
        numbers = view.image_rows[rows] if column in IMAGE_COLUMNS else text_rows
        for place, row in enumerate(numbers.tolist()):
            if column in TEXT_COLUMNS:
                lengths = np.diff(written[column.name].offsets)
                size = lengths[row] if row >= 0 else 0
                assert found.shape[1] == max(lengths[row] for row in text_rows if row >= 0)
                assert (found[place, size:] == (-1 if column.dtype == "int16" else 0)).all()
                assert batch["text_attention_mask"][place].tolist() == [1] * size + [0] * (found.shape[1] - size)
                if row < 0:
                    continue
                mine = found[place, :size].numpy()
            else:
                mine = found[place].numpy()
            expected = expected_row(column, written, row)
            assert mine.dtype == expected.dtype
            np.testing.assert_array_equal(mine, expected)


def test_by_default_a_batch_is_as_before(made):
    cache = made[False][0]
    assert list(cache[[1, 2]]) == ["image_embeds", "text_embeds", "text_row", "study", "row"]
    assert cache.columns == ()
    assert sorted(cache.stored_columns) == sorted(NAMES)
    assert cache.stored_columns["image_tokens"].info == {"grid": [2, 2], "prefix": 1}


def test_int8_vectors_are_given_back_as_float16_within_half_a_step(made):
    (exact, _), (cache, _) = made[False], made[True]
    for name in ("image_embeddings", "text_embeddings"):
        expected, found = (getattr(one, name)().double() for one in (exact, cache))
        assert getattr(cache, name)().dtype == torch.float16
        absent = expected.isnan().any(dim=1)
        assert absent.sum() == (name == "text_embeddings")
        assert (found.isnan().all(dim=1) == absent).all()
        step = expected.abs().amax(dim=1, keepdim=True) / 127
        # Half a step, and half of the last of float16's eleven bits.
        assert ((found - expected).abs() <= step / 2 + expected.abs() * 2**-11 + 1e-6)[~absent].all()
        assert (found != expected)[~absent].any()
    assert torch.equal(cache[[3, 0]]["image_embeds"], cache.image_embeddings([3, 0]))


def test_views_keep_their_columns(cache):
    view = open_cache(cache.path, "train", columns=("words", "regions"))
    assert view.columns == ("words", "regions")
    for derived in (view.select([4, 2]), view.paired(), view.split("train"), pickle.loads(pickle.dumps(view))):
        assert derived.columns == view.columns
        assert list(derived[[0, 1]]) == derived.column_names
    assert torch.equal(view.select([4, 2])[:]["regions"], view[[4, 2]]["regions"])
    assert view.with_columns().column_names == cache.column_names
    assert cache.columns == ()
    assert view.with_columns("words", "words").columns == ("words",)
    one, part = view[3], view[3:5]
    assert one["regions"].shape == (4, 3)
    assert torch.equal(part["words"][0, : len(one["words"])], one["words"])
    assert (part["words"][0, len(one["words"]) :] == -1).all()


def test_a_column_that_is_not_there_is_named_with_those_that_are_and_the_option_that_makes_it(cache, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"has no sentences: it keeps .*words.*\. Build it again with --sentences \(in Python",
    ):
        cache.with_columns("sentences")
    with pytest.raises(ValueError, match=r"has no view_tokens_: .*\. What a build can store: .*view_boxes"):
        open_cache(cache.path, columns=["view_tokens_"])
    from adaptor_hf.embeddings import import_embeddings

    plain = import_embeddings(np.ones((3, 4), np.float32), cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"one vector an image and a text\. Build it again with --image_tokens all"):
        plain.with_columns("image_tokens")


@pytest.mark.parametrize("rows", [[7, WITHOUT_TEXT, 39, 7, 0], [WITHOUT_TEXT], []], ids=str)
def test_a_resident_cache_gives_the_same_batches_bit_for_bit(cache, rows):
    view = cache.with_columns(*NAMES)
    resident = view.to_device("cpu")
    assert resident.column_names == view.column_names
    expected, found = view.__getitems__(rows), resident.__getitems__(rows)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].numpy().tobytes() == values.numpy().tobytes(), name
        assert found[name].shape == values.shape
    part = view.select([9, 3])
    assert torch.equal(part.to_device("cpu")[[1]]["view_tokens"], view[[3]]["view_tokens"])


def test_what_is_resident_stays_as_it_is_stored(made):
    cache = made[True][0]
    view = cache.select([2, 9, 2]).with_columns("image_tokens", "text_tokens")
    held = {one._name: one._parts for one in view.to_device("cpu")._held}
    assert held["image_embeds"][0].dtype == held["image_tokens"][0].dtype == torch.int8
    assert held["image_tokens"][0].shape == (2, 5, 6)
    assert held["image_tokens"][1].shape == (2, 5)
    lengths = view[:2]["text_attention_mask"].sum()
    assert held["text_tokens"][0].shape == (lengths, 6)
    bytes_held = sum(part.nbytes for name in ("image_embeds", "text_embeds", "image_tokens") for part in held[name])
    files = [one for name, one in view.modality_manifests().items() if name.startswith("texts")]
    size = sum(entry["bytes"] for entry in files[0]["columns"]["text_tokens"]["shards"]) / files[0]["rows"]
    assert view.num_bytes == bytes_held + int(2 * size)


def test_workers_of_a_loader_read_columns(cache):
    view = cache.with_columns("image_tokens", "text_tokens")
    assert len(pickle.dumps(view)) < 1000
    loader = DataLoader(view, batch_size=16, num_workers=2, collate_fn=lambda batch: batch)
    tokens = torch.cat([batch["image_tokens"] for batch in loader])
    assert torch.equal(tokens, view[:]["image_tokens"])


class TestManifest:
    def test_only_what_has_columns_or_int8_is_of_version_3(self, made, copy):
        for cache, _ in made.values():
            assert cache.manifest["version"] == 2
            assert all(manifest["version"] == 3 for manifest in cache.modality_manifests().values())
        folder = copy.path.parent / copy.manifest["images"]
        manifest = json.loads((folder / "cache.json").read_text())
        del manifest["columns"]
        assert write_record(folder / "cache.json", manifest)["version"] == 2
        assert open_cache(copy.path).stored_columns.keys() == {column.name for column in TEXT_COLUMNS}

    def test_every_edited_or_deleted_field_is_found(self, copy):
        path = copy.path.parent / copy.manifest["texts"] / "cache.json"
        whole = json.loads(path.read_text())
        edits = 0
        for place in leaves(whole["columns"]):
            for change in (edited, without):
                path.write_text(json.dumps(change(whole, ("columns", *place))))
                with pytest.raises(ValueError, match=path.parent.name):
                    open_cache(copy.path)
                edits += 1
        assert edits > 100

    def test_wrong_fields_are_messages_also_under_a_digest_that_fits(self, copy):
        folder = copy.path.parent / copy.manifest["texts"]
        whole = json.loads((folder / "cache.json").read_text())
        column = whole["columns"]["words"]
        shard = column["shards"][0]
        for change, named in (
            ({"columns": {}}, "columns must be an object"),
            ({"columns": []}, "columns must be an object"),
            ({"columns": {"words": []}}, "'words' in columns is no column"),
            ({"columns": {"../words": column}}, "'../words' in columns is no column"),
            ({"columns": {"data": column}}, "'data' in columns is no column"),
            ({"columns": {"words": column | {"shape": []}}}, "shape must be"),
            ({"columns": {"words": column | {"shape": [None, 0]}}}, "shape must be"),
            ({"columns": {"words": column | {"shape": [2, [3]]}}}, "shape must be"),
            ({"columns": {"words": column | {"shape": "2"}}}, "shape is of type str, expected a list"),
            ({"columns": {"words": column | {"dtype": "object"}}}, "dtype must be one of"),
            ({"columns": {"words": column | {"dtype": ["int8"]}}}, "dtype is of type list"),
            ({"columns": {"words": column | {"shards": None}}}, "shards is of type NoneType"),
            ({"columns": {"words": column | {"shards": [3]}}}, "words has an entry that is no object"),
            ({"columns": {"words": column | {"shards": column["shards"][1:]}}}, "files of words have"),
            (
                {"columns": {"words": column | {"shards": [shard | {"file": "../words-0.arrow"}]}}},
                "does not lie beside",
            ),
            ({"columns": {"words": column | {"shards": [shard | {"sha256": None}, *column["shards"][1:]]}}}, "sha256"),
            (
                {"columns": {"words": column | {"shards": whole["columns"]["text_tokens"]["shards"]}}},
                "words names files of another column",
            ),
            (
                {"columns": {"words": column | {"shards": [shard | {"rows": 0}, *column["shards"]]}}},
                "files of words have",
            ),
            ({"dtype": "int16"}, "dtype is 'int16'"),
        ):
            write_record(folder / "cache.json", whole | change)
            with pytest.raises(ValueError, match=named) as raised:
                open_cache(copy.path)
            assert folder.name in str(raised.value)

    def test_columns_under_version_2_are_damage(self, copy, monkeypatch):
        folder = copy.path.parent / copy.manifest["texts"]
        whole = json.loads((folder / "cache.json").read_text())
        monkeypatch.setattr("adaptor_hf.embeddings.manifest.COLUMNS_VERSION", 2)
        write_record(folder / "cache.json", whole)
        monkeypatch.undo()
        with pytest.raises(ValueError, match="version is 2, columns and int8 need 3"):
            read_manifest(folder)

    def test_a_column_in_the_place_of_another_is_a_message(self, copy):
        """Digests fit, and the file holds something else than the manifest says."""
        folder = copy.path.parent / copy.manifest["images"]
        whole = json.loads((folder / "cache.json").read_text())
        for change, named in (({"shape": [3, 4]}, None), ({"dtype": "float16"}, "float32"), ({"shape": [4, 4]}, "12")):
            changed = whole["columns"] | {"regions": whole["columns"]["regions"] | change}
            write_record(folder / "cache.json", whole | {"columns": changed})
            view = open_cache(copy.path, columns=["regions"])
            if named is None:
                assert view[0]["regions"].shape == (3, 4)
                continue
            with pytest.raises(ValueError, match=r"regions-00000.arrow: column 'regions' must be"):
                view[0]


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that are compared from now on."""
    names, compare = [], digests._digest
    monkeypatch.setattr(digests, "_digest", lambda item: names.append(item[0].name) or compare(item))
    return names


class TestChecks:
    def test_files_of_a_column_are_compared_when_they_are_first_read(self, copy, read):
        files = {
            name: [entry["file"] for entry in column["shards"]]
            for manifest in copy.modality_manifests().values()
            for name, column in manifest["columns"].items()
        }
        assert all(len(names) > 1 for names in files.values())
        opened = open_cache(copy.path, columns=["regions"])
        assert not [name for name in read if not name.startswith(("data-", "rows", "pairs"))]
        read.clear()
        _ = opened[0], opened[0]
        assert read == files["regions"][:1]
        _ = opened[:]
        assert read == files["regions"]
        read.clear()
        # A worker opens what this process has opened; of the columns it compares what it reads.
        worker = pickle.loads(pickle.dumps(opened))
        _ = worker[0]
        assert read == files["regions"][:1]
        read.clear()
        full = open_cache(copy.path, check="full")
        assert {name for names in files.values() for name in names} <= set(read)
        read.clear()
        for one in (full, pickle.loads(pickle.dumps(full))):
            _ = one.with_columns(*files)[:]
        assert read == []
        _ = open_cache(copy.path, check="off", columns=list(files))[:]
        assert read == []

    def test_a_flipped_bit_in_any_file_is_found_and_named(self, copy):
        generator = random.Random(0)
        folder = copy.path.parent
        for path in sorted(folder.glob("*s-*/*-00001.arrow")):
            if path.name.startswith("data-"):
                continue  # tested with the caches that have no columns
            whole = path.read_bytes()
            for bit in generator.sample(range(8 * len(whole)), 2):
                rewrite(path, flipped(whole, bit))
                opened = open_cache(copy.path, columns=NAMES)
                with pytest.raises(ValueError, match=rf"{path.name} is damaged: its XXH3-128"):
                    _ = opened[:]
                with pytest.raises(ValueError, match=rf"{path.name} is damaged: its XXH3-128"):
                    opened.to_device("cpu")
                with pytest.raises(ValueError, match=rf"{path.name} is damaged: its XXH3-128"):
                    open_cache(copy.path, check="full")
            with pytest.raises(ValueError, match=rf"{path.name} is damaged: its SHA-256"):
                verify_cache(folder)
            rewrite(path, whole[:-1])
            with pytest.raises(ValueError, match=rf"{path.name} has \d+ bytes"):
                open_cache(copy.path, columns=NAMES, check="off")
            plain = open_cache(copy.path)
            path.unlink()
            with pytest.raises(FileNotFoundError, match=rf"{path.name} is missing"):
                plain.with_columns(*NAMES)
            with pytest.raises(FileNotFoundError, match=rf"{path.name} is missing"):
                open_cache(copy.path, columns=NAMES, check="off")
            path.write_bytes(whole)
        assert verify_cache(folder)
        assert len(open_cache(copy.path, columns=NAMES)[:]["regions"]) == ROWS

    def test_files_of_columns_are_among_those_of_the_cache(self, copy):
        folder = copy.path.parent
        there = {path.relative_to(folder).as_posix() for path in folder.glob("*s-*/*.*")}
        assert set(copy.files()) == there - {f"{name}/cache.json" for name in copy.modality_manifests()}
        named = {name for name in copy.files() if not name.endswith("cache.json")}
        assert set(written_digests(folder)) == named


def test_info_says_what_is_stored(cache, capsys):
    assert main(["info", str(cache.path)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert sorted(info["columns"]) == sorted(NAMES)
    for name, fields in info["columns"].items():
        column = cache.stored_columns[name]
        assert fields.pop("megabytes") >= 0
        assert fields == {"shape": list(column.shape), "dtype": column.dtype} | column.info
    sizes = [cache.path.parent.joinpath(name).stat().st_size for name in cache.files()]
    assert info["megabytes"] == round(sum(sizes) / 1e6, 1)


@pytest.mark.parametrize("damage", ["descending", "too far", "of scales"])
def test_rows_that_begin_and_end_elsewhere_are_named_though_digests_are_not_compared(copy, damage):
    """With `check="off"`, a number out of place must not be taken for a place in memory."""
    folder = copy.path.parent / copy.manifest["texts"]
    path = folder / "text_tokens-00000.arrow"
    batch = map_batch(path)
    name = "text_tokens_scale" if damage == "of scales" else "text_tokens"
    offsets = np.frombuffer(batch.column(name).buffers()[1], np.int64)
    changed = offsets.copy()
    changed[1 if damage == "descending" else -1] += 1000
    data = path.read_bytes()
    place = data.index(offsets.tobytes())
    if damage == "of scales":
        place = data.index(offsets.tobytes(), place + 8)
    rewrite(path, data[:place] + changed.tobytes() + data[place + changed.nbytes :])
    opened = open_cache(copy.path, check="off", columns=["text_tokens"])
    with pytest.raises(ValueError, match=r"text_tokens-00000.arrow is damaged: where its rows begin"):
        _ = opened[:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cache_resident_on_a_gpu_gives_the_batches_of_the_cpu(cache):
    rows = [7, WITHOUT_TEXT, 39, 7, 0]
    view = cache.with_columns(*NAMES)
    found = view.to_device("cuda")[rows]
    for name, values in view[rows].items():
        assert found[name].cpu().numpy().tobytes() == values.numpy().tobytes(), name


class TestLargeRows:
    """Rows that are read with a call each are those that a mapping gives."""

    @pytest.mark.parametrize("most", [None, 7], ids=["whole", "in parts"])
    def test_they_are_the_same(self, cache, monkeypatch, most):
        rows = [7, WITHOUT_TEXT, 39, 7, 0]
        expected = cache.with_columns(*NAMES)[rows]
        monkeypatch.setattr("adaptor_hf.embeddings.vectors.LARGE_ROW", 0)
        calls, preadv = [], os.preadv

        def read(file, buffers, place):
            calls.append(place)
            return preadv(file, [buffers[0][:most]], place)

        monkeypatch.setattr(os, "preadv", read)
        opened = open_cache(cache.path, columns=NAMES)
        for found in (opened[rows], pickle.loads(pickle.dumps(opened))[rows]):
            for name, values in expected.items():
                assert found[name].numpy().tobytes() == values.numpy().tobytes(), name
        assert len(calls) > 100

    def test_a_file_that_is_cut_while_it_is_open_is_named(self, copy, monkeypatch):
        monkeypatch.setattr("adaptor_hf.embeddings.vectors.LARGE_ROW", 0)
        opened = open_cache(copy.path, columns=["regions"])
        _ = opened[0]
        path = copy.path.parent / copy.manifest["images"] / "regions-00000.arrow"
        os.truncate(path, 8)
        with pytest.raises(ValueError, match=r"regions-00000.arrow has become shorter"):
            opened[0]
