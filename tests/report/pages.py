"""Pages for the tests of the browser: small models, and one of a thousand layers that is never run."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune._search import Pareto, ParetoPoint, Sensitivity, SensitivityPoint
from fxprune.report.html.page import page
from tests.report.test_report import Blocks

EVIL = '</script><img src="x" onerror="document.title=\'hurt\'">\'&amp;'


def analysis() -> fxprune.Analysis:
    torch.manual_seed(0)
    return fxprune.analyze(Blocks().eval(), torch.randn(2, 6))


def curves(found: fxprune.Analysis) -> list[Any]:
    """A sensitivity of two groups, and a Pareto front of which one point is repaired, with long numbers."""
    keys = [group.key for group in found.groups[:2]]
    points = tuple(SensitivityPoint(k, r, 8, 4, 0.5, 0.9 - r, 0.95 - r / 2) for k in keys for r in (0.25, 0.5))
    front = (
        ParetoPoint(0.5, 0.5, 24606, 98424, 2_680_000, 0.01488, 0.0001488),
        ParetoPoint(0.1, 0.2, 5, 20, None, 0.4, None, met=False),
    )
    return [Sensitivity("score", 0.9, points), Pareto("macs", "score", 0.9, front)]


def planned() -> str:
    found = analysis()
    return found.report("html", plan=found.plan(ratio=0.5), curves=curves(found))


def recorded() -> str:
    found = analysis()
    small = found.transform(ratio=0.5, verify=False)
    return fxprune.record(small).report("html", analysis=found)


def alone() -> str:
    return fxprune.record(analysis().transform(ratio=0.5, verify=False)).report("html")


def dropped() -> str:
    """A record alone, of a model that lost a branch whole."""
    small = fxprune.transform(analysis().model, torch.randn(2, 6), drop=["blocks.1"], ratio=0.5, verify=False)
    return fxprune.record(small).report("html")


class States(nn.Module):
    """Layers whose outputs can go, whose inputs alone can, and that keep all; and a parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.up, self.head = nn.Linear(3, 4), nn.Linear(4, 8), nn.Linear(8, 2)
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.up(self.alone(x).sort(-1).values) + self.shift))


def states() -> str:
    return fxprune.analyze(States().eval(), torch.randn(2, 3)).report("html")


class Repeated(nn.Module):
    """A block that owns a parameter and a product, and has two ways into it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.product, self.down, self.scale = (
            nn.Linear(8, 6),
            Product(),
            nn.Linear(6, 8),
            nn.Parameter(torch.ones(8)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.down(self.product(self.q(x)))


class Product(nn.Module):
    """A module without parameters that multiplies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.mT @ x


class Late(nn.Module):
    """A model whose head is declared first; six blocks, each of which hands two results to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.cls = nn.Linear(8, 3), nn.Parameter(torch.randn(1, 1, 8))
        self.stem, self.blocks = nn.Linear(4, 8), nn.ModuleList(Repeated() for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) + self.cls
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def repeated() -> str:
    torch.manual_seed(0)
    found = fxprune.analyze(Late().eval(), torch.randn(2, 5, 4))
    return found.report("html", plan=found.plan(ratio=0.5))


def attention() -> str:
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    found = fxprune.analyze(model, torch.randn(2, 5, 16))
    return found.report("html", plan=found.plan(ratio=0.5))


class Named(nn.Module):
    """Heads and their width have the name of one layer; a lock holds the positions of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.randn(1, 5, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.pos
        return x + self.attention(x, x, x)[0]


def named() -> str:
    return fxprune.analyze(Named().eval(), torch.randn(2, 5, 16)).report("html")


class Twice(nn.Module):
    """Two groups of one layer: its halves take ways of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.left, self.right = nn.Linear(3, 8), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.q(x).split([4, 4], dim=-1)
        return self.left(left) + self.right(right)


def twice() -> str:
    return fxprune.analyze(Twice().eval(), torch.randn(2, 3)).report("html")


class Gated(nn.Module):
    """A block that owns a parameter between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gain, self.down = nn.Linear(6, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x) * self.gain)


