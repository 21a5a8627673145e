"""What all CIFAR networks share: timm's feature contract, the pooled head, the registration.

The files of this package import torch, timm and each other, and nothing else: this file and one family's file, side by
side in a folder with an ``__init__.py``, load a student's weights where the rest of the project is not installed.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch.nn.functional as F
from timm.models import build_model_with_cfg
from torch import Tensor, nn

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "CifarNetwork",
    "build",
    "cifar_cfg",
    "conv1x1",
    "conv3x3",
    "fan_out_init",
    "shuffle_channels",
]

CIFAR_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR_STD = (0.2675, 0.2565, 0.2761)


class CifarNetwork(nn.Module, ABC):
    """A network for small images: stem, stages, an optional last step, global average pooling and one linear layer.

    A family names the modules whose outputs are its taps, stem first, and builds them; :meth:`forward_stem` is its own,
    and where a stage is more than the module of that name, :meth:`forward_stage` too. Every activation is out of place,
    so that neither a tap nor what a hook recorded on any layer is written over later in the pass.

    Pooling is adaptive: at 32x32 the mean over the same pixels as the papers' fixed window, and any other size runs as
    well.

    Args:
        channels: the channels of each tap.
        num_features: D, the length of the pooled embedding.
        num_classes: C; 0 leaves an identity in the classifier's place.

    Attributes:
        feature_info: for each tap ``num_chs``, ``reduction`` (input pixels a side of one pixel of the map) and
        ``module``.
    """

    tap_modules: ClassVar[tuple[str, ...]]
    tap_reductions: ClassVar[tuple[int, ...]]
    classifier_name: ClassVar[str] = "fc"
    final_is_norm: ClassVar[bool] = False  # the last step only normalises: what `norm=True` asks for

    def __init__(self, channels: Sequence[int], num_features: int, num_classes: int) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; give the number of classes, or 0 for no classifier")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": count, "reduction": reduction, "module": module}
            for count, reduction, module in zip(channels, self.tap_reductions, self.tap_modules, strict=True)
        ]

    def init_classifier(self, classifier: nn.Linear) -> None:
        """The family's initialisation of the last layer: here torch's default, which the layer already has."""

    def make_classifier(self) -> nn.Module:
        """A fresh last layer for ``num_classes``, initialised."""
        if self.num_classes == 0:
            return nn.Identity()
        classifier = nn.Linear(self.num_features, self.num_classes)
        self.init_classifier(classifier)
        return classifier

    @overload
    def get_classifier(self, name_only: Literal[False] = False) -> nn.Module: ...
    @overload
    def get_classifier(self, name_only: Literal[True]) -> str: ...
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last layer, or its name in the network."""
        return self.classifier_name if name_only else self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a fresh one for ``num_classes``; 0 puts an identity there."""
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; give the number of classes, or 0 for no classifier")
        self.num_classes = num_classes
        like = next(self.parameters())
        classifier = self.make_classifier().to(device=like.device, dtype=like.dtype).train(self.training)
        self.set_submodule(self.classifier_name, classifier)

    @abstractmethod
    def forward_stem(self, x: Tensor) -> Tensor:
        """Images to the first tap."""

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Tap ``index - 1`` to tap ``index``."""
        return self.get_submodule(self.tap_modules[index])(x)

    def forward_final(self, x: Tensor) -> Tensor:
        """The last tap to the map that is pooled; here the same map."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to the map that is pooled, ``(B, D, h, w)``."""
        x = self.forward_stem(x)
        for index in range(1, len(self.tap_modules)):
            x = self.forward_stage(index, x)
        return self.forward_final(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The final map to logits ``(B, C)``, or with ``pre_logits`` to the pooled embedding ``(B, D)``."""
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to logits ``(B, C)``."""
        return self.forward_head(self.forward_features(x))

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
            norm: give the last tap normalised, where the family ends with a normalisation (Wide ResNets).
            stop_early: run no stage after the last tap asked for; the first value is then that stage's output.
            output_fmt: ``"NCHW"``, the only layout there is.
            intermediates_only: the list alone, without the final map.

        Raises:
            ValueError: another ``output_fmt``, or a tap that does not exist.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; the maps of a CIFAR network are 'NCHW' only")
        take = tap_indices(len(self.tap_modules), indices)
        last = len(self.tap_modules) - 1
        intermediates = []
        reached = max(take) if stop_early else last
        for index in range(reached + 1):
            x = self.forward_stage(index, x) if index else self.forward_stem(x)
            if index in take:
                normed = norm and self.final_is_norm and index == last
                intermediates.append(self.forward_final(x) if normed else x)
        if intermediates_only:
            return intermediates
        return (self.forward_final(x) if reached == last else x), intermediates


def tap_indices(count: int, indices: int | Sequence[int] | None) -> set[int]:
    """Which of ``count`` taps are meant: all (None), the last n (int), or these; negative ones count from the end."""
    wanted = range(count) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
    if not wanted or not all(-count <= index < count for index in wanted):
        raise ValueError(
            f"indices is {indices}; the network has {count} taps: 0 to {count - 1}, or the last 1 to {count}"
        )
    return {index % count for index in wanted}


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1, without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, groups=groups, bias=False)


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Deal the channels out to ``groups`` hands and put the hands together: channel ``i C/g + j`` goes to ``j g + i``.

    The memory format is kept: a plain reshape would return to NCHW at each shuffle of a network in ``channels_last``.

    Example:
        >>> import torch
        >>> shuffle_channels(torch.arange(6).reshape(1, 6, 1, 1), groups=2).flatten().tolist()
        [0, 3, 1, 4, 2, 5]
    """
    if x.is_contiguous():
        return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


def fan_out_init(network: nn.Module) -> None:
    """Every convolution's weights from N(0, 2 / (k k C_out)), its bias zero; batch norms keep torch's one and zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def cifar_cfg(first_conv: str = "conv1", classifier: str = "fc") -> dict[str, Any]:
    """The default configuration of a network for CIFAR-100, as ``timm.models.generate_default_cfgs`` takes it."""
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "min_input_size": (3, 8, 8),
        "crop_pct": 1.0,
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "first_conv": first_conv,
        "classifier": classifier,
    }


NetworkT = TypeVar("NetworkT", bound=CifarNetwork)


def build(family: type[NetworkT], name: str, pretrained: bool, **kwargs: Any) -> NetworkT:
    """A registered network, built by timm, which adds the configuration and, when asked, ``features_only``."""
    features = {"out_indices": tuple(range(len(family.tap_modules))), "feature_cls": "getter"}
    return build_model_with_cfg(family, name, pretrained, feature_cfg=features, **kwargs)
