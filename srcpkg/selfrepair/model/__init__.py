"""The model as it is measured."""
