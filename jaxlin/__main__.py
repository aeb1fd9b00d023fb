"""``python -m jaxlin``: the command ``jaxlin``."""

from jaxlin.cli import main

if __name__ == "__main__":
    main()
