"""The command in this process, and the small run that the tests of procedures begin from."""

from typer.testing import CliRunner

from potstill.cli import app

__all__ = ["TINY", "call"]

# 179 of the digits to learn from and 1618 to judge by; a run of a second or two.
TINY = (
    "data.source=digits", "data.val_fraction=0.9", "data.size=16", "student.model=resnet8", "device=cpu",
    "schedule.name=constant", "log.every=1", "epochs=2", "precision=fp32",
)  # fmt: skip


def call(*arguments: str, code: int = 0) -> str:
    """What `potstill ARGUMENTS` says, where it ends with this exit code; of `--json` stdout alone."""
    result = CliRunner().invoke(app, list(arguments), prog_name="potstill")
    assert result.exit_code == code, result.output
    return result.stdout if "--json" in arguments else result.output
