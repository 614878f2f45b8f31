"""Private runs: canaries planted in a table are in no file and in no line that the scripts leave."""

import base64
import csv
import hashlib
import io
import logging
import shutil
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

import train_downstream
import train_pretrain
from adaptor_hf.audit.__main__ import main as audit
from adaptor_hf.data.private_rows import private_rows, refuse_identifying_columns
from adaptor_hf.embeddings.__main__ import main as embeddings
from adaptor_hf.evaluation.__main__ import main as evaluation
from adaptor_hf.privacy import messages as private_messages
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.privacy.identifying import identifying_columns
from adaptor_hf.privacy.keys import keyed_hash, load_key
from adaptor_hf.privacy.messages import hide, without_quotations
from adaptor_hf.privacy.mode import PrivacyArguments, keyed_digests, start_private_mode
from adaptor_hf.tasks.__main__ import main as tasks
from adaptor_hf.tasks.arguments import parse_arguments
from adaptor_hf.tasks.loading import load_parts
from adaptor_hf.verify import main as verify

PERSON = "ZEBRAFINK^OTTILIE"
BIRTH = "19310217"
SENTENCE = "Frau Zebrafink was seen by Dr Quastenflosser"


@pytest.fixture
def streams(monkeypatch, tmp_path):
    """Everything private mode changes in the process comes back after the test."""
    import datasets

    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(private_mode, "_key", None)
    monkeypatch.setattr(private_messages, "_places", [])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    handlers = {h: h.stream for h in all_handlers()}
    yield
    for handler, stream in handlers.items():
        handler.setStream(stream)


