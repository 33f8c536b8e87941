//! Where each parameter lies: all of them end to end in one buffer, and how each begins.

use std::ops::Range;

use super::Config;
use super::config::Init;

/// What a parameter is, which decides how it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token embedding, `[V, C]`; tied, it is the output projection too.
    Embedding,
    /// Learned positions, `[T, C]`.
    Position,
    /// A hidden matrix, `[in, out]`.
    Matrix,
    /// The output projection where it is not the embedding, `[V, C]`.
    Head,
    /// Weights and biases of norms, biases of linear layers.
    Vector,
    /// Weights of the residual mix.
    Scalar,
}

/// One learned tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// GPT-2's name where GPT-2 has it.
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
    pub role: Role,
    /// The matrices that lie side by side in a hidden matrix, by their columns: queries, keys and values;
    /// gate and input.
    pub columns: Vec<Range<usize>>,
}

/// A norm's parameters, as far as it has them.
#[derive(Debug, Clone)]
pub struct NormLayout {
    /// `[C]`
    pub weight: Option<Range<usize>>,
    /// `[C]`
    pub bias: Option<Range<usize>>,
}

/// A linear layer's parameters.
#[derive(Debug, Clone)]
pub struct LinearLayout {
    /// `[in, out]`
    pub weight: Range<usize>,
    /// `[out]`
    pub bias: Option<Range<usize>>,
    pub out: usize,
    pub adapters: Option<AdapterLayout>,
}

/// The low-rank adapters of a linear layer.
#[derive(Debug, Clone)]
pub struct AdapterLayout {
    /// Side by side, `[in, parts · rank]`.
    pub a: Range<usize>,
    /// Side by side, `[rank, Σ columns]`.
    pub b: Range<usize>,
    /// Columns of the layer's output that an adapter is added to, in ascending order.
    pub parts: Vec<Range<usize>>,
    /// What each part is.
    pub targets: Vec<super::Target>,
    /// Where its input is dropped.
    pub site: usize,
}

/// A block's parameters.
#[derive(Debug, Clone)]
pub struct BlockLayout {
    /// Weights of the residual stream and of the embedding, `[2]`.
    pub mix: Option<Range<usize>>,
    pub attn_norm: NormLayout,
    /// Queries, keys and values side by side.
    pub qkv: LinearLayout,
    /// `[D]`
    pub q_norm: NormLayout,
    /// `[D]`
    pub k_norm: NormLayout,
    pub attn_proj: LinearLayout,
    pub mlp_norm: NormLayout,
    /// Gated: gate and input side by side.
    pub up: LinearLayout,
    pub down: LinearLayout,
}

/// All parameters. Their order is that of everything that is kept per parameter.
#[derive(Debug, Clone)]
pub struct Layout {
    pub parameters: Vec<Parameter>,
    /// `[V, C]`
    pub tokens: Range<usize>,
    /// `[T, C]`
    pub positions: Option<Range<usize>>,
    pub embed_norm: NormLayout,
    pub blocks: Vec<BlockLayout>,
    pub norm: NormLayout,
    /// The output projection, `[V, C]`: that of the tokens where it is tied.
    pub head: Range<usize>,
    /// `[V]`
    pub head_bias: Option<Range<usize>>,
    /// Numbers in all.
    pub len: usize,
    /// Those that training changes.
    pub trained: Range<usize>,
    pub(super) begin: Vec<Begin>,
}

/// How a tensor begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Begin {
    Fill(f32),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform within plus and minus this.
    Uniform(f64),
    /// The residual mix: 1 and 0.
    Mix,
}

/// The standard deviation of embeddings.
const STD: f64 = 0.02;

struct Builder<'a> {
    config: &'a Config,
    parameters: Vec<Parameter>,
    begin: Vec<Begin>,
    len: usize,
}

