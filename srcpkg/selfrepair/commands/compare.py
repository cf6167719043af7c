"""`selfrepair compare`."""

from selfrepair.commands.options import examples


@examples("selfrepair compare")
def compare() -> None:
    """To be."""
