"""Quantizing model files."""

import numpy as np
import pytest
from support import isolation

from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.gguf import GGUFReader
from pyllm.core.quantize import FTYPES, quantize


def logits(context, ids):
    context.decode(Batch.from_arrays(ids, outputs="all"))
    return context.logits.copy()


def types(path):
    with GGUFReader(path) as file:
        return {tensor.name: tensor.type for tensor in file.tensors}


@pytest.mark.parametrize(("ftype", "closeness"), [("Q8_0", 0.999), ("Q4_0", 0.9), ("Q4_K_M", 0.9), ("F16", 0.99999)])
def test_the_result_computes_nearly_the_same(
    tmp_path, tiny_models, tiny_model, make_model, make_context, ids, ftype, closeness
):
    path = tmp_path / "small.gguf"
    assert quantize(tiny_models["llama"], path, ftype, n_threads=2) == [str(path)]
    found = logits(make_context(make_model(path)), ids)
    expected = logits(make_context(tiny_model), ids)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > closeness
    assert path.stat().st_size < tiny_models["llama"].stat().st_size
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.gguf"]


def test_types_of_tensors(tmp_path, tiny_models):
    path = tmp_path / "a.gguf"
    quantize(
        tiny_models["llama"], path, "q4_0", output_tensor_type="Q8_0", token_embedding_type="F16",
        tensor_types={r"ffn_down": "Q5_1"}, kv_overrides={"general.name": "mine", "llama.context_length": 99},
    )  # fmt: skip
    found = types(path)
    assert found["output.weight"] == "Q8_0"
    assert found["token_embd.weight"] == "F16"
    assert found["blk.0.ffn_down.weight"] == "Q5_1"
    assert found["blk.0.attn_q.weight"] == "Q4_0"
    with GGUFReader(path) as file:
        assert (file.metadata["general.name"], file.metadata["llama.context_length"]) == ("mine", 99)
    quantize(tiny_models["llama"], path, "Q4_0", pure=True, quantize_output_tensor=False)
    assert types(path)["output.weight"] == "F32"
    quantize(tiny_models["llama"], path, "Q4_0", only_copy=True)
    assert types(path) == types(tiny_models["llama"])


def test_an_importance_matrix(tmp_path, tiny_models):
    path = tiny_models.make("llama", n_embd=256, n_ff=256)
    out = tmp_path / "a.gguf"
    with pytest.raises(errors.QuantizeError, match="imatrix"):
        quantize(path, out, "IQ2_XXS")
    assert list(tmp_path.iterdir()) == []
    shapes = {}
    with GGUFReader(path) as file:
        shapes = {tensor.name: tensor.shape for tensor in file.tensors if len(tensor.shape) == 2}
    imatrix = {name: np.linspace(0.5, 2, shape[-1], dtype=np.float32) for name, shape in shapes.items()}
    quantize(path, out, "IQ2_XXS", imatrix=imatrix)
    assert types(out)["blk.1.attn_q.weight"] == "IQ2_XXS"
    first = out.read_bytes()
    quantize(path, out, "IQ2_XXS", imatrix={name: values[::-1] for name, values in imatrix.items()})
    assert out.read_bytes() != first
    with pytest.raises(errors.QuantizeError, match="imatrix size 3"):
        quantize(path, out, "Q4_0", imatrix={"blk.0.attn_q.weight": np.ones(3, np.float32)})
    with pytest.raises(errors.InvalidArgumentError, match="finite"):
        quantize(path, out, "Q4_0", imatrix={"a": np.full(3, np.nan)})


