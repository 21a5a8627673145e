"""The formats: how each is written, and how each is read back without the student."""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401 - the operators that graphs of detectors hold
from torch import Tensor

from potstill.export.quiet import quiet
from potstill.export.student import Student
from potstill.networks.ship import load_student, ship_student

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a student.

    Attributes:
        file: the file's name.
        write: writes it into a folder.
        read: makes a function from a graph's inputs to its outputs out of the file, without the student's weights.
        packages: what must be installed besides Potstill's own requirements.
        is_graph: it holds the computation, so it can hold the normalisation of the images too.
    """

    file: str
    write: Callable[[Student, Path], None]
    read: Callable[[Student, Path], Callable[..., Any]]
    packages: tuple[str, ...] = ()
    is_graph: bool = True


def write_safetensors(student: Student, folder: Path) -> None:
    ship_student(folder, student.tapped, student.card)


def read_safetensors(student: Student, path: Path) -> Callable[..., Any]:
    return student.answer(load_student(path.parent, student.card.model))


def write_onnx(student: Student, folder: Path) -> None:
    graph = student.graph
    with quiet():
        program: Any = torch.onnx.export(
            graph,
            (),
            input_names=list(student.inputs),
            output_names=list(student.outputs),
            dynamic_shapes=student.named_axes,
            dynamo=True,
            verbose=False,
        )
        program.save(str(folder / "student.onnx"), external_data=False)


def read_onnx(student: Student, path: Path) -> Callable[..., Any]:
    onnx, onnxruntime = (importlib.import_module(name) for name in ("onnx", "onnxruntime"))
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Any:
        given = {name: value.numpy() for name, value in zip(student.inputs, inputs, strict=True)}
        outputs = [torch.from_numpy(output) for output in session.run(None, given)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


def write_torch(student: Student, folder: Path) -> None:
    content = io.BytesIO()  # not a path: torch would hide in a RuntimeError why the disk refuses it
    torch.export.save(student.graph, content)
    (folder / "student.pt2").write_bytes(content.getbuffer())


def read_torch(student: Student, path: Path) -> Callable[..., Any]:
    return torch.export.load(path).module()


FORMATS: dict[str, Format] = {
    "safetensors": Format("student.safetensors", write_safetensors, read_safetensors, is_graph=False),
    "onnx": Format("student.onnx", write_onnx, read_onnx, packages=("onnx", "onnxscript", "onnxruntime")),
    "torch": Format("student.pt2", write_torch, read_torch),
}
