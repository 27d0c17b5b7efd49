"""LLaMA-Factory's dataset_info.json, read as it is: `data=FOLDER data.subset=NAME` trains on its entry NAME.

As there, `columns` and `tags` replace all defaults where they are given, and a column that is not named is
not read. Plain text is split at empty lines, as in all text files here, not at each line. A folder that
`datasets` saved has a file of the same name with other content, and is left alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, did_you_mean
from luthier.data.file_types.base import kind_of, refusal
from luthier.data.formats.base import FORMATS, Format
from luthier.data.read import splits_in
from luthier.data.settings import DataConfig

FILE = "dataset_info.json"
PLACES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
TEXTS = dict.fromkeys((*PLACES, "formatting", "subset", "split", "folder"), "")
MEDIA = ("images", "videos", "audios")
KEYS = (*TEXTS, "ranking", "num_samples", "columns", "tags")
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
COLUMNS |= dict.fromkeys(("history", "system", "tools", "chosen", "rejected", "kto_tag", *MEDIA), "")
TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
TAGS |= {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
"""A key of `columns` or `tags` -> its default."""
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
SHAREGPT = {"role_tag": "speaker", "content_tag": "value", "user_tag": "user", "assistant_tag": "assistant"}
SHAREGPT |= {"observation_tag": "tool_result", "function_tag": "tool_call", "system_tag": "system_speaker"}
"""A key of `tags` -> the field of format sharegpt."""
FORMATTINGS = ("alpaca", "sharegpt", "openai")


def resolve_name(config: DataConfig) -> tuple[DataConfig, str]:
    """The data block with the entry of dataset_info.json resolved, and where its format comes from; else as it was."""
    file, sets = entries_of(config.path)
    beside = not config.subset and file.parent == Path(config.path)
    if not sets or (beside and config.split in splits_in(file.parent)):
        return config, ""
    if config.subset not in sets:
        there = ", ".join([*sets][:20]) + (", ..." if len(sets) > 20 else "")
        why = f"no data set is named {config.subset!r}{did_you_mean(config.subset, sets)}; " if config.subset else ""
        raise DataError(f"{file}: {why}there are {there}", fix="name one with data.subset=NAME")
    entry = sets[config.subset]
    try:
        changes = _place(entry, config.hub, file.parent)
        if config.format is None:
            changes["format"] = _format(entry)
    except DataError as error:
        fix = error.fix or "fix the entry, or choose another data set with data.subset=NAME"
        raise DataError(f"{file}: {config.subset}: {error.message}", fix=fix) from None
    if config.limit is not None and "limit" in changes:
        changes["limit"] = min(config.limit, changes["limit"])
    return config.model_copy(update=changes), f"given by {file}" if config.format is None else ""


def entries_of(path: str) -> tuple[Path, dict[str, Any]]:
    """The dataset_info.json of LLaMA-Factory that data.path is, or is the folder of, and its entries, if it is one."""
    builtin = not path or path.startswith("builtin:")
    file = Path(path) / FILE if not builtin and kind_of(path) == "folder" else Path(path)
    if builtin or file.name != FILE or kind_of(str(file)) != "file":
        return file, {}
    try:
        made = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise refusal(file, error) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: invalid JSON: {error}", fix="fix the file") from None
    entries = made.values() if isinstance(made, dict) else ()
    ours = any(isinstance(entry, dict) and entry.keys() & {*PLACES} for entry in entries)
    return file, made if ours else {}


def _texts(given: Any, known: Mapping[str, str], what: str) -> dict[str, str]:
    """The texts of an object, empty where they are missing; DataError for what else it has."""
    if not isinstance(given, dict):
        raise DataError(f"{what} should be an object, not {type(given).__name__}")
    for key, value in given.items():
        if key not in known:
            raise DataError(f"unknown key {key!r} in {what}{did_you_mean(key, known)}")
        if value is not None and not isinstance(value, str):
            raise DataError(f"{key} should be text, not {type(value).__name__}")
    return {key: given.get(key) or "" for key in known}


def _place(entry: Any, hub: str, folder: Path) -> dict[str, Any]:
    """data.path, hub, split, subset and limit of an entry of the table in this folder."""
    if not isinstance(entry, dict):
        raise DataError(f"should be an object, not {type(entry).__name__}")
    if unknown := [key for key in entry if key not in KEYS]:
        raise DataError(f"unknown key {unknown[0]!r}{did_you_mean(unknown[0], KEYS)}")
    texts = _texts({key: entry.get(key) for key in TEXTS}, TEXTS, "the entry")
    if texts["folder"]:
        why = "takes one folder of a hub data set, which this version cannot"
        raise DataError(why, fix="fetch it, and give its files")
    part: dict[str, Any] = {"split": texts["split"] or "train", "subset": texts["subset"]}
    if (count := entry.get("num_samples")) is not None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise DataError(f"num_samples should be a number of rows, not {count!r}")
        part["limit"] = count
    ids = {"huggingface": texts["hf_hub_url"], "modelscope": texts["ms_hub_url"]}
    hub = hub if ids[hub] else next((other for other, name in ids.items() if name), "")
    if hub:
        return {"path": ids[hub], "hub": hub, **part}
    if texts["file_name"]:
        return {"path": str(folder / texts["file_name"]), **part}
    other = next((key for key in PLACES if key in entry), "no place")
    why = f"has {other}, and neither file_name, hf_hub_url nor ms_hub_url"
    raise DataError(why, fix="fetch the rows, and name them")


def _format(entry: Mapping[str, Any]) -> Format:
    """The format and its column names."""
    columns, tags = (
        dict(known) if entry.get(block) is None else _texts(entry[block], known, block)
        for block, known in (("columns", COLUMNS), ("tags", TAGS))
    )
    for kind in MEDIA:
        if columns[kind]:
            why = f"has {kind} (column {columns[kind]!r}), which this version cannot train on"
            raise DataError(why, fix="choose a data set of text with data.subset=NAME")
    formatting = entry.get("formatting") or "alpaca"
    if formatting not in FORMATTINGS:
        hint = did_you_mean(formatting, FORMATTINGS)
        raise DataError(f"unknown formatting {formatting!r}{hint}; known are {', '.join(FORMATTINGS)}")
    turns, pairs, judged = formatting != "alpaca", bool(entry.get("ranking")), columns["kto_tag"]
    # Where tags are given, a missing one keeps its default: a name is needed, and the usual ones are known.
    tags = {key: tags[key] or default for key, default in TAGS.items()}
    if formatting == "openai" and "tags" not in entry:
        tags |= OPENAI_TAGS
    if (pairs or judged) and turns and tags not in (TAGS, TAGS | OPENAI_TAGS):
        raise DataError("has tags of its own, which are read for dialogues and not for judged answers")
    if (pairs or judged) and columns["history"]:
        raise DataError("has a history beside judged answers, which this version cannot read")
    needed = ["messages" if turns else "prompt", *(["chosen", "rejected"] if pairs else [])]
    needed += ["response"] if judged and not pairs and not turns else []
    if missing := [key for key in needed if not columns[key]]:
        raise DataError(f"columns names no {missing[0]!r}")
    prompt, answer = columns[needed[0]], columns["response"]
    fields = {"system": columns["system"], "tools": columns["tools"]}
    material = "" if turns else columns["query"]
    if pairs:
        sides = {"chosen": columns["chosen"], "rejected": columns["rejected"]}
        return FORMATS.parse({"name": "preference", "prompt": prompt, "input": material, **sides, **fields})
    if judged:
        fields |= {"messages": prompt, "prompt": ""} if turns else {"prompt": prompt, "completion": answer}
        return FORMATS.parse({"name": "kto", "label": judged, "input": material, **fields})
    if turns:
        fields |= {SHAREGPT[key]: tag for key, tag in tags.items()}
        return FORMATS.parse({"name": "sharegpt", "conversations": prompt, **fields})
    if not answer:  # LLaMA-Factory's layout of plain text, for pretraining
        return FORMATS.parse({"name": "text", "text": prompt})
    fields |= {"instruction": prompt, "input": material, "output": answer, "history": columns["history"]}
    return FORMATS.parse({"name": "alpaca", **fields})
