"""Evaluation in training: the same numbers on any number of processes, objects as evaluators, nothing changed by it."""

import collections
import threading
from pathlib import Path

import pytest
import torch
from evaluation_worker import evaluated, run, trainer_of
from synthetic import synthetic_cache, synthetic_model

from adaptor_hf.objectives import AdaptorObjective, Objective, contrastive_loss
from adaptor_hf.training.pair_batches import PairCollator
from adaptor_hf.training.pair_embeddings import embed_pairs
from adaptor_hf.training.pair_evaluation import PairEvaluator, Retrieval, evaluate_pairs, fixed_batch_terms
from adaptor_hf.training.trained_together import TrainedTogether


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluators")
    synthetic_cache(folder / "cache")
    return folder


@pytest.fixture(scope="module")
def one_process(folder) -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return evaluated(str(folder))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def on_ranks(folder) -> dict[int, list[dict]]:
    torch.multiprocessing.spawn(run, args=(str(folder),), nprocs=3)
    return {
        count: [torch.load(folder / f"found-{count}-{rank}.pt", weights_only=True) for rank in range(count)]
        for count in (2, 3)
    }


def assert_same(found, expected, where: str) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}, {name}")
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("count", [2, 3])
def test_each_rank_has_the_numbers_of_one_process_to_the_bit(one_process, on_ranks, count):
    for rank, found in enumerate(on_ranks[count]):
        for name, expected in one_process.items():
            assert_same(found[name], expected, f"rank {rank} of {count}, {name}")
        # Who reads the last row says why; nobody waits for it.
        said = "OSError: the last row" if rank == count - 1 else f"RuntimeError: Process {count - 1} failed in the eval"
        assert found["one process fails"].startswith(said)
        assert found["an evaluator fails"] == "ValueError: it cannot be measured"
        assert ("alone" in found) == (rank == 0)


def test_an_evaluation_counts_whole_batches_alone_and_draws_the_same_each_time(one_process):
    found = one_process["restless"]
    # 124 rows in batches of ten: the rest of four is left out of the terms, and of nothing else.
    assert (found["eval_rows"], found["eval_loss_batch_size"], found["eval_num_pairs"]) == (10, 10, 124)
    assert found == one_process["again"] == one_process["seen by callbacks"]
    assert 0 < found["eval_noise"] < 1
    # The paper's loss goes by embeddings, whatever the batch that they were computed in.
    assert one_process["paper"]["eval_loss_batch_size"] == 124


def test_the_loss_is_that_of_the_objective_on_each_whole_batch(views):
    """Against a plain loop, for an objective that reads tokens and one that goes by embeddings alone."""
    model, view = synthetic_model().eval(), views["train"]
    loop = []
    with torch.no_grad():
        for start in range(0, len(view) - 15, 16):
            batch = view[start : start + 16]
            output = model(image_embeds=batch["image_embeds"], text_embeds=batch["text_embeds"], return_logits=False)
            loop.append(
                contrastive_loss(
                    output.image_embeds, output.text_embeds, model.get_logit_scale(), 0.75, False, batch["text_row"]
                )
            )
    objective = AdaptorObjective("text")
    objective.setup(model, None)
    objective.needs = frozenset({"pairs", "image_tokens"})
    _, found = evaluate_pairs(model, view, [Retrieval(objective)], batch_size=16)
    assert found["loss_batch_size"] == 16
    assert found["loss"] == pytest.approx(torch.stack(loop).mean().item(), rel=1e-6)
    embeds = embed_pairs(model, view)
    paper = Retrieval()(model, view)
    expected = fixed_batch_terms(objective, model, embeds)
    assert expected == {name: paper[name] for name in ("loss", "loss_batch_size")}
    plain = contrastive_loss(
        embeds["image_embeds"], embeds["text_embeds"], model.get_logit_scale().detach(), 0.75, False, embeds["text_row"]
    )
    assert expected["loss"] == plain.item()


