"""Runs on faces through the command: what they leave, what they are judged by, and that a run is the same run."""

import csv
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.procedures.running import call
from torch import Tensor

from potstill.data.alignment import template_points
from potstill.data.face_protocol import generate_protocol, split_people
from potstill.data.faces import FaceTest
from potstill.data.pairs import PairSet
from potstill.data.source import ArraySource
from potstill.networks.build import read_card
from potstill.networks.ship import load_student
from potstill.networks.stages import stage_parameters
from potstill.procedures.data import prepare_data
from potstill.procedures.faces import embed, measured, told_by
from potstill.procedures.opening import open_split
from potstill.procedures.run import resolve_with
from potstill.recipe import load_recipe
from potstill.report.roc import read_roc
from potstill.training.checkpoints import Checkpoints
from potstill.training.distributed import Processes

# A run of about a second on the 400 faces; the side of the network's images comes from data.size.
NETWORK = ("student.model=iresnet10", "student.args={width: 0.125, scale: 16, dim: 32}")
QUICK = (
    "task=faces", "data.size=32", "data.far=1e-2", "epochs=1", "device=cpu", "precision=fp32",
    "schedule.name=constant", "log.every=1", "log.shares=0", "log.report=false",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny(shared_data: Callable[[str], Path]) -> tuple[str, ...]:
    """The values of a run on real faces, but for the network."""
    return (*QUICK, f"data.path={shared_data('orl-faces')}")


@pytest.fixture(scope="session")
def taught_by(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which nobody changes."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    call("train", *tiny, *NETWORK, "student.args.width=0.25", "epochs=2", f"run={folder}")
    return folder


@pytest.fixture
def distill(tiny: tuple[str, ...], taught_by: Path) -> Callable[..., str]:
    return lambda *values, code=0: call("distill", *tiny, *NETWORK, f"teacher.weights={taught_by}", *values, code=code)


@pytest.fixture(scope="session")
def apart(shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the people to learn from, and a protocol over nine others."""
    faces, folder = shared_data("orl-faces"), tmp_path_factory.mktemp("apart")
    learned, judged = split_people(faces, 9)
    for name in learned:
        shutil.copytree(faces / name, folder / "people" / name, copy_function=shutil.copyfile)
        (folder / "people" / name).chmod(0o755)
    return folder / "people", generate_protocol(faces, folder / "protocol", people=judged)


def weights(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def judged(*arguments: str) -> dict[str, Any]:
    return json.loads(call("evaluate", *arguments, "--json"))


def test_a_run_has_the_rates_of_both_networks_their_curves_and_a_page(distill, taught_by: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "run", weights(taught_by)
    said = distill("control=true", "log.report=true", f"run={run}")
    rows = result(run)["rows"]
    assert list(rows) == ["teacher", "student"]
    for row in rows.values():  # 2,800 pairs of two people tell rates down to 1e-3
        assert [key for key in row if key.startswith("tar")] == ["tar", "tar_1e-1", "tar_1e-2", "tar_1e-3"]
        assert row["tar"] == row["tar_1e-2"]
        assert 0 < row["tar_1e-3"] <= row["tar_1e-2"] < row["tar_1e-1"] < 100
    own = result(taught_by)["rows"]["student"]
    # Folded batch norms round otherwise: one or two of the 360 pairs of one person may fall on the other side.
    assert {key: rows["teacher"][key] for key in own if "tar" in key} == pytest.approx(
        {key: value for key, value in own.items() if "tar" in key}, abs=0.6
    )
    assert rows["teacher"]["macs"] == own["macs"] > rows["student"]["macs"]
    curves = read_roc(run)
    assert list(curves) == ["student", "teacher"]
    for name, curve in curves.items():
        assert 100 * curve.at(0.1) <= rows[name]["tar_1e-1"] + 1e-9
        assert curve.at(1.0) == 1.0
        assert list(curve.far) == sorted(curve.far)
    assert result(run)["best"] == {"epoch": 1, "tar": rows["student"]["tar"]}
    assert result(run)["data"]["train"] == 320
    assert yaml.safe_load((run / "recipe.yaml").read_text())["objective"] == {
        "arcface": 1.0, "pefd": {"weight": 25.0, "projectors": 3}
    }  # fmt: skip
    control = yaml.safe_load((run / "control" / "recipe.yaml").read_text())
    assert (control["objective"], control["teacher"]) == ({"arcface": 1.0}, None)
    assert "than the control: the same network trained alone (TAR)" in said
    page = (run / "report.html").read_text()
    assert "True accept rate over false accept rate" in page
    assert weights(taught_by) == before


def test_evaluating_a_run_gives_its_numbers_and_a_protocol_gives_others(
    distill, apart: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    distill("objective={arcface: 1, pefd: 5}", f"run={run}")
    found, row = judged(str(run)), result(run)["rows"]["student"]
    assert {key: found[key] for key in row if "tar" in key} == {key: row[key] for key in row if "tar" in key}
    assert (found["images"], found["skipped"]) == (80, 0)
    other = judged(str(run), f"data.protocol={apart[1]}")
    assert (other["images"], other["note"].split(".")[0]) == (90, f"Judged by {apart[1]}: 90 images")
    assert {"tar", "tar_1e-1", "tar_1e-3", "rank1", "tpir_1e-1", "templates_missed"} <= set(other)
    assert other["templates_missed"] == 0
    everybody = judged(str(run), f"data.path={apart[0]}")
    assert (everybody["images"], everybody["data"]) == (310, str(apart[0]))
    assert everybody["tar"] != found["tar"]


def test_a_run_is_judged_by_a_protocol_where_its_people_are_gone(tiny, apart, tmp_path: Path) -> None:
    people = shutil.copytree(apart[0], tmp_path / "people")
    run = tmp_path / "run"
    values = (f"data.path={people}", f"data.protocol={apart[1]}", "log.report=true", f"run={run}")
    call("train", *tiny, *NETWORK, *values)
    row = result(run)["rows"]["student"]
    # Six of nine people are in a gallery, with three images, so four are the fewest and rank 1 the only one that tells.
    assert [key for key in row if key.startswith(("rank", "tpir"))] == ["rank1", "tpir_1e-1"]
    assert len(result(run)["classes"]) == 31
    shutil.rmtree(people)
    found = judged(str(run))
    assert {key: found[key] for key in row if key in found} == {key: row[key] for key in row if key in found}
    assert "TPIR" in (run / "report.html").read_text()


def test_pairs_of_a_bin_file_have_an_accuracy_over_their_folds(distill, shared_data, tmp_path: Path) -> None:
    faces = sorted(shared_data("orl-faces").rglob("*.png"))
    files, same = [], []
    for pair in range(40):  # of one person and of two, in turn
        files += [faces[10 * pair].read_bytes(), faces[(10 * pair + (1, 17)[pair % 2]) % 400].read_bytes()]
        same.append(pair % 2 == 0)
    (tmp_path / "pairs.bin").write_bytes(pickle.dumps((files, same)))
    run = tmp_path / "run"
    distill(f"data.protocol={tmp_path / 'pairs.bin'}", "data.far=0.1", f"run={run}")
    rows = result(run)["rows"]
    assert 50 <= rows["student"]["accuracy"] <= 100
    assert [key for key in rows["student"] if key.startswith("tar")] == ["tar", "tar_1e-1"]
    assert rows["teacher"]["accuracy"] > 0


@pytest.mark.parametrize(
    "objective",
    [
        "{arcface: 1, nd: 1}",
        "{cosface: 1, rkd: 1}",
        "{sphereface: {weight: 1, margin: 2}, kd: 1}",
        "{ce: 1, pefd: 5, at: 10}",
    ],
)
def test_methods_teach_embedders_and_leave_the_teacher_as_it_is(
    distill, taught_by: Path, tmp_path: Path, objective: str
) -> None:
    before = weights(taught_by)
    distill(f"objective={objective}", f"run={tmp_path / 'run'}")  # which compares the teacher in memory at its end
    assert weights(taught_by) == before
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    terms = [name for name in yaml.safe_load(objective) if name in row]
    assert terms == list(yaml.safe_load(objective))
    assert all(float(row[name]) > 0 for name in terms)
    assert float(row["tar"]) > 0


def test_stage_by_stage_each_phase_trains_its_own_part_and_the_head_comes_last(distill, tmp_path: Path) -> None:
    run = tmp_path / "run"
    distill("procedure.name=stagewise", "epochs=5", "checkpoint.keep=10", "objective={arcface: 1}", f"run={run}")
    student = load_student(run)
    stem, one, two, three, four, head = map(set, stage_parameters(student))
    assert "head.weight" in head
    parts = {"stage 1": stem | one, "stage 2": two, "stage 3": three, "stage 4": four, "head": head}
    checkpoints = Checkpoints(run / "checkpoints")
    states = [checkpoints.load(path) for path in sorted(checkpoints.folder.iterdir())]
    assert [state["phase"] for state in states] == list(parts)
    for before, after in itertools.pairwise(states):
        moved = {name for name, value in after["student"].items() if not torch.equal(value, before["student"][name])}
        assert moved <= parts[after["phase"]]
        assert {name for name in parts[after["phase"]] if name.endswith("conv1.weight")} <= moved
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [bool(row["tar"]) for row in rows] == [False, False, False, False, True]


def test_a_run_that_was_killed_ends_byte_for_byte_as_one_that_was_not(
    distill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ("epochs=2", "checkpoint.every_steps=2", "ema=0.9")
    distill(*values, f"run={tmp_path / 'whole'}")
    save, count = Checkpoints.save, iter(range(1, 100))

    def killed(self: Checkpoints, step: int, state: dict[str, Any]) -> Path:
        path = save(self, step, state)
        if next(count) == 2:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        distill(*values, f"run={tmp_path / 'cut'}", code=130)
    assert not (tmp_path / "cut" / "result.json").exists()
    distill(*values, f"run={tmp_path / 'cut'}", "--resume")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert (tmp_path / "cut" / "roc.json").read_bytes() == (tmp_path / "whole" / "roc.json").read_bytes()


def test_a_store_of_embeddings_gives_the_weights_of_the_live_teacher(distill, tiny, taught_by, tmp_path: Path) -> None:
    values = ("objective={arcface: 1, pefd: 5, kd: 1, nd: 1}", "data.views=1", "data.view_seed=0")
    store = f"teacher.store={tmp_path / 'store'}"
    call("store", "build", *tiny, *NETWORK, f"teacher.weights={taught_by}", *values, store, "store.dtype=fp32")
    distill(*values, f"run={tmp_path / 'live'}")
    distill(*values, store, f"run={tmp_path / 'stored'}")
    live, stored = (load_file(tmp_path / name / "student.safetensors") for name in ("live", "stored"))
    for name, value in live.items():
        torch.testing.assert_close(stored[name], value, rtol=0, atol=1e-4)
    assert result(tmp_path / "stored")["rows"]["teacher"] == result(tmp_path / "live")["rows"]["teacher"] | {
        "latency_ms": result(tmp_path / "stored")["rows"]["teacher"]["latency_ms"]
    }


def test_students_side_by_side_are_those_that_train_alone(distill, tmp_path: Path) -> None:
    objective = "{arcface: 1, nd: 1}"
    distill(
        f"students=[{{name: a}}, {{model: mobilefacenet, name: b, objective: {objective}}}]", f"run={tmp_path / 'all'}"
    )
    distill(f"run={tmp_path / 'a'}")
    assert weights(tmp_path / "all" / "a") == weights(tmp_path / "a")
    assert "tar" in result(tmp_path / "all" / "b")["rows"]["student"]
    assert read_card(tmp_path / "all" / "b").args["img_size"] == 32


@pytest.mark.parametrize(
    "values",
    [
        ("procedure.name=mutual", "procedure.peers=[mobilefacenet]", "objective={arcface: 1, mutual: 1, pefd: 5}"),
        ("procedure.name=assistants", "procedure.assistants=[mobilefacenet]", "objective={arcface: 1, pefd: 5}"),
    ],
)
def test_further_networks_are_built_for_the_images_too(distill, tmp_path: Path, values: tuple[str, ...]) -> None:
    distill(*values, f"run={tmp_path / 'run'}")
    assert "tar" in result(tmp_path / "run")["rows"]["student"]
    assert read_card(tmp_path / "run").args["img_size"] == 32


@pytest.mark.parametrize("model", ["iresnet10", "faces/mobilefacenet"])
def test_networks_are_built_for_the_images_and_say_so_on_their_card(tiny, tmp_path: Path, model: str) -> None:
    args = "student.args={width: 0.125, dim: 16}"
    call("train", *tiny, f"student.model={model}", args, "data.size=48", f"run={tmp_path / 'run'}")
    card = read_card(tmp_path / "run")
    assert card.args == {"width": 0.125, "dim": 16, "img_size": 48}
    assert "img_size=48" in str(card.load)
    student = load_student(tmp_path / "run")
    assert student.input_size == (3, 48, 48)
    assert student(torch.zeros(1, 3, 48, 48)).embedding.shape == (1, 16)


@pytest.mark.long
def test_the_line_on_the_card_loads_the_student_without_potstill(tiny, tmp_path: Path) -> None:
    call("train", *tiny, *NETWORK, f"run={tmp_path / 'run'}")
    code = f"import sys; {read_card(tmp_path / 'run').load}; import torch\n"
    code += "print(tuple(network(torch.zeros(2, 3, 32, 32)).shape), 'potstill' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "run", capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "(2, 32) False"


def test_a_run_begins_at_the_weights_of_another_and_ships_its_arguments(tiny, taught_by, tmp_path: Path) -> None:
    """With the model named too, which the other's card knows already."""
    values = (f"student.weights={taught_by}", "student.model=iresnet10", f"run={tmp_path / 'run'}")
    call("train", *tiny, *values)
    assert read_card(tmp_path / "run").args == read_card(taught_by).args
    assert load_student(tmp_path / "run").spec.embedding_dim == 32


def test_a_teacher_of_larger_images_is_judged_and_measured_at_its_own_size(tiny, taught_by, tmp_path: Path) -> None:
    values = ("data.size=24", f"teacher.weights={taught_by}", f"run={tmp_path / 'run'}")
    call("distill", *tiny, *NETWORK, *values)
    teacher, own = result(tmp_path / "run")["rows"]["teacher"], result(taught_by)["rows"]["student"]
    assert teacher["macs"] == own["macs"]
    assert teacher["tar_1e-1"] > 0


def test_what_nobody_judges_has_no_rates(tiny, tmp_path: Path) -> None:
    call("train", *tiny, *NETWORK, "data.val_fraction=0", "log.report=true", f"run={tmp_path / 'run'}")
    found = result(tmp_path / "run")
    assert not [key for key in found["rows"]["student"] if "tar" in key]
    assert (found["best"], found["alignment"]) == (None, {"learned": None, "judged": None})
    assert len(found["classes"]) == 40
    assert not (tmp_path / "run" / "roc.json").exists()
    assert judged(str(tmp_path / "run"))["images"] == 400  # all people, as there are no others


@pytest.fixture
def aligned(shared_data: Callable[[str], Path], tmp_path: Path) -> Path:
    """Eight people, whose eyes, nose and mouth somebody has found."""
    points, _ = template_points("arcface-112")
    head = ",".join(["file", *(f"{axis}{k}" for k in range(1, 6) for axis in "xy")])
    rows = [head]
    for person in sorted(shared_data("orl-faces").iterdir())[:8]:
        (tmp_path / "people" / person.name).mkdir(parents=True)
        for image in sorted(person.iterdir())[:6]:
            shutil.copyfile(image, tmp_path / "people" / person.name / image.name)
            numbers = (points * 0.8).ravel().tolist()
            rows.append(",".join([f"{person.name}/{image.name}", *map(str, numbers)]))
    (tmp_path / "people" / "landmarks.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "people"


def test_the_template_is_recorded_and_faces_placed_otherwise_are_told(aligned, apart, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = (f"data.path={aligned}", "data.val_fraction=0.3", "data.far=0.1", f"run={run}")
    said = call("train", *QUICK, *NETWORK, *values)
    assert "Unless somebody has cut" not in said
    assert result(run)["alignment"] == {"learned": "arcface-112", "judged": "arcface-112"}
    assert "Unless somebody has cut" not in call("evaluate", str(run))
    said = call("evaluate", str(run), f"data.protocol={apart[1]}")
    assert "are aligned to arcface-112, and those to judge by are taken as they are" in " ".join(said.split())
    values = (f"data.path={aligned}", f"data.protocol={apart[1]}", f"run={tmp_path / 'other'}")
    assert "those to judge by are taken as they are" in " ".join(call("train", *QUICK, *NETWORK, *values).split())
    assert result(tmp_path / "other")["alignment"] == {"learned": "arcface-112", "judged": None}


class Part(Processes):
    """One of two processes, whose sums nobody makes."""

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gathered(self, value: Any) -> list[Any]:
        return [value]


def prepared(processes: Processes, *values: str) -> Any:
    recipe = load_recipe(None, [*QUICK, *NETWORK, "objective={arcface: 1}", *values])
    split = open_split(recipe)
    return prepare_data(resolve_with(recipe, split, processes), split, processes)


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_a_damaged_image_is_a_miss_and_moves_no_other(aligned, tmp_path: Path, loader: str) -> None:
    (aligned / "landmarks.csv").unlink()
    protocol = generate_protocol(aligned, tmp_path / "protocol", gallery_images=2)
    one = Processes(torch.device("cpu"))
    values = (
        f"data.path={aligned}", f"data.protocol={protocol}", f"data.loader={loader}", "data.on_error=skip",
        "data.crop=resized", "data.far=0.1",
    )  # fmt: skip
    if loader == "streaming":
        values = (*values, "data.workers=0")
    whole = prepared(one, *values)
    pixels = lambda images: images.flatten(1)  # noqa: E731
    expected, seen = embed(pixels, whole, one)
    assert seen.all()
    broken = [4, 17]
    for index in broken:
        (protocol / "loose_crop" / whole.test.protocols[0].images[index]).write_bytes(b"no image")
    rest = prepared(one, *values)
    found, seen = embed(pixels, rest, one)
    assert (~seen).nonzero()[:, 0].tolist() == broken
    torch.testing.assert_close(found[seen], expected[seen], rtol=0, atol=0)
    before, after = (
        measured(one, data.test, 0.1) for one, data in (((expected, seen | True), whole), ((found, seen), rest))
    )
    alone = sum(
        (whole.test.protocols[0].template_of == whole.test.protocols[0].template_of[i]).sum() == 1 for i in broken
    )
    assert (before["templates_missed"], after["templates_missed"]) == (
        0, pytest.approx(100 * alone / whole.test.protocols[0].templates)
    )  # fmt: skip
    assert after["tar"] <= before["tar"]


def test_two_processes_embed_each_image_once(tiny) -> None:
    pixels = lambda images: images.flatten(1)  # noqa: E731
    path = tiny[-1]
    whole, seen = embed(pixels, one := prepared(Processes(torch.device("cpu")), path), Processes(torch.device("cpu")))
    assert seen.all()
    parts = []
    for rank in (0, 1):
        process = Part(torch.device("cpu"), rank=rank, world=2)
        parts.append(embed(pixels, prepared(process, path, "batch_size=64"), process))
    assert not (parts[0][1] & parts[1][1]).any()
    assert (parts[0][1] | parts[1][1]).all()
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole, rtol=0, atol=0)
    assert measured((whole, seen), one.test, 1e-2)["tar_1e-1"] > 0


def test_a_test_tells_what_it_is_large_enough_for(apart) -> None:
    data = prepared(Processes(torch.device("cpu")), f"data.path={apart[0]}", f"data.protocol={apart[1]}")
    told = told_by(data.test, 2.5e-3)  # 1,296 comparisons of two people, 33 searches for nobody, three in a gallery
    assert (told.fars, told.fpirs, told.ranks) == ((0.1, 0.01, 0.0025, 0.001), (0.1,), (1,))


@pytest.mark.parametrize("missing", [[], [3, 11]])
def test_pairs_of_one_fold_have_the_rates_that_pairs_of_several_have(missing: list[int]) -> None:
    """Their accuracy apart; the one way compares blocks of templates, the other pair by pair."""
    labels = np.arange(30) % 5
    first, second = np.triu_indices(30, 1)
    images = ArraySource(np.zeros((30, 1, 1, 3), np.uint8), None, name="thirty")
    pairs = PairSet("thirty", images, first, second, labels[first] == labels[second], folds=1)
    found = np.ones(30, bool)
    found[missing] = False
    embeddings = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)) + torch.eye(5)[labels, :3]
    one = measured((embeddings, torch.ones(30).bool()), FaceTest(images, found, pairs), 0.02)
    several = measured((embeddings, torch.from_numpy(found)), FaceTest(images, found, replace(pairs, folds=5)), 0.02)
    assert one == {key: value for key, value in several.items() if key.startswith("tar")}
    if missing:  # each has five pairs with others of its person, of 75 in all
        assert one["tar_1e-1"] <= 100 * 65 / 75


def test_a_protocol_without_pairs_is_searched_and_has_no_true_accept_rate(taught_by, apart, tmp_path: Path) -> None:
    protocol = shutil.copytree(apart[1], tmp_path / "protocol")
    (protocol / "meta" / "faces_template_pair_label.txt").unlink()
    found, both = (
        judged(str(taught_by), f"data.protocol={protocol}"),
        judged(str(taught_by), f"data.protocol={apart[1]}"),
    )
    assert not [key for key in found if key.startswith("tar")]
    assert {key: found[key] for key in ("rank1", "tpir_1e-1")} == {key: both[key] for key in ("rank1", "tpir_1e-1")}


@pytest.mark.long
def test_two_processes_train_and_judge_as_one(tiny, taught_by, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def rates(*arguments: str) -> dict[str, Any]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [sys.executable, *launcher, "-m", "potstill", *arguments, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    one, two = judged(str(taught_by)), rates("evaluate", str(taught_by))
    assert two == one
    values = ("objective={arcface: 1, pefd: 5}", f"teacher.weights={taught_by}", f"run={tmp_path / 'two'}")
    rows = rates("distill", *tiny, *NETWORK, *values)["rows"]
    again = judged(str(tmp_path / "two"))
    assert {key: rows["student"][key] for key in again if "tar" in key} == pytest.approx(
        {key: again[key] for key in again if "tar" in key}, abs=0.3
    )


@pytest.mark.long
def test_a_studys_table_has_the_true_accept_rate(tiny, tmp_path: Path) -> None:
    recipe = load_recipe(None, [*tiny, *NETWORK, "data.val_fraction=0.3"]).model_dump(
        mode="json", exclude_defaults=True
    )
    study = {
        "recipe": recipe,
        "teachers": {"large": {"student.args": {"width": 0.25, "scale": 16, "dim": 32}}},
        "grid": {
            "method": {
                "alone": {"objective": {"arcface": 1}},
                "PEFD": {"teacher": "large", "objective": {"arcface": 1, "pefd": 5}},
            }
        },
        "control": {"method": "alone"},
        "seeds": [1, 2],
        "run": str(tmp_path / "study"),
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    said = call("study", str(tmp_path / "study.yaml"))
    assert "TAR" in said
    assert "top-1" not in said
    page = (tmp_path / "study" / "report.html").read_text()
    assert "TAR" in page


@pytest.mark.long
def test_a_race_ranks_by_the_true_accept_rate_and_a_profile_times_a_step(
    distill, tiny, taught_by, tmp_path: Path
) -> None:
    values = ("candidates=[{name: slow}, {name: fast, optimizer: {lr: 0.1}}]", "epochs=2", f"run={tmp_path / 'race'}")
    said = call("race", *tiny, *NETWORK, f"teacher.weights={taught_by}", *values)
    assert "TAR % at 1" in said
    found = json.loads(call("profile", *tiny, *NETWORK, f"teacher.weights={taught_by}", "--steps", "5", "--json"))
    assert found["step"]["parts"]["teacher"]["ms"] > 0
