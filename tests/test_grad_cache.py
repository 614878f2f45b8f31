"""A batch embedded in parts has the gradients of the whole batch, whatever is minimised."""

import pytest
import torch
from divided_batches import KINDS, WithHead, batch_of, gradients_of, model_of, run, step
from synthetic import synthetic_model
from torch import nn

from adaptor_hf.objectives import AdaptorObjective, Encoded, Gather, Objective, Side
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.grad_cache import check_splits, cut


def assert_equal_gradients(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13, msg=name)


@pytest.mark.parametrize("part_size", [1, 7, 23, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_whole_batch(kind, part_size):
    batch = batch_of(kind)
    results = []
    for size in (None, part_size):
        model, objective = model_of(kind)
        results.append((step(model, objective, batch, size), gradients_of(model, objective)))
    (terms, expected), (found_terms, found) = results
    assert found_terms.keys() == terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(found_terms[name], value.detach(), rtol=1e-12, atol=0, msg=name)
        assert not found_terms[name].requires_grad
    assert_equal_gradients(found, expected)
    assert kind == "adaptor" or all(found[f"objective.head.{name}"].any() for name in ("weight", "bias"))


def test_the_gradients_are_those_of_parts_to_the_last_bit():
    """As the loss gives them at the embeddings, and each part alone pulls them back: no sum comes in between."""
    batch = batch_of("adaptor")
    model, objective = model_of("adaptor")
    slices = [slice(0, 9), slice(9, 18), slice(18, 23)]
    with torch.no_grad():
        parts = [objective.encode(model, {name: value[part] for name, value in batch.items()}) for part in slices]
    leaves = [torch.cat([getattr(part, side).pooled for part in parts]).requires_grad_() for side in ("image", "text")]
    rows = {name: batch[name] for name in ("text_row", "study")}
    encoded = Encoded(Side(leaves[0]), Side(leaves[1]), logit_scale=model.get_logit_scale())
    objective(encoded, rows, Gather())["loss"].backward()
    for part in slices:
        sides = objective.encode(model, {name: value[part] for name, value in batch.items()})
        torch.autograd.backward([sides.image.pooled, sides.text.pooled], [leaf.grad[part] for leaf in leaves])
    expected = {name: value.clone() for name, value in gradients_of(model, objective).items()}
    model.zero_grad()
    step(model, objective, batch, 9)
    for name, gradient in gradients_of(model, objective).items():
        assert torch.equal(gradient, expected[name]), name


def test_dropout_draws_the_same_masks_in_both_passes():
    """Else the gradients would belong to other embeddings than the loss."""
    batch = batch_of("adaptor")
    model, objective = model_of("adaptor", dropout=0.4)
    torch.manual_seed(5)
    parts = [
        objective.encode(model, {name: value[part] for name, value in batch.items()})
        for part in (slice(0, 9), slice(9, 18), slice(18, 27))
    ]
    image, text = (torch.cat([getattr(part, side).pooled for part in parts]) for side in ("image", "text"))
    after = torch.rand(1)
    encoded = Encoded(Side(image), Side(text), logit_scale=model.get_logit_scale())
    expected = objective(encoded, batch, Gather())["loss"]
    expected.backward()
    wanted = {name: gradient.clone() for name, gradient in gradients_of(model, objective).items()}
    model.zero_grad()
    torch.manual_seed(5)
    terms = step(model, objective, batch, 9)
    assert torch.equal(torch.rand(1), after), "the second pass moved the generator"
    torch.testing.assert_close(terms["loss"], expected.detach(), rtol=1e-12, atol=0)
    assert_equal_gradients(gradients_of(model, objective), wanted)


def test_each_side_is_cut_for_itself_and_the_last_part_has_both():
    """Processes exchange gradients after the last part: a side that it lacked would be waited for."""
    batch = {"image_embeds": torch.arange(10)[:, None], "view_boxes": torch.arange(10), "text_embeds": torch.arange(3)}
    batch |= {"study": torch.arange(12), "temperature": torch.tensor(2.0), "note": "kept"}
    parts = cut(batch, 4)
    assert [part.keys() & {"image_embeds", "view_boxes"} for part in parts] == [{"image_embeds", "view_boxes"}] * 3
    assert ["text_embeds" in part for part in parts] == [False, False, True]
    assert all(part["temperature"] == 2 and part["note"] == "kept" for part in parts)
    for name in ("image_embeds", "view_boxes", "text_embeds", "study"):
        whole = torch.cat([part[name] for part in parts if name in part])
        assert torch.equal(whole, batch[name]), name
        assert all(len(part.get(name, ())) <= 4 for part in parts), name


def test_what_the_loss_does_not_read_gets_no_gradient_as_of_a_whole_batch():
    """Weight decay moves what has a gradient of zero, and not what has none."""
    batch = batch_of("adaptor")
    model, objective = model_of("adaptor")
    objective.unread, objective.frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    step(model, objective, batch, 9)
    assert objective.unread.grad is None
    assert objective.frozen.grad is None


def test_a_momentum_copy_gets_no_gradient():
    """Its embeddings are numbers to the loss, and constants to what is trained."""

    class Momentum(WithHead):
        def encode(self, model, batch):
            encoded = super().encode(model, batch)
            with torch.no_grad():
                encoded.more["momentum"] = Side(encoded.image.pooled * 2)
            return encoded

        def forward(self, encoded, rows, gather):
            return {"loss": (self.head(encoded.more["momentum"].pooled) * self.head(encoded.text.pooled)).sum()}

    results = []
    for size in (None, 5):
        model, _ = model_of("own parameters")
        torch.manual_seed(1)
        objective = Momentum().double()
        step(model, objective, batch_of("own parameters"), size)
        results.append(gradients_of(model, objective))
    assert_equal_gradients(*results)
    assert not results[1]["model.visual_projection.weight"].any()
    assert results[1]["model.text_projection.weight"].any()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_in_parts_have_the_gradients_of_one_process_with_the_whole_batch(two_ranks, kind):
    """13 and 10 rows in parts of 4; of the texts that are fewer than the images 3 and 5."""
    model, objective = model_of(kind)
    loss = step(model, objective, batch_of(kind), None)["loss"]
    for found in two_ranks:
        torch.testing.assert_close(found[f"{kind}/loss"], loss.detach(), rtol=1e-12, atol=0)
        found = {name.partition("/")[2]: value for name, value in found.items() if name.startswith(f"{kind}/")}
        del found["loss"]
        assert_equal_gradients(found, gradients_of(model, objective))


@pytest.mark.parametrize(
    "module", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_statistics_of_the_batch_are_refused_by_name_in_training_alone(module):
    model = synthetic_model()
    model.tower = nn.Sequential(nn.Linear(4, 4), module)
    with pytest.raises(
        ValueError, match=rf"tower\.1 \({type(module).__name__}\) would take the statistics of each part"
    ):
        check_splits(AdaptorObjective(), model)
    # A frozen tower takes those that it has.
    model.tower.eval()
    check_splits(AdaptorObjective(), model)
    objective = WithHead()
    objective.head = module.train()
    with pytest.raises(ValueError, match=rf"head \({type(module).__name__}\)"):
        check_splits(objective, synthetic_model())


def test_an_objective_that_embeds_a_batch_as_a_whole_is_refused_by_name():
    class Mixed(Objective):
        name, splits = "mixed", False

    with pytest.raises(ValueError, match="the objective 'Mixed' embeds it as a whole"):
        check_splits(Mixed(), synthetic_model())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_with_parts_ends_with_the_weights_of_a_run_without(tmp_path, views, accumulate):
    weights, losses = [], []
    for part_size in (None, 6):
        model = synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_logit_scale=20.0)
        arguments = AdaptorTrainingArguments(
            output_dir=str(tmp_path / f"{part_size}"),
            global_batch_size=16,
            num_train_epochs=2,
            gradient_accumulation_steps=accumulate,
            grad_cache_batch_size=part_size,
            learning_rate=1e-3,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            load_best_model_at_end=False,
        )
        trainer = AdaptorTrainer(
            model=model.double(),
            args=arguments,
            train_dataset=Float64(views["train"]),
            eval_dataset=views["validation"],
        )
        trainer.train()
        weights.append(model.state_dict())
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-6, atol=1e-9, msg=name)


class Float64(torch.utils.data.Dataset):
    """In float32 Adam turns the last bit of a gradient near zero into its sign."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitems__(self, rows):
        batch = self.pairs.__getitems__(rows)
        return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def test_parts_of_less_than_one_row_are_refused(tmp_path):
    with pytest.raises(ValueError, match="grad_cache_batch_size must be at least 1, got 0"):
        AdaptorTrainingArguments(output_dir=str(tmp_path), use_cpu=True, grad_cache_batch_size=0)
