"""Folders of class folders: what is an image, a class, a split or a patient; all else is refused or counted."""

import itertools
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.dicom import write_dicom
from PIL import Image

from adaptor_hf.data.__main__ import main
from adaptor_hf.data.check_table import check_table, format_table_check
from adaptor_hf.data.image_folders import read_class_folders
from adaptor_hf.data.table_files import read_unlabelled
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.privacy.messages import hide
from adaptor_hf.tasks.data import labelled_data, load_table, split_table

shades = itertools.count()


def picture(path):
    """A picture unlike any other of this run; DICOM where the name says so or has no ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(shades)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8)).astype(np.uint8)
    if path.suffix in ("", ".dcm", ".113", ".114"):
        write_dicom(path, pixels.astype(np.uint16))
    else:
        Image.fromarray(pixels).save(path)


def plant(root, *paths):
    for path in paths:
        picture(root / path)
    return root


def several(*folders, count=2):
    return [f"{folder}/{number}.png" for folder in folders for number in range(count)]


def rows_of(root, **options):
    """Relative path, class and split of each row."""
    table = load_table(root, image_mode="L", **options)
    paths = [value["path"] for value in table.select_columns(["image"]).with_format("arrow")[:]["image"].to_pylist()]
    names = getattr(table.features["labels"], "names", None)
    classes = [names[label] if label >= 0 else None for label in table["labels"][:]]
    return [
        (os.path.relpath(path, root), label, split)
        for path, label, split in zip(paths, classes, table["split"][:], strict=True)
    ]


def test_a_class_is_a_folder_and_every_image_in_it_a_row(tmp_path):
    paths = several("no finding", "[a]*? ö 心", "mass")
    rows = rows_of(plant(tmp_path / "a [b] *", *paths))
    assert rows == sorted((path, path.partition("/")[0], None) for path in paths)
    # The names of classes are sorted, and each row opens its own file.
    table = load_table(tmp_path / "a [b] *", image_mode="L")
    assert table.features["labels"].names == ["[a]*? ö 心", "mass", "no finding"]
    for row, (path, _, _) in zip(table, rows, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(tmp_path / "a [b] *" / path)))
        assert row["image_id"] == path


def test_names_with_outer_spaces_are_found(tmp_path):
    plant(tmp_path, " ill/ 1.png", " ill/2.png", "well/ 1.png", "well/2.png")
    os.rename(tmp_path / "well" / "2.png", tmp_path / "well" / "2.png ")
    table = load_table(tmp_path, image_mode="L")
    assert [row["image"].size for row in table] == [(8, 8)] * 4
    assert table.features["labels"].names == ["ill", "well"]


@pytest.mark.parametrize(
    "names",
    [("train", "test"), ("Train", "Val", "TEST"), ("Training", "valid", "testing"), ("training ", "DEV", "Test")],
)
def test_folders_of_splits_are_known_in_any_spelling(tmp_path, names):
    meaning = {"t": "train", "v": "validation", "d": "validation"}
    paths = several(*(f"{split}/{name}" for split in names for name in ("ill", "well")))
    expected = {path: "test" if path.lower().startswith("test") else meaning[path[0].lower()] for path in paths}
    rows = rows_of(plant(tmp_path, *paths))
    assert {path: split for path, _, split in rows} == expected
    assert all(label == path.split("/")[1] for path, label, _ in rows)


def test_names_of_files_decide_no_split(tmp_path):
    plant(tmp_path, "ill/test_01.png", "ill/a.png", "well/train-2.png", "well/val.png")
    assert [split for _, _, split in rows_of(tmp_path)] == [None] * 4


@pytest.mark.parametrize("names", [("test", "control"), ("train", "test", "extra"), ("Valid", "invalid")])
def test_a_folder_called_as_a_split_beside_others_is_refused(tmp_path, names):
    plant(tmp_path, *several(*names), *several(*(f"{name}/ill" for name in names)))
    with pytest.raises(ValueError, match=r"called as a split is.*rename.*metadata\.csv"):
        load_table(tmp_path)


def test_splits_without_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="4 images lie in the folders of splits itself and none in folders of classes"):
        load_table(plant(tmp_path, *several("train", "test")))


def test_splits_above_or_below_the_classes_are_named(tmp_path):
    plant(tmp_path / "below", *several("ill/train", "ill/test", "well/train", "well/test"))
    plant(tmp_path / "wrapped", *several("data/train/ill", "data/train/well", "data/test/ill", "data/test/well"))
    for name in ("below", "wrapped"):
        with pytest.raises(ValueError, match="called as splits are lie 1 levels down"):
            load_table(tmp_path / name)
    assert {split for _, _, split in rows_of(tmp_path / "wrapped" / "data")} == {"train", "test"}


@pytest.mark.parametrize(
    ("images", "masks", "classes"),
    [
        (("ill/images", "well/images"), ("ill/masks", "well/masks"), ["ill", "well"]),
        (("ill/Images", "well/Images"), ("ill/lung masks", "well/Mask"), ["ill", "well"]),
        (("ill", "well"), ("ill/masks", "well/masks"), ["ill", "well"]),
        (("images/ill", "images/well"), ("masks/ill", "masks/well"), ["ill", "well"]),
        (("train/ill/images", "train/well/images"), ("train/ill/segmentation",), ["ill", "well"]),
        (("train/images/ill", "train/images/well"), ("train/masks/ill",), ["ill", "well"]),
    ],
)
def test_folders_of_masks_are_no_classes_and_no_images(tmp_path, caplog, images, masks, classes):
    plant(tmp_path, *several(*images), *several(*masks, count=3))
    with caplog.at_level(logging.INFO):
        rows = rows_of(tmp_path)
    assert sorted(path for path, _, _ in rows) == sorted(several(*images))
    assert all(label in Path(path).parts for path, label, _ in rows)
    assert {label for _, label, _ in rows} == set(classes)
    assert "have no image" not in caplog.text
    assert f"{3 * len(masks)} masks, by the name of their folder" in caplog.text


def test_masks_beside_their_images_are_no_images(tmp_path, caplog):
    plant(tmp_path, "benign/b (1).png", "benign/b (1)_mask.png", "benign/b (1)_mask_1.png", "normal/n-seg.png",
          "normal/n.png", "normal/only_mask.png")  # fmt: skip
    with caplog.at_level(logging.INFO):
        rows = rows_of(tmp_path)
    assert [path for path, _, _ in rows] == ["benign/b (1).png", "normal/n.png", "normal/only_mask.png"]
    assert "3 masks, by their name beside an image's" in caplog.text


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("images", "masks"), "none is a class.*--mask_column mask"),
        (("train/images", "train/masks"), "none is a class.*--mask_column mask"),
        (("ill", "well", "masks"), "'masks' is called as folders of images or masks are, and would be 1 of 3 classes"),
        (("ill", "images", "masks"), "'images', 'masks' are called.*2 of 3 classes"),
    ],
)
def test_masks_at_the_level_of_the_classes_are_refused(tmp_path, folders, message):
    plant(tmp_path, *several(*folders))
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path)


def test_a_class_of_masks_alone_is_said_to_be_empty(tmp_path):
    plant(tmp_path, *several("ill/masks", "well/images"))
    (told,) = read_class_folders(tmp_path).warnings
    assert told == "1 folders at the level of the classes have no image and are no classes."
    with pytest.raises(ValueError, match="all 2 images lie in folders called as masks are"):
        load_table(plant(tmp_path / "x", *several("ill/masks")))


def test_classes_of_masks_worn_are_classes(tmp_path):
    assert {label for _, label, _ in rows_of(plant(tmp_path, *several("with_mask", "no mask")))} == {
        "with_mask", "no mask",
    }  # fmt: skip


def test_a_level_below_the_classes_is_a_patient_only_where_that_is_said(tmp_path):
    plant(tmp_path, *several("ill/p1", "ill/p2", "well/p3"), "well/p4/0.png")
    with pytest.raises(ValueError, match=r"4 folders with 1 to 2 images each.*--patient_column subfolder"):
        load_table(tmp_path)
    table = load_table(tmp_path, image_mode="L", patient_column="subfolder")
    assert table["patient_id"][:] == ["p1", "p1", "p2", "p2", "p3", "p3", "p4"]
    assert table.features["labels"].names == ["ill", "well"]
    assert load_table(tmp_path, image_mode="L", study_column="subfolder")["study_id"][0] == "p1"
    parts, _ = split_table(table)
    patients = [set(part["patient_id"][:]) for part in parts.values()]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 4
    with pytest.raises(ValueError, match=r"one class folder: if the classes are the level below, name that folder"):
        load_table(plant(tmp_path / "x", *several("data/ill", "data/well")))


def test_a_patient_on_both_sides_of_given_splits_is_found(tmp_path):
    plant(tmp_path, *several("train/ill/p1", "train/well/p2", "val/ill/p4", "val/well/p5", "test/ill/p1",
                               "test/well/p3"))  # fmt: skip
    with pytest.raises(ValueError, match="1 in both train and test"):
        split_table(load_table(tmp_path, patient_column="subfolder"))


def test_the_same_subfolder_in_several_classes_is_said(tmp_path):
    plant(tmp_path, *several("ill/1", "well/1", "well/2"))
    assert any("1 of 2 names of folders" in said for said in read_class_folders(tmp_path).warnings)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (several("ill", "well/p1"), "mixed depths: images are 2 with 1 folders above them, 2 with 2"),
        (several("train/ill", "test/ill/p1", "train/well"), "mixed depths below the splits: images are 4 with 1"),
        (several("ill/p1/s1/v1", "well/p1/s1/v1"), "lie 3 levels below their class folders"),
        (["0.png", "1.png", *several("ill", "well")], "mixed depths: 2 images lie in the folder itself, 4 in folders"),
        ([*several("train", "train/ill", "train/well")], "mixed depths: 2 images lie in the folders of splits itself"),
    ],
)
def test_mixed_and_great_depths_are_refused_with_counts(tmp_path, paths, message):
    with pytest.raises(ValueError, match=message):
        load_table(plant(tmp_path, *paths))


def test_other_files_are_passed_over_and_counted_in_one_line(tmp_path, caplog):
    plant(tmp_path, *several("ill", "well"), "stray.png")
    for name in ("README.md", "ill/Thumbs.db", "ill/.DS_Store", "well/._0.png", ".hidden.png", "labels.csv", "notes",
                 "well/DICOMDIR"):  # fmt: skip
        (tmp_path / name).write_bytes(b"nothing")
    plant(tmp_path, "__MACOSX/ill/0.png", ".cache/ill/0.png", "@eaDir/ill/0.png")
    (tmp_path / "docs").mkdir()
    os.symlink(tmp_path, tmp_path / "ill" / "loop")
    os.symlink(tmp_path / "gone", tmp_path / "ill" / "broken.png")
    with caplog.at_level(logging.INFO):
        rows = rows_of(tmp_path)
    assert [path for path, _, _ in rows] == several("ill", "well")
    lines = [line.getMessage() for line in caplog.records if "passed over" in line.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("Class folders: 2 classes, 4 images (4 PNG); passed over:")
    for count in ("5 hidden or of the system", "3 folders hidden or of the system", "2 links", "2 other files",
                  "1 tables", "1 images in no class folder"):  # fmt: skip
        assert count in lines[0]
    assert "1 folders at the level of the classes have no image" in caplog.text


def test_a_linked_class_folder_is_read(tmp_path):
    plant(tmp_path / "store", *several("a"))
    plant(tmp_path / "set", *several("well"))
    os.symlink(tmp_path / "store" / "a", tmp_path / "set" / "ill")
    assert len(rows_of(tmp_path / "set")) == 4


def test_every_format_is_read_and_a_format_that_tells_the_class_is_said(tmp_path, caplog):
    names = ["1.png", "2.dcm", "3", "1.2.840.113", "1.2.840.114", "4.tif", "5.webp", "6.bmp", "7.jfif", "8.pgm"]
    plant(tmp_path / "mixed", *(f"{label}/{name}" for label in ("ill", "well") for name in names))
    with caplog.at_level(logging.INFO):
        table = load_table(tmp_path / "mixed", image_mode="L")
    assert len(table) == 2 * len(names)
    assert all(row["image"].size == (8, 8) for row in table)
    assert "8 DICOM" in caplog.text
    assert not any(line.levelno >= logging.WARNING for line in caplog.records if "Class" in line.getMessage())
    assert read_class_folders(tmp_path / "mixed").warnings == []
    plant(tmp_path / "apart", *(f"ill/{n}.png" for n in range(3)), *(f"well/{n}.dcm" for n in range(3)))
    (told,) = read_class_folders(tmp_path / "apart").warnings
    assert "The file format tells the class of most images ('ill' 3 PNG; 'well' 3 DICOM)" in told


def test_one_picture_in_two_formats_is_said(tmp_path):
    plant(tmp_path, *several("ill", "well"), "ill/0.tif", "well/0.tif")
    (told,) = read_class_folders(tmp_path).warnings
    assert told.startswith("2 images have the name of another in their folder but for the ending")


def test_classes_in_formats_that_are_not_read_are_no_silent_loss(tmp_path):
    plant(tmp_path, *several("ill", "well"))
    (tmp_path / "third").mkdir()
    for name in ("third/a.nii.gz", "third/b.heic", "well/c.heic"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"1 class folders hold no image but files.*2 \.heic, 1 \.nii\.gz"):
        load_table(tmp_path)
    shutil.rmtree(tmp_path / "third")
    assert read_class_folders(tmp_path).warnings == ["1 files in class folders are not read: 1 .heic."]
    (tmp_path / "none" / "ill").mkdir(parents=True)
    (tmp_path / "none" / "ill" / "a.nrrd").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"formats that are not read: 1 \.nrrd"):
        load_table(tmp_path / "none")


def test_a_split_that_lacks_a_class_is_refused(tmp_path):
    plant(tmp_path, *several("train/ill", "train/well", "test/ill"))
    (tmp_path / "test" / "well").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"the split test has no image of 1 of 2 classes: 'well'"):
        load_table(tmp_path)
    plant(tmp_path, "test/well/0.png", "train/nan/0.png")
    assert "1 folders of splits have no image." in read_class_folders(tmp_path).warnings
    plant(tmp_path, *several("testing/ill", "testing/well"))
    assert "Several folders are one split: 'test', 'testing', 'train'." in read_class_folders(tmp_path).warnings


def test_copies_in_two_classes_are_refused_and_equal_names_are_not(tmp_path):
    plant(tmp_path, *several("ill", "well", count=3))
    assert len(rows_of(tmp_path)) == 6
    shutil.copy(tmp_path / "ill" / "1.png", tmp_path / "well" / "9.png")
    with pytest.raises(ValueError, match=r"1 images are byte copies of an image in another class.*data rows 1 and 6"):
        load_table(tmp_path)
    assert check_table(tmp_path)["stops"][0].startswith("1 images are byte copies")
    # No contradiction: copies within a class, without a label, or where one of the two is filtered out.
    assert len(rows_of(tmp_path, filters=["label=well"])) == 4
    shutil.move(tmp_path / "well" / "9.png", tmp_path / "ill" / "9.png")
    plant(tmp_path, "none/1.png")
    shutil.copy(tmp_path / "ill" / "1.png", tmp_path / "none" / "9.png")
    assert len(rows_of(tmp_path)) == 9


def test_copies_are_told_from_files_that_only_begin_alike(tmp_path):
    for name, end in (("ill", b"a"), ("well", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(bytes(10_000) + end)
    assert read_class_folders(tmp_path).copies() == []
    (tmp_path / "well" / "0.png").write_bytes(bytes(10_000) + b"a")
    assert read_class_folders(tmp_path).copies() == [(0, 1)]


def test_rules_on_labels_hold_for_folders(tmp_path, caplog):
    plant(tmp_path / "spelled", *several("Effusion", "effusion", "edema"))
    with pytest.raises(ValueError, match=r"'Effusion' 2, 'effusion' 2.*--label_spelling merge"):
        load_table(tmp_path / "spelled")
    assert len({label for _, label, _ in rows_of(tmp_path / "spelled", label_spelling="merge")}) == 2
    plant(tmp_path / "splits", *several("train/Effusion", "train/edema", "test/effusion", "test/edema"))
    with pytest.raises(ValueError, match="--label_spelling merge"):
        load_table(tmp_path / "splits")
    plant(tmp_path / "words", *several("nan", "unknown", "ill", "well"))
    with caplog.at_level(logging.WARNING):
        rows = rows_of(tmp_path / "words")
    assert [label for path, label, _ in rows if path.startswith("nan/")] == [None, None]
    assert {label for _, label, _ in rows} == {None, "unknown", "ill", "well"}
    assert "'nan' (2 images) is called by a word for a missing value" in caplog.text
    assert "'unknown' (2 images) is a class of its own, unless --missing_word unknown" in caplog.text
    rows = rows_of(tmp_path / "words", missing_words=["unknown"])
    assert {label for _, label, _ in rows} == {None, "ill", "well"}


def test_the_positive_class_is_that_of_tables(tmp_path):
    parts, split_hash = split_table(load_table(plant(tmp_path, *several("normal", "Pneumonia", count=10))))
    data = labelled_data("folders", parts, split_hash)
    assert data.positive_class == "Pneumonia"
    for part, labels in data.labels.items():
        expected = [name.startswith("Pneumonia") for name in data.parts[part]["image_id"][:]]
        assert (labels[:, 0] == 1).tolist() == expected


def test_names_that_are_no_unicode_are_refused(tmp_path):
    plant(tmp_path, *several("ill", "well"))
    try:
        os.rename(os.fsencode(tmp_path / "ill" / "0.png"), os.fsencode(tmp_path / "ill") + b"/\xff.png")
    except OSError:
        pytest.skip("this file system has Unicode names only")
    with pytest.raises(ValueError, match="the paths of 1 images are no Unicode"):
        load_table(tmp_path)


def test_reports_are_not_looked_for_in_class_folders(tmp_path):
    plant(tmp_path, *several("ill", "well"))
    with pytest.raises(ValueError, match=r"a folder of 2 class folders has no reports.*file_name and text"):
        load_pairs(tmp_path)
    assert load_pairs(tmp_path, text_column=None)["text"][:] == [None] * 4


def test_data_check_says_what_a_folder_holds(tmp_path, capsys):
    plant(tmp_path / "set", *several("SMITH/images", "normal/images"), *several("SMITH/masks"), "normal/images/0.dcm")
    (tmp_path / "set" / "README").write_text("x")
    result = check_table(tmp_path / "set")
    assert result["folder"] == {
        "classes": 2, "images": 5, "subfolders": 0, "formats": {"PNG": 4, "DICOM": 1},
        "ignored": {"masks, by the name of their folder": 2, "other files that are no images": 1},
    }  # fmt: skip
    assert result["rows"] == 5
    assert "Class folders: 2 classes, 5 images (4 PNG, 1 DICOM)" in format_table_check(result)
    report = tmp_path / "report.json"
    assert main(["check", "--table", str(tmp_path / "set"), "--json", str(report)]) == 0
    assert json.loads(report.read_text())["folder"] == result["folder"]
    plant(tmp_path / "set", *several("SMITH/images/p1"))
    assert main(["check", "--table", str(tmp_path / "set")]) == 2
    assert "mixed depths" in capsys.readouterr().err


@pytest.mark.parametrize(
    "paths",
    [
        several("SMITH", "test"),
        several("SMITH", "JONES/SMITH"),
        several("SMITH/JONES", "JONES/SMITH"),
        several("SMITH", "JONES", "masks"),
        several("train/SMITH", "train/JONES", "test/JONES"),
        several("SMITH", "smith"),
        [*several("SMITH", "unknown"), "SMITH/0.dcm", "JONES/SMITH.dcm"],
    ],
)
def test_no_message_lets_a_name_out_in_private_mode(tmp_path, caplog, paths):
    plant(tmp_path, *paths)
    said = ""
    with caplog.at_level(logging.INFO):
        try:
            load_table(tmp_path, image_mode="L")
        except ValueError as error:
            said = str(error)
    assert any(name in (said + caplog.text).upper() for name in ("SMITH", "JONES", str(tmp_path).upper()))
    hidden = hide(said + "\n".join(line.getMessage() for line in caplog.records)).upper()
    assert not any(name in hidden for name in ("SMITH", "JONES", str(tmp_path).upper()))


def test_metadata_files_and_the_folder_are_compared(tmp_path, caplog):
    plant(tmp_path, *several("images", count=4), "masks/0.png", "images/loose.dcm")
    rows = "file_name,text,mask\n" + "".join(f"images/{n}.png,clear,masks/{n}.png\n" for n in (0, 1, 8, 9))
    (tmp_path / "metadata.csv").write_text(rows)
    with caplog.at_level(logging.WARNING):
        assert len(load_pairs(tmp_path, image_mode="L")) == 4
    assert "2 of 4 rows of the folder's metadata name a file that is not there, or no regular one;" in caplog.text
    assert "3 image files in the folder are named by no row" in caplog.text
    result = check_table(tmp_path, image_mode="L")
    assert result["metadata"] == {"rows_without_file": 2, "images_not_listed": 3}
    assert "folder: 3 images not listed" in format_table_check(result)


def test_blank_rows_of_metadata_are_not_counted(tmp_path, caplog):
    plant(tmp_path, *several("images"))
    (tmp_path / "metadata.csv").write_text("file_name,text\nimages/0.png,clear\n,\n")
    with caplog.at_level(logging.WARNING):
        load_pairs(tmp_path, image_mode="L")
    assert "0 of 1 rows of the folder's metadata" in caplog.text


def test_metadata_may_be_a_workbook(tmp_path):
    import openpyxl

    plant(tmp_path, *several("images"))
    book = openpyxl.Workbook()
    for row in (["file_name", "text"], ["images/1.png", "clear"]):
        book.active.append(row)
    book.save(tmp_path / "metadata.xlsx")
    pairs = load_pairs(tmp_path, image_mode="L")
    assert (pairs["image_id"][:], pairs["text"][:]) == (["images/1.png"], ["clear"])


def test_of_what_is_to_be_predicted_every_image_of_a_folder_is_a_row(tmp_path, caplog):
    plant(tmp_path, "a.png", "test/b.dcm", "x/y/z/c.png")
    (tmp_path / "notes.txt").write_text("x")
    with caplog.at_level(logging.INFO):
        source = read_unlabelled(tmp_path, "image")
    assert "3 images under the folder; passed over: 1 other files" in caplog.text
    table = load_table(source, image_mode="L", text_column=None)
    assert table["image_id"][:] == ["a.png", "test/b.dcm", "x/y/z/c.png"]
    assert [picture["image"].size for picture in table] == [(8, 8)] * 3
    (tmp_path / "metadata.csv").write_text("file_name\na.png\n")
    assert len(read_unlabelled(tmp_path, "file_name").table) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in this folder"):
        read_unlabelled(tmp_path / "empty", "image")


def test_metadata_in_folders_of_splits_is_compared_too(tmp_path, caplog):
    plant(tmp_path, *several("Train", "val"))
    for split in ("Train", "val"):
        (tmp_path / split / "metadata.csv").write_text("file_name,text\n0.png,clear\n")
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(tmp_path, image_mode="L")
    assert pairs["split"][:] == ["train", "validation"]
    assert "0 of 2 rows of the folder's metadata name a file that is not there" in caplog.text
    assert "2 image files in the folder are named by no row" in caplog.text
