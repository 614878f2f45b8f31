"""Prediction from a saved model gives what AutoModel and pipelines give, from every kind of source."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.dicom import write_dicom
from PIL import Image
from saved_models import save_head, save_yolos, save_zero_shot
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PretrainedConfig,
    pipeline,
)

from adaptor_hf import AdaptorConfig
from adaptor_hf.data.masks import MaskValues
from adaptor_hf.data.table_arguments import TableArguments
from adaptor_hf.pipelines import (
    AdaptorImageClassificationPipeline,
    AdaptorImageSegmentationPipeline,
    AdaptorZeroShotImageClassificationPipeline,
)
from adaptor_hf.prediction.arguments import PredictionArguments
from adaptor_hf.prediction.models import _scale_of
from adaptor_hf.prediction.run import predict

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of images as hospitals have them: 8 and 16 bits, colour, alpha, DICOM, of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)

    def drawn(height: int, width: int, top: int) -> np.ndarray:
        rows, columns = np.mgrid[0:height, 0:width]
        row, column = generator.uniform(0.3, 0.7, 2) * (height, width)
        distance = np.hypot((rows - row) / height, (columns - column) / width)
        return np.clip(top * np.exp(-4 * distance) + generator.normal(0, top / 30, (height, width)), 0, top)

    (folder / "ward a").mkdir()
    Image.fromarray(drawn(60, 40, 250).astype(np.uint8)).save(folder / "ward a" / "grey.png")
    Image.fromarray(drawn(40, 64, 250).astype(np.uint8)).save(folder / "ward a" / "grey.jpg")
    Image.fromarray(drawn(50, 50, 4095).astype(np.uint16)).save(folder / "deep.png")
    colour = np.stack([drawn(44, 52, 250).astype(np.uint8) for _ in range(3)], -1)
    Image.fromarray(colour).save(folder / "colour.png")
    write_dicom(folder / "ward a" / "one.dcm", drawn(48, 56, 4000).astype(np.uint16))
    write_dicom(folder / "inverted", drawn(56, 48, 900).astype(np.int16), PhotometricInterpretation="MONOCHROME1")
    return folder


@pytest.fixture(scope="module")
def classifier(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "model"
    return save_head("classification", checkpoint, folder, id2label={0: "normal", 1: "effusion", 2: "edema"})


def run(model: Path, output_dir: Path, *, form: TableArguments | None = None, **options) -> list[dict[str, str]]:
    """Predict; the rows of `predictions.csv`."""
    given = {"num_workers": 0} | {name: str(value) if isinstance(value, Path) else value
                                  for name, value in options.items()}  # fmt: skip
    predict(PredictionArguments(model=str(model), output_dir=str(output_dir), **given), form)
    return rows_of(output_dir / "predictions.csv")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores_of(rows: list[dict[str, str]], names) -> np.ndarray:
    return np.array([[float(row[name]) for name in names] for row in rows])


class TestClassification:
    @pytest.mark.parametrize(
        ("config", "names"),
        [
            ({"id2label": {0: "normal", 1: "effusion", 2: "edema"}}, ["normal", "effusion", "edema"]),
            ({"id2label": {0: "normal", 1: "effusion"}}, ["normal", "effusion"]),
            (
                {"id2label": {0: "effusion", 1: "edema"}, "problem_type": "multi_label_classification"},
                ["effusion", "edema"],
            ),
            ({"id2label": {0: "effusion"}, "num_labels": 1}, ["effusion"]),
        ],
    )
    def test_it_gives_what_the_pipeline_and_auto_model_give(self, config, names, checkpoint, pictures, tmp_path):
        model = save_head("classification", checkpoint, tmp_path / "model", **config)
        rows = run(model, tmp_path / "out", image_folder=pictures, batch_size=4)
        assert len(rows) == 6
        assert list(rows[0]) == ["image_id", "source_row", *names]
        call = pipeline("image-classification", model=str(model), pipeline_class=AdaptorImageClassificationPipeline)
        found = scores_of(rows, names)
        assert np.ptp(found, axis=0).max() > 1e-3, "the images have different scores"
        for row, mine in zip(rows, found, strict=True):
            theirs = {one["label"]: one["score"] for one in call(str(pictures / row["image_id"]), top_k=None)}
            np.testing.assert_allclose(mine, [theirs[name] for name in names], atol=TOLERANCE, rtol=0)
        auto, processor = (
            AutoModelForImageClassification.from_pretrained(model),
            AutoImageProcessor.from_pretrained(model),
        )
        paths = [str(pictures / row["image_id"]) for row in rows]
        with torch.no_grad():
            logits = auto(**processor(paths, return_tensors="pt")).logits
        several = config.get("problem_type") or len(names) == 1
        expected = logits.sigmoid() if several else logits.softmax(-1)
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=0)

    def test_scores_stand_under_their_classes_in_whatever_order_a_file_lists_them(self, checkpoint, pictures, tmp_path):
        names = [f"c{number:02}" for number in range(12)]
        model = save_head("classification", checkpoint, tmp_path / "model", id2label=dict(enumerate(names)))
        config = json.loads((model / "config.json").read_text())
        # As many a config.json of the Hub: "10" and "11" stand before "2".
        config["id2label"] = {number: config["id2label"][number] for number in sorted(config["id2label"])}
        (model / "config.json").write_text(json.dumps(config))
        rows = run(model, tmp_path / "out", image_folder=pictures)
        call = pipeline("image-classification", model=str(model), pipeline_class=AdaptorImageClassificationPipeline)
        for row, mine in zip(rows, scores_of(rows, names), strict=True):
            theirs = {one["label"]: one["score"] for one in call(str(pictures / row["image_id"]), top_k=12)}
            np.testing.assert_allclose(mine, [theirs[name] for name in names], atol=TOLERANCE, rtol=0)

    def test_what_predicts_no_classes_or_numbers_them_otherwise_is_refused(self, checkpoint, pictures, tmp_path):
        model = save_head("classification", checkpoint, tmp_path / "model", id2label={0: "a", 1: "b"})
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"id2label": {"1": "a", "2": "b"}}))
        with pytest.raises(ValueError, match="not from 0 to 1"):
            run(model, tmp_path / "out", image_folder=pictures)
        with pytest.raises(ValueError, match="predicts numbers"):
            _scale_of(PretrainedConfig(problem_type="regression"))

    def test_the_size_of_a_batch_and_workers_change_nothing_and_half_precision_little(
        self, classifier, pictures, tmp_path
    ):
        names = ["normal", "effusion", "edema"]
        first = run(classifier, tmp_path / "a", image_folder=pictures, batch_size=1)
        second = run(classifier, tmp_path / "b", image_folder=pictures, batch_size=6, num_workers=2)
        np.testing.assert_allclose(scores_of(first, names), scores_of(second, names), atol=TOLERANCE, rtol=0)
        half = run(classifier, tmp_path / "c", image_folder=pictures, dtype="bfloat16")
        difference = np.abs(scores_of(half, names) - scores_of(first, names)).max()
        assert 0 < difference < 0.05

    @pytest.mark.parametrize("trained", ["full", "lora", "in checkpoint"])
    def test_a_model_with_a_tower_of_its_own(self, trained, checkpoint, pictures, tmp_path):
        from adaptor_hf import AdaptorForImageClassification, AdaptorModel
        from adaptor_hf.image_processing_adaptor import processor_of_tower

        torch.manual_seed(2)
        adaptor = AdaptorModel.from_pretrained(checkpoint)
        if trained == "in checkpoint":
            adaptor.config.towers_in_checkpoint = True
        else:
            adaptor.set_trainable_towers(vision_model=trained)
        with torch.no_grad():
            for name, parameter in adaptor.vision_model.named_parameters():
                if parameter.ndim > 1 and (trained != "lora" or "lora" in name):
                    parameter.add_(0.3 * torch.randn_like(parameter))
        names = ["normal", "effusion", "edema"]
        model = AdaptorForImageClassification.from_adaptor(adaptor, id2label=dict(enumerate(names))).eval()
        with torch.no_grad():
            model.classifier[-1].weight.normal_(std=2)
        model.save_pretrained(tmp_path / "model")
        processor = processor_of_tower(adaptor.config.vision_tower | {"image_mode": "L"})
        processor.save_pretrained(tmp_path / "model")
        rows = run(tmp_path / "model", tmp_path / "out", image_folder=pictures)
        paths = [str(pictures / row["image_id"]) for row in rows]
        with torch.no_grad():
            expected = model(**processor(paths, return_tensors="pt")).logits.softmax(-1).numpy()
        np.testing.assert_allclose(scores_of(rows, names), expected, atol=TOLERANCE, rtol=0)
        assert np.ptp(expected, axis=0).max() > 1e-3

    def test_threshold_columns_only_where_they_are_asked_for(self, classifier, pictures, tmp_path):
        rows = run(classifier, tmp_path / "out", image_folder=pictures, threshold=0.5)
        assert [name for name in rows[0] if ">" in name] == ["normal > 0.5", "effusion > 0.5", "edema > 0.5"]
        for row in rows:
            assert row["edema > 0.5"] == str(int(float(row["edema"]) > 0.5))

    def test_dicom_is_read_as_displayed_where_the_model_or_the_option_says_so(self, classifier, tmp_path):
        values = np.arange(2500, dtype=np.uint16).reshape(50, 50)
        write_dicom(tmp_path / "images" / "one.dcm", values, WindowCenter=500, WindowWidth=200)
        plain = run(classifier, tmp_path / "a", image_folder=tmp_path / "images")
        shown = run(classifier, tmp_path / "b", image_folder=tmp_path / "images", form=TableArguments(voi_lut=True))
        assert plain[0]["edema"] != shown[0]["edema"]
        call = pipeline("image-classification", model=str(classifier),
                        pipeline_class=AdaptorImageClassificationPipeline)  # fmt: skip
        call.image_processor.voi_lut = True
        theirs = {one["label"]: one["score"] for one in call(str(tmp_path / "images/one.dcm"), top_k=None)}
        assert float(shown[0]["edema"]) == pytest.approx(theirs["edema"], abs=TOLERANCE)


class TestZeroShot:
    @pytest.fixture(scope="class")
    def model(self, checkpoint, tmp_path_factory) -> Path:
        return save_zero_shot(checkpoint, tmp_path_factory.mktemp("zero-shot") / "model")

    @pytest.mark.parametrize("changes", [{}, {"attention_pooling_heads": 2}, {"logit_bias_init_value": -1.0}])
    def test_classes_give_what_the_pipeline_gives(self, changes, model, checkpoint, pictures, tmp_path):
        from adaptor_hf import AdaptorModel

        if changes:
            config = AdaptorConfig(**AdaptorConfig.from_pretrained(checkpoint).to_dict() | changes)
            torch.manual_seed(4)
            AdaptorModel(config).save_pretrained(tmp_path / "other")
            model = save_zero_shot(tmp_path / "other", tmp_path / "model")
        names, template = ["effusion", "normal", "edema"], "a radiograph with {}"
        rows = run(model, tmp_path / "out", image_folder=pictures, classes=names, template=template)
        call = pipeline("zero-shot-image-classification", model=str(model),
                        pipeline_class=AdaptorZeroShotImageClassificationPipeline)  # fmt: skip
        for row in rows:
            found = call(str(pictures / row["image_id"]), candidate_labels=names, hypothesis_template=template)
            theirs = {one["label"]: one["score"] for one in found}
            for name in names:
                assert float(row[name]) == pytest.approx(theirs[name], abs=TOLERANCE)
            total = sum(float(row[name]) for name in names)
            assert (abs(total - 1) < 1e-5) == ("logit_bias_init_value" not in changes)

    def test_prompts_give_what_the_zero_shot_task_gives(self, model, pictures, tmp_path):
        from adaptor_hf import AdaptorModel
        from adaptor_hf.tasks.prompts import load_prompts
        from adaptor_hf.tasks.zero_shot import class_scores

        rows = run(model, tmp_path / "out", image_folder=pictures, prompts="chexpert", classes=["Edema", "Pneumonia"])
        adaptor, processor = AdaptorModel.from_pretrained(model), AutoImageProcessor.from_pretrained(model)
        prompts = load_prompts("chexpert").for_classes(["Edema", "Pneumonia"], exclusive=False)
        paths = [str(pictures / row["image_id"]) for row in rows]
        features = adaptor.get_image_features(**processor(paths, return_tensors="pt")).pooler_output
        expected = class_scores(adaptor, adaptor.text_model, features, prompts)
        np.testing.assert_allclose(scores_of(rows, ["Edema", "Pneumonia"]), expected, atol=TOLERANCE, rtol=0)


class TestSegmentation:
    @pytest.mark.parametrize("names", [["background", "lung"], ["background", "lung", "heart"]])
    def test_masks_are_the_pipelines_in_the_size_of_the_original(self, names, checkpoint, pictures, tmp_path):
        model = save_head("segmentation", checkpoint, tmp_path / "model", id2label=dict(enumerate(names)))
        rows = run(model, tmp_path / "out", image_folder=pictures)
        auto, processor = (
            AutoModelForSemanticSegmentation.from_pretrained(model),
            AutoImageProcessor.from_pretrained(model),
        )
        call = pipeline("image-segmentation", model=auto, image_processor=processor,
                        pipeline_class=AdaptorImageSegmentationPipeline)  # fmt: skip
        inside = 0
        for row in rows:
            path = tmp_path / "out" / row["mask"]
            mask = np.asarray(Image.open(path))
            assert mask.shape == (int(row["height"]), int(row["width"]))
            found = {one["label"]: np.asarray(one["mask"]) > 0
                     for one in call(str(pictures / row["image_id"]), subtask="semantic")}  # fmt: skip
            for number, name in enumerate(names):
                value = number * 255 if len(names) == 2 else number
                np.testing.assert_array_equal(mask == value, found.get(name, np.zeros(mask.shape, bool)))
                assert float(row[name]) == pytest.approx((mask == value).mean(), abs=1e-6)
                inside += bool(number) and found.get(name, np.zeros(1)).any()
            if len(names) == 2:
                # As this package reads masks.
                np.testing.assert_array_equal(MaskValues.read(str(path)).values > 0, mask > 0)
        assert inside > 1

    @pytest.mark.parametrize("names", [["background", "lung"], ["background", "lung", "heart"]])
    def test_boxes_are_the_connected_parts_with_their_mean_probability(self, names, checkpoint, tmp_path):
        from skimage import measure

        (tmp_path / "images").mkdir()
        generator = np.random.default_rng(3)
        for number in range(3):
            # Of the tower's size: nothing is resized, and what the model gives is what is compared.
            pixels = generator.integers(0, 255, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        model = save_head("segmentation", checkpoint, tmp_path / "model", id2label=dict(enumerate(names)))
        processor = AutoImageProcessor.from_pretrained(model)
        processor.size = {"shortest_edge": 28}
        processor.save_pretrained(model)
        threshold = 0.5 if len(names) == 3 else 0.45
        run(model, tmp_path / "out", image_folder=tmp_path / "images", threshold=threshold)
        boxes = json.loads((tmp_path / "out/boxes.json").read_text())
        assert [one["name"] for one in boxes["categories"]] == names[1:]
        auto, expected = AutoModelForSemanticSegmentation.from_pretrained(model).eval(), []
        for number in range(3):
            inputs = processor(str(tmp_path / f"images/{number}.png"), return_tensors="pt")
            with torch.no_grad():
                logits = auto(**inputs).logits[0]
            alone = len(logits) == 1
            probabilities = (logits.sigmoid() if alone else logits.softmax(0)).numpy()
            classes = (probabilities[0] > threshold).astype(int) if alone else probabilities.argmax(0)
            for category in range(1, len(names)):
                labels = measure.label(classes == category, connectivity=2)
                for part in measure.regionprops(labels, intensity_image=probabilities[0 if alone else category]):
                    top, left, bottom, right = part.bbox
                    box = (left, top, right - left, bottom - top)
                    expected.append((number, category, *box, int(part.area), part.intensity_mean))
        found = [(one["image_id"], one["category_id"], *one["bbox"], one["area"], one["score"])
                 for one in boxes["annotations"]]  # fmt: skip
        assert len(expected) > 3
        assert len({one[-1] for one in expected}) > 2
        np.testing.assert_allclose(sorted(found), sorted(expected), atol=TOLERANCE, rtol=0)
        assert [one["id"] for one in boxes["annotations"]] == list(range(1, len(found) + 1))


class TestDetection:
    def test_boxes_are_the_pipelines_as_coco(self, pictures, tmp_path):
        model = save_yolos(tmp_path / "model")
        rows = run(model, tmp_path / "out", image_folder=pictures, threshold=0.3, batch_size=6)
        boxes = json.loads((tmp_path / "out/boxes.json").read_text())
        assert boxes["categories"] == [{"id": 0, "name": "nodule"}, {"id": 1, "name": "effusion"}]
        auto, processor = AutoModelForObjectDetection.from_pretrained(model), AutoImageProcessor.from_pretrained(model)
        call, count = pipeline("object-detection", model=auto, image_processor=processor), 0
        label_ids = {name: number for number, name in auto.config.id2label.items()}
        files = {one["id"]: one for one in boxes["images"]}
        for row in rows:
            mine = [one for one in boxes["annotations"] if one["image_id"] == int(row["source_row"])]
            assert int(row["boxes"]) == len(mine)
            assert files[int(row["source_row"])]["file_name"] == row["image_id"]
            if row["image_id"] not in ("ward a/grey.png", "ward a/grey.jpg", "colour.png"):
                continue  # transformers' own pipeline reads no others
            found = call(str(pictures / row["image_id"]), threshold=0.3)
            count += len(found)
            ours = sorted((one["score"], one["category_id"], *one["bbox"]) for one in mine)
            theirs = sorted((one["score"], label_ids[one["label"]], *one["box"].values()) for one in found)
            assert len(ours) == len(theirs)
            for (score, label, left, top, width, height), other in zip(ours, theirs, strict=True):
                assert (score, label) == (pytest.approx(other[0], abs=TOLERANCE), other[1])
                # The pipeline gives whole pixels, cut.
                corners = [left, top, left + width, top + height]
                assert [int(value) for value in corners] == list(other[2:])
        assert count > 3


class TestSources:
    @pytest.fixture(scope="class")
    def table(self, labelled_table) -> Path:
        return labelled_table(12)

    def test_every_source_of_the_same_images_gives_the_same(self, classifier, table, tmp_path):
        frame = pd.read_csv(table)[["image"]]
        # What is in other columns is nobody's business: no labels are needed.
        frame["split"], frame["patient_id"] = "fold 7", [f"P{n % 3}" if n % 2 else f"p{n % 3} " for n in range(12)]
        frame["labels"] = "free text"
        root = table.parent
        frame.to_parquet(root / "t.parquet")
        frame.to_excel(root / "t.xlsx", index=False)
        frame.to_csv(root / "t.csv", index=False, sep=";")
        stored = [{"bytes": (root / name).read_bytes(), "path": name} for name in frame["image"]]
        whole = datasets.Dataset.from_dict({"image": stored, "split": frame["split"].tolist()})
        whole.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
        folder = tmp_path / "folder"
        folder.mkdir()
        for number, name in enumerate(frame["image"]):
            (folder / f"{number:02d}.png").write_bytes((root / name).read_bytes())
        names, found = ["normal", "effusion", "edema"], {}
        for number, source in enumerate([
            {"table": table}, {"table": root / "t.parquet"}, {"table": root / "t.xlsx"}, {"table": root / "t.csv"},
            {"dataset_dir": tmp_path / "saved"}, {"image_folder": folder},
        ]):  # fmt: skip
            rows = run(classifier, tmp_path / str(number), **source)
            assert [int(row["source_row"]) for row in rows] == list(range(12))
            found[number] = scores_of(rows, names)
        for number in range(1, 6):
            np.testing.assert_array_equal(found[number], found[0])
        assert [row["image_id"] for row in rows_of(tmp_path / "1/predictions.csv")] == frame["image"].tolist()

    def test_a_folder_with_metadata_is_the_images_that_it_names_and_filters_hold(self, classifier, table, tmp_path):
        rows = run(classifier, tmp_path / "a", image_folder=table.parent, form=TableArguments(filter=["sex=F"]))
        frame = pd.read_csv(table)
        assert [row["image_id"] for row in rows] == frame["image"][frame["sex"] == "F"].tolist()
        assert [int(row["source_row"]) for row in rows] == np.flatnonzero(frame["sex"] == "F").tolist()

    def test_ids_are_those_of_a_column_where_it_is_named(self, classifier, table, tmp_path):
        frame = pd.read_csv(table).assign(study=[f"007{n}" for n in range(12)])
        frame.to_csv(table.parent / "ids.csv", index=False)
        options = {"table": table.parent / "ids.csv", "form": TableArguments(id_column="study")}
        rows = run(classifier, tmp_path / "a", **options)
        assert [row["image_id"] for row in rows] == [f"007{n}" for n in range(12)]


def test_real_radiographs_score_as_in_the_pipeline(realbench, classifier, tmp_path):
    frame = pd.read_csv(realbench / "metadata.csv")[["image"]]
    frame = frame.sample(24, random_state=0)
    frame.to_csv(tmp_path / "t.csv", index=False)
    rows = run(classifier, tmp_path / "out", table=tmp_path / "t.csv", form=TableArguments(image_root=str(realbench)))
    assert [row["image_id"] for row in rows] == frame["image"].tolist()
    call = pipeline("image-classification", model=str(classifier), pipeline_class=AdaptorImageClassificationPipeline)
    names = ["normal", "effusion", "edema"]
    for row, mine in zip(rows, scores_of(rows, names), strict=True):
        theirs = {one["label"]: one["score"] for one in call(str(realbench / row["image_id"]), top_k=None)}
        np.testing.assert_allclose(mine, [theirs[name] for name in names], atol=TOLERANCE, rtol=0)
