//! The codec's fast paths: the same bytes as the scalar versions in [`crate::block`], for the ISA
//! that the CPU has.
//!
//! The algorithms are written once over `vector::Vector`; a file an ISA holds its intrinsics, and
//! the entry points that compile the algorithms for it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dequantize;
#[cfg(target_arch = "x86_64")]
mod dot;
#[cfg(target_arch = "x86_64")]
mod dot_avx2;
#[cfg(target_arch = "x86_64")]
mod dot_avx512;
#[cfg(target_arch = "x86_64")]
mod dot_plain;
#[cfg(target_arch = "x86_64")]
mod entry_points;
#[cfg(target_arch = "x86_64")]
mod fit_affine;
#[cfg(target_arch = "x86_64")]
mod fit_signed;
#[cfg(target_arch = "x86_64")]
mod hifi;
#[cfg(target_arch = "x86_64")]
mod k_fit;
#[cfg(target_arch = "x86_64")]
mod legacy;
#[cfg(target_arch = "x86_64")]
mod q6_k;
#[cfg(target_arch = "x86_64")]
mod quantize;
#[cfg(target_arch = "x86_64")]
mod twice;
#[cfg(target_arch = "x86_64")]
mod vector;

#[cfg(target_arch = "x86_64")]
use entry_points::entry_points;

use crate::block::{Block, TensorType, blocks_mut, with_block};
use crate::dot::activations::Quantize;
use crate::dot::{Activations, Rows, scalar};
use crate::error::QuantError;
use crate::error_sums::{self, ErrorSums};
use crate::hifi::HifiBlock;
use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, on every CPU: the oracle of the others.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
}

impl Isa {
    /// Every one, slowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The name that `Q4HIFI_ISA` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The fastest that this CPU has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }

    /// The one in use: what the environment variable `Q4HIFI_ISA` names, by default [`Self::best`].
    ///
    /// Read once a process. Fails where the variable names none, or one that this CPU lacks.
    pub fn active() -> Result<Self, QuantError> {
        static ACTIVE: OnceLock<Result<Isa, QuantError>> = OnceLock::new();
        ACTIVE.get_or_init(|| Self::wanted(std::env::var("Q4HIFI_ISA").ok().as_deref())).clone()
    }

    fn wanted(name: Option<&str>) -> Result<Self, QuantError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Self::best()) };
        let found = Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name));
        found
            .filter(|isa| isa.is_available())
            .ok_or_else(|| QuantError::IsaNotAvailable(name.to_owned()))
    }
}

/// Encodes a row as `kind`, as [`Block::quantize_row`] does.
pub fn quantize_row(
    isa: Isa,
    kind: TensorType,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::quantize_row(kind, x, importance, out) },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::quantize_row(kind, x, importance, out) },
        _ => with_block!(kind, B => B::quantize_row(x, importance, blocks_mut(out))),
    }
}

/// Decodes a row of `kind`.
pub fn dequantize_row(isa: Isa, kind: TensorType, row: &[u8], out: &mut [f32]) {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::dequantize_row(kind, row, out) },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::dequantize_row(kind, row, out) },
        _ => dequantize::dequantize_row(kind, row, out),
    }
}

/// Encodes the blocks of a row as Q4_HIFI, as [`HifiBlock::encode`] does.
pub(crate) fn encode_hifi_row(
    isa: Isa,
    x: &[f32],
    importance: Option<&[f32]>,
    outliers: usize,
    out: &mut [HifiBlock],
) {
    let x = x.as_chunks().0;
    let importance = importance.map(|w| w.as_chunks().0);
    match isa {
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::encode_hifi_blocks(x, importance, outliers, out) },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::encode_hifi_blocks(x, importance, outliers, out) },
        _ => {
            for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                *out = HifiBlock::encode(x, importance.map(|w| &w[i]), outliers);
            }
        }
    }
}

/// Whether no number is NaN or infinite.
pub(crate) fn all_finite(isa: Isa, x: &[f32]) -> bool {
    match isa {
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::all_finite(x) },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::all_finite(x) },
        _ => dequantize::all_finite(x),
    }
}

/// How far a decoded row is from `x`.
pub(crate) fn error_sums(
    isa: Isa,
    x: &[f32],
    importance: Option<&[f32]>,
    decoded: &[f32],
) -> ErrorSums {
    match isa {
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::error_sums(x, importance, decoded) },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::error_sums(x, importance, decoded) },
        _ => error_sums::error_sums(x, importance, decoded),
    }
}

/// Multiplies `out.len()` rows by a column of activations.
///
/// A row's product depends on the row, the activations and the ISA alone. Panics where the lengths
/// or the activations' form do not fit the rows.
pub fn dot_rows(isa: Isa, rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    debug_assert!(isa.is_available());
    rows.check(activations, out.len());
    if out.is_empty() {
        return;
    }
    match isa {
        // SAFETY: the CPU has the ISA, and VNNI.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if dot_avx512::has_vnni() => unsafe {
            dot_avx512::dot_rows_vnni(rows, activations, out);
        },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { dot_avx512::dot_rows(rows, activations, out) },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { dot_avx2::dot_rows(rows, activations, out) },
        _ => scalar::dot_rows(rows, activations, out),
    }
}

