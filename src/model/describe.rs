//! An architecture in words.

use super::{Activation, Config, Norm, Placement, Position};
use crate::base::units;

impl Config {
    /// Its parts in the field's words: "RMSNorm, rotary positions (base 10,000), SwiGLU, 4 heads, tied".
    pub fn describe(&self) -> String {
        let mut parts = vec![self.describe_norm(), self.describe_position()];
        let mut also = |has: bool, what: &str| parts.extend(has.then(|| what.to_string()));
        also(self.embed_scale, "scaled embeddings");
        also(self.embed_norm, "normalized embeddings");
        also(self.residual_mix, "embeddings mixed into each block");
        also(self.qk_norm, "QK-norm");
        also(true, &self.describe_activation());
        also(true, &self.describe_heads());
        also(true, self.describe_biases());
        also(self.head_bias, "an output bias");
        also(true, if self.tied { "tied" } else { "untied" });
        parts.extend(self.logit_cap.map(|cap| format!("logits capped at {cap}")));
        parts.retain(|part| !part.is_empty());
        parts.join(", ")
    }

    fn describe_norm(&self) -> String {
        let name = match self.norm {
            Norm::LayerNorm => "LayerNorm",
            Norm::RmsNorm => "RMSNorm",
        };
        let parameters = match (self.norm, self.norm_weight, self.norm_bias) {
            (_, false, _) => " without weights",
            (Norm::LayerNorm, _, false) => " without biases",
            (Norm::RmsNorm, _, true) => " with biases",
            _ => "",
        };
        let place = if self.placement == Placement::Post { " after each sublayer" } else { "" };
        format!("{name}{parameters}{place}")
    }

    fn describe_position(&self) -> String {
        match self.position {
            Position::Learned => "learned positions".into(),
            Position::Sinusoidal => "sinusoidal positions".into(),
            Position::None => "no positions".into(),
            Position::Rotary => {
                let yarn = self.rope_scaling.map(|yarn| format!(", YaRN x {}", yarn.factor));
                // A base is a whole number nearly always.
                let whole = self.rope_base.fract() == 0.0 && self.rope_base < 1e15;
                let base =
                    if whole { units::count(self.rope_base as u64) } else { self.rope_base.to_string() };
                format!("rotary positions (base {base}{})", yarn.unwrap_or_default())
            }
        }
    }

    fn describe_activation(&self) -> String {
        let name = match (self.activation, self.gated) {
            (Activation::GeluTanh, true) => "GeGLU (tanh)",
            (Activation::Gelu, true) => "GeGLU",
            (Activation::Relu2, true) => "gated ReLU²",
            (Activation::Silu, true) => "SwiGLU",
            (Activation::GeluTanh, false) => "GELU (tanh)",
            (Activation::Gelu, false) => "GELU",
            (Activation::Relu2, false) => "ReLU²",
            (Activation::Silu, false) => "SiLU",
        };
        name.into()
    }

    fn describe_heads(&self) -> String {
        let Config { n_head, n_kv_head, d_head, .. } = *self;
        let heads = match n_kv_head {
            _ if n_kv_head == n_head => format!("{n_head} {}", if n_head == 1 { "head" } else { "heads" }),
            1 => format!("multi-query attention {n_head}/1"),
            _ => format!("grouped-query attention {n_head}/{n_kv_head}"),
        };
        let width =
            if n_head * d_head == self.d_model { String::new() } else { format!(" of width {d_head}") };
        heads + &width
    }

    fn describe_biases(&self) -> &'static str {
        match (self.attn_bias, self.mlp_bias) {
            (true, true) => "biases",
            (true, false) => "biases in attention alone",
            (false, true) => "biases in the feed-forward part alone",
            (false, false) => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Activation, Config, Yarn, preset};

    #[test]
    fn the_parts_are_named() {
        let of = |name: &str| preset(name).unwrap().describe();
        assert_eq!(of("tinylm-1.5m"), "LayerNorm, learned positions, GELU (tanh), 4 heads, biases, tied");
        assert_eq!(
            of("stories-260k"),
            "RMSNorm, rotary positions (base 10,000), SwiGLU, grouped-query attention 8/4, tied"
        );
        assert_eq!(
            of("record-1.5m"),
            "RMSNorm, rotary positions (base 10,000), normalized embeddings, embeddings mixed into each \
             block, QK-norm, SwiGLU, 4 heads, tied"
        );
        let capped = Config {
            norm_weight: false,
            activation: Activation::Relu2,
            gated: false,
            logit_cap: Some(15.0),
            ..preset("modern-1.5m").unwrap().clone()
        };
        assert_eq!(
            capped.describe(),
            "RMSNorm without weights, rotary positions (base 10,000), QK-norm, ReLU², 4 heads, tied, \
             logits capped at 15"
        );
        assert_eq!(
            of("conversational"),
            "LayerNorm after each sublayer, sinusoidal positions, GELU, 8 heads, biases, an output bias, \
             untied"
        );
        let yarn = Yarn {
            factor: 4.0,
            original_seq_len: 128,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
        };
        let long = Config {
            rope_scaling: Some(yarn),
            n_kv_head: 1,
            d_head: 48,
            ..preset("modern-1.5m").unwrap().clone()
        };
        assert!(
            long.describe()
                .contains("(base 10,000, YaRN x 4), QK-norm, SwiGLU, multi-query attention 4/1 of width 48")
        );
    }
}
