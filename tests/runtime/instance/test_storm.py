"""Whatever happens, in whatever order: owners are unique after every event, every task ends once, and at the end everything is free."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.runtime.instance.cluster import Cluster, config, request
from triptych.runtime.core.instance import InstanceRef, Role

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
    """Events of two instances and a wire in any order. `audit()` runs after each (Node.send)."""

    @initialize(
        pages=st.sampled_from([9, 12, 20, 40]),
        chunk=st.sampled_from([1, 3, 8, 64]),
        granule=st.integers(1, 3),
        caching=st.booleans(),
        slots=st.integers(3, 6),
    )
    def build(self, pages, chunk, granule, caching, slots):
        sizes = {"num_pages": pages, "chunk_tokens": chunk, "export_pages": granule, "prefix_cache": caching, "max_num_seqs": slots}
        self.cluster = Cluster(config("p", **sizes, max_prefill_rows=2), config("d", **sizes, max_model_len=40))
        self.count = 0

    @rule(prompt=PROMPTS, params=PARAMS, split=st.booleans(), deadline=st.one_of(st.none(), st.integers(1, 4)))
    def submit(self, prompt, params, split, deadline):
        self.count += 1
        if params["max_tokens"] is not None:
            params = params | {"min_tokens": min(params.get("min_tokens", 0), params["max_tokens"])}
        due = None if deadline is None else self.cluster.decode.now + deadline
        self.cluster.submit(request(f"r{self.count}", prompt, deadline=due, **params), split=split)

    @rule(node=st.integers(0, 1))
    def ready(self, node):
        self.cluster.ready(self.cluster.nodes[node])

    @rule(node=st.integers(0, 1))
    def done(self, node):
        self.cluster.done(self.cluster.nodes[node])

    @rule(node=st.integers(0, 1), times=st.integers(1, 6))
    def step(self, node, times):
        for _ in range(times):
            self.cluster.ready(self.cluster.nodes[node])
            self.cluster.done(self.cluster.nodes[node])

    @rule(index=st.integers(0, 5), times=st.integers(1, 4))
    def move(self, index, times):
        for _ in range(times):
            self.cluster.move(index)

    @precondition(lambda self: self.count)
    @rule(pick=st.integers(0, 30))
    def abort(self, pick):
        self.cluster.abort(f"r{pick % self.count + 1}")

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def time_passes(self, seconds):
        self.cluster.advance(seconds)

    @precondition(lambda self: self.count)
    @rule(node=st.integers(0, 1))
    def device_fails(self, node):
        """The pool is lost with everything in it; results under way never come."""
        failed = self.cluster.nodes[node]
        failed.results.clear()
        for page in failed.device.pages:
            page[:] = [None] * len(page)
        failed.device.slots.clear()
        for message in failed.core.reset(InstanceRef(failed.config.ref.id, failed.core.ref.epoch + 1)):
            self.cluster.route(failed, message)
        failed.core.audit()

    @invariant()
    def tokens_are_right_so_far(self):
        for journal in getattr(self, "cluster", Cluster(config("p"), config("d"))).journals.values():
            for sample, tokens in journal.tokens.items():
                assert [token.position for token in tokens] == [len(journal.request.prompt) + i for i in range(len(tokens))], sample
                assert not any(token.finish for token in tokens[:-1])

    def teardown(self):
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        cluster.settle()
        for _ in range(12):  # leases, grants and deadlines run out; what waited for their pages goes on
            cluster.advance(1.0)
            cluster.settle()
        for journal in cluster.journals.values():
            assert journal.begun == journal.ended.keys(), journal
            assert journal.begun or journal.refused
            cluster.check(journal)
            if journal.prefill_done is not None and not journal.split:
                assert journal.begun == {Role.DECODE}
        cluster.assert_idle()


Storm.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestStorm = Storm.TestCase
