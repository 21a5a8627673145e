"""COCO's layout: what is read of it, what becomes of boxes that are not as they should be, and what is refused."""

import copy
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.data.coco import CocoSource
from potstill.data.scenes import open_scenes
from potstill.errors import DataError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]  # not in order, not from 0


def annotation(number: int, image: int, box: list[float], category: int = 3, crowd: int = 0, area: float = 5.0) -> dict:
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd,
    }  # fmt: skip


CONTENT = {
    "info": {"year": 2026},
    "images": [
        {"id": 50, "file_name": "b.png", "width": 40, "height": 30},
        {"id": 9, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 11, "file_name": "sub/c.png", "width": 20, "height": 60},
    ],
    "annotations": [
        annotation(100, 11, [5, 10, 10, 20.5], area=123.25),
        annotation(0, 50, [30, 20, 20, 4], category=7),  # reaches 10 pixels beyond the right edge
        annotation(4, 50, [0, 0, 40, 30], crowd=1),
        annotation(5, 50, [3, 3, 0, 8]),  # no width
        annotation(6, 50, [10, 10, -4, 8]),
        annotation(7, 50, [40, 5, 6, 6]),  # begins where the image ends
        annotation(8, 50, [-9, -9, 9.5, 9.25], category=7),
    ],
    "categories": CATEGORIES,
}


def write(root: Path, content: object = CONTENT, part: str = "train2017") -> tuple[Path, Path]:
    """The images' folder and the annotations of one part."""
    folder, file = root / part, root / "annotations" / f"instances_{part}.json"
    for name, (width, height) in {"a": (40, 30), "b": (40, 30), "sub/c": (20, 60)}.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (width, height, 0)).save(path)
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder, file


def changed(**entries: object) -> dict:
    """The content with some entries replaced: ``images__0={...}`` or ``annotations=[...]``."""
    content = copy.deepcopy(CONTENT)
    for key, value in entries.items():
        name, _, position = key.partition("__")
        if position:
            content[name][int(position)].update(value)
        else:
            content[name] = value
    return content


def without(kind: str, key: str) -> dict:
    content = copy.deepcopy(CONTENT)
    del content[kind][0][key]
    return content


def test_images_keep_their_order_and_classes_go_by_ascending_number(tmp_path):
    source = CocoSource(*write(tmp_path))
    assert (len(source), source.boxes, source.labels) == (3, 7, None)
    assert source.classes == ("cat", "dog")
    assert source.category_ids == (3, 7)
    assert source.image_ids.tolist() == [50, 9, 11]
    assert [Path(source.describe(i)).name for i in range(3)] == ["b.png", "a.png", "c.png"]
    assert [source.size(i) for i in range(3)] == [(30, 40), (30, 40), (60, 20)]
    assert source.fixed_size is None
    assert source.image(2).shape == (60, 20, 3)
    assert source.encoded(2) == tmp_path / "train2017" / "sub" / "c.png"


def test_boxes_are_clipped_to_their_image_and_dropped_where_nothing_is_left(tmp_path):
    source = CocoSource(*write(tmp_path))
    found = source.objects(0)
    assert found.boxes.tolist() == [[30, 20, 40, 24], [0, 0, 40, 30], [0, 0, 0.5, 0.25]]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.crowd.tolist() == [False, True, False]
    assert [found.boxes.dtype, found.labels.dtype, found.crowd.dtype, found.area.dtype] == [
        np.float32, np.int64, bool, np.float32,
    ]  # fmt: skip
    assert (source.clipped, source.dropped) == (2, 3)


def test_an_image_without_boxes_stays(tmp_path):
    found = CocoSource(*write(tmp_path)).objects(1)
    assert [found.boxes.shape, found.labels.shape, found.crowd.shape, found.area.shape] == [(0, 4), (0,), (0,), (0,)]
    assert found.boxes.dtype == np.float32


def test_the_ground_truth_is_what_the_file_says(tmp_path):
    truth = CocoSource(*write(tmp_path)).ground_truth()
    assert truth["images"] == CONTENT["images"]
    assert truth["categories"] == sorted(CATEGORIES, key=lambda one: one["id"])
    assert sorted(truth["annotations"], key=lambda one: one["id"]) == sorted(
        CONTENT["annotations"], key=lambda one: one["id"]
    )
    assert [one["id"] for one in truth["annotations"]] == [0, 4, 5, 6, 7, 8, 100]  # the file's order in each image
    assert truth == json.loads(json.dumps(truth))  # plain numbers


