"""The contract of a source of float networks. Files here know nothing of quantization."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qlib.core.preprocess import Preprocess

if TYPE_CHECKING:  # names are listed without loading torch
    from torch import nn


@dataclass(frozen=True)
class Built:
    """A float network in eval mode on the CPU, and how to feed it.

    None where the source does not say; `qlib.pipeline.own_network.completed` finds it out.
    """

    module: "nn.Module"
    preprocess: Preprocess | None
    classes: int | None  # outputs of the head; 0: no classifier, it returns features
    notes: tuple[str, ...] = ()  # what was chosen, left out or converted to come to it
    names: tuple[str, ...] | None = None  # of the outputs, where the source knows them
    label_set: str = ""  # ImageNet's list of classes that the head was trained on, by timm's name


@dataclass(frozen=True)
class Complete(Built):
    """A float network of which everything is known."""

    preprocess: Preprocess
    classes: int


class Model(ABC):
    """One source of networks: one file.

    ``variants`` are the keys it answers to. A source with an open set of names (timm) lists
    a pattern such as ``timm:NAME`` and answers `owns` itself.
    """

    title: ClassVar[str]

    @classmethod
    @abstractmethod
    def variants(cls) -> tuple[str, ...]:
        """Keys for the pickers, without loading torch."""

    @classmethod
    def owns(cls, name: str) -> bool:
        """Whether this source builds the network called ``name``."""
        return name in cls.variants()

    @classmethod
    def proper(cls, name: str) -> str:
        """``name`` in the one spelling that records and keys use. Loads no torch.

        Raises:
            InvalidSpec: an option in the name that there is not.
        """
        return name

    @abstractmethod
    def build(self, name: str, weights: str | None) -> Built:
        """The float network called ``name``, with ``weights`` from a file when given.

        Raises:
            InvalidSpec: one sentence: weights needed, missing, of another architecture (first
                missing and unexpected keys named), truncated, an unsafe pickle, hub unreachable.
        """


Base = Model
