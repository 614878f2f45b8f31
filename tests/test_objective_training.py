"""AdaptorTrainer with objectives that own parameters, momentum copies and terms; the paper's beside a plain loop."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from synthetic import synthetic_model
from torch import nn
from transformers import TrainerCallback

from adaptor_hf import AdaptorModel
from adaptor_hf.hub.push import files_to_push
from adaptor_hf.objectives import AdaptorObjective, Encoded, Objective, Side, SigLIPObjective, contrastive_loss
from adaptor_hf.objectives.loading import load_objective, make_objective
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.base_trainer import KeepBest
from adaptor_hf.training.checkpoints import check_checkpoint, finish_checkpoint, refuse_broken_weights, unfinished
from adaptor_hf.training.objective_state import OBJECTIVE_FILE, load_objective_state, save_objective
from adaptor_hf.training.pair_evaluation import PairEvaluator
from adaptor_hf.training.terms import RunningTerms, smaller_steps

ROOT = Path(__file__).parent.parent
STEPS = 8  # an epoch of the 124 training pairs in batches of 16


class Teacher(Objective):
    """Distance to a momentum copy of the model, through a projector of its own; it leaves the model's scale alone."""

    name = "teacher"

    def __init__(self, momentum: float = 0.9):
        super().__init__()
        self.momentum, self.events = momentum, []

    def setup(self, model, args):
        self.events.append("setup")
        self.projector = nn.Linear(model.config.hidden_size, model.config.hidden_size)
        self.copy = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def encode(self, model, batch):
        encoded = super().encode(model, batch)
        with torch.no_grad():
            targets = self.copy.eval()(image_embeds=batch["image_embeds"], return_logits=False).image_embeds
        encoded.more["teacher"] = Side(targets)
        return encoded

    def forward(self, encoded, rows, gather):
        targets = encoded.more["teacher"].pooled
        distance = (self.projector(encoded.text.pooled) - targets).pow(2).sum(1).mean()
        spread = encoded.image.pooled.std(0).mean()
        self.events.append((distance.item(), spread.item()))
        return {"loss": distance - spread, "distance": distance, "spread": spread}

    def before_step(self, progress):
        gradients = [value.grad is not None for value in self.projector.parameters()]
        self.events.append(("before", progress, all(gradients)))

    def after_step(self, model):
        self.events.append("after")
        self.steps_done += 1
        for kept, new in zip(self.copy.parameters(), model.parameters(), strict=True):
            kept.mul_(self.momentum).add_(new, alpha=1 - self.momentum)


