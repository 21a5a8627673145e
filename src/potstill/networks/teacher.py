"""The one owner of a frozen network."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import NetworkError, RunError
from potstill.networks.features import Features, FeatureSpec
from potstill.networks.tapped import Tapped

__all__ = ["Teacher", "fingerprint"]

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class Teacher:
    r"""A trained network that shows its features and never changes.

    It is a plain object, no ``nn.Module``: as an attribute of a module it is in no state dict, no optimiser and no DDP
    wrapper, and the module's ``.train()`` does not reach it. Each call sets evaluation mode and runs without gradients.

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
        compile: compile the network at its first call.
        others: further teachers, which see the same images; their logits are ``Features.peers``.

    Raises:
        NetworkError: a mean or deviation of the wrong length or a zero deviation, or another precision.

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
        compile: bool = False,
        others: Sequence["Teacher"] = (),
    ) -> None:
        if precision not in PRECISIONS:
            raise NetworkError(f"a teacher runs in one of {PRECISIONS}, not in {precision}")
        self.device = torch.device(device)
        self.precision = precision
        self.input_size = input_size
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(device=self.device).to(memory_format=self.memory_format)
        self.network.requires_grad_(False).eval()
        self.run = torch.compile(self.network) if compile else self.network
        self.scale, self.shift = renormalisation(mean, std, student_mean, student_std, self.device)
        self.renormalises = tuple(mean) != tuple(student_mean) or tuple(std) != tuple(student_std)
        self.others = tuple(others)
        self.identity = self.fingerprint()

    @property
    def spec(self) -> FeatureSpec:
        """The shapes of its features."""
        return self.network.spec

    @torch.no_grad()
    def __call__(self, images: Tensor, maps: bool = False, preacts: bool = False, blocks: bool = False) -> Features:
        """Features of ``images`` ``(B, 3, H, W)``: logits and embedding in float32, the others as computed.

        ``maps``, ``preacts`` and ``blocks`` say which of the others to fill.
        """
        self.network.open(preacts=preacts, blocks=blocks)  # before its first compiled call
        self.network.eval()
        images = seen = images.to(self.device)
        if self.renormalises:
            images = torch.addcmul(self.shift, images, self.scale)
        if self.input_size is not None and tuple(images.shape[2:]) != tuple(self.input_size):
            images = F.interpolate(images, self.input_size, mode="bilinear", antialias=True)
        images = images.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            features: Features = self.run(images, maps=maps, preacts=preacts, blocks=blocks)
        peers = tuple(other(seen).logits for other in self.others)
        return replace(features, logits=features.logits.float(), embedding=features.embedding.float(), peers=peers)

    def fingerprint(self) -> str:
        """The SHA-256 of its state as it is now; with further teachers, of theirs too."""
        own = fingerprint(self.network.network.state_dict())
        if not self.others:
            return own
        return hashlib.sha256(" ".join([own, *(other.fingerprint() for other in self.others)]).encode()).hexdigest()

    def verify(self) -> None:
        """Compare its state with that at the start (``identity``).

        Raises:
            RunError: the teacher has changed.
        """
        if (now := self.fingerprint()) != self.identity:
            raise RunError(
                f"the teacher has changed during the run: its fingerprint was {self.identity[:12]} and is {now[:12]}. "
                "Something trained it or moved its BatchNorm statistics; the run's features are not the teacher's"
            )


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
