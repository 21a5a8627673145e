"""The projector ensemble: what turns a student's embedding into something that can be compared with the teacher's."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import NetworkError, RecipeError, nearest
from potstill.projectors.inits import Init, start
from potstill.projectors.orthonormal import Orthonormal

__all__ = ["Activation", "Constraint", "Init", "Layer", "ProjectorEnsemble"]

Activation = Literal["relu", "gelu", "none"]
Constraint = Literal["orthogonal"]
Layer = tuple[Tensor, Tensor | None]  # weight (out, in), bias (out,)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {"relu": F.relu, "gelu": F.gelu, "none": None}


class ProjectorEnsemble(nn.Module):
    r"""The mean of q projectors, each with an activation of its own.

    .. math:: f(s) = \frac{1}{q} \sum_{k=1}^{q} g_k(s), \qquad g_k(s) = \sigma(W_k s + b_k)

    and for depth n each ``g_k`` is n such layers, one after another, with an activation after every layer, the last
    included. The mean is taken after the activation: without one, q projectors would be a single linear map.

    All q are computed together, in as many matrix products as one projector needs: the first layer is one product
    with the projectors' weights stacked, each further layer one batched product.

    ``forward`` maps ``(..., student_dim)`` to ``(..., teacher_dim)``, in the dtype of the parameters. The parameters
    are ``weight_l`` of shape ``(q, out, in)`` and ``bias_l`` of shape ``(q, out)`` for the layers l = 0, 1, ...;
    under a constraint ``weight_l`` is an :class:`~potstill.projectors.orthonormal.Orthonormal`.

    Args:
        student_dim: length of the student's embedding.
        teacher_dim: length of the teacher's embedding.
        projectors: q; 3 in all of the paper's experiments. 0 is the paper's "w/o Proj": the embedding as it is.
        depth: layers of each projector; 1 in the paper, more in its table 2.
        width: hidden layers have ``width * teacher_dim`` units; 1 in the paper, 2 and 3 in its table 3 (depth 2).
        activation: "relu" in the paper; "gelu" (the exact form) and "none" in its table 6.
        bias: the paper's equation has none, the authors' code has; on by default, as in the code.
        init: "default" is what q ``nn.Linear`` made one after another would be, bit for bit. The others are ours, since
            the paper's supplement, which has its own, is not available. Without a bias to start with: "orthogonal"
            weights, "kaiming" (normal, variance 2/in), "xavier" (uniform). "scaled" is the default with the last
            layer of projector k times 2^(2k/(q-1) - 1): from a half to twice. "mixed" gives each projector another
            of default, orthogonal, kaiming and xavier, in turn.
        constraint: "orthogonal" keeps the weights orthonormal all through training, whatever decays them: in their
            columns where a layer's output is as long as its input or longer, else in their rows. Ours.

    Raises:
        RecipeError: for a value out of its range, one that has no effect (``width`` without a hidden layer, the
            spread of an ``init`` under a ``constraint``), and ``projectors=0`` where the two dimensions differ.

    Source: Chen et al., "Improved Feature Distillation via Projector Ensemble", NeurIPS 2022 (arXiv 2210.15274),
    section 3.2, equations 1 and 4, tables 1-3 and 6. Unlike the authors' code, which names three projectors one by
    one, creates a fourth that is never used and calls each apart, q is free and the projectors are stacked.

    Example:
        >>> ensemble = ProjectorEnsemble(student_dim=64, teacher_dim=256, projectors=3)
        >>> ensemble(torch.randn(8, 64)).shape
        torch.Size([8, 256])
        >>> ensemble.weight_0.shape, ensemble.bias_0.shape
        (torch.Size([3, 256, 64]), torch.Size([3, 256]))
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        projectors: int = 3,
        depth: int = 1,
        width: int = 1,
        activation: Activation = "relu",
        bias: bool = True,
        init: Init = "default",
        constraint: Constraint | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(student_dim, teacher_dim, projectors, depth, width)
        _check_choice("activation", activation, get_args(Activation))
        _check_choice("init", init, get_args(Init))
        if constraint is not None:
            _check_constraint(constraint, init, projectors)
        self.student_dim = student_dim
        self.teacher_dim = teacher_dim
        self.projectors = projectors
        self.depth = depth if projectors else 0
        self.activation = activation
        self.init: Init = init
        self.constraint = constraint
        self._activate = _ACTIVATIONS[activation]
        units = [student_dim, *[width * teacher_dim] * (depth - 1), teacher_dim]
        for layer in range(self.depth):
            shape = (projectors, units[layer + 1], units[layer])
            if constraint:
                self.add_module(f"weight_{layer}", Orthonormal(*shape))
            else:
                self.register_parameter(f"weight_{layer}", nn.Parameter(torch.empty(shape)))
            offset = nn.Parameter(torch.empty(shape[:2])) if bias else None
            self.register_parameter(f"bias_{layer}", offset)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew: projector by projector, and in each layer by layer."""
        drawn = []
        for k in range(self.projectors):
            own = self.projector(k)
            layers = [(torch.empty_like(w), None if b is None else torch.empty_like(b)) for w, b in own]
            start(self.init, layers, k, self.projectors)
            drawn.append(layers)
        self.load_projectors(drawn)

    def forward(self, embedding: Tensor) -> Tensor:
        """The ensemble's projection f(s) of ``(..., student_dim)``, shape ``(..., teacher_dim)``."""
        if not self.projectors:
            return embedding
        lead = embedding.shape[:-1]
        weight, bias = self._stacked(0)
        # (N, d) x (d, q*h): one product for all projectors
        out = F.linear(embedding, weight.flatten(0, 1), None if bias is None else bias.flatten())
        out = self._activated(out)
        if self.depth == 1:
            return out.unflatten(-1, (self.projectors, self.teacher_dim)).mean(-2)
        out = out.view(lead.numel(), self.projectors, weight.shape[1]).transpose(0, 1)  # (q, N, h)
        for layer in range(1, self.depth):
            weight, bias = self._stacked(layer)
            into = weight.transpose(1, 2)
            out = torch.bmm(out, into) if bias is None else torch.baddbmm(bias.unsqueeze(1), out, into)
            out = self._activated(out)
        return out.mean(0).view(*lead, self.teacher_dim)

    def projector(self, k: int) -> list[Layer]:
        """Projector k alone, as ``(weight, bias)`` of each layer, outside the graph: views of the parameters.

        Under a constraint the weights are copies.
        """
        layers = (self._stacked(layer) for layer in range(self.depth))
        return [(weight[k].detach(), None if bias is None else bias[k].detach()) for weight, bias in layers]

    @torch.no_grad()
    def load_projectors(self, projectors: Sequence[Sequence[Layer]]) -> None:
        """Copy parameters in, given projector by projector as ``(weight, bias)`` of each layer.

        This is how projectors trained elsewhere, one ``nn.Linear`` each, come in. Under a constraint the nearest
        orthonormal weights are taken.

        Raises:
            NetworkError: where the number of projectors or layers, a shape, or having a bias differs.
        """
        if len(projectors) != self.projectors:
            raise NetworkError(f"Got {len(projectors)} projectors for an ensemble of {self.projectors}.")
        for k, layers in enumerate(projectors):
            expected, got = [_shapes(layer) for layer in self.projector(k)], [_shapes(layer) for layer in layers]
            if expected != got:
                raise NetworkError(f"Projector {k} has layers of shapes {got}; this ensemble's are {expected}.")
        for layer in range(self.depth):
            weights, biases = zip(*(layers[layer] for layers in projectors), strict=True)
            own = getattr(self, f"weight_{layer}")
            (own.load if isinstance(own, Orthonormal) else own.copy_)(torch.stack(weights))
            if (bias := getattr(self, f"bias_{layer}")) is not None:
                bias.copy_(torch.stack(biases))

    def weights(self) -> list[Tensor]:
        """The weights of each layer, ``(q, out, in)``, in the graph of the parameters."""
        return [self._stacked(layer)[0] for layer in range(self.depth)]

    def extra_repr(self) -> str:
        """What the module is, in ``print(module)``."""
        return (
            f"{self.student_dim} -> {self.teacher_dim}, projectors={self.projectors}, depth={self.depth}, "
            f"activation={self.activation}, init={self.init}, constraint={self.constraint}"
        )

    def _stacked(self, layer: int) -> tuple[Tensor, Tensor | None]:
        weight = getattr(self, f"weight_{layer}")
        return weight.weight if isinstance(weight, Orthonormal) else weight, getattr(self, f"bias_{layer}")

    def _activated(self, x: Tensor) -> Tensor:
        return x if self._activate is None else self._activate(x)


