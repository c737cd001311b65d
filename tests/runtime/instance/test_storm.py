"""Whatever happens, in whatever order: owners are unique after every event, every task ends once, and at the end
everything is free.

Twice: a state machine that hypothesis shrinks to a few steps when it fails, and longer storms from a seed, which are
cheaper a step and weighted towards trouble (little memory, aborts of what is at work).
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.runtime.instance.cluster import Cluster, config, request
from tests.runtime.instance.drafters import half_right
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.instance.composer import COMPOSERS, DEFAULT_COMPOSER
from triptych.runtime.instance.speculation import Speculation


class Bench:
    """What can happen to two instances and the wire between them. `audit()` runs after every event (Node.send)."""

    def __init__(
        self,
        pages: int,
        chunk: int,
        granule: int,
        caching: bool,
        slots: int,
        decode_pages: int | None = None,
        speculation: Speculation | None = None,
        composer: str = DEFAULT_COMPOSER,
    ):
        sizes = {"chunk_tokens": chunk, "export_pages": granule, "prefix_cache": caching, "max_num_seqs": slots}
        sizes["speculation"] = speculation
        prefill = config("p", **sizes, num_pages=pages, max_prefill_rows=2)
        decode = config("d", **sizes, num_pages=decode_pages or pages, max_model_len=40)
        self.cluster = Cluster(prefill, decode, drafter=half_right, composer=COMPOSERS[composer])
        for node in self.cluster.nodes:
            node.device.draft.wrong = lambda position: position % 3 == 0
        self.count = 0

    def submit(self, prompt: tuple[int, ...], params: dict, split: bool, deadline: float | None) -> None:
        self.count += 1
        if params["max_tokens"] is not None:
            params = params | {"min_tokens": min(params.get("min_tokens", 0), params["max_tokens"])}
        due = None if deadline is None else self.cluster.decode.now + deadline
        self.cluster.submit(request(f"r{self.count}", prompt, deadline=due, **params), split=split)

    def step(self, node: int, times: int) -> None:
        """One step ahead."""
        for _ in range(times):
            self.cluster.ready(self.cluster.nodes[node])
            if len(self.cluster.nodes[node].results) == 2 or times == 1:
                self.cluster.done(self.cluster.nodes[node])

    def abort(self, back: int) -> None:
        """The request submitted `back` before the last."""
        if back < self.count:
            self.cluster.abort(f"r{self.count - back}")

    def begin_again(self, back: int, split: bool, cut_off: bool) -> None:
        """The scheduler gives the request's attempt up and starts the next; an instance that is cut off does not hear of
        the former."""
        journal = self.cluster.journals.get(f"r{self.count - back}")
        if journal is None or journal.aborted or any(refused.permanent for refused in journal.refused):
            return
        if not cut_off:
            self.cluster.interrupt(journal)
        self.cluster.resume(journal, split=split)

    def lose_device(self, node: int) -> None:
        """The pool is lost with everything in it; results under way never come."""
        failed = self.cluster.nodes[node]
        failed.results.clear()
        for page in failed.device.pages:
            page[:] = [None] * len(page)
        failed.device.slots.clear()
        for message in failed.core.reset(InstanceRef(failed.config.ref.id, failed.core.ref.epoch + 1)):
            self.cluster.route(failed, message)
        failed.core.audit()

    def finish(self) -> None:
        """Everything comes to an end, and then nothing is held."""
        cluster = self.cluster
        cluster.settle()
        for _ in range(12):  # leases, grants and deadlines run out; what waited for their pages goes on
            cluster.advance(1.0)
            cluster.settle()
        for journal in cluster.journals.values():
            assert journal.begun == journal.ended.keys(), journal
            assert journal.begun or journal.refused
            assert journal.split or journal.prefill_done is None or journal.begun == {Role.DECODE}
            cluster.check(journal)
            for tokens in journal.tokens.values():
                assert not any(token.finish for token in tokens[:-1])
        cluster.assert_idle()


PROMPTS = st.one_of(
    st.integers(1, 24).map(lambda length: tuple(range(1, length + 1))),  # prefixes of each other: cache hits
    st.lists(st.integers(1, 5), min_size=1, max_size=24).map(tuple),
)
PARAMS = st.fixed_dictionaries(
    {"max_tokens": st.one_of(st.none(), st.integers(1, 20)), "n": st.integers(1, 3), "seed": st.integers(0, 3)},
    optional={
        "min_tokens": st.just(1),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.just((3, 5, 7, 40, 41, 42)),
        "stop": st.just(("<11>", "<12>", "<13>", "<50>")),
        "presence_penalty": st.just(1.0),
        "prompt_logprobs": st.just(1),
    },
)


class Storm(RuleBasedStateMachine):
    @initialize(
        pages=st.sampled_from([9, 12, 20, 40]),
        chunk=st.sampled_from([1, 3, 8, 64]),
        granule=st.integers(1, 3),
        caching=st.booleans(),
        slots=st.integers(3, 6),
        speculation=st.sampled_from([None, Speculation(3), Speculation(3, model="a draft model")]),
        composer=st.sampled_from(sorted(COMPOSERS)),
    )
    def build(self, pages, chunk, granule, caching, slots, speculation, composer):
        self.bench = Bench(pages, chunk, granule, caching, slots, speculation=speculation, composer=composer)

    @rule(prompt=PROMPTS, params=PARAMS, split=st.booleans(), deadline=st.one_of(st.none(), st.integers(1, 4)))
    def submit(self, prompt, params, split, deadline):
        self.bench.submit(prompt, params, split, deadline)

    @rule(node=st.integers(0, 1))
    def ready(self, node):
        self.bench.cluster.ready(self.bench.cluster.nodes[node])

    @rule(node=st.integers(0, 1))
    def done(self, node):
        self.bench.cluster.done(self.bench.cluster.nodes[node])

    @rule(node=st.integers(0, 1), times=st.integers(1, 6))
    def step(self, node, times):
        self.bench.step(node, times)

    @rule(index=st.integers(0, 5), times=st.integers(1, 4))
    def move(self, index, times):
        for _ in range(times):
            self.bench.cluster.move(index)

    @rule(back=st.integers(0, 3))
    def abort(self, back):
        self.bench.abort(back)

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def time_passes(self, seconds):
        self.bench.cluster.advance(seconds)

    @precondition(lambda self: self.bench.count % 8 == 7)  # rarely, or nothing would live long enough
    @rule(node=st.integers(0, 1))
    def device_is_lost(self, node):
        self.bench.lose_device(node)

    @rule(back=st.integers(0, 3), split=st.booleans(), cut_off=st.booleans())
    def begin_again(self, back, split, cut_off):
        self.bench.begin_again(back, split, cut_off)

    @rule(back=st.integers(0, 12))
    def a_command_comes_again(self, back):
        self.bench.cluster.repeat(back)

    def teardown(self):
        if hasattr(self, "bench"):
            self.bench.finish()


Storm.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=True,
)
TestStorm = Storm.TestCase


@pytest.mark.parametrize("seed", range(40))
def test_a_long_storm(seed):
    _storm(seed, None)


@pytest.mark.parametrize("model", [None, "a draft model"])
@pytest.mark.parametrize("seed", range(40, 50))
def test_a_long_storm_with_guesses(seed, model):
    bench = _storm(seed, Speculation(seed % 5 + 1, model=model))
    counts = [node.core.speculated for node in bench.cluster.nodes]
    if (
        model is None or bench.cluster.decode.config.chunk_tokens > 1
    ):  # one token a step never catches up with a sample that draws one
        assert any(0 < count.accepted < count.drafted for count in counts)


def _storm(seed: int, speculation: Speculation | None) -> Bench:
    rng = random.Random(seed)
    bench = Bench(
        pages=rng.choice([12, 20, 40]),
        chunk=rng.choice([1, 3, 8, 64]),
        granule=rng.randint(1, 3),
        caching=rng.random() < 0.7,
        composer=rng.choice(sorted(COMPOSERS)),
        slots=rng.randint(3, 8),
        decode_pages=rng.choice([10, 12, 16, 40]),
        speculation=speculation,
    )
    for _ in range(400):
        happening = rng.random()
        if happening < 0.12:
            bench.submit(_prompt(rng), _params(rng), rng.random() < 0.5, rng.choice([None, None, None, 2.0]))
        elif happening < 0.16:
            bench.abort(rng.randint(0, 4))
        elif happening < 0.162:
            bench.lose_device(rng.randint(0, 1))
        elif happening < 0.18:
            bench.begin_again(rng.randint(0, 4), rng.random() < 0.5, rng.random() < 0.3)
        elif happening < 0.185:
            bench.cluster.repeat(rng.randint(0, 12))
        elif happening < 0.21:
            bench.cluster.advance(rng.choice([0.05, 0.3, 1.0]))
        elif happening < 0.45:
            bench.cluster.move(rng.randint(0, 5))
        elif happening < 0.6:
            bench.cluster.ready(bench.cluster.nodes[rng.randint(0, 1)])
        elif happening < 0.75:
            bench.cluster.done(bench.cluster.nodes[rng.randint(0, 1)])
        else:
            bench.step(rng.randint(0, 1), rng.randint(1, 6))
    bench.finish()
    return bench


def _prompt(rng: random.Random) -> tuple[int, ...]:
    length = rng.randint(1, 24)
    return tuple(range(1, length + 1)) if rng.random() < 0.5 else tuple(rng.randint(1, 5) for _ in range(length))


def _params(rng: random.Random) -> dict:
    params: dict = {
        "max_tokens": rng.choice([None, 1, 2, 5, 20]),
        "n": rng.choice([1, 1, 2, 3]),
        "seed": rng.randint(0, 3),
    }
    extras = {
        "min_tokens": 1,
        "ignore_eos": False,
        "stop_token_ids": tuple(range(3, 30)),
        "stop": tuple(f"<{token}>" for token in range(40, 60)),
        "presence_penalty": 1.0,
        "prompt_logprobs": 1,
    }
    return params | {name: value for name, value in extras.items() if rng.random() < 0.25}
