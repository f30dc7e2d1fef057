"""Write clipkit/assets/merges.txt.gz, the byte-pair merge table of CLIP, from its published form.

    python scripts/make_merges.py

The published file (OpenAI CLIP, MIT license) travels inside the open_clip_torch distribution. It is
read as data, and nothing is imported. It holds a header and 262,144 merges. CLIP's vocabulary of
49,408 uses the first 48,894, beside 256 bytes, the same 256 at the end of a word, and two special
tokens. The output carries no file name and no time stamp, so it is the same each time.
"""

import gzip
import hashlib
from importlib.metadata import distribution
from pathlib import Path

SOURCE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
USED = 49408 - 256 - 256 - 2
TARGET = Path(__file__).parent.parent / "clipkit" / "assets" / "merges.txt.gz"
TEXT_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"


def used_merges() -> bytes:
    """Return the merges that CLIP uses, one a line.

    Raises SystemExit if the published table is another than the one that clipkit was built with.
    """
    path = Path(str(distribution("open_clip_torch").locate_file(SOURCE)))
    _, *merges = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    text = "\n".join(merges[:USED]).encode("utf-8")
    if hashlib.sha256(text).hexdigest() != TEXT_SHA256:
        raise SystemExit(f"{SOURCE} is not the merge table that clipkit was built with")
    return text


def main() -> None:
    TARGET.write_bytes(gzip.compress(used_merges(), compresslevel=9, mtime=0))
    print(f"{TARGET.name}: {USED} merges, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
