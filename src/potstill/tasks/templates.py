"""Templates: one vector for several images and video frames of a person."""

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.errors import DataError

__all__ = ["Templates", "pool"]

# Entries are multiples of 2^-26, so that a product of two is one of 2^-52, and a sum of such that stays below 2 is
# exact in float64: a score does not depend on the order in which a library adds up, nor on where a template stands.
_GRID = float(1 << 26)
_ROWS = 8192  # embeddings at a time: 32 MiB of float64 at 512 dimensions


@dataclass(frozen=True, slots=True, eq=False)
class Templates:
    """Vectors of length 1, one for each template.

    Attributes:
        vectors: ``(T, D)`` float64 on the CPU, entries rounded to multiples of 2^-26; zeros where not enrolled.
        enrolled: ``(T,)`` bool: False for a template that has no image with a face left. It never matches.
    """

    vectors: Tensor
    enrolled: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, numbers: Tensor) -> "Templates":
        return Templates(self.vectors[numbers], self.enrolled[numbers])

    @classmethod
    def of(cls, vectors: Tensor, enrolled: Tensor | None = None) -> "Templates":
        """Templates from ``(T, D)`` vectors, one each; they are scaled to length 1, and zeros are not enrolled.

        Args:
            vectors: ``(T, D)`` float.
            enrolled: ``(T,)`` bool; None for all of them.

        Example:
            >>> Templates.of(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).enrolled.tolist()
            [True, False]
        """
        vectors = vectors.detach().cpu().double()
        used = torch.ones(len(vectors), dtype=torch.bool) if enrolled is None else enrolled.cpu()
        lengths = vectors.norm(dim=1)
        used = used & (lengths > 0)
        unit = torch.where(used[:, None], vectors / lengths[:, None], 0.0)
        return cls(unit.mul_(_GRID).round_().div_(_GRID), used)


def pool(
    embeddings: Tensor,
    valid: Tensor,
    *,
    image_of: Tensor,
    template_of: Tensor,
    media_of: Tensor,
    templates: int,
    normalise: bool = True,
    weights: Tensor | None = None,
    flipped: Tensor | None = None,
) -> Templates:
    r"""The mean of each template's media, each of which is the mean of its images, scaled to length 1.

    .. math::

        t = \frac{1}{|M|} \sum_{m \in M} \frac{1}{|m|} \sum_{i \in m} w_i \frac{x_i}{\lVert x_i \rVert}

    Images without a face are left out before anything is counted. A template that none is left of, or whose mean is
    zero, is not enrolled.

    The letters of the published modes: F1 is ``flipped``, D1 is ``weights``. N1 means opposite things in the two
    scripts that users have: in ``eval_ijbc.py`` it is ``normalise=False`` (lengths weigh), in ``ijb_evals.py``
    ``normalise=True``.

    Args:
        embeddings: ``(N, D)`` float, on any device.
        valid: ``(N,)`` bool: False for an image without a face, whose embedding is not looked at.
        image_of: ``(M,)`` the image of each member.
        template_of: ``(M,)`` its template, in 0..templates-1.
        media_of: ``(M,)`` its media. Equal numbers in different templates are different media.
        templates: how many there are.
        normalise: scale each image's embedding to length 1 first, after the flipped one is added.
        weights: ``(N,)`` of each image, such as the detector's score; None for 1. A media is still divided by its
            number of images, as published.
        flipped: ``(N, D)`` embeddings of the mirrored images, to be added; None for none.

    Raises:
        DataError: shapes that do not go together; an embedding or weight of a valid image that is not finite; a
            weight below 0.

    Source: Whitelam et al., IARPA Janus Benchmark-B Face Dataset, CVPRW 2017 (media); insightface's evaluation of
    IJB-B and IJB-C (flip, weights, lengths).

    Example:
        >>> images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> members = {"image_of": torch.tensor([0, 1, 2]), "template_of": torch.tensor([0, 0, 1])}
        >>> found = pool(images, torch.ones(3).bool(), **members, media_of=torch.tensor([0, 1, 0]), templates=2)
        >>> found.vectors.round(decimals=4)
        tensor([[0.7071, 0.7071],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    embeddings, valid = embeddings.detach().cpu(), valid.cpu()
    flipped = None if flipped is None else flipped.detach().cpu()
    weights = None if weights is None else weights.cpu().double()
    _check(embeddings, valid, weights, flipped)
    kept = valid[image_of]
    images, owners, media = image_of[kept], template_of[kept].long(), media_of[kept].long()
    keys = owners * (int(media_of.max()) + 1 if len(media_of) else 1) + media
    _, group, sizes = keys.unique(return_inverse=True, return_counts=True)
    share = 1.0 / sizes[group].double()
    if weights is not None:
        share *= weights[images]
    sums = torch.zeros(templates, embeddings.shape[1], dtype=torch.float64)
    for rows in torch.arange(len(images)).split(_ROWS):
        part = embeddings[images[rows]].double()
        if flipped is not None:
            part += flipped[images[rows]].double()
        if normalise:
            part = torch.nn.functional.normalize(part, dim=1, eps=torch.finfo(torch.float64).tiny)
        sums.index_add_(0, owners[rows], part.mul_(share[rows, None]))
    return Templates.of(sums)


def _check(embeddings: Tensor, valid: Tensor, weights: Tensor | None, flipped: Tensor | None) -> None:
    """Raise where the numbers of images do not agree, or where one that counts is not finite."""
    count = len(embeddings)
    if embeddings.ndim != 2 or valid.shape != (count,):
        raise DataError(
            f"Embeddings of shape {tuple(embeddings.shape)} with {len(valid)} marks of validity: expected (N, D) and N."
        )
    if flipped is not None and flipped.shape != embeddings.shape:
        raise DataError(
            f"The flipped embeddings have shape {tuple(flipped.shape)}, the others {tuple(embeddings.shape)}."
        )
    for name, values in (("embedding", embeddings), ("flipped embedding", flipped), ("weight", weights)):
        if values is None:
            continue
        if len(values) != count:
            raise DataError(f"There are {len(values)} {name}s for {count} images.")
        rows = values.reshape(count, -1).split(_ROWS)
        wrong = valid & ~torch.cat([part.sum(1, dtype=torch.float64).isfinite() for part in rows])
        if wrong.any():
            raise DataError(
                f"The {name} of image {int(wrong.int().argmax())} and of {int(wrong.sum()) - 1} others is not finite. "
                "Mark images without a face as not valid; if all of them have one, the network is broken."
            )
    if weights is not None and bool((valid & (weights < 0)).any()):
        raise DataError("A weight of an image is below 0; detector scores are between 0 and 1.")
