"""Code that a model card shows: how a model of texts is loaded and asked."""

from __future__ import annotations

LOAD_MEAN = """\
```python
from hushtune.simulations.saved import load

model = load("FOLDER")  # base, adapter and head
print(model.predict(["a sentence"]))
```

`PeftModel.from_pretrained(base, "FOLDER")` loads the adapter alone onto the base model; the head
(mean of the token states, scaled to norm {scale:g}, then linear) is in `head.safetensors`.
`hushtune export RUN --to DIR --merged` writes both as one sentence-transformers folder.
"""
LOAD_OWN = """\
```python
import torch
{imports}
from transformers import AutoModelForSequenceClassification, AutoTokenizer

labels = {labels}
name = {name}
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
base = AutoModelForSequenceClassification.from_pretrained(name, {options})
base.config.pad_token_id = tokenizer.pad_token_id  # some bases name none
model = PeftModel.from_pretrained(base, "FOLDER").eval()
{answer}print([labels[place] for place in logits.argmax(1)])
```
"""
NAMED = (
    "from peft import PeftConfig, PeftModel",
    'PeftConfig.from_pretrained("FOLDER").base_model_name_or_path',
)
FETCHED = (
    "from hushtune.common.tasks.assets import fetch\nfrom peft import PeftModel",
    'fetch("demo")  # the very weights that were trained on, without the hub',
)
ANSWER = """\
rows = tokenizer(
    ["a sentence"],
    padding=True,
    truncation=True,
    max_length={max_tokens},
    return_tensors="pt",
    return_token_type_ids=False,
)
with torch.no_grad():
    logits = model(**rows).logits
"""
LOAD_MERGED_OWN = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("FOLDER").eval()
{answer}print([model.config.id2label[int(place)] for place in logits.argmax(1)])
```
"""
LOAD_MERGED_MEAN = """\
```python
from sentence_transformers import SentenceTransformer

labels = {labels}
model = SentenceTransformer("FOLDER")
logits = model.encode(["a sentence"])  # one column a label
print([labels[place] for place in logits.argmax(1)])
```
"""
