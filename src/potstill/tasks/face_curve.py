"""One-to-one verification of a set of pairs or of a protocol over every comparison, and its curve for a plot."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.data.pairs import PairSet
from potstill.data.protocol import Protocol
from potstill.errors import DataError
from potstill.tasks.comparisons import Listed
from potstill.tasks.templates import pool
from potstill.tasks.verification import Verification, tar_at_far

__all__ = ["all_pairs", "receiver_points"]


def all_pairs(embeddings: Tensor, valid: Tensor, of: PairSet | Protocol, fars: Sequence[float]) -> Verification:
    """TAR at FAR over all pairs of a list, which may be millions: they are compared in blocks of templates.

    Args:
        embeddings: ``(N, D)`` float, of the images in their order.
        valid: ``(N,)`` bool: False where no face was found, whose comparisons are never accepted.
        of: what is compared, one to one.
        fars: rates between 0 and 1.

    Raises:
        DataError: a protocol without pairs, embeddings of another number of images.
    """
    pairs = of if isinstance(of, PairSet) else of.pairs
    if pairs is None:
        raise DataError(f"{of.name} compares nothing one to one, so there are no accepts to count.")
    every = torch.arange(len(of.images))
    made_of = {"image_of": every, "template_of": every, "media_of": every, "templates": len(of.images)}
    if isinstance(of, Protocol):
        parts = {name: torch.from_numpy(getattr(of, name)) for name in ("image_of", "template_of", "media_of")}
        made_of = {**parts, "templates": of.templates}
    templates = pool(embeddings, valid, **made_of)  # type: ignore[arg-type]
    first, second, same = (torch.from_numpy(part) for part in (pairs.first, pairs.second, pairs.same))
    return tar_at_far(Listed(templates, first, second, same), fars)


def receiver_points(embeddings: Tensor, valid: Tensor, of: PairSet | Protocol) -> np.ndarray:
    """Exact points of the curve, ``(K, 2)`` float64: FAR and TAR as parts of 1, ascending.

    Args:
        embeddings: ``(N, D)`` float, of the images in their order.
        valid: ``(N,)`` bool: False where no face was found.
        of: what is compared, one to one.

    Raises:
        DataError: a protocol without pairs, embeddings of another number of images.
    """
    return all_pairs(embeddings, valid, of, []).roc
