"""Images inside tars and zips are read where they lie, by paths that are plain text, and damage names the member."""

import pickle
import tarfile
import zipfile
from io import BytesIO

import numpy as np
import pytest
from fixtures.pictures import picture_bytes
from hypothesis import given
from hypothesis import strategies as st

from adaptor_hf.data import archives
from adaptor_hf.data.archives import (
    Member,
    container,
    image_source,
    list_tar,
    list_zip,
    parse_member,
    read_bytes,
    stored_image,
)
from adaptor_hf.data.images import read_image


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, BytesIO(data))
    return path


def write_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def paths(path, members):
    return {name: str(Member(str(path), name, offset, size)) for name, offset, size in members}


MEMBERS = {"a.jpg": b"abc" * 1000, "b/c.jpg": b"", "b/" + "long" * 40 + ".jpg": b"x", "ümlaut.jpg": b"\x00" * 513}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_of_tars(tmp_path, format):
    tar = write_tar(tmp_path / "x.tar", MEMBERS, format)
    members, fault = list_tar(tar)
    assert fault is None
    assert {name: read_bytes(path) for name, path in paths(tar, members).items()} == MEMBERS


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_zips(tmp_path, compression):
    archive = write_zip(tmp_path / "x.zip", MEMBERS, compression=compression)
    assert {name: read_bytes(path) for name, path in paths(archive, list_zip(archive)).items()} == MEMBERS


def test_members_of_a_zip_that_was_written_as_a_stream(tmp_path):
    """Its local headers have no sizes."""

    class Stream(BytesIO):
        def seekable(self):
            return False

        def tell(self):
            raise OSError

    stream = Stream()
    write_zip(stream, MEMBERS, compression=zipfile.ZIP_DEFLATED)
    path = tmp_path / "x.zip"
    path.write_bytes(stream.getvalue())
    assert {name: read_bytes(member) for name, member in paths(path, list_zip(path)).items()} == MEMBERS


