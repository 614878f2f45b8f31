"""Several sources of pairs: loaded and split each by its own rules, joined with ids that stay apart."""

import hashlib
import hmac
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel
from fixtures.openi import write_kaggle
from fixtures.phantom_trees import phantom_tree
from fixtures.two_tables import write_table
from PIL import Image
from safetensors.numpy import load_file

from adaptor_hf.data.duplicates import without_copies
from adaptor_hf.data.pair_arguments import DataArguments, source_arguments
from adaptor_hf.data.sources import qualifiers, source_names
from adaptor_hf.data.split_rule import SplitRule
from adaptor_hf.data.training_rows import KEY_FILE, TRAINING_ROWS_FILE, read_training_rows
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.privacy.mode import private_mode
from adaptor_hf.tasks.provenance import disjoint_sets
from adaptor_hf.training.pairs import contrastive_splits, load_training_pairs, record_training_rows


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two tables of 40 and 24 rows with equal ids, in files of one name."""
    folder = tmp_path_factory.mktemp("tables")
    return [str(write_table(folder / name, rows, seed)) for name, rows, seed in (("a", 40, 1), ("b", 24, 2))]


@pytest.fixture(scope="module")
def joined(tables):
    return load_training_pairs(DataArguments(train_file=tables))


@pytest.fixture(scope="module")
def cache(joined, vision_tower, text_tower, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return build_cache(joined.dataset, vision_tower, text_tower, folder, max_text_length=16)


class TestTables:
    def test_each_source_is_split_as_it_is_alone(self, tables, joined):
        for name, table in zip(("pairs", "pairs_2"), tables, strict=True):
            alone = load_training_pairs(DataArguments(train_file=table)).dataset
            code = joined.dataset.features["source"].str2int(name)
            mine = joined.dataset.select(np.flatnonzero(np.array(joined.dataset["source"][:]) == code))
            assert mine["split"][:] == alone["split"][:]
            assert mine["text"][:] == alone["text"][:]
            assert mine["source_row"][:] == alone["source_row"][:]
            assert mine["patient_id"][:] == [f"{name}/{patient}" for patient in alone["patient_id"][:]]

    def test_equal_ids_are_other_patients_studies_and_images(self, cache):
        assert (len(cache), cache.sources) == (64, {"pairs": 40, "pairs_2": 24})
        assert len(set(cache.pairs["patient_id"][:])) == 20 + 12
        studies = cache[:]["study"].numpy()
        assert len(np.unique(studies)) == 20 + 12
        assert cache.excluded == []  # an image id of the second table is no repetition of the first's

    def test_equal_texts_of_two_sources_are_one_text(self, joined, cache):
        rows, texts = cache.text_rows, joined.dataset["text"][:]
        shared = set(rows[cache.source_codes == 0]) & set(rows[cache.source_codes == 1])
        assert len(shared) == len(set(texts[:40]) & set(texts[40:])) > 3
        assert len(set(rows)) == len(set(texts))

    def test_a_view_of_a_source_and_its_codes_in_batches(self, cache):
        assert cache.column_names[-1] == "source"
        part = cache.split("train").source("pairs_2")
        assert part.sources == {"pairs_2": len(part)}
        assert set(part[:]["source"].tolist()) == {1}
        assert set(part.pairs["source"][:]) == {"pairs_2"}
        resident = cache.to_device("cpu")
        assert (resident[list(range(64))]["source"].numpy() == cache.source_codes).all()
        assert (open_cache(cache.path).source_codes == cache.source_codes).all()
        with pytest.raises(ValueError, match="no source 'c' in"):
            cache.source("c")

    def test_a_fraction_is_of_each_sources_patients(self, tables):
        pairs = load_training_pairs(DataArguments(train_file=tables, train_fraction=0.5)).dataset
        for code, table in enumerate(tables):
            alone = load_training_pairs(DataArguments(train_file=table, train_fraction=0.5)).dataset
            assert pairs["source"][:].count(code) == len(alone)

    def test_one_namespace_makes_equal_ids_one_patient(self, tables, cache):
        pairs = load_training_pairs(DataArguments(train_file=tables, id_namespace="here")).dataset
        assert len(set(pairs["patient_id"][:])) == 20
        splits = {}
        for patient, split in zip(pairs["patient_id"][:], pairs["split"][:], strict=True):
            assert splits.setdefault(patient, split) == split

    def test_one_namespace_refuses_a_patient_in_two_splits(self, tmp_path):
        places = []
        for name, split in (("a", "train"), ("b", "test")):
            table = write_table(tmp_path / name, 12, seed=ord(name))
            lines = table.read_text().splitlines()
            rest = ["train"] * (4 if split == "test" else 6) + ["validation"] * (4 if split == "test" else 2)
            rest += ["test"] * 4
            lines = [f"{lines[0]},split", *(f"{line},{s}" for line, s in zip(lines[1:], rest, strict=True))]
            table.write_text("\n".join(lines) + "\n")
            places.append(str(table))
        with pytest.raises(ValueError, match="Patients are in several splits: 1 in both train and validation"):
            load_training_pairs(DataArguments(train_file=places, id_namespace="here"))
        assert len(load_training_pairs(DataArguments(train_file=places)).dataset) == 24

    def test_the_same_table_twice_and_readings_that_differ_are_refused(self, tables, tmp_path):
        with pytest.raises(ValueError, match="Sources 1 and 2 of --train_file are the same table"):
            load_training_pairs(DataArguments(train_file=[tables[0], tables[0]]))
        colour = write_table(tmp_path / "colour", 12, seed=5)
        for path in colour.parent.glob("*.png"):
            pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        with pytest.raises(ValueError, match=r"read in different ways: source 1 as L, source 2 as RGB .*--image_mode"):
            load_training_pairs(DataArguments(train_file=[tables[0], str(colour)]))
        both = DataArguments(train_file=[tables[0], str(colour)], image_mode="L")
        assert len(load_training_pairs(both).dataset) == 52

    def test_a_held_out_image_of_one_source_in_the_training_part_of_another(
        self, tables, joined, vision_tower, text_tower, tmp_path
    ):
        test_rows = [row for row, split in enumerate(joined.dataset["split"][:40]) if split == "test"]
        copies = dict(enumerate(Path(tables[0]).parent / f"{row}.png" for row in test_rows[:2]))
        other = write_table(
            tmp_path / "c", 24, seed=3, copies=dict(zip(range(24), [*copies.values()] * 12, strict=True))
        )
        pairs = load_training_pairs(DataArguments(train_file=[tables[0], str(other)])).dataset
        cache = build_cache(pairs, vision_tower, text_tower, tmp_path / "cache", max_text_length=16)
        with pytest.raises(ValueError, match=r"2 of them in more than one source\)") as raised:
            without_copies(cache)
        assert re.search(r"Source rows \d+ of pairs(_2)? \(train\) and \d+ of pairs(_2)? \(", str(raised.value))
        left = without_copies(cache, "drop")
        held = set(map(bytes, left.split("test").image_digests()))
        assert held
        assert not held & set(map(bytes, left.split("train").image_digests()))


class TestKeys:
    def test_one_source_has_the_key_that_it_had(self, tables, vision_tower, text_tower, tmp_path):
        plain = load_training_pairs(DataArguments(train_file=tables[0])).dataset
        others = {
            "text of the publisher": plain.add_column("source", ["file:1"] * len(plain)),
            "one name": plain.add_column("source", [0] * len(plain)).cast_column("source", ClassLabel(names=["a"])),
        }
        first = build_cache(plain, vision_tower, text_tower, tmp_path, max_text_length=16)
        assert "source" not in first.column_names
        assert (first.sources, first.source_codes, first.source_names) == ({}, None, [])
        for name, dataset in others.items():
            again = build_cache(dataset, vision_tower, text_tower, tmp_path, max_text_length=16)
            assert again.fingerprint == first.fingerprint, name

    def test_the_key_covers_which_source_a_row_is_of(self, joined, cache, vision_tower, text_tower):
        codes = joined.dataset["source"][:]
        other = joined.dataset.remove_columns("source").add_column("source", codes[::-1])
        other = other.cast_column("source", joined.dataset.features["source"])
        built = build_cache(other, vision_tower, text_tower, cache.path.parent, max_text_length=16)
        assert built.fingerprint != cache.fingerprint


class TestTrainingRows:
    def test_ids_are_of_their_own_namespaces_alone(self, joined, cache, tmp_path):
        record_training_rows(tmp_path, contrastive_splits(cache), joined)
        stored = {bytes(row) for row in load_file(tmp_path / TRAINING_ROWS_FILE)["patients"]}
        key = bytes.fromhex((tmp_path / KEY_FILE).read_text().strip())
        parts = [(joined.patient_ids, joined.namespaces), *joined.more]
        assert len(parts) == 2
        assert not set(joined.namespaces) & set(parts[1][1])

        def digest(namespace, patient):
            message = f"training_rows\0{namespace}\0{patient}".encode()
            return hmac.new(key, message, hashlib.sha256).digest()[:16]

        for patients, namespaces in parts:
            assert all(digest(name, patient) in stored for name in namespaces for patient in patients)
        first, second = (set(patients) for patients, _ in parts)
        assert first - second
        assert not any(digest(name, patient) in stored for name in parts[1][1] for patient in first - second)

    def test_a_ready_cache_gives_the_ids_as_its_sources_have_them(self, joined, cache, tmp_path):
        views = contrastive_splits(cache)
        record_training_rows(tmp_path, views, None, "here")
        rows = read_training_rows(tmp_path)
        assert rows.compare([joined.patient_ids[0]], None, ["here"]).patients == 1
        assert rows.compare([f"pairs/{joined.patient_ids[0]}"], None, ["here"]).patients == 0

    def test_a_source_of_an_unknown_place_keeps_the_whole_from_counting_as_disjoint(self, cache, tmp_path):
        record_training_rows(tmp_path, contrastive_splits(cache), None)
        named = [name for name in read_training_rows(tmp_path).namespaces if not name.startswith("sha256:")]
        assert named == ["unnamed:1", "unnamed:2"]
        assert not any(disjoint_sets(name, "rsna") for name in named)
        assert disjoint_sets("mimic_cxr", "rsna")  # which alone would have been


class TestPublic:
    def test_two_public_data_sets_each_with_its_root(self, tmp_path):
        roots = [str(phantom_tree("mimic_cxr")), str(write_kaggle(tmp_path / "openi"))]
        arguments = DataArguments(
            dataset=["mimic_cxr", "openi"], data_root=roots, dataset_option=["mimic_cxr.sentences=mgca"]
        )
        pairs = load_training_pairs(arguments)
        assert pairs.dataset.features["source"].names == ["mimic_cxr", "openi"]
        assert pairs.namespaces == ("mimic_cxr",)
        assert [names for _, names in pairs.more] == [("openi",)]
        assert dict(pairs.rule.sources).keys() == {"mimic_cxr", "openi"}
        assert arguments.dataset_name == "mimic_cxr + openi"
        for name, root in zip(("mimic_cxr", "openi"), roots, strict=True):
            option = ["sentences=mgca"] if name == "mimic_cxr" else []
            alone = load_training_pairs(DataArguments(dataset=name, data_root=root, dataset_option=option)).dataset
            code = pairs.dataset.features["source"].str2int(name)
            mine = pairs.dataset.select(np.flatnonzero(np.array(pairs.dataset["source"][:]) == code))
            assert mine["split"][:] == alone["split"][:]
            assert mine["text"][:] == alone["text"][:]
            assert mine["image"][0] == alone["image"][0]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dataset": ["mimic_cxr", "openi"], "data_root": ["x", "y", "z"]}, "got 3 for 2"),
            ({"dataset": "mimic_cxr", "data_root": ["x", "y"]}, "got 2 for 1"),
            ({"dataset": ["a", "b"], "data_root": "x", "train_file": ["c"]}, "one of them"),
            ({"train_file": ["a", "b"], "cache": ["c"]}, "one of them"),
        ],
    )
    def test_options_that_do_not_go_together_are_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            DataArguments(**changes)

    def test_one_root_for_all_and_options_of_one(self):
        arguments = DataArguments(dataset=["mimic_cxr", "openi"], data_root="x", dataset_option=["openi.a=1", "b=2"])
        parts = source_arguments(arguments)
        assert {name: one.data_root for name, one in parts.items()} == {"mimic_cxr": "x", "openi": "x"}
        assert [one.dataset_option for one in parts.values()] == [["b=2"], ["a=1", "b=2"]]
        with pytest.raises(ValueError, match="names a data set twice"):
            source_arguments(DataArguments(dataset=["openi", "openi"], data_root="x"))


class TestNames:
    def test_names_are_unique_and_no_beginning_of_a_metric(self):
        places = ["/data/a b.csv", "x/a b.csv.gz", "imagefolder/", "image.parquet", "owner/name"]
        assert source_names(places, "table") == ["a_b", "a_b_2", "imagefolder", "image_2", "name"]

    def test_in_private_mode_a_table_is_a_number_and_ids_are_hashes(self, tables):
        with private_mode(b"k" * 32):
            pairs = load_training_pairs(DataArguments(train_file=tables))
        assert pairs.dataset.features["source"].names == ["table_1", "table_2"]
        for column in ("image_id", "patient_id", "study_id"):
            assert not any("/" in value or "table" in value for value in pairs.dataset[column][:])
        assert len(set(pairs.dataset["patient_id"][:])) == 20 + 12
        # The digests of the training rows need the ids themselves.
        assert "0" in {*pairs.patient_ids, *pairs.more[0][0]}

    def test_one_namespace_is_the_earlier_sources(self):
        assert qualifiers(["a", "b", "c"], [("x",), ("y",), ("x", "z")]) == ["a", "b", "a"]


class TestRule:
    def test_of_several_sources_each_has_its_own_and_hashes_of_one_stay(self):
        one = SplitRule()
        assert "sources" not in one.to_dict()
        # As version 0.1 wrote it: checkpoints carry it.
        assert one.hash == "acd8f3d16c4b"
        rules = {"mimic_cxr": SplitRule(scheme="official", dataset="mimic_cxr"), "source_2": SplitRule(scheme="given")}
        joint = SplitRule.of_sources(rules)
        again = SplitRule.from_dict(joint.to_dict())
        assert again == joint
        assert again.hash not in {rule.hash for rule in rules.values()}
        assert (again.of("mimic_cxr").scheme, again.of("mimic_cxr").dataset) == ("official", "mimic_cxr")
        assert again.of("openi").dataset is None
        assert again.of(None) == SplitRule()
