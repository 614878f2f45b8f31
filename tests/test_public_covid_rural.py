"""COVID Rural: masks of 0 and 1, splits by patient."""

import numpy as np
import pytest
from fixtures.covid_rural import STEMS, write_covid_rural
from fixtures.lovt import write_lovt_split

from adaptor_hf.data.public_datasets import describe, load_public_dataset


def load(root, **options):
    return load_public_dataset("covid_rural", root, cache_dir=root.parent / "cache", **options)


@pytest.mark.parametrize("inner", ["", "covid_rural_annot"])
def test_images_and_their_masks(tmp_path, inner):
    tree = write_covid_rural(tmp_path / "rural")
    splits = load(tree / inner, test_fraction=0.2, validation_fraction=0.2)
    rows = {row["image_id"]: row for part in splits.values() for row in part}
    assert sorted(rows) == sorted(STEMS)
    for place, stem in enumerate(STEMS):
        mask = np.asarray(rows[stem]["mask"])
        assert mask.shape[::-1] == rows[stem]["image"].size == (90, 70 + place)
        assert (mask == 255).sum() == 20 * place
    assert rows[STEMS[0]]["patient_id"] == "COVID-19-AR-16406488"
    patients = [set(part["patient_id"]) for part in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 9
    assert describe(splits)["dropped"] == {"image without a mask": 1, "mask without an image": 1}


def test_lovts_files_lie_in_the_folder(tmp_path):
    tree = write_covid_rural(tmp_path / "rural")
    ids = {"train": [STEMS[5], STEMS[0], STEMS[1]], "validation": [STEMS[2]], "test": [STEMS[3]]}
    write_lovt_split(tree / "covid_rural_annot", ids, header="ID")
    splits = load(tree, split_scheme="lovt")
    assert {name: part["image_id"][:] for name, part in splits.items()} == ids


def test_a_wrong_root_says_what_is_there(tmp_path):
    (tmp_path / "other.csv").write_text("")
    with pytest.raises(FileNotFoundError, match=r"covid_rural_annot/jpgs .* It has: other.csv"):
        load(tmp_path)
