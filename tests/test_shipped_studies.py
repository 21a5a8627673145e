"""The studies that ship: their cells are the shipped recipes, their published numbers the papers', their cost as said.

Their document says what there is.
"""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from potstill.cli import app
from potstill.config import Recipe
from potstill.methods import hyper_parameters
from potstill.recipe import load_recipe, read_yaml
from potstill.study import Cell, Plan, StudyFile, load_study, plan_study, read_record

ROOT = Path(__file__).resolve().parent.parent
FILES = {path.stem: path for path in sorted((ROOT / "studies").glob("*.yaml"))}
TABLES = [name for name in FILES if not name.endswith("-cpu") and name != "digits"]
CPU = [name for name in FILES if name.endswith("-cpu")]
DOCUMENT = ROOT / "docs" / "studies.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)

# What the studies' levels are called in the names of the recipe files.
TWO_PAIRS = {"VGG13 to VGG8": "vgg", "ResNet32x4 to ResNet8x4": "resnet"}
FIVE_PAIRS = {
    "WRN-40-2 to WRN-16-2": "wrn40_2-wrn16_2", "VGG13 to VGG8": "vgg13-vgg8", "ResNet50 to VGG8": "res50-vgg8",
    "ResNet32x4 to ResNet8x4": "res32x4-res8x4", "ResNet50 to MobileNetV2": "res50-mnv2",
}  # fmt: skip
SIX_PAIRS = {
    "ResNet56 to ResNet20": "res56-res20", "ResNet32x4 to ResNet8x4": "res32x4-res8x4",
    "WRN-40-2 to WRN-40-1": "wrn40_2-wrn40_1", "ResNet50 to MobileNetV2": "res50-mnv2",
    "ResNet32x4 to ShuffleNetV1": "res32x4-shufv1", "ResNet32x4 to ShuffleNetV2": "res32x4-shufv2",
}  # fmt: skip
ROWS = {
    "pefd-table1": {"student alone": "student", "no projector": "q0", "1 projector": "q1"}
    | {f"{count} projectors": f"q{count}" for count in (2, 3, 4)},
    "pefd-table2": {"2 layers": "2mlp", "3 layers": "3mlp", "4 layers": "4mlp"},
    "pefd-table3": {"2x2-MLP": "2x2mlp", "2x3-MLP": "2x3mlp"},
    "pefd-table5": {"student alone": "student", "KD": "kd", "CRD": "crd", "SRRL": "srrl", "PEFD": "pefd"},
    "pefd-table6": {"ReLU": "relu", "GELU": "gelu", "none": "none"},
    "kdpp": {"KD++": "kdpp", "DIST++": "distpp", "DKD++": "dkdpp", "ReviewKD++": "reviewkdpp"},
}

# Of the rows without ++, which no recipe file has: DKD's beta, ReviewKD's weight, then the numbers as the authors of
# KD++ quote them for KD, DIST, DKD and ReviewKD, and RepDistiller's of the student alone.
WITHOUT = {
    "ResNet56 to ResNet20": (2, 0.6, 70.66, 71.78, 71.97, 71.89, 69.06),
    "WRN-40-2 to WRN-40-1": (6, 5, 73.54, 74.42, 74.81, 75.09, 71.98),
    "ResNet32x4 to ResNet8x4": (8, 5, 73.33, 75.79, 75.44, 75.63, 72.50),
    "ResNet50 to MobileNetV2": (8, 5, 67.65, 69.17, 70.35, 69.89, 64.60),
    "ResNet32x4 to ShuffleNetV1": (8, 5, 74.07, 75.23, 76.45, 77.45, 70.50),
    "ResNet32x4 to ShuffleNetV2": (8, 8, 74.45, 76.08, 77.07, 77.78, 71.82),
}
# Minutes of one core, as the head comments count them.
RUN, TEACHER, STORE = 3.5, 17, 2.5


@functools.cache
def planned(name: str) -> Plan:
    return plan_study(FILES[name], load_study(FILES[name]), ["data.path=cifar100"])


