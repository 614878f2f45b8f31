"""One DICOM object's header as the few facts that an index needs. Pixels are not read, and values are not trusted."""

from __future__ import annotations

import os
import re
from datetime import date
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from ..files import open_regular
from .archives import parse_member, read_member
from .deflated import MAX_UNPACKED_BYTES, DeflatedError, unpacked
from .demographics import age_years, sex_code
from .dicom import WithinFile, is_deflated, looks_like_dicom, quiet_pydicom
from .dicom_values import pixel_bytes
from .images import MAX_PIXELS
from .missing import is_missing

if TYPE_CHECKING:
    from pydicom import Dataset

FAULTS = {
    "empty": "a file of zero bytes",
    "gone": "was there when the folder was listed, and is not any more",
    "unreadable": "the system does not let it be read (rights, device)",
    "not_a_file": "a pipe, socket or device",
    "file_name": "its name is not text, or ends in white space: a table cannot hold it",
    "hidden": "its name, or that of a folder, starts with a dot",
    "unsafe_member": "a zip member whose path is absolute or has '..'",
    "encrypted_member": "a zip member that needs a password",
    "packed_member": "a zip member that is packed in another way than stored or deflated",
    "broken_archive": "a zip that is cut short or damaged, or a damaged member",
    "unread_archive": "an archive in an archive, one packed with gzip, or one whose name does not end in .zip",
    "not_dicom": "not a DICOM file",
    "deflated": "of the deflated transfer syntax, and over 256 MiB when unpacked",
    "large_header": "over 64 MiB before the pixels, or without any",
    "broken": "a header that cannot be read, or that does not say what the pixels are",
    "truncated": "the file ends before its header or its pixels do",
    "no_pixels": "an image's header that no pixels follow: cut there, or written without them",
    "too_large": "more pixels than are decoded",
}
"""What can be wrong with an object, by the name it is counted under."""


