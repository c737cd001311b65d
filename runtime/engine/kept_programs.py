"""Compiled programs on disk, found by what they are made from: a start that finds them neither traces nor lowers anything.

The compiler's own persistent cache (jax's) is asked with a lowered program, and lowering an 8B model's sixty programs takes longer than all else that a start
does. So beside it whole executables are kept, under a digest of everything that could make them different: the sources of this package and the versions of
what compiles, the devices and the environment that the compiler reads, what the instance is built of (`made_from`), and the program's name, arguments,
outputs, donations and options. Something too much in the digest costs a hit; something too little would run another program, so whole values go in.

Only what was compiled here is written. What the persistent cache answered is not: XLA:CPU cannot write such an executable a second time. But each executable has
a second name, a digest of the lowered program instead of what it was made from; if an earlier one is there under that name, it is linked to the first one.

Files are pickles: whoever can write to the folder can run code here. So it is made for this user alone, and one that others own or may write to is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import pickle
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental.serialize_executable import deserialize_and_load, serialize

import triptych
from triptych.sharding.devices import Device

if TYPE_CHECKING:
    from triptych.runtime.engine.compiling import Program

log = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "kept"  # in that of the persistent cache
SOURCES = ("models", "runtime", "sharding")  # of this package: what programs are made by
COMPILERS = re.compile(r"jax|flax|numpy$|nvidia-|libtpu")  # installed packages that make, or are called by, executables
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
DIGEST = hashlib.sha256().digest_size  # bytes at the beginning of a file: of all that follow
FORGOTTEN_AFTER = 30 * 24 * 3600.0  # seconds in which nobody took a file

Loaded = Callable[..., Any]
Environment = tuple[tuple[str, str], ...]


class KeptPrograms:
    """The executables of one instance's programs in a folder, which is made when the first one is kept.

    Args:
        folder: of all instances of this machine.
        made_from: everything that programs are made from and that `Program` does not show, such as the model's configuration; see `described`.
        devices: that the programs run on, in the order of the mesh.
        environment: what compilers read of this process's.

    Attributes:
        made_from: all that, and this package, the compilers and the machine, as text.
    """

    def __init__(self, folder: Path, made_from: object, devices: Sequence[Device], environment: Environment) -> None:
        self._folder = folder
        self._taken: set[bytes] = set()
        self._devices = tuple(devices)
        machine: list[object] = [
            (d.platform, d.device_kind, d.client.platform_version, d.id, getattr(d, "coords", None))
            for d in self._devices
        ]
        machine.append(len(jax.devices()))
        compilers, sources = MADE_BY
        self._runs_on = described(
            (FORMAT, compilers, environment, _settings(), machine, _host(self._devices[0].platform))
        )
        self.made_from = f"{self._runs_on}\n{sources}\n{described(made_from)}"

    def load(self, program: Program) -> Loaded | None:
        """The program's executable, ready to run; None if there is none that can be read."""
        try:
            file = self._file(program)
            payload = _payload(file)
        except ValueError:
            return None  # `keep` says why
        if payload is None:
            return None
        try:
            loaded = deserialize_and_load(*pickle.loads(payload), execution_devices=list(self._devices))
        except Exception as error:  # noqa: BLE001 - whatever an executable of another day raises: it is made again
            log.warning("%s cannot be loaded (%s); %s is compiled again", file, error, program.name)
            return None
        with contextlib.suppress(OSError):
            os.utime(file)
        self._taken.add(hashlib.sha256(payload).digest())
        return loaded

    def keep(
        self, program: Program, lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, compiled_here: bool
    ) -> None:
        """Write what was compiled here, or find what an earlier start compiled of the same lowered program.

        A folder that cannot be written to, or a program that cannot be kept, is said in the log and nothing else.
        """
        try:
            named, by_text = self._file(program), self._named(program, f"{self._runs_on}\n{lowered.as_text()}")
            if compiled_here:
                payload = pickle.dumps(serialize(compiled))
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with _put(by_text) as unfinished:
                    unfinished.write_bytes(hashlib.sha256(payload).digest() + payload)
            if compiled_here or _payload(by_text) is not None:
                with _put(named) as unfinished:
                    _link(by_text, unfinished)
        except Exception as error:  # noqa: BLE001 - whatever cannot be pickled raises: the program runs all the same
            log.warning("%s is not kept for the next start: %s", program.name, error)

    def distrust(self) -> None:
        """Delete what was loaded, under both names: something in it failed, and the next start is to compile it."""
        for file in self._folder.glob("*"):
            with contextlib.suppress(OSError):  # another process was quicker
                if _head(file) in self._taken:
                    file.unlink()

    def forget_old(self) -> None:
        """Delete files that nobody took for `FORGOTTEN_AFTER` seconds: those of other versions, or of models that are gone."""
        before = time.time() - FORGOTTEN_AFTER
        for file in self._folder.glob("*") if self._folder.is_dir() else ():
            with contextlib.suppress(OSError):  # another process was quicker
                if file.stat().st_mtime < before:
                    file.unlink()

    def _file(self, program: Program) -> Path:
        return self._named(program, self.made_from)

    def _named(self, program: Program, by: str) -> Path:
        structs = [_struct(leaf) for leaf in jax.tree.leaves(program.arguments)]
        shape = str(jax.tree.structure(program.arguments))
        outputs = [_sharding(leaf) for leaf in jax.tree.leaves(program.outputs)]
        own = described((program.key, shape, structs, outputs, program.donated, program.options))
        return self._folder / hashlib.sha256(f"{by}\n{own}".encode()).hexdigest()


