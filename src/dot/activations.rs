//! Activations, quantized to eight bits as ggml does it for its dot products on x86-64.
//!
//! All instruction sets have the same loop, which the compiler vectorizes, so the bytes are the same.
//! NaN or infinity in a block makes its dot products NaN, as in f32.

use crate::block::iq4::OFFSET;
use crate::block::{
    BlockQ8_0, Bytes, MAX_OUTLIERS, QK, QK_K, Quants, TensorType, Values, by_family,
};
use crate::error::QuantError;
use crate::float::{f16_to_f32, f32_to_f16, nearest_int};

/// Quants per sum of Q8_K.
pub const SUM: usize = 16;

/// A Q8_K block: `x = d · q`, q in -127..=127, and a sum for every sixteen quants.
/// 292 bytes for 256 activations.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ8K {
    /// Scale, f32.
    pub d: [u8; 4],
    /// Quants, signed.
    pub qs: [u8; QK_K],
    /// Sums of sixteen quants each, i16.
    pub bsums: [[u8; 2]; QK_K / SUM],
}
const _: () = assert!(size_of::<BlockQ8K>() == 292);

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ8K {}

impl BlockQ8K {
    /// The scale.
    #[inline(always)]
    pub fn scale(&self) -> f32 {
        f32::from_le_bytes(self.d)
    }
}

/// A Q8_1 block: `x = d · q`, q in -127..=127, and their sum. 36 bytes for 32 activations.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ8_1 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Scale times the sum of the quants, f16.
    pub s: [u8; 2],
    /// Quants, signed.
    pub qs: [u8; QK],
}
const _: () = assert!(size_of::<BlockQ8_1>() == 36);

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ8_1 {}

/// A block of quantized activations.
pub trait Quantize: Bytes {
    /// Activations in a block.
    const NUMBERS: usize;
    /// A block of zeros.
    const ZERO: Self;

    /// Encodes `x`, which has `out.len()` blocks of activations.
    fn encode(x: &[f32], out: &mut [Self]);
}

impl Quantize for BlockQ8K {
    const NUMBERS: usize = QK_K;
    const ZERO: Self = Self { d: [0; 4], qs: [0; QK_K], bsums: [[0; 2]; QK_K / SUM] };

    /// The activation of largest magnitude (of several, the first) becomes -127.
    #[inline(always)]
    fn encode(x: &[f32], out: &mut [Self]) {
        for (block, x) in out.iter_mut().zip(x.as_chunks::<QK_K>().0) {
            let magnitude = largest_magnitude(x);
            if magnitude == 0.0 {
                *block = Self::ZERO;
                continue;
            }
            let inverse = -127.0 / first_of_magnitude(x, magnitude);
            for (q, &v) in block.qs.iter_mut().zip(x) {
                *q = nearest_int(inverse * v).min(127) as u8;
            }
            for (sum, qs) in block.bsums.iter_mut().zip(block.qs.as_chunks::<SUM>().0) {
                *sum = qs.iter().map(|&q| i16::from(q as i8)).sum::<i16>().to_le_bytes();
            }
            block.d = (1.0 / inverse).to_le_bytes();
        }
    }
}

impl Quantize for BlockQ8_0 {
    const NUMBERS: usize = QK;
    const ZERO: Self = Self { d: [0; 2], qs: [0; QK] };

    /// To the nearest number, ties to even: not quite what the type's quantizer does for weights.
    #[inline(always)]
    fn encode(x: &[f32], out: &mut [Self]) {
        for (block, x) in out.iter_mut().zip(x.as_chunks::<QK>().0) {
            let d = quantize_32(x, &mut block.qs);
            block.d = f32_to_f16(d).to_le_bytes();
        }
    }
}

impl Quantize for BlockQ8_1 {
    const NUMBERS: usize = QK;
    const ZERO: Self = Self { d: [0; 2], s: [0; 2], qs: [0; QK] };

    #[inline(always)]
    fn encode(x: &[f32], out: &mut [Self]) {
        for (block, x) in out.iter_mut().zip(x.as_chunks::<QK>().0) {
            let d = quantize_32(x, &mut block.qs);
            let sum: i32 = block.qs.iter().map(|&q| i32::from(q as i8)).sum();
            block.d = f32_to_f16(d).to_le_bytes();
            block.s = f32_to_f16(d * sum as f32).to_le_bytes();
        }
    }
}

