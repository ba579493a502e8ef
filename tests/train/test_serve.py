"""The page and the API: what programs get, what a person sees in a browser, what bad input is told."""

import asyncio
import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from asmtrain import index, store
from asmtrain.encoder import load_encoder
from asmtrain.serve import pages
from asmtrain.serve.app import create_app
from asmtrain.serve.service import Service
from corpus_builder import asm
from corpus_builder.shards import read_split
from functions import variant_of

LIMIT = 2_000_000
HOSTILE = '<script>document.title="taken"</script>'


@pytest.fixture(scope="module")
def built(model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    index.run_build([tiny_corpus], folder, model=model)
    return folder


@pytest.fixture(scope="module")
def service(built: Path, model: Path) -> Iterator[Service]:
    with contextlib.closing(store.load(built)) as opened:
        yield Service(opened, load_encoder(model))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    app = create_app(service, hosts=["localhost", "::1"], max_upload_bytes=LIMIT)
    with TestClient(app, base_url="http://localhost", follow_redirects=True) as found:
        yield found


@pytest.fixture(scope="module")
def records(tiny_corpus: Path) -> list[Any]:
    return [record for record, _ in zip(read_split(tiny_corpus, "test"), range(4), strict=False)]


def text_of(record: Any) -> str:
    return record.assembly[next(name for name in sorted(record.assembly) if name.endswith(".gcc.o2"))]


@pytest.fixture(scope="module")
def object_file(records: list[Any], need: Callable[..., None], tmp_path_factory: Any) -> Path:
    """Four functions of the corpus, assembled."""
    isa = variant_of(records[0]).partition(".")[0]
    assembler = {"aarch64": "aarch64-linux-gnu-as", "x86_64": "as"}[isa]
    need(assembler)
    path = tmp_path_factory.mktemp("objects") / "four.o"
    text = "".join(record.assembly[variant_of(record)] for record in records)
    subprocess.run([assembler, "-o", path], input=text.encode(), check=True)
    return path


# The API.


def test_pasted_text_finds_its_function(client: TestClient, records: list[Any]) -> None:
    answer = client.post("/api/search", json={"text": text_of(records[0]), "top": 3})
    assert answer.status_code == 200
    (query,) = answer.json()["queries"]
    assert query["name"] == records[0].meta.name
    assert len(query["neighbours"]) == 3
    assert query["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert records[0].key in {near["key"] for near in query["neighbours"] if near["similarity"] > 1 - 1e-5}


def test_a_bare_function_needs_no_directives(client: TestClient) -> None:
    answer = client.post("/api/search", json={"text": "ldr w0, [x0, 8]\nret\n", "top": 1})
    assert [query["isa"] for query in answer.json()["queries"]] == ["aarch64"]


def test_an_object_file_gives_all_its_functions_or_the_one_named(
    client: TestClient, records: list[Any], object_file: Path
) -> None:
    files = {"file": ("four.o", object_file.read_bytes())}
    answer = client.post("/api/search", files=files, data={"top": "2", "in_isa": "x86_64"})
    found = answer.json()["queries"]
    assert [query["name"] for query in found] == [record.meta.name for record in records]
    assert {near["isa"] for query in found for near in query["neighbours"]} == {"x86_64"}
    name = records[2].meta.name
    answer = client.post("/api/search", files=files, data={"function": name})
    assert [query["name"] for query in answer.json()["queries"]] == [name]
    assert len(answer.json()["queries"][0]["neighbours"]) == 10


def test_a_function_of_the_index_has_its_texts(client: TestClient, records: list[Any]) -> None:
    (query,) = client.post("/api/search", json={"text": text_of(records[0])}).json()["queries"]
    near = next(near for near in query["neighbours"] if near["key"] == records[0].key)
    found = client.get(f"/api/functions/{near['number']}").json()
    assert found["source"] == records[0].source
    assert found["assembly"] == asm.view(records[0].assembly[near["variant"]], near["isa"])
    assert (found["name"], found["variant"]) == (near["name"], near["variant"])


def test_info_says_what_the_command_says(client: TestClient, service: Service) -> None:
    found = client.get("/api/info").json()
    assert found == json.loads(json.dumps(index.described(service.index)))
    assert found["functions"] == service.index.meta.num_functions


def test_requests_at_once_get_the_answers_of_requests_in_turn(client: TestClient, records: list[Any]) -> None:
    texts = [text_of(record) for record in records] * 3
    ask = functools.partial(client.post, "/api/search")
    in_turn = [ask(json={"text": text}).json() for text in texts[:4]] * 3
    with ThreadPoolExecutor(6) as pool:
        at_once = list(pool.map(lambda text: ask(json={"text": text}).json(), texts))
    assert at_once == in_turn


# What is refused, and how.


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"json": {"text": ""}}, 422, "there is no function in nothing"),
        ({"json": {}}, 422, "there is no function in nothing"),
        ({"json": []}, 400, "not a JSON object"),
        ({"content": b"[" * 10**6, "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ({"json": {"text": "hello, is this assembly?"}}, 422, "pasted.s is not assembler text"),
        ({"json": {"text": "ret\n", "isa": "mips"}}, 422, "isa: "),
        ({"json": {"text": "ret\n", "top": 0}}, 422, "top: "),
        ({"json": {"text": "ret\n", "tpo": 1}}, 422, "tpo: "),
        ({"json": {"text": "ret\n", "isa": "aarch64", "function": "absent"}}, 422, "no function 'absent'"),
        ({"files": {"file": ("empty.o", b"")}}, 422, "there is no function in nothing"),
        ({"files": {"file": ("cut.o", b"\x7fELF\2\1\1" + bytes(30))}}, 422, "cut.o"),
        ({"files": {"file": ("../../etc/x y.o", b"\x7fELF\2\1\1" + bytes(30))}}, 422, "x y.o"),
        ({"files": {"file": ("noise.a", b"!<arch>\n" + b"nonsense" * 99)}}, 422, "noise.a"),
        ({"files": {"file": ("big.o", bytes(LIMIT + 1))}}, 413, "more than 2 MB at once"),
        ({"files": {"a": ("a", b"x"), "b": ("b", b"x")}}, 400, "Too many files"),
        ({"content": b"x=", "headers": {"content-type": "text/csv"}}, 422, "there is no function in nothing"),
    ],
)
def test_bad_input_gets_one_clear_line(
    client: TestClient, body: dict[str, Any], status: int, message: str
) -> None:
    answer = client.post("/api/search", **body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]
    assert "/tmp" not in answer.text


