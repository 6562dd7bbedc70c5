"""W as a Flower app on Flower's own simulation, written as Flower's examples are.

    python benchmarks/w_flower.py WORK.json

The model is built anew in each message, and what is trained travels as arrays (see the PyTorch
quickstart of Flower's repository). What a site does in a message is the plain loop's ``train``.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from w_bare import Batches, build, evaluate, install, train, trained_state
from w_work import Work, tell_steps, timed

WORK = "HUSHTUNE_BENCH_WORK"
"""The environment variable that tells Ray's workers where the work is."""

client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train_at_site(message: Message, context: Context) -> Message:
    """One site's steps of one round."""
    torch.set_num_threads(1)
    tell_steps()
    work = Work.read(os.environ[WORK])
    site = sorted(work.train)[int(context.node_config["partition-id"])]
    model = build(work)
    install(model, message.content["arrays"].to_torch_state_dict())
    seed = zlib.crc32(f"{work.seed} {message.metadata.group_id} {site}".encode())
    with timed("training"):
        train(model, work.train[site], Batches(work), work, seed)
    content = RecordDict(
        {
            "arrays": ArrayRecord(trained_state(model)),
            "metrics": MetricRecord({"num-examples": len(work.train[site])}),
        }
    )
    return Message(content=content, reply_to=message)


@server_app.main()
def main_of_server(grid: Grid, context: Context) -> None:
    """FedAvg, and the server's own look at 400 rows after each round."""
    del context
    torch.set_num_threads(1)
    work = Work.read(os.environ[WORK])
    model, batches = build(work), Batches(work)

    def judge(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number == 0:  # before the first round: no part of W
            return None
        install(model, arrays.to_torch_state_dict())
        with timed("evaluation") as told:
            told.update(evaluate(model, work.judged, batches, work.batch))
        return MetricRecord({"loss": told["loss"], "accuracy": told["accuracy"]})

    sites = len(work.train)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(trained_state(model)),
        num_rounds=work.rounds,
        evaluate_fn=judge,
    )


def main(arguments: Sequence[str]) -> Any:
    """Do what a file says."""
    os.environ[WORK] = arguments[0]
    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(Work.read(arguments[0]).train),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            # One core, as the others; and a cluster of its own, whatever else runs here.
            "init_args": {"address": "local", "num_cpus": 1, "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    from w_flower import main as by_name  # so that Ray's workers find the apps by their module

    by_name(sys.argv[1:])
