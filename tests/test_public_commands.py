"""`python -m adaptor_hf.data check` and `train_pretrain.py --dataset` on a tree of every data set."""

import json
from functools import partial

import pytest
from fixtures.captions import write_coco, write_redcaps
from fixtures.cbis_ddsm import write_cbis
from fixtures.chexpert import write_chexpert
from fixtures.covid_rural import write_covid_rural
from fixtures.nih_chestxray14 import write_nih
from fixtures.object_cxr import write_object_cxr
from fixtures.pair_sets import CAPTIONS, PAIR_SETS, write_pair_set
from fixtures.phantom_trees import copy_tree
from fixtures.shenzhen_montgomery import write_montgomery, write_shenzhen
from fixtures.slip import write_slip

import train_pretrain
from adaptor_hf.data import list_datasets
from adaptor_hf.data.__main__ import main
from adaptor_hf.data.catalog import get_dataset
from adaptor_hf.training.pairs import load_training_pairs
from adaptor_hf.training.script_arguments import DataArguments

LABELLED = {
    "cbis_ddsm": write_cbis, "chexpert": write_chexpert, "covid_rural": write_covid_rural,
    "montgomery": write_montgomery, "nih_chestxray14": write_nih, "object_cxr": write_object_cxr,
    "shenzhen": write_shenzhen, "slip_catalog": write_slip,
    **{layout: partial(copy_tree, layout) for layout in ("covidx", "rsna", "siim")},
}  # fmt: skip
COUNTS = ("table_rows", "rows", "images", "files_found", "missing_files", "empty_files", "faults", "dropped",
          "rows_per_split", "patients_per_split", "overlaps", "labels", "unreadable", "split_hash")  # fmt: skip


def check(name, root, capsys, *words):
    """Exit status, what was printed and the JSON file."""
    report = root.parent / "report.json"
    status = main(["check", name, str(root), "--json", str(report), *words])
    return status, capsys.readouterr().out, json.loads(report.read_text())


def test_every_set_is_checked_here():
    named = {name for name, _ in PAIR_SETS.values()}
    # Of CheXpert's own tree, whose table gives no 5 x 200 rows here: tests/test_public_chexpert_5x200.py.
    assert named | LABELLED.keys() | {"chexpert_5x200"} == {dataset.name for dataset in list_datasets()}
    pairs = {dataset.name for dataset in list_datasets() if dataset.tasks[0] == "pretraining"}
    assert named == pairs


@pytest.mark.parametrize("name", LABELLED)
def test_check_counts_a_labelled_set(name, tmp_path, capsys):
    root = LABELLED[name](tmp_path / "tree")
    words = {"nih_chestxray14": ["--split_scheme", "patient"], "slip_catalog": ["--option", "dataset=food101"]}
    status, said, counts = check(name, root, capsys, *words.get(name, []))
    assert status == 0, said
    assert said.endswith("ok\n")
    assert set(COUNTS) <= counts.keys()
    assert counts["rows"] == sum(counts["rows_per_split"].values()) == counts["rows_read"] > 0
    assert (counts["missing_files"], counts["unreadable"]) == (0, 0)
    assert counts["labels"] or name == "covid_rural"
    for split, rows in counts["rows_per_split"].items():
        assert f"{split}: {rows} rows" in said


@pytest.mark.parametrize("key", PAIR_SETS)
def test_check_counts_a_set_of_pairs(key, tmp_path, capsys):
    name, root = write_pair_set(key, tmp_path / "tree")
    status, said, counts = check(name, root, capsys, "--read", "all")
    assert status == 0, said
    assert set(COUNTS) <= counts.keys()
    assert counts["rows_read"] == counts["rows"] >= len(CAPTIONS)
    assert counts["unreadable"] == 0
    assert json.loads(json.dumps(counts)) == counts


@pytest.mark.parametrize(("name", "write"), [("coco_captions", write_coco), ("redcaps", write_redcaps)])
def test_check_counts_an_image_without_text(name, write, tmp_path, capsys):
    _, said, counts = check(name, write(tmp_path / "tree"), capsys)
    assert counts["dropped"] == {"no text": 1}
    assert "left out: 1 no text" in said


@pytest.mark.parametrize("key", PAIR_SETS)
def test_pairs_for_pretraining_have_text_image_and_split(key, tmp_path):
    name, root = write_pair_set(key, tmp_path / "tree")
    pairs = load_training_pairs(DataArguments(dataset=name, data_root=str(root))).dataset
    assert {"train", "validation"} <= set(pairs["split"][:])
    assert all(any(caption in text.lower() for caption in CAPTIONS) for text in pairs["text"][:])
    mode = "L" if name in ("mimic_cxr", "openi") else "RGB"
    assert pairs[0]["image"].mode == get_dataset(name).image_mode == mode


@pytest.mark.slow
@pytest.mark.parametrize("key", PAIR_SETS)
def test_every_set_of_pairs_trains_end_to_end(key, tmp_path, tiny_dinov2, tiny_bert):
    name, root = write_pair_set(key, tmp_path / "tree")
    output = tmp_path / "model"
    words = {
        "dataset": name, "data_root": root, "vision_tower": tiny_dinov2, "text_tower": tiny_bert,
        "output_dir": output, "cache_dir": tmp_path / "embeddings", "hidden_size": 32, "num_attention_heads": 2,
        "intermediate_size": 64, "num_hidden_layers": 1, "max_text_length": 32, "global_batch_size": 4,
        "num_train_epochs": 1, "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    train_pretrain.main([word for option, value in words.items() for word in (f"--{option}", str(value))])
    assert json.loads((output / "config.json").read_text())["model_type"] == "adaptor"
    assert name in (output / "README.md").read_text()
