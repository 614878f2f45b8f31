"""Training rows: what a checkpoint knows of its patients and images, and what nobody else can read from it."""

import hashlib
import os
import stat

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import load_file
from synthetic import synthetic_config

from adaptor_hf import AdaptorModel
from adaptor_hf.data.split_rule import SplitRule
from adaptor_hf.data.training_rows import (
    KEY_FILE,
    TRAINING_ROWS_FILE,
    copy_training_rows,
    find_training_rows,
    id_namespaces,
    read_training_rows,
    write_training_rows,
)
from adaptor_hf.privacy.mode import keyed_digests, private_mode


def digests(*names: str) -> np.ndarray:
    return np.array([hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names], "S16")


@pytest.fixture
def run(tmp_path):
    write_training_rows(tmp_path, digests("a", "b"), ["P007", "12", None], ("my-hospital",))
    return tmp_path


class TestCompare:
    def test_a_patient_is_found_under_every_spelling_and_an_image_by_its_content(self, run):
        seen = read_training_rows(run).compare(
            ["p007", "0012", "13", "13"], digests("b", "c", "d", "e"), ["my-hospital"]
        )
        assert (seen.patients, seen.of_patients, seen.images, seen.of_images) == (2, 3, 1, 4)
        assert seen.status == "found"

    def test_exact_ids_keep_spellings_apart(self, tmp_path):
        write_training_rows(tmp_path, digests("a"), ["P7"], ("x",), ids="exact")
        assert read_training_rows(tmp_path).compare(["p7"], digests("b"), ["x"]).patients == 0
        assert read_training_rows(tmp_path).compare(["P7"], digests("b"), ["x"]).patients == 1

    def test_nothing_shared_is_none(self, run):
        assert read_training_rows(run).compare(["99"], digests("x"), ["my-hospital"]).status == "none"

    def test_equal_ids_of_another_place_are_not_compared(self, run):
        seen = read_training_rows(run).compare(["12"], digests("x"), ["other-hospital"])
        assert (seen.patients, seen.status) == (None, "unknown")
        assert "--id_namespace" in seen.reason
        assert read_training_rows(run).compare(["12"], digests("x"), ["rsna"], disjoint=True).status == "none"

    def test_images_are_compared_across_all_namespaces(self, run):
        assert read_training_rows(run).compare(["12"], digests("a"), ["other"]).status == "found"

    def test_rows_without_patient_leave_the_answer_open(self, run):
        assert read_training_rows(run).compare(["99", None], digests("x", "y"), ["my-hospital"]).status == "unknown"

    def test_one_row_without_patient_does_not_hide_the_patients_that_are_found(self, run):
        seen = read_training_rows(run).compare(["12", None], digests("x", "y"), ["my-hospital"])
        assert (seen.patients, seen.status) == (1, "found")

    def test_without_the_key_patients_are_unknown_and_images_are_not(self, run):
        (run / KEY_FILE).unlink()
        seen = read_training_rows(run).compare(["12"], digests("a"), ["my-hospital"])
        assert (seen.patients, seen.images, seen.status) == (None, 1, "found")


class TestFile:
    def test_no_id_is_in_it_and_the_key_is_its_owners(self, run):
        content = (run / TRAINING_ROWS_FILE).read_bytes()
        assert b"P007" not in content
        assert b"p007" not in content
        assert stat.S_IMODE(os.stat(run / KEY_FILE).st_mode) == 0o600

    def test_another_run_has_other_digests_of_the_same_patient(self, run, tmp_path_factory):
        other = tmp_path_factory.mktemp("other")
        write_training_rows(other, digests("a", "b"), ["P007", "12"], ("my-hospital",))
        one, two = (load_file(folder / TRAINING_ROWS_FILE) for folder in (run, other))
        assert (one["images"] == two["images"]).all()
        assert not {row.tobytes() for row in one["patients"]} & {row.tobytes() for row in two["patients"]}

    def test_writing_again_keeps_the_key(self, run):
        before = (run / TRAINING_ROWS_FILE).read_bytes(), (run / KEY_FILE).read_bytes()
        write_training_rows(run, digests("b", "a"), ["12", "P007"], ("my-hospital",))
        assert ((run / TRAINING_ROWS_FILE).read_bytes(), (run / KEY_FILE).read_bytes()) == before

    def test_a_digest_that_ends_in_zero_bytes_is_found(self, tmp_path):
        every = [str(number) for number in range(3000)]
        write_training_rows(tmp_path, None, every, ("x",))
        assert read_training_rows(tmp_path).compare(every, None, ["x"]).patients == 3000

    def test_a_damaged_file_is_no_unknown(self, run):
        (run / TRAINING_ROWS_FILE).write_bytes((run / TRAINING_ROWS_FILE).read_bytes()[:40])
        with pytest.raises(ValueError, match="is damaged"):
            find_training_rows(run)

    def test_checkpoints_and_controls_have_their_runs(self, run):
        for name in ("checkpoint-20", "controls/projections"):
            (run / name).mkdir(parents=True)
            assert find_training_rows(run / name).namespaces == ("my-hospital",)
        assert find_training_rows("someone/model-on-a-hub") is None


