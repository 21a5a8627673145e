"""The order of the pages: the one place that has it."""

from sphinx.application import Sphinx

__all__ = ["BELOW", "setup"]

# The pages below a page, by caption. The Markdown files do not say it themselves: elsewhere it would be read as text.
BELOW = {
    "index": {
        "Start": ["quickstart", "own-images", "detection", "segmentation", "faces", "own-network", "own-method"],
        "Decide": ["choosing", "methods/index", "reading-a-report", "results"],
        "Use": ["training", "store", "large-data", "profiling", "studies", "race", "watching", "zoo"],
        "Look up": ["api/index", "performance", "architecture", "decisions", "contributing", "changelog"],
    },
    "methods/index": {"Methods": ["methods/*"]},
}


def setup(app: Sphinx) -> None:
    """Look at each page before it is parsed."""
    app.connect("source-read", _append)


def _append(app: Sphinx, name: str, text: list[str]) -> None:
    """Put the pages below a page at its end, out of sight."""
    for caption, pages in BELOW.get(name, {}).items():
        listed = "\n".join(f"/{page}" for page in pages if page in app.env.found_docs or "*" in page)
        text[0] += f"\n\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{listed}\n```\n"
