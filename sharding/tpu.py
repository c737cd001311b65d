"""Meshes of TPU chips that are not there: what the real TPU compiler needs to compile a program for them.

libtpu (the extra `tpu`) describes a topology without a device of it. Arrays cannot be put on such a mesh; programs lowered from
`jax.ShapeDtypeStruct`s with shardings on it compile, and say what memory and operations they take.
"""

from dataclasses import dataclass

from jax.experimental import topologies
from jax.sharding import Mesh

from triptych.sharding.mesh import make_mesh

GIB = 1 << 30


class TpuCompilerError(RuntimeError):
    """There is no TPU compiler here, or it knows no such topology."""


@dataclass(frozen=True)
class TpuTarget:
    """One slice of TPU chips. `memory_bytes`: of one chip's HBM, as its vendor's page says."""

    name: str
    chips: int
    memory_bytes: int


TARGETS = {
    target.name: target
    for target in (
        TpuTarget("v5e:2x2", 4, 16 * GIB),
        TpuTarget("v5e:2x4", 8, 16 * GIB),
        TpuTarget("v6e:2x4", 8, 32 * GIB),
        TpuTarget("v5p:2x2x1", 4, 95 * GIB),
    )
}


def tpu_mesh(target: TpuTarget, tp: int | None = None) -> Mesh:
    """A mesh over the first `tp` chips of a target (default: all), for compiling only. Raises TpuCompilerError.

    libtpu looks for a metadata server and for other users of the chips when it is loaded: the process sets TPU_SKIP_MDS_QUERY=1 and
    ALLOW_MULTIPLE_LIBTPU_LOAD=1 before.
    """
    try:
        devices = topologies.get_topology_desc(target.name, platform="tpu").devices
    except Exception as error:  # the plugin's own: its type differs with what is missing
        raise TpuCompilerError(
            f"no TPU compiler for {target.name}: {error}; install libtpu (pip install 'triptych[tpu]')"
        ) from error
    tp = target.chips if tp is None else tp
    return make_mesh(devices[:tp], tp)
