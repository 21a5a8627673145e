"""What a recipe may say: typed, with every default in one place. An unknown key is an error.

The defaults are those of the PEFD paper on CIFAR-100 (arXiv 2210.15274, section 4). Objects of this module never enter
a loss or a network: the procedures read them and call the library with plain values.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from potstill.section import Beta, Deviations, Fraction, Mean, NonNegative, Positive, Section, Seed

__all__ = [
    "CheckpointConfig", "DataConfig", "LogConfig", "NetworkConfig", "OptimizerConfig", "ProcedureConfig", "Recipe",
    "ScheduleConfig", "StoreConfig", "TapsConfig", "TeacherConfig",
]  # fmt: skip


class DataConfig(Section):
    """Where images come from and how they are seen."""

    source: Literal[
        "auto", "digits", "cifar10", "cifar100", "folder", "parquet", "tar", "coco", "voc", "masks", "records"
    ] = Field("auto", description="the kind of data; auto looks at the path (no path: the embedded handwritten digits)")
    path: str | None = Field(
        None, description="a folder of images by class, a CIFAR folder, Parquet or tar shards, also remote (s3://...)"
    )
    judged: Literal["auto", "val", "test"] = Field(
        "auto", description="detection, segmentation: the split that networks are judged by; auto: val, else test"
    )
    protocol: str | None = Field(
        None, description="faces: what is judged by: a .bin file of pairs, pairs.txt, or the folder of a protocol (IJB)"
    )
    far: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        1e-3, description="faces: the false accept rate at which the true accept rate counts as the result"
    )
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
    sizes: tuple[Positive, ...] = Field(
        (), description="detection, segmentation: shorter sides that training draws from; none: size alone"
    )
    longest: Positive | None = Field(
        None, description="detection, segmentation: bound of the longer side; none: 1333/800 of the largest shorter one"
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
    mean: Mean | None = Field(None, description="mean of the channels, of pixels in 0..1; none: the data's own")
    std: Deviations | None = Field(None, description="their standard deviation, likewise; none: the data's own")
    loader: Literal["auto", "resident", "streaming"] = Field(
        "auto", description="resident: the whole set on the device as uint8; streaming: decoded by workers"
    )
    views: Positive | None = Field(
        None, description="views of each image: epoch e shows view e mod views; none: each epoch has its own"
    )
    view_seed: Seed | None = Field(
        None, description="seed of the views; none: the run's seed, or 0 with a teacher's store, which seeds can share"
    )
    order_seed: Seed | None = Field(None, description="seed of the images' order and of mixing; none: the run's seed")
    order: Literal["auto", "full", "groups"] = Field(
        "auto", description="full: any order; groups: shards or row groups in random order, shuffled in windows"
    )
    draft: bool = Field(
        True, description="streaming: decode large JPEGs at the smallest scale that the view needs, which is faster"
    )
    workers: NonNegative | None = Field(None, description="worker processes of the streaming loader; none: one a core")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="a damaged image stops the run, or is skipped, counted and reported"
    )


class TapsConfig(Section):
    """Which layers of a network that is not timm's a method reads (see `potstill taps`)."""

    classifier: str | None = Field(
        None, description="the layer whose input is the embedding; none: the last linear one"
    )
    embedding: str | None = Field(None, description="instead: the layer whose output is the embedding")
    maps: tuple[str, ...] = Field((), description="layers at the ends of the stages, stem first")


class NetworkConfig(Section):
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

    mean: Mean | None = Field(None, description="its own input mean; none: from its card, or the data's")
    std: Deviations | None = Field(None, description="its own input deviation; none: from its card, or the data's")
    size: Positive | None = Field(None, description="its own input side; images are resized; none: the student's")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: the run's precision")
    fold: bool = Field(
        True, description="in fp32: batch norms put into the convolutions before them; faster, the same outputs"
    )
    compile: Literal["auto"] | bool = Field("auto", description="auto: as the run's compile")
    store: str | None = Field(
        None, description="a folder of this teacher's outputs (`potstill store build`), read in place of its pass"
    )
    others: tuple[str, ...] = Field(
        (), description="folders of further teachers' runs, whose logits dgkd reads beside this one's"
    )
    class_means: Literal["augmented", "clean"] = Field(
        "augmented", description="what a method's class means are collected on: training views, or images as evaluated"
    )


class StoreConfig(Section):
    """What a teacher's store holds where this recipe makes it, and what happens where it lacks something."""

    dtype: Literal["fp16", "bf16", "fp32"] | None = Field(
        None, description="of the stored numbers; none: fp16 for a new store, whatever one has that is there"
    )
    top: Positive | None = Field(
        None, description="keep so many of the largest logits, and the rest as one number; none: all of them"
    )
    keep: tuple[Literal["logits", "embedding", "maps", "preacts", "blocks", "peers"], ...] | None = Field(
        None, description="what a record holds; none: the logits and the embedding, as far as the objective reads them"
    )
    fill: bool = Field(False, description="make the store while training: the live teacher computes what is not there")
    live: bool = Field(False, description="ask the live teacher for outputs that the store does not hold (maps)")


