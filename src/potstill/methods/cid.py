"""Comprehensive, interventional distillation (CID)."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import NetworkError, RecipeError
from potstill.methods.base import Method, Needs, Setting
from potstill.methods.ce import ce
from potstill.methods.inputs import teacher_features, teacher_spec
from potstill.methods.kd import kd
from potstill.methods.numerics import full_precision, unit
from potstill.methods.registry import register
from potstill.networks.features import Features

__all__ = ["CID", "ContextStudent", "cid_class", "cid_sample", "with_context"]


def cid_sample(projected: Tensor, teacher_embedding: Tensor, eps: float = 1e-12) -> Tensor:
    r"""How far each image's projected embedding is from the teacher's, measured by the teacher's length.

    .. math:: L_{sample} = \frac{1}{b} \sum_{i=1}^{b} \frac{\lVert A s_i - t_i \rVert^2}{\lVert t_i \rVert^2}

    Args:
        projected: A s, ``(B, D)`` with the teacher's D, any floating dtype; computed in float32, or float64 where it
            is that.
        teacher_embedding: t, ``(B, D)``; takes no gradient.
        eps: an image whose t is shorter counts nothing. The authors' code divides by zero there.

    Returns:
        A scalar, not below 0.

    Raises:
        NetworkError: for two different shapes.

    Source: Deng and Zhang, "Comprehensive Knowledge Distillation with Causal Intervention", NeurIPS 2021;
    ``Xiang-Deng-DL/CID``, whose values these are.

    Example:
        >>> cid_sample(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor(1.)
    """
    if projected.shape != teacher_embedding.shape:
        raise NetworkError(
            f"cid compares vectors of one shape, but the projected ones are {tuple(projected.shape)} and the "
            f"teacher's {tuple(teacher_embedding.shape)}."
        )
    projected, target = full_precision(projected), full_precision(teacher_embedding.detach())
    squared = target.square().sum(1)
    zero = squared < eps**2
    apart = (projected - target).square().sum(1) / torch.where(zero, 1.0, squared)
    return torch.where(zero, 0.0, apart).mean()


def cid_class(student_embedding: Tensor, teacher_embedding: Tensor, labels: Tensor) -> Tensor:
    r"""How differently the two networks see the images of one class among themselves.

    .. math:: L_{class} = \frac{1}{|\mathcal{K}|} \sum_{k \in \mathcal{K}} \frac{1}{n_k^2} \sum_{i, j: y_i = y_j = k}
              \big( \cos(s_i, s_j) - \cos(t_i, t_j) \big)^2

    with K the classes that the batch has n_k >= 2 images of; 0 where there are none.

    Args:
        student_embedding: s, ``(B, d)``, as it is, not projected; any floating dtype, computed in float32, or float64
            where it is that.
        teacher_embedding: t, ``(B, D)``; takes no gradient.
        labels: ``(B,)`` int64.

    Returns:
        A scalar, not below 0. The cosine with a zero vector is 0, and so is its gradient; in the authors' code such a
        gradient is of the order of 1e11.

    Example:
        >>> student, teacher = torch.eye(2), torch.ones(2, 2)
        >>> cid_class(student, teacher, torch.tensor([7, 7]))
        tensor(0.5000)
    """
    s, t = unit(student_embedding), unit(teacher_embedding.detach())
    same = (labels[:, None] == labels).to(s.dtype)
    size = same.sum(1)  # n of each image's class
    pairs = torch.where(size > 1, 1 / size, 0.0)
    apart = same * (s @ s.T - t @ t.T).square()
    # The 1/n of a class's images sum to 1, so the sum of all counts the classes.
    return (apart.sum(1) * pairs.square()).sum() / pairs.sum().clamp_min(1)


def with_context(embedding: Tensor, logits: Tensor, context: Tensor, temperature: float = 4.0) -> Tensor:
    r"""The embedding beside the classes' contexts, weighted by the classes' probabilities: ``(B, 2 d)``.

    .. math:: h_i = [\, s_i \,;\, \operatorname{softmax}(z_i / T)\, M \,]

    Args:
        embedding: s, ``(B, d)``.
        logits: z, ``(B, C)``; takes no gradient.
        context: M, ``(C, d)``.
        temperature: T.

    Example:
        >>> with_context(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[2.0, 0.0], [4.0, 0.0]]))
        tensor([[1., 1., 3., 0.]])
    """
    return torch.cat([embedding, torch.softmax(logits.detach() / temperature, 1) @ context], 1)


@register("cid")
class CID(Method):
    r"""Sample, class and logit distillation, then a classifier that sees each class's context; an objective of its own.

    .. math:: L = a L_{KD} + b L_{sample} + c L_{class}, \qquad
              L = a (L_{CE}(W h) + L_{KD}) + b L_{sample} + c L_{class}

    in the first epochs, and after them. All is inside this term, with ``cid: 1`` as the whole objective: the cross
    entropy is of a classifier of its own on h (:func:`with_context`), not of the student's logits, and sets in late.
    The context is the mean of the student's embeddings of each class over the epoch before, weighted by the teacher's
    probability of the class. The projection A trains with the student and does not ship; the classifier and the context
    belong to the network that the authors deploy (:meth:`deployable`).

    Args:
        setting: both networks, of the same classes.
        logits: a, of the divergence and of the cross entropy.
        sample: b; it depends on the networks, see the card.
        classes: c; likewise.
        temperature: T, of the divergence and of the context's weights.
        first: epochs before there is a context; 20 in the authors' code.
        keep: of the context before, in each epoch after the first one; 0 in the authors' code.

    Raises:
        NetworkError: where the classes differ or a network has none.
        RecipeError: for numbers out of range, or no teacher; later for images without labels, or with mixed ones.
    """

    needs = Needs(student=frozenset({"logits", "embedding"}), teacher=frozenset({"logits", "embedding"}), labels=True)
    decays = False
    context: Tensor
    sums: Tensor
    epoch: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        logits: float = 1.0,
        sample: float = 10.0,
        classes: float = 1.0,
        temperature: float = 4.0,
        first: int = 20,
        keep: float = 0.0,
    ) -> None:
        super().__init__()
        teacher, student = teacher_spec(setting, "cid"), setting.student
        if student.classes != teacher.classes or not student.classes:
            raise NetworkError(
                f"cid compares logits, but the student has {student.classes} classes and the teacher "
                f"{teacher.classes}. Take a teacher of the same classes, or a method that compares embeddings."
            )
        weights = all(math.isfinite(weight) and weight >= 0 for weight in (logits, sample, classes))
        if not (weights and math.isfinite(temperature) and temperature > 0 and first >= 1 and 0 <= keep < 1):
            raise RecipeError(
                f"cid got logits={logits}, sample={sample}, classes={classes}, temperature={temperature}, "
                f"first={first}, keep={keep}; expected weights and a keep from 0, a keep below 1, a positive "
                "temperature such as 4, and a number of epochs from 1."
            )
        self.logits, self.sample, self.classes = logits, sample, classes
        self.temperature, self.first, self.keep = temperature, first, keep
        self.projector = nn.Linear(student.embedding_dim, teacher.embedding_dim)
        self.head = nn.Linear(2 * student.embedding_dim, student.classes)
        self.register_buffer("context", torch.zeros(student.classes, student.embedding_dim))
        # Of this epoch: each class's weighted embeddings, and last the weights.
        self.register_buffer("sums", torch.zeros(student.classes, student.embedding_dim + 1))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.now = 0  # the epoch again, known without a look at the device
        self.register_load_state_dict_post_hook(_look_up_epoch)

    def start_epoch(self, epoch: int) -> None:
        """Make the context of what the epoch before has collected."""
        if epoch >= self.first:
            collected = self.sums[:, :-1] / self.sums[:, -1:].clamp_min(torch.finfo(self.sums.dtype).tiny)
            keep = self.keep if epoch > self.first else 0.0
            self.context.mul_(keep).add_(collected, alpha=1 - keep)
        self.sums.zero_()
        self.epoch.fill_(epoch)
        self.now = epoch

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """All terms, weighted by a, b and c."""
        labels = batch.targets
        if labels is None or labels.is_floating_point():
            raise RecipeError("cid compares within classes, by one label an image: use labels, and no mixup or CutMix.")
        teacher = teacher_features(teacher, "cid")
        projected = self.projector(student.embedding)
        matched = kd(student.logits, teacher.logits, self.temperature)
        # In the first epochs nothing, but nothing of every parameter: several processes wait for all gradients.
        named = 0.0 * (self.head.weight.sum() + self.head.bias.sum())
        if self.now >= self.first:
            seen = with_context(student.embedding, student.logits, self.context, self.temperature)
            named = ce(self.head(seen), labels)
        if self.training and self.now >= self.first - 1:
            self._collect(student.embedding.detach(), teacher.logits.detach(), labels, batch.weight)
        return (
            self.logits * (matched + named)
            + self.sample * cid_sample(projected, teacher.embedding)
            + self.classes * cid_class(student.embedding, teacher.embedding, labels)
        )

    def deployable(self, student: nn.Module) -> nn.Module:
        """The network as its authors deploy it: images in, logits of the classifier with the context out.

        Args:
            student: gives :class:`~potstill.networks.features.Features` of images, as every tapped network does.

        Raises:
            RecipeError: before there is a context.
        """
        if self.now < self.first:
            raise RecipeError(f"cid has a context after {self.first} epochs; train for more, or lower first.")
        return ContextStudent(student, self.head, self.context, self.temperature)

    @torch.no_grad()
    def _collect(self, embedding: Tensor, logits: Tensor, labels: Tensor, weight: float) -> None:
        """Add a batch to the epoch's sums, of all processes, so that these stay equal."""
        sure = torch.softmax(logits / self.temperature, 1).gather(1, labels[:, None]) * float(weight != 0)
        found = torch.zeros_like(self.sums).index_add_(0, labels, torch.cat([sure * embedding, sure], 1))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found)
        self.sums += found


class ContextStudent(nn.Module):
    """A student with CID's classifier and context: images ``(B, 3, H, W)`` in, logits ``(B, C)`` out."""

    context: Tensor

    def __init__(self, student: nn.Module, head: nn.Module, context: Tensor, temperature: float) -> None:
        super().__init__()
        self.student, self.head, self.temperature = student, head, temperature
        self.register_buffer("context", context.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """The classifier's logits."""
        seen = self.student(images)
        return self.head(with_context(seen.embedding, seen.logits, self.context, self.temperature))


def _look_up_epoch(module: CID, _: object) -> None:
    module.now = int(module.epoch)
