//! The factors of a block: what its whole numbers are multiplied by.

use crate::float::{f16_to_f32, f32_to_f16};

/// The largest 6-bit scale or minimum.
pub(super) const LARGEST: f32 = 63.0;
/// Factors compared.
const COMPARED: usize = 32;
/// The best of them, in their order, as f16 has them.
pub(super) type Candidates = [f32; 4];

/// Factors whose multiples in six bits come near to the non-negative `values`: those of least squared
/// error, an error being weighed by its `costs`.
#[inline(always)]
pub(super) fn by_error(values: &[f32], costs: &[f32]) -> Candidates {
    let mut max = 0f32;
    for &v in values {
        max = if v > max { v } else { max };
    }
    let mut factors = [0f32; COMPARED];
    let mut inverses = [0f32; COMPARED];
    for c in 0..COMPARED {
        let factor = f16_to_f32(f32_to_f16(max / (LARGEST - 0.5 * c as f32)));
        factors[c] = factor;
        inverses[c] = if factor > 0.0 { 1.0 / factor } else { 0.0 };
    }
    let mut errors = [0f32; COMPARED];
    for (&v, &cost) in values.iter().zip(costs) {
        for c in 0..COMPARED {
            let number = v * inverses[c];
            let number = if number < LARGEST { number } else { LARGEST };
            let miss = factors[c] * ((number + 12_582_912.0) - 12_582_912.0) - v;
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
        *best = factors[least];
        errors[least] = f32::INFINITY;
    }
    best
}

/// The f16 next to `wanted`, or `otherwise` where there is none that is positive.
pub(super) fn nearest_factor(wanted: f64, otherwise: f32) -> f32 {
    let factor = f16_to_f32(f32_to_f16(wanted as f32));
    if factor > 0.0 && factor.is_finite() { factor } else { otherwise }
}