/// Multiplies one row by a column of activations; see [`dot_rows`].
pub fn dot_row(isa: Isa, row: Rows<'_>, activations: &Activations) -> f32 {
    let mut out = [0f32];
    dot_rows(isa, row, activations, &mut out);
    out[0]
}

/// Encodes activations: the same bytes on every ISA.
pub fn quantize_activations<B: Quantize>(isa: Isa, x: &[f32], out: &mut [B]) {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { dot_avx512::quantize_activations(x, out) },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { dot_avx2::quantize_activations(x, out) },
        _ => B::encode(x, out),
    }
}

/// The integers of a K-quant block's dot product, by every kernel that there is for the ISA.
#[cfg(test)]
pub(crate) fn block_sums(
    isa: Isa,
    kind: TensorType,
    block: &[u8],
    y: &crate::dot::BlockQ8K,
) -> Vec<scalar::KSums> {
    match isa {
        // SAFETY: the CPU has the ISA, and VNNI where that is used.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe {
            let mut sums = vec![dot_avx512::block_sums(kind, block, y)];
            if dot_avx512::has_vnni() {
                sums.push(dot_avx512::block_sums_vnni(kind, block, y));
            }
            sums
        },
        // SAFETY: the CPU has the ISA.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { vec![dot_avx2::block_sums(kind, block, y)] },
        _ => {
            let _ = (kind, block, y); // used by no portable kernel
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{importance, weights};

    #[test]
    fn the_environment_may_choose_what_there_is() {
        assert_eq!(Isa::wanted(None), Ok(Isa::best()));
        assert_eq!(Isa::wanted(Some("")), Ok(Isa::best()));
        assert_eq!(Isa::wanted(Some("Scalar")), Ok(Isa::Scalar));
        let error = Isa::wanted(Some("neon9")).unwrap_err();
        assert_eq!(error, QuantError::IsaNotAvailable("neon9".into()));
    }

    /// Rows that reach every path: ordinary, flat, sparse, tiny, and too large for the fast rounding.
    fn rows() -> Vec<Vec<f32>> {
        let plain = weights(15 * 256, 21);
        let scaled = |factor: f32| plain.iter().map(|v| v * factor).collect::<Vec<f32>>();
        let mixed =
            plain.iter().enumerate().map(|(i, v)| v * 10f32.powi((i / 32) as i32 % 50 - 25));
        let sparse = plain.iter().enumerate().map(|(i, &v)| if i % 9 == 0 { v } else { 0.0 });
        vec![
            mixed.collect(),
            sparse.collect(),
            vec![0.0; plain.len()],
            vec![-0.37; plain.len()],
            scaled(1e-41),
            scaled(1e-20),
            scaled(1e36),
            plain.clone(),
        ]
    }

    fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    #[test]
    fn every_isa_gives_the_scalar_bytes() {
        let w = importance(15 * 256, 22);
        for (number, x) in rows().iter().enumerate() {
            for (kind, w) in
                TensorType::ALL.into_iter().flat_map(|kind| [(kind, None), (kind, Some(&w[..]))])
            {
                let encode = |isa| {
                    let mut out = vec![0u8; kind.row_bytes(x.len()).unwrap()];
                    quantize_row(isa, kind, x, w, &mut out);
                    out
                };
                let expected = encode(Isa::Scalar);
                let decode = |isa| {
                    let mut out = vec![0f32; x.len()];
                    dequantize_row(isa, kind, &expected, &mut out);
                    out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                for isa in available() {
                    let case = format!("{kind:?} {isa:?} row {number} {}", w.is_some());
                    assert!(encode(isa) == expected, "{case}");
                    assert!(decode(isa) == decode(Isa::Scalar), "decoding {case}");
                }
            }
        }
    }

    #[test]
    fn every_isa_chooses_the_same_outliers() {
        let w = importance(15 * 256, 23);
        for x in rows() {
            for (outliers, w) in [(0, None), (8, None), (8, Some(&w[..])), (32, Some(&w[..]))] {
                let encode = |isa| {
                    let mut out = vec![HifiBlock::ZERO; 15];
                    encode_hifi_row(isa, &x, w, outliers, &mut out);
                    out.into_iter().map(|b| format!("{b:?}")).collect::<Vec<String>>()
                };
                for isa in available() {
                    assert_eq!(encode(isa), encode(Isa::Scalar), "{isa:?} {outliers}");
                }
            }
        }
    }

    #[test]
    fn every_isa_adds_up_the_same_error() {
        let (x, y, w) = (weights(1003, 24), weights(1003, 25), importance(1003, 26));
        for w in [None, Some(&w[..])] {
            for isa in available() {
                assert_eq!(error_sums(isa, &x, w, &y), error_sums(Isa::Scalar, &x, w, &y));
            }
        }
    }
}
