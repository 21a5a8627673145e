"""How large a store gets, told before it is built."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import RunError
from potstill.store.fields import CHECK_BYTES, Layout

__all__ = ["StoreSize", "in_units", "require_space", "store_size"]

_FEATURE_MAPS = ("maps", "preacts", "blocks")
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class StoreSize:
    """The bytes of a store.

    Attributes:
        record_bytes: of one view of one sample.
        map_bytes: those of them that are feature maps.
        samples: N.
        views: V.
    """

    record_bytes: int
    map_bytes: int
    samples: int
    views: int

    @property
    def view_bytes(self) -> int:
        """Of one view of all samples, with a byte for each that says whether it is there."""
        return self.samples * (self.record_bytes + 1)

    @property
    def total_bytes(self) -> int:
        """Of all views."""
        return self.views * self.view_bytes

    def sentence(self) -> str:
        """All of it in words; where there are feature maps, what they cost."""
        text = (
            f"The store takes {self.record_bytes:,} bytes a record: {in_units(self.view_bytes)} a view, "
            f"{in_units(self.total_bytes)} for {self.views:,} view{'s' if self.views > 1 else ''} of "
            f"{self.samples:,} images."
        )
        if not self.map_bytes:
            return text
        without = self.total_bytes - self.samples * self.views * self.map_bytes
        share = 100 * self.map_bytes / self.record_bytes
        return f"{text} Feature maps are {share:.1f} % of it: without them it takes {in_units(without)}."


def store_size(layout: Layout, samples: int, views: int) -> StoreSize:
    """The size of a store that keeps ``views`` views of ``samples`` samples.

    Example:
        >>> layout = Layout((("logits", (100,)), ("embedding", (256,))), dtype="fp16")
        >>> store_size(layout, samples=50_000, views=8).sentence()
        'The store takes 716 bytes a record: 35.9 MB a view, 286.8 MB for 8 views of 50,000 images.'
        >>> maps = Layout((*layout.outputs, ("maps.0", (2048, 7, 7))), dtype="fp16")
        >>> print(store_size(maps, samples=1_281_167, views=1).sentence())
        The store takes 201,420 bytes a record: 258.1 GB a view, 258.1 GB for 1 view of 1,281,167 images. Feature
        maps are 99.6 % of it: without them it takes 918.6 MB.
    """
    others = tuple((name, shape) for name, shape in layout.outputs if name.split(".")[0] not in _FEATURE_MAPS)
    if not others:
        maps = layout.payload_bytes
    else:
        top_k = layout.top_k
        maps = layout.record_bytes - (Layout(others, layout.dtype, top_k).payload_bytes + CHECK_BYTES)
    return StoreSize(layout.record_bytes, maps, samples, views)


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Args:
        folder: there already.
        needed: in bytes.

    Raises:
        RunError: the disk has less than that free.
    """
    if (free := shutil.disk_usage(folder).free) < needed:
        raise RunError(
            f"the store in {folder} needs {in_units(needed)}, and its disk has {in_units(free)} free: keep fewer "
            "views, no feature maps, or fewer logits (top_k); or give another folder"
        )


def in_units(size: int) -> str:
    """A number of bytes for people, in powers of 1000.

    Example:
        >>> in_units(999), in_units(286_800_000)
        ('999 bytes', '286.8 MB')
    """
    power = min(int(math.log10(max(size, 1))) // 3, len(_UNITS) - 1)
    return f"{size} bytes" if power == 0 else f"{size / 1000**power:.1f} {_UNITS[power]}"
