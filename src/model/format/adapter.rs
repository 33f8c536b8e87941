//! Low-rank adapters in PEFT's files (<https://github.com/huggingface/peft>): `adapter_config.json` and
//! `adapter_model.safetensors`, for the names of the base model's type.
//!
//! PEFT adds an adapter to a module, A `[rank, in]` and B `[out, rank]`. Where a module holds several of our
//! matrices (GPT-2's `c_attn`: queries, keys and values), theirs are one adapter of as many times the rank whose
//! B is block-diagonal, with an entry in `rank_pattern` and `alpha_pattern`; a matrix without an adapter has
//! zeros there. An adapter of the plain rank, which PEFT makes of such a module, is read too: it is the same A
//! for each of the matrices.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Map, Value, json};

use super::Fields;
use super::weights::{expect_finite, expect_numbers, read_json, widen};
use crate::base::{Error, Result, fs, suggest};
use crate::model::layout::{AdapterLayout, LinearLayout};
use crate::model::lora::linears;
use crate::model::{Config, Layout, Lora, Target, Transformer};

pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What begins the names of tensors: PEFT's model, and in it the base model.
const PREFIX: &str = "base_model.model.";

/// Keys that say what is not computed here, unless they are null, false or empty.
const REFUSED: [&str; 12] = [
    "use_dora",
    "use_rslora",
    "modules_to_save",
    "layers_to_transform",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "ensure_weight_tying",
];

/// Keys that change nothing of what is computed.
const HARMLESS: [&str; 13] = [
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
];

/// A module of the base model's type that can have an adapter.
struct Module {
    /// `transformer.h.0.attn.c_attn`
    name: String,
    /// Its name within a block, as short as it is unambiguous: `c_attn`, `mlp.c_proj`.
    short: String,
    /// What it reads.
    input: usize,
    /// The matrices that lie side by side in it, by columns of its output.
    parts: Vec<(Target, Range<usize>)>,
    linear: LinearLayout,
    /// Whether its weight is `[in, out]`, as that of GPT-2's `Conv1D`.
    fan_in_fan_out: bool,
}

impl Module {
    fn out(&self) -> usize {
        self.parts.last().map_or(0, |(_, columns)| columns.end)
    }

    fn tensor(&self, which: char) -> String {
        format!("{PREFIX}{}.lora_{which}.weight", self.name)
    }

    /// Whether some of its matrices has an adapter.
    fn is_adapted(&self) -> bool {
        let is_there = |target| self.linear.adapters.as_ref().is_some_and(|a| a.targets.contains(target));
        self.parts.iter().any(|(target, _)| is_there(target))
    }
}

/// All modules of a model, of the type of file that holds its architecture.
fn modules(config: &Config, layout: &Layout) -> Vec<Module> {
    let base = Layout::new(config);
    let stored = super::of(config).tensors(&base);
    let mut all = Vec::new();
    for block in &layout.blocks {
        let first = all.len();
        for (linear, targets) in linears(config, block) {
            let index = base.parameters.iter().position(|p| p.range == linear.weight);
            let weight = &base.parameters[index.expect("a linear layer has a weight")];
            for stored in stored.iter().filter(|s| Some(s.parameter) == index) {
                let within = |columns: &Range<usize>| {
                    columns.start >= stored.columns.start && columns.end <= stored.columns.end
                };
                let shift = |c: &Range<usize>| c.start - stored.columns.start..c.end - stored.columns.start;
                let parts = targets.iter().zip(&weight.columns).filter(|(_, columns)| within(columns));
                let name = stored.name.strip_suffix(".weight").expect("the name of a weight");
                all.push(Module {
                    name: name.to_string(),
                    short: String::new(),
                    input: weight.shape[0],
                    parts: parts.map(|(target, columns)| (*target, shift(columns))).collect(),
                    linear: linear.clone(),
                    fan_in_fan_out: !stored.transposed,
                });
            }
        }
        shorten(&mut all[first..]);
    }
    all
}

