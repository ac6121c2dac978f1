"""Groups a network's units into stages that are fitted together."""

from qlib.network.cuts import Span
from qlib.network.model import QuantModel


def spans(model: QuantModel, by: str) -> list[Span]:
    """The groups of units that are fitted together, in order of execution.

    Args:
        by: "block" (and "layer", whose layers are visited block by block): each unit of the
            network, save those that exchange several tensors (`QuantModel.spans`); "stage":
            neighbouring blocks whose outputs have one shape stand together; "network": all of it.
    """
    if by == "network":
        return [tuple(model.units())]
    if by != "stage":
        return list(model.spans)
    stages = list[Span]()
    for span in model.spans:
        if stages and _alike(model, stages[-1], span):
            stages[-1] += span
        else:
            stages.append(span)
    return stages


def _alike(model: QuantModel, one: Span, other: Span) -> bool:
    """Are both made of blocks, with outputs of one shape?"""
    shapes, last, then = model.partial.shapes, one[-1], other[-1]
    known = last in shapes and then in shapes and last not in model.partial.onward
    return known and {*one, *other} <= set(model.blocks) and shapes[last] == shapes[then]
