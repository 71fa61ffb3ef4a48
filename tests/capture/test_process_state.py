"""State of the whole process is the same before and after a call, and calls of several threads do not meet."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import re
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as torch_module

import fxprune
from fxprune.capture import process_state, reads
from fxprune.capture.file_state import Code, FileState
from fxprune.capture.process_state import clean_caches, public_call
from tests.support import torchvision

PACKAGE = Path(fxprune.__file__).parent


def state() -> dict[str, Any]:
    """Every piece of state that the docstring of `process_state` lists, and some that no call may touch."""
    hooks = (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_forward_hooks_with_kwargs,
    )
    return {
        "collector": gc.isenabled(),
        "log of fake tensors": logging.getLogger("torch._subclasses.fake_tensor").level,
        "logging": logging.root.manager.disable,
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "recurrence": (torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled),
        "hooks": [list(found) for found in hooks],
        "methods": (nn.Module.__call__, nn.Module.__getattr__, vars(nn.Module).get("training")),
        "questions": (torch.is_grad_enabled, torch.is_inference_mode_enabled, *map(id, vars(torch.Tensor).values())),
        "output": (sys.stdout, sys.stderr),
        "warnings": list(warnings.filters),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
    }


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(4, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.dropout(self.first(x), 0.5, train=True)
        return self.last(self.attention(y, y, y, need_weights=False)[0])


class Failing(Layers):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"after {super().forward(x).shape}")


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "fx": lambda net, x: fxprune.transform(net, x, ratio=0.5, path="fx"),
    "eager": lambda net, x: fxprune.transform(net, x, ratio=0.5, path="eager"),
    "export": lambda net, x: fxprune.transform(net, x, ratio=0.5, path="export"),
    "hooks": lambda net, x: fxprune.transform(net, x, ratio=0.5, path="hooks"),
    "zero weights": lambda net, x: fxprune.transform(net, x, masks="zeros"),
    "cost": fxprune.cost,
    "analyze": fxprune.analyze,
}


@pytest.mark.filterwarnings("ignore::fxprune.NothingRemovedWarning")
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("name", CALLS)
def test_state_is_the_same_before_and_after_a_call(name: str, fails: bool) -> None:
    importlib.import_module("sympy")  # which an export imports, and which adds a filter of warnings
    net, x, call = Failing().eval() if fails else Layers().eval(), torch.ones(5, 2, 4), CALLS[name]
    before = state()
    if fails:
        with pytest.raises(fxprune.FxpruneError):
            call(net, x)
    else:
        call(net, x)
    assert state() == before


MANAGERS: dict[str, Callable[[], Any]] = {
    "public_call": process_state.public_call,
    "no_fake_tensor_log": process_state.no_fake_tensor_log,
    "no_fused_attention": process_state.no_fused_attention,
    "no_fused_recurrence": process_state.no_fused_recurrence,
    "module_hooks": lambda: process_state.module_hooks(lambda *found: None, lambda *found: None),
    "tracing": process_state.tracing,
    "same_random_state": process_state.same_random_state,
    "silence": process_state.silence,
    "no_logs": process_state.no_logs,
    "clean_caches": lambda: process_state.clean_caches(nn.Identity()),
    "watched_reads": lambda: reads.watched_reads(nn.Dropout(), reads.Reads(), [], torchs=False),
    "no_caches": lambda: process_state.no_caches(nn.Identity()),
}


@pytest.mark.parametrize("name", MANAGERS)
def test_a_piece_of_state_is_changed_once_at_a_time_and_comes_back_after_an_exception(name: str) -> None:
    before, entered = state(), threading.Event()

    def other() -> None:
        with MANAGERS[name]():
            entered.set()

    thread = threading.Thread(target=other)
    with contextlib.suppress(ZeroDivisionError), MANAGERS[name](), MANAGERS[name]():  # a thread may enter twice
        thread.start()
        assert not entered.wait(0.05)
        raise ZeroDivisionError
    thread.join(10)
    assert entered.is_set()
    assert state() == before


@pytest.fixture
def unusual() -> Iterator[None]:
    """State that a program may have set before: either as the context manager sets it, or unusual."""
    logger, found = logging.getLogger("torch._subclasses.fake_tensor"), state()
    gc.disable()
    logger.setLevel(logging.INFO)
    logging.disable(logging.INFO)
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(found["attention"])
    logging.disable(found["logging"])
    logger.setLevel(found["log of fake tensors"])
    if found["collector"]:
        gc.enable()


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize("name", MANAGERS)
def test_state_that_is_not_the_usual_one_comes_back_too(name: str) -> None:
    before = state()
    with contextlib.suppress(ZeroDivisionError), MANAGERS[name]():
        torch.rand(1)
        raise ZeroDivisionError
    after = state()
    if name != "same_random_state":
        del before["random"], after["random"]
    assert after == before


@pytest.mark.parametrize("usual", ["error", "ignore", "once"])
def test_warnings_are_collected_whatever_the_filters_are(usual: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(usual)
        with process_state.silence() as caught:
            for _ in range(2):
                warnings.warn("for the test", stacklevel=1)
        assert [str(warning.message) for warning in caught] == ["for the test"] * 2


def test_what_other_threads_print_and_log_is_shown_during_an_export(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def speak(who: str) -> None:
        print(f"{who} prints")
        print(f"{who} warns", file=sys.stderr, flush=True)
        logging.getLogger("of.a.model").error("%s logs", who)

    with process_state.silence():
        speak("this thread")
        thread = threading.Thread(target=speak, args=("another",))
        thread.start()
        thread.join(10)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("another prints\n", "another warns\n")
    assert [record.getMessage() for record in caplog.records] == ["another logs"]


@functools.lru_cache
def table(size: int) -> list[int]:
    return [0] * size


def behind_a_function() -> tuple[list[Any], Any]:
    cached = functools.lru_cache(lambda size: [0] * size)
    return [cached], lambda size: cached(size)


HIDDEN, calls_hidden = behind_a_function()
BASE = """
import functools
from torch import nn

