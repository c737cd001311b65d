"""Workloads are what they say: rates, bursts, shared prefixes; and the same again for the same seed."""

from __future__ import annotations

import hashlib
import lzma
import random
import statistics
from itertools import islice, pairwise

import pytest

from triptych.runtime.simulation import traces
from triptych.runtime.simulation.workload import (
    Arrival,
    Lengths,
    Shape,
    WorkloadError,
    combine,
    diurnal,
    fitted,
    gamma,
    mmpp,
    poisson,
)
from triptych.runtime.simulation.workload_images import Images, with_images
from triptych.runtime.simulation.workload_named import Workload
from triptych.runtime.simulation.workload_sessions import Conversations, conversations
from triptych.runtime.simulation.workload_tokens import TokenSource


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


def cv(values: list[float]) -> float:
    return statistics.pstdev(values) / statistics.mean(values)


def test_arrival_processes_have_their_rate_and_their_burstiness():
    processes = {
        "poisson": poisson(10, random.Random(1)),
        "gamma": gamma(10, 3, random.Random(1)),
        "mmpp": mmpp(10, 5, 2, 0.5, random.Random(1)),
        "diurnal": diurnal(10, 20, 0.8, random.Random(1)),
    }
    seen = {name: list(islice(process, 20_000)) for name, process in processes.items()}
    for name, times in seen.items():
        assert times == sorted(times)
        assert len(times) / times[-1] == pytest.approx(10, rel=0.1), name
    assert cv(gaps(seen["poisson"])) == pytest.approx(1, abs=0.05)
    assert cv(gaps(seen["gamma"])) == pytest.approx(3, abs=0.3)
    assert cv(gaps(seen["mmpp"])) > 1.2
    halves = [sum(1 for t in seen["diurnal"] if (t % 20 < 10) is first) for first in (True, False)]
    assert halves[0] / halves[1] == pytest.approx((1 + 1.6 / 3.1416) / (1 - 1.6 / 3.1416), rel=0.1)


def test_lengths_have_their_mean_and_spread():
    rng = random.Random(2)
    values = [float(Lengths(500, 1.0).draw(rng)) for _ in range(20_000)]
    assert statistics.mean(values) == pytest.approx(500, rel=0.05)
    assert cv(values) == pytest.approx(1, rel=0.1)
    assert {Lengths(7).draw(rng) for _ in range(5)} == {7}


@pytest.mark.parametrize(
    "bad", [lambda: next(poisson(0, random.Random())), lambda: Lengths(0), lambda: Workload("nowhere")]
)
def test_a_load_that_cannot_be_is_refused(bad):
    with pytest.raises(WorkloadError):
        bad()


def test_images_stand_before_their_share_of_requests():
    texts = combine(poisson(1.0, random.Random(3)), iter([Shape(10, 1)] * 4000))
    shapes = [a.shape for a in with_images(texts, Images(0.25, count=2, tokens=5, patches=7, uses=4.0), 3)]
    pictured = [shape for shape in shapes if shape.images]
    assert len(pictured) == pytest.approx(1000, rel=0.1)
    assert all(len(shape.images) == 2 and shape.prompt_tokens == 20 for shape in pictured)
    names = [image.name for shape in pictured for image in shape.images]
    assert len(names) / len(set(names)) == pytest.approx(4, rel=0.2)


def test_a_session_keeps_its_images_and_its_tokens_go_on_behind_them():
    load = Workload("sessions", prompt=Lengths(20), output=Lengths(5), turns=8, most=200, images=Images(1.0, 1, 6, 7))
    first, second, *_ = [a for a in islice(load.arrivals(1.0), 100) if a.shape.session == 0]
    source = TokenSource(1)
    answered = source.prompt(first) + tuple(source.tokens(first, first.shape.prompt_tokens, 5))
    assert first.shape.images == second.shape.images and source.prompt(second)[: len(answered)] == answered
    other = next(a for a in islice(load.arrivals(1.0), 100) if a.shape.session == 1)
    assert source.prompt(other)[:6] != source.prompt(first)[:6]


def test_images_that_leave_no_room_for_text_are_refused():
    with pytest.raises(WorkloadError, match="600 tokens"):
        Workload("random", most=500, images=Images(0.1, count=2, tokens=300))
    with pytest.raises(WorkloadError, match="share"):
        Images(1.5)


