from triptych.proto.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Join(_message.Message):
    __slots__ = ("count", "index", "settings")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    COUNT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    count: int
    index: int
    settings: _containers.ScalarMap[str, str]
    def __init__(self, count: _Optional[int] = ..., index: _Optional[int] = ..., settings: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Meet(_message.Message):
    __slots__ = ("point", "number")
    POINT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    point: str
    number: int
    def __init__(self, point: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class Farewell(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Living(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FollowerMessage(_message.Message):
    __slots__ = ("join", "meet", "farewell", "living")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    MEET_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    LIVING_FIELD_NUMBER: _ClassVar[int]
    join: Join
    meet: Meet
    farewell: Farewell
    living: Living
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., meet: _Optional[_Union[Meet, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ..., living: _Optional[_Union[Living, _Mapping]] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    def __init__(self, port: _Optional[int] = ...) -> None: ...

class Lists(_message.Message):
    __slots__ = ("values", "counts")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class PlanRows(_message.Message):
    __slots__ = ("sequence", "start", "position", "token_slot", "score_top", "tokens", "pages", "score", "draws", "draw_positions")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SLOT_FIELD_NUMBER: _ClassVar[int]
    SCORE_TOP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    DRAW_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    sequence: _containers.RepeatedScalarFieldContainer[int]
    start: _containers.RepeatedScalarFieldContainer[int]
    position: _containers.RepeatedScalarFieldContainer[int]
    token_slot: _containers.RepeatedScalarFieldContainer[int]
    score_top: _containers.RepeatedScalarFieldContainer[int]
    tokens: Lists
    pages: Lists
    score: Lists
    draws: Lists
    draw_positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence: _Optional[_Iterable[int]] = ..., start: _Optional[_Iterable[int]] = ..., position: _Optional[_Iterable[int]] = ..., token_slot: _Optional[_Iterable[int]] = ..., score_top: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Union[Lists, _Mapping]] = ..., pages: _Optional[_Union[Lists, _Mapping]] = ..., score: _Optional[_Union[Lists, _Mapping]] = ..., draws: _Optional[_Union[Lists, _Mapping]] = ..., draw_positions: _Optional[_Iterable[int]] = ...) -> None: ...

class Seat(_message.Message):
    __slots__ = ("slot", "sample", "params", "prompt", "outputs", "forbidden", "forbidden_until", "forbidden_first", "first")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FORBIDDEN_FIELD_NUMBER: _ClassVar[int]
    FORBIDDEN_UNTIL_FIELD_NUMBER: _ClassVar[int]
    FORBIDDEN_FIRST_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    slot: int
    sample: int
    params: _common_pb2.SamplingParams
    prompt: _containers.RepeatedScalarFieldContainer[int]
    outputs: _containers.RepeatedScalarFieldContainer[int]
    forbidden: _containers.RepeatedScalarFieldContainer[int]
    forbidden_until: int
    forbidden_first: _containers.RepeatedScalarFieldContainer[int]
    first: int
    def __init__(self, slot: _Optional[int] = ..., sample: _Optional[int] = ..., params: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., prompt: _Optional[_Iterable[int]] = ..., outputs: _Optional[_Iterable[int]] = ..., forbidden: _Optional[_Iterable[int]] = ..., forbidden_until: _Optional[int] = ..., forbidden_first: _Optional[_Iterable[int]] = ..., first: _Optional[int] = ...) -> None: ...

class StepPlan(_message.Message):
    __slots__ = ("id", "rows", "seats", "copies")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SEATS_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    id: int
    rows: PlanRows
    seats: _containers.RepeatedCompositeFieldContainer[Seat]
    copies: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[int] = ..., rows: _Optional[_Union[PlanRows, _Mapping]] = ..., seats: _Optional[_Iterable[_Union[Seat, _Mapping]]] = ..., copies: _Optional[_Iterable[int]] = ...) -> None: ...

class GatherPages(_message.Message):
    __slots__ = ("pages", "heads", "layer_group")
    PAGES_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    LAYER_GROUP_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedScalarFieldContainer[int]
    heads: int
    layer_group: int
    def __init__(self, pages: _Optional[_Iterable[int]] = ..., heads: _Optional[int] = ..., layer_group: _Optional[int] = ...) -> None: ...

class ScatterPages(_message.Message):
    __slots__ = ("pages", "heads", "layer_group", "chunks")
    PAGES_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    LAYER_GROUP_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedScalarFieldContainer[int]
    heads: int
    layer_group: int
    chunks: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, pages: _Optional[_Iterable[int]] = ..., heads: _Optional[int] = ..., layer_group: _Optional[int] = ..., chunks: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DeviceCall(_message.Message):
    __slots__ = ("order", "plan", "gather", "scatter")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    GATHER_FIELD_NUMBER: _ClassVar[int]
    SCATTER_FIELD_NUMBER: _ClassVar[int]
    order: int
    plan: StepPlan
    gather: GatherPages
    scatter: ScatterPages
    def __init__(self, order: _Optional[int] = ..., plan: _Optional[_Union[StepPlan, _Mapping]] = ..., gather: _Optional[_Union[GatherPages, _Mapping]] = ..., scatter: _Optional[_Union[ScatterPages, _Mapping]] = ...) -> None: ...

class LeaderMessage(_message.Message):
    __slots__ = ("admitted", "meet", "call", "farewell", "living")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    MEET_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    LIVING_FIELD_NUMBER: _ClassVar[int]
    admitted: Admitted
    meet: Meet
    call: DeviceCall
    farewell: Farewell
    living: Living
    def __init__(self, admitted: _Optional[_Union[Admitted, _Mapping]] = ..., meet: _Optional[_Union[Meet, _Mapping]] = ..., call: _Optional[_Union[DeviceCall, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ..., living: _Optional[_Union[Living, _Mapping]] = ...) -> None: ...
