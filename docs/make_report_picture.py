"""Draws docs/images/report.png, the page of a ResNet-18 with one group chosen: `python docs/make_report_picture.py`.

It needs torchvision, Pillow, and Chromium as the tests of the page do.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from tests.report.browser import browser  # noqa: E402
from tests.support import torchvision  # noqa: E402

GROUP = "layer2.0.conv2"


def page() -> str:
    """The page of a ResNet-18 with two fifths of every group removed."""
    models = torchvision().models
    import torch

    import fxprune

    torch.manual_seed(0)
    analysis = fxprune.analyze(models.resnet18().eval(), torch.randn(1, 3, 224, 224))
    return analysis.report("html", plan=analysis.plan(ratio=0.4))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as found:
        found.driver.set_window_size(1500, 950)
        found.open("report", page(), f"#group={GROUP}")
        found.find("#open-theirs").click()
        found.press("f")  # fit
        picture = Image.open(io.BytesIO(found.driver.get_screenshot_as_png()))
        picture.convert("RGB").quantize(64).save(ROOT / "docs" / "images" / "report.png", optimize=True)