def test_a_part_keeps_what_belongs_to_its_images(tmp_path):
    source = CocoSource(*write(tmp_path))
    part = source.select([2, 0])
    assert part.image_ids.tolist() == [11, 50]
    assert [part.size(i) for i in range(2)] == [(60, 20), (30, 40)]
    for mine, whole in ((0, 2), (1, 0)):
        for ours, theirs in zip(part.objects(mine), source.objects(whole), strict=True):
            assert np.array_equal(ours, theirs)
        assert part.describe(mine) == source.describe(whole)
        assert np.array_equal(part.image(mine), source.image(whole))
    truth = part.ground_truth()
    assert [one["id"] for one in truth["images"]] == [11, 50]
    assert [one["id"] for one in truth["annotations"]] == [100, 0, 4, 5, 6, 7, 8]
    assert part.identity not in (source.identity, source.select([0, 2]).identity)
    assert len(source) == 3
    assert (part.select([0]).dropped, part.select([0]).fixed_size, part.select([0]).boxes) == (0, (60, 20), 1)
    assert part.select([]).ground_truth()["annotations"] == []


@pytest.mark.parametrize(
    ("indices", "message"), [([0, 3], "between 0 and 2"), ([-1], "between 0 and 2"), ([1, 1], "come twice")]
)
def test_a_part_of_images_that_are_none_or_twice(tmp_path, indices, message):
    with pytest.raises(DataError, match=message):
        CocoSource(*write(tmp_path)).select(indices)


@pytest.mark.parametrize(
    "change",
    [
        {"annotations__0": {"bbox": [5, 10, 10, 21]}},
        {"annotations__0": {"category_id": 7}},
        {"annotations__0": {"iscrowd": 1}},
        {"annotations__0": {"area": 5}},
        {"annotations__0": {"image_id": 9}},
        {"images__0": {"width": 41}},
        {"categories__0": {"name": "wolf"}},
    ],
)
def test_the_identity_is_of_all_that_is_learnt_from(tmp_path, change):
    before = CocoSource(*write(tmp_path)).identity
    assert CocoSource(*write(tmp_path)).identity == before
    assert CocoSource(*write(tmp_path, changed(**change))).identity != before


def test_the_identity_is_of_the_image_files_too(tmp_path):
    folder, file = write(tmp_path)
    before = CocoSource(folder, file).identity
    with open(folder / "a.png", "ab") as image:
        image.write(b"\0")
    assert CocoSource(folder, file).identity != before


