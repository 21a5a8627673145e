"""Agreement with what the authors' own code computes: every loss, and the gradient of every tensor that is stored.

The cases in ``golden/`` are data made once from the published code; the manifest tells of each where it comes from,
what its tensors mean and how near is near enough. Nothing here writes them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor

from potstill.analysis.metrics import (
    between_class_cosine,
    direction_alignment,
    mean_projector_distance,
    projector_distance,
)
from potstill.batch import Batch
from potstill.methods import KD, PEFD, Setting
from potstill.methods.kd import kd
from potstill.methods.numerics import cosine
from potstill.methods.objective import Objective
from potstill.networks.features import Features, FeatureSpec

FOLDER = Path(__file__).parent / "golden"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
CASES = [case["case"] for case in MANIFEST["cases"]]
PEFD_CASES = [name for name in CASES if name.startswith("pefd")]
KD_CASES = [name for name in CASES if name.startswith("kd")]
# Generated code costs seconds a case, so one of each loss, and one of each dtype.
GENERATED = [("pefd_mlp2x2_q3", torch.float32), ("kd", torch.float64)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])

Case = Any  # the fixture's Golden
Make = Callable[[str, torch.dtype], Case]


def batch_of(labels: Tensor) -> Batch:
    b = len(labels)
    return Batch(torch.zeros(b, 3, 1, 1), labels, torch.arange(b), torch.zeros(b, dtype=torch.int64))


def loss_of(objective: Objective) -> Callable[..., dict[str, Tensor]]:
    """The objective on bare tensors, which is what a compiler takes."""

    def losses(s_logits: Tensor, s: Tensor, t_logits: Tensor, t: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return objective(Features(s_logits, s), Features(t_logits, t), batch_of(labels))

    return losses


def run(golden: Case, objective: Objective, backend: str | None) -> dict[str, Tensor]:
    """The losses; gradients of the total are left in the inputs and parameters."""
    inputs = golden.inputs
    b = len(inputs["labels"])
    empty = torch.zeros(b, 1, dtype=golden.dtype)  # a KD case stores no embeddings
    for key in inputs.keys() & {"student.logits", "student.embedding"}:
        inputs[key].requires_grad_()
    losses = loss_of(objective)
    if backend is not None:
        losses = torch.compile(losses, fullgraph=True, backend=backend, dynamic=False)
    found = losses(
        inputs["student.logits"],
        inputs.get("student.embedding", empty),
        inputs["teacher.logits"],
        inputs.get("teacher.embedding", empty),
        inputs["labels"],
    )
    found["total"].backward()
    return found


def pefd_objective(golden: Case) -> Objective:
    """The case's projectors, read off its hyper-parameters and the stored shapes."""
    inputs, projectors = golden.inputs, golden.projectors()
    d, m = inputs["student.embedding"].shape[1], inputs["teacher.embedding"].shape[1]
    hyper = golden.case["hyperparameters"]
    objective = Objective(
        Setting(FeatureSpec(10, d), FeatureSpec(10, m)),
        {
            "ce": 1.0,
            "pefd": {
                "weight": 25.0,
                "projectors": hyper.get("q", 3),
                "depth": len(projectors[0]),
                "width": projectors[0][0][0].shape[0] // m,
                "activation": hyper.get("activation", "ReLU").split()[0].lower(),
                "bias": hyper.get("bias", True),
            },
        },
    ).to(golden.dtype)
    objective.methods["pefd"].projector.load_projectors(projectors)
    return objective


def check_pefd(golden: Case, backend: str | None = None) -> None:
    objective = pefd_objective(golden)
    losses = run(golden, objective, backend)
    for term in ("ce", "pefd", "total"):
        golden.check(f"out.loss.{term}", losses[term])
    golden.check("out.grad.student.embedding", golden.inputs["student.embedding"].grad)
    golden.check("out.grad.student.logits", golden.inputs["student.logits"].grad)
    method = objective.methods["pefd"]
    assert isinstance(method, PEFD)
    for tensor in golden.tensors:
        if tensor.startswith("out.grad.projector"):
            projector, layer, kind = tensor.removeprefix("out.grad.projector").split(".")
            stacked = getattr(method.projector, f"{kind}_{layer.replace('linear', '0')}")
            golden.check(tensor, stacked.grad[int(projector)])
    projected = method.projector(golden.inputs["student.embedding"])
    golden.check("out.inter.projected", projected)
    golden.check("out.inter.per_sample", 1 - cosine(projected, golden.inputs["teacher.embedding"]))
    assert golden.all_compared()


