"""The ``tokenpools`` command; ``python -m tokenpools`` is the same."""

from __future__ import annotations

import gc

import tokenpools  # noqa: F401  (from here on its packages are found where they belong)


def main() -> None:
    """Run the command."""
    gc.disable()  # imports make many objects and no garbage; what runs for long turns it on again
    from sim.cli import main as command

    command()


if __name__ == "__main__":
    main()
