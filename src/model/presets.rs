//! Architectures with a name.

use super::config::{Activation, Config, Init, Norm, Placement, Position};
use crate::base::{Error, Result, suggest};

/// A named architecture.
pub struct Preset {
    pub name: &'static str,
    /// What it is, on one line.
    pub about: &'static str,
    pub config: Config,
}

/// GPT-2's parts: learned positions, LayerNorm before each sublayer, GELU, biases, a tied output.
pub const fn gpt2(
    vocab_size: usize,
    d_model: usize,
    n_layer: usize,
    n_head: usize,
    seq_len: usize,
) -> Config {
    Config {
        vocab_size,
        d_model,
        n_layer,
        n_head,
        n_kv_head: n_head,
        d_head: d_model / n_head,
        d_ff: 4 * d_model,
        seq_len,
        dropout: 0.1,
        position: Position::Learned,
        rope_base: 10_000.0,
        rope_scaling: None,
        norm: Norm::LayerNorm,
        norm_weight: true,
        norm_bias: true,
        norm_eps: 1e-5,
        placement: Placement::Pre,
        qk_norm: false,
        embed_norm: false,
        embed_scale: false,
        residual_mix: false,
        activation: Activation::GeluTanh,
        gated: false,
        attn_bias: true,
        mlp_bias: true,
        head_bias: false,
        tied: true,
        logit_cap: None,
        init: Init::Gpt2,
    }
}

/// Vaswani et al.'s decoder: the norm behind each sublayer, sines and cosines, Xavier's weights.
pub const fn post_norm(
    vocab_size: usize,
    d_model: usize,
    n_layer: usize,
    n_head: usize,
    seq_len: usize,
) -> Config {
    Config {
        position: Position::Sinusoidal,
        placement: Placement::Post,
        activation: Activation::Gelu,
        tied: false,
        init: Init::Xavier,
        ..gpt2(vocab_size, d_model, n_layer, n_head, seq_len)
    }
}

/// Llama's parts: RMSNorm, rotary positions, SwiGLU, no biases.
pub const fn llama(
    vocab_size: usize,
    d_model: usize,
    n_layer: usize,
    n_head: usize,
    seq_len: usize,
) -> Config {
    Config {
        position: Position::Rotary,
        norm: Norm::RmsNorm,
        norm_bias: false,
        activation: Activation::Silu,
        gated: true,
        attn_bias: false,
        mlp_bias: false,
        dropout: 0.0,
        ..gpt2(vocab_size, d_model, n_layer, n_head, seq_len)
    }
}

/// Llama's parts and norms of queries and keys: what leaves as Qwen3.
pub const fn modern(
    vocab_size: usize,
    d_model: usize,
    n_layer: usize,
    n_head: usize,
    d_ff: usize,
    seq_len: usize,
) -> Config {
    Config {
        d_ff,
        qk_norm: true,
        init: Init::ZeroOutput,
        ..llama(vocab_size, d_model, n_layer, n_head, seq_len)
    }
}

