"""Which pixels of a mask file are inside: files of two values, soft edges cut at half; what is no mask is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from .images import opened, read_image

MASK_VALUES = ("binary", "half", "nonzero")
"""How a file's values become a mask. "binary": two values, the upper one is inside; grey edges are cut at half of the
maximum; a label map or a picture is refused. "half": cut at half, whatever the file. "nonzero": every value above 0 is
inside, as of a label map whose structures belong together."""

# Structures are numbered from 1; a picture's brightest value is above that.
MOST_LEVELS = 16
# Compression smears the edges of a mask over grey values, and lifts its background above 0.
_JPEG_NOISE = 32
# Of the pixels above the background: so many inside even areas of grey make a label map; and of the picture, so many
# grey ones, most of what is not background, make a picture.
_EVEN_SHARE, _GREY_SHARE, _GREY_MAJORITY = 0.02, 0.1, 0.5
_MOST_LOOKED_AT = 100_000
_WAY_OUT = (
    "Save it with two values; or say --mask_values nonzero (every value above 0 is inside) or half (the upper half is)."
)


@dataclass
class MaskValues:
    """
    Values of a mask file.

    Args:
        values (`np.ndarray` of shape `(H, W)`, float32): Grey values; of a picture that is one colour on a transparent
            ground, its opacity.
        jpeg (`bool`): Whether compression may have changed them.
    """

    values: np.ndarray
    jpeg: bool = False

    @classmethod
    def read(cls, source: str | bytes) -> MaskValues:
        """Of a path or of encoded bytes. Palettes are read as the grey they mean. Raises as `read_image`."""
        values = read_image(source, return_raw=True)
        with opened(source) as (stream, _):
            jpeg = stream.read(2) == b"\xff\xd8"
            stream.seek(0)
            opacity = None if jpeg else _opacity(stream)
        return cls(values if opacity is None else opacity, jpeg)

    @property
    def two_values(self) -> bool:
        """Whether there are the two of a mask and no other, the edges in a JPEG aside; or 0 alone."""
        if self.jpeg:
            return float(self._between().mean()) < 0.02
        return bool(self.values.min() == 0 and ((self.values == 0) | (self.values == self.values.max())).all())

    def inside(self, rule: str = "binary") -> tuple[np.ndarray, bool]:
        """
        The mask, and whether grey values were cut.

        Args:
            rule (`str`, defaults to `"binary"`): One of `MASK_VALUES`.

        Returns:
            `tuple[np.ndarray, bool]`: `(H, W)` bool; True where there are grey pixels beside the two values (of a JPEG,
            more than bright ones).

        Raises:
            ValueError: Values below 0; and under "binary" a label map, a picture, or a file without background.
        """
        values, low, top = self.values, float(self.values.min()), float(self.values.max())
        if low < 0:
            raise ValueError(f"a mask has no values below 0, found {low:g}.")
        if rule == "nonzero":
            return values > (_JPEG_NOISE if self.jpeg else 0), False
        inside = values > (127 if self.jpeg else top / 2)
        if rule == "half":
            return inside, False
        between = self._between()
        self._check(values, low, top, between)
        grey = between.sum() > (values >= 255 - _JPEG_NOISE).sum() if self.jpeg else between.any()
        return inside, bool(grey)

    def _between(self) -> np.ndarray:
        """Pixels of neither of two values."""
        values = self.values
        if self.jpeg:
            return (values > _JPEG_NOISE) & (values < 255 - _JPEG_NOISE)
        return (values > values.min()) & (values < values.max())

    def _check(self, values: np.ndarray, low: float, top: float, between: np.ndarray) -> None:
        if self.jpeg and 0 < top < 128:
            raise ValueError(
                f"not a mask: a JPEG whose brightest value is {top:g} of 255, and compression changes values by more "
                "than that. Save masks as PNG."
            )
        if top / 4 < low < top:
            raise ValueError(
                f"not a mask: its values are {low:g} to {top:g}, none is 0, so nothing is outside. Save the outside as "
                "0 and the inside as 255."
            )
        if not between.any():
            return
        levels = np.unique(values[between])
        structures = not self.jpeg and top <= MOST_LEVELS and bool((levels == np.rint(levels)).all())
        filled = int((values > (_JPEG_NOISE if self.jpeg else low)).sum())
        if structures or _even(values, low, top, self.jpeg) > _EVEN_SHARE * filled:
            shown = ", ".join(f"{level:g}" for level in levels[:4]) + (", ..." if len(levels) > 4 else "")
            raise ValueError(
                f"not a mask of two values: it has areas of {shown} beside {low:g} and {top:g}, as a label map of "
                f"several structures has. {_WAY_OUT}"
            )
        if between.sum() > max(_GREY_SHARE * values.size, _GREY_MAJORITY * filled):
            raise ValueError(
                f"not a mask: {between.mean():.0%} of its pixels are grey, {len(levels)} values between {low:g} and "
                f"{top:g}, as in a radiograph or a map of probabilities. {_WAY_OUT}"
            )


def array_values(array: np.ndarray) -> MaskValues:
    """Values of an array (H, W) of any number type. Raises ValueError for another shape or NaN."""
    if array.ndim != 2:
        raise ValueError(f"A mask has shape (H, W), got {array.shape}.")
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("A mask array has NaN or infinite values. A mask that is not known is None.")
    return MaskValues(values)


def _even(values: np.ndarray, low: float, top: float, jpeg: bool) -> int:
    """Pixels of middling grey whose eight neighbours have the same value: an edge has none, whatever its width."""
    if min(values.shape) < 3:
        return 0
    margin, centre = (top - low) / 8, values[1:-1, 1:-1]
    rows, columns = np.nonzero((centre > low + margin) & (centre < top - margin))
    # Of a picture all pixels would be looked at.
    step = 1 + len(rows) // _MOST_LOOKED_AT
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3))[rows[::step], columns[::step]]
    return step * int((np.ptp(windows, axis=(1, 2)) <= (4 if jpeg else 0)).sum())


def _opacity(stream) -> np.ndarray | None:
    """Opacity of a picture that has one colour on a transparent ground, such as black drawn on nothing; else None."""
    try:
        picture = Image.open(stream)
    except OSError:
        return None
    if not picture.has_transparency_data:
        return None
    pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGBA"))
    drawn = pixels[pixels[:, :, 3] > 0]
    if (pixels[:, :, 3] == 255).all() or (drawn[:, :3] != drawn[:1, :3]).any():
        return None
    return pixels[:, :, 3].astype(np.float32)


__all__ = ["MASK_VALUES", "MOST_LEVELS", "MaskValues", "array_values"]