def recipe_file(study: str, levels: dict[str, str]) -> Path | None:
    """The shipped recipe of a cell, by what its levels are called; None where none ships."""
    pair, method = levels["pair"], levels["method"]
    if study.startswith("kdpp"):
        short = ROWS["kdpp"].get(method)
        return ROOT / f"recipes/kdpp/cifar100/{SIX_PAIRS[pair]}-{short}.yaml" if short else None
    names = FIVE_PAIRS if study == "pefd-table5" else TWO_PAIRS
    table, short = study.removeprefix("pefd-"), ROWS[study].get(method)
    if short is None:  # a row of table 1 that stands beside another table's
        table, short = "table1", {"student alone": "student", "1 layer": "q1"}[method]
    return ROOT / f"recipes/pefd/{table}/{names[pair]}-{short}.yaml"


def terms(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """An objective with everything said that is left to defaults."""
    said = {name: value if isinstance(value, dict) else {"weight": value} for name, value in recipe.objective.items()}
    return {name: {"warmup": 0, **hyper_parameters(name), **value} for name, value in said.items()}


def whole(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what a study says for itself: folder, seed, reports, the data's place, which teacher."""
    plain = recipe.model_dump(exclude={"run": True, "seed": True, "log": {"report"}, "data": {"path"}})
    plain["teacher"] = plain["teacher"] and {k: v for k, v in plain["teacher"].items() if k not in ("weights", "model")}
    return plain | {"objective": terms(recipe)}


def teacher_of(plan: Plan, cell: Cell) -> str | None:
    """The network that teaches a cell."""
    taught = plan.jobs[cell.job].recipe.teacher
    if taught is None:
        return None
    return next(str(job.recipe.student.model) for job in plan.jobs.values() if str(job.folder) == taught.weights)


def published(name: str) -> dict[str, dict[str, float]]:
    paper = load_study(FILES[name]).paper
    assert paper is not None
    return paper.values


@pytest.mark.parametrize("name", TABLES)
def test_the_cells_are_the_shipped_recipes(name: str):
    plan = planned(name)
    compared = 0
    for cell in plan.cells:
        path = recipe_file(name, dict(cell.levels))
        if path is None:
            continue
        shipped = load_recipe(path)
        assert whole(plan.jobs[cell.job].recipe) == whole(shipped), f"{cell.levels} and {path}"
        assert teacher_of(plan, cell) == (shipped.teacher and shipped.teacher.model), cell.levels
        compared += 1
    assert compared >= 3 * 4


def test_the_papers_tables_are_there_whole():
    """Every recipe file of the tables is a cell of a study, so no row and no pair was left out."""
    found = {recipe_file(name, dict(cell.levels)) for name in TABLES for cell in planned(name).cells}
    tables = [ROOT / "recipes" / "pefd" / f"table{number}" for number in (1, 2, 3, 5, 6)]
    expected = {path for folder in [*tables, ROOT / "recipes/kdpp/cifar100"] for path in folder.glob("*.yaml")}
    assert found - {None} == expected
    assert len(expected) == 12 + 6 + 4 + 25 + 6 + 24


@pytest.mark.parametrize("name", TABLES)
def test_the_published_numbers_are_those_of_the_recipes_heads(name: str):
    values, compared = published(name), 0
    plan = planned(name)
    assert {cell.levels["pair"] for cell in plan.cells} == set(values)
    for cell in plan.cells:
        pair, method = cell.levels["pair"], cell.levels["method"]
        path = recipe_file(name, dict(cell.levels))
        if path is not None:
            (number,) = re.findall(r"Published: ([\d.]+) %", path.read_text(encoding="utf-8"))
        else:
            rows = ("KD", "DIST", "DKD", "ReviewKD", "student alone")
            number = WITHOUT[pair][2 + rows.index(method)]
        assert values[pair][method] == float(number), (pair, method)
        compared += 1
    assert compared == len(plan.cells)


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("kdpp")])
def test_the_rows_without_nd_have_their_authors_weights(name: str):
    plan = planned(name)
    for cell in plan.cells:
        beta, weight = WITHOUT[cell.levels["pair"]][:2]
        expected = {
            "student alone": {"ce": 1},
            "KD": {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}},
            "DIST": {"ce": 1, "dist": {"weight": 2, "temperature": 4}},
            "DKD": {"ce": 1, "dkd": {"weight": 1, "warmup": 20, "alpha": 1, "beta": beta, "temperature": 4}},
            "ReviewKD": {"ce": 1, "reviewkd": {"weight": weight, "warmup": 20}},
        }.get(cell.levels["method"])
        if expected is not None:
            assert plan.jobs[cell.job].recipe.objective == expected


