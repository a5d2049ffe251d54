"""Downloads from a server on this machine that misbehaves in every way we know of."""

from __future__ import annotations

import gzip
import io
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import h5py
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

import stimg
from stimg import _downloads
from stimg._downloads import HASHES, download, inside, is_file_name, name_of, short_name
from stimg.datasets._fetch import fetch

LOGIN = b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Please log in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def hdf5() -> bytes:
    with io.BytesIO() as buffer:
        with h5py.File(buffer, "w") as file:
            file["X"] = np.arange(1000)
        return buffer.getvalue()


def png() -> bytes:
    with io.BytesIO() as buffer:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, format="PNG")
        return buffer.getvalue()


GOOD = {
    "counts.h5": hdf5(),
    "slide.h5ad": hdf5(),
    "image.png": png(),
    "table.csv": b",yaxis,xaxis,r\na,1,2,3\n",
    "table.tsv": b"a\tb\n1\t2\n",
    "table.tsv.gz": gzip.compress(b"a\tb\n1\t2\n" * 1000),
    "listing.json": b'[{"path": "a"}]',
    "model.safetensors": save({"a": np.zeros(3, np.float32)}),
}


class Server:
    """Answers each path with what `bodies` holds for it, which is bytes or a function of the request."""

    def __init__(self) -> None:
        self.bodies: dict[str, object] = {}
        self.asked: list[dict[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append({"path": self.path, "range": self.headers.get("Range")})
                body = server.bodies[self.path.split("?")[0].lstrip("/")]
                if callable(body):
                    return body(self)
                return reply(self, body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


def reply(request, body, *, status=200, length=None, send=None, **headers):
    """Send `body`, or only the part `send` of it, and say that it has this length (0: say nothing)."""
    request.send_response(status)
    if length != 0:
        request.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body if send is None else body[:send])


@pytest.fixture
def server(tmp_path):
    one = Server()
    with stimg.settings.override(cachedir=tmp_path / "cache"):
        yield one
    one.http.shutdown()
    one.http.server_close()


@pytest.fixture
def small(monkeypatch):
    """Lower bounds, so that tests are fast."""
    monkeypatch.setattr(_downloads, "MOST_BYTES", 4_000_000)
    monkeypatch.setattr(_downloads, "MOST_UNSTATED", 2_000_000)


def left(folder: Path) -> list[str]:
    """Names of the files that a download left, other than locks."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_is_kept_and_fetched_once(server, tmp_path, name):
    server.bodies[name] = GOOD[name]
    for _ in range(2):
        download(f"{server.url}/{name}", tmp_path / name)
    assert (tmp_path / name).read_bytes() == GOOD[name]
    assert len(server.asked) == 1
    assert left(tmp_path) == sorted([name, HASHES])


@pytest.mark.parametrize("body", [LOGIN, POINTER, b""], ids=["login", "pointer", "empty"])
@pytest.mark.parametrize("name", [*GOOD, "unknown.bin"])
def test_what_is_not_the_file_is_never_kept(server, tmp_path, name, body):
    server.bodies[name] = body
    with pytest.raises(ConnectionError, match="is not the file expected"):
        download(f"{server.url}/{name}", tmp_path / name)
    assert left(tmp_path) == []
    server.bodies[name] = GOOD.get(name, b"anything")
    download(f"{server.url}/{name}", tmp_path / name)  # nothing of the wrong answer is continued
    assert (tmp_path / name).read_bytes() == server.bodies[name]
    assert server.asked[-1]["range"] is None


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("counts.h5", GOOD["counts.h5"][:-100]),
        ("counts.h5", GOOD["image.png"]),
        ("image.png", GOOD["counts.h5"]),
        ("image.png", b"GIF89a" + bytes(100)),
        ("table.csv", GOOD["table.tsv.gz"]),
        ("table.csv", b'{"error": "Invalid credentials"}'),
        ("table.csv", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
        ("table.tsv", bytes(100)),
        ("table.tsv.gz", GOOD["table.tsv.gz"][:-5]),
        ("table.tsv.gz", b"a\tb\n"),
        ("listing.json", b'[{"path": '),
        ("model.safetensors", GOOD["model.safetensors"][:-1]),
        ("model.safetensors", b"\x80\x04\x95" + bytes(100)),
    ],
)
def test_other_formats_and_files_cut_without_a_stated_size_are_refused(server, tmp_path, name, body):
    server.bodies[name] = lambda request: reply(request, body, length=0)
    with pytest.raises(ConnectionError, match=f"'{name}' is not the file expected"):
        download(f"{server.url}/{name}", tmp_path / name)
    assert left(tmp_path) == []


def endless(request):
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(bytes(100_000))
    except OSError:
        pass


def bomb(request):
    body = gzip.compress(bytes(5_000_000))
    reply(request, body, Content_Encoding="gzip")


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("unknown.bin", endless, "larger than 2,000,000 bytes, and the server does not state its size"),
        ("unknown.bin", lambda request: reply(request, b"", length=10**15), "has 1,000,000,000,000,000 bytes, more"),
        ("table.csv", bomb, "not a table"),
        ("table.tsv.gz", gzip.compress(bytes(5_000_000)), "more than 2,000,000 bytes when unpacked"),
        ("table.csv", lambda request: reply(request, b"", status=302, Location="file:///etc/passwd"), "InvalidSchema"),
        ("table.csv", lambda request: reply(request, b"", status=302, Location="ftp://127.0.0.1/x"), "InvalidSchema"),
        ("table.csv", lambda request: reply(request, b"", status=302, Location="table.csv"), "TooManyRedirects"),
        ("table.csv", lambda request: reply(request, b"no", status=403), "403"),
    ],
    ids=["endless", "too large", "packed body", "gzip bomb", "to a file", "to ftp", "in a circle", "forbidden"],
)
def test_downloads_are_bounded(server, small, tmp_path, name, answer, message):
    server.bodies[name] = answer
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match=message):
        download(f"{server.url}/{name}", tmp_path / name)
    assert time.perf_counter() - start < 5
    assert left(tmp_path) == []


def test_a_body_that_goes_on_after_its_stated_end_is_cut_there(server, tmp_path):
    body = GOOD["counts.h5"]
    server.bodies["counts.h5"] = lambda request: reply(request, body + bytes(10_000), length=len(body))
    download(f"{server.url}/counts.h5", tmp_path / "counts.h5")
    assert (tmp_path / "counts.h5").read_bytes() == body


def test_a_packed_answer_is_kept_as_it_is(server, tmp_path):
    """Servers often say `Content-Encoding: gzip` of files that are called `.gz`."""
    body = GOOD["table.tsv.gz"]
    server.bodies["table.tsv.gz"] = lambda request: reply(request, body, Content_Encoding="gzip")
    download(f"{server.url}/table.tsv.gz", tmp_path / "table.tsv.gz")
    assert (tmp_path / "table.tsv.gz").read_bytes() == body


class Ranged:
    """A file whose first answer breaks off in the middle; later ones continue it, as `If-Range` allows."""

    def __init__(self, body, *, etag=None):
        self.body, self.etag, self.broken = body, etag, False

    def __call__(self, request):
        wanted = request.headers.get("Range")
        if request.headers.get("If-Range", self.etag) != self.etag:
            wanted = None
        headers = {"ETag": self.etag} if self.etag else {}
        if wanted is None:
            send = None if self.broken else len(self.body) // 2
            self.broken = True
            return reply(request, self.body, send=send, **headers)
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers["Content_Range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        return reply(request, self.body[start:], status=206, **headers)


@pytest.mark.parametrize("etag", [None, '"one"'])
def test_an_interrupted_download_continues(server, monkeypatch, tmp_path, etag):
    monkeypatch.setattr(_downloads, "BLOCK", 1000)
    body = GOOD["counts.h5"]
    server.bodies["counts.h5"] = Ranged(body, etag=etag)
    with pytest.raises(ConnectionError, match="Could not download"):
        download(f"{server.url}/counts.h5", tmp_path / "counts.h5")
    assert not (tmp_path / "counts.h5").exists()
    download(f"{server.url}/counts.h5", tmp_path / "counts.h5")
    assert server.asked[-1]["range"] == f"bytes={len(body) // 2 // 1000 * 1000}-"
    assert (tmp_path / "counts.h5").read_bytes() == body
    assert left(tmp_path) == sorted(["counts.h5", HASHES])


@pytest.mark.parametrize(("first", "second"), [('"one"', '"two"'), (None, None)])
def test_halves_of_two_versions_are_never_joined(server, monkeypatch, tmp_path, first, second):
    monkeypatch.setattr(_downloads, "BLOCK", 100)
    old, new = b"a,b\n" + b"1,1\n" * 500, b"a,b\n" + b"2,2\n" * (500 if first else 600)
    file = server.bodies["table.csv"] = Ranged(old, etag=first)
    with pytest.raises(ConnectionError):
        download(f"{server.url}/table.csv", tmp_path / "table.csv")
    file.body, file.etag = new, second
    if first is None:  # without an ETag, only the size tells
        with pytest.raises(ConnectionError, match="changed since"):
            download(f"{server.url}/table.csv", tmp_path / "table.csv")
    download(f"{server.url}/table.csv", tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_bytes() == new


def test_a_part_is_not_taken_for_the_whole(server, tmp_path):
    def middle(request):
        reply(request, GOOD["table.csv"][5:], status=206, Content_Range=f"bytes 5-{len(GOOD['table.csv']) - 1}/*")

    server.bodies["table.csv"] = middle
    with pytest.raises(ConnectionError, match="changed since"):
        download(f"{server.url}/table.csv", tmp_path / "table.csv")
    assert left(tmp_path) == []


def test_a_file_that_was_damaged_is_downloaded_again(server, tmp_path, caplog):
    server.bodies["counts.h5"] = GOOD["counts.h5"]
    path = tmp_path / "counts.h5"
    download(f"{server.url}/counts.h5", path)
    damaged = bytearray(GOOD["counts.h5"])
    damaged[-50] ^= 1
    path.write_bytes(damaged)
    download(f"{server.url}/counts.h5", path)
    assert path.read_bytes() == GOOD["counts.h5"]
    assert "does not have its sha256" in caplog.text
    path.write_bytes(damaged)
    server.bodies["counts.h5"] = GOOD["slide.h5ad"] + bytes(8)  # nor has the new one
    with pytest.raises(ValueError, match="If the publisher changed it, delete the entry 'counts.h5'"):
        download(f"{server.url}/counts.h5", path)


def test_the_hash_given_counts_for_a_download_and_for_a_file_in_the_cache(server, tmp_path):
    server.bodies["table.csv"] = GOOD["table.csv"]
    path = tmp_path / "table.csv"
    with pytest.raises(ValueError, match="if you gave `sha256`, correct it"):
        download(f"{server.url}/table.csv", path, sha256="0" * 64)
    assert left(tmp_path) == []
    download(f"{server.url}/table.csv", path)
    with pytest.raises(ValueError, match="if you gave `sha256`, correct it"):
        download(f"{server.url}/table.csv", path, sha256="0" * 64)
    assert path.read_bytes() == GOOD["table.csv"]


def test_a_file_put_by_hand_is_checked_and_then_known(server, tmp_path):
    path = tmp_path / "counts.h5"
    path.write_bytes(LOGIN)
    with pytest.raises(OSError, match="'counts.h5' is not the file expected"):
        download(f"{server.url}/counts.h5", path)
    path.write_bytes(GOOD["counts.h5"])
    download(f"{server.url}/counts.h5", path)
    assert json.loads((tmp_path / HASHES).read_text()).keys() == {"counts.h5"}
    assert server.asked == []


def test_names_of_urls():
    long = [f"https://a.org/{'x' * 300}.safetensors?token={k}" for k in "ab"]
    names = [name_of(url) for url in (*long, "https://a.org/w.safetensors", "https://b.org/w.safetensors")]
    assert len(set(names)) == 4
    assert all(len(f".{name}.lock".encode()) < 200 and name.endswith(".safetensors") for name in names)
    assert all(
        is_file_name(name_of(url)) for url in ("https://a.org/", "https://a.org/..%2F..%2Fx", "https://a.org/a%00")
    )
    assert short_name("short.csv") == "short.csv"
    assert short_name("ä" * 200 + ".csv") != short_name("ä" * 201 + ".csv")


def redirect(request):
    request.send_response(302)
    request.send_header("Location", "http://[::1")
    request.end_headers()


def test_addresses_that_are_none(server, tmp_path):
    server.bodies["a.csv"] = redirect
    for url in (f"{server.url}/a.csv", "http://[::1", f"http://{'a' * 70}.org/a.csv"):
        with pytest.raises(ConnectionError, match=re.escape(f"Could not download {url}")):
            download(url, tmp_path / name_of(url))


def test_a_cache_that_cannot_be_written_to_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Cannot write into .*Set `stimg.settings.cachedir`"):
        download(f"{server.url}/table.csv", tmp_path / "file" / "cache" / "table.csv")


def test_long_urls_and_equal_names(server):
    path = "y" * 280
    server.bodies |= {f"{path}.csv": GOOD["table.csv"], "model.safetensors": GOOD["model.safetensors"]}
    found = fetch(f"{server.url}/{path}.csv", "test", "slide")
    assert found.read_bytes() == GOOD["table.csv"]
    assert fetch(f"{server.url}/{path}.csv", "test", "slide") == found
    with pytest.raises(ValueError, match="not a stimg model"):  # a whole safetensors file, of another kind
        stimg.models.load(f"{server.url}/model.safetensors?{'z' * 300}")
    assert len(server.asked) == 2


HOSTILE = [
    "..",
    ".",
    "",
    " ",
    "...",
    "../x",
    "a/../x",
    "/etc/x",
    "a\\..\\x",
    "C:x",
    "C:\\x",
    "~",
    "~root",
    "a\0b",
    "a\nb",
]


@pytest.mark.parametrize("name", [*HOSTILE, None, 3, float("nan")])
def test_names_that_lead_out_of_a_folder(name):
    assert not is_file_name(name)


@pytest.mark.parametrize("name", [*(one for one in HOSTILE), "a//b", "a/", "ok/../../x", "ok/./x"])
def test_paths_that_lead_out_of_a_folder(tmp_path, name):
    with pytest.raises(ValueError, match="Expected the name of a file in"):
        inside(tmp_path, name)
    with pytest.raises(ValueError, match="Expected the name of a file in"):
        fetch("http://127.0.0.1:9/x.csv", "test", "slide", name or "a//b")


@pytest.mark.parametrize("name", ["a.csv", "ST/coord/Human_Brain+Kidney_10X 02 (1)_coord.csv", "..a", "a..b", "é.h5ad"])
def test_usual_names(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("revision", ["../../x", "/x", "..", ""])
def test_a_revision_that_leads_out_of_the_cache(server, monkeypatch, tmp_path, revision):
    monkeypatch.setattr("stimg.datasets._stimage_source.HUB", server.url)
    with pytest.raises(ValueError, match="Expected the name of a file in|Expected `revision`"):
        stimg.datasets.stimage_1k4m(revision=revision)
    server.bodies["api/datasets/jiawennnn/STimage-1K4M"] = json.dumps({"sha": revision}).encode()
    with pytest.raises(ValueError, match="Expected the name of a file in"):
        stimg.datasets.stimage_1k4m()
    assert not list(tmp_path.glob("*x*"))


@pytest.mark.parametrize("body", [b'{"error": "Invalid username or password."}', b"[]", b'"x"', b"null"])
def test_an_answer_of_the_hub_without_a_revision(server, monkeypatch, body):
    monkeypatch.setattr("stimg.datasets._stimage_source.HUB", server.url)
    server.bodies["api/datasets/jiawennnn/STimage-1K4M"] = body
    with pytest.raises(ConnectionError, match="'revision.json' is not the file expected"):
        stimg.datasets.stimage_1k4m()
    assert left(stimg.settings.cachedir) == []
