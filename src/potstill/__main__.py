"""``python -m potstill``, and ``torchrun ... -m potstill``: the command."""

from potstill.cli import main

main()
