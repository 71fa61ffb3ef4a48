"""Imports torchvision before the frameworks do, on any build of torch."""

from tests.support import torchvision

torchvision()
