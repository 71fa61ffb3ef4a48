"""The dispatch mode that sees every ATen operation of a run and applies its rule."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound, numbers_of
from fxprune.analysis.observed import Contraction, Mark, Observation, Observed, Place, Visit, Walked
from fxprune.analysis.seeded_draws import lock_seeded_draws, own_seed
from fxprune.analysis.steps import StepRecorder
from fxprune.analysis.unread_slots import UnreadSlots
from fxprune.capture.fake_operations import run
from fxprune.capture.places import users_line
from fxprune.capture.scopes import Key, Scope, Scopes
from fxprune.capture.thread_state import of_no_level
from fxprune.capture.values import leaves, map_tensors, tensors_in
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.errors import FxpruneError, RuleError, text_of
from fxprune.ops import Call, Event, Operand, Rule, apply, rule_for
from fxprune.ops.leaves import LeafCall, LeafRule, leaf_rule
from fxprune.ops.macs import products
from fxprune.ops.registry import checked, integers

IN_RESULT = "output of the model"
"""The reason of a lock by the result of the forward."""

MEETS_FIXED = "meets a fixed dimension (model input, space or a constant)"


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps an `Operand` for every tensor. The rule of an operation gives the operands of its outputs.

    An `Operand` has the vectors of a tensor's dimensions; rules unify and lock them in `terms`.

    strict: raise `RuleError` for an operation without a rule, instead of locking the channels that enter it.
    """

    def __init__(self, terms: Terms, scopes: Scopes, *, strict: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.terms = terms
        self.scopes = scopes
        scopes.on_enter, scopes.on_leave, scopes.on_attention = self._enter, self._leave, self._attended
        scopes.on_composite = self._composed
        self.recorder = StepRecorder()
        self.visits: dict[str, Visit] = {}
        self._visited: set[str] = set()  # in this run
        self._when = ""
        self._numbers: dict[tuple[Event, int], int] = {}  # event, how often it occurred before in its run -> its number
        self._occurred: Counter[Event] = Counter()  # in this run
        self._seed = torch.initial_seed()  # before it
        self.strict = strict
        self.events: list[Event] = [Event("", "", "", "", "")] * 2  # see `Observed.events`
        self._marks: list[Mark] = []
        self.renumbered: list[tuple[torch.Tensor, Vector]] = []
        self.heads: list[Vector] = []
        self.unread = UnreadSlots()
        self.minima: list[tuple[Vector, int]] = []
        self.multiples: list[tuple[Vector, int, str]] = []
        self.place = Place()
        self.observation = Observation()
        self._inner = [self.observation]
        self.vectors: dict[int, Vector] = {}
        self._operands: dict[int, tuple[torch.Tensor, Operand]] = {}
        self.used: set[int] = set()  # ids of the tensors that an operation or the model's output uses
        self._leaf_depth = 0
        self._leaf_contractions: list[Contraction] = []
        self._nonzero_storages: set[int] = set()  # storages whose removed slots are no longer zero

    # -- operands of tensors ------------------------------------------------------------------------------

    def bind(self, tensor: torch.Tensor, operand: Operand) -> None:
        """Set the operand of a tensor.

        A vector with a single slot is locked here, because a dimension cannot become empty.
        """
        self._operands[id(tensor)] = (tensor, operand)
        for vector in operand.vectors:
            if not vector.fixed:
                self.vectors[id(vector)] = vector
                if vector.size == 1 and len(self.terms.free(vector)):
                    self.terms.lock(vector, self.event("slice", "the only slot of a dimension cannot go"))

    def operand(self, tensor: torch.Tensor) -> Operand:
        """The operand of a tensor that is used now. A tensor that is not known yet gets fixed vectors."""
        tensor = of_no_level(tensor)
        self.used.add(id(tensor))
        return self.peek(tensor)

    def peek(self, tensor: torch.Tensor) -> Operand:
        """The operand of a tensor. Unlike `operand`, this does not note that the tensor is used."""
        tensor = of_no_level(tensor)
        known = self._operands.get(id(tensor))
        if known is not None:
            if self._nonzero_storages and tensor.untyped_storage()._cdata in self._nonzero_storages:
                return replace(known[1], zero=(False,) * len(known[1].vectors))
            return known[1]
        vectors = tuple(self.terms.fixed(s) for s in tensor.shape)
        value = tensor.constant if isinstance(tensor, FakeTensor) else tensor
        operand = Operand(vectors, (True,) * len(vectors), value if _is_index(value) else None)
        self._operands[id(tensor)] = (tensor, operand)
        return operand

    def _same_dims(self, tensor: torch.Tensor, made: torch.Tensor) -> tuple[int | None, ...]:
        """For each dimension of `made` the one of `tensor` that has the same vector, None if there is none."""
        dims = {id(v.representative): d for d, v in reversed(list(enumerate(self.peek(tensor).vectors)))}
        return tuple(dims.get(id(v.representative)) for v in self.peek(made).vectors)

    def event(self, op: str, why: str) -> int:
        """The number of a new event at the current place; that of the same event of an earlier run, if there is one."""
        place = self.current_place()
        event = Event(op, place.node, place.module, place.source, why)
        self._occurred[event] += 1
        number = self._numbers.setdefault((event, self._occurred[event]), len(self.events))
        if number == len(self.events):
            self.events.append(replace(event, why=why + self._when))
        return number

    def begin_run(self, when: str = "") -> None:
        """Begin a run of the model. Its visits of modules replace those of earlier runs, unless `when` is given.

        when: a text that is added to the reasons of the events that no earlier run had.
        """
        self._visited, self._when, self._occurred = set(self.visits) if when else set(), when, Counter()
        self._seed = torch.initial_seed()
        self.scopes.restart()
        self.recorder.begin_run()

    @contextlib.contextmanager
    def tentative(self) -> Iterator[None]:
        """Forget what is seen inside if it raises an error. What was unified or locked stays so."""
        names = ("visits", "_marks", "renumbered", "heads", "minima", "multiples", "vectors", "used", "unread")
        before = {name: copy.copy(getattr(self, name)) for name in names}
        try:
            yield
        except Exception:
            self.__dict__.update(before, _leaf_depth=0, _leaf_contractions=[])
            raise

    def begin_node(self, place: Place) -> Observation:
        """Begin a node of the graph. Returns its observation, which is filled while the node runs."""
        self.place, self.observation = place, Observation()
        self._inner = [self.observation]
        self.scopes.node(place.node)
        return self.observation

    def _enter(self, scope: Scope) -> None:
        self._inner.append(Observation())
        self._leaf_depth += leaf_rule(scope.module) is not None

    def _leave(self, scope: Scope, args: Any, kwargs: Any, made: Any) -> None:
        function = leaf_rule(scope.module)
        if function is not None:
            self._leaf_depth -= 1
            if not self._leaf_depth:
                self._observe_leaf(function, scope, args, kwargs, made)
        inner = self._inner.pop()
        if scope.name not in self._visited:
            self._visited.add(scope.name)
            inputs = map_tensors((*args, *kwargs.values()), self.peek)
            self.visits[scope.name] = Visit(inputs, map_tensors(made, self.peek), inner)

    def counted(self, argument: str) -> tuple[Vector, ...]:
        """The vectors whose sizes an integer argument of this name gave in the innermost scope; () if there is none."""
        return self._inner[-1].counts.get(argument, ())

    def _attended(self, key: Key, named: dict[str, Any], made: Any) -> None:
        self.observation.numbers[key] = (named["scale"],), self.operand(named["query"]).vectors[-1:]
        if not self._leaf_depth:
            self.recorder.attention(key, named, made, self.event(key[2], "attention is scaled"), self.scopes.current)
        self._composed(key, made)

    def _composed(self, key: Key, made: Any) -> None:
        if not self._leaf_depth:
            self.observation.outputs[key] = [self.peek(tensor) for tensor in tensors_in(made)]

    def current_place(self) -> Place:
        """The place of the current node; inside a module that is one node, the inner module and its source line."""
        scope = self.scopes.current
        if scope.module is None:
            return self.place
        return Place(self.place.node, scope.path, users_line() or self.place.source)

    def _module(self) -> str:
        """The path of the innermost module that is running."""
        scope = self.scopes.current
        return self.place.module if scope.module is None else scope.path

    def observed(
        self,
        main: Walked,
        others: Iterable[Walked] = (),
        more: Iterable[Walked] = (),
    ) -> Observed:
        """Everything that was seen. Call it after the runs. The arguments are those of `Observed`."""
        return Observed(
            main=main,
            visits=self.visits,
            events=tuple(self.events),
            marks=tuple(self.statistics),
            heads=tuple(self.heads),
            minima=tuple(self.minima),
            multiples=tuple(self.multiples),
            vectors=tuple(dict.fromkeys(v.representative for v in self.vectors.values())),
            renumbered={id(tensor): vector for tensor, vector in self.renumbered},
            others=tuple(others),
            more=tuple(more),
            steps=self.recorder.steps(),
        )

    @property
    def marks(self) -> list[tuple[int, Vector]]:
        """The event and the vector of each of the `statistics`."""
        return [(mark.event, mark.vector) for mark in self.statistics]

    @property
    def statistics(self) -> list[Mark]:
        """The statistics over dimensions that may shrink, without those whose result is not used."""
        return [mark for mark in self._marks if not mark.made or self.used.intersection(mark.made)]

    # -- operations ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # such as a question for the device
            return run(func, args, kwargs or {})
        if self._leaf_depth:  # the rule of the module around it is applied instead
            made = func(*args, **(kwargs or {}))
            name, raw = bound(func, args, kwargs or {})
            fixed = self.terms.fixed
            contracted = products(func, raw, made, lambda tensor: tuple(map(fixed, tensor.shape)), fixed)
            if contracted != []:
                self._leaf_contractions.append(Contraction(name, self._module(), contracted))
            return made
        made = run(func, args, kwargs or {})
        self._observe(func, args, kwargs or {}, made)
        return made

    def _observe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        outputs = [made] if isinstance(made, torch.Tensor) else [t for t in _flat(made) if isinstance(t, torch.Tensor)]
        name, raw = bound(func, args, kwargs)
        arguments = {key: self._convert(value) for key, value in raw.items()}
        call = Call(
            op=name,
            terms=self.terms,
            shapes=[tuple(t.shape) for t in outputs],
            func=func,
            arguments=arguments,
            raw=raw,
            event=lambda why: self.event(name, why),
        )
        operands = [o for v in arguments.values() for o in (v if isinstance(v, (list, tuple)) else (v,))]
        tensors = [o for o in operands if isinstance(o, Operand)]
        function = rule_for(func)
        self.terms.current_event = self.event(name, MEETS_FIXED)
        if function is None:
            results = self._unknown(call, tensors)
        else:
            if "out" in arguments and isinstance(arguments["out"], Operand):
                out = arguments.pop("out")
                tensors.remove(out)
            results = self._ruled(function, call, tensors)
        lock_seeded_draws(call, results, self._seed)
        self._attach(raw, outputs, results)
        self.unread.note(name, raw, made, self._same_dims)
        self._note(call, outputs, results)
        contracted = products(func, raw, made, lambda tensor: self.peek(tensor).vectors, self.terms.fixed)
        if contracted != []:
            every = () if contracted else tuple(v for o in (*tensors, *results) for v in o.vectors)
            self.observation.contractions.append(Contraction(name, self._module(), contracted, every))

    def _observe_leaf(self, function: LeafRule, scope: Scope, args: Any, kwargs: Any, made: Any) -> None:
        """Apply the rule of a module that is treated as one operation (a leaf), when its forward has returned."""
        module = scope.module
        assert module is not None
        named = [*module.named_parameters(), *module.named_buffers()]
        parameters = {name: self.operand(tensor) for name, tensor in named}
        outputs = tensors_in(made)
        name = type(module).__name__
        call = LeafCall(
            op=name,
            terms=self.terms,
            shapes=[tuple(map(int, t.shape)) for t in outputs],
            event=lambda why: self.event(name, why),
            module=module,
            parameters=parameters,
        )
        given, named_given = map_tensors(args, self.operand), map_tensors(kwargs, self.operand)
        entering = [*leaves((given, named_given), Operand), *parameters.values()]
        self.terms.current_event = self.event(name, MEETS_FIXED)

        def run() -> list[Operand]:
            ruled = function(call, *given, **named_given)
            return checked(call, [ruled] if isinstance(ruled, Operand) else list(ruled))

        results = self._guarded(run, call, [o for o in entering if isinstance(o, Operand)])
        for tensor, operand in zip(outputs, results, strict=True):
            self.bind(tensor, operand)
        self._note(call, outputs, results)
        read = [*tensors_in((args, kwargs)), *(tensor for _, tensor in named)]
        self.recorder.opaque((scope.name, scope.number, name, 0), read, outputs, self.terms.current_event, scope)
        every = tuple(v for o in (*entering, *results) if isinstance(o, Operand) for v in o.vectors)
        self.observation.contractions.extend(replace(c, inside=every) for c in self._leaf_contractions)
        self._leaf_contractions.clear()

    def _ruled(self, function: Rule, call: Call, tensors: list[Operand]) -> list[Operand]:
        """The operands of the outputs, from the rule of the operation."""
        return self._guarded(lambda: apply(function, call, tensors), call, tensors)

    def _guarded(self, run: Callable[[], list[Operand]], call: Call, tensors: list[Operand]) -> list[Operand]:
        """The operands of the outputs, from a function that applies a rule.

        If the rule fails, the operation is treated as one without a rule. Vectors that were unified before stay so.
        """
        try:
            return run()
        except Exception as error:
            if self.strict and isinstance(error, FxpruneError):
                raise
            if self.strict:
                raise RuleError(
                    f"the rule of {call.op} raises",
                    at=self._where(),
                    why=text_of(error),
                    do="correct the rule, or drop strict=True to keep these channels",
                ) from error
            return call.refuse(tensors, f"its rule failed, please report this: {text_of(error, lines=1)}")

    def _unknown(self, call: Call, tensors: list[Operand]) -> list[Operand]:
        """The operands of the outputs of an operation without a rule. Locks all channels that enter it."""
        held = [v for o in tensors for v in o.vectors if len(self.terms.free(v))]
        if held and self.strict:
            raise RuleError(
                f"no channel rule for {call.op}",
                at=self._where(),
                why=f"channels enter it on a dimension of size {held[0].size}",
                do="add a rule (docs/adding_an_op.md), or drop strict=True to keep these channels",
            )
        return call.refuse(tensors, "no channel rule for this operation")

    def _where(self) -> str:
        """The current place, for an error."""
        place = self.current_place()
        return f"{place}, node %{place.node}"

    def _attach(self, raw: dict[str, Any], outputs: list[torch.Tensor], results: list[Operand]) -> None:
        inputs = {id(t) for v in raw.values() for t in (v if isinstance(v, (list, tuple)) else (v,))}
        for tensor, operand in zip(outputs, results, strict=True):
            before = self.operand(tensor) if id(tensor) in inputs else None
            if before is not None and len(before.vectors) == len(operand.vectors) and before.shape == operand.shape:
                # an operation in place: the tensor keeps its vectors (not after unsqueeze_, which changes the shape)
                for old, new in zip(before.vectors, operand.vectors, strict=True):
                    if old is not new:
                        self.terms.same(old, new)
                if operand.zero != before.zero and not all(operand.zero):
                    self._nonzero_storages.add(tensor.untyped_storage()._cdata)
                operand = Operand(before.vectors, operand.zero)
            self.bind(tensor, operand)

    def _note(self, call: Call, outputs: list[torch.Tensor], results: list[Operand]) -> None:
        counts = self._inner[-1].counts
        for name, vectors in call.counts.items():
            counts.setdefault(name, vectors)
        scope = self.scopes.current
        key = scope.next_key(call.op)
        if call.func is not None:
            if (seed := own_seed(call.func, call.raw, self._seed)) is not None:
                self.observation.seeds[key] = seed
            self.recorder.record(key, call.func, call.raw, outputs, self.terms.current_event, scope)
        if call.marks:
            made = tuple(map(id, outputs))
            self._marks += [Mark(e, vector, key[0], e in call.widths, made) for e, vector in call.marks]
            self.observation.marked[key] = (call, results)
        self.heads += call.attention
        self.minima += call.minima
        self.multiples += call.multiples
        for index, vector in call.renumbered:
            if index.value is not None:
                self.renumbered.append((index.value, vector))
        self.observation.outputs[key] = results
        if self.scopes.current.module is not None and (positions := self._positions(call)):
            self.observation.positions[key] = positions
        if numbers := numbers_of(key[2], call.raw):
            query = call.arguments.get("query")
            self.observation.numbers[key] = numbers, query.vectors[-1:] if isinstance(query, Operand) else ()

    def _positions(self, call: Call) -> list[tuple[str, Any, Vector]]:
        """The arguments of a call that are positions in a dimension which may shrink: name, value, dimension.

        Inside a module that is one node they cannot be rewritten. Tensors that the model owns are left out: these can.
        """
        found = [(argument, value, vector) for argument, value, vector in call.positions if not vector.fixed]
        tensors = [self.peek(tensor).value for tensor in tensors_in(list(call.raw.values()))]
        for index, vector in call.renumbered:
            if index.value is None or self.unread.follows(index.value):
                continue
            number = next((n for n, value in enumerate(tensors) if value is index.value), None)
            values = integers(index)
            found.append(("index", None if number is None or values is None else (number, values), vector))
        return found

    def _convert(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.operand(value)
        if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
            return [self.operand(v) if isinstance(v, torch.Tensor) else v for v in value]
        return value


def _flat(made: Any) -> Iterable[Any]:
    return made if isinstance(made, (list, tuple)) else pytree.tree_leaves(made)


def _is_index(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.device.type != "meta"
