"""``python -m sim`` is the ``tokenpools`` command."""

from tokenpools.__main__ import main

main()
