"""English that captions and readers share."""


def with_article(noun: str) -> str:
    """ "apple" -> "an apple"; a plural ("grapes", "french fries") stays bare."""
    last = noun.split(",")[0].split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return noun
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
