"""Splits are by patient, stable, never empty when they can be otherwise, and carry a name."""

import logging

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptor_hf.data.splits import (
    SPLITS,
    assign_splits,
    canonical_split,
    check_disjoint,
    patient_fraction,
    split_hash,
)
from adaptor_hf.data.tables import load_pairs


def pairs(patients, splits=None, studies=None, images=None):
    """A data set with the columns that splitting reads."""
    n = len(patients)
    columns = {
        "image_id": images or [f"i{i}" for i in range(n)],
        "patient_id": patients,
        "study_id": studies or [None] * n,
        "split": splits or [None] * n,
        "source_row": list(range(n)),
    }
    kinds = {"source_row": datasets.Value("int64")}
    features = datasets.Features({name: kinds.get(name, datasets.Value("string")) for name in columns})
    return datasets.Dataset.from_dict(columns, features=features)


def by_patient(data):
    return dict(zip(data["patient_id"], data["split"], strict=True))


patient_lists = st.lists(st.integers(0, 40).map(str), min_size=1, max_size=80)
shares = st.floats(0, 0.45)
few = settings(max_examples=60, deadline=None)


class TestAssign:
    @few
    @given(patient_lists, shares, shares, st.integers(0, 5))
    def test_each_patient_is_in_one_split_and_no_wanted_split_is_empty(self, patients, validation, test, seed):
        data = assign_splits(pairs(patients), validation_fraction=validation, test_fraction=test, seed=seed)
        assert data["source_row"][:] == list(range(len(patients)))
        assert check_disjoint(data) == {}
        wanted = [name for name, share in zip(SPLITS, (1, validation, test), strict=True) if share > 0]
        found = set(data["split"])
        assert set(wanted[: len(set(patients))]) <= found <= set(wanted)

    @few
    @given(patient_lists, st.randoms())
    def test_row_order_does_not_matter(self, patients, random):
        data = by_patient(assign_splits(pairs(patients)))
        shuffled = random.sample(patients, len(patients))
        assert by_patient(assign_splits(pairs(shuffled))) == data

    def test_patients_keep_their_split_when_others_join(self):
        old = by_patient(assign_splits(pairs([f"p{i}" for i in range(500)])))
        new = by_patient(assign_splits(pairs([f"p{i}" for i in range(900)])))
        assert {patient: new[patient] for patient in old} == old

    def test_shares_are_met_and_seeds_differ(self):
        data = pairs([f"p{i}" for i in range(5000)])
        split = assign_splits(data, validation_fraction=0.1, test_fraction=0.2)["split"][:]
        assert 400 < split.count("validation") < 600
        assert 850 < split.count("test") < 1150
        assert assign_splits(data, seed=1)["split"][:] != assign_splits(data)["split"][:]
        assert "test" not in assign_splits(data, test_fraction=0)["split"][:]

    def test_is_fixed_for_good(self):
        """The same on every machine and in every process, which Python's own hash() would not be."""
        split = assign_splits(pairs(list("abcdefghij")), test_fraction=0.3, seed=0)["split"]
        assert "".join(name[1] for name in split) == "errraereer"

    def test_a_given_split_is_kept_and_half_a_split_refused(self):
        data = pairs(["1", "2"], ["train", "test"])
        assert assign_splits(data)["split"][:] == ["train", "test"]
        with pytest.raises(ValueError, match="1 of 2 rows have no split"):
            assign_splits(pairs(["1", "2"], ["train", None]))

    def test_study_and_image_stand_in_for_a_missing_patient_with_a_warning(self, caplog):
        n = 200
        studies = [f"s{i // 4}" if i < 100 else None for i in range(n)]
        data = pairs([None] * n, studies=studies, images=[f"i{i // 2}" for i in range(n)])
        split = assign_splits(data, validation_fraction=0.4)["split"][:]
        assert "200 of 200 rows have no patient id" in caplog.text
        assert "leakage cannot be excluded" in caplog.text
        assert all(len(set(split[i : i + 4])) == 1 for i in range(0, 100, 4))
        assert all(len(set(split[i : i + 2])) == 1 for i in range(100, n, 2))
        assert len(set(split)) == 3

    def test_no_warning_when_every_row_has_a_patient(self, caplog):
        assign_splits(pairs(["1", "2", "3"]))
        assert caplog.text == ""

    def test_the_other_columns_and_their_order_stay(self):
        data = pairs(["1", "2", "3"]).select([2, 0])
        split = assign_splits(data)
        assert split.column_names == data.column_names
        assert split.features == data.features
        assert split["source_row"][:] == [2, 0]
        assert assign_splits(data.remove_columns("split"))["split"][:] == split["split"][:]

    @pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (1, 0), (float("nan"), 0)])
    def test_impossible_shares(self, validation, test):
        with pytest.raises(ValueError, match="shares of patients"):
            assign_splits(pairs(["1"]), validation_fraction=validation, test_fraction=test)
        with pytest.raises(ValueError, match="without rows"):
            assign_splits(pairs(["1"]).select([]))


