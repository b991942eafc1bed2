"""Files and batches as /v1/files and /v1/batches have them: the stores' errors become the client's.

Without a folder there are none, and whoever asks hears what to set. Used by the routes; `batch_runner` is told of what
there is to do, and does it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway import batch_store, file_store, line_store
from gateway.batch_states import ForbiddenChangeError
from gateway.batch_store import BatchStore, TooManyBatchesError
from gateway.errors import (
    BatchNotFoundError,
    FileMissingError,
    FilesClosedError,
    InvalidRequestError,
    QueueFullError,
    ServerError,
)
from gateway.file_store import FileInUseError, FileStore, NoRoomError
from gateway.line_store import LineStore
from gateway.protocol.batches import Batch, BatchList, BatchListQuery, BatchRequest
from gateway.protocol.files import PURPOSE, FileList, FileListQuery, FileObject, UploadFields, safe_name
from gateway.store_file import StoreError, StoreFile

logger = logging.getLogger(__name__)

COMPLETION_WINDOW_S: Final = 24 * 3600
_VERSION: Final = 1
"""Of the tables."""
_RETRY_S: Final = 60.0


class OfflineStores:
    """One folder. Everything but the constructor may raise `StoreError`."""

    def __init__(self, folder: Path, *, max_bytes: int, keep_s: float, clock: Callable[[], float] = time.time) -> None:
        """`clock` is the same in all processes that share the folder."""
        tables = file_store.TABLES + batch_store.TABLES + line_store.TABLES
        self._folder = folder
        self._database = StoreFile(folder / "files.db", tables, version=_VERSION, name="file-store")
        self.files = FileStore(folder / "content", self._database, max_bytes=max_bytes, keep_s=keep_s, clock=clock)
        self.batches = BatchStore(self._database, self.files, keep_s=keep_s, clock=clock)
        self.lines = LineStore(self._database, self.batches)

    async def open(self) -> None:
        await self._database.beside(self._make_folders)
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    def _make_folders(self) -> None:
        self._folder.mkdir(mode=file_store.FOLDER_MODE, exist_ok=True)
        self.files.make_folder()


class Offline:
    """In front of the stores, or of none."""

    def __init__(self, stores: OfflineStores | None, *, on_work: Callable[[], None]) -> None:
        """`on_work` is called when a batch has come or is to be cancelled."""
        self._stores = stores
        self._on_work = on_work

    # Files. All may raise `ApiError`.

    def check_open(self) -> None:
        """Before a body is read for nothing."""
        if self._stores is None:
            raise FilesClosedError

    async def upload(self, content: AsyncIterable[bytes], name: str, fields: UploadFields) -> FileObject:
        with _faults_told():
            try:
                return await self._open.files.add(
                    content,
                    filename=safe_name(name),
                    purpose=PURPOSE,
                    expires_after_s=fields.expires_after.seconds if fields.expires_after else None,
                )
            except NoRoomError:
                raise InvalidRequestError(
                    "There is no room for this file beside those that are kept. Delete some of them.",
                    param="file",
                    code="storage_limit_exceeded",
                ) from None

    async def file(self, file_id: str) -> FileObject:
        with _faults_told():
            found = await self._open.files.get(file_id)
        if found is None:
            raise FileMissingError(file_id)
        return found

    async def content(self, file_id: str) -> tuple[FileObject, Path]:
        """The file, and where its content is."""
        found = await self.file(file_id)
        return found, self._open.files.path(file_id)

    async def delete_file(self, file_id: str) -> None:
        with _faults_told():
            try:
                was_there = await self._open.files.delete(file_id)
            except FileInUseError as error:
                raise InvalidRequestError(
                    f"The file is the input of '{error.batch_id}', which is not over. Cancel that first, or wait.",
                    param="id",
                    code="file_in_use",
                ) from None
        if not was_there:
            raise FileMissingError(file_id)

    async def list_files(self, query: FileListQuery) -> FileList:
        with _faults_told():
            page = await self._open.files.page(
                after=query.after, limit=query.limit, newest_first=query.order == "desc", purpose=query.purpose
            )
        if page is None:
            raise _no_such_cursor("file")
        files, has_more = page
        first, last = (files[0].id, files[-1].id) if files else (None, None)
        return FileList(data=tuple(files), first_id=first, last_id=last, has_more=has_more)

    # Batches. All may raise `ApiError`.

    async def create(self, request: BatchRequest) -> Batch:
        now = int(time.time())
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            completion_window=request.completion_window,
            created_at=now,
            expires_at=now + COMPLETION_WINDOW_S,
            metadata=request.metadata,
        )
        expires_after = request.output_expires_after
        with _faults_told():
            try:
                is_created = await self._open.batches.create(
                    batch, output_expires_s=expires_after.seconds if expires_after else None
                )
            except TooManyBatchesError:
                raise QueueFullError(
                    f"There are {batch_store.MAX_ACTIVE} batches that are not over. Please retry your request later.",
                    retry_after_s=_RETRY_S,
                ) from None
        if not is_created:
            raise FileMissingError(request.input_file_id, param="input_file_id")
        self._on_work()
        return batch

    async def batch(self, batch_id: str) -> Batch:
        with _faults_told():
            found = await self._open.batches.get(batch_id)
        if found is None:
            raise BatchNotFoundError(batch_id)
        return found

    async def cancel(self, batch_id: str) -> Batch:
        with _faults_told():
            try:
                cancelled = await self._open.batches.cancel(batch_id)
            except ForbiddenChangeError:
                now = await self.batch(batch_id)
                raise InvalidRequestError(
                    f"Cannot cancel a batch with status '{now.status}'.", param="batch_id", code="invalid_value"
                ) from None
        if cancelled is None:
            raise BatchNotFoundError(batch_id)
        self._on_work()
        return cancelled

    async def list_batches(self, query: BatchListQuery) -> BatchList:
        with _faults_told():
            page = await self._open.batches.page(after=query.after, limit=query.limit)
        if page is None:
            raise _no_such_cursor("batch")
        batches, has_more = page
        first, last = (batches[0].id, batches[-1].id) if batches else (None, None)
        return BatchList(data=tuple(batches), first_id=first, last_id=last, has_more=has_more)

    @property
    def _open(self) -> OfflineStores:
        if self._stores is None:
            raise FilesClosedError
        return self._stores


def _no_such_cursor(kind: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid 'after': no {kind} has that id.", param="after", code="invalid_value")


@contextmanager
def _faults_told() -> Iterator[None]:
    """A store that fails is our fault, whose details go into the log."""
    try:
        yield
    except StoreError as error:
        logger.error("files and batches cannot be reached: %s", error)  # noqa: TRY400  its traceback tells no more
        raise ServerError from error