class TestPrivateMode:
    def test_only_the_same_key_compares(self, tmp_path):
        with private_mode(b"k" * 32):
            write_training_rows(tmp_path, keyed_digests(digests("a")), ["12"], ("x",))
            seen = read_training_rows(tmp_path).compare(["012"], keyed_digests(digests("a")), ["x"])
            assert (seen.patients, seen.images) == (1, 1)
        assert not (tmp_path / KEY_FILE).exists()
        for key in (b"j" * 32, None):
            if key is None:
                seen = read_training_rows(tmp_path).compare(["12"], digests("a"), ["x"])
            else:
                with private_mode(key):
                    seen = read_training_rows(tmp_path).compare(["12"], keyed_digests(digests("a")), ["x"])
            assert (seen.patients, seen.images, seen.status) == (None, None, "unknown")

    def test_a_private_test_finds_the_rows_of_an_open_run(self, run):
        with private_mode(b"k" * 32):
            seen = read_training_rows(run).compare(["12"], keyed_digests(digests("a", "z")), ["my-hospital"])
        assert (seen.patients, seen.images) == (1, 1)


class TestCopiesOfTheModel:
    def test_save_pretrained_carries_the_rows_but_not_those_of_private_mode(self, run, tmp_path_factory):
        target = tmp_path_factory.mktemp("copies")
        AdaptorModel(synthetic_config()).save_pretrained(run)
        AdaptorModel.from_pretrained(run).save_pretrained(target / "open")
        assert find_training_rows(target / "open").compare(["12"], digests("a"), ["my-hospital"]).patients == 1
        with private_mode(b"k" * 32):
            write_training_rows(run, digests("a"), ["12"], ("my-hospital",))
        AdaptorModel.from_pretrained(run).save_pretrained(target / "private")
        assert find_training_rows(target / "private") is None

    @pytest.mark.parametrize("place", ["checkpoint-3", "controls/shuffled"])
    def test_the_rows_of_the_run_go_along_from_its_parts_too(self, run, place, tmp_path_factory):
        target = tmp_path_factory.mktemp("copies")
        AdaptorModel(synthetic_config()).save_pretrained(run / place)
        model = AdaptorModel.from_pretrained(run / place)
        model.save_pretrained(target)
        assert find_training_rows(run / place) is not None
        assert find_training_rows(target).compare(["12"], digests("a"), ["my-hospital"]).patients == 1
        model.save_pretrained(run)
        assert find_training_rows(run).compare(["12"], digests("a"), ["my-hospital"]).patients == 1

    def test_a_push_sends_them_only_when_asked_and_never_the_key(self, run):
        from adaptor_hf.hub.push import files_to_push

        AdaptorModel(synthetic_config()).save_pretrained(run)
        assert TRAINING_ROWS_FILE not in files_to_push(run)
        sent = files_to_push(run, training_rows=True)
        assert TRAINING_ROWS_FILE in sent
        assert KEY_FILE not in sent

    def test_transformers_own_push_leaves_them_out(self, run, monkeypatch, tmp_path_factory):
        from transformers.utils.hub import PushToHubMixin

        sent = tmp_path_factory.mktemp("sent")
        AdaptorModel(synthetic_config()).save_pretrained(run)
        model = AdaptorModel.from_pretrained(run)
        monkeypatch.setattr(PushToHubMixin, "push_to_hub", lambda self, *_, **__: self.save_pretrained(sent))
        model.push_to_hub("someone/model")
        assert (sent / "model.safetensors").is_file()
        assert not (sent / TRAINING_ROWS_FILE).exists()
        assert not (sent / KEY_FILE).exists()


class TestNamespaces:
    def test_one_table_is_one_set_of_ids_whatever_it_is_called(self, tmp_path):
        (tmp_path / "a.csv").write_text("image,patient_id\n1.png,1\n")
        (tmp_path / "b.csv").write_text("image,patient_id\n1.png,1\n")
        (tmp_path / "c.csv").write_text("image,patient_id\n2.png,1\n")
        one, two, three = (set(id_namespaces(name, tmp_path / f"{name}.csv")) for name in "abc")
        assert one & two
        assert not one & three

    def test_chexpert_5x200_has_chexperts_patients(self):
        assert id_namespaces("chexpert_5x200") == id_namespaces("chexpert")


