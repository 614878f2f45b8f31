"""Zero-shot AUROC while training: the scores of the task, labels of a cache or of batches, unknown ones left out."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from evaluation_worker import trainer_of
from sklearn.metrics import roc_auc_score
from synthetic import TEXT_WIDTH, VISION_WIDTH, synthetic_config, synthetic_model

from adaptor_hf import AdaptorModel
from adaptor_hf.data.target_features import MultiLabel
from adaptor_hf.embeddings import import_embeddings
from adaptor_hf.tasks.prompts import load_prompts
from adaptor_hf.tasks.zero_shot import class_scores
from adaptor_hf.training import ZeroShot
from adaptor_hf.training.pair_embeddings import embed_pairs
from adaptor_hf.training.pair_evaluation import evaluate_pairs
from adaptor_hf.training.pairs import contrastive_splits

ROWS, TEXT = 60, Value("string")
NAMES = ["Effusion", "edema", "nodule", "device"]
UNKNOWN, UNCERTAIN = float("nan"), -1.0
PROMPTS = {
    "effusion": (["pleural effusion", "fluid on the left"], ["no effusion"]),
    "nodule": (["a nodule"], None),
    "edema": (["edema"], ["no edema", "lungs clear"]),
}


def labels_of_rows() -> np.ndarray:
    labels = np.random.default_rng(3).integers(0, 2, (ROWS, len(NAMES))).astype(np.float32)
    labels[::7, 0], labels[2::9, 0], labels[:, 3] = UNKNOWN, UNCERTAIN, UNKNOWN
    return labels


def cache_of(folder: Path, labels, feature, text_width: int = TEXT_WIDTH, text_tower=None):
    """Synthetic pairs with labels; every third row is held out."""
    generator = np.random.default_rng(0)
    splits = ["train", "train", "validation"]
    table = Dataset.from_dict(
        {
            "image_id": [f"image-{row}" for row in range(ROWS)],
            "patient_id": [f"patient-{row}" for row in range(ROWS)],
            "text": [f"report {row}" for row in range(ROWS)],
            "split": [splits[row % 3] for row in range(ROWS)],
            "labels": labels,
        },
        features=Features(
            dict.fromkeys(("image_id", "patient_id", "text", "split"), Value("string")) | {"labels": feature}
        ),
    )
    return import_embeddings(
        image=generator.normal(size=(ROWS, VISION_WIDTH)).astype(np.float32),
        text=generator.normal(size=(ROWS, text_width)).astype(np.float32), table=table, cache_dir=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    return contrastive_splits(cache_of(folder, labels_of_rows().tolist(), MultiLabel(NAMES)))


@pytest.fixture(scope="module")
def embedded_prompts() -> dict:
    """What a text tower would give of the prompts."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: tuple(
            None if texts is None else torch.randn(len(texts), TEXT_WIDTH, generator=generator) for texts in pair
        )
        for name, pair in PROMPTS.items()
    }


def by_hand(model, view, prompts: dict, labels: np.ndarray) -> dict[str, float]:
    """AUROC of each class by scikit-learn, of cosines between embeddings that were made one by one."""
    found = {}
    with torch.no_grad():
        images = model.eval().get_image_features(image_embeds=view[:]["image_embeds"].float()).pooler_output
        for name, pair in prompts.items():
            means = []
            for texts in pair:
                if texts is None:
                    means.append(torch.zeros(48))
                    continue
                one = [model.get_text_features(text_embeds=text[None]).pooler_output[0] for text in texts]
                means.append(torch.nn.functional.normalize(torch.stack(one).mean(0), dim=0))
            truth = labels[:, [known.lower() for known in NAMES].index(name)]
            known = truth >= 0
            found[name] = roc_auc_score(truth[known], (images @ means[0] - images @ means[1]).numpy()[known])
    return found


