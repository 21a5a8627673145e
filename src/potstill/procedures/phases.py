"""A run as a list of phases: which parameters train, on which objective, for how long."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from potstill.config import Recipe
from potstill.errors import RecipeError
from potstill.methods.base import Setting
from potstill.methods.fitnets import FitNets
from potstill.methods.objective import Objective
from potstill.methods.pretraining import Pretraining, pretrained_methods
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.stages import stage_parameters
from potstill.networks.tap import Tapped

__all__ = ["Phase", "plan_phases"]

_PRETRAINING = 8  # one epoch of a method's own pretraining for so many of the run: RepDistiller's 30 for 240


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a run.

    Attributes:
        name: for people and checkpoints.
        objective: what it trains on.
        epochs: how long.
        trains: names of the student's parameters and buffers that train; None for all. The rest stands still, batch
            norms with their statistics.
        judged: whether the student's accuracy is measured after its epochs: not before anybody has trained its head.
        goes_on: whether the objective goes on with the state that it had at the end of the phase before.
    """

    name: str
    objective: Objective
    epochs: int
    trains: frozenset[str] | None = None
    judged: bool = True
    goes_on: bool = False


def plan_phases(recipe: Recipe, student: Tapped, setting: Setting, build: Callable[[Recipe], Objective]) -> list[Phase]:
    """The phases of a recipe's procedure.

    Args:
        recipe: resolved.
        student: the network that learns.
        setting: both networks.
        build: makes a recipe's objective.

    Raises:
        RecipeError: for epochs that do not suffice, networks that have no stages in common, or an objective that the
            procedure cannot take apart.
    """
    orders = {"stagewise": stagewise, "hint": hinted}
    if recipe.procedure.name in orders:
        phases = orders[recipe.procedure.name](recipe, student, setting, build)
        if names := " and ".join(pretrained_methods(phases[-1].objective)):
            raise RecipeError(
                f"{names} of the objective trains something before the student, which "
                f"procedure.name={recipe.procedure.name} has no phase for; take {names} out."
            )
        return phases
    objective = build(recipe)
    if not pretrained_methods(objective):
        if recipe.procedure.pretrain_epochs is not None:
            raise RecipeError(
                f"procedure.pretrain_epochs={recipe.procedure.pretrain_epochs} does nothing: no method of the "
                f"objective ({', '.join(objective.weights)}) trains anything before the student. Leave it out."
            )
        return [Phase("joint", objective, recipe.epochs)]
    epochs = recipe.procedure.pretrain_epochs or max(1, recipe.epochs // _PRETRAINING)
    first = Phase("pretraining", Pretraining(objective), epochs, frozenset(), judged=False)
    return [first, Phase("joint", objective, recipe.epochs, goes_on=True)]


def stagewise(recipe: Recipe, student: Tapped, setting: Setting, build: Callable[[Recipe], Objective]) -> list[Phase]:
    """Stage by stage (SSKD): each stage of the backbone mimics the teacher's, then the head learns from the labels.

    The stem trains with the first stage unless ``procedure.stem`` gives it a phase of its own. No term is weighed
    against another anywhere: each phase has one. With ``procedure.finetune`` the last phase trains the whole network.

    Source: arXiv 1812.01819; the stages, the epochs of each and the adapters are ours, as no code and no settings are
    published.
    """
    config, targets = recipe.procedure, stage_targets(student, setting)
    *stages, head = stage_parameters(student)
    groups = [[k] for k in range(len(stages))]
    if not config.stem and len(groups) > 1 and not isinstance(student, TappedDetector):
        groups[:2] = [[0, 1]]
    if config.stem and isinstance(student, TappedDetector):
        raise RecipeError("procedure.stem=true cannot be: a detector's backbone shows its stem with the first stage.")
    epochs = stage_epochs(recipe, len(groups))
    phases = []
    for number, (group, length) in enumerate(zip(groups, epochs, strict=True), start=1):
        objective = Objective(setting, {"mimic": {"weight": 1.0, "adapter": config.adapter, **targets[group[-1]]}})
        trains = frozenset(name for k in group for name in stages[k])
        phases.append(Phase(f"stage {number}", objective, length, trains, judged=False))
    rest, last = recipe.epochs - sum(epochs), build(recipe)
    idle = [name for name, method in last.methods.items() if not method.needs.student & {"logits", "losses"}]
    if idle and not config.finetune:
        raise RecipeError(
            f"{' and '.join(idle)} of the objective would train nothing: in the last phase of procedure.name=stagewise "
            "only the head trains, and they do not read the logits. Take them out, or set procedure.finetune=true."
        )
    return [*phases, Phase("head", last, rest, None if config.finetune else frozenset(head))]


def stage_targets(student: Tapped, setting: Setting) -> list[dict[str, Any]]:
    """What ``mimic`` is told of each stage: the end that it compares; of a detector's pyramid, all levels at once.

    Raises:
        RecipeError: for networks that do not have as many.
    """
    teacher = setting.teacher
    fields = ("blocks", "maps") if isinstance(student, TappedDetector) else ("maps",)
    for field in fields:
        ours, theirs = getattr(student.spec, field), getattr(teacher, field) if teacher else ()
        if not ours or len(ours) != len(theirs):
            what = {"blocks": "stages", "maps": "levels of a pyramid"}[field] if len(fields) > 1 else "maps"
            way = "Take detectors of one kind."
            if len(fields) == 1:
                way = (
                    "Name as many layers in student.taps.maps and teacher.taps.maps; `potstill taps` lists them and "
                    "proposes pairs."
                )
            raise RecipeError(
                f"procedure.name=stagewise pairs the networks' stages one by one, but the student shows {len(ours)} "
                f"{what} and the teacher {len(theirs)}. {way}"
            )
    if len(fields) == 1:
        return [{"stage": k} for k in range(len(student.spec.maps))]
    return [*({"stage": k, "of": "blocks"} for k in range(len(student.spec.blocks))), {"stage": "all"}]


def hinted(recipe: Recipe, student: Tapped, setting: Setting, build: Callable[[Recipe], Objective]) -> list[Phase]:
    """FitNets' two stages: up to the hint the student learns the teacher's map, then all of it the other terms.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550), section 2.3, where the
    second stage is plain KD.
    """
    rest = {name: value for name, value in recipe.objective.items() if name != "fitnets"}
    if "fitnets" not in recipe.objective or not rest:
        raise RecipeError(
            "procedure.name=hint trains on fitnets first and on the rest of the objective then, so it needs both: "
            "objective={ce: 0.1, kd: {weight: 0.9, temperature: 4}, fitnets: 1}."
        )
    hint = Objective(setting, {"fitnets": recipe.objective["fitnets"]})
    method = hint.methods["fitnets"]
    layer = method.layer if isinstance(method, FitNets) else 0
    stages = stage_parameters(student)
    # Every level of a detector's pyramid depends on the whole backbone: all but the head leads to a hint.
    before = stages[:-1] if isinstance(student, TappedDetector) else stages[: layer + 1]
    trains = frozenset(name for stage in before for name in stage)
    (epochs,) = stage_epochs(recipe, 1)
    last = build(recipe.model_copy(update={"objective": rest}))
    return [Phase("hint", hint, epochs, trains, judged=False), Phase("kd", last, recipe.epochs - epochs)]


def stage_epochs(recipe: Recipe, stages: int) -> list[int]:
    """Epochs of each stage; where the recipe does not say, the run is divided evenly between stages and last phase."""
    asked = recipe.procedure.stage_epochs
    if asked is None:
        asked = recipe.epochs // (stages + 1)
    epochs = [asked] * stages if isinstance(asked, int) else list(asked)
    if len(epochs) != stages:
        raise RecipeError(
            f"procedure.stage_epochs names {len(epochs)} numbers of epochs and there are {stages} stages; give one for "
            "each, or a single number for all."
        )
    if min(epochs) < 1 or sum(epochs) >= recipe.epochs:
        raise RecipeError(
            f"epochs={recipe.epochs} does not suffice for {stages} stages and the phase after them; give "
            f"epochs={max(sum(epochs), stages) + 1} or more, or fewer procedure.stage_epochs."
        )
    return epochs
