import subprocess
import sys

import pytest

import potstill as package

COMMANDS = ["demo", "train", "distill", "evaluate", "export", "profile", "methods", "models", "taps", "config"]


def test_help_lists_every_command(potstill):
    result = potstill("--help")
    assert result.exit_code == 0
    assert all(f" {name} " in result.stdout for name in COMMANDS)


def test_no_arguments_print_the_help(potstill):
    assert "Commands" in potstill().output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(potstill, command):
    result = potstill(command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.stdout
    assert f"potstill {command}" in result.stdout.split("Examples")[1]


def test_version(potstill):
    result = potstill("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, package.__version__)


def test_help_does_not_wait_for_torch():
    """Importing torch and timm takes seconds, and nothing of them is needed to parse a command line."""
    code = (
        "import sys, potstill.cli\n"
        "slow = {'torch', 'timm', 'torchvision', 'sklearn', 'pyarrow'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_command_is_refused(potstill):
    result = potstill("destill")
    assert result.exit_code == 2
    assert "destill" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", package.__all__)
def test_public_names_are_there(name):
    assert getattr(package, name) is not None


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'pfed'"):
        _ = package.pfed
