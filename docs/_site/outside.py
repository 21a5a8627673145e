"""Files of the project outside ``docs/``: some are pages of the site too, the others lie beside it."""

import re
from pathlib import Path, PurePosixPath

from sphinx.application import Sphinx

__all__ = ["setup"]

ROOT = Path(__file__).resolve().parents[2]
SHOWN = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}  # pages that are files of the root
PAGES = {"README.md": "docs/index.md", **{file: f"docs/{page}.md" for page, file in SHOWN.items()}}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


def setup(app: Sphinx) -> None:
    """Look at each page before it is parsed."""
    app.connect("source-read", _read)


def _read(app: Sphinx, name: str, text: list[str]) -> None:
    """Show the file that a page stands for, and lead links to files of the root to their pages."""
    path = PurePosixPath("docs", f"{name}.md")
    if name in SHOWN:
        path = PurePosixPath(SHOWN[name])
        text[0] = (ROOT / path).read_text(encoding="utf-8")
        app.env.note_dependency(str(ROOT / path))

    def moved(found: re.Match[str]) -> str:
        if re.match(r"\w+:", found[1]):
            return found[1]
        target = _joined(path.parent, found[1])
        return _relative(PAGES.get(target, target), PurePosixPath("docs", name).parent)

    text[0] = LINK.sub(moved, text[0])


def _joined(folder: PurePosixPath, link: str) -> str:
    """Where a link of a file in this folder leads, from the project's root."""
    parts: list[str] = []
    for part in (folder / link).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


def _relative(target: str, folder: PurePosixPath) -> str:
    ours, theirs = list(folder.parts), target.split("/")
    while ours and theirs[:1] == ours[:1]:
        ours, theirs = ours[1:], theirs[1:]
    return "../" * len(ours) + "/".join(theirs)
