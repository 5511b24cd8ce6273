import inspect

import pytest

from tests.kernels.cases import CPU_BACKENDS


@pytest.fixture(autouse=True, scope="session")
def remembered_builtins():
    """At each call of a helper, Triton's interpreter goes over all names of its library to find those to replace.

    Which they are never changes: with them remembered, the tests take two thirds of the time.
    """
    if "triton" not in CPU_BACKENDS:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    names: dict[object, list[str]] = {}

    def patch_builtin(package, builder, *scope):
        if package not in names:
            names[package] = [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]
        for name in names[package]:
            member = getattr(package, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, *scope)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        yield
