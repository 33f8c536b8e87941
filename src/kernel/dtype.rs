//! The numbers that matrix products multiply.

/// What products multiply. Sums are f32.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// Rounded to 16 bits, 8 of them of precision; products inside attention are f32. Meant for CPUs with
    /// AVX512-BF16; others compute the same bits with f32 instructions.
    Bf16,
    /// Rounded to the same 16 bits, with sums in the order of Intel's matrix tiles (AMX), for which it is meant;
    /// other CPUs compute the same bits with f32 instructions.
    #[serde(rename = "bf16_tile")]
    Bf16Tile,
}

impl Dtype {
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::Bf16Tile];

    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::Bf16Tile => "bf16_tile",
        }
    }
}
