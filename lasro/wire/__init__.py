"""Every message that crosses a process, and how it is written.

    codec       the base of all messages, their field types, JSON and msgpack
    tensors     latents and weights as safetensors, prompts in the header
    registry_fields   what a registered reward may bring, and how much of it
    rewards     registering a reward, asking for scores, and what a reward's endpoint is asked
    groups      the samples of one prompt on their way from the client to the trainer
    surrogate   what the surrogate trainer is asked and answers
    problem     what a refusal says

Nothing here imports torch. Every name is found in `lasro.wire` itself.
"""

from lasro.num_steps import NumSteps
from lasro.wire.codec import (
    MSGPACK_TYPE,
    NAME_PATTERN,
    SAFETENSORS_TYPE,
    SCHEMA_VERSION,
    TIMEOUT_HEADER,
    Blob,
    Fields,
    Finite,
    Message,
    Name,
    from_json,
    from_msgpack,
    to_json,
    to_msgpack,
)
from lasro.wire.groups import (
    GroupAccepted,
    GroupState,
    GroupStatus,
    GroupSubmission,
    ScoredGroup,
)
from lasro.wire.problem import BLANK_TYPE, Problem
from lasro.wire.rewards import (
    OUT_OF_RANGE,
    NativeReply,
    NativeRequest,
    PartialReply,
    ProbeReply,
    Protocol,
    RewardInfo,
    RewardList,
    RewardSpec,
    RewardValue,
    ScoredItem,
    ScoreFields,
    ScoreReply,
    ScoreRequest,
    Status,
    scores_of,
    version_of,
)
from lasro.wire.surrogate import (
    PAIR_KINDS,
    REFERENCE_KINDS,
    AdaptReply,
    AdaptRequest,
    AdaptStatistics,
    KindAccuracy,
    Lease,
    RunList,
    RunStatus,
    SurrogateScoreReply,
    SurrogateScoreRequest,
    VersionInfo,
    VersionList,
)
from lasro.wire.tensors import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    pack_prompts,
    pack_tensors,
    tensor_header,
    unpack_prompts,
    unpack_tensors,
)

__all__ = [
    "BLANK_TYPE",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "MSGPACK_TYPE",
    "NAME_PATTERN",
    "OUT_OF_RANGE",
    "PAIR_KINDS",
    "REFERENCE_KINDS",
    "SAFETENSORS_TYPE",
    "SCHEMA_VERSION",
    "TIMEOUT_HEADER",
    "AdaptReply",
    "AdaptRequest",
    "AdaptStatistics",
    "Blob",
    "Fields",
    "Finite",
    "GroupAccepted",
    "GroupState",
    "GroupStatus",
    "GroupSubmission",
    "KindAccuracy",
    "Lease",
    "Message",
    "Name",
    "NativeReply",
    "NativeRequest",
    "NumSteps",
    "PartialReply",
    "ProbeReply",
    "Problem",
    "Protocol",
    "RewardInfo",
    "RewardList",
    "RewardSpec",
    "RewardValue",
    "RunList",
    "RunStatus",
    "ScoreFields",
    "ScoreReply",
    "ScoreRequest",
    "ScoredGroup",
    "ScoredItem",
    "Status",
    "SurrogateScoreReply",
    "SurrogateScoreRequest",
    "VersionInfo",
    "VersionList",
    "from_json",
    "from_msgpack",
    "pack_prompts",
    "pack_tensors",
    "scores_of",
    "tensor_header",
    "to_json",
    "to_msgpack",
    "unpack_prompts",
    "unpack_tensors",
    "version_of",
]