def test_an_upload_that_hides_its_length_is_cut_at_the_limit(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while sent < 50 * LIMIT:
            sent += 100_000
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/api/search", content=endless(), headers=headers)
    assert answer.status_code == 413


def test_functions_that_are_not_there(client: TestClient) -> None:
    for number in ("0", "99999999", str(1 << 70), "-1"):
        answer = client.get(f"/api/functions/{number}")
        assert (answer.status_code, answer.json()["error"]) == (404, f"the index has no function {number}")
    assert client.get("/api/functions/x").status_code == 422
    assert client.get("/uploads/absent").status_code == 404
    assert "give it again" in client.get("/uploads/absent/0").text
    assert client.get("/nowhere").status_code == 404


def test_other_names_and_other_sites_are_refused(client: TestClient) -> None:
    body = {"text": "ret\n", "isa": "aarch64"}
    assert client.get("/api/info", headers={"host": "rebound.example"}).status_code == 400
    assert client.get("/api/info", headers={"host": "localhost:8000"}).status_code == 200
    assert client.get("/api/info", headers={"host": "[::1]:8000"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        answer = client.post("/api/search", json=body, headers={"origin": origin})
        assert answer.status_code == 403
    assert client.post("/api/search", json=body, headers={"origin": "http://localhost"}).status_code == 200


def test_every_answer_forbids_scripts_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/api/info", "/static/app.js", "/nowhere"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/docs").status_code == 404
    assert "/api/search" in client.get("/openapi.json").json()["paths"]


# Pages.


def test_pages_lead_from_a_file_to_source_and_assembly(
    client: TestClient, records: list[Any], object_file: Path
) -> None:
    page = client.post("/search", files={"file": ("four.o", object_file.read_bytes())}, data={"isa": ""})
    assert page.status_code == 200
    links = re.findall(r'href="(/uploads/\w+/\d)">([^<]+)<', page.text)
    assert [name for _, name in links] == [record.meta.name for record in records]
    page = client.get(links[1][0])
    assert page.text.count("<tr") == 1 + 10
    assert 'aria-current="true"' in page.text
    near = re.findall(r'href="\?(near=\d+[^"]*)#compare"', page.text)[4].replace("&amp;", "&")
    chosen = client.get(f"{links[1][0]}?{near}")
    assert chosen.status_code == 200
    assert chosen.text != page.text
    assert client.get(f"{links[1][0]}?top=0").status_code == 422
    assert client.get(links[1][0][:-1] + "9").status_code == 404


def test_a_page_tells_what_is_wrong(client: TestClient) -> None:
    page = client.post("/search", data={"text": "hello", "isa": ""})
    assert page.status_code == 422
    assert 'role="alert"' in page.text
    assert "pasted.s is not assembler text" in page.text
    page = client.post("/search", files={"file": ("big.o", bytes(LIMIT + 1))})
    assert page.status_code == 413
    assert "more than 2 MB" in page.text


def test_hostile_names_stay_text(model: Path, records: list[Any], tmp_path: Path) -> None:
    """Of a file that was indexed, of a file that is uploaded, and in messages."""
    folder = tmp_path / "<b>"
    folder.mkdir()
    path = folder / "'\"&<i>.s"
    path.write_text(text_of(records[0]))
    index.run_build([path], tmp_path / "index", model=model)
    with contextlib.closing(store.load(tmp_path / "index")) as opened:
        app = create_app(Service(opened, load_encoder(model)), hosts=["localhost"], max_upload_bytes=LIMIT)
        with TestClient(app, base_url="http://localhost") as client:
            for content, name in ((text_of(records[0]), HOSTILE + ".s"), ("nothing", HOSTILE)):
                page = client.post("/search", files={"file": (name, content.encode())})
                assert "<script>document" not in page.text
                assert "<i>" not in page.text
                assert "<b>" not in page.text.replace("<figcaption><b>", "").replace('facts"><b>', "")
                assert "&lt;script&gt;" in page.text


def test_colours_keep_every_letter_and_mark_what_agrees() -> None:
    first, second = pages.compared("mov x0, x1\nadd x0, x0, 4\nret\n", "add x0, x0, 4\nnop\nret\n")
    assert [line.is_common for line in first] == [False, True, True]
    assert [line.is_common for line in second] == [True, False, True]
    for text, language in (
        ('int f(void) { return "<a>&"[0]; } // <b>\n\n\tx', "c"),
        ("\n\nb.eq L1\n", "gas"),
    ):
        lines = pages.coloured(text, language)
        plain = [re.sub(r"<[^>]*>", "", line) for line in lines]
        unescaped = "\n".join(plain).replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
        assert unescaped.replace("&amp;", "&") == text.rstrip("\n")
    assert pages.coloured("<" * 200_001, "c") == ["&lt;" * 200_001]


def test_old_uploads_make_room(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = asyncio.run(service.read("a.s", b"ldr w0, [x0, 8]\nret\n", ""))
    monkeypatch.setattr("asmtrain.serve.service._KEPT_CHARACTERS", 3 * len(upload.functions[0].view))
    keys = [service.keep(bytes([number]), "", upload) for number in range(5)]
    assert list(service.uploads) == keys[2:]
    assert service.keep(bytes([2]), "", upload) == keys[2]


# The command and the browser.


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    """A server of its own, as a user starts it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "asmtrain.cli", "serve", str(built), "--port", "0", "--max-upload-mb", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield server.stdout.readline().split()[0]
    finally:
        server.send_signal(2)  # Ctrl-C
        _, said = server.communicate(timeout=60)
    assert (server.returncode, said) == (0, "")


def test_a_real_server_refuses_a_large_upload(address: str) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/api/search")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", "5000000000")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert b"more than 2 MB" in answer.read()


def test_an_address_that_is_taken_is_told(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from asmtrain import cli

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", str(built), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_a_person_finds_a_function_in_a_browser(
    address: str, object_file: Path, records: list[Any], need: Callable[..., None], tmp_path: Path
) -> None:
    need("chromium")
    from playwright.sync_api import expect, sync_playwright

    hostile = tmp_path / f"{HOSTILE.replace('/', '_')}.s"
    hostile.write_text(text_of(records[0]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=os.geteuid() != 0
        )
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))

        page.goto(address)
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("alert")).to_contain_text("Choose a file or paste assembly")
        page.get_by_label("A file").set_input_files(object_file)
        page.get_by_role("button", name="Search").click()
        page.get_by_label("Name holds").fill(records[1].meta.name)
        expect(page.locator("#functions tbody tr:visible")).to_have_count(1)
        page.get_by_role("link", name=records[1].meta.name).click()
        rows = page.locator("#neighbours tbody tr")
        expect(rows).to_have_count(10)
        rows.nth(3).get_by_role("link").click()
        expect(rows.nth(3)).to_have_attribute("aria-current", "true")
        number = int(re.search(r"near=(\d+)", page.url)[1])
        theirs = page.request.get(f"{address}/api/functions/{number}").json()
        # textContent: what is shown, without marks.
        assert letters(page.locator("#source pre").text_content()) == letters(theirs["source"])
        assert letters(page.locator("#theirs pre").text_content()) == letters(theirs["assembly"])
        page.get_by_label("Instruction set").select_option("x86_64")
        expect(page).to_have_url(re.compile("in_isa=x86_64"))
        expect(rows).to_have_count(10)
        assert set(page.locator("#neighbours td:last-child").all_text_contents()) <= {
            name for name in records[0].assembly if name.startswith("x86_64")
        }

        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        page.goto(address)
        page.get_by_label("A file").set_input_files(hostile)
        page.get_by_role("button", name="Search").click()
        expect(page.locator("h1")).to_contain_text(records[0].meta.name)
        expect(page.locator(".lead")).to_contain_text("<script>")
        assert page.title() != "taken"
        page.goto(address)
        page.get_by_label("or assembly").fill("this is no assembly")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("alert").first).to_contain_text("is not assembler text")
        browser.close()
    assert {url.startswith((address, "data:")) for url in asked} == {True}
    # Chromium says of its own that an answer had status 422.
    assert [text for text in complaints if "422" not in text] == []


def letters(text: str) -> str:
    return "".join(text.split())
