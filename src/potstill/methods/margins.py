"""Margins for identities: ArcFace, CosFace and SphereFace, on the logits of an identity head."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["ArcFace", "CosFace", "Margin", "SphereFace", "margin_loss"]


def margin_loss(logits: Tensor, targets: Tensor, scale: float | Tensor, margin: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Cross entropy of scaled cosines, of which the target's is made smaller by a margin.

    .. math:: L = -\frac{1}{b} \sum_{i=1}^{b} \log \frac{e^{s_i \psi(c_{iy})}}{e^{s_i \psi(c_{iy})}
              + \sum_{j \neq y} e^{s_i c_{ij}}}, \qquad c_{ij} = z_{ij} / s_i

    Args:
        logits: z, ``(B, C)``, scaled cosines, any floating dtype; computed in float32, or float64 where it is that.
        targets: y, ``(B,)`` int64, the identities.
        scale: s, a number above 0; or ``(B,)``, a number for each row, through which gradients flow. A row of scale 0
            has cosine 0 with everything.
        margin: psi; takes the targets' cosines ``(B,)`` and returns as many.

    Returns:
        A scalar, the mean over the batch.

    Example:
        >>> margin_loss(torch.tensor([[2.0, 1.0]]), torch.tensor([0]), 2.0, lambda cosine: cosine - 0.5)
        tensor(0.6931)
    """
    logits, targets = full_precision(logits), targets.unsqueeze(1)
    target = logits.gather(1, targets).squeeze(1)
    if isinstance(scale, Tensor):
        scale = scale.to(logits.dtype)
        cosine = target / torch.where(scale == 0, 1.0, scale)
    else:
        cosine = target / scale
    smaller = (scale * margin(cosine)).unsqueeze(1)
    return F.cross_entropy(logits.scatter(1, targets, smaller), targets.squeeze(1))


class Margin(Method):
    """What the three share: an identity head's logits, its scale, the margin of a loss of pytorch-metric-learning's.

    The scale is the head's own, so it stands in the network (``student.args.scale``), not here. The library's loss
    has weights of its own, which stay unused: the network has them.

    Args:
        setting: the student needs an identity head.
        name: the method's, for messages.
        loss: the library's, of which the margin alone is used.

    Raises:
        NetworkError: for a student without an identity head.
    """

    needs = Needs(student=frozenset({"logits"}), labels=True)

    def __init__(self, setting: Setting, name: str, loss: Any) -> None:
        super().__init__()
        if setting.identity_scale is None:
            raise NetworkError(
                f"{name} reads cosines, but this student's last layer is no identity head; take a network for faces, "
                "such as mobilefacenet, iresnet18 or face_backbone."
            )
        self.name = name
        self.scale: float | Literal["norm"] = setting.identity_scale
        if self.scale == "norm":
            self.needs = Needs(student=frozenset({"logits", "embedding"}), labels=True)  # type: ignore[misc]
        self.held = (loss,)  # in a tuple, so that the library's weights neither train nor are saved
        # Numbers that the margin is computed with; as buffers of this module they go where it goes.
        self.constants = [key for key, value in vars(loss).items() if isinstance(value, Tensor)]
        for key in self.constants:
            self.register_buffer(key, getattr(loss, key), persistent=False)

    def margin(self, cosine: Tensor) -> Tensor:
        """The targets' cosines ``(B,)`` with the margin."""
        loss = self.held[0]
        for name in self.constants:
            value = getattr(self, name)
            setattr(loss, name, value.to(cosine.dtype) if value.is_floating_point() else value)
        return loss.modify_cosine_of_target_classes(cosine)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch."""
        if batch.targets is None:
            raise RecipeError(f"{self.name} learns identities from labels, and these images have none.")
        if batch.targets.ndim != 1:
            raise RecipeError(
                f"{self.name} needs one identity for each image, and mixed images have several; take mixup and CutMix "
                f"out, or {self.name}."
            )
        scale: float | Tensor
        if self.scale == "norm":
            scale = torch.linalg.vector_norm(full_precision(student.embedding), dim=1)
        else:
            scale = self.scale
        return margin_loss(student.logits, batch.targets, scale, self.margin)


@register("arcface")
class ArcFace(Margin):
    r"""ArcFace: the angle to the target is made larger, :math:`\psi(c) = \cos(\arccos c + m)`.

    Beyond :math:`\pi - m`, where that would rise again, it is :math:`c - m \sin m`. At cosines of 1 and -1 (to the last
    digit) the arc cosine has no slope, and the target's own gradient is 0.

    Args:
        setting: the student needs an identity head.
        margin: m, in radians, from 0 to below pi; 0.5 in the paper, with scale 64.

    Raises:
        NetworkError: for a student without an identity head.
        RecipeError: for a margin out of range, or where pytorch-metric-learning is not installed.

    Source: Deng, Guo, Xue and Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.
    """

    def __init__(self, setting: Setting, *, margin: float = 0.5) -> None:
        if not 0 <= margin < math.pi:
            raise RecipeError(f"margin of arcface is {margin}; expected radians from 0 to below pi, such as 0.5.")
        degrees = math.degrees(margin)  # as the library takes it
        super().__init__(setting, "arcface", library("arcface").ArcFaceLoss(1, 1, margin=degrees, collect_stats=False))

    def margin(self, cosine: Tensor) -> Tensor:
        """The targets' cosines ``(B,)`` with the margin."""
        step = torch.finfo(cosine.dtype).eps
        return super().margin(cosine.clamp(step - 1, 1 - step))


