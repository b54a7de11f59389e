"""NVRTC: CUDA text becomes PTX and a cubin, on any machine, with or without a GPU.

Contents
    compile_text        text -> Compiled: PTX with line numbers, cubin, what ptxas says, the kernels' signatures
    compile_to_ptx      the same, the PTX alone
    include_directories the headers of the CUDA toolkit that belong to this NVRTC
    the cache           ~/.cache/styleforge/kernels, one file for each (text, headers, options, compiler)

CuPy's `nvrtc` bindings do the work: unlike its RawKernel they need no driver. For a real architecture ("sm_80") one
compilation gives both the PTX, which the emulator executes, and the cubin, which the driver loads; for a virtual one
("compute_80") the PTX alone. Nothing is added that changes results: in particular no `-ftz=true`, so denormals behave
as in PyTorch. torch is not needed here.
"""

import base64
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from styleforge_lib.paths import data_folder
from styleforge_lib.runtime.diagnostics import CompileError, Diagnostic, read_diagnostics
from styleforge_lib.runtime.resources import Resources, parse_ptxas

CACHE_FORMAT = 1  # raised when what an entry holds changes
FIXED_OPTIONS = ("-std=c++17", "-lineinfo")
PTXAS_REPORT = "--ptxas-options=-v"
# NVRTC knows this option since 12.9. On a GPU a text that was compiled a second time, but for a macro, once came back
# without the report of ptxas; a cache of NVRTC's own is the likely reason, and we have ours.
NO_CACHE = "--no-cache"
FAST = "-Ofc=max"  # compile quickly, to code that nobody is to run; since 12.9 too


@dataclass(frozen=True)
class Compiled:
    """The result of one compilation. `cubin` is empty and `resources` has no entries for a virtual architecture."""

    name: str
    arch: str
    ptx: str
    cubin: bytes
    log: str
    signatures: dict[str, str]  # entry -> the mangled types of its parameters (see signature.py)
    resources: dict[str, Resources] = field(default_factory=dict)

    @property
    def warnings(self) -> list[Diagnostic]:
        """What the compiler remarked on the source."""
        return [item for item in read_diagnostics(self.log, self.name) if item.level == "warning"]


def compile_to_ptx(
    text: str,
    *,
    arch: str,
    name: str = "kernel.cu",
    defines: Mapping[str, object] | None = None,
    options: Iterable[str] = (),
) -> str:
    """Compile CUDA C++ `text` for `arch` ("sm_80" or "compute_80") to PTX with line numbers. Errors as compile_text."""
    return compile_text(text, arch=arch, name=name, defines=defines, options=options).ptx


def compile_text(
    text: str,
    *,
    arch: str,
    name: str = "kernel.cu",
    defines: Mapping[str, object] | None = None,
    options: Iterable[str] = (),
    include: Iterable[Path] = (),
) -> Compiled:
    """Compile CUDA C++ `text`, or take the result from the cache.

    name: what messages and line numbers call the text. defines: macros, {"TILE": 16}; True stands for 1, None for an
    empty macro. include: directories searched for headers before the library's own (`#include "common/..."`) and the
    toolkit's.
    CompileError shows what the compiler says beside the lines of source.
    """
    if not re.fullmatch(r"(sm|compute)_\d+[af]?", arch):
        raise ValueError(
            f'arch={arch!r} is not an architecture; write it "sm_80" or "sm_90a" ("compute_80" for PTX alone)'
        )
    options = tuple(options)
    for option in options:
        if re.match(r"--?(arch|gpu-architecture)\b", option):
            raise ValueError(f"options holds {option!r}: the architecture is the argument arch={arch!r}")
    nvrtc = _nvrtc()
    if int(re.search(r"\d+", arch)[0]) not in nvrtc.getSupportedArchs():
        known = ", ".join(f"sm_{number}" for number in nvrtc.getSupportedArchs())
        version = ".".join(map(str, nvrtc.getVersion()))
        raise ValueError(f"arch={arch!r} is not known to this compiler (NVRTC {version}), which knows {known}")
    own = (*(Path(path) for path in include), data_folder("cuda"))
    toolkit = include_directories(nvrtc.getVersion())
    flags = (
        f"-arch={arch}",
        *FIXED_OPTIONS,
        *((PTXAS_REPORT,) if arch.startswith("sm_") else ()),
        *((NO_CACHE,) if nvrtc.getVersion() >= (12, 9) else ()),
        *_define_options(defines or {}),
        *options,
        *(f"-I{path}" for path in (*own, *toolkit)),
    )
    key = _cache_key(text, name, flags, nvrtc.getVersion(), _headers(text, own), _toolkit_stamp(toolkit))
    compiled = _cache_read(key)
    if compiled is None:
        compiled = _compile(nvrtc, text, name, arch, flags)
        _cache_write(key, compiled)
    return compiled


