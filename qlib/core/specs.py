"""Checks the names, settings and limits of a specification. No torch: forms use it too."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qlib.core import class_order, own_code, params, weights_key
from qlib.core.checks import Damaged, check, plain
from qlib.core.records import BITS, InvalidSpec, RunSpec
from qlib.core.registry import discover, lookup, names

SEEDS = 2**63 - 1  # the largest seed that every generator takes


def model_keys() -> list[str]:
    """Every key that ``--model`` takes, patterns such as ``timm:NAME`` included."""
    return [key for source in discover("models").values() for key in source.variants()]


def dataset_keys() -> list[str]:
    """Every key that ``--data`` takes, patterns such as ``folder:PATH`` included."""
    return [key for source in discover("datasets").values() for key in source.variants()]


def source_of(kind: str, name: str) -> type:
    """The class in ``qlib/models/`` or ``qlib/datasets/`` that answers to ``name``.

    Raises:
        InvalidSpec: none does; the nearest keys are given.
    """
    for source in discover(kind).values():
        if source.owns(name):
            return source
    keys = model_keys() if kind == "models" else dataset_keys()
    try:
        lookup(kind.removesuffix("s"), name, keys)
    except ValueError as error:
        raise InvalidSpec(str(error)) from None
    raise InvalidSpec(f"{name!r} is a pattern: write a real name in place of its capital letters.")


def checked(spec: RunSpec) -> RunSpec:
    """A validated copy of ``spec`` with every setting of its method written out.

    Raises:
        InvalidSpec: an unknown name, or a value outside its limits.
    """
    model = source_of("models", spec.model).proper(spec.model)
    source_of("datasets", spec.data)
    if spec.calib_data is not None:
        source_of("datasets", spec.calib_data)
    return recipe_checked(replace(spec, model=model))


def recipe_checked(spec: RunSpec) -> RunSpec:
    """`checked`, but for the names of network and images: those may be anything.

    Raises:
        InvalidSpec: an unknown name, or a value outside its limits.
    """
    try:
        _check_bits(spec)
        _check_seed(spec.seed)
        params.check(spec)
        lookup("method", spec.method, names("methods"))
        lookup("observer", spec.weight_observer, names("observers"))
        lookup("observer", spec.act_observer, names("observers"))
        lookup("allocator", spec.allocator, names("allocators"))
        if spec.test is not None and spec.test < 1:
            raise ValueError(f"test must be at least 1, or left out for all; got {spec.test}.")
        owner = discover("methods")[spec.method]
        made = owner(**params.parse(owner, spec.settings))
        _check_tuning(spec, owner)
    except InvalidSpec:
        raise
    except ValueError as error:
        raise InvalidSpec(str(error)) from None
    settings = {name: getattr(made, name) for name in params.params(made)}
    kept = tuple(sorted({name.strip() for name in layer_names(spec.keep_float)}))  # one key
    return replace(spec, settings=settings, keep_float=kept)


def check_settings(spec: RunSpec) -> None:
    """Check that the settings of a stored specification have the types that its method declares.

    Limits may have moved since, and settings of an older version may be gone: both pass.

    Raises:
        InvalidSpec: an unknown method, or a setting of another type.
    """
    owner = discover("methods").get(spec.method)
    if owner is None:
        raise InvalidSpec(
            f"spec.method {plain(spec.method[:60])!r} is none of this version's methods; bring its "
            "file back, or delete the folder."
        )
    for name, declared in params.params(owner).items():
        try:
            check(declared.type, spec.settings.get(name, declared.default), f"settings.{name}")
        except Damaged as error:
            raise InvalidSpec(f"{error}; delete the folder or run again.") from None


def absolute(spec: RunSpec) -> RunSpec:
    """The same run, every file and folder that it names written as an absolute path.

    Forms and the command line call it after `checked`, so that one file makes one key wherever
    it is named from; `qlib.jobs.submit` calls it once more, as a worker runs in another folder.

    Raises:
        InvalidSpec: there is no such file or folder.
    """
    named = {"weights": spec.weights and _weights(spec.weights)}
    if own_code.is_own(spec.model):
        file, function = own_code.parts(spec.model)
        named |= {"model": f"{file.absolute()}:{function}", "code": own_code.digest(file)}
    if spec.classes:
        file = Path(spec.classes).expanduser().absolute()
        class_order.read(file)  # what is wrong with it is said before anything runs
        named |= {"classes": str(file), "classes_digest": class_order.digest(file)}
    for side in ("data", "calib_data"):
        source, colon, path = (getattr(spec, side) or "").partition(":")
        if path.strip() and f"{source}:PATH" in dataset_keys():
            named[side] = source + colon + _there(path.strip())
    return replace(spec, **named)


def _weights(text: str) -> str:
    """A weights file, and after a ``#`` the weights inside of it; see `qlib.core.weights_key`."""
    file, key = weights_key.parts(text)
    return weights_key.joined(Path(_there(str(file))), key)


def _there(text: str) -> str:
    path = Path(text).expanduser().absolute()
    if not path.exists():
        raise InvalidSpec(f"There is no file or folder {text}; check the path, or put it there.")
    return str(path)


def _check_tuning(spec: RunSpec, owner: type) -> None:
    if owner.switchable and (spec.tune_norms or spec.tune_biases):
        raise InvalidSpec(
            f"{owner.title} gives a network for many bit-widths, and what is tuned afterwards fits "
            "only one; leave tune_norms and tune_biases out, or choose another method."
        )


def layer_names(names: object) -> tuple[str, ...]:
    """Names of layers; a single text is one name.

    Raises:
        InvalidSpec: something else among them.
    """
    every = names if isinstance(names, Iterable) and not isinstance(names, str) else (names,)
    kept = []
    for name in every:
        if not isinstance(name, str):
            raise InvalidSpec(
                "keep_float takes names of layers, such as keep_float=('head', "
                f"'blocks.0.attn.qkv'); got {str(name)[:60]!r} of type {type(name).__name__}."
            )
        kept.append(name)
    return tuple(kept)


def _check_seed(seed: object) -> None:
    if type(seed) is not int or not 0 <= seed <= SEEDS:
        said = str(seed) if not isinstance(seed, int) or abs(seed) < 10**30 else "a longer number"
        raise InvalidSpec(
            f"seed must be a whole number from 0 to {SEEDS:,} (2⁶³ − 1); got {said[:60]}."
        )


def _check_bits(spec: RunSpec) -> None:
    for side, bits in (("weight", spec.weight_bits), ("act", spec.act_bits)):
        if type(bits) is not int:
            raise InvalidSpec(
                f"{side}_bits must be a whole number in [2, 8]; got {str(bits)[:60]!r} of type "
                f"{type(bits).__name__}: write {side}_bits=4."
            )
        if bits == 1:
            raise InvalidSpec(
                f"{side}_bits must be in [2, 8]; got 1. A uniform grid of one bit has two levels "
                "and cannot hold zero and both signs: binary networks need training."
            )
        if bits not in BITS:
            raise InvalidSpec(f"{side}_bits must be in [2, 8]; got {bits}.")
