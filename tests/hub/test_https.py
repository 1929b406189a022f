"""Models at web addresses: resumed, verified, and nothing else than models."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import threading
import warnings

import pytest

from pyllm import hub
from pyllm.errors import ChecksumError, DownloadError, InvalidArgumentError, ModelNotFoundError
from pyllm.hub import https, transfer

DATA = b"GGUF" + hashlib.shake_256(b"web").digest(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch, cache):
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(transfer, "_TIMEOUT_SECONDS", 5.0)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


@pytest.fixture
def web(web_server):
    web_server.files["/models/x.gguf"] = DATA
    return web_server


@pytest.fixture
def reference(web):
    return f"{web.url}/models/x.gguf#sha256={DIGEST}"


def test_pull_resolve_list_and_remove(web, reference, cache):
    path = hub.pull(reference)
    assert path.read_bytes() == DATA
    assert path.is_relative_to(cache / "url") and path.name == "x.gguf"
    assert hub.resolve(reference, download=False) == path
    assert hub.resolve(reference.partition("#")[0], download=False) == path
    listed = [model for model in hub.list_models() if model.alias == reference]
    assert [(model.size, model.path, model.cached) for model in listed] == [(len(DATA), path, True)]
    assert len(web.requests()) == 1
    assert hub.remove(reference) is True
    assert hub.remove(reference) is False
    assert not path.exists() and list((cache / ".work").glob("url-*/")) == []


def test_without_a_digest_it_warns_and_says_it(web):
    with pytest.warns(hub.UnverifiedModelWarning, match=f"x.gguf#sha256={DIGEST}"):
        path = hub.pull(f"{web.url}/models/x.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hub.resolve(f"{web.url}/models/x.gguf") == path


def test_wrong_digest_leaves_nothing(web, cache):
    wrong = "0" * 64
    with pytest.raises(ChecksumError, match=f"sha256 {DIGEST}.*expected {wrong}"):
        hub.pull(f"{web.url}/models/x.gguf#sha256={wrong}")
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix not in (".lock", ".etag")] == []


def test_another_digest_is_another_file(web, reference):
    hub.pull(reference)
    web.files["/models/x.gguf"] = other = DATA + b"more"
    digest = hashlib.sha256(other).hexdigest()
    assert hub.pull(f"{web.url}/models/x.gguf#sha256={digest}").read_bytes() == other


@pytest.mark.parametrize("cuts", [1, 7])
def test_cut_connections_are_resumed_within_one_pull(web, reference, cuts):
    web.faults.cut_after, web.faults.cuts = 40_000, cuts
    assert hub.pull(reference).read_bytes() == DATA
    starts = [asked.headers.get("Range") for asked in web.requests()]
    assert starts == [None, *(f"bytes={40_000 * (n + 1)}-" for n in range(cuts))]
    assert web.sent["/models/x.gguf"] == len(DATA)


def test_an_ended_pull_is_gone_on_with(web, reference):
    class Enough(Exception):
        pass

    def stop(done: int, total: int, label: str) -> None:
        if done > 100_000:
            raise Enough

    with pytest.raises(Enough):
        hub.pull(reference, progress=stop)
    sent = len(web.asked)
    reports = []
    assert hub.pull(reference, progress=lambda *report: reports.append(report)).read_bytes() == DATA
    asked = web.asked[sent].headers
    assert int(asked["Range"].removeprefix("bytes=").removesuffix("-")) > 100_000
    assert "If-Range" in asked
    assert reports[0][0] > 100_000 and reports[0][1] == len(DATA)


@pytest.mark.parametrize("digest", ["", f"#sha256={DIGEST}"])
def test_all_of_it_was_there_when_a_pull_was_killed(web, digest, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    reference = f"{web.url}/models/x.gguf{digest}"
    with monkeypatch.context() as patch:
        patch.setattr(https, "digest_of", die)
        patch.setattr(https, "check_digest", die)
        with pytest.raises(Killed):
            hub.pull(reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hub.UnverifiedModelWarning)
        assert hub.pull(reference).read_bytes() == DATA
    assert web.sent["/models/x.gguf"] == len(DATA)


def test_a_file_that_changed_meanwhile_starts_anew(web, reference):
    web.faults.cut_after, web.faults.cuts = 40_000, 99
    with pytest.raises(DownloadError):
        hub.pull(f"{web.url}/models/x.gguf#sha256={'1' * 64}")
    web.faults.cuts = 0
    web.files["/models/x.gguf"] = other = b"GGUF" + hashlib.shake_256(b"other").digest(300_000)
    digest = hashlib.sha256(other).hexdigest()
    assert hub.pull(f"{web.url}/models/x.gguf#sha256={digest}").read_bytes() == other


def test_a_server_without_ranges_sends_it_again(web, reference):
    web.faults.cut_after, web.faults.cuts, web.faults.ignore_range = 40_000, 2, True
    assert hub.pull(reference).read_bytes() == DATA


def test_gives_up_after_five_attempts_that_bring_nothing(web, reference):
    web.faults.cut_after, web.faults.cuts = 0, 99
    with pytest.raises(DownloadError, match=r"the connection (broke|ended).*0 bytes are kept"):
        hub.pull(reference)
    assert len(web.requests()) == 5


def test_busy_servers_are_asked_again(web, reference):
    web.faults.statuses = [503, 429, 500]
    assert hub.pull(reference).read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "said"), [(401, "who asks"), (403, "let everybody"), (404, "nothing at"), (418, "")]
)
def test_refusals_are_final_and_say_why(web, reference, status, said):
    web.faults.statuses = [status]
    with pytest.raises(DownloadError, match=f"{status}.*{said}") as caught:
        hub.pull(reference)
    assert caught.value.code == status
    assert len(web.requests()) == 1


def test_a_beginning_that_is_too_long_starts_anew(web, reference, cache):
    web.faults.cut_after, web.faults.cuts = 40_000, 1
    short = DATA[:30_000]
    web.files["/models/x.gguf"] = DATA

    def shrink(done: int, total: int, label: str) -> None:
        if done == 40_000:
            web.files["/models/x.gguf"] = short

    digest = hashlib.sha256(short).hexdigest()
    path = hub.pull(f"{web.url}/models/x.gguf#sha256={digest}", progress=shrink)
    assert path.read_bytes() == short


def test_a_wrong_range_is_refused(web, reference):
    web.faults.cut_after, web.faults.cuts, web.faults.wrong_range = 40_000, 1, True
    with pytest.raises(DownloadError, match="asked for the bytes from 40,000 on"):
        hub.pull(reference)


def test_chunks_without_a_length(web, reference):
    web.faults.no_length = True
    assert hub.pull(reference).read_bytes() == DATA


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8"])
def test_pages_are_refused(web, kind):
    web.files["/models/x.gguf"] = b"<!DOCTYPE html>" + bytes(1000)
    web.types["/models/x.gguf"] = kind
    with pytest.raises(DownloadError, match="a page for people"):
        hub.pull(f"{web.url}/models/x.gguf")


def test_what_is_no_model_is_refused_at_its_first_bytes(web):
    web.files["/models/x.gguf"] = b"PK\3\4" + bytes(10_000_000)
    with pytest.raises(DownloadError, match=r"not a GGUF file: it begins with b'PK"):
        hub.pull(f"{web.url}/models/x.gguf")
    assert web.sent["/models/x.gguf"] < 9_000_000


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("..%2f..%2fevil.gguf", "evil.gguf"),
        ("%2e%2e", "model.gguf"),
        ("a%5cb.gguf", "model.gguf"),
        ("x.bin", "model.gguf"),
        ("", "model.gguf"),
    ],
)
def test_names_from_the_address_stay_in_the_cache(web, cache, name, kept):
    web.answer = lambda request, path: web.send(request, path, DATA, {})  # type: ignore[method-assign]
    path = hub.pull(f"{web.url}/models/{name}#sha256={DIGEST}")
    assert path.resolve().is_relative_to((cache / "url").resolve())
    assert path.name == kept


def test_parts_are_all_fetched(web):
    parts = [b"GGUF" + bytes([n]) * 1000 for n in range(3)]
    for n, part in enumerate(parts):
        web.files[f"/m/y-0000{n + 1}-of-00003.gguf"] = part
    digest = hashlib.sha256(parts[0]).hexdigest()
    reference = f"{web.url}/m/y-00001-of-00003.gguf#sha256={digest}"
    with pytest.warns(hub.UnverifiedModelWarning):
        path = hub.pull(reference)
    assert [file.read_bytes() for file in sorted(path.parent.glob("*.gguf"))] == parts
    assert path.name == "y-00001-of-00003.gguf"
    (path.parent / "y-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match="pyllm pull"):
        hub.resolve(reference, download=False)


def test_parts_of_an_ended_pull_are_not_fetched_again_and_not_seen(web, cache):
    parts = [b"GGUF" + bytes([n]) * 30_000 for n in range(3)]
    names = [f"/m/y-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    web.files.update(dict(zip(names[:2], parts, strict=False)))
    reference = f"{web.url}{names[0]}#sha256={hashlib.sha256(parts[0]).hexdigest()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hub.UnverifiedModelWarning)
        with pytest.raises(DownloadError, match="y-00003-of-00003"):
            hub.pull(reference)
        assert list((cache / "url").rglob("*.gguf")) == []
        web.files[names[2]] = parts[2]
        path = hub.pull(reference)
    assert [file.read_bytes() for file in sorted(path.parent.glob("*.gguf"))] == parts
    assert [web.sent[name] for name in names] == [30_004] * 3
    assert list((cache / ".work").glob("url-*/")) == []


@pytest.mark.parametrize("data", [b"", b"GG"])
def test_what_ends_at_once_is_no_model(web, data):
    web.files["/models/x.gguf"] = data
    with pytest.raises(DownloadError, match=f"ends after {len(data)} bytes"):
        hub.pull(f"{web.url}/models/x.gguf")


def test_a_length_that_is_no_number(web, reference):
    def answer(request, path):
        request.send_response(200)
        request.send_header("Content-Length", "many")
        request.end_headers()
        request.wfile.write(DATA)

    web.answer = answer
    assert hub.pull(reference).read_bytes() == DATA


def test_addresses_with_letters_of_all_alphabets(web):
    web.files["/modèles/größe 1.gguf"] = DATA
    path = hub.pull(f"{web.url}/modèles/größe 1.gguf#sha256={DIGEST}")
    assert path.name == "größe 1.gguf" and path.read_bytes() == DATA
    quoted = hub.pull(f"{web.url}/mod%C3%A8les/gr%C3%B6%C3%9Fe%201.gguf#sha256={DIGEST}")
    assert quoted.read_bytes() == DATA


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("https://[::1/x.gguf", InvalidArgumentError),
        ("https://127.0.0.1:port/x.gguf", DownloadError),
        ("https:///x.gguf", DownloadError),
        ("https://", DownloadError),
    ],
)
def test_addresses_that_are_none(given, error):
    with pytest.raises(error, match=r"no (web )?address"):
        hub.resolve(given)


@pytest.mark.parametrize("fragment", ["#sha256=abc", "#md5=" + "0" * 32, "#" + "0" * 64])
def test_digests_that_are_none(fragment):
    with pytest.raises(InvalidArgumentError, match="64 hexadecimal digits"):
        hub.resolve(f"https://example.com/x.gguf{fragment}")


def test_unencrypted_addresses_need_a_digest(web, monkeypatch):
    with pytest.raises(DownloadError, match="not encrypted"):
        hub.resolve("http://example.com/x.gguf")
    monkeypatch.setattr(transfer, "_LOCAL", set())
    assert hub.pull(f"{web.url}/models/x.gguf#sha256={DIGEST}").read_bytes() == DATA


def test_redirects_to_unencrypted_addresses_and_other_schemes(web):
    web.redirects["/a.gguf"] = "http://example.com/x.gguf"
    with pytest.raises(DownloadError, match="not encrypted"):
        hub.pull(f"{web.url}/a.gguf")
    web.redirects["/b.gguf"] = "ftp://example.com/x.gguf"
    with pytest.raises(DownloadError, match="not a web address"):
        hub.pull(f"{web.url}/b.gguf#sha256={DIGEST}")
    web.redirects["/d.gguf"] = "https://[::1/x.gguf"
    with pytest.raises(DownloadError, match="leads to none"):
        hub.pull(f"{web.url}/d.gguf#sha256={DIGEST}")
    web.redirects["/c.gguf"] = "/models/x.gguf"
    assert hub.pull(f"{web.url}/c.gguf#sha256={DIGEST}").read_bytes() == DATA


def test_secrets_in_an_address_are_not_shown(web):
    web.faults.statuses = [404]
    with pytest.raises(DownloadError) as caught:
        hub.pull(f"{web.url}/models/x.gguf?key=hush")
    assert "hush" not in str(caught.value)


def test_a_port_without_a_server():
    with pytest.raises(DownloadError, match=r"Connection refused|actively refused"):
        hub.pull(f"http://127.0.0.1:9/x.gguf#sha256={DIGEST}")


def test_no_room_is_found_before_it_is_used_up(web, reference, cache, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"not enough room to download x.gguf") as caught:
        hub.pull(reference)
    assert caught.value.errno == errno.ENOSPC
    assert [path.stat().st_size for path in cache.rglob("*.partial")] == [0]


def test_two_threads_download_once(web, reference):
    web.faults.delay = 0.01
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(hub.pull(reference))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and len(paths) == 3
    assert len(web.requests()) == 1


def test_a_record_that_lies_is_not_believed(web, reference):
    path = hub.pull(reference)
    record = path.with_name("x.gguf.json")
    fields = json.loads(record.read_text())
    for wrong in ({**fields, "size": 5}, {**fields, "alias": 5}, {**fields, "packages": [1]}, [], {}, 7):
        record.write_text(json.dumps(wrong))
        with pytest.raises(ModelNotFoundError):
            hub.resolve(reference, download=False)
        assert not [model for model in hub.list_models() if model.path == path]
    assert hub.pull(reference).read_bytes() == DATA
