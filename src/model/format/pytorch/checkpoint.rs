//! What a file of `torch.save` holds: the tensors of a state dict by name, and settings beside it. Layout of the
//! archive and of tensors in its pickle: `torch/serialization.py` and `torch/_utils.py` of PyTorch.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::pickle::{Id, Object, Pickle};
use super::zip::{Archive, Entry};
use crate::base::{Error, Result, suggest};
use crate::kernel::BlockType;

/// The state dict among other things of a checkpoint, by its key; the first that is there.
const STATES: [&str; 5] = ["model_state_dict", "state_dict", "model", "module", "net"];

/// The model's settings in a checkpoint, by their key; the first that has one counts.
const SETTINGS: [&str; 5] = ["model_args", "model_config", "config", "hyper_parameters", "args"];

/// What wrappers put before each name: `torch.nn.DataParallel` and `torch.compile`.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// A pickle of more is none of a state dict, which has about 300 bytes a tensor.
const MOST_PICKLE: u64 = 64 << 20;

/// The types of numbers, by the class of their storage.
const TYPES: [(&str, Type); 9] = [
    ("torch.FloatStorage", Type::F32),
    ("torch.DoubleStorage", Type::F64),
    ("torch.HalfStorage", Type::F16),
    ("torch.BFloat16Storage", Type::Bf16),
    ("torch.LongStorage", Type::Whole(8)),
    ("torch.IntStorage", Type::Whole(4)),
    ("torch.ShortStorage", Type::Whole(2)),
    ("torch.ByteStorage", Type::Whole(1)),
    ("torch.BoolStorage", Type::Whole(1)),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    F32,
    F64,
    F16,
    Bf16,
    /// Integers, which no weight is made of, of so many bytes.
    Whole(usize),
}

impl Type {
    fn bytes(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::F64 => 8,
            Type::F16 | Type::Bf16 => 2,
            Type::Whole(bytes) => bytes,
        }
    }
}

/// A view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    /// In numbers.
    strides: Vec<usize>,
    offset: usize,
    ty: Type,
    /// The name of its entry in the archive.
    storage: String,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether both are the same numbers in memory, as weights are that a model shares.
    pub fn is(&self, other: &Tensor) -> bool {
        self == other
    }

    /// Whether its numbers lie side by side in its order.
    fn is_contiguous(&self) -> bool {
        let mut due = 1;
        let mut each = self.shape.iter().zip(&self.strides).rev();
        each.all(|(n, stride)| {
            let fits = *n == 1 || *stride == due;
            due *= n;
            fits
        })
    }

    /// Where the numbers lie in the storage, in the tensor's order.
    fn places(&self) -> Vec<usize> {
        let mut places = vec![self.offset];
        for (n, stride) in self.shape.iter().zip(&self.strides) {
            places = places.into_iter().flat_map(|at| (0..*n).map(move |i| at + i * stride)).collect();
        }
        places
    }
}

/// A checkpoint, open for reading.
pub struct Checkpoint {
    /// What messages call it.
    pub file: String,
    archive: Archive,
    /// By name, without what wrappers put before it.
    pub tensors: HashMap<String, Tensor>,
    /// Values of the state dict that are no tensors.
    pub others: Vec<String>,
    /// Settings that the checkpoint holds beside its weights: numbers, texts and flags.
    pub settings: Map<String, Value>,
    /// The storage that was read last.
    last: Option<(String, Vec<u8>)>,
}

