from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class AuthorityReply(_message.Message):
    __slots__ = ["authority"]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    authority: bytes
    def __init__(self, authority: _Optional[bytes] = ...) -> None: ...

class AuthorityRequest(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ["certificate", "server"]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    server: str
    def __init__(self, certificate: _Optional[bytes] = ..., server: _Optional[str] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ["name", "secret", "signing_request", "token_id"]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    secret: bytes
    signing_request: bytes
    token_id: bytes
    def __init__(self, token_id: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., name: _Optional[str] = ..., signing_request: _Optional[bytes] = ...) -> None: ...