_READS = (1 << 15, 1 << 20, 1 << 26)
_IDS = ("SOPInstanceUID", "PatientID", "StudyInstanceUID")
_WANTED = (
    *_IDS, "SOPClassUID", "Modality", "ImageType", "PresentationIntentType", "SeriesDescription", "ProtocolName",
    "ViewPosition", "ViewCodeSequence", "BodyPartExamined", "PatientSex", "PatientAge", "PatientBirthDate",
    "StudyDate", "BurnedInAnnotation", "EncryptedAttributesSequence", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "BitsAllocated", "BitsStored", "PhotometricInterpretation", "DirectoryRecordSequence",
)  # fmt: skip
_OVERLAYS = [group << 16 | 0x0010 for group in range(0x6000, 0x6020, 2)]
_INTEGERS = 0x7FE00010
_FLOATS = {0x7FE00008: 32, 0x7FE00009: 64}
_PIXELS = frozenset((*_FLOATS, _INTEGERS))
_PLAIN = frozenset(("AS", "CS", "DA", "IS", "LO", "SH", "UI"))
_SHORTS = frozenset(("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored"))
_UNDEFINED = 0xFFFFFFFF
_ITEM_HEAD = 8
_SEQUENCE_ENDS = (b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\xdd")
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_LOCALIZER = re.compile(r"\b(?:locali[sz]er|scout|topogram|surview)", re.IGNORECASE)
# Of PS3.16, CID 4010 and 4014: what a view is called in ViewCodeSequence, and its code of SNOMED-RT.
_VIEWS = {
    "POSTERO-ANTERIOR": "PA", "ANTERO-POSTERIOR": "AP", "LEFT LATERAL": "LL", "RIGHT LATERAL": "RL",
    "LATERAL": "LATERAL", "CRANIO-CAUDAL": "CC", "MEDIO-LATERAL OBLIQUE": "MLO",
    "R-10214": "PA", "R-10206": "AP", "R-10236": "LL", "R-10232": "RL", "R-10242": "CC", "R-10226": "MLO",
}  # fmt: skip


class Fault(NamedTuple):
    """What is wrong with an object."""

    kind: str
    """One of `FAULTS`."""
    found: str = ""
    """Which element, what was found, what was expected; no value of the header, path or id."""


class HeaderError(Exception):
    """An object that cannot be used; `str()` of it is one of `FAULTS`, `fault` has also what was found."""

    def __init__(self, kind: str, found: str = ""):
        super().__init__(kind)
        self.fault = Fault(kind, found)


class _CutShortError(Exception):
    """The bytes that were read end before the header does; with what was found there."""


class _Pixels(NamedTuple):
    tag: int
    start: int
    length: int
    """Bytes; -1 where it is not given."""
    offsets: int
    """Entries of the table of frames that compressed pixels start with."""


def header_facts(source: str | bytes, size: int, on: str) -> dict[str, Any]:
    """
    Facts of one object, from its header.

    Args:
        source: Path of a file, or of a member of a zip (`adaptor_hf.data.archives`); or a file's bytes.
        size: Of the file, or of the member when unpacked, in bytes.
        on: Keyword of the element that reports are joined on, such as "AccessionNumber".

    Returns:
        `uid`, `patient`, `study`, `key` (str or None: ids); `sop_class`, `syntax` (UIDs); `modality`, `view`, `sex`,
        `body_part`, `photometric`, `intent` (codes in capitals, or None); `image_type` (list of codes); `age` (years,
        float, or None), `bad_age` (bool); `frames`, `rows`, `columns`, `overlays` (int); `burned_in` ("YES", "NO" or
        None); `localizer`, `encrypted`, `pixels` (bool); `samples` (a pixel), `bits` (stored of each; int).

    Raises:
        HeaderError: It cannot be used; never anything else, whatever the file holds.
    """
    try:
        with quiet_pydicom():
            dataset, pixels = _parse(source, size, on)
            return _facts(dataset, pixels, on)
    except HeaderError:
        raise
    except Exception as error:
        raise HeaderError("broken", f"{type(error).__name__} in its values") from None


@cache
def tag_of(keyword: str) -> int:
    """
    Tag of an element of the header.

    Raises:
        ValueError: DICOM has no such keyword.
    """
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None or tag >> 16 >= 0x6000:
        raise ValueError(
            f"on={keyword!r} is no keyword of a DICOM header. Usual: AccessionNumber, StudyInstanceUID, StudyID, "
            "PatientID."
        )
    return tag


def read_head(source: str | bytes, limit: int) -> bytes:
    """
    The first bytes of a file, given by its path or its bytes, or of a member of a zip.

    Raises:
        OSError: As the system says.
        HeaderError: The member cannot be read.
    """
    if isinstance(source, bytes):
        return source[:limit]
    member = parse_member(source)
    if member is None:
        with open_regular(source) as file:
            # Python allocates all that is asked for.
            return file.read(min(limit, os.fstat(file.fileno()).st_size))
    try:
        return read_member(member, limit)
    except ValueError:
        raise HeaderError("broken_archive") from None


def _parse(source: str | bytes, size: int, on: str) -> tuple[Dataset, _Pixels | None]:
    """The wanted elements, and where the pixels are."""
    if size == 0:
        raise HeaderError("empty")
    tags = _tags(on)
    found, deflated = "", False
    for limit in _READS:
        try:
            data = read_head(source, limit)
        except FileNotFoundError:
            raise HeaderError("gone") from None
        except OSError:
            raise HeaderError("unreadable") from None
        if limit == _READS[0]:
            deflated = _check_kind(data)
        if deflated:
            data, size = _unpacked(source, limit)
        whole = len(data) < limit
        try:
            return _parse_bytes(data, whole, limit == _READS[0], size, tags)
        except _CutShortError as cut:
            found = str(cut)
            if whole:
                raise HeaderError("truncated", found) from None
    raise HeaderError("large_header", found)


@cache
def _tags(on: str) -> list[int]:
    return [tag_of(name) for name in {*_WANTED, on}] + _OVERLAYS


def _check_kind(data: bytes) -> bool:
    """Whether it is deflated."""
    if not looks_like_dicom(data):
        raise HeaderError("unread_archive" if data.startswith((b"PK\x03\x04", b"\x1f\x8b")) else "not_dicom")
    return is_deflated(data)


def _unpacked(source: str | bytes, limit: int) -> tuple[bytes, int]:
    """The first bytes of a deflated file, unpacked, and how many it has."""
    try:
        if isinstance(source, str) and parse_member(source) is None:
            with open_regular(source) as file:
                return unpacked(file, limit)
        return unpacked(BytesIO(read_head(source, MAX_UNPACKED_BYTES)), limit)
    except DeflatedError as error:
        raise HeaderError("deflated" if error.large else "broken", str(error)) from None


def _parse_bytes(data: bytes, whole: bool, short: bool, size: int, tags: list[int]) -> tuple[Dataset, _Pixels | None]:
    """
    Args:
        whole: The data is all of the file.
        short: The data is a small part: what looks like damage may be where it was cut.
    """
    from pydicom.filereader import read_partial

    # In memory a length that is blown up reads no further than the data; of a file it would be allocated first.
    stream = WithinFile(BytesIO(data))
    last = (0, 0, -1)
    pixels = None

    def at_element(tag: int, vr: str | None, length: int) -> bool:
        nonlocal pixels, last
        start = stream.tell()
        last = (tag, start, length)
        if tag in _PIXELS:
            pixels = _Pixels(tag, start, -1 if length == _UNDEFINED else length, 0)
            return True
        if length != _UNDEFINED and start + length > len(data):
            raise _CutShortError(f"{_element(tag)} has {size - start:,} bytes, expected {length:,}")
        return False

    try:
        dataset = read_partial(stream, at_element, force=True, specific_tags=tags)
    except _CutShortError:
        raise
    except Exception as error:
        if stream.tell() >= len(data) or isinstance(error, EOFError):
            raise _CutShortError(_ends_in(last)) from None
        if short and not whole:
            raise _CutShortError from None
        raise HeaderError("broken", f"{type(error).__name__} in or after {_element(last[0])}") from None
    if pixels is None:
        _check_end(data, whole, short, stream.tell(), last)
    elif pixels.start + (_ITEM_HEAD if pixels.length < 0 else pixels.length) > size:
        has = f"{_element(pixels.tag)} has {max(size - pixels.start, 0):,} bytes"
        expected = f"{_ITEM_HEAD} or more" if pixels.length < 0 else f"{pixels.length:,}"
        raise HeaderError("truncated", f"{has}, expected {expected}")
    elif pixels.length < 0:
        pixels = pixels._replace(offsets=_offsets(data[pixels.start : pixels.start + _ITEM_HEAD]))
    return dataset, pixels


def _check_end(data: bytes, whole: bool, short: bool, stopped: int, last: tuple[int, int, int]) -> None:
    """What was read without meeting pixels: it may go on, or end amid an element, which pydicom passes over."""
    tag, start, length = last
    if stopped < len(data) and not (length == _UNDEFINED and stopped <= start):
        # An item's end stands where none is open.
        if whole or not short:
            raise HeaderError("broken", f"the elements end after {_element(tag)}, {len(data) - stopped:,} bytes early")
        raise _CutShortError
    if not whole or length < 0:
        raise _CutShortError(_ends_in(last))
    if length == _UNDEFINED:
        if not data.rstrip(b"\0").endswith(_SEQUENCE_ENDS):
            raise _CutShortError(_ends_in(last))
    elif rest := data[start + length :].strip(b"\0 "):
        raise _CutShortError(f"{len(rest)} bytes of an element after {_element(tag)}, expected 8 or more")


def _ends_in(last: tuple[int, int, int]) -> str:
    tag, _, length = last
    return f"the file ends in or after {_element(tag)}" if length >= 0 else "no element after the file's meta header"


def _element(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    # The number of a tag that does not exist is text that was taken for one.
    if keyword := keyword_for_tag(tag):
        return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword}"
    return f"a private element of group {tag >> 16:04X}" if tag >> 16 & 1 else "an element that is not in the standard"


def _offsets(item: bytes) -> int:
    """Entries of the basic offset table, of the head of its item: one a frame (PS3.5, A.4)."""
    return (
        int.from_bytes(item[4:8], "little") // 4 if item[:4] == b"\xfe\xff\x00\xe0" and len(item) == _ITEM_HEAD else 0
    )


def _facts(dataset: Dataset, pixels: _Pixels | None, on: str) -> dict[str, Any]:
    ids = [None if is_missing(text := _text(dataset, name)) else text for name in (*_IDS, on)]
    numbers = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "NumberOfFrames")
    rows, columns, samples, allocated, stored, frames = (_number(dataset, name) for name in numbers)
    samples, frames = max(samples, 1), max(frames, 1)
    syntax = _meta(dataset, "TransferSyntaxUID")
    sop_class = _uid(_text(dataset, "SOPClassUID"))
    photometric = _code(dataset, "PhotometricInterpretation")
    if rows * columns > MAX_PIXELS:
        raise HeaderError("too_large", f"{columns:,} x {rows:,} pixels, expected {MAX_PIXELS:,} at most")
    if pixels is None:
        # A cut may come before the class; the file's meta header has it too.
        named = sop_class or _uid(_meta(dataset, "MediaStorageSOPClassUID"))
        if _is_image(named) or (named is None and rows and columns and photometric):
            raise HeaderError("no_pixels", "no (7FE0,0010) PixelData")
    if pixels is not None:
        needed = ("Rows", "Columns", "BitsAllocated", *(("BitsStored",) if pixels.tag == _INTEGERS else ()))
        for keyword in needed:
            if _number(dataset, keyword) == 0:
                raise HeaderError("broken", _lacks(dataset, keyword))
        allocated = _FLOATS.get(pixels.tag, allocated)
        frames = _frames(pixels, frames, pixel_bytes(rows, columns, samples, 1, allocated, photometric))
    age, bad_age = _age(dataset)
    there = set(dataset.keys())
    return {
        **dict(zip(("uid", "patient", "study", "key"), ids, strict=True)),
        "sop_class": sop_class,
        "syntax": _uid(syntax),
        "modality": _code(dataset, "Modality"),
        "image_type": [value.strip().upper() for value in _values(dataset, "ImageType")][:8],
        "intent": _code(dataset, "PresentationIntentType"),
        "localizer": any(_LOCALIZER.search(_text(dataset, n) or "") for n in ("SeriesDescription", "ProtocolName")),
        "view": _view(dataset),
        "body_part": _code(dataset, "BodyPartExamined"),
        "sex": sex_code(_text(dataset, "PatientSex")),
        "age": age,
        "bad_age": bad_age,
        "frames": frames,
        "rows": rows,
        "columns": columns,
        "photometric": photometric,
        "samples": samples,
        "bits": stored or allocated,
        "burned_in": burned if (burned := _code(dataset, "BurnedInAnnotation")) in ("YES", "NO") else None,
        "overlays": sum(tag in there for tag in _OVERLAYS),
        "encrypted": "EncryptedAttributesSequence" in dataset,
        "pixels": pixels is not None,
        "directory": "DirectoryRecordSequence" in dataset,
    }


