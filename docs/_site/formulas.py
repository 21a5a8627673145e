"""Formulas as MathML: every browser draws it, with no script and no fonts from elsewhere."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

__all__ = ["setup"]

log = logging.getLogger(__name__)
UNSIDED = re.compile(r"\\([bB]igg?)(?![a-zA-Z])")  # docutils knows \bigl and \bigr, and not \big
# Fences that TeX does not stretch, and MathML does. The brace before a table is that of cases: it shall stretch.
FENCE = re.compile(r'<mo(?: class="mathopen")?>([‖⟨⟩{}])</mo>(?!\s*<mtable)')


def setup(app: Sphinx) -> None:
    """Add the renderer that ``html_math_renderer`` names."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, as_block: bool) -> str:
    tex = UNSIDED.sub(r"\\\1l", node.astext())
    try:
        return FENCE.sub(r'<mo stretchy="false">\1</mo>', latex2mathml.tex2mathml(tex, as_block=as_block))
    except MathError as error:
        log.warning("The formula %r cannot be shown: %s", tex, error, location=node)
        return ""
