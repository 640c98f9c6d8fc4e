"""Files on the disk: written as they come, counted and hashed on the way, whole or not at all.

A body goes to the disk in pieces, so neither its size nor how slowly it comes holds memory; the size is refused by
``Content-Length`` before the first byte, and while reading where that is not said or not true. The name on the disk is ours;
what the client calls the file is shown and nothing else, but for its ending, one of a few, which says how rows are read.

Refused: Starlette's own form parser, which puts a file of any size into ``/tmp`` before anybody is asked.
"""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from tunesmith.formatting import gb, parse_amount
from tunesmith.rundir import free_bytes, sha256_file
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.jobs.settings import Quotas
from tunesmith.serve.jobs.store import StoredFile

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
TEMPORARY = ".upload-"
PIECE = 1 << 20  # bytes between two writes
MOST_OF_FORM = 1 << 16  # bytes of a body beside its file
LEFT = 3600.0  # seconds after which a file that is on no record is nobody's
NAME = 255  # characters of a file's name


@dataclass
class Upload:
    """A body of ``multipart/form-data`` that is being read.

    Attributes:
        path: where it lies, for the time being.
        limit: bytes of the file at most.
        filename: of the part ``file``; None where there is none.
        size: its bytes so far.
        sha256: of it, at the end.
        fields: parts that are no file, by name.
    """

    path: Path
    limit: int
    filename: str | None = None
    size: int = 0
    sha256: str = ""
    fields: dict[str, str] = field(default_factory=dict[str, str])

    async def read(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        """Read a body to its end.

        Raises:
            ApiError: 400, no such form; 413, too large.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or boundary is None:
            raise ApiError(400, "expected multipart/form-data with the parts purpose and file", "invalid_request")
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            form = _Form(self, file)
            try:
                parser = MultipartParser(boundary, form.callbacks)
                came = 0
                async for piece in body:
                    parser.write(piece)
                    came += len(piece)
                    if came - self.size > MOST_OF_FORM:
                        message = f"the form has more than {MOST_OF_FORM:,} bytes beside its file"
                        raise ApiError(413, message, "request_too_large")
                    if len(form.waiting) >= PIECE:
                        await run_in_threadpool(form.flush)
                parser.finalize()
            except FormParserError as error:
                raise ApiError(400, f"the form cannot be read: {error}", "invalid_request") from error
            if not form.ended:
                raise ApiError(400, "the form ends in the middle", "invalid_request")
            await run_in_threadpool(form.finish)


class _Form:
    """What a parser of forms calls back."""

    def __init__(self, upload: Upload, file: BinaryIO):
        self._upload, self._file = upload, file
        self._digest = hashlib.sha256()
        self._header, self._value, self._disposition = b"", b"", b""
        self._name, self._text, self._is_file = "", bytearray(), False
        self.waiting = bytearray()
        self.ended = False
        self.callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header,
            "on_header_value": self._on_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
            "on_end": self._end_form,
        }

    def flush(self) -> None:
        """Write what has come."""
        self._digest.update(self.waiting)
        self._file.write(self.waiting)
        self.waiting.clear()

    def finish(self) -> None:
        """Write the rest, and wait for the disk."""
        self.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._upload.sha256 = self._digest.hexdigest()

    def _begin(self) -> None:
        self._disposition = b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._text = bytearray()
        self._is_file = b"filename" in options
        if not self._is_file:
            return
        if self._name != "file" or self._upload.filename is not None:
            raise ApiError(
                400, f"one file is expected, in the part file; found {self._name!r}", "invalid_request", param=self._name
            )
        self._upload.filename = options[b"filename"].decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2][:NAME]

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._text += data[start:end]
            return
        self._upload.size += end - start
        if self._upload.size > self._upload.limit:
            raise too_large(self._upload.limit)
        self.waiting += data[start:end]

    def _end(self) -> None:
        if not self._is_file:
            self._upload.fields[self._name] = self._text.decode("utf-8", "replace")

    def _end_form(self) -> None:
        self.ended = True


class Shelf:
    """The folder ``files/``."""

    def __init__(self, folder: Path, quotas: Quotas):
        self.folder = folder
        self.file_bytes, self.stored_bytes = parse_amount(quotas.file_bytes), parse_amount(quotas.stored_bytes)
        self.keep_free = parse_amount(quotas.keep_free)

    def path(self, file: StoredFile) -> Path:
        """Where a file lies."""
        return self.folder / file.place

    def create(self, known: Collection[str]) -> None:
        """Make the folder, and remove what a killed server left half written, or written and on no record.

        Args:
            known: places of the files on record.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in self.folder.iterdir():
            is_left = file.name not in known and time.time() - file.stat().st_mtime > LEFT
            if is_left or file.name.startswith(TEMPORARY):
                file.unlink()

    async def receive(self, content_type: str, expected: int, body: AsyncIterator[bytes]) -> Upload:
        """Read a form to the disk; the caller puts its file in its place or removes it.

        Args:
            expected: bytes of the body, as it says; 0 where it does not say.

        Raises:
            ApiError: no form with one file, too large, or a disk that is full.
        """
        if expected > self.file_bytes + MOST_OF_FORM:
            raise too_large(self.file_bytes)
        if free_bytes(self.folder) - expected < self.keep_free:
            raise ApiError(503, "the disk of this server is full", "disk_full", headers={"x-should-retry": "false"})
        upload = Upload(self.folder / f"{TEMPORARY}{uuid.uuid4().hex}", self.file_bytes)
        with contextlib.ExitStack() as undone:
            undone.callback(upload.path.unlink, missing_ok=True)
            await upload.read(content_type, body)
            if upload.filename is None:
                raise ApiError(400, "Missing required parameter: 'file'", "missing_required_parameter", param="file")
            if not upload.size:
                raise ApiError(400, f"{upload.filename}: the file is empty", "invalid_file", param="file")
            undone.pop_all()
        return upload

    def keep(self, upload: Upload, owner: str, purpose: str, expires_at: float | None) -> StoredFile:
        """Put a file that was read into its place."""
        file_id, filename = f"file-{uuid.uuid4().hex}", upload.filename or "file"
        suffix = Path(filename).suffix.lower()
        place = f"{file_id}{suffix if suffix in SUFFIXES else '.jsonl'}"
        upload.path.rename(self.folder / place)
        return StoredFile(
            number=0,
            id=file_id,
            owner=owner,
            place=place,
            bytes=upload.size,
            created_at=time.time(),
            filename=filename,
            purpose=purpose,
            sha256=upload.sha256,
            expires_at=expires_at,
        )

    def add_result(self, source: Path, file_id: str, owner: str, filename: str) -> StoredFile:
        """Copy a result of a job to the other files; under the same id each time, so that a job that ends twice has one."""
        place = f"{file_id}{source.suffix}"
        temporary = self.folder / f".result-{place}"
        shutil.copyfile(source, temporary)
        temporary.chmod(0o600)
        temporary.replace(self.folder / place)
        return StoredFile(
            number=0,
            id=file_id,
            owner=owner,
            place=place,
            bytes=(self.folder / place).stat().st_size,
            created_at=time.time(),
            filename=filename,
            purpose="fine-tune-results",
            sha256=sha256_file(self.folder / place),
            expires_at=None,
        )


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(413, f"the file has more than {gb(limit)}, the most that is taken here", "file_too_large", param="file")
