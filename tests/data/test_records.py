"""insightface's record files, written here byte by byte: labels, positions, records in parts, damage by name."""

import pickle
import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from potstill.data import records as module
from potstill.data.records import FACES, RecordSource
from potstill.errors import DataError

MAGIC = 0xCED7230A
MARK = struct.pack("<I", MAGIC)


def picture(value, kind="PNG", size=(6, 4)):
    buffer = BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def packed(label, content, number=0):
    """An image as MXNet packs it: one number in the header, or several behind it."""
    if isinstance(label, tuple):
        return struct.pack("<IfQQ", len(label), 0.0, number, 0) + struct.pack(f"<{len(label)}f", *label) + content
    return struct.pack("<IfQQ", 0, label, number, 0) + content


def in_parts(record):
    """A record as RecordIO lays it down: cut where the magic number stands at a whole word."""
    cuts = [at for at in range(0, len(record) - 3, 4) if record[at : at + 4] == MARK]
    ends = [*cuts, len(record)]
    parts = [record[start:end] for start, end in zip([0, *(cut + 4 for cut in cuts)], ends, strict=True)]
    kinds = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    laid = b""
    for kind, part in zip(kinds, parts, strict=True):
        laid += MARK + struct.pack("<I", kind << 29 | len(part)) + part + bytes(-len(part) % 4)
    return laid


def lay(folder, content, *, name="train", count=None, order=None):
    """The three files out of records by number."""
    folder.mkdir(parents=True, exist_ok=True)
    rec, starts = b"", {}
    for key, record in content.items():
        starts[key] = len(rec)
        rec += in_parts(record)
    (folder / f"{name}.rec").write_bytes(rec)
    lines = [f"{key}\t{starts[key]}\n" for key in order or content]
    (folder / f"{name}.idx").write_text("".join(lines))
    if count is not None:
        (folder / "property").write_text(f"{count},4,6")
    return folder


def usual(folder, values=(10, 20, 30, 40), labels=(0, 0, 1, 2), **options):
    """As insightface writes a set: record 0 tells where the images end, ranges of identities follow them."""
    end = len(values) + 1
    images = {
        number: packed(float(label), picture(value), number)
        for number, (value, label) in enumerate(zip(values, labels, strict=True), start=1)
    }
    ranges = {end: packed((1.0, 3.0), b""), end + 1: packed((3.0, 4.0), b""), end + 2: packed((4.0, 5.0), b"")}
    return lay(folder, {0: packed((float(end), float(end + 3)), b""), **images, **ranges}, **{"count": 3, **options})


def values_of(source):
    return [int(source.image(index)[0, 0, 0]) for index in range(len(source))]


def test_the_usual_layout(tmp_path):
    folder = usual(tmp_path / "faces")
    source = RecordSource(folder)
    assert values_of(source) == [10, 20, 30, 40]
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert source.labels.dtype == np.int64
    assert source.classes == ("0", "1", "2")
    assert source.fixed_size == (4, 6)
    assert source.arrays()[:, 0, 0, 0].tolist() == [10, 20, 30, 40]
    assert source.encoded(2) == picture(30)
    assert source.describe(2) == f"record 3 of {folder / 'train.rec'}"
    assert source.statistics == FACES
    assert (source.groups, source.scattered) == (None, False)


def test_without_record_0_every_record_is_an_image(tmp_path):
    content = {number: packed(float(number % 2), picture(number)) for number in (5, 7, 9)}
    source = RecordSource(lay(tmp_path, content, count=2))
    assert (values_of(source), source.labels.tolist()) == ([5, 7, 9], [1, 1, 1])
    assert source.describe(1).startswith("record 7 of ")
    content[0] = packed(0.0, picture(1))
    assert values_of(RecordSource(lay(tmp_path, content, count=2))) == [1, 5, 7, 9]


def test_of_several_numbers_in_a_label_the_first_is_the_identity(tmp_path):
    content = {1: packed((1.0, 7.5), picture(1)), 2: packed((0.0, 3.0, 4.0), picture(2)), 3: packed(1.0, picture(3))}
    source = RecordSource(lay(tmp_path, content, count=2))
    assert source.labels.tolist() == [1, 0, 1]
    assert values_of(source) == [1, 2, 3]


def test_the_order_of_the_idx_file_does_not_matter(tmp_path):
    one = RecordSource(usual(tmp_path / "one"))
    other = RecordSource(usual(tmp_path / "other", order=[6, 3, 1, 0, 7, 2, 4, 5]))
    assert values_of(other) == values_of(one)
    assert other.identity == one.identity


