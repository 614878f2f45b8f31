"""AdaptorTrainer with objectives that own parameters, momentum copies and terms; the paper's beside a plain loop."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from objective_trainers import ROOT, STEPS, Teacher, logged, make_trainer
from safetensors.torch import load_file
from synthetic import synthetic_model
from transformers import TrainerCallback

from adaptor_hf import AdaptorModel
from adaptor_hf.objectives import AdaptorObjective, Objective, contrastive_loss
from adaptor_hf.training.base_trainer import KeepBest
from adaptor_hf.training.pair_evaluation import PairEvaluator
from adaptor_hf.training.terms import RunningTerms


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
from objective_trainers import Teacher, make_trainer
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


@pytest.mark.slow
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
