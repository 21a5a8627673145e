"""Pascal VOC's layout: boxes from 0, difficult objects, the lists of parts, and XML that is refused."""

from pathlib import Path

import pytest
from PIL import Image

from potstill.data.scenes import open_scenes
from potstill.data.voc import VocSource, parse_xml
from potstill.errors import DataError

DOG = ("dog", (1, 1, 40, 30), 0)  # the whole image
CAT = ("cat", (11, 6, 20, 25), 0)


def page(objects: tuple = (DOG,), size: tuple = (40, 30)) -> str:
    parts = [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"]
    for name, corners, difficult in objects:
        box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))  # noqa: B905
        marked = "" if difficult is None else f"<difficult>{difficult}</difficult>"
        head = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        parts.append(f"<object><name>{name}</name>{marked}<bndbox>{box}</bndbox>{head}</object>")
    return f"<annotation><filename>x.jpg</filename>{''.join(parts)}</annotation>"


def write(root: Path, pages: dict[str, str], lists: dict[str, list[str]] | None = None) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, text in pages.items():
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    for part, stems in (lists or {}).items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(stems) + "\n")
    return root


def test_boxes_begin_at_0_and_end_after_their_last_pixel(tmp_path):
    source = VocSource(write(tmp_path, {"a": page((CAT, DOG))}), ["a"])
    found = source.objects(0)
    assert found.boxes.tolist() == [[10, 5, 20, 25], [0, 0, 40, 30]]
    assert found.area.tolist() == [200, 1200]
    assert (source.clipped, source.dropped) == (0, 0)
    assert source.image(0).shape == (30, 40, 3)


def test_a_difficult_object_is_a_crowd(tmp_path):
    objects = (("dog", (1, 1, 5, 5), 1), ("dog", (1, 1, 5, 5), 0), ("dog", (1, 1, 5, 5), None))
    source = VocSource(write(tmp_path, {"a": page(objects)}), ["a"])
    assert source.objects(0).crowd.tolist() == [True, False, False]
    assert [one["iscrowd"] for one in source.ground_truth()["annotations"]] == [1, 0, 0]


def test_the_ground_truth_is_in_cocos_format(tmp_path):
    write(tmp_path, {"a": page((DOG,)), "b": page(()), "c": page((CAT, ("cat", (30, 5, 20, 60), 0)))})
    truth = VocSource(tmp_path, ["c", "b", "a"]).ground_truth()
    assert truth["images"] == [
        {"id": number, "file_name": f"{stem}.jpg", "height": 30, "width": 40}
        for number, stem in enumerate("cba", start=1)
    ]
    assert truth["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert truth["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 10, 20], "area": 200, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [29, 4, -9, 56], "area": 0, "iscrowd": 0},
        {"id": 3, "image_id": 3, "category_id": 2, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 0},
    ]


def test_images_may_have_other_extensions(tmp_path):
    write(tmp_path, {"a": page()})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / "a.PNG")
    assert VocSource(tmp_path, ["a"]).encoded(0).name == "a.PNG"
    Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / "a.jpg")
    with pytest.raises(DataError, match=r"has a\.PNG and a\.jpg, so a could be either"):
        VocSource(tmp_path, ["a"])


def test_parts_are_those_of_the_lists(tmp_path):
    stems = {"train": ["a", "c"], "val": ["b"], "trainval": ["a", "b", "c"], "test": ["d"]}
    write(tmp_path, {"a": page((DOG,)), "b": page((CAT,)), "c": page((CAT,)), "d": page(())}, stems)
    by_val, by_test = open_scenes("detection", tmp_path), open_scenes("detection", tmp_path, judged="test")
    assert [Path(by_val.train.describe(i)).stem for i in range(2)] == ["a", "c"]
    assert (len(by_val.train), len(by_val.val), len(by_test.train), len(by_test.val)) == (2, 1, 3, 1)
    assert by_val.val.classes == by_val.train.classes == ("cat", "dog")
    assert by_val.val.objects(0).labels.tolist() == [0]
    assert "Trained on trainval, 3 images with 3 boxes; judged by the data's own test: 1 image" in by_test.note
    assert "Not used: train, val." in by_test.note
    assert "Boxes count pixels from 1" in by_val.note


