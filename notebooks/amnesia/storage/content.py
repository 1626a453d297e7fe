"""The bytes of a file of this project, and what they hold: checked before it is believed, and nothing unpickled."""

import hashlib
import io
import json
import pickle
import struct
import sys
import zipfile
import zlib

import torch

from .disk import reason

FORMAT = 1
OF_WEIGHTS = ("cvae", "fim", "amnesiac", "classifier", "denoiser")  # kinds whose state has to be finite numbers
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, OSError, OverflowError, RuntimeError,
              ValueError)  # what zipfile raises at bytes that are no whole archive
torch.save({}, io.BytesIO())  # which imports some of torch, late: by then it may be out of this user's reach


class Damaged(ValueError):
    """Bytes that are positively recognised as broken: an archive, a checksum, an entry."""


class Foreign(ValueError):
    """Bytes that this project did not write: another's checkpoint, say."""


def kind_of(name):
    """What a file holds, by its name: 'fim-cvae.pt' holds a 'fim'."""
    return name.split(".")[0].split("-")[0]


def checksum(content):
    """SHA-256 of plain values, as JSON writes them."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def interned(value):
    """The same value, of plain dicts and lists, with equal strings as one object.

    pickle writes an object once and points to it from then on, so the bytes would tell a string that was read from a file
    from an equal one in the code: a run that went on from its progress from one that was never cut off.
    """
    if isinstance(value, dict):
        return {interned(key): interned(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(interned, value))
    return sys.intern(value) if type(value) is str else value


def to_bytes(name, content):
    """The bytes of a file of this name: torch.save's, or JSON with a checksum, so that no altered figure passes."""
    if name.endswith(".json"):
        return json.dumps({**content, "sha256": checksum(content)}, indent=1).encode()
    file = io.BytesIO()
    torch.save(interned(content), file)
    return file.getvalue()


def from_bytes(name, packed):
    """The dict in these bytes, checked.

    Raises Damaged, or Foreign. Whatever else is raised says nothing of the file, as a MemoryError or a module that cannot
    be imported.
    """
    content = json_content(packed) if name.endswith(".json") else torch_content(packed)
    if not isinstance(content, dict) or [type(content.get(key)) for key in ("kind", "name", "format")] != [str, str, int]:
        raise Foreign("without kind, name and format")
    if content["format"] != FORMAT:
        return content  # whoever wrote it knows what is to be in it
    for key in {"settings", "lineage"} | (content.keys() & {"config", "metrics"}):
        if not isinstance(content.get(key), dict) or not all(isinstance(name, str) for name in content[key]):
            raise Damaged(f"its {key} is no dict by names")
    try:
        checksum([content["settings"], content["lineage"]])
    except (TypeError, ValueError) as error:
        raise Damaged(f"its settings or its lineage: {error}") from error
    if content["kind"] != kind_of(content["name"]):
        raise Damaged(f"{content['name']} that calls itself a {content['kind']}")
    if content["kind"] in OF_WEIGHTS:
        state = content.get("state")
        if not (isinstance(state, dict) and all(isinstance(weight, torch.Tensor) and weight.is_floating_point()
                                                and weight.isfinite().all() for weight in state.values())):
            raise Damaged("its state is no dict of tensors that hold finite real numbers, as weights are")
    return content


def json_content(packed):
    """What JSON holds, once its checksum is right."""
    try:
        content = json.loads(packed)
    except (ValueError, RecursionError) as error:
        raise Damaged(reason(error)) from error
    if not isinstance(content, dict) or "sha256" not in content:
        raise Foreign("without a checksum")
    if content.pop("sha256") != checksum(content):
        raise Damaged("wrong checksum")
    return content


def torch_content(packed):
    """What a torch file holds, once its archive's checksums are right, which torch.load itself does not look at."""
    if packed and not packed.startswith(b"PK"):
        raise Foreign("no zip archive, as torch.save makes them")
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {broken}")
    except BROKEN_ZIP as error:
        raise Damaged(reason(error)) from error
    try:
        return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own text offers to run whatever is in there
        raise Foreign("it holds more than tensors and plain values") from error
    except RuntimeError as error:
        if "memory" in str(error):  # torch's allocator does not raise MemoryError
            raise MemoryError(str(error)) from error
        if "PytorchStreamReader" in str(error):  # a zip archive by Python's reading, and not by torch's
            raise Damaged(str(error)) from error
        raise
