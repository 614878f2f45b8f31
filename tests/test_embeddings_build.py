"""Building the cache: reuse, faults, growth, towers, ranks."""

import csv
import json
import os
import shutil
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from fixtures.cache_files import snapshot

from adaptor_hf import towers_adaptor
from adaptor_hf.data.images import read_image
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.embeddings.__main__ import main
from adaptor_hf.towers_adaptor import load_text_tower, load_vision_tower

TEXTS = [
    "No acute chest finding.",
    "Small left pleural effusion with consolidation of the left lower zone.",
    "Heart size is normal. Lungs are clear.",
    "No acute chest finding.",
    "Severe cardiomegaly.",
    None,
]


@pytest.fixture
def files(radiographs, tmp_path) -> list[Path]:
    """Six image files that a test may change."""
    folder = tmp_path / "images"
    shutil.copytree(radiographs, folder)
    return sorted(folder.glob("*.jpg"))


def make_dataset(files, texts=TEXTS, **columns) -> datasets.Dataset:
    rows = len(files)
    values = {
        "image": [str(path) for path in files],
        "image_id": [f"id{row}" for row in range(rows)],
        "patient_id": [f"p{row // 2}" for row in range(rows)],
        "study_id": ["s0", "s0", "s0", "s1", None, None][:rows],
        "text": list(texts)[:rows],
        "split": ["train"] * (rows - 2) + ["val", "test"],
        "source_row": list(range(10, 10 + rows)),
    }
    return datasets.Dataset.from_dict(values | columns)


@pytest.fixture
def build(tiny_dinov2, tiny_bert, tmp_path):
    def run(dataset, vision=tiny_dinov2, text=tiny_bert, cache_dir=tmp_path / "cache", **options):
        return build_cache(dataset, vision, text, cache_dir, **{"num_workers": 0, "batch_size": 2} | options)

    return run


@pytest.fixture
def tower_calls(monkeypatch):
    """Counts forward passes and loads of towers."""
    calls = {"forward": 0, "load": 0}
    for name in ("VisionTower", "TextTower"):
        tower_class = getattr(towers_adaptor, name)
        forward = tower_class.forward

        def counted(self, *args, _forward=forward, **kwargs):
            calls["forward"] += 1
            return _forward(self, *args, **kwargs)

        monkeypatch.setattr(tower_class, "forward", counted)
    for name in ("load_vision_tower", "load_text_tower"):
        load = getattr(towers_adaptor, name)

        def loaded(*args, _load=load, **kwargs):
            calls["load"] += 1
            return _load(*args, **kwargs)

        monkeypatch.setattr(towers_adaptor, name, loaded)
    return calls


def test_embeddings_are_those_of_the_towers(files, build, tiny_dinov2, tiny_bert):
    cache = build(make_dataset(files), dtype="float32")
    vision, text = load_vision_tower(str(tiny_dinov2)), load_text_tower(str(tiny_bert))
    for row, path in enumerate(files):
        pixels = vision.processor(images=[read_image(path, min_size=96)], return_tensors="pt")["pixel_values"]
        expected = vision(pixels).pooler_output[0]
        torch.testing.assert_close(cache[row]["image_embeds"], expected, rtol=1e-4, atol=1e-5)
        if TEXTS[row] is not None:
            expected = text(**text.processor([TEXTS[row]], return_tensors="pt")).pooler_output[0]
            torch.testing.assert_close(cache[row]["text_embeds"], expected, rtol=1e-4, atol=1e-5)


def test_each_distinct_text_is_embedded_once_and_rows_without_text_stay(files, build):
    cache = build(make_dataset(files))
    assert cache.text_rows[0] == cache.text_rows[3]
    assert cache.text_rows[5] == -1
    assert cache.num_texts == 4
    assert cache.num_image_only == 1
    assert len(cache) == 6
    assert len(cache.paired()) == 5
    assert torch.isnan(cache[5]["text_embeds"]).all()
    assert cache.excluded == []
    assert cache.splits == {"train": 4, "validation": 1, "test": 1}
    texts_folder = cache.path.parent / cache.manifest["texts"]
    assert json.loads((texts_folder / "cache.json").read_text())["rows"] == 4