def test_requests_are_cut_to_the_context():
    shapes = [Shape(10, 5), Shape(10, 50), Shape(100, 50), Shape(40, 1, None, (1, 2, 3, 4), 10)]
    cut = list(fitted(iter(shapes), 20))
    assert [(s.prompt_tokens, s.output_tokens) for s in cut] == [(10, 5), (10, 10), (19, 1), (19, 1)]
    assert cut[3].blocks == (1, 2)


# ---- traces


@pytest.mark.parametrize(
    ("name", "rows", "digest"),
    [
        ("azure-conv", 19_366, "2f1e5b666d4e3055"),
        ("azure-code", 8_819, "54e9a6d2a4bd06ba"),
        ("mooncake", 12_031, "b8cbb061a85206d7"),
    ],
)
def test_the_bundled_traces_are_the_published_files(name: str, rows: int, digest: str):
    data = lzma.decompress(traces.BUNDLED[name].read_bytes())
    assert hashlib.sha256(data).hexdigest().startswith(digest)
    assert len(traces.load(name)) == rows


def test_a_trace_is_replayed_at_any_rate_for_ever_without_inventing_reuse():
    trace = traces.Trace("t", (0.0, 1.0, 3.0), (Shape(8, 1, None, (0, 1), 4), Shape(4, 1, None, (0,), 4), Shape(4, 1)))
    sent = list(islice(traces.replay(trace, 2.0), 7))
    assert [a.at for a in sent] == pytest.approx([0, 1 / 3, 1, 1.5, 1.5 + 1 / 3, 2.5, 3.0])
    assert [a.shape.blocks for a in sent] == [(0, 1), (0,), (), (2, 3), (2,), (), (4, 5)]
    assert trace.rate == pytest.approx(2 / 3)


def test_a_bad_trace_says_where(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,x,1\n"
    )
    with pytest.raises(WorkloadError, match="line 3"):
        traces.load(str(file))
    file.write_text("a,b\n")
    with pytest.raises(WorkloadError, match="lacks the columns"):
        traces.load(str(file))
    other = tmp_path / "t.jsonl"
    other.write_text('{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}\n')
    with pytest.raises(WorkloadError, match="line 1"):
        traces.load(str(other))


# ---- sessions and tokens


def test_the_turns_of_a_session_begin_with_all_that_came_before():
    arrivals = list(islice(conversations(5.0, Conversations(think=2.0), random.Random(4)), 2000))
    assert [a.at for a in arrivals] == sorted(a.at for a in arrivals)
    assert len(arrivals) / arrivals[-1].at == pytest.approx(5, rel=0.15)
    source, turns = TokenSource(), dict[int, list[Arrival]]()
    for arrival in arrivals:
        assert arrival.shape.session is not None
        turns.setdefault(arrival.shape.session, []).append(arrival)
    longest = max(turns.values(), key=len)
    assert len(longest) > 3
    for before, after in pairwise(longest):
        prompt = source.prompt(before)
        answer = source.tokens(before, len(prompt), before.shape.output_tokens)
        assert source.prompt(after)[: len(prompt) + len(answer)] == prompt + tuple(answer)


def test_prompts_share_exactly_the_blocks_that_they_name():
    source = TokenSource(1)
    one = source.prompt(Arrival(0, 0.0, Shape(10, 1, None, (7, 8, 9), 4)))
    two = source.prompt(Arrival(1, 0.0, Shape(9, 1, None, (7, 8, 10), 4)))
    assert (len(one), len(two)) == (10, 9)
    assert one[:8] == two[:8] and one[8] != two[8]


def test_prompts_without_a_name_differ_from_the_first_token_on():
    source = TokenSource(1)
    firsts = {source.prompt(Arrival(n, 0.0, Shape(5, 1)))[0] for n in range(1000)}
    assert len(firsts) == 1000


def test_the_same_seed_gives_the_same_load():
    for source in ("random", "sessions", "azure-code"):
        once, again = (list(islice(Workload(source, seed=3).arrivals(2.0), 50)) for _ in range(2))
        assert once == again
    assert list(islice(Workload("random", seed=4).arrivals(2.0), 50)) != list(
        islice(Workload("random", seed=3).arrivals(2.0), 50)
    )
