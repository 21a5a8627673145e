"""Every exported file answers as the student does, or is not there."""

import errno
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.errors import NetworkError, PotstillError, RunError
from potstill.export import FORMATS, TOLERANCE, export
from potstill.export.student import batch_axis
from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard
from potstill.networks.ship import load_student, ship_student

SIZE = (3, 16, 16)
CARD = NetworkCard("resnet8", 4, (0.5, 0.4, 0.3), (0.2, 0.2, 0.25), SIZE, classes=("a", "b", "c", "d"))


def make_run(folder: Path, card: NetworkCard = CARD) -> Path:
    torch.manual_seed(0)
    tapped = build_network(card.model, classes=card.num_classes, input_size=SIZE)
    with torch.no_grad():
        tapped.train()(torch.randn(8, *SIZE))  # moves the statistics of the batch norms off their start
    ship_student(folder, tapped, card)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run):
    """All formats, exported once while everything is logged; and what was logged."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        return export(run), records
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits(run, images) -> Tensor:
    with torch.no_grad():
        return load_student(run).network(images)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_files_and_nothing_besides(run, exported):
    files, _ = exported
    assert [(one.format, one.path) for one in files] == [
        ("safetensors", run / "export" / "student.safetensors"),
        ("onnx", run / "export" / "student.onnx"),
        ("torch", run / "export" / "student.pt2"),
    ]
    assert all(0 <= one.max_difference <= TOLERANCE for one in files)
    assert names(run / "export") == [
        "student.json",
        "student.onnx",
        "student.onnx.json",
        "student.pt2",
        "student.pt2.json",
        "student.safetensors",
        "student_network/__init__.py",
        "student_network/base.py",
        "student_network/resnet.py",
    ]
    assert not [path for path in (run / "export").iterdir() if path.name.startswith(".")]


def test_the_weights_are_the_runs(run, exported):
    for name in ("student.safetensors", "student.json"):
        assert (run / "export" / name).read_bytes() == (run / name).read_bytes()


def test_onnx_takes_any_batch_of_normalised_images(run, exported, images, logits):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = str(run / "export" / "student.onnx")
    graph = onnx.load(path).graph
    dimensions = graph.input[0].type.tensor_type.shape.dim
    assert (graph.input[0].name, graph.output[0].name) == ("images", "logits")
    assert (dimensions[0].dim_param, [d.dim_value for d in dimensions[1:]]) == ("batch", [3, 16, 16])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        (got,) = session.run(None, {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), logits[: len(batch)], rtol=0, atol=1e-5)


def test_torch_takes_any_batch_of_normalised_images(run, exported, images, logits):
    network = torch.export.load(run / "export" / "student.pt2").module()
    for batch in (images, images[:1]):
        torch.testing.assert_close(network(batch), logits[: len(batch)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_the_json_beside_a_graph_says_what_it_takes(run, exported, name):
    content = json.loads((run / "export" / f"{FORMATS[name].file}.json").read_text())
    assert content["format"] == name
    assert content["input"] == {
        "name": "images",
        "dtype": "float32",
        "shape": ["batch", 3, 16, 16],
        "values": "RGB pixels in 0..1, normalised: (pixels - mean) / std",
    }
    assert content["output"] == {"name": "logits", "dtype": "float32", "shape": ["batch", 4]}
    assert (content["mean"], content["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.25])
    assert content["normalises"] is False
    assert content["classes"] == ["a", "b", "c", "d"]
    assert content["max_difference"] <= TOLERANCE


def test_no_file_names_places_on_this_machine(run, exported):
    places = [b"site-packages", str(run).encode(), str(Path(__file__).parent.parent).encode()]
    for path in (run / "export").iterdir():
        if path.is_file():
            assert not any(place in path.read_bytes() for place in places), path.name


def test_the_exporters_are_quiet(exported, run, tmp_path, capfd):
    assert [record.name for record in exported[1] if not record.name.startswith("potstill")] == []
    export(run, "torch", tmp_path)
    assert capfd.readouterr() == ("", "")


def test_raw_graphs_take_pixels_and_normalise_them(run, tmp_path):
    (file,) = export(run, ["torch"], tmp_path / "new" / "place", raw=True)
    pixels = torch.rand(4, *SIZE)
    mean, std = torch.tensor(CARD.mean).view(3, 1, 1), torch.tensor(CARD.std).view(3, 1, 1)
    with torch.no_grad():
        expected = load_student(run).network((pixels - mean) / std)
    network = torch.export.load(file.path).module()
    torch.testing.assert_close(network(pixels), expected, rtol=0, atol=1e-5)
    content = json.loads((tmp_path / "new" / "place" / "student.pt2.json").read_text())
    assert (content["input"]["values"], content["normalises"]) == ("RGB pixels in 0..1", True)


def test_raw_does_nothing_to_weights_and_says_so(run, tmp_path):
    with pytest.raises(PotstillError, match="raw is for formats that hold a graph, and safetensors holds weights only"):
        export(run, ["safetensors"], tmp_path, raw=True)


def test_a_student_without_a_classifier_returns_its_embedding(tmp_path):
    run = make_run(tmp_path / "run", replace(CARD, num_classes=0, classes=None))
    (file,) = export(run, ["torch"], raw=True)
    content = json.loads(file.path.with_name("student.pt2.json").read_text())
    assert content["output"] == {"name": "embedding", "dtype": "float32", "shape": ["batch", 64]}
    assert torch.export.load(file.path).module()(torch.rand(3, *SIZE)).shape == (3, 64)


FORMATS_BEFORE = dict(FORMATS)


def slightly_wrong_weights(student, folder):
    FORMATS_BEFORE["safetensors"].write(student, folder)
    state = load_file(folder / "student.safetensors")
    state["fc.bias"][2] += 0.01
    save_file(state, folder / "student.safetensors")


def slightly_wrong_graph(student, folder):
    network = load_student_like(student)
    network.fc.bias.data[2] += 0.01
    graph = torch.export.export(network, (torch.rand(2, *SIZE),), dynamic_shapes=batch_axis())
    torch.export.save(graph, folder / "student.pt2")


def graph_of_two_images(student, folder):
    torch.export.save(torch.export.export(load_student_like(student), (torch.rand(2, *SIZE),)), folder / "student.pt2")


def cut_short(student, folder):
    FORMATS_BEFORE["torch"].write(student, folder)
    content = (folder / "student.pt2").read_bytes()
    (folder / "student.pt2").write_bytes(content[: len(content) // 2])


def load_student_like(student) -> nn.Module:
    network = build_network("resnet8", classes=4, input_size=SIZE).network
    network.load_state_dict(student.tapped.network.state_dict())
    return network.eval()


BROKEN = {
    "weights": ("safetensors", slightly_wrong_weights, r"for 1 images its logits differ from the student's by 0\.0"),
    "graph": ("torch", slightly_wrong_graph, r"for 1 images its logits differ .* of the largest logit, and 0\.0001 is"),
    "batch": ("torch", graph_of_two_images, r"it was written and does not run: "),
    "cut": ("torch", cut_short, r"it was written and does not run: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_does_not_answer_as_the_student_is_removed(run, tmp_path, monkeypatch, case):
    name, write, message = BROKEN[case]
    monkeypatch.setitem(FORMATS, name, replace(FORMATS[name], write=write))
    file = FORMATS[name].file
    with pytest.raises(RunError, match=rf"{file} is not kept: {message}"):
        export(run, [name], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda logits: logits * (1 + 2 * TOLERANCE), "differ from the student's by 0.0002 of the largest logit"),
        (lambda logits: logits * float("nan"), "differ from the student's by nan"),
        (lambda logits: logits[:, :3], r"for 1 images it returns \(1, 3\), the student \(1, 4\)"),
    ],
)
def test_what_counts_as_different(run, tmp_path, monkeypatch, answer, message):
    def read(student, path):
        return lambda images: answer(student.tapped.network(images))

    monkeypatch.setitem(FORMATS, "safetensors", replace(FORMATS["safetensors"], read=read))
    (tmp_path / "student.safetensors").write_text("an earlier export")
    with pytest.raises(RunError, match=message):
        export(run, ["safetensors"], tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
        ("student.safetensors", "an earlier export")
    ]


def test_a_difference_within_the_tolerance_is_reported(run, tmp_path, monkeypatch):
    def read(student, path):
        return lambda images: student.tapped.network(images) * (1 + TOLERANCE / 2)

    monkeypatch.setitem(FORMATS, "safetensors", replace(FORMATS["safetensors"], read=read))
    (file,) = export(run, ["safetensors"], tmp_path)
    assert file.max_difference == pytest.approx(TOLERANCE / 2, rel=0.02)


def test_the_card_is_moved_last(run, tmp_path, monkeypatch):
    """A folder with a card holds a whole student, also where the export was stopped."""
    moved, replace_file = [], os.replace

    def watched(source, target):
        if tmp_path / "out" in (Path(target).parent, Path(target).parent.parent) and ".export-" not in str(target):
            moved.append(Path(target).name)
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", watched)
    export(run, ["safetensors"], tmp_path / "out")
    assert moved == ["student.safetensors", "__init__.py", "base.py", "resnet.py", "student.json"]


def test_an_export_into_the_runs_own_folder_leaves_the_run_whole(tmp_path):
    run = make_run(tmp_path)
    before = {name: (run / name).read_bytes() for name in names(run)}
    export(run, ["safetensors", "safetensors"], run)
    assert {name: (run / name).read_bytes() for name in names(run)} == before


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named_before_anything_is_written(run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"^export to onnx needs {package}, which cannot be imported \(.*\): pip install 'potstill\[export\]'$"
    with pytest.raises(PotstillError, match=message):
        export(run, ["safetensors", "onnx"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (["onxx"], r"unknown export format 'onxx'; expected some of safetensors, onnx, torch\. Did you mean 'onnx'\?"),
        ("tflite", r"unknown export format 'tflite'; expected some of safetensors, onnx, torch\.$"),
        ([], "no format to export to is named; expected some of safetensors, onnx, torch"),
    ],
)
def test_unknown_formats(run, tmp_path, formats, message):
    with pytest.raises(PotstillError, match=message):
        export(run, formats, tmp_path)


def test_a_run_that_has_no_student(tmp_path):
    with pytest.raises(RunError, match="there is no such folder"):
        export(tmp_path / "none")
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    with pytest.raises(RunError, match="is not finished"):
        export(tmp_path)
    assert names(tmp_path) == ["recipe.yaml"]


def test_a_full_disk_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "student.pt2").write_text("an earlier export")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write the exported student into .*: No space left on device"):
        export(run, ["torch"], tmp_path)
    assert names(tmp_path) == ["student.pt2"]
    assert (tmp_path / "student.pt2").read_text() == "an earlier export"


OWN = """
from torch import nn

class Branching(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(3, num_classes)

    def forward(self, images):
        pooled = self.pool(images).flatten(1)
        return self.fc(-pooled if pooled.sum() > 0 else pooled)

def plain(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "exported_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("exported_networks", None)


def test_a_users_own_network_read_through_hooks(own_code, tmp_path):
    model = "exported_networks:plain"
    run = make_run(tmp_path / "run", replace(CARD, model=model))
    assert [one.format for one in export(run, ["safetensors", "torch"], model=model)] == ["safetensors", "torch"]
    with pytest.raises(NetworkError, match="a file may not choose"):
        export(run, ["safetensors"])


def test_a_network_that_cannot_be_traced_is_named_in_one_line(own_code, tmp_path, capfd):
    model = "exported_networks:Branching"
    run = make_run(tmp_path / "run", replace(CARD, model=model))
    with pytest.raises(NetworkError, match=r"'exported_networks:Branching' cannot be exported to torch: .* traceable"):
        export(run, ["torch"], model=model)
    assert capfd.readouterr() == ("", "")
    assert names(run / "export") == []
