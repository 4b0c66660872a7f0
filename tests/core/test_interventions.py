import mlx.core as mx
import numpy as np
import pytest

from mlxterp.core import interventions as iv
from mlxterp.core.selection import Window
from mlxterp.errors import HookError

BATCH, POS, HEADS, WIDTH = 2, 5, 4, 3


def residual() -> mx.array:
    return mx.arange(1, BATCH * POS * WIDTH + 1).reshape(BATCH, POS, WIDTH).astype(mx.float32)


def heads() -> mx.array:
    return mx.arange(1, BATCH * POS * HEADS * WIDTH + 1).reshape(BATCH, POS, HEADS, WIDTH).astype(mx.float32)


def changed(before: mx.array, after: mx.array) -> set[tuple[int, ...]]:
    """Indices without the last axis, where anything differs."""
    different = np.any(np.array(before) != np.array(after), axis=-1)
    return {tuple(int(i) for i in index) for index in np.argwhere(different)}


def test_zero_without_a_selection_zeroes_everything():
    assert not np.any(np.array(iv.zero("L0.mlp_out").apply(residual())))


def test_an_edit_leaves_the_array_it_was_given_alone():
    x = residual()

    iv.zero("L0.mlp_out", positions=1).apply(x)

    assert mx.array_equal(x, residual())


def test_positions_touch_those_positions_in_every_row():
    after = iv.zero("L0.mlp_out", positions=(1, 3)).apply(residual())

    assert changed(residual(), after) == {(0, 1), (0, 3), (1, 1), (1, 3)}


def test_a_negative_position_counts_from_the_end():
    after = iv.zero("L0.mlp_out", positions=-1).apply(residual())

    assert changed(residual(), after) == {(0, POS - 1), (1, POS - 1)}


def test_a_slice_touches_a_position_and_every_later_one():
    after = iv.zero("L0.mlp_out", positions=slice(3, None)).apply(residual())

    assert changed(residual(), after) == {(0, 3), (0, 4), (1, 3), (1, 4)}


def test_rows_heads_and_positions_combine():
    after = iv.zero("L0.z", positions=(0, 4), heads=(1, 3), rows=1).apply(heads())

    assert changed(heads(), after) == {(1, p, h) for p in (0, 4) for h in (1, 3)}


def test_a_pattern_is_selected_by_head_and_destination():
    pattern = mx.ones((BATCH, HEADS, POS, POS))

    after = iv.zero("L0.pattern", positions=2, heads=1).apply(pattern)

    assert changed(pattern, after) == {(0, 1, 2), (1, 1, 2)}


@pytest.mark.parametrize("position", [5, -6, 100])
def test_a_position_that_does_not_exist_is_an_error_with_the_range(position):
    with pytest.raises(HookError, match=r"positions 0 to 4 or -5 to -1"):
        iv.zero("L0.mlp_out", positions=position).apply(residual())


@pytest.mark.parametrize("selection", [{"heads": 4}, {"rows": 2}, {"heads": -1}])
def test_a_head_or_row_that_does_not_exist_is_an_error(selection):
    with pytest.raises(HookError, match="there are"):
        iv.zero("L0.z", **selection).apply(heads())


def test_heads_of_something_without_heads_are_an_error():
    with pytest.raises(HookError, match="has no heads"):
        iv.zero("L0.mlp_out", heads=0).apply(residual())


@pytest.mark.parametrize("positions", [(), (1, 1)])
def test_an_empty_or_repeating_selection_is_an_error(positions):
    with pytest.raises(HookError):
        iv.zero("L0.mlp_out", positions=positions)


def test_one_position_named_twice_from_both_ends_is_an_error():
    with pytest.raises(HookError, match="twice"):
        iv.zero("L0.mlp_out", positions=(4, -1)).apply(residual())


def test_negative_positions_of_padded_rows_count_from_each_rows_own_end():
    after = iv.zero("L0.mlp_out", positions=(-1, 0)).apply(residual(), Window(0, (3, 5)))

    assert changed(residual(), after) == {(0, 2), (0, 0), (1, 4), (1, 0)}


def test_a_position_in_the_padding_is_an_error():
    with pytest.raises(HookError, match="there are 3 tokens"):
        iv.zero("L0.mlp_out", positions=4).apply(residual(), Window(0, (3, 5)))


def test_a_whole_activation_as_value_gives_each_selected_place_its_own_entry():
    source = -heads()

    after = iv.replace("L0.z", source, positions=(4, 1), heads=2, rows=0).apply(heads())

    assert changed(heads(), after) == {(0, 4, 2), (0, 1, 2)}
    assert mx.array_equal(after[0, 1, 2], source[0, 1, 2])
    assert mx.array_equal(after[0, 4, 2], source[0, 4, 2])


def test_a_value_as_long_as_the_selection_goes_there_in_the_order_written():
    after = iv.replace("L0.mlp_out", mx.array([[[10.0] * 3, [20.0] * 3]]), positions=(4, 1)).apply(residual())

    assert after[:, 4].tolist() == [[10.0] * 3] * 2
    assert after[:, 1].tolist() == [[20.0] * 3] * 2


def test_a_value_may_have_one_entry_per_batch_row():
    value = mx.array([[[1.0] * 3], [[2.0] * 3]])

    after = iv.replace("L0.mlp_out", value, positions=2).apply(residual())

    assert after[:, 2].tolist() == [[1.0] * 3, [2.0] * 3]