/// Writes the quants and returns the scale.
#[inline(always)]
fn quantize_32(x: &[f32; QK], qs: &mut [u8; QK]) -> f32 {
    let magnitude = largest_magnitude(x);
    let inverse = if magnitude == 0.0 { 0.0 } else { 127.0 / magnitude };
    for (q, &v) in qs.iter_mut().zip(x) {
        *q = nearest_int(v * inverse) as u8;
    }
    magnitude / 127.0
}

/// The largest magnitude. Magnitudes compare like their bits. As integers, they can be compared in any order.
#[inline(always)]
fn largest_magnitude(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |m, v| m.max(v.abs().to_bits())))
}

/// The first of `x` whose magnitude is `magnitude`, with its sign.
#[inline(always)]
fn first_of_magnitude(x: &[f32; QK_K], magnitude: f32) -> f32 {
    let has = |part: &&[f32; 32]| part.iter().fold(false, |any, v| any | (v.abs() == magnitude));
    let part = x.as_chunks::<32>().0.iter().find(has);
    let found = part.and_then(|part| part.iter().find(|v| v.abs() == magnitude));
    found.copied().unwrap_or(f32::NAN)
}

/// The form of activations for dot products with a type of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    F32,
    Q8_0,
    Q8_1,
    /// Q8_K, and in the order of [`NibbleOrder`].
    Q8KNibbles,
    /// Q8_K, and in the order of [`HalfOrder`].
    Q8KHalves,
}

fn form_of(kind: TensorType) -> Form {
    by_family!(kind,
        float: B => Form::F32,
        small: B => if B::HAS_MIN { Form::Q8_1 } else { Form::Q8_0 },
        k: B => match B::VALUES {
            Values::From(_) => Form::Q8KNibbles,
            Values::Iq4 => Form::Q8KHalves,
        }
    )
}

/// A column of activations, in the form for dot products with a type.
#[derive(Debug, Clone)]
pub struct Activations {
    len: usize,
    form: Form,
    pub(crate) column: Column,
    pub(crate) sparse: Option<Sparse>,
    /// Scale and sum of each block of Q8_0 and Q8_1, as f32.
    pub(crate) scales_and_sums: Vec<[f32; 2]>,
    /// Q8_K in another order, for the kernels of the K-quants.
    #[cfg_attr(any(portable, not(target_arch = "x86_64")), allow(dead_code))]
    pub(crate) nibble_order: Vec<NibbleOrder>,
    /// Q8_K in another order, for the kernel of IQ4_XS.
    #[cfg_attr(any(portable, not(target_arch = "x86_64")), allow(dead_code))]
    pub(crate) half_order: Vec<HalfOrder>,
}

#[derive(Debug, Clone)]
pub(crate) enum Column {
    F32(Vec<f32>),
    Q8_0(Vec<BlockQ8_0>),
    Q8_1(Vec<BlockQ8_1>),
    Q8K(Vec<BlockQ8K>),
}

/// A Q8_K block in the order of unpacked nibbles: 64 bytes give two sub-blocks in their low nibbles, then two in their
/// high nibbles. So the sub-blocks of 32 quants are in the order 0, 2, 1, 3, 4, 6, 5, 7.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct NibbleOrder {
    pub qs: [[u8; QK]; QK_K / QK],
    /// Sums of the sub-blocks, in their own order.
    pub sums: [i16; QK_K / QK],
    /// Scale.
    pub d: f32,
}

impl NibbleOrder {
    pub(crate) fn new(block: &BlockQ8K) -> Self {
        let qs = block.qs.as_chunks().0;
        let sum = |q: &[u8; QK]| q.iter().map(|&q| i16::from(q as i8)).sum();
        Self {
            qs: [0, 2, 1, 3, 4, 6, 5, 7].map(|j| qs[j]),
            sums: std::array::from_fn(|j| sum(&qs[j])),
            d: block.scale(),
        }
    }
}

/// A Q8_K block in the order of unpacked nibbles of IQ4_XS: 64 bytes give the first halves of four sub-blocks of 32
/// quants in their low nibbles, then the second halves in their high nibbles.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct HalfOrder {
    pub qs: [[u8; QK / 2]; 2 * QK_K / QK],
    /// The table's values are stored with [`OFFSET`] added. Therefore the sum of products of each sub-block starts with
    /// -[`OFFSET`] times the sum of its activations (and zeros).
    pub starts: [[i32; 4]; QK_K / QK],
    /// Scale.
    pub d: f32,
}

