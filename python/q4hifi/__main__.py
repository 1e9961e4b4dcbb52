"""``python -m q4hifi``."""

from .cli import main

main()
