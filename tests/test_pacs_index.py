"""A PACS export becomes one table of pairs: what is in it, what is left out and why, and how an index goes on."""

import csv
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from adaptor_hf.data import index_dicom
from adaptor_hf.data.__main__ import main as data_command
from adaptor_hf.data.dicom_headers import FAULTS, HeaderError, header_facts
from adaptor_hf.data.images import read_image
from adaptor_hf.data.pacs import index as index_module
from adaptor_hf.data.pacs.reports_table import read_report_table
from adaptor_hf.data.pacs.rules import RULES, TABLE_RULES
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.phantom import generate_phantoms, write_layout
from adaptor_hf.phantom.generate import plan
from adaptor_hf.phantom.layout_pacs import case_of, dicom_object
from adaptor_hf.phantom.pacs_trouble import TROUBLE
from adaptor_hf.privacy.keys import keyed_hash
from adaptor_hf.privacy.mode import private_mode

N, SIDE, SEED = 24, 64, 5
RULE_OF = {**{name: name for name in TROUBLE}, "presentation_state": "non_image"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("hospital") / "set", N, "pacs", image_size=SIDE, seed=SEED)


@pytest.fixture(scope="module")
def cases():
    return [(planned, case_of(planned, SEED)) for planned in plan(N, SIDE, SEED)]


@pytest.fixture(scope="module")
def indexed(hospital):
    return index_dicom(hospital / "export", hospital / "ris.csv", text_column="Report", num_proc=1)


def element(syntax=None, **tags):
    """Bytes of a file of the phantom with tags set; None takes one out."""
    planned = next(plan(1, SIDE, SEED))
    dataset = dicom_object(planned, planned.record(SIDE, SEED), SEED)
    dataset.file_meta.TransferSyntaxUID = syntax or dataset.file_meta.TransferSyntaxUID
    for keyword, value in tags.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def facts_of(tmp_path, data, on="AccessionNumber"):
    path = tmp_path / "object"
    path.write_bytes(data)
    return header_facts(str(path), len(data), on)


def test_every_radiograph_is_in_the_table_once_with_what_its_header_says(indexed, cases):
    rows = {row["image_id"]: row for row in indexed.table.to_pylist()}
    assert len(rows) == len(indexed.table) == N
    for planned, case in cases:
        row = rows[case.image_uid]
        assert (row["patient_id"], row["study_id"]) == (case.patient_id, case.study_uid)
        assert (row["view"], row["sex"], row["body_part"]) == (planned.pose.view, planned.patient.sex, "CHEST")
        # Some headers have no age: then it is that of birth date and study date.
        assert abs(row["age"] - planned.patient.age) <= 1
        assert planned.report.text in row["text"]
        assert row["modality"] in ("CR", "DX")


def test_what_is_no_radiograph_is_left_out_by_its_rule(hospital, indexed):
    reasons = dict(indexed.excluded)
    expected = {name: RULE_OF[what] for what, name in TROUBLE.items()}
    assert {name: reasons.get(name) for name in expected} == expected
    assert reasons["disc/DICOMDIR"] == "dicomdir"
    report = indexed.report
    assert len(reasons) + report["rows"] == report["objects"]
    assert sum(report["left_out"].values()) + sum(report["faults"].values()) == len(reasons)
    assert set(report["left_out"]) <= {*RULES, *TABLE_RULES}
    assert set(report["faults"]) <= set(FAULTS)
    assert report["dicomdir"]["missing"] == 1
    assert report["in_zips"] > 0


def test_patients_are_split_whole_and_reports_joined(indexed):
    splits = {}
    for row in indexed.table.to_pylist():
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(names) == 1 for names in splits.values())
    reports = indexed.report["reports"]
    assert (reports["keys_without_image"], reports["repeated_keys_that_differ"]) == (1, 1)
    assert reports["images_with_text"] == N
    assert reports["delimiter"] == ","
    assert reports["encoding"] == "utf-8"