def test_a_whole_activation_as_value_follows_each_padded_row():
    source = -residual()

    after = iv.replace("L0.mlp_out", source, positions=-1).apply(residual(), Window(0, (3, 5)))

    assert mx.array_equal(after[0, 2], source[0, 2])
    assert mx.array_equal(after[1, 4], source[1, 4])


@pytest.mark.parametrize("shape", [(2, 4, 3), (3, 5, 3), (2, 5, 4), (1, 2, 5, 3)])
def test_a_value_that_fits_neither_the_activation_nor_the_selection_is_an_error(shape):
    with pytest.raises(HookError, match="does not fit"):
        iv.replace("L0.mlp_out", mx.zeros(shape), positions=(0, 1)).apply(residual())


def test_add_adds_a_vector_where_it_is_told():
    after = iv.add("L0.mlp_out", mx.array([1.0, 2.0, 3.0]), positions=0, rows=1).apply(residual())

    assert (after - residual())[1, 0].tolist() == [1.0, 2.0, 3.0]
    assert changed(residual(), after) == {(1, 0)}


def test_scale_and_clamp_are_arithmetic():
    assert mx.array_equal(iv.scale("L0.mlp_out", 0.5).apply(residual()), residual() * 0.5)
    assert mx.array_equal(iv.clamp("L0.mlp_out", 3.0, 7.0).apply(residual()), mx.clip(residual(), 3.0, 7.0))


def test_a_clamp_with_its_bounds_swapped_is_an_error():
    with pytest.raises(HookError, match="above high"):
        iv.clamp("L0.mlp_out", 1.0, -1.0)


def test_mean_sets_each_position_to_its_own_mean():
    average = mx.mean(residual(), axis=0)

    after = iv.mean("L0.mlp_out", average, positions=3).apply(residual())

    assert after[:, 3].tolist() == [average[3].tolist()] * 2


def test_projecting_out_a_direction_leaves_nothing_along_it_and_the_rest_alone():
    direction = mx.array([3.0, 0.0, 4.0])

    after = iv.project_out("L0.mlp_out", direction).apply(residual())

    assert mx.max(mx.abs(after @ direction)).item() < 1e-4
    assert mx.array_equal(after[..., 1], residual()[..., 1])


@pytest.mark.parametrize("direction", [[0.0, 0.0, 0.0], [[1.0, 0.0, 0.0]]])
def test_a_direction_that_is_none_is_an_error(direction):
    with pytest.raises(HookError, match="one non-zero vector"):
        iv.project_out("L0.mlp_out", mx.array(direction))


def test_noise_is_the_same_for_a_key_and_different_for_another():
    once, again, other = (
        iv.noise("L0.mlp_out", 1.0, key=mx.random.key(k)).apply(residual()) for k in (0, 0, 1)
    )

    assert mx.array_equal(once, again)
    assert not mx.array_equal(once, other)


def test_noise_has_the_spread_it_is_asked_for():
    x = mx.zeros((10, 100, 100))

    noisy = iv.noise("L0.mlp_out", 2.5, key=mx.random.key(3)).apply(x)

    assert abs(float(mx.std(noisy).item()) - 2.5) < 0.02


def test_a_function_sees_only_the_selected_part():
    shapes = []

    iv.edit("L0.z", lambda part: shapes.append(part.shape) or part, positions=1, heads=(0, 2)).apply(heads())

    assert shapes == [(BATCH, 1, 2, WIDTH)]


def test_a_function_that_changes_the_shape_is_an_error():
    with pytest.raises(HookError, match="Return the shape it was given"):
        iv.edit("L0.mlp_out", lambda part: part[:, :1]).apply(residual())


def test_a_window_of_a_generation_touches_only_positions_it_holds():
    step = residual()[:, 4:]
    window = Window(4, (5, 5), grows=True)

    assert iv.zero("L0.mlp_out", positions=2).apply(step, window) is None
    assert changed(step, iv.zero("L0.mlp_out", positions=(2, 4)).apply(step, window)) == {(0, 0), (1, 0)}


def test_a_slice_with_a_step_keeps_its_places_in_a_generation():
    step = residual()[:, 3:]

    assert iv.zero("L0.mlp_out", positions=slice(0, 4, 3)).apply(step, Window(4, (6, 6), grows=True)) is None
    after = iv.zero("L0.mlp_out", positions=slice(0, None, 5)).apply(step, Window(4, (6, 6), grows=True))
    assert changed(step, after) == {(0, 1), (1, 1)}


@pytest.mark.parametrize("positions", [4, slice(1, None), None])
def test_a_whole_activation_as_value_gives_a_later_step_its_own_position(positions):
    step = residual()[:, 4:]

    after = iv.replace("L0.mlp_out", -residual(), positions=positions).apply(
        step, Window(4, (5, 5), grows=True)
    )

    assert mx.array_equal(after, -step)


def test_an_edit_keeps_the_dtype():
    x = residual().astype(mx.bfloat16)

    assert iv.scale("L0.mlp_out", 0.3).apply(x).dtype == mx.bfloat16
    assert iv.add("L0.mlp_out", mx.ones(3)).apply(x).dtype == mx.bfloat16