@pytest.mark.parametrize("marks", [1, 2, 3])
def test_a_record_that_holds_the_magic_number_lies_in_parts(tmp_path, marks):
    """A BMP's pixels may be any bytes; the two words of its header before them keep them at whole words."""
    buffer = BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "BMP")
    content = bytearray(buffer.getvalue())
    at = next(at for at in range(54, 64) if (at + 24) % 4 == 0)
    for mark in range(marks):
        content[at + 8 * mark : at + 8 * mark + 4] = MARK
    laid = in_parts(packed(0.0, bytes(content)))
    assert laid.count(MARK) == marks + 1
    assert bytes(content) not in laid
    folder = lay(tmp_path, {1: packed(0.0, bytes(content)), 2: packed(1.0, picture(9))}, count=2)
    source = RecordSource(folder)
    assert source.encoded(0) == bytes(content)
    assert source.image(0).shape == (4, 8, 3)
    assert values_of(source)[1] == 9


def test_two_parts_in_a_row(tmp_path):
    content = MARK + MARK + b"abcd"
    source = RecordSource(lay(tmp_path, {1: packed(0.0, b"12345678" + content), 2: packed(1.0, picture(1))}, count=2))
    assert source.encoded(0) == b"12345678" + content


def test_a_part_that_is_not_there_is_named(tmp_path):
    content = {2: packed(1.0, picture(1)), 1: packed(0.0, b"12345678" + MARK + b"abcdefgh")}
    folder = lay(tmp_path, content, count=2)
    whole = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(whole[:-16])
    source = RecordSource(folder)
    with pytest.raises(DataError, match=r"Cannot read record 1 of .*train\.rec: its last part is missing"):
        source.encoded(0)
    (folder / "train.rec").write_bytes(whole[:-16] + bytes(16))
    with pytest.raises(DataError, match=r"record 1 of .*: at byte \d+ there is no part of it"):
        RecordSource(folder).encoded(0)


def test_a_damaged_image_is_named_and_the_others_are_read(tmp_path):
    content = {1: packed(0.0, picture(1)), 2: packed(1.0, picture(2)[:30]), 3: packed(1.0, picture(3))}
    source = RecordSource(lay(tmp_path, content, count=2))
    with pytest.raises(DataError, match=r"Cannot read the image record 2 of .*train\.rec: "):
        source.image(1)
    assert source.image(2)[0, 0, 0] == 3


def test_a_position_that_is_not_there(tmp_path):
    source = RecordSource(usual(tmp_path))
    for index in (4, -1):
        with pytest.raises(IndexError, match=f"has 4 images, there is no image {index}"):
            source.image(index)


def test_it_pickles(tmp_path):
    source = pickle.loads(pickle.dumps(RecordSource(usual(tmp_path))))
    assert values_of(source) == [10, 20, 30, 40]
    assert source.labels.tolist() == [0, 0, 1, 2]


def test_identity(tmp_path):
    first = RecordSource(usual(tmp_path / "a")).identity
    assert RecordSource(usual(tmp_path / "b")).identity == first
    assert RecordSource(usual(tmp_path / "c", labels=(0, 1, 1, 2))).identity != first
    assert RecordSource(usual(tmp_path / "d", count=4)).identity != first
    assert RecordSource(usual(tmp_path / "e", values=(10, 20, 30), labels=(0, 1, 2))).identity != first


def test_an_image_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    source = RecordSource(usual(tmp_path))
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"record 1 of .*train\.rec has \d+ bytes, more than the 10 of one image"):
        source.image(0)


class TestPlaces:
    def test_a_file_or_its_folder(self, tmp_path):
        folder = usual(tmp_path)
        assert len(RecordSource(folder / "train.rec")) == len(RecordSource(str(folder))) == 4

    def test_train_is_taken_out_of_several(self, tmp_path):
        usual(tmp_path)
        usual(tmp_path, values=(1, 2), labels=(0, 1), name="other", count=2)
        (tmp_path / "property").write_text("3,4,6")
        assert len(RecordSource(tmp_path)) == 4
        (tmp_path / "train.rec").rename(tmp_path / "a.rec")
        with pytest.raises(DataError, match=r"has several \.rec files \(a\.rec, other\.rec\); name one of them\."):
            RecordSource(tmp_path)

    def test_nothing_there(self, tmp_path):
        for path in (tmp_path, tmp_path / "none", tmp_path / "train.rec"):
            with pytest.raises(DataError, match=r"has no \.rec file; give that file, or the folder with it\."):
                RecordSource(path)

    def test_no_positions(self, tmp_path):
        (usual(tmp_path) / "train.idx").unlink()
        with pytest.raises(
            DataError, match=r"Cannot read .*train\.idx: there is no such file.*positions of the records"
        ):
            RecordSource(tmp_path)


