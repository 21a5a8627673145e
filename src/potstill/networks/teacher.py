"""The one owner of a frozen network."""

import copy
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RunError
from potstill.networks.features import Features, FeatureSpec
from potstill.networks.fold import FoldReport, fold_batchnorms
from potstill.networks.tapped import Tapped
from potstill.objects import Regions, Size

__all__ = ["Teacher", "Teaches", "fingerprint"]

log = logging.getLogger(__name__)

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class Teaches(Protocol):
    """What a student learns from: a network that runs, or its outputs of before."""

    def features(self, batch: Batch, **reads: bool) -> Features:
        """The teacher's features of a batch; ``reads`` says which of those that are filled on demand are wanted."""

    def settle(self) -> None:
        """Make durable what was written on the way; called before each checkpoint."""


class Teacher:
    r"""A trained network that shows its features and never changes.

    It is a plain object, no ``nn.Module``: as an attribute of a module it is in no state dict, no optimiser and no DDP
    wrapper, and the module's ``.train()`` does not reach it. Each call sets evaluation mode and runs without gradients.

    What runs in float32 is a copy without the batch norms that can be folded (:mod:`potstill.networks.fold`). It shares
    with the network the tensors of every layer that nothing was folded into; ``network`` itself stays as it was given.
    In half precision ``network`` runs: autocast would round the biases that hold the batch norms' shifts, and so move
    all pixels of a channel alike, which no mean over pixels takes back.

    Images come normalised for the student and are renormalised on the device,

    .. math:: x_t = x \, \sigma_s / \sigma_t + (\mu_s - \mu_t) / \sigma_t

    and resized (bilinear, with antialiasing) where the teacher's input size is another.

    Args:
        network: the teacher; it is moved to ``device`` and its parameters are frozen in place.
        mean: of the images that the teacher was trained on, one number a channel.
        std: their standard deviation.
        student_mean: that the images which it is called with were normalised with.
        student_std: likewise.
        input_size: ``(H, W)`` to resize to; None takes the images as they are.
        device: where it runs.
        precision: float32, or bfloat16 or float16 by autocast.
        channels_last: memory format of weights and images.
        fold: in float32, run a copy whose batch norms are in the layers before them, which gives the same numbers up to
            rounding and saves time; False runs ``network``.
        compile: compile what runs at its first call.
        chunk: the most images to run at a time; None for all of a call. On a CPU small chunks stay in its caches.
        others: further teachers, which see the same images; their logits are ``Features.peers``.

    Attributes:
        network: the teacher as it was given, for its spec, its classifier, its norms and its fingerprint.
        running: what runs; ``network`` itself where nothing is folded.
        folds: which batch norms are folded, and why the others are not.

    Raises:
        NetworkError: a mean or deviation of the wrong length or a zero deviation, another precision, chunks of no
            image, or a network to fold that cannot be copied.

    Example:
        >>> from torch import nn
        >>> from potstill.networks.tap import tap
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 10))
        >>> half, full = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
        >>> network = tap(network, input_size=(3, 4, 4))
        >>> teacher = Teacher(network, mean=half, std=half, student_mean=half, student_std=full)
        >>> features = teacher(torch.zeros(2, 3, 4, 4))
        >>> features.embedding.shape, features.logits.requires_grad
        (torch.Size([2, 16]), False)
        >>> teacher.verify()
    """

    def __init__(
        self,
        network: Tapped,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        student_mean: Sequence[float],
        student_std: Sequence[float],
        input_size: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
        channels_last: bool = True,
        fold: bool = True,
        compile: bool = False,
        chunk: int | None = None,
        others: Sequence["Teacher"] = (),
    ) -> None:
        if precision not in PRECISIONS:
            raise NetworkError(f"a teacher runs in one of {PRECISIONS}, not in {precision}")
        if chunk is not None and chunk < 1:
            raise NetworkError(f"a teacher is asked to run {chunk} images at a time; expected 1 or more, or None")
        self.device = torch.device(device)
        self.precision = precision
        self.input_size = input_size
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(device=self.device).to(memory_format=self.memory_format)
        self.network.requires_grad_(False).eval()
        self.statistics = {"mean": mean, "std": std, "student_mean": student_mean, "student_std": student_std}
        self.scale, self.shift = renormalisation(mean, std, student_mean, student_std, self.device)
        self.renormalises = tuple(mean) != tuple(student_mean) or tuple(std) != tuple(student_std)
        self.running, self.folds = self.network, FoldReport({}, {})
        if fold and precision == torch.float32:
            self.running, self.folds = folded_copy(self.network)
        self.run: Any = torch.compile(self.running) if compile else self.running
        self.chunk = chunk
        self.others = tuple(others)
        self.identity = self.fingerprint()
        self._running_identity = self._running_fingerprint()

    @property
    def spec(self) -> FeatureSpec:
        """The shapes of its features."""
        return self.network.spec

    @torch.no_grad()
    def __call__(self, images: Tensor, maps: bool = False, preacts: bool = False, blocks: bool = False) -> Features:
        """Features of ``images`` ``(B, 3, H, W)``: logits and embedding in float32, the others as computed.

        ``maps``, ``preacts`` and ``blocks`` say which of the others to fill.
        """
        self.run.open(preacts=preacts, blocks=blocks)  # before its first compiled call
        self.run.eval()
        seen = images.to(self.device)
        images = self._renormalised(seen)
        if self.input_size is not None and tuple(images.shape[2:]) != tuple(self.input_size):
            images = F.interpolate(images, self.input_size, mode="bilinear", antialias=True)
        images = images.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            chunks = images.split(self.chunk or len(images))
            features = joined([self.run(chunk, maps=maps, preacts=preacts, blocks=blocks) for chunk in chunks])
        peers = tuple(other(seen).logits for other in self.others)
        return replace(features, logits=features.logits.float(), embedding=features.embedding.float(), peers=peers)

    def features(self, batch: Batch, **reads: bool) -> Features:
        """Those of the batch's images; see :class:`Teaches`."""
        return self(batch.images, **reads)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: tuple[Size, ...]) -> list[dict[str, Tensor]]:
        """What a detector finds; see :meth:`potstill.networks.detection.tapped.TappedDetector.detect`."""
        self.running.eval()
        images = self._renormalised(images.to(self.device)).contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            found: list[dict[str, Tensor]] = self.running.detect(images, sizes)  # type: ignore[operator]
        return found

    def _renormalised(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images, self.scale) if self.renormalises else images

    @torch.no_grad()
    def of_regions(self, levels: Sequence[Tensor], regions: Regions) -> tuple[Tensor, Tensor]:
        """A detector's logits ``(R, C + 1)`` and embedding ``(R, D)``, float32, of regions that another one drew.

        Args:
            levels: its pyramid of the same images, as :meth:`__call__` gave it.
            regions: in pixels of these images.
        """
        self.running.eval()
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            logits, embedding = self.running.read_regions(levels, regions)  # type: ignore[operator]
        return logits.float(), embedding.float()

    def settle(self) -> None:
        """Nothing: a network that runs writes nothing."""

    def input(self) -> dict[str, Any]:
        """What its features depend on beside its state and the images: statistics and size, as plain values."""
        rows = {name: [float(value) for value in row] for name, row in self.statistics.items()}
        return {**rows, "size": None if self.input_size is None else [int(side) for side in self.input_size]}

    def fingerprint(self) -> str:
        """The SHA-256 of its state as it is now; with further teachers, of theirs too."""
        own = fingerprint(self.network.network.state_dict())
        if not self.others:
            return own
        return hashlib.sha256(" ".join([own, *(other.fingerprint() for other in self.others)]).encode()).hexdigest()

    def verify(self) -> None:
        """Compare its state with that at the start (``identity``), and that of the copy which ran likewise.

        Raises:
            RunError: the teacher has changed.
        """
        advice = "Something trained it or moved its BatchNorm statistics; the run's features are not the teacher's"
        if (now := self.fingerprint()) != self.identity:
            raise RunError(
                f"the teacher has changed during the run: its fingerprint was {self.identity[:12]} and is {now[:12]}. "
                f"{advice}"
            )
        if (now := self._running_fingerprint()) != (was := self._running_identity):
            raise RunError(
                f"the copy of the teacher that ran has changed during the run: its fingerprint was {was[:12]} and is "
                f"{now[:12]}. {advice}"
            )
        for other in self.others:
            other.verify()

    def _running_fingerprint(self) -> str:
        return "" if self.running is self.network else fingerprint(self.running.network.state_dict())


