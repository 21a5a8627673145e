"""What a decoding process does: from the numbers of samples and views to cropped bytes."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from potstill.data.decode import EncodedImage, stopped_by
from potstill.data.pixels import Cut, Raster
from potstill.data.source import Source
from potstill.data.views import View, image_size
from potstill.errors import DataError, RunError

__all__ = ["Decoded", "Decoder"]

# Bytes of opened images that are held at once. Their crops are drawn in one go, which saves a quarter of a millisecond
# an image; a limit, because the files of a batch of photographs from a camera are large.
_HELD = 1 << 26


_Opened = EncodedImage | Raster | DataError


class Decoded(NamedTuple):
    """Some samples in some views.

    Attributes:
        pixels: for each view number, ``(n, h, w, 3)`` uint8.
        kept: the n positions in what was asked for that could be read.
        damaged: description and reason of each image that could not.
        error: what stops the run; then nothing else counts. As text: raised here, it would reach the user wrapped in
            this process's traceback.
    """

    pixels: list[Tensor]
    kept: list[int]
    damaged: list[tuple[str, str]]
    error: str | None = None


class Decoder(Dataset[Decoded]):
    """A source's images in a view, by (indices, view numbers).

    Args:
        source: where images come from.
        view: how they are seen.
        skip: whether damaged images are left out; else the first one is an error.
        draft: whether a JPEG is decoded smaller where what a view shows of it is shrunk anyway: at the greatest scale
            that leaves at least the view's own pixels, so that nothing is enlarged that was not before.
    """

    def __init__(self, source: Source, view: View, skip: bool, draft: bool) -> None:
        self.source = source
        self.view = view
        self.skip = skip
        self.draft = draft

    def __getitem__(self, key: tuple[list[int], list[int]]) -> Decoded:
        indices, views = key
        shown: list[list[Tensor]] = [[] for _ in views]
        kept: list[int] = []
        damaged: list[tuple[str, str]] = []
        try:
            found = [one for group in self._groups(indices) for one in self._all(group, views)]
            for position, of_image in enumerate(found):
                if not isinstance(of_image, DataError):
                    kept.append(position)
                    for images, pixels in zip(shown, of_image, strict=True):
                        images.append(pixels)
                    continue
                damaged.append((self.source.describe(indices[position]), str(of_image)))
                if not self.skip:
                    raise stopped_by(of_image)
        except (DataError, RunError) as error:
            return Decoded([], [], damaged, str(error))
        # Collated in a worker, they are written into the memory that is shared with the main process at once.
        empty = torch.empty((0, *image_size(self.view.size), 3), dtype=torch.uint8)
        return Decoded([default_collate(images) if images else empty for images in shown], kept, damaged)

    def _groups(self, indices: list[int]) -> Iterator[list[tuple[int, _Opened]]]:
        """The samples with their images, opened but not decoded, as many at once as may be held."""
        group: list[tuple[int, _Opened]] = []
        held = 0
        for sample in indices:
            image = self._open(sample)
            group.append((sample, image))
            held += 0 if isinstance(image, DataError) else image.memory
            if held > _HELD:
                yield group
                group, held = [], 0
        yield group

    def _open(self, sample: int) -> _Opened:
        """An image before it is decoded, or what is wrong with it; raises where the view cannot be applied to it."""
        name = self.source.describe(sample)
        try:
            data = self.source.encoded(sample)
            image = Raster.of(self.source.image(sample)) if data is None else EncodedImage(data, name)
        except DataError as damage:
            return damage
        try:
            self.view.require(*image.full, name)
        except DataError:
            try:
                image.raster()
            except DataError as damage:  # the image that a view cannot be applied to is damaged, too
                return damage
            raise
        return image

    def _all(self, group: list[tuple[int, _Opened]], views: list[int]) -> Iterator[list[Tensor] | DataError]:
        """Of each image its views, or what is wrong with it."""
        good = [(sample, image) for sample, image in group if not isinstance(image, DataError)]
        index, sizes = torch.tensor([sample for sample, _ in good]), [image.full for _, image in good]
        drawn = [self.view.cuts(index, torch.full_like(index, view), sizes) if good else [] for view in views]
        cuts = zip(*drawn, strict=True)
        for _, image in group:
            yield image if isinstance(image, DataError) else self._views(image, next(cuts))

    def _views(self, image: EncodedImage | Raster, cuts: tuple[Cut, ...]) -> list[Tensor] | DataError:
        """One image's views, or what is wrong with it."""
        scales = [cut.scale if self.draft and image.reducible else 1 for cut in cuts]
        try:
            rasters = {scale: image.raster(scale) for scale in set(scales)}
        except DataError as damage:
            return damage
        return [cut.pixels(rasters[scale]) for cut, scale in zip(cuts, scales, strict=True)]
