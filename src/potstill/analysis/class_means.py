"""The mean embedding of each class, collected batch by batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.errors import DataError

__all__ = ["ClassMeans"]

_NAMED = 10  # classes that an error lists


class ClassMeans:
    r"""The plain mean of the embeddings of each class, over as many batches as there are.

    .. math:: c_k = \frac{\sum_i y_{ik} \, t_i}{\sum_i y_{ik}}

    with y one-hot, or the class probabilities of mixed images. Embeddings are not normalised first. Sums are kept in
    float64 (float32 on MPS, which has no other) on the device, and no batch waits for it.

    Args:
        classes: C.
        dim: D, the length of an embedding.
        decimals: round each value before it is added, and each mean, to so many decimals. ND's authors write 4 of them
            to a JSON file; None is exact.
        device: where the sums are.

    Raises:
        DataError: for no classes or an empty embedding.

    Source: ``emb_fea_distribution.py`` of WangYZ1608/Knowledge-Distillation-via-ND, which sees the training images
    through the random training transform, with the teacher in eval mode.

    Example:
        >>> means = ClassMeans(classes=2, dim=1)
        >>> means.add(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> means.means()
        tensor([[2.],
                [5.]], dtype=torch.float64)
    """

    def __init__(
        self, classes: int, dim: int, *, decimals: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if classes < 1 or dim < 1:
            raise DataError(f"Class means need a class and a value at least; got classes={classes}, dim={dim}.")
        device = torch.device(device)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.decimals = decimals
        self._sums = torch.zeros(classes, dim, dtype=dtype, device=device)
        self._counts = torch.zeros(classes, dtype=dtype, device=device)

    @property
    def counts(self) -> Tensor:
        """How many images each class has, ``(C,)``; with soft targets how much weight."""
        return self._counts.clone()

    @torch.no_grad()
    def add(self, embedding: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            embedding: ``(B, D)``, any floating dtype.
            targets: ``(B,)`` integers below C, or ``(B, C)`` floating weights of the classes.

        Raises:
            DataError: for shapes that do not fit.
        """
        classes, dim = self._sums.shape
        soft = targets.is_floating_point()
        expected = (len(embedding), classes) if soft else (len(embedding),)
        if embedding.shape[1:] != (dim,) or targets.shape != expected:
            raise DataError(
                f"Class means of {classes} classes and length {dim} take embeddings (B, {dim}) with targets (B,) or "
                f"probabilities (B, {classes}); got {tuple(embedding.shape)} with {tuple(targets.shape)}."
            )
        values = self._rounded(embedding.to(self._sums))
        if soft:
            weights = targets.to(self._sums)
            self._sums += weights.T @ values
            self._counts += weights.sum(0)
        else:
            targets = targets.to(self._sums.device)
            self._sums.index_add_(0, targets, values)
            self._counts.index_add_(0, targets, torch.ones_like(values[:, 0]))

    def merge(self, other: "ClassMeans") -> None:
        """Add all that another one has seen.

        Raises:
            DataError: for other sizes.
        """
        if other._sums.shape != self._sums.shape:
            raise DataError(
                f"Class means of {tuple(other._sums.shape)} cannot join those of {tuple(self._sums.shape)}; both are "
                "(classes, length)."
            )
        self._sums += other._sums.to(self._sums)
        self._counts += other._counts.to(self._counts)

    def sum_over(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add up what several processes have seen, each of which calls this once.

        Args:
            total: gives a tensor's sum over all processes, such as ``Processes.sum``.
        """
        self._sums, self._counts = total(self._sums), total(self._counts)

    def means(self) -> Tensor:
        """The means, ``(C, D)`` float64; waits for the device.

        Raises:
            DataError: names the classes of which no image was seen; or for embeddings that are no numbers.
        """
        if unseen := (self._counts == 0).nonzero().flatten().tolist():
            named = ", ".join(map(str, unseen[:_NAMED])) + (", ..." if len(unseen) > _NAMED else "")
            raise DataError(
                f"{len(unseen)} of {len(self._counts)} classes have no training image, and so no mean embedding: "
                f"{named}. Take out the method that needs class means, or add images of every class."
            )
        means = self._sums / self._counts.unsqueeze(-1)
        if not means.isfinite().all():
            raise DataError("The teacher's embeddings are not all finite numbers, so their means are none either.")
        return self._rounded(means)

    def _rounded(self, values: Tensor) -> Tensor:
        return values if self.decimals is None else values.round(decimals=self.decimals)
