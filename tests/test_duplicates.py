"""Byte copies and near copies of images, and the check of one's own table."""

import builtins
import io
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adaptor_hf.data.__main__ import main as data_main
from adaptor_hf.data.duplicates import copies_across, describe_copies, without_copies
from adaptor_hf.data.near_copies import aligned_correlation, near_copies, perceptual_hashes
from adaptor_hf.embeddings import build_cache
from adaptor_hf.phantom import generate_phantoms
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.verify import verify

rows = st.lists(
    st.tuples(st.sampled_from([b"", b"a", b"b", b"c", b"d"]), st.sampled_from(["train", "validation", "test"])),
    max_size=30,
)


class TestCopies:
    @settings(max_examples=200, deadline=None)
    @given(rows)
    def test_what_is_found_is_what_a_plain_loop_finds(self, table):
        digests, splits = [row[0] for row in table], [row[1] for row in table]
        found = copies_across(np.array(digests, dtype="S16"), splits)
        shared: dict = {}
        for content in {*digests} - {b""}:
            names = {split for digest, split in table if digest == content}
            for pair in (("train", "validation"), ("train", "test"), ("validation", "test")):
                if names >= set(pair):
                    shared[pair] = shared.get(pair, 0) + 1
        in_several = {d for d in digests if d and len({s for e, s in table if e == d}) > 1}
        assert found.shared == shared
        assert found.contents == len(in_several)
        assert found.rows.tolist() == [digest in in_several for digest in digests]
        assert found.training.tolist() == [digest in in_several and split == "train" for digest, split in table]
        assert all(digests[a] == digests[b] and splits[a] != splits[b] for a, b in found.examples)

    def test_the_message_has_counts_and_source_rows(self):
        splits = ["train", "test", "train", "validation"]
        copies = copies_across(np.array([b"x", b"x", b"y", b"y"], "S16"), splits)
        said = describe_copies(copies, [10, 11, 12, 13], splits)
        assert "2 images are in several splits" in said
        assert "1 in both train and validation, 1 in both train and test" in said
        assert "10 (train) and 11 (test)" in said

    def test_arrays_of_other_lengths_are_refused(self):
        with pytest.raises(ValueError, match="got 1 and 2"):
            copies_across(np.array([b"x"], "S16"), ["train", "test"])