/// Finds the shortest names of a block's modules that tell them apart.
fn shorten(block: &mut [Module]) {
    let names: Vec<String> = block.iter().map(|module| module.name.clone()).collect();
    for (module, name) in block.iter_mut().zip(&names) {
        let from_dots = name.rmatch_indices('.').map(|(dot, _)| &name[dot + 1..]);
        let alone = |short: &&str| names.iter().filter(|name| ends_with(name, short)).count() == 1;
        module.short = from_dots.into_iter().find(alone).unwrap_or(name).to_string();
    }
}

/// Whether `name` is `short`, or ends with a dot and `short`.
fn ends_with(name: &str, short: &str) -> bool {
    name.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Transformer {
    /// Both files of the adapters: the configuration, and the weights in f32.
    ///
    /// # Errors
    /// When the model has no adapters, which is a bug.
    pub fn adapter_files(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let lora = self.lora.as_ref().ok_or_else(|| Error::bug("a model without adapters"))?;
        let modules: Vec<Module> =
            modules(&self.config, &self.layout).into_iter().filter(Module::is_adapted).collect();
        let json = serde_json::to_vec_pretty(&config_of(lora, &modules))
            .map_err(|e| Error::bug(format!("{ADAPTER_CONFIG_FILE}: {e}")))?;
        let tensors = modules.iter().flat_map(|module| self.tensors_of(lora.rank, module));
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let bytes = safetensors::serialize(tensors, Some(metadata))
            .map_err(|e| Error::bug(format!("the adapters can't be written: {e}")))?;
        Ok((json, bytes))
    }

    /// A and B of a module.
    fn tensors_of(&self, rank: usize, module: &Module) -> [(String, Written); 2] {
        let (input, out, all) = (module.input, module.out(), rank * module.parts.len());
        let (mut a, mut b) = (vec![0.0; all * input], vec![0.0; out * all]);
        let layout = module.linear.adapters.as_ref().expect("a module with adapters");
        for (group, (target, columns)) in module.parts.iter().enumerate() {
            let Some(place) = Place::of(layout, *target, rank) else { continue };
            for r in 0..rank {
                let row = group * rank + r;
                (0..input).for_each(|i| a[row * input + i] = self.weights[place.a(i, r)]);
                let each = columns.clone().enumerate();
                each.for_each(|(i, column)| b[column * all + row] = self.weights[place.b(r, i)]);
            }
        }
        [(module.tensor('A'), Written::new(all, input, a)), (module.tensor('B'), Written::new(out, all, b))]
    }

    /// The same model with the adapters of two files, which PEFT or [`Transformer::adapter_files`] wrote.
    ///
    /// # Errors
    /// When one does not read, asks for what can't be computed, or is of another model.
    pub fn with_adapter_files(self, config: &Path, weights: &Path) -> Result<Self> {
        let (file, value) = read_json(config)?;
        let declared = Declared::read(&Fields::of(&file, &value)?)?;
        declared.notes.iter().for_each(|note| tracing::warn!("{note}"));
        let (name, bytes) = (weights.display().to_string(), fs::read(weights)?);
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::input(format!("`{name}` is not a whole safetensors file: {e}")))?;
        let file = File { name: &name, tensors, declared: &declared };
        let found = file.adapters(&modules(&self.config, &self.layout))?;
        let targets = found.iter().flat_map(|adapter| adapter.targets()).collect::<BTreeSet<_>>();
        let lora = Lora { targets: targets.into_iter().collect(), ..declared.lora };
        let mut model = self.with_zero_adapters(&lora)?;
        for (module, adapter) in modules(&model.config, &model.layout).iter().zip(&found) {
            adapter.put(lora.rank, module, &mut model.weights);
        }
        Ok(model.in_dtype_again())
    }
}

/// Where the adapter of one matrix lies among the weights.
struct Place {
    a: usize,
    width: usize,
    b: usize,
    columns: usize,
}

impl Place {
    /// Where `target` has an adapter.
    fn of(layout: &AdapterLayout, target: Target, rank: usize) -> Option<Self> {
        let i = layout.targets.iter().position(|t| *t == target)?;
        let before: usize = layout.parts[..i].iter().map(Range::len).sum();
        let (a, b) = (layout.a.start + i * rank, layout.b.start + before);
        Some(Place { a, width: rank * layout.parts.len(), b, columns: layout.b.len() / rank })
    }