impl Checkpoint {
    /// Reads what there is, without the numbers.
    ///
    /// # Errors
    /// When the file is damaged, has no state dict, or a tensor says that it is larger than its storage.
    pub fn open(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let mut archive = Archive::open(path)?;
        let pickle =
            archive.entries.iter().find(|e| e.name == "data.pkl" || e.name.ends_with("/data.pkl")).cloned();
        let pickle = pickle.ok_or_else(|| {
            Error::input(format!("`{file}` is a zip archive without a `data.pkl`, so not one of torch.save"))
        })?;
        if pickle.size > MOST_PICKLE {
            let what = format!("`{file}`: its pickle has {} bytes, more than any state dict", pickle.size);
            return Err(Error::input(what));
        }
        let folder = pickle.name.strip_suffix("data.pkl").unwrap_or_default().to_string();
        expect_little_endian(&file, &mut archive, &folder)?;
        let bytes = archive.read(&pickle)?;
        let pickle = Pickle::read(&file, &bytes)?;
        let sizes: HashMap<&str, u64> = archive.entries.iter().map(|e| (e.name.as_str(), e.size)).collect();
        let reader = Reader { file: &file, folder: &folder, pickle: &pickle, sizes };
        let state = reader.state()?;
        let (tensors, others) = reader.tensors(&state)?;
        let settings = reader.settings();
        Ok(Checkpoint { file, archive, tensors, others, settings, last: None })
    }

    /// How many bytes all storages have.
    pub fn bytes(&self) -> u64 {
        self.archive.entries.iter().map(|e| e.size).sum()
    }

    /// The numbers of a tensor as f32, in its order.
    ///
    /// # Errors
    /// When they are no floating-point numbers, one is NaN or infinite as f32, or the file is damaged.
    pub fn numbers(&mut self, name: &str) -> Result<Vec<f32>> {
        let tensor =
            self.tensors.get(name).cloned().ok_or_else(|| Error::bug(format!("no tensor `{name}`")))?;
        if self.last.as_ref().is_none_or(|(storage, _)| *storage != tensor.storage) {
            let entry = self.archive.entries.iter().find(|e| e.name == tensor.storage).cloned();
            let entry: Entry = entry.ok_or_else(|| Error::bug("a storage without an entry"))?;
            self.last = Some((entry.name.clone(), self.archive.read(&entry)?));
        }
        let (_, storage) = self.last.as_ref().expect("just read");
        let numbers = numbers_of(&tensor, storage).ok_or_else(|| {
            Error::input(format!(
                "`{}`: tensor `{name}` holds integers, expected f32, f16, bf16 or f64",
                self.file
            ))
            .help("save the weights before quantization")
        })?;
        crate::model::format::numbers::expect_finite(&self.file, name, numbers.iter().copied())?;
        Ok(numbers)
    }
}

fn expect_little_endian(file: &str, archive: &mut Archive, folder: &str) -> Result<()> {
    let name = format!("{folder}byteorder");
    let Some(entry) = archive.entries.iter().find(|e| e.name == name && e.size < 64).cloned() else {
        return Ok(());
    };
    match archive.read(&entry)?.as_slice() {
        b"little" => Ok(()),
        other => {
            let found = String::from_utf8_lossy(other).into_owned();
            Err(Error::input(format!(
                "`{file}`: its numbers are of byte order {found:?}, expected \"little\""
            )))
        }
    }
}

/// `None` for integers. The tensor lies within its storage.
fn numbers_of(tensor: &Tensor, storage: &[u8]) -> Option<Vec<f32>> {
    let width = tensor.ty.bytes();
    let gathered: Vec<u8>;
    let bytes = if tensor.is_contiguous() {
        &storage[tensor.offset * width..(tensor.offset + tensor.len()) * width]
    } else {
        let all = tensor.places();
        gathered = all.iter().flat_map(|at| &storage[at * width..(at + 1) * width]).copied().collect();
        &gathered
    };
    let mut numbers = vec![0.0; tensor.len()];
    match tensor.ty {
        Type::F32 => BlockType::F32.decode(bytes, &mut numbers),
        Type::F16 => BlockType::F16.decode(bytes, &mut numbers),
        Type::Bf16 => BlockType::Bf16.decode(bytes, &mut numbers),
        Type::F64 => {
            let all = bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32);
            numbers.iter_mut().zip(all).for_each(|(n, x)| *n = x);
        }
        Type::Whole(_) => return None,
    }
    Some(numbers)
}