class TestProperty:
    def test_identities_without_an_image_are_told(self, tmp_path, caplog):
        source = RecordSource(usual(tmp_path, count=10))
        assert len(source.classes) == 10
        assert "7 of its 10 identities have no image" in caplog.text

    def test_more_identities_than_it_says(self, tmp_path):
        with pytest.raises(DataError, match=r"1 labels lie outside 0\.\.1, the first at image 3: 2"):
            RecordSource(usual(tmp_path, count=2))

    def test_without_the_file_the_labels_tell(self, tmp_path):
        assert RecordSource(usual(tmp_path, count=None)).classes == ("0", "1", "2")
        with pytest.raises(
            DataError, match=r"labels go up to 900, but there are only 4 images\. Put the file 'property'"
        ):
            RecordSource(usual(tmp_path, labels=(0, 1, 2, 900), count=None))

    def test_one_identity_is_none(self, tmp_path):
        with pytest.raises(DataError, match="has one identity only"):
            RecordSource(usual(tmp_path, labels=(0, 0, 0, 0), count=1))

    @pytest.mark.parametrize("text", ["", "3", "3,4", "a,4,6", "-3,4,6", "0,4,6", "3,4,6,7", "99999999999,4,6", "\xff"])
    def test_refused(self, tmp_path, text):
        (usual(tmp_path) / "property").write_text(text)
        with pytest.raises(DataError, match="property should hold the number of identities, the height and the width"):
            RecordSource(tmp_path)


class TestDamage:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "but it is empty"),
            ("\n\n", "but it is empty"),
            ("1\tx\n", "cannot be read so"),
            ("1 2\n3\n", "cannot be read so"),
            ("1 2 3\n", "rows of other lengths"),
            ("1 -8\n", "numbers below 0"),
            ("1 99999999999999999999999\n", "cannot be read so"),
            ("1\t0\n1\t80\n", "has record 1 twice"),
        ],
    )
    def test_positions_that_cannot_be_read(self, tmp_path, text, message):
        (usual(tmp_path) / "train.idx").write_text(text)
        with pytest.raises(DataError, match=rf"train\.idx .*{message}"):
            RecordSource(tmp_path)

    @pytest.mark.parametrize("start", [3, 10**9, 10**17])
    def test_a_position_outside_the_file(self, tmp_path, start):
        folder = usual(tmp_path)
        with (folder / "train.idx").open("a") as file:
            file.write(f"99\t{start}\n")
        with pytest.raises(DataError, match=r"record 99 should begin at byte [\d,]+\. The \.rec file is truncated, or"):
            RecordSource(folder)

    def test_a_position_that_is_no_beginning(self, tmp_path):
        folder = usual(tmp_path)
        with (folder / "train.idx").open("a") as file:
            file.write("99\t8\n")
        message = r"at byte 8, where record 99 should begin, there is no whole record; nor at 0 other places"
        with pytest.raises(DataError, match=message):
            RecordSource(folder)

    @pytest.mark.parametrize("left", [0, 5, 40])
    def test_a_truncated_file(self, tmp_path, left):
        path = usual(tmp_path) / "train.rec"
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(DataError, match=r"train\.rec.*(that is no record|is truncated|damaged or truncated)"):
            RecordSource(tmp_path)

    def test_a_record_cut_at_the_end(self, tmp_path):
        path = usual(tmp_path) / "train.rec"
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(DataError, match=r"where record 7 should begin, there is no whole record"):
            RecordSource(tmp_path)

    def test_images_that_the_positions_lack(self, tmp_path):
        usual(tmp_path, order=[0, 1, 2, 4, 5, 6, 7])
        with pytest.raises(DataError, match=r"images in the records 1 to 4, and the \.idx file knows 3 of them"):
            RecordSource(tmp_path)

    @pytest.mark.parametrize("end", [0.0, 1.0, 2.5, float("nan"), float("inf")])
    def test_a_first_record_that_says_nonsense(self, tmp_path, end):
        content = {0: packed((end, end), b""), 1: packed(0.0, picture(1)), 2: packed(1.0, picture(1))}
        with pytest.raises(DataError, match="record 0 says that the images end before record"):
            RecordSource(lay(tmp_path, content, count=2))

    @pytest.mark.parametrize("label", [0.5, float("nan"), float("inf"), 1e30])
    def test_a_label_that_is_no_identity(self, tmp_path, label):
        content = {1: packed(0.0, picture(1)), 2: packed(label, picture(1))}
        with pytest.raises(DataError, match=r"the label of record 2 is .*, but must be the number of its identity"):
            RecordSource(lay(tmp_path, content, count=2))

    def test_a_negative_label(self, tmp_path):
        content = {1: packed(0.0, picture(1)), 2: packed(-1.0, picture(1))}
        with pytest.raises(DataError, match=r"1 labels lie outside 0\.\.1, the first at image 1: -1"):
            RecordSource(lay(tmp_path, content, count=2))

    @pytest.mark.parametrize("label", [1.0, (1.0, 2.0)])
    def test_a_record_without_an_image(self, tmp_path, label):
        content = {1: packed(0.0, picture(1)), 2: packed(label, b"")}
        with pytest.raises(DataError, match="record 2 has a label and no image"):
            RecordSource(lay(tmp_path, content, count=2))

    def test_a_label_longer_than_its_record(self, tmp_path):
        content = {1: packed(0.0, picture(1)), 2: struct.pack("<IfQQ", 1 << 31, 0.0, 0, 0) + picture(1)}
        with pytest.raises(DataError, match="record 2 has a label and no image"):
            RecordSource(lay(tmp_path, content, count=2))
