"""A run's folder as it is found: whole, unfinished, damaged, or none."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.errors import RunError
from potstill.report.reading import read_run


def test_a_finished_run_is_read_with_its_control(run: Path):
    found = read_run(run)
    assert list(found.rows) == ["student", "control", "teacher"]
    assert (found.student, found.teacher, found.data, found.seed) == ("resnet8", "large one", "my <i>cats", 0)
    assert (len(found.epochs), len(found.steps), found.images, found.banner) == (6, 24, 600, "")
    assert found.command == "potstill distill 'data.path=my <i>cats' seed=0"


def test_a_run_that_has_stopped_says_how_far_it_came(tmp_path: Path, make_run: Callable[..., Path]):
    found = read_run(make_run(tmp_path / "run", epochs=3, planned=20, finished=False))
    assert found.banner.startswith("This run has stopped before it was finished: 3 of 20 epochs are done.")
    assert found.rows["student"]["top1"] == found.epochs[-1]["top1"]
    assert "teacher" not in found.rows


def test_a_run_whose_lock_is_held_is_still_running(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run", epochs=3, planned=20, finished=False)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(folder).banner.startswith("This run is still running: 3 of 20")
    assert "stopped" in read_run(folder).banner


def test_a_run_before_its_first_epoch_has_no_rows(tmp_path: Path, make_run: Callable[..., Path]):
    found = read_run(make_run(tmp_path / "run", epochs=0, planned=5, finished=False, control=False))
    assert (found.epochs, found.steps, found.rows) == ([], [], {"student": {}})


def test_a_last_row_that_a_kill_cut_short_is_left_out(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run")
    with open(folder / "steps.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 1250, "ce"')
    assert len(read_run(folder).steps) == 24


def test_a_number_that_is_none_is_a_gap(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run", epochs=0, control=False)
    (folder / "metrics.csv").write_text("epoch,ce,top1\n1,nan,\n", encoding="utf-8")
    assert read_run(folder).epochs == [{"epoch": 1.0, "ce": None}]


def test_a_control_that_is_a_link_to_the_run_itself_ends(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run", control=False)
    (folder / "control").symlink_to(folder)
    control = read_run(folder).control
    assert control is not None
    assert control.control is None


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("recipe.yaml", b"a: [", "recipe.yaml is damaged: it is no valid YAML"),
        ("recipe.yaml", b"- 1", "recipe.yaml is damaged: it holds no recipe"),
        ("recipe.yaml", b"\xff\xfe\xff", "recipe.yaml is damaged: it is no UTF-8 text"),
        ("recipe.yaml", b"!!python/object/apply:os.system ['true']", "recipe.yaml is damaged: it is no valid YAML"),
        ("metrics.csv", b"", "metrics.csv is damaged: its first line names no column epoch"),
        ("metrics.csv", b"epoch,ce\n1\n", "metrics.csv is damaged: row 1 has 1 values, expected 2"),
        ("metrics.csv", b"epoch,ce\n1,abc\n", "ce is 'abc' in row 1, expected a number"),
        ("metrics.csv", b"epoch,ce\nnan,1\n", "metrics.csv is damaged: row 1 has no epoch"),
        ("steps.jsonl", b"{\n{}\n", "steps.jsonl is damaged: line 1 is no valid JSON"),
        ("steps.jsonl", b'{"step": "x"}\n', "steps.jsonl is damaged: line 1 is no row of a step"),
        ("steps.jsonl", b"3\n", "steps.jsonl is damaged: line 1 is no row of a step"),
        ("result.json", b"{", "result.json is damaged: it is no valid JSON"),
        ("result.json", b'{"rows": {"student": {}}, "classes": [1]}', "classes is a list, expected a list of names"),
        ("result.json", b'{"rows": {"student": {}}, "times": []}', "times is a list, expected seconds by name"),
        ("predictions.safetensors", b"nothing", "predictions.safetensors is damaged"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, make_run: Callable[..., Path], name: str, content: bytes, sentence: str
):
    folder = make_run(tmp_path / "run", control=False)
    (folder / name).write_bytes(content)
    with pytest.raises(RunError) as raised:
        read_run(folder)
    assert sentence in str(raised.value)


def test_what_is_no_run_is_said(tmp_path: Path, make_run: Callable[..., Path]):
    with pytest.raises(RunError, match=r"There is no run .*nothing"):
        read_run(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file, not a run's folder"):
        read_run(tmp_path / "file")
    make_run(tmp_path / "runs" / "one two", control=False)
    with pytest.raises(RunError, match=r"There are runs in it: potstill report '.*one two'"):
        read_run(tmp_path / "runs")


def test_a_command_kept_as_words_is_quoted_for_a_shell(tmp_path: Path, make_run: Callable[..., Path]):
    folder = make_run(tmp_path / "run", control=False)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"command": ["potstill", "distill", "run=a; rm -rf b"]}))
    assert read_run(folder).command == "potstill distill 'run=a; rm -rf b'"
