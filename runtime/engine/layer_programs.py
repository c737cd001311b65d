"""The `extend` program cut into several: embed, one program a layer group, and the end. What a prompt is computed by where KV is offered by group.

A program gives its outputs up only when it ends, so KV that is to leave while later layers are computed needs a program for each group of layers.
Groups of the same size and kinds of layers share one: it is traced over the first such group, with that group's parameters and pools as
arguments, and called with any other's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int32

from triptych.models.decoder import Decoder
from triptych.models.structure import DecoderStructure, Pools
from triptych.runtime.engine.batch import extend_packing
from triptych.runtime.engine.buckets import ExtendShape
from triptych.runtime.engine.compiling import Executable, Key
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.extend import extend_range, known_tokens, of_rows, ragged, scores_prompts
from triptych.runtime.engine.media_pool import EmbeddingPool, MediaPool

Params = tuple[jax.Array, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class LayerCut:
    """A decoder's parameters, layer group by layer group.

    `groups` are half-open ranges that cover the layers in order. `injections` are the media pool's pairs of (layer, part): those at layer 0
    belong to the embedding, the others to the group of their layer.
    """

    structure: DecoderStructure
    groups: tuple[tuple[int, int], ...]
    injections: tuple[tuple[int, int], ...] = ()

    @cached_property
    def _layers(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the places of its parameters in the flat tuple, by name: the same order in every layer."""
        found: list[list[tuple[str, int]]] = [[] for _ in range(self.structure.config.num_layers)]
        for at, path in enumerate(self.structure.paths):
            if path.startswith("layers."):
                _, layer, name = path.split(".", 2)
                found[int(layer)].append((name, at))
        return tuple(tuple(at for _, at in sorted(named)) for named in found)

    @cached_property
    def _outer(self) -> tuple[int, ...]:
        inside = {at for layer in self._layers for at in layer}
        return tuple(at for at in range(len(self.structure.paths)) if at not in inside)

    def _places(self, group: int) -> tuple[int, ...]:
        start, stop = self.groups[group]
        return tuple(at for layer in self._layers[start:stop] for at in layer)

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """For each group the first one that its program also serves: itself, or one of as many layers of the same kinds."""
        first: dict[Any, int] = {}
        return tuple(first.setdefault(self._kind(group), group) for group in range(len(self.groups)))

    def _kind(self, group: int) -> Any:
        start, stop = self.groups[group]
        arrays = (self.structure.abstract[at] for at in self._places(group))
        shapes = tuple((array.shape, array.dtype, array.sharding) for array in arrays)
        injected = tuple((layer - start, part) for layer, part in self._injected(group))
        return self.structure.config.layer_windows[start:stop], shapes, injected

    def _injected(self, group: int) -> tuple[tuple[int, int], ...]:
        start, stop = self.groups[group]
        return tuple((layer, part) for layer, part in self.injections if layer > 0 and start <= layer < stop)

    def reads_media(self, group: int) -> bool:
        """Whether the group's program takes the media pool, too: some of its layers have embeddings of media as their input."""
        return bool(self._injected(group))

    def layers(self, params: Sequence[T], group: int) -> tuple[T, ...]:
        """The group's arrays (or what stands for them) out of all parameters."""
        return tuple(params[at] for at in self._places(group))

    def outer(self, params: Sequence[T]) -> tuple[T, ...]:
        """The arrays of no layer: embedding, norm and head."""
        return tuple(params[at] for at in self._outer)

    def over_layers(self, arrays: Params, group: int) -> Decoder:
        """The decoder inside a traced program, of which only one group's layers are there."""
        return self._over(self._places(group), arrays)

    def over_outer(self, arrays: Params) -> Decoder:
        """The decoder inside a traced program, without layers."""
        return self._over(self._outer, arrays)

    def _over(self, places: Iterable[int], arrays: Params) -> Decoder:
        leaves: list[Any] = list(self.structure.abstract)
        for at, array in zip(places, arrays, strict=True):
            leaves[at] = array
        return self.structure.merge(leaves)


