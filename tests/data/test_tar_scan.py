"""Archives that are damaged, cut off or of another kind: refused by name, never read in part without a word."""

import bz2
import gzip
import lzma
import os
import tarfile
from io import BytesIO

import pytest

from potstill.data.stored import LocalFile
from potstill.data.tar_scan import build_index
from potstill.errors import DataError


def pack(path, members=(("a.png", b"x" * 700), ("a.cls", b"0"), ("b.png", b"y" * 700), ("b.cls", b"1")), **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return path


def scan(path, field=None):
    return build_index(LocalFile(path), field)


def refused(path, message):
    with pytest.raises(DataError, match=message):
        scan(path)


def test_offsets_are_where_the_content_is(tmp_path):
    path = pack(tmp_path / "a.tar")
    index = scan(path)
    content = path.read_bytes()
    found = [content[start : start + size] for start, size in zip(index.offsets, index.sizes, strict=True)]
    assert found == [b"x" * 700, b"y" * 700]
    assert index.labels.tolist() == [0, 1]
    assert (index.keys.tobytes(), index.ends.tolist(), index.lonely) == (b"ab", [1, 2], 0)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_is_seen_wherever_it_is(tmp_path, form):
    """Samples must not go missing because the rest of an archive did."""
    path = pack(tmp_path / "whole.tar", format=form)
    content = path.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512  # the members
    cut = tmp_path / "a.tar"
    for length in [*range(0, end + 512, 128)]:
        cut.write_bytes(content[:length])
        refused(cut, r"a\.tar")
    cut.write_bytes(content[: end + 512])  # one block of the end mark
    assert len(scan(cut)) == 2


@pytest.mark.parametrize("header", range(4))
@pytest.mark.parametrize("where", [0, 100, 124, 148, 156])  # name, mode, size, sum, type
def test_a_spoilt_header_is_seen(tmp_path, header, where):
    path = pack(tmp_path / "a.tar")
    starts = [0, 1536, 2560, 4096]
    content = bytearray(path.read_bytes())
    content[starts[header] + where] ^= 0x55
    path.write_bytes(content)
    refused(path, r"a\.tar")


def test_a_hole_of_zeros_is_seen(tmp_path):
    """To tarfile, a block of zeros is the archive's end."""
    path = pack(tmp_path / "a.tar")
    content = bytearray(path.read_bytes())
    content[1536:2560] = bytes(1024)
    path.write_bytes(content)
    refused(path, "goes on behind its end, as joined archives do")


def test_joined_archives(tmp_path):
    first, second = pack(tmp_path / "1.tar"), pack(tmp_path / "2.tar")
    (tmp_path / "a.tar").write_bytes(first.read_bytes() + second.read_bytes())
    refused(tmp_path / "a.tar", "goes on behind its end, as joined archives do. Give each as a file of its own")


@pytest.mark.parametrize("size", [-1, -512, -100_000])
def test_negative_sizes_do_not_go_round_for_ever(tmp_path, size):
    info = tarfile.TarInfo("b.png")
    info.size = size
    header = info.tobuf(format=tarfile.GNU_FORMAT)
    content = pack(tmp_path / "a.tar").read_bytes()
    for place in (0, 1536):
        (tmp_path / "a.tar").write_bytes(content[:place] + header + content[place + 512 :])
        refused(tmp_path / "a.tar", r"a\.tar")


def test_a_size_beyond_the_file(tmp_path):
    info = tarfile.TarInfo("b.png")
    info.size = 1 << 60
    header = info.tobuf(format=tarfile.GNU_FORMAT)
    content = pack(tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:2560] + header + content[3072:])
    refused(tmp_path / "a.tar", r"a\.tar is damaged")


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "a.png"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (tarfile.GNUTYPE_SPARSE, ""),
    ],
)
def test_members_that_are_no_plain_files(tmp_path, kind, link):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("evil.png")
        info.type, info.linkname = kind, link
        archive.addfile(info)
    refused(path, r"evil\.png is a link, a device or a sparse file\. Pack plain files only")


def test_folders_are_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("pictures.png")
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
        info = tarfile.TarInfo("pictures.png/a.png")
        info.size = 1
        archive.addfile(info, BytesIO(b"x"))
    assert len(scan(path)) == 1


@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lzma.compress, lambda data: b"\x28\xb5\x2f\xfd" + data]
)
def test_compressed_archives_whatever_they_are_called(tmp_path, compress):
    path = pack(tmp_path / "a.tar")
    path.write_bytes(compress(path.read_bytes()))
    refused(path, r"a\.tar is compressed \(\w+\), and nothing in it can be read by its position\. Unpack it to plain")


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 5000, os.urandom(5000), b"PK\3\4" + bytes(2000)])
def test_what_is_no_archive(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    refused(path, r"a\.tar")


def test_several_images_of_one_key(tmp_path):
    path = pack(tmp_path / "a.tar", [("k.jpg", b"x"), ("k.png", b"y")])
    refused(path, r"has images \.jpg and \.png of the key: k\. A sample has one image, and its key once")


@pytest.mark.parametrize("second", ["k.png", "k.PNG"])
def test_a_key_twice(tmp_path, second):
    path = pack(tmp_path / "a.tar", [("k.png", b"x"), ("z.png", b"z"), (second, b"y")])
    refused(path, "has the key twice: k")


@pytest.mark.parametrize("extension", ["cls", "json"])
def test_two_labels_of_one_key(tmp_path, extension):
    members = [("k.png", b"x"), (f"k.{extension}", b"0"), (f"k.{extension}", b"1")]
    refused(pack(tmp_path / "a.tar", members), f"has .{extension} of the key twice: k")
