"""What a report is made of: sections of small blocks, for the page and for Markdown alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Block", "Card", "Cards", "Code", "Column", "Figure", "Fold", "Grid", "Mark", "Note", "Page", "Part", "Picture",
    "Pictures", "Section", "Table", "Tabs", "Text", "View",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence that must not be overlooked: what is missing and why, or how not to read a number."""

    text: str


@dataclass(frozen=True, slots=True)
class Card:
    """One number that people look for first.

    Attributes:
        label: what it is.
        value: with its unit.
        detail: its interval, or what it is compared with.
        tone: "good" or "bad" where the number says so by itself.
    """

    label: str
    value: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Cards:
    """Some cards in a row."""

    cards: Sequence[Card]


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column.

    Attributes:
        name: its head.
        number: whether its cells are numbers, set to the right.
    """

    name: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain text under a head; the first cell of a row is the row's head.

    Attributes:
        caption: what it shows.
        columns: their names.
        rows: as many cells as there are columns.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot for plotly, and the words that stand in for it where there is none.

    Attributes:
        title: a few words above it.
        label: what it shows, for those who do not see it; with the numbers that matter.
        data: plotly's traces; a colour may be a variable of the page's style, as ``var(--student)``.
        layout: plotly's layout; what is not said here is the page's (fonts, grid, margins).
        reading: one sentence on how to read it.
        height: in pixels.
        classes: names to choose from, of which the plot shows one apart; only of maps.
    """

    title: str
    label: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    reading: str = ""
    height: int = 320
    classes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """Small blocks beside each other, as many as fit."""

    blocks: "Sequence[Block]"


@dataclass(frozen=True, slots=True)
class Tabs:
    """Blocks of which one group is seen at a time; on paper, all.

    Attributes:
        label: what the tabs choose.
        tabs: each one's title and blocks.
    """

    label: str
    tabs: "Sequence[tuple[str, Sequence[Block]]]"


@dataclass(frozen=True, slots=True)
class Part:
    """A heading below the section's own, and what stands below it."""

    title: str
    blocks: "Sequence[Block]"


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are opened by whoever wants them."""

    summary: str
    blocks: "Sequence[Block]"


@dataclass(frozen=True, slots=True)
class Code:
    """Text as it is, in a fixed width."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A box on a picture.

    Attributes:
        x: of its left side, like the others in units of the picture's width and height.
        y: of its upper side.
        width: above 0.
        height: above 0.
        colour: ``#rrggbb``.
        name: what it is.
        score: how sure the network is; None where that is not asked.
    """

    x: float
    y: float
    width: float
    height: float
    colour: str
    name: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A picture with what one network finds in it, or what is there.

    Attributes:
        title: whose view it is.
        label: what it shows, for those who do not see it.
        marks: boxes.
        mask: a picture that is laid over it, as a ``data:`` address; empty without one.
    """

    title: str
    label: str
    marks: Sequence[Mark] = ()
    mask: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, and the views of it that stand beside each other.

    Attributes:
        name: of the image.
        image: as a ``data:`` address.
        width: that marks are measured in.
        height: likewise.
        views: of it.
    """

    name: str
    image: str
    width: float
    height: float
    views: Sequence[View]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images with boxes from a score on, which a slider moves, or with masks, which it makes more or less clear.

    Attributes:
        slider: what it is called.
        start: where it stands at first, from 0 to 1.
        pictures: in order.
        legend: names and their colours.
        named: whether the names stand beside the boxes at first.
    """

    slider: str
    start: float
    pictures: Sequence[Picture]
    legend: Sequence[tuple[str, str]]
    named: bool = False

    @property
    def masks(self) -> bool:
        """Whether the views have masks."""
        return any(view.mask for picture in self.pictures for view in picture.views)


Block = Text | Note | Cards | Table | Figure | Grid | Tabs | Part | Fold | Code | Pictures


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        name: for the address of the section within the page; letters and hyphens.
        title: its heading.
        blocks: in order.
    """

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """A report.

    Attributes:
        title: what was distilled.
        subtitle: the rest of that, in small.
        sections: in order.
        banner: what must be known before anything is read; a run that is not finished, say.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    banner: str = ""