def build_embed(
    cut: LayerCut, shape: ExtendShape, config: EngineConfig, media: MediaPool | None
) -> Callable[..., tuple[Float[Array, "tokens hidden"], Int32[Array, "words"]]]:
    """(outer params, packed, last_tokens[, media pool]) -> (hidden states, packed). What is packed is copied to the device once, here."""
    packing = extend_packing(shape, config)

    def run(outer: Params, packed: jax.Array, last_tokens: jax.Array, embeddings: Pools = ()) -> Any:
        inputs = packing.unpack(packed)
        x = cut.over_outer(outer).embed(known_tokens(inputs, last_tokens, config))
        if isinstance(media, EmbeddingPool):
            x = media.read(embeddings, inputs["media_index"]).into(0, x)
        return x, packed

    return run


def build_layers(
    cut: LayerCut, group: int, shape: ExtendShape, config: EngineConfig, media: MediaPool | None
) -> Callable[..., tuple[Float[Array, "tokens hidden"], Pools]]:
    """(params, pools) of the group, hidden states, packed[, media pool] -> (hidden states, the group's pools)."""
    packing = extend_packing(shape, config)
    layers = range(*cut.groups[group])

    def run(params: Params, pools: Pools, x: jax.Array, packed: jax.Array, embeddings: Pools = ()) -> Any:
        inputs = packing.unpack(packed)
        seen = media.read(embeddings, inputs["media_index"]) if isinstance(media, EmbeddingPool) else None
        batch = ragged(inputs, inputs["tokens"], shape)
        return extend_range(cut.over_layers(params, group), x, pools, batch, layers, config.attention, seen)

    return run


def build_end(cut: LayerCut, shape: ExtendShape, config: EngineConfig) -> Callable[..., Any]:
    """(outer params, hidden states, packed) -> (picked hidden states, those of the prefill tokens if they can be scored)."""
    packing = extend_packing(shape, config)
    scored = scores_prompts(shape, config)

    def run(outer: Params, x: jax.Array, packed: jax.Array) -> Any:
        hidden, inputs = cut.over_outer(outer).norm(x), packing.unpack(packed)
        batch = ragged(inputs, inputs["tokens"], shape)
        return of_rows(hidden, batch, inputs["picks"], not shape.prefill_tokens), hidden[
            shape.decode_rows :
        ] if scored else None

    return run


AHEAD = 2  # groups dispatched and not finished: one computing, one waiting behind it, so that a gather waits for one group and not for the step


class LayerRun:
    """One step's extend, dispatched a layer group at a time.

    Args:
        programs: the compiled ones, by key (see `Programs`).
    """

    def __init__(
        self,
        programs: Mapping[Key, Executable],
        cut: LayerCut,
        shape: ExtendShape,
        params: Params,
        packed: np.ndarray,
        last_tokens: jax.Array,
        *media: Pools,
    ) -> None:
        self._programs, self._cut, self._shape, self._params = programs, cut, shape, params
        self._takes_media = bool(media)
        self._x, self._packed = programs["embed", shape](cut.outer(params), packed, last_tokens, *media)
        self._unfinished: deque[jax.Array] = deque()
        self.dispatched = 0

    @property
    def left(self) -> int:
        """Groups that are still to be dispatched."""
        return len(self._cut.groups) - self.dispatched

    @property
    def must_wait(self) -> bool:
        """Whether AHEAD groups were dispatched, and none of them waited for."""
        return len(self._unfinished) == AHEAD

    def wait(self) -> None:
        """Until the oldest dispatched group that was not waited for is done, if AHEAD of them are."""
        if self.must_wait:
            self._unfinished.popleft().block_until_ready()

    def advance(self, pools: Pools, embeddings: Pools) -> Pools:
        """Dispatch the next group, whose pools are donated; returns all pools. Does not wait.

        `embeddings` is the media pool as it is now, if there is one: what arrives between two groups replaces its arrays.
        """
        group, (start, stop) = self.dispatched, self._cut.groups[self.dispatched]
        program = self._programs["layers", self._shape, self._cut.alike[group]]
        media = (embeddings,) if self._takes_media and self._cut.reads_media(group) else ()
        params = self._cut.layers(self._params, group)
        self._x, written = program(params, pools[start:stop], self._x, self._packed, *media)
        self._unfinished.append(self._x)
        self.dispatched += 1
        return (*pools[:start], *written, *pools[stop:])

    def end(self) -> tuple[jax.Array, jax.Array | None]:
        """What `extend` returns besides pools, once every group is dispatched."""
        return self._programs["end", self._shape](self._cut.outer(self._params), self._x, self._packed)
