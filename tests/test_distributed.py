"""Negatives of every rank: the averaged gradients of several gloo ranks are those of one process with all rows."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import gathered_subsets
import pytest
import torch
from distributed_worker import make_batch, make_encoders, run
from gathered_subsets import CASES
from synthetic import synthetic_cache

from adaptor_hf.objectives import (
    AdaptorObjective,
    Encoded,
    SigLIPObjective,
    contrastive_loss,
    gathered_contrastive_loss,
    sigmoid_contrastive_loss,
)
from adaptor_hf.training.pair_batches import check_last_batch

ROOT = Path(__file__).parents[1]


def ranks(counts: list[int], folder: Path) -> dict[str, torch.Tensor]:
    torch.multiprocessing.spawn(run, args=(counts, str(folder)), nprocs=len(counts))
    results = torch.load(folder / "results.pt", weights_only=True)
    assert results["world_size"] == len(counts)
    return results


def one_process(rows: int, repeat: bool, sigmoid: bool = False) -> dict[str, torch.Tensor]:
    image, text, ids = make_batch(rows)
    encoders = make_encoders()
    embeds, scale = (encoders["image"](image), encoders["text"](text)), encoders["scale"]
    positives = ids if repeat else None
    if sigmoid:
        loss = sigmoid_contrastive_loss(*embeds, scale, encoders["bias"], positives=positives)
    else:
        loss = contrastive_loss(*embeds, scale, positives=positives)
    loss.backward()
    gradients = {name: getattr(encoder, "weight", encoder).grad for name, encoder in encoders.items()}
    return {"loss": loss.detach()} | {name: value for name, value in gradients.items() if value is not None}


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return ranks([6, 6], tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("form", ["gathered", "gathered in blocks"])
@pytest.mark.parametrize("repeat", [False, True])
def test_two_ranks_equal_one_process_in_loss_and_gradients(two_ranks, repeat, form):
    kind = f"{form}, texts repeat" if repeat else form
    for name, expected in one_process(12, repeat).items():
        assert relative(two_ranks[f"{kind}/{name}"], expected) < 1e-6, name


@pytest.mark.parametrize("form", ["sigmoid", "sigmoid in blocks"])
@pytest.mark.parametrize("repeat", [False, True])
def test_the_sigmoid_loss_of_two_ranks_equals_one_process(two_ranks, repeat, form):
    kind, expected = f"{form}, texts repeat" if repeat else form, one_process(12, repeat, sigmoid=True)
    assert expected.keys() == {"loss", "image", "text", "scale", "bias"}
    for name, value in expected.items():
        assert relative(two_ranks[f"{kind}/{name}"], value) < 1e-12, name


def test_wrong_gathers_show_the_same_loss_and_other_gradients(two_ranks):
    """A test of the loss alone would pass them."""
    expected = one_process(12, False)
    for kind in ("own rows kept", "no gradient"):
        assert relative(two_ranks[f"{kind}/loss"], expected["loss"]) < 1e-6
        assert relative(two_ranks[f"{kind}/image"], expected["image"]) > 0.2
        assert relative(two_ranks[f"{kind}/text"], expected["text"]) > 0.2


def test_the_references_local_loss_has_fewer_negatives_and_a_lower_value(two_ranks):
    expected = one_process(12, False)
    assert two_ranks["reference/loss"] < expected["loss"] - 0.2
    assert relative(two_ranks["reference/image"], expected["image"]) > 0.02


@pytest.mark.slow
def test_three_ranks_with_uneven_rows_equal_one_process(tmp_path):
    results = ranks([5, 2, 4], tmp_path)
    for kind in ("gathered", "sigmoid", "sigmoid in blocks"):
        for repeat, name_of_kind in ((False, kind), (True, f"{kind}, texts repeat")):
            for name, expected in one_process(11, repeat, sigmoid="sigmoid" in kind).items():
                assert relative(results[f"{name_of_kind}/{name}"], expected) < 1e-6, (name_of_kind, name)


def test_without_a_process_group_it_is_the_plain_loss():
    image, text, ids = make_batch(8)
    plain = contrastive_loss(image, text, 1.0, positives=ids)
    assert (
        torch.equal(gathered_contrastive_loss(image, text, 1.0, positives=ids), plain)
        or relative(gathered_contrastive_loss(image, text, 1.0, positives=ids), plain) < 1e-12
    )


TRAIN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from synthetic import synthetic_model
from adaptor_hf.embeddings import open_cache
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.interruption import leave_process_group
from adaptor_hf.training.pairs import contrastive_splits
views = contrastive_splits(open_cache(sys.argv[2]))
shape = json.loads(sys.argv[7])
optimizer = shape.pop("optimizer", {"learning_rate": 1e-3})
arguments = AdaptorTrainingArguments(
    output_dir=sys.argv[3], global_batch_size=int(sys.argv[5]), num_train_epochs=2, use_cpu=True,
    disable_tqdm=True, **optimizer, save_strategy="no", load_best_model_at_end=False,
    dataloader_drop_last=sys.argv[6] == "drop", accelerator_config={"even_batches": False},
    grad_cache_batch_size=int(sys.argv[4]) or None)
model = synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape)
trainer = AdaptorTrainer(model=model, args=arguments, train_dataset=views["train"], eval_dataset=views["validation"])
trainer.train()
if trainer.is_world_process_zero():
    trainer.save_model()
    Path(sys.argv[3], "facts.json").write_text(json.dumps({
        "world_size": arguments.world_size, "batch": arguments.per_device_train_batch_size,
        "steps": trainer.state.global_step}))
leave_process_group()
"""


