"""The same request gives the same tokens wherever, however and beside whatever it is computed."""

from __future__ import annotations

import pytest

from tests.runtime.instance.cluster import Cluster, config, request
from tests.runtime.instance.fake_device import score_of
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role


def _run(requests, *, split=True, prefill=None, decode=None) -> Cluster:
    cluster = Cluster(prefill or config("p"), decode or config("d"))
    for req in requests:
        cluster.submit(req, split=split)
    cluster.settle()
    for journal in cluster.journals.values():
        assert {end.status for end in journal.ended.values()} == {Status.OK}, journal
        cluster.check(journal)
    cluster.assert_idle()
    return cluster


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("prompt", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("n", [1, 3])
def test_every_prompt_length_and_topology(split, prompt, n):
    _run([request("a", prompt, n=n, max_tokens=9)], split=split)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("granule", [1, 2, 3])
def test_chunk_and_granule_sizes_do_not_show(chunk, granule):
    sizes = {"chunk_tokens": chunk, "export_pages": granule}
    requests = [request(name, length, max_tokens=5) for name, length in (("a", 23), ("b", 4), ("c", 1), ("d", 12))]
    _run(requests, prefill=config("p", **sizes), decode=config("d", **sizes))
    _run(requests, split=False, decode=config("d", **sizes))


@pytest.mark.parametrize("split", [False, True])
def test_a_warm_cache_does_not_show_except_in_the_report(split):
    cluster = Cluster(config("p"), config("d"))
    cached = []
    for name in ("one", "two"):
        req = request(name, tuple(range(1, 18)), seed=5, max_tokens=7)
        cluster.submit(req, split=split)
        cluster.settle()
        cluster.check(cluster.journals[name])
        report = cluster.journals[name].prompt_report
        assert report is not None
        cached.append(report.cached_tokens)
    assert cluster.journals["one"].outputs() == cluster.journals["two"].outputs()
    assert cached == [0, 16]
    cluster.assert_idle()


def test_a_warm_decode_node_pulls_only_what_it_lacks():
    cluster = Cluster(config("p"), config("d"))
    for name in ("one", "two"):
        cluster.submit(request(name, tuple(range(1, 19))), split=True)
        cluster.settle()
        cluster.check(cluster.journals[name])
    first, second = (cluster.journals[name].decode_started for name in ("one", "two"))
    assert first is not None and second is not None
    assert (first.times.pages_pulled, first.times.pages_skipped) == (5, 0)
    assert (second.times.pages_pulled, second.times.pages_skipped) == (1, 4)


def test_a_second_turn_finds_the_first_turns_outputs_in_the_cache():
    cluster = Cluster(config("p"), config("d"))
    first = cluster.submit(request("one", 8, max_tokens=9), split=False)
    cluster.settle()
    history = (*first.request.prompt, *first.outputs(), 3, 4)
    second = cluster.submit(request("two", history), split=False)
    cluster.settle()
    cluster.check(second)
    assert (
        second.prompt_report is not None and second.prompt_report.cached_tokens == 16
    )  # 8 + 9 tokens, the last one's KV not computed


def test_other_salts_share_nothing():
    cluster = Cluster(config("p"), config("d"))
    for name, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        cluster.submit(request(name, tuple(range(1, 18)), salt=salt), split=False)
        cluster.settle()
    reports = [cluster.journals[name].prompt_report for name in "abc"]
    assert [report.cached_tokens for report in reports if report is not None] == [0, 0, 16]


@pytest.mark.parametrize("split", [False, True])
def test_eos_stop_ids_stop_strings_and_min_tokens(split):
    requests = [
        request(
            f"r{i}", 3 + i, ignore_eos=i % 3 == 0, max_tokens=40, min_tokens=i % 5, stop_token_ids=(i, i + 20, i + 40)
        )
        for i in range(12)
    ] + [
        request(f"s{i}", 3 + i, max_tokens=40, min_tokens=4 * (i % 2), stop=tuple(f"<{t}>" for t in range(i, 97, 5)))
        for i in range(6)
    ]
    wide = {"max_waiting": 32, "num_pages": 512, "max_num_seqs": 32}
    _run(requests, split=split, prefill=config("p", **wide), decode=config("d", **wide))


@pytest.mark.parametrize("split", [False, True])
def test_penalties_count_across_the_hand_over(split):
    _run([request("a", 7, presence_penalty=0.5, n=2, max_tokens=9)], split=split)


@pytest.mark.parametrize("split", [False, True])
def test_the_context_limit_ends_with_length(split):
    cluster = _run([request("a", 60, max_tokens=None), request("b", 63, max_tokens=None)], split=split)
    assert len(cluster.journals["a"].outputs()) == 4
    assert len(cluster.journals["b"].outputs()) == 1


def test_samples_that_end_with_the_first_token_are_not_decoded():
    cluster = _run([request("a", 5, max_tokens=1, n=2)], split=True)
    journal = cluster.journals["a"]
    assert journal.prefill_done is not None and journal.prefill_done.finished
    assert journal.decode_started is None
    assert journal.ended.keys() == {Role.PREFILL, Role.DECODE}


def test_one_of_several_samples_may_end_with_its_first_token():
    """Each sample draws something else first: make one of these draws a stop id."""
    probe = _run([request("a", 6, n=3, max_tokens=2)], split=True)
    stop = probe.journals["a"].outputs(1)[0]
    for split in (False, True):
        cluster = _run([request("a", 6, n=3, max_tokens=8, stop_token_ids=(stop,))], split=split)
        assert len(cluster.journals["a"].outputs(1)) == 1
        assert len(cluster.journals["a"].outputs(0)) > 1


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("prompt", [1, 4, 17, 21])
def test_prompt_logprobs_are_computed_for_every_position_even_with_a_warm_cache(split, prompt):
    cluster = Cluster(config("p"), config("d"))
    tokens = tuple(range(2, 2 + prompt))
    for name in ("one", "two"):
        cluster.submit(request(name, tokens, prompt_logprobs=2), split=split)
        cluster.settle()
        journal = cluster.journals[name]
        cluster.check(journal)
        assert journal.prompt_report is not None
        expected = [(tokens[0], None)] + [(tokens[i], score_of(list(tokens[:i]), tokens[i])) for i in range(1, prompt)]
        assert list(journal.prompt_report.prompt_logprobs) == expected
        assert journal.prompt_report.cached_tokens == 0
    cluster.assert_idle()


def test_logprobs_only_for_those_who_ask():
    cluster = _run([request("a", 5, logprobs=0), request("b", 5)], split=True)
    assert all(token.logprobs is not None for token in cluster.journals["a"].tokens[0])
    assert all(token.logprobs is None for token in cluster.journals["b"].tokens[0])