def make_trainer(folder, views, objective="adaptor", model=None, callbacks=None, trainer=None, **kwargs):
    options = {"global_batch_size": 16, "num_train_epochs": 1, "learning_rate": 3e-3, "logging_strategy": "steps"}
    options |= {"logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return AdaptorTrainer(
        model=synthetic_model() if model is None else model,
        args=AdaptorTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **(options | kwargs)),
        objective=objective,
        train_dataset=views["train"],
        eval_dataset=views["validation"],
        callbacks=callbacks,
        **(trainer or {}),
    )


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Stop(TrainerCallback):
    """Saves and stops after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_the_papers_objective_trains_as_a_plain_loop_does(views, tmp_path):
    """To the bit, dropout included: losses and weights."""
    batches, states = [], []

    class Seen(AdaptorObjective):
        def encode(self, model, batch):
            states.append(torch.get_rng_state())
            batches.append({name: value.clone() for name, value in batch.items()})
            return super().encode(model, batch)

    model = synthetic_model()
    plain = copy.deepcopy(model)
    trainer = make_trainer(tmp_path, views, Seen(), model, lr_scheduler_type="constant", warmup_steps=0)
    trainer.train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    plain.train()
    torch.set_rng_state(states[0])
    losses = []
    for batch in batches:
        output = plain(image_embeds=batch["image_embeds"], text_embeds=batch["text_embeds"], return_logits=False)
        embeds, weight = (output.image_embeds, output.text_embeds), plain.config.image_to_text_weight
        loss = contrastive_loss(*embeds, plain.get_logit_scale(), weight, False, batch["text_row"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == STEPS
    assert logged(trainer, "loss") == losses
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    # What only an objective with terms has.
    assert trainer.state.log_history[0].keys() == {"loss", "grad_norm", "learning_rate", "epoch", "step"}


def test_an_objective_with_a_momentum_copy_trains_as_a_plain_loop_does(views, tmp_path):
    batches = []

    class Seen(Teacher):
        def encode(self, model, batch):
            batches.append({name: value.clone() for name, value in batch.items()})
            return super().encode(model, batch)

    model, objective = synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), Seen()
    trainer = make_trainer(tmp_path, views, objective, model, lr_scheduler_type="constant", warmup_steps=0)
    plain, teacher, projector = copy.deepcopy(model), copy.deepcopy(model).eval(), copy.deepcopy(objective.projector)
    trainer.train()
    parameters = [*plain.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    for batch in batches:
        images, texts = batch["image_embeds"], batch["text_embeds"]
        output = plain(image_embeds=images, text_embeds=texts, return_logits=False)
        with torch.no_grad():
            targets = teacher(image_embeds=images, return_logits=False).image_embeds
        distance = (projector(output.text_embeds) - targets).pow(2).sum(1).mean()
        optimizer.zero_grad()
        (distance - output.image_embeds.std(0).mean()).backward()
        plain.logit_scale.grad = torch.zeros(())
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(teacher.parameters(), plain.parameters(), strict=True):
                kept.copy_(0.9 * kept + 0.1 * new)
    # The scale, which the loss does not reach, decays on one process as on several.
    assert model.logit_scale.item() < 2.6592
    for ours, theirs in ((model, plain), (objective.copy, teacher), (objective.projector, projector)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-6)


def test_set_up_once_then_each_step_before_and_after_the_optimizer(views, tmp_path):
    objective = Teacher()
    trainer = make_trainer(tmp_path, views, objective, gradient_accumulation_steps=2, num_train_epochs=2)
    assert objective.events == ["setup"]
    assert trainer.optimizer is None
    trainer.train()
    # Eight batches of an epoch are four steps, and there are two epochs.
    steps = objective.events[1:]
    assert len(steps) == 8 * 4
    for number in range(8):
        first, second, before, after = steps[4 * number : 4 * number + 4]
        assert len(first) == len(second) == 2
        assert before == ("before", number / 8, True)
        assert after == "after"
    assert objective.steps_done == 8


def test_a_term_is_logged_as_its_mean_since_the_last_line(views, tmp_path):
    objective = Teacher()
    trainer = make_trainer(tmp_path, views, objective, gradient_accumulation_steps=2, logging_steps=3)
    trainer.train()
    values = [event for event in objective.events if isinstance(event, tuple) and event[0] != "before"]
    for place, name in enumerate(("distance", "spread")):
        expected = sum(value[place] for value in values[:6]) / 6
        assert logged(trainer, name) == [pytest.approx(expected, rel=1e-6)]
    assert [entry["step"] for entry in trainer.state.log_history if "spread" in entry] == [3]


def test_terms_that_come_now_and_then_and_on_some_processes_only():
    one, other = RunningTerms(torch.device("cpu")), RunningTerms(torch.device("cpu"))
    for value in (1.0, 2.0, 6.0):
        one.add({"loss": torch.tensor(9.0), "always": torch.tensor(value)})
    one.add({"seldom": torch.tensor(5.0)})
    other.add({"always": torch.tensor(7.0)})
    of_both = [one.state(), other.state()]
    # Resumed on as many processes each has its own sums; on another number the mean is what it was.
    for processes in (2, 3):
        again = [RunningTerms(torch.device("cpu")) for _ in range(processes)]
        for process, terms in enumerate(again):
            terms.load(of_both, process, processes)
        assert (again[0].state() == one.state()) == (processes == 2)
        sums = [terms.state()["always"] for terms in again]
        assert sum(total for total, _ in sums) / sum(weight for _, weight in sums) == pytest.approx(16 / 4)
    assert one.take_means(1) == {"always": 3.0, "seldom": 5.0}
    assert one.take_means(1) == {}


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


class Distance(Objective):
    """It falls from step to step, and nobody has declared that less of it is better."""

    def forward(self, encoded, rows, gather):
        distance = (encoded.image.pooled - encoded.text.pooled).square().sum(1).mean()
        return {"loss": distance, "distance": distance}


def chosen_by(metric, views, folder, **options):
    by_steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    by_epochs = {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch"}
    options = {"metric_for_best_model": metric, "load_best_model_at_end": True, **options}
    return make_trainer(
        folder, views, Distance(), **(by_epochs if "num_train_epochs" in options else by_steps), **options
    )


def test_the_best_by_a_term_of_ones_own_goes_the_way_that_is_given(views, tmp_path, capsys):
    for way, best in ((False, min), (True, max)):
        trainer = chosen_by("distance", views, tmp_path / str(way), greater_is_better=way, num_train_epochs=3)
        trainer.train()
        values = {
            entry["step"]: entry["eval_distance"] for entry in trainer.state.log_history if "eval_distance" in entry
        }
        assert values[8] > values[16] > values[24]
        wanted = best(values, key=values.get)
        assert (trainer.state.best_global_step, trainer.state.best_metric) == (wanted, values[wanted])
        said = capsys.readouterr().out.splitlines()
        last = next(line for line in said if "epoch 3/3" in line)
        assert f"best distance {values[wanted]:.3f} (epoch {wanted // 8})" in last


@pytest.mark.parametrize("scheduler", ["linear", "reduce_lr_on_plateau"])
def test_a_metric_that_nobody_gives_is_refused_with_those_that_are_given(views, tmp_path, scheduler):
    trainer = chosen_by("distance", views, tmp_path)
    with pytest.raises(ValueError, match="'distance': no evaluator declares this metric"):
        trainer.train()
    assert trainer.state.global_step == 0
    trainer = chosen_by("distnce", views, tmp_path, greater_is_better=False, lr_scheduler_type=scheduler)
    with pytest.raises(
        ValueError, match=r"'distnce': evaluation gives no such metric. It gave .*mean_recall, .*distance"
    ):
        trainer.train()
    assert trainer.state.global_step == 2
    # What is measured outside of training is nobody's best.
    assert "eval_distance" in trainer.evaluate()


def test_an_evaluator_that_declares_its_metric_says_which_way_is_better(views, tmp_path):
    scores = iter([1.0, 2.0, 3.0, 4.0])

    class Rank(PairEvaluator):
        def metric_names(self, sources=()):
            return {"of_mine": False}

        def measure(self, model, embeds, dataset):
            return {"of_mine": next(scores)}

    trainer = make_trainer(
        tmp_path, views, trainer={"evaluators": [Rank()]}, save_strategy="steps", save_steps=2, eval_strategy="steps",
        eval_steps=2, load_best_model_at_end=True, metric_for_best_model="of_mine",
    )  # fmt: skip
    trainer.train()
    assert (trainer.state.best_global_step, trainer.args.greater_is_better) == (2, False)


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


def test_optimizer_and_decay_have_the_parameters_of_both(views, tmp_path):
    objective = Teacher()
    trainer = make_trainer(tmp_path, views, objective, max_steps=1)
    trainer.train()
    decayed, spared = trainer.optimizer.param_groups
    trained = [*trainer.model.parameters(), *objective.projector.parameters()]
    assert [id(value) for value in decayed["params"]] == [id(value) for value in trained]
    assert spared["params"] == []


def test_callbacks_and_keep_best_see_the_model_alone(views, tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_event(self, args, state, control, model=None, **kwargs):
            seen.append((type(model), trainer.model is model))

        on_train_begin = on_step_begin = on_step_end = on_evaluate = on_train_end = on_event

    keep, model = KeepBest("loss", greater_is_better=False), synthetic_model()
    trainer = make_trainer(
        tmp_path, views, Teacher(), model, [Look()], eval_strategy="steps", eval_steps=2, trainer={"keep_best": keep}
    )
    trainer.train()
    assert set(seen) == {(AdaptorModel, True)}
    assert len(seen) == 2 + 2 * STEPS + STEPS // 2
    assert trainer.model is model
    assert keep.weights.keys() == model.state_dict().keys()


def test_a_step_that_the_scaler_left_out_is_not_followed(views, tmp_path, monkeypatch):
    objective = Teacher()
    trainer = make_trainer(tmp_path, views, objective)
    skipped = property(lambda self: trainer.state.global_step % 2 == 1)
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", skipped)
    trainer.train()
    assert objective.steps_done == STEPS // 2
    assert objective.events.count("after") == STEPS // 2
    assert len([event for event in objective.events if event[0] == "before"]) == STEPS


class Giving(Objective):
    """Gives what it is told to."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, encoded, rows, gather):
        return self.give(encoded.image.pooled.sum())


