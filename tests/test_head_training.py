"""Heads trained by Trainer are, to the bit, those of a plain loop; what they leave behind is nothing."""

import gc
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from head_loop import train_by_loop
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adaptor_hf.heads_adaptor import ClassificationHead
from adaptor_hf.tasks.head_training import ShuffledRows, train_head
from adaptor_hf.tasks.probe import fit_probe
from adaptor_hf.tasks.protocols import PROTOCOLS, get_protocol

GRADIENT = replace(PROTOCOLS["rigorous"], learning_rates=(5e-2,), max_steps=60, strengths=None)
PLAIN = replace(GRADIENT, batch_size=16, patience=None)
CASES = {
    "rigorous by gradient": GRADIENT,
    "rigorous, two layers": replace(get_protocol("rigorous", head="mlp2"), max_steps=60),
    "adaptor": replace(get_protocol("adaptor"), epochs=6),
    "adaptor, small batches": replace(get_protocol("adaptor"), epochs=8, batch_size=24, learning_rates=(5e-3,)),
    "mgca": replace(get_protocol("mgca"), epochs=12),
    "gloria": replace(get_protocol("gloria"), epochs=30, learning_rates=(0.3,)),
    "slip": replace(get_protocol("slip"), epochs=12, batch_size=32),
    "last row alone left out": replace(PLAIN, batch_size=60, max_steps=None, epochs=7),
    "ends between two evaluations": replace(PLAIN, max_steps=50, eval_steps=20),
    "ends within an epoch": replace(PLAIN, max_steps=19, eval_steps=None),
    "dropout of a linear head": replace(PLAIN, dropout=0.3),
    "patience": replace(PLAIN, patience=2, eval_steps=2, min_delta=0.05, max_steps=200),
    "loss on validation": replace(PLAIN, monitor="loss", patience=3, eval_steps=2, max_steps=200),
}


def rows(count: int, exclusive: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (count, 2)).astype(np.float32)
    features = generator.normal(size=(count, 12)).astype(np.float32) * 2 + 1
    features[:, :2] += 1.5 * labels
    if exclusive:
        labels = labels.sum(1).astype(np.int64)
    else:
        labels[::7, 0] = np.nan
    return torch.from_numpy(features), torch.from_numpy(labels), labels


def new_head(protocol, exclusive: bool, seed: int) -> ClassificationHead:
    torch.manual_seed(seed)
    head = ClassificationHead(12, 3 if exclusive else 2, protocol.hidden_size and 16, protocol.dropout)
    head.exclusive = exclusive
    if protocol.weight_std is not None:
        nn.init.normal_(head[-1].weight, std=protocol.weight_std)
    return head


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_head_is_that_of_a_plain_loop_to_the_bit(name, exclusive):
    protocol = CASES[name]
    train, validation = rows(121, exclusive, 0), rows(50, exclusive, 1)
    rate = protocol.learning_rates[0]
    expected, step, reached = train_by_loop(new_head(protocol, exclusive, 5), train, validation, protocol, rate, 5)
    after_loop = torch.get_rng_state()
    head = new_head(protocol, exclusive, 5)
    keep = train_head(head, train, validation, protocol, rate, 5)
    assert (keep.step, keep.best) == (step, reached)
    assert expected.state_dict().keys() == head.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(value, head.state_dict()[key]), key
    # As many dropout masks were drawn: it also stopped at the same step.
    assert torch.equal(torch.get_rng_state(), after_loop)


def test_the_cases_let_patience_and_schedules_come_to_bear():
    """Else the comparison would say nothing of them."""
    train, validation = rows(121, False, 0), rows(50, False, 1)
    for name in ("patience", "loss on validation"):
        protocol = CASES[name]
        used = sum(rates_of(train_by_loop, protocol, train, validation).values())
        assert used < protocol.max_steps, name
    for name in ("gloria", "adaptor, small batches", "slip"):
        assert len(rates_of(train_by_loop, CASES[name], train, validation)) > 1, name


def rates_of(train_one, protocol, train, validation) -> Counter:
    """How many steps were taken at each learning rate."""
    rates = Counter()
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.update([optimizer.param_groups[0]["lr"]]))
    try:
        train_one(new_head(protocol, False, 5), train, validation, protocol, protocol.learning_rates[0], 5)
    finally:
        hook.remove()
    return rates


def test_the_best_rate_is_that_of_the_loop():
    protocol = replace(PLAIN, learning_rates=(1e-4, 1e-2, 3e-1), head="mlp2", dropout=0.1)
    train, validation = rows(121, True, 0), rows(50, True, 1)
    loops = {}
    for rate in protocol.learning_rates:
        torch.manual_seed(2)
        head = ClassificationHead(12, 3, 512, 0.1)
        head.exclusive = True
        mean, scale = train[0].mean(0), train[0].std(0, correction=0)
        parts = [((part[0] - mean) / scale, *part[1:]) for part in (train, validation)]
        loops[rate] = train_by_loop(head, *parts, protocol, rate, 2)
    rate = max(loops, key=lambda one: loops[one][2])
    probe = fit_probe(train[0], train[2], validation[0], validation[2], protocol, num_logits=3, exclusive=True, seed=2)
    assert (probe.learning_rate, probe.step, probe.score) == (rate, loops[rate][1], loops[rate][2][0])
    for key, value in loops[rate][0].state_dict().items():
        assert torch.equal(value, probe.head.state_dict()[key]), key


def test_random_states_the_disk_and_the_garbage_collector_are_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    train, validation = rows(60, False, 0), rows(50, False, 1)
    fit_probe(train[0], np.nan_to_num(train[2]), validation[0], validation[2], PLAIN, num_logits=2, exclusive=False,
              seed=11)  # fmt: skip
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert not list(tmp_path.iterdir())
    assert gc.get_freeze_count() == 0


def test_a_loss_that_is_not_finite_ends_the_training():
    train, validation = rows(60, False, 0), rows(50, False, 1)
    protocol = replace(PLAIN, optimizer="sgd", learning_rates=(1e30,))
    with pytest.raises(FloatingPointError, match=r"loss on validation is nan at step \d+, rate 1e\+30"):
        train_head(new_head(protocol, False, 0), train, validation, protocol, 1e30, 0)


def test_the_order_of_rows_depends_on_the_seed_and_no_batch_is_one_row():
    first, second = (ShuffledRows(9, 4, seed) for seed in (0, 1))
    orders = [[part.tolist() for _ in range(2) for part in order] for order in (first, second)]
    assert orders[0] != orders[1]
    assert orders[0][:2] != orders[0][2:]
    assert [len(part) for part in orders[0]] == [4] * 4
    assert len(first) == 2
