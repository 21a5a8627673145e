"""Two memory banks, a row for each training image in each, and the draw of images of other classes."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.numerics import unit

__all__ = ["Banks", "of_all_processes", "processes"]


class Banks(nn.Module):
    """What became of every training image in the student and in the teacher, as CRD keeps it.

    Args:
        samples: N, rows of each bank.
        dim: E; rows start uniform in ``[-sqrt(3/E), sqrt(3/E))``, which is about length 1.
        count: K, images of other classes to draw for each image.
        momentum: a row becomes ``momentum * row + (1 - momentum) * new``, scaled to length 1.
        shared: draw for the whole batch out of one random order of the images; else for each image apart.
        batch_size: the most images of a process's batch; 0 where that is not known.

    Attributes:
        student: ``(N, E)``, a buffer.
        teacher: likewise.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor | None
    order: Tensor
    sizes: Tensor

    def __init__(self, samples: int, dim: int, count: int, momentum: float, shared: bool, batch_size: int) -> None:
        super().__init__()
        self.count, self.momentum, self.shared, self.batch_size = count, momentum, shared, batch_size
        bound = math.sqrt(3 / dim)
        self.register_buffer("student", torch.empty(samples, dim).uniform_(-bound, bound))
        self.register_buffer("teacher", torch.empty(samples, dim).uniform_(-bound, bound))
        for name in ("labels", "order", "sizes"):  # known again in a resumed run
            self.register_buffer(name, None, persistent=False)

    def sort(self, labels: Tensor | None) -> None:
        """Sort the images by class.

        Args:
            labels: ``(N,)`` int64, by index.

        Raises:
            RecipeError: for no labels, another number of them, or labels of one class.
        """
        samples = len(self.student)
        if labels is None:
            raise RecipeError("crd draws images of other classes, and these have no labels; take crd out.")
        if len(labels) != samples:
            raise RecipeError(f"crd's banks have {samples} rows and there are {len(labels)} labels; expected as many.")
        self.labels = labels.to(self.student.device)
        self.order = self.labels.argsort(stable=True)
        self.sizes = self.labels.bincount()
        largest = int(self.sizes.max())
        self.count = min(self.count, samples - largest)
        self.drawn = self.count + largest  # so many rows hold K of other classes, whatever the class
        if not self.count:
            raise RecipeError("crd draws images of other classes, and all of these are of one; take crd out.")

    def negatives(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of images of other classes.

        Args:
            index: ``(B,)`` int64, the images.

        Returns:
            Rows for the whole batch, ``(M,)`` int64, with 1 for the K of them that count for an image and 0 for the
            others, ``(B, M)``; or each image's own, ``(B, K)``, and None. The first are drawn without replacement, the
            second with.
        """
        if self.labels is None:
            raise RecipeError("crd draws images of other classes and was told no labels: call prepare(Known(labels)).")
        samples, own = len(self.student), self.labels[index]
        if self.shared:
            rows = torch.randperm(samples, device=index.device)[: self.drawn]
            others = (self.labels.index_select(0, rows) != own[:, None]).to(self.student.dtype)
            left = self.count - others[:, : self.count].sum(
                1, keepdim=True
            )  # of K; the first K rows cannot be too many
            rest = others[:, self.count :]
            rest *= rest.cumsum(1) <= left
            return rows, others
        size = self.sizes[own][:, None]
        first = self.sizes.cumsum(0)[own][:, None] - size
        place = torch.randint(2**62, (len(index), self.count), device=index.device) % (samples - size)
        return self.order[place + torch.where(place >= first, size, 0)], None  # a step over the image's own class

    @torch.no_grad()
    def remember(self, batch: Batch, student: Tensor, teacher: Tensor) -> None:
        """Take in a batch: of all processes, so that the banks of all stay equal.

        Args:
            batch: its index and weight; one of weight 0 counts for nothing.
            student: ``(B, E)`` of length 1.
            teacher: likewise.
        """
        index, rows = batch.index, torch.cat([student, teacher], 1)
        if processes() > 1:
            index, rows = self._of_all(index, rows, batch.weight != 0)
        elif batch.weight == 0:
            return
        for bank, new in zip((self.student, self.teacher), rows.chunk(2, 1), strict=True):
            row = self.momentum * bank.index_select(0, index) + (1 - self.momentum) * new
            bank.index_copy_(0, index, unit(row))

    def _of_all(self, index: Tensor, rows: Tensor, counts: bool) -> tuple[Tensor, Tensor]:
        """Indices and rows of all processes; in place of those that count for nothing, copies of the first that does.

        Copies write what is written anyway, so their order does not matter, and shapes do not depend on values.
        """
        length = self.batch_size or int(of_all_processes(torch.tensor(len(index), device=index.device)).max())
        rows = torch.cat([rows, torch.full_like(rows[:, :1], float(counts))], 1)
        index = of_all_processes(F.pad(index, (0, length - len(index)))).flatten()
        rows = of_all_processes(F.pad(rows, (0, 0, 0, length - len(rows)))).flatten(0, 1)
        valid = rows[:, -1] > 0
        source = torch.where(valid, torch.arange(len(index), device=index.device), valid.int().argmax())
        return index.index_select(0, source), rows[:, :-1].index_select(0, source)


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def of_all_processes(tensor: Tensor) -> Tensor:
    """``(processes, ...)`` of a tensor that has one shape in all of them. Waits for all."""
    if processes() == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(processes())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)
