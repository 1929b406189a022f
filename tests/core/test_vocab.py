"""Text to tokens and back, and what a vocabulary tells about its tokens."""

import ast
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pyllm
from pyllm import enums, errors
from pyllm.core.model import Model
from pyllm.core.vocab import Vocab

UPSTREAM = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models"
TEXTS = ["", " ", "Hello world", "  two  spaces ", "naïve café 語 🙂", "\n\n\t\r", "a" * 5000, "\0middle\0", "<s></s>"]


@pytest.fixture(scope="module", params=["spm", "bpe"])
def vocab(request, load) -> Vocab:
    """The two kinds for text generation, which can spell any text."""
    return load("llama", vocab=request.param).vocab


@pytest.fixture(scope="module")
def spm(load) -> Vocab:
    return load("llama", vocab="spm").vocab


# Lists and arrays


def test_adding_to_token_ids_appends(vocab):
    # An array would add the number to every id, or the ids to each other, and give other tokens without an error.
    ids = vocab.tokenize("the people", add_special=False)
    more = [314]
    assert ids + more == [*ids, 314] and more + ids == [314, *ids] and ids + ids == [*ids, *ids]
    assert all(type(token) is int for token in ids)
    assert vocab.eog_tokens + more == [*vocab.eog_tokens, 314] and vocab.suppress_tokens + more == [314]


def test_arrays_of_token_ids_say_so_in_their_name(vocab):
    ids = vocab.tokenize_array("the people", add_special=False)
    assert ids.dtype == np.int32 and ids.ndim == 1 and ids.flags.writeable
    assert ids.tolist() == vocab.tokenize("the people", add_special=False)
    text, arguments = "a<|im_end|>b", {"add_special": False, "parse_special": True}
    assert vocab.tokenize_array(text, **arguments).tolist() == vocab.tokenize(text, **arguments)


