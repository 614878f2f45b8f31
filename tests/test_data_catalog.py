"""A data set is one file: what it declares is what every list, page, check and split reads."""

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from fixtures.planted import planted_datasets
from PIL import Image

from adaptor_hf.data import describe, list_datasets, load_public_dataset
from adaptor_hf.data.__main__ import main
from adaptor_hf.data.catalog import (
    ROW_TASKS,
    LoadedRows,
    PublicDataset,
    dataset_names,
    get_dataset,
    share_images,
    with_same_images,
)
from adaptor_hf.data.dataset_pages import write_pages
from adaptor_hf.data.terms import check_consent, restricted_terms
from adaptor_hf.data.training_rows import id_namespaces
from adaptor_hf.tasks.provenance import disjoint_sets, tower_saw
from adaptor_hf.towers import list_towers

ROOT = Path(__file__).parents[1]
PLANTED = """
from ..catalog import LoadedRows, PublicDataset, Request
from ..files import read_table


def read(request: Request) -> LoadedRows:
    table = read_table(request.root, "labels.csv", columns=["file", "sick"])
    rows = table.rename(columns={"file": "image", "sick": "labels"}).astype({"labels": int})
    rows["image_id"] = rows["patient_id"] = rows["image"]
    return LoadedRows(rows, class_names=["well", "sick"], table_rows=len(rows))


DATASETS = (
    PublicDataset(
        name="planted_cxr", title="Planted", tasks=("classification",), expected_files="labels.csv",
        license="for this test only", homepage="https://example.org", tested="fixture", read=read,
        same_images=("chexpert",), patients_of="chexpert", pretraining_name="Planted CXR",
    ),
)
"""


@pytest.fixture
def plant(tmp_path):
    """Adds a file of this text to where data sets are looked for, until the test ends."""
    with ExitStack() as stack:
        yield lambda text: stack.enter_context(planted_datasets(tmp_path / "more", planted_cxr=text))