@pytest.mark.parametrize(
    ("give", "error", "says"),
    [
        (lambda loss: {"loss": loss, "grad_norm": loss}, ValueError, "named 'grad_norm'.*Rename it"),
        (lambda loss: {"loss": loss, "eval_loss": loss}, ValueError, "named 'eval_loss'"),
        (lambda loss: {"contrast": loss}, ValueError, 'forward of Giving must return "loss".*gave contrast'),
        (lambda loss: loss, TypeError, "dictionary of scalar tensors, got Tensor"),
        (lambda loss: {"loss": loss, "share": 0.5}, TypeError, r"'share' \(float\)"),
        (lambda loss: {"loss": loss.expand(3)}, ValueError, r"'loss' of Giving is of shape \(3,\)"),
    ],
)
def test_what_is_no_loss_is_refused(give, error, says, views, tmp_path):
    with pytest.raises(error, match=says):
        make_trainer(tmp_path, views, Giving(give), max_steps=1).train()


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (Teacher, r"is the class Teacher: give an instance, Teacher\(\.\.\.\)"),
        (None, "got None. The default is 'adaptor'"),
        (torch.nn.Linear(2, 2), "name of adaptor, siglip, or file.py:Class; got Linear"),
    ],
)
def test_what_is_no_objective_is_refused(objective, says, views, tmp_path):
    with pytest.raises(TypeError, match=says):
        make_trainer(tmp_path, views, objective)


