"""Tables that write one id, or one image's path, in several ways."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from adaptor_hf.data.split_rule import SplitRule
from adaptor_hf.data.splits import assign_splits
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.tasks.data import load_table, split_table

N = 60
SPELLINGS = {
    "case": (lambda i: f"P{i}", lambda i: f"p{i}"),
    "leading zeros": (lambda i: f"{i:07d}", str),
    "Unicode form": (lambda i: f"M\u00fc{i}", lambda i: unicodedata.normalize("NFD", f"M\u00fc{i}")),
    "invisible characters": (lambda i: f"P\u200b{i}", lambda i: f"P{i}"),
}


def write(folder, lines, header="image,text,patient_id"):
    path = folder / "t.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def torn(data, patient_of):
    """Number of patients in several splits."""
    splits: dict = {}
    for name, split in zip(data["patient_id"], data["split"], strict=True):
        splits.setdefault(patient_of(name), set()).add(split)
    return sum(len(found) > 1 for found in splits.values())


@pytest.mark.parametrize("kind", SPELLINGS)
@pytest.mark.parametrize("column", ["patient_id", "study_id", "image_id"])
def test_ids_in_two_spellings_stop_until_it_is_said_what_they_are(kind, column, tmp_path):
    first, second = SPELLINGS[kind]
    lines = [f"{name(i)}{place}.png,r,{spell(i)}" for i in range(1, N + 1)
             for place, (name, spell) in enumerate(((str, first), (str, second)))]  # fmt: skip
    path = write(tmp_path, lines, f"image,text,{column}")
    with pytest.raises(ValueError, match=rf"^{column}: {N} ids .*\({N} by {kind}\): data rows 0 and 1, 2 and 3"):
        load_pairs(path)
    apart, merged = load_pairs(path, ids="exact"), load_pairs(path, ids="canonical")
    assert len(set(apart[column])) == 2 * N
    assert len(set(merged[column])) == N
    assert set(merged[column]) <= set(apart[column])
    if column == "patient_id":
        shares = {"validation_fraction": 0.3, "test_fraction": 0.3}
        number = lambda name: int("".join(filter(str.isdecimal, name)))  # noqa: E731
        assert torn(assign_splits(merged, **shares), number) == 0
        assert torn(assign_splits(apart, **shares, ids="exact"), number) > N / 4
        parts, _ = split_table(load_table(path, ids="canonical"), SplitRule(**shares))
        assert sum(len({number(name) for name in part["patient_id"]}) for part in parts.values()) == N


def test_a_point_nought_goes_where_the_column_has_the_number_itself_whatever_else_is_in_it(tmp_path):
    lines = [f"{i}a.png,r,{i}.0\n{i}b.png,s,{i}" for i in range(1, N + 1)]
    data = assign_splits(load_pairs(write(tmp_path, [*lines, "x.png,t,A17", "y.png,t,99.0"])))
    assert torn(data.select(range(2 * N)), str) == 0
    assert data["patient_id"][2 * N :] == ["A17", "99.0"]
    assert load_pairs(tmp_path / "t.csv", ids="exact")["patient_id"][:2] == ["1.0", "1"]


def test_spellings_that_decide_no_split_are_a_warning(tmp_path, caplog):
    path = write(tmp_path, ["a.png,x,1,s1", "b.png,y,2,S1"], "image,text,patient_id,study_id")
    assert load_pairs(path)["study_id"][:] == ["s1", "S1"]
    assert "study_id: 1 ids are written in several ways (1 by case): data rows 0 and 1" in caplog.text


def test_loose_forms_warn_and_a_healthy_table_does_not(tmp_path, caplog):
    assert load_pairs(write(tmp_path, ["a.png,x,p-7", "b.png,y,P7"]))["patient_id"][:] == ["p-7", "P7"]
    assert "1 ids differ from others by spaces or punctuation alone" in caplog.text
    caplog.clear()
    names = ["P1", "P10", "A1", "B1", "1-12", "11-2", "12e4", ""]
    load_pairs(write(tmp_path, [f"{i}.png,x,{name}" for i, name in enumerate(names)]))
    assert caplog.text == ""


@pytest.mark.parametrize("mode", [None, "exact", "canonical"])
def test_ids_that_lost_digits_stop_the_load(mode, tmp_path):
    path = write(tmp_path, ["a.png,x,7", "b.png,y,1.23457E+11", "c.png,z,1.23457E+11"])
    with pytest.raises(ValueError, match=r"patient_id: 2 cells are in scientific notation.*data rows 1, 2"):
        load_pairs(path, ids=mode)
    # Beyond 2^53 a float64 does not tell neighbours apart.
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "text": ["x", "y"], "patient_id": [7.0, 2.0**53]})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="too large to be exact in data row 1 "):
        load_pairs(tmp_path / "t.parquet", ids=mode)
    frame.assign(patient_id=[7.0, 2.0**53 - 1]).to_parquet(tmp_path / "t.parquet")
    assert load_pairs(tmp_path / "t.parquet", ids=mode)["patient_id"][:] == ["7", str(2**53 - 1)]


class TestPaths:
    @pytest.mark.parametrize("other", ["./im/{}.png", "im//{}.png", "im/./{}.png", "././im///{}.png"])
    def test_spellings_of_a_path_are_one_image_in_one_split(self, other, tmp_path):
        lines = [f"im/{i}.png,r{i}\n{other.format(i)},s{i}" for i in range(N)]
        data = assign_splits(load_pairs(write(tmp_path, lines, "image,text")), validation_fraction=0.3)
        assert data["image_id"][::2] == data["image_id"][1::2] == [f"im/{i}.png" for i in range(N)]
        assert data["split"][::2] == data["split"][1::2]

    def test_absolute_paths_under_the_root_are_the_same_images(self, tmp_path):
        lines = [f"im/1.png,r\n{tmp_path}//im/./1.png,s"]
        assert load_pairs(write(tmp_path, lines, "image,text"))["image_id"][:] == ["im/1.png"] * 2

    def test_names_that_differ_by_case_are_other_files(self, tmp_path, caplog):
        path = write(tmp_path, ["im/A.png,r", "im/a.png,s"], "image,text")
        assert load_pairs(path)["image_id"][:] == ["im/A.png", "im/a.png"]
        assert "several ways" not in caplog.text

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_a_file_opens_in_the_form_that_the_table_has_and_has_one_id(self, form, tmp_path):
        name = unicodedata.normalize(form, "M\u00fc.png")
        Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / name)
        data = load_pairs(write(tmp_path, [f"./{name},r"], "image,text"))
        assert data["image_id"][:] == [unicodedata.normalize("NFC", name)]
        assert np.asarray(data[0]["image"]).max() == 7
