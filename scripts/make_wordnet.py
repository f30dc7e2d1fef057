"""Write clipkit/assets/wordnet.txt.gz, the names of WordNet's nouns that data sets are named by.

    python scripts/make_wordnet.py

The ids and synonyms of the 21,841 nouns of ImageNet, with those of a few more, travel inside the
timm distribution. They are read as data, and nothing is imported. The first synonym names an id.
The ids of ImageNet's 1,000 classes, which are in the order of their numbers, get the names of the
prompt set "imagenet" in their place. The output carries no file name and no time stamp, so it is
the same each time.
"""

import gzip
from importlib.metadata import distribution
from pathlib import Path

from clipkit.prompts import prompt_set

SYNONYMS = "timm/data/_info/imagenet_synset_to_lemma.txt"
CLASSES = "timm/data/_info/imagenet_synsets.txt"
TARGET = Path(__file__).parent.parent / "clipkit" / "assets" / "wordnet.txt.gz"


def read_lines(name: str) -> list[str]:
    """Return the lines of a file in the timm distribution."""
    return Path(str(distribution("timm").locate_file(name))).read_text("utf-8").splitlines()


def names() -> dict[str, str]:
    """Return the name of each id, in the order of the ids."""
    found: dict[str, str] = {}
    for line in read_lines(SYNONYMS):
        identifier, synonyms = line.split("\t")
        found[identifier] = synonyms.split(",")[0].strip()
    classes = read_lines(CLASSES)
    assert classes == sorted(classes)  # the order of ImageNet's classes is that of their ids
    found |= dict(zip(classes, prompt_set("imagenet").class_names, strict=True))
    return dict(sorted(found.items()))


def main() -> None:
    lines = [f"{identifier} {name}\n" for identifier, name in names().items()]
    TARGET.write_bytes(gzip.compress("".join(lines).encode("utf-8"), compresslevel=9, mtime=0))
    print(f"{TARGET.name}: {len(lines)} names, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