# ----------------------------------------------------------------------------------------------------------------------
# The compiler


def _nvrtc():
    """Return CuPy's bindings of NVRTC; one error that says what to install."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # no CuPy, no libnvrtc, a CuPy for another CUDA: the remedy is the same
        raise RuntimeError(
            "compiling CUDA needs CuPy and NVRTC, with or without a GPU: "
            f"pip install 'styleforge[cuda13]' (or [cuda12]). Importing them said: {type(error).__name__}: {error}"
        ) from error
    return nvrtc


def _compile(nvrtc, text: str, name: str, arch: str, flags: tuple[str, ...]) -> Compiled:
    ptx, cubin, log = _run(nvrtc, text, name, arch, flags)
    # NVRTC writes a relative name as an absolute path of the directory that Python happens to run in.
    ptx = ptx.replace(f'"{os.path.join(os.getcwd(), name)}"', f'"{name}"')
    signatures = _signatures(nvrtc, text, name, arch, flags, ptx)
    bounds = {
        match[1]: int(match[2]) * int(match[3]) * int(match[4])
        for match in re.finditer(r"\.entry\s+([\w$]+)[^{]*?\.(?:max|req)ntid\s+(\d+),\s*(\d+),\s*(\d+)", ptx)
    }
    return Compiled(name, arch, ptx, cubin, log, signatures, parse_ptxas(log, arch, bounds))


def _run(nvrtc, text: str, name: str, arch: str, flags: tuple[str, ...]) -> tuple[str, bytes, str]:
    """Run NVRTC once: (PTX, cubin or b"", log)."""
    program = nvrtc.createProgram(text, name, (), ())
    try:
        try:
            nvrtc.compileProgram(program, flags)
        except nvrtc.NVRTCError as error:
            log = _log(nvrtc, program) or str(error)
            ptx = _ptx_that_ptxas_refused(nvrtc, text, name, arch, flags) if "ptx input, line" in log else ""
            raise CompileError(log, text=text, name=name, arch=arch, ptx=ptx) from None
        cubin = _whole_elf(nvrtc.getCUBIN(program)) if arch.startswith("sm_") else b""
        return nvrtc.getPTX(program).decode(), cubin, _log(nvrtc, program)
    finally:
        nvrtc.destroyProgram(program)


def _log(nvrtc, program) -> str:
    """Return the log, without the zero byte that NVRTC leaves before ptxas and the times, which differ each time."""
    log = nvrtc.getProgramLog(program).replace("\0", "")
    return re.sub(r"ptxas info *: Compile time = .*\n?", "", log).strip()


def _ptx_that_ptxas_refused(nvrtc, text: str, name: str, arch: str, flags: tuple[str, ...]) -> str:
    """Return the PTX of a text whose inline assembly is wrong, so that the error can be led back to its line."""
    with contextlib.suppress(CompileError):
        return _run(nvrtc, text, name, *_virtual(arch, flags))[0]
    return ""


def _virtual(arch: str, flags: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the virtual architecture and its flags: the front half of the same compilation, without ptxas."""
    virtual = arch.replace("sm_", "compute_")
    return virtual, (f"-arch={virtual}", *(flag for flag in flags[1:] if flag != PTXAS_REPORT))


