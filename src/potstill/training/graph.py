"""A whole training step as one CUDA graph: recorded once, and then started by a single call in each step.

::

    the first steps     done as they are, on a side stream: memory, libraries and the optimiser's state settle
    then, once          a step is recorded, which does nothing
    each step           rate, seed, index and view are set; the recording runs

The steps before the recording are steps of the training like all others, so there is nothing to put back. A recording
repeats its kernels with the addresses and the numbers that it saw. What changes from step to step is therefore written
into tensors that stay where they are; what changes from epoch to epoch in Python (a warm-up's weight, whether a method
has begun) is looked at, and where it is not what was recorded, the step is recorded anew.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.data.resident import ResidentLoader
from potstill.errors import PotstillError, RunError
from potstill.methods.objective import Objective
from potstill.methods.vkd import VkD
from potstill.projectors.orthonormal import Orthonormal
from potstill.training.clock import Clock
from potstill.training.settings import Loader
from potstill.training.step import TrainingStep

__all__ = ["Capture", "CudaCapture", "GraphedStep", "Place", "hindrances"]

_SETTLING = 3  # steps before one is recorded: what is done once (workspaces, compiling, an optimiser's state) is done


class Capture(Protocol):
    """How work on a device is recorded and repeated."""

    def aside(self, work: Callable[[], None]) -> None:
        """Do the work where it will be recorded."""

    def record(self, work: Callable[[], None]) -> None:
        """Record the work and do nothing of it."""

    def replay(self) -> None:
        """Do what was recorded."""

    def forget(self) -> None:
        """Give back what the recording holds."""


class CudaCapture:
    """A CUDA graph on a stream of its own.

    Random numbers are drawn as without it: a replay begins at the seed and the offset that PyTorch's generator has.

    Args:
        device: of the run.

    Raises:
        RunError: for a device that has no CUDA graphs.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise RunError(f"graph=true is for CUDA devices, and this run is on {device.type}; leave it out.")
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def aside(self, work: Callable[[], None]) -> None:
        """Do the work on the stream that records: libraries keep a workspace a stream."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> None:
        """Record the work.

        Raises:
            RunError: where it draws random numbers on the host, which would be the same in each replay.
        """
        graph, drawn = torch.cuda.CUDAGraph(), torch.get_rng_state()
        with torch.cuda.graph(graph, stream=self._stream):
            work()
        if not torch.equal(drawn, torch.get_rng_state()):
            raise RunError("The step draws random numbers on the host, which would be the same in each replay.")
        self._graph = graph

    def replay(self) -> None:
        """Start the graph on the current stream."""
        if self._graph is None:
            raise RuntimeError("There is nothing to replay: record comes first.")
        self._graph.replay()

    def forget(self) -> None:
        """Drop the graph with its memory."""
        self._graph = None


@dataclass(frozen=True, slots=True)
class Place:
    """A step's samples, of which no image is made yet.

    Attributes:
        index: ``(B,)`` int64 on the device, as a batch's.
        view: likewise.
    """

    index: Tensor
    view: Tensor


class GraphedStep:
    """Takes the steps of a loop: full ones by a recording, the others as they are.

    Not recorded are an epoch's last batch where it is shorter, steps that measure the gradient's shares, and the first
    ones.

    Args:
        step: student and objective; what they hold in Python decides whether a recording still holds.
        loader: the training images, on the device.
        train: takes one step on batches, with device work alone where it does not measure; returns the shares.
        clock: is told that the time of a full step is one part.
        capture: records.

    Raises:
        RunError: for a loader whose batches are not made on the device, or one a step; and for an objective that cannot
            be recorded.
    """

    def __init__(
        self,
        step: TrainingStep,
        loader: Loader,
        train: Callable[[Sequence[Batch], bool], dict[str, Tensor]],
        clock: Clock,
        capture: Capture,
    ) -> None:
        self._loader = _made_on_the_device(loader)
        if reasons := hindrances(step.objective):
            raise RunError(f"graph=true cannot be: {'; '.join(reasons)}. Leave it out, or take these terms out.")
        # An AdamW that can be recorded says so at each step that is not; some of them are not.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
        self._step, self._train, self._clock, self._capture = step, train, clock, capture
        size, device = self._loader.plan.batch_size, self._loader.device
        self._index = torch.zeros(size, dtype=torch.int64, device=device)
        self._view = self._index.clone()
        self._settled = 0  # steps since there was no recording
        self._recorded: dict[str, Any] | None = None  # what was held in Python when the step was recorded
        self._look = True  # whether that may be something else by now

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Place]:
        """The samples of each step from ``start`` on."""
        self._look = True
        for index, view in self._loader.places(epoch, start):
            yield Place(index, view)

    def take(self, place: Place, measure: bool) -> dict[str, Tensor]:
        """Take one step; the gradient's shares where it measures them."""
        if measure or len(place.index) != len(self._index):
            self._look = True
            return self._train([self._loader.made(place.index, place.view)], measure)
        self._index.copy_(place.index)
        self._view.copy_(place.view)
        with self._clock.whole("graph"):
            self._advance()
        return {}

    def forget(self) -> None:
        """Give back the recording's memory; the next steps are as the first ones."""
        self._capture.forget()
        self._recorded, self._settled = None, 0

    def _advance(self) -> None:
        if self._look and self._recorded is not None and self._recorded != _held_in_python(self._step):
            self.forget()
        self._look = False
        if self._recorded is None:
            if self._settled < _SETTLING:
                self._settled += 1
                self._capture.aside(self._work)
                return
            self._record()
        self._capture.replay()

    def _work(self) -> None:
        self._train([self._loader.made(self._index, self._view)], False)

    def _record(self) -> None:
        held, drawn = _held_in_python(self._step), _drawn_in_python()
        failed: list[Exception] = []

        def work() -> None:
            try:
                self._work()
            except Exception as error:  # the end of a recording fails too then, and says less
                failed.append(error)
                raise

        try:
            self._capture.record(work)
        except Exception as error:
            cause = failed[0] if failed else error
            reason = str(cause) if isinstance(cause, PotstillError) else f"{type(cause).__name__}: {cause}"
            raise RunError(_refusal(reason.splitlines()[0])) from cause
        now = _held_in_python(self._step)
        if changed := sorted(key for key in held.keys() | now.keys() if held.get(key) != now.get(key)):
            raise RunError(
                _refusal(
                    f"it changes {', '.join(changed[:3])} in Python, which a recording does not repeat; a buffer that "
                    "is written in place would do"
                )
            )
        if drawn != _drawn_in_python():
            raise RunError(_refusal("it draws random numbers on the host, with Python's generator or NumPy's"))
        self._recorded = held


