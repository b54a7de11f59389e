"""The operators: each computes as PyTorch does, through a kernel of cuda/ where one applies.

The functions are imported here at once, because an operator's module and function share a name (``relu``), and
``ops.relu`` must mean the function. What describes an operator is `find_operator(name)`.
"""

from styleforge_lib.ops import instance_norm as _instance_norm
from styleforge_lib.ops import instance_norm_backward as _instance_norm_backward  # noqa: F401 - registers with torch
from styleforge_lib.ops import relu as _relu
from styleforge_lib.ops import residual_add as _residual_add
from styleforge_lib.ops.operator import Case, Cost, Operator

_OPERATORS = {module.OPERATOR.name: module.OPERATOR for module in (_relu, _residual_add, _instance_norm)}


def operators() -> tuple[Operator, ...]:
    """Return every operator."""
    return tuple(_OPERATORS.values())


def find_operator(name: str) -> Operator:
    """Return an operator by its name; ValueError lists the names."""
    if name not in _OPERATORS:
        raise ValueError(f"no operator is called {name!r}: there are {', '.join(_OPERATORS)}")
    return _OPERATORS[name]


instance_norm = _instance_norm.instance_norm
relu = _relu.relu
residual_add = _residual_add.residual_add

__all__ = ["Case", "Cost", "Operator", "find_operator", "instance_norm", "operators", "relu", "residual_add"]
