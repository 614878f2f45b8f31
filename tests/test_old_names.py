"""Every public name from before the rooms: it works, with a warning if it has another one, or is said to be gone."""

import importlib
import re
import warnings
from pathlib import Path

import pytest
import torch
from synthetic import synthetic_model

import adaptor_hf.old_names
from adaptor_hf.evaluation.tasks import TASKS
from adaptor_hf.loss_adaptor import contrastive_loss
from adaptor_hf.moved import MOVED_NAMES, REPLACED_NAMES, new_name
from adaptor_hf.tasks.controls import load_systems, saved_controls
from adaptor_hf.training import controls
from adaptor_hf.training.script_arguments import DataArguments, ModelArguments
from adaptor_hf.training.systems import System

ROOT = Path(__file__).parent.parent
# The names in each `__all__` of commit ba7c788, as `ast` reads them. The file stays as it is.
LINES = (Path(__file__).parent / "fixtures/names_0_1.txt").read_text(encoding="utf-8").splitlines()
NAMES = {module: names.split() for module, _, names in (line.partition(": ") for line in LINES)}

# Why it is gone, and what to use.
DELETED = {
    "adaptor_hf.data.boxes.clip_boxes": ("only its tests used it", "clip_boxes_to_image"),
    "adaptor_hf.data.files.safe_join": ("only its tests used it", "Path.is_relative_to"),
    "adaptor_hf.data.masks.empty_mask": ("only its tests used it", "shape_mask([], image)"),
    "adaptor_hf.data.public.slip_catalog.class_prompts": ("done twice", "adaptor_hf.tasks.prompts.slip_prompts"),
    "adaptor_hf.downstream.probe.validation_score": ("heads go through Trainer", "tasks.head_training.macro_auroc"),
    "adaptor_hf.evaluation.append_results": ("runs write a file each", "a file each"),
    "adaptor_hf.evaluation.baselines.line_is_marked": ("only its tests used it", "above_baseline"),
    "adaptor_hf.evaluation.classification.sensitivity_at_specificity": ("done twice", "operating_points"),
    "adaptor_hf.evaluation.results.append_results": ("runs write a file each", "a file each"),
    "adaptor_hf.evaluation.sensitivity_at_specificity": ("done twice", "operating_points"),
    "adaptor_hf.evaluation.weighted.weighted_average_precision": ("only its tests used it", "weighted_areas"),
    "adaptor_hf.objectives.segmentation.MixedLoss": ("only its tests used it", "mixed_loss"),
    "adaptor_hf.segmentation_loss_adaptor.MixedLoss": ("only its tests used it", "mixed_loss"),
}
# In no `__all__`, but in documentation or imported by other files.
OTHERS = {
    "adaptor_hf.embeddings.sides.Side",
    "adaptor_hf.evaluation.classification.NUM_BINS",
    "adaptor_hf.training.pair_evaluation.fixed_batch_loss",
}


def held(old: str) -> object:
    """What an old name is to give."""
    target = f"adaptor_hf.old_names.{old.rpartition('.')[2]}" if old in REPLACED_NAMES else MOVED_NAMES[old]
    place, _, name = target.rpartition(".")
    return getattr(importlib.import_module(place), name)


