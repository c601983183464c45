"""Every annotation can be evaluated: one that cannot is taken for `Any`, and checks nothing."""

import importlib
import inspect
import pkgutil
import typing

import pytest

import ntkprefix
import theory

MODULES = [
    module.name
    for package in (ntkprefix, theory)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


def functions_of(module):
    for value in vars(module).values():
        for function in (value, *vars(value).values()) if inspect.isclass(value) else (value,):
            function = getattr(function, "__func__", function)
            function = function.fget if isinstance(function, property) else inspect.unwrap(function)
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                yield function


@pytest.mark.parametrize("name", MODULES)
def test_annotations_can_be_evaluated(name):
    module = importlib.import_module(name)
    for function in functions_of(module):
        typing.get_type_hints(function)


def test_functions_behind_decorators_are_among_them():
    found = {function.__name__ for name in MODULES for function in functions_of(importlib.import_module(name))}
    assert {"attention", "merge", "partial", "model_ntk", "__call__", "_contract"} <= found
