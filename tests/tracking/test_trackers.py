"""The real libraries, without a network: what they wrote is read back with their own readers."""

import importlib.util
import json
import logging
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
import yaml

from potstill.errors import RecipeError
from potstill.tracking import TRACKERS, must_be_there, tracked
from potstill.tracking.trackers import make_tracker
from potstill.training.folder import RunFolder
from potstill.training.reporting import Silent

RECIPE = {"epochs": 2, "optimizer": {"lr": 0.05, "betas": [0.9, 0.999]}, "clip": None, "control": False}
ROWS = {"teacher": {"top1": 60.0}, "student": {"top1": 55.5, "bytes": 1000}}
STEPS = 4  # an epoch


class Writing(Silent):
    """What the reporters that talk do with the folder."""

    def __init__(self, folder):
        self.folder = folder

    def started(self, epoch, step, steps, epochs, begin):
        self.folder.forget_steps_after(epoch * steps + step)

    def logged(self, row):
        self.folder.append_step(row)

    def finished_epoch(self, row, history):
        self.folder.write_metrics(history)


def step_row(step: int) -> dict:
    return {
        "step": step, "epoch": (step - 1) // STEPS, "lr": 0.05, "ce": 4.0 / step, "pefd": 0.5, "total": 3.0,
        "share_ce": 0.25, "share_pefd": 0.75, "steps_per_second": 10.0, "ms": {"forward": 3.5},
    }  # fmt: skip


def epoch_row(epoch: int) -> dict:
    means = {"ce": 2.0 / epoch, "total": 3.0, "seconds": 1.5}
    judged = {"top1": 50.0 + epoch, "val_loss": 1.0, "val_m_bc": 0.2}
    return {"epoch": epoch, "step": STEPS * epoch, "lr": 0.05, **means, **judged}


