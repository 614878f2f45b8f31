"""Damaged checkpoints, signals, full disks, NaN, too little memory: named errors, and nothing half that reads whole."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_runs import LIMIT, command, history, start, wait_for
from synthetic import synthetic_model
from transformers import TrainerCallback

import train_pretrain
from adaptor_hf import AdaptorModel
from adaptor_hf.objectives import AdaptorObjective, Objective
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments, checkpoints
from adaptor_hf.training.checkpoints import check_checkpoint, find_checkpoint
from adaptor_hf.training.interruption import Interrupted, catch_signals, deferred_signals, out_of_memory

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture(scope="module")
def cache(cache_folder):
    return cache_folder


def make_trainer(folder, views, train=None, model=None, callbacks=None, **kwargs) -> AdaptorTrainer:
    defaults = {"global_batch_size": 16, "num_train_epochs": 2, "learning_rate": 3e-3, "use_cpu": True}
    return AdaptorTrainer(
        model=synthetic_model() if model is None else model,
        args=AdaptorTrainingArguments(output_dir=str(folder), disable_tqdm=True, **(defaults | kwargs)),
        train_dataset=views["train"] if train is None else train,
        eval_dataset=views["validation"],
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def finished(views, tmp_path_factory):
    """A run of two epochs with checkpoint-8 and checkpoint-16."""
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(folder, views).train()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, for damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(data[:-10] + bytes([data[-10] ^ 1]) + data[-9:])


class TestDamagedCheckpoints:
    @pytest.mark.parametrize("how", ["missing", "truncated", "one bit flipped"])
    @pytest.mark.parametrize("name", FILES)
    def test_a_damaged_file_is_named_and_the_previous_checkpoint_taken(self, run, name, how, caplog):
        damage(run / "checkpoint-16" / name, how)
        with pytest.raises(ValueError, match=f"checkpoint-16/{name}.*Copy it back, or go on from the last whole"):
            find_checkpoint(run, str(run / "checkpoint-16"))
        assert find_checkpoint(run, True) == run / "checkpoint-8"
        assert f"checkpoint-16/{name}" in caplog.text
        assert "checkpoint-8 instead" in caplog.text

    def test_a_checkpoint_without_manifest_is_not_whole(self, run, caplog):
        (run / "checkpoint-16" / checkpoints.MANIFEST).unlink()
        assert find_checkpoint(run, True) == run / "checkpoint-8"
        assert "checkpoint-16 has no checkpoint.json: the checkpoint was not finished" in caplog.text

    @pytest.mark.parametrize("content", ["", "[]", '{"version": 1}', '{"version": 99, "files": {}}'])
    def test_a_damaged_manifest_is_named(self, run, content):
        (run / "checkpoint-16" / checkpoints.MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=r"checkpoint-16/checkpoint.json is (damaged|of version 99)"):
            check_checkpoint(run / "checkpoint-16")

    def test_without_a_whole_checkpoint_the_error_lists_what_is_wrong_with_each(self, run):
        damage(run / "checkpoint-8" / "optimizer.pt", "truncated")
        damage(run / "checkpoint-16" / "scheduler.pt", "missing")
        with pytest.raises(
            ValueError, match=r"No whole checkpoint.*scheduler.pt is missing.*optimizer.pt has .* bytes"
        ):
            find_checkpoint(run, True)

    def test_training_goes_around_a_damaged_checkpoint_and_replaces_it(self, run, finished, views):
        damage(run / "checkpoint-16" / "model.safetensors", "one bit flipped")
        make_trainer(run, views, model=synthetic_model(seed=3)).train(resume_from_checkpoint=True)
        check_checkpoint(run / "checkpoint-16")
        weights = [(folder / "checkpoint-16" / "model.safetensors").read_bytes() for folder in (run, finished)]
        assert weights[0] == weights[1]

    def test_the_script_says_it_before_anything_is_computed(self, run, cache):
        damage(run / "checkpoint-16" / "optimizer.pt", "truncated")
        words = command(cache, run, resume_from_checkpoint=run / "checkpoint-16")[2:]
        with pytest.raises(ValueError, match=r"optimizer.pt has [\d,]+ bytes, its manifest says"):
            train_pretrain.main(words)

    def test_a_damaged_best_checkpoint_is_no_longer_the_best(self, run, views, caplog):
        # Both epochs find every pair, so the first one is the best.
        damage(run / "checkpoint-8" / "model.safetensors", "truncated")
        trainer = make_trainer(run, views, num_train_epochs=3)
        trainer.train(resume_from_checkpoint=True)
        assert "It was the best checkpoint so far" in caplog.text
        assert trainer.state.best_global_step == 24

    def test_a_best_checkpoint_that_is_damaged_at_the_end_is_named(self, run, views):
        class Damage(TrainerCallback):
            def on_save(self, args, state, control, **kwargs):
                damage(Path(state.best_model_checkpoint) / "model.safetensors", "truncated")

        with pytest.raises(ValueError, match=r"model.safetensors has .* It was the best checkpoint.*--load_best_model"):
            make_trainer(run.parent / "other", views, callbacks=[Damage()]).train()

    @pytest.mark.parametrize("left", [0, 5, 200, -1])
    def test_truncated_weights_are_named_by_from_pretrained(self, run, left):
        file = run / "checkpoint-16" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:left])
        with pytest.raises(OSError, match=r"checkpoint-16.*truncated or damaged"):
            AdaptorModel.from_pretrained(run / "checkpoint-16")

    @pytest.mark.parametrize("limit", [1, 2, 3])
    def test_rotation_leaves_the_newest_whole_and_the_best(self, run, limit):
        for step in (24, 32, 40):
            shutil.copytree(run / "checkpoint-8", run / f"checkpoint-{step}")
        for step in (32, 40):
            (run / f"checkpoint-{step}" / checkpoints.MANIFEST).unlink()
        checkpoints.rotate_checkpoints(run, run / "checkpoint-24", str(run / "checkpoint-8"), limit)
        kept = set(checkpoints.checkpoint_steps(run))
        assert kept == ({8, 24} if limit < 3 else {8, 16, 24})


def ask(number: int) -> None:
    os.kill(os.getpid(), number)


class AskAt(TrainerCallback):
    """Send signals to this process at an event."""

    def __init__(self, event: str, *numbers: int, step: int | None = None):
        self.numbers, self.step = numbers, step
        setattr(self, f"on_{event}", self.send)

    def send(self, args, state, control, **kwargs):
        if self.step in (None, state.global_step):
            for number in self.numbers:
                ask(number)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a system without SIGUSR1")
class TestSignals:
    @pytest.mark.parametrize(
        ("event", "step", "saved"),
        [("step_end", 3, 3), ("step_end", 8, 8), ("evaluate", 8, 8), ("train_begin", 0, 1), ("step_begin", 12, 13)],
    )
    def test_a_signal_ends_at_the_end_of_a_step_with_a_whole_checkpoint(self, views, tmp_path, event, step, saved):
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
        callback = AskAt(event, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, step=step)
        with pytest.raises(Interrupted, match=f"The last checkpoint is .*checkpoint-{saved}. Go on with"):
            make_trainer(tmp_path, views, callbacks=[callback]).train()
        assert find_checkpoint(tmp_path, True) == tmp_path / f"checkpoint-{saved}"
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before

    @pytest.mark.parametrize("step", [3, 8, 11, 16])
    def test_the_log_goes_on_as_if_nothing_had_been(self, finished, views, tmp_path, step):
        with pytest.raises(Interrupted):
            make_trainer(tmp_path, views, callbacks=[AskAt("step_end", signal.SIGTERM, step=step)]).train()
        trainer = make_trainer(tmp_path, views)
        trainer.train(resume_from_checkpoint=True)
        trainer.save_state()
        shutil.copy(finished / "checkpoint-16" / "trainer_state.json", tmp_path / "whole.json")
        whole = tmp_path / "whole"
        whole.mkdir()
        (tmp_path / "whole.json").rename(whole / "trainer_state.json")
        assert history(tmp_path) == history(whole)

    def test_an_epochs_line_is_in_the_checkpoint_of_its_last_step(self, views, tmp_path):
        """Saving goes by steps, logging by epochs: a run that is killed after the save is not to lose the line."""
        options = {"save_strategy": "steps", "save_steps": 4, "load_best_model_at_end": False}
        make_trainer(tmp_path, views, **options).train()
        entries = json.loads((tmp_path / "checkpoint-16" / "trainer_state.json").read_text())["log_history"]
        assert [entry["step"] for entry in entries if "loss" in entry] == [8, 16]
        assert [entry["step"] for entry in entries if "eval_loss" in entry] == [8, 16]

    def test_signals_while_a_checkpoint_is_written_let_it_finish(self, views, tmp_path, monkeypatch):
        def finish(checkpoint):
            ask(signal.SIGTERM)
            ask(signal.SIGTERM)
            checkpoints.finish_checkpoint(checkpoint)

        monkeypatch.setattr("adaptor_hf.training.trainer.finish_checkpoint", finish)
        with pytest.raises(Interrupted, match="checkpoint-8"):
            make_trainer(tmp_path, views).train()
        check_checkpoint(tmp_path / "checkpoint-8")

    def test_a_signal_during_the_last_save_lets_it_finish(self, cache, tmp_path, monkeypatch):
        save = AdaptorTrainer.save_state

        def save_state(self):
            ask(signal.SIGTERM)
            save(self)

        monkeypatch.setattr(AdaptorTrainer, "save_state", save_state)
        words = command(cache, tmp_path / "run", num_train_epochs=1, use_cpu=True)[2:]
        with catch_signals(), pytest.raises(Interrupted):
            train_pretrain.main(words)
        assert (tmp_path / "run" / "trainer_state.json").is_file()
        assert AdaptorModel.from_pretrained(tmp_path / "run")
        assert not (tmp_path / "run" / "README.md").exists()
        monkeypatch.undo()
        train_pretrain.main([*words, "--resume_from_checkpoint", "True"])
        assert (tmp_path / "run" / "README.md").is_file()

    def test_without_checkpoints_a_signal_ends_the_training_at_once(self, views, tmp_path):
        callback = AskAt("step_end", signal.SIGTERM, step=3)
        options = {"save_strategy": "no", "load_best_model_at_end": False, "eval_strategy": "no"}
        trainer = make_trainer(tmp_path, views, callbacks=[callback], **options)
        with pytest.raises(Interrupted, match="no checkpoint yet"):
            trainer.train()
        assert trainer.state.global_step == 3

    def test_outside_of_training_a_signal_raises_at_once_and_only_once(self):
        with catch_signals() as signals:
            with pytest.raises(Interrupted):
                ask(signal.SIGUSR1)
            ask(signal.SIGTERM)
            assert signals.received == "SIGUSR1"
        with pytest.raises(Interrupted), deferred_signals():
            ask(signal.SIGTERM)


class TestScript:
    def test_ctrl_c_is_one_line_and_130(self, cache, tmp_path):
        output, log = tmp_path / "run", tmp_path / "log"
        process = start(command(cache, output, num_train_epochs=500), log)
        wait_for(lambda: list(output.glob("checkpoint-*")), process, "a checkpoint")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        said = log.read_text()
        assert "Traceback" not in said
        last = said.strip().splitlines()[-1]
        assert re.fullmatch(rf"Stopped by Ctrl-C. The last checkpoint is {output}/checkpoint-\d+. Go on with .*", last)

    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
    )
    def test_during_the_extraction_finished_parts_are_kept(self, tiny_dinov2, tiny_bert, tmp_path, number, status):
        generator = np.random.default_rng(0)
        lines = ["path,report,subject"]
        for row in range(1500):
            Image.fromarray(generator.integers(0, 255, (32, 32)).astype(np.uint8)).save(tmp_path / f"{row}.png")
            lines.append(f"{row}.png,report of size {row},subject-{row // 2}")
        (tmp_path / "pairs.csv").write_text("\n".join(lines))
        changes = {"train_file": tmp_path / "pairs.csv", "image_column": "path", "text_column": "report"}
        changes |= {"image_root": tmp_path, "vision_tower": tiny_dinov2, "text_tower": tiny_bert}
        changes |= {"patient_column": "subject", "extraction_batch_size": 1, "max_steps": 5}
        output, log = tmp_path / "run", tmp_path / "log"
        words = command(None, output, **changes)
        process = start(words, log)
        pieces = lambda: list((tmp_path / "embeddings").rglob("piece-*.json"))  # noqa: E731
        wait_for(pieces, process, "a finished piece")
        process.send_signal(number)
        assert process.wait(LIMIT) == status, log.read_text()
        said = log.read_text()
        assert "Go on with the same command" in said
        assert "Traceback" not in said
        assert pieces()
        assert not list(output.glob("checkpoint-*"))

    @pytest.mark.slow
    def test_the_job_script_of_the_docs_requeues_and_goes_on(self, cache, tmp_path):
        """With programs in the place of SLURM's: srun that runs its arguments, scontrol that writes them down."""
        page = (Path(train_pretrain.__file__).parent / "docs" / "training.md").read_text(encoding="utf-8")
        job = re.search(r"```(?:ba)?sh\n(#!/bin/bash\n.*?)```", page, re.DOTALL)[1]
        small = command(cache, tmp_path / "outputs" / "run", logging_steps=1)[2:]
        job = job.replace("--recipe small --cache embeddings", shlex.join(small))
        (tmp_path / "job.sh").write_text(job.replace("python train_pretrain.py", f"{sys.executable} train_pretrain.py"))
        for name, content in (("srun", 'exec "$@"'), ("scontrol", f'echo "$@" >> {tmp_path}/scontrol.txt')):
            (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
            (tmp_path / name).chmod(0o755)
        (tmp_path / "train_pretrain.py").symlink_to(train_pretrain.__file__)
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
        output, log = tmp_path / "outputs" / "run", tmp_path / "log"
        job = start(["bash", str(tmp_path / "job.sh")], log, cwd=tmp_path, **variables)
        wait_for(lambda: b"step 9 of" in log.read_bytes(), job, "step 9")
        job.send_signal(signal.SIGUSR1)
        assert job.wait(LIMIT) == 75, log.read_text()
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"
        assert "Stopped by SIGUSR1" in log.read_text()
        job = start(["bash", str(tmp_path / "job.sh")], log, cwd=tmp_path, **variables)
        assert job.wait(LIMIT) == 0, log.read_text()
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"
        assert log.read_text().count("step 3 of") == 1
        assert (output / "README.md").is_file()

    def test_the_same_command_is_one_line_when_the_disk_is_full(self, cache, tmp_path, small_disk):
        process = start(command(cache, small_disk("200k") / "run"), tmp_path / "log")
        assert process.wait(LIMIT) == 1
        (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if "error:" in line]
        assert f"cannot write {small_disk.folder / 'run' / 'checkpoint-5'}" in line

    def test_too_little_memory_says_what_to_change(self, cache, tmp_path):
        limited = (
            "import resource, sys, runpy; sys.argv = sys.argv[1:]; import torch, train_pretrain\n"
            "from adaptor_hf.training import preparation\n"
            "preparation.fit_batch_to_data = limit = lambda *_: resource.setrlimit(\n"
            "    resource.RLIMIT_AS, (int(open('/proc/self/statm').read().split()[0]) * 4096 + 2**26,) * 2)\n"
            "from adaptor_hf.training.interruption import run_script\n"
            "run_script(train_pretrain.main)"
        )
        changes = {"aligner": json.dumps({"hidden_size": 6400, "num_attention_heads": 4, "intermediate_size": 64})}
        words = [sys.executable, "-c", limited, *command(cache, tmp_path / "run", **changes)[1:]]
        process = start(words, tmp_path / "log")
        status = process.wait(LIMIT)
        said = (tmp_path / "log").read_text()
        assert status == 1, said
        assert "error: Out of memory. Use a smaller --global_batch_size" in said
        assert "--grad_cache_batch_size" in said
        assert "Traceback" not in said


def test_each_kind_of_too_little_memory_is_known():
    assert "on the GPU" in out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert "MemoryError" in out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert "DefaultCPUAllocator" in out_of_memory(raised.value)
    assert out_of_memory(RuntimeError("shapes differ")) is None


class Nothing(Objective):
    """One that has no positives."""


class Changed:
    """Batches of a split with something done to them."""

    def __init__(self, pairs, change):
        self.pairs, self.change = pairs, change

    def __len__(self):
        return len(self.pairs)

    def __getitems__(self, rows):
        batch = self.pairs.__getitems__(rows)
        self.change(batch)
        return batch


def same_texts(batch):
    batch["text_embeds"][:] = batch["text_embeds"][0]
    batch["text_row"][:] = 0


def same_images(batch):
    batch["image_embeds"][:] = batch["image_embeds"][0]


def zeros(batch):
    batch["image_embeds"].zero_()
    batch["text_embeds"].zero_()


class TestNumbers:
    @pytest.mark.parametrize("layers", [0, 2])
    @pytest.mark.parametrize("changes", [[zeros], [same_images], [same_texts], [same_texts, same_images]])
    def test_batches_without_any_difference_give_finite_losses_and_weights(self, views, tmp_path, changes, layers):
        train = Changed(views["train"], lambda batch: [change(batch) for change in changes])
        trainer = make_trainer(tmp_path, views, train, synthetic_model(num_hidden_layers=layers), logging_steps=1)
        result = trainer.train()
        assert np.isfinite(result.training_loss)
        assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())

    def test_a_batch_without_negatives_is_reported(self, views, tmp_path, caplog):
        make_trainer(tmp_path, views, Changed(views["train"], same_texts), num_train_epochs=1).train()
        assert "loss is exactly 0 at step 8" in caplog.text
        assert "the objective's positives: text" in caplog.text

    @pytest.mark.parametrize("objective", [AdaptorObjective(positives="study"), Nothing()])
    def test_a_loss_of_zero_is_explained_by_what_the_objective_has(self, views, tmp_path, caplog, objective):
        """Not by the arguments' positives, which another objective does not go by."""
        trainer = make_trainer(tmp_path, views, num_train_epochs=1)
        trainer.objective = objective
        trainer.log({"loss": 0.0})
        if isinstance(objective, Nothing):
            assert "Nothing finds nothing to change" in caplog.text
            assert "positives" not in caplog.text
        else:
            assert "the objective's positives: study" in caplog.text

    def test_weights_that_became_nan_are_not_saved(self, views, tmp_path):
        class Poison(TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                if state.global_step == 16:
                    model.text_projection.weight.data[0, 0] = float("nan")

        options = {"eval_strategy": "no", "load_best_model_at_end": False}
        trainer = make_trainer(tmp_path, views, callbacks=[Poison()], **options)
        with pytest.raises(FloatingPointError, match="NaN or infinite before step 16"):
            trainer.train()
        assert find_checkpoint(tmp_path, True) == tmp_path / "checkpoint-8"
        with pytest.raises(FloatingPointError):
            trainer.save_model()
        assert not (tmp_path / "model.safetensors").exists()

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_bad_number_in_a_batch_stops_the_run_and_leaves_the_last_checkpoint(self, views, tmp_path, value):
        steps = iter(range(100))

        def poison(batch):
            if next(steps) == 11:
                batch["image_embeds"][0, 0] = value

        trainer = make_trainer(tmp_path, views, Changed(views["train"], poison))
        with pytest.raises(FloatingPointError, match="image_embeds of rows"):
            trainer.train()
        assert find_checkpoint(tmp_path, True) == tmp_path / "checkpoint-8"
        assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a tmpfs of a given size; skips where that is not allowed."""
    folder = tmp_path / "disk"

    def mount(size: str, *options: str) -> Path:
        folder.mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        return folder

    mount.folder = folder
    yield mount
    if os.path.ismount(folder):
        # Lazily: the traceback of a failed write holds its file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class TestDisk:
    # What fails first: a copied source file, torch.save in the first and in the second checkpoint, the last save.
    @pytest.mark.parametrize("size", ["64k", "400k", "800k", "1100k"])
    def test_a_full_disk_names_the_folder_keeps_no_half_and_works_again_with_space(self, views, small_disk, size):
        output = small_disk(size) / "run"
        trainer = make_trainer(output, views)
        with pytest.raises(OSError, match=rf"cannot write {output}.*Free space on") as raised:  # noqa: PT012
            trainer.train()
            trainer.save_model()
        assert "No space left" in str(raised.value) or "inline_container" in str(raised.value)
        assert not list(output.glob("unfinished-*"))
        assert not (output / "model.safetensors").exists()
        for checkpoint in checkpoints.checkpoint_steps(output).values():
            check_checkpoint(checkpoint)
        subprocess.run(["mount", "-o", "remount,size=20m", str(output.parent)], check=True)
        trainer = make_trainer(output, views)
        trainer.train(resume_from_checkpoint=bool(list(output.glob("checkpoint-*"))))
        trainer.save_model()
        assert AdaptorModel.from_pretrained(output)

    def test_a_read_only_folder_is_named_before_training(self, views, small_disk):
        output = small_disk("5m") / "run"
        trainer = make_trainer(output, views)
        subprocess.run(["mount", "-o", "remount,ro", str(output.parent)], check=True)
        with pytest.raises(OSError, match=rf"{output}.*Read-only"):
            trainer.train()
        assert trainer.state.global_step == 0

    @pytest.mark.parametrize("writer", ["torch.save", "os.fsync", "safetensors.torch.serialize_file"])
    def test_an_error_of_any_writer_leaves_nothing_that_reads_as_whole(self, views, tmp_path, monkeypatch, writer):
        def fail(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(writer, fail)
        with pytest.raises(
            OSError, match=r"cannot write .*checkpoint-8: .*No space left.*earlier checkpoints are whole"
        ):
            make_trainer(tmp_path, views).train()
        assert list(tmp_path.iterdir()) == []
        monkeypatch.undo()
        make_trainer(tmp_path, views).train()
        assert find_checkpoint(tmp_path, True) == tmp_path / "checkpoint-16"