def folded_copy(network: Tapped) -> tuple[Tapped, FoldReport]:
    """A network with its batch norms folded, which shares all other tensors; itself where none can be folded."""
    name = type(network.network).__name__
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        running = copy.deepcopy(network, shared)
    except Exception as error:  # a module of the user's may hold anything
        raise NetworkError(f"{name} cannot be copied ({error}), so nothing can be folded; give fold=False") from error
    report = fold_batchnorms(running)
    if report.kept and not report.folded:
        log.info("%s runs with its batch norms as they are: %s", name, "; ".join(sorted(set(report.kept.values()))))
    return (running, report) if report.folded else (network, report)


def joined(parts: Sequence[Features]) -> Features:
    """The features of consecutive parts of a batch as those of the batch."""
    if len(parts) == 1:
        return parts[0]
    logits, embedding = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "embedding"))
    others: dict[str, Any] = {
        name: tuple(torch.cat(same) for same in zip(*(getattr(part, name) for part in parts), strict=True))
        for name in ("maps", "preacts", "blocks")
    }
    return Features(logits, embedding, **others)


def renormalisation(
    mean: Sequence[float],
    std: Sequence[float],
    student_mean: Sequence[float],
    student_std: Sequence[float],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Scale and shift, each ``(1, 3, 1, 1)`` float32, that take the student's images to the teacher's."""
    rows = {"mean": mean, "std": std, "student_mean": student_mean, "student_std": student_std}
    if any(len(row) != len(mean) for row in rows.values()):
        lengths = ", ".join(f"{name} has {len(row)}" for name, row in rows.items())
        raise NetworkError(f"mean and std need one number a channel each, of both networks: {lengths}")
    if not all(value > 0 for value in (*std, *student_std)):
        raise NetworkError(f"a standard deviation must be positive: teacher {tuple(std)}, student {tuple(student_std)}")
    mu_t, sigma_t, mu_s, sigma_s = (torch.tensor(row, dtype=torch.float64).view(1, -1, 1, 1) for row in rows.values())
    scale, shift = sigma_s / sigma_t, (mu_s - mu_t) / sigma_t
    return scale.to(device, torch.float32), shift.to(device, torch.float32)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 over a state dict's names, dtypes, shapes and bytes, in the order of the names.

    Example:
        >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(2, 1)})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
