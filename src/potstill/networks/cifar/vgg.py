"""VGGs with batch norm for CIFAR: vgg8, and cifar_vgg11, cifar_vgg13, cifar_vgg16, cifar_vgg19.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015), with
one linear layer in place of three. timm has a vgg11, vgg13, vgg16 and vgg19 of its own for ImageNet, hence the prefix.
State-dict keys and shapes are those of RepDistiller's ``models/vgg.py``, so that its checkpoints load. Differences from
it: every activation is out of place, and the last two stages share one size for images of any size (there, an image of
exactly 64x64 is pooled between them).
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .base import CifarNetwork, build, cifar_cfg, fan_out_init

__all__ = ["CifarVGG"]

WIDTHS = (64, 128, 256, 512, 512)

default_cfgs = generate_default_cfgs(
    {
        name: cifar_cfg(first_conv="block0.0", classifier="classifier")
        for name in ("vgg8", "cifar_vgg11", "cifar_vgg13", "cifar_vgg16", "cifar_vgg19")
    }
)


class CifarVGG(CifarNetwork):
    """Five stages of 3x3 convolutions at 32, 16, 8, 4 and 4 pixels, with 64, 128, 256, 512 and 512 channels.

    A 2x2 max pooling stands between every two of the first four. The depth in the name counts three linear layers, as
    the paper's networks have: vgg8 is five convolutions and one linear layer. Taps: each stage's end after its ReLU and
    before the pooling. Convolutions start from N(0, 2 / (k k C_out)), the last layer from N(0, 0.01^2), biases from 0.

    Args:
        convs: convolutions in each of the five stages.
        num_classes: C; 0 for no classifier.
        in_chans: channels of the images.
    """

    tap_modules = ("relu0", "relu1", "relu2", "relu3", "relu4")
    tap_reductions = (1, 2, 4, 8, 8)
    classifier_name = "classifier"

    def __init__(self, convs: tuple[int, int, int, int, int], num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__(WIDTHS, WIDTHS[-1], num_classes)
        for stage, (count, channels) in enumerate(zip(convs, WIDTHS, strict=True)):
            self.add_module(f"block{stage}", make_stage(in_chans, channels, count))
            self.add_module(f"relu{stage}", nn.ReLU())
            in_chans = channels
        self.pool = nn.MaxPool2d(2)
        self.classifier = self.make_classifier()
        fan_out_init(self)

    def init_classifier(self, classifier: nn.Linear) -> None:
        """Weights from N(0, 0.01^2), bias zero."""
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)

    def forward_stem(self, x: Tensor) -> Tensor:
        """The first stage, at the image's size."""
        return self.forward_convs(0, x)

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Halve the map, except before the last stage; then the stage."""
        if index < len(WIDTHS) - 1:
            x = self.pool(x)
        return self.forward_convs(index, x)

    def forward_convs(self, index: int, x: Tensor) -> Tensor:
        """A stage's convolutions and its last ReLU, whose output is the tap."""
        return self.get_submodule(f"relu{index}")(self.get_submodule(f"block{index}")(x))


def make_stage(in_channels: int, channels: int, convs: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU, ``convs`` times, without the last ReLU."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers[:-1])


@register_model
def vgg8(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """Five convolutions: 3,965,028 parameters at 100 classes."""
    return build(CifarVGG, "vgg8", pretrained, convs=(1, 1, 1, 1, 1), **kwargs)


@register_model
def cifar_vgg11(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """Eight convolutions, the papers' vgg11: 9,277,284 parameters at 100 classes."""
    return build(CifarVGG, "cifar_vgg11", pretrained, convs=(1, 1, 2, 2, 2), **kwargs)


@register_model
def cifar_vgg13(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """Ten convolutions, the papers' vgg13: 9,462,180 parameters at 100 classes."""
    return build(CifarVGG, "cifar_vgg13", pretrained, convs=(2, 2, 2, 2, 2), **kwargs)


@register_model
def cifar_vgg16(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """Thirteen convolutions, the papers' vgg16: 14,774,436 parameters at 100 classes."""
    return build(CifarVGG, "cifar_vgg16", pretrained, convs=(2, 2, 3, 3, 3), **kwargs)


@register_model
def cifar_vgg19(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """Sixteen convolutions, the papers' vgg19: 20,086,692 parameters at 100 classes."""
    return build(CifarVGG, "cifar_vgg19", pretrained, convs=(2, 2, 4, 4, 4), **kwargs)
