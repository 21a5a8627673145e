"""Pairs of faces: the pickled lists that sets come with, LFW's text file, and whatever may be wrong with either."""

import os
import pickle
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from potstill.data.pairs import EncodedSource, PairSet, read_bin, read_pairs
from potstill.data.source import ArraySource
from potstill.errors import DataError


def picture(value, kind="JPEG"):
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def content(pairs=20):
    return [picture(n) for n in range(2 * pairs)], [n % 2 == 0 for n in range(pairs)]


def write(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def of(first, second, same, folds=1, count=4):
    images = ArraySource(np.zeros((count, 2, 2, 3), dtype=np.uint8), None, name="grey")
    return PairSet("a set", images, np.asarray(first), np.asarray(second), np.asarray(same), folds)


class TestBin:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    def test_two_lists_of_any_protocol(self, tmp_path, protocol):
        pairs = read_bin(write(tmp_path / "lfw.bin", content(), protocol))
        assert (pairs.name, len(pairs), pairs.folds) == ("lfw", 20, 10)
        assert pairs.first.tolist() == list(range(0, 40, 2))
        assert pairs.second.tolist() == list(range(1, 40, 2))
        assert pairs.same.tolist() == [True, False] * 10
        assert pairs.fold.tolist() == sorted([*range(10)] * 2)
        assert pairs.images.image(7)[0, 0].tolist() == [7, 7, 7]
        assert pairs.images.describe(7) == f"image 7 of {tmp_path / 'lfw.bin'}"
        assert pairs.images.encoded(3) == picture(3)
        assert pairs.images.labels is None

    def test_a_file_that_python_2_wrote(self, tmp_path):
        """Its text is its bytes: the opcodes for short and long strings of protocol 2."""
        jpeg = picture(9)
        strings = b"".join(b"T" + len(jpeg).to_bytes(4, "little") + jpeg for _ in range(4))
        (tmp_path / "a.bin").write_bytes(b"\x80\x02](" + strings + b"e](\x88\x89e\x86.")
        pairs = read_bin(tmp_path / "a.bin", folds=2)
        assert pairs.images.encoded(1) == jpeg
        assert pairs.same.tolist() == [True, False]

    @pytest.mark.parametrize("of_same", [np.array, np.int64, np.bool_, int])
    def test_images_and_truths_as_numpy_has_them(self, tmp_path, of_same):
        files, same = content(4)
        rows = [np.frombuffer(one, dtype=np.uint8) for one in files]
        same = list(np.array(same)) if of_same is np.array else [of_same(one) for one in same]
        pairs = read_bin(write(tmp_path / "a.bin", (rows, same)), folds=2)
        assert pairs.images.encoded(5) == files[5]
        assert pairs.same.tolist() == [True, False, True, False]

    def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "made"),)

        with pytest.raises(DataError, match=r"Refused to read .*a\.bin: the pickle wants to use (posix|nt)\.mkdir"):
            read_bin(write(tmp_path / "a.bin", ([Evil(), b""], [True])))
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"a": 1}, "should hold two lists"),
            (([b""], [True], []), "should hold two lists"),
            ((b"ab", [True]), "should hold two lists"),
            (([b"", b"", b""], [True, False]), "has 3 images for 2 pairs; expected two for each"),
            (([b""] * 4, [True, 2]), "whether pair 1 is one person should be true or false, got 2"),
            (([b""] * 4, [True, "no"]), "whether pair 1 is one person should be true or false, got 'no'"),
            (([b""] * 4, [True, None]), "whether pair 1 is one person should be true or false, got None"),
            (([b"", b"", b"", "text"], [True, False]), "image 3 should be the bytes of an image file, got str"),
            (([b""] * 3 + [np.zeros((2, 2))], [True, False]), "image 3 should be the bytes of an image file"),
            (([b""] * 4, [True, False]), "has 2 pairs, which cannot fall into 10 parts"),
            (([b""] * 20, [True] * 10), "all its 10 pairs are of one person; both kinds are needed"),
            (([b""] * 20, [False] * 10), "all its 10 pairs are of two people; both kinds are needed"),
            (([], []), "has 0 pairs, which cannot fall into 10 parts"),
        ],
    )
    def test_something_else_is_refused(self, tmp_path, value, message):
        with pytest.raises(DataError, match=message):
            read_bin(write(tmp_path / "a.bin", value))

    def test_a_truncated_file_and_none(self, tmp_path):
        path = write(tmp_path / "a.bin", content())
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"Cannot read the pickle .*a\.bin: .* damaged or truncated"):
            read_bin(path)
        with pytest.raises(DataError, match=r"There is no file .*b\.bin"):
            read_bin(tmp_path / "b.bin")

    def test_a_damaged_image_is_named_when_it_is_read(self, tmp_path):
        files, same = content(4)
        files[5] = files[5][:50]
        files[6] = b""
        pairs = read_bin(write(tmp_path / "a.bin", (files, same)), folds=2)
        with pytest.raises(DataError, match=r"Cannot read the image image 5 of .*a\.bin: "):
            pairs.images.image(5)
        with pytest.raises(DataError, match=r"image 6 of .*a\.bin: it is empty"):
            pairs.images.image(6)


