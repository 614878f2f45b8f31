"""python -m adaptor_hf.verify: finished runs verify, and each thing that was changed afterwards is named."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from labelled_images import write_labelled_images
from safetensors.torch import load_file, save_file
from synthetic import synthetic_config

import train_downstream
from adaptor_hf import AdaptorModel
from adaptor_hf.file_records import content_sha256
from adaptor_hf.tasks.__main__ import main as sweep
from adaptor_hf.tasks.arguments import parse_arguments
from adaptor_hf.tasks.loading import check_models
from adaptor_hf.towers import load_vision_tower
from adaptor_hf.verify import main, verify


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_dinov2):
    """Finished downstream runs, with the model that they evaluated beside them."""
    torch.manual_seed(3)
    root = tmp_path_factory.mktemp("evaluated")
    spec = load_vision_tower(str(tiny_dinov2)).spec
    AdaptorModel(synthetic_config(vision_hidden_size=32, vision_tower=spec)).save_pretrained(root / "model")
    table = write_labelled_images(root / "set", 60)
    train_downstream.main([
        "--task", "classification", "--model", str(root / "model"), "--table", str(table), "--dataset_name", "boxes",
        "--label_column", "effusion", "--seeds", "0", "--controls", "none", "--num_resamples", "20", "--device", "cpu",
        "--output_dir", str(root / "out"),
    ])  # fmt: skip
    return root / "out"


@pytest.fixture
def run(pretrained_run, tmp_path):
    return shutil.copytree(pretrained_run, tmp_path / "run")


@pytest.fixture
def runs(evaluated, tmp_path):
    for name in ("model", "set"):
        shutil.copytree(evaluated.parent / name, tmp_path / name)
    return shutil.copytree(evaluated, tmp_path / "out")


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def seal(run):
    """Give a manifest the digest of its content again, as who forges it would."""
    change_json(run / "manifest.json", lambda manifest: manifest.update(sha256=content_sha256(manifest)))


def test_a_finished_pretraining_run_verifies_wherever_it_is_copied(run, capsys):
    assert verify(run) == []
    assert main([str(run)]) == 0
    assert "verified" in capsys.readouterr().out


def test_the_manifest_has_a_digest_of_every_input_split_and_weight(pretrained_run):
    manifest = json.loads((pretrained_run / "manifest.json").read_text())
    assert {"model.safetensors", "config.json", "run.json", "retrieval.json"} <= manifest["files"].keys()
    assert set(manifest["splits"]) == {"all", "train", "validation", "test"}
    assert len(set(manifest["splits"].values())) == 4
    folders = {name.partition("-")[0] for name in manifest["inputs"]["cache"]["files"]}
    assert folders == {"pairs", "images", "texts"}


def test_one_flipped_weight_is_found_by_its_digest_and_by_what_it_changes(run):
    weights = load_file(run / "model.safetensors")
    name = next(name for name in weights if name.endswith("projection.weight"))
    weights[name].view(-1)[0] *= -1
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    assert any(what.startswith("model.safetensors is not the file") for what in verify(run))
    # Who adapts the manifest, too, is caught by the numbers once they move.
    weights[name].normal_(generator=torch.Generator().manual_seed(0))
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    from adaptor_hf.files import file_sha256

    digest = file_sha256(run / "model.safetensors")
    change_json(run / "manifest.json", lambda manifest: manifest["files"].update({"model.safetensors": digest}))
    found = verify(run)
    assert found == [found[0]]
    assert "manifest.json is damaged: the digest of its own content" in found[0]
    seal(run)
    found = verify(run)
    assert found
    assert all(what.startswith("Retrieval: ") for what in found)


def test_one_changed_metric_is_named_with_both_values(run):
    change_json(run / "retrieval.json", lambda record: record["metrics"].update({"image_to_text_recall@10": 0.99}))
    found = verify(run)
    assert any("image_to_text_recall@10 is 0.99 in the record" in what for what in found)
    assert any(what.startswith("retrieval.json is not the file") for what in found)


def test_a_prettier_number_in_the_card_is_found(run):
    card = (run / "README.md").read_text()
    line = next(line for line in card.splitlines() if "value: " in line)
    (run / "README.md").write_text(card.replace(line, line.partition("value: ")[0] + "value: 0.9876", 1))
    assert [what.partition(" ")[0] for what in verify(run)] == ["README.md", "Model"]


def test_rows_that_swapped_their_split_are_found_even_if_the_cache_fits_itself(run):
    from adaptor_hf.embeddings.digests import data_entry
    from adaptor_hf.embeddings.manifest import write_record

    folder = next((run / "embeddings").glob("pairs-*"))
    path = folder / "pairs.arrow"
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
    splits = np.array(table["split"].to_pylist(), dtype=object)
    train, test = np.flatnonzero(splits == "train")[0], np.flatnonzero(splits == "test")[0]
    splits[[train, test]] = splits[[test, train]]
    column = table.column_names.index("split")
    table = table.set_column(column, "split", pa.chunked_array([pa.array(splits.tolist(), pa.string())]))
    path.unlink()  # a memory map of the old file may be open
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    manifest = json.loads((folder / "cache.json").read_text())
    for shard in manifest["shards"]:
        if shard["file"] == path.name:
            shard.update(data_entry(path.read_bytes()))
    write_record(folder / "cache.json", manifest)
    found = verify(run)
    for name in ("of all rows", "test", "train"):
        assert any(what.startswith(f"Split {name}: ") for what in found), name
    assert not any(what.startswith("Split validation") for what in found)
    assert any("pairs.arrow is not the file" in what for what in found)


def test_a_damaged_or_missing_cache_is_a_difference_and_not_a_traceback(run, capsys):
    shard = next((run / "embeddings").glob("images-*/data-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert any("The cache cannot be read" in what for what in verify(run))
    shutil.rmtree(run / "embeddings")
    assert main([str(run)]) == 1
    assert "The cache cannot be read" in capsys.readouterr().out


def test_a_cache_that_was_moved_is_named(run, tmp_path):
    shutil.move(run / "embeddings", tmp_path / "elsewhere")
    assert verify(run, cache=str(tmp_path / "elsewhere")) == []


def test_no_such_run_and_no_manifest_are_errors(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 1
    assert main([str(tmp_path)]) == 1
    assert "manifest.json is missing" in capsys.readouterr().err


class TestDownstream:
    def test_finished_runs_verify_and_single_runs_too(self, runs):
        assert verify(runs) == []
        assert verify(next((runs / "runs").iterdir())) == []

    def test_a_model_without_record_is_unverified_in_its_results_and_once_in_the_log(self, evaluated, caplog):
        for path in evaluated.glob("runs/*/results.jsonl"):
            assert {json.loads(line)["checkpoint_check"] for line in path.read_text().splitlines()} == {"unverified"}
        model, table = evaluated.parent / "model", evaluated.parent / "set/metadata.csv"
        arguments = parse_arguments(["--task", "classification", "--model", str(model), "--table", str(table),
                                     "--label_column", "effusion", "--output_dir", str(evaluated)])  # fmt: skip
        with caplog.at_level("INFO", "adaptor_hf"):
            check_models(arguments)
        assert [record.message.split(".")[0] for record in caplog.records] == ["Unverified models: 1 of 1"]

    def test_a_sweep_leaves_a_manifest_too(self, runs):
        table = runs.parent / "set/metadata.csv"
        (runs / "manifest.json").unlink()
        plan = {"common": {
            "task": "classification", "model": str(runs.parent / "model"), "table": str(table), "dataset_name": "boxes",
            "label_column": "effusion", "controls": "none", "num_resamples": 20, "device": "cpu",
        }, "over": {"seeds": [[0]]}}  # fmt: skip
        (runs.parent / "plan.yaml").write_text(json.dumps(plan))
        sweep(["sweep", str(runs.parent / "plan.yaml"), "--output_dir", str(runs)])
        assert len(list(runs.glob("runs/*"))) == 1, "the run is the one that was there"
        assert verify(runs) == []
        assert json.loads((runs / "manifest.json").read_text())["inputs"]["models"][0]["state"] == "unverified"

    def test_one_changed_prediction(self, runs):
        path = next(runs.glob("runs/*/predictions.parquet"))
        table = pq.read_table(path)
        column = table.column_names.index("target")
        values = np.asarray(table["target"].to_pylist(), dtype=np.float32)
        values.reshape(-1)[0] = 1 - values.reshape(-1)[0]
        flat = pa.array(values.reshape(-1))
        changed = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
        pq.write_table(table.set_column(column, "target", changed), path)
        found = verify(runs)
        assert any("predictions.parquet is not the file of the manifest" in what for what in found)
        assert any("the predictions give" in what for what in found)

    def test_one_changed_metric(self, runs):
        path = next(runs.glob("runs/*/results.jsonl"))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        next(line for line in lines if line["metric"] == "auroc")["value"] = 0.999
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = verify(runs)
        assert any("auroc: value is 0.999, the predictions give" in what for what in found)
        assert any("results.jsonl is not the file" in what for what in found)

    def test_one_swapped_split(self, runs):
        path = next(runs.glob("runs/*/results.jsonl"))
        lines = [json.loads(line) | {"split_hash": "0" * 12} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert any("the split of boxes is 000000000000, the manifest has another one" in what for what in verify(runs))

    def test_one_flipped_weight_of_the_evaluated_model(self, evaluated, tmp_path):
        # The manifest names the model by its place: where it is not inside the run, by an absolute path.
        path = evaluated.parent / "model" / "model.safetensors"
        kept = path.read_bytes()
        try:
            path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
            assert [what for what in verify(evaluated) if what.startswith("Model model: model.safetensors")]
        finally:
            path.write_bytes(kept)
