"""What the documents name is there: links, commands in the prose, and every document in the index."""

import re

import pytest
from tests.docs.documents import COMMAND, ROOT, TEXTS, prose

LINKED = {**TEXTS, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")}


@pytest.mark.parametrize("name", TEXTS)
def test_commands_in_the_prose_exist(name: str):
    named = re.findall(r"`potstill ([a-z]+)", prose(TEXTS[name]))
    assert not set(named) - set(COMMAND.commands)


def slugs(text: str) -> set[str]:
    """The anchors of a Markdown text's headings."""
    heads = re.findall(r"^#+ (.*)", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", LINKED)
def test_every_relative_link_leads_somewhere(name: str):
    broken = []
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(LINKED[name])):
        if re.match(r"\w+:", path):
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in slugs(target.read_text(encoding="utf-8"))):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_the_index_leads_to_every_document():
    named = set(re.findall(r"\]\(([^)#\s]*)\)", TEXTS["docs/index.md"]))
    cards = set(re.findall(r"\]\(([^)#\s]*)\)", TEXTS["docs/methods/index.md"]))
    documents = {name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/")} - {"index.md"}
    assert not documents - named - {f"methods/{card}" for card in cards}
