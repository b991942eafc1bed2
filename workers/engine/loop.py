"""The thread that drives an engine, and the way in and out of it for everybody else.

Requests are tokenized in a small pool of their own, so neither the event loop nor a running step waits for a long
prompt; what asks for tokens only has a thread to itself, since no context bounds its prompts. The engine thread sleeps
until there is work, applies what arrived, steps, and hands over one frame per step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from model_registry.contract import (
    Detokenize,
    Embed,
    Fault,
    FaultKind,
    Frame,
    Generate,
    GenerationRequest,
    RequestFaultError,
    SequenceOutput,
    Tokenize,
    WorkerStatus,
)
from workers.engine.embeddings import NO_FAULT_DETAILS, PreparedEmbedding
from workers.engine.engine import Engine, EngineLimits, EngineSizes
from workers.engine.sequence import Sequence
from workers.errors import LoadError

logger = logging.getLogger(__name__)

NUM_TOKENIZER_THREADS = 2

Prepared = Sequence | PreparedEmbedding | SequenceOutput
"""A request as the engine thread takes it over: with work left, or with its end."""


@dataclass(frozen=True, slots=True)
class _Resizing:
    """How other sizes are found, and who is told what came of it."""

    plan: Callable[[], EngineSizes]
    on_done: Callable[[EngineLimits, LoadError | None], None]


@dataclass(slots=True)
class _Inbox:
    """What arrived since the engine thread last looked, in order of arrival."""

    prepared: list[Sequence | PreparedEmbedding] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    outputs: list[SequenceOutput] = field(default_factory=list)
    """Of requests that never became sequences: faults, and what the tokenizer alone answers."""
    resizing: _Resizing | None = None

    def __bool__(self) -> bool:
        return bool(self.prepared or self.aborted or self.outputs or self.resizing)

    def add(self, prepared: Prepared) -> None:
        """What became of a request on a tokenizer thread."""
        if isinstance(prepared, SequenceOutput):
            self.outputs.append(prepared)
        else:
            self.prepared.append(prepared)


class EngineLoop:
    """Runs an engine on its own thread. `submit`, `abort` and `status` may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        on_frame: Callable[[Frame], None],
        on_crash: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`on_frame` is called on the engine thread; `on_crash` once, there, if the engine itself fails."""
        self._engine = engine
        self._on_frame = on_frame
        self._on_crash = on_crash
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._tokenizers = ThreadPoolExecutor(NUM_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self._answerer = ThreadPoolExecutor(1, thread_name_prefix="answerer")
        """For what the tokenizer alone answers."""
        self._changed = threading.Condition()
        self._inbox = _Inbox()
        self._resizing: tuple[_Resizing, EngineSizes] | None = None
        """What the engine thread will do once every sequence fits."""
        self._preparing: set[str] = set()
        self._stopping = False
        self._status = engine.status()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread after its current step; unfinished sequences are dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        for pool in (self._tokenizers, self._answerer):
            pool.shutdown(wait=False, cancel_futures=True)
        self._thread.join(timeout_s)

    def submit(self, requests: Iterable[GenerationRequest]) -> None:
        """Queue requests; every outcome, also a fault, arrives in a frame."""
        for request in requests:
            with self._changed:
                self._preparing.add(request.request_id)
            pool = self._answerer if isinstance(request.task, Tokenize | Detokenize) else self._tokenizers
            pool.submit(self._prepare, request)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests, whatever they are doing; nothing more is emitted for them after the current step."""
        aborted = tuple(request_ids)
        with self._changed:
            self._preparing.difference_update(aborted)
            self._inbox.aborted.extend(aborted)
            self._changed.notify()

    def limit_input(self, max_input_tokens: int | None) -> None:
        """Another limit on the prompts of requests that come from now on."""
        self._engine.limit_input(max_input_tokens)

    def resize(
        self, plan: Callable[[], EngineSizes], on_done: Callable[[EngineLimits, LoadError | None], None]
    ) -> None:
        """Have the engine `resize` to what `plan` finds, as soon as every sequence fits; new ones must at once.

        Both are called on the engine thread: `plan` soon, and may raise `LoadError`; `on_done` at the end, with the
        limits that hold now, and the error if the engine went on as it was. A later call takes the place of one that
        still waits, which is not told.
        """
        with self._changed:
            self._inbox.resizing = _Resizing(plan, on_done)
            self._changed.notify()

    def status(self) -> WorkerStatus:
        """The load as of the last step."""
        return self._status

    def _prepare(self, request: GenerationRequest) -> None:
        """On a tokenizer thread: a request becomes a sequence, its answer, or a fault."""
        with self._changed:
            if request.request_id not in self._preparing:
                return  # aborted while it waited for its turn
        try:
            prepared = self._prepared(request)
        except RequestFaultError as error:
            prepared = SequenceOutput(request_id=request.request_id, fault=error.fault)
        except Exception:
            logger.exception("request %s could not be prepared", request.request_id)
            fault = Fault(kind=FaultKind.ENGINE_FAULT, message=NO_FAULT_DETAILS)
            prepared = SequenceOutput(request_id=request.request_id, fault=fault)
        with self._changed:
            if request.request_id not in self._preparing:
                return  # aborted meanwhile
            self._preparing.remove(request.request_id)
            self._inbox.add(prepared)
            self._changed.notify()

    def _prepared(self, request: GenerationRequest) -> Prepared:
        match request.task:
            case Generate():
                return self._engine.prepare(request)
            case Embed() as task:
                return self._engine.prepare_embedding(request, task)
            case task:
                return self._engine.answer(request, task)

    def _main(self) -> None:
        try:
            while (inbox := self._wait_for_work()) is not None:
                outputs = self._apply(inbox)
                # Published before the step too: whoever judges health by progress must see work that never steps.
                self._status = self._engine.status()
                outputs += self._engine.step()
                self._status = self._engine.status()
                self._on_frame(Frame(outputs=tuple(outputs), status=self._status))
                self._resize_if_all_fit()
        except BaseException as error:
            logger.exception("the engine failed")
            if self._on_crash is None:
                raise
            self._on_crash(error)

    def _wait_for_work(self) -> _Inbox | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._inbox or self._engine.has_work)
            if self._stopping:
                return None
            inbox, self._inbox = self._inbox, _Inbox()
            return inbox

    def _apply(self, inbox: _Inbox) -> list[SequenceOutput]:
        """Bring arrivals into the engine; returns the outputs of requests that failed on the way."""
        outputs = inbox.outputs
        if inbox.resizing is not None:
            self._plan(inbox.resizing)
        for prepared in inbox.prepared:
            try:
                self._submit(prepared)
            except RequestFaultError as error:
                outputs.append(SequenceOutput(request_id=prepared.request_id, fault=error.fault))
        for request_id in inbox.aborted:
            self._engine.abort(request_id)
        return outputs

    def _submit(self, prepared: Sequence | PreparedEmbedding) -> None:
        if isinstance(prepared, Sequence):
            self._engine.submit(prepared)
        else:
            self._engine.submit_embedding(prepared)

    def _plan(self, resizing: _Resizing) -> None:
        """Find the sizes, and hold whatever comes from now on to them; an earlier plan is given up."""
        self._resizing = None
        try:
            sizes = resizing.plan()
        except LoadError as error:
            self._engine.expect(self._engine.limits)
            self._tell(resizing, error)
        else:
            self._engine.expect(sizes.limits)
            self._resizing = resizing, sizes

    def _resize_if_all_fit(self) -> None:
        if self._resizing is None:
            return
        resizing, sizes = self._resizing
        if not self._engine.fits(sizes.limits):
            return
        self._resizing = None
        try:
            self._engine.resize(sizes)
        except LoadError as error:
            self._tell(resizing, error)
        else:
            self._tell(resizing, None)

    def _tell(self, resizing: _Resizing, error: LoadError | None) -> None:
        if error is not None:
            logger.warning("the engine keeps its sizes: %s", error)
        resizing.on_done(self._engine.limits, error)