def test_layers_can_be_left_out_and_nothing_be_written(tmp_path, tiny_models, make_model):
    path = tmp_path / "a.gguf"
    assert quantize(tiny_models["llama"], path, "Q8_0", dry_run=True) == []
    assert list(tmp_path.iterdir()) == []
    quantize(tiny_models["llama"], path, "Q8_0", prune_layers=[1])
    assert make_model(path).n_layer == 1
    with pytest.raises(errors.InvalidArgumentError, match="from 0 to 1"):
        quantize(tiny_models["llama"], path, "Q8_0", prune_layers=[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ftype": "Q4_X"}, "Q4_K_M"),
        ({"n_threads": -1}, "from 0 to 512"),
        ({"output_tensor_type": "Q9"}, "Q9"),
        ({"output_tensor_type": "Q8_K"}, "cannot be quantized"),
        ({"tensor_types": {"a": "I32"}}, "cannot be quantized"),
        ({"tensor_types": {"(": "Q8_0"}}, "regular expression"),
        ({"max_buf_size": 0}, "at least 1"),
        ({"kv_overrides": {"a": []}}, "kv_overrides"),
    ],
)
def test_arguments_out_of_range(tmp_path, tiny_models, arguments, message):
    with pytest.raises(errors.PyllmError, match=message):
        quantize(tiny_models["llama"], tmp_path / "a.gguf", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_quantized(tmp_path, tiny_models):
    out = tmp_path / "out.gguf"
    with pytest.raises(FileNotFoundError):
        quantize(tmp_path / "nothing.gguf", out)
    with pytest.raises(errors.InvalidArgumentError, match="is the input"):
        quantize(tiny_models["llama"], tiny_models["llama"])
    (tmp_path / "link.gguf").symlink_to(tiny_models["llama"])
    with pytest.raises(errors.InvalidArgumentError, match="is the input"):
        quantize(tiny_models["llama"], tmp_path / "link.gguf")
    small = tiny_models.make("llama", type="Q8_0")
    with pytest.raises(errors.QuantizeError, match="requantizing"):
        quantize(small, out, "Q4_0")
    assert not out.exists()
    quantize(small, out, "Q4_0", allow_requantize=True)
    before = out.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(tiny_models["llama"].read_bytes()[:-1000])
    with pytest.raises(errors.GGUFError):
        quantize(tmp_path / "cut.gguf", out)
    assert out.read_bytes() == before  # a failure leaves what was there


@pytest.mark.process
def test_every_type_ends_in_a_file_or_an_error(tiny_models, tmp_path):
    isolation.survive(
        """
from pyllm.core.quantize import FTYPES, quantize
done = []
for ftype in FTYPES:
    try:
        done += quantize(PATH, sys.argv[2], ftype, n_threads=2)
    except errors.QuantizeError as exception:
        assert exception.log, ftype
assert len(done) > 20, done
""",
        tiny_models.make("llama", n_embd=256, n_ff=256, n_layer=1),
        tmp_path / "a.gguf",
    )
    assert len(FTYPES) == len(set(FTYPES))


@pytest.mark.process
def test_weights_that_no_grid_holds(tiny_models, tmp_path):
    isolation.survive(
        """
from pyllm.core.gguf import GGUFReader
from pyllm.core.quantize import quantize
source, target = sys.argv[2:]
with GGUFReader(PATH) as file:
    tensor = file.tensor("blk.0.ffn_down.weight").copy()
    imatrix = {each.name: np.ones(each.shape[-1], np.float32) for each in file.tensors}
data = open(PATH, "rb").read()
large = tensor.copy()
large[0] = np.random.default_rng(0).normal(size=large.shape[1]) * 1e18
assert data.count(tensor.tobytes()) == 1
open(source, "wb").write(data.replace(tensor.tobytes(), large.tobytes()))
for ftype in ("IQ2_XS", "IQ3_XXS"):
    raises(errors.QuantizeError, ["blk.0.ffn_down.weight", "at most 1e+08"], quantize, source, target, ftype,
           n_threads=2, imatrix=imatrix)
wild = {name: values * np.float32(1e38) for name, values in imatrix.items()}
raises(errors.InvalidArgumentError, "1e+38", quantize, PATH, target, "IQ3_S", n_threads=2, imatrix=wild)
assert not os.path.exists(target)
""",
        tiny_models.make("llama", n_embd=256, n_ff=256, n_layer=1),
        tmp_path / "large.gguf",
        tmp_path / "out.gguf",
    )
