"""Which files of a data set belong to which split, as the Hub documents it.

A data set's card may say so (`configs`, huggingface.co/docs/hub/datasets-manual-configuration); else the names of
files and folders do (huggingface.co/docs/hub/datasets-file-names-and-splits): `train-0.parquet`, `data/test/a.jsonl`.
A directory on disk is read alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml
from fsspec.utils import glob_translate

from ftllm.data.rows import is_data_file, suffix_of
from ftllm.errors import UserError

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# JSON that describes a data set and holds none of it.
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}

Splits = dict[str, list[str]]


def files_of(
    names: Sequence[str], card: str, wanted: Sequence[str], place: str, *, one_kind: bool
) -> tuple[str, list[str]]:
    """The files of one split.

    Args:
        names: relative names of all files there.
        card: the text of README.md; empty where there is none.
        wanted: a split, a configuration, or a configuration and a split; nothing takes `train`, or the only split.
        place: what complaints call the data set.
        one_kind: where a split lies there in several file formats, take the commonest alone, for it is there twice.

    Returns:
        The split's name (`config:split` where there are several configurations), and its files, sorted.

    Raises:
        UserError: there is no data, no such split or configuration, or it must be chosen.
    """
    data = sorted(name for name in names if is_data_file(name) and _plain(name))
    if not data:
        script = [name for name in names if name.endswith(".py")]
        if script:
            hint = f"take the Hub's own conversion: {place}@refs/convert/parquet"
            raise UserError(f"{place} has only a loading script ({script[0]}), which is never run", hint)
        raise UserError(f"{place} holds no data", "data files end in .jsonl, .json, .csv, .tsv or .parquet")
    described, default = _described(card, data)
    if not described:
        described[""], default = _by_name(data, one_kind=one_kind), ""
    config, asked = _chosen(described, default, wanted, place)
    splits = described[config]
    split = _split(splits, asked, place)
    return (f"{config}:{split}" if len(described) > 1 else split), splits[split]


def _plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[-1] not in DESCRIPTIONS and not any(part.startswith((".", "__")) for part in parts)


def _chosen(
    described: Mapping[str, Splits], default: str | None, wanted: Sequence[str], place: str
) -> tuple[str, str | None]:
    """The configuration and the split that `wanted` means; None is the split taken where none is asked for."""
    if len(wanted) > 1:
        config, split = wanted[0], wanted[1]
        if config not in described:
            known = ", ".join(filter(None, described)) or "none"
            raise UserError(f"{place} has no configuration {config!r}", f"it has {known}")
        return config, split
    if wanted and wanted[0] in described and (default is None or wanted[0] not in described[default]):
        return wanted[0], None
    if default is None:
        first = next(iter(described))
        raise UserError(f"{place} has several configurations: {', '.join(described)}", f"choose one: {place}:{first}")
    return default, wanted[0] if wanted else None


def _split(splits: Splits, asked: str | None, place: str) -> str:
    if asked is not None:
        if asked in splits:
            return asked
        for name, words in WORDS.items():
            if asked in words and name in splits:
                return name
        raise UserError(f"{place} has no split {asked!r}", f"it has {', '.join(splits)}")
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else next(iter(splits))
    first = next(iter(splits))
    raise UserError(f"{place} has no split 'train', but {', '.join(splits)}", f"choose one: {place}:{first}")


def _by_name(data: Sequence[str], *, one_kind: bool) -> Splits:
    splits: Splits = {}
    for name in data:
        splits.setdefault(_split_of(name), []).append(name)
    if one_kind:
        for split, files in splits.items():
            kinds = Counter(suffix_of(name) for name in files)
            commonest = max(kinds, key=lambda kind: (kinds[kind], kind))
            splits[split] = [name for name in files if suffix_of(name) == commonest]
    return splits


def _split_of(name: str) -> str:
    """The split that a file's own name says, else the nearest folder's, else `train`."""
    for part in reversed(PurePosixPath(name).parts):
        words = re.split(r"[^a-z]+", part.lower())
        for split, known in WORDS.items():
            if any(word in known for word in words):
                return split
    return "train"


def _described(card: str, data: Sequence[str]) -> tuple[dict[str, Splits], str | None]:
    """The configurations a card describes, those whose files are there, and the default one."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|\Z)", card, re.DOTALL)
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        head = None
    configs = head.get("configs") if isinstance(head, dict) else None
    found: dict[str, Splits] = {}
    default: str | None = None
    for config in configs if isinstance(configs, list) else ():
        splits = _described_splits(config, data) if isinstance(config, dict) else {}
        if splits:
            name = str(config.get("config_name", "default"))
            found[name] = splits
            if config.get("default") or (name == "default" and default is None):
                default = name
    return found, next(iter(found)) if len(found) == 1 else default


def _described_splits(config: Mapping[str, Any], data: Sequence[str]) -> Splits:
    folder = str(config.get("data_dir") or "")
    given = config.get("data_files")
    if given is None:
        return _by_name([name for name in data if name.startswith(f"{folder}/" if folder else "")], one_kind=True)
    splits: Splits = {}
    for entry in given if isinstance(given, list) else [given]:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        files = splits.setdefault(str(split), [])
        for path in paths if isinstance(paths, list) else [paths]:
            pattern = re.compile(glob_translate(str(PurePosixPath(folder, str(path)))))
            files += [name for name in data if pattern.match(name) and name not in files]
    return {split: files for split, files in splits.items() if files}
