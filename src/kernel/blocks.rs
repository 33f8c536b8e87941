//! The types that the numbers of a tensor are stored in, as GGUF files have them: plain numbers, and blocks of
//! integers with a scale (ggml's `ggml-common.h`; `quantize_row_*_ref` and `dequantize_row_*` in
//! `ggml-quants.c`, <https://github.com/ggml-org/ggml>).
//!
//! A row is divided into blocks, a block into groups: each number of a group is `scale · code + min`. Codes
//! for given numbers are chosen by candle, which has ggml's searches for the best scales.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::{Number, to_bf16};
use crate::base::{Error, Result};

/// How the numbers of a tensor are stored.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BlockType {
    /// 32 bits.
    F32,
    /// IEEE 754's binary16.
    F16,
    /// The upper 16 bits of an f32.
    Bf16,
    /// 4 bits and a scale for 32 numbers: 4.5 bits a number.
    Q4_0,
    /// 4 bits, a scale and a min for 32 numbers: 5 bits a number.
    Q4_1,
    /// 5 bits and a scale for 32 numbers: 5.5 bits a number.
    Q5_0,
    /// 5 bits, a scale and a min for 32 numbers: 6 bits a number.
    Q5_1,
    /// 8 bits and a scale for 32 numbers: 8.5 bits a number.
    Q8_0,
    /// 4 bits in blocks of 256, whose 8 groups have 6 bits of scale and of min: 4.5 bits a number.
    #[serde(rename = "q4_k")]
    Q4K,
    /// 5 bits in blocks as those of [`BlockType::Q4K`]: 5.5 bits a number.
    #[serde(rename = "q5_k")]
    Q5K,
    /// 6 bits in blocks of 256, whose 16 groups have 8 bits of scale: 6.5625 bits a number.
    #[serde(rename = "q6_k")]
    Q6K,
}

/// What a type is, in one place.
struct Traits {
    ty: BlockType,
    name: &'static str,
    /// `ggml_type`.
    id: u32,
    /// Numbers in a block.
    len: usize,
    /// Bytes of a block.
    bytes: usize,
    /// What candle calls it; `None` for plain numbers.
    candle: Option<GgmlDType>,
}

const fn plain(ty: BlockType, name: &'static str, id: u32, bytes: usize) -> Traits {
    Traits { ty, name, id, len: 1, bytes, candle: None }
}

const fn block(
    ty: BlockType,
    name: &'static str,
    id: u32,
    len: usize,
    bytes: usize,
    as_: GgmlDType,
) -> Traits {
    Traits { ty, name, id, len, bytes, candle: Some(as_) }
}

/// All of them, in the order of [`BlockType`].
const ALL: [Traits; 11] = [
    plain(BlockType::F32, "f32", 0, 4),
    plain(BlockType::F16, "f16", 1, 2),
    plain(BlockType::Bf16, "bf16", 30, 2),
    block(BlockType::Q4_0, "q4_0", 2, 32, 18, GgmlDType::Q4_0),
    block(BlockType::Q4_1, "q4_1", 3, 32, 20, GgmlDType::Q4_1),
    block(BlockType::Q5_0, "q5_0", 6, 32, 22, GgmlDType::Q5_0),
    block(BlockType::Q5_1, "q5_1", 7, 32, 24, GgmlDType::Q5_1),
    block(BlockType::Q8_0, "q8_0", 8, 32, 34, GgmlDType::Q8_0),
    block(BlockType::Q4K, "q4_k", 12, 256, 144, GgmlDType::Q4K),
    block(BlockType::Q5K, "q5_k", 13, 256, 176, GgmlDType::Q5K),
    block(BlockType::Q6K, "q6_k", 14, 256, 210, GgmlDType::Q6K),
];

impl BlockType {
    pub fn all() -> impl Iterator<Item = BlockType> {
        ALL.iter().map(|t| t.ty)
    }

