"""How a trained model of images is used: the code in its card."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hushtune.common.model import Head

_ADAPTER_MEAN = """\
```python
from hushtune.simulations.saved import load

model = load("FOLDER")  # base, adapter and head
print(model.predict(["image.png"]))
```

`PeftModel.from_pretrained(base, "FOLDER")` loads the adapter alone onto the base model; the head
(mean of the states or of the map, scaled to norm {scale:g}, then linear) is in `head.safetensors`.
`hushtune export RUN --to DIR --merged` writes one transformers folder with that head beside it.
"""
_READ = """\
image = Image.open("image.png").convert("RGB")
pixels = processor(image, return_tensors="pt")
"""
_ADAPTER_OWN = """\
```python
import torch
from peft import PeftConfig, PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

labels = {labels}
name = PeftConfig.from_pretrained("FOLDER").base_model_name_or_path
processor = AutoImageProcessor.from_pretrained("FOLDER", backend="pil")
base = AutoModelForImageClassification.from_pretrained(
    name, num_labels={count}, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, "FOLDER").eval()
{read}with torch.no_grad():
    logits = model(**pixels).logits
print([labels[place] for place in logits.argmax(1)])
```
"""
_MERGED_OWN = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("FOLDER", backend="pil")
model = AutoModelForImageClassification.from_pretrained("FOLDER").eval()
{read}with torch.no_grad():
    logits = model(**pixels).logits
print([model.config.id2label[int(place)] for place in logits.argmax(1)])
```
"""
_MERGED_MEAN = """\
```python
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

labels = {labels}
processor = AutoImageProcessor.from_pretrained("FOLDER", backend="pil")
model, head = AutoModel.from_pretrained("FOLDER").eval(), load_file("FOLDER/head.safetensors")
{read}with torch.no_grad():
    states = model(**pixels).last_hidden_state
mean = states.mean((2, 3)) if states.dim() == 4 else states.mean(1)
features = torch.nn.functional.normalize(mean, dim=-1)
logits = features @ head["weight"].T + head["bias"]
print([labels[place] for place in logits.argmax(1)])
```
"""


def adapter(*, head: str, scale: float, labels: Sequence[str]) -> str:
    """How an adapter is used. ``head``: "mean" or "own"; ``scale``: norm of the features."""
    if head == "mean":
        return _ADAPTER_MEAN.format(scale=scale)
    return _ADAPTER_OWN.format(labels=_list(labels), count=len(labels), read=_READ)


def merged(*, head: Head, labels: Sequence[str]) -> str:
    """How a merged model is used, without hushtune and peft."""
    if head is Head.OWN:
        return _MERGED_OWN.format(read=_READ)
    return _MERGED_MEAN.format(labels=_list(labels), read=_READ)


def _list(labels: Sequence[str]) -> str:
    return json.dumps(list(labels), ensure_ascii=False)
