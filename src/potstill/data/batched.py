"""Views of many images at once, by arithmetic on the device that holds them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.data.pixels import centre_crop
from potstill.data.views import Augmentation, Evaluation, image_size
from potstill.errors import DataError

__all__ = ["Normalise", "PackedViews", "ResampledViews"]


_LARGE = 1 << 20  # float32 values; from 4 MiB on, NumPy asks for large pages


class Normalise:
    """``(x / 255 - mean) / std`` as one multiply-add, from channels-last bytes to channels-last floats.

    Args:
        mean: of each channel, of values in [0, 1].
        std: of each channel.
        device: where the images are.

    Raises:
        DataError: where a std is not positive, or there are not three of each.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise DataError(
                f"mean={list(mean)} and std={list(std)} must be three numbers each, one a channel, and std positive."
            )
        self.scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """``(B, 3, H, W)`` float32 in channels-last memory, of ``(B, H, W, C)`` values 0 to 255 with C 3 or more."""
        batch, height, width, channels = pixels.shape
        images = _uninitialised((batch, height, width, 3), pixels.device)
        if channels == 3:
            images.copy_(pixels)
        else:
            # One long strided copy a channel: a copy of [..., :3] would start a loop anew for every three bytes.
            for channel in range(3):
                images[..., channel].copy_(pixels[..., channel])
        rows = images.view(batch, height, width * 3)
        # Repeated to a row's length, so that the inner loop is long here, too.
        torch.addcmul(self.shift.repeat(width), rows, self.scale.repeat(width), out=rows)
        return images.permute(0, 3, 1, 2)