    fn traits(self) -> &'static Traits {
        &ALL[self as usize]
    }

    /// `q4_k`, as params and the command line call it.
    pub fn name(self) -> &'static str {
        self.traits().name
    }

    pub fn of_name(name: &str) -> Option<Self> {
        ALL.iter().find(|t| t.name == name).map(|t| t.ty)
    }

    /// The number that stands for it in GGUF files.
    pub fn id(self) -> u32 {
        self.traits().id
    }

    pub fn of_id(id: u32) -> Option<Self> {
        ALL.iter().find(|t| t.id == id).map(|t| t.ty)
    }

    /// Numbers in a block: a row's length must be a multiple of it.
    pub fn block_len(self) -> usize {
        self.traits().len
    }

    /// Bytes of `n` numbers.
    ///
    /// # Panics
    /// When they are no whole blocks.
    pub fn bytes(self, n: usize) -> usize {
        let Traits { len, bytes, .. } = *self.traits();
        assert!(n.is_multiple_of(len), "{n} numbers are no whole blocks of {}", self.name());
        n / len * bytes
    }

    /// Whether it stores codes, scales and mins rather than numbers.
    pub fn is_quantized(self) -> bool {
        self.traits().candle.is_some()
    }

    /// Numbers that share a scale.
    pub fn group_len(self) -> usize {
        if self == BlockType::Q6K { 16 } else { 32.min(self.block_len()) }
    }

    /// The type for rows of `k` numbers: itself where they are whole blocks, else what llama.cpp takes instead
    /// (`llama_tensor_get_type` in its `llama-quant.cpp`).
    pub fn for_rows_of(self, k: usize) -> Self {
        let other = match self {
            _ if k.is_multiple_of(self.block_len()) => return self,
            BlockType::Q4K => BlockType::Q5_0,
            BlockType::Q5K => BlockType::Q5_1,
            BlockType::Q6K => BlockType::Q8_0,
            _ => BlockType::F16,
        };
        other.for_rows_of(k)
    }

    /// Rounds numbers to this type: the nearest code, by ggml's reference. They are whole blocks.
    ///
    /// # Errors
    /// When there is none for them, as for NaN.
    pub fn encode(self, numbers: &[f32]) -> Result<Vec<u8>> {
        if let Some(i) = numbers.iter().position(|x| !x.is_finite()) {
            return Err(Error::input(format!("number {i} of a tensor is {}", numbers[i])));
        }
        let Some(dtype) = self.traits().candle else { return Ok(self.encode_plain(numbers)) };
        let encoded = Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)
            .and_then(|tensor| Ok(QTensor::quantize(&tensor, dtype)?.data()?.into_owned()));
        encoded.map_err(|e| Error::bug(format!("numbers can't be stored as {}: {e}", self.name())))
    }

    fn encode_plain(self, numbers: &[f32]) -> Vec<u8> {
        match self {
            BlockType::F16 => {
                numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_bits().to_le_bytes()).collect()
            }
            BlockType::Bf16 => numbers.iter().flat_map(|x| to_bf16(*x).to_le_bytes()).collect(),
            _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// The numbers that `bytes` stand for.
    ///
    /// # Panics
    /// When there are not as many bytes as [`BlockType::bytes`] says for `numbers`.
    pub fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        assert_eq!(bytes.len(), self.bytes(numbers.len()), "bytes of {}", self.name());
        match self {
            BlockType::F32 => copy(bytes, numbers, f32::from_le_bytes),
            BlockType::F16 => copy(bytes, numbers, |b| half::f16::from_le_bytes(b).to_f32()),
            BlockType::Bf16 => copy(bytes, numbers, |b| u16::from_le_bytes(b).widened()),
            _ => {
                let Traits { len, bytes: size, .. } = *self.traits();
                let group = self.group_len();
                let mut block = Block::default();
                for (from, to) in bytes.chunks_exact(size).zip(numbers.chunks_exact_mut(len)) {
                    self.unpack(from, &mut block);
                    block.decode(to, group);
                }
            }
        }
    }

    /// Reads a block of a quantized type.
    ///
    /// # Panics
    /// When the bytes are no block of such a type.
    pub fn unpack(self, bytes: &[u8], block: &mut Block) {
        assert_eq!(bytes.len(), self.traits().bytes, "a block of {}", self.name());
        let half = |at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        (block.scales, block.min, block.mins) = ([1; 16], 0.0, [1; 16]);
        match self {
            BlockType::Q4_0 => block.small(half(0), 0.0, None, &bytes[2..], 8),
            BlockType::Q4_1 => block.small(half(0), half(2), None, &bytes[4..], 0),
            BlockType::Q5_0 => block.small(half(0), 0.0, Some(&bytes[2..6]), &bytes[6..], 16),
            BlockType::Q5_1 => block.small(half(0), half(2), Some(&bytes[4..8]), &bytes[8..], 0),
            BlockType::Q8_0 => {
                block.scale = half(0);
                block.codes.iter_mut().zip(&bytes[2..]).for_each(|(code, b)| *code = *b as i8);
            }
            BlockType::Q4K => block.k4([half(0), half(2)], &bytes[4..16], None, &bytes[16..]),
            BlockType::Q5K => block.k4([half(0), half(2)], &bytes[4..16], Some(&bytes[16..48]), &bytes[48..]),
            BlockType::Q6K => block.k6(half(208), bytes),
            _ => panic!("{} has no blocks", self.name()),
        }
    }

    /// The least and the greatest code.
    ///
    /// # Panics
    /// When the type is not quantized.
    pub fn codes(self) -> [i8; 2] {
        match self {
            BlockType::Q4_0 => [-8, 7],
            BlockType::Q5_0 => [-16, 15],
            // Not -128: products of codes may take their absolute value.
            BlockType::Q8_0 => [-127, 127],
            BlockType::Q6K => [-32, 31],
            BlockType::Q4_1 | BlockType::Q4K => [0, 15],
            BlockType::Q5_1 | BlockType::Q5K => [0, 31],
            _ => panic!("{} has no codes", self.name()),
        }
    }

    /// The greatest of the integers that scales of groups are stored as; 1 where a block is one group.
    pub fn scales(self) -> i8 {
        match self {
            BlockType::Q4K | BlockType::Q5K => 63,
            BlockType::Q6K => 127,
            _ => 1,
        }
    }

    /// Appends a block, the inverse of [`BlockType::unpack`].
    ///
    /// # Panics
    /// When the type is not quantized.
    pub fn pack(self, block: &Block, to: &mut Vec<u8>) {
        let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
        if self != BlockType::Q6K {
            to.extend(half(block.scale));
        }
        match self {
            BlockType::Q4_0 => block.push_low(8, to),
            BlockType::Q4_1 => {
                to.extend(half(block.min));
                block.push_low(0, to);
            }
            BlockType::Q5_0 => {
                block.push_fifth(16, to);
                block.push_low(16, to);
            }
            BlockType::Q5_1 => {
                to.extend(half(block.min));
                block.push_fifth(0, to);
                block.push_low(0, to);
            }
            BlockType::Q8_0 => to.extend(block.codes[..32].iter().map(|code| *code as u8)),
            BlockType::Q4K | BlockType::Q5K => {
                to.extend(half(-block.min));
                block.push_scales_and_mins(to);
                block.push_k4(self == BlockType::Q5K, to);
            }
            BlockType::Q6K => {
                block.push_k6(to);
                to.extend(block.scales.iter().map(|scale| *scale as u8));
                to.extend(half(block.scale));
            }
            _ => panic!("{} has no blocks", self.name()),
        }
    }
}