def test_an_objective_that_has_not_begun_as_a_module_is_refused(views, tmp_path):
    class Bare(Objective):
        def __init__(self):
            self.__dict__["margin"] = 1

    with pytest.raises(TypeError, match=r"Bare .* must begin with super\(\).__init__\(\)"):
        make_trainer(tmp_path, views, Bare())


@pytest.mark.parametrize(
    ("encode", "says"),
    [
        (lambda model, batch: model(image_embeds=batch["image_embeds"]), "must return .*Encoded, got AdaptorOutput"),
        (
            lambda model, batch: Encoded(batch["image_embeds"]),
            "encode of Giving gave Tensor for 'image': expected .*Side",
        ),
    ],
)
def test_what_is_not_encoded_is_refused(encode, says, views, tmp_path):
    objective = Giving(lambda loss: {"loss": loss})
    objective.encode = encode
    with pytest.raises(TypeError, match=says):
        make_trainer(tmp_path, views, objective, max_steps=1).train()


@pytest.mark.parametrize("where", ["forward", "encode"])
def test_a_column_that_a_batch_lacks_is_named_with_those_that_it_has(where, views, tmp_path):
    objective, method = Giving(lambda loss: {"loss": loss}), getattr(Objective, where)

    def reads(*args):
        columns = args[1]
        try:
            columns["mine"]
        except KeyError:
            assert "mine" not in columns
            assert columns.get("mine") is None
        return columns["wanted"] if where == "forward" else method(objective, *args) and columns["wanted"]

    setattr(objective, where, reads)
    with pytest.raises(KeyError, match=r"no column 'wanted' here; it has .*'text_row'"):
        make_trainer(tmp_path, views, objective, max_steps=1).train()


