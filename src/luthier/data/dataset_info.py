"""LLaMA-Factory's dataset_info.json, read as it is: `data=FOLDER data.subset=NAME` trains on its entry NAME.

As there, `columns` and `tags` replace all defaults where they are given, and a column that is not named is
not read. Plain text is split at empty lines, as in all text files here, not at each line. A folder that
`datasets` saved has a file of the same name with other content, and is left alone.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, did_you_mean
from luthier.data.formats.base import FORMATS, Format
from luthier.data.read import has_split
from luthier.data.reading.files import kind_of, refusal
from luthier.data.settings import DataConfig

FILE = "dataset_info.json"
PLACES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
KEYS = (*PLACES, "formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
COLUMNS |= dict.fromkeys(
    ["history", "system", "tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag"], ""
)
TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
TAGS |= {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
"""A key of `columns` or `tags` -> its default."""
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
SHAREGPT = {"role_tag": "speaker", "content_tag": "value", "user_tag": "user", "assistant_tag": "assistant"}
SHAREGPT |= {"observation_tag": "tool_result", "function_tag": "tool_call", "system_tag": "system_speaker"}
"""A key of `tags` -> the field of format sharegpt."""
FORMATTINGS = ("alpaca", "sharegpt", "openai")


def named(config: DataConfig, name: str) -> bool:
    """Is `name` a data set of the dataset_info.json at data.path?"""
    file = _file(config.path)
    return file is not None and name in _sets(file)


def resolve_name(config: DataConfig) -> tuple[DataConfig, str]:
    """The data block with the entry of dataset_info.json resolved, and where its format comes from; else as it was."""
    file = _file(config.path)
    if file is None or (
        not config.subset and file.parent == Path(config.path) and has_split(file.parent, config.split)
    ):
        return config, ""
    sets = _sets(file)
    if config.subset not in sets:
        there = ", ".join([*sets][:20]) + (", ..." if len(sets) > 20 else "")
        why = f"no data set is named {config.subset!r}{did_you_mean(config.subset, sets)}; " if config.subset else ""
        raise DataError(f"{file}: {why}there are {there}", fix="name one with data.subset=NAME")
    entry = sets[config.subset]
    given = config.format is not None
    try:
        changes = _place(entry, config.hub)
        if not given:
            changes["format"] = _format(entry)
    except _Unusable as error:
        raise DataError(f"{file}: {config.subset}: {error}", fix=error.fix) from None
    if "file_name" in changes:
        changes["path"] = str(file.parent / changes.pop("file_name"))
    if config.limit is not None and "limit" in changes:
        changes["limit"] = min(config.limit, changes["limit"])
    return config.model_copy(update=changes), "" if given else f"given by {file}"


class _Unusable(Exception):
    """An entry that cannot be read or trained on."""

    def __init__(self, reason: str, fix: str = "fix the entry, or choose another data set with data.subset=NAME"):
        super().__init__(reason)
        self.fix = fix


def _file(path: str) -> Path | None:
    """The dataset_info.json of LLaMA-Factory that data.path is, or is the folder of."""
    if not path or path.startswith("builtin:"):
        return None
    kind = kind_of(path)
    file = Path(path) / FILE if kind == "folder" else Path(path)
    if file.name != FILE or kind_of(str(file)) != "file":
        return None
    made = _load(file, file.stat().st_mtime_ns)
    entries = made.values() if isinstance(made, dict) else ()
    return file if any(isinstance(entry, dict) and entry.keys() & {*PLACES} for entry in entries) else None


@lru_cache(maxsize=8)
def _load(file: Path, _changed: int) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise refusal(file, error) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: invalid JSON: {error}", fix="fix the file") from None


def _sets(file: Path) -> dict[str, Any]:
    return dict(_load(file, file.stat().st_mtime_ns))


def _place(entry: Any, hub: str) -> dict[str, Any]:
    """data.path, or file_name beside the table, with hub, split, subset and limit."""
    if not isinstance(entry, dict):
        raise _Unusable(f"should be an object, not {type(entry).__name__}")
    for key in entry:
        if key not in KEYS:
            raise _Unusable(f"unknown key {key!r}{did_you_mean(key, KEYS)}")
    if entry.get("folder"):
        raise _Unusable("takes one folder of a hub data set, which this version cannot", "fetch it, and give its files")
    part: dict[str, Any] = {"split": _text(entry, "split") or "train", "subset": _text(entry, "subset")}
    if (count := entry.get("num_samples")) is not None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise _Unusable(f"num_samples should be a number of rows, not {count!r}")
        part["limit"] = count
    ids = {"huggingface": _text(entry, "hf_hub_url"), "modelscope": _text(entry, "ms_hub_url")}
    hub = hub if ids[hub] else next((other for other, name in ids.items() if name), "")
    if hub:
        return {"path": ids[hub], "hub": hub, **part}
    if name := _text(entry, "file_name"):
        return {"file_name": name, **part}
    other = next((key for key in PLACES if key in entry), "no place")
    raise _Unusable(f"has {other}, and neither file_name, hf_hub_url nor ms_hub_url", "fetch the rows, and name them")


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise _Unusable(f"{key} should be text, not {type(value).__name__}")
    return value or ""


def _names(entry: Mapping[str, Any], block: str, known: Mapping[str, str]) -> dict[str, str]:
    """A block of names; one that is not given has the defaults, one that is has nothing else."""
    given = entry.get(block)
    if given is None:
        return dict(known)
    if not isinstance(given, dict):
        raise _Unusable(f"{block} should be an object, not {type(given).__name__}")
    for key in given:
        if key not in known:
            raise _Unusable(f"unknown key {key!r} in {block}{did_you_mean(key, known)}")
    return {key: _text(given, key) for key in known}


def _format(entry: Mapping[str, Any]) -> Format:
    """The format and its column names."""
    columns = _names(entry, "columns", COLUMNS)
    for kind in ("images", "videos", "audios"):
        if columns[kind]:
            why = f"has {kind} (column {columns[kind]!r}), which this version cannot train on"
            raise _Unusable(why, "choose a data set of text with data.subset=NAME")
    formatting = _text(entry, "formatting") or "alpaca"
    if formatting not in FORMATTINGS:
        hint = did_you_mean(formatting, FORMATTINGS)
        raise _Unusable(f"unknown formatting {formatting!r}{hint}; known are {', '.join(FORMATTINGS)}")
    turns = formatting != "alpaca"
    tags = _names(entry, "tags", TAGS)
    # Where tags are given, a missing one keeps its default: a name is needed, and the usual ones are known.
    tags = {key: tags[key] or default for key, default in TAGS.items()}
    if formatting == "openai" and "tags" not in entry:
        tags |= OPENAI_TAGS
    shared = {"system": columns["system"], "tools": columns["tools"]}
    if entry.get("ranking") or columns["kto_tag"]:
        return _judged(entry, columns, tags, turns, shared)
    if turns:
        fields = {"conversations": _needed(columns, "messages"), **{SHAREGPT[key]: tags[key] for key in TAGS}}
        return FORMATS.parse({"name": "sharegpt", **fields, **shared})
    prompt = _needed(columns, "prompt")
    if not columns["response"]:  # LLaMA-Factory's layout of plain text, for pretraining
        return FORMATS.parse({"name": "text", "text": prompt})
    fields = {"instruction": prompt, "input": columns["query"], "output": columns["response"]}
    return FORMATS.parse({"name": "alpaca", **fields, "history": columns["history"], **shared})


def _judged(
    entry: Mapping[str, Any], columns: dict[str, str], tags: dict[str, str], turns: bool, shared: dict[str, str]
) -> Format:
    """The format of preference pairs and judged answers."""
    if turns and tags not in (TAGS, TAGS | OPENAI_TAGS):
        raise _Unusable("has tags of its own, which are read for dialogues and not for judged answers")
    if columns["history"]:
        raise _Unusable("has a history beside judged answers, which this version cannot read")
    fields = {"input": "" if turns else columns["query"], **shared}
    prompt = _needed(columns, "messages" if turns else "prompt")
    if entry.get("ranking"):
        names = {key: _needed(columns, key) for key in ("chosen", "rejected")}
        return FORMATS.parse({"name": "preference", "prompt": prompt, **names, **fields})
    names = {"messages": prompt, "prompt": ""} if turns else {"prompt": prompt}
    names |= {} if turns else {"completion": _needed(columns, "response")}
    return FORMATS.parse({"name": "kto", "label": columns["kto_tag"], **names, **fields})


def _needed(columns: Mapping[str, str], key: str) -> str:
    if not columns[key]:
        raise _Unusable(f"columns names no {key!r}")
    return columns[key]