fn copy<const N: usize>(bytes: &[u8], numbers: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    numbers.iter_mut().zip(bytes.as_chunks::<N>().0).for_each(|(x, b)| *x = number(*b));
}

/// A block as integers: a number of a group is `scale · scales[group] · code + min · mins[group]`. Of blocks
/// of 32 numbers only the first 32 codes count, and `scales[0]` and `mins[0]` are 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// IEEE 754's binary16, as is
    pub scale: f32,
    /// this one.
    pub min: f32,
    /// One for each [`BlockType::group_len`] codes, within [`BlockType::scales`].
    pub scales: [i8; 16],
    /// 0 to 63.
    pub mins: [u8; 16],
    /// Within [`BlockType::codes`].
    pub codes: [i8; 256],
}

impl Default for Block {
    fn default() -> Self {
        Block { scale: 0.0, min: 0.0, scales: [1; 16], mins: [1; 16], codes: [0; 256] }
    }
}

impl Block {
    /// The scale and the min of a group.
    pub fn group(&self, group: usize) -> (f32, f32) {
        (self.scale * f32::from(self.scales[group]), self.min * f32::from(self.mins[group]))
    }

    /// The numbers that it stands for, `group` of them with a scale.
    pub fn decode(&self, numbers: &mut [f32], group: usize) {
        let groups = numbers.chunks_mut(group).zip(self.codes.chunks(group));
        for (i, (numbers, codes)) in groups.enumerate() {
            let (scale, min) = self.group(i);
            numbers.iter_mut().zip(codes).for_each(|(x, code)| *x = scale * f32::from(*code) + min);
        }
    }

