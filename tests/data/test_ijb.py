"""Protocols of faces: what the published layouts say, and every file that says something impossible refused by line."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from potstill.data.ijb import read_ijb, read_protocols
from potstill.data.protocol import UNKNOWN
from potstill.data.protocol_files import line_of, read_table
from potstill.errors import DataError

MEMBERS = "1.jpg 5 900\n2.jpg 5 901\n3.jpg 5 901\n4.jpg 2 77\n5.jpg 40 12\n"
PAIRS = "5 2 1\n5 40 0\n2 40 0\n"
POINTS = "".join(f"{i}.jpg " + " ".join(f"{i}{k}.5" for k in range(10)) + f" 0.9{i}\n" for i in range(1, 6))
GALLERY = 'TEMPLATE_ID,SUBJECT_ID,FILENAME,NOTE\n5,100,img/1.jpg,"a, b"\n5,100,img/2.jpg,\n'
SECOND = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n40,300,img/9.jpg\n"
PROBES = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n2,100,frames/1.png\n40,300,img/9.jpg\n"

Write = Callable[..., Path]


@pytest.fixture
def ijbc(tmp_path: Path) -> Write:
    """Writes a small IJB-C; arguments replace files by the ends of their names, None leaves them out."""

    def write(prefix: str = "ijbc", images: int = 5, **changes: str | bytes | None) -> Path:
        contents = {
            "face_tid_mid.txt": MEMBERS,
            "template_pair_label.txt": PAIRS,
            "name_5pts_score.txt": POINTS,
            "1N_gallery_G1.csv": GALLERY,
            "1N_gallery_G2.csv": SECOND,
            "1N_probe_mixed.csv": PROBES,
        } | {f"{name.removeprefix('_')}.{'csv' if '1N' in name else 'txt'}": text for name, text in changes.items()}
        folder = tmp_path / "IJBC"
        (folder / "meta").mkdir(parents=True, exist_ok=True)
        (folder / "loose_crop").mkdir(exist_ok=True)
        for name, text in contents.items():
            if text is not None:
                content = text if isinstance(text, bytes) else text.encode()
                (folder / "meta" / f"{prefix}_{name}").write_bytes(content)
        for number in range(1, images + 1):
            (folder / "loose_crop" / f"{number}.jpg").write_bytes(b"")
        return folder

    return write


def test_the_layout_of_ijbc_is_read(ijbc: Write) -> None:
    folder = ijbc()
    (found,) = read_protocols(folder)
    assert found.images == ("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
    assert found.path(2) == folder / "loose_crop" / "3.jpg"
    assert found.template_ids.tolist() == [2, 5, 40]
    assert found.template_of.tolist() == [1, 1, 1, 0, 2]
    assert found.image_of.tolist() == [0, 1, 2, 3, 4]
    assert found.media_of.tolist() == [2, 3, 3, 1, 0]
    assert found.subject_of.tolist() == [100, 100, 300]
    assert found.pairs is not None
    assert (found.pairs.first.tolist(), found.pairs.second.tolist()) == ([1, 1, 0], [0, 2, 2])
    assert found.pairs.same.tolist() == [True, False, False]
    assert (found.pairs.first.dtype, found.pairs.same.dtype) == (np.int32, np.bool_)
    assert {name: numbers.tolist() for name, numbers in found.galleries.items()} == {"G1": [1], "G2": [2]}
    assert found.probes.tolist() == [0, 2]
    assert found.landmarks is not None
    assert found.landmarks[1].tolist() == [[20.5, 21.5], [22.5, 23.5], [24.5, 25.5], [26.5, 27.5], [28.5, 29.5]]
    assert found.scores is not None
    assert found.scores.tolist() == pytest.approx([0.91, 0.92, 0.93, 0.94, 0.95])
    assert found.found.all()


def test_galleries_of_ijbb_are_named_as_there(ijbc: Write) -> None:
    folder = ijbc(prefix="ijbb", **{"1N_gallery_G1": None, "1N_gallery_G2": None})
    (folder / "meta" / "ijbb_1N_gallery_S1.csv").write_text(GALLERY)
    found = read_ijb(folder)
    assert list(found.galleries) == ["S1"]
    assert found.name == "IJBC (ijbb)"


def test_points_are_found_by_name_and_missing_ones_are_no_faces(ijbc: Write) -> None:
    lines = POINTS.splitlines(keepends=True)
    text = lines[4] + lines[0].replace("1.jpg", "other.jpg") + lines[2]
    found = read_ijb(ijbc(name_5pts_score=text))
    assert found.found.tolist() == [False, False, True, False, True]
    assert found.landmarks is not None
    assert found.landmarks[4, 0, 0] == 50.5
    assert found.scores is not None
    assert np.isnan(found.scores[[0, 1, 3]]).all()


def test_what_is_optional_may_be_missing(ijbc: Write) -> None:
    found = read_ijb(ijbc(name_5pts_score=None, template_pair_label=None))
    assert (found.landmarks, found.scores, found.pairs) == (None, None, None)
    assert found.found.all()


def test_without_galleries_nobody_says_whose_the_templates_are(ijbc: Write) -> None:
    found = read_ijb(ijbc(**{"1N_gallery_G1": None, "1N_gallery_G2": None}))
    assert found.galleries == {}
    assert set(found.subject_of.tolist()) == {UNKNOWN}


def test_an_image_in_several_templates_is_one_image(ijbc: Write) -> None:
    found = read_ijb(ijbc(face_tid_mid=MEMBERS + "1.jpg 40 900\n"))
    assert found.images[0] == "1.jpg"
    assert len(found.images) == 5
    assert found.image_of.tolist() == [0, 1, 2, 3, 4, 0]
    assert found.template_of.tolist() == [1, 1, 1, 0, 2, 2]


def test_images_may_lie_elsewhere(ijbc: Write, tmp_path: Path) -> None:
    folder = ijbc(images=0)
    other = tmp_path / "aligned"
    other.mkdir()
    for number in range(1, 6):
        (other / f"{number}.jpg").write_bytes(b"")
    assert read_ijb(folder, other).path(0) == other / "1.jpg"
    with pytest.raises(DataError, match=r"names 5 images of 5 that are not in .*loose_crop, '1\.jpg' first"):
        read_ijb(folder)


def test_windows_line_ends_and_a_mark_of_byte_order_are_read(ijbc: Write) -> None:
    found = read_ijb(
        ijbc(
            template_pair_label=PAIRS.replace("\n", "\r\n"),
            **{"1N_gallery_G1": b"\xef\xbb\xbf" + GALLERY.replace("\n", "\r\n").encode()},
        )
    )
    assert len(found.pairs or ()) == 3
    assert found.galleries["G1"].tolist() == [1]


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/passwd", "a/../../1.jpg", "..", "C:1.jpg", r"..\1.jpg"])
def test_names_that_leave_the_folder_are_refused(ijbc: Write, name: str) -> None:
    with pytest.raises(DataError, match="is not below the folder of the images"):
        read_ijb(ijbc(face_tid_mid=MEMBERS + f"{name} 40 900\n"))


@pytest.mark.skipif(os.name != "posix", reason="makes a link")
def test_a_link_that_leaves_the_folder_is_not_followed(ijbc: Write, tmp_path: Path) -> None:
    folder = ijbc(images=4)
    (tmp_path / "secret.jpg").write_bytes(b"")
    (folder / "loose_crop" / "5.jpg").symlink_to(tmp_path / "secret.jpg")
    found = read_ijb(folder)
    with pytest.raises(DataError, match="a link that leaves"):
        found.path(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"face_tid_mid": ""}, r"face_tid_mid\.txt is empty"),
        ({"face_tid_mid": "\n\n"}, r"face_tid_mid\.txt is empty"),
        ({"face_tid_mid": MEMBERS + "\n6.jpg 7\n"}, r"face_tid_mid\.txt, line 7: 2 columns where 3 are expected"),
        ({"face_tid_mid": MEMBERS + "6.jpg x 9\n"}, r"line 6: the template is 'x', where a whole number is expected"),
        ({"face_tid_mid": MEMBERS + "6.jpg  9\n"}, r"line 6: the template is ''"),
        ({"face_tid_mid": MEMBERS.encode() + b"\xff.jpg 1 9\n"}, r"line 6: the image is '\\udcff\.jpg'"),
        ({"face_tid_mid": MEMBERS + "6.jpg 1 9\n"}, r"names 1 images of 6 .* '6\.jpg' first"),
        (
            {"template_pair_label": PAIRS + "\n5 6 0\n"},
            r"label\.txt, line 5: the template 6 has no images in ijbc_face",
        ),
        ({"template_pair_label": "5 2 1\n\n5 40 2\n"}, r"label\.txt, line 3: the label is 2; it is 1 for"),
        ({"template_pair_label": PAIRS + "5 2\n"}, r"label\.txt, line 4: 2 columns where 3"),
        ({"template_pair_label": PAIRS + "5 2 yes\n"}, r"label\.txt, line 4: the label is 'yes'"),
        ({"name_5pts_score": POINTS + POINTS[:40]}, r"score\.txt, line 6: .* columns where 12"),
        ({"name_5pts_score": POINTS + POINTS}, r"score\.txt, line 6: the image '1\.jpg' stands there twice"),
        (
            {"name_5pts_score": POINTS.replace("10.5", "left")},
            "line 1: the x of the left eye is 'left', where a number",
        ),
        ({"1N_gallery_G1": ""}, r"gallery_G1\.csv, line 1: the header has no TEMPLATE_ID, SUBJECT_ID, but nothing"),
        ({"1N_gallery_G1": "5,100,img/1.jpg\n"}, "the header has no TEMPLATE_ID, SUBJECT_ID, but 5, 100"),
        ({"1N_gallery_G1": GALLERY.split("5,100")[0]}, "has a header but no templates"),
        ({"1N_gallery_G1": GALLERY + "5,101,img/3.jpg,\n"}, r"line 4: the template 5 is of subject 101.* of 100"),
        ({"1N_gallery_G1": GALLERY + "2,101,img/3.jpg,\n"}, r"probe_mixed\.csv, line 2: .* of subject 100.* of 101"),
        ({"1N_gallery_G1": GALLERY + "6,101,img/3.jpg,\n"}, "line 4: the template 6 has no images"),
        ({"1N_gallery_G1": GALLERY + "x,101,img/3.jpg,\n"}, "line 4: the TEMPLATE_ID is 'x'"),
        ({"1N_gallery_G1": GALLERY + "5\n"}, "line 4: 1 columns; SUBJECT_ID is column 2"),
        ({"1N_gallery_G1": GALLERY + "2,-1,img/3.jpg,\n"}, "line 4: a SUBJECT_ID below 0"),
        ({"1N_gallery_G1": GALLERY.encode() + b"\xff"}, "is no text in UTF-8"),
        ({"1N_probe_mixed": None}, r"galleries but no ijbc_1N_probe_mixed\.csv"),
        (
            {"1N_gallery_G1": None, "1N_gallery_G2": None, "template_pair_label": None},
            r"nothing to compare: neither ijbc_template_pair_label\.txt nor",
        ),
        ({"face_tid_mid": None}, r"no face protocol: there is no meta/\*_face_tid_mid\.txt"),
    ],
)
def test_files_that_cannot_be_meant_are_refused_by_line(ijbc: Write, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_protocols(ijbc(**changes))


def test_two_protocols_in_a_folder_are_refused(ijbc: Write) -> None:
    folder = ijbc()
    ijbc(prefix="ijbb")
    with pytest.raises(DataError, match=r"several protocols: ijbb_face_tid_mid\.txt, ijbc_face_tid_mid\.txt"):
        read_ijb(folder)


def test_a_label_that_contradicts_the_subjects_is_told(ijbc: Write, caplog: pytest.LogCaptureFixture) -> None:
    found = read_ijb(ijbc(template_pair_label="5 40 0\n5 2 0\n2 40 1\n"))
    assert found.pairs is not None
    assert found.pairs.same.tolist() == [False, False, True]
    assert "line 2: the label contradicts the subjects" in caplog.text
    assert "so do 1 further rows" in caplog.text


def test_many_rows_are_read_and_their_lines_found(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    rows = np.random.default_rng(0).integers(0, 10**6, (200_000, 2))
    path.write_text("\n" + "".join(f"{a} {b} {a % 2}\n" for a, b in rows))
    found = read_table(path, {"first": "id", "second": "id", "label": "label"})
    assert np.array_equal(np.stack([found["first"].to_numpy(), found["second"].to_numpy()], 1), rows)
    assert np.array_equal(found["label"].to_numpy(), rows[:, 0] % 2)
    assert line_of(path, 199_999) == 200_001


HEADER = "TEMPLATE_ID,SUBJECT_ID,FILE,MEDIA_ID,SIGHTING_ID,FRAME,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT,RIGHT_EYE_X\n"


@pytest.fixture
def ijba(tmp_path: Path) -> Write:
    """Writes two splits of a small IJB-A, the second without a search; arguments replace files of the first."""

    def write(**changes: str | None) -> Path:
        folder = tmp_path / "IJB-A"
        first = {
            "11/verify_metadata": HEADER
            + "1,10,img/1.jpg,50,70,,5,6,20,30,\n"
            + "1,10,frame/2.png,51,71,3,1,2,10,10,\n"
            + "1,10,frame/3.png,51,72,4,,,,,\n"
            + "2,11,img/1.jpg,50,73,,100,6,20,30,\n",
            "11/verify_comparisons": "1,2\n2,1\n1,1\n",
            "1N/search_gallery": HEADER + "1,10,img/1.jpg,50,70,,5,6,20,30,\n7,12,img/4.jpg,54,74,,0,0,1,1,\n",
            "1N/search_probe": HEADER + "2,12,frame/3.png,51,72,4,,,,,\n9,99,img/4.jpg,54,74,,0,0,1,1,\n",
        }
        first |= {f"{'11' if name.startswith('verify') else '1N'}/{name}": text for name, text in changes.items()}
        for name, text in first.items():
            part, _, stem = name.partition("/")
            path = folder / f"IJB-A_{part}_sets" / "split1" / f"{stem}_1.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is not None:
                path.write_text(text)
        second = folder / "IJB-A_11_sets" / "split10"
        second.mkdir(exist_ok=True)
        (second / "verify_metadata_10.csv").write_text(
            HEADER + "4,1,img/4.jpg,1,1,,0,0,1,1,\n5,1,img/5.jpg,2,2,,,,,,\n"
        )
        (second / "verify_comparisons_10.csv").write_text("4,5\n")
        for name in ("img/1.jpg", "img/4.jpg", "img/5.jpg", "frame/2.png", "frame/3.png"):
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images" / name).write_bytes(b"")
        return folder

    return write


def test_the_splits_of_ijba_are_protocols_over_the_same_faces(ijba: Write) -> None:
    folder = ijba()
    first, tenth = read_protocols(folder)
    assert (first.name, tenth.name) == ("IJB-A (split 1)", "IJB-A (split 10)")
    assert first.images == tenth.images
    # two faces of one photograph are two images; one face in two templates is one
    assert first.images == ("img/1.jpg", "frame/2.png", "frame/3.png", "img/1.jpg", "img/4.jpg", "img/5.jpg")
    assert first.boxes is not None
    assert first.boxes[0].tolist() == [5, 6, 25, 36]
    assert np.isnan(first.boxes[2]).all()
    assert first.path(1) == folder / "images" / "frame" / "2.png"
    assert first.template_ids.tolist() == [1, 2, 1, 7, 2, 9]  # of the comparisons, the gallery, the probes
    assert first.subject_of.tolist() == [10, 11, 10, 12, 12, 99]
    assert first.template_of.tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    assert first.image_of.tolist() == [0, 1, 2, 3, 0, 4, 2, 4]
    assert first.media_of.tolist() == [0, 1, 1, 0, 0, 2, 1, 2]
    assert first.pairs is not None
    assert (first.pairs.first.tolist(), first.pairs.second.tolist()) == ([0, 1, 0], [1, 0, 0])
    assert first.pairs.same.tolist() == [False, False, True]
    assert first.galleries["gallery"].tolist() == [2, 3]
    assert first.probes.tolist() == [4, 5]
    assert first.landmarks is None
    assert tenth.galleries == {}
    assert tenth.image_of.tolist() == [4, 5]
    assert tenth.pairs is not None
    assert tenth.pairs.same.tolist() == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verify_comparisons": None}, r"verify_metadata_1\.csv is there, but what goes with it is not"),
        ({"search_gallery": None}, r"search_probe_1\.csv is there, but what goes with it is not"),
        ({"verify_comparisons": "1,2\n\n1,3\n"}, r"comparisons_1\.csv, line 3: the template 3 has no images"),
        ({"verify_comparisons": "1,2,1\n"}, r"line 1: 3 columns where 2 are expected"),
        ({"verify_metadata": HEADER}, "has a header but no templates"),
        ({"verify_metadata": HEADER + "1,10\n"}, "line 2: 2 columns; MEDIA_ID is column 4"),
        ({"verify_metadata": HEADER + "1,ten,a,1\n"}, "line 2: the SUBJECT_ID is 'ten', where a whole number"),
        ({"verify_metadata": HEADER + "1,1,a,1,,,wide,1,1,1\n"}, "line 2: the FACE_X is 'wide', where a number"),
        (
            {"verify_metadata": HEADER + "1,1,a,1\n1,2,b,1\n"},
            "line 3: the template 1 is of subject 2, and elsewhere of 1",
        ),
        ({"search_probe": HEADER + "1,1,../a.jpg,1\n"}, "not below the folder of the images"),
        ({"search_probe": HEADER + "1,1,img/a.jpg,1\n"}, r"names 1 images of 6 .* 'img/a\.jpg' first"),
    ],
)
def test_files_of_ijba_that_cannot_be_meant_are_refused_by_line(ijba: Write, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_protocols(ijba(**changes))
