"""SLIP's pickles become tables without running what they name."""

import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from adaptor_hf.data.convert import main, read_pickled
from adaptor_hf.data.restricted_pickle import load_npy, load_pickle

CC3M = [
    {"image_id": 1510438788, "captions": ["large field with wheat"]},
    {"image_id": 2, "captions": ["a é", "b"], "score": np.float32(0.5)},
]
YFCC = [(12345678, "Title", "words"), (345, "", "a +b")]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(protocol):
    data = {
        "array": np.arange(6).reshape(2, 3),
        "words": np.array(["a", "é"]),
        "objects": np.array(["x", None, {"k": 1}], dtype=object),
        "number": np.float64(1.5),
        "builtin": [1, 2.5, True, None, "é", b"\x00\xff", bytearray(b"x"), 1j, {1, 2}, frozenset([3]), (4,)],
        "ordered": OrderedDict(a=1),
    }
    found = load_pickle(io.BytesIO(pickle.dumps(data, protocol=protocol)))
    assert found["builtin"] == data["builtin"]
    assert found["ordered"] == data["ordered"]
    assert found["number"] == 1.5
    assert type(found["number"]) is np.float64
    for name in ("array", "words", "objects"):
        np.testing.assert_array_equal(found[name], data[name])
    tensor = torch.arange(3, dtype=torch.float16)
    assert torch.equal(load_pickle(io.BytesIO(pickle.dumps([tensor], protocol=protocol)))[0], tensor)


class Runs:
    def __reduce__(self):
        return os.system, ("exit 3",)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Runs(), "system"),
        (print, "print"),
        (eval, "eval"),
        (getattr, "getattr"),
        (pickle.loads, "loads"),
        (np.load, "load"),
        (torch.load, "load"),
        (torch.nn.Linear(1, 1), "Linear|_reconstructor"),
        (subprocess.Popen, "Popen"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_anything_else_is_refused_by_name(value, named, protocol):
    try:
        data = pickle.dumps([{"a": 1}, value], protocol=protocol)
    except pickle.PicklingError:
        pytest.skip("not picklable by this protocol")
    with pytest.raises(ValueError, match=rf"it names [\w.]+\.({named}), which is no tensor, numpy or builtin type"):
        load_pickle(io.BytesIO(data))


def test_a_tensor_does_not_hide_a_pickle():
    stream = io.BytesIO()
    torch.save(Runs(), stream)
    data = pickle.dumps(stream.getvalue())
    # What torch's own __reduce__ writes: _load_from_bytes(bytes).
    attack = b"ctorch.storage\n_load_from_bytes\n(" + data[2:-1] + b"tR."
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r"(?i)system|weights.only|whole pickle"):
        load_pickle(io.BytesIO(attack))


def test_other_encodings_than_latin1_are_refused():
    with pytest.raises(ValueError, match="encodes text as zlib"):
        load_pickle(io.BytesIO(b"c_codecs\nencode\n(Vx\nVzlib\ntR."))


@pytest.mark.parametrize("cut", [1, 5, -3])
def test_a_damaged_pickle(cut):
    with pytest.raises(ValueError, match="no whole pickle"):
        load_pickle(io.BytesIO(pickle.dumps(CC3M)[:cut]))


def test_npy_of_dicts(tmp_path):
    np.save(tmp_path / "cc3m.npy", np.array(CC3M, dtype=object))
    assert read_pickled(tmp_path / "cc3m.npy").to_pylist() == [
        CC3M[0] | {"score": None},
        CC3M[1],
    ]
    np.save(tmp_path / "plain.npy", np.arange(3))
    assert load_npy(tmp_path / "plain.npy").tolist() == [0, 1, 2]


def test_pickle_of_tuples(tmp_path):
    path = tmp_path / "yfcc15m.pkl"
    path.write_bytes(pickle.dumps(YFCC))
    table = read_pickled(path)
    assert table.column_names == ["index", "title", "description"]
    assert table.to_pylist()[1] == {"index": 345, "title": "", "description": "a +b"}
    path.write_bytes(pickle.dumps([(1, 2), (3, 4)]))
    with pytest.raises(ValueError, match=r"yfcc15m\.pkl: its rows have 2 items; name each with --columns"):
        read_pickled(path)
    assert read_pickled(path, ["a", "b"]).column_names == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "at least one row"),
        ("text", "holds str"),
        ([{"a": 1}, (1, 2)], "different kinds"),
        ([(1, 2, 3), (1, 2)], "2, 3 items"),
        ([{"a": 1}, {"a": "b"}], "values of several types"),
    ],
)
def test_what_is_no_table(tmp_path, content, message):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"x\.pkl: .*{message}"):
        read_pickled(path)


def test_the_command_writes_parquet_and_json_lines(tmp_path):
    np.save(tmp_path / "cc3m.npy", np.array(CC3M, dtype=object))
    for suffix in ("parquet", "jsonl"):
        command = [sys.executable, "-m", "adaptor_hf.data.convert", "cc3m.npy", f"cc3m.{suffix}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == f"Wrote cc3m.{suffix}: 2 rows with image_id, captions, score.\n"
    rows = [json.loads(line) for line in (tmp_path / "cc3m.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pq.read_table(tmp_path / "cc3m.parquet").to_pylist() == rows
    assert rows[1]["captions"] == ["a é", "b"]


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("bad.pkl", "out.parquet", "posix.system|nt.system"),
        ("bad.pkl", "out.csv", "ends in .parquet or .jsonl"),
        ("none.pkl", "out.parquet", "No such file"),
        ("a.csv", "out.parquet", "expected a .npy, .pkl or .pickle file"),
    ],
)
def test_the_command_says_what_is_wrong_and_leaves_nothing(tmp_path, name, output, message):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps([Runs()]))
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / name), str(tmp_path / output)])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pkl"]
