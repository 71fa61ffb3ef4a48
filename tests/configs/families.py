"""The numbers that each config of `transformers` can say: `python -m tests.configs.families` writes their table.

Each width that a config can say is halved alone, then all together; and the last layer of each list of layers goes.
Every small model is saved, and loaded by `transformers` in a process that cannot import fxprune; it has to compute the
same bits there.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import fxprune
from fxprune._attempt import Request
from fxprune._carry_out import carry_out
from fxprune._data_options import DataOptions
from fxprune._find import AnalyzeArguments, find
from fxprune.configs.fields import name_of
from fxprune.planning.uniform import with_config
from tests.configs.models import built, load_elsewhere, tensors_of
from tests.models import transformers_zoo as zoo
from tests.support import torchvision

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
BEGIN, END = "<!-- begin families -->", "<!-- end families -->"

KINDS = {
    "layers": r"^layers: ",
    "MLP width": r"intermediate|ffn|n_inner|d_ff|hidden_dim\b|mlp|d_inner|ff_dim|pf_dim|expand",
    "key/value heads": r"key_value|kv_heads",
    "heads": r"heads?\b|n_head|num_heads",
    "head width": r"d_kv|head_dim|d_head|embed_dim_per_head",
    "experts": r"expert",
    "state": r"state_size|d_state",
    "hidden size": r"hidden_size|d_model|n_embd|embed_dim|\bdim\b|width|channels|embedding_size|hidden_sizes|emb_dim",
}
"""The columns of the table, and the names of fields that belong there; the first one that fits takes a field."""

SECONDS = 200
"""The time that one family may take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure families, and write the table of all results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="classes; all of the zoo by default")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fxprune_families")
    parser.add_argument("--table", action="store_true", help="write the table from the results that are there")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.table:
        run(options.names or list(zoo.MODELS), options.folder)
    PAGE.write_text(with_table(PAGE.read_text(), loaded(read(options.folder), options.folder)))
    return 0


def read(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def run(names: Sequence[str], folder: Path) -> None:
    """Measure families, each in a process of its own."""
    torchvision()  # which transformers imports
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():
            process = get_context("fork").Process(target=_child, args=(name, folder))
            process.start()
            process.join(SECONDS + 30)
            if process.is_alive():
                process.kill()
            if not path.exists():
                path.write_text(json.dumps({"name": name, "error": "it took too long"}))
            print(path.read_text()[:500], flush=True)


def _child(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.alarm(SECONDS)
    try:
        result = measure(name, folder)
    except Exception as error:  # whatever a family raises is its result
        result = {"name": name, "error": f"{type(error).__name__}: {str(error)[:400]}"}
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1))


def measure(name: str, folder: Path) -> dict[str, Any]:
    """The fields of the config that can be halved, alone and together; the small models are saved into a folder."""
    start = time.perf_counter()
    model, inputs = built(name)
    call = AnalyzeArguments(model, inputs, prefer="class", outputs=counted(model, inputs))
    findings = with_config(find(call))
    widths, results = findings.config.widths(findings), {}
    for number, (fields, request) in enumerate([*requests_of(findings, widths).items(), *lists_of(model)]):
        target = folder / f"{name}.{number}"
        try:
            asked = Request(call, None, {"uniform": "config", **request}, known={findings.captured.path: findings})
            small: Any = carry_out(asked, DataOptions())
            if "drop" in request:
                fields = f"layers: {' and '.join(changed_fields(model.config.to_dict(), small.config.to_dict()))}"
            small.save_pretrained(target)
            assert not (target / "small_model.safetensors").exists(), "no config says it"
        except Exception as error:
            results[fields] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        with torch.no_grad():
            torch.save(tensors_of(small(**inputs)), target / "expected.pt")
        torch.save(inputs, target / "inputs.pt")
        gone = fxprune.record(small).plan.removed
        results[fields] = {"folder": target.name, "share": share_gone(findings, widths, gone)}
    held = sorted({re.sub(r"[0-9]+", "*", why) for why in widths.held.values()})
    seconds = round(time.perf_counter() - start, 1)
    builds = findings.config.probes.builder.count
    return {"name": name, "fields": results, "held": held[:6], "seconds": seconds, "builds": builds}


