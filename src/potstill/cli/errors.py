"""How a command ends: a user's mistake is one clear line and an exit code, never a traceback."""

import os
import sys
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from potstill.errors import PotstillError

__all__ = ["Commands", "say_error"]

MISTAKE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


class Commands(TyperGroup):
    """The group of commands: what a command raises becomes a line on stderr and an exit code.

    2: a mistake that the user can mend. 130: Ctrl-C. 141: whoever read the output has gone (silent, as for ``| head``).
    Everything else is a bug, and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PotstillError as error:
            say_error(str(error))
            raise typer.Exit(MISTAKE) from None
        except KeyboardInterrupt:
            say_error("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Python flushes stdout once more when it leaves; that must not meet the broken pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as error:
            if not _out_of_memory(error):
                raise
            say_error(
                f"The device's memory is full ({str(error).splitlines()[0]}). Take a smaller batch_size, or the same "
                "in micro-batches with accumulate=2, or precision=bf16."
            )
            raise typer.Exit(MISTAKE) from None


def say_error(message: str, label: str = "error: ") -> None:
    """``error: message`` on stderr, unwrapped, so that a line stays a line."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    console.print(Text(label, style="bold red") + Text(message), soft_wrap=True)


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # an error of torch's means that it is imported; importing it here takes seconds
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
