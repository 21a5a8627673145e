import json

import pytest

from potstill.errors import NetworkError, RunError
from potstill.networks.card import NetworkCard, read_card
from potstill.networks.tap import Taps

CARD = NetworkCard(
    model="resnet8x4",
    num_classes=2,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    input_size=(3, 32, 32),
    args={"drop_rate": 0.1},
    classes=("kātu", "dog"),
    taps=Taps(classifier="fc", maps=("layer1", "layer2")),
)


def test_a_card_comes_back_as_it_was(tmp_path):
    path = CARD.write(tmp_path)
    assert path == tmp_path / "student.json"
    assert read_card(tmp_path) == CARD
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["classes"] == ["kātu", "dog"]
    assert content["taps"] == {"classifier": "fc", "embedding": None, "maps": ["layer1", "layer2"]}


def test_what_may_be_left_out(tmp_path):
    (tmp_path / "student.json").write_text(
        '{"model": "a", "num_classes": 0, "mean": [0.5], "std": [1], "input_size": [1, 8, 8]}'
    )
    card = read_card(tmp_path)
    assert (card.args, card.classes, card.taps, card.mean) == ({}, None, None, (0.5,))


WRONG = {
    "model": (5, "model is 5; expected a model's name"),
    "num_classes": (True, "num_classes is True; expected a whole number"),
    "mean": ([0.5, 0.5], r"mean is \(0.5, 0.5\); expected 3 finite numbers"),
    "std": ([0.5, 0, 0.5], r"std is \(0.5, 0, 0.5\); expected 3 positive numbers"),
    "input_size": ([3, 32], r"input_size is \(3, 32\); expected three numbers"),
    "args": ([], "args is .*; expected arguments by name"),
    "classes": (["cat"], r"classes is .*; expected null or the names of all 2 classes"),
    "taps": ({"map": ["layer1"]}, "taps are .*; expected layer names under classifier, embedding, maps"),
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_values_are_named_with_their_file(tmp_path, key):
    value, message = WRONG[key]
    path = CARD.write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(NetworkError, match=rf"student\.json: network card: {message}"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"student\.json is no valid JSON"),
        ('{"model": NaN}', "is no valid JSON: NaN is no JSON number"),
        ("[]", "holds a list; expected an object"),
        ('{"modle": "a"}', r"has an unknown key 'modle'; .* Did you mean 'model'\?"),
        ('{"model": "a", "std": [1]}', "lacks num_classes, mean, input_size"),
    ],
)
def test_files_that_are_no_card(tmp_path, content, message):
    (tmp_path / "student.json").write_text(content)
    with pytest.raises(NetworkError, match=message):
        read_card(tmp_path)


def test_no_card_and_no_way_to_write_one(tmp_path):
    with pytest.raises(NetworkError, match=r"is no run's folder: it has no student\.json"):
        read_card(tmp_path)
    with pytest.raises(RunError, match=r"student\.json could not be written: No such file"):
        CARD.write(tmp_path / "none")
    card = NetworkCard("a", 0, (0.5,), (1.0,), (1, 8, 8), args={"x": float("inf")})
    with pytest.raises(NetworkError, match=r"args .* cannot be written as JSON"):
        card.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_runs_and_a_run_that_is_not_finished(tmp_path):
    for name in ("teacher", "student"):
        (tmp_path / "demo" / name).mkdir(parents=True)
        CARD.write(tmp_path / "demo" / name)
    one, other = (str(tmp_path / "demo" / name) for name in ("student", "teacher"))
    with pytest.raises(NetworkError, match=f"there are runs in it, so name one of them: {one}, {other}$"):
        read_card(tmp_path / "demo")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").touch()
    with pytest.raises(
        NetworkError, match=r"the run in .*begun is not finished: it has no student\.json yet\. Give its"
    ):
        read_card(tmp_path / "begun")
