"""COCO captions, CC3M, CC12M, RedCaps and YFCC15M: every published layout gives the same kind of rows."""

import json
import tarfile

import numpy as np
import pandas as pd
import pytest
from fixtures import captions as trees
from fixtures.pictures import picture_bytes, write_picture
from fixtures.shards import add_member, write_shard

from adaptor_hf.data.captions import choose_captions, replace_name_tokens
from adaptor_hf.data.catalog import Request, get_dataset
from adaptor_hf.data.convert import main as convert
from adaptor_hf.data.public.yfcc15m import clean_text
from adaptor_hf.data.public_datasets import describe, load_public_dataset


def load(name, root, **options):
    return load_public_dataset(name, root, cache_dir=root.parent / "cache", **options)


def read(name, root, scheme=None, seed=0, **options):
    dataset = get_dataset(name)
    return dataset.read(
        Request(root, "pretraining", scheme or dataset.split_schemes[0], {**dataset.options, **options}, seed)
    )


def pairs(splits):
    """(split, text, value of the picture's first pixel) of all rows."""
    rows = [row for part in splits.values() for row in part]
    return sorted((row["split"], row["text"], int(np.asarray(row["image"])[0, 0, 0])) for row in rows)


class TestCoco:
    @pytest.fixture
    def tree(self, tmp_path):
        return trees.write_coco(tmp_path / "coco")

    def test_a_row_for_each_caption(self, tree):
        splits = load("coco_captions", tree)
        assert pairs(splits) == [
            ("train", "A man with a red helmet on a small moped on a dirt road.", 391895 % 200),
            ("train", "A woman cutting a cake.", 522418 % 200),
            ("train", "Man riding a motor bike.", 391895 % 200),
            ("validation", "A woman stands in the dining area.", 139),
        ]
        assert describe(splits)["dropped"] == {"no text": 1}
        assert {row["image_id"] for row in splits["train"]} == {"391895", "522418"}

    def test_first_and_random_captions(self, tree):
        assert len(load("coco_captions", tree, captions="first")["train"]) == 2
        drawn = {read("coco_captions", tree, captions="random", seed=seed).rows["text"][0] for seed in range(20)}
        assert len(drawn) == 2
        again = [list(read("coco_captions", tree, captions="random", seed=3).rows["text"]) for _ in range(2)]
        assert again[0] == again[1]

    def test_validation_images_alone(self, tree):
        (tree / "annotations" / "captions_train2017.json").unlink()
        found = read("coco_captions", tree)
        assert set(found.rows["split"]) == {"validation"}
        assert "Only the captions of validation" in found.notes[0]

    @pytest.mark.parametrize("folders", ["2014", "2017"])
    def test_karpathy(self, tmp_path, folders):
        tree = trees.write_karpathy(tmp_path / "coco")
        if folders == "2017":
            for path in tree.glob("*2014/*.jpg"):
                write_picture(tree / "val2017" / path.name.rpartition("_")[2], int(path.stem[-3:]))
                path.unlink()
        splits = load("coco_captions", tree, split_scheme="karpathy")
        assert {name: len(part) for name, part in splits.items()} == {"train": 4, "validation": 2, "test": 2}
        assert pairs(splits)[0] == ("test", "Caption 0 of 4.", 4)

    def test_faults_name_the_file_and_the_entry(self, tree):
        path = tree / "annotations" / "captions_train2017.json"
        content = json.loads(path.read_text())
        content["annotations"][1].pop("caption")
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"captions_train2017\.json, annotations, entry 2: expected .*caption"):
            read("coco_captions", tree)
        path.write_text(json.dumps(content)[:-20])
        with pytest.raises(ValueError, match=r"captions_train2017\.json: not readable JSON.*fully downloaded"):
            read("coco_captions", tree)
        path.write_text("[]")
        with pytest.raises(ValueError, match="a JSON list, expected dict"):
            read("coco_captions", tree)
        with pytest.raises(FileNotFoundError, match=r"captions_train2017\.json"):
            read("coco_captions", tree / "train2017")

    def test_repeated_images_and_captions_of_no_image_are_counted(self, tree):
        path = tree / "annotations" / "captions_val2017.json"
        content = json.loads(path.read_text())
        content["images"] *= 2
        content["annotations"].append({"image_id": 77, "id": 9, "caption": "x"})
        path.write_text(json.dumps(content))
        assert read("coco_captions", tree).dropped == {
            "image id that an earlier entry has": 1,
            "caption of no image": 1,
        }


