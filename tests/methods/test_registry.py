"""Methods by name, by dotted path and from installed packages; every way to get one wrong."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from potstill.errors import NetworkError, PotstillError, RecipeError
from potstill.methods import CE, KD, PEFD, Method, Needs, Setting, build_method, check_hyper, hyper_parameters, methods
from potstill.methods import registry as module
from potstill.methods.registry import find_method, register
from potstill.networks.features import FeatureSpec

SETTING = Setting(FeatureSpec(classes=10, embedding_dim=4), FeatureSpec(classes=10, embedding_dim=6))

USERS = """
from typing import TYPE_CHECKING
from potstill.methods import Method, Needs

if TYPE_CHECKING:
    from nowhere import Thing

class Pull(Method):
    needs = Needs(student=frozenset({"embedding"}))
    def __init__(self, setting, *, power: int, scale: float = 2.0):
        super().__init__()
        self.power = power
    def forward(self, student, teacher, batch):
        return student.embedding.pow(self.power).mean()

class Any(Pull):
    def __init__(self, setting, *, size: int = 1, **rest):
        super().__init__(setting, power=2)
        self.rest = rest

class Unresolved(Pull):
    def __init__(self, setting, *, thing: "Thing" = None):
        super().__init__(setting, power=2)

class Abstract(Method):
    needs = Needs()
    def __init__(self, setting):
        super().__init__()

class Needless(Method):
    def __init__(self, setting):
        super().__init__()
    def forward(self, student, teacher, batch):
        return student.embedding.sum()

class Bare(Needless):
    needs = Needs()
    def __init__(self):
        super().__init__(None)

