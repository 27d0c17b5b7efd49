"""What each tracker has stored, read without the code that wrote it: name -> [(step, value), ...]."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Points = dict[str, list[tuple[int, Any]]]


def of_tensorboard(beside: Path) -> Points:
    """Every record of the event files: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: Points = defaultdict(list)
    for file in sorted(beside.glob("tensorboard/*/events.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                stored = value.tensor.string_val[0].decode() if kind == "tensor" else getattr(value, kind)
                found[value.tag.removesuffix("/text_summary")].append((event.step, stored))
    return found


def of_swanlab(beside: Path) -> Points:
    """The files that `swanlab watch` shows, by the names that its database has for them."""
    database = sqlite3.connect(beside / "swanlog" / "runs.swanlab")
    query = "select e.run_id, e.status, t.name, t.folder from tag t join experiment e on t.experiment_id = e.id"
    found: Points = defaultdict(list)
    for run, status, name, folder in database.execute(query):
        for file in sorted((beside / "swanlog" / run / "logs" / folder).glob("*.log")):
            lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
            found[name] += [(line["index"], line["data"]) for line in lines]
        found["state"] = [(0, {1: "finished", -1: "ended", 0: "running"}[status])]
    found["experiments"] = [(0, name) for (name,) in database.execute("select name from experiment")]
    return found


def of_wandb(beside: Path) -> Points:
    """The records of the .wandb file, in blocks of 32 kB as LevelDB has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: Points = defaultdict(list)
    for file in sorted(beside.glob("wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, _leveldb(file.read_bytes()[7:])):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = record.history.item  # a picture is several of them, with its name in front
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
                step = record.history.step.num
                for name, value in row.items():
                    found[name].append((step, value))
            elif kind == "summary":
                for item in record.summary.update:
                    found[f"summary {item.key or '.'.join(item.nested_key)}"].append((0, json.loads(item.value_json)))
            elif kind == "exit":
                found["exit"].append((0, record.exit.exit_code))
    return found


def _leveldb(data: bytes) -> Iterator[bytes]:
    """Records: 4 bytes of checksum, 2 of length, 1 of type (1 whole, 2 first part, 3 middle, 4 last)."""
    at, parts, block = 0, b"", 32_768
    while at + 7 <= len(data):
        left = block - (at + 7) % block  # the header of the file counts in the first block
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def of_mlflow(beside: Path) -> Points:
    """Every point of every metric, as MLflow's client gives it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{beside / 'mlflow.db'}")
    found: Points = defaultdict(list)
    for run in client.search_runs([each.experiment_id for each in client.search_experiments()]):
        for name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            found[name] += sorted((point.step, point.value) for point in history)
        found["state"].append((0, run.info.status))
        found["files"] += [(0, each.path) for each in client.list_artifacts(run.info.run_id)]
        found["config"].append((0, run.data.params))
    return found


def of_trackio(beside: Path) -> Points:
    """The rows of the project's database."""
    found: Points = defaultdict(list)
    database = sqlite3.connect(beside / "trackio" / "luthier.db")
    for step, row in database.execute("select step, metrics from metrics order by id"):
        for name, value in json.loads(row).items():
            found[name].append((step, value))
    found["runs"] = [(0, name) for (name,) in database.execute("select distinct run_name from metrics")]
    return found


READERS = {
    "swanlab": of_swanlab,
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}