def test_files_are_plain_datasets_arrow_of_float16_in_one_batch(files, build):
    cache = build(make_dataset(files))
    dataset = datasets.Dataset.from_file(str(cache.path.parent / cache.manifest["images"] / "data-00000.arrow"))
    assert dataset.features["embedding"] == datasets.List(datasets.Value("float16"), length=32)
    assert dataset.data.column("embedding").num_chunks == 1
    assert "labels" not in cache.pairs.column_names
    assert cache.pairs["source_row"][:] == list(range(10, 16))
    assert "No acute" not in str(snapshot(cache.path.parent))


def test_labels_are_stored_as_targets(files, build):
    labels = [{"effusion": row % 2} for row in range(6)]
    cache = build(make_dataset(files, labels=labels))
    assert cache.pairs["targets"][:] == labels


def test_the_same_call_reuses_everything_without_towers_or_images(files, build, tower_calls, monkeypatch, tmp_path):
    first = build(make_dataset(files))
    before = snapshot(tmp_path / "cache")
    counts = dict(tower_calls)
    monkeypatch.setattr("adaptor_hf.data.images.read_image", None)
    start = time.perf_counter()
    again = build(make_dataset(files), batch_size=3)
    assert time.perf_counter() - start < 2
    assert tower_calls == counts
    assert snapshot(tmp_path / "cache") == before
    assert again.fingerprint == first.fingerprint


def test_another_tower_rebuilds_its_own_side_only(files, build, tiny_bert, tower_calls, tmp_path):
    first = build(make_dataset(files))
    changed = tmp_path / "other-bert"
    shutil.copytree(tiny_bert, changed)
    tower = load_text_tower(str(changed))
    with torch.no_grad():
        tower.model.embeddings.word_embeddings.weight += 0.01
    tower_calls.update(forward=0)
    second = build(make_dataset(files), text=tower)
    assert tower_calls["forward"] == 2
    assert second.manifest["images"] == first.manifest["images"]
    assert second.manifest["texts"] != first.manifest["texts"]


def test_pooling_processor_length_and_dtype_change_the_key_of_their_side_only(files, build, tiny_dinov2, tiny_bert):
    dataset = make_dataset(files)
    first = build(dataset).manifest
    pooled = build(dataset, text=load_text_tower(str(tiny_bert), pooling="mean")).manifest
    assert pooled["texts"] != first["texts"]
    assert pooled["images"] == first["images"]
    vision = load_vision_tower(str(tiny_dinov2))
    vision.spec["image_processor"] = vision.spec["image_processor"] | {"image_mean": [0.5, 0.5, 0.5]}
    processed = build(dataset, vision=vision).manifest
    assert processed["images"] != first["images"]
    assert processed["texts"] == first["texts"]
    short = build(dataset, max_text_length=4).manifest
    assert short["texts"] != first["texts"]
    assert short["images"] == first["images"]
    wide = build(dataset, dtype="float32").manifest
    assert wide["images"] != first["images"]
    assert wide["texts"] != first["texts"]


