"""The 1,000 ImageNet classes: WordNet ids and names by class index."""

from functools import cache

from qlib.core.records import InvalidSpec


@cache
def wordnet_ids() -> tuple[str, ...]:
    """WordNet ids (``n01440764`` and so on) in the order of the class indices."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


@cache
def class_names() -> tuple[str, ...]:
    """Names (``tench`` …) by class index; longer where several classes share the short one."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    full = [info.index_to_description(i) for i in range(len(wordnet_ids()))]
    short = [name.split(",")[0] for name in full]
    names = [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]
    # the bird and the machine are both just "crane"
    return tuple(
        name if names.count(name) == 1 else f"{name} ({wordnet_id})"
        for name, wordnet_id in zip(names, wordnet_ids(), strict=True)
    )


def class_index(folders: list[str], where: str) -> dict[str, int]:
    """Folder name -> class index.

    Raises:
        InvalidSpec: a folder is not one of the 1,000 ids.
    """
    index_of_id = {wordnet_id: i for i, wordnet_id in enumerate(wordnet_ids())}
    unknown = [name for name in folders if name not in index_of_id]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InvalidSpec(
            f"{where} has a folder {unknown[0]!r}{more} that is none of ImageNet's 1,000 WordNet "
            "ids; folders must be named like n01440764. Use folder:PATH for other classes."
        )
    return {name: index_of_id[name] for name in folders}
