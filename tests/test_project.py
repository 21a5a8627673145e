"""The project's own files agree with each other: what is pinned, what is promised, which version this is."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def canonical(name: str) -> str:
    """A package's name as indexes compare it: ``types-PyYAML`` -> ``types-pyyaml``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> set[str]:
    """Every package that pyproject.toml asks for: to build, to run, for each extra but the trackers.

    Of those the tests take the two that go with everything else; trackio would hold back Pillow.
    """
    project = PROJECT["project"]
    extras = [packages for name, packages in project["optional-dependencies"].items() if name != "track"]
    wanted = [
        *PROJECT["build-system"]["requires"],
        *project["dependencies"],
        *(name for extra in extras for name in extra),
    ]
    return {canonical(re.match(r"[\w.-]+", requirement).group()) for requirement in wanted}


def pins() -> dict[str, list[str]]:
    """The logical lines of requirements.txt, backslashes joined, by package; a package has one a range of Pythons."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: dict[str, list[str]] = {}
    for line in lines:
        pin = re.match(r"([\w.-]+)==[\w.+!]+(?: |$)", line)
        assert pin, f"requirements.txt: not a pin with ==: {line[:80]}"
        found.setdefault(canonical(pin.group(1)), []).append(line)
    return found


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def commands(text: str) -> list[str]:
    """Lines of fenced blocks and the insides of code spans of a Markdown text."""
    fence = r"^```[^\n]*\n(.*?)^```"
    blocks = re.findall(fence, text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(fence, "", text, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", prose)


def targets_named(text: str) -> set[str]:
    """The targets of the make commands in a Markdown text; ``VAR=value`` words are no targets."""
    words = [word for line in commands(text) if line.startswith("make ") for word in line.split("#")[0].split()[1:]]
    return {word for word in words if re.fullmatch(r"[a-z]+", word)}


def test_every_pin_has_a_hash():
    bare = [
        line[:60] for lines in pins().values() for line in lines if not re.search(r"--hash=sha256:[0-9a-f]{64}", line)
    ]
    assert not bare


def test_the_pins_name_no_address():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert not re.findall(r"\w+://\S*|^-.*| @ .*", text, flags=re.MULTILINE)


def test_everything_that_pyproject_asks_for_is_pinned():
    missing = required() - set(pins())
    assert not missing, f"not in requirements.txt; run `make lock`: {sorted(missing)}"


@pytest.mark.parametrize("name", ["torch", "timm", "pillow"])
def test_a_package_of_every_python_has_one_pin(name: str):
    assert len(pins()[name]) == 1


def test_the_changelog_starts_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)", text, flags=re.MULTILINE)
    assert versions[0] == PROJECT["project"]["version"]


def test_every_target_is_phony_and_explained():
    """`make help` prints the explanations; a target that is a file's name too would not run while the file is there."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)", text, flags=re.MULTILINE).group(1).split())
    explained = set(re.findall(r"^([a-z]+):.*## ", text, flags=re.MULTILINE))
    assert make_targets() == phony == explained


def test_the_reader_of_commands_takes_targets_only():
    prose = "Run `make demo` (not: make clean), or `make PYTHON=python3.12 lock`.\n\n"
    block = "```sh\nmake test ARGS='-x'  # all\n.venv/bin/potstill demo\n```\n"
    assert targets_named(prose + block) == {"demo", "test", "lock"}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_make_commands_of_a_document_exist(document: str):
    named = targets_named((ROOT / document).read_text(encoding="utf-8"))
    assert {"demo", "test"} <= named, f"{document} should name the two commands that do all the set-up"
    assert not named - make_targets(), f"{document} names targets that the Makefile does not have"
