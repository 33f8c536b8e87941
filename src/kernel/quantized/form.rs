//! How codes, scales and mins lie in a panel of 16 columns.

use crate::kernel::BlockType;
use crate::kernel::blocks::Block;
use crate::kernel::simd::LANES;

/// The layout of a type's numbers. Types that are laid out alike have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Whether codes have 4 bits, two a byte: those of the first half of a group in the lower bits.
    pub nibbles: bool,
    /// Steps of k that share a scale: 16 or 32.
    pub group: usize,
    /// What is added to codes so that they have no sign.
    pub zero: i32,
    /// Whether scales are followed by mins.
    pub mins: bool,
}

/// Bytes of a panel's scales, or mins, of a group.
const FLOATS: usize = LANES * size_of::<f32>();

impl Form {
    /// # Panics
    /// When the type is not quantized.
    pub fn of(ty: BlockType) -> Self {
        let form = |nibbles: bool, zero: i32, mins: bool| Form { nibbles, group: ty.group_len(), zero, mins };
        match ty {
            BlockType::Q4_0 => form(true, 8, false),
            BlockType::Q4_1 | BlockType::Q4K => form(true, 0, true),
            BlockType::Q5_0 | BlockType::Q8_0 | BlockType::Q6K => form(false, 128, false),
            BlockType::Q5_1 | BlockType::Q5K => form(false, 128, true),
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => panic!("{} is not quantized", ty.name()),
        }
    }

    /// Bytes of the codes of a group of 16 columns.
    pub fn code_bytes(self) -> usize {
        LANES * self.group / if self.nibbles { 2 } else { 1 }
    }

    /// Bytes of a group of 16 columns.
    fn group_bytes(self) -> usize {
        self.code_bytes() + FLOATS * if self.mins { 2 } else { 1 }
    }

    /// Words of 4 bytes of a panel whose columns are `k` long.
    pub fn panel_words(self, k: usize) -> usize {
        self.group_bytes() * (k / self.group) / size_of::<f32>()
    }

    /// Where a column's numbers from `at` on begin: the first byte of its group, and its lane.
    fn place(self, k: usize, column: usize, at: usize) -> (usize, usize) {
        let panel = column / LANES * self.panel_words(k) * size_of::<f32>();
        (panel + at / self.group * self.group_bytes(), column % LANES)
    }

    /// The byte of a group that has the `i`-th code of a lane, and how far to the left it stands there.
    fn code_place(self, lane: usize, i: usize) -> (usize, u32) {
        let half = self.group / 2;
        let (i, shift) = if self.nibbles && i >= half { (i - half, 4) } else { (i, 0) };
        (i / 4 * 4 * LANES + 4 * lane + i % 4, shift)
    }

    /// Puts a column's block, its numbers from `at` on, into panels that hold zeros there.
    pub fn pack(self, data: &mut [f32], k: usize, column: usize, at: usize, len: usize, block: &Block) {
        let bytes = bytes_of(data);
        for g in 0..len / self.group {
            let (first, lane) = self.place(k, column, at + g * self.group);
            let group = &mut bytes[first..first + self.group_bytes()];
            for i in 0..self.group {
                let (place, shift) = self.code_place(lane, i);
                let code = (i32::from(block.codes[g * self.group + i]) + self.zero) as u8;
                group[place] |= code << shift;
            }
            let (_, floats) = group.split_at_mut(self.code_bytes());
            floats[4 * lane..][..4].copy_from_slice(&block.scales[g].to_ne_bytes());
            if self.mins {
                floats[FLOATS + 4 * lane..][..4].copy_from_slice(&block.mins[g].to_ne_bytes());
            }
        }
    }

    /// The numbers of a column, `[k]`.
    pub fn unpack(self, data: &[f32], k: usize, column: usize, numbers: &mut [f32]) {
        let mask = if self.nibbles { 15 } else { 255 };
        let float = |at: usize| data[at / size_of::<f32>()];
        for (g, numbers) in numbers.chunks_exact_mut(self.group).enumerate() {
            let (first, lane) = self.place(k, column, g * self.group);
            let scale = float(first + self.code_bytes() + 4 * lane);
            let min = if self.mins { float(first + self.code_bytes() + FLOATS + 4 * lane) } else { 0.0 };
            for (i, number) in numbers.iter_mut().enumerate() {
                let (place, shift) = self.code_place(lane, i);
                let word = data[(first + place) / 4].to_bits().to_ne_bytes();
                let code = i32::from(word[place % 4] >> shift & mask) - self.zero;
                *number = scale * code as f32 + min;
            }
        }
    }
}

/// Numbers as the bytes that they are.
pub fn bytes_of(words: &mut [f32]) -> &mut [u8] {
    // SAFETY: any bytes are an f32 and the other way round, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