class TestFraction:
    @few
    @given(patient_lists, st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 5))
    def test_nested_by_patient(self, patients, a, b, seed):
        data = pairs(patients, ["train" if int(p) % 3 else "test" for p in patients])
        if "train" not in data["split"]:
            return
        small, large = (patient_fraction(data, f, seed) for f in sorted((a, b)))
        assert set(small["source_row"]) <= set(large["source_row"])
        kept = set(small.filter(lambda s: s == "train", input_columns="split")["patient_id"])
        whole = [i for i, p in enumerate(patients) if p in kept or int(p) % 3 == 0]
        assert small["source_row"][:] == whole
        n = len({p for p in patients if int(p) % 3})
        assert len(kept) == max(1, round(min(a, b) * n))

    def test_the_row_count_changes_and_only_in_train(self):
        data = assign_splits(pairs([f"p{i // 2}" for i in range(2000)]))
        before = {name: data["split"][:].count(name) for name in SPLITS}
        third = patient_fraction(data, 0.3)["split"][:]
        assert third.count("train") == pytest.approx(0.3 * before["train"], abs=2)
        assert (third.count("validation"), third.count("test")) == (before["validation"], before["test"])
        assert len(patient_fraction(data, 1)) == len(data)

    def test_without_any_split_every_row_is_training(self):
        assert len(patient_fraction(pairs([str(i) for i in range(100)]), 0.1)) == 10

    def test_seeds_differ_and_the_choice_is_not_that_of_the_split(self):
        data = pairs([f"p{i}" for i in range(100)])
        assert patient_fraction(data, 0.1)["patient_id"][:] != patient_fraction(data, 0.1, seed=1)["patient_id"][:]
        split = by_patient(assign_splits(data))
        assert {split[p] for p in patient_fraction(data, 0.3)["patient_id"]} == set(SPLITS)

    @pytest.mark.parametrize("fraction", [0, -0.1, 1.1, 30, float("nan")])
    def test_impossible_fractions(self, fraction):
        with pytest.raises(ValueError, match="0, 1"):
            patient_fraction(pairs(["1"]), fraction)
        with pytest.raises(ValueError, match="no training rows"):
            patient_fraction(pairs(["1"], ["test"]), 0.5)


class TestHash:
    @few
    @given(patient_lists, st.randoms())
    def test_names_the_split_whatever_the_row_order(self, patients, random):
        data = assign_splits(pairs(patients))
        order = random.sample(range(len(patients)), len(patients))
        name = split_hash(data)
        assert split_hash(data.select(order)) == name
        assert len(name) == 12
        int(name, 16)

    def test_changes_with_any_row(self):
        names = {
            split_hash(pairs(["1", "2"], ["train", "test"])),
            split_hash(pairs(["1", "2"], ["test", "train"])),
            split_hash(pairs(["1"], ["train"])),
            split_hash(pairs(["1", "2"], ["train", "test"], images=["a", "b"])),
        }
        assert len(names) == 4

    def test_is_fixed_for_good(self):
        """Published results carry it: a change here needs a reason."""
        assert split_hash(pairs(["1", "2"], ["train", "test"])) == "ac621a341c8f"


class TestDisjoint:
    def test_overlap_raises_with_counts_and_without_ids(self, caplog):
        data = pairs(["secret", "b", "secret", "b", "b"], ["train", "train", "test", "validation", "test"])
        with pytest.raises(ValueError, match="1 in both train and validation, 2 in both train and test") as caught:
            check_disjoint(data)
        assert "secret" not in str(caught.value)
        expected = {("train", "validation"): 1, ("train", "test"): 2, ("validation", "test"): 1}
        assert check_disjoint(data, allow_overlap=True) == expected
        assert "2 in both train and test" in caplog.text
        assert "secret" not in caplog.text

    def test_rows_without_patient_are_counted(self, caplog):
        assert check_disjoint(pairs([None, "1"], ["train", "test"])) == {}
        assert "1 of 2 rows have no patient id" in caplog.text


def test_real_split_is_disjoint_and_fractions_nest(realbench, caplog):
    caplog.set_level(logging.WARNING)
    data = load_pairs(realbench / "metadata.csv", filters=["dataset=covidcxr"])
    assert check_disjoint(data) == {}
    rows = [set(patient_fraction(data, fraction)["source_row"]) for fraction in (0.01, 0.1, 0.3, 1)]
    assert rows[0] < rows[1] < rows[2] < rows[3]
    assert caplog.text == ""


