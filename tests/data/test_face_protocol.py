"""A protocol made over a folder of people: the same for the same seed, people apart, and in the layout that is read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.data.face_protocol import generate_protocol, split_people
from potstill.data.ijb import read_ijb
from potstill.errors import DataError


def people(path: Path, names: str = "abcdefg", images: int = 7) -> Path:
    """Grey images, a folder a person; no two are equal."""
    for number, name in enumerate(names):
        (path / f"person {name}").mkdir(parents=True)
        for image in range(images):
            Image.new("L", (4, 4), 20 * number + image).save(path / f"person {name}" / f"{image} x.png")
    return path


def colour(path: Path) -> int:
    return np.asarray(Image.open(path))[0, 0].item()


def test_a_protocol_has_templates_galleries_and_all_pairs(tmp_path: Path) -> None:
    out = generate_protocol(people(tmp_path / "faces"), tmp_path / "out")
    found = read_ijb(out)
    assert len(found.images) == 7 * 7
    assert len({colour(found.path(i)) for i in range(49)}) == 49  # every image once, and so in one template
    assert found.templates == 7 * 4  # of 3, 1, 2 and 1 images
    assert np.bincount(found.template_of).tolist() == [3, 1, 2, 1] * 7
    owners = np.array([colour(found.path(i)) // 20 for i in range(49)])
    for template in range(found.templates):
        assert set(owners[found.template_of == template]) == {found.subject_of[template]}
    # of three images two are of one media, and no media is in two templates
    medias = [set(found.media_of[found.template_of == one].tolist()) for one in range(found.templates)]
    assert [len(media) for media in medias] == [2, 1, 2, 1] * 7
    assert len(set.union(*medias)) == sum(len(media) for media in medias)
    assert found.pairs is not None
    assert len(found.pairs) == 28 * 27 // 2
    subjects = found.subject_of
    assert (found.pairs.same == (subjects[found.pairs.first] == subjects[found.pairs.second])).all()
    assert found.pairs.same.sum() == 7 * 6
    first, second = (set(subjects[found.galleries[name]].tolist()) for name in ("G1", "G2"))
    assert (len(first), len(second)) == (3, 2)
    assert not first & second
    outside = set(range(7)) - first - second
    assert outside  # people that no gallery has, all of whose templates are probes
    assert len(found.probes) == 28 - 5
    assert {person: (subjects[found.probes] == person).sum() for person in outside} == dict.fromkeys(outside, 4)
    assert not set(found.probes.tolist()) & set(np.concatenate(list(found.galleries.values())).tolist())


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_the_same_seed_makes_the_same_protocol_and_another_one_another(tmp_path: Path) -> None:
    folder = people(tmp_path / "faces")
    names = [f"person {name}" for name in "abcdefg"]
    once = contents(generate_protocol(folder, tmp_path / "1", seed=3))
    assert contents(generate_protocol(folder, tmp_path / "2", seed=3, people=names[::-1])) == once
    assert contents(generate_protocol(folder, tmp_path / "3", seed=4)) != once


def test_only_the_people_asked_for_are_in_it(tmp_path: Path) -> None:
    folder = people(tmp_path / "faces")
    train, test = split_people(folder, 3)
    assert len(test) == 3
    assert sorted(train + test) == [f"person {name}" for name in "abcdefg"]
    found = read_ijb(generate_protocol(folder, tmp_path / "out", people=test))
    assert {colour(found.path(i)) // 20 for i in range(21)} == {"abcdefg".index(name[-1]) for name in test}
    assert split_people(folder, 3) == (train, test)
    assert {split_people(folder, 3, seed)[1] for seed in range(10)} != {test}


def test_what_cannot_be_a_protocol_is_refused(tmp_path: Path) -> None:
    folder = people(tmp_path / "faces")
    with pytest.raises(DataError, match=r"no person 'person aa'\. Did you mean 'person a'\?"):
        generate_protocol(folder, tmp_path / "out", people=["person aa", "person b", "person c"])
    with pytest.raises(DataError, match="2 people of whom 2 are distinct: at least three"):
        generate_protocol(folder, tmp_path / "out", people=["person a", "person b"])
    with pytest.raises(DataError, match="4 people of whom 3 are distinct"):
        generate_protocol(folder, tmp_path / "out", people=[f"person {name}" for name in "aabc"])
    with pytest.raises(DataError, match="is not empty"):
        generate_protocol(folder, folder)
    with pytest.raises(DataError, match="has 7 images; a template of 7 and one more"):
        generate_protocol(folder, tmp_path / "out", gallery_images=7)
    with pytest.raises(DataError, match="has 7 people; 7 for the test"):
        split_people(folder, 7)
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("L", (4, 4)).save(flat / "1.png")
    with pytest.raises(DataError, match="no folder for each person"):
        generate_protocol(flat, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
