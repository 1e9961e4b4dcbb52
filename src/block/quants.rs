//! The formula of every block of quants, as data: `w = scale · value(q) - min`.

use super::layout::{Block, QK, QK_K};
use super::{
    iq4_nl::BlockIQ4NL, iq4_xs::BlockIQ4XS, q2_k::BlockQ2K, q3_k::BlockQ3K, q4_0::BlockQ4_0,
    q4_1::BlockQ4_1, q4_k::BlockQ4K, q5_0::BlockQ5_0, q5_1::BlockQ5_1, q5_k::BlockQ5K,
    q6_k::BlockQ6K, q8_0::BlockQ8_0,
};
use crate::float::f16_to_f32;

/// A block of N quants: each stands for a value, and scale and minimum of its sub-block make a weight of that.
pub(crate) trait Quants<const N: usize>: Block {
    /// Sub-blocks with a scale of their own.
    const SUB_BLOCKS: usize;
    /// The largest quant.
    const LAST: u8;
    /// What the quants stand for.
    const VALUES: Values;
    /// Whether there are minima.
    const HAS_MIN: bool;

    /// Scale of a sub-block, and its minimum: what is deducted from all its weights.
    fn scale_and_min(&self, sub_block: usize) -> (f32, f32);
    /// The quants, a byte each.
    fn quants(&self) -> [u8; N];
    /// Stores other quants.
    fn set_quants(&mut self, quants: &[u8; N]);
}

/// What quants stand for: whole numbers from that one on, or [`super::iq4::VALUES`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values {
    From(f32),
    Iq4,
}
use Values::{From, Iq4};

/// A line a type: its block, quants and sub-blocks, last quant, values, scale and minimum.
macro_rules! formulas {
    ($($block:ident: [$n:ident; $sub_blocks:literal], $last:literal, $values:expr, $has_min:literal,
        |$b:ident, $j:pat_param| $scale_and_min:expr;)*
    ) => {$(
        impl Quants<$n> for $block {
            const SUB_BLOCKS: usize = $sub_blocks;
            const LAST: u8 = $last;
            const VALUES: Values = $values;
            const HAS_MIN: bool = $has_min;

            #[inline(always)]
            fn scale_and_min(&self, $j: usize) -> (f32, f32) {
                let $b = self;
                $scale_and_min
            }

            #[inline(always)]
            fn quants(&self) -> [u8; $n] {
                self.quants()
            }

            #[inline(always)]
            fn set_quants(&mut self, quants: &[u8; $n]) {
                self.pack(quants);
            }
        }
    )*};
}
formulas! {
    BlockQ4_0: [QK; 1], 15, From(-8.0), false, |b, _| (f16(b.d), 0.0);
    BlockQ4_1: [QK; 1], 15, From(0.0), true, |b, _| (f16(b.d), -f16(b.m));
    BlockQ5_0: [QK; 1], 31, From(-16.0), false, |b, _| (f16(b.d), 0.0);
    BlockQ5_1: [QK; 1], 31, From(0.0), true, |b, _| (f16(b.d), -f16(b.m));
    BlockQ8_0: [QK; 1], 255, From(-128.0), false, |b, _| (f16(b.d), 0.0);
    BlockIQ4NL: [QK; 1], 15, Iq4, false, |b, _| (f16(b.d), 0.0);
    BlockQ2K: [QK_K; 16], 3, From(0.0), true, |b, j| b.scale_and_min(j);
    BlockQ3K: [QK_K; 16], 7, From(-4.0), false, |b, j| (b.all_scales()[j], 0.0);
    BlockQ4K: [QK_K; 8], 15, From(0.0), true, |b, j| b.scale_and_min(j);
    BlockQ5K: [QK_K; 8], 31, From(0.0), true, |b, j| b.scale_and_min(j);
    BlockQ6K: [QK_K; 16], 63, From(-32.0), false, |b, j| (b.scale(j), 0.0);
    BlockIQ4XS: [QK_K; 8], 15, Iq4, false, |b, j| (b.factor() * b.scale(j) as f32, 0.0);
}

#[inline(always)]
fn f16(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}
