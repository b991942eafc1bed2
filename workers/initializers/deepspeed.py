"""DeepSpeed: one model sharded over the ranks of a replica by `deepspeed.init_inference` (AutoTP).

Every rank runs this with its own end of the group, and all do the same collectives in the same order. Facts that shape
it, found with DeepSpeed 0.19.8: its shared-memory all-reduce crashes across nodes and waits for ever for a dead peer,
its tensor-parallel group ignores the timeout of the process group, and by default it converts the model to float16 and
splits layers in steps of 64. Each is set right below; tests show that the settings work.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from model_registry.schema import DeepSpeed, Generation, RegistryEntry, TorchCompile
from workers.errors import LoadError
from workers.group import LeaderGroup, RankGroup
from workers.initializers.base import LoadedModel, Progress
from workers.initializers.causal_lm import (
    build_loaded_model,
    check_attention_seam,
    load_decoder_config,
    load_tokenizer,
    load_weights,
    prepare_process,
)
from workers.runners.tensor_parallel import TensorParallelRunner
from workers.sources import default_cache_dir, fetch_model

DECIDED_ARGUMENTS: Final = {
    "tensor_parallel": "scaling_config.num_workers",
    "mp_size": "scaling_config.num_workers",
    "dtype": "initializer.dtype",
    "replace_with_kernel_inject": "initializer.use_kernel",
    "kernel_inject": "initializer.use_kernel",
    "max_out_tokens": "initializer.max_tokens",
    "max_tokens": "initializer.max_tokens",
    "checkpoint": "initializer.use_meta_tensor",
    "base_dir": "initializer.use_meta_tensor",
    "set_empty_params": "initializer.use_meta_tensor",
    "enable_cuda_graph": "initializer.torch_compile",
    "keep_module_on_host": "scaling_config.num_gpus_per_worker",
}
"""Arguments of `init_inference` that other keys of the registry decide."""


SHARED_WITH_LOADER: Final = ("trust_remote_code", "revision", "token", "local_files_only", "use_safetensors")
"""Of `from_pretrained_kwargs`, those that say which files are loaded, not how."""
KERNELS_NOTE: Final = (
    "use_kernel: compiled by torch.compile, since DeepSpeed's own kernels keep the KV cache of one fixed batch"
)
"""Sequences come and go at every step here, which those kernels cannot do; fused kernels are what was asked for."""
LOAD_TIMEOUT: Final = timedelta(hours=1)
"""How far apart ranks may be while they load; the pool gives the replica up sooner."""


class DeepSpeedInitializer:
    """Loads one rank's share of a model."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group

    def load(self, entry: RegistryEntry, progress: Progress) -> LoadedModel:
        settings = entry.model.initialization.initializer
        if not isinstance(settings, DeepSpeed):
            raise TypeError(f"DeepSpeedInitializer cannot load {settings.type}")
        device = prepare_process(entry, settings)
        deepspeed = _import_deepspeed(device)
        arguments = _inference_arguments(deepspeed, settings, self._group.num_ranks)
        folder = fetch_model(entry.model, default_cache_dir(), progress)
        progress("loading weights")
        model = _empty_model(folder, settings) if settings.use_meta_tensor else load_weights(folder, settings)
        tokenizer = load_tokenizer(folder, model, settings)
        progress(f"sharding over {self._group.num_ranks} ranks")
        if settings.use_meta_tensor:
            arguments |= {"checkpoint": _checkpoint_description(folder), "base_dir": str(folder)}
        process_group = _join_process_group(self._group, device, timedelta(seconds=settings.group_timeout_s))
        model = _shard(deepspeed, model, arguments, process_group).to(device)
        self._group.barrier()
        loaded = build_loaded_model(
            model,
            tokenizer,
            settings.model_copy(update={"torch_compile": _compiler(settings)}),
            _limited(entry.model.generation, settings.max_tokens),
            progress,
            agree_on_blocks=lambda num_blocks: _smallest(num_blocks, device, process_group),
        )
        loaded = replace(loaded, with_sizes=None)  # all ranks would have to agree on when, and on what fits
        if settings.use_kernel:
            loaded = replace(loaded, note="; ".join(part for part in (KERNELS_NOTE, loaded.note) if part))
        if not isinstance(self._group, LeaderGroup):
            return loaded
        return replace(loaded, runner=TensorParallelRunner(loaded.runner, self._group))