/// A pickle with what its tensors refer to.
struct Reader<'a> {
    file: &'a str,
    folder: &'a str,
    pickle: &'a Pickle,
    /// Of the archive's entries, in bytes.
    sizes: HashMap<&'a str, u64>,
}

impl<'a> Reader<'a> {
    /// The entries of the state dict.
    fn state(&self) -> Result<Vec<(&'a str, Id)>> {
        let root = self.pickle.root();
        if !matches!(self.pickle.object(root), Object::Dict(_)) {
            return Err(self.no_dict(root));
        }
        let mut entries = self.pickle.entries(root).unwrap_or_default();
        // A state dict may be nested in another: a checkpoint of a trainer in one of another.
        for _ in 0..3 {
            let inner = |key: &&str| {
                let (_, id) = entries.iter().find(|(name, _)| name == key)?;
                let inner = self.pickle.entries(*id).filter(|_| !self.is_tensor(*id))?;
                inner.iter().any(|(name, id)| self.is_tensor(*id) || STATES.contains(name)).then_some(inner)
            };
            match STATES.iter().find_map(inner) {
                Some(inner) => entries = inner,
                None => break,
            }
        }
        if !entries.iter().any(|(_, id)| self.is_tensor(*id)) {
            let names = entries.iter().take(8).map(|(name, _)| *name);
            let what = format!("`{}` holds no state dict: no tensors under names", self.file);
            return Err(Error::input(what)
                .help(format!("it has {}", suggest::list(names)))
                .help(format!("looked for are tensors, or one of the keys {}", suggest::list(STATES))));
        }
        Ok(entries)
    }

    fn no_dict(&self, root: Id) -> Error {
        let kind = self.pickle.kind(root);
        Error::input(format!("`{}` holds {kind}, expected a dict of tensors", self.file)).help(
            "a whole module needs its program's code to be read, which is not run here: load it there and save \
             its weights with `torch.save(model.state_dict(), path)`",
        )
    }

    fn is_tensor(&self, id: Id) -> bool {
        self.pickle.class(id).is_some_and(|class| {
            class.starts_with("torch._utils._rebuild_") || class == "torch._tensor._rebuild_from_type_v2"
        })
    }

