"""What all embedding networks for faces share: timm's feature contract, the identity head, the registration.

The files of this package import torch, timm and each other, and nothing else: this file and one family's file, side by
side in a folder with an ``__init__.py``, load a network's weights where the rest of the project is not installed.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg
from torch import Tensor, nn

__all__ = [
    "FaceNetwork",
    "IdentityHead",
    "StagedFaceNetwork",
    "build",
    "conv1x1",
    "conv3x3",
    "face_cfg",
    "height_and_width",
    "map_side",
    "scaled",
]

Scale = float | Literal["norm"]


class IdentityHead(nn.Module):
    r"""The last layer of a face network in training: one direction for each identity, compared by angle.

    .. math:: z_{ic} = s \cos(x_i, w_c), \qquad s > 0 \text{ fixed, or } s_i = \lVert x_i \rVert

    It has no margin: a loss adds that to the target's cosine. Computed in float32 under autocast too (float64 stays
    what it is), because a margin lies in the cosines' second digit. A zero vector has cosine 0 with everything.

    Args:
        dim: D, the length of the embeddings.
        num_classes: C, the number of identities.
        scale: s; 64 as in ArcFace and CosFace. ``"norm"`` takes each embedding's own length, as SphereFace does.

    Attributes:
        weight: ``(C, D)``; only the directions of its rows count.
        scale: as given.

    Raises:
        ValueError: a scale that is neither a number above 0 nor ``"norm"``.

    Example:
        >>> head = IdentityHead(2, 2, scale=10.0)
        >>> _ = head.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
        >>> head(torch.tensor([[3.0, 4.0]]))
        tensor([[6., 8.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, dim: int, num_classes: int, scale: Scale = 64.0) -> None:
        super().__init__()
        if scale != "norm" and (not isinstance(scale, int | float) or not 0 < scale < float("inf")):
            raise ValueError(f"scale is {scale!r}; give a number above 0, such as 64, or 'norm'")
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of any length and floating dtype to logits ``(B, C)`` in float32 or float64."""
        device = embedding.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.compare(embedding)
        return self.compare(embedding)

    def compare(self, embedding: Tensor) -> Tensor:
        """The same, outside autocast."""
        full = embedding if embedding.dtype == torch.float64 else embedding.float()
        rows = unit(self.weight.to(full.dtype))
        if self.scale == "norm":
            return F.linear(full, rows)
        return F.linear(unit(full), rows) * self.scale

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, scale={self.scale!r}"


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a zero row stays zero, with gradient zero."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    zero = norm < 1e-12
    return x * torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, norm))


class FaceNetwork(nn.Module, ABC):
    """A network that turns a face into an embedding, with an identity head behind it while it learns.

    Args:
        dim: D, the length of the embedding.
        num_classes: C, the identities; 0 leaves an identity in the head's place, and the network returns embeddings.
        scale: of the head; see :class:`IdentityHead`.

    Attributes:
        feature_info: for each tap ``num_chs``, ``reduction`` (input pixels a side of one pixel of the map) and
            ``module``.

    Raises:
        ValueError: a dimension below 1, a negative number of identities.
    """

    def __init__(self, dim: int, num_classes: int, scale: Scale) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}; give the length of the embedding, such as 512")
        self.num_features = self.head_hidden_size = dim
        self.scale = scale
        self.feature_info: list[dict[str, Any]] = []
        self.head = self.make_head(num_classes)

    def make_head(self, num_classes: int) -> nn.Module:
        """A fresh head for so many identities."""
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; give the number of identities, or 0 for embeddings alone")
        self.num_classes = num_classes
        return IdentityHead(self.num_features, num_classes, self.scale) if num_classes else nn.Identity()

    @overload
    def get_classifier(self, name_only: Literal[False] = False) -> nn.Module: ...
    @overload
    def get_classifier(self, name_only: Literal[True]) -> str: ...
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The identity head, or its name in the network."""
        return "head" if name_only else self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a fresh one for ``num_classes`` identities; 0 leaves the embedder alone."""
        like = next(self.parameters())
        self.head = self.make_head(num_classes).to(device=like.device, dtype=like.dtype).train(self.training)

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to the last map."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """The last map to the embedding ``(B, D)``, of its own length: not normalised."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits ``(B, C)``, or with ``pre_logits`` to the embedding ``(B, D)``."""
        x = self.embed(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to logits ``(B, C)``; to embeddings ``(B, D)`` where there is no head."""
        return self.forward_head(self.forward_features(x))


class StagedFaceNetwork(FaceNetwork):
    """A face network that is a stem and stages; its embedding reads every place of the last map by itself.

    Reading the places apart, where others pool them, is what makes such networks good at faces, which lie in the same
    place of every image; so a network is built for one size of image. Every activation is out of place.

    Args:
        channels: the channels of each tap.
        img_size: height and width of the images, or one number for both.
        dim: D.
        num_classes: C.
        scale: of the head.

    Attributes:
        map_size: height and width of the last map.
    """

    tap_modules: ClassVar[tuple[str, ...]]
    tap_reductions: ClassVar[tuple[int, ...]]

    def __init__(
        self, channels: Sequence[int], img_size: int | Sequence[int], dim: int, num_classes: int, scale: Scale
    ) -> None:
        super().__init__(dim, num_classes, scale)
        self.img_size = height_and_width(img_size)
        reduction = self.tap_reductions[-1]
        self.map_size = (map_side(self.img_size[0], reduction), map_side(self.img_size[1], reduction))
        self.feature_info = [
            {"num_chs": count, "reduction": reduction, "module": module}
            for count, reduction, module in zip(channels, self.tap_reductions, self.tap_modules, strict=True)
        ]

    def check_map(self, x: Tensor) -> None:
        """Refuse a last map of another size than the one that the embedding was built for."""
        if tuple(x.shape[-2:]) != self.map_size:
            (height, width), (rows, columns) = self.img_size, x.shape[-2:]
            raise ValueError(
                f"{type(self).__name__} was built for images of {height} x {width} pixels, and its last map is now "
                f"{rows} x {columns}. Build it for the images that it gets (args: {{img_size: N}})"
            )

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Tap ``index - 1`` to tap ``index``; images to tap 0."""
        return self.get_submodule(self.tap_modules[index])(x)

    def forward_final(self, x: Tensor) -> Tensor:
        """The last tap to the map that the embedding reads; here the same map."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to the map that the embedding reads."""
        for index in range(len(self.tap_modules)):
            x = self.forward_stage(index, x)
        return self.forward_final(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The taps on the way, as in timm: ``(final map, [tap, ...])`` in the order of the pass.

        Args:
            x: images ``(B, in_chans, H, W)``.
            indices: which taps: all (None), the last n (int), or these.
            norm: no family ends with a normalisation of its own, so both values give the same maps.
            stop_early: run no stage after the last tap asked for; the first value is then that stage's output.
            output_fmt: ``"NCHW"``, the only layout there is.
            intermediates_only: the list alone, without the final map.

        Raises:
            ValueError: another ``output_fmt``, or a tap that does not exist.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; the maps of a face network are 'NCHW' only")
        count = len(self.tap_modules)
        wanted = range(count) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        if not wanted or not all(-count <= index < count for index in wanted):
            raise ValueError(
                f"indices is {indices}; the network has {count} taps: 0 to {count - 1}, or the last 1 to {count}"
            )
        take = {index % count for index in wanted}
        reached = max(take) if stop_early else count - 1
        taps = []
        for index in range(reached + 1):
            x = self.forward_stage(index, x)
            if index in take:
                taps.append(x)
        if intermediates_only:
            return taps
        return (self.forward_final(x) if reached == count - 1 else x), taps


def height_and_width(img_size: int | Sequence[int]) -> tuple[int, int]:
    """An image size as (height, width): one number stands for both."""
    sides = [img_size] * 2 if isinstance(img_size, int) else list(img_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"img_size is {img_size!r}; give the images' height and width, or one number for both")
    return sides[0], sides[1]


def map_side(pixels: int, reduction: int) -> int:
    """What is left of a side of ``pixels`` after layers of stride 2 with padding, ``reduction`` in all: 7 of 112."""
    return -(-pixels // reduction)


def scaled(channels: int, width: float) -> int:
    """Channels times ``width``, in whole eights, at least 8; a ValueError where the width is no number above 0."""
    if not 0 < width < float("inf"):
        raise ValueError(f"width is {width}; give a number above 0, such as 0.5")
    return max(8, int(channels * width / 8 + 0.5) * 8)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1, without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


def face_cfg(first_conv: str) -> dict[str, Any]:
    """The default configuration of a face network; such networks read pixels from -1 to 1: mean and deviation 0.5."""
    half = (0.5, 0.5, 0.5)
    return {
        "num_classes": 1000,
        "input_size": (3, 112, 112),
        "min_input_size": (3, 16, 16),
        "crop_pct": 1.0,
        "mean": half,
        "std": half,
        "first_conv": first_conv,
        "classifier": "head",
    }


NetworkT = TypeVar("NetworkT", bound=StagedFaceNetwork)


def build(family: type[NetworkT], name: str, pretrained: bool, **kwargs: Any) -> NetworkT:
    """A registered network, built by timm, which adds the configuration and, when asked, ``features_only``.

    ``img_size`` reaches the configuration too, so that the network says for which images it was built.
    """
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if "img_size" in kwargs:
        overlay["input_size"] = (kwargs.get("in_chans", 3), *height_and_width(kwargs["img_size"]))
    features = {"out_indices": tuple(range(len(family.tap_modules))), "feature_cls": "getter"}
    return build_model_with_cfg(
        family, name, pretrained, feature_cfg=features, pretrained_cfg_overlay=overlay, **kwargs
    )
