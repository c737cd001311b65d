"""Keeps a deployment's processes running: who dies is started again (restarts.py says when), and everything that happens is said.

Only a process that was ready once is started again; what dies while the deployment starts ends it, with its last words. A worker that ends with
status 0 has left in good order (it was drained) and stays away. Instances come back with the roles that they had.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Iterable, Sequence

from triptych.runtime.core.topology import Topology
from triptych.tools import launch
from triptych.tools.restarts import Restarts
from triptych.tools.supervisor import Child, Supervisor, describe_exit


class Keeper:
    """Watches the children of a supervisor that it makes; used by one thread.

    Args:
        say: one line for people.
        back: called with every process that is ready again after a restart.
    """

    def __init__(
        self,
        plan: Topology,
        specs: Iterable[launch.ProcessSpec],
        say: Callable[[str], None],
        back: Callable[[Child], None],
    ):
        self._plan = plan
        self._specs = {spec.name: spec for spec in specs}
        self._say = say
        self._back = back
        self._ended: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._restarts = Restarts()
        self._due: dict[str, float] = {}  # when to start a dead process again
        self._starting: dict[str, Child] = {}  # started again, not ready yet
        self._left: set[str] = set()
        self._roles: dict[str, dict[str, Sequence[str]]] = {}  # what instances of dead processes had taken on
        self.supervisor = Supervisor(self._on_exit)

    def start(self, name: str) -> Child:
        spec = launch.with_roles(self._specs[name], self._roles.get(name, {}))
        return self.supervisor.start(spec.name, spec.argv, spec.env)

    def watch(self, seconds: float) -> None:
        """Wait for deaths for so long, or until a restart is due, and deal with what happened."""
        due = min(self._due.values(), default=math.inf) - time.monotonic()
        try:
            self._died(self._ended.get(timeout=max(0.0, min(seconds, due))))
        except queue.Empty:
            pass
        now = time.monotonic()
        for name in [name for name, at in self._due.items() if at <= now]:
            del self._due[name]
            self._starting[name] = self.start(name)
        for name in [name for name, child in self._starting.items() if child.ready is not None]:
            child = self._starting.pop(name)
            self._say(f"{name} is back (pid {child.pid})")
            self._back(child)

    def _on_exit(self, child: Child) -> None:
        if not child.asked:
            self._ended.put(child)

    def _died(self, child: Child) -> None:
        name, how = child.name, describe_exit(child.exit_code or 0)
        self._starting.pop(name, None)
        self._roles.setdefault(name, {}).update(child.roles)
        now = time.monotonic()
        if child.exit_code == 0 and self._specs[name].instances:
            self._left.add(name)
            self._say(f"{name} left; {self._what_is_left()}")
            return
        restart = self._restarts.died(name, None if child.ready_at is None else now - child.ready_at, now)
        self._due[name] = now + restart.delay
        if restart.looping:
            tail = "".join(f"\n    {line}" for line in child.lines)
            self._say(
                f"{name} keeps dying: {restart.deaths} times in {restart.seconds:.0f} s, now with {how}; its last lines:{tail}"
            )
        self._say(f"{name} ended ({how}); starting it again in {restart.delay:.1f} s")

    def _what_is_left(self) -> str:
        staying = [spec for spec in self._specs.values() if spec.name not in self._left]
        instances = [instance for spec in staying for instance in spec.instances]
        if launch.still_serves(self._plan, instances):
            return f"going on with {len(instances)} instances"
        return "what stays was started for one stage only: unless roles were switched, requests will wait, and fail"