def annotations() -> dict[str, str]:
    """What each function of the package is declared to return: "file:function" to the annotation."""
    found = {}
    package = Path(pyllm.__file__).parent
    for path in [*package.rglob("*.py"), *package.rglob("*.pyi")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                found[f"{path.relative_to(package)}:{node.name}"] = ast.unparse(node.returns)
    return found


def test_one_name_gives_one_type():
    """Whichever object is asked, `tokenize` gives a list and `tokenize_array` an array."""
    returned: dict[str, set[str]] = {}
    for place, annotation in annotations().items():
        # What a command of the command line or a route of the server gives is no list of ids.
        if not place.startswith(("cli/", "server/")):
            returned.setdefault(place.partition(":")[2], set()).add(annotation.replace("npt.", ""))
    assert returned["tokenize"] == {"list[int]"}
    assert returned["tokenize_array"] == returned["as_token_array"] == {"NDArray[np.int32]"}
    # An array is asked for by name.
    arrays = {name for name, types in returned.items() if "NDArray[np.int32]" in types}
    assert {name for name in arrays if "tokenize" in name} == {"tokenize_array", "tokenize_marked_array"}


# There and back


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives(vocab, text):
    ids = vocab.tokenize(text, add_special=False)
    assert vocab.detokenize(ids) == text
    assert b"".join(vocab.pieces()[i] for i in ids) == text.encode()


@given(st.text(max_size=60))
@example("\u2581")
@example(" .")
@settings(max_examples=150, deadline=None)
def test_any_unicode_text_survives(load, text):
    # SentencePiece writes a space as U+2581: the two are one there.
    spm = load("llama", vocab="spm").vocab
    assert spm.detokenize(spm.tokenize(text, add_special=False)) == text.replace("\u2581", " ")

    bpe = load("llama", vocab="bpe").vocab
    ids = bpe.tokenize(text, add_special=False)
    assert b"".join(bpe.pieces()[i] for i in ids) == text.encode()
    # GPT-2 has spaces before punctuation and contractions taken away.
    assert bpe.detokenize(ids) == text or re.search(" [.?!,']| 'm| 's| 've| 're| n't", text)


@pytest.mark.parametrize("data", [b"\xff\xfe\xfa", b"ok \xc3", bytes(range(256))])
def test_bytes_that_are_no_text_survive_in_spm(spm, data):
    ids = spm.tokenize(data, add_special=False)
    assert spm.detokenize_bytes(ids) == data
    assert spm.detokenize(ids) == data.decode("utf-8", "replace")
    assert spm.detokenize(ids, errors="ignore") == data.decode("utf-8", "ignore")
    with pytest.raises(UnicodeDecodeError):
        spm.detokenize(ids, errors="strict")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_and_str_are_one(vocab, kind):
    expected = vocab.tokenize("the naïve people")
    assert vocab.tokenize(kind("the naïve people".encode())) == expected


@pytest.mark.parametrize("text", [3, None, 1.5, ["a"]])
def test_text_must_be_text(vocab, text):
    with pytest.raises(TypeError):
        vocab.tokenize(text)


def test_lone_surrogates_are_no_text(vocab):
    with pytest.raises(ValueError):
        vocab.tokenize("\ud800")


def test_special_tokens(spm):
    plain = spm.tokenize("the", add_special=False)
    assert spm.add_bos and spm.tokenize("the") == [spm.bos, *plain]
    assert spm.detokenize([spm.bos, *plain], remove_special=True).strip() == "the"
    assert spm.detokenize([spm.bos, *plain]) == "<s>the"
    assert spm.detokenize([spm.bos, *plain], unparse_special=False) == "the"


def test_control_tokens_in_text_count_only_when_asked_for(vocab):
    text = "a<|im_end|>b"
    as_text = vocab.tokenize(text, add_special=False)
    parsed = vocab.tokenize(text, add_special=False, parse_special=True)
    end = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert len(end) == 1 and vocab.is_control(end[0])
    assert end[0] in parsed and end[0] not in as_text
    assert vocab.detokenize(parsed) == vocab.detokenize(as_text) == text
    assert vocab.detokenize(parsed, unparse_special=False) == "ab"


def test_a_long_text_with_more_tokens_than_guessed(vocab):
    # Characters outside the vocabulary are several tokens each: more than the first guess makes room for.
    text = "ꙮ" * 3000
    ids = vocab.tokenize(text)
    assert len(ids) > 3000 and vocab.detokenize(ids, remove_special=True) == text


def test_a_long_piece_is_not_cut(vocab):
    longest = max(range(len(vocab)), key=lambda i: len(vocab.token_to_piece(i)))
    assert len(vocab.token_to_piece(longest)) == 48
    ids = [longest] * 500
    assert vocab.detokenize_bytes(ids) == vocab.token_to_piece(longest) * 500


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "gpt-2", "bert-bge", "falcon", "qwen2", "phi-3"])
def test_upstreams_own_vocabularies(make_model, name):
    """llama.cpp's test cases: texts and the ids that the original tokenizers gave."""
    path = UPSTREAM / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip("the sources are not here")
    vocab = make_model(path, vocab_only=True).vocab
    texts = (UPSTREAM / f"{path.name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(i) for i in line.split()] for line in (UPSTREAM / f"{path.name}.out").read_text().split("\n")]
    checked = 0
    for text, ids in zip(texts, expected, strict=False):
        assert vocab.tokenize(text, add_special=False) == ids, text
        checked += 1
    assert checked > 30


def test_threads_share_a_vocabulary(vocab):
    expected = vocab.tokenize("the more people look " * 200)
    wrong = []

    def work():
        for _ in range(30):
            if vocab.tokenize("the more people look " * 200) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Token ids as input


@pytest.mark.parametrize(
    "tokens",
    [[1, 2], (1, 2), range(1, 3), np.array([1, 2], np.int64), np.array([1, 2], np.uint8), np.array([1, 9, 2, 9])[::2]],
)
def test_token_ids_of_many_types(vocab, tokens):
    ids = vocab.as_token_array(tokens)
    assert ids.dtype == np.int32 and ids.flags.c_contiguous and ids.tolist() == [1, 2]
    assert vocab.detokenize(tokens) == vocab.detokenize([1, 2])


def test_no_tokens_at_all(vocab):
    for empty in ([], (), np.array([]), np.array([], np.int32)):
        assert vocab.as_token_array(empty).shape == (0,)
        assert vocab.detokenize(empty) == "" and vocab.detokenize_bytes(empty) == b""


def test_int32_arrays_are_not_copied(vocab):
    ids = vocab.tokenize_array("the more")
    assert vocab.as_token_array(ids) is ids


@pytest.mark.parametrize("wild", [-1, -(2**31), 2**31 - 1, 2**31, 2**63 - 1, 10_000])
def test_ids_out_of_range(vocab, wild):
    for call in (
        lambda: vocab.as_token_array([1, wild]),
        lambda: vocab.detokenize([wild]),
        lambda: vocab.token_to_piece(wild),
        lambda: vocab.text(wild),
        lambda: vocab.is_eog(wild),
        lambda: vocab.is_control(wild),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=rf"from .*{wild}|{wild}.*0 to {len(vocab) - 1}"):
            call()


@pytest.mark.parametrize("tokens", [[1.5], [[1, 2]], "text", [None], np.float32([1])])
def test_ids_that_are_no_ids(vocab, tokens):
    with pytest.raises(errors.InvalidArgumentError, match="integers in one dimension"):
        vocab.as_token_array(tokens)


# What the vocabulary tells


def test_size_and_type(load):
    expected = {"spm": enums.VocabType.SPM, "bpe": enums.VocabType.BPE}
    for kind, type in expected.items():
        model = load("llama", vocab=kind)
        assert model.vocab.type == type
        assert len(model.vocab) == model.vocab.n_tokens == model.n_vocab == len(model.vocab.pieces())
    assert load("bert").vocab.type == enums.VocabType.WPM
    assert load("t5").vocab.type == enums.VocabType.UGM


def test_pieces_are_what_each_token_gives(vocab):
    pieces, plain = vocab.pieces(), vocab.pieces(special=False)
    for i in range(len(vocab)):
        assert pieces[i] == vocab.token_to_piece(i)
        assert plain[i] == vocab.token_to_piece(i, special=False)
        special = enums.TokenAttr.CONTROL | enums.TokenAttr.UNKNOWN
        assert plain[i] == (b"" if vocab.attrs[i] & special else pieces[i])
    assert [i for i in range(len(vocab)) if pieces[i] != plain[i]], "control tokens are text when asked for"


def test_leading_spaces_can_be_left_out(spm):
    token = spm.tokenize(" the", add_special=False)[0]
    assert spm.token_to_piece(token) == b" the" and spm.token_to_piece(token, lstrip=1) == b"the"


def test_text_is_the_spelling_of_the_file(spm):
    token = spm.tokenize(" the", add_special=False)[0]
    assert spm.text(token) == "▁the" and spm.text(spm.bos) == "<s>"


def test_attributes_and_scores(spm):
    attrs, scores = spm.attrs, spm.scores
    assert (attrs.shape, attrs.dtype) == ((len(spm),), np.int32)
    assert (scores.shape, scores.dtype) == ((len(spm),), np.float32)
    assert enums.TokenAttr(attrs[spm.bos]) & enums.TokenAttr.CONTROL
    byte = spm.tokenize(b"\xff", add_special=False)[-1]
    assert enums.TokenAttr(attrs[byte]) & enums.TokenAttr.BYTE
    control = [i for i in range(len(spm)) if attrs[i] & enums.TokenAttr.CONTROL]
    assert control == [i for i in range(len(spm)) if spm.is_control(i)]
    space = spm.tokenize(" ", add_special=False)[-1]
    assert scores[space] == 0.0 and scores.min() < -100


def test_end_of_generation(vocab):
    assert vocab.eos in vocab.eog_tokens
    assert vocab.eog_tokens == [i for i in range(len(vocab)) if vocab.is_eog(i)]
    end = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True)[0]
    assert vocab.is_eog(end)


