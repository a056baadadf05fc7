"""The vocabulary of generated C: fresh names, and types, constants and bit casts for one lane or many."""

import contextlib
from collections.abc import Iterator

import numpy as np
from keopscore.utils.code_gen_utils import new_c_varname


def fresh(name: str) -> str:
    """A C name that nothing else has."""
    return new_c_varname(f"vk_{name}")


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Within, fresh names are counted from the start, so that the same code has the same names."""
    saved = dict(new_c_varname.dict_instances)
    new_c_varname.dict_instances.clear()
    try:
        yield
    finally:
        new_c_varname.dict_instances.clear()
        new_c_varname.dict_instances.update(saved)


def several(name: str, count: int) -> list[str]:
    """`count` fresh names."""
    return [fresh(name) for _ in range(count)]


def larger(a: str, b: str) -> str:
    """The expression of the larger of two."""
    return f"(({a}) > ({b}) ? ({a}) : ({b}))"


def smaller(a: str, b: str) -> str:
    """The expression of the smaller of two."""
    return f"(({a}) < ({b}) ? ({a}) : ({b}))"


class Lanes:
    """The C of scalars (one lane) or vectors: written alike, only types, constants and bit casts differ.

    `V` is the real type, `U` the same unaligned in memory, `B` the integer type of the same size.
    """

    def __init__(self, dtype: str, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        self.real = {"float": np.float32, "double": np.float64}[dtype]
        self.integer = {"float": "int", "double": "long long"}[dtype]
        self.size, self.mantissa_bits = np.dtype(self.real).itemsize, np.finfo(self.real).nmant  # 23 or 52
        self.bias = np.finfo(self.real).maxexp - 1  # 127 or 1023
        self.V, self.U, self.B = (fresh(name) for name in ("V", "U", "B"))

    def types(self) -> str:
        """The type definitions."""
        dtype, V, U, B = self.dtype, self.V, self.U, self.B
        if self.lanes == 1:
            code = f"typedef {dtype} {V}; typedef {dtype} {U}; typedef {self.integer} {B};\n"
            return code + f"union {V}_bits {{ {dtype} real; {self.integer} bits; }};\n"
        vector = f"vector_size({self.lanes * self.size})"
        code = f"typedef {dtype} {V} __attribute__(({vector}));\n"
        code += f"typedef {dtype} {U} __attribute__(({vector}, aligned({self.size}), may_alias));\n"
        return code + f"typedef {self.integer} {B} __attribute__(({vector}));\n"

    def const(self, value: float) -> str:
        """A real constant in all lanes."""
        number = repr(float(value)) + ("f" if self.dtype == "float" else "")
        return number if self.lanes == 1 else f"({self.V}{{}} + {number})"

    def whole(self, value: int) -> str:
        """An integer constant in all lanes."""
        number = f"{int(value)}" + ("" if self.dtype == "float" else "ll")
        return number if self.lanes == 1 else f"({self.B}{{}} + {number})"

    def bits(self, name: str, expr: str) -> str:
        """Declare the integer `name` with the bits of a real expression."""
        if self.lanes > 1:
            return f"{self.B} {name} = ({self.B})({expr});\n"
        cast = fresh("u")
        return f"union {self.V}_bits {cast}; {cast}.real = {expr}; {self.B} {name} = {cast}.bits;\n"

    def from_bits(self, name: str, expr: str) -> str:
        """Declare the real `name` whose bits are an integer expression."""
        if self.lanes > 1:
            return f"{self.V} {name} = ({self.V})({expr});\n"
        cast = fresh("u")
        return f"union {self.V}_bits {cast}; {cast}.bits = {expr}; {self.V} {name} = {cast}.real;\n"

    def power_of_two(self, name: str, biased: str) -> str:
        """Declare `name` = 2^(biased - bias), and 0 where `biased` is not positive."""
        field = fresh("k")
        code = f"{self.B} {field} = {biased};\n"
        return code + self.from_bits(name, f"{larger(field, self.whole(0))} << {self.mantissa_bits}")

    def load(self, pointer: str, index: str) -> str:
        """The lanes that stand at `index` (in units of all lanes) of `pointer`."""
        return f"*(const {self.U}*)({pointer} + ({index})*{self.lanes})"
