"""What each gloo rank evaluates for tests/test_evaluators.py; started by torch.multiprocessing."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from synthetic import synthetic_model
from torch import nn
from torch.utils.data import IterableDataset

from adaptor_hf.embeddings import open_cache
from adaptor_hf.objectives import Encoded, Gather, Objective, contrastive_loss
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.controls import evaluate_retrieval
from adaptor_hf.training.pair_embeddings import embed_pairs
from adaptor_hf.training.pair_evaluation import PairEvaluator, Retrieval, evaluate_pairs
from adaptor_hf.training.pairs import contrastive_splits


class Restless(Objective):
    """Draws, counts, fills a queue and moves its momentum copy at every call, whatever its mode."""

    name = "restless"
    needs = frozenset({"pairs", "views"})

    def __init__(self):
        super().__init__()
        self.projector = nn.Linear(48, 48)
        self.momentum = nn.Linear(48, 48).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(4))
        self.calls = 0

    def encode(self, model, batch):
        encoded = super().encode(model, batch)
        encoded.image.pooled = nn.functional.dropout(self.projector(encoded.image.pooled), 0.5, self.training)
        return encoded

    def forward(self, encoded: Encoded, rows: dict[str, torch.Tensor], gather: Gather) -> dict[str, torch.Tensor]:
        self.calls += 1
        self.queue += 1
        self.momentum.weight.data.mul_(0.9)
        loss = contrastive_loss(encoded.image.pooled, encoded.text.pooled, encoded.logit_scale)
        return {"loss": loss, "noise": torch.rand(()), "rows": torch.tensor(float(len(rows["row"])))}


class Walked(IterableDataset):
    """Without length: it cannot be divided."""

    def __init__(self, view):
        self.view = view

    def __iter__(self):
        return (self.view[row] for row in range(len(self.view)))


class FailsLate:
    """Its last rows cannot be read."""

    def __init__(self, view):
        self.view = view

    def __len__(self):
        return len(self.view)

    def __getitem__(self, row):
        if row == len(self.view) - 1:
            raise OSError("the last row cannot be read")
        return self.view[row]


class SaysWho(PairEvaluator):
    def metric_names(self, sources=()):
        return {"process": True}

    def measure(self, model, embeds, dataset):
        return {"process": dist.get_rank() if dist.is_initialized() else 0}


def trainer_of(folder: str, views: dict, batch_size: int, **kwargs) -> AdaptorTrainer:
    options = {
        "use_cpu": True, "disable_tqdm": True, "report_to": [], "global_batch_size": 12, "num_train_epochs": 1,
        "per_device_eval_batch_size": batch_size,
    }  # fmt: skip
    names = ("train_dataset", "eval_dataset", "objective", "evaluators")
    parts = {"train_dataset": views["train"], "eval_dataset": views["validation"]}
    parts |= {name: kwargs.pop(name) for name in names if name in kwargs}
    return AdaptorTrainer(synthetic_model(), AdaptorTrainingArguments(folder, **(options | kwargs)), **parts)


def without_times(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if "runtime" not in name and "per_second" not in name}


def evaluated(folder: str) -> dict:
    """All that must not depend on the number of processes."""
    views = contrastive_splits(open_cache(Path(folder) / "cache"))
    train, model = views["train"], synthetic_model()
    found = {}
    # 124 rows: 12 batches and a rest, one batch, a batch for each of two.
    for size in (10, 1024, 62):
        embeds = embed_pairs(model, train, size, divided=True)
        found[f"embeds {size}"] = dict(embeds)
        found[f"examples {size}"] = dict(embed_pairs(model, [train[row] for row in range(7)], size, divided=True))
    found["walked"] = dict(embed_pairs(model, Walked(train), 10, divided=True))
    torch.manual_seed(5)
    trainer = trainer_of(f"{folder}/run", views, 10, objective=Restless(), evaluators=(Retrieval(), SaysWho()))
    trainer.model.train()
    trainer.objective.train()
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    random_state = torch.get_rng_state()
    seen = []
    trainer.callback_handler.on_evaluate = lambda args, state, control, metrics: seen.append(metrics) or control
    found["restless"] = without_times(trainer.evaluate(train))
    found["seen by callbacks"] = without_times(seen[0])
    found["again"] = without_times(trainer.evaluate(train))
    assert torch.equal(random_state, torch.get_rng_state())
    assert trainer.objective.calls == 0
    assert trainer.objective.training
    assert trainer.model.training
    for name, value in trainer.objective.state_dict().items():
        assert torch.equal(value, before[name]), name
    predicted = trainer.predict(views["test"])
    found["predicted"] = dict(zip(("image", "text"), map(torch.from_numpy, predicted.predictions), strict=True))
    found["of predict"] = predicted.metrics
    trainer = trainer_of(f"{folder}/run", views, 10)
    found["paper"] = without_times(trainer.evaluate(train))
    return found


def run(rank: int, folder: str) -> None:
    """Ranks 0 to 2 of three processes, and then 0 and 1 of two: to start one takes longer than what it does."""
    torch.set_num_threads(1)
    for world_size in (3, 2):
        if rank < world_size:
            AcceleratorState._reset_state(reset_partial_state=True)
            _run(rank, world_size, folder)


def _run(rank: int, world_size: int, folder: str) -> None:
    # The last three are asked for by accelerate, though the group is made here.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    meeting = f"file://{folder}/rendezvous-{world_size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    found = evaluated(folder)
    assert dist.get_world_size() == world_size
    views = contrastive_splits(open_cache(Path(folder) / "cache"))
    for kind in ("one process fails", "an evaluator fails"):
        try:
            if kind == "one process fails":
                embed_pairs(synthetic_model(), FailsLate(views["train"]), 10, divided=True)
            else:
                evaluate_pairs(synthetic_model(), views["train"], [Broken()], divided=True)
        except Exception as error:
            found[kind] = f"{type(error).__name__}: {error}"
    if rank == 0:
        # As the report at the end of a run does, without the other processes.
        found["alone"] = evaluate_retrieval(synthetic_model(), views["test"], "alone").metrics
    torch.save(found, Path(folder) / f"found-{world_size}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class Broken(PairEvaluator):
    def measure(self, model, embeds, dataset):
        raise ValueError("it cannot be measured")
