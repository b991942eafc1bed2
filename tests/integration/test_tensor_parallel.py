"""DeepSpeed over real ranks, each a process that talks gloo: equal to the unsharded model, and really sharded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tensor_parallel_group import assert_equals_unsharded, greedily, prompts, run_group
from workers.initializers.deepspeed import KERNELS_NOTE

pytestmark = pytest.mark.timeout(300)


def test_two_ranks_equal_the_unsharded_real_model_although_its_heads_do_not_divide(
    smollm2: Path, tmp_path: Path
) -> None:
    token_ids = prompts(49152)
    group = run_group(smollm2, 2, tmp_path, greedily(token_ids))
    assert_equals_unsharded(group, smollm2, token_ids)
    # Nine query heads of 64 on three key heads: two thirds of them on one rank.
    assert [shapes["q"] for shapes in group.shapes] == [[384, 576], [192, 576]]
    assert [shapes["k"] for shapes in group.shapes] == [[128, 576], [64, 576]]
    assert [shapes["down"] for shapes in group.shapes] == [[576, 768], [576, 768]]


def test_ranks_that_load_their_share_from_the_checkpoint_equal_the_unsharded_model(
    tiny_llama: Path, tmp_path: Path
) -> None:
    token_ids = prompts(320)
    group = run_group(tiny_llama, 2, tmp_path, greedily(token_ids), use_meta_tensor=True)
    assert_equals_unsharded(group, tiny_llama, token_ids)
    assert [shapes["q"] for shapes in group.shapes] == [[32, 64], [32, 64]]
    assert [shapes["o"] for shapes in group.shapes] == [[64, 32], [64, 32]]


def test_kernels_are_compiled_on_every_rank_and_whose_they_are_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    token_ids = prompts(320)
    quick = {"backend": "aot_eager"}  # without inductor's minutes
    requests = greedily(token_ids)
    group = run_group(tiny_llama, 2, tmp_path, requests, max_batch_tokens=16, use_kernel=True, torch_compile=quick)
    assert group.forwards == ["CompiledForward", "CompiledForward"]
    assert group.notes == [KERNELS_NOTE, KERNELS_NOTE]
    assert_equals_unsharded(group, tiny_llama, token_ids)