def test_tokens_for_filling_in_the_middle(vocab):
    for name in ("prefix", "suffix", "middle"):
        expected = vocab.tokenize(f"<|fim_{name}|>", add_special=False, parse_special=True)
        assert [getattr(vocab, f"fim_{name[:3]}")] == expected
    assert vocab.fim_pad is None and vocab.fim_rep is None and vocab.fim_sep is None


def test_special_tokens_or_none(load):
    spm, wpm, ugm = load("llama").vocab, load("bert").vocab, load("t5").vocab
    assert (spm.bos, spm.eos, spm.add_bos, spm.add_eos) == (1, 2, True, False)
    assert spm.mask is None and spm.sep is None
    pieces = wpm.pieces()
    assert [pieces[i] for i in (wpm.bos, wpm.sep, wpm.mask, wpm.pad)] == [b"[CLS]", b"[SEP]", b"[MASK]", b"[PAD]"]
    assert (ugm.eos, ugm.pad, ugm.add_eos, ugm.add_bos) == (1, 0, True, False)
    assert wpm.tokenize("the people")[0] == wpm.bos
    assert ugm.tokenize("the people")[-1] == ugm.eos
    assert all(vocab.suppress_tokens == [] for vocab in (spm, wpm, ugm))


def test_a_real_vocabulary(smollm2):
    vocab = smollm2.vocab
    assert (vocab.n_tokens, vocab.type) == (49152, enums.VocabType.BPE)
    ids = vocab.tokenize("Hello world")
    assert vocab.detokenize(ids) == "Hello world" and len(ids) == 2
    assert vocab.text(ids[1]) == "Ġworld"
    assert vocab.detokenize([vocab.eos]) == "<|im_end|>" and vocab.is_eog(vocab.eos)


