"""Orders of training through the command: what trains when, and that an interrupted run is the same run."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from potstill.analysis.metrics import between_class_cosine
from potstill.cli import app
from potstill.data.open import open_data
from potstill.networks.build import build_network
from potstill.networks.ship import load_student
from potstill.networks.stages import stage_parameters
from potstill.training.checkpoints import Checkpoints

# 179 of the digits to learn from, three steps an epoch; every state is kept.
TINY = (
    "data.source=digits", "data.val_fraction=0.9", "data.size=16", "student.model=resnet8", "device=cpu",
    "schedule.name=constant", "log.every=1", "checkpoint.keep=50", "precision=fp32",
)  # fmt: skip


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), prog_name="potstill")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network with the same stages, twice as wide."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    call("train", *TINY, "student.model=resnet8x4", "epochs=1", f"run={folder}")
    return folder


@pytest.fixture
def distill(teacher: Path) -> Callable[..., str]:
    return lambda *values: call("distill", *TINY, f"teacher.weights={teacher}", *values)


def states(run: Path) -> list[tuple[str, int, dict[str, Tensor]]]:
    """Phase, epoch and student of each checkpoint."""
    checkpoints = Checkpoints(run / "checkpoints")
    loaded = [checkpoints.load(path) for path in sorted(checkpoints.folder.iterdir())]
    return [(state["phase"], state["epoch"], state["student"]) for state in loaded]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def start(run: Path) -> dict[str, Tensor]:
    """The student as its run drew it."""
    torch.manual_seed(0)
    return build_network("resnet8", classes=10, input_size=(3, 16, 16)).network.state_dict()


def test_stage_by_stage_each_phase_trains_its_own_part(distill, tmp_path):
    run = tmp_path / "run"
    said = distill("procedure.name=stagewise", "epochs=5", "procedure.stage_epochs=[1,1,2]", f"run={run}")
    assert [line.split("  epoch")[0] for line in said.splitlines() if "done" in line] == [
        "student, stage 1", "student, stage 2", "student, stage 3", "student, stage 3", "student, head",
    ]  # fmt: skip
    student = load_student(run)
    stem, one, two, three, head = map(set, stage_parameters(student))
    parts = {"stage 1": stem | one, "stage 2": two, "stage 3": three, "head": head}
    before = start(run)
    for phase, _, after in states(run):
        moved = changed(before, after)
        assert moved == parts[phase] & moved, phase  # batch norms' statistics stand still too
        assert {name for name in parts[phase] if name.endswith(("weight", "bias"))} <= moved, phase
        before = after
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["phase"] for row in rows] == ["stage 1", "stage 2", "stage 3", "stage 3", "head"]
    assert [bool(row["top1"]) for row in rows] == [False, False, False, False, True]
    assert [bool(row["mimic"]) for row in rows] == [True, True, True, True, False]
    assert json.loads((run / "result.json").read_text())["epochs"] == 5


def test_the_last_phase_can_train_everything_and_the_stem_have_its_own(distill, tmp_path):
    run = tmp_path / "run"
    distill("procedure.name=stagewise", "procedure.stem=true", "procedure.finetune=true", "epochs=5", f"run={run}")
    (*_, (_, _, before), (phase, _, after)) = states(run)
    assert [phase for phase, *_ in states(run)] == ["stage 1", "stage 2", "stage 3", "stage 4", "head"]
    assert phase == "head"
    assert changed(before, after) == set(before)


@pytest.mark.parametrize("saves", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 3))])
@pytest.mark.parametrize(
    "values",
    [
        ["procedure.name=stagewise", "epochs=4"],
        ["objective={ce: 1, ft: 200}", "epochs=2"],
        ["procedure.name=hint", "objective={ce: 1, kd: 1, fitnets: 1}", "epochs=4", "ema=0.9"],
        ["objective={ce: 1, crd: 0.8, nd: 1}", "epochs=4"],
    ],
    ids=["stagewise", "pretraining", "hint", "banks and means"],
)
def test_an_interrupted_run_ends_as_an_undisturbed_one(distill, teacher, monkeypatch, tmp_path, values, saves):
    distill(*values, f"run={tmp_path / 'whole'}")
    save, count = Checkpoints.save, iter(range(1, 100))

    def then_die(self: Checkpoints, step: int, state: dict) -> Path:
        path = save(self, step, state)
        if next(count) == saves:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", then_die)
        command = ["distill", *TINY, f"teacher.weights={teacher}", *values, f"run={tmp_path / 'cut'}"]
        assert CliRunner().invoke(app, command).exit_code == 130
    distill(*values, f"run={tmp_path / 'cut'}")
    whole, cut = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "cut"))
    assert cut == whole


def test_a_hint_trains_the_student_up_to_its_layer(distill, tmp_path):
    run = tmp_path / "run"
    terms = "objective={ce: 0.1, kd: 0.9, fitnets: {weight: 1, layer: 1}}"
    distill("procedure.name=hint", "procedure.stage_epochs=1", "epochs=2", terms, f"run={run}")
    (first, _, hinted), (second, _, after) = states(run)
    assert (first, second) == ("hint", "kd")
    stem, one, *_ = map(set, stage_parameters(load_student(run)))
    assert changed(start(run), hinted) == (stem | one) & changed(start(run), hinted)
    assert changed(hinted, after) == set(after)
    steps = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    assert "fitnets" in steps[0]
    assert {"ce", "kd"} <= steps[-1].keys()
    assert "fitnets" not in steps[-1]


def test_a_paraphraser_trains_before_the_student_and_stands_still_then(distill, tmp_path):
    run = tmp_path / "run"
    distill("objective={ce: 1, ft: 200}", "procedure.pretrain_epochs=2", "epochs=1", f"run={run}")
    checkpoints = Checkpoints(run / "checkpoints")
    first, second, last = (checkpoints.load(path) for path in sorted(checkpoints.folder.iterdir()))
    assert [state["phase"] for state in (first, second, last)] == ["pretraining", "pretraining", "joint"]
    assert changed(start(run), second["student"]) == set()
    own = {name for name in first["objective"] if "paraphraser" in name}
    assert own
    assert changed(first["objective"], second["objective"]) == own
    moved = changed(second["objective"], last["objective"])
    assert moved
    assert not moved & own


def test_a_warm_up_counts_from_the_start_of_its_phase(distill, tmp_path):
    run = tmp_path / "run"
    terms = "objective={ce: 1, kd: {weight: 1, warmup: 2}}"
    distill("procedure.name=stagewise", "epochs=6", "procedure.stage_epochs=1", terms, f"run={run}")
    rows = [row for row in map(json.loads, (run / "steps.jsonl").read_text().splitlines()) if "kd" in row]
    assert [row["epoch"] for row in rows] == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    factors = [(row["total"] - row["ce"]) / row["kd"] for row in rows]
    assert factors == pytest.approx([0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1], abs=1e-3)


def test_peers_learn_together_and_the_first_one_ships(distill, tmp_path):
    run = tmp_path / "run"
    values = ["procedure.name=mutual", "procedure.peers=[resnet14]", "objective={ce: 1, mutual: 1, kd: 1}", "epochs=1"]
    distill(*values, f"run={run}")
    ((_, _, both),) = states(run)
    peers = {name.split(".")[0] for name in both}
    assert peers == {"0", "1"}
    shipped = load_file(run / "student.safetensors")
    assert all(torch.equal(shipped[name], both[f"0.{name}"]) for name in shipped)
    assert changed({f"0.{name}": value for name, value in start(run).items()}, both) == {n for n in both if n[0] == "0"}


@pytest.mark.long
def test_a_chain_of_assistants_leads_from_the_teacher_to_the_student(distill, teacher, tmp_path):
    run = tmp_path / "run"
    chain = ["procedure.name=assistants", "procedure.assistants=[resnet20,resnet14]", "epochs=1", "control=true"]
    dense = (*chain, "procedure.dense=true", "objective={ce: 0.5, dgkd: 0.5}", f"run={run}")

    def parts(said: str) -> list[str]:
        return [line.split()[0] for line in said.splitlines() if "KiB" in line or "MiB" in line]

    assert parts(distill(*dense)) == ["teacher", "assistant", "assistant", "control", "student"]

    def learned_from(folder: Path) -> tuple[str, list[str]]:
        section = yaml.safe_load((folder / "recipe.yaml").read_text())["teacher"]
        return section["weights"], section["others"]

    one, two = run / "assistant-1", run / "assistant-2"
    top1 = json.loads((teacher / "result.json").read_text())["rows"]["student"]["top1"]
    assert json.loads(distill(*dense, "--json"))["rows"]["teacher"]["top1"] == top1
    assert learned_from(one) == (str(teacher), [])
    assert learned_from(two) == (str(one), [str(teacher)])
    assert learned_from(run) == (str(two), [str(teacher), str(one)])
    assert parts(distill(*dense)) == ["teacher", "assistant", "assistant", "control", "student"]  # shown again


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["procedure.name=stagewise", "epochs=3"], "epochs=3 does not suffice for 3 stages"),
        (
            ["procedure.name=stagewise", "epochs=9", "procedure.stage_epochs=[1,1]"],
            "names 2 numbers of epochs and there",
        ),
        (["procedure.name=stagewise", "epochs=9", "student.model=vgg8"], "shows 5 maps and the teacher 4"),
        (["procedure.name=hint", "objective={ce: 1, kd: 1}"], "it needs both"),
        (["procedure.name=mutual", "objective={ce: 1, mutual: 1}"], "needs a peer at least"),
        (["objective={ce: 1, mutual: 1}"], "the student has no peers: give procedure.name=mutual"),
        (["procedure.name=assistants"], "give a teacher and procedure.assistants"),
        (["procedure.stage_epochs=2"], "procedure.stage_epochs=2 does nothing with procedure.name=joint"),
        (
            ["procedure.name=stagewise", "epochs=9", "objective={ce: 1, crd: 1}"],
            "crd of the objective would train nothing",
        ),
        (["procedure.pretrain_epochs=3"], "procedure.pretrain_epochs=3 does nothing"),
        (
            [
                "procedure.name=assistants",
                "procedure.assistants=[resnet14]",
                "procedure.dense=true",
                "objective={kd: 1}",
            ],
            "takes dgkd in the objective",
        ),
        (["teacher.class_means=clean"], "teacher.class_means=clean does nothing"),
    ],
)
def test_what_cannot_be_ordered_is_refused(teacher, tmp_path, values, message):
    command = ["distill", *TINY, f"teacher.weights={teacher}", *values, f"run={tmp_path / 'run'}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", ["augmented", "clean"])
def test_class_means_are_the_teachers_on_the_training_images(distill, teacher, tmp_path, policy):
    run = tmp_path / "run"
    distill("objective={ce: 1, nd: 1}", f"teacher.class_means={policy}", "epochs=1", f"run={run}")
    found = load_file(run / "class_means.safetensors")["class_means"]
    source = open_data("digits", size=16, val_fraction=0.9).train
    images = torch.stack([torch.from_numpy(source.image(i)) for i in range(len(source))]).permute(0, 3, 1, 2) / 255
    network = load_student(teacher)
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in network.normalisation)
    with torch.no_grad():
        embedding = network((images - mean) / std).embedding
    labels = torch.as_tensor(source.labels)
    expected = torch.stack([embedding[labels == k].mean(0) for k in range(10)])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5) == (policy == "clean")
    assert torch.allclose(found, expected, rtol=0.5, atol=0.5)


def test_the_measures_of_a_run(distill, teacher, tmp_path):
    run = tmp_path / "run"
    distill("objective={ce: 1, pefd: 25}", "log.measures=true", "epochs=2", f"run={run}")
    found = json.loads(call("analyze", str(run), "--json"))
    row = list(csv.DictReader((run / "metrics.csv").open()))[-1]
    assert found["images"] == 1618
    assert found["networks"]["student"]["m_bc"] == pytest.approx(float(row["val_m_bc"]), rel=1e-5)
    assert found["pair"]["cka"] == pytest.approx(float(row["val_cka"]), rel=1e-4)
    source = open_data("digits", size=16, val_fraction=0.9).val
    images = torch.stack([torch.from_numpy(source.image(i)) for i in range(len(source))]).permute(0, 3, 1, 2) / 255
    network = load_student(run)
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in network.normalisation)
    with torch.no_grad():
        embedding = network((images - mean) / std).embedding
    assert found["networks"]["student"]["norm"] == pytest.approx(embedding.norm(dim=1).mean().item(), rel=1e-3)
    expected = between_class_cosine(embedding, torch.as_tensor(source.labels)).item()
    assert found["networks"]["student"]["m_bc"] == pytest.approx(expected, rel=1e-3)
    distance = found["projectors"]["pefd"]
    assert 0 < distance["distance"] < distance["squared"]
    assert float(row["val_pefd_distance"]) == pytest.approx(distance["distance"], rel=1e-5)
    assert float(row["val_pefd_distance_squared"]) == pytest.approx(distance["squared"], rel=1e-5)
    assert "distance of two projectors of pefd" in call("analyze", str(run))
