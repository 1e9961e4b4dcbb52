//! Sketches of the inputs of a matrix, and the directions in which these lie.
//!
//! The sketch of inputs x is Σ x (xᵀ S), S of [`SKETCH`] columns of fixed random signs. Sums of it are
//! sketches of both texts' inputs, and with S it tells the main part of H = Σ x xᵀ: Nyström's approximation
//! H S (Sᵀ H S)⁻¹ Sᵀ H (Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, section 5.5).

use std::array::from_fn;

/// Columns of a sketch.
pub const SKETCH: usize = 32;

/// Of Sᵀ H S, the share of its mean eigenvalue that is added to all: what f32 sums may be wrong by.
const NOISE: f64 = 1e-6;

/// The signs that the sketch of rows of that length has, column by column.
pub fn signs(row_length: usize) -> Vec<f32> {
    let mut signs = Vec::with_capacity(row_length * SKETCH);
    for column in 0..row_length as u64 {
        // the output function of SplitMix64
        let mut bits = (column + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        signs.extend((0..SKETCH).map(|j| if bits >> j & 1 == 0 { 1.0 } else { -1.0 }));
    }
    signs
}

/// U of H ≈ U Uᵀ from the sketch of H, [`SKETCH`] numbers of each column as there. What U Uᵀ leaves of H
/// is positive semidefinite. A sketch of zeros has directions of no length.
pub fn directions(sketch: &[[f32; SKETCH]]) -> Vec<[f32; SKETCH]> {
    let signs = signs(sketch.len());
    let mut core = [[0f64; SKETCH]; SKETCH];
    for (sketch, signs) in sketch.iter().zip(signs.as_chunks::<SKETCH>().0) {
        let sketch = sketch.map(f64::from);
        for (core, &sign) in core.iter_mut().zip(signs) {
            add_multiple(core, f64::from(sign), &sketch);
        }
    }
    let trace: f64 = (0..SKETCH).map(|j| core[j][j]).sum();
    if trace.is_nan() || trace <= 0.0 {
        return vec![[0.0; SKETCH]; sketch.len()];
    }
    let noise = NOISE * trace / SKETCH as f64;
    for (j, row) in core.iter_mut().enumerate() {
        row[j] += noise;
    }
    let factor = cholesky(&core, noise / 2.0);
    sketch.iter().map(|sketch| solved(&factor, sketch.map(f64::from)).map(|u| u as f32)).collect()
}

/// The columns of the lower triangular factor L of L Lᵀ, a matrix that is symmetric but for rounding. Where
/// a pivot is below `least`, as in what is no sketch at all, the column is one of zeros.
fn cholesky(of: &[[f64; SKETCH]; SKETCH], least: f64) -> [[f64; SKETCH]; SKETCH] {
    let mut matrix: [[f64; SKETCH]; SKETCH] =
        from_fn(|i| from_fn(|j| f64::midpoint(of[i][j], of[j][i])));
    // row j of the upper triangle becomes column j of L
    for j in 0..SKETCH {
        let pivot = matrix[j][j];
        matrix[j][..j].fill(0.0);
        for v in &mut matrix[j][j..] {
            *v = if pivot > least { *v / pivot.sqrt() } else { 0.0 };
        }
        let column = matrix[j];
        for i in j + 1..SKETCH {
            add_multiple(&mut matrix[i], -column[i], &column);
        }
    }
    matrix
}

/// L⁻¹ v, without the directions that L has not.
fn solved(factor: &[[f64; SKETCH]; SKETCH], mut v: [f64; SKETCH]) -> [f64; SKETCH] {
    for (j, column) in factor.iter().enumerate() {
        let this = if column[j] > 0.0 { v[j] / column[j] } else { 0.0 };
        add_multiple(&mut v, -this, column); // leaves what is done: the factor is 0 before j
        v[j] = this;
    }
    v
}

#[inline]
fn add_multiple(sums: &mut [f64; SKETCH], factor: f64, of: &[f64; SKETCH]) {
    for (sum, v) in sums.iter_mut().zip(of) {
        *sum += factor * v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::weights;

    const COLUMNS: usize = 96;

    /// The sketch of inputs that lie in `rank` directions of unequal length, and their H.
    fn sketched(rank: usize) -> (Vec<[f32; SKETCH]>, Vec<Vec<f64>>) {
        let random = weights(rank * COLUMNS, 7);
        let mut h = vec![vec![0f64; COLUMNS]; COLUMNS];
        for (r, x) in random.chunks_exact(COLUMNS).enumerate() {
            for i in 0..COLUMNS {
                for j in 0..COLUMNS {
                    h[i][j] += f64::from(x[i]) * f64::from(x[j]) / (1 + r).pow(2) as f64;
                }
            }
        }
        let signs = signs(COLUMNS);
        let sketch = h.iter().map(|row| {
            from_fn(|k| {
                row.iter().zip(signs.chunks(SKETCH)).map(|(h, s)| h * f64::from(s[k])).sum::<f64>()
                    as f32
            })
        });
        (sketch.collect(), h)
    }

    /// Σ of what U Uᵀ leaves of H on the diagonal, and H's; no place of it is negative.
    fn left(rank: usize) -> f64 {
        let (sketch, h) = sketched(rank);
        let (mut rest, mut whole) = (0.0, 0.0);
        for (i, u) in directions(&sketch).iter().enumerate() {
            let told: f64 = u.iter().map(|&u| f64::from(u).powi(2)).sum();
            assert!(told <= h[i][i] * 1.001, "{i}: {told} of {}", h[i][i]);
            rest += h[i][i] - told;
            whole += h[i][i];
        }
        rest / whole
    }

    #[test]
    fn few_directions_are_told_whole_and_of_many_the_longest() {
        assert!(left(1).abs() < 1e-4, "{}", left(1));
        assert!(left(20).abs() < 1e-3, "{}", left(20));
        let rest = left(90);
        assert!((0.001..0.05).contains(&rest), "{rest}");
    }

    #[test]
    fn products_are_told_with_their_signs() {
        let (sketch, h) = sketched(3);
        let u = directions(&sketch);
        for i in 0..COLUMNS {
            for j in 0..COLUMNS {
                let told: f64 = (0..SKETCH).map(|k| f64::from(u[i][k]) * f64::from(u[j][k])).sum();
                let scale = (h[i][i] * h[j][j]).sqrt();
                assert!((told - h[i][j]).abs() < 1e-3 * scale, "{i} {j}: {told} of {}", h[i][j]);
            }
        }
    }

    #[test]
    fn what_is_no_sketch_has_finite_directions() {
        let random = weights(COLUMNS * SKETCH, 8);
        let u = directions(random.as_chunks().0);
        let most = u.as_flattened().iter().fold(0f32, |most, u| most.max(u.abs()));
        assert!(most < 1e4 * random.iter().fold(0f32, |most, v| most.max(v.abs())), "{most}");
    }

    #[test]
    fn nothing_has_no_directions() {
        assert!(directions(&[[0.0; SKETCH]; 7]).as_flattened().iter().all(|&u| u == 0.0));
        assert!(directions(&[[f32::NAN; SKETCH]; 7]).as_flattened().iter().all(|&u| u == 0.0));
        assert!(directions(&[]).is_empty());
    }
}
