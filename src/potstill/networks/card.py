"""The JSON file beside a student's weights: all that is needed to build the network again and to feed it."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from potstill.errors import NetworkError, nearest
from potstill.files import write_whole
from potstill.networks.tapped import Taps

__all__ = ["CARD_FILE", "WEIGHTS_FILE", "NetworkCard", "Resize", "read_card"]

CARD_FILE = "student.json"
WEIGHTS_FILE = "student.safetensors"


@dataclass(frozen=True, slots=True)
class Resize:
    """How images of any size and shape are brought to a network, which sees each whole.

    Attributes:
        short: the shorter side in pixels.
        longest: the bound of the longer side, for whose sake the shorter one becomes less.
    """

    short: int
    longest: int


@dataclass(frozen=True, slots=True)
class NetworkCard:
    """What ``student.json`` says.

    Attributes:
        model: the network's name, as :func:`potstill.networks.build.build_network` takes it.
        num_classes: the number of logits.
        mean: of the images that it was trained on, one number a channel.
        std: their standard deviation.
        input_size: ``(3, H, W)``.
        args: the model's own keyword arguments.
        classes: the names of the classes, in the order of the logits; None where they have none.
        taps: where its features are read; None for the model's own stages.
        resize: how images were resized for it, keeping their shape; None where they came in ``input_size``.
        load: a line of Python that builds the network and loads its weights without Potstill; None where it is unsaid.

    Raises:
        NetworkError: a value of the wrong type or length.
    """

    model: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    args: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    taps: Taps | None = None
    resize: Resize | None = None
    load: str | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std", "input_size", "classes"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.taps, dict):
            object.__setattr__(self, "taps", taps_from(self.taps))
        if isinstance(self.resize, dict) and set(self.resize) == {"short", "longest"}:
            object.__setattr__(self, "resize", Resize(**self.resize))
        channels = self.input_size[0] if is_row(self.input_size, int) and self.input_size else 0
        rules = {
            "model": (isinstance(self.model, str) and bool(self.model), "a model's name"),
            "num_classes": (is_count(self.num_classes), "a whole number, 0 or more"),
            "input_size": (is_row(self.input_size, int) and len(self.input_size) == 3, "three numbers (3, H, W)"),
            "mean": (is_row(self.mean, float) and len(self.mean) == channels, f"{channels} finite numbers"),
            "std": (
                is_row(self.std, float) and len(self.std) == channels and all(s > 0 for s in self.std),
                f"{channels} positive numbers",
            ),
            "args": (
                isinstance(self.args, dict) and all(isinstance(key, str) for key in self.args),
                "arguments by name",
            ),
            "classes": (
                self.classes is None
                or (is_row(self.classes, str) and is_count(self.num_classes) and len(self.classes) == self.num_classes),
                f"null or the names of all {self.num_classes} classes",
            ),
            "taps": (self.taps is None or isinstance(self.taps, Taps), "null or layers by name"),
            "resize": (
                self.resize is None or (isinstance(self.resize, Resize) and is_resize(self.resize)),
                "null or whole numbers short and longest, 1 or more, longest not less than short",
            ),
            "load": (self.load is None or isinstance(self.load, str), "null or a line of Python"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise NetworkError(f"network card: {name} is {getattr(self, name)!r}; expected {expected}")

    def write(self, folder: str | Path) -> Path:
        """Write ``student.json`` into ``folder``, whole or not at all, and return its path.

        Raises:
            NetworkError: ``args`` holds something that JSON cannot say.
            RunError: the file cannot be written.
        """
        path = Path(folder) / CARD_FILE
        try:
            content = json.dumps(asdict(self), indent=2, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise NetworkError(f"network card: args {self.args!r} cannot be written as JSON ({error})") from error
        write_whole(path, content + "\n")
        return path


def read_card(folder: str | Path) -> NetworkCard:
    """Read ``student.json`` from a run's folder.

    Raises:
        NetworkError: no such file (it names the runs below the folder), no valid JSON, or missing, unknown or wrong
            values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     card = NetworkCard("resnet18", 10, (0.5,) * 3, (0.25,) * 3, (3, 32, 32))
        ...     path = card.write(folder)
        ...     read_card(folder) == card
        True
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise NetworkError(why_no_card(Path(folder)))
    try:
        content = json.loads(path.read_bytes(), parse_constant=refuse_constant)
    except ValueError as error:  # covers broken UTF-8 too
        raise NetworkError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise NetworkError(f"{path} holds a {type(content).__name__}; expected an object")
    known = [f.name for f in fields(NetworkCard)]
    for key in content:
        if key not in known:
            raise NetworkError(f"{path} has an unknown key {key!r}; expected {', '.join(known)}.{nearest(key, known)}")
    if missing := [key for key in known[:5] if key not in content]:
        raise NetworkError(f"{path} lacks {', '.join(missing)}")
    try:
        return NetworkCard(**content)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error


def why_no_card(folder: Path) -> str:
    """What a folder without a card is: a run that is not finished, a folder of runs, or no run's at all."""
    if (folder / "recipe.yaml").is_file():
        return (
            f"the run in {folder} is not finished: it has no {CARD_FILE} yet. Give its command again, and it goes on "
            "from its last checkpoint"
        )
    runs = sorted(str(card.parent) for card in folder.glob(f"*/{CARD_FILE}"))
    below = f"; there are runs in it, so name one of them: {', '.join(runs[:5])}" if runs else ""
    return f"{folder} is no run's folder: it has no {CARD_FILE}{below}"


def taps_from(content: dict[str, Any]) -> Taps:
    names = [f.name for f in fields(Taps)]
    layers = {key: content.get(key) for key in ("classifier", "embedding")}
    maps = content.get("maps", [])
    valid = all(value is None or isinstance(value, str) for value in layers.values())
    if not valid or not set(content) <= set(names) or not isinstance(maps, list) or not is_row(maps, str):
        raise NetworkError(f"network card: taps are {content!r}; expected layer names under {', '.join(names)}")
    return Taps(**layers, maps=tuple(maps))


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_resize(resize: Resize) -> bool:
    sides = (resize.short, resize.longest)
    return all(is_count(side) and side > 0 for side in sides) and resize.short <= resize.longest


def is_row(value: Any, kind: type) -> bool:
    """Whether a value is a row of strings, of positive integers or of finite numbers."""
    if not isinstance(value, tuple | list):
        return False
    if kind is int:
        return all(is_count(item) and item > 0 for item in value)
    if kind is float:
        return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    return all(isinstance(item, kind) for item in value)
