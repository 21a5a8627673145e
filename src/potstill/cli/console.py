"""Where the command talks: one console for people, and the library's log sentences shown plainly on it."""

import logging
import os

from rich.console import Console
from rich.text import Text

__all__ = ["is_main_process", "open_console"]

_PIPE_WIDTH = 1000  # nothing is folded on a pipe: a table is as wide as its content


def open_console(json: bool = False) -> Console:
    """The console for people: stdout, or stderr where stdout is kept for JSON.

    The library's sentences (``logging`` below ``potstill``) appear on it from now on. Of several processes only the
    first one talks.
    """
    console = Console(stderr=json, highlight=False, markup=False, emoji=False, quiet=not is_main_process())
    if not console.is_terminal:
        console.width = _PIPE_WIDTH  # whatever COLUMNS says: it is the width of the terminal that started the pipe
    logger = logging.getLogger("potstill")
    logger.setLevel(logging.INFO)
    for old in [handler for handler in logger.handlers if isinstance(handler, _Plain)]:
        logger.removeHandler(old)
    logger.addHandler(_Plain(console))
    return console


def is_main_process() -> bool:
    """Whether this is the first of the processes that ``torchrun`` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class _Plain(logging.Handler):
    """A log record as its sentence, each sentence once; warnings are marked as such."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        # Teacher, control and student of one command share their data, and so what there is to say of them.
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        sentence = record.getMessage()
        if sentence in self._said:
            return
        self._said.add(sentence)
        text = Text(sentence)
        if record.levelno >= logging.WARNING:
            text = Text("warning: ", style="bold yellow") + text
        self.console.print(text, soft_wrap=True)
