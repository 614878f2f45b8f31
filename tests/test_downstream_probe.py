"""Heads on features: the reference's numbers, seeds that matter, validation that chooses, frozen parts that stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import synthetic_model

from adaptor_hf.evaluation.naming import weights_digest
from adaptor_hf.tasks.controls import load_systems, matched_hidden_size
from adaptor_hf.tasks.features import adaptor_features
from adaptor_hf.tasks.probe import fit_probe, fold_standardization, has_seed, macro_auroc
from adaptor_hf.tasks.protocols import PROTOCOLS, get_protocol

# A linear head by gradient; the recipe's own is in test_downstream_logistic.py.
QUICK = replace(PROTOCOLS["rigorous"], learning_rates=(5e-2,), max_steps=60, strengths=None)


def separable(rows: int = 120, labels: int = 2, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, (rows, labels)).astype(np.float32)
    features = generator.normal(size=(rows, 12)).astype(np.float32) * 3 + 5
    features[:, :labels] += 8 * truth
    return torch.from_numpy(features), truth


def fit(recipe=QUICK, seed=0, labels=2, **kwargs):
    options = {"num_logits": labels, "exclusive": False, "seed": seed} | kwargs
    return fit_probe(*separable(labels=labels), *separable(60, labels, 1), recipe, **options)


def test_a_head_learns_what_is_there():
    features, labels = separable(200, seed=2)
    assert macro_auroc(fit().predict(features), labels, False) > 0.75


def test_the_papers_head_has_its_number_of_parameters():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 768, generator=generator)
    recipe = replace(get_protocol("adaptor"), epochs=1)
    labels = np.arange(40) % 3
    binary = (labels[:, None] == 0).astype(np.float32)
    one = fit_probe(features, binary, features, binary, recipe, num_logits=1, exclusive=False, seed=0)
    three = fit_probe(features, labels, features, labels, recipe, num_logits=3, exclusive=True, seed=0)
    assert (one.num_parameters, three.num_parameters) == (394_753, 395_779)
    np.testing.assert_allclose(three.predict(features).sum(1), 1)


def test_recipes_have_the_references_values():
    values = {name: (r.head, r.learning_rates, r.weight_decay, r.batch_size, r.epochs) for name, r in PROTOCOLS.items()}
    assert values["adaptor"] == ("mlp2", (5e-5,), 1e-4, 512, 100)
    assert values["mgca"] == ("linear", (5e-4,), 1e-6, 48, 50)
    assert values["gloria"] == ("linear", (5e-4,), 1e-6, 64, 50)
    assert PROTOCOLS["gloria"].betas == (0.5, 0.999)
    assert get_protocol("gloria", "chexpert").learning_rates == (1e-4,)
    covidx = get_protocol("adaptor", "covidx")
    assert (covidx.learning_rates, covidx.weight_decay, covidx.batch_size, covidx.epochs) == ((5e-4,), 0.05, 128, 50)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_recipe_trains_binary_labels_and_exclusive_classes(name):
    recipe = replace(get_protocol(name), epochs=2, max_steps=None)
    assert np.isfinite(fit(recipe).predict(separable()[0])).all()
    features, labels = separable()
    classes = (labels[:, 0] + labels[:, 1]).astype(np.int64)
    probe = fit_probe(features, classes, features, classes, recipe, num_logits=3, exclusive=True, seed=0)
    assert probe.predict(features).shape == (120, 3)


def test_the_rate_after_a_plateau_is_the_reduced_one():
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    features, labels = separable()
    recipe = replace(get_protocol("gloria"), learning_rates=(1e-2,))
    try:
        # What is learned is wrong on validation, so that its loss rises once it is.
        fit_probe(features, labels, features, 1 - labels, recipe, num_logits=2, exclusive=False, seed=0)
    finally:
        hook.remove()
    reduced = rates.index(5e-3)
    assert set(rates[:reduced]) == {1e-2}
    assert max(rates[reduced:]) == 5e-3


def test_only_a_logistic_regression_has_no_seed():
    assert not has_seed(PROTOCOLS["rigorous"])
    assert has_seed(PROTOCOLS["rigorous"], hidden_size=8)
    assert all(has_seed(recipe) for name, recipe in PROTOCOLS.items() if name != "rigorous")
    assert has_seed(get_protocol("rigorous", head="mlp2"))


def test_five_seeds_give_five_results_and_one_seed_one():
    features = separable(seed=3)[0]
    results = [fit(seed=seed).predict(features) for seed in range(5)]
    assert len({result.tobytes() for result in results}) == 5
    np.testing.assert_array_equal(fit(seed=0).predict(features), results[0])


def test_validation_chooses_the_learning_rate_whatever_the_order():
    rates = (1e-7, 1e-2)
    assert fit(replace(QUICK, learning_rates=rates)).learning_rate == 1e-2
    assert fit(replace(QUICK, learning_rates=rates[::-1])).learning_rate == 1e-2


def test_where_validation_cannot_tell_steps_apart_the_loss_does():
    features = torch.tensor([[-1.0], [-0.9], [0.9], [1.0]])
    labels = np.array([[0.0], [0], [1], [1]], np.float32)
    recipe = replace(QUICK, max_steps=100, eval_steps=10)
    probe = fit_probe(features, labels, features, labels, recipe, num_logits=1, exclusive=False, seed=0)
    assert probe.score == 1
    assert probe.step == 100


def test_unknown_labels_are_as_if_the_row_had_none():
    features, labels = separable(labels=1)
    half = labels.copy()
    half[60:] = np.nan
    validation = separable(60, 1, 1)
    options = {"num_logits": 1, "exclusive": False, "seed": 0}
    recipe = replace(QUICK, standardize=False, max_steps=20, batch_size=120)
    with_nan = fit_probe(features, half, *validation, recipe, **options)
    without = fit_probe(features[:60], half[:60], *validation, recipe, **options)
    np.testing.assert_allclose(with_nan.predict(features), without.predict(features), atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mlp2"])
def test_a_folded_head_gives_the_same_on_plain_features(head):
    probe = fit(replace(QUICK, head=head))
    features = separable(seed=4)[0]
    with torch.no_grad():
        folded = fold_standardization(probe)(features).sigmoid().numpy()
    np.testing.assert_allclose(folded, probe.predict(features), atol=1e-4)


@pytest.mark.parametrize("exclusive", [False, True])
def test_training_rows_of_one_class_are_refused(exclusive):
    features = torch.randn(6, 3)
    labels = np.zeros(6, np.int64) if exclusive else np.zeros((6, 1), np.float32)
    with pytest.raises(ValueError, match="larger fraction"):
        fit_probe(features, labels, features, labels, QUICK, num_logits=3 if exclusive else 1, exclusive=exclusive,
                  seed=0)  # fmt: skip


def test_validation_of_one_class_falls_back_to_the_loss():
    features, labels = separable(labels=1)
    positive = features[labels[:, 0] == 1]
    probe = fit_probe(features, labels, positive, np.ones((len(positive), 1), np.float32), QUICK, num_logits=1,
                      exclusive=False, seed=0)  # fmt: skip
    assert probe.score < 0


def test_features_leave_the_model_as_it_is_and_do_not_depend_on_their_neighbours():
    model = synthetic_model().eval()
    before = weights_digest(model)
    embeds = torch.randn(7, 20)
    together = adaptor_features(model, embeds)
    alone = torch.cat([adaptor_features(model, row[None]) for row in embeds])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert weights_digest(model) == before != weights_digest(synthetic_model(seed=1))
    with pytest.raises(ValueError, match="training mode"):
        adaptor_features(model.train(), embeds)
    with pytest.raises(ValueError, match="another tower"):
        adaptor_features(model.eval(), torch.randn(2, 21))


def test_controls_differ_from_the_adaptor_and_the_matched_head_has_its_size():
    model = synthetic_model(seed=1)
    modules = {module.key: module for module in load_systems(model, ["tower", "untrained", "mlp"], num_logits=1)}
    embeds = torch.randn(4, 20)
    assert torch.equal(modules["tower"].features(embeds), embeds)
    assert not torch.allclose(modules["untrained"].features(embeds), modules["adaptor"].features(embeds))
    wanted = sum(value.numel() for name, value in model.named_parameters() if "text" not in name) - 1
    hidden = matched_hidden_size(model)
    assert modules["mlp"].hidden_size == hidden
    assert 0 <= hidden * (20 + 3) + 1 - wanted <= 23
