import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from potstill.config import Recipe


def test_a_pipe_gets_plain_lines_and_a_table(potstill, tiny, tmp_path):
    folder = tmp_path / "run"
    result = potstill("train", *tiny, f"run={folder}")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("The digits have no standard split: 179 train, 1618 validation images")
    step = next(line for line in lines if "step 2/3" in line)
    assert step.startswith("student  epoch 1/1  step 2/3  loss ")
    assert step.endswith(" images/s")
    assert any(line.startswith("student  epoch 1/1  done  loss ") and "top-1" in line for line in lines)
    assert any(line.split()[:1] == ["student"] and "78,042" in line and "KiB" in line for line in lines)
    page = f"{folder}/report.html"
    assert f"Everything is in {folder}; the page about it is {page}. Next: potstill export {folder}" in lines
    assert "\x1b" not in result.stdout


def test_the_run_leaves_its_rows(teacher_run):
    rows = [json.loads(line) for line in (teacher_run / "steps.jsonl").read_text().splitlines()]
    assert [(row["step"], row["epoch"]) for row in rows] == [(2, 0)]
    assert {"lr", "ce", "total", "steps_per_second"} <= set(rows[0])
    assert (teacher_run / "metrics.csv").read_text().splitlines()[0].startswith("epoch,step,lr,ce,total,seconds,top1")
    recipe = yaml.safe_load((teacher_run / "recipe.yaml").read_text())
    assert recipe["objective"] == {"ce": 1.0}


def test_distill_compares_with_the_control(potstill, tiny, teacher_run, tmp_path):
    folder = tmp_path / "run"
    arguments = [*tiny, f"teacher.weights={teacher_run}", "control=true", f"run={folder}"]
    result = potstill("distill", *arguments)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines() if "KiB" in line] == [
        "teacher",
        "control",
        "student",
    ]
    assert "than the control: the same network trained alone" in result.stdout
    assert "pefd" in result.stdout

    again = potstill("distill", *arguments, "--json")
    shown = json.loads(again.stdout)
    assert shown["folder"] == str(folder)
    assert shown["difference"] == pytest.approx(shown["rows"]["student"]["top1"] - shown["rows"]["control"]["top1"])
    assert "is finished; its result is shown again" in again.stderr
    assert shown["reports"] == [f"{folder}/report.html"]
    assert "than the same network trained" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_report_that_nobody_wants_is_not_written(potstill, tiny, tmp_path):
    result = potstill("train", *tiny, "log.report=false", f"run={tmp_path / 'run'}", "--json")
    assert json.loads(result.stdout)["reports"] == []
    assert not (tmp_path / "run" / "report.html").exists()


def hinted(output, begin):
    """The words of the command that a line tells, after ``potstill``."""
    (line,) = [line for line in output.splitlines() if begin in line]
    name, *words = shlex.split(line.partition(begin)[2])
    assert name == "potstill"
    return words


