"""The walk over the operations of a model and its findings: channels, groups, and the operations that lock channels."""
