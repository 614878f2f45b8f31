"""One DICOM object's header as the few facts that an index needs. Pixels are not read, and values are not trusted."""

from __future__ import annotations

import os
import re
from datetime import date
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .archives import parse_member, read_member
from .demographics import age_years, sex_code
from .dicom import is_deflated, looks_like_dicom, quiet_pydicom
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
    "unread_archive": "an archive in an archive, or one whose name does not end in .zip",
    "not_dicom": "not a DICOM file",
    "deflated": "the deflated transfer syntax; convert it to an uncompressed one",
    "large_header": "over 64 MiB before the pixels",
    "broken": "a header that cannot be read",
    "truncated": "the file ends before its header or its pixels do",
    "too_large": "more pixels than are decoded",
}
"""What can be wrong with an object, by the name it is counted under."""


_READS = (1 << 15, 1 << 20, 1 << 26)
_IDS = ("SOPInstanceUID", "PatientID", "StudyInstanceUID")
_WANTED = (
    *_IDS, "SOPClassUID", "Modality", "ImageType", "PresentationIntentType", "SeriesDescription", "ProtocolName",
    "ViewPosition", "ViewCodeSequence", "BodyPartExamined", "PatientSex", "PatientAge", "PatientBirthDate",
    "StudyDate", "BurnedInAnnotation", "EncryptedAttributesSequence", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation", "DirectoryRecordSequence",
)  # fmt: skip
_OVERLAYS = [group << 16 | 0x0010 for group in range(0x6000, 0x6020, 2)]
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_PLAIN = frozenset(("AS", "CS", "DA", "IS", "LO", "SH", "UI"))
_SHORTS = frozenset(("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"))
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_LOCALIZER = re.compile(r"\b(?:locali[sz]er|scout|topogram|surview)", re.IGNORECASE)
# Of PS3.16, CID 4010 and 4014: what a view is called in ViewCodeSequence, and its code of SNOMED-RT.
_VIEWS = {
    "POSTERO-ANTERIOR": "PA", "ANTERO-POSTERIOR": "AP", "LEFT LATERAL": "LL", "RIGHT LATERAL": "RL",
    "LATERAL": "LATERAL", "CRANIO-CAUDAL": "CC", "MEDIO-LATERAL OBLIQUE": "MLO",
    "R-10214": "PA", "R-10206": "AP", "R-10236": "LL", "R-10232": "RL", "R-10242": "CC", "R-10226": "MLO",
}  # fmt: skip


class HeaderError(Exception):
    """An object that cannot be used; `str()` of it is one of `FAULTS`."""


class _CutShortError(Exception):
    """The bytes that were read end before the header does."""


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
        None); `localizer`, `encrypted`, `pixels` (bool).

    Raises:
        HeaderError: It cannot be used; never anything else, whatever the file holds.
    """
    try:
        with quiet_pydicom():
            dataset, pixels = _parse(source, size, on)
            return _facts(dataset, pixels, size, on)
    except HeaderError:
        raise
    except FileNotFoundError:
        raise HeaderError("gone") from None
    except OSError:
        raise HeaderError("unreadable") from None
    except Exception:
        raise HeaderError("broken") from None


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
        with open(source, "rb") as file:
            # Python allocates all that is asked for.
            return file.read(min(limit, os.fstat(file.fileno()).st_size))
    try:
        return read_member(member, limit)
    except ValueError:
        raise HeaderError("broken_archive") from None


def _parse(source: str | bytes, size: int, on: str) -> tuple[Dataset, tuple[int, int] | None]:
    """The wanted elements, and offset and length of the pixels' element; the length is -1 where it is not given."""
    if size == 0:
        raise HeaderError("empty")
    tags = _tags(on)
    for limit in _READS:
        data = read_head(source, limit)
        if limit == _READS[0]:
            _check_kind(data)
        try:
            return _parse_bytes(data, len(data) < limit, size, tags)
        except _CutShortError:
            if len(data) < limit:
                raise HeaderError("truncated") from None
    raise HeaderError("large_header")


@cache
def _tags(on: str) -> list[int]:
    return [tag_of(name) for name in {*_WANTED, on}] + _OVERLAYS


def _check_kind(data: bytes) -> None:
    if not looks_like_dicom(data):
        raise HeaderError("unread_archive" if data[:4] == b"PK\x03\x04" else "not_dicom")


def _parse_bytes(data: bytes, whole: bool, size: int, tags: list[int]) -> tuple[Dataset, tuple[int, int] | None]:
    from pydicom.filereader import read_partial

    # In memory a length that is blown up reads no further than the data; of a file it would be allocated first.
    stream = BytesIO(data)
    if is_deflated(data):
        raise HeaderError("deflated")
    pixels = None

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        nonlocal pixels
        if tag in _PIXELS:
            pixels = (stream.tell(), -1 if length == 0xFFFFFFFF else length)
            return True
        if length != 0xFFFFFFFF and stream.tell() + length > len(data):
            raise _CutShortError
        return False

    try:
        dataset = read_partial(stream, at_pixels, force=True, specific_tags=tags)
    except EOFError:
        raise _CutShortError from None
    if pixels is None and not whole:
        raise _CutShortError
    if pixels is not None and pixels[0] + max(pixels[1], 1) > size:
        raise HeaderError("truncated")
    return dataset, pixels


def _facts(dataset: Dataset, pixels: tuple[int, int] | None, size: int, on: str) -> dict[str, Any]:
    ids = [None if is_missing(text := _text(dataset, name)) else text for name in (*_IDS, on)]
    sizes = [_number(dataset, name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    rows, columns, samples, bits = sizes
    frames = _number(dataset, "NumberOfFrames") or 1
    syntax = _syntax(getattr(dataset, "file_meta", {}))
    if rows * columns > MAX_PIXELS:
        raise HeaderError("too_large")
    if pixels is not None and pixels[1] >= 0 and pixels[1] < rows * columns * max(samples, 1) * frames * bits // 8:
        raise HeaderError("truncated")
    age, bad_age = _age(dataset)
    there = set(dataset.keys())
    return {
        **dict(zip(("uid", "patient", "study", "key"), ids, strict=True)),
        "sop_class": _uid(_text(dataset, "SOPClassUID")),
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
        "photometric": _code(dataset, "PhotometricInterpretation"),
        "burned_in": burned if (burned := _code(dataset, "BurnedInAnnotation")) in ("YES", "NO") else None,
        "overlays": sum(tag in there for tag in _OVERLAYS),
        "encrypted": "EncryptedAttributesSequence" in dataset,
        "pixels": pixels is not None and bool(rows and columns),
        "directory": "DirectoryRecordSequence" in dataset,
    }


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


def _syntax(meta: Any) -> str | None:
    value = meta.get("TransferSyntaxUID")
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


__all__ = ["FAULTS", "HeaderError", "header_facts", "read_head", "tag_of"]
