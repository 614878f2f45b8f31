"""Formats of images that are not read, by a file's name or its first bytes: what they are, and how to convert them."""

from __future__ import annotations

_VOLUME = "Choose the slices and save each as 16-bit PNG or DICOM, for example with SimpleITK"
_NIFTI = f"NIfTI, a format of volumes. {_VOLUME} or nibabel"
_NRRD = f"NRRD, a format of volumes. {_VOLUME}"
_META = f"MetaImage, a format of volumes. {_VOLUME}"
_HEIC = "HEIC, a phone's photo. Convert it to PNG or JPEG, for example with `heif-convert` or ImageMagick"
_ENDINGS = {
    ".nii": _NIFTI,
    ".nii.gz": _NIFTI,
    ".nrrd": _NRRD,
    ".nhdr": _NRRD,
    ".mha": _META,
    ".mhd": _META,
    ".mgz": f"a volume of FreeSurfer. {_VOLUME}",
    ".heic": _HEIC,
    ".heif": _HEIC,
    ".svs": "a whole-slide image. Export a level or tiles of it as PNG, for example with OpenSlide",
    ".ndpi": "a whole-slide image. Export a level or tiles of it as PNG, for example with OpenSlide",
    ".mrxs": "a whole-slide image. Export a level or tiles of it as PNG, for example with OpenSlide",
    ".svg": "SVG, a drawing. Export it as PNG",
    ".pdf": "a PDF file. Export its picture as PNG, for example with `pdfimages -png`",
    ".mat": "a file of MATLAB. Save the picture with imwrite as PNG",
    ".h5": "an HDF5 file. Save its pictures as PNG, or make a datasets folder of them",
    ".hdf5": "an HDF5 file. Save its pictures as PNG, or make a datasets folder of them",
    ".npz": "an archive of NumPy arrays. Save its pictures as PNG, or make a datasets folder of them",
    ".mp4": "a video. Save the frames that you want as PNG, for example with ffmpeg",
    ".avi": "a video. Save the frames that you want as PNG, for example with ffmpeg",
}
"""Endings in lower case; of two that fit the longer counts."""

FORMAT_BYTES = 348
READ = "DICOM, PNG, JPEG, TIFF, BMP, GIF or WebP"


def foreign_format(name: str, head: bytes = b"") -> str | None:
    """
    What a file that is not read as an image is, and how to convert it: a phrase such as "NIfTI, a format of ...".

    Args:
        name: Path or name of the file.
        head: Its first `FORMAT_BYTES`; they come before the name.

    Returns:
        None for every other file.
    """
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return _NIFTI
    if head.startswith(b"NRRD000"):
        return _NRRD
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return _HEIC
    if head.startswith((b"ObjectType = Image", b"ObjectType=Image", b"NDims =")):
        return _META
    if head.startswith(b"%PDF"):
        return _ENDINGS[".pdf"]
    lower = name.lower()
    fitting = [ending for ending in _ENDINGS if lower.endswith(ending)]
    return _ENDINGS[max(fitting, key=len)] if fitting else None


def endings() -> tuple[str, ...]:
    """Endings of files that `foreign_format` knows, in lower case."""
    return tuple(_ENDINGS)


__all__ = ["FORMAT_BYTES", "READ", "endings", "foreign_format"]
