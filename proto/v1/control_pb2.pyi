from triptych.proto.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReserveDecode(_message.Message):
    __slots__ = ("request", "ttl", "resumed")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    request: _common_pb2.Request
    ttl: float
    resumed: _containers.RepeatedCompositeFieldContainer[_common_pb2.SampleState]
    def __init__(self, request: _Optional[_Union[_common_pb2.Request, _Mapping]] = ..., ttl: _Optional[float] = ..., resumed: _Optional[_Iterable[_Union[_common_pb2.SampleState, _Mapping]]] = ...) -> None: ...

class StartPrefill(_message.Message):
    __slots__ = ("request", "skip_tokens", "lease", "resumed")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SKIP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    request: _common_pb2.Request
    skip_tokens: int
    lease: float
    resumed: _containers.RepeatedCompositeFieldContainer[_common_pb2.SampleState]
    def __init__(self, request: _Optional[_Union[_common_pb2.Request, _Mapping]] = ..., skip_tokens: _Optional[int] = ..., lease: _Optional[float] = ..., resumed: _Optional[_Iterable[_Union[_common_pb2.SampleState, _Mapping]]] = ...) -> None: ...

class StartDecode(_message.Message):
    __slots__ = ("request", "source", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    source: _common_pb2.Handle
    attempt: int
    def __init__(self, request: _Optional[str] = ..., source: _Optional[_Union[_common_pb2.Handle, _Mapping]] = ..., attempt: _Optional[int] = ...) -> None: ...

class StartLocal(_message.Message):
    __slots__ = ("request", "resumed")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    request: _common_pb2.Request
    resumed: _containers.RepeatedCompositeFieldContainer[_common_pb2.SampleState]
    def __init__(self, request: _Optional[_Union[_common_pb2.Request, _Mapping]] = ..., resumed: _Optional[_Iterable[_Union[_common_pb2.SampleState, _Mapping]]] = ...) -> None: ...

class AbortTask(_message.Message):
    __slots__ = ("request", "status", "reason", "role", "attempt", "for_decode")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FOR_DECODE_FIELD_NUMBER: _ClassVar[int]
    request: str
    status: int
    reason: str
    role: str
    attempt: int
    for_decode: bool
    def __init__(self, request: _Optional[str] = ..., status: _Optional[int] = ..., reason: _Optional[str] = ..., role: _Optional[str] = ..., attempt: _Optional[int] = ..., for_decode: bool = ...) -> None: ...

class StartEncode(_message.Message):
    __slots__ = ("request", "items", "ttl", "lease", "for_decode")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    FOR_DECODE_FIELD_NUMBER: _ClassVar[int]
    request: _common_pb2.Request
    items: _containers.RepeatedScalarFieldContainer[int]
    ttl: float
    lease: float
    for_decode: bool
    def __init__(self, request: _Optional[_Union[_common_pb2.Request, _Mapping]] = ..., items: _Optional[_Iterable[int]] = ..., ttl: _Optional[float] = ..., lease: _Optional[float] = ..., for_decode: bool = ...) -> None: ...

class FeedMedia(_message.Message):
    __slots__ = ("request", "source", "items", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    source: _common_pb2.Handle
    items: _containers.RepeatedScalarFieldContainer[int]
    attempt: int
    def __init__(self, request: _Optional[str] = ..., source: _Optional[_Union[_common_pb2.Handle, _Mapping]] = ..., items: _Optional[_Iterable[int]] = ..., attempt: _Optional[int] = ...) -> None: ...

class TaskCommand(_message.Message):
    __slots__ = ("reserve_decode", "start_prefill", "start_decode", "start_local", "abort_task", "start_encode", "feed_media")
    RESERVE_DECODE_FIELD_NUMBER: _ClassVar[int]
    START_PREFILL_FIELD_NUMBER: _ClassVar[int]
    START_DECODE_FIELD_NUMBER: _ClassVar[int]
    START_LOCAL_FIELD_NUMBER: _ClassVar[int]
    ABORT_TASK_FIELD_NUMBER: _ClassVar[int]
    START_ENCODE_FIELD_NUMBER: _ClassVar[int]
    FEED_MEDIA_FIELD_NUMBER: _ClassVar[int]
    reserve_decode: ReserveDecode
    start_prefill: StartPrefill
    start_decode: StartDecode
    start_local: StartLocal
    abort_task: AbortTask
    start_encode: StartEncode
    feed_media: FeedMedia
    def __init__(self, reserve_decode: _Optional[_Union[ReserveDecode, _Mapping]] = ..., start_prefill: _Optional[_Union[StartPrefill, _Mapping]] = ..., start_decode: _Optional[_Union[StartDecode, _Mapping]] = ..., start_local: _Optional[_Union[StartLocal, _Mapping]] = ..., abort_task: _Optional[_Union[AbortTask, _Mapping]] = ..., start_encode: _Optional[_Union[StartEncode, _Mapping]] = ..., feed_media: _Optional[_Union[FeedMedia, _Mapping]] = ...) -> None: ...

class Granted(_message.Message):
    __slots__ = ("request", "cached_tokens", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    cached_tokens: int
    attempt: int
    def __init__(self, request: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("request", "role", "reason", "permanent", "attempt", "for_decode")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FOR_DECODE_FIELD_NUMBER: _ClassVar[int]
    request: str
    role: str
    reason: str
    permanent: bool
    attempt: int
    for_decode: bool
    def __init__(self, request: _Optional[str] = ..., role: _Optional[str] = ..., reason: _Optional[str] = ..., permanent: bool = ..., attempt: _Optional[int] = ..., for_decode: bool = ...) -> None: ...

class Staged(_message.Message):
    __slots__ = ("request", "handle", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    handle: _common_pb2.Handle
    attempt: int
    def __init__(self, request: _Optional[str] = ..., handle: _Optional[_Union[_common_pb2.Handle, _Mapping]] = ..., attempt: _Optional[int] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("request", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    attempt: int
    def __init__(self, request: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class MediaWanted(_message.Message):
    __slots__ = ("request", "items", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    items: _containers.RepeatedScalarFieldContainer[int]
    attempt: int
    def __init__(self, request: _Optional[str] = ..., items: _Optional[_Iterable[int]] = ..., attempt: _Optional[int] = ...) -> None: ...

class EncodeStaged(_message.Message):
    __slots__ = ("request", "handle", "lacking", "attempt", "for_decode")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FOR_DECODE_FIELD_NUMBER: _ClassVar[int]
    request: str
    handle: _common_pb2.Handle
    lacking: _containers.RepeatedScalarFieldContainer[int]
    attempt: int
    for_decode: bool
    def __init__(self, request: _Optional[str] = ..., handle: _Optional[_Union[_common_pb2.Handle, _Mapping]] = ..., lacking: _Optional[_Iterable[int]] = ..., attempt: _Optional[int] = ..., for_decode: bool = ...) -> None: ...

class EncodeDone(_message.Message):
    __slots__ = ("request", "encoded", "times", "attempt", "for_decode")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FOR_DECODE_FIELD_NUMBER: _ClassVar[int]
    request: str
    encoded: int
    times: _common_pb2.StageTimes
    attempt: int
    for_decode: bool
    def __init__(self, request: _Optional[str] = ..., encoded: _Optional[int] = ..., times: _Optional[_Union[_common_pb2.StageTimes, _Mapping]] = ..., attempt: _Optional[int] = ..., for_decode: bool = ...) -> None: ...

class PrefillDone(_message.Message):
    __slots__ = ("request", "report", "finished", "times", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    report: _common_pb2.PromptReport
    finished: bool
    times: _common_pb2.StageTimes
    attempt: int
    def __init__(self, request: _Optional[str] = ..., report: _Optional[_Union[_common_pb2.PromptReport, _Mapping]] = ..., finished: bool = ..., times: _Optional[_Union[_common_pb2.StageTimes, _Mapping]] = ..., attempt: _Optional[int] = ...) -> None: ...

class DecodeStarted(_message.Message):
    __slots__ = ("request", "times", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    times: _common_pb2.StageTimes
    attempt: int
    def __init__(self, request: _Optional[str] = ..., times: _Optional[_Union[_common_pb2.StageTimes, _Mapping]] = ..., attempt: _Optional[int] = ...) -> None: ...

class TaskEnded(_message.Message):
    __slots__ = ("request", "role", "status", "reason", "preemptions", "attempt", "for_decode")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FOR_DECODE_FIELD_NUMBER: _ClassVar[int]
    request: str
    role: str
    status: int
    reason: str
    preemptions: int
    attempt: int
    for_decode: bool
    def __init__(self, request: _Optional[str] = ..., role: _Optional[str] = ..., status: _Optional[int] = ..., reason: _Optional[str] = ..., preemptions: _Optional[int] = ..., attempt: _Optional[int] = ..., for_decode: bool = ...) -> None: ...

class TaskReport(_message.Message):
    __slots__ = ("granted", "refused", "staged", "accepted", "prefill_done", "decode_started", "task_ended", "media_wanted", "encode_staged", "encode_done")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_DONE_FIELD_NUMBER: _ClassVar[int]
    DECODE_STARTED_FIELD_NUMBER: _ClassVar[int]
    TASK_ENDED_FIELD_NUMBER: _ClassVar[int]
    MEDIA_WANTED_FIELD_NUMBER: _ClassVar[int]
    ENCODE_STAGED_FIELD_NUMBER: _ClassVar[int]
    ENCODE_DONE_FIELD_NUMBER: _ClassVar[int]
    granted: Granted
    refused: Refused
    staged: Staged
    accepted: Accepted
    prefill_done: PrefillDone
    decode_started: DecodeStarted
    task_ended: TaskEnded
    media_wanted: MediaWanted
    encode_staged: EncodeStaged
    encode_done: EncodeDone
    def __init__(self, granted: _Optional[_Union[Granted, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., staged: _Optional[_Union[Staged, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., prefill_done: _Optional[_Union[PrefillDone, _Mapping]] = ..., decode_started: _Optional[_Union[DecodeStarted, _Mapping]] = ..., task_ended: _Optional[_Union[TaskEnded, _Mapping]] = ..., media_wanted: _Optional[_Union[MediaWanted, _Mapping]] = ..., encode_staged: _Optional[_Union[EncodeStaged, _Mapping]] = ..., encode_done: _Optional[_Union[EncodeDone, _Mapping]] = ...) -> None: ...

class HeldTask(_message.Message):
    __slots__ = ("ref", "request", "attempt", "role", "gateway", "running", "for_decode")
    REF_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    FOR_DECODE_FIELD_NUMBER: _ClassVar[int]
    ref: _common_pb2.InstanceRef
    request: str
    attempt: int
    role: str
    gateway: str
    running: bool
    for_decode: bool
    def __init__(self, ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., request: _Optional[str] = ..., attempt: _Optional[int] = ..., role: _Optional[str] = ..., gateway: _Optional[str] = ..., running: bool = ..., for_decode: bool = ...) -> None: ...

class InstanceLoad(_message.Message):
    __slots__ = ("ref", "load")
    REF_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    ref: _common_pb2.InstanceRef
    load: _common_pb2.Load
    def __init__(self, ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., load: _Optional[_Union[_common_pb2.Load, _Mapping]] = ...) -> None: ...

class WorkerJoined(_message.Message):
    __slots__ = ("worker", "instances", "held")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    worker: str
    instances: _containers.RepeatedCompositeFieldContainer[_common_pb2.InstanceInfo]
    held: _containers.RepeatedCompositeFieldContainer[HeldTask]
    def __init__(self, worker: _Optional[str] = ..., instances: _Optional[_Iterable[_Union[_common_pb2.InstanceInfo, _Mapping]]] = ..., held: _Optional[_Iterable[_Union[HeldTask, _Mapping]]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("worker", "loads")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    loads: _containers.RepeatedCompositeFieldContainer[InstanceLoad]
    def __init__(self, worker: _Optional[str] = ..., loads: _Optional[_Iterable[_Union[InstanceLoad, _Mapping]]] = ...) -> None: ...

class Reported(_message.Message):
    __slots__ = ("ref", "report")
    REF_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ref: _common_pb2.InstanceRef
    report: TaskReport
    def __init__(self, ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., report: _Optional[_Union[TaskReport, _Mapping]] = ...) -> None: ...

class InstanceReset(_message.Message):
    __slots__ = ("worker", "old", "info", "reason")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker: str
    old: _common_pb2.InstanceRef
    info: _common_pb2.InstanceInfo
    reason: str
    def __init__(self, worker: _Optional[str] = ..., old: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., info: _Optional[_Union[_common_pb2.InstanceInfo, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class InstanceLeft(_message.Message):
    __slots__ = ("worker", "ref", "reason")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker: str
    ref: _common_pb2.InstanceRef
    reason: str
    def __init__(self, worker: _Optional[str] = ..., ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class RolesRefused(_message.Message):
    __slots__ = ("worker", "ref", "reason")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker: str
    ref: _common_pb2.InstanceRef
    reason: str
    def __init__(self, worker: _Optional[str] = ..., ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("worker_joined", "heartbeat", "reported", "instance_reset", "leave", "instance_left", "roles_refused")
    WORKER_JOINED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_RESET_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_LEFT_FIELD_NUMBER: _ClassVar[int]
    ROLES_REFUSED_FIELD_NUMBER: _ClassVar[int]
    worker_joined: WorkerJoined
    heartbeat: Heartbeat
    reported: Reported
    instance_reset: InstanceReset
    leave: Leave
    instance_left: InstanceLeft
    roles_refused: RolesRefused
    def __init__(self, worker_joined: _Optional[_Union[WorkerJoined, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., reported: _Optional[_Union[Reported, _Mapping]] = ..., instance_reset: _Optional[_Union[InstanceReset, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., instance_left: _Optional[_Union[InstanceLeft, _Mapping]] = ..., roles_refused: _Optional[_Union[RolesRefused, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("heartbeat_interval",)
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    heartbeat_interval: float
    def __init__(self, heartbeat_interval: _Optional[float] = ...) -> None: ...

class InstanceCommand(_message.Message):
    __slots__ = ("ref", "command")
    REF_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ref: _common_pb2.InstanceRef
    command: TaskCommand
    def __init__(self, ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., command: _Optional[_Union[TaskCommand, _Mapping]] = ...) -> None: ...

class SetRoles(_message.Message):
    __slots__ = ("ref", "roles")
    REF_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    ref: _common_pb2.InstanceRef
    roles: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., roles: _Optional[_Iterable[str]] = ...) -> None: ...

class SetShare(_message.Message):
    __slots__ = ("ref", "prefill_tokens")
    REF_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ref: _common_pb2.InstanceRef
    prefill_tokens: int
    def __init__(self, ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., prefill_tokens: _Optional[int] = ...) -> None: ...

class Retire(_message.Message):
    __slots__ = ("ref", "reason")
    REF_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ref: _common_pb2.InstanceRef
    reason: str
    def __init__(self, ref: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class WorkerCommand(_message.Message):
    __slots__ = ("welcome", "instance_command", "set_roles", "retire", "set_share")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_COMMAND_FIELD_NUMBER: _ClassVar[int]
    SET_ROLES_FIELD_NUMBER: _ClassVar[int]
    RETIRE_FIELD_NUMBER: _ClassVar[int]
    SET_SHARE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    instance_command: InstanceCommand
    set_roles: SetRoles
    retire: Retire
    set_share: SetShare
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., instance_command: _Optional[_Union[InstanceCommand, _Mapping]] = ..., set_roles: _Optional[_Union[SetRoles, _Mapping]] = ..., retire: _Optional[_Union[Retire, _Mapping]] = ..., set_share: _Optional[_Union[SetShare, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("gateway",)
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    def __init__(self, gateway: _Optional[str] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _common_pb2.Request
    def __init__(self, request: _Optional[_Union[_common_pb2.Request, _Mapping]] = ...) -> None: ...

class Declare(_message.Message):
    __slots__ = ("request", "unheard")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    UNHEARD_FIELD_NUMBER: _ClassVar[int]
    request: _common_pb2.Request
    unheard: bool
    def __init__(self, request: _Optional[_Union[_common_pb2.Request, _Mapping]] = ..., unheard: bool = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("request", "samples")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    request: _common_pb2.Request
    samples: _containers.RepeatedCompositeFieldContainer[_common_pb2.SampleState]
    def __init__(self, request: _Optional[_Union[_common_pb2.Request, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[_common_pb2.SampleState, _Mapping]]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request", "reason")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request: str
    reason: str
    def __init__(self, request: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GatewayMessage(_message.Message):
    __slots__ = ("hello", "submit", "cancel", "declare", "resume", "leave")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    DECLARE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    submit: Submit
    cancel: Cancel
    declare: Declare
    resume: Resume
    leave: Leave
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., declare: _Optional[_Union[Declare, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class Directory(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[_common_pb2.InstanceInfo]
    def __init__(self, instances: _Optional[_Iterable[_Union[_common_pb2.InstanceInfo, _Mapping]]] = ...) -> None: ...

class Placed(_message.Message):
    __slots__ = ("request", "prefill", "decode", "queue", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    prefill: _common_pb2.InstanceRef
    decode: _common_pb2.InstanceRef
    queue: float
    attempt: int
    def __init__(self, request: _Optional[str] = ..., prefill: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., decode: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., queue: _Optional[float] = ..., attempt: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("request", "role", "times", "attempt", "encoded")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    request: str
    role: str
    times: _common_pb2.StageTimes
    attempt: int
    encoded: int
    def __init__(self, request: _Optional[str] = ..., role: _Optional[str] = ..., times: _Optional[_Union[_common_pb2.StageTimes, _Mapping]] = ..., attempt: _Optional[int] = ..., encoded: _Optional[int] = ...) -> None: ...

class MediaNeeded(_message.Message):
    __slots__ = ("request", "encode", "address", "items", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    encode: _common_pb2.InstanceRef
    address: str
    items: _containers.RepeatedScalarFieldContainer[int]
    attempt: int
    def __init__(self, request: _Optional[str] = ..., encode: _Optional[_Union[_common_pb2.InstanceRef, _Mapping]] = ..., address: _Optional[str] = ..., items: _Optional[_Iterable[int]] = ..., attempt: _Optional[int] = ...) -> None: ...

class Interrupted(_message.Message):
    __slots__ = ("request", "attempt", "reason")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request: str
    attempt: int
    reason: str
    def __init__(self, request: _Optional[str] = ..., attempt: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("request", "status", "reason", "retry_after")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    request: str
    status: int
    reason: str
    retry_after: float
    def __init__(self, request: _Optional[str] = ..., status: _Optional[int] = ..., reason: _Optional[str] = ..., retry_after: _Optional[float] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("request", "preemptions", "attempt")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request: str
    preemptions: int
    attempt: int
    def __init__(self, request: _Optional[str] = ..., preemptions: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class GatewayNotice(_message.Message):
    __slots__ = ("directory", "placed", "progress", "failed", "completed", "interrupted", "media_needed")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTED_FIELD_NUMBER: _ClassVar[int]
    MEDIA_NEEDED_FIELD_NUMBER: _ClassVar[int]
    directory: Directory
    placed: Placed
    progress: Progress
    failed: Failed
    completed: Completed
    interrupted: Interrupted
    media_needed: MediaNeeded
    def __init__(self, directory: _Optional[_Union[Directory, _Mapping]] = ..., placed: _Optional[_Union[Placed, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., completed: _Optional[_Union[Completed, _Mapping]] = ..., interrupted: _Optional[_Union[Interrupted, _Mapping]] = ..., media_needed: _Optional[_Union[MediaNeeded, _Mapping]] = ...) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterInstance(_message.Message):
    __slots__ = ("info", "load", "heartbeat_age", "tasks", "state")
    INFO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    info: _common_pb2.InstanceInfo
    load: _common_pb2.Load
    heartbeat_age: float
    tasks: int
    state: str
    def __init__(self, info: _Optional[_Union[_common_pb2.InstanceInfo, _Mapping]] = ..., load: _Optional[_Union[_common_pb2.Load, _Mapping]] = ..., heartbeat_age: _Optional[float] = ..., tasks: _Optional[int] = ..., state: _Optional[str] = ...) -> None: ...

class Cluster(_message.Message):
    __slots__ = ("instances", "queued", "active", "counters")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[ClusterInstance]
    queued: int
    active: int
    counters: _containers.ScalarMap[str, int]
    def __init__(self, instances: _Optional[_Iterable[_Union[ClusterInstance, _Mapping]]] = ..., queued: _Optional[int] = ..., active: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("instance", "force")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    force: bool
    def __init__(self, instance: _Optional[str] = ..., force: bool = ...) -> None: ...

class SwitchRoleRequest(_message.Message):
    __slots__ = ("instance", "roles", "force")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    force: bool
    def __init__(self, instance: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., force: bool = ...) -> None: ...

class Drained(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...