class TestANewFile:
    def test_is_listed_loaded_and_written_about(self, plant, tmp_path, capsys):
        before = dataset_names()
        plant(PLANTED)
        assert set(dataset_names()) - set(before) == {"planted_cxr"}
        assert [one.name for one in list_datasets()] == sorted(dataset_names())
        assert get_dataset("planted_cxr").title == "Planted"
        root = tmp_path / "planted"
        root.mkdir()
        for number in range(20):
            Image.new("L", (8, 8), number).save(root / f"{number}.png")
        lines = ["file,sick", *(f"{number}.png,{number % 2}" for number in range(20))]
        (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
        parts = load_public_dataset("planted_cxr", root, cache_dir=tmp_path / "cache")
        assert describe(parts)["rows"] == 20
        assert parts["train"].features["labels"].names == ["well", "sick"]
        assert main(["check", "planted_cxr", str(root)]) == 0
        assert main(["list"]) == 0
        assert "planted_cxr: Planted." in capsys.readouterr().out
        assert tmp_path / "planted_cxr.md" in write_pages(tmp_path)
        assert "| [`planted_cxr`](planted_cxr.md) | Planted |" in (tmp_path / "index.md").read_text()
        assert "(planted_cxr.md). A test across" in (tmp_path / "chexpert.md").read_text()

    def test_is_asked_about_before_a_push_and_compared_with_what_towers_saw(self, plant):
        plant(PLANTED)
        terms = restricted_terms("Planted CXR, our copy")
        assert terms == {"planted_cxr": "for this test only"}
        with pytest.raises(PermissionError, match="planted_cxr: for this test only"):
            check_consent(terms, accepted=False)
        plain = [tower_saw({"pretraining_data": [name]}, "planted_cxr") for name in ("Planted CXR", "CheXpert", "x")]
        assert plain == ["yes", "yes", "no"]
        assert not disjoint_sets("chexpert", "planted_cxr")
        assert not disjoint_sets("planted_cxr", "chexpert_5x200")
        assert disjoint_sets("planted_cxr", "openi")
        assert id_namespaces("planted_cxr") == id_namespaces("chexpert") != id_namespaces("openi")

    def test_with_the_name_of_another_is_refused(self, plant):
        plant(PLANTED.replace('"planted_cxr"', '"openi"'))
        with pytest.raises(ValueError, match=r"called 'openi': in adaptor_hf.data.public.openi and in .*planted_cxr"):
            list_datasets()

    def test_without_a_declaration_is_refused(self, plant):
        plant("DATASET = ()\n")
        with pytest.raises(ValueError, match=r"public.planted_cxr has no DATASETS"):
            get_dataset("openi")


class TestDeclarations:
    @pytest.mark.parametrize("dataset", list_datasets(), ids=lambda dataset: dataset.name)
    def test_is_complete(self, dataset):
        # The name is that of a page, a cache folder and an argument.
        assert re.fullmatch(r"[a-z0-9_]+", dataset.name)
        for field in ("title", "license", "homepage", "tested"):
            assert getattr(dataset, field).strip(), field
        assert dataset.expected_files.strip()
        assert set(dataset.option_help) == set(dataset.options)
        assert dataset.tasks
        assert set(dataset.tasks) <= set(ROW_TASKS)
        assert set(dataset.leaks) <= set(dataset.split_schemes)
        assert set(dataset.split_schemes) - {"patient"} <= set(dataset.split_notes)
        assert set(dataset.same_images) <= set(dataset_names()) - {dataset.name}
        assert dataset.patients_of is None or share_images(dataset.name, dataset.patients_of)

    def test_terms_restrict_until_it_is_stated_that_they_do_not(self):
        silent = PublicDataset(
            name="x", title="X", tasks=("pretraining",), expected_files="a", license="?", homepage="?", tested="no",
            read=lambda request: LoadedRows(None),
        )  # fmt: skip
        assert silent.restricted is True
        assert (silent.same_images, silent.pretraining_name) == ((), None)

    def test_images_in_common_hold_both_ways(self):
        names = dataset_names()
        assert all(share_images(a, b) == share_images(b, a) for a in names for b in names)
        assert all(share_images(name, name) for name in names)
        pairs = {frozenset((a, b)) for a in names for b in names if a != b and share_images(a, b)}
        nih = ("nih_chestxray14", "rsna", "siim", "covidx")
        assert pairs == {
            frozenset(("chexpert", "chexpert_5x200")),
            frozenset(("roco", "roco_v2")),
            *(frozenset((a, b)) for a in nih for b in nih if a != b),
        }
        assert not share_images("openi", "unheard_of")
        assert with_same_images("unheard_of") == {}

    def test_one_name_in_pretraining_data_is_of_sets_that_share_images(self):
        named = [one for one in list_datasets() if one.pretraining_name]
        for one in named:
            same = [other.name for other in named if other.pretraining_name == one.pretraining_name]
            assert all(share_images(one.name, other) for other in same)

    def test_presets_call_the_data_sets_as_these_declare(self):
        def plain(text: str) -> str:
            return re.sub(r"[^a-z0-9]", "", text.lower())

        declared = {one.pretraining_name for one in list_datasets()} - {None}
        spelled = {plain(name) for name in declared} | {plain(name) for name in dataset_names()}
        matched = set()
        for tower in list_towers("vision"):
            for name in tower["pretraining_data"]:
                if any(plain(name).startswith(other) for other in spelled):
                    assert name in declared, f"{tower['name']}: {name}"
                    matched.add(name)
        assert matched == {"CheXpert", "MIMIC-CXR", "NIH ChestX-ray14", "OpenI", "RSNA Pneumonia", "SIIM"}


def test_loaders_are_imported_when_data_sets_are_asked_for_and_are_light():
    code = """
import sys
import adaptor_hf.data.catalog
loaders = lambda: [name for name in sys.modules if name.startswith("adaptor_hf.data.public.")]
assert not loaders(), loaders()
adaptor_hf.data.catalog.list_datasets()
assert loaders()
print(*[name for name in ("timm", "torchxrayvision", "pydicom", "evaluate") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
