"""AdaptorTrainer with towers that train: rates, what moves, checkpoints, resume, parts, precision, ranks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from live_training import (
    Gradients,
    Stop,
    different,
    live_model,
    live_pairs,
    live_trainer,
    state_of,
)
from torch import nn
from transformers import AutoModel

from adaptor_hf import AdaptorModel
from adaptor_hf.objectives import AdaptorObjective, Objective
from adaptor_hf.towers import load_vision_tower
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.needs import check_needs
from adaptor_hf.training.pair_batches import PairCollator
from adaptor_hf.training.tower_rates import rate_scales

ROOT = Path(__file__).parent.parent
SLOW = pytest.mark.slow


def rates_of(trainer: AdaptorTrainer) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that trains, by its name in the model."""
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    return {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for value in group["params"]
        if id(value) in names
    }


class TestRates:
    def test_each_block_has_the_rate_of_beits_rule_and_the_adaptor_the_full_one(
        self, tmp_path, vision_tower, text_tower
    ):
        model = live_model(vision_tower, text_tower)
        trainer = live_trainer(tmp_path, model, layer_decay=0.5, learning_rate=1.0, weight_decay=0.3)
        trainer.create_optimizer()
        rates = rates_of(trainer)
        assert rates.keys() == dict(model.named_parameters()).keys()
        for name, (rate, decay) in rates.items():
            # Both towers have 2 blocks: 0 is what stands before them, 3 what comes after them.
            block = re.search(r"\.layer\.(\d)\.", name) or re.search(r"\.layers\.(\d)\.", name)
            tower = name.startswith(("vision_model.", "text_model."))
            depth = 3 if not tower else int(block[1]) + 1 if block else 0 if ".embeddings." in name else 3
            assert rate == pytest.approx(0.5 ** (3 - depth)), name
            vector = model.get_parameter(name).ndim < 2
            assert decay == (0.0 if tower and vector else 0.3), name
        assert {rate for rate, _ in rates.values()} == {1.0, 0.5, 0.25, 0.125}
        assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(rates)

    def test_the_rates_are_those_of_timm(self, tmp_path):
        import timm
        from test_towers import save_timm
        from timm.optim import param_groups_layer_decay

        arguments = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 16}
        save_timm(tmp_path, "vit_tiny_patch16_224", (3, 32, 32), **arguments)
        tower = load_vision_tower(f"timm:{tmp_path}")
        scales = rate_scales(tower, 0.7)
        network = timm.create_model("vit_tiny_patch16_224", num_classes=5, **arguments)
        names = {id(value): name for name, value in network.named_parameters()}
        groups = param_groups_layer_decay(network, weight_decay=0.1, layer_decay=0.7)
        expected = {names[id(value)]: group["lr_scale"] for group in groups for value in group["params"]}
        compared = 0
        for name, scale in scales.items():
            own = name.removeprefix("model.timm_model.")
            # timm counts the last norm to the last block; BEiT's rule to what comes after it.
            if not own.startswith("norm."):
                assert scale == pytest.approx(expected[own]), own
                compared += 1
        assert compared == len(scales) - 2 == 3 * 12 + 4

    def test_towers_have_a_peak_of_their_own_and_the_groups_of_the_adaptor_stay(
        self, tmp_path, vision_tower, text_tower
    ):
        frozen = live_trainer(tmp_path, live_model(vision_tower, text_tower, ("frozen", "frozen")))
        frozen.create_optimizer()
        trainer = live_trainer(
            tmp_path, live_model(vision_tower, text_tower, (1, "frozen")), tower_learning_rate=1e-4, num_train_epochs=1
        )
        trainer.create_optimizer()
        names = [
            [
                [name for value in group["params"] for name, one in of.model.named_parameters() if one is value]
                for group in of.optimizer.param_groups
            ]
            for of in (frozen, trainer)
        ]
        assert names[0] == names[1][: len(names[0])]
        assert len(names[1]) > len(names[0]) == 2
        for name, (rate, _) in rates_of(trainer).items():
            assert rate == (1e-4 if name.startswith("vision_model.") else 1e-2), name
        # The schedule is of both alike, and what is logged is the Adaptor's.
        rates = []
        trainer.create_scheduler(10)
        for _ in range(4):
            rates.append([group["lr"] for group in trainer.optimizer.param_groups])
            trainer.lr_scheduler.step()
        assert all(one[-1] == pytest.approx(one[0] / 100) for one in rates)
        assert rates[0] != rates[3]
        assert trainer._get_learning_rate() == trainer.optimizer.param_groups[0]["lr"]

    @pytest.mark.parametrize("given", [{"layer_decay": 0.7}, {"tower_learning_rate": 1e-4}])
    def test_rates_of_towers_are_refused_where_none_trains(self, tmp_path, vision_tower, text_tower, given):
        trainer = live_trainer(tmp_path, live_model(vision_tower, text_tower, ("frozen", "frozen")), **given)
        before = state_of(trainer.model)
        with pytest.raises(ValueError, match=rf"{next(iter(given))} .*no tower trains.*set_trainable_towers"):
            trainer.train()
        assert different(before, state_of(trainer.model)) == []

    @pytest.mark.parametrize("given", [{"layer_decay": 0.0}, {"layer_decay": 1.5}, {"tower_learning_rate": -1e-4}])
    def test_impossible_rates_are_refused(self, tmp_path, given):
        with pytest.raises(ValueError, match=next(iter(given))):
            AdaptorTrainingArguments(str(tmp_path), use_cpu=True, **given)

    def test_rates_of_towers_are_refused_beside_an_optimizer_that_was_given(self, tmp_path, vision_tower, text_tower):
        model = live_model(vision_tower, text_tower)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        args = live_trainer(tmp_path, model, layer_decay=0.5).args
        with pytest.raises(ValueError, match=r"layer_decay.*optimizers= gives"):
            AdaptorTrainer(model, args, train_dataset=live_pairs(), optimizers=(optimizer, None))


