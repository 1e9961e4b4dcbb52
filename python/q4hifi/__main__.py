"""``python -m q4hifi``."""

from .cli import main

if __name__ == "__main__":
    main()
