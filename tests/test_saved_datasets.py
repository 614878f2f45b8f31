"""Saved data sets: whole ones are read, cut ones refused."""

import json

import datasets
import pyarrow as pa
import pytest

from adaptor_hf.data.saved_datasets import load_saved_dataset
from adaptor_hf.data.table_files import read_source


@pytest.mark.parametrize("parts", [False, True])
def test_a_saved_data_set_that_is_cut_between_arrow_messages_is_refused(tmp_path, parts):
    """Arrow's reader takes the end of the file for the end of the table: rows would be missing without a word."""
    data = datasets.Dataset.from_dict({"text": [f"report {row}" for row in range(2500)]})
    (datasets.DatasetDict(train=data, test=data) if parts else data).save_to_disk(tmp_path / "saved")
    path = sorted((tmp_path / "saved").rglob("*.arrow"))[-1]
    whole = path.read_bytes()
    ends = []
    source = pa.BufferReader(whole)
    for _ in pa.ipc.MessageReader.open_stream(source):
        ends.append(source.tell())
    assert len(ends) == 4
    assert len(read_source(tmp_path / "saved", "image").table) == 2500 * (1 + parts)
    for end in [0, 7, *ends]:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=rf"{path.name} is cut off"):
            read_source(tmp_path / "saved", "image")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([], "is damaged"),
        ({"_data_files": [{}]}, "is damaged"),
        ({"_data_files": [1]}, "is damaged"),
        ({"_data_files": [{"filename": "../elsewhere.arrow"}]}, "1 files that do not lie beside it"),
        ({"_data_files": [{"filename": "/dev/zero"}]}, "1 files that do not lie beside it"),
        ({"_data_files": [{"filename": 3}]}, "1 files that do not lie beside it"),
    ],
)
def test_a_state_that_names_other_places_or_nothing_is_refused(tmp_path, state, said):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "set")
    (tmp_path / "set/state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=rf"state\.json .*{said}"):
        load_saved_dataset(tmp_path / "set")
