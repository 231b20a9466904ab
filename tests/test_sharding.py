"""The strict table: typos, collisions and replication raise; 8 devices compute what one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import PartitionSpec as P

from e3jax.errors import UserError
from e3jax.losses.sft import sft_weights
from e3jax.sharding import assert_sharded, constrain, each_slice, make_mesh, param_shardings, sampling_mesh, spec
from e3jax.train.sft import ahead, sft_gradient


def test_spec_by_hand():
    """Axes of size 1 and trailing Nones are left out: two spellings of one layout would trace twice."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert spec("ldnh", mesh) == P(None, "fsdp", "tensor")
    assert spec("BTD", mesh) == P(("data", "fsdp"))
    assert spec("BTD", make_mesh(data=1, fsdp=8, tensor=1)) == P("fsdp")
    assert spec("dnh", make_mesh(data=8, fsdp=1, tensor=1)) == P()


def test_unknown_letter_and_collision_raise():
    """flax's resolver silently replicates a misspelt name."""
    with pytest.raises(KeyError, match="'x'"):
        spec("dx", make_mesh(data=1, fsdp=8, tensor=1))
    with pytest.raises(ValueError, match="two letters"):
        spec("nk", make_mesh(data=1, fsdp=8, tensor=1))


def test_mesh_that_does_not_fit_says_so():
    with pytest.raises(ValueError, match="there are 8"):
        make_mesh(data=3, fsdp=1, tensor=1)
    assert dict(make_mesh(data=2, fsdp=-1, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


class Chip:
    """What JAX shows of a chip of a v5e slice of 2 x 4, two hosts of four chips."""

    def __init__(self, i: int, piece: int):
        self.id, self.slice_index, self.process_index = 100_000 * (piece + 1) + i, piece, 2 * piece + i // 4
        self.coords, self.core_on_chip = (i % 2, i // 2, 0), 0
        self.platform, self.device_kind = "tpu", "TPU v5 lite"


def test_slices_lie_along_data():
    """fsdp or tensor across slices would gather every layer over the network; within a slice JAX's order is kept."""
    chips = [Chip(i, piece) for i in range(8) for piece in (1, 0)]  # in an order that says nothing about slices
    for inner in ((1, 8, 1), (1, 4, 2)):
        grid = make_mesh(data=2 * inner[0], fsdp=inner[1], tensor=inner[2], devices=chips).devices
        ordered = sorted(chips, key=lambda chip: chip.id)
        want = mesh_utils.create_hybrid_device_mesh(inner, (2, 1, 1), ordered, allow_split_physical_axes=True)
        assert grid.tolist() == want.tolist()
    hosts = make_mesh(data=4, fsdp=-1, tensor=1, devices=chips).devices  # and hosts lie along data within a slice
    assert [{chip.process_index for chip in row.flat} for row in hosts] == [{0}, {1}, {2}, {3}]
    with pytest.raises(UserError, match=r"mesh\.data=1 is no multiple of the 2 TPU slices.* set mesh\.data=2"):
        make_mesh(data=1, fsdp=-1, tensor=1, devices=chips)


def test_sampling_stays_within_slices():
    """A group of `tensor` chips that spans slices sends every layer's activations over the network."""
    mesh = make_mesh(data=2, fsdp=8, tensor=1, devices=[Chip(i, piece) for i in range(8) for piece in (1, 0)])
    for tensor in (1, 4, 8):
        layout = sampling_mesh(mesh, tensor=tensor)
        assert layout.devices.reshape(-1).tolist() == mesh.devices.reshape(-1).tolist()
        assert all(len({chip.slice_index for chip in group}) == 1 for group in layout.devices.reshape(-1, tensor))
        copies = each_slice(layout)
        assert dict(copies.shape) == {"slice": 2, "data": 8 // tensor, "fsdp": 1, "tensor": tensor}
        assert [{chip.slice_index for chip in part.flat} for part in copies.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"sampler\.tensor=16 does not divide the 8 devices of a slice"):
        sampling_mesh(mesh, tensor=16)
    one = make_mesh(data=2, fsdp=4, tensor=1)
    assert each_slice(one) is one


def test_indivisible_and_misnamed_parameters_raise(tiny):
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    with pytest.raises(ValueError, match="does not divide"):
        param_shardings({"embed_vd": jax.ShapeDtypeStruct((210, 60), jnp.float32)}, mesh)
    with pytest.raises(ValueError, match="says 'vd'"):
        param_shardings({"embed_vd": jax.ShapeDtypeStruct((210,), jnp.float32)}, mesh)


def test_replication_raises(tiny):
    """An array that a device_put forgot is whole on every device."""
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    whole = jax.device_put(tiny[1], jax.sharding.NamedSharding(mesh, P()))
    with pytest.raises(ValueError, match="embed_vd"):
        assert_sharded(whole)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), whole)
    with pytest.raises(UserError, match="embed_vd"):  # before anything is allocated or compiled
        assert_sharded(shapes)
    assert_sharded(jax.device_put(tiny[1], param_shardings(tiny[1], mesh)))
    data_parallel = make_mesh(data=8, fsdp=1, tensor=1)  # replication was asked for
    assert_sharded(jax.device_put(tiny[1], param_shardings(tiny[1], data_parallel)))


def test_batches_are_made_ahead_in_order_on_the_callers_mesh():
    """A thread begins without the mesh, and would cut rows for one device; what fails is told at its own step."""
    mesh, made = make_mesh(data=2, fsdp=4, tensor=1), []

    def make(n):
        made.append(n)
        if n == 5:
            raise UserError("five")
        return jax.sharding.get_mesh()

    with jax.set_mesh(mesh):
        batches = ahead(make, range(2, 9))
        assert [next(batches) for _ in range(3)] == [(2, mesh), (3, mesh), (4, mesh)]
        with pytest.raises(UserError, match="five"):
            next(batches)
    assert made[:4] == [2, 3, 4, 5] and 8 not in made  # two ahead, no more
    assert list(ahead(lambda n: n * n, [3])) == [(3, 9)] and list(ahead(make, [])) == []


def test_constrain_reaches_the_compiler():
    """Inside a mesh the activation gets the layout of its letters; without a mesh nothing happens."""
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: constrain(x * 2, "BTD"))(jnp.ones((8, 2, 4)))
        assert out.sharding.spec[0] == ("data", "fsdp")
    assert constrain(jnp.ones((3, 2, 4)), "BTD").shape == (3, 2, 4)


@pytest.mark.parametrize(
    "axes", [dict(data=1, fsdp=8, tensor=1), dict(data=2, fsdp=2, tensor=1), dict(data=8, fsdp=1, tensor=1)]
)
def test_gradients_equal_one_device(tiny, axes):
    """Loss and gradients on a mesh equal those on one device, and come out sharded like the parameters."""
    model, params = tiny
    token = jax.random.randint(jax.random.key(1), (16, 12), 0, 210)
    position = jnp.broadcast_to(jnp.arange(12), token.shape)
    weight = sft_weights(np.ones(token.shape, np.float32), aggregation="token_mean")
    args = (token, position, jnp.ones_like(token), weight)
    want, want_metrics = sft_gradient(model, params, *args, chunk=64)
    mesh = make_mesh(**axes, devices=jax.devices()[: axes["data"] * axes["fsdp"]])
    shardings = param_shardings(params, mesh)
    with jax.set_mesh(mesh):
        got, metrics = sft_gradient(model, jax.device_put(params, shardings), *args, chunk=64)
    np.testing.assert_allclose(metrics["loss/total"], want_metrics["loss/total"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
    if axes["fsdp"] > 1:
        assert_sharded(got)