def _compiler(settings: DeepSpeed) -> TorchCompile | None:
    """What the model is compiled with: as the file says, or with the defaults where it only asks for kernels."""
    if settings.torch_compile is None and settings.use_kernel:
        return TorchCompile()
    return settings.torch_compile


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed with its shared-memory all-reduce off."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # each rank sees its own GPU only
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise LoadError(
            f"the initializer DeepSpeed needs the package deepspeed ({error}); install aviary[deepspeed] on the nodes, "
            "or name it in initialization.runtime_env"
        ) from error
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _inference_arguments(deepspeed: Any, settings: DeepSpeed, num_ranks: int) -> dict[str, Any]:
    """Arguments of `init_inference`. Raises `LoadError` naming the key of the registry that cannot be passed on."""
    config_class = deepspeed.inference.config.DeepSpeedInferenceConfig
    key = "initializer.ds_inference_kwargs"
    known = {*config_class.model_fields, *(field.alias for field in config_class.model_fields.values())}
    for name in settings.ds_inference_kwargs:
        if name in DECIDED_ARGUMENTS:
            raise LoadError(f"{key}.{name} cannot be set here; {DECIDED_ARGUMENTS[name]} decides it")
        if name not in known:
            raise LoadError(f"{key}.{name} is not an argument of deepspeed.init_inference {deepspeed.__version__}")
    arguments = {
        **settings.ds_inference_kwargs,
        "tensor_parallel": {"tp_size": num_ranks, "tp_grain_size": 1},
        "dtype": getattr(torch, settings.dtype),
        "replace_with_kernel_inject": False,
    }
    try:
        config_class(**arguments)
    except ValidationError as error:
        first = error.errors()[0]
        raise LoadError(f"{key}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return arguments


def _empty_model(folder: Path, settings: DeepSpeed) -> Any:
    """The model without its weights; what the checkpoint does not hold, such as rotary frequencies, is computed."""
    load_decoder_config(folder, settings)
    config, unused = AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **settings.from_pretrained_kwargs)
    for name in unused.keys() - {*SHARED_WITH_LOADER}:
        raise LoadError(f"initializer.from_pretrained_kwargs.{name} cannot be combined with use_meta_tensor")
    trusted = settings.from_pretrained_kwargs.get("trust_remote_code", False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, settings.dtype), trust_remote_code=trusted
        )
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    check_attention_seam(model)
    return model.eval()


def _checkpoint_description(folder: Path) -> dict[str, Any]:
    """What DeepSpeed loads an empty model's weights from."""
    files = sorted(str(path) for path in folder.glob("*.safetensors"))
    if not files:
        raise LoadError(f"use_meta_tensor needs *.safetensors in {folder.name}, and there are none")
    return {"type": "ds_model", "version": 1.0, "checkpoints": files}


def _join_process_group(group: RankGroup, device: torch.device, timeout: timedelta) -> Any:
    """The process group of the model's collectives, in which waiting for a rank ends after `timeout`."""
    interface = _interface_of(group.host)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, interface)
    store = _rendezvous(group)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=group.rank, world_size=group.num_ranks, timeout=LOAD_TIMEOUT)
    return dist.new_group(list(range(group.num_ranks)), timeout=timeout)


def _rendezvous(group: RankGroup) -> Any:
    if isinstance(group, LeaderGroup):
        store = dist.TCPStore(group.host, 0, group.num_ranks, is_master=True, wait_for_workers=False)
        group.broadcast(store.port.to_bytes(4, "little"))
        return store
    port = int.from_bytes(group.receive(), "little")
    return dist.TCPStore(group.leader_host, port, group.num_ranks, is_master=False)


def _interface_of(host: str) -> str:
    """The network interface that has this address: by name, so that a node's own loopback name cannot mislead."""
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return interface
    raise LoadError(f"no network interface of this node has the address {host}")


def _shard(deepspeed: Any, model: Any, arguments: dict[str, Any], process_group: Any) -> Any:
    """This rank's share of the model; `init_inference` would make a group whose timeout is half an hour."""
    deepspeed.inference.engine.InferenceEngine.inference_mp_group = process_group
    deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False)
    sharded = deepspeed.init_inference(model, **arguments).module
    left = [name for name, tensor in (*sharded.named_parameters(), *sharded.named_buffers()) if tensor.is_meta]
    if left:
        raise LoadError(
            f"the checkpoint has no weights for {left[0]} and {len(left) - 1} others; unset use_meta_tensor"
        )
    return sharded


def _smallest(number: int, device: torch.device, process_group: Any) -> int:
    """The smallest of all ranks' numbers."""
    tensor = torch.tensor([number], device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MIN, group=process_group)
    return int(tensor)


def _limited(generation: Generation, max_tokens: int | None) -> Generation:
    if max_tokens is None:
        return generation
    limit = min(max_tokens, generation.max_model_len or max_tokens)
    return generation.model_copy(update={"max_model_len": limit})