    /// 32 codes, counted from 0: the lower four bits, those of the first 16 in the lower halves of the bytes.
    fn push_low(&self, zero: i8, to: &mut Vec<u8>) {
        let code = |i: usize| (self.codes[i] + zero) as u8 & 15;
        to.extend((0..16).map(|i| code(i) | code(i + 16) << 4));
    }

    /// The fifth bits of 32 codes.
    fn push_fifth(&self, zero: i8, to: &mut Vec<u8>) {
        let bit = |i: usize| (self.codes[i] + zero) as u8 >> 4 & 1;
        to.extend((0..4).map(|byte| (0..8).fold(0, |all, i| all | bit(8 * byte + i) << i)));
    }

    /// 8 scales and mins of 6 bits each: the inverse of [`scale_and_min`].
    fn push_scales_and_mins(&self, to: &mut Vec<u8>) {
        let (scale, min) = (|i: usize| self.scales[i] as u8, |i: usize| self.mins[i]);
        to.extend((0..4).map(|i| scale(i) | scale(i + 4) >> 4 << 6));
        to.extend((0..4).map(|i| min(i) | min(i + 4) >> 4 << 6));
        to.extend((4..8).map(|i| scale(i) & 15 | (min(i) & 15) << 4));
    }

    /// 8 groups of 32 codes, two of them side by side in each 32 bytes; before them their fifth bits.
    fn push_k4(&self, has_fifth: bool, to: &mut Vec<u8>) {
        let code = |group: usize, i: usize| self.codes[32 * group + i] as u8;
        if has_fifth {
            let fifth = |i: usize| (0..8).fold(0, |all, group| all | (code(group, i) >> 4 & 1) << group);
            to.extend((0..32).map(fifth));
        }
        let pair = |i: usize| (2 * (i / 32), i % 32);
        to.extend((0..128).map(pair).map(|(group, i)| code(group, i) & 15 | code(group + 1, i) << 4));
    }

    /// The lower four bits of 256 codes, then the upper two.
    fn push_k6(&self, to: &mut Vec<u8>) {
        let code =
            |half: usize, quarter: usize, i: usize| (self.codes[128 * half + 32 * quarter + i] + 32) as u8;
        for half in 0..2 {
            let low = |i: usize| code(half, i / 32, i % 32) & 15 | code(half, i / 32 + 2, i % 32) << 4;
            to.extend((0..64).map(low));
        }
        for half in 0..2 {
            let high =
                |i: usize| (0..4).fold(0, |all, quarter| all | code(half, quarter, i) >> 4 << (2 * quarter));
            to.extend((0..32).map(high));
        }
    }

    /// 32 codes of 4 bits, the first 16 in the lower halves of the bytes; a fifth bit of each in `high`.
    fn small(&mut self, scale: f32, min: f32, high: Option<&[u8]>, low: &[u8], zero: i8) {
        (self.scale, self.min) = (scale, min);
        let fifth = |i: usize| high.map_or(0, |high| (high[i / 8] >> (i % 8) & 1) << 4);
        for (i, byte) in low.iter().enumerate() {
            self.codes[i] = (byte & 15 | fifth(i)) as i8 - zero;
            self.codes[i + 16] = (byte >> 4 | fifth(i + 16)) as i8 - zero;
        }
    }

    /// 8 groups of 32 with 6 bits of scale and of min each.
    fn k4(&mut self, [d, dmin]: [f32; 2], packed: &[u8], high: Option<&[u8]>, low: &[u8]) {
        (self.scale, self.min) = (d, -dmin);
        for group in 0..8 {
            let (scale, min) = scale_and_min(group, packed);
            (self.scales[group], self.mins[group]) = (scale as i8, min);
            for i in 0..32 {
                let byte = low[group / 2 * 32 + i];
                let four = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
                let fifth = high.map_or(0, |high| (high[i] >> group & 1) << 4);
                self.codes[group * 32 + i] = (four | fifth) as i8;
            }
        }
    }

