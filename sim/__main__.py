"""``python -m sim`` is the ``tokenpools`` command."""

from sim.cli import main

main()
