"""The single end of a pull, against a device loop that cancels at that very moment."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

from triptych.runtime.instance.plan import Pool
from triptych.runtime.transfer.consumer import TransferConsumer


def test_a_cancel_that_races_with_the_end_of_a_pull_never_takes_a_later_pull_of_the_same_request() -> None:
    """The pull's end is taken in one piece: whoever shuts the gate also unlists the pull, and unlists no other."""
    consumer = TransferConsumer.__new__(TransferConsumer)
    consumer._lock, consumer._pulls = threading.Lock(), {}

    class Gate:
        """Lets the device loop try to cancel and to start anew right after the end was taken."""

        def shut(self) -> bool:
            device = threading.Thread(target=cancel_and_start)
            device.start()
            device.join(0.2)
            devices.append(device)
            return True

    def cancel_and_start() -> None:
        with consumer._lock:
            consumer._pulls.pop(("r", 0), None)
            consumer._pulls["r", 0] = later

    devices: list[threading.Thread] = []
    message = SimpleNamespace(request="r", pool=Pool.KV)
    later, ending = cast(Any, object()), cast(Any, SimpleNamespace(gate=Gate(), message=message))
    consumer._pulls["r", 0] = ending
    assert consumer._end(ending)
    devices[0].join(60)
    assert consumer._pulls == {("r", 0): later}