def test_advice_after_a_loss_of_nan_names_what_the_objective_has(views, tmp_path):
    giving = Giving(lambda loss: {"loss": loss * float("nan")})
    with pytest.raises(FloatingPointError, match="in float32, or with a forward of Giving") as caught:
        make_trainer(tmp_path, views, giving, max_steps=1).train()
    assert "max_logit_scale" not in str(caught.value)
    giving.weight = torch.nn.Parameter(torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match="with a forward of Giving"):
        refuse_broken_weights((torch.nn.Linear(2, 2), giving), 3)
    assert "'{\"max_logit_scale\": 100}'" in smaller_steps(AdaptorObjective())
    assert "max_logit_scale 100 among the fields" in smaller_steps(SigLIPObjective())


def test_an_objective_that_keeps_the_model_is_refused(views, tmp_path):
    class Keeps(Teacher):
        def setup(self, model, args):
            self.model = model

    with pytest.raises(ValueError, match=r"Keeps keeps the model.*copy\.deepcopy"):
        make_trainer(tmp_path, views, Keeps())


def test_the_order_of_an_objective_comes_before_the_trainers(views, tmp_path):
    class Backwards(AdaptorObjective):
        def sampler(self, dataset):
            return Order(len(dataset))

        def forward(self, encoded, rows, gather):
            seen.append(rows["row"].tolist())
            return super().forward(encoded, rows, gather)

    class Order(torch.utils.data.Sampler):
        def __init__(self, length):
            self.length, self.epochs = length, []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

        def __len__(self):
            return self.length

        def __iter__(self):
            return iter(range(self.length - 1, -1, -1))

    seen = []
    trainer = make_trainer(tmp_path, views, Backwards(), num_train_epochs=2)
    trainer.train()
    rows = [row for batch in seen[: STEPS - 1] for row in batch]
    assert rows == sorted(rows, reverse=True)
    assert seen[:STEPS] == seen[STEPS:]
    assert set(trainer.sampler.epochs) == {0, 1}


TRAIN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_objective_training import Teacher, make_trainer
from synthetic import synthetic_model
from adaptor_hf.embeddings import open_cache
from adaptor_hf.training.interruption import leave_process_group
from adaptor_hf.training.pairs import contrastive_splits
from safetensors.torch import save_file
views, folder = contrastive_splits(open_cache(sys.argv[2])), Path(sys.argv[3])
objective = Teacher()
model = synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
trainer = make_trainer(folder, views, objective, model, logging_steps=4, dataloader_drop_last=True,
    save_strategy="steps", save_steps=7)
trainer.train()
assert trainer.args.world_size == 2
name = str(trainer.args.process_index)
save_file({**objective.state_dict(), "scale": model.logit_scale.data}, folder / f"{name}.safetensors")
(folder / f"{name}.json").write_text(json.dumps([objective.events, trainer.state.log_history]))
leave_process_group()
"""


def test_on_two_ranks_terms_are_means_of_both_and_copies_stay_equal(cache_folder, views, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    words = [str(tmp_path / "train.py"), str(Path(__file__).parent), str(cache_folder), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *launch, *words], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (of_one, log), (of_other, _) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in "01")
    lines = [entry for entry in log if "distance" in entry]
    assert [entry["step"] for entry in lines] == [4]
    for place, name in enumerate(("distance", "spread")):
        values = [
            [event[place] for event in events if isinstance(event, list) and len(event) == 2][:4]
            for events in (of_one, of_other)
        ]
        assert values[0] != values[1]
        assert lines[0][name] == pytest.approx(sum(map(sum, values)) / 8, rel=1e-6)
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["steps_done"] == 7
    # DDP did not wait for the scale, which the loss does not reach; it decays as on one process.
    alone = synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    make_trainer(tmp_path / "alone", views, Teacher(), alone, dataloader_drop_last=True).train()
    assert torch.equal(one["scale"], alone.logit_scale.data)
    assert one["scale"] < 2.6592
