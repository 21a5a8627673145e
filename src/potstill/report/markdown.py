"""A page as Markdown: its sentences and tables; a plot is the sentence that says what it shows."""

import re

from potstill.report.blocks import (
    Block,
    Cards,
    Code,
    Figure,
    Fold,
    Grid,
    Note,
    Page,
    Part,
    Picture,
    Pictures,
    Table,
    Tabs,
    Text,
)

__all__ = ["render_markdown"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&!])")


def render_markdown(page: Page) -> str:
    """The page, with every text from outside escaped, so that none of it is taken for Markdown or HTML."""
    lines = [f"# {_plain(page.title)}", "", _plain(page.subtitle), ""]
    if page.banner:
        lines += [f"> {_plain(page.banner)}", ""]
    for section in page.sections:
        lines += [f"## {_plain(section.title)}", ""]
        for block in section.blocks:
            lines += _lines(block, 3)
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    r"""One line of text as it is.

    Example:
        >>> _plain("a_b <i> | c")
        'a\\_b \\<i\\> \\| c'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _lines(block: Block, level: int) -> list[str]:
    head = "#" * min(level, 6)
    match block:
        case Text(text):
            return [_plain(text), ""]
        case Note(text):
            return [f"> {_plain(text)}", ""]
        case Figure():
            return [_plain(block.label), *(["", _plain(block.reading)] if block.reading else []), ""]
        case Cards(cards):
            rows = [f"{_plain(card.label)}: **{_plain(card.value)}** {_plain(card.detail)}".rstrip() for card in cards]
            return [*(f"* {row}" for row in rows), ""]
        case Table():
            return _table(block)
        case Code(text, title):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return [*([_plain(title), ""] if title else []), fence, *text.rstrip().splitlines(), fence, ""]
        case Pictures():
            return [*(f"* {_plain(_pictured(picture))}" for picture in block.pictures), ""]
        case Grid(blocks):
            return [line for inner in blocks for line in _lines(inner, level)]
        case Part(title, blocks) | Fold(title, blocks):
            return [f"{head} {_plain(title)}", "", *(line for inner in blocks for line in _lines(inner, level + 1))]
        case Tabs(_, tabs):
            return [line for title, blocks in tabs for line in _lines(Part(title, blocks), level)]


def _pictured(picture: Picture) -> str:
    return f"{picture.name}: {'; '.join(f'{view.title}: {view.label}' for view in picture.views)}"


def _table(table: Table) -> list[str]:
    rows = [[_plain(cell) for cell in row] for row in table.rows]
    heads = [_plain(column.name) for column in table.columns]
    marks = ["---:" if column.number else "---" for column in table.columns]
    return [f"{_plain(table.caption)}:", "", *(f"| {' | '.join(row)} |" for row in [heads, marks, *rows]), ""]
