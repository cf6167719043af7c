"""`selfrepair ablate`."""

from selfrepair.commands.options import examples


@examples("selfrepair ablate")
def ablate() -> None:
    """To be."""
