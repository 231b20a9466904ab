"""What is asked of the compiler: options that a GPU's programs want, programs side by side, how long it took.

@partial(GpuJit, options={"xla_gpu_enable_dynamic_slice_fusion": True}, static_argnames="n")
def gradient(params, n): …

compiled = Compiled()
compiled.told()     # "14 programs compiled in 31 s, 5 of them kept from an earlier start"
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax

COMPILERS = 4  # programs that are compiled side by side; one of them keeps a core or two busy
Options = dict[str, bool | int | str]


class GpuJit:
    """`jax.jit(function, **how)`, compiled with XLA's `options` where the default device is a GPU.

    So a user need not set them, and they hold for this program alone. Which device there is, the first call finds out:
    an import asks for none.
    """

    def __init__(self, function: Callable, *, options: Options, **how):
        functools.update_wrapper(self, function)
        self._options, self._how = options, how

    @functools.cached_property
    def _jitted(self):
        return jax.jit(self.__wrapped__, compiler_options=gpu_options(self._options), **self._how)

    def __call__(self, *args, **kwargs):
        return self._jitted(*args, **kwargs)

    def lower(self, *args, **kwargs) -> jax.stages.Lowered:
        """Return what `jax.jit(function).lower` does."""
        return self._jitted.lower(*args, **kwargs)

    def _cache_size(self) -> int:
        return self._jitted._cache_size()


def gpu_options(options: Options) -> Options | None:
    """Return those of XLA's options that this XLA has, on a GPU; None elsewhere. A trivial program asks for each."""
    if jax.default_backend() != "gpu":
        return None

    def known(name: str) -> bool:
        try:
            jax.jit(lambda x: x, compiler_options={name: options[name]}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            return False
        return True

    return {name: value for name, value in options.items() if known(name)}


class Compiled:
    """A count of the programs that this process compiles, from now on."""

    def __init__(self):
        self.programs, self.seconds, self.kept = 0, 0.0, 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        jax.monitoring.register_event_listener(self._heard)

    def _heard(self, event: str, seconds: float = 0.0, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":  # a program that was kept is read within it
            self.programs, self.seconds = self.programs + 1, self.seconds + seconds
        self.kept += event == "/jax/compilation_cache/cache_hits"

    def told(self) -> str:
        """Return what was compiled since the last call, as a sentence; "" for less than a second.

        Seconds are summed over programs: those that are compiled side by side take less.
        """
        programs, seconds, kept = self.programs, self.seconds, self.kept
        if seconds < 1:
            return ""
        self.programs, self.seconds, self.kept = 0, 0.0, 0
        rest = f", {kept} of them kept from an earlier start" if kept else ""
        return f"{programs} programs compiled in {seconds:.0f} s{rest}"


def compile_all(lowered: dict[str, jax.stages.Lowered], phase) -> list:
    """Compile programs side by side, {what: lowered}; return the shapes and layouts of their results, in order.

    A later call with the same shapes uses what is compiled here. Several processes compile one after the other, because
    some backends let them wait for each other's programs.
    """
    ready = []
    with ThreadPoolExecutor(1 if jax.process_count() > 1 else COMPILERS) as pool:
        for what, compiling in [(what, pool.submit(one.compile)) for what, one in lowered.items()]:
            phase.advance(0, what)
            ready.append(compiling.result())
            phase.advance(1)

    def laid_out(x, where):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return [jax.tree.map(laid_out, one.out_info, done.output_shardings) for one, done in zip(lowered.values(), ready)]