def trained(folder: Path, ranks: int, part_size: int = 0, batch: int = 20, last: str = "drop", **shape):
    """Weights after two epochs over the 124 training pairs of `folder / "cache"`."""
    from safetensors.torch import load_file

    (folder / "train.py").write_text(TRAIN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    output = folder / f"ranks-{ranks}-{part_size}"
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", "0", "--standalone"]
    command = [sys.executable, *(launch if ranks > 1 else []), str(folder / "train.py")]
    command += [str(Path(__file__).parent), str(folder / "cache"), str(output), str(part_size), str(batch), last]
    command.append(json.dumps(shape))
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    facts = json.loads((output / "facts.json").read_text())
    assert facts == {"world_size": ranks, "batch": batch // ranks, "steps": facts["steps"]}
    return load_file(output / "model.safetensors")


def assert_same_weights(weights, expected):
    for name, value in expected.items():
        assert relative(weights[name], value) < 1e-5 or not value.any(), name


@pytest.mark.slow
def test_training_on_two_ranks_gives_the_weights_of_one_process(tmp_path):
    synthetic_cache(tmp_path / "cache")
    expected = trained(tmp_path, 1)
    for part_size in (0, 4):
        assert_same_weights(trained(tmp_path, 2, part_size), expected)


@pytest.mark.slow
def test_an_uneven_last_batch_of_three_ranks_gives_the_weights_of_one_process(tmp_path):
    """Of 124 pairs the last batch of 21 has 19: 7, 7 and 5."""
    synthetic_cache(tmp_path / "cache")
    assert_same_weights(trained(tmp_path, 3, batch=21, last="keep"), trained(tmp_path, 1, batch=21, last="keep"))


@pytest.mark.slow
def test_batch_statistics_of_uneven_ranks_give_the_weights_of_one_process(tmp_path):
    """An MLP of MGCA's shape; its running statistics are among the weights. Alone each rank would have its own."""
    synthetic_cache(tmp_path / "cache")
    # Biases before a batch norm have no effect; Adam would make steps of the rounding of their gradients.
    shape = {"aligner": "mlp", "projection_output_norm": True, "token_projection": True}
    shape["optimizer"] = {"learning_rate": 0.1, "optim": "sgd"}
    weights, expected = (trained(tmp_path, ranks, batch=21, last="keep", **shape) for ranks in (3, 1))
    counts = {name: expected.pop(name) for name in list(expected) if name.endswith("num_batches_tracked")}
    assert all(torch.equal(weights[name], value) for name, value in counts.items())
    assert sum("running_" in name for name in expected) == 16
    assert expected["visual_projection.layers.0.norm.running_mean"].abs().max() > 0.01
    assert_same_weights(weights, expected)


@pytest.mark.parametrize(("rows", "waits"), [(40, False), (39, False), (36, False), (35, True), (30, True), (25, True)])
def test_a_last_batch_without_rows_for_every_process_is_refused(rows, waits):
    """Five rows on each of four processes; such a process would wait for the others until it is killed."""
    with pytest.raises(ValueError, match="leave none to the last one") if waits else nullcontext():
        check_last_batch(rows, 5, 4)


@pytest.fixture(scope="module")
def subsets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subsets")
    torch.multiprocessing.spawn(gathered_subsets.run, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{made.name}, {kept}" for made, kept in CASES])
def test_an_objective_that_gathers_a_part_of_its_rows_equals_one_process(subsets, number):
    """The batches have equally many pairs, and what is gathered of them has not."""
    expected = gathered_subsets.outcome(*CASES[number], slice(None))
    for found in subsets:
        assert found[number].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[number][name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_only_the_packages_objectives_spare_the_exchange_of_counts(monkeypatch):
    """Those of all pairs; a subclass of them may leave some out."""
    asked = []
    monkeypatch.setattr(
        gathered_subsets.TrainedTogether, "encode", lambda self, batch: Encoded(logit_scale=torch.ones(()))
    )

    def told(objective, **columns):
        objective.forward = lambda encoded, rows, gather: asked.append(gather.equal_counts) or {"loss": torch.ones(())}
        with torch.no_grad():
            gathered_subsets.TrainedTogether(torch.nn.Module(), objective, equal_counts=True)(columns)
        return asked.pop()

    assert told(AdaptorObjective("pair"))
    assert told(SigLIPObjective("pair"))
    assert not told(AdaptorObjective("pair"), image_index=torch.arange(2))
    assert not told(gathered_subsets.FewerOfThePapers())
    assert not told(gathered_subsets.Kept())