def write_copied(folder, copied: int):
    """A table of 24 patients; the first test patients' images are training images under new names."""
    generator = np.random.default_rng(0)
    lines = ["image,text,patient_id,split"]
    for i in range(24):
        split = "train" if i < 16 else "validation" if i < 20 else "test"
        path = folder / f"{i}.png"
        if split == "test" and i - 20 < copied:
            path.write_bytes((folder / f"{i - 20}.png").read_bytes())
        else:
            Image.fromarray(generator.integers(0, 255, (24, 24), dtype=np.uint8)).save(path)
        lines.append(f"{i}.png,report number {i},p{i},{split}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


class TestPretraining:
    def words(self, table, output, tiny_dinov2, tiny_bert, *more):
        options = {"train_file": table, "vision_tower": tiny_dinov2, "text_tower": tiny_bert, "output_dir": output,
                   "cache_dir": table.parent / "embeddings",
                   "aligner": '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}',
                   "num_train_epochs": 1, "global_batch_size": 4, "use_cpu": True}  # fmt: skip
        return [word for name, value in options.items() for word in (f"--{name}", str(value))] + list(more)

    def test_copied_images_under_new_ids_stop_it_or_are_left_out(self, tmp_path, tiny_dinov2, tiny_bert, caplog):
        import train_pretrain

        table = write_copied(tmp_path, 3)
        with pytest.raises(ValueError, match="3 images are in several splits as byte copies") as caught:
            train_pretrain.main(self.words(table, tmp_path / "no", tiny_dinov2, tiny_bert))
        assert "3 in both train and test. Source rows 0 (train) and 20 (test)" in str(caught.value)
        assert "--duplicates drop" in str(caught.value)
        assert ".png" not in str(caught.value)
        caplog.set_level(logging.INFO)
        output = tmp_path / "model"
        train_pretrain.main(self.words(table, output, tiny_dinov2, tiny_bert, "--duplicates", "drop"))
        assert "3 training rows are left out" in caplog.text
        assert "Pairs: 13 train, 4 validation, 4 test" in caplog.text
        assert verify(output) == []

    def test_a_healthy_table_gives_no_word_and_loses_no_row(self, tmp_path, tiny_dinov2, tiny_bert, caplog):
        from adaptor_hf.data.tables import load_pairs

        cache = build_cache(load_pairs(write_copied(tmp_path, 0)), tiny_dinov2, tiny_bert, tmp_path / "cache")
        caplog.clear()
        assert without_copies(cache) is cache
        assert caplog.text == ""
        assert [len(view) for view in contrastive_splits(cache).values()] == [16, 4, 4]
        with pytest.raises(ValueError, match="refuse, drop or keep, got 'ask'"):
            without_copies(cache, "ask")


def phantoms(count):
    return [Image.fromarray(np.asarray(p["image"])) for p in generate_phantoms(count, seed=3)]


def reencoded(image, quality=30, factor=1.0):
    size = (round(image.width * factor), round(image.height * factor))
    stream = io.BytesIO()
    image.convert("L").resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def moved(image, down, right):
    values = np.asarray(image.convert("L"))
    down, right = round(down * values.shape[0]), round(right * values.shape[1])
    return Image.fromarray(np.roll(np.pad(values, 40, mode="edge"), (down, right), (0, 1))[40:-40, 40:-40])


class TestNearCopies:
    def test_copies_are_found_and_other_images_are_not(self):
        images = phantoms(12)
        copies = [reencoded(images[0]), reencoded(images[1], 85, 0.5), reencoded(images[2], 85, 2.0),
                  moved(images[3], 0.03, -0.03), moved(images[4], -0.02, 0.01)]  # fmt: skip
        found = near_copies(perceptual_hashes([*images, *copies]))
        assert [(a, b) for a, b, _ in found] == [(i, 12 + i) for i in range(5)]

    def test_radiographs_copies_and_strangers(self, realbench):
        from adaptor_hf.data.images import read_image
        from adaptor_hf.data.tables import load_pairs

        table = load_pairs(realbench / "metadata.csv", filters=["dataset=tbmask"], text_column=None)
        images = [read_image(realbench / name) for name in table["image_id"][:80]]
        copies = [reencoded(images[0]), reencoded(images[1], 85, 2.0), moved(images[2], 0.03, 0.02)]
        assert [(a, b) for a, b, _ in near_copies(perceptual_hashes([*images, *copies]))] == [(0, 80), (1, 81), (2, 82)]

    def test_flat_images_are_no_copies_of_anything(self):
        flat = [Image.new("L", (64, 64), value) for value in (0, 0, 200)]
        assert near_copies(perceptual_hashes([*flat, *phantoms(2)])) == []
        assert near_copies(perceptual_hashes([])) == []

    def test_the_correlation_is_that_of_numpy_where_nothing_moved(self):
        generator = np.random.default_rng(0)
        first = generator.integers(0, 255, (64, 64)).astype(np.uint8)
        second = (first * 0.5 + generator.integers(0, 60, (64, 64))).astype(np.uint8)
        expected = np.corrcoef(first[1:-1, 1:-1].ravel(), second[1:-1, 1:-1].ravel())[0, 1]
        assert aligned_correlation(first, second) == pytest.approx(expected, abs=1e-9)

    def test_without_the_package_it_says_what_to_install(self, monkeypatch):
        real = builtins.__import__

        def missing(name, *arguments, **options):
            if name == "imagehash":
                raise ModuleNotFoundError(name)
            return real(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", missing)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'adaptor-hf\[duplicates\]'"):
            perceptual_hashes([Image.new("L", (8, 8))])


class TestCheckTable:
    def check(self, table, capsys, *words):
        report = table.parent / "report.json"
        status = data_main(["check", "--table", str(table), "--json", str(report), *words])
        return status, capsys.readouterr().out, json.loads(report.read_text())

    def test_a_healthy_table_is_ok(self, tmp_path, capsys):
        status, said, counts = self.check(write_copied(tmp_path, 0), capsys)
        assert (status, counts["stops"], counts["warnings"]) == (0, [], [])
        assert counts["rows"] == counts["patients"] == 24
        assert counts["splits"]["train"] == {"rows": 16, "patients": 16}
        assert said.endswith("ok\n")

    def test_byte_copies_and_near_copies_are_counted(self, tmp_path, capsys):
        status, said, counts = self.check(write_copied(tmp_path, 2), capsys)
        assert status == 1
        assert (counts["copies_across_splits"], counts["copies_across_patients"]) == (2, 2)
        assert "rows 0 (train) and 20 (test)" in said
        for place, image in enumerate(phantoms(6)):
            image.save(tmp_path / f"{place}.png")
        reencoded(phantoms(1)[0], 60).save(tmp_path / "22.png")
        status, said, counts = self.check(write_copied_again(tmp_path), capsys, "--near_copies")
        assert counts["near_copies"]["across_splits"] == 1
        assert "and 6 (test)" in said

    def test_everything_that_is_wrong_is_said_at_once(self, tmp_path, capsys):
        table = tmp_path / "secret-name.csv"
        table.write_text(
            "image,text,patient_id,split\n"
            "a.png,x,Secret1,train\nb.png,,secret1,test\nb.png,z,p-7,train\nd.png,w,P7,test\ne.png,v,1.5E+11,test\n"
        )
        status, said, counts = self.check(table, capsys, "--private")
        assert status == 1
        assert counts["ids"]["patient_id"] == {
            "distinct": 5,
            "in_several_spellings": 1,
            "alike_but_for_punctuation": 1,
            "cells_in_scientific_notation": 1,
        }
        assert (counts["images_missing"], counts["repeated_ids"], counts["rows_without_text"]) == (5, 1, 1)
        stops = " ".join(counts["stops"])
        for part in ("1 ids are written in several ways", "scientific notation", "1 in both ", "missing"):
            assert part in stops
        written = said + json.dumps(counts)
        assert not any(word in written.lower() for word in ("secret", "a.png", "e.png", str(tmp_path)))

    def test_a_choice_of_ids_is_taken_as_the_scripts_take_it(self, tmp_path, capsys):
        path = write_copied(tmp_path, 0)
        path.write_text(path.read_text().replace(",p1,", ",P0,"))
        status, _, counts = self.check(path, capsys)
        assert (status, counts["patients"]) == (1, 23)
        assert self.check(path, capsys, "--ids", "canonical")[2]["patients"] == 23
        status, _, counts = self.check(path, capsys, "--ids", "exact")
        assert (status, counts["patients"]) == (0, 24)

    def test_what_cannot_be_read_is_an_error_without_its_name(self, tmp_path, capsys):
        assert data_main(["check", "--table", str(tmp_path / "secret.csv"), "--private"]) == 2
        assert "secret" not in capsys.readouterr().err
        with pytest.raises(SystemExit):
            data_main(["check", "chexpert"])


def write_copied_again(folder):
    """The same table, of the images that lie in the folder."""
    lines = (folder / "pairs.csv").read_text().splitlines()
    (folder / "near.csv").write_text("\n".join([lines[0], *lines[1:7], *lines[-2:]]) + "\n")
    return folder / "near.csv"