    fn a(&self, input: usize, r: usize) -> usize {
        self.a + input * self.width + r
    }

    fn b(&self, r: usize, column: usize) -> usize {
        self.b + r * self.columns + column
    }
}

/// A tensor to be written.
struct Written {
    shape: [usize; 2],
    values: Vec<f32>,
}

impl Written {
    fn new(rows: usize, columns: usize, values: Vec<f32>) -> Self {
        Written { shape: [rows, columns], values }
    }
}

impl View for Written {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

/// `adapter_config.json`.
fn config_of(lora: &Lora, modules: &[Module]) -> Value {
    let several = || modules.iter().filter(|module| module.parts.len() > 1);
    let pattern = |value: &dyn Fn(usize) -> Value| {
        several().map(|module| (module.short.clone(), value(module.parts.len()))).collect::<Map<_, _>>()
    };
    let mut targets: Vec<&str> = modules.iter().map(|module| module.short.as_str()).collect();
    targets.sort_unstable();
    targets.dedup();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "inference_mode": true,
        "r": lora.rank,
        "lora_alpha": number(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": targets,
        "rank_pattern": pattern(&|parts| json!(lora.rank * parts)),
        "alpha_pattern": pattern(&|parts| number(lora.alpha * parts as f64)),
        "fan_in_fan_out": modules.iter().any(|module| module.fan_in_fan_out),
        "bias": "none",
        "use_rslora": false,
        "use_dora": false,
        "modules_to_save": null,
        "layers_to_transform": null,
        "init_lora_weights": true,
    })
}

/// As a whole number where it is one, as PEFT has its alpha.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// What an `adapter_config.json` says.
struct Declared {
    file: String,
    /// Without targets: those are found among the tensors.
    lora: Lora,
    /// By the end of a module's name.
    alphas: BTreeMap<String, f64>,
    notes: Vec<String>,
}

impl Declared {
    fn read(fields: &Fields) -> Result<Self> {
        fields.only("peft_type", "LORA")?;
        fields.only("bias", "none")?;
        let empty = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            _ => false,
        };
        if let Some(key) = REFUSED.into_iter().find(|key| fields.get(key).is_some_and(|v| !empty(v))) {
            return Err(fields.wrong(key, "only adapters without it are computed"));
        }
        // Ranks are those of the tensors.
        fields.get("rank_pattern");
        let mut alphas = BTreeMap::new();
        if let Some(pattern) = fields.object("alpha_pattern")? {
            for (name, _) in pattern.all() {
                let alpha = pattern.float(name)?.ok_or_else(|| pattern.wrong(name, "expected a number"))?;
                alphas.insert(name.to_string(), alpha);
            }
        }
        let rank = fields.size("r")?;
        let alpha = fields.float("lora_alpha")?.unwrap_or(8.0);
        let dropout = fields.float("lora_dropout")?.unwrap_or(0.0);
        let lora = Lora { rank, alpha, dropout, targets: Target::ALL.to_vec() };
        lora.validate().map_err(|invalid| {
            let keys = [("rank", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout")];
            let key = keys.iter().find(|(ours, _)| *ours == invalid.param).map_or("r", |(_, key)| key);
            fields.wrong(key, invalid.why)
        })?;
        for (key, value) in fields.all() {
            let known = HARMLESS.contains(&key) || empty(value);
            if known {
                fields.get(key);
            }
        }
        Ok(Declared {
            file: fields.file().to_string(),
            lora,
            alphas,
            notes: fields.unknown().into_iter().collect(),
        })
    }

    /// A module's alpha.
    fn alpha(&self, module: &Module) -> f64 {
        let found = self.alphas.iter().find(|(end, _)| ends_with(&module.name, end));
        found.map_or(self.lora.alpha, |(_, alpha)| *alpha)
    }

    /// The ends of names in `alpha_pattern` are those of modules: no regular expressions.
    fn expect_modules(&self, modules: &[Module]) -> Result<()> {
        let names = |end: &str| modules.iter().any(|module| ends_with(&module.name, end));
        let Some((end, _)) = self.alphas.iter().find(|(end, _)| !names(end)) else { return Ok(()) };
        let file = &self.file;
        Err(Error::input(format!("`{file}`: `alpha_pattern.{end}` is the end of no module's name"))
            .help(format!("modules are such as {}", examples(modules))))
    }
}

fn examples(modules: &[Module]) -> String {
    suggest::list(modules.iter().take(3).map(|module| module.name.as_str()))
}

/// The adapter of a module in a file; without one, of 0 rows.
struct Adapter {
    /// `[rows, in]`
    a: Vec<f32>,
    /// `[out, rows]`
    b: Vec<f32>,
    rows: usize,
    /// For each of the module's matrices, where its rows of A begin.
    parts: Vec<(Target, Option<usize>)>,
}

impl Adapter {
    fn targets(&self) -> impl Iterator<Item = Target> {
        self.parts.iter().filter(|(_, first)| first.is_some()).map(|(target, _)| *target)
    }

