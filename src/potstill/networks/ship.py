"""What a finished run leaves for its users: the student's weights, its card, where needed the code of its network."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import torchvision

from potstill.errors import NetworkError, RunError
from potstill.networks.build import build_network
from potstill.networks.card import CARD_FILE, WEIGHTS_FILE, NetworkCard
from potstill.networks.detection import build as detection
from potstill.networks.detection.tapped import TappedDetector
from potstill.networks.origins import find_factory, timm_name
from potstill.networks.package import PACKAGE, package_files, write_package
from potstill.networks.segmentation import build as segmentation
from potstill.networks.tap import Tapped
from potstill.networks.weights import save_weights

__all__ = ["PACKAGE", "how_to_load", "load_student", "ship_student"]


def ship_student(folder: str | Path, tapped: Tapped, card: NetworkCard) -> None:
    """Leave the student in a folder so that it loads where Potstill is not installed.

    Written are ``student.safetensors`` (the plain state dict of the network, the same bytes for the same weights),
    ``student.json`` (the card, with the line of Python that loads the student) and, for a network that neither timm nor
    torchvision has, the small package ``student_network`` with its code. Each file is written in one move, and the card
    last: a folder with a card holds a whole student.

    Args:
        folder: made where it is missing.
        tapped: the student.
        card: what there is to know of it; its ``load`` is filled in.

    Raises:
        NetworkError: the card is of another network: other classes, or a model that is not known.
        RunError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> network = build_network("resnet8", classes=10, input_size=(3, 32, 32))
        >>> card = NetworkCard("resnet8", 10, (0.5,) * 3, (0.25,) * 3, (3, 32, 32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ship_student(folder, network, card)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['student.json', 'student.safetensors', 'student_network']
    """
    folder = Path(folder)
    if card.num_classes != tapped.classes:
        raise NetworkError(
            f"the card of {card.model!r} says {card.num_classes} classes, and the student has {tapped.classes}"
        )
    load = how_to_load(card, detects=isinstance(tapped, TappedDetector))
    files = package_files(card.model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if files:
            write_package(folder / PACKAGE, files)
    except OSError as error:
        raise RunError(f"cannot write the student into {folder}: {error.strerror or error}") from error
    save_weights(tapped, folder / WEIGHTS_FILE)
    replace(card, load=load).write(folder)


def load_student(run_folder: str | Path, model: str | None = None) -> Tapped:
    """The student of a finished run, tapped, in evaluation mode, on the CPU.

    Its card (:func:`potstill.networks.card.read_card`) says the rest.

    Args:
        run_folder: where :func:`ship_student` left it.
        model: None for the card's. A student of your own ``package.module:factory`` needs it said again, since a file
            alone may not choose which code runs.

    Raises:
        RunError: there is no such folder, or its run has not finished.
        NetworkError: a card or weights that cannot be read, that do not fit each other, or that are of another model.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is no run's folder: there is no such folder")
    missing = [name for name in (WEIGHTS_FILE, CARD_FILE) if not (folder / name).is_file()]
    if missing and (folder / "recipe.yaml").is_file():
        raise RunError(
            f"the run in {folder} is not finished: it has no {' and no '.join(missing)} yet. Give its command again, "
            "and it goes on from its last checkpoint"
        )
    if missing:
        raise RunError(f"{folder} is no run's folder: it has no {' and no '.join(missing)}")
    tapped = build_network(model, classes=None, weights=folder)
    return tapped.eval()


def how_to_load(card: NetworkCard, detects: bool = False) -> str:
    """One line of Python that makes ``network``, in evaluation mode, in the folder of the weights, without Potstill.

    A detector takes what torchvision's take: a list of images of any size in 0..1, which it resizes and normalises.

    Args:
        card: of the network.
        detects: whether a network of your own factory is a detector.

    Raises:
        NetworkError: a model that is not known.

    Example:
        >>> card = NetworkCard("resnet18", 10, (0.5,) * 3, (0.25,) * 3, (3, 32, 32))
        >>> how_to_load(card).split("; ")[1]
        "network = timm.create_model('resnet18', num_classes=10, checkpoint_path='student.safetensors').eval()"
    """
    origin, _, name = card.model.rpartition("/")
    state = f"network.load_state_dict(safetensors.torch.load_file({WEIGHTS_FILE!r})); network.eval()"
    number, own = {"num_classes": card.num_classes}, dict(card.args)
    if ":" in card.model:
        module, _, factory = card.model.partition(":")
        made = f"{factory}({written({**number, **own} if takes_classes(card.model) else own)})"
        more = f"; network.transform = {transform_of(card)}" if detects else ""
        libraries = "safetensors.torch, torchvision" if detects else "safetensors.torch"
        return f"import {libraries}; from {module} import {factory}; network = {made}{more}; {state}"
    if origin in detection.KINDS:
        given = f"{name!r}, {written({**number, **own, **input_of(card)})}"
        return f"import safetensors.torch; from {PACKAGE} import {origin}; network = {origin}({given}); {state}"
    if origin in segmentation.KINDS:
        given = f"{name!r}, {written({**number, **own})}"
        return f"import safetensors.torch; from {PACKAGE} import {origin}; network = {origin}({given}); {state}"
    if origin == "torchvision":
        models = torchvision.models
        if name in models.list_models(module=models.detection):
            number["num_classes"] += name.startswith("fasterrcnn")  # which counts background
            own = {"weights_backbone": None, **own, **input_of(card)}
        elif name in models.list_models(module=models.segmentation):
            own = {"weights_backbone": None, **own}  # else those of ImageNet are downloaded, to be overwritten
        made = f"torchvision.models.get_model({name!r}, {written({**number, **own})})"
        return f"import safetensors.torch, torchvision; network = {made}; {state}"
    imports = "timm" if not package_files(card.model) else f"{PACKAGE}, timm"
    arguments = f"{timm_name(origin, name)!r}, {written({**number, **own})}, checkpoint_path={WEIGHTS_FILE!r}"
    return f"import {imports}; network = timm.create_model({arguments}).eval()"


def written(arguments: dict[str, Any]) -> str:
    """Arguments as they stand in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def input_of(card: NetworkCard) -> dict[str, Any]:
    """What a detector of torchvision's is told of its images: how they are resized and normalised."""
    short, longest = sides_of(card)
    return {"min_size": short, "max_size": longest, "image_mean": list(card.mean), "image_std": list(card.std)}


def transform_of(card: NetworkCard) -> str:
    """The same, as the part of a detector that does it."""
    given = ", ".join(map(repr, input_of(card).values()))
    return f"torchvision.models.detection.transform.GeneralizedRCNNTransform({given})"


def sides_of(card: NetworkCard) -> tuple[int, int]:
    """The shorter side of a detector's images, and the bound of the longer one."""
    if card.resize is not None:
        return card.resize.short, card.resize.longest
    return min(card.input_size[1:]), max(card.input_size[1:])


def takes_classes(model: str) -> bool:
    """Whether a user's factory is given ``num_classes`` when the network is built."""
    parameters = inspect.signature(find_factory(model)).parameters
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
