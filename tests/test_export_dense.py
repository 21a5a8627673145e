"""What a run leaves of detectors, networks for segmentation and embedders: weights that load alone, and graphs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.networks.dense import ARGS, DETECTORS, INSIDE, SEGMENTERS, SIZE, build, images, wake
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from potstill.errors import NetworkError, PotstillError, RunError
from potstill.export import FORMATS, TOLERANCE, export
from potstill.export.detections import DetectorStudent, pair
from potstill.export.student import Mismatch
from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard, Resize, read_card
from potstill.networks.ship import how_to_load, load_student, ship_student

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)
FACE = {"width": 0.125, "img_size": 32}


def first_of(kinds: tuple[str, ...]) -> list:
    """The first kind in every test, the others, whose graphs take as long to make, in the thorough ones."""
    return [kinds[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in kinds[1:])]


def card_of(kind: str, **changes) -> NetworkCard:
    args = {name: list(value) if isinstance(value, tuple) else value for name, value in ARGS[kind].items()}
    card = NetworkCard(f"{kind}/test_resnet", 3, MEAN, STD, SIZE, args=args, classes=("a", "b", "c"))
    return replace(card, resize=Resize(90, 120), **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function from a kind of network to a folder with a student of it, exported to both graphs."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            ship_student(made[kind], build(kind), card_of(kind))
            for one in export(made[kind], ["onnx", "torch"]):
                assert 0 <= one.max_difference <= TOLERANCE
        return made[kind]

    return run


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("embedder")
    torch.manual_seed(0)
    tapped = build_network("iresnet10", classes=5, args=FACE, input_size=(3, 32, 32))
    wake(tapped.network)
    ship_student(folder, tapped, NetworkCard("iresnet10", 5, (0.5,) * 3, (0.5,) * 3, (3, 32, 32), args=FACE))
    return folder


def in_onnxruntime(path: Path, *inputs: Tensor) -> list[Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {one.name: value.numpy() for one, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, given)]


def photographs(folder: Path, count: int) -> list[Tensor]:
    """Real images, resized to 90 x 120 pixels, normalised, on a canvas of zeros."""
    found = []
    for path in sorted(folder.rglob("*.jpg"))[:count]:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        resized = transforms.resize(pixels, list(INSIDE), antialias=True) / 255
        canvas = torch.zeros(1, *SIZE)
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        canvas[0, :, : INSIDE[0], : INSIDE[1]] = (resized - mean) / std
        found.append(canvas)
    return found


def check_same(rows, expected) -> None:
    """That rows of a graph are exactly as many detections, in the same order, with boxes to a thousandth of a pixel."""
    boxes, scores, labels = rows
    count = len(expected["scores"])
    assert int((labels >= 0).sum()) == count
    torch.testing.assert_close(boxes[:count], expected["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(scores[:count], expected["scores"], rtol=0, atol=1e-5)
    assert torch.equal(labels[:count], expected["labels"])
    assert labels[count:].eq(-1).all()
    assert scores[count:].eq(0).all()
    assert boxes[count:].eq(0).all()


@pytest.mark.parametrize("kind", first_of(DETECTORS))
def test_graphs_of_a_detector_find_what_the_student_finds_in_photographs(runs, shared_data, kind):
    student = load_student(runs(kind))
    network = torch.export.load(runs(kind) / "export" / "student.pt2").module()
    for canvas in photographs(shared_data("bccd"), 3):
        (expected,) = student.detect(canvas, (INSIDE,))
        assert len(expected["scores"]) > 5
        check_same(in_onnxruntime(runs(kind) / "export" / "student.onnx", canvas, torch.tensor(INSIDE)), expected)
        check_same(network(canvas, torch.tensor(INSIDE)), expected)


@pytest.mark.parametrize("kind", first_of(DETECTORS))
def test_what_lies_beside_the_image_is_not_read_and_no_box_leaves_it(runs, kind):
    path, canvas = runs(kind) / "export" / "student.onnx", images()
    size = torch.tensor([64, 40])
    dirty = torch.where((torch.arange(SIZE[1])[:, None] < 64) & (torch.arange(SIZE[2]) < 40), canvas, 7.0)
    got = in_onnxruntime(path, canvas, size)
    assert all(torch.equal(one, other) for one, other in zip(got, in_onnxruntime(path, dirty, size), strict=True))
    assert (got[0][:, [0, 2]].max(), got[0][:, [1, 3]].max()) <= (40, 64)


def test_a_blank_canvas_and_one_pixel_are_images_too(runs):
    path, student = runs("fasterrcnn") / "export" / "student.onnx", load_student(runs("fasterrcnn"))
    for size in (INSIDE, (1, 1)):
        (expected,) = student.detect(torch.zeros(1, *SIZE), (size,))
        check_same(in_onnxruntime(path, torch.zeros(1, *SIZE), torch.tensor(size)), expected)


def test_the_json_beside_a_detectors_graph_says_what_it_takes(runs):
    content = json.loads((runs("fasterrcnn") / "export" / "student.onnx.json").read_text())
    assert [(one["name"], one["shape"], one["dtype"]) for one in content["inputs"]] == [
        ("images", [1, 3, 96, 128], "float32"), ("size", [2], "int64")
    ]  # fmt: skip
    assert content["inputs"][0]["values"] == (
        "RGB pixels in 0..1, normalised: (pixels - mean) / std; one image at the upper left, resized to a shorter side "
        "of 90, or less where the longer would pass 120"
    )
    assert [(one["name"], one["shape"]) for one in content["outputs"]] == [
        ("boxes", [100, 4]), ("scores", [100]), ("labels", [100])
    ]  # fmt: skip
    assert (content["classes"], content["mean"], content["normalises"]) == (["a", "b", "c"], list(MEAN), False)


def test_a_raw_graph_normalises_the_pixels_of_the_image_alone(runs, tmp_path):
    run = runs("fasterrcnn")
    (file,) = export(run, ["torch"], tmp_path, raw=True)
    pixels = torch.rand(1, *SIZE)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    canvas = torch.zeros(1, *SIZE)
    canvas[..., : INSIDE[0], : INSIDE[1]] = ((pixels - mean) / std)[..., : INSIDE[0], : INSIDE[1]]
    (expected,) = load_student(run).detect(canvas, (INSIDE,))
    check_same(torch.export.load(file.path).module()(pixels, torch.tensor(INSIDE)), expected)


def test_files_of_a_detector_name_no_places_and_the_exporters_are_quiet(runs, tmp_path, capfd):
    places = [b"site-packages", str(runs("fasterrcnn")).encode(), str(Path(__file__).parent.parent).encode()]
    for name in ("student.onnx", "student.pt2"):
        content = (runs("fasterrcnn") / "export" / name).read_bytes()
        assert not any(place in content for place in places)
    export(runs("fasterrcnn"), "torch", tmp_path)
    assert capfd.readouterr() == ("", "")


FORMATS_BEFORE = dict(FORMATS)


def other_scores(student, folder):
    student.tapped.network.roi_heads.box_predictor.cls_score.bias.data[1] += 0.002
    FORMATS_BEFORE["torch"].write(student, folder)
    student.tapped.network.roi_heads.box_predictor.cls_score.bias.data[1] -= 0.002


def other_suppression(student, folder):
    student.tapped.network.roi_heads.nms_thresh = 0.3
    FORMATS_BEFORE["torch"].write(student, folder)
    student.tapped.network.roi_heads.nms_thresh = 0.5


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (other_scores, "its boxes or scores differ from the student's by 0.000"),
        (other_suppression, r"it finds \d+ objects where the student finds \d+, and \d+ of both are not the other's"),
    ],
)
def test_a_graph_that_finds_something_else_is_not_kept(runs, tmp_path, monkeypatch, write, message):
    monkeypatch.setitem(FORMATS, "torch", replace(FORMATS["torch"], write=write))
    with pytest.raises(RunError, match=rf"student\.pt2 is not kept: {message}"):
        export(runs("fasterrcnn"), ["torch"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_finds_nothing_is_compared_with_a_warning(tmp_path, caplog):
    tapped = build("fasterrcnn")
    tapped.network.roi_heads.box_predictor.cls_score.bias.data[0] = 50.0
    ship_student(tmp_path, tapped, card_of("fasterrcnn"))
    (file,) = export(tmp_path, ["safetensors"])
    assert file.max_difference == 0
    assert "finds nothing in random images" in caplog.text


def found(*rows: tuple[float, float, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Detections from (left, score, label), of 10 pixels."""
    lefts, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    boxes = torch.tensor([[left, 0.0, left + 10.0, 10.0] for left in lefts]).reshape(-1, 4)
    return boxes, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)