def _frames(pixels: _Pixels, frames: int, one: int) -> int:
    """
    Number of frames, which not all writers give.

    Args:
        frames: That the header gives, or 1.
        one: Bytes of an uncompressed frame.

    Raises:
        HeaderError: There are fewer bytes than these frames need.
    """
    if pixels.length < 0:
        return max(frames, pixels.offsets)
    if pixels.length < frames * one:
        raise HeaderError("truncated", f"{_element(pixels.tag)} has {pixels.length:,} bytes, expected {frames * one:,}")
    # An odd number of bytes is made even, which is no second frame of one byte.
    return pixels.length // one if frames == 1 and pixels.length > one + 1 else frames


def _lacks(dataset: Dataset, keyword: str) -> str:
    there = _text(dataset, keyword)
    state = "is missing" if tag_of(keyword) not in dataset else "is empty" if there is None else "is no number over 0"
    return f"{_element(tag_of(keyword))} {state}, expected a number over 0"


@cache
def _is_image(sop_class: str | None) -> bool:
    """Whether objects of this class have pixels, by its name in the standard."""
    from pydicom.uid import UID

    return sop_class not in (None, "private") and "Image Storage" in UID(sop_class).name


def _values(dataset: Dataset, keyword: str) -> list[str]:
    """Values of an element as text; none where it is missing or cannot be understood."""
    from pydicom.multival import MultiValue

    raw = dataset.get_item(tag_of(keyword))
    if raw is None or not raw.value:
        return []
    # Most are plain ASCII, or one number: pydicom's way to them takes most of the time of a header.
    # An escape starts text of another character set, in bytes that are ASCII too.
    if isinstance(raw.value, bytes) and _is_plain(keyword) and raw.value.isascii() and b"\x1b" not in raw.value:
        return raw.value.decode().split("\\")
    if isinstance(raw.value, bytes) and keyword in _SHORTS and len(raw.value) == 2:
        return [str(int.from_bytes(raw.value, "little" if raw.is_little_endian else "big"))]
    try:
        value = dataset.get(keyword)
    except Exception:
        # pydicom converts when asked, and a damaged value raises what it likes: it is as unknown as one left out.
        return []
    return [str(item) for item in value] if isinstance(value, MultiValue) else [str(value)]


