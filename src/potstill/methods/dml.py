"""Deep mutual learning: the divergence of a network's predictions from its peers' (DML)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features
from potstill.methods.kd import kd
from potstill.methods.numerics import full_precision
from potstill.methods.pairs import check_shapes, common_classes
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["DML", "Variant", "dml"]

Variant = Literal["paper", "code"]
_EPS = 1e-8  # of the authors' code, twice in its formula


def dml(student_logits: Tensor, peers_logits: Sequence[Tensor], variant: Variant = "paper") -> Tensor:
    r"""How far one network's predictions are from those of the networks that it is trained together with.

    .. math:: L_{DML} = \frac{1}{K - 1} \sum_{j \ne i} KL(p_j \Vert p_i), \qquad
              KL(p_j \Vert p_i) = \frac{1}{b} \sum_{n=1}^{b} \sum_{c=1}^{C} p_{jnc} \log \frac{p_{jnc}}{p_{inc}}

    for network i of K, with ``p = softmax(z)`` and no temperature: the paper's equation. ``variant="code"`` is what
    the authors' code computes: the sum over the peers instead of their mean, and
    ``log(1e-8 + p_j / (p_i + 1e-8))`` for the logarithm. Of two networks both are the same but for the two epsilons.
    The paper's is the default: exact, of one scale whatever K is, and with a gradient where p_i is below 1e-8. No
    gradient reaches the peers: each network takes a call, a step and an optimiser of its own.

    Args:
        student_logits: of network i, ``(B, C)``, any floating dtype; computed in float32, or float64 where it is that.
        peers_logits: of the K - 1 others for the same images, each ``(B, C)``.
        variant: ``"paper"`` or ``"code"``.

    Returns:
        A scalar.

    Raises:
        NetworkError: for logits of two shapes.
        RecipeError: for no peers, or another variant.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018 (arXiv 1706.00384); ``train_models.py`` of
    YingZhangDUT/Deep-Mutual-Learning.

    Example:
        >>> logits = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
        >>> [dml(z, logits[:i] + logits[i + 1 :]) for i, z in enumerate(logits)]
        [tensor(0.9785), tensor(0.3278), tensor(0.9785)]
    """
    peers = list(peers_logits)
    if not peers:
        raise RecipeError("dml learns from peers, and there are none: give the logits of one other network or more.")
    if variant not in ("paper", "code"):
        raise RecipeError(f"variant of dml is {variant!r}; expected 'paper' or 'code'.")
    for peer in peers:
        check_shapes(student_logits, peer, "dml")
    if variant == "paper":
        return torch.stack([kd(student_logits, peer, temperature=1.0) for peer in peers]).mean()
    p_i = full_precision(student_logits).softmax(-1)
    p_j = [full_precision(peer.detach()).softmax(-1) for peer in peers]
    return torch.stack([(p * (_EPS + p / (p_i + _EPS)).log()).sum(-1).mean() for p in p_j]).sum()


@register("dml")
class DML(Method):
    """The teacher as a peer, in an objective; the paper's objective of each network is ce + dml.

    One direction of mutual learning. A teacher that does not learn makes it :func:`~potstill.methods.kd.kd` at
    temperature 1.

    Args:
        setting: both networks, with the same classes.
        variant: see :func:`dml`.

    Raises:
        NetworkError: where the classes differ or a network has none.
        RecipeError: for another variant, or no teacher.
    """

    needs = Needs(student=frozenset({"logits"}), teacher=frozenset({"logits"}))

    def __init__(self, setting: Setting, *, variant: Variant = "paper") -> None:
        super().__init__()
        common_classes(setting, "dml")
        self.variant: Variant = variant

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The divergence of the batch's logits."""
        return dml(student.logits, [teacher_features(teacher, "dml").logits], self.variant)
