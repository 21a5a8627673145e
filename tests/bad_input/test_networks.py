"""Models, layers, methods and weights that there are not, or that do not fit."""

import pytest
import torch

KD = "objective={ce: 0.1, kd: {weight: 0.9, temperature: 4}}"


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        (["student.model=resnet8y4"], ["unknown model 'resnet8y4'", "Did you mean 'resnet8x4'?", "`potstill models`"]),
        (["student.model=cifar/resnt8"], ["unknown model 'cifar/resnt8'; the zoo has ", "Did you mean 'resnet8'?"]),
        (["student.model=tim/resnet18"], ["got the origin 'tim'", "Did you mean 'timm'?"]),
        (["student.model=torchvision/resnet19"], ["torchvision has no model 'resnet19'", "Did you mean 'resnet18'?"]),
        (["student.model=':'"], ["unknown model ':': a factory of your own is named package.module:factory"]),
        (["student.model=no.such:factory"], ["cannot import 'no.such' for model 'no.such:factory'"]),
        (["student.model=collections:OrderedDct"], ["has no factory 'OrderedDct'", "Did you mean 'OrderedDict'?"]),
        (["student.model=collections:Counter"], ["returns Counter; expected an nn.Module"]),
        (["student.args={depth: 9}"], ["cannot build 'resnet8' with args {'depth': 9}"]),
        (["student.model=null"], ["student.model is missing: name the network to train"]),
        (["student.weights=absent.safetensors"], ["no weights at absent.safetensors: there is no such file"]),
        (["student.model=torchvision/squeezenet1_1"], ["SqueezeNet does not run on images of (3, 8, 8)"]),
        (["objective={ce: 1, pfed: 25}"], ["no method 'pfed'. Did you mean 'pefd'? There are ab, afd, arcface, at,"]),
        (["student.model=torchvision/squeezenet1_1", "data.size=32", "student.taps={classifier: clasifier}"],
         ["no layer 'clasifier'", "Did you mean 'classifier'?"]),
        (["student.model=torchvision/squeezenet1_1", "data.size=32", "student.taps={embedding: zzz}"],
         ["no layer 'zzz'", "features, "]),
    ],
)  # fmt: skip
def test_what_there_is_not(refused, quick, digits, tmp_path, monkeypatch, values, messages):
    monkeypatch.chdir(tmp_path)
    said = refused("train", *quick, *digits, "run=run", *values)
    assert all(message in said for message in messages), said
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_without_weights(refused, quick, digits, tmp_path):
    said = refused("distill", *quick, *digits, "teacher.model=resnet14", f"run={tmp_path / 'run'}")
    assert "The teacher has no weights: give teacher.weights=PATH" in said
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_told_by_key(refused, quick, digits, teacher, tmp_path):
    state = torch.load(_plain(teacher(10), tmp_path / "whole.pt"), weights_only=True)
    state["extra.weight"] = state.pop("fc.weight")
    torch.save(state, tmp_path / "odd.pt")
    values = [*quick, *digits, "teacher.model=resnet14", f"run={tmp_path / 'run'}"]
    said = refused("distill", *values, f"teacher.weights={tmp_path / 'odd.pt'}")
    assert "1 missing (fc.weight); 1 unexpected (extra.weight)" in said
    said = refused("distill", *values, "teacher.model=resnet20", f"teacher.weights={tmp_path / 'whole.pt'}")
    assert "'resnet20'" in said
    assert "missing (" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.safetensors", slice(0, 1000), "is no readable safetensors file"),
        ("short.pt", slice(0, 1000), "is no readable checkpoint"),
        ("empty.pt", slice(0, 0), "is no readable checkpoint"),
        ("weights.onnx", slice(None), "end in '.onnx'; expected .safetensors or one of .pt"),
        ("", slice(None), "student.json"),
    ],
)
def test_weights_that_cannot_be_read(refused, quick, digits, teacher, tmp_path, name, content, message):
    source = teacher(10) / "student.safetensors"
    if name.endswith(".pt"):
        source = _plain(teacher(10), tmp_path / "whole.pt")
    if name:
        (tmp_path / name).write_bytes(source.read_bytes()[content])
    values = [*quick, *digits, "teacher.model=resnet14", f"teacher.weights={tmp_path / name}"]
    assert message in refused("distill", *values, f"run={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("classes", [3, 0])
def test_logits_of_other_classes_cannot_be_compared(refused, quick, digits, teacher, tmp_path, classes):
    values = [f"teacher.weights={teacher(classes)}", "teacher.model=resnet14", f"run={tmp_path / 'run'}"]
    said = refused("distill", *quick, *digits, *values, KD)
    assert f"kd compares logits, but the student has 10 classes and the teacher {classes}." in said
    assert "or a method that compares embeddings, such as pefd" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [3, 0])
def test_any_teacher_will_do_for_features(trains, quick, digits, teacher, tmp_path, classes):
    values = [f"teacher.weights={teacher(classes)}", "teacher.model=resnet14", f"run={tmp_path / 'run'}"]
    said = trains("distill", *quick, *digits, *values)
    assert (tmp_path / "run" / "student.safetensors").exists()
    row = next(line for line in said.splitlines() if line.split()[:1] == ["teacher"])
    assert "175,258" in row or "174,608" in row or "%" not in row, row


def test_a_teacher_that_nothing_reads(refused, quick, digits, teacher, tmp_path):
    values = [f"teacher.weights={teacher(10)}", "objective={ce: 1}", f"run={tmp_path / 'run'}"]
    assert "There is a teacher, but no method of the objective (ce) reads it." in refused(
        "distill", *quick, *digits, *values
    )
    assert list(tmp_path.iterdir()) == []


def _plain(run, path):
    """A run's weights as torch.save writes them."""
    from safetensors.torch import load_file

    torch.save(load_file(run / "student.safetensors"), path)
    return path


def test_a_teacher_of_as_many_other_classes(refused, trains, draw, quick, tmp_path):
    for data, names in (("one", ("cat", "dog")), ("other", ("bird", "fish"))):
        for name in names:
            draw(tmp_path / data / name, 8)
    values = [value for value in quick if not value.startswith("student.model")]
    trains("train", *quick, f"data.path={tmp_path / 'one'}", f"run={tmp_path / 'teacher'}")
    command = [
        *values,
        "student.model=resnet8",
        f"teacher.weights={tmp_path / 'teacher'}",
        f"data.path={tmp_path / 'other'}",
    ]
    said = refused("distill", *command, "objective={ce: 1, kd: 1}", f"run={tmp_path / 'run'}")
    assert (
        "The teacher's classes are not the data's: it has 'cat' for 'bird', 'dog' for 'fish', but kd compares" in said
    )
    assert not (tmp_path / "run").exists()
    # Features may come from any teacher; what it says of its own classes is no accuracy on these.
    table = trains("distill", *command, f"run={tmp_path / 'run'}")
    (row,) = [line.split() for line in table.splitlines() if line.split()[:1] == ["teacher"]]
    assert row[2:4] == ["-", "-"]
