"""`range_percentile`: files are scaled from a percentile of their pixels, smeared padding left out."""

import io
import json
import logging

import numpy as np
import pydicom
import pytest
from fixtures.cache_files import newest_cache
from fixtures.dicom import write_dicom, write_jpeg_dicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000
from scipy.ndimage import gaussian_filter

import train_downstream
import train_pretrain
from adaptor_hf import AdaptorModel
from adaptor_hf.data import dicom_values
from adaptor_hf.data.images import read_image, to_uint8
from adaptor_hf.data.reading import Reading
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.embeddings import build_cache
from adaptor_hf.image_processing_adaptor import AdaptorImageProcessor, processor_of_tower

SIDE = 256
RANDOM = np.random.default_rng(0)
_FIELD = gaussian_filter(RANDOM.normal(size=(SIDE, SIDE)), 5)
TISSUE = np.rint(1000 + 1800 * (_FIELD - _FIELD.min()) / np.ptp(_FIELD) + RANDOM.normal(0, 5, _FIELD.shape))
TISSUE = TISSUE.astype(np.uint16)
INSIDE = np.zeros((SIDE, SIDE), dtype=bool)
INSIDE[21:230, 35:201] = True


def scaled(values, percentile, of):
    """What the rule says, by numpy alone."""
    low, high = np.quantile(of.astype(np.float64), [percentile / 100, 1 - percentile / 100])
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def levels(path, percentile=0.0, **options):
    return np.asarray(read_image(path, range_percentile=percentile, **options)).astype(float)


def with_outliers(array):
    array = array.copy()
    array[40:42, 40:42], array[50:52, 50:52] = 0, 4095
    return array


