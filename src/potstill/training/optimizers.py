"""Optimisers over the student and the objective's own modules."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from potstill.errors import RecipeError
from potstill.methods.base import Method

__all__ = ["make_optimizer", "set_rate"]


def make_optimizer(
    modules: Iterable[nn.Module],
    *,
    name: Literal["sgd", "adamw"] = "sgd",
    lr: float = 0.05,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 5e-4,
    decay_norm_and_bias: bool = True,
    helper_lr: float = 1.0,
    helper_weight_decay: float | None = None,
    recorded: bool = False,
) -> torch.optim.Optimizer:
    """One optimiser over every parameter of the modules that asks for a gradient.

    The defaults are the common recipe of the CIFAR literature (and of PEFD): SGD, momentum 0.9, no Nesterov, one weight
    decay for all parameters, those of projectors, batch norms and biases among them.

    Args:
        modules: the student, then the objective with its projectors.
        name: "sgd" or "adamw".
        lr: the peak rate; the schedule multiplies it.
        momentum: of SGD.
        nesterov: of SGD.
        betas: of AdamW.
        weight_decay: of all parameters, or of those that remain under the next argument.
        decay_norm_and_bias: False spares norms and biases the decay: parameters of one axis, and those named bias
            (the projectors' biases are stacked, and have two).
        helper_lr: the rate of what methods train of their own (projectors), as a multiple of ``lr``; a loop reads it
            from the groups' ``lr_factor``.
        helper_weight_decay: of what methods train of their own; None for ``weight_decay``. A method whose parameters
            must not decay (an orthogonal projector) is spared whatever is said here.
        recorded: its step shall go into a CUDA graph. The rates are float32 tensors beside the parameters then, which
            the fused step reads there; a number would stay what it was when the graph was recorded.

    Raises:
        RecipeError: where nothing would train, or Nesterov is asked for without momentum.

    Example:
        >>> optimizer = make_optimizer([nn.Linear(2, 3)], lr=0.1, decay_norm_and_bias=False)
        >>> [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        [(0.0005, 1), (0.0, 1)]
    """
    kinds: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in modules:
        owners = {p: part for part in module.modules() if isinstance(part, Method) for p in part.parameters()}
        for path, p in module.named_parameters():
            if not p.requires_grad:
                continue
            owner, decay = owners.get(p), weight_decay
            if owner is not None and helper_weight_decay is not None:
                decay = helper_weight_decay
            if (owner is not None and not owner.decays) or (not decay_norm_and_bias and _spared(path, p)):
                decay = 0.0
            kinds.setdefault((1.0 if owner is None else helper_lr, decay), []).append(p)
    if not kinds:
        raise RecipeError("Nothing would train: no parameter of the student or the objective asks for a gradient.")
    groups = [
        {"params": kinds[factor, decay], "weight_decay": decay, "lr": lr * factor, "lr_factor": factor}
        for factor, decay in sorted(kinds, key=lambda kind: (kind[0] != 1, -kind[1]))
    ]
    # Of SGD and AdamW only the fused steps read a rate on the device; the others ask the host for it.
    fused = {"fused": True} if recorded else {}
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, capturable=recorded, **fused)
    elif nesterov and momentum == 0:
        raise RecipeError("optimizer.nesterov=true needs a momentum above 0; got optimizer.momentum=0.")
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, **fused)
    if recorded:
        _rates_on_the_device(optimizer)
        optimizer.register_load_state_dict_post_hook(_rates_on_the_device)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, as the multiple that its ``lr_factor`` says; tensors in place.

    Example:
        >>> optimizer = make_optimizer([nn.Linear(2, 3)], lr=0.1, recorded=True)
        >>> held = optimizer.param_groups[0]["lr"]
        >>> set_rate(optimizer, 0.5)
        >>> held
        tensor(0.5000)
    """
    for group in optimizer.param_groups:
        own = rate * group.get("lr_factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def _rates_on_the_device(optimizer: torch.optim.Optimizer) -> None:
    """Each group's rate as a tensor of its own beside its parameters; a loaded state has them on the host."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=group["params"][0].device)


def _spared(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or name.rpartition(".")[2].startswith("bias")
