//! The blocks of numbers that [`super::cancel`] may change while their scales stay.

use super::lanes::Lanes;
use crate::block::k_fit::{KFit, SUB_BLOCKS};
use crate::block::{Block, BlockIQ4XS, BlockQ4K, BlockQ5K, BlockQ6K, QK_K, iq4_xs, q6_k};

/// A block of numbers, which stand for values that a scale and a minimum of their sub-block bring to weights.
pub(super) trait Numbered: Block {
    const SUB_BLOCKS: usize;
    /// The largest number.
    const LAST: u8;

    /// What numbers stand for.
    ///
    /// # Safety
    ///
    /// The CPU has L's ISA.
    #[inline(always)]
    unsafe fn values<L: Lanes>(numbers: &[u8; QK_K]) -> [f32; QK_K] {
        floats(numbers)
    }

    /// Distance of a sub-block's values, and what is deducted from all of them.
    fn scale_and_min(&self, sub_block: usize) -> (f32, f32);
    fn numbers(&self) -> [u8; QK_K];
    fn set_numbers(&mut self, numbers: &[u8; QK_K]);
}

/// A type with six-bit scales and minima.
macro_rules! k_block {
    ($block:ident, $last:literal) => {
        impl Numbered for $block {
            const SUB_BLOCKS: usize = SUB_BLOCKS;
            const LAST: u8 = $last;

            #[inline(always)]
            fn scale_and_min(&self, sub_block: usize) -> (f32, f32) {
                self.scale_and_min(sub_block)
            }

            #[inline(always)]
            fn numbers(&self) -> [u8; QK_K] {
                self.numbers()
            }

            #[inline(always)]
            fn set_numbers(&mut self, numbers: &[u8; QK_K]) {
                *self = Self::from_fit(&KFit {
                    d: u16::from_le_bytes(self.d),
                    dmin: u16::from_le_bytes(self.dmin),
                    scales: self.scales,
                    numbers: *numbers,
                });
            }
        }
    };
}
k_block!(BlockQ4K, 15);
k_block!(BlockQ5K, 31);

/// The methods of a type that packs its numbers in place.
macro_rules! packed {
    () => {
        #[inline(always)]
        fn numbers(&self) -> [u8; QK_K] {
            self.numbers()
        }

        #[inline(always)]
        fn set_numbers(&mut self, numbers: &[u8; QK_K]) {
            self.pack(numbers);
        }
    };
}

impl Numbered for BlockQ6K {
    const SUB_BLOCKS: usize = q6_k::SUB_BLOCKS;
    const LAST: u8 = 63;

    #[inline(always)]
    unsafe fn values<L: Lanes>(numbers: &[u8; QK_K]) -> [f32; QK_K] {
        let mut values = floats(numbers);
        for value in &mut values {
            *value -= 32.0;
        }
        values
    }

    #[inline(always)]
    fn scale_and_min(&self, sub_block: usize) -> (f32, f32) {
        (self.scale(sub_block), 0.0)
    }

    packed!();
}

impl Numbered for BlockIQ4XS {
    const SUB_BLOCKS: usize = iq4_xs::SUB_BLOCKS;
    const LAST: u8 = 15;

    #[inline(always)]
    unsafe fn values<L: Lanes>(numbers: &[u8; QK_K]) -> [f32; QK_K] {
        let mut values = floats(numbers);
        for values in values.chunks_exact_mut(L::LANES) {
            // SAFETY: the caller's promise; there are as many numbers as lanes.
            unsafe { L::load(values.as_ptr()).iq4_value().store(values.as_mut_ptr()) };
        }
        values
    }

    #[inline(always)]
    fn scale_and_min(&self, sub_block: usize) -> (f32, f32) {
        (self.factor() * self.scale(sub_block) as f32, 0.0)
    }

    packed!();
}

#[inline(always)]
fn floats(numbers: &[u8; QK_K]) -> [f32; QK_K] {
    let mut floats = [0f32; QK_K];
    for (float, &number) in floats.iter_mut().zip(numbers) {
        *float = f32::from(number);
    }
    floats
}