class TestSplitRule:
    def test_a_rule_survives_a_config_and_an_edited_one_is_refused(self):
        rule = SplitRule(seed=3, test_fraction=0.2)
        assert SplitRule.from_dict(rule.to_dict()) == rule
        config = synthetic_config(split_rule=rule.to_dict())
        assert SplitRule.from_dict(type(config).from_dict(config.to_dict()).split_rule) == rule
        with pytest.raises(ValueError, match="it was edited"):
            SplitRule.from_dict(rule.to_dict() | {"seed": 4})

    def test_every_field_is_in_the_hash(self):
        rule = SplitRule()
        changes = {"scheme": "official", "seed": 1, "validation_fraction": 0.2, "test_fraction": 0.2, "ids": "exact",
                   "dataset": "rsna"}  # fmt: skip
        assert len({rule.hash, *(rule.with_options(**{name: value}).hash for name, value in changes.items())}) == 7

    def test_a_table_is_split_as_both_scripts_would_and_its_own_split_is_kept(self):
        ids = [f"p{number // 2}" for number in range(400)]
        plain = Dataset.from_dict({"image_id": [str(number) for number in range(400)], "patient_id": ids})
        split, used = SplitRule().apply(plain)
        assert used == SplitRule()
        parts = dict(zip(ids, split["split"], strict=True))
        assert set(parts.values()) == {"train", "validation", "test"}
        # Few of the rows, in another order and spelling, are split alike.
        others = [f" P{number} " for number in range(199, 0, -2)]
        few = Dataset.from_dict({"image_id": others, "patient_id": others})
        assert SplitRule().apply(few)[0]["split"][:] == [parts[name.strip().lower()] for name in others]
        given = plain.add_column("split", ["train"] * 300 + ["test"] * 100)
        kept, used = SplitRule().apply(given)
        assert used.scheme == "given"
        assert set(kept["split"][300:]) == {"test"}
        assert {"train", "validation"} == set(kept["split"][:300])

    def test_both_scripts_start_from_one_default(self):
        from adaptor_hf.training.script_arguments import DataArguments

        pretraining = DataArguments(train_file="x.csv")
        mine = SplitRule()
        assert (pretraining.split_seed, pretraining.validation_fraction, pretraining.test_fraction) == (
            mine.seed, mine.validation_fraction, mine.test_fraction,
        )  # fmt: skip


class TestEarlier:
    """What a model started from shaped it too."""

    def test_its_rows_are_found_under_the_one_key(self, run, tmp_path):
        write_training_rows(tmp_path / "new", digests("c"), ["40"], ("elsewhere",), earlier=[run])
        rows = read_training_rows(tmp_path / "new")
        assert rows.compare(["0012"], digests("x"), ["my-hospital"]).patients == 1
        assert rows.compare(["40"], digests("x"), ["elsewhere"]).patients == 1
        assert rows.compare(["99"], digests("b", "c", "x"), ["elsewhere"]).images == 2
        assert rows.compare(["99"], digests("x"), ["my-hospital", "elsewhere"]).status == "none"
        assert stat.S_IMODE(os.stat(tmp_path / "new" / KEY_FILE).st_mode) == 0o600

    @pytest.mark.parametrize("missing", ["file", "key", "spelling"])
    def test_where_they_are_not_known_nothing_is_said_to_be_unseen(self, run, tmp_path, missing):
        place = tmp_path / "nothing" if missing == "file" else run
        if missing == "key":
            (run / KEY_FILE).unlink()
        ids = "exact" if missing == "spelling" else "canonical"
        write_training_rows(tmp_path / "new", digests("c"), ["40"], ("my-hospital",), earlier=[place], ids=ids)
        rows = read_training_rows(tmp_path / "new")
        assert rows.compare(["99"], digests("x"), ["my-hospital"]).status == "unknown"
        assert rows.compare(["40"], digests("x"), ["my-hospital"]).status == "found"
        # So is what starts from that.
        write_training_rows(tmp_path / "third", digests("d"), ["41"], ("my-hospital",), earlier=[tmp_path / "new"])
        assert read_training_rows(tmp_path / "third").compare(["99"], digests("x"), ["my-hospital"]).status == "unknown"

    def test_private_mode_keys_the_images_of_earlier_rows(self, run, tmp_path):
        with private_mode(b"k" * 32):
            write_training_rows(tmp_path / "new", keyed_digests(digests("c")), ["40"], ("my-hospital",), earlier=[run])
            rows = read_training_rows(tmp_path / "new")
            assert rows.compare(["99"], keyed_digests(digests("a", "c", "x")), ["my-hospital"]).images == 2
            # Its patients are under the key of that run: they are not known here.
            assert rows.compare(["12"], digests("x"), ["my-hospital"]).status == "unknown"

    def test_a_tower_has_the_rows_of_its_run_until_it_has_its_own(self, run, tmp_path):
        tower = run / "vision_tower"
        tower.mkdir()
        assert find_training_rows(tower) is None
        (tower / "tower.json").write_text("{}")
        assert find_training_rows(tower).compare(["12"], None, ["my-hospital"]).patients == 1
        copy_training_rows(run, tower)
        tower.rename(tmp_path / "alone")
        assert find_training_rows(tmp_path / "alone").compare(["12"], None, ["my-hospital"]).patients == 1
