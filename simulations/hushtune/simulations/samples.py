"""What a language model answers before and after training, for a few test rows.

They quote what sites hold, so they are the researcher's: in the run's folder and the terminal, and
never in a card or a statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.kinds import Inputs, Targets
from hushtune.common.lora_rules import RULES
from hushtune.common.planning import POOLED
from hushtune.common.run_context import RunContext
from hushtune.common.seeds import rng
from hushtune.common.tasks.kinds.causal_lm import messages_of
from hushtune.common.tasks.workspace import Workspace
from hushtune.common.tasks.writing import write
from hushtune.server.strategy import FederationResult
from hushtune.simulations.own_models import site_states
from hushtune.simulations.written import written_line

Sample = Mapping[str, str]
"""site, prompt, reference, and the answers of the models ``untrained`` and ``trained``."""
FILE = "samples.md"


def has_samples(config: RunConfig) -> bool:
    """Whether a run ends with answers to test rows."""
    return config.task.of.targets is Targets.ANSWER and config.simulation.samples > 0


def samples(
    context: RunContext, workspace: Workspace, result: FederationResult
) -> Sequence[Sample]:
    """Answers of the untrained and the trained model to test rows of sites in turn.

    Where a rule leaves a part of every model at its site, a site's row is answered with it.
    """
    config = context.config
    if not has_samples(config):
        return ()
    rows = chosen(workspace, config)
    own = dict[str, AdapterState]()
    if RULES[config.aggregation.rule].kept:
        own = dict(site_states(context, result.state, run=result.run))
    before = [_answer(workspace, config, workspace.initial_state, row) for _, row in rows]
    after = [_answer(workspace, config, own.get(site, result.state), row) for site, row in rows]
    return [
        {
            "site": site,
            "prompt": prompt_words(workspace.data.texts[row], config),
            "reference": workspace.data.answers[row],
            "untrained": untrained,
            "trained": trained,
        }
        for (site, row), untrained, trained in zip(rows, before, after, strict=True)
    ]


def chosen(workspace: Workspace, config: RunConfig) -> list[tuple[str, int]]:
    """Sites with test rows of theirs, drawn by the seed: a row of each site before a second."""
    random = rng(config.seed, "samples")
    sites = [str(site) for site in random.permutation(sorted(config.data.public_sizes))]
    queues = [random.permutation(workspace.rows(site, "test")) for site in sites]
    deepest = max(len(queue) for queue in queues)
    found = [
        (site, int(queue[turn]))
        for turn in range(deepest)
        for site, queue in zip(sites, queues, strict=True)
        if turn < len(queue)
    ]
    return found[: config.simulation.samples]


def _answer(workspace: Workspace, config: RunConfig, state: AdapterState, row: int) -> str:
    model = workspace.task.model
    lora.install(model, state)
    model.frozen_mode()
    return write(
        model,
        cast(PreTrainedTokenizerBase, workspace.encoder),
        workspace.data.texts[row],
        kind=config.task.of,
        max_tokens=config.model.max_tokens,
    )


def prompt_words(text: str, config: RunConfig) -> str:
    """A canonical input as it is read by people."""
    if config.task.of.inputs is not Inputs.MESSAGES:
        return text
    turns = messages_of(text)
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def as_page(summary: Mapping[str, Any]) -> str:
    """The samples of a run's summary in Markdown, with the figure before and after."""
    metric, table = summary["metric"], summary["table"]
    parts = [
        "# Answers before and after training",
        "For the researcher, who holds all rows: this page quotes test rows of the sites. It is no "
        "part of the model, its card or the privacy statement, and goes nowhere with them.",
        f"{metric.replace('_', ' ').capitalize()} on all test rows: "
        f"{table['untrained'][POOLED]:.3f} untrained, {table['federated'][POOLED]:.3f} trained. "
        "Each answer is the most likely token after the other. " + written_line(summary["written"]),
    ]
    for number, sample in enumerate(summary["samples"], start=1):
        parts.append(f"## {number}. A row of site {sample['site']}")
        for name in ("prompt", "reference", "untrained", "trained"):
            parts += [f"{name.capitalize()}:", _quoted(sample[name])]
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    """A text as a block that no Markdown in it can leave."""
    return "\n".join("    " + line for line in (text or "(nothing)").splitlines())