def test_an_image_of_another_size_than_its_annotations_is_named(tmp_path):
    source = CocoSource(*write(tmp_path, changed(images__1={"width": 30, "height": 40})))
    with pytest.raises(DataError, match=r"a\.png is 30 pixels high and 40 wide, but its annotations are for 40 high"):
        source.image(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON that can be read"),
        ("[" * 100_000, "is no JSON that can be read"),
        ("[]", "should hold one JSON object"),
        (changed(images=None), "has no list of images"),
        (changed(annotations={}), "has no list of annotations"),
        (changed(categories=[]), "has no categories"),
        (changed(images=[], annotations=[]), "has no images"),
        (changed(images=[3]), r"images\[0\] should be a JSON object, got 3"),
        (without("images", "file_name"), r"images\[0\] \(id 50\) has no file_name"),
        (without("images", "height"), r"images\[0\] \(id 50\) has no height"),
        (without("annotations", "id"), r"annotations\[0\] has no id"),
        (without("annotations", "bbox"), r"annotations\[0\] \(id 100\) has no bbox"),
        (without("annotations", "area"), r"annotations\[0\] \(id 100\) has no area"),
        (without("annotations", "iscrowd"), r"annotations\[0\] \(id 100\) has no iscrowd"),
        (without("categories", "name"), r"categories\[0\] \(id 7\) has no name"),
        (changed(images__0={"id": 9}), r"images\[1\] \(id 9\): an entry before it has the same id"),
        (changed(annotations__2={"id": 100}), r"annotations\[2\] \(id 100\): an entry before it has the same id"),
        (changed(categories__0={"id": 3}), r"categories\[1\] \(id 3\): an entry before it has the same id"),
        (changed(categories__0={"name": "cat"}), "two categories are called 'cat'"),
        (changed(categories__0={"name": " "}), "name should be a text, got ' '"),
        (changed(annotations__0={"image_id": 12}), r"annotations\[0\] \(id 100\) is of image 12, which is not among"),
        (changed(annotations__0={"category_id": 1}), r"annotations\[0\] \(id 100\) is of category 1, which is not"),
        (changed(annotations__0={"image_id": "11"}), "image_id should be a whole number, got '11'"),
        (changed(annotations__0={"id": True}), "id should be a whole number, got True"),
        (changed(annotations__0={"id": 1 << 70}), "id should be a whole number"),
        (changed(annotations__0={"bbox": [1, 2, 3]}), r"bbox should be four finite numbers .*, got \[1, 2, 3\]"),
        (changed(annotations__0={"bbox": [1, 2, 3, "4"]}), "bbox should be four finite numbers"),
        (changed(annotations__0={"bbox": [1, 2, 3, True]}), "bbox should be four finite numbers"),
        (changed(annotations__0={"bbox": [1, 2, 3, float("nan")]}), "bbox should be four finite numbers"),
        (changed(annotations__0={"bbox": [1, 2, 3, float("-inf")]}), "bbox should be four finite numbers"),
        (changed(annotations__0={"bbox": [1, 2, 3, 10**400]}), "bbox should be four finite numbers"),
        (changed(annotations__0={"bbox": None}), "bbox should be four finite numbers"),
        (changed(annotations__0={"area": -1}), "area should be a finite number of 0 or more, got -1"),
        (changed(annotations__0={"area": None}), "area should be a finite number"),
        (changed(annotations__0={"iscrowd": 2}), "iscrowd should be 0 or 1, got 2"),
        (changed(annotations__0={"iscrowd": "no"}), "iscrowd should be 0 or 1, got 'no'"),
        (changed(images__0={"height": 0}), "height should be a whole number of 1 or more, got 0"),
        (changed(images__0={"width": 40.0}), "width should be a whole number of 1 or more, got 40.0"),
        (changed(images__0={"file_name": "../train2017/b.png"}), "is no path inside the images' folder"),
        (changed(images__0={"file_name": "/b.png"}), "is no path inside the images' folder"),
        (changed(images__0={"file_name": "C:\\b.png"}), "is no path inside the images' folder"),
        (changed(images__0={"file_name": "sub\\..\\..\\b.png"}), "is no path inside the images' folder"),
        (changed(images__0={"file_name": "b\0.png"}), "is no path inside the images' folder"),
        (changed(images__0={"file_name": ""}), "file_name should be a text"),
        (changed(images__0={"file_name": 5}), "file_name should be a text, got 5"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_file_and_entry(tmp_path, content, message):
    folder, file = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as error:
        CocoSource(folder, file)
    assert str(file) in str(error.value)


def test_annotations_that_are_not_there(tmp_path):
    folder, _ = write(tmp_path)
    with pytest.raises(DataError, match=r"Cannot read the annotations .*none\.json: No such file"):
        CocoSource(folder, tmp_path / "none.json")


def test_images_that_are_not_there_are_counted(tmp_path):
    folder, file = write(tmp_path)
    (folder / "a.png").unlink()
    (folder / "sub" / "c.png").unlink()
    with pytest.raises(DataError, match=r"2 of 3 images are not there, the first is .*a\.png"):
        CocoSource(folder, file)


def test_links_are_followed_inside_the_data_only(tmp_path):
    folder, file = write(tmp_path / "data")
    (folder / "a.png").rename(tmp_path / "data" / "elsewhere.png")
    (folder / "a.png").symlink_to("../elsewhere.png")
    assert CocoSource(folder, file, root=tmp_path / "data").image(1).shape == (30, 40, 3)
    with pytest.raises(DataError, match=r"a\.png is a link that leaves .*train2017"):
        CocoSource(folder, file)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to("a.png")
    with pytest.raises(DataError, match="1 of 3 images are not there"):
        CocoSource(folder, file)
    (folder / "a.png").unlink()
    os.rename(folder / "sub", tmp_path / "outside")
    (folder / "sub").symlink_to(tmp_path / "outside")
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes())
    with pytest.raises(DataError, match="sub is a link that leaves"):
        CocoSource(folder, file, root=tmp_path / "data")


def test_a_folder_in_the_place_of_an_image_is_refused(tmp_path):
    folder, file = write(tmp_path)
    (folder / "a.png").unlink()
    (folder / "a.png").mkdir()
    with pytest.raises(DataError, match=r"a\.png has an image's name but is no regular file"):
        CocoSource(folder, file)


def test_the_blood_cells(shared_data):
    folder = shared_data("bccd")
    by_val, by_test = open_scenes("detection", folder), open_scenes("detection", folder, judged="test")
    sources = (by_val.train, by_val.val, by_test.val)
    assert [len(one) for one in sources] == [205, 87, 72]
    assert sum(one.boxes for one in sources) == 4886
    assert by_val.train.classes == by_val.val.classes == ("RBC", "WBC", "Platelets")
    assert by_val.train.identity == by_test.train.identity
    assert by_val.train.fixed_size == (480, 640)
    assert all((one.clipped, one.dropped) == (0, 0) for one in sources)
    for one in sources:
        assert sum(len(one.objects(i).boxes) for i in range(len(one))) == one.boxes
    given = json.loads((folder / "annotations" / "instances_test2017.json").read_text())
    truth = by_test.val.ground_truth()
    assert {kind: truth[kind] for kind in ("images", "annotations", "categories")} == {
        kind: given[kind] for kind in ("images", "annotations", "categories")
    }
    assert "205 images with 2,804 boxes" in by_val.note
    assert "judged by the data's own val: 87 images with 1,137 boxes. Not used: test." in by_val.note
    assert "own test: 72 images with 945 boxes. Not used: val." in by_test.note


def test_val_is_judged_by_and_else_test_and_else_a_part_of_the_training_images(tmp_path):
    write(tmp_path)
    for part, year in (("val", "2014"), ("test", "")):  # any year, or none
        write(tmp_path, part=part + year)
    assert "own val: 3 images" in open_scenes("detection", tmp_path).note
    (tmp_path / "annotations" / "instances_val2014.json").unlink()
    assert "own test: 3 images" in open_scenes("detection", tmp_path).note
    (tmp_path / "annotations" / "instances_test.json").unlink()
    split = open_scenes("detection", tmp_path, val_fraction=0.3, seed=4)
    assert (len(split.train), len(split.val)) == (2, 1)
    assert {*split.train.image_ids.tolist(), *split.val.image_ids.tolist()} == {50, 9, 11}
    assert "1 of 3 images with 7 boxes are kept for it, chosen with seed 4" in split.note
    again = open_scenes("detection", tmp_path, val_fraction=0.3, seed=4)
    assert (again.train.identity, again.val.identity) == (split.train.identity, split.val.identity)
    none = open_scenes("detection", tmp_path, val_fraction=0)
    assert none.val is None
    assert "trained on all, 3 images with 7 boxes" in none.note


def test_the_note_tells_of_boxes_that_are_not_learnt_from(tmp_path):
    write(tmp_path)
    write(tmp_path, part="val2017")
    note = open_scenes("detection", tmp_path, val_fraction=0.2).note
    assert f"{tmp_path} (train): 2 boxes reach outside their image and are clipped to it." in note
    assert f"{tmp_path} (val): 3 boxes have no width or height, or lie outside their image" in note
    assert "val_fraction=0.2 is for data without a part to judge by and was not used." in note


def test_images_may_lie_in_a_folder_of_their_own(tmp_path):
    folder, _ = write(tmp_path)
    (tmp_path / "images").mkdir()
    folder.rename(tmp_path / "images" / "train2017")
    assert len(open_scenes("detection", tmp_path, val_fraction=0).train) == 3
    (tmp_path / "images" / "train2017").rename(tmp_path / "images" / "train")
    assert len(open_scenes("detection", tmp_path, val_fraction=0).train) == 3
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"should lie in one of .*; there is .*/train and .*/images/train"):
        open_scenes("detection", tmp_path)


