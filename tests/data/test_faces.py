"""People to learn from and what is judged by: who is kept apart, how faces are numbered, placed and compared."""

import csv
import logging
import pickle
import shutil
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.data import faces as module
from potstill.data.alignment import AlignedSource, read_landmarks, template_points
from potstill.data.face_protocol import generate_protocol, split_people
from potstill.data.faces import FaceTest, People, ProtocolFaces, open_faces, open_test, otherwise_aligned
from potstill.data.folder import FolderSource
from potstill.errors import DataError

NAMES = "abcdefghij"


def people(folder: Path, names: str = NAMES, images: int = 4, side: int = 8) -> Path:
    """Grey images, a folder a person: 20 for each person, and one for each image."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for image in range(images):
            Image.new("L", (side, side), 20 * number + image).save(folder / name / f"{name}_{image + 1:04}.png")
    return folder


def place(folder: Path, shift: float = 0.0) -> Path:
    """Landmarks for all images of a folder, at the template's points moved to the right."""
    points, _ = template_points("arcface-112")
    with (folder / "landmarks.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", *(f"{axis}{k}" for k in range(1, 6) for axis in "xy")])
        for image in sorted(folder.rglob("*.png")):
            rows.writerow([image.relative_to(folder).as_posix(), *(points + np.array([shift, 0])).ravel().tolist()])
    return folder


def write_bin(path: Path, pairs: int = 20) -> Path:
    """Pairs of grey images, every other one of one person."""
    files = []
    for value in range(2 * pairs):
        buffer = BytesIO()
        Image.new("L", (8, 8), value).save(buffer, "PNG")
        files.append(buffer.getvalue())
    path.write_bytes(pickle.dumps((files, [pair % 2 == 0 for pair in range(pairs)])))
    return path


def write_records(folder: Path, labels: list[int]) -> Path:
    """insightface's three files, without the record that tells where the images end."""
    folder.mkdir()
    content, starts = b"", []
    for number, label in enumerate(labels):
        buffer = BytesIO()
        Image.new("L", (8, 8), 20 * label + number).save(buffer, "PNG")
        record = struct.pack("<IfQQ", 0, float(label), number, 0) + buffer.getvalue()
        starts.append(len(content))
        content += struct.pack("<II", 0xCED7230A, len(record)) + record + bytes(-len(record) % 4)
    (folder / "faces.rec").write_bytes(content)
    (folder / "faces.idx").write_text("".join(f"{key}\t{start}\n" for key, start in enumerate(starts)))
    (folder / "property").write_text(f"{max(labels) + 1},8,8")
    return folder


def grey(source, index: int) -> int:
    return int(source.image(index)[0, 0, 0])


