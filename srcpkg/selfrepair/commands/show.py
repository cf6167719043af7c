"""`selfrepair show`."""

from selfrepair.commands.options import examples


@examples("selfrepair show")
def show() -> None:
    """To be."""
