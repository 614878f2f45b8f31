"""The state of an objective in checkpoints: kept, given back, compared, and never published."""

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from objective_trainers import STEPS, Stop, Teacher, make_trainer
from safetensors import safe_open
from safetensors.torch import load_file
from synthetic import synthetic_model
from torch import nn

from adaptor_hf.hub.push import files_to_push
from adaptor_hf.objectives import Objective
from adaptor_hf.objectives.loading import load_objective, make_objective
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.training.checkpoints import check_checkpoint, finish_checkpoint, unfinished
from adaptor_hf.training.objective_state import OBJECTIVE_FILE, load_objective_state, save_objective


@pytest.mark.parametrize("kind", ["adaptor", "teacher"])
def test_resumed_in_the_middle_all_is_bit_for_bit_as_without_a_stop(kind, views, tmp_path):
    def trainer(folder, **kwargs):
        objective = Teacher() if kind == "teacher" else "adaptor"
        options = {"logging_steps": 3, "save_strategy": "steps", "save_steps": 100, "seed": 3}
        return make_trainer(folder, views, objective, **options, **kwargs)

    whole = trainer(tmp_path / "whole", callbacks=[Stop(STEPS)])
    whole.train()
    trainer(tmp_path / "parts", callbacks=[Stop(5)]).train()
    resumed = trainer(tmp_path / "parts", callbacks=[Stop(STEPS)])
    resumed.train(resume_from_checkpoint=True)
    last = f"checkpoint-{STEPS}"
    check_checkpoint(tmp_path / "parts" / last)
    assert OBJECTIVE_FILE in json.loads((tmp_path / "parts" / last / "checkpoint.json").read_text())["files"]
    for name in ("model.safetensors", OBJECTIVE_FILE):
        one, other = (tmp_path / run / last / name for run in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes(), name
    tensors = load_file(tmp_path / "parts" / last / OBJECTIVE_FILE)
    assert ("copy.logit_scale" in tensors) == (kind == "teacher")

    def lines(run):
        return [{k: v for k, v in entry.items() if not k.startswith("train_")} for entry in run.state.log_history]

    assert lines(resumed) == lines(whole)


@pytest.fixture(scope="module")
def finished(views, tmp_path_factory):
    """A run of `Teacher` with checkpoint-4 and checkpoint-8."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(folder, views, Teacher(), save_strategy="steps", save_steps=4)
    trainer.train()
    trainer.save_model()
    return folder


def resume(folder, views, objective, **kwargs):
    trainer = make_trainer(folder, views, objective, save_strategy="steps", save_steps=4, **kwargs)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))


def test_resume_with_another_objective_is_refused_by_name(finished, views):
    with pytest.raises(ValueError, match="checkpoint-4 was trained by the objective 'Teacher', this run has 'adaptor'"):
        resume(finished, views, "adaptor")

    class Wider(Teacher):
        def setup(self, model, args):
            super().setup(model, args)
            self.more = nn.Linear(2, 2)

    Wider.__name__ = "Teacher"
    with pytest.raises(ValueError, match=r"does not fit the objective 'Teacher'.*more\.weight.*[^.]\. Resume with"):
        resume(finished, views, Wider())


def test_resume_with_another_version_of_the_file_is_refused(finished, views, tmp_path):
    class Changed(Teacher):
        file_sha256 = "ab" * 32

    Changed.__name__ = "Teacher"
    with pytest.raises(ValueError, match=r"'Teacher', this run has 'Teacher' \(file with SHA-256 abababababab"):
        resume(finished, views, Changed())


def test_a_checkpoint_of_before_objectives_is_of_the_papers(views, tmp_path):
    trainer = make_trainer(tmp_path, views, save_strategy="steps", save_steps=4)
    trainer.train()
    for folder in tmp_path.glob("checkpoint-*"):
        (folder / OBJECTIVE_FILE).unlink()
        state = json.loads((folder / "running_loss.json").read_text())
        del state["terms"]
        (folder / "running_loss.json").write_text(json.dumps(state))
        folder.rename(unfinished(folder))
        (unfinished(folder) / "checkpoint.json").unlink()
        finish_checkpoint(folder)
    weights = (tmp_path / "checkpoint-8" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="by the objective 'adaptor', this run has 'Teacher'"):
        resume(tmp_path, views, Teacher())
    resume(tmp_path, views, "adaptor")
    assert (tmp_path / "checkpoint-8" / "model.safetensors").read_bytes() == weights


def test_a_damaged_state_is_named(finished, views, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    path = folder / "checkpoint-4" / OBJECTIVE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{OBJECTIVE_FILE} has .* truncated"):
        resume(folder, views, Teacher())


def test_what_is_published_has_no_state_of_the_objective(finished, views, tmp_path):
    assert (finished / "checkpoint-8" / OBJECTIVE_FILE).is_file()
    assert not (finished / OBJECTIVE_FILE).exists()
    for folder in (finished, finished / "checkpoint-8"):
        for name in ("config.json", "model.safetensors"):
            assert (folder / name).is_file()
    assert OBJECTIVE_FILE not in files_to_push(finished)
    # A folder that has the file all the same.
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.copy(folder / "checkpoint-8" / OBJECTIVE_FILE, folder)
    assert OBJECTIVE_FILE not in files_to_push(folder)
    names = load_file(finished / "model.safetensors").keys()
    assert names == synthetic_model().state_dict().keys()


def test_the_best_checkpoint_brings_its_objective_back(views, tmp_path):
    scores = iter([1.0, 0.0])
    objective = Teacher()
    trainer = make_trainer(
        tmp_path, views, objective, trainer={"evaluators": [lambda model, dataset: {"score": next(scores)}]},
        save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4, load_best_model_at_end=True,
        metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    assert objective.steps_done == 4
    kept = load_file(tmp_path / "checkpoint-4" / OBJECTIVE_FILE)
    assert all(torch.equal(value, kept[name]) for name, value in objective.state_dict().items())


class Margin(Objective):
    def __init__(self, margin: float = 0.2, word: str = "a", kind: Literal["x", "y"] | None = None):
        super().__init__()
        self.margin, self.word, self.kind = margin, word, kind
        self.register_buffer("seen", torch.zeros(1))

    def setup(self, model, args):
        self.kind = self.kind or "x"

    def forward(self, encoded, rows, gather):
        return {"loss": (encoded.image.pooled - encoded.text.pooled).square().sum(1).mean() * self.margin}


def margin(**options):
    objective = make_objective(Margin, options)
    objective.setup(None, None)
    return objective


class TestOptionsOfACheckpoint:
    def test_other_options_are_refused_with_both_values(self, tmp_path):
        save_objective(margin(margin=0.3, word="a", kind=None), tmp_path)
        load_objective_state(margin(margin=0.3, word="a", kind="x"), tmp_path)
        for name, old, new in (("margin", 0.3, 0.5), ("word", "a", "b"), ("kind", "x", "y")):
            options = {"margin": 0.3, "word": "a", "kind": None} | {name: new}
            with pytest.raises(ValueError, match=f"trained by an objective with {name} {old!r}, this run has {new!r}"):
                load_objective_state(margin(**options), tmp_path)

    def test_where_one_knows_no_options_it_goes_on(self, tmp_path):
        save_objective(margin(margin=0.3), tmp_path)
        load_objective_state(Margin(margin=0.5), tmp_path)
        # As of earlier commits, and of classes made in Python.
        save_objective(Margin(margin=0.3), tmp_path)
        with safe_open(tmp_path / OBJECTIVE_FILE, framework="pt") as file:
            assert json.loads(file.metadata()["objective"]) == {"name": "Margin", "sha256": ""}
        load_objective_state(margin(margin=0.5), tmp_path)

    def test_options_without_which_it_was_made_are_their_defaults(self):
        assert load_objective("adaptor").made_with == {"positives": None}
        assert load_objective("adaptor", {"positives": "pair"}).made_with == {"positives": "pair"}

    def test_in_private_mode_words_are_keyed_hashes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(private_mode, "_key", b"k" * 32)
        save_objective(margin(margin=0.3, word="Miller", kind="y"), tmp_path)
        assert b"Miller" not in (tmp_path / OBJECTIVE_FILE).read_bytes()
        load_objective_state(margin(margin=0.3, word="Miller", kind="y"), tmp_path)
        with pytest.raises(ValueError, match="with word") as refused:
            load_objective_state(margin(margin=0.3, word="Smith", kind="y"), tmp_path)
        assert "Smith" not in str(refused.value)
        # Without the mode a hash says nothing of a word, and a number is what it was.
        monkeypatch.setattr(private_mode, "_key", None)
        load_objective_state(margin(margin=0.3, word="Miller", kind="y"), tmp_path)
        with pytest.raises(ValueError, match=r"margin 0\.3, this run has 0\.4"):
            load_objective_state(margin(margin=0.4, word="Miller", kind="y"), tmp_path)