/// The named architectures, the smallest of each kind first.
pub static PRESETS: [Preset; 21] = [
    Preset {
        name: "tiny",
        about: "for tests and for looking at: trains in seconds",
        config: gpt2(512, 32, 2, 2, 64),
    },
    Preset { name: "mini", about: "GPT-2's shape", config: gpt2(2_048, 64, 2, 2, 128) },
    Preset { name: "tinylm-1.5m", about: "GPT-2's shape", config: gpt2(5_000, 128, 3, 4, 128) },
    Preset { name: "small", about: "GPT-2's shape", config: gpt2(5_000, 256, 4, 4, 256) },
    Preset { name: "medium", about: "GPT-2's shape", config: gpt2(10_200, 512, 6, 8, 256) },
    Preset { name: "slm", about: "GPT-2's vocabulary on a small body", config: gpt2(50_257, 384, 6, 6, 128) },
    Preset {
        name: "modern-1.5m",
        about: "RMSNorm, RoPE, QK-norm and SwiGLU; saved as Qwen3",
        config: modern(4_096, 128, 3, 4, 448, 128),
    },
    Preset {
        name: "modern-small",
        about: "as `modern-1.5m`, larger",
        config: modern(5_000, 256, 4, 4, 704, 256),
    },
    Preset {
        name: "modern-medium",
        about: "as `modern-1.5m`, larger",
        config: modern(10_200, 512, 6, 8, 1_376, 256),
    },
    Preset {
        name: "record-1.5m",
        about: "as `modern-1.5m`, with a norm of the embedding and a mix of it into each block",
        config: Config { embed_norm: true, residual_mix: true, ..modern(4_096, 128, 3, 4, 448, 128) },
    },
    Preset {
        name: "stories-260k",
        about: "karpathy's TinyStories model, in Llama's shape",
        config: Config { n_kv_head: 4, d_ff: 172, ..llama(512, 64, 5, 8, 512) },
    },
    Preset {
        name: "conversational",
        about: "post-norm, sinusoidal positions, an untied output with a bias",
        config: Config { head_bias: true, ..post_norm(10_200, 512, 8, 8, 256) },
    },
    Preset {
        name: "transformer-tiny",
        about: "post-norm, sinusoidal positions, scaled embeddings, an untied output",
        config: Config { embed_scale: true, ..post_norm(1_000, 128, 2, 4, 256) },
    },
    Preset {
        name: "transformer-small",
        about: "as `transformer-tiny`, larger",
        config: Config { embed_scale: true, ..post_norm(5_000, 256, 4, 4, 512) },
    },
    Preset {
        name: "transformer-medium",
        about: "as `transformer-tiny`, larger",
        config: Config { embed_scale: true, ..post_norm(10_000, 512, 6, 8, 1_024) },
    },
    Preset {
        name: "transformer-large",
        about: "as `transformer-tiny`, larger",
        config: Config { embed_scale: true, ..post_norm(50_000, 768, 12, 12, 2_048) },
    },
    Preset {
        name: "gqa-26m",
        about: "grouped queries, RoPE of base 1e6, SwiGLU",
        config: Config {
            n_kv_head: 2,
            d_ff: 1_408,
            rope_base: 1e6,
            init: Init::Normal,
            ..llama(6_400, 512, 8, 8, 1_024)
        },
    },
    Preset {
        name: "gqa-104m",
        about: "as `gqa-26m`, larger",
        config: Config {
            n_kv_head: 2,
            d_ff: 2_048,
            rope_base: 1e6,
            init: Init::Normal,
            ..llama(6_400, 768, 16, 8, 1_024)
        },
    },
    Preset {
        name: "go-tiny",
        about: "nine words, one layer of width 4; attention without biases, an untied output",
        config: Config { d_ff: 4, dropout: 0.0, attn_bias: false, tied: false, ..gpt2(9, 4, 1, 2, 6) },
    },
    Preset {
        name: "slm-50m",
        about: "GPT-2's shape with exact GELU and an untied output",
        config: Config { tied: false, ..SLM_50M },
    },
    Preset { name: "slm-50m-tied", about: "as `slm-50m`, with a tied output", config: SLM_50M },
];

/// nanoGPT's shape for stories.
const SLM_50M: Config = Config { activation: Activation::Gelu, ..gpt2(50_257, 384, 6, 6, 128) };

/// The architecture called `name`.
///
/// # Errors
/// When there is none; says which there are.
pub fn preset(name: &str) -> Result<&'static Config> {
    PRESETS.iter().find(|p| p.name == name).map(|p| &p.config).ok_or_else(|| {
        let names = || PRESETS.iter().map(|p| p.name);
        Error::usage(format!("there is no preset `{name}`"))
            .suggest(suggest::closest(name, names()))
            .help(format!("the presets are {}", suggest::list(names())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts of the programs that these architectures come from.
    #[test]
    fn presets_have_the_parameters_of_their_models() {
        for (name, parameters) in [
            ("tinylm-1.5m", 1_251_456),
            ("conversational", 35_675_096),
            ("slm", 29_995_392),
            ("slm-50m-tied", 29_995_392),
            ("slm-50m", 49_294_080),
            ("gqa-26m", 25_829_888),
            ("gqa-104m", 104_030_976),
            ("go-tiny", 224),
            ("stories-260k", 260_032),
            // Given in millions: 0.65, 5.7, 29.2 and 161.9.
            ("transformer-tiny", 652_800),
            ("transformer-small", 5_719_552),
            ("transformer-medium", 29_155_328),
            ("transformer-large", 161_856_000),
        ] {
            assert_eq!(preset(name).unwrap().parameters(), parameters, "{name}");
        }
    }

    #[test]
    fn presets_are_valid_and_their_names_are_their_own() {
        for (i, p) in PRESETS.iter().enumerate() {
            assert_eq!(p.config.validate(), Ok(()), "{}", p.name);
            assert!(PRESETS[..i].iter().all(|other| other.name != p.name), "{}", p.name);
        }
        let unknown = preset("tinylm-15m").unwrap_err().to_string();
        assert!(unknown.contains("did you mean `tinylm-1.5m`"), "{unknown}");
    }
}