def test_a_changed_weight_file_is_noticed_behind_the_same_name(files, build, tiny_bert, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    first = build(make_dataset(files), text=folder)
    tower = load_text_tower(str(folder))
    with torch.no_grad():
        tower.model.embeddings.word_embeddings.weight += 0.01
    tower.model.save_pretrained(folder)
    assert build(make_dataset(files), text=folder).manifest["texts"] != first.manifest["texts"]


def test_a_tower_that_moved_is_the_same_tower(files, build, tiny_bert, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_bert, moved)
    assert build(make_dataset(files)).manifest["texts"] == build(make_dataset(files), text=moved).manifest["texts"]


def test_new_rows_are_added_and_old_ones_kept(files, build, tower_calls):
    part = build(make_dataset(files[:4]))
    old = part.image_embeddings()
    tower_calls.update(forward=0)
    whole = build(make_dataset(files))
    assert tower_calls["forward"] == 2  # two images, one text
    assert torch.equal(whole.image_embeddings(range(4)), old)
    assert whole.manifest["images"] == part.manifest["images"]
    assert torch.equal(open_cache(part.path).image_embeddings(), old)


def test_moved_images_are_found_by_content(files, build, tower_calls, tmp_path):
    first = build(make_dataset(files))
    for folder in ("a", "b"):
        moved = tmp_path / folder
        shutil.copytree(files[0].parent, moved)
        os.utime(moved / files[0].name)
        tower_calls.update(forward=0)
        again = build(make_dataset(sorted(moved.glob("*.jpg"))))
        assert tower_calls["forward"] == 0
        assert torch.equal(again.image_embeddings(), first.image_embeddings())
        assert again.fingerprint == first.fingerprint


def test_a_changed_image_is_embedded_again(files, build):
    first = build(make_dataset(files))
    shutil.copy(files[1], files[0])
    again = build(make_dataset(files))
    assert torch.equal(again[0]["image_embeds"], first[1]["image_embeds"])


def test_images_stored_as_bytes_give_the_same_numbers(files, build, tmp_path):
    from_files = build(make_dataset(files))
    as_bytes = [{"bytes": path.read_bytes(), "path": None} for path in files]
    from_bytes = build(make_dataset(files, image=as_bytes), cache_dir=tmp_path / "other")
    assert torch.equal(from_bytes.image_embeddings(), from_files.image_embeddings())


def test_one_side_alone(files, build):
    images = build(make_dataset(files).remove_columns("text"), text=None)
    assert images.column_names == ["image_embeds", "text_row", "study", "row"]
    assert images.text_spec is None
    with pytest.raises(ValueError, match="built without texts"):
        images.text_embeddings()
    texts = build(make_dataset(files).remove_columns("image"), vision=None)
    assert "image_embeds" not in texts[0]
    assert texts.vision_spec is None
    with pytest.raises(ValueError, match="no column 'text'"):
        build(make_dataset(files).remove_columns("text"))
    with pytest.raises(ValueError, match="vision_tower, text_tower, or both"):
        build(make_dataset(files), vision=None, text=None)


def test_a_dataset_dict_keeps_its_splits_and_finds_ids_in_two_of_them(files, build):
    rows = make_dataset(files).remove_columns(["split", "source_row"])
    parts = datasets.DatasetDict(train=rows.select(range(4)), valid=rows.select([3, 4, 5]))
    cache = build(parts, max_fault_fraction=0.5)
    assert cache.splits == {"train": 4, "validation": 2}
    assert [(row["split"], row["source_row"]) for row in cache.excluded] == [("validation", 0)]
    assert "first seen in source row 3" in cache.excluded[0]["reason"]


def test_faults_are_listed_by_source_row_and_never_shift_rows(files, build, tmp_path, caplog):
    good = build(make_dataset(files), cache_dir=tmp_path / "good")
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[2].unlink()
    texts = [*TEXTS[:4], "  ", "nan"]
    ids = [f"id{row}" for row in range(6)]
    more = [files[0], files[3]]
    dataset = make_dataset(
        files + more,
        texts=texts + TEXTS[:2],
        image_id=[*ids, "id0", "id9"],
        study_id=[None] * 8,
        split=["train"] * 8,
    )
    with pytest.raises(ValueError, match="max_fault_fraction") as raised:
        build(dataset, max_fault_fraction=0.5)
    assert "row 11 image_1.jpg" in str(raised.value)
    assert str(tmp_path / "cache" / "excluded.csv") in str(raised.value)
    cache = build(dataset, max_fault_fraction=0.7)
    assert cache.pairs["source_row"][:] == [10, 13, 17]
    for row, original in enumerate([0, 3]):
        for name in ("image_embeds", "text_embeds"):
            torch.testing.assert_close(cache[row][name], good[original][name], rtol=1e-2, atol=1e-3)
    assert torch.equal(cache[2]["image_embeds"], cache[1]["image_embeds"])
    with open(tmp_path / "cache" / "excluded.csv", encoding="utf-8") as file:
        listed = {int(row["source_row"]): row for row in csv.DictReader(file)}
    assert sorted(listed) == [11, 12, 14, 15, 16]
    assert listed[11]["reason"].startswith("image cannot be decoded")
    assert listed[12]["reason"] == "image file is missing"
    assert listed[12]["file"] == "image_2.jpg"
    assert listed[14]["reason"] == "text is empty"
    assert "nan" in listed[15]["reason"]
    assert listed[16]["reason"] == "duplicate image_id, first seen in source row 10"
    assert cache.excluded == [{**row, "source_row": int(row["source_row"])} for row in listed.values()]
    assert "5 of 8 rows are excluded" in caplog.text
    assert "image_1.jpg" not in caplog.text


def test_one_image_may_have_several_texts_but_not_the_same_twice_nor_another_image(files, build):
    rows = [files[0], files[0], files[0], files[1], files[2]]
    texts = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[3]]
    ids = ["a", "a", "a", "b", "b"]
    dataset = make_dataset(rows, texts=texts, image_id=ids, study_id=[None] * 5, split=["train"] * 5)
    cache = build(dataset, max_fault_fraction=0.5)
    assert [row - 10 for row in cache.pairs["source_row"][:]] == [0, 1, 3]
    assert cache.image_rows[0] == cache.image_rows[1]
    assert [row["source_row"] - 10 for row in cache.excluded] == [2, 4]


