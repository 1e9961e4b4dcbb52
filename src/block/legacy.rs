//! How the legacy types (blocks of 32) and IQ4 store 32 small integers. The low four bits of quant j and of quant j +
//! 16 share byte j. The fifth bit of quant j is bit j of a 32-bit word.

use super::layout::QK;

/// Packs the low four bits of 32 quants.
#[inline(always)]
pub(crate) fn pack_nibbles(quants: &[u8; QK]) -> [u8; QK / 2] {
    std::array::from_fn(|j| (quants[j] & 0x0f) | (quants[j + QK / 2] << 4))
}

/// Packs the fifth bits of 32 quants.
#[inline(always)]
pub(super) fn pack_fifth_bits(quants: &[u8; QK]) -> [u8; 4] {
    let (eights, _) = quants.as_chunks::<8>();
    std::array::from_fn(|k| {
        // the product moves bit 8 j to bit 56 + j
        let fifth = (u64::from_le_bytes(eights[k]) >> 4) & 0x0101_0101_0101_0101;
        (fifth.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
    })
}

/// Quant `j` (0..16) and quant `j + 16`, four bits each.
#[inline(always)]
pub(crate) fn unpack_nibbles(qs: &[u8; QK / 2], j: usize) -> (i32, i32) {
    (i32::from(qs[j] & 0x0f), i32::from(qs[j] >> 4))
}

/// Quant `j` (0..16) and quant `j + 16`, five bits each.
#[inline(always)]
pub(crate) fn unpack_five_bits(qs: &[u8; QK / 2], qh: [u8; 4], j: usize) -> (i32, i32) {
    let (low, high) = unpack_nibbles(qs, j);
    let qh = u32::from_le_bytes(qh);
    let fifth = |bit: usize| ((qh >> bit) & 1) as i32 * 16;
    (low + fifth(j), high + fifth(j + QK / 2))
}

/// The 32 quants, four bits each.
#[inline(always)]
pub(super) fn all_nibbles(qs: &[u8; QK / 2]) -> [u8; QK] {
    in_halves(|j| unpack_nibbles(qs, j))
}

/// The 32 quants, five bits each.
#[inline(always)]
pub(super) fn all_five_bits(qs: &[u8; QK / 2], qh: &[u8; 4]) -> [u8; QK] {
    in_halves(|j| unpack_five_bits(qs, *qh, j))
}

/// 32 quants, where `pair` gives quants j and j + 16.
#[inline(always)]
fn in_halves(pair: impl Fn(usize) -> (i32, i32)) -> [u8; QK] {
    let mut quants = [0u8; QK];
    for j in 0..QK / 2 {
        let (low, high) = pair(j);
        (quants[j], quants[j + QK / 2]) = (low as u8, high as u8);
    }
    quants
}

/// Gives a block its `quants` and `pack`: the fields that hold them, how each is packed, and how all are unpacked.
macro_rules! packed_quants {
    ($block:ident: $($field:ident = $pack:ident),+; $unpack:ident) => {
        impl $block {
            /// The quants, each as wide as the type's.
            #[inline(always)]
            pub(crate) fn quants(&self) -> [u8; QK] {
                $unpack($(&self.$field),+)
            }

            /// Stores the quants, each as wide as the type's.
            #[inline(always)]
            pub(crate) fn pack(&mut self, quants: &[u8; QK]) {
                $(self.$field = $pack(quants);)+
            }
        }
    };
}
pub(super) use packed_quants;
