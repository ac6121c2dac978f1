"""A sum over shared indices of two tensors (`torch.einsum`) as one product of matrices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Contraction:
    """``out = Σ a · b`` as (*batch, rows, summed) @ (*batch, summed, columns).

    Attributes:
        a, b, out: the indices of the two operands and of the result, one letter each.
    """

    a: str
    b: str
    out: str

    @classmethod
    def read(
        cls, equation: str, a: Sequence[int], b: Sequence[int], *, turned: bool = False
    ) -> "Contraction | None":
        """The contraction in an equation; None where it is no product of two matrices.

        Args:
            a, b: shapes of the operands.
            turned: the second operand is to stand on the left.
        """
        left, _, out = equation.replace(" ", "").partition("->")
        parts = left.split(",")
        if len(parts) != 2:
            return None
        spare = "αβγδεζηθ"  # for the indices that "..." stands for
        wide = []
        for part, shape in zip(parts, (a, b), strict=True):
            hidden = len(shape) - len(part.replace("...", ""))
            wide.append(part.replace("...", spare[len(spare) - hidden :] if hidden else ""))
        if "->" not in equation:
            letters = "".join(wide)
            free = sorted(c for c in set(letters) if letters.count(c) == 1 and c not in spare)
            out = "..." * ("..." in left) + "".join(free)
        dots = max((sum(c in spare for c in part) for part in wide), default=0)
        out = out.replace("...", spare[len(spare) - dots :] if dots else "")
        one, two = (wide[1], wide[0]) if turned else (wide[0], wide[1])
        shapes = (b, a) if turned else (a, b)
        sizes = dict(zip(two, shapes[1], strict=True))
        agree = all(sizes.get(c, n) == n for c, n in zip(one, shapes[0], strict=True))
        whole = all(len(set(p)) == len(p) for p in (one, two, out)) and set(out) <= {*one, *two}
        alone = ({*one} ^ {*two}) - {*out}  # summed within one operand
        return cls(one, two, out) if agree and whole and not alone else None

    @property
    def batch(self) -> str:
        """Indices of both operands and of the result."""
        return "".join(c for c in self.out if c in self.a and c in self.b)

    @property
    def summed(self) -> str:
        """Indices of both operands that the result lacks."""
        return "".join(c for c in self.a if c in self.b and c not in self.out)

    @property
    def rows(self) -> str:
        """Indices of the left operand and of the result alone."""
        return "".join(c for c in self.a if c not in self.b)

    @property
    def columns(self) -> str:
        """Indices of the right operand and of the result alone."""
        return "".join(c for c in self.b if c not in self.a)

    @property
    def is_linear(self) -> bool:
        """Whether the right operand is one matrix for everything on the left."""
        return not self.batch

    def left(self, a: Tensor) -> Tensor:
        """(*batch, rows, summed), each flattened; (*rows, summed) where there is no batch."""
        return self._matrix(a, self.a, self.rows, self.summed, keep=self.is_linear)

    def right(self, b: Tensor) -> Tensor:
        """(*batch, summed, columns), each flattened."""
        return self._matrix(b, self.b, self.summed, self.columns)

    def result(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The product of both in the order of ``out``."""
        sizes = dict(zip(self.a + self.b, (*a.shape, *b.shape), strict=True))
        order = self.batch + self.rows + self.columns
        y = y.reshape([sizes[c] for c in order])
        return y.permute([order.index(c) for c in self.out])

    def _matrix(self, x: Tensor, indices: str, one: str, two: str, keep: bool = False) -> Tensor:
        sizes = dict(zip(indices, x.shape, strict=True))
        x = x.permute([indices.index(c) for c in self.batch + one + two])
        first = [sizes[c] for c in self.batch + one * keep]
        ends = [math.prod(sizes[c] for c in part) for part in ((two,) if keep else (one, two))]
        return x.reshape(*first, *ends)