@pytest.mark.parametrize("module", NAMES)
def test_every_name_of_the_base_is_there_or_said_to_be_gone(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        place = importlib.import_module(module)
    for name in NAMES[module]:
        old = f"{module}.{name}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if old in DELETED:
                with pytest.raises(AttributeError, match=f"no attribute {name!r}"):
                    getattr(place, name)
                continue
            found = getattr(place, name)
        if old not in MOVED_NAMES | REPLACED_NAMES:
            assert [str(one.message) for one in caught] == [], old
            continue
        (said,) = [one for one in caught if str(one.message).startswith(f"{old} is now ")]
        use = (MOVED_NAMES | REPLACED_NAMES)[old]
        assert str(said.message) == f"{old} is now {use}; the old name goes with the next release."
        assert said.category is FutureWarning
        assert said.filename == __file__
        assert found is held(old)


def test_the_lists_hold_names_of_the_base_only():
    base = {f"{module}.{name}" for module, names in NAMES.items() for name in names}
    assert len(NAMES) == 177
    assert len(base) == 887
    assert set(DELETED) <= base
    assert set(MOVED_NAMES) | set(REPLACED_NAMES) <= base | OTHERS
    assert not set(MOVED_NAMES) & set(REPLACED_NAMES)
    assert not set(DELETED) & (set(MOVED_NAMES) | set(REPLACED_NAMES))


@pytest.mark.parametrize("old", DELETED)
def test_the_changelog_says_what_is_gone_and_what_to_use(old):
    said = re.sub(r"\s+", " ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    why, use = DELETED[old]
    assert why
    assert re.search(rf"`[\w.]*\b{old.rpartition('.')[2]}`", said), old
    assert use in said


@pytest.mark.parametrize("old", sorted(MOVED_NAMES))
def test_no_new_name_is_an_old_one(old):
    place, _, name = MOVED_NAMES[old].rpartition(".")
    assert new_name(place) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(importlib.import_module(place), name)


@pytest.mark.parametrize("old", REPLACED_NAMES)
def test_what_replaces_a_name_is_there(old):
    (use,) = re.findall(r"adaptor_hf(?:\.\w+)+", REPLACED_NAMES[old])
    place, _, name = use.rpartition(".")
    assert hasattr(importlib.import_module(place), name)


def test_an_import_warns_where_it_stands():
    with pytest.warns(
        FutureWarning, match="adaptor_hf.private_mode.private_rows is now adaptor_hf.data.priv"
    ) as caught:
        from adaptor_hf.private_mode import private_rows
    assert {one.filename for one in caught} == {__file__}
    assert private_rows.__module__ == "adaptor_hf.data.private_rows"


def test_a_lazy_package_keeps_its_own_names():
    package = importlib.import_module("adaptor_hf.data")
    assert package.load_public_dataset.__module__ == "adaptor_hf.data.public_datasets"
    with pytest.raises(AttributeError, match=r"module 'adaptor_hf.data' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


class TestReplaced:
    """What these names hold is what they held."""

    def test_tables(self):
        old = adaptor_hf.old_names
        assert old.HEADLINES["few_shot"] == ("auroc", "accuracy")
        assert set(old.HEADLINES) == {"classification", "few_shot", "zero_shot", "retrieval", "segmentation"}
        assert old.METRIC == {
            "classification": "auroc", "few_shot": "auroc", "zero_shot": "auroc", "retrieval": "mean_recall",
            "segmentation": "dice_pooled",
        }  # fmt: skip
        assert old.TASK_FUNCTIONS.keys() == TASKS.keys()
        assert all(map(callable, old.TASK_FUNCTIONS.values()))
        assert old.BUILT_IN == ("tower", "untrained", "mlp")
        assert set(old.UNTRAINED) == {"tower", "mlp", "untrained"}
        assert old.SYSTEMS == {
            "adaptor": "Adaptor", "tower": "raw tower", "untrained": "Adaptor, untrained",
            "mlp": "parameter-matched MLP", "projections": "two linear projections",
            "shuffled": "Adaptor, shuffled pairs",
        }  # fmt: skip
        assert {"chexpert", "mimic_cxr", "openi", "siim"} <= set(old.RESTRICTED)

    def test_variants_have_their_titles_as_names(self, monkeypatch):
        made = [System("adaptor", learning_rate=0.1, validation_mean_recall=0.5), System("shuffled")]
        monkeypatch.setattr(adaptor_hf.old_names, "train_controls", lambda *arguments, seed: made[seed:])
        with pytest.warns(FutureWarning, match="train_variants is now"):
            variants = controls.train_variants("config", seed=0)
        assert [variant.name for variant in variants] == ["Adaptor", "Adaptor, shuffled pairs"]
        assert variants[0].learning_rate == 0.1
        assert variants[0].validation_mean_recall == 0.5
        assert [variant.label for variant in variants] == [system.label for system in made]

    def test_variants_are_saved_where_downstream_finds_them(self, tmp_path):
        torch.manual_seed(0)
        model = synthetic_model(num_hidden_layers=0)
        with pytest.warns(FutureWarning, match=r"training\.controls\.Variant is now"):
            variant = controls.Variant("two linear projections", model, 0.1)
        assert (variant.name, variant.key, variant.learning_rate) == ("two linear projections", "projections", 0.1)
        with pytest.warns(FutureWarning, match=r"downstream\.modules\.save_variants is now"):
            from adaptor_hf.downstream.modules import save_variants
        assert save_variants([variant], tmp_path / "controls") == saved_controls(tmp_path)
        assert "projections" in [s.key for s in load_systems(synthetic_model(), (), saved_controls(tmp_path))]

    def test_readers_of_tables_and_notes_on_masks(self):
        from adaptor_hf.data.pacs import reports_table
        from adaptor_hf.evaluation import notes

        with pytest.warns(FutureWarning, match="DELIMITERS is now"):
            assert reports_table.DELIMITERS == (",", ";", "\t", "|")
        with pytest.warns(FutureWarning, match="ENCODINGS is now"):
            assert reports_table.ENCODINGS == ("utf-8-sig", "cp1252")
        with pytest.warns(FutureWarning, match="grey_mask_note is now"):
            note = notes.grey_mask_note
        assert note("training", 0, 9) is None
        assert note("training", 2, 9).startswith("2 of 9 training masks have grey pixels")

    @pytest.mark.parametrize("positives", [None, torch.arange(1100) // 2])
    def test_the_loss_of_batches_of_one_size(self, positives):
        torch.manual_seed(0)
        model = synthetic_model().eval()
        images, texts = torch.nn.functional.normalize(torch.randn(2, 1100, 48), dim=-1)
        with pytest.warns(FutureWarning, match=r"pair_evaluation\.fixed_batch_loss is now"):
            from adaptor_hf.training.pair_evaluation import fixed_batch_loss
        found = fixed_batch_loss(model, {"image_embeds": images, "text_embeds": texts}, positives)
        first = None if positives is None else positives[:1024]
        # What the function did before objectives: whole batches alone.
        loss = contrastive_loss(images[:1024], texts[:1024], model.get_logit_scale().detach(), 0.75, False, first)
        assert found == {"loss": pytest.approx(loss.item(), rel=1e-6), "loss_batch_size": 1024}

    def test_places(self, tmp_path):
        from adaptor_hf.training import AdaptorTrainingArguments

        data = DataArguments(train_file=str(tmp_path / "pairs.csv"))
        training = AdaptorTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
        found = adaptor_hf.old_names.places_of(data, ModelArguments(), training)
        assert {str(tmp_path / "pairs.csv"), str(tmp_path / "run")} <= set(found)
