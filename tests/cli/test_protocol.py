"""A protocol out of a folder of people: who is judged by is in it, and who is learnt from lies beside it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from potstill.data.faces import open_faces


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten people of five grey pictures, 20 values apart."""
    for number, name in enumerate("abcdefghij"):
        (tmp_path / "people" / name).mkdir(parents=True)
        for image in range(5):
            Image.new("L", (8, 8), 20 * number + image).save(tmp_path / "people" / name / f"{image}.png")
    return tmp_path / "people"


def test_a_folder_is_divided_and_a_run_reads_both_parts(potstill, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "protocol"
    done = potstill("protocol", str(folder), str(out), "--people", "4", "--seed", "3", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said == {"folder": str(out), "train": str(out / "train"), "learned": 6, "judged": sorted(said["judged"])}
    assert len(said["judged"]) == 4
    split = open_faces(said["train"], out)
    assert sorted([*split.train.classes, *said["judged"]]) == list("abcdefghij")
    assert (len(split.train), len(split.val)) == (30, 20)
    learned, judged = (
        {int(part.image(i)[0, 0, 0]) // 20 for i in range(len(part))} for part in (split.train, split.val)
    )
    assert learned.isdisjoint(judged)
    assert [path.name for path in out.parent.iterdir()] == ["protocol"]  # nothing half-written lies beside it


def test_it_says_how_to_go_on_and_keeps_three_where_a_fifth_is_fewer(potstill, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "my protocol"
    done = potstill("protocol", str(folder), str(out), "--gallery-images", "2")
    said = " ".join(done.stdout.split())
    assert f"{out} judges by 3 of the 10 people of {folder}, chosen with seed 0" in said
    assert f"potstill train task=faces 'data.path={out / 'train'}' 'data.protocol={out}' student.model=" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--people", "10"], "has 10 people; 10 for the test leaves none on one side."),
        (["--people", "2"], "at least three are needed"),
        (["--people", "4", "--gallery-images", "5"], "has 5 images; a template of 5 and one more are needed."),
    ],
)
def test_what_cannot_be_divided_is_refused_and_leaves_nothing(
    potstill, folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    done = potstill("protocol", str(folder), str(tmp_path / "out"), *options)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


def test_places_that_cannot_be_and_faces_that_would_not_be_aligned(potstill, folder: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        done = potstill("protocol", *map(str, arguments))
        assert done.exit_code == 2
        assert "Traceback" not in done.output
        return " ".join(done.stderr.split())

    assert "lies in" in refused(folder, folder / "protocol", "--people", 4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert f"{tmp_path / 'full'} is not empty" in refused(folder, tmp_path / "full", "--people", 4)
    assert "cannot be written" in refused(folder, tmp_path / "full" / "notes.txt" / "out", "--people", 4)
    (folder / "landmarks.csv").write_text("file")
    assert "has landmarks.csv, and a protocol holds faces as they are" in refused(folder, tmp_path / "out")
    assert "nowhere" in refused(tmp_path / "nowhere", tmp_path / "out")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