impl Builder<'_> {
    fn tensor(&mut self, name: String, shape: &[usize], role: Role, begin: Begin) -> Range<usize> {
        let range = self.len..self.len + shape.iter().product::<usize>();
        self.len = range.end;
        let columns = if role == Role::Matrix { vec![0..shape[1]] } else { Vec::new() };
        self.parameters.push(Parameter { name, shape: shape.to_vec(), range: range.clone(), role, columns });
        self.begin.push(begin);
        range
    }

    fn norm(&mut self, name: &str, c: usize) -> NormLayout {
        let Config { norm_weight, norm_bias, .. } = *self.config;
        let mut vector = |part: &str, value: f32| {
            self.tensor(format!("{name}.{part}"), &[c], Role::Vector, Begin::Fill(value))
        };
        let weight = norm_weight.then(|| vector("weight", 1.0));
        NormLayout { weight, bias: norm_bias.then(|| vector("bias", 0.0)) }
    }

    /// A norm that the architecture may lack; queries' and keys' have no bias.
    fn optional_norm(&mut self, has: bool, bias: bool, name: &str, c: usize) -> NormLayout {
        match has {
            true if bias => self.norm(name, c),
            true if self.config.norm_weight => {
                let begin = Begin::Fill(1.0);
                let weight = self.tensor(format!("{name}.weight"), &[c], Role::Vector, begin);
                NormLayout { weight: Some(weight), bias: None }
            }
            _ => NormLayout { weight: None, bias: None },
        }
    }

    /// A linear layer from `from` to as many columns as `parts` have together.
    fn linear(&mut self, name: &str, from: usize, parts: &[usize], bias: bool, adds: bool) -> LinearLayout {
        let out = parts.iter().sum();
        let begin = self.begin_of_linear(from, parts[0], adds);
        let weight = self.tensor(format!("{name}.weight"), &[from, out], Role::Matrix, begin);
        let ends = parts.iter().scan(0, |end, part| {
            *end += part;
            Some(*end - part..*end)
        });
        self.parameters.last_mut().expect("just pushed").columns = ends.collect();
        let mut bias_of = || self.tensor(format!("{name}.bias"), &[out], Role::Vector, Begin::Fill(0.0));
        LinearLayout { weight, bias: bias.then(&mut bias_of), out, adapters: None }
    }

    /// `adds`: to the residual stream.
    fn begin_of_linear(&self, from: usize, to: usize, adds: bool) -> Begin {
        match self.config.init {
            // Each block adds to the residual stream twice.
            Init::Gpt2 if adds => Begin::Normal(STD / (2.0 * self.config.n_layer as f64).sqrt()),
            Init::Gpt2 | Init::Normal => Begin::Normal(STD),
            Init::Xavier => Begin::Uniform((6.0 / (from + to) as f64).sqrt()),
            Init::ZeroOutput if adds => Begin::Fill(0.0),
            Init::ZeroOutput => Begin::Uniform((3.0 / from as f64).sqrt()),
        }
    }

    fn block(&mut self, i: usize) -> BlockLayout {
        let h = format!("transformer.h.{i}");
        let config = self.config;
        let (c, f, d) = (config.d_model, config.d_ff, config.d_head);
        let (q, kv) = (config.q_width(), config.kv_width());
        let up: &[usize] = if config.gated { &[f, f] } else { &[f] };
        BlockLayout {
            mix: config
                .residual_mix
                .then(|| self.tensor(format!("{h}.residual_mix"), &[2], Role::Scalar, Begin::Mix)),
            attn_norm: self.norm(&format!("{h}.ln_1"), c),
            qkv: self.linear(&format!("{h}.attn.c_attn"), c, &[q, kv, kv], config.attn_bias, false),
            q_norm: self.optional_norm(config.qk_norm, false, &format!("{h}.attn.q_norm"), d),
            k_norm: self.optional_norm(config.qk_norm, false, &format!("{h}.attn.k_norm"), d),
            attn_proj: self.linear(&format!("{h}.attn.c_proj"), q, &[c], config.attn_bias, true),
            mlp_norm: self.norm(&format!("{h}.ln_2"), c),
            up: self.linear(&format!("{h}.mlp.c_fc"), c, up, config.mlp_bias, false),
            down: self.linear(&format!("{h}.mlp.c_proj"), f, &[c], config.mlp_bias, true),
        }
    }
}

impl Layout {
    /// Whether training changes it.
    pub fn is_trained(&self, range: &Range<usize>) -> bool {
        self.trained.start <= range.start && range.end <= self.trained.end
    }

    pub fn new(config: &Config) -> Self {
        let (v, c) = (config.vocab_size, config.d_model);
        let mut b = Builder { config, parameters: Vec::new(), begin: Vec::new(), len: 0 };
        let name = |part: &str| format!("transformer.{part}");
        let tokens = b.tensor(name("wte.weight"), &[v, c], Role::Embedding, Begin::Normal(STD));
        let learned = config.position == super::config::Position::Learned;
        let positions = learned
            .then(|| b.tensor(name("wpe.weight"), &[config.seq_len, c], Role::Position, Begin::Normal(STD)));
        let embed_norm = b.optional_norm(config.embed_norm, true, &name("ln_e"), c);
        let blocks = (0..config.n_layer).map(|i| b.block(i)).collect();
        let norm = b.norm(&name("ln_f"), c);
        let head = if config.tied {
            tokens.clone()
        } else {
            let begin = if config.init == Init::Xavier {
                Begin::Uniform((6.0 / (v + c) as f64).sqrt())
            } else {
                Begin::Normal(STD)
            };
            b.tensor("lm_head.weight".into(), &[v, c], Role::Head, begin)
        };
        let head_bias =
            config.head_bias.then(|| b.tensor("lm_head.bias".into(), &[v], Role::Vector, Begin::Fill(0.0)));
        let Builder { parameters, begin, len, .. } = b;
        let trained = 0..len;
        Layout {
            parameters,
            tokens,
            positions,
            embed_norm,
            blocks,
            norm,
            head,
            head_bias,
            len,
            trained,
            begin,
        }
    }
}
