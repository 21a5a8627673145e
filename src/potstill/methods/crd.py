"""Contrastive representation distillation (CRD), with memory banks."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.banks import Banks, of_all_processes, processes
from potstill.methods.base import Known, Method, Needs, Setting
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.numerics import full_precision, unit
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["CRD", "crd", "scores"]

BANKS_UP_TO = 4 * 2**30  # bytes of both banks together that bank="auto" takes


def scores(
    anchors: Tensor, bank: Tensor, index: Tensor, negatives: Tensor, temperature: float = 0.07
) -> tuple[Tensor, Tensor]:
    r"""How much each image's vector is like its own row of the other network's bank, and like rows of other images.

    .. math:: \ell_{ij} = \langle e_i, M_j \rangle / \tau

    Negatives that the batch shares are scored by one matrix product. Those that each image has of its own are picked
    out of the product with the whole bank, which is quicker than to copy B K rows. No gradient reaches the bank.

    Args:
        anchors: e, ``(B, E)`` of length 1, any floating dtype; computed in float32, or float64 where it is that.
        bank: M, ``(N, E)``.
        index: ``(B,)`` int64, each image's own row.
        negatives: int64 rows, ``(M,)`` for the whole batch, or ``(B, K)``.
        temperature: tau > 0; 0.07 in the paper.

    Returns:
        ``(B,)`` and ``(B, M)`` or ``(B, K)``, for :func:`crd`.

    Example:
        >>> bank = torch.eye(3)
        >>> scores(bank[:1], bank, torch.tensor([0]), torch.tensor([1, 2]), temperature=0.5)
        (tensor([2.]), tensor([[0., 0.]]))
    """
    anchors = full_precision(anchors) / temperature
    bank = bank.detach()
    positive = (anchors * bank.index_select(0, index)).sum(1)
    if negatives.ndim == 1:
        return positive, anchors @ bank.index_select(0, negatives).T
    # A copy, because a step writes to its bank before its backward pass reads what was multiplied here.
    return positive, (anchors @ bank.clone().T).gather(1, negatives)


def crd(
    positive: Tensor,
    negative: Tensor,
    log_z: Tensor,
    samples: int,
    others: Tensor | None = None,
    eps: float = 1e-7,
) -> Tensor:
    r"""One side of CRD: tell the pair of one image from K pairs of images of other classes.

    .. math:: L = -\frac{1}{b} \sum_{i=1}^{b} \Big[ \log \frac{x_{i0}}{x_{i0} + K/N + \epsilon}
              + \sum_{j=1}^{K} \log \frac{K/N}{x_{ij} + K/N + \epsilon} \Big], \qquad x = e^{\ell} / Z

    A sum over the negatives, a mean over the batch. It is computed from the logarithms, which overflow nowhere.
    CRD is this of the student's vectors and the teacher's bank, plus this of the teacher's vectors and the student's
    bank.

    Args:
        positive: l_i0, ``(B,)``, of :func:`scores`; float32, or float64.
        negative: l_ij, ``(B, M)``.
        log_z: log Z, a scalar without gradient.
        samples: N.
        others: ``(B, M)``, 1 or true where one of the M is a negative of an image; None where all are. K is their
            number; an image without any counts 0.
        eps: as in the authors' code.

    Returns:
        A scalar, not below 0.

    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699),
    section 3; RepDistiller's ``crd/``, whose values these are.

    Example:
        >>> crd(torch.zeros(1), torch.zeros(1, 2), torch.tensor(0.0), samples=2)
        tensor(2.0794)
    """
    if others is not None:
        others = others.to(negative.dtype)
    count = torch.full_like(positive, negative.shape[1]) if others is None else others.sum(1)
    noise = count / samples
    shift = log_z.detach() + torch.log(noise + eps)  # x / (K/N + eps) is exp(l - shift)
    pulled = torch.where(count > 0, F.logsigmoid(positive - shift), 0.0)  # with no negatives nothing is to be told
    pushed = F.softplus(negative - shift[:, None], threshold=40)  # float64 sees 1 + exp(-x) up to there
    pushed = (pushed if others is None else pushed * others).sum(1)
    kept = torch.xlogy(count, noise / (noise + eps))
    return (pushed - pulled - kept).mean()


@register("crd")
class CRD(Method):
    """Contrastive distillation of the embeddings; the common objectives are ce + 0.8 crd, and with kd beside it.

    Both networks' embeddings go through a trainable ``Linear(D -> E)`` each and are scaled to length 1; two banks hold
    what became of every training image (:class:`~potstill.methods.banks.Banks`). The linear layers train with the
    student and do not ship.

    Args:
        setting: both networks, and the number of training images, which the banks are sized by.
        negatives: K, 16384 in the authors' code; here at most the images that the largest class leaves over.
        dim: E.
        temperature: tau.
        momentum: of the banks: a row becomes ``momentum * row + (1 - momentum) * new``, scaled to length 1.
        bank: false compares within the batch, a form of our own without banks: an image's negatives are the batch's
            images of other classes, by the same formula. "auto" does so where both banks would take over 4 GiB, or
            where the number of images is not known.
        draw: "batch" draws K rows for each image out of one random order of the bank for the whole batch, so that a
            step is one small matrix product; "image" draws for each image apart, with replacement, and takes longer.

    Raises:
        RecipeError: for numbers out of range, no teacher, a bank for an unknown number of images, or a batch of 1
            without a bank; later for images of one class, without labels, or with mixed ones.
    """

    needs = Needs(student=frozenset({"embedding"}), teacher=frozenset({"embedding"}), labels=True)
    log_z: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        negatives: int = 16384,
        dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        bank: bool | Literal["auto"] = "auto",
        draw: Literal["batch", "image"] = "batch",
    ) -> None:
        super().__init__()
        teacher = teacher_spec(setting, "crd")
        if min(negatives, dim) < 1 or not (math.isfinite(temperature) and temperature > 0) or not 0 <= momentum < 1:
            raise RecipeError(
                f"crd got negatives={negatives}, dim={dim}, temperature={temperature} and momentum={momentum}; "
                "expected whole numbers from 1, a positive temperature such as 0.07, and a momentum from 0 to below 1."
            )
        if bank is True and not setting.samples:
            raise RecipeError(
                "crd has a row of its bank for each image, and their number is not known; use bank=false."
            )
        fits = 0 < 8 * setting.samples * dim <= BANKS_UP_TO
        if not (fits if bank == "auto" else bank) and setting.batch_size == 1:
            raise RecipeError("crd without a bank compares the images of a batch, and a batch_size of 1 has no others.")
        self.banks = None
        if fits if bank == "auto" else bank:
            self.banks = Banks(setting.samples, dim, negatives, momentum, draw == "batch", setting.batch_size)
        self.temperature = temperature
        self.samples = setting.samples if self.banks else 1  # without banks N cancels out
        self.student_embed = nn.Linear(setting.student.embedding_dim, dim)
        self.teacher_embed = nn.Linear(teacher.embedding_dim, dim)
        self.register_buffer("log_z", torch.full((2,), torch.nan))  # of the student's side and of the teacher's
        self.ready = False  # whether log_z has been set, known without a look at the device
        self.register_load_state_dict_post_hook(_look_up_z)

    def prepare(self, known: Known) -> None:
        """Take in the labels, to draw images of other classes; nothing to do without banks.

        Raises:
            RecipeError: for images without labels, another number of them than the banks have rows, or of one class.
        """
        if self.banks is not None:
            self.banks.sort(known.labels)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """The loss of both sides; in training the banks then take in the batch.

        Images that are evaluated have no rows in the banks: they are compared among themselves.
        """
        targets = batch.targets
        if targets is None or targets.is_floating_point():
            raise RecipeError("crd tells classes apart, by one label an image: use labels, and no mixup or CutMix.")
        s = unit(self.student_embed(student.embedding))
        t = unit(self.teacher_embed(teacher_features(teacher, "crd").embedding.detach()))
        others: Tensor | None
        if self.banks is not None and self.training:
            rows, others = self.banks.negatives(batch.index)
            own, of_s, of_t = batch.index, self.banks.student, self.banks.teacher
        else:
            rows = own = torch.arange(len(s), device=s.device)
            others, of_s, of_t = targets[:, None] != targets, s, t
        sides = [scores(e, bank, own, rows, self.temperature) for e, bank in ((s, of_t), (t, of_s))]
        log_z = self._normaliser(sides, others)
        if self.banks is not None and self.training:
            self.banks.remember(batch, s.detach(), t.detach())
        (s_positive, s_negative), (t_positive, t_negative) = sides
        loss = crd(s_positive, s_negative, log_z[0], self.samples, others)
        return loss + crd(t_positive, t_negative, log_z[1], self.samples, others)

    def _normaliser(self, sides: list[tuple[Tensor, Tensor]], others: Tensor | None) -> Tensor:
        """Both sides' log Z: Z is N times the mean of exp(score) in the first batch of the training."""
        if self.ready:
            return self.log_z
        found = torch.stack([_log_mean_exp(*side, others) for side in sides]).detach() + math.log(self.samples)
        if self.training:
            found = of_all_processes(found).logsumexp(0) - math.log(processes())
            self.log_z.copy_(found)
            self.ready = True
        return found


def _log_mean_exp(positive: Tensor, negative: Tensor, others: Tensor | None) -> Tensor:
    if others is not None:
        negative = negative + others.to(negative.dtype).log()  # of those that do not count, exp(-inf) is 0
    found = torch.cat([positive, negative.flatten()])
    return found.logsumexp(0) - torch.log((found > -torch.inf).sum().to(found.dtype))


def _look_up_z(module: CRD, _: object) -> None:
    module.ready = not bool(module.log_z.isnan().any())
