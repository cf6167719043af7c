"""`selfrepair heads`."""

from selfrepair.commands.options import examples


@examples("selfrepair heads")
def heads() -> None:
    """To be."""
