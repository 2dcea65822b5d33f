"""Decision parity: what a live gateway's core was told, told again to a fresh core on the simulator's clock."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import simpy

from policies.api import Event, Instruction
from policies.wire import WireError, event_from, to_plain
from sim.cluster.clock import Clock
from sim.errors import InputError
from sim.json_text import parse_json
from sim.live.gateway.core_from_config import core_of_head
from sim.scenario.yaml_file import one_line

_VERDICTS = ("forward", "hold", "refuse", "evict", "demote")
_SHOWN = 5


class _Core(Protocol):
    def handle(self, event: Event, now_s: float) -> Sequence[Instruction]: ...


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

    def told() -> Generator[simpy.Event, None, None]:
        core.start(float(head["started_s"]))
        for number, at_s, event, recorded in rows:
            if at_s > clock.now:
                yield clock.timeout(at_s - clock.now)
            # The recorded time to the last bit: a relative delay may miss it by one.
            said = json.loads(json.dumps([to_plain(step) for step in tell(core, event, at_s, file, number)]))
            counts["events"] += 1
            verdicts.update(step[0] for step in recorded if step[0] in _VERDICTS)
            if said != recorded:
                counts["differing"] += 1
                if len(different) < _SHOWN:
                    different.append(f"line {number}: {_first_difference(recorded, said)}")

    clock.process(told())
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
        with file.open("rb") as source:
            first = source.readline(_LONGEST_LINE_BYTES)
    except OSError as error:
        raise InputError(str(file), f"cannot be read ({error.strerror or error})", fix) from None
    try:
        head = parse_json(first)
        if head["version"] != 1 or type(head["started_s"]) not in (int, float) or type(head.get("seed", 0)) is not int:
            raise ValueError
        float(head["started_s"])
    except (ValueError, KeyError, TypeError, OverflowError):
        raise InputError(str(file), "has no head of a recording", fix) from None
    return head, _rows(file, float(head["started_s"]), fix)


_LONGEST_LINE_BYTES = 16 * 2**20


def _rows(file: Path, now_s: float, fix: str) -> Iterator[tuple[int, float, Event, list[Any]]]:
    with file.open("rb") as source:
        source.readline(_LONGEST_LINE_BYTES)
        number = 1
        while line := source.readline(_LONGEST_LINE_BYTES):
            number += 1
            try:
                at_s, event, instructions = parse_json(line)
                if not isinstance(at_s, int | float) or isinstance(at_s, bool):
                    raise TypeError("no time")
                if not isinstance(instructions, list) or not all(map(_is_step, instructions)):
                    raise TypeError("no list of instructions")
                if not at_s >= now_s:
                    raise ValueError(f"its time {at_s} is before {now_s}")
                now_s = float(at_s)
                row = number, now_s, event_from(event), instructions
            except (ValueError, TypeError, OverflowError, WireError) as error:
                if not line.endswith(b"\n"):  # a gateway that was killed wrote half a line
                    problem = f"{file}: line {number}, the last, is torn and left out: whoever recorded was killed"
                    warnings.warn(problem, stacklevel=2)
                    return
                said = one_line(str(error))[:200]
                raise InputError(str(file), f"line {number} is no event ({said})", fix) from None
            yield row


def _is_step(step: object) -> bool:
    return isinstance(step, list) and len(step) > 1 and isinstance(step[0], str)


def tell(core: _Core, event: Event, at_s: float, file: Path, number: int) -> Sequence[Instruction]:
    """Return what a core says to an event of a recording.

    Raises
    ------
    InputError : no core was ever told this after what came before: the recording was changed.
    """
    try:
        return core.handle(event, at_s)
    except (LookupError, ValueError, TypeError, ArithmeticError, AssertionError, AttributeError) as error:
        said = f"{type(error).__name__} {one_line(str(error))[:100]}"
        problem = f"line {number} does not follow from those above ({said})"
        raise InputError(str(file), problem, "give the recording as it was written") from None


def _first_difference(recorded: list[Any], said: list[Any]) -> str:
    for before, now in zip_longest(recorded, said):
        if before != now:
            return f"recorded {before}, now {now}"
    return "none"
