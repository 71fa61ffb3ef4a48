"""Operations in place in a traced graph: constants that they would change, and values that are read afterwards."""

from __future__ import annotations

import operator

from torch import fx

from fxprune.capture.places import module_of, source_of
from fxprune.capture.symbolic import Reason
from fxprune.capture.symbols import OPERATORS

_VIEWS = frozenset(
    """
    getitem __getitem__ view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze transpose permute
    swapaxes swapdims movedim moveaxis expand expand_as broadcast_to narrow select chunk split unbind tensor_split
    unfold diagonal detach t T mT H mH real imag data as_strided contiguous to type float double half dropout
    rearrange getattr
    """.split()
)
"""Names of functions and methods whose result may share the memory of their first argument."""

_NUMBERS = ("shape", "ndim", "size", "dim", "numel", "stride", "item", "tolist", "__len__", "len", "int", "float")
_INPLACE = {operator_: f"__{operator_.__name__}__" for operator_ in OPERATORS}


def mutated_constants(graph: fx.Graph) -> dict[str, Reason]:
    """Modules that change a tensor in place which they make in every call: in a graph it is made only once."""
    shared, found = _aliases(graph), dict[str, Reason]()
    constants = {shared[n] for n in graph.nodes if n.op == "get_attr" and "_tensor_constant" in str(n.target)}
    for node in graph.nodes:
        base = _first(node)
        if base is not None and _changes_first(node) and shared[base] in constants:
            path = module_of(node)
            why = "its forward changes in place a tensor that it makes in every call"
            found.setdefault(path, Reason(path, why, source_of(node)))
    return found


def settle_in_place(graph: fx.Graph) -> None:
    """Keep the values that are read after an operator in place what they are in the model. Changes the graph.

    The code of a graph writes `y += h`, which gives the name `y` another value. If `y` is a tensor and another name
    reads the same memory afterwards, the operator is written as a method. If it may be a number, it gets a name of its
    own.
    """
    shared, places = _aliases(graph), {node: i for i, node in enumerate(graph.nodes)}

    def read_after(node: fx.Node, place: int) -> bool:
        return any(places[user] > place for user in node.users if user in places)

    for node in [n for n in graph.nodes if n.op == "call_function" and n.target in _INPLACE]:
        base, place = _first(node), places[node]
        if base is None:
            continue
        before = [n for n in graph.nodes if shared.get(n) is shared[base] and places.get(n, place) < place]
        if not any(read_after(n, place) for n in before):
            continue
        if _is_tensor(base):
            node.op, node.target = "call_method", _INPLACE[node.target]
        else:
            with graph.inserting_before(node):
                named = graph.call_function(operator.getitem, ((base,), 0))
            named.meta = dict(node.meta)
            node.replace_input_with(base, named)


def _is_tensor(node: fx.Node) -> bool:
    """True if a node is a tensor, unless forward was called with numbers or takes them out of a tensor."""
    first = _first(node)
    if node.op == "placeholder" or _name(node) in _NUMBERS:
        return False
    if node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "builtins"):
        return first is not None and _is_tensor(first)
    return True


def _first(node: fx.Node) -> fx.Node | None:
    return next((a for a in node.args[:1] if isinstance(a, fx.Node)), None)


def _name(node: fx.Node) -> str:
    if node.op == "call_function" and node.target is getattr:
        return str(node.args[1])
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))


def _changes_first(node: fx.Node) -> bool:
    """True if a node changes its first argument in place."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node)
    own = (name.endswith("_") and not name.endswith("__")) or name in _INPLACE.values()
    return own or node.target in _INPLACE or name in ("setitem", "__setitem__") or node.kwargs.get("inplace") is True


def _aliases(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Node -> one node for all that may share its memory."""
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        first = _first(node)
        same = first is not None and (_changes_first(node) or _name(node) in _VIEWS)
        found[node] = found[first] if same and first is not None else node
    return found
