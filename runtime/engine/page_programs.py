"""Programs that take KV pages out of the pools as canonical chunks, and put chunks into pages.

A chunk is one array [layers, 2 (k, v), granule, page_size, g heads, head_dim] on one device (see `transfer.layout`), however the pools lay
their pages out (`models/pool_layout.py`); of codes with scales the last axis has words of both (`models/quantised_kv.py`). Gathering and scattering are
one dispatch on the whole mesh each: every device cuts its own heads into blocks of g, and a block is an output (input) of its own, so that a
chunk is simply one device's shard of one output. Padding slots make blocks too; they are ignored on the way out and zero on the way in.

Padded entries of `pages` (0, the null page) come out as zeros whatever the null page holds, and are not written on the way in; so the checksums
of a chunk, which both programs compute on the device, agree between the two sides.

Everything is compiled beside an engine's programs (`programs`, `add`), or by `compile`; afterwards only compiled executables, numpy arrays and `device_put` are used. The device loop owns the
pools: `scatter` donates them, and a failure inside it loses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.models.pool_layout import APART, PoolLayout, over_mesh
from triptych.runtime.core.errors import ChecksumError
from triptych.runtime.engine.compiling import Executable, Key, Program, Progress, compile_programs
from triptych.runtime.transfer.checksum import checksum
from triptych.runtime.transfer.layout import ChunkLayout, Slots
from triptych.sharding.devices import Device

AXIS = "tp"
COMPILE_THREADS = (
    2  # XLA's own threads fill a host; two overlap one program's serial passes with another's parallel ones
)


class HeadSlots(Protocol):
    """The part of `sharding.heads.HeadLayout` that matters here."""

    def slots(self) -> Slots: ...


@dataclass(frozen=True)
class Gathered:
    """Pages as chunks, still being computed.

    Attributes:
        chunks: one single-device array a chunk, in chunk order.
        checksums: uint32 [devices, blocks] on the device; `checksum_of[i]` is the place of chunk i's.
    """

    chunks: tuple[jax.Array, ...]
    checksums: jax.Array
    checksum_of: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self.chunks)

    def host_checksums(self) -> tuple[int, ...]:
        """Checksum of each chunk; waits for the device, so not for the device loop."""
        table = np.asarray(self.checksums)
        return tuple(int(table[place]) for place in self.checksum_of)


class PageMover:
    """Gathers pages into chunks and scatters chunks into pages, for one KV group on one mesh.

    Args:
        mesh: has the axis "tp"; its i-th device holds the heads `head_layout.slots()[i]`.
        num_layers, num_pages, page_size, head_dim, dtype: of the pools, a flat tuple or a tuple of layers of arrays as `pool_layout` says,
            sharded over "tp" on the head axis.
        granule: pages a chunk.
        layer_groups: half-open ranges of layers that are moved at a time; default: all layers at once.
        pool_sharding: when the pools' sharding is not the plain one (an equivalent spec spelt differently).
        pool_layout: how a layer's pages lie; default: k and v arrays [num_pages, page_size, kv_heads_total, head_dim].
        what: is moved; what tells its programs from those of another pool of the instance.
    """

    def __init__(
        self,
        mesh: Mesh,
        head_layout: HeadSlots,
        num_layers: int,
        num_pages: int,
        page_size: int,
        head_dim: int,
        dtype: Any,
        granule: int,
        layer_groups: tuple[tuple[int, int], ...] | None = None,
        pool_sharding: NamedSharding | None = None,
        pool_layout: PoolLayout = APART,
        what: str = "KV",
    ):
        self.layout = ChunkLayout(head_layout.slots())
        self.devices: tuple[Device, ...] = tuple(mesh.devices.flat)
        if len(self.devices) != len(self.layout.slots) or mesh.axis_names != (AXIS,):
            raise ValueError(
                f"head layout for {len(self.layout.slots)} devices on mesh {mesh}; expected one axis {AXIS!r} of that size"
            )
        self.layer_groups = ((0, num_layers),) if layer_groups is None else layer_groups
        covered = [layer for start, stop in self.layer_groups for layer in range(start, stop)]
        if covered != list(range(num_layers)):
            raise ValueError(
                f"layer groups {self.layer_groups} must cover layers 0..{num_layers - 1} in order, each once"
            )
        self.num_pages = num_pages
        self.granule = granule
        self.dtype = np.dtype(dtype)
        self._entry, chunk_dtype = pool_layout.entry(head_dim, self.dtype.name)
        self.chunk_dtype = np.dtype(chunk_dtype)
        self._page_shape = (page_size, head_dim)
        self._mesh = mesh
        self._what = what
        self._pool_layout = pool_layout
        self._pool_sharding = pool_sharding or NamedSharding(mesh, PartitionSpec(None, None, AXIS, None))
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._sums = self._split  # of the checksums that `scatter` computes
        self._index = {device: i for i, device in enumerate(self.devices)}
        self._own = [i for i, device in enumerate(self.devices) if device.process_index == jax.process_index()]
        self._gather: dict[tuple[int, int], Callable[..., Any]] = {}
        self._scatter: dict[tuple[int, int], Callable[..., Any]] = {}
        self._zeros: dict[tuple[int, int, int], jax.Array] = {}

    def chunk_shape(self, g: int, layer_group: int = 0) -> tuple[int, ...]:
        """[layers, 2, granule, page_size, g, numbers of an entry] of one chunk, which is in `chunk_dtype`."""
        start, stop = self.layer_groups[layer_group]
        return self._chunk_shape(g, stop - start)

    def destinations(self, g: int) -> tuple[tuple[int, Device], ...]:
        """(chunk, device) for every array that `scatter` wants, in its order: chunk by chunk, replicas together."""
        return tuple((h.chunk, self.devices[h.device]) for h in self.layout.holders(g))

    def compile(self, progress: Progress | None = None, sizes: Sequence[int] | None = None) -> int:
        """Compiles gather and scatter for each chunk size and number of layers; returns how many programs that made.

        Args:
            progress: called with (program name, programs done, programs in all).
            sizes: heads per chunk to prepare; default: every size that a peer could ask for.
        """
        programs = self.programs(sizes)
        compiled, report = compile_programs(programs, COMPILE_THREADS, progress or (lambda name, done, total: None))
        self.add(compiled)
        return report.programs

    def programs(self, sizes: Sequence[int] | None = None) -> list[Program]:
        """What `compile` compiles, for whoever has more to compile meanwhile; `add` takes what came of it."""
        return [
            make(g, layers)
            for g, layers in self._sizes(sizes)
            for make in (self._gather_program, self._scatter_program)
        ]

    def add(self, compiled: Mapping[Key, Executable]) -> None:
        """Take in what `compile_programs` made of `programs`; what is not of this mover is left."""
        for g, layers in self._sizes(None):
            for table, name in ((self._gather, "gather"), (self._scatter, "scatter")):
                program = compiled.get(self._key(name, g, layers))
                if program is not None:
                    table[g, layers] = program
                    self._make_zeros(g, layers)

    def gather(self, pools: Any, pages: Sequence[int], g: int, layer_group: int = 0) -> Gathered:
        """Copies at most `granule` pages of one layer group out of the pools. Does not wait for the device."""
        start, stop = self.layer_groups[layer_group]
        leaves = jax.tree.leaves(pools)[self._arrays(start, stop)]
        *blocks, sums = self._program(self._gather, g, stop - start)(self._padded(pages), *leaves)
        shards = [{self._index[s.device]: s.data for s in block.addressable_shards} for block in blocks]
        senders = self.layout.senders(g)
        chunks = tuple(shards[h.block][h.device] for h in senders)
        return Gathered(chunks, sums, tuple((h.device, h.block) for h in senders))

    def scatter(
        self, pools: Any, pages: Sequence[int], chunks: Sequence[jax.Array], g: int, layer_group: int = 0
    ) -> tuple[Any, jax.Array]:
        """Writes chunks into pages of one layer group. Donates that group's pools; does not wait for the device.

        Args:
            chunks: one array for each of `destinations(g)`, on that device.

        Returns:
            the pools, in the structure they came in, and the checksums of what arrived, for `verify`.
        """
        start, stop = self.layer_groups[layer_group]
        leaves, structure = jax.tree.flatten(pools)
        shape = self._chunk_shape(g, stop - start)
        places = self._places(chunks, g)
        blocks = []
        for block in range(self.layout.heads_per_device // g):
            shards = [places[d, block] if (d, block) in places else self._zeros[d, g, stop - start] for d in self._own]
            whole = (len(self.devices) * shape[0], *shape[1:])
            blocks.append(jax.make_array_from_single_device_arrays(whole, self._split, shards))
        program = self._program(self._scatter, g, stop - start)
        here = self._arrays(start, stop)
        *written, sums = program(self._padded(pages), *blocks, *leaves[here])
        leaves[here] = written
        return jax.tree.unflatten(structure, leaves), sums

    def _places(self, chunks: Sequence[Any], g: int) -> dict[tuple[int, int], jax.Array]:
        """The array that each (device of this process, block) takes."""
        return {(h.device, h.block): chunk for h, chunk in zip(self.layout.holders(g), chunks, strict=True)}

    def verify(self, checksums: jax.Array, expected: Sequence[int], g: int) -> None:
        """Compares what `scatter` read with what the sender computed; waits for the device, so not for the device loop.

        Raises:
            ChecksumError: naming the chunk, its heads and the device.
        """
        table = np.asarray(checksums)
        for h in self.layout.holders(g):
            found = int(table[h.device, h.block])
            if found != expected[h.chunk]:
                raise ChecksumError(
                    f"chunk {h.chunk} (KV heads {h.chunk * g}..{(h.chunk + 1) * g - 1}) on {self.devices[h.device]}: "
                    f"checksum {found:#010x}, expected {expected[h.chunk]:#010x}"
                )

    def _sizes(self, sizes: Sequence[int] | None) -> list[tuple[int, int]]:
        """(heads a chunk, layers at a time) of the programs for these chunk sizes; None: for all."""
        layers = sorted({stop - start for start, stop in self.layer_groups})
        return [(g, n) for g in (self.layout.chunk_sizes() if sizes is None else sizes) for n in layers]

    def _padded(self, pages: Sequence[int]) -> np.ndarray:
        if not 0 < len(pages) <= self.granule or not all(0 < page < self.num_pages for page in pages):
            raise ValueError(f"expected 1..{self.granule} pages numbered 1..{self.num_pages - 1}, got {tuple(pages)}")
        padded = np.zeros(self.granule, np.int32)
        padded[: len(pages)] = pages
        return padded

    def _program(self, table: dict[tuple[int, int], Callable[..., Any]], g: int, layers: int) -> Callable[..., Any]:
        program = table.get((g, layers))
        if program is None:
            raise ValueError(
                f"no program for chunks of {g} heads and {layers} layers; compiled (heads, layers): {sorted(table)}"
            )
        return program

    def _chunk_shape(self, g: int, layers: int) -> tuple[int, ...]:
        return (layers, 2, self.granule, self._page_shape[0], g, self._entry)

    def _arrays(self, start: int, stop: int) -> slice:
        """Where the arrays of these layers are in the flat tuple."""
        return slice(self._pool_layout.arrays * start, self._pool_layout.arrays * stop)

    def _by_layer(self, arrays: Sequence[jax.Array]) -> list[Sequence[jax.Array]]:
        each = self._pool_layout.arrays
        return [arrays[at : at + each] for at in range(0, len(arrays), each)]

    def _abstract(self, layers: int) -> tuple[jax.ShapeDtypeStruct, list[jax.ShapeDtypeStruct]]:
        page_size, head_dim = self._page_shape
        own = self._pool_layout.structs(
            self.num_pages, page_size, self.layout.heads_per_device, head_dim, self.dtype.name
        )
        arrays = [*over_mesh(own, len(self.devices), self._pool_sharding)] * layers
        return jax.ShapeDtypeStruct((self.granule,), np.int32, sharding=self._whole), arrays

    def _key(self, name: str, g: int, layers: int) -> Key:
        return name, self._what, f"heads={g}", f"layers={layers}"

    def _gather_program(self, g: int, layers: int) -> Program:
        heads, head_dim = self.layout.heads_per_device, self._page_shape[1]
        blocks = heads // g

        def gather_local(pages: jax.Array, *pools: jax.Array) -> tuple[jax.Array, ...]:
            real = (pages != 0)[:, None, None, None]
            taken = [
                jnp.where(real, layer, jnp.zeros((), layer.dtype))
                for layer in (
                    self._pool_layout.take(arrays, pages, heads, head_dim) for arrays in self._by_layer(pools)
                )
            ]
            out = [jnp.stack([t[:, :, :, b * g : (b + 1) * g] for t in taken]) for b in range(blocks)]
            return (*out, jnp.stack([checksum(block) for block in out])[None])

        pages, pools = self._abstract(layers)
        split = PartitionSpec(AXIS)
        program = jax.shard_map(
            gather_local,
            mesh=self._mesh,
            in_specs=(PartitionSpec(), *[PartitionSpec(None, None, AXIS)] * len(pools)),
            out_specs=(split,) * (blocks + 1),
        )
        run, outputs = self._gathering(program, g, layers)
        return Program(self._key("gather", g, layers), run, (pages, *pools), outputs)

    def _gathering(self, program: Callable[..., Any], g: int, layers: int) -> tuple[Callable[..., Any], Any]:
        """`program` gives the blocks of each device, and their checksums: (what to run, where its results are that `gather` takes)."""
        return program, (self._split,) * (self.layout.heads_per_device // g + 1)

    def _scatter_program(self, g: int, layers: int) -> Program:
        blocks = self.layout.heads_per_device // g
        shape = self._chunk_shape(g, layers)

        def scatter_local(pages: jax.Array, *args: jax.Array) -> tuple[jax.Array, ...]:
            chunks, pools = args[:blocks], args[blocks:]
            # Beyond the pool and all different: dropped, and XLA may take the indices for unique.
            target = jnp.where(pages == 0, self.num_pages + jnp.arange(self.granule, dtype=pages.dtype), pages)
            sums = jnp.stack([checksum(chunk) for chunk in chunks])[None]
            written = [
                array
                for layer, arrays in enumerate(self._by_layer(pools))
                for array in self._pool_layout.put(
                    arrays, target, jnp.concatenate([chunk[layer] for chunk in chunks], axis=3)
                )
            ]
            return (*written, sums)

        pages, pools = self._abstract(layers)
        chunk = jax.ShapeDtypeStruct((len(self.devices) * shape[0], *shape[1:]), self.chunk_dtype, sharding=self._split)
        split, on_heads = PartitionSpec(AXIS), PartitionSpec(None, None, AXIS)
        program = jax.shard_map(
            scatter_local,
            mesh=self._mesh,
            in_specs=(PartitionSpec(), *[split] * blocks, *[on_heads] * len(pools)),
            out_specs=(*[on_heads] * len(pools), split),
        )
        donated = tuple(range(1 + blocks, 1 + blocks + len(pools)))
        outputs = (*[pool.sharding for pool in pools], self._sums)
        return Program(self._key("scatter", g, layers), program, (pages, *[chunk] * blocks, *pools), outputs, donated)

    def _make_zeros(self, g: int, layers: int) -> None:
        """One resident block of zeros for each device that has padding slots."""
        for device, row in enumerate(self.layout.blocks(g)):
            if None in row and device in self._own:
                zeros = np.zeros(self._chunk_shape(g, layers), self.chunk_dtype)
                self._zeros[device, g, layers] = jax.device_put(zeros, self.devices[device])
