//! The models: loaded when they are asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{ApiError, blocking};
use crate::kernel::Dtype;
use crate::model::Model;
use crate::target;

/// Models by their ids.
#[derive(Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    target: String,
    loaded: Mutex<Option<Arc<Loaded>>>,
}

/// A model in memory.
pub struct Loaded {
    pub model: Arc<Model>,
}

/// A model that may be asked for.
#[derive(Debug, Clone)]
pub struct Listed {
    pub id: String,
    pub loaded: bool,
}

impl Registry {
    /// Of pairs of id and target.
    pub fn new(models: impl IntoIterator<Item = (String, String)>) -> Self {
        let entry = |(id, target)| (id, Entry { target, loaded: Mutex::default() });
        Registry { entries: models.into_iter().map(entry).collect() }
    }

    /// The model `id`, which is loaded where it is not.
    ///
    /// # Errors
    /// When there is no such model, or it doesn't read.
    pub async fn get(&self, id: &str) -> Result<Arc<Loaded>, ApiError> {
        let entry = self.entries.get(id).ok_or_else(|| {
            ApiError::not_found(format!("there is no model `{id}`")).code("model_not_found")
        })?;
        if let Some(loaded) = entry.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(loaded);
        }
        let target = entry.target.clone();
        let model = blocking(move || target::load_model(&target, None, Dtype::F32)).await?;
        let loaded = Arc::new(Loaded { model: Arc::new(model) });
        *entry.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded.clone());
        Ok(loaded)
    }

    /// All models, in order of their ids.
    pub fn list(&self) -> Vec<Listed> {
        let is_loaded = |entry: &Entry| entry.loaded.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        self.entries.iter().map(|(id, entry)| Listed { id: id.clone(), loaded: is_loaded(entry) }).collect()
    }
}
