"""Studies with images: what they report can be computed by hand, and is the same however it is simulated."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.topology import parse
from triptych.runtime.simulation.metrics import COLUMNS
from triptych.runtime.simulation.steptime import Affine
from triptych.runtime.simulation.steptime_encode import PerPatch
from triptych.runtime.simulation.study import Study, make_cluster, run_rate
from triptych.runtime.simulation.study_cluster import StudyCluster
from triptych.runtime.simulation.study_fleet import Delays
from triptych.runtime.simulation.study_layout import Device, Limits, MediaDevice, layout
from triptych.runtime.simulation.workload import Lengths
from triptych.runtime.simulation.workload_images import Images
from triptych.runtime.simulation.workload_named import Workload

STEP, TOKEN, ENCODE, PATCH = 0.01, 1e-4, 0.005, 1e-4
DELAYS = Delays(admit=0.001, command=0.002, report=0.003, token=0.004, pull=0.005, pixels=0.006)
LIMITS = Limits(16, 8, 1024, 256, 4, 500)
IMAGES = Images(1.0, tokens=64, patches=100)


def study(topology: str, images: Images = IMAGES, limits: Limits = LIMITS, **changes) -> Study:
    encoder, times = changes.pop("encoder", PerPatch(ENCODE, PATCH)), changes.pop("times", Affine(STEP, 0, 0, TOKEN))
    media = MediaDevice(encoder, changes.pop("media_pages", 100), changes.pop("patches", 250), embedding_bytes=500)
    device = Device(times, limits, limits.num_pages or 0, 1e6, 1000, media=media)
    fields = {
        "kinds": layout(parse(topology), device, device),
        "workload": Workload("random", prompt=Lengths(36), output=Lengths(3), most=1024, images=images),
        "rates": (0.5,),
        "requests": 10,
        "delays": DELAYS,
        "warmup": 0.0,
    }
    return Study(**(fields | changes))


def test_an_unloaded_request_with_an_image_takes_the_sum_of_its_parts():
    """1E1P1D: prefill wants the image, an encode instance is asked, the gateway is told and brings pixels, one encode of 100
    patches, four pages of 8 kB at 1 MB/s, and a prompt of 100 tokens."""
    result = run_rate(study("1E1P1D"), 0.5)
    asked = DELAYS.report + DELAYS.command  # MediaWanted, StartEncode
    brought = DELAYS.report + DELAYS.pixels  # EncodeStaged, pixels
    encode = ENCODE + 100 * PATCH
    moved = DELAYS.pull + 4 * 16 * 500 / 1e6
    gather = asked + brought + encode + moved
    assert result.latencies["gather"].p50 == pytest.approx(gather)
    assert result.latencies["encode"].p50 == pytest.approx(encode)
    assert result.latencies["encode_wait"].p50 == pytest.approx(brought)
    assert result.latencies["feed"].p50 == pytest.approx(moved)
    ttft = DELAYS.admit + 2 * DELAYS.command + DELAYS.report + gather + STEP + 100 * TOKEN + DELAYS.token
    assert result.latencies["ttft"].p50 == pytest.approx(ttft)
    assert result.latencies["share"].p50 == pytest.approx(gather / ttft)
    assert result.latencies["wait"].max == pytest.approx(0, abs=1e-9) and not result.failures


def test_where_the_prompt_is_computed_by_the_instance_that_encodes_nothing_moves():
    result = run_rate(study("EP-D"), 0.5)
    encode = ENCODE + 100 * PATCH
    assert result.latencies["feed"].max == 0
    ready = 2 * DELAYS.report + DELAYS.command + DELAYS.pixels + encode
    assert result.latencies["share"].p50 * result.latencies["ttft"].p50 == pytest.approx(ready)


def test_one_requests_images_fan_out_over_the_encode_instances():
    images = Images(1.0, count=8, tokens=16, patches=250)
    encode = [run_rate(study(f"{n}E1P1D", images), 0.2).latencies["encode"].p50 for n in (1, 2, 4)]
    one = ENCODE + 250 * PATCH  # one image a step: the largest program holds no more
    assert encode == pytest.approx([8 * one, 4 * one, 2 * one], rel=0.05)


def test_an_image_that_comes_again_is_not_encoded_again():
    def encodes(images: Images) -> int:
        one = study("1E1P1D", images)
        cluster = make_cluster(one)
        assert isinstance(cluster, StudyCluster)
        cluster.run(islice(one.workload.arrivals(2.0), 60))
        (encoder,) = cluster.kinds["encode"]
        return encoder.core.media_counts.encoded

    often, never = encodes(replace(IMAGES, uses=10.0)), encodes(IMAGES)
    assert never == 60 and often < 20


def test_a_full_media_pool_of_prefill_stops_the_encoder_and_loses_nothing():
    """Prefill has room for the embeddings of one request, the encoder for two: it waits, and all are served."""
    images, room = Images(1.0, count=2, tokens=64, patches=100), 1 + 8
    one = study("1E1P1D", images, requests=20, media_pages=room)
    result = run_rate(one, 50.0)
    assert not result.failures and result.latencies["encode_wait"].max > 0.1


def test_images_need_an_instance_that_encodes():
    with pytest.raises(ConfigError, match="no instance encodes"):
        study("1P1D")
    text = Device(Affine(), LIMITS, 100, 1e9, 1000)
    with pytest.raises(ConfigError, match="encoder"):
        layout(parse("1E1P1D"), text, text)


def test_text_is_as_it_was_beside_encode_instances():
    text = Workload("random", prompt=Lengths(36), output=Lengths(3), most=1024)
    with_encoder, without = (run_rate(study(t, workload=text), 0.5) for t in ("1E1P1D", "1P1D"))
    assert with_encoder.latencies == without.latencies and "gather" not in without.latencies


def outcome(one: Study, rate: float, count: int) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    cluster = make_cluster(one)
    done = cluster.run(islice(one.workload.arrivals(rate), count), sample=0.05)
    columns = {name: done.requests.column(name) for name in COLUMNS}
    order = np.lexsort((columns["e2e"], columns["at"]))
    if isinstance(cluster, StudyCluster):
        for instances in cluster.kinds.values():
            for instance in instances:
                instance.core.audit()
    return {name: np.nan_to_num(column[order], nan=-1.0).tolist() for name, column in columns.items()}, done.steps


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    topology=st.sampled_from(["1E1P1D", "2E1PD", "(E-P)-D", "EP-D", "E-PD", "EPD", "(E-P-D)", "2EPD"]),
    pages=st.integers(80, 200),
    media_pages=st.integers(10, 40),
    count=st.integers(1, 3),
    uses=st.sampled_from([1.0, 4.0]),
    rate=st.sampled_from([2.0, 10.0, 30.0]),
    source=st.sampled_from(["random", "sessions"]),
    seed=st.integers(0, 1000),
)
def test_leaps_change_nothing(topology, pages, media_pages, count, uses, rate, source, seed):
    images = Images(0.6, count, 12, 40, uses)
    load = Workload(
        source, prompt=Lengths(20, 1.0, 60), output=Lengths(30, 1.0, 60), turns=3, think=0.5, most=130, images=images,
        seed=seed,
    )  # fmt: skip
    limits = Limits(4, 6, 130, 32, 2, pages)
    odd = {
        "times": Affine(4.03e-3, 2.1e-4, 1e-6, 5e-5),
        "encoder": PerPatch(1.37e-3, 1.03e-5),
    }  # no two things at one time
    one = study(topology, images, limits, workload=load, media_pages=media_pages, patches=90, delays=Delays(), **odd)
    assert outcome(one, rate, 20) == outcome(replace(one, leaps=False), rate, 20)


def test_two_processes_give_what_one_gives():
    images = Images(0.7, 2, 32, 60, 3.0)
    one = study("2E1P1D1EPD", images, media_pages=20)
    single, split = (outcome(replace(one, jobs=jobs), 40.0, 50) for jobs in (1, 2))
    assert split == single and max(single[0]["gather"]) > 0
