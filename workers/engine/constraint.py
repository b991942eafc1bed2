"""The seam between what a text must be and which tokens may come next, as the engine sees it. Knows no library."""

from __future__ import annotations

from typing import Protocol

from model_registry.contract import Constraint


class TokenConstraint(Protocol):
    """What one sequence may still generate. Changes with every token of it; used by one thread at a time."""

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end a sequence; `mask` allows them where the text is complete as it is."""

    @property
    def is_complete(self) -> bool:
        """The text is what was asked for, and nothing can follow."""

    def mask(self) -> bytes:
        """A bit per token of the vocabulary, lowest bit of a byte first: whether it may come next.

        Raises `RequestFaultError` when the sequence has taken more work than it may.
        """

    def accept(self, token_id: int) -> None:
        """The next token, one that `mask` allowed."""


class ConstraintCompiler(Protocol):
    """Makes constraints for one vocabulary. Called from several threads at once."""

    def compile(self, constraint: Constraint) -> TokenConstraint:
        """Raises `RequestFaultError` that says what is wrong with the constraint."""