@functools.lru_cache
def table(size):
    return [0] * size

class Base(nn.Module):
    pass
"""


def zeros_of(self: nn.Module, size: int) -> list[int]:
    return [0] * size


class OfClass(nn.Module):
    @staticmethod
    @functools.lru_cache
    def static(size: int) -> list[int]:
        return [0] * size

    method = functools.lru_cache(zeros_of)


def test_caches_that_a_run_fills_are_emptied_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    base = types.ModuleType("fxprune_base_of_a_model")
    exec(BASE.replace("class Base(", f"__name__ = {base.__name__!r}\nclass Base("), base.__dict__)
    monkeypatch.setitem(sys.modules, base.__name__, base)
    model = type("Derived", (base.Base,), {"__module__": __name__})()
    caches = [table, *HIDDEN, OfClass.static, OfClass.method, base.table]
    fills = [table, calls_hidden, OfClass.static, functools.partial(OfClass.method, OfClass()), base.table]
    for cache, fill in zip(caches, fills, strict=True):
        for other in caches:
            other.cache_clear()
        table(0)
        with contextlib.suppress(ZeroDivisionError), process_state.clean_caches(nn.Sequential(model)):
            fill(3)
            raise ZeroDivisionError
        assert cache.cache_info().currsize == 0
        assert table.cache_info().currsize == (0 if cache is table else 1), "what was there before stays"


@functools.lru_cache(maxsize=2)
def two_tables(size: int) -> Tensor:
    return torch.zeros(size)


class OfTwoTables(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, size), nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + two_tables(self.a.out_features))


def test_a_full_cache_that_a_run_replaces_a_result_in_is_emptied_too() -> None:
    two_tables(1), two_tables(2)
    with process_state.clean_caches(OfTwoTables(4)):
        two_tables(2)
    assert two_tables.cache_info().currsize == 2, "nothing was made"
    with process_state.clean_caches(OfTwoTables(4)):
        two_tables(3)
    assert two_tables.cache_info().currsize == 0


def test_models_whose_tables_do_not_fit_the_cache_are_pruned_one_after_the_other() -> None:
    for size in (4, 6, 8, 10):
        model, x = OfTwoTables(size).eval(), torch.ones(2, 3)
        assert fxprune.transform(model, x, ratio=0.5, path="eager").a.out_features == size // 2
        assert torch.isfinite(model(x)).all()


def test_a_cache_that_a_run_empties_and_fills_is_emptied_too() -> None:
    table.cache_clear()
    table(1), table(2)
    with process_state.clean_caches(OfClass()):
        table.cache_clear()
        table(3)
    assert table.cache_info().currsize == 0


FILE_WITH_STATE = """
import functools
from torch import nn

TABLES, LAST, NESTED, COUNT = {}, None, {"inner": {}}, 0

def fill(value, cache={}):
    global LAST, NEW, COUNT
    TABLES["a", 3] = LAST = NEW = value
    NESTED["inner"][value] = value
    cache[value] = value
    fill.known = {"value": value}
    COUNT += 1
    return cache

fill.known = {}