@pytest.mark.parametrize(
    ("got", "expected", "odd"),
    [
        (found(), found(), 0),
        (found((0, 0.9, 1)), found(), 1),
        (found((0, 0.9, 1), (40, 0.8, 1)), found((40, 0.8, 1), (0, 0.9, 1)), 0),  # the order does not count
        (found((0, 0.9, 1)), found((0, 0.9, 2)), 2),  # another class is another object
        (found((0, 0.9, 1), (0, 0.9, 1)), found((0, 0.9, 1)), 1),  # each has one partner
        (found((0, float("nan"), 1)), found((0, 0.9, 1)), 2),
        (found((5, 0.9, 1)), found((0, 0.9, 1)), 2),  # 5 pixels off
    ],
)
def test_how_detections_find_their_partners(got, expected, odd):
    assert pair(got, expected, side=100) == (0.0, odd)


def test_one_odd_detection_in_a_hundred_is_a_tie_and_more_are_not(runs):
    student = DetectorStudent(load_student(runs("fasterrcnn")), read_card(runs("fasterrcnn")))
    many = found(*((float(k), 0.9, 0) for k in range(60)))
    fewer = tuple(one[1:] for one in many)
    assert student.difference(fewer, many) == 0
    with pytest.raises(Mismatch, match="it finds 58 objects where the student finds 60, and 2 of both"):
        student.difference(tuple(one[2:] for one in many), many)