@pytest.mark.parametrize(
    "trains",
    [("full", "lora"), pytest.param((1, "frozen"), marks=SLOW), pytest.param(("frozen", 2), marks=SLOW), (1, "full")],
)
def test_what_trains_moves_and_all_else_stays_to_the_bit(tmp_path, vision_tower, text_tower, trains):
    model = live_model(vision_tower, text_tower, trains)
    before = state_of(model)
    trainer = live_trainer(tmp_path, model, num_train_epochs=1, weight_decay=0.1)
    trainer.train()
    moved = set(different(before, state_of(model)))
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert moved <= learning
    for tower, what in zip(("vision_model", "text_model"), trains, strict=True):
        of_tower = {name for name in learning if name.startswith(tower)}
        assert bool(of_tower) == (what != "frozen")
        # A mask token has no gradient and no decay that would move a zero.
        assert len(of_tower & moved) >= 0.9 * len(of_tower), sorted(of_tower - moved)
        if what == "lora":
            assert all("lora_" in name for name in of_tower)
        if what == 1:
            assert not any(".layer.0." in name or ".embeddings." in name for name in of_tower)


@pytest.mark.parametrize("what", ["full", pytest.param(1, marks=SLOW)])
def test_batch_statistics_move_in_full_alone(tmp_path, text_tower, what):
    from test_towers import save_timm

    (tmp_path / "timm").mkdir()
    save_timm(tmp_path / "timm", "resnet10t", (3, 64, 64))
    tower = load_vision_tower(f"timm:{tmp_path / 'timm'}")
    model = live_model(tower, text_tower, (what, "frozen"))
    before = state_of(model)
    trainer = live_trainer(tmp_path / "run", model, num_train_epochs=1, max_steps=2)
    trainer.train()
    moved = different(before, state_of(model))
    statistics = [name for name in before if "running_" in name]
    assert statistics
    assert [name for name in statistics if name in moved] == (statistics if what == "full" else [])
    assert any(name.startswith("vision_model.") and "running_" not in name for name in moved)
    if what == "full":
        parts = live_trainer(tmp_path / "parts", model, grad_cache_batch_size=4)
        with pytest.raises(ValueError, match=r"grad_cache_batch_size .*vision_model.*BatchNorm"):
            parts.train()


