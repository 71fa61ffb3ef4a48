"""The table of operations (cases/, one file a family) and the tests that it drives."""
