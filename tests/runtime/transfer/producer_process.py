"""A producer in a process of its own: `python -m tests.runtime.transfer.producer_process TP`.

Stages every key that it reads from stdin, a line each: `KEY full`, `KEY part` (never completed), or `KEY none` (staged, nothing exported). It prints
one JSON line when it is ready, and one a staged key.
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.runtime.transfer.harness import FINAL, SOURCE, Host, LocalHub, Node, stage_on
from triptych.runtime.core.instance import TransportKind


async def main(tp: int) -> None:
    host = Host(LocalHub(), (TransportKind.DEVICE, TransportKind.GRPC))
    node = Node("P", 1, tp=tp)
    await host.start(node)
    print(json.dumps({"address": host.address, "epoch": node.ref.epoch, "digest": node.header.digest()}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        key, what = line.split()
        stage_on(node.producer, int(key), 0)
        if what == "part":
            node.producer.export(int(key), 0, SOURCE[:2])
        elif what == "full":
            node.producer.export(int(key), 0, SOURCE)
            node.producer.complete(int(key), FINAL)
        print(json.dumps({"staged": int(key)}), flush=True)
    await host.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
