//! Unpacking blocks for panels: unsigned quants and scales.

use super::vector::PanelVector;
use crate::block::iq4::{OFFSET, UNSIGNED};
use crate::block::k_scales::unpack;
use crate::block::legacy::{unpack_five_bits, unpack_nibbles};
use crate::block::q4_k::split_nibbles;
use crate::block::{
    Block, BlockIQ4NL, BlockIQ4XS, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0,
    BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, QK, q3_k,
};

/// Buffers for the parts of a block.
pub(crate) struct Unpacked<'a> {
    pub quants: &'a mut [u8],
    /// The scale of each sub-block.
    pub scales: &'a mut [f32],
    /// The value that is added to the weights of each sub-block; only written if [`PanelBlock::ADDS`].
    pub adds: &'a mut [f32],
}

/// A block whose weights are `scale · (q - OFFSET) + add`, where q has eight bits. [`Self::SUB`] weights share `scale`
/// and `add`.
pub(crate) trait PanelBlock: Block {
    /// Weights in a sub-block, 16 or 32.
    const SUB: usize = 32;
    /// Subtracted from every quant.
    const OFFSET: i32 = 0;
    /// Whether `add` can differ from 0.
    const ADDS: bool = false;
    /// Whether quants may use the eighth bit. Only x86-64 needs to know.
    #[cfg_attr(any(portable, not(target_arch = "x86_64")), allow(dead_code))]
    const WIDE: bool = false;

    /// Unpacks the block.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>);
}

#[inline(always)]
unsafe fn half<V: PanelVector>(bytes: [u8; 2]) -> f32 {
    V::half(u16::from_le_bytes(bytes))
}

#[inline(always)]
fn k_scales(d: f32, dmin: f32, packed: &[u8; 12], scales: &mut [f32], adds: &mut [f32]) {
    for (j, (scale, add)) in scales.iter_mut().zip(adds).enumerate() {
        let (s, m) = unpack(packed, j);
        (*scale, *add) = (d * f32::from(s), -(dmin * f32::from(m)));
    }
}

impl PanelBlock for BlockQ2K {
    const SUB: usize = 16;
    const ADDS: bool = true;

    #[inline(always)]
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
        to.quants.copy_from_slice(&self.quants());
        for (j, (scale, add)) in to.scales.iter_mut().zip(to.adds).enumerate() {
            let (s, m) = self.scale_and_min(j);
            (*scale, *add) = (s, -m);
        }
    }
}

impl PanelBlock for BlockQ3K {
    const SUB: usize = 16;
    const OFFSET: i32 = q3_k::HALF;

    #[inline(always)]
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
        to.quants.copy_from_slice(&self.quants());
        to.scales.copy_from_slice(&self.all_scales());
    }
}

impl PanelBlock for BlockQ4K {
    const ADDS: bool = true;

    #[inline(always)]
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
        split_nibbles(&self.qs, to.quants);
        let (d, dmin) = (half::<V>(self.d), half::<V>(self.dmin));
        k_scales(d, dmin, &self.scales, to.scales, to.adds);
    }
}

impl PanelBlock for BlockQ5K {
    const ADDS: bool = true;

    #[inline(always)]
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
        split_nibbles(&self.qs, to.quants);
        for (j, quants) in to.quants.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (q, h) in quants.iter_mut().zip(self.qh) {
                *q |= ((h >> j) & 1) << 4;
            }
        }
        let (d, dmin) = (half::<V>(self.d), half::<V>(self.dmin));
        k_scales(d, dmin, &self.scales, to.scales, to.adds);
    }
}

impl PanelBlock for BlockQ6K {
    const SUB: usize = 16;
    const OFFSET: i32 = 32;

    #[inline(always)]
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
        let parts = self.ql.as_chunks::<64>().0.iter().zip(self.qh.as_chunks::<32>().0);
        for ((ql, qh), out) in parts.zip(to.quants.as_chunks_mut::<128>().0) {
            for i in 0..32 {
                out[i] = (ql[i] & 0x0f) | ((qh[i] & 3) << 4);
                out[i + 32] = (ql[i + 32] & 0x0f) | ((qh[i] >> 2 & 3) << 4);
                out[i + 64] = (ql[i] >> 4) | ((qh[i] >> 4 & 3) << 4);
                out[i + 96] = (ql[i + 32] >> 4) | ((qh[i] >> 6) << 4);
            }
        }
        let d = half::<V>(self.d);
        for (scale, &s) in to.scales.iter_mut().zip(&self.scales) {
            *scale = d * f32::from(s as i8);
        }
    }
}

impl PanelBlock for BlockQ8_0 {
    const OFFSET: i32 = 128;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
        for (out, q) in to.quants.iter_mut().zip(self.qs) {
            *out = q ^ 0x80;
        }
        to.scales[0] = half::<V>(self.d);
    }
}

impl PanelBlock for BlockIQ4NL {
    const OFFSET: i32 = OFFSET;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
        let values = V::look_up(&UNSIGNED, &self.qs);
        to.quants.copy_from_slice(&values);
        to.scales[0] = half::<V>(self.d);
    }
}

impl PanelBlock for BlockIQ4XS {
    const OFFSET: i32 = OFFSET;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
        for (quants, qs) in to.quants.as_chunks_mut::<QK>().0.iter_mut().zip(&self.qs) {
            *quants = V::look_up(&UNSIGNED, qs);
        }
        let d = half::<V>(self.d);
        for (j, scale) in to.scales.iter_mut().enumerate() {
            *scale = d * self.scale(j) as f32;
        }
    }
}

/// The legacy types of four and five bits. `$pair` gives quants j and j + 16. Their `quants` would give the same, but
/// five bits through an array take twice the time.
macro_rules! legacy_quants {
    ($block:ident, $offset:literal, $pair:expr $(, $add:expr)?) => {
        impl PanelBlock for $block {
            const OFFSET: i32 = $offset;
            $(const ADDS: bool = { let _: fn(&Self) -> [u8; 2] = $add; true };)?

            #[inline(always)]
            unsafe fn unpack<V: PanelVector>(&self, to: Unpacked<'_>) {
                for j in 0..QK / 2 {
                    let pair: (i32, i32) = $pair(self, j);
                    (to.quants[j], to.quants[j + QK / 2]) = (pair.0 as u8, pair.1 as u8);
                }
                to.scales[0] = half::<V>(self.d);
                    $(to.adds[0] = half::<V>($add(self));)?
            }
        }
    };
}

legacy_quants!(BlockQ4_0, 8, |b: &Self, j| unpack_nibbles(&b.qs, j));
legacy_quants!(BlockQ4_1, 0, |b: &Self, j| unpack_nibbles(&b.qs, j), |b: &Self| b.m);
legacy_quants!(BlockQ5_0, 16, |b: &Self, j| unpack_five_bits(&b.qs, b.qh, j));
legacy_quants!(BlockQ5_1, 0, |b: &Self, j| unpack_five_bits(&b.qs, b.qh, j), |b: &Self| b.m);
