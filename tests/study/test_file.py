import textwrap
from pathlib import Path

import pytest

from potstill.errors import RecipeError
from potstill.study import StudyFile, load_study

GRID = {"pair": {"a": {}, "b": {}}, "method": {"alone": {}, "kd": {}, "pefd": {}}}


def load(tmp_path: Path, text: str, *overrides: str) -> StudyFile:
    path = tmp_path / "study.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return load_study(path, overrides=overrides)


def mistakes(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_a_list_is_the_levels_of_the_key_that_the_axis_is_called_after(tmp_path: Path):
    file = load(tmp_path, "grid: {optimizer.lr: [0.05, 1e-3], flags: {off: {data.flip: false}}, data.mixup: [0]}")
    assert file.grid["optimizer.lr"] == {"0.05": {"optimizer.lr": 0.05}, "0.001": {"optimizer.lr": 0.001}}
    assert file.grid["flags"] == {"false": {"data.flip": False}}  # YAML reads off as false
    assert file.grid["data.mixup"] == {"0": {"data.mixup": 0}}


def test_levels_of_long_values_keep_apart_names(tmp_path: Path):
    long = ", ".join(f"a{n}: {n}" for n in range(40))
    file = load(tmp_path, f"grid: {{objective: [{{{long}, b: 1}}, {{{long}, b: 2}}]}}")
    assert len(file.grid["objective"]) == 2


def test_a_level_that_says_nothing_is_the_recipe_as_it_is(tmp_path: Path):
    assert load(tmp_path, "grid: {method: {plain: }}").grid == {"method": {"plain": {}}}


def test_levels_of_numbers_are_named_in_skip_and_control_as_they_are_written(tmp_path: Path):
    text = "grid: {epochs: [8, 16], method: {kd: {}, ce: {}}}\nskip: [{epochs: 16, method: kd}]\ncontrol: {epochs: 8}"
    file = load(tmp_path, text)
    assert file.row_axis == "epochs"
    assert [tuple(levels.values()) for levels in file.combinations()] == [("8", "kd"), ("8", "ce"), ("16", "ce")]


def test_rows_are_those_of_the_control_or_of_the_last_axis():
    assert StudyFile(grid=GRID).row_axis == "method"
    assert StudyFile(grid=GRID, control={"pair": "a"}).row_axis == "pair"
    assert StudyFile(grid=GRID, control={"pair": "a"}, rows="method").row_axis == "method"


def test_all_mistakes_are_told_at_once_with_near_names(tmp_path: Path):
    text = """
        titel: Methods
        grid: {method: {kd: 5}}
        seeds: 3
        retries: -1
        """
    told = mistakes(tmp_path, text)
    assert told.startswith("4 mistakes in")
    assert "unknown key 'titel'. Did you mean 'title'?" in told
    assert "grid.method.kd is 5; expected names and values" in told
    assert "seeds is 3; expected a list of whole numbers, like [10, 20, 30]." in told
    assert "retries is -1; expected a number of at least 0." in told


def test_names_that_the_grid_does_not_have_are_told_with_near_ones(tmp_path: Path):
    text = """
        grid: {pair: {a: {}, b: {}}, method: {alone: {}, pefd: {}}}
        control: {methd: alone}
        skip: [{method: pfed}, {}]
        rows: pairs
        seeds: [1, 1]
        """
    told = mistakes(tmp_path, text)
    assert "control names 'methd', which is no axis of the grid. Did you mean 'method'?" in told
    assert "skip names 'pfed', which is no level of method. Did you mean 'pefd'?" in told
    assert "skip has an entry that names nothing" in told
    assert "rows is 'pairs', which is no axis of the grid. Did you mean 'pair'?" in told
    assert "seeds has one twice: [1, 1]." in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: none", "grid"),
        ("grid: {}", "grid needs an axis"),
        ("grid: {method: {}}", "grid needs an axis"),
        ("grid: {method: []}", "grid needs an axis"),
        ("grid: [kd]", "grid is ['kd']; expected names and values"),
        ("grid: {epochs: [8, 8]}", "grid.epochs has the level '8' twice."),
        ("grid: {epochs: {8: {}, '8': {}}}", "grid.epochs has the level '8' twice."),
        ("grid: {a: {x: {}}, b: {y: {}}}\ncontrol: {a: x, b: y}", "control names one level of one axis"),
        ("grid: {a: {x: {}}}\nskip: [{a: x}]", "skip leaves no combination"),
        ("grid: {a: {x: {}, y: {}}}\ncontrol: {a: x}\nskip: [{a: x}]", "skip leaves out the control"),
        ("grid: {a: {x: {}}}\nworkers: 0", "workers is 0; expected a number of at least 1."),
        ("grid: {a: {x: {}}}\non: cluster", "on is 'cluster'; expected 'local' or 'ray'."),
        ("grid: {a: {x: {}}, a: {y: {}}}", "the key a is given twice"),
        ("[]", "holds a list; expected `key: value` lines."),
    ],
)
def test_a_study_file_that_means_nothing_is_refused_with_a_sentence(tmp_path: Path, text: str, expected: str):
    assert expected in mistakes(tmp_path, text)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"There is no study file .*none\.yaml\. See studies/ for some\."):
        load_study(tmp_path / "none.yaml")


