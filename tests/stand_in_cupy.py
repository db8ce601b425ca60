"""A stand-in for CuPy's arrays: not NumPy's, refusing to become so unasked, and counting what is brought to the host.

It has what CuPy 14 has and no more: ufuncs and functions of NumPy by dispatch, and its own namespace.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

brought: list[int] = []
"""Number of values of each transfer to the host."""


def _bare(value):
    if isinstance(value, DeviceArray):
        return value.values
    if isinstance(value, (list, tuple)):
        return type(value)(_bare(v) for v in value)
    return {k: _bare(v) for k, v in value.items()} if isinstance(value, dict) else value


def _device(value):
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return DeviceArray(np.asarray(value))
    return value


class DeviceArray(NDArrayOperatorsMixin):
    """Values that only the device sees."""

    __module__ = "cupy"

    def __init__(self, values):
        self.values = values

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        for operand in inputs:
            if isinstance(operand, np.ndarray) and operand.ndim:
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        out = kwargs.get("out")
        result = getattr(ufunc, method)(*_bare(inputs), **_bare(kwargs))
        return out[0] if out else _device(result)

    def __array_function__(self, function, types, args, kwargs):
        return _device(function(*_bare(args), **_bare(kwargs)))

    def __getattr__(self, name):
        if name.startswith("__"):  # NumPy's own doors to the values, which CuPy has not
            raise AttributeError(name)
        attribute = getattr(self.values, name)
        if callable(attribute):
            return lambda *args, **kwargs: _device(attribute(*_bare(args), **_bare(kwargs)))
        return _device(attribute) if isinstance(attribute, np.ndarray) else attribute

    def __getitem__(self, index):
        return _device(self.values[_bare(index)])

    def __setitem__(self, index, value):
        self.values[_bare(index)] = _bare(value)

    def __len__(self):
        return len(self.values)

    def __float__(self):
        brought.append(1)
        return float(self.values)


class _Cupy(ModuleType):
    """The namespace: NumPy's, on the device."""

    def __getattr__(self, name):
        attribute = getattr(np, name)
        if not callable(attribute) or isinstance(attribute, type) or name == "finfo":
            return attribute
        return lambda *args, **kwargs: _device(attribute(*_bare(args), **_bare(kwargs)))

    @staticmethod
    def asnumpy(x):
        brought.append(x.size)
        return x.values.copy()


cupy = _Cupy("cupy")