class TestRule:
    @pytest.mark.parametrize("percentile", [0.1, 0.5, 1, 5])
    @pytest.mark.parametrize("slope", [1, -2])
    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_of_dicom(self, tmp_path, percentile, slope, photometric):
        array = with_outliers(TISSUE)
        path = write_dicom(tmp_path / "a.dcm", array, BitsStored=12, PhotometricInterpretation=photometric,
                           RescaleSlope=slope, RescaleIntercept=-100)  # fmt: skip
        wanted = scaled(array * float(slope) - 100, percentile, array * float(slope) - 100)
        wanted = 255 - wanted if photometric == "MONOCHROME1" else wanted
        assert np.abs(levels(path, percentile) - wanted).max() <= 1
        assert np.ptp(levels(path)[60:, 60:]) < 180 < 240 < np.ptp(levels(path, percentile)[60:, 60:])

    def test_padding_is_not_among_the_pixels(self, tmp_path):
        array = np.where(INSIDE, TISSUE, 0).astype(np.uint16)
        path = write_dicom(tmp_path / "a.dcm", array, BitsStored=12, PixelPaddingValue=0)
        wanted = np.where(INSIDE, scaled(array, 1, array[INSIDE]), 0)
        assert np.abs(levels(path, 1) - wanted).max() <= 1

    @pytest.mark.parametrize("dtype", ["float32", "int32", "int16", "float64"])
    def test_of_other_numbers(self, dtype, tmp_path):
        array = (with_outliers(TISSUE).astype(dtype) - 2000).astype(dtype)
        wanted = scaled(array, 0.5, array)
        np.testing.assert_allclose(to_uint8(array, 0.5).astype(float), wanted, atol=1)
        if dtype == "float32":
            Image.fromarray(array).save(tmp_path / "a.tiff")
            np.testing.assert_allclose(levels(tmp_path / "a.tiff", 0.5), wanted, atol=1)

    def test_what_is_not_scaled_from_its_own_range_keeps_its_values(self, tmp_path):
        grey = (TISSUE // 16).astype(np.uint8)
        Image.fromarray(TISSUE).save(tmp_path / "deep.png")
        Image.fromarray(grey).save(tmp_path / "grey.png")
        write_dicom(tmp_path / "grey.dcm", grey)
        write_dicom(tmp_path / "window.dcm", TISSUE, BitsStored=12, WindowCenter=1500, WindowWidth=400)
        for name, voi_lut in (("deep.png", False), ("grey.png", False), ("grey.dcm", False), ("window.dcm", True)):
            path = tmp_path / name
            np.testing.assert_array_equal(levels(path, 5, voi_lut=voi_lut), levels(path, voi_lut=voi_lut))
        raw = read_image(tmp_path / "window.dcm", range_percentile=5, return_raw=True)
        np.testing.assert_array_equal(raw, TISSUE)

    @pytest.mark.parametrize("percentile", [-1, 50, float("nan")])
    def test_no_percentile_is_refused_by_name(self, percentile, tmp_path):
        Image.fromarray(TISSUE).save(tmp_path / "a.png")
        for call in (lambda: read_image(tmp_path / "a.png", range_percentile=percentile),
                     lambda: Reading("L", False, percentile)):  # fmt: skip
            with pytest.raises(ValueError, match="range_percentile must be at least 0"):
                call()


def jpeg_2000(path, loss):
    """The file compressed with loss by Pillow."""
    dataset = pydicom.dcmread(path)
    data = io.BytesIO()
    Image.fromarray(dataset.pixel_array).save(data, "JPEG2000", irreversible=True, quality_layers=[loss])
    stream = data.getvalue()
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEG2000
    dataset.LossyImageCompression = "01"
    dataset.save_as(path)


def jpeg(path, loss):
    """The upper 8 bits, compressed with loss by Pillow; the rescale gives them the size of 12 bits."""
    array, dataset = pydicom.dcmread(path).pixel_array, pydicom.dcmread(path)
    tags = {"PixelPaddingValue": dataset.PixelPaddingValue // 16, "RescaleSlope": 16, "RescaleIntercept": 0}
    write_jpeg_dicom(
        path, (array // 16).astype(np.uint8), PhotometricInterpretation=dataset.PhotometricInterpretation, **tags
    )


class TestSmearedPadding:
    @pytest.mark.parametrize(("compress", "loss"), [(jpeg_2000, 10), (jpeg_2000, 30), (jpeg, None)])
    @pytest.mark.parametrize("value", [0, 4095])
    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_tissue_comes_out_as_of_the_file_without_loss(self, tmp_path, compress, loss, value, photometric, caplog,
                                                          monkeypatch):  # fmt: skip
        monkeypatch.setattr(dicom_values, "_counts", type(dicom_values._counts)())
        path = write_dicom(tmp_path / "a.dcm", np.where(INSIDE, TISSUE, value).astype(np.uint16), BitsStored=12,
                           PixelPaddingValue=value, PhotometricInterpretation=photometric)  # fmt: skip
        whole = {percentile: levels(path, percentile) for percentile in (0, 0.1, 0.5)}
        compress(path, loss)
        apart = np.zeros_like(INSIDE)
        apart[29:222, 43:193] = True  # a block of JPEG away from the padding
        assert np.abs(levels(path) - whole[0])[apart].mean() > 30
        assert "range_percentile=0.1" in caplog.text
        caplog.clear()
        for percentile in (0.1, 0.5):
            found = levels(path, percentile)[apart]
            assert np.abs(found - whole[percentile][apart]).mean() < 6
            wanted = scaled(TISSUE, percentile, TISSUE[apart])[apart]
            off = np.abs(found - (255 - wanted if photometric == "MONOCHROME1" else wanted))
            assert off.mean() < 2
            assert np.quantile(off, 0.99) < 8
        # What was padding is black, and so it stays.
        outer = np.ones_like(INSIDE)
        outer[11:240, 25:211] = False
        assert levels(path, 0.1)[outer].max() == 0
        assert not caplog.records

    def test_a_percentile_of_all_pixels_would_not_do(self, tmp_path):
        path = write_dicom(tmp_path / "a.dcm", np.where(INSIDE, TISSUE, 0).astype(np.uint16), BitsStored=12,
                           PixelPaddingValue=0)  # fmt: skip
        whole = levels(path, 0.5)
        jpeg_2000(path, 10)
        stored = pydicom.dcmread(path).pixel_array.astype(float)
        assert np.abs(scaled(stored, 0.5, stored[stored != 0]) - whole)[INSIDE].mean() > 30

    def test_all_of_a_padding_range_is_padding(self, tmp_path):
        array = np.where(INSIDE, TISSUE, 0).astype(np.uint16)
        array[:, 201:], array[21:230, 200] = 300, 310  # the range's other end, and a smeared edge beside it
        path = write_dicom(tmp_path / "a.dcm", array, BitsStored=12, PixelPaddingValue=0, PixelPaddingRangeLimit=300,
                           LossyImageCompression="01")  # fmt: skip
        apart = np.zeros_like(INSIDE)
        apart[29:222, 43:193] = True
        wanted = scaled(TISSUE, 0.5, TISSUE[apart])
        assert np.abs(levels(path, 0.5) - wanted)[apart].max() <= 1
        assert levels(path, 0.5)[:, 201:].max() == 0

    def test_a_bright_edge_beside_dark_padding_is_no_smear(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(dicom_values, "_counts", type(dicom_values._counts)())
        array = np.where(INSIDE, TISSUE, 0).astype(np.uint16)
        array[21:230, 35:39] = 4000
        path = write_dicom(tmp_path / "a.dcm", array, BitsStored=12, PixelPaddingValue=0, LossyImageCompression="01")
        levels(path)
        assert not caplog.records
        assert np.abs(levels(path, 0.1) - scaled(array, 0.1, array[INSIDE]))[INSIDE].max() <= 1

    def test_a_file_without_loss_keeps_its_pixels_beside_padding(self, tmp_path):
        """Only what compression may have smeared is left out: else dark tissue at the edge would be."""
        array = np.where(INSIDE, TISSUE, 0).astype(np.uint16)
        array[21:24, 35:201] = 200
        path = write_dicom(tmp_path / "a.dcm", array, BitsStored=12, PixelPaddingValue=0)
        wanted = scaled(array, 0.1, array[INSIDE])
        assert np.abs(levels(path, 0.1) - wanted)[INSIDE].max() <= 1


@pytest.fixture
def table(tmp_path):
    rows = ["image,text,split\n"]
    for number, split in enumerate(("train", "train", "val", "val", "test", "test")):
        write_dicom(tmp_path / f"{number}.dcm", with_outliers(np.roll(TISSUE, 40 * number, axis=0)), BitsStored=12)
        rows.append(f"{number}.dcm,finding {number},{split}\n")
    path = tmp_path / "pairs.csv"
    path.write_text("".join(rows))
    return path


class TestOneReading:
    def test_adds_to_keys_and_specs_only_where_it_is_set(self):
        assert Reading("L", False, 0.0).key == {}
        assert Reading("L", False, 1).key == {"range_percentile": 1.0}
        assert "range_percentile" not in Reading().in_spec({"range_percentile": 0.5})
        reading = Reading("RGB", True, 0.5)
        spec = reading.in_spec({"preset": "lite0"})
        assert Reading.of_spec(spec) == Reading.of_spec(json.loads(json.dumps(spec))) == reading
        assert reading.label == "RGB, voi_lut, range_percentile=0.5"

    def test_rows_caches_and_stores_follow(self, table, tiny_dinov2, tmp_path):
        plain, robust = load_pairs(table), load_pairs(table, range_percentile=0.5)
        path = tmp_path / "0.dcm"
        assert robust[0]["image"] == read_image(path, range_percentile=0.5) != plain[0]["image"]
        robust.save_to_disk(tmp_path / "saved")
        assert load_pairs(tmp_path / "saved").features["image"].range_percentile == 0.5

        def build(pairs, **options):
            return build_cache(pairs, tiny_dinov2, None, tmp_path / "cache", num_workers=0, dtype="float32", **options)

        store = {"image_store": tmp_path / "store", "image_store_size": 64}
        caches = [build(pairs, **options) for options in ({}, store) for pairs in (plain, robust)]
        assert len({cache.manifest["images"] for cache in caches}) == 4
        assert [cache.vision_spec.get("range_percentile") for cache in caches] == [None, 0.5, None, 0.5]
        rows = [cache.image_embeddings() for cache in caches]
        for one, other in ((0, 2), (1, 3)):
            assert (rows[one] - rows[other]).abs().max() < 0.2 * (rows[0] - rows[1]).abs().max()
        processor = processor_of_tower(caches[1].vision_spec)
        assert processor.range_percentile == 0.5
        processor.save_pretrained(tmp_path / "processor")
        again = AdaptorImageProcessor.from_pretrained(tmp_path / "processor")
        fields = caches[1].vision_spec["image_processor"]
        wanted = AdaptorImageProcessor(**fields)(read_image(path, range_percentile=0.5), return_tensors="np")
        np.testing.assert_array_equal(again(str(path), return_tensors="np").pixel_values, wanted.pixel_values)

    def test_a_run_says_so_and_is_evaluated_so(self, table, tiny_dinov2, tiny_bert, tmp_path, caplog):
        output = tmp_path / "model"
        train_pretrain.main([
            "--train_file", str(table), "--range_percentile", "0.5", "--vision_tower", str(tiny_dinov2),
            "--text_tower", str(tiny_bert), "--output_dir", str(output), "--aligner",
            '{"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}',
            "--global_batch_size", "2", "--num_train_epochs", "1", "--use_cpu",
        ])  # fmt: skip
        assert json.loads((output / "config.json").read_text())["vision_tower"]["range_percentile"] == 0.5
        assert json.loads((output / "run.json").read_text())["inputs"]["reading"]["range_percentile"] == 0.5
        assert "read_image(path, range_percentile=0.5)" in (output / "README.md").read_text()
        model = AdaptorModel.from_pretrained(output, load_towers=True)
        assert model.vision_model.processor.range_percentile == 0.5
        words = ["--task", "retrieval", "--model", str(output), "--table", str(table), "--text_column", "text",
                 "--device", "cpu", "--num_resamples", "10", "--controls", "none", "--output_dir",
                 str(tmp_path / "scores")]  # fmt: skip
        with caplog.at_level(logging.INFO):
            train_downstream.main(words)
        assert "range_percentile is 0.5, as in the training" in caplog.text
        assert newest_cache(tmp_path / "scores" / "embeddings").vision_spec["range_percentile"] == 0.5
        train_downstream.main([*words, "--range_percentile", "0"])
        assert "range_percentile" not in newest_cache(tmp_path / "scores" / "embeddings").vision_spec