    /// All tensors of the state dict, and names of what is none.
    fn tensors(&self, state: &[(&str, Id)]) -> Result<(HashMap<String, Tensor>, Vec<String>)> {
        let (mut tensors, mut others) = (HashMap::new(), Vec::new());
        for (full, id) in state {
            let mut name = *full;
            while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
                name = rest;
            }
            if !self.is_tensor(*id) {
                others.push(name.to_string());
            } else if tensors.insert(name.to_string(), self.tensor(name, *id)?).is_some() {
                return Err(Error::input(format!("`{}` has two tensors `{name}`", self.file)));
            }
        }
        Ok((tensors, others))
    }

    fn tensor(&self, name: &str, id: Id) -> Result<Tensor> {
        self.rebuilt(id)
            .and_then(|tensor| self.within(tensor))
            .map_err(|why| Error::input(format!("`{}`: tensor `{name}` {why}", self.file)))
    }

    /// What `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …)` would give, behind what wraps it.
    fn rebuilt(&self, mut id: Id) -> Result<Tensor, String> {
        let odd = || "is not described as torch.save does".to_string();
        for _ in 0..3 {
            let class = self.pickle.class(id).unwrap_or_default();
            let Object::Call { arguments, .. } = self.pickle.object(id) else { return Err(odd()) };
            let arguments = self.pickle.tuple(*arguments).ok_or_else(odd)?;
            match (class, arguments) {
                ("torch._utils._rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                    return self.view(*storage, *offset, *shape, *strides);
                }
                // A parameter: its tensor, and whether it is trained.
                (_, [tensor, ..]) if class.starts_with("torch._utils._rebuild_parameter") => id = *tensor,
                // A subclass of Tensor: how it is made, its type, the arguments.
                ("torch._tensor._rebuild_from_type_v2", [_, _, inner, ..]) => {
                    let [storage, offset, shape, strides, ..] = self.pickle.tuple(*inner).ok_or_else(odd)?
                    else {
                        return Err(odd());
                    };
                    return self.view(*storage, *offset, *shape, *strides);
                }
                _ => {
                    return Err(format!(
                        "is made by {class}, expected a dense tensor of floating-point numbers"
                    ));
                }
            }
        }
        Err(odd())
    }

    fn view(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<Tensor, String> {
        let odd = || "is not described as torch.save does".to_string();
        let size = |id: &Id| self.pickle.int(*id).and_then(|n| usize::try_from(n).ok());
        let sizes = |id: Id| self.pickle.tuple(id)?.iter().map(size).collect::<Option<Vec<_>>>();
        let Object::Persistent(storage) = self.pickle.object(storage) else { return Err(odd()) };
        let Some([_, class, key, ..]) = self.pickle.tuple(*storage) else { return Err(odd()) };
        let class = self.pickle.class(*class).ok_or_else(odd)?;
        let ty = TYPES.iter().find(|(name, _)| *name == class).map(|(_, ty)| *ty);
        let ty = ty.ok_or_else(|| format!("is of {class}, expected f32, f16, bf16 or f64"))?;
        let key = self.pickle.text(*key).ok_or_else(odd)?;
        Ok(Tensor {
            shape: sizes(shape).ok_or_else(odd)?,
            strides: sizes(strides).ok_or_else(odd)?,
            offset: size(&offset).ok_or_else(odd)?,
            ty,
            storage: format!("{}data/{key}", self.folder),
        })
    }

    /// The tensor lies within its storage, and has no more numbers than that.
    fn within(&self, tensor: Tensor) -> Result<Tensor, String> {
        let bytes = self.sizes.get(tensor.storage.as_str());
        let bytes =
            *bytes.ok_or_else(|| format!("refers to `{}`, which the archive lacks", tensor.storage))?;
        let room = bytes / tensor.ty.bytes() as u64;
        let dims = || tensor.shape.iter().zip(&tensor.strides);
        let len = tensor.shape.iter().try_fold(1u64, |all, n| all.checked_mul(*n as u64));
        let last = dims().try_fold(tensor.offset as u64, |at, (n, stride)| {
            at.checked_add((n.saturating_sub(1) as u64).checked_mul(*stride as u64)?)
        });
        let shape = &tensor.shape;
        if shape.len() != tensor.strides.len() || shape.len() > 8 {
            return Err(format!("has {} sizes and {} strides", shape.len(), tensor.strides.len()));
        }
        match (len, last) {
            (Some(len), Some(last)) if len <= room && (last < room || len == 0) => Ok(tensor),
            _ => Err(format!(
                "of shape {shape:?} and strides {:?} from {} on is larger than its storage of {room} numbers",
                tensor.strides, tensor.offset
            )),
        }
    }

    /// Numbers, texts and flags of all dicts or objects of settings; the first that has one counts.
    fn settings(&self) -> Map<String, Value> {
        let root = self.pickle.entries(self.pickle.root()).unwrap_or_default();
        let mut settings = Map::new();
        for key in SETTINGS {
            let Some((_, id)) = root.iter().find(|(name, _)| *name == key) else { continue };
            for (name, id) in self.pickle.entries(*id).unwrap_or_default() {
                if let Some(value) = self.plain(id).filter(|_| !settings.contains_key(name)) {
                    settings.insert(name.to_string(), value);
                }
            }
        }
        settings
    }

    fn plain(&self, id: Id) -> Option<Value> {
        Some(match self.pickle.object(id) {
            Object::Bool(flag) => json!(flag),
            Object::Int(n) => json!(n),
            Object::Float(x) => json!(x),
            Object::Text(text) => json!(text),
            _ => return None,
        })
    }
}
