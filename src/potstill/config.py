"""What a recipe may say: typed, with every default in one place. An unknown key is an error.

The defaults are those of the PEFD paper on CIFAR-100 (arXiv 2210.15274, section 4). Objects of this module never enter
a loss or a network: the procedures read them and call the library with plain values.
"""

import json
import math
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

__all__ = [
    "CheckpointConfig", "DataConfig", "LogConfig", "NetworkConfig", "OptimizerConfig", "Recipe", "ScheduleConfig",
    "TapsConfig", "TeacherConfig", "unread",
]  # fmt: skip

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Triple = tuple[float, float, float]

# Keys that only some values of another key of their section read: key -> (the other key, those values).
_READ_BY = {
    "optimizer.momentum": ("name", ("sgd",)),
    "optimizer.nesterov": ("name", ("sgd",)),
    "optimizer.betas": ("name", ("adamw",)),
    "schedule.drops": ("name", ("step",)),
    "schedule.factor": ("name", ("step",)),
    "schedule.final": ("name", ("cosine", "onecycle")),
    "data.padding": ("crop", ("pad",)),
    "data.scale": ("crop", ("resized",)),
    "data.ratio": ("crop", ("resized",)),
    "data.workers": ("loader", ("streaming",)),
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation) - {NoneType}
        if kinds and kinds <= {int, float}:
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, bool | str):  # pydantic would take true for 1 and '3' for 3
                    kind = "integer" if kinds == {int} else "number"
                    got = "text" if isinstance(one, str) else "true or false"
                    raise PydanticCustomError(
                        "number", "Input should be a valid {kind}, not {got}", {"kind": kind, "got": got}
                    )
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field's type is made of: of ``tuple[float, ...] | None`` float and None's."""
    parts = [part for part in get_args(annotation) if isinstance(part, type) or get_args(part)]
    return {kind for part in parts for kind in _kinds(part)} if parts else {annotation}


def unread(name: str, section: BaseModel) -> list[str]:
    """A sentence for each value of a section that differs from its default and that nothing reads.

    Args:
        name: the section's name in a recipe.
        section: with what is left to "auto" said, as far as it decides over other keys.

    Example:
        >>> unread("data", DataConfig(crop="none", loader="resident", padding=2))
        ['data.padding=2 does nothing with data.crop=none, only with pad. Leave it out, or change data.crop.']
    """
    found = []
    for key, (option, readers) in _READ_BY.items():
        part, _, field = key.partition(".")
        if part != name or getattr(section, option) in readers:
            continue
        value = getattr(section, field)
        if value != type(section).model_fields[field].default:
            found.append(
                f"{key}={json.dumps(value)} does nothing with {name}.{option}={getattr(section, option)}, only with "
                f"{' and '.join(readers)}. Leave it out, or change {name}.{option}."
            )
    return found


class DataConfig(_Section):
    """Where images come from and how they are seen."""

    source: Literal["auto", "digits", "cifar10", "cifar100", "folder", "parquet"] = Field(
        "auto", description="the kind of data; auto looks at the path (no path: the embedded handwritten digits)"
    )
    path: str | None = Field(None, description="a folder of images by class, a CIFAR folder, a Parquet file or shards")
    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        None,
        description="part kept for validation where the data have no split; none: 0.1 (0.2 of the digits); 0: nothing",
    )
    split_seed: Seed = Field(
        0, description="seed of that split; apart from the run's seed, so that seeds share a split"
    )
    image_column: str | None = Field(None, description="Parquet: the image column; found by itself where it is one")
    label_column: str | None = Field(None, description="Parquet: the label column; found by itself where it is one")
    size: Positive | None = Field(
        None, description="side of the images that the student sees; none: the data's own, 224 for images of many sizes"
    )
    crop: Literal["auto", "none", "pad", "resized"] = Field(
        "auto", description="pad: random crop after zero padding (CIFAR); resized: random resized crop (ImageNet)"
    )
    padding: NonNegative = Field(4, description="pixels of zero padding on each side, for crop=pad")
    scale: tuple[Fraction, Fraction] = Field((0.08, 1.0), description="range of the area, for crop=resized")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="range of the aspect ratio, for crop=resized")
    flip: bool | None = Field(None, description="random horizontal flip; none: yes, except for the digits")
    mixup: Annotated[float, Field(ge=0.0)] = Field(0.0, description="alpha of mixup; 0: off")
    cutmix: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="alpha of CutMix; 0: off; with mixup: a coin a batch"
    )
    mean: Triple | None = Field(None, description="mean of the channels, in 0..1; none: the data's own")
    std: Triple | None = Field(None, description="standard deviation of the channels; none: the data's own")
    loader: Literal["auto", "resident", "streaming"] = Field(
        "auto", description="resident: the whole set on the device as uint8; streaming: decoded by workers"
    )
    workers: NonNegative | None = Field(None, description="worker processes of the streaming loader; none: one a core")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="a damaged image stops the run, or is skipped, counted and reported"
    )


class TapsConfig(_Section):
    """Which layers of a network that is not timm's a method reads (see `potstill taps`)."""

    classifier: str | None = Field(
        None, description="the layer whose input is the embedding; none: the last linear one"
    )
    embedding: str | None = Field(None, description="instead: the layer whose output is the embedding")
    maps: tuple[str, ...] = Field((), description="layers at the ends of the stages, stem first")


