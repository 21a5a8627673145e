"""Average precision against pycocotools on the same detections, at its edges, and over several processes."""

import contextlib
import copy
import io
import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.errors import DataError, NetworkError, RecipeError
from potstill.tasks.detection import AveragePrecision, Detections, detections, must_be_there
from potstill.tasks.matches import matched
from potstill.training.distributed import Processes

pytest.importorskip("faster_coco_eval", reason="average precision needs faster-coco-eval")

NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar"]
PLACES = dict(zip(NAMES, (0, 1, 2, 3, 4, 5, 8), strict=True))  # in pycocotools' stats
Found = dict[int, tuple[Tensor, Tensor, Tensor]]  # of each image boxes, scores, labels


def in_cocos_words(found: Found, category_ids: list[int]) -> list[dict[str, Any]]:
    rows = []
    for image_id, (boxes, scores, labels) in found.items():
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score})
    return rows


def by_pycocotools(truth: dict[str, Any], found: Found, category_ids: list[int], classes: list[str]):
    """What pycocotools says of the same detections; the evaluation itself last."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools, the reference, is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = coco.COCO()
        theirs.dataset = copy.deepcopy(truth)
        theirs.createIndex()
        evaluation = cocoeval.COCOeval(theirs, theirs.loadRes(in_cocos_words(found, category_ids)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: 100 * evaluation.stats[at] for name, at in PLACES.items() if evaluation.stats[at] > -1}
    per_class = {}
    for number, name in zip(category_ids, classes, strict=True):
        precision = evaluation.eval["precision"][:, :, sorted(category_ids).index(number), 0, -1]
        if (precision > -1).any():
            per_class[name] = 100 * precision[precision > -1].mean()
    return values, per_class, evaluation


def ours(truth: dict[str, Any], found: Found, category_ids: list[int], classes: list[str]) -> AveragePrecision:
    measure = AveragePrecision(truth, category_ids, classes)
    for image_id, one in found.items():
        measure.add(image_id, *one)
    return measure


def jittered(truth: dict[str, Any], category_ids: list[int], generator: torch.Generator, jitter: float) -> Found:
    """The boxes of the ground truth moved about, some left out, some of another class, and some out of nothing."""
    found: Found = {}
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).view(-1, 4)
        boxes = torch.cat([boxes, 200 * torch.rand(3, 4, generator=generator)])
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        corners += jitter * boxes[:, 2:].repeat(1, 2) * torch.randn(corners.shape, generator=generator)
        corners = torch.cat([corners[:, :2], torch.maximum(corners[:, 2:], corners[:, :2])], 1)
        labels = torch.tensor([category_ids.index(a["category_id"]) for a in own] + [0, 1, 2])
        other = torch.randint(len(category_ids), labels.shape, generator=generator)
        labels = torch.where(torch.rand(labels.shape, generator=generator) < 0.1, other, labels)
        scores = (20 * torch.rand(len(labels), generator=generator)).round() / 20  # many are equal
        kept = torch.rand(len(labels), generator=generator) < 0.9
        found[image["id"]] = (corners[kept], scores[kept], labels[kept])
    return found


def check(truth: dict[str, Any], found: Found, category_ids: list[int], classes: list[str]) -> dict[str, float]:
    expected, per_class, _ = by_pycocotools(truth, found, category_ids, classes)
    measure = ours(truth, found, category_ids, classes)
    values = measure.values()
    assert values == pytest.approx(expected, rel=0, abs=1e-6)
    assert list(values) == [name for name in NAMES if name in expected]
    assert measure.per_class() == pytest.approx(per_class, rel=0, abs=1e-6)
    return values


CATEGORY_IDS, CLASSES = [7, 1, 90, 4], ["cell", "plate", "rod", "nothing"]  # not in order; nothing never occurs


def hard_set(seed: int) -> tuple[dict[str, Any], Found]:
    """Ground truth with crowds, empty images, boxes of no width, boxes beyond the image, and detections likewise."""
    generator = torch.Generator().manual_seed(seed)

    def whole(high: int, *shape: int) -> list[Any]:
        return torch.randint(high, shape, generator=generator).tolist()

    images = [{"id": 3 * i + 2, "width": 300, "height": 200} for i in range(12)]
    annotations = []
    for image in images[2:]:  # two without a box
        for x, y, w, h in whole(220, 8, 4):
            kind = whole(10, 1)[0]
            box = [x - 20, y, w if kind else 0, h if kind != 1 else 3 * h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": CATEGORY_IDS[whole(3, 1)[0]],
                    "bbox": box,
                    "area": box[2] * box[3] * 0.7,  # a segment's, smaller than its box
                    "iscrowd": int(kind > 7),
                }
            )
    truth = {"images": images, "annotations": annotations, "categories": [{"id": n} for n in CATEGORY_IDS]}
    found = jittered(truth, CATEGORY_IDS, generator, 0.08)
    first, many, none = images[0]["id"], images[4]["id"], images[5]["id"]
    found[none] = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    flat = torch.tensor([[5.0, 5, 5, 50], [5, 5, 5, 5], [-40, -30, 900, 800]])
    found[first] = (flat, torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0, 1, 3]))
    boxes, scores, labels = found[many]
    corners = 150 * torch.rand(260, 2, generator=generator)
    crowded = torch.cat([corners, corners + 100 * torch.rand(260, 2, generator=generator)], 1)
    found[many] = (
        torch.cat([crowded, boxes]),
        torch.cat([(10 * torch.rand(260, generator=generator)).round() / 10, scores]),
        torch.cat([torch.zeros(260, dtype=torch.int64), labels]),
    )
    return truth, found


@pytest.mark.parametrize("seed", range(5))
def test_the_same_as_pycocotools_on_a_hard_set(seed: int):
    truth, found = hard_set(seed)
    before = copy.deepcopy(truth)
    values = check(truth, found, CATEGORY_IDS, CLASSES)
    assert 5 < values["ap"] < 95
    assert truth == before  # evaluating writes nothing into the ground truth
    assert set(ours(truth, found, CATEGORY_IDS, CLASSES).per_class()) == set(CLASSES[:3])


@pytest.mark.parametrize("jitter", [0.02, 0.1])
def test_the_same_as_pycocotools_on_real_images(shared_data, jitter: float):
    truth = json.loads((shared_data("bccd") / "annotations" / "instances_test2017.json").read_text(encoding="utf-8"))
    numbers, names = [c["id"] for c in truth["categories"]], [c["name"] for c in truth["categories"]]
    values = check(truth, jittered(truth, numbers, torch.Generator().manual_seed(1), jitter), numbers, names)
    assert 10 < values["ap"] < 90


def box(image_id: int, category_id: int, *sides: float, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": image_id, "category_id": category_id, "bbox": list(sides), **more}


def truth_of(*annotations: dict[str, Any], images: int = 2) -> dict[str, Any]:
    return {"images": [{"id": i} for i in range(images)], "annotations": list(annotations)}


NOTHING = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
EXACT = (torch.tensor([[10.0, 10, 60, 50]]), torch.tensor([0.9]), torch.tensor([0]))


def test_a_network_that_finds_nothing_has_zero():
    measure = AveragePrecision(truth_of(box(0, 1, 10, 10, 50, 40)), [1, 2], ["cell", "rod"])
    for image_id in (0, 1):
        measure.add(image_id, *NOTHING)
    assert measure.values() == {"ap": 0, "ap50": 0, "ap75": 0, "ap_medium": 0, "ar": 0}
    assert measure.per_class() == {"cell": 0}


def test_an_annotation_numbered_0_counts_like_any_other():
    truth = truth_of(box(0, 1, 10, 10, 50, 40, id=0))
    measure = AveragePrecision(truth, [1], ["cell"])
    measure.add(0, *EXACT)
    assert measure.values()["ap"] == pytest.approx(100)


def test_without_an_area_it_is_the_boxs_and_without_a_word_of_crowds_there_are_none():
    measure = AveragePrecision(truth_of(box(0, 1, 10, 10, 50, 40)), [1], ["cell"])
    measure.add(0, *EXACT)
    assert measure.values()["ap_medium"] == pytest.approx(100)
    assert "ap_small" not in measure.values()


def test_detections_on_a_crowd_region_do_not_count():
    crowd = box(0, 1, 100, 100, 80, 80, id=2, iscrowd=1)
    truth = truth_of(box(0, 1, 10, 10, 50, 40), crowd)
    boxes = torch.tensor([[110.0, 110, 150, 150], [105, 120, 150, 170], [10, 10, 60, 50]])
    measure = AveragePrecision(truth, [1], ["cell"])
    measure.add(0, boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 0]))
    assert measure.values()["ap"] == pytest.approx(100)


def test_only_images_that_were_added_count():
    truth = truth_of(box(0, 1, 10, 10, 50, 40), box(1, 1, 0, 0, 9, 9))
    measure = AveragePrecision(truth, [1], ["cell"])
    measure.add(0, *EXACT)
    assert measure.values()["ap"] == pytest.approx(100)
    measure.add(1, *NOTHING)
    assert measure.values()["ap"] == pytest.approx(100 * 51 / 101)  # of 101 recalls from 0 to 1 those up to a half


def test_annotations_of_other_categories_do_not_count():
    truth = truth_of(box(0, 1, 10, 10, 50, 40), box(0, 5, 0, 0, 9, 9))
    measure = AveragePrecision(truth, [1], ["cell"])
    measure.add(0, *EXACT)
    assert measure.values()["ap"] == pytest.approx(100)


def test_an_image_that_comes_twice_counts_once():
    truth = truth_of(box(0, 1, 10, 10, 50, 40), images=1)
    measure = AveragePrecision(truth, [1], ["cell"])
    measure.add(0, *EXACT)
    measure.add(torch.tensor(0), *NOTHING)  # the first stays
    assert measure.values()["ap"] == pytest.approx(100)


class Together(Processes):
    """This process and others, whose parts are at hand."""

    def __init__(self, others: list[AveragePrecision], first: bool) -> None:
        super().__init__(torch.device("cpu"), world=1 + len(others))
        object.__setattr__(self, "parts", (others, first))

    def gathered(self, value: Any) -> list[Any]:
        others, first = self.parts
        found = [other._found for other in others]
        return [value, *found] if first else [*found, value]


@pytest.mark.parametrize("first", [True, False])
def test_processes_together_see_what_one_would(first: bool):
    truth, found = hard_set(0)
    expected = ours(truth, found, CATEGORY_IDS, CLASSES)
    numbers = list(found)
    other = ours(truth, {n: found[n] for n in numbers[1::2] + numbers[:1]}, CATEGORY_IDS, CLASSES)  # and a filler
    measure = AveragePrecision(truth, CATEGORY_IDS, CLASSES, Together([other], first))
    for number in numbers[::2]:
        measure.add(number, *found[number])
    assert measure.values() == expected.values()
    assert measure.per_class() == expected.per_class()


def test_what_is_added_after_the_values_counts_too():
    truth, found = hard_set(1)
    measure = AveragePrecision(truth, CATEGORY_IDS, CLASSES)
    seen = []
    for image_id, one in found.items():
        measure.add(image_id, *one)
        if image_id > 10:
            seen.append(measure.values()["ap"])
    assert len({*seen}) > 3
    assert seen[-1] == ours(truth, found, CATEGORY_IDS, CLASSES).values()["ap"]


def test_half_precision_and_odd_dtypes():
    measure = AveragePrecision(truth_of(box(0, 1, 10, 10, 50, 40)), [1], ["cell"])
    measure.add(0, EXACT[0].half().requires_grad_(), EXACT[1].bfloat16(), EXACT[2].int())
    assert measure.values()["ap"] == pytest.approx(100)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch):
    truth = truth_of(box(0, 1, 10, 10, 50, 40))
    with pytest.raises(DataError, match="each class's number and name once, but there are the numbers 1, 1"):
        AveragePrecision(truth, [1, 1], ["cell", "rod"])
    with pytest.raises(DataError, match="the names cell, cell"):
        AveragePrecision(truth, [1, 2], ["cell", "cell"])
    with pytest.raises(DataError, match="an annotation of image 9 and no such image"):
        AveragePrecision(truth_of(box(9, 1, 0, 0, 1, 1)), [1], ["cell"])
    measure = AveragePrecision(truth, [1], ["cell"])
    with pytest.raises(DataError, match=r"no box of cell in the 0 images that were evaluated"):
        measure.values()
    measure.add(1, *NOTHING)
    with pytest.raises(DataError, match=r"no box of cell in the 1 images that were evaluated"):
        measure.values()
    with pytest.raises(DataError, match="The ground truth has no image 5"):
        measure.add(5, *NOTHING)
    crowd = AveragePrecision(truth_of(box(0, 1, 0, 0, 9, 9, iscrowd=1)), [1], ["cell"])
    crowd.add(0, *NOTHING)
    with pytest.raises(DataError, match="no box of cell"):
        crowd.values()
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(RecipeError, match=r'cannot be imported .*: pip install "potstill\[det\]"'):
        must_be_there()


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "message"),
    [
        ([[0.0, 0, 1]], [0.5], [0], r"got \(1, 3\), \(1,\) and \(1,\)"),
        ([[0.0, 0, 1, 1]], [0.5, 0.4], [0], r"got \(1, 4\), \(2,\) and \(1,\)"),
        ([[0.0, 0, float("nan"), 1]], [0.5], [0], "boxes or scores that are not finite"),
        ([[0.0, 0, 1, 1]], [float("inf")], [0], "boxes or scores that are not finite"),
        ([[5.0, 0, 1, 1]], [0.5], [0], r"x1 <= x2 and y1 <= y2; got \[5.0, 0.0, 1.0, 1.0\]"),
        ([[0.0, 0, 1, 1]], [0.5], [3], "classes 0 to 2, but the labels go from 3 to 3"),
        ([[0.0, 0, 1, 1]], [0.5], [-1], "the labels go from -1 to -1"),
    ],
)
def test_detections_that_are_none(boxes: list, scores: list, labels: list, message: str):
    with pytest.raises(NetworkError, match=message):
        detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), classes=3)


@pytest.mark.parametrize("seed", range(3))
def test_matches_are_those_of_cocos_own_loop(seed: int):
    truth, found = hard_set(seed)
    _, _, evaluation = by_pycocotools(truth, found, CATEGORY_IDS, CLASSES)
    looked_at = 0
    for image_id, one in found.items():
        own = [a for a in truth["annotations"] if a["image_id"] == image_id]
        numbers = [a["id"] for a in own]
        sides = torch.tensor([a["bbox"] for a in own], dtype=torch.float64).view(-1, 4)
        boxes = torch.cat([sides[:, :2], sides[:, :2] + sides[:, 2:]], 1)
        labels = torch.tensor([CATEGORY_IDS.index(a["category_id"]) for a in own], dtype=torch.int64)
        crowd = torch.tensor([bool(a["iscrowd"]) for a in own], dtype=torch.bool)
        matches = matched(Detections(*one), boxes, labels, crowd)
        assert not (matches.right & matches.wrong).any()
        for number in CATEGORY_IDS:
            row = evaluation.evaluateImg(image_id, number, [0, 1e10], 100)
            mine = (one[2] == CATEGORY_IDS.index(number)).nonzero().flatten()
            mine = mine[one[1][mine].argsort(descending=True, stable=True)]
            if row is None:
                assert len(mine) == 0
                continue
            mine = mine[: len(row["dtMatches"][0])]  # COCO looks at 100 of a class
            of_coco = [numbers.index(int(m)) if m else -1 for m in row["dtMatches"][0]]
            assert matches.truth[mine].tolist() == of_coco
            assert matches.wrong[mine].tolist() == [m < 0 for m in of_coco]
            assert (~matches.right & ~matches.wrong)[mine].tolist() == row["dtIgnore"][0].tolist()
            missed = {numbers.index(i) for i, m in zip(row["gtIds"], row["gtMatches"][0], strict=True) if not m}
            missed -= set(crowd.nonzero().flatten().tolist())
            if len(mine) < 100:
                of_class = labels == CATEGORY_IDS.index(number)
                assert set((matches.missed & of_class).nonzero().flatten().tolist()) == missed
                looked_at += len(of_coco)
    assert looked_at > 50


def test_matches_of_nothing():
    nothing = Detections(*NOTHING)
    matches = matched(nothing, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert [len(part) for part in (matches.right, matches.wrong, matches.missed, matches.truth)] == [0, 0, 0, 0]
    matches = matched(nothing, EXACT[0], EXACT[2])
    assert matches.missed.tolist() == [True]
    matches = matched(Detections(*EXACT), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert (matches.right.tolist(), matches.wrong.tolist()) == ([False], [True])


def test_of_two_detections_of_one_object_the_surer_is_right():
    boxes = torch.tensor([[10.0, 10, 60, 45], [10, 10, 60, 50]])
    matches = matched(Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0])), EXACT[0], EXACT[2])
    assert (matches.right.tolist(), matches.wrong.tolist(), matches.truth.tolist()) == (
        [True, False],
        [False, True],
        [0, -1],
    )
    other = matched(Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0])), EXACT[0], EXACT[2])
    assert other.right.tolist() == [False, True]  # the class has to be right too