class Base(nn.Module):
    of_class = {}
"""


def file_with_state(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    file: Any = types.ModuleType(name)
    exec(f"__name__ = {name!r}\n{FILE_WITH_STATE}", file.__dict__)
    monkeypatch.setitem(sys.modules, name, file)
    return file


@pytest.mark.parametrize("imported", [False, True], ids=["own file", "imported file"])
def test_tensors_that_a_run_leaves_in_variables_and_containers_are_taken_out_again(
    monkeypatch: pytest.MonkeyPatch, imported: bool
) -> None:
    file = file_with_state(monkeypatch, "fxprune_file_with_state")
    base = file.Base
    if imported:
        user = file_with_state(monkeypatch, "fxprune_imports_state")
        user.helper, base = file.fill, user.Base
    held = file.fill(1)
    with process_state.clean_caches(type("Derived", (base,), {})()):
        file.fill(torch.ones(2))
        file.Base.of_class["x"] = torch.ones(2)
    assert (file.TABLES, file.LAST, file.NEW, file.NESTED) == ({("a", 3): 1}, 1, 1, {"inner": {1: 1}})
    assert (held, file.Base.of_class) == ({1: 1}, {} if not imported else file.Base.of_class)
    assert file.COUNT == 2, "numbers may be those of another thread"


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_a_list_keeps_the_real_tensors_that_are_put_into_it(monkeypatch: pytest.MonkeyPatch, fake: bool) -> None:
    file = file_with_state(monkeypatch, "fxprune_file_with_state")
    file.collected = []
    with process_state.clean_caches(file.Base()):
        file.collected.append(FakeTensorMode().from_tensor(torch.ones(2)) if fake else torch.ones(2))
    assert len(file.collected) == (not fake)


def test_no_function_has_a_cache_during_a_run_without_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    @functools.lru_cache
    def local(size: int) -> int:
        calls.append(size)
        return size

    class Inside(OfClass):
        def forward(self, x: Tensor) -> Tensor:
            return x * local(3) * len(Inside.static(3)) * len(table(3))

    net, kept = Inside(), (OfClass.__dict__["static"].__func__, OfClass.__dict__["method"], table)
    for cache in kept:
        cache.cache_clear()
    with process_state.no_caches(net):
        net(torch.ones(1)), net(torch.ones(1))
        assert calls == [3, 3]
        table.cache_clear()
        assert OfClass().method(3) == [0] * 3
        assert [cache.cache_info().currsize for cache in (*kept, local)] == [0] * 4
    assert kept == (OfClass.__dict__["static"].__func__, OfClass.__dict__["method"], table)
    net(torch.ones(1)), net(torch.ones(1))
    assert calls == [3] * 3


class Untouchable:
    """An object in the place of a package that is not installed: any attribute of it raises, also its class."""

    def __getattribute__(self, name: str) -> Any:
        raise ImportError(f"no attribute of it may be read: {name}")


@pytest.mark.parametrize("place", ["global", "attribute of a class", "variable in a closure"])
def test_no_attribute_of_a_placeholder_for_a_missing_package_is_read(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    module = types.ModuleType("fxprune_with_a_placeholder")
    exec(BASE.replace("class Base(", f"__name__ = {module.__name__!r}\nclass Base("), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    missing: Any = Untouchable()
    if place == "global":
        module.__dict__["missing"] = missing
    elif place == "attribute of a class":
        module.__dict__["Base"].missing = missing
    else:
        module.__dict__["uses"] = lambda: missing
    model = type("Derived", (module.__dict__["Base"],), {"__module__": __name__, "forward": lambda self, x: x})()
    with process_state.clean_caches(model):
        module.__dict__["table"](3)
    assert module.__dict__["table"].cache_info().currsize == 0


def test_every_context_manager_is_listed_and_tested() -> None:
    files = "\n".join(Path(str(file.__file__)).read_text() for file in (process_state, reads))
    made = re.findall(r"^@contextlib\.contextmanager\ndef (\w+)", files, re.MULTILINE)
    assert sorted(made) == sorted(MANAGERS)
    assert all(f"`{name}`" in str(process_state.__doc__) for name in made)


def test_two_threads_get_what_one_after_the_other_gives() -> None:
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), Layers().eval()] * 2
    inputs = [torch.ones(2, 4), torch.ones(5, 2, 4)] * 2
    paths = ["fx", "export", "eager", "eager"]

    def small(number: int) -> list[tuple[int, ...]]:
        made = fxprune.transform(nets[number], inputs[number], ratio=0.5, path=paths[number])
        return [tuple(p.shape) for p in made.parameters()]

    expected = [small(number) for number in range(4)]
    before = state()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(small, [0, 1, 2, 3] * 4))
    assert found == expected * 4
    assert state() == before


def test_another_thread_may_run_models_while_one_is_traced() -> None:
    """`torch.fx` replaces `nn.Module.__call__` for the whole process while it traces."""
    results: list[Any] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.own = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            if not results and not isinstance(x, Tensor):  # a proxy: it is traced
                results.append(None)
                with ThreadPoolExecutor(1) as pool:
                    results.append(pool.submit(net, torch.ones(2, 4)).result())
            return self.last(self.first(x + self.own).relu())

    net = Net().eval()
    expected = net(torch.ones(2, 4))
    small = fxprune.transform(net, torch.ones(2, 4), ratio=0.5, path="fx")
    assert fxprune.record(small).path == "fx"
    assert torch.equal(results[1], expected)


TOUCHES = (
    r"\bgc\.(en|dis)able",
    r"set_fastpath_enabled",
    r"logging\.disable",
    r"\.setLevel",
    r"register_module_forward",
    r"\bcache_clear\(\)",
    r"redirect_std(out|err)\((io|_OfOtherThreads)",
    r"loggers\.handle = ",
    r"fork_rng",
)


@pytest.mark.parametrize("pattern", TOUCHES)
def test_state_of_the_process_is_changed_in_one_file(pattern: str) -> None:
    touching = {p.name for p in PACKAGE.rglob("*.py") if re.search(pattern, p.read_text())}
    assert touching == {"process_state.py"}


def test_a_function_with_methods_of_the_same_names_is_no_function_with_a_cache() -> None:
    def count(x: int) -> int:
        return x

    count.cache_info = lambda: ({}, {}, {})  # as psutil has it
    count.cache_clear = lambda name: None

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * count(2)

    model = nn.Sequential(nn.Linear(3, 8), Counting(), nn.Linear(8, 2))
    small = fxprune.transform(model, torch.randn(2, 3), ratio=0.5)
    assert small[0].out_features == 4


TABLE = {"first": torch.zeros(1)}


class ReadsTable(nn.Module):
    sizes = (1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + TABLE["first"]


def test_the_state_of_files_is_current_until_something_in_them_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    code = Code.of(ReadsTable())
    assert FileState(code).current()
    changes = [
        lambda: monkeypatch.setitem(TABLE, "second", 1),
        lambda: monkeypatch.setitem(TABLE, "first", torch.ones(1)),
        lambda: monkeypatch.setattr(ReadsTable, "sizes", (3,)),
        lambda: monkeypatch.setitem(globals(), "TABLE", {}),
        lambda: monkeypatch.setitem(globals(), "NEW_TABLE", {}),
    ]
    for change in changes:
        state = FileState(code)
        change()
        assert not state.current()


def test_files_of_packages_that_know_no_tensors_are_left_out() -> None:
    assert pytest in globals().values()
    packages = {file.__name__.partition(".")[0] for file in Code.of(ReadsTable()).files}
    assert packages.isdisjoint({"pytest", "_pytest"})
    assert __name__ in {file.__name__ for file in Code.of(ReadsTable()).files}


def test_files_of_installed_packages_stay_known_until_something_in_them_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(FileState, "__init__", counted(FileState.__init__, made))
    torchvision()
    resnet: Any = importlib.import_module("torchvision.models.resnet")
    model = resnet.resnet18()
    for _ in range(2):
        with clean_caches(model):
            pass
    installed = [code for _, code in made if resnet in code.files]
    assert len(installed) == 1
    assert all(code.parts[1].files == () for code in installed)
    monkeypatch.setattr(resnet, "TABLE", {}, raising=False)
    with clean_caches(model):
        resnet.TABLE["made"] = torch.zeros(1)
    assert resnet.TABLE == {}


def test_a_deleted_value_of_the_users_file_does_not_live_on() -> None:
    globals()["ONE_MORE"] = value = nn.Linear(1, 1)
    with public_call(), clean_caches(ReadsTable()):
        pass
    alive = weakref.ref(value)
    del globals()["ONE_MORE"], value
    assert alive() is None


def test_files_are_searched_once_in_a_public_call(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(FileState, "__init__", counted(FileState.__init__, made))
    with public_call(), public_call():
        for _ in range(3):
            with clean_caches(ReadsTable()):
                pass
    assert len(made) == 1
    for _ in range(2):
        with clean_caches(ReadsTable()):
            pass
    assert len(made) == 3


def counted(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    return call
