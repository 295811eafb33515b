from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
TASK_KIND_EVALUATE: TaskKind
TASK_KIND_FINISH: TaskKind
TASK_KIND_TRAIN: TaskKind
TASK_KIND_UNSPECIFIED: TaskKind

class Capabilities(_message.Message):
    __slots__ = ["algorithms", "encodings", "protocol", "software", "wire", "workloads"]
    class AlgorithmsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class WorkloadsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ALGORITHMS_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    algorithms: _containers.ScalarMap[str, int]
    encodings: _containers.RepeatedScalarFieldContainer[str]
    protocol: int
    software: str
    wire: int
    workloads: _containers.ScalarMap[str, int]
    def __init__(self, protocol: _Optional[int] = ..., wire: _Optional[int] = ..., algorithms: _Optional[_Mapping[str, int]] = ..., workloads: _Optional[_Mapping[str, int]] = ..., encodings: _Optional[_Iterable[str]] = ..., software: _Optional[str] = ...) -> None: ...

class DeviceProfile(_message.Message):
    __slots__ = ["accelerator", "architecture", "cores", "download_bytes_per_second", "labels", "libraries", "memory_bytes", "probe_gflops", "storage_free_bytes", "threads", "tier", "upload_bytes_per_second"]
    class LabelsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LibrariesEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LIBRARIES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBE_GFLOPS_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    accelerator: str
    architecture: str
    cores: int
    download_bytes_per_second: float
    labels: _containers.ScalarMap[str, str]
    libraries: _containers.ScalarMap[str, str]
    memory_bytes: int
    probe_gflops: float
    storage_free_bytes: int
    threads: int
    tier: str
    upload_bytes_per_second: float
    def __init__(self, cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., storage_free_bytes: _Optional[int] = ..., accelerator: _Optional[str] = ..., architecture: _Optional[str] = ..., probe_gflops: _Optional[float] = ..., download_bytes_per_second: _Optional[float] = ..., upload_bytes_per_second: _Optional[float] = ..., threads: _Optional[int] = ..., tier: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., libraries: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ["crc32", "data", "offset"]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    crc32: int
    data: bytes
    offset: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32: _Optional[int] = ...) -> None: ...

class PayloadRef(_message.Message):
    __slots__ = ["sha256", "size"]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    size: int
    def __init__(self, sha256: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ["bits", "down_bits", "iteration", "iterations", "layout", "settings", "sparsity", "tail_bits", "up_bits", "upload", "variant"]
    class BitsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class SettingsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Scalar
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Scalar, _Mapping]] = ...) -> None: ...
    BITS_FIELD_NUMBER: _ClassVar[int]
    DOWN_BITS_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    SPARSITY_FIELD_NUMBER: _ClassVar[int]
    TAIL_BITS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    UP_BITS_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    bits: _containers.ScalarMap[str, int]
    down_bits: int
    iteration: int
    iterations: int
    layout: str
    settings: _containers.MessageMap[str, Scalar]
    sparsity: Sparsity
    tail_bits: int
    up_bits: int
    upload: _containers.RepeatedScalarFieldContainer[str]
    variant: str
    def __init__(self, variant: _Optional[str] = ..., bits: _Optional[_Mapping[str, int]] = ..., upload: _Optional[_Iterable[str]] = ..., settings: _Optional[_Mapping[str, Scalar]] = ..., up_bits: _Optional[int] = ..., down_bits: _Optional[int] = ..., iteration: _Optional[int] = ..., iterations: _Optional[int] = ..., layout: _Optional[str] = ..., tail_bits: _Optional[int] = ..., sparsity: _Optional[_Union[Sparsity, _Mapping]] = ...) -> None: ...

class Scalar(_message.Message):
    __slots__ = ["boolean", "integer", "real", "text"]
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    boolean: bool
    integer: int
    real: float
    text: str
    def __init__(self, boolean: bool = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class Sparsity(_message.Message):
    __slots__ = ["down_keep", "down_rule", "final", "final_stays", "up_keep", "up_rule"]
    DOWN_KEEP_FIELD_NUMBER: _ClassVar[int]
    DOWN_RULE_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    FINAL_STAYS_FIELD_NUMBER: _ClassVar[int]
    UP_KEEP_FIELD_NUMBER: _ClassVar[int]
    UP_RULE_FIELD_NUMBER: _ClassVar[int]
    down_keep: float
    down_rule: str
    final: str
    final_stays: bool
    up_keep: float
    up_rule: str
    def __init__(self, final: _Optional[str] = ..., final_stays: bool = ..., down_keep: _Optional[float] = ..., down_rule: _Optional[str] = ..., up_keep: _Optional[float] = ..., up_rule: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ["algorithm", "attempt", "base_version", "fresh_if_lost", "global_variant", "kind", "payload", "plan", "round", "rounds", "run_id", "run_name", "run_seed", "seconds_left", "subject", "task_id", "threads", "workload", "workload_arguments"]
    class WorkloadArgumentsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Scalar
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Scalar, _Mapping]] = ...) -> None: ...
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FRESH_IF_LOST_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_VARIANT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_SEED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    algorithm: str
    attempt: int
    base_version: str
    fresh_if_lost: bool
    global_variant: str
    kind: TaskKind
    payload: PayloadRef
    plan: Plan
    round: int
    rounds: int
    run_id: str
    run_name: str
    run_seed: int
    seconds_left: float
    subject: str
    task_id: str
    threads: int
    workload: str
    workload_arguments: _containers.MessageMap[str, Scalar]
    def __init__(self, task_id: _Optional[str] = ..., kind: _Optional[_Union[TaskKind, str]] = ..., run_id: _Optional[str] = ..., run_name: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., attempt: _Optional[int] = ..., algorithm: _Optional[str] = ..., workload: _Optional[str] = ..., workload_arguments: _Optional[_Mapping[str, Scalar]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., run_seed: _Optional[int] = ..., payload: _Optional[_Union[PayloadRef, _Mapping]] = ..., base_version: _Optional[str] = ..., fresh_if_lost: bool = ..., seconds_left: _Optional[float] = ..., subject: _Optional[str] = ..., global_variant: _Optional[str] = ..., threads: _Optional[int] = ...) -> None: ...

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
