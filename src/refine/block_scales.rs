//! Searching the block scales d and dmin, which multiply the stored scales and minima of the sub-blocks.

use super::columns::Bounds;
use crate::float::{f16_to_f32, f32_to_f16, nearest};

/// The number of scales that are compared.
const COMPARED: usize = 32;
/// The best block scales, best first, rounded to f16.
pub(super) type Candidates = [f32; 4];

/// The block scales d with the least Σ cost (value - d·n)², n an integer in `bounds`; best first.
///
/// The candidates divide the value of largest magnitude by `end`, the bound farther from 0, and by `end` minus 0.5, 1,
/// 1.5 and so on (towards 0).
#[inline(always)]
pub(super) fn by_error(values: &[f32], costs: &[f32], bounds: Bounds, end: f32) -> Candidates {
    let mut extreme = 0f32;
    for &v in values {
        extreme = if v.abs() > extreme.abs() { v } else { extreme };
    }
    let mut scales = [0f32; COMPARED];
    let mut inverses = [0f32; COMPARED];
    for c in 0..COMPARED {
        let scale = f16_to_f32(f32_to_f16(extreme / (end - (0.5 * c as f32).copysign(end))));
        scales[c] = scale;
        inverses[c] = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    }
    let mut errors = [0f32; COMPARED];
    for (&v, &cost) in values.iter().zip(costs) {
        for c in 0..COMPARED {
            let multiple = v * inverses[c];
            let multiple = if multiple > bounds.bottom { multiple } else { bounds.bottom };
            let multiple = if multiple < bounds.top { multiple } else { bounds.top };
            let miss = scales[c] * nearest(multiple) - v;
            errors[c] += cost * (miss * miss);
        }
    }
    let mut best = Candidates::default();
    for best in &mut best {
        let mut least = 0;
        for c in 1..COMPARED {
            if errors[c] < errors[least] {
                least = c;
            }
        }
        *best = scales[least];
        errors[least] = f32::INFINITY;
    }
    best
}

/// The f16 nearest to `wanted`, or `otherwise` if that is not positive and finite.
pub(super) fn nearest_f16(wanted: f64, otherwise: f32) -> f32 {
    let scale = f16_to_f32(f32_to_f16(wanted as f32));
    if scale > 0.0 && scale.is_finite() { scale } else { otherwise }
}
