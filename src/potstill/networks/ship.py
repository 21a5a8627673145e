"""What a finished run leaves for its users: the student's weights, its card, where needed the code of its network."""

import inspect
from dataclasses import replace
from pathlib import Path

from potstill.errors import NetworkError, RunError
from potstill.files import write_whole
from potstill.networks.build import build_network
from potstill.networks.card import CARD_FILE, WEIGHTS_FILE, NetworkCard
from potstill.networks.cifar import CIFAR_MODELS, family_file
from potstill.networks.origins import find_factory, timm_name
from potstill.networks.tap import Tapped
from potstill.networks.weights import save_weights

__all__ = ["PACKAGE", "how_to_load", "load_student", "ship_student"]

PACKAGE = "student_network"  # the folder, beside the weights, of a network that neither timm nor torchvision has

PACKAGE_INIT = '''"""The network of the weights beside this folder, registered with timm when this package is imported.

Copied from Potstill, under the Apache License 2.0. It needs torch and timm, and no Potstill.
"""

from . import {family}

__all__ = ["{family}"]
'''


def ship_student(folder: str | Path, tapped: Tapped, card: NetworkCard) -> None:
    """Leave the student in a folder so that it loads where Potstill is not installed.

    Written are ``student.safetensors`` (the plain state dict of the network, the same bytes for the same weights),
    ``student.json`` (the card, with the line of Python that loads the student) and, for a network of the CIFAR zoo, the
    small package ``student_network`` with its code. Each file is written in one move, and the card last: a folder with
    a card holds a whole student.

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
    if card.num_classes != tapped.spec.classes:
        raise NetworkError(
            f"the card of {card.model!r} says {card.num_classes} classes, and the student has {tapped.spec.classes}"
        )
    load = how_to_load(card)
    zoo_name = name_in_zoo(card.model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if zoo_name is not None:
            write_package(folder / PACKAGE, family_file(zoo_name))
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


def how_to_load(card: NetworkCard) -> str:
    """One line of Python that makes ``network``, in evaluation mode, in the folder of the weights, without Potstill.

    Raises:
        NetworkError: a model that is not known.

    Example:
        >>> card = NetworkCard("resnet18", 10, (0.5,) * 3, (0.25,) * 3, (3, 32, 32))
        >>> how_to_load(card).split("; ")[1]
        "network = timm.create_model('resnet18', num_classes=10, checkpoint_path='student.safetensors').eval()"
    """
    origin, _, name = card.model.rpartition("/")
    state = f"network.load_state_dict(safetensors.torch.load_file({WEIGHTS_FILE!r})); network.eval()"
    if ":" in card.model:
        module, _, factory = card.model.partition(":")
        arguments = call(card, with_classes=takes_classes(card.model))
        return f"import safetensors.torch; from {module} import {factory}; network = {factory}({arguments}); {state}"
    if origin == "torchvision":
        made = f"torchvision.models.get_model({name!r}, {call(card)})"
        return f"import safetensors.torch, torchvision; network = {made}; {state}"
    imports = "timm" if name_in_zoo(card.model) is None else f"{PACKAGE}, timm"
    arguments = f"{timm_name(origin, name)!r}, {call(card)}, checkpoint_path={WEIGHTS_FILE!r}"
    return f"import {imports}; network = timm.create_model({arguments}).eval()"


def call(card: NetworkCard, with_classes: bool = True) -> str:
    """The arguments of the call that builds the network."""
    arguments = {"num_classes": card.num_classes} if with_classes else {}
    return ", ".join(f"{name}={value!r}" for name, value in {**arguments, **card.args}.items())


def takes_classes(model: str) -> bool:
    """Whether a user's factory is given ``num_classes`` when the network is built."""
    parameters = inspect.signature(find_factory(model)).parameters
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def name_in_zoo(model: str) -> str | None:
    """The name under which timm knows a network of the CIFAR zoo; None for any other network."""
    origin, _, name = model.rpartition("/")
    if ":" in model or origin == "torchvision":
        return None
    known = timm_name(origin, name)
    return known if known in CIFAR_MODELS.values() else None


def write_package(folder: Path, family: Path) -> None:
    """Copy a family's file and the one that it builds on, and write the ``__init__.py`` that imports it."""
    folder.mkdir(exist_ok=True)
    for source in (family.with_name("base.py"), family):
        write_whole(folder / source.name, source.read_bytes())
    write_whole(folder / "__init__.py", PACKAGE_INIT.format(family=family.stem))
