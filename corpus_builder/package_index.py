"""Where a Python package's source distribution lies: package and version in, URL out.

Asks the indexes that pip is configured with, in pip's order, so that a mirror which serves pip serves corpus
builds too. Reads the simple API's HTML (PEP 503) and JSON (PEP 691) over https or `file:`. pip itself is not
used for the download, because it runs the package's build backend to learn a source distribution's metadata.
"""

import ast
import base64
import importlib
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from corpus_builder.errors import SourceError

_TIMEOUT_S = 60
_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip")
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.1, */*;q=0.01"


def sdist_url(package: str, version: str) -> str:
    """URL of the source distribution of exactly that version.

    Raises:
        SourceError: no configured index has it; the message says what each one answered.
    """
    answers = []
    for index in configured_indexes():
        page = f"{index.rstrip('/')}/{_normalised(package)}/"
        page += "index.html" if page.startswith("file:") else ""
        try:
            links = _links(page)
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            answers.append(f"{without_credentials(index)}: {error}")
            continue
        for filename, url in links:
            if _is_sdist_of(filename, package, version):
                return url
        answers.append(f"{without_credentials(index)}: has no such source distribution")
    raise SourceError(
        f"cannot find the source distribution of {package}=={version}: {'; '.join(answers)}",
        remedy="check package, version and network; mirrors are set as for pip (global.index-url)",
    )


def configured_indexes() -> list[str]:
    """pip's main index and extra ones, from its configuration files and environment variables."""
    settings = _pip_settings()
    main = settings.get("index-url") or _default_index()
    return list(dict.fromkeys([main, *settings.get("extra-index-url", "").split()]))


def _default_index() -> str:
    """The index that pip asks where nothing is configured; pip has no public name for it."""
    try:
        return str(importlib.import_module("pip._internal.models.index").PyPI.simple_url)
    except ImportError:
        raise SourceError(
            "no package index is known: pip is not installed beside this Python",
            remedy="install pip there, or set PIP_INDEX_URL",
        ) from None


def open_url(url: str) -> Any:
    """An open response; credentials in the URL become a header; certificates as pip is told to use them."""
    parts = urlsplit(url)
    headers = {"Accept": _ACCEPT, "User-Agent": "asmtrain"}
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
    return urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S, context=context
    )


def without_credentials(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _pip_settings() -> dict[str, str]:
    """`global` and environment settings of pip; empty values where pip is not installed."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings: dict[str, str] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(?:global|install|:env:)\.([a-z-]+)=(.*)", line)
        if match:
            settings[match[1]] = str(ast.literal_eval(match[2]))
    # The environment wins over the files, whatever the order of the listing.
    for name in ("index-url", "extra-index-url"):
        value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            settings[name] = value
    return settings


def _links(page: str) -> list[tuple[str, str]]:
    """(file name, absolute URL) of every file on a simple-API page."""
    with open_url(page) as response:
        text = response.read().decode("utf-8", "replace")
        base = response.geturl()
        is_json = "json" in (response.headers.get("Content-Type") or "")
    if is_json:
        return [(str(entry["filename"]), urljoin(base, entry["url"])) for entry in json.loads(text)["files"]]
    parser = _Anchors()
    parser.feed(text)
    urls = [urljoin(base, href).partition("#")[0] for href in parser.hrefs]
    return [(unquote(url.rpartition("/")[2]), url) for url in urls]


class _Anchors(HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hrefs += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _is_sdist_of(filename: str, package: str, version: str) -> bool:
    stem = next((filename.removesuffix(end) for end in _SUFFIXES if filename.endswith(end)), "")
    name, dash, found = stem.rpartition("-")
    return bool(dash) and found == version and _normalised(name) == _normalised(package)


def _normalised(package: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", package).lower()