class TestConceptualCaptions:
    def test_the_table_of_cc3m(self, tmp_path):
        splits = load("cc3m", trees.write_cc3m_table(tmp_path / "cc3m"))
        assert pairs(splits) == [
            ("train", "a man , in a red coat", 0),
            ("train", "a man , in a red coat", 20),
            ("train", 'the "coat" , again', 10),
            ("validation", "a dog", 200),
        ]
        assert any("1 captions are word for word" in note for note in describe(splits)["notes"])

    def test_the_table_of_cc12m_has_its_columns_the_other_way_round(self, tmp_path):
        tree = trees.write_cc12m_table(tmp_path / "cc12m")
        found = read("cc12m", tree, image_name="{row}.jpg", name_tokens="words")
        assert list(found.rows["text"]) == ["a person at the lake", "A house, 2.5 m high"]
        assert list(found.rows["image"]) == ["images/0.jpg", "images/1.jpg"]
        (tree / "cc12m.tsv").rename(tree / "Train_GCC-training.tsv")
        with pytest.raises(ValueError, match=r"Train_GCC-training\.tsv, row 1: expected caption and url.*cc12m"):
            read("cc3m", tree)

    @pytest.mark.parametrize("template", ["image.jpg", "{url}.jpg", "{0}.jpg"])
    def test_a_template_that_names_no_rows(self, tmp_path, template):
        with pytest.raises(ValueError, match="image_name"):
            read("cc12m", trees.write_cc12m_table(tmp_path), image_name=template)

    @pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
    def test_slips_lists_are_converted_first(self, tmp_path, suffix):
        tree = trees.write_slip_cc3m(tmp_path / "cc3m")
        with pytest.raises(ValueError, match=r"python -m adaptor_hf.data.convert .*cc3m\.npy .*cc3m\.parquet"):
            read("cc3m", tree)
        convert([str(tree / "cc3m.npy"), str(tree / f"cc3m.{suffix}")])
        rows = read("cc3m", tree).rows
        assert list(rows["image"]) == ["1510438788", "1510438788", "17"]
        splits = load("cc3m", tree, split_scheme="patient", validation_fraction=0.0, test_fraction=0.0)
        assert pairs(splits) == [
            ("train", "a dog", 10), ("train", "a field", 0), ("train", "large field with wheat", 0)
        ]  # fmt: skip

    def test_slips_list_of_cc12m_names_its_files(self, tmp_path):
        tree = trees.write_slip_cc12m(tmp_path / "cc12m")
        convert([str(tree / "cc12m.npy"), str(tree / "cc12m.parquet")])
        assert list(read("cc12m", tree).rows["image"]) == ["images/0.jpg", "images/1.jpg"]

    def test_a_converted_list_without_its_columns(self, tmp_path):
        tree = trees.write_slip_cc12m(tmp_path)
        convert([str(tree / "cc12m.npy"), str(tree / "cc3m.parquet")])
        (tree / "cc12m.jsonl").write_text('{"image_id": 1}\n')
        with pytest.raises(ValueError, match=r"cc12m\.jsonl: no column captions, image_name"):
            read("cc12m", tree)

    def test_dead_urls_are_counted(self, tmp_path):
        tree = trees.write_cc3m_table(tmp_path / "cc3m")
        (tree / "train/00000/000000001.jpg").unlink()
        assert describe(load("cc3m", tree))["missing_files"] == 1

    def test_a_wrong_root(self, tmp_path):
        for name in ("cc3m", "cc12m"):
            with pytest.raises(FileNotFoundError, match=r"\.tar.*Is this the right root"):
                read(name, tmp_path)