def test_the_validation_set_must_have_the_training_sets_categories(tmp_path):
    write(tmp_path)
    write(tmp_path, changed(categories=[*CATEGORIES, {"id": 12, "name": "owl"}]), part="val2017")
    with pytest.raises(
        DataError, match=r"instances_val2017\.json has other categories than .*: they differ in 12 \(owl"
    ):
        open_scenes("detection", tmp_path)
    write(tmp_path, changed(categories=[{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]), part="val2017")
    with pytest.raises(DataError, match=r"differ in 3 \(cat\), 3 \(dog\), 7 \(cat\), 7 \(dog\)"):
        open_scenes("detection", tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judged": "val"}, r"has no part 'val' to judge by; it has train\. With judged=auto"),
        ({"judged": "valid"}, "There is no part 'valid' to judge by; choose auto, val, test"),
        ({"source": "masks"}, r"detection has no data source 'masks'; it has auto, coco, voc\."),
        ({"source": "voc"}, "is in no layout of detection data that can be read: voc has JPEGImages and Annotations"),
        ({"task": "segmentation"}, "is in no layout of segmentation data"),
        ({"task": "detektion"}, r"not for 'detektion'\. Did you mean 'detection'"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1"),
        ({"path": "nowhere"}, "There is no folder nowhere"),
    ],
)
def test_what_cannot_be_opened(tmp_path, settings, message):
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        open_scenes(**{"task": "detection", "path": tmp_path, **settings})


def test_layouts_that_could_be_either_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=re.escape("is in the layouts coco and voc. Choose one with data.source")):
        open_scenes("detection", tmp_path)
    assert len(open_scenes("detection", tmp_path, source="coco", val_fraction=0).train) == 3
    write(tmp_path, part="train2014")
    with pytest.raises(DataError, match="has two annotations of train"):
        open_scenes("detection", tmp_path, source="coco")


def test_annotations_without_a_part_to_train_on(tmp_path):
    write(tmp_path, part="val2017")
    with pytest.raises(DataError, match="has val but no part train to train on"):
        open_scenes("detection", tmp_path)


def test_a_link_in_the_place_of_the_images_folder_is_refused(tmp_path):
    folder, _ = write(tmp_path)
    folder.rename(tmp_path / "other")
    folder.symlink_to("other")
    with pytest.raises(DataError, match="train2017 is a link to a folder, and is not followed"):
        open_scenes("detection", tmp_path)