number = 3
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the user's own, importable as ``users_losses``, with names registered in a copy of the registry."""
    (tmp_path / "users_losses.py").write_text(USERS)
    (tmp_path / "users_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "_METHODS", dict(module._METHODS))
    yield
    for name in ("users_losses", "users_broken"):
        sys.modules.pop(name, None)


def announce(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = [EntryPoint(name, value, "potstill.methods") for name, value in points.items()]
    monkeypatch.setattr(module, "entry_points", lambda group: found if group == "potstill.methods" else [])


def test_a_method_in_the_working_directory_is_found(tmp_path, monkeypatch):
    """As a network's factory is."""
    (tmp_path / "losses_here.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    try:
        assert find_method("losses_here:Pull").__module__ == "losses_here"
    finally:
        sys.modules.pop("losses_here", None)


def test_the_names():
    found = methods()
    assert {"ce": CE, "kd": KD, "pefd": PEFD}.items() <= found.items()
    assert list(found) == sorted(found)


def test_build_passes_the_hyper_parameters_on():
    method = build_method("pefd", SETTING, projectors=2, activation="gelu")
    assert isinstance(method, PEFD)
    assert method.projector.projectors == 2
    assert method.projector.activation == "gelu"
    assert build_method("kd", SETTING, temperature=2).temperature == 2


def test_hyper_parameters_are_those_of_the_signature():
    assert hyper_parameters("pefd") == {
        "projectors": 3,
        "depth": 1,
        "width": 1,
        "activation": "relu",
        "bias": True,
        "init": "default",
        "constraint": None,
        "side": "student",
        "diversity": 0.0,
    }
    assert hyper_parameters("ce") == {"label_smoothing": 0.0}


def test_an_unknown_name_gets_the_nearest_and_the_list():
    message = "There is no method 'pfed'. Did you mean 'pefd'[?] There are ab, .*ce, .*kd, .*pefd.*package.module:Class"
    with pytest.raises(RecipeError, match=message):
        build_method("pfed", SETTING)
    with pytest.raises(RecipeError) as caught:
        find_method("pfed")
    assert check_hyper("pfed", {}) == [str(caught.value)]


def test_all_mistakes_are_told_at_once():
    hyper = {"projectrs": 2, "depth": 1.5, "activation": "silu", "bias": 1, "width": 2}
    problems = check_hyper("pefd", hyper)
    assert problems[0].startswith("pefd has no hyper-parameter 'projectrs'. Did you mean 'projectors'? It takes proj")
    assert problems[0].endswith("init='default', constraint=None, side='student', diversity=0.0.")
    assert problems[1:] == [
        "depth of pefd is 1.5; expected a whole number.",
        "activation of pefd is 'silu'; expected 'relu', 'gelu' or 'none'.",
        "bias of pefd is 1; expected true or false.",
    ]
    with pytest.raises(RecipeError) as caught:
        build_method("pefd", SETTING, **hyper)
    assert str(caught.value) == " ".join(problems)


def test_nothing_wrong_is_an_empty_list():
    assert check_hyper("pefd", {"projectors": 1, "activation": "none"}) == []
    assert check_hyper("kd", {"temperature": 4}) == []


def test_mistakes_that_need_the_networks_are_told_when_it_is_built():
    assert check_hyper("kd", {}) == []
    with pytest.raises(NetworkError, match="student has 10 classes and the teacher 5"):
        build_method("kd", Setting(FeatureSpec(10, 4), FeatureSpec(5, 4)))


def test_a_class_of_the_users_own(users):
    method = build_method("users_losses:Pull", SETTING, power=3)
    assert method.power == 3
    assert hyper_parameters("users_losses:Pull") == {"power": ..., "scale": 2.0}
    assert check_hyper("users_losses:Pull", {"scale": "big"}) == [
        "users_losses:Pull needs the hyper-parameter 'power': a whole number.",
        "scale of users_losses:Pull is 'big'; expected a number.",
    ]
    assert "It takes power=(required), scale=2.0." in check_hyper("users_losses:Pull", {"power": 1, "x": 1})[0]


def test_a_class_that_takes_anything(users):
    assert build_method("users_losses:Any", SETTING, a=1, b="x").rest == {"a": 1, "b": "x"}
    assert check_hyper("users_losses:Any", {"size": "big", "a": 1}) == [
        "size of users_losses:Any is 'big'; expected a whole number."
    ]


def test_annotations_that_only_a_type_checker_resolves_are_taken_on_trust(users):
    assert check_hyper("users_losses:Unresolved", {"thing": 3}) == []
    assert len(check_hyper("users_losses:Unresolved", {"thin": 3})) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("users_lossses:Pull", "The module 'users_lossses' of the method .* cannot be imported: No module named"),
        ("users_broken:Pull", "'users_broken' .* cannot be imported: division by zero"),
        ("users_losses:Pul", "has no 'Pul'. Did you mean 'Pull'"),
        ("users_losses:number", "'users_losses:number' is no method: expected a subclass"),
        ("users_losses:Needs", "'users_losses:Needs' is no method: expected a subclass"),
        ("users_losses:Abstract", "computes no loss: write its forward"),
        ("users_losses:Needless", "does not say what it reads: set needs"),
        ("users_losses:Bare", r"must be __init__\(self, setting, \*, ...\)"),
        (":Pull", "cannot be imported"),
    ],
)
def test_paths_that_lead_to_no_method(users, path: str, message: str):
    with pytest.raises(RecipeError, match=message):
        build_method(path, SETTING)


def test_a_method_of_an_installed_package(users, monkeypatch):
    announce(monkeypatch, pull="users_losses:Pull")
    assert build_method("pull", SETTING, power=2).power == 2
    assert methods()["pull"].__name__ == "Pull"
    assert methods()["pefd"] is PEFD


def test_installed_packages_that_fail_are_named(users, monkeypatch):
    announce(monkeypatch, broken="users_broken:Pull")
    with pytest.raises(RecipeError, match=r"'broken' \(users_broken:Pull\) of an installed package fails: division"):
        build_method("broken", SETTING)
    assert build_method("pefd", SETTING).needs.teacher == {"embedding"}  # one broken package breaks no other method
    announce(monkeypatch, ce="users_losses:Pull")
    with pytest.raises(RecipeError, match=r"'ce' is both potstill.methods\.ce:CE and users_losses:Pull; rename one"):
        methods()


def test_a_name_is_given_once(users):
    class Other(Method):
        needs = Needs()

        def __init__(self, setting: Setting) -> None:
            super().__init__()

        def forward(self, student, teacher, batch):
            return student.embedding.sum()

    assert register("other")(Other) is Other
    assert methods()["other"] is Other
    with pytest.raises(PotstillError, match=r"'ce' is taken by potstill.methods\.ce:CE; give .*Other another"):
        register("ce")(Other)
    for name in ("total", "weight", "a.b", ""):
        with pytest.raises(PotstillError, match="A method cannot be named"):
            register(name)(Other)