def test_what_single_combinations_have_of_their_own_is_of_combinations_that_there_are(tmp_path: Path):
    grid = "grid: {epochs: [8, 16], method: {kd: {}, pefd: {}}}\n"
    file = load(tmp_path, grid + "cells: [{at: {epochs: 8, method: kd}, recipe: {batch_size: 32}}]")
    assert file.cells[0].at == {"epochs": "8", "method": "kd"}
    told = mistakes(tmp_path, grid + "cells: [{at: {epochs: 9}, recipe: {}}, {at: {methode: kd}, recipe: {}}]")
    assert "cells.at names '9', which is no level of epochs." in told
    assert "cells.at names 'methode', which is no axis of the grid. Did you mean 'method'?" in told
    assert "skip leaves out all that cells says of {'epochs': '8'}." in mistakes(
        tmp_path, grid + "skip: [{epochs: 8}]\ncells: [{at: {epochs: 8}, recipe: {}}]"
    )
    assert "cells.0.at" in mistakes(tmp_path, grid + "cells: [{at: {}, recipe: {}}]")


def test_overrides_reach_into_what_the_file_says(tmp_path: Path):
    text = "teachers: {t: {epochs: 10, student.model: resnet20}}\ngrid: {method: {kd: {}}}"
    file = load(tmp_path, text, "seeds=[4]", "teachers.t.epochs=1", "workers=1")
    assert (file.seeds, file.workers) == ((4,), 1)
    assert file.teachers == {"t": {"epochs": 1, "student.model": "resnet20"}}
    whole = load_study(tmp_path / "study.yaml", {"teachers": {"t": {"weights": "runs/t"}}})
    assert whole.teachers == {"t": {"weights": "runs/t"}}


def test_published_numbers_are_of_columns_and_rows_that_there_are(tmp_path: Path):
    grid = "grid: {pair: {large to small: {}}, method: {alone: {}, PEFD: {}}}\n"
    told = mistakes(tmp_path, grid + "paper: {source: P, values: {large to smal: {alone: 1, PFED: 2}}}")
    assert "column 'large to smal', which the study does not have. Did you mean 'large to small'?" in told
    assert "row 'PFED', which is no level of method. Did you mean 'PEFD'?" in told
    assert "They are 'large to small'." in mistakes(tmp_path, grid + "paper: {source: P, values: {x: {alone: 1}}}")
    fine = load(tmp_path, grid + "paper: {source: P, values: {large to small: {alone: 71, PEFD: 74.5}}}")
    assert fine.paper is not None
    assert fine.paper.values == {"large to small": {"alone": 71.0, "PEFD": 74.5}}


def test_published_numbers_of_one_axis_need_no_column(tmp_path: Path):
    file = load(tmp_path, "grid: {epochs: [8, 16]}\npaper: {source: P, values: {8: 70.1, 16: 71}}")
    assert file.paper is not None
    assert file.paper.values == {"": {"8": 70.1, "16": 71.0}}
    assert "expected" in mistakes(tmp_path, "grid: {epochs: [8]}\npaper: {source: P, values: {8: high}}")
