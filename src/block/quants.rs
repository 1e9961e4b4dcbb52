//! The formula of every block of quants, as data: `w = scale · value(q) - min`.

use super::layout::Block;
use crate::float::f16_to_f32;

/// A block of N quants. Each quant has a value; with scale and minimum of its sub-block, the value gives a weight.
pub(crate) trait Quants<const N: usize>: Block {
    /// Sub-blocks, each with a separate scale.
    const SUB_BLOCKS: usize;
    /// The largest quant.
    const LAST: u8;
    /// The values of the quants.
    const VALUES: Values;
    /// Whether there are minima.
    const HAS_MIN: bool;

    /// Scale of a sub-block, and its minimum, which is subtracted from its weights.
    fn scale_and_min(&self, sub_block: usize) -> (f32, f32);
    /// The quants, a byte each.
    fn quants(&self) -> [u8; N];
    /// Stores other quants.
    fn set_quants(&mut self, quants: &[u8; N]);
}

/// Writes the weights of a block whose quants are their values.
#[inline(always)]
pub(super) fn dequantize<B: Quants<N>, const N: usize>(block: &B, out: &mut [f32]) {
    let quants = block.quants(); // apart from the products, so that both loops become vectors
    let sub = N / B::SUB_BLOCKS;
    for (j, (out, quants)) in out.chunks_exact_mut(sub).zip(quants.chunks_exact(sub)).enumerate() {
        let (scale, min) = block.scale_and_min(j);
        for (y, &q) in out.iter_mut().zip(quants) {
            *y = scale * f32::from(q) - min;
        }
    }
}

/// The values of quants: integers from the given one on, or [`super::iq4::VALUES`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values {
    From(f32),
    Iq4,
}

/// The formula of a type: its block, numbers of quants and sub-blocks, largest quant, values, whether there are minima,
/// and scale and minimum of a sub-block.
macro_rules! formula {
    ($block:ident: [$n:ident; $sub_blocks:literal], $last:expr, $values:expr, $has_min:literal,
        |$b:ident, $j:pat_param| $scale_and_min:expr
    ) => {
        impl crate::block::Quants<$n> for $block {
            const SUB_BLOCKS: usize = $sub_blocks;
            const LAST: u8 = $last;
            const VALUES: crate::block::Values = $values;
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
    };
}
pub(super) use formula;

/// An f16 field.
#[inline(always)]
pub(super) fn f16(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}
