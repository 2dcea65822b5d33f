"""Decision parity: what a live gateway's core was told, told again to a fresh core on the simulator's clock."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import simpy

from policies.api import Event
from policies.wire import WireError, event_from, to_plain
from sim.cluster.clock import Clock
from sim.errors import InputError
from sim.live.gateway.config_file import core_of_head

_VERDICTS = ("forward", "hold", "refuse", "evict", "demote")
_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class Parity:
    """What came of a recording told again.

    Attributes
    ----------
    events : how many were told.
    verdicts : how many of each the recording has, by name.
    different : the first few events to which the core now says something else, in words.
    differing : how many there are.
    """

    events: int
    verdicts: dict[str, int]
    different: list[str]
    differing: int

    @property
    def words(self) -> str:
        """The outcome in a sentence."""
        verdicts = ", ".join(f"{count} {name}" for name, count in self.verdicts.items()) or "none"
        total = sum(self.verdicts.values())
        same = "all the same" if not self.differing else f"{self.differing} events with other instructions"
        return f"{self.events} events, {total} verdicts ({verdicts}): {same}"


def check_parity(file: Path) -> Parity:
    """Tell a recording's events to a fresh core, at their times, and compare every instruction.

    Raises
    ------
    InputError : it cannot be read, or is no recording.
    """
    head, rows = read_recording(file)
    core = core_of_head(head, str(file))
    clock = Clock()
    verdicts: Counter[str] = Counter()
    different: list[str] = []
    counts = Counter[str]()

    def tell() -> Generator[simpy.Event, None, None]:
        core.start(float(head["started_s"]))
        for number, at_s, event, recorded in rows:
            if at_s > clock.now:
                yield clock.timeout(at_s - clock.now)
            # The recorded time to the last bit: a relative delay may miss it by one.
            said = json.loads(json.dumps([to_plain(step) for step in core.handle(event, at_s)]))
            counts["events"] += 1
            verdicts.update(step[0] for step in recorded if step[0] in _VERDICTS)
            if said != recorded:
                counts["differing"] += 1
                if len(different) < _SHOWN:
                    different.append(f"line {number}: {_first_difference(recorded, said)}")

    clock.process(tell())
    clock.run()
    return Parity(counts["events"], dict(sorted(verdicts.items())), different, counts["differing"])


def read_recording(file: Path) -> tuple[dict[str, Any], Iterator[tuple[int, float, Event, list[Any]]]]:
    """Return the head of a recording and its rows: line, time, event and plain instructions.

    Raises
    ------
    InputError : it cannot be read, or is no recording; of a row, when that row is reached.
    """
    fix = "give a file that tokenpools serve recorded (recording: FILE)"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(file), f"cannot be read ({error})", fix) from None
    try:
        head = json.loads(lines[0])
        float(head["started_s"])
        if head["version"] != 1:
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError):
        raise InputError(str(file), "has no head of a recording", fix) from None

    def rows() -> Iterator[tuple[int, float, Event, list[Any]]]:
        for number, line in enumerate(lines[1:], start=2):
            try:
                at_s, event, instructions = json.loads(line)
                yield number, float(at_s), event_from(event), list(instructions)
            except (ValueError, TypeError, WireError) as error:
                if number == len(lines):  # a gateway that was killed wrote half a line
                    return
                raise InputError(str(file), f"line {number} is no event ({error})", fix) from None

    return head, rows()


def _first_difference(recorded: list[Any], said: list[Any]) -> str:
    for before, now in zip_longest(recorded, said):
        if before != now:
            return f"recorded {before}, now {now}"
    return "none"
