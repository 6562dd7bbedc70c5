"""Weights of other formats become what transformers loads, with the same numbers."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common.errors import AssetError
from hushtune.common.tasks.assets import fetch, model_folder, public_name, resolve_model
from hushtune.common.tasks.weights import CONVERTED, smollm2
from hushtune.common.tasks.weights.dinov2 import dinov2_weights
from hushtune.common.tasks.weights.efficientnet import efficientnet_weights
from hushtune.common.tasks.weights.efficientnet_model import (
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
)
from hushtune.common.tasks.weights.onnx_file import read_graph
from hushtune.common.tasks.weights.torch_file import read_torch_file

# ------------------------------------------------------------------------------------- ONNX ----


def varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def piece(number: int, value: int | bytes | str) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, values: Any, *, packed: bool = False) -> bytes:
    array = np.asarray(values, dtype="<f4")
    dims = b"".join(map(varint, array.shape))
    shape = piece(1, dims) if packed else b"".join(piece(1, size) for size in array.shape)
    return piece(5, shape + piece(2, 1) + piece(8, name) + piece(9, array.tobytes()))


def node(name: str, *taken: str) -> bytes:
    inputs = b"".join(piece(1, one) for one in taken)
    return piece(1, inputs + piece(2, "out") + piece(3, name) + piece(4, "MatMul"))


LAYER = "/backbone/encoder/layer.0/mlp/fc1/MatMul"
SCORES = "/backbone/encoder/layer.0/attention/attention/MatMul"


def onnx_file(path: Path, *parts: bytes) -> Path:
    path.write_bytes(piece(1, 8) + piece(2, "torch") + piece(7, b"".join(parts)))
    return path


def test_a_graph_gives_its_tensors_and_what_nodes_take(tmp_path: Path) -> None:
    matrix = np.arange(300, dtype="<f4").reshape(2, 150)
    counts = piece(5, piece(1, 1) + piece(2, 7) + piece(8, "n") + piece(9, b"\0" * 8))  # int64
    other = varint(9 << 3 | 5) + b"\0" * 4 + varint(10 << 3 | 1) + b"\0" * 8
    graph = read_graph(
        onnx_file(
            tmp_path / "m", tensor("a", matrix), counts, other, node("x", "in", "a"),
            tensor("b", [[1.5]], packed=True),
        )
    )  # fmt: skip
    assert set(graph.tensors) == {"a", "b"}
    assert np.array_equal(graph.tensors["a"], matrix)
    assert graph.tensors["b"].shape == (1, 1)
    assert graph.inputs == {"x": ("in", "a")}


@pytest.mark.parametrize("content", [b"", b"\xff", piece(7, b"\x0a\xff"), piece(1, 8), b"\x3b\x00"])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(AssetError, match="not an ONNX model"):
        read_graph(tmp_path / "m")


def test_linear_layers_are_named_by_their_nodes_and_turned(tmp_path: Path) -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    parts = [
        tensor("backbone.encoder.layer.0.mlp.fc1.bias", [1.0, 2.0, 3.0]),
        tensor("decoder.bn1.weight", [1.0]),
        tensor("onnx::MatMul_7", matrix),
        tensor("onnx::Concat_1", [[[0.5]]]),
        tensor("onnx::Reshape_2", [[[0.1], [0.2]]]),
        node(LAYER, "x", "onnx::MatMul_7"),
        node(SCORES, "q", "k"),
        node("/backbone/embeddings/Reshape_1", "onnx::Reshape_2", "shape"),
    ]
    with pytest.raises(AssetError, match="position embeddings"):
        dinov2_weights(read_graph(onnx_file(tmp_path / "m", *parts)))
    parts.append(node("/backbone/embeddings/Concat_6", "onnx::Concat_1", "resized"))
    found = dinov2_weights(read_graph(onnx_file(tmp_path / "m", *parts)))
    assert set(found) == {
        "encoder.layer.0.mlp.fc1.bias",
        "encoder.layer.0.mlp.fc1.weight",
        "embeddings.position_embeddings",
    }
    assert np.array_equal(found["encoder.layer.0.mlp.fc1.weight"], matrix.T)
    positions = found["embeddings.position_embeddings"]
    assert positions.ravel().tolist() == pytest.approx([0.5, 0.1, 0.2])  # the class token's first


# ------------------------------------------------------------------------------ torch's file ----


def test_torch_file_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(
        whole=base, turned=base.T, part=base[1:3, 2:4], number=torch.tensor(7), one=torch.ones(1)
    )
    torch.save(state, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    found = read_torch_file(tmp_path / "m.pth")
    assert set(found) == set(state)
    for name, values in state.items():
        assert found[name].shape == tuple(values.shape)
        assert np.array_equal(found[name], values.numpy())


def test_a_file_with_more_than_tensors_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (mark,)

    for number, content in enumerate(
        (OrderedDict(a=Hostile()), [torch.ones(1)], OrderedDict(a=torch.ones(1).half()))
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=False)
        with pytest.raises(AssetError):
            read_torch_file(path)
    torch.save(OrderedDict(a=torch.ones(1)), tmp_path / "zip.pth")
    with pytest.raises(AssetError):
        read_torch_file(tmp_path / "zip.pth")
    assert not mark.exists()


def test_a_storage_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save(OrderedDict(a=torch.ones(8)), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(AssetError, match="beyond its storage"):
        read_torch_file(path)
    path.write_bytes(content[: -8 * 4 - 8] + struct.pack("<q", -1))
    with pytest.raises(AssetError):
        read_torch_file(path)


# ------------------------------------------------------------------------------ EfficientNet ----


def package_name(ours: str) -> str:
    """What the package calls a tensor of our model."""
    *place, part, kind, value = ours.split(".")
    norms = {"expand": 0, "depthwise": 1, "project": 2, "stem": 0, "head": 1}
    convs = {"stem": "_conv_stem", "head": "_conv_head"}
    name = f"_bn{norms[part]}" if kind == "norm" else convs.get(part, f"_{part}_conv")
    return ".".join((*(f"_{place[0]}.{number}" for number in place[1:]), name, value))


def test_every_tensor_of_the_network_has_a_name_in_the_package() -> None:
    model = EfficientNetLiteModel(EfficientNetLiteConfig())
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    theirs = {package_name(name): values for name, values in state.items()}
    assert len(theirs) == len(state) == 294
    assert "_blocks.15._project_conv.weight" in theirs
    back = efficientnet_weights({**theirs, "_fc.weight": np.ones(1), "_fc.bias": np.ones(1)})
    assert set(back) == set(state)
    assert all(back[name] is state[name] for name in state)
    with pytest.raises(AssetError, match="_swish"):
        efficientnet_weights({"_swish.weight": np.ones(1)})


def test_features_are_the_mean_over_places_and_odd_edges_are_right_and_below() -> None:
    torch.manual_seed(0)
    model = EfficientNetLiteModel(EfficientNetLiteConfig(stages=((3, 2, 1, 8, 1),))).eval()
    images = torch.randn(2, 3, 33, 48)
    with torch.no_grad():
        found = model(images)
        assert found.last_hidden_state.shape == (2, 1280, 9, 12)
        assert torch.equal(found.pooler_output, found.last_hidden_state.mean((2, 3)))
        # 48 wide, step 2, three wide: "same" wants one column of zeros, to the right.
        wider = torch.nn.functional.pad(images, (0, 1, 1, 1))
        conv = torch.nn.functional.conv2d(wider, model.stem.conv.weight, stride=2)
        assert torch.allclose(model.stem.norm(conv).clamp(0, 6), model.stem(images), atol=1e-6)


# --------------------------------------------------------------------------------- by name ----


@pytest.fixture
def quiet() -> Iterator[None]:
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    disable_progress_bar()
    yield
    enable_progress_bar()


def test_converted_models_keep_their_name() -> None:
    assert [public_name(name) for name in CONVERTED] == list(CONVERTED)
    assert public_name("demo") == "sentence-transformers/all-MiniLM-L6-v2"
    assert public_name("org/some-model") == "org/some-model"


def test_without_the_library_for_gguf_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSHTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(AssetError, match=r"pip install 'hushtune\[lm\]'"):
        model_folder("smollm2")
    assert not list((tmp_path / "built").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_real_dinov2_loads_whole() -> None:
    """Fetches 90 MB unless they are in the cache."""
    from transformers import AutoModel

    folder = resolve_model("dinov2-small")
    loaded: Any = AutoModel.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert sum(values.numel() for values in model.parameters()) == 22_056_192
    pixels = torch.linspace(-1, 1, 3 * 224 * 224).reshape(1, 3, 224, 224)
    with torch.no_grad():
        found = model.eval()(pixel_values=pixels).last_hidden_state
    # What ONNX Runtime 1.32 gives for the package's own file, at the norm before its decoder.
    assert found.shape == (1, 257, 384)
    assert found[0, 0, :4].tolist() == pytest.approx([0.8284, 0.58265, 2.46575, -4.41052], abs=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_real_efficientnet_knows_its_classes() -> None:
    """Fetches 17 MB unless they are in the cache."""
    from sklearn.datasets import load_sample_image
    from transformers import AutoModel

    folder = resolve_model("efficientnet-lite0")
    model: Any = AutoModel.from_pretrained(folder)
    (file,) = fetch("efficientnet-lite0").glob("*.pth")
    raw = read_torch_file(file)
    photo = torch.from_numpy(load_sample_image("china.jpg")[:, 100:527].copy())  # a palace
    pixels = torch.nn.functional.interpolate(
        photo.permute(2, 0, 1)[None] / 127.5 - 1, (224, 224), mode="bilinear"
    )
    with torch.no_grad():
        features = model.eval()(pixels).pooler_output
        scores = features @ torch.tensor(raw["_fc.weight"]).T + torch.tensor(raw["_fc.bias"])
    assert int(scores.argmax()) == 698  # ImageNet's "palace"


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_real_smollm2_answers() -> None:
    """Fetches 93 MB and converts them for a minute unless that is in the cache."""
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model("smollm2")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert sum(values.numel() for values in model.parameters()) == 134_515_008
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    assert tokenizer.decode(answer).endswith("The capital of France is Paris.<|im_end|>")
