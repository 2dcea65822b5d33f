"""Prefix caching: which KV blocks hold what, shared by who has the same prefix, evicted least recently used first.

As vLLM V1 does it (``v1/core/kv_cache_manager.py``, ``block_pool.py``):

- Only full blocks are found again, and at least the last token of a prompt is always computed.
- A block in use counts its holders. When the last one lets go it is appended to the queue of free blocks, the last
  block of a request first; blocks are taken from the front of that queue, and hold what they held until then. A block
  that is not full, which nobody can find, comes to the front of the queue instead.
- The blocks of a prompt can be found as soon as they are scheduled. Those of an answer can, here, once its request has
  given them back: before that nobody has a prompt that repeats it.
- What is computed again although it is there (the last block of a prompt that is a whole number of blocks) is a second
  copy, found when the first is gone.

The queue is not kept block by block. A block is named by the line of text it belongs to and its position; whoever holds
a block holds all before it, so what is left of a line is always its beginning, and spans of blocks that share their
fate are one entry. A request costs a few entries, whatever the length of its prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final

from sim.cluster.engine_request import EngineRequest

_ENDLESS: Final = 1 << 62

Path = list[tuple[Hashable, int, int]]
"""Lines by name, each with the first block and the stop of the part that a text runs through."""


class _Span:
    """Blocks [first, stop) of a line that have the same holders; ``line`` is None where they hold nothing."""

    __slots__ = ("first", "holders", "line", "listed", "stop")

    def __init__(self, line: _Line | None, first: int, stop: int, holders: int, *, listed: bool = True) -> None:
        self.line = line
        self.first = first
        self.stop = stop
        self.holders = holders
        self.listed = listed


class _Line:
    """The blocks that are there of one line of text.

    ``spans`` lists them in order, without a gap; ``copies`` has second copies, one block each, by position.
    """

    __slots__ = ("copies", "forgotten", "name", "spans")

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.spans: list[_Span] = []
        self.copies: dict[int, list[_Span]] = {}
        self.forgotten = False


class _Hold:
    """What a request holds: the first ``stop`` blocks of its path have names, ``copies`` of them are its own copies."""

    __slots__ = ("copies", "forgotten", "lines", "path", "stop")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[_Line] = []  # of the path, as far as it holds blocks of them
        self.stop = 0
        self.copies: dict[int, _Span] = {}
        self.forgotten = False


class PrefixCache:
    """The queue of free blocks of one replica, and what they and the blocks in use hold.

    The replica counts blocks itself, and says how many are free before it looks or lets go: see `sync`.
    """

    __slots__ = ("_asked", "_block_tokens", "_free", "_free_blocks", "_holds", "_lines", "_path_asked")

    def __init__(self, total_blocks: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._holds: dict[EngineRequest, _Hold] = {}
        self._lines: dict[Hashable, _Line] = {}
        # Who was last asked for its path, and that: one that waits is looked for again and again, then held.
        self._asked: EngineRequest | None = None
        self._path_asked: Path = []
        self.clear(total_blocks)

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return self._block_tokens

    def clear(self, free_blocks: int) -> None:
        """Forget what all blocks hold, those in use too: what runs now leaves nothing to be found."""
        for line in self._lines.values():
            line.forgotten = True
        for hold in self._holds.values():
            hold.forgotten = True
        self._lines = {}
        self._free: OrderedDict[_Span, None] = OrderedDict()
        self._free_blocks = 0
        self._append_empty(max(0, free_blocks))

    def lose_all(self) -> None:
        """Forget the requests: the replica crashed, and nobody holds anything."""
        self._holds = {}

    def sync(self, free_blocks: int) -> None:
        """Take blocks from the front of the queue until as many are left as the replica has free."""
        surplus = self._free_blocks - max(0, free_blocks)
        if surplus > 0:
            self._take(surplus)

    # ---------------------------------------------------------------------------------------------------------- find

    def look(self, request: EngineRequest, tokens: int) -> tuple[int, int]:
        """Return how many leading blocks of a prompt of ``tokens`` are there, and how many of them are in use."""
        most = (tokens - 1) // self._block_tokens
        found = in_use = 0
        for name, first, stop in self._path(request):
            line = self._lines.get(name)
            if line is None or first >= most:
                break
            end = min(stop, most, line.spans[-1].stop)
            for span in line.spans:
                if span.first >= end:
                    break
                if span.holders:
                    in_use += min(span.stop, end) - span.first
            found = end
            if end < stop:
                break
        return found, in_use

    def hold(self, request: EngineRequest, blocks: int) -> None:
        """Let a request hold its leading ``blocks``, as many as `look` found."""
        hold = self._holds[request] = _Hold(self._path(request))
        hold.stop = blocks
        for name, first, stop in hold.path:
            if first >= blocks:
                break
            line = self._lines[name]
            hold.lines.append(line)
            self._touch(line, min(stop, blocks))

    def _touch(self, line: _Line, stop: int) -> None:
        """Count one more holder of the blocks of a line up to ``stop``."""
        for i, span in enumerate(line.spans):
            if span.first >= stop:
                return
            if span.stop > stop:  # the rest stays as it is, in its place in the queue
                lower = _Span(line, span.first, stop, span.holders + 1)
                span.first = stop
                line.spans.insert(i, lower)
                if not span.holders:
                    self._free_blocks -= stop - lower.first
                return
            if not span.holders:
                del self._free[span]
                self._free_blocks -= span.stop - span.first
            span.holders += 1

    # ---------------------------------------------------------------------------------------------------------- name

    def name(self, request: EngineRequest, tokens: int) -> None:
        """Let others find what a request has once its first ``tokens`` are computed; nothing where none looks."""
        hold = self._holds.get(request)
        if hold is not None:
            blocks = tokens // self._block_tokens
            if blocks > hold.stop:
                self._name(hold, blocks)

    def _name(self, hold: _Hold, blocks: int) -> None:
        held = hold.stop
        if blocks <= held or hold.forgotten:
            return
        path, lines = hold.path, hold.lines
        # Of all lines but the last that it holds blocks of, it has named all.
        for i in range(max(0, len(lines) - 1), len(path)):
            name, first, stop = path[i]
            if stop <= held:
                continue
            if first >= blocks:
                break
            if i < len(lines):
                line = lines[i]
            else:
                line = self._lines.get(name) or self._lines.setdefault(name, _Line(name))
                lines.append(line)
            position = first if first > held else held
            end = stop if stop < blocks else blocks
            there = line.spans[-1].stop if line.spans else first
            while position < there and position < end:
                copy = hold.copies[position] = _Span(line, position, position + 1, 1, listed=False)
                line.copies.setdefault(position, []).append(copy)
                position += 1
            if position < end:
                line.spans.append(_Span(line, position, end, 1))
        hold.stop = blocks

    # ------------------------------------------------------------------------------------------------------- let go

    def let_go(self, request: EngineRequest, blocks: int, tokens: int, *, comes_back: bool) -> int:
        """Take back the ``blocks`` of a request that has computed ``tokens``; returns how many became free.

        ``comes_back`` says that it was preempted, and will look for them.
        """
        hold = self._holds.pop(request, None)
        full = tokens // self._block_tokens
        if hold is None:
            if not comes_back:
                self._prepend_empty(blocks - full)
                self._append_empty(full)  # full blocks of a text that nobody else has
                return blocks
            hold = _Hold(self._path(request))
        self._name(hold, full)
        freed = blocks - hold.stop
        self._prepend_empty(freed)
        above: _Span | None = None
        for span in self._held(hold):
            span.holders -= 1
            if not span.holders:
                freed += span.stop - span.first
                above = self._append(span, above)
            else:
                above = None
        return freed

    @staticmethod
    def _held(hold: _Hold) -> Iterator[_Span]:
        """Yield the spans that a request holds, the last first."""
        copies = hold.copies
        for line, (_, _, stop) in zip(reversed(hold.lines), reversed(hold.path[: len(hold.lines)]), strict=True):
            spans = [span for span in reversed(line.spans) if span.first < min(stop, hold.stop)]
            if copies:
                spans = [span for span in spans if span.first not in copies]
                spans += [copy for copy in copies.values() if copy.line is line]
                spans.sort(key=lambda span: -span.first)
            yield from spans

    def _append(self, span: _Span, above: _Span | None) -> _Span | None:
        """Append a span to the queue; ``above`` was appended just before it. Returns the entry it is in."""
        line, size = span.line, span.stop - span.first
        assert line is not None
        if line.forgotten:
            self._prepend_empty(size)
            return None
        self._free_blocks += size
        if above is not None and above.line is line and above.first == span.stop and above.listed and span.listed:
            above.first = span.first  # one entry, since they are taken one after the other
            line.spans.remove(span)
            return above
        self._free[span] = None
        return span

    def _append_empty(self, blocks: int) -> None:
        if not blocks:
            return
        self._free_blocks += blocks
        last = next(reversed(self._free), None)
        if last is not None and last.line is None:
            last.stop += blocks
        else:
            self._free[_Span(None, 0, blocks, 0)] = None

    def _prepend_empty(self, blocks: int) -> None:
        if not blocks:
            return
        self._free_blocks += blocks
        first = next(iter(self._free), None)
        if first is not None and first.line is None:
            first.stop += blocks
        else:
            self._free[span := _Span(None, 0, blocks, 0)] = None
            self._free.move_to_end(span, last=False)

    # ---------------------------------------------------------------------------------------------------------- take

    def _take(self, blocks: int) -> None:
        """Take blocks from the front of the queue; what they held is gone."""
        self._free_blocks -= blocks
        while blocks:
            span = next(iter(self._free))
            size = span.stop - span.first
            taken = min(size, blocks)
            blocks -= taken
            if taken == size:
                del self._free[span]
            line = span.line
            if line is None:
                span.stop -= taken
            elif not span.listed:
                self._drop_copy(line, span)
            elif not line.copies:
                span.stop -= taken
                if taken == size:
                    line.spans.pop()  # it was the last: nothing is kept longer than what comes before it
            else:
                for _ in range(taken):
                    self._replace_last(line, span)
            if line is not None and not line.spans:
                del self._lines[line.name]

    @staticmethod
    def _drop_copy(line: _Line, copy: _Span) -> None:
        others = line.copies[copy.first]
        others.remove(copy)
        if not others:
            del line.copies[copy.first]

    def _replace_last(self, line: _Line, span: _Span) -> None:
        """Let a second copy, if there is one, stand for the last block of a span."""
        at = line.spans.index(span)
        span.stop -= 1
        position = span.stop
        if span.stop > span.first:
            at += 1
        else:
            del line.spans[at]
        if position in line.copies:
            copy = line.copies[position][0]
            self._drop_copy(line, copy)
            copy.listed = True
            line.spans.insert(at, copy)

    def _path(self, request: EngineRequest) -> Path:
        """Return the lines that a request's text runs through: its prefix as far as that goes, then its own."""
        if request is self._asked:
            return self._path_asked
        block_tokens = self._block_tokens
        path: Path = []
        first = 0
        for name, end_tokens in request.prefix or ():
            stop = end_tokens // block_tokens
            if stop > first:
                path.append((name, first, stop))
                first = stop
        path.append((request, first, _ENDLESS))
        self._asked, self._path_asked = request, path
        return path
