"""The source of what a reader writes in a notebook: the model's class, to rebuild it; functions, to know an edited one."""

import ast
import hashlib
import inspect
import linecache
import re
import textwrap

SOURCE = re.compile(r"model-\w+\.py").fullmatch             # what the source of a model is called, beside its checkpoint


def sha256(content):
    """SHA-256 of bytes, or of a text."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def source_of(model):
    """The text of the notebook's cell that defines a model's class; "" for a class of a module, which can be imported."""
    cls = type(model)
    if cls.__module__ != "__main__":
        return ""
    function = next(value for value in vars(cls).values() if inspect.isfunction(value))
    return "".join(linecache.getlines(inspect.unwrap(function).__code__.co_filename))


def class_in(source, cls):
    """The class of the name of `cls` that this source defines, which is run; else `cls` itself."""
    namespace = {"__name__": "model"}
    exec(compile(source, "<the cell that defines the model>", "exec"), namespace)
    return namespace.get(cls.__name__, cls)


def code_of(*functions):
    """{name: SHA-256} of these functions of a notebook and of those that they call: their code without its comments."""
    found, left = {}, [inspect.unwrap(function) for function in functions]
    while left:
        function = left.pop()
        if function.__module__ == "__main__" and function.__name__ not in found:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            found[function.__name__] = sha256(ast.unparse(tree))
            names = (function.__globals__.get(node.id) for node in ast.walk(tree) if isinstance(node, ast.Name))
            left += [inspect.unwrap(value) for value in names if inspect.isfunction(value)]
    return found
