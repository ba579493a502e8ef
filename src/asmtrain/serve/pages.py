"""The pages: a form, the functions of what was given, and the neighbours of one of them side by side with it.

All are whole without scripts; `static/app.js` adds a filter, dropping of files and a check of their size.
Addresses hold the hash of what was uploaded, so that a page can be loaded again and gone back to.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from pydantic import BaseModel, ConfigDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CLexer, GasLexer
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.templating import Jinja2Templates

from asmtrain.serve.api import Served, received, service_of
from asmtrain.serve.service import Isa, Options, Service, Upload
from corpus_builder import asm

router = APIRouter(include_in_schema=False)

_COLOURED_CHARACTERS = 200_000
"""Longer texts are shown plain: colouring them would take seconds."""
_COMPARED_LINES = 1_000_000
"""Product of two texts' numbers of lines up to which they are compared, for the same reason."""


class Given(BaseModel):
    """The fields of the form beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = ""
    isa: Isa = ""


class Shown(Options):
    """What the page of neighbours shows, from its address."""

    near: int = 0
    """Number of the neighbour beside the query; the nearest if 0."""


class Listed(NamedTuple):
    """A row of an upload's functions."""

    place: int
    name: str
    member: str
    isa: str
    address: str
    num_instructions: int


@router.get("/")
def home(request: Request) -> Response:
    """The form."""
    return home_page(request)


@router.post("/search")
async def given(request: Request, service: Served) -> Response:
    """Read what was given, and go on to its functions."""
    fields, name, content = await received(request)
    isa = Given.model_validate(fields).isa
    upload = await service.read(name, content, isa)
    key = service.keep(content, isa, upload)
    only = "/0" if len(upload.functions) == 1 else ""
    return RedirectResponse(f"/uploads/{key}{only}", status_code=303)


@router.get("/uploads/{key}")
def functions(request: Request, key: str, service: Served) -> Response:
    """The functions of an upload, to choose one."""
    upload = _kept(service, key)
    rows = [
        Listed(
            *(place, item.name, item.member, item.isa),
            address="" if item.address is None else f"{item.address:#x}",
            num_instructions=asm.num_instructions(item.view),
        )
        for place, item in enumerate(upload.functions)
    ]
    return _page(request, "functions.html.j2", {"upload": upload, "key": key, "rows": rows})


@router.get("/uploads/{key}/{place}")
def neighbours(
    request: Request, key: str, place: int, shown: Annotated[Shown, Query()], service: Served
) -> Response:
    """The nearest functions to one function of an upload, and one of them beside it."""
    upload = _kept(service, key)
    if not 0 <= place < len(upload.functions):
        raise HTTPException(404, f"{upload.name} has no function number {place}")
    asked = upload.functions[place]
    (found,) = service.search([asked.view], shown)
    chosen = next((near for near in found if near.number == shown.near), found[0] if found else None)
    texts = service.index.function(chosen.number) if chosen else None
    values = {
        **{"upload": upload, "key": key, "asked": asked, "found": found, "shown": shown, "chosen": chosen},
        "pair": compared(asked.view, texts[1].assembly if texts else ""),
        "source": coloured(texts[1].source, "c") if texts else [],
        "projects": list(service.index.counts("project")),
        "isas": list(service.index.counts("isa")),
    }
    return _page(request, "neighbours.html.j2", values)


def _kept(service: Service, key: str) -> Upload:
    upload = service.uploads.get(key)
    if upload is None:
        raise HTTPException(404, "this upload is no longer kept: give it again")
    return upload


def home_page(request: Request, *, error: str = "", remedy: str = "", status: int = 200) -> Response:
    """The form, with what went wrong if something did."""
    return _page(request, "home.html.j2", {"error": error, "remedy": remedy}, status=status)


@cache
def _templates() -> Jinja2Templates:
    # By itself Jinja escapes in *.html alone, and these are *.j2.
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Jinja2Templates(env=Environment(loader=loader, autoescape=True))


def _page(request: Request, template: str, values: dict[str, Any], *, status: int = 200) -> Response:
    common = {
        "meta": service_of(request).index.meta,
        "index_name": service_of(request).index.folder.resolve().name,
        "max_bytes": request.app.state.max_upload_bytes,
    }
    return _templates().TemplateResponse(request, template, common | values, status_code=status)


class Line(NamedTuple):
    """A line of a text, as HTML."""

    html: Markup
    is_common: bool
    """Stands in the other text too, in the same order."""


def coloured(text: str, language: str) -> list[Markup]:
    """The lines of a text as HTML: escaped, its words marked by kind."""
    if len(text) > _COLOURED_CHARACTERS:
        return [escape(line) for line in text.split("\n")]
    lexer = CLexer(stripnl=False) if language == "c" else GasLexer(stripnl=False)
    # Pygments ends every mark at the end of its line, so that lines can be taken apart.
    html = highlight(text, lexer, HtmlFormatter(nowrap=True))
    return [Markup(line) for line in html.rstrip("\n").split("\n")]


def compared(one: str, other: str) -> tuple[list[Line], list[Line]]:
    """Two assembly texts as HTML, marked where they agree."""
    first, second = (text.rstrip("\n").split("\n") for text in (one, other))
    common: tuple[set[int], set[int]] = (set(), set())
    if len(first) * len(second) <= _COMPARED_LINES:
        for block in difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
            common[0].update(range(block.a, block.a + block.size))
            common[1].update(range(block.b, block.b + block.size))
    return _lines(one, common[0]), _lines(other, common[1])


def _lines(text: str, common: set[int]) -> list[Line]:
    return [Line(html, at in common) for at, html in enumerate(coloured(text, "gas"))]