class TestShards:
    @pytest.mark.parametrize("text", [True, False])
    def test_samples_of_shards(self, tmp_path, text):
        root = tmp_path / "cc3m"
        write_shard(root, 0, ["a dog", "ein Hund, süß"], failed=3, text=text)
        write_shard(root, 1, ["a  cat\n", None], text=text)
        splits = load("cc3m", root, split_scheme="patient", validation_fraction=0.0, test_fraction=0.0)
        assert pairs(splits) == [("train", "a cat", 1), ("train", "a dog", 0), ("train", "ein Hund, süß", 10)]
        report = describe(splits)
        assert report["table_rows"] == 7
        assert report["dropped"] == {"not downloaded, by the parquet file beside the tar": 3, "no text": 1}
        assert set(splits["train"]["image_id"]) == {"00000/000000000", "00000/000000001", "00001/000010000"}

    def test_folders_named_after_splits(self, tmp_path):
        write_shard(tmp_path / "train", 0, ["a"])
        write_shard(tmp_path / "val", 0, ["b"])
        assert list(read("cc3m", tmp_path).rows["split"]) == ["train", "validation"]

    def test_many_shards_in_several_processes_come_in_order(self, tmp_path):
        for number in range(16):
            write_shard(tmp_path, number, [f"caption {number}"])
        dataset = get_dataset("cc12m")
        request = Request(tmp_path, "pretraining", "patient", dataset.options, 0, 2)
        assert list(dataset.read(request).rows["text"]) == [f"caption {number}" for number in range(16)]

    def test_faults_name_shard_and_sample(self, tmp_path):
        whole = write_shard(tmp_path, 0, ["a", "b", "c"])
        whole.write_bytes(whole.read_bytes()[: 4 * 1024 + 600])
        with tarfile.open(tmp_path / "00001.tar", "w") as tar:
            add_member(tar, "one.jpg", picture_bytes(1, ".jpg"))
            add_member(tar, "two.txt", b"no image")
            add_member(tar, "three.jpg", picture_bytes(3, ".jpg"))
            add_member(tar, "three.txt", "\u00fc".encode("latin1"))
            # A member of a sample that is not adjacent, and one that is there twice.
            add_member(tar, "one.txt", b"late")
            add_member(tar, "one.jpg", picture_bytes(9, ".jpg"))
            add_member(tar, "._one.jpg", b"of macOS")
        found = read("cc3m", tmp_path)
        assert found.dropped == {"a sample without image": 1}
        assert list(found.rows["text"])[-2:] == ["late", None]
        assert [fault.partition(":")[0] for fault in found.faults] == [
            "00000.tar", "00001.tar", "00001.tar, sample three",
        ]  # fmt: skip
        assert "cut short" in found.faults[0]
        assert "is not UTF-8" in found.faults[2]

    def test_compressed_shards_are_refused(self, tmp_path):
        with tarfile.open(tmp_path / "00000.tar.gz", "w:gz") as tar:
            add_member(tar, "a.jpg", b"x")
        with pytest.raises(ValueError, match=r"compressed tars, such as 00000\.tar\.gz.*gunzip"):
            read("cc12m", tmp_path)

    def test_the_other_sets_take_shards_too(self, tmp_path):
        write_shard(tmp_path, 0, ["by <usr>"])
        assert list(read("redcaps", tmp_path, name_tokens="remove").rows["text"]) == ["by"]
        assert list(read("yfcc15m", tmp_path).rows["text"]) == ["by <usr>"]


