"""A whole protocol from embeddings: answers known by construction, the layout on disk included."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.face_protocol import generate_protocol
from potstill.data.ijb import read_ijb
from potstill.data.pairs import PairSet
from potstill.data.protocol import ListedPairs, Protocol
from potstill.data.source import ArraySource
from potstill.errors import DataError
from potstill.tasks.face_evaluation import pairs_accuracy, rate_name, verify, verify_splits


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def synthetic(**changes) -> Protocol:
    """Seven templates of four people over nine images; the third template is one image, the fifth two frames.

    Each image has a direction of its own; see ``EMBEDDINGS``.
    """
    settings = {
        "name": "synthetic",
        "root": Path("nowhere"),
        "images": tuple(f"{i}.png" for i in range(9)),
        "image_of": ints(0, 1, 2, 3, 4, 5, 6, 7, 8),
        "template_of": ints(0, 0, 1, 2, 3, 4, 4, 5, 6),
        "media_of": ints(0, 1, 2, 3, 4, 5, 5, 6, 7),
        "template_ids": np.arange(7),
        "subject_of": np.array([1, 2, 1, 2, 1, 3, 4]),
        # genuine: 0-2, 0-4, 1-3; impostors: 0-1, 0-3, 0-5, 1-2, 1-6
        "pairs": ListedPairs(
            ints(0, 0, 1, 0, 0, 0, 1, 1), ints(2, 4, 3, 1, 3, 5, 2, 6), np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
        ),
        "galleries": {"G1": ints(0, 1)},
        "probes": ints(2, 3, 4, 5, 6),
    }
    return Protocol(**(settings | changes))


EMBEDDINGS = torch.tensor(
    [
        [2.0, 0.0, 0.0],  # template 0, person 1: (1, 0, 0)
        [5.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],  # template 1, person 2: (0, 1, 0)
        [0.6, 0.8, 0.0],  # template 2, person 1: nearer to person 2
        [0.0, 0.6, 0.8],  # template 3, person 2: 0.6 to template 1, 0 to template 0
        [9.0, 0.0, 0.0],  # template 4, person 1: no face in the second frame
        [0.0, 7.0, 0.0],
        [0.6, 0.0, 0.8],  # template 5, person 3, a stranger: 0.6 to template 0, as the mates
        [0.0, 0.0, 3.0],  # template 6, person 4, a stranger: 0 to both
    ]
)
VALID = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1, 1]).bool()


def test_the_synthetic_protocol_has_its_known_answers() -> None:
    found = verify(EMBEDDINGS, VALID, synthetic(), fars=(0.9, 0.4, 0.2, 0.1), fpirs=(0.5, 0.4), ranks=(1, 2))
    third = 100 / 3
    assert found == {
        "templates_missed": 0,
        # genuine scores 0.6, 1, 0.6; impostors 0, 0, 0.6, 0.8, 0
        "tar_9e-1": pytest.approx(3 * third),  # four of five may pass; the zeros are tied, so two do
        "tar_4e-1": pytest.approx(3 * third),  # two may: 0.8 and 0.6, and with it what is tied with it
        "tar_2e-1": pytest.approx(third),  # one may: 0.8; the scores of 0.6 are refused with the impostor's 0.6
        # template 2 is outranked; 3 and 4 are found
        "rank1": pytest.approx(2 * third),
        # strangers' best: 0.6 and 0; one of two may raise an alarm, so that what is above 0 is found
        "tpir_5e-1": pytest.approx(2 * third),
    }


def test_a_template_without_a_face_is_a_miss_everywhere() -> None:
    valid = VALID.clone()
    valid[[5, 2, 8]] = False  # template 4, a probe; template 1, in the gallery; template 6, a stranger
    found = verify(EMBEDDINGS, valid, synthetic(), fars=(0.2,), fpirs=(0.5,), ranks=(1,))
    third = 100 / 3
    assert found == {
        "templates_missed": pytest.approx(300 / 7),
        "tar_2e-1": pytest.approx(third),  # genuine 0.6, two that never match; impostors 0.6, 0, three that do not
        "rank1": pytest.approx(third),  # template 2 is not outranked any more
        "tpir_5e-1": pytest.approx(third),
    }


def test_galleries_are_averaged_and_what_one_cannot_measure_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    both = synthetic(galleries={"G1": ints(0), "G2": ints(0, 1)}, subject_of=np.array([1, 2, 1, 2, 1, 1, 4]))
    with caplog.at_level(logging.INFO):
        found = verify(EMBEDDINGS, VALID, both, fars=(0.2,), fpirs=(0.5, 0.6), ranks=(1,))
    # only template 6 is a stranger to G2, and of one search a rate of 0.6 is none; in G1 everybody is within rank 1
    assert not [key for key in found if key.startswith(("tpir", "rank"))]
    assert (
        "synthetic, gallery G2: TPIR at FPIR 5e-1, 6e-1 is not measured, because there are only 1 probes" in caplog.text
    )
    assert "synthetic, gallery G1 has no more people than rank 1, which is left out." in caplog.text
    two = synthetic(galleries={"G1": ints(0, 1), "G2": ints(0, 3)})
    alone = [
        verify(EMBEDDINGS, VALID, synthetic(galleries=gallery), fpirs=(0.5,), ranks=(1,))
        for gallery in ({"G1": ints(0, 1)}, {"G2": ints(0, 3)})
    ]
    found = verify(EMBEDDINGS, VALID, two, fpirs=(0.5,), ranks=(1,))
    assert (alone[0]["rank1"], alone[1]["rank1"]) == (pytest.approx(200 / 3), 100)
    for key in ("rank1", "tpir_5e-1"):
        assert found[key] == pytest.approx((alone[0][key] + alone[1][key]) / 2)


def test_rates_that_the_set_is_too_small_for_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = verify(EMBEDDINGS, VALID, synthetic())
    assert not [key for key in found if key.startswith("tar")]
    assert "TAR at FAR 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6 is not measured, because there are only 5 comp" in caplog.text


def test_detector_scores_weigh_and_must_be_there() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.8, 0.6]])
    settings = {
        "images": tuple("abcde"),
        "image_of": ints(0, 1, 2, 3, 4),
        "template_of": ints(0, 0, 1, 2, 3),
        "media_of": ints(0, 1, 2, 3, 4),
        "template_ids": np.arange(4),
        "subject_of": np.full(4, -1),
        "pairs": ListedPairs(ints(0, 0, 0), ints(1, 2, 3), np.array([True, False, False])),
        "galleries": {},
        "probes": ints(),
    }
    valid = torch.ones(5, dtype=torch.bool)
    weights = np.array([0.1, 0.9, 1, 1, 1], np.float32)
    # 45 degrees between both images: person and impostor 3 tie; weighed, template 0 is near its second image
    assert verify(images, valid, synthetic(**settings), fars=(0.5,))["tar_5e-1"] == 100
    found = verify(images, valid, synthetic(**settings, scores=weights), fars=(0.5,), weighted=True)
    assert found["tar_5e-1"] == 100
    swapped = np.array([0.9, 0.1, 1, 1, 1], np.float32)
    found = verify(images, valid, synthetic(**settings, scores=swapped), fars=(0.5,), weighted=True)
    assert found["tar_5e-1"] == 0
    with pytest.raises(DataError, match="synthetic has no detector scores"):
        verify(images, valid, synthetic(**settings), weighted=True)


def test_another_number_of_embeddings_is_refused() -> None:
    with pytest.raises(DataError, match="8 embeddings for the 9 images of synthetic"):
        verify(EMBEDDINGS[:8], VALID, synthetic())


def test_splits_are_averaged_with_their_spread() -> None:
    other = synthetic(subject_of=np.array([1, 2, 2, 2, 1, 3, 4]))
    alone = [verify(EMBEDDINGS, VALID, one, fars=(0.2,), ranks=(1,)) for one in (synthetic(), other)]
    found = verify_splits(EMBEDDINGS, VALID, [synthetic(), other], fars=(0.2,), ranks=(1,))
    assert alone[0]["rank1"] != alone[1]["rank1"]
    assert found["rank1"] == pytest.approx((alone[0]["rank1"] + alone[1]["rank1"]) / 2)
    assert found["rank1_spread"] == pytest.approx(abs(alone[0]["rank1"] - alone[1]["rank1"]) / 2**0.5)
    assert found["tar_2e-1_spread"] == 0
    assert verify_splits(EMBEDDINGS, VALID, [other], fars=(0.2,), ranks=(1,)) == alone[1]


def test_a_perfect_and_a_blind_network_on_a_generated_protocol(tmp_path: Path) -> None:
    for person in range(9):
        for image in range(8):
            path = tmp_path / "faces" / f"p{person}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 10 * person + image).save(path)
    protocol = read_ijb(generate_protocol(tmp_path / "faces", tmp_path / "out"))
    shades = np.array([np.asarray(Image.open(protocol.path(i)))[0, 0] for i in range(72)])
    valid = torch.ones(72, dtype=torch.bool)
    perfect = verify(torch.eye(9)[torch.from_numpy(shades // 10).long()], valid, protocol)
    assert {key: value for key, value in perfect.items() if key != "templates_missed"} == {
        "tar_1e-1": 100, "tar_1e-2": 100, "rank1": 100, "tpir_1e-1": 100,
    }  # fmt: skip
    blind = verify(torch.ones(72, 9), valid, protocol)
    assert {blind[key] for key in ("tar_1e-1", "tar_1e-2", "rank1", "tpir_1e-1")} == {0}
    assert verify(torch.ones(72, 9), ~valid, protocol)["templates_missed"] == 100


def pairs(count: int, folds: int = 10) -> PairSet:
    source = ArraySource(np.zeros((2 * count, 2, 2, 3), np.uint8), None, name="grey")
    first = 2 * np.arange(count)
    return PairSet("grey", source, first, first + 1, np.arange(count) % 2 == 0, folds)


def test_pairs_have_an_accuracy_over_folds_and_tar_at_far(caplog: pytest.LogCaptureFixture) -> None:
    found = pairs(40)
    embeddings = torch.eye(2).repeat(40, 1)  # every pair at right angles
    embeddings[found.second[::2]] = embeddings[found.first[::2]]  # but for those of one person
    valid = torch.ones(80, dtype=torch.bool)
    with caplog.at_level(logging.INFO):
        assert pairs_accuracy(3 * embeddings, found, fars=(0.1, 0.05, 0.01)) == {
            "accuracy": 100, "accuracy_spread": 0, "tar_1e-1": 100, "tar_5e-2": 100,
        }  # fmt: skip
    assert "grey: TAR at FAR 1e-2 is not measured, because there are only 20 pairs" in caplog.text
    valid[[0, 1, 5]] = False  # both images of pair 0, of one person, and one of pair 2
    missing = pairs_accuracy(embeddings, found, valid=valid, fars=(0.1,))
    assert missing["accuracy"] == pytest.approx(95)
    assert missing["accuracy_spread"] == pytest.approx(100 * np.std([0.5] + [1] * 9))
    assert missing["tar_1e-1"] == pytest.approx(90)


def test_pairs_of_one_fold_have_no_accuracy(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = pairs_accuracy(torch.randn(80, 3), pairs(40, folds=1), fars=(0.1,))
    assert list(found) == ["tar_1e-1"]
    assert "grey has one fold" in caplog.text


def test_embeddings_of_other_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="79 embeddings for the 80 images of grey"):
        pairs_accuracy(torch.randn(79, 3), pairs(40))


def test_names_of_rates() -> None:
    assert [rate_name(rate) for rate in (1e-1, 1e-6, 0.02, 0.00025, 0.5)] == ["1e-1", "1e-6", "2e-2", "2.5e-4", "5e-1"]