def test_members_of_a_zip_with_extra_fields(tmp_path):
    """Local headers of 64-bit sizes, as archives that are written without knowing the size have them."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in MEMBERS.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    found = paths(tmp_path / "x.zip", list_zip(tmp_path / "x.zip"))
    assert {name: read_bytes(path) for name, path in found.items()} == MEMBERS


def test_a_picture_in_an_archive(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {"a.png": picture_bytes(70), "b.jpg": picture_bytes(90, ".jpg")})
    found = paths(tar, list_tar(tar)[0])
    assert np.unique(read_image(found["a.png"])) == [70]
    assert np.unique(read_image(pickle.loads(pickle.dumps(found["b.jpg"])))) == [90]


def test_a_damaged_picture_names_archive_and_member(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {"a.jpg": picture_bytes(70, ".jpg")[:-150], "empty.jpg": b""})
    found = paths(tar, list_tar(tar)[0])
    with pytest.raises(ValueError, match=r"x\.tar::a\.jpg: cannot be decoded"):
        read_image(found["a.jpg"])
    with pytest.raises(ValueError, match=r"x\.tar::empty\.jpg: the file is empty"):
        read_image(found["empty.jpg"])


class TestFaults:
    def test_a_tar_that_is_cut_short_lists_what_is_whole(self, tmp_path):
        members = {f"{i}.jpg": b"x" * 2000 for i in range(5)}
        tar = write_tar(tmp_path / "x.tar", members)
        content = tar.read_bytes()
        for end in (512 + 2048 + 100, 512 + 2048 + 512 + 100):
            tar.write_bytes(content[:end])
            found, fault = list_tar(tar)
            assert [name for name, _, _ in found] == ["0.jpg"]
            assert "cut short" in fault

    def test_no_tar(self, tmp_path):
        (tmp_path / "x.tar").write_bytes(b"<html>not found</html>" * 100)
        with pytest.raises(ValueError, match=r"x\.tar: not an uncompressed tar"):
            list_tar(tmp_path / "x.tar")
        with tarfile.open(tmp_path / "y.tar", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a"))
        with pytest.raises(ValueError, match="gunzip"):
            list_tar(tmp_path / "y.tar")

    def test_an_archive_that_changed_under_the_path(self, tmp_path):
        path = paths(tmp_path / "x.zip", list_zip(write_zip(tmp_path / "x.zip", MEMBERS)))["b/c.jpg"]
        write_zip(tmp_path / "x.zip", {"other.jpg": b"y" * 5000})
        with pytest.raises(ValueError, match=r"x\.zip::b/c\.jpg: not at byte"):
            read_bytes(path)

    def test_an_archive_that_ends_too_early(self, tmp_path):
        tar = write_tar(tmp_path / "x.tar", {"a.jpg": b"x" * 2000})
        path = paths(tar, list_tar(tar)[0])["a.jpg"]
        tar.write_bytes(tar.read_bytes()[:1000])
        with pytest.raises(ValueError, match="ends 1,512 bytes too early"):
            read_bytes(path)

    def test_a_packed_member_that_ends_too_early(self, tmp_path):
        data = bytes(range(256)) * 40
        archive = write_zip(tmp_path / "x.zip", {"a.jpg": data}, compression=zipfile.ZIP_DEFLATED)
        [(name, offset, size)] = list_zip(archive)
        with pytest.raises(ValueError, match=r"x\.zip::a\.jpg: the member's data end too early"):
            read_bytes(str(Member(str(archive), name, offset, size - 20)))

    def test_a_missing_archive(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_bytes(str(Member(str(tmp_path / "x.tar"), "a.jpg", 0, 1)))

    def test_a_member_that_unpacks_to_too_much(self, tmp_path, monkeypatch):
        archive = write_zip(tmp_path / "x.zip", {"a.jpg": b"\0" * 100_000}, compression=zipfile.ZIP_DEFLATED)
        monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 10_000)
        with pytest.raises(ValueError, match="unpacks to over 10,000 bytes"):
            read_bytes(paths(archive, list_zip(archive))["a.jpg"])

    def test_an_encrypted_or_oddly_packed_member(self, tmp_path):
        archive = write_zip(tmp_path / "x.zip", {"a.jpg": b"abc"})
        path = paths(archive, list_zip(archive))["a.jpg"]
        content = bytearray(archive.read_bytes())
        content[6] |= 1
        archive.write_bytes(content)
        with pytest.raises(ValueError, match="encrypted"):
            read_bytes(path)
        packed = write_zip(tmp_path / "y.zip", {"a.jpg": b"abc"}, compression=zipfile.ZIP_LZMA)
        with pytest.raises(ValueError, match="method 14"):
            read_bytes(paths(packed, list_zip(packed))["a.jpg"])


@given(
    st.text("abc/.: @+::0", min_size=1).filter(lambda text: "::" not in text),
    st.text(min_size=1),
    st.integers(0, 2**50),
    st.integers(0, 2**40),
)
def test_a_path_names_its_member(folder, name, offset, size):
    member = Member(f"{folder}.tar", name, offset, size)
    assert parse_member(str(member)) == member
    assert container(str(member)) == member.archive
    assert image_source(stored_image(str(member))) == str(member)


@pytest.mark.parametrize("path", ["a.png", "a::b.png", "a.tar", "a.tar::b.png", "a.tar::b@1", "a.jpg::b@1+2", "x@1+2"])
def test_other_paths_are_files(path):
    assert parse_member(path) is None
    assert container(path) == path
    assert stored_image(path) == {"bytes": None, "path": path}


def test_embeddings_of_members_are_those_of_the_files(tmp_path, tiny_dinov2):
    """A cache of images in a zip and in a tar is bit for bit that of the unpacked files."""
    from datasets import Dataset

    from adaptor_hf.data.features import RadiographImage
    from adaptor_hf.embeddings import build_cache

    pictures = {f"{value}.png": picture_bytes(value) for value in (10, 120, 250)}
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
    archive, tar = write_zip(tmp_path / "x.zip", pictures), write_tar(tmp_path / "x.tar", pictures)
    sources = {
        "files": [str(tmp_path / name) for name in pictures],
        "zip": list(paths(archive, list_zip(archive)).values()),
        "tar": list(paths(tar, list_tar(tar)[0]).values()),
    }
    embeddings = {}
    for kind, names in sources.items():
        columns = {"image": [stored_image(name) for name in names], "image_id": list(pictures)}
        data = Dataset.from_dict(columns).cast_column("image", RadiographImage())
        cache = build_cache(data, str(tiny_dinov2), None, tmp_path / kind, num_workers=0)
        embeddings[kind] = np.stack([np.asarray(row["image_embeds"]) for row in cache])
    assert embeddings["files"].shape == (3, 32)
    np.testing.assert_array_equal(embeddings["zip"], embeddings["files"])
    np.testing.assert_array_equal(embeddings["tar"], embeddings["files"])