class Unpaired(Objective):
    """Sees all images and texts of a batch, those without a partner too."""

    name = "unpaired"

    def forward(self, encoded, rows, gather):
        type(self).seen = len(encoded.image), len(encoded.text)
        return {"loss": encoded.image.pooled.square().sum(), "mean_recall_of_batch": torch.zeros(())}


def test_of_images_and_texts_that_an_index_pairs_the_pairs_are_measured(views):
    model, view = synthetic_model(), views["train"].select(range(8))
    batch = view[:]
    unpaired = {
        "image_embeds": batch["image_embeds"][[0, 1, 2, 3, 4]],
        "text_embeds": batch["text_embeds"][[4, 7, 3, 3, 1, 6]],
        "text_row": batch["text_row"][[4, 7, 3, 3, 1, 6]],
        "image_index": torch.tensor([0, 1, 2, 3, 4]),
        "text_index": torch.tensor([4, 7, 3, 3, 1, 6]),
    }

    class Whole:
        def __len__(self):
            return 8

        def __getitems__(self, rows):
            return unpaired

    objective = Unpaired()
    embeds, found = evaluate_pairs(model, Whole(), [Retrieval(objective)])
    plain = embed_pairs(model, view.select([1, 3, 4]))
    for name in ("image_embeds", "text_embeds", "text_row"):
        torch.testing.assert_close(embeds[name], plain[name])
    assert objective.seen == (5, 6)
    assert found["loss"] == pytest.approx(5)
    assert (found["num_pairs"], found["loss_batch_size"]) == (3, 8)
    del unpaired["image_index"], unpaired["text_index"]
    with pytest.raises(ValueError, match=r"has 5 images and 6 texts, and nothing says which belong together"):
        embed_pairs(model, Whole())


class Fixed(PairEvaluator):
    def __init__(self, **metrics: float):
        self.metrics = metrics

    def metric_names(self, sources=()):
        return dict.fromkeys(self.metrics, True)

    def measure(self, model, embeds, dataset):
        return self.metrics


def test_a_split_is_embedded_once_for_all_evaluators_and_functions_still_work(views, tmp_path):
    calls = []

    class Counted(type(views["train"])):
        def __getitems__(self, rows):
            calls.append(len(rows))
            return super().__getitems__(rows)

    view = views["validation"]
    counted = Counted(view.path, view._rows)

    def function(model, dataset):
        assert not model.training
        assert dataset is counted
        return {"of_function": 3.0}

    trainer = trainer_of(str(tmp_path), views, 1024, evaluators=(Retrieval(), Fixed(mine=2.0), function))
    found = trainer.evaluate(counted)
    assert calls == [len(view)]
    assert (found["eval_mine"], found["eval_of_function"]) == (2.0, 3.0)
    assert trainer.state.log_history[-1].items() >= {"eval_mine": 2.0, "eval_num_pairs": len(view)}.items()


@pytest.mark.parametrize(
    ("evaluators", "options", "message"),
    [
        ((Retrieval(), Fixed(mean_recall=1.0)), {}, "Several evaluators give the metric 'mean_recall'"),
        ((Retrieval(), Retrieval()), {}, "Several evaluators give the metric 'image_to_text_recall@1'"),
        ((Fixed(mine=1.0),), {}, "'eval_mean_recall': evaluation gives no such metric"),
        ((Retrieval(), Fixed(mine=1.0)), {"metric_for_best_model": "mien"}, "Did you mean mine"),
        (
            (Fixed(mine=1.0),),
            {"metric_for_best_model": "mine", "greater_is_better": False},
            "Add --greater_is_better",
        ),
    ],
)
def test_what_an_evaluation_would_say_after_an_epoch_is_said_before_the_first_step(
    views, tmp_path, evaluators, options, message
):
    trainer = trainer_of(str(tmp_path), views, 64, evaluators=evaluators, **options)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_names_that_nobody_has_promised_are_compared_when_they_are_there(views):
    with pytest.raises(ValueError, match="Several evaluators give the metric 'mine'"):
        evaluate_pairs(synthetic_model(), views["test"], [Fixed(mine=1.0), lambda model, dataset: {"mine": 2.0}])

    class Named(AdaptorObjective):
        def forward(self, encoded, rows, gather):
            return super().forward(encoded, rows, gather) | {"mean_recall": torch.ones(())}

    objective = Named("text")
    objective.setup(synthetic_model(), None)
    with pytest.raises(ValueError, match="The objective's term 'mean_recall' has the name of a metric of Retrieval"):
        evaluate_pairs(synthetic_model(), views["test"], [Retrieval(objective)])


