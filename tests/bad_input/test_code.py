"""Files that would run code when they are loaded: refused, and nothing of it is run."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path):
    """The file that the code would make; the payload does work where it is let."""
    path = tmp_path / "was-run"
    pickle.loads(pickle.dumps(Evil(path)))
    assert path.exists()
    path.unlink()
    return path


def test_a_cifar_pickle_that_would_run_code(refused, quick, mark, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({b"data": Evil(mark), b"labels": []}))
    said = refused("train", *quick, f"data.path={tmp_path / 'data'}", f"run={tmp_path / 'run'}")
    assert "Refused to read" in said
    assert "Nothing of it was run." in said
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_weights_that_would_run_code(refused, quick, digits, teacher, mark, tmp_path, whose):
    torch.save({"state_dict": Evil(mark)}, tmp_path / "evil.pt")
    values = [f"teacher.weights={teacher(10)}", "teacher.model=resnet14", f"{whose}.weights={tmp_path / 'evil.pt'}"]
    said = refused("distill", *quick, *digits, *values, f"run={tmp_path / 'run'}")
    assert "evil.pt is refused: to load it would run code (" in said
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


def test_a_runs_card_may_not_choose_code(refused, quick, digits, teacher, mark, tmp_path):
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "student.safetensors").write_bytes((teacher(10) / "student.safetensors").read_bytes())
    card = (teacher(10) / "student.json").read_text().replace('"resnet14"', '"os:getcwd"')
    (evil / "student.json").write_text(card)
    said = refused("distill", *quick, *digits, f"teacher.weights={evil}", f"run={tmp_path / 'run'}")
    assert "a file may not choose by itself which code runs" in said
    assert not (tmp_path / "run").exists()


def test_a_runs_recipe_may_not_choose_code(trains, quick, digits, tmp_path, monkeypatch):
    run, mark = tmp_path / "run", tmp_path / "was-run"
    trains("train", *quick, *digits, f"run={run}")
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe |= {"objective": {"evil:X": 1}, "teacher": {"model": "evil:X"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert '"top1"' in trains("evaluate", run, "--json")
    assert "student.safetensors" in trains("export", run, "--format", "safetensors")
    assert not mark.exists()
    assert "evil" not in sys.modules


def test_a_checkpoint_that_would_run_code(refused, trains, contents, quick, digits, mark, tmp_path):
    run = tmp_path / "run"
    values = [*quick, *digits, f"run={run}"]
    trains("train", *values)
    (run / "result.json").unlink()
    (newest,) = (run / "checkpoints").iterdir()
    good = newest.read_bytes()
    torch.save({"epoch": Evil(mark)}, newest)
    before = contents(run)
    said = refused("train", *values)
    assert f"The checkpoint {newest} is refused: to load it would run code (" in said
    assert not mark.exists()
    assert contents(run) == before

    newest.write_bytes(good[:1000])
    before = contents(run)
    assert f"The checkpoint {newest} cannot be read (" in refused("train", *values)
    assert contents(run) == before

    torch.save({"epoch": 1}, newest)
    assert f"The checkpoint {newest} does not fit this run (it lacks 'done'): another version" in refused(
        "train", *values
    )

    newest.write_bytes(good)
    trains("train", *values)