def _head(file: Path) -> bytes:
    """The digest that a file begins with."""
    with file.open("rb") as stream:
        return stream.read(DIGEST)


def _payload(file: Path) -> bytes | None:
    """What a file holds behind its digest; None if it is not there, or is damaged, and then it is deleted."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST]:
        return data[DIGEST:]
    log.warning("%s is damaged; what it held is compiled again", file)
    with contextlib.suppress(OSError):  # it may be somebody else's
        file.unlink()
    return None


@contextlib.contextmanager
def _put(file: Path) -> Iterator[Path]:
    """What to write instead of the file, which is then there as a whole or not at all: others may start at the same time, and this process may die."""
    unfinished = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)  # after a failure, and where both were names of one file already


def _link(file: Path, to: Path) -> None:
    try:
        to.hardlink_to(file)
    except OSError:  # not every file system has them
        shutil.copyfile(file, to)


def kept_beside_the_cache(
    made_from: object, devices: Sequence[Device], environment: Environment
) -> KeptPrograms | None:
    """In a folder of jax's persistent cache; None where there is none, or none on a file system, for what has no description (which the log
    says), and for devices of several hosts, whose executables are of all of them."""
    folder: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
    if folder is None or "://" in folder or jax.process_count() > 1:
        return None
    kept = Path(os.path.expanduser(folder)) / FOLDER
    if kept.exists() and not _own(kept):
        log.warning("programs are not kept: others own %s or may write to it, and could run code here", kept)
        return None
    try:
        return KeptPrograms(kept, made_from, devices, environment)
    except ValueError as error:
        log.warning("programs are not kept: %s", error)
        return None


def _own(folder: Path) -> bool:
    """Whether nobody but this user may change what is in it."""
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def described(value: object) -> str:
    """A value as text: the same in every process, and another one for another value.

    Raises ValueError for what shows itself by its address in memory, or shows only some of itself.
    """
    match value:
        case Enum():
            return f"{type(value).__qualname__}.{value.name}"
        case str() | bytes():
            return repr(value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            inside = (f"{field.name}={described(getattr(value, field.name))}" for field in fields(value))
            return f"{type(value).__qualname__}({', '.join(inside)})"
        case Mapping():
            return f"{{{', '.join(sorted(f'{described(k)}: {described(v)}' for k, v in value.items()))}}}"
        case AbstractSet():
            return f"{{{', '.join(sorted(map(described, value)))}}}"
        case Sequence():
            return f"({', '.join(map(described, value))})"
        case _:
            text = repr(value)
            if " at 0x" in text or (hasattr(value, "__array__") and not isinstance(value, np.generic)):
                raise ValueError(f"{text} has no description that another process would understand")
            return text


def _struct(leaf: Any) -> str:
    return f"{leaf.dtype}{leaf.shape} {_sharding(leaf.sharding)} {getattr(leaf, 'weak_type', False)}"


def _sharding(sharding: Any) -> str:
    return f"{sharding!r} {getattr(sharding, 'memory_kind', None)}"


def _makers() -> tuple[object, str]:
    """Versions of the compilers, and a digest of the sources that they are given programs by."""
    digest = hashlib.sha256()
    for file in _sources():
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    installed = {
        found.name: found.version for found in importlib.metadata.distributions() if COMPILERS.match(found.name or "")
    }
    return (installed, digest.hexdigest())


def _sources() -> Iterator[Path]:
    root = Path(triptych.__file__).parent
    for part in SOURCES:
        yield from sorted((root / part).rglob("*.py"))


def _settings() -> dict[str, object]:
    return {name: getattr(jax.config, name, None) for name in SETTINGS}


def _host(platform: str) -> object:
    """What XLA:CPU compiles for: the processor's instructions, and how many cores it may use."""
    if platform != "cpu":
        return None
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), os.uname().machine)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (flags, cores)


MADE_BY = _makers()
"""Read when this is imported, as the sources are: they may be others by the time that weights are loaded."""
