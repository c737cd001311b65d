"""Too little memory costs time, never a token, and never for ever."""

from __future__ import annotations

import pytest

from tests.runtime.instance.cluster import Cluster, Node, config, request
from tests.runtime.instance.fake_device import expected_outputs
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.tasks import Refused, ReserveDecode, StartLocal, StartPrefill, TaskEnded


@pytest.mark.parametrize("pages", [8, 9, 10, 12, 15, 20])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_local_requests_in_a_tiny_pool_give_identical_tokens(pages, prefix_cache):
    cluster = Cluster(config("p"), config("d", num_pages=pages, prefix_cache=prefix_cache))
    for index in range(6):
        cluster.submit(request(f"r{index}", 3 + index, max_tokens=12), split=False)
    cluster.settle()
    for journal in cluster.journals.values():
        cluster.check(journal)
        assert journal.ended[Role.DECODE].status is Status.OK
    cluster.assert_idle()
    if pages <= 10:
        assert sum(journal.ended[Role.DECODE].preemptions for journal in cluster.journals.values()) > 0


@pytest.mark.parametrize("pages", [9, 12, 16])
def test_samples_of_one_request_are_preempted_one_by_one(pages):
    cluster = Cluster(config("p"), config("d", num_pages=pages))
    for name in ("a", "b"):
        cluster.submit(request(name, 5, n=3, max_tokens=9, presence_penalty=1.0), split=False)
    cluster.settle()
    for journal in cluster.journals.values():
        cluster.check(journal)
        assert journal.ended[Role.DECODE].status is Status.OK
        assert journal.decode_started is None and journal.prefill_done is not None
    cluster.assert_idle()


@pytest.mark.parametrize("n", [1, 2])
def test_imported_requests_are_preempted_and_go_on(n):
    cluster = Cluster(config("p"), config("d", num_pages=10))
    for name in ("a", "b"):
        cluster.submit(request(name, 6, n=n, max_tokens=9), split=True)
    cluster.settle()
    for journal in cluster.journals.values():
        cluster.check(journal)
    assert sum(end.preemptions for journal in cluster.journals.values() for end in journal.ended.values()) > 0 or n == 1
    cluster.assert_idle()


def test_the_youngest_goes_first_and_the_oldest_never():
    node = Node(config(num_pages=8, prefix_cache=False))
    requests = [request(name, 4, max_tokens=16) for name in ("old", "mid", "new")]
    for req in requests:
        node.command(StartLocal(req))
    node.run()
    ends = {end.request: end for end in node.reports(TaskEnded)}
    assert ends["old"].preemptions == 0
    assert ends["new"].preemptions > 0
    assert next(end.request for end in node.reports(TaskEnded)) == "old"
    for req in requests:
        assert [token.token for token in node.tokens(req.id)] == expected_outputs(req, 64)[0]


def test_a_preempted_sequence_is_recomputed_from_the_cache_when_its_pages_survived():
    node = Node(config(num_pages=10))
    for name in ("old", "new"):
        node.command(StartLocal(request(name, 12, max_tokens=12)))
    node.run()
    assert sum(end.preemptions for end in node.reports(TaskEnded)) > 0
    computed = sum(row.length for plan in node.device.plans for row in plan.rows)
    assert computed < 2 * 12 + 2 * 11 + 12  # far less than one prompt again


def test_a_lone_sequence_that_outgrows_the_pool_ends_with_a_typed_failure():
    node = Node(config(num_pages=4))
    node.command(StartLocal(request("a", 8, max_tokens=None)))
    node.run()
    (end,) = node.reports(TaskEnded)
    assert end.status is Status.RESOURCE_EXHAUSTED and "KV pages" in end.reason
    assert len(node.tokens("a")) == 5  # 12 KV entries fit: 8 of the prompt and 4 outputs; the fifth needs none
    assert node.core.resources().idle


def test_one_that_fits_only_alone_waits_for_staged_pages_and_then_goes_on():
    node = Node(config(num_pages=9))
    staged = request("staged", 12)
    node.command(StartPrefill(staged, 0, lease=3.0))
    node.run()
    lone = request("lone", 8, max_tokens=20)
    node.command(StartLocal(lone))
    node.run()
    assert not node.reports(TaskEnded)  # not dead, and not spinning: it waits for the three staged pages
    assert node.core.load().waiting == 1
    node.now += 3.0
    node.run()
    assert [(end.request, end.status) for end in node.reports(TaskEnded)] == [
        ("staged", Status.UNAVAILABLE),
        ("lone", Status.OK),
    ]
    assert [token.token for token in node.tokens("lone")] == expected_outputs(lone, 64)[0]


def test_reservations_wait_while_preempted_sequences_do():
    node = Node(config(num_pages=8, prefix_cache=False))
    for name in ("old", "new"):
        node.command(StartLocal(request(name, 8, max_tokens=14)))
    while not node.core.load().waiting or node.core.load().running != 1:
        node.ready()
        node.done()
    node.command(ReserveDecode(request("later", 1), 5.0))
    (refused,) = node.reports(Refused)
    assert not refused.permanent and "preempted" in refused.reason
    node.run()
    assert node.core.resources().idle


def test_nothing_is_drawn_twice_for_known_tokens():
    node = Node(config(num_pages=8, prefix_cache=False))
    requests = [request(name, 4, max_tokens=14) for name in ("old", "new")]
    for req in requests:
        node.command(StartLocal(req))
    node.run()
    for req in requests:
        positions = [token.position for token in node.tokens(req.id)]
        assert positions == list(range(4, 18))


def test_a_sample_that_the_token_in_flight_ends_is_not_preempted():
    node = Node(config(num_pages=6))
    node.command(StartPrefill(request("staged", 12), 0, lease=3.0))
    node.run()
    plain = request("lone", 7, max_tokens=9)
    stop = expected_outputs(plain, 64)[0][1]
    node.command(StartLocal(request("lone", 7, max_tokens=9, stop_token_ids=(stop,))))
    node.run()  # its third page is needed when the second token is in flight
    (end,) = node.reports(TaskEnded)
    assert (end.request, end.status, end.preemptions) == ("lone", Status.OK, 0)


def test_a_preempted_sequence_is_the_first_to_come_back():
    """`queued` would fit at once when `new` gives up its slot; it does not overtake."""
    node = Node(config(num_pages=8, prefix_cache=False, max_num_seqs=2))
    for name in ("old", "new"):
        node.command(StartLocal(request(name, 8, max_tokens=14)))
    node.command(StartLocal(request("queued", 1, max_tokens=2)))
    node.run()
    ends = node.reports(TaskEnded)
    assert ends[0].request == "old"
    assert {end.request: end.preemptions > 0 for end in ends} == {"old": False, "new": True, "queued": False}


def test_results_from_before_a_preemption_commit_nothing():
    """The victim's last row is in flight when it loses its pages, and it is at work again before the result comes."""
    node = Node(config(num_pages=8))
    for name in ("old", "new"):
        node.command(StartLocal(request(name, 7, max_tokens=18)))
    node.run()
    for name in ("old", "new"):
        assert [t.token for t in node.tokens(name)] == expected_outputs(request(name, 7, max_tokens=18), 64)[0]
    assert sum(end.preemptions for end in node.reports(TaskEnded)) > 0