@pytest.mark.parametrize(("trains", "stop"), [(("full", "lora"), 4), pytest.param((1, "full"), 2, marks=SLOW)])
def test_resuming_inside_an_epoch_gives_the_same_weights_to_the_bit(tmp_path, vision_tower, text_tower, trains, stop):
    """Three steps an epoch, with dropout in both towers."""
    options = {"weight_decay": 0.1, "layer_decay": 0.8, "tower_learning_rate": 5e-3, "num_train_epochs": 3}
    whole = live_trainer(tmp_path / "whole", live_model(vision_tower, text_tower, trains, 0.2), **options)
    whole.train()
    live_trainer(tmp_path / "cut", live_model(vision_tower, text_tower, trains, 0.2), [Stop(stop)], **options).train()
    model = live_model(vision_tower, text_tower, trains, 0.2)
    # What is not put back shows.
    for value in model.parameters():
        if value.requires_grad:
            nn.init.normal_(value.data)
    resumed = live_trainer(tmp_path / "cut", model, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 9
    assert different(state_of(whole.model), state_of(model)) == []
    states = [trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    assert all(torch.equal(states[0][key]["exp_avg_sq"], states[1][key]["exp_avg_sq"]) for key in states[0])
    logs = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, resumed)]
    assert logs[0] == logs[1]


