"""The command: one module for a group of commands. Bodies load, call one function and print.

Heavy imports wait until a command needs them; these modules import nothing heavier than typer, and rich waits for a
terminal. Command modules import none of each other: what they share is in `sim.cli.app`, `tables`, `progress` and
`completion`. The order of the imports is the order of the help page.
"""

from sim.cli import run, scenarios, experiments, advise, units, judging, export, calibration  # noqa: I001
from sim.cli import traces, replay, live, keys, mock_server, adapters
from sim.cli.app import app, main, tree

__all__ = [
    "adapters",
    "advise",
    "app",
    "calibration",
    "experiments",
    "export",
    "judging",
    "keys",
    "live",
    "main",
    "mock_server",
    "replay",
    "run",
    "scenarios",
    "traces",
    "tree",
    "units",
]
