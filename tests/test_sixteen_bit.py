"""16 bits a channel: grey, colour and alpha, PNG and TIFF, white or black at zero, all by one rule."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from adaptor_hf.data.images import read_image

TOPS = [255, 1023, 4095, 16383, 65535]


def values(top, channels, seed=0):
    array = np.random.default_rng(seed).integers(0, top + 1, (23, 17, channels))
    array[0, 0] = top
    return array


def expected(array, top, alpha=1.0):
    """Each value over the largest of its bits, by numpy; alpha lays the picture on black."""
    return np.rint(np.rint(array / top * 255) * alpha)


def png(array, colour_type, interlaced=False):
    """A PNG of 16 bits a channel, row filters 0 to 4 in turn, written by the specification."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = []
    for top, left, down, across in passes if interlaced else [(0, 0, 1, 1)]:
        part = array[top::down, left::across]
        if not part.size:
            continue
        size = 2 * part.shape[2]
        lines = part.astype(">u2").reshape(len(part), -1).view(np.uint8).reshape(len(part), -1).astype(int)
        above = np.zeros_like(lines[0])
        for number, line in enumerate(lines):
            left_of, corner = (np.concatenate([np.zeros(size, int), row[:-size]]) for row in (line, above))
            guess = left_of + above - corner
            near = [abs(guess - one) for one in (left_of, above, corner)]
            paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left_of,
                             np.where(near[1] <= near[2], above, corner))  # fmt: skip
            predicted = [0 * line, left_of, above, (left_of + above) // 2, paeth][number % 5]
            rows.append(bytes([number % 5]) + ((line - predicted) % 256).astype(np.uint8).tobytes())
            above = line

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def tiff(array, photometric, order="<", extra=None, deflated=False):
    """A TIFF of one strip of 16 bits a channel, written by the specification."""
    data = array.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflated else data
    channels = array.shape[2]
    tags = {256: array.shape[1], 257: array.shape[0], 258: [16] * channels, 259: 8 if deflated else 1, 262: photometric,
            273: None, 277: channels, 278: array.shape[0], 279: len(data)}  # fmt: skip
    if extra is not None:
        tags[338] = extra
    entries, tail, end = b"", b"", 8 + 2 + 12 * len(tags) + 4
    bits = struct.pack(f"{order}{channels}H", *tags[258])
    for tag, value in sorted(tags.items()):
        if tag == 258:
            field = struct.pack(f"{order}I", end) if len(bits) > 4 else bits.ljust(4, b"\0")
            entries += struct.pack(f"{order}HHI", tag, 3, channels) + field
            tail = bits if len(bits) > 4 else b""
        else:
            value = end + (len(bits) if len(bits) > 4 else 0) if tag == 273 else value
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + tail + data


def pixels(source, mode="RGB"):
    return np.asarray(read_image(source, mode=mode)).astype(int)


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_every_kind_of_png_is_scaled_from_the_bits_that_it_uses(top, interlaced):
    array = values(top, 4)
    opaque = np.full_like(array[..., :1], 65535)
    alpha = array[..., 3:] / top
    for colour_type, part, wanted in (
        (0, array[..., :1], expected(array[..., :1], top)),
        (2, array[..., :3], expected(array[..., :3], top)),
        (4, np.dstack([array[..., :1], opaque]), expected(array[..., :1], top)),
        (6, np.dstack([array[..., :3], opaque]), expected(array[..., :3], top)),
        (4, np.dstack([array[..., :1], array[..., 3:]]), expected(array[..., :1], top, alpha)),
        (6, array, expected(array[..., :3], top, alpha)),
    ):
        data = png(part, colour_type, interlaced)
        wanted = np.broadcast_to(wanted, (23, 17, 3))
        # With alpha the middle between two levels may go to either.
        seen_through = colour_type in (4, 6) and part[..., -1].min() < part[..., -1].max()
        assert np.abs(pixels(data) - wanted).max() <= int(seen_through)
        np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(data))), pixels(data))
        if colour_type == 2:
            np.testing.assert_array_equal(read_image(data, mode="RGB", return_raw=True), part)
            luma = pixels(Image.fromarray(wanted.astype(np.uint8)), "L")
            np.testing.assert_array_equal(pixels(data, "L"), luma)


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflated", [False, True])
def test_every_kind_of_tiff_is_scaled_from_the_bits_that_it_uses(top, order, deflated):
    array = values(top, 4)
    colour, alpha = expected(array[..., :3], top), array[..., 3:] / top
    kinds = [
        (array[..., :3], 2, None, colour),
        (array, 2, 0, colour),  # a fourth channel without a meaning
        (array, 2, 1, colour),  # alpha that the values are multiplied with already
        (array, 2, 2, expected(array[..., :3], top, alpha)),
        (array[..., :1], 1, None, colour[..., :1]),
    ]
    if order == "<":
        kinds.append((top - array[..., :1], 0, None, colour[..., :1]))
    for part, photometric, extra, wanted in kinds:
        if part.max() < top:
            continue  # inverted, and no pixel is as bright as its bits allow
        found = pixels(tiff(part, photometric, order, extra, deflated))
        assert np.abs(found - np.broadcast_to(wanted, found.shape)).max() <= (1 if extra == 2 else 0)


