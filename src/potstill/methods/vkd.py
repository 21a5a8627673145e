"""VkD: an orthogonal projector, and a teacher's embedding that is normalised."""

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError, nearest
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision
from potstill.methods.registry import register
from potstill.networks.features import Features
from potstill.projectors.orthogonal import OrthogonalLinear

__all__ = ["Distance", "Normalisation", "VkD", "normalised_teacher", "vkd", "vkd_tokens", "whiten"]

Normalisation = Literal["layer_norm", "whitening"]
Distance = Literal["smooth_l1", "mse"]
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}


def vkd(
    projected: Tensor,
    teacher_embedding: Tensor,
    normalisation: Normalisation = "layer_norm",
    distance: Distance = "smooth_l1",
) -> Tensor:
    r"""Distance of the projected student embeddings from the teacher's normalised ones.

    .. math:: L = \frac{1}{b m} \sum_{i=1}^{b} \sum_{j=1}^{m} h\big((W s_i)_j - \operatorname{LN}(t_i)_j\big),
              \qquad h(x) = \begin{cases} x^2 / 2 & |x| < 1 \\ |x| - 1/2 & \text{else} \end{cases}

    with W orthonormal (:class:`~potstill.projectors.OrthogonalLinear`) and LN the layer norm over the values of
    one embedding, without scale and shift. The student's embedding is not normalised.

    Args:
        projected: W s, ``(B, m)``, any floating dtype; computed in float32, or float64 where it is that. The authors' s
            is the mean of the patch tokens.
        teacher_embedding: t, ``(B, m)``, the pooled last map; no gradient reaches it.
        normalisation: "layer_norm", for recognition; "whitening" over the batch (:func:`whiten`), for generation.
        distance: "smooth_l1", h above; "mse", x².

    Returns:
        A scalar, the mean over images and values.

    Raises:
        NetworkError: for two shapes, or as :func:`whiten`.

    Source: Miles, Elezi and Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024;
    roymiles/vkd (``engine.py``). Whitening is not in that repository.

    Example:
        >>> import torch
        >>> vkd(torch.zeros(1, 2), torch.tensor([[3.0, 5.0]]))  # the layer norm makes them -1 and 1
        tensor(0.5000)
    """
    if projected.shape != teacher_embedding.shape:
        raise NetworkError(
            f"vkd compares vectors of one shape, but the projected ones are {tuple(projected.shape)} and the "
            f"teacher's {tuple(teacher_embedding.shape)}."
        )
    return _DISTANCES[distance](full_precision(projected), normalised_teacher(teacher_embedding, normalisation))


def normalised_teacher(teacher_embedding: Tensor, normalisation: Normalisation = "layer_norm") -> Tensor:
    """What :func:`vkd` compares with: the teacher's embeddings ``(B, m)``, normalised and outside the graph."""
    teacher_embedding = full_precision(teacher_embedding.detach())
    if normalisation == "whitening":
        return whiten(teacher_embedding)
    return F.layer_norm(teacher_embedding, teacher_embedding.shape[-1:])


@torch.no_grad()
def whiten(embedding: Tensor, *, zca: bool = False, eps: float = 1e-12) -> Tensor:
    r"""Embeddings without correlations over the batch: mean 0, covariance the identity.

    .. math:: x_i = L^{-1} (t_i - \bar t), \qquad L L^T = \frac{1}{b - 1} \sum_i (t_i - \bar t)(t_i - \bar t)^T

    Computed in float64: a covariance is as ill-conditioned as its embeddings squared.

    Args:
        embedding: t, ``(B, m)`` with B > m, any floating dtype.
        zca: take the symmetric root of the inverse covariance instead of Cholesky's; the two differ by a rotation, and
            the paper does not say which. It waits for the device.
        eps: added to the covariance's diagonal, as a part of the mean variance, so that values that never change
            become 0; other embeddings are not disturbed to within 1e-11.

    Returns:
        ``(B, m)``, float32, or float64 where the embedding is that; outside the graph.

    Raises:
        NetworkError: where the images are not more than the values: the covariance has no inverse.

    Source: the Cholesky form is ``Whitening2d(eps=0)`` of htdt/self-supervised, to which VkD's author points.

    Example:
        >>> white = whiten(torch.randn(50, 3))
        >>> torch.testing.assert_close(torch.cov(white.T), torch.eye(3), rtol=0, atol=1e-5)
    """
    images, length = embedding.shape
    if images <= length:
        raise NetworkError(
            f"Whitening embeddings of length {length} takes a batch of more than {length} images; got {images}. Raise "
            "batch_size, or take layer_norm."
        )
    centred = embedding.double() - embedding.double().mean(0)
    covariance = centred.T @ centred / (images - 1)
    floor = (eps * covariance.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny)
    covariance = covariance + floor * torch.eye(length, dtype=torch.float64, device=embedding.device)
    if zca:
        values, vectors = torch.linalg.eigh(covariance)
        white = centred @ (vectors * values.rsqrt()) @ vectors.T
    else:
        root = torch.linalg.cholesky_ex(covariance).L  # does not wait for the device to say that it worked
        white = torch.linalg.solve_triangular(root, centred.T, upper=False).T
    return white.to(full_precision(embedding).dtype)


