"""Damaged DICOM files: neither the index nor `read_image` crashes, hangs or takes more memory than the file holds."""

import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from adaptor_hf.phantom.generate import plan
from adaptor_hf.phantom.layout_pacs import dicom_object

ROOT = Path(__file__).parents[1]
COUNT, SIDE = 200, 64
# Of the process with all that it imports; a length that is blown up asks for 4 GiB.
LIMIT = 256 << 20

# Runs in a process of its own: a crash is its exit status, and memory beyond what it has after its imports is limited.
CHILD = """
import json, resource, sys, time
from pathlib import Path
from adaptor_hf.data.images import image_size, read_image
from adaptor_hf.data.dicom_headers import HeaderError, header_facts
from adaptor_hf.data.pacs.walk import referenced_files

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
files = sorted(folder.iterdir())
whole = files.pop()
for voi_lut in (True, False):
    read_image(whole, voi_lut=voi_lut)
header_facts(str(whole), whole.stat().st_size, "AccessionNumber")
now = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (now + limit, now + limit))
counts = {"read": 0, "refused": 0, "indexed": 0, "faults": 0}
slowest = 0.0
for path in files:
    start = time.process_time()
    for read in (read_image, lambda p: read_image(p, voi_lut=True, return_raw=True), image_size):
        try:
            read(path)
            counts["read"] += 1
        except (ValueError, ImportError) as error:
            cause = error
            while cause is not None:
                assert not isinstance(cause, MemoryError), f"{path.name} asks for too much memory"
                cause = cause.__cause__ or cause.__context__
            counts["refused"] += 1
    try:
        facts = header_facts(str(path), path.stat().st_size, "AccessionNumber")
        json.dumps(facts, ensure_ascii=False).encode("utf-8")
        counts["indexed"] += 1
    except HeaderError as error:
        cause = error.__context__
        while cause is not None:
            assert not isinstance(cause, MemoryError), f"{path.name} asks for too much memory"
            cause = cause.__context__
        counts["faults"] += 1
    try:
        referenced_files(path)
    except ValueError:
        pass
    slowest = max(slowest, time.process_time() - start)
print(json.dumps(counts | {"slowest": slowest}))
"""


def originals():
    """A plain file, an implicit one, one with sequences, one with JPEG inside, one of the other byte order."""
    planned = next(plan(1, SIDE, 0))
    record = planned.record(SIDE, 0)
    plain = dicom_object(planned, record, 0)
    item = pydicom.Dataset()
    item.CodeMeaning, item.CodeValue = "postero-anterior", "R-10214"
    plain.ViewCodeSequence = [item]
    plain["ViewCodeSequence"].is_undefined_length = True
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    record["image"].save(stream, "JPEG")
    files = []
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, JPEGBaseline8Bit):
        dataset = copy.deepcopy(plain)
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == JPEGBaseline8Bit:
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
            dataset.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
            dataset["PixelData"].VR = "OB"
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        files.append(saved(dataset))
    return files


def saved(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def mutated(data, generator):
    """One of: flipped bits, a stretch of noise, a cut, a length field blown up, a stretch taken out or repeated."""
    data = bytearray(data)
    # Half of the damage is in the header, which is a small part of the file.
    end = generator.choice([1200, len(data)])
    place = int(generator.integers(0, end - 16))
    kind = generator.integers(6)
    if kind == 0:
        for at in generator.integers(0, end, generator.integers(1, 40)):
            data[at] ^= 1 << generator.integers(8)
    elif kind == 1:
        size = int(generator.integers(1, 64))
        data[place : place + size] = generator.bytes(size)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        # What a length field of a value of some VR looks like, made long: 4 bytes, or 2.
        marks = [b"OW\0\0", b"OB\0\0", b"UN\0\0", b"SQ\0\0", b"UI", b"LO", b"CS", b"DS", b"US", b"PN"]
        mark = marks[generator.integers(len(marks))]
        found = [at for at in range(132, len(data) - 8) if data.startswith(mark, at)]
        at = int(generator.choice(found)) + len(mark) if found else place
        width = 4 if len(mark) == 4 or not found else 2
        data[at : at + width] = [b"\xff\xff\xff\xff", b"\xfe\xff\xff\xff", b"\0\0\0\x7f"][generator.integers(3)][:width]
    elif kind == 4:
        del data[place : place + int(generator.integers(1, 200))]
    else:
        piece = bytes(data[place : place + int(generator.integers(8, 300))])
        data[place:place] = piece * int(generator.integers(1, 20))
    return bytes(data)


def looked_at(folder):
    """Counts of the child over the files of a folder, of which the last is whole."""
    words = [sys.executable, "-c", CHILD, str(folder), str(LIMIT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def cuts(data):
    """Places amid and at the end of each element's tag and length, and amid its value."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    meta = dataset.file_meta["ImplementationVersionName"].file_tell
    elements = list(map(dataset.get_item, dataset.keys()))
    starts = [getattr(element, "value_tell", None) or element.file_tell for element in elements]
    return sorted({start + step for start in starts for step in (-5, 0, 1) if start + step > meta})


def test_files_cut_at_each_element_are_faults_and_nothing_else(tmp_path):
    whole = originals()
    count = 0
    for number, data in enumerate(whole):
        for place in cuts(data):
            (tmp_path / f"{number}-{place:06d}").write_bytes(data[:place])
            count += 1
    (tmp_path / "999").write_bytes(whole[0])
    counts = looked_at(tmp_path)
    assert count > 300
    assert (counts["faults"], counts["indexed"]) == (count, 0)
    assert counts["slowest"] < 20


def test_200_damaged_files_are_read_or_refused_within_little_memory(tmp_path):
    generator = np.random.default_rng(20240611)
    whole = originals()
    for number in range(COUNT):
        (tmp_path / f"{number:03d}").write_bytes(mutated(whole[number % len(whole)], generator))
    (tmp_path / "999").write_bytes(whole[0])
    counts = looked_at(tmp_path)
    assert counts["indexed"] + counts["faults"] == COUNT
    assert counts["read"] + counts["refused"] == 3 * COUNT
    # The damage is neither so small that all is read nor so great that nothing is.
    assert min(counts[name] for name in ("read", "refused", "indexed", "faults")) > COUNT // 10
    # Seconds of work for one file of 10 kB: a hang, on any machine.
    assert counts["slowest"] < 20


@pytest.mark.parametrize("bits", [1, 64])
def test_pixel_formats_that_ask_for_more_than_the_file_holds_are_refused(tmp_path, bits):
    from adaptor_hf.data.images import read_image

    dataset = pydicom.dcmread(io.BytesIO(originals()[0]))
    dataset.Rows = dataset.Columns = 8000
    dataset.BitsAllocated = bits
    (tmp_path / "a").write_bytes(saved(dataset))
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_image(tmp_path / "a")
