"""Files over HTTP, as OpenAI's clients send and ask for them."""

import contextlib
from typing import Any

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from pipeline.serving.errors import RequestError
from pipeline.serving.files import ID, FileStore, StoredFile
from pipeline.serving.multipart import Form

PURPOSE = "user_data"
MOST_LISTED = 10_000
FIELD_BYTES = 1024  # at most, of a form's field that is no file
FORM_BYTES = 1 << 20  # of a form beside its file, at most


def add_routes(app: FastAPI, files: FileStore, file_mib: int) -> None:
    """Add the routes of files. `request.state.owner` is the name of the request's key.

    Args:
        app: the application.
        files: where files are kept.
        file_mib: most MiB of a file.
    """

    @app.post("/v1/files")
    async def create(request: Request) -> dict[str, Any]:
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > (file_mib << 20) + FORM_BYTES:
            raise RequestError(413, f"the file has more than {file_mib:,} MiB, the limit", code="file_too_large")
        try:
            return _to_json(files, await _received(request, files))
        except ClientDisconnect:
            raise RequestError(400, "the upload was cut off; send it again", code="incomplete") from None

    @app.get("/v1/files")
    async def listed(request: Request) -> dict[str, Any]:
        given = request.query_params
        order, after = given.get("order", "desc"), given.get("after", "")
        if order not in ("asc", "desc"):
            raise RequestError(400, "order must be asc or desc", param="order")
        if after and not ID.fullmatch(after):
            raise RequestError(400, "after must be the id of a file", param="after")
        limit = given.get("limit", str(MOST_LISTED))
        if not (limit.isascii() and limit.isdecimal() and 0 < int(limit[:9]) <= MOST_LISTED):
            raise RequestError(400, f"limit must be a number from 1 to {MOST_LISTED}", param="limit")
        found = files.list(request.state.owner) if given.get("purpose", PURPOSE) == PURPOSE else []
        if order == "desc":
            found = [file for file in reversed(found) if not after or file.id < after]
        else:
            found = [file for file in found if file.id > after]
        page = found[: int(limit)]
        return {
            "object": "list",
            "data": [_to_json(files, file) for file in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(page) < len(found),
        }

    @app.get("/v1/files/{id}")
    async def retrieved(request: Request, id: str) -> dict[str, Any]:
        return _to_json(files, files.get(request.state.owner, id))

    @app.delete("/v1/files/{id}")
    async def deleted(request: Request, id: str) -> dict[str, Any]:
        files.remove(request.state.owner, id)
        return {"id": id, "object": "file", "deleted": True}

    @app.get("/v1/files/{id}/content")
    async def content(request: Request, id: str) -> FileResponse:
        file = files.get(request.state.owner, id)
        # Nothing that a user has sent is ever shown by a browser as a page of this server.
        return FileResponse(
            file.path,
            media_type="application/octet-stream",
            filename=file.name or file.id,
            headers={"X-Content-Type-Options": "nosniff"},
        )


async def _received(request: Request, files: FileStore) -> StoredFile:
    """The file of a form, stored. If the form has another fault, nothing is left of it."""
    owner, stored, purpose = request.state.owner, None, None
    form = Form(request.headers.get("content-type", ""), request.stream())
    with contextlib.ExitStack() as undo:
        while (part := await form.next_part()) is not None:
            if part.name == "file" and part.filename is not None and stored is None:
                stored = await files.add(owner, part.filename, form.data())
                undo.callback(files.remove, owner, stored.id)
            elif part.name == "purpose" and part.filename is None and purpose is None:
                purpose = await _value(form)
            else:
                raise RequestError(400, f"unknown field {part.name[:40]!r}; send one file, and purpose", param="file")
        if purpose != PURPOSE:
            raise RequestError(400, f"purpose must be {PURPOSE!r}", param="purpose")
        if stored is None:
            raise RequestError(400, "the form has no file", param="file")
        undo.pop_all()
        return stored


async def _value(form: Form) -> str:
    value = b""
    async for data in form.data():
        value += data
        if len(value) > FIELD_BYTES:
            raise RequestError(400, f"a field of the form has more than {FIELD_BYTES} bytes")
    return value.decode(errors="replace")


def _to_json(files: FileStore, file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created,
        "expires_at": files.expires(file),
        "filename": file.name,
        "purpose": PURPOSE,
        "status": "processed",
        "palimpsest": {"kind": file.kind, "characters": file.characters},
    }
