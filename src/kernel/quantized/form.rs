//! How codes, scales and mins lie in a panel of 16 columns, and how products with them are summed.
//!
//! A panel is a sequence of units: a group of 32 steps of k, or a block of 256 whose groups have integers for
//! scales.
//!
//! ```text
//!  group of 32    codes, 16 scales, 16 mins
//!  block of 256   codes of each group, 16 scales of each group, 16 mins of each, 16 factors of scales, 16 of mins
//! ```
//!
//! Scales of groups of 32 and factors are f32; the scales of a block are i8, its mins u8, those of two groups side
//! by side.

use crate::kernel::BlockType;
use crate::kernel::blocks::Block;
use crate::kernel::simd::LANES;

/// How a code is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// 4 bits, two a byte: those of the first half of a group in the lower bits.
    Nibbles,
    /// A byte from 0 to 127.
    Small,
    /// A byte from 0 to 255.
    Bytes,
}

/// How a column's products are summed: each as ggml does on x86-64 with AVX2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// One sum, to which each group adds (`ggml_gemv_q4_0_8x8_q8_0`).
    Groups,
    /// Eight sums; to the i-th, steps 4i to 4i + 3 of each group add (`ggml_vec_dot_q8_0_q8_0`).
    Quads,
    /// Two sums, of scales and of mins, to which each 256 steps add (`ggml_gemv_q4_K_8x8_q8_K`).
    Blocks,
}

/// The layout of a type's numbers. Types that are laid out alike have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub codes: Codes,
    /// Steps of k that share a scale: 16 or 32.
    pub group: usize,
    /// What is added to codes so that they have no sign.
    pub zero: i32,
    /// Whether there are mins.
    pub mins: bool,
    pub sums: Sums,
}

/// A form that loops are compiled for.
pub trait Layout {
    const FORM: Form;
}

macro_rules! layouts {
    ($($name:ident: $codes:ident, $group:literal, $zero:literal, $mins:literal, $sums:ident;)*) => {$(
        pub struct $name;
        impl Layout for $name {
            const FORM: Form =
                Form { codes: Codes::$codes, group: $group, zero: $zero, mins: $mins, sums: Sums::$sums };
        }
    )*};
}

layouts! {
    Q4_0: Nibbles, 32, 8, false, Groups;
    Q4_1: Nibbles, 32, 0, true, Groups;
    Q5_1: Small, 32, 0, true, Groups;
    Q8_0: Bytes, 32, 128, false, Quads;
    Q4K: Nibbles, 32, 0, true, Blocks;
    Q5K: Small, 32, 0, true, Blocks;
    Q6K: Small, 16, 32, false, Blocks;
}

/// Bytes of a panel's scales, or mins, of a group, as f32.
pub const FLOATS: usize = LANES * size_of::<f32>();

/// Steps of a block.
pub const BLOCK: usize = 256;

impl Form {
    /// # Panics
    /// When the type is not quantized.
    pub fn of(ty: BlockType) -> Self {
        match ty {
            BlockType::Q4_0 => Q4_0::FORM,
            BlockType::Q4_1 => Q4_1::FORM,
            BlockType::Q5_1 => Q5_1::FORM,
            BlockType::Q5_0 | BlockType::Q8_0 => Q8_0::FORM,
            BlockType::Q4K => Q4K::FORM,
            BlockType::Q5K => Q5K::FORM,
            BlockType::Q6K => Q6K::FORM,
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => panic!("{} is not quantized", ty.name()),
        }
    }

    /// Steps of a unit.
    pub const fn steps(self) -> usize {
        match self.sums {
            Sums::Blocks => BLOCK,
            Sums::Groups | Sums::Quads => self.group,
        }
    }

    /// Bytes of the codes of a group of 16 columns.
    pub const fn code_bytes(self) -> usize {
        match self.codes {
            Codes::Nibbles => LANES * self.group / 2,
            Codes::Small | Codes::Bytes => LANES * self.group,
        }
    }

    /// Where a unit's integers of scales begin.
    pub const fn scales_at(self) -> usize {
        self.code_bytes() * (self.steps() / self.group)
    }

    /// Where a block's integers of mins begin.
    pub const fn mins_at(self) -> usize {
        self.scales_at() + LANES * (BLOCK / self.group)
    }

