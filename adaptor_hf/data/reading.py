"""`Reading`: how the files of an image column become pixels. One value, from the column to a checkpoint's processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .value_range import check_percentile

if TYPE_CHECKING:
    from PIL import Image

MODES = ("L", "RGB")
IMAGE_MODES = ("auto", *MODES)
"""What `image_mode` takes: "auto" looks at the files, or takes what a public data set declares."""


@dataclass(frozen=True)
class Reading:
    """How `read_image` reads the files of a data set.

    Args:
        mode: "L" (grey) for radiographs, "RGB" where colour carries meaning. A grey file has three equal channels in
            "RGB", so that a tower gets the same numbers either way.
        voi_lut: Read DICOM files as displayed: with their VOI LUT or window.
        range_percentile: Files that are scaled from their own minimum and maximum are scaled from this percentile of
            their pixels to 100 minus it. 0 is off. In [0, 50).

    Raises:
        ValueError: Another mode, or a percentile that is none.
    """

    mode: Literal["L", "RGB"] = "L"
    voi_lut: bool = False
    range_percentile: float = 0.0

    def __post_init__(self):
        check_percentile(self.range_percentile)
        if self.mode not in MODES:
            raise ValueError(f'The mode of a reading must be "L" or "RGB", got {self.mode!r}.')

    def read(self, source: Any, min_size: int | None = None) -> Image.Image:
        """8-bit picture of this mode; arguments and errors are those of `read_image`."""
        from .images import read_image

        return read_image(
            source, mode=self.mode, min_size=min_size, voi_lut=self.voi_lut, range_percentile=self.range_percentile
        )

    @property
    def key(self) -> dict[str, Any]:
        """What it adds to the key of embeddings: only what is not the default, so that older keys stay as they are."""
        return ({"image_mode": self.mode} if self.mode != "L" else {}) | self._values

    @property
    def label(self) -> str:
        """What is not the default, for names of runs: "RGB", "voi_lut", "RGB, voi_lut, range_percentile=0.5" or ""."""
        values = [name if value is True else f"{name}={value}" for name, value in self._values.items()]
        return ", ".join(([self.mode] if self.mode != "L" else []) + values)

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any] | None) -> Reading:
        """The reading that a vision tower's spec states; specs of version 0.1 state no mode and mean "L"."""
        spec = spec or {}
        return cls(spec.get("image_mode") or "L", bool(spec.get("voi_lut")), spec.get("range_percentile") or 0.0)

    def in_spec(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """A vision tower's spec that states this reading, whatever it said before."""
        stated = ("image_mode", "voi_lut", "range_percentile")
        kept = {name: value for name, value in spec.items() if name not in stated}
        return kept | {"image_mode": self.mode} | self._values

    @property
    def _values(self) -> dict[str, Any]:
        found = {"voi_lut": self.voi_lut, "range_percentile": float(self.range_percentile)}
        return {name: value for name, value in found.items() if value}


__all__ = ["IMAGE_MODES", "MODES", "Reading"]
