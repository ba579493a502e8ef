"""The JSON API: what the page does, for programs.

    POST /api/search           {"text": ..}, or a form with `file`; `SearchRequest` has the other fields
    GET  /api/info             what the index holds, and which model made it
    GET  /api/functions/{n}    one function of the index: where it is from, its assembly, its source

What is wrong with a request is answered as {"error": .., "remedy": ..}.
"""

import asyncio
import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from asmtrain.errors import BinaryError
from asmtrain.index import described
from asmtrain.search import Asked, answer, chosen
from asmtrain.serve.service import Isa, Options, Service

router = APIRouter(prefix="/api")

MAX_SEARCHED = 1000
"""Functions of one request."""


def service_of(request: Request) -> Service:
    """The application's service."""
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]


class SearchRequest(Options):
    """Body of a search."""

    text: str = ""
    """Assembler text."""
    isa: Isa = ""
    """Of assembler text; guessed if empty."""
    function: str = ""
    """The only one searched for, by name; all if empty."""


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": SearchRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        **SearchRequest.model_json_schema()["properties"],
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            },
        },
    }
}


@router.post("/search", openapi_extra=_BODY)
async def search(request: Request, service: Served) -> dict[str, Any]:
    """The nearest functions to each function of a text or file, best first."""
    fields, name, content = await received(request)
    wanted = SearchRequest.model_validate(fields)
    upload = await service.read(name, content, wanted.isa)
    asked = [Asked(name, function) for function in upload.functions]
    if wanted.function:
        asked = chosen(asked, wanted.function)
    if len(asked) > MAX_SEARCHED:
        raise BinaryError(
            f"{name} holds {len(asked):,} functions, more than the {MAX_SEARCHED:,} of one request",
            remedy="name one with `function`, or use asmtrain index search",
        )
    views = [item.function.view for item in asked]
    found = await asyncio.to_thread(service.search, views, wanted)
    return {"queries": [answer(item, hits) for item, hits in zip(asked, found, strict=True)]}


@router.get("/info")
def info(service: Served) -> dict[str, Any]:
    """What the index holds, and which model made it."""
    return described(service.index)


@router.get("/functions/{number}")
def function(number: int, service: Served) -> dict[str, Any]:
    """One function of the index."""
    found = service.index.function(number) if number < 1 << 63 else None
    if found is None:
        raise HTTPException(404, f"the index has no function {number}")
    entry, texts = found
    return {"number": number} | asdict(entry) | asdict(texts)


async def received(request: Request) -> tuple[dict[str, Any], str, bytes]:
    """The fields of a request, and the name and content of what it brings.

    Raises:
        HTTPException: it is too large, or neither JSON nor a form.
        BinaryError: it brings nothing.
    """
    if request.headers.get("content-type", "").startswith("application/json"):
        fields = _json_object(await request.body())
        name, content = "pasted.s", str(fields.get("text", "")).encode("utf-8", "replace")
    else:
        # Fields may be as large as a file: a text that is pasted is one.
        limit = request.app.state.max_upload_bytes
        async with request.form(max_part_size=limit, max_files=1, max_fields=20) as form:
            fields = {key: value for key, value in form.items() if isinstance(value, str)}
            name, content = "pasted.s", fields.get("text", "").encode("utf-8", "replace")
            file = form.get("file")
            if isinstance(file, UploadFile) and file.filename:
                name, content = file.filename[-200:], await file.read()
    if not content.strip():
        raise BinaryError("there is no function in nothing", remedy="paste assembly, or choose a file")
    return fields, name, content


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(fields, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return fields