def test_the_aurocs_are_those_of_scikit_learn_without_unknown_labels(labelled, embedded_prompts):
    model, view = synthetic_model(), labelled["validation"]
    labels = labels_of_rows()[2::3]
    _, found = evaluate_pairs(model, view, [ZeroShot(embedded_prompts, classes=NAMES)])
    expected = by_hand(model, view, embedded_prompts, labels)
    for name, value in expected.items():
        assert found[f"zero_shot_auroc/{name}"] == pytest.approx(value, abs=1e-6), name
    assert found["zero_shot_auroc"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert (found["zero_shot_classes"], found["zero_shot_chance"]) == (3, 0.5)
    for name, column in (("effusion", 0), ("edema", 1), ("nodule", 2)):
        counts = found[f"zero_shot_positives/{name}"], found[f"zero_shot_negatives/{name}"]
        assert counts == ((labels[:, column] == 1).sum(), (labels[:, column] == 0).sum())
    assert (labels[:, 0] == -1).any()
    assert np.isnan(labels[:, 0]).any()


def test_batches_with_targets_and_other_orders_of_columns_give_the_same(labelled, embedded_prompts):
    model, view = synthetic_model(), labelled["validation"]
    _, expected = evaluate_pairs(model, view, [ZeroShot(embedded_prompts, classes=NAMES)])
    order = [2, 0, 3, 1]
    labels = labels_of_rows()[2::3][:, order]
    rows = [view[row] | {"targets": torch.from_numpy(labels[row])} for row in range(len(view))]
    evaluator = ZeroShot(embedded_prompts, classes=[NAMES[column] for column in order])
    assert evaluate_pairs(model, rows, [evaluator], batch_size=8)[1] == pytest.approx(expected)


def test_class_numbers_are_one_class_against_the_others(tmp_path, embedded_prompts):
    numbers = [int(number) for number in np.random.default_rng(5).integers(-1, 3, ROWS)]
    names = ["edema", "nodule", "effusion"]
    view = contrastive_splits(cache_of(tmp_path, numbers, ClassLabel(names=names)))["validation"]
    prompts = {name: (pair[0], None) for name, pair in embedded_prompts.items()}
    _, found = evaluate_pairs(synthetic_model(), view, [ZeroShot(prompts, classes=names)])
    held_out = np.array(numbers[2::3])
    labels = np.full((len(held_out), len(NAMES)), UNKNOWN)
    for place, name in enumerate(names):
        column = [known.lower() for known in NAMES].index(name)
        labels[:, column] = np.where(held_out < 0, -1, held_out == place)
    expected = by_hand(synthetic_model(), view, prompts, labels)
    assert {name: found[f"zero_shot_auroc/{name}"] for name in names} == pytest.approx(expected, abs=1e-6)


def test_prompts_go_through_the_tower_once_and_the_scores_are_those_of_the_task(tiny_bert, tmp_path, monkeypatch):
    from adaptor_hf.training import zero_shot

    width = zero_shot.load_text_tower(str(tiny_bert)).hidden_size
    view = contrastive_splits(cache_of(tmp_path, labels_of_rows().tolist(), MultiLabel(NAMES), width))["validation"]
    torch.manual_seed(0)
    model = AdaptorModel(synthetic_config(text_hidden_size=width)).eval()
    loaded = []
    real = zero_shot.load_text_tower
    monkeypatch.setattr(zero_shot, "load_text_tower", lambda *args, **kwargs: loaded.append(1) or real(*args, **kwargs))
    prompts = load_prompts("phantom").for_classes(["effusion", "nodule", "edema"], exclusive=False)
    evaluator = ZeroShot(prompts, classes=NAMES, text_tower=str(tiny_bert))
    _, found = evaluate_pairs(model, view, [evaluator])
    assert evaluate_pairs(model, view, [evaluator])[1] == found
    assert len(loaded) == 1
    scores = class_scores(model, real(str(tiny_bert)), embed_pairs(model, view)["image_embeds"], prompts)
    labels = labels_of_rows()[2::3]
    for column, (name, place) in enumerate((("effusion", 0), ("nodule", 2), ("edema", 1))):
        known = labels[:, place] >= 0
        expected = roc_auc_score(labels[known, place], scores[known, column])
        assert found[f"zero_shot_auroc/{name}"] == pytest.approx(expected, abs=1e-12)
    # A tower that is attached is asked, and not loaded.
    with_tower = AdaptorModel.from_towers("lite0", str(tiny_bert), hidden_size=48, num_attention_heads=4)
    ZeroShot(prompts, classes=NAMES).check(with_tower, [])
    assert len(loaded) == 1


def test_a_best_model_may_be_chosen_by_it_and_a_class_that_cannot_be_scored_is_named(
    labelled, embedded_prompts, tmp_path, caplog
):
    prompts = embedded_prompts | {"device": (torch.ones(1, TEXT_WIDTH), None)}
    evaluator = ZeroShot(prompts, classes=NAMES)
    options = {"learning_rate": 1e-2, "num_train_epochs": 3, "metric_for_best_model": "zero_shot_auroc/nodule"}
    trainer = trainer_of(str(tmp_path), labelled, 64, evaluators=(evaluator,), **options)
    with caplog.at_level(logging.WARNING, logger="adaptor_hf"):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if "no AUROC of" in record.getMessage()]
    assert said == ["zero_shot: no AUROC of device (0 positive, 0 negative). The mean is over the other 3 classes."]
    values = {entry["step"]: entry["eval_zero_shot_auroc/nodule"] for entry in trainer.state.log_history
              if "eval_zero_shot_auroc/nodule" in entry}  # fmt: skip
    assert len(values) == 3
    assert len(set(values.values())) > 1
    assert trainer.state.best_metric == max(values.values()) == values[trainer.state.best_global_step]
    assert trainer.evaluate()["eval_zero_shot_auroc/nodule"] == trainer.state.best_metric
    assert not any(name.endswith("auroc/device") for entry in trainer.state.log_history for name in entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, "targets has no names for its classes here. Give ZeroShot"),
        ({"classes": NAMES[:3]}, "targets have 4 columns, and there are 3 classes"),
        ({"classes": ["effusion", "edema", "nodules", "device"]}, "prompts for nodule, which the labels do not have"),
        (
            {"prompts": {"device": (torch.ones(1, TEXT_WIDTH), None)}},
            r"no class can be scored .*\(0 positive",
        ),
        ({"prompts": PROMPTS}, "names no text tower that can be loaded"),
        ({"labels": False}, "this data set has no targets"),
    ],
)
def test_what_cannot_be_scored_is_said_before_the_first_step(
    labelled, views, embedded_prompts, tmp_path, change, message
):
    evaluator = ZeroShot(change.get("prompts", embedded_prompts), classes=change.get("classes", NAMES))
    parts = labelled if change.get("labels", True) else views
    trainer = trainer_of(str(tmp_path), parts, 64, evaluators=(evaluator,), metric_for_best_model="zero_shot_auroc")
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ({}, TypeError, "must be a mapping"),
        (["effusion"], TypeError, "must be a mapping"),
        ({"effusion": "pleural effusion"}, TypeError, "of 'effusion' must be two lists"),
        ({"effusion": ("pleural effusion", None)}, TypeError, "must be two lists"),
        ({"effusion": (["a"], "no")}, ValueError, "must be lists of texts"),
        ({"effusion": ([], None)}, ValueError, "at least one in each"),
        ({"effusion": (None, ["no"])}, ValueError, "at least one in each"),
        ({"effusion": (torch.ones(3), None)}, ValueError, r"must be \(n, D\), got \(3,\)"),
    ],
)
def test_prompts_of_another_form_are_refused(prompts, error, message):
    with pytest.raises(error, match=message):
        ZeroShot(prompts)
