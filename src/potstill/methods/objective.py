"""What a student is trained on: a weighted sum of methods."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import RecipeError
from potstill.methods.base import Known, Method, Needs, Setting
from potstill.methods.numerics import full_precision
from potstill.methods.registry import build_method, find_method
from potstill.networks.features import Features

__all__ = [
    "KD_OBJECTIVE", "PEFD_OBJECTIVE", "Objective", "check_terms", "default_objective", "in_full", "share_warnings",
]  # fmt: skip

PEFD_OBJECTIVE: dict[str, float | dict[str, Any]] = {"ce": 1.0, "pefd": {"weight": 25.0, "projectors": 3}}
"""The PEFD paper's, for every pair of networks and every data set (arXiv 2210.15274, section 4)."""

KD_OBJECTIVE: dict[str, float | dict[str, Any]] = {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4.0}}
"""Plain KD as the CIFAR-100 comparisons run it."""


def default_objective(taught: bool) -> dict[str, Any]:
    """What a recipe that names no objective trains on: PEFD's with a teacher, the cross entropy without.

    Args:
        taught: whether there is a teacher.

    Example:
        >>> default_objective(taught=False)
        {'ce': 1.0}
    """
    return copy.deepcopy(PEFD_OBJECTIVE) if taught else {"ce": 1.0}