def all_handlers():
    loggers = [logging.root, *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    return {h for logger in loggers for h in logger.handlers if isinstance(h, logging.StreamHandler)}


def plant(folder, count=48):
    """A table of images and reports with canaries in every place that a table has; returns it and the canaries."""
    generator = np.random.default_rng(0)
    folder = folder / f"ward {PERSON}"
    (folder / f"born-{BIRTH}").mkdir(parents=True)
    canaries = {
        "place": [PERSON, f"born-{BIRTH}"],
        "file": ["canaryfile", "canarymask"],
        "cell": ["canarycell"],
        "text": [SENTENCE],
    }
    canaries["id"] = ["canaryimage", "canarypatient", "canarystudy"]
    rows = []
    for row in range(count):
        effusion = int(generator.integers(0, 2))
        pixels = generator.normal(90, 20, (32, 32))
        pixels[16:] += 80 * effusion
        name = f"born-{BIRTH}/canaryfile{row:03d}x.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
        mask = name.replace("canaryfile", "canarymask")
        Image.fromarray(np.pad(np.full((16, 32), 255 * effusion, np.uint8), ((16, 0), (0, 0)))).save(folder / mask)
        patient = row // 2
        split = ("train", "train", "train", "validation", "test")[patient % 5]
        text = f"{SENTENCE} . {'there is a left pleural effusion' if effusion else 'no pleural effusion'} . {row % 12}"
        rows.append(
            {
                "image": name, "image_id": f"canaryimage{row:03d}x", "patient_id": f"canarypatient{patient:03d}x",
                "study_id": f"canarystudy{row:03d}x", "split": split, "sex": "FM"[patient % 2], "age": 30 + patient,
                "effusion": effusion, "text": text, "comment": f"canarycell{row:03d}x", "mask": mask,
            }
        )  # fmt: skip
    (folder / rows[3]["image"]).write_bytes(b"no image")
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    texts = {row["text"] for row in rows}
    canaries["unkeyed digest of a report"] = [hashlib.blake2b(t.encode(), digest_size=16).digest() for t in texts]
    contents = [(folder / row["image"]).read_bytes() for row in rows]
    canaries["unkeyed digest of an image"] = [hashlib.blake2b(c, digest_size=16).digest() for c in contents]
    ids = [row["patient_id"] for row in rows]
    canaries["unkeyed digest of an id"] = [
        digest
        for value in ids
        for digest in (hashlib.sha256(value.encode()).digest(), hashlib.md5(value.encode()).digest())
    ]
    return folder / "pairs.csv", canaries


def run_both_scripts(table, output, towers, *private):
    """Pre-training, then each downstream task."""
    dinov2, bert = towers
    train_pretrain.main([
        "--train_file", str(table), "--text_column", "text", "--vision_tower", str(dinov2), "--text_tower", str(bert),
        "--output_dir", str(output / "model"), "--aligner",
        '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}',
        "--global_batch_size", "8", "--num_train_epochs", "2", "--learning_rate", "1e-3",
        "--use_cpu", "--save_total_limit", "3", *private,
    ])  # fmt: skip
    common = ["--model", str(output / "model"), "--table", str(table), "--device", "cpu", "--num_resamples", "20",
              "--controls", "tower", *private]  # fmt: skip
    train_downstream.main([
        "--task", "classification", "--label_column", "effusion", "--seeds", "0", "--do_predict", str(table),
        "--save_model", "True", "--output_dir", str(output / "labels"), *common,
    ])  # fmt: skip
    tasks = {
        "retrieval": ["--text_column", "text"],
        "text_understanding": ["--text_column", "text"],
        "few_shot": ["--label_column", "effusion", "--shots", "1", "--episodes", "2"],
        "zero_shot": ["--label_column", "effusion", "--prompts", "siim"],
        "segmentation": ["--mask_column", "mask", "--epochs", "1", "--seeds", "0", "--image_size", "28"],
    }
    for task, options in tasks.items():
        if task == "segmentation":
            # It has no list of excluded rows: an image that cannot be read ends it.
            pictures = table.parent / f"born-{BIRTH}"
            shutil.copy(pictures / "canaryfile005x.png", pictures / "canaryfile003x.png")
        train_downstream.main(["--task", task, "--output_dir", str(output / task), *options, *common])


def read_runs(output):
    """Every command that reads runs or caches."""
    (cache,) = {path.parent for path in output.glob("*embeddings/latest.json")}
    for main, words in (
        (verify, [output / "model"]),
        (verify, [output / "labels"]),
        (evaluation, ["verify", output / "labels"]),
        (evaluation, ["report", output, "--output_dir", output / "report", "--no_figures"]),
        (evaluation, ["subgroups", output]),
        (evaluation, ["studies", output / "labels"]),
        (evaluation, ["card", output / "labels", "--model", output / "model"]),
        (audit, ["checklists", output / "model", "--to", output / "drafts"]),
        (audit, ["table1", cache, "--to", output / "table1"]),
        (embeddings, ["info", cache]),
        (embeddings, ["verify", cache]),
    ):
        assert main(list(map(str, words))) == 0, words


def contents(path):
    """The bytes of a file, and what is compressed or encoded in it."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr(table.schema.metadata).encode() + repr(table.to_pydict()).encode()
    elif path.suffix == ".arrow":
        table = pa.ipc.open_stream(io.BytesIO(data)).read_all()
        columns = [name for name in table.column_names if name != "embedding"]
        yield repr(table.schema.metadata).encode() + repr(table.select(columns).to_pydict()).encode()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name.encode() + archive.read(name)


def disguises(canary):
    """A canary as it is, in capitals, hexadecimal, and base64 at each of its three alignments."""
    raw = canary if isinstance(canary, bytes) else canary.encode()
    yield raw
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    if isinstance(canary, str):
        yield canary.upper().encode()
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + raw)
        # The first characters depend on what is before, the last ones on what comes after.
        yield whole[4 if shift else 0 : -4]


def found(canaries, folder, said):
    """Kinds of canaries with the places where they are."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    parts = [(path.relative_to(folder).as_posix(), data) for path in files for data in contents(path)]
    parts += [(name, name.encode()) for name, _ in parts] + [("what was said", said.encode())]
    blobs = {}
    for name, data in parts:
        blobs.setdefault(name, []).append(data)
    hits = {}
    for kind, values in canaries.items():
        for canary in values:
            for pattern in disguises(canary):
                for name, data in blobs.items():
                    if any(pattern in part for part in data):
                        hits.setdefault(kind, set()).add(name)
    return hits


@pytest.mark.parametrize("private", [True, False], ids=["private", "negative control"])
def test_no_canary_of_a_table_is_in_any_file_or_line_of_a_private_run(
    private, tmp_path, tiny_dinov2, tiny_bert, streams, capfd, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    table, canaries = plant(tmp_path / "data")
    output = tmp_path / "out"
    canaries["output folder"] = [str(output)]
    options = ["--private", "True", "--key_file", str(tmp_path / "ids.key")] if private else []
    run_both_scripts(table, output, (tiny_dinov2, tiny_bert), *options)
    if private:
        monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
        read_runs(output)
    captured = capfd.readouterr()
    said = captured.out + captured.err + (hide(caplog.text) if private else caplog.text)
    hits = found(canaries, output, said)
    hits |= found(canaries, tmp_path / "hf-cache", "") if (tmp_path / "hf-cache").exists() else {}
    if private:
        assert hits == {}
    else:
        # The search can find them: each kind that a run without --private writes, where it writes it.
        kinds = {"place", "file", "id", "output folder", "unkeyed digest of a report", "unkeyed digest of an image"}
        assert kinds <= hits.keys()
        assert any(name.endswith("pairs.arrow") for name in hits["id"])
        assert any(name.endswith("predictions.parquet") for name in hits["id"])
        assert any(name.endswith("predictions.csv") for name in hits["id"])
        assert any(name.endswith("run.json") for name in hits["place"])
        assert any(name.endswith("excluded.csv") for name in hits["file"])
    if private:
        key = load_key(tmp_path / "ids.key")
        rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
        ids = {row["patient_id"] for row in rows if row["split"] == "test"}
        for name in ("labels", "retrieval"):
            for path in (output / name).rglob("predictions.parquet"):
                assert set(pq.read_table(path)["patient_id"].to_pylist()) == {keyed_hash(i, key) for i in ids}
        assert str(tmp_path) not in captured.out + captured.err


def test_splits_of_a_private_run_are_those_of_the_ids_themselves(tmp_path, streams):
    from adaptor_hf.training.pairs import load_training_pairs
    from adaptor_hf.training.script_arguments import DataArguments

    table, _ = plant(tmp_path)
    arguments = DataArguments(train_file=str(table), filter=["split=train"], split_alias=[])
    plain = load_training_pairs(arguments).dataset
    key = b"k" * 32
    with private_mode.private_mode(key):
        private = load_training_pairs(arguments).dataset
    assert private["split"][:] == plain["split"][:]
    assert private["patient_id"][:] == [keyed_hash(value, key) for value in plain["patient_id"][:]]
    assert set(private["split"][:]) == {"train", "validation"}


def test_private_rows_drop_columns_that_could_hold_anything():
    import datasets

    rows = datasets.Dataset.from_dict(
        {"image_id": ["a", None], "comment": ["x", "y"], "sex": ["F", "M"], "site": ["1", "2"]}
    )
    assert private_rows(rows) is rows
    with private_mode.private_mode(b"k" * 32):
        private = private_rows(rows, keep=["site"])
    assert private.column_names == ["image_id", "sex", "site"]
    assert private["image_id"][:] == [keyed_hash("a", b"k" * 32), None]


def test_digests_are_keyed_alike_for_equal_ones_and_nothing_stays_nothing():
    digests = np.frombuffer(b"a" * 16 + b"\0" * 16 + b"a" * 15 + b"\0" + b"a" * 16, dtype="S16")
    assert keyed_digests(digests) is digests
    keyed = {}
    for key in (b"k" * 32, b"l" * 32):
        with private_mode.private_mode(key):
            keyed[key] = keyed_digests(digests)
        assert keyed[key][0] == keyed[key][3]
        assert keyed[key][0] not in (digests[0], keyed[key][2])
        assert keyed[key].tobytes()[16:32] == b"\0" * 16
    assert keyed[b"k" * 32][0] != keyed[b"l" * 32][0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/ward 7/pairs.csv: the table has no rows.", "<hidden>: the table has no rows."),
        ("data row 3: the label 'effusion' is 'DOE JANE', expected 1", "data row 3: the label <hidden> is <hidden>"),
        ("cannot read ward7/doe.png now", "cannot read <hidden> now"),
        ("cannot read Doe Jane/ward 7, born/doe jane.png", "cannot read Doe <hidden>"),
        ("/mnt/Doe, Jane 1931/x y: cannot be decoded", "<hidden>: cannot be decoded"),
        ("/mnt/O'Doe/IM1: broken", "<hidden>: broken"),
        ("/data/ward 7/pairs.csv/O'Doe <b> 7/IM1: broken", "<hidden>: broken"),
        ("the name 'Doe, Jane is cut", "the name <hidden>"),
        ("it is 'O'Doe' here", "it is <hidden> here"),
        ("Columns: 'Doe, Jane', \"O'Doe\", 'it\\'s \"x\"'.", "Columns: <hidden>, <hidden>, <hidden>."),
        ("step 8 of 16: 2,110 pairs/s, i2t / t2i, the patient's and the patients' rows", None),
        ("| a | 0.3 [0.2, 0.4] | 0.0001 |", None),
    ],
)
def test_messages_lose_places_and_quoted_cells_and_keep_their_sense(text, shown, monkeypatch):
    monkeypatch.setattr(private_messages, "_places", ["/data/ward 7/pairs.csv"])
    assert hide(text).startswith(text if shown is None else shown)


class TestRefusals:
    def arguments(self, tmp_path, *more):
        return ["--private", "True", "--key_file", str(tmp_path / "ids.key"), "--vision_tower", "lite0",
                "--text_tower", "minilm", "--output_dir", str(tmp_path / "out"), "--use_cpu", *more]  # fmt: skip

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            (["--report_to", "tensorboard"], "no tracker"),
            (["--push_to_hub", "True"], "--allow_push"),
            (["--image_store", "store"], "no copies of images"),
        ],
    )
    def test_what_would_carry_data_out_is_refused(self, tmp_path, streams, option, message):
        table, _ = plant(tmp_path / "data", 4)
        with pytest.raises(ValueError, match=message):
            train_pretrain.main(self.arguments(tmp_path, "--train_file", str(table), *option))

    @pytest.mark.parametrize("extra", ["PatientName", "Geburtsdatum"])
    def test_a_table_with_names_or_birth_dates_is_refused_unless_asked(self, tmp_path, streams, extra):
        table, _ = plant(tmp_path / "data", 4)
        lines = table.read_text().splitlines()
        table.write_text("\n".join([f"{lines[0]},{extra}", *(f"{line},x" for line in lines[1:])]))
        with pytest.raises(ValueError, match="columns 12, counted") as error:
            train_pretrain.main(self.arguments(tmp_path, "--train_file", str(table)))
        assert extra not in str(error.value)
        downstream = ["--task", "classification", "--model", "m", "--table", str(table), "--label_column", "effusion",
                      "--private", "True", "--key_file", str(tmp_path / "ids.key")]  # fmt: skip
        with pytest.raises(ValueError, match="columns 12, counted"):
            load_parts(parse_arguments(downstream), "classification")
        arguments = PrivacyArguments(allow_identifying_columns=True)
        refuse_identifying_columns(str(table), "image", arguments)

    def test_private_mode_needs_a_key_file_and_the_environment_asks_for_it(self, monkeypatch, streams, tmp_path):
        with pytest.raises(ValueError, match="needs --key_file"):
            start_private_mode(PrivacyArguments(private=True))
        assert not start_private_mode(PrivacyArguments())
        with pytest.raises(ValueError, match="no effect without --private"):
            start_private_mode(PrivacyArguments(key_file="ids.key"))
        monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
        arguments = PrivacyArguments(key_file=str(tmp_path / "ids.key"))
        assert start_private_mode(arguments)
        assert arguments.private
        assert (tmp_path / "ids.key").stat().st_mode & 0o777 == 0o600

    def test_a_command_that_knows_no_private_mode_stops_where_it_is_asked_for(self, monkeypatch, tmp_path):
        table, _ = plant(tmp_path / "data", 4)
        job = ["--task", "few_shot", "--model", "m", "--table", str(table), "--private", "True"]
        with pytest.raises(ValueError, match="asks for private mode, which this command does not have"):
            load_parts(parse_arguments(job), "pretraining")
        monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
        with pytest.raises(SystemExit, match="asks for private mode, which this command does not have"):
            tasks(["sweep", str(table)])

    def test_a_cache_is_not_built_privately_without_a_key(self, monkeypatch, tmp_path, streams, capfd):
        table, _ = plant(tmp_path / "data", 4)
        monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
        words = ["build", str(table), "--text_column", "text", "--vision_tower", "lite0", "--text_tower", "minilm"]
        assert embeddings([*words, "--cache_dir", str(tmp_path / "cache")]) == 1
        assert "--private needs --key_file" in capfd.readouterr().err
        assert not (tmp_path / "cache").exists()

    def test_a_cache_of_another_key_or_of_none_is_refused(self):
        with private_mode.private_mode(b"k" * 32):
            own = {"identity": {"private": private_mode.key_name()}}
            private_mode.check_private_cache([own, own])
            with pytest.raises(ValueError, match="without --private"):
                private_mode.check_private_cache([own, {"identity": {}}])
            with pytest.raises(ValueError, match="another key"):
                private_mode.check_private_cache([{"identity": {"private": "0" * 16}}])


