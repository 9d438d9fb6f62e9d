"""The Triton kernels of the linear head; :mod:`lossary.kernels.triton` launches them.

Forward: a program takes a block of rows and a share of the vocabulary, and keeps the eight numbers of
:class:`lossary.kernels.state.Partial` in registers; shares merge afterwards, without locks. Backward: tiles are made
again, with the vocabulary sorted by mean logit so that the few likely entries share tiles, and a tile whose softmax is
below ``filter_eps`` throughout is skipped.
"""

import triton
import triton.language as tl


@triton.jit
def _logits(
    input_ptr,
    weight_ptr,
    bias_ptr,
    row,
    column,
    row_ok,
    column_ok,
    width,
    softcap,
    scale,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """A tile of logits, after bias, cap and temperature."""
    z = tl.zeros((BLOCK_ROWS, BLOCK_VOCAB), dtype=tl.float32)
    at = tl.arange(0, BLOCK_WIDTH)
    x_ptr = input_ptr + row[:, None] * width + at[None, :]
    w_ptr = weight_ptr + column[:, None] * width + at[None, :]
    for start in range(0, width, BLOCK_WIDTH):
        if EVEN_WIDTH:
            x = tl.load(x_ptr, mask=row_ok[:, None], other=0.0)
            w = tl.load(w_ptr, mask=column_ok[:, None], other=0.0)
        else:
            inside = (start + at < width)[None, :]
            x = tl.load(x_ptr, mask=row_ok[:, None] & inside, other=0.0)
            w = tl.load(w_ptr, mask=column_ok[:, None] & inside, other=0.0)
        if WIDEN:
            x = x.to(tl.float32)
        w = w.to(x.dtype)  # beside an input that a learned temperature made float32
        z = tl.dot(x, tl.trans(w), z, input_precision=PRECISION)
        x_ptr += BLOCK_WIDTH
        w_ptr += BLOCK_WIDTH
    return _finish(z, bias_ptr, column, column_ok, softcap, scale, HAS_BIAS, HAS_CAP)


@triton.jit
def _finish(z, bias_ptr, column, column_ok, softcap, scale, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """Bias, cap and temperature on products."""
    if HAS_BIAS:
        z += tl.load(bias_ptr + column, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    if HAS_CAP:
        z = _capped(z, softcap)
    return z * scale


@triton.jit
def _capped(z, softcap):
    # tanh by exp, whose argument is never positive
    shrunk = tl.exp(-2.0 * tl.abs(z / softcap))
    return tl.where(z < 0, -1.0, 1.0) * softcap * (1.0 - shrunk) / (1.0 + shrunk)


@triton.jit
def _rows_of(kept_ptr, block, num_rows, HAS_KEPT: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Places of a block of rows, and which of them exist."""
    place = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    ok = place < num_rows
    if HAS_KEPT:
        return tl.load(kept_ptr + place, mask=ok, other=0).to(tl.int64), ok
    return place.to(tl.int64), ok


@triton.jit
def partials_kernel(
    input_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    class_weight_ptr,
    kept_ptr,
    partial_ptr,
    num_rows,
    vocab,
    width,
    share,
    softcap,
    scale,
    HAS_BIAS: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_KEPT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    MOMENT: tl.constexpr,
    SPREAD: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """What a block of rows keeps of a share of the vocabulary."""
    row, row_ok = _rows_of(kept_ptr, tl.program_id(0), num_rows, HAS_KEPT, BLOCK_ROWS)
    part = tl.program_id(1)
    label = tl.full((BLOCK_ROWS,), -1, dtype=tl.int64)
    if HAS_TARGET:
        label = tl.load(target_ptr + row, mask=row_ok, other=-1)
    infinity = float("inf")
    maximum = tl.full((BLOCK_ROWS,), -infinity, dtype=tl.float32)
    target = tl.full((BLOCK_ROWS,), -infinity, dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    moment = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    spread = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    number = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    mass = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for start in range(part * share, min((part + 1) * share, vocab), BLOCK_VOCAB):
        column = (start + tl.arange(0, BLOCK_VOCAB)).to(tl.int64)
        column_ok = column < min((part + 1) * share, vocab)
        z = _logits(
            input_ptr,
            weight_ptr,
            bias_ptr,
            row,
            column,
            row_ok,
            column_ok,
            width,
            softcap,
            scale,
            HAS_BIAS,
            HAS_CAP,
            EVEN_WIDTH,
            WIDEN,
            PRECISION,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_WIDTH,
        )
        if HAS_TARGET:
            is_label = column_ok[None, :] & (column[None, :] == label[:, None])
            target = tl.maximum(target, tl.max(tl.where(is_label, z, -infinity), axis=1))
        maximum, total, moment, spread, weighted, number, mass = _see(
            z,
            column,
            column_ok,
            label,
            class_weight_ptr,
            maximum,
            total,
            moment,
            spread,
            weighted,
            number,
            mass,
            HAS_CLASS_WEIGHT,
            MOMENT,
            SPREAD,
        )
    out = partial_ptr + part * 8 * num_rows + tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    _store(out, num_rows, row_ok, maximum, total, moment, spread, weighted, number, mass, target)


@triton.jit
def _see(
    z,
    column,
    column_ok,
    label,
    class_weight_ptr,
    maximum,
    total,
    moment,
    spread,
    weighted,
    number,
    mass,
    HAS_CLASS_WEIGHT: tl.constexpr,
    MOMENT: tl.constexpr,
    SPREAD: tl.constexpr,
):
    """All but the target's of the eight numbers of rows, after one more tile of logits."""
    infinity = float("inf")
    other = column_ok[None, :] & (column[None, :] != label[:, None])
    z = tl.where(other, z, -infinity)
    highest = tl.maximum(maximum, tl.max(z, axis=1))
    before = tl.where(maximum == -infinity, 0.0, maximum)
    now = tl.where(highest == -infinity, 0.0, highest)
    scaling = tl.exp(maximum - now)
    offset = before - now
    d = z - now[:, None]
    e = tl.exp(d)
    if MOMENT:
        moment = scaling * (moment + total * offset) + tl.sum(tl.where(e > 0, e * d, 0.0), axis=1)
    if SPREAD:
        spread += number * offset + tl.sum(tl.where(other, d, 0.0), axis=1)
        number += tl.sum(tl.where(other, 1.0, 0.0), axis=1)
        if HAS_CLASS_WEIGHT:
            w = tl.load(class_weight_ptr + column, mask=column_ok, other=0.0).to(tl.float32)[None, :]
            weighted += mass * offset + tl.sum(tl.where(other & (w != 0), w * d, 0.0), axis=1)
            mass += tl.sum(tl.where(other, w, 0.0), axis=1)
    total = total * scaling + tl.sum(e, axis=1)
    return highest, total, moment, spread, weighted, number, mass


@triton.jit
def _store(out, stride, ok, a, b, c, d, e, f, g, h):
    """Keep eight numbers of each row, in the order of state.Partial or state.Coefficients."""
    tl.store(out, a, mask=ok)
    tl.store(out + stride, b, mask=ok)
    tl.store(out + 2 * stride, c, mask=ok)
    tl.store(out + 3 * stride, d, mask=ok)
    tl.store(out + 4 * stride, e, mask=ok)
    tl.store(out + 5 * stride, f, mask=ok)
    tl.store(out + 6 * stride, g, mask=ok)
    tl.store(out + 7 * stride, h, mask=ok)


@triton.jit
def see_products_kernel(
    product_ptr,
    bias_ptr,
    target_ptr,
    class_weight_ptr,
    partial_ptr,
    num_rows,
    columns,
    first,
    all_rows,
    softcap,
    scale,
    FIRST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    MOMENT: tl.constexpr,
    SPREAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
):
    """Add a tile of products ``(num_rows, columns)``, whose first column is ``first``, to what is kept of its rows."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_ok = row < num_rows
    label = tl.full((BLOCK_ROWS,), -1, dtype=tl.int64)
    if HAS_TARGET:
        label = tl.load(target_ptr + row, mask=row_ok, other=-1)
    at = partial_ptr + row
    products = product_ptr + row.to(tl.int64) * columns
    maximum = tl.full((BLOCK_ROWS,), -float("inf"), dtype=tl.float32)
    target = tl.full((BLOCK_ROWS,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    moment = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    spread = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    number = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    mass = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    if FIRST == 0:
        maximum = tl.load(at, mask=row_ok, other=0.0)
        total = tl.load(at + all_rows, mask=row_ok, other=0.0)
        moment = tl.load(at + 2 * all_rows, mask=row_ok, other=0.0)
        spread = tl.load(at + 3 * all_rows, mask=row_ok, other=0.0)
        weighted = tl.load(at + 4 * all_rows, mask=row_ok, other=0.0)
        number = tl.load(at + 5 * all_rows, mask=row_ok, other=0.0)
        mass = tl.load(at + 6 * all_rows, mask=row_ok, other=0.0)
        target = tl.load(at + 7 * all_rows, mask=row_ok, other=0.0)
    for start in range(0, columns, BLOCK_VOCAB):
        place = start + tl.arange(0, BLOCK_VOCAB)
        column = (first + place).to(tl.int64)
        column_ok = place < columns
        z = tl.load(products[:, None] + place[None, :], mask=row_ok[:, None] & column_ok[None, :], other=0.0)
        z = _finish(z, bias_ptr, column, column_ok, softcap, scale, HAS_BIAS, HAS_CAP)
        maximum, total, moment, spread, weighted, number, mass = _see(
            z,
            column,
            column_ok,
            label,
            class_weight_ptr,
            maximum,
            total,
            moment,
            spread,
            weighted,
            number,
            mass,
            HAS_CLASS_WEIGHT,
            MOMENT,
            SPREAD,
        )
    if HAS_TARGET:
        here = row_ok & (label >= first) & (label < first + columns)
        z = tl.load(products + (label - first), mask=here, other=0.0)
        if HAS_BIAS:
            z += tl.load(bias_ptr + label, mask=here, other=0.0).to(tl.float32)
        if HAS_CAP:
            z = _capped(z, softcap)
        target = tl.where(here, z * scale, target)
    _store(at, all_rows, row_ok, maximum, total, moment, spread, weighted, number, mass, target)


@triton.jit
def log_prob_rows_kernel(
    partial_ptr,
    upstream_ptr,
    value_ptr,
    coefficient_ptr,
    num_rows,
    scale,
    BLOCK_ROWS: tl.constexpr,
):
    """What :mod:`lossary.kernels.state` makes of partials where ``log_prob`` alone is asked for, in one launch."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    ok = row < num_rows
    maximum = tl.load(partial_ptr + row, mask=ok, other=0.0)
    total = tl.load(partial_ptr + num_rows + row, mask=ok, other=1.0)
    target = tl.load(partial_ptr + 7 * num_rows + row, mask=ok, other=0.0)
    g = tl.load(upstream_ptr + row, mask=ok, other=0.0)
    log_total = tl.log(total)
    gap = (target - maximum) - log_total
    # log1p(u) as 2 atanh(u / (2 + u)), whose series is exact where the device's logarithm is not: near 1
    u = tl.exp(-tl.abs(gap))
    s = u / (2.0 + u)
    q = s * s
    series = 1.0 / 13 + q / 15
    series = 1.0 / 11 + q * series
    series = 1.0 / 9 + q * series
    series = 1.0 / 7 + q * series
    series = 1.0 / 5 + q * series
    series = 1.0 / 3 + q * series
    log1p = 2.0 * s * (1.0 + q * series)
    log_prob = tl.minimum(gap, 0.0) - log1p
    log_miss = tl.minimum(-gap, 0.0) - log1p
    miss = tl.exp(log_miss)
    probability = tl.where(total == 0, 0.0, tl.exp(log_miss - log_total))
    zero = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    maximum = tl.where(maximum == -float("inf"), 0.0, maximum)
    tl.store(value_ptr + row, log_prob, mask=ok)
    _store(
        coefficient_ptr + row,
        num_rows,
        ok,
        maximum,
        -g * probability * scale,
        zero,
        g * miss * scale,
        zero,
        zero,
        probability,
        miss,
    )


@triton.jit
def _gradient_of_tile(
    input_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    class_weight_ptr,
    coefficient_ptr,
    row,
    column,
    row_ok,
    column_ok,
    all_rows,
    width,
    softcap,
    scale,
    HAS_BIAS: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    MOMENT: tl.constexpr,
    SPREAD: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Gradient of a tile's logits before the cap, and the largest entry of |softmax - one-hot target| in the tile."""
    z = _logits(
        input_ptr,
        weight_ptr,
        bias_ptr,
        row,
        column,
        row_ok,
        column_ok,
        width,
        softcap,
        scale,
        HAS_BIAS,
        HAS_CAP,
        EVEN_WIDTH,
        WIDEN,
        PRECISION,
        BLOCK_ROWS,
        BLOCK_VOCAB,
        BLOCK_WIDTH,
    )
    gradient, softmax = _gradient(
        z,
        target_ptr,
        class_weight_ptr,
        coefficient_ptr,
        row,
        column,
        row_ok,
        column_ok,
        all_rows,
        softcap,
        scale,
        HAS_TARGET,
        HAS_CLASS_WEIGHT,
        HAS_CAP,
        MOMENT,
        SPREAD,
        True,
        BLOCK_ROWS,
        BLOCK_VOCAB,
    )
    return gradient, tl.max(tl.max(softmax, axis=1), axis=0)


@triton.jit
def _gradient(
    z,
    target_ptr,
    class_weight_ptr,
    coefficient_ptr,
    row,
    column,
    row_ok,
    column_ok,
    all_rows,
    softcap,
    scale,
    HAS_TARGET: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    MOMENT: tl.constexpr,
    SPREAD: tl.constexpr,
    OF_LABEL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
):
    """Gradient of logits before the cap, and |softmax - one-hot target|; without OF_LABEL the label gives neither."""
    # Coefficients in the order of state.Coefficients
    at = coefficient_ptr + row
    maximum = tl.load(at, mask=row_ok, other=0.0)
    constant = tl.load(at + all_rows, mask=row_ok, other=0.0)
    probability = tl.load(at + 6 * all_rows, mask=row_ok, other=0.0)
    ok = row_ok[:, None] & column_ok[None, :]
    d = z - maximum[:, None]
    is_label = tl.zeros((BLOCK_ROWS, BLOCK_VOCAB), dtype=tl.int1)
    if HAS_TARGET:
        label = tl.load(target_ptr + row, mask=row_ok, other=-1)
        is_label = column[None, :] == label[:, None]
    e = tl.where(ok & (is_label == 0), tl.exp(tl.where(is_label, 0.0, d)), 0.0)
    if MOMENT:
        slope = tl.load(at + 2 * all_rows, mask=row_ok, other=0.0)
        gradient = e * (constant[:, None] + slope[:, None] * tl.where(e > 0, d, 0.0))
    else:
        gradient = e * constant[:, None]
    softmax = e * probability[:, None]
    if HAS_TARGET and OF_LABEL:
        of_label = tl.load(at + 3 * all_rows, mask=row_ok, other=0.0)
        miss = tl.load(at + 7 * all_rows, mask=row_ok, other=0.0)
        gradient = tl.where(is_label & ok, of_label[:, None], gradient)
        softmax = tl.where(is_label & ok, miss[:, None], softmax)
    if SPREAD:
        gradient += tl.load(at + 4 * all_rows, mask=row_ok, other=0.0)[:, None]
        if HAS_CLASS_WEIGHT:
            w = tl.load(class_weight_ptr + column, mask=column_ok, other=0.0).to(tl.float32)[None, :]
            gradient += tl.load(at + 5 * all_rows, mask=row_ok, other=0.0)[:, None] * w
    if HAS_CAP:
        ratio = z / (scale * softcap)
        gradient *= 1.0 - ratio * ratio
    return tl.where(ok, gradient, 0.0), softmax


@triton.jit
def gradient_of_products_kernel(
    product_ptr,
    bias_ptr,
    target_ptr,
    class_weight_ptr,
    coefficient_ptr,
    gradient_ptr,
    live_ptr,
    num_rows,
    columns,
    first,
    all_rows,
    softcap,
    scale,
    filter_eps,
    HAS_BIAS: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    MOMENT: tl.constexpr,
    SPREAD: tl.constexpr,
    FILTER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
):
    """From a tile of ready products the gradient of its logits before the cap.

    With FILTER the label's ``target`` is left out, and told is which columns' softmax reaches ``filter_eps``, the
    label's aside.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    place = tl.program_id(1) * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
    row_ok = row < num_rows
    column_ok = place < columns
    column = (first + place).to(tl.int64)
    ok = row_ok[:, None] & column_ok[None, :]
    at = row.to(tl.int64)[:, None] * columns + place[None, :]
    z = tl.load(product_ptr + at, mask=ok, other=0.0)
    z = _finish(z, bias_ptr, column, column_ok, softcap, scale, HAS_BIAS, HAS_CAP)
    gradient, softmax = _gradient(
        z,
        target_ptr,
        class_weight_ptr,
        coefficient_ptr,
        row,
        column,
        row_ok,
        column_ok,
        all_rows,
        softcap,
        scale,
        HAS_TARGET,
        HAS_CLASS_WEIGHT,
        HAS_CAP,
        MOMENT,
        SPREAD,
        FILTER == 0,
        BLOCK_ROWS,
        BLOCK_VOCAB,
    )
    tl.store(gradient_ptr + at, gradient.to(gradient_ptr.dtype.element_ty), mask=ok)
    if FILTER:
        # `x < eps` and not `x >= eps`: a NaN must reach the gradient.
        alive = tl.where(softmax < filter_eps, 0, 1)
        if tl.max(tl.max(alive, axis=1), axis=0) > 0:
            live = column_ok & (tl.max(alive, axis=0) > 0)
            tl.store(live_ptr + place, tl.full((BLOCK_VOCAB,), 1, dtype=tl.int8), mask=live)


@triton.jit
def _add(out_ptr, lost_ptr, at, ok, term, KAHAN: tl.constexpr):
    """Add to memory that this program alone writes; with Kahan's compensation if asked for."""
    stored = out_ptr.dtype.element_ty
    old = tl.load(out_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if KAHAN:
        # Every sum is rounded to the storage dtype; `lost` is what that took away.
        term = term.to(stored).to(tl.float32) + tl.load(lost_ptr + at, mask=ok, other=0.0).to(tl.float32)
        term = term.to(stored).to(tl.float32)
        new = (old + term).to(stored).to(tl.float32)
        back = (new - old).to(stored).to(tl.float32)
        lost = (old - (new - back).to(stored).to(tl.float32)) + (term - back)
        tl.store(lost_ptr + at, lost.to(stored), mask=ok)
        tl.store(out_ptr + at, new.to(stored), mask=ok)
    else:
        tl.store(out_ptr + at, (old + term).to(stored), mask=ok)


@triton.jit
def gradients_kernel(
    input_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    class_weight_ptr,
    kept_ptr,
    order_ptr,
    coefficient_ptr,
    d_input_ptr,
    d_weight_ptr,
    d_bias_ptr,
    lost_ptr,
    num_rows,
    all_rows,
    vocab,
    width,
    softcap,
    scale,
    filter_eps,
    HAS_BIAS: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_KEPT: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_CAP: tl.constexpr,
    MOMENT: tl.constexpr,
    SPREAD: tl.constexpr,
    NEEDS_INPUT: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    FILTER_INPUT: tl.constexpr,
    FILTER_WEIGHT: tl.constexpr,
    OWNER: tl.constexpr,
    KAHAN: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCAB: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Gradients from tiles made again.

    OWNER 0: a program is one tile and adds by atomics. 1: it is a block of rows, loops over the vocabulary and owns
    its part of the gradient of ``input``. 2: it is a block of the vocabulary, loops over rows and owns its part of the
    gradients of the head.
    """
    row_blocks = tl.cdiv(num_rows, BLOCK_ROWS)
    vocab_blocks = tl.cdiv(vocab, BLOCK_VOCAB)
    first = tl.program_id(0)
    if OWNER == 0:
        steps = 1
    elif OWNER == 1:
        steps = vocab_blocks
    else:
        steps = row_blocks
    for step in range(0, steps):
        if OWNER == 0:
            # Neighbours share rows of the head: eight blocks of rows in turn for each block of the vocabulary.
            group = first // (8 * vocab_blocks)
            height = min(row_blocks - group * 8, 8)
            inner = first - group * 8 * vocab_blocks
            row_block = group * 8 + inner % height
            vocab_block = inner // height
        elif OWNER == 1:
            row_block = first
            vocab_block = step
        else:
            row_block = step
            vocab_block = first
        row, row_ok = _rows_of(kept_ptr, row_block, num_rows, HAS_KEPT, BLOCK_ROWS)
        place = vocab_block * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
        column_ok = place < vocab
        column = place.to(tl.int64)
        if HAS_ORDER:
            column = tl.load(order_ptr + place, mask=column_ok, other=0).to(tl.int64)
        gradient, largest = _gradient_of_tile(
            input_ptr,
            weight_ptr,
            bias_ptr,
            target_ptr,
            class_weight_ptr,
            coefficient_ptr,
            row,
            column,
            row_ok,
            column_ok,
            all_rows,
            width,
            softcap,
            scale,
            HAS_BIAS,
            HAS_TARGET,
            HAS_CLASS_WEIGHT,
            HAS_CAP,
            MOMENT,
            SPREAD,
            EVEN_WIDTH,
            WIDEN,
            PRECISION,
            BLOCK_ROWS,
            BLOCK_VOCAB,
            BLOCK_WIDTH,
        )
        # `not (x < eps)` and not `x >= eps`: a NaN must reach the gradient.
        live = largest < filter_eps
        live = live == 0
        if NEEDS_BIAS:
            if live | (FILTER_WEIGHT == 0):
                if OWNER == 2:
                    _add(d_bias_ptr, lost_ptr, column, column_ok, tl.sum(gradient, axis=0), False)
                else:
                    tl.atomic_add(d_bias_ptr + column, tl.sum(gradient, axis=0), mask=column_ok)
        if NEEDS_INPUT:
            if live | (FILTER_INPUT == 0):
                for start in range(0, width, BLOCK_WIDTH):
                    at = start + tl.arange(0, BLOCK_WIDTH)
                    w = tl.load(
                        weight_ptr + column[:, None] * width + at[None, :],
                        mask=column_ok[:, None] & (at < width)[None, :],
                        other=0.0,
                    )
                    if WIDEN:
                        w = w.to(tl.float32)
                    term = tl.dot(gradient.to(w.dtype), w, input_precision=PRECISION)
                    ok = row_ok[:, None] & (at < width)[None, :]
                    if OWNER == 1:
                        _add(d_input_ptr, lost_ptr, row[:, None] * width + at[None, :], ok, term, KAHAN)
                    else:
                        tl.atomic_add(d_input_ptr + row[:, None] * width + at[None, :], term, mask=ok)
        if NEEDS_WEIGHT:
            if live | (FILTER_WEIGHT == 0):
                for start in range(0, width, BLOCK_WIDTH):
                    at = start + tl.arange(0, BLOCK_WIDTH)
                    x = tl.load(
                        input_ptr + row[:, None] * width + at[None, :],
                        mask=row_ok[:, None] & (at < width)[None, :],
                        other=0.0,
                    )
                    if WIDEN:
                        x = x.to(tl.float32)
                    term = tl.dot(tl.trans(gradient.to(x.dtype)), x, input_precision=PRECISION)
                    ok = column_ok[:, None] & (at < width)[None, :]
                    if OWNER == 2:
                        _add(d_weight_ptr, lost_ptr, column[:, None] * width + at[None, :], ok, term, KAHAN)
                    else:
                        tl.atomic_add(d_weight_ptr + column[:, None] * width + at[None, :], term, mask=ok)