class Objective(nn.Module):
    r"""A weighted sum of named methods, ``L = sum_m w_m L_m``, with each term kept apart.

    Terms are computed in float32 (float64 where the features are), outside autocast. What a method trains of its own
    (projectors) is in ``terms``, trains with the student, and is gone from the student that ships.

    A term with ``warmup`` W counts ``min(1, epoch / W)`` of its weight, with epochs counted from 0, as KD++, DKD and
    ReviewKD are trained; it counts nothing in the first epoch.

    Args:
        setting: the specs of both networks.
        terms: a weight, or a mapping of ``weight``, ``warmup`` and hyper-parameters, by the method's name:
            ``{"ce": 1.0, "pefd": {"weight": 25.0, "projectors": 3}}``.

    Raises:
        RecipeError: for no terms, a weight that is missing or not a positive number, a warm-up that is no number of
            epochs, an unknown method or hyper-parameter: all of a term's mistakes at once.
        NetworkError: where a method does not fit the two networks.

    Example:
        >>> from potstill.networks.features import FeatureSpec
        >>> setting = Setting(FeatureSpec(classes=10, embedding_dim=64), FeatureSpec(classes=10, embedding_dim=256))
        >>> objective = Objective(setting, PEFD_OBJECTIVE)
        >>> objective.weights
        {'ce': 1.0, 'pefd': 25.0}
        >>> objective.needs.labels, objective.compares_logits
        (True, [])
    """

    def __init__(self, setting: Setting, terms: Mapping[str, float | Mapping[str, Any]]) -> None:
        super().__init__()
        if not terms:
            raise RecipeError("The objective is empty; name at least one method, for instance ce: 1.")
        self.weights: dict[str, float] = {}
        self.warmups: dict[str, int] = {}
        self.epoch = 0
        self.terms = nn.ModuleDict()
        for name, value in terms.items():
            hyper = dict(value) if isinstance(value, Mapping) else {"weight": value}
            self.weights[name] = _weight(name, hyper.pop("weight", None))
            self.warmups[name] = _warmup(name, hyper.pop("warmup", 0))
            self.terms[_key(name)] = build_method(name, setting, **hyper)

    @property
    def methods(self) -> dict[str, Method]:
        """The terms' methods by name."""
        return {name: self.terms[_key(name)] for name in self.weights}  # type: ignore[misc]

    @property
    def needs(self) -> Needs:
        """What all terms together read."""
        needs = Needs()
        for method in self.methods.values():
            needs = needs | method.needs
        return needs

    @property
    def compares_logits(self) -> list[str]:
        """The methods for which the teacher's classes must be the data's."""
        return [name for name, method in self.methods.items() if "logits" in method.needs.teacher]

    def prepare(self, known: Known) -> None:
        """Tell every method what is known of the data; once before training, in a resumed run before its state."""
        for method in self.methods.values():
            method.prepare(known)

    def start_epoch(self, epoch: int, resumed: bool = False) -> None:
        """Set the warm-ups, and tell every method of a new epoch.

        Args:
            epoch: of its phase, counted from 0.
            resumed: in its middle: the methods have been told already.
        """
        self.epoch = epoch
        for method in () if resumed else self.methods.values():
            method.start_epoch(epoch)

    def weight_now(self, name: str) -> float:
        """A term's weight in this epoch."""
        warmup = self.warmups[name]
        return self.weights[name] * (min(1.0, self.epoch / warmup) if warmup else 1.0)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Each term by name, unweighted, and their weighted sum as ``"total"``; all scalars on the device.

        Args:
            student: the student's features, in the graph.
            teacher: the teacher's features of the same images; None where no term needs them.
            batch: the images' targets.
        """
        with torch.autocast(student.embedding.device.type, enabled=False):
            student = in_full(student, self.needs.student)
            if teacher is not None:
                teacher = in_full(teacher, self.needs.teacher)
            losses = {name: method(student, teacher, batch) for name, method in self.methods.items()}
            total = sum(self.weight_now(name) * loss for name, loss in losses.items())
        return {**losses, "total": total}

    def gradient_shares(self, losses: Mapping[str, Tensor], *trunk: Tensor) -> dict[str, Tensor]:
        r"""Each term's part in what pulls at the student: ``|w_m dL_m/ds| / sum_n |w_n dL_n/ds|``.

        Args:
            losses: what :meth:`forward` gave; its graph is kept for the step's own backward pass.
            trunk: what of the student the losses were computed from, in the graph: its embedding, or a detector's
                pyramid.

        Returns:
            A scalar on the device by term, without waiting for it. Terms that do not reach the trunk (those of
            feature maps alone) have no share and are left out, and so are those that a warm-up still holds back.
        """
        # Shares are ratios, so a common factor is free: it keeps half-precision gradients from vanishing.
        scale = 1024.0 if trunk[0].dtype == torch.float16 else 1.0
        norms = {}
        for name, weight in self.weights.items():
            if self.epoch < self.warmups[name] or not losses[name].requires_grad:
                continue
            gradients = torch.autograd.grad(scale * losses[name], trunk, retain_graph=True, allow_unused=True)
            if reached := [full_precision(one).norm() for one in gradients if one is not None]:
                norms[name] = weight * torch.stack(reached).norm().float()
        if len(norms) < 2:  # one term alone has no share of anything
            return {}
        whole = torch.stack(list(norms.values())).sum().clamp_min(torch.finfo(torch.float32).tiny)
        return {name: norm / whole for name, norm in norms.items()}


def check_terms(names: Iterable[str], *, labels: bool, teacher: bool) -> None:
    """Refuse data or a lack of teacher that one of these methods cannot work with; needs no networks yet.

    Args:
        names: of the objective's methods.
        labels: whether the data has labels.
        teacher: whether there is a teacher.

    Raises:
        RecipeError: names the terms and what to do.
    """
    needs = {name: find_method(name).needs for name in names}
    missing: list[str] = []
    unlabelled = [name for name, need in needs.items() if need.labels]
    if unlabelled and not labels:
        missing.append(
            f"The data has no labels, but {_who_needs(unlabelled)} them: take {_them(unlabelled)} out, or use data "
            "with labels."
        )
    taught = [name for name, need in needs.items() if need.taught]
    if taught and not teacher:
        missing.append(
            f"There is no teacher, but {_who_needs(taught)} one: name it in teacher.model, or take {_them(taught)} out."
        )
    if missing:
        raise RecipeError(" ".join(missing))


def share_warnings(shares: Mapping[str, float]) -> list[str]:
    """A sentence for each term that has below 1 % or above 99 % of the gradient at the student's embedding.

    Example:
        >>> share_warnings({"ce": 0.999, "pefd": 0.001})[1]
        'pefd has 0.1 % of the gradient at the embedding: it hardly teaches. Raise its weight, or take it out.'
    """
    if len(shares) < 2:
        return []
    found = []
    for name, share in shares.items():
        if share > 0.99:
            found.append(f"{name} has {share:.1%} of the gradient at the embedding: the other terms hardly count.")
        elif share < 0.01:
            found.append(
                f"{name} has {share:.1%} of the gradient at the embedding: it hardly teaches. "
                "Raise its weight, or take it out."
            )
    return [sentence.replace("%", " %") for sentence in found]


def in_full(features: Features, fields: frozenset[str]) -> Features:
    """The fields that are read in float32 or float64; maps that nobody reads are not worth a copy."""
    return replace(
        features,
        logits=full_precision(features.logits) if "logits" in fields else features.logits,
        embedding=full_precision(features.embedding) if "embedding" in fields else features.embedding,
        maps=tuple(full_precision(m) for m in features.maps) if "maps" in fields else features.maps,
        preacts=tuple(full_precision(m) for m in features.preacts) if "preacts" in fields else features.preacts,
        blocks=tuple(full_precision(m) for m in features.blocks) if "blocks" in fields else features.blocks,
        peers=tuple(full_precision(z) for z in features.peers) if "peers" in fields else features.peers,
    )


def _weight(name: str, weight: Any) -> float:
    if weight is None:
        raise RecipeError(f"The objective's {name} has no weight; write it as {name}: {{weight: 1, ...}}.")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise RecipeError(f"The weight of the objective's {name} is {weight!r}; expected a positive number.")
    if weight == 0:
        raise RecipeError(f"The weight of the objective's {name} is 0, which does nothing; take {name} out.")
    return float(weight)


def _warmup(name: str, epochs: Any) -> int:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise RecipeError(f"The warmup of the objective's {name} is {epochs!r}; expected a number of epochs, like 20.")
    return epochs


def _key(name: str) -> str:
    return name.replace(".", "/")  # a module's name in a state dict has no dots; a dotted path has


def _who_needs(names: list[str]) -> str:
    return f"{' and '.join(names)} in the objective {'needs' if len(names) == 1 else 'need'}"


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"
