//! The elementwise operations of a transformer. Each is a loop over one row, compiled for every instruction set (see
//! [`crate::simd::run_loop`]).

use super::config::{Config, Pairs};
use super::error::ModelError;
use super::weights::Linear;
use crate::float::exp;
use crate::isa::Isa;
use crate::simd::{Loop, run_loop};
use crate::team;

const LANES: usize = 16;

/// From this number of values on, a loop uses several threads.
const PARALLEL: usize = 1 << 16;

/// The sum of the lanes, added as a tree, which takes fewer steps than adding them one after another.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// The largest lane.
#[inline(always)]
fn greatest_of(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
        }
    }
    lanes[0]
}

/// `Σ x²`, added in lanes, so that the order of additions is the same on every instruction set.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane += x * x;
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += x * x;
    }
    total(lanes)
}

/// `out = x / sqrt(mean(x²) + eps) · weight`
pub(super) struct RmsNorm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Loop for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mean = sum_of_squares(self.x) / self.x.len() as f32;
        let scale = 1.0 / (mean + self.eps).sqrt();
        for ((out, &x), &weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * scale * weight;
        }
    }
}

/// The same within every head of `row`, in place.
pub(super) struct NormHeads<'a> {
    pub row: &'a mut [f32],
    pub weight: &'a [f32],
    pub eps: f32,
}

impl Loop for NormHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for head in self.row.chunks_exact_mut(self.weight.len()) {
            let mean = sum_of_squares(head) / head.len() as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            for (x, &weight) in head.iter_mut().zip(self.weight) {
                *x = *x * scale * weight;
            }
        }
    }
}

/// `x += scale · y`
pub(super) struct AddScaled<'a> {
    pub x: &'a mut [f32],
    pub y: &'a [f32],
    pub scale: f32,
}

impl Loop for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            *x += self.scale * y;
        }
    }
}

/// `x += y`
pub(super) struct Add<'a> {
    pub x: &'a mut [f32],
    pub y: &'a [f32],
}

impl Loop for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            *x += y;
        }
    }
}

/// `gate = silu(gate) · up`, `silu(x) = x / (1 + e^-x)`
pub(super) struct Silu<'a> {
    pub gate: &'a mut [f32],
    pub up: &'a [f32],
}

impl Loop for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

/// √(2 / π), in the tanh approximation of GELU: x / 2 · (1 + tanh u), u = √(2 / π) · (x + [`GELU_CUBIC`] · x³).
pub(super) const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The factor of x³ in the tanh approximation of GELU.
pub(super) const GELU_CUBIC: f32 = 0.044_715;

/// `gate = gelu(gate) · up`, with the tanh approximation of GELU, as in Gemma.
pub(super) struct Gelu<'a> {
    pub gate: &'a mut [f32],
    pub up: &'a [f32],
}

impl Loop for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            let x = *gate;
            let u = SQRT_2_OVER_PI * x * (1.0 + GELU_CUBIC * x * x);
            // x/2 · (1 + tanh u) is x / (1 + e^-2u)
            *gate = x / (1.0 + exp(-2.0 * u)) * up;
        }
    }
}

/// Rotates the pairs of every head of `row` by angles with these cosines and sines. Pairs are neighbouring dimensions
/// or, if `HALVES`, dimension i of the first half and dimension i of the second half.
pub(super) struct Rotate<'a, const HALVES: bool> {
    pub row: &'a mut [f32],
    pub head_size: usize,
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