class Skips(nn.Module):
    """Two folded blocks with ways around them, a concatenation, and a parameter of which each place is taken alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(3, 6), Gated(), Gated()
        self.head, self.scales = nn.Linear(12, 2), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        y = x + self.first(x)
        out = self.head(torch.cat([y, y + self.second(y)], -1))
        return [out * self.scales[n] for n in range(3)]


def skips() -> str:
    return fxprune.analyze(Skips().eval(), torch.randn(2, 3)).report("html")


class Chunked(nn.Module):
    """A block that reads its input in two places, whose two halves are groups of one name."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 16))
        self.first, self.inside, self.last = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(48, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.first(x + self.position).chunk(2, -1)
        return x + self.last(torch.cat([one, two, self.inside(two)], -1))


class Doors(nn.Module):
    """Blocks in a block, which edges enter and leave beside their layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 16), nn.Linear(16, 3)
        self.encoder = nn.Sequential(nn.Sequential(Chunked(), Chunked()), nn.Linear(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.encoder(x))


def doors() -> str:
    found = fxprune.analyze(Doors().eval(), torch.randn(2, 4))
    return found.report("html", plan=found.plan(ratio=0.5))


def halves() -> str:
    """A record alone, of two groups of one dimension."""
    return fxprune.record(fxprune.transform(Doors().eval(), torch.randn(2, 4), ratio=0.5, verify=False)).report("html")


def evil() -> str:
    """Names, reasons and notes that are HTML."""
    shapes = {f"{EVIL}.weight": (4, 3), "plain.weight": (2, 4)}
    removed = {f"{EVIL}.weight": {0: [1, 2]}, "plain.weight": {1: [1, 2]}}
    small = {f"{EVIL}.weight": (2, 3), "plain.weight": (2, 2)}
    return fxprune.Record("fx", removed, True, shapes, small, reasons=(EVIL,), why_not={"eager": EVIL}).report("html")


def nothing() -> str:
    """A model without any group."""
    model = type(f"Net{EVIL}", (nn.Linear,), {})(3, 2)
    return fxprune.analyze(model, torch.randn(1, 3)).report("html")


class Parallel(nn.Module):
    """Two layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.one(x) + torch.relu(self.two(y))


class Listed(nn.Module):
    """All layers in one list, of which the last ones read early ones too, as in a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList(type(f"Kind{n}", (Parallel,), {})() for n in range(20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for n, layer in enumerate(self.model):
            x = layer(x, seen[19 - n] if n > 10 else x)
            seen.append(x)
        return x


def listed() -> str:
    return fxprune.analyze(Listed().eval(), torch.randn(2, 8)).report("html")


class Entered(nn.Module):
    """A block that an edge enters on its left side, where its title would be."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder, self.head = nn.Linear(4, 16), Positioned(), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.stem(x)))


class Positioned(nn.Module):
    """A block that begins with a sum of its input and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.position_embedding, self.layer = nn.Parameter(torch.randn(1, 16)), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + self.position_embedding)


def entered() -> str:
    return fxprune.analyze(Entered().eval(), torch.randn(2, 4)).report("html")


def thousand() -> str:
    """A thousand layers in a row, of two kinds in turn, that stand in no block."""
    return chain(1000)


def chain(count: int) -> str:
    """Layers in a row, of two kinds in turn, that stand in no block."""
    layers = [_layer(n) for n in range(count)]
    edges = [[a["id"], b["id"], [1, 8]] for a, b in itertools.pairwise(layers)]
    groups = [_group(n) for n in range(0, count - 2, 2)]
    data = {
        "title": "Chain",
        "path": "eager",
        "macs_at_least": 0,
        "uncounted": [],
        "notes": [],
        "locked": [],
        "totals": {key: {"before": 8000, "after": None} for key in ("params", "bytes", "macs")},
        "layers": layers,
        "edges": edges,
        "groups": groups,
        "modules": {},
        "analysed": True,
        "planned": False,
        "record": None,
        "curves": [],
    }
    return page(data, "layers in a row")


def _layer(n: int) -> dict[str, Any]:
    name, shape = (f"linear{n}", [8, 8]) if n % 2 == 0 else (f"norm{n}", [8])
    tensor = {"name": f"{name}.weight", "before": shape, "after": None}
    width = {"tensor": tensor["name"], "dim": 0, "before": 8, "after": None}
    costs = {"params": 64, "macs": 64, "after": None, "order": n}
    kind = {"kind": "layer", "type": "Linear" if n % 2 == 0 else "BatchNorm1d"}
    return {"id": name, **kind, **costs, "drawn": True, "width": width, "tensors": [tensor]}


def _group(n: int) -> dict[str, Any]:
    names = {f"linear{n}.weight": "producer", f"norm{n + 1}.weight": "norm", f"linear{n + 2}.weight": "consumer"}
    members = [
        {"parameter": name, "dim": int(role == "consumer"), "role": role, "slots": 8, "shape": [8, 8]}
        for name, role in names.items()
    ]
    costs = {"channels": 8, "kept": None, "params_per_channel": 17, "macs_per_channel": 16}
    costs |= {"params_all_but_one": 119, "macs_all_but_one": 112}
    told = {"name": f"linear{n}", "kind": "channels", "key": f"key{n}", "exact": True, "reasons": []}
    return told | costs | {"members": members}


PAGES = {
    f.__name__: f
    for f in (
        planned,
        recorded,
        alone,
        dropped,
        attention,
        named,
        repeated,
        skips,
        doors,
        states,
        listed,
        entered,
        twice,
        evil,
        nothing,
        thousand,
    )
}