def test_a_fault_that_is_mended_comes_back(files, build):
    whole = files[1].read_bytes()
    files[1].write_bytes(b"no image")
    assert len(build(make_dataset(files), max_fault_fraction=0.5)) == 5
    files[1].write_bytes(whole)
    assert len(build(make_dataset(files))) == 6


def test_vectors_that_are_not_finite_or_zero_are_excluded(files, build, tiny_dinov2):
    class Broken(towers_adaptor.VisionTower):
        def forward(self, pixel_values):
            output = super().forward(pixel_values)
            output.pooler_output[0] = {0: float("nan"), 1: 1e6, 2: 0.0}[self.calls]
            self.calls += 1
            return output

    loaded = load_vision_tower(str(tiny_dinov2))
    tower = Broken(loaded.model, loaded.spec)
    tower.calls = 0
    cache = build(make_dataset(files), vision=tower, max_fault_fraction=0.5)
    assert cache.pairs["source_row"][:] == [11, 13, 15]
    reasons = [row["reason"] for row in cache.excluded]
    assert reasons == ["embedding is NaN or infinite in float16"] * 2 + ["embedding is all zeros"]
    assert torch.isfinite(cache.image_embeddings()).all()


def test_all_rows_faulty_is_an_error_even_if_faults_are_accepted(files, build):
    with pytest.raises(ValueError, match="all 6 rows are excluded"):
        build(make_dataset(files, texts=[""] * 6), max_fault_fraction=1.0)


def test_cut_texts_are_counted(files, build, caplog):
    cache = build(make_dataset(files), max_text_length=6)
    assert cache.manifest["distinct_texts"] == 4
    assert cache.manifest["truncated_texts"] >= 2
    assert "were cut to 6 tokens" in caplog.text


