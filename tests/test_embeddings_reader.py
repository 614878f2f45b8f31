"""Reading a cache, checking it, moving it; importing embeddings from elsewhere."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from torch.utils.data import DataLoader

from adaptor_hf.embeddings import import_embeddings, open_cache, verify_cache
from adaptor_hf.embeddings.__main__ import main

ROWS, WIDTH = 100, 8


def table(rows: int = ROWS, **columns) -> datasets.Dataset:
    values = {
        "image_id": [f"i{row}" for row in range(rows)],
        "patient_id": [f"p{row // 4}" for row in range(rows)],
        "study_id": ["a" if row % 4 < 2 else "b" for row in range(rows)],
        "text": [f"report {row // 2}" for row in range(rows)],
        "split": ["train"] * (rows - 20) + ["validation"] * 20,
    }
    return datasets.Dataset.from_dict(values | columns)


def vectors(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float16)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    return vectors(seed=1), np.repeat(vectors(ROWS // 2, seed=2), 2, axis=0)


@pytest.fixture
def cache(arrays, tmp_path, monkeypatch):
    """A cache of several shards a side."""
    monkeypatch.setattr("adaptor_hf.embeddings.importing.SHARD_ROWS", 16)
    return import_embeddings(*arrays, table=table(), cache_dir=tmp_path / "cache")


def image_shard(cache, index: int = 0) -> Path:
    return cache.path.parent / cache.manifest["images"] / f"data-{index:05d}.arrow"


def test_a_batch_gathers_over_shards_in_the_order_asked_for(cache, arrays):
    rows = np.random.default_rng(3).permutation(ROWS)[:64]
    batch = cache.__getitems__(rows.tolist())
    assert batch["image_embeds"].dtype == torch.float16
    np.testing.assert_array_equal(batch["image_embeds"].numpy(), arrays[0][rows])
    np.testing.assert_array_equal(batch["text_embeds"].numpy(), arrays[1][rows])
    np.testing.assert_array_equal(batch["row"].numpy(), rows)
    assert batch["text_row"].dtype == batch["study"].dtype == batch["row"].dtype == torch.int64
    assert list(batch) == cache.column_names


def test_reading_allocates_no_arrow_memory(cache):
    before = pa.total_allocated_bytes()
    open_cache(cache.path).__getitems__(list(range(ROWS)))
    assert pa.total_allocated_bytes() == before


def test_pairs_written_in_parts_are_the_same_pairs(arrays, tmp_path, monkeypatch):
    """Ids, codes of studies and the fingerprint do not depend on the size of the parts, also with rows left out."""
    image = arrays[0].copy()
    image[[3, 50, 51]] = np.nan
    study = [None if row % 7 == 0 else "a" if row % 4 < 2 else "b" for row in range(ROWS)]

    def build(part: int):
        monkeypatch.setattr("adaptor_hf.embeddings.pairs.BATCH_ROWS", part)
        folder = tmp_path / str(part)
        return import_embeddings(image, arrays[1], table(study_id=study), folder, max_fault_fraction=0.1)

    whole, parts = build(1000), build(7)
    assert parts.fingerprint == whole.fingerprint
    assert parts.pairs[:] == whole.pairs[:]
    batch = parts[:]
    for name, values in whole[:].items():
        assert torch.equal(batch[name], values)
    codes = {}
    ids = zip(whole.pairs["patient_id"][:], whole.pairs["study_id"][:], batch["study"].tolist(), strict=True)
    for patient, name, code in ids:
        codes.setdefault((patient, name) if name is not None else len(codes), set()).add(code)
    assert all(len(found) == 1 for found in codes.values())
    assert len(set().union(*codes.values())) == len(codes)
    assert verify_cache(tmp_path / "7")
    other = [*table()["patient_id"][:-1], "another"]
    monkeypatch.setattr("adaptor_hf.embeddings.pairs.BATCH_ROWS", 7)
    changed = import_embeddings(
        image, arrays[1], table(study_id=study, patient_id=other), tmp_path / "7", max_fault_fraction=0.1
    )
    assert changed.fingerprint != whole.fingerprint


def test_indexing_by_number_slice_list_and_from_the_end(cache, arrays):
    np.testing.assert_array_equal(cache[3]["image_embeds"].numpy(), arrays[0][3])
    np.testing.assert_array_equal(cache[-1]["image_embeds"].numpy(), arrays[0][-1])
    np.testing.assert_array_equal(cache[10:20:3]["image_embeds"].numpy(), arrays[0][10:20:3])
    np.testing.assert_array_equal(cache[[5, 2]]["text_embeds"].numpy(), arrays[1][[5, 2]])
    for bad in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError, match="100 rows"):
            cache[bad]


def test_views_are_of_rows_and_share_the_fingerprint(cache, arrays):
    train, validation = cache.split("train"), open_cache(cache.path.parent, "validation")
    assert (len(train), len(validation)) == (80, 20)
    np.testing.assert_array_equal(validation.image_embeddings().numpy(), arrays[0][80:])
    np.testing.assert_array_equal(validation.text_embeddings([1, 0]).numpy(), arrays[1][[81, 80]])
    chosen = validation.select([4, 2])
    assert chosen[0]["row"] == 84
    assert chosen.pairs["image_id"][:] == ["i84", "i82"]
    assert validation.fingerprint == cache.fingerprint
    assert validation.num_texts == 10
    with pytest.raises(ValueError, match="no split 'test'"):
        cache.split("test")


def test_study_codes_are_of_one_patient_and_rows_without_study_stand_alone(arrays, tmp_path):
    studies = ["a", "a", "b", None, "a", None] + [None] * (ROWS - 6)
    study = import_embeddings(*arrays, table=table(study_id=studies), cache_dir=tmp_path)[:]["study"].tolist()
    assert study[0] == study[1]
    assert study[4] != study[0]  # the same name, of another patient
    assert len(set(study)) == ROWS - 1


def test_a_dataloader_with_workers_gets_whole_batches(cache, arrays):
    assert len(pickle.dumps(cache)) < 1000
    copy = pickle.loads(pickle.dumps(cache.split("validation")))
    assert torch.equal(copy.image_embeddings(), cache.split("validation").image_embeddings())
    loader = DataLoader(cache, batch_size=32, num_workers=2, collate_fn=lambda batch: batch)
    images = torch.cat([batch["image_embeds"] for batch in loader])
    np.testing.assert_array_equal(images.numpy(), arrays[0])


def test_resident_batches_equal_those_read_from_disk(cache):
    view = cache.split("validation")
    resident = view.to_device("cpu")
    expected = view.__getitems__([7, 1, 1])
    for batch in (resident.__getitems__([7, 1, 1]), resident[torch.tensor([7, 1, 1])]):
        assert list(batch) == cache.column_names
        for name, values in expected.items():
            assert torch.equal(batch[name], values)
    assert len(resident) == 20


def test_a_moved_cache_opens_and_a_missing_file_is_named(cache, tmp_path):
    expected = cache.image_embeddings()
    moved = tmp_path / "elsewhere"
    shutil.move(cache.path.parent, moved)
    again = open_cache(moved)
    assert torch.equal(again.image_embeddings(), expected)
    shard = image_shard(again, 1)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"images-\w+/data-00001.arrow is missing"):
        open_cache(moved)


@pytest.mark.parametrize("target", ["images", "texts", "pairs"])
def test_damage_is_found_by_file_at_the_next_opening(cache, target):
    folder = cache.path if target == "pairs" else cache.path.parent / cache.manifest[target]
    path = next(folder.glob("*.arrow"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged: its XXH3-128 is"):
        open_cache(cache.path.parent)
    path.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=rf"{path.name} has .* truncated"):
        open_cache(cache.path.parent)


def test_verify_names_the_damaged_file_and_fails(cache, capsys):
    folder = cache.path.parent
    assert sorted(verify_cache(folder).values()) == [50, 100, 100]
    path = image_shard(cache, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"data-00002.arrow is damaged: its SHA-256"):
        verify_cache(folder)
    assert main(["verify", str(folder)]) == 1
    assert "data-00002.arrow" in capsys.readouterr().err


def test_another_version_and_no_cache_are_refused(cache, tmp_path):
    path = cache.path / "cache.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ValueError, match="cache version 99"):
        open_cache(cache.path.parent)
    path.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        open_cache(cache.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no finished embedding cache"):
        open_cache(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="build the cache first"):
        open_cache(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no embedding cache"):
        verify_cache(tmp_path / "empty")


def test_info_tells_what_a_cache_holds(cache, capsys):
    assert main(["info", str(cache.path.parent)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["rows"] == 100
    assert info["distinct_texts"] == 50
    assert info["vision_tower"] == "external:external"


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "parquet"])
def test_files_of_three_kinds_are_imported(arrays, tmp_path, suffix):
    paths = []
    for name, array in zip(("image_embeds", "text_embeds"), arrays, strict=True):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "npy":
            np.save(path, array)
        elif suffix == "safetensors":
            save_file({name: array, "other": array[:1]}, path)
        else:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), WIDTH)
            pq.write_table(pa.table({"id": list(range(ROWS)), "embedding": lists}), path)
        paths.append(path)
    cache = import_embeddings(*paths, table=table(), cache_dir=tmp_path / "cache", name="clip")
    np.testing.assert_array_equal(cache.image_embeddings().numpy(), arrays[0])
    np.testing.assert_array_equal(cache.text_embeddings().numpy(), arrays[1])
    assert cache.vision_spec["name_or_path"] == "external:clip"
    assert cache.text_spec["library"] == "external"
    assert cache.num_texts == 50
    again = import_embeddings(*paths, table=table(), cache_dir=tmp_path / "cache", name="clip")
    assert again.fingerprint == cache.fingerprint


def test_import_excludes_bad_rows_and_keeps_the_others_in_place(arrays, tmp_path):
    image, text = arrays[0].astype(np.float64), arrays[1].astype(np.float64)
    image[3] = np.nan
    text[10:12] = np.inf
    text[20] = np.nan
    image[30, 0] = 1e6
    texts = [f"report {row // 2}" for row in range(ROWS)]
    texts[20] = None  # no text, so its embedding does not matter
    cache = import_embeddings(image, text, table(text=texts), tmp_path, max_fault_fraction=0.1, dtype="float16")
    kept = [row for row in range(ROWS) if row not in (3, 10, 11, 30)]
    assert [row["source_row"] for row in cache.excluded] == [3, 10, 11, 30]
    np.testing.assert_array_equal(cache.image_embeddings().numpy(), arrays[0][kept])
    assert cache.text_rows[kept.index(20)] == -1
    paired = cache.paired()
    kept.remove(20)
    np.testing.assert_array_equal(paired.text_embeddings().numpy(), arrays[1][kept])
    wide = import_embeddings(image, text, table(text=texts), tmp_path / "wide", max_fault_fraction=0.1)
    assert wide[0]["image_embeds"].dtype == torch.float32
    assert len(wide) == ROWS - 3


def test_import_refuses_what_does_not_fit(arrays, tmp_path):
    image, text = arrays
    with pytest.raises(ValueError, match="99 embeddings for 100 rows"):
        import_embeddings(image[:99], None, table(), tmp_path)
    with pytest.raises(ValueError, match="shape"):
        import_embeddings(image[0], None, None, tmp_path)
    with pytest.raises(ValueError, match="floats"):
        import_embeddings(np.ones((ROWS, 4), dtype=np.int64), None, table(), tmp_path)
    with pytest.raises(ValueError, match="out of step"):
        import_embeddings(image, np.roll(text, 1, axis=0), table(), tmp_path)
    with pytest.raises(ValueError, match="max_fault_fraction"):
        import_embeddings(np.full_like(image, np.nan), text, table(), tmp_path)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        import_embeddings(tmp_path / "objects.npy", cache_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none.npy"):
        import_embeddings(tmp_path / "none.npy", cache_dir=tmp_path)


def test_float16_storage_keeps_the_direction(tmp_path):
    exact = np.random.default_rng(0).normal(size=(500, 768)).astype(np.float32)
    stored = import_embeddings(exact, cache_dir=tmp_path, dtype="float16").image_embeddings().double()
    cosine = torch.nn.functional.cosine_similarity(stored, torch.from_numpy(exact).double())
    assert (1 - cosine).max() < 1e-6


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, adaptor_hf.embeddings; "
        "print([name for name in ('datasets', 'pyarrow', 'evaluate', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
