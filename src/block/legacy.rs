//! How the legacy types (blocks of 32) and IQ4 lay out 32 small integers: the low four bits of number j and of number j + 16 share byte j; a fifth bit goes to bit j of a
//! 32-bit word.

use super::layout::QK;

/// Packs the low four bits of 32 numbers.
#[inline(always)]
pub(crate) fn pack_nibbles(numbers: &[u8; QK]) -> [u8; QK / 2] {
    std::array::from_fn(|j| (numbers[j] & 0x0f) | (numbers[j + QK / 2] << 4))
}

/// Packs the fifth bits of 32 numbers.
#[inline(always)]
pub(super) fn pack_fifth_bits(numbers: &[u8; QK]) -> [u8; 4] {
    let (eights, _) = numbers.as_chunks::<8>();
    std::array::from_fn(|k| {
        // the product moves bit 8 j to bit 56 + j
        let fifth = (u64::from_le_bytes(eights[k]) >> 4) & 0x0101_0101_0101_0101;
        (fifth.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
    })
}

/// Number `j` (0..16) and number `j + 16`, four bits each.
#[inline(always)]
pub(crate) fn unpack_nibbles(qs: &[u8; QK / 2], j: usize) -> (i32, i32) {
    (i32::from(qs[j] & 0x0f), i32::from(qs[j] >> 4))
}

/// Number `j` (0..16) and number `j + 16`, five bits each.
#[inline(always)]
pub(crate) fn unpack_five_bits(qs: &[u8; QK / 2], qh: [u8; 4], j: usize) -> (i32, i32) {
    let (low, high) = unpack_nibbles(qs, j);
    let qh = u32::from_le_bytes(qh);
    let fifth = |bit: usize| ((qh >> bit) & 1) as i32 * 16;
    (low + fifth(j), high + fifth(j + QK / 2))
}

/// The 32 numbers, four bits each.
#[inline(always)]
pub(super) fn all_nibbles(qs: &[u8; QK / 2]) -> [u8; QK] {
    in_halves(|j| unpack_nibbles(qs, j))
}

/// The 32 numbers, five bits each.
#[inline(always)]
pub(super) fn all_five_bits(qs: &[u8; QK / 2], qh: &[u8; 4]) -> [u8; QK] {
    in_halves(|j| unpack_five_bits(qs, *qh, j))
}

/// 32 numbers of which `pair` gives numbers j and j + 16.
#[inline(always)]
fn in_halves(pair: impl Fn(usize) -> (i32, i32)) -> [u8; QK] {
    let mut numbers = [0u8; QK];
    for j in 0..QK / 2 {
        let (low, high) = pair(j);
        (numbers[j], numbers[j + QK / 2]) = (low as u8, high as u8);
    }
    numbers
}

/// Gives a block its `numbers` and `pack`: the fields that hold them, how each is packed, and how all are unpacked.
macro_rules! packed_numbers {
    ($block:ident: $($field:ident = $pack:ident),+; $unpack:ident) => {
        impl $block {
            /// The numbers, each as wide as the type's.
            #[inline(always)]
            pub(crate) fn numbers(&self) -> [u8; QK] {
                $unpack($(&self.$field),+)
            }

            /// Stores the numbers, each as wide as the type's.
            #[inline(always)]
            pub(crate) fn pack(&mut self, numbers: &[u8; QK]) {
                $(self.$field = $pack(numbers);)+
            }
        }
    };
}
pub(super) use packed_numbers;