# Lifetime


def test_a_vocabulary_keeps_its_model(tiny_models):
    vocab = Model(tiny_models["llama"]).vocab
    assert vocab.detokenize(vocab.tokenize("the people", add_special=False)) == "the people"


def test_a_vocabulary_of_a_closed_model(make_model, tiny_models):
    model = make_model(tiny_models["llama"])
    vocab = model.vocab
    assert model.vocab is vocab and vocab.address != 0 and "SPM" in repr(vocab)
    model.close()
    still_there = ("n_tokens", "as_token_array", "tokenize_address")  # nothing of the model is read
    calls = [name for name in dir(vocab) if not name.startswith("_") and name not in still_there]
    arguments = {"tokenize": ("a",), "tokenize_array": ("a",), "pieces": ()}
    arguments |= {"detokenize": ([1],), "detokenize_bytes": ([1],)}
    for name in calls:
        with pytest.raises(errors.ClosedError, match="closed"):
            value = getattr(vocab, name)
            value(*arguments.get(name, (1,)))
    assert "closed" in repr(vocab)


def test_a_model_without_weights(make_model, tiny_models):
    model = make_model(tiny_models["llama"], vocab_only=True)
    assert model.vocab.detokenize(model.vocab.tokenize("the people", add_special=False)) == "the people"


def test_no_vocabulary_without_a_model():
    for wrong in (None, 3):
        with pytest.raises(TypeError):
            Vocab(wrong)


@pytest.mark.parametrize("text", [bytearray(b"hi"), memoryview(b"hi")])
def test_bytes_in_disguise_are_no_token_ids(vocab, text):
    with pytest.raises(errors.InvalidArgumentError, match="is text"):
        vocab.as_token_array(text)
