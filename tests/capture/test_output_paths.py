"""Paths into a result: what may be written, what it finds, and what the errors list."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fxprune import InputError, PlanError
from fxprune.capture.output_paths import Outputs, in_both, narrowed, output_paths, path_text, tensors_that_count

Pair = collections.namedtuple("Pair", "boxes features")


@dataclass
class Found:
    boxes: Any
    features: Any


A, B, C = torch.zeros(2), torch.zeros(3), torch.zeros(4)
NESTED = {"boxes": A, "features": [B, {"deep": C}], "count": 3, "0": B}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("boxes", (("boxes",),)),
        (0, ((0,),)),
        (("a", 0), (("a", 0),)),
        (["a", 0, ("a", 1)], (("a",), (0,), ("a", 1))),
        (["a", "a"], (("a",),)),
    ],
)
def test_a_key_or_a_tuple_is_one_path_and_a_list_has_several(given, expected):
    assert output_paths(given) == expected


@pytest.mark.parametrize("wrong", [[], (), True, 1.5, {"a": 0}, [["a"]], [("a", None)], {"a"}, torch.zeros(1), b"a"])
def test_anything_else_is_refused(wrong):
    with pytest.raises(InputError, match=r'outputs must be a path.*\n  why .*\n  do .*outputs=\["boxes"\]'):
        output_paths(wrong)


@pytest.mark.parametrize(
    ("result", "path", "found", "resolved"),
    [
        (NESTED, ("boxes",), [A], ("boxes",)),
        (NESTED, ("features",), [B, C], ("features",)),
        (NESTED, ("features", 1, "deep"), [C], ("features", 1, "deep")),
        (NESTED, ("features", -1), [C], ("features", 1)),
        (NESTED, (0,), [B], ("0",)),
        (Pair(A, [B]), ("features",), [B], ("features",)),
        (Pair(A, [B]), (1, 0), [B], ("features", 0)),
        (Found(A, (B, C)), ("features", 1), [C], ("features", 1)),
        ([{"boxes": A}, {"boxes": B}], (1, "boxes"), [B], (1, "boxes")),
        ({0: A, 1: B}, (1,), [B], (1,)),
        ([{"boxes": A}, {"boxes": B}], ("*", "boxes"), [A, B], ("*", "boxes")),
        ([{"boxes": A, "masks": C}, {"boxes": B, "masks": C}], ("*", "boxes"), [A, B], ("*", "boxes")),
        ({"a": (A, B), "b": (C, A)}, ("*", -1), [B, A], ("*", 1)),
        ({"a": [{"x": A, "y": B}, {"x": C, "y": B}], "count": 3}, ("a", "*", "x"), [A, C], ("a", "*", "x")),
        ([A, (B, C)], ("*",), [A, B, C], ("*",)),
    ],
)
def test_a_path_finds_the_tensors_of_a_part(result, path, found, resolved):
    outputs = Outputs.of(result, (path,))
    assert outputs.paths == (resolved,)
    counted, others = outputs.tensors(result), outputs.others(result)
    assert [id(tensor) for tensor in counted] == [id(tensor) for tensor in found]
    assert {path for path, _ in others}.isdisjoint(outputs.paths)
    assert len(counted) + len(others) == len(tensors_that_count(None, result))


@pytest.mark.parametrize(
    ("result", "path", "parts"),
    [
        (NESTED, ("box",), ['no part "box"', 'holds "boxes", "features", "count", "0"', '("features", 1, "deep")']),
        (NESTED, ("features", 2), ['no part ("features", 2)', '"features" holds 0, 1']),
        (NESTED, ("boxes", 0), ['"boxes" is a tensor of shape (2,), which has no parts']),
        (NESTED, ("count",), ['"count" is of type int and holds no tensor']),
        ([A, B], ("boxes",), ["the result holds 0, 1", "the tensors of the result are 0, 1"]),
        (A, (0,), ["the result is a tensor of shape (2,)", "leave outputs out"]),
        ((A, None), (1,), ["1 is None and holds no tensor"]),
        (Pair(A, B), ("scores",), ['holds "boxes", "features"']),
        ([], (0,), ["the result holds nothing"]),
        (
            [{"boxes": A}],
            ("*", "box"),
            ['no part ("*", "box")', "no part of the result holds that", 'are (0, "boxes")'],
        ),
    ],
)
def test_a_path_that_is_not_there_lists_what_the_result_holds(result, path, parts):
    with pytest.raises(InputError) as caught:
        Outputs.of(result, (path,))
    assert [part for part in parts if part not in str(caught.value)] == []


def test_all_of_a_result_of_another_form_counts():
    outputs = Outputs.of({"boxes": A, "features": [B]}, (("boxes",),))
    assert outputs.tensors({"boxes": B, "features": [A, C]}) == [B]
    for other in ({"boxes": A}, [A, B], A, {"boxes": A, "features": B, "loss": C}):
        assert len(outputs.tensors(other)) == len(tensors_that_count(None, other))


def test_every_element_counts_in_lists_of_other_lengths_too():
    outputs = Outputs.of([{"boxes": A, "masks": B}], (("*", "boxes"),))
    several = [{"boxes": tensor, "masks": B} for tensor in (A, B, C)]
    assert [id(tensor) for tensor in outputs.tensors(several)] == [id(A), id(B), id(C)]
    assert [path for path, _ in outputs.others(several)] == [(0, "masks"), (1, "masks"), (2, "masks")]
    for other in ([{"boxes": A}], {"loss": A}, [A, B], []):
        assert len(outputs.tensors(other)) == len(tensors_that_count(None, other))


def test_a_plan_keeps_its_outputs_and_may_be_asked_for_fewer():
    assert narrowed((("a",),), None) == (("a",),)
    assert narrowed((("a",),), (("a", 1),)) == (("a", 1),)
    assert narrowed(None, (("a",),)) == (("a",),)
    assert narrowed((("*", "a"),), ((0, "a"),)) == ((0, "a"),)
    with pytest.raises(PlanError, match=r'\("\*", "a"\) is no output'):
        narrowed(((0, "a"),), (("*", "a"),))
    with pytest.raises(PlanError, match=r'"b" is no output of the plan\n.*\n  why .*outputs "a"'):
        narrowed((("a",),), (("b",),))
    with pytest.raises(PlanError, match="is no output"):
        narrowed((("a", 0),), (("a",),))


def test_two_requests_have_the_inner_paths_in_common():
    assert in_both(None, None) is None
    assert in_both((("a",),), None) == (("a",),)
    assert in_both((("a",), ("b",)), (("b",), ("c",))) == (("b",),)
    assert in_both((("a",),), (("a", 0), ("a", 1))) == (("a", 0), ("a", 1))
    assert in_both((("a",),), (("b",),)) == ()
    assert in_both((("*", "a"),), ((0,), (1, "b"))) == ((0, "a"),)


def test_a_path_is_written_as_it_is_given():
    assert [path_text(path) for path in (("a",), (0,), ("a", 0))] == ['"a"', "0", '("a", 0)']