impl<const HALVES: bool> Loop for Rotate<'_, HALVES> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let half = self.cos.len();
        let angles = self.cos.iter().zip(self.sin);
        for head in self.row.chunks_exact_mut(self.head_size) {
            let turned = &mut head[..2 * half];
            if HALVES {
                let (a, b) = turned.split_at_mut(half);
                for ((a, b), (&cos, &sin)) in a.iter_mut().zip(b).zip(angles.clone()) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            } else {
                for ([a, b], (&cos, &sin)) in
                    turned.as_chunks_mut().0.iter_mut().zip(angles.clone())
                {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

/// One step of a softmax whose scores come block by block (as in FlashAttention).
///
/// Masks the scores of a row outside of `visible`, and replaces each score by `e^(score - greatest)`. If this block
/// raises `greatest`, the sums of earlier blocks are scaled down.
pub(super) struct SoftmaxStep<'a> {
    pub scores: &'a mut [f32],
    pub visible: std::ops::Range<usize>,
    pub greatest: &'a mut f32,
    pub sum: &'a mut f32,
    pub weighted: &'a mut [f32],
}

impl Loop for SoftmaxStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.scores[..self.visible.start].fill(f32::NEG_INFINITY);
        self.scores[self.visible.end..].fill(f32::NEG_INFINITY);
        let mut lanes = [*self.greatest; LANES];
        for scores in self.scores.as_chunks::<LANES>().0 {
            for (lane, &score) in lanes.iter_mut().zip(scores) {
                *lane = if score > *lane { score } else { *lane };
            }
        }
        let greatest = greatest_of(lanes);
        if greatest > *self.greatest {
            let scale = exp(*self.greatest - greatest);
            *self.greatest = greatest;
            *self.sum *= scale;
            for x in self.weighted.iter_mut() {
                *x *= scale;
            }
        }
        let mut sums = [0f32; LANES];
        for scores in self.scores.as_chunks_mut::<LANES>().0 {
            for (sum, score) in sums.iter_mut().zip(scores) {
                *score = exp(*score - greatest);
                *sum += *score;
            }
        }
        *self.sum += total(sums);
    }
}

/// Calls `work` for each row of `width` values; uses several threads if there are many values.
pub(super) fn each_row(rows: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if rows.len() < PARALLEL {
        rows.chunks_exact_mut(width).enumerate().for_each(|(i, row)| work(i, row));
    } else {
        team::for_each_chunk(rows, width, work);
    }
}

/// A logit, soft-capped to ± `cap`. Computed in f64, so that the result, rounded to f32, does not depend on the C
/// library.
pub(super) fn softcapped(logit: f32, cap: f32) -> f32 {
    f64::from(logit / cap).tanh() as f32 * cap
}

pub(super) fn norm(isa: Isa, config: &Config, x: &[f32], weight: &[f32], out: &mut [f32]) {
    let n = config.n_embd;
    each_row(out, n, |i, out| {
        run_loop(isa, RmsNorm { x: &x[i * n..][..n], weight, eps: config.norm_eps, out });
    });
}

/// Adds `part` to the state. If there is a `weight`, `part` is normed first.
pub(super) fn add(
    isa: Isa,
    config: &Config,
    state: &mut [f32],
    part: &mut [f32],
    weight: Option<&[f32]>,
) {
    let n = config.n_embd;
    if let Some(weight) = weight {
        let eps = config.norm_eps;
        each_row(part, n, |_, row| run_loop(isa, NormHeads { row, weight, eps }));
    }
    each_row(state, n, |i, x| run_loop(isa, Add { x, y: &part[i * n..][..n] }));
}

pub(super) fn rotate(isa: Isa, config: &Config, row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let head_size = config.head_size;
    match config.pairs {
        Pairs::Neighbours => run_loop(isa, Rotate::<false> { row, head_size, cos, sin }),
        Pairs::Halves => run_loop(isa, Rotate::<true> { row, head_size, cos, sin }),
    }
}

pub(super) fn apply(
    isa: Isa,
    linear: &Linear<'_>,
    x: &[f32],
    out: &mut [f32],
) -> Result<(), ModelError> {
    linear.matrix.matmul(x, out)?;
    if let Some(bias) = &linear.bias {
        each_row(out, bias.len(), |_, x| run_loop(isa, Add { x, y: bias }));
    }
    Ok(())
}
