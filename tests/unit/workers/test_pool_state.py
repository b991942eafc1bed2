"""What the pool remembers comes back as it was."""

from __future__ import annotations

import msgspec
import pytest

from model_registry.loader import ZOO, load_registry
from workers.pool.state import PoolOptions, PoolState, Revision, WantedModel, decode_state, encode_state


def test_every_entry_of_the_zoo_survives_being_remembered() -> None:
    entries = load_registry(ZOO).entries.values()
    models = tuple(WantedModel(revisions=(Revision(revision_id="ab", entry=entry),), created=1) for entry in entries)
    state = PoolState(secret="s", options=PoolOptions(load_timeout_s=3), models=models)
    remembered = decode_state(encode_state(state))
    assert remembered == state
    assert [model.entry.deployment.autoscaling_config.model_fields_set for model in remembered.models] == [
        entry.deployment.autoscaling_config.model_fields_set for entry in entries
    ]


def test_the_state_of_another_release_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_state(b'{"secret": 1}')
