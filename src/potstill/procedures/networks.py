"""From a recipe's student and teacher sections to networks, and to the objective between them."""

import logging
from pathlib import Path

import torch

from potstill.config import NetworkConfig, Recipe, TeacherConfig
from potstill.errors import RecipeError
from potstill.methods.base import Setting
from potstill.methods.objective import Objective, check_terms
from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard, read_card
from potstill.networks.tap import Tapped, Taps
from potstill.networks.teacher import Teacher
from potstill.procedures.data import DataFacts
from potstill.training.distributed import Processes

__all__ = ["DTYPES", "build_objective", "build_student", "build_teacher", "network_of", "student_card"]

log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def network_of(config: NetworkConfig, classes: int | None, size: int | None) -> Tapped:
    """The network that a recipe's section names, with its weights and taps.

    Args:
        config: the section.
        classes: for the head; None for as many as its weights, its arguments or its own default have.
        size: the side of the images that it shall see; None for its own.

    Raises:
        NetworkError: for an unknown model or weights that do not fit.
    """
    taps = Taps(**config.taps.model_dump()) if config.taps else None
    return build_network(
        config.model, classes=classes, weights=config.weights, pretrained=config.pretrained,
        args=dict(config.args), taps=taps, input_size=(3, size, size) if size else None,
    )  # fmt: skip


def build_student(recipe: Recipe, data: DataFacts, teacher: Teacher | None) -> Tapped:
    """The network that learns, initialised from the recipe's seed.

    Without labels it gets the teacher's classes, so that its logits can be compared with the teacher's.

    Raises:
        RecipeError: where the recipe names no model.
        NetworkError: for an unknown model or weights that do not fit.
    """
    if recipe.student.model is None and recipe.student.weights is None:
        raise RecipeError("student.model is missing: name the network to train, like student.model=resnet8x4.")
    classes = len(data.classes) or (teacher.spec.classes if teacher else 0)
    torch.manual_seed(recipe.seed)
    return network_of(recipe.student, classes, data.size)


def build_teacher(recipe: Recipe, data: DataFacts, processes: Processes) -> Teacher | None:
    """The recipe's teacher, frozen; its input statistics are its own (see the recipe's teacher section).

    Raises:
        RecipeError: where the teacher's section names neither weights nor ``pretrained=true``.
        NetworkError: for an unknown model or weights that do not fit.
    """
    config = recipe.teacher
    if config is None:
        return None
    if config.weights is None and not config.pretrained:
        raise RecipeError(
            "The teacher has no weights: give teacher.weights=PATH (a run's folder, safetensors or a state dict), "
            "or teacher.pretrained=true. A teacher with random weights teaches nothing."
        )
    # A run's folder and a library's own weights say what size they were trained at; a bare file does not.
    own_size = config.pretrained or Path(str(config.weights)).is_dir()
    network = network_of(config, None, config.size or (None if own_size else data.size))
    mean, std, size = _statistics(config, network, data)
    precision = recipe.precision if config.precision == "auto" else config.precision
    return Teacher(
        network,
        mean=mean,
        std=std,
        student_mean=data.mean,
        student_std=data.std,
        input_size=None if size in (None, data.size) else (size, size),
        device=processes.device,
        precision=DTYPES[precision],
        channels_last=recipe.channels_last,
        compile=recipe.compile,
    )


def build_objective(recipe: Recipe, student: Tapped, teacher: Teacher | None, data: DataFacts) -> Objective:
    """The recipe's weighted sum of methods, sized for these two networks.

    Raises:
        RecipeError: for an objective that these networks or these data cannot serve: a method that reads labels
            without labels, one that reads a teacher without one, one that compares logits of other classes.
    """
    terms = recipe.objective
    check_terms(terms, labels=data.labelled, teacher=teacher is not None)  # before a method misses the classes
    objective = Objective(Setting(student.spec, teacher.spec if teacher else None), terms)
    if teacher and not objective.needs.teacher:
        raise RecipeError(
            f"There is a teacher, but no method of the objective ({', '.join(objective.weights)}) reads it. Add one, "
            "such as pefd, or take the teacher section out."
        )
    if student.spec.classes and "logits" not in objective.needs.student:
        log.warning("No method of the objective reads the student's logits: its classifier stays as it was drawn.")
    if teacher and objective.compares_logits and data.labelled and teacher.spec.classes != len(data.classes):
        names = " and ".join(objective.compares_logits)
        raise RecipeError(
            f"The teacher has {teacher.spec.classes} classes and the data have {len(data.classes)}, but {names} "
            "compares the two networks' logits class by class. Use a teacher trained on these classes, or an objective "
            "that reads features only, such as {ce: 1, pefd: 25}."
        )
    return objective


def student_card(recipe: Recipe, student: Tapped, data: DataFacts) -> NetworkCard:
    """What ``student.json`` says of the student."""
    config = recipe.student
    model, args = config.model, config.args
    taps = Taps(**config.taps.model_dump()) if config.taps else None
    if model is None and config.weights is not None:
        card = read_card(Path(config.weights))
        model, args, taps = card.model, card.args, card.taps
    return NetworkCard(
        model=str(model), args=dict(args), num_classes=student.spec.classes,
        classes=data.classes or None,
        mean=data.mean, std=data.std, input_size=(3, data.size, data.size), taps=taps,
    )  # fmt: skip


def _statistics(
    config: TeacherConfig, network: Tapped, data: DataFacts
) -> tuple[tuple[float, ...], tuple[float, ...], int | None]:
    """The teacher's mean, deviation and input side: the recipe's, else those its weights came with, else the data's."""
    size = config.size
    if network.normalisation is not None:  # from a run's folder, or from the library that the weights came from
        own_mean, own_std = network.normalisation
        size = size or network.input_size[-1]
    else:
        own_mean, own_std = data.mean, data.std
        if config.mean is None or config.std is None:
            log.info(
                "The teacher's weights bring no input mean and deviation; the data's are used. "
                "Set teacher.mean and teacher.std if it was trained with others."
            )
    return config.mean or own_mean, config.std or own_std, size
