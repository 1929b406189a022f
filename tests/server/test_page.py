"""The page at /: what is served, to whom, and with which headers. What it does is in the other tests of the page."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.servers import Served

from pyllm.server.page import FILES, File

FOLDER = Path(__file__).resolve().parents[2]
NAMES = [file.name for file in FILES]
OWN = [file for file in FILES if not file.name.startswith("vendor/")]
SCRIPTS = [file for file in OWN if file.name.endswith(".js")]
VENDOR = FOLDER / "pyllm/server/page/vendor"
PACKAGES = tomllib.loads((VENDOR / "VENDOR.toml").read_text(encoding="utf-8"))["package"]


def text(file: File) -> str:
    return file.content.decode("utf-8")


def test_all_that_the_page_names_is_there(server: Served) -> None:
    html = server.get("/").text
    named = set(re.findall(r'(?:href|src)="ui/([^"]+)"', html))
    for script in SCRIPTS:
        named |= set(re.findall(r'(?:from |import |import\(|URL\()"\./([^"]+)"', text(script)))
    fonts = next(text(file) for file in FILES if file.name.endswith("katex.min.css"))
    named |= {f"vendor/katex/{name}" for name in re.findall(r"url\(([^)]+\.woff2)\)", fonts)}
    assert named == set(NAMES) - {"index.html"}
    for name in named:
        assert server.get(f"/ui/{name}").status_code == 200


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_headers(server: Served, file: File) -> None:
    response = server.get(file.path)
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "woff2": "font/"}
    assert response.headers["content-type"].startswith(kind[file.name.rpartition(".")[2]])
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'; trusted-types dompurify" in policy
    assert not re.search(r"unsafe|\*|data:|https?:", policy)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"
    assert response.content == file.content


def test_a_browser_that_has_it_is_told_so(server: Served) -> None:
    first = server.get("/")
    tag = first.headers["etag"]
    for told in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = server.get("/", headers={"If-None-Match": told})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert server.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert server.get("/ui/base.css").headers["etag"] != tag
    head = server.http.head(server.url + "/")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)


@pytest.mark.parametrize("path", ["/ui/", "/ui/route.py", "/ui/../../app.py", "/ui/%2e%2e/route.py", "/index.html"])
def test_nothing_else_can_be_read(server: Served, path: str) -> None:
    assert server.get(path).status_code == 404


@pytest.mark.parametrize("file", OWN, ids=[file.name for file in OWN])
def test_no_other_host_is_named(file: File) -> None:
    """Whatever a browser could load lies here. The name of SVG's dialect is no address that anything asks."""
    content = text(file).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://\w|[\"'(=]//\w|@import|url\(", content)


@pytest.mark.parametrize("file", SCRIPTS, ids=[file.name for file in SCRIPTS])
def test_no_text_becomes_html(file: File) -> None:
    parsers = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|eval\(|Function\("
    )
    assert not re.search(parsers, text(file))


def test_the_markup_has_no_code_and_no_style_in_it() -> None:
    # The policy forbids both: they would do nothing.
    html = next(text(file) for file in FILES if file.name == "index.html")
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", html)
    assert not re.findall(r"<script(?![^>]*\ssrc=)", html)
    for name in re.findall(r'(?:aria-controls|aria-labelledby|aria-describedby|for)="([^"]+)"', html):
        assert f'id="{name}"' in html


def test_the_page_needs_no_key_and_what_it_asks_does(start: Callable[..., Served], engine) -> None:
    server = start(engine, api_keys=("secret",))
    for file in FILES:
        assert server.get(file.path).status_code == 200
    for path in ("/v1/models", "/props", "/ui", "/ui/nothing"):
        assert server.get(path).status_code == 401
    assert server.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_it_can_be_left_out(start: Callable[..., Served], engine) -> None:
    server = start(engine, page=False)
    for file in FILES:
        assert server.get(file.path).status_code == 404
    assert server.get("/v1/models").status_code == 200


def test_the_flag(serve: Callable[..., Any], tiny_models: Any) -> None:
    process = serve(tiny_models["llama"], "-c", "256", "--no-ui")
    assert httpx.get(process.url + "/", timeout=60).status_code == 404
    assert httpx.get(process.url + "/ready", timeout=60).status_code == 200


def test_the_package_has_its_files() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pyllm.server.page"]
    manifest = (FOLDER / "MANIFEST.in").read_text()
    (line,) = re.findall(r"^recursive-include pyllm/server/page (.*)$", manifest, re.MULTILINE)
    assert "graft pyllm/server/page/vendor\n" in manifest
    for name in NAMES:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        assert any(fnmatch.fnmatch(name, pattern) for pattern in line.split()) or name.startswith("vendor/")
    folder = FOLDER / "pyllm/server/page"
    assert {path.name for path in folder.iterdir() if path.suffix not in (".py", "")} == {file.name for file in OWN}


@pytest.mark.parametrize("package", PACKAGES, ids=[package["name"] for package in PACKAGES])
def test_what_others_wrote_is_as_they_published_it(package: dict[str, Any]) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", package["sha256"])
    assert package["version"] and package["source"].startswith("https://")
    for file in package["files"]:
        assert hashlib.sha256((VENDOR / file["path"]).read_bytes()).hexdigest() == file["sha256"], file["path"]
    licence = (VENDOR / package["files"][0]["path"].partition("/")[0] / "LICENSE").read_text(encoding="utf-8")
    words = {"MIT": "Permission is hereby granted", "Apache-2.0": "Apache License", "BSD-3-Clause": "Redistribution"}
    assert words[package["licence"]] in licence


def test_nothing_of_others_is_there_that_is_not_named() -> None:
    named = {file["path"] for package in PACKAGES for file in package["files"]}
    assert {str(path.relative_to(VENDOR)) for path in VENDOR.rglob("*") if path.is_file()} == named | {"VENDOR.toml"}
    folders = {path.parent.name for path in VENDOR.glob("*/LICENSE")}
    assert folders == {path.name for path in VENDOR.iterdir() if path.is_dir()}
