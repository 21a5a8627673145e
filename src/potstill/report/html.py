"""A page as one HTML file that needs nothing besides itself."""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from potstill.plain_json import to_json
from potstill.report.blocks import Block, Figure, Fold, Grid, Page, Part, Tabs

__all__ = ["render_html"]


def render_html(page: Page) -> str:
    """The page with its plots, its style and plotly itself inside.

    Every text is escaped where it enters the page. The page's own policy lets no script run besides the two whose
    hashes it names, and no request leave it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("potstill.report", "page"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    numbers = iter(range(1, 1_000_000))
    environment.globals["fresh"] = lambda: next(numbers)  # for the ids of tabs and plots
    figures = {id(figure): number for number, figure in enumerate(_figures(page))}
    script = _own("page.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' '{_hash(_plotly())}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'none'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html").render(
        page=page, policy=policy, style=Markup(_own("page.css")), script=Markup(script), plotly=Markup(_plotly()),
        number_of=lambda figure: figures[id(figure)],
        figures=Markup(_in_script([_drawn(figure) for figure in _figures(page)])),
    )  # fmt: skip


def _figures(page: Page) -> list[Figure]:
    return [figure for section in page.sections for block in section.blocks for figure in _inside(block)]


def _inside(block: Block) -> list[Figure]:
    """The figures of a block, whatever it is nested in."""
    if isinstance(block, Figure):
        return [block]
    inner: list[Block] = []
    if isinstance(block, Grid | Part | Fold):
        inner = list(block.blocks)
    elif isinstance(block, Tabs):
        inner = [one for _, blocks in block.tabs for one in blocks]
    return [figure for one in inner for figure in _inside(one)]


def _drawn(figure: Figure) -> dict[str, Any]:
    return {"data": figure.data, "layout": {**figure.layout, "height": figure.height}}


def _in_script(value: Any) -> str:
    r"""JSON that cannot end the script element that it stands in, nor a line of it.

    Example:
        >>> _in_script("</script>&")
        '"\\u003c/script\\u003e\\u0026"'
    """
    text = json.dumps(json.loads(to_json(value)), separators=(",", ":"))  # ASCII: U+2028 is escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _own(name: str) -> str:
    return files("potstill.report").joinpath("page", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Plotly's own script, as its Python package has it."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
