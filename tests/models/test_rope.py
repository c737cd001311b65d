"""Three positions a token (M-RoPE): sections of pairs turn with time, height and width."""

import jax.numpy as jnp
import numpy as np
import pytest

from triptych.models.errors import UnsupportedModelError
from triptych.models.rope import rotation
from triptych.models.rope_config import RopeConfig

HEAD_DIM = 16
ROPE = RopeConfig(sections=(2, 3, 3))


def test_equal_positions_are_plain_rotation() -> None:
    positions = jnp.arange(7)
    plain, three = rotation(ROPE, HEAD_DIM, positions), rotation(ROPE, HEAD_DIM, jnp.stack([positions] * 3))
    np.testing.assert_array_equal(plain.cos, three.cos)
    np.testing.assert_array_equal(plain.sin, rotation(RopeConfig(), HEAD_DIM, positions).sin)
    np.testing.assert_array_equal(plain.sin, three.sin)


def test_each_section_turns_with_its_own_position() -> None:
    positions = jnp.array([[3, 4], [50, 60], [700, 800]])
    turned = rotation(ROPE, HEAD_DIM, positions)
    for section, axis in ((slice(0, 2), 0), (slice(2, 5), 1), (slice(5, 8), 2)):
        alone = rotation(ROPE, HEAD_DIM, positions[axis])
        np.testing.assert_array_equal(turned.cos[:, section], alone.cos[:, section])
        np.testing.assert_array_equal(turned.sin[:, section], alone.sin[:, section])


def test_what_does_not_fit_is_refused() -> None:
    three = jnp.zeros((3, 2), jnp.int32)
    with pytest.raises(ValueError, match="need rope sections"):
        rotation(RopeConfig(), HEAD_DIM, three)
    with pytest.raises(UnsupportedModelError, match="add up to the 8"):
        rotation(RopeConfig(sections=(1, 2, 3)), HEAD_DIM, three)