def test_pictures_are_read_through_the_table_upright_and_inverted_as_needed(hospital, indexed, tmp_path):
    table = tmp_path / "pairs.parquet"
    pq.write_table(indexed.table, table)
    pairs = load_pairs(table)
    drawn = {case_of(p, SEED).image_uid: p for p in plan(N, SIDE, SEED)}
    inverted = 0
    for row, source in zip(pairs, indexed.table.to_pylist(), strict=True):
        planned = drawn[row["image_id"]]
        picture = np.asarray(planned.record(SIDE, SEED)["image"], dtype=float)
        low, high = picture.min(), picture.max()
        expected = np.rint((picture - low) / (high - low) * 255)
        assert np.abs(np.asarray(row["image"], dtype=float) - expected).max() <= 1
        displayed = np.asarray(read_image(source["image"], voi_lut=True), dtype=float)
        assert np.abs(displayed - picture).max() <= 2
        inverted += "::" not in source["image"] and (
            pydicom.dcmread(source["image"]).PhotometricInterpretation == "MONOCHROME1"
        )
    assert 0 < inverted <= indexed.report["inverted"] < N


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_the_written_table_is_taken_as_it_is(hospital, indexed, tmp_path, format):
    index_dicom(hospital / "export", hospital / "ris.csv", text_column="Report", to=tmp_path / "p", format=format)
    pairs = load_pairs(tmp_path / "p" / f"pairs.{format}")
    for name in ("image_id", "patient_id", "study_id", "view", "text", "split"):
        assert pairs[name][:] == indexed.table[name].to_pylist(), name
    assert json.loads((tmp_path / "p/index_report.json").read_text())["rows"] == N
    with open(tmp_path / "p/excluded.csv", newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [(*row, found) for row, found in zip(indexed.excluded, indexed.found, strict=True)]
    assert next(found for _, reason, found in rows if reason == "truncated").startswith("(7FE0,0010) PixelData has ")


def test_a_dicomdir_as_root_takes_only_what_it_names(hospital, indexed):
    disc = index_dicom(hospital / "export/disc/DICOMDIR")
    inside = [row for row in indexed.table.to_pylist() if "/disc/IMAGES/" in row["image"]]
    assert disc.table["image_id"].to_pylist() == [row["image_id"] for row in inside]
    assert disc.report["dicomdir"] == {"files": 1, "references": len(inside) + 1, "missing": 1, "unreadable": 0}


def test_a_dicomdir_that_leads_out_is_refused(tmp_path):
    from adaptor_hf.phantom.pacs_trouble import directory_file

    (tmp_path / "DICOMDIR").write_bytes(directory_file(["../../etc/passwd"]))
    with pytest.raises(ValueError, match="leads out of its folder"):
        index_dicom(tmp_path / "DICOMDIR")


def test_members_of_a_zip_are_checked(tmp_path):
    data = element()
    with zipfile.ZipFile(tmp_path / "a.ZIP", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("good", "../../outside", "/absolute", "secret"):
            archive.writestr(name, data)
        archive.writestr(zipfile.ZipInfo("packed"), data, zipfile.ZIP_BZIP2)
        archive.writestr("inner", b"PK\x03\x04" + bytes(200))
        archive.writestr("nothing", b"")
    content = bytearray((tmp_path / "a.ZIP").read_bytes())
    for header, name_at, flag_at in ((b"PK\x03\x04", 30, 6), (b"PK\x01\x02", 46, 8)):
        place = content.find(header)
        while place >= 0:
            if content[place + name_at : place + name_at + 6] == b"secret":
                content[place + flag_at] |= 1
            place = content.find(header, place + 4)
    (tmp_path / "a.ZIP").write_bytes(content)
    (tmp_path / "cut.zip").write_bytes(content[:200])
    (tmp_path / "other").write_bytes(content)
    found = index_dicom(tmp_path)
    assert [row["image"].split("::")[1].split("@")[0] for row in found.table.to_pylist()] == ["good"]
    assert dict(found.excluded) == {
        "a.ZIP::../../outside": "unsafe_member", "a.ZIP::/absolute": "unsafe_member",
        "a.ZIP::secret": "encrypted_member", "a.ZIP::packed": "packed_member", "a.ZIP::inner": "unread_archive",
        "a.ZIP::nothing": "empty", "cut.zip": "broken_archive", "other": "unread_archive",
    }  # fmt: skip


def test_files_that_are_none_stop_nothing(tmp_path):
    (tmp_path / "good").write_bytes(element())
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".hidden").write_bytes(element())
    (tmp_path / "blank ").write_bytes(element())
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).write_bytes(element())
    found = index_dicom(tmp_path)
    assert len(found.table) == 1
    assert Counter(reason for _, reason in found.excluded) == {
        "not_a_file": 1, "gone": 1, "hidden": 1, "file_name": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tags", "name", "expected"),
    [
        ({"PatientAge": "045Y"}, "age", 45.0),
        ({"PatientAge": "006M"}, "age", 0.5),
        ({"PatientAge": "010W"}, "age", 0.19),
        ({"PatientAge": "155Y"}, "age", None),
        ({"PatientAge": None, "PatientBirthDate": "20000229", "StudyDate": "20200228"}, "age", 19.0),
        ({"PatientAge": None, "PatientBirthDate": ""}, "age", None),
        ({"ViewPosition": "", "ViewCodeSequence": None}, "view", None),
        ({"ViewPosition": "ll"}, "view", "LL"),
        ({"PatientSex": "W"}, "sex", "F"),
        ({"PatientSex": "weiblich"}, "sex", "F"),
        ({"PatientSex": "U"}, "sex", None),
        ({"PatientID": "N/A"}, "patient", None),
        ({"PatientAge": "N/A"}, "bad_age", False),
        ({"PatientAge": "063"}, "age", 63.0),
        ({"PatientID": "0007 "}, "patient", "0007"),
        ({"BurnedInAnnotation": None}, "burned_in", None),
        ({"SeriesDescription": "Topogramm"}, "localizer", True),
    ],
)
def test_facts_of_a_header(tmp_path, tags, name, expected):
    assert facts_of(tmp_path, element(**tags))[name] == expected