def vkd_tokens(projected: Tensor, teacher_tokens: Tensor, eps: float = 1e-12) -> Tensor:
    r"""Distance of tokens that are standardised over all tokens of the batch, both networks' alike.

    .. math:: L = \operatorname{mean} h(z(p) - z(t)), \qquad z(x)_{rj} = (x_{rj} - \mu_j) / \sigma_j

    with h as in :func:`vkd`, mean and (unbiased) deviation of each channel j over all rows r. For detectors (ViDT),
    where p = scale * (W s) + bias; neither the bias nor the size of the scale has any effect. The authors add such
    terms up over scales, body and neck and weigh the sum with 4.

    Args:
        projected: p, ``(..., D)``, any floating dtype; computed in float32, or float64 where it is that.
        teacher_tokens: t, of the same shape; no gradient reaches them.
        eps: a channel that deviates less than this is constant: it counts as 0, with gradient 0.

    Returns:
        A scalar, the mean over tokens and channels.

    Raises:
        NetworkError: for two shapes, or fewer than two tokens.

    Source: as :func:`vkd`; ``vidt/methods/vidt/criterion.py``, which has no eps.

    Example:
        >>> import torch
        >>> tokens = torch.randn(2, 5, 4)
        >>> vkd_tokens(3 * tokens + 1, tokens).item() < 1e-9
        True
    """
    if projected.shape != teacher_tokens.shape or projected.shape[:-1].numel() < 2:
        raise NetworkError(
            f"vkd_tokens compares two tokens or more of one shape, but the projected ones are {tuple(projected.shape)} "
            f"and the teacher's {tuple(teacher_tokens.shape)}."
        )
    return F.smooth_l1_loss(_standardised(projected, eps), _standardised(teacher_tokens.detach(), eps))


@register("vkd")
class VkD(Method):
    """Orthogonal projection and normalised teacher as an objective's term; the authors' objective is ce + vkd + kd.

    The projector trains with the student, without weight decay, and never ships.

    Args:
        setting: both networks.
        normalisation: of the teacher's embedding, see :func:`vkd`.
        distance: see :func:`vkd`.

    Raises:
        RecipeError: for an unknown choice, a batch too small for whitening, or no teacher.
    """

    needs = Needs(student=frozenset({"embedding"}), teacher=frozenset({"embedding"}))
    decays: ClassVar[bool] = False

    def __init__(
        self, setting: Setting, *, normalisation: Normalisation = "layer_norm", distance: Distance = "smooth_l1"
    ) -> None:
        super().__init__()
        length = teacher_spec(setting, "vkd").embedding_dim
        for name, value, choices in (
            ("normalisation", normalisation, get_args(Normalisation)),
            ("distance", distance, get_args(Distance)),
        ):
            if value not in choices:
                raise RecipeError(f"{name} is {value!r}; it is {' or '.join(choices)}.{nearest(str(value), choices)}")
        if normalisation == "whitening" and 0 < setting.batch_size <= length:
            raise RecipeError(
                f"Whitening takes a batch of more images than the teacher's embedding has values ({length}), and "
                f"batch_size is {setting.batch_size}. Raise it, or take normalisation: layer_norm."
            )
        self.projector = OrthogonalLinear(setting.student.embedding_dim, length)
        self._fewest = length + 1 if normalisation == "whitening" and setting.batch_size else 0
        self.normalisation: Normalisation = normalisation
        self.distance: Distance = distance

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of the batch's embeddings; 0 for an epoch's last, smaller batch that is too small for whitening."""
        target = teacher_features(teacher, "vkd").embedding
        if len(target) < self._fewest:
            return 0.0 * self.projector(student.embedding).sum()
        return vkd(self.projector(student.embedding), target, self.normalisation, self.distance)


def _standardised(tokens: Tensor, eps: float) -> Tensor:
    rows = full_precision(tokens).flatten(0, -2)
    centred = rows - rows.mean(0)
    variance = centred.square().sum(0) / (len(rows) - 1)
    constant = variance < eps**2
    # The inner mask keeps the root of 0 out of the graph: its gradient is infinite.
    return centred * torch.where(constant, 0.0, torch.where(constant, 1.0, variance).rsqrt())
