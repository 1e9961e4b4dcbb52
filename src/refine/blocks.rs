//! Refines rows of blocks, group by group.

use super::columns::Columns;
use super::group::{Blocks, MOST_BLOCKS, Refined};
use crate::block::{
    BlockIQ4XS, BlockQ4K, BlockQ5K, BlockQ6K, QK_K, TensorType, blocks_mut, bytes_of,
};
use crate::error_sums::error_sums;
use crate::fit::RowsToEncode;
use crate::simd::{Kernel, Vector};
use std::slice;

/// Evaluates `$body` with `$block` as the block struct of a refinable type; `$otherwise` for the other types.
macro_rules! with_refined {
    ($kind:expr, $block:ident => $body:expr, $otherwise:expr) => {
        with_refined!(@ $kind, $block => $body, $otherwise;
            IQ4XS BlockIQ4XS, Q4K BlockQ4K, Q5K BlockQ5K, Q6K BlockQ6K)
    };
    (@ $kind:expr, $block:ident => $body:expr, $otherwise:expr; $($type:ident $of:ident),*) => {
        match $kind {
            $(TensorType::$type => {
                #[allow(dead_code)]
                type $block = $of;
                $body
            })*
            _ => $otherwise,
        }
    };
}

/// Whether blocks of the type can be refined.
pub(crate) fn is_refinable(kind: TensorType) -> bool {
    with_refined!(kind, B => true, false)
}

/// Improves the blocks of encoded rows where it can.
pub(crate) struct RefineRows<'a>(pub RowsToEncode<'a>);

impl Kernel for RefineRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let RowsToEncode { kind, x, row_length, importance, out } = self.0;
        let x = Blocks {
            x: x.as_chunks().0,
            importance: importance.map(|w| w.as_chunks().0),
            row: row_length / QK_K,
        };
        with_refined!(kind, B => refine_blocks::<V::Wide, B>(x, blocks_mut(out)), ())
    }
}

#[inline(always)]
unsafe fn refine_blocks<L: Vector, B: Refined>(blocks: Blocks<'_>, out: &mut [B]) {
    let group = L::LANES / B::SUB_BLOCKS;
    let mut columns = Columns::new(QK_K / B::SUB_BLOCKS);
    let (mut x, mut weights) = ([[0f32; QK_K]; MOST_BLOCKS], [[0f32; QK_K]; MOST_BLOCKS]);
    let mut decoded = [0f32; QK_K];
    for (g, out) in out.chunks_mut(group).enumerate() {
        blocks.copy_group(g * group, &mut x[..group], &mut weights[..group]);
        let mut found = [out[0]; MOST_BLOCKS];
        columns.fill::<L>(&x[..group], &weights[..group]);
        B::search::<L>(&columns, &x[..group], &mut found[..group]);
        for (l, (out, found)) in out.iter_mut().zip(found).enumerate() {
            found.dequantize(&mut decoded);
            let sums = error_sums(&x[l], Some(&weights[l]), &decoded);
            let before = if bytes_of(slice::from_ref(out)).iter().all(|&b| b == 0) {
                sums.reference // the error of zeros
            } else {
                out.dequantize(&mut decoded);
                error_sums(&x[l], Some(&weights[l]), &decoded).error
            };
            if sums.error < before {
                *out = found;
            }
        }
    }
}