def check_kd(golden: Case, backend: str | None = None) -> None:
    inputs = golden.inputs
    projector = "param.projector.linear.weight" in golden.tensors
    term = {"weight": 0.9, "temperature": golden.case["hyperparameters"]["T"], "projector": projector}
    setting = Setting(FeatureSpec(10, 1), FeatureSpec(10, 1))
    objective = Objective(setting, {"ce": 0.1, "kd": term}).to(golden.dtype)
    method = objective.methods["kd"]
    assert isinstance(method, KD)
    if method.projector is not None:
        stored = {key: golden.tensors[f"param.projector.linear.{key}"] for key in ("weight", "bias")}
        method.projector.load_state_dict(stored)
    losses = run(golden, objective, backend)
    for loss in ("ce", "kd", "total"):
        golden.check(f"out.loss.{loss}", losses[loss])
    golden.check("out.grad.student.logits", inputs["student.logits"].grad)
    if method.projector is not None:
        golden.check("out.grad.projector.linear.weight", method.projector.weight.grad)
        golden.check("out.grad.projector.linear.bias", method.projector.bias.grad)
    else:
        logits = inputs["student.logits"].detach().requires_grad_()
        kd(logits, inputs["teacher.logits"], term["temperature"]).backward()
        golden.check("out.grad_kd.student.logits", logits.grad)
    assert golden.all_compared()


@DTYPES
@pytest.mark.parametrize("name", PEFD_CASES)
def test_pefd(golden: Make, name: str, dtype: torch.dtype):
    check_pefd(golden(name, dtype))


@DTYPES
@pytest.mark.parametrize("name", KD_CASES)
def test_kd(golden: Make, name: str, dtype: torch.dtype):
    check_kd(golden(name, dtype))


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@DTYPES
@pytest.mark.parametrize("name", [*PEFD_CASES, *KD_CASES])
def test_in_one_graph(golden: Make, name: str, dtype: torch.dtype, compiler: None):
    """The whole objective traced forwards and backwards without a break."""
    (check_pefd if name in PEFD_CASES else check_kd)(golden(name, dtype), "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), GENERATED, ids=[name for name, _ in GENERATED])
def test_in_generated_code(golden: Make, name: str, dtype: torch.dtype, compiler: None):
    """The default backend as well, which writes kernels and compiles them."""
    with inductor.patch(compile_threads=1):  # a pool of compilers takes longer to start than to do without
        (check_pefd if name in PEFD_CASES else check_kd)(golden(name, dtype), "inductor")


@DTYPES
def test_metric_m_da(golden: Make, dtype: torch.dtype):
    case = golden("metric_m_da", dtype)
    student, teacher = case.inputs["student.embedding"], case.inputs["teacher.embedding"]
    case.check("out.loss.total", direction_alignment(student, teacher))
    case.check("out.per_sample_cosine", 1 - direction_alignment(student, teacher, reduction="none"))
    assert case.all_compared()


@DTYPES
def test_metric_m_bc(golden: Make, dtype: torch.dtype):
    case = golden("metric_m_bc", dtype)
    embedding, labels = case.inputs["student.embedding"], case.inputs["labels"]
    each = between_class_cosine(embedding, labels, reduction="none")
    case.check("out.loss.total", between_class_cosine(embedding, labels))
    case.check("out.per_sample", each)
    # The mean over all pairs is stored to tell it from the metric: the same sums, weighted by how many they add up.
    counts = case.tensors["out.num_other"]
    case.check("out.loss.global_pair_mean", (each * counts).sum() / counts.sum())
    assert case.compared == {name for name in case.tensors if name.startswith("out.")} - {"out.num_other"}


@DTYPES
def test_metric_projector_distance(golden: Make, dtype: torch.dtype):
    case = golden("metric_projector_distance", dtype)
    layers = [[(case.inputs[f"projector{k}.weight"], case.inputs[f"projector{k}.bias"])] for k in range(3)]
    case.check("out.pairwise_l2_distance_weight", projector_distance(layers))
    case.check("out.loss.l2_distance_weight", projector_distance(layers)[0, 1])
    case.check("out.loss.l2_distance_squared_weight", projector_distance(layers, squared=True)[0, 1])
    case.check("out.loss.l2_distance_weight_and_bias", projector_distance(layers, bias=True)[0, 1])
    case.check("out.loss.mean_pairwise_l2_distance_weight", mean_projector_distance(layers))
    case.check("out.loss.total", mean_projector_distance(layers[:2]))
    assert case.all_compared()


def test_every_case_is_here_and_tested():
    stored = {path.stem for path in FOLDER.glob("*.safetensors")}
    assert stored == set(CASES)
    assert len(CASES) == MANIFEST["num_cases"] == 64
    sources = [path.read_text(encoding="utf-8") for path in FOLDER.parent.rglob("test_*.py")]
    named = {name for name in CASES if any(f'"{name}"' in source for source in sources)}
    assert set(CASES) - named == {*PEFD_CASES, *KD_CASES} - named, "these are taken by their beginnings, above"
