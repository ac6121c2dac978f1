"""Which units of a network form a stage: blocks in a row whose outputs have one shape."""

from qlib.network.model import QuantModel


def stages(model: QuantModel) -> list[tuple[str, ...]]:
    """All units, in order; neighbouring blocks whose outputs have one shape stand together."""
    found: list[tuple[str, ...]] = []
    shapes = model.partial.shapes
    for unit in model.units():
        last = found[-1][-1] if found else unit
        both = {last, unit} <= set(model.blocks)
        if found and both and shapes[last] == shapes[unit]:
            found[-1] += (unit,)
        else:
            found.append((unit,))
    return found
