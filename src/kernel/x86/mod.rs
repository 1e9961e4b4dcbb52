//! The kernels for x86-64: the algorithms once over small vector traits, and a thin file an ISA
//! with its intrinsics and entry points.

pub(super) mod avx2;
pub(super) mod avx512;
mod dequantize;
pub(super) mod dot;
mod entry_points;
mod fit_affine;
mod fit_moves;
mod fit_signed;
mod hifi;
mod iq4;
mod k_fit;
mod legacy;
mod legacy_plain;
mod multiply_half;
pub(super) mod panel;
mod q2_k;
mod q3_k;
mod q6_k;
mod quantize;
mod refine;
mod twice;
mod vector;
mod weights;

use entry_points::entry_points;

/// Whether the CPU has AVX-512 VNNI, which a part of the AVX-512 kernels come with and without.
pub(super) fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}