def _shapes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(part.shape) for part in layer if part is not None)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RecipeError(f"{name} is {value!r}; it is one of {', '.join(choices)}.{nearest(str(value), choices)}")


def _check_sizes(student_dim: int, teacher_dim: int, projectors: int, depth: int, width: int) -> None:
    sizes = {"student_dim": student_dim, "teacher_dim": teacher_dim, "depth": depth, "width": width}
    for name, value in sizes.items():
        if value < 1:
            raise RecipeError(f"{name} is {value}; a projector needs at least 1.")
    if projectors < 0:
        raise RecipeError(f"projectors is {projectors}; give 0 for none, 3 as in the paper, or another number.")
    if not projectors and student_dim != teacher_dim:
        raise RecipeError(
            f"projectors=0 compares the embeddings as they are, but the student's has {student_dim} values and the "
            f"teacher's {teacher_dim}: a projector is needed. Give projectors=1 or more."
        )
    if not projectors and (depth > 1 or width > 1):
        raise RecipeError(f"depth={depth}, width={width} have no effect with projectors=0; leave them out.")
    if depth == 1 and width > 1:
        raise RecipeError(f"width={width} has no effect with depth=1, which has no hidden layer; give depth=2 or more.")


def _check_constraint(constraint: str, init: str, projectors: int) -> None:
    _check_choice("constraint", constraint, get_args(Constraint))
    if not projectors:
        raise RecipeError(f"constraint={constraint!r} has no effect with projectors=0; leave it out.")
    if init not in ("default", "orthogonal"):
        raise RecipeError(
            f"init={init!r} has no effect with constraint={constraint!r}, whose weights are orthonormal from the "
            "start; leave it out, or take orthogonal, which starts without a bias."
        )
