"""Every command of the documents is one that there is, with its options and keys, also where it is not run."""

import re
import shlex

import pytest
from tests.docs.documents import ROOT, TEXTS, blocks, commands, lines, recipe_of

# What cannot run in a test. A block is here with the reason that stands before it in its document.
NOT_RUN = {
    "docs/detection.md": ["takes days on COCO, and downloads the backbone's weights"],
    "docs/faces.md": ["the sets are not free to pass on"],
    "docs/large-data.md": ["reads from a server", "needs eight machines"],
    "docs/methods/pefd.md": ["downloads the teacher's weights"],
    "docs/profiling.md": ["times a dozen alternatives; tests/cli/test_profile.py runs it"],
    "docs/store.md": ["starts eight processes"],
    "docs/training.md": [
        "starts two processes; tests/training/test_torchrun.py runs the like",
        "needs two machines",
    ],
}


def test_the_blocks_that_are_not_run_are_these():
    kinds = ("sh", "python")
    found = {name: [b.why for kind in kinds for b in blocks(text, kind) if b.why] for name, text in TEXTS.items()}
    assert {name: whys for name, whys in found.items() if whys} == NOT_RUN


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if any(commands(text))])
def test_every_command_line_names_commands_options_and_keys_that_there_are(name: str, reader):
    folder = reader(name)
    for words, target in commands(TEXTS[name]):
        try:
            recipe_of(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{name}: potstill {shlex.join(words)}\n{type(error).__name__}: {error}")
        if target:
            (folder / target).write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train student.model=resnet8 epoch=3", "unknown key 'epoch'"),
        ("distil epochs=3", "distil"),
        ("export runs/a --formats onnx", "No such option"),
        ("distill student.model=resnet8", "names no teacher"),
    ],
)
def test_a_wrong_command_line_would_be_found(line: str, message: str):
    with pytest.raises(Exception, match=message):
        recipe_of(shlex.split(line))


def test_the_targets_of_make_and_the_scripts_that_are_named_are_there():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    found = 0
    for name, text in TEXTS.items():
        for line in lines(text):
            first, *rest = line.words
            if first == "make":
                assert rest[0] in targets, f"{name}: make {rest[0]}"
                found += 1
            elif first == "python":
                source = (ROOT / rest[0]).read_text(encoding="utf-8")
                assert not [word for word in rest if word.startswith("--") and f'"{word}"' not in source], line
                found += 1
    assert found >= 4
