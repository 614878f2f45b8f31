"""Batch statistics over ranks and without padding: one process with all rows, torch's module, finite differences."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from batch_norm_worker import LENGTH, WIDTH, loss_of, make_module, make_rows, run, state_of, step
from synthetic import synthetic_config
from torch import nn
from torch.utils.data import BatchSampler

from adaptor_hf import AdaptorModel
from adaptor_hf.batch_norm_adaptor import BatchNorm, batch_norm_over_ranks
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.grad_cache import check_last_statistics

CASES = [f"{kind}, {rows}" for kind, rows in product(("norm", "head"), ("whole", "masked"))]
COUNTS = [[3, 5], [4, 2, 5]]


def one_process(case: str, total: int) -> dict[str, torch.Tensor]:
    kind, rows = case.split(", ")
    module = make_module(kind)
    return step(module, *make_rows(total, rows == "masked"), weight=1.0) | state_of(module)


@pytest.fixture(scope="module")
def all_ranks(tmp_path_factory):
    """Of each list of counts, what each of its ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run, args=(COUNTS, str(folder)), nprocs=max(map(len, COUNTS)))
    return {
        len(counts): [
            torch.load(folder / f"{len(counts)}ranks-{rank}.pt", weights_only=True) for rank in range(len(counts))
        ]
        for counts in COUNTS
    }


@pytest.fixture(params=COUNTS, ids=["two ranks", "three ranks"])
def spread(request, all_ranks):
    return request.param, all_ranks[len(request.param)]


@pytest.mark.parametrize("case", CASES)
def test_ranks_with_different_numbers_of_rows_equal_one_process(spread, case):
    counts, found = spread
    expected = one_process(case, sum(counts))
    for name, value in expected.items():
        values = [results[f"{case}, over ranks/{name}"] for results in found]
        if name in ("output", "input"):
            torch.testing.assert_close(torch.cat(values), value, rtol=1e-12, atol=1e-12, msg=name)
        else:
            for own in values:
                torch.testing.assert_close(own, value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_it_is_off_until_it_is_switched_on(spread, case):
    counts, found = spread
    expected = one_process(case, sum(counts))
    alone = torch.cat([results[f"{case}, alone/output"] for results in found])
    assert (alone - expected["output"]).abs().max() > 1e-3
    means = [results[f"{case}, alone/{next(n for n in expected if 'running_mean' in n)}"] for results in found]
    assert not torch.equal(means[0], means[1])


def torchs_norm(module: BatchNorm) -> nn.BatchNorm1d:
    theirs = nn.BatchNorm1d(WIDTH).double()
    theirs.load_state_dict(module.state_dict())
    return theirs


def test_with_a_mask_it_is_torchs_module_on_the_rows_that_count():
    module = make_module("norm")
    theirs = torchs_norm(module)
    rows, mask, target = make_rows(6, masked=True)
    ours, plain = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    output, expected = module(ours, mask), theirs(plain[mask.bool()])
    torch.testing.assert_close(output[mask.bool()], expected, rtol=1e-12, atol=1e-12)
    (output * target * mask[..., None]).sum().backward()
    (expected * target[mask.bool()]).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-10, atol=1e-12)
    for name, value in state_of(theirs).items():
        torch.testing.assert_close(state_of(module)[name], value, rtol=1e-10, atol=1e-12, msg=name)
    # In evaluation mode the running statistics normalise every position alike.
    rows = rows.reshape(-1, WIDTH)
    assert torch.equal(module.eval()(rows.view(6, LENGTH, WIDTH), mask).view_as(rows), theirs.eval()(rows))


def test_without_a_mask_every_position_counts_as_in_the_references():
    module = make_module("norm")
    rows, mask, _ = make_rows(6, masked=True)
    theirs = torchs_norm(module)
    assert torch.equal(module(rows).view(-1, WIDTH), theirs(rows.view(-1, WIDTH)))
    assert (make_module("norm")(rows, mask) - module(rows)).abs().max() > 1e-3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["norm", "head"])