def _uninitialised(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A float32 tensor that is yet to be written.

    A batch of photographs is new memory each time. To touch that for the first time takes the host ten times as long as
    to write it, in pages of 4 KiB. NumPy asks the system for pages of 2 MiB for what is large, torch leaves that to an
    environment variable.
    """
    count = math.prod(shape)
    if device.type != "cpu" or count < _LARGE:
        return torch.empty(shape, device=device)
    memory = torch.from_numpy(np.empty(count + 16, np.float32))
    aligned = -memory.data_ptr() % 64 // 4  # to 64 bytes, as torch aligns: some kernels' rounding depends on it
    return memory[aligned : aligned + count].view(shape)


class PackedViews:
    """Crops without resizing, and flips: each pixel is one int32 (RGB and an unused byte), and a view is one gather.

    Args:
        images: ``(N, H, W, 3)`` uint8 on the device.
        augmentation: of crop 'none' or 'pad'; None for the images as they are.
        normalise: applied to the views.
    """

    def __init__(self, images: Tensor, augmentation: Augmentation | None, normalise: Normalise) -> None:
        count, self.height, self.width = images.shape[:3]
        self.augmentation = augmentation
        self.normalise = normalise
        self.size = (self.height, self.width)
        if augmentation:
            augmentation.require(self.height, self.width, "Each image")
            self.size = image_size(augmentation.size)
        # Pixel 0 is black and stands for whatever lies outside an image.
        packed = torch.zeros((1 + count * self.height * self.width, 4), dtype=torch.uint8, device=images.device)
        packed[1:, :3] = images.view(-1, 3)
        self.pixels = packed.view(torch.int32).view(-1)
        self.rows = torch.arange(self.size[0], device=images.device)
        self.columns = torch.arange(self.size[1], device=images.device)

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """``(B, 3, h, w)`` float32: the normalised views of ``(B,)`` samples."""
        rows, columns = self.rows.expand(len(index), -1), self.columns.expand(len(index), -1)
        if self.augmentation and self.augmentation.flip:
            mirrored = self.augmentation.flips(index, view)[:, None]
            columns = torch.where(mirrored, self.columns.flip(0), columns)
        if self.augmentation and self.augmentation.crop == "pad":
            top, left = self.augmentation.offsets(index, view, self.height, self.width)
            rows, columns = rows + top[:, None], columns + left[:, None]
        start = 1 + index[:, None] * (self.height * self.width)
        # Outside is so far below zero that the sum with the other coordinate stays there, for the clamp to make it 0.
        outside = -(1 << 60)
        down = torch.where((rows >= 0) & (rows < self.height), start + rows * self.width, outside)  # (B, h)
        right = torch.where((columns >= 0) & (columns < self.width), columns, outside)  # (B, w)
        place = (down[:, :, None] + right[:, None, :]).clamp_(min=0)
        pixels = self.pixels.index_select(0, place.view(-1)).view(torch.uint8)
        return self.normalise(pixels.view(len(index), *self.size, 4))


class ResampledViews:
    """Crops with resizing: PIL's antialiased bilinear filter, written as two matrix products a batch.

    Args:
        images: ``(N, H, W, 3)`` uint8 on the device.
        augmentation: of crop 'resized', or the evaluation's centre crop.
        normalise: applied to the views.
    """

    def __init__(self, images: Tensor, augmentation: Augmentation | Evaluation, normalise: Normalise) -> None:
        self.images = images
        self.augmentation = augmentation
        self.normalise = normalise
        self.size = image_size(augmentation.size)
        height, width = images.shape[1:3]
        # On the device once and for all: a constant sent there with every batch would make the host wait.
        self.sides = torch.tensor([height, width], device=images.device)
        self.out = torch.tensor(self.size, device=images.device)
        if isinstance(augmentation, Evaluation):
            resized, corner = centre_crop(height, width, self.size, augmentation.resize)
            self.steps = self.sides / torch.tensor(resized, device=images.device)
            self.begin = self.steps * torch.tensor(corner, device=images.device)

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """``(B, 3, h, w)`` float32: the normalised views of ``(B,)`` samples."""
        count, (height, width), (tall, wide) = len(index), self.images.shape[1:3], self.size
        sides = self.sides.expand(count, 2)
        if isinstance(self.augmentation, Augmentation):
            boxes = self.augmentation.boxes(index, view, sides[:, 0], sides[:, 1])
            low, extent = boxes.float().split(2, dim=1)
            begin, high, steps = low, low + extent, extent / self.out
        else:
            begin, steps = self.begin.expand(count, 2), self.steps.expand(count, 2)
            low, high = torch.zeros_like(begin), sides
        vertical = _filters(begin[:, 0], steps[:, 0], low[:, 0], high[:, 0], tall, height)  # (B, h, H)
        horizontal = _filters(begin[:, 1], steps[:, 1], low[:, 1], high[:, 1], wide, width)  # (B, w, W)
        if isinstance(self.augmentation, Augmentation):
            mirrored = self.augmentation.flips(index, view)[:, None, None]
            horizontal = torch.where(mirrored, horizontal.flip(1), horizontal)
        pixels = self.images.index_select(0, index).float()  # (B, H, W, 3)
        pixels = torch.bmm(vertical, pixels.view(count, height, width * 3)).view(count, tall, width, 3)
        pixels = torch.matmul(horizontal[:, None], pixels)  # (B, 1, w, W) @ (B, h, W, 3)
        return self.normalise(pixels)


def _filters(begin: Tensor, step: Tensor, low: Tensor, high: Tensor, out: int, length: int) -> Tensor:
    """``(B, out, length)``: the weight of each source pixel in each result pixel, along one axis.

    Args:
        begin: ``(B,)`` where the first result pixel begins, in source pixels.
        step: ``(B,)`` the width of a result pixel; over 1, the triangle widens with it, which is the antialiasing.
        low: ``(B,)`` the first source pixel that may be read.
        high: ``(B,)`` one past the last.
        out: result pixels.
        length: source pixels.
    """
    source = torch.arange(length, device=begin.device)
    centre = begin[:, None] + (torch.arange(out, device=begin.device) + 0.5) * step[:, None]  # (B, out)
    distance = (source + 0.5 - centre[:, :, None]).abs() / step.clamp(min=1)[:, None, None]
    inside = (source >= low[:, None]) & (source < high[:, None])  # (B, length)
    weight = (1 - distance).clamp(min=0) * inside[:, None]
    return weight / weight.sum(dim=2, keepdim=True)
