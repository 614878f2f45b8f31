"""What a run shows and what it leaves about itself."""

import hashlib
import json
import re

import pytest
import torch
from synthetic import synthetic_model

from adaptor_hf.audit.run_record import RUN_FILE, RunRecord
from adaptor_hf.embeddings import open_cache
from adaptor_hf.hub.push import PUSHED_FILES
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.training.script_arguments import DataArguments


@pytest.fixture(scope="module")
def cache(cache_folder):
    return open_cache(cache_folder)


def trainer_of(folder, cache, **kwargs) -> AdaptorTrainer:
    views = contrastive_splits(cache)
    arguments = AdaptorTrainingArguments(
        output_dir=str(folder),
        global_batch_size=16,
        num_train_epochs=2,
        use_cpu=True,
        **({"disable_tqdm": True} | kwargs),
    )
    return AdaptorTrainer(
        model=synthetic_model(), args=arguments, train_dataset=views["train"], eval_dataset=views["validation"]
    )


def test_without_a_terminal_each_log_step_is_one_line_with_rate_and_time_left(tmp_path, cache, capsys):
    trainer = trainer_of(tmp_path, cache, logging_strategy="steps", logging_steps=4)
    trainer.train()
    lines = capsys.readouterr().out.strip().splitlines()
    steps = trainer.state.max_steps
    loss_lines = [line for line in lines if ": loss" in line]
    assert len(loss_lines) == steps // 4
    values = r"loss [\d.]+, learning rate \d.*, gradient norm .*"
    pattern = rf"step \d+ of {steps}, epoch [\d.]+: {values} \([\d,]+ pairs/s, \d:\d\d:\d\d left\)"
    for line in loss_lines:
        assert re.fullmatch(pattern, line), line
    assert sum("mean recall" in line for line in lines) == 2
    assert "{" not in "".join(lines), "Trainer's dictionaries are printed beside our lines"


def test_a_terminal_gets_a_bar_in_pairs(tmp_path, cache, capsys):
    trainer_of(tmp_path, cache, disable_tqdm=False).train()
    shown = capsys.readouterr()
    assert re.search(r"\d[kM]? pairs/s", shown.err)
    assert "mean recall" in shown.out + shown.err


def test_the_record_identifies_inputs_and_weights_and_times_the_parts(tmp_path, cache):
    record = RunRecord()
    trainer = trainer_of(tmp_path, cache)
    with record.phase("train"):
        trainer.train()
        trainer.save_model()
    with record.phase("train"):
        pass
    history = trainer.state.log_history
    path = record.write(trainer, (DataArguments(cache="some/place", check="full"),), cache)
    run = json.loads(path.read_text())
    options = run["options"]
    assert (options["cache"], options["check"], options["split_scheme"]) == ("some/place", "full", "official")
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert run["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    shards = run["inputs"]["sha256"]
    assert set(shards) == set(cache.files())
    for name, digest in shards.items():
        assert hashlib.sha256((cache.path.parent / name).read_bytes()).hexdigest() == digest
    assert run["inputs"]["rows"] == cache.splits
    assert run["versions"]["torch"] == torch.__version__.split("+")[0]
    assert 0 < run["seconds"]["train"] < run["seconds"]["total"]
    assert run["seconds"]["start_up"] > 0
    assert run["peak_memory_bytes"]["process"] > 50e6
    evaluations = [entry["eval_mean_recall"] for entry in history if "eval_mean_recall" in entry]
    assert run["metrics"]["eval_mean_recall"] == evaluations[-1]
    assert run["training_arguments"]["learning_rate"] == 2e-5


def test_the_record_stays_on_this_machine():
    assert RUN_FILE not in PUSHED_FILES


class TestResidentData:
    def test_training_from_the_device_gives_the_weights_of_training_from_disk(self, tmp_path, cache):
        weights = []
        for resident in (False, True):
            trainer = trainer_of(tmp_path / str(resident), cache, resident_data=resident)
            trainer.train()
            weights.append(trainer.model.state_dict())
        for name, value in weights[0].items():
            assert torch.equal(value, weights[1][name]), name

    def test_the_loader_reads_from_the_device_and_the_trainer_keeps_its_data_set(self, tmp_path, cache):
        trainer = trainer_of(tmp_path, cache, resident_data=True)
        kept = trainer.train_dataset
        assert type(trainer.get_train_dataloader().dataset).__name__ == "ResidentCache"
        assert trainer.train_dataset is kept

    def test_workers_are_refused(self, tmp_path, cache):
        with pytest.raises(ValueError, match="dataloader_num_workers=0"):
            trainer_of(tmp_path, cache, resident_data=True, dataloader_num_workers=1).get_train_dataloader()
