"""The artifact `model.tc`: everything that running a model needs, in one file.

    bytes 0-7    magic "TINYCOMP"
    bytes 8-11   length of the header, u32 little-endian
    bytes 12-43  SHA-256 of the header
    header       JSON: versions, target, inputs, outputs, plan, and the sections with their hashes
                 (`bulk.digest`)
    sections     raw bytes, each at a multiple of 64, so that constants are used where they lie

Nothing in it is executed or unpickled before all hashes have been checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..diagnostics import ArtifactError
from ..dims import DimRange
from ..dtype import DType
from ..target import Target
from . import bulk
from .cache import atomic_path

MAGIC = b"TINYCOMP"
SCHEMA = 2  # raised whenever an older reader would misunderstand the file or the native interface
ALIGNMENT = 64
_HEAD = len(MAGIC) + 4 + 32


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """An input or output: its ONNX name, shape (ints, or names of dimensions) and dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: DType

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """One kernel call of the plan, in its order; for `inspect` and `profile`.

    Attributes:
        name: native function.
        label: the operators in it, "nn.conv2d+add+nn.relu".
        nodes: ONNX nodes that it computes.
        flops: floating-point operations of one call (a multiply-add counts two).
        nbytes: bytes of its arguments, each read or written once.
        precision: of its products and convolutions, such as "bf16"; of other kernels the formats
            of the floats they read and write; with " (tensor cores)" where these are used.
    """

    name: str
    label: str
    nodes: tuple[str, ...]
    flops: int
    nbytes: int
    precision: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact says about itself.

    Attributes:
        kernels: the kernel calls in order of execution; those of branches and loops too.
        arena_bytes, unshared_bytes: working memory of one call, and what it were without reuse.
        parameters: elements of the model's weights.
        max_threads: threads that the working memory suffices for.
        options: of the compilation, for people.
        source, source_digest: the model file it was compiled from, and its hash (`bulk.digest`).
        generator: hash of the code that generated it (`cache.source_digest`).
        dims: open dimensions by name. The artifact then holds the model, and variants of it.
        model_key: hash of the model's content, by which compiled variants are cached.
    """

    target: Target
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    kernels: tuple[KernelInfo, ...]
    arena_bytes: int
    unshared_bytes: int
    parameters: int = 0
    max_threads: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    source_digest: str = ""
    generator: str = ""
    tinycomp: str = __version__
    llvmlite: str = ""
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    model_key: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A compiled model: manifest, object code, constants, and IR texts by level.

    `constants` is a uint8 array at a 64-byte aligned address; loaded from a file it is a mapping
    of it. `objects` maps a name to relocatable object code.

    That of a model with open dimensions has `variants` for fixed sizes (those of `manifest.dims`,
    in order); its own object is the model ("model"), its constants are the model's weights.
    """

    manifest: Manifest
    objects: Mapping[str, bytes]
    constants: np.ndarray
    texts: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[tuple[int, ...], Artifact] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the file; whoever reads `path` meanwhile sees the old one or the new one.

        Raises:
            ArtifactError: the file cannot be written.
        """
        path = Path(path)
        sections = _own_sections(self)
        for index, variant in enumerate(self.variants.values()):
            sections |= {f"{index}/{k}": data for k, data in _own_sections(variant).items()}
        table, written = _layout(sections)
        heads = [
            {"sizes": sizes, "manifest": _manifest_json(variant.manifest)}
            for sizes, variant in self.variants.items()
        ]
        header = json.dumps(
            {"schema": SCHEMA, "manifest": _manifest_json(self.manifest), "sections": table,
             "variants": heads}
        ).encode()  # fmt: skip
        start = _sections_start(len(header))
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                file.write(MAGIC + len(header).to_bytes(4, "little"))
                file.write(hashlib.sha256(header).digest() + header)
                for offset, data in written:
                    file.write(b"\0" * (start + offset - file.tell()))
                    file.write(data)
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error

    @staticmethod
    def load(path: str | Path) -> Artifact:
        """Read and check a file.

        Raises:
            ArtifactError: not an artifact, damaged, of another version, or for another machine.
        """
        path = Path(path)
        data = _map_file(path)
        header, start = _read_header(path, data)
        try:
            sections = _read_sections(path, data, header, start)
            heads = header.get("variants", [])
            own = _make_artifact(header["manifest"], sections, "")
            variants = {
                tuple(head["sizes"]): _make_artifact(head["manifest"], sections, f"{i}/")
                for i, head in enumerate(heads)
            }
        except (KeyError, TypeError, ValueError) as error:  # the hashes fit: another writer
            raise ArtifactError(
                f"{path} is incomplete, or was written by another program ({error!r})",
                hint="compile the model again",
            ) from error
        _check_host(path, own.manifest)
        return dataclasses.replace(own, variants=variants)


def _own_sections(artifact: Artifact) -> dict[str, Any]:
    """What an artifact holds besides its variants, as bytes by section name."""
    sections: dict[str, Any] = {f"object:{k}": v for k, v in artifact.objects.items()}
    for level, text in artifact.texts.items():
        sections[f"text:{level}"] = zlib.compress(text.encode(), 1)
    sections["constants"] = artifact.constants.data.cast("B")
    return sections


def _layout(
    sections: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], list[tuple[int, Any]]]:
    """Where each section goes, and what to write; equal ones (of variants) are written once."""
    table: dict[str, dict[str, Any]] = {}
    written: list[tuple[int, Any]] = []
    known: dict[tuple[str, int], int] = {}
    position = 0
    for name, data in sections.items():
        digest = bulk.digest(data).hex()
        offset = known.setdefault((digest, len(data)), position)
        if offset == position:
            written.append((offset, data))
            position += -(-len(data) // ALIGNMENT) * ALIGNMENT
        table[name] = {"offset": offset, "size": len(data), "sha256": digest}
    return table, written


def _make_artifact(
    manifest: Mapping[str, Any], sections: Mapping[str, memoryview], prefix: str
) -> Artifact:
    """One artifact from the sections whose names begin with `prefix` and have no other."""
    objects, texts = {}, {}
    for name, section in sections.items():
        kind, _, key = name.removeprefix(prefix).partition(":")
        if not name.startswith(prefix):
            continue
        if kind == "object":
            objects[key] = bytes(section)
        elif kind == "text":
            texts[key] = zlib.decompress(section).decode()
    constants = np.frombuffer(sections[f"{prefix}constants"], np.uint8)
    return Artifact(_manifest_from_json(manifest), objects, constants, texts)


def is_artifact(path: str | Path) -> bool:
    """Whether the file begins as an artifact does."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _sections_start(header_bytes: int) -> int:
    return -(-(_HEAD + header_bytes) // ALIGNMENT) * ALIGNMENT


def _map_file(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ArtifactError(f"{path} is empty", hint="compile the model again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error


def _read_header(path: Path, data: memoryview) -> tuple[dict[str, Any], int]:
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ArtifactError(
            f"{path} is not a tinycomp artifact",
            hint="an artifact is made by `tinycomp compile MODEL.onnx -o MODEL.tc`",
        )
    size = int.from_bytes(data[8:12], "little")
    text = bytes(data[_HEAD : _HEAD + size])
    if len(text) != size or hashlib.sha256(text).digest() != bytes(data[12:_HEAD]):
        raise _damaged(path, "its header")
    header = json.loads(text)
    found = header.get("schema") if isinstance(header, dict) else None
    if found != SCHEMA:
        raise ArtifactError(
            f"{path} has format {found}, but this tinycomp {__version__} reads format {SCHEMA}",
            hint="compile the model again with this version",
        )
    return header, _sections_start(size)


def _read_sections(
    path: Path, data: memoryview, header: Mapping[str, Any], start: int
) -> dict[str, memoryview]:
    sections: dict[str, memoryview] = {}
    checked: set[tuple[int, int, str]] = set()  # sections that variants share
    for name, entry in header["sections"].items():
        begin = start + entry["offset"]
        section = data[begin : begin + entry["size"]] if entry["offset"] >= 0 else data[:0]
        if len(section) != entry["size"]:
            raise ArtifactError(
                f"{path} is truncated: it ends inside section {name!r}",
                hint="copy the file again, or compile the model again",
            )
        place = (begin, entry["size"], entry["sha256"])
        if place not in checked and bulk.digest(section).hex() != entry["sha256"]:
            raise _damaged(path, f"section {name!r}")
        checked.add(place)
        sections[name] = section
    return sections


def _damaged(path: Path, part: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged: {part} does not match its hash",
        hint="copy the file again, or compile the model again",
    )


def foreign_reason(target: Target) -> str:
    """Why this machine cannot run code for `target`; empty if it can."""
    if target.kind == "cuda":
        return ""  # whether there is a GPU shows when the model is run
    host = Target.host()
    if target.triple.partition("-")[0] != host.triple.partition("-")[0]:
        return f"{target.triple}, but this machine is {host.triple}"
    missing = sorted(required_features(target) - required_features(host))
    if missing:
        names = ", ".join(missing)
        return f"the CPU {target.cpu} with {names}, which this CPU ({host.cpu}) lacks"
    return ""


def _check_host(path: Path, manifest: Manifest) -> None:
    reason = foreign_reason(manifest.target)
    if reason:
        raise ArtifactError(
            f"{path} is compiled for {reason}",
            hint='compile it on this machine, or with a --target "llvm -mcpu=..." it supports',
        )


def required_features(target: Target) -> frozenset[str]:
    """The CPU features that are switched on: given ones, else those of a known CPU name."""
    given = {f[1:] for f in target.features.split(",") if f.startswith("+")}
    return frozenset(given | _CPU_FEATURES.get(target.cpu, frozenset()))


_V3 = frozenset({"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_CPU_FEATURES = {
    **dict.fromkeys(("x86-64-v3", "haswell", "znver3"), _V3),
    **dict.fromkeys(("x86-64-v4", "skylake-avx512", "znver4", "znver5"), _V4),
    **dict.fromkeys(("icelake-server", "sapphirerapids"), _V4),
}


def _manifest_json(manifest: Manifest) -> dict[str, Any]:
    return dataclasses.asdict(manifest)


def _manifest_from_json(data: Mapping[str, Any]) -> Manifest:
    def specs(items: list[Mapping[str, Any]]) -> tuple[ValueSpec, ...]:
        return tuple(ValueSpec(i["name"], tuple(i["shape"]), DType(i["dtype"])) for i in items)

    kernels = tuple(KernelInfo(**{**k, "nodes": tuple(k["nodes"])}) for k in data["kernels"])
    return Manifest(
        **{
            **data,
            "target": Target(**data["target"]),
            "inputs": specs(data["inputs"]),
            "outputs": specs(data["outputs"]),
            "kernels": kernels,
            "dims": {
                name: DimRange(r["min"], r["max"], tuple(r["buckets"]), r["auto"])
                for name, r in data.get("dims", {}).items()
            },
        }
    )