def test_without_lists_all_images_are_for_training(tmp_path):
    write(tmp_path, {stem: page() for stem in "abcd"})
    split = open_scenes("detection", tmp_path, val_fraction=0.25)
    assert (len(split.train), len(split.val)) == (3, 1)
    assert "There are no lists in ImageSets/Main" in split.note


def test_images_that_are_trained_on_and_judged_by_are_told(tmp_path):
    write(tmp_path, {"a": page(), "b": page()}, {"train": ["a", "b"], "val": ["b"]})
    assert "1 images are in both" in open_scenes("detection", tmp_path).note


def test_classes_are_those_of_the_file_where_there_is_one(tmp_path):
    write(tmp_path, {"a": page((DOG,)), "b": page((CAT,))}, {"train": ["a"], "val": ["b"]})
    with pytest.raises(DataError, match=r"b\.xml has an object of class 'cat', which is not among .*: dog\. Name all"):
        open_scenes("detection", tmp_path)
    (tmp_path / "classes.txt").write_text("owl\ndog\ncat\n")
    split = open_scenes("detection", tmp_path)
    assert split.train.classes == split.val.classes == ("owl", "dog", "cat")
    assert (split.train.objects(0).labels.tolist(), split.val.objects(0).labels.tolist()) == ([1], [2])
    (tmp_path / "classes.txt").write_text("dog\ncat\ndog\n")
    with pytest.raises(DataError, match="has the name 'dog' twice"):
        open_scenes("detection", tmp_path)


def test_data_without_any_object(tmp_path):
    write(tmp_path, {"a": page(()), "b": page(())})
    with pytest.raises(DataError, match="has no objects in its 2 XML files"):
        VocSource(tmp_path, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no XML that can be read"),
        ("<annotation><size>", "is no XML that can be read"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "is no XML that can be read"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "has a document type declaration"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "has a document type declaration"),
        ("<annotation/>", "size/height should be a number, got None"),
        (page(size=(0, 0)), "size should be whole pixels, got 0 high and 0 wide"),
        (page(size=(40, 30.5)), "size should be whole pixels, got 30.5 high"),
        (page((("", (1, 1, 2, 2), 0),)), "object 1 has no name of its class"),
        (page((DOG, ("cat", (1, 1, 2), 0))), r"object 2 \(cat\), bndbox/ymax should be a number, got None"),
        (page((("cat", (1, "x", 2, 2), 0),)), r"bndbox/ymin should be a number, got 'x'"),
        (page((("cat", (1, "nan", 2, 2), 0),)), r"bndbox/ymin should be a number, got 'nan'"),
        (page((("cat", (1, "1e99", 2, 2), 0),)), r"bndbox/ymin should be a number, got '1e99'"),
        (page((("cat", (1, 1, 2, 2), "maybe"),)), r"difficult should be 0 or 1, got 'maybe'"),
    ],
)
def test_xml_that_cannot_be_used_is_named(tmp_path, text, message):
    write(tmp_path, {"a": text})
    with pytest.raises(DataError, match=message) as error:
        VocSource(tmp_path, ["a"])
    assert "a.xml" in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_a_document_type_is_found_in_any_encoding(tmp_path, encoding):
    path = tmp_path / "a.xml"
    path.write_bytes('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode(encoding))
    with pytest.raises(DataError, match="document type declaration"):
        parse_xml(path)
    path.write_bytes("<a>&lt;!DOCTYPE</a>".encode(encoding))
    assert parse_xml(path).text == "<!DOCTYPE"


def test_files_that_are_not_there(tmp_path):
    write(tmp_path, {"a": page(), "b": page()}, {"train": ["a", "b"]})
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"JPEGImages has no image b, which .*b\.xml is of"):
        open_scenes("detection", tmp_path)
    (tmp_path / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"Cannot read the annotations .*b\.xml: No such file"):
        open_scenes("detection", tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\n\nb -1\n", "line 3: expected one image's name, got 'b -1'"),
        ("a\nb\na\n", "line 3: 'a' stands in line 1 already"),
        ("\n \n", "names no images"),
        ("../Annotations/a\n", "No such file|no image"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, lines, message):
    write(tmp_path, {"a": page(), "b": page()})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        open_scenes("detection", tmp_path)