@pytest.mark.parametrize("top", TOPS)
def test_white_is_zero_is_inverted_within_the_bits_used(top):
    array = values(top, 1)
    array[1, 1] = 0
    stored = top - array
    assert stored.max() == top
    wanted = expected(array, top)[..., 0]
    for deflated in (False, True):
        data = tiff(stored, 0, deflated=deflated)
        np.testing.assert_array_equal(pixels(data, "L"), wanted)
        np.testing.assert_array_equal(read_image(data, return_raw=True), array[..., 0])


def test_white_is_zero_in_floats_is_inverted_too():
    values = np.linspace(-3, 9, 12, dtype=np.float32).reshape(3, 4)
    found = {}
    for photometric in (0, 1):
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "TIFF", tiffinfo={262: photometric})
        found[photometric] = pixels(stream.getvalue(), "L")
    assert found[1][0, 0] == 0
    np.testing.assert_array_equal(found[0], 255 - found[1])


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (tiff(values(4095, 1), 0, ">"), r"BitsPerSample \(16,\), PhotometricInterpretation 0"),
        (tiff(values(4095, 2), 1, extra=2), r"BitsPerSample \(16, 16\), PhotometricInterpretation 1"),
    ],
)
def test_a_tiff_that_pillow_does_not_know_is_called_what_it_is(data, found):
    with pytest.raises(
        ValueError, match=rf"a TIFF of a kind that Pillow does not read \({found}.*Save it as"
    ) as caught:
        read_image(data)
    assert "damaged" not in str(caught.value)


def test_a_transparent_value_is_black():
    array = values(4095, 3)
    array[2, 3] = 777
    clear = struct.pack(">HHH", 777, 777, 777)
    chunk = struct.pack(">I", 6) + b"tRNS" + clear + struct.pack(">I", zlib.crc32(b"tRNS" + clear))
    data = png(array, 2)
    data = data[:33] + chunk + data[33:]
    wanted = expected(array, 4095)
    wanted[2, 3] = 0
    np.testing.assert_array_equal(pixels(data), wanted)


def test_a_dark_picture_of_5_6_5_bits_is_not_taken_for_16_bits_a_channel():
    header = struct.pack("<2sIHHI", b"BM", 14 + 40 + 8, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, 8, 0, 0, 0, 0
    )
    data = header + struct.pack("<4H", *[1 << 10 | 1 << 5 | 1] * 4)
    assert pixels(data).tolist() == [[[8, 8, 8]] * 2] * 2


def test_orientation_is_applied_to_colour_of_16_bits():
    array = values(4095, 3)
    exif = Image.Exif()
    exif[274] = 6
    block = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    data = png(array, 2)
    data = data[:33] + chunk + data[33:]
    np.testing.assert_array_equal(pixels(data), np.rot90(expected(array, 4095), -1))


@pytest.mark.parametrize(("highest", "bits"), [(256, 10), (511, 10), (600, 10), (1023, 10), (1024, 12), (2000, 12),
                                               (4096, 14), (8000, 14), (16384, 16), (20000, 16)])  # fmt: skip
def test_bits_in_use_are_an_even_number(highest, bits, tmp_path):
    """Detectors give 8, 10, 12, 14 or 16 bits: an image that stays under half of its range is not stretched."""
    array = np.array([[0, highest // 2, highest]], dtype=np.uint16)
    Image.fromarray(array).save(tmp_path / "a.png")
    wanted = np.rint(array / (2**bits - 1) * 255)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), wanted)