def requests_of(findings: Any, widths: Any) -> dict[str, dict[str, Any]]:
    """The fields of a width -> the request that halves it, as far as it can be halved; all together last."""
    requests: dict[str, dict[str, Any]] = {}
    for share in widths.shares:
        fields = sorted({name_of(f) for m in share.moves for f in widths.moves[m].fields})
        group = findings.groups[share.groups[0]]
        if share.steps > 1:
            total = widths.totals[group.number]
            kept = (share.steps + 1) // 2 * total // share.steps
            requests["+".join(fields)] = {"counts": {group.key: kept - (total - group.size)}}
    return {**requests, "together": {"ratio": 0.5}}


def lists_of(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A name for each list of layers -> the request that the last one goes."""
    outermost: list[str] = []
    for path, module in model.named_modules():
        alike = type(module) is torch.nn.ModuleList and len({type(layer) for layer in module}) == 1
        inside = any(path.startswith(f"{outer}.") for outer in outermost)
        if alike and len(module) > 1 and not inside and len(list(module[0].modules())) > 3:
            outermost.append(path)
            yield f"layers: {path}", {"drop": [f"{path}.{len(module) - 1}"]}


def changed_fields(before: Any, after: Any, keys: tuple[Any, ...] = ()) -> list[str]:
    """The names of the fields of a config that are others."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [n for key in before for n in changed_fields(before[key], after.get(key), (*keys, key))]
    return [] if before == after else [name_of(keys)]


def loaded(results: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The results, where each small model says whether it was loaded elsewhere and computed the same bits."""
    made = {found["folder"]: (result["name"], found) for result in results for found in fields_of(result)}
    new = {folder / name: kind for name, (kind, _) in made.items() if not (folder / name / "result.pt").exists()}
    load_elsewhere(new)
    for name, (_, found) in made.items():
        try:
            pairs = [torch.load(folder / name / file) for file in ("expected.pt", "result.pt")]
            found["same"] = len(pairs[0]) == len(pairs[1]) and all(map(torch.equal, *pairs))
        except OSError:
            found["same"] = False
    return results


def fields_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The small models of a result."""
    return [found for found in result.get("fields", {}).values() if "folder" in found]


def counted(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The results that have to keep their shape: the logits, where there are some. Hidden states are none."""
    with torch.no_grad():
        names = [name for name, value in model(**inputs).items() if isinstance(value, torch.Tensor)]
    return [name for name in names if "logits" in name] or None


def removed_of(group: Any, removed: Mapping[str, Any]) -> int:
    """The number of channels of a group that a plan removes."""
    member = group.producer
    gone = {*removed.get(member.parameter, {}).get(member.dim, ())}
    return sum({*member.slots[member.index == i].tolist()} <= gone for i in range(group.size))


def share_gone(findings: Any, widths: Any, removed: Mapping[str, Any]) -> float:
    """The channels that are gone, of half of those that the config can say, rounded down for each group."""
    groups = [findings.groups[number] for share in widths.shares for number in share.groups]
    asked = sum(group.size // 2 for group in groups)
    return round(sum(removed_of(group, removed) for group in groups) / max(asked, 1), 3)


# -- the table ---------------------------------------------------------------------------------------------------------


def with_table(page: str, results: Sequence[Mapping[str, Any]]) -> str:
    """A page with the table of some results between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{chr(10).join(table(results))}\n{END}{after}"


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of the table."""
    columns = list(KINDS)
    yield "| class | " + " | ".join(columns) + " | others | all together |"
    yield "| --- " * (len(columns) + 3) + "|"
    for result in sorted(results, key=lambda result: result["name"]):
        if "error" in result:
            yield f"| {result['name']} | " + " | " * (len(columns) + 1) + f"{short(result['error'])} |"
            continue
        cells: dict[str, list[str]] = {kind: [] for kind in [*columns, "others"]}
        for fields, found in result["fields"].items():
            if fields != "together" and found.get("same"):
                kind = next((k for k, p in KINDS.items() if re.search(p, fields)), "others")
                cells[kind].append(f"`{fields.removeprefix('layers: ')}`")
        together = result["fields"].get("together", {})
        told = f"{together['share']:.0%}" if together.get("same") else short(together.get("error", "other bits"))
        yield f"| {result['name']} | " + " | ".join(", ".join(c) for c in cells.values()) + f" | {told} |"


def short(text: str) -> str:
    """A text for a cell."""
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) < 100 else line[:97] + "..."


if __name__ == "__main__":
    sys.exit(main())
