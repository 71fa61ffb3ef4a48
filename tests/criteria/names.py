"""Names of criteria that rank other things than channels of layers."""

OF_EXPERTS = ("reap", "expert_frequency")
"""The criteria of whole experts; `test_experts.py` is about them."""

OTHERS = ("activation_rank", *OF_EXPERTS)
"""Those that most small networks of the tests do not fit."""
