"""Compile the programs of a stage side by side, before its first step."""

from concurrent.futures import ThreadPoolExecutor

import jax

from e3jax.runtime import processes

COMPILERS = 4  # programs that are compiled side by side; one of them keeps a core or two busy


def compile_all(lowered: dict[str, jax.stages.Lowered], phase) -> list:
    """Compile programs side by side, {what: lowered}; return the shapes and layouts of their results, in order.

    A later call with the same shapes uses what is compiled here. Several processes compile one after the other, because
    some backends let them wait for each other's programs.
    """
    ready = []
    with ThreadPoolExecutor(1 if processes() > 1 else COMPILERS) as pool:
        for what, compiling in [(what, pool.submit(one.compile)) for what, one in lowered.items()]:
            phase.advance(0, what)
            ready.append(compiling.result())
            phase.advance(1)

    def laid_out(x, where):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return [jax.tree.map(laid_out, one.out_info, done.output_shardings) for one, done in zip(lowered.values(), ready)]
