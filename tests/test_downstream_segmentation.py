"""Segmentation from a table with masks to results: frozen parts that stay, counts that are exact, faults named."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import synthetic_config

import train_downstream
from adaptor_hf import AdaptorModel
from adaptor_hf.evaluation import read_results, segmentation_counts
from adaptor_hf.evaluation.verify import verify_tree
from adaptor_hf.tasks.protocols import SEGMENTATION_PROTOCOLS, get_segmentation_protocol
from adaptor_hf.tasks.segmentation import (
    MaskCollator,
    augmented,
    counts_of,
    mask_counts,
    segmentation_model,
    train_decoder,
)
from adaptor_hf.training.systems import System


@pytest.fixture(scope="module")
def table(labelled_table):
    return labelled_table(20)


@pytest.fixture(scope="module")
def tower(vision_tower):
    return vision_tower


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tower):
    torch.manual_seed(3)
    config = synthetic_config(
        vision_hidden_size=32, vision_tower=tower.spec, hidden_size=16, num_attention_heads=2, intermediate_size=16
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    AdaptorModel(config).save_pretrained(folder)
    return folder


def run(table, checkpoint, output, *more):
    train_downstream.main(
        ["--task", "segmentation", "--model", str(checkpoint), "--table", str(table), "--mask_column", "mask",
         "--dataset_name", "phantom-boxes", "--output_dir", str(output), "--device", "cpu", "--num_resamples", "30",
         "--seeds", "0", "--epochs", "1", *more]
    )  # fmt: skip


def test_each_module_is_a_run_beside_the_empty_mask(table, checkpoint, tmp_path):
    run(table, checkpoint, tmp_path, "--controls", "tower")
    lines = read_results(tmp_path / "runs").lines
    assert {line["module"] for line in lines} == {"adaptor", "tower"}
    by_metric = {line["metric"]: line for line in lines if line["module"] == "adaptor"}
    with open(table, encoding="utf-8") as file:
        negative = [row["effusion"] == "0" for row in csv.DictReader(file) if row["split"] == "test"]
    trivial = by_metric["dice_reference"]["trivial_baselines"]
    assert trivial.keys() == {"empty mask", "mean training mask", "full mask"}
    assert trivial["empty mask"]["value"] == pytest.approx(np.mean(negative))
    assert by_metric["dice_reference"]["selected_on"] == "validation"
    assert by_metric["dice_reference"]["n_test"] == len(negative)
    assert by_metric["dice_reference"]["head_params"] > 0
    assert not any(verify_tree(tmp_path / "runs").values())


def test_a_decoder_that_diverges_is_listed_and_the_others_are_made(table, checkpoint, tmp_path, monkeypatch, capsys):
    sane, trained = SEGMENTATION_PROTOCOLS["rigorous"], []

    def first_diverges(model, *args, **kwargs):
        trained.append(model)
        protocol = replace(sane, learning_rate=1e38) if len(trained) == 1 else sane
        return train_decoder(model, *args[:3], protocol, **kwargs)

    monkeypatch.setattr("adaptor_hf.tasks.segmentation.train_decoder", first_diverges)
    run(table, checkpoint, tmp_path, "--controls", "tower")
    assert {line["module"] for line in read_results(tmp_path / "runs").lines} == {"tower"}
    assert "Not run: Adaptor, 100 %, seed 0: The loss on validation is" in capsys.readouterr().out


def test_training_changes_the_decoder_and_no_bit_of_tower_and_adaptor(table, tower):
    from adaptor_hf.tasks.data import load_table

    torch.manual_seed(0)
    config = synthetic_config(vision_hidden_size=32, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    module = System("adaptor", AdaptorModel(config))
    model = segmentation_model(module, tower, 28, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dataset = load_table(table, mask_column="mask").select_columns(["image", "mask"]).select(range(8))
    collators = (MaskCollator(tower.processor, 28, True), MaskCollator(tower.processor, 28, False))
    train_decoder(model, dataset, dataset, collators, SEGMENTATION_PROTOCOLS["rigorous"], seed=0, epochs=1)
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert any(name.startswith("adaptor.vision_model.") for name in after)


def test_recipes_have_the_references_values():
    shown = {
        (name, data): (one.learning_rate, one.weight_decay, one.batch_size, one.epochs, one.min_delta, one.monitor)
        for name, data in (("adaptor", "rsna"), ("adaptor", "siim"), ("mgca", "rsna"), ("mgca", "siim"))
        for one in [get_segmentation_protocol(name, data)]
    }
    assert shown == {
        ("adaptor", "rsna"): (5e-4, 1e-4, 8, 50, 1e-3, "dice_reference"),
        ("adaptor", "siim"): (5e-4, 1e-4, 8, 100, 1e-3, "dice_reference"),
        ("mgca", "rsna"): (5e-4, 0.05, 16, 50, 0.0, "loss"),
        ("mgca", "siim"): (5e-4, 0.05, 8, 50, 0.0, "loss"),
    }
    rules = {name: get_segmentation_protocol("adaptor", name).fraction_rule for name in ("rsna", "siim")}
    assert rules == {"rsna": "mgca_detection", "siim": "mgca_balanced"}
    with pytest.raises(ValueError, match="no protocol 'slip'"):
        get_segmentation_protocol("slip")


def test_the_rate_of_the_adaptor_recipe_is_half_a_cosine_of_a_hundred_epochs(table, tower):
    from adaptor_hf.tasks.data import load_table

    torch.manual_seed(0)
    config = synthetic_config(vision_hidden_size=32, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    model = segmentation_model(System("adaptor", AdaptorModel(config)), tower, 28, 0)
    dataset = load_table(table, mask_column="mask").select_columns(["image", "mask"]).select(range(8))
    collator = MaskCollator(tower.processor, 28, False)
    rates = {}
    for name in ("adaptor", "rigorous"):
        trainer = train_decoder(
            model, dataset, dataset, (collator, collator), SEGMENTATION_PROTOCOLS[name], seed=0, epochs=4
        )
        rates[name] = trainer.lr_scheduler.get_last_lr()[0]
    assert rates["adaptor"] == pytest.approx(5e-4 * (1 + np.cos(np.pi * 4 / 100)) / 2)
    assert rates["rigorous"] == 5e-4


def test_external_masks_are_scored_by_the_same_decoder_which_is_saved_for_pipelines(table, checkpoint, tmp_path):
    from transformers import pipeline

    with open(table, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    for row in rows:
        row["image"], row["mask"] = str(table.parent / row["image"]), str(table.parent / row["mask"])
    with open(tmp_path / "other.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    more = ["--controls", "none", "--external", f"elsewhere={tmp_path / 'other.csv'}", "--save_model"]
    run(table, checkpoint, tmp_path / "out", *more)
    lines = [line for line in read_results(tmp_path / "out/runs").lines if line["metric"] == "dice_positive"]
    by_set = {line["test_set"]: line for line in lines}
    assert by_set.keys() == {None, "elsewhere"}
    # The same rows under another name: the same decoder gives the same number.
    assert by_set["elsewhere"]["value"] == by_set[None]["value"]
    assert by_set["elsewhere"]["run"] != by_set[None]["run"]
    found = pipeline("image-segmentation", model=str(tmp_path / "out/model"))(rows[0]["image"])
    assert {part["label"] for part in found} <= {"background", "mask"}
    assert {part["mask"].size for part in found} == {Image.open(rows[0]["image"]).size}
    stamp = (tmp_path / "out/model/config.json").stat().st_mtime_ns
    run(table, checkpoint, tmp_path / "out", *more)
    assert (tmp_path / "out/model/config.json").stat().st_mtime_ns == stamp


def test_counts_are_those_of_the_evaluation():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 1, 6, 6, generator=generator) - 1
    labels = (torch.rand(5, 6, 6, generator=generator) > 0.7).long()
    labels[0] = 0
    found = counts_of(mask_counts(logits, labels).numpy())
    expected = segmentation_counts(logits[:, 0].sigmoid().numpy(), labels.numpy())
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_image_and_mask_are_turned_alike():
    pixels = np.zeros((40, 60), np.uint8)
    pixels[10:25, 20:45] = 255
    image = Image.fromarray(pixels)
    torch.manual_seed(0)
    moved = 0
    for _ in range(12):
        turned, mask = (np.asarray(part) > 127 for part in augmented(image, image))
        assert turned.shape == pixels.shape
        assert (turned != mask).mean() < 0.03
        moved += (mask != (pixels > 0)).any()
    assert 2 < moved < 11


def test_a_mask_of_another_size_is_resized_and_an_unknown_one_left_out(table, checkpoint, tmp_path, caplog):
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["image"], row["mask"] = str(table.parent / row["image"]), str(table.parent / row["mask"])
        row["mask"] = "" if number == 0 else row["mask"]
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "large.png")
    rows[1]["mask"] = str(tmp_path / "large.png")
    with open(tmp_path / "changed.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with caplog.at_level("INFO"):
        run(tmp_path / "changed.csv", checkpoint, tmp_path / "out", "--controls", "none")
    assert "1 of 12 rows have no known mask" in caplog.text
    assert {line["n_train"] for line in read_results(tmp_path / "out/runs").lines} == {11}


def test_a_table_without_masks_says_what_to_name(table, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no column 'masks'"):
        run(table, checkpoint, tmp_path, "--mask_column", "masks")


def changed_table(table, folder, change):
    """The table with full paths, each row as `change(number, row)` leaves it."""
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["image"], row["mask"] = str(table.parent / row["image"]), str(table.parent / row["mask"])
        change(number, row)
    folder.mkdir(exist_ok=True)
    with open(folder / "changed.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "changed.csv"


def test_the_mean_mask_of_the_training_rows_is_scored_in_the_frame_of_the_model(table, checkpoint, tmp_path, capsys):
    generator = np.random.default_rng(0)

    def draw(number, row):
        # Boxes that move a little, in files of twice the size that the model sees.
        mask = np.zeros((56, 56), np.uint8)
        top, left = generator.integers(8, 24, 2)
        mask[top : top + 24, left : left + 24] = 255 * (number % 5 > 0)
        row["mask"], row["image"] = str(tmp_path / f"{number}-mask.png"), str(tmp_path / f"{number}.png")
        Image.fromarray(mask).save(row["mask"])
        Image.fromarray(mask // 2 + 40).save(row["image"])

    changed = changed_table(table, tmp_path, draw)
    run(changed, checkpoint, tmp_path / "out", "--controls", "none", "--image_size", "28")
    with open(changed, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts = {
        part: np.stack([
            np.asarray(Image.open(row["mask"]).resize((28, 28), Image.Resampling.NEAREST)) > 0
            for row in rows
            if row["split"] == part
        ])
        for part in ("train", "validation", "test")
    }  # fmt: skip
    mean, best = parts["train"].mean(0), {}
    for level in np.linspace(0, mean.max(), 101)[:-1]:
        guess, truth = mean > level, parts["validation"]
        best[level] = 2 * (guess & truth).sum() / (guess.sum() * len(truth) + truth.sum())
    guess, truth = mean > max(best, key=best.get), parts["test"]
    lines = {line["metric"]: line for line in read_results(tmp_path / "out/runs").lines}
    found = lines["dice_pooled"]["trivial_baselines"]["mean training mask"]["value"]
    assert found == pytest.approx(2 * (guess & truth).sum() / (guess.sum() * len(truth) + truth.sum()))
    full = lines["dice_pooled"]["trivial_baselines"]["full mask"]["value"]
    assert full == pytest.approx(2 * truth.sum() / (truth.size + truth.sum()))
    assert found > full
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if "| trivial: mean training mask |" in line]
    # Two patients: too few for an interval.
    assert f"| {found:.3f} |" in row
    assert "† Not above its best trivial baseline" in said
    assert not any(verify_tree(tmp_path / "out/runs").values())


def test_a_share_of_the_training_rows_has_its_own_mean_mask(table, tower):
    from adaptor_hf.tasks.data import load_table
    from adaptor_hf.tasks.masks import MeanMasks, summarize_masks

    dataset = load_table(table, mask_column="mask").select_columns(["image", "mask"])
    collator = MaskCollator(tower.processor, 28, False)
    masks = np.stack([collator([dataset[row]])["labels"][0].numpy() > 0 for row in range(len(dataset))])
    whole = summarize_masks(dataset, collator)
    np.testing.assert_allclose(whole.mean, masks.mean(0))
    assert (whole.filled == masks.any((1, 2))).all()
    means = MeanMasks(dataset, dataset, collator, whole.mean, "dice_pooled")
    kept = np.arange(len(dataset)) < 4
    np.testing.assert_allclose(means.of(kept)[0], masks[:4].mean(0))
    assert means.of(np.ones(len(dataset), dtype=bool))[0] is whole.mean


def test_grey_and_turned_mask_files_are_said_with_their_number(table, checkpoint, tmp_path, capsys):
    soft = np.broadcast_to(np.select([np.arange(32) >= 16, np.arange(32) == 15], [255, 90])[:, None], (32, 32))

    def change(number, row):
        if row["effusion"] == "1" and row["split"] == "train":
            row["mask"] = str(tmp_path / f"{number}.png")
            Image.fromarray(soft.astype(np.uint8)).save(row["mask"])
            grey.append(number)
        elif row["split"] == "test":
            row["effusion"], row["mask"] = "1", str(tmp_path / f"{number}.png")
            Image.fromarray(np.uint8(255) * (np.arange(32)[None] >= np.full((32, 1), 16))).save(row["mask"])
            turned.append(number)

    (tmp_path / "changed").mkdir()
    grey, turned = [], []
    changed = changed_table(table, tmp_path, change)
    run(changed, checkpoint, tmp_path / "out", "--controls", "none")
    notes = {note for line in read_results(tmp_path / "out/runs").lines for note in line["run_notes"]}
    said = capsys.readouterr().out
    assert any(
        note.startswith(f"{len(grey)} of 12 training masks have grey pixels beside their two values") for note in notes
    )
    assert any(note.startswith(f"{len(turned)} of {len(turned)} true masks fit the mean") for note in notes)
    assert all(f"Note: Adaptor, 100 %: {note}" in said for note in notes)
    (mean,) = [line for line in said.splitlines() if "| trivial: mean training mask |" in line]
    assert mean.startswith("| phantom-boxes |  |")
    assert str(tmp_path) not in "".join(notes)
    assert not any(verify_tree(tmp_path / "out/runs").values())
    run(table, checkpoint, tmp_path / "healthy", "--controls", "none")
    assert not any(
        "grey" in note for line in read_results(tmp_path / "healthy/runs").lines for note in line["run_notes"]
    )
