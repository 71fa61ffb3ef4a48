"""Models of packages behave like the originals in both modes, in a step of training, copied and saved.

The small models of `test_zoo.py` are compared too, and all others with `-m slow`; `python -m tests.models --behaviour`
compares nothing else.
"""

from __future__ import annotations

import json

import pytest

from tests.models import measure, zoo
from tests.models.__main__ import good

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages, which are imported here

MODELS = ("torchvision/googlenet", "torchvision/resnet18")


@pytest.mark.parametrize("key", MODELS)
def test_a_model_of_a_package_behaves_like_the_original(key: str) -> None:
    result = measure.measure(zoo.entries(key.split("/")[0])[key], behaviour=True)
    assert (result["path"], result["why_not"]) == ("eager", {})
    assert good(result), json.dumps(result, indent=1)