@pytest.mark.parametrize(
    "name",
    ["PatientName", "patient_name", "Name", "last_name", "Patient's Birth Date", "dob", "GEBURTSDATUM", "Vorname",
     "fecha_nacimiento", "apellidos", "prénom", "Nom de famille", "e-mail", "Referring Physician Name"],
)  # fmt: skip
def test_columns_that_name_a_person_are_recognised(name):
    assert identifying_columns(pa.table({name: ["x"], "age": ["1"]})) == [name]


def test_ordinary_columns_are_not():
    ordinary = (
        "image file_name filename path text report patient_id subject_id study_id split view sex age effusion "
        "class_name dataset_name image_id AccessionNumber source_row labels mask ViewPosition finding_names nodule_side"
    )
    ordinary = [*ordinary.split(), "No Finding", "Support Devices"]
    assert identifying_columns(pa.table({name: ["x"] for name in ordinary})) == []


def test_dicom_person_names_are_recognised_by_their_cells():
    table = pa.table({"field7": ["DOE^JANE", "ROE^RICHARD^^DR", None], "note": ["a^2 + b", "none", "x"]})
    assert identifying_columns(table) == ["field7"]


class TestErrors:
    """What ends a private run may quote a table without quotes."""

    def raised(self, function):
        try:
            function()
        except Exception as error:
            return error

    def test_the_words_of_another_library_are_hidden_and_the_place_in_our_code_is_named(self):
        foreign = self.raised(lambda: pa.csv.read_csv(io.BytesIO(b"a,b\nDOE JANE,1931,x\n")))
        assert "DOE JANE" in str(foreign)
        assert without_quotations(foreign).startswith("ArrowInvalid at a library")
        assert "DOE" not in without_quotations(foreign)
        ours = self.raised(lambda: load_key("/nowhere/ids.key"))
        assert "No such" in without_quotations(ours) or "no such" in without_quotations(ours)

    def test_our_words_stay_around_the_words_of_a_library(self, tmp_path):
        from adaptor_hf.tasks.prompts import load_prompts

        (tmp_path / "prompts.json").write_text("{DOE")
        error = self.raised(lambda: load_prompts(str(tmp_path / "prompts.json")))
        assert without_quotations(error) == f"{tmp_path / 'prompts.json'} is not JSON: <hidden>"

    def test_a_table_without_header_does_not_say_its_first_row(self, tmp_path, streams, capfd):
        from adaptor_hf.training.interruption import run_script

        table, canaries = plant(tmp_path / "data", 4)
        lines = table.read_text(encoding="utf-8").splitlines()
        table.write_text("\n".join(lines[1:]), encoding="utf-8")
        words = ["--train_file", str(table), "--private", "True", "--key_file", str(tmp_path / "ids.key"),
                 "--vision_tower", "lite0", "--text_tower", "minilm", "--output_dir", str(tmp_path / "out"),
                 "--use_cpu"]  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            run_script(lambda: train_pretrain.main(words))
        said = hide(str(stopped.value))
        assert "no column <hidden>" in said
        assert not any(canary in said for kind in ("id", "text", "cell", "file") for canary in canaries[kind])

    def test_an_unexpected_error_leaves_no_traceback(self, streams, monkeypatch):
        from adaptor_hf.training.interruption import run_script

        def fail():
            raise KeyError(SENTENCE)

        with pytest.raises(KeyError):
            run_script(fail)
        with private_mode.private_mode(b"k" * 32), pytest.raises(SystemExit, match="KeyError") as stopped:
            run_script(fail)
        assert SENTENCE not in str(stopped.value)


def test_the_folder_of_a_killed_run_is_removed_by_the_next_and_that_of_a_living_one_is_not(
    tmp_path, streams, monkeypatch
):
    import os
    import subprocess
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f"{private_mode._ASIDE}{number}-x" for number in (dead.pid, os.getpid())]
    for folder in left:
        folder.mkdir()
    start_private_mode(PrivacyArguments(private=True, key_file=str(tmp_path / "ids.key")))
    assert [folder.exists() for folder in left] == [False, True]
