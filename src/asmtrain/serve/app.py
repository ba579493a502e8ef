"""The web application: guards, the API, the pages, and errors told in the form of whoever asked."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from asmtrain.errors import BinaryError, UserFacingError
from asmtrain.serve import api, pages
from asmtrain.serve.guards import Guards
from asmtrain.serve.service import Service


def create_app(service: Service, *, hosts: Sequence[str], max_upload_bytes: int) -> FastAPI:
    """The application over an open index.

    Args:
        service: the index and its model.
        hosts: names that a request's Host header may hold.
        max_upload_bytes: size of the largest request.
    """
    # FastAPI's pages of documentation load scripts from elsewhere; /openapi.json is what they show.
    app = FastAPI(title="asmtrain", docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.max_upload_bytes = max_upload_bytes
    app.include_router(api.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(UserFacingError, _mistaken)
    app.add_exception_handler(ValidationError, _invalid)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Guards, max_bytes=max_upload_bytes)
    names = [f"[{name}]" if ":" in name else name for name in hosts]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _told(request, error.status_code, str(error.detail), "")


def _mistaken(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserFacingError)
    status = 422 if isinstance(error, BinaryError) else 500
    return _told(request, status, error.message, error.remedy)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, (ValidationError, RequestValidationError))
    first = error.errors()[0]
    return _told(request, 422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "")


def _told(request: Request, status: int, message: str, remedy: str) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message, "remedy": remedy}, status_code=status)
    return pages.home_page(request, error=message, remedy=remedy, status=status)
