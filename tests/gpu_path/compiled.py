"""What the compiler makes of launches of Triton kernels, for chips that are not there.

A launch is compiled as Triton's launcher would: pointers and numbers that are multiples of 16, and ones, are told to the
compiler, and how a load may be vectorised follows from it. Triton's wheel brings the assembler and the reader of its output.
"""

import importlib
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "uint8": "*u8", "int64": "*i64", "int32": "*i32"}
TYPES |= {"int16": "*i16", "bool": "*i1"}
WITHOUT_BF16 = 75  # the one chip of these that has none; what it launches is compiled for no other, and the other way round
MEMORY_ACCESS = re.compile(r"(ld\.global|st\.global|cp\.async)[\w.:]*?(?:\.v(\d))?\.(?:[bfsu](\d+)|shared\.global)\b")


def compile_all(launches: list[dict[str, Any]], chips: list[int]) -> list[dict[str, Any]]:
    """Figures of every launch for every chip that it can run on.

    Args:
        launches: as ``fake_cuda`` recorded them.
        chips: compute capabilities: 90 for 9.0.
    """
    fitting = [(launch, chip) for launch in launches for chip in chips if launch["without_bf16"] == (chip == WITHOUT_BF16)]
    return [_compiled(launch, chip) for launch, chip in fitting]


def _source(launch: dict[str, Any]) -> ASTSource:
    module, _, name = launch["kernel"].partition(":")
    function = getattr(importlib.import_module(module), name)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for number, parameter in enumerate(function.params):
        kind, *facts = launch["signature"][parameter.name]
        is_multiple = False
        if kind == "constexpr":
            signature[parameter.name], constants[parameter.name] = "constexpr", facts[0]
        elif kind == "pointer":
            signature[parameter.name], is_multiple = TYPES[facts[0]], facts[1]
        elif kind == "int" and facts[0] == 1:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        elif kind == "int":
            signature[parameter.name], is_multiple = "i64" if facts[1] else "i32", facts[0] == 16
        else:
            signature[parameter.name] = "fp32"
        if is_multiple:
            attributes[(number,)] = [["tt.divisibility", 16]]
    return ASTSource(function, signature, constants, attributes)


def _compiled(launch: dict[str, Any], chip: int) -> dict[str, Any]:
    found: dict[str, Any] = {"kernel": launch["kernel"], "from": launch["from"], "chip": chip}
    found["arguments"] = {name: value for name, value in launch["signature"].items() if value[0] != "float"}
    try:
        kernel: Any = triton.compile(_source(launch), target=GPUTarget("cuda", chip, 32), options=launch["options"])
    except Exception as error:  # noqa: BLE001  # Triton's errors share no class, and each is a finding
        return found | {"failed": f"{type(error).__name__}: {error}"[:600]}
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    loads = Counter(
        f"{name} {int(many or 1) * int(bits or 0)}" for name, many, bits in MEMORY_ACCESS.findall(kernel.asm["ptx"])
    )
    found |= {"registers": registers, "threads": 32 * kernel.metadata.num_warps, "spilled": stack, "loads": dict(loads)}
    return found | {"shared": kernel.metadata.shared}
