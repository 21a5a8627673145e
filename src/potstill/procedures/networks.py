"""From a recipe's student and teacher sections to networks, and to the objective between them."""

import logging
from pathlib import Path
from typing import Any

import torch

from potstill.config import NetworkConfig, Recipe, TeacherConfig
from potstill.data.views import image_size
from potstill.errors import RecipeError
from potstill.methods.base import Setting
from potstill.methods.objective import Objective, check_terms
from potstill.methods.registry import find_method
from potstill.networks.build import build_network
from potstill.networks.card import NetworkCard, Resize, read_card
from potstill.networks.faces import FACE_MODELS, identity_scale
from potstill.networks.peers import Peers
from potstill.networks.tap import Tapped, Taps
from potstill.networks.teacher import Teacher
from potstill.procedures.data import DataFacts
from potstill.procedures.faces import must_show_one_person
from potstill.procedures.fitting import objective_must_fit, peers_must_fit, teacher_must_fit, terms_must_fit
from potstill.procedures.tasks import own_term
from potstill.training.distributed import Processes

__all__ = [
    "DTYPES",
    "build_objective",
    "build_setting",
    "build_student",
    "build_teacher",
    "class_names",
    "network_of",
    "student_card",
]

log = logging.getLogger(__name__)

# Networks for faces that read each place of their last map by itself, and so are built for one size of images.
_OF_ONE_SIZE = frozenset(FACE_MODELS) - {"face_backbone"}

# What is not a run's, such as bare weights that are judged, is computed in float32 where nothing else is said.
DTYPES: dict[str, torch.dtype] = {
    "auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16
}  # fmt: skip


def network_of(config: NetworkConfig, classes: int | None, size: int | tuple[int, int] | None) -> Tapped:
    """The network that a recipe's section names, with its weights and taps.

    Args:
        config: the section.
        classes: for the head; None for as many as its weights, its arguments or its own default have.
        size: the side of the images that it shall see, or height and width; None for its own.

    Raises:
        NetworkError: for an unknown model or weights that do not fit.
    """
    taps = Taps(**config.taps.model_dump()) if config.taps else None
    return build_network(
        config.model, classes=classes, weights=config.weights, pretrained=config.pretrained,
        args=_arguments(config, size), taps=taps, input_size=(3, *image_size(size)) if size else None,
    )  # fmt: skip


def _arguments(config: NetworkConfig, size: int | tuple[int, int] | None) -> dict[str, Any]:
    """The section's arguments, with the images' side where the network is built for one and the section says none."""
    args, name = dict(config.args), (config.model or "").rpartition("/")[2]
    of_a_run = config.weights is not None and Path(config.weights).is_dir()  # whose card has the arguments
    if size is None or of_a_run or name not in _OF_ONE_SIZE or "img_size" in args:
        return args
    height, width = image_size(size)
    return {**args, "img_size": height if height == width else [height, width]}


def class_names(weights: str | None) -> tuple[str, ...] | None:
    """The names of the classes that a run's folder was trained on, in the order of its logits; None where unknown."""
    return read_card(weights).classes if weights is not None and Path(weights).is_dir() else None


def build_student(recipe: Recipe, data: DataFacts, teacher: Teacher | None) -> Tapped:
    """The network that learns, initialised from the recipe's seed.

    Without labels it gets the teacher's classes, so that its logits can be compared with the teacher's.

    Raises:
        RecipeError: where the recipe names no model.
        NetworkError: for an unknown model or weights that do not fit.
    """
    if recipe.student.model is None and recipe.student.weights is None:
        raise RecipeError("student.model is missing: name the network to train, like student.model=resnet8x4.")
    peers_must_fit(recipe)
    classes = len(data.classes) or (teacher.spec.classes if teacher else 0)
    torch.manual_seed(recipe.seed)
    student = network_of(recipe.student, classes, data.input_size[1:])
    if recipe.procedure.name != "mutual":
        return student
    peers = (NetworkConfig(model=model) for model in recipe.procedure.peers)
    return Peers(student, [network_of(peer, classes, data.input_size[1:]) for peer in peers])


def build_teacher(recipe: Recipe, data: DataFacts, processes: Processes) -> Teacher | None:
    """The recipe's teacher, frozen; its input statistics are its own (see the recipe's teacher section).

    Raises:
        RecipeError: where the teacher's section names neither weights nor ``pretrained=true``.
        NetworkError: for an unknown model or weights that do not fit.
    """
    return None if recipe.teacher is None else _a_teacher(recipe.teacher, recipe, data, processes)


def _a_teacher(config: TeacherConfig, recipe: Recipe, data: DataFacts, processes: Processes) -> Teacher:
    if config.weights is None and not config.pretrained:
        raise RecipeError(
            "The teacher has no weights: give teacher.weights=PATH (a run's folder, safetensors or a state dict), "
            "or teacher.pretrained=true. A teacher with random weights teaches nothing."
        )
    # A run's folder and a library's own weights say what size they were trained at; a bare file does not.
    own_size = config.pretrained or Path(str(config.weights)).is_dir()
    network = network_of(config, None, config.size or (None if own_size else data.input_size[1:]))
    teacher_must_fit(recipe, network)
    mean, std, size = _statistics(config, network, data)
    if data.longest is not None:
        size = _of_scenes(config, data)
    precision = recipe.precision if config.precision == "auto" else config.precision
    others = [config.model_copy(update={"model": None, "weights": path, "others": ()}) for path in config.others]
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
        fold=config.fold,
        compile=(recipe.compile if config.compile == "auto" else config.compile) is True,
        others=[_a_teacher(other, recipe, data, processes) for other in others],
    )