impl HalfOrder {
    pub(crate) fn new(block: &BlockQ8K) -> Self {
        let halves = block.qs.as_chunks().0;
        let sum = |q: &[u8; QK]| q.iter().map(|&q| i32::from(q as i8)).sum::<i32>();
        let subs = block.qs.as_chunks().0;
        Self {
            qs: [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15].map(|i| halves[i]),
            starts: std::array::from_fn(|j| [-OFFSET * sum(&subs[j]), 0, 0, 0]),
            d: block.scale(),
        }
    }
}

/// The activations for the outliers of Q4_HIFI.
#[derive(Debug, Clone)]
pub(crate) struct Sparse {
    pub outliers: usize,
    /// The quantized activations, `d · q`.
    pub values: Vec<f32>,
}

impl Activations {
    /// Activations for rows of type `kind`. Fails if their number is not a multiple of its blocks.
    #[inline(always)]
    pub fn new(kind: TensorType, x: &[f32]) -> Result<Self, QuantError> {
        kind.row_bytes(x.len())?;
        let half = |bytes| f16_to_f32(u16::from_le_bytes(bytes));
        let (mut scales_and_sums, mut nibble_order, mut half_order) =
            (Vec::new(), Vec::new(), Vec::new());
        let form = form_of(kind);
        let column = match form {
            Form::F32 => Column::F32(x.to_vec()),
            Form::Q8_0 => {
                let blocks = encode::<BlockQ8_0>(x);
                scales_and_sums.extend(blocks.iter().map(|b| [half(b.d), 0.0]));
                Column::Q8_0(blocks)
            }
            Form::Q8_1 => {
                let blocks = encode::<BlockQ8_1>(x);
                scales_and_sums.extend(blocks.iter().map(|b| [half(b.d), half(b.s)]));
                Column::Q8_1(blocks)
            }
            Form::Q8KNibbles | Form::Q8KHalves => {
                let blocks = encode::<BlockQ8K>(x);
                if form == Form::Q8KHalves {
                    half_order.extend(blocks.iter().map(HalfOrder::new));
                } else {
                    nibble_order.extend(blocks.iter().map(NibbleOrder::new));
                }
                Column::Q8K(blocks)
            }
        };
        Ok(Self {
            len: x.len(),
            form,
            column,
            sparse: None,
            scales_and_sums,
            nibble_order,
            half_order,
        })
    }

    /// Activations for rows of Q4_HIFI with `outliers` outliers per block. They suit all K-quants, too.
    #[inline(always)]
    pub fn for_hifi(x: &[f32], outliers: usize) -> Result<Self, QuantError> {
        if outliers > MAX_OUTLIERS {
            return Err(QuantError::TooManyOutliers { asked: outliers, most: MAX_OUTLIERS });
        }
        let mut activations = Self::new(TensorType::Q4K, x)?;
        let Column::Q8K(blocks) = &activations.column else { unreachable!("Q4_K takes Q8_K") };
        let values = |b: &BlockQ8K| b.qs.map(|q| b.scale() * f32::from(q as i8));
        let values = blocks.iter().flat_map(values).collect();
        activations.sparse = Some(Sparse { outliers, values });
        Ok(activations)
    }

    /// The number of activations.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false, because no row is empty. Clippy requires it beside [`Self::len`].
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Outliers per block of the Q4_HIFI rows; None if these are not for Q4_HIFI.
    pub fn outliers(&self) -> Option<usize> {
        self.sparse.as_ref().map(|sparse| sparse.outliers)
    }

    /// Whether they have the form for rows of `kind`.
    pub fn suit(&self, kind: TensorType) -> bool {
        self.len.is_multiple_of(kind.block_weights()) && self.form == form_of(kind)
    }

    /// The activations after quantization, as f32.
    pub fn values(&self) -> Vec<f32> {
        let times = |d: f32, qs: &[u8]| qs.iter().map(|&q| d * f32::from(q as i8)).collect();
        let half = |d: [u8; 2]| f16_to_f32(u16::from_le_bytes(d));
        let parts: Vec<Vec<f32>> = match &self.column {
            Column::F32(x) => return x.clone(),
            Column::Q8_0(blocks) => blocks.iter().map(|b| times(half(b.d), &b.qs)).collect(),
            Column::Q8_1(blocks) => blocks.iter().map(|b| times(half(b.d), &b.qs)).collect(),
            Column::Q8K(blocks) => blocks.iter().map(|b| times(b.scale(), &b.qs)).collect(),
        };
        parts.concat()
    }
}

#[inline(always)]
fn encode<B: Quantize>(x: &[f32]) -> Vec<B> {
    let mut out = vec![B::ZERO; x.len() / B::NUMBERS];
    B::encode(x, &mut out);
    out
}