@pytest.mark.parametrize("name", [*TABLES, *CPU])
def test_methods_of_a_pair_differ_in_their_objective_alone(name: str):
    plan = planned(name)
    for pair in {cell.levels["pair"] for cell in plan.cells}:
        seen = []
        for cell in plan.cells:
            if cell.levels["pair"] == pair:
                fields = whole(plan.jobs[cell.job].recipe)
                seen.append({key: value for key, value in fields.items() if key not in ("objective", "teacher")})
        assert all(fields == seen[0] for fields in seen)


def test_studies_of_one_pool_share_teachers_and_runs():
    """A recipe written in two ways would be run twice."""
    jobs = {name: planned(name).jobs.values() for name in [*TABLES, *CPU]}
    folders = {name: {job.folder.name.rpartition("-")[2] for job in of} for name, of in jobs.items()}  # their hashes
    for first, second, shared in [
        ("pefd-table1", "pefd-table2", 2 + 12), ("pefd-table1", "pefd-table3", 2 + 12),
        ("pefd-table1", "pefd-table5", 2 + 12), ("pefd-table1", "pefd-table6", 2 + 12),
        ("pefd-table5", "kdpp-cifar100", 3), ("pefd-table1", "kdpp-cifar100", 1),
        ("pefd-table1-cpu", "pefd-table2-cpu", 2 + 6), ("pefd-table1-cpu", "pefd-table3-cpu", 2 + 6),
        ("pefd-table1-cpu", "pefd-table5-cpu", 2 + 6), ("pefd-table1-cpu", "pefd-table6-cpu", 2 + 6),
        ("pefd-table5-cpu", "kdpp-cifar100-cpu", 2 + 6),
    ]:  # fmt: skip
        assert len(folders[first] & folders[second]) == shared, (first, second)


@pytest.mark.parametrize("name", CPU)
def test_the_small_ones_end_within_the_hour_on_two_cores(name: str):
    """By the minutes that their heads count with, which the measured studies of tables 1 and 5 gave."""
    plan = planned(name)
    head = " ".join(line.removeprefix("#").strip() for line in FILES[name].read_text(encoding="utf-8").splitlines())
    runs = [job for job in plan.jobs.values() if job.kind == "run" and "runs" in job.folder.parts[-2]]
    assert len(runs) == len(plan.cells)
    assert sum(job.kind == "store" for job in plan.jobs.values()) == 1, "a run that no store serves is twice as dear"
    taught = [job for job in runs if job.recipe.teacher is not None]
    assert all(job.recipe.teacher.store for job in taught)
    minutes = RUN * len(runs) + TEACHER + STORE
    said = re.search(r"Alone: (\d+) runs of 3.5, the teacher 17 and its store 2.5\D*, (\d+) core-minutes", head)
    assert said, "the head comment does the sum"
    assert int(said[1]) == len(runs)
    assert minutes - 0.5 <= int(said[2]) <= minutes + 3
    assert minutes <= 100


@pytest.mark.parametrize(
    ("small", "large", "pair"),
    [(f"pefd-table{n}-cpu", f"pefd-table{n}", "ResNet32x4 to ResNet8x4") for n in (1, 2, 3, 5, 6)],
)
def test_the_small_ones_show_a_pair_of_the_paper_and_say_that_it_is_another(small: str, large: str, pair: str):
    paper = load_study(FILES[small]).paper
    ours, theirs = published(small)["resnet20 to resnet8"], published(large)[pair]
    assert ours == theirs
    assert paper is not None
    assert f"The paper's pair is another: {pair}, 240 epochs" in paper.note


