"""Whether `calibrate` finds a mock server's own coefficients: both ends on a clock that jumps, through real sockets.

    python -m sim.studies.mock_calibration [--real-time] [PROFILE ...]

With ``--real-time`` the server is a process of its own and both ends are on the machine's clock, as a user has it.
Prints each coefficient beside what was found. Only a profile whose step time is of terms that `calibrate endpoint` fits
can be found again; for others the iterations that were watched are compared.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass, fields

from sim import collector
from sim.calibration.from_server import Measurements, calibrate_live
from sim.live.loadgen.completions_client import PromptKind
from sim.live.loadgen.iteration_timing import Engine, Seen, measure, plan_for
from sim.mock_server.app import ServerSettings
from sim.mock_server.jumping_loop import JumpingLoop
from sim.mock_server.run import start, stop
from sim.scenario.profile import Profile, load_profile
from workloads.lengths import Constant

_SHOWN = ("a10g-llama-2-7b-slora", "a10g-llama-2-7b", "b200-llama-3.1-70b-fp8-tp1")


@dataclass(frozen=True, slots=True)
class Found:
    """What calibration made of a mock server of a profile."""

    profile: Profile
    found: Profile
    worst_iteration_error: float

    def coefficients(self) -> list[tuple[str, float, float]]:
        """Return name, value and found value of every coefficient that one of them has."""
        rows = [("request_overhead_s", self.profile.request_overhead_s, self.found.request_overhead_s)]
        for one in fields(self.found.step_time):
            found = getattr(self.found.step_time, one.name)
            own = getattr(self.profile.step_time, one.name, 0.0)
            if isinstance(found, float) and isinstance(own, float | int) and (found or own):
                rows.append((one.name, float(own), found))
        return rows


def calibrated(profile: Profile, *, quick: bool = False) -> Found:
    """Serve a profile, measure it from outside, and return what was found."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(_calibrated(profile, quick))


def calibrated_in_real_time(profile: Profile) -> Found:
    """Serve a shipped profile in a process of its own, measure it in real time, and return what was found."""
    command = [sys.executable, "-m", "tokenpools", "mock-server", "--profile", profile.name, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, collector.paused():
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            return _compared(profile, asyncio.run(_measured(profile, url, quick=False)))
        finally:
            server.terminate()


async def _calibrated(profile: Profile, quick: bool) -> Found:
    runners, urls = await start(ServerSettings(profile=profile, model=profile.name, answers=Constant(value=16)))
    try:
        return _compared(profile, await _measured(profile, urls[0], quick))
    finally:
        await stop(runners)


async def _measured(profile: Profile, url: str, quick: bool) -> Seen:
    longest = profile.max_model_tokens or profile.kv_blocks * profile.block_tokens
    engine = Engine(
        max_num_seqs=profile.max_num_seqs, max_num_batched_tokens=profile.max_num_batched_tokens,
        max_model_tokens=longest, kv_tokens=profile.kv_blocks * profile.block_tokens,
    )  # fmt: skip
    return await measure(url, PromptKind(model=profile.name), engine, plan_for(engine, quick=quick))


def _compared(profile: Profile, seen: Seen) -> Found:
    """Make a profile of what was seen of a server, and compare it with the one that the server has."""
    found = calibrate_live(
        Measurements(
            steps=seen, kv_blocks=profile.kv_blocks, block_tokens=profile.block_tokens, name=profile.name,
            max_num_seqs=profile.max_num_seqs, max_num_batched_tokens=profile.max_num_batched_tokens,
            async_scheduling=profile.async_scheduling, prefix_caching=profile.prefix_caching,
        )
    )
    makeups = [(0, 0.0, d.sequences, d.context_tokens) for d in seen.decodes]
    makeups += [(p.prompt_tokens, p.prompt_tokens * (p.prompt_tokens + 1) / 2, 1, p.context_tokens)
                for p in seen.prompts]  # fmt: skip
    errors = [abs(found.step_time.iteration_s(*m) / profile.step_time.iteration_s(*m) - 1) for m in makeups]
    return Found(profile, found, max(errors))


def main() -> None:
    """Print a table for each profile named on the command line."""
    names = [word for word in sys.argv[1:] if word != "--real-time"]
    measured = calibrated if len(names) == len(sys.argv) - 1 else calibrated_in_real_time
    for name in names or _SHOWN:
        result = measured(load_profile(name))
        lines = [f"{name}: worst error of an iteration {100 * result.worst_iteration_error:.2f} %"]
        for coefficient, own, found in result.coefficients():
            off = f"{100 * (found / own - 1):+.2f} %" if own > 1e-12 else ""
            lines.append(f"  {coefficient:36} {own:.6g} found {found:.6g} {off}")
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