@pytest.mark.parametrize("kind", first_of(SEGMENTERS[::-1]))
def test_graphs_for_segmentation_return_the_logits_of_every_pixel(runs, kind):
    batch = torch.cat([images(seed=seed) for seed in range(3)])
    with torch.no_grad():
        expected = load_student(runs(kind)).network(batch)["out"]
    network = torch.export.load(runs(kind) / "export" / "student.pt2").module()
    for count in (3, 1):
        (got,) = in_onnxruntime(runs(kind) / "export" / "student.onnx", batch[:count])
        torch.testing.assert_close(got, expected[:count], rtol=0, atol=1e-4)
        torch.testing.assert_close(network(batch[:count]), expected[:count], rtol=0, atol=1e-5)
    content = json.loads((runs(kind) / "export" / "student.onnx.json").read_text())
    assert content["output"] == {"name": "logits", "dtype": "float32", "shape": ["batch", 3, 96, 128]}


def test_a_face_network_is_exported_as_an_embedder(embedder, tmp_path):
    batch = torch.randn(3, 3, 32, 32)
    features = load_student(embedder)(batch)
    for file in export(embedder, ["onnx", "torch"], tmp_path):
        content = json.loads(file.path.with_name(f"{file.path.name}.json").read_text())
        assert content["output"] == {"name": "embedding", "dtype": "float32", "shape": ["batch", 512]}
    (got,) = in_onnxruntime(tmp_path / "student.onnx", batch)
    torch.testing.assert_close(got, features.embedding.detach(), rtol=0, atol=1e-4)
    assert b"head.weight" not in (tmp_path / "student.onnx").read_bytes()


def test_its_identities_are_exported_where_they_are_asked_for(embedder, tmp_path):
    batch = torch.randn(3, 3, 32, 32)
    (file,) = export(embedder, ["onnx"], tmp_path, head=True)
    (got,) = in_onnxruntime(file.path, batch)
    torch.testing.assert_close(got, load_student(embedder)(batch).logits.detach(), rtol=0, atol=1e-3)
    assert json.loads((tmp_path / "student.onnx.json").read_text())["output"]["shape"] == ["batch", 5]


def test_weights_keep_the_identities(embedder, tmp_path):
    export(embedder, ["safetensors"], tmp_path)
    assert (tmp_path / "student.safetensors").read_bytes() == (embedder / "student.safetensors").read_bytes()
    assert load_student(tmp_path).classes == 5


def test_a_head_that_there_is_not_is_refused(runs, embedder, tmp_path):
    with pytest.raises(NetworkError, match="'lraspp/test_resnet' has no identity head; leave head out"):
        export(runs("lraspp"), ["torch"], tmp_path, head=True)
    with pytest.raises(PotstillError, match="head is for formats that hold a graph, and safetensors holds weights"):
        export(embedder, ["safetensors"], tmp_path, head=True)
    assert list(tmp_path.iterdir()) == []


OWN = """
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import mobilenet_backbone
from torchvision.models.detection.anchor_utils import AnchorGenerator

def make(num_classes):
    body = mobilenet_backbone(backbone_name="mobilenet_v3_small", weights=None, fpn=True, trainable_layers=6)
    return RetinaNet(body, num_classes, anchor_generator=AnchorGenerator(((32,),) * 3, ((1.0,),) * 3))
"""
LIBRARYS = ("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", "torchvision/lraspp_mobilenet_v3_large")
ALONE = [*(f"{kind}/test_resnet" for kind in (*DETECTORS, *SEGMENTERS)), *LIBRARYS, "own_detector:make"]