def test_what_is_no_objective_is_refused():
    with pytest.raises(TypeError, match="objective must be an Objective, got int"):
        Retrieval(1024)


class ReadsTokens(Objective):
    """Says nowhere that it does."""

    def forward(self, encoded, rows, gather):
        loss = (encoded.image.pooled * encoded.text.pooled).sum(1).mean()
        return {"loss": loss if encoded.image.tokens is None else loss + encoded.image.tokens[..., 0].mean()}


def test_the_loss_of_an_evaluation_is_that_of_training_where_tokens_are_read_undeclared():
    torch.manual_seed(0)
    model, objective = synthetic_model().eval(), ReadsTokens()
    pairs = [{"image_embeds": torch.randn(5, 20), "text_embeds": torch.randn(28), "text_row": row} for row in range(8)]
    found = Retrieval(objective)(model, pairs)
    with torch.no_grad():
        trained = TrainedTogether(model, objective)(PairCollator()(pairs))
    assert found["loss"] == pytest.approx(trained["loss"].item(), rel=1e-6)
    objective.forward = lambda encoded, rows, gather: {"loss": rows["prompt_index"].float().mean()}
    assert Retrieval(objective)(model, [pair | {"prompt_index": 3} for pair in pairs])["loss"] == 3


class Restless(Objective):
    """Changes all that it has at every call: in place, and by making it anew."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen, self.by_name = 0, [], {"queue": torch.zeros(3)}
        self.plain, self.again, self.same = torch.zeros(2), torch.ones(2), self.seen
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("later", None)
        self.inner = torch.nn.Module()
        self.inner.queue = collections.deque([1], maxlen=2)
        # A part of it, held a second time, and what cannot be copied.
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.listed, self.lock = [self.weight], threading.Lock()
        self.half = [self.seen, self.lock]

    def forward(self, encoded, rows, gather):
        assert self.listed[0] is self.weight
        assert self.same is self.seen
        self.calls += 1
        self.seen.append(encoded.image.pooled)
        self.by_name["queue"] += 1
        self.by_name["more"] = 1
        self.plain += 1
        self.again = self.again + 1
        self.kept += 1
        self.later = torch.ones(2)
        self.inner.queue.append(2)
        self.lock, self.made = threading.Lock(), True
        return {"loss": encoded.image.pooled.sum() * self.weight.sum(), "seen": torch.tensor(float(len(self.seen)))}


def test_an_evaluation_leaves_every_attribute_of_the_objective_as_it_was(views):
    objective = Restless()
    seen, plain, lock, weight = objective.seen, objective.plain, objective.lock, objective.weight
    for _ in range(2):
        found = Retrieval(objective)(synthetic_model(), views["test"])
        assert found["seen"] == 1, "it works on what it had"
        assert (objective.calls, objective.seen, list(objective.inner.queue)) == (0, [], [1])
        assert objective.seen is seen is objective.same
        assert objective.plain is plain
        assert objective.by_name.keys() == {"queue"}
        for value in (objective.by_name["queue"], objective.plain, objective.again - 1, objective.kept):
            assert not value.any()
        assert objective.later is None
        assert not hasattr(objective, "made")
        assert objective.lock is lock
        assert objective.weight is weight
        assert objective.half == [seen, lock]
        assert objective.training