def train(reporter, begin: int, end: int) -> None:
    """The loop's calls for the steps from ``begin`` on, one row each; to ``end``, where the process is killed."""
    reporter.started(begin // STEPS, begin % STEPS, STEPS, 2, 0)
    for step in range(begin + 1, end + 1):
        reporter.logged(step_row(step))
        if step % STEPS == 0:
            history = [epoch_row(epoch) for epoch in range(1, step // STEPS + 1)]
            reporter.finished_epoch(history[-1], history)


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "runs" / "small")
    run.write_text("recipe.yaml", yaml.safe_dump(RECIPE))
    return run


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory):
    """An empty store of MLflow's, whose tables take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    must_be_there(["mlflow"])
    from mlflow.tracking import MlflowClient

    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(params=TRACKERS)
def tracker(request, tmp_path, monkeypatch):
    """Each tracker that is installed, with its own files below the test's folder."""
    name = request.param
    if importlib.util.find_spec("tensorboard" if name == "tensorboard" else name) is None:
        pytest.skip(f"{name} is not installed")
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    must_be_there([name])
    if name == "mlflow":
        (tmp_path / "runs").mkdir()
        shutil.copy(request.getfixturevalue("empty_mlflow"), tmp_path / "runs" / "mlflow.db")
    if name == "trackio":
        for module in ("trackio.sqlite_storage", "trackio.utils", "trackio"):
            monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio")
    return name


def written(tracker: str, folder: RunFolder) -> tuple[dict[str, list[tuple[int, float]]], int]:
    """Every curve as the tracker's own reader has it, as (step, value), and how many runs there are."""
    return globals()[f"read_{tracker}"](folder)


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tracking" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, 1


def read_trackio(folder):
    (path,) = (folder.path.parents[1] / "trackio").glob("*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
        runs = base.execute("select count(distinct run_id) from metrics").fetchone()[0]
    curves = {}
    for name, step, metrics in rows:
        assert name == "small"
        for key, value in json.loads(metrics).items():
            curves.setdefault(key, []).append((step, value))
    return curves, runs


def mlflow_client(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.path.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    return client, client.search_runs([experiment.experiment_id])


def read_mlflow(folder):
    client, runs = mlflow_client(folder)
    names = runs[0].data.metrics
    history = {name: client.get_metric_history(runs[0].info.run_id, name) for name in names}
    return {name: sorted((m.step, m.value) for m in found) for name, found in history.items()}, len(runs)


def wandb_records(content: bytes):
    """The records of a .wandb file: a head of 7 bytes, then LevelDB's log, pieces of records in blocks of 32 KiB."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def ended_records(path, kind):
    """The records of a part that has ended; W&B's own process writes the last of them after it has said so."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        records = [kind.FromString(data) for data in wandb_records(path.read_bytes())]
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.05)
    raise TimeoutError(f"{path} has no end")


def read_wandb(folder):
    """The records of all offline parts of the run."""
    from wandb.proto.wandb_internal_pb2 import Record

    curves, runs = {}, set()
    for path in sorted((folder.path / "tracking" / "wandb").glob("offline-run-*/*.wandb")):
        for record in ended_records(path, Record):
            if record.run.run_id:
                runs.add(record.run.run_id)
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            for key, value in row.items():
                if not key.startswith("_") and key != "step":
                    curves.setdefault(key, []).append((row["step"], value))
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                if key.startswith("result/"):
                    curves.setdefault(key, []).append((STEPS * 2, json.loads(item.value_json)))
    return curves, len(runs)


def tell(tracker: str, folder: RunFolder, begin: int, end: int, finish: bool = False, title: str = "student") -> None:
    with tracked(lambda _, run: Writing(run), lambda _: ((tracker,), "digits")) as make:
        train(make(title, folder), begin, end)
        if finish:
            folder.write_result({"rows": ROWS})


def test_a_tracker_has_what_the_files_have(tracker, folder, caplog):
    tell(tracker, folder, 0, 8, finish=True)
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("potstill")]
    curves, runs = written(tracker, folder)
    assert runs == 1
    assert [step for step, _ in curves["loss/ce"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [value for _, value in curves["loss/ce"]] == pytest.approx([4.0 / step for step in range(1, 9)])
    assert [value for _, value in curves["share/pefd"]] == [0.75] * 8
    assert curves["ms/forward"][0] == (1, 3.5)
    assert curves["accuracy/top1"] == [(4, 51.0), (8, 52.0)]
    assert [step for step, _ in curves["val/m_bc"]] == [4, 8]
    assert curves["epoch/seconds"] == [(4, 1.5), (8, 1.5)]
    assert curves["result/student/top1"] == [(8, 55.5)]
    assert curves["result/teacher/top1"] == [(8, 60.0)]


def test_a_run_that_was_killed_goes_on_in_the_same_place_and_tells_nothing_twice(tracker, folder):
    """Killed two steps behind its checkpoint, after step 4: steps 5 and 6 are taken again."""
    with tracked(lambda _, run: Writing(run), lambda _: ((tracker,), "digits")) as make:
        train(make("student", folder), 0, 6)
    tell(tracker, folder, 4, 8, finish=True)
    curves, runs = written(tracker, folder)
    assert runs == 1
    for name in ("loss/ce", "loss/total", "lr"):
        assert [step for step, _ in curves[name]] == [1, 2, 3, 4, 5, 6, 7, 8], name
    assert curves["accuracy/top1"] == [(4, 51.0), (8, 52.0)]


def test_a_tracker_that_is_asked_for_later_is_told_what_was_before(tracker, folder):
    with tracked(lambda _, run: Writing(run), lambda _: ((), "digits")) as make:
        train(make("student", folder), 0, 4)
    assert not (folder.path / "tracking").exists()
    tell(tracker, folder, 4, 8)
    curves, _ = written(tracker, folder)
    assert [step for step, _ in curves["loss/ce"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curves["accuracy/top1"] == [(4, 51.0), (8, 52.0)]


def test_a_result_that_was_written_after_the_last_step_is_told(tracker, folder):
    """Killed between the last checkpoint and the result: the run is finished without a step."""
    tell(tracker, folder, 0, 8)
    with tracked(lambda _, run: Writing(run), lambda _: ((tracker,), "digits")) as make:
        make("student", folder)
        folder.write_result({"rows": ROWS})
    curves, runs = written(tracker, folder)
    assert runs == 1
    assert [value for _, value in curves["result/student/top1"]] == [55.5]
    assert [step for step, _ in curves["loss/ce"]] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_phases_have_curves_of_their_own(tracker, folder):
    with tracked(lambda _, run: Writing(run), lambda _: ((tracker,), "digits")) as make:
        train(make("student, stage 1", folder), 0, 4)
        train(make("student, head", folder), 4, 8)
    curves, runs = written(tracker, folder)
    assert runs == 1
    assert [step for step, _ in curves["stage-1/loss/ce"]] == [1, 2, 3, 4]
    assert [step for step, _ in curves["head/loss/ce"]] == [5, 6, 7, 8]
    assert "loss/ce" not in curves


def test_a_run_that_begins_anew_in_the_same_folder_is_another_run(tracker, folder):
    """It stopped before its first checkpoint, so nothing of it is left to go on with."""
    tell(tracker, folder, 0, 3)
    tell(tracker, folder, 0, 8)
    curves, runs = written(tracker, folder)
    if tracker == "tensorboard":  # whose runs are folders
        assert [step for step, _ in curves["loss/ce"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    else:
        assert runs == 2


def test_several_runs_at_a_time_do_not_mix(tracker, tmp_path):
    folders = {name: RunFolder(tmp_path / "runs" / "both" / name) for name in ("one", "two")}
    for each in folders.values():
        each.write_text("recipe.yaml", yaml.safe_dump(RECIPE))
    with tracked(lambda _, run: Writing(run), lambda _: ((tracker,), "digits")) as make:
        reporters = {name: make(name, each) for name, each in folders.items()}
        for reporter in reporters.values():
            reporter.started(0, 0, STEPS, 2, 0)
        for step in (1, 2, 3):
            for name, reporter in reporters.items():
                reporter.logged(step_row(step) | {"ce": 1.0 if name == "one" else 2.0})
    told = [json.loads((each.path / "tracking" / "told.json").read_text())[tracker] for each in folders.values()]
    assert [part["steps"] for part in told] == [3, 3]
    if tracker == "tensorboard":
        assert [read_tensorboard(each)[0]["loss/ce"] for each in folders.values()] == [
            [(1, 1.0), (2, 1.0), (3, 1.0)], [(1, 2.0), (2, 2.0), (3, 2.0)],
        ]  # fmt: skip
    else:
        assert told[0]["key"] != told[1]["key"]


def test_mlflow_has_the_recipe_and_how_the_run_ended(folder, request):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    empty_mlflow = request.getfixturevalue("empty_mlflow")
    shutil.copy(empty_mlflow, folder.path.parent / "mlflow.db")
    tell("mlflow", folder, 0, 4)
    _, (run,) = mlflow_client(folder)
    assert run.info.run_name == "small"
    assert run.info.status == "KILLED"
    assert run.data.params["optimizer.lr"] == "0.05"
    assert run.data.params["optimizer.betas"] == "[0.9, 0.999]"
    assert "clip" not in run.data.params
    assert set(run.data.tags) == {"mlflow.runName"}, "nothing of the machine or its user"
    tell("mlflow", folder, 4, 8, finish=True)
    assert mlflow_client(folder)[1][0].info.status == "FINISHED"


def test_tensorboard_has_the_recipe(folder):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell("tensorboard", folder, 0, 4)
    events = EventAccumulator(str(folder.path / "tracking" / "tensorboard"))
    events.Reload()
    text = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| optimizer.lr | `0.05` |" in text
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_wandb_is_offline_and_tells_nothing_of_the_machine(folder, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    must_be_there(["wandb"])
    tell("wandb", folder, 0, 4)
    (run,) = (folder.path / "tracking" / "wandb").glob("offline-run-*")
    names = {path.name for path in run.rglob("*") if path.is_file()}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log"}
    content = next(run.glob("*.wandb")).read_bytes()
    import getpass
    import platform

    assert platform.node().encode() not in content or len(platform.node()) < 4
    assert f"/{getpass.getuser()}/".encode() not in content.replace(str(folder.path).encode(), b"")


def test_wandb_without_a_login_is_refused_before_training(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    import wandb

    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(RecipeError, match=r"WANDB_MODE=online needs a login, and there is none; run `wandb login`"):
        must_be_there(["wandb"])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_named_with_its_extra(name, monkeypatch):
    def missing(module):
        if module == TRACKERS[name]:
            raise ModuleNotFoundError(f"No module named '{name}'")
        raise AssertionError(f"{module} is imported")

    monkeypatch.setattr("potstill.tracking.trackers.importlib.import_module", missing)
    message = rf"log.track names {name}, .*No module named '{name}'.*; pip install 'potstill\[track\]', or take it out"
    with pytest.raises(RecipeError, match=message):
        must_be_there([name])


def test_nothing_is_imported_that_nobody_asks_for():
    import subprocess
    import sys

    code = (
        "import sys, potstill.tracking\n"
        "slow = {'torch.utils.tensorboard', 'trackio', 'mlflow', 'wandb'} & set(sys.modules)\nassert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Failing:
    """A tracker whose server goes away."""

    def __init__(self, at):
        self.at, self.seen = at, []

    def begin(self, run):
        if self.at == "begin":
            raise ConnectionError("no\nroute to host")
        return "key"

    def log(self, step, values):
        if self.at == step:
            raise OSError(28, "No space left on device")
        self.seen.append(step)

    def finish(self, result):
        if self.at == "finish":
            raise ConnectionError("gone")


@pytest.mark.parametrize(("at", "reason"), [("begin", "no route to host"), (3, "No space left"), ("finish", "gone")])
def test_a_tracker_that_fails_is_said_once_and_ends_nothing(folder, monkeypatch, caplog, at, reason):
    failing = Failing(at)
    monkeypatch.setattr("potstill.tracking.told.make_tracker", lambda name: failing)
    with caplog.at_level(logging.WARNING):
        tell("wandb", folder, 0, 8, finish=True)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("potstill")]
    assert message.startswith("wandb is told no more of small: ")
    assert reason in message
    assert "\n" not in message
    steps = [json.loads(line)["step"] for line in (folder.path / "steps.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert failing.seen[:2] == ([] if at == "begin" else [1, 2])
    assert 3 not in failing.seen or at == "finish"


def test_what_a_failing_tracker_missed_it_is_told_when_the_run_goes_on(folder, monkeypatch):
    monkeypatch.setattr("potstill.tracking.told.make_tracker", lambda name: Failing(3))
    tell("wandb", folder, 0, 6)
    whole = Failing(None)
    monkeypatch.setattr("potstill.tracking.told.make_tracker", lambda name: whole)
    tell("wandb", folder, 4, 8)
    assert whole.seen == [3, 4, 4, 5, 6, 7, 8, 8]  # an epoch's row has its last step's number


def test_a_control_is_a_run_of_its_own_under_the_runs_name(tmp_path, monkeypatch):
    seen = {}

    class Naming(Failing):
        def begin(self, run):
            seen[run.name] = (run.base, run.folder)
            return "key"

    monkeypatch.setattr("potstill.tracking.told.make_tracker", lambda name: Naming(None))
    runs = tmp_path / "runs"
    ended = []
    with tracked(lambda _, run: Writing(run), lambda _: (("wandb",), "digits")) as make:
        for title, path in (("control", runs / "small" / "control"), ("student", runs / "small")):
            run = RunFolder(path)
            run.write_text("recipe.yaml", yaml.safe_dump(RECIPE))
            train(make(title, run), 0, 8)
            run.write_result({"rows": ROWS})
            ended.append(title)
    assert seen == {
        "small/control": (runs, runs / "small" / "control" / "tracking"),
        "small": (runs, runs / "small" / "tracking"),
    }


def test_other_processes_tell_nobody(folder):
    with tracked(lambda _, run: Silent(), lambda _: (("wandb",), "digits"), talks=False) as make:
        assert isinstance(make("student", folder), Silent)
    assert not Path(folder.path, "tracking").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_is_one_file_of_its_name(name):
    if importlib.util.find_spec("tensorboard" if name == "tensorboard" else name) is None:
        pytest.skip(f"{name} is not installed")
    assert make_tracker(name).begin.__doc__
