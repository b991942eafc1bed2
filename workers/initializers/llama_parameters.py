"""`model_init_kwargs` as llama.cpp's parameters: one table of what is honoured, one of what is refused and why.

Names and meanings are those of llama-cpp-python's `Llama`. Pure: the numbers of llama.cpp's enumerations stand here, so
that nothing needs the library to be checked. Called by the LlamaCpp initializer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from workers.errors import LoadError

KEY: Final = "model_config.initialization.initializer.model_init_kwargs"

_SPLIT_MODES: Final = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
_ROPE_SCALING_TYPES: Final = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
_FLASH_ATTENTION: Final = {"auto": -1, False: 0, True: 1}
_KV_TYPES: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
_NUMA_STRATEGIES: Final = {False: 0, True: 1, "disabled": 0, "distribute": 1, "isolate": 2, "numactl": 3, "mirror": 4}

REFUSED: Final[Mapping[str, str]] = {
    "attention_type": "the file says whether its model is an encoder; remove it",
    "chat_format": "set generation.prompt_format instead; without it the file's own chat template is used",
    "chat_handler": "cannot be given in YAML; images and tools are not supported",
    "draft_model": "speculative decoding is not supported; remove it",
    "embedding": "every model makes embeddings; remove it",
    "kv_overrides": "rewrite the file's metadata instead, with gguf-set-metadata of the package gguf",
    "last_n_tokens_size": "penalties look at the whole text; remove it",
    "logits_all": "logits are computed where they are needed; remove it",
    "lora_base": "LoRA adapters are not supported; merge the adapter into the model",
    "lora_path": "LoRA adapters are not supported; merge the adapter into the model",
    "lora_scale": "LoRA adapters are not supported; merge the adapter into the model",
    "model_path": "set initializer.model_filename instead",
    "n_seq_max": "follows from generation.max_batch_size; set that instead",
    "pooling_type": "set model_config.embedding.pooling instead",
    "seed": "seeds are per request: a request's own `seed`, or a random one",
    "spm_infill": "infilling is not supported; remove it",
    "swa_full": "the sliding-window cache is always kept whole, for prefixes to be reused; remove it",
    "tokenizer": "the file's own tokenizer is always used; remove it",
    "vocab_only": "a model without weights cannot generate; remove it",
}
"""Key → what to do instead."""


@dataclass(slots=True)
class LlamaParameters:
    """Fields of llama.cpp's structs to set, by their names there; what is absent keeps llama.cpp's default."""

    model: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    tensor_split: list[float] = field(default_factory=list)
    use_mmap: bool = True
    use_mlock: bool = False
    numa: int = 0
    verbose: bool = False

    @property
    def load_mode(self) -> int:
        """`llama_load_mode`: 0 none, 1 mmap, 2 mlock, 3 both."""
        return int(self.use_mmap) + 2 * int(self.use_mlock)

    @property
    def changes_rope(self) -> bool:
        """Whether positions mean something else than the file says, so that its context length does not bind."""
        return any(name.startswith(("rope_", "yarn_")) for name in self.context)


def parse_parameters(kwargs: Mapping[str, Any]) -> LlamaParameters:
    """Raises `LoadError` that names the first key which is unknown, refused or of another type."""
    parameters = LlamaParameters()
    for name, value in kwargs.items():
        if name in REFUSED:
            raise LoadError(f"{KEY}.{name} is not executed; {REFUSED[name]}")
        if name not in HONOURED:
            raise LoadError(f"{KEY}.{name} is unknown; known are {', '.join(sorted(HONOURED))}")
        HONOURED[name](parameters, name, value)
    return parameters


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number")
    return value


def _positive(value: object) -> int:
    if _whole(value) < 1:
        raise ValueError("a whole number above 0")
    return _whole(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _shares(value: object) -> list[float]:
    if not isinstance(value, list) or not value:
        raise TypeError("a list of numbers")
    return [_number(item) for item in value]


def _one_of(choices: Mapping[Any, int]) -> Callable[[object], int]:
    """One of these names, or its number as llama-cpp-python's constants have it."""
    numbers = {number for choice, number in choices.items() if isinstance(choice, str)}

    def parse(value: object) -> int:
        if isinstance(value, bool | str) and value in choices:
            return choices[value]
        if not isinstance(value, bool) and isinstance(value, int) and value in numbers:
            return value
        raise ValueError(f"one of {', '.join(str(choice).lower() for choice in choices)}")

    return parse


_Setter = Callable[[LlamaParameters, str, object], None]


def _setter(parse: Callable[[object], Any], store: Callable[[LlamaParameters, str, Any], None]) -> _Setter:
    def set_value(parameters: LlamaParameters, name: str, value: object) -> None:
        try:
            store(parameters, name, parse(value))
        except (TypeError, ValueError) as error:
            raise LoadError(f"{KEY}.{name} is {value!r}, expected {error}") from None

    return set_value


def _model(parse: Callable[[object], Any]) -> _Setter:
    """A field of `llama_model_params` of the same name."""
    return _setter(parse, lambda parameters, name, value: parameters.model.update({name: value}))


def _context(parse: Callable[[object], Any], name_there: str | None = None) -> _Setter:
    """A field of `llama_context_params`."""
    return _setter(parse, lambda parameters, name, value: parameters.context.update({name_there or name: value}))


def _own(parse: Callable[[object], Any]) -> _Setter:
    """A field of `LlamaParameters`, which the initializer acts on."""
    return _setter(parse, setattr)


HONOURED: Final[Mapping[str, _Setter]] = {
    "n_gpu_layers": _model(_whole),
    "split_mode": _model(_one_of(_SPLIT_MODES)),
    "main_gpu": _model(_whole),
    "tensor_split": _own(_shares),
    "use_mmap": _own(_flag),
    "use_mlock": _own(_flag),
    "numa": _own(_one_of(_NUMA_STRATEGIES)),
    "verbose": _own(_flag),
    "n_ctx": _context(_positive),
    "n_batch": _context(_positive),
    "n_ubatch": _context(_positive),
    "n_threads": _context(_positive),
    "n_threads_batch": _context(_positive),
    "flash_attn": _context(_one_of(_FLASH_ATTENTION), "flash_attn_type"),
    "type_k": _context(_one_of(_KV_TYPES)),
    "type_v": _context(_one_of(_KV_TYPES)),
    "offload_kqv": _context(_flag),
    "op_offload": _context(_flag),
    "no_perf": _context(_flag),
    "rope_scaling_type": _context(_one_of(_ROPE_SCALING_TYPES)),
    "rope_freq_base": _context(_number),
    "rope_freq_scale": _context(_number),
    "yarn_ext_factor": _context(_number),
    "yarn_attn_factor": _context(_number),
    "yarn_beta_fast": _context(_number),
    "yarn_beta_slow": _context(_number),
    "yarn_orig_ctx": _context(_positive),
}
"""Key → how it is read and where it goes."""
