//! A type's formula as data, so that code that uses it is compiled once for all types.

use crate::block::{Block, QK_K, Quants, TensorType, Values, blocks, blocks_mut, with_quants};

/// Weights of a part. All weights of a part share a scale, because a sub-block is one part or two.
pub(super) const SHARED: usize = 16;

/// One value per weight of a block, part by part. Loops over a part have a constant length, so that the compiler
/// vectorizes them. A block of fewer than [`QK_K`] weights uses the first parts.
pub(super) type Parts<T> = [[T; SHARED]; QK_K / SHARED];

/// The formula of a type, see [`Quants`].
#[derive(Clone, Copy)]
pub(super) struct Formula {
    kind: TensorType,
    /// Weights in a block.
    pub weights: usize,
    /// Bytes in a block.
    pub bytes: usize,
    /// The largest quant.
    pub last: u8,
    /// The values of the quants.
    pub values: Values,
}

/// The quants, scales and minima of a block: `w = scale · value(q) - min`.
pub(super) struct BlockParts {
    pub quants: Parts<u8>,
    /// Scale and minimum of each part.
    pub scales: [f32; QK_K / SHARED],
    pub mins: [f32; QK_K / SHARED],
}

impl Formula {
    /// The formula of a type with quants; None for float types.
    pub fn of(kind: TensorType) -> Option<Self> {
        let (weights, bytes) = (kind.block_weights(), kind.block_bytes());
        with_quants!(kind, B => {
            Some(Self { kind, weights, bytes, last: B::LAST, values: B::VALUES })
        }, None)
    }

    /// Unpacks a block.
    #[inline(always)]
    pub fn read(self, block: &[u8], parts: &mut BlockParts) {
        with_quants!(self.kind, B => {
            let block = &blocks::<B>(block)[0];
            let quants = block.quants();
            for (to, quants) in parts.quants.iter_mut().zip(quants.as_chunks().0) {
                *to = *quants;
            }
            for j in 0..B::WEIGHTS / SHARED {
                let sub_block = j * SHARED * B::SUB_BLOCKS / B::WEIGHTS;
                (parts.scales[j], parts.mins[j]) = block.scale_and_min(sub_block);
            }
        }, {});
    }

    /// Stores other quants in a block.
    #[inline(always)]
    pub fn write(self, quants: &Parts<u8>, block: &mut [u8]) {
        with_quants!(self.kind, B => {
            if let Some(quants) = quants.as_flattened().first_chunk() {
                blocks_mut::<B>(block)[0].set_quants(quants);
            }
        }, {});
    }
}

impl BlockParts {
    pub const ZERO: Self = Self {
        quants: [[0; SHARED]; QK_K / SHARED],
        scales: [0.0; QK_K / SHARED],
        mins: [0.0; QK_K / SHARED],
    };
}
