"""A decode instance, and what comes to it from a prefill instance that is not there."""

from __future__ import annotations

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.fake_device import expected_outputs, read_prompt, request_mark
from tests.runtime.instance.media import media_config
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.request import Continuation, Request, SampleState
from triptych.runtime.core.tasks import Granted, ReserveDecode, StageTimes, StartDecode
from triptych.runtime.instance.messages import Imported, StartPull
from triptych.runtime.instance.plan import Pool


def decode_node(roles: str = "D", **changes) -> Node:
    return Node(media_config("d", roles, **changes))


def reserve(node: Node, req: Request) -> None:
    """The request is granted, and told where its KV will be."""
    before = len(node.reports(Granted))
    node.command(ReserveDecode(req, 9.0))
    assert len(node.reports(Granted)) == before + 1
    node.command(StartDecode(req.id, Handle(InstanceRef("p", 1), "host:p", 1, "d"), req.attempt))


def import_kv(node: Node, req: Request) -> None:
    """The prompt's KV arrives, and the first token of each sample."""
    pulls = [m for m in node.messages if isinstance(m, StartPull) and (m.pool, m.request) == (Pool.KV, req.id)]
    size, pull = node.config.page_size, pulls[-1]
    for index, token in enumerate(read_prompt(req)):
        page = index // size - pull.first_page
        if page >= 0:
            node.device.pages[pull.pages[page]][index % size] = (token + request_mark(req), index)
    states = []
    for sample in range(req.sampling.n):
        outputs, _ = expected_outputs(req, node.config.max_model_len, sample)
        states.append(SampleState(sample, (outputs[0],)))
    node.send(Imported(req.id, Continuation(req, tuple(states)), StageTimes(), req.attempt))


def check_rest(node: Node, req: Request) -> None:
    """Every token but the first came from here."""
    for sample in range(req.sampling.n):
        outputs, _ = expected_outputs(req, node.config.max_model_len, sample)
        assert [token.token for token in node.tokens(req.id, sample)] == outputs[1:]
