//! The one list of stage kinds. Help, schema, reference and completions come from it; a new kind is a
//! file beside this one and a line below.

pub mod synthesize;

use crate::stage::{Stage, erase};

/// Every kind, in the order of their names.
pub fn all() -> Vec<Box<dyn Stage>> {
    vec![erase::<synthesize::Synthesize>()]
}
