"""`selfrepair doctor`."""

from selfrepair.commands.options import examples


@examples("selfrepair doctor")
def doctor() -> None:
    """To be."""
