"""The formats: how each is written, and how each is read back without the student."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.networks.card import NetworkCard
from potstill.networks.ship import load_student, ship_student
from potstill.networks.tap import Tapped

__all__ = ["FORMATS", "Format", "Student"]

BATCHES = (1, 3)  # two sizes, neither that of the example below: a graph that has fixed its batch fails
EXAMPLE_BATCH = 2  # 0 and 1 would be taken for constants


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a student.

    Attributes:
        file: the file's name.
        write: writes it into a folder.
        read: makes a function from images to logits out of the file, without the student.
        packages: what must be installed besides Potstill's own requirements.
        is_graph: it holds the computation, so it can hold the normalisation of the images too.
    """

    file: str
    write: Callable[["Student", Path], None]
    read: Callable[["Student", Path], Callable[[Tensor], Tensor]]
    packages: tuple[str, ...] = ()
    is_graph: bool = True


class Normalised(nn.Module):
    """A network that takes pixels in 0..1 and normalises them itself."""

    mean: Tensor  # (1, 3, 1, 1), as is std
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, H, W)`` float in 0..1 to logits ``(B, C)``."""
        return self.network((pixels - self.mean) / self.std)


@dataclass(frozen=True)
class Student:
    """What is exported: the network, what is known of it, and whether its graphs take raw pixels."""

    tapped: Tapped
    card: NetworkCard
    raw: bool

    @cached_property
    def graph(self) -> torch.export.ExportedProgram:
        """The traced computation, of any batch size."""
        network = self.tapped.network.requires_grad_(False)
        module = Normalised(network, self.card.mean, self.card.std) if self.raw else network
        images = torch.rand(EXAMPLE_BATCH, *self.card.input_size)
        with quiet():
            graph = torch.export.export(module.eval(), (images,), dynamic_shapes=batch_axis())
        graph.example_inputs = None  # two images, which would be in the file too
        for node in graph.graph.nodes:
            node.meta.pop("stack_trace", None)  # the paths and lines of this machine's files
        return graph

    def examples(self, raw: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Random images ``(B, 3, H, W)`` as a file takes them, with the student's own logits ``(B, C)`` for them."""
        mean, std = (torch.tensor(row).view(1, -1, 1, 1) for row in (self.card.mean, self.card.std))
        generator = torch.Generator().manual_seed(0)
        for batch in BATCHES:
            pixels = torch.rand(batch, *self.card.input_size, generator=generator)
            normalised = (pixels - mean) / std
            yield (pixels if raw else normalised), self.tapped.network(normalised)


def write_safetensors(student: Student, folder: Path) -> None:
    ship_student(folder, student.tapped, student.card)


def read_safetensors(student: Student, path: Path) -> Callable[[Tensor], Tensor]:
    return load_student(path.parent, student.card.model).network


def write_onnx(student: Student, folder: Path) -> None:
    graph, output = student.graph, "logits" if student.card.num_classes else "embedding"
    with quiet():
        program: Any = torch.onnx.export(
            graph,
            (),
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=batch_axis("batch"),
            dynamo=True,
            verbose=False,
        )
        program.save(str(folder / "student.onnx"), external_data=False)


def read_onnx(student: Student, path: Path) -> Callable[[Tensor], Tensor]:
    onnx, onnxruntime = (importlib.import_module(name) for name in ("onnx", "onnxruntime"))
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def write_torch(student: Student, folder: Path) -> None:
    content = io.BytesIO()  # not a path: torch would hide in a RuntimeError why the disk refuses it
    torch.export.save(student.graph, content)
    (folder / "student.pt2").write_bytes(content.getbuffer())


def read_torch(student: Student, path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


FORMATS: dict[str, Format] = {
    "safetensors": Format("student.safetensors", write_safetensors, read_safetensors, is_graph=False),
    "onnx": Format("student.onnx", write_onnx, read_onnx, packages=("onnx", "onnxscript", "onnxruntime")),
    "torch": Format("student.pt2", write_torch, read_torch),
}


def batch_axis(name: str | None = None) -> tuple[dict[int, Any]]:
    """The first axis is free; torch.onnx takes a name for it, torch.export a dimension."""
    return ({0: name or torch.export.Dim("batch", min=1)},)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks and half-traced graphs from the user; what fails is raised, and says why."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # not by a logger's level: torch's loggers below have levels of their own
    try:
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
