"""The table of operations (cases.py) and the tests that it drives (test_ops.py)."""
