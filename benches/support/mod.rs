//! What the benches share: inputs of a real matrix's kind, and the row length.

#![allow(dead_code)] // no bench uses everything

/// Weights in a row: the width of a 1.5 B model.
pub const ROW: usize = 1536;
/// Rows in a matrix, small enough to stay in a core's cache.
pub const ROWS: usize = 64;

/// Bell-shaped weights with a few large ones, the same each time.
pub fn weights(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| (next() + next() + next()) * if next() > 0.98 { 0.12 } else { 0.02 }).collect()
}
