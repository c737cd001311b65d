"""Which processes a configuration becomes, and which devices each of them sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import parse
from triptych.runtime.instance.plan import Draw, Row, StepPlan
from triptych.runtime.simulation.steptime_table import HostTime, Limits, Measured, ProgramTime, StepTable
from triptych.tools.config import ServeConfig
from triptych.tools.launch import (
    QUIET_GRPC,
    detect_device,
    device_environment,
    gateway_process,
    hand_environment,
    scheduler_process,
    still_serves,
    visible_gpus,
    with_roles,
    worker_processes,
)
from triptych.tools.worker import with_switched, worker_config

FILE = Path("/run/config.json")
NO_FILES = Path("/nowhere")  # a machine whose GPUs cannot be counted


def workers(config: ServeConfig, device: str, environ: dict[str, str] | None = None, dev: Path | None = None):
    return worker_processes(config, FILE, "127.0.0.1:9", device, environ or {}, dev or NO_FILES)


def flag(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_one_process_per_instance_with_its_own_gpus():
    processes = workers(ServeConfig(topology="2P1D", prefill_tp=1, decode_tp=2), "cuda")
    assert [p.name for p in processes] == ["decode-0", "prefill-0", "prefill-1"]
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in processes] == ["0,1", "2", "3"]
    assert [flag(p.argv, "--instances") for p in processes] == ["decode-0", "prefill-0", "prefill-1"]
    assert all(
        flag(p.argv, "--scheduler") == "127.0.0.1:9" and flag(p.argv, "--config") == str(FILE) for p in processes
    )


def test_one_process_for_all_sees_all_devices():
    (only,) = workers(ServeConfig(topology="1P1D", tensor_parallel_size=2, processes="one"), "cuda")
    assert only.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert flag(only.argv, "--instances") == "decode-0,prefill-0"


def test_gpus_are_taken_from_those_that_this_process_may_use():
    processes = workers(ServeConfig(), "cuda", {"CUDA_VISIBLE_DEVICES": "7,GPU-abc,3"})
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in processes] == ["7", "GPU-abc"]
    with pytest.raises(ConfigError, match="needs 2 GPUs .*CUDA_VISIBLE_DEVICES has 1"):
        workers(ServeConfig(), "cuda", {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.parametrize(
    ("listed", "seen"),
    [("0,1", ("0", "1")), (" 2 , MIG-x", ("2", "MIG-x")), ("", ()), ("-1", ()), ("3,-1,4", ("3",))],
)
def test_the_list_of_gpus_is_read_as_cuda_reads_it(listed: str, seen: tuple[str, ...], tmp_path: Path):
    (tmp_path / "nvidia0").touch()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}, tmp_path) == seen


def test_gpus_of_the_machine_are_counted_by_their_device_files(tmp_path: Path):
    assert visible_gpus({}, tmp_path) is None
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ("0", "1")
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in workers(ServeConfig(), "cuda", {}, tmp_path)] == ["0", "1"]
    wide = ServeConfig(topology="1P1D", decode_tp=2)
    with pytest.raises(ConfigError, match="needs 3 GPUs .decode-0 2, prefill-0 1., this machine has 2"):
        workers(wide, "cuda", {}, tmp_path)
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES has 0"):
        workers(ServeConfig(), "cuda", {"CUDA_VISIBLE_DEVICES": ""}, tmp_path)
    assert workers(wide, "cpu", {}, tmp_path), "CPU devices are emulated"


def test_loops_on_the_same_devices_are_one_process_with_all_of_them():
    both = workers(ServeConfig(topology="2(P-D)", tensor_parallel_size=2), "cuda", {"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in both] == ["4,5", "6,7"]
    media = workers(ServeConfig(topology="(E-P)-D"), "cuda")
    assert sorted(p.env["CUDA_VISIBLE_DEVICES"] for p in media) == ["0", "1"]


def test_processes_without_devices_are_told_of_no_gpu():
    environ = {"PATH": "/bin"}
    for spec in (
        scheduler_process(ServeConfig(), FILE, 7, environ),
        gateway_process(ServeConfig(), FILE, "h:7", 8, environ),
    ):
        assert not {"CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"} & spec.env.keys()


def test_cpu_processes_emulate_as_many_devices_as_they_need_and_keep_other_xla_flags():
    environ = {"XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8"}
    processes = workers(ServeConfig(topology="1P1D", decode_tp=4), "cpu", environ)
    assert [p.env["XLA_FLAGS"] for p in processes] == [
        "--xla_a=1 --xla_force_host_platform_device_count=4",
        "--xla_a=1 --xla_force_host_platform_device_count=1",
    ]
    env = device_environment(ServeConfig(emulate_devices=8), "cpu", 0, 1, {})
    assert env["XLA_FLAGS"].endswith("=8") and env["JAX_PLATFORMS"] == "cpu"


def test_a_worker_by_hand_gets_the_devices_and_cache_that_its_flags_name():
    config = ServeConfig(topology="PD", tensor_parallel_size=2, device="cpu", compile_cache_dir="/cache")
    specs = config.plan.instances()
    env = hand_environment(config, specs, {"XLA_FLAGS": "--xla_foo"})
    assert env["JAX_PLATFORMS"] == "cpu" and env["JAX_COMPILATION_CACHE_DIR"] == "/cache"
    assert env["XLA_FLAGS"] == "--xla_foo --xla_force_host_platform_device_count=2"
    chosen = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_COMPILATION_CACHE_DIR": "/mine"}
    assert not chosen.keys() & hand_environment(config, specs, chosen).keys()
    gpu = hand_environment(ServeConfig(topology="PD", device="cuda"), specs, {"CUDA_VISIBLE_DEVICES": "3"})
    assert gpu["JAX_PLATFORMS"] == "cuda" and not {"CUDA_VISIBLE_DEVICES", "XLA_FLAGS"} & gpu.keys()


def test_tpu_chips_belong_to_one_process():
    with pytest.raises(ConfigError, match="--processes one"):
        workers(ServeConfig(), "tpu")
    assert len(workers(ServeConfig(processes="one"), "tpu")) == 1


def test_children_get_secrets_by_environment_and_no_setting_twice():
    environ = {"TRIPTYCH_PORT": "1", "PATH": "/bin"}
    config = ServeConfig(api_key="k")
    for spec in (
        scheduler_process(config, FILE, 7, environ),
        gateway_process(config, FILE, "127.0.0.1:7", 8, environ),
    ):
        assert spec.env == QUIET_GRPC | {"PATH": "/bin", "TRIPTYCH_API_KEY": "k"}
        assert not any("k" == part for part in spec.argv)


def test_ports_are_those_of_whoever_starts_the_processes_so_that_a_restarted_one_is_found():
    config = ServeConfig(port=0)
    assert flag(scheduler_process(config, FILE, 7, {}).argv, "--port") == "7"
    gateway = gateway_process(config, FILE, "127.0.0.1:7", 8, {})
    assert (flag(gateway.argv, "--port"), flag(gateway.argv, "--scheduler")) == ("8", "127.0.0.1:7")


@pytest.mark.parametrize(
    ("topology", "alive", "serves"),
    [
        ("1P1D", ["prefill-0", "decode-0"], True),
        ("1P1D", ["decode-0"], False),
        ("2P1D", ["prefill-1", "decode-0"], True),
        ("2P1D", ["prefill-0", "prefill-1"], False),
        ("2PD", ["pd-1"], True),
        ("2PD", [], False),
    ],
)
def test_a_deployment_serves_while_every_stage_has_an_instance(topology: str, alive: list[str], serves: bool):
    plan = parse(topology)
    assert still_serves(plan, [s for s in plan.instances() if s.id in alive]) is serves


def test_without_accelerator_files_the_device_is_the_cpu(tmp_path: Path):
    assert detect_device(tmp_path) == "cpu"


def test_switchable_instances_are_prepared_for_both_stages():
    specs = parse("1P1D").instances()
    for switchable in (False, True):
        made = worker_config(ServeConfig(switchable=switchable), specs, "w", "h:1", "127.0.0.1", "cpu")
        assert [plan.possible == {Role.PREFILL, Role.DECODE} for plan in made.instances] == [switchable] * 2


def test_a_worker_is_started_again_with_the_roles_that_its_instances_had_and_the_devices_of_old():
    config = ServeConfig(topology="1P1D", prefill_tp=1, decode_tp=2, switchable=True, processes="one")
    (spec,) = workers(config, "cpu")
    assert with_roles(spec, {}) == spec
    again = with_roles(spec, {"decode-0": ["prefill"], "prefill-0": ["decode", "prefill"]})
    assert again.env == spec.env
    plain = worker_config(config, spec.instances, "w", "h:1", "127.0.0.1", "cpu")
    decode, prefill = with_switched(plain, flag(again.argv, "--switched")).instances
    assert (decode.roles, decode.tp) == ({Role.PREFILL}, 2) and (prefill.roles, prefill.tp) == (
        set(Role) - {Role.ENCODE},
        1,
    )
    assert decode.possible == prefill.possible == {Role.PREFILL, Role.DECODE}
    assert with_switched(plain, "") == plain


def step_table(tmp_path: Path, *sizes: tuple[int, int]) -> Path:
    """A table of programs of (decode rows, prefill tokens), 1 ms each and 1 ms of host time, for 64 tokens of context."""
    programs = tuple(ProgramTime(r, t, 4, Measured(1, 1e-3, 0.0), Measured(2, 1e-3, 0.0)) for r, t in sizes)
    file = tmp_path / "table.json"
    file.write_text(StepTable(Limits(16, 4, 64, 32, 4, 20, 100), programs, host=HostTime(1e-3, 0, 0)).as_json())
    return file


def paced(file: Path, topology: str, **changes: Any) -> Callable[[StepPlan], float] | None:
    limits: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 64} | changes
    config = ServeConfig(topology=topology, step_times=str(file), **limits)
    return worker_config(config, config.plan.instances(), "w", "h:1", "127.0.0.1", "cpu").pace


def test_steps_take_the_times_of_a_table_without_the_hosts(tmp_path: Path):
    pace = paced(step_table(tmp_path, (4, 0), (4, 32)), "PD")
    assert pace is not None and pace(StepPlan(1, ())) == 0
    assert pace(StepPlan(2, (Row(1, (), 8, 8, (1,), 0, (Draw(0, 9),)),))) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        (((4, 0),), {}, "no measured program holds"),
        (((4, 32),), {"max_num_seqs": 8}, "no measured program holds"),
        (((4, 32),), {"max_num_batched_tokens": 64}, "no measured program holds"),
        (((4, 32),), {"max_model_len": 128}, "no measured program holds"),
        (((4, 32),), {"page_size": 32}, "pages of 16 tokens, not 32"),
    ],
)
def test_a_table_that_lacks_steps_is_refused(tmp_path: Path, sizes, changes, message: str):
    with pytest.raises(ConfigError, match=message):
        paced(step_table(tmp_path, *sizes), "PD", **changes)
    with pytest.raises(ConfigError, match="cannot be read"):
        paced(tmp_path / "none.json", "PD")


@pytest.mark.parametrize("switched", ["decode-9=prefill", "decode-0=cook", "decode-0", "decode-0=", "decode-0=encode"])
def test_switched_roles_that_an_instance_cannot_have_are_refused(switched: str):
    config = ServeConfig(topology="1P1D", switchable=True, processes="one")
    plain = worker_config(config, config.plan.instances(), "w", "h:1", "127.0.0.1", "cpu")
    with pytest.raises(ConfigError, match="--switched names instance"):
        with_switched(plain, switched)
