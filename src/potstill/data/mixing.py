"""Mixup and CutMix: images of a batch mixed in pairs, and their targets with them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from potstill.batch import Batch
from potstill.errors import DataError

__all__ = ["Mixing"]


@dataclass(frozen=True)
class Mixing:
    r"""Mixup and CutMix of a whole batch with its own reverse: ``x_i`` is mixed with ``x_{B-1-i}``.

    Mixup: :math:`\lambda x_i + (1-\lambda) x_j`. CutMix: a box with a :math:`1-\lambda` part of the image comes from
    :math:`x_j`; the box is cut off at the image's edge, and :math:`\lambda` becomes the part that is left. Targets
    become :math:`\lambda\,\mathrm{onehot}(y_i) + (1-\lambda)\,\mathrm{onehot}(y_j)`; a batch without labels stays
    without. :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` and the box, one of each a batch, are a pure function of
    (seed, epoch, step, part), drawn on the host.

    Attributes:
        classes: number of classes C.
        mixup: alpha of Mixup; 0 turns it off. 0.2 in the Mixup paper on ImageNet, 1 on CIFAR; 0.8 in DeiT.
        cutmix: alpha of CutMix; 0 turns it off. 1 in the CutMix paper and in DeiT.
        seed: another seed, other draws.

    With both, each batch gets one of them, by the toss of a coin. Difference from the papers: the partner is the
    reversed batch (as in timm), not a random permutation; the batch is in random order already.

    Raises:
        DataError: at construction, for an alpha below 0, or both 0.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, section 2; Yun et al., "CutMix:
    Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019, section 3.1.
    """

    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise DataError(
                    f"{name}={getattr(self, name)} is no alpha of a Beta distribution; it must be 0 or more."
                )
        if self.mixup == 0 and self.cutmix == 0:
            raise DataError("Mixing with mixup=0 and cutmix=0 mixes nothing; give one of them, or leave it out.")

    def __call__(self, batch: Batch, epoch: int, step: int, part: int = 0) -> Batch:
        """The mixed batch; its ``targets`` are ``(B, C)`` float32.

        Args:
            batch: images ``(B, 3, H, W)``, targets ``(B,)`` int64 or None.
            epoch: of the draw.
            step: of the epoch.
            part: which of the step's micro-batches, over all processes.
        """
        rng = np.random.default_rng([self.seed % (1 << 63), epoch, step, part])
        cut = rng.random() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        alpha = self.cutmix if cut else self.mixup
        keep = float(rng.beta(alpha, alpha))
        partner = batch.images.flip(0)
        if cut:
            top, bottom, left, right = _box(rng, keep, *batch.images.shape[2:])
            images = batch.images.clone()
            images[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
            keep = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
        else:
            images = torch.lerp(partner, batch.images, keep)
        if batch.targets is None:
            return replace(batch, images=images)
        targets = F.one_hot(batch.targets, self.classes).float()
        return replace(batch, images=images, targets=torch.lerp(targets.flip(0), targets, keep))


def _box(rng: np.random.Generator, keep: float, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box with a ``1 - keep`` part of the image around a uniform centre."""
    side = (1 - keep) ** 0.5
    tall, wide = int(height * side), int(width * side)
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(row - tall // 2, 0), min(row + tall // 2, height)
    left, right = max(column - wide // 2, 0), min(column + wide // 2, width)
    return top, bottom, left, right