def test_a_checkpoint_of_other_training_towers_or_rates_is_refused(tmp_path, vision_tower, text_tower):
    def trainer(trains=(1, "frozen"), **options):
        return live_trainer(
            tmp_path, live_model(vision_tower, text_tower, trains), options.pop("callbacks", None), **options
        )

    trainer(layer_decay=0.5, callbacks=[Stop(2)]).train()
    for trains, options, message in (
        (("full", "frozen"), {"layer_decay": 0.5}, "vision_tower 1, this run has full"),
        ((1, "lora"), {"layer_decay": 0.5}, "text_tower frozen, this run has lora"),
        (("frozen", "frozen"), {}, "layer_decay 0.5, this run has not given"),
        ((1, "frozen"), {"layer_decay": 0.6}, "layer_decay 0.5, this run has 0.6"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint-2 was written by a run with {message}"):
            trainer(trains, **options).train(resume_from_checkpoint=True)


def test_damage_to_a_tower_in_a_checkpoint_is_found(tmp_path, vision_tower, text_tower):
    def trainer(*callbacks):
        return live_trainer(tmp_path, live_model(vision_tower, text_tower, ("full", "frozen")), list(callbacks))

    trainer(Stop(2)).train()
    weights = tmp_path / "checkpoint-2" / "vision_tower" / "model.safetensors"
    listed = json.loads((tmp_path / "checkpoint-2" / "checkpoint.json").read_text())["files"]
    assert {"vision_tower/model.safetensors", "vision_tower/tower.json"} <= listed.keys()
    content = weights.read_bytes()
    for damaged, message in ((content[:-8] + bytes(8), "SHA-256"), (content[:-100], "truncated")):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"vision_tower/model.safetensors .*{message}"):
            trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"vision_tower/model\.safetensors is missing"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@SLOW
def test_a_kill_while_a_tower_is_written_leaves_the_checkpoint_before(tmp_path, vision_tower, text_tower, monkeypatch):
    """Between the files of a checkpoint: the tower is there, the optimizer is not."""
    options = {"save_strategy": "steps", "save_steps": 2}

    def trainer(folder):
        return live_trainer(folder, live_model(vision_tower, text_tower, ("full", "full"), 0.1), **options)

    whole = trainer(tmp_path / "whole")
    whole.train()
    killed = trainer(tmp_path / "cut")
    save = AdaptorTrainer._save_optimizer_and_scheduler

    class Killed(BaseException):
        pass

    def kill(self, folder):
        if self.state.global_step == 4:
            raise Killed
        save(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(AdaptorTrainer, "_save_optimizer_and_scheduler", kill)
        with pytest.raises(Killed):
            killed.train()
    assert (tmp_path / "cut" / "unfinished-checkpoint-4" / "vision_tower" / "model.safetensors").is_file()
    resumed = trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert different(state_of(whole.model), state_of(resumed.model)) == []
    assert not list((tmp_path / "cut").glob("unfinished-*"))
    assert len(list((tmp_path / "cut").glob("checkpoint-*"))) == 2


def test_a_run_ends_with_the_towers_of_its_best_checkpoint(tmp_path, vision_tower, text_tower):
    kept = {}

    class Watch(Stop):
        def on_save(self, args, state, control, model=None, **kwargs):
            kept[state.global_step] = state_of(model)

    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    options |= {
        "metric_for_best_model": "eval_loss",
        "num_train_epochs": 3,
        "learning_rate": 0.1,
        "save_total_limit": 1,
    }
    trainer = live_trainer(tmp_path, live_model(vision_tower, text_tower, ("full", "lora")), [Watch(-1)], **options)
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(losses, key=losses.get)
    assert trainer.state.best_global_step == best != 9
    assert different(kept[best], state_of(trainer.model)) == []
    assert different(kept[9], state_of(trainer.model))
    trainer.save_model()
    loaded = AdaptorModel.from_pretrained(tmp_path)
    batch = PairCollator()(live_pairs()[:4])
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        wanted, found = trainer.model.eval()(**inputs), loaded.eval()(**inputs)
    assert torch.equal(wanted.image_embeds, found.image_embeds)
    assert torch.equal(wanted.text_embeds, found.text_embeds)


class TestSavedModel:
    def trainer(self, folder, vision_tower, text_tower, trains):
        return live_trainer(folder, live_model(vision_tower, text_tower, trains))

    def test_a_tower_takes_the_place_of_an_older_one_as_a_whole(self, tmp_path, vision_tower, text_tower):
        self.trainer(tmp_path, vision_tower, text_tower, ("full", "full")).save_model()
        (tmp_path / "vision_tower" / "of_an_older_save").touch()
        # What a process that was killed in an earlier save left.
        left = tmp_path / "unfinished-model" / "text_tower"
        left.mkdir(parents=True)
        (left / "half").touch()
        (left.parent / "half").touch()
        trainer = self.trainer(tmp_path, vision_tower, text_tower, ("full", "full"))
        with torch.no_grad():
            for value in trainer.model.vision_model.parameters():
                value.add_(1)
        trainer.save_model()
        names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
        assert not [name for name in names if re.search(r"unfinished|half|of_an_older", name)]
        found = AutoModel.from_pretrained(tmp_path / "vision_tower").state_dict()
        assert different(trainer.model.vision_model.model.state_dict(), found) == []

    def test_a_tower_of_an_older_save_goes_where_the_new_model_has_none(self, tmp_path, vision_tower, text_tower):
        self.trainer(tmp_path, vision_tower, text_tower, ("full", "full")).save_model()
        other = tmp_path / "text_tower"
        self.trainer(tmp_path, vision_tower, text_tower, ("frozen", "full")).save_model()
        assert other.is_dir()
        assert not (tmp_path / "vision_tower").exists()
        (tmp_path / "vision_tower").mkdir()
        (tmp_path / "vision_tower" / "notes.txt").touch()
        self.trainer(tmp_path, vision_tower, text_tower, ("frozen", "frozen")).save_model()
        assert not other.exists()
        # A folder of that name that no save wrote.
        assert (tmp_path / "vision_tower" / "notes.txt").is_file()

    def test_a_tower_that_the_config_names_stays(self, tmp_path, vision_tower, text_tower):
        """A model on embeddings of a tower, saved beside that tower."""
        self.trainer(tmp_path, vision_tower, text_tower, ("full", "frozen")).save_model()
        spec = load_vision_tower(str(tmp_path / "vision_tower")).spec
        from synthetic import synthetic_config

        model = AdaptorModel(synthetic_config(vision_hidden_size=32, text_hidden_size=32, vision_tower=spec))
        live_trainer(tmp_path, model).save_model()
        assert (tmp_path / "vision_tower" / "model.safetensors").is_file()


def gradients_of_a_step(tmp_path, model, **options) -> dict[str, torch.Tensor]:
    kept = Gradients()
    live_trainer(tmp_path, model, [kept], max_steps=1, **options).train()
    return kept.steps[0]


def assert_near(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    scale = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("trains", [("full", "lora"), pytest.param((1, "full"), marks=SLOW)])
def test_parts_of_a_batch_have_the_gradients_of_the_whole(tmp_path, vision_tower, text_tower, trains):
    def gradients(parts, dropout):
        model = live_model(vision_tower, text_tower, trains, dropout)
        return gradients_of_a_step(tmp_path, model, grad_cache_batch_size=parts)

    whole = gradients(None, 0.0)
    assert_near(gradients(3, 0.0), whole)
    assert all(value.any() for name, value in whole.items() if "layer.1" in name and "lora_A" not in name)
    # With dropout: one part of all rows draws what the whole batch draws, and again in the second pass.
    dropped = gradients(None, 0.3)
    assert_near(gradients(8, 0.3), dropped)
    with pytest.raises(AssertionError):
        assert_near(dropped, whole)


@SLOW
def test_accumulated_gradients_are_the_mean_of_those_of_the_batches(tmp_path, vision_tower, text_tower):
    def model():
        return live_model(vision_tower, text_tower, ("full", "full"), 0.0)

    class Same(AdaptorObjective):
        """The rows in their order."""

        def sampler(self, dataset):
            return torch.utils.data.SequentialSampler(dataset)

    options = {"learning_rate": 0.0, "objective": Same(), "optim": "sgd"}
    kept = Gradients()
    live_trainer(tmp_path, model(), [kept], max_steps=2, **options | {"objective": Same()}).train()
    both = gradients_of_a_step(tmp_path, model(), gradient_accumulation_steps=2, **options)
    assert_near(both, {name: (one + kept.steps[1][name]) / 2 for name, one in kept.steps[0].items()})


@pytest.mark.parametrize("trains", [("full", "full"), pytest.param((1, "lora"), marks=SLOW)])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, vision_tower, text_tower, trains):
    def gradients(**options):
        return gradients_of_a_step(tmp_path, live_model(vision_tower, text_tower, trains, 0.2), **options)

    whole = gradients()
    assert_near(gradients(gradient_checkpointing=True), whole)
    assert_near(gradients(gradient_checkpointing=True, grad_cache_batch_size=8), whole)


def test_bf16_computes_in_bf16_over_float32_weights(tmp_path, vision_tower, text_tower):
    model = live_model(vision_tower, text_tower, ("full", "lora"))
    seen = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(("vision_model", "text_model")):
            module.register_forward_hook(lambda module, inputs, output: seen.add((output.dtype, output.requires_grad)))
    before = state_of(model)
    kept = Gradients()
    trainer = live_trainer(tmp_path, model, [kept], bf16=True, max_steps=1, warmup_steps=0)
    trainer.train()
    assert {dtype for dtype, grad in seen if grad} == {torch.bfloat16}
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    moved = different(before, state_of(model))
    assert any(name.startswith("vision_model") for name in moved)
    assert any(name.startswith("text_model") for name in moved)
    wide = live_trainer(
        tmp_path, live_model(vision_tower, text_tower, ("full", "lora")), [full := Gradients()], max_steps=1
    )
    wide.train()
    assert_near(kept.steps[0], full.steps[0], 0.1)


class Tokens(Objective):
    name, needs = "tokens", frozenset({"pairs", "image_tokens", "text_tokens"})

    def forward(self, encoded, rows, gather):
        mask = encoded.text.mask[..., None]
        text = (encoded.text.tokens * mask).sum(1) / mask.sum(1)
        return {"loss": (encoded.image.tokens.mean(1) - text).square().sum(1).mean() + encoded.image.pooled.std()}


class TestTokens:
    def test_live_towers_give_an_objective_the_tokens_that_a_cached_sequence_gives(self, vision_tower, text_tower):
        model = live_model(vision_tower, text_tower, ("frozen", "frozen")).eval()
        batch = PairCollator()(live_pairs()[:4])
        batch["attention_mask"][2, 4:] = 0
        with torch.no_grad():
            image = model.vision_model(batch["pixel_values"])
            text = model.text_model(batch["input_ids"], attention_mask=batch["attention_mask"])
            cached = {
                "image_embeds": torch.cat([image.pooler_output[:, None], image.last_hidden_state], 1),
                "text_embeds": torch.cat([text.pooler_output[:, None], text.last_hidden_state], 1),
                "text_attention_mask": nn.functional.pad(batch["attention_mask"], (1, 0), value=1),
            }
            found, expected = Tokens().encode(model, batch), Tokens().encode(model, cached)
            pooled = AdaptorObjective().encode(model, batch)
        assert found.image.tokens.shape == (4, 4, 16)
        assert found.text.tokens.shape == (4, 6, 16)
        assert found.tensors().keys() == expected.tensors().keys()
        for name, value in expected.tensors().items():
            assert torch.equal(found.tensors()[name], value), name
        assert pooled.image.tokens is None
        assert pooled.text.tokens is None

    def test_only_the_side_that_is_needed_has_tokens(self, vision_tower, text_tower):
        """Tokens attend to the pooled embedding: what goes in changes it, as of a cache that is opened with them."""

        class OfImages(Tokens):
            needs = frozenset({"pairs", "image_tokens"})

        model = live_model(vision_tower, text_tower, ("frozen", "frozen")).eval()
        batch = PairCollator()(live_pairs()[:4])
        with torch.no_grad():
            found, both, none = (one.encode(model, batch) for one in (OfImages(), Tokens(), AdaptorObjective()))
        assert torch.equal(found.image.tokens, both.image.tokens)
        assert found.text.tokens is None
        assert torch.equal(found.text.pooled, none.text.pooled)
        assert not torch.equal(found.text.pooled, both.text.pooled)

    def test_raw_inputs_are_enough_for_what_needs_tokens(self, tmp_path, vision_tower, text_tower):
        check_needs(Tokens(), live_pairs())
        with pytest.raises(ValueError, match=r"tokens of images.* or pixel_values for a tower"):
            check_needs(Tokens(), [{"image_embeds": torch.zeros(4), "input_ids": torch.ones(3).long()}])
        trainer = live_trainer(
            tmp_path,
            live_model(vision_tower, text_tower),
            objective=Tokens(),
            num_train_epochs=1,
            eval_strategy="epoch",
        )
        trainer.train()
        assert trainer.model.config.trained_on == ["image_tokens", "text_tokens"]
        assert "eval_loss" in trainer.state.log_history[-2]


def run_ranks(tmp_path, tiny_dinov2, tiny_bert, ranks: int, changes: dict) -> dict:
    import os

    output = tmp_path / f"ranks-{ranks}-{len(list(tmp_path.iterdir()))}"
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", "0", "--standalone"]
    command = [sys.executable, *(launch if ranks > 1 else []), str(ROOT / "tests" / "live_training.py")]
    command += [str(tiny_dinov2), str(tiny_bert), str(output), json.dumps(changes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    facts = torch.load(output / "facts.pt", weights_only=True)
    assert facts["world_size"] == ranks
    return facts


@SLOW
@pytest.mark.parametrize(
    ("trains", "changes"),
    [
        (("full", "lora"), {}),
        ((1, "full"), {"grad_cache_batch_size": 2}),
        (("full", "full"), {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
    ],
)
def test_two_ranks_equal_one_process_in_gradients_and_weights(tmp_path, tiny_dinov2, tiny_bert, trains, changes):
    both = [run_ranks(tmp_path, tiny_dinov2, tiny_bert, ranks, {"trains": trains} | changes) for ranks in (1, 2)]
    assert len(both[0]["gradients"]) == len(both[1]["gradients"]) > 2
    for one, two in zip(both[0]["gradients"], both[1]["gradients"], strict=True):
        assert {value.dtype for value in one.values()} == {torch.float64}
        assert_near(two, one, 1e-12)
    assert_near(both[1]["weights"], both[0]["weights"], 1e-12)