SPELLINGS = {
    "case": (lambda i: f"P{i}", lambda i: f"p{i}"),
    "leading zeros": (lambda i: f"{i:07d}", str),
    "final .0": (lambda i: f"{i}.0", str),
    "NFC and NFD": (lambda i: f"M\u00fc{i}", lambda i: f"Mu\u0308{i}"),
    "full width": (lambda i: f"P{i}".translate({c: c + 0xFEE0 for c in range(33, 127)}), lambda i: f"P{i}"),
    "zero width": (lambda i: f"P\u200b{i}", lambda i: f"P{i}"),
    "spaces": (lambda i: f" P{i}\u00a0", lambda i: f"P{i}"),
}


@pytest.mark.parametrize("kind", SPELLINGS)
class TestSpellings:
    @pytest.mark.parametrize("column", ["patient_id", "study_id", "image_id"])
    def test_one_patient_is_in_one_split_however_two_tables_write_the_id(self, kind, column):
        splits = []
        for write in SPELLINGS[kind]:
            names = [write(i) for i in range(200)]
            given = {"patient_id": (names, None, None), "study_id": ([None] * 200, names, None)}
            patients, studies, images = given.get(column, ([None] * 200, None, names))
            data = pairs(patients, None, studies, images)
            splits.append(assign_splits(data, validation_fraction=0.3, test_fraction=0.3)["split"][:])
            kept = patient_fraction(data, 0.5)["source_row"][:]
            splits[-1].append(tuple(kept))
        assert splits[0] == splits[1]

    def test_exact_ids_take_them_for_different_patients(self, kind):
        first, second = ([write(i) for i in range(200)] for write in SPELLINGS[kind])
        shares = {"validation_fraction": 0.3, "test_fraction": 0.3, "ids": "exact"}
        assert assign_splits(pairs(first), **shares)["split"][:] != assign_splits(pairs(second), **shares)["split"][:]

    def test_overlap_of_given_splits_is_found(self, kind):
        first, second = (write(12) for write in SPELLINGS[kind])
        data = pairs([first, second], ["train", "test"])
        with pytest.raises(ValueError, match="1 in both train and test"):
            check_disjoint(data)
        assert check_disjoint(data, ids="exact") == {}


def test_other_patients_are_not_drawn_together():
    assert check_disjoint(pairs(["P1", "P10", "A1", "B1"], ["train", "test", "train", "test"])) == {}
    with pytest.raises(ValueError, match="exact or canonical"):
        assign_splits(pairs(["1"]), ids="merged")


@pytest.mark.parametrize("name", [" Train", "TRAINING", "val", "Valid ", "validate", "dev", "test", "Testing"])
def test_a_split_name_has_one_meaning_everywhere(name, tmp_path):
    from adaptor_hf.data.splits import rename_splits
    from adaptor_hf.embeddings.table import merge_splits, read_ids

    meant = canonical_split(name)
    assert meant in SPLITS
    data = pairs(["1"], [name])
    table = tmp_path / "p.csv"
    table.write_text(f"image,text,split\na.png,x,{name}\n")
    loaded = load_pairs(table)
    keyed = datasets.DatasetDict({name.strip(): data.remove_columns("split")})
    assert loaded["split"][:] == [meant]
    assert read_ids(data.with_format("arrow"))["split"].to_pylist() == [meant]
    assert read_ids(*merge_splits(keyed))["split"].to_pylist() == [meant]
    assert rename_splits(loaded, [f"{name}=testing"])["split"][:] == ["test"]


def test_an_unknown_split_name_is_refused_everywhere_in_the_same_words(tmp_path):
    from adaptor_hf.data.splits import rename_splits
    from adaptor_hf.embeddings.table import merge_splits, read_ids

    data = pairs(["1"], ["holdout"])
    table = tmp_path / "p.csv"
    table.write_text("image,text,split\na.png,x,holdout\n")
    keyed = datasets.DatasetDict({"holdout": data.remove_columns("split")})
    known = assign_splits(pairs(["1"]))
    for refused in (
        lambda: load_pairs(table),
        lambda: read_ids(data.with_format("arrow")),
        lambda: merge_splits(keyed),
        lambda: rename_splits(known, ["holdout=test"]),
        lambda: rename_splits(known, ["train=holdout"]),
    ):
        with pytest.raises(ValueError, match=r"unknown split 'holdout'.*Expected train, validation .*--split_column"):
            refused()


def test_no_split_on_any_row_is_no_split_and_on_some_is_an_error(tmp_path):
    from adaptor_hf.embeddings.table import read_ids

    table = tmp_path / "p.csv"
    table.write_text("image,text,split\na.png,x,\nb.png,y,NA\n")
    assert load_pairs(table)["split"][:] == [None, None]
    assert read_ids(pairs(["1", "2"]).with_format("arrow"))["split"].to_pylist() == ["train", "train"]
    with pytest.raises(ValueError, match="1 of 2 rows have no split"):
        read_ids(pairs(["1", "2"], ["test", None]).with_format("arrow"))
