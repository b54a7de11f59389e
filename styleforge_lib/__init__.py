"""StyleForge: hand-written CUDA kernels for a style-transfer network, as torch drop-ins."""

import importlib

# Each public name, and the module it is imported from when it is first asked for (PEP 562), so that
# `import styleforge_lib`, the emulator and `--help` do not wait for torch.
_HOMES = {
    "CompileError": "styleforge_lib.runtime.diagnostics",
    "FusedConv2d": "styleforge_lib.nn",
    "FusedConvInstanceNorm2d": "styleforge_lib.nn",
    "FusedInstanceNorm2d": "styleforge_lib.nn",
    "FusedResidualBlock": "styleforge_lib.nn",
    "FusedUpsampleConv2d": "styleforge_lib.nn",
    "TransformerNet": "styleforge_lib.models.transformer_net",
    "accelerate": "styleforge_lib.acceleration",
    "compile_cuda": "styleforge_lib.runtime.kernel",
    "list_styles": "styleforge_lib.models.checkpoints",
    "load_style": "styleforge_lib.models.checkpoints",
    "stylize": "styleforge_lib.painter",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *_HOMES})


def load_ipython_extension(shell) -> None:
    """Give a notebook the `%%cuda` cell: `%load_ext styleforge_lib` calls this."""
    from styleforge_lib.lab import magic

    magic.load_ipython_extension(shell)


__all__ = list(_HOMES)
