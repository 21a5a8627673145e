"""A network's own losses as a term of an objective."""

import math

import pytest
import torch

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods import Setting, Task
from potstill.methods.objective import Objective, check_terms
from potstill.methods.task import task
from potstill.networks.features import Features, FeatureSpec

SETTING = Setting(FeatureSpec(classes=4, embedding_dim=8))


def batch(images: int = 2) -> Batch:
    index = torch.arange(images)
    return Batch(torch.zeros(images, 3, 1, 1), None, index, torch.zeros_like(index))


def features(**losses: torch.Tensor) -> Features:
    return Features(torch.zeros(2, 4), torch.zeros(2, 8), losses=losses)


def test_it_is_the_sum_of_the_losses():
    boxes, classes = torch.tensor(0.25, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    loss = Task(SETTING)(features(boxes=boxes, classes=classes), None, batch())
    assert loss.item() == 1.75
    loss.backward()
    assert boxes.grad.item() == classes.grad.item() == 1
    assert not list(Task(SETTING).parameters())


def test_parts_are_factors_by_name_and_the_others_have_1():
    boxes, classes, rest = (torch.tensor(x, requires_grad=True) for x in (0.25, 1.5, 4.0))
    method = Task(SETTING, parts={"boxes": 2, "rest": 0})
    loss = method(features(boxes=boxes, classes=classes, rest=rest), None, batch())
    assert loss.item() == 2
    loss.backward()
    assert (boxes.grad.item(), classes.grad.item(), rest.grad) == (2, 1, None)


def test_half_precision_is_summed_in_full():
    small, large = torch.tensor(1e-3, dtype=torch.bfloat16), torch.tensor(100.0, dtype=torch.float32)
    found = task({"small": small, "large": large})
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(100 + small.item(), abs=1e-6)
    assert task({"one": torch.tensor(1.0, dtype=torch.float64)}).dtype == torch.float64


def test_as_a_term_of_an_objective():
    objective = Objective(SETTING, {"task": {"weight": 2, "parts": {"boxes": 3.0}}})
    losses = objective(features(boxes=torch.tensor(1.0), classes=torch.tensor(0.5)), None, batch())
    assert (losses["task"].item(), losses["total"].item()) == (3.5, 7)
    assert not objective.needs.taught
    assert objective.needs.on_demand("student") == {}
    with pytest.raises(RecipeError, match="The data has no labels, but task in the objective needs them"):
        check_terms(["task"], labels=False, teacher=False)


def test_in_one_graph():
    torch._dynamo.reset()
    method = Task(SETTING, parts={"boxes": 0.5})

    def loss(boxes: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return method(features(boxes=boxes, classes=classes), None, batch())

    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(torch.tensor(1.0), torch.tensor(2.0))
    assert found.item() == 2.5
    torch._dynamo.reset()


def test_what_is_refused():
    with pytest.raises(NetworkError, match="this student has none: it is for detectors"):
        Task(SETTING)(features(), None, batch())
    with pytest.raises(
        RecipeError, match=r"factor for 'box', which is none of .* Did you mean 'boxes'\? There are boxes, "
    ):
        Task(SETTING, parts={"box": 2})(features(boxes=torch.tensor(1.0), classes=torch.tensor(1.0)), None, batch())
    with pytest.raises(RecipeError, match=r"multiplies every loss by 0 \(boxes\)"):
        Task(SETTING, parts={"boxes": 0})(features(boxes=torch.tensor(1.0)), None, batch())
    for factor in (-1, math.nan, math.inf, True, "much", None):
        with pytest.raises(RecipeError, match=r"parts of task has boxes: .*; expected a factor of 0 or more"):
            Task(SETTING, parts={"boxes": factor})
    with pytest.raises(RecipeError, match="parts of task is 3; expected a mapping or null"):
        Objective(SETTING, {"task": {"weight": 1, "parts": 3}})
