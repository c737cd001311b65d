from triptych.proto.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvGroupHeader(_message.Message):
    __slots__ = ("name", "kind", "heads", "head_dim", "layers", "scales")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    heads: int
    head_dim: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    scales: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., scales: _Optional[str] = ...) -> None: ...

class LayerRange(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class KvHeader(_message.Message):
    __slots__ = ("model", "revision", "groups", "dtype", "page_size", "granule", "layer_groups", "protocol", "chunk_order")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    GRANULE_FIELD_NUMBER: _ClassVar[int]
    LAYER_GROUPS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ORDER_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: str
    groups: _containers.RepeatedCompositeFieldContainer[KvGroupHeader]
    dtype: str
    page_size: int
    granule: int
    layer_groups: _containers.RepeatedCompositeFieldContainer[LayerRange]
    protocol: int
    chunk_order: str
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[KvGroupHeader, _Mapping]]] = ..., dtype: _Optional[str] = ..., page_size: _Optional[int] = ..., granule: _Optional[int] = ..., layer_groups: _Optional[_Iterable[_Union[LayerRange, _Mapping]]] = ..., protocol: _Optional[int] = ..., chunk_order: _Optional[str] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("owner", "key", "header", "digest", "head_unit", "transport", "first_page")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEAD_UNIT_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    owner: _common_pb2.InstanceRef
    key: int
    header: KvHeader
    digest: str
    head_unit: int
    transport: str
    first_page: int
    def __init__(self, owner: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., key: _Optional[int] = ..., header: _Optional[_Union[KvHeader, _Mapping]] = ..., digest: _Optional[str] = ..., head_unit: _Optional[int] = ..., transport: _Optional[str] = ..., first_page: _Optional[int] = ...) -> None: ...

class TransferEvent(_message.Message):
    __slots__ = ("opened", "offer", "final", "closed", "alive")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    offer: Offer
    final: Final
    closed: Closed
    alive: Alive
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., final: _Optional[_Union[Final, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("header", "digest", "heads_per_chunk", "endpoint")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEADS_PER_CHUNK_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    header: KvHeader
    digest: str
    heads_per_chunk: int
    endpoint: str
    def __init__(self, header: _Optional[_Union[KvHeader, _Mapping]] = ..., digest: _Optional[str] = ..., heads_per_chunk: _Optional[int] = ..., endpoint: _Optional[str] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("id", "layer_group", "first_page", "page_count", "shape", "dtype", "checksums")
    ID_FIELD_NUMBER: _ClassVar[int]
    LAYER_GROUP_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    PAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    id: int
    layer_group: int
    first_page: int
    page_count: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    checksums: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[int] = ..., layer_group: _Optional[int] = ..., first_page: _Optional[int] = ..., page_count: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., checksums: _Optional[_Iterable[int]] = ...) -> None: ...

class Final(_message.Message):
    __slots__ = ("continuation", "offers")
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    continuation: bytes
    offers: int
    def __init__(self, continuation: _Optional[bytes] = ..., offers: _Optional[int] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("status", "reason")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: int
    reason: str
    def __init__(self, status: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("owner", "key", "offer", "chunks")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    owner: _common_pb2.InstanceRef
    key: int
    offer: int
    chunks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, owner: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., key: _Optional[int] = ..., offer: _Optional[int] = ..., chunks: _Optional[_Iterable[int]] = ...) -> None: ...

class FetchPiece(_message.Message):
    __slots__ = ("chunk", "sequence", "total", "data")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    chunk: int
    sequence: int
    total: int
    data: bytes
    def __init__(self, chunk: _Optional[int] = ..., sequence: _Optional[int] = ..., total: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("owner", "key", "offers", "outcome")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    owner: _common_pb2.InstanceRef
    key: int
    offers: _containers.RepeatedScalarFieldContainer[int]
    outcome: Outcome
    def __init__(self, owner: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., key: _Optional[int] = ..., offers: _Optional[_Iterable[int]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("status", "reason")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: int
    reason: str
    def __init__(self, status: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExtendRequest(_message.Message):
    __slots__ = ("owner", "keys")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    owner: _common_pb2.InstanceRef
    keys: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, owner: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., keys: _Optional[_Iterable[int]] = ...) -> None: ...

class ExtendReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
