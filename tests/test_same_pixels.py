"""One file, one set of numbers: training, the processor given a path, and pipelines read it alike, or say that not."""

import base64
import io
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.dicom import write_dicom
from PIL import Image, UnidentifiedImageError
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from adaptor_hf import AdaptorForImageClassification, AdaptorForSemanticSegmentation, AdaptorModel
from adaptor_hf.data.images import read_image
from adaptor_hf.data.reading import Reading
from adaptor_hf.image_processing_adaptor import AdaptorImageProcessor, processor_of_tower
from adaptor_hf.pipelines import (
    AdaptorImageClassificationPipeline,
    AdaptorImageFeatureExtractionPipeline,
    AdaptorImageSegmentationPipeline,
    AdaptorZeroShotImageClassificationPipeline,
)

SMALL = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}
FIELDS = {"size": {"height": 28, "width": 28}, "crop_size": {"height": 28, "width": 28}}
RAMP = (np.add.outer(np.arange(40), np.arange(36)) * 40 + 300).astype(np.uint16)  # 300..3260


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One picture in every kind of file: path by name."""
    folder = tmp_path_factory.mktemp("files")
    eight = Image.fromarray((RAMP // 16).astype(np.uint8))
    eight.save(folder / "8bit.png")
    eight.convert("RGB").save(folder / "turned.jpg", exif=_turned())
    Image.fromarray(RAMP).save(folder / "12bit.png")
    Image.fromarray(4095 - RAMP).save(folder / "white_is_zero.tiff", tiffinfo={262: 0})
    Image.fromarray(RAMP.astype(np.float32)).save(folder / "float.tiff")
    write_dicom(folder / "a.dcm", RAMP, BitsStored=12, WindowCenter="1500", WindowWidth="900")
    write_dicom(folder / "dicom_without_suffix", RAMP, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    return {path.name: path for path in folder.iterdir()}


def _turned():
    exif = Image.Exif()
    exif[274] = 6
    return exif


def trained_on(path, reading):
    return AdaptorImageProcessor(**FIELDS)(reading.read(path), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("reading", [Reading(), Reading("RGB"), Reading("L", True)], ids=str)
def test_paths_and_urls_are_read_as_in_training(files, reading):
    processor = processor_of_tower(reading.in_spec({"image_processor": FIELDS}))
    for path in files.values():
        url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        for given in (path, str(path), [str(path)], url):
            found = processor(given, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(found, trained_on(path, reading), rtol=0, atol=0)
    batch = processor([str(path) for path in files.values()], return_tensors="pt")["pixel_values"]
    assert len(batch) == len(files)


def test_a_choice_for_one_call_holds_for_paths(files):
    processor = AdaptorImageProcessor(**FIELDS, image_mode="L")
    path = files["a.dcm"]
    displayed = processor(str(path), voi_lut=True, return_tensors="pt")["pixel_values"]
    assert torch.equal(displayed, trained_on(path, Reading("L", True)))
    assert not torch.equal(displayed, trained_on(path, Reading()))


def test_without_a_reading_deep_files_are_read_and_others_are_as_given(files):
    processor = AdaptorImageProcessor(**FIELDS)
    for name in ("12bit.png", "white_is_zero.tiff", "float.tiff", "a.dcm", "dicom_without_suffix", "8bit.png"):
        found = processor(str(files[name]), return_tensors="pt")["pixel_values"]
        assert torch.equal(found, trained_on(files[name], Reading("RGB")))


def test_without_the_package_deep_files_are_refused_by_name(files, monkeypatch):
    monkeypatch.setattr("adaptor_hf.image_values_adaptor.find_spec", lambda name: None)
    processor = AdaptorImageProcessor(**FIELDS, image_mode="L")
    for name in ("12bit.png", "float.tiff", "a.dcm"):
        with pytest.raises(ValueError, match="install the package adaptor_hf"):
            processor(str(files[name]))
    found = processor(str(files["turned.jpg"]), return_tensors="pt")["pixel_values"]
    assert torch.equal(found, trained_on(files["turned.jpg"], Reading()))
    with pytest.raises(FileNotFoundError):
        processor(str(files["8bit.png"].parent / "gone.png"))


def test_pillow_images_are_upright_or_refused(files):
    processor = AdaptorImageProcessor(**FIELDS, image_mode="L")
    with Image.open(files["turned.jpg"]) as image:
        found = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, trained_on(files["turned.jpg"], Reading()))
    for name in ("12bit.png", "white_is_zero.tiff", "float.tiff"):
        with (
            Image.open(files[name]) as image,
            pytest.raises(ValueError, match=r"pass its path, or .*read_image\(path\)"),
        ):
            processor(image)


def test_colour_of_16_bits_that_pillow_would_cut_is_refused_and_its_path_read(tmp_path):
    from test_sixteen_bit import png

    path = tmp_path / "colour.png"
    path.write_bytes(png(np.stack([RAMP, RAMP[::-1], RAMP // 2], axis=2), 2))
    processor = AdaptorImageProcessor(**FIELDS, image_mode="RGB")
    found = processor(str(path), return_tensors="pt")["pixel_values"]
    assert torch.equal(found, trained_on(path, Reading("RGB")))
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        processor(Image.open(io.BytesIO(path.read_bytes())))


class TestPipelines:
    READING = Reading("L", True)

    @pytest.fixture(scope="class")
    def processor(self, vision_tower):
        return processor_of_tower(self.READING.in_spec(vision_tower.spec))

    @pytest.fixture(scope="class")
    def classifier(self, vision_tower, text_tower):
        adaptor = AdaptorModel.from_towers(vision_tower, text_tower, **SMALL)
        return AdaptorForImageClassification.from_adaptor(adaptor, id2label={0: "a", 1: "b", 2: "c"}).eval()

    def run(self, pipeline_class, task, model, processor, path, seen, **options):
        """What the model is given."""
        call = pipeline(task, model=model, image_processor=processor, pipeline_class=pipeline_class, **options)
        found = call.preprocess(path, **seen)
        return found["pixel_values"], call

    def test_paths_are_read_as_in_training(self, files, classifier, processor, tiny_bert):
        for path in files.values():
            wanted = processor(self.READING.read(path), return_tensors="pt")["pixel_values"]
            for given in (path, str(path), self.READING.read(path)):
                pixels, call = self.run(
                    AdaptorImageClassificationPipeline, "image-classification", classifier, processor, given, {}
                )
                assert torch.equal(pixels, wanted)
            with torch.no_grad():
                probabilities = classifier(wanted).logits.softmax(-1)[0].tolist()
            scores = {result["label"]: result["score"] for result in call(str(path))}
            assert [scores[name] for name in "abc"] == pytest.approx(probabilities, abs=1e-6)

    def test_of_every_task(self, files, classifier, processor, tiny_bert):
        model = classifier.base_model
        wanted = processor(self.READING.read(files["a.dcm"]), return_tensors="pt")["pixel_values"]
        pixels, _ = self.run(
            AdaptorImageFeatureExtractionPipeline, "image-feature-extraction", model, processor, str(files["a.dcm"]), {}
        )
        assert torch.equal(pixels, wanted)
        pixels, _ = self.run(
            AdaptorZeroShotImageClassificationPipeline, "zero-shot-image-classification", model, processor,
            str(files["a.dcm"]), {"candidate_labels": ["x"]}, tokenizer=str(tiny_bert),
        )  # fmt: skip
        assert torch.equal(pixels, wanted)

    def test_the_librarys_own_reads_8_bits_and_warns_of_clipped_16(
        self, files, classifier, processor, caplog, tmp_path
    ):
        call = pipeline("image-classification", model=classifier, image_processor=processor)
        logging.getLogger("transformers").addHandler(caplog.handler)
        try:
            for name in ("8bit.png", "turned.jpg"):
                wanted = processor(self.READING.read(files[name]), return_tensors="pt")["pixel_values"]
                assert torch.equal(call.preprocess(str(files[name]))["pixel_values"], wanted)
            assert "white" not in caplog.text
            dark = RAMP.copy()
            dark[:, 12:] = 0  # two thirds black, as collimated films are
            Image.fromarray(dark).save(tmp_path / "dark.png")
            for path in (files["12bit.png"], tmp_path / "dark.png"):
                transformers_logging.warning_once.cache_clear()
                caplog.clear()
                call.preprocess(str(path))
                assert "a 16-bit file is that Pillow converts" in caplog.text
                assert "pipeline_class=" in caplog.text
                assert path.name not in caplog.text
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)

    @pytest.mark.parametrize("task", ["image-classification", "image-feature-extraction"])
    def test_the_librarys_own_refuses_dicom_and_names_the_class(self, files, classifier, processor, task):
        model = classifier if task == "image-classification" else classifier.base_model
        call = pipeline(task, model=model, image_processor=processor)
        with pytest.raises(
            UnidentifiedImageError, match=r"DICOM file.*pipeline_class= of adaptor_hf.pipelines"
        ) as caught:
            call(str(files["a.dcm"]))
        assert "a.dcm" not in str(caught.value)

    def test_of_segmentation(self, files, vision_tower, text_tower, processor, tmp_path):
        """Masks too are of the picture's own size, and the same as of the picture that training read."""
        adaptor = AdaptorModel.from_towers(vision_tower, text_tower, **SMALL)
        torch.manual_seed(3)
        model = AdaptorForSemanticSegmentation.from_adaptor(adaptor, num_labels=1).eval()
        for path in files.values():
            picture = self.READING.read(path)
            pixels, call = self.run(
                AdaptorImageSegmentationPipeline, "image-segmentation", model, processor, str(path), {}
            )
            assert torch.equal(pixels, processor(picture, return_tensors="pt")["pixel_values"])
            found = call(str(path), subtask="semantic")
            wanted = pipeline("image-segmentation", model=model, image_processor=processor)(picture, subtask="semantic")
            assert [one["label"] for one in found] == [one["label"] for one in wanted]
            for one, other in zip(found, wanted, strict=True):
                assert one["mask"].size == picture.size
                assert one["mask"] == other["mask"]
            with torch.no_grad():
                logits = model(pixel_values=pixels).logits
            class_map = processor.post_process_semantic_segmentation(
                SimpleNamespace(logits=logits), target_sizes=[picture.size[::-1]]
            )[0]
            masks = {one["label"]: np.asarray(one["mask"]) > 0 for one in found}
            for number, name in model.config.id2label.items():
                there = (class_map == int(number)).numpy()
                np.testing.assert_array_equal(masks.get(name, np.zeros_like(there)), there)


def test_pillow_still_says_of_other_files_what_it_did(tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(300))
    with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
        Image.open(tmp_path / "a.png")
    with pytest.raises(OSError, match="a DICOM file"):
        Image.open(io.BytesIO(bytes(128) + b"DICM" + bytes(100)))


def test_a_picture_that_was_read_is_left_as_it_is(files):
    processor = AdaptorImageProcessor(**FIELDS, image_mode="L")
    picture = read_image(files["12bit.png"])
    before = picture.copy()
    assert torch.equal(
        processor(picture, return_tensors="pt")["pixel_values"], trained_on(files["12bit.png"], Reading())
    )
    assert picture == before