class TestRedCaps:
    @pytest.mark.parametrize("merged", [False, True])
    def test_original_and_merged_annotations(self, tmp_path, merged):
        tree = trees.write_redcaps(tmp_path / "redcaps", merged=merged)
        splits = load("redcaps", tree, validation_fraction=0.0, test_fraction=0.0)
        assert pairs(splits) == [("train", "a cat", 20), ("train", "old mill by <usr>", 0)]
        assert describe(splits)["dropped"] == {"no text": 1}
        assert set(splits["train"]["image_id"]) == {"5l3ia1", "7abc"}

    def test_raw_captions_and_ids_that_look_like_numbers(self, tmp_path):
        rows = read("redcaps", trees.write_redcaps(tmp_path), caption="raw_caption").rows.set_index("image_id")
        assert rows.loc["5l3ia1", "text"] == "Old Mill, [OC]"
        assert rows.loc["00123", "image"] == "images/abandoned/00123.jpg"
        with pytest.raises(ValueError, match="caption must be one of"):
            read("redcaps", tmp_path, caption="title")

    def test_a_subreddit_that_leads_out_of_the_root(self, tmp_path):
        tree = trees.write_redcaps(tmp_path / "redcaps", merged=True)
        rows = [row | {"subreddit": "../.."} for row in trees.REDCAPS]
        (tree / "redcaps_v1.json").write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=r"redcaps_v1\.json:1: the path .* leads out"):
            load("redcaps", tree)

    def test_an_annotation_without_image_id(self, tmp_path):
        tree = trees.write_redcaps(tmp_path)
        (tree / "annotations" / "cats_2018.json").write_text(json.dumps({"annotations": [{"caption": "x"}]}))
        with pytest.raises(ValueError, match=r"cats_2018\.json, entry 1: expected image_id"):
            read("redcaps", tree)


class TestYfcc:
    @pytest.fixture(params=[False, True])
    def tree(self, request, tmp_path):
        tree = trees.write_yfcc(tmp_path / "yfcc", unpacked=request.param)
        convert([str(tree / "yfcc15m.pkl"), str(tree / "yfcc15m.parquet")])
        return tree

    def test_titles_and_descriptions_with_images_in_zips(self, tree):
        splits = load("yfcc15m", tree, validation_fraction=0.0, test_fraction=0.0)
        assert pairs(splits) == [("train", "A boat", 10), ("train", "See the boat at", 10), ("train", "Two people", 20)]
        assert describe(splits)["dropped"] == {"no text": 1}
        assert list(read("yfcc15m", tree).rows["image_id"])[-1] == "00045001"

    def test_one_caption_an_image(self, tree):
        assert list(read("yfcc15m", tree, captions="first").rows["text"]) == ["A boat", "Two people", None]

    def test_a_missing_zip_and_a_missing_member(self, tmp_path):
        tree = trees.write_yfcc(tmp_path / "yfcc")
        (tree / "yfcc15m.jsonl").write_text(
            "".join(
                json.dumps({"index": index, "title": "t", "description": ""}) + "\n"
                for index in (12345678, 12345999, 77000000, 12345679)
            )
        )
        report = describe(load("yfcc15m", tree, max_fault_share=0.6))
        assert report["missing_files"] == 1
        assert report["dropped"]["image not in its zip"] == 1
        with pytest.raises(ValueError, match=r"yfcc15m\.jsonl:2: images/12/345\.zip has no 999\.jpg"):
            load("yfcc15m", tree, max_fault_share=0.4)

    def test_the_pickle_is_not_read(self, tmp_path):
        with pytest.raises(ValueError, match=r"adaptor_hf\.data\.convert .*yfcc15m\.pkl"):
            read("yfcc15m", trees.write_yfcc(tmp_path))


def test_text_without_links_and_tags():
    texts = pd.Series(['<a href="x">A</a> <i>b</i> http://x.y/z <u>c</u>', "www.only.links http://a", "1 < 2", None])
    assert list(clean_text(texts)) == ["A b <u>c</u>", None, "1 < 2", None]


def test_an_image_with_empty_captions_only_stays_once():
    rows = pd.DataFrame({"image": ["a", "b"], "text": [["", " "], ["x", "", "y"]]})
    for choice, texts in (("all", [None, "x", "y"]), ("first", [None, "x"])):
        assert list(choose_captions(rows, choice, 0)["text"]) == texts
    assert len(choose_captions(rows, "random", 0)) == 2
    with pytest.raises(ValueError, match="captions must be one of"):
        choose_captions(rows, "some", 0)


def test_name_tokens():
    texts = pd.Series(["<PERSON> and <usr>", None], dtype=object)
    assert list(replace_name_tokens(texts, "keep")) == ["<PERSON> and <usr>", None]
    assert list(replace_name_tokens(texts, "words")) == ["a person and a user", None]
    assert list(replace_name_tokens(texts, "remove")) == ["and", None]
    with pytest.raises(ValueError, match="name_tokens"):
        replace_name_tokens(texts, "drop")
