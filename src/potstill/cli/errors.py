"""How a command ends: a user's mistake is one clear line and an exit code, never a traceback."""

import os
import shlex
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
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]  # what parsing a command leaves nothing of
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
            if (key := _key_as_option(error)) is not None:
                option = str(getattr(error, "option_name", ""))
                say_error(f"There is no option {option}; it is a key of the recipe: {key}={_value_of(option, words)}")
                raise typer.Exit(MISTAKE) from None
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


def _key_as_option(error: Exception) -> str | None:
    """The recipe's key that was given as an option, like ``--run X``, to a command that takes a recipe."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if option is None or context is None:  # only a command line's unknown option has both
        return None
    if not any("KEY=VALUE" in (parameter.metavar or "") for parameter in context.command.params):
        return None
    from potstill.recipe import is_key

    key = str(option).lstrip("-").replace("-", "_")
    return key if is_key(key) else None


def _value_of(option: str, words: list[str]) -> str:
    """What a command line gives for an option, quoted for a shell; three dots where it gives nothing."""
    for word, after in zip(words, [*words[1:], "..."], strict=True):
        if word == option:
            return shlex.quote(after)
        if word.startswith(f"{option}="):
            return shlex.quote(word.removeprefix(f"{option}="))
    return "..."


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # an error of torch's means that it is imported; importing it here takes seconds
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
