"""Put a number and its noun or unit together."""


def number_of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun.

    Args:
        number: how many there are.
        noun: what one of them is called.
        plural: what several are called, if that is not the noun with an s.

    Example:
        >>> number_of(1, "image"), number_of(2, "class", "classes"), number_of(1200, "image")
        ('1 image', '2 classes', '1,200 images')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def number_of_classes(number: int) -> str:
    """Return a number of classes.

    Example:
        >>> number_of_classes(1), number_of_classes(10)
        ('1 class', '10 classes')
    """
    return number_of(number, "class", "classes")


def size_in_words(number_of_bytes: float) -> str:
    """Return a size in words, with three digits.

    Example:
        >>> size_in_words(605_200_000), size_in_words(999)
        ('605 MB', '999 bytes')
    """
    if number_of_bytes < 1000:
        return f"{number_of_bytes:.0f} bytes"
    for unit, scale in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        value = number_of_bytes / scale
        if value < 999.5 or unit == "GB":
            break
    digits = 0 if value >= 99.95 else 1
    return f"{value:.{digits}f} {unit}"
