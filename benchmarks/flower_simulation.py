"""Flower's simulation of clients that train a LeNet on one batch; runs in Flower's own environment.

    FOLDER/bin/python benchmarks/flower_simulation.py --clients 1000 --rounds 3

The last line it prints is a JSON list: seconds of each round, from choosing clients to the mean of
all their models. Calls `run_simulation`, so that neither a SuperLink nor its processes cost time;
each client asks for one processor, so that as many actors work as there are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

BATCH, SIDE, RATE = 32, 32, 0.05


def lenet() -> torch.nn.Module:
    """Return the model of `simulation.py`'s second task: 61,706 parameters."""
    nn = torch.nn
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def clients() -> ClientApp:
    """Return the clients' side: one step on one batch, which each process keeps."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        model = lenet()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        inputs, targets = torch.rand(BATCH, 1, SIDE, SIDE), torch.randint(0, 10, (BATCH,))
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return Message(
            content=RecordDict(
                {
                    "arrays": ArrayRecord(model.state_dict()),
                    "metrics": MetricRecord({"loss": loss.item(), "num-examples": BATCH}),
                }
            ),
            reply_to=message,
        )

    return app


class Timed(FedAvg):
    """FedAvg that notes how long its rounds took, and that all clients answered."""

    def __init__(self, wanted: int) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=wanted)
        self.wanted, self.seconds, self._began = wanted, list[float](), 0.0

    def configure_train(self, *arguments: Any) -> Iterable[Message]:
        """Note when the round began."""
        self._began = time.perf_counter()
        return super().configure_train(*arguments)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Note when the round ended."""
        answers = list(replies)
        good = sum(1 for answer in answers if answer.has_content())
        if good != self.wanted:
            raise SystemExit(f"{good} of {self.wanted} clients answered in round {server_round}")
        found = super().aggregate_train(server_round, answers)
        self.seconds.append(time.perf_counter() - self._began)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    strategy, server = Timed(options.clients), ServerApp()

    @server.main()
    def steer(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < options.clients:
            time.sleep(0.1)  # it would begin with those that have registered so far
        arrays = ArrayRecord(lenet().state_dict())
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=options.rounds)

    run_simulation(
        server_app=server,
        client_app=clients(),
        num_supernodes=options.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    sys.stdout.flush()
    print(json.dumps(strategy.seconds))


if __name__ == "__main__":
    main()
