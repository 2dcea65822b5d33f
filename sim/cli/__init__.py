"""The command: one module for a group of commands. Bodies load, call one function and print.

Heavy imports wait until a command needs them; these modules import nothing heavier than click.
"""

from sim.cli import calibration, experiments, judging, live, replay, run, traces
from sim.cli.app import app, main

__all__ = ["app", "calibration", "experiments", "judging", "live", "main", "replay", "run", "traces"]

calibration.register(app)
live.register(app)
judging.register(app)