class OptimizerConfig(Section):
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
    helper_lr: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="rate of what the methods train of their own (projectors), as a multiple of lr"
    )
    helper_weight_decay: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="weight decay of what the methods train of their own; null: weight_decay"
    )

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov=true needs a momentum above 0; got optimizer.momentum=0.")
        return self


class ScheduleConfig(Section):
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


class ProcedureConfig(Section):
    """The order in which things train."""

    name: Literal["joint", "stagewise", "hint", "mutual", "assistants"] = Field(
        "joint",
        description="joint: all at once; stagewise: the backbone stage by stage, then the head; hint: fitnets first, "
        "then the rest; mutual: with peers; assistants: through networks of sizes in between",
    )
    stage_epochs: Positive | tuple[Positive, ...] | None = Field(
        None, description="stagewise, hint: epochs of each stage, out of the run's; none: divided evenly"
    )
    pretrain_epochs: Positive | None = Field(
        None, description="joint: before the run's epochs, of what a method trains first (ft); none: an eighth of them"
    )
    peers: tuple[str, ...] = Field((), description="mutual: the networks that learn together with the student")
    assistants: tuple[str, ...] = Field((), description="assistants: networks from the teacher's size to the student's")
    dense: bool = Field(False, description="assistants: each learns from all above it (with dgkd), not from the last")
    adapter: Literal["auto", "none", "conv", "conv_bn"] = Field(
        "auto", description="stagewise: 1x1 convolution on the student's map; auto: where the channels differ"
    )
    stem: bool = Field(False, description="stagewise: a phase of its own for the stem, before the first stage's")
    finetune: bool = Field(False, description="stagewise: the last phase trains the whole network, not the head alone")


class CheckpointConfig(Section):
    """Atomic checkpoints; a run killed at any instant resumes to the same weights."""

    every_epochs: Positive = 1
    every_steps: NonNegative = Field(0, description="also inside an epoch; 0: off")
    keep: Positive = Field(2, description="how many of the newest to keep")


class LogConfig(Section):
    """How often the run looks at itself; between two looks the host never waits for the device."""

    every: Positive = Field(50, description="steps between two rows of steps.jsonl")
    shares: NonNegative = Field(
        500, description="steps between two measurements of each term's share of the gradient; 0: off"
    )
    measures: bool = Field(
        True, description="with each evaluation: norms, M_BC, and M_DA and CKA to the teacher, which is run once for it"
    )
    evaluate: Positive = Field(1, description="epochs between two evaluations; the last epoch is always evaluated")
    report: bool = Field(True, description="write report.html into the run's folder when it is finished")
    track: tuple[Literal["tensorboard", "trackio", "mlflow", "wandb"], ...] = Field(
        (), description="also tell these trackers, each of which must be installed (potstill[track])"
    )
    project: str = Field("potstill", description="the trackers' name for what the run belongs to")


class Recipe(Section):
    """A run: data, networks, objective and how to train."""

    task: Literal["classification", "detection", "segmentation", "faces"] = Field(
        "classification", description="what the networks are for: it says what data hold and how a network is judged"
    )
    data: DataConfig = DataConfig()
    student: NetworkConfig = NetworkConfig()
    teacher: TeacherConfig | None = None
    store: StoreConfig = StoreConfig()
    students: tuple[dict[str, Any], ...] = Field(
        (), description="several students of this teacher side by side, each what differs from this recipe: model, "
        "seed, objective ..."
    )  # fmt: skip
    objective: dict[str, float | dict[str, Any]] = Field(
        {}, description="weights of methods by name; none: ce + 25 pefd(3 projectors) with a teacher, ce without"
    )
    procedure: ProcedureConfig = ProcedureConfig()
    epochs: Positive = 240
    batch_size: Positive = Field(64, description="images a step over all processes and micro-batches")
    accumulate: Positive = Field(1, description="micro-batches a step")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: Annotated[float, Field(gt=0.0)] | None = Field(None, description="largest norm of the gradient")
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="decay of an average of the student's weights; the average is what is evaluated and shipped"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the processor computes in it, else fp32; losses are in fp32 always"
    )
    channels_last: bool = True
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile for student and teacher; auto: on a GPU, for runs that are long enough"
    )
    graph: Literal["auto"] | bool = Field(
        "auto", description="a step as one CUDA graph; auto: on a GPU with images that are held there"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    seed: Seed = 0
    control: bool = Field(False, description="distill: also train the same student without the teacher, and compare")
    run: str | None = Field(None, description="the run's folder; none: runs/ and a name made of the recipe")
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _a_store_has_a_place(self) -> Self:
        if self.teacher is None or self.teacher.store is None:
            own = {name: value for name, value in self.store if value != StoreConfig.model_fields[name].default}
            if own:
                said = ", ".join(f"store.{name}" for name in own)
                raise ValueError(f"{said} does nothing without a store: name its folder, teacher.store=FOLDER.")
        return self

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