def test_the_small_kdpp_table_shows_resnet56_to_resnet20():
    paper = load_study(FILES["kdpp-cifar100-cpu"]).paper
    name = next(name for name in TABLES if name.startswith("kdpp") and "ResNet56 to ResNet20" in published(name))
    theirs = {row: top1 for row, top1 in published(name)["ResNet56 to ResNet20"].items() if "ReviewKD" not in row}
    assert published("kdpp-cifar100-cpu")["resnet20 to resnet8"] == theirs
    assert paper is not None
    assert "The paper's pair is another: ResNet56 to ResNet20, 240 epochs" in paper.note


@pytest.mark.parametrize("name", FILES)
def test_the_head_has_the_command_of_its_own_file(name: str):
    head = FILES[name].read_text(encoding="utf-8").split("\n\n")[0]
    commands = re.findall(r"^#   potstill study (\S+)", head, flags=re.MULTILINE)
    assert commands
    assert set(commands) == {f"studies/{name}.yaml"}
    for override in re.findall(r"^#       study\.(\S+)=", head, flags=re.MULTILINE):
        teacher = override.removeprefix("teachers.")
        assert teacher in load_study(FILES[name]).teachers


def test_a_teacher_of_ones_own_takes_the_place_of_one_to_train(tmp_path: Path):
    given = "teachers.resnet32x4={weights: runs/large, model: resnet32x4}"
    path = FILES["pefd-table1"]
    plan = plan_study(path, load_study(path, overrides=[given]), ["data.path=cifar100"])
    trained = [job.recipe.student.model for job in plan.jobs.values() if job.folder.parent.name == "teachers"]
    assert trained == ["cifar/vgg13"]
    taught = {job.recipe.teacher.weights for job in plan.jobs.values() if job.recipe.teacher is not None}
    assert "runs/large" in taught


def test_the_study_of_the_digits_gives_its_table_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the shipped grid, on few images and for an epoch."""
    monkeypatch.chdir(tmp_path)
    small = [
        "epochs=1",
        "data.val_fraction=0.95",
        "study.teachers.wrn_16_2={student.model: resnet8}",
        "study.seeds=[1]",
    ]
    result = CliRunner().invoke(app, ["study", str(FILES["digits"]), *small, "run=study"], prog_name="potstill")
    assert result.exit_code == 0, result.output
    table = read_record(tmp_path / "study").table
    assert [entry.levels["method"] for entry in table.entries] == list(load_study(FILES["digits"]).grid["method"])
    assert all(entry.last is not None and entry.last.count == 1 for entry in table.entries)
    assert (tmp_path / "study" / "report.html").exists()


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_document_has_every_key_of_a_study_with_its_default():
    text = DOCUMENT.read_text(encoding="utf-8")
    table = {row[0].strip("`"): row[1] for row in rows(text) if re.fullmatch(r"`\w+`", row[0])}
    assert list(table) == list(StudyFile.model_fields)
    for name, field in StudyFile.model_fields.items():
        cell = yaml.safe_load(table[name].strip("`")) if table[name] != "needed" else "needed"
        default = field.get_default(call_default_factory=True) if not field.is_required() else "needed"
        expected = list(default) if isinstance(default, tuple) else None if default == "" else default
        assert (None if cell == "none" else cell) == expected, name


def test_the_document_names_every_shipped_study():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert set(re.findall(r"studies/([\w-]+)\.yaml\)", text)) == set(FILES)


def test_the_studies_of_the_document_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    blocks = [body for kind, body in FENCE.findall(DOCUMENT.read_text(encoding="utf-8")) if kind == "yaml"]
    whole_files = [body for body in blocks if body.startswith("# ")]
    assert len(whole_files) >= 2
    for body in whole_files:
        (path := tmp_path / body.split()[1]).write_text(body, encoding="utf-8")
        assert plan_study(path, load_study(path), []).jobs
    for body in blocks:  # a fragment: its keys are a study's
        path.write_text(body, encoding="utf-8")
        assert set(read_yaml(path)) <= set(StudyFile.model_fields), body
