"""Put a number and its noun together, in one or in many."""


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
