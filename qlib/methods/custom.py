"""Your own: each choice of a gradient-based method by itself.  Study: arXiv 2308.07662"""

from dataclasses import dataclass

from qlib.methods._gradient.design import Design
from qlib.methods._gradient.method import GradientMethod


@dataclass(frozen=True)
class Custom(Design, GradientMethod):
    """min over what is learned of Σ over images of error(unit(x), float unit(x)) + λ·penalty.

    The fields are the axes of `Design`. A named method is one point of that space: start from it
    and change one choice, and the difference in the result is that choice's.
    """

    title = "Your own"
    paper = "Study: Yvinec et al., 2023, arXiv 2308.07662"
    promise = "Starts from a named method; you change what is learned, where, on what, and how."
    cost = "minutes"
    learns = True
    open_design = True

    def rounding_design(self) -> Design:
        return self
