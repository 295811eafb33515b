from motley.wire.stubs import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExtendRequest(_message.Message):
    __slots__ = ["rounds", "run"]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    run: str
    def __init__(self, run: _Optional[str] = ..., rounds: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ["round", "run"]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    round: int
    run: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ListClientsRequest(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class Record(_message.Message):
    __slots__ = ["json"]
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class Records(_message.Message):
    __slots__ = ["records"]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ...) -> None: ...

class RunReply(_message.Message):
    __slots__ = ["run_id", "status"]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    status: str
    def __init__(self, run_id: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ["run"]
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ["runfile", "source"]
    RUNFILE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    runfile: str
    source: str
    def __init__(self, runfile: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...