def test_the_hint_to_teach_a_smaller_one_trains_on_the_same_data(potstill, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {split_seed: 3, mean: [0.5, 0.5, 0.25]}\n")
    result = potstill("train", str(path), *tiny, "data.source=digits", "data.size=8", "run=my runs/a b")
    assert result.exit_code == 0, result.output
    assert hinted(result.stdout, "Next: ") == ["export", "my runs/a b"]
    *words, student = hinted(result.stdout, "To teach a smaller one: ")
    assert student == "student.model=..."
    assert words[:2] == ["distill", "data.source=digits"]
    result = potstill(*words, "student.model=resnet8", *tiny[2:], "run=taught")
    assert result.exit_code == 0, result.output
    before, now = (yaml.safe_load(Path(run, "recipe.yaml").read_text()) for run in ("my runs/a b", "taught"))
    assert now["data"] == before["data"]
    assert (now["data"]["size"], now["data"]["val_fraction"], now["data"]["split_seed"]) == (8, 0.9, 3)
    assert now["teacher"]["weights"] == "my runs/a b"


def test_the_hints_after_a_network_of_ones_own_name_it(potstill, tiny, tmp_path, monkeypatch):
    (tmp_path / "hinted_net.py").write_text(
        "from torch import nn\n"
        "def small(num_classes=10):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    values = [*(value for value in tiny if not value.startswith("student.")), "data.size=8"]
    result = potstill("train", *values, "student.model=hinted_net:small", "run=own")
    assert result.exit_code == 0, result.output
    export = hinted(result.stdout, "Next: ")
    assert export == ["export", "own", "--model", "hinted_net:small"]
    assert potstill(*export, "--format", "safetensors").exit_code == 0
    *words, _ = hinted(result.stdout, "To teach a smaller one: ")
    assert words[-2:] == ["teacher.weights=own", "teacher.model=hinted_net:small"]
    result = potstill(*words, "student.model=resnet8", *values[1:-1], "run=taught")
    assert result.exit_code == 0, result.output


def test_json_is_alone_on_stdout(potstill, tiny, tmp_path):
    result = potstill("train", *tiny, f"run={tmp_path / 'run'}", "--json")
    rows = json.loads(result.stdout)["rows"]
    assert set(rows) == {"student"}
    assert {"top1", "top5", "parameters", "macs", "latency_ms", "bytes"} <= set(rows["student"])
    assert "student  epoch 1/1  done" in result.stderr


def test_a_recipe_file_with_overrides(potstill, tiny, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 9\nstudent: {model: resnet20}\nlog: {shares: 7}\n")
    folder = tmp_path / "run"
    assert potstill("train", str(path), *tiny, f"run={folder}").exit_code == 0
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (recipe["epochs"], recipe["student"]["model"], recipe["log"]["shares"]) == (1, "resnet8", 7)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["train", "epoch=2", "optimizer.nme=sgd", "batch_size=-1"],
            ["3 mistakes", "Did you mean 'epochs'?", "Did you mean 'name'?", "batch_size is -1"],
        ),
        (["train", "student.model=resnet8", "teacher.model=resnet20"], ["use `potstill distill`"]),
        (["distill", "student.model=resnet8"], ["the recipe names none", "use `potstill train`"]),
        (["distill", "student.model=resnet8", "teacher.model=resnet20"], ["The teacher has no weights"]),
        (["distill", "student.model=resnet8", "teacher.model=x", "objective={pfed: 25}"], ["Did you mean 'pefd'?"]),
        (["train", "nothing.yaml"], ["There is no recipe file nothing.yaml."]),
        (["train", "epochs=2", "recipe.yaml"], ["'recipe.yaml' is not of the form key=value"]),
        (["train"], ["student.model is missing"]),
        (["train", "student.model=resnet8y4"], ["resnet8y4"]),
        (["train", "student.model=resnet8", "data.path=nowhere"], ["There is no nowhere"]),
        (["train", "student.model=resnet8", "device=cuda:77"], ["device=cuda:77"]),
        (["train", "student.model=resnet8", "run=no-run", "--resume"], ["There is no run to go on with in no-run"]),
        (["demo", "recipe.yaml"], ["brings its own recipe"]),
        (["demo", "teacher.weights=x"], ["trains its own teacher"]),
        (["demo", "run=x", "--run", "y"], ["given twice, as --run y and as run=x"]),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(potstill, tmp_path, monkeypatch, arguments, messages):
    monkeypatch.chdir(tmp_path)
    result = potstill(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert all(message in result.stderr for message in messages), result.stderr
    assert len(result.stderr.splitlines()) == (4 if "3 mistakes" in messages else 1)
    assert list(tmp_path.iterdir()) == []


def test_another_recipe_in_the_folder_is_refused(potstill, tiny, teacher_run):
    result = potstill("train", *tiny, f"run={teacher_run}", "optimizer.lr=0.2")
    assert result.exit_code == 2
    assert f"error: {teacher_run} belongs to another recipe: optimizer.lr was 0.05, now 0.2." in result.stderr


def test_an_error_of_ours_keeps_its_traceback(potstill, monkeypatch):
    def broken(*given: object, **values: object) -> Recipe:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("potstill.recipe.load_recipe", broken)
    result = potstill("train", "epochs=1")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupt_from_the_keyboard_is_130(potstill, monkeypatch):
    def interrupted(*given: object, **values: object) -> Recipe:
        raise KeyboardInterrupt

    monkeypatch.setattr("potstill.recipe.load_recipe", interrupted)
    result = potstill("train", "epochs=1")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "values"),
    [
        (signal.SIGTERM, 143, []),
        (signal.SIGINT, 130, []),
        (signal.SIGTERM, 143, ["data.loader=streaming", "data.workers=2"]),
        (signal.SIGINT, 130, ["data.loader=streaming", "data.workers=2"]),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, sent, code, values):
    """The signal goes to the whole group of processes, the loader's workers too, as Ctrl-C and schedulers send it."""
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "potstill", "train", "student.model=resnet8", "epochs=500", "data.val_fraction=0.9",
        "log.every=1", f"run={folder}", "device=cpu", *values,
    ]  # fmt: skip
    pipe, environment = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 90
        while not (folder / "steps.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, sent)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.startswith(f"Stopped by {sent.name} after step ")
    assert errors.rstrip().endswith("The same command goes on from there.")
    assert "Traceback" not in errors
    assert list((folder / "checkpoints").glob("step-*.pt"))


def test_whoever_stops_reading_gets_silence():
    """``potstill models | head``: the reader goes while there is much more to say."""
    command = f"{sys.executable} -m potstill models; echo code $? >&2"
    with subprocess.Popen(
        ["bash", "-c", f"( {command} ) | head -n 2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        out, errors = process.communicate(timeout=90)
    assert len(out.splitlines()) == 2
    assert errors.strip().startswith("code ")
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
def test_the_demo_trains_three_networks_and_shows_them_again(potstill, tmp_path):
    folder = tmp_path / "demo"
    quick = ["epochs=1", "data.val_fraction=0.9", "device=cpu", "--run", str(folder)]
    result = potstill("demo", *quick)
    assert f"The report: {folder / 'student' / 'report.html'}" in result.stdout.splitlines()
    assert (folder / "student" / "report.html").stat().st_size > 4_000_000  # plotly is in it
    assert result.exit_code == 0, result.output
    titles = [line.split()[0] for line in result.stdout.splitlines() if re.search(r"epoch 1/[12]  done", line)]
    assert titles == ["teacher", "control", "student"]
    assert (folder / "student" / "control" / "student.safetensors").exists()

    again = potstill("demo", *quick, "--json")
    assert set(json.loads(again.stdout)["rows"]) == {"teacher", "control", "student"}
    assert "epoch 1/1" not in again.output

    fresh = potstill("demo", *quick[:-2], f"run={folder}", "--fresh")
    assert "epoch 1/1  done" in fresh.stdout


def test_the_demo_deletes_nothing_that_is_not_its_own(potstill, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "thesis.txt").write_text("mine")
    result = potstill("demo", "--fresh", "--run", str(tmp_path))
    assert result.exit_code == 2
    assert "holds no run, so it is not deleted" in result.stderr
    assert potstill("demo", "--fresh", f"run={tmp_path}").stderr == result.stderr
    assert (tmp_path / "student" / "thesis.txt").read_text() == "mine"