    /// 16 groups of 16 with 8 bits of scale each.
    fn k6(&mut self, d: f32, bytes: &[u8]) {
        let (low, high, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
        self.scale = d;
        self.scales.iter_mut().zip(scales).for_each(|(scale, byte)| *scale = *byte as i8);
        for half in 0..2 {
            let (low, high) = (&low[64 * half..], &high[32 * half..]);
            for i in 0..128 {
                let (quarter, j) = (i / 32, i % 32);
                let byte = low[j + 32 * (quarter % 2)];
                let four = if quarter < 2 { byte & 15 } else { byte >> 4 };
                let two = high[j] >> (2 * quarter) & 3;
                self.codes[128 * half + i] = (four | two << 4) as i8 - 32;
            }
        }
    }
}

/// The `group`-th scale and min of 8, of 6 bits each (`get_scale_min_k4`).
fn scale_and_min(group: usize, packed: &[u8]) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let (low, high) = (packed[group + 4], |at: usize| packed[at] >> 6 << 4);
    (low & 15 | high(group - 4), low >> 4 | high(group))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::numbers;

    #[test]
    fn names_and_ids_lead_back() {
        for ty in BlockType::all() {
            assert_eq!((BlockType::of_name(ty.name()), BlockType::of_id(ty.id())), (Some(ty), Some(ty)));
            assert_eq!(serde_json::to_value(ty).unwrap(), ty.name());
        }
        assert_eq!((BlockType::of_name("q9"), BlockType::of_id(99)), (None, None));
    }

    /// Our reading of blocks against candle's.
    #[test]
    fn blocks_are_read_as_candle_reads_them() {
        let numbers = numbers("weights", 1024, 0.05);
        for ty in BlockType::all() {
            let bytes = ty.encode(&numbers).unwrap();
            let mut found = vec![0.0; numbers.len()];
            ty.decode(&bytes, &mut found);
            if let Some(dtype) = ty.traits().candle {
                let tensor = Tensor::from_slice(&numbers, 1024, &Device::Cpu).unwrap();
                let tensor = QTensor::quantize(&tensor, dtype).unwrap();
                let expected: Vec<f32> = tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap();
                assert_eq!(found, expected, "{ty:?}");
            }
            let max = numbers.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(max < 0.02, "{ty:?}: {max}");
        }
    }

    #[test]
    fn blocks_that_are_packed_are_unpacked_alike() {
        let mut rng = crate::base::Rng::new(1, "blocks");
        for ty in BlockType::all().filter(|ty| ty.is_quantized()) {
            let has_min = ty.codes()[0] == 0;
            for _ in 0..50 {
                let mut within = |low: i8, high: i8| {
                    low.wrapping_add(rng.index((i32::from(high) - i32::from(low) + 1) as usize) as i8)
                };
                let [low, high] = ty.codes();
                let mut block =
                    Block { scale: 0.25, min: if has_min { -0.5 } else { 0.0 }, ..Default::default() };
                block.codes[..ty.block_len()].fill_with(|| within(low, high));
                if ty.scales() > 1 {
                    block.scales.fill_with(|| within(if has_min { 0 } else { -127 }, ty.scales()));
                    block.mins.fill_with(|| within(0, 63) as u8);
                }
                let (mut bytes, mut found) = (Vec::new(), Block::default());
                ty.pack(&block, &mut bytes);
                ty.unpack(&bytes, &mut found);
                assert_eq!(found.codes[..ty.block_len()], block.codes[..ty.block_len()], "{ty:?}");
                for group in 0..ty.block_len() / ty.group_len() {
                    assert_eq!(found.group(group), block.group(group), "{ty:?} {group}");
                }
            }
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_llama_cpps_other_type() {
        let of = |ty: BlockType, k| ty.for_rows_of(k).name();
        assert_eq!(of(BlockType::Q4K, 256), "q4_k");
        assert_eq!([128, 96].map(|k| of(BlockType::Q4K, k)), ["q5_0"; 2]);
        assert_eq!(of(BlockType::Q6K, 64), "q8_0");
        assert_eq!([of(BlockType::Q5K, 44), of(BlockType::Q8_0, 44)], ["f16"; 2]);
        assert_eq!(of(BlockType::F32, 3), "f32");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let mut numbers = vec![0.0; 32];
        numbers[7] = f32::NAN;
        assert!(BlockType::Q8_0.encode(&numbers).unwrap_err().message().contains("number 7"));
    }
}