def test_people_kept_apart_are_others_and_are_numbered_anew(tmp_path: Path) -> None:
    split = open_faces(people(tmp_path / "faces"), val_fraction=0.3, seed=5)
    train, val = split.train, split.val
    assert (len(train.classes), len(val.classes)) == (7, 3)
    assert sorted(train.classes + val.classes) == list(NAMES)
    assert list(train.classes) == sorted(train.classes)
    for part in (train, val):
        assert sorted(set(part.labels.tolist())) == list(range(len(part.classes)))
        for index, label in enumerate(part.labels):  # the name that a label stands for is the image's
            assert grey(part, index) // 20 == NAMES.index(part.classes[label])
    assert {grey(train, i) // 20 for i in range(len(train))}.isdisjoint({grey(val, i) // 20 for i in range(len(val))})
    assert "3 of 10 people are kept to judge by, chosen with seed 5; their 12 images are all compared" in split.note
    assert "48 comparisons are of two people, so FARs below 0.021 have no TAR." in split.note


def test_who_is_kept_depends_on_the_seed_alone(tmp_path: Path) -> None:
    folder = people(tmp_path / "faces")
    first, again = open_faces(folder, seed=1), open_faces(folder, seed=1)
    assert first.val.classes == again.val.classes
    assert first.train.identity == again.train.identity
    kept = {open_faces(folder, seed=seed).val.classes for seed in range(8)}
    assert len(kept) > 3
    assert {len(names) for names in kept} == {2}  # a fifth of ten
    assert len({open_faces(folder, seed=seed).train.identity for seed in range(8)}) == len(kept)


def test_every_two_images_of_those_kept_apart_are_compared_once(tmp_path: Path) -> None:
    test = open_faces(people(tmp_path / "faces"), val_fraction=0.3).test
    pairs = test.pairs
    assert test.images is pairs.images
    assert len(pairs) == 12 * 11 // 2
    assert len({(a, b) for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True) if a < b}) == 66
    owner = np.array([grey(test.images, i) // 20 for i in range(12)])
    assert (pairs.same == (owner[pairs.first] == owner[pairs.second])).all()
    assert pairs.same.sum() == 3 * 6
    assert test.impostors == 48
    assert pairs.folds == 1
    assert test.galleries == []


def test_a_file_of_pairs_is_judged_by_and_everybody_learned_from(tmp_path: Path) -> None:
    split = open_faces(people(tmp_path / "faces"), write_bin(tmp_path / "lfw.bin"), val_fraction=0.5)
    assert len(split.train.classes) == 10
    assert len(split.val) == 40
    assert (split.test.pairs.folds, split.test.impostors, split.test.found.all()) == (10, 10, True)
    assert "40 images. 10 comparisons are of two people" in split.note
    assert "val_fraction=0.5 is for data without a protocol and was not used." in split.note


def test_pairs_of_a_text_file_are_found_by_person_and_number(tmp_path: Path) -> None:
    folder = people(tmp_path / "faces")
    (folder / "pairs.txt").write_text("1 2\na 1 2\nc 4 1\na 1 b 3\nd 2 c 1\n")
    test = open_faces(folder, folder / "pairs.txt").test
    values = [grey(test.images, i) for i in range(len(test.images))]
    found = [(values[a], values[b]) for a, b in zip(test.pairs.first, test.pairs.second, strict=True)]
    assert found == [(0, 1), (43, 40), (0, 22), (61, 40)]
    assert test.pairs.same.tolist() == [True, True, False, False]
    assert test.alignment is None


def test_pairs_over_a_folder_with_landmarks_are_aligned_as_people_are(tmp_path: Path, caplog) -> None:
    folder = place(people(tmp_path / "faces", side=130), shift=9)
    (folder / "pairs.txt").write_text("1 1\na 1 2\na 1 b 3\n")
    with caplog.at_level(logging.WARNING):
        split = open_faces(folder, folder / "pairs.txt")
    assert (split.test.learned, split.test.alignment) == ("arcface-112", "arcface-112")
    assert "learned from" not in caplog.text
    aligned = AlignedSource(FolderSource(folder), read_landmarks(folder / "landmarks.csv"))
    for position in range(3):
        index = [i for i in range(40) if aligned.describe(i) == split.val.describe(position)]
        np.testing.assert_array_equal(split.val.image(position), aligned.image(index[0]))
    assert split.val.image(0).shape == (112, 112, 3)


def test_a_protocol_over_other_people(tmp_path: Path) -> None:
    folder = people(tmp_path / "faces", images=5)
    learned, judged = split_people(folder, 4)
    for name in judged:
        shutil.copytree(folder / name, tmp_path / "others" / name)
        shutil.rmtree(folder / name)
    protocol = generate_protocol(tmp_path / "others", tmp_path / "protocol")
    split = open_faces(folder, protocol)
    assert split.train.classes == learned
    assert len(split.val) == 20
    assert {grey(split.val, i) // 20 for i in range(20)} == {NAMES.index(name) for name in judged}
    test = split.test
    assert test.found.all()
    assert test.impostors == sum(~one.pairs.same for one in test.protocols).sum()
    # of four people two are in G1, one is in G2, and one in neither; each has two templates beside the gallery's
    assert test.galleries == [(2, 5), (1, 7)]
    assert "5 searches are for nobody in the gallery, so FPIRs below 0.2 have no TPIR." in split.note


def test_a_protocols_landmarks_align_it_and_images_without_a_face_are_no_images(tmp_path: Path, caplog) -> None:
    folder = people(tmp_path / "others", "abc", images=4, side=120)
    protocol = generate_protocol(folder, tmp_path / "protocol")
    points, _ = template_points("arcface-112")
    numbers = " ".join(f"{value:.4f}" for value in points.ravel())
    rows = [f"{number}.png {numbers} 0.9\n" for number in range(1, 13) if number != 5]
    (protocol / "meta" / "faces_name_5pts_score.txt").write_text("".join(rows))
    with caplog.at_level(logging.WARNING):
        split = open_faces(people(tmp_path / "faces"), protocol)
    assert "learned from are taken as they are, and those to judge by are aligned to arcface-112." in caplog.text
    assert np.flatnonzero(~split.test.found).tolist() == [4]
    assert split.val.image(4).shape == (112, 112, 3)
    assert not split.val.image(4).any()
    assert grey(split.val, 3) == int(np.asarray(Image.open(protocol / "loose_crop" / "4.png"))[0, 0])
    assert split.val.fixed_size == (112, 112)


def test_aligned_people_stay_aligned_when_they_are_divided(tmp_path: Path) -> None:
    split = open_faces(place(people(tmp_path / "faces", side=120)))
    assert (split.train.template, split.val.template) == ("arcface-112", "arcface-112")
    assert (split.test.learned, split.test.alignment) == ("arcface-112", "arcface-112")
    assert split.train.image(0).shape == (112, 112, 3)
    nobody = open_faces(tmp_path / "faces", val_fraction=0)
    assert (nobody.val, nobody.test.images, nobody.test.learned) == (None, None, "arcface-112")


@pytest.mark.parametrize(
    ("learned", "judged", "said"),
    [
        ("arcface-112", "arcface-112", None),
        (None, None, None),
        ("arcface-112", None, "learned from are aligned to arcface-112, and those to judge by are taken as they are"),
        (None, "arcface-112", "learned from are taken as they are, and those to judge by are aligned to arcface-112"),
    ],
)
def test_faces_that_are_placed_otherwise_are_told(learned, judged, said) -> None:
    found = otherwise_aligned(learned, judged)
    assert found == said or said in found


def test_records_are_people_by_number(tmp_path: Path) -> None:
    labels = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    split = open_faces(write_records(tmp_path / "records", labels), val_fraction=0.4)
    assert sorted(split.train.classes + split.val.classes) == list("01234")
    for part in (split.train, split.val):
        assert [grey(part, i) // 20 for i in range(len(part))] == [int(part.classes[label]) for label in part.labels]
    assert len(open_faces(tmp_path / "records" / "faces.rec", val_fraction=0).train) == 10


def test_a_finished_network_is_judged_without_the_people_that_it_learned_from(tmp_path: Path) -> None:
    test, note = open_test(tmp_path / "nowhere", write_bin(tmp_path / "lfw.bin"))
    assert (len(test.images), test.learned) == (40, None)
    assert note.startswith(f"Judged by {tmp_path / 'lfw.bin'}: 40 images. 10 comparisons")
    folder = people(tmp_path / "faces")
    test, note = open_test(folder, val_fraction=0)
    assert len(test.pairs) == 40 * 39 // 2
    assert note.startswith("The images of all 10 people, 40, are compared with each other.")
    kept = open_faces(folder, seed=3)
    test, note = open_test(folder, seed=3)
    assert (test.images.identity, note) == (kept.val.identity, kept.note)
    with pytest.raises(DataError, match=r"no faces to judge by: name data\.protocol, or a folder of people"):
        open_test(None)


@pytest.mark.parametrize("fraction", [None, 0.1, 0.6, 0.9])
def test_too_few_people_to_keep_two_on_each_side(tmp_path: Path, fraction: float | None) -> None:
    folder = people(tmp_path / "faces", "abc")
    with pytest.raises(DataError, match=r"has 3 people, of whom \d would be kept to judge by; two are needed on each"):
        open_faces(folder, val_fraction=fraction)
    assert open_faces(folder, val_fraction=0).val is None


def test_two_people_can_be_learned_from_and_not_divided(tmp_path: Path) -> None:
    folder = people(tmp_path / "faces", "ab")
    with pytest.raises(DataError, match="has 2 people, of whom 0 would be kept"):
        open_faces(folder)
    split = open_faces(folder, val_fraction=0)
    assert split.train.classes == ("a", "b")
    assert split.test.impostors is None


def test_too_many_images_to_compare_all_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_COMPARED", 7)
    folder = people(tmp_path / "faces")
    with pytest.raises(DataError, match=r"2 people would be judged by, who have 8 images: too many .* \(at most 7\)"):
        open_faces(folder)
    with pytest.raises(DataError, match="10 people would be judged by, who have 40 images"):
        open_test(folder, val_fraction=0)


def test_people_of_one_image_each_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are of two people; both kinds are needed to verify"):
        open_faces(people(tmp_path / "faces", images=1))


def test_folders_that_hold_no_people(tmp_path: Path) -> None:
    people(tmp_path, "x")
    with pytest.raises(DataError, match="has images, but no folder for each person"):
        open_faces(tmp_path / "x")
    people(tmp_path / "split" / "train", "abcd")
    people(tmp_path / "split" / "val", "ef")
    with pytest.raises(DataError, match=r"each folder is taken for a person\. Give data\.path=.*train, and data"):
        open_faces(tmp_path / "split")
    with pytest.raises(DataError, match=r"data\.source=cifar10 is no data for task=faces; take folder or records"):
        open_faces(tmp_path / "split" / "train", source="cifar10")
    with pytest.raises(DataError, match="nowhere"):
        open_faces(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no face protocol: there is no meta"):
        open_faces(tmp_path / "split" / "train", tmp_path / "split")


def test_images_without_identities_are_no_people(tmp_path: Path) -> None:
    people(tmp_path, "x")
    with pytest.raises(DataError, match="has no identities"):
        People(FolderSource(tmp_path / "x"), [0])


def test_protocols_that_compare_nothing_one_to_one_have_no_impostors(tmp_path: Path) -> None:
    protocol = generate_protocol(people(tmp_path / "others", "abc"), tmp_path / "protocol")
    (protocol / "meta" / "faces_template_pair_label.txt").unlink()
    test, _ = open_test(None, protocol)
    assert isinstance(test, FaceTest)
    assert isinstance(test.images, ProtocolFaces)
    assert test.impostors is None
    assert test.galleries == [(1, 3), (1, 3)]  # of four probes one is of the gallery's person