    /// Writes it to its place among the weights.
    fn put(&self, rank: usize, module: &Module, weights: &mut [f32]) {
        let Some(layout) = &module.linear.adapters else { return };
        for ((target, first), (_, columns)) in self.parts.iter().zip(&module.parts) {
            let (Some(place), Some(first)) = (Place::of(layout, *target, rank), first) else { continue };
            for r in 0..rank {
                let row = first + r;
                (0..module.input).for_each(|i| weights[place.a(i, r)] = self.a[row * module.input + i]);
                let each = columns.clone().enumerate();
                each.for_each(|(i, column)| weights[place.b(r, i)] = self.b[column * self.rows + row]);
            }
        }
    }
}

/// The weights of adapters.
struct File<'a> {
    name: &'a str,
    tensors: SafeTensors<'a>,
    declared: &'a Declared,
}

impl File<'_> {
    /// The adapter of each module.
    fn adapters(&self, modules: &[Module]) -> Result<Vec<Adapter>> {
        self.expect_known(modules)?;
        self.declared.expect_modules(modules)?;
        let mut all = modules.iter().map(|module| self.adapter(module)).collect::<Result<Vec<_>>>()?;
        Target::ALL.into_iter().try_for_each(|target| self.expect_in_all_blocks(target, modules, &all))?;
        if all.iter().all(|adapter| adapter.targets().next().is_none()) {
            // Nothing but zeros: whichever matrices they are of, they change nothing.
            all.iter_mut().filter(|adapter| adapter.rows > 0).for_each(|a| a.parts[0].1 = Some(0));
        }
        Ok(all)
    }

    /// A matrix has an adapter in all blocks or in none. That of some blocks may be all 0.
    fn expect_in_all_blocks(&self, target: Target, modules: &[Module], all: &[Adapter]) -> Result<()> {
        let own = || all.iter().zip(modules).filter(|(a, _)| a.parts.iter().any(|(t, _)| *t == target));
        if !own().any(|(adapter, _)| adapter.targets().any(|t| t == target)) {
            return Ok(());
        }
        let Some((_, module)) = own().find(|(adapter, _)| adapter.rows == 0) else { return Ok(()) };
        let what = format!("`{}` has no tensor `{}`", self.name, module.tensor('A'));
        Err(Error::input(what).help(format!("other blocks have an adapter for `{}`", target.name())))
    }

    /// Each tensor is A or B of a module of the model.
    fn expect_known(&self, modules: &[Module]) -> Result<()> {
        let known: Vec<String> =
            modules.iter().flat_map(|module| [module.tensor('A'), module.tensor('B')]).collect();
        let mut names = self.tensors.names();
        names.sort_unstable();
        match names.iter().find(|name| !known.iter().any(|known| known == *name)) {
            Some(name) => {
                Err(Error::input(format!("`{}`: the model has no place for the tensor `{name}`", self.name))
                    .suggest(suggest::closest(name, known.iter().map(String::as_str)))
                    .help(format!("an adapter of this model has tensors such as `{}`", known[0])))
            }
            None if names.is_empty() => Err(Error::input(format!("`{}` has no tensors", self.name))),
            None => Ok(()),
        }
    }

    fn adapter(&self, module: &Module) -> Result<Adapter> {
        let [a, b] = ['A', 'B'].map(|which| module.tensor(which));
        let [found_a, found_b] = [&a, &b].map(|name| self.tensors.tensor(name).ok());
        let parts = || module.parts.iter().map(|(target, _)| (*target, None)).collect::<Vec<_>>();
        let (found_a, found_b) = match (found_a, found_b) {
            (None, None) => return Ok(Adapter { a: Vec::new(), b: Vec::new(), rows: 0, parts: parts() }),
            (Some(a), Some(b)) => (a, b),
            (None, _) => return Err(Error::input(format!("`{}` has no tensor `{a}`, but `{b}`", self.name))),
            (_, None) => return Err(Error::input(format!("`{}` has no tensor `{b}`, but `{a}`", self.name))),
        };
        let (rank, count) = (self.declared.lora.rank, module.parts.len());
        let rows = found_a.shape().first().copied().unwrap_or(0);
        let rows = if rows == rank * count { rows } else { rank };
        let mut adapter = Adapter {
            a: self.numbers(&a, &found_a, [rows, module.input])?,
            b: self.numbers(&b, &found_b, [module.out(), rows])?,
            rows,
            parts: parts(),
        };
        self.expect_scale(module, rows)?;
        if rows == rank {
            // The same A for each matrix.
            adapter.parts.iter_mut().for_each(|part| part.1 = Some(0));
        } else {
            self.divide(module, &mut adapter)?;
        }
        Ok(adapter)
    }

    fn numbers(&self, name: &str, view: &TensorView, shape: [usize; 2]) -> Result<Vec<f32>> {
        let lora = &self.declared.lora;
        if view.shape() != shape {
            let what =
                format!("has shape {:?}, expected {shape:?} with the rank {}", view.shape(), lora.rank);
            return Err(Error::input(format!("`{}`: tensor `{name}` {what}", self.name))
                .help("the adapter is of a model of another size, or its ranks differ between modules"));
        }
        expect_numbers(self.name, name, view)?;
        expect_finite(self.name, name, view)?;
        let mut values = vec![0.0; shape[0] * shape[1]];
        widen(view, 0..shape[0] * shape[1], &mut values);
        Ok(values)
    }

    /// All modules have the same `alpha / rank`.
    fn expect_scale(&self, module: &Module, rows: usize) -> Result<()> {
        let (lora, alpha) = (&self.declared.lora, self.declared.alpha(module));
        let (own, expected) = (alpha / rows as f64, lora.alpha / lora.rank as f64);
        if (own - expected).abs() <= 1e-6 * expected {
            return Ok(());
        }
        let file = &self.declared.file;
        let what = format!("alpha / rank of `{}` is {alpha} / {rows}, elsewhere {}", module.name, expected);
        Err(Error::input(format!("`{file}`: {what}")).help("one scale for all modules is computed"))
    }

    /// Which rows are of which matrix, of a block-diagonal adapter. A matrix whose rows are all 0 has none.
    fn divide(&self, module: &Module, adapter: &mut Adapter) -> Result<()> {
        let rank = self.declared.lora.rank;
        for (group, (target, own)) in module.parts.iter().enumerate() {
            let rows = group * rank..(group + 1) * rank;
            let b = |column: usize| &adapter.b[column * adapter.rows..][rows.clone()];
            let outside = (0..module.out()).filter(|column| !own.contains(column));
            if let Some(column) = outside.into_iter().find(|column| b(*column).iter().any(|x| *x != 0.0)) {
                let what = format!(
                    "`{}`: tensor `{}` has rank {}, and row {column} is not 0 in the columns {rows:?} of `{}`",
                    self.name,
                    module.tensor('B'),
                    adapter.rows,
                    target.name()
                );
                let help = format!("read are adapters of rank {rank}, or block-diagonal ones of the parts");
                return Err(Error::input(what).help(help));
            }
            let a = &adapter.a[rows.start * module.input..rows.end * module.input];
            let is_there = a.iter().any(|x| *x != 0.0) || own.clone().any(|c| b(c).iter().any(|x| *x != 0.0));
            adapter.parts[group].1 = is_there.then_some(rows.start);
        }
        Ok(())
    }
}
