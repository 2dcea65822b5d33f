"""Kill a process that keeps accounts, at random points, and look whether its store has lost or doubled anything.

    python tests/live/accounts/killed.py --times 100 [--redis]

The worker (``--work``) lets requests through a core and a `Bookkeeper`, and says on stdout what it is about to do and
what is done. After each kill the store must hold what was said: every ended request once at what it used, every open
one at what was reserved, and of the step that was cut off either side, but nothing in between.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NODE = ("group/org", "tokens", "month")
LIMIT = 1e12
WALL_S = 1_795_900_000.0


def work(where: str, seed: int) -> None:
    """Serve until killed."""
    from policies.api import Arrived, EntitlementSpec, Finished, Forward, PoolCapacity, RequestView, ServiceClass
    from policies.budgets import Budget
    from policies.core import GatewayCore
    from policies.hierarchy import Hierarchy, HierarchySpec, Node, entitlement_id
    from policies.no_control import NoControlPolicy
    from policies.routing import RoundRobinRouter
    from sim.live.accounts.bookkeeper import Bookkeeper
    from sim.live.accounts.store import open_store

    members = [EntitlementSpec(name="a", tenant="a", service_class=ServiceClass.SPOT)]
    tree = HierarchySpec(nodes=(
        Node(node_id=NODE[0], budgets=(Budget(unit="tokens", per="month", limit=LIMIT),)),
        Node(node_id=entitlement_id("a"), parent=NODE[0]),
    ))  # fmt: skip
    core = GatewayCore(
        entitlements=members, capacity=PoolCapacity(1, 1000), replica_ids=[0], policy=NoControlPolicy(),
        router=RoundRobinRouter(), hierarchy=Hierarchy(tree, members, None),
    )  # fmt: skip
    core.start(0.0)
    store = open_store(where)
    books = Bookkeeper(store, lambda: core, loop_s=time.monotonic, writer="w")
    books.begin()
    chance = random.Random(seed)
    running: list[tuple[str, int]] = []

    def say(*words: object) -> None:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()

    def tell(event: object) -> object:
        said = core.handle(event, 0.0)  # type: ignore[arg-type]
        books(0.0, event, said)  # type: ignore[arg-type]
        assert not books.is_away, books.status()
        return said

    say("ready")
    number = 0
    while True:
        if running and (len(running) > 20 or chance.random() < 0.5):
            name, most = running.pop(chance.randrange(len(running)))
            used = chance.randint(0, most)
            say("ends", name, 10 + used)
            tell(Finished(name, used))
            say("ended", name)
        else:
            number += 1
            name, most = f"r{seed}-{number}", chance.randint(1, 1000)
            say("comes", name, 10 + most)
            (said,) = tell(Arrived(RequestView(name, "a", "a", 10, most, key="k", wall_s=WALL_S)))  # type: ignore[misc]
            assert isinstance(said, Forward), said
            running.append((name, most))
            say("came", name)


class Kills:
    """Kills workers of one store, one after the other, and adds up what they said."""

    def __init__(self, where: str, seed: int) -> None:
        self.where = where
        self.chance = random.Random(seed)
        self.used = 0.0
        self.requests = 0
        self.seed = seed
        self.steps = 0

    def once(self) -> None:
        """Start a worker, kill it, and compare.

        Raises
        ------
        AssertionError : the store does not hold what was said.
        """
        self.seed += 1
        command = [sys.executable, __file__, "--work", self.where, "--seed", str(self.seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n", "the worker did not start"
            time.sleep(self.chance.uniform(0.0, 0.05))
            worker.send_signal(signal.SIGKILL)
            lines = worker.stdout.read().splitlines(keepends=True)
        self._compare([line.split() for line in lines if line.endswith("\n")])

    def _compare(self, said: list[list[str]]) -> None:
        reserved: dict[str, float] = {}
        used, requests, open_step = self.used, self.requests, 0.0
        ending = False
        for word, name, *amount in said:
            if word in ("comes", "ends"):
                before = reserved.get(name, 0.0)
                open_step, ending = float(amount[0]) - before, word == "ends"
                reserved[name] = float(amount[0])
            else:
                used += open_step
                requests += word == "ended"
                open_step, ending = 0.0, False
                self.steps += 1
        found_used, found_requests = self.found()
        assert found_used in (used, used + open_step), (found_used, used, open_step)
        done = found_used == used + open_step
        assert found_requests in ((requests + 1, requests) if ending else (requests,)), (found_requests, requests)
        if ending and open_step:
            assert (found_requests == requests + 1) == done, "an account and its row of use come from two moments"
        self.used, self.requests = found_used, found_requests

    def found(self) -> tuple[float, int]:
        """Return what the store has: used of the budget, and requests."""
        from sim.live.accounts.store import open_store

        store = open_store(self.where)
        try:
            balance = store.balances().get(NODE)
            rows = store.use("0000", "9999").values()
            requests = sum(use.requests for use in rows)
            return 0.0 if balance is None else balance.used, requests
        finally:
            store.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--redis")
    given = parser.parse_args()
    if given.work:
        work(given.work, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(given.redis or str(Path(folder) / "accounts.db"), given.seed)
        for _ in range(given.times):
            kills.once()
        said = f"{given.times} kills, {kills.steps} steps, {kills.requests} requests: nothing lost, nothing doubled"
        sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main()
