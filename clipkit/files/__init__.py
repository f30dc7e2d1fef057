"""Write files whole or not at all, lock folders, read JSON with care, and tell files by digests."""

from clipkit.files.folders import replacing_folder, settle
from clipkit.files.locks import lock
from clipkit.files.output import check_output
from clipkit.files.read import parse_json, read_json, read_text, sha256
from clipkit.files.write import replacing, write_weights

__all__ = [
    "check_output",
    "lock",
    "parse_json",
    "read_json",
    "read_text",
    "replacing",
    "replacing_folder",
    "settle",
    "sha256",
    "write_weights",
]