def _whole_elf(cubin: bytes) -> bytes:
    """Give back the last byte, which CuPy's getCUBIN takes for the end of a string. The ELF header knows the length."""
    program_headers, section_headers = struct.unpack_from("<QQ", cubin, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<HHHH", cubin, 54)
    length = max(program_headers + program_size * programs, section_headers + section_size * sections)
    return cubin + b"\0" * (length - len(cubin))


def _signatures(nvrtc, text: str, name: str, arch: str, flags: tuple[str, ...], ptx: str) -> dict[str, str]:
    """Ask the compiler for the parameter types of every kernel: {entry: mangled types}.

    A C++ kernel's name already spells them. The name of an `extern "C"` kernel does not, so a second compilation
    instantiates an empty template over `decltype(kernel)`, whose name then does, with every macro and typedef resolved.
    """
    entries = re.findall(r"\.entry\s+([\w$]+)", ptx)
    signatures = {entry: entry for entry in entries if entry.startswith("_Z")}
    plain = [entry for entry in entries if entry not in signatures]
    if plain:
        probe = "".join(
            f"template __global__ void styleforge_signature<{index}, decltype({entry})>();\n"
            for index, entry in enumerate(plain)
        )
        probe = f"\ntemplate <int, class F> __global__ void styleforge_signature() {{}}\n{probe}"
        try:
            probed = _quick_ptx(nvrtc, text + probe, name, *_virtual(arch, flags))
        except CompileError as error:  # the text itself did compile: what fails is `decltype` of an overloaded name
            first = error.text[: -len(probe)].count("\n") + 3
            names = ", ".join(f"'{plain[item.line - first]}'" for item in error.errors)
            log = f"the kernel name {names} is also a function of CUDA: give the kernel another name"
            raise CompileError(log, text=text, name=name, arch=arch) from None
        for match in re.finditer(r"\.entry\s+(_Z20styleforge_signatureILi(\d+)E[\w$]+)", probed):
            signatures[plain[int(match[2])]] = match[1]
    return {entry: signatures[entry] for entry in entries}


def _quick_ptx(nvrtc, text: str, name: str, arch: str, flags: tuple[str, ...]) -> str:
    """Return PTX that nobody is to run."""
    if NO_CACHE in flags:
        with contextlib.suppress(CompileError):  # inline assembly may want a constant that only optimisation finds
            return _run(nvrtc, text, name, arch, (*flags, FAST))[0]
    return _run(nvrtc, text, name, arch, flags)[0]


def _define_options(defines: Mapping[str, object]) -> list[str]:
    flags = []
    for macro, value in sorted(defines.items()):
        if not re.fullmatch(r"[A-Za-z_]\w*", macro):
            raise ValueError(f"defines: {macro!r} is not the name of a macro")
        value = "" if value is None else int(value) if isinstance(value, bool) else value
        flags.append(f"-D{macro}={value}")
    return flags


# ----------------------------------------------------------------------------------------------------------------------
# Headers


@functools.cache
def include_directories(version: tuple[int, int]) -> tuple[Path, ...]:
    """Return the include directories of the CUDA toolkit with NVRTC's major version; empty where there is none.

    The pip wheels come first (they belong to this environment), then the prefix of conda, then CUDA_PATH, CUDA_HOME and
    /usr/local/cuda. Without any, kernels that include no header of CUDA still compile.
    """
    major = version[0]
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(path) for path in (spec.submodule_search_locations or ())] if spec else []
    roots = [wheel / part for wheel in wheels for part in (f"cu{major}", "cuda_runtime")]
    roots += [Path(sys.prefix), Path(sys.prefix) / "targets" / "x86_64-linux"]
    roots += [Path(os.environ[name]) for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    roots.append(Path("/usr/local/cuda"))
    found = next((root / "include" for root in roots if _runtime_major(root / "include") == major), None)
    if found is None:
        return ()
    directories = [found]
    if not (found / "crt").is_dir():  # mma.h needs it; CUDA 12's wheels keep it with nvcc, CUDA 13's in one of its own
        elsewhere = [wheel / part / "include" for wheel in wheels for part in (f"cu{major}", "cuda_nvcc")]
        directories += [path for path in elsewhere if (path / "crt").is_dir()][:1]
    if (found / "cccl").is_dir():
        directories.append(found / "cccl")
    elif not (found / "cuda" / "std").is_dir() and (cupy := importlib.util.find_spec("cupy")):
        bundled = Path(cupy.submodule_search_locations[0]) / "_core" / "include" / "cupy" / "_cccl" / "libcudacxx"
        directories += [bundled] if bundled.is_dir() else []
    return tuple(directories)


def _runtime_major(include: Path) -> int | None:
    with contextlib.suppress(OSError):
        match = re.search(
            r"#define\s+CUDART_VERSION\s+(\d+)", (include / "cuda_runtime_api.h").read_text("utf-8", "replace")
        )
        return int(match[1]) // 1000 if match else None
    return None


def _headers(text: str, directories: tuple[Path, ...]) -> list[str]:
    """Return digests of the headers under `directories` that `text` includes, directly or through each other."""
    digests, seen, waiting = [], set(), [text]
    while waiting:
        for included in re.findall(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">\n]+)[">]', waiting.pop(), re.MULTILINE):
            for path in (directory / included for directory in directories):
                if path not in seen and path.is_file():
                    seen.add(path)
                    content = path.read_text("utf-8", "replace")
                    digests.append(f"{path} {hashlib.sha256(content.encode()).hexdigest()}")
                    waiting.append(content)
                    directories = (*directories, path.parent) if path.parent not in directories else directories
    return sorted(digests)


def _toolkit_stamp(directories: tuple[Path, ...]) -> list[str]:
    """Name the toolkit's headers by place and date: hashing them all would take longer than the compilation."""
    stamps = []
    for directory in directories:
        with contextlib.suppress(OSError):
            stamps.append(f"{directory} {directory.stat().st_mtime_ns}")
    return stamps


# ----------------------------------------------------------------------------------------------------------------------
# The cache


def cache_directory() -> Path:
    """Return where compiled kernels are kept: STYLEFORGE_CACHE, else the user's cache directory."""
    if chosen := os.environ.get("STYLEFORGE_CACHE"):
        return Path(chosen) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "styleforge" / "kernels"


def _cache_key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([CACHE_FORMAT, sys.platform, *parts], default=list).encode()).hexdigest()


def _cache_read(key: str) -> Compiled | None:
    """Return the entry, or None where there is none or it is not whole: then the text is compiled again."""
    try:
        digest, _, body = (cache_directory() / f"{key}.json").read_text("utf-8").partition("\n")
        if digest != hashlib.sha256(body.encode()).hexdigest():
            return None
        entry = json.loads(body)
        entry["cubin"] = base64.b64decode(entry["cubin"])
        entry["resources"] = {name: Resources(**numbers) for name, numbers in entry["resources"].items()}
        return Compiled(**entry)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _cache_write(key: str, compiled: Compiled) -> None:
    """Write the entry in one step, so that nobody reads half of it. A cache that cannot be written is no error."""
    body = json.dumps(asdict(compiled) | {"cubin": base64.b64encode(compiled.cubin).decode()})
    temporary = None
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=directory, delete=False, encoding="utf-8") as file:
            temporary = file.name
            file.write(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
        os.replace(temporary, directory / f"{key}.json")
    except OSError:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
