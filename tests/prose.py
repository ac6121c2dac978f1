"""What a sentence tells, without its wording: names, numbers and the words that carry meaning."""

import re


def tells(text: str, *parts: object) -> bool:
    """Whether one line of ``text`` has these parts, each as a word of its own, in this order.

    Marks of Markdown and hard spaces do not count.
    """
    plain = re.sub(r"[*`]", "", text.replace("\N{NO-BREAK SPACE}", " "))
    each = (rf"(?<![\w.]){re.escape(str(part))}(?!\w)" for part in parts)
    return re.search(".*?".join(each), plain) is not None
