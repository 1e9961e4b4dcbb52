//! The blocks of numbers that [`super::cancel`] may change while their scales stay.

use super::lanes::Lanes;
use crate::block::{
    Block, BlockIQ4NL, BlockIQ4XS, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0,
    BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, QK, QK_K,
};
use crate::float::f16_to_f32;

/// A block of N numbers, which stand for values that a scale and a minimum of their sub-block bring to weights.
pub(super) trait Numbered<const N: usize>: Block {
    const SUB_BLOCKS: usize;
    /// The largest number.
    const LAST: u8;
    const VALUES: Values;

    /// What numbers stand for.
    ///
    /// # Safety
    ///
    /// The CPU has L's ISA.
    #[inline(always)]
    unsafe fn values<L: Lanes>(numbers: &[u8; N]) -> [f32; N] {
        let mut values = numbers.map(f32::from);
        match Self::VALUES {
            Values::From(first) => values.iter_mut().for_each(|value| *value += first),
            Values::Iq4 => {
                for values in values.chunks_exact_mut(L::LANES) {
                    // SAFETY: the caller's promise; there are as many numbers as lanes.
                    unsafe { L::load(values.as_ptr()).iq4_value().store(values.as_mut_ptr()) };
                }
            }
        }
        values
    }

    /// Distance of a sub-block's values, and what is deducted from all of them.
    fn scale_and_min(&self, sub_block: usize) -> (f32, f32);
    fn numbers(&self) -> [u8; N];
    fn set_numbers(&mut self, numbers: &[u8; N]);
}

/// What numbers stand for: whole numbers from that one on, or [`crate::block::iq4::VALUES`].
pub(super) enum Values {
    From(f32),
    Iq4,
}
use Values::{From, Iq4};

/// A line a type: its block, numbers and sub-blocks, last number, values, scale and minimum.
macro_rules! numbered {
    ($($block:ident: [$n:ident; $sub_blocks:literal], $last:literal, $values:expr,
        |$b:ident, $j:pat_param| $scale_and_min:expr;)*
    ) => {$(
        impl Numbered<$n> for $block {
            const SUB_BLOCKS: usize = $sub_blocks;
            const LAST: u8 = $last;
            const VALUES: Values = $values;

            #[inline(always)]
            fn scale_and_min(&self, $j: usize) -> (f32, f32) {
                let $b = self;
                $scale_and_min
            }

            #[inline(always)]
            fn numbers(&self) -> [u8; $n] {
                self.numbers()
            }

            #[inline(always)]
            fn set_numbers(&mut self, numbers: &[u8; $n]) {
                self.pack(numbers);
            }
        }
    )*};
}
numbered! {
    BlockQ4_0: [QK; 1], 15, From(-8.0), |b, _| (f16(b.d), 0.0);
    BlockQ4_1: [QK; 1], 15, From(0.0), |b, _| (f16(b.d), -f16(b.m));
    BlockQ5_0: [QK; 1], 31, From(-16.0), |b, _| (f16(b.d), 0.0);
    BlockQ5_1: [QK; 1], 31, From(0.0), |b, _| (f16(b.d), -f16(b.m));
    BlockQ8_0: [QK; 1], 255, From(-128.0), |b, _| (f16(b.d), 0.0);
    BlockIQ4NL: [QK; 1], 15, Iq4, |b, _| (f16(b.d), 0.0);
    BlockQ2K: [QK_K; 16], 3, From(0.0), |b, j| b.scale_and_min(j);
    BlockQ3K: [QK_K; 16], 7, From(-4.0), |b, j| (b.all_scales()[j], 0.0);
    BlockQ4K: [QK_K; 8], 15, From(0.0), |b, j| b.scale_and_min(j);
    BlockQ5K: [QK_K; 8], 31, From(0.0), |b, j| b.scale_and_min(j);
    BlockQ6K: [QK_K; 16], 63, From(-32.0), |b, j| (b.scale(j), 0.0);
    BlockIQ4XS: [QK_K; 8], 15, Iq4, |b, j| (b.factor() * b.scale(j) as f32, 0.0);
}

#[inline(always)]
fn f16(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}
