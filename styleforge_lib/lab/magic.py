"""`%%cuda NAME`: a notebook cell of CUDA C++ becomes a Python name.

Contents
    CudaMagic               the cell magic, after `%load_ext styleforge_lib`
    XRayed                  what `--xray` binds: each launch is looked at, then done
    load_ipython_extension  registers it

    %%cuda relu -D TILE=16 --arch sm_80 --xray
    extern "C" __global__ void relu(float* x, int n) { ... }

The cell is compiled and NAME bound to its Module, which is called like a kernel when the cell has one. A line tells the
registers, shared memory and spills of each kernel. What the compiler refuses is shown with the cell's own line numbers
(the line of `%%cuda` is line 1), without a Python traceback, and stops "Run all" as any error does.
"""

import keyword

import numpy as np
import torch
from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from styleforge_lib.runtime import CompileError, Module, compile_cuda


@magics_class
class CudaMagic(Magics):
    """The cell magic `%%cuda`."""

    @magic_arguments()
    @argument("name", help="the Python name to bind")
    @argument("-D", dest="defines", metavar="K=V", action="append", default=[], help="define a macro (may be repeated)")
    @argument("--arch", help='compile for this architecture, such as "sm_80"; left out, for the card or the emulator')
    @argument("--xray", action="store_true", help="x-ray each launch on the emulator and show what it saw")
    @cell_magic
    def cuda(self, line: str, cell: str) -> None:
        """Compile the cell as CUDA C++ and bind its module to a name."""
        arguments = parse_argstring(self.cuda, line)
        name = arguments.name
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"%%cuda {name}: the name must be a Python identifier, such as relu")
        defines = dict(_define(text) for text in arguments.defines)
        # The magic's own line stands first as a comment, so that line numbers are those of the cell.
        text = f"// %%cuda {line.rstrip(chr(92))}\n{cell}"
        try:
            module = compile_cuda(text, defines=defines, arch=arguments.arch, name=f"{name}.cu")
            if not module.kernels:
                raise UsageError(f'%%cuda {name}: the cell has no kernel: declare one extern "C" __global__ void')
            report = [
                f"{kernel}: {module.kernel(kernel).resources}, on the {module.device}" for kernel in module.kernels
            ]
        except CompileError as error:
            lines = str(error).splitlines()
            error._render_traceback_ = lambda: lines  # IPython asks an exception for this before it draws its own
            raise
        except (TypeError, ValueError, RuntimeError) as error:  # the last: there is no CuPy or no NVRTC here
            raise UsageError(f"%%cuda {name}: {error}") from None
        for warning in module.warnings:
            report.append(f"line {warning.line}: warning: {warning.message}")
        print("\n".join(report))
        self.shell.user_ns[name] = XRayed(module) if arguments.xray else module


def _define(text: str) -> tuple[str, str | bool]:
    macro, equals, value = text.partition("=")
    return macro, value if equals else True


class XRayed:
    """A module whose every launch is x-rayed on copies of its arguments, shown, and then done."""

    def __init__(self, module: Module):
        self.module = module

    def __call__(
        self, grid, block, args, *, shared_bytes: int = 0, cooperative: bool = False, overlap: bool = False
    ) -> None:
        """Show the x-ray of this launch, then launch."""
        from styleforge_lib.lab.xray import xray

        copies = [_copy(value) for value in args]
        options = {"shared_bytes": shared_bytes, "cooperative": cooperative}
        xray(self.module.only, grid, block, copies, **options).show()
        self.module(grid, block, args, **options, overlap=overlap)

    def __getattr__(self, name: str):
        return getattr(self.module, name)


def _copy(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach().clone(memory_format=torch.preserve_format)
    return value.copy() if isinstance(value, np.ndarray) else value


def load_ipython_extension(shell) -> None:
    """Register the magic in an IPython shell; `%load_ext styleforge_lib` calls this."""
    shell.register_magics(CudaMagic)