def test_gradients_are_those_of_finite_differences(masked, kind):
    module = make_module(kind)
    rows, mask, target = make_rows(4, masked)
    if mask is None:
        # The path of several ranks, on one.
        mask = torch.ones(4, dtype=torch.long)
    parameters = [value.detach().clone().requires_grad_() for value in module.parameters()]
    names = [name for name, _ in module.named_parameters()]

    def loss(rows, *values):
        state = dict(zip(names, values, strict=True)) | {name: value.clone() for name, value in module.named_buffers()}
        return loss_of(torch.func.functional_call(module, state, (rows, mask)), target)

    assert torch.autograd.gradcheck(loss, (rows.requires_grad_(), *parameters), atol=1e-6)


def test_no_row_and_one_row_that_count_leave_finite_numbers():
    module = make_module("norm")
    rows, mask, _ = make_rows(3, masked=True)
    rows.requires_grad_()
    module(rows, torch.zeros_like(mask)).sum().backward()
    assert rows.grad.isfinite().all()
    one = torch.zeros_like(mask)
    one[0, 0] = 1
    assert module(rows, one).isfinite().all()
    assert module.running_var.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_are_float32(dtype):
    module = make_module("norm").to(dtype)
    rows, mask, _ = make_rows(64, masked=True)
    rows = rows.to(dtype)
    output = module(rows, mask)
    expected = make_module("norm").float()(rows.float(), mask)
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < 0.05


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask must be of shape \(3, 4\), got \(3, 3\)"):
        make_module("norm")(make_rows(3, masked=True)[0], torch.ones(3, 3))


def test_it_is_switched_in_every_module_within():
    module = make_module("head")
    batch_norm_over_ranks(module, True)
    parts = [part for part in module.modules() if isinstance(part, BatchNorm)]
    assert len(parts) == 2
    assert all(part.over_ranks for part in parts)
    batch_norm_over_ranks(module, False)
    assert not any(part.over_ranks for part in parts)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> AdaptorTrainingArguments:
    return AdaptorTrainingArguments(str(tmp_path_factory.mktemp("arguments")), use_cpu=True)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_last_batch_of_one_row_is_refused_where_the_sampler_gives_one(arguments, ranks, even, monkeypatch):
    """Against the batches that accelerate deals out to the ranks."""
    monkeypatch.setattr(AdaptorTrainingArguments, "world_size", ranks)
    refused = 0
    for rows, size, drop_last in product(range(ranks, 12), (1, 2, 3, 4), (False, True)):
        monkeypatch.setattr(arguments, "per_device_train_batch_size", size)
        monkeypatch.setattr(arguments, "dataloader_drop_last", drop_last)
        if rows < size * ranks:
            continue
        batches = BatchSampler(range(rows), size, drop_last)
        dealt = [batches] if ranks == 1 else [
            BatchSamplerShard(batches, ranks, rank, even_batches=even) for rank in range(ranks)
        ]  # fmt: skip
        single = any(len(batch) == 1 for one in dealt for batch in one)
        refused += single
        with pytest.raises(ValueError, match="a last batch of a single") if single else nullcontext():
            check_last_statistics(nn.BatchNorm1d(2), rows, arguments, even=even)
        # Of what has no statistics, or of several ranks together, one row a rank is enough.
        check_last_statistics(nn.BatchNorm1d(2).eval(), rows, arguments, even=even)
        check_last_statistics(nn.Linear(2, 2), rows, arguments, even=even)
        with pytest.raises(ValueError, match="single") if single and ranks == 1 else nullcontext():
            check_last_statistics(BatchNorm(2), rows, arguments, even=even)
    assert refused


def test_a_trainer_says_it_before_the_first_step(views, tmp_path):
    def trainer(**options):
        arguments = AdaptorTrainingArguments(
            str(tmp_path), use_cpu=True, global_batch_size=len(views["train"]) - 1, num_train_epochs=1,
            eval_strategy="no", save_strategy="no", load_best_model_at_end=False, **options,
        )  # fmt: skip
        model = AdaptorModel(synthetic_config(aligner="mlp", num_hidden_layers=1))
        return AdaptorTrainer(model=model, args=arguments, train_dataset=views["train"])

    refused = trainer()
    with pytest.raises(ValueError, match=r"single one, and .*projection.*\(BatchNorm\).*--dataloader_drop_last True"):
        refused.train()
    assert refused.state.global_step == 0
    for options in ({"dataloader_drop_last": True}, {"max_steps": 1}):
        cured = trainer(**options)
        cured.train()
        assert cured.state.global_step == 1
