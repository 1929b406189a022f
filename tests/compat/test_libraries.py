"""Libraries that know llama-cpp-python run on pyllm, through `pyllm.compat.install`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from support import isolation

from pyllm import compat

TINY = {"n_ctx": 512, "n_threads": 1, "verbose": False}


@pytest.fixture
def installed() -> Iterator[None]:
    """`import llama_cpp` finds pyllm."""
    compat.install()
    yield
    compat.uninstall()


def test_install(installed):
    import llama_cpp
    import llama_cpp.llama_chat_format
    from llama_cpp.llama import Llama as Other

    from pyllm.compat import llama_cpp as ours

    assert llama_cpp is ours
    assert Other is ours.Llama
    assert sys.modules["llama_cpp.llama_types"] is ours.llama_types
    compat.install()


def test_another_one_is_not_replaced(tmp_path):
    (tmp_path / "llama_cpp.py").write_text("Llama = None\n")
    isolation.survive(
        """
import sys
sys.path.insert(0, sys.argv[1])
from pyllm import compat
for imported in (False, True):
    try:
        compat.install()
    except RuntimeError as error:
        assert "llama_cpp.py" in str(error), error
    else:
        raise AssertionError("no error")
    import llama_cpp
    assert llama_cpp.Llama is None
""",
        tmp_path,
    )


def test_llguidance_finds_its_tokenizer(installed, tiny_models):
    pytest.importorskip("llguidance")
    import llama_cpp
    import llguidance.llamacpp

    llm = llama_cpp.Llama(str(tiny_models["llama"]), **TINY)
    tokenizer = llguidance.llamacpp.lltokenizer_from_vocab(llama_cpp.llama_model_get_vocab(llm.model))
    assert tokenizer.vocab_size == llm.n_vocab()
    assert tokenizer.tokenize_str("the people") == llm.tokenize(b"the people", add_bos=False)
    llm.close()


def test_from_pretrained(tiny_models, tmp_path):
    pytest.importorskip("huggingface_hub")
    from support.fake_hub import Hub

    server = Hub()
    try:
        data = tiny_models["llama"].read_bytes()
        server.add("owner/tiny-GGUF", {"tiny-Q4_K_M.gguf": data, "tiny-Q8_0.gguf": data, "README.md": b"a card"})
        folders = {"HF_HOME": str(tmp_path / "hf"), "PYLLM_CACHE": str(tmp_path / "cache")}
        isolation.survive(
            """
from pyllm.compat.llama_cpp import Llama
llm = Llama.from_pretrained("owner/tiny-GGUF", "*Q8_0.gguf", n_ctx=64)
assert llm.model_path.endswith("tiny-Q8_0.gguf")
assert llm("the", max_tokens=2)["choices"]
llm.close()
import os, sys
from pyllm import errors
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
Llama.from_pretrained("owner/tiny-GGUF", "tiny-Q8_0.gguf", n_ctx=64).close()  # is here, and asks nobody
os.environ["HF_ENDPOINT"] = sys.argv[1]
place = os.path.join(os.environ["PYLLM_CACHE"], "mine")
llm = Llama.from_pretrained("owner/tiny-GGUF", "*Q4*", additional_files=["README.md"], local_dir=place, n_ctx=64)
llm.close()
assert {"tiny-Q4_K_M.gguf", "README.md"} <= set(os.listdir(place))
Llama.from_pretrained("owner/tiny-GGUF", "*Q4*", additional_files=["README.md"], n_ctx=64).close()
for repo, file, kind in (("owner/nothing", "*Q4*", errors.UnknownModelError),
                         ("owner/tiny-GGUF", "x.gguf", errors.UnknownModelError),
                         ("owner", "*", errors.InvalidArgumentError)):
    try:
        Llama.from_pretrained(repo, file)
    except kind:
        pass
    else:
        raise AssertionError(repo)
for pattern, words in (("*.gguf", "several files fit"), ("*Q2*", "no file fits")):
    try:
        Llama.from_pretrained("owner/tiny-GGUF", pattern)
    except ValueError as error:
        assert words in str(error) and "tiny-Q4_K_M.gguf" in str(error)
    else:
        raise AssertionError("no error")
""",
            server.url,
            env={"HF_ENDPOINT": server.url, **folders},
        )
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_langchain(installed, tiny_models):
    pytest.importorskip("langchain_community")
    from langchain_community.chat_models import ChatLlamaCpp
    from langchain_community.embeddings import LlamaCppEmbeddings
    from langchain_community.llms import LlamaCpp

    path = str(tiny_models["llama"])
    llm = LlamaCpp(model_path=path, temperature=0, max_tokens=8, n_ctx=512, n_threads=1, verbose=False)
    answer = llm.invoke("the number")
    assert isinstance(answer, str)
    assert "".join(llm.stream("the number")) == answer
    assert llm.get_num_tokens("the number") > 1
    # As LangChain's own page makes one; its class hands over what it does not know.
    from langchain_core.callbacks import CallbackManager, StreamingStdOutCallbackHandler

    manager = CallbackManager([StreamingStdOutCallbackHandler()])
    documented = LlamaCpp(
        model_path=path, temperature=0, max_tokens=8, top_p=1, n_threads=1, callback_manager=manager, verbose=True
    )
    assert documented.invoke("the number") == answer
    constrained = LlamaCpp(model_path=path, grammar='root ::= "yes" | "no"', max_tokens=8, n_threads=1, verbose=False)
    assert constrained.invoke("the number") in ("yes", "no")

    chat = ChatLlamaCpp(model_path=path, temperature=0, max_tokens=8, n_ctx=1024, n_threads=1, verbose=False)
    message = chat.invoke([("system", "Be brief."), ("user", "the number")])
    assert message.type == "ai"
    assert isinstance(message.content, str)
    streamed = "".join(chunk.content for chunk in chat.stream("the number"))
    assert streamed == chat.invoke("the number").content

    def get_time(zone: bool) -> str:
        """Tell the time."""
        return "noon"

    tools = ChatLlamaCpp(model_path=path, max_tokens=400, n_ctx=1024, n_threads=1, verbose=False).bind_tools(
        [get_time], tool_choice="get_time"
    )
    (call,) = tools.invoke("the number").tool_calls
    assert call["name"] == "get_time"
    assert call["args"]["zone"] in (True, False)

    vectors = LlamaCppEmbeddings(model_path=path, n_threads=1, verbose=False)
    assert len(vectors.embed_query("the people")) == 64
    assert len(vectors.embed_documents(["the people", "the time"])) == 2


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_outlines(installed, smollm2_path):
    outlines = pytest.importorskip("outlines")
    from typing import Literal

    import llama_cpp

    with llama_cpp.Llama(str(smollm2_path), n_ctx=512) as llm:
        model = outlines.from_llamacpp(llm)
        # Its own backend needs numba.
        choose = outlines.Generator(model, Literal["yes", "no"], backend="llguidance")
        assert choose("Is the sky blue?", max_tokens=8) in ("yes", "no")
        assert "".join(choose.stream("Is the sky blue?", max_tokens=8)) in ("yes", "no")
        number = outlines.Generator(model, outlines.types.regex("[0-9]{1,2}"), backend="llguidance")
        assert number("How many legs has a cat?", max_tokens=8).isdigit()
        assert isinstance(model("Hello", max_tokens=4), str)
