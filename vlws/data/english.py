"""English that captions and readers share."""


def with_article(noun: str) -> str:
    """ "apple" -> "an apple"; a plural ("grapes", "french fries") stays bare.

    >>> with_article("apple"), with_article("cat"), with_article("grapes")
    ('an apple', 'a cat', 'grapes')
    """
    last = noun.split(",")[0].split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return noun
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