@register("cosface")
class CosFace(Margin):
    r"""CosFace: the target's cosine is made smaller, :math:`\psi(c) = c - m`.

    Args:
        setting: the student needs an identity head.
        margin: m, from 0 to below 2; 0.35 in the paper, with scale 64.

    Raises:
        NetworkError: for a student without an identity head.
        RecipeError: for a margin out of range, or where pytorch-metric-learning is not installed.

    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018.
    """

    def __init__(self, setting: Setting, *, margin: float = 0.35) -> None:
        if not 0 <= margin < 2:
            raise RecipeError(f"margin of cosface is {margin}; expected a part of a cosine, such as 0.35.")
        super().__init__(setting, "cosface", library("cosface").CosFaceLoss(1, 1, margin=margin, collect_stats=False))


@register("sphereface")
class SphereFace(Margin):
    r"""SphereFace: the angle to the target is multiplied, :math:`\psi(c) = (-1)^k \cos(m \arccos c) - 2k`.

    k is the part of the half circle, out of m, in which the angle lies, so that psi falls all the way. In the paper the
    scale is each embedding's own length: ``student.args: {scale: norm}``. There the margin is also brought in
    step by step beside plain cross entropy, which ``warmup`` does in an objective of both.

    Args:
        setting: the student needs an identity head.
        margin: m, a whole number from 1; 4 in the paper.

    Raises:
        NetworkError: for a student without an identity head.
        RecipeError: for a margin out of range, or where pytorch-metric-learning is not installed.

    Source: Liu et al., "SphereFace: Deep Hypersphere Embedding for Face Recognition", CVPR 2017.
    """

    def __init__(self, setting: Setting, *, margin: int = 4) -> None:
        if margin < 1:
            raise RecipeError(f"margin of sphereface is {margin}; expected a whole number from 1, such as 4.")
        loss = library("sphereface").SphereFaceLoss(1, 1, margin=margin, collect_stats=False)
        super().__init__(setting, "sphereface", loss)


def library(name: str) -> Any:
    """The losses of pytorch-metric-learning, imported where a margin is asked for."""
    try:
        from pytorch_metric_learning import losses
    except ImportError as error:
        raise RecipeError(
            f"{name} needs pytorch-metric-learning, which cannot be imported ({error}): pip install 'potstill[faces]'."
        ) from error
    return losses