    /// Where a unit's f32 begin: 16 for scales, and 16 for mins if there are mins.
    pub const fn floats_at(self) -> usize {
        match (self.sums, self.mins) {
            (Sums::Blocks, true) => self.mins_at() + LANES * (BLOCK / self.group),
            (Sums::Blocks, false) => self.mins_at(),
            (Sums::Groups | Sums::Quads, _) => self.scales_at(),
        }
    }

    /// Bytes of a unit.
    pub const fn unit_bytes(self) -> usize {
        self.floats_at() + FLOATS * if self.mins { 2 } else { 1 }
    }

    /// Words of 4 bytes of a panel whose columns are `k` long.
    pub fn panel_words(self, k: usize) -> usize {
        self.unit_bytes() * (k / self.steps()) / size_of::<f32>()
    }

    /// The bytes of a column's `unit`-th unit, and the column's lane there.
    fn place(self, k: usize, column: usize, unit: usize) -> (std::ops::Range<usize>, usize) {
        let panel = column / LANES * self.panel_words(k) * size_of::<f32>();
        let first = panel + unit * self.unit_bytes();
        (first..first + self.unit_bytes(), column % LANES)
    }

    /// The byte of a unit that has the `i`-th code of a lane, and how far to the left it stands there.
    fn code_place(self, lane: usize, i: usize) -> (usize, u32) {
        let (first, i, half) = (i / self.group * self.code_bytes(), i % self.group, self.group / 2);
        let (i, shift) = if self.codes == Codes::Nibbles && i >= half { (i - half, 4) } else { (i, 0) };
        (first + i / 4 * 4 * LANES + 4 * lane + i % 4, shift)
    }

    /// The byte that has a lane's integer of the min of a group.
    fn min_place(self, lane: usize, group: usize) -> usize {
        self.mins_at() + group / 2 * 2 * LANES + 2 * lane + group % 2
    }

    /// Puts a column's `unit`-th block into panels that hold zeros there.
    pub fn pack(self, data: &mut [f32], k: usize, column: usize, unit: usize, block: &Block) {
        let (range, lane) = self.place(k, column, unit);
        let unit = &mut bytes_of(data)[range];
        for (i, code) in block.codes[..self.steps()].iter().enumerate() {
            let (place, shift) = self.code_place(lane, i);
            unit[place] |= ((i32::from(*code) + self.zero) as u8) << shift;
        }
        if self.sums == Sums::Blocks {
            for group in 0..BLOCK / self.group {
                unit[self.scales_at() + LANES * group + lane] = block.scales[group] as u8;
                if self.mins {
                    unit[self.min_place(lane, group)] = block.mins[group];
                }
            }
        }
        let floats = &mut unit[self.floats_at()..];
        floats[4 * lane..][..4].copy_from_slice(&block.scale.to_ne_bytes());
        if self.mins {
            floats[FLOATS + 4 * lane..][..4].copy_from_slice(&block.min.to_ne_bytes());
        }
    }

    /// A column's `unit`-th block, the inverse of [`Form::pack`].
    pub fn unpack(self, data: &[f32], k: usize, column: usize, unit: usize) -> Block {
        let (range, lane) = self.place(k, column, unit);
        let words = &data[range.start / 4..range.end / 4];
        let byte = |at: usize| words[at / 4].to_bits().to_ne_bytes()[at % 4];
        let float = |at: usize| words[self.floats_at() / 4 + at];
        let mut block = Block { scale: float(lane), ..Block::default() };
        let mask = if self.codes == Codes::Nibbles { 15 } else { 255 };
        for (i, code) in block.codes[..self.steps()].iter_mut().enumerate() {
            let (place, shift) = self.code_place(lane, i);
            *code = (i32::from(byte(place) >> shift & mask) - self.zero) as i8;
        }
        if self.mins {
            block.min = float(LANES + lane);
        }
        if self.sums == Sums::Blocks {
            for group in 0..BLOCK / self.group {
                block.scales[group] = byte(self.scales_at() + LANES * group + lane) as i8;
                if self.mins {
                    block.mins[group] = byte(self.min_place(lane, group));
                }
            }
        }
        block
    }
}

/// Numbers as the bytes that they are.
pub fn bytes_of(words: &mut [f32]) -> &mut [u8] {
    // SAFETY: any bytes are an f32 and the other way round, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