def test_ids_in_another_character_set_are_read(tmp_path):
    data = element(SpecificCharacterSet="ISO_IR 192", PatientID="Nº 7", AccessionNumber="Zugang Ä1")
    facts = facts_of(tmp_path, data)
    assert (facts["patient"], facts["key"]) == ("Nº 7", "Zugang Ä1")


def test_a_header_longer_than_the_first_read_is_read_on(tmp_path):
    plain = facts_of(tmp_path, element())
    assert facts_of(tmp_path, element(IconImageSequence=None, ImageComments="x" * 9000 * 8)) == plain


@pytest.mark.parametrize("keep", [700, 2000, -1])
def test_a_file_that_is_cut_is_truncated_not_pixelless(tmp_path, keep):
    with pytest.raises(HeaderError, match="truncated"):
        facts_of(tmp_path, element()[:keep])


def test_the_encrypted_are_left_out_and_the_deflated_are_read(tmp_path):
    item = pydicom.Dataset()
    item.EncryptedContentTransferSyntaxUID, item.EncryptedContent = "1.2.840.10008.1.2", b"1234"
    (tmp_path / "a").write_bytes(element(EncryptedAttributesSequence=[item]))
    (tmp_path / "b").write_bytes(element(DeflatedExplicitVRLittleEndian))
    (tmp_path / "c").write_bytes(element(SOPInstanceUID="1.2.3"))
    assert dict(index_dicom(tmp_path).excluded) == {"a": "encrypted"}
    assert read_image(tmp_path / "b") == read_image(tmp_path / "c")