# Runs where potstill cannot be imported: executes each card's own line in the card's folder.
USER = """
import json, os, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "potstill":
            raise ModuleNotFoundError("potstill is not here")

sys.meta_path.insert(0, Absent())
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
base = sys.argv[1]
torch.hub.load_state_dict_from_url = None  # nothing may be downloaded
pixels = load_file(os.path.join(base, "pixels.safetensors"))["pixels"]
answers = {}
for folder in sys.argv[2:]:
    os.chdir(os.path.join(base, folder))
    sys.path.insert(0, os.getcwd())
    for name in [name for name in sys.modules if name.partition(".")[0] == "student_network"]:
        del sys.modules[name]
    with open("student.json") as file:
        made, card = {}, json.load(file)
    exec(card["load"], made)
    mean, std = (torch.tensor(card[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        if hasattr(made["network"], "transform"):
            (found,) = made["network"]([pixels])
        else:
            found = {"out": made["network"](((pixels - mean) / std)[None])["out"]}
    answers.update({f"{folder}.{name}": value for name, value in found.items()})
    sys.path.pop(0)
save_file(answers, os.path.join(base, "answers.safetensors"))
"""


def folder_of(model: str) -> str:
    return model.replace("/", "-").replace(":", "-")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """A folder of students, and what each says of an image in a process that has no Potstill."""
    base = tmp_path_factory.mktemp("alone")
    torch.manual_seed(0)
    save_file({"pixels": torch.rand(3, *INSIDE)}, base / "pixels.safetensors")
    own = base / folder_of(ALONE[-1])
    own.mkdir()
    (own / "own_detector.py").write_text(OWN)
    sys.path.insert(0, str(own))
    try:
        for model in ALONE:
            kind = model.partition("/")[0]
            if kind in ARGS:
                tapped, card = build(kind), card_of(kind)
            else:
                tapped = build_network(model, classes=3, input_size=SIZE)
                wake(tapped.network)
                card = NetworkCard(model, 3, MEAN, STD, SIZE, resize=Resize(90, 120))
            ship_student(base / folder_of(model), tapped, card)
    finally:
        sys.path.pop(0)
        sys.modules.pop("own_detector", None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", USER, str(base), *map(folder_of, ALONE)],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return base, load_file(base / "answers.safetensors")


@pytest.mark.parametrize("model", ALONE)
def test_a_student_answers_alike_where_potstill_is_not(alone, model, monkeypatch):
    base, there = alone
    folder = base / folder_of(model)
    monkeypatch.syspath_prepend(folder)
    tapped = load_student(folder, model=model)
    pixels = load_file(base / "pixels.safetensors")["pixels"]
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    canvas = torch.zeros(1, *SIZE)
    canvas[0, :, : INSIDE[0], : INSIDE[1]] = (pixels - mean) / std
    if f"{folder.name}.out" in there:
        expected = tapped(canvas[..., : INSIDE[0], : INSIDE[1]]).logits.detach()
        torch.testing.assert_close(there[f"{folder.name}.out"], expected, rtol=0, atol=1e-5)
        return
    (expected,) = tapped.detect(canvas, (INSIDE,))
    assert len(expected["scores"]) > 5
    torch.testing.assert_close(there[f"{folder.name}.boxes"], expected["boxes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(there[f"{folder.name}.scores"], expected["scores"], rtol=0, atol=1e-5)
    shift = 1 if "fasterrcnn" in model else 0  # torchvision's own count
    assert torch.equal(there[f"{folder.name}.labels"] - shift, expected["labels"])


def test_the_package_is_one_file_that_names_no_potstill(alone):
    for kind, name in (("fasterrcnn", "detection.py"), ("fcn", "segmentation.py")):
        package = sorted((alone[0] / f"{kind}-test_resnet" / "student_network").glob("*.py"))
        assert [path.name for path in package] == ["__init__.py", name]
        assert not any("import potstill" in text or "from potstill" in text for text in map(Path.read_text, package))
    said = (alone[0] / "fasterrcnn-test_resnet" / "student_network" / "__init__.py").read_text()
    assert "labels that it returns count from 1" in said


def test_the_line_says_how_images_are_resized():
    line = how_to_load(card_of("fcos"))
    assert "min_size=90, max_size=120, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.25]" in line
    assert "min_size=96, max_size=128" in how_to_load(replace(card_of("fcos"), resize=None))
    assert "min_size" not in how_to_load(card_of("fcn"))


def test_a_card_keeps_how_images_are_resized_and_refuses_nonsense(tmp_path):
    card_of("fcn").write(tmp_path)
    assert read_card(tmp_path) == card_of("fcn")
    for wrong in (
        {"short": 0, "longest": 5},
        {"short": 9, "longest": 5},
        {"short": 9},
        5,
        {"short": 1.5, "longest": 5},
    ):
        content = json.loads((tmp_path / "student.json").read_text()) | {"resize": wrong}
        (tmp_path / "student.json").write_text(json.dumps(content))
        with pytest.raises(NetworkError, match=r"resize is .*; expected null or whole numbers short and longest"):
            read_card(tmp_path)
