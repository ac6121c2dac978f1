"""What a sentence tells, without its wording: names, numbers and the words that carry meaning."""

import re


def tells(text: str, *parts: object) -> bool:
    """Whether one line of ``text`` has these parts, each as a word of its own, in this order.

    Marks of Markdown and hard spaces do not count. A number or a dotted name is found whole only:
    neither ``90`` nor ``0.5`` is told by ``90.5``, nor ``blocks.1`` by ``blocks.1.mlp``.
    """
    plain = re.sub(r"[*`]", "", text.replace("\N{NO-BREAK SPACE}", " "))
    each = (rf"(?<![\w.])(?<!\d,){re.escape(str(part))}(?!\w|[.,]\w)" for part in parts)
    return re.search(".*?".join(each), plain) is not None