def test_rules_can_be_switched_off_and_modalities_asked_for(hospital, indexed):
    options = {"text_column": "Report", "num_proc": 1}
    kept = index_dicom(hospital / "export", hospital / "ris.csv", keep=["localizer", "for_processing"], **options)
    assert len(kept.table) == N + 2
    some = index_dicom(hospital / "export", hospital / "ris.csv", modalities=["DX"], **options)
    assert set(some.table["modality"].to_pylist()) == {"DX"}
    assert len(some.table) < N
    with pytest.raises(ValueError, match="no rule that can be switched off"):
        index_dicom(hospital / "export", keep=["duplicate"])
    with pytest.raises(ValueError, match="no keyword of a DICOM header"):
        index_dicom(hospital / "export", on="Accession")
    with pytest.raises(ValueError, match=r"None of the .* Left out: .*Found, by modality: .*CR"):
        index_dicom(hospital / "export", modalities=["MG"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        index_dicom(hospital / "nowhere")


def test_a_key_of_two_patients_is_joined_to_neither(tmp_path):
    for number, patient in enumerate(("a", "b", "c")):
        accession = "same" if number < 2 else "own"
        data = element(SOPInstanceUID=f"1.2.{number}", PatientID=patient, AccessionNumber=accession)
        (tmp_path / str(number)).write_bytes(data)
    (tmp_path.parent / "ris.csv").write_text("AccessionNumber,text\nsame,of whom?\nown,of c\n")
    found = index_dicom(tmp_path, tmp_path.parent / "ris.csv")
    assert found.table["text"].to_pylist() == ["of c"]
    assert found.report["left_out"] == {"key_of_several_patients": 2}


class TestReportTable:
    def read(self, tmp_path, data, on="nr", **options):
        path = tmp_path / "ris.csv"
        path.write_bytes(data)
        return read_report_table(path, on, **options)

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_encoding_and_delimiter_are_found(self, tmp_path, encoding, delimiter):
        lines = [delimiter.join(("nr", "text")), delimiter.join(("007 ", '"Größe: 3,5; li.\nre. | ok"'))]
        table = self.read(tmp_path, "\n".join(lines).encode(encoding))
        assert table.texts == {"007": "Größe: 3,5; li.\nre. | ok"}
        assert (table.encoding, table.delimiter) == (encoding.removesuffix("-sig"), delimiter)

    @pytest.mark.parametrize(
        ("rule", "text"), [("join", "old\n\nlonger\n\nnew"), ("longest", "longer"), ("first", "old"), ("last", "new")]
    )
    def test_several_rows_of_a_key_go_by_a_rule_and_are_counted(self, tmp_path, rule, text):
        data = b"nr,text\n1,old\n1,longer\n1,old\n1,new\n2,\n,lost\n,\n4,x\n4,x\n"
        table = self.read(tmp_path, data, repeated=rule)
        assert table.texts == {"1": text, "2": "", "4": "x"}
        assert table.counts == {
            "rows": 8, "keys": 3, "rows_without_key": 1, "rows_without_text": 1, "repeated_keys": 2,
            "repeated_keys_that_differ": 1, "blank_rows": 1,
        }  # fmt: skip

    def test_several_columns_of_text_are_joined(self, tmp_path):
        table = self.read(tmp_path, b"nr;Befund;Urteil\n1;a;b\n2;;c\n", text_column=["Befund", "Urteil"])
        assert table.texts == {"1": "a\n\nb", "2": "c"}

    def test_a_wrong_column_is_named_with_those_that_exist(self, tmp_path):
        with pytest.raises(ValueError, match=r"no column 'text'\. Columns: 'nr', 'report'\."):
            self.read(tmp_path, b"nr,report\n1,x\n")

    @pytest.mark.parametrize("data", [b"", b"nr,text\n", b'nr,text\n1,"open', b"nr,text\n1,a,b\n"])
    def test_a_table_without_rows_or_cut_in_a_quote_is_refused(self, tmp_path, data):
        with pytest.raises(ValueError, match=r"ris\.csv(: the table|, data row 0 .*(never closes|3 cells))"):
            self.read(tmp_path, data)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Values that no writer should write are what is tested."""
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)


def tree_of(folder, count):
    """Files with ids of their own, made of one."""
    data, mark = element(SOPInstanceUID="1.2.3.1234567890"), b"1.2.3.1234567890"
    for number in range(count):
        place = folder / f"{number // 100}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}").write_bytes(data.replace(mark, b"1.2.3.%010d" % number))
    return folder


def test_an_index_that_was_killed_goes_on_and_gives_the_same(tmp_path):
    tree = tree_of(tmp_path / "tree", 600)
    whole = index_dicom(tree, to=tmp_path / "whole", num_proc=1)
    words = [sys.executable, "-m", "adaptor_hf.data", "index_dicom", str(tree), "--to", str(tmp_path / "killed")]
    state = tmp_path / "killed/headers.jsonl"
    process = subprocess.Popen([*words, "--num_proc", "1"], stderr=subprocess.DEVNULL, start_new_session=True)
    limit = time.monotonic() + 120
    while not (state.exists() and state.read_bytes().count(b"\n") > 130):
        assert process.poll() is None, "the index ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGSTOP)
    # Two that add to one file of headers would cut into each other's lines.
    with pytest.raises(BlockingIOError, match=rf"Another index .*process {process.pid}.* another --to"):
        index_dicom(tree, to=tmp_path / "killed", num_proc=1, take_over=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/pairs.csv").exists()
    with open(state, "ab") as file:
        file.write(b'["cut in the mid')
    rest = index_dicom(tree, to=tmp_path / "killed", num_proc=1)
    assert 128 <= rest.report["headers_from_an_earlier_call"] < 600
    assert (tmp_path / "killed/pairs.csv").read_bytes() == (tmp_path / "whole/pairs.csv").read_bytes()
    assert rest.table.equals(whole.table)
    assert index_dicom(tree, to=tmp_path / "killed").report["headers_from_an_earlier_call"] == 600
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_a_second_call_reads_only_what_is_new_or_changed(tmp_path, monkeypatch):
    tree = tree_of(tmp_path / "tree", 20)
    index_dicom(tree, to=tmp_path / "to")
    (tree / "0/20").write_bytes(element(SOPInstanceUID="1.2.9"))
    (tree / "0/3").write_bytes(b"x")
    (tree / "0/4").unlink()
    read = []
    original = index_module.header_facts
    monkeypatch.setattr(index_module, "header_facts", lambda *args: read.append(args[0]) or original(*args))
    found = index_dicom(tree, to=tmp_path / "to")
    assert [Path(path).name for path in sorted(read)] == ["20", "3"]
    assert len(found.table) == 19
    assert found.excluded == [("0/3", "not_dicom")]
    index_dicom(tree, to=tmp_path / "to", on="PatientID")
    assert len(read) == 2 + 20


def test_an_index_inside_the_export_does_not_index_itself(tmp_path):
    tree_of(tmp_path, 3)
    for _ in range(2):
        assert index_dicom(tmp_path, to=tmp_path / "pairs").report["objects"] == 3


def test_workers_give_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_CHUNK", 7)
    tree = tree_of(tmp_path / "tree", 30)
    assert index_dicom(tree, num_proc=2).table.equals(index_dicom(tree, num_proc=1).table)


def test_in_private_mode_ids_are_keyed_hashes_and_only_the_table_names_files(hospital, indexed, cases, tmp_path):
    key = b"k" * 32
    with private_mode(key):
        found = index_dicom(hospital / "export", hospital / "ris.csv", text_column="Report", to=tmp_path / "p")
    assert found.table["image_id"].to_pylist() == [keyed_hash(i, key) for i in indexed.table["image_id"].to_pylist()]
    assert found.table["patient_id"].to_pylist() == [
        keyed_hash(i, key) for i in indexed.table["patient_id"].to_pylist()
    ]
    assert found.table["text"].to_pylist() == indexed.table["text"].to_pylist()
    assert stat.S_IMODE((tmp_path / "p/pairs.csv").stat().st_mode) == 0o600
    secrets = {s for _, c in cases for s in (c.patient_id, c.family, c.given, c.accession, c.study_uid, c.image_uid)}
    secrets |= {f"{c.seen:%Y%m%d}" for _, c in cases} | {str(hospital), "older studies", "disc"}
    for path in (tmp_path / "p").iterdir():
        content = path.read_text(encoding="utf-8")
        leaked = {secret for secret in secrets if secret in content}
        assert not leaked if path.name != "pairs.csv" else leaked, path.name
    # What was read without the key is read anew: its ids are not hashed.
    with private_mode(b"l" * 32):
        again = index_dicom(hospital / "export", to=tmp_path / "p")
    assert again.report["headers_from_an_earlier_call"] == 0


def test_the_command_prints_counts_and_names_a_wrong_column(hospital, tmp_path, capsys):
    words = ["index_dicom", str(hospital / "export"), "--reports", str(hospital / "ris.csv"), "--to", str(tmp_path)]
    assert data_command(words) == 2
    assert "no column 'text'. Columns: 'AccessionNumber', 'PatientID" in capsys.readouterr().err
    assert data_command([*words, "--text_column", "Report"]) == 0
    said = capsys.readouterr()
    assert f"rows: {N} of" in said.out
    assert "left out by localizer: 1 (ImageType" in said.out
    assert "headers/s" in said.err
    assert "Headers (1 worker)" in said.err


def test_the_same_phantom_gives_the_same_export(hospital, tmp_path):
    again = write_layout(tmp_path / "again", N, "pacs", image_size=SIDE, seed=SEED)
    files = {p.relative_to(hospital): p.read_bytes() for p in hospital.rglob("*") if p.is_file()}
    assert files == {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()}
    assert len(list(generate_phantoms(2, image_size=SIDE, seed=SEED))) == 2


@pytest.mark.parametrize(("language", "encoding"), [("de", "cp1252"), ("es", "cp1252")])
def test_exports_have_reports_in_other_languages(tmp_path, language, encoding):
    root = write_layout(tmp_path / "x", 6, "pacs", image_size=SIDE, language=language)
    found = index_dicom(root / "export", root / "ris.csv", text_column="Report")
    assert (found.report["reports"]["encoding"], found.report["reports"]["delimiter"]) == (encoding, ";")
    assert found.report["reports"]["images_with_text"] == 6