class TestPairSet:
    def test_pairs_may_share_images(self):
        pairs = of([0, 0, 1], [1, 2, 1], [True, False, True], folds=2)
        assert pairs.fold.tolist() == [0, 0, 1]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([0], [1, 2], [True]), r"rows of one length, got \(1,\), \(2,\) and \(1,\) of bool"),
            (([0, 1], [1, 2], [1, 0]), r"rows of one length, .* of int64"),
            (([0, 1], [1, 4], [True, False]), "must be positions from 0 to 3"),
            (([0, -1], [1, 2], [True, False]), "must be positions from 0 to 3"),
            (([0.0, 1.0], [1, 2], [True, False]), "must be positions from 0 to 3"),
            (([0, 1], [1, 2], [True, False], 3), "has 2 pairs, which cannot fall into 3 parts"),
            (([0, 1], [1, 2], [True, False], 0), "cannot fall into 0 parts"),
        ],
    )
    def test_refused(self, arguments, message):
        with pytest.raises(DataError, match=message):
            of(*arguments)

    def test_identity(self):
        one = of([0, 1], [1, 2], [True, False])
        assert one.identity == of([0, 1], [1, 2], [True, False]).identity
        assert one.identity != of([0, 1], [1, 2], [False, True]).identity
        assert one.identity != of([0, 1], [1, 3], [True, False]).identity
        assert one.identity != of([0, 1], [1, 2], [True, False], folds=2).identity

    def test_the_identity_of_encoded_images_is_their_bytes(self):
        assert EncodedSource([b"ab", b"c"], name="x").identity == EncodedSource([b"ab", b"c"], name="y").identity
        assert EncodedSource([b"ab", b"c"], name="x").identity != EncodedSource([b"a", b"bc"], name="x").identity


@pytest.fixture
def people(tmp_path):
    """Three people with three images each; the pixels say which."""
    folder = tmp_path / "lfw"
    for person, name in enumerate(("Ada_Lovelace", "Bo", "Cleo")):
        (folder / name).mkdir(parents=True)
        for number in (1, 2, 3):
            (folder / name / f"{name}_{number:04}.png").write_bytes(picture(10 * person + number, "PNG"))
    return folder


def text(folder, content):
    path = folder.parent / "pairs.txt"
    path.write_text(content)
    return path


TWO = "2\t1\nAda_Lovelace\t1\t3\nAda_Lovelace\t1\tBo\t2\nBo\t2\t3\nCleo\t1\tAda_Lovelace\t3\n"


class TestPairsText:
    def test_the_usual_layout(self, people):
        pairs = read_pairs(text(people, TWO), people)
        assert (pairs.name, pairs.folds, len(pairs)) == ("pairs", 2, 4)
        assert pairs.same.tolist() == [True, False, True, False]
        assert pairs.fold.tolist() == [0, 0, 1, 1]

        def value(index):
            return int(pairs.images.image(index)[0, 0, 0])

        assert [(value(a), value(b)) for a, b in zip(pairs.first, pairs.second, strict=True)] == [
            (1, 3), (1, 12), (12, 13), (21, 3)
        ]  # fmt: skip
        assert len(pairs.images) == 5  # of nine, those that are in a pair
        assert pairs.first.dtype == np.int64

    def test_one_fold(self, people):
        assert read_pairs(text(people, "1\nBo 1 2\nBo 1 Cleo 1\n\n"), people).folds == 1

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "should begin with the numbers of folds"),
            ("Bo 1 2\n", "should begin with the numbers of folds"),
            ("0 5\n", "should begin with the numbers of folds"),
            ("1 1\nBo 1 2\n", r"says 1 x 1 pairs of each kind, 2, and has 1"),
            ("1 1\nBo 1 2\nBo 1\n", "line 3: expected a name and two numbers, or two names each with a number"),
            ("1 1\nBo 1 2\nBo one Cleo 1\n", "line 3: expected a name and two numbers"),
            ("1 1\nBo 1 2\nBo 1 Cleo 1 9\n", "line 3: expected a name and two numbers"),
            ("1 1\nBo 1 2\nBo 1 Cleo 7\n", "names image 7 of Cleo, and .*Cleo_0007 is not there"),
            ("1 1\nBo 1 2\nBo 1 Dan 1\n", "names image 1 of Dan, and .*Dan_0001 is not there"),
            ("1 1\nBo 1 2\nBo 1 ../lfw/Bo 1\n", r"names image 1 of \.\./lfw/Bo, and .* is not there"),
            ("2 1\nBo 1 2\nBo 2 3\nBo 1 Cleo 1\nBo 2 Cleo 1\n", "1 pairs of one person in a fold, and fold 1 has 2"),
        ],
    )
    def test_refused(self, people, content, message):
        with pytest.raises(DataError, match=message):
            read_pairs(text(people, content), people)

    def test_an_image_with_two_extensions(self, people):
        (people / "Bo" / "Bo_0001.jpg").write_bytes(picture(1))
        with pytest.raises(DataError, match="Bo_0001 is there with several extensions"):
            read_pairs(text(people, "1 1\nBo 1 2\nBo 1 Cleo 1\n"), people)

    def test_no_text(self, people):
        with pytest.raises(DataError, match=r"Cannot read .*none\.txt: No such file"):
            read_pairs(people / "none.txt", people)
        (people.parent / "pairs.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match=r"Cannot read .*pairs\.txt: it is no text"):
            read_pairs(people.parent / "pairs.txt", people)
