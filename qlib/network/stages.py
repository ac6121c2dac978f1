"""Groups a network's units into stages that are fitted together."""

from qlib.network.model import QuantModel

Span = tuple[str, ...]  # units of the network in a row


def spans(model: QuantModel, by: str) -> list[Span]:
    """The groups of units that are fitted together, in order of execution.

    Args:
        by: "block" (and "layer", whose layers are visited block by block): each unit of the
            network; "stage": neighbouring blocks whose outputs have one shape stand together;
            "network": all of it.
    """
    units, shapes, stages = model.units(), model.partial.shapes, list[Span]()
    if by == "network":
        return [tuple(units)]
    for unit in units:
        last = stages[-1][-1] if stages else unit
        both = {last, unit} <= set(model.blocks)
        if by == "stage" and stages and both and shapes[last] == shapes[unit]:
            stages[-1] += (unit,)
        else:
            stages.append((unit,))
    return stages