class NetworkConfig(_Section):
    """A network: timm's by name, the CIFAR zoo's, torchvision's, or any module by package.module:factory."""

    model: str | None = Field(
        None, description="resnet8x4, timm/convnext_tiny, torchvision/resnet18 or package.module:factory"
    )
    weights: str | None = Field(None, description="safetensors, a state dict (.pt, .pth), or a run's folder")
    pretrained: bool = Field(False, description="download the library's own weights")
    args: dict[str, Any] = Field({}, description="further arguments of the network's factory")
    taps: TapsConfig | None = Field(None, description="layers to read, for a network that is not timm's")


class TeacherConfig(NetworkConfig):
    """The network to learn from: frozen, in eval mode, never written."""

    mean: Triple | None = Field(None, description="its own input mean; none: from its card, or the data's")
    std: Triple | None = Field(None, description="its own input deviation; none: from its card, or the data's")
    size: Positive | None = Field(None, description="its own input side; images are resized; none: the student's")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: the run's precision")


class OptimizerConfig(_Section):
    """One optimiser over the student and the objective's own modules (projectors)."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0.0)] = Field(
        0.05, description="peak learning rate; 0.01 for MobileNet and ShuffleNet"
    )
    momentum: Fraction = Field(0.9, description="sgd only")
    nesterov: bool = Field(False, description="sgd only")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="adamw only")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(5e-4, description="of all parameters, projectors among them")
    decay_norm_and_bias: bool = Field(
        True, description="false: no decay of batch norms and biases (parameters of one axis)"
    )

    @model_validator(mode="after")
    def _all_is_read(self) -> "OptimizerConfig":
        problems = unread("optimizer", self)
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            problems.append("optimizer.nesterov=true needs a momentum above 0; got optimizer.momentum=0.")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ScheduleConfig(_Section):
    """The learning rate over the run; all times are parts of the run, so that a shorter run keeps the shape."""

    name: Literal["step", "cosine", "onecycle", "constant"] = "step"
    drops: tuple[Fraction, ...] = Field(
        (0.625, 0.75, 0.875), description="step: where the rate drops (epochs 150, 180 and 210 of 240)"
    )
    factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1, description="step: what a drop multiplies the rate with"
    )
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="part of the run with a linear rise from 0; onecycle: 0 means 0.3"
    )
    final: Fraction = Field(0.0, description="cosine, onecycle: the last rate, as a part of the peak")

    @model_validator(mode="after")
    def _all_is_read(self) -> "ScheduleConfig":
        if problems := unread("schedule", self):
            raise ValueError("\n".join(problems))
        return self


class CheckpointConfig(_Section):
    """Atomic checkpoints; a run killed at any instant resumes to the same weights."""

    every_epochs: Positive = 1
    every_steps: NonNegative = Field(0, description="also inside an epoch; 0: off")
    keep: Positive = Field(2, description="how many of the newest to keep")


class LogConfig(_Section):
    """How often the run looks at itself; between two looks the host never waits for the device."""

    every: Positive = Field(50, description="steps between two rows of steps.jsonl")
    shares: NonNegative = Field(
        500, description="steps between two measurements of each term's share of the gradient; 0: off"
    )
    evaluate: Positive = Field(1, description="epochs between two evaluations; the last epoch is always evaluated")


class Recipe(_Section):
    """A run: data, networks, objective and how to train."""

    data: DataConfig = DataConfig()
    student: NetworkConfig = NetworkConfig()
    teacher: TeacherConfig | None = None
    objective: dict[str, float | dict[str, Any]] = Field(
        {}, description="weights of methods by name; none: ce + 25 pefd(3 projectors) with a teacher, ce without"
    )
    epochs: Positive = 240
    batch_size: Positive = Field(64, description="images a step over all processes and micro-batches")
    accumulate: Positive = Field(1, description="micro-batches a step")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: Annotated[float, Field(gt=0.0)] | None = Field(None, description="largest norm of the gradient")
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="decay of an average of the student's weights; the average is what is evaluated and shipped"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    seed: Seed = 0
    control: bool = Field(False, description="distill: also train the same student without the teacher, and compare")
    run: str | None = Field(None, description="the run's folder; none: runs/ and a name made of the recipe")
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @field_validator("objective", mode="before")
    @classmethod
    def _weights_are_numbers(cls, objective: Any) -> Any:
        problems = []
        for name, value in objective.items() if isinstance(objective, dict) else ():
            if isinstance(value, dict):
                if "weight" in value and not _is_number(value["weight"]):
                    problems.append(f"objective.{name}.weight is {value['weight']!r}; expected a number.")
            elif not _is_number(value):
                problems.append(
                    f"objective.{name} is {value!r}; expected a weight, or a mapping of weight and hyper-parameters."
                )
        if problems:
            raise ValueError("\n".join(problems))
        return objective


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