def hindrances(objective: nn.Module) -> list[str]:
    """Why an objective cannot be recorded, a sentence's part for each term that cannot; empty where it can.

    Example:
        >>> from potstill.methods.base import Setting
        >>> from potstill.networks.features import FeatureSpec
        >>> setting = Setting(FeatureSpec(classes=10, embedding_dim=4), FeatureSpec(classes=10, embedding_dim=8))
        >>> hindrances(Objective(setting, {"ce": 1.0, "pefd": 25.0}))
        []
        >>> hindrances(Objective(setting, {"vkd": 1.0}))
        ['vkd factorises matrices, which cuSOLVER does not promise to do inside a graph']
    """
    found = []
    for name, method in objective.methods.items() if isinstance(objective, Objective) else ():
        whitens = isinstance(method, VkD) and method.normalisation == "whitening"
        if whitens or any(isinstance(part, Orthonormal) for part in method.modules()):
            found.append(f"{name} factorises matrices, which cuSOLVER does not promise to do inside a graph")
    return found


def _made_on_the_device(loader: Loader) -> ResidentLoader:
    if not isinstance(loader, ResidentLoader):
        raise RunError(f"graph=true makes its batches on the device, and {type(loader).__name__} makes them elsewhere.")
    if loader.mixing is not None:
        raise RunError("graph=true and mixing do not go together: mixup and CutMix draw on the host in each step.")
    if loader.plan.world * loader.plan.accumulate != 1:
        raise RunError(
            f"graph=true takes one batch a step, of one process; got {loader.plan.world} processes and "
            f"accumulate={loader.plan.accumulate}."
        )
    return loader


def _held_in_python(step: nn.Module) -> dict[str, Any]:
    """All numbers, words and flags that the modules hold, and where their tensors lie, by the module's path."""
    held: dict[str, Any] = {}
    for path, module in step.named_modules():
        for name, value in vars(module).items():
            held[f"{path}.{name}" if path else name] = _plain(value)
        if isinstance(module, Objective):  # the epoch itself decides over nothing but these
            held[f"{path}.epoch" if path else "epoch"] = {name: module.weight_now(name) for name in module.weights}
    return held


def _plain(value: Any) -> Any:
    """A value that can be compared later: what is no number, word, flag, tensor or collection of these is left out."""
    if isinstance(value, Tensor):
        return (value.data_ptr(), tuple(value.shape))
    if isinstance(value, float):
        return repr(value)  # NaN is equal to itself so
    if value is None or isinstance(value, bool | int | complex | str | bytes):
        return value
    if isinstance(value, Mapping):
        return tuple((str(key), _plain(one)) for key, one in value.items())
    if isinstance(value, Sequence):
        return tuple(_plain(one) for one in value)
    return sorted(map(repr, value)) if isinstance(value, Set) else ...


def _drawn_in_python() -> tuple[Any, ...]:
    """Where the generators of Python and NumPy are."""
    of_numpy: Any = np.random.get_state()
    return (random.getstate(), of_numpy[1].tobytes(), *of_numpy[2:])


def _refusal(reason: str) -> str:
    return f"The training step cannot be recorded as a CUDA graph: {reason.rstrip('.')}. Set graph=false."
