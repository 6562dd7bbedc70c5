"""Code that a model card shows: how a model of texts is loaded and asked."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hushtune.common.config_task import TaskConfig
from hushtune.common.kinds import Inputs, Targets
from hushtune.common.model import Head

LOAD_MEAN = """\
```python
from hushtune.simulations.saved import load

model = load("FOLDER")  # base, adapter and head
print(model.predict([{example}]))
```

`PeftModel.from_pretrained(base, "FOLDER")` loads the adapter alone onto the base model; the head
({what}) is in `head.safetensors`.
`hushtune export RUN --to DIR --merged` writes both as one {library} folder.
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
_ROWS = """\
rows = tokenizer(
    {texts},
    padding=True,
    truncation=True,
    max_length={max_tokens},
    return_tensors="pt",
    return_token_type_ids=False,
)
with torch.no_grad():
"""
ANSWER = f"""\
{_ROWS.replace("{texts}", '["a sentence"]')}    logits = model(**rows).logits
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

{labels}model = SentenceTransformer("FOLDER")
logits = model.encode([{example}])  # one column {column}
{told}
```
"""
_PARTS = f"""\
```python
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

{{labels}}tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model, head = AutoModel.from_pretrained("FOLDER").eval(), load_file("FOLDER/head.safetensors")
{_ROWS}    states = model(**rows).last_hidden_state
{{pooled}}{{told}}
```
"""
_OF_PAIRS = """\
mask = rows["attention_mask"]
second = {second} * mask  # 1 from the separator on
means = [
    (states * one[..., None]).sum(1) / one.sum(1, keepdim=True).clamp_min(1)
    for one in (mask - second, second)
]
features = torch.cat([torch.nn.functional.normalize(mean, dim=-1) for mean in means], 1)
logits = features @ head["weight"].T + head["bias"]
"""
_OF_TOKENS = """\
logits = states[0] @ head["weight"].T + head["bias"]
tokens = tokenizer.convert_ids_to_tokens(rows["input_ids"][0])
"""


def adapter(head: Head, *, scale: float) -> str:
    """How an adapter with a head of our own is used; ``scale``: norm of the features."""
    mean = f"mean of the token states, scaled to norm {scale:g}, then linear"
    what = {
        Head.PAIR: "the same of each of the two texts side by side: " + mean,
        Head.TOKENS: "linear, on the state of each token",
    }
    return LOAD_MEAN.format(
        example=json.dumps(json.dumps(["a sentence", "another"]))
        if head is Head.PAIR
        else '"a sentence"',
        what=what.get(head, mean),
        library="transformers" if head in what else "sentence-transformers",
    )


def merged(
    task: TaskConfig, head: Head, *, labels: Sequence[str], max_tokens: int, separator: int | None
) -> str:
    """How a merged model with a head of our own is used, without hushtune and peft."""
    names = f"labels = {json.dumps(list(labels), ensure_ascii=False)}\n" if labels else ""
    if head is Head.MEAN:
        column = "a label" if labels else "for the number"
        example = '"age: 41; home: rent"' if task.of.inputs is Inputs.COLUMNS else '"a sentence"'
        return LOAD_MERGED_MEAN.format(
            labels=names, column=column, told=told(task), example=example
        )
    second = f'((rows["input_ids"] == {separator}).cumsum(1) > 0)'
    if separator is None:
        second = 'torch.zeros_like(rows["input_ids"])'
    pair = head is Head.PAIR
    return _PARTS.format(
        labels=names,
        texts='["a sentence"],\n    ["another"]' if pair else '["words of a sentence"]',
        max_tokens=max_tokens,
        pooled=_OF_PAIRS.format(second=second) if pair else _OF_TOKENS,
        told=told(task),
    )


def told(task: TaskConfig) -> str:
    """The line that turns ``logits``, a row each, into answers; of tags those of one text's
    ``tokens``."""
    match task.of.targets:
        case Targets.NUMBER:
            low, high = task.bounds
            middle, half = (low + high) / 2, (high - low) / 2
            answer = f"{middle:g} + {half:g} * float(row[0])"
            return f"print([min(max({answer}, {low:g}), {high:g}) for row in logits])"
        case Targets.CLASSES:
            return "print([[n for n, x in zip(labels, row) if x > 0] for row in logits])"
        case Targets.TAGS:  # of a word its first token's
            return "print([(t, labels[place]) for t, place in zip(tokens, logits.argmax(1))])"
        case _:
            return "print([labels[place] for place in logits.argmax(1)])"