def test_texts_are_batched_by_length(files, tiny_bert, tmp_path):
    """Padding to the batch's longest after sorting: at most a few tokens more than the texts have."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(4.0, 0.6, 512)), 4, 110).astype(int)
    texts = [" ".join(generator.choice(["lung", "clear", "heart"], size=length)) for length in lengths]
    padded = []
    tower = load_text_tower(str(tiny_bert))
    forward = tower.forward
    tower.forward = lambda **inputs: padded.append(inputs["input_ids"].shape) or forward(**inputs)
    build_cache(datasets.Dataset.from_dict({"text": texts}), None, tower, tmp_path, batch_size=16)
    spent = sum(rows * width for rows, width in padded)
    real = sum(min(length + 2, 112) for length in lengths)
    assert spent < 1.05 * real
    assert 512 * 112 / spent > 1.6


def test_workers_and_batches_of_shards_change_no_byte(files, build, tmp_path):
    dataset = make_dataset(files * 3, texts=TEXTS * 3, image_id=[f"i{row}" for row in range(18)], study_id=[None] * 18)
    build(dataset, cache_dir=tmp_path / "a", shard_rows=4, piece_rows=2)
    build(dataset, cache_dir=tmp_path / "b", shard_rows=4, piece_rows=4, num_workers=2)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert len(snapshot(tmp_path / "a")) == 5


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_batches_and_threads_keep_rows_and_order_and_change_only_roundings(files, build, tmp_path, dtype):
    """As on another machine: each shape of batch and number of threads may add up in another order."""
    dataset = make_dataset(files)
    threads = torch.get_num_threads()
    here = build(dataset, cache_dir=tmp_path / "a", dtype=dtype)
    try:
        torch.set_num_threads(threads + 1)
        there = build(dataset, cache_dir=tmp_path / "b", dtype=dtype, batch_size=5)
    finally:
        torch.set_num_threads(threads)
    assert here.fingerprint == there.fingerprint
    assert here.pairs.to_dict() == there.pairs.to_dict()
    assert here.image_rows.tolist() == there.image_rows.tolist()
    assert here.text_rows.tolist() == there.text_rows.tolist()
    one, other = here.paired()[:], there.paired()[:]
    for name in ("image_embeds", "text_embeds"):
        cosine = torch.nn.functional.cosine_similarity(one[name].double(), other[name].double())
        assert (1 - cosine).max() < 1e-6, name


def test_the_callers_random_state_is_left_alone(files, build):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(make_dataset(files))
    assert torch.equal(torch.rand(3), expected)


def test_a_write_that_fails_leaves_nothing_that_reads_as_whole(files, build, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            build(make_dataset(files))
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert len(build(make_dataset(files))) == 6


def test_a_complete_cache_that_is_read_only_is_reused(files, build, tmp_path, monkeypatch):
    first = build(make_dataset(files))

    def refused(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refused)
    assert build(make_dataset(files)).fingerprint == first.fingerprint


def test_the_command_line_builds_from_a_table(files, tiny_dinov2, tiny_bert, tmp_path, capsys):
    rows = [f"{path},{text or ''},{row % 3}" for row, (path, text) in enumerate(zip(files, TEXTS, strict=True))]
    (tmp_path / "pairs.csv").write_text("\n".join(["file,note,group", *rows]) + "\n")
    arguments = ["build", str(tmp_path / "pairs.csv"), "--cache_dir", str(tmp_path / "cache"), "--num_workers", "0"]
    arguments += ["--image_column", "file", "--text_column", "note", "--patient_column", "group"]
    arguments += ["--vision_tower", str(tiny_dinov2), "--text_tower", str(tiny_bert), "--max_text_length", "8"]
    assert main(arguments) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["rows"] == 6
    assert info["rows_without_text"] == 1
    assert info["cut_texts"] == 3
    assert set(info["splits"]) == {"train", "validation", "test"}
    assert main([*arguments, "--filter", "group=0", "group=1"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 4
    assert main(["build", str(tmp_path / "absent.csv"), *arguments[2:]]) == 1
    assert "absent.csv" in capsys.readouterr().err


def test_the_command_line_builds_images_of_a_table_without_texts(files, tiny_dinov2, tmp_path, capsys):
    (tmp_path / "images.csv").write_text("\n".join(["image", *map(str, files)]) + "\n")
    arguments = ["build", str(tmp_path / "images.csv"), "--cache_dir", str(tmp_path / "cache"), "--num_workers", "0"]
    assert main([*arguments, "--vision_tower", str(tiny_dinov2)]) == 0
    assert json.loads(capsys.readouterr().out)["folders"]["texts"] is None


def test_bad_arguments_are_named(files, build):
    with pytest.raises(ValueError, match="dtype"):
        build(make_dataset(files), dtype="bfloat16")
    with pytest.raises(TypeError, match="Dataset or DatasetDict"):
        build([1, 2])
    with pytest.raises(ValueError, match="no rows"):
        build(make_dataset(files).select([]))
    with pytest.raises(TypeError, match="vision_tower"):
        build(make_dataset(files), vision=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="batch_size"):
        build(make_dataset(files), batch_size=0)
