from triptych.proto.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubscribeRequest(_message.Message):
    __slots__ = ("gateway",)
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    def __init__(self, gateway: _Optional[str] = ...) -> None: ...

class MediaHeader(_message.Message):
    __slots__ = ("owner", "hash", "shape", "grid", "checksum")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    owner: _common_pb2.InstanceRef
    hash: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    grid: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, owner: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., hash: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., grid: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class PutMediaRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: MediaHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[MediaHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutMediaReply(_message.Message):
    __slots__ = ("wanted", "stored")
    WANTED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    wanted: bool
    stored: bool
    def __init__(self, wanted: bool = ..., stored: bool = ...) -> None: ...

class PromptDone(_message.Message):
    __slots__ = ("request", "attempt", "report", "times")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    request: str
    attempt: int
    report: _common_pb2.PromptReport
    times: _common_pb2.StageTimes
    def __init__(self, request: _Optional[str] = ..., attempt: _Optional[int] = ..., report: _Optional[_Union[_common_pb2.PromptReport, _Mapping]] = ..., times: _Optional[_Union[_common_pb2.StageTimes, _Mapping]] = ...) -> None: ...

class TokenBatch(_message.Message):
    __slots__ = ("tokens", "prompts")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenOut]
    prompts: _containers.RepeatedCompositeFieldContainer[PromptDone]
    def __init__(self, tokens: _Optional[_Iterable[_Union[_common_pb2.TokenOut, _Mapping]]] = ..., prompts: _Optional[_Iterable[_Union[PromptDone, _Mapping]]] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InstanceState(_message.Message):
    __slots__ = ("info", "load", "resources", "counters")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    INFO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    info: _common_pb2.InstanceInfo
    load: _common_pb2.Load
    resources: _containers.ScalarMap[str, int]
    counters: _containers.ScalarMap[str, int]
    def __init__(self, info: _Optional[_Union[_common_pb2.InstanceInfo, _Mapping]] = ..., load: _Optional[_Union[_common_pb2.Load, _Mapping]] = ..., resources: _Optional[_Mapping[str, int]] = ..., counters: _Optional[_Mapping[str, int]] = ...) -> None: ...

class InspectReply(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[InstanceState]
    def __init__(self, instances: _Optional[_Iterable[_Union[InstanceState, _Mapping]]] = ...) -> None: ...
