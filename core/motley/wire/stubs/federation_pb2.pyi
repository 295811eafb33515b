from motley.wire.stubs import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
UPDATE_STATUS_ACCEPTED: UpdateStatus
UPDATE_STATUS_LATE: UpdateStatus
UPDATE_STATUS_SURPLUS: UpdateStatus
UPDATE_STATUS_UNSPECIFIED: UpdateStatus

class CheckInReply(_message.Message):
    __slots__ = ["notices", "retry_after_seconds", "server_software", "task", "working_on_is_closed"]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    WORKING_ON_IS_CLOSED_FIELD_NUMBER: _ClassVar[int]
    notices: _containers.RepeatedScalarFieldContainer[str]
    retry_after_seconds: float
    server_software: str
    task: _common_pb2.Task
    working_on_is_closed: bool
    def __init__(self, task: _Optional[_Union[_common_pb2.Task, _Mapping]] = ..., retry_after_seconds: _Optional[float] = ..., server_software: _Optional[str] = ..., working_on_is_closed: bool = ..., notices: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckInRequest(_message.Message):
    __slots__ = ["capabilities", "leaving", "name", "profile", "session", "working_on"]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WORKING_ON_FIELD_NUMBER: _ClassVar[int]
    capabilities: _common_pb2.Capabilities
    leaving: bool
    name: str
    profile: _common_pb2.DeviceProfile
    session: str
    working_on: str
    def __init__(self, name: _Optional[str] = ..., session: _Optional[str] = ..., capabilities: _Optional[_Union[_common_pb2.Capabilities, _Mapping]] = ..., profile: _Optional[_Union[_common_pb2.DeviceProfile, _Mapping]] = ..., working_on: _Optional[str] = ..., leaving: bool = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ["frame_bytes", "name", "offset", "session", "sha256", "task_id"]
    FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    frame_bytes: int
    name: str
    offset: int
    session: str
    sha256: bytes
    task_id: str
    def __init__(self, name: _Optional[str] = ..., session: _Optional[str] = ..., task_id: _Optional[str] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ..., frame_bytes: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ["code", "message", "permanent"]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    permanent: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., permanent: bool = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ["duplicate", "status", "task_id"]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    duplicate: bool
    status: UpdateStatus
    task_id: str
    def __init__(self, task_id: _Optional[str] = ..., status: _Optional[_Union[UpdateStatus, str]] = ..., duplicate: bool = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ["authority", "certificate"]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    authority: bytes
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., authority: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ["signing_request"]
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    signing_request: bytes
    def __init__(self, signing_request: _Optional[bytes] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ["duplicate"]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    duplicate: bool
    def __init__(self, duplicate: bool = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ["failure", "name", "result", "session", "task_id"]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    failure: Failure
    name: str
    result: Result
    session: str
    task_id: str
    def __init__(self, name: _Optional[str] = ..., session: _Optional[str] = ..., task_id: _Optional[str] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ["metrics", "seconds"]
    class MetricsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.ScalarMap[str, float]
    seconds: float
    def __init__(self, metrics: _Optional[_Mapping[str, float]] = ..., seconds: _Optional[float] = ...) -> None: ...

class UploadMessage(_message.Message):
    __slots__ = ["frame", "open"]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    frame: _common_pb2.Frame
    open: UploadOpen
    def __init__(self, open: _Optional[_Union[UploadOpen, _Mapping]] = ..., frame: _Optional[_Union[_common_pb2.Frame, _Mapping]] = ...) -> None: ...

class UploadOpen(_message.Message):
    __slots__ = ["metrics", "name", "payload", "restarted", "samples", "session", "task_id", "train_seconds"]
    class MetricsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    METRICS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RESTARTED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.ScalarMap[str, float]
    name: str
    payload: _common_pb2.PayloadRef
    restarted: bool
    samples: int
    session: str
    task_id: str
    train_seconds: float
    def __init__(self, name: _Optional[str] = ..., session: _Optional[str] = ..., task_id: _Optional[str] = ..., payload: _Optional[_Union[_common_pb2.PayloadRef, _Mapping]] = ..., samples: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., train_seconds: _Optional[float] = ..., restarted: bool = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ["acknowledged", "queued", "receipt"]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    acknowledged: int
    queued: int
    receipt: Receipt
    def __init__(self, acknowledged: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., queued: _Optional[int] = ...) -> None: ...

class UpdateStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