def _of_scenes(config: TeacherConfig, data: DataFacts) -> int:
    if config.size not in (None, data.size):
        raise RecipeError(
            f"teacher.size={config.size} cannot be: where boxes or pixels are compared, both networks see the same "
            "images. Leave it out, or change data.size."
        )
    return data.size


def build_setting(
    recipe: Recipe, student: Tapped, teacher: Teacher | None, data: DataFacts, processes: Processes
) -> Setting:
    """What the recipe's methods are sized by.

    Raises:
        RecipeError: for an unknown method.
        NetworkError: for a teacher that cannot show what a method reads.
    """
    needs = [find_method(name).needs for name in recipe.objective]
    for network in [] if teacher is None else [teacher.network]:
        network.open(**{field: True for need in needs for field in need.on_demand("teacher") if field != "maps"})
    return Setting(
        student.spec,
        teacher.spec if teacher else None,
        samples=data.found[0],
        batch_size=recipe.batch_size // (processes.world * recipe.accumulate),
        peers=len(student.others) if isinstance(student, Peers) else 0,
        classifier=teacher.network.classifier() if teacher else None,
        norms=teacher.network.norms() if teacher and any("preacts" in need.teacher for need in needs) else (),
        identity_scale=identity_scale((student.first if isinstance(student, Peers) else student).network),
    )


def build_objective(recipe: Recipe, setting: Setting, data: DataFacts) -> Objective:
    """The recipe's weighted sum of methods.

    Raises:
        RecipeError: for an objective that these networks or these data cannot serve: a method that reads labels
            without labels, one that reads a teacher without one, one that compares logits of other classes.
    """
    terms, student, teacher = recipe.objective, setting.student, setting.teacher
    check_terms(terms, labels=data.labelled, teacher=teacher is not None)  # before a method misses the classes
    must_show_one_person(recipe)
    terms_must_fit(recipe, setting)
    objective = Objective(setting, terms)
    if teacher and not objective.needs.taught and recipe.procedure.name == "joint":
        raise RecipeError(
            f"There is a teacher, but no method of the objective ({', '.join(objective.weights)}) reads it. Add one, "
            "such as pefd, or take the teacher section out."
        )
    if recipe.teacher and recipe.teacher.class_means != "augmented" and not objective.needs.class_means:
        raise RecipeError(
            f"teacher.class_means={recipe.teacher.class_means} does nothing: no method of the objective "
            f"({', '.join(objective.weights)}) reads class means. Leave it out."
        )
    if recipe.procedure.name == "mutual" and "peers" not in objective.needs.student:
        raise RecipeError(
            "procedure.name=mutual trains peers, but no method of the objective "
            f"({', '.join(objective.weights)}) reads them: add mutual, such as {{ce: 1, mutual: 1}}."
        )
    if recipe.teacher and recipe.teacher.others and "peers" not in objective.needs.teacher:
        raise RecipeError(
            f"teacher.others does nothing: no method of the objective ({', '.join(objective.weights)}) reads further "
            "teachers. Add dgkd, or leave it out."
        )
    if student.classes and not objective.needs.student & {"logits", "losses"}:
        log.warning("No method of the objective reads the student's logits: its classifier stays as it was drawn.")
    objective_must_fit(recipe, objective, setting)
    known = class_names(recipe.teacher.weights) if recipe.teacher else None
    if objective.compares_logits and data.labelled and known is not None and known != data.classes:
        differing = [f"{a!r} for {b!r}" for a, b in zip(known, data.classes, strict=False) if a != b]
        if len(known) == len(data.classes):
            raise RecipeError(
                f"The teacher's classes are not the data's: it has {', '.join(differing[:3])}"
                f"{', ...' if len(differing) > 3 else ''}, but {' and '.join(objective.compares_logits)} compares the "
                "two networks' logits class by class. Use a teacher trained on these classes, or an objective that "
                f"reads features only, such as {{{own_term(recipe.task)}: 1, pefd: 25}}."
            )
    if teacher and objective.compares_logits and data.labelled and teacher.classes != student.classes:
        names = " and ".join(objective.compares_logits)
        raise RecipeError(
            f"The teacher has {teacher.classes} classes and the student {student.classes}, but {names} "
            "compares the two networks' logits class by class. Use a teacher trained on these classes, or an objective "
            f"that reads features only, such as {{{own_term(recipe.task)}: 1, pefd: 25}}."
        )
    return objective


def student_card(recipe: Recipe, student: Tapped, data: DataFacts) -> NetworkCard:
    """What ``student.json`` says of the student."""
    config = recipe.student
    model, args = config.model, _arguments(config, data.input_size[1:])
    taps = Taps(**config.taps.model_dump()) if config.taps else None
    if config.weights is not None and Path(config.weights).is_dir():
        card = read_card(Path(config.weights))
        model, args, taps = card.model, card.args, taps or card.taps
    return NetworkCard(
        model=str(model), args=dict(args), num_classes=student.classes,
        classes=data.classes or None,
        mean=data.mean, std=data.std, input_size=data.input_size, taps=taps,
        resize=None if data.longest is None else Resize(data.size, data.longest),
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
