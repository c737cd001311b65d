"""Instances that guess tokens, and what must hold of a cluster whose decode node is one."""

from __future__ import annotations

from tests.runtime.instance.cluster import Cluster, config
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.speculation import Speculation

LOOKED_UP = Speculation(4)
BY_MODEL = Speculation(4, model="dummy:toy-draft")


def guessing(speculation: Speculation, **changes) -> InstanceConfig:
    return config("d", speculation=speculation, **changes)


def settle_well(cluster: Cluster) -> None:
    """Until nothing moves: then every request has ended well, nothing is held, and tokens were guessed if decode is to guess."""
    cluster.settle()
    for journal in cluster.journals.values():
        cluster.check(journal)
        assert journal.ended[Role.DECODE].status is Status.OK
    cluster.assert_idle()
    assert (cluster.decode.core.speculated.drafted > 0) is (cluster.decode.config.speculation is not None)
