"""Every set of pairs: the training script's table, its images wherever they are stored, and the check command."""

import json

import pytest
from fixtures import captions
from fixtures.openi import write_kaggle
from fixtures.roco import write_v1, write_v2
from fixtures.shards import write_shard

import train_pretrain
from adaptor_hf.data.__main__ import main as data_command
from adaptor_hf.data.convert import main as convert
from adaptor_hf.training.pairs import load_training_pairs
from adaptor_hf.training.script_arguments import DataArguments


def write_converted_yfcc(root):
    captions.write_yfcc(root)
    convert([str(root / "yfcc15m.pkl"), str(root / "yfcc15m.parquet")])


def write_shards(root):
    write_shard(root, 0, [f"caption {number}" for number in range(6)], failed=2)


TREES = {
    "openi": (write_kaggle, 4),
    "roco": (write_v1, 7),
    "roco_v2": (write_v2, 4),
    "coco_captions": (captions.write_coco, 4),
    "cc3m": (captions.write_cc3m_table, 4),
    "cc12m": (write_shards, 6),
    "redcaps": (captions.write_redcaps, 2),
    "yfcc15m": (write_converted_yfcc, 3),
}


@pytest.mark.parametrize("name", TREES)
def test_the_table_of_the_training_script(tmp_path, monkeypatch, name):
    write, count = TREES[name]
    write(tmp_path / name)
    pairs = load_training_pairs(DataArguments(dataset=name, data_root=str(tmp_path / name))).dataset
    assert len(pairs) == count
    assert all(pairs["text"][:])
    assert set(pairs["split"][:]) <= {"train", "validation", "test"}
    for row in pairs:
        assert min(row["image"].size) == 6


def test_training_on_images_in_shards(tmp_path, tiny_dinov2, tiny_bert):
    write_shards(tmp_path / "cc12m")
    output = tmp_path / "model"
    words = {
        "dataset": "cc12m", "data_root": tmp_path / "cc12m", "split_scheme": "patient", "vision_tower": tiny_dinov2,
        "text_tower": tiny_bert, "output_dir": output, "hidden_size": 32, "num_attention_heads": 2,
        "intermediate_size": 64, "num_hidden_layers": 1, "max_text_length": 32, "global_batch_size": 2,
        "num_train_epochs": 1, "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    train_pretrain.main([word for name, value in words.items() for word in (f"--{name}", str(value))])
    assert (output / "model.safetensors").is_file()


def test_the_check_command_counts_what_cannot_be_read(tmp_path, capsys):
    root = write_v1(tmp_path / "roco")
    whole = (root / "data/train/radiology/images/ROCO_00002.jpg").read_bytes()
    (root / "data/train/radiology/images/ROCO_00002.jpg").write_bytes(whole[: len(whole) // 2])
    data_command(["check", "roco", str(root), "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert "ROCO_00002.jpg" in json.dumps(report)
    assert report["rows_per_split"] == {"train": 4, "validation": 2, "test": 1}
    assert "unreadable" in capsys.readouterr().out
