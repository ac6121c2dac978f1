"""The embedded zoo: three small networks for 8x8 digits, trained by this project.

`python -m qlib.models.train_zoo` trains them again.
"""

from typing import ClassVar

from qlib.models.base import Built, Model


class Digits(Model):
    """Networks for digits, from ``assets/zoo``: no download, no file to find."""

    title: ClassVar[str] = "Digits zoo (embedded)"

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """Keys of the embedded networks."""
        return ("digits-vit", "digits-resnet", "digits-mobilenet")

    def build(self, name: str, weights: str | None) -> Built:
        """See `Model.build`; ``weights`` replace the embedded ones."""
        from qlib.models import _zoo
        from qlib.models._weights import load_weights

        net = _zoo.NETWORKS[name]()
        own = str(_zoo.FOLDER / f"{name}.safetensors")
        notes = load_weights(net, weights or own, name)
        # nobody chose the embedded file, so what is inside needs no telling
        notes = notes if weights else ()
        names = tuple("0123456789")
        return Built(net.eval(), _zoo.PREPROCESS, classes=10, notes=notes, names=names)