@cache
def _is_plain(keyword: str) -> bool:
    from pydicom.datadict import dictionary_VR

    return dictionary_VR(tag_of(keyword)) in _PLAIN


def _text(dataset: Dataset, keyword: str) -> str | None:
    values = _values(dataset, keyword)
    # A NUL pads what a faulty writer made even; half a surrogate pair fits into no file.
    text = values[0].strip(" \t\r\n\0").encode("utf-8", "ignore").decode() if values else ""
    return text or None


def _code(dataset: Dataset, keyword: str) -> str | None:
    text = (_text(dataset, keyword) or "").upper()
    return text if _CODE.fullmatch(text) else None


def _number(dataset: Dataset, keyword: str) -> int:
    text = _text(dataset, keyword)
    return int(text) if text and re.fullmatch(r"\d{1,9}", text) else 0


def _meta(dataset: Dataset, keyword: str) -> str | None:
    value = getattr(dataset, "file_meta", {}).get(keyword)
    return None if value is None else str(value).strip(" \0")


def _uid(text: str | None) -> str | None:
    """A UID of the standard, "private" for one of a maker, None where there is none."""
    if text is None:
        return None
    return text if re.fullmatch(r"1\.2\.840\.10008\.[0-9.]{1,48}", text) else "private"


def _view(dataset: Dataset) -> str | None:
    if view := _code(dataset, "ViewPosition"):
        return view
    try:
        items = list(dataset.get("ViewCodeSequence") or [])
    except Exception:
        # As in `_values`: a damaged sequence says no view.
        return None
    for item in items[:1]:
        for keyword in ("CodeMeaning", "CodeValue"):
            view = _VIEWS.get((_text(item, keyword) or "").upper())
            if view:
                return view
    return None


def _age(dataset: Dataset) -> tuple[float | None, bool]:
    """Years by PatientAge, else by birth date and study date; and whether there was an age that is none."""
    text = _text(dataset, "PatientAge")
    if not is_missing(text):
        years = age_years(text)
    else:
        born, studied = (_date(dataset, name) for name in ("PatientBirthDate", "StudyDate"))
        if born is None or studied is None:
            return None, False
        years = float(studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day)))
    # Birth date and study date may be mistaken for each other.
    years = age_years(years)
    return (None, True) if years is None else (round(years, 2), False)


def _date(dataset: Dataset, keyword: str) -> date | None:
    try:
        return date.fromisoformat(_text(dataset, keyword) or "")
    except ValueError:
        return None


__all__ = ["FAULTS", "Fault", "HeaderError", "header_facts", "read_head", "tag_of"]
