//! A type's formula as data: what is computed of its blocks is then compiled once, and not for every type.

use crate::block::{Block, QK_K, Quants, TensorType, Values, blocks, blocks_mut, with_quants};

/// Weights that share a scale: sub-blocks are of one such part, or of two.
pub(super) const SHARED: usize = 16;

/// The formula of a type, see [`Quants`], and how its blocks are read and written.
pub(super) struct Formula {
    /// Weights in a block.
    pub weights: usize,
    /// Bytes in a block.
    pub bytes: usize,
    /// The largest quant.
    pub last: u8,
    /// What the quants stand for.
    pub values: Values,
    /// Takes a block apart.
    pub parts: fn(&[u8]) -> BlockParts,
    /// Stores other quants in a block.
    pub set_quants: fn(&mut [u8], &[u8]),
}

/// A block, `w = scale · value(q) - min`; after the last of the weights, zeros.
pub(super) struct BlockParts {
    pub quants: [u8; QK_K],
    /// Scale and minimum of every [`SHARED`] weights.
    pub scales: [f32; QK_K / SHARED],
    pub mins: [f32; QK_K / SHARED],
}

impl Formula {
    /// The formula of a type of quants; None for the types of floats.
    pub fn of(kind: TensorType) -> Option<Self> {
        with_quants!(kind, B => Some(Self::new::<B, { B::WEIGHTS }>()), None)
    }

    fn new<B: Quants<N>, const N: usize>() -> Self {
        Self {
            weights: N,
            bytes: B::BYTES,
            last: B::LAST,
            values: B::VALUES,
            parts: |block| BlockParts::new::<B, N>(&blocks(block)[0]),
            set_quants: |block, quants| {
                let quants = quants.first_chunk().expect("the quants of a block");
                blocks_mut::<B>(block)[0].set_quants(quants);
            },
        }
    }
}

impl BlockParts {
    fn new<B: Quants<N>, const N: usize>(block: &B) -> Self {
        let (mut quants, mut scales, mut mins) = ([0; QK_K], [0.0; _], [0.0; _]);
        quants[..N].copy_from_slice(&block.quants());
        for (j, (scale, min)) in scales.iter_mut().zip(&mut mins).take(N / SHARED).enumerate() {
            (*scale, *min) = block.scale_and_min(j * SHARED * B::SUB_BLOCKS / N);
        }
        Self { quants, scales, mins }
    }
}
