"""Models on a hub: a real server, the real package huggingface_hub, and everything that can go wrong between them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from support import isolation
from support.fake_hub import Hub

from pyllm import hub
from pyllm.errors import (
    ChecksumError,
    DownloadError,
    InvalidArgumentError,
    ModelNotFoundError,
    UnknownModelError,
)
from pyllm.hub import transfer
from pyllm.hub.huggingface import HubModel

pytest.importorskip("huggingface_hub")

REPO = "owner/tiny-GGUF"


def model_bytes(seed: str, size: int = 100_000) -> bytes:
    return b"GGUF" + hashlib.shake_256(seed.encode()).digest(size)


FILES = {
    "README.md": b"a card",
    "mmproj-F16.gguf": model_bytes("mmproj", 100),
    "tiny-BF16-00001-of-00002.gguf": model_bytes("one"),
    "tiny-BF16-00002-of-00002.gguf": model_bytes("two"),
    "tiny-Q3_K_S.gguf": model_bytes("q3"),
    "tiny-Q4_K_M.gguf": model_bytes("q4"),
    "tiny-Q8_0.gguf": model_bytes("q8"),
}


@pytest.fixture
def server(cache, tmp_path, monkeypatch):
    server = Hub()
    server.add(REPO, dict(FILES))
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.001)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    yield server
    server.close()


@pytest.fixture
def hf(tmp_path) -> Path:
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("given", "file"),
    [
        (f"{REPO}:Q8_0", "tiny-Q8_0.gguf"),
        (f"{REPO}:q3_k_s", "tiny-Q3_K_S.gguf"),
        (REPO, "tiny-Q4_K_M.gguf"),
        (f"hf:{REPO}", "tiny-Q4_K_M.gguf"),
        (f"hf://{REPO}:Q8_0", "tiny-Q8_0.gguf"),
        (f"{REPO}@main:Q8_0", "tiny-Q8_0.gguf"),
        (f"{REPO}/tiny-Q3_K_S.gguf", "tiny-Q3_K_S.gguf"),
        (f"hf:{REPO}@main/tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        ("https://huggingface.co/" + REPO, "tiny-Q4_K_M.gguf"),
        (f"https://huggingface.co/{REPO}/blob/main/tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        (f"https://hf.co/{REPO}/resolve/main/tiny-Q8_0.gguf?download=true", "tiny-Q8_0.gguf"),
    ],
)
def test_every_way_to_name_a_file(server, hf, given, file):
    path = hub.resolve(given)
    assert path.read_bytes() == FILES[file]
    assert path.is_relative_to(hf)
    asked = len(server.asked)
    assert hub.resolve(given, download=False) == path
    assert len(server.asked) == asked


def test_layout_is_that_of_the_hub(server, hf):
    """What pyllm pulled, huggingface_hub finds, and the other way round."""
    import huggingface_hub

    path = hub.pull(f"{REPO}:Q8_0")
    found = huggingface_hub.try_to_load_from_cache(REPO, "tiny-Q8_0.gguf", cache_dir=hf)
    assert Path(found) == path
    theirs = huggingface_hub.hf_hub_download(REPO, "tiny-Q3_K_S.gguf", cache_dir=hf, endpoint=server.url)
    assert hub.resolve(f"{REPO}:Q3_K_S", download=False) == Path(theirs)
    assert not list(hf.rglob("*partial*"))


def test_all_parts_come_and_the_first_is_given(server, hf):
    reports = []
    path = hub.resolve(f"{REPO}:BF16", progress=lambda *report: reports.append(report))
    assert path.name == "tiny-BF16-00001-of-00002.gguf"
    assert path.with_name("tiny-BF16-00002-of-00002.gguf").read_bytes() == FILES["tiny-BF16-00002-of-00002.gguf"]
    downloads = [report for report in reports if report[2].startswith("downloading")]
    assert downloads[-1][:2] == (200_008, 200_008)
    assert [report[0] for report in downloads] == sorted(report[0] for report in downloads)


def test_a_part_that_the_hub_has_not(server):
    server.add(REPO, {name: data for name, data in FILES.items() if "00002-of" not in name})
    with pytest.raises(UnknownModelError, match=r"1 of the 2 parts.*tiny-BF16-00002-of-00002\.gguf is not there"):
        hub.pull(f"{REPO}:BF16")


def test_a_part_that_was_deleted_comes_again(server):
    path = hub.pull(f"{REPO}:BF16")
    path.with_name("tiny-BF16-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelNotFoundError):
        hub.resolve(f"{REPO}:BF16", download=False)
    assert hub.resolve(f"{REPO}:BF16") == path
    assert path.with_name("tiny-BF16-00002-of-00002.gguf").is_file()


def test_wrong_quantization_lists_those_there_are(server):
    with pytest.raises(UnknownModelError, match=r"no 'Q4_K_L'; did you mean Q4_K_M\? it has Q4_K_M, .*Q8_0"):
        hub.pull(f"{REPO}:Q4_K_L")
    with pytest.raises(UnknownModelError, match=r"no file 'tiny-Q8\.gguf'; it has tiny-Q8_0\.gguf"):
        hub.pull(f"{REPO}/tiny-Q8.gguf")


def test_repository_without_models(server):
    server.add("owner/plain", {"model.safetensors": b"x"})
    with pytest.raises(UnknownModelError, match="has no GGUF files"):
        hub.pull("owner/plain")


def test_unknown_repository_and_revision(server):
    with pytest.raises(UnknownModelError, match=r"no repository owner/nothing.*HF_TOKEN"):
        hub.pull("owner/nothing")
    with pytest.raises(UnknownModelError, match=r"there is no file owner/nothing here"):
        hub.resolve("owner/nothing")
    with pytest.raises(UnknownModelError, match="no revision 'v9'"):
        hub.pull(f"{REPO}@v9")


def test_token_reads_private_repositories_and_goes_to_no_other_host(server, monkeypatch):
    server.private.add(REPO)
    with pytest.raises(UnknownModelError, match="HF_TOKEN"):
        hub.pull(REPO)
    monkeypatch.setenv("HF_TOKEN", server.token)
    assert hub.pull(REPO).read_bytes() == FILES["tiny-Q4_K_M.gguf"]
    bytes_requests = server.requests(containing="/cdn/")
    assert bytes_requests and all("Authorization" not in asked.headers for asked in bytes_requests)


def test_gated_repository_says_where_to_accept(server, monkeypatch):
    server.gated.add(REPO)
    with pytest.raises(DownloadError, match=f"accepted its terms.*{REPO}.*HF_TOKEN") as caught:
        hub.pull(REPO)
    assert caught.value.code == 403


def test_revisions_are_kept_apart(server):
    other = {**FILES, "tiny-Q8_0.gguf": model_bytes("branch")}
    commit = server.add(REPO, other, "v2")
    assert hub.pull(f"{REPO}@v2:Q8_0").read_bytes() == other["tiny-Q8_0.gguf"]
    assert hub.pull(f"{REPO}:Q8_0").read_bytes() == FILES["tiny-Q8_0.gguf"]
    assert hub.resolve(f"{REPO}@{commit}:Q8_0", download=False).read_bytes() == other["tiny-Q8_0.gguf"]


def test_pull_asks_for_what_is_newer_and_resolve_does_not(server):
    old = hub.pull(f"{REPO}:Q8_0")
    newer = {**FILES, "tiny-Q8_0.gguf": model_bytes("newer")}
    server.add(REPO, newer)
    assert hub.resolve(f"{REPO}:Q8_0") == old
    new = hub.pull(f"{REPO}:Q8_0")
    assert new.read_bytes() == newer["tiny-Q8_0.gguf"]
    assert hub.resolve(f"{REPO}:Q8_0") == new


def test_second_pull_transfers_no_bytes_and_force_does(server):
    hub.pull(REPO)
    sent = server.sent.total()
    hub.pull(REPO)
    assert server.sent.total() == sent
    hub.pull(REPO, force=True)
    assert server.sent.total() == 2 * sent


def test_cut_transfers_are_resumed(server):
    server.faults.cut_after, server.faults.cuts = 30_000, 3
    assert hub.pull(REPO).read_bytes() == FILES["tiny-Q4_K_M.gguf"]
    assert server.sent.total() == len(FILES["tiny-Q4_K_M.gguf"])


def test_an_ended_pull_is_gone_on_with(server):
    def stop(done: int, total: int, label: str) -> None:
        if done > 50_000:
            raise KeyboardInterrupt

    server.faults.delay = 0.002
    with pytest.raises(KeyboardInterrupt):
        hub.pull(REPO, progress=stop)
    with pytest.raises(ModelNotFoundError):
        hub.resolve(REPO, download=False)
    before = len(server.asked)
    assert hub.pull(REPO).read_bytes() == FILES["tiny-Q4_K_M.gguf"]
    ranges = [asked.headers["Range"] for asked in server.asked[before:] if "Range" in asked.headers]
    assert len(ranges) == 1 and int(ranges[0][6:-1]) > 50_000


def test_wrong_bytes_are_noticed_and_deleted(server, hf):
    server.faults.flip = True
    with pytest.raises(ChecksumError, match=r"tiny-Q4_K_M\.gguf is not the file"):
        hub.pull(REPO)
    assert not [path for path in hf.rglob("*gguf*")]
    server.faults.flip = False
    assert hub.pull(REPO).read_bytes() == FILES["tiny-Q4_K_M.gguf"]


def test_offline_mode_sends_no_request(server, monkeypatch):
    path = hub.pull(f"{REPO}:Q8_0")
    asked = len(server.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.pull(f"{REPO}:Q8_0") == path
    assert hub.resolve(REPO) == path
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set; it has Q8_0"):
        hub.pull(f"{REPO}:Q4_K_M")
    assert len(server.asked) == asked


def test_a_hub_that_is_away(server, monkeypatch):
    path = hub.pull(f"{REPO}:Q8_0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.pull(f"{REPO}:Q8_0") == path
    with pytest.raises(DownloadError, match=f"does not answer for {REPO}"):
        hub.pull(f"{REPO}:Q4_K_M")


def test_busy_hub_is_asked_again_for_bytes(server):
    model = HubModel.parse(REPO)
    model.offer()
    server.asked.clear()
    answer = server.answer
    busy = [503, 429]

    def once_busy(request, path):
        if path.startswith("/cdn/") and busy:
            server.plain(request, busy.pop())
        else:
            answer(request, path)

    server.answer = once_busy
    assert hub.pull(REPO).read_bytes() == FILES["tiny-Q4_K_M.gguf"]
    assert len(server.requests(containing="/cdn/")) == 3


EVIL = ["../../evil-Q4_K_M.gguf", "/tmp/evil-Q4_K_M.gguf", "a/../../../evil-Q4_K_M.gguf", "..\\evil-Q4_K_M.gguf"]


@pytest.mark.parametrize("name", EVIL)
def test_names_from_the_hub_stay_in_the_cache(server, tmp_path, name):
    server.add(REPO, {name: model_bytes("evil")})
    before = sorted(tmp_path.rglob("*evil*"))
    with pytest.raises(UnknownModelError, match="has no GGUF files"):
        hub.pull(REPO)
    assert sorted(tmp_path.rglob("*evil*")) == before == []
    server.add(REPO, {name: model_bytes("evil"), "good-Q4_K_M.gguf": model_bytes("good")})
    assert hub.pull(REPO).name == "good-Q4_K_M.gguf"


@pytest.mark.parametrize(
    "given",
    ["hf:owner", "hf:owner/repo/../x.gguf", "hf:a/b/c.txt", "hf:a/b:Q4:K", "hf:../b", "hf:",
     "https://huggingface.co/owner", "https://huggingface.co/o/r/blob/main/../../x.gguf", "https://hf.co/a/b/commits"],
)  # fmt: skip
def test_references_that_are_none(given):
    with pytest.raises(InvalidArgumentError):
        hub.resolve(given)
    assert not hub.is_reference(given)


def test_folders_and_paths_are_not_taken_for_repositories(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    for given in (REPO, f"{REPO}/x.gguf", "nowhere/x.gguf", "./owner/repo", "../owner/repo:Q4_K_M"):
        with pytest.raises(ModelNotFoundError):
            hub.resolve(given)
    assert server.asked == []
    assert hub.resolve(f"hf:{REPO}").is_file()


def test_list_and_remove(server, hf):
    hub.pull(f"{REPO}:Q8_0")
    hub.pull(f"{REPO}:BF16")
    listed = {model.alias: model for model in hub.list_models() if model.cached and "/" in model.alias}
    assert sorted(listed) == [f"{REPO}:BF16", f"{REPO}:Q8_0"]
    assert listed[f"{REPO}:BF16"].size == 200_008
    for alias, model in listed.items():
        assert hub.resolve(alias, download=False) == model.path
    assert hub.remove(f"{REPO}:BF16") is True
    assert hub.remove(f"{REPO}:BF16") is False
    assert len(list((hf / "models--owner--tiny-GGUF" / "blobs").iterdir())) == 1
    assert hub.resolve(f"{REPO}:Q8_0", download=False).is_file()
    assert hub.remove(REPO) is True
    assert not (hf / "models--owner--tiny-GGUF").exists()


def test_remove_keeps_what_others_put_there(server, hf):
    import huggingface_hub

    hub.pull(f"{REPO}:Q8_0")
    card = huggingface_hub.hf_hub_download(REPO, "README.md", cache_dir=hf, endpoint=server.url)
    assert hub.remove(REPO) is True
    assert Path(card).read_bytes() == b"a card"


def test_a_name_that_speaks_of_too_many_parts(server, hf):
    path = hub.pull(f"{REPO}:Q8_0")
    odd = path.with_name("tiny-Q2_K-00001-of-99999.gguf")
    odd.write_bytes(b"GGUF")
    assert f"{REPO}:Q8_0" in [model.alias for model in hub.list_models()]
    server.add(REPO, {odd.name: model_bytes("odd")})
    with pytest.raises(DownloadError, match="99,999 parts"):
        hub.pull(REPO)


def test_a_question_is_asked_with_size_and_licence(server):
    asked = []

    def ask(offer):
        asked.append(offer)
        return False

    with pytest.raises(ModelNotFoundError, match=f"pyllm pull hf:{REPO}:Q8_0"):
        hub.resolve(f"hf:{REPO}:Q8_0", download=ask)
    assert [(offer.alias, offer.licence, offer.download_size) for offer in asked] == [
        (f"{REPO}:Q8_0", "apache-2.0", 100_004)
    ]


def test_without_the_package_it_says_which_one(cache):
    script = """
import sys
sys.modules["huggingface_hub"] = None
from pyllm import hub
from pyllm.errors import MissingDependencyError
try:
    hub.resolve("hf:owner/repo:Q4_K_M")
except MissingDependencyError as error:
    assert "-m pip install 'huggingface_hub>=" in str(error), error
else:
    raise SystemExit("no error")
"""
    isolation.survive(script, env={"PYLLM_CACHE": str(cache), "HF_HUB_CACHE": str(cache / "hf")})


def test_nothing_is_printed(server, tmp_path):
    script = "import sys; from pyllm import hub; assert hub.pull(sys.argv[1]).is_file()"
    done = isolation.survive(script, f"{REPO}:Q8_0", env={name: os.environ[name] for name in os.environ})
    assert done.stdout == "reached the end\n"
