"""How a card tells to load and ask a language model."""

from __future__ import annotations

_LOAD = """\
```python
from hushtune.simulations.saved import load

model = load("FOLDER")  # base and adapter
print(model.predict(["{text}"]))
```

`{auto}.from_pretrained("FOLDER")` of peft loads base and adapter too, where it finds the base.
`hushtune export RUN --to DIR --merged` writes both as one transformers folder.
"""
_LOAD_MERGED = """\
The adapter is merged into its base model: no peft is needed.

```python
import torch
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER").eval()
{rows}
with torch.no_grad():
    ids = model.generate(**rows, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(ids[0{shown}], skip_special_tokens=True))
```
"""
_ROWS_OF_CHAT = """\
messages = [{"role": "user", "content": "a question"}]
rows = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
_ROWS_OF_TEXT = 'rows = tokenizer("{text}", return_tensors="pt", return_token_type_ids=False)'


def load_words(*, apart: bool) -> str:
    """The lines that load an adapter; ``apart``: of a model with an encoder and a decoder."""
    auto = "AutoPeftModelForSeq2SeqLM" if apart else "AutoPeftModelForCausalLM"
    return _LOAD.format(auto=auto, text="a source text" if apart else "a question")


def use_words(*, apart: bool, chat: bool) -> str:
    """The lines that ask a merged model; ``chat``: its tokenizer has a chat template."""
    text = "a source text" if apart else r"user: a question\nassistant: "
    return _LOAD_MERGED.format(
        auto="AutoModelForSeq2SeqLM" if apart else "AutoModelForCausalLM",
        rows=_ROWS_OF_CHAT if chat and not apart else _ROWS_OF_TEXT.format(text=text),
        shown="" if apart else ', rows["input_ids"].shape[1] :',
    )
